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

import cv2
import numpy as np
from owseg_ros.novelty import NoveltyError, prepare, PrototypeBook
from owseg_ros.segmenter import Segmenter
from owseg_training.cli import main
from owseg_training.data.datasets import DataError, open_data_set
from owseg_training.few_shot import (
    calibrate_class, choose_examples, class_examples, Example, folder_examples, teach)
import pytest
from support.camvid import write_camvid
from support.tiny_bundle import color_embedding, make_tiny_bundle, METRIC_THRESHOLD

YELLOW = (255, 255, 0)


def write_examples(folder, sizes=(20, 40, 30)):
    """Write pictures with a yellow square of each size on grey."""
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True)
    for index, size in enumerate(sizes):
        image = np.full((64, 96, 3), 127, np.uint8)
        mask = np.zeros((64, 96), np.uint8)
        image[8:8 + size, 16:16 + size], mask[8:8 + size, 16:16 + size] = YELLOW, 1 + index
        cv2.imwrite(str(folder / 'images' / f'y{index}.png'), image[..., ::-1])
        cv2.imwrite(str(folder / 'masks' / f'y{index}.png'), mask)
    return folder


@pytest.fixture(scope='module')
def segmenter(tmp_path_factory):
    folder = tmp_path_factory.mktemp('few_shot') / 'bundle'
    return Segmenter(make_tiny_bundle(folder, novelty=True))


def areas(examples):
    return [np.count_nonzero(example.mask()) for example in examples]


def test_examples_of_a_folder(tmp_path):
    folder = write_examples(tmp_path / 'yellow')
    found = folder_examples(folder)
    assert areas(found) == [400, 1600, 900]
    assert [example.image.stem for example in found] == ['y0', 'y1', 'y2']
    (folder / 'masks' / 'y1.png').unlink()
    with pytest.raises(DataError, match='y1.png has no mask; expected .*masks'):
        folder_examples(folder)
    with pytest.raises(DataError, match='nothing has no examples; expected images'):
        folder_examples(tmp_path / 'nothing')


def test_examples_of_a_class(tmp_path):
    data_set = open_data_set('camvid', 'val', write_camvid(tmp_path))
    found = class_examples(data_set, 'b')
    assert areas(found) == [
        np.count_nonzero(data_set.read_label(item) == 1) for item in data_set.items]
    assert found[0].source == 'camvid_val f0'
    with pytest.raises(DataError, match="has no class 'dog'; it has a, b, c"):
        class_examples(data_set, 'dog')


def test_the_largest_or_any_are_chosen(tmp_path):
    found = folder_examples(write_examples(tmp_path / 'yellow', (20, 40, 5, 30)))
    assert areas(choose_examples(found, 2)) == [1600, 900]
    draws = [areas(choose_examples(found, 2, 'random', seed)) for seed in range(12)]
    assert draws[3] == areas(choose_examples(found, 2, 'random', 3))
    assert len({tuple(sorted(draw)) for draw in draws}) == 3  # All pairs, the speck in none.
    with pytest.raises(DataError, match='4 examples are asked for and 3 pictures show at least'):
        choose_examples(found, 4)
    assert len(choose_examples(found, 4, min_area=0)) == 4
    with pytest.raises(DataError, match='1 example or more, not 0'):
        choose_examples(found, 0)


def unit(*angles):
    angles = np.radians(angles)
    return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_thresholds_lie_between_shots_and_known_regions():
    report = calibrate_class('x', unit(0, 10, 20), unit(60, 90), 0.8)
    # Without itself, a shot is at most 15 degrees from the others; the nearest region is at 50.
    assert report.own == pytest.approx(np.cos(np.radians(15)), abs=1e-4)
    assert report.known == pytest.approx(
        np.quantile(np.cos(np.radians([50, 80])), 0.99), abs=1e-4)
    assert report.threshold == pytest.approx((report.own + report.known) / 2)
    assert report.apart and report.shots == 3
    mixed = calibrate_class('x', unit(0, 40), unit(20), 0.8)
    assert not mixed.apart and mixed.threshold == pytest.approx(1, abs=1e-4)
    alone = calibrate_class('x', unit(0), unit(90), 0.8)
    assert (alone.own, alone.threshold) == (None, 0.8) and alone.apart
    near = calibrate_class('x', unit(0), unit(10), 0.8)
    assert near.threshold == pytest.approx(np.cos(np.radians(10)), abs=1e-4) and not near.apart
    assert calibrate_class('x', unit(0, 10), np.empty((0, 2)), 0.8).known == -1


