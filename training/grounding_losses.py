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

"""
The losses of grounding: regions to words, and class-agnostic masks (OpenSeg).

Regions and words are compared by the cosine of their embeddings, s_ik = <z_i, w_k>.
"""

from __future__ import annotations

from owseg_training.config import GroundingConfig
from owseg_training.data.grounding_stream import Truth
from owseg_training.data.label_sets import VOID
from owseg_training.network import Prediction
from owseg_training.network.region_embedding import mask_pool, soft_masks
import torch
from torch import nn
from torch.nn import functional

# Of a region's mass that one concept must have, so that its words are the region's.
PURITY = 0.6
# Words nearer than this to a region's own words are neither right nor wrong for it.
NEAR = 0.5
_SMALLEST = 1e-3


def caption_similarity(regions: torch.Tensor, words: torch.Tensor,
                       sharpness: float | torch.Tensor = 1.0) -> torch.Tensor:
    """
    Return the similarity of an image and a caption, G = 1/K sum_k sum_i softmax_i(s_ik) s_ik.

    regions [N, D] and words [K, D] of unit length; sharpness: factor inside the softmax, 1 for
    OpenSeg's equation.
    """
    similarity = regions @ words.T
    return ((similarity * sharpness).softmax(0) * similarity).sum(0).mean()


