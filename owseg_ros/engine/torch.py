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
The engine torch: a bundle's network as a torch.export program, for GPUs without TensorRT.

What needs no torch is here: options, and saying what is missing. The rest is in
engine.torch_network. It runs on the CPU too, where ONNX Runtime is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
import importlib
from typing import Any, Callable, Optional, Sequence

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.cuda_engine import CudaEngine, require_torch, require_torch_cuda
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.engine.network import NetworkEngine
from owseg_ros.engine.onnx import one_line, OnnxEngine
from owseg_ros.engine.program import check_program
from owseg_ros.engine.status import StateMachine

AUTO = 'auto'
DEVICES = ('cuda', 'cpu')
PRECISIONS = (AUTO, 'fp32', 'fp16', 'bf16')

# What only queries and names ask for: without it a smaller network runs.
_EMBEDDINGS = ('region_embeddings', 'frozen_region_embeddings', 'text_features')


@dataclass(frozen=True)
class TorchOptions:
    """
    How a program is run.

    device: cuda or cpu. precision: fp32, fp16, bf16, or auto: fp16 on a GPU, else fp32.
    compiled: make kernels for it with torch.compile before it serves. max_batch: frames that it
    is made ready for. cuda_graph: capture a pass on a GPU.
    """

    device: str = 'cuda'
    precision: str = AUTO
    compiled: bool = False
    max_batch: int = 1
    cuda_graph: bool = True

    def __post_init__(self) -> None:
        for name, choices in (('device', DEVICES), ('precision', PRECISIONS)):
            if getattr(self, name) not in choices:
                raise EngineError(f'unknown {name} {getattr(self, name)!r}; choose from '
                                  f'{", ".join(choices)}')
        if self.max_batch < 1:
            raise EngineError(f'max_batch must be 1 or more, not {self.max_batch}')

    @property
    def resolved_precision(self) -> str:
        """Return the precision that auto stands for on the device."""
        if self.precision != AUTO:
            return self.precision
        return 'fp32' if self.device == 'cpu' else 'fp16'


def read_program(bundle: Bundle) -> bytes:
    """
    Return the program of a bundle, its checksum verified and its content looked through.

    Raises EngineError where there is none, or it is not what the manifest lists, or it holds more
    than a program needs (engine.program).
    """
    if bundle.program is None:
        raise EngineError(f'{bundle.name} has no torch program, which the engine torch runs: '
                          'export the bundle with one (owseg-train export --torch), or use the '
                          'engine onnx')
    try:
        content = bundle.program.read_bytes()
    except OSError as error:
        raise EngineError(f'{bundle.program} cannot be read: {error.strerror or error}') from error
    name = bundle.program.relative_to(bundle.path).as_posix()
    if hashlib.sha256(content).hexdigest() != bundle.files[name]:
        raise EngineError(f'{bundle.program} changed since the bundle was loaded: load it again')
    check_program(content, bundle.program.name)
    return content


