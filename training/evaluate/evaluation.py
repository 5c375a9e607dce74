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
"""Evaluate a model on data sets: figures, score maps and worst cases, in constant memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import heapq
import json
from pathlib import Path
import tempfile
from typing import Any

import cv2
import numpy as np
from owseg_ros import render
from owseg_training.data.datasets import (
    class_map, ClassMap, ClassMapError, DataError, DataSet, Item)
from owseg_training.data.label_sets import (
    ClassSpec, common_label_set, label_set, label_set_of, load_class_map)
from owseg_training.evaluate.components import ComponentMetrics
from owseg_training.evaluate.metrics import ConfusionMatrix
from owseg_training.evaluate.pooled import PooledCurve
from owseg_training.evaluate.predictors import FramePrediction, Predictor
from owseg_training.evaluate.regions import MaskRecall, present_classes
from tqdm import tqdm

SEMANTIC = frozenset({'semantic'})
SCORE = frozenset({'anomaly_score'})


@dataclass(frozen=True)
class Options:
    """
    How to evaluate.

    out: folder for score maps and pictures; save_scores: 'png' (16 bit), 'npy' (float32) or
    None; worst: number of worst-case pictures; regions: also Grounding mIoU and mask recall.
    threshold: operating point of the anomaly score, None for the model's; track: None for the
    data set's; class_map: YAML of data-set names to the model's; limit: first frames only.
    """

    out: Path | None = None
    save_scores: str | None = None
    worst: int = 0
    regions: bool = True
    threshold: float | None = None
    track: str | None = None
    class_map: Path | None = None
    limit: int | None = None


class ScoreFile:
    """Score maps of a set in a temporary file, so that a second pass needs no network."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix='owseg_maps_')
        self._shapes: list[tuple[int, int]] = []

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Delete the maps."""
        self._file.close()

    def append(self, score: np.ndarray) -> None:
        """Add the map of a frame, float [H, W]; it is stored as float32."""
        self._file.write(memoryview(np.ascontiguousarray(score, np.float32)).cast('B'))
        self._shapes.append(score.shape)

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[np.ndarray]:
        self._file.seek(0)
        for height, width in self._shapes:
            data = self._file.read(4 * height * width)
            yield np.frombuffer(data, np.float32).reshape(height, width)


class _Worst:
    """The items with the largest errors."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._heap: list[tuple[float, int, Item]] = []

    def add(self, error: float, index: int, item: Item) -> None:
        if self.count and np.isfinite(error):
            heapq.heappush(self._heap, (error, -index, item))
            if len(self._heap) > self.count:
                heapq.heappop(self._heap)

    def ranked(self) -> list[tuple[float, Item]]:
        return [(error, item) for error, _, item in sorted(self._heap, reverse=True)]


def _items(data_set: DataSet, options: Options) -> tuple[Item, ...]:
    return data_set.items[:options.limit]


def _bar(items: Sequence[Item], data_set: DataSet, what: str) -> Any:
    return tqdm(items, desc=f'{data_set.key} {what}', unit='frame')


def comparison(data_set: DataSet, names: Sequence[str], table: Path | None = None,
               ) -> tuple[DataSet, ClassMap | None, tuple[str, ...]]:
    """
    Bring labels and predictions into one label set.

    names: the model's classes; table: YAML of names from the data set's to the model's classes.
    Returns the data set (its labels mapped when read), the map for predictions (None: as they
    are) and the names that are compared.  Raises ClassMapError where nothing connects the two.
    """
    own = tuple(c.name for c in data_set.classes)
    if table is not None:
        target = [ClassSpec(name, (0, 0, 0)) for name in names]
        return data_set.mapped(load_class_map(table, own, target)), None, tuple(names)
    if not own or own == tuple(names):
        return data_set, None, tuple(names)
    model = label_set_of(names)
    if data_set.label_set is None or model is None:
        raise ClassMapError(f'{data_set.title} has the classes {", ".join(own)}, the model '
                            f'{", ".join(names)}; give a map of names (--class-map)')
    common = common_label_set(data_set.label_set, model)
    if common != data_set.label_set:
        data_set = data_set.mapped(common)
    prediction_map = class_map(model, common) if common != model else None
    return data_set, prediction_map, tuple(c.name for c in label_set(common))


def _at_size(image: np.ndarray, label: np.ndarray, mode: int) -> np.ndarray:
    if image.shape == label.shape:
        return image
    return cv2.resize(image, label.shape[::-1], interpolation=mode)


def _grounded(prediction: FramePrediction, label: np.ndarray, count: int, model_count: int,
              prediction_map: ClassMap | None) -> np.ndarray | None:
    """Predict with the classes that are present; None where no class of the model is."""
    present = present_classes(label, count)
    table = (np.arange(256, dtype=np.uint8) if prediction_map is None else prediction_map.table)
    ids = np.flatnonzero(np.isin(table[:model_count], present))
    if not ids.size:
        return None
    return table[prediction.grounded(ids, label.shape)]


