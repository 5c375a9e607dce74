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
"""Teaching the running node by example, over real DDS."""

import json
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import numpy as np
from owseg_ros.cli import main
from owseg_ros.frame import image_to_array
from owseg_ros.nodes.perception import PerceptionNode
from owseg_ros.novelty import PrototypeBook
import pytest
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.dds import (
    diagnosis, DOMAIN, ECHO, ImagePublisher, LATCHED, RELIABLE, Repeater, stamp_of, values_of,
    wait_until)
from support.tiny_bundle import color_embedding, make_tiny_bundle, paint

pytestmark = pytest.mark.timeout(90)

SUCCESS = TransitionCallbackReturn.SUCCESS
WIDTH, HEIGHT = 192, 128
RED, YELLOW, CYAN = (255, 0, 0), (255, 255, 0), (0, 255, 255)
# Rows and columns well inside the two squares of the picture.
LEFT, RIGHT = np.s_[40:72, 24:56], np.s_[40:72, 120:152]
UNKNOWN = 254
# Kept for those that are matched late, or the answer to the first message might be missed.
EVERY_STATUS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE,
                          durability=DurabilityPolicy.TRANSIENT_LOCAL)


def squares(left=YELLOW, right=CYAN):
    """Return a red picture with two squares that are of no known class."""
    picture = paint(WIDTH, HEIGHT, RED, RED)
    picture[32:80, 16:64], picture[32:80, 112:160] = left, right
    return picture


@pytest.fixture(scope='module')
def teachable(tmp_path_factory):
    """Return a bundle with a metric head, whose network sees the picture as it is."""
    return make_tiny_bundle(tmp_path_factory.mktemp('teachable') / 'tiny', width=WIDTH,
                            height=HEIGHT, novelty=True)


class Teacher:
    """A node under test, a camera, and somebody who teaches it."""

    def __init__(self, ros, parameters):
        self.ros = ros
        self.statuses = ros.collect(String, 'teach/status', LATCHED)
        self.answers = ros.collect(String, 'teach/status', EVERY_STATUS)
        self.labels = ros.collect(String, 'labels', LATCHED)
        self.diagnostics = ros.collect(DiagnosticArray, '/diagnostics')
        self.masks = ros.collect(Image, 'semantic/mask')
        self.topic = ros.client.create_publisher(String, 'teach', RELIABLE)
        self.camera = ImagePublisher(ros.client, qos=RELIABLE)
        self.node = ros.start(
            PerceptionNode, {'diagnostics_period': 0.1, 'autostart': True, **parameters})
        self.picture = squares()
        self._count = 0
        wait_until(lambda: self.node.phase == 'active' or not parameters.get('autostart', True))
        wait_until(lambda: self.topic.get_subscription_count() > 0)
        self.status()

    def status(self, accept=lambda status: True):
        """Wait for a status that is accepted and return it."""
        return json.loads(self.statuses.first(lambda message: accept(json.loads(
            message.data))).data)

    def publish(self, message):
        """Publish a message, JSON or not."""
        self.topic.publish(String(
            data=message if isinstance(message, str) else json.dumps(message)))

    def teach(self, **message):
        """Publish a message and return the status that answers it."""
        self._count += 1
        given = f'message {self._count}'
        self.publish({**message, 'message_id': given})
        return json.loads(self.answers.first(lambda status: json.loads(
            status.data)['message_id'] == given).data)

    def refused(self, **message):
        """Publish a message that is not to be taken and return why."""
        status = self.teach(**message)
        rejection, = status['rejected']
        assert status['accepted'] == [] and status['shot'] is None
        assert status['error'] == rejection['reason']
        return rejection['reason']

    def stream(self, rate=20.0):
        """Return a context in which the camera sends the picture."""
        return Repeater(lambda: self.camera.send(self.picture), rate)

    def show(self):
        """Send a frame and return its semantic mask."""
        wait_until(self.camera.matched)
        # Each end learns of the other by itself, and a map is made where the node's end has.
        wait_until(lambda: any(
            publisher.topic_name == self.masks.subscription.topic_name
            and publisher.get_subscription_count() for publisher in self.node.publishers))
        sent = stamp_of(self.camera.send(self.picture))
        return image_to_array(self.masks.first(lambda mask: stamp_of(mask) == sent))

    def seen(self, left, right):
        """Wait until a stream has these ids in its squares."""
        self.masks.messages.clear()

        def there(message):
            mask = image_to_array(message)
            return (mask[LEFT] == left).all() and (mask[RIGHT] == right).all()
        return self.masks.first(there)

    def diagnosis(self, accept=lambda status: True):
        """Wait for a status `teaching` that is accepted and return it."""
        return diagnosis(self.diagnostics, self.node, 'teaching', accept)

    def set(self, name, value):  # noqa: A003
        """Set a parameter and return the result."""
        return self.node.set_parameters([Parameter(name, value=value)])[0]

    def call(self, service):
        """Call a service and return its response."""
        client = self.ros.client.create_client(Trigger, service)
        assert client.wait_for_service(20.0)
        future = client.call_async(Trigger.Request())
        wait_until(future.done)
        return future.result()


