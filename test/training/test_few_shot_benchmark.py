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

"""The few-shot benchmark: what is trained, what is kept, what is counted, what the tables say."""

import json

import cv2
import numpy as np
from owseg_training import cli, few_shot_benchmark
from owseg_training.closed_set import load_network
from owseg_training.config import ConfigError
from owseg_training.data.datasets import open_data_set, VOID
from owseg_training.evaluate import ConfusionMatrix
from owseg_training.few_shot_benchmark import (
    ALL, CamVidBenchmark, class_order, figures, FT, KNOWN, MAJORITY, make_run, make_tuned,
    OUTLIERS, Plan, RULES, run)
from owseg_training.few_shot_frames import REGIONS
from owseg_training.few_shot_potholes import measures
from owseg_training.few_shot_report import markdown, Rows, summarize
from owseg_training.network import MaskClassifier
from owseg_training.novel_regions import (
    as_regions, count_pixels, NO_MATCH, tally_regions, Taught)
from owseg_training.shot_training import ShotTraining
import pytest
from support.camvid import tiny_config, write_camvid
import torch
import yaml

NOVEL = {'one': ('c',), 'two': ('c', 'd')}
COLOR = np.array([200, 40, 200], np.uint8)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Write CamVid's layout with classes a to d, two odd frames and seven potholes."""
    root = write_camvid(tmp_path_factory.mktemp('data'), names='abcd')
    rng = np.random.default_rng(1)
    for name, count in (('road_anomaly', 2), ('potholes', 7)):
        for folder in ('images', 'masks'):
            (root / name / folder).mkdir(parents=True)
        for number in range(count):
            mask = np.zeros((72, 96), np.uint8)
            mask[20:60, 30:60 + number] = 1
            image = rng.integers(0, 90, (72, 96, 3)).astype(np.uint8)
            image[mask == 1] = COLOR
            cv2.imwrite(str(root / name / 'images' / f'{number}.jpg'), image)
            cv2.imwrite(str(root / name / 'masks' / f'{number}.png'), mask)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    for name in ('dog', 'car'):
        cutout = rng.integers(0, 255, (20, 20, 4)).astype(np.uint8)
        cutout[..., 3] = 255
        cv2.imwrite(str(objects / f'{name}.png'), cutout)
    (root / 'objects' / 'index.csv').write_text('file,category\ndog.png,dog\ncar.png,car\n')
    return root


@pytest.fixture(scope='module')
def finished(tmp_path_factory, data):
    """Run the benchmark with recipes of a few steps: plan and report."""
    tmp_path = tmp_path_factory.mktemp('benchmark')
    recipe = tmp_path / 'tiny.yaml'
    config = tiny_config(data).to_dict()
    config['loss']['void'] = 'ignore'
    recipe.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    plan = Plan(tmp_path / 'out', ('two',), (2,), 1, data=str(data), novel=NOVEL, every=2,
                recipe=str(recipe), metric=str(recipe), mca=str(recipe), tuning=str(recipe),
                outliers=str(recipe),
                channels=(4,), iterations=(2, 1, 2, 2, 1, 1), max_width=48)
    return plan, run(plan)


def changed(plan, **values):
    return Plan(**{**vars(plan), **values})


