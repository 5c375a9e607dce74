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
The demo: real nodes over real DDS on a camera, watched by a process that only knows ROS.

`run_demo` starts camera and perception as a process of their own in a private ROS domain, types
queries in words, records what they publish, and leaves a video, a contact sheet and a report.  On
the procedural street it also teaches one of the things on the road by example, and the report
compares the results with the ground truth.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
import json
import math
import os
from pathlib import Path
import queue
import subprocess
import sys
import threading
import time
from typing import Any
import zlib

import numpy as np
from owseg_ros import render
from owseg_ros.bundle import Bundle, default_bundle_path, load_bundle
from owseg_ros.demo_queries import DemoQueries, why_no_queries
from owseg_ros.demo_teaching import DemoTeaching, why_no_teaching
from owseg_ros.errors import OwsegError
from owseg_ros.machine import machine, versions
from owseg_ros.pictures import (
    FrameComposer, legend_of, panel_size, PANELS, panels, query_legend, QUERY_PANELS, QueryPicture,
    VideoWriter)
from owseg_ros.processes import end_process, private_domain
from owseg_ros.scene import StreetScene
from owseg_ros.source import open_source
from owseg_ros.street_score import StreetScore

START_SECONDS = 90.0
QUIET_SECONDS = 30.0
SAMPLES = 48
SHEET_ROWS = 5
CELL_WIDTH = 360
QUERIES = ('automobile, traffic cone', 'greenery, footpath')
PACKAGES = ('numpy', 'onnxruntime', 'opencv-python-headless', 'rclpy', 'sensor-msgs')


class DemoError(OwsegError):
    """The demo did not do what it should; the message says what happened and where to look."""


@dataclass(frozen=True)
class DemoOptions:
    """
    What to show.

    source: as for owseg_ros.source.open_source; out: folder of the results; model: folder of a
    bundle, None for the default; seconds: how long to record at most; size: (width, height) of
    the procedural street; rate: frames a second of the camera, 0 for that of the source (the
    street: what two cores can render and segment); domain: ROS domain, None for a private one;
    queries: messages that are typed on the topic `query`, spread over the recording. teach:
    whether one thing on the street is taught by a message on the topic `teach`.
    """

    source: str = 'scene'
    out: Path = Path('out')
    model: Path | None = None
    seconds: float = 20.0
    size: tuple[int, int] = (640, 480)
    rate: float = 0.0
    domain: int | None = None
    queries: tuple[str, ...] = QUERIES
    teach: bool = True


STREET_RATE = 10.0


@dataclass
class Sample:
    """A frame that is kept for the contact sheet and the comparison with the ground truth."""

    seconds: float
    image: np.ndarray
    semantic: np.ndarray
    score: np.ndarray
    mask: np.ndarray
    queries: tuple[str, ...] = ()
    query_picture: QueryPicture | None = None
    taught: float = 0.0
    names: tuple = ()
    index: int | None = None
    hazard_kind: str = ''
    hazard_pixels: int = 0


@dataclass
class Recording:
    """
    What was received: counts, ages and samples, bounded in memory.

    waited: seconds from the start of the nodes to the first frame; first, last: stamps of frames,
    in seconds; ages: in ms, by topic.
    """

    waited: float = 0.0
    first: float = 0.0
    last: float = 0.0
    frames: int = 0
    skipped_pictures: int = 0
    ages: dict[str, list[float]] = field(default_factory=dict)
    samples: list[Sample] = field(default_factory=list)


