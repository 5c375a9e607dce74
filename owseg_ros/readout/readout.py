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
The readout of a frame, step by step, whatever computes its pixels.

Masks times scores is what costs: a subclass does that, on the CPU (readout.cpu) or on a GPU
(readout.gpu). What follows looks at regions and happens here: objects, the hazard mask and its
history, the marks in the semantic map, and regions that answer queries.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Optional, Protocol, Sequence

import numpy as np
from owseg_ros.readout.hazard_mask import hazard_mask
from owseg_ros.readout.maps import (
    ALL_MAPS, check_maps, Maps, NO_QUERY, QUERY_MAPS, ReadoutSettings, RegionScores, ScoreRegions,
    UNKNOWN_ID)
from owseg_ros.readout.mask_history import MaskHistory
from owseg_ros.readout.objects import refine
from owseg_ros.readout.scores import AnomalyScore


@dataclass(frozen=True)
class Task:
    """
    What the pixels of one frame are asked for.

    mask_logits: float [N, h, w]; probabilities: float [N, K]; sizes are (height, width), that of
    the network divided by the stride of the settings; outlier: float [N] or None; query_weights:
    float [N, Q], query_thresholds: float [Q].
    score: the anomaly score to compute, None for none; min_confidence: see ReadoutSettings.
    semantic, confidence, query_mask, query_score: whether these maps are wanted; ids: whether
    argmax_k L_k is, as it is; winning: whether the score of the query in query_mask is.
    """

    mask_logits: Any
    probabilities: np.ndarray
    network_size: tuple[int, int]
    output_size: tuple[int, int]
    outlier: Optional[np.ndarray]
    query_weights: np.ndarray
    query_thresholds: np.ndarray
    score: Optional[AnomalyScore]
    min_confidence: float
    semantic: bool
    confidence: bool
    ids: bool
    query_mask: bool
    query_score: bool
    winning: bool


class Planes(Protocol):
    """
    The pixels of one frame, of the output's size; what the task does not ask for is not there.

    Everything but `ids` is the caller's to change, but may be the same array: only when `ids` is
    of no use any more. `queries` comes last: it may overwrite `ids`.
    """

    def ids(self) -> np.ndarray:
        """Return argmax_k L_k, uint8 [H, W], not to be changed."""

    def semantic(self) -> np.ndarray:
        """Return the same, uint8 [H, W], 255 where max_k L_k is below min_confidence."""

    def confidence(self) -> np.ndarray:
        """Return round(255 * clip(max_k L_k, 0, 1)), uint8 [H, W]."""

    def score(self) -> np.ndarray:
        """Return the anomaly score, float32 [H, W]."""

    def queries(self) -> tuple[
            Optional[np.ndarray], Optional[np.ndarray], Optional[np.ndarray]]:
        """
        Return query_mask, query_score, and the score of the query in the mask.

        uint8, float32 and float32 [H, W]; the last is -inf where no query reaches its threshold.
        """


