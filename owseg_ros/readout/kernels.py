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
The inner loops of the readout on the CPU; readout.levels, cpu and objects call them.

They are compiled for arrays whose types and layout their signatures fix. Loops run over
one-dimensional views with indices from 0 and call nothing, which is what the compiler makes
vector instructions of.
"""

from __future__ import annotations

import numba
from numba import float32, int32, types
import numpy as np
from owseg_ros.compiled import array_types, compiled, OPTIONS

# Queries that are summed together, so that a class score is read and written once for all.
TOGETHER = 4
# Rows of a block that are summed together.
ROWS_TOGETHER = 4

# No infinities are ruled out: a score of -inf means none.
_FASTMATH = {'nnan', 'nsz', 'contract'}

_FLOATS, _FLOATS_2D, _FLOATS_3D = array_types(float32, readonly=True)
_INTEGERS, _, _ = array_types(types.int64, readonly=True)
_, _BYTES_2D, _ = array_types(types.uint8, readonly=True)
_, _BYTES_OUT_2D, _ = array_types(types.uint8, readonly=False)
_FLOATS_OUT, _FLOATS_OUT_2D, _FLOATS_OUT_3D = array_types(float32, readonly=False)
_TAPS = (_INTEGERS, _INTEGERS, _FLOATS)

# Of logits: the sigmoid is 1 / (1 + 2^(gain * logit)).
_GAIN = np.float32(-np.log2(np.e))
# What has no bits after the point, and the whole numbers added to it as its last bits.
_SHIFT = np.float32(3 << 22)

# The least area of a mask, so that one that is nowhere divides by no zero.
_TINY = float(np.finfo(np.float32).tiny)

_inner = numba.njit(**OPTIONS, fastmath=_FASTMATH)
# For sums along a row, whose terms may be added in any order.
_summing = numba.njit(**OPTIONS, fastmath={*_FASTMATH, 'reassoc'})


def _compiled(signature):
    return compiled(signature, fastmath=_FASTMATH)


@_inner
def _tanh(x):
    """
    Return tanh(x) to 1e-6.

    The odd rational function of degrees 9 and 6 that errs least on [-7.9, 7.9], where it is 1.
    """
    x = min(max(x, float32(-7.9)), float32(7.9))
    square = x * x
    top = float32(-6.14021812e-09) * square + float32(7.15078859e-06)
    top = top * square + float32(2.69353690e-03)
    top = top * square + float32(1.27087201e-01)
    top = top * square + float32(9.99999157e-01)
    bottom = float32(1.96455727e-04) * square + float32(2.28360199e-02)
    bottom = bottom * square + float32(4.60417441e-01)
    bottom = bottom * square + float32(1)
    return x * top / bottom


@_inner
def _sigmoid(x):
    """
    Return 1 / (1 + 2^x), the sigmoid of x times _GAIN, to 1e-7 and to 1e-5 of itself.

    Also masks that are off count in proportion: where no class has a pixel, these decide which of
    them is the label. It ends at 0 exactly, beyond logits of -80, before floats become denormal.
    """
    x = min(max(x, float32(-120)), float32(120))
    # Its last bits are the nearest whole number, and the rest lies in [-0.5, 0.5].
    shifted = x + _SHIFT
    rest = x - (shifted - _SHIFT)
    # Of 2^rest, the polynomial of degree 5 whose share errs least.
    power = float32(1.3276466634e-03) * rest + float32(9.6755405614e-03)
    power = power * rest + float32(5.5507134646e-02)
    power = power * rest + float32(2.4022120237e-01)
    power = power * rest + float32(6.9314694405e-01)
    power = power * rest + float32(1.0000001192)
    bits = np.float32(power).view(np.int32) + (np.float32(shifted).view(np.int32) << int32(23))
    result = float32(1) / (float32(1) + np.int32(bits).view(np.float32))
    return result if x < float32(116) else float32(0)


@_inner
def _sigmoid_row(row, out):
    for x in range(len(out)):
        out[x] = _sigmoid(_GAIN * row[x])


@_inner
def _not_finite(bits):
    """Return 1 where any of the float32 of these bits is not finite, else 0."""
    found = int32(0)
    for x in range(len(bits)):
        # What is not finite has all bits of the exponent.
        found |= int32((bits[x] & int32(0x7f800000)) == int32(0x7f800000))
    return found


@_inner
def _blend(first, second, share, out):
    """Write a row between two rows."""
    rest = float32(1) - share
    for x in range(len(out)):
        out[x] = rest * first[x] + share * second[x]


@_inner
def _blend_sigmoid(first, second, share, out):
    """Write _sigmoid of a row between two rows."""
    rest = float32(1) - share
    for x in range(len(out)):
        out[x] = _sigmoid(rest * first[x] + share * second[x])


@_inner
def _stretch(row, first, second, share, origin, gain, out):
    """Write gain times a row between pairs of its pixels; origin: of their indices."""
    for x in range(len(out)):
        # Unsigned: an index that might be negative is looked at before use.
        left, right = row[np.uintp(first[x] - origin)], row[np.uintp(second[x] - origin)]
        out[x] = gain * (left + share[x] * (right - left))


@_inner
def _copy(row, out):
    for x in range(len(out)):
        out[x] = row[x]


@_inner
def _stretch_whole(row, start, phases, gain, out):
    """
    Write gain times a row stretched by a whole factor.

    start: index in the row of the pixel in which `out` begins. phases: how far behind the pixel
    to its left each of the output's pixels in a pixel of the row lies, [factor].
    """
    factor = len(phases)
    count = len(out) // factor
    if factor == 4:
        _stretch_four(row, start, gain, out)
        return
    if factor == 2:
        _stretch_two(row, start, gain, out)
        return
    for phase in range(factor):
        share = gain * phases[phase]
        rest = gain - share
        left = start - 1 if 2 * phase + 1 < factor else start
        # The row goes on as its first and its last pixel.
        begin = 1 if left < 0 else 0
        end = count - 1 if left + count >= len(row) else count
        if begin:
            out[phase] = gain * row[0]
        if end < count:
            out[factor * end + phase] = gain * row[len(row) - 1]
        first, second = row[left + begin:left + end], row[left + begin + 1:left + end + 1]
        strided = out[factor * begin + phase:]
        for x in range(len(first)):
            strided[factor * x] = rest * first[x] + share * second[x]


@_inner
def _stretch_four(row, start, gain, out):
    """Do as _stretch_whole for masks at stride 4, several times as fast."""
    count, last = len(out) // 4, len(row) - 1
    # The row goes on as its first and its last pixel.
    for x in (0, count - 1):
        _four(gain * row[max(start + x - 1, 0)], gain * row[start + x],
              gain * row[min(start + x + 1, last)], out[4 * x:4 * x + 4], 0)
    before, at = row[start:start + count - 2], row[start + 1:start + count - 1]
    after, inner = row[start + 2:start + count], out[4:4 * count - 4]
    for x in range(count - 2):
        _four(gain * before[x], gain * at[x], gain * after[x], inner, 4 * x)


@_inner
def _stretch_two(row, start, gain, out):
    """Do as _stretch_whole for maps at half the size."""
    count, last = len(out) // 2, len(row) - 1
    for x in (0, count - 1):
        _two(gain * row[max(start + x - 1, 0)], gain * row[start + x],
             gain * row[min(start + x + 1, last)], out[2 * x:2 * x + 2], 0)
    before, at = row[start:start + count - 2], row[start + 1:start + count - 1]
    after, inner = row[start + 2:start + count], out[2:2 * count - 2]
    for x in range(count - 2):
        _two(gain * before[x], gain * at[x], gain * after[x], inner, 2 * x)


@_inner
def _two(before, at, after, out, x):
    """Write the two pixels of a pixel between its neighbours."""
    out[x] = float32(0.25) * before + float32(0.75) * at
    out[x + 1] = float32(0.75) * at + float32(0.25) * after


@_inner
def _four(before, at, after, out, x):
    """Write the four pixels of a pixel between its neighbours."""
    out[x] = float32(0.375) * before + float32(0.625) * at
    out[x + 1] = float32(0.125) * before + float32(0.875) * at
    out[x + 2] = float32(0.875) * at + float32(0.125) * after
    out[x + 3] = float32(0.625) * at + float32(0.375) * after


@_inner
def _add_one(row, a, b, c, d, wa, wb, wc, wd):
    # As in _add_two, so that classes that are equal stay so.
    for x in range(len(row)):
        row[x] = row[x] + ((wa * a[x] + wb * b[x]) + (wc * c[x] + wd * d[x]))


@_inner
def _add_two(row, other, a, b, c, d, wa, wb, wc, wd, va, vb, vc, vd):
    # In pairs, because a chain of four sums would wait for each of them; and each value is read
    # once, although writing to a row might change it for all that the compiler knows.
    for x in range(len(row)):
        p, q, r, s = a[x], b[x], c[x], d[x]
        row[x] = row[x] + ((wa * p + wb * q) + (wc * r + wd * s))
        other[x] = other[x] + ((va * p + vb * q) + (vc * r + vd * s))


@_inner
def _add_queries(sums, start, planes, begin, length, p, q, r, s, weights, a, b, c, d, sign):
    """
    Add four queries to the sums [columns, *], to so many of them from `start` on.

    planes [*, *]: their rows p, q, r and s from `begin` on; weights [*, columns]: their rows a, b,
    c and d, times the sign.
    """
    stop, end = start + length, begin + length
    first, second = planes[p, begin:end], planes[q, begin:end]
    third, fourth = planes[r, begin:end], planes[s, begin:end]
    columns = len(sums)
    for k in range(0, columns - 1, 2):
        _add_two(sums[k, start:stop], sums[k + 1, start:stop], first, second, third, fourth,
                 sign * weights[a, k], sign * weights[b, k],
                 sign * weights[c, k], sign * weights[d, k],
                 sign * weights[a, k + 1], sign * weights[b, k + 1],
                 sign * weights[c, k + 1], sign * weights[d, k + 1])
    if columns % 2:
        k = columns - 1
        _add_one(sums[k, start:stop], first, second, third, fourth,
                 sign * weights[a, k], sign * weights[b, k],
                 sign * weights[c, k], sign * weights[d, k])


@_inner
def _add_low(sums, planes, queries, weights, low, height, begin, end, sign):
    """
    Add queries to a window of the sums [columns, height * low], from begin to end of each row.

    planes: [*, height * low]; queries: [n + TOGETHER], of which the last ones have no weight.
    """
    count = len(queries) - TOGETHER
    # Whole rows follow each other.
    rows, length = (1, height * low) if end - begin == low else (height, end - begin)
    for i in range(0, count, TOGETHER):
        a, b, c, d = queries[i], queries[i + 1], queries[i + 2], queries[i + 3]
        last = queries[min(i + 3, count - 1)]
        for y in range(rows):
            _add_queries(sums, y * (end - begin), planes, y * low + begin, length,
                         a, min(b, last), min(c, last), min(d, last), weights, a, b, c, d, sign)


@_inner
def _spread(plane, low, height, begin, end):
    """Return by how much the values of a plane [height * low] differ at most in a window."""
    highest, lowest = plane[begin], plane[begin]
    for y in range(height):
        row = plane[y * low + begin:y * low + end]
        for x in range(len(row)):
            highest, lowest = max(highest, row[x]), min(lowest, row[x])
    return highest - lowest


@_inner
def _faintest(sums, classes, low, height, begin, end, best):
    """
    Return the least max_k L_k of a window of the sums [columns, height * low] of the classes.

    best: [end - begin], to compute in.
    """
    faintest = np.float32(np.inf)
    for y in range(height):
        start, stop = y * low + begin, y * low + end
        _copy(sums[0, start:stop], best)
        for k in range(1, classes):
            row = sums[k, start:stop]
            for x in range(len(best)):
                best[x] = max(best[x], row[x])
        for x in range(len(best)):
            faintest = min(faintest, best[x])
    return faintest


@_inner
def _replaceable(order, spread, stakes, tolerance):
    """Return how many of the queries, taken in this order, change no column by more."""
    changes = np.zeros(stakes.shape[1], np.float32)
    for count in range(len(order)):
        query = order[count]
        for column in range(len(changes)):
            changes[column] += stakes[query, column] * spread[query]
            if changes[column] > tolerance:
                return count
    return len(order)


@_inner
def _widen(row, start, stop, begin, column_first, column_second, column_share, phases, gain, out):
    """Write gain times the columns from start to stop of a row; begin: of the row."""
    if len(phases):
        _stretch_whole(row, start // len(phases) - begin, phases, gain, out[:stop - start])
    else:
        _stretch(row, column_first[start:stop], column_second[start:stop],
                 column_share[start:stop], begin, gain, out[:stop - start])


@_inner
def _fill_block(masks, kept, weights, exact, line0, row_first, row_second, row_share,
                column_first, column_second, column_share, phases, start, stop, begin, end,
                rest, levels, top, wide_rest, wide, tile, lines):
    """
    Write L of a block, columns start to stop of a band.

    exact: [n + TOGETHER], the queries to evaluate; rest: [columns, lines * (end - begin)], L of
    all others at low resolution; the others as in `fill_band`.
    """
    columns, rows, count = len(levels), len(row_share), len(exact) - TOGETHER
    width = stop - start
    for y in range(row_second[rows - 1] + 1 - line0):
        for k in range(columns):
            _widen(rest[k, y * (end - begin):(y + 1) * (end - begin)], start, stop, begin,
                   column_first, column_second, column_share, phases, float32(1),
                   wide_rest[k, y])
        for i in range(count):
            _widen(masks[kept[exact[i]], line0 + y], start, stop, 0, column_first,
                   column_second, column_share, phases, _GAIN, wide[i, y])
    for y0 in range(0, rows, ROWS_TOGETHER):
        y1 = min(y0 + ROWS_TOGETHER, rows)
        for k in range(columns):
            for y in range(y0, y1):
                at = (y - y0) * width
                _blend(wide_rest[k, row_first[y] - line0, :width],
                       wide_rest[k, row_second[y] - line0, :width], row_share[y],
                       tile[k, at:at + width])
        for i in range(0, count, TOGETHER):
            for j in range(TOGETHER):
                n = min(i + j, count - 1)
                for y in range(y0, y1):
                    at = (y - y0) * width
                    _blend_sigmoid(wide[n, row_first[y] - line0, :width],
                                   wide[n, row_second[y] - line0, :width], row_share[y],
                                   lines[j, at:at + width])
            _add_queries(tile, 0, lines, 0, (y1 - y0) * width, 0, 1, 2, 3, weights,
                         exact[i], exact[i + 1], exact[i + 2], exact[i + 3], float32(1))
        for k in range(columns):
            for y in range(y0, y1):
                at = (y - y0) * width
                _copy(tile[k, at:at + width], levels[k, top + y, start:stop])


@_compiled(types.int64(
    _FLOATS_3D, _INTEGERS, _FLOATS_2D, _FLOATS_2D, _FLOATS, float32, types.int64, float32,
    types.boolean,
    *_TAPS, *_TAPS, _FLOATS, _INTEGERS, _FLOATS_OUT_3D, types.int64, *(_FLOATS_OUT_2D,) * 3,
    *(_FLOATS_OUT_3D,) * 2, *(_FLOATS_OUT_2D,) * 2))
def fill_band(masks, kept, weights, stakes, worst, tolerance, classes, share, same,
              row_first, row_second, row_share, column_first, column_second, column_share, phases,
              edges, levels, top, sigmoid, total, rest, wide_rest, wide, tile, lines):
    """
    Write L of a band of rows and return how many queries were evaluated exactly, in all blocks.

    Returns -1 and writes nothing of use where masks are not finite.

    masks: [N, h, w] mask logits. kept: [n], the queries that matter; weights: [n + 1, columns],
    S for them and a row of zeros. stakes [n, *], worst [n], tolerance: see readout.levels.Levels.
    classes: how many of the columns, the first ones, are classes; share: of the best of them where
    that is least in a block, which bounds the error there, too.
    same: masks have the size of L.
    row_first, row_second, row_share: [rows], between which rows of the masks each row lies, and
    the share of the second; the same across the columns. phases: see _stretch_whole, [0] where
    the widths have no whole factor. edges: columns where blocks begin, and the end.
    levels: [columns, top + rows, width], of which what comes after the first `top` rows is
    written. To compute in, for as many lines as rows of the masks are needed: sigmoid
    [n, lines * w], total and rest [columns, lines * w], wide_rest [columns, lines, block], wide
    [n, lines, block], tile [columns, ROWS_TOGETHER * block], lines
    [TOGETHER, ROWS_TOGETHER * block].
    """
    count, columns, rows, low = len(kept), len(levels), len(row_share), masks.shape[2]
    line0 = row_first[0]
    height = row_second[rows - 1] + 1 - line0
    damaged = int32(0)
    for n in range(count):
        # As one row: what is left behind whole vectors takes long.
        lines_of = masks[kept[n]].reshape(-1)[line0 * low:(line0 + height) * low]
        _sigmoid_row(lines_of, sigmoid[n, :height * low])
        damaged |= _not_finite(lines_of.view(np.int32))
    if damaged:
        return -1
    # All queries at low resolution.
    everyone = np.full(count + TOGETHER, count)
    everyone[:count] = np.arange(count)
    summed = False
    spread = np.empty(count, np.float32)
    queries = np.full(count + TOGETHER, count)
    evaluated = 0
    for block in range(len(edges) - 1):
        start, stop = edges[block], edges[block + 1]
        begin, end = column_first[start], column_second[stop - 1] + 1
        replaced, order = count, everyone[:count]
        if not same:
            for n in range(count):
                spread[n] = _spread(sigmoid[n], low, height, begin, end)
            order = np.argsort(spread * worst)
            replaced = _replaceable(order, spread, stakes, tolerance)
        if replaced and not summed:
            summed = True
            for k in range(columns):
                total[k, :height * low] = float32(0)
            _add_low(total, sigmoid, everyone, weights, low, height, 0, low, float32(1))
        if replaced and classes and not same:
            allowed = share * _faintest(total, classes, low, height, begin, end,
                                        rest[0, :end - begin])
            if allowed < tolerance:
                replaced = _replaceable(order, spread, stakes, allowed)
        left = count - replaced
        evaluated += left
        length = height * (end - begin)
        if left <= replaced:
            # Everything, without those that are evaluated.
            for k in range(columns):
                for y in range(height):
                    _copy(total[k, y * low + begin:y * low + end],
                          rest[k, y * (end - begin):(y + 1) * (end - begin)])
            chosen, sign = order[replaced:], float32(-1)
        else:
            for k in range(columns):
                rest[k, :length] = float32(0)
            chosen, sign = order[:replaced], float32(1)
        queries[:len(chosen)] = np.sort(chosen)
        queries[len(chosen):len(chosen) + TOGETHER] = count
        _add_low(rest, sigmoid, queries[:len(chosen) + TOGETHER], weights, low, height, begin, end,
                 sign)
        if same:
            for k in range(columns):
                for y in range(rows):
                    _copy(rest[k, y * (end - begin):(y + 1) * (end - begin)],
                          levels[k, top + y, start:stop])
            continue
        queries[:left] = np.sort(order[replaced:])
        queries[left:left + TOGETHER] = count
        _fill_block(masks, kept, weights, queries[:left + TOGETHER], line0,
                    row_first, row_second, row_share, column_first, column_second, column_share,
                    phases, start, stop, begin, end, rest, levels, top, wide_rest, wide, tile,
                    lines)
    return evaluated


@_compiled(types.void(_FLOATS_3D, *_TAPS, *_TAPS, _FLOATS, _FLOATS_OUT_2D, _FLOATS_OUT_3D))
def resample(levels, row_first, row_second, row_share, column_first, column_second, column_share,
             phases, wide, out):
    """
    Write planes [columns, rows, width], resampled from others; as in `fill_band`.

    wide: [2, width], to compute in: the last rows of the others, of the width of the output.
    """
    for k in range(len(out)):
        widened = -1
        for y in range(len(row_share)):
            first, second = row_first[y], row_second[y]
            for row in range(max(first, widened + 1), second + 1):
                _widen(levels[k, row], 0, out.shape[2], 0, column_first, column_second,
                       column_share, phases, float32(1), wide[row % 2])
                widened = row
            _blend(wide[first % 2], wide[second % 2], row_share[y], out[k, y])


@_inner
def _guided(slope_first, slope_second, offset_first, offset_second, share, guide, gain, floor,
            out):
    rest = float32(1) - share
    for x in range(len(out)):
        slope = rest * slope_first[x] + share * slope_second[x]
        value = slope * float32(guide[x]) + (rest * offset_first[x] + share * offset_second[x])
        out[x] = gain * min(max(value, float32(0)), float32(1)) + floor


@_compiled(types.void(_FLOATS_3D, _BYTES_2D, *_TAPS, *_TAPS, _FLOATS, float32, float32,
                      _FLOATS_OUT_3D, _FLOATS_OUT_2D))
def apply_guide(lines, guide, row_first, row_second, row_share, column_first, column_second,
                column_share, phases, gain, floor, wide, out):
    """
    Write gain * clip(slope * guide + offset, 0, 1) + floor for rows of a frame, [rows, W].

    lines: [2, h, w], slope and offset, which are enlarged as in `resample`; guide: [rows, W];
    wide: [2, 2, W], to compute in.
    """
    widened = -1
    for y in range(len(row_share)):
        first, second = row_first[y], row_second[y]
        for row in range(max(first, widened + 1), second + 1):
            for k in range(2):
                _widen(lines[k, row], 0, out.shape[1], 0, column_first, column_second,
                       column_share, phases, float32(1), wide[k, row % 2])
            widened = row
        _guided(wide[0, first % 2], wide[0, second % 2], wide[1, first % 2], wide[1, second % 2],
                row_share[y], guide[y], gain, floor, out[y])


@_inner
def _raise_best(row, k, best, ids):
    for x in range(len(row)):
        ids[x] = k if row[x] > best[x] else ids[x]
        best[x] = max(row[x], best[x])


@_inner
def _narrow(row, out):
    for x in range(len(row)):
        out[x] = row[x]


@_compiled(types.void(_FLOATS_3D, types.int64, _FLOATS_OUT_2D, _BYTES_OUT_2D))
def best_class(levels, count, best, ids):
    """Write max_k and argmax_k of the first planes, [rows, width]; the first of equals wins."""
    chosen = np.empty(levels.shape[2], np.int32)
    for y in range(levels.shape[1]):
        best[y] = levels[0, y]
        chosen[:] = 0
        for k in range(1, count):
            _raise_best(levels[k, y], int32(k), best[y], chosen)
        _narrow(chosen, ids[y])


@_inner
def _add_tanh(row, total):
    for x in range(len(row)):
        total[x] += _tanh(row[x])


@_compiled(types.void(_FLOATS_3D, types.int64, _FLOATS_OUT_2D))
def sum_tanh(levels, count, total):
    """Write sum_k tanh of the first planes, [rows, width]."""
    for y in range(levels.shape[1]):
        total[y] = float32(0)
        for k in range(count):
            _add_tanh(levels[k, y], total[y])


@_inner
def _overlap(cell, size, pixel):
    """Return how much of a pixel a cell of `size` pixels covers, as a share of the cell."""
    begin, end = max(cell * size, float(pixel)), min((cell + 1) * size, float(pixel + 1))
    return float32(max(end - begin, 0.0) / size)


@_inner
def _add_row(row, share, total):
    for x in range(len(row)):
        total[x] += share * float32(row[x])


@_inner
def _shrink(plane, half, out):
    """Write the means of the cells of a plane; half: what is added before rounding."""
    tall, wide = plane.shape[0] / out.shape[0], plane.shape[1] / out.shape[1]
    most = int(wide) + 2
    line = np.zeros(plane.shape[1] + most, np.float32)
    shares = np.empty((out.shape[1], most), np.float32)
    for x in range(out.shape[1]):
        for i in range(most):
            shares[x, i] = _overlap(x, wide, int(x * wide) + i)
    for y in range(out.shape[0]):
        line[:] = float32(0)
        # Rows first, which are added as vectors; few columns are left for the rest.
        for row in range(int(y * tall), min(int((y + 1) * tall) + 1, plane.shape[0])):
            _add_row(plane[row], _overlap(y, tall, row), line)
        for x in range(out.shape[1]):
            cell, mean = line[int(x * wide):], float32(0)
            for i in range(most):
                mean += shares[x, i] * cell[i]
            out[y, x] = mean + half


@_compiled(types.void(_FLOATS_2D, _FLOATS_OUT_2D))
def shrink(plane, out):
    """Write the means of the cells that a plane [H, W] is divided into, [h, w] of no more."""
    _shrink(plane, float32(0), out)


@_compiled(types.void(_BYTES_2D, _BYTES_OUT_2D))
def shrink_bytes(plane, out):
    """Do as `shrink` and round."""
    _shrink(plane, float32(0.5), out)


@_summing
def _sigmoid_sums(row, own, out):
    """Write the sigmoid of a row; return its sum and that of its product with another."""
    area = mass = float32(0)
    for x in range(len(row)):
        mask = _sigmoid(_GAIN * row[x])
        out[x] = mask
        area += mask
        mass += mask * own[x]
    return area, mass


@_inner
def _add_twice(row, vote, value, weight, total):
    for x in range(len(row)):
        weight[x] += vote * row[x]
        total[x] += value * row[x]


@_compiled(types.void(_FLOATS_2D, _FLOATS, _FLOATS, *(_FLOATS_OUT,) * 3))
def pool_masks(masks, own, votes, sigmoid, weight, total):
    """
    Write the votes of the masks at each pixel, and their votes times what they vote for.

    masks: [N, pixels] mask logits; own: [pixels]; votes: [N]. A mask votes for the mean of `own`
    in it, weighed by its sigmoid. weight, total: [pixels] are written, sigmoid: [pixels] to
    compute in.
    """
    weight[:] = float32(0)
    total[:] = float32(0)
    for n in range(len(masks)):
        area, mass = _sigmoid_sums(masks[n], own, sigmoid)
        value = votes[n] * mass / max(area, float32(_TINY))
        _add_twice(sigmoid, votes[n], value, weight, total)


@_inner
def _highest(row, highest):
    for x in range(len(row)):
        highest[x] = max(row[x], highest[x])


@_inner
def _largest(row):
    largest = row[0]
    for x in range(len(row)):
        largest = max(largest, row[x])
    return largest


@_inner
def _win(row, q, threshold, best, winner):
    for x in range(len(row)):
        wins = (row[x] >= threshold) & (row[x] > best[x])
        winner[x] = q if wins else winner[x]
        best[x] = row[x] if wins else best[x]


@_compiled(types.void(_FLOATS_3D, types.int64, _FLOATS, _FLOATS_OUT_2D))
def highest_query(levels, first, thresholds, highest):
    """Write min(1, max_q L_q), at least 0, of the planes from `first` on, [rows, width]."""
    for y in range(levels.shape[1]):
        highest[y] = float32(0)
        for q in range(len(thresholds)):
            _highest(levels[first + q, y], highest[y])
        for x in range(highest.shape[1]):
            highest[y, x] = min(highest[y, x], float32(1))


@_compiled(types.void(
    _FLOATS_3D, types.int64, _FLOATS, types.uint8, _BYTES_OUT_2D, _FLOATS_OUT_2D))
def winning_query(levels, first, thresholds, none, mask, winning):
    """
    Write which query has the largest L_q of those that reach their threshold, and that L_q.

    [rows, width] each; `none` and -inf where there is none; the first of equals wins.
    """
    chosen = np.empty(levels.shape[2], np.int32)
    for y in range(levels.shape[1]):
        chosen[:] = none
        winning[y] = -np.inf
        for q in range(len(thresholds)):
            if _largest(levels[first + q, y]) >= thresholds[q]:
                _win(levels[first + q, y], int32(q), thresholds[q], winning[y], chosen)
        _narrow(chosen, mask[y])
