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

"""Embeddings of the regions that labels tell, by a network with a metric head."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from owseg_training.closed_set import predict
from owseg_training.config import Config, ConfigError
from owseg_training.data.datasets import DataSet
from owseg_training.network import MaskClassifier
from owseg_training.network.metric_head import region_means
import torch
from torch.nn import functional
from tqdm import tqdm


@dataclass(frozen=True, eq=False)
class ClassRegions:
    """
    Embeddings of class regions.

    rows: float32 [R, D] of unit length; classes: int64 [R], ids; frames: int64 [R], index of the
    picture in its set; areas: int64 [R], pixels of stride 4.
    """

    rows: np.ndarray
    classes: np.ndarray
    frames: np.ndarray
    areas: np.ndarray


def class_masks(label: torch.Tensor, size: tuple[int, int], num_classes: int,
                min_area: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the classes in a label, int64 [G], and their masks, float32 [G, *size].

    label: uint8 [H, W], ids from num_classes on are void; it is reduced to the nearest pixel.
    min_area: classes with fewer pixels of that size are left out.
    """
    small = functional.interpolate(label[None, None].float(), size=size,
                                   mode='nearest-exact')[0, 0].long()
    counts = torch.bincount(small.flatten(), minlength=num_classes)[:num_classes]
    ids = (counts >= max(1, min_area)).nonzero().flatten()
    return ids, (small[None] == ids[:, None, None]).float()


@torch.inference_mode()
def embed_classes(network: MaskClassifier, data_set: DataSet, config: Config,
                  frames: int | None = None) -> ClassRegions:
    """
    Embed each class of each picture of a set, all of its pixels as one region (RAML eq 3).

    config: of the network's run, whose metric.min_area holds; frames: only so many pictures,
    evenly spread.  Raises ConfigError for a network without a metric head.
    """
    if network.metric_head is None:
        raise ConfigError('this network has no metric head; train one: owseg-train metric')
    network.eval()
    indices = np.arange(len(data_set.items))
    if frames is not None and frames < len(indices):
        indices = np.unique(np.linspace(0, len(indices) - 1, frames).round().astype(int))
    rows, classes, places, areas = [], [], [], []
    for index in tqdm(indices, desc='regions', disable=None):
        image, label = data_set.read(data_set.items[index])
        features = predict(network, image, config)[0].pixel_features[0].float()
        ids, masks = class_masks(torch.from_numpy(label).to(features.device),
                                 tuple(features.shape[-2:]), len(data_set.classes),
                                 config.metric.min_area)
        rows.append(network.metric_head(region_means(features, masks)).cpu().numpy())
        classes.append(ids.cpu().numpy())
        places.append(np.full(len(ids), index))
        areas.append(masks.flatten(1).sum(1).long().cpu().numpy())
    return ClassRegions(*(np.concatenate(part) for part in (rows, classes, places, areas)))
