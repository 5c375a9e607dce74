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
"""The model card of a bundle, written from its manifest and training log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from owseg_training.config import Config


def _curve(log: Sequence[dict[str, Any]]) -> str:
    rows = ['| step | loss | mIoU (averaged weights, frames) |', '|---|---|---|']
    loss: float | None = None
    for entry in log:
        if 'total' in entry:
            loss = entry['total'] if loss is None else 0.9 * loss + 0.1 * entry['total']
        elif loss is not None:
            frames = entry['frames'] or 'all'
            rows.append(f'| {entry["step"]} | {loss:.2f} | {entry["mIoU"]:.3f} ({frames}) |')
    return '\n'.join(rows)


def render(manifest: dict[str, Any], config: Config, log: Sequence[dict[str, Any]]) -> str:
    """Return the model card as Markdown."""
    figures, provenance = manifest['figures'], manifest['provenance']
    camvid, road = figures['camvid_val'], figures['road_anomaly']
    anomaly, optimizer = manifest['anomaly'], config.optimizer
    source = manifest['network']['input']
    per_class = '\n'.join(f'| {name} | {value:.3f} |' for name, value in camvid['IoU'].items())
    return f"""# {manifest['name']} {manifest['version']}

{manifest['description']}

- **Input**: RGB, stretched to {source['width']}x{source['height']}, ImageNet statistics.
- **Size**: {provenance['parameters']:,} parameters, {config.network.queries} queries,
  {config.network.decoder_layers} decoder layer(s).
- **Licence of the weights**: {manifest['license']}. CamVid states no licence for its pictures;
  cite Brostow et al., "Semantic object classes in video", Pattern Recognition Letters 2009, and
  Badrinarayanan et al., "SegNet", PAMI 2017 (the split).
- **Training data**: {provenance['training_data']}.
- **Initialisation**: {provenance['initialisation']}. Copyright of those weights: their authors.

## Measured

`owseg-train evaluate models/{manifest['name']}` (ONNX Runtime on a CPU, through the same
Segmenter as the robot; figures at the size of the labels).

CamVid val, {camvid['frames']} frames: **mIoU {camvid['mIoU']:.4f}**, pixel accuracy
{camvid['pixel_accuracy']:.4f}.

| class | IoU |
|---|---|
{per_class}

RoadAnomaly development frames ({road['frames']}), RbA score without outlier supervision, pixels
pooled: **AP {road['AP']:.4f}, AuROC {road['AuROC']:.4f}, FPR95 {road['FPR95']:.4f}**.
At the bundle's threshold {anomaly['threshold']} ({anomaly['operating_point']}) it finds
{road['at_threshold']['true_positive_rate']:.1%} of the anomalous pixels there and flags
{road['at_threshold']['false_positive_rate']:.1%} of the others.

ONNX Runtime against torch, largest difference relative to max(1, |value|) on real frames: {
        ', '.join(f'{k} {v:.1e}' for k, v in figures['onnx_parity'].items())}.

## Training

`owseg-train closed-set --config {manifest['name']} --pretrained <MobileNetV2 weights>`:
{optimizer.iterations} iterations of batch {optimizer.batch_size}, AdamW {optimizer.lr:g}, poly
schedule, averaged weights.

{_curve(log)}

## Limits

- One camera, one city, daylight: CamVid has 367 training frames from Cambridge. Elsewhere the
  classes hold roughly and the anomaly score is noisy.
- The anomaly score is that of a closed-set network of this size; it has not seen outliers in
  training. Do not drive on it alone.
- Thin and rare classes (Pole, SignSymbol, Bicyclist, Fence) are the weakest.
"""
