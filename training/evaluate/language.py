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
Figures of language queries: open vocabulary, Grounding mIoU, wordings, things that are absent.

Queries go the way that they go on the robot: query book, scorer, readout of the same masks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from owseg_ros.engine.contract import NetworkOutput
from owseg_ros.frame import Frame
from owseg_ros.language import (
    default_vocabulary, LanguageError, NO_EXPANSION, PreparedQueries, QueryScorer, QuerySet,
    TextEncoder, Vocabulary)
from owseg_ros.language.regions import AnomalousRegions, Region
from owseg_ros.readout import CpuReadout
from owseg_ros.segmenter import Segmenter
from owseg_training.data.datasets import DataSet, read_image
from owseg_training.evaluate.metrics import ConfusionMatrix
from owseg_training.evaluate.regions import GroundingConfusion
from owseg_training.evaluate.word_queries import class_texts, query_sets, Wording, wordings
from tqdm import tqdm

BINS = 200
# Of a frame's pixels that an absent thing may take before the frame counts as a false alarm.
ALARM = 1e-3


def softmax_weights(prepared: PreparedQueries, embeddings: np.ndarray,
                    objectness: np.ndarray) -> np.ndarray:
    """
    Return the weights of OpenSeg's rule, float32 [N, Q]: the queries compete with one another.

    softmax over the queries of <z, t> / tau, the best text of each counting, times objectness;
    the robot's own weights (PreparedQueries) compare each query with the background instead.
    """
    language = prepared.language
    logits = prepared.queries.per_query(
        embeddings @ prepared.queries.embeddings.T) / language.temperature
    logits -= logits.max(axis=1, keepdims=True)
    weights = np.exp(logits)
    weights /= weights.sum(axis=1, keepdims=True)
    return (weights * objectness[:, None] ** language.objectness).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Seen:
    """
    What the network said about a frame, of which scores of size (height, width) are wanted.

    regions: the anomalous ones, and their embeddings float32 [R, D], where the network has text
    features.
    """

    output: NetworkOutput
    size: tuple[int, int]
    regions: Sequence[Region] = ()
    embeddings: np.ndarray | None = None


class LanguageReader:
    """
    Reads scores of queries out of a bundle's network, as the robot would publish them.

    segmenter: of a bundle with region embeddings; encoder: of its text space.
    Raises LanguageError where bundle and encoder do not go together, or the bundle has no
    language.
    """

    def __init__(self, segmenter: Segmenter, encoder: TextEncoder) -> None:
        self.segmenter = segmenter
        self.encoder = encoder
        if segmenter.bundle.language is None:
            raise LanguageError(
                f'bundle {segmenter.bundle.name} has no region embeddings that answer texts; '
                'export a run of owseg-train grounding')
        self.scorer = QueryScorer(segmenter.bundle.language, encoder)
        self._readout = CpuReadout()

    def see(self, image: np.ndarray, size: tuple[int, int]) -> Seen:
        """
        Run the network on RGB uint8 [H, W, 3] and find what is anomalous.

        size: (height, width) of the scores to come.
        """
        segmenter = self.segmenter
        frame = Frame(image)
        dense = bool(segmenter.bundle.outputs.get('text_features'))
        output = segmenter.engine.infer([frame], text_features=dense)
        if not dense:
            return Seen(output, size)
        outlier = output.outlier_probabilities
        mask = self._readout(
            output.mask_logits[0], output.class_probabilities[0], segmenter.network_size, size,
            segmenter.settings, frozenset({'anomaly_mask'}),
            None if outlier is None else outlier[0], frame.pixels).anomaly_mask
        return Seen(output, size, *AnomalousRegions(output.text_features[0]).find(mask))

    def prepare(self, queries: QuerySet) -> PreparedQueries:
        """Prepare a set of queries."""
        return self.scorer.prepare(queries)

    def scores(self, seen: Seen, prepared: PreparedQueries,
               rule: str = 'calibrated') -> np.ndarray:
        """
        Return scores of the queries, float32 [Q, H, W], 0..1.

        rule: calibrated, as on the robot, where anomalous regions answer too, or softmax
        (softmax_weights).
        """
        output = seen.output
        embeddings = output.region_embeddings[0]
        objectness = 1 - output.no_object_probabilities[0]
        if rule == 'softmax':
            weights = softmax_weights(prepared, embeddings, objectness)
        else:
            frozen = output.frozen_region_embeddings
            weights = prepared.weights(embeddings, objectness,
                                       None if frozen is None else frozen[0])
        planes = self._readout.scores(output.mask_logits[0], weights,
                                      self.segmenter.network_size)
        planes = np.stack([cv2.resize(plane, seen.size[::-1], interpolation=cv2.INTER_LINEAR)
                           for plane in np.minimum(planes, 1)])
        if rule == 'calibrated' and seen.regions:
            for region, found in zip(seen.regions, prepared.probabilities(seen.embeddings)):
                window = planes[(slice(None), *region.window)]
                np.maximum(window, found[:, None, None], out=window, where=region.inside)
        return planes


