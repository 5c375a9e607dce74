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

"""The regions of a mask classifier itself, in place of URS."""

from __future__ import annotations

import cv2
import numpy as np
from owseg_training.regions import connected_regions, Frame
from scipy.special import expit, softmax


class MaskRegions:
    """
    Each pixel belongs to the mask that claims it most, weighed by its being an object.

    With p_q = 1 - P(no object) and m_q the sigmoid of the mask, the region of a pixel is
    argmax_q p_q m_q (as in Mask2Former's panoptic inference, but with unknown objects in), where
    m_q of that mask is at least `confidence`.
    min_probability: masks with a smaller p_q are left out; split: whether the connected pieces
    of a mask are regions of their own; min_area: smaller regions, in pixels, are left out.
    """

    def __init__(self, confidence: float = 0.5, min_probability: float = 0.0,
                 split: bool = True, min_area: int = 64) -> None:
        self.confidence = confidence
        self.min_probability = min_probability
        self.split = split
        self.min_area = min_area

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return the regions, int32 [H, W]; 0 where no mask is confident."""
        height, width = frame.image.shape[:2]
        objects = 1 - softmax(frame.class_logits, axis=1)[:, -1]
        best = np.zeros((height, width), np.float32)
        ids = np.zeros((height, width), np.int32)
        for number, (weight, logits) in enumerate(zip(objects, frame.mask_logits), 1):
            if weight < self.min_probability:
                continue
            mask = expit(cv2.resize(logits, (width, height), interpolation=cv2.INTER_LINEAR))
            claim = weight * mask
            wins = claim > best
            best[wins] = claim[wins]
            ids[wins] = np.where(mask[wins] >= self.confidence, number, 0)
        if self.split:
            return connected_regions(ids, self.min_area)
        numbers, places, areas = np.unique(ids, return_inverse=True, return_counts=True)
        kept = (areas >= self.min_area) & (numbers != 0)
        return (np.cumsum(kept) * kept).astype(np.int32)[places].reshape(ids.shape)
