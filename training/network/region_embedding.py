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
Region embeddings: image features pooled under each mask, in the space of a text encoder.

A region head is made by REGION_HEADS from (channels of the backbone by stride, NetworkConfig) and
called with the backbone's features by stride, the pixel features and the mask logits; it returns
RegionEmbeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

from owseg_training.config import NetworkConfig
import torch
from torch import nn
from torch.nn import functional

STRIDE = 8
START_TEMPERATURE = 0.07


@dataclass
class RegionEmbeddings:
    """
    What a region head says about a batch.

    regions [B, N, D]: rows of unit length. text_features [B, D, H/8, W/8]: not normalised; their
    mean under a mask, at unit length, is the embedding of that region (with frozen_clip but for
    what the query of a mask adds along the void embedding). scale: 1 / temperature, a
    learned number. frozen [B, N, D]: those of a frozen image tower, rows of unit length or, for
    empty regions, zeros; None where the network has none, and in training.
    """

    regions: torch.Tensor
    text_features: torch.Tensor
    scale: torch.Tensor
    frozen: torch.Tensor | None = None


def mask_pool(features: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """
    Return the mean of features under soft masks (OpenSeg: z_i = sum_xy s_i F_z, normalised).

    features [B, C, h, w]; masks [B, N, h, w], 0..1.  Returns [B, N, C]; zeros for empty masks.

    In float16, where products end at 65504, means up to 32 come out whatever the size.
    """
    # A power of two, which changes no digit: sums of more than 2048 pixels are made smaller.
    pixels = int(features.shape[-2] * features.shape[-1])
    share = 1 / (1 << (pixels // 2048).bit_length())
    weights = masks.flatten(2) * share
    sums = weights @ features.flatten(2).transpose(1, 2)
    return sums / weights.sum(2).clamp(min=1e-6 * share)[..., None]


def soft_masks(mask_logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Return sigmoid masks [B, N, *size] of mask logits [B, N, h, w], a multiple of that size.

    Small masks keep their share: they are thinned, and never vanish as hard masks do. A mask that
    is nowhere above one half is taken relative to its own maximum: of sigmoids of -15 and less
    run times keep too few digits for a mean under them.
    """
    factor = mask_logits.shape[-2] // size[0]
    highest = mask_logits.detach().amax((2, 3), keepdim=True).clamp(max=0)
    return functional.avg_pool2d((mask_logits - highest).sigmoid(), factor)


class PooledRegionHead(nn.Module):
    """
    A trained region head (OpenSeg's image-text features F_z, pooled under soft masks).

    Pixel features and the backbone's at strides 8 to 32 meet at stride 8 in two 1x1
    convolutions; the linear map to the text space commutes with the mean, so that it is taken of
    N regions and not of every pixel.
    """

    def __init__(self, channels: dict[int, int], config: NetworkConfig) -> None:
        super().__init__()
        hidden = config.region_hidden_dim
        self.strides = [stride for stride in sorted(channels) if stride >= STRIDE]
        self.pixel = nn.Conv2d(config.mask_dim, hidden, 1)
        self.lateral = nn.ModuleDict({
            str(stride): nn.Conv2d(channels[stride], hidden, 1, bias=False)
            for stride in self.strides})
        self.norm = nn.GroupNorm(32, hidden)
        self.mix = nn.Sequential(
            nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False),
            nn.Conv2d(hidden, hidden, 1), nn.GroupNorm(32, hidden), nn.ReLU(inplace=True))
        self.project = nn.Linear(hidden, config.region_dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / START_TEMPERATURE)))

    @property
    def scale(self) -> torch.Tensor:
        """Return 1 / temperature, at most 100 as in CLIP."""
        return self.log_scale.exp().clamp(max=100)

    def hidden(self, features: dict[int, torch.Tensor],
               pixel_features: torch.Tensor) -> torch.Tensor:
        """Return the features that are pooled, [B, hidden, H/8, W/8]."""
        total = self.pixel(functional.avg_pool2d(pixel_features, 2))
        size = total.shape[-2:]
        for stride in self.strides:
            part = self.lateral[str(stride)](features[stride])
            if stride != STRIDE:
                part = functional.interpolate(part, size=size, mode='bilinear',
                                              align_corners=False)
            total = total + part
        return self.mix(functional.relu(self.norm(total)))

    def embed(self, hidden: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
        """Return embeddings [B, N, D] of soft masks [B, N, H/8, W/8]."""
        return functional.normalize(self.project(mask_pool(hidden, masks)), dim=-1)

    def text_features(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the features for other regions, [B, D, H/8, W/8]."""
        return functional.conv2d(
            hidden, self.project.weight[:, :, None, None], self.project.bias)

    def forward(self, features: dict[int, torch.Tensor], pixel_features: torch.Tensor,
                mask_logits: torch.Tensor) -> RegionEmbeddings:
        """Pool under the masks, and give the features for other regions."""
        hidden = self.hidden(features, pixel_features)
        regions = self.embed(hidden, soft_masks(mask_logits, tuple(hidden.shape[-2:])))
        return RegionEmbeddings(regions, self.text_features(hidden), self.scale)


REGION_HEADS = {'pooled': PooledRegionHead}
