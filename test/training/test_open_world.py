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
"""The open-world benchmark: what is trained, what is measured, what the tables say."""

import json
import shutil

import cv2
import numpy as np
from owseg_training import cli, open_world, open_world_report
from owseg_training.class_statistics import class_statistics
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.config import ConfigError
from owseg_training.data.datasets import DataError
from owseg_training.network import MaskClassifier
from owseg_training.open_world import (
    evaluate_run, make_run, NONE, Plan, run, SCORES, SUPERVISED, VOID_NEGATIVE, winners)
from owseg_training.open_world_report import claims, markdown, summarize
from owseg_training.transfer import ContinuedTraining, take_over
import pytest
from support.camvid import tiny_config, write_camvid
import torch
import yaml

HIDDEN = {'some': ('c',), 'most': ('b', 'c')}


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Write CamVid's layout with classes a, b, c, two odd frames and three cut-outs."""
    root = write_camvid(tmp_path_factory.mktemp('data'))
    rng = np.random.default_rng(1)
    for folder in ('images', 'masks'):
        (root / 'road_anomaly' / folder).mkdir(parents=True)
    for name in ('x', 'y'):
        label = np.zeros((72, 96), np.uint8)
        label[20:60, 30:70] = 1
        image = rng.integers(0, 255, (72, 96, 3)).astype(np.uint8)
        cv2.imwrite(str(root / 'road_anomaly' / 'images' / f'{name}.jpg'), image)
        cv2.imwrite(str(root / 'road_anomaly' / 'masks' / f'{name}.png'), label)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    for name in ('coco_1_dog', 'coco_2_car', 'davis_soapbox_00000'):
        cutout = rng.integers(0, 255, (20, 20, 4)).astype(np.uint8)
        cutout[..., 3] = 255
        cv2.imwrite(str(objects / f'{name}.png'), cutout)
    (root / 'objects' / 'index.csv').write_text(
        'file,category\ncoco_1_dog.png,dog\ncoco_2_car.png,car\n'
        'davis_soapbox_00000.png,soapbox-car\n')
    return root


@pytest.fixture(scope='module')
def finished(tmp_path_factory, data):
    """Run two settings that hide c, and b and c, with recipes of two steps: plan and report."""
    tmp_path = tmp_path_factory.mktemp('benchmark')
    names = []
    for stage in ('closed_set', 'outliers'):
        config = tiny_config(data, iterations=2).to_dict()
        config['outliers']['probability'] = 1.0
        names.append(str(tmp_path / f'{stage}.yaml'))
        (tmp_path / f'{stage}.yaml').write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    plan = Plan(tmp_path / 'out', ('some', 'most'), (0,), data=str(data), hidden=HIDDEN,
                recipe=names[0], outliers=names[1], iterations=(2, 1, 2), max_width=48)
    return plan, run(plan)


@pytest.fixture
def plan(finished):
    """Return the plan of runs that are there; a test leaves them as they are."""
    return finished[0]


def changed(plan, **values):
    return Plan(**{**vars(plan), **values})


def test_benchmark_from_training_to_the_table(finished):
    plan, report = finished
    networks = {(r['setting'], r['seed'], r['method']) for r in report['networks']}
    assert networks == {(s, 0, m) for s in HIDDEN for m in (NONE, SUPERVISED)}
    for setting, known in (('some', ['a', 'b']), ('most', ['a'])):
        folder = plan.run_folder(setting, 0)
        spec = json.loads((folder / 'classes.json').read_text())['classes']
        assert [c['name'] for c in spec] == known
        tuned = yaml.safe_load((plan.run_folder(setting, 0, SUPERVISED)
                                / 'config.yaml').read_text())
        assert tuned['outliers']['categories'] == ['dog']
        assert tuned['data']['hidden'] == list(HIDDEN[setting])
        closed = yaml.safe_load((folder / 'config.yaml').read_text())
        assert closed['loss']['void'] == tuned['loss']['void'] == 'ignore'
        assert closed['optimizer']['iterations'] == (1 if setting == 'some' else 2)
    one = report['networks'][0]
    assert set(one['camvid']) == set(one['road_anomaly']) == set(SCORES)
    assert one['frames'] == {'camvid': 6, 'road_anomaly': 2}
    text = (plan.out / 'open_world.md').read_text()
    assert '- `most` hides b, c' in text and '`standardized_max_logit`' in text
    assert json.loads((plan.out / 'open_world.json').read_text())['description']['base'] == 'most'
    assert cv2.imread(str(plan.out / 'open_world.png')).std() > 5


