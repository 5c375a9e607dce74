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
"""Measures of masks and of named regions: Grounding mIoU and mask recall (OpenSeg)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from owseg_training.evaluate.metrics import ConfusionMatrix


def present_classes(label: np.ndarray, num_classes: int) -> np.ndarray:
    """Return the ids in 0..K-1 that occur in a label map [H, W], ascending, int64."""
    valid = label[(label >= 0) & (label < num_classes)]
    return np.flatnonzero(np.bincount(valid.ravel(), minlength=num_classes))


class GroundingConfusion(ConfusionMatrix):
    """
    Grounding mIoU (OpenSeg, section 4.1): only classes that are present compete.

    For each picture the vocabulary is restricted to the classes of its ground truth; the rest
    is the ordinary mIoU of the set.
    """

    def add_scores(self, scores: np.ndarray, label: np.ndarray) -> None:
        """
        Count a picture by its class scores, float [K, H, W], and label [H, W].

        Raises ValueError when the shapes do not fit.
        """
        if scores.shape != (self.num_classes, *label.shape):
            raise ValueError(f'scores {scores.shape} must be [{self.num_classes}, H, W] at the '
                             f'size of the label {label.shape}')
        present = present_classes(label, self.num_classes)
        if present.size:
            self.add(present[scores[present].argmax(0)], label)


class MaskRecall:
    """
    Class-agnostic recall of masks at an IoU (OpenSeg, table 6: 0.5), streaming.

    Segments are the regions of equal id in a label map: of classes, or of instances; ids from
    num_segments on are void and taken from the masks, too.  A segment is recalled when some mask
    of the picture has at least this IoU with it.
    """

    def __init__(self, num_segments: int, iou: float = 0.5) -> None:
        self.iou = iou
        self.recalled = np.zeros(num_segments, np.int64)
        self.segments = np.zeros(num_segments, np.int64)

    def add(self, masks: Iterable[np.ndarray], label: np.ndarray) -> None:
        """
        Count a picture: masks bool [H, W] each, label integer [H, W].

        Raises ValueError when a mask is not of the label's size.
        """
        valid = (label >= 0) & (label < self.segments.size)
        ids = label[valid].astype(np.int64)
        area = np.bincount(ids, minlength=self.segments.size)
        best = np.zeros(self.segments.size)
        for mask in masks:
            if mask.shape != label.shape:
                raise ValueError(f'mask {mask.shape} and label {label.shape} differ')
            chosen = ids[mask[valid]]
            shared = np.bincount(chosen, minlength=self.segments.size)
            np.maximum(best, shared / np.maximum(area + chosen.size - shared, 1), out=best)
        self.segments += area > 0
        self.recalled += (area > 0) & (best >= self.iou)

    def recall(self) -> float:
        """Return the share of all segments that were recalled; nan without any."""
        total = int(self.segments.sum())
        return float(self.recalled.sum() / total) if total else float('nan')

    def per_segment(self) -> np.ndarray:
        """Return float64 [num_segments]: recall of each id, nan where it never occurs."""
        return np.where(self.segments > 0, self.recalled / np.maximum(self.segments, 1), np.nan)
