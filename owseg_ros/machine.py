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
"""What a measurement was made on: the machine and the versions of what ran."""

from __future__ import annotations

from collections.abc import Sequence
import importlib.metadata
import os
from pathlib import Path
import platform
import shutil
import subprocess
from typing import Any

from owseg_ros import __version__


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of owseg_ros, Python and those of these packages that are installed."""
    found = {'owseg_ros': __version__, 'python': platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the processor's name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith('model name'):
                name = line.partition(':')[2].strip()
                break
    cores = os.sched_getaffinity(0) if hasattr(os, 'sched_getaffinity') else range(
        os.cpu_count() or 1)
    return {'cpu': name, 'cores': len(cores)}


def gpus() -> dict[str, Any]:
    """Return the names of the GPUs and the version of their driver; {} without nvidia-smi."""
    tool = shutil.which('nvidia-smi')
    if tool is None:
        return {}
    try:
        told = subprocess.run(
            [tool, '--query-gpu=name,driver_version', '--format=csv,noheader'],
            capture_output=True, text=True, timeout=30, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.rsplit(', ', 1) for line in told.splitlines() if ', ' in line]
    return {'gpus': [name for name, _ in rows], 'driver': rows[0][1]} if rows else {}


def machine_in_full() -> dict[str, Any]:
    """Return also the memory, the operating system, vector instructions and the load."""
    found = machine() | {'architecture': platform.machine(), 'system': platform.platform()}
    info = Path('/proc/cpuinfo')
    if info.is_file():
        flags = set(info.read_text().split())
        found['vector_instructions'] = [name for name in (
            'avx2', 'avx512f', 'amx_tile', 'asimd', 'sve') if name in flags]
    if hasattr(os, 'sysconf') and 'SC_PHYS_PAGES' in os.sysconf_names:
        found['memory_gib'] = round(
            os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2 ** 30, 1)
    if hasattr(os, 'getloadavg'):
        found['load_before'] = round(os.getloadavg()[0], 2)
    return found
