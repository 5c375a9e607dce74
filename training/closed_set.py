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

from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
import copy
import dataclasses
import json
import os
from pathlib import Path
import re
import time
from typing import Any

import numpy as np
from owseg_ros.language.files import write_atomically
from owseg_training.bundle_network import BUNDLE
from owseg_training.class_texts import clip_class_texts, TEXT_SPACE
from owseg_training.config import Config, ConfigError, NetworkConfig, run_config
from owseg_training.data.datasets import read_image
from owseg_training.data.hidden import open_split
from owseg_training.data.stream import closed_set_stream, normalize, open_training_set
from owseg_training.distributed import join, Processes
from owseg_training.evaluate.metrics import ConfusionMatrix
from owseg_training.losses import SetCriterion
from owseg_training.network import MaskClassifier, Prediction
from owseg_training.network.frozen_clip import FROZEN_CLIP, FrozenClipHead
from owseg_training.report import write_report
from safetensors.torch import load_file, save_file
import torch
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
import yaml

AUTOCAST = {'off': None, 'bf16': torch.bfloat16, 'fp16': torch.float16}
NORMS = (torch.nn.LayerNorm, torch.nn.GroupNorm, torch.nn.modules.batchnorm._BatchNorm)
# Swin's and timm's names of positions, and CLIP's temperature.
PLAIN = ('relative_position_bias_table', 'absolute_pos_embed', 'pos_embed', 'log_scale')

Totals = dict[str, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor]


def class_scores(class_logits: torch.Tensor, mask_logits: torch.Tensor,
                 size: tuple[int, int], num_classes: int | None = None) -> torch.Tensor:
    """
    Class scores L at (height, width) (RbA eq 2).

    class_logits [B, N, K+1], mask_logits [B, N, h, w]: masks are upsampled before the sigmoid,
    the no-object column is dropped after the softmax; num_classes: K, where class_logits have an
    outlier column too, which is dropped as well.  Returns [B, K, height, width].
    """
    masks = functional.interpolate(mask_logits, size=size, mode='bilinear', align_corners=False)
    known = class_logits.shape[2] - 1 if num_classes is None else num_classes
    return torch.einsum('bnk,bnhw->bkhw', class_logits.softmax(2)[..., :known], masks.sigmoid())


def parameter_groups(network: MaskClassifier, config: Config) -> list[dict[str, Any]]:
    """
    Group parameters: backbone at a lower rate; no weight decay for norms and embeddings.

    Embeddings of positions, relative and absolute, are exempt too, as in the released code, and
    temperatures.
    """
    optimizer = config.optimizer
    exempt = {id(p) for m in network.modules() if isinstance(m, (*NORMS, torch.nn.Embedding))
              for p in m.parameters(recurse=False)}
    exempt |= {id(p) for name, p in network.named_parameters()
               if name.rpartition('.')[2] in PLAIN}
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


def sample_seeds(seed: int, indices: range) -> list[int]:
    """Seeds of the randomness in the loss, one a sample of the run, whoever computes it."""
    return [int(np.random.SeedSequence((seed, 4, index)).generate_state(1, np.uint64)[0] >> 1)
            for index in indices]


@torch.inference_mode()
def predict(network: MaskClassifier, image: np.ndarray,
            config: Config) -> tuple[Prediction, tuple[int, int]]:
    """
    Run a network on a frame (RGB uint8 [H, W, 3]), stretched to its validation size.

    That is data.validation_size, else data.size.  Returns the prediction, a batch of one, and
    (height, width) of the network's input.
    """
    width, height = config.data.validation_size or config.data.size
    device = next(network.parameters()).device
    tensor = functional.interpolate(normalize(image)[None].to(device), size=(height, width),
                                    mode='bilinear', align_corners=False)
    return network(tensor), (height, width)


@torch.inference_mode()
def predict_scores(network: MaskClassifier, image: np.ndarray, config: Config) -> torch.Tensor:
    """Class scores L [K, H, W] of a frame (RGB uint8 [H, W, 3]) at its own size, see predict."""
    prediction, size = predict(network, image, config)
    scores = class_scores(prediction.class_logits, prediction.mask_logits, size,
                          network.num_classes)
    return functional.interpolate(
        scores, size=image.shape[:2], mode='bilinear', align_corners=False)[0]


