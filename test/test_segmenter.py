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
"""Frames in, segmentations out, end to end on a real small network."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
import threading

import numpy as np
from owseg_ros.bundle import BundleError
from owseg_ros.engine import EngineError
from owseg_ros.frame import Frame, FrameError
from owseg_ros.language import LanguageError, NO_EXPANSION, QueryBook, QueryScorer, RegionNamer
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.readout import ALL_MAPS, QUERY_MAPS, ReadoutSettings
from owseg_ros.segmenter import Segmenter
import pytest
from support.tiny_bundle import KNOWN_SCORE, make_tiny_bundle, paint, THRESHOLD, UNKNOWN_SCORE
from support.tiny_text_encoder import make_tiny_text_encoder

GREY = (128, 128, 128)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('bundle') / 'tiny').path


@pytest.fixture
def segmenter(folder):
    return Segmenter(folder, threads=1)


@pytest.mark.parametrize('width, height', [(96, 64), (192, 128), (131, 77), (48, 40)])
@pytest.mark.parametrize('color, wanted', [
    ((255, 0, 0), 0), ((0, 255, 0), 1), ((0, 0, 255), 2)])
def test_known_and_unknown_halves(segmenter, width, height, color, wanted):
    """The painted half has its id and a low score, the grey one is an anomaly."""
    result = segmenter(paint(width, height, color, GREY))
    known = np.s_[:, :width // 2 - width // 12]
    unknown = np.s_[:, width // 2 + width // 12:]
    assert result.semantic.shape == (height, width) and result.semantic.dtype == np.uint8
    assert (result.semantic[known] == wanted).all()
    assert (result.confidence[known] >= 254).all() and (result.confidence[unknown] <= 2).all()
    np.testing.assert_allclose(result.anomaly_score[known], KNOWN_SCORE, atol=0.01)
    np.testing.assert_allclose(result.anomaly_score[unknown], UNKNOWN_SCORE, atol=0.01)
    assert (result.anomaly_mask[known] == 0).all()
    assert (result.anomaly_mask[unknown] == 255).all()
    assert result.classes[wanted].name == ('red', 'green', 'blue')[wanted]
    assert result.network_size == (64, 96)
    assert result.network_ms > 0 and result.readout_ms > 0 and result.preprocess_ms > 0


def test_channel_order_and_message_views(segmenter):
    """A BGR frame and rows with padding give what the plain RGB frame gives."""
    rgb = paint(96, 64, (0, 0, 255), GREY)
    expected = segmenter(rgb).semantic
    padded = np.zeros((64, 120, 3), np.uint8)
    padded[:, :96] = rgb[:, :, ::-1]
    np.testing.assert_array_equal(segmenter(Frame(padded[:, :96], 'bgr')).semantic, expected)


def test_batch_of_cameras_of_different_sizes(segmenter):
    frames = [paint(96, 64), paint(200, 120, GREY, (0, 255, 0)), paint(60, 90, (0, 0, 255))]
    results = segmenter.segment(frames)
    assert [result.semantic.shape for result in results] == [(64, 96), (120, 200), (90, 60)]
    for frame, together in zip(frames, results):
        alone = segmenter(frame)
        np.testing.assert_array_equal(together.semantic, alone.semantic)
        np.testing.assert_allclose(together.anomaly_score, alone.anomaly_score, atol=1e-5)
    assert segmenter.segment([]) == []


def test_a_frame_is_read_out_while_the_network_runs_on_the_next(segmenter):
    """Each half in a thread of its own gives what one call gives, also with reused buffers."""
    colors = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    frames = [paint(96, 64, colors[number % 3], GREY) for number in range(12)]
    expected = [segmenter(frame) for frame in frames]
    with ThreadPoolExecutor(1) as readout:
        seen, found = segmenter.run_network(frames[:1]), []
        for following in frames[1:]:
            reading = readout.submit(segmenter.read_out, seen)
            seen = segmenter.run_network([following])
            found += reading.result()
        found += segmenter.read_out(seen)
    assert seen.output.network_ms == found[-1].network_ms and seen.maps == ALL_MAPS
    for result, alone in zip(found, expected):
        for name in ALL_MAPS:
            np.testing.assert_array_equal(getattr(result, name), getattr(alone, name))


def test_the_network_is_not_run_for_what_cannot_be_read_out(segmenter):
    with pytest.raises(ValueError, match='unknown maps'):
        segmenter.run_network([paint(96, 64)], {'depth'})
    with pytest.raises(EngineError, match='at least one frame'):
        segmenter.run_network([])


def test_only_the_maps_asked_for(segmenter):
    result = segmenter(paint(96, 64), maps={'semantic'})
    assert result.semantic is not None
    assert result.confidence is None and result.anomaly_mask is None
    for call, name in ((result.anomaly_color, 'anomaly_score'),
                       (segmenter(paint(96, 64), maps=['anomaly_mask']).color, 'semantic')):
        with pytest.raises(ValueError, match=f"needs the map '{name}'"):
            call()
    with pytest.raises(ValueError, match='unknown maps'):
        segmenter(paint(96, 64), maps={'depth'})
    assert all(getattr(segmenter(paint(96, 64)), name) is not None for name in ALL_MAPS)


def test_output_at_network_size(segmenter):
    segmenter.settings = replace(segmenter.settings, output_size='network')
    assert segmenter(paint(300, 200)).semantic.shape == (64, 96)


def test_settings_come_from_the_bundle_and_can_be_replaced(folder, segmenter):
    assert segmenter.settings.anomaly_threshold == THRESHOLD
    assert segmenter.settings.min_area == segmenter.bundle.anomaly.min_area
    frame = paint(96, 64, (255, 0, 0), GREY)
    segmenter.settings = replace(segmenter.settings, anomaly_threshold=0.1)
    assert (segmenter(frame).anomaly_mask == 255).all()
    segmenter.settings = replace(segmenter.settings, anomaly_threshold=2.0)
    assert not segmenter(frame).anomaly_mask.any()
    own = Segmenter(folder, settings=ReadoutSettings(0.5, mark_unknown=True), threads=1)
    assert set(np.unique(own(frame).semantic)) == {0, 254}


def test_small_anomalies_are_removed_by_area_at_network_size(segmenter):
    """The same speck of the scene goes or stays whatever the camera's size."""
    for scale in (1, 3):
        frame = paint(96 * scale, 64 * scale, (255, 0, 0), (255, 0, 0))
        frame[20 * scale:32 * scale, 40 * scale:52 * scale] = GREY
        segmenter.settings = ReadoutSettings(0.5, min_area=60)
        assert segmenter(frame).anomaly_mask[26 * scale, 46 * scale] == 255
        segmenter.settings = ReadoutSettings(0.5, min_area=400)
        assert not segmenter(frame).anomaly_mask.any()


