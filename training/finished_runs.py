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

from collections.abc import Iterator, Sequence
import json
from pathlib import Path
from typing import Any

from owseg_ros.language.files import write_atomically
from owseg_training.config import Config, ConfigError, run_config


# Where the data lie and how they are loaded changes no result.
_NEUTRAL = ('root', 'workers')


def _made_by(config: Config, parts: Sequence[str]) -> dict[str, Any]:
    """Return what of a recipe makes a run, see differences."""
    # JSON has no tuples, so a recipe from a file and one from the code hold lists alike.
    values = json.loads(json.dumps(config.to_dict()))
    for key in _NEUTRAL:
        del values['data'][key]
    if parts:
        values['network'] = {'pretrained': bool(values['network']['pretrained'])}
        return {key: values[key] for key in ('data', 'network', *parts)}
    if config.stage == 'outliers':  # The network is that of the start.
        del values['network']
    return values


def _differences(wanted: Any, found: Any, where: str = '') -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key in wanted:
            yield from _differences(wanted[key], found.get(key),
                                    f'{where}.{key}' if where else key)
    elif wanted != found:
        yield f'{where} is {found!r}, not {wanted!r}'


def differences(folder: Path, config: Config, parts: Sequence[str] = ()) -> list[str]:
    """
    Say in what the run in a folder, if there is one, was made with another recipe.

    parts: of the recipe that make the run, beside its data and whether it began with pretrained
    weights: loss, optimizer, ...; by default all of it. Returns texts such as
    'optimizer.lr is 0.001, not 0.002'.
    """
    if not (folder / 'config.yaml').is_file():
        return []
    return list(_differences(_made_by(config, parts), _made_by(run_config(folder), parts)))


def is_finished(folder: Path, config: Config, parts: Sequence[str]) -> bool:
    """
    Say whether a run is there and needs no further step.

    parts: see differences. Raises ConfigError where it was made with another recipe.
    """
    found = differences(folder, config, parts)
    if found:
        raise ConfigError(f'{folder} was made with another recipe ({"; ".join(found)}); '
                          'delete it or choose another folder')
    return (folder / 'model.safetensors').is_file()


def write_json(path: Path, values: Any, indent: int | None = None) -> None:
    """Write figures to a file at once or not at all, making its folder where there is none."""
    write_atomically(path, json.dumps(values, indent=indent).encode('utf-8') + b'\n')
