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
Anomalous regions as regions of their own: what no mask of the network holds can still be named.

A thing of no known class often has no mask that claims an object, so no region embedding answers
for it. Each connected component of the anomaly mask is therefore embedded by itself, as the mean
of the network's text features under it, made unit length: the same pooling as under a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

import cv2
import numpy as np
from owseg_ros.language.scores import PreparedQueries
from owseg_ros.readout.components import label_components
from owseg_ros.readout.maps import RegionScores

MAX_REGIONS = 64
_SMALLEST = 1e-12


@dataclass(frozen=True, eq=False)
class Region:
    """
    A connected component of a mask [H, W].

    left, top: of its box, in pixels; inside: bool [height, width] of the box; area: in pixels.
    """

    left: int
    top: int
    inside: np.ndarray
    area: int

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Return x0, y0, x1, y1 in pixels; the ends are the first column and row outside."""
        height, width = self.inside.shape
        return self.left, self.top, self.left + width, self.top + height

    @property
    def window(self) -> tuple[slice, slice]:
        """Return the box as an index of [H, W]."""
        left, top, right, bottom = self.box
        return np.s_[top:bottom, left:right]


def find_regions(mask: np.ndarray, most: int = MAX_REGIONS) -> tuple[Region, ...]:
    """
    Return the 8-connected components of a mask, the largest first.

    mask: uint8 [H, W], non-zero is inside; most: how many at most, the smallest are left out.
    """
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return ()
    labels, stats = label_components(mask[y:y + height, x:x + width])
    areas = stats[1:, cv2.CC_STAT_AREA]
    found = []
    for index in 1 + np.argsort(-areas, kind='stable')[:most]:
        left, top, width, height, area = stats[index].tolist()
        inside = labels[top:top + height, left:left + width] == index
        found.append(Region(x + left, y + top, inside, area))
    return tuple(found)


def embed_region(region: Region, text_features: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Return the embedding of a region, float32 [D] of unit length (0 where the features are 0).

    text_features: float32 [D, h, w]; size: as for pool_region.
    """
    mean = pool_region(region, text_features, size)
    return mean / max(float(np.linalg.norm(mean)), _SMALLEST)


def pool_region(region: Region, features: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """
    Return the mean of features over a region, float32 [D].

    features: float32 [D, h, w] of the whole picture, each of whose cells counts as often as the
    region has pixels in it; size: (height, width) of the picture in the region's pixels.
    """
    _, height, width = features.shape
    left, top, right, bottom = region.box
    rows, row_starts = _cells(top, bottom, height, size[0])
    columns, column_starts = _cells(left, right, width, size[1])
    # Pixels of each cell: differences of the counts above and left of the cells' corners.
    counts = cv2.integral(region.inside.view(np.uint8))
    corners = counts[np.append(row_starts, bottom - top)]
    corners = corners[:, np.append(column_starts, right - left)]
    pixels = np.diff(np.diff(corners, axis=0), axis=1).astype(np.float32)
    cells = features[:, rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    if cells.shape[1:] != pixels.shape:
        # Pixels are larger than cells, so that some of them are skipped.
        cells = features[:, rows[:, None], columns]
    # tensordot is a product of BLAS, whose threads stand in the way of those of the network.
    return np.einsum('chw,hw->c', cells, pixels) / np.float32(region.area)


def _cells(start: int, stop: int, cells: int, pixels: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells that pixels start:stop of an axis lie in, and where each begins."""
    centres = np.arange(start, stop) + 0.5
    return np.unique((centres * (cells / pixels)).astype(np.intp), return_index=True)


class AnomalousRegions:
    """
    The anomalous regions of one frame, found and embedded once.

    text_features: float32 [D, h, w], see engine.contract.NetworkOutput.
    """

    def __init__(self, text_features: np.ndarray):
        self._features = text_features
        self._found: Optional[tuple[tuple[Region, ...], np.ndarray]] = None

    def find(self, mask: np.ndarray) -> tuple[tuple[Region, ...], np.ndarray]:
        """
        Return the regions, see find_regions, and their embeddings, float32 [R, D].

        mask: the anomaly mask of the frame, uint8 [H, W]; the same at each call.
        """
        if self._found is None:
            regions = find_regions(mask)
            embeddings = np.empty((len(regions), len(self._features)), np.float32)
            for row, region in zip(embeddings, regions):
                row[...] = embed_region(region, self._features, mask.shape)
            self._found = regions, embeddings
        return self._found

    def scores(self, queries: PreparedQueries, mask: np.ndarray) -> list[RegionScores]:
        """Return what each region answers to queries, for the readout; mask: as for find."""
        regions, embeddings = self.find(mask)
        return [RegionScores(region.window, region.inside, scores)
                for region, scores in zip(regions, queries.probabilities(embeddings))]
