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
"""The perception node over real DDS, with a small real network."""

import itertools
import json
import shutil
import sys
import threading
import time

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from lifecycle_msgs.srv import GetState
import numpy as np
from owseg_ros.bundle import sha256_of
from owseg_ros.frame import Frame
from owseg_ros.frame import frame_to_compressed
from owseg_ros.frame import image_to_array
from owseg_ros.nodes import diagnostics
from owseg_ros.nodes.inputs import images_elsewhere
from owseg_ros.nodes.parameters import unknown_parameters
from owseg_ros.nodes.perception import PerceptionNode
import pytest
from rcl_interfaces.msg import Log
from rclpy.exceptions import InvalidParameterTypeException
from rclpy.exceptions import InvalidParameterValueException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_msgs.msg import String
from support.dds import BEST_EFFORT
from support.dds import diagnosis
from support.dds import ImagePublisher
from support.dds import LATCHED
from support.dds import RELIABLE
from support.dds import Repeater
from support.dds import stamp_of
from support.dds import values_of
from support.dds import wait_until
from support.tiny_bundle import CLASS_NAMES
from support.tiny_bundle import flip_byte
from support.tiny_bundle import paint

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
IMAGE_TOPICS = {
    'semantic/mask': 'mono8', 'semantic/confidence': 'mono8', 'anomaly/score': '32FC1',
    'anomaly/mask': 'mono8', 'semantic/color': 'rgb8', 'overlay': 'rgb8'}
WIDTH, HEIGHT = 192, 128
PICTURE = paint(WIDTH, HEIGHT, left=(0, 255, 0), right=(128, 128, 128))

pytestmark = pytest.mark.timeout(60)


class Perception:
    """A node under test, and what a user sees of it."""

    def __init__(self, ros, parameters):
        self.ros = ros
        self.diagnostics = ros.collect(DiagnosticArray, '/diagnostics')
        self.node = ros.start(PerceptionNode, {'diagnostics_period': 0.1, **parameters})

    def active(self):
        """Wait until the node is active and return self."""
        wait_until(lambda: self.node.phase == 'active', what=lambda: self.node.phase)
        return self

    def lifecycle(self):
        """
        Return the state of the lifecycle, by the executor that transitions run in.

        Diagnostics tell of a transition while it lasts, when the next one cannot begin yet.
        """
        state = self.ros.client.create_client(GetState, f'{self.node.get_name()}/get_state')
        assert state.wait_for_service(20.0)
        future = state.call_async(GetState.Request())
        wait_until(future.done)
        return future.result().current_state.label

    def status(self, task, accept=lambda status: True):
        """Wait for a status of a task of this node that is accepted and return it."""
        return diagnosis(self.diagnostics, self.node, task, accept)

    def settle(self, *publishers):
        """Wait until the node is matched with publishers."""
        for publisher in publishers:
            wait_until(publisher.matched, what=publisher.publisher.topic_name)

    def set(self, name, value):  # noqa: A003
        """Set a parameter and return the result."""
        return self.node.set_parameters([Parameter(name, value=value)])[0]


@pytest.fixture
def perception(ros, tiny):
    """Return a function that starts the node with parameters."""
    return lambda **parameters: Perception(ros, {'model': str(tiny.path), **parameters})


def stream(publisher, rate=20.0, picture=PICTURE):
    """Return a context in which a camera sends a picture at a rate."""
    return Repeater(lambda: publisher.send(picture), rate)


def array_of(message):
    """Return the pixels of an image message."""
    return image_to_array(message)


