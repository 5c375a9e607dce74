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

import json
import math
import pickle
import re

import numpy as np
from owseg_ros.readout import reference
from owseg_training.cli import main
from owseg_training.convert import (
    ConvertError, from_detectron2, from_hugging_face, from_timm, read_detectron2_config,
    save_network)
from owseg_training.network.backbone import build_backbone
from owseg_training.weights import read_file, read_weights, WeightsError
import pytest
from safetensors.torch import load_file, save_file
from support.published import detectron2_config, detectron2_state, mask2former, randomize, SWIN_T
import torch
from torch.nn import functional
import yaml

TOLERANCE = 1e-4


def rba_map(class_logits, mask_logits, size):
    probabilities = reference.class_probabilities(class_logits.numpy())
    return reference.rba(reference.class_scores(mask_logits.numpy(), probabilities, size))


@torch.inference_mode()
def assert_equal_outputs(model, network, sizes, seed=0):
    """Compare logits, masks and RbA maps with transformers' network."""
    generator = torch.Generator().manual_seed(seed)
    for size in sizes:
        image = torch.randn(1, 3, *size, generator=generator)
        expected, actual = model(pixel_values=image), network(image)
        for a, b in ((expected.class_queries_logits, actual.class_logits),
                     (expected.masks_queries_logits, actual.mask_logits)):
            assert a.shape == b.shape and a.std() > 0.1
            assert (a - b).abs().max() <= TOLERANCE, size
        assert actual.mask_logits.shape[2:] == (size[0] // 4, size[1] // 4)
        a = rba_map(expected.class_queries_logits[0], expected.masks_queries_logits[0], size)
        b = rba_map(actual.class_logits[0], actual.mask_logits[0], size)
        assert a.std() > 1e-3
        assert np.abs(a - b).max() <= TOLERANCE, size


def assert_same_weights(network, other):
    expected, actual = network.state_dict(), other.state_dict()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(actual[key], value) for key, value in expected.items())


@pytest.fixture(scope='module')
def model():
    return mask2former()


@pytest.fixture(scope='module')
def swin_t_model():
    """Make Swin-T with the widths of the published networks and their 9 layers cut to 3."""
    return mask2former(SWIN_T, seed=3, feature_size=256, hidden_dim=256, mask_feature_size=256,
                       encoder_feedforward_dim=1024, dim_feedforward=2048,
                       num_attention_heads=8, num_queries=100, num_labels=19, encoder_layers=6,
                       decoder_layers=4)


@pytest.mark.timeout(180)
def test_swin_t_equals_transformers(swin_t_model, tmp_path):
    swin_t_model.save_pretrained(tmp_path)
    hugging_face = from_hugging_face(tmp_path)
    # No map is a multiple of the window and the last two are smaller than it.
    assert_equal_outputs(swin_t_model, hugging_face, [(64, 96)])
    network = from_detectron2(detectron2_state(swin_t_model), detectron2_config(swin_t_model))
    assert network.config.backbone == 'swin_t' and network.config.decoder_layers == 3
    assert_same_weights(hugging_face, network)


@pytest.mark.parametrize('levels, layers', [(1, 2), (1, 4), (3, 1), (3, 5)])
def test_levels_and_layers(tmp_path, levels, layers):
    model = mask2former(levels=levels, decoder_layers=layers, seed=levels + layers)
    model.save_pretrained(tmp_path)
    hugging_face = from_hugging_face(tmp_path)
    assert hugging_face.config.attention_strides == [32, 16, 8][:levels]
    assert hugging_face.config.decoder_layers == layers - 1
    assert_equal_outputs(model, hugging_face, [(96, 64)])
    detectron2 = from_detectron2(detectron2_state(model, levels),
                                 detectron2_config(model, levels))
    assert detectron2.config.encoder_strides == [32, 16, 8][:levels]
    assert_same_weights(hugging_face, detectron2)


def test_hugging_face_files_of_every_age(model, tmp_path):
    model.save_pretrained(tmp_path / 'new')
    expected = from_hugging_face(tmp_path / 'new')
    files = load_file(str(tmp_path / 'new' / 'model.safetensors'))
    # A pickle of the names inside transformers, with the indices that old releases stored.
    old = tmp_path / 'old'
    old.mkdir()
    (old / 'config.json').write_text((tmp_path / 'new' / 'config.json').read_text())
    state = dict(model.state_dict())
    state['model.pixel_level_module.encoder.swin.encoder.layers.0.blocks.0.attention.'
          'relative_position_bias.relative_position_index'] = torch.zeros(25, 25)
    torch.save(state, old / 'pytorch_model.bin')
    # Shards with an index.
    shards = tmp_path / 'shards'
    shards.mkdir()
    (shards / 'config.json').write_text((tmp_path / 'new' / 'config.json').read_text())
    names = sorted(files)
    where = {n: f'model-{i % 2}.safetensors' for i, n in enumerate(names)}
    for shard in set(where.values()):
        save_file({n: files[n] for n in names if where[n] == shard}, str(shards / shard))
    (shards / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': where}))
    for folder in (old, shards):
        assert_same_weights(expected, from_hugging_face(folder))


def test_hugging_face_errors(model, tmp_path):
    with pytest.raises(FileNotFoundError, match='config.json'):
        from_hugging_face(tmp_path)
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / 'config.json').read_text())
    for change, message in (({'pre_norm': True}, 'pre_norm'), ({'model_type': 'detr'}, 'detr'),
                            ({'num_queries': 11}, 'num_queries is 11.*9.*queries_features'),
                            ({'encoder_layers': 1}, 'encoder_layers is 1.* 2 '),
                            ({'id2label': {'0': 'a'}}, 'id2label has 1'),
                            ({'backbone_config': {'model_type': 'dinov2'}}, 'dinov2')):
        (tmp_path / 'config.json').write_text(json.dumps({**config, **change}))
        with pytest.raises(ConvertError, match=message):
            from_hugging_face(tmp_path)


