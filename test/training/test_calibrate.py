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

import cv2
import numpy as np
from owseg_ros.bundle import load_bundle
from owseg_ros.operating_point import OperatingPointError
from owseg_ros.readout import available_scores, ScoreError
from owseg_ros.segmenter import readout_settings, Segmenter
from owseg_training.calibrate import (
    calibrate, calibrate_bundle, labelled_frames, measured_statistics, RATES)
from owseg_training.cli import main
from owseg_training.data.datasets import DataError, open_data_set
import pytest
from support.tiny_bundle import make_tiny_bundle

SIZE = (96, 128)


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def picture(seed, names):
    """Return ids and a picture whose pixels fade from pure colours to grey."""
    random = np.random.default_rng(seed)
    ids = np.kron(random.integers(0, 3, (4, 4)), np.ones((24, 32))).astype(np.uint8)
    strength = random.uniform(0.3, 1.0, (*SIZE, 1))
    pure = 255 * np.eye(3)[ids]
    return ids, (strength * pure + (1 - strength) * 128).astype(np.uint8)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Write camvid with the tiny network's classes, and road_anomaly with grey objects."""
    root = tmp_path_factory.mktemp('data')
    names = ['red', 'green', 'blue']
    listing = [f'{{"id": {i}, "name": "{n}", "colour": [{i}, 0, 0]}}'
               for i, n in enumerate(names)]
    (root / 'camvid').mkdir()
    (root / 'camvid' / 'classes.json').write_text(f'{{"classes": [{", ".join(listing)}]}}')
    for split, count in (('train', 2), ('val', 4)):
        stems = [f'{split}{k}' for k in range(count)]
        (root / 'camvid' / f'{split}.txt').write_text('\n'.join(f'{s}.png' for s in stems))
        for k, stem in enumerate(stems):
            ids, image = picture(10 * count + k, names)
            ids[:8] = 255
            image[:8] = 128  # Void, as strange as can be: it must not count as a false alarm.
            write(root / 'camvid' / 'images' / f'{stem}.jpg', image)
            write(root / 'camvid' / 'labels' / f'{stem}.png', ids)
    for k in range(2):
        _, image = picture(50 + k, names)
        mask = np.zeros(SIZE, np.uint8)
        mask[30:70, 40:90] = 1
        image[30:70, 40:90] = 128
        write(root / 'road_anomaly' / 'images' / f'r{k}.png', image)
        write(root / 'road_anomaly' / 'masks' / f'r{k}.png', mask)
    return root


@pytest.fixture
def bundle(tmp_path):
    return make_tiny_bundle(tmp_path / 'tiny', width=128, height=96)


def known_scores(bundle, data, **settings):
    """Return the scores of the known pixels of val under some settings."""
    segmenter = Segmenter(bundle)
    segmenter.settings = readout_settings(bundle, threshold=0.0, **settings)
    val = open_data_set('camvid', 'val', data)
    return np.concatenate([segmenter(image).anomaly_score[label < 3]
                           for image, label in labelled_frames(val, val.items)])


def test_thresholds_let_the_stated_share_of_known_pixels_pass(bundle, data):
    written = calibrate_bundle(
        bundle.path, open_data_set('camvid', 'val', data),
        open_data_set('road_anomaly', root=data), open_data_set('camvid', 'train', data),
        point='fpr=0.05')
    assert load_bundle(bundle.path) == written
    anomaly = written.anomaly
    names = available_scores(anomaly.statistics)
    assert {(c.score, c.objects) for c in anomaly.curves} == {
        (name, objects) for name in names for objects in (False, True)}
    assert 'standardized_max_logit' in names and len(anomaly.statistics.mean) == 3
    for score, objects in (('rba', False), ('energy', True), ('msp', False)):
        scores = known_scores(written, data, score=score, objects=objects)
        curve = anomaly.curve(score, objects)
        for rate in (0.01, 0.05, 0.2):
            threshold = anomaly.threshold_for(f'fpr={rate}', score, objects)
            # Within the tolerance of the fast readout, whose shortcuts depend on what it computes.
            assert (scores >= threshold + 0.005).mean() <= rate <= (
                scores >= threshold - 0.005).mean()
        assert curve.fpr == tuple(r for r in RATES if r >= 10 / scores.size)
        assert all(a <= b for a, b in zip(curve.tpr, curve.tpr[1:]))
        # The tiny network's queries without object mask everything: no objects there.
        assert objects or (curve.tpr[-1] > 0.9 and 0.3 < curve.best_f1 <= 1)
    assert anomaly.threshold == pytest.approx(anomaly.threshold_for('fpr=0.05'))
    assert anomaly.operating_point == 'fpr=0.05 of the known pixels of CamVid val'


