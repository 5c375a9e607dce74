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

from itertools import combinations

import numpy as np
from owseg_training.config import ConfigError
from owseg_training.mca import aggregate, candidate_channels, MetaChannelRegions, select_channels
from owseg_training.meta_channel_losses import (
    dice_loss, intersection_loss, MetaChannelLoss, one_vs_all_loss, reconstruction_loss,
    split_loss)
from owseg_training.network.meta_channels import MetaChannelHead
from owseg_training.regions import Frame
import pytest
import torch


def random_channels(channels=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, channels, 4, 6, generator=generator)


def test_the_head_is_one_linear_map_of_the_known_logits():
    torch.manual_seed(0)
    head = MetaChannelHead(3)
    logits = torch.randn(2, 3, 4, 6)
    mixed = torch.einsum('ok,bkhw->bohw', head.mix.weight[:, :, 0, 0], logits)
    mixed += head.mix.bias[None, :, None, None]
    assert head(logits).shape == (2, 7, 4, 6)
    assert torch.allclose(head(logits), 1 / (1 + (-mixed).exp()), atol=1e-6)
    soft = MetaChannelHead(3, 2, 'softmax')
    assert soft(logits).shape == (2, 5, 4, 6)
    assert torch.allclose(soft(logits).sum(1), torch.ones(2, 4, 6), atol=1e-6)
    with pytest.raises(ConfigError, match="unknown activation 'tanh'"):
        MetaChannelHead(3, activation='tanh')


def test_dice_has_no_factor_of_two():
    p, t = torch.tensor([1.0, 0.5, 0.0]), torch.tensor([1.0, 1.0, 0.0])
    assert dice_loss(p, t).item() == pytest.approx(1 - 2.5 / (1.25 + 2 + 1))
    assert dice_loss(torch.ones(1000), torch.ones(1000)).item() == pytest.approx(0.5, abs=1e-3)


def test_one_vs_all_counts_void_as_negative():
    channels = random_channels()
    label = torch.randint(0, 3, (2, 4, 6), generator=torch.Generator().manual_seed(1))
    label[:, 0] = 255
    expected = 0.0
    for known in range(3):
        for picture in range(2):
            p = channels[picture, known].flatten()
            t = (label[picture] == known).flatten().float()
            dice = 1 - ((p * t).sum() + 1) / ((p ** 2 + t ** 2).sum() + 1)
            entropy = -(t * p.log() + (1 - t) * (1 - p).log()).mean()
            expected += (dice + entropy) / 6
    assert one_vs_all_loss(channels, label, 3).item() == pytest.approx(float(expected), rel=1e-5)


def test_intersection_is_of_all_pairs():
    channels = random_channels()
    per_pair = [1 - dice_loss(channels[b, i].flatten(), channels[b, j].flatten()).item()
                for b in range(2) for i, j in combinations(range(5), 2)]
    assert intersection_loss(channels, 'paper').item() == pytest.approx(
        sum(per_pair) / 2, rel=1e-5)
    assert intersection_loss(channels).item() == pytest.approx(np.mean(per_pair), rel=1e-5)
    apart = torch.eye(4).reshape(1, 4, 2, 2).repeat_interleave(20, 2)
    same = torch.ones_like(apart)
    assert intersection_loss(apart) < intersection_loss(same)


def test_split_punishes_channels_that_are_hardly_used():
    meta = torch.zeros(1, 3, 10, 10)
    meta[0, 0, 0, 0] = 1.0  # 1 % of the picture.
    meta[0, 1, 0, :5] = 1.0  # 5 %.
    meta[0, 2] = 0.004
    # Means 0.01, 0.05, 0.004; over eta 0.5, 1 (clamped) and 0.2.
    assert split_loss(meta).item() == pytest.approx(
        -(np.log(0.5) + np.log(0.2)) / 3, rel=1e-5)
    # Sums 1, 5, 0.4; eta times them 0.02, 0.1, 0.008.
    assert split_loss(meta, reading='paper').item() == pytest.approx(
        -(np.log(0.02) + np.log(0.1) + np.log(0.008)), rel=1e-5)
    assert split_loss(meta, eta=0.2, reading='paper').item() == pytest.approx(
        -(np.log(0.2) + np.log(0.08)), rel=1e-5)
    unused = torch.zeros(1, 2, 10, 10, requires_grad=True)
    assert torch.isfinite(split_loss(unused))
    assert split_loss(torch.ones(1, 2, 10, 10)).item() == 0


