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
Open-world CamVid: classes hidden from training are the anomalies of the validation split.

A setting hides classes in the way of RAML's class sets: their pixels are void in training, and
the ids of the others are compacted.  For every setting and seed a network is trained, fine-tuned
with outlier supervision, and read with every anomaly score, on the hidden classes of CamVid's
validation split and on RoadAnomaly.

The first network of a seed hides what any setting hides.  A setting that hides less goes on from
it with its further classes, so that no network has ever seen what it is tested on.  Two more
things keep the hidden classes out: void is no negative for the masks (loss.void: ignore), since
otherwise they would be taught to be rejected; and no cut-out for outlier supervision shows them
or their like.  The method void_negative shows what the first of these is worth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from owseg_ros.readout import AnomalyScore, CpuReadout, make_score
from owseg_training.class_statistics import class_statistics
from owseg_training.closed_set import ClosedSetTraining, load_network, predict
from owseg_training.config import Config, ConfigError, load_config
from owseg_training.data.datasets import (
    COCO_ROAD_CATEGORIES, DataSet, Item, open_cutouts, open_data_set)
from owseg_training.data.hidden import hidden_as_anomalies, hide_classes
from owseg_training.evaluate import anomaly_metrics, ConfusionMatrix
from owseg_training.evaluate.baseline_scores import densehybrid_score, score_of
from owseg_training.evaluate.components import Track, TRACKS
from owseg_training.evaluate.evaluation import ScoreFile
from owseg_training.finished_runs import is_finished, write_json
from owseg_training.outlier_losses import OUTLIER_LOSSES
from owseg_training.outliers import OutlierTraining
from owseg_training.transfer import ContinuedTraining
from tqdm import tqdm

SETTINGS = {'car': ('Car',), 'people': ('Pedestrian', 'Bicyclist'),
            'all': ('Car', 'Pedestrian', 'Bicyclist')}
# What a network is called that had no outlier supervision.
NONE = 'none'
SUPERVISED = 'squared_hinge'
# The closed set with void outside of every mask, as Mask2Former and the released code train.
VOID_NEGATIVE = 'void_negative'
SCORES = ('rba', 'msp', 'max_logit', 'entropy', 'energy', 'standardized_max_logit', 'eam')
# Of networks that were trained with another loss: these, and the score the loss is made for.
FEW_SCORES = ('rba', 'msp', 'max_logit')
# Soap boxes on wheels with people in them are too near to cars and people.
LEFT_OUT = (*COCO_ROAD_CATEGORIES, 'soapbox-car')
STATISTICS_FRAMES = 24
CAMVID, ROAD_ANOMALY = 'camvid', 'road_anomaly'


