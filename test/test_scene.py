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
from hypothesis import given, settings, strategies as st
import numpy as np
from owseg_ros.scene import HAZARD, HAZARD_KINDS, HAZARD_NEAR, StreetScene
import pytest


@pytest.fixture(scope='module')
def street():
    return StreetScene(320, 240, seed=5)


def test_a_frame_depends_on_seed_size_and_index_only(street):
    late, early = street.render(47), street.render(3)
    other = StreetScene(320, 240, seed=5)
    assert np.array_equal(other.render(3).image, early.image)
    again = other.render(47)
    assert np.array_equal(again.image, late.image)
    assert np.array_equal(again.labels, late.labels)
    assert again.hazards == late.hazards
    assert not np.array_equal(early.image, late.image)
    assert not np.array_equal(StreetScene(320, 240, seed=6).render(3).image, early.image)


@settings(max_examples=8, deadline=None)
@given(st.integers(64, 400), st.integers(64, 300), st.integers(0, 1000), st.integers(0, 100000))
def test_any_size_seed_and_index(width, height, seed, index):
    frame = StreetScene(width, height, seed).render(index)
    assert frame.image.shape == (height, width, 3) and frame.image.dtype == np.uint8
    assert frame.labels.shape == (height, width) and frame.labels.dtype == np.uint8
    assert set(np.unique(frame.labels)) <= {*range(11), HAZARD}
    assert frame.image.std() > 15


def test_every_class_appears_and_the_road_is_where_it_should_be(street):
    frames = [street.render(index) for index in range(0, 300, 12)]
    seen = set().union(*(np.unique(f.labels).tolist() for f in frames))
    assert seen == {*range(11), HAZARD}
    for frame in frames:
        assert np.mean(frame.labels[-20:, 140:180] == 3) > 0.9
        assert (frame.labels[:40] == 3).sum() == 0


def test_hazards_stand_at_their_times_and_nowhere_else(street):
    events = street.hazard_times(2)
    assert [event.kind for event in events] == [*HAZARD_KINDS] * 2
    assert events[0].first_index <= 3 * street.fps
    for event in events:
        for index in (event.first_index, event.last_index):
            frame = street.render(index)
            assert [hazard.kind for hazard in frame.hazards] == [event.kind]
        for index in (event.first_index - 1, event.last_index + 1):
            frame = street.render(index)
            assert not frame.hazards and not frame.anomaly.any()
    free = [i for i in range(300) if not any(
        e.first_index <= i <= e.last_index for e in events)]
    assert len(free) > 60


def test_box_and_pixels_are_those_of_the_labels(street):
    for event in street.hazard_times():
        for index in range(event.first_index, event.last_index + 1, 9):
            frame = street.render(index)
            hazard, = frame.hazards
            ys, xs = np.nonzero(frame.anomaly)
            assert hazard.pixels == len(ys)
            assert hazard.box == (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)


def test_hazard_comes_nearer_and_its_foot_projects_to_its_distance():
    street = StreetScene(640, 480, seed=2)
    matrix = street.camera_matrix
    for event in street.hazard_times():
        distances, heights = [], []
        for index in range(event.first_index, event.last_index + 1, 8):
            hazard, = street.render(index).hazards
            distances.append(hazard.distance_m)
            heights.append(hazard.box[3] - hazard.box[1])
            foot = matrix[1, 2] + matrix[1, 1] * 1.5 / hazard.distance_m
            assert hazard.box[3] == pytest.approx(foot, abs=3)
        steps = np.diff(distances)
        assert np.allclose(steps, -8 * 6.0 / street.fps)
        assert distances[-1] >= HAZARD_NEAR
        assert heights[-1] > 1.5 * heights[0]
        assert heights[-1] >= 30


def test_field_of_view_does_not_depend_on_the_size():
    small, large = StreetScene(320, 240, 1), StreetScene(640, 480, 1)
    assert np.allclose(large.camera_matrix[:2], 2 * small.camera_matrix[:2])
    a, b = small.render(50).labels, large.render(50).labels[1::2, 1::2]
    assert np.mean(a == b) > 0.93


def test_without_hazards_for_training():
    street = StreetScene(160, 120, seed=5, hazards=False)
    assert street.hazard_times() == ()
    assert not any(street.render(i).anomaly.any() for i in range(0, 300, 10))


def test_rate_moves_the_camera_in_time_not_in_frames():
    slow, fast = StreetScene(160, 120, 5, fps=10), StreetScene(160, 120, 5, fps=20)
    assert np.array_equal(slow.render(21).labels, fast.render(42).labels)


def test_impossible_arguments():
    with pytest.raises(ValueError, match='64x64'):
        StreetScene(10, 10)
    with pytest.raises(ValueError, match='fps'):
        StreetScene(fps=0)
    with pytest.raises(ValueError, match='index'):
        StreetScene(64, 64).render(-1)
