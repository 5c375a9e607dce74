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
"""Camera messages to arrays and back, against expectations computed independently."""

from array import array as byte_array
from dataclasses import dataclass
import os
import struct
import subprocess
import sys
import time
import types
import zlib

import cv2
from hypothesis import assume, given, settings, strategies as st
import numpy as np
from owseg_ros import frame as frame_module
from owseg_ros.errors import OwsegError
from owseg_ros.frame import (
    array_to_image, compressed_to_frame, Frame, frame_to_compressed, FrameError, image_to_array,
    image_to_frame, MAX_PIXELS)
import pytest
from support.data import data_path

PACKED = {
    'mono8': ('u1', 1), 'mono16': ('u2', 1), 'rgb8': ('u1', 3), 'bgr8': ('u1', 3),
    'rgba8': ('u1', 4), 'bgra8': ('u1', 4), 'rgb16': ('u2', 3), 'bgr16': ('u2', 3),
    'rgba16': ('u2', 4), 'bgra16': ('u2', 4), '8UC1': ('u1', 1), '8UC2': ('u1', 2),
    '8UC3': ('u1', 3), '8UC4': ('u1', 4), '8SC1': ('i1', 1), '16UC1': ('u2', 1),
    '16SC2': ('i2', 2), '32SC1': ('i4', 1), '32FC1': ('f4', 1), '32FC3': ('f4', 3),
    '64FC1': ('f8', 1), 'bayer_rggb8': ('u1', 1), 'bayer_bggr8': ('u1', 1),
    'bayer_gbrg8': ('u1', 1), 'bayer_grbg8': ('u1', 1), 'bayer_rggb16': ('u2', 1),
}
WRITABLE = {
    'mono8': ('u1', 1), 'mono16': ('u2', 1), 'rgb8': ('u1', 3), 'bgr8': ('u1', 3),
    'rgba8': ('u1', 4), 'bgra8': ('u1', 4), '8UC1': ('u1', 1), '8UC3': ('u1', 3),
    '16UC1': ('u2', 1), '32FC1': ('f4', 1),
}
# Where R, G and B lie in the 2x2 cell, as REP-118 and image_encodings.hpp name the patterns.
BAYER_CELLS = {
    'bayer_rggb8': ((0, 1), (1, 2)), 'bayer_bggr8': ((2, 1), (1, 0)),
    'bayer_gbrg8': ((1, 2), (0, 1)), 'bayer_grbg8': ((1, 0), (2, 1)),
}
SIZES = st.integers(1, 24)
SEEDS = st.integers(0, 2 ** 32 - 1)