@dataclass(frozen=True)
class Plan:
    """
    What to train and to evaluate.

    out: folder of the runs and tables; settings: names in SETTINGS; seeds; methods: losses of
    outlier supervision, and VOID_NEGATIVE: the squared hinge in every setting, others in the one
    that hides the most.
    data, pretrained: folder of the data sets and the backbone's weights; every: takes each n-th
    frame of CamVid's validation split; max_width: to which RoadAnomaly's larger pictures are
    reduced for the evaluation.
    recipe, outliers: of the closed set and of the fine-tuning; iterations: steps of the first
    network of a seed, of the settings that go on from it, and of the fine-tuning; None for the
    recipes'.
    """

    out: Path
    settings: tuple[str, ...] = tuple(SETTINGS)
    seeds: tuple[int, ...] = (0, 1, 2)
    methods: tuple[str, ...] = (SUPERVISED,)
    data: str | None = None
    pretrained: str | None = None
    every: int = 1
    max_width: int = 640
    recipe: str = 'camvid_open_world'
    outliers: str = 'camvid_open_world_outliers'
    iterations: tuple[int, ...] | None = None
    hidden: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(SETTINGS))

    def __post_init__(self) -> None:
        for kind, chosen, known in (('setting', self.settings, self.hidden),
                                    ('method', self.methods, (VOID_NEGATIVE, *OUTLIER_LOSSES))):
            for name in chosen:
                if name not in known:
                    raise ConfigError(f'unknown {kind} {name!r}; known: {", ".join(known)}')
        if self.iterations is not None and len(self.iterations) != 3:
            raise ConfigError('iterations are three numbers: of the first network, of the '
                              'settings that go on from it, and of the fine-tuning')
        if not self.settings or not self.seeds:
            raise ConfigError('the benchmark needs at least one setting and one seed')
        missing = set(self.base_hidden) - set(self.hidden[self.base])
        if missing:
            raise ConfigError(f'no setting hides all of {", ".join(self.base_hidden)}; choose '
                              'one that does, too')

    @property
    def base_hidden(self) -> tuple[str, ...]:
        """Return the classes that any of the settings hides."""
        return tuple(dict.fromkeys(
            name for setting in self.settings for name in self.hidden[setting]))

    @property
    def base(self) -> str:
        """Return the setting that hides the most."""
        return max(self.settings, key=lambda setting: len(self.hidden[setting]))

    def methods_of(self, setting: str) -> tuple[str, ...]:
        """Return the methods that are compared with none in a setting."""
        return tuple(m for m in self.methods if m == SUPERVISED or setting == self.base)

    def run_folder(self, setting: str, seed: int, method: str = NONE) -> Path:
        """Return the folder of a run."""
        return self.out / setting / f'seed_{seed}' / ('closed_set' if method == NONE else method)

    def networks(self) -> Iterator[tuple[str, int, str]]:
        """Yield (setting, seed, method), each after what it starts from; baselines last."""
        order = sorted(self.settings, key=lambda setting: setting != self.base)
        for methods in ((NONE, SUPERVISED), tuple(m for m in self.methods if m != SUPERVISED)):
            for seed in self.seeds:
                for setting in order:
                    for method in methods:
                        if method == NONE or method in self.methods_of(setting):
                            yield setting, seed, method


def is_supervised(method: str) -> bool:
    """Say whether a method is a loss of outlier supervision."""
    return method not in (NONE, VOID_NEGATIVE)


def _recipe(plan: Plan, setting: str, seed: int, method: str) -> Config:
    stage = 2 if is_supervised(method) else 0 if setting == plan.base else 1
    config = load_config(plan.outliers if stage == 2 else plan.recipe)
    if plan.iterations is not None:
        config.optimizer.iterations = plan.iterations[stage]
    config.optimizer.seed = seed
    config.loss.void = 'negative' if method == VOID_NEGATIVE else 'ignore'
    config.data.root = plan.data
    config.data.hidden = list(plan.hidden[setting])
    if stage == 0:
        config.network.pretrained = plan.pretrained
    if stage == 2:
        config.outliers.loss = method
        objects = open_cutouts(config.outliers.cutouts, config.outliers.cutouts_split,
                               root=plan.data, exclude=LEFT_OUT)
        config.outliers.categories = list(objects.categories)
    return config


def make_run(plan: Plan, setting: str, seed: int, method: str) -> bool:
    """
    Train one network unless it is there; an interrupted run goes on.

    Returns whether there was something to do.  Raises ConfigError and DataError.
    """
    folder, config = plan.run_folder(setting, seed, method), _recipe(plan, setting, seed, method)
    parts = ('loss', 'optimizer', *(('outliers',) if is_supervised(method) else ()))
    if is_finished(folder, config, parts):
        return False
    if is_supervised(method):
        training = OutlierTraining(config, folder, plan.run_folder(setting, seed))
    elif setting == plan.base:
        training = ClosedSetTraining(config, folder)
    else:
        training = ContinuedTraining(config, folder, plan.run_folder(plan.base, seed))
    # The evaluation measures all networks, and on more; pictures of each would take longer.
    training.run(validate_every=None, report=False)
    return True


