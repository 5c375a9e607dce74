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
Label sets by name, and maps between them.

The tables are class_maps.yaml: label sets (names and colours) and maps by class name.  A map
that is not there is composed of those that are, by the fewest steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from owseg_training.data.errors import ClassMapError
import yaml

VOID = 255
TABLES = Path(__file__).parent / 'class_maps.yaml'


@dataclass(frozen=True)
class ClassSpec:
    """A class of a data set: name and display colour (RGB)."""

    name: str
    color: tuple[int, int, int]


def unnamed(count: int) -> tuple[str, ...]:
    """Return the names of classes that nobody named."""
    return tuple(f'class {index}' for index in range(count))


@dataclass(frozen=True, eq=False)
class ClassMap:
    """
    From ids of one label set to ids of another.

    table: uint8 [256]; classes without a counterpart, and void, become 255; 254 (unknown) stays.
    """

    source: tuple[str, ...]
    target: tuple[ClassSpec, ...]
    table: np.ndarray

    def __call__(self, label: np.ndarray) -> np.ndarray:
        """Map ids uint8 of any shape."""
        return self.table[label]

    def then(self, other: ClassMap) -> ClassMap:
        """Return this map followed by another; raises ClassMapError where they do not meet."""
        if tuple(c.name for c in self.target) != other.source:
            raise ClassMapError('the maps do not meet: the classes between them differ')
        return ClassMap(self.source, other.target, other.table[self.table])


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return yaml.safe_load(TABLES.read_text('utf-8'))


def label_sets() -> tuple[str, ...]:
    """Return the names of the label sets."""
    return tuple(_tables()['label_sets'])


def label_set(name: str) -> tuple[ClassSpec, ...]:
    """Return the classes of a label set in the order of ids; raises ClassMapError."""
    sets = _tables()['label_sets']
    if name not in sets:
        raise ClassMapError(f'no label set {name!r}; known: {", ".join(sets)}')
    return tuple(ClassSpec(c, tuple(color)) for c, color in sets[name].items())


def label_set_of(names: Sequence[str]) -> str | None:
    """Return the label set that has exactly these class names, None where there is none."""
    for name, classes in _tables()['label_sets'].items():
        if list(classes) == list(names):
            return name
    return None


def map_by_names(source: Sequence[str], target: Sequence[ClassSpec],
                 names: Mapping[str, str | None]) -> ClassMap:
    """
    Make a map of class names; what is not named becomes void.

    Raises ClassMapError where a name is in neither label set.
    """
    ids = {c.name: i for i, c in enumerate(target)}
    table = np.full(256, VOID, np.uint8)
    table[254] = 254
    for old, new in names.items():
        if old not in source or (new is not None and new not in ids):
            raise ClassMapError(f'{old!r}: {new!r} names a class that is not there; from '
                                f'{", ".join(source)} to {", ".join(ids)}')
        if new is not None:
            table[list(source).index(old)] = ids[new]
    return ClassMap(tuple(source), tuple(target), table)


def load_class_map(path: str | Path, source: Sequence[str],
                   target: Sequence[ClassSpec]) -> ClassMap:
    """Read a map from a YAML file of `name: name` (or null); raises ClassMapError."""
    try:
        names = yaml.safe_load(Path(path).read_text('utf-8'))
    except yaml.YAMLError as error:
        raise ClassMapError(f'{path} is no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(names, dict):
        raise ClassMapError(f'{path} must be a mapping of class names')
    if not source:
        raise ClassMapError(f'{path} maps classes, but the data set does not name its own; add '
                            'classes.json to its folder')
    return map_by_names(source, target, names)


def _direct(source: str, target: str) -> ClassMap:
    return map_by_names([c.name for c in label_set(source)], label_set(target),
                        _tables()['maps'][source][target])


def _paths(source: str) -> dict[str, tuple[str, ...]]:
    """Return the shortest way to each label set that can be reached."""
    ways: dict[str, tuple[str, ...]] = {source: (source,)}
    front = [source]
    while front:
        here = front.pop(0)
        for there in _tables()['maps'].get(here, {}):
            if there not in ways:
                ways[there] = (*ways[here], there)
                front.append(there)
    return ways


def class_map(source: str, target: str) -> ClassMap:
    """
    Return the map between two label sets by name, composed where necessary.

    Raises ClassMapError, which lists what can be reached.
    """
    label_set(target)
    ways = _paths(source) if source else {}
    if target not in ways:
        reach = ', '.join(sorted(set(ways) - {source})) or 'no other label set'
        raise ClassMapError(f'no map from {source or "these classes"} to {target}; there is one '
                            f'to {reach}')
    names = [c.name for c in label_set(source)]
    found = map_by_names(names, label_set(source), {name: name for name in names})
    for here, there in zip(ways[target], ways[target][1:]):
        found = found.then(_direct(here, there))
    return found


def common_label_set(data: str, model: str) -> str:
    """
    Return the label set in which predictions of one set and labels of another are compared.

    The model's own where labels map to it, else the data's own where predictions do, else the
    nearest that both map to.  Raises ClassMapError where there is none.
    """
    of_data, of_model = _paths(data), _paths(model)
    if model in of_data:
        return model
    both = [name for name in of_data if name in of_model]
    if not both:
        raise ClassMapError(f'nothing maps both {data} and {model} to one label set')
    return min(both, key=lambda name: (name != data, len(of_data[name]) + len(of_model[name])))
