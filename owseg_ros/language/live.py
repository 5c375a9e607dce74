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
Live queries: messages in, prepared queries out, by a thread of their own.

Frames never wait for a text: they take ``LiveQueries.prepared``, which is replaced as a whole.
Of messages that come faster than texts can be encoded the newest is answered, the others are
dropped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
import os
import threading
import time
import traceback
from typing import Any, Optional

from owseg_ros.bundle import LanguageInfo
from owseg_ros.errors import OwsegError
from owseg_ros.language.book import QueryBook
from owseg_ros.language.cache import CachingTextEncoder
from owseg_ros.language.naming import RegionNamer
from owseg_ros.language.queries import parse_queries, ParsedQueries, Rejection
from owseg_ros.language.scores import LanguageError, PreparedQueries, QueryScorer
from owseg_ros.language.vocabulary import default_vocabulary, load_vocabulary

UNCONFIGURED, OPENING, READY, UNAVAILABLE = 'unconfigured', 'opening', 'ready', 'unavailable'
NO_MODEL = 'no model is loaded: configure the node'

PAUSE_SECONDS = 0.1
PAUSE_SHARE = 9.0
"""
While messages come faster than they are answered, the thread rests between two answers: for at
least PAUSE_SECONDS, and this many times as long as the answer took.
"""

WATCH_SECONDS = 1.0
"""How often a vocabulary file is looked at, whether it has been edited."""

RETRY_SECONDS = 3.0
"""A text encoder that could not be opened is tried again by a message, at most so often."""


@dataclass(frozen=True)
class LanguageSetup:
    """
    What queries are asked with.

    model: name of the bundle, for messages. language: its section, None where it has none.
    text_encoder: folder of the encoder, '' for the default one. vocabulary: file with other
    wordings, '' for the built-in one; reading: rises when it is to be read again. threshold: of
    queries without one of their own, None for that of the model. names: whether the vocabulary
    is to name regions too (language.naming); only for models with text features.
    """

    model: str
    language: Optional[LanguageInfo]
    text_encoder: str = ''
    vocabulary: str = ''
    reading: int = 0
    threshold: Optional[float] = None
    names: bool = False


@dataclass(frozen=True)
class LanguageState:
    """
    What can be asked at a moment.

    state: unconfigured, opening, ready or unavailable. error: why it is unavailable, or why the
    last message could not be answered; it says what to do. space: of the texts, '' while there
    is no text encoder. version, active: the live set. messages, superseded, answered: counts
    since the start; once none waits, the last two make up the first. text_passes, text_ms:
    calls of the encoder for texts that it did not know, and the ms of the last. names: how many
    names regions can have; names_error: why they have none.
    """

    state: str = UNCONFIGURED
    error: str = ''
    space: str = ''
    version: int = 0
    active: tuple[str, ...] = ()
    messages: int = 0
    superseded: int = 0
    answered: int = 0
    text_passes: int = 0
    text_ms: float = 0.0
    names: int = 0
    names_error: str = ''


@dataclass(frozen=True)
class Answer:
    """
    What became of a message, or of a change of the setup (message_id None, nothing accepted).

    prepared: the live set, None where there can be none.
    """

    state: LanguageState
    prepared: Optional[PreparedQueries] = None
    accepted: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    message_id: Optional[str] = None
    error: str = ''

    def to_dict(self) -> dict[str, Any]:
        """Return what the topic query/status says."""
        queries = [] if self.prepared is None else [
            {'name': query.name, 'threshold': round(float(threshold), 6),
             'wordings': list(wordings)}
            for query, threshold, wordings in zip(
                self.prepared.queries.queries, self.prepared.thresholds,
                self.prepared.queries.wordings)]
        return {
            'version': self.state.version, 'message_id': self.message_id,
            'state': self.state.state, 'error': self.error,
            'active': [query['name'] for query in queries],
            'accepted': list(self.accepted),
            'rejected': [{'entry': rejection.entry, 'reason': rejection.reason}
                         for rejection in self.rejected],
            'thresholds': [query['threshold'] for query in queries],
            'queries': queries, 'space': self.state.space}


