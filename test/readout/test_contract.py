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
"""The contract of readouts, for that on the CPU and that on the GPU (fixture make)."""

import cv2
import numpy as np
from owseg_ros.readout import reference
from owseg_ros.readout.cpu import SCORE_TOLERANCES, TOLERANCE
from owseg_ros.readout.maps import ALL_MAPS, QUERY_MAPS, ReadoutSettings, RegionScores
import pytest
from support.readouts import assert_close, network, query_weights, ROUNDING, SETTINGS


def test_half_precision_and_strided_input(make):
    masks, probabilities = network(5, 9, 4, 20, 24, 6.0)
    half = masks.astype(np.float16)
    expected = make()(half.astype(np.float32), probabilities, (80, 96), (80, 96), SETTINGS)
    wide = np.zeros((9, 20, 48), np.float16)
    wide[:, :, ::2] = half
    found = make()(wide[:, :, ::2], probabilities, (80, 96), (80, 96), SETTINGS)
    np.testing.assert_array_equal(found.anomaly_score, expected.anomaly_score)
    np.testing.assert_array_equal(found.semantic, expected.semantic)


def test_double_precision_input(make):
    masks, probabilities = network(5, 9, 4, 20, 24, 6.0)
    task = ((80, 96), (80, 96), SETTINGS)
    expected = make()(masks, probabilities, *task)
    found = make()(masks.astype(np.float64), probabilities.astype(np.float64), *task)
    np.testing.assert_allclose(found.anomaly_score, expected.anomaly_score, atol=ROUNDING)


@pytest.mark.parametrize('offset', [0, -40, -80])
@pytest.mark.parametrize('no_object', [0, 6, 10])
def test_labels_hold_where_every_class_rejects_the_pixel(make, offset, no_object):
    """There all L_k may lie far below the tolerance; the largest is the label all the same."""
    random = np.random.default_rng(no_object - offset)
    shapes = random.normal(0, 20, (40, 5, 7)).astype(np.float32)
    masks = np.stack([cv2.resize(shape, (56, 40), interpolation=cv2.INTER_CUBIC)
                      for shape in shapes]) + np.float32(offset)
    logits = random.normal(0, 2, (40, 12))
    logits[:, -1] += no_object
    probabilities = reference.class_probabilities(logits).astype(np.float32)
    found = make()(masks, probabilities, (160, 224), (160, 224), SETTINGS)
    scores = reference.class_scores(
        masks.astype(np.float64), probabilities.astype(np.float64), (160, 224))
    if offset:
        assert (scores.max(axis=0) < 1e-3).mean() > 0.05
    assert (found.semantic != reference.semantic(scores)).mean() <= 5e-4


@pytest.mark.parametrize('wanted', [
    set(), {'semantic'}, {'confidence'}, {'anomaly_score'}, {'anomaly_mask'},
    {'semantic', 'anomaly_mask'}, {'confidence', 'anomaly_score'}, ALL_MAPS])
@pytest.mark.parametrize('chosen', [
    SETTINGS, ReadoutSettings(0.5, 6, mark_unknown=True, min_confidence=0.4)])
def test_computes_only_what_is_asked_for(make, wanted, chosen):
    masks, probabilities = network(11, 12, 5, 20, 30, 6.0)
    task = (masks, probabilities, (80, 120), (100, 90), chosen)
    everything, some = make()(*task), make()(*task, maps=wanted)
    for name in ALL_MAPS:
        if name in wanted:
            np.testing.assert_array_equal(getattr(some, name), getattr(everything, name))
        else:
            assert getattr(some, name) is None


@pytest.mark.parametrize('stride', [1, 2, 4])
@pytest.mark.parametrize('size, output', [
    ((88, 120), (88, 120)), ((88, 120), (100, 90)), ((87, 119), (87, 119)), ((30, 31), (99, 77))])
def test_strides_evaluate_the_masks_at_a_smaller_size(make, stride, size, output):
    masks, probabilities = network(7, 12, 5, 22, 30, 6.0)
    chosen = ReadoutSettings(0.5, 6, stride=stride)
    maps = make()(masks, probabilities, size, output, chosen)
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


def test_marks_as_the_reference_does(make):
    masks, probabilities = network(17, 6, 3, 16, 20, 25.0)
    chosen = ReadoutSettings(0.5, 4, mark_unknown=True, min_confidence=0.4)
    task = (masks, probabilities, (64, 80), (64, 80), chosen)
    found, expected = make(tolerance=0)(*task), reference.read_out(*task)
    assert {254} <= set(np.unique(expected.semantic).tolist())
    assert (found.semantic == expected.semantic).mean() > 0.999