@dataclass
class RawImage:
    """The fields of sensor_msgs/Image, for machines without ROS."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: object


@dataclass
class RawCompressed:
    """The fields of sensor_msgs/CompressedImage."""

    format: str  # noqa: A003
    data: object


def raw_image(pixels, encoding, pad=0, big_endian=False, height=None, width=None):
    """Lay rows out byte by byte, with ``pad`` bytes of 0xA5 after each."""
    order = '>' if big_endian else '<'
    rows = [np.asarray(row).astype(row.dtype.newbyteorder(order)).tobytes() + b'\xa5' * pad
            for row in pixels]
    return RawImage(height or pixels.shape[0], width or pixels.shape[1], encoding,
                    int(big_endian), len(rows[0]), byte_array('B', b''.join(rows)))


def noise(seed, dtype, shape):
    """Return noise over the whole range of a type."""
    random = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == 'f':
        return random.normal(scale=1e3, size=shape).astype(dtype)
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, shape, dtype, endpoint=True)


def shape_of(height, width, channels):
    return (height, width) if channels == 1 else (height, width, channels)


def refused(message, reader=image_to_frame, topic='/camera/image'):
    """Read a message that must be refused and return the error."""
    with pytest.raises(FrameError) as caught:
        reader(message, topic)
    error = caught.value
    assert isinstance(error, OwsegError)
    assert error.topic == topic and topic in str(error)
    assert error.expected and error.expected in str(error)
    assert '\n' not in str(error)
    return error


# Reading: layout

@settings(max_examples=150, deadline=None)
@given(encoding=st.sampled_from(sorted(PACKED)), height=SIZES, width=SIZES,
       pad=st.integers(0, 9), big_endian=st.booleans(), seed=SEEDS)
def test_array_has_every_pixel(encoding, height, width, pad, big_endian, seed):
    dtype, channels = PACKED[encoding]
    pixels = noise(seed, dtype, shape_of(height, width, channels))
    message = raw_image(pixels, encoding, pad, big_endian)
    result = image_to_array(message)
    assert result.dtype == np.dtype(dtype) and result.dtype.isnative
    np.testing.assert_array_equal(result, pixels)
    assert result.flags.aligned
    size = np.dtype(dtype).itemsize
    if size == 1 or (not big_endian and message.step % size == 0 and sys.byteorder == 'little'):
        assert np.shares_memory(result, np.frombuffer(message.data, np.uint8))


@settings(max_examples=60, deadline=None)
@given(encoding=st.sampled_from(['rgb8', 'bgr8', '8UC3']), height=SIZES, width=SIZES,
       pad=st.integers(0, 9), big_endian=st.booleans(), seed=SEEDS)
def test_colour_frames_are_views(encoding, height, width, pad, big_endian, seed):
    pixels = noise(seed, 'u1', (height, width, 3))
    message = raw_image(pixels, encoding, pad, big_endian)
    frame = image_to_frame(message)
    assert np.shares_memory(frame.pixels, np.frombuffer(message.data, np.uint8))
    assert frame.order == ('rgb' if encoding == 'rgb8' else 'bgr')
    assert (frame.height, frame.width) == (height, width)
    np.testing.assert_array_equal(frame.pixels, pixels)
    rgb = pixels if encoding == 'rgb8' else pixels[..., ::-1]
    np.testing.assert_array_equal(frame.rgb(), rgb)
    assert (frame.rgb() is frame.pixels) == (encoding == 'rgb8')
    # OpenCV reads such a view, padded as it is.
    np.testing.assert_array_equal(cv2.flip(frame.pixels, 0), pixels[::-1])


def test_a_view_keeps_the_message_alive_and_sees_its_data():
    message = raw_image(np.zeros((4, 5, 3), np.uint8), 'rgb8')
    data = message.data
    frame = image_to_frame(message)
    del message
    data[0] = 77
    assert frame.pixels[0, 0, 0] == 77
    with pytest.raises(BufferError):
        data.append(1)


@pytest.mark.parametrize('container', [bytes, bytearray, memoryview, np.frombuffer])
def test_data_may_be_any_byte_buffer(container):
    pixels = noise(3, 'u1', (4, 6, 3))
    message = raw_image(pixels, 'rgb8', pad=2)
    raw = message.data.tobytes()
    message.data = np.frombuffer(raw, np.uint8) if container is np.frombuffer else container(raw)
    np.testing.assert_array_equal(image_to_frame(message).pixels, pixels)


@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'nv24'])
@pytest.mark.parametrize('pad', [0, 3])
def test_planar_arrays(encoding, pad):
    height, width = 6, 8
    rows = height * 3 if encoding == 'nv24' else height * 3 // 2
    planes = noise(5, 'u1', (rows, width))
    message = planar_message(planes, encoding, height, width, pad)
    result = image_to_array(message)
    np.testing.assert_array_equal(result, planes)
    if encoding != 'nv24' or not pad:
        assert np.shares_memory(result, np.frombuffer(message.data, np.uint8))


# Reading: colour

@settings(max_examples=100, deadline=None)
@given(encoding=st.sampled_from([
    'rgba8', 'bgra8', '8UC4', 'mono8', '8UC1', 'mono16', '16UC1', 'rgb16', 'bgr16', 'rgba16',
    'bgra16', '16UC3', '16UC4']),
    height=SIZES, width=SIZES, pad=st.integers(0, 9), big_endian=st.booleans(), seed=SEEDS)
def test_colour_of_packed_encodings(encoding, height, width, pad, big_endian, seed):
    dtype, channels = PACKED.get(encoding, ('u2', int(encoding[-1:])) if 'UC' in encoding else 0)
    pixels = noise(seed, dtype, shape_of(height, width, channels))
    result = image_to_frame(raw_image(pixels, encoding, pad, big_endian)).rgb()
    expected = pixels if dtype == 'u1' else (pixels >> 8).astype(np.uint8)
    if channels == 1:
        expected = np.repeat(expected[..., None], 3, axis=2)
    elif encoding.startswith(('bgr', '8UC', '16UC')):
        expected = expected[..., [2, 1, 0]]
    else:
        expected = expected[..., :3]
    np.testing.assert_array_equal(result, expected)


def bt601(y, u, v):
    """ITU-R BT.601 YCbCr in video range to R'G'B', from the standard's luma coefficients."""
    kr, kb = 0.299, 0.114
    kg = 1 - kr - kb
    luma = np.maximum(y.astype(np.float64) - 16, 0) / 219
    pb, pr = (u.astype(np.float64) - 128) / 224, (v.astype(np.float64) - 128) / 224
    red = luma + 2 * (1 - kr) * pr
    blue = luma + 2 * (1 - kb) * pb
    green = luma - (2 * (1 - kb) * kb * pb + 2 * (1 - kr) * kr * pr) / kg
    return np.clip(np.stack([red, green, blue], -1) * 255, 0, 255)


@settings(max_examples=80, deadline=None)
@given(encoding=st.sampled_from(['uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2']), height=SIZES,
       pairs=st.integers(1, 12), pad=st.integers(0, 9), seed=SEEDS)
def test_yuv422(encoding, height, pairs, pad, seed):
    y = noise(seed, 'u1', (height, 2 * pairs))
    u, v = noise(seed + 1, 'u1', (2, height, pairs))
    packed = np.empty((height, 2 * pairs, 2), np.uint8)
    luma, chroma = (1, 0) if encoding in ('uyvy', 'yuv422') else (0, 1)
    packed[..., luma] = y
    packed[:, 0::2, chroma] = u
    packed[:, 1::2, chroma] = v
    message = raw_image(packed, encoding, pad)
    expected = bt601(y, u.repeat(2, 1), v.repeat(2, 1))
    assert np.abs(image_to_frame(message).rgb() - expected).max() <= 2
    np.testing.assert_array_equal(image_to_array(message), packed)


def planar_message(planes, encoding, height, width, pad):
    """Lay out a luma plane and interleaved chroma below, whose rows are padded like luma's."""
    if encoding == 'nv24':
        luma, chroma = planes[:height], planes[height:].reshape(height, 2 * width)
        rows = [row.tobytes() + b'\xa5' * pad for row in luma]
        rows += [row.tobytes() + b'\xa5' * (2 * pad) for row in chroma]
    else:
        rows = [row.tobytes() + b'\xa5' * pad for row in planes]
    return RawImage(height, width, encoding, 0, width + pad, byte_array('B', b''.join(rows)))


