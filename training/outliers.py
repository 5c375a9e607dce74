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
"""Outlier supervision: fine-tune a part of a trained network on pasted objects (RbA 3.4)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from owseg_training.closed_set import ClosedSetTraining, Totals
from owseg_training.config import Config, ConfigError
from owseg_training.data.anomaly_mix import AnomalyMixStream
from owseg_training.data.datasets import COCO_ROAD_CATEGORIES, open_cutouts
from owseg_training.history import check_classes, class_names, load_start, record_start
from owseg_training.network import MaskClassifier, Prediction
from owseg_training.outlier_losses import (
    LabelledPixels, open_outlier_loss, outlier_head_loss, outlier_totals)
import torch
from torch.utils.data import Dataset

# Table 7 of RbA: what may be fine-tuned, beside single parts of the transformer decoder.
GROUPS = ('mlp_and_linear', 'transformer_decoder', 'pixel_decoder', 'all')
# Samples that give the statistics of a new outlier head's batch norm.
CALIBRATION_SAMPLES = 8


def _modules(network: MaskClassifier, name: str) -> list[torch.nn.Module]:
    decoder = network.transformer_decoder
    if name == 'mlp_and_linear':
        return [decoder.mask_embed, decoder.class_embed]
    if name == 'all':
        return [network]
    parts = dict(decoder.named_children()) | {
        'transformer_decoder': decoder, 'pixel_decoder': network.pixel_decoder}
    if network.outlier_head is not None:
        parts['outlier_head'] = network.outlier_head
    if network.region_head is not None:
        parts['region_head'] = network.region_head
    if network.metric_head is not None:
        parts['metric_head'] = network.metric_head
    if network.meta_head is not None:
        parts['meta_head'] = network.meta_head
    if name not in parts:
        raise ConfigError(f'outliers.trainable has no part {name!r}; it has '
                          f'{", ".join(dict.fromkeys((*GROUPS, *parts)))}')
    return [parts[name]]


def freeze_except(network: MaskClassifier, parts: list[str]) -> tuple[int, int]:
    """
    Train only these parts of a network (RbA, Table 7).

    parts: mlp_and_linear (mask_embed and class_embed), transformer_decoder, pixel_decoder, all
    (save for the backbone's freeze_stages), names of the transformer decoder's own parts
    ('mask_embed', 'class_embed', 'layers', ...), or outlier_head, region_head, metric_head and
    meta_head where there are such.
    Returns (trainable, all) parameter counts, the per-pixel auxiliary head left out.
    Raises ConfigError for a part that there is not.
    """
    modules = [module for name in parts for module in _modules(network, name)]
    network.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)
    network.backbone.freeze(network.config.freeze_stages)
    counted = [parameter for name, parameter in network.named_parameters()
               if not name.startswith('pixel_classifier')]
    return (sum(p.numel() for p in counted if p.requires_grad),
            sum(p.numel() for p in counted))


class OutlierTraining(ClosedSetTraining):
    """
    Fine-tuning of a closed-set run; folder and resuming as for ClosedSetTraining.

    start: folder of the closed-set run, or of a converted checkpoint; device: see
    distributed.join.
    The network's shape and the hidden classes are those of the start; everything else is the
    config's.
    Raises ConfigError when the start has other classes than the data set, or the configuration
    names a loss or a part that there is not.
    """

    def __init__(self, config: Config, folder: str | Path, start: str | Path,
                 device: str | None = None) -> None:
        self.loss = open_outlier_loss(config.outliers)
        self._start, self._names = load_start(start, config), class_names(start)
        config.stage = 'outliers'
        super().__init__(config, folder, device)
        if self.processes.first:
            record_start(start, self.folder)

    def _make_network(self, num_classes: int) -> MaskClassifier:
        check_classes(self._start.num_classes, self._names, self.data_set)
        parts = list(self.config.outliers.trainable)
        if self.loss.outlier_class:
            self._start.add_outlier_class()
        if self.loss.outlier_head:
            self._start.add_outlier_head(self._calibration_images())
            parts.append('outlier_head')
        self.trainable, self.parameters = freeze_except(self._start, parts)
        return self._start.train()

    def _calibration_images(self) -> torch.Tensor:
        stream = super()._make_stream(CALIBRATION_SAMPLES)
        return torch.stack([stream[index][0] for index in range(CALIBRATION_SAMPLES)])

    def _make_stream(self, length: int) -> Dataset:
        outliers, optimizer = self.config.outliers, self.config.optimizer
        objects = open_cutouts(
            outliers.cutouts, outliers.cutouts_split, root=self.config.data.root,
            categories=outliers.categories,
            exclude=COCO_ROAD_CATEGORIES if outliers.categories is None else ())
        order = np.random.default_rng((optimizer.seed, 3)).permutation(len(objects))
        pool = [objects.read(objects.items[i]) for i in order[:outliers.pool]]
        if not pool:
            raise ConfigError(f'outliers.cutouts {outliers.cutouts} leaves no object to paste')
        return AnomalyMixStream(self.data_set, self.config.data, optimizer.seed, length,
                                outliers, pool)

    def _totals(self, label: torch.Tensor) -> Totals:
        return {**super()._totals(label), **outlier_totals(label, self.network.num_classes)}

    def _extra_losses(self, image: torch.Tensor, prediction: Prediction, label: torch.Tensor,
                      totals: Totals) -> Totals:
        config, classes = self.config.outliers, self.network.num_classes
        losses = {}
        if self.loss.compute is not None:
            outputs = [(prediction.class_logits, prediction.mask_logits)]
            outputs += prediction.auxiliary if self.loss.deep else []
            losses = {f'outliers_{index}': config.weight * self.loss.compute(
                LabelledPixels(class_logits, mask_logits, label, classes, totals), config)
                for index, (class_logits, mask_logits) in enumerate(outputs)}
        if self.loss.outlier_head:
            head = outlier_head_loss(prediction.outlier_logits, label, classes, totals)
            losses['outlier_head'] = config.weight * config.densehybrid.head_weight * head
        return losses
