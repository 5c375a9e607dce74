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
from owseg_ros.language.text import normalise_text
from owseg_ros.language.vocabulary import (
    default_vocabulary, load_vocabulary, NO_EXPANSION, VocabularyError)
import pytest
import yaml

SMALL = {
    'schema': 'owseg_ros/vocabulary', 'schema_version': 1,
    'templates': {'plain': ['{}'], 'caption': ['a photo of the {}', 'the {} outside']},
    'entries': [
        {'name': 'Car', 'plural': 'cars', 'synonyms': ['motor  car'], 'kinds': ['taxi']},
        {'name': 'crane', 'plural': 'cranes', 'synonyms': ['hoist'],
         'meaning': ['construction crane']},
        {'name': 'taxi', 'synonyms': ['cab']},
    ]}


def write(folder, change=None) -> str:
    """Write the small vocabulary, changed, and return its path."""
    content = yaml.safe_load(yaml.safe_dump(SMALL))
    if change:
        change(content)
    path = folder / 'vocabulary.yaml'
    path.write_text(yaml.safe_dump(content), 'utf-8')
    return str(path)


def test_names_plurals_and_synonyms_have_the_same_wordings(tmp_path):
    vocabulary = load_vocabulary(write(tmp_path))
    for name in ('car', 'cars', 'motor car'):
        assert vocabulary.expand(name) == ('car', 'cars', 'motor car', 'taxi')
    # A subcategory stands for the name, and the name does not stand for it.
    assert vocabulary.expand('taxi') == vocabulary.expand('cab') == ('taxi', 'cab')
    assert vocabulary.expand('boat') == ('boat',)


def test_a_meaning_replaces_the_bare_name(tmp_path):
    vocabulary = load_vocabulary(write(tmp_path))
    for name in ('crane', 'cranes', 'hoist'):
        assert vocabulary.expand(name) == ('construction crane', 'hoist')


def test_prompts(tmp_path):
    vocabulary = load_vocabulary(write(tmp_path))
    assert vocabulary.prompts('plain', 'car') == ('car',)
    assert vocabulary.prompts('caption', 'car') == ('a photo of the car', 'the car outside')
    # Braces of a query are text.
    assert vocabulary.prompts('caption', '{0}')[0] == 'a photo of the {0}'
    with pytest.raises(VocabularyError, match="'speech', only caption, plain"):
        vocabulary.prompts('speech', 'car')
    assert NO_EXPANSION.expand('car') == NO_EXPANSION.prompts('caption', 'car') == ('car',)


@pytest.mark.parametrize('change, says', [
    (lambda v: v.pop('templates'), 'templates'),
    (lambda v: v['templates'].pop('plain'), 'plain'),
    (lambda v: v['templates'].update(plain=['a thing']), 'templates.plain.0'),
    (lambda v: v['templates'].update(plain=['{} and {}']), 'templates.plain.0'),
    (lambda v: v['templates'].update(plain=[]), 'templates.plain'),
    (lambda v: v['entries'].append({'names': 'dog'}), 'entries.3'),
    (lambda v: v['entries'].append({'name': 'dog', 'synonyms': 'pup'}), 'entries.3.synonyms'),
    (lambda v: v['entries'].append({'name': 3}), 'entries.3.name'),
    (lambda v: v['entries'].append({'name': 'CARS'}), "'cars' names two entries"),
    (lambda v: v['entries'].append({'name': 'dog', 'synonyms': ['cab']}), "'cab' names two"),
    (lambda v: v['entries'].append({'name': 'd\x07g'}), 'U+0007'),
    (lambda v: v.update(schema_version=2), 'schema_version'),
    (lambda v: v.update(schema='else'), 'schema')])
def test_vocabularies_that_make_no_sense_are_refused(change, says, tmp_path):
    with pytest.raises(VocabularyError) as error:
        load_vocabulary(write(tmp_path, change))
    assert says in str(error.value) and 'vocabulary.yaml' in str(error.value)
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('content', [
    b'', b'[1, 2', b'!!python/object/apply:os.getcwd []', b'\xff\xfe\x00', b'- 1',
    b'!!timestamp 2020-99-99'])
def test_files_that_are_no_vocabulary_are_refused(content, tmp_path):
    path = tmp_path / 'vocabulary.yaml'
    path.write_bytes(content)
    with pytest.raises(VocabularyError, match=r'vocabulary\.yaml'):
        load_vocabulary(path)
    with pytest.raises(VocabularyError, match='cannot be read'):
        load_vocabulary(tmp_path / 'missing.yaml')


def test_the_vocabulary_of_roads():
    vocabulary = default_vocabulary()
    assert default_vocabulary() is vocabulary
    assert 'car' in vocabulary.expand('automobile')
    assert vocabulary.expand('footpath') == vocabulary.expand('sidewalk')
    assert 'bicyclist' in vocabulary.expand('cyclist')
    assert vocabulary.expand('greenery') == vocabulary.expand('vegetation')
    assert 'crane' not in vocabulary.expand('crane')
    # Bound what one message can cost: wordings and prompts of 64 queries.
    assert max(len(group) for group in vocabulary.wordings.values()) <= 12
    assert all(normalise_text(text) == text and len(set(group)) == len(group)
               for group in vocabulary.wordings.values() for text in group)
    assert vocabulary.templates['plain'] == ('{}',)


def test_a_misspelt_name_is_read_as_the_one_it_nearly_is():
    vocabulary = default_vocabulary()
    for typo, name in (('pavment', 'pavement'), ('pedestrain', 'pedestrian'),
                       ('trafic sign', 'traffic sign'), ('automobil', 'automobile'),
                       ('stroler', 'stroller')):
        assert vocabulary.expand(typo) == vocabulary.expand(name) != (name,)
    # Other words, and words too short to tell.
    for name in ('bridle', 'house', 'giraffe', 'caar', 'card', 'helicopter', 'boat'):
        assert vocabulary.expand(name) == (name,)
    assert NO_EXPANSION.expand('pavment') == ('pavment',)
