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
"""Engines: what runs a bundle's network. All of them keep the contract of contract.py."""

from __future__ import annotations

from typing import Optional, Sequence

from owseg_ros.bundle import Bundle
from owseg_ros.engine.contract import Engine, EngineError, NetworkOutput
from owseg_ros.engine.onnx import OnnxEngine
from owseg_ros.engine.tensorrt import serve_tensorrt, TensorrtEngine, TensorrtOptions
from owseg_ros.engine.torch import serve_torch, TorchEngine, TorchOptions

__all__ = ['create_engine', 'Engine', 'EngineError', 'ENGINES', 'NetworkOutput', 'OnnxEngine',
           'TensorrtEngine', 'TensorrtOptions', 'TorchEngine', 'TorchOptions']

ENGINES = (OnnxEngine.name, TensorrtEngine.name, TorchEngine.name)


def create_engine(bundle: Bundle, engine: str = 'onnx', providers: Sequence[str] = ('cpu',),
                  threads: int = 0, tensorrt: Optional[TensorrtOptions] = None,
                  torch: Optional[TorchOptions] = None) -> Engine:
    """
    Return the engine of that name for a bundle.

    providers: where ONNX Runtime runs, in order of preference: 'cpu', 'cuda', 'tensorrt';
    threads: on the CPU, 0 chooses. The engines tensorrt and torch are built in the background
    while ONNX Runtime serves (engine.fallback); tensorrt, torch: their options.
    Raises EngineError where the name is unknown or the engine does not start.
    """
    if engine == OnnxEngine.name:
        return OnnxEngine(bundle, providers=providers, threads=threads)
    if engine == TensorrtEngine.name:
        return serve_tensorrt(bundle, providers, threads, tensorrt)
    if engine == TorchEngine.name:
        return serve_torch(bundle, providers, threads, torch)
    raise EngineError(f'unknown engine {engine!r}; choose from {", ".join(ENGINES)}')
