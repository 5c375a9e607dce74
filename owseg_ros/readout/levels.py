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
The class scores ``L = S^T sigmoid(up(M))`` of a frame, a band of rows at a time.

Evaluating every query at every pixel (RbA eq. 2) costs N sigmoids a pixel, yet nearly everywhere
a mask is flat: all on or all off. Three bounds say which queries need it. S [N, columns] are the
weights, for the classes the probabilities P.

1. A sigmoid lies in 0..1, so leaving out a set D of queries changes L_k by no more than
   ``sum_{q in D} S_qk``: where the class probabilities of the queries left out sum to less than
   epsilon, no L_k, and not RbA either, changes by more than epsilon.
2. Bilinear resampling is a convex combination and the sigmoid is monotone, so inside a block of
   pixels both ``sigmoid(up(M))`` and the blend ``up(sigmoid(M))``, which is cheap at low
   resolution, lie within the range of sigmoid(M) over the pixels that the block is made from.
   Replacing the one by the other for a set R of queries changes L by no more than

       |dL_k| <= sum_{q in R} S_qk * (max sigmoid(M_q) - min sigmoid(M_q))

3. tanh is 1-Lipschitz and so is resampling to the size of the output, being convex: the bounds
   hold there too, and that of RbA is the sum over the classes.

Queries are left out for the whole frame and replaced block by block, those that matter least
first, as long as (1) and (2) together stay within ``tolerance`` for each column, and within
SCORE_TOLERANCES times it for the sum over the classes: ``tolerance`` bounds the error of every
L_k, whatever the network produced, and SCORE_TOLERANCES times it that of RbA. All others are
evaluated exactly. Where every class rejects a pixel, (2) stays below FAINT_SHARE of the best of
them, so that the label is that of the exact L there, too. Rounding and the tanh of
readout.kernels add about 1e-5.

A band of rows is made, folded and forgotten, so no array has both all columns and all pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import math
from typing import Optional

import numpy as np
from owseg_ros.readout import kernels
from owseg_ros.readout.taps import Taps

SCORE_TOLERANCES = 5
# How much of the tolerance may go into queries that are left out altogether.
LEFT_OUT = 1e-3
# What little there is of the classes decides the label of a pixel that all of them reject: the
# error of L is at most this share of the best class, where that is least in the block.
FAINT_SHARE = 0.3

# A block is large enough to outweigh the calls that start it and small enough for the L2 cache.
BLOCK_ROWS = 32
BLOCK_COLUMNS = 256
# Columns that loops take at once; those left behind them take several times as long.
VECTORS = 32
# So that two or four threads have as much to do.
BANDS_TOGETHER = 4
# Bands have fewer rows where there are so many columns that L would have more floats than this.
BAND_FLOATS = 1 << 20


def _edges(size: int, unit: int, length: int, together: int = 1) -> np.ndarray:
    """
    Return where parts of about so many pixels begin, in whole units, and the end, int64.

    together: what their number is a multiple of, where there are so many.
    """
    count = max(1, round(size / length))
    if count > together:
        count = together * round(count / together)
    edges = unit * np.linspace(0, size / unit, count + 1).round().astype(np.int64)
    edges[-1] = size
    return np.unique(np.minimum(edges, size))


