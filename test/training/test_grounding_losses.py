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
"""The losses of grounding, each against its equation."""

import math

import numpy as np
from owseg_training.config import GroundingConfig
from owseg_training.data.grounding_stream import MAX_WORDS, Truth
from owseg_training.grounding_losses import (
    best_proposal_dice, caption_similarity, contrastive_loss, GroundingCriterion, NEAR)
from owseg_training.network import Prediction
from owseg_training.network.region_embedding import RegionEmbeddings
import pytest
import torch
from torch.nn import functional

DIM, SCALE = 6, 5.0
SIZE = (8, 8)


def unit(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


@pytest.mark.parametrize('sharpness', [1.0, 7.0])
def test_caption_similarity_is_openseg_s_equation(sharpness):
    regions, words = unit(5, DIM).numpy(), unit(3, DIM, seed=1).numpy()
    total = 0.0
    for word in words:
        s = [float(region @ word) for region in regions]
        shares = [math.exp(sharpness * value) for value in s]
        total += sum(share * value for share, value in zip(shares, s)) / sum(shares)
    found = caption_similarity(torch.from_numpy(regions), torch.from_numpy(words), sharpness)
    assert found.item() == pytest.approx(total / 3, abs=1e-6)


def test_contrastive_loss_is_symmetric_cross_entropy():
    g = torch.tensor([[0.9, 0.1, 0.3], [0.2, 0.5, 0.4], [0.0, -0.3, 0.7]])
    e = np.exp(SCALE * g.numpy())
    rows = -np.mean([np.log(e[i, i] / e[i].sum()) for i in range(3)])
    columns = -np.mean([np.log(e[i, i] / e[:, i].sum()) for i in range(3)])
    scale = torch.tensor(SCALE)
    assert contrastive_loss(g, scale).item() == pytest.approx((rows + columns) / 2, abs=1e-6)
    assert contrastive_loss(g.T, scale).item() == pytest.approx((rows + columns) / 2, abs=1e-6)
    assert rows != pytest.approx(columns, abs=1e-3)


def test_dice_is_that_of_the_best_proposal():
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    masks = (torch.rand(2, 3, 5, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    p = logits.sigmoid().numpy()
    expected = np.mean([min(
        1 - (2 * (a * m).sum() + 1) / (a.sum() + m.sum() + 1) for a in p)
        for m in masks.numpy()])
    assert best_proposal_dice(logits, masks).item() == pytest.approx(expected, abs=1e-6)
    # Two masks may share a proposal.
    one = torch.where(masks[:1] > 0, 20.0, -20.0)
    assert best_proposal_dice(one, masks[:1].expand(2, -1, -1)).item() < 1e-3


def test_no_masks_cost_nothing():
    logits = torch.randn(4, 3, 5, requires_grad=True)
    loss = best_proposal_dice(logits, torch.zeros(0, 3, 5))
    loss.backward()
    assert loss.item() == 0 and not logits.grad.any()


# Concepts 0 and 1 with two words each, a hypernym of both (word 4), and words of absent things.
NAMES = torch.tensor([[1, 0], [1, 0], [0, 1], [0, 1], [1, 1]], dtype=torch.bool)


def word_rows():
    """Return words that are far from one another but for two negatives of three."""
    words = functional.one_hot(torch.arange(5), DIM).float()
    near = functional.normalize(words[0] + 0.8 * words[2], dim=0)
    negatives = torch.stack([
        near, functional.one_hot(torch.tensor(5), DIM).float(),
        functional.normalize(words[3] + 0.5 * words[1], dim=0)])
    return words, negatives


def criterion(with_masks=False, **changes):
    words, negatives = word_rows()
    config = GroundingConfig(**{'negatives': 3, **changes})
    return GroundingCriterion(config, words, NAMES, negatives, with_masks)


def truth(concepts, words, regions=None):
    """Return a Truth; words: a list a picture."""
    rows = torch.tensor([row + [-1] * (MAX_WORDS - len(row)) for row in words])
    return Truth(concepts, rows, concepts if regions is None else regions)


def halves(*ids):
    """Return concepts uint8 [B, 64, 64], left and right of each picture."""
    return torch.tensor(ids, dtype=torch.uint8)[:, None].repeat_interleave(32, 2).expand(
        -1, 64, -1).clone()


def prediction(batch=2, queries=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, DIM, *SIZE, generator=generator).requires_grad_()
    masks = 3 * torch.randn(batch, queries, 16, 16, generator=generator)
    masks = masks.requires_grad_()
    regions = unit(batch, queries, DIM, seed=seed + 1).requires_grad_()
    scale = torch.tensor(SCALE, requires_grad=True)
    return Prediction(torch.zeros(batch, queries, 3), masks, torch.zeros(batch, 4, 16, 16),
                      embeddings=RegionEmbeddings(regions, features, scale))


def losses(loss, predicted, known, images=None):
    totals = loss.totals(known, 3)
    assert totals['images'] == len(known.words)
    if images:
        totals = {'images': torch.tensor(float(images))}
    return loss(predicted, known, totals, [3] * len(known.words))


@pytest.mark.parametrize('sharp', [True, False])
def test_grounding_compares_every_image_with_every_caption(sharp):
    words, _ = word_rows()
    captions = [[0, 2], [3], []]
    predicted = prediction(3)
    loss = criterion(sharp=sharp, region_weight=0.0, grounding_weight=0.5)
    found = losses(loss, predicted, truth(halves((0, 1), (1, 1), (0, 0)), captions))
    assert set(found) == {'grounding'}
    # The picture without words takes no part.
    regions = predicted.embeddings.regions.detach()
    g = torch.tensor([[caption_similarity(regions[i], words[captions[k]],
                                          SCALE if sharp else 1.0) for k in (0, 1)]
                      for i in (0, 1)])
    expected = contrastive_loss(g, torch.tensor(SCALE))
    assert found['grounding'].item() == pytest.approx(0.5 * expected.item(), abs=1e-6)


def test_a_part_of_a_batch_has_its_share():
    known = truth(halves((0, 1), (1, 0)), [[0], [2]])
    whole, part = (losses(criterion(True), prediction(), known, images) for images in (None, 8))
    assert set(whole) == {'grounding', 'regions', 'masks'}
    for name, value in whole.items():
        assert value.item() > 0
        assert part[name].item() == pytest.approx(value.item() / 4, rel=1e-5)


def region_loss(words, known, predicted, spared):
    """
    Compute the region loss anew: one row a mask of the label, or a pure proposal.

    The mean over concepts of the mean over their rows.
    """
    table, negatives = word_rows()
    every = torch.cat((table, negatives))
    asked = sorted({word for row in words for word in row}) + [5, 6, 7]
    rows = []
    for b, concepts in enumerate(known.concepts.numpy()):
        features = predicted.embeddings.text_features[b].detach().numpy()
        masks = predicted.mask_logits[b].detach().sigmoid().numpy()
        masks = masks.reshape(-1, 8, 2, 8, 2).mean((2, 4))
        shares = {}
        for concept in np.unique(concepts):
            if concept != 255:
                share = (concepts == concept).reshape(8, 8, 8, 8).mean((1, 3))
                shares[int(concept)] = share
                mean = (features * share).sum((1, 2)) / share.sum()
                rows.append((int(concept), mean / np.linalg.norm(mean)))
        for query, mask in enumerate(masks):
            inside = {concept: (mask * share).sum() / mask.sum()
                      for concept, share in shares.items()}
            best = max(inside, key=inside.get)
            if inside[best] > 0.6 and mask.sum() > 1:
                rows.append((best, predicted.embeddings.regions[b, query].detach().numpy()))
    costs = {}
    for concept, z in rows:
        logits = {word: SCALE * float(z @ every[word].numpy()) for word in asked
                  if word not in spared[concept]}
        right = [word for word in logits if word < 5 and NAMES[word, concept]]
        if right:
            total = sum(math.exp(value) for value in logits.values())
            costs.setdefault(concept, []).append(
                -math.log(sum(math.exp(logits[word]) for word in right) / total))
    # Unless concepts have different numbers of rows, weighing them alike changes nothing.
    assert len(costs) == 1 or len({len(values) for values in costs.values()}) > 1
    return np.mean([np.mean(values) for values in costs.values()]), len(rows)


def test_region_loss_is_cross_entropy_over_the_words_of_the_batch_and_absent_ones():
    words = [[0, 2], [4]]
    known = truth(halves((0, 1), (255, 0)), words)
    predicted = prediction(queries=4)
    # One mask that is nearly all on the left, one that is too small to be a region.
    with torch.no_grad():
        predicted.mask_logits[0, 0, :, 8:] = -9
        predicted.mask_logits[0, 0, :, :8] = 4
        predicted.mask_logits[0, 1] = -30
    found = losses(criterion(grounding_weight=0.0, region_weight=2.0), predicted, known)
    assert set(found) == {'regions'}
    # Near words of absent things are spared where they are near, and count elsewhere.
    _, negatives = word_rows()
    assert (negatives[0, 0] > NEAR) and (negatives[0, 2] > NEAR)
    expected, count = region_loss(words, known, predicted, {0: {5}, 1: {5, 7}})
    assert count >= 4
    assert found['regions'].item() == pytest.approx(2 * expected, rel=1e-4)
    # Without sparing the figure is another.
    assert found['regions'].item() != pytest.approx(
        2 * region_loss(words, known, predicted, {0: set(), 1: set()})[0], rel=1e-3)


def test_words_near_a_concept_are_spared_unless_they_name_it():
    words, negatives = word_rows()
    loss = criterion()
    every = torch.cat((words, negatives))
    for word in range(8):
        for concept in range(2):
            near = max(float(every[word] @ words[own]) for own in range(5) if NAMES[own, concept])
            named = word < 5 and bool(NAMES[word, concept])
            assert loss.names[word, concept] == named
            assert loss.spared[word, concept] == (near > NEAR and not named)
    assert loss.spared.any()


def test_regions_without_a_word_in_the_batch_teach_nothing():
    # Concept 1 is to be seen, but the batch has no word for it.
    known = truth(halves((1, 1), (1, 1)), [[0], [1]])
    found = losses(criterion(), prediction(), known)
    assert found['regions'].item() == 0
    both = losses(criterion(), prediction(), truth(halves((1, 1), (0, 1)), [[0], [1]]))
    alone = losses(criterion(), prediction(), truth(halves((255, 255), (0, 255)), [[0], [1]]))
    assert both['regions'].item() > 0 and alone['regions'].item() > 0


def test_absent_words_are_drawn_by_the_seed():
    known = truth(halves((0, 1), (1, 0)), [[0], [2]])
    loss = criterion(negatives=1)
    totals = loss.totals(known, 3)
    values = {seed: loss(prediction(), known, totals, [seed, 0])['regions'].item()
              for seed in range(12)}
    assert len({round(value, 5) for value in values.values()}) > 1
    assert loss(prediction(), known, totals, [4, 9])['regions'].item() == values[4]


def test_masks_learn_from_regions_and_not_from_concepts():
    concepts = torch.full((2, 64, 64), 255, dtype=torch.uint8)
    regions = halves((7, 9), (3, 255))
    predicted = prediction()
    found = losses(criterion(True, mask_weight=0.5), predicted, truth(concepts, [[0], [2]],
                                                                      regions))
    left = torch.zeros(16, 16)
    left[:, :8] = 1
    expected = np.mean([
        best_proposal_dice(predicted.mask_logits[0], torch.stack((left, 1 - left))).item(),
        best_proposal_dice(predicted.mask_logits[1], left[None]).item()])
    assert found['masks'].item() == pytest.approx(0.5 * expected, abs=1e-6)
    assert found['regions'].item() == 0 and found['grounding'].item() > 0


def test_gradients_reach_embeddings_features_masks_and_temperature():
    predicted = prediction()
    found = losses(criterion(True), predicted, truth(halves((0, 1), (1, 0)), [[0], [2]]))
    sum(found.values()).backward()
    embeddings = predicted.embeddings
    for tensor in (embeddings.regions, embeddings.text_features, predicted.mask_logits,
                   embeddings.scale):
        assert torch.isfinite(tensor.grad).all() and tensor.grad.abs().sum() > 0


@pytest.mark.parametrize('known', [
    truth(torch.full((2, 64, 64), 255, dtype=torch.uint8), [[], []]),
    truth(torch.full((2, 64, 64), 255, dtype=torch.uint8), [[0], []]),
    truth(halves((0, 1), (255, 255)), [[], []]),
    truth(torch.zeros(1, 64, 64, dtype=torch.uint8), [[0]])],
    ids=['nothing known', 'one caption', 'no words', 'one picture'])
def test_degenerate_batches_stay_finite(known):
    predicted = prediction(len(known.words))
    found = losses(criterion(True), predicted, known)
    total = sum(found.values())
    assert torch.isfinite(total) and found['grounding'].item() == 0
    total.backward()
    # The temperature too: what has no gradient in one process holds up all others.
    for tensor in (predicted.embeddings.regions, predicted.embeddings.scale,
                   predicted.mask_logits):
        assert torch.isfinite(tensor.grad).all()