@pytest.mark.parametrize('name, content, message', [
    ('config.json', {'backbone_config': {'layer_norm_eps': 1e-3}}, 'layer_norm_eps is 0.001'),
    ('config.json', {'id2label': dict(zip('abcde', 'abcde'))}, 'ids 0 to 4, not a, b'),
    ('config.json', {'id2label': {str(i): 'car' for i in range(5)}}, "first 'car'"),
    ('preprocessor_config.json', '{', 'preprocessor_config.json is no JSON'),
    ('preprocessor_config.json', {'image_mean': 0.5}, 'image_mean|mean 0.5 is not three'),
    ('preprocessor_config.json', {'image_std': [0.5, 0.5, 0.5]}, 'std .127.5.* is not'),
    ('preprocessor_config.json', {'do_normalize': False}, 'do_normalize is False'),
    ('model.safetensors.index.json', '{', 'index.json is no JSON'),
    ('model.safetensors.index.json', {'weight_map': {}}, 'has no weight_map')])
def test_hugging_face_folders_that_mislead(model, tmp_path, capsys, name, content, message):
    model.save_pretrained(tmp_path / 'saved')
    path = tmp_path / 'saved' / name
    if name == 'config.json':
        content = {**json.loads(path.read_text()), **{
            key: {**model.config.to_dict()[key], **value} if key == 'backbone_config' else value
            for key, value in content.items()}}
    if 'index' in name:
        (tmp_path / 'saved' / 'model.safetensors').unlink()
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    capsys.readouterr()
    assert main(['convert', str(tmp_path / 'saved'), '--format', 'hugging-face', '--size', '64x64',
                 '--out', str(tmp_path / 'run')]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error) and error.count('\n') == 1


def test_normalisation_in_values_of_pixels_is_taken(model, tmp_path):
    model.save_pretrained(tmp_path / 'saved')
    (tmp_path / 'saved' / 'preprocessor_config.json').write_text(json.dumps(
        {'image_mean': [123.675, 116.28, 103.53], 'rescale_factor': 1.0, 'do_normalize': True,
         'image_std': [58.395, 57.12, 57.375]}))
    assert main(['convert', str(tmp_path / 'saved'), '--format', 'hugging-face', '--size', '64x64',
                 '--out', str(tmp_path / 'run')]) == 0


def test_weights_that_are_not_finite_are_named(model):
    state, config = detectron2_state(model), detectron2_config(model)
    key = 'sem_seg_head.predictor.class_embed.bias'
    state[key] = state[key].clone()
    state[key][0] = math.nan
    with pytest.raises(ConvertError, match=rf'not finite\nkeys \(1\):\n  {key}$'):
        from_detectron2(state, config)


@pytest.mark.parametrize('suffix', ['.pth', '.bin', '.pkl', '.safetensors'])
def test_damaged_files_are_one_error(tmp_path, suffix):
    path, generator = tmp_path / f'weights{suffix}', np.random.default_rng(0)
    state = {'a.weight': torch.ones(3, 4), 'b': torch.zeros(2)}
    if suffix == '.safetensors':
        save_file(state, str(path))
    elif suffix == '.pkl':
        path.write_bytes(pickle.dumps({key: value.numpy() for key, value in state.items()}, 2))
    else:
        torch.save(state, path, _use_new_zipfile_serialization=suffix == '.pth')
    whole = path.read_bytes()
    for length in generator.integers(len(whole), size=60):
        for damaged in (whole[:length], generator.bytes(length)):
            path.write_bytes(damaged)
            with pytest.raises(WeightsError, match=f'weights{suffix} is damaged'):
                read_file(path)


