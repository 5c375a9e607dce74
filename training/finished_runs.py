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

"""What a benchmark made before and need not make again: runs, and figures in JSON."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

from owseg_ros.language.files import write_atomically
from owseg_training.config import Config, config_from_dict, ConfigError
import yaml


def _schedule(config: Config, parts: Sequence[str]) -> dict[str, Any]:
    """Return what makes a run: the recipe without the network's shape and where things lie."""
    values = config.to_dict()
    data = {key: value for key, value in values['data'].items() if key not in ('root', 'workers')}
    return {'data': data, 'network': {'pretrained': bool(values['network']['pretrained'])},
            **{key: values[key] for key in parts}}


def is_finished(folder: Path, config: Config, parts: Sequence[str]) -> bool:
    """
    Say whether a run is there and needs no further step.

    parts: of the recipe that make the run, beside its data: loss, optimizer, ...
    Raises ConfigError where it was made with another recipe.
    """
    listing = folder / 'config.yaml'
    if not listing.is_file():
        return False
    there, wanted = (json.loads(json.dumps(_schedule(one, parts))) for one in (
        config_from_dict(yaml.safe_load(listing.read_text())), config))
    differing = [f'{part}.{key}' for part in wanted for key in wanted[part]
                 if there[part][key] != wanted[part][key]]
    if differing:
        raise ConfigError(f'{folder} was made with another recipe ({", ".join(differing)}); '
                          'delete it or choose another folder')
    return (folder / 'model.safetensors').is_file()


def write_json(path: Path, values: Any, indent: int | None = None) -> None:
    """Write figures to a file at once or not at all, making its folder where there is none."""
    write_atomically(path, json.dumps(values, indent=indent).encode('utf-8') + b'\n')
