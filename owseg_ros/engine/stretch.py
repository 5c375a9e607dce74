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

_BYTES, _, _ = array_types(types.uint8, readonly=True)
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
    return (
        np.array([[3 * taps[tap][0] for taps in columns] for tap in range(most)], np.uintp),
        np.array([[taps[tap][1] for taps in columns] for tap in range(most)], np.float32),
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
    columns = 3 * out.shape[2]
    _stretch(flat, step, *planned, tables, out, flip, np.empty((2, columns), np.float32),
             np.empty(columns, np.uint8))


# No fastmath: products must be rounded before they are added, as OpenCV does.
@compiled(types.void(
    _BYTES, types.int64, _OFFSETS, _FLOATS_2D, _INTEGERS, _INTEGERS, _FLOATS, _FLOATS_2D,
    *array_types(float32, readonly=False)[2:], types.boolean,
    array_types(float32, readonly=False)[1], array_types(types.uint8, readonly=False)[0]))
def _stretch(pixels, step, offsets, shares, starts, rows, row_shares, tables, out, flip, sums,
             values):
    width = out.shape[2]
    line, total = sums[0], sums[1]
    first, second, third = line[:width], line[width:2 * width], line[2 * width:]
    one, two = np.uintp(1), np.uintp(2)
    last = -1
    for y in range(out.shape[1]):
        for tap in range(starts[y], starts[y + 1]):
            if rows[tap] != last:
                last = rows[tap]
                row = pixels[last * step:]
                if len(offsets) == 2:
                    # The usual case in one go, with the same sums.
                    offset, share, offset2, share2 = offsets[0], shares[0], offsets[1], shares[1]
                    for x in range(width):
                        p, a, q, b = offset[x], share[x], offset2[x], share2[x]
                        first[x] = np.float32(row[p]) * a + np.float32(row[q]) * b
                        second[x] = np.float32(row[p + one]) * a + np.float32(row[q + one]) * b
                        third[x] = np.float32(row[p + two]) * a + np.float32(row[q + two]) * b
                else:
                    line[:] = np.float32(0)
                    for column in range(len(offsets)):
                        offset, share = offsets[column], shares[column]
                        for x in range(width):
                            p, a = offset[x], share[x]
                            first[x] += np.float32(row[p]) * a
                            second[x] += np.float32(row[p + one]) * a
                            third[x] += np.float32(row[p + two]) * a
            part = row_shares[tap]
            if tap == starts[y]:
                for x in range(3 * width):
                    total[x] = part * line[x]
            else:
                for x in range(3 * width):
                    total[x] += part * line[x]
        for x in range(3 * width):
            values[x] = np.uint8(np.int32(np.rint(total[x])))
        for channel in range(3):
            index = 2 - channel if flip else channel
            table, plane = tables[index], out[index, y]
            for x in range(width):
                plane[x] = table[values[channel * width + x]]