@pytest.fixture
def teaching(ros, teachable, tmp_path, monkeypatch):
    """Return a function that starts the node with parameters."""
    monkeypatch.setenv('XDG_DATA_HOME', str(tmp_path / 'data'))
    return lambda **parameters: Teacher(ros, {'model': str(teachable.path), **parameters})


def taught(status):
    """Return id, name and number of shots of each class of a status."""
    return [(entry['id'], entry['name'], entry['shots']) for entry in status['classes']]


def kinds(labels):
    """Return the kind and name of each id that labels name."""
    return {entry['id']: (entry['kind'], entry['name']) for entry in labels['classes']}


def prototypes_file(bundle, path, **classes):
    """Write a file of classes, name=colour, without a node, and return its path."""
    book = PrototypeBook(bundle)
    for name, color in classes.items():
        book.add_shot(name, color_embedding(color))
    book.save(path)
    return str(path)


def test_what_is_pointed_at_has_its_name_from_the_next_frame_on(
        ros, teaching, vision_msgs, monkeypatch):
    monkeypatch.syspath_prepend(str(vision_msgs))
    from vision_msgs.msg import LabelInfo
    node = teaching()
    mask = node.show()
    assert (mask[LEFT] == UNKNOWN).all() and (mask[RIGHT] == UNKNOWN).all()
    status = node.teach(name='Pallet', pixel=[40, 56])
    assert (status['accepted'], status['rejected'], status['error']) == (['pallet'], [], '')
    assert taught(status) == [(3, 'pallet', 1)] and status['state'] == 'ready'
    assert status['classes'][0]['threshold'] == 0.8 and status['unsaved']
    shot = status['shot']
    assert (shot['kind'], shot['name'], shot['warning']) == ('anomaly', 'pallet', '')
    assert (shot['stamp']['sec'], shot['stamp']['nanosec']) == node.camera.sent[-1]
    assert np.abs(np.array(shot['box']) - (16, 32, 64, 80)).max() <= 2
    mask = node.show()
    assert (mask[LEFT] == 3).all() and (mask[RIGHT] == UNKNOWN).all() and mask[-2, 2] == 0
    labels = json.loads(node.labels.messages[-1].data)
    assert kinds(labels)[3] == ('taught', 'pallet') and kinds(labels)[254][0] == 'unknown'
    assert labels['taught_version'] == status['version']
    info = ros.collect(LabelInfo, 'label_info', LATCHED).first()
    assert (3, 'pallet') in [(entry.class_id, entry.class_name) for entry in info.class_map]
    assert node.teach(name='drum', box=[100, 20, 170, 90])['accepted'] == ['drum']
    mask = node.show()
    assert (mask[LEFT] == 3).all() and (mask[RIGHT] == 4).all()
    found = node.diagnosis(lambda status: values_of(status)['classes'] == '2')
    assert found.level == DiagnosticStatus.OK
    assert '2 classes (pallet, drum), not saved yet' in found.message
    assert values_of(found)['frames'] == '3' and float(values_of(found)['frames_mib']) > 0


