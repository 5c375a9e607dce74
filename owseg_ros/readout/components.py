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
"""Connected components: the clean-up of a thresholded mask."""

from __future__ import annotations

import cv2
import numpy as np


def clean_mask(mask: np.ndarray, min_area: int) -> np.ndarray:
    """
    Return mask without specks and pinholes, uint8 [H, W] of 0 and 255.

    mask: uint8 or bool [H, W], non-zero is foreground; it is not modified.
    min_area: 8-connected components below it (in pixels) are removed; afterwards the holes below
        it, 4-connected pieces of background that do not touch the border, are filled.

    The same as ``reference.clean_mask``, in two labelling passes over the bounding box of what
    is set.
    """
    mask = np.asarray(mask)
    if mask.dtype == np.bool_:
        mask = mask.view(np.uint8)
    _, cleaned = cv2.threshold(mask, 0, 255, cv2.THRESH_BINARY)
    if min_area <= 1:
        return cleaned
    x, y, width, height = cv2.boundingRect(cleaned)
    if width == 0:
        return cleaned
    box = cleaned[y:y + height, x:x + width]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(box, connectivity=8)
    keep = np.where(stats[:, cv2.CC_STAT_AREA] >= min_area, 255, 0).astype(np.uint8)
    keep[0] = 0
    if count > 1 and not keep[1:].all():
        box[...] = keep[labels]
    count, labels, stats, _ = cv2.connectedComponentsWithStats(
        cv2.bitwise_not(box), connectivity=4)
    left, top = stats[:, cv2.CC_STAT_LEFT], stats[:, cv2.CC_STAT_TOP]
    right, bottom = left + stats[:, cv2.CC_STAT_WIDTH], top + stats[:, cv2.CC_STAT_HEIGHT]
    # A piece of background that reaches the bounding box is connected to what lies around it,
    # or touches the border of the image.
    hole = ((stats[:, cv2.CC_STAT_AREA] < min_area)
            & (left > 0) & (top > 0) & (right < width) & (bottom < height))
    hole[0] = False
    if hole.any():
        box[hole[labels]] = 255
    return cleaned
