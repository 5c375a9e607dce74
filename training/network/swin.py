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
Swin transformer with the numerics of the published checkpoints.

Liu et al., "Swin Transformer: Hierarchical Vision Transformer using Shifted Windows"; parameter
names and the order of operations are those of the released weights: normalise, pad to whole
windows with zeros, shift, partition.  The shift is made on maps smaller than a window too, and
padding takes part in attention.  Other implementations (timm) shift before they pad and give
other features wherever a map is no multiple of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
import re

from owseg_training.weights import read_weights
import torch
from torch import nn
from torch.nn import functional


def _pad_to_multiple(x: torch.Tensor, multiple: int) -> torch.Tensor:
    """Pad a map [B, H, W, C] with zeros, bottom and right."""
    bottom, right = -x.shape[1] % multiple, -x.shape[2] % multiple
    return functional.pad(x, (0, 0, 0, right, 0, bottom)) if bottom or right else x


def partition_windows(x: torch.Tensor, window: int) -> torch.Tensor:
    """Split [B, H, W, C], H and W multiples of the window, into [B * windows, window², C]."""
    rows, columns, channels = x.shape[1] // window, x.shape[2] // window, x.shape[3]
    x = x.reshape(-1, rows, window, columns, window, channels)
    return x.transpose(2, 3).reshape(-1, window * window, channels)


def merge_windows(windows: torch.Tensor, window: int, height: int, width: int) -> torch.Tensor:
    """Undo partition_windows: [B * windows, window², C] to [B, height, width, C]."""
    rows, columns, channels = height // window, width // window, windows.shape[2]
    x = windows.reshape(-1, rows, columns, window, window, channels)
    return x.transpose(2, 3).reshape(-1, height, width, channels)


def shifted_window_mask(height: int, width: int, window: int, shift: int,
                        device: torch.device | None = None) -> torch.Tensor:
    """
    Attention mask of a shifted map: float32 [windows, window², window²] of 0 and -100.

    height, width: the padded map's.  Tokens attend to each other only where they were neighbours
    before the shift; padding counts as one more neighbour.
    """
    def region(length: int) -> torch.Tensor:
        index = torch.arange(length, device=device)
        return (index >= length - window).float() + (index >= length - shift).float()

    regions = 3 * region(height)[:, None] + region(width)
    regions = partition_windows(regions[None, :, :, None], window)[..., 0]
    return -100.0 * (regions[:, None] != regions[:, :, None]).float()


class DropPath(nn.Module):
    """Stochastic depth: drop a residual branch for whole samples while training."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep each sample of [B, ...] with probability 1 - rate, scaled to the same mean."""
        if not self.training or self.rate == 0:
            return x
        keep = x.new_empty(x.shape[0], *[1] * (x.ndim - 1)).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