def test_shots_average_and_classes_are_renamed_and_forgotten(teaching):
    node = teaching()
    node.show()
    assert taught(node.teach(name='thing', pixel=[40, 56])) == [(3, 'thing', 1)]
    # A mean of two colours is near to both.
    assert taught(node.teach(name='thing', pixel=[136, 56])) == [(3, 'thing', 2)]
    status = node.teach(name='thing', threshold=0.6)
    assert status['classes'][0]['threshold'] == 0.6 and status['shot'] is None
    mask = node.show()
    assert (mask[LEFT] == 3).all() and (mask[RIGHT] == 3).all()
    status = node.teach(rename='thing', to='Drum')
    assert status['accepted'] == ['drum'] and taught(status) == [(3, 'drum', 2)]
    assert node.teach(list=True)['classes'] == status['classes']
    status = node.teach(forget='drum')
    assert status['accepted'] == ['drum'] and status['classes'] == []
    assert (node.show()[LEFT] == UNKNOWN).all()
    assert not any(kind == 'taught' for kind, _ in kinds(json.loads(
        node.labels.messages[-1].data)).values())


def test_a_region_of_the_topic_and_of_its_stamp_is_taught(ros, teaching):
    node = teaching()
    regions = ros.collect(String, 'anomaly/regions')
    wait_until(lambda: regions.subscription.get_publisher_count() > 0)
    node.show()
    message = json.loads(regions.first().data)
    right, = [region for region in message['regions'] if region['box'][0] > 96]
    # The world goes on.
    node.picture = squares(CYAN, YELLOW)
    node.show()
    status = node.teach(name='drum', region=right['id'], stamp=message['stamp'])
    assert status['shot']['stamp'] == message['stamp']
    mask = node.show()
    assert (mask[LEFT] == 3).all() and (mask[RIGHT] == UNKNOWN).all()
    named = json.loads(regions.first(lambda message: 'drum' in message.data).data)
    assert sorted((region['name'], region['box'][0] < 96) for region in named['regions']) == [
        ('drum', True), ('unknown', False)]


def test_what_cannot_be_taught_is_said(teaching):
    node = teaching()
    assert 'no frame is kept' in node.refused(name='pallet', pixel=[40, 56])
    node.show()
    assert 'not in the image, which has 192x128' in node.refused(name='a', pixel=[192, 10])
    assert 'nothing of the image' in node.refused(name='a', box=[300, 0, 400, 10])
    assert 'no anomalous region 7: it has 2' in node.refused(name='a', region=7)
    assert 'too small' in node.refused(name='a', box=[20, 40, 26, 44])
    old = node.refused(name='a', pixel=[40, 56], stamp=12.5)
    sent = '.'.join((str(node.camera.sent[0][0]), f'{node.camera.sent[0][1]:09d}'))
    assert 'the frame is too old: 12.500000000' in old and sent in old
    assert "'red' is a class that tiny knows already" in node.refused(name='red', pixel=[40, 56])
    assert "no taught class is called 'b'" in node.refused(forget='b')
    assert 'no camera' in node.refused(name='a', pixel=[1, 1], camera='c').replace(
        'frame of a', 'no')
    assert 'unknown key' in node.refused(name='a', pixle=[1, 1])
    assert taught(node.teach(list=True)) == []
    node.answers.messages.clear()
    node.publish('pallet')
    status = json.loads(node.answers.first().data)
    assert status['message_id'] is None and 'it is no JSON' in status['rejected'][0]['reason']
    found = node.diagnosis(lambda status: 'it is no JSON' in status.message)
    assert found.level == DiagnosticStatus.WARN
    node.teach(list=True)
    node.diagnosis(lambda status: status.level == DiagnosticStatus.OK)
    assert node.node._cameras[''].statistics.snapshot().bad_frames == 0


