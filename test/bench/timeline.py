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
Spans of a running process: which thread did what when, for which frame, at what memory.

Functions are wrapped from outside, so that the product carries no trace of it.  The result is
JSON in the Chrome trace format (open it in chrome://tracing or ui.perfetto.dev) and a picture.
"""

from __future__ import annotations

from dataclasses import dataclass
import functools
import html
import json
from pathlib import Path
import threading
import time
import tracemalloc
from typing import Any, Callable, Optional, Sequence

COLORS = {
    'receive': '#9aa5b1', 'convert': '#f2b134', 'pack': '#ed553b', 'network': '#3caea3',
    'check': '#98c1d9', 'readout': '#20639b', 'publish': '#8661c1'}


@dataclass(frozen=True)
class Span:
    """One call: name, thread, key of its frame ('' unknown), begin, end and CPU seconds."""

    name: str
    thread: str
    frame: str
    begin: float
    end: float
    cpu: float
    allocated: int = 0

    @property
    def ms(self) -> float:
        """Return how long it took."""
        return 1e3 * (self.end - self.begin)


class Timeline:
    """
    Collects spans; safe to use from several threads.

    memory: also measure the peak of new Python and NumPy memory within each span (tracemalloc,
    which slows the process down: not for timings).
    """

    def __init__(self, memory: bool = False) -> None:
        self.spans: list[Span] = []
        self.memory = memory
        self._local = threading.local()
        if memory:
            tracemalloc.start()

    def wrap(self, owner: Any, attribute: str, name: str,
             frame: Optional[Callable[..., str]] = None) -> None:
        """Record each call of owner.attribute; `frame` gets its arguments, returns the key."""
        function = getattr(owner, attribute)

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            outer = getattr(self._local, 'frame', '')
            self._local.frame = key = frame(*args, **kwargs) if frame else outer
            before = 0
            if self.memory:
                before = tracemalloc.get_traced_memory()[0]
                tracemalloc.reset_peak()
            cpu, begin = time.thread_time(), time.monotonic()
            try:
                return function(*args, **kwargs)
            finally:
                end, cpu = time.monotonic(), time.thread_time() - cpu
                grown = tracemalloc.get_traced_memory()[1] - before if self.memory else 0
                self.spans.append(Span(
                    name, threading.current_thread().name, key, begin, end, cpu, grown))
                self._local.frame = outer

        setattr(owner, attribute, recorded)

    def write(self, path: Path, **more: Any) -> None:
        """Write the spans in the Chrome trace format; `more` goes into its metadata."""
        threads = {name: number for number, name in enumerate(
            dict.fromkeys(span.thread for span in self.spans))}
        events: list[dict[str, Any]] = [
            {'ph': 'M', 'pid': 1, 'tid': number, 'name': 'thread_name', 'args': {'name': name}}
            for name, number in threads.items()]
        events += [
            {'ph': 'X', 'pid': 1, 'tid': threads[span.thread], 'name': span.name,
             'ts': round(1e6 * span.begin, 1), 'dur': round(1e3 * span.ms, 1),
             'args': {'frame': span.frame, 'cpu_ms': round(1e3 * span.cpu, 3),
                      'allocated': span.allocated}}
            for span in list(self.spans)]
        path.write_text(json.dumps({'traceEvents': events, 'metadata': more}), encoding='utf-8')


def read(path: Path) -> tuple[list[Span], dict[str, Any]]:
    """Return the spans of a written timeline in the order of their begin, and its metadata."""
    data = json.loads(path.read_text(encoding='utf-8'))
    names = {event['tid']: event['args']['name']
             for event in data['traceEvents'] if event['ph'] == 'M'}
    spans = [
        Span(event['name'], names[event['tid']], event['args']['frame'], 1e-6 * event['ts'],
             1e-6 * (event['ts'] + event['dur']), 1e-3 * event['args']['cpu_ms'],
             event['args']['allocated'])
        for event in data['traceEvents'] if event['ph'] == 'X']
    return sorted(spans, key=lambda span: span.begin), data['metadata']


def picture(spans: Sequence[Span], title: str, names: Sequence[str] = tuple(COLORS)) -> str:
    """Return an SVG of some spans: a row for each thread, a number for each frame."""
    spans = [span for span in spans if span.name in names]
    threads = list(dict.fromkeys(span.thread for span in spans))
    frames = {key: number for number, key in enumerate(
        dict.fromkeys(span.frame for span in spans if span.frame), start=1)}
    first, last = min(span.begin for span in spans), max(span.end for span in spans)
    left, width, row = 130, 960, 46
    scale = width / (last - first)
    height = 70 + row * len(threads)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 10}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="8" y="16" font-weight="bold">{html.escape(title)}</text>']
    for index, name in enumerate(name for name in names if any(
            span.name == name for span in spans)):
        parts.append(
            f'<rect x="{left + 95 * index}" y="24" width="12" height="12" '
            f'fill="{COLORS[name]}"/><text x="{left + 95 * index + 16}" y="35">{name}</text>')
    for index, thread in enumerate(threads):
        top = 46 + row * index
        parts.append(f'<text x="8" y="{top + 20}">{html.escape(thread)}</text>')
        for span in spans:
            if span.thread != thread:
                continue
            x = left + scale * (span.begin - first)
            wide = max(0.7, scale * (span.end - span.begin))
            parts.append(
                f'<rect x="{x:.1f}" y="{top}" width="{wide:.1f}" height="30" '
                f'fill="{COLORS[span.name]}"><title>{span.name} of frame '
                f'{frames.get(span.frame, "?")}: {span.ms:.2f} ms</title></rect>')
            if wide > 14 and span.frame in frames:
                parts.append(f'<text x="{x + wide / 2:.1f}" y="{top + 20}" fill="white" '
                             f'text-anchor="middle">{frames[span.frame]}</text>')
    step = next(step for step in (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 10.0)
                if (last - first) / step <= 14)
    for tick in range(int((last - first) / step) + 1):
        x = left + scale * tick * step
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="42" y2="{height - 22}" '
                     'stroke="black" stroke-opacity="0.15"/>'
                     f'<text x="{x:.1f}" y="{height - 8}" text-anchor="middle">'
                     f'{1e3 * tick * step:g} ms</text>')
    return '\n'.join([*parts, '</svg>\n'])
