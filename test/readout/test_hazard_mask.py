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
"""The road-hazard mode against flood fills and loops, and on the street."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.readout.components import clean_mask
from owseg_ros.readout.hazard_mask import (
    connected_to_road, GAP_HEIGHTS, hazard_mask, HazardMaskSettings, road_surface, RoadSettings)
from owseg_ros.readout.mask_history import HysteresisSettings, MaskHistory
from owseg_ros.readout.reference import _components
from owseg_ros.scene import BUILDING, CAR, PAVEMENT, ROAD, SKY, StreetScene, TREE
import pytest

ON_ROAD = RoadSettings((ROAD,))


def slow_road(semantic, mask, road):
    """Fill, with floods, the holes of the pieces of road; keep what is large."""
    surface = np.zeros(semantic.shape, bool)
    for pixels in _components(np.isin(semantic, road.road_classes) & (mask == 0), diagonal=True):
        outside = np.ones(np.add(semantic.shape, 2), bool)
        outside[pixels[:, 0] + 1, pixels[:, 1] + 1] = False
        piece = np.ones_like(outside)
        first = next(iter(_components(outside, diagonal=False)))
        piece[first[:, 0], first[:, 1]] = False
        if piece.sum() >= road.min_road * semantic.size:
            surface |= piece[1:-1, 1:-1]
    return surface


def slow_connected_to_road(mask, semantic, road):
    """Judge component by component, column by column, pixel by pixel."""
    surface = slow_road(semantic, mask, road)
    if not surface.any():
        return mask != 0, True
    height, width = mask.shape
    kept = np.zeros(mask.shape, bool)
    for pixels in _components(mask != 0, diagonal=True):
        own_height = np.ptp(pixels[:, 0]) + 1
        gap = min(round(GAP_HEIGHTS * own_height), round(road.reach * np.hypot(height, width)))
        gap = max(1, gap)
        meets = any(surface[max(0, y - gap):y + gap + 1, max(0, x - gap):x + gap + 1].any()
                    for y, x in pixels)
        contacts = []
        for column in np.unique(pixels[:, 1]):
            lowest = pixels[pixels[:, 1] == column, 0].max()
            contacts.append(surface[lowest:lowest + gap + 1, column].any()
                            or (lowest == height - 1 and meets))
        if sum(contacts) >= road.min_contact * len(contacts):
            kept[pixels[:, 0], pixels[:, 1]] = True
    return kept, False


def blobs(random, shape, smooth, share):
    """Return random blobs that cover a share of a bool [H, W]."""
    noise = random.random(shape).astype(np.float32)
    if smooth:
        noise = cv2.GaussianBlur(noise, (0, 0), smooth)
    return noise < np.quantile(noise, share)


@given(st.integers(1, 28), st.integers(1, 28), st.integers(0, 10 ** 6),
       st.sampled_from([0, 0.8, 2.0]), st.floats(0.05, 0.9), st.floats(0.05, 0.9),
       st.sampled_from([0.001, 0.05, 0.3]), st.sampled_from([0.05, 0.2, 0.5, 1.0]),
       st.sampled_from([0.0, 0.03, 0.2]))
@settings(max_examples=80, deadline=None)
def test_agrees_with_loops(height, width, seed, smooth, anomalous, paved, min_road, min_contact,
                           reach):
    random = np.random.default_rng(seed)
    mask = blobs(random, (height, width), smooth, anomalous).astype(np.uint8) * 255
    semantic = np.where(blobs(random, (height, width), smooth, paved),
                        random.choice([3, 4], (height, width)), BUILDING).astype(np.uint8)
    road = RoadSettings((3, 4), min_road, min_contact, reach)
    np.testing.assert_array_equal(
        road_surface(semantic, mask, road) != 0, slow_road(semantic, mask, road))
    found = connected_to_road(mask, semantic, road)
    kept, lost = slow_connected_to_road(mask, semantic, road)
    assert found.road_lost is lost
    np.testing.assert_array_equal(found.mask, kept.astype(np.uint8) * 255)


def view(height=240, width=320):
    """Return a semantic map: sky, then buildings, below the horizon a road that widens."""
    semantic = np.full((height, width), SKY, np.uint8)
    semantic[height // 4:] = BUILDING
    semantic[height // 2:] = PAVEMENT
    corners = np.array([[0.45, 0.5], [0.55, 0.5], [0.9, 1.0], [0.1, 1.0]]) * (width, height)
    cv2.fillPoly(semantic, [corners.round().astype(np.int32)], ROAD)
    return semantic


def paint(box, shape=(240, 320)):
    """Return a mask with a box, given as shares y0, x0, y1, x1 of the frame."""
    mask = np.zeros(shape, np.uint8)
    y0, x0, y1, x1 = (np.array(box) * np.tile(shape, 2)).round().astype(int)
    mask[y0:y1, x0:x1] = 255
    return mask


# Share of the frame: y0, x0, y1, x1, and whether it stands on the road of view().
PLACES = {
    'far on the road, in front of buildings': ((0.4, 0.48, 0.55, 0.52), True),
    'near, up into the sky': ((0.1, 0.4, 0.8, 0.6), True),
    'puddle': ((0.8, 0.4, 0.84, 0.6), True),
    'half on the pavement': ((0.6, 0.6, 0.75, 0.75), True),
    'cut off by the lower edge': ((0.6, 0.4, 1.0, 0.6), True),
    'covers the road at the lower edge': ((0.7, 0.0, 1.0, 1.0), True),
    'in the sky': ((0.05, 0.4, 0.15, 0.6), False),
    'on a building above the end of the road': ((0.3, 0.46, 0.45, 0.54), False),
    'stork far away beside the road': ((0.45, 0.3, 0.55, 0.33), False),
    'on the pavement at the lower edge': ((0.8, 0.97, 1.0, 1.0), False),
}


@pytest.mark.parametrize('size', [(120, 160), (240, 320), (720, 960)])
@pytest.mark.parametrize('box, stands', PLACES.values(), ids=PLACES)
def test_the_same_scene_at_any_size(size, box, stands):
    mask = paint(box, size)
    found = connected_to_road(mask, view(*size), ON_ROAD)
    assert not found.road_lost
    np.testing.assert_array_equal(found.mask, mask if stands else 0 * mask)


@pytest.mark.parametrize('called', [CAR, SKY, PAVEMENT, ROAD])
def test_what_the_known_classes_call_an_object_does_not_matter(called):
    for box, stands in (PLACES['near, up into the sky'], PLACES['puddle'], PLACES['in the sky'],
                        PLACES['stork far away beside the road']):
        mask, semantic = paint(box), view()
        semantic[mask != 0] = called
        assert connected_to_road(mask, semantic, ON_ROAD).mask.any() == stands


@pytest.mark.parametrize('gap, stands', [(0, True), (6, True), (12, False)])
def test_a_halo_between_object_and_road_is_bridged(gap, stands):
    """A halo of 2 % of the frame's diagonal (8 pixels) is, more is not."""
    semantic, mask = view(), paint((0.3, 0.4, 0.8, 0.6))
    semantic[192:192 + gap, 120:200] = BUILDING
    semantic[:192, 100:220] = BUILDING
    semantic[192:192 + gap, :120] = semantic[192:192 + gap, 200:] = PAVEMENT
    assert connected_to_road(mask, semantic, ON_ROAD).mask.any() == stands


