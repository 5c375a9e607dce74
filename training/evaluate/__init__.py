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
Evaluation: metrics, and figures of bundles and runs.

anomaly_metrics and closed_set_metrics take arrays in memory; PooledCurve, ComponentMetrics,
ConfusionMatrix, GroundingConfusion and MaskRecall do the same frame by frame in constant memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from owseg_training.evaluate.components import ComponentMetrics, Track
from owseg_training.evaluate.metrics import ConfusionMatrix, pixel_metrics
from owseg_training.evaluate.pooled import PooledCurve
from owseg_training.evaluate.regions import GroundingConfusion, MaskRecall

__all__ = [
    'anomaly_metrics', 'closed_set_metrics', 'ComponentMetrics', 'ConfusionMatrix',
    'GroundingConfusion', 'MaskRecall', 'pixel_metrics', 'PooledCurve', 'Track']

COMPONENT_KEYS = ('sIoU', 'PPV', 'F1')


def anomaly_metrics(scores: Sequence[np.ndarray], labels: Sequence[np.ndarray], *,
                    track: str | Track, threshold: float | None = None) -> dict[str, float]:
    """
    Pixel and component metrics of an anomaly score over a set of frames.

    scores: 2-D float arrays, higher is stranger; labels: arrays of the same shapes, 0 known, 1
    anomaly, anything else (255) void.  Both are read twice, so a sequence may load lazily.
    track: 'anomaly' (components of at least 500 predicted and 100 true pixels) or 'obstacle'
    (50 and 10), see components.Track.
    threshold: a pixel is predicted anomalous where score > threshold; None takes the pixels'
    best-F1 threshold of this very set, as SegmentMeIfYouCan does.

    Returns AP, AuROC, FPR95 (pooled and exact, see metrics.pixel_metrics), best_f1, threshold
    (the one used; when chosen here, just below the best score level, see PooledCurve.result),
    sIoU, PPV and F1 (see ComponentMetrics).  With a threshold given, AP, AuROC, FPR95 and
    best_f1 are nan where the set lacks known or anomalous pixels.
    Raises ValueError when lengths or shapes differ, scores are not finite, the threshold is nan,
    the track is not known, or, without a threshold, when the set lacks one of the two kinds of
    pixels.
    """
    if len(scores) != len(labels):
        raise ValueError(f'{len(scores)} score maps, but {len(labels)} label maps')
    dtypes = {np.asarray(score).dtype for score in scores}
    dtype = np.result_type(np.float16, *dtypes)
    with PooledCurve(dtype) as curve:
        for score, label in zip(scores, labels):
            curve.add(np.asarray(score, dtype), np.asarray(label))
        if threshold is None or (curve.known and curve.anomalous):
            pixels = curve.result()
        else:
            pixels = dict.fromkeys(('AP', 'AuROC', 'FPR95', 'best_f1'), float('nan'))
    if threshold is not None:
        pixels['threshold'] = float(threshold)
    components = ComponentMetrics(pixels['threshold'], track)
    for score, label in zip(scores, labels):
        components.add(np.asarray(score, dtype), np.asarray(label))
    found = components.result()
    return {**pixels, **{key: found[key] for key in COMPONENT_KEYS}}


def closed_set_metrics(predictions: Sequence[np.ndarray], labels: Sequence[np.ndarray],
                       num_classes: int) -> dict[str, Any]:
    """
    Closed-set metrics by the rules of Cityscapes.

    predictions, labels: integer arrays of ids, equal shapes pair by pair; see ConfusionMatrix
    for ids outside 0..num_classes-1.  Returns mIoU, IoU (list of num_classes floats, nan where
    a class neither occurs nor is predicted) and pixel_accuracy.
    Raises ValueError when lengths or shapes differ.
    """
    if len(predictions) != len(labels):
        raise ValueError(f'{len(predictions)} predictions, but {len(labels)} labels')
    matrix = ConfusionMatrix(num_classes)
    for prediction, label in zip(predictions, labels):
        matrix.add(np.asarray(prediction), np.asarray(label))
    return {'mIoU': matrix.mean_iou(), 'IoU': [float(v) for v in matrix.iou()],
            'pixel_accuracy': matrix.pixel_accuracy()}
