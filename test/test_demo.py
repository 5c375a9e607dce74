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

import cv2
import numpy as np
from owseg_ros.bundle import BundleError, default_bundle_path, load_bundle
from owseg_ros.cli import main
from owseg_ros.demo import (
    _compare_with_street, _Film, DemoError, DemoOptions, QUERIES, Recording, run_demo, Sample)
from owseg_ros.demo_queries import why_no_queries
from owseg_ros.demo_teaching import DemoTeaching, describe, why_no_teaching
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.pictures import VideoError
from owseg_ros.scene import HAZARD_KINDS, StreetScene
from owseg_ros.segmenter import Segmenter
import pytest
from support.tiny_bundle import make_tiny_bundle, paint
from support.tiny_text_encoder import make_tiny_text_encoder

pytest.importorskip('rclpy', reason='the demo runs real nodes')


@pytest.fixture(scope='module')
def bundled():
    try:
        return load_bundle(default_bundle_path())
    except BundleError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize('option, value, says', [
    ('--seconds', '0', 'some seconds'), ('--seconds', 'nan', 'not nan'),
    ('--rate', '-3', 'rate must be'), ('--size', '0x480', '0x480')])
def test_what_cannot_be_recorded_is_one_line(tmp_path, capsys, option, value, says):
    model = str(make_tiny_bundle(tmp_path / 'model').path)
    assert main(['demo', '--model', model, '--out', str(tmp_path / 'out'), option, value]) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('owseg: ') and says in error and '\n' not in error
    assert not (tmp_path / 'out').exists()


@pytest.mark.timeout(30)
@pytest.mark.parametrize('error', [VideoError('no codec'), cv2.error('no memory')])
def test_a_film_that_cannot_be_written_ends_the_demo_and_does_not_hang_it(tmp_path, error):
    class Composer:
        size = (64, 48)

        def compose(self, *pictures, **options):
            raise error

    film = _Film(tmp_path / 'demo.mp4', 5.0)
    film.composer = Composer()
    arrays = dict.fromkeys(('image', 'semantic/mask', 'anomaly/score', 'anomaly/mask'))
    # More than wait in its queue, some of them before it starts and some after the error.
    for _ in range(4):
        film.offer(arrays, '', None, [])
    film.start()
    film.join(0.5)
    for _ in range(12):
        film.offer(arrays, '', None, [])
    with pytest.raises(type(error), match='no'):
        film.finish()
    assert not film.is_alive()


@pytest.mark.timeout(240)
def test_demo_in_its_short_form(tmp_path, bundled, capsys):
    out = tmp_path / 'out'
    assert main(['demo', '--seconds', '6', '--out', str(out), '--rate', '5',
                 '--size', '480x360']) == 0
    table = capsys.readouterr().out
    assert 'pixel accuracy' in table and 'network, readout' in table
    report = json.loads((out / 'report.json').read_text())
    frames = report['frames']
    assert frames['out'] >= 8
    # The node reports twice a second, so its count may be that much behind.
    assert frames['in'] >= frames['out'] - 4 and frames['bad'] == 0
    assert report['rate_hz'] > 1
    age = report['age_ms']
    assert 0 < age['p50'] <= age['p95'] <= age['p99'] < 5000
    assert report['network_ms'] > 0 and report['readout_ms'] > 0
    assert report['model']['sha256'] == bundled.network_sha256
    assert report['labels'] == bundled.num_classes + 2 + len(
        (report['taught'] or {}).get('accepted', []))
    assert (report['taught'] is None) == (bundled.novelty is None) == bool(report['no_teaching'])
    assert report['no_queries'] == why_no_queries(bundled, QUERIES)
    if report['no_queries']:
        assert 'none: ' in table and report['queries'] == []
    else:
        assert [entry['message'] for entry in report['queries']] == [*QUERIES]
        assert not any(entry['error'] for entry in report['queries'])
        assert table.count('asked for') == len(QUERIES)
    # The frames were found again in the street, so the figures are of the right pictures.
    truth = report['ground_truth']
    assert truth['frames'] >= 5
    assert truth['pixel_accuracy'] > 0.8
    # The animal stands on the road from second 1.6 to 4.8.
    assert truth['hazards']['animal']['best_cover'] > 0.3
    capture = cv2.VideoCapture(str(out / 'demo.mp4'))
    count = 0
    while True:
        read, frame = capture.read()
        if not read:
            break
        count += 1
        assert frame.std() > 20
    assert count + frames['not_in_video'] == frames['out']
    sheet = cv2.imread(str(out / 'contact_sheet.png'))
    assert sheet.shape[1] > 1400 and sheet.std() > 30