def test_finished_runs_and_evaluations_are_not_made_again(finished, monkeypatch):
    plan, first = finished
    before = {path: path.stat().st_mtime_ns for path in plan.out.rglob('*')
              if path.name in ('model.safetensors', 'checkpoint.safetensors')}
    assert len(before) == 8

    def no_pass(*arguments):
        raise AssertionError('a network ran')

    monkeypatch.setattr(MaskClassifier, 'forward', no_pass)
    again = run(plan)
    assert again['networks'] == first['networks']
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_interrupted_run_goes_on_where_it_was(plan, tmp_path, monkeypatch):
    shutil.copytree(plan.run_folder('most', 0), tmp_path / 'most' / 'seed_0' / 'closed_set')
    again = changed(plan, out=tmp_path)
    whole = (again.run_folder('most', 0) / 'model.safetensors').read_bytes()
    (again.run_folder('most', 0) / 'model.safetensors').unlink()

    def no_step(*arguments):
        raise AssertionError('a step was made again')

    monkeypatch.setattr(ClosedSetTraining, '_train_step', no_step)
    assert make_run(again, 'most', 0, NONE)
    assert (again.run_folder('most', 0) / 'model.safetensors').read_bytes() == whole
    assert not make_run(again, 'most', 0, NONE)


def test_run_of_another_recipe_is_not_taken_for_finished(plan):
    with pytest.raises(ConfigError, match=r'another recipe \(optimizer.iterations is 2, not 3\)'):
        make_run(changed(plan, iterations=(3, 2, 2)), 'most', 0, NONE)
    with pytest.raises(ConfigError, match=r'recipe \(network.pretrained is False, not True\)'):
        make_run(changed(plan, pretrained='weights.safetensors'), 'most', 0, NONE)


def test_setting_that_hides_less_starts_from_the_one_that_hides_most(plan, tmp_path):
    start = load_network(plan.run_folder('most', 0))[0].state_dict()
    config = tiny_config(plan.data, iterations=2)
    config.data.hidden = ['c']
    training = ContinuedTraining(config, tmp_path, plan.run_folder('most', 0))
    state = training.network.state_dict()
    head = 'transformer_decoder.class_embed.weight'
    assert state[head].shape[0] == 3 and start[head].shape[0] == 2
    assert torch.equal(state[head][[0, 2]], start[head])
    assert torch.equal(state['pixel_classifier.weight'][0], start['pixel_classifier.weight'][0])
    other = 'transformer_decoder.mask_embed'
    assert all(torch.equal(value, start[name]) for name, value in state.items()
               if name.startswith((other, 'backbone', 'pixel_decoder')))


def test_take_over_follows_names_and_refuses_other_shapes():
    config = tiny_config('').network
    torch.manual_seed(0)
    source, network = MaskClassifier(config, 3), MaskClassifier(config, 2)
    fresh = network.pixel_classifier.weight.clone()
    take_over(network, ['z', 'x'], source, ['x', 'y', 'w'])
    assert torch.equal(network.pixel_classifier.weight[1], source.pixel_classifier.weight[0])
    assert torch.equal(network.pixel_classifier.weight[0], fresh[0])
    heads = [n.transformer_decoder.class_embed.bias for n in (network, source)]
    assert torch.equal(heads[0][[1, 2]], heads[1][[0, 3]])
    config = tiny_config('').network
    config.queries = 7
    with pytest.raises(ConfigError, match='of the start has the shape'):
        take_over(MaskClassifier(config, 2), ['z', 'x'], source, ['x', 'y', 'w'])


