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
Checkpoints from outside: detectron2 (RbA, Mask2Former), Hugging Face Mask2Former, timm.

Every key of a checkpoint is either used or on the short list of those that carry no weight of
the network (the loss's class weights, indices that follow from the window size, ...); anything
else is an error that lists it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import dataclasses
import json
from pathlib import Path
import re
from typing import Any

from owseg_ros.errors import OwsegError
from owseg_training.config import Config, NetworkConfig
from owseg_training.network import MaskClassifier
from owseg_training.network.backbone import BACKBONES, build_backbone
from owseg_training.weights import read_file, read_weights, state_tensors
from safetensors.torch import save_file
import torch
from torch import nn
import yaml

MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
STRIDES = {'res2': 4, 'res3': 8, 'res4': 16, 'res5': 32}
CITYSCAPES = {
    'road': (128, 64, 128), 'sidewalk': (244, 35, 232), 'building': (70, 70, 70),
    'wall': (102, 102, 156), 'fence': (190, 153, 153), 'pole': (153, 153, 153),
    'traffic light': (250, 170, 30), 'traffic sign': (220, 220, 0),
    'vegetation': (107, 142, 35), 'terrain': (152, 251, 152), 'sky': (70, 130, 180),
    'person': (220, 20, 60), 'rider': (255, 0, 0), 'car': (0, 0, 142), 'truck': (0, 0, 70),
    'bus': (0, 60, 100), 'train': (0, 80, 100), 'motorcycle': (0, 0, 230),
    'bicycle': (119, 11, 32)}


class ConvertError(OwsegError):
    """A checkpoint that cannot be converted; the message lists what does not fit."""


class _Settings:
    """Nested configuration read by dotted keys; numbers and lists as plain types."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        if not isinstance(values, Mapping):
            raise ConvertError(f'the configuration must be a mapping, not '
                               f'{type(values).__name__}')
        self.values = values
        self.where = where

    def get(self, key: str, default: Any) -> Any:
        """Return the value of a dotted key, of the default's type."""
        value: Any = self.values
        for part in key.split('.'):
            if not isinstance(value, Mapping) or part not in value:
                return default
            value = value[part]
        if value is None or default is None:
            return value
        if isinstance(default, list) and isinstance(value, (list, tuple)):
            return list(value)
        if isinstance(default, float) and isinstance(value, int):
            return float(value)
        if not isinstance(value, type(default)):
            raise ConvertError(f'{self.where} {key} is {value!r}, not a '
                               f'{type(default).__name__}')
        return value

    def require(self, **expected: Any) -> None:
        """Raise ConvertError where a key (__ for a dot) is set to something else."""
        for key, only in expected.items():
            key = key.replace('__', '.')
            value = self.get(key, None)
            value = list(value) if isinstance(value, tuple) else value
            allowed = only if isinstance(only, tuple) else (only,)
            if value is not None and value not in allowed:
                raise ConvertError(f'{self.where} {key} is {value!r}; only '
                                   f'{" or ".join(map(repr, allowed))} can be converted')


def _swin(embed_dim: int, depths: Sequence[int], heads: Sequence[int], window: int,
          **options: Any) -> dict[str, Any]:
    """Name a Swin of these numbers; options are only those that differ from the named one's."""
    own = {'embed_dim': embed_dim, 'depths': list(depths), 'heads': list(heads),
           'window': window}
    usual = {'mlp_ratio': 4.0, 'qkv_bias': True, 'drop_path': 0.3}
    options = {key: value for key, value in options.items() if value != usual[key]}
    for name in ('swin_t', 'swin_s', 'swin_b', 'swin_l'):
        named = BACKBONES[name].keywords
        if all((list(named[k]) if isinstance(v, list) else named[k]) == v
               for k, v in own.items()):
            return {'backbone': name, 'backbone_options': options}
    return {'backbone': 'swin_t', 'backbone_options': {**own, **options}}


def _list(title: str, keys: Iterable[str]) -> str:
    keys = list(keys)
    return f'\n{title} ({len(keys)}):\n  ' + '\n  '.join(keys) if keys else ''


def _fill(network: nn.Module, state: dict[str, torch.Tensor],
          sources: Callable[[str], tuple[str, ...]], what: str) -> None:
    """
    Load the network from a foreign state dict.

    sources: the foreign keys of which a key of the network is the concatenation.
    Raises ConvertError that lists missing and left-over keys and other shapes.
    """
    own = {key: value for key, value in network.state_dict().items()
           if not key.endswith('num_batches_tracked')}
    missing, wrong, used, filled = [], [], set(), {}
    for key, value in own.items():
        names = sources(key)
        used.update(names)
        absent = [name for name in names if name not in state]
        missing += absent
        if absent:
            continue
        parts = [state[name] for name in names]
        if len({part.shape[1:] for part in parts}) > 1:
            wrong.append(f'{", ".join(names)}: {[tuple(part.shape) for part in parts]}')
            continue
        whole = torch.cat(parts) if len(parts) > 1 else parts[0]
        if whole.shape != value.shape:
            wrong.append(f'{", ".join(names)}: {tuple(whole.shape)} in the checkpoint, '
                         f'{tuple(value.shape)} by the configuration')
            continue
        filled[key] = whole
    unknown = [key for key in state if key not in used]
    if missing or unknown or wrong:
        raise ConvertError(f'{what} does not fit its configuration'
                           + _list('missing keys', missing) + _list('unknown keys', unknown)
                           + _list('other shapes', wrong))
    network.load_state_dict(filled, strict=False)


def _build(config: NetworkConfig, num_classes: int) -> MaskClassifier:
    try:
        return MaskClassifier(config, num_classes)
    except ValueError as error:
        raise ConvertError(f'the configuration describes no network: {error}') from error


def _rows(state: dict[str, torch.Tensor], key: str, default: int) -> int:
    return state[key].shape[0] if key in state and state[key].ndim else default


# Keys of our network -> keys of detectron2's; the first rule that fits counts.
_LEVEL = {'4': '1', '8': '2', '16': '3'}
_HEAD = 'sem_seg_head.pixel_decoder.'
_PREDICTOR = 'sem_seg_head.predictor.'
_DETECTRON2: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
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


def _detectron2_sources(key: str) -> tuple[str, ...]:
    for pattern, replacement in _DETECTRON2:
        renamed, count = re.subn('^' + pattern, replacement, key)
        if count:
            return (renamed,)
    return (key,)


def _detectron2_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring old key layouts to the present one and drop what is no weight of the network."""
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        if re.search(r'^criterion\.empty_weight$|^pixel_(mean|std)$|'
                     r'\.(relative_position_index|num_batches_tracked)$', key):
            continue
        name = key.replace('predictor.static_query', 'predictor.query_feat')
        name = re.sub(r'^sem_seg_head\.(?!pixel_decoder\.|predictor\.)', _HEAD, name)
        name = re.sub(r'^sem_seg_head\.(pixel_decoder\.)+', _HEAD, name)
        if name in result:
            raise ConvertError(f'the checkpoint has {name} twice, once as {key}')
        result[name] = value
    return result


def _detectron2_backbone(settings: _Settings) -> dict[str, Any]:
    name = settings.get('MODEL.BACKBONE.NAME', 'D2SwinTransformer')
    if name == 'D2SwinTransformer':
        settings.require(MODEL__SWIN__PATCH_SIZE=4, MODEL__SWIN__APE=False,
                         MODEL__SWIN__PATCH_NORM=True, MODEL__SWIN__QK_SCALE=None)
        return _swin(
            settings.get('MODEL.SWIN.EMBED_DIM', 96),
            settings.get('MODEL.SWIN.DEPTHS', [2, 2, 6, 2]),
            settings.get('MODEL.SWIN.NUM_HEADS', [3, 6, 12, 24]),
            settings.get('MODEL.SWIN.WINDOW_SIZE', 7),
            mlp_ratio=settings.get('MODEL.SWIN.MLP_RATIO', 4.0),
            qkv_bias=settings.get('MODEL.SWIN.QKV_BIAS', True),
            drop_path=settings.get('MODEL.SWIN.DROP_PATH_RATE', 0.3))
    if name == 'build_resnet_backbone':
        settings.require(
            MODEL__RESNETS__DEPTH=(18, 34, 50, 101, 152), MODEL__RESNETS__STEM_TYPE='basic',
            MODEL__RESNETS__NUM_GROUPS=1, MODEL__RESNETS__WIDTH_PER_GROUP=64,
            MODEL__RESNETS__RES4_DILATION=1, MODEL__RESNETS__RES5_DILATION=1,
            MODEL__RESNETS__NORM=('FrozenBN', 'BN', 'SyncBN'))
        if any(settings.get('MODEL.RESNETS.DEFORM_ON_PER_STAGE', [])):
            raise ConvertError('detectron2 MODEL.RESNETS.DEFORM_ON_PER_STAGE: deformable '
                               'convolutions cannot be converted')
        depth = settings.get('MODEL.RESNETS.DEPTH', 50)
        caffe = depth >= 50 and settings.get('MODEL.RESNETS.STRIDE_IN_1X1', False)
        return {'backbone': f'resnet{depth}' + ('_caffe' if caffe else '')}
    raise ConvertError(f'detectron2 MODEL.BACKBONE.NAME is {name!r}; D2SwinTransformer and '
                       'build_resnet_backbone can be converted')


def from_detectron2(state_dict: Mapping[str, Any], config: Mapping[str, Any]) -> MaskClassifier:
    """
    Make the network of an RbA or Mask2Former checkpoint.

    state_dict: detectron2 key layout, of tensors or arrays, of any floating type; with or without
    the outer `model` and `_metadata`.  config: the detectron2 configuration as nested dicts; what
    it leaves out has Mask2Former's defaults.  Both Swin and ResNet, 1 to 3 encoder levels, any
    number of layers, queries and classes.  The network is in evaluation mode and takes RGB
    normalised with the configuration's PIXEL_MEAN and PIXEL_STD, also where INPUT.FORMAT is BGR.

    Raises ConvertError for parts that the network does not have (pre-norm, another pixel decoder,
    ...) and when keys or shapes do not fit; it lists them all.
    """
    try:
        state = _detectron2_state(state_tensors(state_dict))
    except ValueError as error:
        raise ConvertError(str(error)) from error
    settings = _Settings(config, 'detectron2')
    settings.require(
        MODEL__META_ARCHITECTURE='MaskFormer', MODEL__SEM_SEG_HEAD__NAME='MaskFormerHead',
        MODEL__SEM_SEG_HEAD__PIXEL_DECODER_NAME='MSDeformAttnPixelDecoder',
        MODEL__SEM_SEG_HEAD__NORM='GN', MODEL__SEM_SEG_HEAD__COMMON_STRIDE=4,
        MODEL__MASK_FORMER__TRANSFORMER_DECODER_NAME='MultiScaleMaskedTransformerDecoder',
        MODEL__MASK_FORMER__TRANSFORMER_IN_FEATURE='multi_scale_pixel_decoder',
        MODEL__MASK_FORMER__PRE_NORM=False, MODEL__MASK_FORMER__ENFORCE_INPUT_PROJ=False)
    for key in ('MODEL.SEM_SEG_HEAD.IN_FEATURES', 'MODEL.SWIN.OUT_FEATURES'):
        features = settings.get(key, list(STRIDES))
        if sorted(features) != sorted(STRIDES):
            raise ConvertError(f'detectron2 {key} is {features}; all of {list(STRIDES)} are '
                               'needed')
    hidden_dim = settings.get('MODEL.MASK_FORMER.HIDDEN_DIM', 256)
    convs_dim = settings.get('MODEL.SEM_SEG_HEAD.CONVS_DIM', hidden_dim)
    if convs_dim != hidden_dim:
        raise ConvertError(f'detectron2 MODEL.SEM_SEG_HEAD.CONVS_DIM {convs_dim} differs from '
                           f'MODEL.MASK_FORMER.HIDDEN_DIM {hidden_dim}')
    levels = settings.get('MODEL.SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES',
                          ['res3', 'res4', 'res5'])
    if not set(levels) <= set(STRIDES):
        raise ConvertError(f'unknown encoder features {levels}')
    strides = sorted((STRIDES[level] for level in levels), reverse=True)
    layers = settings.get('MODEL.MASK_FORMER.DEC_LAYERS', 10)
    if layers < 1:
        raise ConvertError(f'detectron2 MODEL.MASK_FORMER.DEC_LAYERS is {layers}; the prediction '
                           'of the learnable queries counts, so it is 1 at least')
    network_config = NetworkConfig(
        **_detectron2_backbone(settings), pixel_decoder='msdeform',
        encoder_layers=settings.get('MODEL.SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS', 6),
        encoder_strides=strides, attention_strides=list(strides),
        # 1024 in the official code whatever the configuration says; small networks differ.
        encoder_feedforward_dim=_rows(
            state, _HEAD + 'transformer.encoder.layers.0.linear1.weight', 1024),
        hidden_dim=hidden_dim, mask_dim=settings.get('MODEL.SEM_SEG_HEAD.MASK_DIM', 256),
        heads=settings.get('MODEL.MASK_FORMER.NHEADS', 8),
        feedforward_dim=settings.get('MODEL.MASK_FORMER.DIM_FEEDFORWARD', 2048),
        queries=settings.get('MODEL.MASK_FORMER.NUM_OBJECT_QUERIES', 100),
        decoder_layers=layers - 1, pixel_classifier=False)
    num_classes = settings.get('MODEL.SEM_SEG_HEAD.NUM_CLASSES',
                               _rows(state, _PREDICTOR + 'class_embed.weight', 20) - 1)
    network = _build(network_config, num_classes)
    _fill(network, state, _detectron2_sources, 'the detectron2 checkpoint')
    if settings.get('INPUT.FORMAT', 'RGB') == 'BGR':
        first = (network.backbone.patch_embed.proj if hasattr(network.backbone, 'patch_embed')
                 else network.backbone.model.conv1)
        with torch.no_grad():
            first.weight.copy_(first.weight.flip(1))
    return network.eval()


# Keys of our network -> those of the files that transformers writes.
_HF_PIXELS = 'model.pixel_level_module.'
_HF_DECODER = 'model.transformer_module.decoder.'
_HUGGING_FACE: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = (
    (r'backbone\.patch_embed\.proj\.', _HF_PIXELS + 'encoder.embeddings.patch_embeddings.'
                                                    'projection.'),
    (r'backbone\.patch_embed\.norm\.', _HF_PIXELS + 'encoder.embeddings.norm.'),
    (r'backbone\.norm(\d)\.',
     lambda m: f'{_HF_PIXELS}encoder.hidden_states_norms.stage{int(m[1]) + 1}.'),
    (r'backbone\.layers\.', _HF_PIXELS + 'encoder.encoder.layers.'),
    (r'pixel_decoder\.input_projections\.', _HF_PIXELS + 'decoder.input_projections.'),
    (r'pixel_decoder\.level_embed', _HF_PIXELS + 'decoder.level_embed'),
    (r'pixel_decoder\.encoder\.', _HF_PIXELS + 'decoder.encoder.layers.'),
    (r'pixel_decoder\.(lateral|output)\.(\d+)\.',
     lambda m: (_HF_PIXELS + 'decoder.' + {'lateral': 'adapter_', 'output': 'layer_'}[m[1]]
                + _LEVEL[m[2]] + '.')),
    (r'pixel_decoder\.mask_features\.', _HF_PIXELS + 'decoder.mask_projection.'),
    (r'transformer_decoder\.query_feat\.', 'model.transformer_module.queries_features.'),
    (r'transformer_decoder\.query_embed\.', 'model.transformer_module.queries_embedder.'),
    (r'transformer_decoder\.level_embed\.', 'model.transformer_module.level_embed.'),
    (r'transformer_decoder\.class_embed\.', 'class_predictor.'),
    (r'transformer_decoder\.decoder_norm\.', _HF_DECODER + 'layernorm.'),
    (r'transformer_decoder\.mask_embed\.(\d)\.',
     lambda m: f'{_HF_DECODER}mask_predictor.mask_embedder.{int(m[1]) // 2}.0.'),
    (r'transformer_decoder\.layers\.', _HF_DECODER + 'layers.'),
)
_HF_BACKBONE_PARTS = (
    ('.norm1.', '.layernorm_before.'), ('.norm2.', '.layernorm_after.'),
    ('.attn.relative', '.attention.self.relative'), ('.attn.proj.', '.attention.output.dense.'),
    ('.mlp.fc1.', '.intermediate.dense.'), ('.mlp.fc2.', '.output.dense.'))
_HF_LAYER_PARTS = (
    ('.attention.', '.self_attn.'), ('.attention_norm.', '.self_attn_layer_norm.'),
    ('.cross_attention.', '.cross_attn.'), ('.cross_norm.', '.cross_attn_layer_norm.'),
    ('.self_attention.', '.self_attn.'), ('.self_norm.', '.self_attn_layer_norm.'),
    ('.linear1.', '.fc1.'), ('.linear2.', '.fc2.'),
    ('.feedforward_norm.', '.final_layer_norm.'))
# Names inside transformers 5 -> those of the files.
_HF_NEW_NAMES = (
    (r'^(model\.pixel_level_module\.encoder\.)swin\.', r'\1'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.q_proj\.', r'\1.self.query.'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.k_proj\.', r'\1.self.key.'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.v_proj\.', r'\1.self.value.'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.o_proj\.', r'\1.output.dense.'),
    (r'\.attention\.relative_position_bias\.', '.attention.self.'),
    (r'(encoder\.encoder\.layers\..*)\.mlp\.fc1\.', r'\1.intermediate.dense.'),
    (r'(encoder\.encoder\.layers\..*)\.mlp\.fc2\.', r'\1.output.dense.'),
)


def _hugging_face_sources(key: str) -> tuple[str, ...]:
    name = key
    for pattern, replacement in _HUGGING_FACE:
        name, count = re.subn('^' + pattern, replacement, key)
        if count:
            break
    if key.startswith('backbone.'):
        for ours, theirs in _HF_BACKBONE_PARTS:
            name = name.replace(ours, theirs)
        if '.attn.qkv.' in name:
            return tuple(name.replace('.attn.qkv.', f'.attention.self.{part}.')
                         for part in ('query', 'key', 'value'))
    elif '.layers.' in name:
        for ours, theirs in _HF_LAYER_PARTS:
            name = name.replace(ours, theirs)
        packed = re.search(r'\.self_attn\.in_proj_(weight|bias)$', name)
        if packed:
            return tuple(name[:packed.start()] + f'.self_attn.{part}_proj.{packed[1]}'
                         for part in 'qkv')
    return (name,)


def _hugging_face_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _HF_NEW_NAMES:
            name = re.sub(pattern, replacement, name)
        # The encoder's own layernorm is a classifier's: no feature map goes through it.
        if re.search(r'^criterion\.empty_weight$|\.relative_position_index$|'
                     r'^model\.pixel_level_module\.encoder\.layernorm\.', name):
            continue
        if name in result:
            raise ConvertError(f'the checkpoint has {name} twice, once as {key}')
        result[name] = value
    return result


def _hugging_face_weights(folder: Path) -> dict[str, torch.Tensor]:
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if (folder / name).is_file():
            return read_weights(folder / name)
        index = folder / f'{name}.index.json'
        if index.is_file():
            state: dict[str, torch.Tensor] = {}
            for shard in sorted(set(json.loads(index.read_text())['weight_map'].values())):
                if Path(shard).name != shard:
                    raise ConvertError(f'{index}: {shard!r} is no file beside it')
                state.update(read_weights(folder / shard))
            return state
    raise FileNotFoundError(f'{folder} holds neither model.safetensors nor pytorch_model.bin')


def _hugging_face_settings(folder: str | Path) -> _Settings:
    path = Path(folder) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'no {path}; give the folder of a saved Mask2Former')
    return _Settings(json.loads(path.read_text()), str(path))


def from_hugging_face(folder: str | Path) -> MaskClassifier:
    """
    Make the network of a saved Mask2FormerForUniversalSegmentation with a Swin backbone.

    folder: config.json and model.safetensors or pytorch_model.bin (or their shards), in the names
    of any transformers release; nothing is downloaded.  The number of encoder levels is the one
    of the weights.  The network is in evaluation mode.

    Raises ConvertError for another architecture and when keys or shapes do not fit; it lists them
    all.  Raises FileNotFoundError when a file is missing.
    """
    folder = Path(folder)
    settings = _hugging_face_settings(folder)
    settings.require(
        model_type='mask2former', activation_function='relu', pre_norm=False,
        enforce_input_projection=False, common_stride=4, feature_strides=[4, 8, 16, 32],
        backbone_config__model_type='swin', backbone_config__patch_size=4,
        backbone_config__use_absolute_embeddings=False, backbone_config__hidden_act='gelu')
    try:
        state = _hugging_face_state(_hugging_face_weights(folder))
    except ValueError as error:
        raise ConvertError(str(error)) from error
    hidden_dim = settings.get('hidden_dim', 256)
    if settings.get('feature_size', hidden_dim) != hidden_dim:
        raise ConvertError(f'{settings.where} feature_size differs from hidden_dim {hidden_dim}')
    # Without a backbone_config transformers means Swin-S.
    default = ({'depths': [2, 2, 6, 2], 'drop_path_rate': 0.1}
               if settings.get('backbone_config', None)
               else {'depths': [2, 2, 18, 2], 'drop_path_rate': 0.3})
    backbone = _swin(
        settings.get('backbone_config.embed_dim', 96),
        settings.get('backbone_config.depths', default['depths']),
        settings.get('backbone_config.num_heads', [3, 6, 12, 24]),
        settings.get('backbone_config.window_size', 7),
        mlp_ratio=settings.get('backbone_config.mlp_ratio', 4.0),
        qkv_bias=settings.get('backbone_config.qkv_bias', True),
        drop_path=settings.get('backbone_config.drop_path_rate', default['drop_path_rate']))
    strides = [32, 16, 8, 4][:_rows(state, _HF_PIXELS + 'decoder.level_embed', 3)]
    labels = settings.get('id2label', {})
    network_config = NetworkConfig(
        **backbone, pixel_decoder='msdeform', encoder_strides=strides,
        attention_strides=list(strides), encoder_layers=settings.get('encoder_layers', 6),
        encoder_feedforward_dim=settings.get('encoder_feedforward_dim', 1024),
        hidden_dim=hidden_dim, mask_dim=settings.get('mask_feature_size', 256),
        heads=settings.get('num_attention_heads', 8),
        feedforward_dim=settings.get('dim_feedforward', 2048),
        queries=settings.get('num_queries', 100),
        decoder_layers=settings.get('decoder_layers', 10) - 1, pixel_classifier=False)
    network = _build(network_config,
                     len(labels) if labels else _rows(state, 'class_predictor.weight', 3) - 1)
    _fill(network, state, _hugging_face_sources, str(folder))
    return network.eval()


def from_timm(name: str, path: str | Path, options: dict[str, Any] | None = None) -> nn.Module:
    """
    Make a backbone of a timm (or published Swin) classifier's weights in a local file.

    name, options: as in build_backbone.  Raises ConvertError when they do not fit.
    """
    try:
        return build_backbone(name, str(path), options).eval()
    except (ValueError, RuntimeError) as error:
        raise ConvertError(str(error)) from error


def read_detectron2_config(path: str | Path) -> dict[str, Any]:
    """
    Read a detectron2 YAML file and the files that it names as `_BASE_`.

    Raises ConvertError when a file is no mapping, FileNotFoundError when one is missing.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f'no configuration {path}')
    try:
        values = yaml.safe_load(path.read_text())
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


