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
A small bundle with a real ONNX network that behaves predictably.

The network has three classes: query 0 masks red regions and is of class 0 (red), query 1 green,
query 2 blue; the other queries mask the whole image and say no-object.  So a region painted in
pure red, green or blue gets its id with an anomaly score of about 1 - tanh(1) = 0.24, and a
black, grey, white, yellow, cyan or magenta region is claimed by no query: its score is about 1.
The default threshold lies between.

With a text encoder the network has region embeddings too, which follow the colours: a region of
one corner of the colour cube (COLOR_NAMES) has the embedding of its name, other colours a blend.

With a metric head the embeddings of regions tell colours apart: the cosine of two regions of one
corner is 1, of two corners 0.06, of a corner and the grey of ``paint`` 0.24.
"""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any, Callable, Optional

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
from owseg_ros.bundle import Bundle, MANIFEST, sha256_of, write_bundle
from owseg_ros.language.contract import TextEncoder
import yaml

CLASS_NAMES = ('red', 'green', 'blue')
CLASS_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
# The corners of the colour cube; blue is the lowest bit of the index, red the highest.
COLOR_NAMES = ('black', 'blue', 'green', 'cyan', 'red', 'magenta', 'yellow', 'white')
TEXT_STRIDE = 8
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
LOGIT = 12.0
THRESHOLD = 0.5
KNOWN_SCORE = 1.0 - float(np.tanh(1.0))
UNKNOWN_SCORE = 1.0
STRIDE = 4
FEATURES = 4
METRIC_DIM = len(COLOR_NAMES) + 1
NO_CORNER = 0.25
METRIC_THRESHOLD = 0.8
_WORK_CHANNELS = 32


def paint(width: int, height: int, left=(255, 0, 0), right=(128, 128, 128)) -> np.ndarray:
    """Return an RGB image uint8 [height, width, 3] of two halves."""
    image = np.empty((height, width, 3), np.uint8)
    image[:, :width // 2] = left
    image[:, width // 2:] = right
    return image


def tiny_network(
    *,
    width: int = 96,
    height: int = 64,
    num_queries: int = 8,
    color_embeddings: Optional[np.ndarray] = None,
    work: int = 0,
    seed: int = 0,
) -> bytes:
    """
    Return the ONNX network as bytes.

    Input ``image`` float32 [batch, 3, height, width], normalised with MEAN and STD.  Outputs
    ``mask_logits`` [batch, N, height / 4, width / 4], ``class_logits`` [batch, N, 4],
    ``pixel_features`` [batch, 4, height / 4, width / 4] (R, G, B in 0..1 and their mean) and,
    with color_embeddings float32 [8, D] of COLOR_NAMES, ``region_embeddings`` [batch, N, D] of
    unit length and ``text_features`` [batch, D, height / 8, width / 8], whose mean under the
    masks the former are.
    Each unit of ``work`` adds a 3x3 convolution of 32 channels at input size (about
    0.1 GFLOP at 96x64) whose result reaches the mask logits with a factor of zero.
    """
    if width % STRIDE or height % STRIDE:
        raise ValueError('width and height must be multiples of 4')
    if num_queries < len(CLASS_NAMES):
        raise ValueError(f'num_queries must be at least {len(CLASS_NAMES)}')
    count, classes = num_queries, len(CLASS_NAMES)
    masks_weight = np.zeros((count, 3, 1, 1), np.float32)
    masks_bias = np.full(count, LOGIT, np.float32)
    class_logits = np.zeros((1, count, classes + 1), np.float32)
    class_logits[:, :, classes] = LOGIT
    for k in range(classes):
        # A pure colour gives +LOGIT; grey, black, white and mixtures of two give -LOGIT or less.
        masks_weight[k, :, 0, 0] = -2 * LOGIT
        masks_weight[k, k, 0, 0] = 2 * LOGIT
        masks_bias[k] = -LOGIT
        class_logits[0, k] = 0.0
        class_logits[0, k, k] = LOGIT
    features_weight = np.zeros((FEATURES, 3, 1, 1), np.float32)
    features_weight[:3, :, 0, 0] = np.eye(3)
    features_weight[3, :, 0, 0] = 1.0 / 3.0
    constants = {
        'scale': (np.array(STD) / 255.0).reshape(1, 3, 1, 1).astype(np.float32),
        'shift': (np.array(MEAN) / 255.0).reshape(1, 3, 1, 1).astype(np.float32),
        'masks_weight': masks_weight,
        'masks_bias': masks_bias,
        'features_weight': features_weight,
        'class_table': class_logits,
        'class_shape': np.array([count, classes + 1], np.int64),
        'zero': np.array([0], np.int64),
        'one': np.array([1], np.int64),
    }
    nodes = [
        helper.make_node('Mul', ['image', 'scale'], ['scaled']),
        helper.make_node('Add', ['scaled', 'shift'], ['rgb']),
        helper.make_node('AveragePool', ['rgb'], ['pooled'],
                         kernel_shape=[STRIDE, STRIDE], strides=[STRIDE, STRIDE]),
        helper.make_node('Conv', ['pooled', 'features_weight'], ['pixel_features']),
        helper.make_node('Shape', ['image'], ['image_shape']),
        helper.make_node('Slice', ['image_shape', 'zero', 'one'], ['batch_size']),
        helper.make_node('Concat', ['batch_size', 'class_shape'], ['class_target'], axis=0),
        helper.make_node('Expand', ['class_table', 'class_target'], ['class_logits']),
    ]
    masks_input = 'pooled'
    if work:
        nodes += _work_nodes(work, constants, np.random.default_rng(seed))
        masks_input = 'pooled_after_work'
    nodes.append(helper.make_node(
        'Conv', [masks_input, 'masks_weight', 'masks_bias'], ['mask_logits']))
    small = [height // STRIDE, width // STRIDE]
    outputs = {
        'mask_logits': ['batch', count, *small],
        'class_logits': ['batch', count, classes + 1],
        'pixel_features': ['batch', FEATURES, *small],
    }
    if color_embeddings is not None:
        if width % TEXT_STRIDE or height % TEXT_STRIDE:
            raise ValueError('width and height must be multiples of 8')
        dim = color_embeddings.shape[1]
        nodes += _embedding_nodes(color_embeddings, constants)
        outputs['region_embeddings'] = ['batch', count, dim]
        outputs['text_features'] = ['batch', dim, height // TEXT_STRIDE, width // TEXT_STRIDE]
    graph = helper.make_graph(
        nodes, 'tiny',
        [helper.make_tensor_value_info('image', TensorProto.FLOAT, ['batch', 3, height, width])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
         for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()])
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid('', 17)], producer_name='tiny')
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def _embedding_nodes(embeddings: np.ndarray, constants: dict[str, np.ndarray]) -> list:
    """Return the nodes that blend the embeddings of the corners as the colours are blended."""
    constants['cube'] = np.float32(1)
    constants['embeddings'] = embeddings.T.reshape(*embeddings.T.shape, 1, 1).astype(np.float32)
    constants['flat'] = np.array([0, 0, -1], np.int64)
    nodes = [
        helper.make_node('AveragePool', ['rgb'], ['text_rgb'],
                         kernel_shape=[TEXT_STRIDE] * 2, strides=[TEXT_STRIDE] * 2),
        helper.make_node('Sub', ['cube', 'text_rgb'], ['inverse']),
        # Channels 0 to 2: how much of R, G, B is missing; 3 to 5: how much there is.
        helper.make_node('Concat', ['inverse', 'text_rgb'], ['shares'], axis=1),
    ]
    for channel, name in enumerate('rgb'):
        constants[f'corners_{name}'] = np.array(
            [channel + 3 * (corner >> (2 - channel) & 1) for corner in range(8)], np.int64)
        nodes.append(helper.make_node(
            'Gather', ['shares', f'corners_{name}'], [f'share_{name}'], axis=1))
    half = TEXT_STRIDE // STRIDE
    return nodes + [
        helper.make_node('Mul', ['share_r', 'share_g'], ['share_rg']),
        helper.make_node('Mul', ['share_rg', 'share_b'], ['corners']),
        helper.make_node('Conv', ['corners', 'embeddings'], ['text_features']),
        helper.make_node('Sigmoid', ['mask_logits'], ['masks']),
        helper.make_node('AveragePool', ['masks'], ['small_masks'],
                         kernel_shape=[half] * 2, strides=[half] * 2),
        helper.make_node('Reshape', ['small_masks', 'flat'], ['flat_masks']),
        helper.make_node('Reshape', ['text_features', 'flat'], ['flat_features']),
        helper.make_node('Transpose', ['flat_features'], ['pixel_embeddings'], perm=[0, 2, 1]),
        helper.make_node('MatMul', ['flat_masks', 'pixel_embeddings'], ['sums']),
        helper.make_node('LpNormalization', ['sums'], ['region_embeddings'], axis=2, p=2),
    ]


def _work_nodes(work: int, constants: dict[str, np.ndarray], random) -> list:
    channels = _WORK_CHANNELS
    constants['work_in'] = (random.normal(size=(channels, 3, 1, 1)) / 3).astype(np.float32)
    constants['work_weight'] = (
        random.normal(size=(channels, channels, 3, 3)) / (3 * channels ** 0.5)).astype(np.float32)
    constants['nothing'] = np.zeros((), np.float32)
    nodes = [helper.make_node('Conv', ['rgb', 'work_in'], ['work_0'])]
    for index in range(work):
        nodes += [
            helper.make_node('Conv', [f'work_{index}', 'work_weight'], [f'conv_{index}'],
                             pads=[1, 1, 1, 1]),
            helper.make_node('Tanh', [f'conv_{index}'], [f'work_{index + 1}']),
        ]
    return nodes + [
        helper.make_node('ReduceMean', [f'work_{work}'], ['work_mean'],
                         axes=[1, 2, 3], keepdims=1),
        helper.make_node('Mul', ['work_mean', 'nothing'], ['work_nothing']),
        helper.make_node('Add', ['pooled', 'work_nothing'], ['pooled_after_work']),
    ]


def tiny_language(encoder: TextEncoder) -> dict[str, Any]:
    """Return the section language: all colours compete with a query."""
    return {'space': encoder.space, 'dim': encoder.dim, 'temperature': 0.05,
            'background': [[name] for name in COLOR_NAMES],
            'same_meaning': {'cosine': 0.9, 'scale': 0.02, 'margin': 0.1},
            'objectness': 1.0, 'threshold': 0.5,
            'operating_point': 'between a colour that is there and one that is not',
            'ensemble': None}


def tiny_metric_head() -> bytes:
    """
    Return an ONNX file from the mean features float32 [R, 4] to embeddings float32 [R, 9].

    Component c is how near the colour is to the corner COLOR_NAMES[c], 1 there and 0 at its
    neighbours; the last is NO_CORNER. Then all is made unit length.
    """
    corners = np.array([[corner >> 2 & 1, corner >> 1 & 1, corner & 1] for corner in range(8)])
    signs = (2.0 * corners - 1.0).T
    weight = np.zeros((FEATURES, METRIC_DIM), np.float32)
    weight[:3, :8] = signs
    # (sum_i sign_i (2 x_i - 1) - 1) / 2
    bias = np.append(-signs.sum(axis=0) / 2.0 - 0.5, NO_CORNER).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node('Gemm', ['features', 'weight', 'bias'], ['corners']),
         helper.make_node('Relu', ['corners'], ['near']),
         helper.make_node('LpNormalization', ['near'], ['embeddings'], axis=1, p=2)],
        'tiny_metric_head',
        [helper.make_tensor_value_info('features', TensorProto.FLOAT, ['regions', FEATURES])],
        [helper.make_tensor_value_info('embeddings', TensorProto.FLOAT, ['regions', METRIC_DIM])],
        [numpy_helper.from_array(weight, 'weight'), numpy_helper.from_array(bias, 'bias')])
    model = helper.make_model(
        graph, ir_version=8, opset_imports=[helper.make_opsetid('', 17)], producer_name='tiny')
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def color_embedding(name: str) -> np.ndarray:
    """Return what the metric head makes of a region in a colour of COLOR_NAMES, float32 [9]."""
    embedding = np.zeros(METRIC_DIM, np.float32)
    embedding[[COLOR_NAMES.index(name), -1]] = 1.0, NO_CORNER
    return embedding / np.linalg.norm(embedding)


def tiny_known_prototypes() -> bytes:
    """Return the npz of the prototypes of red, green and blue."""
    stream = io.BytesIO()
    np.savez(stream, names=np.array(CLASS_NAMES),
             embeddings=np.stack([color_embedding(name) for name in CLASS_NAMES]))
    return stream.getvalue()


def tiny_novelty() -> dict[str, Any]:
    """Return the section novelty."""
    return {'metric_head': 'metric_head.onnx', 'dim': METRIC_DIM,
            'known_prototypes': 'known_prototypes.npz', 'threshold': METRIC_THRESHOLD,
            'operating_point': 'between one colour and two'}


def tiny_manifest(*, width: int = 96, height: int = 64, encoder: Optional[TextEncoder] = None,
                  novelty: bool = False) -> dict[str, Any]:
    """Return the manifest of the tiny bundle, as write_bundle takes it."""
    embeddings = ('region_embeddings', 'text_features') if encoder else ()
    return {
        'name': 'tiny',
        'version': '0.1.0',
        'description': 'Red, green and blue regions; everything else is unknown.',
        'license': 'Apache-2.0',
        'classes': [{'id': index, 'name': name, 'color': list(color)}
                    for index, (name, color) in enumerate(zip(CLASS_NAMES, CLASS_COLORS))],
        'network': {
            'file': 'network.onnx',
            'input': {'name': 'image', 'width': width, 'height': height,
                      'mean': list(MEAN), 'std': list(STD)},
            'outputs': {'mask_logits': 'mask_logits', 'class_logits': 'class_logits',
                        'region_embeddings': None, 'pixel_features': 'pixel_features',
                        **{name: name for name in embeddings}},
        },
        **({'language': tiny_language(encoder)} if encoder else {}),
        **({'novelty': tiny_novelty()} if novelty else {}),
        'anomaly': {'score': 'rba', 'threshold': THRESHOLD,
                    'operating_point': 'between 0.24 (known) and 1.0 (unknown)', 'min_area': 4},
        'provenance': {'made_by': 'test/support/tiny_bundle.py'},
        'figures': {'known_score': KNOWN_SCORE},
    }


def make_tiny_bundle(
    folder: str | os.PathLike,
    *,
    width: int = 96,
    height: int = 64,
    num_queries: int = 8,
    encoder: Optional[TextEncoder] = None,
    novelty: bool = False,
    work: int = 0,
) -> Bundle:
    """
    Write the tiny bundle to ``folder`` and return it; see tiny_network for the parameters.

    encoder: of the texts that its region embeddings are to answer, such as an OnnxTextEncoder
    over make_tiny_text_encoder; None leaves them out. novelty: whether it has a metric head.
    """
    network = tiny_network(width=width, height=height, num_queries=num_queries, work=work,
                           color_embeddings=encoder and encoder.encode(COLOR_NAMES))
    files = {'network.onnx': network, 'MODEL_CARD.md': b'# tiny\n\nA network for tests.\n'}
    if novelty:
        files |= {'metric_head.onnx': tiny_metric_head(),
                  'known_prototypes.npz': tiny_known_prototypes()}
    return write_bundle(
        folder, tiny_manifest(width=width, height=height, encoder=encoder, novelty=novelty), files)


def edit_manifest(
    folder: str | os.PathLike,
    change: Callable[[dict[str, Any]], Any],
    *,
    reseal: bool = False,
) -> None:
    """Apply ``change`` to the manifest in place; ``reseal`` then lists the actual sha256."""
    path = Path(folder) / MANIFEST
    manifest = yaml.safe_load(path.read_text('utf-8'))
    change(manifest)
    if reseal:
        manifest['files'] = {
            name: sha256_of(Path(folder) / name) for name in manifest['files']}
    path.write_text(yaml.safe_dump(manifest, sort_keys=False), 'utf-8')


def flip_byte(path: str | os.PathLike, offset: int, mask: int = 0x01) -> None:
    """Flip bits of one byte of a file, as a bad disk would."""
    with open(path, 'r+b') as stream:
        stream.seek(offset)
        value = stream.read(1)[0]
        stream.seek(offset)
        stream.write(bytes([value ^ mask]))


def truncate(path: str | os.PathLike, size: int) -> None:
    """Cut a file to ``size`` bytes, as a broken download would."""
    os.truncate(path, size)
