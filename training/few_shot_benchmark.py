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
The few-shot benchmark (RAML 4.2): CamVid's hidden classes are learned from a few pictures.

One network is trained without the novel classes of any setting, which are void in training and
no negatives of the masks (loss.void: ignore), so that nothing of them is known; on top of it come
metric heads, of regions and of pixels, and meta channels.  Then classes are taught by 1 and 5
pictures, those with the largest area and random draws, in every way that RAML compares, and the
validation split is read with them; outlier supervision with objects that are like no class of a
street adds regions as the robot finds them.  A second network goes on from the first with all
classes: it is the upper bound, has RoadAnomaly's anomalies to find, and is taught potholes.

Everything is kept in the plan's folder and is recognised on the next start.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
import json
from pathlib import Path
from typing import Any

import numpy as np
from owseg_ros.language.regions import pool_region, Region
from owseg_ros.novelty.region_features import region_features
from owseg_training.class_regions import embed_classes
from owseg_training.closed_set import ClosedSetTraining, load_network, predict_scores
from owseg_training.config import Config, ConfigError, load_config
from owseg_training.data.datasets import DataSet, open_cutouts, open_data_set, read_image
from owseg_training.data.hidden import hide_classes
from owseg_training.data.label_sets import map_by_names
from owseg_training.evaluate import ConfusionMatrix
from owseg_training.few_shot import calibrate_class, choose_examples, class_examples, Example
from owseg_training.few_shot_frames import (
    FrameReader, PIXELS, REGIONS, SeenFrame, SEPARATIONS)
from owseg_training.finished_runs import is_finished, write_json
from owseg_training.mca import select_channels
from owseg_training.meta_channels import MetaChannelTraining
from owseg_training.metric import MetricTraining
from owseg_training.novel_regions import (
    as_regions, count_pixels, embed, embed_pixels, RegionTally, Taught)
from owseg_training.open_world import LEFT_OUT
from owseg_training.outliers import OutlierTraining
from owseg_training.prototypes import class_prototypes, prototype
from owseg_training.regions import resize_regions
from owseg_training.shot_training import HEADS, ShotTraining
from owseg_training.transfer import ContinuedTraining
from tqdm import tqdm

SETTINGS = {'one': ('Car',), 'three': ('Car', 'Pedestrian', 'Bicyclist')}
KNOWN, ALL = 'known', 'all'
CLOSED, OUTLIERS = 'closed_set', 'outliers'
# Trainings of meta channels beside those of each K: with void as the released code has it, and
# with the losses of RAML's Table 3.
ABLATIONS = {'mca_4_void': {'void': 'negative'},
             'mca_4_rec': {'intersection': 0.0, 'split': 0.0},
             'mca_4_rec_split': {'intersection': 0.0}}
THETA = 0.8
THETAS = (0.7, 0.75, 0.8, 0.85, 0.9)
CALIBRATED = 'calibrated'
# Rules of matching: a threshold for all classes, or calibrated ones; 'gated' where a known class
# must be less similar, too.
RULES = (*(f'{theta:.2f}' for theta in THETAS), CALIBRATED, '0.80 gated', f'{CALIBRATED} gated')
# Not a rule: each region is of the class that most of it is.
MAJORITY = 'majority'
LARGEST = 'largest'
FT, PLM = 'FT', 'PLM'
KNOWN_FRAMES, KNOWN_PIXELS = 51, 64


