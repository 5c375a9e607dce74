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
"""The model card of a bundle, written from its manifest and the logs of its training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from owseg_training.config import Config

_COMMANDS = {
    'closed_set': 'owseg-train closed-set --config {name} --pretrained <backbone weights>',
    'outliers': 'owseg-train outliers --config {name}_outliers --start <run> --out <run>',
}


@dataclass(frozen=True)
class Stage:
    """A training stage: its configuration and the entries of its log.jsonl."""

    config: Config
    log: Sequence[dict[str, Any]]


def _curve(log: Sequence[dict[str, Any]]) -> str:
    rows = ['| step | loss | mIoU (frames) |', '|---|---|---|']
    loss: float | None = None
    for entry in log:
        if 'total' in entry:
            loss = entry['total'] if loss is None else 0.9 * loss + 0.1 * entry['total']
        elif loss is not None:
            frames = entry['frames'] or 'all'
            rows.append(f'| {entry["step"]} | {loss:.2f} | {entry["mIoU"]:.3f} ({frames}) |')
    return '\n'.join(rows)


def _stage(stage: Stage) -> str:
    config, optimizer = stage.config, stage.config.optimizer
    text = (f'`{_COMMANDS[config.stage].format(name=config.name)}`: {optimizer.iterations} '
            f'iterations of batch {optimizer.batch_size}, AdamW {optimizer.lr:g}, poly schedule.')
    if config.stage == 'outliers':
        outliers = config.outliers
        text += (f' Only {", ".join(outliers.trainable)} are trained; objects are pasted with '
                 f'probability {outliers.probability:g}, squared hinge with alpha '
                 f'{outliers.alpha:g} (RbA eq 6).')
    return (f'{text}\nLoss smoothed; mIoU of the averaged weights on the first CamVid val frames.'
            f'\n\n{_curve(stage.log)}')


def _anomaly_row(name: str, figures: dict[str, Any]) -> str:
    road = figures['road_anomaly']
    return (f'| {name} | {road["AP"]:.4f} | {road["AuROC"]:.4f} | {road["FPR95"]:.4f} | '
            f'{figures["camvid_val"]["mIoU"]:.4f} |')


def render(manifest: dict[str, Any], stages: Sequence[Stage]) -> str:
    """
    Return the model card as Markdown.

    manifest: as for write_bundle, with the figures of export_bundle; stages: the training, the
    first stage first.
    """
    figures, provenance = manifest['figures'], manifest['provenance']
    camvid, road = figures['camvid_val'], figures['road_anomaly']
    anomaly, network = manifest['anomaly'], stages[-1].config.network
    source = manifest['network']['input']
    supervised = stages[-1].config.stage == 'outliers'
    per_class = '\n'.join(f'| {name} | {value:.3f} |' for name, value in camvid['IoU'].items())
    rows = ['| model | AP | AuROC | FPR95 | CamVid val mIoU |', '|---|---|---|---|---|']
    if 'before_outliers' in figures:
        rows.append(_anomaly_row('before outlier supervision', figures['before_outliers']))
    rows.append(_anomaly_row('this one', figures))
    parity = ', '.join(f'{k} {v:.1e}' for k, v in figures['onnx_parity'].items())
    training = '\n\n'.join(_stage(stage) for stage in stages)
    seen = ('It has seen pasted objects as outliers, none of them from RoadAnomaly or from the '
            'hazards of the procedural street.' if supervised else
            'It has not seen outliers in training.')
    return f"""# {manifest['name']} {manifest['version']}

{manifest['description']}

- **Input**: RGB, stretched to {source['width']}x{source['height']}, ImageNet statistics.
- **Size**: {provenance['parameters']:,} parameters, {network.queries} queries,
  {network.decoder_layers} decoder layer(s).
- **Licence of the weights**: {manifest['license']}. CamVid states no licence for its pictures;
  cite Brostow et al., "Semantic object classes in video", Pattern Recognition Letters 2009, and
  Badrinarayanan et al., "SegNet", PAMI 2017 (the split).
- **Training data**: {provenance['training_data']}.
- **Initialisation**: {provenance['initialisation']}.

## Measured

`owseg-train evaluate models/{manifest['name']}` (ONNX Runtime on a CPU, through the same
Segmenter as the robot; figures at the size of the labels).

CamVid val, {camvid['frames']} frames: **mIoU {camvid['mIoU']:.4f}**, pixel accuracy
{camvid['pixel_accuracy']:.4f}.

| class | IoU |
|---|---|
{per_class}

RoadAnomaly, {road['frames']} development frames, RbA score, pixels pooled:

{chr(10).join(rows)}

At the bundle's threshold {anomaly['threshold']} ({anomaly['operating_point']}) it finds
{road['at_threshold']['true_positive_rate']:.1%} of the anomalous pixels there and flags
{road['at_threshold']['false_positive_rate']:.1%} of the others.

ONNX Runtime against torch on real frames, largest difference relative to max(1, |value|):
{parity}.

## Training

{training}

## Limits

- One camera, one city, daylight: CamVid has 367 training frames from Cambridge. Elsewhere the
  classes hold roughly and the anomaly score is noisy: unfamiliar road, ground and vegetation
  light up as well as objects.
- {seen} Do not drive on its anomaly mask alone.
- Thin and rare classes (Pole, SignSymbol, Pedestrian) are the weakest: masks have a quarter of
  the input's resolution.
"""
