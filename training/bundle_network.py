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
"""The network of a bundle in training: run by ONNX Runtime as on the robot, and a head on it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.engine.onnx import open_session, PROVIDERS
from owseg_ros.engine.subgraph import subgraph
from owseg_training.config import ConfigError, DataConfig
from owseg_training.data.stream import MEAN, STD
from owseg_training.network import Prediction
from owseg_training.network.metric_head import MetricHead
import torch
from torch import nn

# Where a run keeps the bundle that it started from.
BUNDLE = 'bundle'
_OUTPUTS = ('class_logits', 'mask_logits', 'pixel_features')


class BundleNetwork(nn.Module):
    """
    A network whose weights are only there as ONNX, with a metric head that can learn.

    forward: normalised RGB float32 [B, 3, H, W] of the size of the bundle's input, to a
    Prediction without gradients.  num_classes: of the bundle; metric_head: the only parameters,
    None until it is added.
    Raises ConfigError for a bundle without pixel features, with a metric head already, or whose
    input is normalised otherwise than the training data.
    """

    def __init__(self, bundle: Bundle) -> None:
        super().__init__()
        if bundle.novelty is not None:
            raise ConfigError(f'{bundle.name} has a metric head already; start from the bundle '
                              'without it')
        missing = [name for name in _OUTPUTS if not bundle.outputs.get(name)]
        if missing:
            raise ConfigError(f'{bundle.name} has no output {missing[0]}, which a metric head '
                              'needs; export it again (owseg-train export)')
        if not np.allclose((bundle.input.mean, bundle.input.std), (MEAN, STD)):
            raise ConfigError(f'{bundle.name} normalises pictures with mean {bundle.input.mean} '
                              f'and std {bundle.input.std}; the data is made for {MEAN} and {STD}')
        self.bundle = bundle
        self.num_classes = bundle.num_classes
        part, _ = subgraph(bundle.network.read_bytes(),
                           [bundle.outputs[name] for name in _OUTPUTS])
        self._session = open_session(part, [PROVIDERS['cpu']], torch.get_num_threads())
        batch, self.channels = (
            self._session.get_inputs()[0].shape[0],
            next(entry.shape[1] for entry in self._session.get_outputs()
                 if entry.name == bundle.outputs['pixel_features']))
        self._batch = batch if isinstance(batch, int) else 0
        self.metric_head: MetricHead | None = None

    def add_metric_head(self, dim: int) -> None:
        """Add a head that embeds regions in dim numbers."""
        self.metric_head = MetricHead(self.channels, dim, self.num_classes)

    def check_size(self, data: DataConfig) -> None:
        """Raise ConfigError where the data is not of the size of the bundle's input."""
        size = (self.bundle.input.width, self.bundle.input.height)
        for found in filter(None, (data.size, data.validation_size)):
            if tuple(found) != size:
                raise ConfigError(f'{self.bundle.name} takes {size[0]}x{size[1]} and the recipe '
                                  f'has {found[0]}x{found[1]}; set data.size')

    def forward(self, image: torch.Tensor) -> Prediction:
        """Run the network; the same numbers as the robot's engine onnx gives."""
        batch = np.ascontiguousarray(image.detach().cpu().numpy(), np.float32)
        size = self._batch or len(batch)
        parts = []
        for start in range(0, len(batch), size):
            part = batch[start:start + size]
            filled = np.concatenate([part, np.zeros((size - len(part), *part.shape[1:]),
                                                    np.float32)])
            arrays = self._session.run([self.bundle.outputs[name] for name in _OUTPUTS],
                                       {self.bundle.input.name: filled})
            parts.append([array[:len(part)] for array in arrays])
        return Prediction(*(torch.from_numpy(np.concatenate(arrays)).to(image.device)
                            for arrays in zip(*parts)))

    def __deepcopy__(self, memo: dict[int, Any]) -> BundleNetwork:
        # The session has no state and cannot be copied; the head can.
        twin = self.__class__.__new__(self.__class__)
        nn.Module.__init__(twin)
        memo[id(self)] = twin
        twin.__dict__.update({name: value for name, value in self.__dict__.items()
                              if name not in twin.__dict__})
        twin.metric_head = copy.deepcopy(self.metric_head, memo)
        return twin