class _Film(threading.Thread):
    """Draws and writes the video beside the recording; frames that it cannot keep up with go."""

    def __init__(self, path: Path, fps: float) -> None:
        super().__init__(name='film', daemon=True)
        self.path, self.fps = path, fps
        self.composer: FrameComposer | None = None
        self.writer: VideoWriter | None = None
        self.error: Exception | None = None
        self.skipped = 0
        self._queue: queue.Queue = queue.Queue(maxsize=6)

    def offer(self, arrays: dict[str, np.ndarray], title: str,
              queries: QueryPicture | None, names: list) -> None:
        try:
            self._queue.put_nowait((arrays, title, queries, names))
        except queue.Full:
            self.skipped += 1

    def finish(self) -> None:
        self._queue.put(None)
        self.join()
        if self.error is not None:
            raise self.error

    def run(self) -> None:
        while (item := self._queue.get()) is not None:
            # What comes after an error is taken and dropped, or finish would wait for room.
            if self.error is None:
                self._attempt(self._write, *item)
        if self.writer is not None:
            self._attempt(self.writer.close)

    def _attempt(self, act: Callable[..., None], *arguments: Any) -> None:
        try:
            act(*arguments)
        except Exception as error:
            self.error = self.error or error

    def _write(self, arrays: dict[str, np.ndarray], title: str,
               queries: QueryPicture | None, names: list) -> None:
        picture = self.composer.compose(
            arrays['image'], arrays['semantic/mask'], arrays['anomaly/score'],
            arrays['anomaly/mask'], title, queries=queries, names=names)
        if self.writer is None:
            self.writer = VideoWriter(self.path, self.fps, self.composer.size)
        self.writer.write(picture)


def run_demo(options: DemoOptions, say: Callable[[str], None] = print,
             progress: Callable[[float, str], None] = lambda share, text: None) -> dict[str, Any]:
    """
    Run the demo and return its report, which is also out/report.json.

    say: told what happens, a line at a time; progress: told the share that is done (0..1) and a
    line with the rates.
    Raises DemoError when the nodes die or publish nothing, and the errors of the bundle, the
    source and the video.
    """
    plan = _plan(options)
    private_domain(options.domain)
    try:
        from owseg_ros.nodes import recorder as recording_node
        from owseg_ros.nodes import transport
    except ImportError as error:
        raise DemoError(f'rclpy or a message package is missing ({error}); source a ROS 2 '
                        'installation, or install the wheels: pip install "owseg_ros[ros]"'
                        ) from error
    options.out.mkdir(parents=True, exist_ok=True)
    dds = transport.prepare()
    say(f'model {plan.bundle.name} {plan.bundle.version}, source {options.source}, ROS domain '
        f'{os.environ["ROS_DOMAIN_ID"]}')
    log_path = options.out / 'nodes.log'
    with log_path.open('wb') as log:
        started: list[subprocess.Popen] = []

        def start() -> subprocess.Popen:
            started.append(subprocess.Popen(_command(plan), stdout=log, stderr=log))
            return started[0]
        try:
            recording, recorder = _record(plan, start, log_path, progress, recording_node)
        finally:
            for nodes in started:
                end_process(nodes)
    say(f'{recording.frames} frames recorded; comparing and drawing')
    truth = None
    if plan.scene is not None:
        truth = _compare_with_street(plan.scene, plan.fps, recording, plan.bundle)
    _write_sheet(options.out / 'contact_sheet.png', plan, recording)
    report = _report(plan, recording, recorder, str(dds), truth)
    (options.out / 'report.json').write_text(json.dumps(report, indent=2) + '\n')
    return report


@dataclass(frozen=True)
class _Plan:
    """
    What is shown, and on what.

    fps: frames a second of the camera; scene: the procedural street, None for another source;
    queries, teaching: what is done meanwhile, None where it is not, and no_queries, no_teaching
    why.
    """

    options: DemoOptions
    bundle: Bundle
    fps: float
    scene: StreetScene | None
    queries: DemoQueries | None
    no_queries: str
    teaching: DemoTeaching | None
    no_teaching: str


def _plan(options: DemoOptions) -> _Plan:
    """Return what the options come to, before anything starts; raises as _check_source."""
    bundle = load_bundle(options.model or default_bundle_path())
    fps, seconds = _check_source(options)
    no_queries = why_no_queries(bundle, options.queries)
    queries = None if no_queries else DemoQueries(options.queries, seconds)
    scene = _street(options, fps) if options.source.startswith('scene') else None
    no_teaching = why_no_teaching(bundle, scene is not None, options.teach)
    teaching = None if no_teaching else DemoTeaching(scene, bundle, seconds)
    return _Plan(options, bundle, fps, scene, queries, no_queries, teaching, no_teaching)


