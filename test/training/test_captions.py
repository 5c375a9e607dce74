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
"""Pictures with captions, and the masks that a teacher gives them."""

import json

import cv2
import numpy as np
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining
from owseg_training.config import DataConfig, GroundingConfig
from owseg_training.data.captions import caption_nouns, CaptionFolder, CaptionStream
from owseg_training.data.errors import DataError
from owseg_training.data.grounding_stream import MAX_WORDS
from owseg_training.data.words import held_out_words, WordTable
from owseg_training.network import Prediction
from owseg_training.pseudo_masks import region_ids
import pytest
from support.camvid import tiny_config, write_camvid
import torch

CAPTIONS = {'p0': ['A red car on the road.', 'two dogs beside a pothole'],
            'p1': ['an automobile on the sidewalk'], 'p2': ['A tree; another TREE and a car']}


def write_captions(folder, captions=None, regions=('p0',)):
    """Write three pictures with captions, of which one has regions."""
    (folder / 'images').mkdir(parents=True)
    (folder / 'regions').mkdir()
    for index, name in enumerate(CAPTIONS):
        image = np.full((48, 64, 3), 40 * index + 20, np.uint8)
        cv2.imwrite(str(folder / 'images' / f'{name}.png'), image)
        if name in regions:
            ids = np.full((48, 64), 255, np.uint8)
            ids[:, :32], ids[:20, 32:] = 0, 7
            cv2.imwrite(str(folder / 'regions' / f'{name}.png'), ids)
    (folder / 'captions.json').write_text(json.dumps(captions or CAPTIONS))
    return folder


@pytest.fixture
def folder(tmp_path):
    return write_captions(tmp_path / 'captions')


def make(folder, seed=0, keep=1.0):
    data = DataConfig(size=(64, 48), scale=(1.0, 1.0), aspect=(1.0, 1.0))
    table = WordTable(['Car', 'Tree'], caption_nouns())
    return CaptionStream(CaptionFolder(folder), data, seed, 300, GroundingConfig(keep=keep), table)


def test_a_folder_has_pictures_captions_and_some_regions(folder):
    found = CaptionFolder(folder)
    assert [item.name for item in found.items] == ['p0', 'p1', 'p2'] and len(found) == 3
    assert found.items[0].captions == tuple(CAPTIONS['p0'])
    image, regions = found.read(found.items[0])
    assert image.shape == (48, 64, 3) and (image == 20).all()
    assert np.unique(regions).tolist() == [0, 7, 255]
    image, regions = found.read(found.items[2])
    assert (image == 100).all() and regions.shape == (48, 64) and (regions == 255).all()


@pytest.mark.parametrize('content, message', [
    (None, r'captions\.json is missing; it needs images'),
    ('{', 'is no JSON'), ('[]', 'names no picture'), ('{}', 'names no picture'),
    ('{"p0": "a car"}', "captions of 'p0' must be a list"),
    ('{"p0": []}', "captions of 'p0' must be a list"),
    ('{"p0": [3]}', "captions of 'p0' must be a list"),
    ('{"p0": ["a car"], "p9": ["a car"]}', "1 pictures that are not in images/, first 'p9'")])
def test_what_is_wrong_with_captions_is_said(folder, content, message):
    (folder / 'captions.json').unlink()
    if content is not None:
        (folder / 'captions.json').write_text(content)
    with pytest.raises(DataError, match=message):
        CaptionFolder(folder)


def test_what_is_wrong_with_pictures_is_said(folder):
    found = CaptionFolder(folder)
    cv2.imwrite(str(folder / 'regions' / 'p0.png'), np.zeros((64, 48), np.uint8))
    with pytest.raises(DataError, match='must be 64x48 as p0.png, not 48x64'):
        found.read(found.items[0])
    (folder / 'images' / 'p1.png').write_text('no picture')
    with pytest.raises(DataError, match='cannot read'):
        found.read(found.items[1])
    (folder / 'images' / 'p1.jpg').write_text('another')
    with pytest.raises(DataError, match='p1.png have the same name'):
        CaptionFolder(folder)
    for path in (folder / 'images').iterdir():
        path.unlink()
    with pytest.raises(DataError, match='holds no pictures; it needs'):
        CaptionFolder(folder)


def test_captions_are_searched_for_no_held_out_word():
    nouns = caption_nouns()
    assert held_out_words().isdisjoint(nouns)
    assert {'pothole', 'dogs', 'traffic cone'} <= set(nouns)


def test_items_are_the_words_of_a_caption_and_the_regions(folder):
    stream = make(folder)
    found = set()
    for index in range(30):
        image, truth = stream[index]
        assert image.shape == (3, 48, 64)
        assert truth.concepts.dtype == torch.uint8 and (truth.concepts == 255).all()
        name = stream._pick(index).name
        assert truth.words.shape == (MAX_WORDS,) and truth.words.dtype == torch.int64
        words = tuple(stream.table.words[word] for word in truth.words if word >= 0)
        found.add((name, words))
        expected = [0, 7, 255] if name == 'p0' else [255]
        assert truth.regions.unique().tolist() == expected
        if name == 'p0':  # Flipped with the picture.
            share = (truth.regions == 0).float().mean(0)
            assert (share[:32] == 1).all() or (share[32:] == 1).all()
    # Either caption of p0, in the order of the text; p1 has held-out words alone.
    assert found == {('p0', ('car', 'road')), ('p0', ('dogs', 'pothole')), ('p1', ()),
                     ('p2', ('tree', 'car'))}


