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
The network and what the robot does with it against FC-CLIP's rule, written again from its text.

Yu et al., "Convolutions Die Hard: Open-Vocabulary Segmentation with Single Frozen Convolutional
CLIP", NeurIPS 2023, sections 3.3 and 4.1: mask by mask and class by class, in NumPy, with nothing
of the network's own code.
"""

import numpy as np
from owseg_ros.language import default_vocabulary
from owseg_ros.language.book import embed_texts
from owseg_ros.readout.reference import class_probabilities
from owseg_training.class_texts import clip_class_texts
from owseg_training.config import ConfigError
from owseg_training.data.stream import MEAN, STD
from owseg_training.network import MaskClassifier
from owseg_training.network.frozen_clip import (
    cell_weights, class_logits, FC_CLIP, geometric_ensemble)
from owseg_training.open_clip_models import import_open_clip, open_clip_model
import pytest
from support.clip_models import clip_config, DIM, MODELS, write_clip_models
from support.counting_encoder import CountingEncoder
import torch

VILD = (
    'a photo of a {}.', 'This is a photo of a {}', 'There is a {} in the scene',
    'There is the {} in the scene', 'a photo of a {} in the scene', 'a photo of a small {}.',
    'a photo of a medium {}.', 'a photo of a large {}.', 'This is a photo of a small {}.',
    'This is a photo of a medium {}.', 'This is a photo of a large {}.',
    'There is a small {} in the scene.', 'There is a medium {} in the scene.',
    'There is a large {} in the scene.')
NAMES, SEEN = ('car', 'wheelie bin', 'sky'), (True, False, True)
TOLERANCE = 1e-5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def best_of(scale, vector, groups):
    """Return scale times the cosine with the nearest row of each group."""
    return scale * np.array([max(float(vector @ row) for row in rows) for rows in groups])


def rule(trained, trained_scale, frozen, frozen_scale, groups, void, seen):
    """
    Return the probabilities of one mask, the void last.

    trained, frozen: embeddings of unit length, frozen None for a mask that counts as invalid.
    """
    inside = best_of(trained_scale, trained, groups)
    void_logit = trained_scale * float(trained @ void)
    p_void = softmax(np.append(inside, void_logit))[-1]
    p_in = softmax(inside)
    p_out = p_in if frozen is None else softmax(best_of(frozen_scale, frozen, groups))
    a = np.array([0.4 if known else 0.8 for known in seen]) * (frozen is not None)
    combined = softmax(np.log(p_in ** (1 - a) * p_out ** a))
    return np.append(combined * (1 - p_void), p_void)


def test_the_parts_are_the_rule_s():
    rng = np.random.default_rng(0)
    groups = [unit(rng.normal(size=(n, 16))) for n in (3, 1, 2)]
    void = unit(rng.normal(size=16))
    trained, frozen = unit(rng.normal(size=(2, 5, 16)))
    rows = torch.tensor([[0, 1, 2], [3, 3, 3], [4, 5, 4]])
    texts = torch.from_numpy(np.concatenate(groups))
    share = torch.tensor([0.4, 0.8, 0.4], dtype=torch.float64).repeat(5, 1)
    share[4] = 0

    def logits(vectors, scale):
        return class_logits(torch.from_numpy(vectors[None]), texts, rows, torch.tensor(scale))

    with_void = torch.cat((logits(trained, 14.0), torch.from_numpy(
        14 * trained @ void)[None, :, None]), 2)
    found = geometric_ensemble(with_void, logits(frozen, 100.0), share).softmax(2)[0].numpy()
    for mask in range(5):
        expected = rule(trained[mask], 14, None if mask == 4 else frozen[mask], 100, groups, void,
                        SEEN)
        np.testing.assert_allclose(found[mask], expected, atol=1e-10)
    assert np.ptp(found.argmax(1)) > 0


def bilinear(plane, size):
    """Resize without aligned corners, pixel by pixel."""
    out = np.empty(size)
    for y in range(size[0]):
        for x in range(size[1]):
            at = [min(max((i + 0.5) * old / new - 0.5, 0), old - 1)
                  for i, old, new in zip((y, x), plane.shape, size)]
            (top, left), (down, right) = map(int, at), [
                min(int(i) + 1, n - 1) for i, n in zip(at, plane.shape)]
            v, h = at[0] - top, at[1] - left
            out[y, x] = ((1 - v) * ((1 - h) * plane[top, left] + h * plane[top, right])
                         + v * ((1 - h) * plane[down, left] + h * plane[down, right]))
    return out


def test_hard_masks_are_logits_above_zero_at_stride_32():
    logits = torch.randn(1, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    logits[0, 3] = -1
    logits[0, 3, :2, :2] = 30  # Beside the middle of its cell.
    found = cell_weights(logits, (2, 3), FC_CLIP)[0].numpy()
    for plane, expected in zip(found, logits[0].numpy()):
        np.testing.assert_array_equal(plane, bilinear(expected, (2, 3)) > 0)
    assert found[:3].any() and not found[3].any()


def test_prompts_are_averaged_at_unit_length_and_so_is_their_mean():
    vocabulary, encoder = default_vocabulary(), CountingEncoder(templates='caption')
    assert vocabulary.templates['caption'] == VILD
    row, = embed_texts(encoder, vocabulary, ['wheelie bin'])
    prompts = [template.replace('{}', 'wheelie bin') for template in VILD]
    assert encoder.asked == [prompts]
    mean = np.mean([unit(encoder.vector(prompt)) for prompt in prompts], 0)
    np.testing.assert_allclose(row, unit(mean), atol=1e-6)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    """Return a checkpoint of each small model."""
    return write_clip_models(tmp_path_factory.mktemp('clip'))


def make(model, weights, **changes):
    config = clip_config('', model, weights[model]).network
    config.region_pooling = FC_CLIP
    for key, value in changes.items():
        setattr(config, key, value)
    torch.manual_seed(3)
    network = MaskClassifier(config, len(NAMES)).eval()
    network.region_head.set_texts(
        clip_class_texts(model, weights[model], NAMES).rows, SEEN)
    with torch.no_grad():
        # So that masks and voids differ.
        network.transformer_decoder.mask_embed[-1].weight.mul_(30)
        network.transformer_decoder.class_embed.weight.mul_(4)
    return network


def without_the_first(module, inputs, predictions):
    """Make the first mask of every prediction an empty one."""
    for _, masks in predictions:
        masks[:, 0] = -20


def dense_features(clip, name, image):
    """Return what CLIP's own head takes, float32 [C, h, w], of a picture in 0..1."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (
        clip.visual.image_mean, clip.visual.image_std))
    inputs = ((image - mean) / std)[None]
    if name == 'tiny-convnext':
        return clip.visual.trunk.forward_features(inputs)[0]
    for layer in (clip.visual.stem, clip.visual.layer1, clip.visual.layer2, clip.visual.layer3,
                  clip.visual.layer4):
        inputs = layer(inputs)
    return inputs[0]


