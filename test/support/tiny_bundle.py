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
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Callable

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
from owseg_ros.bundle import Bundle, MANIFEST, sha256_of, write_bundle
import yaml

CLASS_NAMES = ('red', 'green', 'blue')
CLASS_COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
LOGIT = 12.0
THRESHOLD = 0.5
KNOWN_SCORE = 1.0 - float(np.tanh(1.0))
UNKNOWN_SCORE = 1.0
STRIDE = 4
FEATURES = 4
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
    embedding_dim: int = 0,
    work: int = 0,
    seed: int = 0,
) -> bytes:
    """
    Return the ONNX network as bytes.

    Input ``image`` float32 [batch, 3, height, width], normalised with MEAN and STD.  Outputs
    ``mask_logits`` [batch, N, height / 4, width / 4], ``class_logits`` [batch, N, 4],
    ``pixel_features`` [batch, 4, height / 4, width / 4] (R, G, B in 0..1 and their mean) and,
    where embedding_dim > 0, ``region_embeddings`` [batch, N, embedding_dim] of unit length.
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
    if embedding_dim:
        table = np.random.default_rng(seed).normal(size=(1, count, embedding_dim))
        table /= np.linalg.norm(table, axis=-1, keepdims=True)
        constants['embedding_table'] = table.astype(np.float32)
        constants['embedding_shape'] = np.array([count, embedding_dim], np.int64)
        nodes += [
            helper.make_node(
                'Concat', ['batch_size', 'embedding_shape'], ['embedding_target'], axis=0),
            helper.make_node(
                'Expand', ['embedding_table', 'embedding_target'], ['region_embeddings']),
        ]
        outputs['region_embeddings'] = ['batch', count, embedding_dim]
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


def tiny_manifest(*, width: int = 96, height: int = 64, embedding_dim: int = 0) -> dict[str, Any]:
    """Return the manifest of the tiny bundle, as write_bundle takes it."""
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
                        'region_embeddings': 'region_embeddings' if embedding_dim else None,
                        'pixel_features': 'pixel_features'},
        },
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
    embedding_dim: int = 0,
    work: int = 0,
) -> Bundle:
    """Write the tiny bundle to ``folder`` and return it; see tiny_network for the parameters."""
    network = tiny_network(width=width, height=height, num_queries=num_queries,
                           embedding_dim=embedding_dim, work=work)
    return write_bundle(
        folder,
        tiny_manifest(width=width, height=height, embedding_dim=embedding_dim),
        {'network.onnx': network, 'MODEL_CARD.md': b'# tiny\n\nA network for tests.\n'})


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
