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
"""Taught classes in the maps of a frame: its regions embedded, matched and painted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Optional

import numpy as np
from owseg_ros.bundle import Bundle, UNKNOWN_ID
from owseg_ros.language.naming import UNKNOWN
from owseg_ros.language.regions import Region
from owseg_ros.novelty.match import NO_MATCH, PreparedPrototypes
from owseg_ros.novelty.metric_head import MetricHead
from owseg_ros.novelty.region_features import mask_features, mask_region, region_features


@dataclass(frozen=True, eq=False)
class TaughtRegion:
    """
    A region of a frame that was compared with the taught classes.

    region: where it is, in pixels of the maps. id: of its class in the semantic map, 254 where
    it matched none; name: of the class, or 'unknown'. cosine: with that class, or the largest
    with any. embedding: float32 [D] of unit length, which a shot of this region has. query:
    index of the network's mask that it is, None for an anomalous region.
    """

    region: Region
    id: int  # noqa: A003
    name: str
    cosine: float
    embedding: np.ndarray
    query: Optional[int] = None


class TaughtReadout:
    """
    Compares the regions of frames with taught classes; bundle: with a section novelty.

    head: the MetricHead that embeds them. Raises NoveltyError and EngineError as MetricHead.
    """

    def __init__(self, bundle: Bundle):
        self.head = MetricHead(bundle)

    def find(self, regions: Sequence[Region], mask_logits: np.ndarray,
             pixel_features: np.ndarray, taught: PreparedPrototypes, size: tuple[int, int],
             min_mask_area: float = 0.0) -> tuple[TaughtRegion, ...]:
        """
        Return the anomalous regions, all and in their order, then the masks that match a class.

        regions: anomalous, see language.regions.find_regions; mask_logits float32 [N, h, w] and
        pixel_features float32 [C, h, w] of the frame; size: (height, width) of the maps;
        min_mask_area: least area of a mask, in its cells. Masks are compared only where
        taught.all_masks; a mask that is more like a known class, or as much, matches none.
        Raises EngineError where the head fails.
        """
        embeddings = self.head.embed(region_features(regions, pixel_features, size))
        found = [_taught_region(region, taught, *entry)
                 for region, *entry in zip(regions, *taught.match(embeddings), embeddings)]
        if taught.all_masks and len(taught):
            queries, features = mask_features(mask_logits, pixel_features, min_mask_area)
            embeddings = self.head.embed(features)
            for query, index, cosine, embedding in zip(
                    queries.tolist(), *taught.match(embeddings, self.head.known), embeddings):
                if index == NO_MATCH:
                    continue
                region = mask_region(mask_logits[query], size)
                if region.area:
                    found.append(_taught_region(region, taught, index, cosine, embedding, query))
        return tuple(found)


def paint(semantic: np.ndarray, anomaly_mask: np.ndarray,
          found: Sequence[TaughtRegion]) -> None:
    """
    Write what was found into a semantic map, in place.

    semantic: uint8 [H, W]; anomaly_mask: uint8 [H, W], which becomes 254 where nothing matched.
    Where regions overlap the one that is more like its class has the pixel.
    """
    np.copyto(semantic, UNKNOWN_ID, where=anomaly_mask != 0)
    for entry in sorted(found, key=lambda entry: entry.cosine):
        if entry.id != UNKNOWN_ID:
            np.copyto(semantic[entry.region.window], entry.id, where=entry.region.inside)


def _taught_region(region: Region, taught: PreparedPrototypes, index: int, cosine: float,
                   embedding: np.ndarray, query: Optional[int] = None) -> TaughtRegion:
    if index == NO_MATCH:
        return TaughtRegion(region, UNKNOWN_ID, UNKNOWN, float(cosine), embedding, query)
    match = taught.classes[index]
    return TaughtRegion(region, match.id, match.name, float(cosine), embedding, query)
