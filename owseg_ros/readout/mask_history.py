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
"""
Hysteresis in score and time for the anomaly mask of one camera.

Space as in Canny's edge detector (1986): weak pixels count where they hang together with a strong
one; time in the same manner: what was reported keeps being reported while it stays weak.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Optional

import numpy as np
from owseg_ros.readout.components import bounding_box, label_components, paint_components

# Ages and remaining frames are kept in bytes.
MAX_FRAMES = 255


@dataclass(frozen=True)
class HysteresisSettings:
    """
    When a region of high anomaly score is reported; ValueError where a value makes no sense.

    threshold: a pixel whose score is at or above it is anomalous (score units).
    hysteresis: 0 or more, in score units; the low threshold is ``threshold - hysteresis``. A
        component of the pixels at or above the low threshold is reported, as a whole, when one of
        its pixels reaches ``threshold`` or when it overlaps what was reported in the frame before.
    confirm_frames: 1 to 255; a component that overlaps nothing reported is reported when it
        reached ``threshold`` in so many consecutive frames, overlapping itself from each to the
        next (1: at once). Things that move by more than their size between frames are never
        confirmed.
    hold_frames: 0 to 255; a reported component that nothing reported overlaps any more stays, as
        it was last seen, for so many frames.
    max_gap: seconds; frames further apart than that have nothing to do with each other.
    """

    threshold: float
    hysteresis: float = 0.0
    confirm_frames: int = 1
    hold_frames: int = 0
    max_gap: float = 1.0

    def __post_init__(self):
        if not math.isfinite(self.threshold):
            raise ValueError(f'threshold must be a finite number, not {self.threshold}')
        if not (math.isfinite(self.hysteresis) and self.hysteresis >= 0):
            raise ValueError(
                f'hysteresis must be a finite number, 0 or more, not {self.hysteresis}')
        _check_count('confirm_frames', self.confirm_frames, 1)
        _check_count('hold_frames', self.hold_frames, 0)
        if not self.max_gap > 0:
            raise ValueError(f'max_gap must be above 0 seconds, not {self.max_gap}')


def _check_count(name: str, value: int, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise ValueError(f'{name} must be a whole number, not {value!r}')
    if not least <= value <= MAX_FRAMES:
        raise ValueError(f'{name} must lie in [{least}, {MAX_FRAMES}], not {value}')


@dataclass(frozen=True, eq=False)
class _Components:
    """Connected components of a mask inside a box of the frame; see label_components."""

    box: tuple[slice, slice]
    labels: np.ndarray
    stats: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray) -> _Components:
        """Label a mask, uint8 [H, W]."""
        x, y, width, height = bounding_box(mask)
        box = np.s_[y:y + height, x:x + width]
        if width == 0:
            return cls(box, np.zeros((0, 0), np.uint16), np.zeros((1, 5), np.int32))
        return cls(box, *label_components(mask[box]))

    def touched(self, where: np.ndarray) -> np.ndarray:
        """Return bool [count]: those that own a pixel where a bool array of the box is set."""
        touched = np.zeros(len(self.stats), bool)
        touched[self.labels[where]] = True
        touched[0] = False
        return touched

    def paint(self, image: np.ndarray, chosen: np.ndarray, value: int) -> None:
        """Set the pixels of chosen components, bool [count], of an image of the frame's size."""
        chosen[0] = False
        paint_components(image[self.box], self.labels, self.stats, chosen, value)