@settings(max_examples=80, deadline=None)
@given(encoding=st.sampled_from(['nv12', 'nv21', 'nv24']), rows=st.integers(1, 10),
       columns=st.integers(1, 10), pad=st.integers(0, 9), seed=SEEDS)
def test_planar_yuv(encoding, rows, columns, pad, seed):
    each = 1 if encoding == 'nv24' else 2
    height, width = rows * each, columns * each
    y = noise(seed, 'u1', (height, width))
    u, v = noise(seed + 1, 'u1', (2, rows, columns))
    chroma = np.stack([v, u] if encoding == 'nv21' else [u, v], -1)
    planes = np.concatenate([y, chroma.reshape(-1, width)])
    message = planar_message(planes, encoding, height, width, pad)
    u, v = (plane.repeat(each, 0).repeat(each, 1) for plane in (u, v))
    assert np.abs(image_to_frame(message).rgb() - bt601(y, u, v)).max() <= 2


def mosaic(rgb, encoding):
    """Sample an RGB image as a sensor with this colour filter array does."""
    cell = BAYER_CELLS[encoding]
    result = np.empty(rgb.shape[:2], rgb.dtype)
    for row in (0, 1):
        for column in (0, 1):
            result[row::2, column::2] = rgb[row::2, column::2, cell[row][column]]
    return result


@settings(max_examples=80, deadline=None)
@given(encoding=st.sampled_from(sorted(BAYER_CELLS)), height=st.integers(3, 24),
       width=st.integers(3, 24), pad=st.integers(0, 5), sixteen=st.booleans(),
       big_endian=st.booleans(),
       color=st.tuples(*[st.integers(0, 255)] * 3))
def test_bayer_of_one_colour(encoding, height, width, pad, sixteen, big_endian, color):
    rgb = np.empty((height, width, 3), np.uint8)
    rgb[:] = color
    pixels = mosaic(rgb, encoding)
    if sixteen:
        pixels = pixels.astype(np.uint16) << 8 | 0x5a
        encoding = encoding.replace('8', '16')
    result = image_to_frame(raw_image(pixels, encoding, pad, big_endian)).rgb()
    np.testing.assert_array_equal(result, rgb)


@pytest.mark.parametrize('encoding', sorted(BAYER_CELLS))
def test_bayer_of_a_camera_frame(encoding):
    camera = cv2.imread(str(sorted(data_path('camvid').rglob('*.jpg'))[0]), cv2.IMREAD_COLOR)
    rgb = np.ascontiguousarray(camera[..., ::-1])
    pixels = mosaic(rgb, encoding)
    error = np.abs(image_to_frame(raw_image(pixels, encoding)).rgb().astype(int) - rgb)
    assert error.mean() < 5
    for other in set(BAYER_CELLS) - {encoding}:
        wrong = np.abs(image_to_frame(raw_image(pixels, other)).rgb().astype(int) - rgb)
        assert wrong.mean() > error.mean()


def test_bayer_of_a_gradient_and_a_wrong_pattern():
    rows, columns = np.mgrid[0:64, 0:80]
    rgb = np.stack([2 * columns, 3 * rows, 255 - columns - rows], -1).astype(np.uint8)
    for encoding in BAYER_CELLS:
        pixels = mosaic(rgb, encoding)
        inner = np.s_[2:-2, 2:-2]
        for other in BAYER_CELLS:
            result = image_to_frame(raw_image(pixels, other)).rgb()
            error = np.abs(result[inner].astype(int) - rgb[inner])
            assert (error.max() <= 2) == (other == encoding), (encoding, other)


# Reading: what is malformed

def test_short_and_long_buffers():
    pixels = noise(1, 'u1', (4, 5, 3))
    message = raw_image(pixels, 'rgb8', pad=3)
    whole = message.data
    # Nothing but padding is missing, or less than a row is left over.
    for size in (72 - 3, 72, 72 + 17):
        message.data = (whole + byte_array('B', bytes(32)))[:size]
        np.testing.assert_array_equal(image_to_frame(message).pixels, pixels)
    message.data = whole[:72 - 4]
    error = refused(message)
    assert '68 bytes' in str(error) and '72 bytes' in error.expected and 'rgb8' in str(error)
    message.data = whole + byte_array('B', bytes(18))
    assert '72 bytes' in refused(message).expected
    message.data = b''
    assert '0 bytes' in str(refused(message))


