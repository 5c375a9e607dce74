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
The book of taught classes: their shots, their prototypes, and the file that keeps them.

The prototype of a class is the mean of the embeddings of its shots (RAML, equation 10), made unit
length. A book belongs to the network and metric head that made the embeddings; its file names
both and is refused by any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
import errno
import io
import math
import os
import threading
from typing import Any, NoReturn, Optional

import numpy as np
from owseg_ros.bundle import Bundle, UNKNOWN_ID
from owseg_ros.errors import shown
from owseg_ros.language.files import write_atomically
from owseg_ros.language.naming import UNKNOWN
from owseg_ros.language.text import normalise_text, TextError
from owseg_ros.novelty.arrays import NoveltyError, read_arrays
from owseg_ros.novelty.metric_head import novelty_of

SCHEMA = 'owseg_ros/prototypes'
SCHEMA_VERSION = 1
MAX_SHOTS = 256
MAX_SOURCE = 256
RESERVED = frozenset({UNKNOWN, 'unknown object', 'unlabelled', 'unlabeled'})
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_TOLERANCE = 1e-2
_SMALLEST_MEAN = 1e-3


@dataclass(frozen=True)
class MetricSpace:
    """
    Where embeddings come from: two of different spaces cannot be compared.

    network_sha256, metric_head_sha256: of the files of the bundle; dim: D.
    """

    network_sha256: str
    metric_head_sha256: str
    dim: int

    @classmethod
    def of(cls, bundle: Bundle) -> MetricSpace:
        """Return the space of a bundle; raise NoveltyError where it has no metric head."""
        novelty = novelty_of(bundle)
        return cls(bundle.network_sha256, novelty.metric_head_sha256, novelty.dim)


@dataclass(frozen=True, eq=False)
class Shot:
    """
    One example: embedding, float32 [D] of unit length, read-only.

    stamp: of its frame, in seconds, None where it has none; source: where it is from, for people.
    """

    embedding: np.ndarray
    stamp: Optional[float] = None
    source: str = ''


@dataclass(frozen=True, eq=False)
class TaughtClass:
    """
    A taught class; its id in semantic maps stays the same until it is forgotten.

    color: RGB, 0..255; threshold: least cosine of a match, None where the default holds.
    """

    id: int  # noqa: A003
    name: str
    color: tuple[int, int, int]
    threshold: Optional[float]
    shots: tuple[Shot, ...]


@dataclass(frozen=True, eq=False)
class PrototypeSet:
    """
    What is taught at a moment; nothing in it changes.

    version: rises with every set of a book; it starts with an empty one. classes: M of them, by
    rising id. prototypes: float32 [M, D] of unit length, read-only.
    """

    version: int
    space: MetricSpace
    classes: tuple[TaughtClass, ...]
    prototypes: np.ndarray

    @property
    def names(self) -> tuple[str, ...]:
        """Return the name of each class."""
        return tuple(taught.name for taught in self.classes)

    def to_bytes(self) -> bytes:
        """Return the npz file of the set; see PrototypeBook.load."""
        shots = [shot for taught in self.classes for shot in taught.shots]
        stream = io.BytesIO()
        np.savez(
            stream, schema=np.array(SCHEMA), schema_version=np.array(SCHEMA_VERSION, np.int64),
            network_sha256=np.array(self.space.network_sha256),
            metric_head_sha256=np.array(self.space.metric_head_sha256),
            ids=np.array([taught.id for taught in self.classes], np.int64),
            names=np.array(self.names, np.str_),
            colors=np.array([taught.color for taught in self.classes], np.uint8).reshape(-1, 3),
            thresholds=_optional([taught.threshold for taught in self.classes]),
            shot_counts=np.array([len(taught.shots) for taught in self.classes], np.int64),
            shots=np.array([shot.embedding for shot in shots],
                           np.float32).reshape(-1, self.space.dim),
            stamps=_optional([shot.stamp for shot in shots]),
            sources=np.array([shot.source for shot in shots], np.str_))
        return stream.getvalue()