def test_a_low_object_bridges_less_than_a_high_one():
    semantic = np.full((100, 100), PAVEMENT, np.uint8)
    semantic[60:] = ROAD
    mask = np.zeros_like(semantic)
    mask[52:58, 10:20] = 255
    mask[20:58, 60:70] = 255
    found = connected_to_road(mask, semantic, RoadSettings((ROAD,), reach=0.04)).mask
    assert not found[:, :50].any() and found[20:58, 60:70].all()


def test_an_obstacle_cuts_the_road_in_pieces():
    """Each piece counts, also one that the obstacle leaves small; specks of road do not."""
    semantic = view()
    obstacle = paint((0.45, 0.0, 0.75, 1.0)) | paint((0.5, 0.35, 1.0, 0.65))
    semantic[obstacle != 0] = CAR
    semantic[60:70, 20:30] = ROAD
    left_over = road_surface(semantic, obstacle, ON_ROAD)
    assert left_over[230, 60] and left_over[230, 260]
    assert not left_over[235, 160] and not left_over[65, 25]
    on_speck = paint((0.1, 0.05, 0.27, 0.1))
    found = connected_to_road(obstacle | on_speck, semantic, ON_ROAD)
    np.testing.assert_array_equal(found.mask, obstacle)


@pytest.mark.parametrize('share, stands', [(0.3, True), (0.1, False)])
def test_the_share_of_the_lower_outline_decides(share, stands):
    semantic = np.full((100, 200), PAVEMENT, np.uint8)
    semantic[50:, :100] = ROAD
    mask = np.zeros_like(semantic)
    first = 100 - round(50 * share)
    mask[30:60, first:first + 50] = 255
    assert connected_to_road(mask, semantic, ON_ROAD).mask.any() == stands


