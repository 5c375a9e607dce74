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
import re
import sys

import cv2
import numpy as np
from owseg_ros.cli import main
from owseg_ros.engine.precision import precision_of
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.novelty import PrototypeBook
from owseg_ros.pictures import FrameComposer, panel_size, QueryPicture, VideoError, VideoWriter
import pytest
from support.tiny_bundle import color_embedding, make_tiny_bundle, paint
from support.tiny_text_encoder import make_tiny_text_encoder


@pytest.fixture
def model(tmp_path):
    return str(make_tiny_bundle(tmp_path / 'model').path)


def frames_of(path):
    capture = cv2.VideoCapture(str(path))
    frames = []
    while True:
        read, frame = capture.read()
        if not read:
            return frames
        frames.append(frame)


def test_run_over_a_folder_writes_a_video_and_the_maps(tmp_path, model, capsys):
    images = tmp_path / 'images'
    images.mkdir()
    for index in range(5):
        right = (255, 255, 255) if index % 2 else (0, 255, 0)
        cv2.imwrite(str(images / f'{index}.png'), paint(96, 64, right=right)[..., ::-1])
    out = tmp_path / 'out'
    assert main(['run', '--model', model, '--source', str(images), '--out', str(out),
                 '--masks', '--every', '2']) == 0
    assert 'run.mp4' in capsys.readouterr().out
    frames = frames_of(out / 'run.mp4')
    assert len(frames) == 3 and min(frame.std() for frame in frames) > 20
    for index in (0, 2, 4):
        ids = cv2.imread(str(out / 'maps' / f'{index:06d}_semantic.png'), cv2.IMREAD_UNCHANGED)
        assert ids.shape == (64, 96)
        assert (ids[:, :40] == 0).all() and (ids[:, 56:] == 1).all()
        score = np.load(out / 'maps' / f'{index:06d}_anomaly_score.npy')
        assert score.shape == (64, 96)
        assert score[:, :40].max() < 0.5 and score[:, 56:].max() < 0.5
    assert not (out / 'maps' / '000001_semantic.png').exists()


def test_run_of_the_street_is_compared_with_its_truth(tmp_path, model, capsys):
    assert main(['run', '--source', 'scene', '--limit', '2', '--out', str(tmp_path / 'out')]) == 0
    said = ' '.join(capsys.readouterr().out.replace('│', ' ').split())
    accuracy = re.search(r'pixel accuracy (0\.\d+), mIoU (0\.\d+) over 2 frames', said)
    assert float(accuracy[1]) > 0.9 and float(accuracy[2]) > 0.5
    # The classes of this model are not those of the street.
    assert main(['run', '--source', 'scene', '--limit', '1', '--model', model, '--out',
                 str(tmp_path / 'out')]) == 0
    said = capsys.readouterr().out
    assert 'of known pixels' in said and 'accuracy' not in said


def test_run_passes_over_images_that_cannot_be_read(tmp_path, model, capsys):
    images, out = tmp_path / 'images', tmp_path / 'out'
    images.mkdir()
    for name in 'bd':
        cv2.imwrite(str(images / f'{name}.png'), paint(96, 64)[..., ::-1])
    (images / 'a.png').write_bytes(b'')
    (images / 'c.png').write_bytes((images / 'b.png').read_bytes()[:60])
    command = ['run', '--model', model, '--source', str(images), '--out', str(out), '--masks']
    assert main(command) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith('owseg:')]
    assert [line.split()[1] for line in said] == [str(images / 'a.png'), str(images / 'c.png')]
    assert len(frames_of(out / 'run.mp4')) == 2
    # Maps are counted as the files of the folder are.
    assert sorted(path.name for path in (out / 'maps').glob('*_semantic.png')) == [
        '000001_semantic.png', '000003_semantic.png']


def test_progress_of_unknown_length_suits_the_rich_of_ubuntu_22_04(
        tmp_path, model, monkeypatch):
    totals = []

    def update(progress, task, *, total=0, **options):
        totals.append(total)

    def add_task(progress, description, *, total=0, **options):
        totals.append(total)
        return 0

    monkeypatch.setattr('owseg_ros.cli.Progress.update', update)
    monkeypatch.setattr('owseg_ros.cli.Progress.add_task', add_task)
    assert main(['run', '--model', model, '--source', 'scene', '--limit', '2', '--out',
                 str(tmp_path / 'out')]) == 0
    assert len(totals) >= 3 and None not in totals


