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
"""A small data set in CamVid's layout, and a recipe to train on it in seconds."""

import json

import cv2
import numpy as np
from owseg_training.config import config_from_dict

CLASSES = [{'id': i, 'name': n, 'colour': [i, 0, 0]} for i, n in enumerate('abc')]
COLORS = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]], np.uint8)


def write_camvid(root, frames=6, names='abc'):
    """
    Write a small set in CamVid's layout: coloured blocks whose colour is their class.

    names: of the classes, four at most.
    """
    classes = [{'id': i, 'name': name, 'colour': [i, 0, 0]} for i, name in enumerate(names)]
    folder = root / 'camvid'
    (folder / 'images').mkdir(parents=True)
    (folder / 'labels').mkdir()
    (folder / 'classes.json').write_text(json.dumps({'classes': classes}))
    rng = np.random.default_rng(0)
    pictures = [f'f{i}' for i in range(frames)]
    for name in pictures:
        label = np.kron(rng.integers(0, len(names), (3, 4)), np.ones((24, 24))).astype(np.uint8)
        noise = rng.integers(0, 30, (*label.shape, 3))
        image = (COLORS[label] + noise).astype(np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{name}.jpg'), image[..., ::-1])
        cv2.imwrite(str(folder / 'labels' / f'{name}.png'), label)
    for split in ('train', 'val'):
        (folder / f'{split}.txt').write_text('\n'.join(f'{n}.png' for n in pictures))
    return root


def tiny_config(root, iterations=6):
    return config_from_dict({
        'name': 'tiny',
        'network': {'backbone': 'mobilenetv2_100_e1', 'hidden_dim': 32, 'mask_dim': 32,
                    'queries': 6, 'attention_strides': [16], 'heads': 4,
                    'feedforward_dim': 64},
        'loss': {'points': 128, 'pixel_weight': 1.0},
        'data': {'root': str(root), 'size': [96, 64], 'workers': 0},
        'optimizer': {'iterations': iterations, 'batch_size': 2, 'lr': 0.001, 'clip_norm': 1.0,
                      'ema_decay': 0.9}})
