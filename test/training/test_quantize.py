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
from pathlib import Path
import platform

import numpy as np
import onnx
import onnxruntime
from owseg_training.quantize import difference, to_fp16, to_int8
from owseg_training.tensorrt_support import check
import pytest
import torch

# x86 processors without VNNI add products of bytes in 16 bits, which saturate: ONNX Runtime's
# INT8 is less exact there.
CPU = Path('/proc/cpuinfo').read_text() if Path('/proc/cpuinfo').exists() else ''
LARGEST = 0.3 if 'vnni' in CPU or platform.machine() not in ('x86_64', 'AMD64') else 0.6


class Tiny(torch.nn.Module):
    """Two convolutions and heads with the outputs of an exported network."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = torch.nn.Conv2d(3, 8, 3, 4, 1)
        self.masks = torch.nn.Conv2d(8, 4, 1)
        self.classes = torch.nn.Linear(8, 3)

    def forward(self, image):
        features = self.stem(image).relu()
        queries = self.classes(features.mean((2, 3)))[:, None]
        return 4 * self.masks(features), queries * torch.arange(1, 5)[None, :, None]


@pytest.fixture(scope='module')
def network(tmp_path_factory):
    path = tmp_path_factory.mktemp('onnx') / 'network.onnx'
    torch.onnx.export(
        Tiny().eval(), (torch.zeros(2, 3, 32, 32),), str(path), input_names=['image'],
        output_names=['mask_logits', 'class_logits'], opset_version=18, dynamo=True,
        external_data=False, dynamic_shapes={'image': {0: torch.export.Dim('batch')}},
        verbose=False)
    return path


@pytest.fixture(scope='module')
def images():
    random = np.random.default_rng(0)
    return [random.normal(0, 1, (3, 32, 32)).astype(np.float32) for _ in range(4)]


def types_of(path):
    session = onnxruntime.InferenceSession(str(path), providers=['CPUExecutionProvider'])
    return {entry.type for entry in (*session.get_inputs(), *session.get_outputs())}


def test_fp16_keeps_float32_inputs_and_outputs(network, images, tmp_path):
    to_fp16(network, tmp_path / 'fp16.onnx')
    assert types_of(tmp_path / 'fp16.onnx') == {'tensor(float)'}
    weights = onnx.load(tmp_path / 'fp16.onnx').graph.initializer
    assert any(w.data_type == onnx.TensorProto.FLOAT16 and len(w.dims) == 4 for w in weights)
    found = difference(network, tmp_path / 'fp16.onnx', images)
    assert 0 < found['mask_logits'] < 0.01 and found['same_class'] > 0.98
    assert found['frames'] == 4


def test_int8_for_tensorrt_is_symmetric_and_per_channel(network, images, tmp_path):
    path = tmp_path / 'int8.onnx'
    assert to_int8(network, path, images, runtime='tensorrt') == 2
    assert types_of(path) == {'tensor(float)'}
    model = onnx.load(path)
    scales = {w.name: w for w in model.graph.initializer}
    stem = next(n for n in model.graph.node if n.op_type == 'DequantizeLinear'
                and list(scales.get(n.input[1]).dims) == [8])
    assert scales[stem.input[0]].data_type == onnx.TensorProto.INT8
    assert check(model).supported
    found = difference(network, path, images)
    assert 1e-4 < found['mask_logits'] < LARGEST and found['same_class'] > 0.8


def test_int8_for_onnx_runtime_is_asymmetric(network, images, tmp_path):
    path = tmp_path / 'int8.onnx'
    assert to_int8(network, path, images) == 2
    assert types_of(path) == {'tensor(float)'}
    assert any('zero point' in f.reason for f in check(path).findings)
    found = difference(network, path, images)
    assert 1e-4 < found['mask_logits'] < LARGEST and found['same_class'] > 0.8
    with pytest.raises(ValueError, match='onnxruntime, tensorrt'):
        to_int8(network, path, images, runtime='tflite')


def test_a_network_does_not_differ_from_itself(network, images):
    found = difference(network, network, images)
    assert found['mask_logits'] == found['class_logits'] == found['anomaly_score'] == 0
    assert found['same_class'] == 1
