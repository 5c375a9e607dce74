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

from dataclasses import replace
import json

import numpy as np
from owseg_ros.frame import Frame, image_to_array
from owseg_ros.language import QueryBook
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.language.scores import QueryScorer
from owseg_ros.language.vocabulary import default_vocabulary
from owseg_ros.segmenter import Segmenter
from owseg_training import cli, tensorrt_support
from owseg_training.class_texts import class_wordings, clip_class_texts
from owseg_training.closed_set import ClosedSetTraining, load_network, parameter_groups
from owseg_training.config import ConfigError, RECIPES
from owseg_training.data.stream import MEAN, STD
from owseg_training.export import export_onnx, parity
from owseg_training.network import MaskClassifier
from owseg_training.network.backbone import build_backbone
from owseg_training.network.frozen_clip import cell_weights, FC_CLIP, SOFT
from owseg_training.open_clip_models import open_clip_model
import pytest
from support.camvid import write_camvid
from support.clip_models import clip_config, DIM, MODELS, write_clip_models
import torch
from torch.nn import functional
import yaml


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Return a checkpoint of each small model."""
    return write_clip_models(tmp_path_factory.mktemp('clip'))


def frozen(model, weights):
    return build_backbone('open_clip', str(weights[model]), {'model': model})


def make(model, weights, classes=3, **changes):
    """Return a network with random texts of the classes, two wordings for the first one."""
    config = clip_config('', model, weights[model]).network
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(1)
    network = MaskClassifier(config, classes)
    network.region_head.set_texts([
        functional.normalize(torch.randn(2 if i == 0 else 1, DIM), dim=1)
        for i in range(classes)])
    return network.eval()


def normalised(rgb, mean, std):
    return (rgb - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


@pytest.mark.parametrize('model', MODELS)
def test_features_are_those_of_the_image_tower(model, weights):
    backbone, clip = frozen(model, weights), open_clip_model(model, weights[model])
    rgb = torch.rand(2, 3, 64, 64)
    features = backbone(normalised(255 * rgb, MEAN, STD))
    assert {s: tuple(f.shape[1:]) for s, f in features.items()} == {
        s: (backbone.channels[s], 64 // s, 64 // s) for s in (4, 8, 16, 32)}
    inputs = normalised(rgb, clip.visual.image_mean, clip.visual.image_std)
    with torch.inference_mode():
        dense = backbone.dense(features)
        if model == 'tiny-convnext':
            expected = clip.visual.trunk.forward_features(inputs)
            # CLIP pools everything: so does a region of everything.
            whole = backbone.embed(dense, torch.ones(2, 1, 2, 2))[:, 0]
            assert torch.allclose(whole, clip.encode_image(inputs, normalize=True), atol=1e-5)
        else:
            expected = clip.visual.forward_intermediates(
                inputs, indices=1, intermediates_only=True)['image_intermediates'][0]
    assert expected.std() > 1e-3
    assert torch.allclose(dense, expected, rtol=1e-4, atol=1e-4)
    assert float(backbone.scale) == pytest.approx(min(100, clip.logit_scale.exp().item()))


def test_attention_pooling_has_the_region_as_its_key_mask(weights):
    backbone = frozen('tiny-resnet', weights)
    pool = backbone.visual.attnpool
    dense = torch.randn(2, backbone.channels[32], 2, 3)
    masks = torch.rand(2, 4, 2, 3) > 0.5
    masks[:, :, 0, 0] = True
    masks[1, 3] = False
    grid = pool.positional_embedding[1:].T.reshape(1, -1, 2, 2)
    position = functional.interpolate(grid, size=(2, 3), mode='bilinear')[0].flatten(1)
    cells = dense.flatten(2)
    query = (cells.mean(2) + pool.positional_embedding[0])[None].repeat_interleave(4, 0)
    keys = (cells + position).permute(2, 0, 1)
    blocked = ~masks.flatten(2)
    blocked[1, 3] = False  # An empty region is looked at below.
    with torch.inference_mode():
        expected, _ = functional.multi_head_attention_forward(
            query, keys, keys, keys.shape[2], pool.num_heads, None,
            torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]), None, None, False,
            0.0, pool.c_proj.weight, pool.c_proj.bias, training=False, need_weights=False,
            attn_mask=blocked.repeat_interleave(pool.num_heads, 0),
            use_separate_proj_weight=True, q_proj_weight=pool.q_proj.weight,
            k_proj_weight=pool.k_proj.weight, v_proj_weight=pool.v_proj.weight)
        found = backbone.embed(dense, masks.float())
        expected = functional.normalize(expected.transpose(0, 1), dim=-1)
        assert torch.allclose(found[0], expected[0], atol=1e-5)
        assert torch.allclose(found[1, :3], expected[1, :3], atol=1e-5)
        assert not found[1, 3].any()
        # The size of all weights does not matter, that of each against the others does.
        soft = 0.2 * masks.float() + 0.01
        assert torch.allclose(backbone.embed(dense, 0.01 * soft), backbone.embed(dense, soft),
                              atol=1e-5)
        gap = [(backbone.embed(dense, masks + floor) - found)[0].abs().max()
               for floor in (1e-3, 1e-1)]
    assert 0 < gap[0] < gap[1]


@pytest.mark.parametrize('model', MODELS)
def test_the_tower_is_never_trained(model, weights):
    network = make(model, weights)
    network.train()
    assert network.region_head.training
    assert not any(m.training for m in network.backbone.modules())
    assert not any(p.requires_grad for p in network.backbone.parameters())
    before = {k: v.clone() for k, v in network.backbone.state_dict().items()}
    prediction = network(torch.randn(2, 3, 64, 96))
    (prediction.class_logits.square().mean() + prediction.mask_logits.square().mean()).backward()
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    assert unused == []
    assert all(torch.equal(v, before[k]) for k, v in network.backbone.state_dict().items())


def test_soft_weights_are_squared_shares_of_cells():
    torch.manual_seed(0)
    logits = 4 * torch.randn(2, 3, 24, 32)
    logits[1, 2] = -4 - torch.rand(24, 32)
    soft = cell_weights(logits, (3, 4), SOFT)
    inside = torch.where(logits > 0, logits.sigmoid(), 0).numpy()
    # A faint mask is better than none.
    inside[1, 2] = (logits[1, 2] - logits[1, 2].max()).sigmoid()
    shares = inside.reshape(2, 3, 3, 8, 4, 8).mean((3, 5))
    np.testing.assert_allclose(soft.numpy(), shares ** 2, rtol=1e-4)
    hard = cell_weights(logits, (3, 4), FC_CLIP)
    assert set(hard.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(hard, (functional.interpolate(logits, (3, 4), mode='bilinear') > 0).float())


def test_small_regions_survive_soft_pooling_alone(weights):
    backbone = frozen('tiny-convnext', weights)
    logits = torch.full((1, 1, 24, 32), -6.0)
    logits[..., 9:11, 17:19] = 12.0  # 8 x 8 pixels beside the middle of a cell.
    assert not cell_weights(logits, (3, 4), FC_CLIP).any()
    soft = cell_weights(logits, (3, 4), SOFT)
    # Nothing of the faint rest of the frame.
    assert soft[0, 0].flatten().nonzero().tolist() == [[1 * 4 + 2]]
    dense = torch.randn(1, backbone.channels[32], 3, 4)
    with torch.inference_mode():
        assert not backbone.embed(dense, cell_weights(logits, (3, 4), FC_CLIP)).any()
        assert backbone.embed(dense, soft).norm() == pytest.approx(1, abs=1e-5)


def test_classes_are_their_nearest_wording(weights):
    head = make('tiny-convnext', weights).region_head
    regions = functional.normalize(torch.randn(1, 5, DIM), dim=2)
    with torch.inference_mode():
        found = head.trained_logits(regions)[0]
        cosines = regions[0] @ head.texts.T
        void = regions[0] @ functional.normalize(head.void.weight[0], dim=0)
    scale = 1 / 0.07
    assert torch.allclose(found[:, 0], scale * cosines[:, :2].amax(1), atol=1e-4)
    assert torch.allclose(found[:, 1:3], scale * cosines[:, 2:], atol=1e-4)
    assert torch.allclose(found[:, 3], scale * void, atol=1e-4)


def softmax(logits):
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def test_the_ensemble_is_fc_clips(weights):
    network = make('tiny-convnext', weights)
    head = network.region_head
    texts = [head.texts[:2], head.texts[2:3], head.texts[3:]]
    head.set_texts(texts, [True, False, True])
    regions, other = functional.normalize(torch.randn(2, 1, 6, DIM), dim=3)
    other[0, 5] = 0
    scale = torch.tensor(20.0)
    with torch.inference_mode():
        trained = head.trained_logits(regions)
        found = head.ensemble(trained, other, scale).softmax(2)[0].numpy()
    inside, void = softmax(trained[0, :, :3].numpy()), softmax(trained[0].numpy())[:, 3:]
    cosines = other[0].numpy() @ head.texts.numpy().T
    outside = softmax(20 * np.stack([cosines[:, :2].max(1), cosines[:, 2], cosines[:, 3]], 1))
    share = np.array([0.4, 0.8, 0.4])
    products = inside ** (1 - share) * outside ** share
    products[5] = inside[5]  # Nothing of an empty region was seen by CLIP.
    expected = products / products.sum(1, keepdims=True) * (1 - void)
    np.testing.assert_allclose(found, np.concatenate((expected, void), 1), atol=1e-5)


@pytest.mark.parametrize('model', MODELS)
def test_a_network_predicts_the_ensemble_and_learns_without_it(model, weights):
    network = make(model, weights, decoder_layers=2)
    image = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        prediction = network(image)
        embeddings = prediction.embeddings
        for rows in (embeddings.regions, embeddings.frozen):
            assert torch.allclose(rows.norm(dim=2), torch.ones(2, 6), atol=1e-5)
        assert prediction.class_logits.shape == (2, 6, 4) and prediction.auxiliary == []
        total = prediction.class_logits.exp().sum(2)
        assert torch.allclose(total, torch.ones(2, 6), atol=1e-5)
        network.train()
        learning = network(image)
        assert len(learning.auxiliary) == 2 and learning.embeddings.frozen is None
        assert torch.allclose(learning.mask_logits, prediction.mask_logits, atol=1e-5)
        trained = network.region_head.ensemble(
            learning.class_logits, embeddings.frozen, network.backbone.scale)
        assert torch.allclose(trained, prediction.class_logits, atol=1e-4)
        assert not torch.allclose(learning.class_logits.softmax(2), trained.exp(), atol=1e-3)


def test_class_texts_are_the_text_towers(weights):
    open_clip = pytest.importorskip('open_clip')
    names = ['SignSymbol', 'Car', 'traffic_sign']
    found = clip_class_texts('tiny-convnext', weights['tiny-convnext'], names)
    assert found.wordings[0] == ('signsymbol',) or 'traffic sign' not in found.wordings[0]
    assert found.wordings[2][0] == 'traffic sign' and 'automobile' in found.wordings[1]
    texts = [text for group in found.wordings for text in group]
    assert len(set(texts)) == len(texts)
    model = open_clip_model('tiny-convnext', weights['tiny-convnext'])
    prompts = default_vocabulary().prompts('caption', 'automobile')
    with torch.inference_mode():
        rows = model.encode_text(open_clip.get_tokenizer('tiny-convnext')(list(prompts)),
                                 normalize=True)
    expected = functional.normalize(rows.mean(0), dim=0)
    row = found.rows[1][found.wordings[1].index('automobile')]
    assert torch.allclose(row, expected, atol=1e-5)


def test_wordings_are_left_to_the_class_they_name():
    plain = class_wordings(['pedestrian', 'street'])
    assert 'street' in class_wordings(['road'])[0]
    assert 'street' not in class_wordings(['road', 'street'])[0]
    assert plain[1][0] == 'street'


def test_what_does_not_go_together_is_refused(weights):
    for changes, says in (({'region_dim': 99}, f'region_dim must be {DIM}'),
                          ({'region_pooling': 'hard'}, 'region_pooling must be'),
                          ({'outlier_class': True}, 'no outlier class'),
                          ({'backbone': 'mobilenetv2_100_e1', 'backbone_options': {},
                            'pretrained': None}, 'goes with backbone open_clip')):
        with pytest.raises(ConfigError, match=says):
            make('tiny-resnet', weights, **changes)
    network = make('tiny-resnet', weights)
    with pytest.raises(ConfigError, match='no outlier class'):
        network.add_outlier_class()
    with pytest.raises(ValueError, match='texts of class 1'):
        network.region_head.set_texts([torch.ones(1, DIM), torch.ones(0, DIM)])
    for model, says in (('ViT-B-32', 'no convolutional image tower'), ('RN5', 'knows no model')):
        with pytest.raises(ValueError, match=says):
            build_backbone('open_clip', None, {'model': model})
    with pytest.raises(ValueError, match='cannot make tiny-resnet'):
        build_backbone('open_clip', str(weights['tiny-convnext']), {'model': 'tiny-resnet'})
    with pytest.raises(ValueError, match='backbone open_clip with options'):
        build_backbone('open_clip', None, {'name': 'RN50'})


@pytest.mark.timeout(300)
def test_a_run_is_read_back_without_the_checkpoint_of_clip(weights, tmp_path):
    root = write_camvid(tmp_path)
    copy = tmp_path / 'clip.pt'
    copy.write_bytes(weights['tiny-resnet'].read_bytes())
    training = ClosedSetTraining(clip_config(root, 'tiny-resnet', copy), tmp_path / 'run', 'cpu')
    groups = parameter_groups(training.network, training.config)
    scale = training.network.region_head.log_scale
    assert [g['weight_decay'] for g in groups if any(p is scale for p in g['params'])] == [0]
    training.run(validate_every=None, report=False)
    space = (tmp_path / 'run' / 'text_space.txt').read_text().strip()
    assert space.startswith('open_clip/tiny-resnet/')
    copy.unlink()
    network, config = load_network(tmp_path / 'run')
    assert network.num_classes == 3 and config.network.region_ensemble == (0.4, 0.8)
    expected = training.average.state_dict()
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected[name]), name
    texts = clip_class_texts('tiny-resnet', weights['tiny-resnet'], ['a', 'b', 'c'])
    assert texts.space == space
    assert torch.allclose(network.region_head.texts, torch.cat(texts.rows))
    image = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        # The run's own weights lie in memory in another order.
        assert torch.allclose(network(image).class_logits,
                              training.average(image).class_logits, atol=1e-4)


@pytest.mark.parametrize('name', ['clip_convnext_camvid', 'clip_rn50_camvid'])
def test_recipes_have_the_dimension_of_their_model(name):
    open_clip = pytest.importorskip('open_clip')
    network = yaml.safe_load((RECIPES / f'{name}.yaml').read_text())['network']
    model = open_clip.get_model_config(network['backbone_options']['model'])
    assert network['region_dim'] == model['embed_dim']


def test_weights_that_are_not_there_are_one_line(tmp_path, weights, capsys):
    recipe = tmp_path / 'tiny.yaml'
    config = clip_config(write_camvid(tmp_path), 'tiny-resnet', tmp_path / 'missing.pt')
    recipe.write_text(yaml.safe_dump(config.to_dict()))
    assert cli.main(['closed-set', '--config', str(recipe), '--out', str(tmp_path / 'run')]) == 2
    message = capsys.readouterr().err
    assert message.count('\n') == 1 and 'missing.pt cannot be read' in message


@pytest.mark.timeout(300)
@pytest.mark.parametrize('model, pooling', [('tiny-convnext', SOFT), ('tiny-resnet', FC_CLIP)])
def test_the_graph_is_the_network(model, pooling, weights, tmp_path):
    network = make(model, weights, region_pooling=pooling)
    with torch.no_grad():
        network.transformer_decoder.mask_embed[-1].weight.mul_(30)
    export_onnx(network, tmp_path / 'network.onnx', (96, 64))
    images = [torch.randn(3, 64, 96) for _ in range(3)]
    found = parity(network, tmp_path / 'network.onnx', images)
    assert {'region_embeddings', 'frozen_region_embeddings', 'text_features'} < set(found)
    assert max(found.values()) <= 1e-4, found
    assert tensorrt_support.check(tmp_path / 'network.onnx').summary()['unsupported'] == []


@pytest.fixture(scope='module')
def chain(weights, tmp_path_factory):
    """Return the folders of bundle and text encoder, made by the command line alone."""
    folder = tmp_path_factory.mktemp('chain')
    root = write_camvid(folder)
    listing = root / 'camvid' / 'classes.json'
    for old, new in (('"a"', '"car"'), ('"b"', '"tree"'), ('"c"', '"sky"')):
        listing.write_text(listing.read_text().replace(old, new))
    recipe, clip = folder / 'recipe.yaml', weights['tiny-resnet']
    recipe.write_text(yaml.safe_dump(clip_config(root, 'tiny-resnet', None).to_dict()))
    run, text, bundle = (str(folder / name) for name in ('run', 'text', 'bundle'))
    for command in (
            ['closed-set', '--config', str(recipe), '--pretrained', str(clip), '--out', run],
            ['text-encoder', 'open-clip', '--model', 'tiny-resnet', '--weights', str(clip),
             '--out', text],
            ['export', run, '--out', bundle, '--data', str(root), '--text-encoder', text]):
        assert cli.main(command) == 0
    return bundle, text


@pytest.mark.timeout(300)
def test_a_checkpoint_of_clip_becomes_masks_of_words(chain):
    bundle, text = chain
    segmenter, encoder = Segmenter(bundle), OnnxTextEncoder(text)
    language = segmenter.bundle.language
    assert language.space == encoder.space and language.dim == DIM
    assert 'open_clip tiny-resnet' in segmenter.bundle.license
    assert 'frozen; language.space' in segmenter.bundle.provenance['initialisation']
    ensemble = language.ensemble
    assert (ensemble.seen, ensemble.unseen) == (0.4, 0.8) and 'automobile' in ensemble.seen_names
    assert ensemble.temperature == pytest.approx(0.07, abs=1e-4)  # open_clip's random model's.
    book, scorer = QueryBook(encoder), QueryScorer(language, encoder)
    both = scorer.prepare(book.ask('automobile, traffic cone').active)
    assert both.frozen_share.tolist() == pytest.approx([0.4, 0.8])
    # Fewer regions take part, so that no pixel's sum is cut off at 1.
    segmenter.bundle = replace(segmenter.bundle, language=replace(language, objectness=50.0))
    scorer = QueryScorer(segmenter.bundle.language, encoder)
    cone = scorer.prepare(book.ask('traffic cone').active)
    image = np.random.default_rng(0).integers(0, 256, (72, 96, 3), np.uint8)
    found = segmenter(image, maps={'query_mask', 'query_score'}, queries=cone)
    assert ((found.query_mask == 0) == (found.query_score >= cone.thresholds[0])).all()
    output = segmenter.engine.infer([Frame(image)])
    arguments = output.region_embeddings[0], 1 - output.no_object_probabilities[0]
    combined = class_map(output, cone.weights(*arguments, output.frozen_region_embeddings[0]))
    # Anomalous regions may answer for more than the masks that they are in.
    assert np.abs(found.query_score - combined).mean() < 1e-3
    assert np.abs(found.query_score - class_map(output, cone.weights(*arguments))).mean() > 0.01


def class_map(output, weights):
    """Return the best score of each pixel, float [72, 96], of weights [N, Q]."""
    masks = functional.interpolate(torch.from_numpy(output.mask_logits[:1]), size=(72, 96),
                                   mode='bilinear', align_corners=False)[0].sigmoid()
    return np.einsum('nhw,nq->qhw', masks.numpy(), weights).clip(max=1).max(0)


@pytest.mark.timeout(300)
def test_its_masks_are_published_when_words_are(chain):
    pytest.importorskip('rclpy', reason='rclpy is not installed (pip install owseg_ros[ros])')
    from owseg_ros.nodes.perception import PerceptionNode
    from sensor_msgs.msg import Image
    from std_msgs.msg import String
    from support.dds import ImagePublisher, LATCHED, RELIABLE, Repeater, Ros, stamp_of, wait_until

    bundle, text = chain
    ros = Ros()
    try:
        statuses = ros.collect(String, 'query/status', LATCHED)
        masks, labels = ros.collect(Image, 'query/mask'), ros.collect(String, 'query/labels')
        topic = ros.client.create_publisher(String, 'query', RELIABLE)
        camera = ImagePublisher(ros.client, qos=RELIABLE)
        node = ros.start(PerceptionNode, {
            'model': bundle, 'text_encoder': text, 'autostart': True, 'query_threshold': 0.0})
        wait_until(lambda: node.phase == 'active')
        statuses.first(lambda message: json.loads(message.data)['state'] == 'ready')
        wait_until(lambda: topic.get_subscription_count() > 0)
        topic.publish(String(data='automobile, traffic cone'))
        image = np.random.default_rng(1).integers(0, 256, (72, 96, 3), np.uint8)
        with Repeater(lambda: camera.send(image), 10.0):
            label = json.loads(labels.first(
                lambda message: len(json.loads(message.data)['queries']) == 2
                and json.loads(message.data)['stamp'] is not None).data)
            stamp = label['stamp']['sec'], label['stamp']['nanosec']
            mask = image_to_array(masks.first(lambda message: stamp_of(message) == stamp))
    finally:
        ros.close()
    assert [query['name'] for query in label['queries']] == ['automobile', 'traffic cone']
    # At a threshold of 0, each pixel has its best query.
    assert mask.shape == (72, 96) and set(np.unique(mask)) <= {0, 1}
