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
import math

from owseg_training.config import ConfigError, NetworkConfig
from owseg_training.network.backbone import build_backbone
from owseg_training.network.frozen_clip import FROZEN_CLIP, FrozenClipHead
from owseg_training.network.meta_channels import MetaChannelHead
from owseg_training.network.metric_head import MetricHead
from owseg_training.network.pixel_decoder import PIXEL_DECODERS
from owseg_training.network.region_embedding import REGION_HEADS, RegionEmbeddings
from owseg_training.network.transformer_decoder import TRANSFORMER_DECODERS
import torch
from torch import nn


@dataclass
class Prediction:
    """
    Output of the mask classifier for a batch.

    class_logits [B, N, K+1] (last column: no object; with an outlier class [B, N, K+2] and its
    column before that), mask_logits [B, N, H/4, W/4], pixel_features [B, C, H/4, W/4];
    outlier_logits [B, 2, H/4, W/4] (inlier, outlier) of DenseHybrid's; embeddings: of the regions
    in a text space, where the network has a head for them. In training only: auxiliary,
    (class_logits, mask_logits) of the earlier predictions for deep supervision, and pixel_logits
    [B, K, H/4, W/4] of the per-pixel auxiliary head.
    Where classes are classified by text, class_logits are those of the loss in training, else
    logarithms of the ensemble's probabilities (see frozen_clip).
    """

    class_logits: torch.Tensor
    mask_logits: torch.Tensor
    pixel_features: torch.Tensor
    auxiliary: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    pixel_logits: torch.Tensor | None = None
    outlier_logits: torch.Tensor | None = None
    embeddings: RegionEmbeddings | None = None