def _color(index: int) -> tuple[int, int, int]:
    """Spread colours over the cube; neighbours differ in every bit plane (PASCAL VOC's map)."""
    index += 1
    return tuple(sum(((index >> (3 * bit + channel)) & 1) << (7 - bit) for bit in range(3))
                 for channel in range(3))


def save_network(network: MaskClassifier, folder: str | Path, *, name: str,
                 size: tuple[int, int], classes: Sequence[str] | None = None) -> None:
    """
    Write a run folder: config.yaml, model.safetensors, classes.json.

    closed_set.load_network, `owseg-train export` and a recipe that starts from it read it.
    size: (width, height) that the network is to run at; classes: names in the order of the ids.
    Raises ConvertError when there are not as many names as classes or the size is no multiple
    of 32.
    """
    if classes is not None and len(classes) != network.num_classes:
        raise ConvertError(f'{len(classes)} class names for {network.num_classes} classes')
    if any(side <= 0 or side % 32 for side in size):
        raise ConvertError(f'width and height must be multiples of 32, not {size[0]}x{size[1]}')
    if classes is None:
        classes = [f'class {i}' for i in range(network.num_classes)]
    config = Config(name=name,
                    network=dataclasses.replace(network.config, pretrained=None))
    config.data.size = tuple(size)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'config.yaml').write_text(yaml.safe_dump(config.to_dict()))
    (folder / 'classes.json').write_text(json.dumps({'classes': [
        {'id': i, 'name': label, 'colour': CITYSCAPES.get(label, _color(i))}
        for i, label in enumerate(classes)]}, indent=1))
    save_file({key: value.contiguous() for key, value in network.state_dict().items()},
              str(folder / 'model.safetensors'))


