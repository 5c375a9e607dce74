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
"""The history of a mask against sets of pixels, and what becomes of sequences."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.readout.mask_history import HysteresisSettings, MaskHistory
from owseg_ros.readout.reference import _components
import pytest


class SlowHistory:
    """Components as sets of pixels, by the words of HysteresisSettings."""

    def __init__(self):
        self.reported, self.live, self.pending, self.held = set(), [], [], []

    def update(self, score, chosen):
        def split(mask):
            return [frozenset(map(tuple, pixels)) for pixels in _components(mask, diagonal=True)]

        strong = set(map(tuple, np.argwhere(score >= np.float32(chosen.threshold))))
        live, pending = [], []
        for component in split(score >= np.float32(chosen.threshold - chosen.hysteresis)):
            if component & self.reported:
                live.append(component)
            elif component & strong:
                count = 1 + max([n for other, n in self.pending if other & component], default=0)
                if count >= chosen.confirm_frames:
                    live.append(component)
                else:
                    pending.append((component, count))
        seen = set().union(*live)
        lost = [(component, chosen.hold_frames + 1) for component in self.live]
        self.held = [(component, left - 1) for component, left in lost + self.held
                     if left > 1 and not component & seen]
        self.live, self.pending = live, pending
        self.reported = seen.union(*(component for component, _ in self.held))
        mask = np.zeros(score.shape, np.uint8)
        for pixel in self.reported:
            mask[pixel] = 255
        return mask


def film(random, shape, frames, smooth):
    """Return a score map that drifts and flickers, float32 [T, H, W] in [0, 1]."""
    levels = random.random(shape)
    for _ in range(frames):
        fresh = random.random(shape)
        levels = (1 - smooth) * fresh + smooth * np.roll(levels, random.integers(-1, 2), 1)
        yield (levels - levels.min()).astype(np.float32) / np.float32(np.ptp(levels) or 1)


@given(st.integers(2, 14), st.integers(2, 14), st.integers(0, 10 ** 6),
       st.sampled_from([0.0, 0.5, 0.9]), st.floats(0.4, 0.9), st.sampled_from([0.0, 0.1, 0.3]),
       st.integers(1, 4), st.integers(0, 4))
@settings(max_examples=200, deadline=None)
def test_agrees_with_sets_of_pixels(height, width, seed, smooth, threshold, hysteresis, confirm,
                                    hold):
    chosen = HysteresisSettings(threshold, hysteresis, confirm, hold)
    fast, slow = MaskHistory(), SlowHistory()
    for score in film(np.random.default_rng(seed), (height, width), 8, smooth):
        np.testing.assert_array_equal(fast.update(score, chosen), slow.update(score, chosen))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 10 ** 6), st.floats(-1, 2))
@settings(max_examples=60, deadline=None)
def test_is_plain_thresholding_unless_told(height, width, seed, threshold):
    history, random = MaskHistory(), np.random.default_rng(seed)
    for number in range(4):
        score = random.random((height, width)).astype(np.float32)
        score[random.random(score.shape) < 0.1] = np.nan
        score[random.random(score.shape) < 0.1] = threshold
        plain = (score >= np.float32(threshold)).astype(np.uint8) * 255
        np.testing.assert_array_equal(
            history.update(score, HysteresisSettings(threshold), 0.1 * number), plain)


def speck(level, x=4, rest=0.0):
    """Return a score [8, 20] with a 3 x 3 object at a level."""
    score = np.full((8, 20), rest, np.float32)
    score[3:6, x:x + 3] = level
    return score


def shown(levels, chosen, history=None):
    """Return whether an object was reported in each frame, given its score in each."""
    history = history or MaskHistory()
    found = []
    for level in levels:
        mask = history.update(speck(level), chosen)
        assert np.count_nonzero(mask) in (0, 9)
        found.append(int(mask.any()))
    return found


def test_a_flickering_object_does_not_flicker():
    levels = [0.55, 0.45, 0.55, 0.45, 0.45, 0.35, 0.45]
    assert shown(levels, HysteresisSettings(0.5)) == [1, 0, 1, 0, 0, 0, 0]
    assert shown(levels, HysteresisSettings(0.5, hysteresis=0.1)) == [1, 1, 1, 1, 1, 0, 0]
    assert shown([0.45] * 4, HysteresisSettings(0.5, hysteresis=0.1)) == [0, 0, 0, 0]


def test_drop_outs_are_bridged_and_the_lost_are_forgotten_in_time():
    chosen = HysteresisSettings(0.5, hold_frames=2)
    assert shown([0.6, 0, 0.6, 0, 0, 0.6, 0, 0, 0, 0], chosen) == [1, 1, 1, 1, 1, 1, 1, 1, 0, 0]


def test_a_speck_of_one_frame_is_never_reported():
    chosen = HysteresisSettings(0.5, hysteresis=0.1, confirm_frames=2, hold_frames=3)
    assert shown([0, 0.9, 0, 0.9, 0.45, 0.9, 0], chosen) == [0] * 7
    assert shown([0, 0.9, 0.9, 0.45, 0.3], chosen) == [0, 0, 1, 1, 1]
    history = MaskHistory()
    for number in range(12):
        assert not history.update(speck(0.9, 8 * (number % 2)), chosen).any()


def test_a_held_object_that_returns_needs_no_confirmation():
    chosen = HysteresisSettings(0.5, confirm_frames=3, hold_frames=1)
    assert shown([0.9, 0.9, 0.9, 0, 0.9, 0, 0, 0.9, 0.9, 0.9], chosen) == [
        0, 0, 1, 1, 1, 1, 0, 0, 0, 1]


def test_an_object_that_moves_stays_one_object():
    chosen = HysteresisSettings(0.5, hysteresis=0.1, confirm_frames=3, hold_frames=2)
    history = MaskHistory()
    masks = [history.update(speck(0.9 if step < 3 else 0.45, 2 + step), chosen)
             for step in range(8)]
    assert not masks[1].any()
    for step in range(2, 8):
        assert np.flatnonzero(masks[step].any(axis=0)).tolist() == [2 + step, 3 + step, 4 + step]


def test_a_strong_pixel_brings_its_weak_surroundings():
    score = speck(0.45, 2) + speck(0.45, 10)
    score[4, 3] = 0.7
    mask = MaskHistory().update(score, HysteresisSettings(0.5, hysteresis=0.1))
    assert mask[3:6, 2:5].all() and np.count_nonzero(mask) == 9


def test_one_lost_object_returns_beside_another():
    """Two held components touch; the one that is found again does not take the other along."""
    chosen = HysteresisSettings(0.5, hold_frames=3)
    history = MaskHistory()
    history.update(speck(0.9, 4), chosen)
    history.update(speck(0.9, 7), chosen)
    history.update(speck(0.0), chosen)
    mask = history.update(speck(0.9, 9), chosen)
    assert mask[4, 4:7].all() and not mask[4, 7:9].any() and mask[4, 9:12].all()


@pytest.mark.parametrize('stamps, continued', [
    ((10.0, 10.1), True), ((10.0, 10.0), True), ((10.0, 10.5), True), ((10.0, 10.6), False),
    ((10.0, 9.9), False), ((10.0, None), True), ((None, 10.0), True)])
def test_stamps_that_do_not_follow_start_anew(stamps, continued):
    chosen = HysteresisSettings(0.5, hold_frames=2, max_gap=0.5)
    history = MaskHistory()
    assert history.update(speck(0.9), chosen, stamps[0]).any()
    assert history.update(speck(0.0), chosen, stamps[1]).any() == continued
    pending = HysteresisSettings(0.5, confirm_frames=2, max_gap=0.5)
    history = MaskHistory()
    assert not history.update(speck(0.9), pending, stamps[0]).any()
    assert history.update(speck(0.9), pending, stamps[1]).any() == continued


def test_after_a_jump_back_time_goes_on_from_there():
    """Frames after a bag's restart follow each other."""
    chosen = HysteresisSettings(0.5, confirm_frames=2)
    history = MaskHistory()
    found = [history.update(speck(0.9), chosen, stamp).any()
             for stamp in (50.0, 50.1, 3.0, 3.1, 3.2, 90.0)]
    assert found == [False, True, False, True, True, False]


