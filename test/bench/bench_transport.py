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
Measure images between two processes, with and without what `transport.prepare` does.

Prints one line per case: how many images arrived, and their age from before `publish` to the
callback. Run it with `python test/bench/bench_transport.py [--frames 100]`.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
import subprocess
import sys
import time

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

SIZES = {'480p': (640, 480), '1080p': (1920, 1080), '4K': (3840, 2160)}
CASES = (
    ('as installed', {}),
    ('profile', {'profile': True}),
    ('profile and allocator', {'profile': True, 'allocator': True}),
)


def publish(settings: dict) -> dict:
    """Publish images at a rate once a subscriber is there; return the cost of `publish`."""
    import numpy as np
    import rclpy
    from owseg_ros.frame import array_to_image
    from sensor_msgs.msg import Image
    with rclpy.init():
        node = rclpy.create_node('bench_publisher')
        publisher = node.create_publisher(Image, 'bench_image', profile_of(settings))
        width, height = settings['size']
        pixels = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
        poll(lambda: publisher.get_subscription_count() > 0)
        costs, due = [], time.monotonic()
        for _ in range(settings['frames']):
            message = array_to_image(pixels, 'rgb8')
            message.header.stamp = node.get_clock().now().to_msg()
            start = time.perf_counter()
            publisher.publish(message)
            costs.append(1e3 * (time.perf_counter() - start))
            due += 1.0 / settings['rate']
            time.sleep(max(0.0, due - time.monotonic()))
        poll(lambda: publisher.get_subscription_count() == 0)
    return {'publish_ms': float(np.median(costs)), 'publish_ms_max': max(costs)}


def subscribe(settings: dict) -> dict:
    """Receive images until they stop; return their number and ages."""
    import numpy as np
    import rclpy
    from sensor_msgs.msg import Image
    with rclpy.init():
        node = rclpy.create_node('bench_subscriber')
        ages: list[float] = []

        def received(message: Image) -> None:
            stamp = message.header.stamp
            ages.append(
                1e-6 * node.get_clock().now().nanoseconds
                - (1e3 * stamp.sec + 1e-6 * stamp.nanosec))

        subscription = node.create_subscription(
            Image, 'bench_image', received, profile_of(settings))
        poll(lambda: subscription.get_publisher_count() > 0)
        end = time.monotonic() + settings['frames'] / settings['rate'] + 1.0
        cpu = time.process_time()
        while time.monotonic() < end:
            rclpy.spin_once(node, timeout_sec=0.1)
        cpu = time.process_time() - cpu
    steady = ages[len(ages) // 10:]
    result = {'received': len(ages), 'cpu_ms': 1e3 * cpu / max(1, len(ages))}
    if steady:
        p50, p95 = np.percentile(steady, (50, 95))
        result.update(age_ms_p50=float(p50), age_ms_p95=float(p95))
    return result


def profile_of(settings: dict):
    """Return the quality of service of a case: depth 1."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    return QoSProfile(depth=1, reliability=(
        ReliabilityPolicy.RELIABLE if settings['reliable'] else ReliabilityPolicy.BEST_EFFORT))


def poll(predicate) -> None:
    """Wait until a predicate holds, or 20 s."""
    deadline = time.monotonic() + 20.0
    while not predicate() and time.monotonic() < deadline:
        time.sleep(0.005)


def measure(settings: dict, options: dict) -> dict:
    """Run one case in two processes."""
    from owseg_ros.nodes import transport
    environment = {
        key: value for key, value in os.environ.items()
        if key not in transport.PROFILE_VARIABLES}
    environment['ROS_DOMAIN_ID'] = str(settings['domain'])
    if options.get('profile'):
        environment[transport.profile_variable()] = str(transport.profile_path())
    settings = {**settings, 'allocator': bool(options.get('allocator'))}
    processes = [
        subprocess.Popen([sys.executable, __file__, '--role', role, json.dumps(settings)],
                         env=environment, stdout=subprocess.PIPE, text=True)
        for role in ('subscribe', 'publish')]
    result: dict = {}
    for process in processes:
        output, _ = process.communicate(timeout=300)
        result.update(json.loads(output.splitlines()[-1]))
    return result


def main() -> None:
    """Run the cases and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--frames', type=int, default=60)
    parser.add_argument('--rate', type=float, default=15.0)
    parser.add_argument('--domain', type=int, default=int(os.environ.get('ROS_DOMAIN_ID', 97)))
    parser.add_argument('--sizes', nargs='+', choices=list(SIZES), default=['480p', '1080p'])
    parser.add_argument('--role', help=argparse.SUPPRESS)
    parser.add_argument('settings', nargs='?', help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.role:
        from owseg_ros.nodes import transport
        settings = json.loads(arguments.settings)
        if settings['allocator']:
            transport.keep_large_buffers()
        act = {'publish': publish, 'subscribe': subscribe}[arguments.role]
        print(json.dumps(act(settings)))
        return
    print(f'{"image":6} {"reliability":12} {"transport":22} {"received":>9} {"age p50":>8} '
          f'{"p95":>7} {"publish":>8} {"max":>6} {"cpu/msg":>8}   (ms)')
    for size in arguments.sizes:
        for reliable in (False, True):
            for name, options in CASES:
                result = measure({
                    'size': SIZES[size], 'frames': arguments.frames, 'rate': arguments.rate,
                    'domain': arguments.domain, 'reliable': reliable}, options)
                print(f'{size:6} {"reliable" if reliable else "best effort":12} {name:22} '
                      f'{result["received"]:4}/{arguments.frames:<4} '
                      f'{result.get("age_ms_p50", float("nan")):8.1f} '
                      f'{result.get("age_ms_p95", float("nan")):7.1f} '
                      f'{result["publish_ms"]:8.2f} {result["publish_ms_max"]:6.1f} '
                      f'{result["cpu_ms"]:8.2f}', flush=True)


if __name__ == '__main__':
    main()
