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
"""
How much a region is what a query asks for: region embeddings against texts.

A region with embedding z is compared with the things G, which are those of the background, each a
group of texts, and the query itself::

    p(g|z) = softmax over G of max over t in g of <z, t> / tau
    p(q|z) = sum over g in G of p(g|z) r(g, q)

r(g, q) is 1 for the query itself, and for a thing of the background how likely the query means it
(bundle.SameMeaning): a background that knows "car" votes for the query "automobile" instead of
competing with it, so a thing that is there is found whatever it is called, and one that is absent
loses to what is there. A thing of several texts takes part with the best one (maximum over
synonyms: Yu et al., "Convolutions Die Hard: FC-CLIP", NeurIPS 2023, as in OpenSeg, appendix I).

With embeddings of a frozen image tower beside the trained ones, the two are combined as FC-CLIP
does, log p = (1 - a) log p_trained + a log p_frozen, softmax over G again, where a depends on
whether training has seen the query.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Optional

import numpy as np
from owseg_ros.bundle import LanguageInfo
from owseg_ros.errors import OwsegError
from owseg_ros.language.book import embed_texts, QuerySet
from owseg_ros.language.contract import TextEncoder
from owseg_ros.language.text import normalise_text, TextError
from owseg_ros.language.vocabulary import default_vocabulary, Vocabulary
from owseg_ros.readout.reference import sigmoid


class LanguageError(OwsegError):
    """A model and texts that do not go together; the message says what to do."""


@dataclass(frozen=True, eq=False)
class PreparedQueries:
    """
    A set of queries, ready to be compared with the regions of any number of frames.

    queries: the set. language: of the model that it was prepared for. thresholds: float32 [Q],
    with the default filled in. background: float32 [T, D], starts: int64 [G], the first text of
    each thing; same: float32 [G, Q], the votes r(g, q); frozen_share: float32 [Q], the exponent a
    of frozen embeddings, 0 without ensemble. Nothing in it changes; QueryScorer.prepare makes it.
    """

    queries: QuerySet
    language: LanguageInfo
    thresholds: np.ndarray
    background: np.ndarray
    starts: np.ndarray
    same: np.ndarray
    frozen_share: np.ndarray

    @property
    def version(self) -> int:
        """Return the version of the set."""
        return self.queries.version

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of each query."""
        return self.queries.names

    def __len__(self) -> int:
        """Return Q, the number of queries."""
        return len(self.queries.queries)

    def probabilities(self, embeddings: np.ndarray,
                      frozen: Optional[np.ndarray] = None) -> np.ndarray:
        """
        Return p(q|z), float32 [R, Q] in 0..1.

        embeddings: float [R, D], rows of unit length; frozen: those of the frozen image tower,
        zeros where a region has none, None leaves them out of the ensemble. Raises LanguageError
        where D is another.
        """
        language = self.language
        background, own = self._logits(embeddings, language.temperature)
        if frozen is None:
            return self._votes(background, own, self.same)
        temperature = language.ensemble and language.ensemble.temperature
        frozen_background, frozen_own = self._logits(frozen, temperature or language.temperature)
        found = np.empty((len(embeddings), len(self)), np.float32)
        # An empty region has no frozen embedding; the trained one decides.
        there = np.any(frozen, axis=1, keepdims=True).astype(np.float32)
        for share in np.unique(self.frozen_share):
            chosen, frozen_part = self.frozen_share == share, share * there
            # The normalisers of both softmaxes cancel in the last one.
            found[:, chosen] = self._votes(
                (1 - frozen_part) * background + frozen_part * frozen_background,
                ((1 - frozen_part) * own + frozen_part * frozen_own)[:, chosen],
                self.same[:, chosen])
        return found

    def weights(self, region_embeddings: np.ndarray, objectness: Optional[np.ndarray] = None,
                frozen: Optional[np.ndarray] = None) -> np.ndarray:
        """
        Return what each region contributes to the map of each query, float32 [N, Q] in 0..1.

        region_embeddings, frozen: as for probabilities; objectness: float [N], 1 - p_no_object
        of each region, raised to the model's exponent; None counts every region fully.
        """
        weights = self.probabilities(region_embeddings, frozen)
        if objectness is not None and self.language.objectness:
            weights *= np.power(np.clip(objectness, 0, 1), self.language.objectness,
                                dtype=np.float32)[:, None]
        return weights

    def _logits(self, embeddings: np.ndarray,
                temperature: float) -> tuple[np.ndarray, np.ndarray]:
        """Return <z, t> / tau of the best row: background [R, things], queries [R, Q]."""
        embeddings = np.asarray(embeddings, np.float32)
        if embeddings.ndim != 2 or embeddings.shape[1] != self.language.dim:
            raise LanguageError(f'expected embeddings [regions, {self.language.dim}], not '
                                f'{list(embeddings.shape)}; use queries that were prepared for '
                                'this model')
        scaled = embeddings / np.float32(temperature)
        background = np.maximum.reduceat(scaled @ self.background.T, self.starts, axis=1)
        return background, self.queries.per_query(scaled @ self.queries.embeddings.T)

    @staticmethod
    def _votes(background: np.ndarray, best: np.ndarray, same: np.ndarray) -> np.ndarray:
        """Return p(q|z) from logits, [R, queries]; same: the votes for these queries."""
        strongest = background.max(axis=1, keepdims=True)
        spread = np.exp(background - strongest)
        top = np.maximum(best, strongest)
        mine, others = np.exp(best - top), np.exp(strongest - top)
        return ((mine + others * (spread @ same))
                / (mine + others * spread.sum(axis=1, keepdims=True)))