def test_other_losses_are_compared_where_most_is_hidden(plan, tmp_path):
    shutil.copytree(plan.run_folder('most', 0), tmp_path / 'most' / 'seed_0' / 'closed_set')
    wide = changed(plan, out=tmp_path,
                   methods=(SUPERVISED, VOID_NEGATIVE, 'uno', 'densehybrid'))
    order = list(wide.networks())
    assert order[:4] == [('most', 0, NONE), ('most', 0, SUPERVISED),
                         ('some', 0, NONE), ('some', 0, SUPERVISED)]
    assert order[4:] == [('most', 0, m) for m in (VOID_NEGATIVE, 'uno', 'densehybrid')]
    assert make_run(wide, 'most', 0, VOID_NEGATIVE)
    assert set(evaluate_run(wide, 'most', 0, VOID_NEGATIVE)['camvid']) == set(SCORES)
    listing = wide.run_folder('most', 0, VOID_NEGATIVE) / 'config.yaml'
    config = yaml.safe_load(listing.read_text())
    assert config['loss']['void'] == 'negative' and config['stage'] == 'closed_set'
    for method in ('uno', 'densehybrid'):
        make_run(wide, 'most', 0, method)
        found = evaluate_run(wide, 'most', 0, method)
        assert set(found['camvid']) == {'rba', 'msp', 'max_logit', method}
        assert all(0 <= figures['AP'] <= 1 for figures in found['road_anomaly'].values())


@pytest.mark.parametrize('changes, message', [
    ({'settings': ('bus',)}, "unknown setting 'bus'; known: some, most"),
    ({'methods': ('hinge',)}, "unknown method 'hinge'"),
    ({'iterations': (5, 5)}, 'iterations are three numbers'),
    ({'seeds': ()}, 'at least one setting and one seed'),
    ({'hidden': {'some': ('a',), 'most': ('b', 'c')}}, 'no setting hides all of')])
def test_unusable_plans_are_refused(plan, changes, message):
    with pytest.raises(ConfigError, match=message):
        changed(plan, **changes)


def test_class_statistics_are_those_of_the_predicted_class():
    level = np.array([[[3.0, 1.0, 5.0, 9.0]], [[0.0, 2.0, 0.0, 0.0]], [[0.0, 0.0, 0.0, 0.0]]])
    label = np.array([[0, 1, 1, 255]], np.uint8)
    found = class_statistics([winners(level, label)], 3)
    whole = np.array([3.0, 2.0, 5.0])
    assert found.mean == pytest.approx((4.0, 2.0, whole.mean()))
    # Scores are divided by the deviation, which is 0 where a class wins one pixel.
    assert found.std == pytest.approx((1.0, 1e-4, whole.std()))
    with pytest.raises(DataError, match='one known pixel'):
        class_statistics([winners(level, np.full_like(label, 255))], 3)


def figures(value, **others):
    return {**dict.fromkeys(open_world_report.METRICS, value), **others}


def network(setting, seed, method, rba, other, miou=0.5, fpr=None):
    scores = {'rba': figures(rba, FPR95=1 - rba if fpr is None else fpr),
              'max_logit': figures(other, FPR95=1 - other),
              'msp': figures(0.9, FPR95=0.0)}
    return {'setting': setting, 'seed': seed, 'method': method, 'mIoU': miou,
            'camvid': scores, 'road_anomaly': scores}


ABOUT = {'settings': {'all': ['Car']}, 'seeds': [0, 1], 'base': 'all', 'batch_size': 2,
         'iterations': {'first': 1, 'further': 2, 'outliers': 3}}


def made_up():
    pebal = network('all', 1, 'pebal', 0.9, 0.1)
    for benchmark in ('camvid', 'road_anomaly'):
        pebal[benchmark] = {**pebal[benchmark], 'energy': figures(0.25)}
    return [network('all', 0, NONE, 0.30, 0.20, 0.50), network('all', 1, NONE, 0.40, 0.45, 0.60),
            network('all', 0, SUPERVISED, 0.5, 0.2, 0.496),
            network('all', 1, SUPERVISED, 0.6, 0.2, 0.58), network('all', 0, 'kl', 0.7, 0.1),
            pebal]


