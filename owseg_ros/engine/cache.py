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
Files of built engines, found by what they were built from.

An engine fits one network, one version of TensorRT, one kind of GPU, one precision and one range
of batches. All of that is the key; its digest names the file, and the file states the key again
and the checksum of its content, so that neither a damaged file nor one from another machine
reaches TensorRT.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Optional

from owseg_ros.engine.contract import EngineError
from owseg_ros.language.files import write_atomically

VARIABLE = 'OWSEG_ENGINE_CACHE'
PLAN, TIMING = 'engine', 'timing'

_MAGIC = b'owseg_ros engine cache 1\n'
_MAX_HEADER = 1 << 16


class CacheFileError(EngineError):
    """A file of the cache that must not be used; the message says why."""


@dataclass(frozen=True)
class Device:
    """
    What an engine is built for.

    tensorrt: version of TensorRT; gpu: name of the GPU; compute_capability: such as '8.7'.
    """

    tensorrt: str
    gpu: str
    compute_capability: str

    def __str__(self) -> str:
        return f'TensorRT {self.tensorrt} on {self.gpu} ({self.compute_capability})'


@dataclass(frozen=True)
class EngineKey:
    """
    All that an engine depends on.

    network_sha256: of the ONNX file and its external weights; precision: fp32, fp16 or int8;
    calibration_sha256: of the images that INT8 was calibrated on, '' without;
    batch: (least, best, largest) number of frames in a pass.
    """

    network_sha256: str
    device: Device
    precision: str
    batch: tuple[int, int, int]
    calibration_sha256: str = ''

    def digest(self) -> str:
        """Return 32 hexadecimal digits that differ where anything differs."""
        return _digest(self.fields())

    def fields(self) -> dict[str, Any]:
        """Return plain values, as JSON holds them."""
        return {**asdict(self), 'batch': list(self.batch)}


def default_cache_folder() -> Path:
    """
    Return where engines are kept.

    $OWSEG_ENGINE_CACHE, else owseg_ros/engines below $XDG_CACHE_HOME (~/.cache).
    Raises EngineError where this user has no home folder and neither variable is set.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return Path(given).expanduser()
    base = os.environ.get('XDG_CACHE_HOME')
    try:
        return (Path(base) if base else Path.home() / '.cache') / 'owseg_ros' / 'engines'
    except RuntimeError as error:
        raise EngineError(f'{error}; set {VARIABLE} to a folder for built engines') from error


class EngineCache:
    """
    A folder of built engines and of what TensorRT has timed; processes may share it.

    folder: made when something is stored; None for default_cache_folder().
    """

    def __init__(self, folder: Optional[str | os.PathLike] = None) -> None:
        self.folder = Path(folder).expanduser() if folder else default_cache_folder()

    def path(self, key: EngineKey) -> Path:
        """Return the file of an engine, there or not."""
        return self.folder / f'{key.precision}_{key.digest()}.engine'

    def timing_path(self, device: Device) -> Path:
        """Return the file of the timings of a device; any network may add to it."""
        return self.folder / f'{_digest(asdict(device))}.timing'

    def load(self, key: EngineKey) -> Optional[bytes]:
        """Return an engine, or None where there is none; raises CacheFileError."""
        return _read(self.path(key), PLAN, key.fields())

    def store(self, key: EngineKey, plan: bytes) -> Path:
        """Keep an engine, whole or not at all; raises EngineError where it cannot be written."""
        return _write(self.path(key), PLAN, key.fields(), plan)

    def load_timing(self, device: Device) -> Optional[bytes]:
        """Return the timings of a device, or None where there are none; raises CacheFileError."""
        return _read(self.timing_path(device), TIMING, asdict(device))

    def store_timing(self, device: Device, timings: bytes) -> Path:
        """Keep the timings of a device; raises EngineError where they cannot be written."""
        return _write(self.timing_path(device), TIMING, asdict(device), timings)


def _digest(values: dict[str, Any]) -> str:
    text = json.dumps(values, sort_keys=True, separators=(',', ':'))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _write(path: Path, kind: str, key: dict[str, Any], content: bytes) -> Path:
    header = json.dumps({'kind': kind, 'key': key, 'bytes': len(content),
                         'sha256': hashlib.sha256(content).hexdigest()}, sort_keys=True)
    try:
        write_atomically(path, b''.join((_MAGIC, header.encode('ascii'), b'\n', content)))
    except OSError as error:
        raise EngineError(
            f'{path} cannot be written: {error.strerror or error}; make room or choose another '
            f'folder ({VARIABLE})') from error
    return path


def _read(path: Path, kind: str, key: dict[str, Any]) -> Optional[bytes]:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CacheFileError(f'{path} cannot be read: {error.strerror or error}') from error
    end = data.find(b'\n', len(_MAGIC), len(_MAGIC) + _MAX_HEADER)
    if not data.startswith(_MAGIC) or end < 0:
        raise CacheFileError(f'{path} is no {kind} file of this version of owseg_ros')
    try:
        header = json.loads(data[len(_MAGIC):end])
        stated = header['kind'], header['key'], header['bytes'], header['sha256']
    except (ValueError, KeyError, TypeError) as error:
        raise CacheFileError(f'{path} is damaged: its header cannot be read') from error
    content = data[end + 1:]
    if stated[:2] != (kind, key):
        raise CacheFileError(f'{path} is foreign: {_difference(stated[:2], kind, key)}')
    if stated[2] != len(content):
        raise CacheFileError(f'{path} is damaged: {len(content)} of {stated[2]} bytes are there')
    if stated[3] != hashlib.sha256(content).hexdigest():
        raise CacheFileError(f'{path} is damaged: its checksum does not match')
    return content


def _difference(stated: tuple[Any, Any], kind: str, key: dict[str, Any]) -> str:
    if stated[0] != kind or not isinstance(stated[1], dict):
        return f'it holds no {kind}'
    found, wanted = _flat(stated[1]), _flat(key)
    return 'it was made for ' + ', '.join(
        f'{name} {found.get(name)} and not {value}' for name, value in wanted.items()
        if found.get(name) != value)


def _flat(key: dict[str, Any]) -> dict[str, Any]:
    device = key.get('device')
    return {**key, **(device if isinstance(device, dict) else {}), 'device': None}
