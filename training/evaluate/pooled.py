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
Exact pooled pixel metrics of a set of any size, in constant memory.

Scores are mapped to integers whose order is that of the scores, strangest first.  They are
sorted in runs, known and anomalous pixels apart; runs beyond the memory limit go to a temporary
file (4 bytes a pixel, 8 for float64).  The result merges the runs block by block and sums up
precision, recall and fall-out over distinct scores, so it equals sorting all pixels at once.
"""

from __future__ import annotations

from collections.abc import Iterator
import os
import tempfile
from typing import Any, BinaryIO

import numpy as np

RUN_PIXELS = 1 << 24
MERGE_PIXELS = 1 << 22


def _to_keys(scores: np.ndarray, keys: np.dtype) -> np.ndarray:
    """Map floats to unsigned integers that ascend while the scores descend."""
    floats = np.dtype(f'f{keys.itemsize}')
    with np.errstate(over='ignore'):
        values = scores.astype(floats)
    if not np.isfinite(values).all():
        raise ValueError('anomaly scores must be finite')
    # Adding zero turns -0.0 into 0.0: they are equal as scores.
    values += floats.type(0)
    return _flip(values.view(keys))


def _flip(bits: np.ndarray) -> np.ndarray:
    width = bits.dtype.itemsize * 8
    rest = bits.dtype.type((1 << (width - 1)) - 1)
    return np.where(bits > rest, bits, bits ^ rest)


class _Run:
    """A sorted run, in memory or in a file, read in blocks from its start."""

    def __init__(self, values: np.ndarray | None, file: BinaryIO | None, offset: int,
                 length: int, dtype: np.dtype) -> None:
        self._values, self._file, self._offset = values, file, offset
        self._left, self._dtype = length, dtype
        self._position = 0
        self.block = np.empty(0, dtype)

    @property
    def more(self) -> bool:
        """Say whether there is something beyond the block."""
        return self._left > 0

    def load(self, count: int) -> None:
        """Read the next block where the last one is used up."""
        if self.block.size or not self._left:
            return
        count = min(count, self._left)
        if self._values is not None:
            self.block = self._values[self._position:self._position + count]
        else:
            assert self._file is not None
            self._file.seek(self._offset + self._position * self._dtype.itemsize)
            self.block = np.frombuffer(
                self._file.read(count * self._dtype.itemsize), self._dtype)
        self._position += count
        self._left -= count

    def take(self, count: int) -> np.ndarray:
        """Remove and return the first pixels of the block."""
        head, self.block = self.block[:count], self.block[count:]
        return head


class _Sorter:
    """Keys of one kind of pixel: a buffer and sorted runs in a temporary file."""

    def __init__(self, dtype: np.dtype, run_pixels: int, folder: str | None) -> None:
        self.dtype, self.run_pixels, self.folder = dtype, run_pixels, folder
        self.parts: list[np.ndarray] = []
        self.held = 0
        self.total = 0
        self.lengths: list[int] = []
        self.file: BinaryIO | None = None

    def add(self, keys: np.ndarray) -> None:
        self.total += keys.size
        while keys.size:
            head, keys = np.split(keys, [self.run_pixels - self.held])
            self.parts.append(head)
            self.held += head.size
            if self.held == self.run_pixels:
                self._spill()

    def _buffer(self) -> np.ndarray:
        keys = np.concatenate(self.parts) if self.parts else np.empty(0, self.dtype)
        keys.sort()
        return keys

    def _spill(self) -> None:
        if self.file is None:
            self.file = tempfile.TemporaryFile(prefix='owseg_scores_', dir=self.folder)
        keys = self._buffer()
        self.file.seek(0, os.SEEK_END)
        self.file.write(memoryview(keys).cast('B'))
        self.lengths.append(keys.size)
        self.parts, self.held = [], 0

    def runs(self) -> list[_Run]:
        runs, offset = [], 0
        for length in self.lengths:
            runs.append(_Run(None, self.file, offset, length, self.dtype))
            offset += length * self.dtype.itemsize
        if self.held:
            keys = self._buffer()
            self.parts = [keys]
            runs.append(_Run(keys, None, 0, keys.size, self.dtype))
        return runs

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
        self.parts, self.lengths = [], []


def _merged(known: list[_Run], anomalous: list[_Run], pixels: int,
            ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (keys ascending, known counts, anomalous counts); a key may open the next block."""
    runs = [(run, kind) for kind, group in enumerate((known, anomalous)) for run in group]
    block = max(4096, pixels // max(1, len(runs)))
    while True:
        for run, _ in runs:
            run.load(block)
        runs = [(run, kind) for run, kind in runs if run.block.size]
        if not runs:
            return
        # Unread pixels are no stranger than the last one of their run's block.
        bounds = [run.block[-1] for run, _ in runs if run.more]
        counted: list[tuple[np.ndarray, np.ndarray]] = []
        for wanted in (0, 1):
            parts = [run.take(int(np.searchsorted(run.block, min(bounds), 'right'))
                              if bounds else run.block.size)
                     for run, kind in runs if kind == wanted]
            values = np.concatenate(parts) if parts else np.empty(0, runs[0][0].block.dtype)
            counted.append(np.unique(values, return_counts=True))
        keys = np.union1d(counted[0][0], counted[1][0])
        counts = np.zeros((2, keys.size))
        for row, (values, number) in zip(counts, counted):
            row[np.searchsorted(keys, values)] = number
        yield keys, counts[0], counts[1]


class PooledCurve:
    """
    Exact AP, AuROC, FPR95 and best F1 of an anomaly score over all pixels of a set, streaming.

    dtype: float type of the scores; float64 is told apart by 64 bits, smaller ones by 32.
    Definitions are those of metrics.pixel_metrics: pooled over the set, never averaged over
    frames, ties count once (scikit-learn's average_precision_score, roc_auc_score, roc_curve).
    run_pixels: pixels that are held in memory before they go to a temporary file in folder
    (default: the system's).  Use as a context manager, or call close, to delete it.
    """

    def __init__(self, dtype: Any = np.float32, *, run_pixels: int = RUN_PIXELS,
                 merge_pixels: int = MERGE_PIXELS, folder: str | None = None) -> None:
        wide = np.dtype(dtype).itemsize > 4
        self.dtype = np.dtype(np.float64 if wide else dtype)
        self._keys = np.dtype(np.uint64 if wide else np.uint32)
        self._merge_pixels = merge_pixels
        self._sorters = tuple(_Sorter(self._keys, run_pixels, folder) for _ in range(2))

    def __enter__(self) -> PooledCurve:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget all pixels and delete the temporary files."""
        for sorter in self._sorters:
            sorter.close()

    @property
    def known(self) -> int:
        """Return the number of known pixels."""
        return self._sorters[0].total

    @property
    def anomalous(self) -> int:
        """Return the number of anomalous pixels."""
        return self._sorters[1].total

    def add(self, scores: np.ndarray, labels: np.ndarray) -> None:
        """
        Count the pixels of a frame.

        scores: float of any shape, higher is stranger; labels: the same shape, 0 known, 1
        anomaly, anything else void.  Raises ValueError when the shapes differ or the score of a
        pixel that is not void is not finite.
        """
        scores, labels = np.asarray(scores), np.asarray(labels)
        if scores.shape != labels.shape:
            raise ValueError(f'scores {scores.shape} and labels {labels.shape} differ')
        for kind, sorter in enumerate(self._sorters):
            sorter.add(_to_keys(scores[labels == kind], self._keys))

    def result(self) -> dict[str, float]:
        """
        Return AP, AuROC, FPR95, best_f1 and threshold.

        best_f1 is the largest F1 of pixels over all thresholds; threshold is the largest number
        of the scores' type below the score where it is reached, so that `score > threshold` (as
        SegmentMeIfYouCan segments) and `score >= threshold` both select that curve point, also
        where scores saturate at their maximum.
        Raises ValueError when one of the two kinds of pixels is missing.
        """
        negatives, positives = float(self.known), float(self.anomalous)
        if not negatives or not positives:
            raise ValueError('anomaly metrics need both known and anomalous pixels')
        hits = alarms = average_precision = area = 0.0
        fpr95 = best_f1 = best_key = None
        pending: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None
        blocks = _merged(*(s.runs() for s in self._sorters), self._merge_pixels)
        while True:
            block = next(blocks, None)
            if pending is not None:
                keys, known, anomalous = pending
                if block is not None and block[0][0] == keys[-1]:
                    # The last score of a block goes on in the next one.
                    block[1][0] += known[-1]
                    block[2][0] += anomalous[-1]
                    keys, known, anomalous = keys[:-1], known[:-1], anomalous[:-1]
                if keys.size:
                    tp, fp = hits + np.cumsum(anomalous), alarms + np.cumsum(known)
                    average_precision += float(np.sum(anomalous * tp / (tp + fp)))
                    area += float(np.sum(known * (2 * tp - anomalous) / 2))
                    reached = tp / positives >= 0.95
                    if fpr95 is None and reached[-1]:
                        fpr95 = float(fp[np.argmax(reached)] / negatives)
                    f1 = 2 * tp / (tp + fp + positives)
                    best = int(np.argmax(f1))
                    if best_f1 is None or f1[best] > best_f1:
                        best_f1, best_key = float(f1[best]), keys[best:best + 1]
                    hits, alarms = tp[-1], fp[-1]
            if block is None:
                break
            pending = block
        assert fpr95 is not None and best_f1 is not None and best_key is not None
        level = _flip(best_key).view(np.dtype(f'f{self._keys.itemsize}'))[0]
        floats = self.dtype.type
        return {'AP': average_precision / positives, 'AuROC': area / positives / negatives,
                'FPR95': fpr95, 'best_f1': best_f1,
                'threshold': float(np.nextafter(floats(level), floats(-np.inf)))}
