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
"""The published results of a camera: a topic is computed and sent while somebody listens."""

from __future__ import annotations

from dataclasses import dataclass
import threading
from typing import Any, Callable, Union

import numpy as np
from owseg_ros.bundle import Bundle
from owseg_ros.frame import array_to_image
from owseg_ros.frame import Frame
from owseg_ros.language.scores import PreparedQueries
from owseg_ros.nodes import labels
from owseg_ros.nodes import qos
from owseg_ros.nodes.inputs import camera_topic
from owseg_ros.novelty.match import PreparedPrototypes
from owseg_ros.readout.maps import ReadoutSettings
from owseg_ros.segmenter import REGIONS
from owseg_ros.segmenter import Segmentation
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from std_msgs.msg import String


@dataclass(frozen=True)
class ImageOutput:
    """
    One image topic: its encoding, the maps it is made of, and how.

    `make` gets the segmentation, the frame and the weight of the overlay; `shows_frame` says
    whether it needs each pixel of the frame.
    """

    topic: str
    encoding: str
    maps: frozenset[str]
    make: Callable[[Segmentation, Frame, float], np.ndarray]
    shows_frame: bool = False

    type = Image  # noqa: A003

    def message(self, result: Segmentation, frame: Frame, header: Any, alpha: float,
                last: Image | None = None) -> Image:
        """
        Return the message of a frame, with the header of the frame.

        :param last: the message of an earlier frame, to be written to again where it fits.
        """
        return array_to_image(self.make(result, frame, alpha), self.encoding, header, last)


@dataclass(frozen=True)
class RegionsOutput:
    """The topic `anomaly/regions`: where something unknown is, and its best name."""

    topic = 'anomaly/regions'
    # The mask, which regions are made of anyway, tells the size that they are given in.
    maps = frozenset({REGIONS, 'anomaly_mask'})
    shows_frame = False
    type = String  # noqa: A003

    def message(self, result: Segmentation, frame: Frame, header: Any, alpha: float,
                last: String | None = None) -> String:
        """Return the message of a frame; it is a new one."""
        return String(data=labels.regions_json(
            result.regions, header, result.anomaly_mask.shape))


Output = Union[ImageOutput, RegionsOutput]

IMAGES = (
    ImageOutput('semantic/mask', 'mono8', frozenset({'semantic'}),
                lambda result, frame, alpha: result.semantic),
    ImageOutput('semantic/confidence', 'mono8', frozenset({'confidence'}),
                lambda result, frame, alpha: result.confidence),
    ImageOutput('anomaly/score', '32FC1', frozenset({'anomaly_score'}),
                lambda result, frame, alpha: result.anomaly_score),
    ImageOutput('anomaly/mask', 'mono8', frozenset({'anomaly_mask'}),
                lambda result, frame, alpha: result.anomaly_mask),
    ImageOutput('semantic/color', 'rgb8', frozenset({'semantic'}),
                lambda result, frame, alpha: result.color()),
    ImageOutput('overlay', 'rgb8', frozenset({'semantic', 'anomaly_mask'}),
                lambda result, frame, alpha: result.overlay(frame, alpha), shows_frame=True),
)

QUERY_MASK = ImageOutput(
    'query/mask', 'mono8', frozenset({'query_mask'}),
    lambda result, frame, alpha: result.query_mask)
QUERY_SCORE = ImageOutput(
    'query/score', '32FC1', frozenset({'query_score'}),
    lambda result, frame, alpha: result.query_score)
QUERY_IMAGES = (QUERY_MASK, QUERY_SCORE)
"""What a model that knows words has too."""

NAMED_REGIONS = RegionsOutput()
"""What there is while the parameter `name_unknown` is set, and where regions can be taught."""