def test_detectron2_wrappings_and_old_keys(model):
    state, config = detectron2_state(model), detectron2_config(model)
    expected = from_detectron2(state, config)
    head = 'sem_seg_head.pixel_decoder.'
    wrappings = {
        'checkpoint': {'model': state, 'optimizer': {'state': {}}, 'iteration': 7},
        'metadata': {**state, '_metadata': {'': {'version': 2}}},
        'numpy': {k: v.numpy() for k, v in state.items()},
        'zoo': {'model': {k: v.numpy() for k, v in state.items()}, '__author__': 'third_party',
                'matching_heuristics': True},
        'ddp': {f'module.{k}': v for k, v in state.items()},
        'renamed by the official loader': {
            k.replace(head, head + 'pixel_decoder.'): v for k, v in state.items()},
        'version 1': {k.replace(head, 'sem_seg_head.').replace('query_feat', 'static_query'): v
                      for k, v in state.items()},
        'beside the weights': {**state, 'optimizer': {'state': {}}, 'iteration': 7,
                               'scheduler': None, 'trainer': {}},
        'stored mean': {**state, 'pixel_mean': torch.zeros(3, 1, 1),
                        'pixel_std': torch.ones(3, 1, 1)},
    }
    for wrapped in wrappings.values():
        assert_same_weights(expected, from_detectron2(wrapped, config))


def test_half_precision_is_read_as_float32(model):
    state, config = detectron2_state(model), detectron2_config(model)
    halves = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    rounded = {k: v.float() if v.is_floating_point() else v for k, v in halves.items()}
    expected = from_detectron2(rounded, config).state_dict()
    for dtype in ('torch', 'numpy'):
        given = {k: v.numpy() for k, v in halves.items()} if dtype == 'numpy' else halves
        actual = from_detectron2(given, config)
        assert all(v.dtype == torch.float32 for v in actual.state_dict().values())
        assert all(torch.equal(v, expected[k]) for k, v in actual.state_dict().items())
    assert state['backbone.norm0.weight'].dtype == torch.float32


def test_every_missing_and_unknown_key_is_listed(model):
    state, config = detectron2_state(model), detectron2_config(model)
    gone = ['backbone.layers.1.blocks.0.attn.qkv.bias',
            'sem_seg_head.pixel_decoder.adapter_1.norm.weight',
            'sem_seg_head.predictor.level_embed.weight']
    changed = {k: v for k, v in state.items() if k not in gone}
    new = ['sem_seg_head.predictor.ood_pred.norm.weight', 'backbone.norm4.weight', 'teacher.x']
    changed.update({k: torch.zeros(2) for k in new})
    with pytest.raises(ConvertError) as caught:
        from_detectron2(changed, config)
    assert all(key in str(caught.value) for key in gone + new)
    assert 'missing keys (3)' in str(caught.value)
    assert 'unknown keys (3)' in str(caught.value)
    assert 'other shapes' not in str(caught.value)
    with pytest.raises(ConvertError, match='twice'):
        from_detectron2({**state, 'sem_seg_head.predictor.static_query.weight':
                         state['sem_seg_head.predictor.query_feat.weight']}, config)
    with pytest.raises(ConvertError, match='not a tensor'):
        from_detectron2({**state, 'notes': 'trained on Tuesday'}, config)


@pytest.mark.parametrize('key, value, message', [
    ('SWIN.EMBED_DIM', 64, 'is 64, .* 32 .backbone.patch_embed.proj.weight'),
    ('SWIN.DEPTHS', [1, 2, 2, 2], 'backbone.layers.2.blocks.0.norm1'),
    ('SWIN.DEPTHS', [1, 1, 1, 2], 'backbone.layers.1.blocks.1.norm1'),
    ('SWIN.DEPTHS', [1, 2, 1], 'by the weights it is .1, 2, 1, 2.'),
    ('SWIN.DEPTHS', 'deep', 'not a list'),
    ('SWIN.NUM_HEADS', [1, 2, 4, 4], 'layers.2.blocks.0.attn.relative_position_bias_table'),
    ('SWIN.WINDOW_SIZE', 7, 'is 7, .* 5 .*relative_position_bias_table'),
    ('SWIN.WINDOW_SIZE', 5.5, 'not a int'),
    ('SWIN.MLP_RATIO', 2.0, 'fc1.weight'),
    ('SWIN.QKV_BIAS', False, 'qkv'),
    ('SWIN.APE', True, 'APE'),
    ('SWIN.QK_SCALE', 0.1, 'QK_SCALE'),
    ('SWIN.OUT_FEATURES', ['res3', 'res4', 'res5'], 'OUT_FEATURES'),
    ('SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES', ['res5'], 'level_embed'),
    ('SEM_SEG_HEAD.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES', ['res3'], 'coarsest'),
    ('SEM_SEG_HEAD.TRANSFORMER_ENC_LAYERS', 3, 'is 3, .* 2 .*encoder.layers'),
    ('SEM_SEG_HEAD.NUM_CLASSES', 19, 'is 19, .* 5 .*class_embed'),
    ('SEM_SEG_HEAD.PIXEL_DECODER_NAME', 'BasePixelDecoder', 'BasePixelDecoder'),
    ('SEM_SEG_HEAD.MASK_DIM', 64, 'mask_features'),
    ('SEM_SEG_HEAD.CONVS_DIM', 32, 'pixel_decoder.transformer.level_embed'),
    ('MASK_FORMER.DEC_LAYERS', 10, 'is 10, .* 2 .*transformer_ffn_layers'),
    ('MASK_FORMER.DEC_LAYERS', 0, 'at least'),
    ('MASK_FORMER.NHEADS', 8, 'is 8, .* 4 .*sampling_offsets'),
    ('MASK_FORMER.HIDDEN_DIM', 32, 'query_feat'),
    ('MASK_FORMER.NUM_OBJECT_QUERIES', 100, 'query_feat'),
    ('MASK_FORMER.PRE_NORM', True, 'PRE_NORM'),
    ('MASK_FORMER.DIM_FEEDFORWARD', 64, 'linear1'),
    ('BACKBONE.NAME', 'D2ViT', 'D2ViT'),
])
def test_configurations_are_checked_against_the_shapes(model, key, value, message):
    state, config = detectron2_state(model), detectron2_config(model)
    section, name = key.split('.')
    config['MODEL'][section][name] = value
    with pytest.raises(ConvertError, match=message) as caught:
        from_detectron2(state, config)
    assert name in str(caught.value) and '\n' not in str(caught.value)


