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
"""The report of a finished run: curves, figures and a grid of validation frames."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import cv2
from matplotlib.figure import Figure
import numpy as np
from owseg_ros.render import anomaly_heat, colorize, contact_sheet, legend
from owseg_training.config import Config
from owseg_training.data.datasets import DataSet, read_image
from owseg_training.data.hidden import open_split
from owseg_training.figures import line_chart, save
import torch

LOSSES = {'class': 'classes', 'mask': 'masks (BCE)', 'dice': 'masks (dice)',
          'pixel': 'per-pixel head', 'outliers': 'outliers'}


def read_log(path: Path) -> list[dict[str, Any]]:
    """Read the entries of log.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average that starts unbiased."""
    result, total, norm = [], 0.0, 0.0
    for value in values:
        total, norm = weight * total + (1 - weight) * value, weight * norm + 1 - weight
        result.append(total / norm)
    return result


def curves(log: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Draw what a log holds: 'loss' (smoothed total and its parts) and 'mIoU'."""
    pictures = {}
    losses = [entry for entry in log if 'total' in entry]
    if losses:
        steps = [entry['step'] for entry in losses]
        series = {'total': (steps, smooth([entry['total'] for entry in losses]))}
        for prefix, name in LOSSES.items():
            # Of the final prediction; those of deep supervision end in a number.
            key = 'outliers_0' if prefix == 'outliers' else prefix
            if key in losses[0]:
                series[name] = (steps, smooth([entry[key] for entry in losses]))
        pictures['loss'] = line_chart(series, 'Loss, smoothed', 'step')
    scores = [entry for entry in log if 'mIoU' in entry]
    if scores:
        pictures['mIoU'] = line_chart(
            {'mIoU (val)': ([e['step'] for e in scores], [e['mIoU'] for e in scores])},
            'Mean IoU on validation frames', 'step', marker='o')
    return pictures


def frame_grid(data_set: DataSet, scores_of: Callable[[np.ndarray], torch.Tensor],
               count: int = 6) -> np.ndarray:
    """
    Draw frames spread over a data set: input, truth, prediction and RbA score, uint8 [H, W, 3].

    scores_of: RGB uint8 [H, W, 3] to class scores L [K, H, W].
    """
    palette = np.zeros((256, 3), np.uint8)
    palette[:len(data_set.classes)] = [c.color for c in data_set.classes]
    places = np.unique(np.linspace(0, len(data_set.items) - 1, count).round().astype(int))
    rows = []
    for item in (data_set.items[place] for place in places):
        image, label = read_image(item.image), data_set.read_label(item)
        scores = scores_of(image).float().cpu()
        anomaly = (1 - scores.tanh().sum(0)).numpy()
        prediction = scores.argmax(0).numpy().astype(np.uint8)
        rows.append((item.name, [image, colorize(label, palette),
                                 colorize(prediction, palette), anomaly_heat(anomaly)]))
    footer = legend([(c.name, c.color) for c in data_set.classes], 1500)
    return contact_sheet(rows, ('input', 'truth', 'prediction', 'anomaly score (RbA)'),
                         f'{data_set.title}, {data_set.split}', footer=footer)


def _table(config: Config, log: Sequence[Mapping[str, Any]]) -> list[str]:
    optimizer, network = config.optimizer, config.network
    rows = [('stage', config.stage.replace('_', ' ')),
            ('network', f'{network.backbone}, {network.pixel_decoder} pixel decoder, '
                        f'{network.decoder_layers} decoder layers, {network.queries} queries'),
            ('data', f'{config.data.data_set}, crops of {config.data.size[0]}x'
                     f'{config.data.size[1]}'),
            ('schedule', f'{optimizer.iterations} steps of {optimizer.batch_size} samples, '
                         f'learning rate {optimizer.lr:g}'),
            ('arithmetic', 'float32' if optimizer.autocast == 'off' else
             f'{optimizer.autocast} autocast')]
    scores = [entry for entry in log if 'mIoU' in entry]
    if scores:
        last = scores[-1]
        frames = 'all frames' if last['frames'] is None else f'{last["frames"]} frames'
        rows.append((f'mIoU (val, {frames})', f'**{last["mIoU"]:.4f}**'))
    return ['| | |', '|---|---|', *(f'| {name} | {value} |' for name, value in rows)]


def write_report(folder: str | Path, config: Config,
                 scores_of: Callable[[np.ndarray], torch.Tensor], frames: int = 6) -> Path:
    """
    Write report.md, loss.png, mIoU.png and frames.png into the folder of a run.

    scores_of: see frame_grid; frames: rows of the grid.  Returns the path of report.md.
    Raises DataError when the data set is missing.
    """
    folder = Path(folder)
    log = read_log(folder / 'log.jsonl')
    data_set = open_split(config.data, 'val')
    lines = [f'# {config.name}', '', *_table(config, log), '']
    charts = curves(log)
    for name, figure in charts.items():
        save(figure, folder / f'{name}.png')
    cv2.imwrite(str(folder / 'frames.png'), frame_grid(data_set, scores_of, frames)[..., ::-1])
    for name in (*charts, 'frames'):
        lines += [f'![{name}]({name}.png)', '']
    scores = [entry for entry in log if 'IoU' in entry]
    if scores:
        lines += ['| class | IoU |', '|---|---|',
                  *(f'| {spec.name} | {"-" if np.isnan(iou) else f"{iou:.3f}"} |'
                    for spec, iou in zip(data_set.classes, scores[-1]['IoU'])), '']
    path = folder / 'report.md'
    path.write_text('\n'.join(lines))
    return path
