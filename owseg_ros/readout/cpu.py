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
The fast readout on the CPU: masks times scores without an [N, H, W] buffer.

``L = P^T sigmoid(up(M))`` (RbA eq. 2) costs N sigmoids a pixel, yet nearly everywhere a mask is
flat: all on or all off. Two values are cheap at low resolution: the blend ``up(sigmoid(M))``,
and the range of sigmoid(M) over a tile of pixels. Bilinear resampling is a convex combination
and the sigmoid is monotone, so inside a tile both ``sigmoid(up(M))`` and ``up(sigmoid(M))`` lie
within that range, and replacing one by the other changes L by no more than

    |dL_k| <= sum_q P_qk * (max sigmoid(M_q) - min sigmoid(M_q))

over the queries q that are replaced. Each block of tiles replaces the queries that matter least,
as long as these sums stay within ``tolerance`` for each class and within SCORE_TOLERANCES times
that over all classes together; it evaluates the others exactly. Resampling L to the output size
keeps the bounds, being convex, and tanh is 1-Lipschitz: so ``tolerance`` bounds the error of
every L_k, and SCORE_TOLERANCES times it that of RbA, whatever the network produced. Max-logit,
energy, EAM and UNO are 1-Lipschitz in the largest of their L_k too, and err by ``tolerance`` at
most. The queries of language are more columns of the same pass, with the same bound on each.
Rounding adds a few 1e-6.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import threading
from typing import Optional, Sequence

import cv2
import numpy as np
from owseg_ros.readout.maps import ALL_MAPS, Maps, NO_QUERY, ReadoutSettings, UNLABELLED_ID
from owseg_ros.readout.readout import check_shapes, Readout, Task
from owseg_ros.readout.reference import interpolation_matrix
from owseg_ros.readout.scores import AnomalyScore

# Half a step of the 8-bit confidence map, in the worst case; mostly the error is far smaller.
TOLERANCE = 2e-3
SCORE_TOLERANCES = 5

# The flatness of masks is judged in tiles. A row of tiles is a block, as long as it is not too
# wide: enough pixels to outweigh the calls that start it, few enough to stay in the L2 cache.
TILE_COLUMNS = 32
BLOCK_TILES = 32
BLOCK_PIXELS = 24000
BLOCK_MIN_ROWS = 16

_MAX_THREADS = 8
# Geometries whose buffers are kept: cameras with queries and without take turns.
_KEPT_PLANS = 2

# OpenBLAS multiplies small matrices without packing them, twice as fast at our shapes.
_SMALL_PRODUCT = 1000000


@dataclass(frozen=True)
class _Band:
    """Rows or columns out0:out1 of the network size, and the in0:in1 that they are made from."""

    out0: int
    out1: int
    in0: int
    in1: int


