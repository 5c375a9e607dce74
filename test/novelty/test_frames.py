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
"""Pointing at something in a frame that was seen lately."""

import numpy as np
from owseg_ros.language.regions import find_regions, Region
from owseg_ros.novelty import NoveltyError, RecentFrames, TeachableFrame
from owseg_ros.novelty.frames import Box, mask_bits, Pixel, RegionNumber, seconds_text
from owseg_ros.novelty.region_features import mask_features
import pytest

CELLS = (8, 12)
SIZE = (32, 48)


def frame(regions=(), masks=(), objectness=None, image=SIZE, size=SIZE, seed=0):
    """Return a frame with masks given as boxes of cells: rows and columns from and to."""
    logits = np.full((max(len(masks), 1), *CELLS), -1.0, np.float32)
    for logit, (top, bottom, left, right) in zip(logits, masks):
        logit[top:bottom, left:right] = 1.0
    features = np.random.default_rng(seed).normal(size=(5, *CELLS)).astype(np.float32)
    if objectness is None:
        objectness = np.linspace(0.1, 0.9, len(logits))
    mask = np.zeros(size, np.uint8)
    for region in regions:
        mask[region.window][region.inside] = 255
    return TeachableFrame.of(image, mask, np.float32(objectness), mask_bits(logits), features)


def is_region(found, wanted):
    """Return whether two regions are the same pixels."""
    return (found.box, found.area) == (wanted.box, wanted.area) and np.array_equal(
        found.inside, wanted.inside)


def rectangle(left, top, right, bottom):
    """Return a region that fills its box."""
    return Region(left, top, np.ones((bottom - top, right - left), bool),
                  (bottom - top) * (right - left))


def test_a_pixel_means_the_anomalous_region_that_it_lies_in():
    ring = np.ones((20, 20), bool)
    ring[8:12, 8:12] = False
    regions = (Region(0, 0, ring, 384), rectangle(24, 8, 40, 24))
    seen = frame(regions, masks=[(0, 8, 0, 12)])
    for pixel, wanted in ((Pixel(2, 3), regions[0]), (Pixel(39.9, 23), regions[1])):
        region, kind = seen.pick(pixel)
        assert kind == 'anomaly' and is_region(region, wanted)
    # In the hole of the ring, and right of the other: the network's mask.
    for pixel in (Pixel(10, 10), Pixel(40, 8)):
        region, kind = seen.pick(pixel)
        assert kind == 'mask' and region.area == SIZE[0] * SIZE[1]


def test_of_masks_that_claim_a_pixel_the_surest_object_is_meant():
    masks = [(0, 8, 0, 12), (2, 6, 2, 6), (2, 6, 4, 12)]
    seen = frame(masks=masks, objectness=[0.3, 0.9, 0.5])
    region, _ = seen.pick(Pixel(4 * 4, 4 * 3))
    assert region.box == (8, 8, 24, 24) and region.area == 256
    assert seen.pick(Pixel(4 * 9, 4 * 3))[0].box == (16, 8, 48, 24)
    assert seen.pick(Pixel(0, 0))[0].box == (0, 0, 48, 32)


@pytest.mark.parametrize('size', [(32, 48), (64, 96), (37, 61), (480, 640), (8, 12)])
def test_features_of_a_mask_are_those_that_are_compared(size):
    """Whatever the size of the maps, the same cells count as when masks are matched."""
    seen = frame(masks=[(0, 8, 0, 12), (2, 7, 1, 5)], image=(480, 640), size=size)
    region, kind = seen.pick(Pixel(640 * 3 / 12, 480 * 4 / 8))
    logits = np.full((2, *CELLS), -1.0, np.float32)
    logits[0], logits[1, 2:7, 1:5] = 1.0, 1.0
    chosen, features = mask_features(logits, seen.pixel_features)
    assert kind == 'mask' and chosen.tolist() == [0, 1]
    # Rows and columns of cells differ by at most one pixel where the sizes do not divide.
    exact = size[0] % 8 == 0 == size[1] % 12
    np.testing.assert_allclose(seen.features(region)[0], features[1],
                               atol=1e-6 if exact else 0.15)
    box = seen.image_box(region)
    assert np.abs(np.array(box) - (640 / 12, 120, 640 * 5 / 12, 420)).max() <= 16


