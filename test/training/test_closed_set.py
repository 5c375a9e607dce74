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
from owseg_training.closed_set import (
    class_scores, ClosedSetTraining, learning_rate_factor, load_network)
from owseg_training.config import ConfigError
from owseg_training.data.augment import augment, color_jitter, random_crop
from owseg_training.data.datasets import CamVid, DataError, RoadAnomaly
from owseg_training.data.stream import closed_set_stream
from owseg_training.export import export_onnx, parity
import pytest
from support.camvid import tiny_config, write_camvid
from support.data import data_root
import torch


@pytest.mark.timeout(180)
def test_killed_run_resumes_to_the_same_curve(tmp_path):
    root = write_camvid(tmp_path)
    whole = ClosedSetTraining(tiny_config(root), tmp_path / 'whole')
    whole.run()
    part = ClosedSetTraining(tiny_config(root), tmp_path / 'part')
    part.network.train()
    for _, batch in zip(range(3), part._batches()):
        part._train_step(batch)
    part.save()
    resumed = ClosedSetTraining(tiny_config(root), tmp_path / 'part')
    assert resumed.step == 3
    resumed.run()
    expected, _ = load_network(tmp_path / 'whole')
    actual, config = load_network(tmp_path / 'part')
    assert config.name == 'tiny'
    for name, value in expected.state_dict().items():
        assert torch.allclose(actual.state_dict()[name], value, atol=1e-6), name


@pytest.mark.timeout(180)
def test_the_average_forgets_the_start_and_a_damaged_line_of_the_log_goes(tmp_path):
    training = ClosedSetTraining(tiny_config(write_camvid(tmp_path)), tmp_path / 'run', 'cpu')
    training.network.train()
    name = 'transformer_decoder.query_feat.weight'
    expected = training.average.state_dict()[name].clone()
    # Decay (1 + step) / (10 + step), until it reaches the configured 0.9.
    for decay, batch in zip((1 / 10, 2 / 11), training._batches()):
        training._train_step(batch)
        expected = decay * expected + (1 - decay) * training.network.state_dict()[name]
        assert torch.allclose(training.average.state_dict()[name], expected, atol=1e-7)
    training.save()
    log = tmp_path / 'run' / 'log.jsonl'
    log.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    assert ClosedSetTraining(training.config, tmp_path / 'run', 'cpu').step == 2
    assert log.read_text() == '{"step": 1}\n{"step": 2}\n'


@pytest.mark.parametrize('step, expected', [
    (0, 0.25), (1, 0.5 * 0.9 ** 0.9), (5, 0.5 ** 0.9), (9, 0.1 ** 0.9)])
def test_the_learning_rate_warms_up_and_falls_to_nothing(step, expected):
    config = tiny_config('nowhere', 10)
    config.optimizer.warmup = 4
    assert learning_rate_factor(step, config) == pytest.approx(expected)


@pytest.mark.timeout(180)
def test_training_learns_the_blocks_and_exports_what_it_learned(tmp_path):
    config = tiny_config(write_camvid(tmp_path), 60)
    training = ClosedSetTraining(config, tmp_path / 'run')
    training.run(validate_every=1000)
    log = [json.loads(line) for line in (tmp_path / 'run' / 'log.jsonl').read_text().splitlines()]
    totals = [entry['total'] for entry in log if 'total' in entry]
    assert totals[-1] < totals[0]
    # Guessing gives about 0.2.
    assert log[-1]['mIoU'] > 0.4
    network, _ = load_network(tmp_path / 'run')
    export_onnx(network, tmp_path / 'network.onnx', (96, 64))
    images = [closed_set_stream(config.data, 3, 4)[i][0] for i in range(3)]
    difference = parity(network, tmp_path / 'network.onnx', images)
    assert set(difference) == {'mask_logits', 'class_logits', 'pixel_features'}
    assert max(difference.values()) <= 1e-4


