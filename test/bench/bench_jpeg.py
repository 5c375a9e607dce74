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
    python test/bench/bench_jpeg.py road_anomaly/images/*.jpg --masks road_anomaly/masks

Pictures that are no JPEG are compressed first.  With --masks, a folder of PNG files of the same
names (1 is an anomaly, 255 is left out), it prints the average precision of both scores too.
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
from sensor_msgs.msg import CompressedImage  # noqa: E402


def message_of(path: Path, quality: int) -> CompressedImage:
    """Return a picture as a message: the bytes of a JPEG, another one compressed."""
    if path.suffix.lower() not in ('.jpg', '.jpeg'):
        return frame_to_compressed(Frame(cv2.imread(str(path)), 'bgr'), quality=quality)
    message = CompressedImage(format='jpeg')
    message.data.frombytes(path.read_bytes())
    return message


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n\n')[0])
    parser.add_argument('pictures', nargs='*')
    parser.add_argument('--frames', type=int, default=12, help='of the procedural street')
    parser.add_argument('--size', default='1920x1080')
    parser.add_argument('--quality', type=int, default=90)
    parser.add_argument('--masks', default='')
    options = parser.parse_args()
    segmenter = Segmenter(default_bundle_path())
    segmenter.warm_up()
    if options.pictures:
        messages = [message_of(Path(path), options.quality) for path in options.pictures]
    else:
        width, height = (int(value) for value in options.size.split('x'))
        source = open_source('scene', width=width, height=height)
        messages = [frame_to_compressed(Frame(source.read()), quality=options.quality)
                    for _ in range(options.frames)]
    times: dict[str, list[float]] = {}
    found: dict[str, list[float]] = {}
    scores: dict[str, list[np.ndarray]] = {'whole': [], 'reduced': []}
    for message in messages:
        maps = {}
        for name, at_least in (('whole', None), ('reduced', segmenter.network_size)):
            start = time.perf_counter()
            frame = compressed_to_frame(message, at_least=at_least)
            times.setdefault(f'decode, {name}', []).append(time.perf_counter() - start)
            maps[name] = segmenter(frame)
            times.setdefault(f'pack, {name}', []).append(1e-3 * maps[name].preprocess_ms)
            scores[name].append(maps[name].anomaly_score)
        whole, reduced = maps['whole'], maps['reduced']
        known = np.isin(whole.semantic, (254, 255), invert=True)
        found.setdefault('class differs, % of known pixels', []).append(
            100 * np.mean(whole.semantic[known] != reduced.semantic[known]))
        found.setdefault('anomaly/mask differs, % of pixels', []).append(
            100 * np.mean(whole.anomaly_mask != reduced.anomaly_mask))
        found.setdefault('anomaly/score, mean difference', []).append(
            np.abs(whole.anomaly_score - reduced.anomaly_score).mean())
    print(f'{len(messages)} frames {frame.width}x{frame.height}, decoded to '
          f'{frame.pixels.shape[1]}x{frame.pixels.shape[0]}, network '
          f'{segmenter.network_size[1]}x{segmenter.network_size[0]}')
    for name, values in times.items():
        print(f'{name:36} {1e3 * statistics.median(values):8.2f} ms')
    for name, values in found.items():
        print(f'{name:36} {statistics.mean(values):8.4f} mean {max(values):8.4f} most')
    if options.masks:
        from sklearn.metrics import average_precision_score
        labels = np.concatenate([
            cv2.imread(str(Path(options.masks, f'{Path(path).stem}.png')), cv2.IMREAD_GRAYSCALE)
            .ravel() for path in options.pictures])
        for name, found in scores.items():
            values = np.concatenate([score.ravel() for score in found])[labels != 255]
            print(f'average precision, {name:17} '
                  f'{average_precision_score(labels[labels != 255] == 1, values):8.4f}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