def _require_normalisation(mean: Any, std: Any, where: str) -> None:
    """Raise ConvertError unless the pictures are normalised as everywhere in this package."""
    for key, value, usual in (('mean', mean, MEAN), ('std', std, STD)):
        if value is not None and any(abs(a - b) > 0.01 for a, b in zip(value, usual)):
            raise ConvertError(f'{where}: input {key} {list(value)} is not {list(usual)}')


def convert_detectron2(checkpoint: str | Path, config: str | Path, out: str | Path, *,
                       size: tuple[int, int], classes: Sequence[str] | None = None) -> Path:
    """
    Convert files of RbA or Mask2Former to a run folder, see from_detectron2 and save_network.

    Raises ConvertError, also for another input normalisation; FileNotFoundError.
    """
    values = read_detectron2_config(config)
    settings = _Settings(values, str(config))
    mean, std = (settings.get(f'MODEL.PIXEL_{key}', None) for key in ('MEAN', 'STD'))
    if settings.get('INPUT.FORMAT', 'RGB') == 'BGR':
        mean, std = (value and list(value)[::-1] for value in (mean, std))
    _require_normalisation(mean, std, str(config))
    network = from_detectron2(read_file(checkpoint), values)
    # A list, or in hand-written files the text of a tuple.
    trained = str(settings.get('DATASETS.TRAIN', None))
    if classes is None and network.num_classes == 19 and 'cityscapes' in trained:
        classes = list(CITYSCAPES)
    name = re.sub(r'\W+', '_', Path(config).resolve().parent.name
                  if Path(config).stem == 'config' else Path(config).stem)
    save_network(network, out, name=name, size=size, classes=classes)
    return Path(out)


