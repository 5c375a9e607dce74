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
"""Mask pooling: means over regions and under the masks of the network."""

import cv2
import numpy as np
from owseg_ros.language.regions import find_regions
from owseg_ros.novelty.region_features import mask_features, mask_region, region_features
import pytest


@pytest.fixture
def features():
    return np.random.default_rng(0).normal(size=(5, 6, 8)).astype(np.float32)


def test_regions_have_the_mean_of_their_pixels(features):
    mask = np.zeros((24, 32), np.uint8)
    mask[2:11, 3:14] = mask[15:20, 20:31] = 255
    full = features.repeat(4, axis=1).repeat(4, axis=2)
    found = region_features(find_regions(mask), features, mask.shape)
    assert found.shape == (2, 5) and found.dtype == np.float32
    np.testing.assert_allclose(found[0], full[:, 2:11, 3:14].mean(axis=(1, 2)), atol=1e-5)
    np.testing.assert_allclose(found[1], full[:, 15:20, 20:31].mean(axis=(1, 2)), atol=1e-5)
    assert region_features((), features, mask.shape).shape == (0, 5)


def test_masks_have_the_mean_of_their_cells_above_one_half(features):
    logits = np.full((3, 6, 8), -9, np.float32)
    logits[0, 1, 1], logits[0, 2, 5] = 6, 0.1
    logits[0, 4] = -0.1
    logits[2, :3] = 2
    chosen, found = mask_features(logits, features)
    np.testing.assert_array_equal(chosen, [0, 2])
    np.testing.assert_allclose(
        found[0], (features[:, 1, 1] + features[:, 2, 5]) / 2, atol=1e-5)
    np.testing.assert_allclose(found[1], features[:, :3].mean(axis=(1, 2)), atol=1e-5)
    assert mask_features(logits, features, 3)[0].tolist() == [2]
    chosen, found = mask_features(logits[1:2], features)
    assert not len(chosen) and found.shape == (0, 5)


def test_a_mask_is_resampled_as_in_the_readout():
    logits = np.random.default_rng(1).normal(size=(6, 8)).astype(np.float32) - 1
    region = mask_region(logits, (24, 32))
    painted = np.zeros((24, 32), bool)
    painted[region.window] = region.inside
    np.testing.assert_array_equal(
        painted, cv2.resize(logits, (32, 24), interpolation=cv2.INTER_LINEAR) > 0)
    assert region.area == painted.sum()
    assert region.inside.any(axis=1)[[0, -1]].all() and region.inside.any(axis=0)[[0, -1]].all()


@pytest.mark.parametrize('size', [(480, 640), (352, 480), (101, 97), (88, 120), (44, 60)])
def test_a_small_mask_is_resampled_as_a_part_of_the_whole(size):
    random = np.random.default_rng(3)
    for _ in range(30):
        logits = -np.abs(random.normal(size=(88, 120))).astype(np.float32)
        top, left = random.integers(0, 88), random.integers(0, 120)
        logits[top:top + random.integers(2, 30), left:left + random.integers(2, 30)] *= -1
        whole = cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR) > 0
        region = mask_region(logits, size)
        painted = np.zeros(size, bool)
        painted[region.window] = region.inside
        assert np.count_nonzero(painted != whole) <= 1e-4 * painted.size
        assert region.area == painted.sum()


@pytest.mark.parametrize('size', [(20, 24), (20, 25), (44, 60), (88, 120)])
def test_masks_of_any_number_and_size_are_summed_in_pieces(size):
    random = np.random.default_rng(2)
    logits = cv2.resize(random.normal(size=(5, 6, 40)).astype(np.float32), size[::-1])
    logits = np.ascontiguousarray(logits.transpose(2, 0, 1)) - 0.5
    features = random.normal(size=(128, *size)).astype(np.float32)
    chosen, found = mask_features(logits, features, 7)
    areas = (logits > 0).sum(axis=(1, 2))
    np.testing.assert_array_equal(chosen, np.flatnonzero(areas >= 7))
    expected = [features[:, logit > 0].mean(axis=1) for logit in logits[chosen]]
    np.testing.assert_allclose(found, expected, atol=1e-5)
