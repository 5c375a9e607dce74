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
The readout on a GPU: two Triton kernels from mask logits to the maps (readout.gpu_kernel).

The mask logits stay where the network left them; only the maps come to the host, where regions
are looked at (readout.readout). The pooling of objects, which goes through all masks, runs on the
GPU too.

Two bounds say what need not be computed, as on the CPU; S [N, columns] are the weights:

1. Leaving out a set D of queries for the whole frame changes L_k by no more than
   ``sum_{q in D} S_qk``, because a sigmoid lies in 0..1.
2. Taking a mask for flat within a tile changes L_k by half of its range there times S_qk, see
   readout.gpu_kernel.

Together they stay within ``tolerance`` for every column, and within SCORE_TOLERANCES times it for
the sum over the classes; (1) may use LEFT_OUT of that. So ``tolerance`` bounds the error of every
L_k, and SCORE_TOLERANCES times it that of RbA, whatever the network produced. Rounding adds a few
1e-6.

Needs torch and triton; without a GPU the kernel runs only in Triton's interpreter (environment
variable TRITON_INTERPRET=1), slowly, for tests.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass
import importlib
import os
import subprocess
from typing import Any, Callable, Optional

import numpy as np
from owseg_ros.errors import OwsegError
from owseg_ros.readout.cpu import SCORE_TOLERANCES, TOLERANCE
from owseg_ros.readout.levels import FAINT_SHARE, LEFT_OUT
from owseg_ros.readout.objects import ObjectSettings, refine, REST
from owseg_ros.readout.readout import Readout, Task
from owseg_ros.readout.taps import interpolation_taps

# A tile of the output is computed by one program; with the columns, what it keeps in registers:
# 40 of each of its threads, more where these are too few for one pixel.
TILE_ROWS, TILE_COLUMNS = 16, 32
MAX_CHUNK = 64
WARPS = 8
REGISTERS = 40 * 32 * WARPS
# Queries whose flatness is judged together, at most, and how many must fit for it to be judged;
# what is kept of a row of their masks: 16 registers of each thread.
SCREEN_WARPS = 4
MAX_BLOCK, MIN_BLOCK = 128, 8
WINDOW_FLOATS = 16 * 32 * SCREEN_WARPS
# Rows of the masks that a tile may need to be looked through for flat ones.
MAX_WINDOW_ROWS = 32

_KEPT_GEOMETRIES = 4
# Floats: parts of a copy start where the kernel may read four at once.
_ALIGNED = 4


class GpuReadoutError(OwsegError):
    """The readout cannot run on a GPU here; the message says what is missing and what to do."""


def interpreted() -> bool:
    """Return whether Triton interprets kernels on the CPU (TRITON_INTERPRET)."""
    return os.environ.get('TRITON_INTERPRET', '').lower() in ('1', 'true', 'yes', 'on', 'y')


def require_gpu_readout() -> None:
    """Raise GpuReadoutError where torch, triton, or a GPU that they can use is missing."""
    instead = 'or use readout: cpu'
    try:
        torch = importlib.import_module('torch')
    except (ImportError, OSError) as error:
        raise GpuReadoutError(f'the readout on the GPU needs torch: {_line(error)}; pip install '
                              f'torch, {instead}') from error
    try:
        importlib.import_module('triton')
    except (ImportError, OSError) as error:
        raise GpuReadoutError(f'the readout on the GPU needs triton: {_line(error)}; pip install '
                              f'triton, {instead}') from error
    if interpreted():
        return
    if not torch.cuda.is_available():
        raise GpuReadoutError(
            'the readout on the GPU needs a GPU that torch can use: see nvidia-smi, '
            f'CUDA_VISIBLE_DEVICES and whether torch {torch.__version__} is built for CUDA, '
            f'{instead}')


def on_gpu(array: Any) -> bool:
    """Return whether an array is a torch tensor on a GPU."""
    return bool(getattr(array, 'is_cuda', False))