@settings(max_examples=80, deadline=None)
@given(encoding=st.sampled_from([*sorted(PACKED), 'uyvy', 'yuyv', 'nv12', 'nv21', 'nv24']),
       height=st.integers(1, 8), width=st.integers(1, 8), pad=st.integers(0, 5),
       cut=st.integers(1, 400), seed=SEEDS)
def test_any_truncation_is_refused(encoding, height, width, pad, cut, seed):
    if encoding in ('nv12', 'nv21', 'nv24', 'uyvy', 'yuyv'):
        height, width = 2 * height, 2 * width
    dtype, channels = PACKED.get(encoding, ('u1', 2 if encoding in ('uyvy', 'yuyv') else 1))
    rows = {'nv12': height * 3 // 2, 'nv21': height * 3 // 2, 'nv24': height * 3}.get(
        encoding, height)
    row = width * channels * np.dtype(dtype).itemsize
    size = (rows - 1) * (row + pad) + row
    message = RawImage(height, width, encoding, 0, row + pad, bytes(size))
    image_to_array(message)
    message.data = bytes(max(0, size - cut))
    refused(message, image_to_array)
    refused(message, image_to_frame)


def test_wrong_step():
    message = raw_image(noise(1, 'u1', (4, 5, 3)), 'rgb8')
    for step in (0, 1, 14):
        message.step = step
        error = refused(message)
        assert f'step is {step}' in str(error) and '15' in error.expected
    message.step = 2 ** 32 - 1
    assert 'too few' in str(refused(message))


@pytest.mark.parametrize('height, width', [(0, 5), (4, 0), (0, 0), (-1, 5), (4, -5)])
def test_empty_size(height, width):
    message = raw_image(noise(1, 'u1', (4, 5, 3)), 'rgb8')
    message.height, message.width = height, width
    refused(message)
    refused(message, image_to_array)


def test_absurd_size():
    message = raw_image(noise(1, 'u1', (4, 5, 3)), 'rgb8')
    message.height = message.width = 2 ** 31
    assert str(MAX_PIXELS) in refused(message).expected
    message.height, message.width, message.step = MAX_PIXELS, 2, 6
    assert 'absurd' in str(refused(message))


@pytest.mark.parametrize('encoding', ['', 'RGB8', 'rgb', 'h264', '8UC0', '9UC1', 'x' * 100000])
def test_unknown_encodings(encoding):
    message = raw_image(noise(1, 'u1', (4, 5, 3)), encoding)
    error = refused(message)
    assert error.encoding == encoding
    assert 'bayer_rggb8' in error.expected and len(str(error)) < 2000
    assert 'rgb8' in str(refused(message, image_to_array))
    if encoding == 'RGB8':
        assert 'did you mean rgb8?' in str(error)


@pytest.mark.parametrize('encoding', ['32FC1', '64FC1', '32SC1', '16SC1', '8UC2'])
def test_measurements_are_no_pictures(encoding):
    dtype, channels = PACKED.get(encoding, ('i2', 1))
    message = raw_image(noise(1, dtype, shape_of(4, 6, channels)), encoding)
    assert 'camera image' in refused(message).expected
    image_to_array(message)


@pytest.mark.parametrize('encoding, height, width', [
    ('uyvy', 4, 5), ('yuyv', 4, 5), ('nv12', 4, 5), ('nv12', 5, 4), ('nv21', 3, 4)])
def test_odd_sizes_of_shared_chroma(encoding, height, width):
    message = RawImage(height, width, encoding, 0, 2 * width, bytes(2 * width * height))
    assert 'even' in refused(message).expected


@pytest.mark.parametrize('height, width', [(2, 8), (8, 2), (1, 1)])
def test_too_small_to_demosaic(height, width):
    message = raw_image(noise(1, 'u1', (height, width)), 'bayer_rggb8')
    assert '3x3' in refused(message).expected


ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
    st.binary(max_size=8), st.lists(st.integers(0, 255), max_size=4), st.just(object()))
FIELDS = {
    'height': st.integers(0, 40), 'width': st.integers(0, 40), 'step': st.integers(0, 200),
    'is_bigendian': st.integers(0, 255),
    'encoding': st.one_of(st.text(max_size=12), st.sampled_from(
        [*sorted(PACKED), 'uyvy', 'yuv422', 'yuyv', 'yuv422_yuy2', 'nv12', 'nv21', 'nv24'])),
    'data': st.one_of(st.binary(max_size=3000),
                      st.integers(0, 20000).map(lambda size: byte_array('B', bytes(size)))),
}


def read_or_refuse(reader, message):
    try:
        return reader(message, '/fuzz')
    except FrameError as error:
        assert '/fuzz' in str(error)
        return None


@settings(max_examples=300, deadline=None)
@given(fields=st.fixed_dictionaries({
    name: st.one_of(values, values, values, values, ODD_VALUES)
    for name, values in FIELDS.items()}))
def test_any_fields_give_an_image_or_a_frame_error(fields):
    message = types.SimpleNamespace(**fields)
    array = read_or_refuse(image_to_array, message)
    frame = read_or_refuse(image_to_frame, message)
    if frame is not None:
        assert frame.pixels.shape == (fields['height'], fields['width'], 3)
        assert array is not None and int(array.sum(dtype=np.float64) * 0) == 0


