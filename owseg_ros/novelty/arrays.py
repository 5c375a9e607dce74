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
"""Reading npz files that may come from anywhere: no pickle, and no more memory than allowed."""

from __future__ import annotations

import io
import os
import zipfile
import zlib

import numpy as np
from owseg_ros.errors import OwsegError
from owseg_ros.language.files import read_file

_SLACK = 1 << 20


class NoveltyError(OwsegError):
    """Something that cannot be taught, matched, saved or loaded; says what to do about it."""


def read_arrays(path: str | os.PathLike, most_bytes: int) -> dict[str, np.ndarray]:
    """
    Return the arrays of an npz file by name.

    most_bytes: of all arrays together; a little more is allowed for their headers.
    Raises NoveltyError: it cannot be read, is no npz file, holds pickles, or is too large.
    """
    limit = most_bytes + _SLACK
    try:
        data = read_file(path, limit)
        if len(data) > limit:
            raise ValueError(f'larger than {limit} bytes')
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > limit:
                raise ValueError(f'more than {limit} bytes when unpacked')
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise NoveltyError(f'{path}: cannot be read: {error.strerror or error}') from error
    # What zipfile and NumPy raise for damaged, locked and exotic archives.
    except (ValueError, EOFError, KeyError, RuntimeError, SyntaxError, OverflowError, MemoryError,
            zipfile.BadZipFile, zlib.error) as error:
        raise NoveltyError(f'{path}: is no npz file that can be read ({error}); it is damaged or '
                           'another file: save or export it again') from error
    for name, array in found.items():
        # Members that are no arrays come back as bytes.
        if not isinstance(array, np.ndarray):
            raise NoveltyError(f'{path}: {name!r} is no array; save or export it again')
    return found
