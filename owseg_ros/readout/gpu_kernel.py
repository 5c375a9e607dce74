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
One Triton kernel from stride-4 mask logits to the maps of a frame; readout.gpu calls it.

A program has a tile of output pixels and walks over the queries. It keeps a chunk of L, float32
[columns, pixels], in registers and nothing else grows with the number of queries: no array
[N, H, W] is ever made. When all queries are in, the chunk is folded into the maps.

Nearly everywhere a mask is flat: all on or all off. A query whose sigmoids lie within low..high
in the window of the masks that a tile is made from adds (low + high) / 2 to all of its pixels,
which is one column sum a tile, and errs by no more than

    |dL_k| <= sum_q S_qk (high_q - low_q) / 2

because bilinear resampling is convex and the sigmoid monotone. Queries are taken so as long as
the sum over them of (high - low) / 2 times their stake, the largest of their weights (and a share
of the sum over the classes), stays within the tolerance; the others are evaluated at each pixel.

Imports triton, so it is imported only where that is installed.
"""

import triton
import triton.language as tl

# Larger exponents are certainty, and exp of this times 254 classes is finite (readout.scores).
_LARGEST_EXPONENT = tl.constexpr(80.0)
_NO_QUERY = tl.constexpr(255)
_UNLABELLED = tl.constexpr(255)


@triton.jit
def _tanh(x):
    return 2 * tl.sigmoid(2 * x) - 1


@triton.jit
def _sample(mask, top, bottom, down, left, right, across):
    """Return the sigmoid [P] of one mask between two of its rows and two of its columns."""
    upper_left = tl.load(mask + top + left).to(tl.float32)
    upper_right = tl.load(mask + top + right).to(tl.float32)
    lower_left = tl.load(mask + bottom + left).to(tl.float32)
    lower_right = tl.load(mask + bottom + right).to(tl.float32)
    upper = upper_left + (upper_right - upper_left) * across
    lower = lower_left + (lower_right - lower_left) * across
    return tl.sigmoid(upper + (lower - upper) * down)


@triton.jit
def _axis(pixels, shares, size, place, stride, sample: tl.constexpr):
    """Return the offsets of the two pixels around a sample, and the share of the second."""
    first = tl.load(pixels + 2 * sample * size + place) * stride
    second = tl.load(pixels + (2 * sample + 1) * size + place) * stride
    return first, second, tl.load(shares + sample * size + place)


@triton.jit
def _term(level, SCORE: tl.constexpr):
    """Return what a class adds to the sum of a score (readout.scores), of L_k."""
    if SCORE == 'rba':
        return _tanh(level)
    elif SCORE == 'rba_exponential':
        return 1 - tl.exp(-level)
    elif SCORE == 'rba_softsign':
        return level / (1 + level)
    elif SCORE == 'rba_clipped':
        return tl.minimum(level, 1.0)
    else:
        return tl.exp(tl.minimum(level, _LARGEST_EXPONENT))


@triton.jit
def _finish(total, moment, best, own, gain, offset, SCORE: tl.constexpr):
    """Return the score (readout.scores) of its sums, of max_k L_k and of its own plane."""
    if SCORE == 'max_logit':
        return -best
    elif SCORE == 'msp':
        return 1 - tl.exp(tl.minimum(best, _LARGEST_EXPONENT)) / total
    elif SCORE == 'energy':
        return -tl.log(total)
    elif SCORE == 'entropy':
        return tl.maximum(tl.log(total) - moment / total, 0.0)
    elif SCORE == 'standardized_max_logit':
        return gain * best + offset
    elif SCORE == 'eam':
        return 1 - own
    elif SCORE == 'uno':
        return -own
    else:
        return 1 - total


@triton.jit(do_not_specialize=['count', 'classes', 'queries'])
def read_out(
        masks, stride_q, stride_y, stride_x,
        kept, weights, stakes, count,
        row_pixels, row_shares, column_pixels, column_shares, height, width,
        thresholds, gains, offsets, min_confidence, tolerance,
        semantic, ids_out, confidence, score, query_mask, query_score, winning_out,
        classes, queries, OWN: tl.constexpr, SCORE: tl.constexpr,
        SAMPLES: tl.constexpr, WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr,
        TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
        CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """
    Write the maps of a tile; one program for each, along (columns, rows).

    masks: float [N, h, w] with these strides. kept: int32 [count], the queries that matter;
    weights: float32 [count, CHUNKS * CHUNK], the rows of S for them: columns of the classes, OWN
    of the score, of the queries, then zeros; stakes: float32 [count].
    row_pixels: int32 [SAMPLES, 2, height], the rows of the masks between which each row of the
    output lies; row_shares: float32 [2 * SAMPLES - 1, height], the share of the second of them.
    With two samples L is blended between two rows at network size; last is the share of the
    second sample. column_pixels, column_shares: the same across, of width.
    thresholds: float32 [queries]; gains, offsets: float32 [256], of the standardised max-logit.
    semantic and what follows: the maps [height, width]. None are semantic and confidence where no
    class is, score where SCORE is None, the three of queries together, and ids_out.
    WINDOW_ROWS, WINDOW_COLUMNS: powers of two, the rows and columns of the masks that a tile
    needs at most; 0 evaluates every query everywhere. BLOCK: queries looked at together, 2..16.
    """
    PIXELS: tl.constexpr = TILE_ROWS * TILE_COLUMNS
    COLUMNS: tl.constexpr = CHUNKS * CHUNK
    GAINED: tl.constexpr = SCORE == 'standardized_max_logit'
    SUMS: tl.constexpr = SCORE is not None and OWN == 0 and SCORE != 'max_logit' and not GAINED
    first_row = tl.program_id(1) * TILE_ROWS
    first_column = tl.program_id(0) * TILE_COLUMNS
    pixel = tl.arange(0, PIXELS)
    y, x = first_row + pixel // TILE_COLUMNS, first_column + pixel % TILE_COLUMNS
    inside = (y < height) & (x < width)
    place = y * width + x
    # What lies outside is computed as its neighbour and not stored.
    y, x = tl.minimum(y, height - 1), tl.minimum(x, width - 1)

    top, bottom, down = _axis(row_pixels, row_shares, height, y, stride_y, 0)
    left, right, across = _axis(column_pixels, column_shares, width, x, stride_x, 0)
    if SAMPLES == 2:
        next_top, next_bottom, next_down = _axis(
            row_pixels, row_shares, height, y, stride_y, 1)
        next_left, next_right, next_across = _axis(
            column_pixels, column_shares, width, x, stride_x, 1)
        blend_down = tl.load(row_shares + 2 * height + y)
        blend_across = tl.load(column_shares + 2 * width + x)

    if WINDOW_ROWS > 0:
        # The rows and columns of the masks that this tile is made from, repeating the last one.
        cell = tl.arange(0, WINDOW_ROWS * WINDOW_COLUMNS)
        last_row = tl.minimum(first_row + TILE_ROWS, height) - 1
        last_column = tl.minimum(first_column + TILE_COLUMNS, width) - 1
        window_y = tl.minimum(
            tl.load(row_pixels + first_row) + cell // WINDOW_COLUMNS,
            tl.load(row_pixels + (2 * SAMPLES - 1) * height + last_row))
        window_x = tl.minimum(
            tl.load(column_pixels + first_column) + cell % WINDOW_COLUMNS,
            tl.load(column_pixels + (2 * SAMPLES - 1) * width + last_column))
        window = window_y * stride_y + window_x * stride_x

    best = tl.full([PIXELS], float('-inf'), tl.float32)
    ids = tl.zeros([PIXELS], tl.int32)
    total = tl.zeros([PIXELS], tl.float32)
    moment = tl.zeros([PIXELS], tl.float32)
    own = tl.zeros([PIXELS], tl.float32)
    highest = tl.zeros([PIXELS], tl.float32)
    winning = tl.full([PIXELS], float('-inf'), tl.float32)
    winner = tl.full([PIXELS], _NO_QUERY, tl.int32)

    for chunk in range(CHUNKS):
        column = chunk * CHUNK + tl.arange(0, CHUNK)
        levels = tl.zeros([CHUNK, PIXELS], tl.float32)
        spent = 0.0
        for start in range(0, count, BLOCK):
            block = start + tl.arange(0, BLOCK)
            live = block < count
            if WINDOW_ROWS > 0:
                query = tl.load(kept + block, mask=live, other=0).to(tl.int64)
                logits = tl.load(masks + query[:, None] * stride_q + window[None, :])
                high = tl.sigmoid(tl.max(logits, axis=1).to(tl.float32))
                low = tl.sigmoid(tl.min(logits, axis=1).to(tl.float32))
                stake = (high - low) / 2 * tl.load(stakes + block, mask=live, other=0.0)
                # None may take most of the tolerance from those that come after it.
                flat = live & (stake <= tolerance / 8)
                stake = tl.where(flat, stake, 0.0)
                flat = flat & (spent + tl.cumsum(stake, axis=0) <= tolerance)
                spent += tl.sum(tl.where(flat, stake, 0.0), axis=0)
                shares = tl.load(weights + block[None, :] * COLUMNS + column[:, None],
                                 mask=flat[None, :], other=0.0)
                levels += tl.sum(shares * ((low + high) / 2)[None, :], axis=1)[:, None]
                live = live & (flat == 0)
            waiting = tl.sum(tl.where(live, 1 << tl.arange(0, BLOCK), 0), axis=0)
            for index in range(BLOCK):
                if (waiting >> index) & 1 != 0:
                    mask = masks + tl.load(kept + start + index).to(tl.int64) * stride_q
                    value = _sample(mask, top, bottom, down, left, right, across)
                    if SAMPLES == 2:
                        upper = value + blend_across * (_sample(
                            mask, top, bottom, down, next_left, next_right, next_across) - value)
                        value = _sample(
                            mask, next_top, next_bottom, next_down, left, right, across)
                        lower = value + blend_across * (_sample(
                            mask, next_top, next_bottom, next_down, next_left, next_right,
                            next_across) - value)
                        value = upper + (lower - upper) * blend_down
                    weight = tl.load(weights + (start + index) * COLUMNS + column)
                    levels += weight[:, None] * value[None, :]

        known = (column < classes)[:, None]
        if semantic is not None:
            top_level, top_class = tl.max(
                tl.where(known, levels, float('-inf')), axis=0, return_indices=True)
            # Later chunks have larger ids and win only where they are strictly better.
            better = top_level > best
            best = tl.where(better, top_level, best)
            ids = tl.where(better, top_class + chunk * CHUNK, ids)
        if SUMS:
            term = tl.where(known, _term(levels, SCORE), 0.0)
            total += tl.sum(term, axis=0)
            if SCORE == 'entropy':
                moment += tl.sum(term * tl.minimum(levels, _LARGEST_EXPONENT), axis=0)
        if OWN:
            own += tl.sum(tl.where((column == classes)[:, None], levels, 0.0), axis=0)
        if query_mask is not None:
            query_of = column - classes - OWN
            asked = (query_of >= 0) & (query_of < queries)
            highest = tl.maximum(highest, tl.max(tl.where(asked[:, None], levels, 0.0), axis=0))
            threshold = tl.load(thresholds + query_of, mask=asked, other=0.0)
            reaches = asked[:, None] & (levels >= threshold[:, None])
            top_level, top_class = tl.max(
                tl.where(reaches, levels, float('-inf')), axis=0, return_indices=True)
            better = top_level > winning
            winning = tl.where(better, top_level, winning)
            winner = tl.where(better, top_class + chunk * CHUNK - classes - OWN, winner)

    if semantic is not None:
        sure = best >= min_confidence
        tl.store(semantic + place, tl.where(sure, ids, _UNLABELLED).to(tl.uint8), mask=inside)
        level = tl.floor(255 * tl.minimum(tl.maximum(best, 0.0), 1.0) + 0.5)
        tl.store(confidence + place, level.to(tl.uint8), mask=inside)
    if ids_out is not None:
        tl.store(ids_out + place, ids.to(tl.uint8), mask=inside)
    if SCORE is not None:
        gain, offset = total, total
        if GAINED:
            gain, offset = tl.load(gains + ids), tl.load(offsets + ids)
        tl.store(score + place, _finish(total, moment, best, own, gain, offset, SCORE),
                 mask=inside)
    if query_mask is not None:
        tl.store(query_mask + place, winner.to(tl.uint8), mask=inside)
        tl.store(query_score + place, tl.minimum(highest, 1.0), mask=inside)
        tl.store(winning_out + place, winning, mask=inside)