def convnext_embedding(clip, dense, mask):
    pooled = (dense * mask).sum((1, 2)) / (mask.sum() + 1e-8)
    return clip.visual.head(clip.visual.trunk.head(pooled[None, :, None, None]))[0].numpy()


def resnet_embedding(clip, dense, mask):
    """Return CLIP's attention pooling, head by head, over the cells of the mask alone."""
    pool = clip.visual.attnpool
    table = pool.positional_embedding.numpy()
    side = int(len(table[1:]) ** 0.5)
    places = np.stack([bilinear(plane, mask.shape) for plane in
                       table[1:].T.reshape(-1, side, side)]).reshape(len(dense), -1).T
    cells = dense.flatten(1).T.numpy()

    def linear(layer, vectors):
        return vectors @ layer.weight.numpy().T + layer.bias.numpy()

    query = linear(pool.q_proj, cells.mean(0) + table[0])
    inside = mask.flatten().numpy() > 0
    keys = linear(pool.k_proj, (cells + places)[inside])
    values = linear(pool.v_proj, (cells + places)[inside])
    width = len(query) // pool.num_heads
    heads = [slice(i * width, (i + 1) * width) for i in range(pool.num_heads)]
    pooled = [softmax(keys[:, h] @ query[h] / width ** 0.5) @ values[:, h] for h in heads]
    return linear(pool.c_proj, np.concatenate(pooled))


