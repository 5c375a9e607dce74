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
The fast readout on the CPU: masks times scores without an [N, H, W] or [K, H, W] buffer.

``readout.levels`` makes the class scores L of a band of rows and bounds their error; here the
band is folded into the maps of the frame before the next one is made. Max-logit, energy, EAM and
UNO are 1-Lipschitz in the largest of their L_k, so they err by ``tolerance`` at most, and RbA by
SCORE_TOLERANCES times it. The queries of language are more columns of the same pass, with the
same bound on each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
import threading
from typing import Optional

import cv2
import numpy as np
from owseg_ros.compiled import compile_all
from owseg_ros.readout import kernels
from owseg_ros.readout.levels import Levels, Plan, SCORE_TOLERANCES, Scratch
from owseg_ros.readout.maps import ALL_MAPS, Maps, NO_QUERY, ReadoutSettings, UNLABELLED_ID
from owseg_ros.readout.objects import refine
from owseg_ros.readout.readout import check_shapes, Readout, Task
from owseg_ros.readout.scores import AnomalyScore

__all__ = ['anomaly_scores', 'CpuReadout', 'read_out', 'SCORE_TOLERANCES', 'TOLERANCE']

# Bounds RbA by 1e-3, with what rounding adds; mostly the error is far smaller.
TOLERANCE = 1.9e-4

_MAX_THREADS = 8
# Geometries that are kept: cameras of different sizes, with queries and without, take turns.
_KEPT_PLANS = 8

# Takes scratch, rows of the output and L there, [columns, rows, W].
_FoldBand = Callable[[Scratch, slice, np.ndarray], None]


class _ClassFold:
    """
    Folds the classes into the ids, the confidence and the score of a frame, at output size.

    count: number of classes, the first columns of L; column: of the score's own, None without.
    ids: uint8 argmax_k L_k; labels: the same with min_confidence applied; score: float32.
    """

    def __init__(self, size: tuple[int, int], count: int, score: Optional[AnomalyScore] = None,
                 column: Optional[int] = None, want_ids: bool = False,
                 want_labels: bool = False, want_confidence: bool = False,
                 min_confidence: float = 0.0):
        self._count, self._kind, self._column = count, score, column
        self._min_confidence = np.float32(min_confidence)
        want_labels, want_ids = (want_labels and min_confidence > 0,
                                 want_ids or want_labels and not min_confidence > 0)
        self.ids = np.empty(size, np.uint8) if want_ids else None
        self.labels = np.empty(size, np.uint8) if want_labels else self.ids
        self.confidence = np.empty(size, np.uint8) if want_confidence else None
        self.score = np.empty(size, np.float32) if score is not None else None
        self._need_best = want_ids or want_labels or want_confidence or (
            score is not None and (score.needs_best or score.needs_ids))

    def __call__(self, scratch: Scratch, rows: slice, levels: np.ndarray) -> None:
        size = levels.shape[1:]
        best = ids = None
        if self._need_best:
            best = scratch.get('best', size)
            ids = scratch.get('ids', size, np.uint8) if self.ids is None else self.ids[rows]
            kernels.best_class(levels, self._count, best, ids)
        if self.labels is not self.ids:
            labels = self.labels[rows]
            labels[...] = ids
            labels[best < self._min_confidence] = UNLABELLED_ID
        if self.confidence is not None:
            cv2.convertScaleAbs(best, dst=self.confidence[rows], alpha=255.0)
        if self.score is not None:
            sums = [scratch.get(f'sum_{i}', size) for i in range(self._kind.sums)]
            if sums:
                self._kind.add_up(levels, self._count, sums, scratch.get('spare', size))
            plane = None if self._column is None else levels[self._column]
            self.score[rows] = self._kind.finish(sums, best, ids, plane)


class _QueryFold:
    """
    Folds the queries into the query maps of a frame, at output size.

    first: index of their first column; the others say what is wanted, see readout.Task.
    """

    def __init__(self, size: tuple[int, int], first: int, thresholds: np.ndarray,
                 want_mask: bool, want_score: bool, want_winning: bool):
        self._first = first
        # Rounded up, so that as float32 they are reached by the same scores.
        self._thresholds = _not_below(thresholds)
        self.mask = np.full(size, NO_QUERY, np.uint8) if want_mask else None
        self.score = np.zeros(size, np.float32) if want_score else None
        self.winning = (np.full(size, -np.inf, np.float32)
                        if want_mask and want_winning else None)

    def __call__(self, scratch: Scratch, rows: slice, levels: np.ndarray) -> None:
        if self.score is not None:
            kernels.highest_query(levels, self._first, self._thresholds, self.score[rows])
        if self.mask is not None:
            winning = (scratch.get('best', levels.shape[1:]) if self.winning is None
                       else self.winning[rows])
            kernels.winning_query(levels, self._first, self._thresholds, NO_QUERY,
                                  self.mask[rows], winning)


