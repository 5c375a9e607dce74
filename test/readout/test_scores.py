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
from dataclasses import replace
import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import owseg_ros
from owseg_ros.bundle import ClassStatistics
from owseg_ros.readout import (
    anomaly_scores, available_scores, CpuReadout, make_score, ReadoutSettings, reference,
    ScoreError, SCORES)
from owseg_ros.readout.cpu import TOLERANCE
import pytest

STATISTICS = ClassStatistics(mean=(0.9, 0.5, 0.7), std=(0.1, 0.3, 0.2))


def network(seed=0, count=9, height=12, width=17):
    random = np.random.default_rng(seed)
    masks = random.normal(0, 4, (count, height, width)).astype(np.float32)
    logits = random.normal(0, 2, (count, 5))
    probabilities = reference.class_probabilities(logits).astype(np.float32)
    # Three known classes, the outlier class, and no-object, which is dropped.
    return masks, probabilities[:, :3], probabilities[:, 3]


def opened(name):
    return make_score(name, STATISTICS, outlier_class=True)


def exact(name, masks, probabilities, outlier, size, output):
    masks, probabilities, outlier = (
        array.astype(np.float64) for array in (masks, probabilities, outlier))
    return reference.anomaly_score(
        name, masks, probabilities, size, output, STATISTICS, outlier)


@pytest.mark.parametrize('output', [(48, 68), (30, 41)], ids=['network size', 'camera size'])
@pytest.mark.parametrize('name', SCORES)
def test_every_score_is_its_equation(make, name, output):
    masks, probabilities, outlier = network()
    size = (48, 68)
    maps = make(tolerance=0, threads=2)(
        masks, probabilities, size, output,
        ReadoutSettings(anomaly_threshold=0.0, score=opened(name)), {'anomaly_score'}, outlier)
    expected = exact(name, masks, probabilities, outlier, size, output)
    if name == 'standardized_max_logit':
        # Where two classes tie but for rounding, the score jumps from one's scale to the other's.
        levels = np.sort(reference.class_scores(masks, probabilities, size, output), axis=0)
        clear = levels[-1] - levels[-2] > 1e-4
        assert clear.mean() > 0.99
        np.testing.assert_allclose(maps.anomaly_score[clear], expected[clear], atol=1e-4)
    else:
        np.testing.assert_allclose(maps.anomaly_score, expected, atol=2e-5)
    assert maps.anomaly_score.dtype == np.float32 and np.ptp(expected) > 0.05


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2 ** 32 - 1),
       name=st.sampled_from(['max_logit', 'energy', 'eam', 'uno']))
def test_lipschitz_scores_err_by_the_tolerance(seed, name):
    masks, probabilities, outlier = network(seed)
    size = (48, 68)
    found = CpuReadout(tolerance=0.05).anomaly_scores(
        masks, probabilities, size, size, [opened(name)], outlier)[name]
    error = np.abs(found - exact(name, masks, probabilities, outlier, size, size)).max()
    # UNO is the difference of two columns, but one plane: its weights have one bound.
    assert error <= 0.05 + 2e-5


def test_all_scores_of_a_frame_are_those_computed_alone():
    masks, probabilities, outlier = network(3)
    size, output = (48, 68), (40, 50)
    together = anomaly_scores(masks, probabilities, size, output,
                              [opened(name) for name in SCORES], outlier)
    assert list(together) == list(SCORES)
    for name, score in together.items():
        alone = CpuReadout()(masks, probabilities, size, output, ReadoutSettings(
            anomaly_threshold=0.0, score=opened(name)), {'anomaly_score'}, outlier)
        # The columns of other scores may make a block evaluate more queries exactly.
        np.testing.assert_allclose(score, alone.anomaly_score, atol=0.05 if name.startswith(
            'standard') else 10 * TOLERANCE)


@pytest.mark.parametrize('name', SCORES)
def test_rejected_pixels_are_stranger_than_accepted_ones(name):
    low, high = opened(name).range(3)
    assert np.isfinite([low, high]).all() and low < high
    # The left half is claimed by class 0 alone, the right half by no query.
    masks = np.full((1, 4, 8), -20, np.float32)
    masks[:, :, :4] = 20
    probabilities, outlier = np.array([[1, 0, 0]], np.float32), np.zeros(1, np.float32)
    score = anomaly_scores(
        masks, probabilities, (16, 32), (16, 32), [opened(name)], outlier)[name]
    if name not in ('standardized_max_logit', 'uno'):
        np.testing.assert_allclose(score[:, 0], low, atol=1e-4)
        np.testing.assert_allclose(score[:, -1], high, atol=1e-4)
    assert (score[:, -1] > score[:, 0]).all()


@pytest.mark.parametrize('name', SCORES)
def test_mask_and_ids_follow_the_score(name):
    masks, probabilities, outlier = network(5)
    size, score = (48, 68), opened(name)
    middle = float(np.median(exact(name, masks, probabilities, outlier, size, size)))
    marked = ReadoutSettings(anomaly_threshold=middle, score=score, mark_unknown=True)
    maps = CpuReadout()(masks, probabilities, size, size, marked, outlier=outlier)
    np.testing.assert_array_equal(maps.anomaly_mask != 0,
                                  maps.anomaly_score >= np.float32(middle))
    assert 0.3 < (maps.anomaly_mask != 0).mean() < 0.7
    np.testing.assert_array_equal(maps.semantic == 254, maps.anomaly_mask != 0)
    plain = CpuReadout()(masks, probabilities, size, size, replace(marked, mark_unknown=False),
                         {'semantic'})
    np.testing.assert_array_equal(plain.semantic[maps.anomaly_mask == 0],
                                  maps.semantic[maps.anomaly_mask == 0])


def test_large_scores_stay_finite():
    masks = np.full((200, 2, 2), 30, np.float32)
    probabilities = np.zeros((200, 3), np.float32)
    probabilities[:, 0] = 1  # L_0 = 200: exp overflows float32.
    found = anomaly_scores(masks, probabilities, (8, 8), (8, 8),
                           [make_score(name) for name in available_scores()])
    assert all(np.isfinite(score).all() for score in found.values())
    assert found['max_logit'].max() == pytest.approx(-200, rel=1e-4)
    assert found['msp'].max() == pytest.approx(0, abs=1e-6)


def test_scores_say_what_they_need():
    with pytest.raises(ScoreError, match='no anomaly score is called .*rba.*uno'):
        make_score('odin')
    with pytest.raises(ScoreError, match='calibrate'):
        make_score('standardized_max_logit')
    with pytest.raises(ScoreError, match='outlier class'):
        make_score('uno')
    masks, probabilities, _ = network()
    with pytest.raises(ScoreError, match='outlier class'):
        anomaly_scores(masks, probabilities, (48, 68), (48, 68), [opened('uno')])
    assert set(SCORES) - set(available_scores()) == {'standardized_max_logit', 'uno'}
    assert available_scores(STATISTICS, True) == tuple(SCORES)


def test_the_schema_of_bundles_knows_the_scores():
    schema = json.loads(
        (Path(owseg_ros.__file__).parent / 'schemas' / 'bundle.schema.json').read_text())
    assert schema['definitions']['score']['enum'] == list(SCORES)