def test_missing_fields():
    for name in FIELDS:
        message = raw_image(noise(1, 'u1', (4, 5, 3)), 'rgb8')
        fields = {**vars(message)}
        del fields[name]
        assert name in str(refused(types.SimpleNamespace(**fields)))


@settings(max_examples=150, deadline=None)
@given(height=st.integers(0, 2 ** 32 - 1), width=st.integers(0, 2 ** 32 - 1),
       step=st.integers(0, 2 ** 32 - 1), small=st.booleans(), encoding=FIELDS['encoding'],
       big=st.integers(0, 255), data=st.binary(max_size=500))
def test_any_real_message_gives_an_image_or_a_frame_error(
        height, width, step, small, encoding, big, data):
    messages = pytest.importorskip('sensor_msgs.msg', reason='needs sensor_msgs (extra ros)')
    assume('\x00' not in encoding)
    message = messages.Image()
    message.height, message.width, message.step = (
        (height % 12, width % 12, step % 50) if small else (height, width, step))
    message.encoding, message.is_bigendian = encoding, big
    message.data.frombytes(data)
    read_or_refuse(image_to_array, message)
    read_or_refuse(image_to_frame, message)


# cv_bridge

def test_rare_encodings_go_to_cv_bridge(monkeypatch):
    class CvBridge:

        def imgmsg_to_cv2(self, message, encoding):
            assert encoding == 'bgr8'
            if message.encoding == 'broken':
                raise RuntimeError('two\nlines')
            return np.full((message.height, message.width, 3), (1, 2, 3), np.uint8)

    module = types.ModuleType('cv_bridge')
    module.CvBridge = CvBridge
    monkeypatch.setitem(sys.modules, 'cv_bridge', module)
    message = RawImage(2, 3, 'yuv444', 0, 9, bytes(18))
    assert image_to_frame(message).rgb()[0, 0].tolist() == [3, 2, 1]
    message.encoding = 'broken'
    assert 'two lines' in str(refused(message))


@pytest.mark.parametrize('encoding', [
    'rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', 'mono16', 'yuv422', 'yuv422_yuy2', 'bayer_rggb8',
    'bayer_bggr8', 'bayer_gbrg8', 'bayer_grbg8'])
def test_same_as_cv_bridge(encoding):
    try:
        import cv_bridge
    except ImportError as error:
        pytest.skip(f'cv_bridge does not import, so there is nothing to compare with: {error}')
    messages = pytest.importorskip('sensor_msgs.msg', reason='needs sensor_msgs (extra ros)')
    dtype, channels = PACKED.get(encoding, ('u1', 2))
    raw = raw_image(noise(9, dtype, shape_of(24, 32, channels)), encoding)
    message = messages.Image(height=raw.height, width=raw.width, encoding=encoding, step=raw.step)
    message.data.frombytes(raw.data)
    theirs = cv_bridge.CvBridge().imgmsg_to_cv2(message, 'rgb8')
    ours = image_to_frame(message).rgb()
    assert np.abs(ours.astype(int) - theirs).max() <= 1


# Compressed

def encoded(pixels, extension, *options):
    done, data = cv2.imencode(extension, pixels, list(options))
    assert done
    return data.tobytes()


def smooth(height=48, width=64):
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([rows * 4, columns * 3, 255 - rows - columns], -1).astype(np.uint8)


@pytest.mark.parametrize('text', [
    'png', '', 'bgr8; png compressed bgr8', 'rgb8; png compressed bgr8', 'mono8; png compressed '])
def test_png_is_exact(text):
    bgr = smooth()
    frame = compressed_to_frame(RawCompressed(text, encoded(bgr, '.png')))
    assert frame.order == 'bgr'
    np.testing.assert_array_equal(frame.pixels, bgr)
    np.testing.assert_array_equal(frame.rgb(), bgr[..., ::-1])


@pytest.mark.parametrize('text', ['jpeg', 'jpg', 'rgb8; jpeg compressed bgr8', 'rgb8; jpeg'])
def test_jpeg_is_close(text):
    bgr = smooth()
    data = byte_array('B', encoded(bgr, '.jpg', cv2.IMWRITE_JPEG_QUALITY, 95))
    frame = compressed_to_frame(RawCompressed(text, data))
    assert np.abs(frame.rgb().astype(int) - bgr[..., ::-1]).mean() < 3


@pytest.mark.parametrize('at_least, shape', [
    (None, (480, 640)), ((480, 640), (480, 640)), ((241, 320), (480, 640)),
    ((240, 320), (240, 320)), ((125, 90), (240, 320)), ((120, 100), (120, 160)),
    ((1, 1), (60, 80))])
