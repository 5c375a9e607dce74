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
"""Position encodings."""

from __future__ import annotations

import math

import torch
from torch import nn


class SinePositionEncoding(nn.Module):
    """
    Two-dimensional sine position encoding, y half then x half, normalised to 2 pi.

    forward: feature [B, C, h, w] to [1, h * w, C].  Temperature 10000, eps 1e-6 (DETR).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = channels // 2

    def forward(self, feature: torch.Tensor) -> torch.Tensor:
        """Compute the encoding for the feature's grid."""
        height, width = feature.shape[-2:]
        axis = {'dtype': torch.float32, 'device': feature.device}
        y = torch.arange(1, height + 1, **axis) / (height + 1e-6) * (2 * math.pi)
        x = torch.arange(1, width + 1, **axis) / (width + 1e-6) * (2 * math.pi)
        index = torch.arange(self.half, **axis)
        period = 10000 ** (2 * torch.div(index, 2, rounding_mode='floor') / self.half)

        def interleave(position: torch.Tensor) -> torch.Tensor:
            angle = position[:, None] / period
            return torch.stack((angle[:, 0::2].sin(), angle[:, 1::2].cos()), 2).flatten(1)

        encoded_y = interleave(y)[:, None].expand(height, width, self.half)
        encoded_x = interleave(x)[None].expand(height, width, self.half)
        return torch.cat((encoded_y, encoded_x), 2).reshape(1, height * width, 2 * self.half)
