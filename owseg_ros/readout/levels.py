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
evaluated exactly. Rounding adds a few 1e-6.

A band of rows is made, folded and forgotten, so no array has both all columns and all pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np
from owseg_ros.readout.reference import interpolation_matrix

SCORE_TOLERANCES = 5
# How much of the tolerance may go into queries that are left out altogether.
LEFT_OUT = 0.1

# A block is large enough to outweigh the calls that start it and small enough for the L2 cache.
BLOCK_ROWS = 16
BLOCK_COLUMNS = 256
# Bands have fewer rows where there are so many columns that L would have more floats than this.
BAND_FLOATS = 1 << 20

# BLAS libraries start threads for larger products, which stand in the way of ours. OpenBLAS does
# above this number of multiplications.
_SMALL_PRODUCT = 1 << 18
_LEAST_WIDTH = 32


@dataclass(frozen=True)
class Band:
    """Rows or columns out0:out1 of the network size, and the in0:in1 that they are made from."""

    out0: int
    out1: int
    in0: int
    in1: int


class _Axis:
    """
    How one axis of the masks is resampled to network size, in bands.

    scale: the whole factor between the sizes, else 0; bands then consist of whole input pixels.
    """

    def __init__(self, size_in: int, size_out: int):
        self.scale = 0 if size_out % size_in else size_out // size_in
        self._size = size_out
        self._matrix = interpolation_matrix(size_in, size_out).astype(np.float32)

    def bands(self, length: int) -> list[Band]:
        """Return bands of about so many output pixels that cover the axis."""
        unit = self.scale or 1
        count = max(1, round(self._size / length))
        edges = unit * np.unique(
            np.linspace(0, self._size // unit, count + 1).round().astype(int))
        return [self._band(*pair) for pair in zip(edges[:-1].tolist(), edges[1:].tolist())]

    def _band(self, start: int, stop: int) -> Band:
        used = np.flatnonzero(self._matrix[start:stop].any(axis=0))
        return Band(start, stop, int(used[0]), int(used[-1]) + 1)

    def weights(self, band: Band) -> np.ndarray:
        """Return the float32 [out, in] matrix of a band."""
        return np.ascontiguousarray(self._matrix[band.out0:band.out1, band.in0:band.in1])


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
    bands: rows of the network size; output_rows: the rows of the output that each band completes.
    """

    def __init__(self, mask_size: tuple[int, int], network_size: tuple[int, int],
                 output_size: tuple[int, int], columns: int):
        self.network_size, self.output_size = network_size, output_size
        rows, across = (_Axis(*sizes) for sizes in zip(mask_size, network_size))
        self.scale = rows.scale, across.scale
        most = BAND_FLOATS // max(1, columns * network_size[1])
        self.bands = rows.bands(max(1, min(BLOCK_ROWS, most)))
        self.blocks = across.bands(BLOCK_COLUMNS)
        self.row_weights = [rows.weights(band) for band in self.bands]
        self.block_weights = [np.ascontiguousarray(across.weights(block).T)
                              for block in self.blocks]
        self.resampled = network_size != output_size
        self.output_rows = [slice(band.out0, band.out1) for band in self.bands]
        self.output_weights: list[np.ndarray] = []
        if self.resampled:
            self._plan_output(interpolation_matrix(
                network_size[0], output_size[0]).astype(np.float32))

    def _plan_output(self, matrix: np.ndarray) -> None:
        """
        Find the rows of the output that each band completes, and their weights.

        A row is made from two rows of the network size at most: of the band that has the second
        one, or of that and the last row of the band before, which is why bands begin with it.
        """
        last = matrix.shape[1] - 1 - (matrix[:, ::-1] != 0).argmax(axis=1)
        edges = [0, *np.searchsorted(last, [band.out1 for band in self.bands]).tolist()]
        self.output_rows = [slice(*pair) for pair in zip(edges[:-1], edges[1:])]
        for rows, band in zip(self.output_rows, self.bands):
            self.output_weights.append(
                np.ascontiguousarray(matrix[rows, max(0, band.out0 - 1):band.out1]))

    def enlarge(self, scratch: Scratch, planes: np.ndarray, j: int, i: int,
                spare: int = 0) -> np.ndarray:
        """
        Return planes [n, in, in] of block i of band j at network size, [n + spare, out, out].

        The spare planes at the end have anything in them.
        """
        block, scale = self.blocks[i], self.scale[1]
        count, height, width = planes.shape
        if scale > 1:
            wide = scratch.get('wide', (count, height, width * scale))
            cv2.resize(np.ascontiguousarray(planes).reshape(-1, width),
                       (width * scale, count * height), dst=wide.reshape(-1, width * scale),
                       interpolation=cv2.INTER_LINEAR)
            left = block.out0 - block.in0 * scale
            planes = wide[:, :, left:left + block.out1 - block.out0]
        elif not scale:
            weights = self.block_weights[i]
            wide = scratch.get('wide', (count, height, weights.shape[1]))
            np.matmul(planes, weights, out=wide)
            planes = wide
        rows = self.row_weights[j]
        full = scratch.get('full', (count + spare, len(rows), planes.shape[2]))
        np.matmul(rows, planes, out=full[:count])
        return full


def product(weights: np.ndarray, planes: np.ndarray, out: np.ndarray) -> None:
    """Write weights [c, n] times planes [n, rows, width] to out [c, rows, width], in pieces."""
    (columns, count), width = weights.shape, planes.shape[2]
    most = max(1, min(columns, _SMALL_PRODUCT // (count * _LEAST_WIDTH)))
    height = -(-columns // -(-columns // most))
    most = max(_LEAST_WIDTH, _SMALL_PRODUCT // (count * height))
    step = -(-width // -(-width // most))
    for top in range(0, columns, height):
        some = weights[top:top + height]
        for left in range(0, width, step):
            across = slice(left, left + step)
            np.matmul(some, planes[:, :, across].transpose(1, 0, 2),
                      out=out[top:top + height, :, across].transpose(1, 0, 2))


class Levels:
    """
    L of one frame.

    mask_logits: float [N, h, w]; matrix: float [N, columns], S; num_classes: how many of its
    columns, the first ones, are classes; tolerance: see the module's docstring, 0 evaluates every
    query that matters everywhere.
    """

    def __init__(self, plan: Plan, mask_logits: np.ndarray, matrix: np.ndarray,
                 num_classes: int, tolerance: float):
        self._plan, self._masks = plan, mask_logits
        # sigmoid(x) = (1 + tanh(x / 2)) / 2: the halves go into the weights and the argument.
        weights = np.ascontiguousarray(np.multiply(matrix, 0.5, dtype=np.float32).T)
        # What a query may do to each column, and last to RbA, in tolerances.
        stakes = np.concatenate([
            np.abs(weights), weights[:num_classes].sum(axis=0)[None] / SCORE_TOLERANCES])
        worst = stakes.max(axis=0)
        order = np.argsort(worst)
        lost = 2 * np.cumsum(stakes[:, order], axis=1).max(axis=0)
        gone = min(int((lost <= LEFT_OUT * tolerance).sum()), len(order) - 1)
        self._kept = np.sort(order[gone:])
        self._tolerance = np.float32(tolerance - (lost[gone - 1] if gone else 0))
        self._weights = np.ascontiguousarray(weights[:, self._kept])
        self._offsets = self._weights.sum(axis=1)
        self._stakes, self._worst = stakes[:, self._kept], worst[self._kept]
        self._evaluated = [0] * len(plan.bands)

    @property
    def exact_fraction(self) -> float:
        """Return the share of all queries and blocks that was evaluated exactly."""
        plan = self._plan
        return sum(self._evaluated) / (len(plan.bands) * len(plan.blocks) * len(self._masks))

    def walk(self, scratch: Scratch, bands: range) -> Iterator[tuple[slice, np.ndarray]]:
        """
        Yield (rows, L), slices of the output size that together are the rows of these bands.

        L: float32 [columns, rows, width], C-contiguous planes that the next step overwrites.
        bands: consecutive indices of plan.bands.
        """
        plan, columns = self._plan, len(self._weights)
        width, resampled = plan.network_size[1], plan.resampled
        last = scratch.get('last', (columns, width))
        # A row of the output may need the last row of the band before.
        for j in range(max(0, bands.start - resampled), bands.stop):
            band = plan.bands[j]
            buffer = scratch.get('levels', (columns, 1 + band.out1 - band.out0, width))
            levels = buffer[:, 1:]
            self._fill(scratch, j, levels)
            rows = plan.output_rows[j]
            if j >= bands.start and rows.start < rows.stop:
                if resampled:
                    buffer[:, 0] = last
                    yield rows, self._resample(scratch, buffer if j else levels, j)
                else:
                    yield rows, levels
            if resampled:
                last[...] = levels[:, -1]

    def _resample(self, scratch: Scratch, levels: np.ndarray, j: int) -> np.ndarray:
        """Return the rows of the output that band j completes, [columns, rows, width]."""
        weights, columns, width = self._plan.output_weights[j], *levels.shape[::2]
        tall = np.matmul(weights, levels, out=scratch.get('tall', (columns, len(weights), width)))
        wanted = self._plan.output_size[1]
        if wanted == width:
            return tall
        resized = scratch.get('resized', (columns, len(weights), wanted))
        cv2.resize(tall.reshape(-1, width), (wanted, columns * len(weights)),
                   dst=resized.reshape(-1, wanted), interpolation=cv2.INTER_LINEAR)
        return resized

    def _fill(self, scratch: Scratch, j: int, levels: np.ndarray) -> None:
        """Write L of band j, [columns, rows, width] at network size."""
        plan, band = self._plan, self._plan.bands[j]
        masks = self._masks[:, band.in0:band.in1]
        if len(self._kept) < len(masks):
            masks = masks[self._kept]
        tanh = scratch.get('tanh', masks.shape)
        np.multiply(masks, np.float32(0.5), out=tanh, casting='same_kind')
        np.tanh(tanh, out=tanh)
        low = scratch.get('low', (len(levels), *masks.shape[1:]))
        product(self._weights, tanh, low)
        np.add(low, self._offsets[:, None, None], out=low)
        if plan.scale == (1, 1):
            levels[...] = low
            return
        chosen = self._choose(tanh)
        for i, queries in enumerate(chosen):
            block = plan.blocks[i]
            self._fill_block(scratch, j, i, tanh, low, queries,
                             levels[:, :, block.out0:block.out1])
        self._evaluated[j] = sum(map(len, chosen))

    def _choose(self, tanh: np.ndarray) -> list[np.ndarray]:
        """Return the queries to evaluate exactly in each block of a band."""
        high, low = tanh.max(axis=1), tanh.min(axis=1)
        spread = np.stack([
            high[:, block.in0:block.in1].max(axis=1) - low[:, block.in0:block.in1].min(axis=1)
            for block in self._plan.blocks], axis=1)
        order = np.argsort(self._worst[:, None] * spread, axis=0)
        changes = self._stakes[:, order] * np.take_along_axis(spread, order, axis=0)
        totals = np.cumsum(changes, axis=1, out=changes).max(axis=0)
        replaced = (totals <= self._tolerance).sum(axis=0)
        return [np.sort(order[replaced[i]:, i]) for i in range(len(replaced))]

    def _fill_block(self, scratch: Scratch, j: int, i: int, tanh: np.ndarray, low: np.ndarray,
                    queries: np.ndarray, levels: np.ndarray) -> None:
        """Write L of a block: some queries exactly, the others from low resolution."""
        plan, count, columns = self._plan, len(queries), len(self._weights)
        band, across = plan.bands[j], slice(plan.blocks[i].in0, plan.blocks[i].in1)
        share, low = self._weights[:, queries], low[:, :, across]
        if not count:
            levels[...] = plan.enlarge(scratch, low, j, i)
            return
        # The first planes are mask logits, the others L at low resolution without the part of
        # these queries: all are enlarged at once. Where all queries are exact nothing is left.
        rest = columns if count < len(self._kept) else 0
        planes = scratch.get('planes', (count + rest, *low.shape[1:]))
        np.multiply(self._masks[self._kept[queries], band.in0:band.in1, across], np.float32(0.5),
                    out=planes[:count], casting='same_kind')
        if rest:
            product(share, tanh[queries, :, across], planes[count:])
            np.subtract(low, planes[count:], out=planes[count:])
        full = plan.enlarge(scratch, planes, j, i, spare=not rest)
        np.tanh(full[:count], out=full[:count])
        if rest:
            product(share, full[:count], levels)
            np.add(levels, full[count:], out=levels)
        else:
            # The constant part of the sigmoids is one more plane.
            full[count] = 1
            product(np.concatenate([share, self._offsets[:, None]], axis=1), full, levels)
