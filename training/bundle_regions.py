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

"""Embeddings of labelled regions by a bundle, as the robot makes them."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from owseg_ros.language.regions import Region
from owseg_ros.novelty.region_features import region_features
from owseg_ros.segmenter import FEATURES, Segmenter
from owseg_training.class_regions import ClassRegions
from owseg_training.data.datasets import DataError, DataSet
from owseg_training.evaluate.regions import present_classes
from tqdm import tqdm


def embed_masks(segmenter: Segmenter, image: np.ndarray,
                masks: Sequence[np.ndarray]) -> np.ndarray:
    """
    Return the embeddings of regions of a picture, float32 [R, D] of unit length (RAML eq 3).

    image: RGB uint8 [H, W, 3]; masks: R of bool [H, W], none of them empty, which may be in
    several pieces.  Raises NoveltyError where the bundle has no metric head.
    """
    head = segmenter.metric_head
    features = segmenter(image, maps={FEATURES}).pixel_features
    return head.embed(region_features([_region(mask) for mask in masks], features,
                                      image.shape[:2]))


def _region(mask: np.ndarray) -> Region:
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    inside = mask[top:top + height, left:left + width]
    return Region(left, top, inside, int(np.count_nonzero(inside)))


def embed_labels(segmenter: Segmenter, data_set: DataSet, classes: Sequence[str] | None = None,
                 frames: int | None = None, min_area: int = 256) -> ClassRegions:
    """
    Embed each class of each picture of a set, all of its pixels as one region.

    classes: names of those wanted, None for all; frames: only so many pictures, evenly spread;
    min_area: smaller regions, in pixels, are left out.  Ids and areas are those of the set.
    Raises DataError where the set has no class of these names, NoveltyError where the bundle has
    no metric head.
    """
    names = [c.name for c in data_set.classes]
    wanted = {i for i, name in enumerate(names) if classes is None or name in classes}
    if not wanted:
        raise DataError(f'{data_set.title} has no class {", ".join(classes or ())}; it has '
                        f'{", ".join(names) or "none"}')
    indices = np.arange(len(data_set.items))
    if frames is not None and frames < len(indices):
        indices = np.unique(np.linspace(0, len(indices) - 1, frames).round().astype(int))
    rows, ids, places, areas = [], [], [], []
    for index in tqdm(indices, desc='regions', disable=None):
        image, label = data_set.read(data_set.items[index])
        found = [(int(i), label == i) for i in present_classes(label, len(names)) if i in wanted]
        found = [(i, mask) for i, mask in found if np.count_nonzero(mask) >= min_area]
        if found:
            rows.append(embed_masks(segmenter, image, [mask for _, mask in found]))
            ids += [i for i, _ in found]
            places += [index] * len(found)
            areas += [int(np.count_nonzero(mask)) for _, mask in found]
    empty = np.empty((0, segmenter.metric_head.dim), np.float32)
    return ClassRegions(np.concatenate([empty, *rows]), np.array(ids, np.int64),
                        np.array(places, np.int64), np.array(areas, np.int64))
