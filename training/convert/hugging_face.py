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
"""Folders of Mask2FormerForUniversalSegmentation, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
import re
from typing import Any

from owseg_training.config import NetworkConfig
from owseg_training.convert.settings import ConvertError, Settings
from owseg_training.convert.weights import (
    build, fill, renamed, RESNETS, Rules, Shapes, Sources, STRIDES)
from owseg_training.network import MaskClassifier
from owseg_training.weights import read_weights
import timm
import torch

_LEVEL = {'4': '1', '8': '2', '16': '3'}
_PIXELS = 'model.pixel_level_module.'
_ENCODER = _PIXELS + 'encoder.'
_DECODER = 'model.transformer_module.decoder.'
_HEAD_RULES: Rules = (
    (r'pixel_decoder\.input_projections\.', _PIXELS + 'decoder.input_projections.'),
    (r'pixel_decoder\.level_embed', _PIXELS + 'decoder.level_embed'),
    (r'pixel_decoder\.encoder\.', _PIXELS + 'decoder.encoder.layers.'),
    (r'pixel_decoder\.(lateral|output)\.(\d+)\.',
     lambda m: (_PIXELS + 'decoder.' + {'lateral': 'adapter_', 'output': 'layer_'}[m[1]]
                + _LEVEL[m[2]] + '.')),
    (r'pixel_decoder\.mask_features\.', _PIXELS + 'decoder.mask_projection.'),
    (r'transformer_decoder\.query_feat\.', 'model.transformer_module.queries_features.'),
    (r'transformer_decoder\.query_embed\.', 'model.transformer_module.queries_embedder.'),
    (r'transformer_decoder\.level_embed\.', 'model.transformer_module.level_embed.'),
    (r'transformer_decoder\.class_embed\.', 'class_predictor.'),
    (r'transformer_decoder\.decoder_norm\.', _DECODER + 'layernorm.'),
    (r'transformer_decoder\.mask_embed\.(\d)\.',
     lambda m: f'{_DECODER}mask_predictor.mask_embedder.{int(m[1]) // 2}.0.'),
    (r'transformer_decoder\.layers\.', _DECODER + 'layers.'),
)
_LAYER_PARTS = (
    ('.attention.', '.self_attn.'), ('.attention_norm.', '.self_attn_layer_norm.'),
    ('.cross_attention.', '.cross_attn.'), ('.cross_norm.', '.cross_attn_layer_norm.'),
    ('.self_attention.', '.self_attn.'), ('.self_norm.', '.self_attn_layer_norm.'),
    ('.linear1.', '.fc1.'), ('.linear2.', '.fc2.'),
    ('.feedforward_norm.', '.final_layer_norm.'))
_SWIN_RULES: Rules = (
    (r'backbone\.patch_embed\.proj\.', _ENCODER + 'embeddings.patch_embeddings.projection.'),
    (r'backbone\.patch_embed\.norm\.', _ENCODER + 'embeddings.norm.'),
    (r'backbone\.norm(\d)\.',
     lambda m: f'{_ENCODER}hidden_states_norms.stage{int(m[1]) + 1}.'),
    (r'backbone\.layers\.', _ENCODER + 'encoder.layers.'),
)
_SWIN_PARTS = (
    ('.norm1.', '.layernorm_before.'), ('.norm2.', '.layernorm_after.'),
    ('.attn.relative', '.attention.self.relative'), ('.attn.proj.', '.attention.output.dense.'),
    ('.mlp.fc1.', '.intermediate.dense.'), ('.mlp.fc2.', '.output.dense.'))
_RESNET_PARTS = {'conv': 'convolution.', 'bn': 'normalization.'}
_RESNET_RULES: Rules = (
    (r'backbone\.model\.(conv|bn)1\.',
     lambda m: f'{_ENCODER}embedder.embedder.{_RESNET_PARTS[m[1]]}'),
    (r'backbone\.model\.layer(\d)\.(\d+)\.(conv|bn)(\d)\.',
     lambda m: (f'{_ENCODER}encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.layer.'
                f'{int(m[4]) - 1}.{_RESNET_PARTS[m[3]]}')),
    (r'backbone\.model\.layer(\d)\.(\d+)\.downsample\.(\d)\.',
     lambda m: (f'{_ENCODER}encoder.stages.{int(m[1]) - 1}.layers.{m[2]}.shortcut.'
                + ('convolution.', 'normalization.')[int(m[3])])),
)
_TIMM_RULES: Rules = ((r'backbone\.model\.', _ENCODER + '_backbone.'),)
# Names inside transformers 5 -> those of the files.
_NEW_NAMES = (
    (r'^(model\.pixel_level_module\.encoder\.)swin\.', r'\1'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.q_proj\.', r'\1.self.query.'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.k_proj\.', r'\1.self.key.'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.v_proj\.', r'\1.self.value.'),
    (r'(encoder\.encoder\.layers\..*\.attention)\.o_proj\.', r'\1.output.dense.'),
    (r'\.attention\.relative_position_bias\.', '.attention.self.'),
    (r'(encoder\.encoder\.layers\..*)\.mlp\.fc1\.', r'\1.intermediate.dense.'),
    (r'(encoder\.encoder\.layers\..*)\.mlp\.fc2\.', r'\1.output.dense.'),
)
# The encoder's own layernorm is a Swin classifier's: no feature map goes through it.
_NO_WEIGHT = re.compile(r'^criterion\.empty_weight$|\.(relative_position_index|'
                        r'num_batches_tracked)$|^model\.pixel_level_module\.encoder\.layernorm\.')


def _head_sources(key: str) -> tuple[str, ...]:
    name = renamed(key, _HEAD_RULES)
    if '.layers.' not in name:
        return (name,)
    for ours, theirs in _LAYER_PARTS:
        name = name.replace(ours, theirs)
    packed = re.search(r'\.self_attn\.in_proj_(weight|bias)$', name)
    if packed:
        return tuple(name[:packed.start()] + f'.self_attn.{part}_proj.{packed[1]}'
                     for part in 'qkv')
    return (name,)


def _swin_sources(key: str) -> tuple[str, ...]:
    name = renamed(key, _SWIN_RULES)
    for ours, theirs in _SWIN_PARTS:
        name = name.replace(ours, theirs)
    if '.attn.qkv.' in name:
        return tuple(name.replace('.attn.qkv.', f'.attention.self.{part}.')
                     for part in ('query', 'key', 'value'))
    return (name,)


def _sources(kind: str) -> Sources:
    """Return the names in the file for a backbone of that model_type."""
    backbones: dict[str, Sources] = {
        'swin': _swin_sources, 'resnet': lambda key: (renamed(key, _RESNET_RULES),),
        'timm_backbone': lambda key: (renamed(key, _TIMM_RULES),)}
    of_backbone = backbones[kind]
    return lambda key: (of_backbone if key.startswith('backbone.') else _head_sources)(key)


def _file_names(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Bring names to those of the files and drop what is no weight of the network."""
    result: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = key
        for pattern, replacement in _NEW_NAMES:
            name = re.sub(pattern, replacement, name)
        if _NO_WEIGHT.search(name):
            continue
        if name in result:
            raise ConvertError(f'the checkpoint has {name} twice, once as {key}')
        result[name] = value
    return result


