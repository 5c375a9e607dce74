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
Transformer decoders: learnable queries to classes and masks.

Masked attention (Mask2Former; RbA A.1) and OpenSeg's region-image cross-attention.
"""

from __future__ import annotations

from collections.abc import Sequence

from owseg_training.config import NetworkConfig
from owseg_training.network.position import SinePositionEncoding
import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    """
    Multi-head attention with torch's parameter names and a boolean mask.

    forward: query [B, N, C], key and value [B, L, C], blocked bool [B, N, L] (True: must not
    attend; no row is True everywhere) to [B, N, C].
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f'{channels} channels do not divide into {heads} heads')
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * channels, channels))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * channels))
        self.out_proj = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.xavier_uniform_(self.out_proj.weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                blocked: torch.Tensor | None = None) -> torch.Tensor:
        """Attend."""
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (functional.linear(x, w, b).unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for x, w, b in zip((query, key, value), weights, biases))
        # Added, not boolean: an export guards a boolean one against rows that are all blocked.
        # Finite, because INT8 needs a range.
        mask = None if blocked is None else torch.zeros_like(
            blocked, dtype=q.dtype).masked_fill(blocked, torch.finfo(q.dtype).min)[:, None]
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(attended.transpose(1, 2).flatten(2))


class MaskedAttentionLayer(nn.Module):
    """Masked cross-attention, self-attention and feed-forward network, each post-norm."""

    def __init__(self, channels: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.cross_attention = Attention(channels, heads)
        self.cross_norm = nn.LayerNorm(channels)
        self.self_attention = Attention(channels, heads)
        self.self_norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, channels)
        self.feedforward_norm = nn.LayerNorm(channels)

    def forward(self, queries: torch.Tensor, query_position: torch.Tensor,
                memory: torch.Tensor, memory_position: torch.Tensor,
                blocked: torch.Tensor) -> torch.Tensor:
        """Refine the queries [B, N, C] by the memory [B, L, C]."""
        queries = self.cross_norm(queries + self.cross_attention(
            queries + query_position, memory + memory_position, memory, blocked))
        positioned = queries + query_position
        queries = self.self_norm(
            queries + self.self_attention(positioned, positioned, queries))
        hidden = self.linear2(functional.relu(self.linear1(queries)))
        return self.feedforward_norm(queries + hidden)


class MaskMLP(nn.Sequential):
    """Three linear layers with ReLU between them: query to mask embedding (RbA A.1)."""

    def __init__(self, channels: int, mask_dim: int) -> None:
        super().__init__(
            nn.Linear(channels, channels), nn.ReLU(inplace=True),
            nn.Linear(channels, channels), nn.ReLU(inplace=True),
            nn.Linear(channels, mask_dim))


