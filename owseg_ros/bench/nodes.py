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
The node end to end: camera and perception as one process, a listener as another, over DDS.

Frames are written to a folder that the camera node plays, so that rendering costs nothing here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import importlib.util
import json
import os
from pathlib import Path
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

import cv2
import numpy as np
from owseg_ros.engine.status import FALLBACK, RUNNING
from owseg_ros.errors import OwsegError
from owseg_ros.processes import end_process, private_domain

START_SECONDS = 90.0
BUILD_SECONDS = 1800.0
# Frames until the network, DDS and the caches are warm.
WARM_FRAMES = 10


class NodeBenchError(OwsegError):
    """The nodes did not run; the message says what they said."""


def why_no_nodes() -> str:
    """Return why the node cannot be measured here, '' where it can."""
    if importlib.util.find_spec('rclpy') is None:
        return 'rclpy is not installed: source a ROS 2 installation, or pip install ' \
               '"owseg_ros[ros]"'
    return ''


@dataclass(frozen=True)
class NodeRun:
    """
    One run.

    model: folder of the bundle; engine: the node's parameter engine, and those of that engine;
    providers, threads: as the node's parameters; rate: frames a second of the camera; seconds:
    how long to measure; domain: of ROS, None for a private one.
    """

    model: Path
    engine: dict[str, Any]
    providers: tuple[str, ...]
    threads: int
    rate: float
    seconds: float
    domain: int | None = None


def measure_node(run: NodeRun, frames: Sequence[np.ndarray],
                 progress: Callable[[float], None] = lambda share: None) -> dict[str, Any]:
    """
    Run the nodes on frames, uint8 [H, W, 3] RGB of one size, and listen to all four maps.

    Returns the rates of camera and complete results, ages from camera stamp to arrival (ms), how
    many cores the process kept busy and its peak memory, and what the node says of itself. Raises
    NodeBenchError where nothing comes.
    """
    private_domain(run.domain)
    from owseg_ros.nodes import recorder, transport

    transport.prepare()
    with tempfile.TemporaryDirectory(prefix='owseg_bench_') as folder:
        for index, frame in enumerate(frames):
            # BMP is decoded in no time and without loss.
            cv2.imwrite(f'{folder}/{index:04d}.bmp', frame[..., ::-1])
        with open(Path(folder, 'nodes.log'), 'w+') as log:
            nodes = subprocess.Popen(_command(run, folder), stdout=log, stderr=log)
            try:
                return _listen(run, nodes, recorder, Path(log.name), progress)
            finally:
                end_process(nodes)


def _command(run: NodeRun, folder: str) -> list[str]:
    command = [sys.executable, '-m', 'owseg_ros.nodes.stack', '--ros-args']
    for name, value in {
            'model': str(run.model), **run.engine, 'providers': list(run.providers),
            'threads': run.threads, 'source': folder, 'rate': float(run.rate), 'loop': True,
            'diagnostics_period': 0.5}.items():
        command += ['-p', f'{name}:={json.dumps(value)}']
    return command


def _listen(run: NodeRun, nodes: subprocess.Popen, recorder: Any, log: Path,
            progress: Callable[[float], None]) -> dict[str, Any]:
    seen: list[Any] = []

    def received(frame: Any) -> None:
        seen.append((time.monotonic(), frame.age_ms))

    with recorder.session(received) as (node, spin_once):
        begun = time.monotonic()
        while len(seen) < WARM_FRAMES:
            spin_once(0.1)
            if nodes.poll() is not None or time.monotonic() - begun > START_SECONDS:
                raise NodeBenchError('the nodes gave no results; they say:\n' + '\n'.join(
                    log.read_text(errors='replace').splitlines()[-12:]))
        _await_engine(run, node, spin_once)
        seen.clear()
        images, before = node.received['image'], _usage(nodes.pid)
        start = time.monotonic()
        while (elapsed := time.monotonic() - start) < run.seconds:
            spin_once(0.1)
            progress(min(1.0, elapsed / run.seconds))
        images, after = node.received['image'] - images, _usage(nodes.pid)
        statistics = dict(node.statistics)
    ages = [age['anomaly/mask'] for _, age in seen]
    if not ages:
        raise NodeBenchError(f'the nodes gave no results for {run.seconds:g} s')
    return {
        'camera_hz': run.rate, 'camera_received_hz': images / elapsed,
        'results_hz': len(seen) / elapsed, 'frames': len(seen),
        **{f'age_{name}_ms': float(value) for name, value in zip(
            ('p50', 'p95', 'p99'), np.percentile(ages, (50, 95, 99)))},
        'cores': None if before is None else (after[0] - before[0]) / elapsed,
        'memory_mib': None if before is None else after[1],
        'node': {key: float(statistics[key]) for key in (
            'network_ms', 'readout_ms', 'drops', 'bad_frames') if key in statistics}}


def _await_engine(run: NodeRun, node: Any, spin_once: Callable[[float], None]) -> None:
    """Wait until the engine that was asked for answers; until then another stands in for it."""
    begun = time.monotonic()
    while (state := node.engine.get('engine_state')) != RUNNING:
        if state == FALLBACK:
            raise NodeBenchError(f'the engine {run.engine["engine"]} does not run in the node: '
                                 f'{node.engine.get("engine_reason")}')
        if time.monotonic() - begun > BUILD_SECONDS:
            raise NodeBenchError(f'the engine {run.engine["engine"]} was not ready in '
                                 f'{BUILD_SECONDS:g} s')
        spin_once(0.1)


def _usage(pid: int) -> tuple[float, float] | None:
    """Return seconds of processor time and the peak memory in MiB of a process, on Linux."""
    try:
        stat = Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()
        status = Path(f'/proc/{pid}/status').read_text()
    except OSError:
        return None
    ticks = os.sysconf('SC_CLK_TCK')
    return ((int(stat[11]) + int(stat[12])) / ticks,
            int(re.search(r'VmHWM:\s+(\d+)', status)[1]) / 1024)