@dataclass(frozen=True, eq=False)
class ScoreCounts:
    """
    How often scores occur: int64 [Q, 2, BINS] of pixels outside of and in each query's class.

    alarms: int64 [Q, BINS], frames in which more than ALARM of the pixels have a score in the
    bin or above. Bin b holds the scores from b / BINS on.
    """

    pixels: np.ndarray
    alarms: np.ndarray
    frames: int

    def iou(self) -> np.ndarray:
        """Return float64 [Q, BINS]: intersection over union with each bin as the threshold."""
        above = self.pixels[:, :, ::-1].cumsum(2)[:, :, ::-1].astype(np.float64)
        inside = self.pixels[:, 1].sum(1, keepdims=True)
        return above[:, 1] / np.maximum(inside + above[:, 0], 1)

    def false_positive_rate(self) -> np.ndarray:
        """Return float64 [Q, BINS]: share of the other pixels at or above each bin."""
        outside = self.pixels[:, 0]
        above = outside[:, ::-1].cumsum(1)[:, ::-1]
        return above / np.maximum(outside.sum(1, keepdims=True), 1)


def bin_of(threshold: float) -> int:
    """Return the bin whose scores begin at a threshold."""
    return min(BINS - 1, int(round(threshold * BINS)))


def count_scores(reader: LanguageReader, data_set: DataSet, asked: Sequence[Wording],
                 vocabulary: Vocabulary = NO_EXPANSION, every: int = 1) -> ScoreCounts:
    """Count the scores of queries, one a wording, on every n-th frame of a labelled set."""
    prepared = [reader.prepare(queries) for queries in query_sets(
        reader.encoder, {w.text: [w.text] for w in asked}, vocabulary)]
    pixels = np.zeros((len(asked), 2, BINS), np.int64)
    alarms = np.zeros((len(asked), BINS), np.int64)
    items = data_set.items[::every]
    for item in tqdm(items, desc='wordings', leave=False, disable=None):
        label = data_set.read_label(item)
        seen = reader.see(read_image(item.image), label.shape)
        valid = label < len(data_set.classes)
        row = 0
        for part in prepared:
            for plane in reader.scores(seen, part):
                bins = np.minimum((plane[valid] * BINS).astype(np.int64), BINS - 1)
                target = asked[row].target
                inside = (label[valid] == target) if target is not None else np.zeros(1, bool)
                found = np.bincount(bins + BINS * inside, minlength=2 * BINS).reshape(2, BINS)
                pixels[row] += found
                above = found.sum(0)[::-1].cumsum()[::-1]
                alarms[row] += above > ALARM * valid.sum()
                row += 1
    return ScoreCounts(pixels, alarms, len(items))


def evaluate_classes(reader: LanguageReader, data_set: DataSet, every: int = 1) -> dict[str, Any]:
    """
    Open-vocabulary mIoU and Grounding mIoU of a labelled set, its class names as the queries.

    Returns, for the rules calibrated and softmax, mIoU, grounding_mIoU and IoU by class (nan
    where undefined), and the number of frames.
    """
    names = [c.name for c in data_set.classes]
    groups = {name: class_texts(name) for name in names}
    queries, = query_sets(reader.encoder, groups)
    prepared = reader.prepare(queries)
    found: dict[str, Any] = {'frames': len(data_set.items[::every])}
    matrices = {rule: (ConfusionMatrix(len(names)), GroundingConfusion(len(names)))
                for rule in ('calibrated', 'softmax')}
    for item in tqdm(data_set.items[::every], desc=data_set.title, leave=False, disable=None):
        label = data_set.read_label(item)
        seen = reader.see(read_image(item.image), label.shape)
        for rule, (plain, grounding) in matrices.items():
            scores = reader.scores(seen, prepared, rule)
            plain.add(scores.argmax(0), label)
            grounding.add_scores(scores, label)
    for rule, (plain, grounding) in matrices.items():
        # A class that never occurs is no failure of the rule that names it.
        present = plain.counts.sum(1) > 0
        found[rule] = {
            'mIoU': float(np.nanmean(plain.iou()[present])),
            'grounding_mIoU': float(np.nanmean(grounding.iou()[present])),
            'IoU': {name: float(value) for name, value, seen in zip(
                names, plain.iou(), present) if seen},
            'grounding_IoU': {name: float(value) for name, value, seen in zip(
                names, grounding.iou(), present) if seen}}
    return found


def evaluate_wordings(reader: LanguageReader, data_set: DataSet, every: int = 1) -> dict[str, Any]:
    """
    Measure classes asked for in other words, at the default threshold.

    Returns for each vocabulary (bare words, and the one of owseg_ros) the rows: text, kind,
    class, held_out, IoU of the query's mask with the class; for absent things false_positive_rate
    and alarms, the share of frames with more than ALARM of the pixels.
    """
    names = [c.name for c in data_set.classes]
    asked = wordings(names)
    threshold = bin_of(reader.scorer.language.threshold)
    found: dict[str, Any] = {}
    for title, vocabulary in (('bare', NO_EXPANSION), ('vocabulary', default_vocabulary())):
        counts = count_scores(reader, data_set, asked, vocabulary, every)
        ious, rates = counts.iou()[:, threshold], counts.false_positive_rate()[:, threshold]
        found[title] = [
            {'text': w.text, 'kind': w.kind, 'held_out': w.held_out, **(
                {'false_positive_rate': float(rates[i]),
                 'alarms': float(counts.alarms[i, threshold] / counts.frames)}
                if w.target is None else {'class': names[w.target], 'IoU': float(ious[i])})}
            for i, w in enumerate(asked)]
    found['frames'] = len(data_set.items[::every])
    return found


def kinds(rows: Sequence[dict[str, Any]]) -> Iterator[tuple[str, int, float]]:
    """Yield (kind, number of texts, mean IoU) of the rows of evaluate_wordings."""
    for kind in dict.fromkeys(row['kind'] for row in rows if 'IoU' in row):
        values = [row['IoU'] for row in rows if row['kind'] == kind]
        yield kind, len(values), float(np.mean(values))