class PrototypeBook:
    """
    Holds the taught classes of a bundle; safe to use from several threads.

    Taught classes take the lowest free ids after those of the bundle, up to 253. Names are
    compared as language.text.normalise_text writes them. Every change makes a new set; a change
    that fails leaves the set as it was. version: of the empty set that the book starts with.
    Raises NoveltyError where the bundle has no metric head.
    """

    def __init__(self, bundle: Bundle, version: int = 0):
        self.space = MetricSpace.of(bundle)
        self._bundle_name = bundle.name
        self._known = {_comparable(name) for name in bundle.class_names}
        self._ids = range(bundle.num_classes, UNKNOWN_ID)
        self._palette = bundle.palette()
        self._lock = threading.Lock()
        self._active = self._build(version, ())

    @property
    def active(self) -> PrototypeSet:
        """Return the live set; never waits."""
        return self._active

    def add_shot(self, name: str, embedding: np.ndarray, *, stamp: Optional[float] = None,
                 source: str = '') -> PrototypeSet:
        """
        Add an example to a class, which is made where there is none; return the new set.

        embedding: float [D] of unit length, from MetricHead.embed; stamp, source: see Shot.
        Raises NoveltyError: the name cannot be taken, there is no room for another class or
        shot, or the embedding is not one of this space or cancels out with the others.
        """
        name = self._name(name)
        shot = self._shot(embedding, stamp, source)

        def change(classes: dict[str, TaughtClass]) -> None:
            taught = classes.get(name)
            if taught is None:
                taken = {other.id for other in classes.values()}
                free = next((number for number in self._ids if number not in taken), None)
                if free is None:
                    raise NoveltyError(f'{name!r} cannot be taught: all {len(self._ids)} ids of '
                                       'taught classes are taken; forget one')
                taught = TaughtClass(free, name, self._color(free), None, ())
            if len(taught.shots) >= MAX_SHOTS:
                raise NoveltyError(f'{name!r} has {MAX_SHOTS} shots already, which is the most; '
                                   'forget the class to teach it anew')
            classes[name] = replace(taught, shots=(*taught.shots, shot))

        return self._change(change)

    def set_threshold(self, name: str, threshold: Optional[float]) -> PrototypeSet:
        """
        Set the least cosine of a class, -1..1, None for the default; return the new set.

        Raises NoveltyError: there is no such class, or the number is out of range.
        """
        _check_threshold(threshold)

        def change(classes: dict[str, TaughtClass]) -> None:
            taught = self._find(classes, name)
            classes[taught.name] = replace(taught, threshold=threshold)

        return self._change(change)

    def set_color(self, name: str, color: Iterable[int]) -> PrototypeSet:
        """
        Set the colour of a class, RGB 0..255; return the new set.

        Raises NoveltyError: there is no such class, or it is no colour.
        """
        chosen = tuple(color)
        if len(chosen) != 3 or not all(
                type(value) is int and 0 <= value <= 255 for value in chosen):
            raise NoveltyError(f'{chosen!r} is no colour: give three integers 0..255')

        def change(classes: dict[str, TaughtClass]) -> None:
            taught = self._find(classes, name)
            classes[taught.name] = replace(taught, color=chosen)

        return self._change(change)

    def forget(self, name: str) -> PrototypeSet:
        """Remove a class and return the new set; raise NoveltyError where there is none."""
        return self._change(lambda classes: classes.pop(self._find(classes, name).name))

    def rename(self, old: str, new: str) -> PrototypeSet:
        """
        Give a class another name and return the new set; id, colour and shots stay.

        Raises NoveltyError: there is no such class, or the new name cannot be taken.
        """
        new = self._name(new)

        def change(classes: dict[str, TaughtClass]) -> None:
            taught = self._find(classes, old)
            if new in classes and new != taught.name:
                raise NoveltyError(f'{taught.name!r} cannot be renamed: there is a taught class '
                                   f'{new!r} already; forget it first')
            classes[new] = replace(classes.pop(taught.name), name=new)

        return self._change(change)

    def clear(self) -> PrototypeSet:
        """Forget every class; return the new, empty set."""
        return self._change(lambda classes: classes.clear())

    def save(self, path: str | os.PathLike) -> PrototypeSet:
        """
        Write the live set to an npz file, whole or not at all; return what was written.

        Raises NoveltyError where it cannot be written; a file that was there is as it was.
        """
        active = self.active
        try:
            write_atomically(path, active.to_bytes())
        except (OSError, ValueError) as error:
            full = getattr(error, 'errno', None) in _FULL
            raise NoveltyError(
                f'{path}: cannot be written: {error}; '
                f'{"make room, or " if full else ""}save to another file (the parameter '
                'prototypes names it); one that was there is as it was') from error
        return active

    def check(self, path: str | os.PathLike) -> None:
        """Raise NoveltyError where a file could not be loaded; see load."""
        self._build(0, self._read(path))

    def load(self, path: str | os.PathLike) -> PrototypeSet:
        """
        Replace the live set by that of a file; return the new set.

        Raises NoveltyError: it cannot be read, is no prototypes file that this release reads, was
        made with another network or metric head, or does not make sense. The set is then as it
        was.
        """
        classes = self._read(path)
        with self._lock:
            self._active = self._build(self._active.version + 1, classes)
            return self._active

    def _change(self, change: Callable[[dict[str, TaughtClass]], Any]) -> PrototypeSet:
        with self._lock:
            classes = {taught.name: taught for taught in self._active.classes}
            change(classes)
            self._active = self._build(self._active.version + 1, classes.values())
            return self._active

    def _build(self, version: int, classes: Iterable[TaughtClass]) -> PrototypeSet:
        classes = tuple(sorted(classes, key=lambda taught: taught.id))
        prototypes = np.empty((len(classes), self.space.dim), np.float32)
        for row, taught in zip(prototypes, classes):
            mean = np.mean([shot.embedding for shot in taught.shots], axis=0)
            length = float(np.linalg.norm(mean))
            if length < _SMALLEST_MEAN:
                raise NoveltyError(f'the shots of {taught.name!r} cancel out: they show different '
                                   'things; teach them as classes of their own')
            row[...] = mean / length
        prototypes.setflags(write=False)
        return PrototypeSet(version, self.space, classes, prototypes)

    def _color(self, number: int) -> tuple[int, int, int]:
        return tuple(self._palette[number].tolist())

    def _name(self, name: str) -> str:
        try:
            found = normalise_text(name)
        except TextError as error:
            raise NoveltyError(f'{shown(name)!r} is no name of a class: {error}') from error
        if found in self._known:
            raise NoveltyError(f'{found!r} is a class that {self._bundle_name} knows already; '
                               'teach another name')
        if found in RESERVED:
            raise NoveltyError(f'{found!r} is what no class is called; teach another name')
        return found

    def _find(self, classes: dict[str, TaughtClass], name: str) -> TaughtClass:
        taught = classes.get(_comparable(name))
        if taught is None:
            raise NoveltyError(f'no taught class is called {shown(name)!r}; there are '
                               f'{", ".join(classes) or "none"}')
        return taught

    def _shot(self, embedding: np.ndarray, stamp: Optional[float], source: str) -> Shot:
        row = np.array(embedding, np.float32)
        if row.shape != (self.space.dim,):
            raise NoveltyError(f'expected an embedding [{self.space.dim}], not '
                               f'{list(row.shape)}; make it with the metric head of '
                               f'{self._bundle_name}')
        length = float(np.linalg.norm(row))
        if not abs(length - 1.0) < _TOLERANCE:
            raise NoveltyError(f'the embedding has length {length:g} and not 1; make it with the '
                               f'metric head of {self._bundle_name}')
        if stamp is not None and not math.isfinite(stamp):
            raise NoveltyError(f'the stamp of a shot must be a finite number, not {stamp}')
        row.setflags(write=False)
        return Shot(row, stamp, ''.join(c for c in source if c.isprintable())[:MAX_SOURCE])

    def _read(self, path: str | os.PathLike) -> list[TaughtClass]:
        """Return the classes of a file after checking everything about it."""
        most = len(self._ids) * MAX_SHOTS * (4 * self.space.dim + 4 * MAX_SOURCE + 64)
        content = _Content(path, read_arrays(path, most))
        content.check_identity(self.space, self._bundle_name)
        ids = content.array('ids', np.int64, (None,))
        count = len(ids)
        names = content.array('names', np.str_, (count,)).tolist()
        colors = content.array('colors', np.uint8, (count, 3)).tolist()
        thresholds = content.optional('thresholds', count)
        counts = content.array('shot_counts', np.int64, (count,))
        rows = content.array('shots', np.float32, (None, self.space.dim))
        stamps = content.optional('stamps', len(rows))
        sources = content.array('sources', np.str_, (len(rows),)).tolist()
        if (counts < 1).any() or (counts > MAX_SHOTS).any() or counts.sum() != len(rows):
            content.refuse(f'shot_counts do not add up to the {len(rows)} shots, 1 to '
                           f'{MAX_SHOTS} a class')
        if len(set(ids.tolist())) != count or any(int(i) not in self._ids for i in ids):
            content.refuse(f'ids must be different, from {self._ids[0] if self._ids else 254} to '
                           f'{UNKNOWN_ID - 1}')
        try:
            shots = [self._shot(*entry) for entry in zip(rows, stamps, sources)]
            names = [self._name(name) for name in names]
            for threshold in thresholds:
                _check_threshold(threshold)
        except NoveltyError as error:
            raise NoveltyError(f'{path}: {error}') from error
        if len(set(names)) != count:
            content.refuse('two classes have the same name')
        starts = np.cumsum(counts) - counts
        return [TaughtClass(int(number), name, tuple(color), threshold,
                            tuple(shots[start:start + length]))
                for number, name, color, threshold, start, length in zip(
                    ids, names, colors, thresholds, starts, counts)]