class OutlierHead(nn.Sequential):
    """
    DenseHybrid's head D = Conv3x3(ReLU(BatchNorm(F))) on the pixel features (RbA eq 16).

    F [B, C, h, w] to logits [B, 2, h, w] of inlier and outlier.  The batch norm keeps the
    statistics of `calibrate`, as the backbones keep theirs, so that parts of a batch add up.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(inplace=True),
                         nn.Conv2d(channels, 2, 3, padding=1))

    def train(self, mode: bool = True) -> OutlierHead:
        """Set the mode; the batch norm stays in evaluation mode."""
        super().train(mode)
        self[0].eval()
        return self

    @torch.no_grad()
    def calibrate(self, features: torch.Tensor) -> None:
        """Take mean and variance of each channel from pixel features [B, C, h, w]."""
        values = features.transpose(0, 1).flatten(1)
        self[0].running_mean.copy_(values.mean(1))
        self[0].running_var.copy_(values.var(1))


class MaskClassifier(nn.Module):
    """
    Mask classification network (Mask2Former with RbA's single decoder layer, RbA A.1).

    forward: normalised RGB float32 [B, 3, H, W], H and W multiples of 32, to a Prediction.
    Raises ValueError for other sizes, and for a configuration of which no network can be made.
    config: the NetworkConfig that it was made of.  metric_head: what embeds means of the pixel
    features under regions, and meta_head, see meta_channels: where there are such; forward does
    without.
    """

    def __init__(self, config: NetworkConfig, num_classes: int) -> None:
        super().__init__()
        for kind, name, registry in (
                ('pixel decoder', config.pixel_decoder, PIXEL_DECODERS),
                ('transformer decoder', config.transformer_decoder, TRANSFORMER_DECODERS),
                ('region head', config.region_head, {'none', *REGION_HEADS, FROZEN_CLIP})):
            if name not in registry:
                raise ConfigError(f'unknown {kind} {name!r}; known: {", ".join(registry)}')
        self.config = config
        self.num_classes = num_classes
        self.backbone = build_backbone(
            config.backbone, config.pretrained, config.backbone_options)
        self.backbone.freeze(config.freeze_stages)
        self.pixel_decoder = PIXEL_DECODERS[config.pixel_decoder](self.backbone.channels, config)
        self.transformer_decoder = TRANSFORMER_DECODERS[config.transformer_decoder](
            # Where texts classify, a query itself has a say in the void alone.
            config, 0 if config.region_head == FROZEN_CLIP else num_classes + config.outlier_class)
        self.pixel_classifier = (
            nn.Conv2d(config.mask_dim, num_classes, 1) if config.pixel_classifier else None)
        self.outlier_head = OutlierHead(config.mask_dim) if config.outlier_head else None
        self.metric_head = (MetricHead(config.mask_dim, config.metric_dim, num_classes)
                            if config.metric_dim else None)
        self.meta_head = None
        if config.meta_channels:
            self._make_meta_head()
        self.region_head = None
        if config.region_head == FROZEN_CLIP:
            self.region_head = FrozenClipHead(self.backbone, config, num_classes)
        elif config.region_head != 'none':
            self.region_head = REGION_HEADS[config.region_head](self.backbone.channels, config)

    def add_region_head(self, kind: str, dim: int, hidden_dim: int) -> None:
        """Add a head that embeds regions in a text space of dim numbers, where there is none."""
        if self.region_head is not None:
            return
        config = self.config
        config.region_head, config.region_dim, config.region_hidden_dim = kind, dim, hidden_dim
        self.region_head = REGION_HEADS[kind](self.backbone.channels, config)

    def add_metric_head(self, dim: int) -> None:
        """Add a head that embeds regions in dim numbers, where there is none."""
        if self.metric_head is None:
            self.config.metric_dim = dim
            self.metric_head = MetricHead(self.config.mask_dim, dim, self.num_classes)

    def add_meta_head(self, channels: int, activation: str) -> None:
        """
        Add meta channels where there are none.

        Raises ConfigError for an unknown activation and where there is no pixel_classifier.
        """
        if self.meta_head is None:
            self.config.meta_channels, self.config.meta_activation = channels, activation
            self._make_meta_head()

    def _make_meta_head(self) -> None:
        if self.pixel_classifier is None:
            raise ConfigError('meta channels are made of the logits of the per-pixel head; train '
                              'the network with network.pixel_classifier: true')
        self.meta_head = MetaChannelHead(
            self.num_classes, self.config.meta_channels, self.config.meta_activation)

    def meta_channels(self, pixel_features: torch.Tensor) -> torch.Tensor:
        """
        Return known classes and meta channels, float [B, N + K, h, w] in 0..1 (RAML 3.3).

        They are made of the logits of the per-pixel head: that is what the prediction of G is in
        the released network, a 1x1 convolution of the pixel features [B, C, h, w].
        """
        return self.meta_head(self.pixel_classifier(pixel_features))

    def add_outlier_class(self) -> None:
        """
        Extend the class head by the outlier class; the logits of all other columns stay.

        The new row is that of no-object with a prior of one query in N: a query without a class
        is nothing before it is an outlier.
        """
        if self.config.outlier_class:
            return
        if isinstance(self.region_head, FrozenClipHead):
            raise ConfigError(f'region_head {FROZEN_CLIP} has no outlier class; use another loss '
                              'than uno')
        old = self.transformer_decoder.class_embed
        new = nn.Linear(old.in_features, old.out_features + 1).to(old.weight)
        with torch.no_grad():
            new.weight.copy_(torch.cat((old.weight, old.weight[-1:])))
            new.bias.copy_(torch.cat((old.bias, old.bias[-1:])))
            new.bias[-2] -= math.log(self.config.queries)
        self.transformer_decoder.class_embed = new
        self.config.outlier_class = True

    def add_outlier_head(self, images: torch.Tensor) -> None:
        """Add DenseHybrid's head, calibrated on normalised images [B, 3, H, W]."""
        if self.config.outlier_head:
            return
        training = self.training
        self.eval()
        with torch.inference_mode():
            features = torch.cat([self(image[None]).pixel_features for image in images])
        self.outlier_head = OutlierHead(self.config.mask_dim).to(images.device)
        self.outlier_head.calibrate(features)
        self.config.outlier_head = True
        self.train(training)

    def forward(self, image: torch.Tensor) -> Prediction:
        """Predict masks and classes."""
        if image.shape[-1] % 32 or image.shape[-2] % 32:
            raise ValueError(f'height and width must be multiples of 32, not '
                             f'{image.shape[-2]}x{image.shape[-1]}')
        features = self.backbone(image)
        pyramid, pixel_features = self.pixel_decoder(features)
        predictions = self.transformer_decoder(pyramid, pixel_features)
        embeddings = None
        if isinstance(self.region_head, FrozenClipHead):
            predictions, embeddings = self.region_head.classify(
                self.backbone, features, pixel_features, predictions)
        class_logits, mask_logits = predictions[-1]
        pixel_logits = None
        if self.training and self.pixel_classifier is not None:
            pixel_logits = self.pixel_classifier(pixel_features)
        outlier_logits = None if self.outlier_head is None else self.outlier_head(pixel_features)
        if self.region_head is not None and embeddings is None:
            embeddings = self.region_head(features, pixel_features, mask_logits)
        return Prediction(class_logits, mask_logits, pixel_features, predictions[:-1],
                          pixel_logits, outlier_logits, embeddings)
