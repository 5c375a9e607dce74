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
"""Time and memory of calls, measured in turns so that a disturbed machine disturbs all alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
import ctypes
from dataclasses import dataclass, field
from pathlib import Path
import re
import time
from typing import Any, Optional

import numpy as np

_STATUS, _CLEAR = Path('/proc/self/status'), Path('/proc/self/clear_refs')


@dataclass
class Timing:
    """Time of each repetition of a call: on the clock and of the processor's cores, in ms."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def statistics(self) -> dict[str, float]:
        """Return p50, p95, p99 in ms, how many cores were busy, and the number of calls."""
        p50, p95, p99 = np.percentile(self.wall, (50, 95, 99))
        return {'p50_ms': float(p50), 'p95_ms': float(p95), 'p99_ms': float(p99),
                'cores': float(np.sum(self.cpu) / np.sum(self.wall)), 'calls': len(self.wall)}


def interleave(calls: Mapping[str, Callable[[], Any]], repeats: int,
               step: Callable[[], None] = lambda: None) -> dict[str, Timing]:
    """
    Time calls in turns, the order rotating, after one of each that warms up.

    step: called after each call, to show progress.
    """
    timings = {name: Timing() for name in calls}
    for call in calls.values():
        call()
        step()
    names = list(calls)
    for turn in range(repeats):
        for name in names[turn % len(names):] + names[:turn % len(names)]:
            cpu, wall = time.process_time(), time.perf_counter()
            calls[name]()
            timings[name].wall.append(1e3 * (time.perf_counter() - wall))
            timings[name].cpu.append(1e3 * (time.process_time() - cpu))
            step()
    return timings


def ratio(slow: Timing, fast: Timing) -> float:
    """Return how many times as fast: the median over the turns."""
    return float(np.median(np.divide(slow.wall, fast.wall)))


def _resident(key: str) -> float:
    return int(re.search(key + r':\s+(\d+)', _STATUS.read_text())[1]) / 1024


def peak_memory(call: Callable[[], Any]) -> Optional[float]:
    """
    Return by how many MiB a call raises the memory of this process at most, its result included.

    It is too small by what other threads have freed and the C library keeps for them, if the call
    uses that; a process that has done nothing else before has none. None where the system does
    not tell, that is, elsewhere than on Linux.
    """
    if not _CLEAR.exists():
        return None
    try:
        # What freed arrays left behind would be used first.
        ctypes.CDLL(None).malloc_trim(0)
    except AttributeError:
        return None
    _CLEAR.write_text('5')
    before = _resident('VmRSS')
    kept = call()
    peak = _resident('VmHWM') - before
    del kept
    return peak
