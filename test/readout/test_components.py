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
"""The component clean-up against the reference's flood fill."""

import cv2
from hypothesis import given, settings, strategies as st
import numpy as np
from owseg_ros.readout import clean_mask, reference
from owseg_ros.readout.components import bounding_box, label_components
import pytest


@given(st.integers(1, 24), st.integers(1, 24), st.floats(0.05, 0.95), st.integers(0, 40),
       st.integers(0, 10000))
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_reference(height, width, density, min_area, seed):
    mask = np.random.default_rng(seed).random((height, width)) < density
    np.testing.assert_array_equal(
        clean_mask(mask, min_area), reference.clean_mask(mask, min_area))


@pytest.mark.parametrize('density', [0.1, 0.5, 0.6, 0.9])
@pytest.mark.parametrize('smooth', [0, 1, 3])
def test_agrees_on_large_masks(density, smooth):
    """Hundreds of specks and holes, nested ones among them, and no end of noise."""
    noise = np.random.default_rng(5).random((90, 120)).astype(np.float32)
    if smooth:
        noise = cv2.GaussianBlur(noise, (0, 0), smooth)
    mask = noise < np.quantile(noise, density)
    for min_area in (2, 9, 60):
        np.testing.assert_array_equal(
            clean_mask(mask, min_area), reference.clean_mask(mask, min_area))


def test_boxes_are_right_with_the_opencv_of_ubuntu_too(monkeypatch):
    """Its cv2.boundingRect errs where rows begin at no multiple of four bytes."""
    plain = cv2.boundingRect

    def aligned_only(mask):
        assert mask.strides[0] % 4 == 0 and mask.ctypes.data % 4 == 0
        return plain(mask)

    monkeypatch.setattr(cv2, 'boundingRect', aligned_only)
    random = np.random.default_rng(1)
    for width in (1, 2, 3, 4, 5, 27, 40):
        for density in (0.0, 0.02, 0.3):
            mask = (random.random((9, width)) < density).astype(np.uint8)
            for piece in (mask, mask[2:, width // 3:], mask.T):
                rows, columns = np.nonzero(piece)
                expected = (columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
                            ) if len(rows) else (0, 0, 0, 0)
                assert bounding_box(piece) == expected


@given(st.integers(1, 40), st.integers(1, 40), st.floats(0, 1), st.integers(0, 3),
       st.integers(0, 10000))
@settings(max_examples=150, deadline=None)
def test_components_are_measured_as_by_opencv(height, width, density, smooth, seed):
    """Few of them, and nested ones, by their contours; many pixel by pixel."""
    noise = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    if smooth:
        noise = cv2.GaussianBlur(noise, (0, 0), smooth)
    mask = (noise <= np.quantile(noise, density)).astype(np.uint8) * 255
    labels, stats = label_components(mask)
    _, expected_labels, expected, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    np.testing.assert_array_equal(labels, expected_labels)
    np.testing.assert_array_equal(stats[1:], expected[1:])


def test_more_components_than_sixteen_bits_count():
    mask = np.zeros((700, 700), np.uint8)
    mask[::2, ::2] = 255
    mask[:3, :3] = 255
    found = clean_mask(mask, 9)
    assert found[:3, :3].all() and np.count_nonzero(found) == 9


@given(st.integers(0, 10000), st.integers(1, 30))
@settings(max_examples=40, deadline=None)
def test_cleaning_is_idempotent_on_what_it_leaves(seed, min_area):
    """No component below min_area survives, and cleaning a clean mask changes nothing."""
    mask = np.random.default_rng(seed).random((20, 20)) < 0.6
    once = clean_mask(mask, min_area)
    np.testing.assert_array_equal(clean_mask(once, min_area), once)


@pytest.mark.parametrize('dtype', [bool, np.uint8])
def test_leaves_its_input_alone(dtype):
    mask = np.zeros((10, 10), dtype)
    mask[2, 2] = 1
    kept = mask.copy()
    found = clean_mask(mask, 5)
    np.testing.assert_array_equal(mask, kept)
    assert found.dtype == np.uint8 and not found.any()
    assert clean_mask(mask, 1)[2, 2] == 255


def test_strided_input():
    mask = np.random.default_rng(0).random((20, 40)) < 0.5
    np.testing.assert_array_equal(
        clean_mask(mask[:, ::2], 4), reference.clean_mask(mask[:, ::2], 4))
