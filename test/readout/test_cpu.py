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
from owseg_ros.readout.maps import ALL_MAPS, QUERY_MAPS, ReadoutSettings, RegionScores
import pytest

ROUNDING = 2e-5
SETTINGS = ReadoutSettings(anomaly_threshold=0.5, min_area=6)

# Blocks as they are, and small ones, so that small maps have many of them both ways.
BLOCKS = [
    {'BLOCK_ROWS': levels.BLOCK_ROWS},
    {'BLOCK_ROWS': 5, 'BLOCK_COLUMNS': 16},
    {'BLOCK_ROWS': 16, 'BLOCK_COLUMNS': 13, '_SMALL_PRODUCT': 1 << 10},
    {'BLOCK_ROWS': 3, 'BLOCK_COLUMNS': 99, 'BAND_FLOATS': 1000},
]


def network(seed, count, classes, height, width, spread):
    """Return mask logits [N, h, w] with flat parts and edges, and probabilities [N, K]."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    centres = random.uniform(0, 1, (count, 2, 1, 1)) * np.array([height, width]).reshape(2, 1, 1)
    radius = random.uniform(0.1, 0.6, (count, 1, 1)) * max(height, width)
    distance = radius - np.hypot(y - centres[:, 0], x - centres[:, 1])
    masks = spread * np.tanh(distance / 2) + random.normal(0, 0.1 * spread, distance.shape)
    logits = random.normal(0, 2, (count, classes + 1))
    logits[random.random(count) < 0.5, -1] += 8
    return masks.astype(np.float32), reference.class_probabilities(logits).astype(np.float32)


@st.composite
def tasks(draw):
    """Draw a network's output with network and output sizes, whole scales and odd ones."""
    height, width = draw(st.integers(1, 24)), draw(st.integers(1, 30))
    masks, probabilities = network(
        draw(st.integers(0, 2 ** 32 - 1)), draw(st.integers(1, 20)), draw(st.integers(1, 12)),
        height, width, draw(st.sampled_from([0.5, 6.0, 25.0])))
    if draw(st.booleans()):
        size = (height * draw(st.sampled_from([1, 2, 4])), width * draw(st.sampled_from([1, 4])))
    else:
        size = (draw(st.integers(1, 110)), draw(st.integers(1, 130)))
    output = size if draw(st.booleans()) else (
        draw(st.integers(1, 140)), draw(st.integers(1, 150)))
    return masks, probabilities, size, output


def assert_close(maps, masks, probabilities, size, output, chosen, tolerance):
    """Compare maps with the reference: scores within tolerance, labels where they are clear."""
    exact = [array.astype(np.float64) for array in (masks, probabilities)]
    scores = reference.class_scores(*exact, size, output)
    score = reference.rba(scores)
    assert maps.semantic.shape == maps.anomaly_score.shape == tuple(output)
    assert maps.anomaly_score.dtype == np.float32 and maps.semantic.dtype == np.uint8
    np.testing.assert_allclose(maps.anomaly_score, score, atol=SCORE_TOLERANCES * tolerance)
    best = np.clip(scores.max(axis=0), 0, 1)
    np.testing.assert_allclose(
        maps.confidence.astype(float), 255 * best, atol=0.5 + 255 * tolerance)
    top = np.sort(scores, axis=0)[::-1]
    clear = np.ones(output, bool) if len(top) == 1 else top[0] - top[1] > 2 * tolerance
    np.testing.assert_array_equal(
        maps.semantic[clear], reference.semantic(scores)[clear])
    mask = reference.clean_mask(
        maps.anomaly_score >= np.float32(chosen.anomaly_threshold),
        chosen.scaled_min_area(size, output))
    np.testing.assert_array_equal(maps.anomaly_mask, mask)


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


def test_half_precision_and_strided_input():
    masks, probabilities = network(5, 9, 4, 20, 24, 6.0)
    half = masks.astype(np.float16)
    expected = CpuReadout()(half.astype(np.float32), probabilities, (80, 96), (80, 96), SETTINGS)
    wide = np.zeros((9, 20, 48), np.float16)
    wide[:, :, ::2] = half
    found = CpuReadout()(wide[:, :, ::2], probabilities, (80, 96), (80, 96), SETTINGS)
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.semantic, expected.semantic)


