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
"""The fast CPU readout against the reference, over random networks and sizes."""

from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.readout import cpu, CpuReadout, levels, read_out, reference
from owseg_ros.readout.cpu import SCORE_TOLERANCES, TOLERANCE
from owseg_ros.readout.maps import ALL_MAPS, QUERY_MAPS, ReadoutSettings
import pytest
from support.readouts import (
    assert_close, network, quarters, query_weights, ROUNDING, SETTINGS, tasks)

# Blocks as they are, and small ones, so that small maps have many of them both ways.
BLOCKS = [
    {'BLOCK_ROWS': levels.BLOCK_ROWS},
    {'BLOCK_ROWS': 5, 'BLOCK_COLUMNS': 16, 'VECTORS': 1},
    {'BLOCK_ROWS': 16, 'BLOCK_COLUMNS': 13, 'VECTORS': 8},
    {'BLOCK_ROWS': 3, 'BLOCK_COLUMNS': 99, 'BAND_FLOATS': 1000},
]


@given(tasks(), st.sampled_from([0.0, TOLERANCE, 0.05]), st.sampled_from([1, 3]),
       st.sampled_from(BLOCKS))
@example((*network(0, 1, 1, 1, 1, 6.0), (1, 1), (1, 1)), TOLERANCE, 1, BLOCKS[0])
@example((*network(1, 1, 1, 7, 9, 6.0), (28, 36), (50, 3)), 0.0, 3, BLOCKS[1])
@example((*network(2, 9, 4, 24, 30, 6.0), (24, 120), (50, 33)), 0.01, 3, BLOCKS[1])
@example((*network(3, 9, 4, 24, 30, 25.0), (95, 121), (95, 121)), 0.01, 1, BLOCKS[2])
@settings(max_examples=150, deadline=None)
def test_agrees_with_the_reference(task, tolerance, threads, blocks):
    with patch.multiple(levels, **blocks):
        maps = CpuReadout(tolerance, threads)(*task, SETTINGS)
    assert_close(maps, *task, SETTINGS, tolerance + ROUNDING)


@given(tasks(), st.sampled_from([0.001, 0.01, 0.1]), st.sampled_from(BLOCKS))
@settings(max_examples=80, deadline=None)
def test_keeps_the_promised_bounds(task, tolerance, blocks):
    """Each L_k is within tolerance, and all of them together within SCORE_TOLERANCES of it."""
    masks, probabilities, size, _ = task
    with patch.multiple(levels, **blocks):
        found = CpuReadout(tolerance).scores(masks, probabilities, size)
    error = np.abs(found - reference.class_scores(masks, probabilities, size))
    assert error.max() <= tolerance + ROUNDING
    assert error.sum(axis=0).max() <= SCORE_TOLERANCES * tolerance + ROUNDING


@pytest.mark.parametrize('spread', [1.0, 12.0])
@pytest.mark.parametrize('size, output', [
    ((352, 480), (480, 640)), ((352, 480), (352, 480)), ((350, 478), (240, 321))])
def test_agrees_at_full_size(spread, size, output):
    masks, probabilities = network(7, 25, 11, 88, 120, spread)
    readout = CpuReadout()
    maps = readout(masks, probabilities, size, output, SETTINGS)
    scores = reference.class_scores(masks, probabilities, size)
    found = readout.scores(masks, probabilities, size)
    error = np.abs(found - scores)
    assert error.max() <= TOLERANCE + ROUNDING
    assert error.sum(axis=0).max() <= SCORE_TOLERANCES * TOLERANCE + ROUNDING
    scores = reference.class_scores(masks, probabilities, size, output)
    np.testing.assert_allclose(
        maps.anomaly_score, reference.rba(scores), atol=SCORE_TOLERANCES * TOLERANCE + ROUNDING)
    assert (maps.semantic == reference.semantic(scores)).mean() > 0.999


def shares(draw, count, total):
    """Draw probabilities [count] whose sum is at most total, some of them zero."""
    raw = draw(st.lists(st.sampled_from([0.0, 1e-9, 1e-3, 1.0, 7.0]), min_size=count,
                        max_size=count))
    return total * np.array(raw) / max(sum(raw), 1e-12)