def _check_source(options: DemoOptions) -> tuple[float, float]:
    """
    Return frames a second and how many seconds there will be.

    The source is opened once, so that a wrong one is refused before anything starts.
    Raises DemoError for seconds, a rate or a size that cannot be.
    """
    if not 0 < options.seconds < math.inf:
        raise DemoError(f'there must be some seconds to record, not {options.seconds:g}')
    if not 0 <= options.rate < math.inf:
        raise DemoError(f'the rate must be 0 (that of the source) or more, not {options.rate:g}')
    if not all(options.size):
        raise DemoError('a picture of {}x{} pixels cannot be rendered'.format(*options.size))
    source = open_source(options.source, width=options.size[0], height=options.size[1])
    source.close()
    if options.source.startswith('scene'):
        return options.rate or STREET_RATE, options.seconds
    fps = options.rate or source.fps or 10.0
    return fps, min(options.seconds, source.frames / fps) if source.frames else options.seconds


def _command(plan: _Plan) -> list[str]:
    options, scene = plan.options, plan.scene is not None
    source = options.source if scene or options.source.startswith('webcam') else str(
        Path(options.source).resolve())
    parameters = {
        'model': str(plan.bundle.path), 'source': source, 'rate': float(plan.fps), 'loop': False,
        'shutdown_at_end': True, 'wait_for_subscriber': True, 'diagnostics_period': 0.5,
        # The camera waits for its listeners; where nothing comes then, the demo says it.
        'no_frames_timeout': QUIET_SECONDS,
        'width': options.size[0] if scene else 0, 'height': options.size[1] if scene else 0}
    command = [sys.executable, '-m', 'owseg_ros.nodes.stack', '--ros-args']
    for name, value in parameters.items():
        command += ['-p', f'{name}:={json.dumps(value)}']
    return command


def _street(options: DemoOptions, fps: float) -> StreetScene:
    seed = int(options.source.partition(':')[2] or 0)
    return StreetScene(*options.size, seed=seed, fps=fps)