def test_without_a_metric_head_the_node_says_so(ros, tiny):
    node = Teacher(ros, {'model': str(tiny.path)})
    assert node.status(lambda status: status['state'] == 'unavailable')
    node.diagnosis(lambda status: status.level == DiagnosticStatus.OK)
    node.show()
    assert 'tiny has no metric head' in node.refused(name='pallet', pixel=[40, 56])
    found = node.diagnosis(lambda status: status.level == DiagnosticStatus.WARN)
    assert 'nothing can be taught' in found.message and 'owseg-train metric' in found.message
    response = node.call('save_prototypes')
    assert not response.success and 'no metric head' in response.message
    refused = node.set('prototypes', '/any/file.npz')
    assert not refused.successful and 'no metric head' in refused.reason


def test_a_file_made_offline_changes_the_running_masks(teaching, teachable, tmp_path):
    first = prototypes_file(teachable, tmp_path / 'first.npz', pallet='yellow')
    node = teaching(prototypes=first)
    assert taught(node.teach(list=True)) == [(3, 'pallet', 1)]
    with node.stream():
        node.seen(3, UNKNOWN)
        second = prototypes_file(
            teachable, tmp_path / 'second.npz', drum='magenta', cone='cyan')
        assert node.set('prototypes', second).successful
        node.seen(UNKNOWN, 4)
        status = node.teach(list=True)
        assert taught(status) == [(3, 'drum', 1), (4, 'cone', 1)]
        assert (status['file'], status['unsaved']) == (second, False)
        labels = json.loads(node.labels.messages[-1].data)
        assert kinds(labels)[4] == ('taught', 'cone')
        # What cannot be used is refused, and the classes stay.
        (tmp_path / 'broken.npz').write_bytes(b'PK')
        for name, reason in (('broken.npz', 'no npz file'), ('none.npz', 'cannot be read')):
            refused = node.set('prototypes', str(tmp_path / name))
            assert not refused.successful and reason in refused.reason
        other = make_tiny_bundle(tmp_path / 'other', num_queries=9, novelty=True)
        refused = node.set('prototypes', prototypes_file(other, tmp_path / 'o.npz', a='cyan'))
        assert not refused.successful and 'another network' in refused.reason
        assert node.node.get_parameter('prototypes').value == second
        node.seen(UNKNOWN, 4)
        # The file is edited, and read again.
        prototypes_file(teachable, tmp_path / 'second.npz', crate='yellow')
        response = node.call('load_prototypes')
        assert response.success and '1 class (crate) of 1 shot' in response.message
        node.seen(3, UNKNOWN)
        assert node.set('prototypes', '').successful
        assert taught(node.teach(list=True)) == [(3, 'crate', 1)]


def test_what_was_taught_live_is_saved_and_loads_in_another_node(
        ros, teaching, teachable, tmp_path):
    path = tmp_path / 'robots' / 'ours.npz'
    node = teaching(prototypes=str(path))
    found = node.diagnosis(lambda status: 'ours.npz is not there' in status.message)
    assert found.level == DiagnosticStatus.WARN
    node.show()
    node.teach(name='pallet', pixel=[40, 56])
    node.teach(name='drum', pixel=[136, 56])
    response = node.call('save_prototypes')
    assert response.success, response.message
    assert response.message == f'2 classes (pallet, drum) of 2 shots saved to {path}'
    assert not node.teach(list=True)['unsaved']
    node.diagnosis(lambda status: status.level == DiagnosticStatus.OK)
    # The robot that was taught is not there any more.
    process = ros.process('owseg_ros.nodes.perception', {
        'model': str(teachable.path), 'autostart': True, 'prototypes': str(path)},
        arguments=['-r', '__node:=other', '-r', 'image:=other/image',
                   '-r', 'semantic/mask:=other/mask'])
    camera = ImagePublisher(ros.client, 'other/image', RELIABLE)
    masks = ros.collect(Image, 'other/mask')
    picture = squares(CYAN, YELLOW)
    with Repeater(lambda: camera.send(picture), 20.0):
        mask = image_to_array(masks.first())
    assert (mask[LEFT] == 4).all() and (mask[RIGHT] == 3).all(), process.output
    shot = PrototypeBook(teachable).load(path).classes[0].shots[0]
    assert shot.source.startswith('anomaly in the frame')
    sec, nanosec = node.camera.sent[0]
    assert shot.stamp == pytest.approx(sec + 1e-9 * nanosec, abs=1e-6)


