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
A text encoder on disk: text.onnx, tokenizer.json and a manifest.yaml with their sha256.

A large network keeps its weights in text.onnx.data, as one ONNX file holds less than 2 GiB.
``schemas/text_encoder.schema.json`` documents the manifest. Everything is checked before use;
nothing is unpickled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
import json
import os
from pathlib import Path
from types import MappingProxyType
from typing import Any, Optional

import jsonschema
from owseg_ros.bundle import sha256_of
from owseg_ros.bundle.files import external_locations
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.files import copy_atomically, read_file, write_atomically
import yaml

MANIFEST = 'manifest.yaml'
NETWORK = 'text.onnx'
# As torch and ONNX Runtime call what belongs to NETWORK.
WEIGHTS = f'{NETWORK}.data'
TOKENIZER = 'tokenizer.json'
SCHEMA = 'owseg_ros/text_encoder'
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 1 << 16
AGAIN = ('write it again: owseg text-encoder, or for those of open_clip owseg-train '
         'text-encoder')


@dataclass(frozen=True)
class TextEncoderFolder:
    """
    A checked folder; the fields are those of its manifest.

    network, tokenizer: paths; files: name -> sha256. space names what the embeddings of length
    ``dim`` are comparable with, ``templates`` the prompts that suit the encoder.
    """

    path: Path
    name: str
    license: str  # noqa: A003
    space: str
    dim: int
    max_tokens: int
    pooling: str
    templates: str
    files: Mapping[str, str]
    provenance: Mapping[str, str]

    @property
    def network(self) -> Path:
        """Return the path of the ONNX file."""
        return self.path / NETWORK

    @property
    def tokenizer(self) -> Path:
        """Return the path of the tokenizer."""
        return self.path / TOKENIZER


def load_text_encoder_folder(path: str | os.PathLike) -> TextEncoderFolder:
    """
    Check the folder of a text encoder: its manifest, then the sha256 of each file.

    Raises TextEncoderError: one line that names the file or key and what to do.
    """
    folder = Path(os.path.abspath(Path(path).expanduser()))
    manifest = _read_manifest(folder)
    _check_manifest(folder, manifest)
    for name, expected in manifest['files'].items():
        try:
            actual = sha256_of(folder / name)
        except OSError as error:
            raise _error(folder, f'{name} cannot be read: {error}; {AGAIN}') from error
        if actual != expected:
            raise _error(folder, f'{name} has sha256 {actual[:12]}..., but {MANIFEST} lists '
                                 f'{expected[:12]}...: it is damaged, truncated or another '
                                 f'file; {AGAIN}')
    for location in external_locations(folder / NETWORK):
        if location not in manifest['files']:
            raise _error(folder, f'{NETWORK} keeps weights in {location[:80]!r}, which is not '
                                 f'listed in {MANIFEST}; {AGAIN}')
    return TextEncoderFolder(
        path=folder, files=MappingProxyType(manifest['files']),
        provenance=MappingProxyType(manifest.get('provenance', {})),
        **{key: manifest[key] for key in (
            'name', 'license', 'space', 'dim', 'max_tokens', 'pooling', 'templates')})


def write_text_encoder_folder(path: str | os.PathLike, manifest: Mapping[str, Any],
                              network: bytes, tokenizer: str,
                              weights: Optional[str | os.PathLike] = None) -> TextEncoderFolder:
    """
    Write the folder of a text encoder and return it as load_text_encoder_folder reads it.

    manifest: the keys of the schema but schema, schema_version and files. network: the ONNX
    file; tokenizer: JSON of the library ``tokenizers``; weights: the file of the network's
    weights, where it keeps them apart under the name text.onnx.data. Each file appears whole, the
    manifest last, so that a folder half replaced is refused by its checksums.
    Raises TextEncoderError, for a manifest that is not valid before anything is written.
    """
    folder = Path(os.path.abspath(path))
    contents = {NETWORK: network, TOKENIZER: tokenizer.encode('utf-8')}
    whole = {'schema': SCHEMA, 'schema_version': SCHEMA_VERSION, **manifest,
             'files': dict.fromkeys(contents, '0' * 64)}
    _check_manifest(folder, whole)
    try:
        for name, content in contents.items():
            write_atomically(folder / name, content)
        if weights is not None:
            copy_atomically(weights, folder / WEIGHTS)
            whole['files'][WEIGHTS] = ''
        for name in whole['files']:
            whole['files'][name] = sha256_of(folder / name)
        write_atomically(folder / MANIFEST, yaml.safe_dump(
            whole, sort_keys=False, allow_unicode=True, width=99).encode('utf-8'))
    except OSError as error:
        raise _error(folder, f'cannot be written: {error}') from error
    return load_text_encoder_folder(folder)


def _error(folder: Path, problem: str) -> TextEncoderError:
    text = f'Text encoder {folder}: {problem}'
    return TextEncoderError(''.join(c if c.isprintable() else repr(c)[1:-1] for c in text))


def _read_manifest(folder: Path) -> Any:
    try:
        data = read_file(folder / MANIFEST, MAX_MANIFEST_BYTES)
    except (OSError, ValueError) as error:
        raise _error(folder, f'{MANIFEST} cannot be read: {error}; give the folder that '
                             'owseg text-encoder or owseg-train text-encoder wrote') from error
    if len(data) > MAX_MANIFEST_BYTES:
        raise _error(folder, f'{MANIFEST} is larger than {MAX_MANIFEST_BYTES} bytes and cannot '
                             f'be a manifest; {AGAIN}')
    try:
        return yaml.safe_load(data)
    # PyYAML lets ValueError out for scalars such as impossible dates.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = ' '.join(str(error).split())
        raise _error(folder, f'{MANIFEST} is not plain YAML: {problem}; {AGAIN}') from error


def _check_manifest(folder: Path, manifest: Any) -> None:
    schema = json.loads(resources.files('owseg_ros').joinpath(
        'schemas/text_encoder.schema.json').read_text('utf-8'))
    error = next(iter(sorted(jsonschema.Draft7Validator(schema).iter_errors(manifest),
                             key=lambda error: [str(key) for key in error.absolute_path])), None)
    if error is None:
        return
    place = '.'.join(map(str, error.absolute_path)) or 'top level'
    if error.validator == 'required':
        missing = [key for key in error.validator_value if key not in error.instance]
        problem = f'missing key {", ".join(missing)}'
    elif error.validator == 'additionalProperties':
        extra = sorted(map(str, set(error.instance) - set(error.schema['properties'])))
        problem = f'unknown key {extra[0][:80]!r}'
    else:
        problem = f'expected {error.schema["description"]}'
    raise _error(folder, f'{MANIFEST}: {place}: {problem}; {AGAIN}')