def test_a_box_means_the_anomalous_pixels_in_it():
    pieces = (rectangle(4, 4, 12, 20), rectangle(16, 4, 24, 20), rectangle(40, 0, 48, 32))
    seen = frame(pieces, masks=[(0, 8, 0, 12)])
    region, kind = seen.pick(Box(0, 0, 20, 32))
    assert kind == 'anomaly' and region.box == (4, 4, 20, 20)
    assert region.area == 8 * 16 + 4 * 16
    assert not region.inside[:, 8:12].any()
    # Less than a tenth of the box is anomalous.
    region, kind = seen.pick(Box(22, 18, 39, 32))
    assert kind == 'mask' and region.box == (22, 18, 39, 32)


def test_a_box_without_anomalies_means_the_mask_that_it_fits():
    seen = frame(masks=[(0, 8, 0, 12), (2, 6, 2, 6), (0, 4, 8, 12)])
    region, kind = seen.pick(Box(6, 6, 26, 26))
    assert kind == 'mask' and region.box == (8, 8, 24, 24)
    # Cut to the box, also where that reaches over the edge.
    assert seen.pick(Box(-50, 20, 18, 900))[0].box == (0, 20, 18, 32)


@pytest.mark.parametrize('value', [np.nan, np.inf])
def test_features_that_are_not_finite_are_refused(value):
    """The engine does not look at them: only those of what is pointed at matter."""
    seen = frame([rectangle(8, 8, 24, 24), rectangle(32, 8, 44, 24)])
    seen.pixel_features[3, 3, 3] = value
    spoilt, fine = (seen.pick(pixel)[0] for pixel in (Pixel(9, 9), Pixel(33, 9)))
    assert np.isfinite(seen.features(fine)).all()
    with pytest.raises(NoveltyError, match='non-finite pixel features'):
        seen.features(spoilt)


def test_places_are_pixels_of_the_camera_image():
    region = rectangle(10, 10, 30, 30)
    seen = frame([region], image=(320, 480))
    assert is_region(seen.pick(Pixel(105, 105))[0], region)
    assert seen.image_box(region) == (100, 100, 300, 300)
    assert seen.pick(Box(0, 0, 200, 200))[0].box == (10, 10, 20, 20)
    with pytest.raises(NoveltyError, match='480x320'):
        seen.pick(Pixel(480, 0))


def test_what_is_not_there_or_too_small():
    seen = frame([rectangle(0, 0, 32, 32), rectangle(40, 0, 44, 15)], image=(320, 480))
    assert seen.pick(RegionNumber(0))[0].area == 1024
    for place, pattern in (
            (RegionNumber(2), 'no anomalous region 2: it has 2, from 0 on'),
            (RegionNumber(1), 'too small: 6000 pixels of the image, and at least 6400 '),
            (Box(0, 0, 30, 30), 'too small'), (Pixel(-1, 0), 'not in the image'),
            (Pixel(470, 300), 'no anomalous region and no mask'), (Box(9, 9, 9, 20), 'nothing of'),
            (Box(390, 200, 480, 320), 'nothing is in the box'), (Box(600, 0, 700, 9), 'nothing')):
        with pytest.raises(NoveltyError, match=pattern):
            seen.pick(place)
    with pytest.raises(NoveltyError, match='it has none'):
        frame().pick(RegionNumber(0))


