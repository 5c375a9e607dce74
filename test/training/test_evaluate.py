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
import shutil

import cv2
import numpy as np
from owseg_ros.segmenter import Segmenter
from owseg_training.cli import build_parser, main
from owseg_training.data.datasets import CamVid, ClassMapError, DataError, open_data_set
from owseg_training.data.label_sets import label_set, map_by_names
from owseg_training.evaluate import anomaly_metrics, closed_set_metrics
from owseg_training.evaluate.bundle_figures import evaluate_anomaly, evaluate_closed_set
from owseg_training.evaluate.evaluation import comparison, evaluate, evaluate_classes, Options
from owseg_training.evaluate.predictors import BundlePredictor, FramePrediction, open_predictor
from owseg_training.evaluate.tables import markdown
import pytest
from support.tiny_bundle import CLASS_COLORS, CLASS_NAMES, edit_manifest, make_tiny_bundle

WIDTH, HEIGHT = 96, 64
PAINT = np.array([*CLASS_COLORS, (128, 128, 128)], np.uint8)


def scene(seed, colors):
    """Return ids uint8 [64, 96] in blocks, 3 is grey, and their RGB picture."""
    rng = np.random.default_rng(seed)
    ids = np.kron(rng.integers(0, colors, (4, 6)), np.ones((16, 16))).astype(np.uint8)
    return ids, PAINT[ids]


def write(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array[..., ::-1] if array.ndim == 3 else array)


def write_data(root, names=CLASS_NAMES, frames=3):
    """Write camvid (val) and road_anomaly, in which grey is the anomaly, in PNG colours."""
    spec = [{'id': i, 'name': n, 'colour': list(c)}
            for i, (n, c) in enumerate(zip(names, CLASS_COLORS))]
    listing = root / 'camvid' / 'classes.json'
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps({'classes': spec}))
    (root / 'camvid' / 'val.txt').write_text('\n'.join(f'f{k}.png' for k in range(frames)))
    for k in range(frames):
        ids, image = scene(k, 3)
        # Wrong on purpose, so that no figure is 1.
        ids[:, 32 * k:32 * k + 16] = 2
        ids[:4] = 255
        write(root / 'camvid' / 'images' / f'f{k}.jpg', image)
        write(root / 'camvid' / 'labels' / f'f{k}.png', ids)
        ids, image = scene(10 + k, 4 if k else 3)  # the first frame has no anomaly
        mask = (ids == 3).astype(np.uint8)
        mask[:, :16] = k == 1
        mask[60:] = 255
        write(root / 'road_anomaly' / 'images' / f'r{k}.png', image)
        write(root / 'road_anomaly' / 'masks' / f'r{k}.png', mask)
    return root


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp('data'))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp('models') / 'tiny'
    make_tiny_bundle(folder, width=WIDTH, height=HEIGHT)
    return folder