def test_keeps_everything_where_no_road_is_seen():
    semantic = np.full((60, 80), BUILDING, np.uint8)
    semantic[50:53, 40:43] = ROAD
    mask = np.zeros_like(semantic)
    mask[5:9, 5:9] = 1
    found = connected_to_road(mask, semantic, ON_ROAD)
    assert found.road_lost
    np.testing.assert_array_equal(found.mask, mask * 255)
    semantic[30:] = ROAD
    found = connected_to_road(mask, semantic, ON_ROAD)
    assert not found.road_lost and not found.mask.any()


@pytest.mark.parametrize('area', [0.0099, 0.0101])
def test_how_large_a_piece_of_road_is(area):
    """Its size is that of what it encloses."""
    semantic = np.full((1000, 1000), BUILDING, np.uint8)
    side = round((area * semantic.size) ** 0.5)
    semantic[100:100 + side, 300:300 + side] = ROAD
    semantic[110:120, 310:320] = CAR
    found = road_surface(semantic, 0 * semantic, ON_ROAD)
    assert found.sum() == 255 * (side ** 2 if area > 0.01 else 0)


def test_leaves_its_input_alone_and_takes_strided_input():
    random = np.random.default_rng(0)
    mask = (random.random((40, 80)) < 0.2).astype(np.uint8)
    semantic = random.choice([ROAD, TREE], (40, 80), p=[0.8, 0.2]).astype(np.uint8)
    before = mask.copy(), semantic.copy()
    found = connected_to_road(mask[:, ::2], semantic[:, ::2], ON_ROAD)
    again = connected_to_road(mask[:, ::2].copy(), semantic[:, ::2].copy(), ON_ROAD)
    np.testing.assert_array_equal(found.mask, again.mask)
    np.testing.assert_array_equal(mask, before[0])
    np.testing.assert_array_equal(semantic, before[1])


@pytest.mark.parametrize('bad', [
    {'road_classes': ()}, {'road_classes': (254,)}, {'road_classes': (-1,)},
    {'road_classes': (True,)}, {'road_classes': (3.5,)}, {'min_road': 0.0}, {'min_road': 1.1},
    {'min_contact': 0.0}, {'min_contact': float('nan')}, {'reach': -0.1}, {'reach': 2.0}])
def test_refuses_senseless_road_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RoadSettings(**{'road_classes': (3,), **bad})


def test_refuses_arrays_that_do_not_fit():
    mask, semantic = paint((0.2, 0.2, 0.4, 0.4)), view()
    with pytest.raises(ValueError, match='mask must be uint8'):
        connected_to_road(mask.astype(bool), semantic, ON_ROAD)
    with pytest.raises(ValueError, match='semantic must be uint8'):
        connected_to_road(mask, semantic.astype(np.int64), ON_ROAD)
    with pytest.raises(ValueError, match='differ in size'):
        connected_to_road(mask[:-1], semantic, ON_ROAD)
    with pytest.raises(ValueError, match='min_area'):
        HazardMaskSettings(HysteresisSettings(0.5), min_area=-1)
    with pytest.raises(ValueError, match='semantic map'):
        hazard_mask(np.zeros((4, 4), np.float32), None,
                    HazardMaskSettings(HysteresisSettings(0.5), road=ON_ROAD), MaskHistory())