class _QueryDecoder(nn.Module):
    """Prediction from queries; the parts are made by the decoder that inherits from it."""

    decoder_norm: nn.LayerNorm
    class_embed: nn.Linear
    mask_embed: MaskMLP

    def _embed_masks(self, queries: torch.Tensor) -> torch.Tensor:
        return self.mask_embed(self.decoder_norm(queries))

    def _predict(self, queries: Sequence[torch.Tensor], pixel_features: torch.Tensor,
                 ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Predict from the queries after each layer in training, else after the last alone."""
        predictions = []
        for layer in queries if self.training else queries[-1:]:
            masks = self._embed_masks(layer) @ pixel_features.flatten(2)
            predictions.append((self.class_embed(self.decoder_norm(layer)),
                                masks.unflatten(2, pixel_features.shape[-2:])))
        return predictions


class MaskedAttentionDecoder(_QueryDecoder):
    """
    Queries to class logits and mask logits, with a prediction after every layer.

    The layers take the feature maps of attention_strides in turn (Mask2Former: 32, 16, 8; RbA's
    released networks: 32) and look only where the prediction before them has its mask.
    forward: (pyramid dict stride -> [B, C, H/s, W/s], F [B, mask_dim, H/4, W/4]) to a list of
    class_logits [B, N, K+1] and mask_logits [B, N, H/4, W/4] (RbA eq 1 before the sigmoid): in
    training one entry a prediction (the learnable queries' first, the last layer's last), else
    the last layer's alone.
    """

    def __init__(self, config: NetworkConfig, num_classes: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.strides = list(config.attention_strides)
        self.query_feat = nn.Embedding(config.queries, width)
        self.query_embed = nn.Embedding(config.queries, width)
        self.level_embed = nn.Embedding(len(self.strides), width)
        self.position = SinePositionEncoding(width)
        self.layers = nn.ModuleList(
            MaskedAttentionLayer(width, config.heads, config.feedforward_dim)
            for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.mask_embed = MaskMLP(width, config.mask_dim)

    @staticmethod
    def _blocked(mask_logits: torch.Tensor) -> torch.Tensor:
        """Return where the masks [B, N, L] of the queries are not, bool [B, N, L]."""
        # Not the same as mask_logits < 0: the sigmoid rounds tiny negative logits to one half.
        blocked = mask_logits.sigmoid() < 0.5
        # A query whose mask is empty attends everywhere, or its softmax would have no support.
        return blocked & ~blocked.all(2, keepdim=True)

    def forward(self, pyramid: dict[int, torch.Tensor], pixel_features: torch.Tensor,
                ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Refine the queries and predict."""
        batch = pixel_features.shape[0]
        queries = [self.query_feat.weight[None].expand(batch, -1, -1)]
        query_position = self.query_embed.weight[None]
        # Resizing is linear, as the sum over channels is: Mask2Former resizes N masks a layer.
        resized = [functional.interpolate(
            pixel_features.detach(), size=pyramid[stride].shape[-2:], mode='bilinear',
            align_corners=False).flatten(2) for stride in self.strides[:len(self.layers)]]
        for index, layer in enumerate(self.layers):
            level = index % len(self.strides)
            feature = pyramid[self.strides[level]]
            memory = feature.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
            # Not under no_grad: autocast would keep weights that it cast there, without gradients.
            blocked = self._blocked(self._embed_masks(queries[-1]) @ resized[level])
            queries.append(layer(queries[-1], query_position, memory, self.position(feature),
                                 blocked))
        return self._predict(queries, pixel_features)


class RegionCrossAttentionLayer(nn.Module):
    """
    Cross-attention of the queries to the image and a feed-forward network, each post-norm.

    No self-attention: OpenSeg found no gain in it (appendix C).
    forward: queries [B, N, C], memory [B, L, C] with its position encoding to [B, N, C].
    """

    def __init__(self, channels: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.cross_attention = Attention(channels, heads)
        self.cross_norm = nn.LayerNorm(channels)
        self.linear1 = nn.Linear(channels, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, channels)
        self.feedforward_norm = nn.LayerNorm(channels)

    def forward(self, queries: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        """Refine the queries."""
        queries = self.cross_norm(queries + self.cross_attention(queries, memory, memory))
        hidden = self.linear2(functional.relu(self.linear1(queries)))
        return self.feedforward_norm(queries + hidden)


class RegionCrossAttentionDecoder(_QueryDecoder):
    """
    OpenSeg's region-image cross-attention (appendix C, figure 6): 128 queries, 3 layers.

    Every layer attends to the whole map F + PE of an attention stride (in turn, where there are
    several), not only to a query's mask.
    forward: as MaskedAttentionDecoder.
    """

    def __init__(self, config: NetworkConfig, num_classes: int) -> None:
        super().__init__()
        width = config.hidden_dim
        self.strides = list(config.attention_strides)
        self.query_feat = nn.Embedding(config.queries, width)
        self.position = SinePositionEncoding(width)
        self.layers = nn.ModuleList(
            RegionCrossAttentionLayer(width, config.heads, config.feedforward_dim)
            for _ in range(config.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.class_embed = nn.Linear(width, num_classes + 1)
        self.mask_embed = MaskMLP(width, config.mask_dim)

    def forward(self, pyramid: dict[int, torch.Tensor], pixel_features: torch.Tensor,
                ) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Refine the queries and predict."""
        queries = [self.query_feat.weight[None].expand(pixel_features.shape[0], -1, -1)]
        for index, layer in enumerate(self.layers):
            feature = pyramid[self.strides[index % len(self.strides)]]
            memory = feature.flatten(2).transpose(1, 2) + self.position(feature)
            queries.append(layer(queries[-1], memory))
        return self._predict(queries, pixel_features)


TRANSFORMER_DECODERS = {
    'masked_attention': MaskedAttentionDecoder,
    'region_cross_attention': RegionCrossAttentionDecoder,
}