def test_all_maps_carry_the_header_of_their_frame(ros, perception):
    camera = ImagePublisher(ros.client)
    outputs = {topic: ros.collect(Image, topic) for topic in IMAGE_TOPICS}
    labels = ros.collect(String, 'labels', LATCHED)
    perception(autostart=True).active()
    with stream(camera):
        stamps = wait_until(lambda: set.intersection(
            *(set(output.stamps()) for output in outputs.values())))
    stamp = min(stamps)
    assert stamp in camera.sent
    maps = {}
    for topic, output in outputs.items():
        message = next(m for m in output.messages if stamp_of(m) == stamp)
        assert message.header.frame_id == 'camera'
        assert (message.width, message.height) == (WIDTH, HEIGHT)
        assert message.encoding == IMAGE_TOPICS[topic]
        maps[topic] = array_of(message)
    left, right = np.s_[8:-8, 8:WIDTH // 2 - 8], np.s_[8:-8, WIDTH // 2 + 8:-8]
    assert (maps['semantic/mask'][left] == CLASS_NAMES.index('green')).all()
    assert (maps['semantic/mask'][right] == 254).all()
    assert (maps['anomaly/mask'][left] == 0).all()
    assert (maps['anomaly/mask'][right] == 255).all()
    assert maps['anomaly/score'][right].min() > 0.9 > 0.3 > maps['anomaly/score'][left].max()
    assert maps['semantic/confidence'][left].min() > 200
    names = json.loads(labels.first().data)
    by_id = {entry['id']: entry for entry in names['classes']}
    assert by_id[CLASS_NAMES.index('green')]['name'] == 'green'
    assert by_id[254]['kind'] == 'unknown' and by_id[255]['kind'] == 'unlabelled'
    for value in np.unique(maps['semantic/mask']):
        colors = maps['semantic/color'][maps['semantic/mask'] == value]
        assert (colors == by_id[int(value)]['color']).all()
    assert (maps['overlay'] != PICTURE).any()


def test_a_late_subscriber_still_gets_the_labels(ros, perception):
    perception(autostart=True).active()
    labels = json.loads(ros.collect(String, 'labels', LATCHED).first().data)
    assert [entry['name'] for entry in labels['classes']][:3] == list(CLASS_NAMES)
    assert labels['anomaly']['calibrated'] is True


def test_the_threshold_changes_at_run_time_and_the_labels_say_so(ros, perception):
    camera = ImagePublisher(ros.client)
    masks = ros.collect(Image, 'anomaly/mask')
    labels = ros.collect(String, 'labels', LATCHED)
    node = perception(autostart=True).active()
    with stream(camera):
        masks.first(lambda message: array_of(message).any())
        assert node.set('anomaly_threshold', 1.5).successful
        masks.first(lambda message: not array_of(message).any())
        latest = labels.first(lambda message: json.loads(message.data)['anomaly'][
            'threshold'] == 1.5)
        assert json.loads(latest.data)['anomaly']['calibrated'] is False
        assert node.set('anomaly_threshold', 'calibrated').successful
        masks.messages.clear()
        masks.first(lambda message: array_of(message).any())
        assert node.set('output_size', 'network').successful
        masks.first(lambda message: (message.width, message.height) == (96, 64))


def test_only_what_somebody_wants_is_computed(ros, perception):
    camera = ImagePublisher(ros.client)
    node = perception(autostart=True).active()
    asked = []
    run_network = node.node._segmenter.run_network

    def run_and_remember(frames, maps, *more):
        asked.append(maps)
        return run_network(frames, maps, *more)

    node.node._segmenter.run_network = run_and_remember
    with stream(camera):
        status = node.status('camera', lambda status: int(values_of(status)['skipped']) > 5)
        assert values_of(status)['state'] == 'idle'
        assert values_of(status)['frames_out'] == '0'
        assert asked == []
        scores = ros.collect(Image, 'anomaly/score')
        scores.first()
        assert set(asked) == {frozenset({'anomaly_score'})}
        ros.client.destroy_subscription(scores.subscription)
        assert node.status('camera', lambda status: values_of(status)['state'] == 'idle')


def test_a_slow_network_drops_frames_and_their_age_does_not_grow(ros, perception, slow):
    camera = ImagePublisher(ros.client)
    ages = []

    def received(message):
        now = ros.client.get_clock().now().nanoseconds
        sec, nanosec = stamp_of(message)
        ages.append(1e-9 * now - (sec + 1e-9 * nanosec))

    ros.client.create_subscription(Image, 'semantic/mask', received, RELIABLE)
    node = perception(autostart=True, model=str(slow.path)).active()
    node.settle(camera)
    rate = 3e3 / node.node._warm_up_ms
    with stream(camera, rate=min(rate, 100.0)):
        wait_until(lambda: len(ages) >= 24)
    status = node.status('camera', lambda status: int(values_of(status)['frames_out']) >= 24)
    values = values_of(status)
    assert int(values['drops']) > 0
    accounted = int(values['frames_out']) + int(values['drops'])
    assert 0 <= int(values['frames_in']) - accounted <= 2
    # A queue would add two periods of the network to each frame's age.
    assert np.median(ages[-8:]) < 2.0 * np.median(ages[:8]) + 0.2
    assert float(values['network_ms']) > 0.0 and float(values['age_ms_p50']) > 0.0


def test_a_malformed_message_is_reported_and_survived(ros, perception):
    camera = ImagePublisher(ros.client)
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True).active()
    node.settle(camera)
    wait_until(lambda: masks.subscription.get_publisher_count() > 0)
    bad = Image(width=640, height=480, encoding='rgb8', step=1920)
    bad.data.frombytes(b'short')
    status = None
    with Repeater(lambda: camera.send_message(bad), 20.0):
        status = node.status(
            'camera', lambda status: status.level == DiagnosticStatus.ERROR)
    assert values_of(status)['state'] == 'bad frames'
    assert int(values_of(status)['bad_frames']) >= 1
    assert 'rgb8' in status.message and camera.publisher.topic_name in status.message
    masks.messages.clear()
    with stream(camera):
        masks.first(lambda message: message.width == WIDTH)


