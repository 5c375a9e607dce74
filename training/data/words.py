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
Words that name what a label map shows: class names, synonyms and hypernyms (words.yaml).

OpenSeg learns from the nouns of captions; where pictures have labels and no captions, these words
take their place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
import re

import numpy as np
from owseg_ros.language.text import normalise_text
from owseg_training.data.errors import DataError
import yaml

TABLES = Path(__file__).parent / 'words.yaml'


@dataclass(frozen=True)
class Concept:
    """A thing that pictures show: what it is called, and what it is a kind of."""

    name: str
    words: tuple[str, ...]
    hypernyms: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, Concept], frozenset[str]]:
    content = yaml.safe_load(TABLES.read_text('utf-8'))
    concepts: dict[str, Concept] = {}
    for entry in content['concepts']:
        words, hypernyms = (tuple(map(normalise_text, entry.get(key, ())))
                            for key in ('words', 'hypernyms'))
        for label in entry['labels']:
            # The first entry that knows a label has it.
            concepts.setdefault(label.casefold(), Concept(entry['labels'][0], words, hypernyms))
    return concepts, frozenset(map(normalise_text, content['held_out']))


def held_out_words() -> frozenset[str]:
    """Return the words that are never learned from, for measuring what was not trained on."""
    return _tables()[1]


def concepts() -> tuple[Concept, ...]:
    """Return all concepts of the table, in its order."""
    return tuple(dict.fromkeys(_tables()[0].values()))


def concept_of(label: str) -> Concept:
    """Return the concept of a class or an object; its own name where the table has none."""
    name = label.casefold().replace('_', ' ')
    known = _tables()[0].get(label.casefold()) or _tables()[0].get(name)
    return known or Concept(name, (normalise_text(name),))


class WordTable:
    """
    All words that a training run draws from, and which concepts each of them names.

    labels: names of classes and objects, in the order of their ids in label maps; nouns: more
    words to look for in captions.
    words: V texts; names: bool [V, C], whether a word names a concept, its hypernyms too.
    Raises DataError where a word is held out.
    """

    def __init__(self, labels: Sequence[str], nouns: Sequence[str] = ()) -> None:
        self.concepts = tuple(map(concept_of, labels))
        groups = [(*c.words, *c.hypernyms) for c in self.concepts]
        self.words = tuple(dict.fromkeys(
            [*(word for group in groups for word in group), *nouns]))
        learned = held_out_words().intersection(self.words)
        if learned:
            raise DataError(f'{TABLES.name}: {", ".join(sorted(learned))} is held out and a word '
                            'to learn from')
        self._index = {word: i for i, word in enumerate(self.words)}
        self.names = np.array([[word in group for group in groups] for word in self.words],
                              bool).reshape(len(self.words), len(groups))
        self._pattern = re.compile(r'\b(?:' + '|'.join(
            re.escape(word) for word in sorted(self.words, key=len, reverse=True)) + r')\b')

    def draw(self, concept: int, hypernyms: float, rng: np.random.Generator) -> int:
        """Return the index of a word for a concept; hypernyms: the share of them."""
        known = self.concepts[concept]
        general = known.hypernyms and rng.random() < hypernyms
        group = known.hypernyms if general else known.words
        return self._index[group[rng.integers(len(group))]]

    def find(self, caption: str) -> list[int]:
        """Return the indices of the words that a caption has, in its order, once each."""
        found = self._pattern.findall(' '.join(caption.lower().split()))
        return list(dict.fromkeys(self._index[word] for word in found))
