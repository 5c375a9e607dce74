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
"""What a bundle says about its network: classes, input, scores, words and novelty."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Mapping

import numpy as np
from owseg_ros.bundle.problems import did_you_mean, refuse
from owseg_ros.operating_point import (
    BEST_F1, CALIBRATED, OperatingCurve, OperatingPointError, parse_operating_point)

UNKNOWN_ID = 254
UNLABELLED_ID = 255
UNKNOWN_COLOR = (255, 0, 255)
UNLABELLED_COLOR = (0, 0, 0)

OUTPUTS = ('mask_logits', 'class_logits', 'region_embeddings', 'frozen_region_embeddings',
           'text_features', 'pixel_features')


@dataclass(frozen=True)
class ClassInfo:
    """One known class: id in the masks (0..253), name, RGB colour (0..255)."""

    id: int  # noqa: A003
    name: str
    color: tuple[int, int, int]


@dataclass(frozen=True)
class InputSpec:
    """
    Input of the network: float32 [batch, 3, height, width] in RGB order.

    The frame is stretched to width x height (pixels), then normalised as (pixel - mean) / std,
    with mean and std in 0..255 units and RGB order.
    """

    name: str
    width: int
    height: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class ClassStatistics:
    """
    Mean and standard deviation of max_k L_k over known pixels of each predicted class, [K] each.

    For the standardised max-logit.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class AnomalySpec:
    """
    The anomaly score and its calibrated threshold.

    ``score`` names the score (readout.scores; 'rba': 1 - sum tanh(L_k)), higher is stranger.
    ``operating_point`` says how ``threshold`` was chosen, ``min_area`` is the smallest component
    kept, in pixels at network size, ``objects`` whether the score is grouped into objects
    (readout.objects). ``curves`` holds what calibration measured; ``statistics`` those of the
    classes, None where they were not measured; ``road_classes`` the ids of the surface that
    hazards lie on.
    """

    score: str
    threshold: float
    operating_point: str
    min_area: int
    objects: bool = False
    curves: tuple[OperatingCurve, ...] = ()
    statistics: ClassStatistics | None = None
    road_classes: tuple[int, ...] = ()

    def curve(self, score: str, objects: bool) -> OperatingCurve:
        """
        Return the operating curve of a score, plain or grouped into objects.

        :raises OperatingPointError: the model was not calibrated for it; says what to do.
        """
        for curve in self.curves:
            if (curve.score, curve.objects) == (score, objects):
                return curve
        raise OperatingPointError(
            f'this model has no operating curve of the score {score}'
            f'{" grouped into objects" if objects else ""}: run owseg-train calibrate on it, or '
            'give the threshold as a number')

    def threshold_for(self, point: object = CALIBRATED, score: str | None = None,
                      objects: bool | None = None) -> float:
        """
        Return the threshold of a score at an operating point.

        point: see operating_point.HOW_TO_ASK; score, objects: None for the bundle's.
        'calibrated' for others than the bundle's is the false-positive rate at which the bundle's
        own threshold lies.
        :raises OperatingPointError: the model was not measured there; says what to do.
        """
        score = self.score if score is None else score
        objects = self.objects if objects is None else objects
        kind, value = parse_operating_point(point)
        if kind == 'number':
            return value
        if kind == CALIBRATED and (score, objects) == (self.score, self.objects):
            return self.threshold
        curve = self.curve(score, objects)
        if kind == CALIBRATED:
            value = self.curve(self.score, self.objects).fpr_at(self.threshold)
        elif kind == BEST_F1 and curve.best_f1_threshold is None:
            raise OperatingPointError(
                'this model was calibrated without anomalies, so its best F1 is not known: '
                'run owseg-train calibrate with an anomaly set, or ask for fpr=...')
        return curve.best_f1_threshold if kind == BEST_F1 else curve.threshold_at(value)


@dataclass(frozen=True)
class SameMeaning:
    """
    When a query means a thing of the background, from the cosines of their texts.

    r(g, q) = sigmoid((c(g, q) - cosine) / scale) exp((c(g, q) - max_g' c(g', q)) / margin), c the
    largest cosine between their texts: ``cosine`` is where two texts are as likely to mean the
    same as not, ``scale`` (above zero) how fast that changes, ``margin`` (above zero) how soon a
    thing gives way to one that is nearer to the query.
    """

    cosine: float
    scale: float
    margin: float