def test_class_scores_equal_the_reference_readout():
    from owseg_ros.readout import reference
    torch.manual_seed(0)
    class_logits, mask_logits = torch.randn(1, 5, 4), 4 * torch.randn(1, 5, 6, 8)
    ours = class_scores(class_logits, mask_logits, (24, 32))[0].numpy()
    probabilities = class_logits.softmax(2)[0, :, :-1].numpy()
    expected = reference.class_scores(mask_logits[0].numpy(), probabilities, (24, 32))
    assert np.allclose(ours, expected, atol=1e-5)


def test_sample_is_a_function_of_seed_and_index(tmp_path):
    config = tiny_config(write_camvid(tmp_path)).data
    config.street_probability = 0.5
    one, two = closed_set_stream(config, 5, 40), closed_set_stream(config, 5, 40)
    for index in (7, 0, 39, 7):
        (a, la), (b, lb) = one[index], two[index]
        assert torch.equal(a, b) and torch.equal(la, lb)
    assert not torch.equal(one[0][0], closed_set_stream(config, 6, 40)[0][0])
    epoch = [one._pick(i).name for i in range(12)]
    assert sorted(epoch[:6]) == sorted(epoch[6:]) == sorted(i.name for i in one.items)
    assert epoch[:6] != epoch[6:]
    with pytest.raises(IndexError):
        one[40]


def test_augmentation_keeps_image_and_label_together():
    rng = np.random.default_rng(0)
    label = np.kron(rng.integers(0, 3, (4, 5)), np.ones((30, 30))).astype(np.uint8)
    image = np.repeat((label * 80)[..., None], 3, 2)
    for seed in range(20):
        generator = np.random.default_rng(seed)
        crop, ids = random_crop(image, label, (96, 64), (0.5, 2.0), (0.8, 1.25), generator)
        assert crop.shape == (64, 96, 3) and ids.shape == (64, 96)
        known = ids != 255
        agree = np.abs(crop[..., 0].astype(int) - ids.astype(int) * 80)[known] < 20
        assert agree.mean() > 0.85
    out, ids = augment(image, label, (96, 64), (1.0, 1.0), (1.0, 1.0), np.random.default_rng(1))
    assert out.dtype == ids.dtype == np.uint8 and out.flags.c_contiguous


def test_color_jitter_moves_colours_within_range():
    image = np.full((8, 8, 3), (180, 90, 40), np.uint8)
    results = [color_jitter(image, np.random.default_rng(s)) for s in range(50)]
    means = np.array([r.reshape(-1, 3).mean(0) for r in results])
    assert all(r.dtype == np.uint8 and r.shape == image.shape for r in results)
    assert means.std(0).min() > 5
    assert np.abs(means.mean(0) - (180, 90, 40)).max() < 40


def test_missing_data_says_what_is_missing(tmp_path):
    with pytest.raises(DataError, match='OWSEG_DATA'):
        CamVid('train', tmp_path / 'nowhere')
    with pytest.raises(DataError, match='classes.json'):
        CamVid('train', tmp_path)
    with pytest.raises(DataError, match='masks/<name>.png'):
        RoadAnomaly(tmp_path)
    root = write_camvid(tmp_path)
    (root / 'camvid' / 'labels' / 'f3.png').unlink()
    with pytest.raises(DataError, match='f3'):
        CamVid('val', root)


def test_a_run_that_cannot_begin_leaves_no_folder(tmp_path):
    config = tiny_config(write_camvid(tmp_path))
    config.network.pretrained = str(tmp_path / 'absent.safetensors')
    with pytest.raises(OSError, match='absent'):
        ClosedSetTraining(config, tmp_path / 'run')
    config.data.root = str(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='OWSEG_DATA'):
        ClosedSetTraining(config, tmp_path / 'run')
    assert not (tmp_path / 'run').exists()
    with pytest.raises(ConfigError, match='no folder of a training run'):
        load_network(tmp_path / 'run')


def test_real_sets_are_read():
    root = data_root()
    assert len(CamVid('train', root).items) == 367
    assert len(CamVid('val', root).items) == 101
    assert [c.name for c in CamVid('val', root).classes][3] == 'Road'
    assert len(RoadAnomaly(root).items) == 36
