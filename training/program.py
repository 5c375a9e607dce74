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
"""The network as a torch.export program, for the engine torch on the robot."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnxruntime
from owseg_ros.engine.program import check_program
from owseg_ros.engine.torch_network import Program
from owseg_training.parity import differences
import torch
from torch import nn

PROGRAM = 'network.pt2'


class NamedOutputs(nn.Module):
    """A network whose outputs have names: image to a dictionary of them."""

    def __init__(self, network: nn.Module, outputs: Sequence[str]) -> None:
        super().__init__()
        self.network = network
        self.outputs = tuple(outputs)

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs by name."""
        return dict(zip(self.outputs, self.network(image)))


def export_program(network: nn.Module, outputs: Sequence[str], path: str | Path,
                   size: tuple[int, int], batch: int | None = None) -> None:
    """
    Write a .pt2 file for a fixed (width, height), and any batch size or a fixed one.

    network: in evaluation mode, image [B, 3, H, W] to a tuple of these outputs. The file has
    nothing of the machine that wrote it. Raises EngineError where the installed torch writes more
    than a program needs (owseg_ros.engine.program); torch 2.13 does not.
    """
    width, height = size
    # A batch of two, because the exporter specialises a dimension whose example is one.
    example = torch.zeros(batch or 2, 3, height, width)
    shapes = None if batch else {'image': {0: torch.export.Dim('batch', min=1, max=64)}}
    with torch.no_grad():
        program = torch.export.export(
            NamedOutputs(network, outputs), (example,), dynamic_shapes=shapes)
    # Sample inputs are pickled; the places in the source have paths of this machine.
    program.example_inputs = None
    for node in program.graph.nodes:
        for key in ('stack_trace', 'nn_module_stack', 'source_fn_stack', 'torch_fn',
                    'from_node'):
            node.meta.pop(key, None)
    path = Path(path)
    torch.export.save(program, path)
    check_program(path.read_bytes(), path.name)


def program_parity(program: str | Path, onnx: str | Path, images: Sequence[torch.Tensor],
                   batch: int | None = None) -> dict[str, float]:
    """
    Largest difference |a - b| / max(1, |a|) between ONNX Runtime a and the program b, by output.

    images: normalised float32 [3, H, W] of the exported size, run one by one, or in batches of
    the fixed size. Both files are read as the robot reads them.
    """
    loaded = Program(Path(program).read_bytes(), 'cpu')
    outputs = sorted(loaded.outputs)
    module = loaded.module(outputs)
    session = onnxruntime.InferenceSession(str(onnx), providers=['CPUExecutionProvider'])

    def pairs() -> Iterator[tuple[list[np.ndarray], list[np.ndarray]]]:
        for start in range(0, len(images), batch or 1):
            inputs = torch.stack([images[(start + i) % len(images)] for i in range(batch or 1)])
            with torch.inference_mode():
                actual = [output.numpy() for output in module(inputs)]
            yield session.run(outputs, {'image': inputs.numpy()}), actual

    return differences(outputs, pairs())
