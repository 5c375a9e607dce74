# Copyright 2026 owseg_ros contributors
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Pre-processing: values, orders, sizes, and writing where it is told to."""

import tracemalloc

import cv2
from hypothesis import assume, given, settings, strategies as st
import numpy as np
from owseg_ros.bundle import InputSpec
from owseg_ros.engine.preprocess import normalisation_tables, pack, resize
from owseg_ros.engine.stretch import plan, stretch
from owseg_ros.frame import Frame
import pytest

SPEC = InputSpec('image', 24, 16, (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def expected(rgb, spec=SPEC):
    """Return the input of one RGB frame, computed the plain way in double precision."""
    small = resize(rgb, spec.height, spec.width).astype(np.float64)
    return ((small - spec.mean) / spec.std).transpose(2, 0, 1)


@given(st.integers(1, 60), st.integers(1, 60), st.booleans(), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_values_of_any_size_and_order(height, width, bgr, seed):
    rgb = picture(height, width, seed)
    frame = Frame(np.ascontiguousarray(rgb[:, :, ::-1]), 'bgr') if bgr else Frame(rgb)
    found = pack([frame], SPEC)
    assert found.shape == (1, 3, 16, 24) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], expected(rgb), atol=1e-6)


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('size', [(352, 480), (480, 640), (96, 700), (1080, 1920)])
def test_each_byte_of_each_channel_is_that_of_the_table(size, order):
    """Bit by bit what stretching and three tables give, with reused memory and without."""
    spec = InputSpec('image', 480, 352, SPEC.mean, SPEC.std)
    pixels = picture(*size)
    pixels[:256 // size[1] + 1].reshape(-1, 3)[:256] = np.arange(256)[:, None]
    tables = normalisation_tables(spec)
    small = resize(pixels, 352, 480)
    assert size != (352, 480) or all(
        len(np.unique(small[..., index])) == 256 for index in range(3))
    rgb = small if order == 'rgb' else small[..., ::-1]
    wanted = np.stack([table[rgb[..., index]] for index, table in enumerate(tables)])
    out, scratch = np.full((1, 3, 352, 480), np.nan, np.float32), np.empty((6, 352, 480), np.uint8)
    for found in (pack([Frame(pixels, order)], spec),
                  pack([Frame(pixels, order)], spec, out, tables, scratch)):
        assert found[0].tobytes() == wanted.tobytes()


@given(st.integers(1, 30), st.integers(1, 30), st.data(), st.booleans(), st.integers(0, 7))
@settings(max_examples=150, deadline=None)
def test_the_compiled_stretch_is_that_of_opencv(height, width, data, bgr, padding):
    """Bit by bit, ties of the rounding included."""
    size = (data.draw(st.integers(height, 3 * height)), data.draw(st.integers(width, 3 * width)))
    planned = plan(size, (height, width))
    assume(planned is not None)
    pixels = picture(size[0], size[1] + padding, data.draw(st.integers(0, 99)))[:, :size[1]]
    kept = pixels.copy()
    tables = normalisation_tables(SPEC)
    out = np.full((3, height, width), np.nan, np.float32)
    stretch(pixels, planned, tables, out, bgr)
    small = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)
    wanted = np.stack([table[plane] for table, plane in zip(
        tables, (small[..., ::-1] if bgr else small).transpose(2, 0, 1))])
    assert out.tobytes() == wanted.tobytes()
    np.testing.assert_array_equal(pixels, kept)


def test_where_the_compiled_stretch_stands_in():
    network = (352, 480)
    for size in ((480, 640), (353, 481), (352, 500), (720, 900)):
        assert plan(size, network) is not None
    for size in (network, (704, 960), (351, 640), (480, 479), (1080, 1920)):
        assert plan(size, network) is None


def test_batch_of_different_cameras():
    frames = [picture(16, 24, 1), picture(48, 64, 2), picture(9, 100, 3)]
    found = pack([Frame(rgb) for rgb in frames], SPEC)
    for rgb, planes in zip(frames, found):
        np.testing.assert_allclose(planes, expected(rgb), atol=1e-6)


def test_nothing_is_allocated_where_all_memory_is_given():
    """A frame becomes the input without a buffer in between that was not there before."""
    spec = InputSpec('image', 480, 352, SPEC.mean, SPEC.std)
    tables, out = normalisation_tables(spec), np.empty((2, 3, 352, 480), np.float32)
    scratch = np.empty((6, 352, 480), np.uint8)
    frames = [Frame(picture(480, 640)), Frame(picture(352, 480), 'bgr')]
    wanted = pack(frames, spec)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        pack(frames, spec, out, tables, scratch)
        grown = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(out, wanted)
    assert grown < 30000


def test_writes_into_the_given_buffer():
    """Every value of the buffer is written, in place."""
    out = np.full((2, 3, 16, 24), np.nan, np.float32)
    frames = [Frame(picture(32, 48)), Frame(picture(16, 24), 'bgr')]
    assert pack(frames, SPEC, out) is out
    np.testing.assert_array_equal(out, pack(frames, SPEC))
    part = np.full((4, 3, 16, 24), np.nan, np.float32)
    pack(frames, SPEC, part[1:3], normalisation_tables(SPEC))
    np.testing.assert_array_equal(part[1:3], out)
    assert np.isnan(part[0]).all() and np.isnan(part[3]).all()


@pytest.mark.parametrize('out', [
    np.empty((1, 3, 16, 25), np.float32), np.empty((1, 3, 16, 24)),
    np.empty((1, 3, 16, 48), np.float32)[..., ::2]])
def test_refuses_a_buffer_that_does_not_fit(out):
    with pytest.raises(ValueError, match='contiguous float32'):
        pack([Frame(picture(16, 24))], SPEC, out)


def test_padded_rows_are_read_in_place():
    padded = picture(40, 60)
    view = padded[:, :48]
    np.testing.assert_array_equal(
        pack([Frame(view)], SPEC), pack([Frame(view.copy())], SPEC))


def test_does_not_modify_the_frame():
    rgb = picture(16, 24)
    rgb.setflags(write=False)
    pack([Frame(rgb)], SPEC)
    bgr = picture(32, 48)
    kept = bgr.copy()
    pack([Frame(bgr, 'bgr')], SPEC)
    np.testing.assert_array_equal(bgr, kept)


def test_shrinking_averages_and_growing_interpolates():
    """A one-pixel checkerboard becomes grey instead of moire; a frame that fits is not copied."""
    board = np.zeros((32, 48, 3), np.uint8)
    board[::2, ::2] = board[1::2, 1::2] = 255
    assert np.abs(resize(board, 16, 24).astype(int) - 128).max() <= 1
    large = picture(8, 12)
    np.testing.assert_array_equal(
        resize(large, 16, 24), cv2.resize(large, (24, 16), interpolation=cv2.INTER_LINEAR))
    same = picture(16, 24)
    assert resize(same, 16, 24) is same
