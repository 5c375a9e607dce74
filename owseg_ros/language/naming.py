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
Names for what is of no known class: the best word of a vocabulary, or 'unknown'.

Every thing of the vocabulary is prepared like a query (scores), so a name has the calibrated
probability of one, against the texts of the background and with their votes. Of the names whose
probability reaches the threshold the closest in the text space is given; where none does, the
region stays unknown: a wrong name is worse than none.
"""

from __future__ import annotations

from dataclasses import dataclass
import os
from pathlib import Path
import threading
from typing import Optional

import numpy as np
from owseg_ros.bundle import LanguageInfo
from owseg_ros.language.book import QueryBook
from owseg_ros.language.queries import ParsedQueries, Query
from owseg_ros.language.scores import PreparedQueries, QueryScorer
from owseg_ros.language.vocabulary import default_vocabulary, load_vocabulary, Vocabulary

UNKNOWN = 'unknown'


@dataclass(frozen=True)
class NamedRegion:
    """
    An anomalous region of a frame.

    id: its number in the frame, 0 is the largest. box: x0, y0, x1, y1 in pixels of the maps, the
    ends are the first column and row outside. area: in these pixels. anomaly_score: the mean
    over the region. name: of a thing of the vocabulary, or 'unknown'; name_score: the
    probability of that name in 0..1, of an unknown region that of the likeliest name. A region of
    a taught class (novelty) has its name, and the cosine with it.
    """

    id: int  # noqa: A003
    box: tuple[int, int, int, int]
    area: int
    anomaly_score: float
    name: str = UNKNOWN
    name_score: float = 0.0


class RegionNamer:
    """
    Names regions by a vocabulary; safe to use from several threads.

    scorer: of the model, with the text encoder. path: of a vocabulary file (see
    vocabulary.load_vocabulary), '' for the one of owseg_ros. threshold: least probability of a
    name, None for the model's.
    Encodes the vocabulary, which takes a while: construct and reload where no frame waits.
    Raises VocabularyError, TextEncoderError.
    """

    def __init__(self, scorer: QueryScorer, path: str | os.PathLike = '',
                 threshold: Optional[float] = None):
        self._scorer = scorer
        self._path = Path(path).expanduser() if os.fspath(path) else None
        self._threshold = threshold
        self._lock = threading.Lock()
        self._stamp = self._stamp_of_file()
        self._prepared = self._prepare(self._read())

    @property
    def language(self) -> LanguageInfo:
        """Return the section of the model that regions are named for."""
        return self._scorer.language

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names that a region can have, without 'unknown'."""
        return self._prepared.names

    def reload(self) -> bool:
        """
        Read the file again where it has changed; return whether it had.

        Raises VocabularyError where it cannot be used or TextEncoderError where its texts cannot
        be encoded, at every call until that is mended; the names are then those of before.
        """
        with self._lock:
            stamp = self._stamp_of_file()
            if self._path is None or stamp is not None and stamp == self._stamp:
                return False
            self._prepared = self._prepare(self._read())
            self._stamp = stamp
            return True

    def name(self, embeddings: np.ndarray) -> list[tuple[str, float]]:
        """
        Return name and score of each region, see NamedRegion.

        embeddings: float32 [R, D], rows of unit length. Raises LanguageError where D is another.
        """
        prepared = self._prepared
        scores = prepared.probabilities(embeddings)
        if not len(prepared):
            return [(UNKNOWN, 0.0)] * len(embeddings)
        closeness = prepared.queries.per_query(embeddings @ prepared.queries.embeddings.T)
        closeness[scores < prepared.thresholds] = -np.inf
        found = []
        for row, close in zip(scores, closeness):
            best = close.argmax()
            known = np.isfinite(close[best])
            found.append((prepared.names[best] if known else UNKNOWN,
                          float(row[best] if known else row.max())))
        return found

    def _stamp_of_file(self) -> Optional[tuple[int, int, int]]:
        """Return what changes with the file; None where there is none."""
        try:
            found = os.stat(self._path) if self._path is not None else None
        except OSError:
            # Reading it says why.
            return None
        return found and (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self) -> Vocabulary:
        return default_vocabulary() if self._path is None else load_vocabulary(self._path)

    def _prepare(self, vocabulary: Vocabulary) -> PreparedQueries:
        book = QueryBook(self._scorer.encoder, vocabulary)
        # Beyond the limits of a message: a vocabulary is no question.
        book.ask(ParsedQueries(tuple(Query(thing.name) for thing in vocabulary.things)))
        return self._scorer.prepare(book.active, self._threshold)