def test_benchmark_from_training_to_the_tables(finished):
    plan, report = finished
    rows = Rows(report['rows'])
    assert rows.cases == (('two', 2, 'largest'), ('two', 2, 'random_0'))
    assert set(rows.methods) == {
        'URS', 'masks', 'closed-set regions', 'anomalous regions',
        'masks after outlier supervision', 'true regions', 'mca_4', 'mca_4_void',
        'mca_4_rec', 'mca_4_rec_split', 'NPM', 'NPM, head of regions', 'FT',
        'PLM latest', 'PLM all'}
    for rule in (*RULES, MAJORITY):
        row = rows.get('two', 2, 'random_0', 'URS', rule)
        assert list(row['IoU']) == ['a', 'b', 'c', 'd']
        assert 0 <= row['all'] <= 1
    best = rows.get('two', 2, 'largest', 'true regions', MAJORITY)
    assert best['IoU']['c'] == best['IoU']['d'] == 1
    assert {r['network'] for r in report['baselines']} == {KNOWN, ALL}
    assert all(0 <= row['AP'] <= 1 for row in report['anomalies'])
    assert len(report['potholes']['rows']) == 2 * (7 * (len(RULES) + 1) + len(RULES) + 2)
    text = (plan.out / 'few_shot.md').read_text()
    assert '## 2+2: separation of regions (Table E)' in text and '| 2 | FT |' in text
    assert json.loads((plan.out / 'few_shot.json').read_text())['description']['frames'] == 3


def test_nothing_of_the_novel_classes_is_known(finished):
    plan, _ = finished
    for run_name in ('closed_set', REGIONS, 'mca_4', 'mca_4_void'):
        folder = plan.folder(KNOWN, run_name)
        names = [c['name'] for c in json.loads((folder / 'classes.json').read_text())['classes']]
        config = yaml.safe_load((folder / 'config.yaml').read_text())
        assert names == ['a', 'b'] and config['data']['hidden'] == ['c', 'd']
    for run_name in ('closed_set', OUTLIERS):
        config = yaml.safe_load((plan.folder(KNOWN, run_name) / 'config.yaml').read_text())
        assert config['loss']['void'] == 'ignore'
    assert config['outliers']['categories'] == ['dog']
    start, head = (load_network(plan.folder(KNOWN, name))[0].state_dict()
                   for name in ('closed_set', 'mca_4'))
    assert all(torch.equal(value, head[name]) for name, value in start.items())


def test_everything_kept_is_recognised(finished, monkeypatch):
    plan, first = finished
    before = {path: path.stat().st_mtime_ns for path in plan.out.rglob('*.safetensors')}

    def no_pass(*arguments):
        raise AssertionError('a network ran')

    monkeypatch.setattr(MaskClassifier, 'forward', no_pass)
    again = run(plan)
    assert again['rows'] == first['rows'] and again['potholes'] == first['potholes']
    assert before == {path: path.stat().st_mtime_ns for path in plan.out.rglob('*.safetensors')}
    with pytest.raises(ConfigError, match=r'another recipe \(optimizer.iterations is \d, not 3\)'):
        make_run(changed(plan, iterations=(3, 1, 2, 2, 1, 1)), KNOWN, 'closed_set')


def test_a_killed_fine_tuning_goes_on(finished, tmp_path, monkeypatch):
    plan = changed(finished[0], iterations=(2, 1, 2, 2, 3, 1))
    folder = plan.tuned_folder(FT, 'two', 1, 'other')
    steps = []
    step = ShotTraining._train_step

    def killed(self, parts):
        if len(steps) == 2:
            self.save()
            raise KeyboardInterrupt
        steps.append(self.step)
        return step(self, parts)

    monkeypatch.setattr(ShotTraining, '_train_step', killed)
    pictures = {'c': ['f0'], 'd': ['f1']}
    with pytest.raises(KeyboardInterrupt):
        make_tuned(plan, FT, 'two', 1, 'other', pictures)
    assert not (folder / 'model.safetensors').exists()
    steps.clear()
    assert make_tuned(plan, FT, 'two', 1, 'other', pictures)
    assert steps == [2]
    assert not make_tuned(plan, FT, 'two', 1, 'other', pictures)
    with pytest.raises(ConfigError, match='shots.pictures'):
        make_tuned(plan, FT, 'two', 1, 'other', {'c': ['f2'], 'd': ['f1']})


def shot_training(plan, folder, **shots):
    config = tiny_config(plan.data, iterations=1)
    config.data.hidden = []
    config.shots.pictures = {'c': ['f0'], 'd': ['f1']}
    for key, value in shots.items():
        setattr(config.shots, key, value)
    return ShotTraining(config, folder, plan.folder(KNOWN))