@st.composite
def adversaries(draw):
    """
    Draw masks that lie where it is unkind, and queries that together just fit a tolerance.

    The masks of queries that matter little are anything: all on, all off, checkerboards, single
    pixels, logits that saturate or hardly differ.
    """
    tolerance = draw(st.sampled_from([1e-3, 0.01, 0.1]))
    height, width = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    count, classes = draw(st.integers(1, 40)), draw(st.integers(1, 9))
    y, x = np.mgrid[:height, :width]
    patterns = [np.ones((height, width)), -np.ones((height, width)), (-1.0) ** (x + y),
                (-1.0) ** y, np.where((y == height // 2) & (x == width // 2), 1.0, -1.0)]
    seed = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    masks = np.stack([
        patterns[seed.integers(len(patterns))] * seed.choice([0.01, 1.0, 8.0, 90.0])
        for _ in range(count)]).astype(np.float32)
    probabilities = np.zeros((count, classes), np.float32)
    factor = draw(st.sampled_from([levels.LEFT_OUT, 0.9, 1.0, 1.1, 5.0]))
    for k in range(classes):
        probabilities[:, k] = shares(draw, count, factor * tolerance)
    return masks, probabilities, (4 * height, 4 * width), tolerance


@given(adversaries(), st.sampled_from(BLOCKS))
@settings(max_examples=150, deadline=None)
def test_keeps_the_bounds_against_adversaries(task, blocks):
    masks, probabilities, size, tolerance = task
    with patch.multiple(levels, **blocks):
        found = CpuReadout(tolerance).scores(masks, probabilities, size)
    error = np.abs(found - reference.class_scores(
        masks.astype(np.float64), probabilities.astype(np.float64), size))
    assert error.max() <= tolerance + ROUNDING
    assert error.sum(axis=0).max() <= SCORE_TOLERANCES * tolerance + ROUNDING


@given(st.integers(0, 2 ** 32 - 1), st.integers(1, 30), st.integers(1, 12),
       st.sampled_from([1e-3, 0.02]))
@settings(max_examples=60, deadline=None)
def test_queries_left_out_change_less_than_their_share(seed, count, classes, tolerance):
    """Whatever their masks are: L_k changes by no more than the sum of what was left out."""
    random = np.random.default_rng(seed)
    probabilities = (random.random((count, classes)) ** 8 * tolerance).astype(np.float32)
    # All masks on: nothing is replaced by its blend, which is exact here.
    masks = np.full((count, 3, 4), 50, np.float32)
    readout = CpuReadout(tolerance)
    found = readout.scores(masks, probabilities, (12, 16))
    lost = probabilities.sum(axis=0) - found[:, 0, 0]
    assert -ROUNDING <= lost.min() and lost.max() <= levels.LEFT_OUT * tolerance + ROUNDING
    assert lost.sum() <= SCORE_TOLERANCES * levels.LEFT_OUT * tolerance + ROUNDING


def test_leaves_out_queries_of_no_class():
    masks, probabilities = network(3, 30, 5, 22, 30, 1.0)
    probabilities[:10] = 1e-8
    readout = CpuReadout()
    found = readout.scores(masks, probabilities, (88, 120))
    assert readout.exact_fraction <= 20 / 30
    masks[:10] = 90  # they do not matter
    np.testing.assert_array_equal(readout.scores(masks, probabilities, (88, 120)), found)


def test_skips_what_does_not_matter():
    """Saturated masks are evaluated only along their edges, and zero tolerance everywhere."""
    masks, probabilities = network(3, 30, 5, 88, 120, 25.0)
    masks = np.clip(masks * 10, -40, 40)
    readout = CpuReadout()
    readout.scores(masks, probabilities, (352, 480))
    assert 0 < readout.exact_fraction < 0.7
    exact = CpuReadout(tolerance=0.0)
    exact.scores(network(3, 30, 5, 88, 120, 1.0)[0], probabilities, (352, 480))
    assert exact.exact_fraction == 1.0


@pytest.mark.parametrize('stride', [0, 3, 8, -1])
def test_refuses_other_strides(stride):
    with pytest.raises(ValueError, match='stride must be 1, 2 or 4'):
        ReadoutSettings(0.5, stride=stride)


@pytest.mark.parametrize('threads', [1, 2, 5, 32])
def test_threads_do_not_change_the_result(threads):
    masks, probabilities = network(13, 25, 7, 40, 60, 6.0)
    probabilities[:, 2] = probabilities[:, 5]  # ties go to the lowest id
    task = (masks, probabilities, (160, 240), (200, 200), SETTINGS)
    single, several = CpuReadout(threads=1)(*task), CpuReadout(threads=threads)(*task)
    np.testing.assert_array_equal(several.semantic, single.semantic)
    assert not (several.semantic == 5).any()
    np.testing.assert_array_equal(several.confidence, single.confidence)
    np.testing.assert_array_equal(several.anomaly_score, single.anomaly_score)


def held(readout):
    """Return the bytes of the buffers of a readout."""
    return sum(scratch.nbytes for scratch in readout._scratch)


def test_cameras_take_turns_without_new_buffers():
    readout = CpuReadout()
    task = (*network(1, 6, 3, 16, 20, 6.0), (64, 80))
    weights, thresholds = query_weights(3, 6, 2)

    def turn():
        for output in ((64, 80), (480, 640), (30, 20)):
            for queries in ({}, {'query_weights': weights, 'query_thresholds': thresholds}):
                found = readout(*task, output, SETTINGS, ALL_MAPS | QUERY_MAPS, **queries)
                assert found.semantic.shape == found.query_mask.shape == output
        return held(readout), {key: id(plan) for key, plan in readout._plans.items()}

    first = turn()
    assert len(first[1]) == 6 and turn() == first
    for width in range(20):
        readout(*task, (64, 80 + width), SETTINGS)
    assert len(readout._plans) == cpu._KEPT_PLANS


def test_memory_does_not_grow_with_the_rows():
    """No buffer has all rows of the frame, or all columns and all pixels."""
    for threads in (1, 2):
        low, high = CpuReadout(threads=threads), CpuReadout(threads=threads)
        masks, probabilities = network(1, 20, 19, 32, 64, 1.0)
        low(masks, probabilities, (128, 256), (128, 256), SETTINGS)
        high(np.tile(masks, (1, 8, 1)), probabilities, (1024, 256), (1024, 256), SETTINGS)
        assert 0 < held(high) == held(low)
        assert held(high) < 4 * 19 * 1024 * 256 / 2


def test_function_agrees_with_the_object():
    masks, probabilities = network(1, 6, 3, 16, 20, 6.0)
    task = (masks, probabilities, (64, 80), (64, 80), SETTINGS)
    np.testing.assert_array_equal(
        read_out(*task).anomaly_score, CpuReadout()(*task).anomaly_score)


def test_refuses_nonsense():
    with pytest.raises(ValueError, match='tolerance'):
        CpuReadout(tolerance=-1.0)
    with pytest.raises(ValueError, match='tolerance'):
        CpuReadout(tolerance=float('nan'))
    with pytest.raises(ValueError, match='threads'):
        CpuReadout(threads=-1)


# Queries


@given(tasks(), st.integers(0, 2 ** 32 - 1), st.integers(1, 7), st.sampled_from([0.0, 0.01]),
       st.sampled_from([1, 3]), st.sampled_from(BLOCKS), st.booleans())
@settings(max_examples=120, deadline=None)
def test_query_maps_agree_with_the_reference(task, seed, count, tolerance, threads, blocks, alone):
    masks, _, size, output = task
    weights, thresholds = query_weights(seed, len(masks), count)
    with patch.multiple(levels, **blocks):
        maps = CpuReadout(tolerance, threads)(
            *task, SETTINGS, QUERY_MAPS if alone else QUERY_MAPS | ALL_MAPS,
            query_weights=weights, query_thresholds=thresholds)
    tolerance += ROUNDING
    scores = reference.class_scores(
        masks.astype(np.float64), weights.astype(np.float64), size, output)
    assert maps.query_score.shape == maps.query_mask.shape == tuple(output)
    assert (maps.query_score.dtype, maps.query_mask.dtype) == (np.float32, np.uint8)
    np.testing.assert_allclose(
        maps.query_score, reference.query_score(scores), atol=tolerance)
    # Where no decision is a matter of the tolerance.
    clear = (np.abs(scores - thresholds[:, None, None]) > tolerance).all(axis=0)
    if count > 1:
        reaching = np.sort(np.where(
            scores >= thresholds[:, None, None], scores, -1 - np.arange(count)[:, None, None]),
            axis=0)
        clear &= reaching[-1] - reaching[-2] > 2 * tolerance
    np.testing.assert_array_equal(
        maps.query_mask[clear], reference.query_mask(scores, thresholds)[clear])
    assert maps.query_version is None
    if not alone:
        assert_close(maps, *task, SETTINGS, tolerance)


def test_queries_are_one_pass_and_classes_are_left_out():
    """The masks are opened once; without other maps there are no columns but the queries'."""
    masks, probabilities = network(1, 12, 5, 16, 20, 6.0)
    weights, thresholds = query_weights(3, 12, 2)
    columns = []

    class Spy(levels.Levels):

        def __init__(self, plan, mask_logits, matrix, num_classes, tolerance):
            columns.append((matrix.shape[1], num_classes))
            super().__init__(plan, mask_logits, matrix, num_classes, tolerance)

    task = (masks, probabilities, (64, 80), (64, 80), SETTINGS)
    queries = {'query_weights': weights, 'query_thresholds': thresholds}
    with patch.object(cpu, 'Levels', Spy):
        CpuReadout()(*task, ALL_MAPS | QUERY_MAPS, **queries)
        CpuReadout()(*task, QUERY_MAPS, **queries)
        CpuReadout()(*task, ALL_MAPS, **queries)
        CpuReadout()(*task, QUERY_MAPS)
    assert columns == [(7, 5), (2, 0), (5, 5)]


# Anomalous regions that answer queries


@given(tasks(), st.integers(0, 2 ** 32 - 1), st.integers(1, 5), st.sampled_from([1, 3]),
       st.sampled_from([{'query_mask'}, {'query_score'}, QUERY_MAPS, QUERY_MAPS | ALL_MAPS]))
@settings(max_examples=60, deadline=None)
def test_regions_raise_the_scores_inside_them(task, seed, count, threads, maps):
    weights, thresholds = query_weights(seed, len(task[0]), count)
    scores = np.random.default_rng(seed).random((4, count)).astype(np.float32)
    queries = {'query_weights': weights, 'query_thresholds': thresholds,
               'score_regions': quarters(scores)}
    # An edge of the anomaly mask may lie elsewhere by a pixel; compare with the mask itself.
    chosen = ReadoutSettings(0.5)
    found = CpuReadout(0, threads)(*task, chosen, maps, **queries)
    expected = reference.read_out(*task, chosen, QUERY_MAPS | {'anomaly_mask'}, **queries)
    mask = CpuReadout(0, threads)(*task, chosen, {'anomaly_mask'}).anomaly_mask
    same = mask == expected.anomaly_mask
    assert same.mean() > 0.9
    assert (found.anomaly_mask is None) == ('anomaly_mask' not in maps)
    if 'query_score' in maps:
        np.testing.assert_allclose(found.query_score[same], expected.query_score[same], atol=1e-4)
    if 'query_mask' in maps:
        agree = found.query_mask[same] == expected.query_mask[same]
        assert agree.mean() > 0.95


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('threads', [1, 2])
def test_values_that_are_not_finite_are_an_error(value, threads):
    readout = CpuReadout(threads=threads)
    masks, probabilities = network(5, 6, 3, 40, 50, 6.0)
    task = (160, 200), (160, 200), SETTINGS
    expected = readout(masks, probabilities, *task)
    for place in ((0, 0, 0), (2, 21, 30), (5, 39, 49)):
        damaged = masks.copy()
        damaged[place] = value
        with pytest.raises(ValueError, match='mask logits must be finite'):
            readout(damaged, probabilities, *task)
    damaged = probabilities.copy()
    damaged[4, 1] = value
    with pytest.raises(ValueError, match='class probabilities must be finite'):
        readout(masks, damaged, *task)
    np.testing.assert_array_equal(
        readout(masks, probabilities, *task).anomaly_score, expected.anomaly_score)