def test_what_cannot_be_loaded_is_told_and_not_overwritten(teaching, tmp_path):
    path = tmp_path / 'precious.npz'
    path.write_bytes(b'of another robot')
    node = teaching(prototypes=str(path))
    assert node.node.phase == 'active'
    status = node.status(lambda status: status['state'] == 'ready')
    assert 'no npz file' in status['file_error'] and status['classes'] == []
    node.show()
    assert node.teach(name='pallet', pixel=[40, 56])['error'] == ''
    response = node.call('save_prototypes')
    assert not response.success and 'is not overwritten' in response.message
    assert path.read_bytes() == b'of another robot'
    found = node.diagnosis(lambda status: 'is not overwritten' in status.message)
    assert found.level == DiagnosticStatus.WARN
    # A file of the user's own is always there.
    assert node.set('prototypes', '').successful
    response = node.call('save_prototypes')
    assert response.success and str(tmp_path / 'data') in response.message
    node.diagnosis(lambda status: status.level == DiagnosticStatus.OK)


def test_a_place_that_cannot_be_written_is_told(teaching, tmp_path):
    (tmp_path / 'file').write_bytes(b'')
    node = teaching(prototypes=str(tmp_path / 'file' / 'p.npz'))
    node.show()
    node.teach(name='pallet', pixel=[40, 56])
    response = node.call('save_prototypes')
    assert not response.success and 'cannot be written' in response.message
    assert 'make room' not in response.message and 'parameter prototypes' in response.message
    assert taught(node.teach(list=True)) == [(3, 'pallet', 1)]


def test_thresholds_and_masks_of_the_network_at_run_time(teaching):
    node = teaching()
    node.show()
    node.teach(name='pallet', pixel=[40, 56])
    with node.stream():
        node.seen(3, UNKNOWN)
        # The cosine of two corners of the colour cube is 0.06.
        assert node.set('prototype_threshold', 0.01).successful
        node.seen(3, 3)
        assert node.teach(list=True)['classes'][0]['threshold'] == 0.01
        assert not node.set('prototype_threshold', -0.5).successful
        assert node.set('prototype_threshold', -1.0).successful
        node.seen(3, UNKNOWN)
    # Nothing is anomalous any more; the masks of the network are still there.
    assert node.set('anomaly_threshold', 2.0).successful
    node.picture = paint(WIDTH, HEIGHT, YELLOW, YELLOW)
    assert not (node.show() == 3).any()
    assert node.set('prototype_all_masks', True).successful
    assert (node.show() == 3).all()
    node.picture = paint(WIDTH, HEIGHT, CYAN, CYAN)
    node.show()
    status = node.teach(name='sea', pixel=[5, 5])
    assert (status['shot']['kind'], status['shot']['warning']) == ('mask', '')
    assert (node.show() == 4).all()
    assert node.set('prototype_all_masks', False).successful
    node.show()
    assert 'prototype_all_masks' in node.teach(name='sea', pixel=[5, 5])['shot']['warning']


def test_cameras_are_told_apart(ros, teaching):
    node = teaching(cameras=['front', 'left'])
    cameras = {name: ImagePublisher(ros.client, f'{name}/image', RELIABLE)
               for name in ('front', 'left')}
    masks = {name: ros.collect(Image, f'{name}/semantic/mask') for name in cameras}
    labels = {name: ros.collect(String, f'{name}/labels', LATCHED) for name in cameras}
    pictures = {'front': squares(), 'left': squares(CYAN, YELLOW)}
    with Repeater(lambda: [camera.send(pictures[name]) for name, camera in cameras.items()],
                  20.0):
        for name in cameras:
            masks[name].first()
        assert 'say which camera: ' in node.refused(name='pallet', pixel=[40, 56])
        status = node.teach(name='pallet', pixel=[40, 56], camera='left')
        assert status['shot']['camera'] == 'left'
        assert {entry['camera'] for entry in status['frames']} == {'front', 'left'}
        for name, where in (('front', RIGHT), ('left', LEFT)):
            masks[name].first(lambda message, where=where: (
                image_to_array(message)[where] == 3).all())
            assert kinds(json.loads(labels[name].messages[-1].data))[3] == ('taught', 'pallet')