def contrastive_loss(similarities: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """
    Return the symmetric contrastive loss of a batch, mean of both directions.

    similarities [B, B] of images (rows) and captions (columns), those that belong together on
    the diagonal; scale: 1 / temperature.
    """
    logits = similarities * scale
    target = torch.arange(len(logits), device=logits.device)
    return 0.5 * (functional.cross_entropy(logits, target)
                  + functional.cross_entropy(logits.T, target))


def best_proposal_dice(mask_logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Return the soft dice loss of each true mask with the proposal that fits it best, their mean.

    mask_logits [N, h, w]; masks float [G, h, w].  Class-agnostic, and without a matching: two
    masks may share a proposal (OpenSeg).  0 without masks.
    """
    if not len(masks):
        return mask_logits.sum() * 0
    proposals = mask_logits.sigmoid().flatten(1)
    targets = masks.flatten(1)
    overlap = proposals @ targets.T
    dice = (2 * overlap + 1) / (proposals.sum(1)[:, None] + targets.sum(1)[None] + 1)
    return (1 - dice.max(0).values).mean()


class GroundingCriterion(nn.Module):
    """
    The losses of a batch: grounding, regions and masks, weighed as configured.

    words: float32 [V, D], embeddings of the word table; names: bool [V, C], which concepts a word
    names; negatives: float32 [M, D], of words for things that may well be absent; with_masks:
    whether the masks learn too.
    """

    def __init__(self, config: GroundingConfig, words: torch.Tensor, names: torch.Tensor,
                 negatives: torch.Tensor, with_masks: bool) -> None:
        super().__init__()
        self.config = config
        self.with_masks = with_masks
        every = torch.cat((words, negatives))
        named = functional.pad(names, (0, 0, 0, len(negatives)))
        # [V + M, C]: how near a word comes to the words of a concept.
        nearest = torch.stack([
            (every @ words[column].T).amax(1) if column.any() else torch.zeros(len(every))
            for column in names.T], 1)
        self.register_buffer('embeddings', every, persistent=False)
        self.register_buffer('names', named, persistent=False)
        self.register_buffer('spared', (nearest > NEAR) & ~named, persistent=False)
        self.count = len(words)

    def totals(self, truth: Truth, queries: int) -> dict[str, torch.Tensor]:
        """Return the number of images, which the processes of a run add up."""
        return {'images': torch.tensor(float(len(truth.words)), device=truth.words.device)}

    def forward(self, prediction: Prediction, truth: Truth, totals: dict[str, torch.Tensor],
                seeds: list[int]) -> dict[str, torch.Tensor]:
        """Return the weighted losses by name; this part's share of the whole batch."""
        config = self.config
        share = len(truth.words) / totals['images']
        regions = prediction.embeddings.regions.float()
        scale = prediction.embeddings.scale.float()
        losses = {}
        if config.grounding_weight:
            losses['grounding'] = config.grounding_weight * share * self._grounding(
                regions, truth.words, scale)
        if config.region_weight:
            generator = torch.Generator().manual_seed(seeds[0])
            losses['regions'] = config.region_weight * share * self._regions(
                prediction, regions, truth, scale, generator)
        if self.with_masks:
            losses['masks'] = config.mask_weight * share * torch.stack([
                best_proposal_dice(logits, _masks(regions, logits.shape[-2:])[1])
                for logits, regions in zip(prediction.mask_logits, truth.regions)]).mean()
        return losses

    def _grounding(self, regions: torch.Tensor, words: torch.Tensor,
                   scale: torch.Tensor) -> torch.Tensor:
        named = [index for index, row in enumerate(words) if (row >= 0).any()]
        if len(named) < 2:
            return _nothing(regions, scale)
        captions = [self.embeddings[words[i][words[i] >= 0]] for i in named]
        sharpness = scale.detach() if self.config.sharp else 1.0
        similarities = torch.stack([
            torch.stack([caption_similarity(regions[i], caption, sharpness)
                         for caption in captions]) for i in named])
        return contrastive_loss(similarities, scale)

    def _regions(self, prediction: Prediction, regions: torch.Tensor, truth: Truth,
                 scale: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """
        Return the cross-entropy of regions whose concept is known, over the words of the batch.

        The mean over concepts of the mean over their regions: a cone on the road weighs as much
        as the road, which every picture shows.
        """
        features = prediction.embeddings.text_features.float()
        soft = soft_masks(prediction.mask_logits.float(), tuple(features.shape[-2:]))
        found, targets = [], []
        for feature, proposals, embedded, concepts in zip(features, soft, regions,
                                                          truth.concepts):
            ids, masks = _masks(concepts, features.shape[-2:])
            if not len(ids):
                continue
            pooled = mask_pool(feature[None], masks[None])[0]
            found.append(functional.normalize(pooled, dim=-1))
            targets.append(ids)
            mass = torch.einsum('nhw,ghw->ng', proposals, masks)
            total = proposals.flatten(1).sum(1)
            best, which = (mass / total.clamp(min=1e-6)[:, None]).max(1)
            pure = (best > PURITY) & (total > 1)
            found.append(embedded[pure])
            targets.append(ids[which[pure]])
        if not found:
            return _nothing(regions, scale)
        asked = torch.unique(truth.words[truth.words >= 0])
        absent = self.count + torch.randperm(
            len(self.embeddings) - self.count, generator=generator)[:self.config.negatives]
        asked = torch.cat((asked, absent.to(asked.device)))
        target = torch.cat(targets)
        logits = scale * torch.cat(found) @ self.embeddings[asked].T
        right, spared = self.names[asked][:, target].T, self.spared[asked][:, target].T
        logits = logits.masked_fill(spared, float('-inf'))
        known = right.any(1)
        if not known.any():
            return _nothing(regions, scale)
        logits, right, target = logits[known], right[known], target[known]
        best = logits.masked_fill(~right, float('-inf')).logsumexp(1)
        counts = torch.bincount(target, minlength=self.names.shape[1])
        weights = 1 / counts[target] / (counts > 0).sum()
        return (weights * (logits.logsumexp(1) - best)).sum()


def _nothing(regions: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return no loss, of which every parameter has a gradient: DistributedDataParallel waits."""
    return 0 * (regions.sum() + scale)


def _masks(concepts: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the ids in uint8 [H, W] but for 255 (int64 [G]), their masks [G, *size], 0..1."""
    counts = torch.bincount(concepts.flatten().long(), minlength=256)[:VOID]
    ids = (counts > _SMALLEST * concepts.numel()).nonzero().flatten()
    masks = (concepts[None] == ids[:, None, None]).float()
    return ids, functional.interpolate(masks[None], size=tuple(size), mode='area')[0]
