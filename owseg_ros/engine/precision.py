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
"""FP16 and static INT8 variants of a network. Needs the package onnx."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
import tempfile

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static, QuantType)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

PRECISIONS = ('fp32', 'fp16', 'int8')
RUNTIMES = ('onnxruntime', 'tensorrt')
_OPERATORS = ('Conv', 'Add', 'MatMul', 'Gemm', 'Resize', 'Relu', 'Clip')


class _Reader(CalibrationDataReader):

    def __init__(self, name: str, batches: Iterator[np.ndarray]) -> None:
        self._name = name
        self._batches = batches

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {self._name: batch}


def to_fp16(source: str | Path, target: str | Path) -> None:
    """
    Write a float16 variant of an ONNX file whose inputs and outputs stay float32.

    Operators that ONNX Runtime computes in float32 only (Resize among them) stay float32.
    """
    model = OnnxModel(convert_float_to_float16(onnx.load(str(source)), keep_io_types=True))
    # The converter appends its casts at the end.
    model.topological_sort()
    onnx.save(model.model, str(target))
    onnx.checker.check_model(str(target), full_check=True)


def to_int8(source: str | Path, target: str | Path, images: Iterable[np.ndarray],
            batch: int = 1, runtime: str = 'onnxruntime') -> int:
    """
    Write a static INT8 variant (QDQ, weights per channel); returns the number of convolutions.

    images: normalised float32 [3, H, W] of the network's size, for the ranges of activations;
    batch: the network's fixed batch size, 1 for a dynamic one.
    runtime: onnxruntime quantises all but the transformer decoder, activations asymmetric, as its
    CPU kernels are quickest; tensorrt quantises the convolutions, everything symmetric and biases
    in float32, as its parser wants it.  The decoder stays float32 in both: the anomaly score
    lives in small differences of its logits.
    Raises ValueError for another runtime.
    """
    if runtime not in RUNTIMES:
        raise ValueError(f'no runtime {runtime!r}; known: {", ".join(RUNTIMES)}')
    symmetric = runtime == 'tensorrt'
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / 'prepared.onnx'
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        model = onnx.load(str(prepared))
        name = model.graph.input[0].name
        batches = (np.repeat(image[None], batch, 0) for image in images)
        quantize_static(
            str(prepared), str(target), _Reader(name, batches), quant_format=QuantFormat.QDQ,
            op_types_to_quantize=['Conv'] if symmetric else list(_OPERATORS),
            nodes_to_exclude=_float_nodes(model), per_channel=True,
            activation_type=QuantType.QInt8 if symmetric else QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
            extra_options={'ActivationSymmetric': symmetric, 'WeightSymmetric': True,
                           'QuantizeBias': not symmetric})
    onnx.checker.check_model(str(target), full_check=True)
    return sum(node.op_type == 'Conv' for node in model.graph.node)


def _float_nodes(model: onnx.ModelProto) -> list[str]:
    """Name the nodes that stay float32: of the decoder, and products of two activations."""
    weights = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node
            if any('transformer_decoder' in name for name in node.input)
            or (node.op_type == 'MatMul' and not weights & set(node.input))]


def precision_of(path: str | Path) -> str:
    """Return the precision that an ONNX file states: int8 (QDQ), fp16 or fp32."""
    graph = onnx.load(str(path), load_external_data=False).graph
    if any(node.op_type == 'QuantizeLinear' for node in graph.node):
        return 'int8'
    half = any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in graph.initializer)
    return 'fp16' if half else 'fp32'


def batch_of(path: str | Path, name: str) -> int:
    """Return the batch size that the input of an ONNX file is fixed to, or 0."""
    graph = onnx.load(str(path), load_external_data=False).graph
    entry = next(entry for entry in graph.input if entry.name == name)
    return entry.type.tensor_type.shape.dim[0].dim_value
