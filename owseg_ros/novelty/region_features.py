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
"""Mean pixel features of regions: the mask pooling of RAML, equation 3."""

from __future__ import annotations

from collections.abc import Sequence
import math

import cv2
import numpy as np
from owseg_ros.language.regions import pool_region, Region
from owseg_ros.readout.components import bounding_box

# Cells that are summed at a time: few masks reach into each such piece of the picture.
_PIECE = 480
# OpenBLAS starts threads above this number of multiplications; they stand in the way of those of
# the network, and cost more than they bring.
_SMALL_PRODUCT = 1 << 18


def region_features(regions: Sequence[Region], pixel_features: np.ndarray,
                    size: tuple[int, int]) -> np.ndarray:
    """
    Return the mean pixel features of regions, float32 [R, C].

    pixel_features: float32 [C, h, w] of the whole picture; size: (height, width) of the picture
    in the regions' pixels.
    """
    found = np.empty((len(regions), len(pixel_features)), np.float32)
    for row, region in zip(found, regions):
        row[...] = pool_region(region, pixel_features, size)
    return found


def mask_features(mask_logits: np.ndarray, pixel_features: np.ndarray,
                  min_area: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """
    Return which masks of the network are large enough, int64 [R], and their features, [R, C].

    mask_logits: float32 [N, h, w]; pixel_features: float32 [C, h, w]; min_area: least number of
    cells above one half, which at least one must be. The features are float32 means over these
    cells, as over a region.
    """
    inside = (mask_logits > 0).reshape(len(mask_logits), -1)
    channels = pixel_features.reshape(len(pixel_features), -1)
    starts = range(0, inside.shape[1], _PIECE)
    counts = np.stack([np.count_nonzero(inside[:, start:start + _PIECE], axis=1)
                       for start in starts], axis=1)
    areas = counts.sum(axis=1)
    chosen = np.flatnonzero(areas >= max(min_area, 1))
    sums = np.zeros((len(chosen), len(channels)), np.float32)
    together = max(1, _SMALL_PRODUCT // (_PIECE * len(channels)))
    for start, reaching in zip(starts, counts[chosen].T > 0):
        piece = channels[:, start:start + _PIECE].T
        rows = np.flatnonzero(reaching)
        for first in range(0, len(rows), together):
            some = rows[first:first + together]
            weights = inside[chosen[some], start:start + _PIECE]
            sums[some] += weights.astype(np.float32) @ piece
    return chosen, sums / areas[chosen, None].astype(np.float32)


def mask_region(mask_logits: np.ndarray, size: tuple[int, int]) -> Region:
    """
    Return where a mask is above one half.

    mask_logits: float32 [h, w], somewhere above 0; size: (height, width) of the picture that
    they are resampled to, bilinearly as in the readout.
    """
    x, y, width, height = bounding_box((mask_logits > 0).view(np.uint8))
    rows, top = _whole_blocks(y, y + height, mask_logits.shape[0], size[0])
    columns, left = _whole_blocks(x, x + width, mask_logits.shape[1], size[1])
    inside = cv2.resize(mask_logits[rows, columns], (left.stop - left.start, top.stop - top.start),
                        interpolation=cv2.INTER_LINEAR) > 0
    x, y, width, height = bounding_box(inside.view(np.uint8))
    inside = inside[y:y + height, x:x + width]
    return Region(left.start + x, top.start + y, inside, int(np.count_nonzero(inside)))


def _whole_blocks(start: int, stop: int, cells: int, pixels: int) -> tuple[slice, slice]:
    """
    Return cells around start:stop, and the pixels that they are resampled to by themselves.

    Cells and pixels of an axis begin together once a block. With a cell to spare on each side,
    which is below one half, nothing in between differs from the axis resampled as a whole.
    """
    blocks = math.gcd(cells, pixels)
    cell, pixel = cells // blocks, pixels // blocks
    first, last = max(start - 1, 0) // cell, -(-min(stop + 1, cells) // cell)
    return slice(first * cell, last * cell), slice(first * pixel, last * pixel)
