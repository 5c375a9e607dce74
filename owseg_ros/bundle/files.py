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
"""The files of a bundle: inside its folder, as their checksums say, and nothing beside them."""

from __future__ import annotations

import hashlib
import mmap
import os
from pathlib import Path, PurePosixPath
import stat
from typing import Any, Iterable

from owseg_ros.bundle.problems import error_of, MANIFEST, PICKLE_SUFFIXES, refuse, short

_HASH_BLOCK = 1 << 20
# Key and value of onnx.TensorProto.external_data: two strings of a StringStringEntryProto.
_LOCATION = b'\x0a\x08location\x12'


def check_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Raise BundleError unless the listed files are there, inside, and as their checksums say."""
    paths = {name: _safe_path(folder, name) for name in manifest['files']}
    networks = [manifest['network']['file']]
    if 'novelty' in manifest:
        networks.append(manifest['novelty']['metric_head'])
    for network in networks:
        check_external_weights(folder, network, paths)
    for name, path in paths.items():
        _check_file(folder, name, path, manifest['files'][name])
    for network in networks:
        _check_locations(folder, network, paths)


def check_external_weights(folder: Path, network: str, listed: Iterable[str]) -> None:
    """Check that the weights which ONNX Runtime reads from beside the network are listed."""
    pure = PurePosixPath(network)
    parent = folder / pure.parent
    try:
        siblings = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    except OSError as error:
        raise error_of(folder, f'cannot be listed: {error}') from error
    for sibling in siblings:
        if sibling.startswith(pure.name) and str(pure.parent / sibling) not in listed:
            refuse(folder, f'{sibling} lies beside the network but is not listed under files; '
                   'list it with its sha256, or remove it')


def _check_locations(folder: Path, network: str, listed: Iterable[str]) -> None:
    """Check that the files which an ONNX file names for its weights are listed."""
    parent = PurePosixPath(network).parent
    try:
        locations = external_locations(folder / network)
    except OSError as error:
        raise error_of(folder, f'{network} cannot be read: {error}') from error
    for location in locations:
        if str(parent / location) not in listed:
            refuse(folder, f'{network} keeps weights in {short(location)}, which is not listed '
                   'under files; list it with its sha256')


def external_locations(path: str | os.PathLike) -> list[str]:
    """Return what an ONNX file names as the files of its weights, relative to its folder."""
    found: dict[str, None] = {}
    if not os.path.getsize(path):
        # Nothing can be mapped, and nothing is named.
        return []
    with open(path, 'rb') as stream, mmap.mmap(
            stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        at = content.find(_LOCATION)
        while at >= 0:
            at += len(_LOCATION)
            # A length from 128 on has a second byte.
            low, high = content[at:at + 2].ljust(2, b'\0')
            size, at = (low & 127 | high << 7, at + 2) if low & 128 else (low, at + 1)
            found[content[at:at + size].decode('utf-8', 'replace')] = None
            at = content.find(_LOCATION, at)
    return list(found)


def _safe_path(folder: Path, name: str) -> Path:
    """Return the path of a listed file, which must exist and lie inside the bundle."""
    pure = PurePosixPath(name)
    if (not name.isprintable() or '\\' in name or ':' in name or pure.is_absolute()
            or '..' in pure.parts or str(pure) != name or name in ('.', MANIFEST)):
        refuse(folder, f'{MANIFEST}: files: {short(name)} is not a plain relative name inside '
               'the bundle; write it such as network.onnx, and put the file there')
    if pure.suffix.lower() in PICKLE_SUFFIXES:
        refuse(folder, f'{MANIFEST}: files: {short(name)} is a pickle by its name, and bundles '
               'hold none; export weights to ONNX or safetensors')
    path = folder / name
    try:
        real = path.resolve(strict=True)
        # A manifest that is itself a link (colcon build --symlink-install) brings its folder.
        roots = {folder.resolve(), (folder / MANIFEST).resolve().parent}
        regular = stat.S_ISREG(real.stat().st_mode)
    except FileNotFoundError as error:
        raise error_of(folder, f'{name} is listed in {MANIFEST} but is not there; '
                       'fetch the bundle again') from error
    except (OSError, RuntimeError, ValueError) as error:
        raise error_of(folder, f'{name} cannot be opened: {error}') from error
    if not any(root in real.parents for root in roots):
        refuse(folder, f'{name} is a link that leaves the bundle (to {real}); '
               'copy the file into the folder')
    if not regular:
        refuse(folder, f'{name} is not a regular file; fetch the bundle again')
    return path


def _check_file(folder: Path, name: str, path: Path, expected: str) -> None:
    try:
        actual = sha256_of(path)
        with open(path, 'rb') as stream:
            head = stream.read(64)
        size = path.stat().st_size
    except OSError as error:
        raise error_of(folder, f'{name} cannot be read: {error}') from error
    if actual != expected:
        if head.startswith(b'version https://git-lfs'):
            refuse(folder, f'{name} is a Git LFS pointer, not the file; run git lfs pull')
        refuse(folder, f'{name} ({size} bytes) has sha256 {actual[:12]}..., but {MANIFEST} '
               f'lists {expected[:12]}...: it is damaged, truncated or another file; '
               'fetch the bundle again, or export it again if you changed it')
    if name.endswith('.onnx') and (not head or head.startswith((b'PK\x03\x04', b'\x80'))):
        refuse(folder, f'{name} is no ONNX network but '
               f"{'a pickle or an archive' if head else 'empty'}; "
               'export the network to ONNX (owseg-train export)')


def sha256_of(path: str | os.PathLike) -> str:
    """Return the sha256 of a file as lower-case hex, reading it in blocks."""
    digest = hashlib.sha256()
    block = bytearray(_HASH_BLOCK)
    view = memoryview(block)
    with open(path, 'rb', buffering=0) as stream:
        while True:
            size = stream.readinto(block)
            if not size:
                return digest.hexdigest()
            digest.update(view[:size])