class _Watcher:
    """
    Keeps and draws what comes, types the queries, and points at the thing that is taught.

    recorder: the node that hears and says all this; it is there before the first frame comes.
    """

    def __init__(self, plan: _Plan, maps: Sequence[str]) -> None:
        self.recorder: Any = None
        self.recording = Recording(ages={topic: [] for topic in maps})
        # A faster camera is thinned out by the network; the video should not play faster than
        # life.
        self.film = _Film(plan.options.out / 'demo.mp4', min(plan.fps, STREET_RATE))
        self._plan = plan
        self._every = max(1, round(plan.fps * plan.options.seconds / SAMPLES))
        self._recent: deque[float] = deque(maxlen=20)
        self._newest: Any = None
        self._best: Sample | None = None

    def received(self, frame: Any) -> None:
        """Take a complete result, a RecordedFrame."""
        plan, queries, teaching = self._plan, self._plan.queries, self._plan.teaching
        self._newest = frame
        if self.film.composer is None:
            self.film.composer = FrameComposer(
                *panel_size(*frame.arrays['image'].shape[:2]), plan.bundle.palette(),
                _legend(plan.bundle, teaching), list(queries.colors.items()) if queries else ())
        rate = self._count(frame)
        picture = None
        if queries:
            found = frame.queries, frame.arrays['query/mask']
            queries.seen(*found, self.recorder.seconds())
            picture = queries.picture(*found, frame.arrays['query/score'])
        taught, names = 0.0, []
        if teaching:
            semantic = frame.arrays['semantic/mask']
            taught = teaching.seen(semantic, self.recorder.seconds())
            names = teaching.names(semantic)
        self.film.offer(frame.arrays, f'owseg_ros   {plan.bundle.name}   {rate:4.1f} Hz   '
                                      f'age {frame.age_ms["anomaly/mask"]:3.0f} ms', picture,
                        names)
        self._keep(frame, picture, taught, tuple(names))

    def _count(self, frame: Any) -> float:
        """Count a frame and its ages; return the rate of the last ones in Hz."""
        recording, recent = self.recording, self._recent
        if not recording.frames:
            recording.first = frame.seconds
        recording.last = frame.seconds
        recording.frames += 1
        recent.append(frame.seconds)
        for topic, ages in recording.ages.items():
            ages.append(frame.age_ms[topic])
        return (len(recent) - 1) / (recent[-1] - recent[0]) if len(recent) > 2 else 0.0

    def _keep(self, frame: Any, picture: QueryPicture | None, taught: float,
              names: tuple) -> None:
        """Keep each n-th frame as a sample, and the one that shows most of what was taught."""
        due = self.recording.frames % self._every == 1 or self._every == 1
        better = taught > (self._best.taught if self._best else 0.0)
        if not (due or better):
            return
        sample = Sample(
            frame.seconds, frame.arrays['image'].copy(),
            *(frame.arrays[topic] for topic in ('semantic/mask', 'anomaly/score', 'anomaly/mask')),
            frame.queries or (), picture, taught, names)
        if due:
            self.recording.samples.append(sample)
        if better:
            self._best = sample

    def type_query(self) -> None:
        """Type the next query if it is time, as a person would: once there is something to see."""
        queries, recording = self._plan.queries, self.recording
        if queries and recording.frames:
            message = queries.due(recording.last - recording.first, self.recorder.seconds())
            if message is not None and self.recorder.ask(message):
                queries.typed(self.recorder.seconds())

    def point(self) -> None:
        """Teach by the newest frame if it is time; it renders the street to see where to point."""
        teaching, frame = self._plan.teaching, self._newest
        if teaching and frame is not None:
            self._newest = None
            message = teaching.due(frame.arrays['image'], frame.arrays['anomaly/mask'],
                                   frame.stamp, frame.seconds - self.recording.first)
            if message is not None and self.recorder.teach(message):
                teaching.sent(self.recorder.seconds())

    def answered(self, answer: dict[str, Any]) -> None:
        """Hear the node's answer to a query."""
        self._plan.queries.answered(answer, self.recorder.seconds())

    def taught(self, answer: dict[str, Any]) -> None:
        """Hear the node's answer to what was taught."""
        self._plan.teaching.answered(answer, self.recorder.seconds())

    def finish(self) -> None:
        """Complete the recording, after the film."""
        recording, best = self.recording, self._best
        recording.skipped_pictures = self.film.skipped
        if best is not None and not any(sample is best for sample in recording.samples):
            recording.samples.append(best)
            recording.samples.sort(key=lambda sample: sample.seconds)


def _record(plan: _Plan, start_nodes: Callable[[], subprocess.Popen], log_path: Path,
            progress: Callable[[float, str], None],
            recording_node: Any) -> tuple[Recording, Any]:
    """Run the nodes and watch them; return the recording and the Recorder that heard them."""
    watcher, seconds = _Watcher(plan, recording_node.MAPS), plan.options.seconds
    recording = watcher.recording
    watcher.film.start()
    quiet, seen = time.monotonic(), 0
    try:
        with recording_node.session(
                watcher.received, words=plan.queries is not None, on_answer=watcher.answered,
                on_taught=watcher.taught if plan.teaching else None) as (recorder, spin_once):
            watcher.recorder = recorder
            # Whoever listens is there first: a short clip is over soon.
            nodes, started = start_nodes(), time.monotonic()
            while recording.last - recording.first < seconds:
                spin_once(0.1)
                watcher.type_query()
                watcher.point()
                if recording.frames and not seen:
                    recording.waited = time.monotonic() - started
                if recording.frames != seen:
                    seen, quiet = recording.frames, time.monotonic()
                    share = (recording.last - recording.first) / seconds
                    progress(min(1.0, share), f'{seen} frames')
                if _have_ended(nodes, seen, time.monotonic() - quiet, log_path):
                    break
    finally:
        watcher.film.finish()
    watcher.finish()
    progress(1.0, f'{recording.frames} frames')
    return recording, recorder