def test_double_precision_input():
    masks, probabilities = network(5, 9, 4, 20, 24, 6.0)
    task = ((80, 96), (80, 96), SETTINGS)
    expected = CpuReadout()(masks, probabilities, *task)
    found = CpuReadout()(masks.astype(np.float64), probabilities.astype(np.float64), *task)
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, atol=ROUNDING)


@pytest.mark.parametrize('wanted', [
    set(), {'semantic'}, {'confidence'}, {'anomaly_score'}, {'anomaly_mask'},
    {'semantic', 'anomaly_mask'}, {'confidence', 'anomaly_score'}, ALL_MAPS])
@pytest.mark.parametrize('chosen', [
    SETTINGS, ReadoutSettings(0.5, 6, mark_unknown=True, min_confidence=0.4)])
def test_computes_only_what_is_asked_for(wanted, chosen):
    masks, probabilities = network(11, 12, 5, 20, 30, 6.0)
    task = (masks, probabilities, (80, 120), (100, 90), chosen)
    everything, some = CpuReadout()(*task), CpuReadout()(*task, maps=wanted)
    for name in ALL_MAPS:
        if name in wanted:
            np.testing.assert_array_equal(getattr(some, name), getattr(everything, name))
        else:
            assert getattr(some, name) is None


@pytest.mark.parametrize('stride', [1, 2, 4])
@pytest.mark.parametrize('size, output', [
    ((88, 120), (88, 120)), ((88, 120), (100, 90)), ((87, 119), (87, 119)), ((30, 31), (99, 77))])