def evaluate_classes(predictor: Predictor, data_set: DataSet, options: Options,
                     ) -> dict[str, Any]:
    """
    Closed-set figures at the size of the labels.

    Returns mIoU, pixel_accuracy, IoU (name -> float), frames, label_set, and, with regions,
    grounding_mIoU (only classes present in a frame compete) and mask_recall (share of the
    segments, one a class and frame, that some mask of the network has at IoU 0.5); and
    ids_as_void, ids below 254 in the labels that are no class, where there are any.
    """
    data_set, prediction_map, names = comparison(
        data_set, predictor.class_names, options.class_map)
    count = len(names)
    matrix, grounding, recall = ConfusionMatrix(count), ConfusionMatrix(count), MaskRecall(count)
    worst, items = _Worst(options.worst), _items(data_set, options)
    strange: set[int] = set()
    for index, item in enumerate(_bar(items, data_set, 'classes')):
        image, label = data_set.read(item)
        strange.update(np.unique(label[(label >= count) & (label < 254)]).tolist())
        prediction = predictor(image, SEMANTIC)
        ids = _at_size(prediction.semantic, label, cv2.INTER_NEAREST)
        ids = ids if prediction_map is None else prediction_map(ids)
        matrix.add(ids, label)
        if worst.count and (label < count).any():
            worst.add(float((ids != label)[label < count].mean()), index, item)
        if options.regions:
            grounded = _grounded(prediction, label, count, len(predictor.class_names),
                                 prediction_map)
            grounding.add(np.full_like(label, 255) if grounded is None else grounded, label)
            recall.add(prediction.masks(label.shape), label)
    figures = {'mIoU': matrix.mean_iou(), 'pixel_accuracy': matrix.pixel_accuracy(),
               'IoU': dict(zip(names, (float(v) for v in matrix.iou()))), 'frames': len(items),
               'label_set': label_set_of(names)}
    if strange:
        figures['ids_as_void'] = sorted(strange)
    if options.regions:
        figures |= {'grounding_mIoU': grounding.mean_iou(), 'mask_recall': recall.recall()}
    if worst.count:
        figures['worst'] = _class_pictures(predictor, data_set, prediction_map, worst, options)
    return figures


def _palette(predictor: Predictor, data_set: DataSet, mapped: bool) -> np.ndarray:
    palette = predictor.palette.copy()
    if mapped:
        palette[:len(data_set.classes)] = [c.color for c in data_set.classes]
    return palette


def _class_pictures(predictor: Predictor, data_set: DataSet, prediction_map: ClassMap | None,
                    worst: _Worst, options: Options) -> list[dict[str, Any]]:
    palette, rows, named = _palette(predictor, data_set, prediction_map is not None), [], []
    for error, item in worst.ranked():
        image, label = data_set.read(item)
        ids = _at_size(predictor(image, SEMANTIC).semantic, label, cv2.INTER_NEAREST)
        ids = ids if prediction_map is None else prediction_map(ids)
        wrong = np.zeros((*label.shape, 3), np.uint8)
        wrong[(ids != label) & (label < 254)] = 255, 64, 64
        rows.append((f'{item.name}: {error:.1%} of pixels wrong', [
            image, render.colorize(ids, palette), render.colorize(label, palette), wrong]))
        named.append({'name': item.name, 'error': error})
    names = [c.name for c in data_set.classes] or predictor.class_names
    legend = render.legend([(n, palette[i]) for i, n in enumerate(names)], 1400)
    _save_sheet(rows, ('frame', 'prediction', 'label', 'wrong'), data_set, options, legend)
    return named


def _save_sheet(rows: list, headers: Sequence[str], data_set: DataSet, options: Options,
                footer: np.ndarray | None = None) -> None:
    if rows and options.out is not None:
        sheet = render.contact_sheet(
            rows, headers, f'{data_set.title} {data_set.split}: worst', footer=footer)
        _write(options.out / f'worst_{data_set.key}.jpg', sheet[..., ::-1])


def _write(path: Path, image: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(path), image):
        raise DataError(f'cannot write {path}')


class _ScoreSaver:
    """Score maps as 16-bit PNG or npy, with the scale of the PNG beside them."""

    def __init__(self, folder: Path, form: str, low: float, high: float) -> None:
        self.folder, self.form, self.low, self.high = folder, form, low, high
        folder.mkdir(parents=True, exist_ok=True)
        if form == 'png':
            (folder / 'scale.json').write_text(json.dumps(
                {'low': low, 'high': high, 'score': 'low + (high - low) * value / 65535'}))

    def save(self, name: str, score: np.ndarray) -> None:
        if self.form == 'npy':
            np.save(self.folder / f'{name}.npy', score.astype(np.float32))
            return
        share = (score.astype(np.float64) - self.low) / (self.high - self.low)
        _write(self.folder / f'{name}.png',
               np.round(np.clip(share, 0, 1) * 65535).astype(np.uint16))