class MaskHistory:
    """
    What one camera's mask reported so far; ``update`` turns scores into masks.

    It keeps some bytes a pixel, however long it runs. One history serves one camera and one
    thread. Settings may change from call to call.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first."""
        self._stamp: Optional[float] = None
        # uint8 [H, W]: 255 where the last frame reported something, seen or held.
        self._reported: Optional[np.ndarray] = None
        # The components that the last frame reported because it saw them, and which those are;
        # None where they were not labelled.
        self._live: Optional[tuple[_Components, np.ndarray]] = None
        # uint8 [H, W]: in how many consecutive frames a component was seen that is not reported
        # yet; None is 0 everywhere.
        self._seen: Optional[np.ndarray] = None
        # uint8 [H, W]: for how many frames, the last one included, a component that is held
        # stays; None is 0 everywhere.
        self._left: Optional[np.ndarray] = None

    def update(self, score: np.ndarray, settings: HysteresisSettings,
               stamp: Optional[float] = None) -> np.ndarray:
        """
        Return the mask of the next frame, uint8 [H, W] of 0 and 255.

        score: float32 [H, W], higher is stranger; NaN is not anomalous.
        stamp: when the frame was taken, seconds; None takes it for the next one without a check.

        Starts anew when the size changes, when the stamp goes back (a bag that starts again) or
        ahead by more than max_gap. With hysteresis 0, confirm_frames 1 and hold_frames 0 the mask
        is ``score >= threshold`` whatever came before. Raises ValueError where score is no such
        array or the stamp is not finite.
        """
        score = np.asarray(score)
        if score.ndim != 2 or score.dtype.kind != 'f':
            raise ValueError(
                f'score must be float [H, W], not {score.dtype} of shape {score.shape}')
        self._continue(score.shape, settings, stamp)
        # The readout compares in float32 as well.
        weak = score >= np.float32(settings.threshold - settings.hysteresis)
        mask = weak.view(np.uint8) * np.uint8(255)
        live = None
        if settings.hysteresis > 0 or settings.confirm_frames > 1:
            live = self._select(mask, score, settings)
        else:
            self._seen = None
        self._left = self._hold(mask, settings.hold_frames)
        self._live = live
        if self._left is not None:
            np.copyto(mask, 255, where=self._left != 0)
        self._reported = mask.copy()
        return mask

    def _continue(self, shape, settings: HysteresisSettings, stamp: Optional[float]) -> None:
        """Take note of the stamp; reset where this frame does not follow the last one."""
        if stamp is not None and not math.isfinite(stamp):
            raise ValueError(f'stamp must be finite, not {stamp}')
        known = stamp is not None and self._stamp is not None
        if known and not 0 <= stamp - self._stamp <= settings.max_gap:
            self.reset()
        if self._reported is not None and self._reported.shape != shape:
            self.reset()
        if stamp is not None:
            self._stamp = stamp

    def _select(self, mask: np.ndarray, score: np.ndarray,
                settings: HysteresisSettings) -> tuple[_Components, np.ndarray]:
        """Remove the weak components that are not reported; remember those to be confirmed."""
        found = _Components.of(mask)
        box = found.box
        strong = found.touched(score[box] >= np.float32(settings.threshold))
        frames = np.zeros(len(strong), np.intp)
        if self._seen is not None:
            before = self._seen[box]
            where = before != 0
            np.maximum.at(frames, found.labels[where], before[where])
        frames = np.where(strong, frames + 1, 0)
        reported = frames >= settings.confirm_frames
        if self._reported is not None:
            reported |= found.touched(self._reported[box] != 0)
        frames[reported] = 0
        self._seen = np.zeros_like(mask) if frames.any() else None
        for count in np.unique(frames[frames > 0]):
            found.paint(self._seen, frames == count, int(count))
        found.paint(mask, ~reported, 0)
        return found, reported

    def _hold(self, mask: np.ndarray, hold_frames: int) -> Optional[np.ndarray]:
        """Return for how many frames, this one included, lost components stay; None: none do."""
        if hold_frames == 0 or self._reported is None:
            return None
        live = self._live
        if live is None:
            seen = self._reported
            if self._left is not None:
                seen = seen * (self._left == 0)
            found = _Components.of(seen)
            live = found, np.ones(len(found.stats), bool)
        kept = [(*live, hold_frames)]
        if self._left is not None:
            # Components lost in different frames may touch; each is found again on its own.
            for count in np.unique(self._left[self._left > 1]):
                found = _Components.of((self._left == count).view(np.uint8))
                kept.append((found, np.ones(len(found.stats), bool),
                             min(int(count) - 1, hold_frames)))
        held = None
        for found, chosen, count in kept:
            lost = chosen & ~found.touched(mask[found.box] != 0)
            lost[0] = False
            if lost.any():
                held = np.zeros_like(mask) if held is None else held
                found.paint(held, lost, count)
        return held
