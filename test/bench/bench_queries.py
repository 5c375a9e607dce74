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
Ask a running perception in words, over DDS, and measure what that costs.

Starts camera and perception (`owseg_ros.nodes.stack`) as one process and listens as another.
Words that were never asked for are published one after the other: how long until the first mask
that answers, how many masks of the older set come before it, how many passes of the text encoder.
Then the rate of masks and the memory of the process, at rest and while a third process publishes
distinct queries at a high rate.  Prints Markdown tables and one JSON line.

    python test/bench/bench_queries.py --model FOLDER --seconds 10 --flood-rate 1000
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import signal
import statistics
import subprocess
import sys
import tempfile
import time

from diagnostic_msgs.msg import DiagnosticArray
from owseg_ros.nodes import qos, transport
from owseg_ros.nodes.inspection import spin_until
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from std_msgs.msg import String

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    'traffic cone', 'stroller', 'puddle', 'fire hydrant', 'wheelie bin', 'suitcase', 'ladder',
    'horse', 'cardboard box', 'tyre on the road', 'shopping trolley', 'sheep', 'tarpaulin',
    'umbrella', 'scooter', 'pallet', 'bench', 'phone box', 'fallen tree', 'skateboard')


class Listener:
    """What a user of the node sees: masks with the set that they answer, statuses, counts."""

    def __init__(self, node):
        self.masks: list[tuple[float, tuple[int, int]]] = []
        self.versions: dict[tuple[int, int], int] = {}
        self.statuses: list[tuple[float, dict]] = []
        self.counts: dict[str, str] = {}
        self.camera: dict[str, str] = {}
        node.create_subscription(Image, 'query/mask', self._mask, qos.image_output())
        node.create_subscription(String, 'query/labels', self._labels, 50)
        node.create_subscription(String, 'query/status', self._status, qos.latched(8))
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnostics, 10)

    def _mask(self, message):
        stamp = message.header.stamp
        self.masks.append((time.monotonic(), (stamp.sec, stamp.nanosec)))

    def _labels(self, message):
        labels = json.loads(message.data)
        if labels['stamp'] is not None:
            stamp = labels['stamp']
            self.versions[stamp['sec'], stamp['nanosec']] = labels['version']

    def _status(self, message):
        self.statuses.append((time.monotonic(), json.loads(message.data)))

    def _diagnostics(self, message):
        for status in message.status:
            values = {pair.key: pair.value for pair in status.values}
            if status.name.endswith(': language'):
                self.counts = values
            elif 'network_ms' in values:
                self.camera = values

    def answered(self, since: float, version: int) -> tuple[float, int] | None:
        """Return when the first mask of a version came, and how many of older ones before it."""
        older = 0
        for moment, stamp in self.masks:
            if moment > since and stamp in self.versions:
                if self.versions[stamp] >= version:
                    return moment, older
                older += 1
        return None


