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

import numpy as np
from owseg_training.circle_loss import circle_loss
from owseg_training.network.metric_head import drop_blocks, MetricHead, region_means
from owseg_training.region_anomaly import known_similarity, region_anomaly
import pytest
import torch
from torch.nn import functional


def batch(seed=0, count=7, classes=3):
    generator = torch.Generator().manual_seed(seed)
    embeddings = functional.normalize(torch.randn(count, 4, generator=generator), dim=1)
    labels = torch.arange(count) % classes
    return embeddings, labels


def pairs(embeddings, labels):
    """Return the cosines of equal and of different labels, each pair once."""
    equal, different = [], []
    for i in range(len(labels)):
        for j in range(i):
            cosine = float(embeddings[i] @ embeddings[j])
            (equal if labels[i] == labels[j] else different).append(cosine)
    return equal, different


@pytest.mark.parametrize('margin, gamma', [(0.25, 8.0), (0.1, 32.0)])
def test_circle_loss_is_the_papers_sum_over_all_pairs(margin, gamma):
    embeddings, labels = batch()
    total = sum(np.exp(gamma * (n - p + margin))
                for p in pairs(embeddings, labels)[0] for n in pairs(embeddings, labels)[1])
    found = circle_loss(embeddings, labels, margin, gamma)
    assert found.item() == pytest.approx(np.log1p(total), rel=1e-5)
    if gamma == 8.0:
        assert circle_loss(embeddings, labels).item() == found.item()


def test_circle_loss_weighs_pairs_by_their_distance_from_the_optimum():
    embeddings, labels = batch(1)
    equal, different = pairs(embeddings, labels)
    total = sum(np.exp(8 * max(n + 0.25, 0) * (n - 0.25)) for n in different) * sum(
        np.exp(-8 * max(1.25 - p, 0) * (p - 0.75)) for p in equal)
    found = circle_loss(embeddings, labels, self_paced=True)
    assert found.item() == pytest.approx(np.log1p(total), rel=1e-5)


def test_the_weights_of_pairs_have_no_gradient():
    """Of d/ds_n of one pair of each kind: the softplus' slope times gamma [s_n + m]+."""
    angles = torch.tensor([0.0, 0.4, 1.0], requires_grad=True)
    embeddings = torch.stack((angles.cos(), angles.sin()), 1)
    labels = torch.tensor([0, 0, 1])
    gradient, = torch.autograd.grad(circle_loss(embeddings, labels, self_paced=True), angles)

    def value(s_p, s_n_first, s_n_second, weights):
        w_p, w_a, w_b = weights
        return np.log1p(np.exp(-8 * w_p * (s_p - 0.75)) * (
            np.exp(8 * w_a * (s_n_first - 0.25)) + np.exp(8 * w_b * (s_n_second - 0.25))))

    def cosines(a):
        return np.cos(a[0] - a[1]), np.cos(a[0] - a[2]), np.cos(a[1] - a[2])

    at = np.array([0.0, 0.4, 1.0])
    s = cosines(at)
    weights = (max(1.25 - s[0], 0), max(s[1] + 0.25, 0), max(s[2] + 0.25, 0))
    for index in range(3):
        step = np.eye(3)[index] * 1e-5
        slope = (value(*cosines(at + step), weights) - value(*cosines(at - step), weights)) / 2e-5
        assert gradient[index].item() == pytest.approx(slope, abs=1e-3)


def test_circle_loss_falls_when_classes_come_together():
    embeddings, labels = batch()
    apart = torch.eye(4)[labels]
    assert circle_loss(apart, labels) < 0.2 * circle_loss(embeddings, labels)


@pytest.mark.parametrize('labels', [[0, 0, 0], [0, 1, 2], [0], []])
def test_circle_loss_without_pairs_of_both_kinds_is_zero(labels):
    embeddings = torch.ones(len(labels), 4, requires_grad=True)
    loss = circle_loss(embeddings, torch.tensor(labels, dtype=torch.long))
    assert loss.item() == 0
    loss.backward()
    assert not embeddings.grad.any()


def test_a_region_is_the_mean_of_its_pixels_through_two_layers():
    torch.manual_seed(0)
    features, masks = torch.randn(5, 6, 8), torch.zeros(2, 6, 8)
    masks[0, :2, :3] = 1
    masks[1, 4:, 5:] = 1
    head = MetricHead(5, 16, 3)
    means = region_means(features, masks)
    expected = torch.stack([torch.stack([features[:, y, x] for y in range(6) for x in range(8)
                                         if mask[y, x]]).mean(0) for mask in masks])
    assert torch.allclose(means, expected, atol=1e-6)
    first, _, second = head.layers
    raw = (expected @ first.weight.T + first.bias).clamp(min=0) @ second.weight.T + second.bias
    embeddings, logits = head.embed_and_classify(means)
    unit = raw / raw.norm(dim=1, keepdim=True)
    assert torch.allclose(head(means), unit, atol=1e-6)
    assert torch.equal(embeddings, head(means))
    assert torch.allclose(logits, raw @ head.classifier.weight.T, atol=1e-6)
    assert head.classifier.bias is None and logits.shape == (2, 3)


