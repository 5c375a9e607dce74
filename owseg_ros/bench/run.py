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
"""The benchmark as a whole: which sections, on which frames, and where the results go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import product
import json
import os
from pathlib import Path
import time
from typing import Any

import numpy as np
from owseg_ros.bench import report as report_module
from owseg_ros.bench.memory import Gpu, GpuMemory, open_gpu
from owseg_ros.bench.networks import measure_network, measure_pipeline, measure_segmenter
from owseg_ros.bench.nodes import measure_node, NodeRun, why_no_nodes
from owseg_ros.bench.peers import (
    CPU, CUDA, open_peers, peer_precisions, PeerPipeline, PeerRun, PEERS, Peers)
from owseg_ros.bench.readouts import (
    cases, growth_steps, measure_growth, measure_readout, official_memory)
from owseg_ros.bundle import Bundle, default_bundle_path, load_bundle
from owseg_ros.engine import (
    EngineError, OnnxEngine, TensorrtOptions, TorchEngine, TorchOptions)
from owseg_ros.engine.cuda_engine import require_torch_cuda
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.engine.onnx import one_line, physical_cores
from owseg_ros.engine.status import BUILDING, FALLBACK, WARMING
from owseg_ros.errors import OwsegError
from owseg_ros.frame import Frame
from owseg_ros.language.files import write_atomically
from owseg_ros.machine import gpus, machine_in_full, versions
from owseg_ros.segmenter import Segmenter
from owseg_ros.source import open_source

SECTIONS = ('readout', 'pipelines', 'segmenter', 'network', 'growth', 'nodes')
# 'model' is the network of the model that is measured.
PIPELINES = ('model', 'small', 'swin_t', 'swin_b')
AUTO = 'auto'
PEER_DEVICES = (AUTO, CPU, CUDA)
FRAMES = 12
# A camera that is faster than the node by this: its peak.
PEAK = 1.5

_PACKAGES = ('numpy', 'onnxruntime', 'opencv-python-headless', 'ros-kilted-rclpy')
_GPU_PACKAGES = ('torch', 'triton', 'tensorrt', 'onnxruntime-gpu')
# A pass of a large network takes seconds on a CPU.
_PIPELINE_REPEATS = {'model': 1.0, 'small': 1.0, 'swin_t': 0.5, 'swin_b': 0.25}


class BenchError(OwsegError):
    """Options that cannot be measured; the message says what to give."""


@dataclass(frozen=True)
class BenchOptions:
    """
    What to measure.

    model: folder of a bundle, None for the default; engine, providers, threads: as for Segmenter,
    threads also of what is measured beside it, 0 for the number of cores; torch_device,
    torch_precision, torch_compile, tensorrt_precision: of these engines, as the node's
    parameters; source: of the frames; sizes: (width, height) of frames, the first one for
    batches and the node; batches: frames in a pass; repeats: of each call; seconds: of each run
    of the node; sections: of SECTIONS.

    pipelines: of PIPELINES; pipeline_sizes: (width, height) of their frames, and of their
    networks but for 'model'; pipeline_batches: frames that they are given at a time; where it is
    one number, their networks are exported for just that; peers: module with what to compare
    with, '' for nothing; peer_device: of PEER_DEVICES, auto for where the engine runs; compiled:
    whether torch.compile of the peer is measured too, which takes minutes; cache: folder of
    exported networks, None for that of the user; domain: of ROS, None for a private one.
    """

    model: Path | None = None
    engine: str = 'onnx'
    providers: tuple[str, ...] = ('cpu',)
    threads: int = 0
    torch_device: str = CUDA
    torch_precision: str = AUTO
    torch_compile: bool = False
    tensorrt_precision: str = AUTO
    source: str = 'scene'
    sizes: tuple[tuple[int, int], ...] = ((640, 480), (1280, 720), (1920, 1080))
    batches: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 12
    seconds: float = 20.0
    sections: tuple[str, ...] = SECTIONS
    pipelines: tuple[str, ...] = ('model', 'small', 'swin_t')
    pipeline_sizes: tuple[tuple[int, int], ...] = ((640, 480),)
    pipeline_batches: tuple[int, ...] = (1,)
    peers: str = PEERS
    peer_device: str = AUTO
    compiled: bool = False
    cache: Path | None = None
    domain: int | None = None

    def __post_init__(self) -> None:
        for name, known in (('sections', SECTIONS), ('pipelines', PIPELINES)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise BenchError(f'there are no {name} {", ".join(unknown)}; choose from '
                                 f'{", ".join(known)}')
        counts = self.repeats, *(min(batches, default=0) for batches in (
            self.batches, self.pipeline_batches))
        if min(counts) < 1 or self.seconds <= 0:
            raise BenchError('repeats and batches must be 1 or more, and seconds positive')
        if self.peer_device not in PEER_DEVICES:
            raise BenchError(f'unknown peer_device {self.peer_device!r}; choose from '
                             f'{", ".join(PEER_DEVICES)}')
        if not self.sizes or min(min(size) for size in self.sizes) < 16:
            raise BenchError('frames must be at least 16 pixels wide and high')
        if not self.pipeline_sizes or any(
                side < 32 or side % 32 for size in self.pipeline_sizes for side in size):
            raise BenchError('width and height of pipelines must be multiples of 32')
        self.engine_options(1)

    @property
    def on_gpu(self) -> bool:
        """Return whether anything is asked to run on a GPU."""
        if self.engine == OnnxEngine.name:
            engine = tuple(self.providers[:1]) != (CPU,)
        else:
            engine = self.engine != TorchEngine.name or self.torch_device == CUDA
        return engine or self.peer_device == CUDA

    @property
    def export(self) -> tuple[int | None, Path, bool]:
        """Return how pipelines are exported: batch, folder, and whether with a program."""
        batches = self.pipeline_batches
        return (batches[0] if len(batches) == 1 else None, self.cache or cache_folder(),
                self.engine == TorchEngine.name)

    def engine_options(self, largest: int) -> dict[str, Any]:
        """Return the options of both engines, ready for so many frames; raise EngineError."""
        return {'tensorrt': TensorrtOptions(self.tensorrt_precision, max_batch=largest),
                'torch': TorchOptions(self.torch_device, self.torch_precision,
                                      self.torch_compile, largest)}

    def engine_parameters(self) -> dict[str, Any]:
        """Return the parameters of the node that say the same of its engine."""
        return {name: getattr(self, name) for name in (
            'engine', 'torch_device', 'torch_precision', 'torch_compile', 'tensorrt_precision')}


@dataclass
class _Progress:
    """Counts the steps of a section."""

    tell: Callable[[str, float], None]
    name: str = ''
    total: int = 1
    done: int = 0

    def begin(self, name: str, total: int) -> None:
        self.name, self.total, self.done = name, max(1, total), 0
        self.tell(name, 0.0)

    def step(self) -> None:
        self.done += 1
        self.tell(self.name, min(1.0, self.done / self.total))


def cache_folder() -> Path:
    """Return where exported networks are kept, in the cache of the user."""
    return Path(os.environ.get('XDG_CACHE_HOME') or '~/.cache').expanduser() / 'owseg_ros/bench'


def read_frames(source: str, size: tuple[int, int], count: int = FRAMES) -> list[np.ndarray]:
    """Return a number of frames, uint8 [H, W, 3] RGB, spread over what a short source has."""
    opened = open_source(source, loop=True, width=size[0], height=size[1])
    try:
        # Neighbours of a video or of the street are nearly the same.
        every = 1 if opened.frames and opened.frames < 10 * count else 10
        frames = []
        for index in range(every * (count - 1) + 1):
            frame = opened.read()
            if index % every == 0:
                frames.append(frame)
        return frames
    finally:
        opened.close()


def run_bench(options: BenchOptions, out: Path | None = None, document: Path | None = None,
              command: str = 'owseg bench', say: Callable[[str], None] = print,
              progress: Callable[[str, float], None] = lambda name, share: None,
              ) -> dict[str, Any]:
    """
    Measure and return the report.

    out: folder for benchmarks.json, benchmarks.md and benchmarks.png, written after each section
    and each pipeline, so that a run that is interrupted loses only what it was at; document: a
    Markdown file whose marked part becomes the tables, with the picture beside it, in the end;
    command: how it was called, for the report; say: told what happens, a line at a time;
    progress: told the section and the share of it that is done. Raises BenchError and the errors
    of bundle, engine, source, nodes and report.
    """
    start = time.monotonic()
    machine = machine_in_full() | gpus()
    threads = options.threads or physical_cores()
    bundle = load_bundle(options.model or default_bundle_path())
    bar = _Progress(progress)
    gpu = open_gpu(options.on_gpu)
    memory = GpuMemory(gpu)
    segmenter = _open(bundle, options, threads, bar,
                      max(*options.batches, *options.pipeline_batches))
    peers, why = open_peers(options.peers)
    left_out = {'what is measured beside it': why} if peers is None else {}
    if peers is None:
        say(f'without anything beside it: {why}')
    run = _peer_run(options, segmenter, threads)
    if peers is not None and run.device == CUDA and 'pipelines' in options.sections:
        _require_peer_device()
    frames = read_frames(options.source, options.sizes[0])
    report: dict[str, Any] = {
        'command': command, 'machine': machine,
        **({} if gpu is None else {'gpu': gpu.gpu_facts()}),
        'versions': versions(
            _PACKAGES + (_GPU_PACKAGES if options.on_gpu or options.engine != OnnxEngine.name
                         else ())
            + (peers.packages() if peers is not None else ())),
        'model': {'name': bundle.name, 'version': bundle.version,
                  'sha256': bundle.network_sha256, 'engine': segmenter.engine.description,
                  'width': bundle.input.width, 'height': bundle.input.height},
        'options': asdict(options) | {'threads': threads}, 'left_out': left_out}

    def save() -> None:
        report['seconds'] = time.monotonic() - start
        report['targets'] = report_module.targets(report)
        _write(report, out, None, peers)

    measured = _measure(options, segmenter, frames, report, say, save, peers=peers, run=run,
                        gpu=gpu, memory=memory, bar=bar)
    save()
    for section, function in measured.items():
        if section not in options.sections:
            continue
        say(f'{section} ({time.monotonic() - start:.0f} s)')
        try:
            found = function()
            _check(segmenter, options)
        except BenchError as error:
            # The engine gave up meanwhile; what was measured before stands.
            left_out[section] = str(error)
            break
        if found:
            report[section] = found
        save()
    segmenter.close()
    save()
    _write(report, None, document, peers)
    return report


def export_networks(options: BenchOptions, say: Callable[[str], None] = print) -> None:
    """
    Export what `pipelines` will need and the cache has not, ahead of the machine that measures.

    It runs nothing and needs no GPU. Raises BenchError where there are no peers.
    """
    peers, why = open_peers(options.peers)
    if peers is None:
        raise BenchError(f'nothing can be exported: {why}')
    for kind, size in product(options.pipelines, options.pipeline_sizes):
        if kind != 'model':
            folder = peers.export(kind, size, *options.export, say)
            say(f'{folder} is there')


def _open(bundle: Bundle, options: BenchOptions, threads: int, bar: _Progress,
          largest: int) -> Segmenter:
    """Return a segmenter whose engine is the one that was asked for, built and warm."""
    segmenter = Segmenter(bundle, options.engine, options.providers, threads,
                          **options.engine_options(largest))
    engine = segmenter.engine
    if isinstance(engine, FallbackEngine):
        while (status := engine.wait(0.2)).state in (BUILDING, WARMING):
            bar.tell(f'engine: {status}', status.share)
        engine.wait()
    _check(segmenter, options)
    return segmenter


def _check(segmenter: Segmenter, options: BenchOptions) -> None:
    """Raise BenchError where another engine answers than the one that was asked for."""
    status = segmenter.engine.status
    if status.state == FALLBACK:
        segmenter.close()
        raise BenchError(f'the engine {options.engine} does not run here: {status.reason}')


def _require_peer_device() -> None:
    """Raise BenchError where torch does not see the GPU."""
    try:
        require_torch_cuda(TorchEngine.name)
    except EngineError as error:
        raise BenchError(f'{error}; or measure beside it with --peer-device cpu, or nothing with '
                         '--no-peers') from error


def _peer_run(options: BenchOptions, segmenter: Segmenter, threads: int) -> PeerRun:
    """Return how peers run: where and as precisely as the engine that is measured."""
    device = options.peer_device
    if device == AUTO:
        device = CUDA if segmenter.engine.on_gpu else CPU
    return PeerRun(device, peer_precisions(segmenter.engine.precision), options.compiled, threads)


def _measure(options: BenchOptions, segmenter: Segmenter, frames: list[np.ndarray],
             report: dict[str, Any], say: Callable[[str], None], save: Callable[[], None],
             peers: Peers | None, run: PeerRun, gpu: Gpu | None,
             memory: GpuMemory, bar: _Progress) -> dict[str, Callable[[], Any]]:
    """
    Return the sections by name, in the order in which they run.

    save: writes the report, also before a section has ended.
    """
    repeats, outputs, threads = options.repeats, {}, run.threads

    def pipeline(kind: str, size: tuple[int, int]) -> list[dict[str, Any]]:
        opened, batches = [], options.pipeline_batches

        def open_peer() -> PeerPipeline:
            if kind == 'model':
                return peers.hugging_face_around(segmenter.bundle, segmenter.engine, run)
            bar.begin(f'pipelines: exporting {kind}', 1)
            batch, cache, program = options.export
            peer = peers.hugging_face(kind, size, batch, run, cache, program, say)
            bar.begin(name, steps)
            return peer

        def open_ours(peer: PeerPipeline) -> Segmenter:
            if kind == 'model':
                return segmenter
            opened.append(_open(load_bundle(peer.bundle), options, threads, bar,
                                max(batches)))
            return opened[0]

        name = f'pipelines: {kind}, {size[0]}x{size[1]}'
        calls = 1 if kind == 'model' else len(run.precisions) * (1 + run.compiled)
        count = max(1, round(repeats * (
            1.0 if segmenter.engine.on_gpu else _PIPELINE_REPEATS[kind])))
        steps = len(batches) * (calls + (count + 1) * (3 + calls))
        bar.begin(name, steps)
        try:
            # Both sides share the network of the model, and so its memory.
            rows, output = measure_pipeline(
                open_peer, open_ours, run, frames, size, batches, count,
                None if kind == 'model' else gpu, report['left_out'], bar.step)
            for one in opened or [segmenter]:
                _check(one, options)
        finally:
            for one in opened:
                one.close()
        if kind != 'model':
            outputs.setdefault(f'{rows[0]["network"]}, random weights', output)
        return rows

    def pipelines() -> list[dict[str, Any]]:
        found = []
        for kind, size in product(options.pipelines, options.pipeline_sizes):
            if peers is None:
                continue
            try:
                found += pipeline(kind, size)
            except (OwsegError, RuntimeError, MemoryError) as error:
                # Not enough memory, say: the others are measured all the same.
                report['left_out'][f'{kind} at {size[0]}x{size[1]}'] = one_line(error)
            report['pipelines'] = found
            save()
        return found

    def readout() -> dict[str, Any]:
        named = {f'{segmenter.bundle.name} on a frame, enlarged':
                 segmenter.engine.infer([Frame(frames[0])]), **outputs}
        found = {}
        for name, task in cases(named).items():
            bar.begin(f'readout: {name}', 1 + (repeats + 1) * (4 if peers is None else 5))
            found[name] = measure_readout(task, peers, threads, repeats, bar.step)
        if peers is not None:
            report['official_memory_mib'] = official_memory(task, peers, threads)
        return found

    def whole() -> list[dict[str, Any]]:
        bar.begin('segmenter', (repeats + 2) * len(options.sizes))
        return measure_segmenter(segmenter, frames, options.sizes, repeats, bar.step, memory)

    def network() -> list[dict[str, Any]]:
        bar.begin('network', (repeats + 1) * len(options.batches))
        return measure_network(segmenter, frames, options.batches, repeats, bar.step)

    def growth() -> dict[str, Any]:
        count = max(1, repeats // 3)
        bar.begin('growth', growth_steps(peers, count))
        found = measure_growth(peers, threads, count, bar.step)
        if 'network' in report:
            found['cameras'] = {
                'label': 'cameras in a batch, ms a frame of the network',
                'x': [row['batch'] for row in report['network']],
                'series': {'owseg_ros': [row['ms_per_frame'] for row in report['network']]}}
        return found

    def nodes() -> list[dict[str, Any]]:
        why = why_no_nodes()
        if why:
            report['left_out']['the node'] = why
            return []
        rows = report.get('segmenter') or measure_segmenter(
            segmenter, frames, options.sizes[:1], min(repeats, 5))
        rates = [30.0, max(1.0, PEAK * rows[0]['frames_per_s'])]
        found = []
        for rate in dict.fromkeys(rates):
            name = f'nodes: camera at {rate:.0f} Hz'
            bar.begin(name, 1)
            found.append(measure_node(
                NodeRun(segmenter.bundle.path, options.engine_parameters(), options.providers,
                        options.threads, rate, options.seconds, options.domain), frames,
                lambda share, name=name: bar.tell(name, share)))
        return found

    return {'pipelines': pipelines, 'readout': readout, 'segmenter': whole, 'network': network,
            'growth': growth, 'nodes': nodes}


def _write(report: dict[str, Any], out: Path | None, document: Path | None,
           peers: Peers | None) -> None:
    drawn = peers is not None and 'growth' in report
    text = report_module.markdown(report, picture=drawn)
    folders = [folder for folder in (out, document and document.parent) if folder is not None]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        if drawn:
            peers.draw_growth(report['growth'], folder / report_module.PICTURE)
    if out is not None:
        content = json.dumps(report, indent=2, default=str) + '\n'
        for name, written in (('benchmarks.json', content), ('benchmarks.md', text)):
            write_atomically(out / name, written.encode('utf-8'))
    if document is not None:
        report_module.put_into(document, text)
