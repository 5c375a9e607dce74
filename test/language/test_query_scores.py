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

import numpy as np
from owseg_ros.bundle import EnsembleInfo, LanguageInfo, SameMeaning
from owseg_ros.language import (
    LanguageError, NO_EXPANSION, QueryBook, QueryScorer, TextEncoderError, Vocabulary)
import pytest
from support.counting_encoder import CountingEncoder

DIM = 8
LANGUAGE = LanguageInfo('counting', DIM, 0.1, (('road', 'street'), ('sky',), ('car',)),
                        SameMeaning(0.6, 0.04, 0.3), 1.0, 0.4, 'by hand')
MESSAGE = ('{"queries": [{"name": "automobile", "synonyms": ["motor car", "car"]}, "cone", '
           '{"name": "dog", "threshold": 0.25}]}')
ENSEMBLE = EnsembleInfo(0.4, 0.8, ('Cone', 'MOTOR  car'))


@pytest.fixture
def encoder():
    return CountingEncoder(DIM)


def prepare(encoder, message=MESSAGE, language=LANGUAGE, ensemble='max', **options):
    book = QueryBook(encoder, NO_EXPANSION, ensemble)
    return QueryScorer(language, encoder, NO_EXPANSION).prepare(
        book.ask(message).active, **options)


def unit(seed, count):
    vectors = np.random.default_rng(seed).normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def log_softmax(logits):
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


def expected(encoder, wordings, z, frozen=None, share=0.0, language=LANGUAGE):
    """Return p(q|z) as the docstring says it: only the best text of each thing counts in each."""
    def rows(texts):
        return np.array([encoder.vector(text) for text in texts], np.float64)

    def log_p(embedding, temperature):
        return log_softmax(np.array([(thing @ embedding).max() for thing in things]) / temperature)

    things = [rows(texts) for texts in (*language.background, wordings)]
    logs = log_p(z, language.temperature)
    if frozen is not None:
        logs = (1 - share) * logs + share * log_p(
            frozen, language.ensemble.temperature or language.temperature)
    p = np.exp(log_softmax(logs))
    meaning = language.same_meaning
    cosines = np.array([(thing @ things[-1].T).max() for thing in things[:-1]])
    same = np.exp((cosines - cosines.max()) / meaning.margin) / (
        1 + np.exp(-(cosines - meaning.cosine) / meaning.scale))
    return p[:-1] @ same + p[-1]


WORDINGS = (('automobile', 'motor car', 'car'), ('cone',), ('dog',))


@pytest.mark.parametrize('temperature', [0.002, 0.1, 5.0])
def test_probabilities_by_the_equations(encoder, temperature):
    language = replace(LANGUAGE, temperature=temperature)
    prepared = prepare(encoder, language=language)
    embeddings = unit(0, 6)
    embeddings[4], embeddings[5] = encoder.vector('motor car'), encoder.vector('road')
    found = prepared.probabilities(embeddings)
    assert found.shape == (6, 3) and found.dtype == np.float32
    for z, row in zip(embeddings, found):
        for wordings, value in zip(WORDINGS, row):
            assert value == pytest.approx(
                expected(encoder, wordings, z.astype(float), language=language), abs=2e-4)


def test_a_query_found_by_its_words_and_lost_to_the_background(encoder):
    prepared = prepare(encoder, 'cone, dog')
    there = np.array([encoder.vector(text) for text in ('cone', 'road', 'dog')])
    found = prepared.probabilities(there)
    assert found[0, 0] > 0.9 and found[2, 1] > 0.9
    assert found[1].max() < 0.25


def test_background_of_the_same_meaning_votes_for_the_query(encoder):
    """A car is what the query asks for: its wordings and the background have that word."""
    car = encoder.vector('car')[None]
    assert prepare(encoder).probabilities(car)[0, 0] > 0.99
    strict = replace(LANGUAGE, same_meaning=SameMeaning(1.5, 0.01, 0.3))
    found = prepare(encoder, language=strict).probabilities(car)
    assert found[0, 0] == pytest.approx(0.5, abs=0.02)


def test_wordings_do_not_add_up(encoder):
    """Saying a thing in many words does not make it likelier."""
    z = unit(3, 5)
    alone = prepare(encoder, '{"queries": [{"name": "cone", "synonyms": []}]}')
    stuffed = prepare(encoder, '{"queries": [{"name": "cone", "synonyms": ["cone cone"]}]}')
    twin = replace(stuffed, queries=replace(stuffed.queries, embeddings=np.repeat(
        alone.queries.embeddings, 2, axis=0)), same=alone.same)
    np.testing.assert_allclose(twin.probabilities(z), alone.probabilities(z), atol=1e-6)


@pytest.mark.parametrize('temperature', [None, 0.3])
def test_ensemble_with_a_frozen_tower(temperature, encoder):
    """Names and wordings seen in training, however they are written, trust training more."""
    language = replace(LANGUAGE, ensemble=replace(ENSEMBLE, temperature=temperature))
    prepared = prepare(encoder, language=language)
    trained, frozen = unit(1, 4), unit(2, 4)
    found = prepared.probabilities(trained, frozen)
    for index in range(4):
        for q, share in enumerate((0.4, 0.4, 0.8)):
            assert found[index, q] == pytest.approx(expected(
                encoder, WORDINGS[q], trained[index].astype(float), frozen[index].astype(float),
                share, language), abs=2e-4)
    np.testing.assert_array_equal(
        prepared.probabilities(trained), prepare(encoder).probabilities(trained))
    np.testing.assert_allclose(prepare(encoder).probabilities(trained, frozen),
                               prepare(encoder).probabilities(trained), atol=1e-6)