def test_samples_are_found_in_the_street_however_late_the_first_comes(tmp_path):
    bundle = load_bundle(make_tiny_bundle(tmp_path / 'model').path)
    scene = StreetScene(96, 64, fps=10.0)
    samples = []
    for index in (130, 141):
        frame = scene.render(index)
        samples.append(Sample(index / 10, frame.image, frame.labels, np.zeros((64, 96)),
                              np.zeros((64, 96), np.uint8)))
    recording = Recording(waited=10.0, first=13.0, last=14.1, samples=samples)
    assert _compare_with_street(scene, 10.0, recording, bundle)['frames'] == 2
    assert [sample.index for sample in samples] == [130, 141]
    recording.waited = 2.0
    assert _compare_with_street(scene, 10.0, recording, bundle)['frames'] == 0


def test_samples_are_found_of_a_camera_that_falls_behind_its_rate(tmp_path):
    bundle = load_bundle(make_tiny_bundle(tmp_path / 'model').path)
    scene = StreetScene(96, 64, fps=10.0)
    indices = range(0, 120, 6)
    samples = [Sample(index / 7, scene.render(index).image, np.zeros((64, 96), np.uint8),
                      np.zeros((64, 96)), np.zeros((64, 96), np.uint8)) for index in indices]
    recording = Recording(first=0.0, last=samples[-1].seconds, samples=samples)
    assert _compare_with_street(scene, 10.0, recording, bundle)['frames'] == len(indices)
    assert [sample.index for sample in samples] == [*indices]


def clip(folder, count):
    """Write images, red on the left and of no class on the right; return their folder."""
    folder.mkdir()
    for index in range(count):
        cv2.imwrite(str(folder / f'{index:02d}.png'), paint(96, 64)[..., ::-1])
    return str(folder)


@pytest.mark.timeout(120)
def test_demo_of_a_clip_ends_with_the_clip(tmp_path):
    bundle = make_tiny_bundle(tmp_path / 'model')
    options = DemoOptions(source=clip(tmp_path / 'images', 12), out=tmp_path / 'out',
                          model=bundle.path, seconds=30, rate=8)
    report = run_demo(options, say=lambda line: None)
    assert 3 <= report['frames']['out'] <= 12
    # That the camera waited for its listeners is no warning.
    assert '[WARN]' not in (tmp_path / 'out' / 'nodes.log').read_text()
    assert report['ground_truth'] is None
    assert (report['queries'], report['no_queries']) == ([], 'the model tiny does not know words')
    assert report['taught'] is None and 'tiny has no metric head' in report['no_teaching']
    assert cv2.imread(str(tmp_path / 'out' / 'contact_sheet.png')).shape[1] == 4 * 372 + 12


@pytest.mark.timeout(120)
def test_demo_types_queries_and_shows_what_they_find(tmp_path, monkeypatch):
    folder = make_tiny_text_encoder(tmp_path / 'encoder').path
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', str(folder))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    bundle = make_tiny_bundle(tmp_path / 'model', encoder=OnnxTextEncoder(folder))
    out = tmp_path / 'out'
    report = run_demo(DemoOptions(
        source=clip(tmp_path / 'images', 100), out=out, model=bundle.path, seconds=30, rate=8,
        queries=('red', 'blue, red')), say=lambda line: None)
    assert report['no_queries'] == ''
    first, second = report['queries']
    assert (first['message'], second['message']) == ('red', 'blue, red')
    for entry in (first, second):
        assert entry['frames'] >= 3 and 0 < entry['answer_ms'] and 0 < entry['first_mask_ms']
        assert entry['error'] == '' and entry['rejected'] == []
        # The left half, less what is blurred between the halves.
        assert 0.4 < entry['shares']['red']['mean'] <= entry['shares']['red']['best'] < 0.6
    assert second['shares']['blue']['best'] < 0.01
    # Another column shows them, each name in the one colour of the legend.
    sheet = cv2.imread(str(out / 'contact_sheet.png'))[..., ::-1].astype(int)
    assert sheet.shape[1] == 5 * 372 + 12
    orange = (sheet[:, :, 0] > 230) & (abs(sheet[:, :, 1] - 90) < 25) & (sheet[:, :, 2] < 60)
    assert orange[:, 1500:].mean() > 0.1 > 0.01 > orange[:, :1400].mean()
    video = cv2.VideoCapture(str(out / 'demo.mp4'))
    assert video.get(cv2.CAP_PROP_FRAME_WIDTH) > 3 * 480


