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
What a frame's maps are and which knobs shape them.

Ids in a semantic map: 0..K-1 are the bundle's classes, 254 is a pixel inside the anomaly mask
(only with ``mark_unknown``), 255 is a pixel below ``min_confidence``. Ids in a query map: 0..Q-1
are the queries, 255 is a pixel where none of them reaches its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Callable, Optional, Sequence

import numpy as np
from owseg_ros.bundle import UNKNOWN_ID, UNLABELLED_ID
from owseg_ros.readout.hazard_mask import HazardMaskSettings, RoadSettings
from owseg_ros.readout.mask_history import HysteresisSettings
from owseg_ros.readout.objects import ObjectSettings
from owseg_ros.readout.scores import AnomalyScore, Rba

__all__ = [
    'ALL_MAPS', 'check_maps', 'Maps', 'NO_QUERY', 'OUTPUT_SIZES', 'QUERY_MAPS', 'ReadoutSettings',
    'RegionScores', 'ScoreRegions', 'UNKNOWN_ID', 'UNLABELLED_ID']

ALL_MAPS = frozenset({'semantic', 'confidence', 'anomaly_score', 'anomaly_mask'})
QUERY_MAPS = frozenset({'query_mask', 'query_score'})
NO_QUERY = 255

OUTPUT_SIZES = ('camera', 'network')
STRIDES = (1, 2, 4)


@dataclass(frozen=True)
class ReadoutSettings:
    """
    The knobs of the readout; replace the whole object to change one.

    anomaly_threshold: a pixel whose score is at or above it is anomalous.
    score: the anomaly score, see readout.scores.
    objects: groups the score into objects with the masks and the frame's edges, see
        readout.objects; None leaves it as it is.
    hysteresis, confirm_frames, hold_frames: steady the anomaly mask from frame to frame, see
        readout.mask_history; they need the history of a camera.
    road: keeps only what stands on the road, see readout.hazard_mask; None keeps everything.
    min_area: anomalous components below it are removed and enclosed holes below it are filled;
        in pixels of the *network's* input size, scaled by area to the size of the output.
    mark_unknown: write 254 into the semantic map wherever the anomaly mask is set.
    min_confidence: write 255 into the semantic map where max_k L_k is below it (0 keeps all).
    output_size: 'camera' for maps of the size of the frame, 'network' for the network's input
        size.
    stride: 1 evaluates the masks at each pixel of the network's input; 2 or 4 at each second or
        fourth one across and down, from where the class scores are interpolated: faster, and
        blunter along the edges (docs/benchmarks.md has the error).
    """

    anomaly_threshold: float
    min_area: int = 0
    mark_unknown: bool = False
    min_confidence: float = 0.0
    output_size: str = 'camera'
    score: AnomalyScore = field(default_factory=Rba)
    objects: Optional[ObjectSettings] = None
    hysteresis: float = 0.0
    confirm_frames: int = 1
    hold_frames: int = 0
    road: Optional[RoadSettings] = None
    stride: int = 1

    def __post_init__(self):
        if not np.isfinite(self.anomaly_threshold):
            raise ValueError(
                f'anomaly_threshold must be a finite number, not {self.anomaly_threshold}')
        if self.min_area < 0:
            raise ValueError(f'min_area must be 0 or more pixels, not {self.min_area}')
        if not 0.0 <= self.min_confidence <= 1.0:
            raise ValueError(f'min_confidence must lie in [0, 1], not {self.min_confidence}')
        if self.output_size not in OUTPUT_SIZES:
            raise ValueError(
                f"output_size must be 'camera' or 'network', not {self.output_size!r}")
        if self.stride not in STRIDES:
            raise ValueError(f'stride must be 1, 2 or 4, not {self.stride!r}')
        # Checks the values that it is made of.
        self.hazard((1, 1), (1, 1))

    def hazard(self, network_size: tuple[int, int],
               output_size: tuple[int, int]) -> HazardMaskSettings:
        """Return how the anomaly mask of an [H, W] output is made; sizes are (height, width)."""
        return HazardMaskSettings(
            HysteresisSettings(self.anomaly_threshold, self.hysteresis, self.confirm_frames,
                               self.hold_frames),
            self.scaled_min_area(network_size, output_size), self.road)

    def evaluation_size(self, network_size: tuple[int, int]) -> tuple[int, int]:
        """Return at which size masks become class scores; sizes are (height, width)."""
        return tuple(-(-side // self.stride) for side in network_size)

    def scaled_min_area(self, network_size: tuple[int, int], output_size: tuple[int, int]) -> int:
        """Return min_area in pixels of an [H, W] output; sizes are (height, width)."""
        scale = (output_size[0] * output_size[1]) / (network_size[0] * network_size[1])
        return int(round(self.min_area * scale))


@dataclass(frozen=True)
class Maps:
    """
    The maps of one frame; a map that was not asked for is None.

    semantic: uint8 [H, W] class ids, 254 unknown, 255 unlabelled.
    confidence: uint8 [H, W], round(255 * clip(max_k L_k, 0, 1)).
    anomaly_score: float32 [H, W], higher is stranger.
    anomaly_mask: uint8 [H, W], 255 where anomalous, else 0.
    road_lost: whether the mask was to be restricted to the road and no road was seen, so that
        nothing was dropped.
    query_mask: uint8 [H, W], among the queries at or above their threshold the one with the
        highest score L_q, 255 where there is none.
    query_score: float32 [H, W] in 0..1, max_q L_q cut at 1, also where no query reaches its
        threshold; 0 without queries.
    query_version: of the set of queries that these two answer; 0 without one, None where neither
        was asked for.
    """

    semantic: Optional[np.ndarray] = None
    confidence: Optional[np.ndarray] = None
    anomaly_score: Optional[np.ndarray] = None
    anomaly_mask: Optional[np.ndarray] = None
    road_lost: bool = False
    query_mask: Optional[np.ndarray] = None
    query_score: Optional[np.ndarray] = None
    query_version: Optional[int] = None


@dataclass(frozen=True, eq=False)
class RegionScores:
    """
    What a region beside the network's masks answers to queries.

    window: (rows, columns), slices of [H, W]; inside: bool of the window; scores: float32 [Q] in
    0..1, which the region's pixels have where L_q is lower.
    """

    window: tuple[slice, slice]
    inside: np.ndarray
    scores: np.ndarray


# From the anomaly mask, uint8 [H, W], to regions that do not overlap.
ScoreRegions = Callable[[np.ndarray], Sequence[RegionScores]]


def check_maps(maps) -> frozenset:
    """Return maps as a frozenset; raise ValueError if one of them is no map that we know."""
    wanted = frozenset((maps,)) if isinstance(maps, str) else frozenset(maps)
    known = ALL_MAPS | QUERY_MAPS
    unknown = wanted - known
    if unknown:
        raise ValueError(f'unknown maps {sorted(unknown)}; choose from {sorted(known)}')
    return wanted
