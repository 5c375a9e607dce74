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
"""Matching regions with taught classes: RAML, equations 11 and 12."""

from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
from owseg_ros.novelty import NoveltyError, prepare, PrototypeBook
from owseg_ros.novelty.match import NO_MATCH
import pytest
from support.tiny_bundle import color_embedding, make_tiny_bundle, METRIC_DIM, METRIC_THRESHOLD

YELLOW, CYAN, RED = (color_embedding(name) for name in ('yellow', 'cyan', 'red'))


@pytest.fixture(scope='module')
def bundle(tmp_path_factory):
    return make_tiny_bundle(tmp_path_factory.mktemp('tiny') / 'bundle', novelty=True)


@pytest.fixture
def book(bundle):
    book = PrototypeBook(bundle)
    book.add_shot('yellow thing', YELLOW)
    book.add_shot('cyan thing', CYAN)
    return book


def between(first, second, cosine):
    """Return a unit vector with that cosine to the first, towards the second."""
    aside = second - (second @ first) * first
    aside /= np.linalg.norm(aside)
    return (cosine * first + np.sqrt(1 - cosine ** 2) * aside).astype(np.float32)


def test_the_most_similar_class_or_none(bundle, book):
    taught = prepare(book.active, bundle)
    assert taught.thresholds.tolist() == pytest.approx([METRIC_THRESHOLD] * 2)
    rows = np.stack([CYAN, between(YELLOW, RED, 0.85), between(YELLOW, RED, 0.75), RED])
    index, cosine = taught.match(rows)
    assert index.tolist() == [1, 0, NO_MATCH, NO_MATCH]
    np.testing.assert_allclose(cosine, [1, 0.85, 0.75, RED @ YELLOW], atol=1e-5)


def test_each_class_has_its_threshold(bundle, book):
    row = between(YELLOW, CYAN, 0.74)[None]
    assert row @ CYAN > 0.7
    for thresholds, expected in (((0.6, 0.6), 0), ((0.9, 0.6), 1), ((0.9, 0.9), NO_MATCH),
                                 ((None, 0.6), 1), ((0.6, None), 0)):
        for name, threshold in zip(book.active.names, thresholds):
            book.set_threshold(name, threshold)
        index, cosine = prepare(book.active, bundle).match(row)
        assert index.tolist() == [expected], thresholds
        best = CYAN if expected == 1 else YELLOW
        assert cosine[0] == pytest.approx(row[0] @ best, abs=1e-5)
    book.set_threshold('cyan thing', None)
    book.set_threshold('yellow thing', None)
    index, _ = prepare(book.active, bundle, threshold=0.5).match(row)
    assert index.tolist() == [0]


def test_exactly_at_the_threshold_is_a_match(bundle):
    book = PrototypeBook(bundle)
    rows = np.eye(METRIC_DIM, dtype=np.float32)
    book.add_shot('first axis', rows[0])
    assert prepare(book.active, bundle, threshold=1.0).match(rows[:2])[0].tolist() == [0, NO_MATCH]


def test_a_region_that_is_more_like_a_known_class_is_none(bundle, book):
    taught = prepare(book.active, bundle, threshold=0.3)
    rows = np.stack([between(YELLOW, RED, 0.6), between(YELLOW, RED, 0.9)])
    assert taught.match(rows)[0].tolist() == [0, 0]
    assert taught.match(rows, RED[None])[0].tolist() == [NO_MATCH, 0]
    assert taught.match(rows, np.empty((0, METRIC_DIM), np.float32))[0].tolist() == [0, 0]
    # As much like a known class is none, too.
    assert taught.match(rows, book.active.prototypes)[0].tolist() == [NO_MATCH, NO_MATCH]


def test_nothing_taught_and_nothing_seen(bundle, book):
    empty = np.empty((0, METRIC_DIM), np.float32)
    index, cosine = prepare(book.active, bundle).match(empty)
    assert index.shape == cosine.shape == (0,)
    taught = prepare(PrototypeBook(bundle).active, bundle)
    index, cosine = taught.match(YELLOW[None])
    assert len(taught) == 0 and index.tolist() == [NO_MATCH] and cosine.tolist() == [-1]


@given(st.integers(1, 6), st.integers(0, 6), st.floats(-1, 1), st.integers(0, 999))
@settings(max_examples=60, deadline=None)
def test_as_the_equations_say(bundle, classes, regions, threshold, seed):
    random = np.random.default_rng(seed)
    book = PrototypeBook(bundle)
    shots = random.normal(size=(classes, METRIC_DIM)).astype(np.float32)
    shots /= np.linalg.norm(shots, axis=1, keepdims=True)
    for number, row in enumerate(shots):
        book.add_shot(f'class {number}', row)
    rows = random.normal(size=(regions, METRIC_DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    index, _ = prepare(book.active, bundle, threshold).match(rows)
    for row, found in zip(rows, index):
        cosines = [float(np.dot(row, shot)) for shot in shots]
        best = int(np.argmax(cosines))
        if abs(cosines[best] - threshold) > 1e-5:
            assert found == (best if cosines[best] > threshold else NO_MATCH)


def test_colours_of_taught_classes(bundle, book):
    book.set_color('cyan thing', (9, 8, 7))
    taught = prepare(book.active, bundle)
    assert taught.palette[4].tolist() == [9, 8, 7]
    np.testing.assert_array_equal(np.delete(taught.palette, 4, 0),
                                  np.delete(bundle.palette(), 4, 0))
    assert taught.classes == book.active.classes and taught.version == book.active.version


def test_sets_of_another_model_and_wrong_thresholds_are_refused(bundle, book, tmp_path):
    other = make_tiny_bundle(tmp_path / 'other', num_queries=9, novelty=True)
    assert other.network_sha256 != bundle.network_sha256
    with pytest.raises(NoveltyError, match='taught to another model than tiny'):
        prepare(book.active, other)
    with pytest.raises(NoveltyError, match='no metric head'):
        prepare(book.active, make_tiny_bundle(tmp_path / 'plain'))
    with pytest.raises(NoveltyError, match='cosine'):
        prepare(book.active, bundle, threshold=1.5)
