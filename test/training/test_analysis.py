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
import copy
import dataclasses
import json

import cv2
import numpy as np
from owseg_training.analysis.masking import MaskedScores, masking, specialised_scores, with_queries
from owseg_training.analysis.modes import (
    border, find_modes, kind_of, MODES, sample, Samples, statistics, vectors)
from owseg_training.analysis.run import open_run, Run
from owseg_training.analysis.specialisation import (
    confident_queries, Specialisation, specialisation)
from owseg_training.analysis.validation_losses import validation_losses
from owseg_training.cli import main
from owseg_training.closed_set import predict_scores
from owseg_training.data.datasets import open_data_set, read_image
from owseg_training.data.hidden import open_split
from owseg_training.losses import SetCriterion
from owseg_training.network import MaskClassifier
import pytest
from safetensors.torch import save_file
from support.camvid import tiny_config, write_camvid
import torch
import yaml

# The specialised query of classes a, b and c of the tiny network.
QUERIES = (4, 0, 2)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_camvid(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def run(data):
    """Make a network of which query QUERIES[k] predicts class k, the others no object."""
    torch.manual_seed(0)
    config = tiny_config(data)
    network = MaskClassifier(config.network, 3).eval()
    decoder = network.transformer_decoder
    with torch.no_grad():
        # The head reads four channels that only the query's own embedding sets.
        decoder.query_feat.weight[:, :4] = torch.tensor([0.0, 0, 0, 60])
        for k, query in enumerate(QUERIES):
            decoder.query_feat.weight[query, :4] = 60 * torch.eye(4)[k]
        decoder.class_embed.weight.zero_()
        decoder.class_embed.weight[:, :4] = 4 * torch.eye(4)
        decoder.class_embed.bias.zero_()
        # Masks that cover something and differ from pixel to pixel.
        decoder.mask_embed[-1].bias.normal_(0, 3)
    palette = np.zeros((256, 3), np.uint8)
    palette[:3] = np.eye(3) * 255
    return Run(network, config, ('a', 'b', 'c'), palette)


def test_a_region_counts_if_confident_of_a_class_and_not_empty():
    probability = torch.tensor([[0.9, 0.05, 0.05], [0.7, 0.2, 0.1], [0.0001, 0.0999, 0.9],
                                [0.05, 0.85, 0.1]])
    masks = torch.full((4, 2, 2), -1.0)
    masks[:3, 0, 0] = 1
    confident, mass = confident_queries(probability.log(), masks, 0.8)
    # Not confident; no object; without a region.
    assert confident.tolist() == [[True, False], [False, False], [False, False], [False, False]]
    assert np.allclose(mass, [[0.9, 0.05], [0.7, 0.2], [0.0001, 0.0999], [0, 0]], atol=1e-6)
    assert confident_queries(probability.log(), masks, 0.6)[0].sum() == 2


def test_the_specialised_query_has_the_largest_count_then_the_largest_mass():
    counts = np.array([[5, 0, 2], [1, 0, 2], [0, 0, 0]])
    mass = np.array([[5.0, 0.1, 9.0], [9.0, 0.3, 9.5], [9.0, 0.2, 99.0]])
    result = Specialisation(counts, mass, 6, 0.8)
    assert result.queries().tolist() == [0, 1, 1]
    assert np.allclose(result.dominance(), [5 / 6, np.nan, 1 / 2], equal_nan=True)


def test_specialisation_finds_the_queries_that_were_built_in(run, data):
    data_set = open_data_set('camvid', 'val', data)
    result = specialisation(run, [data_set, data_set], limit=2)
    expected = np.zeros((6, 3), int)
    expected[list(QUERIES), range(3)] = 4
    assert result.frames == 4 and result.counts.tolist() == expected.tolist()
    assert result.queries().tolist() == list(QUERIES)


@pytest.mark.parametrize('kind', ['masked_attention', 'region_cross_attention'])
def test_a_subset_of_the_queries_equals_a_decoder_that_has_no_others(data, kind):
    torch.manual_seed(1)
    config = tiny_config(data).network
    config.transformer_decoder, config.decoder_layers = kind, 2
    network = MaskClassifier(config, 3).eval()
    decoder = network.transformer_decoder
    config.queries = 2
    small = type(decoder)(config, 3).eval()
    state = {name: value[[5, 1]] if name in ('query_feat.weight', 'query_embed.weight') else value
             for name, value in decoder.state_dict().items()}
    small.load_state_dict(state)
    subset = with_queries(decoder, [5, 1])
    assert subset.class_embed.weight is decoder.class_embed.weight
    assert decoder.query_feat.weight.shape[0] == 6
    with torch.inference_mode():
        pyramid, features = network.pixel_decoder(network.backbone(torch.randn(1, 3, 64, 96)))
        pairs = list(zip(subset(pyramid, features), small(pyramid, features)))
        for (classes, masks), (expected_classes, expected_masks) in pairs:
            assert torch.equal(classes, expected_classes) and torch.equal(masks, expected_masks)
        together = decoder(pyramid, features)[-1][1][:, [5, 1]]
    # Only self-attention lets queries know of each other.
    same = torch.allclose(masks, together, atol=1e-5)
    assert same == (kind == 'region_cross_attention')


@torch.inference_mode()
def test_hard_masking_runs_each_query_alone_and_soft_masking_drops_the_others(run, data):
    image = read_image(open_data_set('camvid', 'val', data).items[0].image)
    scores = dict(MaskedScores(run, np.array(QUERIES))(image))
    network = run.network
    prediction = network(run.stretch(image))
    probability = prediction.class_logits[0].softmax(1)

    def vote(logits, masks, query, k):
        mask = torch.nn.functional.interpolate(masks[:, query:query + 1], size=run.size,
                                               mode='bilinear', align_corners=False)
        return logits[0].softmax(1)[query, k] * mask.sigmoid()[0, 0]

    pyramid, features = network.pixel_decoder(network.backbone(run.stretch(image)))
    for k, query in enumerate(QUERIES):
        assert torch.allclose(scores['soft'][k], vote(
            prediction.class_logits, prediction.mask_logits, query, k), atol=1e-6)
        alone = with_queries(network.transformer_decoder, [query])(pyramid, features)[-1]
        assert torch.allclose(scores['hard'][k], vote(*alone, 0, k), atol=1e-6)
    assert not torch.allclose(scores['hard'], scores['soft'], atol=1e-3)
    everything = torch.stack([sum(
        vote(prediction.class_logits, prediction.mask_logits, n, k) for n in range(6))
        for k in range(3)])
    assert torch.allclose(scores['none'], everything, atol=1e-5)
    assert probability[list(QUERIES), range(3)].min() > 0.9


def test_a_network_with_an_outlier_class_is_looked_at_like_any_other(run, data):
    network = copy.deepcopy(run.network)
    network.add_outlier_class()
    other = dataclasses.replace(
        run, network=network, config=dataclasses.replace(run.config, network=network.config))
    data_set = open_data_set('camvid', 'val', data)
    found, before = (specialisation(one, [data_set], limit=2) for one in (other, run))
    assert found.counts.tolist() == before.counts.tolist() and found.counts.any()
    assert found.mass.shape == (6, 3) and (found.mass <= before.mass).all()
    image = read_image(data_set.items[0].image)
    scores = dict(MaskedScores(other, np.array(QUERIES))(image))
    assert {kind: len(values) for kind, values in scores.items()} == {
        'hard': 3, 'soft': 3, 'none': 3}
    assert validation_losses(other).keys() == {'class', 'mask', 'dice'}


def test_losses_are_of_the_classes_that_a_run_knows(run, data):
    """Hidden classes are void and the ids of the others have no gaps."""
    config = copy.deepcopy(run.config)
    config.data.hidden = ['a']
    torch.manual_seed(0)
    network = MaskClassifier(config.network, 2).eval()
    other = dataclasses.replace(run, network=network, config=config, class_names=('b', 'c'))
    data_set = open_split(config.data, 'val')
    criterion = SetCriterion(config.loss, 2)
    expected = []
    with torch.inference_mode():
        for index, item in enumerate(data_set.items):
            image, label = data_set.read(item)
            losses = criterion(network(other.stretch(image)), torch.from_numpy(label)[None],
                               seeds=[index])
            expected.append(losses['class'].item() / config.loss.class_weight)
    assert validation_losses(other)['class'] == pytest.approx(np.mean(expected))


def test_a_class_has_the_vote_of_its_query_only():
    logits = torch.tensor([[3.0, 0, 0], [0, 2.0, 0], [0, 5.0, 0]])
    masks = torch.tensor([1.0, -2, 8])[:, None, None].expand(3, 2, 2)
    scores = specialised_scores(logits, masks, [0, 1], (4, 4))
    probability = logits.softmax(1)
    assert scores.shape == (2, 4, 4)
    assert torch.allclose(scores[0], probability[0, 0] * torch.tensor(1.0).sigmoid())
    assert torch.allclose(scores[1], probability[1, 1] * torch.tensor(-2.0).sigmoid())


def test_masking_measures_each_kind_and_wants_a_query_for_each_class(run, data):
    data_set = open_data_set('camvid', 'val', data)
    result = masking(run, data_set, np.array(QUERIES), limit=2)
    assert result.frames == 2 and result.class_names == ('a', 'b', 'c')
    # The other queries have next to no class probability here, and the labels are the data's.
    assert np.allclose(result.iou['soft'], result.iou['none'], atol=0.02, equal_nan=True)
    expected = np.zeros((3, 4))
    for item in data_set.items[:2]:
        image, label = data_set.read(item)
        np.add.at(expected, (label, predict_scores(run.network, image, run.config).argmax(0)), 1)
    hits = np.diag(expected)
    union = expected.sum(1) + expected.sum(0)[:3] - hits
    assert np.allclose(result.iou['none'], hits / union)
    with pytest.raises(ValueError, match='2 queries for 3 classes'):
        masking(run, data_set, np.array([0, 1]))


def made_up_scores(count=400):
    """Class scores of the four modes in the order of MODES, whichever classes have the votes."""
    rng = np.random.default_rng(0)
    pure = np.array([[0.02, 0.01, 0, 0, 0], [0.95, 0.02, 0, 0, 0], [0.5, 0.45, 0, 0, 0],
                     [0.25, 0.2, 0.2, 0.15, 0.1]])
    mode = rng.permutation(np.arange(count) % 4)
    scores = np.clip(pure[mode] + rng.normal(0, 0.02, (count, 5)), 0, None)
    return np.stack([rng.permutation(row) for row in scores]).astype(np.float32), mode


def test_made_up_modes_are_found_and_named():
    scores, mode = made_up_scores()
    modes = find_modes(scores)
    assert (modes.assign(scores) == mode).all()
    assert np.allclose(modes.shares, 1 / 4)
    assert np.allclose(modes.centres[MODES.index('boundary')][:2], [0.5, 0.45], atol=0.03)
    again = find_modes(scores)
    assert (again.centres == modes.centres).all() and again.inertia == modes.inertia
    # In the order of the classes, one mode's votes for different classes lie far apart.
    assert find_modes(scores, ordered=False).inertia > 5 * modes.inertia
    with pytest.raises(ValueError, match='cannot find 4 modes'):
        find_modes(np.zeros((10, 5)))


def test_statistics_are_those_of_the_pixels_in_each_mode():
    scores, mode = made_up_scores()
    kind = np.where(mode == 0, 0, np.where(mode == 2, -1, 1)).astype(np.int8)
    place = (np.arange(400) >= 200).astype(int)
    samples = Samples(scores, place, kind, ('odd', 'street'), ('anomaly', 'classes'))
    rows = statistics(find_modes(scores), samples)
    assert [row['mode'] for row in rows] == list(MODES)
    outlier, inlier, boundary, ambiguous = rows
    assert outlier['pixels']['odd'] == {'anomaly': 1.0, 'known': 0.0}
    assert boundary['pixels']['street'] == {'boundary': 0.0, 'inside': 0.0}
    assert inlier['pixels']['odd']['known'] + ambiguous['pixels']['odd']['known'] == 1.0
    inside = scores[mode == 3].astype(float)
    assert ambiguous['rba'] == pytest.approx((1 - np.tanh(inside).sum(1)).mean())
    assert ambiguous['max_logit'] == pytest.approx(1 - inside.max(1).mean())
    assert np.allclose(ambiguous['sorted'], -np.sort(-inside, 1).mean(0))
    # What the paper claims of the scores: votes for several classes add up in RbA alone.
    assert boundary['max_logit'] > 0.4 and boundary['rba'] < inlier['rba']


def test_vectors_sort_each_pixel_on_its_own():
    scores = np.array([[0.1, 0.7, 0.2], [0.5, 0.1, 0.3]])
    assert vectors(scores, True).tolist() == [[0.7, 0.2, 0.1], [0.5, 0.3, 0.1]]
    assert vectors(scores, False).tolist() == scores.tolist()


def test_a_border_is_between_two_classes_and_void_makes_none(data):
    label = np.zeros((9, 20), np.uint8)
    label[:, 10:] = 3
    label[:, :2] = 255
    near = border(label, 2)
    assert np.flatnonzero(near[4]).tolist() == [8, 9, 10, 11]
    kind = kind_of(open_data_set('camvid', 'val', data), label)
    assert (kind[:, :2] == -1).all() and (kind[:, 4] == 1).all() and (kind[:, 9:11] == 0).all()


def test_samples_are_the_scores_of_the_frames_and_repeat(run, data):
    data_set = open_data_set('camvid', 'val', data)
    samples = sample(run, [data_set], 100, seed=3, limit=2)
    assert samples.scores.shape == (100, 3)
    again = sample(run, [data_set], 100, seed=3, limit=2)
    assert (again.scores == samples.scores).all() and (again.kind == samples.kind).all()
    assert (sample(run, [data_set], 100, seed=4, limit=2).scores != samples.scores).any()
    scores = predict_scores(run.network, read_image(data_set.items[0].image), run.config)
    pixels = {tuple(pixel) for pixel in scores.flatten(1).T.tolist()}
    assert all(tuple(pixel) in pixels for pixel in samples.scores[:50].tolist())
    kinds = kind_of(data_set, data_set.read_label(data_set.items[0]))
    assert abs((samples.kind[:50] == 0).mean() - (kinds == 0).mean()) < 0.25


@pytest.mark.timeout(180)
def test_the_commands_write_tables_and_pictures(run, data, tmp_path, capsys):
    folder = tmp_path / 'run'
    folder.mkdir()
    save_file({k: v.contiguous() for k, v in run.network.state_dict().items()},
              str(folder / 'model.safetensors'))
    (folder / 'config.yaml').write_text(yaml.safe_dump(run.config.to_dict()))
    (folder / 'classes.json').write_text((data / 'camvid' / 'classes.json').read_text())
    assert open_run(folder).class_names == ('a', 'b', 'c')
    common = [str(folder), '--data', str(data), '--limit', '2', '--device', 'cpu']
    for name, options in (('specialisation', []), ('masking', []),
                          ('modes', ['--data-set', 'camvid:val', '--pixels', '500'])):
        out = tmp_path / name
        assert main(['analyse', name, *common, '--out', str(out), *options]) == 0
        assert (out / f'{name}.md').read_text().startswith(capsys.readouterr().out.rstrip('\n'))
        assert cv2.imread(str(out / f'{name}.png')).std() > 5
    counts = json.loads((tmp_path / 'specialisation' / 'specialisation.json').read_text())
    assert [row['query'] for row in counts['classes']] == list(QUERIES)
    masked = json.loads((tmp_path / 'masking' / 'masking.json').read_text())
    assert masked['queries'] == dict(zip('abc', QUERIES)) and masked['frames'] == 2
    assert masked['queries_from'] == ['camvid_train'] and masked['data_set'] == 'camvid_val'
    modes = json.loads((tmp_path / 'modes' / 'modes.json').read_text())
    assert modes['pixels'] == 500 and sum(m['share'] for m in modes['modes']) == pytest.approx(1)
    assert main(['analyse', 'modes', *common, '--data-set', 'camvid:val', '--pixels', '500',
                 '--class-order', '--out', str(tmp_path / 'order')]) == 0
    assert 'largest score of each centre: outlier ' in capsys.readouterr().out
    assert 'each centre' not in (tmp_path / 'modes' / 'modes.md').read_text()
    assert main(['analyse', 'modes', str(tmp_path), '--out', str(tmp_path / 'no')]) == 2


def test_help_states_where_data_lie_by_default(capsys):
    for analysis in ('specialisation', 'masking', 'modes', 'pooling'):
        with pytest.raises(SystemExit, match='0'):
            main(['analyse', analysis, '--help'])
        assert 'default: $OWSEG_DATA' in capsys.readouterr().out