def _read(folder: Path) -> dict[str, torch.Tensor]:
    for name in ('model.safetensors', 'pytorch_model.bin'):
        if (folder / name).is_file():
            return read_weights(folder / name)
        index = folder / f'{name}.index.json'
        if index.is_file():
            state: dict[str, torch.Tensor] = {}
            shards = _settings(index).get('weight_map', {}).values()
            if not shards:
                raise ConvertError(f'{index} has no weight_map, which names the files')
            for shard in sorted(set(map(str, shards))):
                if Path(shard).name != shard:
                    raise ConvertError(f'{index}: {shard!r} is no file beside it')
                state.update(read_weights(folder / shard))
            return state
    raise FileNotFoundError(f'{folder} holds neither model.safetensors nor pytorch_model.bin')


def _settings(path: Path) -> Settings:
    try:
        values = json.loads(path.read_text('utf-8'))
    except ValueError as error:
        raise ConvertError(f'{path} is no JSON: {error}') from error
    return Settings(values, str(path))


def read_processor(folder: str | Path) -> Settings | None:
    """Read preprocessor_config.json, None where there is none; raises ConvertError."""
    path = Path(folder) / 'preprocessor_config.json'
    return _settings(path) if path.is_file() else None


def read_settings(folder: str | Path) -> Settings:
    """Read config.json; raises FileNotFoundError, and ConvertError when it is no mapping."""
    path = Path(folder) / 'config.json'
    if not path.is_file():
        raise FileNotFoundError(f'no {path}; give the folder of a saved Mask2Former')
    return _settings(path)


def _kind(settings: Settings, state: dict[str, torch.Tensor]) -> str:
    """Return the backbone's model_type; of configurations that only name it, by the weights."""
    kind = settings.get('backbone_config.model_type', '')
    if not kind:
        kind = ('timm_backbone' if any(k.startswith(_ENCODER + '_backbone.') for k in state) else
                'resnet' if any(k.startswith(_ENCODER + 'embedder.') for k in state) else 'swin')
    if kind not in ('swin', 'resnet', 'timm_backbone'):
        raise ConvertError(f'{settings.where} backbone_config.model_type is {kind!r}; swin, '
                           'resnet and timm_backbone can be converted')
    return kind


def _swin(shapes: Shapes) -> dict[str, Any]:
    settings = shapes.settings
    settings.require(backbone_config__patch_size=4, backbone_config__hidden_act='gelu',
                     backbone_config__layer_norm_eps=1e-5,
                     backbone_config__use_absolute_embeddings=False)
    # Without a backbone_config transformers means Swin-S.
    rate = 0.1 if settings.has('backbone_config') else 0.3
    names = ('embed_dim', 'depths', 'mlp_ratio', 'qkv_bias')
    return shapes.swin(
        'backbone_config.',
        {**{name: name for name in names}, 'heads': 'num_heads', 'window': 'window_size',
         'drop_path': 'drop_path_rate'},
        {'embed_dim': 96, 'depths': [2, 2, 6, 2], 'heads': [3, 6, 12, 24], 'window': 7,
         'mlp_ratio': 4.0, 'qkv_bias': True, 'drop_path': rate})