@dataclass(frozen=True)
class EnsembleInfo:
    """
    How trained and frozen region embeddings are combined: exponent a of the frozen ones.

    ``seen`` for queries whose name or wording is among ``seen_names`` (those of training),
    ``unseen`` for the others; 0..1 each. ``temperature``: of the frozen ones, None for that of
    the trained ones.
    """

    seen: float
    unseen: float
    seen_names: tuple[str, ...]
    temperature: float | None = None


@dataclass(frozen=True)
class LanguageInfo:
    """
    How region embeddings answer texts; see language.scores.

    space: name of the text space that they live in; dim: D. temperature: tau, logits are cosines
    / tau. background: things that compete with a query, the texts for each. same_meaning: which
    of them a query means. objectness: exponent e of a region's weight (1 - p_no_object)^e.
    threshold: default threshold of a query's score, in 0..1; operating_point: how it was chosen.
    ensemble: None where there are no frozen region embeddings to combine with.
    """

    space: str
    dim: int
    temperature: float
    background: tuple[tuple[str, ...], ...]
    same_meaning: SameMeaning
    objectness: float
    threshold: float
    operating_point: str
    ensemble: EnsembleInfo | None = None


@dataclass(frozen=True)
class NoveltyInfo:
    """
    How regions are compared with taught classes; see owseg_ros.novelty.

    metric_head: ONNX file, float32 [R, C] mean pixel features of regions to float32 [R, D] of
    unit length; metric_head_sha256: its checksum. dim: D. known_prototypes: npz file of the known
    classes' prototypes. threshold: theta_novel, the least cosine of a match, -1..1;
    operating_point: how it was chosen.
    """

    metric_head: Path
    metric_head_sha256: str
    dim: int
    known_prototypes: Path
    threshold: float
    operating_point: str


@dataclass(frozen=True)
class Bundle:
    """
    A validated bundle, as ``load_bundle`` returns it.

    ``path`` is the folder, ``network`` the ONNX file, ``files`` maps each relative file name to
    its sha256, ``outputs`` maps mask_logits, class_logits, region_embeddings,
    frozen_region_embeddings, text_features and pixel_features to the names of the ONNX outputs
    (None where the network has no such output).
    ``outlier_class`` says whether class_logits has one more column, before that of no-object,
    for what the network was shown as outliers. ``language`` is None where the network has no
    region embeddings, ``novelty`` where it has no metric head. ``program`` is the torch.export
    program of the same network (engine torch), None without.
    """

    path: Path
    name: str
    version: str
    description: str
    license: str  # noqa: A003
    classes: tuple[ClassInfo, ...]
    input: InputSpec  # noqa: A003
    outputs: Mapping[str, str | None]
    anomaly: AnomalySpec
    network: Path
    network_sha256: str
    files: Mapping[str, str]
    outlier_class: bool = False
    language: LanguageInfo | None = None
    novelty: NoveltyInfo | None = None
    program: Path | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        """Return K, the number of known classes (no-object is not one of them)."""
        return len(self.classes)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Return the names of the classes, indexed by id."""
        return tuple(info.name for info in self.classes)

    def class_id(self, name: str) -> int:
        """
        Return the id of the class called ``name``.

        :raises BundleError: no class has this name; the message lists those there are.
        """
        for info in self.classes:
            if info.name == name:
                return info.id
        guess = did_you_mean(name, self.class_names)
        refuse(self.path, f'no class is called {name!r}{guess}; its classes are '
               f"{', '.join(self.class_names)}")

    def palette(self) -> np.ndarray:
        """
        Return the colour of every id that a mask can hold, uint8 [256, 3] in RGB order.

        Ids 0..K-1 have the colours of the bundle, 254 (unknown) is magenta, 255 (unlabelled)
        black, and the ids between are spread over the hue circle for classes taught later.
        """
        palette = np.zeros((256, 3), np.uint8)
        for index in range(self.num_classes, UNKNOWN_ID):
            # Steps of the golden ratio keep neighbouring ids far apart on the hue circle.
            hue = (index * 0.6180339887498949) % 1.0
            palette[index] = [round(255 * c) for c in colorsys.hsv_to_rgb(hue, 0.65, 0.95)]
        for info in self.classes:
            palette[info.id] = info.color
        palette[UNKNOWN_ID] = UNKNOWN_COLOR
        palette[UNLABELLED_ID] = UNLABELLED_COLOR
        return palette