def test_views_drop_whole_blocks():
    generator = torch.Generator().manual_seed(3)
    masks = torch.ones(4, 60, 60)
    found = drop_blocks(masks, 0.3, 3, generator)
    share = 1 - found.mean().item()
    assert 0.2 < share < 0.3  # Blocks that overlap drop less than their sum.
    assert set(found.unique().tolist()) == {0.0, 1.0}
    gone = functional.pad(1 - found, (1, 1, 1, 1), value=1.0)
    # Every dropped pixel lies in a dropped 3x3 block.
    whole = functional.avg_pool2d(gone[:, None], 3, 1) > 0.999
    covered = functional.max_pool2d(functional.pad(whole.float(), (1, 1, 1, 1)), 3, 1)[:, 0]
    assert (covered[:, 1:-1, 1:-1] >= (1 - found)[:, 1:-1, 1:-1]).all()
    assert not torch.equal(found[0], found[1])
    again = drop_blocks(masks, 0.3, 3, torch.Generator().manual_seed(3))
    assert torch.equal(found, again)


def test_a_view_is_a_part_of_its_mask_and_never_empty():
    masks = torch.zeros(2, 9, 9)
    masks[0, 4, 4] = 1
    masks[1, :, :5] = 1
    for seed in range(20):
        found = drop_blocks(masks, 0.9, 3, torch.Generator().manual_seed(seed))
        assert (found <= masks).all() and torch.equal(found[0], masks[0])
        assert found[1].any()
    assert torch.equal(drop_blocks(masks, 0.0, 3, torch.Generator()), masks)


def test_similarity_is_the_best_cosine_with_a_known_class():
    embeddings = np.array([[3.0, 0.0], [1.0, 1.0], [-2.0, 0.0]])
    prototypes = np.array([[2.0, 0.0], [np.nan, np.nan], [0.0, 5.0]])
    found = known_similarity(embeddings, prototypes)
    assert np.allclose(found, [1, np.sqrt(0.5), 0])
    with pytest.raises(ValueError, match='no known class has a prototype'):
        known_similarity(embeddings, prototypes[1:2])


def test_intensity_is_the_product_of_logit_and_similarity():
    rng = np.random.default_rng(0)
    scores = rng.uniform(0, 1, (3, 4, 6)).astype(np.float32)
    regions = np.ones((4, 6), np.int32)
    regions[:, 3:] = 2
    found = region_anomaly(scores, regions, np.array([0.9, 0.3]))
    assert found.dtype == np.float32
    for y, x in ((0, 0), (3, 2), (1, 5)):
        expected = -scores[:, y, x].max() * (0.9 if x < 3 else 0.3)
        assert found[y, x] == pytest.approx(expected, rel=1e-5)
    paper = region_anomaly(scores, regions, np.array([0.9, 0.3]), raml_paper=True)
    assert paper.min() == 0 and paper.max() == 1
    assert np.array_equal(np.argsort(paper, axis=None), np.argsort(found, axis=None))


def test_the_unlike_and_the_unlikely_are_never_less_strange():
    """The sign trap of eq 5: negative factors must not flip the order."""
    scores = np.array([[[2.0, 2.0, -3.0, -3.0]]], np.float32)
    regions = np.array([[1, 2, 1, 2]], np.int32)
    found = region_anomaly(scores, regions, np.array([0.8, -0.5]))[0]
    assert np.allclose(found, [-1.6, 0, 0, 0])
    shifted = region_anomaly(scores, regions, np.array([0.8, 0.2]), offset=4.0)[0]
    assert np.allclose(shifted, [-4.8, -1.2, -0.8, -0.2])
    assert shifted[0] < shifted[1] < shifted[3] and shifted[0] < shifted[2] < shifted[3]


def test_pixels_on_edges_have_the_nearest_region_or_their_own_logit():
    scores = np.full((2, 1, 4), 0.5, np.float32)
    regions = np.array([[1, 0, 0, 2]], np.int32)
    similarity = np.array([0.8, 0.2])
    assert np.allclose(region_anomaly(scores, regions, similarity), [[-.4, -.4, -.1, -.1]])
    assert np.allclose(region_anomaly(scores, regions, similarity, edges='pixel'),
                       [[-.4, -.5, -.5, -.1]])
    nothing = region_anomaly(scores, np.zeros((1, 4), np.int32), np.zeros(0))
    assert np.allclose(nothing, -0.5)
    assert not region_anomaly(scores, regions, np.ones(2), raml_paper=True).any()
    with pytest.raises(ValueError, match="not 'none'"):
        region_anomaly(scores, regions, similarity, edges='none')