def test_items_are_a_function_of_seed_and_index_and_words_are_kept_by_chance(folder):
    first, second = make(folder, keep=0.5), make(folder, keep=0.5)
    ahead = {index: second[index] for index in (20, 9, 0)}
    for index in (0, 9, 20):
        assert torch.equal(first[index][0], ahead[index][0])
        assert all(map(torch.equal, first[index][1], ahead[index][1]))
    every = make(folder)
    counts = [sum(int((stream[i][1].words >= 0).sum()) for i in range(200))
              for stream in (every, first)]
    assert counts[1] / counts[0] == pytest.approx(0.5, abs=0.08)
    other = make(folder, seed=1)
    assert [first._pick(i).name for i in range(12)] != [other._pick(i).name for i in range(12)]


def test_captions_without_a_known_word_are_refused(tmp_path):
    folder = write_captions(tmp_path / 'odd', {'p0': ['qwerty'], 'p1': ['an automobile']})
    with pytest.raises(DataError, match='no caption of .* words that are looked for'):
        make(folder)


def predicted(objectness, masks):
    """Return a Prediction of one picture: probabilities [N], masks [N, h, w] of -1, 0, 1."""
    p = torch.tensor(objectness)[:, None]
    logits = torch.cat((p / 2, p / 2, 1 - p), 1).clamp(min=1e-6).log()
    return Prediction(logits[None], 10 * torch.tensor(masks).float()[None],
                      torch.zeros(1, 1, 2, 4))


def test_regions_are_the_confident_masks():
    masks = -np.ones((4, 8, 8), np.int64)
    masks[0, :, :4] = 1  # Left.
    masks[1, :, 2:6] = 1  # Middle, less sure of itself than the left one.
    masks[2] = 1  # Everything, but hardly an object.
    masks[3, :, 6:] = -1  # Nowhere.
    ids = region_ids(predicted([0.9, 0.6, 0.3, 0.95], masks), (8, 8))
    assert ids.dtype == np.uint8
    # The sure and empty mask takes no id, and no pixel away.
    assert (ids[:, :4] == 0).all() and (ids[:, 4:6] == 1).all() and (ids[:, 6:] == 255).all()
    more = region_ids(predicted([0.9, 0.6, 0.3, 0.95], masks), (8, 8), 0.2)
    assert (more[:, :6] == ids[:, :6]).all() and (more[:, 6:] == 2).all()
    assert (region_ids(predicted([0.1] * 4, masks), (8, 8)) == 255).all()
    assert region_ids(predicted([0.9, 0.6, 0.3, 0.95], masks), (30, 50)).shape == (30, 50)


def test_specks_are_no_regions():
    masks = -np.ones((2, 64, 64), np.int64)
    masks[0, :, :32] = 1
    masks[1, 0, 60:64] = 1  # 4 of 4,096 pixels, less than a thousandth.
    ids = region_ids(predicted([0.9, 0.9], masks), (64, 64))
    assert np.unique(ids).tolist() == [0, 255]


def test_at_most_255_regions():
    masks = -np.ones((300, 20, 15), np.int64)
    masks.reshape(300, 300)[np.arange(300), np.arange(300)] = 1
    objectness = np.linspace(0.6, 0.9, 300, dtype=np.float32)
    ids = region_ids(predicted(objectness, masks), (20, 15))
    # The least sure ones are left out.
    assert (ids.ravel()[:45] == 255).all()
    assert ids.ravel()[45:].tolist() == list(range(255))


@pytest.mark.timeout(180)
def test_a_teacher_writes_regions_that_captions_are_read_with(folder, tmp_path, capsys):
    root = write_camvid(tmp_path)
    ClosedSetTraining(tiny_config(root, 2), tmp_path / 'teacher').save()
    command = ['pseudo-masks', '--teacher', str(tmp_path / 'teacher'), '--images']
    assert main([*command, str(folder), '--confidence', '0']) == 0
    assert 'regions of 3 pictures' in capsys.readouterr().out
    found = CaptionFolder(folder)
    for item in found.items:
        image, regions = found.read(item)
        assert regions.shape == image.shape[:2]
        # The old one is gone, and every pixel is somebody's or nobody's.
        assert set(np.unique(regions)) <= {*range(6), 255}
    assert main([*command, str(tmp_path / 'nothing')]) == 2
    assert 'holds no pictures' in capsys.readouterr().err
    assert main([*command, str(folder), '--confidence', '2']) == 2
    assert 'must be in 0..1' in capsys.readouterr().err
