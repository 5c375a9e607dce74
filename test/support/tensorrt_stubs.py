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
Checks code against the type stubs of TensorRT's Python bindings, without TensorRT or a GPU.

The stubs are what pybind11-stubgen writes about the real bindings::

    python -m pybind11_stubgen tensorrt.tensorrt -o stubs     # where tensorrt imports
    export OWSEG_TENSORRT_STUBS=stubs/tensorrt/tensorrt.pyi   # one or more, as in PATH
"""

from __future__ import annotations

import ast
import os
from pathlib import Path
import subprocess
import sys

VARIABLE = 'OWSEG_TENSORRT_STUBS'


def given_stubs() -> list[Path]:
    """Return the stubs that the environment names."""
    return [Path(path) for path in os.environ.get(VARIABLE, '').split(os.pathsep) if path]


def readable(stub: str) -> str:
    """
    Return what is valid Python of a stub.

    pybind11-stubgen writes some default values as their repr; such methods are left out. So is
    the constant `bool`, which would hide the type.
    """
    kept = []
    for block in _blocks(stub.splitlines(), ''):
        if _valid(block):
            kept += block
        elif block[0].startswith('class '):
            head, *members = _blocks(block, '    ')
            kept += head
            for member in members:
                if _valid(['class _:', *member]):
                    kept += member
    return '\n'.join(line for line in kept if not line.startswith('bool: '))


def _blocks(lines: list[str], indent: str) -> list[list[str]]:
    """Split where a class, function or decorator begins at this indentation."""
    blocks: list[list[str]] = [[]]
    starts = tuple(f'{indent}{word}' for word in ('class ', 'def ', '@'))
    for line in lines:
        decorated = blocks[-1] and all(
            entry.startswith(f'{indent}@') for entry in blocks[-1])
        if line.startswith(starts) and not decorated:
            blocks.append([])
        blocks[-1].append(line)
    return [block for block in blocks if block]


def _valid(lines: list[str]) -> bool:
    try:
        ast.parse('\n'.join(lines))
    except SyntaxError:
        return False
    return True


def problems(source: Path, stub: Path, folder: Path) -> list[str]:
    """
    Return what mypy says about a file where `tensorrt` is a stub; [] where all is right.

    folder: an empty one to work in. Only TensorRT has types there: what the file does with torch
    is not checked.
    """
    package = folder / 'stubs' / 'tensorrt'
    package.mkdir(parents=True)
    text = stub.read_text('utf-8')
    for name in ('tensorrt_bindings.tensorrt.', 'tensorrt.tensorrt.'):
        text = text.replace(name, '')
    # The packages add it to what is in the bindings.
    (package / '__init__.pyi').write_text(f'{readable(text)}\n__version__: str\n', 'utf-8')
    config = folder / 'mypy.ini'
    config.write_text('[mypy]\nfollow_imports = skip\nignore_missing_imports = True\n'
                      '[mypy-tensorrt.*]\nfollow_imports = silent\n', 'utf-8')
    run = subprocess.run(
        [sys.executable, '-m', 'mypy', f'--config-file={config}',
         '--check-untyped-defs', '--no-error-summary',
         f'--cache-dir={folder / "cache"}', str(source)],
        env={**os.environ, 'MYPYPATH': str(folder / 'stubs')}, capture_output=True, text=True)
    if run.returncode not in (0, 1) or run.stderr:
        raise RuntimeError(f'mypy failed: {run.stdout}{run.stderr}')
    return [line for line in run.stdout.splitlines()
            if line.startswith(f'{source}:') and ': error: ' in line]