def test_shots_show_their_class_and_nothing_else(finished, tmp_path):
    plan, _ = finished
    training = shot_training(plan, tmp_path / 'ft')
    camvid = open_data_set('camvid', 'train', plan.data)
    for (_, label), item, index in zip(training.pictures, camvid.items, (2, 3)):
        truth = camvid.read_label(item)
        assert (label[truth == index] == index).all() and (label[truth != index] == VOID).all()
    stream = training._make_stream(8)
    assert all((stream[i][1] != VOID).any() for i in range(8))
    assert torch.equal(stream[3][0], stream[3][0])


def test_pseudo_labels_are_what_the_old_network_sees(finished, tmp_path):
    plan, _ = finished
    training = shot_training(plan, tmp_path / 'plm', labels='pseudo',
                             trainable=['pixel_decoder', 'transformer_decoder'])
    label = training.pictures[0][1]
    truth = open_data_set('camvid', 'train', plan.data)
    shown = truth.read_label(truth.items[0]) == 2
    assert (label[shown] == 2).all() and set(np.unique(label[~shown])) <= {0, 1}
    before = {name: value.clone() for name, value in training.network.state_dict().items()}
    training.run(validate_every=None, report=False)
    after = training.network.state_dict()
    moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved and all(name.startswith(('pixel_decoder', 'transformer_decoder'))
                         for name in moved)


@pytest.mark.parametrize('shots, message', [
    ({'labels': 'true'}, 'shots.labels must be'),
    ({'pictures': {'z': ['f0']}}, "has no class 'z'"),
    ({'pictures': {'c': ['f9']}}, "has no picture 'f9'"),
    ({'pictures': {}}, 'names no picture')])
def test_unusable_shots_are_refused(finished, tmp_path, shots, message):
    with pytest.raises(ConfigError, match=message):
        shot_training(finished[0], tmp_path, **shots)


@pytest.mark.parametrize('changes, message', [
    ({'settings': ('bus',)}, "unknown setting 'bus'; known: one, two"),
    ({'iterations': (1, 2)}, 'iterations are six numbers'),
    ({'shots': ()}, 'at least one setting, and one shot'),
    ({'channels': (2,)}, 'channels must have 4')])
