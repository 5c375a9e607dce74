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
Stretching a frame to the size of the network and normalising it, in one compiled pass.

Bit by bit what cv2.resize with INTER_AREA and a table look-up give, where the frame is hardly more
than twice as wide as the network's input: OpenCV averages along a row once for each row of the
result that it is part of; here it is done once.
"""

from __future__ import annotations

from functools import lru_cache
import math

from numba import float32, types
import numpy as np
from owseg_ros.compiled import array_types, compile_all, compiled

_EPSILON = 1e-3
_MOST_COLUMNS = 3

_WORDS = types.Array(types.uint32, 1, 'A', readonly=True, aligned=False)
_INTEGERS, _, _ = array_types(types.int64, readonly=True)
_, _OFFSETS, _ = array_types(types.uintp, readonly=True)
_FLOATS, _FLOATS_2D, _ = array_types(float32, readonly=True)


def _taps(source: int, target: int) -> list[list[tuple[int, np.float32]]]:
    """Return the pixels that each pixel of the result covers, and the share of each in it."""
    scale = source / target
    found = []
    for index in range(target):
        begin = index * scale
        end = begin + scale
        cell = min(scale, source - begin)
        last = min(math.floor(end), source - 1)
        first = min(math.ceil(begin), last)
        taps = [(first - 1, (first - begin) / cell)] if first - begin > _EPSILON else []
        taps += [(pixel, 1.0 / cell) for pixel in range(first, last)]
        if end - last > _EPSILON:
            taps.append((last, min(end - last, 1.0, cell) / cell))
        found.append([(pixel, np.float32(share)) for pixel, share in taps])
    return found


@lru_cache(maxsize=16)
def plan(source: tuple[int, int], target: tuple[int, int]) -> tuple[np.ndarray, ...] | None:
    """
    Return what `stretch` needs to know of two sizes, (height, width); None where it does not do.

    It does where neither side grows, they do not both shrink by a whole number, for which OpenCV
    has another way, and no pixel of the result covers more than three columns.
    """
    if any(old < new for old, new in zip(source, target)) or all(
            old % new == 0 for old, new in zip(source, target)):
        return None
    columns = _taps(source[1], target[1])
    most = max(map(len, columns))
    if most > _MOST_COLUMNS:
        return None
    compile_all()
    # A share of zero adds a zero.
    columns = [taps + [(taps[0][0], np.float32(0))] * (most - len(taps)) for taps in columns]
    rows = _taps(source[0], target[0])
    shares = [[taps[tap][1] for taps in columns] for tap in range(most)]
    return (
        np.array([[3 * taps[tap][0] for taps in columns] for tap in range(most)], np.uintp),
        np.repeat(np.array(shares, np.float32), 4, axis=1),
        np.cumsum([0, *map(len, rows)]).astype(np.int64),
        np.array([row for taps in rows for row, _ in taps], np.int64),
        np.array([share for taps in rows for _, share in taps], np.float32))


def stretch(pixels: np.ndarray, planned: tuple[np.ndarray, ...], tables: np.ndarray,
            out: np.ndarray, flip: bool = False) -> None:
    """
    Write a frame into the planes of the network's input.

    pixels: uint8 [H, W, 3], rows contiguous and perhaps padded; planned: what `plan` returned;
    tables: float32 [3, 256] and out: float32 [3, h, w], both contiguous and in RGB order; flip:
    whether the frame is in BGR order.
    """
    height, width, _ = pixels.shape
    step = pixels.strides[0]
    flat = np.lib.stride_tricks.as_strided(
        pixels, ((height - 1) * step + 3 * width,), (1,), writeable=False)
    # The last pixel of all has no byte behind it.
    end = np.zeros(3 * width + 1, np.uint8)
    end[:-1] = flat[-3 * width:]
    taps, columns = planned[1].shape
    cells = np.empty((taps, columns), np.uint8)
    _stretch(_words(flat), _words(end), height - 1, step, *planned, tables, out, flip, cells,
             cells.view(np.uint32), np.empty((2, columns), np.float32))


def _words(values: np.ndarray) -> np.ndarray:
    """Return what each byte and the three behind it are, uint32 [n - 3], of uint8 [n]."""
    words = np.ndarray((max(0, len(values) - 3),), np.uint32, values, strides=(1,))
    words.setflags(write=False)
    return words


@compiled(types.void(
    _WORDS, _WORDS, types.int64, types.int64, _OFFSETS, _FLOATS_2D, _INTEGERS, _INTEGERS, _FLOATS,
    _FLOATS_2D, array_types(float32, readonly=False)[2], types.boolean,
    array_types(types.uint8, readonly=False)[1], array_types(types.uint32, readonly=False)[1],
    array_types(float32, readonly=False)[1]))
def _stretch(words, end, last, step, offsets, shares, starts, rows, row_shares, tables, out, flip,
             cells, pixels, sums):
    """
    Stretch and look up; `end` is the row `last`, `cells` are the bytes of `pixels`.

    A pixel is moved as one word: its three bytes and one more, which nobody looks at in the end.
    """
    width, size = out.shape[2], cells.shape[1]
    line, total = sums[0], sums[1]
    row = -1
    for y in range(out.shape[1]):
        for tap in range(starts[y], starts[y + 1]):
            if rows[tap] != row:
                row = rows[tap]
                source, begin = words, np.uintp(row * step)
                if row == last:
                    source, begin = end, np.uintp(0)
                for column in range(len(offsets)):
                    offset, found = offsets[column], pixels[column]
                    for x in range(width):
                        found[x] = source[begin + offset[x]]
                if len(offsets) == 2:
                    # The usual case in one go, with the same sums.
                    one, two, share, share2 = cells[0], cells[1], shares[0], shares[1]
                    for x in range(size):
                        line[x] = (np.float32(one[x]) * share[x]
                                   + np.float32(two[x]) * share2[x])
                else:
                    line[:] = np.float32(0)
                    for column in range(len(offsets)):
                        byte, share = cells[column], shares[column]
                        for x in range(size):
                            line[x] += np.float32(byte[x]) * share[x]
            part = row_shares[tap]
            if tap == starts[y]:
                for x in range(size):
                    total[x] = part * line[x]
            else:
                for x in range(size):
                    total[x] += part * line[x]
        values = cells[0]
        for x in range(size):
            values[x] = np.uint8(np.int32(np.rint(total[x])))
        for channel in range(3):
            index = 2 - channel if flip else channel
            table, plane = tables[index], out[index, y]
            for x in range(width):
                plane[x] = table[values[4 * x + channel]]