def test_a_flood_of_bad_frames_is_no_flood_of_diagnostics(ros, perception):
    camera = ImagePublisher(ros.client)
    ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True, diagnostics_period=1.0).active()
    node.settle(camera)
    bad = Image(width=640, height=480, encoding='rgb8', step=1920)
    start = time.monotonic()
    node.diagnostics.messages.clear()
    with Repeater(lambda: camera.send_message(bad), 100.0):
        name = node.node.get_fully_qualified_name()
        node.diagnostics.first(lambda array: any(
            status.name == f'{name}: camera' and int(values_of(status)['bad_frames']) >= 100
            for status in array.status))
    reports = sum(array.status[0].name.startswith(name) for array in node.diagnostics.messages)
    assert reports <= 2 + (time.monotonic() - start) / 0.2


def test_a_network_that_does_not_return_is_told(ros, perception, monkeypatch):
    monkeypatch.setattr(diagnostics, 'RATE_SECONDS', 0.3)
    camera = ImagePublisher(ros.client)
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True, no_frames_timeout=0.3).active()
    run_network, go_on = node.node._segmenter.run_network, threading.Event()

    def wait_and_run(*arguments):
        go_on.wait(20.0)
        return run_network(*arguments)

    node.node._segmenter.run_network = wait_and_run
    with stream(camera):
        status = node.status('camera', lambda status: values_of(status)['state'] == 'slow')
        assert status.level == DiagnosticStatus.WARN
        assert f'frames of {WIDTH}x{HEIGHT} come' in status.message
        assert 'set output_size to network' in status.message
        go_on.set()
        masks.first()
        status = node.status('camera', lambda status: values_of(status)['state'] == 'running')
    assert values_of(status)['frame_size'] == f'{WIDTH}x{HEIGHT}'


def test_no_camera_is_missed_while_the_last_frame_is_finished(ros, perception):
    camera = ImagePublisher(ros.client)
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True, no_frames_timeout=0.2).active()
    run_network, begun, go_on = node.node._segmenter.run_network, *(
        threading.Event() for _ in range(2))

    def wait_and_run(*arguments):
        begun.set()
        go_on.wait(20.0)
        return run_network(*arguments)

    node.node._segmenter.run_network = wait_and_run
    with stream(camera):
        assert begun.wait(20.0)
        ending = threading.Thread(target=node.node.trigger_deactivate)
        ending.start()
        node.status('engine', lambda status: values_of(status)['state'] == 'deactivating')
        node.diagnostics.messages.clear()
        wait_until(lambda: len(node.diagnostics.messages) > 5)
        assert not any('camera' in status.name for array in node.diagnostics.messages
                       for status in array.status)
        go_on.set()
        ending.join(20.0)
        masks.first()
        node.status('engine', lambda status: values_of(status)['state'] == 'inactive')


def test_maps_that_take_long_are_told_with_a_cure_that_helps(ros, perception, monkeypatch):
    monkeypatch.setattr(diagnostics, 'SLOW_READOUT_MS', 0.0)
    camera = ImagePublisher(ros.client)
    ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True).active()
    with stream(camera):
        status = node.status('camera', lambda status: 's: set output_size' in status.message)
        assert status.level == DiagnosticStatus.WARN
        assert f'maps of {WIDTH}x{HEIGHT} took' in status.message
        assert node.set('output_size', 'network').successful
        node.status('camera', lambda status: status.level == DiagnosticStatus.OK)


