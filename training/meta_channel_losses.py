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
The losses of meta channels (RAML eqs 6 to 9), as printed and as released.

channels are C, float [B, N + K, h, w] in 0..1, the K meta channels last. Readings: 'code' takes
means where 'paper' takes the sums of the equations, so that one weight fits every picture size.
"""

from __future__ import annotations

from dataclasses import dataclass

from owseg_training.config import ConfigError
import torch
from torch.nn import functional

READINGS = ('code', 'paper')
VOID = 255
_SMALLEST = 1e-6


def dice_loss(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """
    Return 1 - (sum pt + 1) / (sum (p^2 + t^2) + 1) over the last axis, as released.

    Without the usual factor 2: two equal masks of any size have a loss of about 0.5, not 0.
    """
    overlap = (first * second).sum(-1)
    return 1 - (overlap + 1) / ((first ** 2).sum(-1) + (second ** 2).sum(-1) + 1)


def one_vs_all_loss(channels: torch.Tensor, label: torch.Tensor, known: int) -> torch.Tensor:
    """
    Return the mean over known classes of dice and binary cross-entropy; the released code only.

    label: int [B, h, w]; pixels of no known class, void among them, are negative for every class.
    """
    pixels = channels[:, :known].flatten(2)
    target = (label.long()[:, None] == torch.arange(known, device=label.device)[
        None, :, None, None]).flatten(2).to(pixels)
    return dice_loss(pixels, target).mean() + functional.binary_cross_entropy(pixels, target)


def intersection_loss(channels: torch.Tensor, reading: str = 'code') -> torch.Tensor:
    """
    Return how much channels overlap: 1 - dice loss over their pairs (RAML eq 7).

    paper: the sum over i < j; code: the mean over i != j; both are means over the pictures.
    """
    pixels = channels.flatten(2)
    squares = (pixels ** 2).sum(-1)
    overlap = pixels @ pixels.transpose(1, 2)
    # 1 - dice_loss of every pair at once.
    shared = (overlap + 1) / (squares[:, :, None] + squares[:, None] + 1)
    first, second = torch.triu_indices(pixels.shape[1], pixels.shape[1], 1, device=pixels.device)
    pairs = shared[:, first, second]
    return pairs.sum(1).mean() if reading == 'paper' else pairs.mean()


def split_loss(meta: torch.Tensor, eta: float = 0.02, reading: str = 'code') -> torch.Tensor:
    """
    Return the penalty on meta channels [B, K, h, w] that are hardly used (RAML eq 8).

    paper: -log(min(eta sum_jk C, 1)), summed over the channels; printed with max, which would be
    constant for unused channels and reward what it is to punish.  code: -log(min(mean C / eta,
    1)), mean over the channels: a penalty while a channel has less than eta of the picture.
    """
    if reading == 'paper':
        used = eta * meta.flatten(2).sum(-1)
        return -used.clamp(_SMALLEST, 1).log().sum(1).mean()
    used = meta.flatten(2).mean(-1) / eta
    return -used.clamp(_SMALLEST, 1).log().mean()


def reconstruction_loss(channels: torch.Tensor, image: torch.Tensor,
                        reading: str = 'code') -> torch.Tensor:
    """
    Return how far the channels are from explaining the picture, |X (sum_i C_i - 1)|^2 (RAML eq 9).

    image: normalised [B, 3, h, w], of the size of the channels.  paper: the sum over pixels and
    colours, mean over the pictures; code: the mean of all.
    """
    error = (image * (channels.sum(1, keepdim=True) - 1)) ** 2
    return error.flatten(1).sum(1).mean() if reading == 'paper' else error.mean()


@dataclass(frozen=True)
class MetaChannelLoss:
    """
    All that eq 6 adds to the loss of the segmentation, weighted.

    The weights are those of RAML C.1; one_vs_all of the released code, 0 for the paper's eq 6.
    reading: 'code' or 'paper' for the equations, see above.
    void: negative, unlabelled pixels are of no known class and to be explained by meta channels,
    as in the released code, where they show the novel classes; or ignore, they have no part.
    Raises ConfigError for another reading or void.
    """

    known: int
    one_vs_all: float = 0.1
    intersection: float = 0.1
    split: float = 0.1
    reconstruction: float = 0.01
    eta: float = 0.02
    reading: str = 'code'
    void: str = 'negative'

    def __post_init__(self) -> None:
        if self.void not in ('negative', 'ignore'):
            raise ConfigError(f"meta.void must be 'negative' or 'ignore', not {self.void!r}")
        if self.reading not in READINGS:
            raise ConfigError(
                f'unknown reading {self.reading!r}; known: {", ".join(READINGS)}')

    def __call__(self, channels: torch.Tensor, image: torch.Tensor,
                 label: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Return the weighted losses by name.

        channels [B, N + K, h, w], image [B, 3, H, W], label uint8 [B, H, W]; picture and label
        are reduced to the size of the channels, by area and to the nearest pixel.
        """
        size = tuple(channels.shape[-2:])
        small = functional.interpolate(label[:, None].float(), size=size,
                                       mode='nearest-exact')[:, 0].long()
        image = functional.interpolate(image, size=size, mode='area')
        if self.void == 'ignore':
            # No channel is active there, and there is nothing to explain.
            labelled = (small != VOID).float()[:, None]
            channels, image = channels * labelled, image * labelled
        losses = {}
        if self.one_vs_all:
            losses['one_vs_all'] = self.one_vs_all * one_vs_all_loss(channels, small, self.known)
        losses['intersection'] = self.intersection * intersection_loss(channels, self.reading)
        losses['split'] = self.split * split_loss(channels[:, self.known:], self.eta, self.reading)
        losses['reconstruction'] = self.reconstruction * reconstruction_loss(
            channels, image, self.reading)
        return losses