@dataclass(frozen=True)
class Plan:
    """
    What to train and to evaluate.

    out: folder of runs, results and tables; settings: names in `novel`; shots: numbers of
    pictures a class; draws: random choices of them, tuned_draws: of which FT and PLM see only so
    many, None for all; channels: numbers K of meta channels.
    data, pretrained: folder of the data sets and the backbone's weights; every: takes each n-th
    frame of CamVid's validation split; max_width: to which RoadAnomaly's larger pictures are
    reduced for the evaluation.
    recipe, metric, mca, tuning, outliers: of the networks, the metric heads, the meta channels,
    FT and PLM, and outlier supervision; further: steps in which the network of all classes goes
    on from the other; iterations: of the first network, the second, and the others in this
    order, None for the recipes' and `further`.
    novel: the novel classes of each setting.
    """

    out: Path
    settings: tuple[str, ...] = tuple(SETTINGS)
    shots: tuple[int, ...] = (1, 5)
    draws: int = 5
    tuned_draws: int | None = None
    channels: tuple[int, ...] = (2, 4, 6)
    data: str | None = None
    pretrained: str | None = None
    every: int = 1
    max_width: int = 640
    recipe: str = 'camvid_few_shot'
    metric: str = 'camvid_few_shot_metric'
    mca: str = 'camvid_few_shot_mca'
    tuning: str = 'camvid_few_shot_tuning'
    outliers: str = 'camvid_open_world_outliers'
    further: int = 1000
    iterations: tuple[int, ...] | None = None
    novel: dict[str, tuple[str, ...]] = field(default_factory=lambda: dict(SETTINGS))

    def __post_init__(self) -> None:
        for name in self.settings:
            if name not in self.novel:
                raise ConfigError(f'unknown setting {name!r}; known: {", ".join(self.novel)}')
        if self.iterations is not None and len(self.iterations) != 6:
            raise ConfigError('iterations are six numbers: of the network of known classes, of '
                              'the one of all, the metric heads, the meta channels, FT and PLM, '
                              'and outlier supervision')
        if not self.settings or not self.shots or min(self.shots) < 1 or self.draws < 0:
            raise ConfigError('the benchmark needs at least one setting, and one shot or more')
        if 4 not in self.channels:
            raise ConfigError('channels must have 4 in it, of which the ablations are')

    @property
    def hidden(self) -> tuple[str, ...]:
        """Return the classes that are novel in any setting."""
        return tuple(dict.fromkeys(name for setting in self.settings
                                   for name in self.novel[setting]))

    @property
    def selections(self) -> tuple[str, ...]:
        """Return the names of the choices of shots."""
        return (LARGEST, *(f'random_{seed}' for seed in range(self.draws)))

    def folder(self, network: str, run: str = CLOSED) -> Path:
        """Return the folder of a run on one of the two networks."""
        return self.out / network / run

    def tuned_folder(self, method: str, setting: str, count: int, selection: str) -> Path:
        """Return the folder of a fine-tuning."""
        return self.out / method.lower() / setting / f'{count}_{selection}'

    def meta_runs(self, network: str) -> tuple[str, ...]:
        """Return the names of the trainings of meta channels."""
        if network == ALL:
            return ('mca_4',)
        return (*(f'mca_{k}' for k in self.channels), *ABLATIONS)


# Indices of Plan.iterations.
FIRST, FURTHER, METRIC, MCA, TUNING, SUPERVISION = range(6)


def _recipe(plan: Plan, network: str, stage: int, name: str) -> Config:
    config = load_config(name)
    if plan.iterations is not None:
        config.optimizer.iterations = plan.iterations[stage]
    elif stage == FURTHER:
        config.optimizer.iterations = plan.further
    config.data.root = plan.data
    config.data.hidden = list(plan.hidden) if network == KNOWN else []
    return config


