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
Messages that teach, read into what they ask for.

A message is a JSON object that does one thing::

    {"name": "pallet", "pixel": [320, 240]}        a shot of what is there; or "box": [left, top,
                                                   right, bottom], or "region": 0
    {"name": "pallet", "threshold": 0.7}           least cosine of the class; also with a shot
    {"forget": "pallet"}
    {"rename": "pallet", "to": "euro pallet"}
    {"list": true}

With a shot may come "stamp", of the frame, {"sec": 1, "nanosec": 2} or in seconds, and "camera";
with everything "message_id", by which the answer is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
import json
import reprlib
from typing import Any, NoReturn, Optional, Union

from owseg_ros.errors import shown
from owseg_ros.language.queries import MAX_ID_CHARACTERS, Rejection
from owseg_ros.novelty.arrays import NoveltyError
from owseg_ros.novelty.frames import Box, Pixel, Place, RegionNumber

MAX_MESSAGE_CHARACTERS = 1 << 14
_ACTIONS = ('name', 'forget', 'rename', 'list')
_PLACES = ('pixel', 'box', 'region')
_WITH = {'name': (*_PLACES, 'stamp', 'camera', 'threshold'), 'forget': (), 'rename': ('to',),
         'list': ()}
_FORM = ('a message is a JSON object such as {"name": "pallet", "pixel": [320, 240]}, '
         '{"forget": "pallet"}, {"rename": "pallet", "to": "crate"} or {"list": true}')


@dataclass(frozen=True)
class Teach:
    """
    A shot, or a threshold, or both.

    place: where, None for no shot. stamp: of the frame in ns, None for the newest; camera: None
    where there is one. threshold: least cosine -1..1, None to leave it.
    """

    name: str
    place: Optional[Place] = None
    stamp: Optional[int] = None
    camera: Optional[str] = None
    threshold: Optional[float] = None


@dataclass(frozen=True)
class Forget:
    """Forget a class."""

    name: str


@dataclass(frozen=True)
class Rename:
    """Give a class another name."""

    name: str
    to: str


@dataclass(frozen=True)
class ListClasses:
    """Tell what is taught."""

    name: str = ''


Action = Union[Teach, Forget, Rename, ListClasses]


@dataclass(frozen=True)
class ParsedTeaching:
    """
    What a message asks for: an action, or why it cannot be taken.

    message_id: printable, at most 64 characters; None where the message has none that can be
    taken.
    """

    action: Optional[Action] = None
    rejected: Optional[Rejection] = None
    message_id: Optional[str] = None


def parse_teaching(text: str) -> ParsedTeaching:
    """Read a message; never raises for what it says."""
    if len(text) > MAX_MESSAGE_CHARACTERS:
        return ParsedTeaching(rejected=Rejection(
            shown(text), f'the message is longer than {MAX_MESSAGE_CHARACTERS} characters'))
    try:
        message = json.loads(text, parse_float=Decimal, parse_constant=Decimal)
    # A number with an exponent beyond all reason is an ArithmeticError.
    except (ValueError, RecursionError, ArithmeticError) as error:
        reason = 'nested too deep' if isinstance(error, RecursionError) else error
        return ParsedTeaching(rejected=Rejection(shown(text), f'it is no JSON: {reason}; {_FORM}'))
    if not isinstance(message, dict):
        return ParsedTeaching(rejected=Rejection(shown(text), _FORM))
    given = message.pop('message_id', None)
    valid = isinstance(given, str) and 0 < len(given) <= MAX_ID_CHARACTERS and given.isprintable()
    message_id = given if valid else None
    try:
        if given is not None and not valid:
            raise NoveltyError('message_id is not a printable text of at most '
                               f'{MAX_ID_CHARACTERS} characters')
        return ParsedTeaching(_action(message), None, message_id)
    except NoveltyError as error:
        return ParsedTeaching(None, Rejection(shown(text), str(error)), message_id)


def _action(message: dict[str, Any]) -> Action:
    actions = [key for key in _ACTIONS if key in message]
    if len(actions) != 1:
        _refuse(_FORM if not actions else f'it asks for {" and ".join(actions)} at once; {_FORM}')
    kind, = actions
    for key in message:
        if key != kind and key not in _WITH[kind]:
            _refuse(f'unknown key {shown(key)!r} beside {kind!r}; there may be '
                    f'{", ".join((*_WITH[kind], "message_id"))}')
    if kind == 'list':
        if message['list'] is not True:
            _refuse('list must be true')
        return ListClasses()
    name = _text(message, kind)
    if kind == 'forget':
        return Forget(name)
    if kind == 'rename':
        if 'to' not in message:
            _refuse('it does not say what the class is to be called: "to": "..."')
        return Rename(name, _text(message, 'to'))
    return _teach(name, message)


def _teach(name: str, message: dict[str, Any]) -> Teach:
    places = [key for key in _PLACES if key in message]
    if len(places) > 1:
        _refuse(f'say where by one of {", ".join(places)}')
    if not places and ('threshold' not in message or 'stamp' in message or 'camera' in message):
        _refuse('it does not say where: "pixel": [x, y], "box": [left, top, right, bottom] or '
                '"region": id')
    threshold = message.get('threshold')
    if threshold is not None:
        threshold = _number(threshold, 'threshold')
        if not -1.0 <= threshold <= 1.0:
            _refuse(f'threshold is a cosine, -1..1, not {threshold:g}')
    camera = _text(message, 'camera') if 'camera' in message else None
    return Teach(name, _place(message, places[0]) if places else None,
                 _stamp(message['stamp']) if 'stamp' in message else None, camera, threshold)


def _place(message: dict[str, Any], kind: str) -> Place:
    value = message[kind]
    if kind == 'region':
        if type(value) is not int or not 0 <= value < 1 << 31:
            _refuse(f'region is the id of an anomalous region, 0 or more, not {_short(value)}')
        return RegionNumber(value)
    count, make = (2, Pixel) if kind == 'pixel' else (4, Box)
    if not isinstance(value, list) or len(value) != count:
        _refuse(f'{kind} must be {count} numbers, '
                f'{"[x, y]" if count == 2 else "[left, top, right, bottom]"}, not {_short(value)}')
    return make(*(_number(entry, kind) for entry in value))


def _stamp(value: Any) -> int:
    if isinstance(value, dict):
        if set(value) != {'sec', 'nanosec'} or not all(
                type(part) is int and abs(part) <= 1 << 33 for part in value.values()):
            _refuse('stamp must be {"sec": ..., "nanosec": ...}, both integers, or seconds, not '
                    + _short(value))
        return 10 ** 9 * value['sec'] + value['nanosec']
    if not _is_number(value, 1 << 33):
        _refuse('stamp must be {"sec": ..., "nanosec": ...}, or seconds, not ' + _short(value))
    return round(Decimal(value) * 10 ** 9)


def _number(value: Any, key: str) -> float:
    if not _is_number(value, 10 ** 9):
        _refuse(f'{key} must be made of numbers, not {_short(value)}')
    return float(value)


def _is_number(value: Any, most: int) -> bool:
    if isinstance(value, Decimal) and not value.is_finite():
        return False
    return type(value) in (int, Decimal) and abs(value) <= most


def _text(message: dict[str, Any], key: str) -> str:
    if not isinstance(message[key], str):
        _refuse(f'{key} must be a text, not {_short(message[key])}')
    return message[key]


def _short(value: Any) -> str:
    if isinstance(value, Decimal):
        return shown(str(value))
    return shown(reprlib.repr(value))


def _refuse(reason: str) -> NoReturn:
    raise NoveltyError(reason)
