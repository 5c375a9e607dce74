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
"""What is evaluated: a bundle as it runs on the robot, or a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from owseg_ros.bundle import InputSpec, MANIFEST
from owseg_ros.engine import Engine
from owseg_ros.engine.contract import NetworkOutput
from owseg_ros.engine.preprocess import pack
from owseg_ros.frame import Frame
from owseg_ros.operating_point import OperatingPointError
from owseg_ros.readout import read_out, ReadoutSettings
from owseg_ros.segmenter import readout_settings, Segmenter
from owseg_training.data.errors import DataError
from owseg_training.data.label_sets import label_set, label_sets


@dataclass(frozen=True)
class FramePrediction:
    """
    What a model says of one frame; maps are of the frame's size.

    semantic: uint8 [H, W]; anomaly_score: float32 [H, W]; mask_logits: float32 [N, h, w];
    probabilities: float32 [N, K]; network_size: (height, width).
    """

    semantic: np.ndarray | None
    anomaly_score: np.ndarray | None
    mask_logits: np.ndarray
    probabilities: np.ndarray
    network_size: tuple[int, int]

    def grounded(self, ids: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """Return uint8 [height, width] where only the classes of these ids compete."""
        maps = read_out(self.mask_logits, np.ascontiguousarray(self.probabilities[:, ids]),
                        self.network_size, size, ReadoutSettings(anomaly_threshold=1.0),
                        {'semantic'})
        return ids.astype(np.uint8)[maps.semantic]

    def masks(self, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """Yield the region masks sigmoid(M) > 0.5 that are not empty, bool [height, width]."""
        for logits in self.mask_logits:
            if logits.max() > 0:
                yield cv2.resize(logits, size[::-1], interpolation=cv2.INTER_LINEAR) > 0


class Predictor(Protocol):
    """
    A model under evaluation.

    class_names: in the order of ids; palette: uint8 [256, 3] RGB; threshold: the operating
    point of its anomaly score, None without one; anomaly_range: of the score, for pictures, see
    Segmentation; description: for the report.
    """

    class_names: tuple[str, ...]
    palette: np.ndarray
    threshold: float | None
    anomaly_range: tuple[float, float]
    description: dict[str, Any]

    def __call__(self, image: np.ndarray, maps: frozenset[str]) -> FramePrediction:
        """Predict a frame, RGB uint8 [H, W, 3]; maps: 'semantic', 'anomaly_score'."""
        ...


class _RecordingEngine:
    """An engine that keeps its last output, so that masks are at hand beside the maps."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.name, self.description, self.input = engine.name, engine.description, engine.input
        self.last: NetworkOutput | None = None

    def infer(self, frames: Sequence[Frame], **outputs: bool) -> NetworkOutput:
        """Run the network, see Engine."""
        self.last = self.engine.infer(frames, **outputs)
        return self.last

    def warm_up(self) -> float:
        """Warm up, see Engine."""
        return self.engine.warm_up()


class BundlePredictor:
    """
    A bundle through the Segmenter that runs on the robot; see Predictor.

    score, objects: the anomaly score and whether it is grouped into objects, None for the
    bundle's.
    """

    def __init__(self, path: str | Path, providers: Sequence[str] = ('cpu',), threads: int = 0,
                 score: str | None = None, objects: bool | None = None) -> None:
        self.segmenter = Segmenter(path, providers=providers, threads=threads)
        settings = readout_settings(self.segmenter.bundle, score, threshold=0.0, objects=objects)
        try:
            threshold = self.segmenter.bundle.anomaly.threshold_for(
                score=score, objects=objects)
        except OperatingPointError:
            threshold = None  # Then the figures at the operating point are left out.
        self.segmenter.settings = settings
        self._recorder = _RecordingEngine(self.segmenter.engine)
        self.segmenter.engine = self._recorder
        bundle = self.segmenter.bundle
        self.class_names = tuple(bundle.class_names)
        self.palette = bundle.palette()
        self.threshold = threshold
        self.anomaly_range = settings.score.range(bundle.num_classes)
        self.description = {
            'kind': 'bundle', 'name': bundle.name, 'version': bundle.version,
            'network_sha256': bundle.network_sha256, 'engine': self._recorder.description,
            'anomaly_score': settings.score.name, 'objects': settings.objects is not None,
            'input': [bundle.input.width, bundle.input.height]}

    def __call__(self, image: np.ndarray, maps: frozenset[str]) -> FramePrediction:
        result = self.segmenter(image, maps=maps)
        output = self._recorder.last
        assert output is not None
        return FramePrediction(result.semantic, result.anomaly_score, output.mask_logits[0],
                               output.class_probabilities[0], self.segmenter.network_size)