def make_run(plan: Plan, network: str, run: str) -> bool:
    """
    Train a network, a metric head or meta channels unless it is there; interrupted runs go on.

    Returns whether there was something to do.  Raises ConfigError and DataError.
    """
    folder, start = plan.folder(network, run), plan.folder(network)
    if run == CLOSED:
        stage = FIRST if network == KNOWN else FURTHER
        config, parts = _recipe(plan, network, stage, plan.recipe), ('loss', 'optimizer')
        config.network.pretrained = plan.pretrained if network == KNOWN else None
    elif run in (REGIONS, PIXELS):
        config, parts = _recipe(plan, network, METRIC, plan.metric), ('metric', 'optimizer')
        if run == PIXELS:
            config.metric.unit, config.metric.views = 'pixel', 16
    elif run == OUTLIERS:
        config, parts = _recipe(plan, network, SUPERVISION, plan.outliers), (
            'loss', 'outliers', 'optimizer')
        config.loss.void = 'ignore'
        config.outliers.categories = list(open_cutouts(
            config.outliers.cutouts, config.outliers.cutouts_split, root=plan.data,
            exclude=LEFT_OUT).categories)
    else:
        config, parts = _recipe(plan, network, MCA, plan.mca), ('meta', 'optimizer')
        config.meta.channels = int(run.split('_')[1])
        for key, value in ABLATIONS.get(run, {}).items():
            setattr(config.meta, key, value)
    if is_finished(folder, config, parts):
        return False
    if run == CLOSED and network == KNOWN:
        training = ClosedSetTraining(config, folder)
    elif run == CLOSED:
        training = ContinuedTraining(config, folder, plan.folder(KNOWN))
    elif run == OUTLIERS:
        training = OutlierTraining(config, folder, start)
    else:
        kind = MetricTraining if run in (REGIONS, PIXELS) else MetaChannelTraining
        training = kind(config, folder, start)
    training.run(validate_every=None, report=False)
    return True


def make_tuned(plan: Plan, method: str, setting: str, count: int, selection: str,
               pictures: dict[str, list[str]]) -> bool:
    """Fine-tune with the shots (FT, or PLM) unless it is there; see make_run."""
    folder = plan.tuned_folder(method, setting, count, selection)
    config = _recipe(plan, KNOWN, TUNING, plan.tuning)
    config.data.hidden = [name for name in plan.hidden if name not in plan.novel[setting]]
    config.shots.pictures = pictures
    if method == PLM:
        config.shots.labels, config.shots.trainable = 'pseudo', list(HEADS)
        # The per-pixel head of the new branch would not learn.
        config.loss.pixel_weight = 0.0
    if is_finished(folder, config, ('loss', 'optimizer', 'shots')):
        return False
    ShotTraining(config, folder, plan.folder(KNOWN)).run(validate_every=None, report=False)
    for state in folder.glob('*.pt'):
        state.unlink()
    (folder / 'checkpoint.safetensors').unlink()
    return True


def class_order(plan: Plan, data_set: DataSet) -> DataSet:
    """Return a set whose ids are those of the known classes, then the novel ones; 255 is void."""
    specs = {c.name: c for c in data_set.classes}
    hide_classes(data_set, plan.hidden)
    order = [c for c in data_set.classes if c.name not in plan.hidden]
    order += [specs[name] for name in plan.hidden]
    return data_set.mapped(map_by_names([c.name for c in data_set.classes], order,
                                        {c.name: c.name for c in order}))


def figures(matrix: ConfusionMatrix, known: int, names: Sequence[str]) -> dict[str, Any]:
    """
    Return IoU by name, and mIoU of all, novel and old classes and their harmonic mean.

    All are of one confusion matrix, whose first `known` classes are old; classes that do not
    occur and are not predicted are left out of the means.
    """
    iou = matrix.iou()

    def mean(values: np.ndarray) -> float | None:
        return float(np.nanmean(values)) if np.isfinite(values).any() else None

    old, novel = mean(iou[:known]), mean(iou[known:])
    harmonic = None
    if old is not None and novel is not None:
        harmonic = 2 * old * novel / (old + novel) if old + novel else 0.0
    return {'all': mean(iou), 'novel': novel, 'old': old, 'harmonic': harmonic,
            'IoU': {name: None if np.isnan(value) else float(value)
                    for name, value in zip(names, iou)}}


@dataclass(eq=False)
class ShotView:
    """A shot as it is learned from: rows of its region and pixels by head, channels, mask."""

    region: np.ndarray
    pixels: dict[str, np.ndarray]
    meta: dict[str, np.ndarray]
    cells: np.ndarray