class CameraOutputs:
    """
    The publishers of one camera.

    :param node: the lifecycle node; while it is inactive nothing is sent.
    :param camera: namespace of the camera, relative to that of the node.
    :param words: whether the model knows words, so that there are the topics of queries.
    """

    def __init__(self, node: LifecycleNode, camera: str, words: bool = False) -> None:
        self._node = node
        self.messages: dict[str, Any] = {}
        """The last message of each topic, see publish_outputs."""
        # Diagnostics ask from their own thread while the executor may destroy the publishers.
        self._lock = threading.Lock()
        self._outputs = [
            (output, node.create_lifecycle_publisher(
                output.type, camera_topic(camera, output.topic), qos.image_output()))
            for output in (*IMAGES, NAMED_REGIONS, *(QUERY_IMAGES if words else ()))]
        self._labels = node.create_lifecycle_publisher(
            String, camera_topic(camera, 'labels'), qos.latched())
        label_info_type = labels.label_info_type()
        self._label_info = label_info_type and node.create_lifecycle_publisher(
            label_info_type, camera_topic(camera, 'label_info'), qos.latched())
        self._query_labels = words and node.create_lifecycle_publisher(
            String, camera_topic(camera, 'query/labels'), qos.latched())
        self._query_info = words and label_info_type and node.create_lifecycle_publisher(
            label_info_type, camera_topic(camera, 'query/label_info'), qos.latched())

    def wanted(self, regions: bool = False) -> list[tuple[Output, Any]]:
        """
        Return the outputs that have a subscriber, with their publishers.

        :param regions: whether there are regions.
        """
        with self._lock:
            return [(output, publisher) for output, publisher in self._outputs
                    if publisher.get_subscription_count()
                    and (regions or output is not NAMED_REGIONS)]

    def publish_labels(self, bundle: Bundle, settings: ReadoutSettings,
                       taught: PreparedPrototypes | None = None) -> None:
        """
        Publish the names of the ids; they stay for subscribers to come. Safe from any thread.

        :param taught: the live set; None where nothing is taught.
        """
        with self._lock:
            if self._labels is None:
                return
            self._labels.publish(String(data=labels.label_json(bundle, settings, taught)))
            if self._label_info is not None:
                stamp = self._node.get_clock().now().to_msg()
                self._label_info.publish(
                    labels.label_info(bundle, settings, stamp, taught=taught))

    def publish_queries(self, prepared: PreparedQueries | None, stamp: Any = None) -> None:
        """
        Publish the names of the ids of `query/mask`; safe to call from any thread.

        :param prepared: the set; None where there can be none.
        :param stamp: of the mask that answers the set; None where the set has become live.
        """
        with self._lock:
            if not self._query_labels:
                return
            self._query_labels.publish(String(data=labels.query_json(prepared, stamp)))
            if stamp is None and self._query_info:
                now = self._node.get_clock().now().to_msg()
                self._query_info.publish(labels.query_info(prepared, now))

    def destroy(self) -> None:
        """Destroy the publishers."""
        with self._lock:
            publishers = [publisher for _, publisher in self._outputs] + [
                self._labels, self._label_info, self._query_labels, self._query_info]
            self._outputs, self._query_labels, self._query_info = [], None, None
            self._labels = self._label_info = None
            for publisher in filter(None, publishers):
                self._node.destroy_lifecycle_publisher(publisher)


def maps_of(outputs: list[tuple[Output, Any]]) -> frozenset[str]:
    """Return the maps that outputs are made of."""
    return frozenset().union(*(output.maps for output, _ in outputs))


def publish_outputs(
    outputs: list[tuple[Output, Any]], result: Segmentation, frame: Frame, header: Any,
    alpha: float, messages: dict[str, Any],
) -> None:
    """
    Publish the results of a frame, all with the header of the frame.

    :param outputs: what `CameraOutputs.wanted` returned.
    :param header: std_msgs/Header of the camera message, used unchanged.
    :param alpha: weight of the colours in the overlay.
    :param messages: those of the last frame by topic, whose memory is written to again, since
        rclpy is done with a message when `publish` returns; those of this frame afterwards.
    """
    last = messages.copy()
    messages.clear()
    for output, publisher in outputs:
        topic = output.topic
        messages[topic] = message = output.message(
            result, frame, header, alpha, last.get(topic))
        publisher.publish(message)