def test_results_belong_to_the_caller(make):
    """A second frame must not reach into the maps of the first, whatever their size."""
    readout = make(threads=2)
    for output in ((64, 80), (96, 100)):
        first = readout(*network(1, 6, 3, 16, 20, 6.0), (64, 80), output, SETTINGS)
        copies = {name: getattr(first, name).copy() for name in ALL_MAPS}
        readout(*network(2, 6, 3, 16, 20, 6.0), (64, 80), output, SETTINGS)
        for name, copy in copies.items():
            np.testing.assert_array_equal(getattr(first, name), copy)


def test_input_is_not_modified(make):
    masks, probabilities = network(1, 6, 3, 16, 20, 6.0)
    kept = masks.copy(), probabilities.copy()
    make()(masks, probabilities, (64, 80), (64, 80), SETTINGS)
    np.testing.assert_array_equal(masks, kept[0])
    np.testing.assert_array_equal(probabilities, kept[1])


def test_changing_geometry_and_settings(make):
    """One object follows a change of camera, network and threshold between frames."""
    readout = make()
    for seed, (height, width, output, threshold) in enumerate([
            (16, 20, (64, 80), 0.3), (22, 30, (100, 50), 0.9), (16, 20, (64, 80), 0.5)]):
        masks, probabilities = network(seed, 5 + seed, 3, height, width, 6.0)
        chosen = ReadoutSettings(threshold, 3)
        size = (4 * height, 4 * width)
        maps = readout(masks, probabilities, size, output, chosen)
        assert_close(maps, masks, probabilities, size, output, chosen, TOLERANCE + ROUNDING)


def test_many_classes(make):
    masks, probabilities = network(1, 30, 254, 8, 8, 6.0)
    maps = make()(masks, probabilities, (32, 32), (32, 32), SETTINGS)
    assert_close(maps, masks, probabilities, (32, 32), (32, 32), SETTINGS, TOLERANCE + 1e-4)
    with pytest.raises(ValueError, match='254'):
        make()(masks, np.zeros((30, 255), np.float32), (32, 32), (32, 32), SETTINGS)


@pytest.mark.parametrize('masks, probabilities, size', [
    ((3, 4), (3, 2), (16, 16)), ((3, 4, 4), (2, 2), (16, 16)), ((0, 4, 4), (0, 2), (16, 16)),
    ((3, 4, 4), (3, 0), (16, 16)), ((3, 4, 4), (3, 2), (0, 16)), ((3, 4, 4), (3,), (16, 16))])
def test_refuses_shapes_that_disagree(make, masks, probabilities, size):
    with pytest.raises(ValueError):
        make()(np.zeros(masks, np.float32), np.zeros(probabilities, np.float32), size, size,
               SETTINGS)


def test_whole_read_out_with_queries_agrees_with_the_reference(make):
    masks, probabilities = network(21, 9, 4, 20, 24, 25.0)
    weights, thresholds = query_weights(1, 9, 3)
    task = (masks, probabilities, (80, 96), (100, 90), SETTINGS, QUERY_MAPS | {'semantic'})
    queries = {'query_weights': weights, 'query_thresholds': thresholds}
    expected = reference.read_out(*task, **queries)
    found = make()(*task, **queries)
    np.testing.assert_allclose(found.query_score, expected.query_score, atol=TOLERANCE + ROUNDING)
    assert (found.query_mask == expected.query_mask).mean() > 0.99
    assert len(np.unique(expected.query_mask)) >= 3
    assert expected.anomaly_mask is None is found.anomaly_mask


def winners(make, levels, thresholds, size=(8, 8)):
    """Return the query maps where queries have such scores everywhere."""
    weights = np.array([levels], np.float32)
    maps = make()(
        np.full((1, 2, 2), 40, np.float32), np.ones((1, 1), np.float32), (8, 8), size,
        SETTINGS, QUERY_MAPS, query_weights=weights,
        query_thresholds=np.array(thresholds, np.float32))
    (winner,) = np.unique(maps.query_mask)
    assert np.ptp(maps.query_score) < 1e-6
    return int(winner), float(maps.query_score[0, 0])


@pytest.mark.parametrize('size', [(8, 8), (11, 5)])
@pytest.mark.parametrize('levels, thresholds, winner, score', [
    ([0.3, 0.6, 0.5], [0.5, 0.5, 0.5], 1, 0.6),
    ([0.3, 0.6, 0.5], [0.5, 0.7, 0.4], 2, 0.6),   # the best does not reach its own threshold
    ([0.3, 0.4, 0.2], [0.5, 0.5, 0.5], 255, 0.4),
    ([0.7, 0.2, 0.7], [0.5, 0.1, 0.5], 0, 0.7),   # the first of two that tie
    ([1.2, 1.5, 0.1], [1.0, 1.0, 0.0], 1, 1.0),   # overlapping masks exceed 1
    ([0.0, 0.0, 0.0], [0.0, 0.5, 0.0], 0, 0.0)])
