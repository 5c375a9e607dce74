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
"""Words in place of captions: what they name, what is held out, what captions hold."""

import numpy as np
from owseg_training.data.errors import DataError
from owseg_training.data.label_sets import label_set
from owseg_training.data.words import Concept, concept_of, concepts, held_out_words, WordTable
import pytest

LABELS = ('Car', 'Pavement', 'Column_Pole', 'kraken')


def test_held_out_words_are_in_no_concept():
    held_out = held_out_words()
    assert {'automobile', 'footpath', 'cyclist', 'sidewalk', 'greenery'} <= held_out
    for concept in concepts():
        assert held_out.isdisjoint((*concept.words, *concept.hypernyms)), concept.name
        assert concept.words
    for name in ('camvid_11', 'cityscapes_19'):
        table = WordTable([c.name for c in label_set(name)])
        assert held_out.isdisjoint(table.words)


def test_a_held_out_word_is_refused():
    with pytest.raises(DataError, match='hedge.*held out'):
        WordTable(['hedge'])
    with pytest.raises(DataError, match='automobile'):
        WordTable(['Car'], ['truck', 'automobile'])


def test_concepts_are_found_by_any_spelling_of_their_labels():
    assert concept_of('Sidewalk') == concept_of('pavement') == concept_of('FOOTPATH')
    assert concept_of('sidewalk').name == 'pavement'
    assert concept_of('Column_Pole') == concept_of('pole')
    assert concept_of('Traffic_Light') == concept_of('traffic light')
    assert concept_of('Soapbox_Car').words[0] == 'soapbox car'
    assert concept_of('Giant_Squid') == Concept('giant squid', ('giant squid',))


def test_the_table_tells_which_words_name_which_concept():
    table = WordTable(LABELS, ['lighthouse', 'car'])
    assert len(set(table.words)) == len(table.words)
    assert table.names.shape == (len(table.words), 4) and table.names.dtype == bool
    for word, named in zip(table.words, table.names):
        expected = [word in (*c.words, *c.hypernyms) for c in map(concept_of, LABELS)]
        assert named.tolist() == expected
    assert table.words.count('car') == 1
    assert not table.names[table.words.index('lighthouse')].any()
    assert table.names[table.words.index('vehicle')].tolist() == [True, False, False, False]
    # A hypernym of two concepts names both.
    both = WordTable(['car', 'bus'])
    assert both.names[both.words.index('vehicle')].all()


def test_a_table_without_labels_names_nothing():
    table = WordTable((), ['car'])
    assert table.names.shape == (1, 0) and table.names.dtype == bool


def test_draws_come_from_the_concept_with_the_asked_share_of_hypernyms():
    table = WordTable(LABELS)
    car = concept_of('car')
    rng = np.random.default_rng(0)
    drawn = [table.words[table.draw(0, 0.25, rng)] for _ in range(2000)]
    assert set(drawn) == {*car.words, *car.hypernyms}
    share = np.mean([word in car.hypernyms for word in drawn])
    assert share == pytest.approx(0.25, abs=0.04)
    counts = [drawn.count(word) for word in car.words]
    assert min(counts) > 0.7 * max(counts)
    assert {table.words[table.draw(0, 0.0, rng)] for _ in range(200)} == set(car.words)
    assert {table.words[table.draw(0, 1.0, rng)] for _ in range(200)} == set(car.hypernyms)
    # A concept without hypernyms is named by its words whatever the share.
    assert table.words[table.draw(3, 1.0, rng)] == 'kraken'


def test_draws_follow_the_generator():
    table = WordTable(LABELS)
    first, second = ([table.draw(0, 0.5, rng) for _ in range(20)]
                     for rng in (np.random.default_rng(3), np.random.default_rng(3)))
    assert first == second


@pytest.mark.parametrize('caption, words', [
    ('A parked car beside a brick wall.', ['parked car', 'brick wall']),
    ('Cars, CARS and a\n car', ['cars', 'car']),
    ('a scar on the carpet', []),
    ('a car-wash; the  street   light', ['car', 'street light']),
    ('an automobile on the sidewalk', []),
    ('', [])])
def test_captions_are_searched_for_whole_words_the_longest_first(caption, words):
    table = WordTable(['Car', 'wall', 'pole'], ['street'])
    assert [table.words[index] for index in table.find(caption)] == words