def validate(network: MaskClassifier, config: Config, limit: int | None = None,
             processes: Processes | None = None) -> ConfusionMatrix:
    """
    Confusion matrix on the val split at label size; limit: only its first frames.

    processes: share the frames; each gets the whole matrix.
    """
    network.eval()
    data_set = open_split(config.data, 'val')
    matrix = ConfusionMatrix(network.num_classes)
    rank, size = (processes.rank, processes.size) if processes else (0, 1)
    for item in data_set.items[:limit][rank::size]:
        scores = predict_scores(network, read_image(item.image), config)
        matrix.add(scores.argmax(0).cpu().numpy().astype(np.uint8), data_set.read_label(item))
    if size > 1:
        counts = torch.as_tensor(matrix.counts).to(processes.device)
        processes.add_up_tensor(counts)
        matrix.counts = counts.cpu().numpy()
    return matrix


class TrainingLosses(torch.nn.Module):
    """
    Network and criterion as one module, the unit that DistributedDataParallel wraps.

    autocast: type of the network's activations, None for float32; the losses are float32.
    extra: more losses, (image, prediction, label, totals) to a dict.
    forward: (image, label, totals, seeds), see SetCriterion, to a dict of scalar losses.
    """

    def __init__(self, network: MaskClassifier, criterion: SetCriterion,
                 autocast: torch.dtype | None,
                 extra: Callable[[torch.Tensor, Prediction, torch.Tensor, Totals], Totals]
                 ) -> None:
        super().__init__()
        self.network = network
        self.criterion = criterion
        self.autocast = autocast
        self.extra = extra

    def forward(self, image: torch.Tensor, label: torch.Tensor, totals: Totals,
                seeds: list[int]) -> dict[str, torch.Tensor]:
        """Compute the losses of a part of a batch."""
        with torch.autocast(image.device.type, self.autocast, self.autocast is not None):
            prediction = self.network(image)
        pixel_logits, outlier_logits = prediction.pixel_logits, prediction.outlier_logits
        prediction = dataclasses.replace(
            prediction, class_logits=prediction.class_logits.float(),
            mask_logits=prediction.mask_logits.float(),
            auxiliary=[(c.float(), m.float()) for c, m in prediction.auxiliary],
            pixel_logits=None if pixel_logits is None else pixel_logits.float(),
            outlier_logits=None if outlier_logits is None else outlier_logits.float())
        losses = self.criterion(prediction, label, totals, seeds)
        return {**losses, **self.extra(image, prediction, label, totals)}


