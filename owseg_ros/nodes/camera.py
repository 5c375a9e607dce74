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
The node `camera`: publishes a video, a folder of images, a webcam or the procedural street.

A plain node, as the camera drivers in the field are: it has nothing expensive to configure, and
publishing from the start means that no lifecycle manager is needed to see a picture. Frames are
made and published in a thread of their own, at the rate of the source, so that neither decoding
nor rendering holds up the executor that it shares with other nodes.
"""

from __future__ import annotations

import math
import sys
import threading
import time
import traceback
from typing import Any, Mapping

import cv2
from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from owseg_ros.errors import OwsegError
from owseg_ros.frame import array_to_image
from owseg_ros.frame import Frame
from owseg_ros.frame import frame_to_compressed
from owseg_ros.nodes import qos
from owseg_ros.nodes import transport
from owseg_ros.nodes.diagnostics import ERROR
from owseg_ros.nodes.diagnostics import OK
from owseg_ros.nodes.diagnostics import Reporter
from owseg_ros.nodes.diagnostics import status
from owseg_ros.nodes.parameters import CAMERA
from owseg_ros.nodes.parameters import ParameterTable
from owseg_ros.nodes.process import run
from owseg_ros.source import open_source, UnreadableImageError
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import CameraInfo
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image
from std_msgs.msg import Header

RETRY_SECONDS = 3.0
"""A source that cannot be opened is tried again after this time (a webcam may be plugged in)."""

SETTLE_SECONDS = 3.5
"""
How long the first frame is held after the last subscriber came (`wait_for_subscriber`).

