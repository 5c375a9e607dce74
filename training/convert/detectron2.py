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
"""Checkpoints in the key layout of detectron2: RbA and Mask2Former."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
import re
from typing import Any

from owseg_training.config import NetworkConfig
from owseg_training.convert.settings import ConvertError, Settings
from owseg_training.convert.weights import (
    build, fill, renamed, RESNETS, Rules, Shapes, STRIDES)
from owseg_training.network import MaskClassifier
from owseg_training.weights import state_tensors
import torch
import yaml

FEATURES = {'res5': 32, 'res4': 16, 'res3': 8, 'res2': 4}
_LEVEL = {'4': '1', '8': '2', '16': '3'}
_HEAD = 'sem_seg_head.pixel_decoder.'
_PREDICTOR = 'sem_seg_head.predictor.'
_RULES: Rules = (
    (r'backbone\.model\.conv1\.', 'backbone.stem.conv1.'),
    (r'backbone\.model\.bn1\.', 'backbone.stem.conv1.norm.'),
    (r'backbone\.model\.layer(\d)\.(\d+)\.(conv|bn)(\d)\.',
     lambda m: (f'backbone.res{int(m[1]) + 1}.{m[2]}.conv{m[4]}.'
                + ('norm.' if m[3] == 'bn' else ''))),
    (r'backbone\.model\.layer(\d)\.(\d+)\.downsample\.(\d)\.',
     lambda m: (f'backbone.res{int(m[1]) + 1}.{m[2]}.shortcut.'
                + ('norm.' if m[3] == '1' else ''))),
    (r'pixel_decoder\.input_projections\.', _HEAD + 'input_proj.'),
    (r'pixel_decoder\.level_embed', _HEAD + 'transformer.level_embed'),
    (r'pixel_decoder\.encoder\.(\d+)\.attention\.',
     _HEAD + r'transformer.encoder.layers.\1.self_attn.'),
    (r'pixel_decoder\.encoder\.(\d+)\.attention_norm\.',
     _HEAD + r'transformer.encoder.layers.\1.norm1.'),
    (r'pixel_decoder\.encoder\.(\d+)\.feedforward_norm\.',
     _HEAD + r'transformer.encoder.layers.\1.norm2.'),
    (r'pixel_decoder\.encoder\.', _HEAD + 'transformer.encoder.layers.'),
    (r'pixel_decoder\.(lateral|output)\.(\d+)\.(\d)\.',
     lambda m: (_HEAD + {'lateral': 'adapter_', 'output': 'layer_'}[m[1]] + _LEVEL[m[2]] + '.'
                + ('norm.' if m[3] == '1' else ''))),
    (r'pixel_decoder\.mask_features\.', _HEAD + 'mask_features.'),
    (r'transformer_decoder\.layers\.(\d+)\.cross_attention\.',
     _PREDICTOR + r'transformer_cross_attention_layers.\1.multihead_attn.'),
    (r'transformer_decoder\.layers\.(\d+)\.cross_norm\.',
     _PREDICTOR + r'transformer_cross_attention_layers.\1.norm.'),
    (r'transformer_decoder\.layers\.(\d+)\.self_attention\.',
     _PREDICTOR + r'transformer_self_attention_layers.\1.self_attn.'),
    (r'transformer_decoder\.layers\.(\d+)\.self_norm\.',
     _PREDICTOR + r'transformer_self_attention_layers.\1.norm.'),
    (r'transformer_decoder\.layers\.(\d+)\.feedforward_norm\.',
     _PREDICTOR + r'transformer_ffn_layers.\1.norm.'),
    (r'transformer_decoder\.layers\.', _PREDICTOR + 'transformer_ffn_layers.'),
    (r'transformer_decoder\.mask_embed\.(\d)\.',
     lambda m: f'{_PREDICTOR}mask_embed.layers.{int(m[1]) // 2}.'),
    (r'transformer_decoder\.', _PREDICTOR),
)
# What carries no weight of the network: the loss's class weights, constants of the
# preprocessing, indices that follow from the window, counters.
# The official code has 1024 for encoder_feedforward_dim, whatever its configuration says.
_DECODERS = {
    'feature_size': 'MODEL.SEM_SEG_HEAD.CONVS_DIM',
    'hidden_dim': 'MODEL.MASK_FORMER.HIDDEN_DIM',
    'decoder_layers': 'MODEL.MASK_FORMER.DEC_LAYERS',
    'encoder_layers': 'MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS',
    'mask_dim': 'MODEL.SEM_SEG_HEAD.MASK_DIM',
    'feedforward_dim': 'MODEL.MASK_FORMER.DIM_FEEDFORWARD',
    'queries': 'MODEL.MASK_FORMER.NUM_OBJECT_QUERIES',
    'heads': 'MODEL.MASK_FORMER.NHEADS'}
_NO_WEIGHT = re.compile(r'^criterion\.empty_weight$|^pixel_(mean|std)$|'
                        r'\.(relative_position_index|attn_mask|num_batches_tracked)$')


def _sources(key: str) -> tuple[str, ...]:
    return (renamed(key, _RULES),)


def _present_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring old key layouts to the present one and drop what is no weight of the network."""
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if _NO_WEIGHT.search(key):
            continue
        name = key.replace('predictor.static_query', 'predictor.query_feat')
        name = re.sub(r'^sem_seg_head\.(?!pixel_decoder\.|predictor\.)', _HEAD, name)
        name = re.sub(r'^sem_seg_head\.(pixel_decoder\.)+', _HEAD, name)
        if name in result:
            raise ConvertError(f'the checkpoint has {name} twice, once as {key}')
        result[name] = value
    return result