def test_frames_that_cannot_be_right_are_told_and_answered(ros, perception):
    first, second = (ImagePublisher(ros.client, qos=RELIABLE) for _ in range(2))
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True).active()
    node.settle(first, second)
    stamp = ros.client.get_clock().now().to_msg()
    with Repeater(lambda: first.send(PICTURE, stamp=stamp), 20.0):
        status = node.status('camera', lambda status: 'have one stamp' in status.message)
    assert status.level == DiagnosticStatus.WARN and values_of(status)['state'] == 'running'
    assert 'has 2 publishers, whose frames mix' in status.message
    masks.first(lambda message: message.header.stamp == stamp)
    with Repeater(lambda: first.send(PICTURE, stamp=Time()), 20.0):
        status = node.status('camera', lambda status: 'have no stamp' in status.message)
    assert values_of(status)['stamps_back'] == '1'
    masks.first(lambda message: message.header.stamp == Time())
    ros.client.destroy_publisher(second.publisher)
    with stream(first):
        node.status('camera', lambda status: status.level == DiagnosticStatus.OK)


def test_a_second_node_of_the_same_name_is_told(ros, perception):
    node = perception(autostart=True).active()
    assert node.status('engine').level == DiagnosticStatus.OK
    namesake = Node('perception', context=ros.context, namespace=ros.namespace,
                    use_global_arguments=False)
    status = node.status('engine', lambda status: 'is called' in status.message)
    assert status.level == DiagnosticStatus.WARN and 'namespace' in status.message
    namesake.destroy_node()
    node.status('engine', lambda status: status.level == DiagnosticStatus.OK)


def test_bad_frames_and_good_ones_of_two_cameras_do_not_mix(ros, perception):
    good = ImagePublisher(ros.client, 'good/image')
    bad = ImagePublisher(ros.client, 'bad/image')
    masks = ros.collect(Image, 'good/semantic/mask')
    ros.collect(Image, 'bad/semantic/mask')
    node = perception(autostart=True, cameras=['good', 'bad']).active()
    stamp = ros.client.get_clock().now().to_msg()
    message = Image(width=9, height=9, encoding='nonsense', step=9,
                    header=Header(stamp=stamp))
    message.data.frombytes(bytes(81))
    with stream(good), Repeater(lambda: bad.send_message(message), 20.0):
        masks.first()
        bad_status = node.status('camera bad', lambda s: s.level == DiagnosticStatus.ERROR)
        assert 'nonsense' in bad_status.message
        node.status('camera good', lambda s: values_of(s)['state'] == 'running')


def test_two_cameras_share_a_batch_when_their_stamps_agree(ros, perception):
    cameras = {
        name: ImagePublisher(ros.client, f'{name}/image', RELIABLE) for name in ('a', 'b')}
    masks = {name: ros.collect(Image, f'{name}/semantic/mask') for name in cameras}
    node = perception(autostart=True, cameras=['a', 'b'], batch_wait=0.5).active()
    node.settle(*cameras.values())
    sizes = []
    run_network = node.node._segmenter.run_network

    def run_and_remember(frames, maps, *more):
        sizes.append(len(frames))
        return run_network(frames, maps, *more)

    node.node._segmenter.run_network = run_and_remember

    def send():
        stamp = ros.client.get_clock().now().to_msg()
        cameras['a'].send(paint(96, 64, (255, 0, 0), (255, 0, 0)), 'front', stamp)
        cameras['b'].send(paint(160, 120, (0, 0, 255), (0, 0, 255)), 'rear', stamp)

    with Repeater(send, 10.0):
        wait_until(lambda: sizes.count(2) >= 3, what=lambda: sizes)
        common = wait_until(lambda: set(masks['a'].stamps()) & set(masks['b'].stamps()))
    stamp = min(common)
    found = {name: next(m for m in masks[name].messages if stamp_of(m) == stamp)
             for name in masks}
    assert (found['a'].header.frame_id, found['b'].header.frame_id) == ('front', 'rear')
    assert (array_of(found['a']) == CLASS_NAMES.index('red')).all()
    assert (array_of(found['b']) == CLASS_NAMES.index('blue')).all()
    assert (found['b'].width, found['b'].height) == (160, 120)