Participants of DDS that miss each other's first announcement meet at the next, after 3 s.
"""

DEFAULT_RATE = 15.0
"""Frames per second of a source that has no rate of its own (images)."""

_SOURCE_PARAMETERS = frozenset({'source', 'loop', 'width', 'height'})


def camera_info(header: Header, width: int, height: int, matrix: np.ndarray) -> CameraInfo:
    """
    Return the calibration of an undistorted pinhole camera (REP 104).

    :param header: of the image, used unchanged.
    :param matrix: K, float64 [3, 3], in pixels of the published image.
    """
    projection = np.hstack([matrix, np.zeros((3, 1))])
    return CameraInfo(
        header=header, width=width, height=height, distortion_model='plumb_bob',
        d=[0.0] * 5, k=matrix.ravel().tolist(), r=np.eye(3).ravel().tolist(),
        p=projection.ravel().tolist())


def matrix_from_field_of_view(width: int, height: int, hfov_deg: float) -> np.ndarray:
    """Return K [3, 3] for square pixels, the centre in the middle and a horizontal angle."""
    focal = 0.5 * width / math.tan(math.radians(0.5 * hfov_deg))
    return np.array([
        [focal, 0.0, 0.5 * (width - 1)], [0.0, focal, 0.5 * (height - 1)], [0.0, 0.0, 1.0]])


class CameraNode(Node):
    """
    Publishes `image`, `camera_info` and, when asked, `image/compressed`, with the same header.

    :param dds: the transport of this process, as `transport.prepare` returned it.
    :param options: passed to `rclpy.node.Node` (context, namespace, ...).
    :raises rclpy.exceptions.ParameterException: a parameter given at start is invalid.
    """

    def __init__(self, *, dds: transport.Transport | None = None, **options: Any) -> None:
        super().__init__(options.pop('node_name', 'camera'), **options)
        self._dds = dds or transport.check()
        self._changed = threading.Event()
        self._stopped = False
        self._state, self._level, self._detail = 'opening', OK, ''
        self._frames = 0
        self._reporter = Reporter(
            self, self._statuses, lambda: self._table['diagnostics_period'])
        self._thread = threading.Thread(target=self._run, name='camera', daemon=True)
        self._table = ParameterTable(self, CAMERA, self._apply)
        self._image = self.create_publisher(Image, 'image', qos.image_output())
        self._compressed = self.create_publisher(
            CompressedImage, 'image/compressed', qos.image_output())
        self._info = self.create_publisher(CameraInfo, 'camera_info', qos.image_output())
        self._leave = self.create_guard_condition(self._shutdown)
        self._reporter.start()
        self._thread.start()

    def destroy_node(self) -> None:
        """Stop the threads, close the source and destroy the node."""
        self._stopped = True
        self._changed.set()
        if self._thread.is_alive():
            # A source that is slow to open must not hold up the end; the thread sees the flag.
            self._thread.join(0.5)
        self._reporter.stop()
        super().destroy_node()

    def _apply(self, changed: Mapping[str, Any]) -> None:
        if _SOURCE_PARAMETERS & changed.keys():
            self._changed.set()

    def _shutdown(self) -> None:
        # In the executor: its spin ends by this, and the process goes the way of a signal.
        raise ExternalShutdownException()

    # The thread of the camera

    def _run(self) -> None:
        while True:
            self._changed.clear()
            if self._stopped or not self.context.ok():
                return
            name = self._table['source']
            try:
                source = open_source(
                    name, loop=self._table['loop'], width=self._table['width'],
                    height=self._table['height'], fps=self._table['rate'])
            except OwsegError as error:
                self._fail(f'source {name}: {error}')
                self._changed.wait(RETRY_SECONDS)
                continue
            try:
                self._enter('running', OK, f'{name} at {self._period(source):.4f} s a frame')
                self._play(source)
            except OwsegError as error:
                self._fail(f'source {name}: {error}')
                self._changed.wait(RETRY_SECONDS)
            except Exception as error:
                if self.context.ok():
                    self.get_logger().error(traceback.format_exc())
                    self._fail(f'source {name}: {error!r}')
                    self._changed.wait(RETRY_SECONDS)
            finally:
                source.close()

    def _play(self, source: Any) -> None:
        self._await_listeners()
        due = time.monotonic()
        while True:
            try:
                rgb = source.read()
            except UnreadableImageError as error:
                self.get_logger().warning(str(error))
                # Not at once: all of a looped folder may have gone.
                if self._interrupted(self._period(source)):
                    return
                continue
            if rgb is None:
                return self._end()
            # The stamp is the moment of the exposure, which is when the frame is due.
            if self._interrupted(due - time.monotonic()):
                return
            self._publish(rgb, source)
            # After a stall the camera goes on from now and does not catch up.
            due = max(due + self._period(source), time.monotonic() - self._period(source))

    def _await_listeners(self) -> None:
        """Return once somebody listens and nobody has joined for a while, if that is asked."""
        listeners, since = 0, time.monotonic()
        while self._table['wait_for_subscriber'] and not self._interrupted(0.02):
            if listeners != self._listeners():
                listeners, since = self._listeners(), time.monotonic()
            elif listeners and time.monotonic() - since >= SETTLE_SECONDS:
                break

    def _interrupted(self, seconds: float) -> bool:
        return (self._changed.wait(max(0.0, seconds)) or self._stopped
                or not self.context.ok())

    def _end(self) -> None:
        text = f'{self._table["source"]} ended after {self._frames} frames'
        self._enter('ended', OK, text)
        self.get_logger().info(text)
        if self._table['shutdown_at_end']:
            self._leave.trigger()
        while not self._interrupted(1.0):
            pass

    def _publish(self, rgb: np.ndarray, source: Any) -> None:
        self._frames += 1
        wants_image = self._image.get_subscription_count() > 0
        wants_compressed = self._table['publish_compressed'] and (
            self._compressed.get_subscription_count() > 0)
        wants_info = self._info.get_subscription_count() > 0
        if not (wants_image or wants_compressed or wants_info):
            return
        header = Header(
            stamp=self.get_clock().now().to_msg(), frame_id=self._table['frame_id'])
        full_height, full_width = rgb.shape[:2]
        rgb = self._resized(rgb)
        height, width = rgb.shape[:2]
        if wants_image:
            encoding = self._table['encoding']
            pixels = rgb if encoding == 'rgb8' else cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
            self._image.publish(array_to_image(pixels, encoding, header))
        if wants_info:
            matrix = getattr(source, 'camera_matrix', None)
            if matrix is None:
                matrix = matrix_from_field_of_view(width, height, self._table['hfov_deg'])
            else:
                matrix = np.diag([width / full_width, height / full_height, 1.0]) @ matrix
            self._info.publish(camera_info(header, width, height, matrix))
        if wants_compressed:
            self._compressed.publish(frame_to_compressed(
                Frame(rgb), 'jpeg', header, self._table['jpeg_quality']))

    def _resized(self, rgb: np.ndarray) -> np.ndarray:
        height, width = rgb.shape[:2]
        wanted_width, wanted_height = self._table['width'], self._table['height']
        if not wanted_width and not wanted_height:
            return rgb
        size = (wanted_width or max(1, round(width * wanted_height / height)),
                wanted_height or max(1, round(height * wanted_width / width)))
        if size == (width, height):
            return rgb
        shrinks = size[0] < width
        return cv2.resize(rgb, size, interpolation=(
            cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR))

    def _period(self, source: Any) -> float:
        return 1.0 / (self._table['rate'] or source.fps or DEFAULT_RATE)

    def _listeners(self) -> int:
        return self._image.get_subscription_count() + self._compressed.get_subscription_count()

    # Diagnostics

    def _enter(self, state: str, level: bytes, detail: str) -> None:
        self._state, self._level, self._detail = state, level, detail
        self._reporter.report()

    def _fail(self, text: str) -> None:
        if self._detail != text:
            self.get_logger().error(text)
        self._enter('error', ERROR, text)

    def _statuses(self) -> list[DiagnosticStatus]:
        return [status(
            f'{self.get_fully_qualified_name()}: source', self._level,
            f'{self._state}: {self._detail}', {
                'state': self._state, 'source': self._table['source'],
                'frames': self._frames, 'dds': self._dds.description})]


def main(args: list[str] | None = None) -> int:
    """Run the node in a process of its own."""
    return run([lambda dds: CameraNode(dds=dds)], args)


if __name__ == '__main__':
    sys.exit(main())