def test_settings_may_be_swapped_from_another_thread(segmenter):
    """Each frame is read out with the one or the other settings, never with a mixture."""
    frame = paint(96, 64, (255, 0, 0), GREY)
    low, high = ReadoutSettings(0.1, output_size='network'), ReadoutSettings(2.0)
    stop = threading.Event()

    def swap():
        while not stop.is_set():
            segmenter.settings = low
            segmenter.settings = high

    segmenter.settings = high
    thread = threading.Thread(target=swap)
    thread.start()
    try:
        for _ in range(30):
            mask = segmenter(paint(192, 128) if _ % 2 else frame).anomaly_mask
            assert (mask == 255).all() or not mask.any()
            assert mask.shape == (64, 96) or not mask.any()
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize('frame', [
    np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 4), np.uint8),
    np.zeros((0, 4, 3), np.uint8), None, 'street.jpg', [[0, 0, 0]]])
def test_refuses_what_is_no_image(segmenter, frame):
    with pytest.raises(FrameError, match='not a colour image'):
        segmenter(frame)


def test_refuses_bad_bundles_and_engines(folder, tmp_path):
    with pytest.raises(BundleError, match='no such folder'):
        Segmenter(tmp_path / 'nowhere')
    with pytest.raises(EngineError, match='unknown engine'):
        Segmenter(folder, engine='quantum')
    with pytest.raises(EngineError, match='unknown provider'):
        Segmenter(str(folder), providers=('gpu',))