def run(capsys, *arguments):
    code = main(['evaluate', *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_default_call_gives_what_the_export_stores(data, bundle, capsys):
    code, out, _ = run(capsys, bundle, '--data', data, '--json')
    assert code == 0
    report = json.loads(out)
    assert list(report) == ['model', 'camvid_val', 'road_anomaly']
    segmenter = Segmenter(bundle)
    closed = evaluate_closed_set(segmenter, CamVid('val', data))
    road = open_data_set('road_anomaly', root=data)
    odd = evaluate_anomaly(segmenter, road)
    assert set(closed) <= set(report['camvid_val']) and set(odd) <= set(report['road_anomaly'])
    for name in ('mIoU', 'pixel_accuracy', 'frames', 'IoU'):
        assert report['camvid_val'][name] == pytest.approx(closed[name], abs=1e-12)
    for name in odd:
        assert report['road_anomaly'][name] == pytest.approx(odd[name], abs=1e-9)
    assert 0.3 < closed['mIoU'] < 0.95 and 0.3 < odd['AP'] < 0.99
    score = np.stack([segmenter(road.read(i)[0]).anomaly_score for i in road.items])
    label = np.stack([road.read_label(i) for i in road.items])
    flagged = score >= segmenter.bundle.anomaly.threshold
    point = report['road_anomaly']['at_threshold']
    assert point['true_positive_rate'] == pytest.approx(flagged[label == 1].mean())
    assert point['false_positive_rate'] == pytest.approx(flagged[label == 0].mean())
    assert point['threshold'] == segmenter.bundle.anomaly.threshold
    assert report['model']['name'] == 'tiny' and report['model']['kind'] == 'bundle'


def test_figures_of_the_export_read_labels_as_the_set_stores_them(data, bundle, tmp_path):
    segmenter = Segmenter(bundle)
    road = open_data_set('road_anomaly', root=data)
    for item in road.items:
        label = road.read_label(item)
        frames = tmp_path / 'RoadAnomaly_jpg' / 'frames'
        (frames / f'{item.name}.labels').mkdir(parents=True)
        shutil.copyfile(item.image, frames / f'{item.name}.jpg')
        write(frames / f'{item.name}.labels' / 'labels_semantic.png',
              np.where(label == 1, 2, label).astype(np.uint8))
    official = open_data_set('road_anomaly', root=tmp_path)
    assert evaluate_anomaly(segmenter, official) == evaluate_anomaly(segmenter, road)
    camvid = CamVid('val', data)
    names = [c.name for c in camvid.classes]
    turned = camvid.mapped(map_by_names(
        names, camvid.classes, dict(zip(names, names[1:] + names[:1]))))
    frames = [(segmenter(image, maps={'semantic'}).semantic, label)
              for image, label in map(turned.read, turned.items)]
    expected = closed_set_metrics(*zip(*frames), len(names))
    assert evaluate_closed_set(segmenter, turned)['mIoU'] == expected['mIoU']


def test_streamed_figures_equal_those_of_the_functions(data, bundle):
    predictor = BundlePredictor(bundle)
    road, camvid = open_data_set('road_anomaly', root=data), CamVid('val', data)
    report = evaluate(predictor, [camvid, road], Options(track='obstacle'))
    scores, labels = zip(*((predictor(*args).anomaly_score, label) for args, label in (
        ((image, {'anomaly_score'}), label) for image, label in map(road.read, road.items))))
    expected = anomaly_metrics(scores, labels, track='obstacle')
    for name, value in expected.items():
        assert report['road_anomaly'][name] == pytest.approx(value, abs=1e-12), name
    at_point = anomaly_metrics(scores, labels, track='obstacle', threshold=predictor.threshold)
    for name in ('sIoU', 'PPV', 'F1'):
        assert report['road_anomaly']['at_threshold'][name] == pytest.approx(at_point[name])
    predictions, labels = zip(*((predictor(image, {'semantic'}).semantic, label)
                                for image, label in map(camvid.read, camvid.items)))
    expected = closed_set_metrics(predictions, labels, 3)
    assert report['camvid_val']['mIoU'] == expected['mIoU']
    assert list(report['camvid_val']['IoU'].values()) == expected['IoU']


def test_files_that_are_written(data, bundle, tmp_path, capsys):
    out = tmp_path / 'report'
    code, text, _ = run(capsys, bundle, '--data', data, '--out', out, '--worst', 2,
                        '--save-scores', '--track', 'obstacle')
    assert code == 0
    assert (out / 'evaluation.md').read_text() == text.rstrip('\n') + '\n'
    assert '| camvid_val | 3 | 3 |' in text and '| road_anomaly | 3 | obstacle |' in text
    assert '| red |' in text
    report = json.loads((out / 'evaluation.json').read_text())
    for key in ('camvid_val', 'road_anomaly'):
        worst = report[key]['worst']
        assert len(worst) == 2 and worst[0]['error'] >= worst[1]['error'] > 0
        assert cv2.imread(str(out / f'worst_{key}.jpg')).shape[2] == 3
    scale = json.loads((out / 'scores' / 'road_anomaly' / 'scale.json').read_text())
    stored = cv2.imread(str(out / 'scores' / 'road_anomaly' / 'r1.png'), cv2.IMREAD_UNCHANGED)
    assert stored.dtype == np.uint16
    segmenter = Segmenter(bundle)
    image = cv2.imread(str(data / 'road_anomaly' / 'images' / 'r1.png'))[..., ::-1]
    score = segmenter(np.ascontiguousarray(image)).anomaly_score
    read = scale['low'] + (scale['high'] - scale['low']) * stored / 65535
    assert np.abs(read - score).max() < 3 / 65535
    code, _, _ = run(capsys, bundle, '--data', data, '--out', out, '--save-scores', 'npy',
                     '--data-set', 'road_anomaly', '--limit', 2)
    assert code == 0
    assert np.array_equal(np.load(out / 'scores' / 'road_anomaly' / 'r1.npy'), score)
    assert not (out / 'scores' / 'road_anomaly' / 'r2.npy').exists()


def test_data_sets_by_path_with_classes_by_name(tmp_path, bundle, capsys):
    one = write_data(tmp_path / 'one', ('rouge', 'vert', 'bleu')) / 'camvid'
    table = tmp_path / 'names.yaml'
    table.write_text('rouge: red\nvert: green\nbleu: null\n')
    code, _, error = run(capsys, bundle, '--data-set', 'camvid', '--root', one, '--json')
    assert code == 2 and 'rouge, vert, bleu' in error and '--class-map' in error
    code, out, _ = run(capsys, bundle, '--data-set', 'camvid', '--root', one, '--data-set',
                       'folder', '--root', tmp_path / 'one' / 'road_anomaly', '--class-map',
                       table, '--json')
    report = json.loads(out)
    assert code == 0 and list(report) == ['model', 'camvid_val', 'folder']
    assert report['folder']['kind'] == 'anomaly'
    # Nothing is labelled blue, but blue is predicted where it was and is void: no false alarm.
    assert set(report['camvid_val']['IoU']) == {'red', 'green', 'blue'}
    assert report['camvid_val']['IoU']['red'] > 0.6


def test_sets_of_the_same_name_are_told_apart(tmp_path, bundle, capsys):
    root, other = write_data(tmp_path / 'one'), write_data(tmp_path / 'two', frames=2)
    code, out, _ = run(capsys, bundle, '--data-set', 'folder', '--root', root / 'camvid',
                       '--data-set', 'folder', '--root', root / 'road_anomaly',
                       '--data-set', 'folder', '--root', other / 'camvid', '--json',
                       '--out', tmp_path / 'out', '--worst', 1)
    report = json.loads(out)
    assert code == 0 and list(report) == ['model', 'folder', 'folder_2', 'folder_3']
    assert [report[k]['kind'] for k in list(report)[1:]] == ['classes', 'anomaly', 'classes']
    assert [report[k]['frames'] for k in list(report)[1:]] == [3, 3, 2]
    assert len(list((tmp_path / 'out').glob('worst_folder*.jpg'))) == 3


def test_what_cannot_be_done_is_said(data, bundle, tmp_path, capsys):
    for arguments, message in (
            (('--worst', '2'), 'need --out'),
            (('--data-set', 'kitti'), 'known: cityscapes'),
            (('--data-set', 'camvid:test'), 'split test'),
            (('--data-set', 'cityscapes'), 'leftImg8bit/<split>')):
        code, _, error = run(capsys, bundle, '--data', data, *arguments)
        assert code == 2 and message in error and error.count('\n') == 1, arguments
    code, _, error = run(capsys, tmp_path, '--data', data)
    assert code == 2 and 'neither a bundle' in error
    with pytest.raises(SystemExit):
        build_parser().parse_args(['evaluate', str(bundle), '--root', 'x'])
    assert 'belongs to the --data-set before it' in capsys.readouterr().err
    for option, wrong in (('--limit', '0'), ('--limit', '-1'), ('--threshold', 'nan')):
        with pytest.raises(SystemExit):
            build_parser().parse_args(['evaluate', str(bundle), option, wrong])
        assert f'argument {option}: ' in capsys.readouterr().err
    file = tmp_path / 'file'
    file.touch()
    code, _, error = run(capsys, bundle, '--data', data, '--data-set', 'camvid:val',
                         '--out', file)
    assert code == 2 and f'owseg-train: {file}: File exists' in error
    root = write_data(tmp_path / 'blank')
    for mask in (root / 'road_anomaly' / 'masks').iterdir():
        write(mask, np.zeros((HEIGHT, WIDTH), np.uint8))
    code, _, error = run(capsys, bundle, '--data-set', 'road_anomaly', '--root', root)
    assert code == 2 and '0 anomalous' in error


def test_labels_of_another_shape_are_refused(tmp_path, bundle, capsys):
    ids, image = scene(0, 2)
    write(tmp_path / 'images' / 'a.png', image)
    for label, fits in ((ids[::2, ::2], True), (ids.T, False), (ids[:, :48], False)):
        write(tmp_path / 'labels' / 'a.png', label)
        code, _, error = run(capsys, bundle, '--data-set', 'folder', '--root', tmp_path)
        assert (code == 0) == fits
        assert fits or f'is {WIDTH}x{HEIGHT}, but its label' in error


def test_ids_of_no_class_are_named(tmp_path, bundle, capsys):
    ids, image = scene(0, 2)
    write(tmp_path / 'images' / 'a.png', image)
    for void, named in ((255, False), (254, False), (33, True)):
        ids[:8] = void
        write(tmp_path / 'labels' / 'a.png', ids)
        code, table, _ = run(capsys, bundle, '--data-set', 'folder', '--root', tmp_path)
        assert code == 0 and ('no class and count as void: 33.' in table) == named
    (tmp_path / 'map.yaml').write_text('left: left')
    code, _, error = run(capsys, bundle, '--data-set', 'folder', '--root', tmp_path,
                         '--class-map', tmp_path / 'map.yaml')
    assert code == 2 and 'add classes.json' in error


def test_scores_that_are_not_finite_name_their_frame(data):
    class Broken(ColorPredictor):
        threshold = None

        def __call__(self, image, maps):
            score = np.zeros(image.shape[:2], np.float32)
            score[3, 5] = np.nan
            return FramePrediction(None, score, None, None, None)

    data_set = open_data_set('road_anomaly', None, data)
    with pytest.raises(DataError, match=f'{data_set.items[0].image.name}: .*not finite'):
        evaluate(Broken(), [data_set], Options())


class ColorPredictor:
    """A CamVid model that knows each class by its colour and never looks elsewhere."""

    class_names = tuple(c.name for c in label_set('camvid_11'))
    palette = np.zeros((256, 3), np.uint8)
    palette[:11] = [c.color for c in label_set('camvid_11')]
    threshold = None
    description = {'kind': 'test', 'name': 'colours', 'engine': 'numpy', 'input': [8, 8]}

    def __call__(self, image, maps):
        distance = np.abs(image[:, :, None].astype(int) - self.palette[:11]).sum(3)
        ids = distance.argmin(2).astype(np.uint8)
        logits = np.where(ids[None] == np.arange(11)[:, None, None], 12.0, -12.0)
        return FramePrediction(ids, (distance.min(2) / 100).astype(np.float32),
                               logits.astype(np.float32), np.eye(11, dtype=np.float32),
                               image.shape[:2])


def put_comma(root, shown, labelled):
    """Write one comma10k frame: CamVid colours shown, comma10k names labelled, in columns."""
    names = ColorPredictor.class_names
    colors = {c.name: c.color for c in label_set('comma10k_5')}
    ids = np.repeat([names.index(n) for n in shown], 8)
    image = np.broadcast_to(ColorPredictor.palette[ids], (32, ids.size, 3))
    label = np.broadcast_to(np.repeat([colors[n] for n in labelled], 8, 0).astype(np.uint8),
                            (32, ids.size, 3))
    write(root / 'imgs' / '0009.png', image)
    write(root / 'masks' / '0009.png', label)


def test_labels_and_predictions_meet_in_a_common_label_set(tmp_path):
    put_comma(tmp_path, ['Sky', 'Road', 'Road', 'Car', 'Tree', 'Pedestrian'],
              ['undrivable', 'road', 'lane_markings', 'movable', 'my_car', 'road'])
    comma = open_data_set('comma10k', 'val', tmp_path)
    mapped, prediction_map, names = comparison(comma, ColorPredictor.class_names)
    assert names == ('road', 'undrivable', 'movable') and prediction_map is not None
    assert mapped.label_set == 'drivable_3'
    figures = evaluate_classes(ColorPredictor(), comma, Options(out=tmp_path / 'out', worst=1))
    assert figures['label_set'] == 'drivable_3'
    # Road: two columns of three; movable: one, and one false alarm; my_car is void.
    assert figures['IoU'] == {'road': pytest.approx(2 / 3), 'undrivable': 1.0, 'movable': 0.5}
    assert figures['pixel_accuracy'] == pytest.approx(0.8)
    assert figures['worst'] == [{'name': '0009', 'error': pytest.approx(0.2)}]
    # All three names are present, so grounding changes nothing; the mask of Road covers two of
    # three columns of road, those of Sky and Car their segments.
    assert figures['grounding_mIoU'] == pytest.approx(figures['mIoU'])
    assert figures['mask_recall'] == 1.0


def test_grounding_forgives_classes_that_are_absent(tmp_path):
    put_comma(tmp_path, ['Road', 'Car'], ['road', 'road'])
    figures = evaluate_classes(ColorPredictor(), open_data_set('comma10k', 'val', tmp_path),
                               Options())
    assert figures['mIoU'] == pytest.approx(0.25)  # road one half, movable a false alarm
    assert figures['grounding_mIoU'] == 1.0 and figures['mask_recall'] == 1.0
    quiet = evaluate_classes(ColorPredictor(), open_data_set('comma10k', 'val', tmp_path),
                             Options(regions=False))
    assert 'mask_recall' not in quiet and 'grounding_mIoU' not in quiet


def test_sets_without_a_common_label_set_are_refused(tmp_path):
    put_comma(tmp_path, ['Road'], ['road'])
    comma = open_data_set('comma10k', 'val', tmp_path)
    with pytest.raises(ClassMapError, match='nothing maps both'):
        comparison(comma, [c.name for c in label_set('idd_lite_7')])
    with pytest.raises(DataError, match='--class-map'):
        comparison(comma, ['spoon', 'fork'])


def test_undefined_figures_are_dashes_and_null(data, bundle):
    figures = evaluate(BundlePredictor(bundle), [CamVid('val', data)], Options(limit=1))
    figures['camvid_val']['IoU']['blue'] = float('nan')
    assert '| blue | - |' in markdown(figures)


@pytest.mark.timeout(120)
def test_checkpoint_gives_the_scores_of_the_reference_readout(tmp_path, data):
    from owseg_ros.bundle import InputSpec
    from owseg_ros.engine.preprocess import pack
    from owseg_ros.frame import Frame
    from owseg_ros.readout import reference
    from owseg_training.config import config_from_dict
    from owseg_training.data.stream import MEAN, STD
    from owseg_training.network import MaskClassifier
    from safetensors.torch import save_file
    import torch
    import yaml

    config = config_from_dict({
        'name': 'small', 'data': {'size': [WIDTH, HEIGHT]},
        'network': {'backbone': 'mobilenetv2_100_e1', 'hidden_dim': 32, 'mask_dim': 32,
                    'queries': 6, 'attention_strides': [16], 'heads': 4, 'feedforward_dim': 64}})
    torch.manual_seed(0)
    network = MaskClassifier(config.network, 3).eval()
    run_folder = tmp_path / 'run'
    run_folder.mkdir()
    (run_folder / 'config.yaml').write_text(yaml.safe_dump(config.to_dict()))
    save_file({k: v.contiguous() for k, v in network.state_dict().items()},
              str(run_folder / 'model.safetensors'))
    with pytest.raises(DataError, match='2 names|11 names'):
        open_predictor(run_folder, label_set_name='camvid_11')
    (run_folder / 'classes.json').write_text(json.dumps({'classes': [
        {'id': i, 'name': n} for i, n in enumerate(CLASS_NAMES)]}))
    predictor = open_predictor(run_folder)
    assert predictor.class_names == CLASS_NAMES and predictor.threshold is None
    image = np.random.default_rng(0).integers(0, 255, (90, 120, 3)).astype(np.uint8)
    ours = predictor(image, frozenset({'semantic', 'anomaly_score'}))
    with torch.inference_mode():
        output = network(torch.from_numpy(
            pack([Frame(image)], InputSpec('image', WIDTH, HEIGHT, MEAN, STD))))
    probabilities = output.class_logits.softmax(2)[0, :, :-1].numpy()
    scores = reference.class_scores(output.mask_logits[0].numpy(), probabilities,
                                    (HEIGHT, WIDTH), (90, 120))
    assert np.allclose(ours.anomaly_score, reference.rba(scores), atol=1e-4)
    assert (ours.semantic == reference.semantic(scores)).mean() > 0.999
    report = evaluate(predictor, [CamVid('val', data), open_data_set('road_anomaly', root=data)],
                      Options())
    assert report['model']['kind'] == 'checkpoint'
    assert 'at_threshold' not in report['road_anomaly']
    assert 0 <= report['road_anomaly']['AP'] <= 1 and 0 <= report['camvid_val']['mIoU'] <= 1


def test_bundles_are_read_with_another_score(bundle, data, tmp_path, capsys):
    command = ['evaluate', str(bundle), '--data', str(data), '--data-set', 'road_anomaly',
               '--no-regions', '--json']
    assert main(command) == 0
    plain = json.loads(capsys.readouterr().out)
    assert main([*command, '--score', 'energy', '--objects', 'on']) == 0
    other = json.loads(capsys.readouterr().out)
    assert plain['model']['anomaly_score'] == 'rba' and plain['model']['objects'] is False
    assert other['model']['anomaly_score'] == 'energy' and other['model']['objects'] is True
    # The tiny model has no operating curve of energy; its thresholds are below zero.
    assert 'at_threshold' in plain['road_anomaly']
    assert 'at_threshold' not in other['road_anomaly']
    assert other['road_anomaly']['threshold'] < 0 < plain['road_anomaly']['threshold']
    assert main([*command, '--score', 'energy', '--save-scores', 'png', '--out', 'x']) == 2
    assert 'npy' in capsys.readouterr().err
    own = make_tiny_bundle(tmp_path / 'own').path
    edit_manifest(own, lambda manifest: manifest['anomaly'].update(score='energy'))
    assert main(['evaluate', str(own), '--save-scores', 'png', '--out', 'x', *command[2:]]) == 2
    assert 'npy for energy' in capsys.readouterr().err
