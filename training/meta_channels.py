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

"""Training of meta channels (RAML 3.3, eq 6), the first half of MCA; see mca for the second."""

from __future__ import annotations

from pathlib import Path
import shutil

from owseg_training.class_texts import TEXT_SPACE
from owseg_training.closed_set import ClosedSetTraining, Totals
from owseg_training.config import Config
from owseg_training.history import check_classes, class_names, load_start, record_start
from owseg_training.meta_channel_losses import MetaChannelLoss
from owseg_training.network import MaskClassifier, Prediction
from owseg_training.outliers import freeze_except
from owseg_training.prototypes import KNOWN_PROTOTYPES
import torch
from torch import nn


class NoSegmentationLoss(nn.Module):
    """Eq 6 without L_seg, which is constant where all but the meta channels is frozen."""

    def totals(self, label: torch.Tensor, queries: int) -> Totals:
        """Return nothing to add up."""
        return {}

    def forward(self, prediction: Prediction, label: torch.Tensor, totals: Totals,
                seeds: list[int]) -> Totals:
        """Return no loss."""
        return {}


class MetaChannelTraining(ClosedSetTraining):
    """
    Training of a network's meta channels; folder and resuming as for ClosedSetTraining.

    start: folder of a run with a per-pixel head; its network gets meta channels where it has
    none.  With a trainable of meta_head alone all else stays exactly as it is; with others, the
    set loss is L_seg of eq 6, and a metric head of the start has to be trained again.
    frozen: whether only the meta channels learn.
    Raises ConfigError when the start has other classes than the data set or no per-pixel head, or
    a part to train is not there.
    """

    def __init__(self, config: Config, folder: str | Path, start: str | Path,
                 device: str | None = None) -> None:
        self._start, self._names = load_start(start, config), class_names(start)
        config.stage = 'mca'
        self.frozen = set(config.meta.trainable) == {'meta_head'}
        super().__init__(config, folder, device)
        if self.processes.first:
            record_start(start, self.folder)
            for name in (TEXT_SPACE, *((KNOWN_PROTOTYPES,) if self.frozen else ())):
                if (Path(start) / name).is_file():
                    shutil.copyfile(Path(start) / name, self.folder / name)

    def _make_network(self, num_classes: int) -> MaskClassifier:
        network, meta = self._start, self.config.meta
        check_classes(network.num_classes, self._names, self.data_set)
        network.add_meta_head(meta.channels, meta.activation)
        self.meta_loss = MetaChannelLoss(num_classes, meta.one_vs_all, meta.intersection,
                                         meta.split, meta.reconstruction, meta.eta, meta.reading,
                                         meta.void)
        self.trainable, self.parameters = freeze_except(network, meta.trainable)
        return network.train()

    def _make_criterion(self, num_classes: int) -> nn.Module:
        return NoSegmentationLoss() if self.frozen else super()._make_criterion(num_classes)

    def _totals(self, label: torch.Tensor) -> Totals:
        images = torch.tensor(float(len(label)), device=label.device)
        return {**super()._totals(label), 'images': images}

    def _extra_losses(self, image: torch.Tensor, prediction: Prediction, label: torch.Tensor,
                      totals: Totals) -> Totals:
        channels = self.network.meta_channels(prediction.pixel_features.float())
        share = len(label) / totals['images']
        return {name: share * value
                for name, value in self.meta_loss(channels, image, label).items()}

    def _train_step(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        if self.frozen:
            # The features must be those that the robot has: no stochastic depth.
            self.network.eval()
        return super()._train_step(parts)