class Readout(ABC):
    """Turns the network's output into maps; see `__call__` for the contract."""

    def __call__(self, mask_logits: Any, probabilities: np.ndarray,
                 network_size: tuple[int, int], output_size: tuple[int, int],
                 settings: ReadoutSettings, maps=ALL_MAPS,
                 outlier: Optional[np.ndarray] = None, image: Optional[np.ndarray] = None,
                 history: Optional[MaskHistory] = None, stamp: Optional[float] = None,
                 query_weights: Optional[np.ndarray] = None,
                 query_thresholds: Optional[np.ndarray] = None,
                 score_regions: Optional[ScoreRegions] = None) -> Maps:
        """
        Return the Maps of one frame, freshly allocated; only those that ``maps`` names.

        mask_logits: float [N, h, w]; probabilities: float [N, K] with K in 1..254, the no-object
        column dropped; network_size and output_size: (height, width) in pixels; outlier: float
        [N], probability of the outlier class, where the network has one; image: the frame, for
        its edges, see objects.refine; history: what the camera's mask reported before, updated
        by this call, None for a picture by itself; stamp: of the frame, seconds; query_weights:
        float [N, Q], not negative, and query_thresholds: float [Q], of at most 64 queries, None
        for none; score_regions: what anomalous regions answer to these, for which the anomaly
        mask is made although no map shows it. Raises ValueError where shapes disagree or values
        are not finite (those of tensors on a GPU are not looked at), ScoreError where the score
        needs what is missing.
        """
        maps = check_maps(maps)
        check_shapes(mask_logits, probabilities, network_size, output_size)
        if not maps:
            return Maps()
        query_maps = maps & QUERY_MAPS
        if not query_maps or query_weights is None:
            query_weights, query_thresholds = probabilities[:, :0], probabilities[0, :0]
        _check_queries(query_weights, query_thresholds, len(mask_logits))
        if not query_weights.shape[1]:
            score_regions = None
        want_mask = ('anomaly_mask' in maps or score_regions is not None
                     or 'semantic' in maps and settings.mark_unknown)
        planes = self._planes(Task(
            mask_logits=mask_logits, probabilities=probabilities,
            network_size=settings.evaluation_size(network_size), output_size=tuple(output_size),
            outlier=outlier, query_weights=query_weights, query_thresholds=query_thresholds,
            score=settings.score if want_mask or 'anomaly_score' in maps else None,
            min_confidence=settings.min_confidence, semantic='semantic' in maps,
            confidence='confidence' in maps, ids=want_mask and settings.road is not None,
            query_mask='query_mask' in maps, query_score='query_score' in maps,
            winning=score_regions is not None))
        ids = confidence = score = mask = None
        road_lost = False
        if want_mask or 'anomaly_score' in maps:
            score = planes.score()
            if settings.objects is not None:
                score = self._refine(score, mask_logits, probabilities, image, settings.objects)
        if want_mask:
            mask, road_lost = hazard_mask(
                score, planes.ids() if settings.road is not None else None,
                settings.hazard(network_size, output_size),
                MaskHistory() if history is None else history, stamp)
        if 'semantic' in maps:
            ids = planes.semantic()
            if settings.mark_unknown:
                ids[mask != 0] = UNKNOWN_ID
        if 'confidence' in maps:
            confidence = planes.confidence()
        query_mask = query_score = None
        if query_maps:
            query_mask, query_score, winning = planes.queries()
            if score_regions is not None:
                _answer_in_regions(query_mask, query_score, winning, score_regions(mask),
                                   query_thresholds)
        return Maps(semantic=ids, confidence=confidence,
                    anomaly_score=score if 'anomaly_score' in maps else None,
                    anomaly_mask=mask if 'anomaly_mask' in maps else None, road_lost=road_lost,
                    query_mask=query_mask, query_score=query_score)

    @abstractmethod
    def _planes(self, task: Task) -> Planes:
        """Compute the pixels of a frame."""

    def _refine(self, score: np.ndarray, mask_logits, probabilities, image,
                settings) -> np.ndarray:
        """Return the score grouped into objects."""
        return refine(score, mask_logits, probabilities, image, settings)


def check_shapes(mask_logits: Any, probabilities: np.ndarray, network_size: tuple[int, int],
                 output_size: tuple[int, int]) -> None:
    """
    Raise ValueError where the shapes of a network's output disagree or sizes are empty.

    Also where probabilities are not finite; the readout itself finds masks that are not.
    """
    if mask_logits.ndim != 3 or probabilities.ndim != 2:
        raise ValueError(
            'expected mask logits [N, h, w] and class probabilities [N, K], not '
            f'{tuple(mask_logits.shape)} and {probabilities.shape}')
    if mask_logits.shape[0] != probabilities.shape[0] or 0 in mask_logits.shape:
        raise ValueError(
            f'mask logits {tuple(mask_logits.shape)} and class probabilities '
            f'{probabilities.shape} must agree in their number of queries')
    if not np.isfinite(probabilities).all():
        raise ValueError('class probabilities must be finite')
    if not 1 <= probabilities.shape[1] <= UNKNOWN_ID:
        raise ValueError(
            f'a map holds 1 to {UNKNOWN_ID} classes, not {probabilities.shape[1]}')
    if min(*network_size, *output_size) < 1:
        raise ValueError(f'sizes must be positive: {network_size}, {output_size}')


def _check_queries(weights: np.ndarray, thresholds: np.ndarray, count: int) -> None:
    if np.ndim(weights) != 2 or len(weights) != count or np.shape(
            thresholds) != weights.shape[1:] or weights.shape[1] >= NO_QUERY:
        raise ValueError(f'expected query weights [{count}, Q] and thresholds [Q], not '
                         f'{np.shape(weights)} and {np.shape(thresholds)}')


def _answer_in_regions(mask: Optional[np.ndarray], score: Optional[np.ndarray],
                       winning: Optional[np.ndarray], regions: Sequence[RegionScores],
                       thresholds: np.ndarray) -> None:
    """Raise the query maps inside of regions to what these answer, in place."""
    for region in regions:
        reaching = np.flatnonzero(region.scores >= thresholds)
        if mask is not None and len(reaching):
            q = reaching[region.scores[reaching].argmax()]
            better = region.inside & (winning[region.window] < region.scores[q])
            mask[region.window][better] = q
        if score is not None:
            np.maximum(score[region.window], region.scores.max(), where=region.inside,
                       out=score[region.window])
