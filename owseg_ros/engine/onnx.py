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
"""The default engine: ONNX Runtime, on the CPU or through its CUDA and TensorRT providers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Optional, Sequence

import cv2
import numpy as np
import onnxruntime
from onnxruntime.capi import onnxruntime_pybind11_state
from owseg_ros.bundle import Bundle
from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.network import EMBEDDING_AXES, NetworkEngine
from owseg_ros.engine.subgraph import subgraph

PROVIDERS = {
    'cpu': 'CPUExecutionProvider',
    'cuda': 'CUDAExecutionProvider',
    'tensorrt': 'TensorrtExecutionProvider',
}

_RANKS = {'mask_logits': 4, 'class_logits': 3, 'region_embeddings': 3,
          'frozen_region_embeddings': 3, 'text_features': 4, 'pixel_features': 4}

# ONNX Runtime's exceptions have no common base below Exception.
RUNTIME_ERRORS = (RuntimeError, ValueError, *(
    kind for kind in vars(onnxruntime_pybind11_state).values()
    if isinstance(kind, type) and issubclass(kind, Exception)))

# What only queries and names ask for.
_EMBEDDINGS = ('region_embeddings', 'frozen_region_embeddings', 'text_features')
# A second session takes the memory of the weights once more; it must leave out at least as much.
_WORTH_A_SESSION = 0.05

_LOG_ERRORS_ONLY = 3


def available_providers() -> tuple[str, ...]:
    """Return our names of the providers that the installed ONNX Runtime was built with."""
    built = onnxruntime.get_available_providers()
    return tuple(name for name, provider in PROVIDERS.items() if provider in built)


def physical_cores() -> int:
    """
    Return how many cores this process may use.

    Honours its affinity and a container's quota; two hyper-threads count as one core.
    """
    usable = max(1, cv2.getNumberOfCPUs())
    if not hasattr(os, 'sched_getaffinity'):
        return usable
    cores = set()
    for cpu in os.sched_getaffinity(0):
        siblings = Path(f'/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list')
        try:
            cores.add(siblings.read_text('ascii').strip())
        except OSError:
            cores.add(str(cpu))
    return max(1, min(usable, len(cores)))


class OnnxEngine(NetworkEngine):
    """
    Runs a bundle's ONNX file; see engine.contract.Engine.

    bundle: a loaded bundle. The input is float32 [batch, 3, height, width] of the size that the
        manifest states; batch may be dynamic or a number, then frames run in chunks of it.
    providers: where to run, in order of preference: 'cpu', 'cuda', 'tensorrt'. All of them must
        be available; what a GPU provider cannot run falls to the CPU.
    threads: on the CPU; 0 takes one a core that this process may use.

    On the CPU alone, frames without region embeddings and text features run in a second session
    on the part of the graph that they need, where that is smaller.

    Raises EngineError where a provider is not available, the file is no network that ONNX
    Runtime reads, or it does not have the inputs and outputs that the manifest states.

    One engine serves one thread at a time: the input buffer is reused.
    """

    name = 'onnx'

    def __init__(self, bundle: Bundle, providers: Sequence[str] = ('cpu',), threads: int = 0):
        if threads < 0:
            raise EngineError(f'threads must be 0 (automatic) or more, not {threads}')
        super().__init__(bundle)
        self.threads = threads or physical_cores()
        chosen = provider_list(providers)
        self.on_gpu = chosen[0] != PROVIDERS['cpu']
        self._session = self._open(bundle.network, chosen)
        active = self._session.get_providers()
        unused = [name for name in providers if PROVIDERS[name] not in active]
        if unused:
            raise EngineError(
                f'{bundle.name}: provider {unused[0]!r} is installed but did not start; check '
                "the GPU driver and the CUDA libraries, or use providers ['cpu']")
        count = '1 thread' if self.threads == 1 else f'{self.threads} threads'
        self.description = f'onnx ({", ".join(PROVIDERS[name] for name in providers)}, {count})'
        self.precision = bundle.provenance.get('precision', 'fp32')
        self.fixed_batch = self._check_input()
        self._check_outputs()
        self._without_embeddings = self._open_without_embeddings(chosen)

    def _run(self, names: Sequence[str], batch: np.ndarray) -> list[np.ndarray]:
        session = self._session
        if self._without_embeddings and not self._embeddings & set(names):
            session = self._without_embeddings
        try:
            return session.run(list(names), {self.input.name: batch})
        except RUNTIME_ERRORS as error:
            raise EngineError(
                f'{self.bundle.name}: the network failed on {self.description}: '
                f'{one_line(error)}; try another provider, or less work at a time') from error

    @property
    def _embeddings(self) -> frozenset[str]:
        return frozenset(filter(None, map(self.bundle.outputs.get, _EMBEDDINGS)))

    def _open_without_embeddings(
            self, providers: list[str]) -> Optional[onnxruntime.InferenceSession]:
        """Return a session without the region head, None where it would hardly be smaller."""
        if providers != [PROVIDERS['cpu']] or not self._embeddings:
            return None
        # A graph in memory cannot tell where its weights are that lie in files of their own.
        network = self.bundle.network
        if any(path.name.startswith(network.name) and path.name != network.name
               for path in network.parent.iterdir()):
            return None
        others = set(filter(None, self.bundle.outputs.values())) - self._embeddings
        try:
            graph, share = subgraph(network.read_bytes(), others)
        except (OSError, ValueError) as error:
            raise EngineError(
                f'{network}: {error}; it changed while it was loaded: load the model '
                'again') from error
        return self._open(graph, providers) if share <= 1 - _WORTH_A_SESSION else None

    def _open(self, network: str | os.PathLike | bytes,
              providers: list[str]) -> onnxruntime.InferenceSession:
        try:
            return open_session(network, providers, self.threads)
        except RUNTIME_ERRORS as error:
            raise EngineError(
                f'{self.bundle.network}: ONNX Runtime {onnxruntime.__version__} cannot load it: '
                f'{one_line(error)}; export the bundle again (owseg-train export) or install a '
                'newer onnxruntime') from error

    def _check_input(self) -> int:
        """Return the batch size that the network is fixed to, or 0."""
        inputs = {entry.name: entry for entry in self._session.get_inputs()}
        spec = self.input
        if set(inputs) != {spec.name}:
            self._refuse(f'the manifest states one input {spec.name!r} and the network has '
                         f'{sorted(inputs)}')
        entry = inputs[spec.name]
        stated = [None, 3, spec.height, spec.width]
        fits = len(entry.shape) == 4 and all(
            not isinstance(actual, int) or wanted in (None, actual)
            for actual, wanted in zip(entry.shape, stated))
        if entry.type != 'tensor(float)' or not fits:
            self._refuse(f'the manifest states an input float32 [batch, 3, {spec.height}, '
                         f'{spec.width}] and the network has {entry.type} {entry.shape}')
        return entry.shape[0] if isinstance(entry.shape[0], int) else 0

    def _check_outputs(self) -> None:
        outputs = {entry.name: entry for entry in self._session.get_outputs()}
        for key, rank in _RANKS.items():
            name = self.bundle.outputs.get(key)
            if name is None and key in ('mask_logits', 'class_logits'):
                self._refuse(f'the manifest names no output {key}')
            if name is None:
                continue
            if name not in outputs:
                self._refuse(f'the manifest names the output {name!r} for {key} and the network '
                             f'has {sorted(outputs)}')
            entry = outputs[name]
            if entry.type != 'tensor(float)' or (entry.shape and len(entry.shape) != rank):
                self._refuse(f'{key} must be float32 with {rank} dimensions and is '
                             f'{entry.type} {entry.shape}')
            dim = entry.shape[EMBEDDING_AXES[key]] if key in EMBEDDING_AXES and entry.shape \
                else None
            if isinstance(dim, int) and dim != self.bundle.language.dim:
                self._refuse(f'language.dim is {self.bundle.language.dim} and {key} is '
                             f'{entry.shape}')
        columns = outputs[self.bundle.outputs['class_logits']].shape
        if columns and isinstance(columns[-1], int) and columns[-1] != self._columns:
            self._refuse(f'{self.bundle.num_classes} classes need {self._columns} columns of '
                         f'class_logits and the network has {columns[-1]}')


def open_session(network: str | os.PathLike | bytes, providers: Sequence[str],
                 threads: int) -> onnxruntime.InferenceSession:
    """Open an ONNX file, or its content, with ONNX Runtime's providers; raises RUNTIME_ERRORS."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _LOG_ERRORS_ONLY
    # Threads that spin while they wait take the cores from the readout and from other nodes;
    # on a loaded machine spinning doubles the time of a frame.
    options.add_session_config_entry('session.intra_op.allow_spinning', '0')
    source = network if isinstance(network, bytes) else os.fspath(network)
    return onnxruntime.InferenceSession(source, options, providers=list(providers))


def provider_list(names: Sequence[str]) -> list[str]:
    """Return ONNX Runtime's names; raise EngineError where one is unknown or not available."""
    if isinstance(names, str) or not names:
        raise EngineError(f'providers must be a list of {", ".join(PROVIDERS)}, not {names!r}')
    available = available_providers()
    for name in names:
        if name not in PROVIDERS:
            raise EngineError(
                f'unknown provider {name!r}; choose from {", ".join(PROVIDERS)}')
        if name not in available:
            raise EngineError(
                f'provider {name!r} ({PROVIDERS[name]}) is not available: the installed '
                f'onnxruntime {onnxruntime.__version__} has {", ".join(available)}; install '
                'onnxruntime-gpu in its place (pip uninstall onnxruntime, then pip install '
                f'onnxruntime-gpu), or use one of those')
    chosen = [PROVIDERS[name] for name in dict.fromkeys(names)]
    if PROVIDERS['cpu'] not in chosen:
        chosen.append(PROVIDERS['cpu'])
    return chosen


def one_line(error: Optional[BaseException]) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= 300 else f'{text[:297]}...'
