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
"""Writing files so that whoever reads meanwhile, or after a crash, finds the old or the new."""

from __future__ import annotations

from collections.abc import Callable
import os
from pathlib import Path
import shutil
import tempfile
from typing import BinaryIO


def write_atomically(path: str | os.PathLike, data: bytes) -> None:
    """
    Write a file whole or not at all, making its folder where there is none.

    Raises OSError, after which a file that was there is as it was and nothing else is left.
    """
    _replace(Path(path), lambda stream: stream.write(data))


def copy_atomically(source: str | os.PathLike, path: str | os.PathLike) -> None:
    """
    Copy a file whole or not at all, as write_atomically writes one, a piece at a time.

    Raises OSError as there, and where the source cannot be read.
    """
    with open(source, 'rb') as original:
        _replace(Path(path), lambda stream: shutil.copyfileobj(original, stream, 1 << 24))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    try:
        with os.fdopen(descriptor, 'wb') as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
