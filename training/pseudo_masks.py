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
Masks of a trained network as labels for pictures that have none (OpenSeg, appendix F).

What the masks show is left out: they teach where things end, words teach what they are.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from owseg_training.closed_set import load_network, predict
from owseg_training.config import ConfigError
from owseg_training.data.captions import caption_images, REGIONS
from owseg_training.data.dataset import read_image
from owseg_training.data.errors import DataError
from owseg_training.data.label_sets import VOID
from owseg_training.network import Prediction
import torch
from torch.nn import functional
from tqdm import tqdm

CONFIDENCE = 0.5
# Of a picture's pixels; smaller regions are noise at the edges of others.
SMALLEST = 1e-3


def region_ids(prediction: Prediction, size: tuple[int, int],
               confidence: float = CONFIDENCE) -> np.ndarray:
    """
    Return the regions that a network is confident of, uint8 [height, width], 255 for none.

    prediction: of one picture. Queries with 1 - p_no_object of at least confidence compete by
    that times their mask; a pixel is the winner's where its mask has at least one half.  Ids
    follow the queries, 255 of them at most, without gaps.
    """
    objectness = 1 - prediction.class_logits[0].softmax(1)[:, -1]
    ids = np.full(size, VOID, np.uint8)
    kept = (objectness >= confidence).nonzero().flatten()
    kept = kept[objectness[kept].argsort(descending=True, stable=True)[:VOID]].sort().values
    if not len(kept):
        return ids
    masks = functional.interpolate(prediction.mask_logits[:, kept], size=size, mode='bilinear',
                                   align_corners=False)[0].sigmoid()
    winner = (masks * objectness[kept][:, None, None]).argmax(0, keepdim=True)
    winner = torch.where(masks.gather(0, winner) >= 0.5, winner, len(kept))[0].cpu().numpy()
    areas = np.bincount(winner.ravel(), minlength=len(kept) + 1)[:-1]
    for number, query in enumerate(np.flatnonzero(areas >= max(1, SMALLEST * winner.size))):
        ids[winner == query] = number
    return ids


def write_pseudo_masks(teacher: str | Path, folder: str | Path,
                       confidence: float = CONFIDENCE, device: str | None = None) -> int:
    """
    Write regions/<name>.png for each picture images/<name>.* of a folder.

    teacher: folder of a run; device: cpu, cuda, None for the CPU.  Returns the number of
    pictures.  Raises ConfigError for a confidence outside of 0..1, DataError where there are no
    pictures or nothing can be written.
    """
    if not 0 <= confidence <= 1:
        raise ConfigError(f'the confidence must be in 0..1, not {confidence:g}')
    folder = Path(folder)
    images = caption_images(folder)
    network, config = load_network(teacher)
    network = network.to(device or 'cpu')
    (folder / REGIONS).mkdir(exist_ok=True)
    for name, path in tqdm(images.items(), desc='pseudo masks', disable=None):
        image = read_image(path)
        prediction, _ = predict(network, image, config)
        target = folder / REGIONS / f'{name}.png'
        if not cv2.imwrite(str(target), region_ids(prediction, image.shape[:2], confidence)):
            raise DataError(f'cannot write {target}')
    return len(images)
