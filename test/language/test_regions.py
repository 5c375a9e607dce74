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

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.language.regions import (
    AnomalousRegions, embed_region, find_regions, pool_region, Region)
import pytest


def picture(*texts):
    """Return a mask uint8 [H, W] of rows of text, 255 where there is no blank."""
    return np.array([[255 * (c != ' ') for c in text] for text in texts], np.uint8)


def test_regions_are_the_components_the_largest_first():
    mask = picture('  x     ',
                   ' x    aa',
                   '      aa',
                   'zz    aa')
    regions = find_regions(mask)
    assert [region.area for region in regions] == [6, 2, 2]
    assert [region.box for region in regions] == [(6, 1, 8, 4), (1, 0, 3, 2), (0, 3, 2, 4)]
    np.testing.assert_array_equal(regions[1].inside, [[False, True], [True, False]])
    painted = np.zeros_like(mask)
    for region in regions:
        painted[region.window] += region.inside * np.uint8(255)
    np.testing.assert_array_equal(painted, mask)
    assert [region.area for region in find_regions(mask, most=1)] == [6]
    assert find_regions(np.zeros_like(mask)) == ()


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5),
       st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_embedding_is_the_mean_under_the_region(height, width, scale_y, scale_x, seed):
    random = np.random.default_rng(seed)
    features = random.normal(size=(3, height, width)).astype(np.float32)
    full = features.repeat(scale_y, axis=1).repeat(scale_x, axis=2)
    mask = (random.random(full.shape[1:]) < 0.5).astype(np.uint8) * 255
    for region in find_regions(mask):
        inside = np.zeros(mask.shape, bool)
        inside[region.window] = region.inside
        mean = full[:, inside].mean(axis=1)
        np.testing.assert_allclose(pool_region(region, features, mask.shape), mean, atol=1e-5)
        np.testing.assert_allclose(
            embed_region(region, features, mask.shape), mean / np.linalg.norm(mean), atol=1e-4)


@pytest.mark.parametrize('size', [(11, 17), (40, 61), (3, 2), (1, 1)])
def test_pixels_lie_in_the_cell_of_their_centre(size):
    """Sizes that are no multiples, pixels larger than cells included."""
    features = np.random.default_rng(2).normal(size=(4, 6, 5)).astype(np.float32)
    full = np.stack([plane[np.ix_(
        ((np.arange(size[0]) + 0.5) * 6 / size[0]).astype(int),
        ((np.arange(size[1]) + 0.5) * 5 / size[1]).astype(int))] for plane in features])
    inside = np.ones(size, bool)
    inside[0, 0] = size == (1, 1)
    expected = full[:, inside].sum(axis=1)
    found = embed_region(Region(0, 0, inside, int(inside.sum())), features, size)
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected), atol=1e-5)
    assert found.dtype == np.float32


def test_regions_next_to_each_other_do_not_mix():
    features = np.zeros((2, 4, 4), np.float32)
    features[0, :, :2], features[1, :, 2:] = 3, 5
    mask = np.full((32, 32), 255, np.uint8)
    mask[:, 15:17] = 0
    regions, embeddings = AnomalousRegions(features).find(mask)
    assert len(regions) == 2
    np.testing.assert_allclose(sorted(embeddings.tolist()), [[0, 1], [1, 0]], atol=1e-6)


def test_features_of_nothing_have_no_direction():
    region, = find_regions(picture('xx'))
    assert not embed_region(region, np.zeros((3, 1, 1), np.float32), (1, 2)).any()


def test_found_and_embedded_once():
    mask = np.zeros((64, 64), np.uint8)
    cv2.circle(mask, (20, 20), 9, 255, cv2.FILLED)
    regions = AnomalousRegions(np.ones((3, 8, 8), np.float32))
    first = regions.find(mask)
    assert regions.find(mask) is first
    empty, embeddings = AnomalousRegions(np.ones((3, 8, 8), np.float32)).find(mask * 0)
    assert empty == () and embeddings.shape == (0, 3)