def test_configurations_of_every_kind(model, tmp_path):
    state, config = detectron2_state(model), detectron2_config(model)
    expected = from_detectron2(state, config)

    def texts(value):
        """Write values as a hand-written file does: tuples and None are texts in YAML."""
        if isinstance(value, dict):
            return {k: texts(v) for k, v in value.items()}
        return str(tuple(value)) if isinstance(value, list) else str(value)

    def tuples(value):
        if isinstance(value, dict):
            return {k: tuples(v) for k, v in value.items()}
        return tuple(value) if isinstance(value, list) else value

    for given in (texts(config), tuples(config), {}, {'MODEL': {'MASK_FORMER': None}},
                  {'MODEL': {'BACKBONE': {'NAME': 'D2SwinTransformer'}}},
                  {'VERSION': 2, 'OUTPUT_DIR': '.', **config}):
        network = from_detectron2(state, given)
        assert_same_weights(expected, network)
        assert network.config == expected.config
    with pytest.raises(ConvertError, match='mapping, not list'):
        from_detectron2(state, [config])
    (tmp_path / 'config.yaml').write_text(yaml.safe_dump(config) + """SOLVER:
  STEPS: !!python/tuple [1, 2]
INPUT_SIZES: !!python/object/apply:eval ["[int(x * 0.1 * 1024) for x in range(5, 21)]"]
""")
    read = read_detectron2_config(tmp_path / 'config.yaml')
    assert read['INPUT_SIZES'] is None and read['SOLVER'] == {'STEPS': [1, 2]}
    assert read['MODEL'] == config['MODEL']


def backbone_config(kind):
    """Return a small configuration of transformers for a kind of backbone."""
    transformers = pytest.importorskip('transformers')
    stages = ['stage1', 'stage2', 'stage3', 'stage4']
    if kind == 'timm':
        return transformers.TimmBackboneConfig(backbone='resnet18', out_indices=(1, 2, 3, 4))
    if kind == 'resnet18':
        return transformers.ResNetConfig(
            layer_type='basic', depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512],
            out_features=stages)
    return transformers.ResNetConfig(depths=[1, 2, 1, 1], hidden_sizes=[32, 64, 64, 128],
                                     out_features=stages)


@pytest.mark.parametrize('kind, name', [
    ('bottleneck', 'resnet50'), ('resnet18', 'resnet18'), ('timm', 'resnet18')])
def test_hugging_face_resnets(kind, name, tmp_path):
    model = mask2former(backbone_config(kind), seed=5)
    model.save_pretrained(tmp_path)
    network = from_hugging_face(tmp_path)
    assert network.config.backbone == name
    assert_equal_outputs(model, network, [(64, 96)])
    config = json.loads((tmp_path / 'config.json').read_text())
    # Releases before transformers 5 name a backbone instead of describing it.
    old = {**config, 'backbone_config': None, 'backbone': 'resnet18',
           'use_timm_backbone': kind == 'timm'}
    (tmp_path / 'config.json').write_text(json.dumps(old))
    assert_same_weights(network, from_hugging_face(tmp_path))
    changes = [('out_indices', [1, 2, 3], 'strides'), ('backbone', 'resnet19', 'does not know')]
    if kind != 'timm':
        changes = [('depths', [1, 1, 1, 3], 'depths is .1, 1, 1, 3.'),
                   ('hidden_act', 'gelu', 'gelu'),
                   ('hidden_sizes', [32, 64, 64, 64], 'hidden_sizes')]
    for key, value, message in changes:
        (tmp_path / 'config.json').write_text(json.dumps(
            {**config, 'backbone_config': {**config['backbone_config'], key: value}}))
        with pytest.raises(ConvertError, match=message):
            from_hugging_face(tmp_path)