def test_table_holds_mean_and_deviation_over_seeds():
    report = summarize(made_up(), ABOUT)
    row = next(r for r in report['tables']['camvid']
               if (r['method'], r['score']) == (NONE, 'rba'))
    assert row['AP']['mean'] == pytest.approx(0.35)
    assert row['AP']['std'] == pytest.approx(np.std([0.3, 0.4], ddof=1))
    assert row['AP']['n'] == 2
    assert report['closed_set'][0]['change']['mean'] == pytest.approx(-0.012)
    text = markdown(report)
    line = next(x for x in text.splitlines() if x.startswith('| none | `rba` |'))
    assert line == '| none | `rba` | ' + ' | '.join(
        ['35.0 ± 7.1'] * 2 + ['65.0 ± 7.1'] + ['35.0 ± 7.1'] * 3) + ' |'
    assert '| `all` | squared hinge | 55.0 ± 7.1 | 53.8 ± 5.9 | -1.2 ± 1.1 |' in text
    assert '| `all` | kl |' in text and '| kl | `rba` | 70.0 |' in text


def test_missing_figures_are_left_out_of_the_mean():
    found = made_up()
    found[1]['camvid'] = {**found[1]['camvid'], 'rba': figures(float('nan'))}
    row = summarize(found, ABOUT)['tables']['camvid'][0]
    assert row['AP'] == {'mean': 0.3, 'std': None, 'n': 1}


def test_claims_count_networks_and_benchmarks():
    found = {c['claim']: c for c in claims(
        {(r['setting'], r['seed'], r['method']): r for r in made_up()})}
    plain = found['RbA has a higher AP than max-logit on the same network, without outlier '
                  'supervision']
    assert (plain['holds'], plain['of']) == (2, 4)
    assert plain['difference']['mean'] == pytest.approx((0.1 - 0.05) / 2)
    assert plain['by_setting']['all, camvid'] == {
        'holds': 1, 'of': 2, 'difference': plain['by_setting']['all, camvid']['difference']}
    assert found['RbA has a lower FPR95 than MSP on the same network, with the squared '
                 'hinge']['holds'] == 0
    assert found['Outlier supervision (squared hinge) raises the AP of RbA']['holds'] == 4
    assert found['Outlier supervision (squared hinge) lowers the FPR95 of RbA']['holds'] == 4
    cost = found['Outlier supervision costs at most 0.5 points of mIoU']
    assert (cost['holds'], cost['of']) == (1, 2)
    rival = found['RbA after the squared hinge has a higher AP than rba after kl']
    assert (rival['holds'], rival['of']) == (0, 2)
    rival = found['RbA after the squared hinge has a higher AP than energy after pebal']
    assert rival['difference']['mean'] == pytest.approx(0.6 - 0.25)


def test_command_reads_its_options(monkeypatch, tmp_path, capsys):
    plans = []
    monkeypatch.setattr(open_world, 'run', lambda plan: plans.append(plan) or summarize(
        made_up(), ABOUT))
    assert cli.main(['open-world', '--out', str(tmp_path), '--settings', 'car,all', '--seeds',
                     '4,5', '--methods', 'squared_hinge,kl', '--every', '3', '--iterations',
                     '7,6,5', '--max-width', '0']) == 0
    plan, = plans
    assert (plan.settings, plan.seeds, plan.every) == (('car', 'all'), (4, 5), 3)
    assert plan.methods == ('squared_hinge', 'kl')
    assert plan.iterations == (7, 6, 5) and plan.max_width == 0
    assert 'Open-world CamVid' in capsys.readouterr().out
    assert cli.main(['open-world', '--out', str(tmp_path), '--settings', 'bus']) == 2
    assert "unknown setting 'bus'" in capsys.readouterr().err


def test_missing_data_are_named(plan, tmp_path):
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='camvid'):
        make_run(changed(plan, out=tmp_path, data=str(tmp_path / 'empty')), 'most', 0, NONE)
