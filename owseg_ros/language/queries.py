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
Messages that ask for things in words, read into queries.

A message is a comma list (``traffic cone, puddle``) or JSON: a list of texts and objects, or
``{"queries": [...]}``; an object has a ``name`` and, where wanted, ``synonyms`` and a
``threshold``. ``{"queries": [...], "message_id": "..."}`` asks for an answer that is known by the
id. What cannot be taken is returned with the reason, beside what can.
"""

from __future__ import annotations

from dataclasses import dataclass
import difflib
import json
import reprlib
from typing import Any, Optional

from owseg_ros.errors import shown
from owseg_ros.language.text import MAX_CHARACTERS, normalise_text, TextError

MAX_QUERIES = 64
MAX_SYNONYMS = 16
MAX_MESSAGE_CHARACTERS = 1 << 18
MAX_REJECTIONS = 64
MAX_ID_CHARACTERS = 64
_MESSAGE_KEYS = ('queries', 'message_id')
_KEYS = ('name', 'synonyms', 'threshold')


@dataclass(frozen=True)
class Query:
    """
    One thing that is asked for.

    name: normalised (text.normalise_text). synonyms: other wordings of the same thing,
    normalised, without repeats and without the name; None where the message names none, so
    that the vocabulary may. threshold: of the query's score, 0..1, None for the default.
    """

    name: str
    synonyms: Optional[tuple[str, ...]] = None
    threshold: Optional[float] = None


@dataclass(frozen=True)
class Rejection:
    """A part of a message that was not taken: the part, printable and short, and why."""

    entry: str
    reason: str


@dataclass(frozen=True)
class ParsedQueries:
    """
    What a message asks for.

    clear: the message names nothing at all, which asks for an empty set. A message whose every
    entry is rejected has neither queries nor clear. message_id: printable, at most 64 characters;
    None where the message has none that can be taken.
    """

    queries: tuple[Query, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    clear: bool = False
    message_id: Optional[str] = None


def parse_queries(message: str) -> ParsedQueries:
    """
    Read a message; never raises for what it says.

    At most 64 queries of at most 128 characters and 16 synonyms each are taken; repeats, in any
    spelling that normalises alike, are rejected. At most 64 rejections are listed, and one more
    that says how many there were.
    """
    reader = _Reader()
    if len(message) > MAX_MESSAGE_CHARACTERS:
        reader.reject(message, f'the message has {len(message)} characters, at most '
                               f'{MAX_MESSAGE_CHARACTERS} are read')
        return reader.result(clear=False)
    text = message.strip(' \t\r\n')
    if text.startswith(('{', '[')):
        entries = reader.json_entries(text)
    else:
        entries = [entry for entry in text.split(',') if entry.strip(' \t\r\n')]
    for entry in entries:
        reader.add(entry)
    return reader.result(clear=not entries)


class _Reader:
    """Collects queries and rejections."""

    def __init__(self) -> None:
        self.queries: dict[str, Query] = {}
        self.rejected: list[Rejection] = []
        self.unlisted = 0
        self.message_id: Optional[str] = None

    def result(self, clear: bool) -> ParsedQueries:
        """Return what was collected; nothing is cleared where something was rejected."""
        rejected = tuple(self.rejected)
        if self.unlisted:
            rejected += (Rejection('', f'and {self.unlisted} more entries'),)
        return ParsedQueries(tuple(self.queries.values()), rejected, clear and not rejected,
                             self.message_id)

    def reject(self, entry: Any, reason: str) -> None:
        """Note a rejection, unless there are many."""
        if len(self.rejected) >= MAX_REJECTIONS:
            self.unlisted += 1
            return
        text = entry if isinstance(entry, str) else reprlib.repr(entry)
        self.rejected.append(Rejection(shown(text), reason))

    def json_entries(self, text: str) -> list[Any]:
        """Return the entries of a message in JSON."""
        try:
            message = json.loads(text)
        except (ValueError, RecursionError) as error:
            reason = 'nested too deep' if isinstance(error, RecursionError) else error
            self.reject(text, f'it starts like JSON and is none: {reason}')
            return []
        if isinstance(message, list):
            return message
        for key in message:
            if key not in _MESSAGE_KEYS:
                self.reject(key, f'unknown key{_did_you_mean(key, _MESSAGE_KEYS)}; a message is '
                                 '{"queries": [...]}')
        self.read_id(message.get('message_id'))
        entries = message.get('queries')
        if isinstance(entries, list):
            return entries
        if 'queries' in message:
            self.reject(entries, 'queries must be a list')
        elif not message:
            self.reject('{}', 'it has no queries; {"queries": []} clears')
        return []

    def read_id(self, value: Any) -> None:
        """Take the id of the message, or reject it."""
        if isinstance(value, str) and 0 < len(value) <= MAX_ID_CHARACTERS and value.isprintable():
            self.message_id = value
        elif value is not None:
            self.reject(value, 'message_id is not a printable text of at most '
                               f'{MAX_ID_CHARACTERS} characters')

    def add(self, entry: Any) -> None:
        """Take one entry, or reject it."""
        try:
            query = self.query(entry)
        except TextError as error:
            self.reject(entry, str(error))
            return
        # Beyond lower case: "Straße" and "STRASSE" are one word.
        key = query.name.casefold()
        if key in self.queries:
            self.reject(entry, 'it is asked for twice')
        elif len(self.queries) >= MAX_QUERIES:
            self.reject(entry, f'at most {MAX_QUERIES} queries are taken')
        else:
            self.queries[key] = query

    def query(self, entry: Any) -> Query:
        """Return the query of an entry; raise TextError where it is none."""
        if isinstance(entry, str):
            return Query(normalise_text(entry))
        if not isinstance(entry, dict):
            raise TextError('it is neither a text nor an object with a name')
        for key in entry:
            if key not in _KEYS:
                raise TextError(f'unknown key {shown(key)!r}{_did_you_mean(key, _KEYS)}; a '
                                f'query has {", ".join(_KEYS)}')
        if not isinstance(entry.get('name'), str):
            raise TextError('it has no name that is a text')
        threshold = entry.get('threshold')
        # bool is an int in Python, and no threshold.
        if threshold is not None and (isinstance(threshold, bool)
                                      or not isinstance(threshold, (int, float))
                                      or not 0 <= threshold <= 1):
            raise TextError('its threshold is not a number from 0 to 1')
        name = normalise_text(entry['name'])
        return Query(name, self.synonyms(name, entry.get('synonyms')),
                     None if threshold is None else float(threshold))

    def synonyms(self, name: str, synonyms: Any) -> Optional[tuple[str, ...]]:
        """Return the synonyms that can be taken; reject the others."""
        if synonyms is None:
            return None
        if not isinstance(synonyms, list):
            raise TextError('its synonyms are not a list of texts')
        taken: dict[str, str] = {name.casefold(): name}
        for synonym in synonyms:
            where = f'{name}: {synonym if isinstance(synonym, str) else reprlib.repr(synonym)}'
            try:
                if not isinstance(synonym, str):
                    raise TextError('the synonym is not a text')
                text = normalise_text(synonym)
                if len(taken) > MAX_SYNONYMS and text.casefold() not in taken:
                    raise TextError(f'at most {MAX_SYNONYMS} synonyms are taken')
            except TextError as error:
                self.reject(where, str(error))
            else:
                taken.setdefault(text.casefold(), text)
        return tuple(taken.values())[1:]


def _did_you_mean(key: str, known: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key[:MAX_CHARACTERS], known, n=1)
    return f' (did you mean {close[0]!r}?)' if close else ''
