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
from dataclasses import asdict
from itertools import product
import json
from pathlib import Path
import time
from typing import Any

import numpy as np
from owseg_ros.bench import report as report_module
from owseg_ros.bench.memory import GpuMemory, open_gpu
from owseg_ros.bench.options import AUTO, BenchError, BenchOptions
from owseg_ros.bench.peers import CPU, CUDA, open_peers, peer_precisions, PeerRun, Peers
from owseg_ros.bench.sections import Bench, check_engine, open_segmenter, Progress, Sections
from owseg_ros.bundle import default_bundle_path, load_bundle
from owseg_ros.engine import EngineError, OnnxEngine, TorchEngine
from owseg_ros.engine.cuda_engine import require_torch_cuda
from owseg_ros.engine.onnx import physical_cores
from owseg_ros.language.files import write_atomically
from owseg_ros.machine import gpus, machine_in_full, versions
from owseg_ros.segmenter import Segmenter
from owseg_ros.source import open_source

FRAMES = 12

_PACKAGES = ('numpy', 'onnxruntime', 'opencv-python-headless', 'ros-kilted-rclpy')
_GPU_PACKAGES = ('torch', 'triton', 'tensorrt', 'onnxruntime-gpu')


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
    bench, left_out = _open(options, say, progress)
    report: dict[str, Any] = {'command': command, 'machine': machine, **_facts(bench),
                              'left_out': left_out}

    def save() -> None:
        report['seconds'] = time.monotonic() - start
        report['targets'] = report_module.targets(report)
        _write(report, out, None, bench.peers)

    save()
    for section, measure in Sections(bench, report, save).by_name.items():
        if section not in options.sections:
            continue
        say(f'{section} ({time.monotonic() - start:.0f} s)')
        try:
            found = measure()
            check_engine(bench.segmenter, options)
        except BenchError as error:
            # The engine gave up meanwhile; what was measured before stands.
            left_out[section] = str(error)
            break
        if found:
            report[section] = found
        save()
    bench.segmenter.close()
    save()
    _write(report, None, document, bench.peers)
    return report


def _open(options: BenchOptions, say: Callable[[str], None],
          progress: Callable[[str, float], None]) -> tuple[Bench, dict[str, str]]:
    """Open what is measured; return it, and what is left out and why."""
    threads = options.threads or physical_cores()
    bundle = load_bundle(options.model or default_bundle_path())
    bar = Progress(progress)
    gpu = open_gpu(options.on_gpu)
    memory = GpuMemory(gpu)
    segmenter = open_segmenter(bundle, options, threads, bar,
                               max(*options.batches, *options.pipeline_batches))
    peers, why = open_peers(options.peers)
    if peers is None:
        say(f'without anything beside it: {why}')
    run = _peer_run(options, segmenter, threads)
    if peers is not None and run.device == CUDA and 'pipelines' in options.sections:
        _require_peer_device()
    frames = read_frames(options.source, options.sizes[0])
    return (Bench(options, segmenter, frames, peers, run, gpu, memory, bar, say),
            {'what is measured beside it': why} if peers is None else {})


def _facts(bench: Bench) -> dict[str, Any]:
    """Return what the report says of what is measured: GPU, versions, model and options."""
    options, bundle, engine = bench.options, bench.segmenter.bundle, bench.segmenter.engine
    packages = _PACKAGES
    if options.on_gpu or options.engine != OnnxEngine.name:
        packages += _GPU_PACKAGES
    if bench.peers is not None:
        packages += bench.peers.packages()
    return {
        **({} if bench.gpu is None else {'gpu': bench.gpu.gpu_facts()}),
        'versions': versions(packages),
        'model': {'name': bundle.name, 'version': bundle.version,
                  'sha256': bundle.network_sha256, 'engine': engine.description,
                  'width': bundle.input.width, 'height': bundle.input.height},
        'options': asdict(options) | {'threads': bench.run.threads}}


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
