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
"""Outlier supervision: fine-tune a small part of a trained network with RbA's loss (RbA 3.4)."""

from __future__ import annotations

from pathlib import Path
import shutil

import numpy as np
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.config import Config, ConfigError
from owseg_training.data.anomaly_mix import AnomalyMixStream, OUTLIER
from owseg_training.data.datasets import CamVid, open_cutouts
from owseg_training.losses import rba_hinge
from owseg_training.network import MaskClassifier
import torch
from torch.utils.data import Dataset


def freeze_except(network: MaskClassifier, parts: list[str]) -> tuple[int, int]:
    """
    Train only these parts of the transformer decoder ('mask_embed', 'class_embed', ...).

    Returns (trainable, all) parameter counts, the per-pixel auxiliary head left out.
    Raises ConfigError for a part that the decoder does not have.
    """
    network.requires_grad_(False)
    decoder = network.transformer_decoder
    for part in parts:
        module = getattr(decoder, part, None)
        if not isinstance(module, torch.nn.Module):
            names = ', '.join(name for name, _ in decoder.named_children())
            raise ConfigError(f'the transformer decoder has no part {part!r}; it has {names}')
        module.requires_grad_(True)
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    total = sum(p.numel() for name, p in network.named_parameters()
                if not name.startswith('pixel_classifier'))
    return trainable, total


class OutlierTraining(ClosedSetTraining):
    """
    Fine-tuning of a closed-set run; folder and resuming as for ClosedSetTraining.

    start: folder of the closed-set run; cutouts: name of the cut-out set ('cutouts', 'coco').
    The network's shape is that of the start; everything else is the config's.
    """

    def __init__(self, config: Config, folder: str | Path, start: str | Path,
                 cutouts: str = 'cutouts') -> None:
        self._start, start_config = load_network(start)
        config.network = start_config.network
        config.stage = 'outliers'
        self._cutouts = cutouts
        super().__init__(config, folder)
        # What was before belongs to the history of the result.
        for name in ('config.yaml', 'log.jsonl'):
            shutil.copyfile(Path(start) / name, self.folder / f'start_{name}')

    def _make_network(self, num_classes: int) -> MaskClassifier:
        self.trainable, self.parameters = freeze_except(
            self._start, self.config.outliers.trainable)
        return self._start.train()

    def _make_stream(self, length: int) -> Dataset:
        outliers, optimizer = self.config.outliers, self.config.optimizer
        objects = open_cutouts(self._cutouts, root=self.config.data.root)
        order = np.random.default_rng((optimizer.seed, 3)).permutation(len(objects))
        pool = [objects.read(objects.items[i]) for i in order[:outliers.pool]]
        items = CamVid('train', self.config.data.root).items
        return AnomalyMixStream(items, self.config.data, optimizer.seed, length, outliers, pool)

    def _losses(self, image: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        prediction = self.network(image)
        losses = self.criterion(prediction, label)
        outlier = label == OUTLIER
        outputs = [(prediction.class_logits, prediction.mask_logits), *prediction.auxiliary]
        config = self.config.outliers
        for index, (class_logits, mask_logits) in enumerate(outputs):
            losses[f'rba_{index}'] = config.weight * rba_hinge(
                class_logits, mask_logits, outlier, config.alpha, config.reduction)
        return losses
