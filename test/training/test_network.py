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
from owseg_training.config import config_from_dict, ConfigError, load_config, NetworkConfig
from owseg_training.network import MaskClassifier
from owseg_training.network.backbone import build_backbone
from owseg_training.network.transformer_decoder import (
    Attention, MaskedAttentionDecoder, SinePositionEncoding)
import pytest
import torch


def small_config(**changes):
    values = {'backbone': 'mobilenetv2_100_e1', 'hidden_dim': 32, 'mask_dim': 32, 'queries': 7,
              'attention_strides': [16, 8], 'decoder_layers': 3, 'heads': 4,
              'feedforward_dim': 64}
    return NetworkConfig(**{**values, **changes})


def test_shapes_and_deep_supervision():
    network = MaskClassifier(small_config(), 5)
    prediction = network.train()(torch.randn(2, 3, 64, 96))
    assert prediction.class_logits.shape == (2, 7, 6)
    assert prediction.mask_logits.shape == (2, 7, 16, 24)
    assert prediction.pixel_features.shape == (2, 32, 16, 24)
    assert prediction.pixel_logits.shape == (2, 5, 16, 24)
    assert len(prediction.auxiliary) == 3
    alone = network.eval()(torch.randn(1, 3, 64, 64))
    assert alone.pixel_logits is None and not alone.auxiliary


def test_training_and_evaluation_predict_the_same():
    network = MaskClassifier(small_config(), 5)
    # A mask head of this size, so that no mask is near one half everywhere.
    with torch.no_grad():
        network.transformer_decoder.mask_embed[-1].weight.mul_(30)
    image = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        trained, alone = network.train()(image), network.eval()(image)
    assert torch.allclose(trained.mask_logits, alone.mask_logits, atol=1e-5)
    assert torch.allclose(trained.class_logits, alone.class_logits, atol=1e-5)


@pytest.mark.parametrize('half', [False, True])
def test_masks_teach_their_embedding(half):
    # Some versions of autocast keep weights that were first cast without gradients.
    network = MaskClassifier(small_config(), 5).train()
    with torch.autocast('cpu', torch.bfloat16, enabled=half):
        prediction = network(torch.randn(1, 3, 64, 64))
    prediction.mask_logits.float().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0
               for p in network.transformer_decoder.mask_embed.parameters())


def test_layers_look_where_the_masks_before_them_are_when_resized():
    config = small_config(decoder_layers=2)
    network = MaskClassifier(config, 5).train()
    decoder = network.transformer_decoder
    with torch.no_grad():
        decoder.mask_embed[-1].weight.mul_(30)
    looked = []
    for layer in decoder.layers:
        layer.register_forward_pre_hook(lambda layer, inputs: looked.append(inputs[4]))
    with torch.no_grad():
        prediction = network(torch.randn(2, 3, 64, 96))
    assert len(looked) == len(prediction.auxiliary) == 2
    for (_, mask_logits), stride, blocked in zip(
            prediction.auxiliary, config.attention_strides, looked):
        resized = torch.nn.functional.interpolate(
            mask_logits, size=(64 // stride, 96 // stride), mode='bilinear', align_corners=False)
        expected = MaskedAttentionDecoder._blocked(resized.flatten(2))
        certain = (resized.abs() > 1e-4).flatten(2)
        assert blocked.any() and certain.float().mean() > 0.99
        assert torch.equal(blocked[certain], expected[certain])


def test_sizes_must_be_multiples_of_32():
    with pytest.raises(ValueError, match='multiples of 32'):
        MaskClassifier(small_config(), 5)(torch.randn(1, 3, 64, 100))


def test_rows_of_a_batch_are_independent():
    network = MaskClassifier(small_config(), 5).eval()
    frames = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        together = network(frames)
        alone = network(frames[1:2])
    assert torch.allclose(together.mask_logits[1], alone.mask_logits[0], atol=1e-4)
    assert torch.allclose(together.class_logits[1], alone.class_logits[0], atol=1e-5)


def test_attention_equals_torch():
    torch.manual_seed(1)
    ours, theirs = Attention(32, 4), torch.nn.MultiheadAttention(32, 4, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, memory = torch.randn(2, 5, 32), torch.randn(2, 9, 32)
    blocked = torch.rand(2, 5, 9) < 0.5
    blocked[..., 0] = False
    expected, _ = theirs(query, memory, memory, attn_mask=blocked.repeat_interleave(4, 0))
    assert torch.allclose(ours(query, memory, memory, blocked), expected, atol=1e-5)


def test_empty_masks_attend_everywhere():
    logits = torch.full((1, 2, 4, 4), -5.0)
    logits[0, 1, :, :2] = 5.0
    blocked = MaskedAttentionDecoder._blocked(logits.flatten(2))
    assert not blocked[0, 0].any()
    assert blocked[0, 1].reshape(4, 4)[:, 2:].all()
    assert not blocked[0, 1].reshape(4, 4)[:, :2].any()


def test_position_encoding_separates_rows_and_columns():
    encoding = SinePositionEncoding(16)(torch.zeros(1, 16, 3, 5)).reshape(3, 5, 16)
    assert torch.equal(encoding[:, 0, :8], encoding[:, 4, :8])
    assert torch.equal(encoding[0, :, 8:], encoding[2, :, 8:])
    assert torch.unique(encoding.reshape(15, 16), dim=0).shape[0] == 15


def test_batch_norm_statistics_stay_and_frozen_stages_do_not_train():
    network = MaskClassifier(small_config(freeze_stages=2), 4).train()
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    prediction = network(torch.randn(2, 3, 64, 64))
    (prediction.mask_logits.mean() + prediction.class_logits.mean()).backward()
    for key, value in network.backbone.state_dict().items():
        assert torch.equal(before[key], value), key
    named = dict(network.backbone.named_parameters())
    frozen = [k for k, v in named.items() if not v.requires_grad]
    assert frozen and all(named[k].grad is None for k in frozen)
    assert not any('blocks.2' in k or 'blocks.6' in k for k in frozen)


def test_any_timm_backbone_with_four_strides():
    backbone = build_backbone('resnet18')
    features = backbone(torch.randn(1, 3, 64, 64))
    assert {s: f.shape[-1] for s, f in features.items()} == {4: 16, 8: 8, 16: 4, 32: 2}


def test_pretrained_weights_must_fit(tmp_path):
    from safetensors.torch import save_file
    backbone = build_backbone('mobilenetv2_100_e1')
    state = {k: v.contiguous() for k, v in backbone.model.state_dict().items()}
    save_file({**state, 'conv_head.weight': torch.zeros(1)}, str(tmp_path / 'good.safetensors'))
    build_backbone('mobilenetv2_100_e1', str(tmp_path / 'good.safetensors'))
    state.pop('conv_stem.weight')
    save_file(state, str(tmp_path / 'bad.safetensors'))
    with pytest.raises(ValueError, match='conv_stem'):
        build_backbone('mobilenetv2_100_e1', str(tmp_path / 'bad.safetensors'))


def test_recipe_and_config_errors():
    config = load_config('camvid_small')
    assert config.network.queries == 100
    assert config_from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match='camvid_small'):
        load_config('no_such_recipe')
    with pytest.raises(ConfigError, match='network.quieries'):
        config_from_dict({'network': {'quieries': 3}})
    with pytest.raises(ConfigError, match='must be int'):
        config_from_dict({'network': {'queries': 'many'}})