def test_a_jpeg_is_decoded_at_the_smallest_size_that_will_do(at_least, shape):
    bgr = cv2.resize(smooth(), (640, 480), interpolation=cv2.INTER_CUBIC)
    data = byte_array('B', encoded(bgr, '.jpg', cv2.IMWRITE_JPEG_QUALITY, 95))
    frame = compressed_to_frame(RawCompressed('rgb8; jpeg compressed bgr8', data),
                                at_least=at_least)
    assert frame.pixels.shape == (*shape, 3) and frame.order == 'bgr'
    assert (frame.height, frame.width) == (480, 640)
    assert (frame.full_size is None) == (shape == (480, 640))
    small = cv2.resize(bgr, shape[::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(frame.pixels.astype(int) - small).mean() < 3


def test_odd_sizes_and_other_codecs_at_a_smaller_size():
    bgr = cv2.resize(smooth(), (333, 251))
    frame = compressed_to_frame(RawCompressed('jpeg', encoded(bgr, '.jpg')), at_least=(60, 80))
    assert frame.pixels.shape[:2] == (63, 84) and (frame.height, frame.width) == (251, 333)
    frame = compressed_to_frame(RawCompressed('png', encoded(bgr, '.png')), at_least=(60, 80))
    assert frame.full_size is None
    np.testing.assert_array_equal(frame.pixels, bgr)
    broken = encoded(bgr, '.jpg')[:-40]
    with pytest.raises(FrameError, match='truncated'):
        compressed_to_frame(RawCompressed('jpeg', broken), at_least=(60, 80))


def test_grey_and_alpha_and_sixteen_bit_pngs():
    grey = smooth()[..., 0]
    frame = compressed_to_frame(RawCompressed('mono8; png compressed mono8',
                                              encoded(grey, '.png')))
    np.testing.assert_array_equal(frame.rgb(), np.repeat(grey[..., None], 3, 2))
    rgba = np.dstack([smooth(), grey])
    frame = compressed_to_frame(RawCompressed('png', encoded(rgba, '.png')))
    np.testing.assert_array_equal(frame.pixels, rgba[..., :3])
    deep = noise(4, 'u2', (8, 9))
    frame = compressed_to_frame(RawCompressed('16UC1; png compressed 16UC1',
                                              encoded(deep, '.png')))
    assert np.abs(frame.pixels[..., 0].astype(int) - (deep / 257)).max() <= 1


def test_channels_that_image_transport_stored_swapped():
    rgb = smooth()
    data = encoded(rgb, '.png')
    for text in ('rgb8; png compressed rgb8', 'bgr8; jpeg compressed '):
        np.testing.assert_array_equal(compressed_to_frame(RawCompressed(text, data)).rgb(), rgb)


def test_exif_rotation_is_not_applied():
    exif = (b'Exif\x00\x00MM\x00*\x00\x00\x00\x08\x00\x01'
            + struct.pack('>HHIHH', 0x0112, 3, 1, 6, 0) + b'\x00\x00\x00\x00')
    data = encoded(smooth(48, 64), '.jpg')
    data = data[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + data[2:]
    rotated = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert rotated.shape[:2] == (64, 48), 'the test data must hold a rotation'
    assert compressed_to_frame(RawCompressed('jpeg', data)).pixels.shape == (48, 64, 3)


@pytest.mark.parametrize('extension', ['.jpg', '.png'])
def test_any_truncated_file_is_refused(extension):
    data = encoded(noise(2, 'u1', (24, 24, 3)), extension)
    compressed_to_frame(RawCompressed('x', data))
    for size in [*range(0, 64), *range(64, len(data) - 1, 37), len(data) - 1]:
        if extension == '.png' and size > len(data) - 8:
            continue
        error = refused(RawCompressed('x', data[:size]), compressed_to_frame)
        assert 'JPEG' in error.expected
        # It is told from the markers: some decoders fill what is missing with grey instead.
        assert 'truncated' in str(error) or size < 8
    padded = data + bytes(7)
    assert compressed_to_frame(RawCompressed('x', padded)).pixels.shape == (24, 24, 3)


@settings(max_examples=100, deadline=None)
@given(extension=st.sampled_from(['.jpg', '.png']), position=st.integers(0, 10 ** 6),
       value=st.integers(0, 255), head=st.binary(max_size=40), text=st.text(max_size=20))
def test_damaged_files_give_an_image_or_a_frame_error(extension, position, value, head, text):
    data = bytearray(encoded(smooth(16, 24), extension))
    data[position % len(data)] = value
    magic = {'.jpg': b'\xff\xd8', '.png': b'\x89PNG\r\n\x1a\n'}[extension]
    for content in (bytes(data), head, magic + head):
        message = RawCompressed(text, content)
        try:
            compressed_to_frame(message, '/fuzz')
        except FrameError as error:
            assert '/fuzz' in str(error)


def png_of_size(height, width):
    chunk = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
    return (b'\x89PNG\r\n\x1a\n' + struct.pack('>I', 13) + chunk
            + struct.pack('>I', zlib.crc32(chunk)) + bytes(4) + b'IEND\xaeB`\x82')


def test_decompression_bombs_are_refused_before_decoding():
    error = refused(RawCompressed('png', png_of_size(60000, 60000)), compressed_to_frame)
    assert '60000x60000' in str(error) and 'absurd' in str(error)
    data = bytearray(encoded(smooth(), '.jpg'))
    start = data.index(b'\xff\xc0')
    data[start + 5:start + 9] = struct.pack('>HH', 65535, 65535)
    assert '65535x65535' in str(refused(RawCompressed('jpeg', bytes(data)), compressed_to_frame))
    assert 'empty' in str(refused(RawCompressed('png', png_of_size(0, 5)), compressed_to_frame))


def test_other_codecs_are_refused():
    for data in (b'RIFF....WEBP', b'\x00\x00\x00\x01gh264', b'BM', b'\x00'):
        error = refused(RawCompressed('h264', data), compressed_to_frame)
        assert 'neither JPEG nor PNG' in str(error) and 'JPEG or PNG' in error.expected
    depth = RawCompressed('16UC1; compressedDepth png', encoded(smooth(), '.png'))
    assert 'depth' in str(refused(depth, compressed_to_frame))
    refused(RawCompressed('jpeg', None), compressed_to_frame)
    refused(RawCompressed(None, b'x'), compressed_to_frame)
    refused(object(), compressed_to_frame)


# Frame

def test_frame_accepts_only_colour_images():
    for pixels in (np.zeros((4, 5), np.uint8), np.zeros((4, 5, 3), np.float32), [[1]],
                   np.zeros((4, 5, 4), np.uint8), np.zeros((0, 5, 3), np.uint8), None):
        with pytest.raises(FrameError, match='uint8'):
            Frame(pixels)
    with pytest.raises(FrameError, match="'rgb' or 'bgr'"):
        Frame(np.zeros((4, 5, 3), np.uint8), 'gbr')


def test_frame_rows_are_contiguous():
    pixels = noise(1, 'u1', (6, 8, 3))
    assert Frame(pixels).pixels is pixels
    padded = pixels[:, :5]
    assert Frame(padded).pixels is padded
    for odd in (pixels[:, ::2], pixels[::-1], pixels[:, ::-1], pixels[..., ::-1],
                pixels.transpose(1, 0, 2)):
        frame = Frame(odd)
        np.testing.assert_array_equal(frame.pixels, odd)
        assert frame.pixels[0].flags.c_contiguous and frame.pixels.strides[0] > 0


# Writing

@pytest.fixture(scope='module')
def messages():
    return pytest.importorskip('sensor_msgs.msg', reason='needs sensor_msgs (extra ros)')


@settings(max_examples=100, deadline=None)
@given(encoding=st.sampled_from(sorted(WRITABLE)), height=SIZES, width=SIZES,
       layout=st.sampled_from(
           ['plain', 'columns', 'upside_down', 'swapped', 'third', 'read_only']),
       seed=SEEDS)
def test_written_images_read_back(messages, encoding, height, width, layout, seed):
    dtype, channels = WRITABLE[encoding]
    pixels = noise(seed, dtype, shape_of(height, width, channels))
    given_pixels = pixels
    if layout == 'columns':
        given_pixels = np.repeat(pixels, 2, axis=1)[:, ::2]
    elif layout == 'upside_down':
        given_pixels = np.ascontiguousarray(pixels[::-1])[::-1]
    elif layout == 'swapped':
        given_pixels = pixels.astype(pixels.dtype.newbyteorder('S'))
    elif layout == 'third' and channels == 1:
        given_pixels = pixels[..., None]
    elif layout == 'read_only':
        pixels.flags.writeable = False
    message = array_to_image(given_pixels, encoding)
    assert type(message) is messages.Image
    assert (message.height, message.width, message.encoding) == (height, width, encoding)
    assert message.step == width * channels * np.dtype(dtype).itemsize
    assert message.is_bigendian == (sys.byteorder == 'big')
    assert len(message.data) == height * message.step
    assert type(message.data) is byte_array and message.data.typecode == 'B'
    np.testing.assert_array_equal(image_to_array(message), pixels)


def test_the_header_is_copied_unchanged(messages):
    source = messages.Image()
    source.header.stamp.sec, source.header.stamp.nanosec = 12, 345
    source.header.frame_id = 'camera_optical'
    mask = array_to_image(np.zeros((4, 5), np.uint8), 'mono8', source.header)
    assert mask.header == source.header
    assert array_to_image(np.zeros((4, 5), np.uint8), 'mono8').header.frame_id == ''
    jpeg = frame_to_compressed(Frame(smooth()), header=source.header)
    assert jpeg.header == source.header


def test_a_message_is_written_to_again_where_it_fits(messages):
    header = messages.Image().header
    header.frame_id = 'camera_optical'
    for encoding, dtype, shape in (
            ('mono8', np.uint8, (4, 5)), ('32FC1', np.float32, (4, 5)),
            ('rgb8', np.uint8, (4, 5, 3))):
        first, second = (np.arange(i, i + np.prod(shape)).astype(dtype).reshape(shape)
                         for i in range(2))
        last = array_to_image(first, encoding, header)
        data = last.data
        again = array_to_image(second[:, ::-1], encoding, None, last)
        assert again is last and again.data is data
        assert again == array_to_image(second[:, ::-1], encoding)
        for other in (array_to_image(first[1:], encoding), array_to_image(first[:, 1:], encoding),
                      array_to_image(np.zeros((4, 5), np.uint16), 'mono16')):
            made = array_to_image(second, encoding, header, other)
            assert made is not other and made == array_to_image(second, encoding, header)


def test_arrays_that_do_not_fit_are_refused(messages):
    image = np.zeros((4, 5, 3), np.uint8)
    for array, encoding in [
            (image, 'mono8'), (image[..., 0], 'rgb8'), (image, 'rgba8'), (image, 'mono16'),
            (image.astype(np.float64), 'rgb8'), (image[..., 0], '32FC1'), (image[0, 0], 'mono8'),
            (image[..., 0].astype(np.int16), 'mono16'), (image[..., 0].astype(bool), 'mono8'),
            (image[:0], 'rgb8'), (image.tolist(), 'rgb8'), (None, 'mono8'), (image[None], 'rgb8'),
            (np.zeros((), np.uint8), 'mono8'), (np.zeros((4, 5), 'f8'), '32FC1')]:
        with pytest.raises(FrameError, match='expected a NumPy array') as caught:
            array_to_image(array, encoding)
        assert caught.value.encoding == encoding
    for encoding in ('yuv422', 'nv12', 'bayer_rggb8', 'nonsense', None):
        with pytest.raises(FrameError, match='expected one of mono8'):
            array_to_image(image, encoding)


CHECKED = """
import sys
from array import array
import numpy as np
from owseg_ros.frame import Frame, array_to_image, frame_to_compressed, image_to_array
from sensor_msgs.msg import Image

try:
    Image().data = np.zeros(4, np.float32)
except AssertionError:
    pass
else:
    sys.exit('the field checks are off: this proves nothing')
for encoding, dtype, shape in (('rgb8', 'u1', (6, 7, 3)), ('32FC1', 'f4', (6, 7)),
                               ('mono16', 'u2', (6, 7))):
    pixels = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    message = array_to_image(pixels, encoding)
    by_hand = Image(height=6, width=7, encoding=encoding, step=message.step)
    by_hand.data = array('B', pixels.tobytes())
    assert message == by_hand, encoding
    assert (image_to_array(message) == pixels).all()
assert len(frame_to_compressed(Frame(np.zeros((4, 5, 3), np.uint8))).data) > 100
print('checked')
"""


def test_messages_are_right_with_field_checks_on(messages):
    done = subprocess.run(
        [sys.executable, '-c', CHECKED], capture_output=True, text=True, timeout=60,
        env={**os.environ, 'ROS_PYTHON_CHECK_FIELDS': '1',
             'PYTHONPATH': os.pathsep.join(path for path in sys.path if path)})
    assert done.stdout.strip() == 'checked', done.stdout + done.stderr


@pytest.mark.parametrize('order', ['rgb', 'bgr'])
@pytest.mark.parametrize('kind', ['jpeg', 'png'])
def test_compressed_frames_read_back(messages, order, kind):
    padded = np.zeros((48, 80, 3), np.uint8)
    padded[:, :64] = smooth()
    frame = Frame(padded[:, :64], order)
    message = frame_to_compressed(frame, kind, quality=95)
    assert type(message) is messages.CompressedImage
    assert message.format == f'{order}8; {kind} compressed bgr8'
    result = compressed_to_frame(message).rgb()
    error = np.abs(result.astype(int) - frame.rgb())
    assert error.mean() < 3 if kind == 'jpeg' else error.max() == 0


def test_compression_that_cannot_be(messages):
    with pytest.raises(FrameError, match="expected 'jpeg' or 'png'"):
        frame_to_compressed(Frame(smooth()), 'webp')
    with pytest.raises(FrameError, match='limits of the codec'):
        frame_to_compressed(Frame(np.zeros((1, 70000, 3), np.uint8)), 'jpeg')


def test_quality_is_used(messages):
    frame = Frame(noise(1, 'u1', (64, 64, 3)))
    assert len(frame_to_compressed(frame, quality=20).data) \
        < len(frame_to_compressed(frame, quality=95).data) / 2


# Over DDS

@pytest.mark.parametrize('encoding', ['rgb8', '32FC1'])
def test_images_survive_dds(messages, encoding):
    rclpy = pytest.importorskip('rclpy', reason='needs rclpy (extra ros)')
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    dtype, channels = WRITABLE[encoding]
    pixels = noise(8, dtype, shape_of(120, 160, channels))
    sent = array_to_image(pixels, encoding)
    sent.header.stamp.sec, sent.header.frame_id = 7, 'camera_optical'
    received = []
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=10)
    try:
        node = rclpy.create_node('frame_test', context=context)
        executor = SingleThreadedExecutor(context=context)
        executor.add_node(node)
        latched = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE,
                             durability=DurabilityPolicy.TRANSIENT_LOCAL)
        topic = f'frame_test_{os.getpid()}_{encoding}'
        publisher = node.create_publisher(messages.Image, topic, latched)
        node.create_subscription(messages.Image, topic, received.append, latched)
        publisher.publish(sent)
        deadline = time.monotonic() + 20
        while not received and time.monotonic() < deadline:
            executor.spin_once(timeout_sec=0.1)
        node.destroy_node()
        executor.shutdown()
    finally:
        rclpy.shutdown(context=context)
    assert received, 'no image arrived within 20 s'
    message = received[0]
    assert message == sent
    array = image_to_array(message)
    np.testing.assert_array_equal(array, pixels)
    assert np.shares_memory(array, np.frombuffer(message.data, np.uint8))
    if encoding == 'rgb8':
        assert image_to_frame(message).pixels.base is not None
        np.testing.assert_array_equal(image_to_frame(message).rgb(), pixels)
    else:
        assert frame_module.FrameError is type(refused(message))
