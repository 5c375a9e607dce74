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
Calibration: what thresholds of a bundle's anomaly scores mean, measured on validation sets.

For every score that the bundle can compute, plain and grouped into objects, the operating curve
holds the thresholds at given rates of false alarms (known pixels that are flagged), the share of
anomalous pixels that they find, and the threshold of the best pixel F1.  It is stored in the
manifest, where Bundle.anomaly.threshold_for and the node's parameter anomaly_threshold look it up.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from owseg_ros.bundle import (
    AnomalySpec, Bundle, ClassStatistics, manifest_of, write_bundle)
from owseg_ros.frame import Frame as CameraFrame
from owseg_ros.operating_point import DEFAULT_POINT, OperatingCurve, parse_operating_point
from owseg_ros.readout import (
    AnomalyScore, available_scores, check_score, CpuReadout, make_score, refine)
from owseg_ros.scene import StreetScene
from owseg_ros.segmenter import readout_settings, Segmenter
from owseg_training.class_statistics import class_statistics
from owseg_training.data.datasets import DataError, DataSet, Item
from owseg_training.evaluate.pooled import PooledCurve
from tqdm import tqdm

RATES = (1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
PIXELS = 4_000_000
STREET_FRAMES = 24
STATISTICS_FRAMES = 100

Frame = tuple[np.ndarray, np.ndarray]


def street_frames(count: int = STREET_FRAMES) -> Iterator[Frame]:
    """Yield (RGB, ids) of procedural streets without hazards, uint8 [360, 480, (3)]."""
    for index in range(count):
        if index % 8 == 0:
            scene = StreetScene(width=480, height=360, seed=2000 + index, hazards=False)
        frame = scene.render(37 * index)
        yield frame.image, frame.labels


def labelled_frames(data_set: DataSet, items: Sequence[Item]) -> Iterator[Frame]:
    """Yield (RGB, ids) of a set's items."""
    for item in tqdm(items, desc=data_set.key, unit='frame', leave=False, disable=None):
        yield data_set.read(item)


class _Maps:
    """Score maps of frames through a bundle's engine, one network pass a frame."""

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self._readout = CpuReadout()

    def __call__(self, image: np.ndarray, scores: Sequence[AnomalyScore],
                 ) -> Iterator[tuple[tuple[str, bool], np.ndarray]]:
        """Yield ((score, grouped into objects), float32 [H, W])."""
        output = self.segmenter.engine.infer([CameraFrame(image)])
        outlier = output.outlier_probabilities
        masks, probabilities = output.mask_logits[0], output.class_probabilities[0]
        found = self._readout.anomaly_scores(
            masks, probabilities, self.segmenter.network_size, image.shape[:2], scores,
            None if outlier is None else outlier[0])
        for name, score in found.items():
            yield (name, False), score
            yield (name, True), refine(score, masks, probabilities, image)


def measured_statistics(segmenter: Segmenter, frames: Iterable[Frame]) -> ClassStatistics:
    """
    Return the class statistics of a bundle, with six digits, see class_statistics.

    frames: (RGB, ids).  Raises DataError where no pixel is of a known class.
    """
    found = class_statistics(_winners(segmenter, frames), segmenter.bundle.num_classes)
    return ClassStatistics(*(tuple(float(f'{value:.6g}') for value in values)
                             for values in (found.mean, found.std)))


def _winners(segmenter: Segmenter, frames: Iterable[Frame],
             ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the winning classes of each frame's known pixels, and their max_k L_k."""
    settings = segmenter.settings
    # Of L itself, also where the bundle groups its score into objects.
    segmenter.settings = replace(
        readout_settings(segmenter.bundle, 'max_logit', threshold=0.0), objects=None)
    try:
        for image, label in frames:
            result = segmenter(image, maps={'semantic', 'anomaly_score'})
            known = label < segmenter.bundle.num_classes
            yield result.semantic[known], -result.anomaly_score[known]
    finally:
        segmenter.settings = settings


def _pixels(maps: _Maps, scores: Sequence[AnomalyScore], frames: Iterable[Frame],
            count: int) -> tuple[dict[tuple[str, bool], np.ndarray], np.ndarray]:
    """Return the scores of pixels on a grid, about PIXELS of all frames, and their labels."""
    found: dict[tuple[str, bool], list[np.ndarray]] = {}
    labels = []
    for image, label in frames:
        step = max(1, int(np.ceil(np.sqrt(count * label.size / PIXELS))))
        grid = (slice(step // 2, None, step), slice(step // 2, None, step))
        for kind, score in maps(image, scores):
            found.setdefault(kind, []).append(score[grid].ravel())
        labels.append(label[grid].ravel())
    return {kind: np.concatenate(parts) for kind, parts in found.items()}, np.concatenate(labels)


def _curve(kind: tuple[str, bool], known: np.ndarray, what: str,
           road: tuple[np.ndarray, np.ndarray] | None, where: str) -> OperatingCurve:
    rates = [rate for rate in RATES if rate * known.size >= 10] or [RATES[-1]]
    # The smallest pixel that the rate lets pass: at least it is flagged.
    thresholds = np.quantile(known, 1 - np.array(rates), method='lower').astype(np.float64)
    curve = OperatingCurve(*kind, what, tuple(rates), tuple(map(_rounded, thresholds)))
    if road is None:
        return curve
    scores, labels = road
    anomalous = np.sort(scores[labels == 1])
    found = 1 - np.searchsorted(anomalous, thresholds) / anomalous.size
    with PooledCurve() as pooled:
        pooled.add(scores, labels)
        best = pooled.result()
    return replace(
        curve, tpr=tuple(round(float(v), 4) for v in found), anomaly_data=where,
        best_f1_threshold=_rounded(best['threshold']), best_f1=round(best['best_f1'], 4))


def _rounded(value: float) -> float:
    """Return the shortest number that is the same float32: scores are compared as such."""
    return float(str(np.float32(value)))


@dataclass(frozen=True)
class Calibration:
    """What was measured: statistics of the classes and curves of the scores."""

    statistics: ClassStatistics
    curves: tuple[OperatingCurve, ...]

    def manifest(self) -> dict[str, Any]:
        """Return it as the keys class_statistics and operating_curves of a manifest's anomaly."""
        return {'class_statistics': asdict(self.statistics),
                'operating_curves': [asdict(curve) for curve in self.curves]}

    def operating_point(self, score: str, objects: bool, point: str) -> dict[str, Any]:
        """
        Return score, objects, threshold and operating_point of a manifest's anomaly.

        point: see operating_point.HOW_TO_ASK.  Raises OperatingPointError for a score or a point
        that was not measured.
        """
        spec = AnomalySpec(score, 0.0, '', 0, objects, self.curves)
        threshold, curve = spec.threshold_for(point), spec.curve(score, objects)
        data = {'fpr': f' of the {curve.data}', 'best_f1': f' on {curve.anomaly_data}'}
        where = data.get(parse_operating_point(point)[0], ', set by hand')
        return {'score': score, 'objects': objects, 'threshold': _rounded(threshold),
                'operating_point': f'{point}{where}'}


def calibrate(segmenter: Segmenter, known: DataSet | None, anomalies: DataSet | None = None,
              training: DataSet | None = None) -> Calibration:
    """
    Measure the operating curves of all scores that a bundle can compute.

    known: labelled set whose pixels of known classes are the false alarms, None for the
    procedural street without hazards; anomalies: set with labels 0 and 1, for the rates of
    detection and the best F1; training: set for the class statistics, by default `known`.
    Pixels are taken on a regular grid, so that some millions of a set remain.
    """
    classes = segmenter.bundle.num_classes
    source = training or known
    if source is None:
        statistics = measured_statistics(segmenter, street_frames())
    else:
        step = max(1, len(source.items) // STATISTICS_FRAMES)
        statistics = measured_statistics(segmenter, labelled_frames(source, source.items[::step]))
    outlier_class = segmenter.bundle.outlier_class
    scores = [make_score(name, statistics, outlier_class)
              for name in available_scores(statistics, outlier_class)]
    maps = _Maps(segmenter)
    if known is None:
        what = 'pixels of the procedural street without hazards'
        inliers, labels = _pixels(maps, scores, street_frames(), STREET_FRAMES)
    else:
        what = f'known pixels of {known.title} {known.split}'.rstrip()
        inliers, labels = _pixels(maps, scores, labelled_frames(known, known.items),
                                  len(known.items))
    if not (labels < classes).any():
        raise DataError(f'no pixel is of a known class among the {what}')
    road, where = None, ''
    if anomalies is not None:
        road = _pixels(maps, scores, labelled_frames(anomalies, anomalies.items),
                       len(anomalies.items))
        where = anomalies.title
    return Calibration(statistics, tuple(
        _curve(kind, scored[labels < classes], what,
               None if road is None else (road[0][kind], road[1]), where)
        for kind, scored in inliers.items()))


def calibrate_bundle(path: str | Path, known: DataSet | None, anomalies: DataSet | None = None,
                     training: DataSet | None = None, *, out: str | Path | None = None,
                     score: str | None = None, objects: bool | None = None,
                     point: str = DEFAULT_POINT) -> Bundle:
    """
    Calibrate a bundle and store the curves in its manifest.

    known, anomalies, training: see calibrate; out: folder of the new bundle, by default the old
    one is replaced; score, objects: the bundle's score from now on and whether it is grouped into
    objects, None to keep them; point: its threshold, an operating point such as 'fpr=0.02' or
    'best_f1'.
    Raises BundleError and EngineError for a bundle that cannot be used, OperatingPointError for
    a score or a point that the sets do not give; the bundle is then as it was. Raises ScoreError
    for a score that there is not.
    """
    parse_operating_point(point)
    if score is not None:
        check_score(score)
    segmenter = Segmenter(path)
    bundle = segmenter.bundle
    measured = calibrate(segmenter, known, anomalies, training)
    manifest = manifest_of(bundle)
    manifest['anomaly'] |= measured.manifest() | measured.operating_point(
        score or bundle.anomaly.score, bundle.anomaly.objects if objects is None else objects,
        point)
    return write_bundle(out or bundle.path, manifest,
                        {name: bundle.path / name for name in bundle.files})
