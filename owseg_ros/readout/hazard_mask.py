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
The anomaly mask restricted to where it matters: steady, free of specks, and on the road.

An object on the road rises above the horizon and is seen in front of anything, so neither where
its pixels are nor what the closed-set classes call them tells whether it stands on the road. What
tells is where its lower outline ends.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import NamedTuple, Optional

import cv2
import numpy as np
from owseg_ros.bundle import UNKNOWN_ID
from owseg_ros.readout.components import (
    bounding_box, clean_mask, label_components, paint_components)
from owseg_ros.readout.mask_history import HysteresisSettings, MaskHistory

# The gap bridged between an object and the road, in heights of the object: halos of masks grow
# with the object, and so does what a gap of some pixels means on the ground.
GAP_HEIGHTS = 0.25


@dataclass(frozen=True)
class RoadSettings:
    """
    What the road is and what stands on it; ValueError where a value makes no sense.

    road_classes: ids of the classes that are road surface; at least one, each in [0, 253].
    min_road: a connected piece of them is road when it covers, together with what it encloses,
        at least this share of the frame, in (0, 1]. An obstacle may cut the road into pieces;
        each counts by itself.
    min_contact: a component stands on the road when the road lies under at least this share of
        the columns of its lower outline, in (0, 1].
    reach: the road lies under a column when it begins at most so far below its lowest pixel, as
        a share of the frame's diagonal, in [0, 1], and at most GAP_HEIGHTS of the component's
        height; one pixel always counts.
    """

    road_classes: tuple[int, ...]
    min_road: float = 0.01
    min_contact: float = 0.2
    reach: float = 0.02

    def __post_init__(self):
        ids = tuple(self.road_classes)
        if not ids:
            raise ValueError('road_classes must name at least one class')
        for value in ids:
            whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
            if not whole or not 0 <= value < UNKNOWN_ID:
                raise ValueError(
                    f'road_classes must be ids in [0, {UNKNOWN_ID - 1}], not {value!r}')
        object.__setattr__(self, 'road_classes', ids)
        for name in ('min_road', 'min_contact'):
            if not 0.0 < getattr(self, name) <= 1.0:
                raise ValueError(f'{name} must lie in (0, 1], not {getattr(self, name)}')
        if not 0.0 <= self.reach <= 1.0:
            raise ValueError(f'reach must lie in [0, 1], not {self.reach}')


@dataclass(frozen=True)
class HazardMaskSettings:
    """
    The stages of the hazard mask; replace the whole object to change one.

    hysteresis: the thresholds and what happens over time.
    min_area: components below it are removed, holes below it filled; pixels of the score map.
    road: None reports everywhere, else only what stands on the road.
    """

    hysteresis: HysteresisSettings
    min_area: int = 0
    road: Optional[RoadSettings] = None

    def __post_init__(self):
        if self.min_area < 0:
            raise ValueError(f'min_area must be 0 or more pixels, not {self.min_area}')


class HazardMask(NamedTuple):
    """
    A mask and how far it can be relied on.

    mask: uint8 [H, W], 255 on hazards, else 0.
    road_lost: hazards were to be restricted to the road but no road was seen, so none was
        dropped. Never true without road settings.
    """

    mask: np.ndarray
    road_lost: bool


def hazard_mask(score: np.ndarray, semantic: Optional[np.ndarray], settings: HazardMaskSettings,
                history: MaskHistory, stamp: Optional[float] = None) -> HazardMask:
    """
    Return the HazardMask of one camera's next frame: hysteresis, then clean-up, then road.

    score: float32 [H, W], higher is stranger. semantic: uint8 [H, W], the argmax of the known
    classes, *before* unknown is marked in it; may be None without road settings.
    history: the camera's own, updated by this call; a new one for a single picture.
    stamp: when the frame was taken, seconds; see MaskHistory.update.

    What is too small or off the road is still remembered by the history: an object that wanders
    onto the road is confirmed when it arrives. Raises ValueError where the arrays do not fit.
    """
    mask = history.update(score, settings.hysteresis, stamp)
    mask = clean_mask(mask, settings.min_area)
    if settings.road is None:
        return HazardMask(mask, False)
    if semantic is None:
        raise ValueError('restricting hazards to the road needs the semantic map')
    return connected_to_road(mask, semantic, settings.road)