def test_winning_query(make, levels, thresholds, winner, score, size):
    found = winners(make, levels, thresholds, size)
    assert found == (winner, pytest.approx(score, abs=1e-5))


@pytest.mark.parametrize('wanted', [{'query_mask'}, {'query_score'}, QUERY_MAPS | {'confidence'}])
def test_only_the_query_maps_asked_for(make, wanted):
    masks, probabilities = network(11, 12, 5, 20, 30, 6.0)
    weights, thresholds = query_weights(2, 12, 4)
    task = (masks, probabilities, (80, 120), (100, 90), SETTINGS)
    queries = {'query_weights': weights, 'query_thresholds': thresholds}
    everything = make(0)(*task, maps=ALL_MAPS | QUERY_MAPS, **queries)
    some = make(0)(*task, maps=wanted, **queries)
    for name in ALL_MAPS | QUERY_MAPS:
        found = getattr(some, name)
        assert (found is not None) == (name in wanted)
        if name in wanted:
            np.testing.assert_allclose(found, getattr(everything, name), atol=1e-5)


@pytest.mark.parametrize('maps', [QUERY_MAPS, QUERY_MAPS | ALL_MAPS])
@pytest.mark.parametrize('queries', [{}, {
    'query_weights': np.empty((6, 0), np.float32), 'query_thresholds': np.empty(0, np.float32)}])
def test_query_maps_without_queries(make, maps, queries):
    task = (*network(1, 6, 3, 16, 20, 6.0), (64, 80), (30, 50), SETTINGS)
    found = make()(*task, maps, **queries)
    assert found.query_mask.shape == (30, 50) and (found.query_mask == 255).all()
    assert found.query_score.shape == (30, 50) and not found.query_score.any()
    assert (found.semantic is None) == (maps == QUERY_MAPS)
    expected = reference.read_out(*task, maps, **queries)
    np.testing.assert_array_equal(expected.query_mask, found.query_mask)
    np.testing.assert_array_equal(expected.query_score, found.query_score)


def test_query_maps_belong_to_the_caller(make):
    readout = make(threads=2)
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
def test_refuses_queries_of_other_shapes(make, weights, thresholds):
    with pytest.raises(ValueError, match=r'query weights \[6, Q\]'):
        make()(*network(1, 6, 3, 4, 4, 6.0), (16, 16), (16, 16), SETTINGS, QUERY_MAPS,
               query_weights=np.zeros(weights, np.float32),
               query_thresholds=np.zeros(thresholds, np.float32))


def test_only_the_anomalous_part_of_a_region_and_only_what_reaches(make):
    """Left half known and of query 0, right half anomalous; the region answers query 1."""
    masks = np.full((1, 4, 4), -40, np.float32)
    masks[:, :, :2] = 40

    def run(scores, thresholds, maps=QUERY_MAPS):
        return make()(
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
def test_masks_outdo_regions_that_answer_less(make, level, winner):
    """Everything is anomalous; a mask without a class says query 0, the region query 1."""
    found = make()(
        np.full((1, 2, 2), 40, np.float32), np.zeros((1, 1), np.float32), (8, 8), (8, 8),
        ReadoutSettings(0.5), QUERY_MAPS, query_weights=np.array([[level, 0.0]], np.float32),
        query_thresholds=np.array([0.5, 0.5], np.float32),
        score_regions=lambda mask: [RegionScores(
            np.s_[:, :], mask != 0, np.array([0.1, 0.8], np.float32))])
    assert (found.query_mask == winner).all()
    np.testing.assert_allclose(found.query_score, max(level, 0.8), atol=1e-5)


def test_regions_are_not_asked_without_queries(make):
    def fail(mask):
        raise AssertionError

    task = (*network(1, 6, 3, 16, 20, 6.0), (64, 80), (30, 50), SETTINGS)
    weights, thresholds = query_weights(3, 6, 2)
    assert make()(*task, QUERY_MAPS, score_regions=fail).query_mask is not None
    make()(*task, QUERY_MAPS, query_weights=weights[:, :0], query_thresholds=thresholds[:0],
           score_regions=fail)
    make()(*task, ALL_MAPS, query_weights=weights, query_thresholds=thresholds,
           score_regions=fail)
    with pytest.raises(AssertionError):
        make()(*task, QUERY_MAPS, query_weights=weights, query_thresholds=thresholds,
               score_regions=fail)
