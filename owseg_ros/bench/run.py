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
import json
import os
from pathlib import Path
import time
from typing import Any

import numpy as np
from owseg_ros.bench import report as report_module
from owseg_ros.bench.networks import measure_network, measure_pipeline, measure_segmenter
from owseg_ros.bench.nodes import measure_node, NodeRun, why_no_nodes
from owseg_ros.bench.peers import open_peers, PEERS, Peers
from owseg_ros.bench.readouts import (
    cases, growth_steps, measure_growth, measure_readout, official_memory)
from owseg_ros.bundle import Bundle, default_bundle_path, load_bundle
from owseg_ros.engine import OnnxEngine, TensorrtOptions, TorchOptions
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.engine.onnx import physical_cores
from owseg_ros.engine.status import BUILDING, FALLBACK, WARMING
from owseg_ros.errors import OwsegError
from owseg_ros.frame import Frame
from owseg_ros.machine import machine_in_full, versions
from owseg_ros.segmenter import Segmenter
from owseg_ros.source import open_source

SECTIONS = ('readout', 'pipelines', 'segmenter', 'network', 'growth', 'nodes')
# 'model' is the network of the model that is measured.
PIPELINES = ('model', 'small', 'swin_t')
PIPELINE_SIZE = (640, 480)
FRAMES = 12
# A camera that is faster than the node by this: its peak.
PEAK = 1.5

_PACKAGES = ('numpy', 'onnxruntime', 'opencv-python-headless', 'ros-kilted-rclpy')
_GPU_PACKAGES = ('torch', 'triton', 'tensorrt')
# A pass of a large network takes seconds.
_PIPELINE_REPEATS = {'model': 1.0, 'small': 1.0, 'swin_t': 0.5}


class BenchError(OwsegError):
    """Options that cannot be measured; the message says what to give."""