def _resnet(shapes: Shapes) -> dict[str, Any]:
    settings = shapes.settings
    settings.require(backbone_config__num_channels=3, backbone_config__embedding_size=64,
                     backbone_config__hidden_act='relu',
                     backbone_config__downsample_in_first_stage=False)
    first = 'backbone.model.layer1.0.conv1.weight'
    found, blocks = shapes.resnet_blocks()
    widths = [shapes.side(f'backbone.model.layer{stage}.0.conv{3 if found == "bottleneck" else 2}'
                          '.weight') for stage in range(1, 5)]
    kind = shapes.number('backbone_config.layer_type', found if all(widths) else None, first,
                         'bottleneck')
    depths = shapes.number('backbone_config.depths', list(blocks) if all(blocks) else None,
                           first, [3, 4, 6, 3])
    widths = shapes.number('backbone_config.hidden_sizes', widths if all(widths) else None,
                           first, [256, 512, 1024, 2048])
    channels = [width // (4 if kind == 'bottleneck' else 1) for width in widths]
    number = RESNETS.get((kind, tuple(depths)))
    if number and channels == [64, 128, 256, 512]:
        name, options = f'resnet{number}', {}
    else:
        name = 'resnet50' if kind == 'bottleneck' else 'resnet18'
        options = {'layers': depths, 'channels': channels}
    if kind == 'bottleneck' and settings.get('backbone_config.downsample_in_bottleneck', False):
        if name not in ('resnet50', 'resnet101', 'resnet152'):
            raise ConvertError(f'{settings.where} backbone_config.downsample_in_bottleneck: not '
                               f'with {kind} blocks {depths}')
        name += '_caffe'
    return {'backbone': name, 'backbone_options': options}


def _timm(shapes: Shapes) -> dict[str, Any]:
    settings = shapes.settings
    settings.require(backbone_config__num_channels=3, backbone_config__output_stride=None)
    name = settings.get('backbone_config.backbone', settings.get('backbone', ''))
    if not timm.is_model(name):
        raise ConvertError(f'{settings.where} backbone is {name!r}, which timm does not know')
    indices = settings.get('backbone_config.out_indices', None)
    if indices is not None:
        with torch.device('meta'):
            info = timm.create_model(name, features_only=True, pretrained=False).feature_info
        reductions = info.reduction()
        strides = [reductions[i] for i in indices if -len(reductions) <= i < len(reductions)]
        if strides != sorted(STRIDES):
            raise ConvertError(f'{settings.where} backbone_config.out_indices {indices} are at '
                               f'strides {strides}, not at {sorted(STRIDES)}')
    return {'backbone': name}


_DECODERS = {
    'feature_size': 'feature_size', 'hidden_dim': 'hidden_dim', 'decoder_layers': 'decoder_layers',
    'encoder_layers': 'encoder_layers', 'encoder_feedforward_dim': 'encoder_feedforward_dim',
    'mask_dim': 'mask_feature_size', 'feedforward_dim': 'dim_feedforward',
    'queries': 'num_queries', 'heads': 'num_attention_heads'}
_BACKBONES = {'swin': _swin, 'resnet': _resnet, 'timm_backbone': _timm}


def from_hugging_face(folder: str | Path) -> MaskClassifier:
    """
    Make the network of a saved Mask2FormerForUniversalSegmentation.

    folder: config.json and model.safetensors or pytorch_model.bin (or their shards), in the names
    of any transformers release; nothing is downloaded.  The backbone is a Swin, transformers' own
    ResNet, or one of timm with features at strides 4 to 32.  The number of encoder levels is the
    one of the weights.  The network is in evaluation mode.

    Raises ConvertError for another architecture, when the configuration contradicts the shapes,
    which names the keys of both, and when keys or shapes do not fit; it lists them all.  Raises
    FileNotFoundError when a file is missing.
    """
    folder = Path(folder)
    settings = read_settings(folder)
    settings.require(
        model_type='mask2former', activation_function='relu', pre_norm=False,
        enforce_input_projection=False, common_stride=4, feature_strides=[4, 8, 16, 32])
    try:
        state = _file_names(_read(folder))
    except ValueError as error:
        raise ConvertError(str(error)) from error
    kind = _kind(settings, state)
    shapes = Shapes(state, _sources(kind), settings)
    backbone = _BACKBONES[kind](shapes)
    strides = STRIDES[:shapes.side('pixel_decoder.level_embed') or 3]
    classes = shapes.side('transformer_decoder.class_embed.weight')
    labels = settings.get('id2label', {})
    if labels and classes and len(labels) != classes - 1:
        raise ConvertError(f'{settings.where} id2label has {len(labels)} classes, but '
                           f'class_predictor.weight has {classes} rows, one of them for no object')
    config = NetworkConfig(**backbone, **shapes.decoders(_DECODERS, strides))
    network = build(config, classes - 1 if classes else len(labels) or 2)
    fill(network, state, shapes.sources, str(folder))
    return network.eval()