class GpuReadout(Readout):
    """
    Turns the network's output into maps, as CpuReadout does; see Readout for the contract.

    mask_logits may be a float tensor of torch, on the GPU or not, or an array of numpy; everything
    else is numpy. They must not change while the call runs, and what wrote them must have ended.

    tolerance: bound on the error of each L_k against the reference; SCORE_TOLERANCES times it
    bounds that of RbA, see the module's docstring. 0 evaluates every query that matters.
    device: index of the GPU.

    Raises GpuReadoutError where it cannot run. One object serves one thread at a time. The maps
    that a call returns are the caller's own.
    """

    def __init__(self, tolerance: float = TOLERANCE, device: int = 0):
        if not tolerance >= 0:
            raise ValueError(f'tolerance must be 0 or more, not {tolerance}')
        require_gpu_readout()
        self.tolerance = float(tolerance)
        self._torch = importlib.import_module('torch')
        self._kernels = importlib.import_module('owseg_ros.readout.gpu_kernel')
        # Without a stream: in the interpreter, on tensors of the CPU.
        self._device = self._torch.device('cpu' if interpreted() else f'cuda:{device}')
        self._stream = None if interpreted() else self._torch.cuda.Stream(self._device)
        self._geometries: dict[tuple, _Geometry] = {}
        self.kept_fraction = 1.0

    @property
    def description(self) -> str:
        """Return where it runs, for people."""
        where = 'in the interpreter' if self._stream is None else (
            f'on {self._torch.cuda.get_device_name(self._device)}')
        return f'gpu (triton {importlib.import_module("triton").__version__} {where})'

    def _planes(self, task: Task) -> _GpuPlanes:
        wanted = {'semantic': task.semantic, 'confidence': task.confidence, 'ids': task.ids,
                  'score': task.score is not None, 'query_mask': task.query_mask,
                  'query_score': task.query_score, 'winning': task.winning}
        with self._work():
            outputs = self.outputs(task)
            self.launch(task, self._on_device(task.mask_logits), outputs)
            found = self._to_host({name: tensor for name, tensor in outputs.items()
                                   if wanted[name]})
        return _GpuPlanes(found)

    @contextlib.contextmanager
    def _work(self) -> Iterator[None]:
        """Work on the stream; raise GpuReadoutError where it fails."""
        try:
            with self._torch.cuda.stream(self._stream):
                yield
        except OwsegError:
            raise
        # Compilers, drivers and torch have no common base for what goes wrong in them.
        except Exception as error:
            instead = 'use readout: cpu'
            if isinstance(error, subprocess.CalledProcessError) or 'C compiler' in str(error):
                instead = ('Triton compiles what launches its kernels: install gcc and the '
                           f'headers of Python (python3-dev), or {instead}')
            raise GpuReadoutError(
                f'the readout failed {self.description}: {type(error).__name__}: '
                f'{_line(error)}; {instead}') from error

    def outputs(self, task: Task) -> dict[str, Any]:
        """
        Return uninitialised tensors on the device, [H, W], for what `launch` writes.

        Besides what a task asks for they are what goes with it, so that the kernel is compiled
        for a few combinations only.
        """
        torch = self._torch
        kinds = {}
        if task.semantic or task.confidence or task.ids or task.score is not None:
            kinds |= {'semantic': torch.uint8, 'confidence': torch.uint8}
        if task.ids:
            kinds['ids'] = torch.uint8
        if task.score is not None:
            kinds['score'] = torch.float32
        if task.query_mask or task.query_score:
            kinds |= {'query_mask': torch.uint8, 'query_score': torch.float32,
                      'winning': torch.float32}
        return {name: torch.empty(task.output_size, dtype=kind, device=self._device)
                for name, kind in kinds.items()}

    def launch(self, task: Task, masks: Any, outputs: dict[str, Any]) -> None:
        """Queue the kernels on torch's current stream; masks: a tensor on the device."""
        self.prepare(task, masks, outputs)()

    def prepare(self, task: Task, masks: Any, outputs: dict[str, Any]) -> Callable[[], object]:
        """Bring what the kernels need to the device; return what queues the kernels alone."""
        height, width = task.output_size
        classes = task.probabilities if 'semantic' in outputs else task.probabilities[:, :0]
        own = []
        if task.score is not None and task.score.column:
            own = [task.score.weights(task.probabilities, task.outlier)[:, None]]
        matrix = np.concatenate([classes, *own, task.query_weights], axis=1, dtype=np.float32)
        chunk = min(MAX_CHUNK, max(2, _power_of_two(matrix.shape[1])))
        chunks = -(-matrix.shape[1] // chunk)
        left_out = LEFT_OUT * self.tolerance
        kept, stakes = _matter(matrix, classes.shape[1], left_out)
        tops = np.float32(matrix[kept, :classes.shape[1]].max(axis=1, initial=0.0))
        self.kept_fraction = len(kept) / len(matrix)
        weights = np.zeros((len(matrix), chunks * chunk), np.float32)
        weights[:, :matrix.shape[1]] = matrix
        # Columns that are known to be zeros when a kernel is compiled take no registers.
        held = chunk if task.query_weights.shape[1] else max(1, min(chunk, matrix.shape[1]))
        rows = _power_of_two_below(min(TILE_ROWS, max(
            REGISTERS // (held * TILE_COLUMNS), 32 * WARPS // TILE_COLUMNS, 1)))
        geometry = self._geometry(tuple(masks.shape[1:]), tuple(task.network_size),
                                  (height, width), (rows, TILE_COLUMNS))
        fitting = WINDOW_FLOATS // geometry.window[1]
        kept, weights, stakes, tops, thresholds, gains, offsets = self._upload(
            kept, weights, stakes, tops, np.asarray(task.query_thresholds, np.float32),
            *getattr(task.score, 'tables', (np.empty(0, np.float32),) * 2))
        row_pixels, row_shares, column_pixels, column_shares = geometry.tables
        across, down = -(-width // TILE_COLUMNS), -(-height // rows)
        live, counts, flat_levels, launches = kept, None, None, []
        if fitting >= MIN_BLOCK and geometry.window[0] <= MAX_WINDOW_ROWS:
            # Of all queries, not of those kept: a frame that keeps fewer needs no other kernel.
            block = min(MAX_BLOCK, max(2, _power_of_two(len(matrix))),
                        _power_of_two_below(fitting))
            live, counts, flat_levels = self._per_tile(across * down, len(stakes), chunks * chunk)
            launches.append(lambda: self._kernels.screen[across, down, chunks](
                masks, *masks.stride(), kept, weights, stakes,
                tops if classes.shape[1] else None, len(stakes), row_pixels, column_pixels,
                height, width, self.tolerance - left_out, FAINT_SHARE, live, counts, flat_levels,
                SAMPLES=geometry.samples, WINDOW_ROWS=geometry.window[0],
                WINDOW_COLUMNS=geometry.window[1], TILE_ROWS=rows, TILE_COLUMNS=TILE_COLUMNS,
                CHUNK=chunk, CHUNKS=chunks, BLOCK=block, num_warps=SCREEN_WARPS,
                enable_fp_fusion=True))
        launches.append(lambda: self._kernels.read_out[across, down](
            masks, *masks.stride(), weights, live, len(stakes), counts, flat_levels,
            row_pixels, row_shares, column_pixels, column_shares, height, width, thresholds,
            gains, offsets, float(task.min_confidence),
            *map(outputs.get, ('semantic', 'ids', 'confidence', 'score', 'query_mask',
                               'query_score', 'winning')),
            task.query_weights.shape[1], CLASSES=classes.shape[1], OWN=len(own),
            SCORE=None if task.score is None else task.score.name, SAMPLES=geometry.samples,
            TILE_ROWS=rows, TILE_COLUMNS=TILE_COLUMNS, CHUNK=chunk, CHUNKS=chunks,
            num_warps=WARPS, enable_fp_fusion=True))
        return lambda: [launch() for launch in launches]

    def _per_tile(self, tiles: int, count: int, columns: int) -> tuple[Any, Any, Any]:
        """Return uninitialised memory for what the kernel screen writes."""
        torch = self._torch
        return (torch.empty((tiles, count), dtype=torch.int32, device=self._device),
                torch.empty(tiles, dtype=torch.int32, device=self._device),
                torch.empty((tiles, columns), dtype=torch.float32, device=self._device))

    def _refine(self, score: np.ndarray, mask_logits: Any, probabilities, image,
                settings: ObjectSettings) -> np.ndarray:
        return refine(score, mask_logits, probabilities, image, settings, self._pool)

    def _pool(self, score: np.ndarray, mask_logits: Any, votes: np.ndarray) -> np.ndarray:
        """Return step 2 of readout.objects."""
        with self._work():
            masks = self._on_device(mask_logits).flatten(1).float().sigmoid()
            own, vote = self._upload(score, np.asarray(votes, np.float32))
            tiny = float(np.finfo(np.float32).tiny)
            means = (masks @ own) / masks.sum(dim=1).clamp_min(tiny)
            weight = vote @ masks
            rest = (REST * (1 - weight)).clamp_min(1e-9)
            pooled = self._to_host({'': ((vote * means) @ masks + rest * own) / (weight + rest)})
        return pooled[''].reshape(score.shape)

    def _on_device(self, mask_logits: Any) -> Any:
        torch = self._torch
        if not isinstance(mask_logits, torch.Tensor):
            mask_logits = torch.from_numpy(np.ascontiguousarray(mask_logits))
        if mask_logits.dtype == torch.float64:
            mask_logits = mask_logits.float()
        return mask_logits.to(self._device)

    def _upload(self, *arrays: np.ndarray) -> list[Any]:
        """Return tensors on the device of 4-byte arrays, in one copy."""
        torch = self._torch
        sizes = [-(-array.size // _ALIGNED) * _ALIGNED for array in arrays]
        packed = torch.empty(sum(sizes), dtype=torch.float32, pin_memory=self._stream is not None)
        flat, start = packed.numpy(), 0
        for array, size in zip(arrays, sizes):
            flat[start:start + array.size] = np.ascontiguousarray(array).view(np.float32).ravel()
            start += size
        there = packed.to(self._device, non_blocking=True).split(sizes)
        return [part[:array.size].view(torch.int32) if array.dtype == np.int32
                else part[:array.size] for part, array in zip(there, arrays)]

    def _to_host(self, tensors: dict[str, Any]) -> dict[str, np.ndarray]:
        """Return arrays of the caller's own; waits for the stream."""
        # torch takes pinned memory back when the caller lets the map go.
        found = {name: self._torch.empty(
            tensor.shape, dtype=tensor.dtype, pin_memory=self._stream is not None).copy_(
                tensor, non_blocking=True) for name, tensor in tensors.items()}
        if self._stream is not None:
            self._stream.synchronize()
        return {name: tensor.numpy() for name, tensor in found.items()}

    def _geometry(self, *key) -> _Geometry:
        """Return the tables of some sizes; the latest few are kept."""
        geometry = self._geometries.pop(key, None) or _Geometry(*key, self._upload)
        while len(self._geometries) >= _KEPT_GEOMETRIES:
            del self._geometries[next(iter(self._geometries))]
        self._geometries[key] = geometry
        return geometry


class _Geometry:
    """
    Where the pixels of the output lie between those of the masks; sizes are (height, width).

    samples: 2 where the output has another size than the network, else 1. window: rows and
    columns of the masks that a tile of the output needs at most, of columns a power of two.
    tables: pixels and shares of the rows and of the columns, as the kernels take them.
    """

    def __init__(self, mask_size: tuple[int, int], network_size: tuple[int, int],
                 output_size: tuple[int, int], tile: tuple[int, int],
                 upload: Callable[..., list[Any]]):
        self.samples = 1 if network_size == output_size else 2
        spans, tables = [], []
        for sizes in zip(mask_size, network_size, output_size, tile):
            pixels, shares, span = self._axis(*sizes)
            spans.append(span)
            tables += [pixels, shares]
        self.window = spans[0], _power_of_two(spans[1])
        self.tables = upload(*tables)

    def _axis(self, mask: int, network: int, output: int,
              tile: int) -> tuple[np.ndarray, np.ndarray, int]:
        low, high, fraction = interpolation_taps(mask, network)
        pixels, shares = [low, high], [fraction]
        if self.samples == 2:
            first, second, blend = interpolation_taps(network, output)
            pixels = [low[first], high[first], low[second], high[second]]
            shares = [fraction[first], fraction[second], blend]
        starts = np.arange(0, output, tile)
        ends = np.minimum(starts + tile, output) - 1
        span = int((pixels[-1][ends] - pixels[0][starts]).max()) + 1
        return np.array(pixels, np.int32), np.array(shares, np.float32), span


@dataclass(frozen=True)
class _GpuPlanes:
    """See readout.Planes: arrays on the host."""

    arrays: dict[str, np.ndarray]

    def ids(self) -> np.ndarray:
        return self.arrays['ids']

    def semantic(self) -> np.ndarray:
        return self.arrays['semantic']

    def confidence(self) -> np.ndarray:
        return self.arrays['confidence']

    def score(self) -> np.ndarray:
        return self.arrays['score']

    def queries(self) -> tuple[
            Optional[np.ndarray], Optional[np.ndarray], Optional[np.ndarray]]:
        return tuple(map(self.arrays.get, ('query_mask', 'query_score', 'winning')))


def _matter(matrix: np.ndarray, classes: int,
            tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the queries that are not left out, int32 [n], and their stakes, float32 [n].

    matrix: S, float32 [N, columns], of which the first ones are classes. A stake is what a query
    may do to a column, or to the sum over the classes, of which SCORE_TOLERANCES times as much is
    allowed.
    """
    stakes = np.abs(matrix).max(axis=1, initial=0.0)
    np.maximum(stakes, matrix[:, :classes].sum(axis=1) / SCORE_TOLERANCES, out=stakes)
    order = np.argsort(stakes)
    gone = int((np.cumsum(stakes[order], dtype=np.float64) <= tolerance).sum())
    kept = np.sort(order[min(gone, len(order) - 1):]).astype(np.int32)
    return kept, stakes[kept]


def _power_of_two(number: int) -> int:
    """Return the least power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


def _power_of_two_below(number: int) -> int:
    """Return the largest power of two that is not above a number, which is 1 or more."""
    return 1 << (number.bit_length() - 1)


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300]