class _Reader:
    """A network and the one pass of masks and probabilities that every score is read from."""

    def __init__(self, folder: Path) -> None:
        self.network, self.config = load_network(folder)
        self._readout = CpuReadout()

    def output(self, image: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray | None,
                                                 tuple[int, int]]:
        """Return masks [N, h, w], P [N, K], outlier class [N] or None, (height, width)."""
        prediction, size = predict(self.network, image, self.config)
        probabilities = prediction.class_logits[0].softmax(1).cpu().numpy()
        count = self.network.num_classes
        outlier = (np.ascontiguousarray(probabilities[:, count])
                   if self.config.network.outlier_class else None)
        return (prediction.mask_logits[0].cpu().numpy(),
                np.ascontiguousarray(probabilities[:, :count]), outlier, size)

    def levels(self, image: np.ndarray) -> np.ndarray:
        """Return L, float32 [K, h, w], at the network's size."""
        masks, probabilities, _, size = self.output(image)
        return self._readout.scores(masks, probabilities, size)

    def read(self, image: np.ndarray, size: tuple[int, int], scores: Sequence[AnomalyScore],
             ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return ids uint8 and scores float32 by name at (height, width)."""
        masks, probabilities, outlier, network_size = self.output(image)
        maps = self._readout.anomaly_scores(
            masks, probabilities, network_size, size, scores, outlier)
        levels = self._readout.scores(masks, probabilities, network_size)
        ids = np.stack([cv2.resize(level, size[::-1], interpolation=cv2.INTER_LINEAR)
                        for level in levels]).argmax(0)
        return ids.astype(np.uint8), maps


def winners(levels: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return the winning classes of known pixels and their max_k L_k, see class_statistics.

    levels: L, float [K, h, w]; label: ids uint8 [h, w], of which K and above are left out.
    """
    known = label < len(levels)
    return levels.argmax(0)[known], levels.max(0)[known]


def _training_winners(reader: _Reader, training: DataSet,
                      ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for item in training.items[::max(1, len(training.items) // STATISTICS_FRAMES)]:
        image, label = training.read(item)
        levels = reader.levels(image)
        yield winners(levels, cv2.resize(label, levels.shape[:0:-1],
                                         interpolation=cv2.INTER_NEAREST))


def reduced(label: np.ndarray, max_width: int) -> np.ndarray:
    """Return a label [H, W] at most max_width wide, the nearest pixels'; 0: as it is."""
    height, width = label.shape
    if not max_width or width <= max_width:
        return label
    size = max_width, round(height * max_width / width)
    return cv2.resize(label, size, interpolation=cv2.INTER_NEAREST)


def scaled_track(data_set: DataSet, items: Sequence[Item], max_width: int) -> Track:
    """Scale the sizes of a track with the area of the pictures."""
    track, width = TRACKS[data_set.track], data_set.read_label(items[0]).shape[1]
    share = min(1.0, max_width / width if max_width else 1.0) ** 2
    return Track(round(track.min_prediction * share), round(track.min_truth * share))


def _measure(reader: _Reader, data_set: DataSet, items: Sequence[Item],
             scores: Sequence[AnomalyScore], max_width: int, own: str | None,
             seen: Callable[[np.ndarray, Item], None] = lambda ids, item: None,
             ) -> dict[str, dict[str, float]]:
    """Measure the scores on frames; seen gets the predicted ids of each frame."""
    names = [score.name for score in scores] + ([own] if own else [])
    files = {name: ScoreFile() for name in names}
    labels = []
    try:
        for item in tqdm(items, desc=data_set.key, unit='frame', leave=False, disable=None):
            image, label = data_set.read(item)
            label = reduced(label, max_width)
            labels.append(label)
            ids, maps = reader.read(image, label.shape, scores)
            seen(ids, item)
            if own:
                score = densehybrid_score(reader.network, image, reader.config)
                maps[own] = cv2.resize(score, label.shape[::-1], interpolation=cv2.INTER_LINEAR)
            for name, file in files.items():
                file.append(maps[name])
        track = scaled_track(data_set, items, max_width)
        return {name: anomaly_metrics(file, labels, track=track) for name, file in files.items()}
    finally:
        for file in files.values():
            file.close()


def evaluate_run(plan: Plan, setting: str, seed: int, method: str) -> dict[str, Any]:
    """
    Measure one network; what was measured before with the same options is read from its folder.

    Returns mIoU (of the known classes) and, for CAMVID (hidden classes against known ones) and
    ROAD_ANOMALY, the figures of evaluate.anomaly_metrics by score.
    """
    folder, hidden = plan.run_folder(setting, seed, method), plan.hidden[setting]
    options = {'every': plan.every, 'max_width': plan.max_width, 'hidden': list(hidden)}
    listing = folder / 'open_world.json'
    if listing.is_file():
        found = json.loads(listing.read_text())
        if found['options'] == options:
            return found
    reader = _Reader(folder)
    camvid = open_data_set('camvid', 'val', plan.data)
    known, anomalies = hide_classes(camvid, hidden), hidden_as_anomalies(camvid, hidden)
    names = (SCORES if method in (NONE, VOID_NEGATIVE, SUPERVISED) else
             tuple(dict.fromkeys((*FEW_SCORES, score_of(method)))))
    own = 'densehybrid' if 'densehybrid' in names else None
    statistics = None
    if 'standardized_max_logit' in names:
        training = hide_classes(open_data_set('camvid', 'train', plan.data), hidden)
        statistics = class_statistics(_training_winners(reader, training),
                                      reader.network.num_classes)
    scores = [make_score(name, statistics, reader.config.network.outlier_class)
              for name in names if name != own]
    matrix = ConfusionMatrix(reader.network.num_classes)
    items = camvid.items[::plan.every]
    found = {'options': options, CAMVID: _measure(
        reader, anomalies, items, scores, 0, own,
        lambda ids, item: matrix.add(ids, known.read_label(item)))}
    road = open_data_set('road_anomaly', root=plan.data)
    found |= {ROAD_ANOMALY: _measure(reader, road, road.items, scores, plan.max_width, own),
              'mIoU': matrix.mean_iou(), 'frames': {CAMVID: len(items),
                                                    ROAD_ANOMALY: len(road.items)}}
    write_json(listing, found, indent=1)
    return found


def run(plan: Plan) -> dict[str, Any]:
    """
    Make the runs that are missing, evaluate all, write the tables.

    Returns the report, see open_world_report.summarize.  Raises ConfigError and DataError.
    """
    from owseg_training.open_world_report import summarize, write

    results = []
    for setting, seed, method in plan.networks():
        trained = make_run(plan, setting, seed, method)
        print(f'{setting}, seed {seed}, {method}: {"trained" if trained else "was there"}')
        found = evaluate_run(plan, setting, seed, method)
        results.append({'setting': setting, 'seed': seed, 'method': method, **found})
    report = summarize(results, _description(plan))
    write(report, plan.out)
    return report


def _description(plan: Plan) -> dict[str, Any]:
    configs = {name: _recipe(plan, setting, plan.seeds[0], method).to_dict()['optimizer']
               for name, setting, method in (
                   ('first', plan.base, NONE),
                   ('further', min(plan.settings, key=lambda s: len(plan.hidden[s])), NONE),
                   ('outliers', plan.base, SUPERVISED))}
    return {'settings': {name: list(plan.hidden[name]) for name in plan.settings},
            'seeds': list(plan.seeds), 'base': plan.base, 'every': plan.every,
            'max_width': plan.max_width, 'camvid_track': asdict(TRACKS['obstacle']),
            'iterations': {name: values['iterations'] for name, values in configs.items()},
            'batch_size': configs['first']['batch_size']}
