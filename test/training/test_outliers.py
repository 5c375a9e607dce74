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

import cv2
import numpy as np
from owseg_training.closed_set import ClosedSetTraining, load_network, predict_scores, validate
from owseg_training.config import ConfigError, load_config, LossConfig, run_config
from owseg_training.data.anomaly_mix import OUTLIER, paste
from owseg_training.data.datasets import DataError, read_image
from owseg_training.evaluate.baseline_scores import densehybrid_score, score_of
from owseg_training.losses import SetCriterion
from owseg_training.network import MaskClassifier, Prediction
from owseg_training.outlier_losses import OUTLIER_LOSSES
from owseg_training.outliers import freeze_except, OutlierTraining
import pytest
from support.camvid import tiny_config, write_camvid
import torch


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


def test_unknown_part_is_refused(tmp_path):
    root = write_camvid(tmp_path)
    network = ClosedSetTraining(tiny_config(root, 1), tmp_path / 'run').network
    with pytest.raises(ConfigError, match='mask_embed'):
        freeze_except(network, ['mask_mlp'])


@pytest.fixture
def start(tmp_path):
    """Train nothing yet: a closed-set run at its start, beside data with a cut-out."""
    root = write_camvid(tmp_path)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cutout = np.zeros((20, 20, 4), np.uint8)
    cutout[4:16, 4:16] = (255, 0, 255, 255)
    cv2.imwrite(str(objects / 'a_vase.png'), cutout)
    ClosedSetTraining(tiny_config(root, 2), tmp_path / 'start').save()
    return root, tmp_path / 'start'


def outlier_config(root, loss, steps=12):
    config = tiny_config(root, steps)
    config.outliers.loss = loss
    config.outliers.probability = 1.0
    config.outliers.height = [0.3, 0.5]
    config.optimizer.lr = 0.003
    return config


@pytest.mark.timeout(180)
def test_fine_tuning_changes_only_the_two_heads(start, tmp_path):
    root, folder = start
    training = OutlierTraining(outlier_config(root, 'squared_hinge', 3), tmp_path / 'tuned',
                               folder, 'cpu')
    assert 0 < training.trainable < 0.1 * training.parameters
    training.run()
    before = load_network(folder)[0].state_dict()
    after = load_network(tmp_path / 'tuned')[0].state_dict()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all('mask_embed' in name or 'class_embed' in name for name in changed)


def test_hidden_classes_are_those_of_the_start(start, tmp_path):
    root, _ = start
    config = tiny_config(root, 1)
    config.data.hidden = ['b']
    ClosedSetTraining(config, tmp_path / 'hiding').save()
    training = OutlierTraining(outlier_config(root, 'mse', 1), tmp_path / 'tuned',
                               tmp_path / 'hiding', 'cpu')
    assert [spec.name for spec in training.data_set.classes] == ['a', 'c']
    assert run_config(tmp_path / 'tuned').data.hidden == ['b']


def test_a_start_with_as_many_other_classes_is_refused(start, tmp_path):
    root, folder = start
    config, listing = outlier_config(root, 'mse', 1), folder / 'classes.json'
    names = listing.read_text()
    listing.write_text(names.replace('"b"', '"bus"'))
    with pytest.raises(ConfigError, match="class 1 of the start is 'bus', and that of CamVid is"):
        OutlierTraining(config, tmp_path / 'tuned', folder, 'cpu')
    # A converted checkpoint may not name its classes.
    for index, name in enumerate('abc'):
        names = names.replace(f'"{name}"', f'"class {index}"')
    listing.write_text(names)
    OutlierTraining(config, tmp_path / 'tuned', folder, 'cpu')


@pytest.mark.timeout(300)
@pytest.mark.parametrize('loss', OUTLIER_LOSSES)
def test_training_lowers_every_loss(loss, start, tmp_path):
    root, folder = start
    training = OutlierTraining(outlier_config(root, loss), tmp_path / 'tuned', folder, 'cpu')
    parts = next(iter(training._batches()))  # The same batch again and again.
    history = [training._train_step(parts) for _ in range(10)]
    # Random points make the set loss of UNO noisy; the losses on pixels are not.
    keys = [key for key in history[0] if key.startswith('outlier')] or ['class', 'class_0']
    assert {'densehybrid': 'outlier_head', 'uno': 'class'}.get(loss, 'outliers_0') in keys
    for key in keys:
        assert history[-1][key] < history[0][key]


