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
Separation of a frame into regions, before metric learning tells what they are (RAML).

Every separation is a RegionSeparation: it takes a Frame and returns a map of regions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np
from owseg_ros.readout.components import label_components
from owseg_training.closed_set import class_scores, predict
from owseg_training.config import Config
from owseg_training.network import MaskClassifier
from scipy import ndimage
import torch
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class Frame:
    """
    What a trained network says about a picture.

    image: RGB uint8 [H, W, 3]; scores: U, float32 [K, H, W], of a mask classifier its class
    scores L; class_logits: float32 [N, K+1], last column no-object; mask_logits: float32
    [N, h, w]; features: F, float32 [C, h, w]; meta: meta channels, float32 [M, h, w] in 0..1,
    where there are such.
    """

    image: np.ndarray
    scores: np.ndarray
    class_logits: np.ndarray
    mask_logits: np.ndarray
    features: np.ndarray
    meta: np.ndarray | None = None


class RegionSeparation(Protocol):
    """Separates a frame into regions."""

    def __call__(self, frame: Frame) -> np.ndarray:
        """Return int32 [H, W]: regions are 1 to T, 0 is where there is none."""


@torch.inference_mode()
def read_frame(network: MaskClassifier, image: np.ndarray, config: Config) -> Frame:
    """Run a network on a picture (RGB uint8 [H, W, 3]), stretched as closed_set.predict does."""
    prediction, size = predict(network, image, config)
    scores = functional.interpolate(
        class_scores(prediction.class_logits, prediction.mask_logits, size, network.num_classes),
        size=image.shape[:2], mode='bilinear', align_corners=False)
    parts = [scores, prediction.class_logits, prediction.mask_logits, prediction.pixel_features]
    if network.meta_head is not None:
        parts.append(network.meta_channels(prediction.pixel_features)[:, network.num_classes:])
    return Frame(image, *(part[0].float().cpu().numpy() for part in parts))


def connected_regions(ids: np.ndarray, min_area: int, connectivity: int = 8) -> np.ndarray:
    """
    Return the connected pieces of equal id, int32 [H, W]: 1 to T, and 0.

    ids: integer [H, W], 0 is no region; min_area: smaller pieces, in pixels, become 0;
    connectivity: 4 or 8 neighbours.
    """
    regions = np.zeros(ids.shape, np.int32)
    count = 0
    for value in np.unique(ids[ids != 0]):
        labels, stats = label_components((ids == value).view(np.uint8), connectivity)
        kept = stats[:, cv2.CC_STAT_AREA] >= min_area
        kept[0] = False
        numbers = np.zeros(len(stats), np.int32)
        numbers[kept] = count + 1 + np.arange(kept.sum())
        count += int(kept.sum())
        regions += numbers[labels]
    return regions


def nearest_region(regions: np.ndarray) -> np.ndarray:
    """Give each pixel without a region, 0 in integer [H, W], the number of the nearest one."""
    if not regions.any():
        return regions.copy()
    rows, columns = ndimage.distance_transform_edt(
        regions == 0, return_distances=False, return_indices=True)
    return regions[rows, columns]


def resize_regions(regions: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a map of regions, or a label map, at (height, width): the nearest pixel's number."""
    height, width = size
    return cv2.resize(regions, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)