def published_swin_b():
    """List keys and shapes of RbA's Swin-B with one decoder layer, key family by key family."""
    shapes = {'criterion.empty_weight': (20,)}

    def norm(name, width):
        shapes.update({f'{name}.weight': (width,), f'{name}.bias': (width,)})

    def linear(name, out, into, *kernel):
        shapes.update({f'{name}.weight': (out, into, *kernel), f'{name}.bias': (out,)})

    linear('backbone.patch_embed.proj', 128, 3, 4, 4)
    norm('backbone.patch_embed.norm', 128)
    for stage, (depth, heads) in enumerate(zip((2, 2, 18, 2), (4, 8, 16, 32))):
        width = 128 << stage
        for index in range(depth):
            block = f'backbone.layers.{stage}.blocks.{index}'
            norm(f'{block}.norm1', width)
            norm(f'{block}.norm2', width)
            shapes[f'{block}.attn.relative_position_bias_table'] = (23 * 23, heads)
            shapes[f'{block}.attn.relative_position_index'] = (144, 144)
            linear(f'{block}.attn.qkv', 3 * width, width)
            linear(f'{block}.attn.proj', width, width)
            linear(f'{block}.mlp.fc1', 4 * width, width)
            linear(f'{block}.mlp.fc2', width, 4 * width)
        if stage < 3:
            shapes[f'backbone.layers.{stage}.downsample.reduction.weight'] = (2 * width, 4 * width)
            norm(f'backbone.layers.{stage}.downsample.norm', 4 * width)
        norm(f'backbone.norm{stage}', width)
    decoder = 'sem_seg_head.pixel_decoder'
    linear(f'{decoder}.input_proj.0.0', 256, 1024, 1, 1)
    norm(f'{decoder}.input_proj.0.1', 256)
    shapes[f'{decoder}.transformer.level_embed'] = (1, 256)
    for index in range(6):
        layer = f'{decoder}.transformer.encoder.layers.{index}'
        for name, out in (('sampling_offsets', 64), ('attention_weights', 32),
                          ('value_proj', 256), ('output_proj', 256)):
            linear(f'{layer}.self_attn.{name}', out, 256)
        norm(f'{layer}.norm1', 256)
        linear(f'{layer}.linear1', 1024, 256)
        linear(f'{layer}.linear2', 256, 1024)
        norm(f'{layer}.norm2', 256)
    linear(f'{decoder}.mask_features', 256, 256, 1, 1)
    for index, width in ((1, 128), (2, 256), (3, 512)):
        shapes[f'{decoder}.adapter_{index}.weight'] = (256, width, 1, 1)
        norm(f'{decoder}.adapter_{index}.norm', 256)
        shapes[f'{decoder}.layer_{index}.weight'] = (256, 256, 3, 3)
        norm(f'{decoder}.layer_{index}.norm', 256)
    predictor = 'sem_seg_head.predictor'
    for layer in ('self_attention_layers.0.self_attn', 'cross_attention_layers.0.multihead_attn'):
        shapes[f'{predictor}.transformer_{layer}.in_proj_weight'] = (768, 256)
        shapes[f'{predictor}.transformer_{layer}.in_proj_bias'] = (768,)
        linear(f'{predictor}.transformer_{layer}.out_proj', 256, 256)
        norm(f'{predictor}.transformer_{layer.rsplit(".", 1)[0]}.norm', 256)
    linear(f'{predictor}.transformer_ffn_layers.0.linear1', 2048, 256)
    linear(f'{predictor}.transformer_ffn_layers.0.linear2', 256, 2048)
    norm(f'{predictor}.transformer_ffn_layers.0.norm', 256)
    norm(f'{predictor}.decoder_norm', 256)
    for name, rows in (('query_feat', 100), ('query_embed', 100), ('level_embed', 1)):
        shapes[f'{predictor}.{name}.weight'] = (rows, 256)
    linear(f'{predictor}.class_embed', 20, 256)
    for index in range(3):
        linear(f'{predictor}.mask_embed.layers.{index}', 256, 256)
    return shapes


