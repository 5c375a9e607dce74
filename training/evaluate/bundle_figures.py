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

from typing import Any

import numpy as np
from owseg_ros.segmenter import Segmenter
from owseg_training.data.datasets import DataSet
from owseg_training.evaluate.metrics import ConfusionMatrix, pixel_metrics
from tqdm import tqdm


def evaluate_closed_set(segmenter: Segmenter, data_set: DataSet) -> dict[str, Any]:
    """
    Closed-set figures at the size of the labels, of a set with the classes of the bundle.

    Returns mIoU, pixel_accuracy and IoU (dict name -> float, nan where undefined).
    """
    names = segmenter.bundle.class_names
    matrix = ConfusionMatrix(len(names))
    for item in tqdm(data_set.items, desc='closed set', leave=False, disable=None):
        image, label = data_set.read(item)
        matrix.add(segmenter(image, maps=frozenset({'semantic'})).semantic, label)
    return {'mIoU': matrix.mean_iou(), 'pixel_accuracy': matrix.pixel_accuracy(),
            'IoU': dict(zip(names, (float(v) for v in matrix.iou()))),
            'frames': len(data_set.items)}


def anomaly_pixels(segmenter: Segmenter, data_set: DataSet) -> tuple[np.ndarray, np.ndarray]:
    """
    Anomaly scores and labels of a set, pooled: (float32 [P], uint8 [P] of 0 and 1).

    Scores are at the size of the labels; pixels whose label is neither 0 nor 1 are dropped.
    """
    scores, labels = [], []
    for item in tqdm(data_set.items, desc='anomaly', leave=False, disable=None):
        image, label = data_set.read(item)
        score = segmenter(image, maps=frozenset({'anomaly_score'})).anomaly_score
        valid = label <= 1
        scores.append(score[valid])
        labels.append(label[valid])
    return np.concatenate(scores), np.concatenate(labels)


def evaluate_anomaly(segmenter: Segmenter, data_set: DataSet) -> dict[str, float]:
    """Return pooled AP, AuROC and FPR95 of the anomaly score, and the number of frames."""
    return {**pixel_metrics(*anomaly_pixels(segmenter, data_set)), 'frames': len(data_set.items)}