def _not_below(numbers: np.ndarray) -> np.ndarray:
    """Return the least float32 that are not below some numbers."""
    found = np.asarray(numbers, np.float32)
    below = found < np.asarray(numbers)
    return np.where(below, np.nextafter(found, np.float32(np.inf)), found)


@dataclass(frozen=True)
class _CpuPlanes:
    """See readout.Planes."""

    classes: _ClassFold
    asked: _QueryFold

    def ids(self) -> np.ndarray:
        return self.classes.ids

    def semantic(self) -> np.ndarray:
        return self.classes.labels

    def confidence(self) -> np.ndarray:
        return self.classes.confidence

    def score(self) -> np.ndarray:
        return self.classes.score

    def queries(self) -> tuple[
            Optional[np.ndarray], Optional[np.ndarray], Optional[np.ndarray]]:
        return self.asked.mask, self.asked.score, self.asked.winning


class CpuReadout(Readout):
    """
    Turns the network's output into maps; keeps its buffers from one frame to the next.

    tolerance: bound on the error of each L_k against the reference; SCORE_TOLERANCES times it
        bounds that of RbA, see readout.levels. 0 evaluates every query everywhere.
    threads: workers that share the rows; 0 takes one a core, 8 at most. The maps do not depend
        on their number.
    exact_fraction: of the last frame, the share of queries and blocks that needed evaluation.

    One object serves one thread at a time. The maps that a call returns are the caller's own. The
    first object on a machine takes some seconds, see owseg_ros.compiled.
    """

    def __init__(self, tolerance: float = TOLERANCE, threads: int = 1):
        if not tolerance >= 0:
            raise ValueError(f'tolerance must be 0 or more, not {tolerance}')
        if threads < 0:
            raise ValueError(f'threads must be 0 (automatic) or more, not {threads}')
        compile_all()
        self.tolerance = float(tolerance)
        self.threads = threads or min(_MAX_THREADS, cv2.getNumberOfCPUs())
        self._pool = (ThreadPoolExecutor(self.threads - 1, thread_name_prefix='owseg_readout')
                      if self.threads > 1 else None)
        self._scratch = [Scratch() for _ in range(self.threads)]
        self._plans: dict[tuple, Plan] = {}
        self.exact_fraction = 0.0

    def _planes(self, task: Task) -> _CpuPlanes:
        probabilities, size = task.probabilities, task.output_size
        want_classes = (
            task.score is not None or task.semantic or task.confidence or task.ids)
        if not want_classes:
            probabilities = probabilities[:, :0]
        own, column = _own_column(task.score, probabilities, task.outlier,
                                  probabilities.shape[1])
        classes = _ClassFold(size, probabilities.shape[1], task.score, column, task.ids,
                             task.semantic, task.confidence, task.min_confidence)
        queries = _QueryFold(size, probabilities.shape[1] + len(own), task.query_thresholds,
                             task.query_mask, task.query_score, task.winning)
        folds = ((classes, want_classes), (queries, task.query_mask or task.query_score))
        self._read(task.mask_logits, [probabilities, *own, task.query_weights],
                   probabilities.shape[1], task.network_size, size,
                   [fold for fold, wanted in folds if wanted])
        return _CpuPlanes(classes, queries)

    def _refine(self, score: np.ndarray, mask_logits, probabilities, image,
                settings) -> np.ndarray:
        return refine(score, mask_logits, probabilities, image, settings, share=self._share)

    def anomaly_scores(self, mask_logits: np.ndarray, probabilities: np.ndarray,
                       network_size: tuple[int, int], output_size: tuple[int, int],
                       scores: Sequence[AnomalyScore],
                       outlier: Optional[np.ndarray] = None) -> dict[str, np.ndarray]:
        """
        Return several scores of one frame by name, float32 [H, W] each; arguments as when called.

        The masks are evaluated once, whatever the number of scores.
        """
        check_shapes(mask_logits, probabilities, network_size, output_size)
        columns, folds = [probabilities], {}
        for score in scores:
            own, column = _own_column(
                score, probabilities, outlier, probabilities.shape[1] + len(columns) - 1)
            columns += own
            folds[score.name] = _ClassFold(
                tuple(output_size), probabilities.shape[1], score, column)
        self._read(mask_logits, columns, probabilities.shape[1], network_size,
                   tuple(output_size), list(folds.values()))
        return {name: fold.score for name, fold in folds.items()}

    def scores(self, mask_logits: np.ndarray, probabilities: np.ndarray,
               network_size: tuple[int, int]) -> np.ndarray:
        """Return L, float32 [K, H, W] at network size, freshly allocated."""
        check_shapes(mask_logits, probabilities, network_size, network_size)
        found = np.empty((probabilities.shape[1], *network_size), np.float32)

        def keep(scratch: Scratch, rows: slice, levels: np.ndarray) -> None:
            found[:, rows] = levels

        self._read(mask_logits, [probabilities], len(found), network_size, tuple(network_size),
                   [keep])
        return found

    def _read(self, mask_logits: np.ndarray, columns: Sequence[np.ndarray], num_classes: int,
              network_size: tuple[int, int], output_size: tuple[int, int],
              folds: Sequence[_FoldBand]) -> None:
        """Make L of [N, columns] arrays side by side and give it to the folds, band by band."""
        matrix = columns[0] if len(columns) == 1 else np.concatenate(columns, axis=1)
        if not matrix.shape[1]:
            return
        plan = self._plan(mask_logits.shape[1:], tuple(network_size), output_size,
                          matrix.shape[1])
        levels = Levels(plan, mask_logits, matrix, num_classes, self.tolerance)

        def finish(scratch: Scratch, parts: Iterable[tuple[slice, np.ndarray]]) -> None:
            for rows, planes in parts:
                for fold in folds:
                    fold(scratch, rows, planes)

        def work(worker: int, bands: range) -> None:
            scratch = self._scratch[worker]
            finish(scratch, levels.walk(scratch, bands))

        shares = self._share(work, range(len(plan.bands)))
        finish(self._scratch[0], levels.seams(self._scratch, shares))
        self.exact_fraction = levels.exact_fraction

    def _plan(self, *key) -> Plan:
        """Return the plan of such sizes and columns; the latest few are kept."""
        plan = self._plans.pop(key, None) or Plan(*key)
        while len(self._plans) >= _KEPT_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[key] = plan
        return plan

    def _share(self, work: Callable[[int, range], None], items: range) -> list[range]:
        """Run work(worker, share) over items dealt out to the workers; return the shares."""
        edges = [-(-i * len(items) // self.threads) for i in range(self.threads + 1)]
        shares = [items[start:stop] for start, stop in zip(edges, edges[1:]) if start < stop]
        futures = [self._pool.submit(work, worker, share)
                   for worker, share in enumerate(shares[1:], start=1)]
        try:
            work(0, shares[0])
        finally:
            # They have our buffers.
            wait(futures)
        for future in futures:
            future.result()
        return shares


def _own_column(score: Optional[AnomalyScore], probabilities: np.ndarray,
                outlier: Optional[np.ndarray],
                index: int) -> tuple[list[np.ndarray], Optional[int]]:
    """Return the column of S that a score has, [N, 1], and its index; [] and None without."""
    if score is None or not score.column:
        return [], None
    return [score.weights(probabilities, outlier)[:, None]], index


_LOCAL = threading.local()


def read_out(mask_logits: np.ndarray, probabilities: np.ndarray, network_size: tuple[int, int],
             output_size: tuple[int, int], settings: ReadoutSettings, maps=ALL_MAPS,
             outlier: Optional[np.ndarray] = None, image: Optional[np.ndarray] = None,
             query_weights: Optional[np.ndarray] = None,
             query_thresholds: Optional[np.ndarray] = None) -> Maps:
    """
    Return the Maps of one frame; see CpuReadout, of which each thread keeps one.

    mask_logits: float [N, h, w]; probabilities: float [N, K]; sizes are (height, width).
    """
    return _thread_readout()(
        mask_logits, probabilities, network_size, output_size, settings, maps, outlier, image,
        query_weights=query_weights, query_thresholds=query_thresholds)


def anomaly_scores(mask_logits: np.ndarray, probabilities: np.ndarray,
                   network_size: tuple[int, int], output_size: tuple[int, int],
                   scores: Sequence[AnomalyScore],
                   outlier: Optional[np.ndarray] = None) -> dict[str, np.ndarray]:
    """
    Return several scores of one frame by name, float32 [H, W]; see CpuReadout.anomaly_scores.

    scores: as readout.scores.make_score opens them.
    """
    return _thread_readout().anomaly_scores(
        mask_logits, probabilities, network_size, output_size, scores, outlier)


def _thread_readout() -> CpuReadout:
    readout = getattr(_LOCAL, 'readout', None)
    if readout is None:
        readout = _LOCAL.readout = CpuReadout()
    return readout
