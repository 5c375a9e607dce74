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
import json
import os

import cv2
import numpy as np
from owseg_training.analysis.run import open_run
from owseg_training.analysis.validation_losses import validation_losses
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.config import ConfigError, run_config
from owseg_training.data.label_sets import label_set
from owseg_training.network import MaskClassifier
from owseg_training.outliers import freeze_except
from owseg_training.report import read_log
from owseg_training.sweep import run_name, SweepFile, SweepRunner, SWEEPS
from owseg_training.sweep_report import markdown, picture
import pytest
from support.camvid import tiny_config, write_camvid
import torch
import yaml


def write_data(root):
    """Write camvid, an object to paste, and road_anomaly with a magenta square."""
    write_camvid(root)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cutout = np.zeros((20, 20, 4), np.uint8)
    cutout[4:16, 4:16] = (255, 0, 255, 255)
    cv2.imwrite(str(objects / 'a_vase.png'), cutout)
    for part in ('images', 'masks'):
        (root / 'road_anomaly' / part).mkdir(parents=True)
    for index in range(2):
        image = np.full((64, 96, 3), (200, 40, 40), np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        image[20:40, 30:50], mask[20:40, 30:50] = (255, 0, 255), 1
        cv2.imwrite(str(root / 'road_anomaly' / 'images' / f'r{index}.png'), image)
        cv2.imwrite(str(root / 'road_anomaly' / 'masks' / f'r{index}.png'), mask)
    return root


def write_sweep_file(folder, **settings):
    """Write the tiny recipes and a sweep of them beside each other; returns the sweep's path."""
    closed, tuned = tiny_config(folder, 2).to_dict(), tiny_config(folder, 2).to_dict()
    tuned['outliers'].update(probability=1.0, height=[0.2, 0.4])
    for values, name in ((closed, 'closed'), (tuned, 'tuned')):
        (folder / f'{name}.yaml').write_text(yaml.safe_dump(json.loads(json.dumps(values))))
    path = folder / 'mine.yaml'
    path.write_text(yaml.safe_dump({
        'title': 'Mine', 'closed_set': 'closed.yaml', **settings}))
    return path


def table_rows(text):
    """Return the cells of a Markdown table without its header."""
    lines = [line for line in text.splitlines() if line.startswith('| ')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines[2:]]


@pytest.mark.timeout(300)
def test_fine_tuning_sweep_makes_each_run_once(tmp_path, capsys):
    (tmp_path / 'data').mkdir()
    data = write_data(tmp_path / 'data')
    path = write_sweep_file(tmp_path, stage='outliers', outliers='tuned.yaml', note='Beware.',
                            key='optimizer.iterations', values=[1, 3])
    command = ['sweep', str(path), '--out', str(tmp_path / 'out'), '--data', str(data)]
    assert main(command) == 0
    runs = [tmp_path / 'out' / name for name in ('start', '1_0', '3_0')]
    figures = [json.loads((run / 'metrics.json').read_text()) for run in runs]
    assert torch.load(runs[2] / 'optimizer_3.pt', weights_only=True)['step'] == 3
    text = (tmp_path / 'out' / 'sweep.md').read_text()
    before, *after = table_rows(text)
    assert 'Beware.' in text
    for cells, figure, label in zip((before, *after), figures, ('before', '1', '3')):
        assert cells == [label, *(f'{100 * figure[name]:.2f}'
                                  for name in ('mIoU', 'AP', 'AuROC', 'FPR95'))]
    assert figures[0]['mIoU'] > 0 and figures[1]['AP'] != figures[2]['AP']
    report = json.loads((tmp_path / 'out' / 'sweep.json').read_text())
    assert report['rows'][1]['runs'][0]['after'] == figures[2]
    chart = cv2.imread(str(tmp_path / 'out' / 'sweep.png'))
    assert len(np.unique(chart.reshape(-1, 3), axis=0)) > 20
    capsys.readouterr()

    times = {run: os.stat(run / 'model.safetensors').st_mtime_ns for run in runs}
    changed = {**figures[2], 'AP': 0.123}
    (runs[2] / 'metrics.json').write_text(json.dumps(changed))
    (runs[1] / 'metrics.json').write_text(json.dumps({**figures[1], 'weights': 'others'}))
    assert main(command) == 0
    assert {run: os.stat(run / 'model.safetensors').st_mtime_ns for run in runs} == times
    again = table_rows(capsys.readouterr().out)
    assert again[:2] == [before, after[0]]
    assert again[2][2] == '12.30'


@pytest.mark.timeout(300)
def test_closed_set_sweep_fine_tunes_every_value(tmp_path):
    (tmp_path / 'data').mkdir()
    data = write_data(tmp_path / 'data')
    path = write_sweep_file(
        tmp_path, outliers='tuned.yaml', key='network',
        measures=['validation_losses', 'hard_masking'],
        values=[{'queries': 4}, {'queries': 7}], labels=['four, only', '7'])
    runner = SweepRunner(SweepFile(path), tmp_path / 'out', seeds=(5,), data=str(data))
    report = runner.run()
    assert [row['label'] for row in report['rows']] == ['four, only', '7']
    for row, queries in zip(report['rows'], (4, 7)):
        folder = tmp_path / 'out' / run_name(row['label'], 5)
        network, config = load_network(folder)
        assert (config.network.queries, config.optimizer.seed) == (queries, 5)
        tuned, config = load_network(tmp_path / 'out' / f'{folder.name}_outliers')
        assert (config.stage, config.network.queries) == ('outliers', queries)
        changed = {name.split('.')[1] for name, value in tuned.state_dict().items()
                   if not torch.equal(value, network.state_dict()[name])}
        assert changed == {'mask_embed', 'class_embed'}
        figures, = row['runs']
        losses = validation_losses(open_run(folder, device='cpu'))
        assert figures['before']['class_loss'] == pytest.approx(losses['class'], rel=1e-5)
        assert 0 <= figures['before']['hard_masking_mIoU'] < 1
        assert figures['before']['trainable'] == 1 and 0 < figures['after']['trainable'] < 0.1
    assert table_rows(markdown(report))[1][3] == ' / '.join(
        f'{100 * report["rows"][1]["runs"][0][moment]["AP"]:.2f}' for moment in (
            'before', 'after'))


def report_of(stage, values, seeds=1, start=None, **figures):
    """Return a report whose figures rise with the row and the seed."""
    rows = [{'label': str(value), 'value': value, 'runs': [
        {'seed': seed, 'folder': f'{value}_{seed}', **{
            moment: {'mIoU': 0.5 + 0.1 * row + 0.02 * seed, 'AP': 0.3, 'AuROC': 0.7,
                     'FPR95': 0.6, 'parameters': 1_500_000, 'trainable': 1.0, **figures}
            for moment in (['before'] if stage == 'closed_set' else ['after'])}}
        for seed in range(seeds)]} for row, value in enumerate(values)]
    return {'title': 'Some', 'stage': stage, 'key': 'a.b', 'x_label': 'b', 'x_scale': 'linear',
            'anomaly_set': 'road_anomaly', 'seeds': list(range(seeds)), 'start': start,
            'note': '', 'rows': rows}


def test_several_seeds_are_a_mean_and_a_deviation():
    cells = table_rows(markdown(report_of('closed_set', [3, 7], seeds=3)))
    assert cells[1] == ['7', '62.00 ± 2.00', '30.00 ± 0.00', '70.00 ± 0.00', '60.00 ± 0.00']


def test_picture_has_the_values_of_the_table():
    axes = picture(report_of('closed_set', [1, 9], hard_masking_mIoU=0.25, class_loss=2.0)).axes
    assert [one.get_title('left') for one in axes] == [
        'mIoU (%)', 'AP (%)', 'FPR95 (%)', 'losses on the validation split']
    every, hard = (line.get_xydata().tolist() for line in axes[0].get_lines()[::3])
    assert np.allclose(every, [[1, 50], [9, 60]]) and np.allclose(hard, [[1, 25], [9, 25]])
    start = {'mIoU': 0.4, 'AP': 0.2, 'AuROC': 0.6, 'FPR95': 0.9}
    axes = picture(report_of('outliers', [['a'], ['b', 'c']], start=start)).axes
    assert [bar.get_width() for bar in axes[0].patches] == pytest.approx([50, 60])
    assert axes[0].get_lines()[0].get_xdata()[0] == pytest.approx(40)
    assert [tick.get_text() for tick in axes[0].get_yticklabels()] == ["['a']", "['b', 'c']"]


@pytest.mark.timeout(180)
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch):
    (tmp_path / 'data').mkdir()
    data = write_data(tmp_path / 'data')
    path = write_sweep_file(tmp_path, key='optimizer.iterations', values=[4])
    runner = SweepRunner(SweepFile(path), tmp_path / 'out', data=str(data))
    config = SweepFile(path).config('closed_set', 0, 0, data=str(data))
    half = ClosedSetTraining(config, tmp_path / 'out' / '4_0')
    half.network.train()
    batches = half._batches()
    half._train_step(next(batches))
    half.save()
    steps = []
    train_step = ClosedSetTraining._train_step

    def count(self, parts):
        steps.append(self.step)
        return train_step(self, parts)

    monkeypatch.setattr(ClosedSetTraining, '_train_step', count)
    runner.run()
    assert steps == [1, 2, 3]