def convert_hugging_face(folder: str | Path, out: str | Path, *, size: tuple[int, int],
                         classes: Sequence[str] | None = None) -> Path:
    """
    Convert a Hugging Face folder to a run folder, see from_hugging_face and save_network.

    Raises ConvertError, also for another input normalisation; FileNotFoundError.
    """
    folder = Path(folder)
    network = from_hugging_face(folder)
    processor = folder / 'preprocessor_config.json'
    if processor.is_file():
        values = json.loads(processor.read_text())
        scaled = [[255 * v for v in values[key]] if key in values else None
                  for key in ('image_mean', 'image_std')]
        _require_normalisation(*scaled, str(processor))
    labels = _hugging_face_settings(folder).get('id2label', {})
    if classes is None and labels:
        classes = [labels[key] for key in sorted(labels, key=int)]
    save_network(network, out, name=re.sub(r'\W+', '_', folder.resolve().name), size=size,
                 classes=classes)
    return Path(out)


def convert_timm(name: str, path: str | Path, out: str | Path) -> Path:
    """
    Check a backbone's weights and write them as <out>/<name>.safetensors, for network.pretrained.

    Raises ConvertError when they do not fit, FileNotFoundError.
    """
    backbone = from_timm(name, path)
    state = getattr(backbone, 'model', backbone).state_dict()
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    target = out / f'{name}.safetensors'
    save_file({key: value.contiguous() for key, value in state.items()}, str(target))
    return target