def test_strides_evaluate_the_masks_at_a_smaller_size(stride, size, output):
    masks, probabilities = network(7, 12, 5, 22, 30, 6.0)
    chosen = ReadoutSettings(0.5, 6, stride=stride)
    maps = CpuReadout()(masks, probabilities, size, output, chosen)
    scores = reference.class_scores(
        masks, probabilities, tuple(-(-side // stride) for side in size), output)
    np.testing.assert_allclose(maps.anomaly_score, reference.rba(scores),
                               atol=SCORE_TOLERANCES * TOLERANCE + ROUNDING)
    assert (maps.semantic == reference.semantic(scores)).mean() > 0.99
    # The area of specks is still counted in the network's pixels.
    np.testing.assert_array_equal(maps.anomaly_mask, reference.clean_mask(
        maps.anomaly_score >= np.float32(0.5), chosen.scaled_min_area(size, output)))
    expected = reference.read_out(masks, probabilities, size, output, chosen)
    np.testing.assert_allclose(maps.anomaly_score, expected.anomaly_score,
                               atol=SCORE_TOLERANCES * TOLERANCE + ROUNDING)


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


def test_marks_as_the_reference_does():
    masks, probabilities = network(17, 6, 3, 16, 20, 25.0)
    chosen = ReadoutSettings(0.5, 4, mark_unknown=True, min_confidence=0.4)
    task = (masks, probabilities, (64, 80), (64, 80), chosen)
    found, expected = CpuReadout(tolerance=0)(*task), reference.read_out(*task)
    assert {254} <= set(np.unique(expected.semantic).tolist())
    assert (found.semantic == expected.semantic).mean() > 0.999


def test_results_belong_to_the_caller():
    """A second frame must not reach into the maps of the first, whatever their size."""
    readout = CpuReadout(threads=2)
    for output in ((64, 80), (96, 100)):
        first = readout(*network(1, 6, 3, 16, 20, 6.0), (64, 80), output, SETTINGS)
        copies = {name: getattr(first, name).copy() for name in ALL_MAPS}
        readout(*network(2, 6, 3, 16, 20, 6.0), (64, 80), output, SETTINGS)
        for name, copy in copies.items():
            np.testing.assert_array_equal(getattr(first, name), copy)


def test_input_is_not_modified():
    masks, probabilities = network(1, 6, 3, 16, 20, 6.0)
    kept = masks.copy(), probabilities.copy()
    CpuReadout()(masks, probabilities, (64, 80), (64, 80), SETTINGS)
    np.testing.assert_array_equal(masks, kept[0])
    np.testing.assert_array_equal(probabilities, kept[1])


def test_changing_geometry_and_settings():
    """One object follows a change of camera, network and threshold between frames."""
    readout = CpuReadout()
    for seed, (height, width, output, threshold) in enumerate([
            (16, 20, (64, 80), 0.3), (22, 30, (100, 50), 0.9), (16, 20, (64, 80), 0.5)]):
        masks, probabilities = network(seed, 5 + seed, 3, height, width, 6.0)
        chosen = ReadoutSettings(threshold, 3)
        size = (4 * height, 4 * width)
        maps = readout(masks, probabilities, size, output, chosen)
        assert_close(maps, masks, probabilities, size, output, chosen, TOLERANCE + ROUNDING)


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


def test_many_classes():
    masks, probabilities = network(1, 30, 254, 8, 8, 6.0)
    maps = read_out(masks, probabilities, (32, 32), (32, 32), SETTINGS)
    assert_close(maps, masks, probabilities, (32, 32), (32, 32), SETTINGS, TOLERANCE + 1e-4)
    with pytest.raises(ValueError, match='254'):
        read_out(masks, np.zeros((30, 255), np.float32), (32, 32), (32, 32), SETTINGS)


@pytest.mark.parametrize('masks, probabilities, size', [
    ((3, 4), (3, 2), (16, 16)), ((3, 4, 4), (2, 2), (16, 16)), ((0, 4, 4), (0, 2), (16, 16)),
    ((3, 4, 4), (3, 0), (16, 16)), ((3, 4, 4), (3, 2), (0, 16)), ((3, 4, 4), (3,), (16, 16))])
def test_refuses_shapes_that_disagree(masks, probabilities, size):
    with pytest.raises(ValueError):
        read_out(np.zeros(masks, np.float32), np.zeros(probabilities, np.float32), size, size,
                 SETTINGS)


def test_refuses_nonsense():
    with pytest.raises(ValueError, match='tolerance'):
        CpuReadout(tolerance=-1.0)
    with pytest.raises(ValueError, match='tolerance'):
        CpuReadout(tolerance=float('nan'))
    with pytest.raises(ValueError, match='threads'):
        CpuReadout(threads=-1)


# Queries


def query_weights(seed, count, queries):
    """Return weights [N, Q], most of them small, and thresholds [Q]."""
    random = np.random.default_rng(seed)
    weights = random.random((count, queries)) ** random.choice([1, 4, 30], (count, queries))
    return weights.astype(np.float32), random.uniform(0, 1, queries).astype(np.float32)


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


def test_whole_read_out_with_queries_agrees_with_the_reference():
    masks, probabilities = network(21, 9, 4, 20, 24, 25.0)
    weights, thresholds = query_weights(1, 9, 3)
    task = (masks, probabilities, (80, 96), (100, 90), SETTINGS, QUERY_MAPS | {'semantic'})
    queries = {'query_weights': weights, 'query_thresholds': thresholds}
    expected = reference.read_out(*task, **queries)
    found = read_out(*task, **queries)
    np.testing.assert_allclose(found.query_score, expected.query_score, atol=TOLERANCE + ROUNDING)
    assert (found.query_mask == expected.query_mask).mean() > 0.99
    assert len(np.unique(expected.query_mask)) >= 3
    assert expected.anomaly_mask is None is found.anomaly_mask


def winners(levels, thresholds, threads=1, size=(8, 8)):
    """Return the query maps where queries have such scores everywhere."""
    weights = np.array([levels], np.float32)
    maps = CpuReadout(threads=threads)(
        np.full((1, 2, 2), 40, np.float32), np.ones((1, 1), np.float32), (8, 8), size,
        SETTINGS, QUERY_MAPS, query_weights=weights,
        query_thresholds=np.array(thresholds, np.float32))
    (winner,) = np.unique(maps.query_mask)
    assert np.ptp(maps.query_score) < 1e-6
    return int(winner), float(maps.query_score[0, 0])


@pytest.mark.parametrize('threads', [1, 2, 4])
@pytest.mark.parametrize('size', [(8, 8), (11, 5)])
@pytest.mark.parametrize('levels, thresholds, winner, score', [
    ([0.3, 0.6, 0.5], [0.5, 0.5, 0.5], 1, 0.6),
    ([0.3, 0.6, 0.5], [0.5, 0.7, 0.4], 2, 0.6),   # the best does not reach its own threshold
    ([0.3, 0.4, 0.2], [0.5, 0.5, 0.5], 255, 0.4),
    ([0.7, 0.2, 0.7], [0.5, 0.1, 0.5], 0, 0.7),   # the first of two that tie
    ([1.2, 1.5, 0.1], [1.0, 1.0, 0.0], 1, 1.0),   # overlapping masks exceed 1
    ([0.0, 0.0, 0.0], [0.0, 0.5, 0.0], 0, 0.0)])
def test_winning_query(levels, thresholds, winner, score, threads, size):
    found = winners(levels, thresholds, threads, size)
    assert found == (winner, pytest.approx(score, abs=1e-5))


@pytest.mark.parametrize('wanted', [{'query_mask'}, {'query_score'}, QUERY_MAPS | {'confidence'}])
def test_only_the_query_maps_asked_for(wanted):
    masks, probabilities = network(11, 12, 5, 20, 30, 6.0)
    weights, thresholds = query_weights(2, 12, 4)
    task = (masks, probabilities, (80, 120), (100, 90), SETTINGS)
    queries = {'query_weights': weights, 'query_thresholds': thresholds}
    everything = CpuReadout(0)(*task, maps=ALL_MAPS | QUERY_MAPS, **queries)
    some = CpuReadout(0)(*task, maps=wanted, **queries)
    for name in ALL_MAPS | QUERY_MAPS:
        found = getattr(some, name)
        assert (found is not None) == (name in wanted)
        if name in wanted:
            np.testing.assert_allclose(found, getattr(everything, name), atol=1e-5)


@pytest.mark.parametrize('maps', [QUERY_MAPS, QUERY_MAPS | ALL_MAPS])
@pytest.mark.parametrize('queries', [{}, {
    'query_weights': np.empty((6, 0), np.float32), 'query_thresholds': np.empty(0, np.float32)}])
def test_query_maps_without_queries(maps, queries):
    task = (*network(1, 6, 3, 16, 20, 6.0), (64, 80), (30, 50), SETTINGS)
    found = CpuReadout()(*task, maps, **queries)
    assert found.query_mask.shape == (30, 50) and (found.query_mask == 255).all()
    assert found.query_score.shape == (30, 50) and not found.query_score.any()
    assert (found.semantic is None) == (maps == QUERY_MAPS)
    expected = reference.read_out(*task, maps, **queries)
    np.testing.assert_array_equal(expected.query_mask, found.query_mask)
    np.testing.assert_array_equal(expected.query_score, found.query_score)


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


def test_query_maps_belong_to_the_caller():
    readout = CpuReadout(threads=2)
    for output in ((64, 80), (96, 100)):
        def run(seed):
            weights, thresholds = query_weights(seed, 6, 3)
            return readout(*network(seed, 6, 3, 16, 20, 6.0), (64, 80), output, SETTINGS,
                           ALL_MAPS | QUERY_MAPS, query_weights=weights,
                           query_thresholds=thresholds)

        first = run(1)
        copies = {name: getattr(first, name).copy() for name in QUERY_MAPS}
        run(2)
        for name, copy in copies.items():
            np.testing.assert_array_equal(getattr(first, name), copy)


@pytest.mark.parametrize('weights, thresholds', [
    ((5, 2), (2,)), ((6, 2), (3,)), ((6, 2), (2, 1)), ((6,), ()), ((6, 255), (255,))])
def test_refuses_queries_of_other_shapes(weights, thresholds):
    with pytest.raises(ValueError, match=r'query weights \[6, Q\]'):
        CpuReadout()(*network(1, 6, 3, 4, 4, 6.0), (16, 16), (16, 16), SETTINGS, QUERY_MAPS,
                     query_weights=np.zeros(weights, np.float32),
                     query_thresholds=np.zeros(thresholds, np.float32))


# Anomalous regions that answer queries


def quarters(scores):
    """Return a function that gives the quarters of a mask, where it is set, such scores."""
    def score_regions(mask):
        middle_y, middle_x = mask.shape[0] // 2, mask.shape[1] // 2
        windows = [np.s_[y, x] for y in (slice(0, middle_y), slice(middle_y, None))
                   for x in (slice(0, middle_x), slice(middle_x, None))]
        return [RegionScores(window, mask[window] != 0, row)
                for window, row in zip(windows, scores)]
    return score_regions


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


def test_only_the_anomalous_part_of_a_region_and_only_what_reaches():
    """Left half known and of query 0, right half anomalous; the region answers query 1."""
    masks = np.full((1, 4, 4), -40, np.float32)
    masks[:, :, :2] = 40

    def run(scores, thresholds, maps=QUERY_MAPS):
        return CpuReadout()(
            masks, np.ones((1, 1), np.float32), (16, 16), (16, 16), ReadoutSettings(0.5), maps,
            query_weights=np.array([[0.9, 0.0]], np.float32),
            query_thresholds=np.array(thresholds, np.float32),
            score_regions=lambda mask: [RegionScores(
                np.s_[:, 4:], mask[:, 4:] != 0, np.array(scores, np.float32))])

    found = run([0.1, 0.8], [0.5, 0.5])
    assert (found.query_mask[:, :6] == 0).all() and (found.query_mask[:, 10:] == 1).all()
    np.testing.assert_allclose(found.query_score[:, :6], 0.9, atol=0.01)
    np.testing.assert_allclose(found.query_score[:, 10:], 0.8, atol=1e-6)
    below = run([0.1, 0.8], [0.5, 0.85])
    assert (below.query_mask[:, 10:] == 255).all()
    np.testing.assert_allclose(below.query_score[:, 10:], 0.8, atol=1e-6)
    high = run([0.1, 1.0], [0.5, 0.5])
    assert (high.query_mask[:, 4:6] == 0).all() and (high.query_score[:, 4:6] < 0.95).all()
    second = run([0.6, 0.8], [0.5, 0.85])
    assert (second.query_mask[:, 10:] == 0).all()


@pytest.mark.parametrize('level, winner', [(0.9, 0), (0.7, 1)])
def test_masks_outdo_regions_that_answer_less(level, winner):
    """Everything is anomalous; a mask without a class says query 0, the region query 1."""
    found = CpuReadout()(
        np.full((1, 2, 2), 40, np.float32), np.zeros((1, 1), np.float32), (8, 8), (8, 8),
        ReadoutSettings(0.5), QUERY_MAPS, query_weights=np.array([[level, 0.0]], np.float32),
        query_thresholds=np.array([0.5, 0.5], np.float32),
        score_regions=lambda mask: [RegionScores(
            np.s_[:, :], mask != 0, np.array([0.1, 0.8], np.float32))])
    assert (found.query_mask == winner).all()
    np.testing.assert_allclose(found.query_score, max(level, 0.8), atol=1e-5)


def test_regions_are_not_asked_without_queries():
    def fail(mask):
        raise AssertionError

    task = (*network(1, 6, 3, 16, 20, 6.0), (64, 80), (30, 50), SETTINGS)
    weights, thresholds = query_weights(3, 6, 2)
    assert CpuReadout()(*task, QUERY_MAPS, score_regions=fail).query_mask is not None
    CpuReadout()(*task, QUERY_MAPS, query_weights=weights[:, :0], query_thresholds=thresholds[:0],
                 score_regions=fail)
    CpuReadout()(*task, ALL_MAPS, query_weights=weights, query_thresholds=thresholds,
                 score_regions=fail)
    with pytest.raises(AssertionError):
        CpuReadout()(*task, QUERY_MAPS, query_weights=weights, query_thresholds=thresholds,
                     score_regions=fail)
