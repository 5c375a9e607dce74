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
"""Closed-set training of the mask classifier, with checkpoints that resume exactly."""

from __future__ import annotations

from collections.abc import Iterator
import copy
import json
import os
from pathlib import Path
import time
from typing import Any

import numpy as np
from owseg_training.config import Config, config_from_dict
from owseg_training.data.datasets import CamVid, read_image, read_label
from owseg_training.data.stream import closed_set_stream, normalize
from owseg_training.evaluate.metrics import ConfusionMatrix
from owseg_training.losses import SetCriterion
from owseg_training.network import MaskClassifier
from safetensors.torch import load_file, save_file
import torch
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
import yaml


def class_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor,
                 size: tuple[int, int]) -> torch.Tensor:
    """
    Class scores L at (height, width) (RbA eq 2).

    class_logits [B, N, K+1], mask_logits [B, N, h, w]: masks are upsampled before the sigmoid,
    the no-object column is dropped after the softmax.  Returns [B, K, height, width].
    """
    masks = functional.interpolate(mask_logits, size=size, mode='bilinear', align_corners=False)
    return torch.einsum('bnk,bnhw->bkhw', class_logits.softmax(2)[..., :-1], masks.sigmoid())


def parameter_groups(network: MaskClassifier, config: Config) -> list[dict[str, Any]]:
    """Group parameters: backbone at a lower rate; no weight decay for norms and embeddings."""
    optimizer = config.optimizer
    exempt = {id(p) for m in network.modules()
              if isinstance(m, (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.BatchNorm2d,
                                torch.nn.Embedding))
              for p in m.parameters(recurse=False)}
    groups: dict[tuple[bool, bool], list[torch.nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            key = (name.startswith('backbone.'), id(parameter) in exempt)
            groups.setdefault(key, []).append(parameter)
    return [{'params': parameters,
             'lr': optimizer.lr * (optimizer.backbone_multiplier if backbone else 1.0),
             'weight_decay': 0.0 if plain else optimizer.weight_decay}
            for (backbone, plain), parameters in groups.items()]


def learning_rate_factor(step: int, config: Config) -> float:
    """Poly schedule with linear warm-up."""
    optimizer = config.optimizer
    warm = min(1.0, (step + 1) / optimizer.warmup) if optimizer.warmup else 1.0
    return warm * (1 - step / optimizer.iterations) ** optimizer.power


@torch.inference_mode()
def validate(network: MaskClassifier, config: Config, limit: int | None = None,
             ) -> ConfusionMatrix:
    """Confusion matrix on CamVid val at label size, frames stretched to the network's size."""
    network.eval()
    items = CamVid('val', config.data.root).items[:limit]
    matrix = ConfusionMatrix(network.num_classes)
    width, height = config.data.size
    for item in items:
        image, label = read_image(item.image), read_label(item.label)
        tensor = functional.interpolate(
            normalize(image)[None], size=(height, width), mode='bilinear', align_corners=False)
        prediction = network(tensor)
        scores = class_scores(prediction.class_logits, prediction.mask_logits, (height, width))
        scores = functional.interpolate(
            scores, size=label.shape, mode='bilinear', align_corners=False)
        matrix.add(scores[0].argmax(0).numpy().astype(np.uint8), label)
    return matrix


class ClosedSetTraining:
    """
    One training run in a folder: config.yaml, checkpoint, log.jsonl.

    Every step seeds its randomness from (seed, step) and sample i is a pure function of (seed,
    i), so a run that is killed and started again follows the same curve.
    """

    def __init__(self, config: Config, folder: str | Path) -> None:
        self.config = config
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(config.optimizer.seed)
        classes = CamVid('train', config.data.root).classes
        self.network = self._make_network(len(classes)).to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.criterion = SetCriterion(config.loss, len(classes))
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, config))
        self.base_rates = [group['lr'] for group in self.optimizer.param_groups]
        self.step = 0
        checkpoint = self.folder / 'checkpoint.safetensors'
        if checkpoint.is_file():
            self._load(checkpoint)
        (self.folder / 'config.yaml').write_text(yaml.safe_dump(config.to_dict()))

    def _make_network(self, num_classes: int) -> MaskClassifier:
        return MaskClassifier(self.config.network, num_classes)

    def _make_stream(self, length: int) -> Dataset:
        return closed_set_stream(self.config.data, self.config.optimizer.seed, length)

    def _losses(self, image: torch.Tensor, label: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.criterion(self.network(image), label)

    def _load(self, path: Path) -> None:
        tensors = load_file(str(path))
        optimizer = torch.load(self.folder / 'optimizer.pt', weights_only=True)
        self.step = optimizer.pop('step')
        if self.step != int(tensors.pop('step')):
            raise ValueError(f'{self.folder}: checkpoint and optimizer state are of different '
                             'steps; delete the folder to start anew')
        for prefix, module in (('network.', self.network), ('average.', self.average)):
            module.load_state_dict({k[len(prefix):]: v for k, v in tensors.items()
                                    if k.startswith(prefix)})
        self.optimizer.load_state_dict(optimizer)

    def save(self) -> None:
        """Write the checkpoint; each file is replaced atomically."""
        tensors = {'step': torch.tensor(self.step)}
        for prefix, module in (('network.', self.network), ('average.', self.average)):
            tensors.update({prefix + k: v.contiguous() for k, v in module.state_dict().items()})
        state = {**self.optimizer.state_dict(), 'step': self.step}
        torch.save(state, self.folder / 'optimizer.tmp')
        save_file(tensors, str(self.folder / 'checkpoint.tmp'))
        os.replace(self.folder / 'optimizer.tmp', self.folder / 'optimizer.pt')
        os.replace(self.folder / 'checkpoint.tmp', self.folder / 'checkpoint.safetensors')

    def _batches(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        optimizer = self.config.optimizer
        total = optimizer.iterations * optimizer.batch_size
        rest = Subset(self._make_stream(total), range(self.step * optimizer.batch_size, total))
        return iter(DataLoader(rest, batch_size=optimizer.batch_size,
                               num_workers=self.config.data.workers))

    def _train_step(self, image: torch.Tensor, label: torch.Tensor) -> dict[str, float]:
        optimizer = self.config.optimizer
        torch.manual_seed(optimizer.seed * 1_000_003 + self.step)
        factor = learning_rate_factor(self.step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates):
            group['lr'] = rate * factor
        image = image.contiguous(memory_format=torch.channels_last)
        losses = self._losses(image, label)
        total = sum(losses.values())
        if not torch.isfinite(total):
            raise FloatingPointError(f'the loss is {float(total)} at step {self.step}; lower '
                                     'the learning rate or resume from an earlier checkpoint')
        self.optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), optimizer.clip_norm)
        self.optimizer.step()
        # The average follows more quickly at first, so that it does not remember the start.
        decay = min(optimizer.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for mean, value in zip(self.average.state_dict().values(),
                                   self.network.state_dict().values()):
                if mean.dtype.is_floating_point:
                    mean.lerp_(value, 1 - decay)
                else:
                    mean.copy_(value)
        self.step += 1
        return {'total': total.item(), **{k: v.item() for k, v in losses.items()}}

    def _log(self, **values: Any) -> None:
        with (self.folder / 'log.jsonl').open('a') as log:
            log.write(json.dumps(values) + '\n')

    def run(self, checkpoint_seconds: float = 120.0, validate_every: int = 500) -> None:
        """Train to the end of the schedule; the averaged weights go to model.safetensors."""
        iterations = self.config.optimizer.iterations
        self.network.train()
        self.average.eval()
        saved = time.monotonic()
        progress = tqdm(self._batches(), total=iterations, initial=self.step,
                        desc=self.config.name, disable=None)
        for image, label in progress:
            losses = self._train_step(image, label)
            progress.set_postfix(loss=f'{losses["total"]:.2f}')
            if self.step % 10 == 0:
                self._log(step=self.step, **losses)
            if self.step % validate_every == 0 or self.step == iterations:
                limit = None if self.step == iterations else 25
                matrix = validate(self.average, self.config, limit)
                self._log(step=self.step, mIoU=matrix.mean_iou(), frames=limit,
                          IoU=[float(v) for v in matrix.iou()])
                progress.write(f'step {self.step}: mIoU {matrix.mean_iou():.4f}')
            if time.monotonic() - saved > checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
        save_file({k: v.contiguous() for k, v in self.average.state_dict().items()},
                  str(self.folder / 'model.safetensors'))


def load_network(folder: str | Path) -> tuple[MaskClassifier, Config]:
    """
    Load the averaged weights of a run, finished or not, in evaluation mode.

    Raises FileNotFoundError when the folder holds no run.
    """
    folder = Path(folder)
    config = config_from_dict(yaml.safe_load((folder / 'config.yaml').read_text()))
    config.network.pretrained = None
    finished = folder / 'model.safetensors'
    if finished.is_file():
        state = load_file(str(finished))
    else:
        tensors = load_file(str(folder / 'checkpoint.safetensors'))
        state = {k[len('average.'):]: v for k, v in tensors.items() if k.startswith('average.')}
    num_classes = state['transformer_decoder.class_embed.weight'].shape[0] - 1
    network = MaskClassifier(config.network, num_classes)
    network.load_state_dict(state)
    return network.eval(), config
