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
"""Samples of grounding: which words a picture comes with, and what its label map says."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
from owseg_ros.scene import Hazard, HAZARD_KINDS, HazardEvent, SceneFrame
from owseg_training.config import DataConfig, GroundingConfig
from owseg_training.data import grounding_stream
from owseg_training.data.cutouts import CutoutFolder
from owseg_training.data.datasets import CamVid
from owseg_training.data.grounding_stream import (
    GroundingStream, keep_words, MAX_WORDS, stream_labels, Truth)
from owseg_training.data.label_sets import label_set
from owseg_training.data.stream import ClosedSetStream
from owseg_training.data.words import WordTable
import pytest
from support.camvid import write_camvid
import torch

SIZE = (96, 72)  # That of the pictures, so that nothing is cropped.


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    root = write_camvid(tmp_path_factory.mktemp('data'))
    folder = root / 'objects' / 'open'
    folder.mkdir(parents=True)
    for name, color in (('a_goat', (0, 0, 255)), ('b_tyre', (255, 255, 0))):
        cv2.imwrite(str(folder / f'{name}.png'), np.full((20, 20, 4), (*color, 255), np.uint8))
    return root


def make(root, seed=0, objects=False, data=None, **changes):
    """Return a stream over the small CamVid; changes: of GroundingConfig."""
    data_set = CamVid('train', root)
    cutouts = CutoutFolder(root) if objects else None
    labels = stream_labels(data_set, cutouts)
    config = GroundingConfig(**{'keep': 1.0, 'hypernyms': 0.0, **changes})
    data = DataConfig(size=SIZE, scale=(1.0, 1.0), aspect=(1.0, 1.0), **(data or {}))
    return GroundingStream(data_set, data, seed, 1000, config, WordTable(labels), labels, cutouts)


def named(stream, words):
    """Return the concepts that words name, and check that -1 fills the rest."""
    words = words.numpy()
    count = int((words >= 0).sum())
    assert words.shape == (MAX_WORDS,) and words.dtype == np.int64
    assert (words[:count] >= 0).all() and (words[count:] == -1).all()
    concepts = [np.flatnonzero(stream.table.names[word]).tolist() for word in words[:count]]
    assert all(len(group) == 1 for group in concepts)
    return [group[0] for group in concepts]


def same(first, second):
    return torch.equal(first[0], second[0]) and all(map(torch.equal, first[1], second[1]))


def test_labels_are_classes_then_hazards_then_objects_once_each(root):
    data_set = CamVid('train', root)
    assert stream_labels(data_set, None) == ('a', 'b', 'c', *HAZARD_KINDS)
    assert stream_labels(data_set, CutoutFolder(root)) == ('a', 'b', 'c', *HAZARD_KINDS, 'goat')


def test_an_item_is_a_function_of_seed_and_index(root):
    changes = {'objects': True, 'keep': 0.5, 'object_probability': 0.5}
    first, second = make(root, **changes), make(root, **changes)
    backwards = {index: second[index] for index in (7, 3, 0)}
    for index in (0, 3, 7):
        assert same(first[index], backwards[index])
    assert not same(first[0], first[6])
    assert not same(first[0], make(root, seed=1, **changes)[0])
    with pytest.raises(IndexError):
        first[1000]


def test_words_name_what_is_there(root):
    stream = make(root)
    for index in range(12):
        image, truth = stream[index]
        assert image.shape == (3, 72, 96) and image.dtype == torch.float32
        assert truth.concepts.shape == (72, 96) and truth.concepts.dtype == torch.uint8
        assert torch.equal(truth.regions, truth.concepts)
        present = np.unique(truth.concepts.numpy())
        assert sorted(named(stream, truth.words)) == present[present != 255].tolist()


def test_picture_and_label_are_those_of_the_closed_set(root):
    stream = make(root)
    plain = ClosedSetStream(stream.data_set, stream.config, 0, 1000)
    for index in (0, 5):
        (image, truth), (expected, label) = stream[index], plain[index]
        assert torch.equal(image, expected) and torch.equal(truth.concepts, label)


def test_specks_and_void_have_no_word(root):
    stream = make(root)
    label = np.zeros((100, 100), np.uint8)
    label[:, :50] = 255
    label[0, 90:] = 1  # 10 of 10,000 pixels, not more than a thousandth.
    label[1, 89:] = 2  # 11.
    rng = np.random.default_rng(0)
    found = stream._words(label, rng)
    assert sorted(named(stream, torch.from_numpy(found))) == [0, 2]
    nothing = stream._words(np.full((8, 8), 255, np.uint8), rng)
    assert (nothing == -1).all()


def test_words_are_kept_with_the_probability(root):
    everything, some = make(root), make(root, keep=0.75)
    counts = np.array([[int((stream[i][1].words >= 0).sum()) for i in range(100)]
                       for stream in (everything, some)])
    assert counts[1].sum() / counts[0].sum() == pytest.approx(0.75, abs=0.07)
    assert (make(root, keep=0.0)[0][1].words == -1).all()
    rng = np.random.default_rng(0)
    full = keep_words(range(100), 1.0, rng)
    assert full.tolist() == list(range(MAX_WORDS))


def test_pasted_objects_have_their_own_ids_and_words(root):
    stream = make(root, objects=True, object_probability=1.0, object_height=(0.3, 0.4))
    plain = make(root)
    seen = set()
    for index in range(12):
        label = stream[index][1].concepts.numpy()
        ids = [value for value in np.unique(label) if value > 2]
        assert len(ids) == 1 and 254 not in ids  # One object a picture.
        name = next(name for name, value in stream.ids.items() if value == ids[0])
        seen.add(name)
        assert 200 < (label == ids[0]).sum() < 0.3 * label.size
        assert ids[0] in named(stream, stream[index][1].words)
        # Flips aside, the rest of the label is that without the object.
        rest = label <= 2
        below = plain[index][1].concepts.numpy()
        assert (label[rest] == below[rest]).all() or (label == below[:, ::-1])[rest].all()
    assert seen == {'goat', 'tyre'}
    never = make(root, objects=True, object_probability=0.0)
    assert all(never[index][1].concepts.max() <= 2 for index in range(6))


def street(labels, hazards):
    """Return what stands for a street, one frame of which is always the same."""
    frame = SceneFrame(np.zeros((*labels.shape, 3), np.uint8), labels, tuple(hazards))
    event = HazardEvent('cone', 7, 7)

    def render(index):
        assert index == 7, 'a frame without a hazard'
        return frame
    return SimpleNamespace(render=render, hazard_times=lambda cycles: (event,) * cycles)


def test_hazards_of_the_street_have_their_own_ids_the_nearer_one_in_front(root, monkeypatch):
    labels = np.zeros((72, 96), np.uint8)
    labels[10:30, 10:30] = 254  # The nearer one,
    labels[5:20, 25:60] = 254  # which hides a corner of the farther one.
    labels[60:, :] = 254  # A hazard that no box names.
    before = labels.copy()
    hazards = [Hazard('cone', (10, 10, 30, 30), 400, 5.0),
               Hazard('box', (25, 5, 60, 20), 475, 9.0)]
    for order in (hazards, hazards[::-1]):
        monkeypatch.setattr(grounding_stream, '_scene', lambda seed: street(labels, order))
        stream = make(root, data={'street_probability': 1.0})
        truth = stream[0][1]
        concepts = truth.concepts.numpy()
        if concepts[15, 15] != stream.ids['cone']:
            concepts = concepts[:, ::-1]
        assert (concepts[10:30, 10:30] == stream.ids['cone']).all()
        assert (concepts[5:10, 25:60] == stream.ids['box']).all()
        assert (concepts[10:20, 30:60] == stream.ids['box']).all()
        assert (concepts[60:] == 255).all() and 254 not in concepts
        assert (concepts[30:60] == 0).all()
        assert sorted(named(stream, truth.words)) == sorted(
            [0, stream.ids['cone'], stream.ids['box']])
        # A street may hand out the same frame again.
        assert (labels == before).all()


def test_the_real_street_shows_hazards_under_their_names(tmp_path, monkeypatch):
    root = write_camvid(tmp_path, 1)
    (root / 'camvid' / 'classes.json').write_text(json.dumps({'classes': [
        {'id': i, 'name': c.name, 'colour': list(c.color)}
        for i, c in enumerate(label_set('camvid_11'))]}))
    monkeypatch.setattr(grounding_stream, '_STREETS', 1)
    stream = make(root, data={'street_probability': 1.0})
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(5):
        image, label = stream._street(rng)
        assert image.shape == (360, 480, 3) and label.shape == (360, 480)
        assert 254 not in label
        seen |= set(np.unique(label).tolist())
    assert stream.ids['Road'] in seen
    assert seen & {stream.ids[kind] for kind in HAZARD_KINDS}


def test_truth_moves_as_a_whole():
    truth = Truth(*(torch.zeros(2, 3, dtype=torch.uint8) for _ in range(3)))
    moved = truth.to(torch.float64)
    assert isinstance(moved, Truth) and [t.dtype for t in moved] == [torch.float64] * 3