def test_another_size_starts_anew():
    chosen = HysteresisSettings(0.5, confirm_frames=2, hold_frames=2)
    history = MaskHistory()
    history.update(speck(0.9), chosen)
    assert history.update(speck(0.9), chosen).any()
    assert not history.update(np.pad(speck(0.9), 1), chosen).any()
    assert history.update(np.pad(speck(0.9), 1), chosen).any()
    history.reset()
    assert not history.update(np.pad(speck(0.9), 1), chosen).any()


def test_settings_change_from_frame_to_frame():
    """What is reported stays so under a longer confirmation; no hold drops what is held."""
    history = MaskHistory()
    assert shown([0.9, 0.9], HysteresisSettings(0.5), history) == [1, 1]
    assert shown([0.9, 0.9], HysteresisSettings(0.5, confirm_frames=5), history) == [1, 1]
    assert shown([0.0], HysteresisSettings(0.5, hold_frames=9), history) == [1]
    assert shown([0.0] * 3, HysteresisSettings(0.5, hold_frames=2), history) == [1, 1, 0]
    assert shown([0.9, 0.0], HysteresisSettings(0.5, hold_frames=9), history) == [1, 1]
    assert shown([0.0], HysteresisSettings(0.5), history) == [0]


def test_masks_are_the_callers_own():
    chosen = HysteresisSettings(0.5, hold_frames=3)
    history = MaskHistory()
    score = speck(0.9)
    mask = history.update(score, chosen)
    mask[...] = 255
    second = history.update(speck(0.0), chosen)
    assert np.count_nonzero(second) == 9
    second[...] = 0
    assert np.count_nonzero(history.update(speck(0.0), chosen)) == 9
    np.testing.assert_array_equal(score, speck(0.9))


