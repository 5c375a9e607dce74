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
The engine tensorrt: a bundle's network, built by TensorRT for the GPU at hand.

What needs neither TensorRT nor a GPU is here: options, the graph in its precision, keys, the
cache, and saying what is missing. The rest is in engine.tensorrt_gpu.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
import hashlib
import importlib
import importlib.util
import json
import os
from pathlib import Path
import shutil
import tempfile
import time
from typing import Any, Callable, Iterator, Optional, Sequence

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.engine.cache import CacheFileError, Device, EngineCache, EngineKey
from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.cuda_engine import CudaEngine, require_torch_cuda
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.engine.onnx import one_line, OnnxEngine
from owseg_ros.engine.preprocess import normalisation_tables, pack
from owseg_ros.engine.status import BuildProgress, StateMachine
from owseg_ros.errors import OwsegError
from owseg_ros.frame import Frame
from owseg_ros.source import open_source

AUTO = 'auto'
PRECISIONS = (AUTO, 'fp32', 'fp16', 'int8')
CALIBRATION_IMAGES = 200
_MIB = 1 << 20


@dataclass(frozen=True)
class TensorrtOptions:
    """
    How an engine is built and run.

    precision: fp32, fp16, int8, or auto: fp16, or what the bundle's network states itself.
    calibration: a folder of images for INT8 of a network without quantisation; up to 200 of them,
    spread over the folder, are used. max_batch: frames in one pass at most.
    cache: folder of built engines, None for engine.cache.default_cache_folder().
    workspace_mib: GPU memory that a layer may use, 0 for all there is. cuda_graph: capture a pass.
    """

    precision: str = AUTO
    calibration: Optional[str | os.PathLike] = None
    max_batch: int = 1
    cache: Optional[str | os.PathLike] = None
    workspace_mib: int = 0
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise EngineError(f'unknown precision {self.precision!r}; choose from '
                              f'{", ".join(PRECISIONS)}')
        if self.max_batch < 1:
            raise EngineError(f'max_batch must be 1 or more, not {self.max_batch}')
        if self.workspace_mib < 0:
            raise EngineError(f'workspace_mib must be 0 (no limit) or more, not '
                              f'{self.workspace_mib}')


@dataclass(frozen=True)
class Graph:
    """The network as TensorRT is to take it: a file, its precision and its batches."""

    path: Path
    precision: str
    batch: tuple[int, int, int]
    fixed_batch: int
    calibration_sha256: str = ''


@dataclass(frozen=True)
class Built:
    """An engine: its file in the cache, whether it was there or could be kept, and its key."""

    path: Path
    key: EngineKey
    plan: bytes
    fixed_batch: int
    seconds: float
    cached: bool = False
    kept: bool = True


def require_tensorrt() -> None:
    """Raise EngineError where TensorRT, or torch with CUDA and its driver, is missing."""
    if importlib.util.find_spec('tensorrt') is None:
        raise EngineError('TensorRT is not installed: pip install tensorrt (or, on a Jetson, the '
                          'package python3-libnvinfer), or use the engine onnx')
    try:
        importlib.import_module('tensorrt')
    except (ImportError, OSError) as error:
        raise EngineError(f'TensorRT is installed but does not load: {one_line(error)}; install '
                          'it again in the version of its libraries, or use the engine onnx'
                          ) from error
    require_torch_cuda('tensorrt')


