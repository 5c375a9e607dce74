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
"""Region embeddings: pooling under soft masks, and the head that projects into a text space."""

from owseg_training.config import NetworkConfig
from owseg_training.network.region_embedding import (
    mask_pool, PooledRegionHead, soft_masks, START_TEMPERATURE)
import pytest
import torch
from torch.nn import functional

DIM = 10
CHANNELS = {4: 6, 8: 7, 16: 8, 32: 9}


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope='module')
def head():
    torch.manual_seed(0)
    config = NetworkConfig(mask_dim=12, region_hidden_dim=32, region_dim=DIM)
    return PooledRegionHead(CHANNELS, config).eval()


def inputs(batch=2, queries=3):
    """Return features by stride, pixel features and mask logits of 64x96 pictures."""
    features = {stride: random(batch, channels, 64 // stride, 96 // stride, seed=stride)
                for stride, channels in CHANNELS.items()}
    return features, random(batch, 12, 16, 24), 4 * random(batch, queries, 16, 24, seed=1)


def test_pooling_is_the_weighted_mean():
    features, masks = random(2, 4, 3, 5), random(2, 6, 3, 5, seed=1).sigmoid()
    found = mask_pool(features, masks)
    assert found.shape == (2, 6, 4)
    for b in range(2):
        for n in range(6):
            expected = (features[b] * masks[b, n]).sum((1, 2)) / masks[b, n].sum()
            assert torch.allclose(found[b, n], expected, atol=1e-5)
    assert torch.allclose(mask_pool(features, 0.1 * masks), found, atol=1e-5)


def test_sums_over_a_large_frame_fit_into_half_precision():
    """At 1024x2048 a mask over the whole frame sums up 32768 pixels; float16 ends at 65504."""
    features = random(1, 4, 128, 256) + 20
    masks = torch.rand(1, 2, 128, 256)
    masks[:, 0] = 1
    found = mask_pool(features, masks)
    weights = masks.flatten(2)
    plain = weights @ features.flatten(2).transpose(1, 2)
    assert plain.max() > 65504
    assert torch.equal(found, plain / weights.sum(2)[..., None])
    half = mask_pool(features.half(), masks.half())
    assert torch.allclose(half.float(), found, rtol=5e-3)


def test_an_empty_mask_pools_to_zeros():
    found = mask_pool(random(1, 4, 3, 5), torch.zeros(1, 2, 3, 5))
    assert not found.any()


def test_soft_masks_keep_a_mask_that_hard_ones_lose():
    logits = torch.full((1, 2, 16, 24), -20.0)
    logits[0, 0, 5, 7] = 20.0  # One cell of 4x4 pixels.
    logits[0, 1] = 20.0
    soft = soft_masks(logits, (8, 12))
    assert soft.shape == (1, 2, 8, 12)
    assert soft[0, 0, 2, 3].item() == pytest.approx(0.25)
    assert soft[0, 0].sum().item() == pytest.approx(0.25, abs=1e-4)
    assert torch.allclose(soft[0, 1], torch.ones(8, 12))
    # Down-sampled logits, as hard pooling has them, say that there is nothing.
    assert not (functional.interpolate(logits[:, :1], (8, 12), mode='bilinear') > 0).any()
    features = random(1, 4, 8, 12)
    assert torch.allclose(mask_pool(features, soft)[0, 0], features[0, :, 2, 3], atol=1e-4)


def test_faint_masks_are_told_by_where_they_are_least_faint():
    torch.manual_seed(0)
    logits = 3 * torch.randn(1, 2, 8, 12)
    shift = logits.amax((2, 3), keepdim=True)
    near, far = (soft_masks(logits - shift - depth, (4, 6)) for depth in (0.0, 40.0))
    assert torch.allclose(near, far, rtol=1e-4) and near.min() > 0
    assert torch.allclose(soft_masks(logits, (8, 12)), logits.sigmoid())


def test_soft_masks_are_means_of_sigmoids():
    logits = random(1, 1, 4, 6)
    expected = logits.sigmoid().reshape(1, 1, 2, 2, 3, 2).mean((3, 5))
    assert torch.allclose(soft_masks(logits, (2, 3)), expected)
    assert torch.allclose(soft_masks(logits, (4, 6)), logits.sigmoid())


def test_embeddings_are_the_pooled_text_features_at_unit_length(head):
    features, pixels, logits = inputs()
    with torch.inference_mode():
        found = head(features, pixels, logits)
    assert found.regions.shape == (2, 3, DIM)
    assert found.text_features.shape == (2, DIM, 8, 12)
    assert torch.allclose(found.regions.norm(dim=2), torch.ones(2, 3), atol=1e-5)
    pooled = mask_pool(found.text_features, soft_masks(logits, (8, 12)))
    assert torch.allclose(functional.normalize(pooled, dim=2), found.regions, atol=1e-5)
    # Not one vector for all: the regions differ, and so do the pictures.
    assert (found.regions[:, 0] - found.regions[:, 1]).norm(dim=1).min() > 1e-3
    assert (found.regions[0] - found.regions[1]).norm(dim=1).min() > 1e-3
    assert found.frozen is None


def test_an_empty_region_has_unit_length_too(head):
    features, pixels, logits = inputs()
    with torch.inference_mode():
        found = head(features, pixels, torch.full_like(logits, -200.0)).regions
    assert torch.allclose(found.norm(dim=2), torch.ones(2, 3), atol=1e-5)


def test_features_of_each_stride_from_8_on_matter(head):
    features, pixels, logits = inputs()
    with torch.inference_mode():
        expected = head.hidden(features, pixels)
        for stride in CHANNELS:
            changed = {**features, stride: features[stride] + 1}
            assert torch.equal(head.hidden(changed, pixels), expected) == (stride == 4)
        assert not torch.equal(head.hidden(features, pixels + 1), expected)


def test_temperature_is_learned_and_at_most_that_of_clip(head):
    assert head.scale.item() == pytest.approx(1 / START_TEMPERATURE)
    with torch.no_grad():
        before = head.log_scale.clone()
        head.log_scale.fill_(20.0)
        assert head.scale.item() == 100
        head.log_scale.copy_(before)
    assert head.log_scale.requires_grad


def test_gradients_reach_all_of_the_head_and_the_masks(head):
    features, pixels, logits = inputs()
    logits.requires_grad_()
    found = head(features, pixels, logits)
    target = functional.normalize(random(DIM, seed=5), dim=0)
    ((found.regions @ target) * found.scale).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
    assert logits.grad.abs().sum() > 0
    head.zero_grad()
