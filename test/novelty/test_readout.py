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
"""Taught classes in the maps of a frame, end to end on a real small network."""

from dataclasses import replace

import numpy as np
from owseg_ros.engine import EngineError
from owseg_ros.language import NO_EXPANSION, QueryScorer, RegionNamer
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.language.regions import find_regions, Region
from owseg_ros.novelty import NoveltyError, prepare, PrototypeBook, TaughtRegion
from owseg_ros.novelty.frames import Pixel
from owseg_ros.novelty.readout import paint as paint_regions
from owseg_ros.novelty.region_features import region_features
from owseg_ros.segmenter import FEATURES, REGIONS, Segmenter, TEACHABLE
import pytest
from support.tiny_bundle import color_embedding, make_tiny_bundle, paint
from support.tiny_text_encoder import make_tiny_text_encoder

RED, YELLOW, CYAN, GREY = (255, 0, 0), (255, 255, 0), (0, 255, 255), (128, 128, 128)


@pytest.fixture(scope='module')
def teachable(tmp_path_factory):
    """Return a bundle that can be taught."""
    return make_tiny_bundle(tmp_path_factory.mktemp('bundle') / 'teachable', width=192,
                            height=128, novelty=True)


@pytest.fixture(scope='module')
def taught(teachable):
    """Return a set of two classes: 3 looks yellow, 4 cyan."""
    book = PrototypeBook(teachable)
    book.add_shot('pallet', color_embedding('yellow'))
    book.add_shot('cone', color_embedding('cyan'))
    return prepare(book.set_color('cone', (1, 2, 3)), teachable)


LEFT = (1 / 12, 5 / 12, 9 / 12)