class _Content:
    """The arrays of a prototypes file, each checked when it is taken."""

    def __init__(self, path: str | os.PathLike, arrays: dict[str, np.ndarray]):
        self._path = path
        self._arrays = arrays

    def refuse(self, problem: str) -> NoReturn:
        raise NoveltyError(f'{self._path}: {problem}; it is damaged or was not written by '
                           'owseg_ros: save or build it again')

    def array(self, key: str, kind: type, shape: tuple[Optional[int], ...]) -> np.ndarray:
        found = self._arrays.get(key)
        if found is None or not np.issubdtype(found.dtype, kind) or len(found.shape) != len(
                shape) or any(b not in (None, a) for a, b in zip(found.shape, shape)):
            self.refuse(f'{key!r} is missing or no {kind.__name__} array of the right shape')
        return found

    def optional(self, key: str, count: int) -> list[Optional[float]]:
        """Return numbers, None where the file has NaN."""
        return [None if math.isnan(value) else value
                for value in self.array(key, np.float64, (count,)).tolist()]

    def check_identity(self, space: MetricSpace, bundle_name: str) -> None:
        if self._text('schema') != SCHEMA:
            raise NoveltyError(f'{self._path}: is no prototypes file; build one with owseg-train '
                               'prototypes, or save what the node was taught')
        version = int(self.array('schema_version', np.int64, ()))
        if version != SCHEMA_VERSION:
            raise NoveltyError(f'{self._path}: schema_version {version} is not known to this '
                               f'release, which reads {SCHEMA_VERSION}; update owseg_ros or build '
                               'the file again')
        for key, what in (('network_sha256', 'network'), ('metric_head_sha256', 'metric head')):
            made_with, wanted = self._text(key), getattr(space, key)
            if made_with != wanted:
                raise NoveltyError(
                    f'{self._path}: was made with another {what} (sha256 {made_with[:12]}...) '
                    f'than that of {bundle_name} ({wanted[:12]}...), so its prototypes mean '
                    'nothing here: load the model that it was made with, or teach again')

    def _text(self, key: str) -> str:
        found = self._arrays.get(key)
        return str(found) if found is not None and found.shape == () else ''


def _optional(values: list[Optional[float]]) -> np.ndarray:
    """Return float64, NaN where a value is None."""
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _comparable(name: str) -> str:
    """Return a name as it is compared; one that cannot be a name stays, and equals none."""
    try:
        return normalise_text(name)
    except TextError:
        return name


def _check_threshold(threshold: Optional[float]) -> None:
    if threshold is not None and not -1.0 <= threshold <= 1.0:
        raise NoveltyError(f'a threshold is a cosine, -1..1, not {threshold}')