def test_unusable_plans_are_refused(finished, changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(finished[0], **changes)


def test_ids_are_known_classes_and_then_novel_ones(finished):
    plan = changed(finished[0], novel={'one': ('a',)}, settings=('one',))
    camvid = open_data_set('camvid', 'val', plan.data)
    ordered = class_order(plan, camvid)
    assert [c.name for c in ordered.classes] == ['b', 'c', 'd', 'a']
    stored, found = camvid.read_label(camvid.items[0]), ordered.read_label(ordered.items[0])
    assert (found[stored == 0] == 3).all() and (found[stored == 1] == 0).all()


def test_means_are_of_one_confusion_matrix():
    matrix = ConfusionMatrix(3)
    matrix.counts[:] = [[6, 0, 2, 0], [0, 4, 0, 4], [2, 0, 6, 0]]
    found = figures(matrix, 2, ['x', 'y', 'new'])
    assert found['IoU'] == {'x': 0.6, 'y': 0.5, 'new': 0.6}
    assert found['old'] == pytest.approx(0.55) and found['novel'] == pytest.approx(0.6)
    assert found['all'] == pytest.approx(1.7 / 3)
    assert found['harmonic'] == pytest.approx(2 * 0.55 * 0.6 / 1.15)
    matrix.counts[2] = 0
    matrix.counts[:, 2] = 0
    assert figures(matrix, 2, ['x', 'y', 'new'])['harmonic'] is None


def test_matching_takes_the_nearest_class_above_its_threshold():
    taught = Taught(np.eye(3, dtype=np.float32)[:2], np.array([0.5, 0.9]))
    rows = np.array([[0.8, 0.6, 0], [0.6, 0.8, 0], [0.4, 0.1, 0.9], [0, 1, 0]], np.float32)
    # The second is nearer to a class whose threshold it does not reach.
    assert taught.match(rows).tolist() == [0, 0, NO_MATCH, 1]
    gated = Taught(taught.prototypes, taught.thresholds, np.array([[0.6, 0.8, 0]], np.float32))
    assert gated.match(rows).tolist() == [NO_MATCH, NO_MATCH, NO_MATCH, 1]


def test_painted_regions_count_as_if_they_were_painted():
    rng = np.random.default_rng(0)
    regions = np.kron(rng.permutation(6).reshape(2, 3), np.ones((8, 8))).astype(np.int32)
    label = rng.integers(0, 4, regions.shape).astype(np.uint8)
    label[label == 3] = VOID
    predicted = rng.integers(0, 2, regions.shape).astype(np.uint8)
    embeddings = np.eye(5, dtype=np.float32)
    tally = tally_regions(lambda means: torch.from_numpy(embeddings), regions,
                          rng.random((7, 4, 6)).astype(np.float32), label, predicted, (3, 2))
    taught = Taught(embeddings[[1, 3]], np.array([0.5, 0.5]))
    painted = predicted.copy()
    painted[regions == 2] = 2
    painted[regions == 4] = 3
    expected = np.zeros((3, 4), int)
    for own, final in zip(label.ravel(), painted.ravel()):
        if own != VOID:
            expected[own, final] += 1
    assert (tally.count(taught) == expected).all()
    most = [np.bincount(label[(regions == n) & (label != VOID)], minlength=3).argmax()
            for n in range(1, 6)]
    at_best = tally.count_majority([2])
    assert at_best[:, 2].sum() == sum(
        ((regions == n) & (label != VOID)).sum() for n, own in enumerate(most, 1) if own == 2)
    assert at_best.sum() == expected.sum()
    assert [r.area for r in as_regions(regions)] == [64] * 5


def test_regions_are_means_of_their_features():
    regions = np.zeros((8, 12), np.int32)
    regions[:4, :6], regions[4:, 6:] = 1, 2
    features = np.arange(6, dtype=np.float32).reshape(1, 2, 3)
    tally = tally_regions(lambda means: means, regions, features, np.zeros((8, 12), np.uint8),
                          np.zeros((8, 12), np.uint8), (1, 1))
    # The first lies in the cell 0 for 4 of its 6 columns and in the cell 1 for 2 of them.
    assert tally.embeddings.ravel() == pytest.approx([1 / 3, (4 * 2 + 5 * 4) / 6])
    assert tally.counts.ravel().tolist() == [48, 24, 24]


def test_pixels_are_matched_one_by_one():
    embeddings = np.zeros((2, 1, 2), np.float32)
    embeddings[0, 0, 0] = embeddings[1, 0, 1] = 1
    label = np.array([[0, 0, 1, VOID]], np.uint8)
    predicted = np.array([[1, 1, 1, 1]], np.uint8)
    taught = Taught(np.array([[0, 1]], np.float32), np.array([0.5]))
    assert count_pixels(embeddings, taught, label, predicted, (2, 2)).tolist() == [
        [0, 2, 0], [0, 0, 1]]
    gated = Taught(taught.prototypes, taught.thresholds, np.array([[0, 1]], np.float32))
    assert count_pixels(embeddings, gated, label, predicted, (2, 2))[:, 2].sum() == 0


def test_potholes_are_measured_as_one_class():
    counts = np.array([[50, 0, 10], [20, 0, 20]])
    assert measures(counts, 2) == pytest.approx(
        {'IoU': 0.4, 'precision': 2 / 3, 'recall': 0.5})
    assert measures(np.zeros((2, 3), int), 2) == {'IoU': 0, 'precision': 0, 'recall': 0}


def test_more_shots_include_the_fewer(finished):
    benchmark = CamVidBenchmark(finished[0])
    for selection in ('largest', 'random_0'):
        one, two = (benchmark.examples('two', count, selection) for count in (1, 2))
        assert all(two[name][:1] == one[name] and len(two[name]) == 2 for name in ('c', 'd'))


def row(method, harmonic, rule='0.80', old=0.5, shots=1, selection='largest'):
    return {'setting': 'two', 'shots': shots, 'selection': selection, 'method': method,
            'rule': rule, 'all': 0.4, 'novel': 0.3, 'old': old, 'harmonic': harmonic,
            'IoU': {'a': 0.5, 'c': None}}


def made_up():
    rows = []
    for selection, shift in (('largest', 0.0), ('random_0', 0.1), ('random_1', -0.3)):
        for shots in (1, 2):
            rows += [row(*entry, shots=shots, selection=selection) for entry in (
                ('mca_4', 0.5 + shift, '0.80'), ('NPM', 0.4, '0.80'), ('URS', 0.45, '0.80'),
                ('FT', 0.1, None, 0.05), ('mca_4', 0.4 + shift * shots, 'calibrated'))]
    baselines = [{**row('', 0.0, old=0.6), 'network': KNOWN}]
    about = {'settings': {'two': ['c']}, 'known': ['a'], 'frames': 1, 'batch': 2, 'draws': 2,
             'tuned_draws': 1,
             'size': [96, 64], 'pretrained': False,
             'iterations': dict.fromkeys(
                 ('network', 'further', 'metric', 'mca', 'tuning', 'outliers'), 1)}
    return summarize(rows, baselines, [], {}, about)


def test_claims_count_cases_whichever_way_they_fall():
    found = {c['claim']: c for c in made_up()['claims']}
    beats = found['RAML, MCA (K = 4) beats pixels (NPM), threshold 0.8']
    assert (beats['holds'], beats['of']) == (4, 6)
    assert beats['difference']['mean'] == pytest.approx((0.1 + 0.2 - 0.2) / 3)
    assert found['MCA (K = 4) beats URS, threshold 0.8']['holds'] == 4
    forgets = found['FT forgets: mIoU of old classes against the network before']
    assert (forgets['holds'], forgets['of']) == (6, 6)
    assert forgets['difference']['mean'] == pytest.approx(-0.55)
    more = found['More shots are better, RAML, MCA (K = 4)']
    assert (more['holds'], more['of']) == (1, 3)
    assert not any('PLM' in claim for claim in found)


def test_random_draws_have_a_mean_and_a_deviation():
    text = markdown(made_up())
    values = np.array([0.6, 0.2])
    assert (f'| 1 | RAML, MCA (K = 4) | 0.80 | 40.0 ± 0.0 | 30.0 ± 0.0 | 50.0 ± 0.0 | '
            f'{100 * values.mean():.1f} ± {100 * values.std(ddof=1):.1f} |') in text
    assert '| - | known classes only | 50.0 | - |' in text


def test_command_reads_its_options(monkeypatch, tmp_path, capsys):
    plans = []
    monkeypatch.setattr(few_shot_benchmark, 'run',
                        lambda plan: plans.append(plan) or made_up())
    assert cli.main(['few-shot', '--out', str(tmp_path), '--settings', 'three', '--shots', '2',
                     '--draws', '0', '--tuned-draws', '1', '--channels', '4,8', '--every', '3',
                     '--iterations', '7,6,5,4,3,2']) == 0
    plan, = plans
    assert (plan.settings, plan.shots, plan.draws, plan.channels) == (('three',), (2,), 0, (4, 8))
    assert plan.iterations == (7, 6, 5, 4, 3, 2) and plan.every == 3 and plan.tuned_draws == 1
    assert plan.meta_runs(KNOWN)[:2] == ('mca_4', 'mca_8')
    assert 'Few-shot benchmark' in capsys.readouterr().out
    assert cli.main(['few-shot', '--out', str(tmp_path), '--settings', 'bus']) == 2
    assert "unknown setting 'bus'" in capsys.readouterr().err