def test_compressed_images(ros, perception):
    camera = ImagePublisher(
        ros.client, 'image/compressed', message_type=CompressedImage)
    masks = ros.collect(Image, 'semantic/mask')
    perception(autostart=True, image_transport='compressed').active()

    def send():
        header = Header(stamp=ros.client.get_clock().now().to_msg(), frame_id='camera')
        camera.send_message(frame_to_compressed(Frame(PICTURE), 'png', header))

    with Repeater(send, 20.0):
        message = masks.first()
    assert stamp_of(message) in camera.sent
    assert array_of(message)[HEIGHT // 2, 20] == CLASS_NAMES.index('green')


def test_jpegs_are_decoded_at_the_scale_of_the_network_unless_they_are_shown(ros, perception):
    camera = ImagePublisher(
        ros.client, 'image/compressed', message_type=CompressedImage)
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True, image_transport='compressed').active()
    sizes = []
    run_network = node.node._segmenter.run_network

    def run_and_remember(frames, *more):
        sizes.append(frames[0].pixels.shape[:2])
        return run_network(frames, *more)

    node.node._segmenter.run_network = run_and_remember
    picture = paint(400, 300, left=(0, 255, 0), right=(128, 128, 128))

    def send():
        header = Header(stamp=ros.client.get_clock().now().to_msg(), frame_id='camera')
        camera.send_message(frame_to_compressed(Frame(picture), 'jpeg', header))

    with Repeater(send, 20.0):
        mask = array_of(masks.first())
        assert mask.shape == (300, 400) and set(sizes) == {(75, 100)}
        assert (mask[20:-20, 20:180] == CLASS_NAMES.index('green')).all()
        assert (mask[20:-20, 220:-20] == 254).all()
        overlay = array_of(ros.collect(Image, 'overlay').first())
    assert sizes[-1] == (300, 400)
    assert np.abs(overlay[150, 300].astype(int) - overlay[150, 301]).max() < 30
    assert overlay.shape == (300, 400, 3)


def test_a_best_effort_publisher_that_comes_later_is_followed(ros, perception):
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True).active()
    status = node.status('camera')
    assert values_of(status)['reliability'] == 'reliable'
    camera = ImagePublisher(ros.client, qos=BEST_EFFORT)
    with stream(camera):
        masks.first()
        node.status('camera', lambda s: values_of(s)['reliability'] == 'best effort')


def test_a_publisher_that_does_not_match_is_named(ros, perception):
    node = perception(autostart=True, image_reliability='reliable', no_frames_timeout=0.2)
    node.active()
    status = node.status('camera', lambda s: values_of(s)['state'] == 'no frames')
    assert 'nobody publishes' in status.message
    camera = ImagePublisher(ros.client, qos=BEST_EFFORT)
    status = node.status('camera', lambda s: 'best_available' in s.message)
    assert status.level == DiagnosticStatus.WARN
    ros.client.destroy_publisher(camera.publisher)
    node.status('camera', lambda s: 'nobody publishes' in s.message)


def test_a_camera_that_publishes_elsewhere_is_named(ros, perception):
    """Also once in the log, as soon as it is silent, and once when it speaks."""
    log = ros.collect(Log, '/rosout')
    elsewhere = [ImagePublisher(ros.client, f'color{number}/image_raw') for number in range(4)]
    node = perception(autostart=True, no_frames_timeout=0.2).active()
    masks = ros.collect(Image, 'semantic/mask')
    names = [entry.publisher.topic_name for entry in elsewhere]
    status = node.status('camera', lambda s: names[0] in s.message)
    assert 'and ' in status.message and 'remap the topic' in status.message
    # Its own maps are images too.
    assert 'semantic/mask' not in status.message
    camera = ImagePublisher(ros.client, 'image/compressed', message_type=CompressedImage)
    topic = camera.publisher.topic_name
    node.status('camera', lambda s: (
        f'{topic} is published: set image_transport to compressed' in s.message))
    camera = ImagePublisher(ros.client)
    node.settle(camera)
    with stream(camera):
        masks.first()
        node.status('camera', lambda s: values_of(s)['state'] == 'running')

    def logged(text):
        return [message.msg for message in list(log.messages)
                if message.name.endswith('perception') and text in message.msg]

    wait_until(lambda: logged('frames come on'), what=lambda: log.messages)
    assert len(logged('nobody publishes')) == len(logged('frames come on')) == 1


def test_the_topic_of_another_camera_is_no_place_to_look(ros, perception):
    ImagePublisher(ros.client, 'front/image')
    node = perception(autostart=True, cameras=['front', 'left'], no_frames_timeout=0.2).active()
    for name, reason in (('front', 'nothing arrives'), ('left', 'nobody publishes')):
        status = node.status(f'camera {name}', lambda s: reason in s.message)
        assert 'are published on' not in status.message