def _have_ended(nodes: subprocess.Popen, frames: int, quiet: float, log_path: Path) -> bool:
    """
    Return whether the nodes ended after what they had to do.

    frames: that came so far; quiet: seconds since the last one, or since the start. Raises
    DemoError where they ended otherwise, or run and give no results.
    """
    code = nodes.poll()
    if code is not None and quiet > 1.0:
        if code or not frames:
            raise DemoError(f'the nodes ended with code {code}:\n{_tail(log_path)}')
        return True
    limit = QUIET_SECONDS if frames else START_SECONDS
    if quiet > limit:
        raise DemoError(f'no results for {limit:.0f} s; the nodes say:\n'
                        f'{_tail(log_path)}\nTry `owseg doctor`.')
    return False


def _tail(path: Path, lines: int = 12) -> str:
    return '\n'.join(path.read_text(errors='replace').splitlines()[-lines:]) or '(nothing)'


def _compare_with_street(scene: StreetScene, fps: float, recording: Recording,
                         bundle: Bundle) -> dict[str, Any]:
    """Find the index of each sample by its content and compare with the rendered truth."""
    score = StreetScore(bundle.class_names)
    # The camera goes on while the model loads, which takes long where its code is compiled first.
    start = _find(scene, recording.samples[0], range(40 + math.ceil(fps * recording.waited)))
    for sample in recording.samples if start is not None else ():
        # Frames may be missing, so the stamps say about where to look and the content decides.
        guess = round((sample.seconds - recording.first) * fps)
        sample.index = _find(scene, sample, _outwards(start + guess, 8))
        if sample.index is None:
            continue
        # On a slow machine the camera falls behind its rate, more and more.
        start = sample.index - guess
        truth = scene.render(sample.index)
        score.add(truth, sample.semantic, sample.mask)
        for hazard in truth.hazards:
            sample.hazard_kind, sample.hazard_pixels = hazard.kind, hazard.pixels
    return score.figures()


def _outwards(middle: int, reach: int) -> list[int]:
    order = sorted(range(middle - reach, middle + reach + 1), key=lambda i: abs(i - middle))
    return [index for index in order if index >= 0]


def _find(scene: StreetScene, sample: Sample, candidates: Any) -> int | None:
    wanted = zlib.crc32(np.ascontiguousarray(sample.image))
    for index in candidates:
        if zlib.crc32(scene.render(index).image) == wanted:
            return index
    return None


def _chosen(samples: list[Sample]) -> list[Sample]:
    """
    Choose the rows of the sheet.

    Each kind of hazard at its largest, the one that was taught where it is named best, each set of
    queries where it finds most, else evenly spread.
    """
    best: dict[str, Sample] = {}
    for sample in samples:
        if sample.hazard_kind and sample.hazard_pixels > getattr(
                best.get(sample.hazard_kind), 'hazard_pixels', 0):
            best[sample.hazard_kind] = sample
    # What was taught goes before the rest, and in the place of the hazard that it is.
    named = max(samples, key=lambda sample: sample.taught)
    if named.taught:
        best[named.hazard_kind] = named
    rows = sorted(best.values(), key=lambda sample: -sample.taught)[:SHEET_ROWS]
    for names in dict.fromkeys(sample.queries for sample in samples if sample.queries):
        if len(rows) < SHEET_ROWS and all(row.queries != names for row in rows):
            rows.append(max((sample for sample in samples if sample.queries == names),
                            key=lambda sample: (sample.query_picture.mask != 255).sum()))
    others = [s for s in samples if not s.hazard_kind] or samples
    missing = SHEET_ROWS - len(rows)
    if missing > 0:
        spots = np.linspace(0, len(others) - 1, min(missing, len(others))).round().astype(int)
        chosen = {id(s) for s in rows}
        rows += [others[i] for i in spots if id(others[i]) not in chosen]
    return sorted(rows, key=lambda s: s.seconds)


