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
Files that are read and written while a vehicle drives.

They are written so that whoever reads meanwhile, or after a crash, finds the old or the new, and
read so that a path to something else than a file holds nobody up.
"""

from __future__ import annotations

from collections.abc import Callable
import errno
import os
from pathlib import Path
import shutil
import stat
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


def read_file(path: str | os.PathLike, most_bytes: int) -> bytes:
    """
    Return what a file holds, or its first ``most_bytes + 1`` bytes where it is longer.

    Raises OSError, also for what is no regular file: reading a pipe would wait for a writer, and
    a device may have no end; ValueError for a path that no file can have.
    """
    # A pipe that nobody writes to is opened at once with this flag.
    with open(path, 'rb', opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise _not_regular(path)
        return file.read(most_bytes + 1)


def _not_regular(path: str | os.PathLike) -> OSError:
    return OSError(errno.EINVAL, 'It is not a regular file', os.fspath(path))


def _replace(path: Path, write: Callable[[BinaryIO], object]) -> None:
    if path.exists() and not (path.is_file() or path.is_dir()):
        # Root could put a file into the place of a device.
        raise _not_regular(path)
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
