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

import numpy as np
from owseg_training.class_regions import class_masks, embed_classes
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network, predict
from owseg_training.config import ConfigError, MetricConfig
from owseg_training.data.hidden import open_split
from owseg_training.history import stages_of
from owseg_training.metric import MetricCriterion, MetricTraining
from owseg_training.model_card import _stage, Stage
from owseg_training.network import Prediction
from owseg_training.network.metric_head import MetricHead
from owseg_training.prototypes import class_prototypes, known_prototypes, prototype
import pytest
from support.camvid import CLASSES, tiny_config, write_camvid
import torch
from torch.nn import functional
import yaml


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Return a folder with data and a run that has learned nothing."""
    folder = tmp_path_factory.mktemp('metric')
    start = ClosedSetTraining(tiny_config(write_camvid(folder)), folder / 'start', 'cpu')
    start.save()
    (folder / 'start' / 'log.jsonl').write_text('{"step": 1, "total": 2.0}\n')
    (folder / 'start' / 'text_space.txt').write_text('tiny\n')
    return folder


def config(place, steps=2, **changes):
    found = tiny_config(place, steps)
    found.metric.dim = 16
    found.optimizer.lr = 0.01
    for key, value in changes.items():
        setattr(found.metric, key, value)
    return found


@pytest.fixture(scope='module')
def trained(place):
    """Return a run whose metric head was trained for two steps."""
    training = MetricTraining(config(place), place / 'run', place / 'start', 'cpu')
    training.run(report=False, log_every=1)
    return place / 'run'


def read_log(run):
    return [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]


def test_masks_of_a_label_are_its_classes_at_the_nearest_pixels():
    label = torch.full((8, 12), 255, dtype=torch.uint8)
    label[:4, :8], label[4:, :4], label[4:, 4:] = 2, 0, 7
    ids, masks = class_masks(label, (2, 3), 3)
    assert ids.tolist() == [0, 2]
    assert masks.tolist() == [[[0, 0, 0], [1, 0, 0]], [[1, 1, 0], [0, 0, 0]]]
    assert class_masks(label, (2, 3), 3, min_area=2)[0].tolist() == [2]
    # A pixel stands for the 4x4 around its middle.
    assert class_masks(torch.arange(16, dtype=torch.uint8).reshape(4, 4), (1, 1),
                       16)[0].tolist() == [10]


def losses(seeds=(1, 2), total=2.0, **changes):
    """Return the losses of two random labels, their criterion, features and labels."""
    torch.manual_seed(0)
    head = MetricHead(5, 8, 3)
    features = torch.randn(2, 5, 8, 12)
    label = torch.randint(0, 3, (2, 2, 3), dtype=torch.uint8)
    label[1, 1] = 255
    label = label.repeat_interleave(16, 1).repeat_interleave(16, 2)
    criterion = MetricCriterion(MetricConfig(**changes), head)
    found = criterion(Prediction(None, None, features), label,
                      {'images': torch.tensor(total)}, list(seeds))
    return found, head, features, label


def test_losses_are_circle_and_cross_entropy_of_class_means():
    found, head, features, label = losses(views=1, drop_probability=0.0, circle_weight=0.3,
                                          class_weight=0.7)
    means, ids = [], []
    for feature, own in zip(features, label[:, 2::4, 2::4]):
        for index in sorted(set(own.flatten().tolist()) - {255}):
            means.append(feature[:, own == index].mean(1))
            ids.append(index)
    raw, ids = head.layers(torch.stack(means)), torch.tensor(ids)
    unit = functional.normalize(raw, dim=1)
    total = 0.0
    for i in range(len(ids)):
        for j in range(i):
            for k in range(len(ids)):
                for m in range(k):
                    if ids[i] == ids[j] and ids[k] != ids[m]:
                        total += torch.exp(8 * (unit[k] @ unit[m] - unit[i] @ unit[j] + 0.25))
    assert found['circle'].item() == pytest.approx(0.3 * np.log1p(total.item()), rel=1e-4)
    entropy = functional.cross_entropy(raw @ head.classifier.weight.T, ids)
    assert found['classes'].item() == pytest.approx(0.7 * entropy.item(), rel=1e-5)
    half, *_ = losses(views=1, drop_probability=0.0, total=4.0, circle_weight=0.3)
    assert half['circle'].item() == pytest.approx(found['circle'].item() / 2, rel=1e-6)


def test_views_are_random_by_sample_and_cross_entropy_is_an_option():
    first, again, other = (losses(seeds)[0] for seeds in ((1, 2), (1, 2), (1, 3)))
    assert first['circle'] == again['circle'] != other['circle']
    alone = losses(class_weight=0.0)[0]
    assert set(alone) == {'circle'} and alone['circle'] == first['circle']


def test_the_unit_of_comparison_may_be_a_pixel():
    found, head, features, label = losses(unit='pixel', views=64, class_weight=1.0)
    small = label[:, 2::4, 2::4]
    logits = head.embed_and_classify(features.permute(0, 2, 3, 1)[small != 255])[1]
    entropies = functional.cross_entropy(logits, small[small != 255].long(), reduction='none')
    # Each class of a picture has as many pixels, chosen with repetition.
    expected = [entropies[i] for i in range(len(entropies))]
    assert min(expected) < found['classes'].item() < max(expected)
    places = [(0, index) for index in small[0].unique()] + [
        (1, index) for index in small[1].unique() if index != 255]
    flat = torch.full(small.shape, float('nan'))
    flat[small != 255] = entropies.detach()
    mean = np.mean([flat[b][small[b] == index].mean().item() for b, index in places])
    assert found['classes'].item() == pytest.approx(mean, rel=0.1)
    assert losses((1, 3), unit='pixel')[0]['circle'] != losses(unit='pixel')[0]['circle']
    with pytest.raises(ConfigError, match="metric.unit must be 'region' or 'pixel'"):
        MetricCriterion(MetricConfig(unit='mask'), head)
    empty = MetricCriterion(MetricConfig(unit='pixel'), head)(
        Prediction(None, None, features[:1]), torch.full((1, 32, 48), 255, dtype=torch.uint8),
        {'images': torch.tensor(1.0)}, [0])
    assert empty['circle'].item() == empty['classes'].item() == 0


def test_labels_without_a_region_give_no_loss_but_a_gradient():
    head = MetricHead(5, 8, 3)
    features = torch.randn(1, 5, 8, 12)
    found = MetricCriterion(MetricConfig(), head)(
        Prediction(None, None, features), torch.full((1, 32, 48), 255, dtype=torch.uint8),
        {'images': torch.tensor(1.0)}, [0])
    assert found['circle'].item() == found['classes'].item() == 0
    sum(found.values()).backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


def test_prototypes_are_means_of_unit_length():
    rows = np.array([[1, 0], [0, 1], [0, -1.0]], np.float32)
    assert np.allclose(prototype(rows[:2]), [np.sqrt(0.5)] * 2)
    found = class_prototypes(rows, np.array([2, 2, 0]), 4)
    assert found.dtype == np.float32
    assert np.allclose(found[[2, 0]], [[np.sqrt(0.5)] * 2, [0, -1]])
    assert np.isnan(found[[1, 3]]).all()


@pytest.mark.timeout(180)
def test_only_the_metric_head_learns(place, trained):
    log = read_log(trained)
    assert [entry['step'] for entry in log] == [1, 2]
    assert all(set(entry) == {'step', 'total', 'circle', 'classes'} for entry in log)
    assert all(entry['circle'] > 0 and entry['classes'] > 0 for entry in log)
    old, new = (load_network(run)[0] for run in (place / 'start', trained))
    assert old.metric_head is None and new.metric_head.layers[2].out_features == 16
    before, after = old.state_dict(), new.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(name.startswith('metric_head.') for name in set(after) - set(before))
    saved = yaml.safe_load((trained / 'config.yaml').read_text())
    assert saved['stage'] == 'metric' and saved['network']['metric_dim'] == 16
    assert (trained / 'text_space.txt').read_text() == 'tiny\n'
    assert [found.stage for found, _ in stages_of(trained)] == ['closed_set', 'metric']
    card = _stage(Stage(*list(stages_of(trained))[-1]))
    assert 'owseg-train metric' in card and '| circle | classes |' in card


@pytest.mark.timeout(180)
def test_a_killed_run_goes_on_and_the_network_stays_in_evaluation_mode(place, trained, tmp_path):
    def open_run():
        return MetricTraining(config(place), tmp_path / 'run', place / 'start', 'cpu')

    broken = open_run()
    broken.network.train()
    first = {name: value.clone() for name, value in broken.network.metric_head.named_parameters()}
    broken._train_step(next(iter(broken._batches())))
    assert not any(module.training for module in broken.network.modules())
    assert all(not torch.equal(value, first[name])
               for name, value in broken.network.metric_head.named_parameters())
    head = sum(p.numel() for p in broken.network.metric_head.parameters())
    assert broken.trainable == head < broken.parameters
    broken.save()
    resumed = open_run()
    assert resumed.step == 1
    resumed.run(report=False, log_every=1)
    assert read_log(resumed.folder) == read_log(trained)[1:]


@pytest.mark.timeout(180)
def test_training_parts_the_classes(place, tmp_path):
    training = MetricTraining(config(place, 30, class_weight=0.0), tmp_path / 'run',
                              place / 'start', 'cpu')
    assert not training.network.metric_head.classifier.weight.requires_grad
    parts = next(iter(training._batches()))  # The same batch again and again.
    history = [training._train_step(parts)['circle'] for _ in range(12)]
    assert history[-1] < 0.8 * history[0]


@pytest.mark.timeout(180)
def test_known_prototypes_are_of_the_classes_in_the_pictures(place, trained):
    network, found_config = load_network(trained)
    data_set = open_split(found_config.data, 'train')
    with np.load(trained / 'known_prototypes.npz', allow_pickle=False) as file:
        assert file['names'].tolist() == ['a', 'b', 'c']
        rows = file['embeddings']
    assert rows.dtype == np.float32 and rows.shape == (3, 16)
    sums = np.zeros((3, 16))
    for item in data_set.items:
        image, label = data_set.read(item)
        features = predict(network, image, found_config)[0].pixel_features[0]
        small = functional.interpolate(torch.from_numpy(label)[None, None].float(),
                                       size=features.shape[-2:], mode='nearest-exact')[0, 0]
        for index in range(3):
            if (small == index).sum() >= found_config.metric.min_area:
                with torch.inference_mode():
                    sums[index] += network.metric_head(
                        features[:, small == index].mean(1)[None])[0].numpy()
    assert np.allclose(rows, sums / np.linalg.norm(sums, axis=1, keepdims=True), atol=1e-5)
    some = embed_classes(network, data_set, found_config, frames=2)
    assert set(some.frames) == {0, 5} and len(some.rows) == len(some.classes) <= 6
    assert np.allclose(np.linalg.norm(some.rows, axis=1), 1, atol=1e-5)
    assert some.areas.max() <= 16 * 24
    assert np.array_equal(
        known_prototypes(network, data_set, found_config, 2),
        class_prototypes(some.rows, some.classes, 3), equal_nan=True)


def test_what_does_not_fit_is_refused(place, tmp_path):
    network, found = load_network(place / 'start')
    with pytest.raises(ConfigError, match='no metric head.*owseg-train metric'):
        embed_classes(network, open_split(found.data, 'train'), found)
    other = write_camvid(tmp_path)
    (other / 'camvid' / 'classes.json').write_text(json.dumps({'classes': CLASSES[:2]}))
    with pytest.raises(ConfigError, match='the start has 3 classes, CamVid has 2'):
        MetricTraining(config(other), tmp_path / 'run', place / 'start', 'cpu')


@pytest.mark.timeout(180)
def test_on_the_command_line(place, tmp_path, capsys):
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(config(place, 1).to_dict()))
    command = ['metric', '--start', str(place / 'start'), '--out', str(tmp_path / 'run'),
               '--config', str(tmp_path / 'recipe.yaml'), '--data', str(place), '--device', 'cpu',
               '--threads', '1']
    assert main(command) == 0
    head = sum(p.numel() for p in load_network(tmp_path / 'run')[0].metric_head.parameters())
    assert f'training {head:,} of' in capsys.readouterr().out
    assert (tmp_path / 'run' / 'known_prototypes.npz').is_file()
    assert (tmp_path / 'run' / 'report.md').is_file()
    command[2] = str(tmp_path / 'nowhere')
    assert main(command) == 2
    assert 'nowhere' in capsys.readouterr().err