class _Axis:
    """
    How one axis of the masks is resampled to network size, in bands.

    scale: the whole factor between the sizes, else 0; bands then consist of whole input pixels.
    padding: how often the border is repeated on each side of the input.
    """

    def __init__(self, size_in: int, size_out: int, scale: int, padding: int):
        self.scale = scale
        self._padding = padding
        self._size = size_out
        self._matrix = np.pad(interpolation_matrix(size_in, size_out).astype(np.float32),
                              ((0, 0), (padding, padding)))

    def bands(self, length: int) -> list[_Band]:
        """Return bands of about so many output pixels that cover the axis."""
        unit = self.scale or 1
        count = max(1, round(self._size / length))
        edges = unit * np.unique(
            np.linspace(0, self._size // unit, count + 1).round().astype(int))
        return [self.band(*pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist())]

    def band(self, start: int, stop: int) -> _Band:
        """Return the band of output start:stop; with padding, a neighbour on both sides."""
        if self.scale and self._padding:
            return _Band(start, stop, start // self.scale, stop // self.scale + 2)
        used = np.flatnonzero(self._matrix[start:stop].any(axis=0))
        return _Band(start, stop, int(used[0]), int(used[-1]) + 1)

    def weights(self, band: _Band) -> np.ndarray:
        """Return the float32 [out, in] matrix of a band."""
        return np.ascontiguousarray(self._matrix[band.out0:band.out1, band.in0:band.in1])


class _Scratch:
    """A worker's own buffers: grown once, then reused as views of any shape."""

    def __init__(self):
        self._buffers: dict[str, np.ndarray] = {}

    def get(self, name: str, shape, dtype=np.float32) -> np.ndarray:
        size = int(np.prod(shape))
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


class _Plan:
    """The tiles and blocks of one geometry and the buffers that one frame needs."""

    def __init__(self, mask_shape, num_classes: int, network_size):
        count, height, width = mask_shape
        self.scale = (network_size[0] // height, network_size[1] // width)
        if network_size[0] % height or network_size[1] % width:
            self.scale = (0, 0)
        # Rows are padded, because planes are stacked on each other to be enlarged in one call.
        rows = _Axis(height, network_size[0], self.scale[0], 1)
        columns = _Axis(width, network_size[1], self.scale[1], 0)
        self.tiles = columns.bands(TILE_COLUMNS)
        block_width = min(network_size[1], BLOCK_TILES * TILE_COLUMNS)
        self.rows = rows.bands(max(BLOCK_MIN_ROWS, BLOCK_PIXELS // block_width))
        self.columns = [
            columns.band(group[0].out0, group[-1].out1) for group in (
                self.tiles[i:i + BLOCK_TILES] for i in range(0, len(self.tiles), BLOCK_TILES))]
        self.row_weights = [rows.weights(band) for band in self.rows]
        self.column_weights = [np.ascontiguousarray(columns.weights(band).T)
                               for band in self.columns]
        self.half = np.empty((count, height + 2, width), np.float32)
        self.tanh = np.empty_like(self.half)
        self.low_scores = np.empty((num_classes, height + 2, width), np.float32)
        self.scores = np.empty((num_classes, *network_size), np.float32)
        self.identity = np.eye(num_classes, dtype=np.float32)

    def upsample(self, scratch: _Scratch, planes: np.ndarray, j: int, i: int) -> np.ndarray:
        """Return planes [n, in, in] of block (j, i) at network size, [n, out, out]."""
        column = self.columns[i]
        count, height, width = planes.shape
        scale_y, scale_x = self.scale
        if scale_y:
            # One call for the whole stack: planes meet only in rows that are cut away.
            full = scratch.get('full', (count, height * scale_y, width * scale_x))
            cv2.resize(planes.reshape(-1, width), (width * scale_x, count * height * scale_y),
                       dst=full.reshape(-1, width * scale_x), interpolation=cv2.INTER_LINEAR)
            left = column.out0 - column.in0 * scale_x
            return full[:, scale_y:-scale_y, left:left + column.out1 - column.out0]
        rows, columns = self.row_weights[j], self.column_weights[i]
        wide = scratch.get('wide', (count, height, columns.shape[1]))
        np.matmul(planes.reshape(-1, width), columns, out=wide.reshape(-1, columns.shape[1]))
        full = scratch.get('full', (count, len(rows), columns.shape[1]))
        return np.matmul(rows, wide, out=full)


def _product(weights: np.ndarray, planes: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write weights [K, n] times planes [n, rows, width] to out [K, rows, width]."""
    rows, width = planes.shape[1:]
    fit = max(1, min(rows, _SMALL_PRODUCT // (weights.size * width)))
    while rows % fit:
        fit -= 1
    shape = (rows // fit, fit * width)
    np.matmul(weights, planes.reshape(len(planes), *shape).transpose(1, 0, 2),
              out=out.reshape(len(out), *shape).transpose(1, 0, 2))
    return out


def _longest_prefix(stakes: np.ndarray, tiles: np.ndarray, tolerance: float) -> int:
    """Return the largest n for which stakes[:, :n] @ tiles[:n] is nowhere above tolerance."""
    low, high = 0, len(tiles)
    while low < high:
        middle = (low + high + 1) // 2
        if (stakes[:, :middle] @ tiles[:middle]).max() <= tolerance:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass
class _Partial:
    """What one worker found over its share of the classes, at output size."""

    best: Optional[np.ndarray]
    ids: Optional[np.ndarray]
    sums: list[np.ndarray]


@dataclass(frozen=True)
class _Levels:
    """At network size: L of the classes, float32 [K, H, W], own planes of scores, L of queries."""

    classes: np.ndarray
    own: dict[str, np.ndarray]
    queries: np.ndarray


@dataclass(frozen=True)
class _Folded:
    """All classes of a frame, folded, and what its score needs beside them."""

    partial: _Partial
    plane: Optional[np.ndarray]
    score: Optional[AnomalyScore]

    def finish(self) -> np.ndarray:
        return self.score.finish(
            self.partial.sums, self.partial.best, self.partial.ids, self.plane)


@dataclass(frozen=True)
class _CpuPlanes:
    """See readout.Planes; what it gives by reference lies in the readout's buffers."""

    readout: CpuReadout
    task: Task
    query_levels: np.ndarray
    folded: _Folded

    def ids(self) -> np.ndarray:
        return self.folded.partial.ids

    def semantic(self) -> np.ndarray:
        ids = self.folded.partial.ids.copy()
        if self.task.min_confidence > 0:
            low = self.folded.partial.best < np.float32(self.task.min_confidence)
            ids[low] = UNLABELLED_ID
        return ids

    def confidence(self) -> np.ndarray:
        return cv2.convertScaleAbs(self.folded.partial.best, alpha=255.0)

    def score(self) -> np.ndarray:
        return self.folded.finish()

    def queries(self) -> tuple[
            Optional[np.ndarray], Optional[np.ndarray], Optional[np.ndarray]]:
        return self.readout.fold_queries(self.query_levels, self.task)


class CpuReadout(Readout):
    """
    Turns the network's output into maps; keeps its buffers from one frame to the next.

    tolerance: bound on the error of each L_k against the reference; SCORE_TOLERANCES times it
        bounds that of the anomaly score, see the module's docstring. 0 evaluates every query
        everywhere.
    threads: workers that share the blocks and the classes; 0 takes one a core, 8 at most.

    One object serves one thread at a time. The maps that a call returns are the caller's own.
    """

    def __init__(self, tolerance: float = TOLERANCE, threads: int = 1):
        if not tolerance >= 0:
            raise ValueError(f'tolerance must be 0 or more, not {tolerance}')
        if threads < 0:
            raise ValueError(f'threads must be 0 (automatic) or more, not {threads}')
        self.tolerance = float(tolerance)
        self.threads = threads or min(_MAX_THREADS, cv2.getNumberOfCPUs())
        self._pool = (ThreadPoolExecutor(self.threads - 1, thread_name_prefix='owseg_readout')
                      if self.threads > 1 else None)
        self._scratch = [_Scratch() for _ in range(self.threads)]
        self._plans: dict[tuple, _Plan] = {}
        self.exact_fraction = 0.0

    def _planes(self, task: Task) -> _CpuPlanes:
        want_best = task.semantic or task.confidence
        scores = [task.score] if task.score is not None else []
        probabilities = task.probabilities
        if not (scores or want_best):
            probabilities = probabilities[:, :0]
        levels = self._levels(task.mask_logits, probabilities, task.network_size, scores,
                              task.outlier, task.query_weights)
        return _CpuPlanes(self, task, levels.queries, self._fold(
            levels, task.output_size, task.score, task.semantic or task.ids, want_best))

    def anomaly_scores(self, mask_logits: np.ndarray, probabilities: np.ndarray,
                       network_size: tuple[int, int], output_size: tuple[int, int],
                       scores: Sequence[AnomalyScore],
                       outlier: Optional[np.ndarray] = None) -> dict[str, np.ndarray]:
        """
        Return several scores of one frame by name, float32 [H, W] each; arguments as when called.

        The masks are evaluated once, whatever the number of scores.
        """
        check_shapes(mask_logits, probabilities, network_size, output_size)
        levels = self._levels(mask_logits, probabilities, network_size, scores, outlier)
        return {score.name: self._fold(levels, tuple(output_size), score).finish()
                for score in scores}

    def scores(self, mask_logits: np.ndarray, probabilities: np.ndarray,
               network_size: tuple[int, int]) -> np.ndarray:
        """Return L, float32 [K, H, W] at network size: a view that the next call overwrites."""
        check_shapes(mask_logits, probabilities, network_size, network_size)
        return self._levels(mask_logits, probabilities, network_size, (), None).classes

    def _levels(self, mask_logits, probabilities, network_size, scores,
                outlier: Optional[np.ndarray],
                query_weights: Optional[np.ndarray] = None) -> _Levels:
        """Return the masks weighed by classes, by the columns of some scores and by queries."""
        count = probabilities.shape[1]
        own = [score for score in scores if score.column]
        columns = [score.weights(probabilities, outlier)[:, None] for score in own]
        if query_weights is not None and query_weights.shape[1]:
            columns.append(query_weights)
        matrix = np.concatenate([probabilities, *columns], axis=1) if columns else probabilities
        if not matrix.shape[1]:
            nothing = np.empty((0, *network_size), np.float32)
            return _Levels(nothing, {}, nothing)
        planes = self._weigh(self._plan(mask_logits.shape, matrix.shape[1], tuple(network_size)),
                             mask_logits, matrix, count)
        return _Levels(planes[:count], {
            score.name: plane for score, plane in zip(own, planes[count:])},
            planes[count + len(own):])

    def _plan(self, *key) -> _Plan:
        """Return the plan of mask shape, columns and network size; the latest few are kept."""
        plan = self._plans.pop(key, None) or _Plan(*key)
        while len(self._plans) >= _KEPT_PLANS:
            del self._plans[next(iter(self._plans))]
        self._plans[key] = plan
        return plan

    def _share(self, task, items) -> list:
        """Run task(worker, share) over items dealt out to the workers; return the results."""
        shares = [items[i * len(items) // self.threads:(i + 1) * len(items) // self.threads]
                  for i in range(self.threads)]
        shares = [share for share in shares if len(share)]
        futures = [self._pool.submit(task, worker, share)
                   for worker, share in enumerate(shares[1:], start=1)]
        return [task(0, shares[0])] + [future.result() for future in futures]

    def _weigh(self, plan: _Plan, mask_logits, matrix, num_classes: int) -> np.ndarray:
        """Return S^T sigmoid(up(M)), float32 [columns, H, W]: matrix is S [N, columns]."""
        # sigmoid(x) = (1 + tanh(x / 2)) / 2: the halves go into the weights and the argument.
        weights = np.ascontiguousarray(np.multiply(matrix, 0.5, dtype=np.float32).T)
        half = plan.half
        np.multiply(mask_logits, np.float32(0.5), out=half[:, 1:-1], casting='same_kind')
        half[:, 0], half[:, -1] = half[:, 1], half[:, -2]
        np.tanh(half, out=plan.tanh)
        _product(weights, plan.tanh, plan.low_scores)
        np.add(plan.low_scores, weights.sum(axis=1)[:, None, None], out=plan.low_scores)
        if plan.scale == (1, 1):
            plan.scores[...] = plan.low_scores[:, 1:-1]
            self.exact_fraction = 0.0
            return plan.scores
        blocks = self._exact_queries(plan, weights, num_classes)
        self.exact_fraction = (
            sum(len(queries) for *_, queries in blocks) / (len(blocks) * len(mask_logits)))

        def evaluate(worker, share):
            for j, i, queries in share:
                self._evaluate(plan, self._scratch[worker], weights, j, i, queries)

        self._share(evaluate, blocks)
        return plan.scores

    def _exact_queries(self, plan: _Plan, weights,
                       num_classes: int) -> list[tuple[int, int, np.ndarray]]:
        """Return (row, column, queries to evaluate) of each block."""
        count, _, width = plan.tanh.shape
        high = np.empty((count, len(plan.rows), width), np.float32)
        low = np.empty_like(high)
        for j, band in enumerate(plan.rows):
            np.max(plan.tanh[:, band.in0:band.in1], axis=1, out=high[:, j])
            np.min(plan.tanh[:, band.in0:band.in1], axis=1, out=low[:, j])
        # Columns first: the reductions below then run along contiguous memory.
        high, low = cv2.transpose(high.reshape(-1, width)), cv2.transpose(low.reshape(-1, width))
        spread = np.empty((len(plan.tiles), count * len(plan.rows)), np.float32)
        for i, tile in enumerate(plan.tiles):
            np.subtract(high[tile.in0:tile.in1].max(axis=0), low[tile.in0:tile.in1].min(axis=0),
                        out=spread[i])
        spread = cv2.transpose(spread).reshape(count, len(plan.rows), len(plan.tiles))
        # What a query may do to each column, and last to RbA, in tolerances.
        stakes = np.concatenate([
            np.abs(weights), weights[:num_classes].sum(axis=0)[None] / SCORE_TOLERANCES])
        found = []
        for j in range(len(plan.rows)):
            for i in range(len(plan.columns)):
                tiles = spread[:, j, i * BLOCK_TILES:(i + 1) * BLOCK_TILES]
                order = np.argsort(tiles.max(axis=1) * stakes.max(axis=0))
                skipped = _longest_prefix(stakes[:, order], tiles[order], self.tolerance)
                found.append((j, i, np.sort(order[skipped:])))
        return found

    @staticmethod
    def _evaluate(plan: _Plan, scratch: _Scratch, weights, j: int, i: int, queries) -> None:
        """Write L in one block: some queries exactly, the others from low resolution."""
        count, num_classes = len(queries), len(weights)
        row, column = plan.rows[j], plan.columns[i]
        window = (slice(None), slice(row.in0, row.in1), slice(column.in0, column.in1))
        height, width = row.in1 - row.in0, column.in1 - column.in0
        # The first `count` planes are mask logits, the others class scores at low resolution
        # without the part of these queries: all are upsampled at once.
        planes = scratch.get('planes', (count + num_classes, height, width))
        if count:
            share = weights[:, queries]
            planes[:count] = plan.half[window][queries]
            _product(share, plan.tanh[window][queries], planes[count:])
            np.subtract(plan.low_scores[window], planes[count:], out=planes[count:])
        else:
            planes[...] = plan.low_scores[window]
        full = plan.upsample(scratch, planes, j, i)
        block = plan.scores[:, row.out0:row.out1, column.out0:column.out1]
        if count == 0:
            block[...] = full
            return
        share = np.concatenate([share, plan.identity], axis=1)
        if len(plan.columns) == 1:
            np.tanh(full[:count], out=full[:count])
            _product(share, full, block)
            return
        joined = scratch.get('joined', full.shape)
        np.tanh(full[:count], out=joined[:count])
        joined[count:] = full[count:]
        block[...] = _product(share, joined, scratch.get('block', block.shape))

    def _fold(self, levels: _Levels, size: tuple[int, int], score: Optional[AnomalyScore],
              want_ids: bool = False, want_best: bool = False) -> _Folded:
        """Fold the classes at output size into what a score, the ids and the best need."""
        want_ids = want_ids or (score is not None and score.needs_ids)
        want_best = want_best or want_ids or (score is not None and score.needs_best)

        def reduce(worker, classes):
            return self._reduce(self._scratch[worker], levels.classes, size, classes, want_ids,
                                want_best, score)

        if want_best or (score is not None and score.sums):
            first, *others = self._share(reduce, range(len(levels.classes)))
        else:
            first, others = _Partial(None, None, []), []
        for part in others:
            if want_ids:
                # Later classes have larger ids and win only where they are strictly better.
                np.copyto(first.ids, part.ids, where=part.best > first.best)
            if want_best:
                np.maximum(first.best, part.best, out=first.best)
            for total, more in zip(first.sums, part.sums):
                total += more
        plane = None if score is None else levels.own.get(score.name)
        if plane is not None and plane.shape != size:
            plane = cv2.resize(plane, size[::-1], interpolation=cv2.INTER_LINEAR)
        return _Folded(first, plane, score)

    def fold_queries(self, levels: np.ndarray, task: Task) -> tuple[
            Optional[np.ndarray], Optional[np.ndarray], Optional[np.ndarray]]:
        """Return what Planes.queries does, from L of the queries [Q, H, W] at network size."""
        size, thresholds = task.output_size, task.query_thresholds
        mask = np.full(size, NO_QUERY, np.uint8) if task.query_mask else None
        score = np.zeros(size, np.float32) if task.query_score else None
        if not len(levels):
            return mask, score, None

        def fold(worker, queries):
            return self._fold_queries(self._scratch[worker], levels, thresholds, size, queries,
                                      mask is not None, score is not None)

        winning = None
        for best, ids, highest in self._share(fold, range(len(levels))):
            if mask is not None:
                # Later queries win only where they are strictly better.
                better = ids != NO_QUERY if winning is None else best > winning
                np.copyto(mask, ids, where=better)
                winning = best if winning is None else np.maximum(winning, best, out=winning)
            if score is not None:
                np.maximum(score, highest, out=score)
        if score is not None:
            np.minimum(score, 1, out=score)
        return mask, score, winning

    @staticmethod
    def _fold_queries(scratch: _Scratch, levels, thresholds, size: tuple[int, int], queries,
                      want_ids: bool, want_score: bool):
        """Fold some queries at output size: the best that reach, their ids, and the highest."""
        plane = scratch.get('plane', size)
        best = scratch.get('best', size) if want_ids else None
        ids = scratch.get('ids', size, np.uint8) if want_ids else None
        better = scratch.get('better', size, np.bool_)
        reaches = scratch.get('reaches', size, np.bool_)
        highest = scratch.get('highest', size) if want_score else None
        if want_ids:
            best.fill(-np.inf)
            ids.fill(NO_QUERY)
        if want_score:
            highest.fill(0)
        for q in queries:
            level = levels[q]
            # Resampling is convex: what is nowhere reached here is nowhere reached there.
            reached = want_ids and level.max() >= thresholds[q]
            if not (reached or want_score):
                continue
            if level.shape != size:
                level = cv2.resize(level, size[::-1], dst=plane,
                                   interpolation=cv2.INTER_LINEAR)
            if want_score:
                np.maximum(highest, level, out=highest)
            if reached:
                np.greater(level, best, out=better)
                np.greater_equal(level, thresholds[q], out=reaches)
                np.logical_and(better, reaches, out=better)
                np.copyto(best, level, where=better)
                np.copyto(ids, np.uint8(q), where=better)
        return best, ids, highest

    @staticmethod
    def _reduce(scratch: _Scratch, levels, size: tuple[int, int], classes, want_ids: bool,
                want_best: bool, score: Optional[AnomalyScore]) -> _Partial:
        """Fold some classes at output size into the best, its id and the sums of a score."""
        plane = scratch.get('plane', size)
        spare = scratch.get('spare', size)
        best = scratch.get('best', size) if want_best else None
        ids = scratch.get('ids', size, np.uint8) if want_ids else None
        greater = scratch.get('greater', size, np.uint8)
        sums = [scratch.get(f'sum_{i}', size) for i in range(score.sums if score else 0)]
        for total in sums:
            total.fill(0)
        for k in classes:
            first = k == classes[0]
            level = levels[k]
            if level.shape != size:
                level = cv2.resize(level, size[::-1], dst=plane,
                                   interpolation=cv2.INTER_LINEAR)
            if want_best and first:
                np.copyto(best, level)
                if want_ids:
                    ids.fill(k)
            elif want_best:
                if want_ids:
                    # greater is 0 or 255 and k exceeds every id so far: max() selects.
                    cv2.compare(level, best, cv2.CMP_GT, dst=greater)
                    np.bitwise_and(greater, np.uint8(k), out=greater)
                    np.maximum(ids, greater, out=ids)
                np.maximum(level, best, out=best)
            if sums:
                score.add(level, sums, spare)
        return _Partial(best, ids, sums)


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
