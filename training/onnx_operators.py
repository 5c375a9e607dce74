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
"""Operators written in the form that ONNX Runtime recognises and computes in one pass."""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any

from onnxscript import ir, opset18 as op
from onnxscript.function_libs.torch_lib.ops.nn import aten_gelu
import torch


def _gelu(x: Any, approximate: str = 'none') -> Any:
    """Return x (1 + erf(x / sqrt 2)) / 2 in this order; with 'tanh' what torch writes."""
    if approximate != 'none':
        return aten_gelu(x, approximate)

    def number(value: float) -> Any:
        return ir.tensor(value, dtype=x.dtype)

    error = op.Erf(op.Div(x, number(math.sqrt(2))))
    return op.Mul(op.Mul(x, op.Add(error, number(1.0))), number(0.5))


# For torch.onnx.export.
TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {torch.ops.aten.gelu.default: _gelu}
