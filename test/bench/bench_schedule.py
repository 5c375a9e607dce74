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
What the order of work does to rate and age: slots and threads of the node, with waits for work.

The network and the readout are waits of a given length, so that a busy machine hardly disturbs
them; as on a GPU they do not take time from each other.  All cases run side by side.  Prints, for
each camera rate and each way to schedule, the rate of results, the age of a frame when it is done
(p50, p95; in times of the network) and the mean age of what a listener knows, which grows until
the next result comes.

    python test/bench/bench_schedule.py --network 40 --readout 12
    python test/bench/bench_schedule.py --network 60 --readout 24 --jitter 0.1 --old 0.33
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import sys
import time

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from owseg_ros.nodes import slot  # noqa: E402
from owseg_ros.nodes.pipeline import Pipeline  # noqa: E402
from owseg_ros.nodes.slot import FrameSlots  # noqa: E402

WAYS = {
    'one after the other': {'overlap': False, 'prefer_fresh': False},
    '... and fresh frames': {'overlap': False, 'prefer_fresh': True},
    'overlapped': {'overlap': True, 'prefer_fresh': False},
    '... and fresh frames ': {'overlap': True, 'prefer_fresh': True},
}


def play(rate: float, way: dict, options) -> dict:
    """Run a camera at a rate for a while; return the numbers."""
    slots = FrameSlots([''], prefer_fresh=way['prefer_fresh'])
    done: list[tuple[float, float]] = []
    shares = np.random.default_rng(0)

    def begin(batch):
        time.sleep(1e-3 * options.network * shares.lognormal(0.0, options.jitter))
        return batch[0].stamp

    def finish(stamp):
        time.sleep(1e-3 * options.readout)
        done.append((time.monotonic(), stamp))

    pipeline = Pipeline(slots, begin, finish, lambda: way['overlap'])
    pipeline.start()
    start = due = time.monotonic()
    while due < start + options.seconds:
        time.sleep(max(0.0, due - time.monotonic()))
        slots.put('', None, time.monotonic())
        due += 1.0 / rate
    pipeline.stop()
    times, stamps = np.array(done[3:]).T
    ages = 1e3 * (times - stamps) / options.network
    # Between two results, what is known ages from the age of the first on.
    gaps = np.diff(times)
    known = np.sum(gaps * (times[:-1] - stamps[:-1]) + gaps ** 2 / 2) / gaps.sum()
    return {'rate': len(gaps) / gaps.sum(), 'p50': np.percentile(ages, 50),
            'p95': np.percentile(ages, 95), 'known': 1e3 * known / options.network}


def main() -> int:
    """Run all cases and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('--network', type=float, default=40.0, help='ms')
    parser.add_argument('--readout', type=float, default=12.0, help='ms, with the messages')
    parser.add_argument('--jitter', type=float, default=0.0,
                        help='of the network: sigma of the logarithm of its time')
    parser.add_argument('--old', type=float, default=slot._OLD,
                        help='share of a period after which a fresh frame is waited for')
    parser.add_argument('--rates', type=float, nargs='+', default=[5, 10, 15, 22, 30, 60, 100])
    parser.add_argument('--seconds', type=float, default=20.0)
    options = parser.parse_args()
    slot._OLD = options.old
    cases = [(rate, name) for rate in options.rates for name in WAYS]
    with ThreadPoolExecutor(len(cases)) as pool:
        found = dict(zip(cases, pool.map(
            lambda case: play(case[0], WAYS[case[1]], options), cases)))
    print('| camera Hz | way | results a second | age p50 | age p95 | age of what is known |\n'
          '|---|---|---|---|---|---|')
    for (rate, name), numbers in found.items():
        print(f'| {rate:g} | {name.strip()} | {numbers["rate"]:.1f} | {numbers["p50"]:.2f} | '
              f'{numbers["p95"]:.2f} | {numbers["known"]:.2f} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
