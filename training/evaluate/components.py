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
SegmentMeIfYouCan's component metrics: sIoU, PPV and F1 of connected regions.

Chan et al., "SegmentMeIfYouCan: A Benchmark for Anomaly Segmentation", NeurIPS 2021, section 4,
with the order of steps of its official code.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any

import cv2
import numpy as np

F1_LEVELS = np.linspace(0.25, 0.75, 11)


@dataclass(frozen=True)
class Track:
    """
    A benchmark track: minimum sizes in pixels.

    Predicted components below min_prediction are dropped, ground-truth components below
    min_truth become void.
    """

    min_prediction: int
    min_truth: int


TRACKS = {'anomaly': Track(500, 100), 'obstacle': Track(50, 10)}


def track_of(track: str | Track) -> Track:
    """Return a track by name; raises ValueError for an unknown one."""
    if isinstance(track, Track):
        return track
    if track not in TRACKS:
        raise ValueError(f'unknown track {track!r}; known: {", ".join(sorted(TRACKS))}')
    return TRACKS[track]


@dataclass(frozen=True)
class FrameComponents:
    """Components of a frame: sIoU float64 [G] of ground truth, PPV float64 [P] of predictions."""

    sIoU: np.ndarray  # noqa: N815
    PPV: np.ndarray


def _components(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return labels int32 [H, W] of 8-connected components and their areas; 0 is the rest."""
    _, labels, stats, _ = cv2.connectedComponentsWithStats(
        mask.astype(np.uint8), connectivity=8, ltype=cv2.CV_32S)
    return labels, stats[:, cv2.CC_STAT_AREA].astype(np.int64)


def frame_components(predicted: np.ndarray, label: np.ndarray,
                     track: str | Track) -> FrameComponents:
    """
    Compare the components of a predicted mask with those of the ground truth.

    predicted: bool [H, W]; label: [H, W] of 0 known, 1 anomaly, anything else void.

    1. Predictions on void pixels are erased; components of both masks are 8-connected.
    2. Predicted components below the track's size are dropped; ground-truth components below
       its size become void, and their pixels are taken from predicted components, too.
    3. sIoU of a ground-truth component k: U is the union of the predicted components that touch
       it, and sIoU = |k & U| / |k | (U without the other ground truth)|.
       PPV of a predicted component is the share of its pixels that are ground truth.

    A predicted component that lies on void entirely, after step 2, does not count.  (The
    official code treats the background as a component, too, and would void one that is smaller
    than min_truth; here only components of anomalies are filtered.)
    """
    sizes = track_of(track)
    anomalous = label == 1
    truth, truth_area = _components(anomalous)
    found, found_area = _components(predicted & (anomalous | (label == 0)))
    dropped = found_area < sizes.min_prediction
    dropped[0] = False
    found = np.where(dropped[found], 0, found)
    too_small = truth_area < sizes.min_truth
    too_small[0] = False
    found = np.where(too_small[truth], 0, found)
    truth_ids = np.flatnonzero(~too_small[1:]) + 1
    found_area = np.bincount(found.ravel(), minlength=found_area.size)
    found_ids = np.flatnonzero(found_area[1:]) + 1
    both = (truth > 0) & (found > 0)
    count = found_area.size
    pairs, overlap = np.unique(truth[both].astype(np.int64) * count + found[both],
                               return_counts=True)
    truth_of, found_of = pairs // count, pairs % count
    covered = np.bincount(found_of, overlap, minlength=count)  # of a prediction, by any truth
    shared = np.bincount(truth_of, overlap, minlength=truth_area.size)
    touching = np.bincount(truth_of, found_area[found_of], minlength=truth_area.size)
    others = np.bincount(truth_of, covered[found_of], minlength=truth_area.size) - shared
    union = touching + truth_area - shared - others
    return FrameComponents(shared[truth_ids] / union[truth_ids],
                           covered[found_ids] / found_area[found_ids])


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else float('nan')


class ComponentMetrics:
    """
    sIoU, PPV and F1 of a set, streaming: memory grows with components, not with pixels.

    threshold: a pixel is predicted anomalous where score > threshold, as the benchmark does.
    PooledCurve.result chooses a threshold just below the best score level; the official code
    takes the level itself, so that its prediction is empty where scores saturate.
    track: 'anomaly', 'obstacle' or a Track.  Raises ValueError for a threshold that is nan.
    """

    def __init__(self, threshold: float, track: str | Track) -> None:
        if math.isnan(threshold):
            # Nothing is above it, and the metrics would be those of an empty prediction.
            raise ValueError('the threshold must be a number, not nan')
        self.threshold = threshold
        self.track = track_of(track)
        self._truth: list[np.ndarray] = []
        self._found: list[np.ndarray] = []

    def add(self, score: np.ndarray, label: np.ndarray) -> FrameComponents:
        """
        Count a frame: score float [H, W], label [H, W]; return its components.

        Raises ValueError when the shapes differ or are not two-dimensional.
        """
        score, label = np.asarray(score), np.asarray(label)
        if score.shape != label.shape or score.ndim != 2:
            raise ValueError(f'score {score.shape} and label {label.shape} must be maps of '
                             'equal size')
        frame = frame_components(score > self.threshold, label, self.track)
        self._truth.append(frame.sIoU)
        self._found.append(frame.PPV)
        return frame

    def result(self) -> dict[str, Any]:
        """
        Return sIoU, PPV, F1, F1_at (11 levels) and the numbers of components.

        sIoU is the mean over ground-truth components of all frames, PPV over predicted ones, F1
        the mean of 2 TP / (2 TP + FN + FP) over the levels t in 0.25, 0.3 .. 0.75, where TP and
        FN count ground truth with sIoU >= t and below, and FP predictions with PPV < t.  A mean
        over nothing is nan.
        """
        truth = np.concatenate([np.empty(0), *self._truth])
        found = np.concatenate([np.empty(0), *self._found])
        hits = (truth[:, None] >= F1_LEVELS).sum(0)
        misses, alarms = truth.size - hits, (found[:, None] < F1_LEVELS).sum(0)
        total = 2 * hits + misses + alarms
        f1 = np.where(total > 0, 2 * hits / np.maximum(total, 1), np.nan)
        return {'sIoU': _mean(truth), 'PPV': _mean(found), 'F1': float(f1.mean()),
                'F1_at': {f'{level:.2f}': float(v) for level, v in zip(F1_LEVELS, f1)},
                'truth_components': truth.size, 'predicted_components': found.size}