def test_no_mask_has_an_id_before_its_name(teaching):
    node = teaching()
    wait_until(node.camera.matched)
    with node.stream(40.0):
        node.masks.first()
        for index in range(6):
            node.masks.messages.clear()
            node.teach(name=f'class {index}', pixel=[40, 56])
            number = 3 + index

            def first_with_id():
                return next((mask for mask in list(node.masks.messages)
                             if (image_to_array(mask)[LEFT] == number).all()), None)
            wait_until(first_with_id)
            assert number in kinds(json.loads(node.labels.messages[-1].data))
            node.teach(name=f'class {index}', threshold=1.0)
            node.teach(forget=f'class {index}')
            node.teach(name='filler', pixel=[136, 56], threshold=1.0)
            node.teach(rename='filler', to=f'filler {index}')
            node.teach(name=f'filler {index}', threshold=1.0)


def test_a_late_reader_of_the_status_hears_the_newest_and_an_early_one_each(ros, teaching):
    node = teaching()
    wait_until(lambda: node.answers.messages)
    node.answers.messages.clear()
    asked = [f'{number}' for number in range(20)]
    for number in asked:
        node.publish({'list': True, 'message_id': number})
    node.status(lambda status: status['message_id'] == asked[-1])
    wait_until(lambda: len(node.answers.messages) == len(asked))
    assert [json.loads(message.data)['message_id'] for message in node.answers.messages] == asked
    late = ros.collect(String, 'teach/status', ECHO)
    assert json.loads(late.first().data)['message_id'] == asked[-1]


def test_a_flood_of_messages_does_not_stall_frames(teaching):
    node = teaching()
    node.show()
    with node.stream(20.0):
        node.seen(UNKNOWN, UNKNOWN)
        count, start = len(node.masks.messages), time.monotonic()
        for number in range(1500):
            node.publish({'name': f'thing {number % 3}', 'pixel': [40, 56]})
        wait_until(lambda: len(node.masks.messages) > count + 20)
        seconds = time.monotonic() - start
        assert seconds < 10, seconds

        def all_done():
            values = values_of(node.diagnosis())
            return int(values['answered']) + int(values['dropped']) == int(values['messages']) > 0
        wait_until(all_done, 40.0)
        # It listens again.
        assert node.teach(list=True)['error'] == ''
    assert 1 <= int(values_of(node.diagnosis())['classes']) <= 3
    assert node.node._cameras[''].statistics.snapshot().bad_frames == 0


def test_memory_for_frames_is_bounded_and_can_be_changed(teaching):
    node = teaching()
    for _ in range(4):
        node.show()
    frames = node.node._teaching._teaching.frames
    assert frames.stamps()[''][0] == 4
    assert node.set('teach_memory', 0).successful
    node.show()
    assert frames.stamps() == {}
    assert 'teach_memory is 0' in node.refused(name='a', pixel=[40, 56])
    assert node.set('teach_memory', 1).successful
    # A frame takes 4 * 48 * 32 * 4 bytes, its regions and its masks.
    for _ in range(45):
        node.show()
    assert frames.nbytes <= 1 << 20
    assert 30 < frames.stamps()[''][0] < 43


