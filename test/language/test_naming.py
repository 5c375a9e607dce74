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

from dataclasses import replace
import os

import numpy as np
from owseg_ros.bundle import LanguageInfo, SameMeaning
from owseg_ros.language import (
    default_vocabulary, LanguageError, NO_EXPANSION, QueryScorer, RegionNamer, TextEncoderError,
    VocabularyError)
import pytest
from support.counting_encoder import CountingEncoder

DIM = 32
LANGUAGE = LanguageInfo('counting', DIM, 0.05, (('road',), ('sky',)),
                        SameMeaning(0.9, 0.02, 0.1), 1.0, 0.5, 'by hand')


def text(*entries):
    return ('schema: owseg_ros/vocabulary\nschema_version: 1\n'
            "templates: {plain: ['{}'], caption: ['{}']}\n"
            f'entries: [{", ".join(entries)}]\n')


PETS = text('{name: Dog, synonyms: [hound]}', '{name: cat}')


@pytest.fixture
def encoder():
    return CountingEncoder(DIM)


@pytest.fixture
def scorer(encoder):
    return QueryScorer(LANGUAGE, encoder, NO_EXPANSION)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / 'pets.yaml'
    path.write_text(PETS)
    return path


def regions(encoder, *texts):
    return np.array([encoder.vector(text) for text in texts])


def test_the_best_name_or_unknown(encoder, scorer, path):
    namer = RegionNamer(scorer, path)
    assert namer.names == ('dog', 'cat') and namer.language is LANGUAGE
    mean = sum(regions(encoder, 'dog', 'hound'))
    embeddings = np.vstack([
        mean / np.linalg.norm(mean), regions(encoder, 'cat', 'road', 'pallet')])
    (dog, dog_score), (cat, cat_score), (road, road_score), (_, odd_score) = namer.name(embeddings)
    assert (dog, cat, road) == ('dog', 'cat', 'unknown')
    assert dog_score > 0.95 and cat_score > 0.95 and road_score < 0.1
    assert 0 <= odd_score <= 1 and all(
        isinstance(score, float) for _, score in namer.name(embeddings))
    np.testing.assert_allclose(
        [dog_score, cat_score], namer._prepared.probabilities(embeddings)[[0, 1], [0, 1]])
    assert namer.name(np.empty((0, DIM), np.float32)) == []


def test_threshold_of_a_name(encoder, scorer, path):
    between = regions(encoder, 'cat')[0] + 0.9 * regions(encoder, 'road')[0]
    between = (between / np.linalg.norm(between))[None]
    (name, score), = RegionNamer(scorer, path).name(between)
    assert name == 'cat' and 0.5 < score < 0.99
    assert RegionNamer(scorer, path, threshold=score + 0.005).name(between) == [
        ('unknown', pytest.approx(score))]
    assert RegionNamer(scorer, path, threshold=score - 0.005).name(between)[0][0] == 'cat'


def test_the_closest_of_those_that_are_likely(encoder, path):
    """All that is not the query is a road here, so a road is likely everywhere, yet not close."""
    path.write_text(text('{name: road}', '{name: dog}'))
    only = replace(LANGUAGE, background=(('road',),), temperature=0.3)
    namer = RegionNamer(QueryScorer(only, encoder, NO_EXPANSION), path)
    (dog, dog_score), (road, road_score) = namer.name(regions(encoder, 'dog', 'road'))
    assert (dog, road) == ('dog', 'road')
    assert 0.9 < dog_score < 0.99 < road_score


def test_own_words_by_default(encoder, scorer):
    namer = RegionNamer(scorer)
    assert namer.names == tuple(thing.name for thing in default_vocabulary().things)
    assert len(namer.names) > 64 and len(set(namer.names)) == len(namer.names)
    assert namer.name(regions(encoder, 'ladder'))[0][0] in ('ladder', 'unknown')
    passes = len(encoder.asked)
    assert not namer.reload() and len(encoder.asked) == passes


def test_a_changed_file_is_picked_up(encoder, scorer, path):
    namer = RegionNamer(scorer, path)
    assert not namer.reload()
    path.write_text(text('{name: pallet}'))
    assert namer.name(regions(encoder, 'cat'))[0][0] == 'cat'
    assert namer.reload() and namer.names == ('pallet',)
    assert namer.name(regions(encoder, 'cat', 'pallet'))[1][0] == 'pallet'
    assert not namer.reload()
    # An editor that puts another file in its place, of the same size and time.
    stat = os.stat(path)
    other = path.with_suffix('.new')
    other.write_text(text('{name: ladder}'))
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    os.replace(other, path)
    assert namer.reload() and namer.names == ('ladder',)


@pytest.mark.parametrize('content, says', [
    ('entries: [', 'not plain YAML'), (text('{title: dog}'), 'expected'),
    (None, 'cannot be read')])
def test_a_broken_file_keeps_the_old_names(encoder, scorer, path, content, says):
    namer = RegionNamer(scorer, path)
    if content is None:
        path.unlink()
    else:
        path.write_text(content)
    for _ in range(2):
        with pytest.raises(VocabularyError, match=f'pets.yaml.*{says}'):
            namer.reload()
        assert namer.names == ('dog', 'cat')
        assert namer.name(regions(encoder, 'cat'))[0][0] == 'cat'
    path.write_text(text('{name: cow}'))
    assert namer.reload() and namer.names == ('cow',)


def test_a_failing_encoder_keeps_the_old_names(encoder, scorer, path):
    namer = RegionNamer(scorer, path)
    path.write_text(text('{name: cow}'))
    encoder.broken = True
    with pytest.raises(TextEncoderError, match='broken'):
        namer.reload()
    assert namer.names == ('dog', 'cat')
    encoder.broken = False
    assert namer.reload() and namer.names == ('cow',)


def test_no_names_at_all(encoder, scorer, path):
    path.write_text(text())
    namer = RegionNamer(scorer, path)
    assert namer.names == ()
    assert namer.name(regions(encoder, 'cat', 'dog')) == [('unknown', 0.0)] * 2


def test_what_cannot_be_used_at_the_start(scorer, tmp_path, path):
    with pytest.raises(VocabularyError, match='nowhere.yaml.*cannot be read'):
        RegionNamer(scorer, tmp_path / 'nowhere.yaml')
    with pytest.raises(LanguageError, match=r'\[regions, 32\]'):
        RegionNamer(scorer, path).name(np.zeros((2, DIM + 1), np.float32))