@pytest.mark.timeout(300)
def test_parts_of_a_batch_train_densehybrid_and_uno_alike(start, tmp_path):
    root, folder = start
    for loss in ('densehybrid', 'uno'):
        steps = []
        for accumulate in (1, 2):
            config = outlier_config(root, loss)
            config.optimizer.accumulate = accumulate
            training = OutlierTraining(config, tmp_path / f'{loss}{accumulate}', folder, 'cpu')
            steps.append(training._train_step(next(iter(training._batches()))))
        assert steps[0].keys() == steps[1].keys()
        for key, value in steps[0].items():
            assert steps[1][key] == pytest.approx(value, rel=1e-4, abs=1e-6)


def test_uno_keeps_the_logits_of_the_old_classes(start, tmp_path):
    root, folder = start
    network, config = load_network(folder)
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        before = network(image)
    training = OutlierTraining(outlier_config(root, 'uno'), tmp_path / 'uno', folder, 'cpu')
    assert training.network.num_classes == 3 and training.criterion.outlier_class
    training.save()
    loaded, loaded_config = load_network(tmp_path / 'uno')
    assert loaded.num_classes == 3 and loaded_config.network.outlier_class
    with torch.inference_mode():
        after = loaded(image)
    assert after.class_logits.shape[2] == 5
    torch.testing.assert_close(after.class_logits[..., [0, 1, 2, 4]], before.class_logits)
    torch.testing.assert_close(after.class_logits[..., 3],
                               before.class_logits[..., -1] - np.log(6))
    scores = predict_scores(loaded, np.zeros((64, 96, 3), np.uint8), loaded_config)
    assert scores.shape == (3, 64, 96)
    assert validate(loaded, loaded_config, limit=1).counts.shape[0] == 3


def test_set_loss_of_uno_counts_outliers_as_a_mask_and_void_as_none():
    torch.manual_seed(0)
    prediction = Prediction(torch.randn(1, 5, 5), torch.randn(1, 5, 8, 8), torch.zeros(1, 4, 8, 8))
    label = torch.zeros(1, 32, 32, dtype=torch.uint8)
    label[:, :16] = 255
    pasted = label.clone()
    pasted[:, 20:, 20:] = OUTLIER
    criterion = SetCriterion(LossConfig(points=64), 3, outlier_class=True)
    assert criterion.totals(label, 5)['masks'] == 1
    totals = criterion.totals(pasted, 5)
    assert totals['masks'] == 2 and totals['pixels'] == (pasted < 3).sum()
    assert criterion.class_weights.tolist() == pytest.approx([1, 1, 1, 1, 0.1])
    # A query that answers "outlier" with the outlier's mask is right.
    right = Prediction(prediction.class_logits.clone(), prediction.mask_logits.clone(),
                       prediction.pixel_features)
    right.class_logits[0, 2] = torch.tensor([0.0, 0.0, 0.0, 20.0, 0.0])
    right.mask_logits[0, 2] = -20
    right.mask_logits[0, 2, 5:, 5:] = 20
    losses = [sum(criterion(p, pasted, seeds=[1]).values()) for p in (right, prediction)]
    assert losses[0] < losses[1] - 1
    without = SetCriterion(LossConfig(points=64), 3)
    assert without.totals(pasted, 5)['masks'] == 1


def test_densehybrid_has_a_head_and_a_score(start, tmp_path):
    root, folder = start
    config = outlier_config(root, 'densehybrid')
    training = OutlierTraining(config, tmp_path / 'tuned', folder, 'cpu')
    head = training.network.outlier_head
    assert not head[0].training and head[0].running_var.min() > 0
    assert not torch.equal(head[0].running_mean, torch.zeros(32))
    assert all(p.requires_grad for p in head.parameters())
    training.save()
    network, config = load_network(tmp_path / 'tuned')
    image = read_image(training.data_set.items[0].image)
    with torch.no_grad():
        network.outlier_head[2].weight.zero_()
        network.outlier_head[2].bias.copy_(torch.tensor([0.0, np.log(3)]))
    score = densehybrid_score(network, image, config)
    assert score.shape == image.shape[:2] and score.dtype == np.float32
    # The picture has another size than the network, so maps are resized before and after.
    energy = -predict_scores(network, image, config).logsumexp(0).numpy()
    assert np.abs(score - np.log(0.75) - energy).max() < 0.01
    plain, plain_config = load_network(folder)
    with pytest.raises(ValueError, match='densehybrid'):
        densehybrid_score(plain, image, plain_config)