def test_classes_outlive_a_pause_and_end_with_the_model(teaching):
    node = teaching(autostart=False)
    assert 'configure the node' in node.refused(name='a', pixel=[40, 56])
    response = node.call('load_prototypes')
    assert not response.success and 'configure the node' in response.message
    assert node.node.trigger_configure() == SUCCESS and node.node.trigger_activate() == SUCCESS
    node.show()
    node.teach(name='pallet', pixel=[40, 56])
    assert node.node.trigger_deactivate() == SUCCESS
    assert taught(node.teach(name='drum', pixel=[136, 56])) == [(3, 'pallet', 1), (4, 'drum', 1)]
    assert node.node.trigger_activate() == SUCCESS
    wait_until(lambda: 4 in kinds(json.loads(node.labels.messages[-1].data)))
    mask = node.show()
    assert (mask[LEFT] == 3).all() and (mask[RIGHT] == 4).all()
    version = node.teach(list=True)['version']
    assert node.node.trigger_deactivate() == SUCCESS and node.node.trigger_cleanup() == SUCCESS
    status = node.status(lambda status: status['state'] == 'unconfigured')
    assert status['classes'] == [] and status['frames'] == []
    assert node.node.trigger_configure() == SUCCESS and node.node.trigger_activate() == SUCCESS
    status = node.teach(list=True)
    assert status['classes'] == [] and status['version'] > version


@pytest.fixture
def owseg(ros, monkeypatch, capsys):
    """Return a function that runs `owseg teach` for this namespace: exit code, out, err."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(DOMAIN))
    monkeypatch.setenv('COLUMNS', '200')

    def run(*arguments):
        code = main(['teach', '--namespace', ros.namespace, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err
    return run


def test_owseg_teach_says_what_was_taken(teaching, owseg, tmp_path):
    path = tmp_path / 'p.npz'
    node = teaching(prototypes=str(path))
    node.show()
    stamp = '{}.{:09d}'.format(*node.camera.sent[0])
    code, out, _ = owseg('Pallet', '--pixel', '40,56', '--stamp', stamp, '--save')
    assert code == 0 and path.exists(), out
    assert f'accepted  pallet: an anomaly of 2300 pixels in 16,32,64,80, frame {stamp}' in out
    assert f'saved  1 class (pallet) of 1 shot saved to {path}' in out and '3 pallet' in out
    code, out, _ = owseg('drum', '--box', '100,20,170,90', '--threshold', '0.5', '--json')
    status = json.loads(out)
    assert code == 0 and status['unsaved'] and status['saved'] is None
    assert [entry['threshold'] for entry in status['classes']] == [0.8, 0.5]
    code, out, _ = owseg('--rename', 'drum', 'barrel')
    assert code == 0 and 'accepted  barrel' in out and '4 barrel' in out
    code, out, _ = owseg('pallet', '--region', '9')
    assert code == 1 and 'rejected  pallet: the frame has no anomalous region 9' in out
    code, out, _ = owseg('--load', '--json')
    assert code == 0 and taught(json.loads(out)) == [(3, 'pallet', 1)]
    path.write_bytes(b'')
    code, out, _ = owseg('--load')
    assert code == 1 and 'no npz file' in out
    code, out, _ = owseg('--save')
    assert code == 1 and 'is not overwritten' in out
    code, out, _ = owseg('--forget', 'pallet')
    assert code == 0 and out.splitlines()[-1].startswith('no taught classes, version')
    assert owseg('--list')[0] == 0


def test_owseg_teach_without_a_node_or_sense(ros, owseg, capsys):
    code, out, err = owseg('pallet', '--pixel', '1,2', '--timeout', '0.3')
    assert code == 2 and f'{ros.namespace}/teach' in err and 'ros2 launch' in err and out == ''
    assert owseg('--save', '--timeout', '0.3')[0] == 2
    # Nothing that any node could take: none hears of it.
    code, out, _ = owseg('pallet', '--timeout', '0')
    assert code == 1 and 'does not say where' in out
    for wrong in ([], ['a', '--pixel', '1'], ['a', '--pixel', '1,nan'], ['a', '--list'],
                  ['a', '--region', '0', '--stamp', 'now'],
                  ['a', '--pixel', '1,2', '--region', '0'], ['a', '--threshold', '3']):
        with pytest.raises(SystemExit) as stop:
            owseg(*wrong)
        assert stop.value.code == 2 and 'usage: owseg teach' in capsys.readouterr().err
