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
"""The camera node over real DDS."""

import cv2
from diagnostic_msgs.msg import DiagnosticArray
from diagnostic_msgs.msg import DiagnosticStatus
import numpy as np
from owseg_ros.frame import compressed_to_frame
from owseg_ros.frame import image_to_frame
from owseg_ros.nodes.camera import CameraNode
import pytest
from rclpy.parameter import Parameter
from sensor_msgs.msg import CameraInfo
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image
from support.dds import BEST_EFFORT
from support.dds import RELIABLE
from support.dds import stamp_of
from support.dds import values_of
from support.dds import wait_until

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def pictures(tmp_path):
    """Return a folder with three images of one colour each (RGB: 10, 20, 30; ...)."""
    for number in range(3):
        rgb = np.full((48, 64, 3), (10, 20, 30), np.uint8) + 60 * number
        cv2.imwrite(str(tmp_path / f'{number}.png'), rgb[..., ::-1].astype(np.uint8))
    return tmp_path


def states(ros):
    """Return a function that waits for a state of the camera node."""
    diagnostics = ros.collect(DiagnosticArray, '/diagnostics')
    name = f'{ros.namespace}/camera: source'

    def find(message, state):
        return next((status for status in message.status if status.name == name
                     and values_of(status)['state'] == state), None)

    return lambda state: find(diagnostics.first(lambda message: find(message, state)), state)


def test_image_and_calibration_share_their_header(ros, pictures):
    images = ros.collect(Image, 'image')
    infos = ros.collect(CameraInfo, 'camera_info')
    compressed = ros.collect(CompressedImage, 'image/compressed')
    ros.start(CameraNode, {
        'source': str(pictures), 'rate': 30.0, 'frame_id': 'eye', 'hfov_deg': 90.0,
        'publish_compressed': True})
    stamp = min(wait_until(
        lambda: set(images.stamps()) & set(infos.stamps()) & set(compressed.stamps())))
    image, info, jpeg = (
        next(message for message in collector.messages if stamp_of(message) == stamp)
        for collector in (images, infos, compressed))
    assert image.header == info.header == jpeg.header
    assert image.header.frame_id == 'eye'
    assert (image.width, image.height) == (info.width, info.height) == (64, 48)
    assert info.k[0] == info.k[4] == pytest.approx(32.0)
    assert (info.k[2], info.k[5]) == (31.5, 23.5)
    assert info.distortion_model == 'plumb_bob' and list(info.d) == [0.0] * 5
    pixels = image_to_frame(image).rgb()
    assert pixels[0, 0].tolist() in ([10, 20, 30], [70, 80, 90], [130, 140, 150])
    assert abs(compressed_to_frame(jpeg).rgb().astype(int) - pixels).max() < 12


def test_bgr_and_another_size(ros, pictures):
    images = ros.collect(Image, 'image', BEST_EFFORT)
    infos = ros.collect(CameraInfo, 'camera_info')
    ros.start(CameraNode, {
        'source': str(pictures / '0.png'), 'rate': 30.0, 'encoding': 'bgr8', 'width': 32})
    image = images.first()
    assert (image.encoding, image.width, image.height) == ('bgr8', 32, 24)
    assert list(image.data[:3]) == [30, 20, 10]
    assert infos.first().width == 32


def test_the_street(ros):
    images = ros.collect(Image, 'image', BEST_EFFORT)
    infos = ros.collect(CameraInfo, 'camera_info')
    ros.start(CameraNode, {'source': 'scene', 'width': 320, 'height': 240})
    image = images.first()
    assert (image.width, image.height, image.encoding) == (320, 240, 'rgb8')
    info = infos.first()
    assert (info.width, info.height) == (320, 240)
    assert 80 < info.k[0] < 1000 and 120 < info.k[2] < 200


def test_a_clip_waits_for_its_viewer_and_ends(ros, pictures):
    state = states(ros)
    node = ros.start(CameraNode, {
        'source': str(pictures), 'rate': 100.0, 'loop': False, 'wait_for_subscriber': True,
        'diagnostics_period': 0.05})
    assert values_of(state('running'))['frames'] == '0'
    images = ros.collect(Image, 'image', RELIABLE)
    ended = state('ended')
    assert 'ended after 3 frames' in ended.message
    assert ended.level == DiagnosticStatus.OK
    wait_until(lambda: len(images.messages) == 3)
    assert node.set_parameters([Parameter('loop', value=True)])[0].successful
    wait_until(lambda: len(images.messages) > 6)


def test_the_end_of_the_source_can_end_the_process(ros, pictures):
    process = ros.process('owseg_ros.nodes.camera', {
        'source': str(pictures), 'rate': 50.0, 'loop': False, 'shutdown_at_end': True})
    assert process.wait() == 0
    assert 'ended after 3 frames' in process.output


def test_a_broken_image_of_a_folder_is_passed_over(ros, pictures):
    (pictures / '1.png').write_bytes(b'')
    process = ros.process('owseg_ros.nodes.camera', {
        'source': str(pictures), 'rate': 50.0, 'loop': False, 'shutdown_at_end': True})
    assert process.wait() == 0
    assert 'ended after 2 frames' in process.output and '1.png' in process.output


def test_a_bad_source_is_an_error_that_can_be_corrected(ros, pictures):
    state = states(ros)
    images = ros.collect(Image, 'image')
    node = ros.start(CameraNode, {'source': '/no/such/clip.mp4', 'rate': 30.0})
    status = state('error')
    assert status.level == DiagnosticStatus.ERROR
    assert '/no/such/clip.mp4' in status.message
    assert node.set_parameters([Parameter('source', value=str(pictures))])[0].successful
    images.first()
    assert state('running').level == DiagnosticStatus.OK
    assert not node.set_parameters([Parameter('encoding', value='mono8')])[0].successful
