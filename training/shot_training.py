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
Fine-tuning on a few pictures of new classes: what prototypes are compared with (RAML 4.2).

FT fine-tunes the network with the shots alone.  PLM, the pseudo-label method of Cen et al. (ICCV
2021), keeps the backbone and lets a new head learn, with what the old network sees in the shots
as the labels of all else.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from owseg_training.closed_set import predict_scores
from owseg_training.config import Config, ConfigError
from owseg_training.data.augment import augment
from owseg_training.data.datasets import DataSet, VOID
from owseg_training.data.stream import ClosedSetStream, normalize
from owseg_training.history import record_start
from owseg_training.network import MaskClassifier
from owseg_training.outliers import freeze_except
from owseg_training.transfer import ContinuedTraining
import torch
from torch.utils.data import Dataset

# Both heads of the network, as the new branch of PLM has a decoder of its own.
HEADS = ('pixel_decoder', 'transformer_decoder')
# So many views of a picture are tried for one that shows the class.
TRIES = 8


class ShotStream(ClosedSetStream):
    """
    Augmented views of labelled pictures that are in memory; otherwise as ClosedSetStream.

    pictures: (RGB uint8 [H, W, 3], label uint8 [H, W]) each.  Views without any labelled pixel
    are drawn again, a few times.
    """

    def __init__(self, pictures: Sequence[tuple[np.ndarray, np.ndarray]], data_set: DataSet,
                 config: Config, length: int) -> None:
        super().__init__(data_set, config.data, config.optimizer.seed, length)
        self.items = tuple(pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        if not 0 <= index < self.length:
            raise IndexError(index)
        rng = np.random.default_rng((self.seed, 2, index))
        picture = self._pick(index)
        for _ in range(TRIES):
            image, label = augment(*picture, self.config.size, self.config.scale,
                                   self.config.aspect, rng)
            if (label != VOID).any():
                break
        return normalize(image), torch.from_numpy(label)


class ShotTraining(ContinuedTraining):
    """
    Fine-tuning of a run on the pictures of config.shots; folder and resuming as always.

    start: folder of a run that knows all classes of the data set but the new ones, which
    config.data.hidden leaves in.  A picture shows one new class, all else in it is as
    config.shots.labels has it.
    Raises ConfigError where a class or a picture is not there, or for other labels.
    """

    def __init__(self, config: Config, folder: str | Path, start: str | Path,
                 device: str | None = None) -> None:
        if config.shots.labels not in ('void', 'pseudo'):
            raise ConfigError("shots.labels must be 'void' or 'pseudo', not "
                              f'{config.shots.labels!r}')
        config.stage = 'shots'
        super().__init__(config, folder, start, device)
        self.pictures = self._read_pictures()
        if self.processes.first:
            record_start(start, self.folder)

    def _make_network(self, num_classes: int) -> MaskClassifier:
        network = super()._make_network(num_classes)
        freeze_except(network, self.config.shots.trainable)
        return network

    def _read_pictures(self) -> list[tuple[np.ndarray, np.ndarray]]:
        names = [c.name for c in self.data_set.classes]
        items = {item.name: item for item in self.data_set.items}
        found = []
        for name, pictures in self.config.shots.pictures.items():
            if name not in names:
                raise ConfigError(f'shots.pictures: {self.data_set.title} has no class {name!r}; '
                                  f'it has {", ".join(names)}')
            for picture in pictures:
                if picture not in items:
                    raise ConfigError(f'shots.pictures: {self.data_set.title} has no picture '
                                      f'{picture!r}')
                image, label = self.data_set.read(items[picture])
                found.append((image, self._shot_label(image, label, names.index(name))))
        if not found:
            raise ConfigError('shots.pictures names no picture to learn from')
        return found

    def _shot_label(self, image: np.ndarray, label: np.ndarray, index: int) -> np.ndarray:
        if self.config.shots.labels == 'void':
            other = np.full_like(label, VOID)
        else:
            names = [c.name for c in self.data_set.classes]
            known = np.array([names.index(name) for name in self._source_classes], np.uint8)
            scores = predict_scores(self._source.eval(), image, self.config)
            other = known[scores.argmax(0).cpu().numpy()]
        return np.where(label == index, np.uint8(index), other)

    def _make_stream(self, length: int) -> Dataset:
        return ShotStream(self.pictures, self.data_set, self.config, length)