def _write_sheet(path: Path, plan: _Plan, recording: Recording) -> None:
    import cv2
    queries, teaching = plan.queries, plan.teaching
    palette = plan.bundle.palette()
    headers = [*PANELS, QUERY_PANELS[0]] if queries else PANELS
    rows = []
    for sample in _chosen(recording.samples):
        text = f'{sample.seconds - recording.first:.1f} s'
        if sample.hazard_kind:
            text += f', {sample.hazard_kind} on the road'
        if sample.taught:
            text += f', called "{teaching.name}" since one message taught it'
        if sample.queries:
            text += f'; asked for: {", ".join(sample.queries)}'
        pictures = [*panels(sample.image, sample.semantic, sample.score, sample.mask, palette)]
        render.draw_names(pictures[-1], sample.names)
        if queries:
            pictures.append(sample.query_picture.panels(sample.image)[0])
        rows.append((text, pictures))
    classes = _legend(plan.bundle, teaching)
    width = len(headers) * CELL_WIDTH
    footer = legend_of(classes, palette, width)
    if queries:
        footer = np.concatenate([footer, query_legend(list(queries.colors.items()), width)])
    sheet = render.contact_sheet(
        rows, headers=headers, title='owseg_ros: what it knows, and what is none of that',
        cell_width=CELL_WIDTH, footer=footer)
    if not cv2.imwrite(str(path), sheet[..., ::-1]):
        raise DemoError(f'{path} could not be written; is the disk full?')


def _legend(bundle: Bundle, teaching: DemoTeaching | None) -> list[tuple[str, Any]]:
    """Return name and colour of what the semantic map may hold, without unknown objects."""
    known = [(info.name, info.color) for info in bundle.classes]
    if teaching:
        known.append((f'{teaching.name} (taught)' if teaching.name else 'taught by example',
                      teaching.color))
    return known


def _percentiles(values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    cuts = np.percentile(values, (50, 95, 99))
    return {name: round(float(v), 1) for name, v in zip(('p50', 'p95', 'p99'), cuts)}


def _number(text: str | None) -> float | None:
    try:
        return float(text)
    except (TypeError, ValueError):
        return None


def _report(plan: _Plan, recording: Recording, recorder: Any, dds: str,
            truth: dict[str, Any] | None) -> dict[str, Any]:
    statistics, bundle = recorder.statistics, plan.bundle
    seconds = recording.last - recording.first
    return {
        'source': plan.options.source,
        'camera_hz': plan.fps,
        'seconds': round(seconds, 2),
        'frames': {
            'in': _number(statistics.get('frames_in')),
            'out': recording.frames,
            'dropped': _number(statistics.get('drops')),
            'bad': _number(statistics.get('bad_frames')),
            'incomplete': recorder.incomplete,
            'not_in_video': recording.skipped_pictures},
        'rate_hz': round((recording.frames - 1) / seconds, 2) if seconds > 0 else 0.0,
        'age_ms': _percentiles(recording.ages['anomaly/mask']),
        'age_ms_per_topic': {t: _percentiles(v) for t, v in recording.ages.items()},
        'age_ms_in_node': {p: _number(statistics.get(f'age_ms_{p}'))
                           for p in ('p50', 'p95', 'p99')},
        'network_ms': _number(statistics.get('network_ms')),
        'readout_ms': _number(statistics.get('readout_ms')),
        'engine': recorder.engine.get('engine', ''),
        'model': {'name': bundle.name, 'version': bundle.version,
                  'sha256': bundle.network_sha256},
        'labels': len(recorder.labels.get('classes', [])),
        'dds': dds,
        'ground_truth': truth,
        'machine': machine(),
        'versions': versions(PACKAGES),
        'queries': plan.queries.report() if plan.queries else [],
        'no_queries': plan.no_queries,
        'taught': plan.teaching.report(recorder.labels) if plan.teaching else None,
        'no_teaching': plan.no_teaching,
    }
