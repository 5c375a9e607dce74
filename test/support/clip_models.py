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
"""Small open_clip models with random weights: a ConvNeXt and a ModifiedResNet."""

import json

from owseg_training.config import config_from_dict
from owseg_training.open_clip_models import import_open_clip, OpenClipError
import pytest
from support.camvid import tiny_config
import torch

DIM = 24
MODELS = ('tiny-convnext', 'tiny-resnet')
TEXT = {'context_length': 24, 'vocab_size': 49408, 'width': 32, 'heads': 2, 'layers': 1}
VISION = {
    'tiny-convnext': {'timm_model_name': 'convnext_atto', 'timm_model_pretrained': False,
                      'timm_pool': '', 'timm_proj': 'linear', 'image_size': 64},
    'tiny-resnet': {'layers': [1, 1, 1, 1], 'width': 8, 'patch_size': None, 'image_size': 64}}


def write_clip_models(folder):
    """Let open_clip know the models; return a checkpoint of each, model name -> file."""
    try:
        open_clip = import_open_clip()
    except OpenClipError as error:
        pytest.skip(str(error))
    weights = {}
    for seed, name in enumerate(MODELS):
        (folder / f'{name}.json').write_text(json.dumps(
            {'embed_dim': DIM, 'vision_cfg': VISION[name], 'text_cfg': TEXT}))
        open_clip.add_model_config(folder / f'{name}.json')
        torch.manual_seed(seed)
        model = open_clip.create_model(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                # Where random weights start as nothing, blocks would be the identity, and
                # CLIP's head would make nothing of an empty region.
                if key.endswith(('bn3.weight', '.gamma')):
                    parameter.fill_(0.5)
                elif key.endswith('head.norm.bias'):
                    parameter.normal_()
            for key, buffer in model.named_buffers():
                # Of features of random convolutions, so that depth does not wear them out.
                if key.endswith('running_var'):
                    buffer.fill_(0.2)
        weights[name] = folder / f'{name}.pt'
        torch.save(model.state_dict(), weights[name])
    return weights


def clip_config(root, model, weights, iterations=2):
    """Return a recipe that trains a small mask classifier on a frozen model."""
    values = tiny_config(root, iterations).to_dict()
    values['network'] |= {
        'backbone': 'open_clip', 'backbone_options': {'model': model},
        'pretrained': None if weights is None else str(weights), 'pixel_classifier': False,
        'region_head': 'frozen_clip', 'region_dim': DIM, 'region_hidden_dim': 32}
    values['loss']['pixel_weight'] = 0.0
    return config_from_dict(values)
