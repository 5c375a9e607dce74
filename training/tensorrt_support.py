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
Report which nodes of an ONNX graph TensorRT's parser does not take; nothing is run on TensorRT.

The table is that of onnx-tensorrt's docs/operators.md for TensorRT 10.0 (opsets 9 to 20), cut to
the operators with a plain tensor meaning.  Newer releases take more; none is known to take less.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto
from onnx.shape_inference import infer_shapes

TABLE = 'onnx-tensorrt docs/operators.md, TensorRT 10.0'
OPSETS = range(9, 21)
SHOWN = 12

_FLOAT = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16,
                    # Cast down to FLOAT by the parser.
                    TensorProto.DOUBLE})
_NO_BF16 = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE})
_BOOL = frozenset({TensorProto.BOOL})
_NUMBER = _FLOAT | {TensorProto.INT32, TensorProto.INT64}
_ANY = _NUMBER | _BOOL
_QUANTIZED = frozenset({TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN})

# Operators by the types of their data inputs.
_SUPPORTED: dict[str, frozenset[int]] = {
    name: types for types, names in (
        (_BOOL, 'And Not Or Xor'),
        (_NO_BF16, 'DeformConv GridSample Mish NonMaxSuppression NonZero RoiAlign'),
        (_FLOAT, 'Acos Acosh Asin Asinh Atan Atanh AveragePool BatchNormalization Ceil Celu Clip '
                 'Conv ConvTranspose Cos Cosh CumSum Dropout Einsum Elu Erf Exp Floor Gemm '
                 'GlobalAveragePool GlobalLpPool GlobalMaxPool GroupNormalization GRU '
                 'HardSigmoid HardSwish Hardmax InstanceNormalization IsInf LayerNormalization '
                 'LeakyRelu Log LogSoftmax LRN LSTM LpNormalization LpPool MatMul MaxPool '
                 'MeanVarianceNormalization Pow PRelu QuantizeLinear RandomNormal '
                 'RandomNormalLike RandomUniform RandomUniformLike Reciprocal Resize RNN Round '
                 'Scan Selu Sigmoid Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh '
                 'ThresholdedRelu Upsample'),
        (_NUMBER, 'Abs Add ArgMax ArgMin DepthToSpace Div Equal Gelu Greater GreaterOrEqual '
                  'IsNaN Less LessOrEqual Max Mean Min Mod Mul Neg Pad Range ReduceL1 ReduceL2 '
                  'ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd '
                  'ReduceSum ReduceSumSquare Relu Scatter ScatterElements ScatterND Shrink Sign '
                  'SpaceToDepth Sub Sum TopK'),
        (_ANY, 'Concat Constant ConstantOfShape Expand EyeLike Flatten Gather GatherElements '
               'GatherND Identity If Loop OneHot Reshape ReverseSequence Shape Size Slice Split '
               'Squeeze Tile Transpose Trilu Unsqueeze Where'),
        (_ANY | {TensorProto.UINT8}, 'Cast CastLike'),
        (_QUANTIZED, 'DequantizeLinear'))
    for name in names.split()}

# Operators whose first input is not the data.
_DATA_INPUT = {'Where': 1}