@pytest.mark.timeout(180)
def test_runs_of_other_settings_or_starts_are_not_taken(tmp_path):
    (tmp_path / 'data').mkdir()
    data = write_data(tmp_path / 'data')
    path = write_sweep_file(tmp_path, key='optimizer.lr', values=[0.001], labels=['x'])
    SweepRunner(SweepFile(path), tmp_path / 'out', data=str(data)).run()
    path = write_sweep_file(tmp_path, key='optimizer.lr', values=[0.002], labels=['x'])
    with pytest.raises(ConfigError, match='optimizer.lr is 0.001, not 0.002'):
        SweepRunner(SweepFile(path), tmp_path / 'out', data=str(data)).run()
    with pytest.raises(ConfigError, match='start'):
        SweepRunner(SweepFile(path), tmp_path / 'out', start=tmp_path / 'out' / 'x_0')
    path = write_sweep_file(tmp_path, stage='outliers', outliers='tuned.yaml',
                            key='outliers.alpha', values=[1.0])
    SweepRunner(SweepFile(path), tmp_path / 'alpha', start=tmp_path / 'out' / 'x_0',
                data=str(data)).run()
    other = tiny_config(data, 1)
    ClosedSetTraining(other, tmp_path / 'other').run()
    with pytest.raises(ConfigError, match='other weights'):
        SweepRunner(SweepFile(path), tmp_path / 'alpha', start=tmp_path / 'other',
                    data=str(data)).run()


