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

from owseg_training.network.backbone import build_backbone
from owseg_training.network.swin import (
    DropPath, merge_windows, partition_windows, shifted_window_mask, SwinTransformer)
import pytest
from safetensors.torch import save_file
from support.published import (  # noqa: F401
    one_thread, randomize, SMALL, SWIN_T, transformers_modules)
import torch
from torch.nn import functional


def transformers_swin(values):
    """Make transformers' Swin backbone and ours with the same random weights."""
    modeling, _ = transformers_modules()
    from transformers import SwinConfig

    theirs = randomize(modeling.SwinBackbone(SwinConfig(
        **values, out_features=['stage1', 'stage2', 'stage3', 'stage4'])))
    ours = SwinTransformer(values['embed_dim'], values['depths'], values['num_heads'],
                           values['window_size']).eval()
    weights = theirs.state_dict()
    state = {}
    for key in ours.state_dict():
        name = 'swin.encoder.' + key
        for a, b in (('encoder.patch_embed.proj', 'embeddings.patch_embeddings.projection'),
                     ('encoder.patch_embed.norm', 'embeddings.norm'),
                     ('norm1', 'layernorm_before'), ('norm2', 'layernorm_after'),
                     ('attn.proj', 'attention.o_proj'), ('attn.', 'attention.'),
                     ('relative_position_bias_table',
                      'relative_position_bias.relative_position_bias_table')):
            name = name.replace(a, b)
        if key.startswith('norm'):
            name = f'hidden_states_norms.stage{int(key[4]) + 1}.{key.split(".")[1]}'
        state[key] = (torch.cat([weights[name.replace('qkv', f'{p}_proj')] for p in 'qkv'])
                      if 'qkv' in name else weights[name])
    ours.load_state_dict(state)
    return theirs, ours


