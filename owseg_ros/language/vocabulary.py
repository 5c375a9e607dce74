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
Other wordings of what is asked for, and the prompts they are put into.

OpenSeg, appendix I: a thing is found better when its embedding stands for several wordings
(synonyms, subcategories, plurals), and a word of several meanings is found as the meant one when
its wordings say which. The wordings and prompts are ours, in ``vocabulary.yaml``; any file of the
same form can be loaded in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import difflib
from functools import lru_cache
from importlib import resources
import json
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jsonschema
from owseg_ros.errors import OwsegError, shown, SHOWN_PATH
from owseg_ros.language.files import read_file
from owseg_ros.language.text import normalise_text, TextError
import yaml

SCHEMA = 'owseg_ros/vocabulary'
SLOT = '{}'
MAX_BYTES = 1 << 20
# Shorter names are near too many words; at this ratio one letter may be lost, doubled or, in a
# long word, another.
_LONG = 6
_NEARLY = 0.86


class VocabularyError(OwsegError):
    """A vocabulary that cannot be used; the message names the file, the entry and what to do."""


@dataclass(frozen=True)
class Thing:
    """
    An entry of a vocabulary; its texts normalised, without repeats.

    name, plural (one text or none) and synonyms ask for the same; kinds are subcategories;
    meaning replaces name and plural where they mean other things too.
    """

    name: str
    plural: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    meaning: tuple[str, ...] = ()

    @property
    def same(self) -> tuple[str, ...]:
        """Return all texts that ask for the thing."""
        return tuple(dict.fromkeys((self.name, *self.plural, *self.synonyms)))

    @property
    def plain(self) -> tuple[str, ...]:
        """Return name and plural, or what they mean."""
        return self.meaning or (self.name, *self.plural)

    @property
    def wordings(self) -> tuple[str, ...]:
        """Return the texts that stand for the thing."""
        synonyms = [text for text in self.synonyms
                    if not self.meaning or text not in (self.name, *self.plural)]
        return tuple(dict.fromkeys((*self.plain, *synonyms, *self.kinds)))


@dataclass(frozen=True)
class Vocabulary:
    """
    Wordings by name, and prompt templates by kind of encoder.

    wordings: normalised name -> the texts that stand for it. A name, its plural and its synonyms
        are all there, each with the same texts; a subcategory is a wording of the name, but the
        name is none of the subcategory.
    templates: 'plain' and 'caption' -> templates, each with one {} for the wording.
    things: its entries, in their order.
    """

    wordings: Mapping[str, tuple[str, ...]]
    templates: Mapping[str, tuple[str, ...]]
    things: tuple[Thing, ...] = ()

    def expand(self, name: str) -> tuple[str, ...]:
        """
        Return the wordings of a normalised name; itself where the vocabulary has none.

        A longer name that is nearly one of the vocabulary ("pavment") is read as that one: text
        encoders make little of words that are misspelt.
        """
        known = self.wordings.get(name)
        if known is None and len(name) >= _LONG:
            near = difflib.get_close_matches(name, self.wordings, 1, _NEARLY)
            known = self.wordings[near[0]] if near else None
        return known or (name,)

    def prompts(self, kind: str, wording: str) -> tuple[str, ...]:
        """
        Return a wording in every template of a kind.

        Raises VocabularyError where there is no such kind.
        """
        if kind not in self.templates:
            raise VocabularyError(f'the vocabulary has no templates {kind!r}, only '
                                  f'{", ".join(self.templates)}; add them to its YAML')
        return tuple(template.replace(SLOT, wording) for template in self.templates[kind])


NO_EXPANSION = Vocabulary(MappingProxyType({}),
                          MappingProxyType({'plain': (SLOT,), 'caption': (SLOT,)}))


@lru_cache(maxsize=1)
def default_vocabulary() -> Vocabulary:
    """Return the vocabulary of roads that owseg_ros brings, read once."""
    source = resources.files('owseg_ros').joinpath('language/vocabulary.yaml')
    return _read('vocabulary.yaml of owseg_ros', source.read_bytes())


def load_vocabulary(path: str | Path) -> Vocabulary:
    """
    Read and check a vocabulary (schemas/vocabulary.schema.json documents each key).

    Raises VocabularyError: it cannot be read, is not plain YAML, does not follow the schema,
    holds a text that cannot be asked for, or gives one name to two entries.
    """
    try:
        data = read_file(path, MAX_BYTES)
    except (OSError, ValueError) as error:
        raise VocabularyError(f'vocabulary {shown(str(path), SHOWN_PATH)}: cannot be read: '
                              f'{getattr(error, "strerror", None) or error}') from error
    if len(data) > MAX_BYTES:
        raise VocabularyError(f'vocabulary {path}: it is larger than {MAX_BYTES} bytes')
    return _read(str(path), data)


def _read(where: str, data: bytes) -> Vocabulary:
    try:
        content = yaml.safe_load(data)
    # PyYAML lets ValueError out for scalars such as impossible dates.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = ' '.join(str(error).split())
        raise VocabularyError(f'vocabulary {where}: it is not plain YAML: {problem}') from error
    schema = json.loads(resources.files('owseg_ros').joinpath(
        'schemas/vocabulary.schema.json').read_text('utf-8'))
    error = jsonschema.exceptions.best_match(jsonschema.Draft7Validator(schema)
                                             .iter_errors(content))
    if error is not None:
        place = '.'.join(map(str, error.absolute_path)) or 'top level'
        expected = error.schema.get('description', f'{error.validator} {error.validator_value}')
        raise VocabularyError(f'vocabulary {where}: {place}: expected {expected}')
    templates = {kind: tuple(texts) for kind, texts in content['templates'].items()}
    things = tuple(_thing(where, entry) for entry in content['entries'])
    return Vocabulary(MappingProxyType(_wordings(where, things)), MappingProxyType(templates),
                      things)


def _thing(where: str, entry: Mapping[str, Any]) -> Thing:
    def normal(key: str) -> tuple[str, ...]:
        texts = entry.get(key, ())
        try:
            return tuple(map(normalise_text, [texts] if isinstance(texts, str) else texts))
        except TextError as error:
            raise VocabularyError(f'vocabulary {where}: {entry["name"]!r}: {key}: {error}'
                                  ) from error

    return Thing(normal('name')[0], normal('plural'), normal('synonyms'), normal('kinds'),
                 normal('meaning'))


def _wordings(where: str, things: Sequence[Thing]) -> dict[str, tuple[str, ...]]:
    wordings: dict[str, tuple[str, ...]] = {}
    for thing in things:
        for alias in thing.same:
            if alias in wordings:
                raise VocabularyError(f'vocabulary {where}: {alias!r} names two entries; leave '
                                      f'it to one of them (the second is {thing.name!r})')
            wordings[alias] = thing.wordings
    return wordings
