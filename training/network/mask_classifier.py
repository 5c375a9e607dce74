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
"""The mask classifier: backbone, pixel decoder, transformer decoder."""

from __future__ import annotations

from dataclasses import dataclass, field

from owseg_training.config import ConfigError, NetworkConfig
from owseg_training.network.backbone import build_backbone
from owseg_training.network.pixel_decoder import PIXEL_DECODERS
from owseg_training.network.transformer_decoder import TRANSFORMER_DECODERS
import torch
from torch import nn


@dataclass
class Prediction:
    """
    Output of the mask classifier for a batch.

    class_logits [B, N, K+1] (last column: no object), mask_logits [B, N, H/4, W/4],
    pixel_features [B, C, H/4, W/4]; auxiliary: (class_logits, mask_logits) of the earlier
    predictions for deep supervision; pixel_logits [B, K, H/4, W/4] of the per-pixel auxiliary
    head, in training only.
    """

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    pixel_features: torch.Tensor
    auxiliary: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    pixel_logits: torch.Tensor | None = None


class MaskClassifier(nn.Module):
    """
    Mask classification network (Mask2Former with RbA's single decoder layer, RbA A.1).

    forward: normalised RGB float32 [B, 3, H, W], H and W multiples of 32, to a Prediction.
    Raises ValueError for other sizes, and for a configuration of which no network can be made.
    config: the NetworkConfig that it was made of.
    """

    def __init__(self, config: NetworkConfig, num_classes: int) -> None:
        super().__init__()
        for kind, name, registry in (
                ('pixel decoder', config.pixel_decoder, PIXEL_DECODERS),
                ('transformer decoder', config.transformer_decoder, TRANSFORMER_DECODERS)):
            if name not in registry:
                raise ConfigError(f'unknown {kind} {name!r}; known: {", ".join(registry)}')
        self.config = config
        self.num_classes = num_classes
        self.backbone = build_backbone(
            config.backbone, config.pretrained, config.backbone_options)
        self.backbone.freeze(config.freeze_stages)
        self.pixel_decoder = PIXEL_DECODERS[config.pixel_decoder](self.backbone.channels, config)
        self.transformer_decoder = TRANSFORMER_DECODERS[config.transformer_decoder](
            config, num_classes)
        self.pixel_classifier = (
            nn.Conv2d(config.mask_dim, num_classes, 1) if config.pixel_classifier else None)

    def forward(self, image: torch.Tensor) -> Prediction:
        """Predict masks and classes."""
        if image.shape[-1] % 32 or image.shape[-2] % 32:
            raise ValueError(f'height and width must be multiples of 32, not '
                             f'{image.shape[-2]}x{image.shape[-1]}')
        pyramid, pixel_features = self.pixel_decoder(self.backbone(image))
        predictions = self.transformer_decoder(pyramid, pixel_features)
        class_logits, mask_logits = predictions[-1]
        pixel_logits = None
        if self.training and self.pixel_classifier is not None:
            pixel_logits = self.pixel_classifier(pixel_features)
        return Prediction(class_logits, mask_logits, pixel_features, predictions[:-1],
                          pixel_logits)
