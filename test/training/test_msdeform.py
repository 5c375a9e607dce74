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

from collections import Counter

import numpy as np
import onnx
import onnxruntime
from owseg_training.config import ConfigError, NetworkConfig
from owseg_training.export import export_onnx
from owseg_training.network import MaskClassifier
from owseg_training.network.msdeform_pixel_decoder import (
    DeformableAttention, MSDeformPixelDecoder, reference_points)
from owseg_training.network.transformer_decoder import MaskedAttentionDecoder
import pytest
from support.published import one_thread, randomize  # noqa: F401
import torch

CHANNELS = {4: 8, 8: 12, 16: 20, 32: 24}


def small_config(**changes):
    values = {'backbone': 'swin_t', 'pixel_decoder': 'msdeform', 'encoder_layers': 1,
              'backbone_options': {'embed_dim': 16, 'depths': [1, 2, 1, 1],
                                   'heads': [1, 2, 2, 4], 'window': 5},
              'encoder_feedforward_dim': 48, 'hidden_dim': 32, 'mask_dim': 16, 'heads': 4,
              'feedforward_dim': 64, 'queries': 6, 'decoder_layers': 2,
              'encoder_strides': [32, 16, 8], 'attention_strides': [32, 16, 8]}
    return NetworkConfig(**{**values, **changes})


def naive_attention(module, query, value, sizes):
    """Deformable attention place by place, as its definition reads (Deformable DETR eq 3)."""
    length, channels = query.shape[1:]
    heads, points, width = module.heads, module.points, channels // module.heads
    offsets = module.sampling_offsets(query).reshape(length, heads, len(sizes), points, 2)
    weights = module.attention_weights(query).reshape(length, heads, -1).softmax(2)
    weights = weights.reshape(length, heads, len(sizes), points)
    values = module.value_proj(value)[0]
    starts = np.cumsum([0, *(h * w for h, w in sizes)])
    centres = [((x + 0.5) / w, (y + 0.5) / h) for h, w in sizes
               for y in range(h) for x in range(w)]
    result = torch.zeros(length, channels)
    for i in range(length):
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            for level, (h, w) in enumerate(sizes):
                for point in range(points):
                    dx, dy = offsets[i, head, level, point].tolist()
                    x, y = centres[i][0] * w + dx - 0.5, centres[i][1] * h + dy - 0.5
                    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
                        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
                            if 0 <= row < h and 0 <= column < w:
                                share = (1 - abs(y - row)) * (1 - abs(x - column))
                                cell = values[starts[level] + row * w + column, part]
                                result[i, part] += weights[i, head, level, point] * share * cell
    return module.output_proj(result)


@torch.no_grad()
def test_attention_equals_its_definition():
    sizes = [(2, 3), (3, 5)]
    module = randomize(DeformableAttention(8, 2, 2, 3))
    length = sum(h * w for h, w in sizes)
    query, value = torch.randn(1, length, 8), torch.randn(1, length, 8)
    actual = module(query, value, reference_points(sizes, query.device), sizes)
    expected = naive_attention(module, query, value, sizes)
    assert expected.std() > 0.1
    assert (actual[0] - expected).abs().max() <= 1e-5


def test_samples_are_float32_under_autocast(monkeypatch):
    seen = []
    original = torch.nn.functional.grid_sample

    def spy(values, grid, **kwargs):
        seen.append((values.dtype, grid.dtype))
        return original(values, grid, **kwargs)

    monkeypatch.setattr(torch.nn.functional, 'grid_sample', spy)
    network = MaskClassifier(small_config(), 3).eval()
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        prediction = network(torch.randn(1, 3, 64, 64))
    assert seen and set(seen) == {(torch.float32, torch.float32)}
    assert prediction.mask_logits.isfinite().all()