@pytest.fixture
def words(tmp_path, monkeypatch):
    """Return the folders of a model that answers words and of its text encoder."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    encoder = make_tiny_text_encoder(tmp_path / 'encoder').path
    model = make_tiny_bundle(tmp_path / 'words', encoder=OnnxTextEncoder(encoder)).path
    return str(model), str(encoder)


def test_run_with_queries_writes_their_masks(tmp_path, words, capsys):
    speaking, encoder = words
    cv2.imwrite(str(tmp_path / 'street.png'), paint(96, 64, right=(255, 255, 0))[..., ::-1])
    arguments = ['run', '--model', speaking, '--text-encoder', encoder, '--source',
                 str(tmp_path / 'street.png'), '--masks', '--query', 'green, red']
    out = tmp_path / 'out'
    assert main([*arguments, '--out', str(out)]) == 0
    assert '"red"' in capsys.readouterr().out
    frame, = frames_of(out / 'run.mp4')
    assert frame.shape[1] > 3 * 480
    mask = cv2.imread(str(out / 'maps' / '000000_query_mask.png'), cv2.IMREAD_UNCHANGED)
    assert (mask[:, :40] == 1).all() and (mask[:, 56:] == 255).all()
    assert np.load(out / 'maps' / '000000_query_score.npy')[:, :40].min() > 0.9
    listed = json.loads((out / 'maps' / 'queries.json').read_text())['queries']
    assert [(entry['id'], entry['name'], entry['threshold']) for entry in listed] == [
        (0, 'green', 0.5), (1, 'red', 0.5)]
    assert listed[0]['color'] != listed[1]['color']
    strict = tmp_path / 'strict'
    assert main([*arguments, '--out', str(strict), '--query-threshold', '1']) == 0
    mask = cv2.imread(str(strict / 'maps' / '000000_query_mask.png'), cv2.IMREAD_UNCHANGED)
    assert (mask == 255).all()


def test_vocabulary_of_a_run_words_its_queries(tmp_path, words):
    speaking, encoder = words
    cv2.imwrite(str(tmp_path / 'street.png'), paint(96, 64)[..., ::-1])
    vocabulary = tmp_path / 'vocabulary.yaml'
    vocabulary.write_text(
        'schema: owseg_ros/vocabulary\nschema_version: 1\n'
        "templates: {plain: ['{}'], caption: ['{}']}\n"
        'entries: [{name: crimson, meaning: [red]}]\n')
    for extra, found in (([], False), (['--vocabulary', str(vocabulary)], True)):
        assert main(['run', '--model', speaking, '--text-encoder', encoder, '--source',
                     str(tmp_path / 'street.png'), '--masks', '--query', 'crimson',
                     '--out', str(tmp_path / 'out'), *extra]) == 0
        mask = cv2.imread(
            str(tmp_path / 'out' / 'maps' / '000000_query_mask.png'), cv2.IMREAD_UNCHANGED)
        assert (mask[:, :40] == 0).all() == found


def test_a_vocabulary_that_is_not_there_is_refused_though_nothing_is_asked(tmp_path, capsys):
    assert main(['run', '--source', 'scene', '--limit', '1', '--out', str(tmp_path / 'out'),
                 '--vocabulary', str(tmp_path / 'absent.yaml')]) == 2
    assert 'absent.yaml: cannot be read' in capsys.readouterr().err


def test_run_names_what_is_unknown(tmp_path, words):
    speaking, encoder = words
    frame = paint(96, 64, right=(255, 0, 0))
    frame[16:48, 16:40] = (255, 255, 0)
    cv2.imwrite(str(tmp_path / 'street.png'), frame[..., ::-1])
    vocabulary = tmp_path / 'vocabulary.yaml'
    vocabulary.write_text(
        'schema: owseg_ros/vocabulary\nschema_version: 1\n'
        "templates: {plain: ['{}'], caption: ['{}']}\nentries: [{name: yellow}]\n")
    arguments = ['run', '--model', speaking, '--text-encoder', encoder, '--source',
                 str(tmp_path / 'street.png'), '--vocabulary', str(vocabulary)]
    out = tmp_path / 'out'
    assert main([*arguments, '--out', str(out), '--name-unknown']) == 0
    line, = (out / 'regions.jsonl').read_text().splitlines()
    frame = json.loads(line)
    region, = frame['regions']
    assert (frame['frame'], region['id'], region['name']) == (0, 0, 'yellow')
    assert region['name_score'] > 0.9 and region['anomaly_score'] > 0.8
    np.testing.assert_allclose(region['box'], [16, 16, 40, 48], atol=2)
    named, = frames_of(out / 'run.mp4')
    assert main([*arguments, '--out', str(out)]) == 0
    plain, = frames_of(out / 'run.mp4')
    changed = np.abs(named.astype(int) - plain).max(axis=2) > 60
    rows, columns = np.nonzero(changed)
    # In the overlay, the fourth panel, and nowhere else.
    assert changed.any() and rows.min() > 44 + 320 and columns.min() > 480


@pytest.mark.parametrize('query, folder, says', [
    ('red, red', None, "query 'red': it is asked for twice"),
    ('red', 'nowhere', 'no text encoder in nowhere; run: owseg text-encoder')])
def test_queries_that_cannot_be_answered(tmp_path, words, capsys, query, folder, says):
    speaking, encoder = words
    assert main(['run', '--source', 'scene', '--model', speaking, '--out', str(tmp_path / 'out'),
                 '--query', query, '--text-encoder', folder or encoder]) == 2
    error = capsys.readouterr().err.strip()
    assert says in error and '\n' not in error


def test_build_engine_writes_the_graph_and_says_what_a_build_needs(
        tmp_path, model, capsys, monkeypatch):
    target = tmp_path / 'out' / 'half.onnx'
    assert main(['build-engine', '--model', str(model), '--max-batch', '2',
                 '--graph-only', str(target)]) == 0
    said = capsys.readouterr().out
    assert 'fp16' in said and '1 to 2 frames' in said
    assert precision_of(target) == 'fp16'
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    assert main(['build-engine', '--model', str(model), '--cache', str(tmp_path / 'cache')]) == 2
    assert 'owseg: TensorRT is not installed' in capsys.readouterr().err
    assert main(['build-engine', '--model', str(model), '--precision', 'half']) == 2
    assert 'auto, fp32, fp16, int8' in capsys.readouterr().err


@pytest.fixture
def teachable(tmp_path):
    """Return the arguments of a run of a model that was taught cyan, over red and cyan."""
    bundle = make_tiny_bundle(tmp_path / 'teachable', novelty=True)
    book = PrototypeBook(bundle)
    book.add_shot('ice [block]', color_embedding('cyan'))
    book.set_color('ice [block]', (0, 200, 200))
    book.save(tmp_path / 'taught.npz')
    cv2.imwrite(str(tmp_path / 'street.png'), paint(96, 64, right=(0, 255, 255))[..., ::-1])
    return ['run', '--model', str(bundle.path), '--masks', '--out', str(tmp_path / 'out'),
            '--source', str(tmp_path / 'street.png'), '--prototypes', str(tmp_path / 'taught.npz')]


def test_run_recognises_what_was_taught(tmp_path, teachable, capsys):
    arguments = teachable
    ids = tmp_path / 'out' / 'maps' / '000000_semantic.png'
    assert main(arguments) == 0
    assert 'taught: ice [block]' in ' '.join(capsys.readouterr().out.split())
    found = cv2.imread(str(ids), cv2.IMREAD_UNCHANGED)
    assert (found[:, 60:] == 3).all() and (found[:, :40] == 0).all()
    entry, = json.loads((tmp_path / 'out' / 'maps' / 'taught.json').read_text())['taught']
    assert entry == {'id': 3, 'name': 'ice [block]', 'threshold': pytest.approx(0.8),
                     'color': [0, 200, 200], 'shots': 1}
    # The frame and the legend show the class in its colour.
    picture, = frames_of(tmp_path / 'out' / 'run.mp4')
    near = np.abs(picture[..., ::-1].astype(int) - (0, 200, 200)).max(axis=2) < 24
    assert near.mean() > 0.05
    assert main([*arguments, '--prototype-threshold', '1']) == 0
    assert (cv2.imread(str(ids), cv2.IMREAD_UNCHANGED)[:, 60:] == 254).all()


def test_run_compares_masks_if_asked(tmp_path, teachable):
    """Where nothing is anomalous only the masks are left to compare."""
    arguments = teachable
    image = paint(96, 64, (0, 255, 255), (0, 255, 255))
    cv2.imwrite(str(tmp_path / 'street.png'), image[..., ::-1])
    ids = tmp_path / 'out' / 'maps' / '000000_semantic.png'
    for options, expected in (([], False), (['--prototype-masks'], True)):
        assert main([*arguments, '--threshold', '2', *options]) == 0
        assert (cv2.imread(str(ids), cv2.IMREAD_UNCHANGED) == 3).all() == expected


def test_prototypes_that_cannot_be_used(tmp_path, model, teachable, capsys):
    arguments = teachable
    for options, says in ((['--model', model], 'has no metric head'),
                          (['--prototypes', str(tmp_path / 'no.npz')],
                           'no.npz: cannot be read: No such file or directory\n')):
        assert main([*arguments, *options]) == 2
        error = capsys.readouterr().err
        assert says in error and error.count('\n') == 1
    with pytest.raises(SystemExit):
        main([*arguments, '--prototype-threshold', '1.5'])


def test_query_of_a_model_without_words(tmp_path, model, capsys):
    for arguments in (['--query', 'red'], ['--name-unknown']):
        assert main(['run', '--source', 'scene', '--model', model, *arguments]) == 2
        assert 'tiny has no region embeddings' in capsys.readouterr().err


def test_run_over_a_video_stops_at_the_limit(tmp_path, model):
    writer = VideoWriter(tmp_path / 'clip.mp4', 10, (96, 64))
    for _ in range(6):
        writer.write(paint(96, 64))
    writer.close()
    out = tmp_path / 'out'
    assert main(['run', '--model', model, '--video', str(tmp_path / 'clip.mp4'), '--limit', '4',
                 '--out', str(out)]) == 0
    assert len(frames_of(out / 'run.mp4')) == 4


@pytest.mark.parametrize('arguments, says', [
    (['run', '--video', 'no/such.mp4'], 'no/such.mp4'),
    (['run', '--source', 'scene', '--every', '0'], 'every'),
    (['run', '--source', 'scene', '--limit', '-1'], 'limit must be 0'),
    (['run', '--source', 'scene', '--hysteresis', '-1'],
     'hysteresis must be a finite number, 0 or more, not -1'),
    (['run', '--source', 'scene', '--hold-frames', '999'], 'hold_frames'),
    (['run', '--source', 'scene', '--threshold', 'nan'], 'the threshold must be finite'),
    (['run', '--source', 'scene', '--score', 'loud'], 'max_logit'),
    (['run', '--source', 'scene', '--engine', 'magic'], 'onnx'),
    (['run', '--source', 'scene', '--providers', 'tensorrt'], 'tensorrt')])
def test_expected_errors_are_one_line(arguments, says, model, capsys, tmp_path):
    arguments = [*arguments, '--model', model, '--out', str(tmp_path)]
    assert main(arguments) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith('owseg: ') and says in error and '\n' not in error


def test_results_that_cannot_be_written_are_one_line(model, capsys, tmp_path):
    file = tmp_path / 'file'
    file.touch()
    cv2.imwrite(str(tmp_path / 'street.png'), paint(96, 64)[..., ::-1])
    for out, reason in ((file, 'File exists'), (file / 'below', 'Not a directory')):
        assert main(['run', '--source', str(tmp_path / 'street.png'), '--model', model,
                     '--out', str(out)]) == 2
        assert capsys.readouterr().err.strip() == f'owseg: {out}: {reason}'


def test_brackets_in_names_are_no_markup(tmp_path, words, capsys):
    speaking, encoder = words
    cv2.imwrite(str(tmp_path / 'street.png'), paint(96, 64)[..., ::-1])
    out = tmp_path / 'out [bold]'
    assert main(['run', '--source', str(tmp_path / 'street.png'), '--model', speaking,
                 '--text-encoder', encoder, '--query', 'red [/b]', '--out', str(out)]) == 0
    printed = capsys.readouterr().out
    assert '"red [/b]"' in printed and str(out / 'run.mp4') in printed


def test_frames_of_a_line_camera_make_a_video(tmp_path, model):
    cv2.imwrite(str(tmp_path / 'line.png'), paint(4, 3000)[..., ::-1])
    assert main(['run', '--source', str(tmp_path / 'line.png'), '--model', model, '--masks',
                 '--out', str(tmp_path)]) == 0
    frame, = frames_of(tmp_path / 'run.mp4')
    assert frame.shape[0] < 2500
    assert np.load(tmp_path / 'maps' / '000000_anomaly_score.npy').shape == (3000, 4)


def test_model_that_is_none_is_named(tmp_path, capsys):
    assert main(['run', '--source', 'scene', '--model', str(tmp_path)]) == 2
    assert 'manifest.yaml' in capsys.readouterr().err
    assert main(['demo', '--model', str(tmp_path), '--out', str(tmp_path / 'out')]) == 2
    assert 'manifest.yaml' in capsys.readouterr().err
    assert not (tmp_path / 'out').exists()


def test_command_line_mistakes_exit_with_usage(capsys):
    for arguments in ([], ['run'], ['demo', '--size', 'big'], ['dance'],
                      ['run', '--source', 'scene', '--query-threshold', '2'],
                      ['run', '--source', 'scene', '--query-threshold', 'high']):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 2
        assert 'usage: owseg' in capsys.readouterr().err


def test_composed_frame_shows_the_four_panels(tmp_path):
    palette = np.zeros((256, 3), np.uint8)
    palette[1], palette[254] = (0, 200, 0), (255, 0, 255)
    composer = FrameComposer(120, 90, palette, [('grass', (0, 200, 0))])
    image = np.full((90, 120, 3), (200, 10, 10), np.uint8)
    mask = np.zeros((90, 120), np.uint8)
    mask[30:60, 40:80] = 255
    score = np.where(mask > 0, 1.0, 0.0).astype(np.float32)
    picture = composer.compose(image, np.ones((90, 120), np.uint8), score, mask, 'title')
    assert picture.shape == (composer.size[1], composer.size[0], 3)
    assert composer.size[0] % 2 == composer.size[1] % 2 == 0
    top, left, right, low = 44 + 45, 6 + 60, 6 + 126 + 60, 44 + 96 + 45
    assert (picture[top, left] == (200, 10, 10)).all()
    assert (picture[top, right] == (0, 200, 0)).all()
    assert picture[low, left].sum() > 500 and picture[low + 35, left].sum() < 30
    assert picture[low, right, 2] > 100 > picture[low + 35, right, 2]
    with pytest.raises(VideoError, match='does not fit'):
        VideoWriter(tmp_path / 'v.mp4', 5, composer.size).write(image)


def test_a_video_that_is_too_large_is_one_clear_error(tmp_path, capfd):
    composer = FrameComposer(*panel_size(4000, 2), np.zeros((256, 3), np.uint8), [])
    VideoWriter(tmp_path / 'strip.mp4', 5, composer.size).close()
    VideoWriter(tmp_path / 'largest.mp4', 5, (64, 8190)).close()
    for size in ((64, 8192), (8192, 64)):
        with pytest.raises(VideoError, match='would have {}x{} pixels, and MPEG-4 takes 8191 a'
                           .format(*size)):
            VideoWriter(tmp_path / 'v.mp4', 5, size)
    assert capfd.readouterr().err == ''


def test_composed_frame_shows_queries_in_a_third_column():
    composer = FrameComposer(120, 90, np.zeros((256, 3), np.uint8), [('grass', (0, 200, 0))],
                             [('cone', (250, 120, 0)), ('dog', (0, 90, 250))])
    image = np.full((180, 240, 3), 128, np.uint8)
    mask = np.full((90, 120), 255, np.uint8)
    mask[:, 60:] = 1
    score = np.where(mask == 1, 0.9, 0.1).astype(np.float32)
    ids = np.zeros((90, 120), np.uint8)
    picture = composer.compose(
        image, ids, score, ids, 'title',
        queries=QueryPicture(mask, score, [(250, 120, 0), (0, 90, 250)]))
    left, right, top, low = 6 + 2 * 126 + 30, 6 + 2 * 126 + 90, 44 + 45, 44 + 96 + 45
    assert np.ptp(picture[top, left].astype(int)) < 20         # nothing found: faint and grey
    assert picture[top, right, 2] > picture[top, right, 0] + 100
    assert picture[low, right].sum() > picture[low, left].sum() + 200
    # The legend names both, below that of the classes.
    legend = picture[44 + 2 * 96:]
    for color in ((0, 200, 0), (250, 120, 0), (0, 90, 250)):
        assert (legend == color).all(axis=2).any()
    plain = FrameComposer(120, 90, np.zeros((256, 3), np.uint8), [('grass', (0, 200, 0))])
    assert plain.size[0] < composer.size[0] and plain.size[1] < composer.size[1]


def test_doctor_knows_a_damaged_model_and_speaks_json(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '77')
    (tmp_path / 'model' / 'network.onnx').write_bytes(b'damaged')
    assert main(['doctor', '--json', '--seconds', '0.2', '--model', model]) == 1
    checks = {check['name']: check for check in json.loads(capsys.readouterr().out)}
    assert checks['model']['level'] == 'fail' and 'sha256' in checks['model']['found']
    assert checks['ONNX Runtime']['level'] == 'ok'
    assert 'cpu' in checks['engine']['found']