@pytest.mark.parametrize('choice, error, pattern', [
    ({'score': 'foo'}, ScoreError, "called 'foo'"),
    ({'point': 'foo'}, OperatingPointError, 'not "foo"')])
def test_what_cannot_be_chosen_is_refused_before_it_is_measured(choice, error, pattern):
    with pytest.raises(error, match=pattern):
        calibrate_bundle('there is no such bundle', None, **choice)


def test_the_best_f1_is_that_of_its_threshold(bundle, data):
    road = open_data_set('road_anomaly', root=data)
    written = calibrate_bundle(bundle.path, open_data_set('camvid', 'val', data), road,
                               point='best_f1')
    segmenter = Segmenter(written)
    frames = [(segmenter(image), label) for image, label in labelled_frames(road, road.items)]
    score = np.concatenate([result.anomaly_score.ravel() for result, _ in frames])
    truth = np.concatenate([label.ravel() for _, label in frames]) == 1

    def f1(threshold):
        found = score >= np.float32(threshold)
        return 2 * (found & truth).sum() / (found.sum() + truth.sum())

    curve = written.anomaly.curve('rba', False)
    assert f1(written.anomaly.threshold) == pytest.approx(curve.best_f1, abs=2e-3)
    assert max(f1(t) for t in np.quantile(score, np.linspace(0, 1, 200))) <= curve.best_f1 + 2e-3


def test_statistics_are_those_of_the_pixels_that_a_class_wins(bundle, data):
    val = open_data_set('camvid', 'val', data)
    found = measured_statistics(Segmenter(bundle), labelled_frames(val, val.items))
    segmenter = Segmenter(bundle)
    segmenter.settings = readout_settings(bundle, 'max_logit', threshold=0.0)
    values = {k: [] for k in range(3)}
    for image, label in labelled_frames(val, val.items):
        result = segmenter(image)
        for k in range(3):
            values[k].append(-result.anomaly_score[(result.semantic == k) & (label < 3)])
    for k in range(3):
        pixels = np.concatenate(values[k]).astype(np.float64)
        assert found.mean[k] == pytest.approx(pixels.mean(), rel=1e-4)
        assert found.std[k] == pytest.approx(pixels.std(), rel=1e-3)
    with pytest.raises(DataError, match='one known pixel'):
        measured_statistics(Segmenter(bundle), [])


def test_statistics_are_of_the_classes_scores_also_where_the_bundle_groups_its_score(
        bundle, data):
    val = open_data_set('camvid', 'val', data)
    grouping = replace(bundle, anomaly=replace(bundle.anomaly, objects=True))
    plain, found = (measured_statistics(Segmenter(one), labelled_frames(val, val.items))
                    for one in (bundle, grouping))
    assert Segmenter(grouping).settings.objects is not None and found == plain


def test_without_data_the_street_stands_in(bundle):
    measured = calibrate(Segmenter(bundle), None)
    curve = next(c for c in measured.curves if (c.score, c.objects) == ('msp', False))
    assert 'street without hazards' in curve.data and curve.tpr == ()
    assert measured.operating_point('msp', False, 'fpr=0.1')['threshold'] == pytest.approx(
        curve.threshold_at(0.1), rel=1e-5)
    with pytest.raises(OperatingPointError, match='without anomalies'):
        measured.operating_point('msp', False, 'best_f1')
    with pytest.raises(OperatingPointError, match='uno'):
        measured.operating_point('uno', False, 'fpr=0.1')


def test_the_command_prints_the_curve_and_refuses_without_harm(bundle, data, capsys):
    command = ['calibrate', str(bundle.path), '--data', str(data)]
    assert main([*command, '--score', 'energy', '--objects', 'on', '--point', 'fpr=0.02']) == 0
    printed = capsys.readouterr().out
    anomaly = load_bundle(bundle.path).anomaly
    assert (anomaly.score, anomaly.objects) == ('energy', True)
    assert f'threshold {anomaly.threshold:g}' in printed and 'best F1' in printed
    assert printed.count('\n| 0') == len(anomaly.curve('energy', True).fpr)
    assert main([*command, '--point', 'fpr=0.9']) == 2
    assert 'fpr=0.9 was not measured' in capsys.readouterr().err
    assert load_bundle(bundle.path).anomaly == anomaly