@pytest.mark.parametrize('topic, transport, published, told', [
    ('/cam/image', 'raw', ['/a', '/cam/image/compressed'], (
        '/cam/image/compressed is published: set image_transport to compressed')),
    ('/cam/image/compressed', 'compressed', ['/cam/image'], (
        '/cam/image is published: set image_transport to raw')),
    ('/cam/image', 'raw', ['/b', '/a'], 'images are published on /a, /b: remap'),
    ('/cam/image', 'raw', ['/5', '/4', '/3', '/2', '/1'], 'on /1, /2, /3 and 2 more: remap'),
    ('/cam/image', 'raw', [], '')])
def test_what_to_do_where_images_are_published_elsewhere(topic, transport, published, told):
    found = images_elsewhere(topic, transport, published)
    assert told in found if told else found == ''


def test_a_matched_publisher_that_stays_silent_is_a_warning(ros, perception):
    camera = ImagePublisher(ros.client)
    node = perception(autostart=True, no_frames_timeout=0.2).active()
    node.settle(camera)
    status = node.status('camera', lambda s: 'nothing arrives' in s.message)
    assert status.level == DiagnosticStatus.WARN
    assert 'DDS' in status.message


def test_the_lifecycle_by_its_services(ros, perception):
    camera = ImagePublisher(ros.client)
    masks = ros.collect(Image, 'semantic/mask')
    node = perception()
    name = node.node.get_name()
    change = ros.client.create_client(ChangeState, f'{name}/change_state')
    state = ros.client.create_client(GetState, f'{name}/get_state')
    assert change.wait_for_service(20.0) and state.wait_for_service(20.0)

    def call(client, request):
        future = client.call_async(request)
        wait_until(future.done)
        return future.result()

    def go(transition):
        request = ChangeState.Request(transition=Transition(id=transition))
        assert call(change, request).success
        return call(state, GetState.Request()).current_state.label

    assert node.node.phase == 'unconfigured'
    assert go(Transition.TRANSITION_CONFIGURE) == 'inactive'
    model = node.node._segmenter
    with stream(camera):
        for _ in range(2):
            assert go(Transition.TRANSITION_ACTIVATE) == 'active'
            masks.messages.clear()
            masks.first()
            assert go(Transition.TRANSITION_DEACTIVATE) == 'inactive'
            assert node.node._segmenter is model
            assert values_of(node.status('engine'))['state'] == 'inactive'
            sent = len(masks.messages)
            for _ in range(3):
                node.status('engine')
            assert len(masks.messages) <= sent + 1
        assert go(Transition.TRANSITION_CLEANUP) == 'unconfigured'
        assert go(Transition.TRANSITION_CONFIGURE) == 'inactive'
        assert go(Transition.TRANSITION_ACTIVATE) == 'active'
        masks.messages.clear()
        masks.first()
        assert go(Transition.TRANSITION_ACTIVE_SHUTDOWN) == 'finalized'


@pytest.mark.parametrize('pipeline', ['always', 'never'])
def test_transitions_under_full_load(ros, perception, pipeline):
    camera = ImagePublisher(ros.client, qos=RELIABLE)
    for topic in IMAGE_TOPICS:
        ros.collect(Image, topic, BEST_EFFORT)
    node = perception(pipeline=pipeline).node
    with stream(camera, rate=200.0):
        for _ in range(3):
            assert node.trigger_configure() == SUCCESS
            for _ in range(3):
                assert node.trigger_activate() == SUCCESS
                count = node._cameras[''].statistics
                wait_until(lambda: count.snapshot().frames_out >= 2)
                assert node.trigger_deactivate() == SUCCESS
                assert count.snapshot().bad_frames == 0
            assert node.trigger_cleanup() == SUCCESS
        assert node.trigger_configure() == SUCCESS
        assert node.trigger_activate() == SUCCESS
        assert node.trigger_shutdown() == SUCCESS
    assert not {'perception', 'readout'} & {thread.name for thread in threading.enumerate()}


