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
"""FP16 and static INT8 variants of an exported network, and how far they are from it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
import tempfile
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static, QuantType)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from owseg_ros.readout import reference

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


def _session(path: str | Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])


def difference(reference_path: str | Path, path: str | Path, images: Sequence[np.ndarray],
               batch: int = 1) -> dict[str, Any]:
    """
    Compare a variant with the network that it was made of, on the CPU.

    images: normalised float32 [3, H, W]; batch: as for to_int8.
    Returns mask_logits and class_logits (largest |a - b| / max(1, |a|)), same_class (share of
    pixels with the same semantic class at the masks' size), anomaly_score (mean |a - b| of RbA).
    """
    sessions = [_session(reference_path), _session(path)]
    names = ['mask_logits', 'class_logits']
    worst = dict.fromkeys(names, 0.0)
    same, score = [], []
    for image in images:
        feed = {sessions[0].get_inputs()[0].name: np.repeat(image[None], batch, 0)}
        outputs = [session.run(names, feed) for session in sessions]
        for name, a, b in zip(names, *outputs):
            worst[name] = max(worst[name],
                              float((np.abs(a - b) / np.maximum(1, np.abs(a))).max()))
        scores = [reference.class_scores(
            masks[0], reference.class_probabilities(classes)[0], masks.shape[2:])
            for masks, classes in outputs]
        a, b = (reference.semantic(values) for values in scores)
        same.append(float((a == b).mean()))
        a, b = (reference.rba(values) for values in scores)
        score.append(float(np.abs(a - b).mean()))
    return {**worst, 'same_class': float(np.mean(same)), 'anomaly_score': float(np.mean(score)),
            'frames': len(images)}