@dataclass(eq=False)
class TaughtClasses:
    """Shots of each class; rules gives what is compared with."""

    names: tuple[str, ...]
    shots: tuple[tuple[ShotView, ...], ...]

    def taught(self, rule: str, row: Callable[[ShotView], np.ndarray], known_rows: np.ndarray,
               known: np.ndarray) -> Taught:
        """
        Return prototypes (RAML eq 10) and thresholds for a rule of RULES.

        row: of a shot; known_rows: of known classes, to calibrate on; known: their prototypes.
        """
        rows = [np.stack([row(shot) for shot in shots]) for shots in self.shots]
        kind, _, gate = rule.partition(' ')
        thresholds = [
            calibrate_class(name, own, known_rows, THETA).threshold if kind == CALIBRATED
            else float(kind) for name, own in zip(self.names, rows)]
        return Taught(np.stack([prototype(own) for own in rows]), np.array(thresholds),
                      known if gate else None)

    def channels(self, name: str) -> np.ndarray:
        """Return the meta channels that the shots choose (RAML eqs 13 and 14), bool [K]."""
        return select_channels([(shot.meta[name], shot.cells)
                                for shots in self.shots for shot in shots])


class Teacher:
    """
    Teaches classes to the networks of a reader.

    training: the data set of the known classes' pictures, to calibrate on.
    """

    def __init__(self, reader: FrameReader, training: DataSet) -> None:
        self.reader = reader
        self._training = training
        self._views: dict[tuple[str, str], ShotView] = {}

    def view(self, name: str, example: Example) -> ShotView:
        """Return what is learned from an example of a class; read once."""
        key = name, str(example.image)
        if key not in self._views:
            image, mask = read_image(example.image), example.mask()
            frame, meta = self.reader.read(image)
            region, = as_regions(mask.astype(np.int32))
            size = image.shape[:2]
            means = region_features([region], frame.features, size)
            self._views[key] = ShotView(
                embed(self.reader.heads[REGIONS], means)[0],
                {head: _unit(pool_region(region, embed_pixels(network, frame.features), size))
                 for head, network in self.reader.heads.items()},
                meta, _cells(mask, region, frame.features.shape[1:]))
        return self._views[key]

    def teach(self, examples: dict[str, Sequence[Example]]) -> TaughtClasses:
        """Return the classes of examples by name."""
        return TaughtClasses(tuple(examples), tuple(
            tuple(self.view(name, example) for example in shots)
            for name, shots in examples.items()))

    @cached_property
    def known_regions(self) -> tuple[np.ndarray, np.ndarray]:
        """Return embeddings of known classes' regions [R, D] and their prototypes [K, D]."""
        found = embed_classes(self.reader.network, self._training, self.reader.config,
                              KNOWN_FRAMES)
        return found.rows, _present(class_prototypes(found.rows, found.classes,
                                                     len(self._training.classes)))

    @cached_property
    def known_pixels(self) -> dict[str, tuple[np.ndarray, np.ndarray]]:
        """Return embeddings of known classes' pixels and their prototypes, by head."""
        items, count = self._training.items, len(self._training.classes)
        chosen = np.unique(np.linspace(0, len(items) - 1, min(KNOWN_FRAMES, len(items))).round())
        rows: dict[str, list[np.ndarray]] = {name: [] for name in self.reader.heads}
        ids = []
        rng = np.random.default_rng(0)
        for index in tqdm(chosen.astype(int), desc='pixels', leave=False, disable=None):
            image, label = self._training.read(items[index])
            frame, _ = self.reader.read(image)
            small = resize_regions(label, frame.features.shape[1:]).ravel()
            places = np.flatnonzero(small < count)
            places = rng.permutation(places)[:KNOWN_PIXELS]
            ids.append(small[places])
            for name, head in self.reader.heads.items():
                rows[name].append(embed(head, frame.features.reshape(
                    len(frame.features), -1).T[places]))
        classes = np.concatenate(ids)
        return {name: (joined := np.concatenate(own),
                       _present(class_prototypes(joined, classes, count)))
                for name, own in rows.items()}