def test_losses_are_read_with_their_scores():
    assert {loss: score_of(loss) for loss in OUTLIER_LOSSES} == {
        'squared_hinge': 'rba', 'mse': 'rba', 'l1': 'rba', 'bce': 'rba', 'kl': 'rba',
        'pebal': 'energy', 'densehybrid': 'densehybrid', 'uno': 'uno'}


def test_parts_of_table_7_have_the_published_counts():
    with torch.device('meta'):
        network = MaskClassifier(load_config('rba_swin_b_cityscapes').network, 19)
    total = 95_141_580
    for parts, count in ((['mlp_and_linear'], 202_516), (['mask_embed', 'class_embed'], 202_516),
                         (['transformer_decoder'], 1_833_236), (['pixel_decoder'], 6_427_968),
                         (['transformer_decoder', 'pixel_decoder'], 8_261_204), (['all'], total)):
        assert freeze_except(network, parts) == (count, total)


def test_all_parts_leave_frozen_stages_frozen(tmp_path):
    config = tiny_config(write_camvid(tmp_path)).network
    config.freeze_stages = 1
    network = MaskClassifier(config, 3)
    trainable, total = freeze_except(network, ['all'])
    frozen = [name for name, p in network.named_parameters() if not p.requires_grad]
    assert 0 < trainable < total
    assert frozen and all(name.startswith('backbone.') for name in frozen)


def test_cutouts_come_from_any_folder_and_by_category(start, tmp_path):
    root, folder = start
    own = tmp_path / 'own'
    own.mkdir()
    for name, color in (('x_cone', (0, 0, 255)), ('y_tyre', (0, 255, 0)), ('z_car', (9, 9, 9))):
        cv2.imwrite(str(own / f'{name}.png'), np.full((6, 6, 4), (*color, 255), np.uint8))
    config = outlier_config(root, 'squared_hinge')
    config.outliers.cutouts = str(own)

    def pool():
        stream = OutlierTraining(config, tmp_path / 'tuned', folder, 'cpu')._make_stream(1)
        return sorted(tuple(int(v) for v in cutout[0, 0, :3]) for cutout in stream.cutouts)

    assert pool() == [(0, 255, 0), (255, 0, 0)]  # A car is no outlier on a road,
    config.outliers.categories = ['tyre', 'car']
    assert pool() == [(0, 255, 0), (9, 9, 9)]  # unless it is asked for.
    config.outliers.categories = ['boat']
    with pytest.raises(DataError, match='boat'):
        pool()
    config.outliers.cutouts = str(tmp_path / 'nowhere')
    with pytest.raises(DataError, match='folder'):
        pool()


def test_coco_by_category(start, tmp_path):
    root, folder = start
    coco = root / 'coco'
    (coco / 'val2017').mkdir(parents=True)
    (coco / 'annotations').mkdir()
    cv2.imwrite(str(coco / 'val2017' / '1.jpg'), np.full((80, 80, 3), 100, np.uint8))
    box = [[10, 10, 50, 10, 50, 50, 10, 50]]
    names = ('cow', 'dog', 'car')
    (coco / 'annotations' / 'instances_val2017.json').write_text(json.dumps({
        'images': [{'id': 1, 'file_name': '1.jpg', 'height': 80, 'width': 80}],
        'categories': [{'id': i, 'name': name} for i, name in enumerate(names)],
        'annotations': [{'id': i, 'image_id': 1, 'category_id': i, 'area': 1600, 'iscrowd': 0,
                         'segmentation': box, 'bbox': [10, 10, 40, 40 - i]} for i in range(3)]}))
    config = outlier_config(root, 'squared_hinge')
    config.outliers.cutouts = 'coco'
    for categories, heights in ((None, [39, 40]), (['dog'], [39]), (['car', 'cow'], [38, 40])):
        config.outliers.categories = categories
        stream = OutlierTraining(config, tmp_path / 'tuned', folder, 'cpu')._make_stream(1)
        assert sorted(len(cutout) for cutout in stream.cutouts) == heights