class Bench:
    """The processes and the steps of the measurement."""

    def __init__(self, options, node, executor, pid):
        self.options = options
        self.pid = pid
        self.executor = executor
        self.listener = Listener(node)
        self.publisher = node.create_publisher(String, 'query', qos.newest_text())

    def spin(self, seconds, until=lambda: False):
        """Spin for a time, or until a condition holds; return the condition."""
        return spin_until(self.executor, seconds, until)

    def counts(self) -> dict[str, int]:
        """Return the counts of the diagnostics, after two more reports."""
        for _ in range(2):
            self.listener.counts = {}
            if not self.spin(10, lambda: bool(self.listener.counts)):
                raise SystemExit('no diagnostics within 10 s')
        return {key: int(self.listener.counts[key]) for key in (
            'messages', 'superseded', 'answered', 'text_passes', 'active')}

    def rss_mib(self) -> float:
        """Return the resident memory of the nodes."""
        text = Path(f'/proc/{self.pid}/status').read_text()
        return int(text.split('VmRSS:')[1].split()[0]) / 1024

    def rate(self, seconds) -> dict:
        """Return the masks a second, and the longest time between two, over some seconds."""
        start = time.monotonic()
        self.spin(seconds)
        times = [moment for moment, _ in self.listener.masks if moment >= start]
        gaps = [after - before for before, after in zip(times, times[1:])]
        return {'masks': len(times), 'hz': round(len(times) / (time.monotonic() - start), 2),
                'longest_gap_ms': round(1e3 * max(gaps, default=float('nan')), 1)}

    def ask(self, words) -> dict:
        """Ask for words that are new; return ms to status and first mask, and older masks."""
        listener = self.listener
        message_id = f'bench {words}'
        start = time.monotonic()
        self.publisher.publish(String(data=json.dumps(
            {'message_id': message_id, 'queries': [{'name': words, 'synonyms': []}]})))

        def status():
            return next((pair for pair in listener.statuses
                         if pair[1]['message_id'] == message_id), None)

        if not self.spin(30, lambda: status() is not None):
            raise SystemExit(f'no answer to {words!r} within 30 s')
        live, answer = status()
        if answer['error']:
            raise SystemExit(f'{words!r}: {answer["error"]}')
        if not self.spin(30, lambda: listener.answered(start, answer['version'])):
            raise SystemExit(f'no mask that answers {words!r} within 30 s')
        first, _ = listener.answered(start, answer['version'])
        return {'status_ms': 1e3 * (live - start), 'first_mask_ms': 1e3 * (first - start),
                # Negative where the mask overtakes the status.
                'after_status_ms': 1e3 * (first - live),
                'older_masks_after_status': listener.answered(live, answer['version'])[1]}

    def latency(self) -> dict:
        """Ask for one new thing after the other, at any moment between two frames."""
        before = self.counts()
        found = []
        for index, words in enumerate(self.options.words):
            self.spin(0.35 + 0.037 * index)
            found.append(self.ask(words))
        after = self.counts()
        frames = len(self.listener.masks)
        self.spin(3.0)
        frames = len(self.listener.masks) - frames
        idle = self.counts()
        return {
            'queries': len(found),
            **{key: _spread([entry[key] for entry in found])
               for key in ('status_ms', 'first_mask_ms', 'after_status_ms')},
            'older_masks_after_status_max': max(
                entry['older_masks_after_status'] for entry in found),
            'text_passes': after['text_passes'] - before['text_passes'],
            'text_ms_last': float(self.listener.counts['text_ms']),
            'further_frames': frames,
            'text_passes_of_further_frames': idle['text_passes'] - after['text_passes']}

    def flood(self) -> dict:
        """Return the rates and the memory at rest and while many messages come."""
        options = self.options
        quiet = self.rate(options.seconds)
        memory, before = self.rss_mib(), self.counts()
        command = [sys.executable, __file__, '--publish', str(options.flood_rate),
                   '--seconds', str(options.seconds)]
        publisher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            # Until it has found the node.
            if not self.spin(30, lambda: self.listener.statuses[-1][1]['active'][:1] == ['begin']):
                raise SystemExit('the publisher of the flood found no node within 30 s')
            flooded = self.rate(options.seconds)
        finally:
            sent = json.loads(publisher.communicate(timeout=60)[0])
        last = [sent['last']]
        end = time.monotonic()
        came = self.spin(30, lambda: self.listener.statuses[-1][1]['active'] == last)
        waited = self.listener.statuses[-1][0] - end
        after = self.counts()
        return {
            'seconds': options.seconds, 'sent': sent['messages'],
            'sent_hz': round(sent['messages'] / sent['seconds'], 1),
            'at_rest': quiet, 'in_the_flood': flooded,
            **{key: after[key] - before[key]
               for key in ('messages', 'superseded', 'answered', 'text_passes')},
            'last_message_is_live': came, 'last_is_live_after_ms': round(1e3 * max(0, waited), 1),
            'rss_before_mib': round(memory, 1), 'rss_after_mib': round(self.rss_mib(), 1)}


def publish(rate: float, seconds: float) -> None:
    """Publish distinct queries at a rate, as a process of its own; print what was sent."""
    transport.prepare()
    with rclpy.init(args=[]):
        node = rclpy.create_node('bench_flood')
        publisher = node.create_publisher(String, 'query', qos.newest_text())
        while not publisher.get_subscription_count():
            time.sleep(0.01)
        publisher.publish(String(data='begin'))
        time.sleep(1.0)
        start = time.monotonic()
        count = 0
        while (elapsed := time.monotonic() - start) < seconds:
            for _ in range(count, int(elapsed * rate) + 1):
                count += 1
                publisher.publish(String(data=f'thing {count} of many'))
            time.sleep(0.001)
        elapsed = time.monotonic() - start
        # The last message is on its way when the node has acknowledged it.
        publisher.wait_for_all_acked()
        print(json.dumps({'messages': count, 'seconds': elapsed,
                          'last': f'thing {count} of many'}))
        node.destroy_node()


def _spread(values: list[float]) -> dict[str, float]:
    return {'p50': round(statistics.median(values), 1), 'max': round(max(values), 1)}