class ClosedSetTraining:
    """
    One training run in a folder: config.yaml, classes.json, checkpoint, log.jsonl, TensorBoard.

    Every step seeds its randomness from (seed, step), that of the losses from (seed, sample), and
    sample i is a pure function of (seed, i): a run that is killed and started again follows the
    same curve, and so does one on several processes (torchrun) or with gradient accumulation,
    save for the pattern of stochastic depth, which is each process's own.  Under torchrun every
    process must see the folder; rank 0 alone writes.

    device: see distributed.join.
    Raises ConfigError for a batch that does not divide, DataError for missing data.
    """

    def __init__(self, config: Config, folder: str | Path, device: str | None = None) -> None:
        self.config = config
        self.folder = Path(folder)
        optimizer = config.optimizer
        if optimizer.autocast not in AUTOCAST:
            raise ConfigError(f'optimizer.autocast must be one of {", ".join(AUTOCAST)}, not '
                              f'{optimizer.autocast!r}')
        self.processes = join(device)
        parts = self.processes.size * optimizer.accumulate
        if optimizer.accumulate < 1 or optimizer.batch_size % parts:
            raise ConfigError(
                f'optimizer.batch_size {optimizer.batch_size} does not divide into '
                f'{self.processes.size} processes x optimizer.accumulate {optimizer.accumulate}')
        self.part_size = optimizer.batch_size // parts
        torch.manual_seed(optimizer.seed)
        self.data_set = open_training_set(config.data)
        classes = self.data_set.classes
        self.device = self.processes.device
        self.network = self._make_network(len(classes)).to(
            self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).requires_grad_(False)
        self.criterion = self._make_criterion(len(classes)).to(self.device)
        self.optimizer = torch.optim.AdamW(parameter_groups(self.network, config))
        self.base_rates = [group['lr'] for group in self.optimizer.param_groups]
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=optimizer.autocast == 'fp16')
        self.losses = TrainingLosses(self.network, self.criterion, AUTOCAST[optimizer.autocast],
                                     self._extra_losses)
        self.step = 0
        self._board = None
        checkpoint = self.folder / 'checkpoint.safetensors'
        if checkpoint.is_file():
            self._load(checkpoint)
        if not self.processes.agree(self.step):
            raise RuntimeError(f'the processes would start at different steps, this one at '
                               f'{self.step}; do all see {self.folder}?')
        if self.processes.size > 1:
            self.losses = DistributedDataParallel(
                self.losses,
                device_ids=[self.device] if self.device.type == 'cuda' else None,
                # The per-pixel head is there for exchange of weights even where it has no loss.
                find_unused_parameters=config.loss.pixel_weight == 0 and any(
                    name.startswith('pixel_classifier.') and parameter.requires_grad
                    for name, parameter in self.network.named_parameters()))
        if self.processes.first:
            self._begin_folder()

    def _begin_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / 'config.yaml',
                         yaml.safe_dump(self.config.to_dict()).encode('utf-8'))
        (self.folder / 'classes.json').write_text(json.dumps({'classes': [
            {'id': i, 'name': c.name, 'colour': list(c.color)}
            for i, c in enumerate(self.data_set.classes)]}, indent=1))
        log = self.folder / 'log.jsonl'
        if log.is_file():
            # What a killed run wrote after its checkpoint is computed again.
            kept = [line for line in log.read_text().splitlines() if self._is_past(line)]
            write_atomically(log, ''.join(f'{line}\n' for line in kept).encode('utf-8'))

    def _is_past(self, line: str) -> bool:
        try:
            return json.loads(line)['step'] <= self.step
        except ValueError:  # Half a line, where the kill came while it was written.
            return False

    def _make_network(self, num_classes: int) -> MaskClassifier:
        network = MaskClassifier(self.config.network, num_classes)
        if isinstance(network.region_head, FrozenClipHead):
            texts = clip_class_texts(network.backbone.name, self.config.network.pretrained,
                                     [c.name for c in self.data_set.classes])
            network.region_head.set_texts(texts.rows)
            if self.processes.first:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / TEXT_SPACE).write_text(f'{texts.space}\n')
        return network

    def _make_criterion(self, num_classes: int) -> torch.nn.Module:
        return SetCriterion(self.config.loss, num_classes, self.config.network.outlier_class)

    def _make_stream(self, length: int) -> Dataset:
        return closed_set_stream(self.config.data, self.config.optimizer.seed, length)

    def _totals(self, label: torch.Tensor) -> Totals:
        return self.criterion.totals(label, self.config.network.queries)

    def _extra_losses(self, image: torch.Tensor, prediction: Prediction, label: torch.Tensor,
                      totals: Totals) -> Totals:
        return {}

    def _load(self, path: Path) -> None:
        tensors = load_file(str(path))
        self.step = int(tensors.pop('step'))
        state = self.folder / f'optimizer_{self.step}.pt'
        if not state.is_file():  # Runs before the state carried its step in the name.
            state = self.folder / 'optimizer.pt'
        optimizer = torch.load(state, weights_only=True, map_location=self.device)
        if self.step != optimizer.pop('step'):
            raise ValueError(f'{self.folder}: checkpoint and optimizer state are of different '
                             'steps; delete the folder to start anew')
        scaler = optimizer.pop('scaler', None)
        if scaler and self.scaler.is_enabled():
            self.scaler.load_state_dict(scaler)
        for prefix, module in (('network.', self.network), ('average.', self.average)):
            module.load_state_dict({k[len(prefix):]: v for k, v in tensors.items()
                                    if k.startswith(prefix)})
        self.optimizer.load_state_dict(optimizer)

    def save(self) -> None:
        """
        Write the checkpoint, on rank 0; a kill at any moment leaves the old one or the new one.

        The optimizer state carries its step in its name, so replacing checkpoint.safetensors
        alone decides which of the two is current.
        """
        if not self.processes.first:
            return
        tensors = {'step': torch.tensor(self.step)}
        for prefix, module in (('network.', self.network), ('average.', self.average)):
            tensors.update({prefix + k: v.contiguous() for k, v in module.state_dict().items()})
        state = {**self.optimizer.state_dict(), 'step': self.step,
                 'scaler': self.scaler.state_dict()}
        current = self.folder / f'optimizer_{self.step}.pt'
        torch.save(state, self.folder / 'optimizer.tmp')
        save_file(tensors, str(self.folder / 'checkpoint.tmp'))
        os.replace(self.folder / 'optimizer.tmp', current)
        os.replace(self.folder / 'checkpoint.tmp', self.folder / 'checkpoint.safetensors')
        for old in self.folder.glob('optimizer*.pt'):
            if old != current and re.fullmatch(r'optimizer(_\d+)?', old.stem):
                old.unlink()

    def _part(self, step: int, part: int) -> range:
        """Return the samples of the run that this process computes in a part of a step."""
        optimizer = self.config.optimizer
        parts = self.processes.rank * optimizer.accumulate + part
        start = step * optimizer.batch_size + parts * self.part_size
        return range(start, start + self.part_size)

    def _batches(self) -> Iterator[list[Batch]]:
        """Yield the parts of each step that is left, (image, label) each."""
        optimizer = self.config.optimizer
        stream = self._make_stream(optimizer.iterations * optimizer.batch_size)
        loader = iter(DataLoader(
            stream, num_workers=self.config.data.workers,
            batch_sampler=[self._part(step, part)
                           for step in range(self.step, optimizer.iterations)
                           for part in range(optimizer.accumulate)],
            pin_memory=self.device.type == 'cuda'))
        for _ in range(self.step, optimizer.iterations):
            yield [next(loader) for _ in range(optimizer.accumulate)]

    def _train_step(self, parts: list[Batch]) -> dict[str, float]:
        optimizer, processes = self.config.optimizer, self.processes
        torch.manual_seed(optimizer.seed * 1_000_003 + self.step + (processes.rank << 40))
        factor = learning_rate_factor(self.step, self.config)
        for group, rate in zip(self.optimizer.param_groups, self.base_rates):
            group['lr'] = rate * factor
        labels = [label.to(self.device, non_blocking=True) for _, label in parts]
        counts = [self._totals(label) for label in labels]
        totals = processes.add_up({name: sum(c[name] for c in counts) for name in counts[0]})
        self.optimizer.zero_grad()
        sums: dict[str, torch.Tensor] = {}
        for index, ((image, _), label) in enumerate(zip(parts, labels)):
            image = image.to(self.device, non_blocking=True).contiguous(
                memory_format=torch.channels_last)
            seeds = sample_seeds(optimizer.seed, self._part(self.step, index))
            last = index == len(parts) - 1
            with (nullcontext() if last or processes.size == 1 else self.losses.no_sync()):
                losses = self.losses(image, label, totals, seeds)
                # The totals are the whole batch's, so gradients must add up where DDP averages.
                self.scaler.scale(sum(losses.values()) * processes.size).backward()
            for name, value in losses.items():
                sums[name] = sums.get(name, 0) + value.detach()
        values = {name: value.item() for name, value in processes.add_up(sums).items()}
        total = sum(values.values())
        if not np.isfinite(total):
            raise FloatingPointError(f'the loss is {total} at step {self.step}; lower '
                                     'the learning rate or resume from an earlier checkpoint')
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), optimizer.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
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
        return {'total': total, **{name: values[name] for name in sums}}

    def _log(self, **values: Any) -> None:
        if not self.processes.first:
            return
        with (self.folder / 'log.jsonl').open('a') as log:
            log.write(json.dumps(values) + '\n')
        if self._board is not None:
            step = values['step']
            for name, value in values.items():
                if name == 'IoU':
                    for spec, iou in zip(self.data_set.classes, value):
                        self._board.add_scalar(f'IoU/{spec.name}', iou, step)
                elif name not in ('step', 'frames'):
                    group = 'val' if name == 'mIoU' else 'train'
                    self._board.add_scalar(f'{group}/{name}', value, step)

    def _open_board(self) -> Any:
        """Return TensorBoard's writer on rank 0, None where it is not installed."""
        if not self.processes.first:
            return None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            return None
        return SummaryWriter(str(self.folder / 'tensorboard'), purge_step=self.step + 1)

    def run(self, checkpoint_seconds: float = 120.0, validate_every: int | None = 500,
            log_every: int = 10, report: bool = True) -> None:
        """
        Train to the end of the schedule.

        The averaged weights go to model.safetensors, curves and pictures to report.md.
        validate_every: steps, the last one is validated too, None for never; report: whether to
        write report.md.
        """
        iterations = self.config.optimizer.iterations
        self.network.train()
        self.average.eval()
        self._board = self._open_board()
        saved = time.monotonic()
        progress = tqdm(self._batches(), total=iterations, initial=self.step,
                        desc=self.config.name, disable=None if self.processes.first else True)
        for parts in progress:
            losses = self._train_step(parts)
            progress.set_postfix(loss=f'{losses["total"]:.2f}')
            if self.step % log_every == 0 or self.step == iterations:
                self._log(step=self.step, **losses)
            if validate_every and (self.step % validate_every == 0 or self.step == iterations):
                limit = None if self.step == iterations else 25
                matrix = validate(self.average, self.config, limit, self.processes)
                self._log(step=self.step, mIoU=matrix.mean_iou(), frames=limit,
                          IoU=[float(v) for v in matrix.iou()])
                if self.processes.first:
                    progress.write(f'step {self.step}: mIoU {matrix.mean_iou():.4f}')
            if time.monotonic() - saved > checkpoint_seconds:
                self.save()
                saved = time.monotonic()
        self.save()
        if self.processes.first:
            # Its being there says that the run is finished.
            save_file({k: v.contiguous() for k, v in self.average.state_dict().items()},
                      str(self.folder / 'model.tmp'))
            os.replace(self.folder / 'model.tmp', self.folder / 'model.safetensors')
            if report:
                write_report(self.folder, self.config,
                             lambda image: predict_scores(self.average, image, self.config))
        if self._board is not None:
            self._board.close()
        self.processes.wait()