class TorchEngine(CudaEngine):
    """
    Runs a bundle's program with torch; see engine.contract.Engine.

    machine: is told the progress and what to know; stopped: says whether to give up.

    Raises EngineError: torch, a GPU or the program is missing or not usable, or the program is
    not of the bundle's network. One engine serves one thread at a time.
    """

    name = 'torch'

    def __init__(self, bundle: Bundle, options: TorchOptions, machine: StateMachine,
                 stopped: Callable[[], bool] = lambda: False) -> None:
        super().__init__(bundle)
        machine.progress(0.0, 'loading the program')
        content = read_program(bundle)
        if options.device == 'cpu':
            require_torch(self.name)
        else:
            require_torch_cuda(self.name)
        code = importlib.import_module('owseg_ros.engine.torch_network')
        self.precision = precision = options.resolved_precision
        code.check_device(options.device, precision)
        self.on_gpu = options.device != 'cpu'
        self._options, self._code, self._note = options, code, machine.note
        self._program = code.Program(content, options.device)
        self.fixed_batch = self._check_program()
        self._networks: dict[tuple[str, ...], Any] = {}
        kind = f'{precision}, compiled' if options.compiled else precision
        self.description = f'torch ({kind}, {code.describe(options.device)})'
        if options.compiled:
            sizes = self._sizes(options.max_batch)
            for index, size in enumerate(sizes):
                if stopped():
                    raise EngineError('the preparation of the engine torch was stopped')
                machine.progress((1 + index) / (1 + len(sizes)), f'compiling for {size} frames')
                NetworkEngine.warm_up(self, size)

    def warm_up(self, batch: int = 1) -> float:
        """
        Warm up every batch size up to this one; return ms of the last pass of the largest.

        A camera that is late makes a batch smaller, and the first pass of a size takes long:
        kernels are chosen, or compiled. The largest is first: the others use its memory.
        """
        return [NetworkEngine.warm_up(self, size) for size in reversed(self._sizes(batch))][0]

    def _sizes(self, largest: int) -> Sequence[int]:
        return [self.fixed_batch] if self.fixed_batch else range(1, 1 + largest)

    def _check_program(self) -> int:
        """Return the batch size that the program is fixed to, or 0."""
        spec, program = self.input, self._program
        batch, *shape = program.input_shape
        if shape != [3, spec.height, spec.width]:
            self._refuse(f'the manifest states an input float32 [batch, 3, {spec.height}, '
                         f'{spec.width}] and the program has {list(program.input_shape)}')
        missing = {name for name in self.bundle.outputs.values() if name} - program.outputs
        if missing:
            self._refuse(f'the manifest names the output {sorted(missing)[0]!r} and the program '
                         f'has {sorted(program.outputs)}')
        return batch or 0

    def _refuse(self, problem: str) -> None:
        raise EngineError(f'{self.bundle.program}: {problem}; program and manifest do not belong '
                          'together: export the bundle again (owseg-train export --torch)')

    def _network(self, names: Sequence[str]) -> Any:
        """Return what computes these outputs, and all others but those that nobody asks for."""
        outputs = self.bundle.outputs
        left_out = {outputs.get(key) for key in _EMBEDDINGS}
        if left_out & set(names):
            left_out = set()
        wanted = tuple(name for name in outputs.values() if name and name not in left_out)
        if wanted not in self._networks:
            network = self._code.TorchNetwork(
                self._program, wanted, self._options.resolved_precision, self._options.compiled)
            if self._options.device != 'cpu':
                network = network.passes((3, self.input.height, self.input.width),
                                         self._options.cuda_graph, self._note)
            self._networks[wanted] = network
        return self._networks[wanted]

    def _passes(self, names: Sequence[str]) -> Any:
        return self._network(names)

    def _run(self, names: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
        if self._options.device != 'cpu':
            return super()._run(names, batch)
        torch = importlib.import_module('torch')
        try:
            found = self._network(names)(torch.from_numpy(batch))
            return [found[name].float().numpy() for name in names]
        except RuntimeError as error:
            raise EngineError(f'{self.bundle.name}: the network failed on {self.description}: '
                              f'{one_line(error)}; use the engine onnx') from error

    def _run_on_device(self, names: Sequence[str], batch: np.ndarray) -> list[Any]:
        if self._options.device == 'cpu':
            return self._run(names, batch)
        return super()._run_on_device(names, batch)

    def _allocate(self, shape: tuple[int, ...]) -> np.ndarray:
        if self._options.device == 'cpu':
            return NetworkEngine._allocate(self, shape)
        return super()._allocate(shape)


def serve_torch(bundle: Bundle, providers: Sequence[str] = ('cpu',), threads: int = 0,
                options: Optional[TorchOptions] = None) -> FallbackEngine:
    """
    Return an engine that answers at once through ONNX Runtime, and through torch when it is ready.

    providers, threads: of ONNX Runtime; options: of torch. Raises EngineError only where ONNX
    Runtime cannot run the network; that torch cannot is the `status` of the engine.
    """
    chosen = options or TorchOptions()
    return FallbackEngine(
        TorchEngine.name, OnnxEngine(bundle, providers, threads),
        lambda machine, stopped: TorchEngine(bundle, chosen, machine, stopped),
        chosen.max_batch)