class WindowAttention(nn.Module):
    """
    Multi-head self-attention in windows with a relative position bias.

    forward: ([B * windows, window², C], mask [windows, window², window²] or None) to the shape of
    the first.
    """

    def __init__(self, channels: int, heads: int, window: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(
            torch.empty((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(channels, 3 * channels, bias=qkv_bias)
        self.proj = nn.Linear(channels, channels)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        offset = torch.arange(window)
        y, x = (c.flatten() for c in torch.meshgrid(offset, offset, indexing='ij'))
        index = ((y[:, None] - y + window - 1) * (2 * window - 1)
                 + x[:, None] - x + window - 1)
        self.register_buffer('relative_position_index', index, persistent=False)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend within each window."""
        q, k, v = (t.unflatten(2, (self.heads, -1)).transpose(1, 2)
                   for t in self.qkv(x).chunk(3, 2))
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        bias = bias[None]
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(x.shape[0] // mask.shape[0], 1, 1, 1)
        attended = functional.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        # The copy is for ONNX export: kernels of attention differ in the strides of their result.
        attended = attended.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return self.proj(attended.flatten(2))


class MLP(nn.Module):
    """Two linear layers with GELU between them."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Transform the last dimension."""
        return self.fc2(functional.gelu(self.fc1(x)))


class SwinBlock(nn.Module):
    """
    Window attention, shifted or not, and an MLP; pre-norm residual branches.

    forward: (map [B, H, W, C], mask of the shifted map) to [B, H, W, C].
    """

    def __init__(self, channels: int, heads: int, window: int, shift: int, mlp_ratio: float,
                 qkv_bias: bool, drop_path: float) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels, heads, window, qkv_bias)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels, int(channels * mlp_ratio))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Refine the map."""
        height, width = x.shape[1:3]
        shifted = _pad_to_multiple(self.norm1(x), self.window)
        padded_height, padded_width = shifted.shape[1:3]
        if self.shift:
            shifted = shifted.roll((-self.shift, -self.shift), (1, 2))
        windows = partition_windows(shifted, self.window)
        windows = self.attn(windows, mask if self.shift else None)
        attended = merge_windows(windows, self.window, padded_height, padded_width)
        if self.shift:
            attended = attended.roll((self.shift, self.shift), (1, 2))
        x = x + self.drop_path(attended[:, :height, :width])
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """
    Halve the resolution: [B, H, W, C] to [B, ceil(H / 2), ceil(W / 2), 2 C].

    The four neighbours are concatenated in the order (0, 0), (1, 0), (0, 1), (1, 1) (row, column).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)
        self.norm = nn.LayerNorm(4 * channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Merge neighbours."""
        x = _pad_to_multiple(x, 2)
        merged = torch.cat([x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)], 3)
        return self.reduction(self.norm(merged))


class SwinStage(nn.Module):
    """
    Blocks at one resolution, every second one shifted by half a window.

    forward: [B, H, W, C] to the same shape; `downsample` leads to the next stage.
    """

    def __init__(self, channels: int, heads: int, window: int, mlp_ratio: float, qkv_bias: bool,
                 drop_path: Sequence[float], downsample: bool) -> None:
        super().__init__()
        self.window = window
        self.shift = window // 2
        self.blocks = nn.ModuleList(
            SwinBlock(channels, heads, window, self.shift * (index % 2), mlp_ratio, qkv_bias, rate)
            for index, rate in enumerate(drop_path))
        self.downsample = PatchMerging(channels) if downsample else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the blocks."""
        height, width = (size + -size % self.window for size in x.shape[1:3])
        mask = shifted_window_mask(height, width, self.window, self.shift, x.device)
        for block in self.blocks:
            x = block(x, mask)
        return x


class PatchEmbedding(nn.Module):
    """Embed 4 x 4 patches: image [B, 3, H, W] to [B, ceil(H / 4), ceil(W / 4), C]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, channels, 4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Embed the patches; an image that is no multiple of 4 is padded with zeros."""
        bottom, right = -image.shape[2] % 4, -image.shape[3] % 4
        if bottom or right:
            image = functional.pad(image, (0, right, 0, bottom))
        return self.norm(self.proj(image).permute(0, 2, 3, 1))


class SwinTransformer(nn.Module):
    """
    Swin backbone with a LayerNorm on each of its four outputs.

    forward: float32 [B, 3, H, W], any size, to a dict stride -> [B, C, H/stride, W/stride] for 4,
    8, 16, 32 (sizes round up).
    embed_dim: channels at stride 4, doubled by each stage; depths, heads: of the four stages;
    window: tokens on a window's side; drop_path: rate of the last block, growing from 0.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, embed_dim: int = 96, depths: Sequence[int] = (2, 2, 6, 2),
                 heads: Sequence[int] = (3, 6, 12, 24), window: int = 7, mlp_ratio: float = 4.0,
                 qkv_bias: bool = True, drop_path: float = 0.3) -> None:
        super().__init__()
        if len(depths) != 4 or len(heads) != 4:
            raise ValueError(f'Swin has four stages, not depths {depths} and heads {heads}')
        widths = [embed_dim << stage for stage in range(4)]
        for width, count in zip(widths, heads):
            if width % count:
                raise ValueError(f'{width} channels do not divide into {count} heads')
        self.channels = dict(zip(self.strides, widths))
        self.patch_embed = PatchEmbedding(embed_dim)
        last = max(1, sum(depths) - 1)
        rates = iter([drop_path * index / last for index in range(sum(depths))])
        self.layers = nn.ModuleList(
            SwinStage(widths[stage], heads[stage], window, mlp_ratio, qkv_bias,
                      [next(rates) for _ in range(depths[stage])], downsample=stage < 3)
            for stage in range(4))
        for stage, width in enumerate(widths):
            self.add_module(f'norm{stage}', nn.LayerNorm(width))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, image: torch.Tensor) -> dict[int, torch.Tensor]:
        """Compute the features."""
        x = self.patch_embed(image)
        features = {}
        for stage, stride in enumerate(self.strides):
            layer = self.layers[stage]
            x = layer(x)
            features[stride] = getattr(self, f'norm{stage}')(x).permute(0, 3, 1, 2).contiguous()
            if layer.downsample is not None:
                x = layer.downsample(x)
        return features

    def freeze(self, stages: int) -> None:
        """Stop training the patch embedding and the first `stages` stages."""
        if stages > 0:
            for part in (self.patch_embed, *self.layers[:stages]):
                part.requires_grad_(False)

    def load(self, path: str | Path) -> None:
        """
        Load pretrained weights: a Swin classifier in the published checkpoints' or timm's keys.

        The classifier's last norm and head are left out; the output norms, which a classifier
        does not have, keep their values.

        Raises ValueError when another weight is missing or left over, or a shape differs.
        """
        state = read_weights(path)
        if any(key.startswith('layers.3.downsample.') for key in state):
            # timm keeps the patch merging at the start of the next stage.
            state = {re.sub(r'^layers\.(\d)\.downsample',
                            lambda m: f'layers.{int(m.group(1)) - 1}.downsample', key): value
                     for key, value in state.items()}
        known = re.compile(r'norm\.|head\.|.*(relative_position_index|attn_mask)$')
        state = {key: value for key, value in state.items() if not known.match(key)}
        own = self.state_dict()
        missing = [key for key in own if key not in state and not re.match(r'norm\d\.', key)]
        extra = [key for key in state if key not in own]
        wrong = [f'{key} {tuple(value.shape)} instead of {tuple(own[key].shape)}'
                 for key, value in state.items() if key in own and value.shape != own[key].shape]
        if missing or extra or wrong:
            raise ValueError(f'{path} does not fit the backbone: missing {missing[:5]}, '
                             f'unexpected {extra[:5]}, shapes {wrong[:5]}')
        self.load_state_dict({**own, **state})
