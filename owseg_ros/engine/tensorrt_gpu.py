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
All that touches TensorRT and the GPU; imported only where both are there (engine.tensorrt).

Written for the Python API of TensorRT 10 and 11. Networks are strongly typed, the only kind that
TensorRT 11 has: the precision of each layer is that of the ONNX graph (engine.precision), there
are no calibrators and no precision flags.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from pathlib import Path
import threading
from typing import Any, Callable, Optional

from owseg_ros.engine.cache import Device
from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.cuda import CudaPasses, Pass
from owseg_ros.engine.status import BuildProgress
import tensorrt as trt
import torch

_KEPT_MESSAGES = 6
_MEMORY = ('out of memory', 'outofmemory', 'out_of_memory', 'insufficient memory')
# TensorRT goes on using the first that it is given, without keeping it alive.
_LOGS: list[Log] = []


class Log(trt.ILogger):
    """Keeps the last errors of TensorRT, which returns None and logs why."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        _LOGS.append(self)
        self._lock = threading.Lock()
        self._errors: deque[str] = deque(maxlen=_KEPT_MESSAGES)

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        """Keep a message where it is an error; called by TensorRT from any of its threads."""
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            with self._lock:
                self._errors.append(' '.join(msg.split()))

    def errors(self) -> str:
        """Return the last errors in one line."""
        with self._lock:
            return '; '.join(self._errors) or 'TensorRT gave no reason'


class Monitor(trt.IProgressMonitor):
    """Hands what TensorRT says about a build to a BuildProgress."""

    def __init__(self, progress: BuildProgress) -> None:
        trt.IProgressMonitor.__init__(self)
        self._progress = progress

    def phase_start(self, phase_name: str, parent_phase: Optional[str], num_steps: Any) -> None:
        """Begin a phase; called by TensorRT from any of its threads."""
        self._progress.start(phase_name, parent_phase, int(num_steps))

    def step_complete(self, phase_name: str, step: Any) -> bool:
        """Finish a step; False stops the build."""
        return self._progress.step(phase_name, int(step))

    def phase_finish(self, phase_name: str) -> None:
        """End a phase."""
        self._progress.finish(phase_name)


def device() -> Device:
    """Return what engines are built for here: the current GPU and the installed TensorRT."""
    index = torch.cuda.current_device()
    major, minor = torch.cuda.get_device_capability(index)
    return Device(trt.__version__, torch.cuda.get_device_name(index), f'{major}.{minor}')


@dataclass(frozen=True)
class Profile:
    """The input that an engine is built for: its name, [3, H, W], and the range of batches."""

    name: str
    shape: tuple[int, int, int]
    batch: tuple[int, int, int]

    def dims(self) -> tuple[trt.Dims, trt.Dims, trt.Dims]:
        """Return the least, best and largest shape."""
        least, best, largest = (trt.Dims((size, *self.shape)) for size in self.batch)
        return least, best, largest


def build_plan(network: Path, profile: Profile, progress: BuildProgress,
               timings: Optional[bytes], workspace: int) -> tuple[bytes, bytes]:
    """
    Build an engine of an ONNX file; return it serialised, and the timings to keep.

    timings: of earlier builds on this device, or None; workspace: bytes of GPU memory that a
    layer may use while it is timed and run, 0 for all there is.
    Raises EngineError: CUDA does not start, the graph is not supported (with the node), memory
    does not suffice, the build was stopped or failed.
    """
    log = Log()
    try:
        builder = trt.Builder(log)
    except TypeError as error:
        # The bindings' factory returned nothing.
        raise EngineError(f'TensorRT {trt.__version__} does not start: {log.errors()}; check '
                          'that the GPU driver is new enough for it (nvidia-smi)') from error
    graph = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    _parse(network, graph, log)
    config = builder.create_builder_config()
    # The precision is that which was asked for; TF32 would round the products of FP32.
    config.clear_flag(trt.BuilderFlag.TF32)
    if workspace:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, workspace)
    shapes = builder.create_optimization_profile()
    shapes.set_shape(profile.name, *profile.dims())
    if config.add_optimization_profile(shapes) < 0:
        raise EngineError(f'TensorRT refuses batches {profile.batch} of {profile.shape} for '
                          f'{profile.name}: {log.errors()}')
    cache = _use_timings(config, timings)
    monitor = Monitor(progress)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(graph, config)
    if plan is None:
        raise EngineError(_why_not_built(log, progress))
    return _content(plan), b'' if cache is None else _content(cache.serialize())


def _use_timings(config: trt.IBuilderConfig,
                 timings: Optional[bytes]) -> Optional[trt.ITimingCache]:
    """Attach timings, new ones where those do not fit; None where TensorRT keeps none."""
    for content in (timings, b'') if timings else (b'',):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _parse(network: Path, graph: trt.INetworkDefinition, log: Log) -> None:
    parser = trt.OnnxParser(graph, log)
    if parser.parse_from_file(str(network)):
        return
    problems = [_problem(parser.get_error(index)) for index in range(parser.num_errors)]
    raise EngineError(
        f'{network.name}: TensorRT {trt.__version__} cannot take this network: '
        f'{"; ".join(problems) or log.errors()}; use the engine onnx, or export the network again '
        '(owseg-train export lists what TensorRT does not support)')


def _problem(error: trt.ParserError) -> str:
    node = error.node_name() or f'number {error.node()}'
    return f'node {node} ({error.node_operator()}): {error.desc()}'


def _why_not_built(log: Log, progress: BuildProgress) -> str:
    if progress.stopped:
        return 'the build of the TensorRT engine was stopped'
    errors = log.errors()
    if any(words in errors.lower() for words in _MEMORY):
        return (f'not enough memory to build the TensorRT engine: {errors}; close what else uses '
                'the GPU, or lower --workspace or --max-batch')
    return f'TensorRT {trt.__version__} could not build the engine: {errors}'


def _sizes(dims: trt.Dims) -> list[int]:
    return [dims[axis] for axis in range(len(dims))]


def _content(memory: Any) -> bytes:
    # IHostMemory has the buffer protocol, which its type stub does not say.
    return bytes(memory)


class CudaNetwork:
    """
    An engine on the GPU, with torch tensors as its inputs and outputs.

    plan: a serialised engine of this device; profile: that it was built with; graphs, note: see
    engine.cuda.CudaPasses, which `passes` is.

    Serves one thread at a time. Raises EngineError where TensorRT does not take the plan, or
    memory does not suffice.
    """

    def __init__(self, plan: bytes, profile: Profile, graphs: bool = True,
                 note: Callable[[str], object] = lambda text: None) -> None:
        self._log = Log()
        self._profile = profile
        try:
            self._runtime = trt.Runtime(self._log)
        except TypeError as error:
            raise EngineError(f'TensorRT {trt.__version__} does not start: '
                              f'{self._log.errors()}; check the GPU driver') from error
        engine = self._runtime.deserialize_cuda_engine(plan)
        if engine is None:
            raise EngineError(f'TensorRT {trt.__version__} does not take this engine: '
                              f'{self._log.errors()}')
        self._engine: trt.ICudaEngine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self._inputs = [name for name in names
                        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._outputs = [name for name in names if name not in self._inputs]
        if self._inputs != [profile.name]:
            raise EngineError(f'the engine has the inputs {self._inputs} and not '
                              f'{[profile.name]}')
        for name in names:
            if engine.get_tensor_dtype(name) != trt.DataType.FLOAT:
                raise EngineError(f'{name} of the engine is {engine.get_tensor_dtype(name)} and '
                                  'not float32')
        self.passes = CudaPasses(self._prepare, graphs, note)

    def _prepare(self, size: int) -> Pass:
        # A context of its own for each batch size: a captured graph holds the state of its one.
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f'not enough GPU memory to run the engine: {self._log.errors()}')
        stream = torch.cuda.current_stream().cuda_stream
        if not context.set_optimization_profile_async(0, stream):
            raise EngineError(f'the engine cannot be set up: {self._log.errors()}')
        shape = (size, *self._profile.shape)
        if not context.set_input_shape(self._profile.name, shape):
            raise EngineError(f'the engine was built for batches of {self._profile.batch[0]} to '
                              f'{self._profile.batch[2]}, not {size}')
        image = torch.zeros(shape, device='cuda')
        outputs = {
            name: torch.empty(_sizes(context.get_tensor_shape(name)), device='cuda')
            for name in self._outputs}
        for name, tensor in ((self._profile.name, image), *outputs.items()):
            if not context.set_tensor_address(name, tensor.data_ptr()):
                raise EngineError(f'the engine does not take the memory of {name}: '
                                  f'{self._log.errors()}')

        def enqueue() -> dict[str, torch.Tensor]:
            if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
                raise EngineError(f'TensorRT could not run the engine: {self._log.errors()}')
            return outputs

        return Pass(image, enqueue)