def test_split_pulls_a_weak_channel_up():
    meta = torch.full((1, 1, 4, 4), 0.01, requires_grad=True)
    gradient, = torch.autograd.grad(split_loss(meta), meta)
    assert (gradient < 0).all()


def test_reconstruction_is_of_the_picture_by_the_sum_of_channels():
    channels = random_channels()
    image = torch.randn(2, 3, 4, 6, generator=torch.Generator().manual_seed(2))
    squares = [((image[b] * (channels[b].sum(0) - 1)) ** 2).sum().item() for b in range(2)]
    assert reconstruction_loss(channels, image, 'paper').item() == pytest.approx(
        np.mean(squares), rel=1e-5)
    assert reconstruction_loss(channels, image).item() == pytest.approx(
        sum(squares) / (2 * 3 * 24), rel=1e-5)
    assert reconstruction_loss(channels.softmax(1), image).item() == pytest.approx(0, abs=1e-10)


def test_the_loss_has_the_weights_of_the_paper():
    channels = random_channels()
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    label = torch.randint(0, 4, (2, 4, 6), generator=torch.Generator().manual_seed(1)).byte()
    large = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    small = image.reshape(2, 3, 4, 4, 6, 4).mean((3, 5))
    found = MetaChannelLoss(3)(channels, image, large)
    assert found['one_vs_all'].item() == pytest.approx(
        0.1 * one_vs_all_loss(channels, label, 3).item(), rel=1e-5)
    assert found['intersection'].item() == pytest.approx(
        0.1 * intersection_loss(channels).item(), rel=1e-5)
    assert found['split'].item() == pytest.approx(0.1 * split_loss(channels[:, 3:]).item())
    assert found['reconstruction'].item() == pytest.approx(
        0.01 * reconstruction_loss(channels, small).item(), rel=1e-4)
    paper = MetaChannelLoss(3, one_vs_all=0.0, reading='paper')(channels, image, large)
    assert set(paper) == {'intersection', 'split', 'reconstruction'}
    assert paper['intersection'].item() == pytest.approx(
        0.1 * intersection_loss(channels, 'paper').item(), rel=1e-5)
    weak = channels * torch.tensor([1, 1, 1, 0.001, 0.001])[:, None, None]
    assert MetaChannelLoss(3, eta=0.5)(weak, image, large)['split'] > MetaChannelLoss(3)(
        weak, image, large)['split'] > 0
    with pytest.raises(ConfigError, match="unknown reading 'text'"):
        MetaChannelLoss(3, reading='text')


def test_void_may_have_no_part_in_the_losses():
    channels = random_channels()
    image = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(2))
    label = torch.zeros(2, 16, 24, dtype=torch.uint8)
    label[:, 8:] = 255
    other, odd = channels.clone(), image.clone()
    other[:, :, 2:], odd[:, :, 8:] = 0.99, 7.0
    for void, same in (('ignore', True), ('negative', False)):
        loss = MetaChannelLoss(3, void=void)
        first, second = loss(channels, image, label), loss(other, odd, label)
        assert all((first[name] == second[name]).item() == same
                   for name in ('one_vs_all', 'intersection', 'reconstruction'))
    whole = torch.zeros(2, 16, 24, dtype=torch.uint8)
    kept, plain = (MetaChannelLoss(3, void=void)(channels, image, whole)
                   for void in ('ignore', 'negative'))
    assert all(torch.equal(kept[name], plain[name]) for name in plain)
    with pytest.raises(ConfigError, match="meta.void must be 'negative' or 'ignore'"):
        MetaChannelLoss(3, void='known')


