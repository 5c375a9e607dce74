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

"""Region-aware metric learning (RAML): regions embedded so that classes can be taught."""

from __future__ import annotations

from pathlib import Path
import shutil

from owseg_ros.bundle import load_bundle, MANIFEST
from owseg_training.bundle_network import BUNDLE, BundleNetwork
from owseg_training.circle_loss import circle_loss
from owseg_training.class_regions import class_masks
from owseg_training.class_texts import TEXT_SPACE
from owseg_training.closed_set import ClosedSetTraining, Totals
from owseg_training.config import Config, ConfigError, MetricConfig
from owseg_training.data.hidden import open_split
from owseg_training.history import check_classes, class_names, load_start, record_start
from owseg_training.network import MaskClassifier, Prediction
from owseg_training.network.metric_head import drop_blocks, MetricHead, region_means
from owseg_training.outliers import freeze_except
from owseg_training.prototypes import known_prototypes, write_known_prototypes
import torch
from torch import nn
from torch.nn import functional


class MetricCriterion(nn.Module):
    """
    The losses of a batch's regions: Circle loss (RAML eq 16) and cross-entropy, as configured.

    Regions are the classes of each label, whole, at the size of the pixel features; each is seen
    in several DropBlock views, or, where the unit is a pixel, in as many of its pixels.  Pairs
    are those of a part of a batch: accumulation and several processes compare fewer at once.
    Raises ConfigError for an unknown unit.
    """

    def __init__(self, config: MetricConfig, head: MetricHead) -> None:
        super().__init__()
        if config.unit not in ('region', 'pixel'):
            raise ConfigError(f"metric.unit must be 'region' or 'pixel', not {config.unit!r}")
        self.config = config
        self.head = head

    def totals(self, label: torch.Tensor, queries: int) -> Totals:
        """Return the number of images, which the processes of a run add up."""
        return {'images': torch.tensor(float(len(label)), device=label.device)}

    def forward(self, prediction: Prediction, label: torch.Tensor, totals: Totals,
                seeds: list[int]) -> Totals:
        """Return the weighted losses by name; this part's share of the whole batch."""
        config = self.config
        means, ids = [], []
        for features, own, seed in zip(prediction.pixel_features.float(), label, seeds):
            found, masks = class_masks(own, tuple(features.shape[-2:]),
                                       self.head.classifier.out_features, config.min_area)
            means.append(self._views(features, masks, torch.Generator().manual_seed(seed)))
            ids.append(found.repeat(config.views))
        embeddings, logits = self.head.embed_and_classify(torch.cat(means))
        classes = torch.cat(ids)
        share = len(label) / totals['images']
        losses = {'circle': config.circle_weight * share * circle_loss(
            embeddings, classes, config.margin, config.gamma, config.self_paced)}
        if config.class_weight:
            losses['classes'] = config.class_weight * share * functional.cross_entropy(
                logits, classes, reduction='sum') / max(1, len(classes))
        return losses

    def _views(self, features: torch.Tensor, masks: torch.Tensor,
               generator: torch.Generator) -> torch.Tensor:
        """Return features of each view of regions, [views * R, C], all regions by turns."""
        config = self.config
        if config.unit == 'region':
            return region_means(features, drop_blocks(
                masks.repeat(config.views, 1, 1), config.drop_probability, config.block,
                generator))
        places = [mask.flatten().nonzero().flatten() for mask in masks]
        chosen = [own[torch.randint(len(own), (config.views,), generator=generator)]
                  for own in places]
        if not chosen:
            return features.new_empty((0, len(features)))
        return features.flatten(1).T[torch.stack(chosen, 1).flatten()]


class MetricTraining(ClosedSetTraining):
    """
    Training of the metric head alone; folder and resuming as for ClosedSetTraining.

    start: folder of a run; its network gets a metric head where it has none, all else stays
    exactly as it is and runs in evaluation mode.  Or folder of a bundle, whose network is run by
    ONNX Runtime; the run keeps a copy of it, to which export adds the head.  At the end the
    prototypes of the known classes go to known_prototypes.npz, see prototypes.known_prototypes.
    Raises ConfigError when the start has other classes than the data set, or is a bundle of which
    BundleNetwork cannot be made, or of another size than the data.
    """

    def __init__(self, config: Config, folder: str | Path, start: str | Path,
                 device: str | None = None) -> None:
        config.stage = 'metric'
        if (Path(start) / MANIFEST).is_file():
            self._start = BundleNetwork(load_bundle(start))
            self._start.check_size(config.data)
            self._names = self._start.bundle.class_names
        else:
            self._start, self._names = load_start(start, config), class_names(start)
        super().__init__(config, folder, device)
        if self.processes.first:
            self._keep_start(start)

    def _keep_start(self, start: str | Path) -> None:
        if isinstance(self._start, BundleNetwork):
            shutil.copytree(start, self.folder / BUNDLE, dirs_exist_ok=True)
        else:
            record_start(start, self.folder)
            if (Path(start) / TEXT_SPACE).is_file():
                shutil.copyfile(Path(start) / TEXT_SPACE, self.folder / TEXT_SPACE)

    def _make_network(self, num_classes: int) -> MaskClassifier | BundleNetwork:
        network = self._start
        check_classes(network.num_classes, self._names, self.data_set)
        network.add_metric_head(self.config.metric.dim)
        if isinstance(network, BundleNetwork):
            self.parameters = sum(p.numel() for p in network.parameters())
        else:
            _, self.parameters = freeze_except(network, ['metric_head'])
        if not self.config.metric.class_weight:
            network.metric_head.classifier.requires_grad_(False)
        self.trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
        return network

    def _make_criterion(self, num_classes: int) -> nn.Module:
        return MetricCriterion(self.config.metric, self.network.metric_head)

    def _train_step(self, parts: list[tuple[torch.Tensor, torch.Tensor]]) -> dict[str, float]:
        # The features must be those that the robot has: no stochastic depth.
        self.network.eval()
        return super()._train_step(parts)

    def run(self, checkpoint_seconds: float = 120.0, validate_every: int | None = None,
            log_every: int = 10, report: bool = True) -> None:
        """Train to the end of the schedule, then write the prototypes of the known classes."""
        super().run(checkpoint_seconds, validate_every, log_every, report)
        if self.processes.first:
            data_set = open_split(self.config.data, 'train')
            rows = known_prototypes(self.average, data_set, self.config)
            write_known_prototypes(self.folder, rows, [c.name for c in data_set.classes])