def report(found: dict) -> str:
    """Return the Markdown of the figures."""
    latency, flood = found['latency'], found['flood']
    period = 1e3 / flood['at_rest']['hz']
    rows = [
        ('query to query/status, p50 / max',
         f'{latency["status_ms"]["p50"]} / {latency["status_ms"]["max"]} ms'),
        ('query to first mask that answers, p50 / max',
         f'{latency["first_mask_ms"]["p50"]} / {latency["first_mask_ms"]["max"]} ms'),
        ('query/status to that mask, p50 / max',
         f'{latency["after_status_ms"]["p50"]} / {latency["after_status_ms"]["max"]} ms'),
        ('period of the masks', f'{period:.0f} ms'),
        ('network / readout, p50', f'{found["network_ms"]} / {found["readout_ms"]} ms'),
        ('masks of the older set after the status, at most',
         latency['older_masks_after_status_max']),
        ('text passes for new queries', f'{latency["text_passes"]} for {latency["queries"]}'),
        ('text passes of further frames',
         f'{latency["text_passes_of_further_frames"]} for {latency["further_frames"]}')]
    lines = ['| first mask | |', '|---|---:|', *(f'| {name} | {value} |' for name, value in rows)]
    lines += ['', f'| {flood["seconds"]:g} s | masks / s | longest gap |', '|---|---:|---:|']
    for name in ('at_rest', 'in_the_flood'):
        entry = flood[name]
        messages = f', {flood["sent_hz"]:.0f} messages / s' if name == 'in_the_flood' else ''
        lines.append(f'| {name.replace("_", " ")}{messages} | {entry["hz"]} | '
                     f'{entry["longest_gap_ms"]} ms |')
    lines += [
        '', f'{flood["sent"]} messages: {flood["answered"]} answered with '
        f'{flood["text_passes"]} text passes, the last '
        f'{"is" if flood["last_message_is_live"] else "is NOT"} live. Memory '
        f'{flood["rss_before_mib"]} MiB before, {flood["rss_after_mib"]} MiB after.',
        f'All processes on {found["cores"]} cores, load average {found["load"]:.1f}.']
    return '\n'.join(lines)


def main() -> int:
    """Run the benchmark; exit code 1 when it could not be measured or an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--model', default='', help='folder of a bundle that knows words')
    parser.add_argument('--text-encoder', default='', help='its folder (default: the installed)')
    parser.add_argument('--seconds', type=float, default=10.0, help='of each rate')
    parser.add_argument('--flood-rate', type=float, default=1000.0, help='messages a second')
    parser.add_argument('--rate', type=float, default=10.0, help='frames a second of the camera')
    parser.add_argument('--size', default='640x480')
    parser.add_argument('--source', default='scene')
    parser.add_argument('--words', nargs='+', default=WORDS, help='what to ask for, each once')
    parser.add_argument('--publish', type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(options.publish, options.seconds)
        return 0
    width, height = (int(value) for value in options.size.split('x'))
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    transport.prepare()
    command = [sys.executable, '-m', 'owseg_ros.nodes.stack', '--ros-args']
    for name, value in {
            'source': options.source, 'rate': options.rate, 'width': width, 'height': height,
            'model': options.model, 'text_encoder': options.text_encoder,
            'diagnostics_period': 0.2}.items():
        command += ['-p', f'{name}:={value!r}']
    with tempfile.TemporaryDirectory() as cache:
        # What an earlier run has encoded would cost no text pass.
        environment = {**os.environ, 'XDG_CACHE_HOME': cache, 'PYTHONPATH': os.pathsep.join(
            [str(ROOT), os.environ.get('PYTHONPATH', '')])}
        stack = subprocess.Popen(command, env=environment)
        try:
            with rclpy.init(args=[]):
                node = rclpy.create_node('bench_queries')
                executor = SingleThreadedExecutor()
                executor.add_node(node)
                bench = Bench(options, node, executor, stack.pid)
                masks = bench.listener.masks
                if not bench.spin(60, lambda: stack.poll() is not None or len(masks) > 10):
                    print('no masks within 60 s: does the model know words?', file=sys.stderr)
                    return 1
                if stack.poll() is not None:
                    print(f'the nodes ended with {stack.returncode}', file=sys.stderr)
                    return 1
                found = {'model': options.model, 'size': options.size, 'rate': options.rate,
                         'cores': len(os.sched_getaffinity(0)), 'load': os.getloadavg()[0],
                         'latency': bench.latency(), 'flood': bench.flood()}
                camera = bench.listener.camera
                found |= {key: camera[key] for key in ('network_ms', 'readout_ms', 'bad_frames')}
                executor.shutdown(1.0)
                node.destroy_node()
        finally:
            stack.send_signal(signal.SIGINT)
            try:
                stack.wait(20)
            except subprocess.TimeoutExpired:
                stack.kill()
    print(report(found))
    print(json.dumps(found))
    return 0 if found['flood']['last_message_is_live'] else 1


if __name__ == '__main__':
    sys.exit(main())