class Scratch:
    """A worker's own buffers: grown once, then reused as views of any shape."""

    def __init__(self):
        self._buffers: dict[str, np.ndarray] = {}

    @property
    def nbytes(self) -> int:
        """Return the size of all buffers."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def get(self, name: str, shape: Sequence[int], dtype=np.float32) -> np.ndarray:
        """Return an array of that shape with anything in it; a name has always one dtype."""
        size = math.prod(shape)
        buffer = self._buffers.get(name)
        if buffer is None or buffer.size < size:
            buffer = self._buffers[name] = np.empty(size, dtype)
        return buffer[:size].reshape(shape)


class Plan:
    """
    The bands and blocks of one geometry.

    mask_size, network_size, output_size: (height, width); columns: those of S.
    bands: (start, stop) rows of the network size; output_rows: the rows of the output that each
    band completes.
    """

    def __init__(self, mask_size: tuple[int, int], network_size: tuple[int, int],
                 output_size: tuple[int, int], columns: int):
        self.network_size, self.output_size = network_size, output_size
        self.same = mask_size == network_size
        rows, self.across = (Taps.between(*sizes) for sizes in zip(mask_size, network_size))
        most = BAND_FLOATS // max(1, columns * network_size[1])
        length = max(1, min(BLOCK_ROWS, most))
        edges = _edges(
            network_size[0], len(rows.phases) or 1, length, BANDS_TOGETHER).tolist()
        self.bands = list(zip(edges[:-1], edges[1:]))
        self.rows = [rows.part(*band) for band in self.bands]
        self.block_edges = _edges(
            network_size[1], math.lcm(len(self.across.phases) or 1, VECTORS), BLOCK_COLUMNS)
        self.widest_block = int(np.diff(self.block_edges).max())
        self.resampled = network_size != output_size
        self.output_rows = [slice(*band) for band in self.bands]
        if self.resampled:
            self._plan_output()

    def _plan_output(self) -> None:
        """
        Find the rows of the output that each band completes.

        A row is made from two rows of the network size, of the band that has the second one, or
        of that and the last row of the band before, which is why bands begin with it.
        """
        rows, self.output_across = (
            Taps.between(*sizes) for sizes in zip(self.network_size, self.output_size))
        edges = [0, *np.searchsorted(rows.second, [stop for _, stop in self.bands]).tolist()]
        self.output_rows = [slice(*pair) for pair in zip(edges[:-1], edges[1:])]
        self.output_taps = [rows.part(part.start, part.stop, band[0] - 1)
                            for part, band in zip(self.output_rows, self.bands)]
        self.seams = [int((taps.first == 0).sum()) for taps in self.output_taps]


class Levels:
    """
    L of one frame.

    mask_logits: float [N, h, w]; matrix: float [N, columns], S; num_classes: how many of its
    columns, the first ones, are classes; tolerance: see the module's docstring, 0 evaluates every
    query that matters everywhere.

    Raises ValueError on the way where mask logits that matter are not finite.
    """

    def __init__(self, plan: Plan, mask_logits: np.ndarray, matrix: np.ndarray,
                 num_classes: int, tolerance: float):
        self._plan = plan
        self._masks = np.ascontiguousarray(mask_logits, np.float32)
        weights = np.asarray(matrix, np.float32)
        # What a query may do to each column, and last to RbA, in tolerances.
        stakes = np.concatenate([
            np.abs(weights), weights[:, :num_classes].sum(axis=1)[:, None] / SCORE_TOLERANCES],
            axis=1)
        worst = stakes.max(axis=1)
        order = np.argsort(worst)
        lost = np.cumsum(stakes[order], axis=0).max(axis=1)
        gone = min(int((lost <= LEFT_OUT * tolerance).sum()), len(order) - 1)
        self._kept = np.sort(order[gone:])
        self._tolerance = np.float32(tolerance - (lost[gone - 1] if gone else 0))
        self._weights = np.zeros((len(self._kept) + 1, matrix.shape[1]), np.float32)
        self._weights[:-1] = weights[self._kept]
        self._stakes, self._worst = stakes[self._kept], worst[self._kept]
        self._classes = num_classes
        self._evaluated = [0] * len(plan.bands)

    @property
    def exact_fraction(self) -> float:
        """Return the share of all queries and blocks that was evaluated exactly."""
        plan = self._plan
        blocks = len(plan.bands) * (len(plan.block_edges) - 1)
        return sum(self._evaluated) / (blocks * len(self._masks))

    def walk(self, scratch: Scratch, bands: range) -> Iterator[tuple[slice, np.ndarray]]:
        """
        Yield (rows, L), slices of the output size that together are the rows of these bands.

        L: float32 [columns, rows, width], C-contiguous, which the next step overwrites.
        bands: consecutive indices of plan.bands. Rows between them and the bands before, if there
        are any, are left to `seams`.
        """
        plan, columns = self._plan, self._weights.shape[1]
        if not plan.resampled:
            for j in bands:
                yield plan.output_rows[j], self._band(scratch, j, 0)
            return
        # A row of the output may need the last row of the band before.
        last = scratch.get('last', (columns, plan.network_size[1]))
        for j in bands:
            levels = self._band(scratch, j, 1)
            skipped = 0
            if j > bands.start:
                levels[:, 0] = last
            elif j:
                skipped = plan.seams[j]
                scratch.get('head', last.shape)[...] = levels[:, 1]
            last[...] = levels[:, -1]
            yield from self._resample(scratch, levels, j, skipped)

    def seams(self, scratches: Sequence[Scratch],
              shares: Sequence[range]) -> Iterator[tuple[slice, np.ndarray]]:
        """
        Yield what `walk` left out between the shares of several workers, as it does.

        scratches: those with which the workers walked; shares: the bands of each.
        """
        plan = self._plan
        if not plan.resampled:
            return
        shape = self._weights.shape[1], plan.network_size[1]
        for before, after, share in zip(scratches, scratches[1:], shares[1:]):
            both = after.get('levels', (shape[0], 2, shape[1]))
            both[:, 0], both[:, 1] = before.get('last', shape), after.get('head', shape)
            yield from self._resample(after, both, share.start, 0, plan.seams[share.start])

    def _band(self, scratch: Scratch, j: int, above: int) -> np.ndarray:
        """Return L of band j at network size, [columns, above + rows, width]."""
        plan, taps = self._plan, self._plan.rows[j]
        count, columns, block = len(self._kept), self._weights.shape[1], plan.widest_block
        lines = int(taps.second[-1] - taps.first[0]) + 1
        low, together = lines * self._masks.shape[2], kernels.ROWS_TOGETHER * block + 16
        levels = scratch.get(
            'levels', (columns, above + len(taps.share), plan.network_size[1]))
        self._evaluated[j] = kernels.fill_band(
            self._masks, self._kept, self._weights, self._stakes, self._worst,
            self._tolerance, self._classes, FAINT_SHARE, plan.same, *taps.arrays,
            *plan.across.arrays, plan.across.phases, plan.block_edges, levels, above,
            scratch.get('sigmoid', (count, low)), scratch.get('total', (columns, low)),
            scratch.get('rest', (columns, low)),
            scratch.get('wide_rest', (columns, lines, block)),
            scratch.get('wide', (count, lines, block)),
            scratch.get('tile', (columns, together)),
            scratch.get('lines', (kernels.TOGETHER, together)))
        if self._evaluated[j] < 0:
            raise ValueError('mask logits must be finite')
        return levels

    def _resample(self, scratch: Scratch, levels: np.ndarray, j: int, start: int,
                  stop: Optional[int] = None) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield rows from start to stop of the output rows that band j completes, if any."""
        plan = self._plan
        rows = range(plan.output_rows[j].start, plan.output_rows[j].stop)[start:stop]
        if not rows:
            return
        taps = plan.output_taps[j].part(start, start + len(rows))
        resized = scratch.get('resized', (len(levels), len(rows), plan.output_size[1]))
        kernels.resample(levels, *taps.arrays, *plan.output_across.arrays,
                         plan.output_across.phases,
                         scratch.get('wide_rows', (2, plan.output_size[1])), resized)
        yield slice(rows.start, rows.stop), resized
