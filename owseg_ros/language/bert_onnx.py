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
A BERT whose tokens are averaged, written as ONNX from its weights alone, without torch.

The encoder of Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers", 2019, with
the pooling of Reimers and Gurevych, "Sentence-BERT", 2019, section 3. Needs onnx and safetensors,
which the robot does not: import it only to write a text encoder.
"""

from __future__ import annotations

from collections.abc import Mapping
import math
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.onnx_encoder import MASK, OUTPUT, TOKENS
import safetensors
import safetensors.numpy

OPSET = 18
IR_VERSION = 8
# Of published files, without a part in the mean of the tokens.
UNUSED = ('embeddings.position_ids', 'pooler.dense.weight', 'pooler.dense.bias')
# What the graph is written for, as transformers' BertConfig names and defaults it.
_ONLY = {'hidden_act': 'gelu', 'position_embedding_type': 'absolute', 'is_decoder': False,
         'add_cross_attention': False}


def read_weights(data: bytes) -> dict[str, np.ndarray]:
    """Return the arrays of a safetensors file by name; raise TextEncoderError if it is none."""
    try:
        return safetensors.numpy.load(data)
    except safetensors.SafetensorError as error:
        raise TextEncoderError(f'the weights are no safetensors file: {error}') from error


def mean_pooled_bert(config: Mapping[str, Any], weights: Mapping[str, np.ndarray]) -> bytes:
    """
    Return the ONNX file of a BERT for any number of texts and tokens.

    config: of transformers' BertModel. weights: its state by name; of any float type, computed
    in float32. The graph takes int64 input_ids and attention_mask [texts, tokens] and returns
    float32 text_embedding [texts, D]: the mean of the last states over the mask, at unit length.
    Raises TextEncoderError where the configuration is another network's, or where the weights
    are not those of the configuration.
    """
    _check_config(config)
    graph = _Graph(_checked(config, weights))
    states = graph.embed(config)
    bias = graph.padding_bias()
    for index in range(config['num_hidden_layers']):
        states = graph.layer(f'encoder.layer.{index}', states, bias, config)
    graph.pool(states)
    model = helper.make_model(
        graph.graph(config['hidden_size']), ir_version=IR_VERSION, producer_name='owseg_ros',
        opset_imports=[helper.make_opsetid('', OPSET)])
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _check_config(config: Mapping[str, Any]) -> None:
    for key in ('vocab_size', 'hidden_size', 'num_hidden_layers', 'num_attention_heads',
                'intermediate_size', 'max_position_embeddings'):
        # bool is an int in Python, and no size.
        if type(config.get(key)) is not int or config[key] < 1:
            raise TextEncoderError(f'the configuration of the BERT has no whole number {key}')
    for key, value in _ONLY.items():
        if config.get(key, value) != value:
            raise TextEncoderError(f'{key} of the BERT is {config[key]!r}; only {value!r} is '
                                   'written as ONNX')
    if config['hidden_size'] % config['num_attention_heads']:
        raise TextEncoderError('hidden_size of the BERT is no multiple of num_attention_heads')


def weight_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Return the shape of each weight of a BERT by its name; config: as for mean_pooled_bert."""
    hidden, inner = config['hidden_size'], config['intermediate_size']
    shapes: dict[str, tuple[int, ...]] = {
        'embeddings.word_embeddings.weight': (config['vocab_size'], hidden),
        'embeddings.position_embeddings.weight': (config['max_position_embeddings'], hidden),
        'embeddings.token_type_embeddings.weight': (config.get('type_vocab_size', 2), hidden)}
    norms, linear = ['embeddings.LayerNorm'], {}
    for index in range(config['num_hidden_layers']):
        layer = f'encoder.layer.{index}'
        norms += [f'{layer}.attention.output.LayerNorm', f'{layer}.output.LayerNorm']
        for name in ('self.query', 'self.key', 'self.value', 'output.dense'):
            linear[f'{layer}.attention.{name}'] = (hidden, hidden)
        linear[f'{layer}.intermediate.dense'] = (inner, hidden)
        linear[f'{layer}.output.dense'] = (hidden, inner)
    for name in norms:
        shapes[f'{name}.weight'] = shapes[f'{name}.bias'] = (hidden,)
    for name, shape in linear.items():
        shapes[f'{name}.weight'], shapes[f'{name}.bias'] = shape, shape[:1]
    return shapes


def _checked(config: Mapping[str, Any], weights: Mapping[str, np.ndarray],
             ) -> dict[str, np.ndarray]:
    shapes = weight_shapes(config)
    missing = sorted(shapes.keys() - weights.keys())
    unknown = sorted(weights.keys() - shapes.keys() - {*UNUSED})
    if missing or unknown:
        raise TextEncoderError(f'the weights do not fit the configuration of the BERT: missing '
                               f'{", ".join(missing) or "none"}, unknown '
                               f'{", ".join(unknown) or "none"}')
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise TextEncoderError(f'the weights do not fit the configuration of the BERT: '
                                   f'{name} is {weights[name].shape}, expected {shape}')
    return {name: np.asarray(weights[name], np.float32) for name in shapes}


