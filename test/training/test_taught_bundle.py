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
"""A metric head for a bundle whose training run is gone."""

import copy

import numpy as np
from owseg_ros.bundle import load_bundle
from owseg_ros.segmenter import FEATURES, Segmenter
from owseg_training.bundle_export import export_bundle, ExportOptions
from owseg_training.bundle_network import BUNDLE, BundleNetwork
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.config import ConfigError, MetricConfig
from owseg_training.data.stream import normalize
from owseg_training.metric import MetricTraining
import pytest
from support.camvid import tiny_config, write_camvid
import torch
import yaml


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Return a folder with data and a bundle of a network that has learned nothing."""
    folder = tmp_path_factory.mktemp('taught')
    start = ClosedSetTraining(tiny_config(write_camvid(folder)), folder / 'start', 'cpu')
    start.save()
    (folder / 'start' / 'log.jsonl').write_text('{"step": 1, "total": 2.0}\n')
    export_bundle(folder / 'start', folder / 'models' / 'tiny', ExportOptions(str(folder)))
    return folder


def config(place, steps=3, size=(96, 64)):
    found = tiny_config(place, steps)
    found.metric = MetricConfig(dim=16)
    found.data.size = list(size)
    return found


def test_the_network_is_that_of_the_robot(place):
    """Same pixel features as the Segmenter, for any number of frames and in a copy too."""
    bundle = load_bundle(place / 'models' / 'tiny')
    network = BundleNetwork(bundle)
    network.add_metric_head(16)
    images = np.random.default_rng(1).integers(0, 256, (3, 64, 96, 3), np.uint8)
    batch = torch.stack([normalize(image) for image in images])
    segmenter = Segmenter(bundle)
    for found in (network, copy.deepcopy(network)):
        prediction = found(batch)
        for image, features in zip(images, prediction.pixel_features):
            expected = segmenter(image, maps={FEATURES}).pixel_features
            np.testing.assert_allclose(features.numpy(), expected, atol=1e-4, rtol=1e-4)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        twin.metric_head.classifier.weight.zero_()
    assert network.metric_head.classifier.weight.abs().max() > 0
    assert all(name.startswith('metric_head.') for name, _ in network.named_parameters())


def test_a_bundle_is_given_a_head_and_keeps_its_network(place, tmp_path, capsys):
    """From the command line; a run that is started again goes on to the same head."""
    start, recipe = place / 'models' / 'tiny', tmp_path / 'recipe.yaml'
    recipe.write_text(yaml.safe_dump(config(place).to_dict()))
    command = ['metric', '--start', str(start), '--out', str(tmp_path / 'run'), '--config',
               str(recipe), '--data', str(place), '--device', 'cpu', '--threads', '1']
    assert main(command) == 0
    head = sum(p.numel() for p in MetricTraining(
        config(place), tmp_path / 'other', start, 'cpu').network.parameters())
    assert f'training {head:,} of {head:,}' in capsys.readouterr().out
    export = ['export', str(tmp_path / 'run'), '--out', str(tmp_path / 'bundle'), '--data',
              str(place)]
    assert main(export) == 0
    before, after = load_bundle(start), load_bundle(tmp_path / 'bundle')
    assert before.novelty is None and after.novelty.dim == 16
    assert after.network_sha256 == before.network_sha256
    assert after.figures == before.figures and after.anomaly == before.anomaly
    assert 'frames of CamVid val' in after.novelty.operating_point
    card = (tmp_path / 'bundle' / 'MODEL_CARD.md').read_text()
    assert '- **Taught classes**: embeddings of 16 numbers' in card
    assert card.index('owseg-train metric') < card.index('## Limits')
    head = Segmenter(after).metric_head
    assert head.known.shape == (3, 16)

    killed = MetricTraining(config(place), tmp_path / 'again', start, 'cpu')
    step = killed._train_step
    killed._train_step = lambda parts: step(parts) if killed.step < 2 else killed.save() or 1 / 0
    with pytest.raises(ZeroDivisionError):
        killed.run(report=False)
    resumed = MetricTraining(config(place), tmp_path / 'again', start, 'cpu')
    assert resumed.step == 2
    resumed.run(report=False)
    assert main(['export', str(tmp_path / 'again'), '--out', str(tmp_path / 'same'), '--data',
                 str(place)]) == 0
    rows = np.random.default_rng(2).normal(size=(5, 32)).astype(np.float32)
    np.testing.assert_allclose(Segmenter(tmp_path / 'same').metric_head.embed(rows),
                               head.embed(rows), atol=1e-6)


def test_what_does_not_fit_is_refused(place, tmp_path, capsys):
    start = place / 'models' / 'tiny'
    with pytest.raises(ConfigError, match='takes 96x64 and the recipe has 128x64'):
        MetricTraining(config(place, size=(128, 64)), tmp_path / 'run', start, 'cpu')
    MetricTraining(config(place), tmp_path / 'run', start, 'cpu').save()
    assert (tmp_path / 'run' / BUNDLE).is_dir()
    with pytest.raises(ConfigError, match='a metric head for a bundle'):
        load_network(tmp_path / 'run')
    export = ['export', str(tmp_path / 'run'), '--out', str(tmp_path / 'bundle')]
    assert main(export) == 2
    assert 'did not come to its end' in capsys.readouterr().err
    assert main([*export, '--size', '128x64']) == 2
    assert 'leave the options out' in capsys.readouterr().err
