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
import threading

import numpy as np
from owseg_ros.language import (
    CachingTextEncoder, NO_EXPANSION, parse_queries, QueryBook, TextEncoderError, Vocabulary,
    VocabularyError)
import pytest
from support.counting_encoder import CountingEncoder

VOCABULARY = Vocabulary({'dog': ('dog', 'dogs', 'puppy'), 'puppy': ('puppy',)},
                        {'plain': ('{}',), 'caption': ('a photo of the {}', 'the {} outside')})


def unit(vector: np.ndarray) -> np.ndarray:
    """Return the vector at unit length."""
    return vector / np.linalg.norm(vector)


def test_a_book_starts_empty():
    book = QueryBook(CountingEncoder())
    empty = book.active
    assert (empty.version, empty.names, empty.thresholds, empty.space) == (0, (), (), 'counting')
    assert empty.embeddings.shape == (0, 8) and empty.embeddings.dtype == np.float32
    assert empty.per_query(np.zeros((5, 0))).shape == (5, 0)


def test_bare_words():
    encoder = CountingEncoder()
    book = QueryBook(encoder, NO_EXPANSION)
    update = book.ask('Traffic cone, {"dog"}, traffic  CONE')
    assert update.changed and update.active is book.active
    assert update.accepted == ('traffic cone', '{"dog"}')
    assert [rejection.entry for rejection in update.rejected] == ['traffic  CONE']
    assert update.active.names == update.accepted
    assert update.active.wordings == (('traffic cone',), ('{"dog"}',))
    assert encoder.asked == [['traffic cone', '{"dog"}']]
    np.testing.assert_allclose(
        update.active.embeddings,
        [encoder.vector('traffic cone'), encoder.vector('{"dog"}')], atol=1e-6)
    np.testing.assert_array_equal(update.active.starts, [0, 1])


def test_prompts_then_wordings_are_averaged():
    encoder = CountingEncoder(templates='caption')
    active = QueryBook(encoder, VOCABULARY, 'mean').ask('dog, cat').active

    def wording(text):
        return unit(encoder.vector(f'a photo of the {text}')
                    + encoder.vector(f'the {text} outside'))

    expected = [unit(wording('dog') + wording('dogs') + wording('puppy')), wording('cat')]
    assert active.embeddings.shape == (2, 8) and active.embeddings.dtype == np.float32
    np.testing.assert_allclose(active.embeddings, expected, atol=1e-6)
    assert active.wordings == (('dog', 'dogs', 'puppy'), ('cat',))
    scores = np.array([[0.25, 0.5]])
    np.testing.assert_array_equal(active.per_query(scores), scores)


def test_the_best_wording_counts_where_each_keeps_its_embedding():
    encoder = CountingEncoder()
    active = QueryBook(encoder, VOCABULARY, 'max').ask('cat, dog, horse').active
    texts = ['cat', 'dog', 'dogs', 'puppy', 'horse']
    np.testing.assert_allclose(active.embeddings, [encoder.vector(text) for text in texts],
                               atol=1e-6)
    np.testing.assert_array_equal(active.starts, [0, 1, 4])
    scores = np.array([[0.1, 0.2, 0.9, 0.3, -0.5], [0.5, 0.1, 0.2, 0.4, 0.6]])
    np.testing.assert_array_equal(active.per_query(scores), [[0.1, 0.9, -0.5], [0.5, 0.4, 0.6]])


def test_own_synonyms_replace_those_of_the_vocabulary():
    book = QueryBook(CountingEncoder(), VOCABULARY)
    assert book.ask('[{"name": "dog", "synonyms": ["hound"], "threshold": 0.25}, '
                    '{"name": "puppy", "synonyms": []}]').active.wordings == (
        ('dog', 'hound'), ('puppy',))
    assert book.active.thresholds == (0.25, None)


def test_versions_rise_with_each_set_and_only_then():
    encoder = CountingEncoder()
    book = QueryBook(encoder, NO_EXPANSION)
    first = book.ask('dog').active
    assert first.version == 1
    same = book.ask(' DOG ')
    assert same.active is first and not same.changed and same.accepted == ('dog',)
    assert len(encoder.asked) == 1
    assert book.ask('[{"name": "dog", "threshold": 0.5}]').active.version == 2
    assert book.ask('dog, cat').active.version == 3
    assert book.ask('cat, dog').active.names == ('cat', 'dog')
    cleared = book.ask(' ')
    assert cleared.changed and cleared.active.version == 5 and cleared.active.names == ()
    assert not book.clear().changed and book.active.version == 5
    assert book.ask('dog').active.version == 6
    assert book.clear().active.version == 7
    assert (first.version, first.names) == (1, ('dog',))


