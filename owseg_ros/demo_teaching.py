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
What the demo teaches by example, when, and what became of it.

Somebody sits in front of the street, sees what lies on the road, and says once what it is called.
That somebody is the ground truth here: it knows where a hazard is, and points at it in a frame in
which the anomaly mask has seen it too.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
import math
from typing import Any

import cv2
import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.scene import HazardEvent, StreetScene

NEAR = 0.5
"""Share of the time in sight after which a hazard is near enough to be pointed at."""

LEAST_COVER = 0.25
"""Share of a hazard that the anomaly mask must have for it to be taught."""

FRAMES_AFTER = 5
"""Frames that must be left to see what it is called then."""

LOOK_SECONDS = 3.0
"""How often it is looked at how far the street has come, while nothing is near."""

_CANDIDATES = 12


def why_no_teaching(bundle: Bundle, scene: bool, wanted: bool) -> str:
    """Return why nothing is taught in a demo, '' where something is."""
    if not wanted:
        return 'not asked for'
    if bundle.novelty is None:
        return (f'the model {bundle.name} has no metric head, so it cannot be taught classes '
                '(owseg-train metric makes one)')
    return '' if scene else 'only the procedural street says what there is to be taught'


@dataclass
class _Taught:
    """A message, and what came of it; seconds are of the recorder's clock."""

    name: str = ''
    message: dict[str, Any] = field(default_factory=dict)
    sent: float | None = None
    answered: float | None = None
    answer: dict[str, Any] = field(default_factory=dict)
    first_mask: float | None = None
    shares: list[float] = field(default_factory=list)


