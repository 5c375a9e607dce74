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
"""Weights of other projects: which numbers their shapes say, and how they fill our network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import math
import re
from typing import Any

from owseg_training.config import NetworkConfig
from owseg_training.convert.settings import ConvertError, Settings
from owseg_training.network import MaskClassifier
from owseg_training.network.backbone import BACKBONES
import torch
from torch import nn

# Patterns of our keys -> the other project's; the first rule that fits counts.
Rules = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]
# Key of our network -> the keys of which it is the concatenation.
Sources = Callable[[str], tuple[str, ...]]
STRIDES = (32, 16, 8, 4)
# Places that a head samples on each level: a constant of both projects.
POINTS = 4
RESNETS = {('basic', (2, 2, 2, 2)): 18, ('basic', (3, 4, 6, 3)): 34,
           ('bottleneck', (3, 4, 6, 3)): 50, ('bottleneck', (3, 4, 23, 3)): 101,
           ('bottleneck', (3, 8, 36, 3)): 152}


def renamed(key: str, rules: Rules) -> str:
    """Return the other project's name of a key of ours."""
    for pattern, replacement in rules:
        name, count = re.subn('^' + pattern, replacement, key)
        if count:
            return name
    return key


class Shapes:
    """
    Numbers of a network as its weights say them, and as its configuration does.

    state: the foreign state dict; sources: see Sources; settings: the configuration.
    number() collects what contradicts; check() raises it.
    """

    def __init__(self, state: dict[str, torch.Tensor], sources: Sources,
                 settings: Settings) -> None:
        self.state, self.sources, self.settings = state, sources, settings
        self._contradictions: list[str] = []

    def side(self, key: str, axis: int = 0) -> int | None:
        """Return a side of our tensor of that name; None where it is not there."""
        names = self.sources(key)
        if any(name not in self.state or self.state[name].ndim <= axis for name in names):
            return None
        sides = [self.state[name].shape[axis] for name in names]
        return sum(sides) if axis == 0 else sides[0]

    def count(self, *keys: str) -> int:
        """Return how many numbers from 0 put into one of the keys name a tensor."""
        present = [index for index in range(256) if any(
            self.sources(key.format(index))[0] in self.state for key in keys)]
        return present[-1] + 1 if present else 0

    def number(self, key: str | None, found: Any, ours: str | Sequence[str],
               default: Any) -> Any:
        """
        Return the configuration's value of a key, else the found one, else the default.

        key: None where the configuration does not say it; found: what the shapes say, None where
        they do not; ours: our key that says it, or one for each element of a list.
        """
        if key is None or not self.settings.has(key):
            return default if found is None else found
        stated = self.settings.get(key, default)
        if found is not None and stated != found:
            if not isinstance(ours, str):
                ours = next((of for a, b, of in zip(stated, found, ours) if a != b), ours[-1])
            name = self.sources(ours)[0]
            shape = (f' of shape {tuple(self.state[name].shape)}' if name in self.state else '')
            self._contradictions.append(
                f'{key} is {stated}, but by the weights it is {found} ({name}{shape})')
        return stated

    def check(self) -> None:
        """Raise ConvertError with every contradiction between configuration and shapes."""
        if self._contradictions:
            raise ConvertError(f'{self.settings.where} does not describe the weights: '
                               + '; '.join(self._contradictions))

    def decoders(self, keys: Mapping[str, str], strides: Sequence[int]) -> dict[str, Any]:
        """
        Return what NetworkConfig says of the pixel decoder and the transformer decoder.

        keys: the configuration's, of hidden_dim; feature_size, the channels of the encoder, which
        must be as many; encoder_layers; encoder_feedforward_dim, where it is said; mask_dim;
        feedforward_dim; queries; heads; and decoder_layers, of which one is the prediction of the
        learnable queries.  strides: of the encoder's levels.
        Raises ConvertError as check does, and where these numbers describe no network.
        """
        levels, query = 'pixel_decoder.level_embed', 'transformer_decoder.query_feat.weight'
        encoder, decoder, masks, offsets = (
            'pixel_decoder.encoder.0.linear1.weight',
            'transformer_decoder.layers.0.linear1.weight', 'pixel_decoder.mask_features.weight',
            'pixel_decoder.encoder.0.attention.sampling_offsets.weight')
        places = 2 * POINTS * (self.side(levels) or len(strides))
        outputs = self.side(offsets)
        found = {
            'feature_size': (self.side(levels, 1), levels, 256),
            'hidden_dim': (self.side(query, 1), query, 256),
            'decoder_layers': (None if self.side(query) is None else
                               1 + self._layers('transformer_decoder.layers'), decoder, 10),
            'encoder_layers': (None if self.side(levels) is None else
                               self._layers('pixel_decoder.encoder'), encoder, 6),
            'encoder_feedforward_dim': (self.side(encoder), encoder, 1024),
            'mask_dim': (self.side(masks), masks, 256),
            'feedforward_dim': (self.side(decoder), decoder, 2048),
            'queries': (self.side(query), query, 100),
            'heads': (outputs and outputs // places, offsets, 8)}
        numbers = {name: self.number(keys.get(name), *value) for name, value in found.items()}
        where, layers = self.settings.where, numbers['decoder_layers']
        if layers < 1:
            raise ConvertError(f'{where} {keys["decoder_layers"]} is {layers}; the prediction of '
                               'the learnable queries counts, so it is 1 at least')
        self.check()
        channels = numbers.pop('feature_size')
        if channels != numbers['hidden_dim']:
            raise ConvertError(f'{where} {keys["feature_size"]} {channels} differs from '
                               f'{keys["hidden_dim"]} {numbers["hidden_dim"]}')
        return {**numbers, 'decoder_layers': layers - 1, 'pixel_decoder': 'msdeform',
                'encoder_points': POINTS, 'encoder_strides': list(strides),
                'attention_strides': list(strides), 'pixel_classifier': False}

    def _layers(self, name: str) -> int:
        """Return how many layers of that name there are."""
        return self.count(*(f'{name}.{{}}.linear{part}.weight' for part in (1, 2)))

    def swin(self, prefix: str, keys: dict[str, str], defaults: dict[str, Any],
             ) -> dict[str, Any]:
        """
        Return a Swin's backbone and backbone_options.

        prefix: of the configuration's keys; keys: names there of embed_dim, depths, heads,
        window, mlp_ratio, qkv_bias, drop_path; defaults: by our names.
        """
        blocks = [f'backbone.layers.{stage}.blocks.0.' for stage in range(4)]
        tables = [block + 'attn.relative_position_bias_table' for block in blocks]
        hidden_key, qkv = blocks[0] + 'mlp.fc1.weight', blocks[0] + 'attn.qkv.'
        embed = self.side('backbone.patch_embed.proj.weight')
        depths = [self.count(*(f'backbone.layers.{stage}.blocks.{{}}.{part}.weight'
                               for part in ('norm1', 'norm2'))) for stage in range(4)]
        heads = [self.side(table, 1) for table in tables]
        rows, hidden = self.side(tables[0]), self.side(hidden_key)
        ratio = self.settings.get(prefix + keys['mlp_ratio'], defaults['mlp_ratio'])
        if hidden and embed and int(embed * ratio) != hidden:
            ratio = hidden / embed
        found = {
            'embed_dim': (embed, 'backbone.patch_embed.proj.weight'),
            'depths': (depths if all(depths) else None,
                       [f'backbone.layers.{stage}.blocks.{max(depth, 1) - 1}.norm1.weight'
                        for stage, depth in enumerate(depths)]),
            'heads': (None if None in heads else heads, tables),
            'window': (None if rows is None else (math.isqrt(rows) + 1) // 2, tables[0]),
            'mlp_ratio': (ratio if hidden and embed else None, hidden_key),
            'qkv_bias': (None if self.side(qkv + 'weight') is None else
                         self.side(qkv + 'bias') is not None, qkv + 'weight'),
            'drop_path': (None, '')}
        return named_swin(**{name: self.number(prefix + keys[name], value, ours, defaults[name])
                             for name, (value, ours) in found.items()})

    def resnet_blocks(self) -> tuple[str, tuple[int, ...]]:
        """Return the kind of block, basic or bottleneck, and their numbers in four stages."""
        kind = ('basic' if self.side('backbone.model.layer1.0.conv3.weight') is None
                else 'bottleneck')
        return kind, tuple(self.count(*(
            f'backbone.model.layer{stage}.{{}}.conv{part}.weight' for part in (1, 2)))
            for stage in range(1, 5))


def named_swin(embed_dim: int, depths: Sequence[int], heads: Sequence[int], window: int,
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


def fill(network: nn.Module, state: dict[str, torch.Tensor], sources: Sources,
         what: str) -> None:
    """
    Load the network from a foreign state dict.

    Raises ConvertError that lists missing and left-over keys and other shapes, or else the keys
    of values that are not finite.
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
    damaged = [key for key, value in state.items() if not value.isfinite().all()]
    if missing or unknown or wrong:
        raise ConvertError(f'{what} does not fit its configuration'
                           + _list('missing keys', missing) + _list('unknown keys', unknown)
                           + _list('other shapes', wrong))
    if damaged:
        raise ConvertError(f'{what} has weights that are not finite' + _list('keys', damaged))
    network.load_state_dict(filled, strict=False)


def build(config: NetworkConfig, num_classes: int) -> MaskClassifier:
    """Make a network; raises ConvertError where a configuration describes none."""
    try:
        return MaskClassifier(config, num_classes)
    except ValueError as error:
        raise ConvertError(f'the configuration describes no network: {error}') from error