def test_the_newest_frame_or_that_of_a_stamp():
    recent = RecentFrames(1 << 20)
    with pytest.raises(NoveltyError, match='no frame is kept'):
        recent.find()
    seen = [frame() for _ in range(4)]
    for index, entry in enumerate(seen):
        recent.add('', 10 ** 9 + 10 ** 8 * index, entry)
    assert recent.find().frame is seen[3]
    assert recent.find('', 1_200_000_400).frame is seen[2]
    with pytest.raises(NoveltyError, match=r'too old: 0\.500000000; there are 4, from '
                                           r'1\.000000000 to 1\.300000000'):
        recent.find(stamp=500_000_000)
    with pytest.raises(NoveltyError, match=r'no frame has this stamp: .*nearest 1\.100000000'):
        recent.find(stamp=1_120_000_000)
    with pytest.raises(NoveltyError, match="camera 'left' is kept; there are '' "):
        recent.find('left')


def test_cameras():
    recent = RecentFrames(1 << 20)
    seen = {name: frame() for name in ('left', 'right')}
    for name, entry in seen.items():
        recent.add(name, 5, entry)
    recent.add('left', 10 ** 9, frame())
    with pytest.raises(NoveltyError, match='say which camera: left, right'):
        recent.find()
    with pytest.raises(NoveltyError, match='say which camera'):
        recent.find(stamp=5)
    assert recent.find('right').frame is seen['right']
    assert recent.find(stamp=10 ** 9).camera == 'left'
    assert recent.stamps() == {'left': (2, 5, 10 ** 9), 'right': (1, 5, 5)}


def test_what_a_frame_was_made_of_may_be_overwritten():
    """Regions are found when somebody points at one, from what the frame kept itself."""
    mask = np.zeros(SIZE, np.uint8)
    mask[4:20, 4:20] = mask[0:10, 40:47] = 255
    wanted = find_regions(mask.copy())
    logits = np.full((1, *CELLS), 1.0, np.float32)
    features = np.zeros((5, *CELLS), np.float32)
    seen = TeachableFrame.of(
        (320, 480), mask, np.ones(1, np.float32), mask_bits(logits), features)
    before = seen.nbytes
    mask[:] = 255
    logits[:] = -1.0
    for number in range(2):
        assert is_region(seen.pick(RegionNumber(number))[0], wanted[number])
    region, kind = seen.pick(Pixel(300, 300))
    assert kind == 'mask' and region.area == SIZE[0] * SIZE[1]
    assert seen.nbytes == before and not any(
        np.shares_memory(kept, made) for kept in (seen.anomalous, seen.masks)
        for made in (mask, logits))


def test_the_mask_need_not_be_whole_bytes():
    mask = np.zeros((37, 61), np.uint8)
    mask[30:37, 50:61] = 1
    seen = frame(size=(37, 61), masks=[(0, 8, 0, 12)])
    seen = TeachableFrame.of(SIZE, mask, seen.objectness, seen.masks, seen.pixel_features)
    assert seen.size == (37, 61) and seen.anomalous.nbytes == -(-37 * 61 // 8)
    assert [region.box for region in seen.regions] == [(50, 30, 61, 37)]


def test_memory_is_bounded():
    one = frame([rectangle(0, 0, 10, 10)])
    assert one.nbytes == 5 * 96 * 4 + 12 + 4 + 32 * 48 // 8
    recent = RecentFrames(3 * one.nbytes)
    for stamp in range(10):
        recent.add('', stamp, one)
        assert recent.nbytes == min(stamp + 1, 3) * one.nbytes
    assert recent.stamps() == {'': (3, 7, 9)}
    recent.limit(one.nbytes - 1)
    assert recent.stamps() == {'': (1, 9, 9)}
    recent.limit(0)
    recent.add('', 11, one)
    assert recent.stamps() == {} and recent.nbytes == 0 and not recent.wanted
    with pytest.raises(NoveltyError, match='teach_memory is 0'):
        recent.find()


def test_stamps_as_text():
    assert seconds_text(1_700_000_000_000_000_001) == '1700000000.000000001'
    assert seconds_text(-1_500_000_000) == '-1.500000000'
