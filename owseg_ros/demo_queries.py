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
"""What the demo asks for in words, when it asks, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.errors import OwsegError
from owseg_ros.language.encoder_folder import MANIFEST
from owseg_ros.language.installed import advice, default_text_encoder_path, SENTENCE_SPACE
from owseg_ros.language.live import READY, UNAVAILABLE
from owseg_ros.language.queries import parse_queries
from owseg_ros.pictures import QueryPicture
from owseg_ros.render import distinct_colors


def why_no_queries(bundle: Bundle, messages: Sequence[str]) -> str:
    """Return why nothing can be asked on this machine with a bundle; '' where it can."""
    if not messages:
        return 'no query was given'
    if bundle.language is None:
        return f'the model {bundle.name} does not know words'
    space = bundle.language.space
    try:
        folder = default_text_encoder_path(space)
    except OwsegError as error:
        return str(error)
    if (folder / MANIFEST).is_file():
        return ''
    remedy = advice(folder) if space == SENTENCE_SPACE else f'its space is {space}'
    return f'no text encoder in {folder}; {remedy}'


@dataclass
class _Asked:
    """A message, when it is to be typed, and what came of it."""

    message: str
    due: float
    asked: float | None = None
    answered: float | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    first_mask: float | None = None
    shares: list[np.ndarray] = field(default_factory=list)


class DemoQueries:
    """
    The messages of a demo, typed one after the other, each in place of the one before.

    messages: as the topic `query` takes them; seconds: length of the demo, over which they are
    spread evenly, the first at its start; one that comes late leaves the next half its time.
    All times are in seconds of the same clock.
    """

    def __init__(self, messages: Sequence[str], seconds: float) -> None:
        self._all = [_Asked(message, seconds * index / len(messages))
                     for index, message in enumerate(messages)]
        names = list(dict.fromkeys(
            query.name for message in messages for query in parse_queries(message).queries))
        # One colour a name over all messages, so that one legend serves the whole demo.
        self.colors = dict(zip(names, distinct_colors(len(names))))
        self._state = ''
        self._pause = seconds / len(messages) / 2

    def due(self, since_start: float, now: float) -> str | None:
        """
        Return the message to type now, None where it is not yet time for the next.

        None as well until `query/status` has said that the text encoder is open, or why not, and
        what became of the message before.
        """
        before, waiting = self._last(), self._next()
        if waiting is None or self._state not in (READY, UNAVAILABLE):
            return None
        if before and (before.answered is None or now < before.asked + self._pause):
            return None
        return waiting.message if since_start >= waiting.due else None

    def typed(self, now: float) -> None:
        """Note that the message that was due has been published."""
        self._next().asked = now

    def answered(self, answer: dict[str, Any], now: float) -> None:
        """Take a message of `query/status`; what answers nothing that was typed is passed by."""
        self._state = answer['state']
        asked = self._last()
        if asked and asked.answered is None and (
                answer['accepted'] or answer['rejected'] or answer['error']):
            asked.answered, asked.answer = now, answer

    def seen(self, names: tuple[str, ...], mask: np.ndarray, now: float) -> None:
        """Take a `query/mask`, uint8 [H, W], and the names of its ids."""
        asked = self._last()
        if not asked or not names or names != tuple(asked.answer.get('active', ())):
            return
        if asked.first_mask is None:
            asked.first_mask = now
        counts = np.bincount(mask.ravel(), minlength=256)[:len(names)]
        asked.shares.append(counts / mask.size)

    def picture(self, names: tuple[str, ...], mask: np.ndarray,
                score: np.ndarray) -> QueryPicture:
        """Return what is drawn of a frame; arguments as for seen, score float32 [H, W]."""
        # A name that somebody else asked for meanwhile has no colour of ours.
        return QueryPicture(mask, score, [self.colors.get(name, (255, 255, 255))
                                          for name in names])

    def report(self) -> list[dict[str, Any]]:
        """
        Return an entry a message.

        typed: whether it was, before the recording ended; answer_ms, first_mask_ms: from typing
        to the answer and to the arrival of the first mask, None where there was none; frames:
        with its masks; shares: name to mean and best share of the pixels; rejected, error: as
        the node put them.
        """
        return [{
            'message': asked.message,
            'typed': asked.asked is not None,
            'answer_ms': _since(asked.asked, asked.answered),
            'first_mask_ms': _since(asked.asked, asked.first_mask),
            'frames': len(asked.shares),
            'shares': {name: {'mean': round(float(mean), 6), 'best': round(float(best), 6)}
                       for name, mean, best in zip(
                           asked.answer.get('active', ()), np.mean(asked.shares, axis=0),
                           np.max(asked.shares, axis=0))} if asked.shares else {},
            'rejected': asked.answer.get('rejected', []),
            'error': asked.answer.get('error', '')} for asked in self._all]

    def _next(self) -> _Asked | None:
        return next((asked for asked in self._all if asked.asked is None), None)

    def _last(self) -> _Asked | None:
        return next((asked for asked in reversed(self._all) if asked.asked is not None), None)


def _since(start: float, end: float | None) -> float | None:
    return None if end is None else round(1e3 * (end - start), 1)


def describe(entry: dict[str, Any]) -> str:
    """Return an entry of DemoQueries.report as a line for people."""
    if not entry['typed']:
        return 'not typed: the recording ended before it was time, or the text encoder was open'
    if entry['error']:
        return f'not answered: {entry["error"]}'
    parts = [f'not {part["entry"]!r}: {part["reason"]}' for part in entry['rejected']]
    if entry['first_mask_ms'] is None:
        parts.insert(0, 'no mask came' if entry['answer_ms'] is not None else 'no answer came')
    else:
        parts.insert(0, f'first mask after {entry["first_mask_ms"]:.0f} ms')
    parts += [f'{name}: {share["mean"]:.1%} of the pixels, {share["best"]:.1%} at most'
              for name, share in entry['shares'].items()]
    return '; '.join(parts)