def evaluate_anomalies(predictor: Predictor, data_set: DataSet, options: Options,
                       ) -> dict[str, Any]:
    """
    Anomaly figures of the model's score at the size of the labels.

    Returns AP, AuROC, FPR95, best_f1 (pixels, pooled, exact), threshold (of the best F1), sIoU,
    PPV, F1 (components at that threshold, as SegmentMeIfYouCan does), track, frames, and
    at_threshold: true and false positive rate of pixels and components at the model's operating
    point, score >= threshold, without the clean-up of small components that the node does.
    """
    items, worst = _items(data_set, options), _Worst(options.worst)
    track = options.track or data_set.track
    operating = predictor.threshold if options.threshold is None else options.threshold
    saver = None
    if options.save_scores and options.out is not None:
        saver = _ScoreSaver(options.out / 'scores' / data_set.key, options.save_scores,
                            1.0 - len(predictor.class_names), 1.0)
    with PooledCurve() as curve, ScoreFile() as scores:
        for item in _bar(items, data_set, 'scores'):
            image, label = data_set.read(item)
            score = _at_size(predictor(image, SCORE).anomaly_score, label, cv2.INTER_LINEAR)
            if not np.isfinite(score).all():
                raise DataError(f'{item.image}: the anomaly score is not finite everywhere; the '
                                'model overflows, or its weights are damaged')
            curve.add(score, label)
            scores.append(score)
            if saver is not None:
                saver.save(item.name, score)
        if not curve.known or not curve.anomalous:
            raise DataError(f'{data_set.title} {data_set.split} has {curve.anomalous} anomalous '
                            f'and {curve.known} known pixels; it needs both')
        pixels = curve.result()
        at_best = ComponentMetrics(pixels['threshold'], track)
        level = pixels['threshold'] if operating is None else float(
            np.nextafter(np.float32(operating), np.float32(-np.inf)))
        at_level = ComponentMetrics(level, track)
        flagged = np.zeros(2, np.int64)
        for index, (item, score) in enumerate(zip(_bar(items, data_set, 'components'), scores)):
            label = data_set.read_label(item)
            at_best.add(score, label)
            at_level.add(score, label)
            above = score > level
            counts = [np.count_nonzero(above & (label == kind)) for kind in (0, 1)]
            flagged += counts
            totals = [np.count_nonzero(label == kind) for kind in (0, 1)]
            misses = 1 - counts[1] / totals[1] if totals[1] else 0.0
            worst.add(misses + counts[0] / max(1, totals[0]), index, item)
    components = at_best.result()
    figures = {
        **{k: pixels[k] for k in ('AP', 'AuROC', 'FPR95', 'best_f1', 'threshold')},
        **components, 'track': track, 'frames': len(items)}
    if operating is not None:
        figures['at_threshold'] = {
            'threshold': operating, 'true_positive_rate': float(flagged[1] / curve.anomalous),
            'false_positive_rate': float(flagged[0] / curve.known),
            **{k: at_level.result()[k] for k in ('sIoU', 'PPV', 'F1')}}
    if worst.count:
        figures['worst'] = _anomaly_pictures(predictor, data_set, worst, level, options)
    return figures


def _anomaly_pictures(predictor: Predictor, data_set: DataSet, worst: _Worst, level: float,
                      options: Options) -> list[dict[str, Any]]:
    rows, named = [], []
    for error, item in worst.ranked():
        image, label = data_set.read(item)
        score = _at_size(predictor(image, SCORE).anomaly_score, label, cv2.INTER_LINEAR)
        image = cv2.resize(image, label.shape[::-1], interpolation=cv2.INTER_AREA)
        found = image.copy()
        for color, chosen in (((255, 64, 64), (score > level) & (label == 0)),
                              ((64, 255, 64), (score > level) & (label == 1)),
                              ((64, 64, 255), (score <= level) & (label == 1))):
            found[chosen] = (0.35 * found[chosen] + 0.65 * np.array(color)).astype(np.uint8)
        rows.append((f'{item.name}: misses + false alarms = {error:.2f}',
                     [image, render.anomaly_heat(score, *predictor.anomaly_range), found]))
        named.append({'name': item.name, 'error': error})
    _save_sheet(rows, ('frame', 'score', 'red: false alarm, green: found, blue: missed'),
                data_set, options)
    return named


def evaluate(predictor: Predictor, data_sets: Sequence[DataSet], options: Options,
             ) -> dict[str, Any]:
    """
    Evaluate a model on data sets; returns figures by DataSet.key, after 'model'.

    Sets of the same key (plain folders, one set at several places) are numbered from the second.
    """
    report: dict[str, Any] = {'model': {
        **predictor.description, 'classes': list(predictor.class_names)}}
    seen: Counter[str] = Counter()
    for data_set in data_sets:
        seen[data_set.key] += 1
        data_set = data_set.numbered(seen[data_set.key])
        run = evaluate_anomalies if data_set.kind == 'anomaly' else evaluate_classes
        report[data_set.key] = {'data_set': data_set.name, 'split': data_set.split,
                                'kind': data_set.kind, **run(predictor, data_set, options)}
    return report
