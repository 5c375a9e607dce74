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
"""A bundle's network back as torch weights."""

import dataclasses
import shutil
from unittest.mock import patch

import numpy as np
from owseg_ros.bundle import load_bundle, write_bundle
from owseg_ros.engine import OnnxEngine, TorchEngine, TorchOptions
from owseg_ros.engine.status import StateMachine
from owseg_ros.frame import Frame
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_training.class_texts import TEXT_SPACE
from owseg_training.cli import main
from owseg_training.closed_set import load_network
from owseg_training.convert import bundle as convert_bundle
from owseg_training.convert import ConvertError, save_network
from owseg_training.convert.bundle import from_bundle, recover_parameters
from owseg_training.export import export_onnx, OPSET
from owseg_training.network import MaskClassifier
from owseg_training.network.metric_head import MetricHead
from owseg_training.novelty import export_metric_head, METRIC_HEAD
from owseg_training.prototypes import KNOWN_PROTOTYPES, write_known_prototypes
import pytest
from support.camvid import tiny_config
from support.tiny_bundle import tiny_manifest
from support.tiny_text_encoder import DIM, make_tiny_text_encoder, SPACE
import torch
from torch import nn
import yaml

# Not in the file: what only training uses.
TRAINING_ONLY = ('pixel_classifier.', 'metric_head.classifier.', 'region_head.log_scale')


def network_config():
    config = tiny_config('nowhere').network
    return dataclasses.replace(config, region_head='pooled', region_dim=DIM,
                               region_hidden_dim=32, metric_dim=16)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Return a folder with a random network's run, its recipe and its bundle."""
    folder = tmp_path_factory.mktemp('exported')
    torch.manual_seed(3)
    network = MaskClassifier(network_config(), 3).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_(0, 0.1)
                layer.running_var.uniform_(0.8, 1.2)
    make_tiny_text_encoder(folder / 'encoder')
    manifest = tiny_manifest(encoder=OnnxTextEncoder(folder / 'encoder'), novelty=True)
    manifest['novelty']['dim'] = 16
    save_network(network, folder / 'run', name='tiny', size=(96, 64),
                 classes=[one['name'] for one in manifest['classes']],
                 colours=[one['color'] for one in manifest['classes']])
    (folder / 'run' / TEXT_SPACE).write_text(f'{SPACE}\n')
    known = write_known_prototypes(
        folder / 'run', np.eye(3, 16), [one['name'] for one in manifest['classes']])
    files = {'network.onnx': folder / 'network.onnx', METRIC_HEAD: folder / METRIC_HEAD}
    head, network.metric_head = network.metric_head, None
    export_onnx(network, files['network.onnx'], (96, 64))
    export_metric_head(head, files[METRIC_HEAD], OPSET)
    write_bundle(folder / 'bundle', manifest,
                 files | {KNOWN_PROTOTYPES: known, 'MODEL_CARD.md': b'# random\n'})
    recipe = tiny_config('nowhere')
    recipe.network.region_hidden_dim = 32
    (folder / 'recipe.yaml').write_text(yaml.safe_dump(recipe.to_dict()))
    return folder


@pytest.fixture(autouse=True, scope='module')
def one_twin(tmp_path_factory):
    """Export the twin once: it takes long, and has the same file each time."""
    kept = tmp_path_factory.mktemp('twin') / 'twin.onnx'

    def export_once(network, path, size):
        if not kept.exists():
            export_onnx(network, kept, size)
        shutil.copyfile(kept, path)

    with patch.object(convert_bundle, 'export_onnx', export_once):
        yield


@pytest.mark.timeout(300)
def test_the_run_that_comes_back_is_that_of_the_export(place, tmp_path, capsys):
    again = tmp_path / 'again'
    assert main(['convert', str(place / 'bundle'), '--format', 'bundle',
                 '--config', str(place / 'recipe.yaml'), '--out', str(again)]) == 0
    assert str(again) in capsys.readouterr().out
    expected, _ = load_network(place / 'run')
    found, config = load_network(again)
    assert found.config == network_config()
    assert tuple(config.data.size) == (96, 64)
    for name in ('classes.json', TEXT_SPACE, KNOWN_PROTOTYPES):
        assert (again / name).read_bytes() == (place / 'run' / name).read_bytes()
    norms = [name for name, layer in expected.named_modules() if isinstance(layer, nn.BatchNorm2d)]
    folded = {f'{name}.weight' for name, layer in expected.backbone.named_modules(
        prefix='backbone') if isinstance(layer, nn.Conv2d)}
    compared = 0
    for (name, one), other in zip(expected.named_parameters(), found.parameters()):
        if name.startswith(TRAINING_ONLY) or name in folded or name.rsplit('.', 1)[0] in norms:
            continue
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-6, msg=name)
        compared += 1
    assert compared > 50
    assert found.region_head.scale.item() == pytest.approx(
        1 / load_bundle(place / 'bundle').language.temperature)
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        one, other = expected(image), found(image)
        torch.testing.assert_close(other.mask_logits, one.mask_logits, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(other.class_logits, one.class_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(
            other.embeddings.regions, one.embeddings.regions, rtol=1e-4, atol=1e-4)
        means = torch.randn(5, 32)
        torch.testing.assert_close(found.metric_head(means), expected.metric_head(means))


@pytest.mark.timeout(300)
def test_parameters_of_the_same_shapes_with_other_outputs_are_refused(place):
    config = dataclasses.replace(network_config(), heads=2)
    with pytest.raises(ConvertError, match='differ by'):
        from_bundle(load_bundle(place / 'bundle'), config)


@pytest.mark.timeout(300)
def test_a_bundle_is_given_a_torch_program_and_keeps_its_network(place, tmp_path, capsys):
    out = tmp_path / 'bundle'
    assert main(['torch-program', str(place / 'bundle'), '--config', str(place / 'recipe.yaml'),
                 '--out', str(out), '--data', str(tmp_path)]) == 0
    assert 'network.pt2 differs from network.onnx by' in capsys.readouterr().out
    start, bundle = load_bundle(place / 'bundle'), load_bundle(out)
    assert {name: bundle.files[name] for name in start.files} == start.files
    assert bundle.language == start.language and bundle.figures['known_score']
    image = np.random.default_rng(2).integers(0, 256, (64, 96, 3), np.uint8)
    engines = (OnnxEngine(start, threads=1),
               TorchEngine(bundle, TorchOptions(device='cpu'), StateMachine()))
    expected, found = (engine.infer([Frame(image)]) for engine in engines)
    for name in ('mask_logits', 'class_probabilities', 'region_embeddings'):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name),
                                   rtol=1e-4, atol=1e-4)


def test_another_shape_is_refused(place):
    head = MetricHead(32, 8, 3)
    with pytest.raises(ConvertError, match='another network than the recipe'):
        recover_parameters(head, load_bundle(place / 'bundle').novelty.metric_head,
                           lambda path: export_metric_head(head, path, OPSET))


def test_the_recipe_is_asked_for(place, tmp_path, capsys):
    assert main(['convert', str(place / 'bundle'), '--format', 'bundle',
                 '--out', str(tmp_path / 'run')]) == 2
    assert '--config' in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()
