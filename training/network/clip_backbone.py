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
The convolutional image tower of an open_clip model as a frozen backbone (FC-CLIP).

Yu et al., "Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional
CLIP", NeurIPS 2023.
"""

from __future__ import annotations

import math
from pathlib import Path

from owseg_training.config import ConfigError
from owseg_training.data.stream import MEAN, STD
from owseg_training.network.region_embedding import mask_pool
from owseg_training.open_clip_models import open_clip_model
import torch
from torch import nn
from torch.nn import functional

STRIDES = (4, 8, 16, 32)


class OpenClipBackbone(nn.Module):
    """
    Image tower of an open_clip model: a ModifiedResNet (RN50, ...) or a ConvNeXt of timm.

    model: name of the model, as open_clip.list_models() has it; its weights are random until
    `load`. No part is ever trained: no parameter has a gradient and the mode is always
    evaluation.
    forward: image float32 [B, 3, H, W] with ImageNet's statistics, as all networks here take it
    (they are exchanged for the model's own), to a dict stride -> [B, C, H/stride, W/stride] for
    4, 8, 16, 32.
    channels: by stride; embed_dim: D of the space shared with the text tower.
    Raises ValueError for a model without such a tower, or that is not known.
    """

    def __init__(self, model: str) -> None:
        super().__init__()
        self.name = model
        clip = open_clip_model(model)
        self.visual = clip.visual
        self.is_resnet = hasattr(self.visual, 'attnpool')
        if self.is_resnet:
            self.blocks = ('stem', 'layer1'), ('layer2',), ('layer3',), ('layer4',)
            width = self.visual.layer1[0].conv1.in_channels
            channels = [4 * width, 8 * width, 16 * width, 32 * width]
        elif all(hasattr(getattr(self.visual, 'trunk', None), name)
                 for name in ('stem', 'stages', 'norm_pre', 'feature_info')):
            trunk = self.visual.trunk
            channels = [stage['num_chs'] for stage in trunk.feature_info]
        else:
            raise ConfigError(f'{model} has no convolutional image tower; backbones of open_clip '
                              'are RN50 and its like, and ConvNeXt')
        self.channels = dict(zip(STRIDES, channels))
        self.embed_dim = (self.visual.attnpool.c_proj.out_features if self.is_resnet else
                          self._project(torch.zeros(1, channels[-1])).shape[-1])
        self.register_buffer('log_scale', clip.logit_scale.detach().reshape(()).clone())
        mean, std = (torch.tensor(self.visual.preprocess_cfg[key]) for key in ('mean', 'std'))
        for name, value in (('gain', torch.tensor(STD) / 255 / std),
                            ('shift', (torch.tensor(MEAN) / 255 - mean) / std)):
            self.register_buffer(name, value[:, None, None], persistent=False)
        self.requires_grad_(False)
        self.eval()

    @property
    def scale(self) -> torch.Tensor:
        """Return CLIP's own 1 / temperature, at most 100."""
        return self.log_scale.exp().clamp(max=100)

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """Compute the features."""
        features = image * self.gain + self.shift
        found = {}
        if self.is_resnet:
            for stride, names in zip(STRIDES, self.blocks):
                for name in names:
                    features = getattr(self.visual, name)(features)
                found[stride] = features
        else:
            features = self.visual.trunk.stem(features)
            for stride, stage in zip(STRIDES, self.visual.trunk.stages):
                features = found[stride] = stage(features)
        return found

    def dense(self, features: dict[int, torch.Tensor]) -> torch.Tensor:
        """Return what CLIP's head takes, [B, C, H/32, W/32], of the features by stride."""
        return features[32] if self.is_resnet else self.visual.trunk.norm_pre(features[32])

    def embed(self, dense: torch.Tensor, weights: torch.Tensor,
              valid_masks: bool = True) -> torch.Tensor:
        """
        Return CLIP's embeddings of regions, [B, N, D] of unit length.

        dense [B, C, h, w]; weights [B, N, h, w] in 0..1, how much of a cell is in a region.
        ConvNeXt: mean over the region, then CLIP's norm and projection. ResNet: CLIP's attention
        pooling, whose query is the mean of the image and whose keys are the cells of the region;
        a cell's attention is multiplied by its weight, which for weights of 0 and 1 is the key
        mask of FC-CLIP.
        valid_masks: an empty region has an embedding of zeros; else a ConvNeXt embeds its mean,
        zeros, as FC-CLIP does without ENSEMBLE_ON_VALID_MASK.
        """
        if self.is_resnet:
            regions = self._attention_pool(dense, weights)
        else:
            pooled = mask_pool(dense, weights)
            regions = self._project(pooled.flatten(0, 1)).unflatten(0, (-1, weights.shape[1]))
        regions = functional.normalize(regions, dim=-1)
        if not valid_masks:
            return regions
        return regions * (weights.flatten(2).amax(2) > 0)[..., None].to(regions)

    def _project(self, pooled: torch.Tensor) -> torch.Tensor:
        return self.visual.head(self.visual.trunk.head(pooled[:, :, None, None]))

    def _attention_pool(self, dense: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        pool = self.visual.attnpool
        first, grid = pool.positional_embedding[0], pool.positional_embedding[1:]
        side = math.isqrt(len(grid))
        position = functional.interpolate(
            grid.T.unflatten(1, (side, side))[None], size=dense.shape[-2:], mode='bilinear',
            align_corners=False)
        cells = dense.flatten(2).transpose(1, 2)
        keys = cells + position.flatten(2).transpose(1, 2)
        query = cells.mean(1, keepdim=True) + first
        query, key, value = (
            linear(x).unflatten(2, (pool.num_heads, -1)).transpose(1, 2)
            for linear, x in ((pool.q_proj, query), (pool.k_proj, keys), (pool.v_proj, keys)))
        logits = query @ key.transpose(2, 3) / math.sqrt(key.shape[-1])
        share = weights.flatten(2)
        # Finite, because the softmax of an empty region would have no support.
        logits = logits + torch.where(share > 0, share.log(), -1e4)[:, None]
        attended = logits.softmax(3) @ value
        return pool.c_proj(attended.transpose(1, 2).flatten(2))

    def train(self, mode: bool = True) -> OpenClipBackbone:
        """Stay in evaluation mode: a frozen tower has one."""
        return super().train(False)

    def freeze(self, stages: int) -> None:
        """Do nothing; all stages are frozen."""

    def load(self, path: str | Path) -> None:
        """
        Load the image tower and the temperature of a checkpoint of the whole model.

        Raises ValueError when it cannot be read or is of another model.
        """
        clip = open_clip_model(self.name, path)
        self.visual.load_state_dict(clip.visual.state_dict())
        self.log_scale.copy_(clip.logit_scale.detach().reshape(()))
