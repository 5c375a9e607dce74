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

"""Region-aware metric learning: pixel features pooled under regions, embedded (RAML eq 3)."""

from __future__ import annotations

from owseg_training.network.region_embedding import mask_pool
import torch
from torch import nn
from torch.nn import functional


class MetricHead(nn.Module):
    """
    D: two fully connected layers from C channels to dim (RAML: 256, 128 and 128), unit length.

    forward: mean features float32 [R, C] of regions to embeddings [R, dim].  classify gives the
    logits of the auxiliary cross-entropy of the released code, in training only; num_classes: of
    them.
    """

    def __init__(self, channels: int, dim: int, num_classes: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(channels, dim), nn.ReLU(inplace=True), nn.Linear(dim, dim))
        self.classifier = nn.Linear(dim, num_classes, bias=False)

    def forward(self, means: torch.Tensor) -> torch.Tensor:
        """Return embeddings [R, dim] of unit length."""
        return functional.normalize(self.layers(means), dim=-1)

    def embed_and_classify(self, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings [R, dim] and class logits [R, K]; those are of their raw form."""
        raw = self.layers(means)
        return functional.normalize(raw, dim=-1), self.classifier(raw)


def region_means(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Return the mean features [R, C] of regions (RAML eq 3, inside of D).

    features [C, h, w]; masks [R, h, w], 0..1; zeros for empty masks.
    """
    return mask_pool(features[None], masks[None].to(features))[0]


def drop_blocks(masks: torch.Tensor, probability: float, block: int,
                generator: torch.Generator) -> torch.Tensor:
    """
    Return a view of each mask with square blocks missing (DropBlock, Ghiasi et al., 2018).

    masks float [R, h, w]; probability: share of the pixels to drop, about; block: odd side of a
    block in pixels; generator: on the CPU.  Seeds fall with probability / block^2 and take a
    block around them.  A mask of which nothing would be left stays whole.
    """
    seeds = torch.rand(masks.shape, generator=generator) < probability / block ** 2
    dropped = functional.max_pool2d(
        seeds[:, None].float(), block, stride=1, padding=block // 2)[:, 0]
    kept = masks * (1 - dropped.to(masks))
    empty = kept.flatten(1).sum(1) == 0
    return torch.where(empty[:, None, None], masks, kept)
