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
Decode JPEG frames at the scale of the network: what it saves, and what it does to the masks.

Each picture is decoded whole and at a fraction, in turns, and both go through the network and the
readout.  Prints medians of the times and how far the maps of camera size disagree.

    python test/bench/bench_jpeg.py                      # the procedural street at 1920x1080
    python test/bench/bench_jpeg.py data/camvid/*.png    # pictures, compressed at quality 90
"""

from __future__ import annotations

import argparse
from pathlib import Path
import statistics
import sys
import time

import cv2
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from owseg_ros.bundle import default_bundle_path  # noqa: E402
from owseg_ros.frame import compressed_to_frame, Frame, frame_to_compressed  # noqa: E402
from owseg_ros.segmenter import Segmenter  # noqa: E402
from owseg_ros.source import open_source  # noqa: E402


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('pictures', nargs='*')
    parser.add_argument('--frames', type=int, default=12, help='of the procedural street')
    parser.add_argument('--size', default='1920x1080')
    parser.add_argument('--quality', type=int, default=90)
    options = parser.parse_args()
    segmenter = Segmenter(default_bundle_path())
    segmenter.warm_up()
    if options.pictures:
        frames = [cv2.imread(path)[:, :, ::-1] for path in options.pictures]
    else:
        width, height = (int(value) for value in options.size.split('x'))
        source = open_source('scene', width=width, height=height)
        frames = [source.read() for _ in range(options.frames)]
    times: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {}
    for pixels in frames:
        message = frame_to_compressed(Frame(pixels), quality=options.quality)
        maps = {}
        for name, at_least in (('whole', None), ('reduced', segmenter.network_size)):
            start = time.perf_counter()
            frame = compressed_to_frame(message, at_least=at_least)
            times.setdefault(f'decode, {name}', []).append(time.perf_counter() - start)
            maps[name] = segmenter(frame)
            times.setdefault(f'pack, {name}', []).append(1e-3 * maps[name].preprocess_ms)
        whole, reduced = maps['whole'], maps['reduced']
        known = np.isin(whole.semantic, (254, 255), invert=True)
        found.setdefault('class differs, % of known pixels', []).append(
            100 * np.mean(whole.semantic[known] != reduced.semantic[known]))
        found.setdefault('anomaly/mask differs, % of pixels', []).append(
            100 * np.mean(whole.anomaly_mask != reduced.anomaly_mask))
        found.setdefault('anomaly/score, mean difference', []).append(
            np.abs(whole.anomaly_score - reduced.anomaly_score).mean())
    print(f'{len(frames)} frames {frames[0].shape[1]}x{frames[0].shape[0]}, decoded to '
          f'{frame.pixels.shape[1]}x{frame.pixels.shape[0]}, network '
          f'{segmenter.network_size[1]}x{segmenter.network_size[0]}')
    for name, values in times.items():
        print(f'{name:36} {1e3 * statistics.median(values):8.2f} ms')
    for name, values in found.items():
        print(f'{name:36} {statistics.mean(values):8.4f} mean {max(values):8.4f} most')
    return 0


if __name__ == '__main__':
    sys.exit(main())