@dataclass(frozen=True)
class BenchOptions:
    """
    What to measure.

    model: folder of a bundle, None for the default; engine, providers, threads: as for Segmenter,
    threads also of what is measured beside it, 0 for the number of cores; source: of the frames;
    sizes: (width, height) of frames, the first one for batches and the node; batches: frames in
    a pass; repeats: of each call; seconds: of each run of the node; sections: of SECTIONS;
    pipelines: of PIPELINES; peers: module with what to compare with, '' for nothing; compiled:
    whether torch.compile is tried too, which takes minutes; cache: folder of exported networks,
    None for that of the user; domain: of ROS, None for a private one.
    """

    model: Path | None = None
    engine: str = 'onnx'
    providers: tuple[str, ...] = ('cpu',)
    threads: int = 0
    source: str = 'scene'
    sizes: tuple[tuple[int, int], ...] = ((640, 480), (1280, 720), (1920, 1080))
    batches: tuple[int, ...] = (1, 2, 4, 8)
    repeats: int = 12
    seconds: float = 20.0
    sections: tuple[str, ...] = SECTIONS
    pipelines: tuple[str, ...] = PIPELINES
    peers: str = PEERS
    compiled: bool = False
    cache: Path | None = None
    domain: int | None = None

    def __post_init__(self) -> None:
        for name, known in (('sections', SECTIONS), ('pipelines', PIPELINES)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise BenchError(f'there are no {name} {", ".join(unknown)}; choose from '
                                 f'{", ".join(known)}')
        if self.repeats < 1 or self.seconds <= 0 or min(self.batches, default=0) < 1:
            raise BenchError('repeats and batches must be 1 or more, and seconds positive')
        if not self.sizes or min(min(size) for size in self.sizes) < 16:
            raise BenchError('frames must be at least 16 pixels wide and high')


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

    out: folder for benchmarks.json, benchmarks.md and benchmarks.png; document: a Markdown file
    whose marked part becomes the tables, with the picture beside it; command: how it was called,
    for the report; say: told what happens, a line at a time; progress: told the section and the
    share of it that is done. Raises BenchError and the errors of bundle, engine, source, nodes
    and report.
    """
    start = time.monotonic()
    machine = machine_in_full()
    threads = options.threads or physical_cores()
    bundle = load_bundle(options.model or default_bundle_path())
    bar = _Progress(progress)
    segmenter = _open(bundle, options, threads, bar)
    peers, why = open_peers(options.peers)
    left_out = {'what is measured beside it': why} if peers is None else {}
    if peers is None:
        say(f'without anything beside it: {why}')
    frames = read_frames(options.source, options.sizes[0])
    report: dict[str, Any] = {
        'command': command, 'machine': machine,
        'versions': versions(
            _PACKAGES + (_GPU_PACKAGES if options.engine != OnnxEngine.name else ())
            + (peers.packages() if peers is not None else ())),
        'model': {'name': bundle.name, 'version': bundle.version,
                  'sha256': bundle.network_sha256, 'engine': segmenter.engine.description,
                  'width': bundle.input.width, 'height': bundle.input.height},
        'options': asdict(options) | {'threads': threads}, 'left_out': left_out}
    steps = {'peers': peers, 'threads': threads, 'bar': bar}
    measured = _measure(options, segmenter, frames, report, say, **steps)
    for section, function in measured.items():
        if section in options.sections:
            say(f'{section} ({time.monotonic() - start:.0f} s)')
            found = function()
            if found:
                report[section] = found
    segmenter.close()
    report['seconds'] = time.monotonic() - start
    report['targets'] = report_module.targets(report)
    _write(report, out, document, peers)
    return report


def _open(bundle: Bundle, options: BenchOptions, threads: int, bar: _Progress) -> Segmenter:
    """Return a segmenter whose engine is the one that was asked for, built and warm."""
    largest = max(options.batches)
    segmenter = Segmenter(
        bundle, options.engine, options.providers, threads,
        tensorrt=TensorrtOptions(max_batch=largest), torch=TorchOptions(max_batch=largest))
    engine = segmenter.engine
    if isinstance(engine, FallbackEngine):
        while (status := engine.wait(0.2)).state in (BUILDING, WARMING):
            bar.tell(f'engine: {status}', status.share)
        if engine.wait().state == FALLBACK:
            segmenter.close()
            raise BenchError(f'the engine {options.engine} does not run here: {status.reason}')
    return segmenter


def _measure(options: BenchOptions, segmenter: Segmenter, frames: list[np.ndarray],
             report: dict[str, Any], say: Callable[[str], None], peers: Peers | None,
             threads: int, bar: _Progress) -> dict[str, Callable[[], Any]]:
    """Return the sections by name, in the order in which they run."""
    repeats, outputs = options.repeats, {}

    def pipelines() -> list[dict[str, Any]]:
        found = []
        for kind in options.pipelines if peers is not None else ():
            if kind == 'model':
                peer = peers.hugging_face_around(segmenter.bundle, threads)
                ours = Segmenter(segmenter.bundle, threads=threads)
            else:
                bar.begin(f'pipelines: exporting {kind}', 1)
                peer = peers.hugging_face(kind, PIPELINE_SIZE, threads,
                                          options.cache or cache_folder(), options.compiled, say)
                ours = Segmenter(peer.bundle, threads=threads)
            count = max(1, round(repeats * _PIPELINE_REPEATS[kind]))
            bar.begin(f'pipelines: {kind}', (count + 1) * (3 + len(peer.calls)))
            found.append(measure_pipeline(peer, ours, frames, PIPELINE_SIZE, count, bar.step))
            if kind != 'model':
                outputs[f'{peer.title}, random weights'] = ours.engine.infer([Frame(frames[0])])
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
        return measure_segmenter(segmenter, frames, options.sizes, repeats, bar.step)

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
                NodeRun(segmenter.bundle.path, options.engine, options.providers,
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
        (out / 'benchmarks.json').write_text(
            json.dumps(report, indent=2, default=str) + '\n', 'utf-8')
        (out / 'benchmarks.md').write_text(text, 'utf-8')
    if document is not None:
        report_module.put_into(document, text)