class LiveQueries:
    """
    Answers messages with a setup that can be changed while it does.

    open_encoder: returns the text encoder of a setup; called in the thread, raises
    TextEncoderError. answered: called in the thread with each Answer. live: called in the thread
    when another set, or one with other thresholds, has become live. failed: called in the thread
    with the traceback of an error that nobody foresaw; the thread goes on.
    """

    def __init__(self, open_encoder: Callable[[LanguageSetup], CachingTextEncoder],
                 answered: Callable[[Answer], None],
                 live: Callable[[], None] = lambda: None,
                 failed: Callable[[str], None] = lambda text: None) -> None:
        self._work = _Work(open_encoder)
        self._answered = answered
        self._live = live
        self._failed = failed
        self._changed = threading.Condition()
        self._setup: Optional[LanguageSetup] = None
        # Counts configure and release: what was begun before them is not to become live.
        self._epoch = 0
        self._done: Optional[tuple[int, Optional[LanguageSetup]]] = (0, None)
        self._message: Optional[str] = None
        self._prepared: Optional[PreparedQueries] = None
        self._namer: Optional[RegionNamer] = None
        self._state = LanguageState()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name='queries', daemon=True)

    @property
    def prepared(self) -> Optional[PreparedQueries]:
        """Return the live set, None where there can be none; never waits."""
        return self._prepared

    @property
    def namer(self) -> Optional[RegionNamer]:
        """Return what names regions, None where nothing does; never waits."""
        return self._namer

    @property
    def state(self) -> LanguageState:
        """Return what can be asked now."""
        with self._changed:
            return self._state

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """End the thread after the text that it encodes; False when it did not end in time."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def configure(self, setup: LanguageSetup, message: str = '') -> None:
        """Begin anew with a setup and, where it is not empty, a message."""
        self._begin(setup, OPENING, message or None)

    def release(self) -> None:
        """Forget the setup and the queries."""
        self._begin(None, UNCONFIGURED, None)

    def adjust(self, **changes: Any) -> None:
        """
        Change vocabulary, threshold or names; the live queries are prepared again.

        A vocabulary is read again also where its path is the same, and where the file changes.
        """
        with self._changed:
            if self._setup is not None:
                reading = self._setup.reading + ('vocabulary' in changes)
                self._setup = replace(self._setup, reading=reading, **changes)
                self._changed.notify_all()

    def ask(self, message: str) -> bool:
        """
        Ask what a message says (queries.parse_queries); never waits.

        Returns whether it took the place of one that nobody had looked at yet: messages come
        faster than they are answered.
        """
        with self._changed:
            state = self._state
            early = self._message is not None
            self._state = replace(state, messages=state.messages + 1,
                                  superseded=state.superseded + early)
            self._message = message
            self._changed.notify_all()
        return early

    def _begin(self, setup: Optional[LanguageSetup], state: str, message: Optional[str]) -> None:
        with self._changed:
            self._epoch += 1
            dropped = self._message
            self._setup, self._message, self._prepared, self._namer = setup, message, None, None
            before = self._state
            self._state = replace(
                before, state=state, error='', space='', active=(), names=0, names_error='',
                messages=before.messages + (message is not None),
                superseded=before.superseded + (dropped is not None))
            self._changed.notify_all()

    # The thread

    def _run(self) -> None:
        while True:
            with self._changed:
                watches = self._setup is not None and self._setup.vocabulary
                if not self._changed.wait_for(
                        lambda: self._stopped or self._message is not None
                        or self._done != (self._epoch, self._setup),
                        WATCH_SECONDS if watches else None):
                    if self._work.vocabulary_edited():
                        self._setup = replace(self._setup, reading=self._setup.reading + 1)
                    continue
                if self._stopped:
                    return
                epoch, setup, message = self._epoch, self._setup, self._message
                self._message = None
                superseded = self._state.superseded
            start = time.monotonic()
            try:
                self._do(epoch, setup, message)
                rest = max(PAUSE_SECONDS, PAUSE_SHARE * (time.monotonic() - start))
                self._name(epoch, setup)
            except Exception:
                rest = PAUSE_SECONDS
                self._failed(traceback.format_exc())
            with self._changed:
                self._done = (epoch, setup)
                if self._state.superseded > superseded:
                    self._changed.wait_for(lambda: self._stopped, rest)

    def _do(self, epoch: int, setup: Optional[LanguageSetup], message: Optional[str]) -> None:
        parsed = ParsedQueries() if message is None else parse_queries(message)
        accepted, rejected, error = (), parsed.rejected, ''
        try:
            accepted = self._work.answer(epoch, setup, None if message is None else parsed)
        except Exception as problem:
            error = str(problem)
            if not isinstance(problem, OwsegError):
                error = f'{type(problem).__name__}: {error}'
                self._failed(traceback.format_exc())
            rejected += tuple(Rejection(query.name, error) for query in parsed.queries)
        with self._changed:
            if epoch != self._epoch or self._stopped:
                self._state = replace(self._state, superseded=(
                    self._state.superseded + (message is not None)))
                return
            prepared, before = self._work.prepared, self._prepared
            self._prepared = prepared
            self._state = state = replace(
                self._state, state=self._work.state, error=error,
                answered=self._state.answered + (message is not None),
                **self._work.report())
        self._answered(Answer(state, prepared, accepted, rejected,
                              parsed.message_id, error))
        if prepared is not before:
            self._live()

    def _name(self, epoch: int, setup: Optional[LanguageSetup]) -> None:
        """Follow the setup in what names regions, after the queries: many texts are encoded."""
        error = ''
        try:
            self._work.make_namer(setup)
        except OwsegError as problem:
            error = str(problem)
        namer = self._work.namer
        with self._changed:
            if epoch == self._epoch and (namer is not self._namer or error):
                self._namer = namer
                self._state = replace(self._state, names=len(namer.names) if namer else 0,
                                      names_error=error, **self._work.report())


class _Work:
    """What the thread alone touches: encoder, scorer and book of a setup."""

    def __init__(self, open_encoder: Callable[[LanguageSetup], CachingTextEncoder]) -> None:
        self._open_encoder = open_encoder
        self._version = 0
        self._passes = 0
        self._encoder: Optional[CachingTextEncoder] = None
        self._begin(0)

    def _begin(self, epoch: int) -> None:
        self._epoch = epoch
        self._setup: Optional[LanguageSetup] = None
        self._refused: Optional[LanguageSetup] = None
        self._problem: Optional[OwsegError] = None
        self._tried = 0.0
        self._vocabulary: Optional[tuple[str, int]] = None
        self._scorer: Optional[QueryScorer] = None
        self._book: Optional[QueryBook] = None
        self._live: Optional[ParsedQueries] = None
        self._threshold: Optional[float] = None
        self._named_by: Optional[QueryScorer] = None
        self._edited: Any = None
        self.prepared: Optional[PreparedQueries] = None
        self.namer: Optional[RegionNamer] = None

    @property
    def state(self) -> str:
        """Return whether queries can be answered."""
        if self._setup is None:
            return UNCONFIGURED
        return UNAVAILABLE if self.prepared is None else READY

    def report(self) -> dict[str, Any]:
        """Return the fields of LanguageState that are known here."""
        found: dict[str, Any] = {
            'version': self._version,
            'active': () if self.prepared is None else self.prepared.names}
        if self._encoder is not None:
            found |= {'space': self._encoder.space,
                      'text_passes': self._passes + self._encoder.passes,
                      'text_ms': self._encoder.pass_ms}
        return found

    def answer(self, epoch: int, setup: Optional[LanguageSetup],
               parsed: Optional[ParsedQueries]) -> tuple[str, ...]:
        """
        Follow the setup, then the message; return what was accepted of it.

        Raises OwsegError where queries cannot be answered, or not these; what was live is then
        as before, unless the epoch is another.
        """
        if epoch != self._epoch:
            self._close()
            self._begin(epoch)
        self._setup = setup
        if setup is None:
            if parsed is not None:
                raise LanguageError(NO_MODEL)
            return ()
        self._follow(setup)
        accepted: tuple[str, ...] = ()
        if parsed is not None:
            update = self._book.ask(parsed)
            accepted = update.accepted
            if update.changed:
                self._live = parsed
        if (self.prepared is None or self.prepared.queries is not self._book.active
                or self._threshold != setup.threshold):
            self.prepared = self._scorer.prepare(self._book.active, setup.threshold)
            self._threshold = setup.threshold
            self._version = self.prepared.version
        return accepted

    def make_namer(self, setup: Optional[LanguageSetup]) -> None:
        """Make `namer` what the setup says, once for each vocabulary; raises OwsegError."""
        scorer = self._scorer if setup is not None and setup.names else None
        if scorer is not self._named_by:
            self._named_by, self.namer = scorer, None
            if scorer is not None:
                self.namer = RegionNamer(scorer, setup.vocabulary)

    def vocabulary_edited(self) -> bool:
        """Return whether the vocabulary file is another than the one that was read last."""
        return self._setup is not None and self._edited != _edited(self._setup.vocabulary)

    def _follow(self, setup: LanguageSetup) -> None:
        """Open the text encoder and read the vocabulary, where that is not done yet."""
        if setup.language is None:
            raise LanguageError(
                f'the model {setup.model} does not know words: use one whose manifest has the '
                'section language (owseg-train grounding makes such models)')
        if self._refused == setup and time.monotonic() - self._tried < RETRY_SECONDS:
            raise self._problem
        try:
            if self._encoder is None:
                self._encoder = self._open_encoder(setup)
            if self._vocabulary != (setup.vocabulary, setup.reading):
                self._read_vocabulary(setup)
        except OwsegError as problem:
            if self._book is None:
                # It may be another one that is there at the next attempt.
                self._close()
                self._refused, self._problem, self._tried = setup, problem, time.monotonic()
            else:
                # The words of before stay until the file, or the parameter, changes again.
                self._vocabulary = setup.vocabulary, setup.reading
            raise

    def _read_vocabulary(self, setup: LanguageSetup) -> None:
        """Begin another book, with what was live before."""
        self._edited = _edited(setup.vocabulary)
        vocabulary = (load_vocabulary(setup.vocabulary) if setup.vocabulary
                      else default_vocabulary())
        scorer = QueryScorer(setup.language, self._encoder, vocabulary)
        # Versions go on: a version never means two sets.
        book = QueryBook(self._encoder, vocabulary, version=self._version + (self._version > 0))
        if self._live is not None:
            book.ask(self._live)
        self._scorer, self._book = scorer, book
        self._vocabulary = setup.vocabulary, setup.reading

    def _close(self) -> None:
        if self._encoder is not None:
            self._passes += self._encoder.passes
            self._encoder = None


def _edited(path: str) -> Any:
    """Return what changes when a file does; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        # Reading it says why.
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
