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
"""The reference readout against hand-computed values and independent implementations."""

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.readout import reference
from owseg_ros.readout.maps import ALL_MAPS, check_maps, QUERY_MAPS, ReadoutSettings
import pytest

SIZES = st.integers(1, 12)


@st.composite
def networks(draw, max_queries=6, max_classes=5):
    """Draw mask logits [N, h, w], class logits [N, K + 1] and a network size."""
    count, classes = draw(st.integers(1, max_queries)), draw(st.integers(1, max_classes))
    height, width = draw(SIZES), draw(SIZES)
    random = np.random.default_rng(draw(st.integers(0, 2 ** 32 - 1)))
    spread = draw(st.sampled_from([0.5, 4.0, 30.0]))
    masks = random.normal(0, spread, (count, height, width))
    logits = random.normal(0, spread, (count, classes + 1))
    size = (draw(st.integers(1, 30)), draw(st.integers(1, 30)))
    return masks, logits, size


def test_bilinear_by_hand():
    """Two pixels to four: positions -0.25, 0.25, 0.75, 1.25, clamped at both ends."""
    found = reference.upsample_bilinear(np.array([[0.0, 4.0]]), (1, 4))
    np.testing.assert_allclose(found, [[0.0, 1.0, 3.0, 4.0]])
    found = reference.upsample_bilinear(np.array([[0.0, 1.0, 2.0, 3.0]]), (1, 2))
    np.testing.assert_allclose(found, [[0.5, 2.5]])


