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
What a torch.export program of a bundle may hold: a graph of torch's operators, and numbers.

``torch.export.load`` trusts what it reads: it unpickles what the archive marks as pickled, looks
operators up below the module torch by any name, and evaluates the text of shapes. A checksum only
says that a file is the one that the bundle was written with. So the archive is looked through
before torch sees it, and refused where it holds anything but: weights and constants as raw
numbers, operators of ATen and arithmetic on shapes, and shapes made of symbols and whole numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
import io
import json
from pathlib import PurePosixPath
import re
from typing import Any
import zipfile

from owseg_ros.engine.contract import EngineError

_GRAPH = 'models/model.json'
_SAMPLE_INPUTS = 'data/sample_inputs/model.pt'
_TABLES = ('data/weights/model_weights_config.json', 'data/constants/model_constants_config.json')
_PARTS = re.compile('|'.join((
    re.escape(_GRAPH), re.escape(_SAMPLE_INPUTS), *map(re.escape, _TABLES),
    r'data/weights/weight_\d+', r'data/constants/tensor_\d+', 'archive_format', 'archive_version',
    'byteorder', r'\.data/version', r'\.data/serialization_id', r'\.format_version',
    r'\.storage_alignment')))
_TENSOR = re.compile(r'(weight|tensor)_\d+')
_OPERATORS = re.compile(
    r'torch\.ops\.aten\.\w+\.\w+|math\.(ceil|floor|trunc)|'
    r'_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|and_|or_)')
_CONTAINERS = {'builtins.tuple', 'builtins.list', 'builtins.dict', None}
_SYMBOLS = re.compile(r'[su]\d+|\d+')
_WORDS = frozenset({
    'Symbol', 'Integer', 'Add', 'Mul', 'Pow', 'Max', 'Min', 'Mod', 'FloorDiv', 'CleanDiv',
    'PythonMod', 'positive', 'nonnegative', 'integer', 'True', 'False'})
_MARKS = re.compile(r"[\w\s'(),=<>+*/-]*")


def check_program(content: bytes, name: str) -> None:
    """Raise EngineError where a .pt2 file is no program, or holds more than a program needs."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = {_below_root(entry.filename): entry for entry in archive.infolist()}
            for part, entry in parts.items():
                if not _PARTS.fullmatch(part):
                    raise _refusal(name, f'holds {entry.filename}, which is no part of one')
            for part in (_GRAPH, *_TABLES):
                if part not in parts:
                    raise _refusal(name, f'has no {part}')
            if _SAMPLE_INPUTS in parts and parts[_SAMPLE_INPUTS].file_size:
                raise _refusal(name, 'holds pickled sample inputs')
            for part in _TABLES:
                _check_table(name, json.loads(archive.read(parts[part])))
            _check_graph(name, json.loads(archive.read(parts[_GRAPH])))
    except (zipfile.BadZipFile, ValueError, KeyError, TypeError, AttributeError,
            NotImplementedError) as error:
        raise _refusal(name, f'cannot be understood ({type(error).__name__}: {error})') from error


def _below_root(name: str) -> str:
    # PyTorch's archives have all of their parts in one folder, called after the file.
    return str(PurePosixPath(*PurePosixPath(name).parts[1:]))


def _refusal(name: str, problem: str) -> EngineError:
    return EngineError(f'{name} is no plain torch.export program: it {problem}; export the bundle '
                       'again (owseg-train export --torch)')


def _check_table(name: str, table: Any) -> None:
    for tensor, entry in table['config'].items():
        if entry['use_pickle'] or not _TENSOR.fullmatch(entry['path_name']):
            raise _refusal(name, f'holds {tensor} as a pickle')


def _check_graph(name: str, graph: Any) -> None:
    for key, value in _walk(graph):
        if key == 'target' and not (isinstance(value, str) and _OPERATORS.fullmatch(value)):
            raise _refusal(name, f'calls {value!r}, which is no operator of ATen')
        if key == 'expr_str' and not _plain_shape(value):
            raise _refusal(name, f'has the shape {value!r}')
        if key in ('in_spec', 'out_spec') and value and not _plain_containers(json.loads(value)):
            raise _refusal(name, 'returns something else than tensors by name')


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key with its value, however deep."""
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _plain_shape(text: Any) -> bool:
    return isinstance(text, str) and bool(_MARKS.fullmatch(text)) and all(
        word in _WORDS or _SYMBOLS.fullmatch(word) for word in re.findall(r'\w+', text))


def _plain_containers(spec: Any) -> bool:
    return all(value in _CONTAINERS for key, value in _walk(spec) if key == 'type')
