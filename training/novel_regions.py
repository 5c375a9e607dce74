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
Novel classes in whole pictures: what prototypes match is painted over the closed set's classes.

Regions are counted once a picture by label and predicted class, so that any number of prototypes
and thresholds is compared without another look at the picture.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from owseg_ros.language.regions import Region
from owseg_ros.novelty.region_features import region_features
from owseg_training.network.metric_head import MetricHead
from scipy import ndimage
import torch

NO_MATCH = -1


@dataclass(frozen=True, eq=False)
class Taught:
    """
    What regions or pixels are compared with (RAML eqs 11 and 12).

    prototypes: float32 [M, D] of unit length; thresholds: float [M], least cosine of each;
    known: float32 [K, D], prototypes of known classes that must be less similar, None for none,
    as in the paper.
    """

    prototypes: np.ndarray
    thresholds: np.ndarray
    known: np.ndarray | None = None

    def match(self, embeddings: np.ndarray) -> np.ndarray:
        """
        Return the class of embeddings [R, D] of unit length, int64 [R], or NO_MATCH.

        It is the one with the largest cosine among those that reach their threshold.
        """
        cosines = embeddings @ self.prototypes.T
        allowed = cosines >= self.thresholds
        if self.known is not None:
            allowed &= cosines > (embeddings @ self.known.T).max(1, keepdims=True)
        best = np.where(allowed, cosines, -np.inf).argmax(1)
        return np.where(allowed[np.arange(len(best)), best], best, NO_MATCH)


@torch.inference_mode()
def embed(head: MetricHead, means: np.ndarray) -> np.ndarray:
    """Return embeddings float32 [R, D] of unit length, of mean features float32 [R, C]."""
    return head(torch.from_numpy(np.ascontiguousarray(means, np.float32))).numpy()


def embed_pixels(head: MetricHead, features: np.ndarray) -> np.ndarray:
    """Return the embedding of each cell of features [C, h, w], float32 [D, h, w]."""
    channels, height, width = features.shape
    rows = embed(head, features.reshape(channels, -1).T)
    return np.ascontiguousarray(rows.T).reshape(-1, height, width)


def as_regions(regions: np.ndarray) -> list[Region]:
    """Return the regions 1 to T of a map int [H, W] that has no gap in its numbers."""
    return [Region(window[1].start, window[0].start, inside, int(np.count_nonzero(inside)))
            for number, window in enumerate(ndimage.find_objects(regions), 1)
            for inside in (regions[window] == number,)]


@dataclass(frozen=True, eq=False)
class RegionTally:
    """
    The regions of a picture: embeddings float32 [T, D], and their pixels.

    counts: int64 [T + 1, L, P], pixels by region (the first are those of none), label and class
    that the closed set predicts; unlabelled ones are left out.
    """

    embeddings: np.ndarray
    counts: np.ndarray

    def count(self, taught: Taught) -> np.ndarray:
        """Return pixels by label and final class, int64 [L, P + M], taught classes last."""
        return self._painted(taught.match(self.embeddings), len(taught.prototypes))

    def count_majority(self, labels: Sequence[int]) -> np.ndarray:
        """
        Return what `count` does, if each region were of the class that most of its pixels are.

        labels: of the taught classes.  It is the most that these regions allow.
        """
        most = self.counts[1:].sum(2).argmax(1)
        found = np.full(len(most), NO_MATCH)
        for index, label in enumerate(labels):
            found[most == label] = index
        return self._painted(found, len(labels))

    def _painted(self, found: np.ndarray, classes: int) -> np.ndarray:
        kept = np.append(True, found == NO_MATCH)
        return np.concatenate([self.counts[kept].sum(0), np.stack([
            self.counts[1:][found == index].sum((0, 2)) for index in range(classes)], 1)], 1)


def tally_regions(head: MetricHead, regions: np.ndarray, features: np.ndarray, label: np.ndarray,
                  predicted: np.ndarray, shape: tuple[int, int]) -> RegionTally:
    """
    Embed the regions of a picture and count their pixels.

    regions: int [H, W], 1 to T, 0 is none; features: float32 [C, h, w]; label, predicted: uint8
    [H, W]; shape: (L, P), labels from L on are void.
    """
    labels, classes = shape
    found = as_regions(regions)
    means = region_features(found, features, regions.shape)
    valid = label < labels
    places = (regions[valid].astype(np.int64) * labels + label[valid]) * classes + predicted[valid]
    size = (len(found) + 1) * labels * classes
    return RegionTally(embed(head, means),
                       np.bincount(places, minlength=size).reshape(-1, labels, classes))


def count_pixels(embeddings: np.ndarray, taught: Taught, label: np.ndarray,
                 predicted: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """
    Match each pixel by itself (NPM) and count them as RegionTally.count does, int64 [L, P + M].

    embeddings: float32 [D, h, w] of embed_pixels; cosines are enlarged bilinearly.  Else as for
    tally_regions.
    """
    labels, classes = shape
    flat = embeddings.reshape(len(embeddings), -1)

    def enlarged(rows: np.ndarray) -> np.ndarray:
        maps = (rows @ flat).reshape(len(rows), *embeddings.shape[1:])
        return np.stack([cv2.resize(each, label.shape[::-1], interpolation=cv2.INTER_LINEAR)
                         for each in maps])

    cosines = enlarged(taught.prototypes)
    allowed = cosines >= np.asarray(taught.thresholds, np.float32)[:, None, None]
    if taught.known is not None:
        allowed &= cosines > enlarged(taught.known).max(0)
    best = np.where(allowed, cosines, -np.inf).argmax(0)
    final = np.where(allowed.any(0), classes + best, predicted)
    valid = label < labels
    width = classes + len(taught.prototypes)
    return np.bincount(label[valid].astype(np.int64) * width + final[valid],
                       minlength=labels * width).reshape(labels, width)