class DemoTeaching:
    """
    Teaches the last hazard that a recording of the street will show near enough, by one message.

    scene: the street that the camera shows; a camera that is too slow for its rate shows it in
    slow motion, so how far it has come is seen by what a frame shows. seconds: length of the
    demo. All times are in seconds of the same clock.
    """

    def __init__(self, scene: StreetScene, bundle: Bundle, seconds: float) -> None:
        self._scene = scene
        self._seconds = seconds
        self._events = scene.hazard_times()
        # Index and time of the frame that was recognised last, and frames a second up to it.
        self._at: tuple[int, float] | None = None
        self._lost = False
        self._rate = scene.fps
        self.class_id = bundle.num_classes
        self.color = tuple(bundle.palette()[self.class_id].tolist())
        self._taught = _Taught()

    @property
    def name(self) -> str:
        """Return what was pointed at, '' before."""
        return self._taught.name

    def due(self, image: np.ndarray, mask: np.ndarray, stamp: tuple[int, int],
            since_start: float) -> dict[str, Any] | None:
        """
        Return the message for a frame, None where it is not the time or the thing is not seen.

        image: uint8 [H, W, 3]; mask: its anomaly mask, uint8 [H, W]; stamp: of the frame, which is
        since_start seconds after the first, which is the first frame that this is called with.
        Renders the street where it is time, which takes a while.
        """
        if self._taught.sent is not None or self._lost:
            return None
        index = self._index(image, since_start)
        event = None if index is None else next(
            (event for event in self._events if _near(event) <= index <= event.last_index), None)
        if event is None:
            return None
        reached = index + self._rate * (self._seconds - since_start) - FRAMES_AFTER
        if any(index < _near(other) <= reached for other in self._events):
            return None
        truth = self._scene.render(index).anomaly
        seen = (truth & (mask > 0)).astype(np.uint8)
        if np.count_nonzero(seen) < LEAST_COVER * np.count_nonzero(truth):
            return None
        # The pixel that is farthest from the edge of what is seen of it.
        depth = cv2.distanceTransform(cv2.copyMakeBorder(
            seen, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5)[1:-1, 1:-1]
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        self._taught.name = event.kind
        self._taught.message = {
            'name': event.kind, 'pixel': [int(x), int(y)],
            'stamp': {'sec': stamp[0], 'nanosec': stamp[1]}, 'message_id': 'demo'}
        return self._taught.message

    def sent(self, now: float) -> None:
        """Note that the message that was due has been published."""
        self._taught.sent = now

    def answered(self, answer: dict[str, Any], now: float) -> None:
        """Take a message of teach/status; what answers another message is passed by."""
        if answer['message_id'] == 'demo' and self._taught.answered is None:
            self._taught.answered, self._taught.answer = now, answer

    def seen(self, semantic: np.ndarray, now: float) -> float:
        """
        Take a semantic/mask, uint8 [H, W]; return the share of it that has the taught name.

        That is 0 before anything is taught.
        """
        taught = self._taught
        if not taught.answer.get('accepted'):
            return 0.0
        share = float((semantic == self.class_id).mean())
        taught.shares.append(share)
        if share and taught.first_mask is None:
            taught.first_mask = now
        return share

    def names(self, semantic: np.ndarray) -> list[tuple[tuple[float, ...], str]]:
        """Return box and name of what is of the taught class, for render.draw_names."""
        if not self._taught.answer.get('accepted'):
            return []
        x, y, width, height = cv2.boundingRect((semantic == self.class_id).view(np.uint8))
        if not width:
            return []
        high, wide = semantic.shape
        return [((x / wide, y / high, (x + width) / wide, (y + height) / high), self.name)]

    def report(self, labels: dict[str, Any]) -> dict[str, Any]:
        """
        Return what was taught and what came of it.

        labels: the last message of the topic. sent: whether the message was; answer_ms,
        first_mask_ms: from there to the answer, and to the arrival of the first mask with the
        name; frames, named: with an answer before them, and how many of these have the name;
        best_share: of the pixels; in_labels: what the labels call the id.
        """
        taught = self._taught
        entries = {entry['id']: entry['name'] for entry in labels.get('classes', [])}
        return {
            'name': taught.name, 'sent': taught.sent is not None, 'message': taught.message,
            'accepted': taught.answer.get('accepted', []),
            'rejected': taught.answer.get('rejected', []), 'shot': taught.answer.get('shot'),
            'answer_ms': _since(taught.sent, taught.answered),
            'first_mask_ms': _since(taught.sent, taught.first_mask),
            'frames': len(taught.shares), 'named': sum(share > 0 for share in taught.shares),
            'best_share': max(taught.shares, default=0.0),
            'in_labels': entries.get(self.class_id)}

    def _index(self, image: np.ndarray, now: float) -> int | None:
        """Return the index of a frame where that is worth to know, None else."""
        if self._at is None:
            found = self._find(image, range(8))
            self._lost, self._at = found is None, (found or 0, now)
            return found
        index, then = self._at
        guess = index + (now - then) * self._rate
        near = any(_near(event) - 2 <= guess <= event.last_index + 2 for event in self._events)
        if not near and now - then < LOOK_SECONDS:
            return None
        most = index + math.ceil((now - then) * self._scene.fps) + 3
        found = self._find(image, sorted(
            range(index, most), key=lambda other: abs(other - guess))[:_CANDIDATES])
        if found is not None:
            self._at = found, now
            self._rate = found / now if now > 1.0 else self._scene.fps
        return found

    def _find(self, image: np.ndarray, candidates: Iterable[int]) -> int | None:
        return next((index for index in candidates
                     if np.array_equal(self._scene.render(index).image, image)), None)


def _near(event: HazardEvent) -> float:
    """Return the index from which a hazard is near enough to be pointed at."""
    return event.first_index + NEAR * (event.last_index - event.first_index)


def _since(start: float | None, end: float | None) -> float | None:
    return None if start is None or end is None else round(1e3 * (end - start), 1)


def describe(entry: dict[str, Any]) -> str:
    """Return DemoTeaching.report as a line for people."""
    if not entry['sent']:
        return 'nothing: no hazard was near and seen well enough before the end'
    if entry['rejected']:
        return f'{entry["name"]} was not taken: {entry["rejected"][0]["reason"]}'
    if entry['answer_ms'] is None:
        return f'{entry["name"]}: no answer came'
    if entry['first_mask_ms'] is None:
        return f'{entry["name"]}: taken, but not named in {entry["frames"]} frames'
    return (f'{entry["name"]}, by one message: named after {entry["first_mask_ms"]:.0f} ms, in '
            f'{entry["named"]} of the {entry["frames"]} frames that followed')
