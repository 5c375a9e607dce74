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
"""Export a trained network to a bundle: ONNX checked against torch, calibrated, with figures."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import onnx
import onnxruntime
from owseg_ros.bundle import Bundle, load_bundle, write_bundle
from owseg_ros.segmenter import Segmenter
from owseg_training import model_card
from owseg_training.closed_set import load_network
from owseg_training.config import Config, config_from_dict
from owseg_training.data.datasets import CamVid, DataError, read_image, read_label, RoadAnomaly
from owseg_training.data.stream import MEAN, normalize, STD
from owseg_training.evaluate.bundle_figures import (
    anomaly_pixels, evaluate_anomaly, evaluate_closed_set)
from owseg_training.network import MaskClassifier
import torch
from torch import nn
from torch.nn import functional
import yaml

OPSET = 18
OUTPUTS = ('mask_logits', 'class_logits', 'pixel_features')
TOLERANCE = 1e-4
CALIBRATION_RATE = 0.02


class ExportError(RuntimeError):
    """The exported graph does not compute what the network computes."""


class ExportedNetwork(nn.Module):
    """The network as the robot runs it: image to mask logits, class logits, pixel features."""

    def __init__(self, network: MaskClassifier) -> None:
        super().__init__()
        self.network = network.eval()
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (mask_logits, class_logits, pixel_features), see Prediction."""
        prediction = self.network(image)
        return prediction.mask_logits, prediction.class_logits, prediction.pixel_features


def export_onnx(network: MaskClassifier, path: str | Path, size: tuple[int, int]) -> None:
    """
    Write an ONNX file for a fixed (width, height) and any batch size.

    Raises onnx.checker.ValidationError when the graph is not valid.
    """
    width, height = size
    # A batch of two, because the exporter specialises a dimension whose example is one.
    example = torch.zeros(2, 3, height, width)
    torch.onnx.export(
        ExportedNetwork(network), (example,), str(path), input_names=['image'],
        output_names=list(OUTPUTS), opset_version=OPSET, dynamo=True, external_data=False,
        dynamic_shapes={'image': {0: torch.export.Dim('batch', min=1, max=64)}}, verbose=False)
    onnx.checker.check_model(str(path), full_check=True)


def parity(network: MaskClassifier, path: str | Path, images: Sequence[torch.Tensor],
           ) -> dict[str, float]:
    """
    Largest difference |a - b| / max(1, |a|) between torch a and ONNX Runtime b, per output.

    images: normalised float32 [3, H, W] of the exported size, run one by one and as one batch.
    """
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    exported = ExportedNetwork(network)
    worst = dict.fromkeys(OUTPUTS, 0.0)
    batches = [image[None] for image in images]
    if len(images) > 1:
        batches.append(torch.stack(list(images)))
    for batch in batches:
        with torch.inference_mode():
            expected = exported(batch)
        actual = session.run(list(OUTPUTS), {'image': batch.numpy()})
        for name, a, b in zip(OUTPUTS, expected, actual):
            a = a.numpy()
            error = np.abs(a - b) / np.maximum(1, np.abs(a))
            worst[name] = max(worst[name], float(error.max()))
    return worst


def _resized(path: Path, size: tuple[int, int]) -> torch.Tensor:
    width, height = size
    return functional.interpolate(normalize(read_image(path))[None], size=(height, width),
                                  mode='bilinear', align_corners=False)[0]


def calibrate_threshold(segmenter: Segmenter, rate: float, data: str | None) -> float:
    """
    Choose the threshold that flags `rate` of the known pixels of CamVid val.

    Void pixels are left out: they are not known classes.
    """
    known = []
    for item in CamVid('val', data).items:
        known.append(_known_scores(segmenter, item))
    return float(np.quantile(np.concatenate(known), 1 - rate))


def _known_scores(segmenter: Segmenter, item: Any) -> np.ndarray:
    label = read_label(item.label)
    score = segmenter(read_image(item.image), maps=frozenset({'anomaly_score'})).anomaly_score
    return score[label < segmenter.bundle.num_classes]


def _history(run: Path, config: Config) -> list[model_card.Stage]:
    """Return the stages that led to the run, the first one first."""
    def read(path: Path) -> list[dict[str, Any]]:
        return [json.loads(line) for line in path.read_text().splitlines()]

    stages = [model_card.Stage(config, read(run / 'log.jsonl'))]
    if (run / 'start_config.yaml').is_file():
        start = config_from_dict(yaml.safe_load((run / 'start_config.yaml').read_text()))
        stages.insert(0, model_card.Stage(start, read(run / 'start_log.jsonl')))
    return stages


