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

"""What evaluation asks for in words: names of classes, their wordings, things that are absent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
import json
from pathlib import Path
from typing import Any

from owseg_ros.language import NO_EXPANSION, QueryBook, QuerySet, TextEncoder, Vocabulary
from owseg_ros.language.queries import MAX_QUERIES
from owseg_training.data.words import held_out_words
import yaml

TABLES = Path(__file__).parent / 'word_lists.yaml'
NAME = 'class name'


@dataclass(frozen=True)
class Wording:
    """
    A text that asks for a class, or for something absent.

    kind: class name, synonym, hypernym, plural, typo or absent; target: id of the class, None
    where absent.
    """

    text: str
    kind: str
    target: int | None

    @property
    def held_out(self) -> bool:
        """Return whether training is kept from ever learning the text."""
        return self.text in held_out_words()


@lru_cache(maxsize=1)
def _tables() -> dict[str, Any]:
    return yaml.safe_load(TABLES.read_text('utf-8'))


def class_texts(name: str) -> tuple[str, ...]:
    """Return the texts that name a class of a label set."""
    return tuple(_tables()['class_names'].get(name) or (name.lower().replace('_', ' '),))


def wordings(classes: Sequence[str]) -> tuple[Wording, ...]:
    """
    Return the wordings of those classes that the tables know, and the absent things.

    No text twice: the first class has it, and what names a class is not absent.
    """
    found = [Wording(text, NAME, i) for i, name in enumerate(classes)
             for text in class_texts(name)]
    for i, name in enumerate(classes):
        for kind, texts in _tables()['robustness'].get(name, {}).items():
            found += [Wording(text, kind, i) for text in texts]
    found += [Wording(text, 'absent', None) for text in _tables()['absent']]
    first: dict[str, Wording] = {}
    for wording in found:
        first.setdefault(wording.text, wording)
    return tuple(first.values())


def query_sets(encoder: TextEncoder, groups: Mapping[str, Sequence[str]],
               vocabulary: Vocabulary = NO_EXPANSION) -> list[QuerySet]:
    """
    Return sets of at most 64 queries each, as a robot's query book would hold them.

    groups: name of a query to all of its texts; a query of one text, its name, is expanded by
    the vocabulary.
    """
    entries = [{'name': name, 'synonyms': [t for t in texts if t != name]}
               if list(texts) != [name] else name for name, texts in groups.items()]
    sets = []
    for start in range(0, len(entries), MAX_QUERIES):
        update = QueryBook(encoder, vocabulary).ask(
            json.dumps(entries[start:start + MAX_QUERIES]))
        if update.rejected:
            raise ValueError(f'not a query: {update.rejected}')
        sets.append(update.active)
    return sets