def test_published_rba_swin_b():
    shapes = published_swin_b()
    assert len(shapes) == 510
    state = {}
    for index, (key, shape) in enumerate(shapes.items()):
        state[key] = torch.full((1,), index, dtype=torch.float16).expand(math.prod(shape))
        state[key] = state[key].reshape(shape)
    config = {'MODEL': {
        'META_ARCHITECTURE': 'MaskFormer', 'BACKBONE': {'NAME': 'D2SwinTransformer'},
        'SWIN': {'EMBED_DIM': 128, 'DEPTHS': [2, 2, 18, 2], 'NUM_HEADS': [4, 8, 16, 32],
                 'WINDOW_SIZE': 12, 'DROP_PATH_RATE': 0.3},
        'SEM_SEG_HEAD': {'DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES': ['res5'],
                         'TRANSFORMER_ENC_LAYERS': 6, 'CONVS_DIM': 256, 'MASK_DIM': 256,
                         'NUM_CLASSES': 19},
        'MASK_FORMER': {'DEC_LAYERS': 2, 'HIDDEN_DIM': 256, 'NHEADS': 8,
                        'DIM_FEEDFORWARD': 2048, 'NUM_OBJECT_QUERIES': 100}}}
    network = from_detectron2({'model': state}, config)
    assert network.config.backbone == 'swin_b' and network.config.backbone_options == {}
    counts = [sum(p.numel() for p in part.parameters()) for part in (
        network, network.backbone, network.pixel_decoder, network.transformer_decoder)]
    assert counts == [95_141_580, 86_880_376, 6_427_968, 1_833_236]
    heads = network.transformer_decoder
    assert sum(p.numel() for part in (heads.mask_embed, heads.class_embed)
               for p in part.parameters()) == 202_516
    # Every weight of ours is one tensor of theirs and each of theirs went somewhere.
    found = {value.flatten()[0].item() for value in network.state_dict().values()}
    carried = [index for index, key in enumerate(shapes)
               if not key.endswith(('relative_position_index', 'empty_weight'))]
    assert found == set(map(float, carried)) and len(network.state_dict()) == len(carried)
    assert all(v.amax() == v.amin() for v in network.state_dict().values())


def resnet_reference(state, image, blocks, stride_in_1x1):
    """Compute detectron2's ResNet, of bottleneck or basic blocks, from its own keys."""
    def conv(x, name, stride=1, padding=0):
        x = functional.conv2d(x, state[f'{name}.weight'], stride=stride, padding=padding)
        norm = {k: state[f'{name}.norm.{k}'][:, None, None]
                for k in ('weight', 'bias', 'running_mean', 'running_var')}
        scale = norm['weight'] * (norm['running_var'] + 1e-5).rsqrt()
        return x * scale + norm['bias'] - norm['running_mean'] * scale

    x = conv(image, 'backbone.stem.conv1', 2, 3).relu()
    x = functional.max_pool2d(x, 3, 2, 1)
    features = {}
    for stage, count in enumerate(blocks):
        for index in range(count):
            name = f'backbone.res{stage + 2}.{index}'
            stride = 2 if stage and not index else 1
            if f'{name}.conv3.weight' in state:
                first, second = (stride, 1) if stride_in_1x1 else (1, stride)
                out = conv(x, f'{name}.conv1', first).relu()
                out = conv(out, f'{name}.conv2', second, 1).relu()
                out = conv(out, f'{name}.conv3')
            else:
                out = conv(x, f'{name}.conv1', stride, 1).relu()
                out = conv(out, f'{name}.conv2', 1, 1)
            projected = f'{name}.shortcut.weight' in state
            shortcut = conv(x, f'{name}.shortcut', stride) if projected else x
            x = (out + shortcut).relu()
        features[4 << stage] = x
    return features


@pytest.mark.parametrize('depth, blocks, stride_in_1x1', [
    (50, (3, 4, 6, 3), False), (50, (3, 4, 6, 3), True), (18, (2, 2, 2, 2), True)])