class _Graph:
    """Collects nodes and constants; each method returns the name of its result."""

    def __init__(self, weights: Mapping[str, np.ndarray]) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {}

    def graph(self, dim: int) -> onnx.GraphProto:
        inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, ['texts', 'tokens'])
                  for name in (TOKENS, MASK)]
        output = helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ['texts', dim])
        return helper.make_graph(self._nodes, 'mean_pooled_bert', inputs, [output],
                                 list(self._constants.values()))

    def embed(self, config: Mapping[str, Any]) -> str:
        words = self._add('Gather', self._weight('embeddings.word_embeddings.weight'), TOKENS)
        # Every token is of the first type; one table serves both.
        places = self._constant('places', (
            self._weights['embeddings.position_embeddings.weight']
            + self._weights['embeddings.token_type_embeddings.weight'][0]))
        count = self._add('Shape', TOKENS, start=1, end=2)
        used = self._add('Slice', places, self._integers(0), count, self._integers(0))
        return self._norm('embeddings.LayerNorm', self._add('Add', words, used), config)

    def padding_bias(self) -> str:
        """Return what keeps attention off the padding, float32 [texts, 1, 1, tokens]."""
        kept = self._add('Cast', MASK, to=TensorProto.FLOAT)
        padding = self._add('Sub', self._number('one', 1), kept)
        bias = self._add('Mul', padding, self._number('lowest', np.finfo(np.float32).min))
        return self._add('Unsqueeze', bias, self._integers(1, 2))

    def layer(self, name: str, states: str, bias: str, config: Mapping[str, Any]) -> str:
        heads = config['num_attention_heads']
        size = config['hidden_size'] // heads

        def split(part: str, order: tuple[int, ...]) -> str:
            flat = self._linear(f'{name}.attention.self.{part}', states)
            return self._add('Transpose', self._add('Reshape', flat, self._integers(
                0, 0, heads, size)), perm=order)

        query, key = split('query', (0, 2, 1, 3)), split('key', (0, 2, 3, 1))
        likeness = self._add('Mul', self._add('MatMul', query, key),
                             self._number('scale', 1 / math.sqrt(size)))
        attention = self._add('Softmax', self._add('Add', likeness, bias), axis=-1)
        mixed = self._add('MatMul', attention, split('value', (0, 2, 1, 3)))
        joined = self._add('Reshape', self._add('Transpose', mixed, perm=(0, 2, 1, 3)),
                           self._integers(0, 0, heads * size))
        states = self._norm(f'{name}.attention.output.LayerNorm', self._add(
            'Add', self._linear(f'{name}.attention.output.dense', joined), states), config)
        inner = self._gelu(self._linear(f'{name}.intermediate.dense', states))
        return self._norm(f'{name}.output.LayerNorm', self._add(
            'Add', self._linear(f'{name}.output.dense', inner), states), config)

    def pool(self, states: str) -> None:
        kept = self._add('Unsqueeze', self._add('Cast', MASK, to=TensorProto.FLOAT),
                         self._integers(2))
        total = self._add('ReduceSum', self._add('Mul', states, kept), self._integers(1),
                          keepdims=0)
        mean = self._add('Div', total, self._add('ReduceSum', kept, self._integers(1),
                                                 keepdims=0))
        length = self._add('ReduceL2', mean, self._integers(1), keepdims=1)
        self._nodes.append(helper.make_node('Div', [mean, length], [OUTPUT]))

    def _gelu(self, values: str) -> str:
        """Return x (1 + erf(x / sqrt 2)) / 2."""
        erf = self._add('Erf', self._add('Div', values, self._number('sqrt_2', math.sqrt(2))))
        return self._add('Mul', self._add('Mul', values, self._number('half', 0.5)),
                         self._add('Add', erf, self._number('one', 1)))

    def _linear(self, name: str, values: str) -> str:
        matrix = self._constant(f'{name}.weight', self._weights[f'{name}.weight'].T)
        return self._add('Add', self._add('MatMul', values, matrix),
                         self._weight(f'{name}.bias'))

    def _norm(self, name: str, values: str, config: Mapping[str, Any]) -> str:
        return self._add('LayerNormalization', values, self._weight(f'{name}.weight'),
                         self._weight(f'{name}.bias'), axis=-1,
                         epsilon=float(config.get('layer_norm_eps', 1e-12)))

    def _weight(self, name: str) -> str:
        return self._constant(name, self._weights[name])

    def _number(self, name: str, value: float) -> str:
        return self._constant(name, np.array(value, np.float32))

    def _integers(self, *values: int) -> str:
        return self._constant('_'.join(map(str, ('integers', *values))),
                              np.array(values, np.int64))

    def _constant(self, name: str, values: np.ndarray) -> str:
        if name not in self._constants:
            self._constants[name] = numpy_helper.from_array(values, name)
        return name

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        result = f'{operator}_{len(self._nodes)}'
        self._nodes.append(helper.make_node(operator, inputs, [result], result, **attributes))
        return result
