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
Operating points of an anomaly score: what a threshold means, measured on a validation set.

A threshold is asked for as a number, as ``calibrated`` (the model's own operating point), as a
rate of false alarms (``fpr=0.01``) or as ``best_f1``; the curve that ``owseg-train calibrate``
stored in the bundle turns it into a number.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Optional

import numpy as np
from owseg_ros.errors import OwsegError, shown

CALIBRATED = 'calibrated'
BEST_F1 = 'best_f1'
_FPR = 'fpr='
# Scores are float32.
_MOST = float(np.finfo(np.float32).max)
DEFAULT_POINT = f'{_FPR}0.005'
"""What a bundle is calibrated to where nobody chooses."""

HOW_TO_ASK = ('a number, "calibrated" for the operating point of the model, "best_f1", or a rate '
              'of false alarms such as "fpr=0.01"')


class OperatingPointError(OwsegError, ValueError):
    """An operating point that cannot be read or that the model was not measured at."""


@dataclass(frozen=True)
class OperatingCurve:
    """
    Thresholds of one score by their false-positive rate.

    score: its name; objects: whether it is grouped into objects (readout.objects).
    fpr: share of the known pixels of ``data`` that score at least the threshold, increasing, in
        (0, 1); threshold: as many, not increasing. tpr: share of the anomalous pixels of
        ``anomaly_data`` that do, empty where none were there.
    best_f1_threshold: of the best pixel F1 on ``anomaly_data``, and best_f1 that F1; None
        without anomalies.
    """

    score: str
    objects: bool
    data: str
    fpr: tuple[float, ...]
    threshold: tuple[float, ...]
    tpr: tuple[float, ...] = ()
    anomaly_data: str = ''
    best_f1_threshold: Optional[float] = None
    best_f1: Optional[float] = None

    def threshold_at(self, fpr: float) -> float:
        """
        Return the threshold at a false-positive rate, interpolated over log(fpr).

        Raises OperatingPointError where the rate was not measured.
        """
        if not self.fpr[0] <= fpr <= self.fpr[-1]:
            raise OperatingPointError(
                f'fpr={fpr:g} was not measured; the curve of this model reaches from '
                f'{self.fpr[0]:g} to {self.fpr[-1]:g}')
        return float(np.interp(math.log(fpr), np.log(self.fpr), self.threshold))

    def fpr_at(self, threshold: float) -> float:
        """Return the false-positive rate at a threshold; at the ends, that of the end."""
        return float(np.exp(np.interp(
            -threshold, -np.array(self.threshold), np.log(self.fpr))))


def parse_operating_point(value: object) -> tuple[str, float]:
    """
    Read what a person asked for: ('number', x), ('fpr', rate), ('calibrated', 0), ('best_f1', 0).

    value: a number, or one of the texts of HOW_TO_ASK. Raises OperatingPointError otherwise.
    """
    if isinstance(value, str):
        text = value.strip()
        if text in (CALIBRATED, BEST_F1):
            return text, 0.0
        number, kind = text, 'number'
        if text.startswith(_FPR):
            number, kind = text[len(_FPR):], 'fpr'
        try:
            found = float(number)
        except ValueError:
            raise OperatingPointError(f'must be {HOW_TO_ASK}, not "{shown(value)}"') from None
        if kind == 'fpr' and not 0.0 < found < 1.0:
            raise OperatingPointError(f'must name a rate between 0 and 1, not "{shown(value)}"')
    elif isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
        found, kind = float(value), 'number'
    else:
        raise OperatingPointError(f'must be {HOW_TO_ASK}, not {shown(repr(value))}')
    if not abs(found) <= _MOST:
        raise OperatingPointError(f'must be finite in single precision, not {value}')
    return kind, found
