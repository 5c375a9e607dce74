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
Two Triton kernels from stride-4 mask logits to the maps of a frame; readout.gpu calls them.

A program of either has a tile of output pixels. `screen` says for each tile which queries have to
be looked at there, and `read_out` walks over those. It keeps a chunk of L, float32 [columns,
pixels], in registers, all columns of a pixel in one thread, and nothing else grows with the number
of queries: no array [N, H, W] is ever made. When all queries are in, the chunk is folded into the
maps.

Nearly everywhere a mask is flat: all on or all off. A query whose sigmoids lie within low..high
in the window of the masks that a tile is made from adds (low + high) / 2 to all of its pixels,
which is one column sum a tile, and errs by no more than

    |dL_k| <= sum_q S_qk (high_q - low_q) / 2

because bilinear resampling is convex and the sigmoid monotone. Queries are taken so as long as
the sum over them of (high - low) / 2 times their stake, the largest of their weights (and a share
of the sum over the classes), stays within the tolerance; the others are evaluated at each pixel.
Where every class may reject a pixel of the tile, the tolerance is a share of the best of them, so
that the label is that of the exact L.

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
    upper_left = tl.load(mask + (top + left)).to(tl.float32)
    upper_right = tl.load(mask + (top + right)).to(tl.float32)
    lower_left = tl.load(mask + (bottom + left)).to(tl.float32)
    lower_right = tl.load(mask + (bottom + right)).to(tl.float32)
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