def test_an_object_may_stay_for_longer_than_a_byte_counts():
    assert shown([0.9] * 300, HysteresisSettings(0.5, confirm_frames=2)) == [0] + [1] * 299


def test_memory_does_not_grow():
    """Whatever flickers, a history holds three maps and the labels of one."""
    history = MaskHistory()
    chosen = HysteresisSettings(0.7, 0.2, 3, 200)
    for score in film(np.random.default_rng(0), (12, 16), 60, 0.5):
        history.update(score, chosen)
        kept, size = list(vars(history).values()), 0
        while kept:
            value = kept.pop()
            if isinstance(value, np.ndarray):
                size += value.nbytes
            elif isinstance(value, tuple):
                kept += value
            elif hasattr(value, 'stats'):
                kept += [value.labels, value.stats]
        assert size <= 12 * 12 * 16


@pytest.mark.parametrize('bad', [
    {'threshold': float('nan')}, {'threshold': float('inf')}, {'hysteresis': -0.1},
    {'hysteresis': float('nan')}, {'confirm_frames': 0}, {'confirm_frames': 256},
    {'confirm_frames': 1.5}, {'confirm_frames': True}, {'hold_frames': -1}, {'hold_frames': 256},
    {'max_gap': 0.0}, {'max_gap': float('nan')}])
def test_refuses_senseless_settings(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        HysteresisSettings(**{'threshold': 0.5, **bad})


def test_refuses_what_is_no_score_and_no_time():
    history, chosen = MaskHistory(), HysteresisSettings(0.5)
    with pytest.raises(ValueError, match='score must be float'):
        history.update(np.zeros((4, 4), np.uint8), chosen)
    with pytest.raises(ValueError, match='score must be float'):
        history.update(np.zeros((1, 4, 4), np.float32), chosen)
    with pytest.raises(ValueError, match='stamp'):
        history.update(np.zeros((4, 4), np.float32), chosen, float('nan'))