def test_a_region_without_a_frozen_embedding_is_told_by_the_trained_one(encoder):
    prepared = prepare(encoder, language=replace(LANGUAGE, ensemble=ENSEMBLE))
    trained, frozen = unit(1, 4), unit(2, 4)
    frozen[1] = 0
    found = prepared.probabilities(trained, frozen)
    np.testing.assert_allclose(found[1], prepared.probabilities(trained)[1], atol=1e-6)
    assert np.abs(found - prepared.probabilities(trained))[[0, 2, 3]].max() > 1e-2


def test_weights_follow_objectness(encoder):
    embeddings, objectness = unit(5, 3), np.array([0.0, 0.5, 1.0])
    for exponent, factor in ((1.0, [0, 0.5, 1]), (2.0, [0, 0.25, 1]), (0.0, [1, 1, 1])):
        prepared = prepare(encoder, language=replace(LANGUAGE, objectness=exponent))
        plain = prepared.probabilities(embeddings)
        found = prepared.weights(embeddings, objectness)
        np.testing.assert_allclose(found, plain * np.array(factor)[:, None], atol=1e-6)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(prepared.weights(embeddings), plain)
    ensemble = prepare(encoder, language=replace(LANGUAGE, ensemble=ENSEMBLE))
    np.testing.assert_allclose(
        ensemble.weights(embeddings, objectness, unit(6, 3)),
        ensemble.probabilities(embeddings, unit(6, 3)) * objectness[:, None], atol=1e-6)


def test_thresholds_and_names(encoder):
    prepared = prepare(encoder)
    np.testing.assert_allclose(prepared.thresholds, [0.4, 0.4, 0.25])
    assert prepared.thresholds.dtype == np.float32
    assert prepared.names == ('automobile', 'cone', 'dog') and len(prepared) == 3
    assert prepared.version == prepared.queries.version == 1
    np.testing.assert_allclose(
        prepare(encoder, default_threshold=0.9).thresholds, [0.9, 0.9, 0.25])
    np.testing.assert_allclose(
        prepare(encoder, default_threshold=0.0).thresholds, [0, 0, 0.25])
    everything = prepare(encoder, '{"queries": [{"name": "dog", "threshold": 0}]}')
    assert everything.thresholds.tolist() == [0]
    with pytest.raises(ValueError):
        prepared.thresholds[0] = 1


def test_no_queries_and_no_regions(encoder):
    empty = prepare(encoder, '')
    assert len(empty) == 0 and empty.version == 0
    assert empty.weights(unit(0, 4), np.ones(4), unit(1, 4)).shape == (4, 0)
    assert prepare(encoder).probabilities(unit(0, 0)).shape == (0, 3)


def test_background_is_encoded_once(encoder):
    scorer = QueryScorer(LANGUAGE, encoder, NO_EXPANSION)
    assert encoder.asked == [['road', 'street', 'sky', 'car']]
    book = QueryBook(encoder, NO_EXPANSION)
    for message in ('cone', 'dog'):
        scorer.prepare(book.ask(message).active).probabilities(unit(0, 2))
    assert encoder.asked[1:] == [['cone'], ['dog']]


def test_background_is_put_into_the_prompts_of_the_queries(encoder):
    QueryScorer(LANGUAGE, encoder, Vocabulary({}, {'plain': ('a {}', 'the {}')}))
    assert encoder.asked[0] == ['a road', 'the road', 'a street', 'the street', 'a sky',
                                'the sky', 'a car', 'the car']


@pytest.mark.parametrize('change', [{'space': 'clip'}, {'dim': 9}])
def test_another_space_is_refused(encoder, change):
    language = replace(LANGUAGE, **change)
    with pytest.raises(LanguageError, match='text space (clip|counting).*use the text encoder'):
        QueryScorer(language, encoder)
    other = CountingEncoder(change.get('dim', DIM))
    other.space = change.get('space', 'counting')
    scorer = QueryScorer(language, other)
    with pytest.raises(LanguageError, match='counting'):
        scorer.prepare(QueryBook(encoder).ask('cone').active)


def test_embeddings_of_another_length_are_refused(encoder):
    prepared = prepare(encoder)
    for shape in ((3, DIM + 1), (DIM,)):
        with pytest.raises(LanguageError, match=r'\[regions, 8\]'):
            prepared.probabilities(np.zeros(shape))


def test_failing_encoder_and_names_that_are_none(encoder):
    with pytest.raises(LanguageError, match='seen_names.*empty'):
        QueryScorer(replace(LANGUAGE, ensemble=EnsembleInfo(0.4, 0.8, (' ',))), encoder)
    encoder.broken = True
    with pytest.raises(TextEncoderError, match='broken'):
        QueryScorer(LANGUAGE, encoder)
