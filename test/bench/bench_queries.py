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
Then the rate of masks and the memory of the process, interleaved: at rest, while a third process
publishes distinct queries at a high rate (flood), and while it publishes as much on topics that
are none of the node's: one that nobody reads and one that a fourth process reads (control: what
the publisher's own work takes from the machine).  Prints Markdown tables and one JSON line.

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
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import Image
from std_msgs.msg import String

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    'traffic cone', 'stroller', 'puddle', 'fire hydrant', 'wheelie bin', 'suitcase', 'ladder',
    'horse', 'cardboard box', 'tyre on the road', 'shopping trolley', 'sheep', 'tarpaulin',
    'umbrella', 'scooter', 'pallet', 'bench', 'phone box', 'fallen tree', 'skateboard')

PHASES = ('rest', 'control, nobody reads', 'control, a process reads', 'flood')
COUNTS = ('messages', 'superseded', 'answered', 'text_passes')


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
        return {key: int(self.listener.counts[key]) for key in COUNTS}

    def rss_mib(self) -> float:
        """Return the resident memory of the nodes."""
        text = Path(f'/proc/{self.pid}/status').read_text()
        return int(text.split('VmRSS:')[1].split()[0]) / 1024

    def cpu_seconds(self) -> float:
        """Return the processor time that the nodes have taken since their start."""
        # The name, which is in brackets, may hold blanks.
        fields = Path(f'/proc/{self.pid}/stat').read_text().rpartition(')')[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')

    def rate(self, seconds) -> dict:
        """Return masks a second, the longest time between two and what they cost the nodes."""
        start, cpu = time.monotonic(), self.cpu_seconds()
        self.spin(seconds)
        cpu, wall = self.cpu_seconds() - cpu, time.monotonic() - start
        times = [moment for moment, _ in self.listener.masks if moment >= start]
        gaps = [after - before for before, after in zip(times, times[1:])]
        return {'masks': len(times), 'hz': round(len(times) / wall, 2),
                'longest_gap_ms': round(1e3 * max(gaps, default=float('nan')), 1),
                'cpu_share': round(cpu / wall, 3)}

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
        """Return the rates and the memory of each phase, in turn, `rounds` times."""
        phases = {name: [] for name in PHASES}
        totals = dict.fromkeys(COUNTS, 0)
        for _ in range(self.options.rounds):
            phases['rest'].append(self.phase())
            phases['control, nobody reads'].append(self.phase('bench_flood', readers=0))
            reader = subprocess.Popen([sys.executable, __file__, '--read', 'bench_flood'])
            try:
                phases['control, a process reads'].append(self.phase('bench_flood', readers=1))
            finally:
                reader.terminate()
                reader.wait(20)
            before = self.counts()
            phases['flood'].append(self.phase('query', readers=1))
            after = self.counts()
            for key in COUNTS:
                totals[key] += after[key] - before[key]
        flooded = phases['flood']
        return {
            'rounds': self.options.rounds, 'seconds': self.options.seconds,
            'phases': {name: _summary(found) for name, found in phases.items()}, **totals,
            'last_message_is_live': all(found['last_is_live'] for found in flooded),
            'last_is_live_after_ms': max(found['last_is_live_after_ms'] for found in flooded)}

    def phase(self, topic: str = '', readers: int = 0) -> dict:
        """Return rate of the masks and memory, while messages come on a topic, '' for none."""
        options = self.options
        memory = self.rss_mib()
        if not topic:
            return {**self.rate(options.seconds), 'rss_before_mib': memory,
                    'rss_after_mib': self.rss_mib()}
        publisher = subprocess.Popen(
            [sys.executable, __file__, '--publish', str(options.flood_rate), '--topic', topic,
             '--readers', str(readers), '--seconds', str(options.seconds)],
            stdout=subprocess.PIPE, text=True)
        try:
            # It says so when it has found its readers.
            if publisher.stdout.readline() != 'begin\n':
                raise SystemExit('the publisher of the flood found no reader within 30 s')
            found = self.rate(options.seconds)
        finally:
            sent = json.loads(publisher.communicate(timeout=60)[0])
        found |= {'sent': sent['messages'], 'sent_hz': sent['messages'] / sent['seconds'],
                  'rss_before_mib': memory, 'rss_after_mib': self.rss_mib()}
        if topic == 'query':
            end = time.monotonic()
            found['last_is_live'] = self.spin(
                30, lambda: self.listener.statuses[-1][1]['active'] == [sent['last']])
            waited = self.listener.statuses[-1][0] - end
            found['last_is_live_after_ms'] = round(1e3 * max(0, waited), 1)
        return found


def publish(topic: str, rate: float, seconds: float, readers: int) -> None:
    """Publish distinct queries at a rate, as a process of its own; print what was sent."""
    transport.prepare()
    with rclpy.init(args=[]):
        node = rclpy.create_node('bench_flood')
        publisher = node.create_publisher(String, topic, qos.newest_text())
        deadline = time.monotonic() + 30
        while publisher.get_subscription_count() < readers:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        print('begin', flush=True)
        start = time.monotonic()
        count = 0
        while (elapsed := time.monotonic() - start) < seconds:
            for _ in range(count, int(elapsed * rate) + 1):
                count += 1
                publisher.publish(String(data=f'thing {count} of many'))
            time.sleep(0.001)
        elapsed = time.monotonic() - start
        # The last message is on its way when its readers have acknowledged it.
        publisher.wait_for_all_acked()
        print(json.dumps({'messages': count, 'seconds': elapsed,
                          'last': f'thing {count} of many'}))
        node.destroy_node()


def read(topic: str) -> None:
    """Read a topic until SIGTERM, as any node would, as a process of its own."""
    transport.prepare()
    with rclpy.init(args=[]):
        node = rclpy.create_node('bench_reader')
        node.create_subscription(String, topic, lambda message: None, qos.newest_text())
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            executor.spin()
        except ExternalShutdownException:
            pass


def _summary(found: list[dict]) -> dict:
    """Return masks a second over all rounds, the longest gap and the memory at both ends."""
    summary = {
        'masks': sum(entry['masks'] for entry in found),
        'hz': round(statistics.mean(entry['hz'] for entry in found), 2),
        'hz_of_rounds': [entry['hz'] for entry in found],
        'longest_gap_ms': max(entry['longest_gap_ms'] for entry in found),
        'cpu_share': round(statistics.mean(entry['cpu_share'] for entry in found), 3),
        'cpu_ms_per_mask': round(
            1e3 * statistics.mean(entry['cpu_share'] for entry in found)
            / statistics.mean(entry['hz'] for entry in found), 1),
        'rss_before_mib': round(found[0]['rss_before_mib'], 1),
        'rss_after_mib': round(found[-1]['rss_after_mib'], 1)}
    if 'sent' in found[0]:
        summary |= {'sent': sum(entry['sent'] for entry in found),
                    'sent_hz': round(statistics.mean(entry['sent_hz'] for entry in found), 1)}
    return summary


def _spread(values: list[float]) -> dict[str, float]:
    return {'p50': round(statistics.median(values), 1), 'max': round(max(values), 1)}


def report(found: dict) -> str:
    """Return the Markdown of the figures."""
    latency, flood = found['latency'], found['flood']
    period = 1e3 / flood['phases']['rest']['hz']
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
    lines += ['', f'| {flood["rounds"]} x {flood["seconds"]:g} s | messages / s | masks / s | '
              'longest gap | cores of the nodes | ms of a core a mask | memory before, after |',
              '|---|---:|---:|---:|---:|---:|---:|']
    for name, entry in flood['phases'].items():
        lines.append(
            f'| {name} | {entry.get("sent_hz", 0):.0f} | {entry["hz"]} | '
            f'{entry["longest_gap_ms"]} ms | {entry["cpu_share"]} | {entry["cpu_ms_per_mask"]} | '
            f'{entry["rss_before_mib"]}, '
            f'{entry["rss_after_mib"]} MiB |')
    lines += [
        '', f'Flood: {flood["messages"]} messages reached the node, {flood["answered"]} were '
        f'answered with {flood["text_passes"]} text passes; the last '
        f'{"is" if flood["last_message_is_live"] else "is NOT"} live.',
        f'All processes on {found["cores"]} cores, load average {found["load"]:.1f}.']
    return '\n'.join(lines)


def main() -> int:
    """Run the benchmark; exit code 1 when it could not be measured or an answer was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--model', default='', help='folder of a bundle that knows words')
    parser.add_argument('--text-encoder', default='', help='its folder (default: the installed)')
    parser.add_argument('--seconds', type=float, default=10.0, help='of each phase')
    parser.add_argument('--rounds', type=int, default=1, help='how often all phases come')
    parser.add_argument('--flood-rate', type=float, default=1000.0, help='messages a second')
    parser.add_argument('--rate', type=float, default=10.0, help='frames a second of the camera')
    parser.add_argument('--size', default='640x480')
    parser.add_argument('--source', default='scene')
    parser.add_argument('--words', nargs='+', default=WORDS, help='what to ask for, each once')
    # The processes that it starts.
    parser.add_argument('--publish', type=float, help=argparse.SUPPRESS)
    parser.add_argument('--read', default='', help=argparse.SUPPRESS)
    parser.add_argument('--topic', default='query', help=argparse.SUPPRESS)
    parser.add_argument('--readers', type=int, default=1, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.publish:
        publish(options.topic, options.publish, options.seconds, options.readers)
        return 0
    if options.read:
        read(options.read)
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