def test_a_book_goes_on_from_a_version_and_takes_what_was_read_before():
    book = QueryBook(CountingEncoder(), NO_EXPANSION, version=7)
    assert (book.active.version, book.active.names) == (7, ())
    update = book.ask(parse_queries('dog, dog'))
    assert (update.active.version, update.active.names) == (8, ('dog',))
    assert len(update.rejected) == 1


def test_what_cannot_be_read_changes_nothing():
    book = QueryBook(CountingEncoder(), NO_EXPANSION)
    live = book.ask('dog').active
    for message in ('{"queries": 3}', '[3]', 'a\x00b', '{'):
        update = book.ask(message)
        assert update.active is live and not update.changed and update.rejected
        assert update.accepted == ()


def test_an_encoder_that_fails_changes_nothing():
    encoder = CountingEncoder()
    book = QueryBook(encoder, NO_EXPANSION)
    live = book.ask('dog').active
    encoder.broken = True
    with pytest.raises(TextEncoderError):
        book.ask('cat')
    assert book.active is live
    encoder.broken = False
    assert book.ask('cat').active.version == 2


def test_a_set_cannot_be_changed():
    active = QueryBook(CountingEncoder(), NO_EXPANSION).ask('dog, cat').active
    for array in (active.embeddings, active.starts):
        with pytest.raises(ValueError):
            array[0] = 0
    with pytest.raises(AttributeError):
        active.version = 3


def test_the_live_set_is_there_while_texts_are_encoded():
    encoder = CountingEncoder()
    book = QueryBook(encoder, NO_EXPANSION)
    live = book.ask('dog').active
    encoder.gate.clear()
    encoder.waiting.clear()
    thread = threading.Thread(target=book.ask, args=('cat',))
    thread.start()
    assert encoder.waiting.wait(30)
    # Would wait for the gate, and fail, if it took the lock.
    assert book.active is live
    encoder.gate.set()
    thread.join(30)
    assert book.active.names == ('cat',)


def test_a_set_waits_for_the_one_before():
    encoder = CountingEncoder()
    book = QueryBook(encoder, NO_EXPANSION)
    encoder.gate.clear()
    threads = [threading.Thread(target=book.ask, args=(text,)) for text in ('dog', 'cat')]
    for thread in threads:
        thread.start()
    assert encoder.waiting.wait(30)
    encoder.release_second()
    for thread in threads:
        thread.join(30)
    assert book.active.version == 2 and len(encoder.asked) == 2


def test_many_threads_ask_at_once():
    encoder = CountingEncoder()
    book = QueryBook(CachingTextEncoder(encoder), NO_EXPANSION)
    updates = []

    def ask(first):
        for index in range(25):
            updates.append(book.ask(f'thing {first}, thing {first} {index}'))

    threads = [threading.Thread(target=ask, args=(first,)) for first in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(update.active.version for update in updates) == list(range(1, 151))
    for update in updates:
        assert update.active.names == update.accepted
        np.testing.assert_allclose(update.active.embeddings,
                                   [encoder.vector(name) for name in update.accepted], atol=1e-6)
    assert book.active.version == 150
    asked = [text for texts in encoder.asked for text in texts]
    assert len(asked) == len(set(asked)) == 6 * 26


def test_choices_are_checked():
    with pytest.raises(ValueError, match='mean, max'):
        QueryBook(CountingEncoder(), NO_EXPANSION, 'median')
    with pytest.raises(VocabularyError, match='speech'):
        QueryBook(CountingEncoder(templates='speech'), NO_EXPANSION)


def test_wordings_that_cancel_out_are_refused():
    class Opposite(CountingEncoder):

        def vector(self, text):
            return np.eye(1, self.dim, dtype=np.float32)[0] * (-1 if text == 'b' else 1)

    book = QueryBook(Opposite(), NO_EXPANSION, 'mean')
    with pytest.raises(TextEncoderError, match='cancel out'):
        book.ask('[{"name": "a", "synonyms": ["b"]}]')
    assert book.ask('a, b').active.names == ('a', 'b')