def test_detectron2_resnet(depth, blocks, stride_in_1x1):
    generator, state = torch.Generator().manual_seed(1), {}
    expansion = 4 if depth >= 50 else 1

    def conv(name, out, into, kernel):
        shape = (out, into, kernel, kernel)
        state[f'{name}.weight'] = (torch.randn(shape, generator=generator)
                                   / (into * kernel ** 2) ** 0.5)
        for key, low, high in (('weight', 0.5, 1), ('bias', -0.2, 0.2),
                               ('running_mean', -0.2, 0.2), ('running_var', 0.5, 2)):
            state[f'{name}.norm.{key}'] = torch.empty(out).uniform_(
                low, high, generator=generator)

    conv('backbone.stem.conv1', 64, 3, 7)
    width = 64
    for stage, count in enumerate(blocks):
        inner = 64 << stage
        for index in range(count):
            name = f'backbone.res{stage + 2}.{index}'
            if depth >= 50:
                conv(f'{name}.conv1', inner, width, 1)
                conv(f'{name}.conv2', inner, inner, 3)
                conv(f'{name}.conv3', 4 * inner, inner, 1)
            else:
                conv(f'{name}.conv1', inner, width, 3)
                conv(f'{name}.conv2', inner, inner, 3)
            if width != expansion * inner:
                conv(f'{name}.shortcut', expansion * inner, width, 1)
            width = expansion * inner
    head = {'CONVS_DIM': 32, 'MASK_DIM': 16, 'TRANSFORMER_ENC_LAYERS': 1, 'NUM_CLASSES': 3,
            'DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES': ['res5']}
    former = {'DEC_LAYERS': 2, 'HIDDEN_DIM': 32, 'NHEADS': 4, 'DIM_FEEDFORWARD': 64,
              'NUM_OBJECT_QUERIES': 5}
    config = {'MODEL': {'BACKBONE': {'NAME': 'build_resnet_backbone'},
                        'RESNETS': {'DEPTH': depth, 'STRIDE_IN_1X1': stride_in_1x1,
                                    'NORM': 'FrozenBN', 'STEM_TYPE': 'basic'},
                        'SEM_SEG_HEAD': head, 'MASK_FORMER': former}}
    with pytest.raises(ConvertError) as caught:
        from_detectron2(state, config)
    assert 'unknown keys' not in str(caught.value) and 'backbone' not in str(caught.value)
    rest = [line.strip() for line in str(caught.value).splitlines() if 'sem_seg_head' in line]
    # Random values for the rest, in shapes of another conversion of the same head.
    shapes = small_head(head, former, expansion)
    assert sorted(rest) == sorted(shapes)
    state.update({k: torch.randn(s, generator=generator) * 0.1 for k, s in shapes.items()})
    network = from_detectron2(state, config)
    assert network.config.backbone == f'resnet{depth}' + (
        '_caffe' if stride_in_1x1 and depth >= 50 else '')
    image = torch.randn(1, 3, 64, 96, generator=generator)
    with torch.inference_mode():
        expected = resnet_reference(state, image, blocks, stride_in_1x1)
        actual = network.backbone(image)
        swapped = from_detectron2(state, {**config, 'INPUT': {'FORMAT': 'BGR'}}).backbone(
            image.flip(1))
    for stride, feature in expected.items():
        assert feature.std() > 0.05
        assert (actual[stride] - feature).abs().max() <= TOLERANCE
        assert (swapped[stride] - feature).abs().max() <= TOLERANCE
    assert network(image).mask_logits.shape == (1, 5, 16, 24)
    for key, value in (('STEM_TYPE', 'deeplab'), ('RES5_DILATION', 2), ('NUM_GROUPS', 32),
                       ('DEPTH', 34)):
        config['MODEL']['RESNETS'][key] = value
        with pytest.raises(ConvertError, match=key):
            from_detectron2(state, config)
        del config['MODEL']['RESNETS'][key]
    assert from_detectron2(state, config).config.backbone.startswith(f'resnet{depth}')


def small_head(head, former, expansion):
    """List the head's keys and shapes over ResNet channels: those of Swin-B at other widths."""
    sizes = {256: head['CONVS_DIM'], 64: former['NHEADS'] * 8, 32: former['NHEADS'] * 4,
             2048: former['DIM_FEEDFORWARD'], 768: 3 * former['HIDDEN_DIM'],
             100: former['NUM_OBJECT_QUERIES'], 20: head['NUM_CLASSES'] + 1}
    shapes = {}
    for key, shape in published_swin_b().items():
        if key.startswith('sem_seg_head.') and '.layers.' not in key or (
                '.layers.0.' in key and key.startswith('sem_seg_head.')) or 'mask_embed' in key:
            shapes[key] = tuple(sizes.get(side, side) for side in shape)
    backbone = {'adapter_1.weight': 64 * expansion, 'adapter_2.weight': 128 * expansion,
                'adapter_3.weight': 256 * expansion, 'input_proj.0.0.weight': 512 * expansion}
    for name, width in backbone.items():
        key = f'sem_seg_head.pixel_decoder.{name}'
        shapes[key] = (shapes[key][0], width, 1, 1)
    for key in ('sem_seg_head.pixel_decoder.mask_features.weight',
                'sem_seg_head.pixel_decoder.mask_features.bias',
                'sem_seg_head.predictor.mask_embed.layers.2.weight',
                'sem_seg_head.predictor.mask_embed.layers.2.bias'):
        shapes[key] = (head['MASK_DIM'], *shapes[key][1:])
    return shapes