def test_without_further_settings_it_is_the_thresholded_and_cleaned_mask():
    random = np.random.default_rng(3)
    score = cv2.GaussianBlur(random.random((50, 70)).astype(np.float32), (0, 0), 1.5)
    threshold = float(np.quantile(score, 0.7))
    history = MaskHistory()
    chosen = HazardMaskSettings(HysteresisSettings(threshold), min_area=12)
    for frame in (score, score[::-1], score):
        found = hazard_mask(frame, None, chosen, history)
        assert not found.road_lost
        np.testing.assert_array_equal(
            found.mask, clean_mask(frame >= np.float32(threshold), 12))


def test_the_order_of_the_stages():
    """Weak surroundings count for the size; holes are filled before the road is looked for."""
    semantic = view()
    score = np.zeros(semantic.shape, np.float32)
    score[150:170, 140:180] = 0.45
    score[160, 160] = 0.9
    score[155:158, 150:153] = 0
    chosen = HazardMaskSettings(HysteresisSettings(0.5, hysteresis=0.1), 300, ON_ROAD)
    mask = hazard_mask(score, semantic, chosen, MaskHistory()).mask
    assert np.count_nonzero(mask) == 800
    plain = HazardMaskSettings(HysteresisSettings(0.5), 300, ON_ROAD)
    assert not hazard_mask(score, semantic, plain, MaskHistory()).mask.any()


def test_an_object_off_the_road_is_remembered():
    semantic, history = view(), MaskHistory()
    chosen = HazardMaskSettings(HysteresisSettings(0.5, confirm_frames=2), 0, ON_ROAD)
    score = paint((0.5, 0.22, 0.6, 0.32)).astype(np.float32)
    assert not hazard_mask(score, semantic, chosen, history).mask.any()
    step = paint((0.5, 0.3, 0.6, 0.4)).astype(np.float32)
    assert hazard_mask(step, semantic, chosen, history).mask.any()


@pytest.fixture(scope='module')
def street():
    return StreetScene(320, 240, seed=5)


def test_hazards_of_the_street_are_kept_and_blobs_above_it_dropped(street):
    """The network calls hazards something: here a car, a pedestrian's class, the pavement."""
    random = np.random.default_rng(1)
    judged = 0
    for event in street.hazard_times():
        for index in np.linspace(event.first_index, event.last_index, 4).astype(int):
            frame = street.render(int(index))
            semantic = frame.labels.copy()
            semantic[frame.anomaly] = random.choice([CAR, 9, PAVEMENT])
            hazards = frame.anomaly.astype(np.uint8) * 255
            kept = connected_to_road(hazards, semantic, ON_ROAD).mask
            assert np.count_nonzero(kept) > 0.95 * np.count_nonzero(hazards), (event, index)
            # Blobs that lie, with their surroundings, within sky and trees.
            above = np.isin(frame.labels, (SKY, TREE)).astype(np.uint8)
            above[-1:] = 0
            above = cv2.erode(above, np.ones((31, 31), np.uint8), borderValue=0)
            places = np.argwhere(above)
            blobs_above = np.zeros_like(hazards)
            for y, x in places[random.integers(0, len(places), min(3, len(places)))]:
                cv2.circle(blobs_above, (int(x), int(y)), int(random.integers(2, 8)), 255, -1)
                judged += 1
            found = connected_to_road(hazards | blobs_above, semantic, ON_ROAD).mask
            np.testing.assert_array_equal(found, kept)
    assert judged >= 20


@pytest.mark.parametrize('width, height', [(960, 720), (80, 60)])
def test_the_street_at_another_resolution(street, width, height):
    frame = street.render(street.hazard_times()[0].last_index)
    semantic = np.where(frame.anomaly, CAR, frame.labels).astype(np.uint8)
    hazards = frame.anomaly.astype(np.uint8) * 255
    hazards[20:40, 150:170] = 255
    semantic, hazards = (cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
                         for image in (semantic, hazards))
    kept = connected_to_road(hazards, semantic, ON_ROAD).mask
    assert np.count_nonzero(kept[height // 4:]) > 0.95 * np.count_nonzero(hazards[height // 4:])
    assert not kept[:height // 4].any()
