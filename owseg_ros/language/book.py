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
"""The book of live queries: the set that masks are compared with, as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import threading
from typing import Optional, Union

import numpy as np
from owseg_ros.language.contract import TextEncoder, unit_rows
from owseg_ros.language.queries import parse_queries, ParsedQueries, Query, Rejection
from owseg_ros.language.vocabulary import default_vocabulary, Vocabulary

MEAN = 'mean'
MAX = 'max'
ENSEMBLES = (MEAN, MAX)


@dataclass(frozen=True, eq=False)
class QuerySet:
    """
    One set of queries; nothing in it changes.

    version: rises with every set of a book; it starts with an empty one. queries: Q of them.
    wordings: for each query the texts that stand for it. space: of the embeddings.
    embeddings: float32 [R, D], rows of unit length, read-only. starts: int64 [Q], read-only, the
        first row of each query; its rows end where the next begin. One row a query where the
        wordings are averaged, one a wording where the best of them counts.
    """

    version: int
    queries: tuple[Query, ...]
    wordings: tuple[tuple[str, ...], ...]
    space: str
    embeddings: np.ndarray
    starts: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of each query."""
        return tuple(query.name for query in self.queries)

    @property
    def thresholds(self) -> tuple[Optional[float], ...]:
        """Return the threshold of each query, None where the default holds."""
        return tuple(query.threshold for query in self.queries)

    def per_query(self, scores: np.ndarray) -> np.ndarray:
        """Return [..., Q] from scores of the rows [..., R]: the best row of each query."""
        if not self.queries:
            return scores[..., :0]
        return np.maximum.reduceat(scores, self.starts, axis=-1)


@dataclass(frozen=True)
class QueryUpdate:
    """
    What became of a message.

    active: the set that is live now. changed: whether the message made it so; a message that
    asks for what is live already, or of which nothing could be taken, changes nothing.
    accepted: the names that were taken from it. rejected: the rest, with reasons.
    """

    active: QuerySet
    changed: bool
    accepted: tuple[str, ...]
    rejected: tuple[Rejection, ...]


class QueryBook:
    """
    Holds the live set of queries; safe to use from several threads.

    encoder: of the texts; wrap it in a CachingTextEncoder, so that each is encoded once.
    vocabulary: other wordings of a query that brings no synonyms of its own, and the prompts
        that wordings are put into; None takes the one of owseg_ros, NO_EXPANSION asks with the
        bare words. A query's own synonyms, also an empty list, replace those of the vocabulary.
    ensemble: how wordings become one score. 'max': each keeps its embedding and the best counts
        (FC-CLIP), so that one bad wording cannot spoil the others. 'mean': their mean is the
        query's one embedding, as prompts are averaged in CLIP; one row a query.
        The prompts of one wording are averaged either way.
    version: of the empty set that the book starts with.
    """

    def __init__(self, encoder: TextEncoder, vocabulary: Optional[Vocabulary] = None,
                 ensemble: str = MAX, version: int = 0):
        if ensemble not in ENSEMBLES:
            raise ValueError(f'ensemble must be one of {", ".join(ENSEMBLES)}, not {ensemble!r}')
        self.ensemble = ensemble
        self._encoder = encoder
        self._vocabulary = default_vocabulary() if vocabulary is None else vocabulary
        # Fails now rather than at the first query.
        self._vocabulary.prompts(encoder.templates, '')
        self._lock = threading.Lock()
        self._active = self._build(version, ())

    @property
    def active(self) -> QuerySet:
        """Return the live set; never waits for texts that are being encoded."""
        return self._active

    def ask(self, message: Union[str, ParsedQueries]) -> QueryUpdate:
        """
        Replace the live set by what a message asks for (queries.parse_queries, or its result).

        A message of which nothing can be taken leaves the set as it is; one that names nothing
        clears it. Raises TextEncoderError where the encoder fails; the set is then as it was.
        """
        if isinstance(message, str):
            message = parse_queries(message)
        return self._replace(message)

    def clear(self) -> QueryUpdate:
        """Make the live set empty."""
        return self._replace(ParsedQueries(clear=True))

    def _replace(self, parsed: ParsedQueries) -> QueryUpdate:
        accepted = tuple(query.name for query in parsed.queries)
        with self._lock:
            active = self._active
            changed = bool(parsed.queries or parsed.clear) and parsed.queries != active.queries
            if changed:
                active = self._build(active.version + 1, parsed.queries)
                self._active = active
        return QueryUpdate(active, changed, accepted, parsed.rejected)

    def _wordings(self, query: Query) -> tuple[str, ...]:
        if query.synonyms is None:
            return self._vocabulary.expand(query.name)
        return (query.name, *query.synonyms)

    def _build(self, version: int, queries: tuple[Query, ...]) -> QuerySet:
        wordings = tuple(map(self._wordings, queries))
        rows = embed_texts(self._encoder, self._vocabulary,
                           [wording for group in wordings for wording in group])
        counts = np.array([len(group) for group in wordings], np.int64)
        starts = np.cumsum(counts) - counts
        if self.ensemble == MEAN and queries:
            rows = unit_rows(np.add.reduceat(rows, starts, axis=0) / counts[:, None])
            starts = np.arange(len(queries))
        rows.setflags(write=False)
        starts.setflags(write=False)
        return QuerySet(version, queries, wordings, self._encoder.space, rows, starts)


def embed_texts(encoder: TextEncoder, vocabulary: Vocabulary,
                texts: Sequence[str]) -> np.ndarray:
    """
    Return float32 [len(texts), D] of unit length: the mean over the prompts of each text.

    Raises TextEncoderError, and VocabularyError where it has no prompts for the encoder.
    """
    return encoder.encode_means(
        [vocabulary.prompts(encoder.templates, text) for text in texts])