def test_timm_classifiers_from_a_file(tmp_path):
    import timm

    for name in ('resnet10t', 'convnext_atto'):
        torch.manual_seed(2)
        classifier = randomize(timm.create_model(name, num_classes=7))
        state = {k: v.contiguous() for k, v in classifier.state_dict().items()}
        torch.save({'state_dict': state}, tmp_path / f'{name}.pth')
        backbone = from_timm(name, tmp_path / f'{name}.pth')
        image = torch.randn(1, 3, 64, 64)
        with torch.inference_mode():
            expected = classifier.forward_intermediates(image, intermediates_only=True)
            by_stride = {64 // f.shape[-1]: f for f in expected}
            for stride, feature in backbone(image).items():
                assert (feature - by_stride[stride]).abs().max() <= TOLERANCE, (name, stride)
        state['other.weight'] = torch.zeros(3)
        torch.save(state, tmp_path / f'{name}.pth')
        with pytest.raises(ConvertError, match='other.weight'):
            from_timm(name, tmp_path / f'{name}.pth')


def test_written_networks_load_again(model, tmp_path):
    network = from_detectron2(detectron2_state(model), detectron2_config(model))
    save_network(network, tmp_path, name='small', size=(96, 64), classes=list('abcde'))
    from owseg_training.closed_set import load_network

    again, config = load_network(tmp_path)
    assert config.name == 'small' and config.data.size == (96, 64)
    assert_equal_outputs(model, again, [(64, 96)])
    labels = json.loads((tmp_path / 'classes.json').read_text())['classes']
    assert [label['name'] for label in labels] == list('abcde')
    assert len({tuple(label['colour']) for label in labels}) == 5
    with pytest.raises(ConvertError, match='2 class names for 5'):
        save_network(network, tmp_path, name='small', size=(96, 64), classes=list('ab'))
    with pytest.raises(ConvertError, match='multiples of 32'):
        save_network(network, tmp_path, name='small', size=(100, 64))


def test_command_line(model, tmp_path, capsys):
    run = tmp_path / 'swin_x_1dl'
    run.mkdir()
    config = detectron2_config(model)
    config['MODEL'].update(PIXEL_MEAN=[123.675, 116.28, 103.53],
                           PIXEL_STD=[58.395, 57.12, 57.375])
    (run / 'config.yaml').write_text(yaml.safe_dump(config))
    torch.save({'model': detectron2_state(model), 'iteration': 3}, run / 'model_final.pth')
    arguments = ['convert', str(run / 'model_final.pth'), '--out', str(tmp_path / 'out'),
                 '--size', '96x64']
    assert main(arguments) == 0
    assert yaml.safe_load((tmp_path / 'out' / 'config.yaml').read_text())['name'] == 'swin_x_1dl'
    expected = load_file(str(tmp_path / 'out' / 'model.safetensors'))
    model.save_pretrained(tmp_path / 'hf')
    assert main(['convert', str(tmp_path / 'hf'), '--format', 'hugging-face',
                 '--out', str(tmp_path / 'out2')]) == 0
    actual = load_file(str(tmp_path / 'out2' / 'model.safetensors'))
    assert all(torch.equal(actual[k], v) for k, v in expected.items())
    backbone = build_backbone('resnet18')
    save_file({k: v.contiguous() for k, v in backbone.model.state_dict().items()},
              str(tmp_path / 'r.safetensors'))
    assert main(['convert', str(tmp_path / 'r.safetensors'), '--format', 'timm', '--name',
                 'resnet18', '--out', str(tmp_path / 'weights')]) == 0
    build_backbone('resnet18', str(tmp_path / 'weights' / 'resnet18.safetensors'))
    capsys.readouterr()
    config['MODEL']['PIXEL_STD'] = [1.0, 1.0, 1.0]
    (run / 'config.yaml').write_text(yaml.safe_dump(config))
    assert main(arguments) == 2
    assert 'input std' in capsys.readouterr().err
    (run / 'config.yaml').unlink()
    assert main(arguments) == 2
    assert 'config.yaml' in capsys.readouterr().err


def test_base_configurations_are_merged(tmp_path):
    (tmp_path / 'Base.yaml').write_text('MODEL: {SWIN: {DEPTHS: [2, 2, 6, 2]}, MASK_ON: false}')
    (tmp_path / 'a.yaml').write_text('_BASE_: Base.yaml\nMODEL: {SWIN: {EMBED_DIM: 32}}')
    assert read_detectron2_config(tmp_path / 'a.yaml') == {
        'MODEL': {'SWIN': {'DEPTHS': [2, 2, 6, 2], 'EMBED_DIM': 32}, 'MASK_ON': False}}


class Payload:
    """Something that a pickle must not be able to call."""

    def __reduce__(self):
        return (print, ('code from a file of weights runs',))


def test_files_run_no_code(tmp_path, capsys):
    (tmp_path / 'bad.pkl').write_bytes(pickle.dumps({'model': Payload()}))
    torch.save({'model': Payload()}, tmp_path / 'bad.pth')
    for name in ('bad.pkl', 'bad.pth'):
        with pytest.raises(WeightsError, match='without running code'):
            read_file(tmp_path / name)
    assert 'runs' not in capsys.readouterr().out
    arrays = {'a': np.arange(6, dtype=np.float16).reshape(2, 3), 'b': np.float32(2)}
    (tmp_path / 'good.pkl').write_bytes(pickle.dumps({'model': arrays, '__author__': 'x'}))
    state = read_weights(tmp_path / 'good.pkl')
    assert state['a'].dtype == torch.float32 and state['a'].shape == (2, 3) and state['b'] == 2
    (tmp_path / 'broken.safetensors').write_bytes(b'\x00' * 20)
    (tmp_path / 'text.txt').write_text('x')
    for name in ('broken.safetensors', 'text.txt'):
        with pytest.raises(WeightsError, match=name):
            read_file(tmp_path / name)
    with pytest.raises(FileNotFoundError, match='absent.pth'):
        read_file(tmp_path / 'absent.pth')
