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

from hypothesis import given, settings
from hypothesis import strategies as st
from owseg_ros.language.queries import (
    MAX_MESSAGE_CHARACTERS, MAX_QUERIES, MAX_REJECTIONS, MAX_SYNONYMS, parse_queries, Query)
from owseg_ros.language.text import MAX_CHARACTERS, normalise_text, TextError
import pytest

ENTRY = st.fixed_dictionaries({}, optional={
    'name': st.text() | st.integers(),
    'synonyms': st.lists(st.text() | st.none(), max_size=3) | st.text() | st.none(),
    'threshold': st.floats() | st.booleans() | st.text() | st.none(),
    'treshold': st.floats()})
JSON = st.recursive(st.none() | st.booleans() | st.floats() | st.text() | ENTRY,
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))


def names(message: str) -> list[str]:
    """Return the names that a message asks for."""
    return [query.name for query in parse_queries(message).queries]


def reasons(message: str) -> dict[str, str]:
    """Return entry -> reason of what a message asks for in vain."""
    return {rejection.entry: rejection.reason for rejection in parse_queries(message).rejected}


@pytest.mark.parametrize('text, expected', [
    ('  Traffic   cone \t', 'traffic cone'), ('Ｄｏｇ', 'dog'), ('ﬁre', 'fire'), ('Straße', 'straße'),
    ('cafe\u0301', 'café'), ('Å', 'å'), ('\u00a0dog\u2003run', 'dog run'), ('狗', '狗'),
    ('می\u200cروم', 'می\u200cروم'), ('👩\u200d🔬', '👩\u200d🔬'), ('a' * 128, 'a' * 128)])
def test_texts_have_one_spelling(text, expected):
    assert normalise_text(text) == expected


@pytest.mark.parametrize('text, says', [
    ('', 'empty'), (' \n', 'empty'), ('\u200d', 'empty'), ('\u3000', 'empty'),
    ('a' * 129, '129 characters'), ('ﷺ' * 8, '144 characters'), ('a' * 5000, '5000 characters'),
    ('dog\x00', 'U+0000'), ('a\nb', 'U+000A'), ('a\x7fb', 'U+007F'), ('a\u202eb', 'U+202E'),
    ('\ud800', 'U+D800'), ('a\ue000', 'U+E000'), ('a\u0085b', 'U+0085')])
def test_texts_that_cannot_be_asked_for(text, says):
    with pytest.raises(TextError) as error:
        normalise_text(text)
    assert says in str(error.value)


