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
Classification of regions by text, in-vocabulary and by a frozen CLIP (FC-CLIP).

Yu et al., "Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional
CLIP", NeurIPS 2023, and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from owseg_training.config import ConfigError, NetworkConfig
from owseg_training.network.clip_backbone import OpenClipBackbone
from owseg_training.network.region_embedding import PooledRegionHead, RegionEmbeddings, soft_masks
import torch
from torch import nn
from torch.nn import functional

FROZEN_CLIP = 'frozen_clip'
SOFT, FC_CLIP = 'soft_stride_4', 'fc_clip'
POOLINGS = (SOFT, FC_CLIP)

Predictions = list[tuple[torch.Tensor, torch.Tensor]]


def cell_weights(mask_logits: torch.Tensor, size: tuple[int, int], pooling: str) -> torch.Tensor:
    """
    Return how much each cell of a coarse map takes part in a region, [B, N, *size], in 0..1.

    mask_logits [B, N, H/4, W/4]; size: (height, width) of the map, H/32, W/32.
    fc_clip: 1 where the mask logits, resized to the map, are above 0; a mask that covers the
    middle of no cell vanishes.
    soft_stride_4: the square of the share of the cell that the soft mask covers, of a mean over
    the region's pixels in which a pixel counts as much as its cell is the region's. No mask
    vanishes, and a cell at the border of a region says less about it than one within.
    """
    if pooling == FC_CLIP:
        resized = functional.interpolate(mask_logits, size=size, mode='bilinear',
                                         align_corners=False)
        return (resized > 0).to(mask_logits)
    # Faint, but everywhere: what is below one half would outweigh a small region.
    inside = mask_logits.sigmoid() * (mask_logits > 0)
    shares = functional.avg_pool2d(inside, mask_logits.shape[-2] // size[0])
    faint = soft_masks(mask_logits, size)
    return shares.where(shares.amax((2, 3), keepdim=True) > 0, faint).square()


def class_logits(embeddings: torch.Tensor, texts: torch.Tensor, rows_of_class: torch.Tensor,
                 scale: torch.Tensor) -> torch.Tensor:
    """
    Return [B, N, K]: scaled cosines of embeddings, of a class the one of its nearest wording.

    embeddings [B, N, D], texts [R, D]: rows of unit length; rows_of_class: int [K, wordings], the
    rows of each class.
    """
    logits = scale * embeddings @ texts.T
    return logits.index_select(2, rows_of_class.flatten()).unflatten(
        2, rows_of_class.shape).amax(3)


def geometric_ensemble(trained: torch.Tensor, frozen: torch.Tensor,
                       share: torch.Tensor) -> torch.Tensor:
    """
    Return logarithms of the combined class probabilities, [B, N, K+1], the void last.

    trained [B, N, K+1]: logits of the trained embeddings, the void last; frozen [B, N, K]: those
    of CLIP's own; share, to [B, N, K]: the exponent a of the frozen ones. p = softmax(log(
    p_in^(1-a) p_out^a)) (1 - p_void), with p_in and p_out over the classes without the void.
    """
    inside, outside = trained[..., :-1].log_softmax(2), frozen.log_softmax(2)
    combined = ((1 - share) * inside + share * outside).log_softmax(2)
    # In logarithms, of which half precision loses none.
    trained = trained.log_softmax(2)
    known, void = trained[..., :-1].logsumexp(2, keepdim=True), trained[..., -1:]
    return torch.cat((combined + known, void), 2)


class FrozenClipHead(PooledRegionHead):
    """
    Region embeddings in CLIP's space and classes by their texts (FC-CLIP's rule).

    Trained: embeddings pooled from pixel features as in PooledRegionHead, a void embedding, the
    last row of the classifier, and a temperature. What a query itself knows enters the embedding
    of its mask, as in FC-CLIP, here along the void embedding alone: whether the mask is a region
    is the query's to say (two queries may have the same mask), what it shows is the picture's,
    so that text_features mean the same under a mask and under any other region.
    Frozen: CLIP's own embedding of each region. The texts of the classes, with
    several rows for a class of several wordings, are part of the state; they are those of
    `set_texts`, and until then nothing.
    Raises ConfigError for a backbone that is no tower of open_clip, or a region_dim that is not
    the dimension of its space.
    """

    def __init__(self, backbone: nn.Module, config: NetworkConfig, num_classes: int) -> None:
        if not isinstance(backbone, OpenClipBackbone):
            raise ConfigError(f'region_head {FROZEN_CLIP} goes with backbone open_clip, not '
                              f'{config.backbone}')
        if config.region_dim != backbone.embed_dim:
            raise ConfigError(f'region_dim must be {backbone.embed_dim}, the dimension of '
                              f'{backbone.name}, not {config.region_dim}')
        if config.region_pooling not in POOLINGS:
            raise ConfigError(f'region_pooling must be {" or ".join(POOLINGS)}, not '
                              f'{config.region_pooling!r}')
        if config.outlier_class:
            raise ConfigError(f'region_head {FROZEN_CLIP} has no outlier class; use another loss '
                              'than uno')
        super().__init__(backbone.channels, config)
        if not config.region_valid_masks and backbone.is_resnet:
            raise ConfigError('region_valid_masks must be true for a ResNet, whose attention has '
                              'no support in an empty mask')
        self.pooling, self.valid_masks = config.region_pooling, config.region_valid_masks
        self.seen_share, self.unseen_share = config.region_ensemble
        self.void = nn.Embedding(1, config.region_dim)
        self.register_buffer('texts', torch.zeros(num_classes, config.region_dim))
        self.register_buffer('rows_of_class', torch.arange(num_classes)[:, None])
        self.register_buffer('frozen_share', torch.full((num_classes,), self.seen_share))

    @torch.no_grad()
    def set_texts(self, texts: Sequence[torch.Tensor], seen: Sequence[bool] | None = None) -> None:
        """
        Give the classes their texts.

        texts: for each class float32 [wordings, D], rows of unit length, one or more; seen: for
        each class, whether training has seen it, None for all. There may be another number of
        classes than before: any vocabulary can take the place of that of training.
        Raises ValueError for a class without a text, or of another D.
        """
        dim = self.void.embedding_dim
        for index, rows in enumerate(texts):
            if rows.ndim != 2 or rows.shape[1] != dim or not len(rows):
                raise ValueError(f'the texts of class {index} are {list(rows.shape)}, not '
                                 f'[one or more, {dim}]')
        device = self.texts.device
        self.texts = torch.cat(list(texts)).float().to(device)
        rows = torch.arange(len(self.texts)).split([len(group) for group in texts])
        # A class of few wordings repeats its first one, which changes no maximum.
        self.rows_of_class = torch.stack([
            functional.pad(group, (0, max(map(len, rows)) - len(group)), value=int(group[0]))
            for group in rows]).to(device)
        seen = torch.ones(len(texts)) if seen is None else torch.as_tensor(seen)
        self.frozen_share = torch.where(
            seen.bool(), self.seen_share, self.unseen_share).to(device)

    def _load_from_state_dict(self, state_dict, prefix, *args) -> None:
        # As many rows as the classes have wordings, which only the state knows.
        for name in ('texts', 'rows_of_class', 'frozen_share'):
            if prefix + name in state_dict:
                setattr(self, name, torch.empty_like(
                    state_dict[prefix + name], device=self.texts.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    @property
    def void_row(self) -> torch.Tensor:
        """Return the last row of the classifier, [1, D] of unit length."""
        return functional.normalize(self.void.weight, dim=-1)

    def embed_masks(self, hidden: torch.Tensor, masks: torch.Tensor,
                    void_share: torch.Tensor) -> torch.Tensor:
        """
        Return trained embeddings of masks, [B, N, D] of unit length.

        hidden, masks: as for embed; void_share [B, N, 1]: how far each query turns its embedding
        to the void, in lengths of the embedding.
        """
        return functional.normalize(
            self.embed(hidden, masks) + void_share * self.void_row, dim=-1)

    def trained_logits(self, regions: torch.Tensor) -> torch.Tensor:
        """Return class logits [B, N, K+1] of trained embeddings [B, N, D], the void last."""
        classes = class_logits(regions, self.texts, self.rows_of_class, self.scale)
        return torch.cat((classes, self.scale * regions @ self.void_row.T), 2)

    def ensemble(self, trained: torch.Tensor, frozen: torch.Tensor,
                 scale: torch.Tensor) -> torch.Tensor:
        """
        Return logarithms of the combined class probabilities, [B, N, K+1] as trained_logits.

        trained: of trained_logits; frozen [B, N, D]: CLIP's own embeddings, scale: CLIP's own
        1 / temperature. See geometric_ensemble, whose exponent a is that of classes that
        training has seen, or of others. Regions whose frozen embedding is zero, empty ones, are
        left to p_in.
        """
        share = self.frozen_share * frozen.any(2, keepdim=True)
        return geometric_ensemble(
            trained, class_logits(frozen, self.texts, self.rows_of_class, scale), share)

    def classify(self, backbone: OpenClipBackbone, features: Mapping[int, torch.Tensor],
                 pixel_features: torch.Tensor, predictions: Predictions,
                 ) -> tuple[Predictions, RegionEmbeddings]:
        """
        Replace the class logits of predictions by those of the texts; embed the last one's masks.

        features: of the backbone; predictions: (void share [B, N, 1], mask logits) of each
        decoder layer. In training the class logits are the trained ones, for the loss of every
        layer; else those of the last layer are the ensemble's and those of the others are left
        out. Masks get no gradient from their classes, as in FC-CLIP.
        """
        hidden = self.hidden(features, pixel_features)
        found = []
        for void_share, mask_logits in predictions if self.training else predictions[-1:]:
            masks = soft_masks(mask_logits.detach(), tuple(hidden.shape[-2:]))
            regions = self.embed_masks(hidden, masks, void_share)
            found.append((self.trained_logits(regions), mask_logits))
        embeddings = RegionEmbeddings(regions, self.text_features(hidden), self.scale)
        if self.training:
            return found, embeddings
        trained, mask_logits = found[-1]
        dense = backbone.dense(features)
        weights = cell_weights(mask_logits, tuple(dense.shape[-2:]), self.pooling)
        embeddings.frozen = backbone.embed(dense, weights, self.valid_masks)
        combined = self.ensemble(trained, embeddings.frozen, backbone.scale)
        return [(combined, mask_logits)], embeddings