def _unit(row: np.ndarray) -> np.ndarray:
    return (row / max(float(np.linalg.norm(row)), 1e-12)).astype(np.float32)


def _present(prototypes: np.ndarray) -> np.ndarray:
    return prototypes[~np.isnan(prototypes).any(1)]


def _cells(mask: np.ndarray, region: Region, size: tuple[int, int]) -> np.ndarray:
    """Return a mask at the size of the channels; never empty."""
    cells = resize_regions(mask.astype(np.uint8), size).astype(bool)
    if not cells.any():
        left, top, right, bottom = region.box
        cells[(top + bottom) * size[0] // (2 * mask.shape[0]),
              (left + right) * size[1] // (2 * mask.shape[1])] = True
    return cells


def compared(teacher: Teacher, classes: TaughtClasses, frames: Sequence[SeenFrame],
             meta_runs: Sequence[str], labels: Sequence[int] = (),
             ) -> Iterator[tuple[str, str, np.ndarray]]:
    """
    Read frames with taught classes in every way but fine-tuning.

    labels: of the classes, for what the regions allow at best; none where they are not labelled.
    Yields (method, rule, counts int64 [L, P + M]), see novel_regions.
    """
    def tallies(name: str) -> Iterator[RegionTally]:
        if name in SEPARATIONS:
            return (seen.tallies[name] for seen in frames)
        chosen = classes.channels(name)
        return (teacher.reader.meta_tally(seen, name, chosen) for seen in frames)

    separations = (*SEPARATIONS, *meta_runs)
    if labels:
        for name in separations:
            yield name, MAJORITY, sum(tally.count_majority(labels) for tally in tallies(name))
    rows, known = teacher.known_regions
    for rule in RULES:
        taught = classes.taught(rule, lambda shot: shot.region, rows, known)
        for name in separations:
            yield name, rule, sum(tally.count(taught) for tally in tallies(name))
    for head, (rows, known) in teacher.known_pixels.items():
        for rule in RULES if head == PIXELS else (f'{THETA:.2f}', CALIBRATED):
            taught = classes.taught(rule, lambda shot, head=head: shot.pixels[head], rows, known)
            yield ('NPM' if head == PIXELS else 'NPM, head of regions'), rule, sum(
                count_pixels(seen.pixels[head], taught, seen.label, seen.predicted, seen.shape)
                for seen in frames)


def open_reader(plan: Plan, network: str, training: DataSet) -> FrameReader:
    """Open one of the two networks with all that is trained on it; training: its classes."""
    return FrameReader(
        plan.folder(network, REGIONS), plan.folder(network, PIXELS),
        {run: plan.folder(network, run) for run in plan.meta_runs(network)},
        plan.folder(network, OUTLIERS), training)


class CamVidBenchmark:
    """The incremental half: everything on the validation split of CamVid."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.validation = class_order(plan, open_data_set('camvid', 'val', plan.data))
        self.training = open_data_set('camvid', 'train', plan.data)
        self.names = [c.name for c in self.validation.classes]
        self.known = len(self.names) - len(plan.hidden)
        self.items = self.validation.items[::plan.every]
        self._chosen: dict[tuple[str, str], list[Example]] = {}

    @cached_property
    def teacher(self) -> Teacher:
        """Return the teacher of the network without novel classes."""
        training = hide_classes(self.training, self.plan.hidden)
        return Teacher(open_reader(self.plan, KNOWN, training), training)

    @cached_property
    def frames(self) -> list[SeenFrame]:
        """Return the validation frames as the network without novel classes sees them."""
        return [self.teacher.reader.see(*self.validation.read(item), len(self.names))
                for item in tqdm(self.items, desc='frames', leave=False, disable=None)]

    def examples(self, setting: str, count: int, selection: str) -> dict[str, list[Example]]:
        """Return the shots of each novel class of a setting."""
        return {name: self._choice(name, selection)[:count]
                for name in self.plan.novel[setting]}

    def _choice(self, name: str, selection: str) -> list[Example]:
        if (name, selection) not in self._chosen:
            kind, _, seed = selection.partition('_')
            self._chosen[name, selection] = choose_examples(
                class_examples(self.training, name), max(self.plan.shots), kind, int(seed or 0))
        return self._chosen[name, selection]

    def _figures(self, setting: str, counts: np.ndarray) -> dict[str, Any]:
        """Return the figures of counts [L, known + M], or [L, known + M + 1], of all labels."""
        novel = self.plan.novel[setting]
        names = [*self.names[:self.known], *novel]
        matrix = ConfusionMatrix(len(names))
        rows = [self.names.index(name) for name in names]
        matrix.counts[:, :counts.shape[1]] = counts[rows]
        return figures(matrix, self.known, names)

    def _options(self) -> dict[str, Any]:
        plan = self.plan
        return {'every': plan.every, 'hidden': list(plan.hidden),
                'iterations': None if plan.iterations is None else list(plan.iterations)}

    def kept(self, path: Path, make: Callable[[], Any], **options: Any) -> Any:
        """Return what a file holds, or make and keep it where options differ or it is not."""
        options |= self._options()
        if path.is_file():
            found = json.loads(path.read_text())
            if found['options'] == options:
                return found['result']
        result = make()
        write_json(path, {'options': options, 'result': result})
        return result

    def prototypes(self, setting: str, count: int, selection: str) -> list[dict[str, Any]]:
        """Return the figures of every way of matching, one a method and rule."""
        def make() -> list[dict[str, Any]]:
            classes = self.teacher.teach(self.examples(setting, count, selection))
            return [{'method': method, 'rule': rule, **self._figures(setting, counts)}
                    for method, rule, counts in compared(
                        self.teacher, classes, self.frames, self.plan.meta_runs(KNOWN),
                        [self.names.index(name) for name in classes.names])]
        return self.kept(self.plan.out / 'results' / f'{setting}_{count}_{selection}.json', make,
                         rules=list(RULES), methods=[*SEPARATIONS, *self.plan.meta_runs(KNOWN)])

    def tuned(self, method: str, setting: str, count: int, selection: str,
              ) -> list[dict[str, Any]]:
        """Fine-tune and return the figures: FT, or PLM by its latest and by all of its heads."""
        plan, folder = self.plan, self.plan.tuned_folder(method, setting, count, selection)
        pictures = {name: [Path(example.image).stem for example in examples]
                    for name, examples in self.examples(setting, count, selection).items()}
        make_tuned(plan, method, setting, count, selection, pictures)

        def make() -> list[dict[str, Any]]:
            names = [*self.names[:self.known], *plan.novel[setting]]
            latest, joined = (ConfusionMatrix(len(names)) for _ in range(2))
            for (predicted, label), base in zip(self._predictions(folder, names),
                                                self._base_predictions):
                latest.add(predicted, label)
                joined.add(np.where(predicted >= self.known, predicted, base), label)
            one = figures(latest, self.known, names)
            if method == FT:
                return [{'method': FT, 'rule': None, **one}]
            return [{'method': 'PLM latest', 'rule': None, **one},
                    {'method': 'PLM all', 'rule': None, **figures(joined, self.known, names)}]
        return self.kept(folder / 'few_shot.json', make)

    @cached_property
    def _base_predictions(self) -> list[np.ndarray]:
        return [predicted for predicted, _ in self._predictions(
            self.plan.folder(KNOWN), self.names[:self.known])]

    def _predictions(self, folder: Path, names: Sequence[str],
                     ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the ids that a run predicts and those of the label, with ids of `names`."""
        network, config = load_network(folder)
        own = [c['name'] for c in json.loads((folder / 'classes.json').read_text())['classes']]
        table = np.array([names.index(name) if name in names else 254 for name in own], np.uint8)
        labels = np.full(256, 255, np.uint8)
        for index, name in enumerate(self.names):
            if name in names:
                labels[index] = names.index(name)
        for item in tqdm(self.items, desc='frames', leave=False, disable=None):
            image, label = self.validation.read(item)
            scores = predict_scores(network, image, config)
            yield table[scores.argmax(0).cpu().numpy()], labels[label]

    def baseline(self, setting: str, network: str) -> dict[str, Any]:
        """Return the figures of a network that is taught nothing."""
        def make() -> dict[str, Any]:
            names = [*self.names[:self.known], *self.plan.novel[setting]]
            matrix = ConfusionMatrix(len(names))
            for predicted, label in self._predictions(self.plan.folder(network), names):
                matrix.add(predicted, label)
            return figures(matrix, self.known, names)
        return self.kept(self.plan.out / 'results' / f'{setting}_{network}.json', make)

    def description(self) -> dict[str, Any]:
        """Return what was compared, for the head of the report."""
        plan = self.plan
        closed = load_config(plan.recipe)
        first, *others = (load_config(name).optimizer.iterations for name in (
            plan.recipe, plan.metric, plan.mca, plan.tuning))
        others.append(load_config(plan.outliers).optimizer.iterations)
        lengths = plan.iterations or (first, plan.further, *others)
        return {'settings': {name: list(plan.novel[name]) for name in plan.settings},
                'known': self.names[:self.known], 'shots': list(plan.shots),
                'draws': plan.draws, 'tuned_draws': plan.tuned_draws,
                'channels': list(plan.channels),
                'frames': len(self.items), 'every': plan.every, 'max_width': plan.max_width,
                'size': list(closed.data.size), 'pretrained': bool(plan.pretrained),
                'iterations': dict(zip(
                    ('network', 'further', 'metric', 'mca', 'tuning', 'outliers'), lengths)),
                'batch': closed.optimizer.batch_size}


def run(plan: Plan) -> dict[str, Any]:
    """
    Make the runs that are missing, evaluate all, write the tables.

    Returns the report, see few_shot_report.summarize.  Raises ConfigError and DataError.
    """
    from owseg_training.few_shot_anomalies import anomaly_rows
    from owseg_training.few_shot_potholes import pothole_rows
    from owseg_training.few_shot_report import summarize, write

    def train(network: str) -> None:
        for name in (CLOSED, REGIONS, PIXELS, OUTLIERS, *plan.meta_runs(network)):
            made = make_run(plan, network, name)
            print(f'{network} {name}: {"trained" if made else "was there"}', flush=True)

    benchmark = CamVidBenchmark(plan)
    cases = [(setting, count, selection) for selection in plan.selections
             for setting in plan.settings for count in plan.shots]
    tuned = plan.selections if plan.tuned_draws is None else plan.selections[:plan.tuned_draws + 1]
    train(KNOWN)
    rows = []
    for case in cases:
        rows += [{**_case(case), **row} for row in benchmark.prototypes(*case)]
        print(f'prototypes {" ".join(map(str, case))}: measured', flush=True)
    for case in (case for case in cases if case[2] in tuned):
        for method in (FT, PLM):
            rows += [{**_case(case), **row} for row in benchmark.tuned(method, *case)]
            print(f'{method} {" ".join(map(str, case))}: measured', flush=True)
    train(ALL)
    baselines = [{'setting': setting, 'network': network, **benchmark.baseline(setting, network)}
                 for setting in plan.settings for network in (KNOWN, ALL)]
    anomalies, potholes = anomaly_rows(plan), pothole_rows(plan)
    report = summarize(rows, baselines, anomalies, potholes, benchmark.description())
    write(report, plan.out)
    return report


def _case(case: tuple[str, int, str]) -> dict[str, Any]:
    setting, count, selection = case
    return {'setting': setting, 'shots': count, 'selection': selection}