def test_a_class_is_the_mean_of_its_shots(tmp_path, segmenter):
    examples = folder_examples(write_examples(tmp_path / 'yellow'))
    book, (report,) = teach(segmenter, {'yellow thing': examples})
    taught, = book.active.classes
    assert taught.name == 'yellow thing' and len(taught.shots) == 3
    assert taught.shots[1].source.endswith('y1.png')
    mean = np.mean([shot.embedding for shot in taught.shots], axis=0)
    assert np.allclose(book.active.prototypes[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert book.active.prototypes[0] @ color_embedding('yellow') > 0.99
    assert taught.threshold == pytest.approx(report.threshold) and report.threshold < report.own
    known = np.tile(color_embedding('yellow'), (3, 1))
    assert teach(segmenter, {'yellow thing': examples}, known)[1][0].known > 0.99


def test_one_shot_has_the_threshold_of_the_bundle(tmp_path, segmenter):
    examples = folder_examples(write_examples(tmp_path / 'yellow', (30,)))
    book, _ = teach(segmenter, {'yellow thing': examples})
    assert book.active.classes[0].threshold == pytest.approx(METRIC_THRESHOLD)


def test_a_file_made_offline_is_recognised_by_the_segmenter(tmp_path, segmenter, capsys):
    folder, out = write_examples(tmp_path / 'yellow'), tmp_path / 'prototypes.npz'
    command = ['prototypes', '--bundle', str(segmenter.bundle.path), '--out', str(out),
               '--threads', '1']
    assert main([*command, '--shots', f'sign={folder}', '--count', '2']) == 0
    printed = capsys.readouterr().out
    assert '| sign | 2 |' in printed and 'wrote' in printed and 'no nearer' not in printed
    book = PrototypeBook(segmenter.bundle)
    book.load(out)
    number = book.active.classes[0].id
    image = np.full((64, 96, 3), (255, 0, 0), np.uint8)
    image[16:48, 40:80] = YELLOW
    taught = prepare(book.active, segmenter.bundle)
    found = segmenter(image, taught=taught).semantic
    assert (found[20:44, 44:76] == number).all() and (found[:, :32] != number).all()


def test_classes_of_a_data_set_on_the_command_line(tmp_path, segmenter, capsys):
    root, out = write_camvid(tmp_path), tmp_path / 'prototypes.npz'
    command = ['prototypes', '--bundle', str(segmenter.bundle.path), '--out', str(out),
               '--threads', '1', '--data', str(root)]
    assert main([*command, '--data-set', 'camvid:val', '--classes', 'a,b', '--count', '3',
                 '--choose', 'random', '--seed', '4']) == 0
    book = PrototypeBook(segmenter.bundle)
    assert book.load(out).names == ('a', 'b')
    expected = choose_examples(class_examples(open_data_set('camvid', 'val', root), 'b'), 3,
                               'random', 4)
    assert [shot.source for shot in book.active.classes[1].shots] == [
        example.source for example in expected]
    capsys.readouterr()
    assert main(command) == 2
    assert 'nothing to teach: give --shots' in capsys.readouterr().err
    assert main([*command, '--data-set', 'camvid', '--classes', 'a', '--known', 'camvid']) == 2
    assert 'has no class red, green, blue; it has a, b, c' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*command, '--shots', 'sign'])
    assert "expected NAME=FOLDER, not 'sign'" in capsys.readouterr().err


def test_names_of_known_classes_are_refused(tmp_path, segmenter):
    cv2.imwrite(str(tmp_path / 'x.png'), np.full((64, 96, 3), 90, np.uint8))
    example = Example(tmp_path / 'x.png', lambda: np.ones((64, 96), bool), 'x')
    with pytest.raises(NoveltyError, match="'red' is a class that .* knows already"):
        teach(segmenter, {'red': [example]})
    small = Example(example.image, lambda: np.ones((32, 96), bool), 'x')
    with pytest.raises(DataError, match='the mask of .*x.png is 96x32, the picture 96x64'):
        teach(segmenter, {'sign': [small]})
