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

"""Meta channels: an over-segmentation of what no known class explains (RAML 3.3)."""

from __future__ import annotations

from owseg_training.config import ConfigError
import torch
from torch import nn

ACTIVATIONS = ('sigmoid', 'softmax')


class MetaChannelHead(nn.Module):
    """
    One 1x1 convolution from the N known logits to N + K channels.

    The first N channels are the known classes again, the last K the meta channels.
    activation: sigmoid as in the released code, or softmax as in the paper's text, with which the
    channels add up to 1 everywhere and the reconstruction loss (RAML eq 9) is always 0.
    Weights start as kaiming_normal, as in the released code.
    Raises ConfigError for an unknown activation.
    """

    def __init__(self, known: int, meta: int = 4, activation: str = 'sigmoid') -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f'unknown activation {activation!r}; known: {", ".join(ACTIVATIONS)}')
        self.known = known
        self.meta = meta
        self.activation = activation
        self.mix = nn.Conv2d(known, known + meta, 1)
        nn.init.kaiming_normal_(self.mix.weight)

    def forward(self, logits: torch.Tensor) -> torch.Tensor:
        """Return channels C [B, N + K, h, w], 0..1, of known logits [B, N, h, w]."""
        mixed = self.mix(logits)
        return mixed.sigmoid() if self.activation == 'sigmoid' else mixed.softmax(1)
