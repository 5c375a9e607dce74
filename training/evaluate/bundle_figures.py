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
"""Figures of a bundle through the same Segmenter that runs on the robot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from owseg_ros.segmenter import Segmenter
from owseg_training.data.datasets import Item, read_image, read_label
from owseg_training.evaluate.metrics import ConfusionMatrix, pixel_metrics
from tqdm import tqdm


def evaluate_closed_set(segmenter: Segmenter, items: Sequence[Item]) -> dict[str, Any]:
    """
    Closed-set figures at the size of the labels.

    Returns mIoU, pixel_accuracy and IoU (dict name -> float, nan where undefined).
    """
    names = segmenter.bundle.class_names
    matrix = ConfusionMatrix(len(names))
    for item in tqdm(items, desc='closed set', leave=False, disable=None):
        image, label = read_image(item.image), read_label(item.label)
        matrix.add(segmenter(image, maps=frozenset({'semantic'})).semantic, label)
    return {'mIoU': matrix.mean_iou(), 'pixel_accuracy': matrix.pixel_accuracy(),
            'IoU': dict(zip(names, (float(v) for v in matrix.iou()))), 'frames': len(items)}


def anomaly_pixels(segmenter: Segmenter, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """
    Anomaly scores and labels of a set, pooled: (float32 [P], uint8 [P] of 0 and 1).

    Scores are at the size of the labels; pixels whose label is neither 0 nor 1 are dropped.
    """
    scores, labels = [], []
    for item in tqdm(items, desc='anomaly', leave=False, disable=None):
        label = read_label(item.label)
        score = segmenter(read_image(item.image),
                          maps=frozenset({'anomaly_score'})).anomaly_score
        valid = label <= 1
        scores.append(score[valid])
        labels.append(label[valid])
    return np.concatenate(scores), np.concatenate(labels)


def evaluate_anomaly(segmenter: Segmenter, items: Sequence[Item]) -> dict[str, float]:
    """Return pooled AP, AuROC and FPR95 of the anomaly score, and the number of frames."""
    return {**pixel_metrics(*anomaly_pixels(segmenter, items)), 'frames': len(items)}
