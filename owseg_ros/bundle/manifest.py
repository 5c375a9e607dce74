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
"""The text of a manifest: read as plain YAML that follows the schema, and written."""

from __future__ import annotations

import datetime
from importlib import resources
import json
import math
import os
from pathlib import Path
from typing import Any, Iterator, Mapping

import jsonschema
import numpy as np
from owseg_ros.bundle.problems import (
    BundleError, did_you_mean, error_of, EXPORT_HINT, MANIFEST, refuse, short)
import yaml

SCHEMA = 'owseg_ros/bundle'
SCHEMA_VERSION = 1

MAX_MANIFEST_BYTES = 4 << 20
_LARGEST_INTEGER = 1 << 63
_FREE_FORM = frozenset({'provenance', 'figures'})


class _ManifestLoader(yaml.SafeLoader):
    """Safe YAML without aliases (they can blow up) and without repeated keys (the last wins)."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        """Compose a node, refusing aliases."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()
            raise yaml.composer.ComposerError(
                None, None, f'alias *{event.anchor}: write the value out', event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict:
        """Construct a mapping, refusing repeated keys."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) != len(node.value):
            raise yaml.constructor.ConstructorError(
                None, None, 'a key is there twice', node.start_mark)
        return mapping


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder, plain YAML; raise BundleError where it is none."""
    path = folder / MANIFEST
    try:
        if not path.exists():
            refuse(folder, f'has no {MANIFEST}; give the folder of a bundle, or {EXPORT_HINT}')
        if not path.is_file():
            refuse(folder, f'{MANIFEST} is not a regular file; {EXPORT_HINT}')
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            refuse(folder, f'{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes and cannot be '
                   f'a manifest; {EXPORT_HINT}')
        text = path.read_bytes().decode('utf-8')
    except OSError as error:
        raise error_of(folder, f'{MANIFEST} cannot be read: {error}') from error
    except UnicodeDecodeError as error:
        raise error_of(folder, f'{MANIFEST} is not UTF-8 text ({error.reason} at byte '
                       f'{error.start}); it is damaged or no manifest: '
                       'fetch the bundle again') from error
    try:
        manifest = yaml.load(text, Loader=_ManifestLoader)  # noqa: S506
    except yaml.YAMLError as error:
        problem = ' '.join(str(error).split())
        raise error_of(folder, f'{MANIFEST} is not plain YAML: {problem}; '
                       'correct it or fetch the bundle again') from error
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, OverflowError,
            RecursionError) as error:
        # PyYAML lets these out for scalars such as "!!timestamp x" and for absurd nesting.
        raise error_of(folder, f'{MANIFEST} holds a value that YAML cannot read '
                       f'({type(error).__name__}: {short(str(error))}); '
                       'correct it') from error
    if not isinstance(manifest, dict):
        refuse(folder, f'{MANIFEST} is no mapping of keys to values but a '
               f'{type(manifest).__name__}; {EXPORT_HINT}')
    try:
        for keys, problem in _oddities(manifest, ()):
            refuse(folder, f'{MANIFEST}: {_dotted(keys)}: {problem}')
    except RecursionError as error:
        raise error_of(folder, f'{MANIFEST} is nested too deep; flatten it') from error
    return manifest


def _oddities(value: Any, keys: tuple) -> Iterator[tuple[tuple, str]]:
    """Yield what no manifest may hold anywhere, as (path of keys, problem)."""
    if isinstance(value, dict):
        for key, child in value.items():
            if not isinstance(key, str):
                yield keys, f'the key {short(key)} is not a string; put it in quotes'
                return
            yield from _oddities(child, (*keys, key))
    elif isinstance(value, (list, tuple, set)):
        for index, child in enumerate(value):
            yield from _oddities(child, (*keys, index))
    elif isinstance(value, float):
        if not math.isfinite(value) and keys[0] not in _FREE_FORM:
            yield keys, f'{value} is not a finite number; write one'
    elif isinstance(value, int) and abs(value) >= _LARGEST_INTEGER:
        yield keys, 'the integer does not fit 64 bits; write a smaller one'


def _dotted(keys: Any) -> str:
    text = ''
    for key in keys:
        text += f'[{key}]' if isinstance(key, int) else f'.{key}' if text else str(key)
    return text or 'top level'


def check_identity(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise BundleError unless it is the manifest of a bundle that this release reads."""
    if manifest.get('schema') != SCHEMA:
        refuse(folder, f"{MANIFEST}: schema is {short(manifest.get('schema'))}, expected "
               f'{SCHEMA!r}: this is no owseg_ros bundle; {EXPORT_HINT}')
    version = manifest.get('schema_version')
    if type(version) is not int:
        refuse(folder, f'{MANIFEST}: schema_version is {short(version)}, expected the integer '
               f'{SCHEMA_VERSION}; {EXPORT_HINT}')
    if version != SCHEMA_VERSION:
        what = ('update owseg_ros to read it' if version > SCHEMA_VERSION
                else 'export the model again with this release')
        refuse(folder, f'{MANIFEST}: schema_version {version} is not known to this release, '
               f'which reads {SCHEMA_VERSION}; {what}')


def _validator() -> jsonschema.Draft7Validator:
    text = resources.files('owseg_ros').joinpath('schemas/bundle.schema.json').read_text('utf-8')
    return jsonschema.Draft7Validator(json.loads(text))


def check_schema(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise BundleError, with the first of the reasons, unless it follows the schema."""
    errors = sorted(_validator().iter_errors(manifest), key=lambda error: _dotted(error.path))
    if not errors:
        return
    error, more = errors[0], len(errors) - 1
    expected = error.schema.get('description')
    if error.validator == 'additionalProperties':
        known = error.schema.get('properties', {})
        unknown = sorted(set(error.instance) - set(known))
        problem = (f"unknown key {', '.join(map(short, unknown))}"
                   f'{did_you_mean(unknown[0], known)}; known keys: {", ".join(known)}')
        expected = None
    elif error.validator == 'required':
        missing = [key for key in error.validator_value if key not in error.instance]
        problem = f"missing key {', '.join(map(repr, missing))}"
        expected = '; '.join(
            f"{key}: {_described(error.schema['properties'][key])}" for key in missing)
    else:
        problem = f'{short(error.instance)} is not valid'
    text = f'{MANIFEST}: {_dotted(error.path)}: {problem}'
    if expected:
        text += f'; expected {expected}'
    if more:
        text += f' (and {more} more)'
    refuse(folder, text)


def _described(schema: Mapping[str, Any]) -> str:
    if '$ref' in schema:
        name = schema['$ref'].rsplit('/', 1)[1]
        schema = _validator().schema['definitions'][name]
    return schema['description']


def plain(value: Any) -> Any:
    """Turn NumPy values, tuples, mappings and paths into what YAML writes plainly."""
    if isinstance(value, Mapping):
        return {plain(key): plain(child) for key, child in value.items()}
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(child) for child in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, (str, int, float, datetime.date)) or value is None:
        return value
    raise BundleError(f'a manifest cannot hold a {type(value).__name__} ({short(value)}); '
                      'give it as text, a number, a list or a mapping')


class ManifestDumper(yaml.SafeDumper):
    """Safe YAML that writes repeated values out instead of as aliases."""

    def ignore_aliases(self, data: Any) -> bool:
        """Return True: no value is ever written as an alias."""
        return True