class QueryScorer:
    """
    Prepares sets of queries for a model; encodes its background once.

    language: of the model. encoder: of the texts. vocabulary: of the prompts that the texts of
    the background are put into, which are those of the queries; None takes owseg_ros's.
    Raises LanguageError where the encoder's space or dimension is not the model's.
    """

    def __init__(self, language: LanguageInfo, encoder: TextEncoder,
                 vocabulary: Optional[Vocabulary] = None):
        _check_space(language, encoder.space, encoder.dim)
        self.language = language
        self.encoder = encoder
        vocabulary = default_vocabulary() if vocabulary is None else vocabulary
        self._background = embed_texts(
            encoder, vocabulary, [text for thing in language.background for text in thing])
        counts = np.array([len(thing) for thing in language.background], np.int64)
        self._starts = np.cumsum(counts) - counts
        self._background.setflags(write=False)
        self._starts.setflags(write=False)
        ensemble = language.ensemble
        self._seen = frozenset(_keys(ensemble.seen_names)) if ensemble else frozenset()

    def prepare(self, queries: QuerySet,
                default_threshold: Optional[float] = None) -> PreparedQueries:
        """
        Return a set of queries ready for the readout; once a set, not once a frame.

        default_threshold: for queries that state none, in 0..1; None for the model's.
        Raises LanguageError where the set is of another space.
        """
        language = self.language
        _check_space(language, queries.space, queries.embeddings.shape[1])
        default = language.threshold if default_threshold is None else default_threshold
        thresholds = np.array([default if threshold is None else threshold
                               for threshold in queries.thresholds], np.float32)
        same = self._same(queries)
        shares = np.array([self._frozen_share((query.name, *wordings)) for query, wordings in zip(
            queries.queries, queries.wordings)], np.float32)
        for array in (thresholds, same, shares):
            array.setflags(write=False)
        return PreparedQueries(queries, language, thresholds, self._background, self._starts, same,
                               shares)

    def _same(self, queries: QuerySet) -> np.ndarray:
        """Return r(g, q), float32 [G, Q]."""
        meaning = self.language.same_meaning
        cosines = np.maximum.reduceat(
            queries.per_query(self._background @ queries.embeddings.T), self._starts, axis=0)
        nearest = cosines.max(axis=0, keepdims=True)
        return (sigmoid((cosines - np.float32(meaning.cosine)) / np.float32(meaning.scale))
                * np.exp((cosines - nearest) / np.float32(meaning.margin)))

    def _frozen_share(self, texts: Iterable[str]) -> float:
        ensemble = self.language.ensemble
        if ensemble is None:
            return 0.0
        return ensemble.unseen if self._seen.isdisjoint(_keys(texts)) else ensemble.seen


def _keys(texts: Iterable[str]) -> Iterable[str]:
    """Yield texts as they are compared: normalised, without regard to case."""
    for text in texts:
        try:
            yield normalise_text(text).casefold()
        except TextError as error:
            raise LanguageError(f'language.ensemble.seen_names: {text!r}: {error}; export the '
                                'bundle again') from error


def _check_space(language: LanguageInfo, space: str, dim: int) -> None:
    if (space, dim) != (language.space, language.dim):
        raise LanguageError(
            f'the regions of this model live in the text space {language.space} '
            f'({language.dim} numbers), and the texts in {space} ({dim}): use the text encoder '
            'of that space')
