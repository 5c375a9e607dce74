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
Pixel decoder with multi-scale deformable attention, in plain PyTorch.

Zhu et al., "Deformable DETR" (attention), Cheng et al., "Mask2Former" (decoder).  RbA's released
networks send stride 32 alone through the encoder, Mask2Former and the text of RbA A.1 send
strides 8, 16 and 32: encoder_strides of the configuration.
"""

from __future__ import annotations

from functools import reduce
import math

from owseg_training.config import NetworkConfig
from owseg_training.network.position import SinePositionEncoding
import torch
from torch import nn
from torch.nn import functional


def reference_points(sizes: list[tuple[int, int]], device: torch.device) -> torch.Tensor:
    """Centres of the cells of all levels, float32 [sum(h * w), 2] of (x, y) in 0..1."""
    points = []
    for height, width in sizes:
        y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) / height
        x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) / width
        points.append(torch.stack((x.expand(height, width),
                                   y[:, None].expand(height, width)), 2).flatten(0, 1))
    return torch.cat(points)


class DeformableAttention(nn.Module):
    """
    Multi-scale deformable attention (Deformable DETR eq 3).

    Every query looks at `points` places a head and level, at learned offsets, in cells of the
    level, from its reference point.
    forward: query, value [B, L, C] with L = sum(h * w), references [L, 2], sizes of the levels
    to [B, L, C].  Places and samples are float32 also under autocast.
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f'{channels} channels do not divide into {heads} heads')
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling_offsets = nn.Linear(channels, heads * levels * points * 2)
        self.attention_weights = nn.Linear(channels, heads * levels * points)
        self.value_proj = nn.Linear(channels, channels)
        self.output_proj = nn.Linear(channels, channels)
        # At first each head looks along its own direction, one cell further a point.
        angle = torch.arange(heads) * (2 * math.pi / heads)
        direction = torch.stack((angle.cos(), angle.sin()), 1)
        direction = direction / direction.abs().amax(1, keepdim=True)
        steps = torch.arange(1, points + 1)
        bias = direction[:, None, None] * steps[:, None]
        nn.init.zeros_(self.sampling_offsets.weight)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(bias.expand(heads, levels, points, 2).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(self, query: torch.Tensor, value: torch.Tensor, references: torch.Tensor,
                sizes: list[tuple[int, int]]) -> torch.Tensor:
        """Sample and mix the values."""
        length, heads, points = query.shape[1], self.heads, self.points
        # grid_sample's coordinates go from -1 to 1.
        cells = torch.tensor([[width, height] for height, width in sizes], device=query.device)
        scale = (2 / cells)[None, :, None].expand(heads, -1, points, -1)
        centres = (2 * references - 1).expand(points, -1, -1)
        # [B, heads, levels, points, L (, 2)]: long rows, which run times are fast at.
        offsets = (self.sampling_offsets(query).float() * scale.flatten()).reshape(
            -1, length, heads, self.levels, points, 2).permute(0, 2, 3, 4, 1, 5)
        weights = self.attention_weights(query).float().reshape(
            -1, length, heads, self.levels * points).softmax(3).unflatten(
                3, (self.levels, points)).permute(0, 2, 3, 4, 1)
        values = self.value_proj(value).float().transpose(1, 2)
        mixed = []
        for level, (part, (height, width)) in enumerate(
                zip(values.split([h * w for h, w in sizes], 2), sizes)):
            # [B * heads, C / heads, points, L]
            sampled = functional.grid_sample(
                part.reshape(-1, values.shape[1] // heads, height, width),
                (offsets[:, :, level] + centres).flatten(0, 1),
                mode='bilinear', padding_mode='zeros', align_corners=False)
            mixed.append((sampled * weights[:, :, level].flatten(0, 1)[:, None]).sum(2))
        total = reduce(torch.add, mixed).reshape(-1, values.shape[1], length).transpose(1, 2)
        return self.output_proj(total.to(query.dtype))


class DeformableEncoderLayer(nn.Module):
    """
    Deformable self-attention and a feed-forward network, each post-norm.

    forward: features and position encodings [B, L, C], references [L, 2], sizes to [B, L, C].
    """

    def __init__(self, channels: int, heads: int, levels: int, points: int,
                 feedforward_dim: int) -> None:
        super().__init__()
        self.attention = DeformableAttention(channels, heads, levels, points)
        self.attention_norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, channels)
        self.feedforward_norm = nn.LayerNorm(channels)

    def forward(self, features: torch.Tensor, position: torch.Tensor, references: torch.Tensor,
                sizes: list[tuple[int, int]]) -> torch.Tensor:
        """Refine the features of all levels."""
        attended = self.attention(features + position, features, references, sizes)
        features = self.attention_norm(features + attended)
        hidden = self.linear2(functional.relu(self.linear1(features)))
        return self.feedforward_norm(features + hidden)


class MSDeformPixelDecoder(nn.Module):
    """
    Deformable encoder over the coarse levels, then a feature pyramid to stride 4.

    forward: dict stride -> [B, C_s, H/s, W/s] to (dict stride -> [B, hidden_dim, H/s, W/s],
    pixel features F [B, mask_dim, H/4, W/4]).
    Raises ValueError when encoder_strides are not the coarsest strides, coarse to fine.
    """

    def __init__(self, channels: dict[int, int], config: NetworkConfig) -> None:
        super().__init__()
        strides = sorted(channels, reverse=True)
        self.encoder_strides = list(config.encoder_strides)
        levels = len(self.encoder_strides)
        if not levels or self.encoder_strides != strides[:levels]:
            raise ValueError(f'encoder_strides must begin with the coarsest of {strides} and go '
                             f'to finer ones, not {self.encoder_strides}')
        self.pyramid_strides = strides[levels:]
        width = config.hidden_dim
        self.input_projections = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels[s], width, 1), nn.GroupNorm(32, width))
            for s in self.encoder_strides)
        self.level_embed = nn.Parameter(torch.randn(levels, width))
        self.position = SinePositionEncoding(width)
        self.encoder = nn.ModuleList(
            DeformableEncoderLayer(width, config.heads, levels, config.encoder_points,
                                   config.encoder_feedforward_dim)
            for _ in range(config.encoder_layers))
        self.lateral = nn.ModuleDict({
            str(s): nn.Sequential(nn.Conv2d(channels[s], width, 1, bias=False),
                                  nn.GroupNorm(32, width))
            for s in self.pyramid_strides})
        self.output = nn.ModuleDict({
            str(s): nn.Sequential(nn.Conv2d(width, width, 3, padding=1, bias=False),
                                  nn.GroupNorm(32, width), nn.ReLU(inplace=True))
            for s in self.pyramid_strides})
        self.mask_features = nn.Conv2d(width, config.mask_dim, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def _encode(self, features: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        projected = [projection(features[stride]) for projection, stride
                     in zip(self.input_projections, self.encoder_strides)]
        sizes = [(p.shape[2], p.shape[3]) for p in projected]
        position = torch.cat([self.position(p) + embed for p, embed
                              in zip(projected, self.level_embed)], 1)
        tokens = torch.cat([p.flatten(2).transpose(1, 2) for p in projected], 1)
        references = reference_points(sizes, tokens.device)
        for layer in self.encoder:
            tokens = layer(tokens, position, references, sizes)
        parts = tokens.transpose(1, 2).split([h * w for h, w in sizes], 2)
        return {stride: part.unflatten(2, size)
                for stride, part, size in zip(self.encoder_strides, parts, sizes)}

    def forward(self, features: dict[int, torch.Tensor],
                ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Encode the coarse levels and merge them into the fine ones."""
        device = self.mask_features.weight.device.type
        if torch.is_autocast_enabled(device):
            # Sampling positions lose whole pixels in half precision; Mask2Former does the same.
            with torch.autocast(device, enabled=False):
                return self.forward({s: f.float() for s, f in features.items()})
        pyramid = self._encode(features)
        top = pyramid[self.encoder_strides[-1]]
        for stride in self.pyramid_strides:
            lateral = self.lateral[str(stride)](features[stride])
            top = self.output[str(stride)](lateral + functional.interpolate(
                top, size=lateral.shape[-2:], mode='bilinear', align_corners=False))
            pyramid[stride] = top
        return pyramid, self.mask_features(top)
