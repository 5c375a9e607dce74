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
Teaching a running robot: messages in, prepared prototypes out, by a thread of their own.

Frames never wait for a message: they take ``LiveTeaching.prepared``, which is replaced as a
whole. Each message counts, so they wait in a queue; of more than fit there the newest are left
out, and those who listen are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
import os
from pathlib import Path
import threading
import time
import traceback
from typing import Any, Optional

from owseg_ros.bundle import Bundle
from owseg_ros.errors import OwsegError, shown
from owseg_ros.language.queries import Rejection
from owseg_ros.novelty.arrays import NoveltyError
from owseg_ros.novelty.frames import MASK, RecentFrame, RecentFrames, seconds_text
from owseg_ros.novelty.match import prepare, PreparedPrototypes
from owseg_ros.novelty.messages import (
    Action, Forget, MAX_MESSAGE_CHARACTERS, parse_teaching, Rename, Teach)
from owseg_ros.novelty.metric_head import MetricHead, novelty_of
from owseg_ros.novelty.prototypes import PrototypeBook, PrototypeSet

UNCONFIGURED, READY, UNAVAILABLE = 'unconfigured', 'ready', 'unavailable'
NO_MODEL = 'no model is loaded: configure the node'

MAX_WAITING = 32
"""Messages that wait to be taken."""

PAUSE_SECONDS = 0.1
PAUSE_SHARE = 9.0
"""
While messages come faster than they are taken, the thread rests between two of them: for at
least PAUSE_SECONDS, and this many times as long as the last one took.
"""


@dataclass(frozen=True)
class TeachingSetup:
    """
    What is taught to.

    bundle: of the model. head: that embeds regions; None where the bundle has none. path: of the
    file that is loaded at the start and saved to, '' for none at the start and the file of
    default_path. threshold: of classes that have none of their own, None for the model's.
    all_masks: whether the network's masks are compared too.
    """

    bundle: Bundle
    head: Optional[MetricHead]
    path: str = ''
    threshold: Optional[float] = None
    all_masks: bool = False

    @property
    def file(self) -> Path:
        """Return where the taught classes are kept."""
        return expanded(self.path) if self.path else default_path(self.bundle)


def default_path(bundle: Bundle) -> Path:
    """Return where classes are saved that no path was named for, one file a model."""
    base = os.environ.get('XDG_DATA_HOME') or Path.home() / '.local' / 'share'
    return Path(base) / 'owseg_ros' / 'prototypes' / f'{bundle.name}.npz'


def expanded(path: str) -> Path:
    """Return a path with the folder of a user for a ~ at its start."""
    return Path(os.path.expanduser(path))


@dataclass(frozen=True)
class TaughtShot:
    """
    A shot that was taken.

    kind: ANOMALY or MASK of the region; box: x0, y0, x1, y1 in pixels of the camera image; area:
    in these. similar, cosine: the other class, known or taught, that it is most like; None where
    there is no other. warning: what may go wrong with it, ''.
    """

    name: str
    camera: str
    stamp: int
    kind: str
    box: tuple[int, int, int, int]
    area: int
    similar: Optional[str] = None
    cosine: Optional[float] = None
    warning: str = ''

    def to_dict(self) -> dict[str, Any]:
        """Return it for people and JSON."""
        sec, nanosec = divmod(self.stamp, 10 ** 9)
        return {'name': self.name, 'camera': self.camera,
                'stamp': {'sec': sec, 'nanosec': nanosec}, 'kind': self.kind,
                'box': list(self.box), 'area': self.area, 'similar': self.similar,
                'cosine': None if self.cosine is None else round(self.cosine, 4),
                'warning': self.warning}


