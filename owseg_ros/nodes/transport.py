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
How DDS carries images between processes: shared memory and the allocator.

Two defaults stand in the way of camera images. Fast DDS gives a participant 512 KiB of shared
memory, and a best-effort image that is larger never arrives in another process. And glibc
returns each large buffer to the kernel, so that each image pays for its page faults again.
`prepare` changes both for the running process. It has to run before `rclpy.init`, because the
middleware reads its profile once, with the first context.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version
import os
from pathlib import Path
import re
import sys
from typing import Mapping

PROFILE_VARIABLES = ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE')
"""Where Fast DDS looks for its profile: from 3.0 (Kilted) on, and up to Jazzy."""

SEGMENT_BYTES = 64 << 20
"""Shared memory of one participant in the shipped profile."""

SMALLEST_SEGMENT_BYTES = 8 << 20
PROCESSES = 4
"""Participants of one machine that shall find room in /dev/shm."""

_SHARED_MEMORY = Path('/dev/shm')
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3


@dataclass(frozen=True)
class Transport:
    """What `prepare` or `check` found: one line for people, and whether images will arrive."""

    ok: bool
    description: str
    advice: str = ''
    profile: Path | None = None
    segment_bytes: int = 0

    def __str__(self) -> str:
        """Return the description, with the advice where there is one."""
        return f'{self.description}. {self.advice}' if self.advice else self.description


def profile_path() -> Path:
    """Return the shipped Fast DDS profile (64 MiB of shared memory, and UDP)."""
    return Path(__file__).with_name('fastdds.xml')


def profile_variable() -> str:
    """Return the name of the variable that the installed Fast DDS reads its profile from."""
    try:
        rclpy_version = version('rclpy')
    except PackageNotFoundError:
        return PROFILE_VARIABLES[0]
    # Jazzy has rclpy 7, and Kilted, the first with Fast DDS 3, has rclpy 9.
    return PROFILE_VARIABLES[int(rclpy_version.split('.')[0]) < 8]


def prepare(environment: dict[str, str] | None = None) -> Transport:
    """
    Set up this process for large images; call it before `rclpy.init`.

    Points Fast DDS to the shipped profile unless the user has chosen a profile, a transport or
    another middleware, and keeps large buffers in the process (mallopt). Where /dev/shm is too
    small for the shipped profile (64 MB is a container's default), a smaller one is written to
    `$ROS_HOME/owseg_ros`. Calling it twice changes nothing.

    :param environment: what is read and changed; `os.environ` when not given. The middleware
        only sees `os.environ`.
    :returns: the transport that this process will have.
    """
    environment = os.environ if environment is None else environment
    keep_large_buffers(environment)
    if _uses_fast_dds(environment) and not _chosen(environment):
        environment[profile_variable()] = str(_profile_that_fits(environment))
    return check(environment)


def check(environment: Mapping[str, str] | None = None) -> Transport:
    """Say which transport a process with this environment has, and what to do about it."""
    environment = os.environ if environment is None else environment
    if not _uses_fast_dds(environment):
        return Transport(
            True, f'RMW_IMPLEMENTATION={environment["RMW_IMPLEMENTATION"]}, '
            'the Fast DDS profile does not apply')
    profile = _profile_in(environment)
    builtin = environment.get('FASTDDS_BUILTIN_TRANSPORTS', '')
    if profile is None:
        if builtin.upper().startswith('LARGE_DATA'):
            return Transport(True, f'Fast DDS with FASTDDS_BUILTIN_TRANSPORTS={builtin}')
        return Transport(
            False, f'Fast DDS with its {builtin or "default"} transports (512 KiB of shared '
            'memory)', 'Best-effort images above 512 KiB will not arrive from other processes: '
            f'export {profile_variable()}={profile_path()}')
    try:
        text = profile.read_text(encoding='utf-8')
    except (OSError, UnicodeDecodeError) as error:
        return Transport(
            False, f'Fast DDS profile {profile} cannot be read ({error})',
            f'Correct or unset {profile_variable()}', profile)
    sizes = [int(size) for size in re.findall(r'<segment_size>\s*(\d+)\s*</segment_size>', text)]
    segment = max(sizes, default=0)
    if segment < SMALLEST_SEGMENT_BYTES:
        return Transport(
            False, f'Fast DDS profile {profile} with '
            f'{segment >> 10 if segment else 512} KiB of shared memory',
            'Best-effort images that are larger will not arrive from other processes: raise '
            f'segment_size, or use {profile_path()}', profile, segment)
    description = f'Fast DDS profile {profile} ({segment >> 20} MiB of shared memory)'
    free = _free_shared_memory()
    if free is not None and free < segment:
        return Transport(
            False, description, f'/dev/shm has {free >> 20} MiB left, so the next process will '
            'fall back to UDP: enlarge it (docker run --shm-size 1g), or remove what killed '
            'processes left there (fastdds shm clean)', profile, segment)
    return Transport(True, description, '', profile, segment)


def keep_large_buffers(environment: Mapping[str, str] | None = None) -> bool:
    """
    Make glibc reuse the memory of images instead of returning it to the kernel.

    :returns: whether the thresholds were set; False on another C library, and where the user
        has set them by MALLOC_ variables or GLIBC_TUNABLES.
    """
    environment = os.environ if environment is None else environment
    if not sys.platform.startswith('linux') or any(
            name in environment for name in ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_')):
        return False
    if 'glibc.malloc' in environment.get('GLIBC_TUNABLES', ''):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    # 32 MiB is the largest mmap threshold that glibc accepts.
    return all([
        mallopt(_M_MMAP_THRESHOLD, 32 << 20),
        mallopt(_M_TRIM_THRESHOLD, 512 << 20),
        mallopt(_M_TOP_PAD, 32 << 20)])


def _uses_fast_dds(environment: Mapping[str, str]) -> bool:
    return environment.get('RMW_IMPLEMENTATION', 'rmw_fastrtps_cpp').startswith('rmw_fastrtps')


def _chosen(environment: Mapping[str, str]) -> bool:
    return _profile_in(environment) is not None or bool(
        environment.get('FASTDDS_BUILTIN_TRANSPORTS'))


def _profile_in(environment: Mapping[str, str]) -> Path | None:
    for name in PROFILE_VARIABLES:
        if environment.get(name):
            return Path(environment[name])
    return None


def _free_shared_memory() -> int | None:
    try:
        state = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return state.f_bavail * state.f_frsize


def _profile_that_fits(environment: Mapping[str, str]) -> Path:
    """Return the shipped profile, or a smaller one where /dev/shm is small."""
    free = _free_shared_memory()
    # Fast DDS allocates the whole segment when the process starts, and falls back to UDP when
    # there is no room for it.
    if free is None or free >= PROCESSES * SEGMENT_BYTES:
        return profile_path()
    segment = max(SMALLEST_SEGMENT_BYTES, 1 << (free // PROCESSES).bit_length() - 1)
    if segment >= SEGMENT_BYTES:
        return profile_path()
    text = profile_path().read_text(encoding='utf-8')
    text = re.sub(r'(<segment_size>)\d+', rf'\g<1>{segment}', text)
    text = re.sub(r'(<maxMessageSize>)\d+', rf'\g<1>{segment // 4}', text)
    folder = Path(environment.get('ROS_HOME') or Path.home() / '.ros') / 'owseg_ros'
    profile = folder / f'fastdds_{segment >> 20}mib.xml'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = profile.with_name(f'{profile.name}.{os.getpid()}')
        temporary.write_text(text, encoding='utf-8')
        temporary.replace(profile)
    except OSError:
        return profile_path()
    return profile