@pytest.mark.timeout(180)
def test_hidden_classes_of_the_start_stay_hidden(tmp_path):
    (tmp_path / 'data').mkdir()
    data = write_data(tmp_path / 'data')
    config = tiny_config(data, 2)
    config.data.hidden = ['b']
    ClosedSetTraining(config, tmp_path / 'start').run(report=False)
    path = write_sweep_file(tmp_path, stage='outliers', outliers='tuned.yaml',
                            key='outliers.alpha', values=[1.0])
    for _ in range(2):
        report = SweepRunner(SweepFile(path), tmp_path / 'out', start=tmp_path / 'start',
                             data=str(data)).run()
    assert run_config(tmp_path / 'out' / '1.0_0').data.hidden == ['b']
    logged, = [entry['mIoU'] for entry in read_log(tmp_path / 'start' / 'log.jsonl')
               if 'mIoU' in entry]
    assert report['start']['mIoU'] == pytest.approx(logged)


@pytest.mark.parametrize('settings, message', [
    ({'key': 'network.layers', 'values': [1]}, "network has no 'layers'.*decoder_layers"),
    ({'key': 'netwerk.queries', 'values': [1]}, "the recipe has no 'netwerk'"),
    ({'key': 'network.queries.more', 'values': [1]}, "no 'more'"),
    ({'key': 'network.queries', 'values': [10, 'many']}, 'queries must be int, not str'),
    ({'key': 'optimizer.lr', 'values': ['much']}, 'lr must be float, not str'),
    ({'key': 'network', 'values': [{'querys': 3}]}, 'unknown key config.network.querys'),
    ({'key': 'network.queries', 'values': []}, 'needs a key and its values'),
    ({'key': 'network.queries', 'values': [1, 2], 'labels': ['one']}, '2 values, but 1 labels'),
    ({'key': 'network.queries', 'values': [1, 2], 'labels': ['a b', 'a,b']}, 'different folders'),
    ({'key': 'network.queries', 'values': [1], 'measures': ['taste']}, 'validation_losses'),
    ({'key': 'outliers.alpha', 'values': [1.0], 'stage': 'outliers'}, 'needs a recipe'),
    ({'key': 'network.queries', 'values': [1], 'colour': 'red'}, 'unknown key sweep.colour'),
])
def test_what_is_wrong_is_said_with_the_file(tmp_path, settings, message):
    path = write_sweep_file(tmp_path, **settings)
    with pytest.raises(ConfigError, match=f'(?s)mine.yaml: .*{message}'):
        SweepFile(path)


def test_an_unknown_sweep_is_answered_with_the_known_ones(tmp_path, capsys):
    assert main(['sweep', 'colours', '--out', str(tmp_path / 'out')]) == 2
    assert 'outlier_iterations' in capsys.readouterr().err


@pytest.mark.parametrize('path', sorted(SWEEPS.glob('*.yaml')), ids=lambda path: path.stem)
def test_every_shipped_sweep_gives_networks_that_can_be_built(path):
    file = SweepFile(path.stem)
    count = len(label_set('camvid_11'))
    for index in range(len(file.labels)):
        config = file.config('closed_set', index, pretrained='weights')
        with torch.device('meta'):
            config.network.pretrained = None
            network = MaskClassifier(config.network, count)
        if file.sweep.outliers:
            trainable, total = freeze_except(
                network, file.config('outliers', index).outliers.trainable)
            assert 0 < trainable <= total


def test_weights_are_for_backbones_that_do_not_refuse_them():
    file = SweepFile('backbones')
    given = {label: file.config('closed_set', index, pretrained='weights').network.pretrained
             for index, label in enumerate(file.labels)}
    assert {label for label, file in given.items() if file} == {'MobileNetV2'}