def squares(width=192, height=128):
    """Return a picture of width : height = 3 : 2: a yellow, a cyan and a grey square on red."""
    image = paint(width, height, RED, RED)
    for left, color in zip(LEFT, (YELLOW, CYAN, GREY)):
        left, side = round(left * width), width // 4
        image[height // 4:height // 4 + side, left:left + side] = color
    return image


def centres(maps, width=192, height=128):
    """Return what maps [H, W] hold in the middle of the squares and at the bottom."""
    row = height // 4 + width // 8
    return [int(maps[row, int(left * width) + width // 8]) for left in LEFT] + [int(maps[-2, 2])]


@pytest.mark.parametrize('size', [(192, 128), (384, 256), (301, 203)])
def test_taught_classes_follow_the_known_ones(teachable, taught, size):
    segmenter = Segmenter(teachable, threads=1)
    result = segmenter(squares(*size), taught=taught)
    assert centres(result.semantic, *size) == [3, 4, 254, 0]
    assert centres(result.anomaly_mask, *size) == [255, 255, 255, 0]
    # All of a region has the id of its class, and nothing else has.
    for entry in result.taught_regions:
        inside = np.zeros(result.semantic.shape, bool)
        inside[entry.region.window] = entry.region.inside
        np.testing.assert_array_equal(result.semantic == entry.id, inside)
    assert sorted((entry.id, entry.name) for entry in result.taught_regions) == [
        (3, 'pallet'), (4, 'cone'), (254, 'unknown')]
    best = {entry.name: entry.cosine for entry in result.taught_regions}
    assert best['pallet'] > 0.9 and best['cone'] > 0.9 and best['unknown'] < 0.8
    assert result.taught is taught
    np.testing.assert_array_equal(result.color()[result.semantic == 4], [(1, 2, 3)] * np.sum(
        result.semantic == 4))
    plain = segmenter(squares(*size))
    assert plain.taught is None and plain.taught_regions == ()
    assert set(np.unique(plain.semantic)) <= {0, 1, 2}


def test_a_frame_to_teach_from_outlives_what_it_was_made_of(teachable):
    """The camera's buffer, the maps and the network's memory are used for the next frame."""
    segmenter = Segmenter(teachable, threads=1)
    pixels = squares()
    first = segmenter(pixels, {'anomaly_mask', 'semantic', TEACHABLE})
    regions = find_regions(first.anomaly_mask)
    middle = Pixel(LEFT[1] * 192 + 20, 56)
    cyan = first.teachable.pick(middle)[0]
    features = first.teachable.features(cyan)
    assert len(regions) == 3 and first.teachable.size == (128, 192)
    pixels[:] = np.roll(squares(), 31, axis=1)
    second = segmenter(pixels, {'anomaly_mask', 'semantic', TEACHABLE})
    for name in ('anomaly_mask', 'semantic'):
        getattr(first, name)[:] = getattr(second, name)
    found = first.teachable.regions
    assert [(one.box, one.area) for one in found] == [(one.box, one.area) for one in regions]
    region, kind = first.teachable.pick(middle)
    assert kind == 'anomaly' and region.box == cyan.box
    np.testing.assert_array_equal(first.teachable.features(region), features)
    assert not np.array_equal(first.teachable.anomalous, second.teachable.anomalous)
    # A mask of the network, where nothing is anomalous.
    assert first.teachable.pick(Pixel(2, 126))[1] == 'mask'


def test_frames_to_teach_from_take_turns_in_a_batch(teachable):
    pictures = [squares(), np.roll(squares(), 31, axis=1)]
    segmenter = Segmenter(teachable, threads=1)
    both = segmenter.segment(pictures, {TEACHABLE})
    for picture, found in zip(pictures, both):
        alone = segmenter(picture, {TEACHABLE}).teachable
        for name in ('masks', 'anomalous', 'pixel_features', 'objectness'):
            np.testing.assert_allclose(
                getattr(found.teachable, name), getattr(alone, name), atol=1e-5)


def test_a_region_that_is_shown_once_is_known_from_then_on(teachable):
    """Also before anything is taught: then all that is unknown is 254."""
    segmenter = Segmenter(teachable, threads=1)
    book = PrototypeBook(teachable)
    first = segmenter(squares(), taught=prepare(book.active, teachable))
    assert centres(first.semantic) == [254, 254, 254, 0]
    assert [entry.name for entry in first.taught_regions] == ['unknown'] * 3
    grey, = [entry for entry in first.taught_regions if entry.region.left > 120]
    np.testing.assert_array_equal(
        segmenter.metric_head.embed(region_features(
            [grey.region], segmenter(squares(), maps={FEATURES}).pixel_features, (128, 192)))[0],
        grey.embedding)
    book.add_shot('wall', grey.embedding)
    second = segmenter(squares(384, 256), taught=prepare(book.active, teachable))
    assert centres(second.semantic, 384, 256) == [254, 254, 3, 0]


def test_masks_of_the_network_can_be_taught_too(teachable, taught):
    """What is not anomalous is compared only if asked for, and only if it is not known."""
    segmenter = Segmenter(teachable, threads=1)
    segmenter.settings = replace(segmenter.settings, anomaly_threshold=2.0)
    yellow, red = paint(192, 128, YELLOW, YELLOW), paint(192, 128, RED, RED)
    everywhere = replace(taught, all_masks=True)
    assert not (segmenter(yellow, taught=taught).semantic == 3).any()
    result = segmenter(yellow, taught=everywhere)
    assert (result.semantic == 3).all()
    assert {entry.query for entry in result.taught_regions} == set(range(3, 8))
    assert all(entry.region.area == 192 * 128 for entry in result.taught_regions)
    loose = replace(everywhere, thresholds=np.full(2, 0.01, np.float32))
    assert (segmenter(red, taught=loose).semantic == 0).all()
    segmenter.settings = replace(segmenter.settings, min_area=192 * 128 + 16)
    assert not segmenter(yellow, taught=everywhere).taught_regions


def test_taught_names_go_before_words(teachable, taught, tmp_path):
    segmenter = Segmenter(teachable, threads=1)
    regions = segmenter(squares(), maps={REGIONS}, taught=taught).regions
    assert {region.name for region in regions} == {'pallet', 'cone', 'unknown'}
    assert all(region.name_score > 0.9 for region in regions if region.name != 'unknown')
    encoder = OnnxTextEncoder(make_tiny_text_encoder(tmp_path / 'text').path, threads=1)
    both = Segmenter(make_tiny_bundle(tmp_path / 'both', width=192, height=128,
                                      encoder=encoder, novelty=True), threads=1)
    book = PrototypeBook(both.bundle)
    book.add_shot('pallet', color_embedding('yellow'))
    vocabulary = tmp_path / 'colors.yaml'
    vocabulary.write_text(
        'schema: owseg_ros/vocabulary\nschema_version: 1\ntemplates: {plain: ["{}"], caption: '
        '["{}"]}\nentries: [{name: yellow}, {name: cyan}]\n')
    namer = RegionNamer(QueryScorer(both.bundle.language, encoder, NO_EXPANSION), vocabulary)
    regions = both(squares(), maps={REGIONS}, namer=namer,
                   taught=prepare(book.active, both.bundle)).regions
    assert sorted((region.box[0] // 60, region.name) for region in regions)[:2] == [
        (0, 'pallet'), (1, 'cyan')]


def test_only_what_is_asked_for_of_taught_classes(teachable, taught):
    segmenter = Segmenter(teachable, threads=1)
    result = segmenter(squares(), maps={'confidence'}, taught=taught)
    assert result.semantic is None and result.anomaly_mask is None
    assert len(result.taught_regions) == 3 and result.pixel_features is None
    result = segmenter(squares(), maps={FEATURES})
    assert result.pixel_features.shape == (4, 32, 48)
    np.testing.assert_allclose(result.pixel_features[:, -1, 0], [1, 0, 0, 1 / 3], atol=1e-5)
    batch = segmenter.segment([squares(), squares(384, 256)], taught=taught)
    assert centres(batch[0].semantic) == [3, 4, 254, 0]
    assert centres(batch[1].semantic, 384, 256) == [3, 4, 254, 0]


@pytest.mark.parametrize('order', [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_where_regions_overlap_the_more_similar_has_the_pixel(order):
    """And what is anomalous and of no region is 254, as is a region of no class."""
    entries = [
        TaughtRegion(Region(1, 0, np.ones((2, 3), bool), 6), 3, 'a', 0.9, np.ones(1)),
        TaughtRegion(Region(2, 0, np.ones((2, 3), bool), 6), 4, 'b', 0.8, np.ones(1)),
        TaughtRegion(Region(3, 0, np.ones((2, 1), bool), 2), 254, 'unknown', 0.95, np.ones(1))]
    semantic = np.zeros((2, 8), np.uint8)
    mask = np.array([[0, 0, 255, 255, 255, 255, 255, 0]] * 2, np.uint8)
    paint_regions(semantic, mask, [entries[index] for index in order])
    assert semantic.tolist() == [[0, 3, 3, 3, 4, 254, 254, 0]] * 2


def test_features_that_are_not_finite_are_refused_where_they_are_used(teachable, taught):
    segmenter = Segmenter(teachable, threads=1)
    run = segmenter.engine._run

    def spoil(names, batch):
        arrays = run(names, batch)
        if 'pixel_features' in names:
            arrays[list(names).index('pixel_features')][0, 0, 0, 0] = np.nan
        return arrays

    segmenter.engine._run = spoil
    for wanted in ({'maps': {FEATURES}}, {'taught': taught}):
        with pytest.raises(EngineError, match='non-finite values in pixel_features'):
            segmenter(squares(), **wanted)
    np.testing.assert_array_equal(
        segmenter(squares(), maps={'semantic', TEACHABLE}).semantic,
        Segmenter(teachable, threads=1)(squares()).semantic)


def test_what_cannot_be_taught_is_refused(taught, tmp_path):
    segmenter = Segmenter(make_tiny_bundle(tmp_path / 'plain'), threads=1)
    with pytest.raises(NoveltyError, match='tiny has no metric head'):
        segmenter(squares(), taught=taught)
    with pytest.raises(NoveltyError, match='tiny has no metric head'):
        segmenter.metric_head
    other = Segmenter(make_tiny_bundle(tmp_path / 'b', num_queries=9, novelty=True), threads=1)
    with pytest.raises(NoveltyError, match='taught to another model'):
        other(squares(), taught=taught)
