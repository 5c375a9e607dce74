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
r"""
Where the time of a frame goes in the running node, and how old its maps are.

Camera, perception and listener are three processes that talk over DDS.  The camera sends frames
that were rendered before, so that it costs little; the listener takes messages without
deserialising them.  Each case is run in rounds, its variants in turns, so that other load on the
machine falls on all of them alike.  Prints a table and, with --json, all numbers.

    python test/bench/bench_pipeline.py --rates 5 10 15 30 100
    python test/bench/bench_pipeline.py --rates 100 --variant one:pipeline=never \
        two:pipeline=always
    python test/bench/bench_pipeline.py --cameras front left --rates 10 --trace out/timeline

Counted as what: `network` is the engine's pass from packed input to outputs, p50 over the frames
of the case; `readout` makes the maps; all else lies between the arrival of a frame and the
publication of its last map (waiting in its slot, conversion, packing, checks, messages).  `age`
is from the stamp of the camera to that publication, `arrival` to the moment when the listener has
a map.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).parent))

import timeline  # noqa: E402

MAPS = ('semantic/mask', 'semantic/confidence', 'anomaly/score', 'anomaly/mask')
WARM_UP_SECONDS = 1.0
MAIN_STAGES = ('convert', 'engine', 'readout', 'publish')


def key_of(stamp) -> str:
    """Return the key of a stamp in the timeline."""
    return f'{stamp.sec}.{stamp.nanosec:09d}'


def run_node(options) -> int:
    """Run the perception node with its functions recorded; write the timeline at the end."""
    from owseg_ros.engine.network import NetworkEngine
    from owseg_ros.engine.onnx import OnnxEngine
    from owseg_ros.nodes import diagnostics, inputs, outputs, perception
    from owseg_ros.nodes.process import run
    from owseg_ros.readout import CpuReadout
    from rclpy.executors import SingleThreadedExecutor
    spans = timeline.Timeline(memory=options.memory)
    done: list[dict] = []

    original = diagnostics.FrameStatistics.frame_out

    def frame_out(self, age, latency, network_ms, readout_ms, *more):
        done.append({'at': time.monotonic(), 'age_ms': 1e3 * age, 'latency_ms': 1e3 * latency,
                     'network_ms': network_ms, 'readout_ms': readout_ms,
                     'cpu': time.process_time()})
        original(self, age, latency, network_ms, readout_ms, *more)

    diagnostics.FrameStatistics.frame_out = frame_out
    spans.wrap(SingleThreadedExecutor, '_take_subscription', 'receive')
    spans.wrap(perception.PerceptionNode, 'receive', 'slot',
               lambda node, camera, message: key_of(message.header.stamp))
    spans.wrap(perception.PerceptionNode, '_begin', 'begin',
               lambda node, batch: key_of(batch[0].message.header.stamp))
    spans.wrap(perception.PerceptionNode, '_finish', 'finish',
               lambda node, work: key_of(work.requests[0].pending.message.header.stamp))
    spans.wrap(inputs.ImageInput, 'convert', 'convert',
               lambda _, message, *more: key_of(message.header.stamp))
    spans.wrap(NetworkEngine, 'infer', 'engine')
    spans.wrap(NetworkEngine, '_pack', 'pack')
    spans.wrap(NetworkEngine, '_check', 'check')
    spans.wrap(OnnxEngine, '_run', 'network')
    spans.wrap(CpuReadout, '__call__', 'readout')
    spans.wrap(outputs.ImageOutput, 'message', 'message',
               lambda _, result, frame, header, *more: key_of(header.stamp))
    spans.wrap(perception, 'publish_outputs', 'publish',
               lambda found, result, frame, header, *more: key_of(header.stamp))
    code = run([lambda dds: perception.PerceptionNode(dds=dds, autostart=True)],
               options.ros_arguments)
    spans.write(Path(options.timeline), frames=done)
    return code


def run_camera(options) -> int:
    """Publish frames rendered before on the topics of all cameras, until a signal."""
    import numpy as np
    from owseg_ros.frame import array_to_image, Frame, frame_to_compressed
    from owseg_ros.nodes import qos, transport
    from owseg_ros.source import open_source
    import rclpy
    from sensor_msgs.msg import CompressedImage, Image
    transport.prepare()
    width, height = (int(value) for value in options.size.split('x'))
    source = open_source('scene', width=width, height=height)
    frames = [source.read() for _ in range(options.frames)]
    make = (array_to_image if options.transport == 'raw' else
            lambda pixels, encoding: frame_to_compressed(Frame(np.ascontiguousarray(pixels))))
    messages = [make(frame, 'rgb8') for frame in frames]
    kind, topic = ((Image, 'image') if options.transport == 'raw'
                   else (CompressedImage, 'image/compressed'))
    ended = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ended.set())
    with rclpy.init():
        node = rclpy.create_node('bench_camera')
        publishers = [node.create_publisher(
            kind, f'{camera}/{topic}' if camera else topic, qos.image_output())
            for camera in options.cameras]
        period, count = 1.0 / options.rates[0], 0
        print('ready', flush=True)
        due = time.monotonic()
        # Cameras in step send with one stamp; others share the period evenly.
        groups = [publishers] if options.in_step else [[entry] for entry in publishers]
        while not ended.is_set():
            for group in groups:
                stamp = node.get_clock().now().to_msg()
                for publisher in group:
                    message = messages[count % len(messages)]
                    message.header.stamp = stamp
                    publisher.publish(message)
                    count += 1
                due = max(due + period / len(groups), time.monotonic() - period)
                ended.wait(max(0.0, due - time.monotonic()))
        node.destroy_node()
    return 0


class Listener:
    """Takes the maps of all cameras and keeps their ages in ms, with the time of arrival."""

    def __init__(self, cameras, maps):
        from owseg_ros.nodes import transport
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image
        transport.prepare()
        self.ages: dict[str, list[tuple[float, float]]] = {}
        rclpy.init()
        self.node = rclpy.create_node('bench_listener')
        for topic in (f'{camera}/{name}' if camera else name for camera in cameras
                      for name in maps):
            found = self.ages[topic] = []
            self.node.create_subscription(
                Image, topic, lambda data, found=found: self._received(data, found),
                QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT), raw=True)
        self.executor = SingleThreadedExecutor()
        self.executor.add_node(self.node)

    def _received(self, data: bytes, found: list) -> None:
        # The stamp stands behind the four bytes that tell the encoding of the message.
        seconds, nanoseconds = struct.unpack_from('<iI', data, 4)
        now = self.node.get_clock().now().nanoseconds
        found.append((time.monotonic(), 1e-6 * now - 1e3 * seconds - 1e-6 * nanoseconds))

    def spin(self, seconds: float, until=lambda: False) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            self.executor.spin_once(timeout_sec=0.05)

    def close(self) -> None:
        import rclpy
        self.executor.shutdown(1.0)
        self.node.destroy_node()
        rclpy.try_shutdown()


def beside(spans) -> list[float]:
    """
    Return CPU ms of each frame beside network and readout, in the threads that work on it.

    What the executor spends is not in it; a batch counts once.
    """
    sign = {'begin': 1.0, 'finish': 1.0, 'network': -1.0, 'readout': -1.0}
    frames: dict[str, dict[str, float]] = {}
    for span in spans:
        if span.name in sign:
            times = frames.setdefault(span.frame, {})
            times[span.name] = times.get(span.name, 0.0) + 1e3 * span.cpu
    return [sum(sign[name] * time for name, time in times.items())
            for times in frames.values() if times.keys() == sign.keys()]


def percentiles(values) -> dict[str, float]:
    """Return p50, p95 and p99 of some numbers."""
    values = list(values)
    cuts = statistics.quantiles(values, n=100, method='inclusive')
    return {name: round(cuts[index], 2) for name, index in (('p50', 49), ('p95', 94), ('p99', 98))}


def measure(options, variant: dict, rate: float, folder: Path) -> dict:
    """Run one case once; return its numbers and the path of its timeline."""
    root = variant.get('root', str(ROOT))
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(
        [root, os.environ.get('PYTHONPATH', '')])}
    path = folder / f'{variant["name"]}_{rate:g}.json'
    common = [sys.executable, __file__, '--size', options.size, '--transport', options.transport,
              '--cameras', *options.cameras]
    parameters = {'cameras': json.dumps(options.cameras), 'image_transport': options.transport,
                  'model': options.model, **variant['parameters']}
    node = subprocess.Popen(
        [*common, '--role', 'node', '--timeline', str(path), *['--memory'] * options.memory,
         '--ros-args', '--log-level', 'warn',
         *(part for name, value in parameters.items() if value != ''
           for part in ('-p', f'{name}:={value}'))], env=environment)
    camera = subprocess.Popen(
        [*common, '--role', 'camera', '--rates', str(rate), *['--in-step'] * options.in_step],
        env=environment)
    listener = Listener(options.cameras, options.maps)
    try:
        listener.spin(60.0, lambda: node.poll() is not None or all(
            len(found) > 3 for found in listener.ages.values()))
        if not all(listener.ages.values()):
            raise RuntimeError('no maps within 60 s')
        listener.spin(WARM_UP_SECONDS)
        start = time.monotonic()
        listener.spin(options.seconds)
        end = time.monotonic()
        node.send_signal(signal.SIGINT)
        # The node publishes its last maps; the camera goes on, as cameras do.
        node.wait(30)
    finally:
        listener.close()
        for process in (camera, node):
            process.terminate()
            process.wait(30)
    spans, metadata = timeline.read(path)
    spans = [span for span in spans if start <= span.begin and span.end <= end]
    frames = [frame for frame in metadata['frames'] if start <= frame['at'] <= end]
    if len(frames) < 5:
        raise RuntimeError(f'only {len(frames)} frames in {options.seconds} s')
    last = [age for found in listener.ages.values() for at, age in found if start <= at <= end]
    stages = {name: [span for span in spans if span.name == name]
              for name in dict.fromkeys(span.name for span in spans)}
    return {
        'frames': frames, 'arrival_ms': last, 'seconds': end - start, 'beside': beside(spans),
        'cpu_ms': 1e3 * (frames[-1]['cpu'] - frames[0]['cpu']) / (len(frames) - 1),
        'stages': {name: {'ms': [span.ms for span in found],
                          'cpu_ms': [1e3 * span.cpu for span in found],
                          'allocated': [span.allocated for span in found]}
                   for name, found in stages.items()},
        'timeline': str(path)}


def summary(rounds: list[dict]) -> dict:
    """Return the numbers of the rounds of one case together."""
    frames = [frame for entry in rounds for frame in entry['frames']]
    seconds = sum(entry['seconds'] for entry in rounds)
    stages = {}
    for name in rounds[0]['stages']:
        found = {key: [value for entry in rounds for value in entry['stages'].get(name, {}).get(
            key, [])] for key in ('ms', 'cpu_ms', 'allocated')}
        stages[name] = {
            'ms': percentiles(found['ms']), 'cpu_ms': round(statistics.median(found['cpu_ms']), 3),
            'per_frame': round(len(found['ms']) / len(frames), 2),
            'allocated': int(statistics.median(found['allocated']))}
    network = statistics.median(frame['network_ms'] for frame in frames)
    readout = statistics.median(frame['readout_ms'] for frame in frames)
    latency = percentiles(frame['latency_ms'] for frame in frames)
    age = percentiles(frame['age_ms'] for frame in frames)
    inside = statistics.median(
        frame['latency_ms'] - frame['network_ms'] - frame['readout_ms'] for frame in frames)
    return {
        'frames': len(frames), 'rate_hz': round(len(frames) / seconds, 2),
        'network_ms': round(network, 2), 'readout_ms': round(readout, 2),
        'latency_ms': latency, 'age_ms': age,
        'arrival_ms': percentiles(value for entry in rounds for value in entry['arrival_ms']),
        'beside_cpu_ms': round(statistics.median(
            value for entry in rounds for value in entry['beside']), 2),
        'cpu_ms_per_frame': round(statistics.mean(entry['cpu_ms'] for entry in rounds), 1),
        'period_over_network': round(1e3 * seconds / len(frames) / network, 3),
        'readout_over_network': round(readout / network, 3),
        'beside_over_network': round(inside / network, 3),
        'age_p50_over_network': round(age['p50'] / network, 3),
        'age_p95_over_network': round(age['p95'] / network, 3),
        'stages': stages}


def variant_of(text: str) -> dict:
    """Return a variant from NAME, NAME:parameter=value,... or NAME:root=FOLDER."""
    name, _, rest = text.partition(':')
    parameters = dict(part.split('=', 1) for part in rest.split(',') if part)
    root = parameters.pop('root', None)
    return {'name': name, 'parameters': parameters, **({'root': root} if root else {})}


def main() -> int:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--rates', type=float, nargs='+', default=[5, 10, 15, 30, 100],
                        help='of each camera, Hz; 100 is more than the node can take')
    parser.add_argument('--variant', type=variant_of, nargs='+', default=[variant_of('node')],
                        help='NAME or NAME:parameter=value,...; root=FOLDER for another checkout')
    parser.add_argument('--cameras', nargs='+', default=[''])
    parser.add_argument('--in-step', action='store_true', help='cameras send with one stamp')
    parser.add_argument('--rounds', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=8.0, help='of each round')
    parser.add_argument('--size', default='640x480')
    parser.add_argument('--transport', choices=('raw', 'compressed'), default='raw')
    parser.add_argument('--maps', nargs='+', default=list(MAPS))
    parser.add_argument('--model', default='')
    parser.add_argument('--memory', action='store_true',
                        help='measure new memory in each stage (slow: no timings)')
    parser.add_argument('--trace', default='', help='keep the timelines and pictures there')
    parser.add_argument('--json', default='')
    parser.add_argument('--frames', type=int, default=12, help='rendered before')
    parser.add_argument('--role', choices=('node', 'camera'), help=argparse.SUPPRESS)
    parser.add_argument('--timeline', help=argparse.SUPPRESS)
    options, ros_arguments = parser.parse_known_args()
    if options.role:
        options.ros_arguments = ros_arguments
        return {'node': run_node, 'camera': run_camera}[options.role](options)
    if ros_arguments:
        parser.error(f'unknown arguments {ros_arguments}')
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.trace or temporary)
        folder.mkdir(parents=True, exist_ok=True)
        cases = {}
        for rate in options.rates:
            found = {variant['name']: [] for variant in options.variant}
            for _ in range(options.rounds):
                for variant in options.variant:
                    found[variant['name']].append(measure(options, variant, rate, folder))
            for name, rounds in found.items():
                cases[f'{name} at {rate:g} Hz'] = summary(rounds)
                show(f'{name} at {rate:g} Hz', cases[f'{name} at {rate:g} Hz'])
                if options.trace:
                    draw(Path(rounds[-1]['timeline']), f'{name} at {rate:g} Hz')
    if options.json:
        Path(options.json).write_text(json.dumps(cases, indent=2) + '\n', encoding='utf-8')
    return 0


def draw(path: Path, title: str, frames: int = 4) -> None:
    """Draw about so many frames of a timeline beside it."""
    spans, metadata = timeline.read(path)
    done = [frame['at'] for frame in metadata['frames']]
    middle = done[2 * len(done) // 3]
    seconds = frames * (done[-1] - done[0]) / (len(done) - 1)
    part = [span for span in spans
            if span.end > middle and span.begin < middle + seconds and span.ms > 0.05]
    path.with_suffix('.svg').write_text(timeline.picture(part, title), encoding='utf-8')


def show(name: str, found: dict) -> None:
    """Print a case."""
    print(f'\n{name}: {found["frames"]} frames, {found["rate_hz"]} Hz; network '
          f'{found["network_ms"]} ms, readout {found["readout_ms"]} ms, CPU '
          f'{found["cpu_ms_per_frame"]} ms a frame, of which beside network and readout '
          f'{found["beside_cpu_ms"]} ms')
    print('  over network: period {period_over_network}, readout {readout_over_network}, '
          'all else {beside_over_network}, age p50 {age_p50_over_network}, p95 '
          '{age_p95_over_network}'.format(**found))
    print(f'  latency {found["latency_ms"]}  age {found["age_ms"]}  arrival '
          f'{found["arrival_ms"]}')
    for stage, numbers in found['stages'].items():
        print(f'    {stage:9} {numbers["ms"]["p50"]:8.2f} ms p50 {numbers["ms"]["p95"]:8.2f} p95 '
              f'{numbers["cpu_ms"]:8.2f} cpu  x{numbers["per_frame"]:<5} '
              f'{numbers["allocated"]:>9} bytes', flush=True)


if __name__ == '__main__':
    sys.exit(main())
