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

"""What a run was made of: the stages before it, kept in its folder."""

from __future__ import annotations

from collections.abc import Iterator
import json
from pathlib import Path
import shutil
from typing import Any

from owseg_training.config import Config, config_from_dict
import yaml

FOLDER = 'history'


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
            yield (config_from_dict(yaml.safe_load((stage / 'config.yaml').read_text())),
                   [json.loads(line) for line in (stage / 'log.jsonl').read_text().splitlines()])