def _rates(segmenter: Segmenter, data: str | None) -> dict[str, float]:
    scores, labels = anomaly_pixels(segmenter, RoadAnomaly(data).items)
    flagged = scores >= segmenter.bundle.anomaly.threshold
    return {'true_positive_rate': float(flagged[labels == 1].mean()),
            'false_positive_rate': float(flagged[labels == 0].mean())}


def export_bundle(run: str | Path, out: str | Path, *, data: str | None = None,
                  frames: int = 4, before: str | Path | None = None) -> Bundle:
    """
    Make a bundle of a closed-set run: export, check, calibrate, measure, model card.

    run: folder of ClosedSetTraining; out: folder of the bundle; frames: number of CamVid val
    frames on which ONNX Runtime must equal torch within 1e-4; before: bundle of the same model
    before outlier supervision, whose figures go beside the new ones.
    Raises ExportError when it does not, DataError when CamVid or RoadAnomaly are missing.
    """
    run, out = Path(run), Path(out)
    network, config = load_network(run)
    camvid, road = CamVid('val', data), RoadAnomaly(data)
    if len(camvid.classes) != network.num_classes:
        raise DataError(f'the run has {network.num_classes} classes, CamVid has '
                        f'{len(camvid.classes)}')
    with tempfile.TemporaryDirectory() as folder:
        onnx_path = Path(folder) / 'network.onnx'
        export_onnx(network, onnx_path, config.data.size)
        stride = max(1, len(camvid.items) // frames)
        difference = parity(network, onnx_path, [
            _resized(item.image, config.data.size) for item in camvid.items[::stride][:frames]])
        if max(difference.values()) > TOLERANCE:
            raise ExportError(f'ONNX Runtime differs from torch by {difference}, more than '
                              f'{TOLERANCE}')
        manifest = _manifest(network, config, camvid, difference)
        card = Path(folder) / 'MODEL_CARD.md'
        card.write_text('The figures are being measured.\n')
        files = {'network.onnx': onnx_path, 'MODEL_CARD.md': card}
        measured = Path(folder) / 'bundle'
        segmenter = Segmenter(write_bundle(measured, manifest, files))
        manifest['anomaly']['threshold'] = round(
            calibrate_threshold(segmenter, CALIBRATION_RATE, data), 4)
        manifest['anomaly']['operating_point'] = (
            f'flags {CALIBRATION_RATE:.0%} of the known pixels of CamVid val')
        segmenter = Segmenter(write_bundle(measured, manifest, files))
        manifest['figures'] = {
            'camvid_val': evaluate_closed_set(segmenter, camvid.items),
            'road_anomaly': {**evaluate_anomaly(segmenter, road.items),
                             'at_threshold': _rates(segmenter, data)},
            'onnx_parity': difference,
        }
        if before is not None:
            manifest['figures']['before_outliers'] = {
                name: load_bundle(before).figures[name] for name in ('camvid_val', 'road_anomaly')}
        card.write_text(model_card.render(manifest, _history(run, config)))
        write_bundle(out, manifest, files)
    return load_bundle(out)


def _manifest(network: MaskClassifier, config: Any, camvid: CamVid,
              difference: dict[str, float]) -> dict[str, Any]:
    width, height = config.data.size
    parameters = sum(p.numel() for name, p in network.named_parameters()
                     if not name.startswith('pixel_classifier'))
    return {
        'name': config.name,
        'version': '0.1.0',
        'description': 'Mask classifier for street scenes with the 11 classes of CamVid; '
                       'MobileNetV2, light FPN, one masked-attention decoder layer.',
        'license': 'Apache-2.0',
        'classes': [{'id': i, 'name': c.name, 'color': list(c.color)}
                    for i, c in enumerate(camvid.classes)],
        'network': {
            'file': 'network.onnx',
            'input': {'name': 'image', 'width': width, 'height': height, 'mean': list(MEAN),
                      'std': list(STD)},
            'outputs': {'mask_logits': 'mask_logits', 'class_logits': 'class_logits',
                        'region_embeddings': None, 'pixel_features': 'pixel_features'},
        },
        'anomaly': {'score': 'rba', 'threshold': 0.5,
                    'operating_point': 'not calibrated yet', 'min_area': 64},
        'provenance': {
            'training_data': 'CamVid train (367 frames, SegNet split) and the procedural street '
                             'of owseg_ros.scene' + (
                                 '; outliers: cut-outs from COCO (CC BY, CC BY-SA) and DAVIS'
                                 if config.stage == 'outliers' else ''),
            'stage': config.stage,
            'initialisation': 'MobileNetV2 1.0 trained on ImageNet, ONNX Model Zoo '
                              'mobilenetv2-1.0 (Apache-2.0)',
            'parameters': parameters,
            'config': config.to_dict() | {'data': {
                k: list(v) if isinstance(v, tuple) else v
                for k, v in config.to_dict()['data'].items() if k != 'root'}},
        },
        'figures': {'onnx_parity': difference},
    }
