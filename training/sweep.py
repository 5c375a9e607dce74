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
Sweeps: one setting varied, every value trained and evaluated, one table and one picture.

A sweep is a YAML file (training/recipes/sweeps, or a path); see Sweep for its keys.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass, field
import json
from pathlib import Path
import re
from typing import Any

import numpy as np
from owseg_ros.bundle import sha256_of
from owseg_training.analysis.masking import masking
from owseg_training.analysis.run import open_run
from owseg_training.analysis.specialisation import specialisation
from owseg_training.analysis.validation_losses import validation_losses
from owseg_training.closed_set import ClosedSetTraining, load_network, validate
from owseg_training.config import (
    build, Config, config_from_dict, ConfigError, load_config, named_file, RECIPES, run_config)
from owseg_training.data.datasets import DataSet, open_data_set
from owseg_training.evaluate.pooled import PooledCurve
from owseg_training.evaluate.predictors import CheckpointPredictor, Predictor
from owseg_training.finished_runs import differences, write_json
from owseg_training.network import MaskClassifier
from owseg_training.outliers import freeze_except, OutlierTraining
from owseg_training.report import read_log
from owseg_training.sweep_report import write_sweep
from tqdm import tqdm
import yaml

SWEEPS = RECIPES / 'sweeps'
STAGES = ('closed_set', 'outliers')
SPECIALISATION_FRAMES = 100


def _validation_losses(folder: Path) -> dict[str, float]:
    return {f'{name}_loss': value for name, value in validation_losses(open_run(folder)).items()}


def _hard_masking(folder: Path) -> dict[str, float]:
    """Choose the query of each class on the split train, mask on val (RbA 3.2)."""
    run = open_run(folder)
    train_set, val_set = (open_data_set(run.config.data.data_set, split, run.config.data.root)
                          for split in ('train', 'val'))
    queries = specialisation(run, [train_set], limit=SPECIALISATION_FRAMES).queries()
    iou = masking(run, val_set, queries).iou['hard']
    return {'hard_masking_mIoU': float(np.nanmean(iou))}


# Beyond mIoU, AP, AuROC and FPR95: figures from the folder of a run.
MEASURES: dict[str, Callable[[Path], dict[str, float]]] = {
    'hard_masking': _hard_masking,
    'validation_losses': _validation_losses,
}


@dataclass
class Sweep:
    """
    What a sweep varies.

    title; stage: the stage that key belongs to, closed_set or outliers.
    closed_set, outliers: recipes (names, or paths relative to the sweep's file); a sweep of the
    stage closed_set without outliers does not fine-tune.  closed_set_overrides and
    outliers_overrides change the recipes for all values.
    key: path of the setting in the recipe of the stage (optimizer.iterations); values: what it is
    set to, a mapping is merged into the recipe's; labels: their names in the table, by default
    the values.
    x_label, x_scale (linear or log): of the picture, for values that are numbers.
    measures: further figures of the closed-set runs, names in MEASURES.
    anomaly_set: data set of the anomaly figures.
    note: what a reader of the table must know.
    """

    title: str = ''
    stage: str = 'closed_set'
    closed_set: str = 'camvid_quick'
    outliers: str = ''
    closed_set_overrides: dict[str, Any] = field(default_factory=dict)
    outliers_overrides: dict[str, Any] = field(default_factory=dict)
    key: str = ''
    values: list[Any] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    x_label: str = ''
    x_scale: str = 'linear'
    measures: list[str] = field(default_factory=list)
    anomaly_set: str = 'road_anomaly'
    note: str = ''


