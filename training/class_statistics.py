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
"""Statistics of the classes for the standardised max-logit score."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from owseg_ros.bundle import ClassStatistics
from owseg_training.data.datasets import DataError


def class_statistics(winners: Iterable[tuple[np.ndarray, np.ndarray]],
                     num_classes: int) -> ClassStatistics:
    """
    Return mean and standard deviation of max_k L_k over the known pixels that each class wins.

    winners: of each frame the winning classes [n], integers from 0 to num_classes - 1, and their
    max_k L_k [n], float.  A class that wins nowhere gets the mean and deviation of all; no
    deviation is less than 1e-4, for scores are divided by it.  Raises DataError where there is no
    pixel.  Source: Jung et al., "Standardized max logits", ICCV 2021, with L for the logits.
    """
    sums = np.zeros((3, num_classes))
    for ids, best in winners:
        for power, row in enumerate(sums):
            row += np.bincount(ids, best.astype(np.float64) ** power, minlength=num_classes)
    if not sums.any():
        raise DataError('class statistics need at least one known pixel')
    counts, totals, squares = np.where(sums[0] > 0, sums, sums.sum(1, keepdims=True))
    mean = totals / counts
    deviation = np.sqrt(np.maximum(squares / counts - mean ** 2, 1e-8))
    return ClassStatistics(tuple(mean.tolist()), tuple(deviation.tolist()))
