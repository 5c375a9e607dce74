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
"""The sections of a benchmark: what each measures of what was opened for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from owseg_ros.bench.memory import Gpu, GpuMemory
from owseg_ros.bench.networks import measure_network, measure_pipeline, measure_segmenter
from owseg_ros.bench.nodes import measure_node, NodeRun, why_no_nodes
from owseg_ros.bench.options import BenchError, BenchOptions
from owseg_ros.bench.peers import PeerPipeline, PeerRun, Peers
from owseg_ros.bench.readouts import (
    cases, growth_steps, measure_growth, measure_readout, official_memory)
from owseg_ros.bundle import Bundle, load_bundle
from owseg_ros.engine import NetworkOutput
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.engine.onnx import one_line
from owseg_ros.engine.status import BUILDING, FALLBACK, WARMING
from owseg_ros.errors import OwsegError
from owseg_ros.frame import Frame
from owseg_ros.segmenter import Segmenter

# A camera that is faster than the node by this: its peak.
PEAK = 1.5
# A pass of a large network takes seconds on a CPU.
_PIPELINE_REPEATS = {'model': 1.0, 'small': 1.0, 'swin_t': 0.5, 'swin_b': 0.25}


@dataclass
class Progress:
    """Counts the steps of a section."""

    tell: Callable[[str, float], None]
    name: str = ''
    total: int = 1
    done: int = 0

    def begin(self, name: str, total: int) -> None:
        """Begin a section of so many steps."""
        self.name, self.total, self.done = name, max(1, total), 0
        self.tell(name, 0.0)

    def step(self) -> None:
        """Tell that one more step is done."""
        self.done += 1
        self.tell(self.name, min(1.0, self.done / self.total))


def open_segmenter(bundle: Bundle, options: BenchOptions, threads: int, bar: Progress,
                   largest: int) -> Segmenter:
    """
    Return a segmenter whose engine is the one that was asked for, built and warm.

    largest: frames in a pass at most. Raises BenchError where another engine answers.
    """
    segmenter = Segmenter(bundle, options.engine, options.providers, threads,
                          **options.engine_options(largest))
    engine = segmenter.engine
    if isinstance(engine, FallbackEngine):
        while (status := engine.wait(0.2)).state in (BUILDING, WARMING):
            bar.tell(f'engine: {status}', status.share)
        engine.wait()
    check_engine(segmenter, options)
    return segmenter


def check_engine(segmenter: Segmenter, options: BenchOptions) -> None:
    """Raise BenchError where another engine answers than the one that was asked for."""
    status = segmenter.engine.status
    if status.state == FALLBACK:
        segmenter.close()
        raise BenchError(f'the engine {options.engine} does not run here: {status.reason}')


@dataclass(frozen=True)
class Bench:
    """
    What is measured and what with.

    frames: uint8 [H, W, 3] RGB, of the first of options.sizes; peers: what to compare with, None
    for nothing, and run: how it runs; gpu: whose memory is measured, None for none, and memory:
    what is taken of it since before segmenter was opened; bar: is told the progress; say: is told
    what happens, a line at a time.
    """

    options: BenchOptions
    segmenter: Segmenter
    frames: list[np.ndarray]
    peers: Peers | None
    run: PeerRun
    gpu: Gpu | None
    memory: GpuMemory
    bar: Progress
    say: Callable[[str], None]


class Sections:
    """
    The sections by name, in the order in which they run; each returns its part of the report.

    report: what is known so far; save: writes it, also before a section has ended.
    """

    def __init__(self, bench: Bench, report: dict[str, Any], save: Callable[[], None]) -> None:
        self._bench, self._report, self._save = bench, report, save
        # What networks of pipelines say of a frame, by name: cases for the readout.
        self._outputs: dict[str, NetworkOutput] = {}
        self.by_name: dict[str, Callable[[], Any]] = {
            'pipelines': self._pipelines, 'readout': self._readout,
            'segmenter': self._segmenter, 'network': self._network, 'growth': self._growth,
            'nodes': self._nodes}

    def _pipelines(self) -> list[dict[str, Any]]:
        found = []
        options = self._bench.options
        for kind, size in product(options.pipelines, options.pipeline_sizes):
            if self._bench.peers is None:
                continue
            try:
                found += self._pipeline(kind, size)
            except (OwsegError, RuntimeError, MemoryError) as error:
                # Not enough memory, say: the others are measured all the same.
                self._report['left_out'][f'{kind} at {size[0]}x{size[1]}'] = one_line(error)
            self._report['pipelines'] = found
            self._save()
        return found

    def _pipeline(self, kind: str, size: tuple[int, int]) -> list[dict[str, Any]]:
        bench, options, run = self._bench, self._bench.options, self._bench.run
        opened, batches = [], options.pipeline_batches

        def open_peer() -> PeerPipeline:
            if kind == 'model':
                return bench.peers.hugging_face_around(
                    bench.segmenter.bundle, bench.segmenter.engine, run)
            bench.bar.begin(f'pipelines: exporting {kind}', 1)
            batch, cache, program = options.export
            peer = bench.peers.hugging_face(kind, size, batch, run, cache, program, bench.say)
            bench.bar.begin(name, steps)
            return peer

        def open_ours(peer: PeerPipeline) -> Segmenter:
            if kind == 'model':
                return bench.segmenter
            opened.append(open_segmenter(load_bundle(peer.bundle), options, run.threads,
                                         bench.bar, max(batches)))
            return opened[0]

        name = f'pipelines: {kind}, {size[0]}x{size[1]}'
        calls = 1 if kind == 'model' else len(run.precisions) * (1 + run.compiled)
        count = max(1, round(options.repeats * (
            1.0 if bench.segmenter.engine.on_gpu else _PIPELINE_REPEATS[kind])))
        steps = len(batches) * (calls + (count + 1) * (3 + calls))
        bench.bar.begin(name, steps)
        try:
            # Both sides share the network of the model, and so its memory.
            rows, output = measure_pipeline(
                open_peer, open_ours, run, bench.frames, size, batches, count,
                None if kind == 'model' else bench.gpu, self._report['left_out'], bench.bar.step)
            for one in opened or [bench.segmenter]:
                check_engine(one, options)
        finally:
            for one in opened:
                one.close()
        if kind != 'model':
            self._outputs.setdefault(f'{rows[0]["network"]}, random weights', output)
        return rows

    def _readout(self) -> dict[str, Any]:
        bench, repeats, threads = self._bench, self._bench.options.repeats, self._bench.run.threads
        named = {f'{bench.segmenter.bundle.name} on a frame, enlarged':
                 bench.segmenter.engine.infer([Frame(bench.frames[0])]), **self._outputs}
        found = {}
        for name, task in cases(named).items():
            bench.bar.begin(f'readout: {name}',
                            1 + (repeats + 1) * (4 if bench.peers is None else 5))
            found[name] = measure_readout(task, bench.peers, threads, repeats, bench.bar.step)
        if bench.peers is not None:
            self._report['official_memory_mib'] = official_memory(task, bench.peers, threads)
        return found

    def _segmenter(self) -> list[dict[str, Any]]:
        bench, options = self._bench, self._bench.options
        bench.bar.begin('segmenter', (options.repeats + 2) * len(options.sizes))
        return measure_segmenter(bench.segmenter, bench.frames, options.sizes, options.repeats,
                                 bench.bar.step, bench.memory)

    def _network(self) -> list[dict[str, Any]]:
        bench, options = self._bench, self._bench.options
        bench.bar.begin('network', (options.repeats + 1) * len(options.batches))
        return measure_network(bench.segmenter, bench.frames, options.batches, options.repeats,
                               bench.bar.step)

    def _growth(self) -> dict[str, Any]:
        bench, count = self._bench, max(1, self._bench.options.repeats // 3)
        bench.bar.begin('growth', growth_steps(bench.peers, count))
        found = measure_growth(bench.peers, bench.run.threads, count, bench.bar.step)
        if 'network' in self._report:
            rows = self._report['network']
            found['cameras'] = {
                'label': 'cameras in a batch, ms a frame of the network',
                'x': [row['batch'] for row in rows],
                'series': {'owseg_ros': [row['ms_per_frame'] for row in rows]}}
        return found

    def _nodes(self) -> list[dict[str, Any]]:
        bench, options = self._bench, self._bench.options
        why = why_no_nodes()
        if why:
            self._report['left_out']['the node'] = why
            return []
        rows = self._report.get('segmenter') or measure_segmenter(
            bench.segmenter, bench.frames, options.sizes[:1], min(options.repeats, 5))
        rates = [30.0, max(1.0, PEAK * rows[0]['frames_per_s'])]
        found = []
        for rate in dict.fromkeys(rates):
            name = f'nodes: camera at {rate:.0f} Hz'
            bench.bar.begin(name, 1)
            found.append(measure_node(
                NodeRun(bench.segmenter.bundle.path, options.engine_parameters(),
                        options.providers, options.threads, rate, options.seconds,
                        options.domain), bench.frames,
                lambda share, name=name: bench.bar.tell(name, share)))
        return found