def test_a_corrupt_model_is_refused_and_the_node_recovers(ros, perception, tiny, tmp_path):
    broken = tmp_path / 'broken'
    shutil.copytree(tiny.path, broken)
    flip_byte(broken / 'network.onnx', 100)
    node = perception(model=str(broken), autostart=True)
    status = node.status('engine', lambda s: s.level == DiagnosticStatus.ERROR)
    assert 'network.onnx' in status.message
    assert values_of(status)['state'] == 'unconfigured'
    assert node.lifecycle() == 'unconfigured'
    assert node.node.trigger_configure() == FAILURE
    assert node.set('model', str(tmp_path / 'nowhere')).successful
    assert node.node.trigger_configure() == FAILURE
    assert node.set('model', str(tiny.path)).successful
    assert node.node.trigger_configure() == SUCCESS
    assert node.node.trigger_activate() == SUCCESS
    # What was told on the way here may come yet.
    status = node.status('engine', lambda s: values_of(s)['state'] == 'active')
    assert status.level == DiagnosticStatus.OK
    assert values_of(status)['model_sha256'] == sha256_of(tiny.network)


def test_an_engine_that_is_not_there_is_refused(perception):
    node = perception(engine='abacus')
    assert node.node.trigger_configure() == FAILURE
    status = node.status('engine', lambda s: s.level == DiagnosticStatus.ERROR)
    assert 'abacus' in status.message and 'onnx' in status.message
    assert node.set('engine', 'onnx').successful
    assert node.node.trigger_configure() == SUCCESS