@pytest.mark.timeout(120)
def test_demo_teaches_what_lies_on_the_road(tmp_path, capsys):
    out = tmp_path / 'out'
    # To this network all of the street is unknown, so that it has one region and then one name.
    bundle = make_tiny_bundle(tmp_path / 'model', novelty=True)
    assert main(['demo', '--seconds', '6', '--out', str(out), '--rate', '5', '--size', '160x120',
                 '--model', str(bundle.path)]) == 0
    assert 'animal, by one message: named after' in ' '.join(
        capsys.readouterr().out.replace('│', ' ').split())
    report = json.loads((out / 'report.json').read_text())
    taught = report['taught']
    assert report['no_teaching'] == '' and taught['accepted'] == ['animal']
    assert taught['in_labels'] == 'animal' and taught['rejected'] == []
    assert 0 < taught['answer_ms'] and 0 < taught['first_mask_ms']
    assert 1 <= taught['named'] <= taught['frames'] and taught['best_share'] > 0.2
    # Where it points there is the animal, in the frame that it names.
    stamp, street = taught['message']['stamp'], StreetScene(160, 120, fps=5)
    event, = [event for event in street.hazard_times() if event.kind == 'animal']
    x, y = taught['message']['pixel']
    assert taught['shot']['stamp'] == stamp and any(
        street.render(index).anomaly[y, x]
        for index in range(event.first_index, event.last_index + 1))
    sheet = cv2.imread(str(out / 'contact_sheet.png'))[..., ::-1]
    color = np.array(bundle.palette()[bundle.num_classes], int)
    assert (np.abs(sheet.astype(int) - color).sum(axis=2) < 12).mean() > 0.01


def test_demo_that_teaches_nothing_says_why(tmp_path):
    plain, teachable = (make_tiny_bundle(tmp_path / name, novelty=name == 'teachable')
                        for name in ('plain', 'teachable'))
    assert 'no metric head' in why_no_teaching(plain, True, True)
    assert 'procedural street' in why_no_teaching(teachable, False, True)
    assert why_no_teaching(teachable, True, False) == 'not asked for'
    assert why_no_teaching(teachable, True, True) == ''
    nothing = DemoTeaching(StreetScene(160, 120, fps=5), teachable, 2.0)
    assert nothing.name == '' and 'no hazard was near' in describe(nothing.report({}))


@pytest.mark.parametrize('slow, seconds, kind', [(1.0, 20.0, 'tyre'), (0.75, 20.0, 'box'),
                                                 (1.0, 5.0, 'animal')])
def test_the_last_hazard_that_will_be_near_is_taught(tmp_path, slow, seconds, kind):
    """Also where the camera shows the street in slow motion."""
    bundle = make_tiny_bundle(tmp_path / 'tiny', novelty=True)
    street = StreetScene(160, 120, fps=5)
    teaching = DemoTeaching(street, bundle, seconds)
    mask, messages = np.full((120, 160), 255, np.uint8), []
    for index in range(int(seconds * slow * 5)):
        truth = street.render(index)
        message = teaching.due(truth.image, mask, (0, index), index / (5 * slow))
        if message is not None:
            teaching.sent(0.0)
            messages.append((message, index))
    (message, index), = messages
    x, y = message['pixel']
    assert (message['name'], message['stamp']['nanosec']) == (kind, index)
    assert street.render(index).anomaly[y, x]


@pytest.mark.timeout(120)
def test_nodes_that_die_are_an_error_with_their_last_words(tmp_path, monkeypatch):
    bundle = make_tiny_bundle(tmp_path / 'model')
    monkeypatch.setattr('owseg_ros.demo._command', lambda *arguments: [
        'sh', '-c', 'echo the engine is on fire >&2; exit 3'])
    with pytest.raises(DemoError, match='(?s)code 3.*on fire'):
        run_demo(DemoOptions(out=tmp_path / 'out', model=bundle.path), say=lambda line: None)


@pytest.mark.timeout(120)
def test_hazards_appear_in_the_anomaly_mask_where_they_are(bundled):
    """Each kind of hazard, near enough, is flagged more than the road around it."""
    segmenter = Segmenter(bundled)
    street = StreetScene(640, 480, seed=0)
    for event in street.hazard_times():
        cover, false_alarm = [], []
        for index in np.linspace(event.first_index, event.last_index, 5).astype(int)[1:]:
            truth = street.render(int(index))
            mask = segmenter(truth.image, maps={'anomaly_mask'}).anomaly_mask > 0
            cover.append(mask[truth.anomaly].mean())
            x0, y0, x1, y1 = truth.hazards[0].box
            around = np.zeros_like(mask)
            around[max(0, y0 - 30):y1 + 30, max(0, x0 - 60):x1 + 60] = True
            false_alarm.append(mask[around & (truth.labels == 3)].mean())
        assert event.kind in HAZARD_KINDS
        assert max(cover) > 0.3, f'{event.kind}: {cover}'
        assert np.mean(cover) > 3 * np.mean(false_alarm), f'{event.kind}: {cover} {false_alarm}'
