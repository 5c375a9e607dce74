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
Pixel decoders by name: backbone features to multi-scale features and per-pixel features F.

A pixel decoder is made of (channels of the backbone by stride, NetworkConfig) and called with the
features by stride; it returns a dict stride -> [B, hidden_dim, H/s, W/s] of its strides and
F [B, mask_dim, H/4, W/4].
"""

from __future__ import annotations

from owseg_training.config import NetworkConfig
from owseg_training.network.msdeform_pixel_decoder import MSDeformPixelDecoder
import torch
from torch import nn
from torch.nn import functional


def _separable(channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False),
        nn.Conv2d(channels, channels, 1, bias=False),
        nn.GroupNorm(32, channels),
        nn.ReLU(inplace=True))


class FPNPixelDecoder(nn.Module):
    """
    A light feature pyramid with separable convolutions, for small machines.

    forward: dict stride -> [B, C_s, H/s, W/s] to (dict stride -> [B, hidden_dim, H/s, W/s],
    pixel features F [B, mask_dim, H/4, W/4]).
    Upsampling is bilinear with align_corners=False, as in Mask2Former's pixel decoders.
    """

    def __init__(self, channels: dict[int, int], config: NetworkConfig) -> None:
        super().__init__()
        hidden_dim = config.hidden_dim
        self.strides = sorted(channels)
        self.lateral = nn.ModuleDict({
            str(s): nn.Sequential(
                nn.Conv2d(channels[s], hidden_dim, 1, bias=False), nn.GroupNorm(32, hidden_dim))
            for s in self.strides})
        self.output = nn.ModuleDict({str(s): _separable(hidden_dim) for s in self.strides})
        self.context = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU(inplace=True))
        self.mask_features = nn.Conv2d(hidden_dim, config.mask_dim, 1)

    def forward(self, features: dict[int, torch.Tensor],
                ) -> tuple[dict[int, torch.Tensor], torch.Tensor]:
        """Merge from coarse to fine."""
        pyramid: dict[int, torch.Tensor] = {}
        top = None
        for stride in reversed(self.strides):
            current = self.lateral[str(stride)](features[stride])
            if top is None:
                current = current + self.context(current.mean((2, 3)))[:, :, None, None]
            else:
                current = current + functional.interpolate(
                    top, size=current.shape[-2:], mode='bilinear', align_corners=False)
            top = self.output[str(stride)](current)
            pyramid[stride] = top
        return pyramid, self.mask_features(top)


PIXEL_DECODERS = {
    'fpn': FPNPixelDecoder,
    'msdeform': MSDeformPixelDecoder,
}