@pytest.mark.parametrize('values, sizes', [
    # 32x32: every map is smaller than the window; 70x101: nothing is a multiple of anything.
    (SWIN_T, [(32, 32), (70, 101)]),
    (SMALL, [(32, 64), (96, 224)]),
    ({**SMALL, 'window_size': 12}, [(64, 64), (64, 160)]),
])
def test_equals_transformers(values, sizes):
    theirs, ours = transformers_swin(values)
    for index, size in enumerate(sizes):
        image = torch.randn(1 + index % 2, 3, *size)
        with torch.inference_mode():
            expected, actual = theirs(image).feature_maps, ours(image)
        for (stride, feature), reference in zip(actual.items(), expected):
            assert feature.shape == reference.shape
            assert feature.shape[2:] == tuple(-(-side // stride) for side in size)
            assert reference.std() > 0.3
            assert (feature - reference).abs().max() <= 1e-4, (size, stride)


def test_published_sizes():
    with torch.device('meta'):
        counts = {name: sum(p.numel() for p in build_backbone(name).parameters())
                  for name in ('swin_t', 'swin_s', 'swin_b', 'swin_l')}
    # The backbone of RbA's Swin-B; classifiers have 768 more weights in one more norm and a head.
    assert counts['swin_b'] == 86_880_376
    assert 27.5e6 < counts['swin_t'] < 27.6e6 and 48.8e6 < counts['swin_s'] < 48.9e6
    assert 195e6 < counts['swin_l'] < 195.3e6


def test_windows_come_back():
    x = torch.randn(2, 8, 12, 5)
    windows = partition_windows(x, 4)
    assert windows.shape == (12, 16, 5)
    assert torch.equal(windows[1, 0], x[0, 0, 4]) and torch.equal(windows[6, 5], x[1, 1, 1])
    assert torch.equal(merge_windows(windows, 4, 8, 12), x)


@pytest.mark.parametrize('height, width', [(4, 4), (8, 12)])
def test_shifted_windows_do_not_join_opposite_borders(height, width):
    window, shift = 4, 1
    mask = shifted_window_mask(height, width, window, shift)
    # Rows and columns that the shift took from one border to the other.
    wrapped = torch.zeros(1, height, width, 2)
    wrapped[:, :shift, :, 0] = 1
    wrapped[:, :, :shift, 1] = 1
    windows = partition_windows(wrapped.roll((-shift, -shift), (1, 2)), window)
    apart = (windows[:, :, None] != windows[:, None]).any(3)
    assert apart.any()
    assert torch.equal(mask == -100, apart) and torch.equal(mask == 0, ~apart)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    assert torch.equal(drop.eval()(x), x)
    kept = drop.train()(x)
    assert torch.equal(kept.flatten(1).amax(1), kept.flatten(1).amin(1))
    assert set(kept.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs(kept.mean() - 1) < 0.05


def test_training_reaches_every_weight_but_the_frozen():
    torch.manual_seed(0)
    swin = build_backbone('swin_t', options={
        'embed_dim': 32, 'depths': [1, 2, 1, 1], 'heads': [1, 2, 2, 4], 'window': 4,
        'drop_path': 0.0})
    swin.freeze(1)
    sum(f.square().mean() for f in swin.train()(torch.randn(1, 3, 64, 64)).values()).backward()
    frozen = {k for k, p in swin.named_parameters() if p.grad is None}
    assert frozen and all(k.startswith(('patch_embed.', 'layers.0.')) for k in frozen)
    assert {k for k in frozen if k.startswith('layers.0.blocks')} == {
        k for k, _ in swin.named_parameters() if k.startswith('layers.0.blocks')}


def test_loads_classifiers_in_the_published_and_in_timm_keys(tmp_path):
    from timm.models.swin_transformer import SwinTransformer as TimmSwin

    options = {'embed_dim': 32, 'depths': [2, 2, 2, 1], 'heads': [1, 2, 2, 4], 'window': 4}
    timm = TimmSwin(img_size=128, embed_dim=32, depths=(2, 2, 2, 1), num_heads=(1, 2, 2, 4),
                    window_size=4, num_classes=7, always_partition=True)
    randomize(timm)
    state = {k: v.contiguous() for k, v in timm.state_dict().items()}
    save_file(state, str(tmp_path / 'timm.safetensors'))
    published = {}
    for key, value in state.items():
        parts = key.split('.')
        if parts[0] == 'layers' and parts[2] == 'downsample':
            parts[1] = str(int(parts[1]) - 1)
        published['.'.join(parts).replace('head.fc', 'head')] = value
    published['layers.0.blocks.1.attn_mask'] = torch.zeros(1)
    published['layers.0.blocks.1.attn.relative_position_index'] = torch.zeros(1)
    torch.save({'model': published}, tmp_path / 'published.pth')
    # Maps of 32, 16, 8 and 4 cells are multiples of the window: there timm agrees.
    image = torch.randn(1, 3, 128, 128)
    with torch.inference_mode():
        x = timm.patch_embed(image)
        expected = []
        for layer in timm.layers:
            x = layer(x)
            expected.append(functional.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2))
    for name in ('timm.safetensors', 'published.pth'):
        ours = build_backbone('swin_t', str(tmp_path / name), options).eval()
        with torch.inference_mode():
            features = ours(image)
        for feature, reference in zip(features.values(), expected):
            assert (feature - reference).abs().max() <= 1e-4
    with pytest.raises(ValueError, match='relative_position_bias_table'):
        build_backbone('swin_t', str(tmp_path / 'timm.safetensors'), {**options, 'window': 5})
    del state['layers.2.blocks.1.mlp.fc1.weight']
    state['surprise'] = torch.zeros(1)
    save_file(state, str(tmp_path / 'timm.safetensors'))
    with pytest.raises(ValueError, match='mlp.fc1.weight.*surprise'):
        build_backbone('swin_t', str(tmp_path / 'timm.safetensors'), options)


def test_options_are_checked():
    with pytest.raises(ValueError, match='widnow'):
        build_backbone('swin_t', options={'widnow': 7})
    with pytest.raises(ValueError, match='do not divide'):
        build_backbone('swin_t', options={'heads': [5, 6, 12, 24]})
    with pytest.raises(ValueError, match='four stages'):
        build_backbone('swin_t', options={'depths': [2, 2, 6]})