@pytest.mark.parametrize('strides', [[32], [32, 16], [32, 16, 8], [32, 16, 8, 4]])
def test_levels(strides):
    torch.manual_seed(0)
    decoder = MSDeformPixelDecoder(CHANNELS, small_config(encoder_strides=strides))
    features = {s: torch.randn(2, c, 64 // s, 96 // s) for s, c in CHANNELS.items()}
    pyramid, pixels = decoder(features)
    assert {s: tuple(f.shape) for s, f in pyramid.items()} == {
        s: (2, 32, 64 // s, 96 // s) for s in CHANNELS}
    assert pixels.shape == (2, 16, 16, 24)
    (pixels.square().mean() + sum(f.square().mean() for f in pyramid.values())).backward()
    assert all(p.grad is not None for p in decoder.parameters())


def test_levels_must_begin_with_the_coarsest():
    for strides in ([], [16, 32], [16, 8], [32, 8]):
        with pytest.raises(ValueError, match='encoder_strides'):
            MSDeformPixelDecoder(CHANNELS, small_config(encoder_strides=strides))


def test_decoders_by_name():
    with pytest.raises(ConfigError, match='pixel decoder.*fpn, msdeform'):
        MaskClassifier(small_config(pixel_decoder='msdef'), 3)
    with pytest.raises(ConfigError, match='masked_attention, region_cross_attention'):
        MaskClassifier(small_config(transformer_decoder='detr'), 3)


def test_converted_networks_have_no_pixel_classifier():
    network = MaskClassifier(small_config(pixel_classifier=False), 3)
    assert not [k for k in network.state_dict() if k.startswith('pixel_classifier')]
    assert network.train()(torch.randn(1, 3, 64, 64)).pixel_logits is None


def test_openseg_queries_do_not_see_each_other():
    config = small_config(transformer_decoder='region_cross_attention', queries=128,
                          decoder_layers=3, attention_strides=[16])
    network = randomize(MaskClassifier(config, 3))
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = network(image)
        network.transformer_decoder.query_feat.weight[5] += 1
        after = network(image)
    assert before.mask_logits.shape == (1, 128, 16, 16) and not before.auxiliary
    assert len(network.train()(image).auxiliary) == 3
    network.eval()
    changed = (before.mask_logits - after.mask_logits).abs().amax((0, 2, 3))
    assert changed[5] > 1e-2
    changed[5] = 0
    assert changed.max() <= 1e-5
    shifted = image.roll(32, 3)
    with torch.inference_mode():
        assert (network(shifted).class_logits - after.class_logits).abs().max() > 1e-3
    names = [k for k, _ in network.transformer_decoder.named_parameters()]
    assert not any('self_attention' in name or 'query_embed' in name for name in names)


def test_mask_threshold_is_the_official_one():
    # A sigmoid in float32 is 0.5 for -1e-9: the official code does not block there.
    blocked = MaskedAttentionDecoder._blocked(torch.tensor([[[-1e-9, 1.0, -1e-3, 1.0]]]))
    assert blocked.flatten().tolist() == [False, False, True, False]


class Outputs(torch.nn.Module):
    """Masks and classes as a tuple, for export."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        prediction = self.network(image)
        return prediction.mask_logits, prediction.class_logits


@pytest.mark.timeout(180)
def test_onnx_equals_torch(tmp_path):
    network = randomize(MaskClassifier(small_config(pixel_classifier=False), 3))

    outputs = Outputs(network).eval()
    path = str(tmp_path / 'network.onnx')
    image = torch.randn(1, 3, 96, 160)
    export_onnx(network, path, (160, 96), batch=1)
    graph = onnx.load(path).graph
    samplers = [node for node in graph.node if node.op_type == 'GridSample']
    assert len(samplers) == 3
    assert all(info.type.tensor_type.elem_type != onnx.TensorProto.DOUBLE
               for info in graph.value_info)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'as_run.onnx')
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])
    run = Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node)
    # Each of Swin's five blocks; nothing guards rows that attend to nothing: there are none.
    assert run['Gelu'] + run['BiasGelu'] == 5 and not run['Erf'] and not run['IsNaN']
    for seed in range(2):
        image = torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))
        with torch.inference_mode():
            expected = outputs(image)
        actual = session.run(None, {'image': image.numpy()})
        for a, b in zip(expected, actual):
            assert a.std() > 0.1
            assert np.abs(a.numpy() - b).max() <= 1e-4