def test_pictures(segmenter):
    frame = paint(192, 128, (255, 0, 0), GREY)
    result = segmenter(frame)
    assert tuple(result.color()[64, 20]) == (255, 0, 0)
    heat = result.anomaly_color()
    assert heat.shape == (128, 192, 3)
    assert heat[64, 180].astype(int).sum() > heat[64, 20].astype(int).sum()
    picture = result.overlay(frame, alpha=0.5)
    assert picture.shape == frame.shape and picture.dtype == np.uint8
    assert tuple(picture[64, 20]) == (255, 0, 0)
    red, green, blue = picture[64, 180].astype(int)
    assert red > green + 30 and blue > green + 30  # tinted as an anomaly
    np.testing.assert_array_equal(
        result.overlay(Frame(np.ascontiguousarray(frame[:, :, ::-1]), 'bgr')), picture)
    plain = segmenter(frame, maps={'semantic'}).overlay(frame, alpha=0.0)
    np.testing.assert_array_equal(plain, frame)


def test_overlay_of_maps_at_network_size_has_the_size_of_the_frame(segmenter):
    segmenter.settings = replace(segmenter.settings, output_size='network')
    frame = paint(200, 150)
    assert segmenter(frame).overlay(frame).shape == frame.shape


def test_results_are_values(segmenter):
    result = segmenter(paint(96, 64))
    kept = result.anomaly_score.copy()
    segmenter(paint(96, 64, GREY, (0, 255, 0)))
    np.testing.assert_array_equal(result.anomaly_score, kept)
    with pytest.raises(FrozenInstanceError):
        result.semantic = None


def test_warm_up(segmenter):
    assert 0 < segmenter.warm_up() < 10000


@pytest.mark.parametrize('readout, stay', [('auto', True), ('gpu', True), ('cpu', False)])
def test_masks_stay_where_the_network_ran_for_a_readout_there(folder, readout, stay):
    """Here on the CPU, by an engine that hands out tensors where they may stay."""
    torch = pytest.importorskip('torch')
    pytest.importorskip('triton')
    frame = paint(131, 77, (0, 255, 0), GREY)
    segmenter, wanted = Segmenter(folder, threads=1, readout=readout), Segmenter(folder, threads=1)
    if readout == 'gpu' and not segmenter.readout.masks_on_device:
        pytest.skip(segmenter.readout.note)
    run = segmenter.engine._run
    segmenter.engine._run_on_device = lambda names, batch: [
        torch.from_numpy(array) if index == 0 else array
        for index, array in enumerate(run(names, batch))]
    masks = segmenter.run_network([frame]).output.mask_logits
    assert isinstance(masks, torch.Tensor) == stay
    np.testing.assert_allclose(
        segmenter(frame).anomaly_score, wanted(frame).anomaly_score, atol=2e-3)


# Queries


@pytest.fixture(scope='module')
def encoder(tmp_path_factory):
    folder = make_tiny_text_encoder(tmp_path_factory.mktemp('encoder') / 'tiny')
    return OnnxTextEncoder(folder.path)


@pytest.fixture(scope='module')
def speaking(tmp_path_factory, encoder):
    return make_tiny_bundle(tmp_path_factory.mktemp('speaking') / 'tiny', encoder=encoder)


@pytest.fixture
def ask(encoder, speaking):
    """Return a function that prepares the queries of a message."""
    book, scorer = QueryBook(encoder, NO_EXPANSION), QueryScorer(speaking.language, encoder)
    return lambda message, **options: scorer.prepare(book.ask(message).active, **options)