@dataclass(frozen=True)
class Finding:
    """A node that the parser does not take, and why."""

    node: str
    operator: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What check finds: the opset, nodes an operator, refused nodes, remarks."""

    opset: int
    operators: dict[str, int]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]

    @property
    def supported(self) -> bool:
        """Return True where nothing in the table speaks against the graph."""
        return not self.findings

    def summary(self) -> dict[str, Any]:
        """Return plain types for a manifest: operators, refused nodes, and what was compared."""
        return {
            'compared_with': TABLE,
            'run_on_tensorrt': False,
            'opset': self.opset,
            'nodes': sum(self.operators.values()),
            'operators': dict(sorted(self.operators.items())),
            'unsupported': [f'{f.operator} {f.node}: {f.reason}' for f in self.findings[:SHOWN]],
            'unsupported_nodes': len({(f.operator, f.node) for f in self.findings}),
            'notes': list(self.notes),
        }

    def text(self) -> str:
        """Return the report for a terminal."""
        nodes = sum(self.operators.values())
        lines = [f'TensorRT operators ({TABLE}; compared, not run): {nodes} nodes, '
                 f'{len(self.operators)} operators, opset {self.opset}',
                 '  ' + ', '.join(f'{name} {count}'
                                  for name, count in sorted(self.operators.items()))]
        if self.supported:
            lines.append('  every operator is in the list')
        for found in self.findings[:SHOWN]:
            lines.append(f'  not supported: {found.operator} {found.node}: {found.reason}')
        if len(self.findings) > SHOWN:
            lines.append(f'  and {len(self.findings) - SHOWN} more')
        return '\n'.join([*lines, *(f'  note: {note}' for note in self.notes)])


class _Scope:
    """Types and constants by name in a graph, subgraphs see those around them."""

    def __init__(self, graph: GraphProto, outer: _Scope | None = None) -> None:
        self.types: dict[str, int] = dict(outer.types) if outer else {}
        self.ranks: dict[str, int] = dict(outer.ranks) if outer else {}
        self.constants: dict[str, TensorProto | None] = dict(outer.constants) if outer else {}
        for value in (*graph.input, *graph.value_info, *graph.output):
            tensor = value.type.tensor_type
            self.types[value.name] = tensor.elem_type
            if tensor.HasField('shape'):
                self.ranks[value.name] = len(tensor.shape.dim)
        for tensor in graph.initializer:
            self.types[tensor.name] = tensor.data_type
            self.ranks[tensor.name] = len(tensor.dims)
            self.constants[tensor.name] = tensor
        for node in graph.node:
            if node.op_type == 'Constant':
                tensor = next((a.t for a in node.attribute if a.name == 'value'), None)
                self.constants[node.output[0]] = tensor

    def constant(self, node: NodeProto, index: int) -> bool:
        """Tell whether an input is absent or constant."""
        return (len(node.input) <= index or not node.input[index]
                or node.input[index] in self.constants)

    def values(self, node: NodeProto, index: int) -> list[float] | None:
        """Return the numbers of a constant input, None where there are none to see."""
        if len(node.input) <= index or self.constants.get(node.input[index]) is None:
            return None
        return onnx.numpy_helper.to_array(self.constants[node.input[index]]).ravel().tolist()


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    for attribute in node.attribute:
        if attribute.name == name:
            value = onnx.helper.get_attribute_value(attribute)
            return value.decode() if isinstance(value, bytes) else value
    return default


def _constant_input(index: int, name: str) -> Callable[[NodeProto, _Scope], Iterator[str]]:
    def check_input(node: NodeProto, scope: _Scope) -> Iterator[str]:
        if not scope.constant(node, index):
            yield f'{name} must be an initializer'
    return check_input


def _resize(node: NodeProto, scope: _Scope) -> Iterator[str]:
    allowed = {
        'coordinate_transformation_mode': (
            'half_pixel', 'pytorch_half_pixel', 'tf_half_pixel_for_nn', 'asymmetric',
            'align_corners'),
        'mode': ('nearest', 'linear'),
        'nearest_mode': ('floor', 'ceil', 'round_prefer_floor', 'round_prefer_ceil'),
        'keep_aspect_ratio_policy': ('stretch',),
    }
    for name, values in allowed.items():
        value = _attribute(node, name, values[0])
        if value not in values:
            yield f'{name} {value} is not one of {", ".join(values)}'
    if _attribute(node, 'antialias', 0):
        yield 'antialias is not supported'


def _grid_sample(node: NodeProto, scope: _Scope) -> Iterator[str]:
    if scope.ranks.get(node.input[0], 4) != 4:
        yield f'its input has {scope.ranks[node.input[0]]} dimensions, not 4'
    grid = scope.types.get(node.input[1])
    if grid == TensorProto.DOUBLE:
        yield 'its grid is float64'


def _first_output(node: NodeProto, scope: _Scope) -> Iterator[str]:
    if any(node.output[1:]):
        yield 'only the first output is supported'


def _max_pool(node: NodeProto, scope: _Scope) -> Iterator[str]:
    if any(node.output[1:]):
        yield 'the output Indices is not supported'
    if any(d != 1 for d in _attribute(node, 'dilations', [])):
        yield 'dilations must be 1'


def _average_pool(node: NodeProto, scope: _Scope) -> Iterator[str]:
    if any(d != 1 for d in _attribute(node, 'dilations', [])):
        yield 'dilations must be 1'


def _no_reduction(node: NodeProto, scope: _Scope) -> Iterator[str]:
    reduction = _attribute(node, 'reduction', 'none')
    if reduction != 'none':
        yield f'reduction {reduction} is not supported'


def _top_k(node: NodeProto, scope: _Scope) -> Iterator[str]:
    if not _attribute(node, 'sorted', 1):
        yield 'sorted must be 1'
    count = scope.values(node, 1)
    if count and count[0] >= 3840:
        yield f'K {count[0]} is not below 3840'


def _zero_point(node: NodeProto, scope: _Scope) -> Iterator[str]:
    values = scope.values(node, 2)
    if values is None and not scope.constant(node, 2):
        yield 'the zero point must be constant'
    elif values and any(values):
        yield f'the zero point must be 0 (symmetric quantisation), not {values[0]}'
    if node.op_type == 'QuantizeLinear' and len(node.input) > 2 and \
            scope.types.get(node.input[2], TensorProto.INT8) not in _QUANTIZED:
        yield 'it must quantise to INT8, INT4 or FP8'
    if node.op_type == 'QuantizeLinear' and len(node.input) < 3 and \
            not _attribute(node, 'output_dtype', 0):
        yield 'it must quantise to INT8, INT4 or FP8; without a zero point that is UINT8'


_RESTRICTED: dict[str, Callable[[NodeProto, _Scope], Iterator[str]]] = {
    'AveragePool': _average_pool,
    'CumSum': _constant_input(1, 'axis'),
    'DequantizeLinear': _zero_point,
    'GridSample': _grid_sample,
    'LayerNormalization': _first_output,
    'MaxPool': _max_pool,
    'Pad': _constant_input(3, 'axes'),
    'QuantizeLinear': _zero_point,
    'Resize': _resize,
    'ScatterElements': _no_reduction,
    'ScatterND': _no_reduction,
    'Slice': _constant_input(3, 'axes'),
    'Squeeze': _constant_input(1, 'axes'),
    'TopK': _top_k,
    'Unsqueeze': _constant_input(1, 'axes'),
    **{name: _constant_input(1, 'axes') for name in _SUPPORTED if name.startswith('Reduce')},
}


def _reasons(node: NodeProto, scope: _Scope) -> Iterator[str]:
    """Say what the table holds against a node of the standard domain."""
    types = _SUPPORTED.get(node.op_type)
    if types is None:
        yield 'the operator is not supported'
        return
    index = _DATA_INPUT.get(node.op_type, 0)
    tensor = (node.input[index] if len(node.input) > index
              else node.output[0] if node.op_type == 'Constant' else '')
    kind = scope.types.get(tensor, TensorProto.UNDEFINED)
    if kind != TensorProto.UNDEFINED and kind not in types:
        yield f'type {TensorProto.DataType.Name(kind)} is not supported'
    if node.op_type == 'Cast' and _attribute(node, 'to', 0) not in types:
        yield f'type {TensorProto.DataType.Name(_attribute(node, "to", 0))} is not supported'
    if node.op_type in _RESTRICTED:
        yield from _RESTRICTED[node.op_type](node, scope)


def _nodes(graph: GraphProto, outer: _Scope | None = None) -> Iterator[tuple[NodeProto, _Scope]]:
    scope = _Scope(graph, outer)
    for node in graph.node:
        yield node, scope
        for attribute in node.attribute:
            inner: Sequence[GraphProto] = (
                [attribute.g] if attribute.type == AttributeProto.GRAPH else attribute.graphs)
            for subgraph in inner:
                yield from _nodes(subgraph, scope)


def check(network: ModelProto | str | Path) -> Report:
    """
    Compare every node, subgraphs and functions included, with the operators of TensorRT 10.

    Types are those of ONNX shape inference; where it finds none, only the name is compared.
    """
    model = network if isinstance(network, ModelProto) else onnx.load(str(network))
    if model.functions:
        model = onnx.inliner.inline_local_functions(model)
    try:
        model = infer_shapes(model, data_prop=True)
    except onnx.shape_inference.InferenceError as error:
        inferred = f'shape inference failed, types were not compared: {error}'
    else:
        inferred = ''
    opset = next((entry.version for entry in model.opset_import
                  if entry.domain in ('', 'ai.onnx')), 0)
    findings, counts = [], Counter()
    for node, scope in _nodes(model.graph):
        standard = node.domain in ('', 'ai.onnx')
        operator = node.op_type if standard else f'{node.domain}.{node.op_type}'
        counts[operator] += 1
        name = node.name or f'(writes {node.output[0]})'
        reasons = (_reasons(node, scope) if standard
                   else [f'the domain {node.domain} needs a plugin'])
        findings.extend(Finding(name, operator, reason) for reason in reasons)
    if opset not in OPSETS:
        findings.append(Finding('(whole graph)', 'opset', f'{opset} is not in {OPSETS.start} to '
                                                          f'{OPSETS.stop - 1}'))
    notes = [inferred] if inferred else []
    free = [value.name for value in model.graph.input
            if any(not d.HasField('dim_value') for d in value.type.tensor_type.shape.dim)]
    if free:
        notes.append(f'{", ".join(free)} has a free dimension: the engine needs an optimization '
                     'profile')
    if any(tensor.data_type == TensorProto.DOUBLE for tensor in model.graph.initializer):
        notes.append('float64 constants are cast to float32')
    return Report(opset, dict(counts), tuple(findings), tuple(notes))