def test_the_node_works_while_tensorrt_is_built_and_says_why_it_failed(
        ros, perception, monkeypatch, tmp_path):
    """An installation of TensorRT that takes a while to find out that it is broken."""
    gate = tmp_path / 'gate'
    (tmp_path / 'tensorrt.py').write_text(f"""
import pathlib, time
while not pathlib.Path({str(gate)!r}).exists():
    time.sleep(0.01)
raise ImportError('libnvinfer.so.10 is not there')
""")
    monkeypatch.delitem(sys.modules, 'tensorrt', raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    node = perception(engine='tensorrt', autostart=True).active()
    building = node.status('engine')
    assert building.level == DiagnosticStatus.OK and 'building' in building.message
    values = values_of(building)
    assert (values['state'], values['engine_state']) == ('active', 'building')
    assert values['engine'].startswith('onnx') and values['engine_build_percent'] == '0'
    masks = ros.collect(Image, 'semantic/mask')
    with stream(ImagePublisher(ros.client)):
        assert masks.first().width == WIDTH
        gate.touch()
        failed = node.status('engine', lambda s: s.level == DiagnosticStatus.WARN)
        assert 'libnvinfer.so.10 is not there' in failed.message
        assert values_of(failed)['engine_state'] == 'fallback'
        masks.messages.clear()
        assert masks.first().width == WIDTH


def test_what_is_missing_for_the_gpu_is_told_and_the_cpu_answers(ros, perception, monkeypatch):
    """The model has no program for the engine torch, and the readout has no triton."""
    monkeypatch.setitem(sys.modules, 'triton', None)
    monkeypatch.setitem(sys.modules, 'torch', None)
    node = perception(engine='torch', torch_device='cpu', readout='gpu', autostart=True).active()
    failed = node.status('engine', lambda s: 'fallback' in s.message)
    assert failed.level == DiagnosticStatus.WARN
    values = values_of(failed)
    assert values['engine_state'] == 'fallback' and values['engine'].startswith('onnx')
    assert 'owseg-train export --torch' in values['engine_reason']
    assert values['readout'] == 'cpu' and 'pip install torch' in values['readout_note']
    assert 'readout on the CPU' in failed.message
    masks = ros.collect(Image, 'semantic/mask')
    with stream(ImagePublisher(ros.client)):
        assert masks.first().width == WIDTH


@pytest.mark.parametrize('name, value, reason', [
    ('readout', 'tpu', 'auto, cpu, gpu'),
    ('torch_precision', 'int8', 'auto, fp32, fp16, bf16'),
    ('min_confidence', 1.5, 'min_confidence'),
    ('min_confidence', float('nan'), 'out of range'),
    ('anomaly_threshold', 'high', 'calibrated'),
    ('anomaly_threshold', True, 'calibrated'),
    ('anomaly_threshold', float('inf'), 'finite'),
    ('anomaly_min_area', -2, 'anomaly_min_area'),
    ('output_size', 'huge', 'camera, network'),
    ('overlay_alpha', 'thick', 'Wrong parameter type'),
    ('image_transport', 'theora', 'raw, compressed'),
    ('image_reliability', 'perhaps', 'best_available'),
    ('cameras', ['front left'], 'front left'),
    ('cameras', ['a', 'a'], 'twice'),
    ('providers', [''], 'provider'),
    ('threads', -1, 'threads'),
    ('autostart', True, 'read-only'),
    ('no_frames_timeout', 0.0, 'no_frames_timeout'),
])
def test_an_invalid_parameter_is_rejected_with_a_reason(perception, name, value, reason):
    node = perception()
    before = node.node.get_parameter(name).value
    result = node.set(name, value)
    assert not result.successful
    assert reason in result.reason
    assert node.node.get_parameter(name).value == before


def test_parameters_of_the_model_are_frozen_while_it_is_loaded(perception):
    node = perception()
    assert node.set('cameras', ['front', 'rear']).successful
    assert node.set('cameras', ['']).successful
    assert node.node.trigger_configure() == SUCCESS
    for name, value in (('model', ''), ('cameras', ['x']), ('threads', 2)):
        result = node.set(name, value)
        assert not result.successful and 'clean up' in result.reason
        # As a file that `ros2 param dump` wrote does.
        assert node.set(name, node.node.get_parameter(name).value).successful
    assert node.set('min_confidence', 0.5).successful
    assert node.node.trigger_cleanup() == SUCCESS
    assert node.set('threads', 2).successful


def test_each_parameter_is_described(perception):
    node = perception().node
    ours = list(node._table._specs)
    assert len(ours) > 15
    for name in ours:
        assert len(node.describe_parameter(name).description) > 10


@pytest.mark.parametrize('name, value, error', [
    ('image_transport', 'theora', InvalidParameterValueException),
    ('threads', 'two', InvalidParameterTypeException),
])
def test_an_invalid_parameter_at_start_is_an_error(perception, name, value, error):
    with pytest.raises(error, match=name):
        perception(**{name: value})


@pytest.mark.parametrize('name', ['cameras', 'providers', 'model', 'threads', 'max_skew'])
def test_a_parameter_without_a_value_at_start_is_an_error(perception, name):
    """What rcl makes of `cameras: []`, and of `model:` with nothing behind it."""
    with pytest.raises(InvalidParameterValueException, match=f'{name} has no value'):
        perception(**{name: None})


def test_a_parameter_that_does_not_exist_is_told(ros, perception):
    log = ros.collect(Log, '/rosout')
    node = perception(pipelin='always', frobnicate=3, use_sim_time=False, source='scene').node
    told = log.first(lambda message: 'no such parameters' in message.msg)
    assert 'frobnicate, pipelin (did you mean pipeline?);' in told.msg
    # The camera in the same process has this one.
    assert 'source' not in told.msg and 'use_sim_time' not in told.msg
    assert told.name == f'{ros.namespace[1:]}.{node.get_name()}' and told.level == 30


def test_a_node_without_unknown_parameters_says_nothing_of_them():
    assert unknown_parameters([], ['pipeline']) == ''
    assert unknown_parameters(
        ['source', 'model', 'qos_overrides./image.subscription.depth'], ['pipeline']) == ''


def test_stamps_of_another_clock_are_no_age(ros, perception):
    camera = ImagePublisher(ros.client)
    masks = ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True).active()
    stamp = Header().stamp
    stamp.sec = 1000
    with Repeater(lambda: camera.send(PICTURE, stamp=stamp), 20.0):
        masks.first(lambda message: stamp_of(message) == (1000, 0))
        status = node.status('camera', lambda s: 'use_sim_time' in s.message)
    assert status.level == DiagnosticStatus.OK
    assert values_of(status)['age_ms_p50'] == ''
    assert float(values_of(status)['latency_ms_p50']) > 0.0


def test_the_age_is_of_the_node_clock_when_a_bag_plays(ros, perception):
    camera = ImagePublisher(ros.client)
    clock = ros.client.create_publisher(Clock, '/clock', BEST_EFFORT)
    ros.collect(Image, 'semantic/mask')
    node = perception(autostart=True, use_sim_time=True).active()
    ticks = itertools.count()

    def tick():
        # The bag plays 10 years ago; each image is 50 ms old.
        number = next(ticks)
        camera.send(PICTURE, stamp=Time(
            sec=10 ** 9 + number // 20, nanosec=number % 20 * 50000000))
        number += 1
        clock.publish(Clock(clock=Time(
            sec=10 ** 9 + number // 20, nanosec=number % 20 * 50000000)))

    with Repeater(tick, 20.0):
        status = node.status('camera', lambda s: int(values_of(s)['frames_out']) > 20 and (
            values_of(s)['age_ms_p50'] != ''))
    assert values_of(status)['state'] == 'running'
    assert 0.0 <= float(values_of(status)['age_ms_p50']) <= 1000.0