@given(SIZES, SIZES, st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_bilinear_against_opencv(height, width, out_height, out_width, seed):
    maps = np.random.default_rng(seed).normal(size=(2, height, width)).astype(np.float32)
    found = reference.upsample_bilinear(maps, (out_height, out_width))
    for plane, expected in zip(found, maps):
        expected = cv2.resize(expected, (out_width, out_height),
                              interpolation=cv2.INTER_LINEAR)
        np.testing.assert_allclose(plane, expected, atol=2e-5)


@given(SIZES, SIZES, st.integers(1, 40), st.integers(1, 40), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_bilinear_against_scipy(height, width, out_height, out_width, seed):
    ndimage = pytest.importorskip('scipy.ndimage')
    plane = np.random.default_rng(seed).normal(size=(height, width))
    rows = (np.arange(out_height) + 0.5) * height / out_height - 0.5
    columns = (np.arange(out_width) + 0.5) * width / out_width - 0.5
    expected = ndimage.map_coordinates(
        plane, np.meshgrid(rows, columns, indexing='ij'), order=1, mode='nearest')
    found = reference.upsample_bilinear(plane, (out_height, out_width))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize('size', [(352, 480), (33, 17), (5, 100), (88, 120)])
def test_bilinear_against_torch(size):
    functional = pytest.importorskip('torch.nn.functional')
    torch = pytest.importorskip('torch')
    maps = np.random.default_rng(1).normal(size=(3, 88, 120))
    expected = functional.interpolate(
        torch.from_numpy(maps)[None], size, mode='bilinear', align_corners=False)[0].numpy()
    np.testing.assert_allclose(reference.upsample_bilinear(maps, size), expected, atol=1e-12)


@given(SIZES, SIZES)
def test_interpolation_is_a_convex_combination(size_in, size_out):
    matrix = reference.interpolation_matrix(size_in, size_out)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(axis=1), 1.0)
    assert (np.count_nonzero(matrix, axis=1) <= 2).all()


def test_interpolation_refuses_empty_sizes():
    with pytest.raises(ValueError, match='positive'):
        reference.interpolation_matrix(0, 3)


def test_scores_by_hand():
    """One pixel, two queries, two classes: L = P^T sigmoid(M), no renormalisation."""
    masks = np.array([0.0, np.log(3.0)]).reshape(2, 1, 1)  # sigmoid: 1/2 and 3/4
    probabilities = np.array([[0.5, 0.1], [0.2, 0.7]])
    scores = reference.class_scores(masks, probabilities, (1, 1))
    np.testing.assert_allclose(scores[:, 0, 0], [0.4, 0.575])
    np.testing.assert_allclose(
        reference.rba(scores), 1 - np.tanh(0.4) - np.tanh(0.575), atol=1e-12)
    assert reference.semantic(scores)[0, 0] == 1
    assert reference.confidence(scores)[0, 0] == 147  # of 146.625


def test_probabilities_drop_the_last_column_without_renormalising():
    logits = np.log(np.array([[[0.2, 0.3, 0.5], [0.6, 0.4, 1.0]]]))
    found = reference.class_probabilities(logits)
    np.testing.assert_allclose(found, [[[0.2, 0.3], [0.3, 0.2]]], atol=1e-12)


def test_sigmoid_and_softmax_do_not_overflow():
    values = np.array([-1e4, 0.0, 1e4])
    np.testing.assert_allclose(reference.sigmoid(values), [0.0, 0.5, 1.0])
    np.testing.assert_allclose(reference.softmax(values), [0.0, 0.0, 1.0])


def test_upsampling_comes_before_the_sigmoid():
    """Logits -8 and 8 meet in a sharp edge; sigmoids of 0 and 1 would meet in a ramp."""
    masks = np.array([[[-8.0, 8.0]]])
    scores = reference.class_scores(masks, np.array([[1.0]]), (1, 8))[0, 0]
    expected = reference.sigmoid(reference.upsample_bilinear(masks, (1, 8)))[0, 0]
    np.testing.assert_allclose(scores, expected)
    ramp = reference.upsample_bilinear(reference.sigmoid(masks), (1, 8))[0, 0]
    assert np.abs(scores - ramp).max() > 0.1


@given(networks())
@settings(max_examples=60, deadline=None)
def test_rba_stays_in_its_range(network):
    """The score lies in [1 - K, 1]; L is not negative and at most the sum of P over queries."""
    masks, logits, size = network
    probabilities = reference.class_probabilities(logits)
    scores = reference.class_scores(masks, probabilities, size)
    assert (scores >= 0).all()
    assert (scores <= probabilities.sum(axis=0)[:, None, None] + 1e-9).all()
    score = reference.rba(scores)
    assert score.shape == size
    assert (score <= 1 + 1e-9).all()
    assert (score >= 1 - probabilities.shape[1] - 1e-9).all()


@given(networks())
@settings(max_examples=30, deadline=None)
def test_rejected_by_all_scores_one(network):
    """Where no mask is on, or every query says no-object, the pixel is wholly unknown."""
    masks, logits, size = network
    logits = logits.copy()
    off = reference.class_scores(
        np.full_like(masks, -1e3), reference.class_probabilities(logits), size)
    np.testing.assert_allclose(reference.rba(off), 1.0, atol=1e-9)
    logits[:, -1] = 1e3 + logits.max()
    nothing = reference.class_scores(masks, reference.class_probabilities(logits), size)
    np.testing.assert_allclose(reference.rba(nothing), 1.0, atol=1e-9)


@given(networks(), st.floats(0.01, 5.0))
@settings(max_examples=40, deadline=None)
def test_score_falls_as_a_mask_rises(network, rise):
    masks, logits, size = network
    probabilities = reference.class_probabilities(logits)
    before = reference.class_scores(masks, probabilities, size)
    masks = masks.copy()
    masks[0] += rise
    after = reference.class_scores(masks, probabilities, size)
    assert (after >= before - 1e-12).all()
    assert (reference.rba(after) <= reference.rba(before) + 1e-12).all()


@given(networks())
@settings(max_examples=30, deadline=None)
def test_order_of_queries_does_not_matter(network):
    masks, logits, size = network
    probabilities = reference.class_probabilities(logits)
    scores = reference.class_scores(masks, probabilities, size)
    mirrored = reference.class_scores(masks[::-1], probabilities[::-1], size)
    np.testing.assert_allclose(scores, mirrored, atol=1e-12)


def test_output_size_resamples_the_scores_not_the_score():
    random = np.random.default_rng(3)
    masks, probabilities = random.normal(0, 6, (4, 6, 8)), random.random((4, 3)) / 2
    scores = reference.class_scores(masks, probabilities, (24, 32), (30, 40))
    expected = reference.upsample_bilinear(
        reference.class_scores(masks, probabilities, (24, 32)), (30, 40))
    np.testing.assert_allclose(scores, expected)


def test_clean_mask_removes_specks_and_fills_holes():
    mask = np.zeros((9, 9), bool)
    mask[1:8, 1:6] = True   # a block of 35
    mask[4, 3] = False      # with a hole of 1
    mask[0, 8] = True       # and specks of 1 and, joined by a corner, of 2
    mask[3, 8], mask[4, 7] = True, True
    found = reference.clean_mask(mask, 2)
    expected = mask.copy()
    expected[4, 3], expected[0, 8] = True, False
    np.testing.assert_array_equal(found, expected * np.uint8(255))
    assert not reference.clean_mask(mask, 40).any()
    np.testing.assert_array_equal(reference.clean_mask(mask, 0), mask * np.uint8(255))


def test_clean_mask_keeps_bays_of_the_border():
    """A notch at the border is no hole, and a hole that only a corner joins to it still is."""
    mask = np.ones((6, 6), bool)
    mask[0, 2] = False
    mask[3, 3] = False
    found = reference.clean_mask(mask, 3)
    assert found[0, 2] == 0
    assert found[3, 3] == 255


def test_read_out_gives_only_what_is_asked_for():
    random = np.random.default_rng(0)
    maps = reference.read_out(
        random.normal(size=(3, 4, 4)), random.random((3, 2)), (16, 16), (16, 16),
        ReadoutSettings(0.5), maps={'confidence'})
    assert maps.confidence.shape == (16, 16)
    assert maps.semantic is None and maps.anomaly_mask is None and maps.anomaly_score is None


def test_read_out_marks_unknown_and_unsure_pixels():
    """Query 0 claims the left half; nothing claims the right one."""
    masks = np.full((1, 4, 4), -30.0)
    masks[:, :, :2] = 30.0
    probabilities = np.array([[0.1, 0.9]])
    task = (masks, probabilities, (16, 16), (16, 16))
    plain = reference.read_out(*task, ReadoutSettings(0.6))
    assert plain.semantic[:, :6].tolist() == [[1] * 6] * 16
    assert (plain.anomaly_mask[:, 10:] == 255).all() and (plain.anomaly_mask[:, :6] == 0).all()
    unsure = reference.read_out(*task, ReadoutSettings(0.6, min_confidence=0.5))
    assert (unsure.semantic[:, 10:] == 255).all() and (unsure.semantic[:, :6] == 1).all()
    unknown = reference.read_out(
        *task, ReadoutSettings(0.6, min_confidence=0.5, mark_unknown=True))
    assert (unknown.semantic[:, 10:] == 254).all() and (unknown.semantic[:, :6] == 1).all()


@pytest.mark.parametrize('values, text', [
    ({'anomaly_threshold': float('nan')}, 'anomaly_threshold'),
    ({'anomaly_threshold': 0.5, 'min_area': -1}, 'min_area'),
    ({'anomaly_threshold': 0.5, 'min_confidence': 1.5}, 'min_confidence'),
    ({'anomaly_threshold': 0.5, 'output_size': 'huge'}, 'output_size'),
])
def test_settings_refuse_nonsense(values, text):
    with pytest.raises(ValueError, match=text):
        ReadoutSettings(**values)


def test_min_area_is_scaled_by_area():
    chosen = ReadoutSettings(0.5, min_area=64)
    assert chosen.scaled_min_area((100, 100), (100, 100)) == 64
    assert chosen.scaled_min_area((100, 100), (200, 300)) == 384
    assert chosen.scaled_min_area((100, 100), (50, 50)) == 16


def test_check_maps():
    assert check_maps('semantic') == {'semantic'}
    assert check_maps(ALL_MAPS) == ALL_MAPS
    assert check_maps(ALL_MAPS | QUERY_MAPS) == {
        'semantic', 'confidence', 'anomaly_score', 'anomaly_mask', 'query_mask', 'query_score'}
    with pytest.raises(ValueError, match='depth'):
        check_maps(['semantic', 'depth'])


def test_query_maps_by_hand():
    """Three queries at four pixels; the thresholds are 0.5, 0.5 and 0.9."""
    scores = np.array([[0.5, 0.2, 0.6, 1.4], [0.4, 0.1, 0.6, 1.6], [0.8, 0.3, 0.95, 0.0]])
    scores = scores[:, None]
    np.testing.assert_array_equal(
        reference.query_mask(scores, np.array([0.5, 0.5, 0.9])), [[0, 255, 2, 1]])
    np.testing.assert_allclose(reference.query_score(scores), [[0.8, 0.3, 0.95, 1.0]])
    np.testing.assert_array_equal(
        reference.query_mask(scores[:2], np.array([0.5, 0.5])), [[0, 255, 0, 1]])
    np.testing.assert_array_equal(reference.query_mask(scores[:0], np.empty(0)), [[255] * 4])
    np.testing.assert_array_equal(reference.query_score(scores[:0]), [[0.0] * 4])
