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
"""A text encoder that encodes each text once, also across runs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
import hashlib
import io
import json
import logging
import os
from pathlib import Path
import threading
import time
from typing import Optional
import zipfile
import zlib

import numpy as np
from owseg_ros.language.contract import TextEncoder
from owseg_ros.language.files import write_atomically

CAPACITY = 4096
_UNIT = 1e-3
_LOG = logging.getLogger(__name__)


class _StaleCache(ValueError):
    """A cache file that does not hold what it should."""


class CachingTextEncoder(TextEncoder):
    """
    Wraps a text encoder; see language.contract.TextEncoder for what it offers.

    encoder: the one that encodes what is new. folder: where the embeddings are kept between
    runs, one file for each encoder (npz without pickle, named by the encoder's key); None keeps
    them in memory only. capacity: how many texts are kept, those asked for last.

    The cache is never a reason to fail: a file that is damaged, not readable or not writable
    (a full disk) is a warning in the log, and the texts are encoded again. Of processes that
    share a folder the last to write wins; the others encode again what it did not know.

    passes: how often the wrapped encoder was called. pass_ms: how long the last call took.
    """

    def __init__(self, encoder: TextEncoder, folder: Optional[str | os.PathLike] = None,
                 capacity: int = CAPACITY):
        if capacity < 1:
            raise ValueError(f'capacity must be 1 or more, not {capacity}')
        self.space, self.dim = encoder.space, encoder.dim
        self.key, self.templates = encoder.key, encoder.templates
        self.path = Path(folder).expanduser() / f'{_digest(self.key)}.npz' if folder else None
        self._encoder = encoder
        self._capacity = capacity
        self._lock = threading.Lock()
        self._writable = True
        self._rows = self._read()
        self.passes = 0
        self.pass_ms = 0.0

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 [n, D]; only texts that are not known reach the wrapped encoder."""
        return self.encode_means([(text,) for text in texts])

    def encode_means(self, groups: Sequence[Sequence[str]]) -> np.ndarray:
        """
        Return float32 [n, D], the mean of each group at unit length.

        A group is one entry of the cache, whatever the number of its texts: those of a wording
        in all templates are asked for together.
        """
        texts = ['\n'.join(group) for group in groups]
        with self._lock:
            known = {text: self._rows[text] for text in texts if text in self._rows}
            new = {text: group for text, group in zip(texts, groups) if text not in known}
            if new:
                start = time.perf_counter()
                embeddings = self._encoder.encode_means(list(new.values()))
                self.passes += 1
                self.pass_ms = 1e3 * (time.perf_counter() - start)
                # Copies, because one row would keep the whole batch alive.
                known.update(zip(new, map(np.array, embeddings)))
            for text in known:
                self._rows[text] = known[text]
                self._rows.move_to_end(text)
            while len(self._rows) > self._capacity:
                self._rows.popitem(last=False)
            if new:
                self._write()
            return np.array([known[text] for text in texts], np.float32).reshape(-1, self.dim)

    def _read(self) -> OrderedDict[str, np.ndarray]:
        if self.path is None:
            return OrderedDict()
        try:
            texts, embeddings = _unpack(self.path, self.key)
            if embeddings.dtype != np.float32 or embeddings.shape != (len(texts), self.dim):
                raise _StaleCache(f'it holds {embeddings.dtype} {embeddings.shape}')
            # Not a number fails the comparison.
            if not (np.abs(np.linalg.norm(embeddings, axis=1) - 1) < _UNIT).all():
                raise _StaleCache('it holds vectors that are not of unit length')
        except FileNotFoundError:
            return OrderedDict()
        # What zipfile and NumPy raise for damaged files.
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError,
                TypeError, zipfile.BadZipFile, zlib.error) as error:
            _LOG.warning('The cached text embeddings in %s cannot be used, texts will be encoded '
                         'again: %s', self.path, error)
            return OrderedDict()
        return OrderedDict(list(zip(texts, embeddings))[-self._capacity:])

    def _write(self) -> None:
        if self.path is None:
            return
        try:
            write_atomically(self.path, _pack(self.key, self._rows))
            self._writable = True
        except OSError as error:
            if self._writable:
                _LOG.warning('Text embeddings cannot be kept in %s, the next run will encode '
                             'them again: %s', self.path, error)
            self._writable = False


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _pack(key: str, rows: OrderedDict[str, np.ndarray]) -> bytes:
    # As JSON: an array of strings would pad each to the longest and drop trailing NULs.
    header = json.dumps({'key': key, 'texts': list(rows)}).encode('ascii')
    stream = io.BytesIO()
    np.savez(stream, header=np.frombuffer(header, np.uint8),
             embeddings=np.array(list(rows.values()), np.float32))
    return stream.getvalue()


def _unpack(path: Path, key: str) -> tuple[list[str], np.ndarray]:
    data = path.read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        # Before NumPy believes the sizes that a damaged header states.
        damaged = archive.testzip()
        if damaged is not None:
            raise _StaleCache(f'{damaged} is damaged')
    with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        header = json.loads(arrays['header'].tobytes())
        embeddings = arrays['embeddings']
    if header['key'] != key:
        raise _StaleCache('it is of another encoder')
    return header['texts'], embeddings
