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
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network, predict
from owseg_training.config import ConfigError
from owseg_training.history import stages_of
from owseg_training.mca import MetaChannelRegions
from owseg_training.meta_channels import MetaChannelTraining
from owseg_training.model_card import _stage, Stage
from owseg_training.regions import read_frame
import pytest
from support.camvid import tiny_config, write_camvid
import torch
import yaml


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Return a folder with data and a run that has learned nothing."""
    folder = tmp_path_factory.mktemp('meta')
    start = ClosedSetTraining(tiny_config(write_camvid(folder)), folder / 'start', 'cpu')
    start.save()
    (folder / 'start' / 'log.jsonl').write_text('{"step": 1, "total": 2.0}\n')
    for name in ('text_space.txt', 'known_prototypes.npz'):
        (folder / 'start' / name).write_text('kept\n')
    return folder


def config(place, steps=2, **changes):
    found = tiny_config(place, steps)
    found.optimizer.lr = 0.01
    for key, value in changes.items():
        setattr(found.meta, key, value)
    return found


@pytest.fixture(scope='module')
def trained(place):
    """Return a run whose meta channels were trained for two steps."""
    training = MetaChannelTraining(config(place), place / 'run', place / 'start', 'cpu')
    training.run(validate_every=None, report=False, log_every=1)
    return place / 'run'


def read_log(run):
    return [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]


LOSSES = {'one_vs_all', 'intersection', 'split', 'reconstruction'}


@pytest.mark.timeout(180)
def test_only_the_meta_channels_learn(place, trained):
    log = read_log(trained)
    assert [entry['step'] for entry in log] == [1, 2]
    assert all(set(entry) == {'step', 'total', *LOSSES} for entry in log)
    old, new = (load_network(run)[0] for run in (place / 'start', trained))
    assert old.meta_head is None and new.meta_head.meta == 4
    before, after = old.state_dict(), new.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert set(after) - set(before) == {'meta_head.mix.weight', 'meta_head.mix.bias'}
    saved = yaml.safe_load((trained / 'config.yaml').read_text())
    assert saved['stage'] == 'mca' and saved['network']['meta_channels'] == 4
    for name in ('text_space.txt', 'known_prototypes.npz'):
        assert (trained / name).read_text() == 'kept\n'
    stages = list(stages_of(trained))
    assert [found.stage for found, _ in stages] == ['closed_set', 'mca']
    assert 'owseg-train mca' in _stage(Stage(*stages[-1]))


@pytest.mark.timeout(180)
def test_losses_are_of_the_channels_of_the_picture(place, tmp_path):
    training = MetaChannelTraining(config(place, 1, channels=2), tmp_path / 'run',
                                   place / 'start', 'cpu')
    (image, label), = next(iter(training._batches()))
    network = training.network.eval()
    with torch.no_grad():
        features = network(image).pixel_features
        channels = network.meta_head(network.pixel_classifier(features))
        expected = training.meta_loss(channels, image, label)
    assert channels.shape[1] == 5
    found = training._train_step([(image, label)])
    assert not any(module.training for module in network.modules())
    for name in LOSSES:
        assert found[name] == pytest.approx(expected[name].item(), rel=1e-4), name


@pytest.mark.timeout(180)
def test_training_uses_the_channels_and_explains_the_picture(place, tmp_path):
    training = MetaChannelTraining(config(place, 40, reconstruction=1.0), tmp_path / 'run',
                                   place / 'start', 'cpu')
    parts = next(iter(training._batches()))  # The same batch again and again.
    history = [training._train_step(parts) for _ in range(25)]
    assert history[-1]['total'] < 0.8 * history[0]['total']
    assert history[-1]['reconstruction'] < history[0]['reconstruction']


@pytest.mark.timeout(180)
def test_with_other_parts_the_segmentation_learns_too(place, tmp_path):
    training = MetaChannelTraining(config(place, 1, trainable=['all']), tmp_path / 'run',
                                   place / 'start', 'cpu')
    assert not training.frozen
    training.run(validate_every=None, report=False, log_every=1)
    entry, = read_log(training.folder)
    assert set(entry) > {'total', *LOSSES} and any('mask' in name for name in entry)
    # Its features are others now, and so would the prototypes be.
    assert not (training.folder / 'known_prototypes.npz').exists()


@pytest.mark.timeout(180)
def test_a_frame_has_the_meta_channels_and_regions_of_them(trained):
    network, found_config = load_network(trained)
    image = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
    frame = read_frame(network, image, found_config)
    with torch.inference_mode():
        features = predict(network, image, found_config)[0].pixel_features
        expected = network.meta_channels(features)[0, 3:].numpy()
    assert np.allclose(frame.meta, expected, atol=1e-6) and frame.meta.shape == (4, 16, 24)
    regions = MetaChannelRegions(np.ones(4, bool), min_area=1)(frame)
    assert regions.shape == (50, 70) and (regions.max() > 0) == (frame.meta >= 0.5).any()


def test_what_does_not_fit_is_refused(place, tmp_path):
    plain = tiny_config(place)
    plain.network.pixel_classifier, plain.loss.pixel_weight = False, 0.0
    ClosedSetTraining(plain, tmp_path / 'plain', 'cpu').save()
    with pytest.raises(ConfigError, match='network.pixel_classifier: true'):
        MetaChannelTraining(config(place), tmp_path / 'run', tmp_path / 'plain', 'cpu')
    with pytest.raises(ConfigError, match="unknown activation 'tanh'"):
        MetaChannelTraining(config(place, activation='tanh'), tmp_path / 'run', place / 'start',
                            'cpu')
    with pytest.raises(ConfigError, match="unknown reading 'text'"):
        MetaChannelTraining(config(place, reading='text'), tmp_path / 'run', place / 'start',
                            'cpu')


@pytest.mark.timeout(180)
def test_on_the_command_line(place, tmp_path, capsys):
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(config(place, 1).to_dict()))
    command = ['mca', '--start', str(place / 'start'), '--out', str(tmp_path / 'run'),
               '--config', str(tmp_path / 'recipe.yaml'), '--data', str(place), '--device', 'cpu',
               '--threads', '1', '--channels', '6']
    assert main(command) == 0
    assert 'for 6 meta channels' in capsys.readouterr().out
    assert load_network(tmp_path / 'run')[0].meta_head.meta == 6