def network_sha256(bundle: Bundle) -> str:
    """Return the sha256 of the network; with its external weights where it has such."""
    name = bundle.network.relative_to(bundle.path).as_posix()
    parts = sorted((file, sha) for file, sha in bundle.files.items() if file.startswith(name))
    if len(parts) == 1:
        return bundle.network_sha256
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def calibration_images(bundle: Bundle, folder: str | os.PathLike) -> Iterator[np.ndarray]:
    """
    Yield up to 200 images of a folder as the network sees them, float32 [3, H, W].

    Raises EngineError where there are none, or one cannot be read.
    """
    if not Path(folder).expanduser().is_dir():
        raise EngineError(f'{folder} is no folder: give one of images such as the camera sends')
    tables = normalisation_tables(bundle.input)
    try:
        source = open_source(os.fspath(folder))
        every = max(1, source.frames // CALIBRATION_IMAGES)
        for index in range(source.frames):
            image = source.read()
            if index % every == 0 and index < every * CALIBRATION_IMAGES:
                yield pack([Frame(image)], bundle.input, tables=tables)[0]
    except EngineError:
        raise
    except OwsegError as error:
        raise EngineError(f'INT8 cannot be calibrated: {error}') from error


def plan_graph(bundle: Bundle, options: TensorrtOptions) -> Graph:
    """
    Return what prepare_graph would make, with the bundle's own file as its path.

    It reads the calibration images and quantises nothing. Raises EngineError.
    """
    variants = _variants()
    stated = variants.precision_of(bundle.network)
    asked = options.precision
    if asked == AUTO:
        asked = 'fp16' if stated == 'fp32' else stated
    fixed = variants.batch_of(bundle.network, bundle.input.name)
    batch = (fixed,) * 3 if fixed else (1, options.max_batch, options.max_batch)
    if asked != stated != 'fp32':
        raise EngineError(f'{bundle.name} is a network in {stated}, which cannot become '
                          f'{asked}: export it in fp32 (owseg-train export --precision fp32)')
    if asked == stated or asked == 'fp16':
        return Graph(bundle.network, asked, batch, fixed)
    if not options.calibration:
        raise EngineError(f'{bundle.name} has no quantisation: INT8 needs a folder of images such '
                          'as the camera sends (--calibration), or a bundle in int8 '
                          '(owseg-train export --precision int8 --int8-runtime tensorrt)')
    digest = hashlib.sha256()
    for image in calibration_images(bundle, options.calibration):
        digest.update(image.tobytes())
    return Graph(bundle.network, asked, batch, fixed, digest.hexdigest())


def prepare_graph(bundle: Bundle, options: TensorrtOptions, folder: str | os.PathLike) -> Graph:
    """
    Return the network in the precision asked for; what has to be made is written to a folder.

    TensorRT 11 takes the precision of every layer from the graph, and 10 can, so that both get
    the same: casts for FP16, QuantizeLinear and DequantizeLinear around convolutions for INT8,
    symmetric, with the ranges of the images. Raises EngineError.
    """
    variants = _variants()
    graph = plan_graph(bundle, options)
    if graph.precision == variants.precision_of(bundle.network):
        return graph
    target = Path(folder) / f'{graph.precision}.onnx'
    if graph.precision == 'fp16':
        variants.to_fp16(bundle.network, target)
    else:
        variants.to_int8(bundle.network, target, calibration_images(bundle, options.calibration),
                         graph.fixed_batch or 1, 'tensorrt')
    return replace(graph, path=target)


def _variants() -> Any:
    try:
        return importlib.import_module('owseg_ros.engine.precision')
    except ImportError as error:
        raise EngineError(f'the engine tensorrt needs the package onnx: {one_line(error)}; '
                          'pip install onnx') from error


def write_graph(bundle: Bundle, options: TensorrtOptions, target: str | os.PathLike) -> Graph:
    """Write the network as TensorRT is to take it, to look at or to build elsewhere."""
    target = Path(target)
    with tempfile.TemporaryDirectory() as folder:
        graph = prepare_graph(bundle, options, folder)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(graph.path, target)
        except OSError as error:
            raise EngineError(f'{target} cannot be written: {error.strerror}') from error
    return replace(graph, path=target)


def engine_key(bundle: Bundle, graph: Graph, device: Device) -> EngineKey:
    """Return what an engine of this graph on this device is kept under."""
    return EngineKey(network_sha256(bundle), device, graph.precision, graph.batch,
                     graph.calibration_sha256)


def build_engine(bundle: Bundle, options: TensorrtOptions, machine: StateMachine,
                 stopped: Callable[[], bool] = lambda: False, force: bool = False) -> Built:
    """
    Return the engine of a bundle out of the cache, or build it and keep it there.

    machine: is told the progress and what to know; stopped: says whether to give the build up;
    force: build even where there is one. This runs nothing: it is all of `owseg build-engine`.
    Raises EngineError, one message for each way in which it can fail.
    """
    require_tensorrt()
    from owseg_ros.engine import tensorrt_gpu as gpu

    def build(graph: Graph, timings: Optional[bytes]) -> tuple[bytes, bytes]:
        return gpu.build_plan(
            graph.path, _profile(gpu, bundle, graph.batch),
            BuildProgress(machine.progress, stopped), timings, options.workspace_mib * _MIB)

    return find_or_build(bundle, options, machine, gpu.device(), build, force)


def find_or_build(bundle: Bundle, options: TensorrtOptions, machine: StateMachine, device: Device,
                  build: Callable[[Graph, Optional[bytes]], tuple[bytes, bytes]],
                  force: bool = False) -> Built:
    """
    Return the engine for a device out of the cache, or what `build` makes, kept there.

    build: takes the graph and earlier timings or None, returns the engine and the timings to keep.
    """
    begun = time.monotonic()
    cache = EngineCache(options.cache)
    machine.progress(0.0, 'looking for the engine')
    graph = plan_graph(bundle, options)
    key = engine_key(bundle, graph, device)
    plan = None if force else from_cache(lambda: cache.load(key), machine)
    if plan is not None:
        return Built(cache.path(key), key, plan, graph.fixed_batch, time.monotonic() - begun,
                     cached=True)
    timings = from_cache(lambda: cache.load_timing(device), machine)
    with tempfile.TemporaryDirectory() as folder:
        machine.progress(0.0, 'preparing the network')
        plan, timings = build(prepare_graph(bundle, options, folder), timings)
    kept = True
    try:
        cache.store(key, plan)
        if timings:
            cache.store_timing(device, timings)
    except EngineError as error:
        # The engine is good; only the next start has to build it again.
        machine.note(str(error))
        kept = False
    return Built(cache.path(key), key, plan, graph.fixed_batch, time.monotonic() - begun,
                 kept=kept)


def from_cache(load: Callable[[], Optional[bytes]], machine: StateMachine) -> Optional[bytes]:
    """Return what `load` does; None, with a note, where the file must not be used."""
    try:
        return load()
    except CacheFileError as error:
        machine.note(f'{error}; it is made again')
        return None


class TensorrtEngine(CudaEngine):
    """
    Runs a bundle's network with TensorRT; see engine.contract.Engine.

    options, machine, stopped: as for build_engine, which the constructor calls. An engine out of
    the cache that TensorRT does not take, after an update of the driver say, is built again.

    Raises EngineError. One engine serves one thread at a time.
    """

    name = 'tensorrt'

    def __init__(self, bundle: Bundle, options: TensorrtOptions, machine: StateMachine,
                 stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(bundle)
        built = build_engine(bundle, options, machine, stopped)
        from owseg_ros.engine import tensorrt_gpu as gpu

        profile = _profile(gpu, bundle, built.key.batch)
        settings = options.cuda_graph, machine.note
        try:
            network = gpu.CudaNetwork(built.plan, profile, *settings)
        except EngineError as error:
            if not built.cached:
                raise
            machine.note(f'{built.path}: {error}; it is built again')
            built = build_engine(bundle, options, machine, stopped, force=True)
            network = gpu.CudaNetwork(built.plan, profile, *settings)
        self._network = network
        self.fixed_batch = built.fixed_batch
        self.largest_batch = built.key.batch[2]
        self.precision = built.key.precision
        self.description = f'tensorrt ({self.precision}, {built.key.device})'

    def _passes(self, names: Sequence[str]) -> Any:
        return self._network.passes


def serve_tensorrt(bundle: Bundle, providers: Sequence[str] = ('cpu',), threads: int = 0,
                   options: Optional[TensorrtOptions] = None) -> FallbackEngine:
    """
    Return an engine that answers at once through ONNX Runtime, and through TensorRT when built.

    providers, threads: of ONNX Runtime; options: of TensorRT. Raises EngineError only where ONNX
    Runtime cannot run the network; that TensorRT cannot is the `status` of the engine.
    """
    chosen = options or TensorrtOptions()
    return FallbackEngine(
        TensorrtEngine.name, OnnxEngine(bundle, providers, threads),
        lambda machine, stopped: TensorrtEngine(bundle, chosen, machine, stopped),
        chosen.max_batch)


def _profile(gpu: Any, bundle: Bundle, batch: tuple[int, int, int]) -> Any:
    spec = bundle.input
    return gpu.Profile(spec.name, (3, spec.height, spec.width), batch)