@dataclass(frozen=True)
class TeachingState:
    """
    What is taught at a moment.

    state: unconfigured, ready or unavailable. error: why it is unavailable, or why the last
    message was not taken; file_error: why the file was not loaded or saved; both say what to do.
    version, classes, shots: of the live set. path: of the file; unsaved: whether the live set is
    not what was last saved or loaded.
    messages, dropped, answered: counts since the start; once none waits, the last two make up
    the first.
    """

    state: str = UNCONFIGURED
    error: str = ''
    file_error: str = ''
    version: int = 0
    classes: tuple[str, ...] = ()
    shots: int = 0
    path: str = ''
    unsaved: bool = False
    messages: int = 0
    dropped: int = 0
    answered: int = 0


@dataclass(frozen=True)
class TeachingAnswer:
    """
    What became of a message, a file or a change of the setup.

    accepted: names of the classes that were changed. prepared: the live set, None where there
    can be none. frames: what RecentFrames.stamps returned.
    """

    state: TeachingState
    prepared: Optional[PreparedPrototypes] = None
    accepted: tuple[str, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    shot: Optional[TaughtShot] = None
    message_id: Optional[str] = None
    frames: Optional[dict[str, tuple[int, int, int]]] = None

    def to_dict(self) -> dict[str, Any]:
        """Return what the topic teach/status says."""
        return {
            'version': self.state.version, 'message_id': self.message_id,
            'state': self.state.state, 'error': self.state.error,
            'accepted': list(self.accepted),
            'rejected': [{'entry': rejection.entry, 'reason': rejection.reason}
                         for rejection in self.rejected],
            'shot': None if self.shot is None else self.shot.to_dict(),
            'classes': class_table(self.prepared),
            'file': self.state.path, 'file_error': self.state.file_error,
            'unsaved': self.state.unsaved,
            'frames': [{'camera': camera, 'count': count, 'oldest': seconds_text(oldest),
                        'newest': seconds_text(newest)}
                       for camera, (count, oldest, newest) in (self.frames or {}).items()]}


def class_table(prepared: Optional[PreparedPrototypes]) -> list[dict[str, Any]]:
    """Return id, name, RGB colour, shots and threshold of each taught class."""
    return [] if prepared is None else [
        {'id': taught.id, 'name': taught.name, 'color': list(taught.color),
         'shots': len(taught.shots), 'threshold': round(float(threshold), 6)}
        for taught, threshold in zip(prepared.classes, prepared.thresholds)]


class LiveTeaching:
    """
    Takes messages with a setup that can be changed while it does; safe to use from any thread.

    answered: called with each TeachingAnswer, in the thread or in that of who changed something.
    live: called likewise when another set, or one with other thresholds, has become live, before
    the answer. failed: called with the traceback of an error that nobody foresaw; the thread
    goes on.
    """

    def __init__(self, answered: Callable[[TeachingAnswer], None],
                 live: Callable[[], None] = lambda: None,
                 failed: Callable[[str], None] = lambda text: None) -> None:
        self.frames = RecentFrames()
        self._answered = answered
        self._live = live
        self._failed = failed
        # Held while the set changes and is told about, so that what is told last is what is live.
        self._changing = threading.RLock()
        self._waiting = threading.Condition()
        self._jobs: deque[tuple[Callable[..., None], Any]] = deque()
        self._messages = 0
        self._setup: Optional[TeachingSetup] = None
        self._book: Optional[PrototypeBook] = None
        self._prepared: Optional[PreparedPrototypes] = None
        self._prepared_for: Optional[tuple[PrototypeSet, Optional[float], bool]] = None
        self._state = TeachingState()
        # The version of the set that is in the file; and the file that could not be loaded.
        self._kept: Optional[int] = None
        self._foreign: Optional[Path] = None
        self._told_dropped = 0
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name='teaching', daemon=True)

    @property
    def prepared(self) -> Optional[PreparedPrototypes]:
        """Return the live set, None where there can be none; never waits."""
        return self._prepared

    @property
    def state(self) -> TeachingState:
        """Return what is taught now."""
        with self._waiting:
            return self._state

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout: float = 10.0) -> bool:
        """
        End the thread after what it does now; False when it did not end in time.

        Nothing is told from then on.
        """
        with self._waiting:
            self._stopped = True
            self._waiting.notify_all()
        if self._thread is not threading.current_thread() and self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def configure(self, setup: TeachingSetup) -> None:
        """Begin anew with a model, and with the classes of the file where there is one."""
        with self._changing:
            self._forget_setup()
            self._setup = setup
            try:
                self._book = PrototypeBook(setup.bundle, self._state.version + 1)
            except OwsegError as problem:
                self._note(state=UNAVAILABLE, file_error='', path='')
                self._follow(str(problem))
                return
            error = ''
            if setup.path and not os.path.exists(setup.file):
                error = (f'{setup.file} is not there, so nothing is taught yet; save_prototypes '
                         'writes it')
            elif setup.path:
                error = self._load_or_why_not()
            self._note(state=READY, path=str(setup.file), file_error=error)
            self._follow('')

    def release(self) -> None:
        """Forget the setup, the classes and the frames."""
        with self._changing:
            self._forget_setup()
            self._note(state=UNCONFIGURED, path='', file_error='')
            self._follow('')

    def adjust(self, **changes: Any) -> None:
        """Change threshold or all_masks; the live classes are prepared again."""
        with self._changing:
            if self._setup is not None:
                self._setup = replace(self._setup, **changes)
                self._follow(self._state.error)

    def problem(self, path: str) -> str:
        """Return why a file cannot be loaded now, or ''; without a model none is looked at."""
        with self._changing:
            setup, book = self._setup, self._book
        if setup is None or not path:
            return ''
        try:
            novelty_of(setup.bundle)
            book.check(expanded(path))
        except OwsegError as error:
            return str(error)
        return ''

    def use(self, path: str) -> None:
        """
        Load a file and save to it from now on; '' leaves the classes, for the default file.

        A file that cannot be loaded is told about, and the classes stay.
        """
        with self._changing:
            if self._setup is None:
                return
            self._setup = replace(self._setup, path=path)
            if self._book is not None:
                self._kept = None
                error = self._load_or_why_not() if path else ''
                self._note(path=str(self._setup.file), file_error=error)
            self._follow(self._state.error)

    def say(self, message: str) -> None:
        """Take a message (messages.parse_teaching); never waits."""
        with self._waiting:
            full = self._messages >= MAX_WAITING
            self._state = replace(self._state, messages=self._state.messages + 1,
                                  dropped=self._state.dropped + full)
            if not full:
                self._messages += 1
                # Longer ones are refused; what waits must not grow with them.
                self._jobs.append((self._take, message[:MAX_MESSAGE_CHARACTERS + 1]))
                self._waiting.notify_all()

    def save(self, done: Callable[[bool, str], None]) -> None:
        """Write the live set to the file; done gets whether it was, and a line about it."""
        self._enqueue(self._do_save, done)

    def reload(self, done: Callable[[bool, str], None]) -> None:
        """Replace the live set by that of the file; done: as for save."""
        self._enqueue(self._do_load, done)

    def _enqueue(self, act: Callable[..., None], done: Callable[[bool, str], None]) -> None:
        with self._waiting:
            self._jobs.append((act, done))
            self._waiting.notify_all()

    # The set, while _changing is held

    def _forget_setup(self) -> None:
        self._setup, self._book, self._kept, self._foreign = None, None, None, None
        self.frames.clear()

    def _load(self, path: Path) -> PrototypeSet:
        try:
            found = self._book.load(path)
        except OwsegError:
            self._foreign = path
            raise
        self._kept, self._foreign = found.version, None
        return found

    def _load_or_why_not(self) -> str:
        try:
            self._load(self._setup.file)
        except OwsegError as problem:
            return str(problem)
        return ''

    def _follow(self, error: str, **told: Any) -> None:
        """Make the book's set live, and tell what has become of whatever was asked."""
        setup, before = self._setup, self._prepared
        if self._book is None:
            self._prepared = self._prepared_for = None
            self._note(error=error, classes=(), shots=0, unsaved=False)
        else:
            active = self._book.active
            wanted = active, setup.threshold, setup.all_masks
            if self._prepared_for != wanted:
                self._prepared = prepare(active, setup.bundle, setup.threshold, setup.all_masks)
                self._prepared_for = wanted
            self._note(
                error=error, version=active.version, classes=active.names,
                shots=sum(len(taught.shots) for taught in active.classes),
                unsaved=self._kept != active.version and (
                    bool(active.classes) or self._kept is not None))
        if self._stopped:
            return
        if self._prepared is not before:
            self._live()
        self._answered(TeachingAnswer(
            self.state, self._prepared, frames=self.frames.stamps(), **told))

    def _note(self, **changes: Any) -> None:
        with self._waiting:
            self._state = replace(self._state, **changes)

    # The thread

    def _run(self) -> None:
        while True:
            with self._waiting:
                self._waiting.wait_for(lambda: self._stopped or self._jobs)
                if self._stopped:
                    return
                act, argument = self._jobs.popleft()
                dropped = self._state.dropped
            start = time.monotonic()
            try:
                act(argument)
                self._tell_dropped()
            except Exception:
                self._failed(traceback.format_exc())
            rest = max(PAUSE_SECONDS, PAUSE_SHARE * (time.monotonic() - start))
            with self._waiting:
                if self._state.dropped > dropped:
                    self._waiting.wait_for(lambda: self._stopped, rest)

    def _take(self, message: str) -> None:
        with self._waiting:
            self._messages -= 1
        parsed = parse_teaching(message)
        told: dict[str, Any] = {'message_id': parsed.message_id}
        error, rejected = '', parsed.rejected
        with self._changing:
            try:
                if rejected is None:
                    told |= self._act(parsed.action)
            except Exception as problem:
                error = str(problem)
                if not isinstance(problem, OwsegError):
                    error = f'{type(problem).__name__}: {error}'
                    self._failed(traceback.format_exc())
                rejected = Rejection(shown(parsed.action.name), error)
            if rejected is not None:
                told['rejected'], error = (rejected,), rejected.reason
            if self._book is None and self._setup is not None:
                # It lasts, whatever a message was about.
                error = self._state.error
            self._note(answered=self._state.answered + 1)
            self._follow(error, **told)

    def _tell_dropped(self) -> None:
        with self._changing:
            state = self.state
            if state.dropped > self._told_dropped:
                reason = (f'{state.dropped - self._told_dropped} messages came faster than they '
                          'could be taken and were left out')
                self._told_dropped = state.dropped
                self._follow(state.error if self._book is None else reason,
                             rejected=(Rejection('', reason),))

    def _act(self, action: Action) -> dict[str, Any]:
        """Do what a message asks for and return what to tell; raise OwsegError."""
        if self._setup is None:
            raise NoveltyError(NO_MODEL)
        novelty_of(self._setup.bundle)
        if isinstance(action, Teach):
            return self._teach(action)
        if isinstance(action, Forget):
            before = self._book.active.names
            after = self._book.forget(action.name).names
            return {'accepted': tuple(name for name in before if name not in after)}
        if isinstance(action, Rename):
            before = self._book.active.names
            after = self._book.rename(action.name, action.to).names
            return {'accepted': tuple(name for name in after if name not in before)}
        return {}

    def _teach(self, action: Teach) -> dict[str, Any]:
        if action.place is None:
            changed = self._book.set_threshold(action.name, action.threshold)
            return {'accepted': (_changed(self._prepared.prototypes, changed),)}
        seen = self.frames.find(action.camera, action.stamp)
        region, kind = seen.frame.pick(action.place)
        embedding = self._setup.head.embed(seen.frame.features(region))[0]
        changed = self._book.add_shot(
            action.name, embedding, stamp=1e-9 * seen.stamp, source=_source(seen, kind))
        name = _changed(self._prepared.prototypes, changed)
        if action.threshold is not None:
            self._book.set_threshold(name, action.threshold)
        height, width = seen.frame.size
        scale = seen.frame.image_size[0] * seen.frame.image_size[1] / (height * width)
        shot = TaughtShot(name, seen.camera, seen.stamp, kind, seen.frame.image_box(region),
                          round(region.area * scale))
        return {'accepted': (name,), 'shot': self._judged(shot, embedding)}

    def _judged(self, shot: TaughtShot, embedding: Any) -> TaughtShot:
        """Return a shot with what it is like and what may go wrong with it."""
        head, bundle, active = self._setup.head, self._setup.bundle, self._book.active
        likeness = dict(zip((bundle.class_names[number] for number in head.known_ids),
                            (head.known @ embedding).tolist()))
        likeness.update((taught.name, float(row @ embedding)) for taught, row in zip(
            active.classes, active.prototypes) if taught.name != shot.name)
        if likeness:
            similar = max(likeness, key=likeness.get)
            shot = replace(shot, similar=similar, cosine=likeness[similar])
        threshold = prepare(active, bundle, self._setup.threshold).thresholds[
            active.names.index(shot.name)]
        warnings = []
        if shot.kind == MASK and not self._setup.all_masks:
            warnings.append('it is no anomaly here, and only anomalies are compared: set '
                            'prototype_all_masks to find it everywhere')
        if likeness and shot.cosine >= threshold:
            warnings.append(f'it looks like {shot.similar} (cosine {shot.cosine:.2f}), so the '
                            'two may be taken for each other')
        return replace(shot, warning='; '.join(warnings))

    def _do_save(self, done: Callable[[bool, str], None]) -> None:
        with self._changing:
            setup, book, foreign = self._setup, self._book, self._foreign
        try:
            if setup is None:
                raise NoveltyError(NO_MODEL)
            novelty_of(setup.bundle)
            path = setup.file
            if path == foreign and os.path.exists(path):
                raise NoveltyError(f'{path} is not overwritten, because it holds what could not '
                                   'be loaded: set the parameter prototypes to a file that can, '
                                   'or move that one away')
            # Without the lock: a disk may take its time.
            saved = book.save(path)
        except OwsegError as problem:
            self._tell_file(str(problem), done)
            return
        with self._changing:
            if book is self._book and path == self._setup.file:
                self._kept, self._foreign = saved.version, None
                self._note(file_error='')
            self._follow(self._state.error)
        done(True, f'{_counted(saved)} saved to {path}')

    def _do_load(self, done: Callable[[bool, str], None]) -> None:
        try:
            with self._changing:
                if self._setup is None:
                    raise NoveltyError(NO_MODEL)
                novelty_of(self._setup.bundle)
                path = self._setup.file
                loaded = self._load(path)
                self._note(file_error='')
                self._follow(self._state.error)
        except OwsegError as problem:
            self._tell_file(str(problem), done)
            return
        done(True, f'{_counted(loaded)} loaded from {path}')

    def _tell_file(self, problem: str, done: Callable[[bool, str], None]) -> None:
        with self._changing:
            if self._book is not None:
                self._note(file_error=problem)
                self._follow(self._state.error)
        done(False, problem)


def _changed(before: PrototypeSet, after: PrototypeSet) -> str:
    """Return the name of the class that a change was about."""
    old = {taught.name: taught for taught in before.classes}
    return next(taught.name for taught in after.classes if old.get(taught.name) is not taught)


def _source(seen: RecentFrame, kind: str) -> str:
    camera = f' of {seen.camera}' if seen.camera else ''
    return f'{kind} in the frame {seconds_text(seen.stamp)}{camera}'


def _counted(active: PrototypeSet) -> str:
    shots = sum(len(taught.shots) for taught in active.classes)
    names = ', '.join(active.names)
    return (f'{len(active.classes)} {"class" if len(active.classes) == 1 else "classes"}'
            f'{f" ({names})" if names else ""} of {shots} {"shot" if shots == 1 else "shots"}')