def count_classes(config: NetworkConfig, state: Mapping[str, torch.Tensor]) -> int:
    """Return the number of classes of a network's state."""
    if config.region_head == FROZEN_CLIP:
        return len(state['region_head.rows_of_class'])
    return state['transformer_decoder.class_embed.weight'].shape[0] - 1 - config.outlier_class


def load_network(folder: str | Path) -> tuple[MaskClassifier, Config]:
    """
    Load the averaged weights of a run, finished or not, in evaluation mode.

    Raises ConfigError when the folder holds no run, or one of a head on a bundle.
    """
    folder = Path(folder)
    if not (folder / 'config.yaml').is_file():
        raise ConfigError(f'{folder} is no folder of a training run: it has no config.yaml; give '
                          'what owseg-train closed-set or convert wrote')
    if (folder / BUNDLE).is_dir():
        raise ConfigError(f'{folder} holds a metric head for a bundle and no network of its own; '
                          'owseg-train export adds it to the bundle')
    config = run_config(folder)
    config.network.pretrained = None
    finished = folder / 'model.safetensors'
    if finished.is_file():
        state = load_file(str(finished))
    else:
        tensors = load_file(str(folder / 'checkpoint.safetensors'))
        state = {k[len('average.'):]: v for k, v in tensors.items() if k.startswith('average.')}
    network = MaskClassifier(config.network, count_classes(config.network, state))
    network.load_state_dict(state)
    return network.eval(), config