def _backbone(shapes: Shapes) -> dict[str, Any]:
    settings = shapes.settings
    swin = shapes.side('backbone.patch_embed.proj.weight') is not None
    name = settings.get('MODEL.BACKBONE.NAME',
                        'D2SwinTransformer' if swin else 'build_resnet_backbone')
    if name == 'D2SwinTransformer':
        settings.require(MODEL__SWIN__PATCH_SIZE=4, MODEL__SWIN__APE=False,
                         MODEL__SWIN__PATCH_NORM=True, MODEL__SWIN__QK_SCALE=None)
        return shapes.swin(
            'MODEL.SWIN.',
            {'embed_dim': 'EMBED_DIM', 'depths': 'DEPTHS', 'heads': 'NUM_HEADS',
             'window': 'WINDOW_SIZE', 'mlp_ratio': 'MLP_RATIO', 'qkv_bias': 'QKV_BIAS',
             'drop_path': 'DROP_PATH_RATE'},
            {'embed_dim': 96, 'depths': [2, 2, 6, 2], 'heads': [3, 6, 12, 24], 'window': 7,
             'mlp_ratio': 4.0, 'qkv_bias': True, 'drop_path': 0.3})
    if name == 'build_resnet_backbone':
        settings.require(
            MODEL__RESNETS__DEPTH=(18, 34, 50, 101, 152), MODEL__RESNETS__STEM_TYPE='basic',
            MODEL__RESNETS__NUM_GROUPS=1, MODEL__RESNETS__WIDTH_PER_GROUP=64,
            MODEL__RESNETS__RES4_DILATION=1, MODEL__RESNETS__RES5_DILATION=1,
            MODEL__RESNETS__NORM=('FrozenBN', 'BN', 'SyncBN'))
        if any(settings.get('MODEL.RESNETS.DEFORM_ON_PER_STAGE', [])):
            raise ConvertError('detectron2 MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable '
                               'convolutions cannot be converted')
        depth = shapes.number('MODEL.RESNETS.DEPTH', RESNETS.get(shapes.resnet_blocks()),
                              'backbone.model.layer3.0.conv1.weight', 50)
        caffe = depth >= 50 and settings.get('MODEL.RESNETS.STRIDE_IN_1X1', False)
        return {'backbone': f'resnet{depth}' + ('_caffe' if caffe else '')}
    raise ConvertError(f'detectron2 MODEL.BACKBONE.NAME is {name!r}; D2SwinTransformer and '
                       'build_resnet_backbone can be converted')


def _encoder_strides(shapes: Shapes) -> list[int]:
    key = 'MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES'
    count = shapes.side('pixel_decoder.level_embed')
    found = None if count is None else list(FEATURES)[:count]
    named = shapes.settings.get(key, ['res5', 'res4', 'res3'] if found is None else found)
    if not set(named) <= set(FEATURES):
        raise ConvertError(f'detectron2 {key} is {named}; known: {list(FEATURES)}')
    strides = sorted((FEATURES[name] for name in named), reverse=True)
    if strides != list(STRIDES[:len(strides)]):
        raise ConvertError(f'detectron2 {key} is {named}, which are not the coarsest features')
    shapes.number(key, None if count is None or count == len(named) else found,
                  'pixel_decoder.level_embed', [])
    return strides