@triton.jit
def _flat(
        masks, stride_q, stride_y, stride_x, kept, weights, stakes, tops, count, column, tile,
        top, bottom, window_x, tolerance, live,
        WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
        COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    """
    Take queries for flat as far as the tolerance goes; write the others to live.

    Returns what the flat ones add, [CHUNK]; how many the others are; by how much the flat ones may
    err; and of how much there is of some class at each pixel, at least.
    """
    levels = tl.zeros([CHUNK], tl.float32)
    spent = 0.0
    found = 0
    best = 0.0
    for start in range(0, count, BLOCK):
        block = start + tl.arange(0, BLOCK)
        there = block < count
        query = tl.load(kept + block, mask=there, other=0)
        line = masks + (query.to(tl.int64) * stride_q)[:, None] + (window_x * stride_x)[None, :]
        highest = tl.full([BLOCK, WINDOW_COLUMNS], float('-inf'), tl.float32)
        lowest = tl.full([BLOCK, WINDOW_COLUMNS], float('inf'), tl.float32)
        for row in tl.static_range(WINDOW_ROWS):
            logits = tl.load(line + tl.minimum(top + row, bottom) * stride_y,
                             mask=there[:, None], other=0.0).to(tl.float32)
            highest = tl.maximum(highest, logits)
            lowest = tl.minimum(lowest, logits)
        high, low = tl.sigmoid(tl.max(highest, axis=1)), tl.sigmoid(tl.min(lowest, axis=1))
        stake = (high - low) / 2 * tl.load(stakes + block, mask=there, other=0.0)
        if tops is not None:
            held = low * tl.load(tops + block, mask=there, other=0.0)
            best = tl.maximum(best, tl.max(held, axis=0))
        # None may take most of the tolerance from those that come after it.
        flat = there & (stake <= tolerance / 8)
        stake = tl.where(flat, stake, 0.0)
        flat = flat & (spent + tl.cumsum(stake, axis=0) <= tolerance)
        spent += tl.sum(tl.where(flat, stake, 0.0), axis=0)
        shares = tl.load(weights + query[:, None] * COLUMNS + column[None, :],
                         mask=flat[:, None], other=0.0)
        levels += tl.sum(shares * ((low + high) / 2)[:, None], axis=0)
        rough = there & (flat == 0)
        if tl.program_id(2) == 0:
            place = found + tl.cumsum(rough.to(tl.int32), axis=0) - 1
            tl.store(live + tile * count + place, query, mask=rough)
        found += tl.sum(rough.to(tl.int32), axis=0)
    return levels, found, spent, best


@triton.jit(do_not_specialize=['count'])
def screen(
        masks, stride_q, stride_y, stride_x, kept, weights, stakes, tops, count,
        row_pixels, column_pixels, height, width, tolerance, share, live, counts, flat_levels,
        SAMPLES: tl.constexpr, WINDOW_ROWS: tl.constexpr, WINDOW_COLUMNS: tl.constexpr,
        TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr, CHUNK: tl.constexpr,
        CHUNKS: tl.constexpr, BLOCK: tl.constexpr):
    """
    Write which queries have to be looked at in a tile, and what all others add to it.

    One program a tile and chunk of columns, along (columns, rows, chunks). Arguments are those of
    read_out, and: kept: int32 [count], the queries that matter; stakes: float32 [count], of them;
    tops: float32 [count], their largest probabilities, None without classes; share: of the best
    class at any pixel, which bounds the error, too; live: int32 [tiles, count] and counts: int32
    [tiles], the queries to be looked at; flat_levels: float32 [tiles, CHUNKS * CHUNK], the sums of
    the others. WINDOW_ROWS, WINDOW_COLUMNS: the rows and columns of the masks that a tile needs at
    most, of columns a power of two; BLOCK: queries that are looked at together.
    """
    COLUMNS: tl.constexpr = CHUNKS * CHUNK
    first_row = tl.program_id(1) * TILE_ROWS
    first_column = tl.program_id(0) * TILE_COLUMNS
    tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    column = tl.program_id(2) * CHUNK + tl.arange(0, CHUNK)
    # The rows and columns of the masks that this tile is made from, repeating the last one.
    last_row = tl.minimum(first_row + TILE_ROWS, height) - 1
    last_column = tl.minimum(first_column + TILE_COLUMNS, width) - 1
    top = tl.load(row_pixels + first_row)
    bottom = tl.load(row_pixels + (2 * SAMPLES - 1) * height + last_row)
    window_x = tl.minimum(
        tl.load(column_pixels + first_column) + tl.arange(0, WINDOW_COLUMNS),
        tl.load(column_pixels + (2 * SAMPLES - 1) * width + last_column))

    levels, found, spent, best = _flat(
        masks, stride_q, stride_y, stride_x, kept, weights, stakes, tops, count, column, tile,
        top, bottom, window_x, tolerance, live, WINDOW_ROWS, WINDOW_COLUMNS, CHUNK, COLUMNS, BLOCK)
    if tops is not None:
        if share * best < spent:
            # Other threads may write where this one has written.
            tl.debug_barrier()
            levels, found, spent, best = _flat(
                masks, stride_q, stride_y, stride_x, kept, weights, stakes, tops, count, column,
                tile, top, bottom, window_x, tl.minimum(share * best, tolerance), live,
                WINDOW_ROWS, WINDOW_COLUMNS, CHUNK, COLUMNS, BLOCK)
    tl.store(counts + tile, found)
    tl.store(flat_levels + tile * COLUMNS + column, levels)


@triton.jit(do_not_specialize=['count', 'queries'])
def read_out(
        masks, stride_q, stride_y, stride_x, weights, live, count, counts, flat_levels,
        row_pixels, row_shares, column_pixels, column_shares, height, width,
        thresholds, gains, offsets, min_confidence,
        semantic, ids_out, confidence, score, query_mask, query_score, winning_out,
        queries, CLASSES: tl.constexpr, OWN: tl.constexpr, SCORE: tl.constexpr,
        SAMPLES: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
        CHUNK: tl.constexpr, CHUNKS: tl.constexpr):
    """
    Write the maps of a tile; one program for each, along (columns, rows).

    masks: float [N, h, w] with these strides. weights: float32 [N, CHUNKS * CHUNK], S: columns of
    the CLASSES, OWN of the score, of the queries, then zeros. live, counts, flat_levels: what
    screen wrote, with room for count queries a tile; without counts every tile has the queries
    live, int32 [count].
    row_pixels: int32 [SAMPLES, 2, height], the rows of the masks between which each row of the
    output lies; row_shares: float32 [2 * SAMPLES - 1, height], the share of the second of them.
    With two samples L is blended between two rows at network size; last is the share of the
    second sample. column_pixels, column_shares: the same across, of width.
    thresholds: float32 [queries]; gains, offsets: float32 [256], of the standardised max-logit.
    semantic and what follows: the maps [height, width]. None are semantic and confidence where no
    class is, score where SCORE is None, the three of queries together, and ids_out.
    CLASSES is known when this is compiled, so that columns of zeros cost nothing.
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
    # Not one stretch, as far as the compiler sees: else it would give each thread neighbouring
    # pixels to store and, for that, exchange what every query adds.
    place = tl.where(inside, y * width + x, 0)
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

    waiting = count
    if counts is not None:
        tile = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        waiting = tl.load(counts + tile)
        live += tile * count
        flat_levels += tile * COLUMNS

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
        if counts is not None:
            levels += tl.load(flat_levels + column)[:, None]
        for index in range(waiting):
            query = tl.load(live + index)
            mask = masks + query.to(tl.int64) * stride_q
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
            weight = tl.load(weights + query * COLUMNS + column)
            levels += weight[:, None] * value[None, :]

        known = (column < CLASSES)[:, None]
        if semantic is not None:
            levels_of_classes = tl.where(known, levels, float('-inf'))
            top_level = tl.max(levels_of_classes, axis=0)
            # Cheaper than a maximum that returns indices.
            top_class = tl.min(tl.where(
                levels_of_classes == top_level[None, :], tl.arange(0, CHUNK)[:, None], CHUNK),
                axis=0)
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
            own += tl.sum(tl.where((column == CLASSES)[:, None], levels, 0.0), axis=0)
        if query_mask is not None:
            query_of = column - CLASSES - OWN
            asked = (query_of >= 0) & (query_of < queries)
            highest = tl.maximum(highest, tl.max(tl.where(asked[:, None], levels, 0.0), axis=0))
            threshold = tl.load(thresholds + query_of, mask=asked, other=0.0)
            reaches = asked[:, None] & (levels >= threshold[:, None])
            top_level, top_class = tl.max(
                tl.where(reaches, levels, float('-inf')), axis=0, return_indices=True)
            better = top_level > winning
            winning = tl.where(better, top_level, winning)
            winner = tl.where(better, top_class + chunk * CHUNK - CLASSES - OWN, winner)

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