def road_surface(semantic: np.ndarray, anomalous: np.ndarray,
                 settings: RoadSettings) -> np.ndarray:
    """
    Return the road with everything that it encloses, uint8 [H, W] of 0 and 255.

    semantic: uint8 [H, W] class ids; anomalous: uint8 [H, W], non-zero where they do not prove
    anything (a strange blob in the sky may be called road). The 8-connected pieces of the road
    classes outside anomalous pixels, their holes filled, that cover at least min_road of the
    frame.
    """
    table = np.zeros(256, np.uint8)
    table[list(settings.road_classes)] = 255
    candidates = cv2.LUT(semantic, table)
    candidates[anomalous != 0] = 0
    road = np.zeros_like(candidates)
    least = settings.min_road * road.size
    contours, _ = cv2.findContours(candidates, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    for contour in contours:
        x, y, width, height = cv2.boundingRect(contour)
        if width * height < least:
            continue
        piece = np.zeros((height, width), np.uint8)
        cv2.drawContours(piece, [contour], -1, 255, cv2.FILLED, offset=(-x, -y))
        if cv2.countNonZero(piece) >= least:
            road[y:y + height, x:x + width] |= piece
    return road


def connected_to_road(mask: np.ndarray, semantic: np.ndarray,
                      settings: RoadSettings) -> HazardMask:
    """
    Return the 8-connected components of a mask that stand on the road.

    mask: uint8 [H, W], non-zero is anomalous; it is not modified. semantic: uint8 [H, W], the
    argmax of the known classes before unknown is marked in it.

    The lower outline of a component is its lowest pixel in each of its columns. A column stands
    on the road when a pixel of `road_surface` lies at most `reach` below, or when that pixel
    itself belongs to it because the road surrounds the object.
    Where the frame's lower edge cuts a component off, its base cannot be seen, and it is nearer
    than all that can: such columns count when the component meets the road on any side within
    reach. All lengths are shares of the frame or of the component.

    Where no road is seen at all the mask is returned as it is, with `road_lost`: a robot that
    sees no road has lost it, or something hides all of it, and that is no time to see fewer
    hazards. Raises ValueError where the arrays do not fit.
    """
    mask, semantic = np.asarray(mask), np.asarray(semantic)
    for name, array in (('mask', mask), ('semantic', semantic)):
        if array.ndim != 2 or array.dtype != np.uint8:
            raise ValueError(
                f'{name} must be uint8 [H, W], not {array.dtype} of shape {array.shape}')
    if mask.shape != semantic.shape:
        raise ValueError(f'mask and semantic differ in size: {mask.shape}, {semantic.shape}')
    _, kept = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY)
    road = road_surface(semantic, kept, settings)
    if not road.any():
        return HazardMask(kept, True)
    x, y, width, height = bounding_box(kept)
    if width == 0:
        return HazardMask(kept, False)
    box = kept[y:y + height, x:x + width]
    labels, stats = label_components(box)
    longest = round(settings.reach * math.hypot(*mask.shape))
    gaps = np.rint(GAP_HEIGHTS * stats[:, cv2.CC_STAT_HEIGHT]).astype(np.intp)
    gaps = np.clip(gaps, 1, max(1, longest))
    rows, columns, owner = _lower_outline(labels)
    rows, columns = rows + y, columns + x
    stands = _road_below(road, rows, columns, gaps[owner])
    cut = ~stands & (rows == len(road) - 1)
    for index in np.unique(owner[cut]):
        if _meets(road, labels, stats[index], index, (x, y), int(gaps[index])):
            stands[cut & (owner == index)] = True
    total = np.bincount(owner, minlength=len(stats))
    dropped = np.bincount(owner[stands], minlength=len(stats)) < settings.min_contact * total
    dropped[0] = False
    paint_components(box, labels, stats, dropped, 0)
    return HazardMask(kept, False)


def _lower_outline(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row, column and label of the lowest pixel of each component in each column."""
    ends = labels != 0
    ends[:-1] &= labels[1:] == 0
    rows, columns = np.nonzero(ends)
    owner = labels[rows, columns].astype(np.intp)
    # Ends come from top to bottom: from behind, the first of a component and column is lowest.
    _, last = np.unique((owner * labels.shape[1] + columns)[::-1], return_index=True)
    chosen = len(rows) - 1 - last
    return rows[chosen], columns[chosen], owner[chosen]


def _road_below(road: np.ndarray, rows: np.ndarray, columns: np.ndarray,
                gaps: np.ndarray) -> np.ndarray:
    """Return bool [n]: whether the road is at most gaps [n] pixels below the points."""
    found = np.zeros(len(rows), bool)
    waiting = np.arange(len(rows))
    for step in range(int(gaps.max(initial=0)) + 1):
        waiting = waiting[(step <= gaps[waiting]) & (rows[waiting] + step < len(road))]
        hit = road[rows[waiting] + step, columns[waiting]] != 0
        found[waiting[hit]] = True
        waiting = waiting[~hit]
    return found


def _meets(road: np.ndarray, labels: np.ndarray, stats: np.ndarray, index: int,
           origin: tuple[int, int], gap: int) -> bool:
    """Return whether the road is within gap rows and columns of a component."""
    left, top, width, height = stats[:4]
    component = labels[top:top + height, left:left + width] == index
    grown = cv2.dilate(
        cv2.copyMakeBorder(component.view(np.uint8), gap, gap, gap, gap, cv2.BORDER_CONSTANT),
        np.ones((2 * gap + 1, 2 * gap + 1), np.uint8))
    row, column = top + origin[1] - gap, left + origin[0] - gap
    cut_top, cut_left = max(0, -row), max(0, -column)
    window = road[row + cut_top:row + len(grown), column + cut_left:column + grown.shape[1]]
    grown = grown[cut_top:cut_top + window.shape[0], cut_left:cut_left + window.shape[1]]
    return bool(np.any(grown & window))