@pytest.mark.parametrize('width, height', [(96, 64), (131, 77)])
def test_words_find_their_regions(speaking, ask, width, height):
    """What is there is found under its name, what is not gives an empty mask."""
    segmenter = Segmenter(speaking, threads=1)
    frame = paint(width, height, (255, 0, 0), (0, 255, 0))
    left, right = np.s_[:, :width // 2 - width // 12], np.s_[:, width // 2 + width // 12:]
    result = segmenter(frame, QUERY_MAPS, ask('green, yellow, red'))
    assert result.query_mask.shape == (height, width)
    assert (result.query_mask[left] == 2).all() and (result.query_mask[right] == 0).all()
    assert result.query_score[left].min() > 0.9 and result.query_score[right].min() > 0.9
    assert result.query_version == 1 and result.semantic is None
    absent = segmenter(frame, QUERY_MAPS, ask('yellow, white'))
    assert (absent.query_mask == 255).all() and absent.query_score.max() < 0.2
    assert absent.query_version == 2


@pytest.mark.parametrize('maps', [QUERY_MAPS, QUERY_MAPS | ALL_MAPS])
@pytest.mark.parametrize('width, height', [(96, 64), (288, 192)])
def test_what_is_of_no_known_class_is_found_by_its_word(speaking, ask, width, height, maps):
    """No mask of the network claims yellow or white, but anomalous regions have embeddings."""
    segmenter = Segmenter(speaking, threads=1)
    frame = paint(width, height, (255, 0, 0), (255, 0, 0))
    scale = width // 96
    yellow = np.s_[16 * scale:40 * scale, 16 * scale:32 * scale]
    white = np.s_[16 * scale:40 * scale, 64 * scale:80 * scale]
    frame[yellow], frame[white] = (255, 255, 0), (255, 255, 255)
    result = segmenter(frame, maps, ask('white, yellow, red, cyan'))
    edge = 3 * scale
    for window, wanted in ((yellow, 1), (white, 0)):
        inside = tuple(slice(part.start + edge, part.stop - edge) for part in window)
        assert (result.query_mask[inside] == wanted).all()
        assert result.query_score[inside].min() > 0.9
    assert (result.query_mask[:, 40 * scale:56 * scale] == 2).all()
    assert not (result.query_mask == 3).any()
    assert (result.anomaly_mask is None) == (maps == QUERY_MAPS)
    outputs = {**speaking.outputs, 'text_features': None}
    blind = Segmenter(replace(speaking, outputs=outputs), threads=1)
    found = blind(frame, maps, ask('yellow, white, red')).query_mask
    assert set(np.unique(found)) == {2, 255}


def test_thresholds_of_queries(speaking, ask):
    segmenter, frame = Segmenter(speaking, threads=1), paint(96, 64, (255, 0, 0), GREY)
    message = '{"queries": [{"name": "red", "threshold": %s}]}'
    assert (segmenter(frame, QUERY_MAPS, ask(message % 0.9)).query_mask[:, :40] == 0).all()
    assert (segmenter(frame, QUERY_MAPS, ask(message % 1)).query_mask == 255).all()
    strict = ask('red', default_threshold=0.9999)
    assert (segmenter(frame, QUERY_MAPS, strict).query_mask == 255).all()


def test_query_maps_beside_the_others_change_nothing_in_them(speaking, ask):
    segmenter, frame = Segmenter(speaking, threads=1), paint(131, 77, (0, 0, 255), GREY)
    alone = segmenter(frame)
    both = segmenter(frame, ALL_MAPS | QUERY_MAPS, ask('blue'))
    assert alone.query_mask is None is alone.query_score and alone.query_version is None
    np.testing.assert_array_equal(both.semantic, alone.semantic)
    np.testing.assert_array_equal(both.anomaly_mask, alone.anomaly_mask)
    np.testing.assert_allclose(both.anomaly_score, alone.anomaly_score, atol=0.01)
    assert (both.query_mask[:, :40] == 0).all()


def test_each_frame_of_a_batch_is_asked(speaking, ask):
    segmenter = Segmenter(speaking, threads=1)
    frames = [paint(96, 64, (255, 0, 0), GREY), paint(60, 40, (0, 255, 0), GREY)]
    results = segmenter.segment(frames, QUERY_MAPS, queries=ask('red, green'))
    assert (results[0].query_mask[:, :40] == 0).all()
    assert (results[1].query_mask[:, :24] == 1).all()
    frames = [paint(96, 64, right=(255, 255, 0)), paint(96, 64, right=(255, 255, 255))]
    results = segmenter.segment(frames, QUERY_MAPS, queries=ask('yellow, white'))
    assert [set(np.unique(result.query_mask[:, 56:])) for result in results] == [{0}, {1}]


@pytest.mark.parametrize('message', [None, ''])
def test_query_maps_without_queries(speaking, ask, message):
    result = Segmenter(speaking, threads=1)(
        paint(96, 64), QUERY_MAPS, None if message is None else ask(message))
    assert (result.query_mask == 255).all() and not result.query_score.any()
    assert result.query_version == 0


def test_frames_without_queries_cost_no_embeddings(speaking, ask):
    """The outputs that only queries need are not even asked for."""
    segmenter = Segmenter(speaking, threads=1)
    infer, asked = segmenter.engine.infer, []

    def spy(frames, **outputs):
        asked.append((outputs.get('region_embeddings', True),
                      outputs.get('text_features', False)))
        return infer(frames, **outputs)

    segmenter.engine.infer = spy
    segmenter(paint(96, 64), ALL_MAPS, ask('red'))
    segmenter(paint(96, 64), QUERY_MAPS)
    segmenter(paint(96, 64), {'query_mask'}, ask('green'))
    assert asked == [(False, False), (False, False), (True, True)]


def test_what_is_asked_while_the_network_runs_is_answered_by_that_frame(speaking, ask):
    segmenter = Segmenter(speaking, threads=1)
    frame = paint(96, 64, (255, 0, 0), (0, 255, 0))
    infer, live = segmenter.engine.infer, [None]

    def ask_meanwhile(frames, **outputs):
        live[0] = ask('green')
        return infer(frames, **outputs)

    segmenter.engine.infer = ask_meanwhile
    result = segmenter(frame, QUERY_MAPS, lambda: live[0])
    assert result.queries is live[0] and result.query_version == live[0].version
    assert (result.query_mask[:, 56:] == 0).all() and (result.query_mask[:, :40] == 255).all()
    # A set that is given is answered, whatever comes later.
    given = ask('red')
    assert segmenter(frame, QUERY_MAPS, given).queries is given
    segmenter.engine.infer = infer
    empty = segmenter(frame, QUERY_MAPS, lambda: None)
    assert (empty.query_mask == 255).all() and empty.query_version == 0
    unasked = segmenter(frame, {'semantic'}, lambda: 1 / 0)
    assert unasked.queries is None is unasked.query_version


def test_the_region_head_runs_only_for_who_asks(speaking, ask):
    """Without queries it is left out; the first ones that come meanwhile run it at once."""
    segmenter = Segmenter(speaking, threads=1)
    infer, live, runs = segmenter.engine.infer, [None], []

    def spy(frames, **outputs):
        runs.append(outputs['region_embeddings'])
        live[0] = coming
        return infer(frames, **outputs)

    segmenter.engine.infer = spy
    coming = None
    assert (segmenter(paint(96, 64), QUERY_MAPS, lambda: live[0]).query_mask == 255).all()
    assert runs == [False]
    coming = ask('red')
    result = segmenter(paint(96, 64), QUERY_MAPS, lambda: live[0])
    assert runs == [False, False, True] and result.queries is coming
    assert result.network_ms > 0 and (result.query_mask == 0).any()
    segmenter(paint(96, 64), QUERY_MAPS, lambda: live[0])
    assert runs == [False, False, True, True]


def test_what_is_first_asked_between_the_halves_waits_for_the_next_frame(speaking, ask):
    segmenter = Segmenter(speaking, threads=1)
    live = [None]
    seen = segmenter.run_network([paint(96, 64)], QUERY_MAPS, lambda: live[0])
    live[0] = ask('red')
    result, = segmenter.read_out(seen)
    assert result.queries is None and (result.query_mask == 255).all()
    # Where there were some before, the newest are answered.
    seen = segmenter.run_network([paint(96, 64)], QUERY_MAPS, lambda: live[0])
    live[0] = newer = ask('green')
    result, = segmenter.read_out(seen)
    assert result.queries is newer


def test_queries_of_another_model_and_models_without_words(speaking, ask, encoder, folder):
    mute = Segmenter(folder, threads=1)
    for queries in (None, ask('red')):
        with pytest.raises(LanguageError, match='tiny has no region embeddings.*language'):
            mute(paint(96, 64), {'query_mask'}, queries)
    assert mute(paint(96, 64), queries=ask('red')).query_mask is None
    other = replace(speaking, language=replace(speaking.language, temperature=0.1))
    with pytest.raises(LanguageError, match='prepared for another model.*QueryScorer'):
        Segmenter(other, threads=1)(paint(96, 64), QUERY_MAPS, ask('green'))


# Regions and their names


@pytest.fixture
def namer(encoder, speaking, tmp_path):
    """Return a namer that knows yellow and magenta."""
    path = tmp_path / 'names.yaml'
    path.write_text('schema: owseg_ros/vocabulary\nschema_version: 1\n'
                    "templates: {plain: ['{}'], caption: ['{}']}\n"
                    'entries: [{name: yellow}, {name: magenta}]\n')
    return RegionNamer(QueryScorer(speaking.language, encoder), path)


def street(scale=1):
    """Return red with a yellow thing, larger than a white one."""
    frame = paint(96 * scale, 64 * scale, (255, 0, 0), (255, 0, 0))
    frame[16 * scale:48 * scale, 16 * scale:32 * scale] = (255, 255, 0)
    frame[16 * scale:32 * scale, 64 * scale:80 * scale] = (255, 255, 255)
    return frame


@pytest.mark.parametrize('scale', [1, 3])
def test_regions_have_names(speaking, namer, scale):
    segmenter = Segmenter(speaking, threads=1)
    result = segmenter(street(scale), 'regions', namer=namer)
    yellow, white = result.regions
    assert [(yellow.id, yellow.name), (white.id, white.name)] == [(0, 'yellow'), (1, 'unknown')]
    assert yellow.name_score > 0.9 and white.name_score < 0.5
    for region, box in ((yellow, (16, 16, 32, 48)), (white, (64, 16, 80, 32))):
        np.testing.assert_allclose(region.box, np.array(box) * scale, atol=2 * scale)
        width, height = box[2] - box[0], box[3] - box[1]
        assert region.area == pytest.approx(width * height * scale ** 2, rel=0.3)
        assert 0.8 < region.anomaly_score <= 1.01
    assert result.anomaly_mask is None is result.anomaly_score and result.semantic is None


def test_regions_agree_with_the_mask_and_the_score(speaking, namer):
    result = Segmenter(speaking, threads=1)(street(), ALL_MAPS | {'regions'}, namer=namer)
    assert sum(region.area for region in result.regions) == (result.anomaly_mask > 0).sum()
    for region in result.regions:
        x0, y0, x1, y1 = region.box
        inside = result.anomaly_mask[y0:y1, x0:x1] > 0
        assert inside.sum() == region.area
        for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
            assert edge.any()
        assert region.anomaly_score == pytest.approx(
            result.anomaly_score[y0:y1, x0:x1][inside].mean(), abs=1e-4)
    assert Segmenter(speaking, threads=1)(street(), namer=namer).regions is None
    assert Segmenter(speaking, threads=1)(paint(96, 64, (255, 0, 0), (255, 0, 0)), {
        'regions'}, namer=namer).regions == ()


def test_regions_without_a_namer_and_beside_queries(folder, speaking, namer, ask):
    """Any model has regions; only names need words."""
    for model in (folder, speaking):
        names = [(region.name, region.name_score) for region in Segmenter(
            model, threads=1)(street(), {'regions'}).regions]
        assert names == [('unknown', 0.0)] * 2
    result = Segmenter(speaking, threads=1)(
        street(), QUERY_MAPS | {'regions'}, ask('white'), namer)
    assert result.query_mask[24, 72] == 0 and result.query_mask[24, 24] == 255
    assert [region.name for region in result.regions] == ['yellow', 'unknown']


def test_names_need_a_model_with_words(folder, speaking, namer):
    for model in (folder, replace(speaking, outputs={**speaking.outputs, 'text_features': None})):
        with pytest.raises(LanguageError, match='tiny has no text features'):
            Segmenter(model, threads=1)(street(), {'regions'}, namer=namer)
    other = replace(speaking, language=replace(speaking.language, temperature=0.1))
    with pytest.raises(LanguageError, match='namer was made for another model'):
        Segmenter(other, threads=1)(street(), {'regions'}, namer=namer)


def test_unnamed_regions_cost_no_text_features(speaking, namer):
    segmenter = Segmenter(speaking, threads=1)
    infer, asked = segmenter.engine.infer, []

    def spy(frames, **outputs):
        asked.append(outputs)
        return infer(frames, **outputs)

    segmenter.engine.infer = spy
    segmenter(street(), {'regions'})
    segmenter(street(), ALL_MAPS, namer=namer)
    segmenter(street(), {'regions'}, namer=namer)
    assert [(entry['region_embeddings'], entry['text_features']) for entry in asked] == [
        (False, False), (False, False), (False, True)]
