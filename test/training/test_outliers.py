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
import cv2
import numpy as np
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.config import ConfigError
from owseg_training.data.anomaly_mix import OUTLIER, paste
from owseg_training.losses import rba_hinge, rba_map
from owseg_training.outliers import freeze_except, OutlierTraining
import pytest
from support.camvid import tiny_config, write_camvid
import torch


def logits_of(probability: float, count: int = 4, classes: int = 3):
    """Return logits of `count` queries of class 0 whose masks cover with this probability."""
    class_logits = torch.full((1, count, classes + 1), -40.0)
    class_logits[:, 0, 0] = 40.0
    class_logits[:, 1:, -1] = 40.0
    mask = torch.logit(torch.tensor(probability, dtype=torch.float64)).float()
    return class_logits, mask.expand(1, count, 6, 8).clone()


def test_rba_map_is_minus_the_sum_of_tanh():
    score = rba_map(*logits_of(0.5))
    assert torch.allclose(score, torch.full((1, 6, 8), -np.tanh(0.5), dtype=score.dtype))


def test_hinge_is_eq_6_in_both_reductions():
    class_logits, mask_logits = logits_of(0.5)
    outlier = torch.zeros(1, 24, 32, dtype=torch.bool)
    outlier[0, :5, :7] = True
    each = (5 + np.tanh(0.5)) ** 2
    assert rba_hinge(class_logits, mask_logits, outlier, 5.0, 'sum').item() == pytest.approx(
        35 * each, rel=1e-5)
    assert rba_hinge(class_logits, mask_logits, outlier, 5.0).item() == pytest.approx(
        0.5 * each, rel=1e-5)
    assert rba_hinge(class_logits, mask_logits, outlier & False, 5.0) == 0
    with pytest.raises(ValueError, match='median'):
        rba_hinge(class_logits, mask_logits, outlier, 5.0, 'median')


def test_hinge_pushes_the_votes_down():
    class_logits, mask_logits = logits_of(0.6)
    mask_logits.requires_grad_()
    rba_hinge(class_logits, mask_logits, torch.ones(1, 24, 32, dtype=torch.bool), 5.0).backward()
    assert (mask_logits.grad[:, 0] > 0).all()


def test_paste_marks_exactly_the_object():
    rng = np.random.default_rng(0)
    image, label = np.full((60, 80, 3), 50, np.uint8), np.full((60, 80), 3, np.uint8)
    cutout = np.zeros((40, 30, 4), np.uint8)
    cutout[10:30, 5:25] = (200, 100, 0, 255)
    for height in (None, (0.2, 0.5)):
        mixed, ids = paste(image, label, cutout, height, rng)
        object_pixels = ids == OUTLIER
        assert 0 < object_pixels.sum() < ids.size / 2
        assert (mixed[object_pixels] == (200, 100, 0)).all(1).mean() > 0.7
        assert (mixed[~object_pixels] == 50).all(1).mean() > 0.95
        assert (ids[~object_pixels] == 3).all()
    assert (image == 50).all() and (label == 3).all()
    huge = np.full((200, 20, 4), 255, np.uint8)
    assert paste(image, label, huge, None, rng)[1] is label


@pytest.mark.timeout(180)
def test_fine_tuning_changes_only_the_two_heads(tmp_path):
    root = write_camvid(tmp_path)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cutout = np.zeros((20, 20, 4), np.uint8)
    cutout[4:16, 4:16] = (255, 0, 255, 255)
    cv2.imwrite(str(objects / 'a_vase.png'), cutout)
    ClosedSetTraining(tiny_config(root, 2), tmp_path / 'start').run()
    config = tiny_config(root, 3)
    config.outliers.probability = 1.0
    config.outliers.height = [0.2, 0.4]
    training = OutlierTraining(config, tmp_path / 'tuned', tmp_path / 'start')
    assert 0 < training.trainable < 0.1 * training.parameters
    training.run()
    before = load_network(tmp_path / 'start')[0].state_dict()
    after = load_network(tmp_path / 'tuned')[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all('mask_embed' in name or 'class_embed' in name for name in changed)


def test_unknown_part_is_refused(tmp_path):
    root = write_camvid(tmp_path)
    network = ClosedSetTraining(tiny_config(root, 1), tmp_path / 'run').network
    with pytest.raises(ConfigError, match='mask_embed'):
        freeze_except(network, ['mask_mlp'])