def run_classes(folder: Path, name: str | None, count: int,
                ) -> tuple[tuple[str, ...], np.ndarray]:
    """
    Return names and colours uint8 [count, 3] of a run's classes.

    They are those of classes.json in the folder, of the label set called name, or of the label
    set that has as many classes.  Raises DataError where none fits.
    """
    listing = folder / 'classes.json'
    if name is None and listing.is_file():
        spec = sorted(json.loads(listing.read_text())['classes'], key=lambda c: c['id'])
        colors = [c.get('colour', c.get('color', (128, 128, 128))) for c in spec]
        names = tuple(c['name'] for c in spec)
    else:
        fitting = [s for s in label_sets() if len(label_set(s)) == count]
        if name is None and not fitting:
            raise DataError(f'{folder} has {count} classes without names; say --label-set')
        classes = label_set(name or fitting[0])
        names, colors = tuple(c.name for c in classes), [c.color for c in classes]
    if len(names) != count:
        raise DataError(f'{folder} has {count} classes, but there are {len(names)} names')
    return names, np.array(colors, np.uint8).reshape(-1, 3)


class CheckpointPredictor:
    """
    A run's averaged weights in torch, with the bundle's preprocessing; see Predictor.

    folder: config.yaml and model.safetensors or checkpoint.safetensors.  Class names are those
    of classes.json there, of label_set_name, or of the label set that has as many classes.
    size: (width, height) of the network's input, None for that of the run.
    """

    threshold: float | None = None
    anomaly_range = (0.0, 1.0)

    def __init__(self, folder: str | Path, label_set_name: str | None = None,
                 threads: int = 0, size: tuple[int, int] | None = None) -> None:
        from owseg_training.closed_set import class_scores, load_network
        from owseg_training.data.stream import MEAN, STD
        import torch

        if threads:
            torch.set_num_threads(threads)
        self._torch, self._class_scores = torch, class_scores
        self.network, config = load_network(folder)
        width, height = size or config.data.size
        self._input = InputSpec('image', width, height, MEAN, STD)
        self.class_names, colors = run_classes(Path(folder), label_set_name,
                                               self.network.num_classes)
        self.palette = np.zeros((256, 3), np.uint8)
        self.palette[:len(colors)] = colors
        self.description = {
            'kind': 'checkpoint', 'name': config.name, 'engine': f'torch {torch.__version__}',
            'input': [width, height]}

    def __call__(self, image: np.ndarray, maps: frozenset[str]) -> FramePrediction:
        torch = self._torch
        size = (self._input.height, self._input.width)
        with torch.inference_mode():
            output = self.network(torch.from_numpy(pack([Frame(image)], self._input)))
            classes = self.network.num_classes
            scores = self._class_scores(output.class_logits, output.mask_logits, size, classes)
            if size != image.shape[:2]:
                scores = torch.nn.functional.interpolate(
                    scores, size=image.shape[:2], mode='bilinear', align_corners=False)
            semantic = score = None
            if 'semantic' in maps:
                semantic = scores[0].argmax(0).numpy().astype(np.uint8)
            if 'anomaly_score' in maps:
                score = (1 - scores[0].tanh_().sum(0)).numpy()
            probabilities = output.class_logits.softmax(2)[0, :, :classes].contiguous().numpy()
            return FramePrediction(semantic, score, output.mask_logits[0].numpy(),
                                   probabilities, size)


def open_predictor(path: str | Path, *, label_set_name: str | None = None,
                   providers: Sequence[str] = ('cpu',), threads: int = 0,
                   score: str | None = None, objects: bool | None = None) -> Predictor:
    """
    Open a bundle (a folder with manifest.yaml) or a run (a folder with config.yaml).

    score, objects: see BundlePredictor; a run is always read with plain RbA.  Raises DataError
    where the folder is neither or they are given for a run, BundleError, EngineError and
    ScoreError for bundles.
    """
    folder = Path(path)
    if (folder / MANIFEST).is_file():
        return BundlePredictor(folder, providers, threads, score, objects)
    if (folder / 'config.yaml').is_file():
        if score is not None or objects is not None:
            raise DataError(f'{folder} is a run, which is read with plain rba; export it to read '
                            'it with another score or objects')
        return CheckpointPredictor(folder, label_set_name, threads)
    raise DataError(f'{folder} is neither a bundle ({MANIFEST}) nor a run (config.yaml with '
                    'model.safetensors or checkpoint.safetensors)')
