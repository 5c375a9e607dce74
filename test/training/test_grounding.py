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
"""Grounding as a training stage, on a tiny network; and the history that its folder keeps."""

import json

import cv2
import numpy as np
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.config import Config, ConfigError
from owseg_training.data.words import WordTable
from owseg_training.grounding import absent_words, GroundingTraining, word_embeddings
from owseg_training.history import record_start, stages_of
import pytest
from support.camvid import CLASSES, tiny_config, write_camvid
from support.tiny_text_encoder import DIM, make_tiny_text_encoder, SPACE
import torch
import yaml


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Return a folder with data, a text encoder and a run that has hardly learned."""
    folder = tmp_path_factory.mktemp('grounding')
    root = write_camvid(folder)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cv2.imwrite(str(objects / 'a_goat.png'), np.full((12, 12, 4), 255, np.uint8))
    make_tiny_text_encoder(folder / 'encoder')
    train(ClosedSetTraining(tiny_config(root, 1), folder / 'start'))
    return folder


@pytest.fixture(scope='module')
def encoder(place):
    return OnnxTextEncoder(place / 'encoder')


def config(place, steps=3, **changes):
    found = tiny_config(place, steps)
    found.grounding.region_hidden_dim = 32
    found.grounding.negatives = 8
    found.optimizer.lr = 0.01
    for key, value in changes.items():
        setattr(found.grounding, key, value)
    return found


def train(training):
    training.run(validate_every=None, report=False, log_every=1)
    return read_log(training.folder)


def read_log(run):
    return [json.loads(line) for line in (run / 'log.jsonl').read_text().splitlines()]


@pytest.fixture(scope='module')
def grounded(place, encoder):
    """Return a run whose region head was trained for three steps."""
    train(GroundingTraining(config(place), place / 'run', place / 'start', encoder, 'cpu'))
    return place / 'run'


def outputs(run):
    network, _ = load_network(run)
    image = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        return network(image)


@pytest.mark.timeout(180)
def test_the_head_alone_leaves_masks_and_classes_bit_for_bit(place, grounded):
    log = read_log(grounded)
    assert [entry['step'] for entry in log] == [1, 2, 3]
    assert all(set(entry) == {'step', 'total', 'grounding', 'regions'} for entry in log)
    assert all(np.isfinite(entry['total']) and entry['regions'] > 0 for entry in log)
    before, after = outputs(place / 'start'), outputs(grounded)
    for name in ('mask_logits', 'class_logits', 'pixel_features'):
        assert torch.equal(getattr(before, name), getattr(after, name)), name
    assert before.embeddings is None
    assert after.embeddings.regions.shape == (1, 6, DIM)
    old, new = (load_network(folder)[0].state_dict() for folder in (place / 'start', grounded))
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert all(name.startswith('region_head.') for name in set(new) - set(old))
    saved = yaml.safe_load((grounded / 'config.yaml').read_text())
    assert saved['stage'] == 'grounding' and saved['network']['region_head'] == 'pooled'
    assert saved['network']['region_dim'] == DIM
    assert (grounded / 'text_space.txt').read_text().strip() == SPACE


def test_parts_of_one_picture_have_nothing_to_contrast(place, encoder, tmp_path):
    alone = config(place)
    alone.optimizer.accumulate = alone.optimizer.batch_size
    with pytest.raises(ConfigError, match='leaves 1 a part'):
        GroundingTraining(alone, tmp_path / 'run', place / 'start', encoder, 'cpu')
    alone.grounding.grounding_weight = 0.0
    assert GroundingTraining(alone, tmp_path / 'run', place / 'start', encoder,
                             'cpu').part_size == 1


@pytest.mark.timeout(180)
def test_a_killed_run_goes_on_as_if_nothing_had_been(place, grounded, encoder, tmp_path):
    def open_run():
        return GroundingTraining(config(place), tmp_path / 'run', place / 'start', encoder, 'cpu')

    broken = open_run()
    head = broken.network.region_head
    assert broken.trainable == sum(p.numel() for p in head.parameters()) < broken.parameters
    first = {k: v.clone() for k, v in head.state_dict().items()}
    broken._train_step(next(iter(broken._batches())))
    assert all(not torch.equal(value, first[name]) for name, value in head.state_dict().items())
    broken.save()
    resumed = open_run()
    assert resumed.step == 1
    assert train(resumed) == read_log(grounded)[1:]
    whole, again = (load_network(run)[0].state_dict() for run in (grounded, tmp_path / 'run'))
    assert all(torch.equal(whole[name], again[name]) for name in whole)


@pytest.mark.timeout(180)
def test_all_trains_masks_without_labels_of_classes(place, encoder, tmp_path):
    training = GroundingTraining(config(place, 1, trainable=['all']), tmp_path / 'run',
                                 place / 'start', encoder, 'cpu')
    decoder = training.network.transformer_decoder
    counted = sum(p.numel() for p in training.network.parameters() if p.requires_grad)
    assert training.trainable == counted
    assert not any(p.requires_grad for p in decoder.class_embed.parameters())
    log = train(training)
    assert all(entry['masks'] > 0 for entry in log)
    old, new = (load_network(folder)[0].state_dict()
                for folder in (place / 'start', tmp_path / 'run'))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert any('mask_embed' in name for name in changed)
    assert any(name.startswith('backbone.') for name in changed)
    assert not any('class_embed' in name or 'pixel_classifier' in name for name in changed)


@pytest.mark.timeout(180)
def test_training_brings_regions_to_their_words(place, encoder, tmp_path):
    training = GroundingTraining(config(place, 20, grounding_weight=0.0), tmp_path / 'run',
                                 place / 'start', encoder, 'cpu')
    parts = next(iter(training._batches()))  # The same batch again and again.
    history = [training._train_step(parts)['regions'] for _ in range(8)]
    assert history[-1] < 0.8 * history[0]


@pytest.mark.timeout(180)
def test_captions_take_the_place_of_labels(place, encoder, tmp_path):
    folder = tmp_path / 'captions'
    (folder / 'images').mkdir(parents=True)
    (folder / 'regions').mkdir()
    for index in range(3):
        image = np.full((72, 96, 3), 60 * index, np.uint8)
        cv2.imwrite(str(folder / 'images' / f'p{index}.png'), image)
        cv2.imwrite(str(folder / 'regions' / f'p{index}.png'), image[..., 0] // 60)
    (folder / 'captions.json').write_text(json.dumps({
        'p0': ['a dog and a car'], 'p1': ['a tree'], 'p2': ['traffic cones']}))
    training = GroundingTraining(
        config(place, 1, trainable=['all'], captions=str(folder), keep=1.0), tmp_path / 'run',
        place / 'start', encoder, 'cpu')
    assert training.objects is None
    assert {'traffic cones', 'a', 'animal'} <= set(training.table.words)
    log = train(training)
    assert all(entry['grounding'] > 0 and entry['masks'] > 0 for entry in log)
    assert all(entry['regions'] == 0 for entry in log)


def test_what_does_not_fit_is_refused(place, encoder, tmp_path):
    def open_run(**changes):
        found = config(place, **changes)
        return GroundingTraining(found, tmp_path / 'run', place / 'start', encoder, 'cpu')

    with pytest.raises(ConfigError, match="no part 'heads'.*region_head"):
        open_run(trainable=['heads'])
    other = write_camvid(tmp_path)
    (other / 'camvid' / 'classes.json').write_text(json.dumps({'classes': CLASSES[:2]}))
    with pytest.raises(ConfigError, match='the start has 3 classes, CamVid has 2'):
        GroundingTraining(config(other, objects=''), tmp_path / 'two', place / 'start', encoder,
                          'cpu')


@pytest.mark.timeout(180)
def test_a_start_of_another_text_space_is_refused(place, grounded, encoder, tmp_path):
    training = GroundingTraining(config(place), tmp_path / 'on', grounded, encoder, 'cpu')
    kept = load_network(grounded)[0].region_head.state_dict()
    assert all(torch.equal(value, kept[name])
               for name, value in training.network.region_head.state_dict().items())
    make_tiny_text_encoder(tmp_path / 'encoder', space='elsewhere')
    with pytest.raises(ConfigError, match='text space tiny, and the text encoder is of elsewhere'):
        GroundingTraining(config(place), tmp_path / 'no', grounded,
                          OnnxTextEncoder(tmp_path / 'encoder'), 'cpu')


def test_words_are_encoded_as_queries_are(encoder):
    words = ['car', 'traffic cone']
    found = word_embeddings(encoder, words)
    assert found.shape == (2, DIM) and found.dtype == torch.float32
    assert np.allclose(found.numpy(), encoder.encode(words), atol=1e-6)


def test_absent_words_are_neither_learned_nor_held_out_nor_of_hidden_classes():
    table = WordTable(['Car', 'Tree'])
    found = absent_words(table)
    assert len(set(found)) == len(found) > 50
    assert 'puddle' in found and 'pothole' in found
    assert not {'car', 'tree', 'vehicle', 'automobile', 'sidewalk', 'greenery'} & set(found)
    assert 'bus' in found
    hidden = absent_words(table, ['Bus'])
    assert not {'bus', 'buses'} & set(hidden) and set(hidden) < set(found)


def test_the_history_of_a_run_has_its_start(grounded):
    stages = list(stages_of(grounded))
    assert [found.stage for found, _ in stages] == ['closed_set', 'grounding']
    assert 'class' in stages[0][1][0] and 'regions' in stages[1][1][0]


def test_history_has_all_stages_in_order(tmp_path):
    """A run of three stages, the first of which came from outside and has no log."""
    names = ('outside', 'closed_set', 'outliers', 'grounding')
    for before, name in zip((None, *names), names):
        (tmp_path / name).mkdir()
        found = Config(name=name, stage=name)
        (tmp_path / name / 'config.yaml').write_text(yaml.safe_dump(found.to_dict()))
        if before:
            (tmp_path / name / 'log.jsonl').write_text(f'{{"step": 1, "{name}": 2.5}}\n')
            # Twice, as where a run is resumed.
            record_start(tmp_path / before, tmp_path / name)
            record_start(tmp_path / before, tmp_path / name)
    for count, name in enumerate(names):
        stages = list(stages_of(tmp_path / name))
        assert [found.name for found, _ in stages] == list(names[1:count + 1])
        assert [log for _, log in stages] == [[{'step': 1, stage: 2.5}]
                                              for stage in names[1:count + 1]]


@pytest.mark.timeout(180)
def test_on_the_command_line(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    recipe = config(place, 1).to_dict()
    (tmp_path / 'recipe.yaml').write_text(yaml.safe_dump(recipe))
    command = ['grounding', '--start', str(place / 'start'), '--out', str(tmp_path / 'run'),
               '--config', str(tmp_path / 'recipe.yaml'), '--data', str(place), '--device', 'cpu']
    assert main([*command, '--text-encoder', str(place / 'encoder'), '--threads', '1']) == 0
    printed = capsys.readouterr().out
    head = sum(p.numel() for p in load_network(tmp_path / 'run')[0].region_head.parameters())
    assert f'training {head:,} of' in printed and f'words of {SPACE}' in printed
    assert (tmp_path / 'run' / 'model.safetensors').is_file()
    assert (tmp_path / 'run' / 'report.md').is_file()
    assert main([*command, '--text-encoder', str(tmp_path / 'nowhere')]) == 2
    assert 'run: owseg text-encoder' in capsys.readouterr().err
    assert main([*command, '--text-encoder', str(place / 'encoder'), '--captions',
                 str(tmp_path / 'nowhere')]) == 2
    assert 'captions.json is missing' in capsys.readouterr().err