def meta_channels():
    """Return three channels of 8x10: part of an object, the background, next to nothing."""
    meta = np.zeros((3, 8, 10), np.float32)
    meta[0, 2:4, 2:6] = 0.9
    meta[0, 2, 2] = 0.49
    meta[1, :, 7:] = 0.5
    meta[2, 5, 2] = 1.0
    mask = np.zeros((8, 10), bool)
    mask[2:6, 2:6] = True
    return meta, mask


def test_candidates_have_more_than_kappa_of_the_object():
    meta, mask = meta_channels()
    # 7, 0 and 1 of 16 pixels inside; 7, 24 and 1 anywhere.
    assert candidate_channels(meta, mask).tolist() == [True, False, False]
    assert candidate_channels(meta, mask, inside=False).tolist() == [True, True, False]
    assert candidate_channels(meta, mask, 0.06).tolist() == [True, False, True]
    assert candidate_channels(meta, mask, 7 / 16).tolist() == [False, False, False]


def test_candidates_of_all_shots_are_joined():
    meta, mask = meta_channels()
    shots = [(meta, mask), (meta[[2, 0, 1]], mask)]
    assert select_channels(shots).tolist() == [True, True, False]
    with pytest.raises(ValueError, match='there is none'):
        select_channels([])
    with pytest.raises(ValueError, match='the mask of the shot is empty'):
        select_channels([(meta, np.zeros_like(mask))])
    with pytest.raises(ValueError, match='not of the size'):
        select_channels([(meta, mask[:4])])


def test_aggregation_is_the_inclusive_disjunction():
    meta, _ = meta_channels()
    meta[2, 2:4, 2:4] = 1.0
    chosen = np.array([True, False, True])
    product = np.prod([1 - (meta[j] >= 0.5) for j in (0, 2)], axis=0)
    assert np.array_equal(aggregate(meta, chosen), 1 - product == 1)
    assert not aggregate(meta, np.zeros(3, bool)).any()


def ring_frame():
    """Return a frame with a ring with a gap of a pixel, a far block and a speck."""
    meta = np.zeros((2, 20, 40), np.float32)
    meta[0, 4:14, 4:14] = 1
    meta[0, 7:11, 7:11] = 0
    meta[1, 4:14, 20:30] = 1
    meta[1, 8, 20:30] = 0
    meta[1, 18, 38] = 1
    return Frame(np.zeros((40, 80, 3), np.uint8), *[np.zeros(0)] * 4, meta=meta)


def test_holes_are_filled_and_components_are_regions():
    found = MetaChannelRegions([True, True])(ring_frame())
    assert found.shape == (40, 80) and found.dtype == np.int32
    assert found[16, 16] == found[10, 10] != 0  # The hole of the ring.
    assert len({found[10, 10], found[10, 50], found[24, 50], 0}) == 4  # The block is in two.
    assert found[36, 76] == 0 and found.max() == 3
    assert MetaChannelRegions([True, True], min_area=1)(ring_frame())[36, 76] != 0
    assert MetaChannelRegions([True, False])(ring_frame()).max() == 1


def test_the_released_code_closes_gaps_and_keeps_holes():
    found = MetaChannelRegions([True, True], 'code', min_area=16)(ring_frame())
    assert found[10, 50] == found[24, 50] == found[16, 50] != 0
    assert found.max() == 2
    wide = ring_frame()
    wide.meta[0, 6:12, 6:12] = 0
    found = MetaChannelRegions([True, True], 'code')(wide)
    assert found[18, 18] == 0 and found[9, 9] != 0
    with pytest.raises(ValueError, match="not 'none'"):
        MetaChannelRegions([True], 'none')


def test_a_frame_without_meta_channels_is_refused():
    with pytest.raises(ValueError, match='no meta channels'):
        MetaChannelRegions([True])(Frame(np.zeros((4, 4, 3), np.uint8), *[np.zeros(0)] * 4))
