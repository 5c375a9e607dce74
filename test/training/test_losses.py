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
import itertools

import numpy as np
from owseg_training.config import LossConfig
from owseg_training.losses import class_masks, dice_loss, sample_at, SetCriterion, uncertain_points
from owseg_training.network import Prediction
import pytest
import torch
from torch.nn import functional


def prediction_for(labels, num_classes, queries, sharpness=20.0, order=None):
    """Build a prediction that is right everywhere, one query a class in the given order."""
    order = list(range(num_classes)) if order is None else order
    batch, height, width = labels.shape
    small = labels[:, 2::4, 2::4]
    mask_logits = torch.full((batch, queries, height // 4, width // 4), -sharpness)
    class_logits = torch.zeros(batch, queries, num_classes + 1)
    class_logits[:, :, -1] = sharpness
    for query, class_id in enumerate(order):
        mask_logits[:, query] = torch.where(small == class_id, sharpness, -sharpness)
        present = (labels == class_id).flatten(1).any(1)
        class_logits[present, query] = 0.0
        class_logits[present, query, class_id] = sharpness
    features = torch.zeros(batch, 4, height // 4, width // 4)
    return Prediction(class_logits, mask_logits, features)


@pytest.fixture
def labels():
    grid = torch.zeros(2, 32, 48, dtype=torch.uint8)
    grid[0, :, 16:32] = 1
    grid[0, 16:, 32:] = 2
    grid[1, 16:] = 2
    return grid


def test_class_masks_partition_and_leave_void_out():
    label = torch.tensor([[0, 2], [255, 254]], dtype=torch.uint8)
    classes, masks = class_masks(label, 3)
    assert classes.tolist() == [0, 2]
    assert masks.sum(0).tolist() == [[1, 1], [0, 0]]


def test_sample_at_is_bilinear_with_half_pixel_centres():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    points = torch.tensor([[[0.25, 0.25], [0.75, 0.75], [0.5, 0.5]]])
    assert torch.allclose(sample_at(maps, points), torch.tensor([[0.0, 3.0, 1.5]]))


def test_uncertain_points_prefer_the_border():
    torch.manual_seed(0)
    ramp = torch.linspace(-10, 10, 64).expand(1, 64, 64).contiguous()
    points = uncertain_points(ramp, 256, 3.0, 0.75)
    assert points.shape == (1, 256, 2)
    near = (points[0, :192, 0] - 0.5).abs()
    assert near.mean() < 0.16 < (points[0, 192:, 0] - 0.5).abs().mean()


def test_dice_loss_bounds():
    target = torch.tensor([[1.0, 0.0] * 500])
    right = dice_loss(torch.tensor([[30.0, -30.0] * 500]), target)
    wrong = dice_loss(torch.tensor([[-30.0, 30.0] * 500]), target)
    assert right.item() == pytest.approx(0, abs=1e-3)
    assert wrong.item() == pytest.approx(1, abs=2e-3)


def test_right_prediction_costs_little_and_wrong_one_much(labels):
    criterion = SetCriterion(LossConfig(points=512), 3)
    right = sum(criterion(prediction_for(labels, 3, 6), labels).values())
    wrong_labels = (labels + 1) % 3
    wrong = sum(criterion(prediction_for(wrong_labels, 3, 6), labels).values())
    # What remains is the blur of stride 4 at the borders, where most points are sampled.
    assert 5 * right < wrong


@pytest.mark.parametrize('no_object', [0.1, 0.4])
def test_losses_are_those_of_mask2former(no_object):
    """Pictures of one class each and masks of one logit each have them in closed form."""
    torch.manual_seed(0)
    config = LossConfig(no_object_weight=no_object)
    class_logits, levels = torch.randn(3, 4, 4), torch.randn(3, 4)
    # So fine that the border, where sampling mixes in zeros, has next to no points.
    masks = levels[:, :, None, None].expand(3, 4, 256, 256)
    classes = torch.tensor([0, 2, 1])
    labels = classes[:, None, None].expand(3, 256, 256).to(torch.uint8)
    found = SetCriterion(config, 3)(
        Prediction(class_logits, masks, torch.zeros(3, 4, 256, 256)), labels, seeds=[1, 2, 3])
    bce = functional.softplus(-levels)
    share, count = levels.sigmoid(), config.points
    dice = 1 - (2 * share * count + 1) / (share * count + count + 1)
    cost = 5 * bce + 5 * dice - 2 * class_logits.softmax(2)[torch.arange(3), :, classes]
    chosen = cost.argmin(1)
    target = torch.full((3, 4), 3)
    target[torch.arange(3), chosen] = classes
    entropy = functional.cross_entropy(
        class_logits.flatten(0, 1), target.flatten(), torch.tensor([1, 1, 1, no_object]))
    assert found['class'].item() == pytest.approx(2 * entropy.item(), rel=1e-5)
    for name, values in (('mask', bce), ('dice', dice)):
        expected = 5 * values[torch.arange(3), chosen].mean().item()
        assert found[name].item() == pytest.approx(expected, rel=0.02), name


def test_matching_finds_any_order_of_queries(labels):
    criterion = SetCriterion(LossConfig(points=512), 3)
    for order in itertools.permutations(range(3)):
        prediction = prediction_for(labels, 3, 5, order=order)
        classes, masks = class_masks(labels[0], 3)
        queries, objects = criterion.match(
            prediction.class_logits[0], prediction.mask_logits[0], classes, masks)
        assert [order[q] for q in queries] == classes[objects].tolist()


def test_frame_without_known_classes_trains_no_object(labels):
    criterion = SetCriterion(LossConfig(points=64), 3)
    void = torch.full_like(labels, 255)
    prediction = prediction_for(labels, 3, 4)
    prediction.mask_logits.requires_grad_()
    prediction.class_logits.requires_grad_()
    losses = criterion(prediction, void)
    sum(losses.values()).backward()
    assert losses['mask'] == 0 and losses['dice'] == 0 and losses['class'] > 0
    assert prediction.class_logits.grad.abs().sum() > 0


def test_auxiliary_predictions_and_pixel_loss_count(labels):
    criterion = SetCriterion(LossConfig(points=128, pixel_weight=2.0), 3)
    prediction = prediction_for(labels, 3, 4)
    prediction.auxiliary = [(prediction.class_logits, prediction.mask_logits)]
    prediction.pixel_logits = torch.zeros(2, 3, 8, 12)
    losses = criterion(prediction, labels)
    assert {'class_0', 'mask_0', 'dice_0', 'pixel'} <= losses.keys()
    assert losses['pixel'].item() == pytest.approx(2 * np.log(3), rel=1e-5)