EMBEDDINGS = {'tiny-convnext': convnext_embedding, 'tiny-resnet': resnet_embedding}


def text_groups(name, clip, wordings):
    """Return the rows of each class: each wording in ViLD's prompts, by open_clip itself."""
    tokenize = import_open_clip().get_tokenizer(name)

    def row(wording):
        prompts = clip.encode_text(tokenize([t.format(wording) for t in VILD])).numpy()
        return unit(unit(prompts).mean(0))

    return [np.stack([row(wording) for wording in group]) for group in wordings]


@pytest.mark.timeout(300)
@pytest.mark.parametrize('model, valid_masks', [
    ('tiny-convnext', True), ('tiny-convnext', False), ('tiny-resnet', True)])
@torch.inference_mode()
def test_network_and_runtime_follow_the_rule(model, valid_masks, weights):
    network = make(model, weights, region_valid_masks=valid_masks)
    network.transformer_decoder.register_forward_hook(without_the_first)
    clip = open_clip_model(model, weights[model])
    clip.logit_scale.fill_(2.5)
    network.backbone.log_scale.fill_(2.5)
    picture = torch.rand(3, 96, 160, generator=torch.Generator().manual_seed(5))
    image = (255 * picture - torch.tensor(MEAN)[:, None, None]) / torch.tensor(
        STD)[:, None, None]
    prediction = network(image[None])
    # What the robot's readout makes of the outputs.
    probabilities = class_probabilities(prediction.class_logits[0].numpy())

    head = network.region_head
    wordings = clip_class_texts(model, weights[model], NAMES).wordings
    groups = text_groups(model, clip, wordings)
    assert max(map(len, groups)) > 1
    void = unit(head.void.weight[0].numpy())
    scales = min(float(head.log_scale.exp()), 100), min(float(clip.logit_scale.exp()), 100)
    dense = dense_features(clip, model, picture)
    empty = 0
    for n, logits in enumerate(prediction.mask_logits[0].numpy()):
        mask = torch.from_numpy(bilinear(logits, dense.shape[1:]) > 0).float()
        empty += not mask.any()
        frozen = None
        if mask.any() or not valid_masks:
            frozen = unit(EMBEDDINGS[model](clip, dense, mask))
            np.testing.assert_allclose(prediction.embeddings.frozen[0, n], frozen,
                                       atol=TOLERANCE)
        trained = prediction.embeddings.regions[0, n].numpy()
        expected = rule(trained, scales[0], frozen, scales[1], groups, void, SEEN)
        np.testing.assert_allclose(prediction.class_logits[0, n].softmax(0), expected,
                                   atol=TOLERANCE)
        np.testing.assert_allclose(probabilities[n], expected[:-1], atol=TOLERANCE)
    assert 0 < empty < len(probabilities)
    assert np.ptp(probabilities.sum(1)) > 0.05  # The queries differ in their void.


@torch.inference_mode()
def test_a_query_turns_its_embedding_to_the_void_alone(weights):
    network = make('tiny-convnext', weights)
    prediction = network(torch.randn(1, 3, 64, 96))
    embeddings, logits = prediction.embeddings, prediction.mask_logits
    masks = torch.nn.functional.avg_pool2d(logits.sigmoid(), 2)[0].flatten(1).numpy()
    dense = embeddings.text_features[0].flatten(1).numpy()
    void = unit(network.region_head.void.weight[0].numpy())
    for mask, region in zip(masks, embeddings.regions[0].numpy()):
        plain = unit(dense @ mask / mask.sum())
        # Both in one plane with the void: what is across it points the same way.
        across, expected = (unit(v - (v @ void) * void) for v in (region, plain))
        np.testing.assert_allclose(across, expected, atol=1e-4)
        assert abs(region @ void - plain @ void) > 1e-3
    assert embeddings.regions.shape[2] == DIM


def test_an_empty_mask_of_a_resnet_has_no_embedding_to_combine(weights):
    with pytest.raises(ConfigError, match='region_valid_masks must be true for a ResNet'):
        make('tiny-resnet', weights, region_valid_masks=False)
    assert set(MODELS) == set(EMBEDDINGS)