@given(st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_normalising_twice_changes_nothing(text):
    try:
        normal = normalise_text(text)
    except TextError:
        return
    assert normalise_text(normal) == normal
    assert 0 < len(normal) <= MAX_CHARACTERS
    assert normal == ' '.join(normal.split())
    assert normal.isprintable() or '\u200c' in normal or '\u200d' in normal


def test_comma_list():
    assert parse_queries(' Traffic  cone ,puddle,, Dog,').queries == (
        Query('traffic cone'), Query('puddle'), Query('dog'))
    assert parse_queries('dog').rejected == ()
    assert not parse_queries('dog').clear


@pytest.mark.parametrize('message', [
    '', '  \n', ',', ' , ,', '[]', ' [ ] ', '{"queries": []}'])
def test_a_message_without_names_clears(message):
    parsed = parse_queries(message)
    assert parsed.clear and not parsed.queries and not parsed.rejected


@pytest.mark.parametrize('message', [
    '{}', '[', '{"queries": 3}', '{"queries": null}', '{"names": []}', '\x00', '[null]',
    '{"queries": [], "clear": true}', '[' * 100000, '[' + '9' * 5000 + ']',
    ' ' * (MAX_MESSAGE_CHARACTERS + 1)])
def test_what_cannot_be_taken_does_not_clear(message):
    parsed = parse_queries(message)
    assert not parsed.clear and not parsed.queries
    assert len(parsed.rejected) == 1 and parsed.rejected[0].reason


def test_json_forms():
    expected = (Query('dog'), Query('stroller', ('pram', 'baby buggy'), 0.25), Query('cone', ()))
    entries = ['Dog', {'name': 'stroller', 'synonyms': ['Pram', 'baby  buggy', 'PRAM', 'Stroller'],
                       'threshold': 0.25}, {'name': 'cone', 'synonyms': [], 'threshold': None}]
    for message in (entries, {'queries': entries}):
        parsed = parse_queries(json.dumps(message))
        assert parsed.queries == expected
        assert parsed.rejected == ()


def test_a_message_may_have_an_id():
    parsed = parse_queries('{"queries": ["dog"], "message_id": "a1"}')
    assert (parsed.message_id, parsed.rejected) == ('a1', ())
    assert parse_queries('{"message_id": "a2", "queries": []}').clear
    for wrong in (3, '', 'x' * 65, 'a\x00'):
        parsed = parse_queries(json.dumps({'queries': ['dog'], 'message_id': wrong}))
        assert parsed.message_id is None and names(json.dumps(['dog'])) == ['dog']
        assert 'message_id' in parsed.rejected[0].reason
    assert parse_queries('["dog"]').message_id is None


@pytest.mark.parametrize('threshold, taken', [
    (0, 0.0), (1, 1.0), (0.5, 0.5), (-0.01, None), (1.01, None), ('0.5', None), (True, None),
    (float('nan'), None), (float('inf'), None), (10 ** 400, None), ([0.5], None)])
def test_thresholds_are_numbers_from_0_to_1(threshold, taken):
    parsed = parse_queries(json.dumps([{'name': 'dog', 'threshold': threshold}, 'cat']))
    if taken is None:
        assert [query.name for query in parsed.queries] == ['cat']
        assert 'from 0 to 1' in parsed.rejected[0].reason
    else:
        assert parsed.queries[0].threshold == taken and not parsed.rejected


@pytest.mark.parametrize('entry, says', [
    (3, 'neither a text nor an object'), ({}, 'no name'), ({'name': 3}, 'no name'),
    ({'name': 'dog', 'treshold': 0.5}, "did you mean 'threshold'"),
    ({'name': 'dog', 'k' * 99: 1}, f"unknown key '{'k' * 57}...'; a query has"),
    ({'name': 'dog', 'synonyms': 'puppy'}, 'not a list'), ({'name': ' '}, 'empty'),
    ({'name': 'x' * 129}, '129 characters'), ('a\tb', 'U+0009'), ('\ud800', 'U+D800')])
def test_bad_entries_are_rejected_and_good_ones_kept(entry, says):
    parsed = parse_queries(json.dumps(['cat', entry, 'horse']))
    assert [query.name for query in parsed.queries] == ['cat', 'horse']
    rejection, = parsed.rejected
    assert says in rejection.reason
    assert rejection.entry.isprintable() and len(rejection.entry) <= 60


def test_bad_synonyms_do_not_cost_the_query():
    synonyms = ['pup', 4, 'a\x00', '', *(f'kind {index}' for index in range(MAX_SYNONYMS))]
    parsed = parse_queries(json.dumps([{'name': 'dog', 'synonyms': synonyms}]))
    assert parsed.queries[0].synonyms == (
        'pup', *(f'kind {index}' for index in range(MAX_SYNONYMS - 1)))
    assert [rejection.entry for rejection in parsed.rejected] == [
        'dog: 4', 'dog: a\\x00', 'dog:', f'dog: kind {MAX_SYNONYMS - 1}']
    assert 'at most 16' in parsed.rejected[-1].reason


def test_repeats_are_rejected_in_any_spelling():
    assert names('Dog, cat,DOG , ｄｏｇ') == ['dog', 'cat']
    assert reasons('dog, DOG') == {'DOG': 'it is asked for twice'}
    assert names('Straße, STRASSE') == ['straße']


def test_limits():
    message = ', '.join(f'thing {index}' for index in range(MAX_QUERIES + 2))
    assert names(message) == [f'thing {index}' for index in range(MAX_QUERIES)]
    assert list(reasons(message)) == ['thing 64', 'thing 65']
    # A repeat does not count.
    assert len(names('thing 1, ' + message)) == MAX_QUERIES
    many = parse_queries(', '.join(['dog'] * (MAX_REJECTIONS + 11)))
    assert len(many.rejected) == MAX_REJECTIONS + 1
    assert many.rejected[-1].reason == 'and 10 more entries'


def test_unknown_top_level_keys_are_named():
    parsed = parse_queries('{"queries": ["dog"], "query": ["cat"]}')
    assert [query.name for query in parsed.queries] == ['dog']
    assert "did you mean 'queries'" in parsed.rejected[0].reason


@given(st.text() | JSON.map(json.dumps) | st.lists(ENTRY).map(json.dumps))
@settings(max_examples=120, deadline=None)
def test_any_message_is_read(message):
    parsed = parse_queries(message)
    assert len(parsed.queries) <= MAX_QUERIES
    assert len(parsed.rejected) <= MAX_REJECTIONS + 1
    assert not (parsed.clear and (parsed.queries or parsed.rejected))
    for query in parsed.queries:
        for text in (query.name, *(query.synonyms or ())):
            assert normalise_text(text) == text
        assert query.threshold is None or 0 <= query.threshold <= 1
    for rejection in parsed.rejected:
        assert rejection.entry.isprintable() and rejection.reason
    assert parse_queries(json.dumps([
        {'name': query.name, 'synonyms': query.synonyms, 'threshold': query.threshold}
        for query in parsed.queries])).queries == parsed.queries
