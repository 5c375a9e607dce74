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
All that touches torch for the engine torch: its program, its precision, its passes.

Imported only where torch is (engine.torch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import io

from owseg_ros.engine.contract import EngineError
from owseg_ros.engine.cuda import CudaPasses, Pass
import torch
from torch import fx
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

DTYPES = {'fp32': torch.float32, 'fp16': torch.float16, 'bf16': torch.bfloat16}

# What autocast runs in half precision, and so casts the weights of, at every pass.
_HALVED = {torch.ops.aten.conv2d.default, torch.ops.aten.linear.default,
           torch.ops.aten.matmul.default, torch.ops.aten.einsum.default}
_ASSERTION = torch.ops.aten._assert_tensor_metadata.default


class Program:
    """
    A torch.export program on a device.

    content: a .pt2 file that engine.program has looked through; device: such as 'cpu' or 'cuda'.
    input_name, input_shape: of its input, None for the batch where that is free; outputs: names.
    Raises EngineError where it is not a program with one image and named outputs.
    """

    def __init__(self, content: bytes, device: str) -> None:
        try:
            program = torch.export.load(io.BytesIO(content))
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError,
                AssertionError) as error:
            raise EngineError(
                f'torch {torch.__version__} cannot load the program: {_line(error)}; use the '
                'version that wrote it or a newer one, or export the bundle again (owseg-train '
                'export --torch)') from error
        inputs = program.graph_signature.user_inputs
        spec = program.call_spec.out_spec
        places = pytree.tree_unflatten(range(spec.num_leaves), spec)
        if len(inputs) != 1 or not isinstance(places, dict):
            raise EngineError(f'the program takes {len(inputs)} inputs and returns a '
                              f'{type(places).__name__}, not one image and outputs by name; '
                              'export the bundle again (owseg-train export --torch)')
        self.device = torch.device(device)
        self._places = places
        self._program = move_to_device_pass(program, device)
        (self.input_name,) = inputs
        shape = next(node for node in program.graph.nodes
                     if node.name == self.input_name).meta['val'].shape
        self.input_shape = tuple(side if isinstance(side, int) else None for side in shape)

    @property
    def outputs(self) -> frozenset[str]:
        """Return the names of the outputs."""
        return frozenset(self._places)

    def module(self, outputs: Sequence[str]) -> fx.GraphModule:
        """Return a module from image to a list of these outputs, which computes nothing else."""
        module = self._program.module()
        graph = module.graph
        (last,) = graph.find_nodes(op='output')
        found = pytree.tree_leaves(last.args[0])
        last.args = ([found[self._places[name]] for name in outputs],)
        # What the exporter saw of types, which half precision changes.
        for node in graph.find_nodes(op='call_function', target=_ASSERTION):
            graph.erase_node(node)
        # The graph is flat: its own lists and names are not needed to call it.
        graph.set_codegen(fx.graph.CodeGen())
        graph.eliminate_dead_code()
        module.recompile()
        return module


def halve(module: fx.GraphModule, dtype: torch.dtype) -> None:
    """Cast those weights that autocast would cast at every pass."""
    for node in module.graph.find_nodes(op='get_attr'):
        if node.users and all(user.target in _HALVED for user in node.users):
            owner, _, name = node.target.rpartition('.')
            holder = module.get_submodule(owner)
            value = getattr(holder, name)
            if value.dtype == torch.float32:
                setattr(holder, name, torch.nn.Parameter(value.to(dtype), requires_grad=False))


class TorchNetwork:
    """
    One selection of a program's outputs in one precision.

    precision: of DTYPES; half precisions run under autocast, which leaves softmax and
    normalisation in float32. compiled: let torch.compile make kernels for it, for each batch
    size on its first use. Outputs keep the precision that they are made in.
    """

    def __init__(self, program: Program, outputs: Sequence[str], precision: str,
                 compiled: bool) -> None:
        self._outputs = tuple(outputs)
        self._device = program.device
        self._dtype = DTYPES[precision]
        module = program.module(outputs)
        if precision != 'fp32':
            halve(module, self._dtype)
        self._module = torch.compile(module, dynamic=False) if compiled else module

    def __call__(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the outputs of an image float32 [B, 3, H, W] on the device of the program."""
        with torch.no_grad(), self._settings():
            return dict(zip(self._outputs, self._module(image)))

    @contextlib.contextmanager
    def _settings(self) -> Iterator[None]:
        half = self._dtype != torch.float32
        with contextlib.ExitStack() as stack:
            if self._device.type == 'cuda':
                # TF32 would round the products of float32.
                stack.enter_context(torch.backends.cudnn.flags(
                    enabled=True, benchmark=True, allow_tf32=False))
            # What autocast would keep between uses must not end up in a captured graph.
            stack.enter_context(torch.autocast(
                self._device.type, self._dtype if half else None, enabled=half,
                cache_enabled=False))
            yield

    def passes(self, shape: tuple[int, int, int], graphs: bool,
               note: Callable[[str], object]) -> CudaPasses:
        """Return the passes of this network on the GPU, for images of shape [3, H, W]."""
        def prepare(size: int) -> Pass:
            image = torch.zeros((size, *shape), device=self._device)
            return Pass(image, lambda: self(image))

        # The weights were moved and cast on another stream than that of the passes.
        torch.cuda.synchronize()
        return CudaPasses(prepare, graphs, note)


def check_device(device: str, precision: str) -> None:
    """Raise EngineError where the GPU does not have a precision."""
    if device != 'cpu' and precision == 'bf16' and not torch.cuda.is_bf16_supported():
        raise EngineError(f'{torch.cuda.get_device_name()} has no bf16: use fp16')


def describe(device: str) -> str:
    """Return torch's version and where it runs, for people."""
    where = (f'{torch.get_num_threads()} threads' if device == 'cpu'
             else torch.cuda.get_device_name())
    return f'torch {torch.__version__} on {where}'


def _line(error: Exception) -> str:
    return ' '.join(str(error).split())[:300]