def from_detectron2(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> MaskClassifier:
    """
    Make the network of an RbA or Mask2Former checkpoint.

    state_dict: detectron2 key layout, of tensors or arrays, of any floating type; with or without
    the outer `model` and `_metadata`.  config: the detectron2 configuration as nested dicts,
    values also as texts; what it leaves out is read from the shapes.  Both Swin and ResNet, 1 to
    3 encoder levels, any number of layers, queries and classes.  The network is in evaluation
    mode and takes RGB normalised with the configuration's PIXEL_MEAN and PIXEL_STD, also where
    INPUT.FORMAT is BGR.

    Raises ConvertError for parts that the network does not have (pre-norm, another pixel decoder,
    ...), when the configuration contradicts the shapes, which names the keys of both, and when
    keys or shapes do not fit; it lists them all.
    """
    try:
        state = _present_names(state_tensors(state_dict))
    except ValueError as error:
        raise ConvertError(str(error)) from error
    settings = Settings(config, 'detectron2')
    settings.require(
        MODEL__META_ARCHITECTURE='MaskFormer', MODEL__SEM_SEG_HEAD__NAME='MaskFormerHead',
        MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME='MSDeformAttnPixelDecoder',
        MODEL__SEM_SEG_HEAD__NORM='GN', MODEL__SEM_SEG_HEAD__COMMON_STRIDE=4,
        MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME='MultiScaleMaskedTransformerDecoder',
        MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE='multi_scale_pixel_decoder',
        MODEL__MASK_FORMER__PRE_NORM=False, MODEL__MASK_FORMER__ENFORCE_INPUT_PROJ=False)
    for key in ('MODEL.SEM_SEG_HEAD.IN_FEATURES', 'MODEL.SWIN.OUT_FEATURES'):
        features = settings.get(key, list(FEATURES))
        if sorted(features) != sorted(FEATURES):
            raise ConvertError(f'detectron2 {key} is {features}; all of '
                               f'{sorted(FEATURES)} are needed')
    shapes = Shapes(state, _sources, settings)
    backbone, strides = _backbone(shapes), _encoder_strides(shapes)
    class_embed = 'transformer_decoder.class_embed.weight'
    rows = shapes.side(class_embed)
    num_classes = shapes.number('MODEL.SEM_SEG_HEAD.NUM_CLASSES', rows and rows - 1,
                                class_embed, 19)
    network = build(NetworkConfig(**backbone, **shapes.decoders(_DECODERS, strides)), num_classes)
    fill(network, state, _sources, 'the detectron2 checkpoint')
    if settings.get('INPUT.FORMAT', 'RGB') == 'BGR':
        first = (network.backbone.patch_embed.proj if hasattr(network.backbone, 'patch_embed')
                 else network.backbone.model.conv1)
        with torch.no_grad():
            first.weight.copy_(first.weight.flip(1))
    return network.eval()


class _Loader(yaml.SafeLoader):
    """Plain YAML; what would run code (Mask2Former's lists of training sizes) becomes None."""


_Loader.add_multi_constructor('tag:yaml.org,2002:python/', lambda loader, suffix, node: None)
_Loader.add_constructor('tag:yaml.org,2002:python/tuple', yaml.SafeLoader.construct_sequence)


def read_detectron2_config(path: str | Path) -> dict[str, Any]:
    """
    Read a detectron2 YAML file and the files that it names as `_BASE_`.

    Raises ConvertError when a file is no mapping, FileNotFoundError when one is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no configuration {path}')
    try:
        values = yaml.load(path.read_text('utf-8'), _Loader)
    except yaml.YAMLError as error:
        raise ConvertError(f'{path} is no YAML: {error}') from error
    if not isinstance(values, dict):
        raise ConvertError(f'{path} holds no mapping')

    def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
        return {**base, **{
            key: merged(base[key], value)
            if isinstance(value, dict) and isinstance(base.get(key), dict) else value
            for key, value in over.items()}}

    base = values.pop('_BASE_', None)
    return merged(read_detectron2_config(path.parent / base), values) if base else values