def _merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{key: _merged(old.get(key), value) for key, value in new.items()}}
    return copy.deepcopy(new)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key to a value, a mapping merged into what is there."""
    *parents, last = key.split('.')
    for place, part in enumerate([*parents, last]):
        if not isinstance(values, dict) or part not in values:
            known = ', '.join(values) if isinstance(values, dict) else 'no keys'
            where = '.'.join([*parents, last][:place]) or 'the recipe'
            raise ConfigError(f'key {key!r}: {where} has no {part!r}; it has {known}')
        if place < len(parents):
            values = values[part]
    values[last] = _merged(values[last], value)


class SweepFile:
    """
    A sweep with its configurations, read from a file by name or path.

    Raises ConfigError, which names the file, for unknown keys, and for settings or values that
    the recipe does not take.
    """

    def __init__(self, name_or_path: str | Path) -> None:
        path = named_file(name_or_path, SWEEPS, 'sweep')
        self.path, self.name = path, path.stem
        try:
            self.sweep: Sweep = build(Sweep, yaml.safe_load(path.read_text()) or {}, 'sweep')
            self.labels = self._check()
            for index in range(len(self.labels)):
                self.config('closed_set', index)
                if self.sweep.outliers:
                    self.config('outliers', index)
        except ConfigError as error:
            raise ConfigError(f'{path}: {error}') from error
        except yaml.YAMLError as error:
            raise ConfigError(f'{path} is not YAML: {error}') from error

    def _check(self) -> list[str]:
        sweep = self.sweep
        for name, allowed in (('stage', STAGES), ('x_scale', ('linear', 'log'))):
            if getattr(sweep, name) not in allowed:
                raise ConfigError(f'sweep.{name} must be one of {", ".join(allowed)}, not '
                                  f'{getattr(sweep, name)!r}')
        for name in sweep.measures:
            if name not in MEASURES:
                raise ConfigError(f'no measure {name!r}; known: {", ".join(MEASURES)}')
        if not sweep.key or not sweep.values:
            raise ConfigError('a sweep needs a key and its values')
        if sweep.stage == 'outliers' and not sweep.outliers:
            raise ConfigError('a sweep of the stage outliers needs a recipe: outliers')
        labels = [str(label) for label in sweep.labels or sweep.values]
        if len(labels) != len(sweep.values):
            raise ConfigError(f'{len(sweep.values)} values, but {len(labels)} labels')
        folders = {run_name(label, 0) for label in labels}
        if len(folders) < len(labels):
            raise ConfigError('labels must lead to different folders: ' + ', '.join(labels))
        return labels

    def config(self, stage: str, index: int | None = None, seed: int | None = None,
               pretrained: str | None = None, data: str | None = None) -> Config:
        """
        Build the configuration of a stage.

        index: of the value; None leaves the setting at the recipe's.  seed: of the optimizer,
        None for the recipe's.  pretrained: weights of the backbone, where the value does not set
        them.  data: folder of the data sets.
        """
        name = getattr(self.sweep, stage)
        recipe = self.path.parent / name if name.endswith(('.yaml', '.yml')) else name
        values = _merged(load_config(recipe).to_dict(),
                         getattr(self.sweep, f'{stage}_overrides'))
        if pretrained and stage == 'closed_set':
            values['network']['pretrained'] = str(pretrained)
        if index is not None and stage == self.sweep.stage:
            _put(values, self.sweep.key, self.sweep.values[index])
        if seed is not None:
            values['optimizer']['seed'] = seed
        if data is not None:
            values['data']['root'] = str(data)
        return config_from_dict(values)


def run_name(label: str, seed: int) -> str:
    """Return the folder of a run."""
    return f'{re.sub(r"[^A-Za-z0-9_.+-]+", "_", label)}_{seed}'


def train(config: Config, folder: Path, start: Path | None = None,
          device: str | None = None) -> None:
    """
    Train a run unless it is finished; an interrupted one goes on.

    start: fine-tune this run with outlier supervision; its hidden classes are taken over.
    Raises ConfigError where the folder holds a run with another configuration.
    """
    config.stage = 'closed_set' if start is None else 'outliers'
    if start is not None:
        config.data.hidden = run_config(start).data.hidden
    found = differences(folder, config)
    if found:
        raise ConfigError(f'{folder} holds a run of another configuration '
                          f'({"; ".join(found[:3])}); give another --out')
    if (folder / 'model.safetensors').is_file():
        return
    if start is None:
        ClosedSetTraining(config, folder, device).run()
    else:
        OutlierTraining(config, folder, start, device).run()


def _weights(folder: Path) -> Path:
    finished = folder / 'model.safetensors'
    return finished if finished.is_file() else folder / 'checkpoint.safetensors'


def _miou(run: Path, network: MaskClassifier, config: Config) -> float:
    """Return the mIoU that the run logged at its end, else validate."""
    log = run / 'log.jsonl'
    if log.is_file() and not differences(run, config):
        for entry in read_log(log):
            if entry['step'] == config.optimizer.iterations and 'mIoU' in entry:
                return entry['mIoU']
    return validate(network, config).mean_iou()


def _anomaly_figures(predictor: Predictor, data_set: DataSet) -> dict[str, float]:
    with PooledCurve() as curve:
        for item in tqdm(data_set.items, desc=data_set.key, unit='frame'):
            image, label = data_set.read(item)
            curve.add(predictor(image, frozenset({'anomaly_score'})).anomaly_score, label)
        pixels = curve.result()
    return {name: pixels[name] for name in ('AP', 'AuROC', 'FPR95')}


def measure(run: Path, config: Config, file: Path, anomaly_set: str,
            measures: Sequence[str] = (), threads: int = 0) -> dict[str, Any]:
    """
    Return the figures of a run; they are kept in a JSON file with the sha256 of its weights.

    config says the data and the size at which frames are seen: mIoU on the split val of its data
    set, as in training; AP, AuROC, FPR95 (pooled, exact) of the RbA score on the anomaly set;
    parameters; trainable (share of them that the stage trains); and those of `measures`, see
    MEASURES.
    """
    digest = sha256_of(_weights(run))
    figures = json.loads(file.read_text()) if file.is_file() else {}
    if figures.get('weights') != digest:
        figures = {'weights': digest}
    if 'mIoU' not in figures:
        network = load_network(run)[0]
        scores = _anomaly_figures(
            CheckpointPredictor(run, threads=threads, size=config.data.size),
            open_data_set(anomaly_set, root=config.data.root))
        parts = config.outliers.trainable if config.stage == 'outliers' else None
        parameters = sum(p.numel() for name, p in network.named_parameters()
                         if not name.startswith('pixel_classifier'))
        figures |= {
            'mIoU': _miou(run, network, config), **scores,
            'parameters': parameters,
            'trainable': freeze_except(network, parts)[0] / parameters if parts else 1.0}
        write_json(file, figures, indent=1)
    for name in measures:
        if name not in figures.get('measured', ()):
            figures |= MEASURES[name](run)
            figures['measured'] = [*figures.get('measured', ()), name]
            write_json(file, figures, indent=1)
    return figures


class SweepRunner:
    """
    Makes the runs of a sweep in a folder and writes sweep.json, sweep.md and sweep.png.

    Runs are FOLDER/<label>_<seed>, each with its figures in metrics.json; where a closed-set
    setting varies, FOLDER/<label>_<seed>_outliers is fine-tuned from it.  Fine-tuning sweeps
    start from `start`, or from a run that is made in FOLDER/start.

    Raises ConfigError for a start where the closed set varies, and for a folder whose runs began
    from other weights or with another configuration.
    """

    def __init__(self, sweep: SweepFile, folder: str | Path, seeds: Sequence[int] = (0,),
                 start: str | Path | None = None, pretrained: str | None = None,
                 data: str | None = None, device: str | None = None, threads: int = 0) -> None:
        if start is not None and sweep.sweep.stage != 'outliers':
            raise ConfigError(f'{sweep.path} varies the closed-set stage, which has no start')
        self.file, self.sweep = sweep, sweep.sweep
        self.folder, self.seeds = Path(folder), list(seeds)
        self.start = None if start is None else Path(start)
        self.pretrained, self.data = pretrained, data
        self.device, self.threads = device, threads

    def _config(self, stage: str, index: int | None = None, seed: int | None = None) -> Config:
        return self.file.config(stage, index, seed, self.pretrained, self.data)

    def _measure(self, run: Path, config: Config, file: Path | None = None,
                 measures: Sequence[str] = ()) -> dict[str, Any]:
        return measure(run, config, file or run / 'metrics.json', self.sweep.anomaly_set,
                       measures, self.threads)

    def _begin(self) -> tuple[Path, dict[str, Any]]:
        """Make the start of a fine-tuning sweep; returns its folder and figures."""
        run, file = self.start or self.folder / 'start', self.folder / 'start' / 'metrics.json'
        if self.start is None:
            train(self._config('closed_set'), run, device=self.device)
        elif not _weights(run).is_file():
            raise FileNotFoundError(f'{run} holds no run')
        if file.is_file() and json.loads(file.read_text())['weights'] != sha256_of(_weights(run)):
            raise ConfigError(f'the runs in {self.folder} began from other weights than {run}; '
                              'give another --out')
        # Seen at the size at which it is fine-tuned, whatever its own is.
        config = self._config('outliers')
        config.data.hidden = run_config(run).data.hidden
        return run, self._measure(run, config, file)

    def _fine_tuned(self, index: int, seed: int, start: Path, folder: Path) -> dict[str, Any]:
        config = self._config('outliers', index, seed)
        train(config, folder, start, self.device)
        return self._measure(folder, config)

    def _run(self, index: int, seed: int, start: Path | None) -> dict[str, Any]:
        folder = self.folder / run_name(self.file.labels[index], seed)
        result: dict[str, Any] = {'seed': seed, 'folder': folder.name}
        if start is not None:
            return {**result, 'after': self._fine_tuned(index, seed, start, folder)}
        config = self._config('closed_set', index, seed)
        train(config, folder, device=self.device)
        result['before'] = self._measure(folder, config, measures=self.sweep.measures)
        if self.sweep.outliers:
            result['after'] = self._fine_tuned(
                index, seed, folder, folder.with_name(f'{folder.name}_outliers'))
        return result

    def run(self) -> dict[str, Any]:
        """Make what is missing; returns what sweep.json holds."""
        sweep = self.sweep
        report: dict[str, Any] = {
            'sweep': self.file.name, 'title': sweep.title, 'stage': sweep.stage,
            'key': sweep.key, 'x_label': sweep.x_label or sweep.key, 'x_scale': sweep.x_scale,
            'anomaly_set': sweep.anomaly_set, 'seeds': self.seeds, 'start': None,
            'note': sweep.note, 'rows': []}
        start = None
        if sweep.stage == 'outliers':
            start, report['start'] = self._begin()
        for index, (label, value) in enumerate(zip(self.file.labels, sweep.values)):
            row: dict[str, Any] = {'label': label, 'value': value, 'runs': []}
            report['rows'].append(row)
            for seed in self.seeds:
                row['runs'].append(self._run(index, seed, start))
                # After every run: a long sweep can be read before it ends.
                write_sweep(report, self.folder)
        return report
