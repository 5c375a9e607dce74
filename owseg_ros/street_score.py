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
"""Maps of the procedural street's frames, compared with its ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Sequence

import numpy as np
from owseg_ros.scene import CLASS_NAMES, SceneFrame


@dataclass
class _Cover:
    """How much of the hazards of a kind was flagged, as shares of their pixels."""

    frames: int = 0
    best: float = 0.0
    total: float = 0.0

    def add(self, share: float) -> None:
        self.frames += 1
        self.best = max(self.best, share)
        self.total += share


class StreetScore:
    """
    Pixel accuracy, IoU and flagged shares over frames, as they are added.

    class_names: of the model, indexed by id. Classes are compared where they are those of the
    street (owseg_ros.scene.CLASS_NAMES), in any order; hazards always.
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self.frames = 0
        self._street_ids: np.ndarray | None = None
        if sorted(class_names) == sorted(CLASS_NAMES):
            self._street_ids = np.arange(256, dtype=np.uint8)
            self._street_ids[:len(class_names)] = [*map(CLASS_NAMES.index, class_names)]
        count = len(CLASS_NAMES)
        self._hits = np.zeros(count, np.int64)
        self._union = np.zeros(count, np.int64)
        self._right = self._counted = self._flagged = self._known = 0
        self._kinds: dict[str, _Cover] = {}

    def add(self, truth: SceneFrame, semantic: np.ndarray, anomaly_mask: np.ndarray) -> None:
        """
        Count a frame.

        semantic: uint8 [H, W], ids of the model, 254 unknown object and 255 unlabelled;
        anomaly_mask: uint8 [H, W], not 0 where something is flagged.
        """
        self.frames += 1
        known = truth.labels < len(CLASS_NAMES)
        if self._street_ids is not None:
            self._compare(self._street_ids[semantic], truth.labels, known)
        self._flagged += np.count_nonzero(anomaly_mask[known])
        self._known += np.count_nonzero(known)
        for hazard in truth.hazards:
            self._kinds.setdefault(hazard.kind, _Cover()).add(
                float((anomaly_mask[truth.anomaly] > 0).mean()))

    def _compare(self, ids: np.ndarray, labels: np.ndarray, known: np.ndarray) -> None:
        # Pixels that are marked as an unknown object are judged with the hazards.
        valid = known & (ids < len(CLASS_NAMES))
        self._right += np.count_nonzero(ids[valid] == labels[valid])
        self._counted += np.count_nonzero(valid)
        for k in range(len(CLASS_NAMES)):
            said, true = ids == k, labels == k
            self._hits[k] += np.count_nonzero(said & true & known)
            self._union[k] += np.count_nonzero((said | true) & known)

    def figures(self) -> dict[str, Any]:
        """
        Return the figures for a report in JSON; shares are of pixels, 0..1.

        pixel_accuracy, mIoU and IoU (of each class that was there or claimed) are None where the
        model's classes are not the street's, or no frame was added.
        """
        iou = {name: int(hits) / int(union) for name, hits, union in zip(
            CLASS_NAMES, self._hits, self._union) if union}
        return {
            'frames': self.frames,
            'pixel_accuracy': self._right / self._counted if self._counted else None,
            'mIoU': sum(iou.values()) / len(iou) if iou else None,
            'IoU': iou or None,
            'hazards': {kind: {'frames': cover.frames, 'best_cover': cover.best,
                               'mean_cover': cover.total / cover.frames}
                        for kind, cover in self._kinds.items()},
            'flagged_share_of_known_pixels': self._flagged / self._known if self._known else None}


def describe_street(figures: dict[str, Any]) -> list[tuple[str, str]]:
    """Return rows, what and its figures, for people; none without a frame."""
    if not figures['frames']:
        return []
    classes = ''
    if figures['mIoU'] is not None:
        classes = (f'pixel accuracy {figures["pixel_accuracy"]:.3f}, mIoU {figures["mIoU"]:.3f} '
                   f'over {figures["frames"]} frames, ')
    return [
        ('against the truth of the street',
         f'{classes}{figures["flagged_share_of_known_pixels"]:.1%} of known pixels flagged'),
        *((f'hazard: {kind}',
           f'{entry["best_cover"]:.0%} of it flagged at best, {entry["mean_cover"]:.0%} on '
           f'average over {entry["frames"]} frames')
          for kind, entry in figures['hazards'].items())]
