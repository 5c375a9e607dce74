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

"""What a run is made of: the one it starts from, and the stages before, kept in its folder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
import shutil
from typing import Any

from owseg_training.closed_set import load_network
from owseg_training.config import Config, ConfigError, run_config
from owseg_training.data.dataset import DataSet
from owseg_training.data.label_sets import unnamed
from owseg_training.network import MaskClassifier

FOLDER = 'history'


def load_start(start: str | Path, config: Config) -> MaskClassifier:
    """
    Load the network of the run that a stage starts from; see closed_set.load_network.

    config: of the stage; it gets the shape of the network and the hidden classes of the start.
    """
    network, start_config = load_network(start)
    config.network = start_config.network
    config.data.hidden = start_config.data.hidden
    return network


def class_names(run: str | Path) -> tuple[str, ...] | None:
    """Return the names of a run's classes in the order of their ids, None where it has none."""
    listing = Path(run) / 'classes.json'
    if not listing.is_file():
        return None
    entries = sorted(json.loads(listing.read_text())['classes'], key=lambda c: c['id'])
    names = tuple(entry['name'] for entry in entries)
    return None if names == unnamed(len(names)) else names


def check_classes(count: int, names: Sequence[str] | None, data_set: DataSet) -> None:
    """
    Raise ConfigError where a start has other classes than the data set, or in another order.

    count, names: of the start's classes, None where it does not name them.
    """
    wanted = [spec.name for spec in data_set.classes]
    if count != len(wanted):
        raise ConfigError(f'the start has {count} classes, {data_set.title} has {len(wanted)}')
    for index, (own, name) in enumerate(zip(names or wanted, wanted)):
        if own != name:
            raise ConfigError(f'class {index} of the start is {own!r}, and that of '
                              f'{data_set.title} is {name!r}')


def record_start(start: str | Path, folder: str | Path) -> None:
    """
    Keep in a run's folder the configuration and log of the run it starts from, and its history.

    A converted checkpoint has no log; then nothing is kept of it.
    """
    start, kept = Path(start), Path(folder) / FOLDER
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir(parents=True)
    stages = [*sorted((start / FOLDER).glob('*')), start]
    for index, stage in enumerate(stages):
        if (stage / 'log.jsonl').is_file():
            (kept / f'{index:02}').mkdir()
            for name in ('config.yaml', 'log.jsonl'):
                shutil.copyfile(stage / name, kept / f'{index:02}' / name)


def stages_of(run: str | Path) -> Iterator[tuple[Config, list[dict[str, Any]]]]:
    """Yield configuration and log of each stage that led to a run, the run itself last."""
    run = Path(run)
    for stage in (*sorted((run / FOLDER).glob('*')), run):
        if (stage / 'log.jsonl').is_file():
            yield (run_config(stage),
                   [json.loads(line) for line in (stage / 'log.jsonl').read_text().splitlines()])
