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
Anomaly scores: how strange a pixel is, from the same masks and class probabilities.

Every score is a function of the class scores L [K, H, W] of a frame (``reference.class_scores``,
RbA eq. 2), higher is stranger. It is folded class by class, beside the argmax, in the one pass of
the readout: a score adds up what it needs of each class (``sums`` planes) and finishes with the
best class. Two scores weigh the masks otherwise than the classes do: their weights are one more
column of the score matrix S ("masks times scores"), and arrive as one more plane.

``SCORES`` is the registry, ``make_score`` opens one by name. ``reference.anomaly_score`` computes
the same in plain numpy.
"""

from __future__ import annotations

from typing import Callable, Optional

import cv2
import numpy as np
from owseg_ros.bundle import ClassStatistics
from owseg_ros.errors import OwsegError
from owseg_ros.readout import kernels

# exp(80) times 254 classes is finite in float32; L beyond it is certainty anyway.
_LARGEST_EXPONENT = np.float32(80)

_EPSILON = 1e-6


class ScoreError(OwsegError, ValueError):
    """A score that is not known or that a model has not what it needs for; says what to do."""


class AnomalyScore:
    """
    One score; the base class folds nothing.

    name: in the registry. sums: number of planes that ``add`` fills over the classes.
    needs_best, needs_ids: whether ``finish`` uses max_k L_k and argmax_k L_k.
    column: whether the score has a column of the score matrix of its own.
    needs_statistics, needs_outlier_class: what a model must have.
    """

    name = ''
    sums = 0
    needs_best = False
    needs_ids = False
    column = False
    needs_statistics = False
    needs_outlier_class = False

    def weights(self, probabilities: np.ndarray, outlier: Optional[np.ndarray]) -> np.ndarray:
        """
        Return the column of S, float [N]: weight of each mask in the plane of ``finish``.

        probabilities: float [N, K]; outlier: float [N], probability of the outlier class, None
        where the model has none.
        """
        raise ScoreError(f'the score {self.name} has no column')

    def add(self, level: np.ndarray, sums: list[np.ndarray], spare: np.ndarray) -> None:
        """
        Add one class to the sums.

        level: float32 [H, W], L_k, left as it is; sums: float32 [H, W] each, changed; spare:
        float32 [H, W] to compute in.
        """

    def add_up(self, levels: np.ndarray, count: int, sums: list[np.ndarray],
               spare: np.ndarray) -> None:
        """Write the sums of the first planes L_k, float32 [*, H, W]; the others as for `add`."""
        for total in sums:
            total.fill(0)
        for level in levels[:count]:
            self.add(level, sums, spare)

    def finish(self, sums: list[np.ndarray], best: Optional[np.ndarray],
               ids: Optional[np.ndarray], plane: Optional[np.ndarray]) -> np.ndarray:
        """
        Return the score, float32 [H, W], freshly allocated.

        best: float32 max_k L_k; ids: uint8 argmax_k L_k; plane: float32, the masks weighed by
        ``weights``; each None where the score does not ask for it.
        """
        raise ScoreError(f'the score {self.name or type(self).__name__} does not finish')

    def range(self, num_classes: int) -> tuple[float, float]:  # noqa: A003
        """Return the score where one class accepts (L = 1, others 0) and where all reject."""
        found = []
        for first in (1.0, 0.0):
            levels = np.zeros((num_classes, 1, 1), np.float32)
            levels[0] = first
            sums = [np.zeros((1, 1), np.float32) for _ in range(self.sums)]
            for level in levels:
                self.add(level, sums, np.empty((1, 1), np.float32))
            score = self.finish(sums, levels.max(axis=0), levels.argmax(axis=0).astype(np.uint8),
                                np.full((1, 1), first, np.float32))
            found.append(float(score[0, 0]))
        return found[0], found[1]


class _RejectedByAll(AnomalyScore):
    """What is built on how much the classes accept a pixel: sums[0] is sum_k sigma(L_k)."""

    sums = 1

    def finish(self, sums, best, ids, plane):
        """Return 1 - sum_k sigma(L_k)."""
        return np.subtract(np.float32(1), sums[0])


class Rba(_RejectedByAll):
    """
    RbA, "rejected by all": 1 - sum_k tanh(L_k) (RbA eqs 3 to 5).

    Each class accepts a pixel with probability sigma(L_k), and an outlier is what all of them
    reject; sigma = tanh as in the paper. Lies in [1 - K, 1].
    """

    name = 'rba'

    def add(self, level, sums, spare):
        """Add tanh(L_k)."""
        np.tanh(level, out=spare)
        sums[0] += spare

    def add_up(self, levels, count, sums, spare):
        """Write sum_k tanh(L_k), to 1e-6 a class."""
        kernels.sum_tanh(levels, count, sums[0])


class RbaExponential(_RejectedByAll):
    """RbA with sigma(L) = 1 - exp(-L): 1 - sum_k (1 - exp(-L_k)) (RbA eq 4, another sigma)."""

    name = 'rba_exponential'

    def add(self, level, sums, spare):
        """Add 1 - exp(-L_k)."""
        np.negative(level, out=spare)
        np.expm1(spare, out=spare)
        sums[0] -= spare


class RbaSoftsign(_RejectedByAll):
    """RbA with sigma(L) = L / (1 + L): 1 - sum_k L_k / (1 + L_k) (RbA eq 4, another sigma)."""

    name = 'rba_softsign'

    def add(self, level, sums, spare):
        """Add L_k / (1 + L_k)."""
        np.add(level, np.float32(1), out=spare)
        np.divide(level, spare, out=spare)
        sums[0] += spare


class RbaClipped(_RejectedByAll):
    """RbA with sigma(L) = min(L, 1): 1 - sum_k min(L_k, 1) (RbA eq 4, another sigma)."""

    name = 'rba_clipped'

    def add(self, level, sums, spare):
        """Add min(L_k, 1)."""
        np.minimum(level, np.float32(1), out=spare)
        sums[0] += spare


class MaxLogit(AnomalyScore):
    """Max-logit: -max_k L_k (Hendrycks et al., "Scaling OoD detection", ICML 2022)."""

    name = 'max_logit'
    needs_best = True

    def finish(self, sums, best, ids, plane):
        """Return -max_k L_k."""
        return np.negative(best)


class _Exponential(AnomalyScore):
    """What is built on the softmax of L over the classes: sums[0] is sum_k exp(L_k)."""

    sums = 1

    def add(self, level, sums, spare):
        """Add exp(L_k)."""
        np.minimum(level, _LARGEST_EXPONENT, out=spare)
        np.exp(spare, out=spare)
        sums[0] += spare


class MaxSoftmaxProbability(_Exponential):
    """
    MSP: 1 - max_k softmax(L)_k (Hendrycks and Gimpel, "A baseline for detecting...", ICLR 2017).

    Lies in [0, 1 - 1/K].
    """

    name = 'msp'
    needs_best = True

    def finish(self, sums, best, ids, plane):
        """Return 1 - exp(max_k L_k) / sum_k exp(L_k)."""
        score = np.minimum(best, _LARGEST_EXPONENT)
        np.exp(score, out=score)
        score /= sums[0]
        return np.subtract(np.float32(1), score, out=score)


class Energy(_Exponential):
    """Free energy: -log sum_k exp(L_k) (Liu et al., NeurIPS 2020; RbA eq 12)."""

    name = 'energy'

    def finish(self, sums, best, ids, plane):
        """Return -log sum_k exp(L_k)."""
        score = np.log(sums[0])
        return np.negative(score, out=score)


class Entropy(_Exponential):
    """
    Entropy of p = softmax(L): -sum_k p_k log p_k (Chan et al., "Entropy maximization", ICCV 2021).

    In nats, in [0, log K].
    """

    name = 'entropy'
    sums = 2

    def add(self, level, sums, spare):
        """Add exp(L_k) and L_k exp(L_k)."""
        super().add(level, sums, spare)
        spare *= np.minimum(level, _LARGEST_EXPONENT)
        sums[1] += spare

    def finish(self, sums, best, ids, plane):
        """Return log Z - sum_k L_k exp(L_k) / Z with Z = sum_k exp(L_k)."""
        score = np.log(sums[0])
        score -= sums[1] / sums[0]
        return np.maximum(score, np.float32(0), out=score)


class StandardizedMaxLogit(AnomalyScore):
    """
    Standardised max-logit: -(L_c - mu_c) / s_c with c = argmax_k L_k (Jung et al., ICCV 2021).

    mu_c and s_c are mean and standard deviation of the max-logit over training pixels of which c
    is the argmax.

    statistics: those of the K classes; standard deviations below 1e-6 are taken as 1e-6.
    """

    name = 'standardized_max_logit'
    needs_best = True
    needs_ids = True
    needs_statistics = True

    def __init__(self, statistics: ClassStatistics):
        self.statistics = statistics
        deviation = np.maximum(np.array(statistics.std, np.float64), _EPSILON)
        # One gain and one offset a class, looked up by id.
        self._gain = np.zeros((256, 1), np.float32)
        self._offset = np.zeros((256, 1), np.float32)
        self._gain[:len(deviation), 0] = -1 / deviation
        self._offset[:len(deviation), 0] = np.array(statistics.mean) / deviation

    @property
    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """Return gain and offset of each id, float32 [256]: the score is gain * max_k L_k + o."""
        return self._gain[:, 0], self._offset[:, 0]

    def finish(self, sums, best, ids, plane):
        """Return -(max_k L_k - mu_c) / s_c."""
        score = cv2.LUT(ids, self._gain).reshape(ids.shape)
        score *= best
        score += cv2.LUT(ids, self._offset).reshape(ids.shape)
        return score

    def range(self, num_classes: int) -> tuple[float, float]:  # noqa: A003
        """Return the median over the classes of the score at their mean and at L = 0."""
        ratios = np.array(self.statistics.mean) / np.maximum(self.statistics.std, _EPSILON)
        return 0.0, max(float(np.median(ratios)), _EPSILON)


class EnsembleOfMasks(AnomalyScore):
    """
    EAM, ensemble over anomaly scores of masks: 1 - sum_q M_q max_k P_qk.

    Grcic, Saric, Segvic, "On advantages of mask-level recognition for outlier-aware
    segmentation", CVPR Workshops 2023. Masks vote with their best class, whichever it is. The
    plane is sum_q M_q max_k P_qk.
    """

    name = 'eam'
    column = True

    def weights(self, probabilities, outlier):
        """Return max_k P_qk."""
        return probabilities.max(axis=1)

    def finish(self, sums, best, ids, plane):
        """Return 1 - sum_q M_q max_k P_qk."""
        return np.subtract(np.float32(1), plane)


class NegativeObjectness(AnomalyScore):
    """
    UNO: sum_q M_q (P_q,out - max_k P_qk).

    Delic, Grcic, Segvic, "Outlier detection by ensembling uncertainty with negative objectness",
    BMVC 2024. The uncertainty of the known classes, -max_k P_qk, ensembled with the probability
    of one more class that was trained on outliers. Lies about in [-1, 1].
    """

    name = 'uno'
    column = True
    needs_outlier_class = True

    def weights(self, probabilities, outlier):
        """Return max_k P_qk - P_q,out."""
        if outlier is None:
            raise ScoreError('the score uno needs the probability of an outlier class, which this '
                             'network does not have; train it with the loss uno, or choose '
                             'another score')
        return probabilities.max(axis=1) - outlier

    def finish(self, sums, best, ids, plane):
        """Return -sum_q M_q (max_k P_qk - P_q,out)."""
        return np.negative(plane)

    def range(self, num_classes: int) -> tuple[float, float]:  # noqa: A003
        """Return -1, where a known class has the pixel, and 1, where the outlier class has it."""
        return -1.0, 1.0


SCORES: dict[str, Callable[..., AnomalyScore]] = {
    kind.name: kind for kind in (
        Rba, RbaExponential, RbaSoftsign, RbaClipped, MaxSoftmaxProbability, MaxLogit, Entropy,
        Energy, StandardizedMaxLogit, EnsembleOfMasks, NegativeObjectness)}


def check_score(name: str) -> None:
    """Raise ScoreError where no score has that name."""
    _kind_of(name)


def _kind_of(name: str) -> type[AnomalyScore]:
    kind = SCORES.get(name)
    if kind is None:
        raise ScoreError(f'no anomaly score is called {name!r}; choose from {", ".join(SCORES)}')
    return kind


def make_score(name: str, statistics: Optional[ClassStatistics] = None,
               outlier_class: bool = False) -> AnomalyScore:
    """
    Open a score by name.

    statistics: of the model's classes, for standardized_max_logit; outlier_class: whether the
    model has one, for uno. Raises ScoreError where the name is not known or one of them is
    missing; the message says what to do.
    """
    kind = _kind_of(name)
    if kind.needs_outlier_class and not outlier_class:
        raise ScoreError(f'the score {name} needs a network with an outlier class: train it with '
                         'the loss uno (owseg-train outliers), or choose another score')
    if not kind.needs_statistics:
        return kind()
    if statistics is None:
        raise ScoreError(f'the score {name} needs the mean and standard deviation of each class, '
                         'which this model does not have: run owseg-train calibrate on it, or '
                         'choose another score')
    return kind(statistics)


def available_scores(statistics: Optional[ClassStatistics] = None,
                     outlier_class: bool = False) -> tuple[str, ...]:
    """Return the names of the scores that a model has everything for."""
    return tuple(name for name, kind in SCORES.items()
                 if (statistics is not None or not kind.needs_statistics)
                 and (outlier_class or not kind.needs_outlier_class))
