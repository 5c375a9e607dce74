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
"""Asking the running node in words, over real DDS."""

import json
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
import numpy as np
from owseg_ros.cli import main
from owseg_ros.frame import image_to_array
from owseg_ros.language import CachingTextEncoder, TextEncoderError
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.nodes.perception import PerceptionNode
from owseg_ros.nodes.queries import REST_SECONDS
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String
from std_srvs.srv import Trigger
from support.counting_encoder import CountingEncoder
from support.dds import (
    diagnosis, DOMAIN, ECHO, ImagePublisher, LATCHED, RELIABLE, Repeater, stamp_of, values_of,
    wait_until)
from support.tiny_bundle import make_tiny_bundle, paint
from support.tiny_text_encoder import make_tiny_text_encoder

pytestmark = pytest.mark.timeout(90)

SUCCESS = TransitionCallbackReturn.SUCCESS
WIDTH, HEIGHT = 192, 128
GREEN, BLUE = (0, 255, 0), (0, 0, 255)
PICTURE = paint(WIDTH, HEIGHT, GREEN, BLUE)
LEFT, RIGHT = np.s_[8:-8, 8:WIDTH // 2 - 8], np.s_[8:-8, WIDTH // 2 + 8:-8]
NOTHING = 255


def counting() -> CountingEncoder:
    """Return the encoder of the bundle `words`; in 64 dimensions its texts are far apart."""
    return CountingEncoder(dim=64)


@pytest.fixture(scope='module')
def words(tmp_path_factory):
    """Return a bundle that knows the names of colours, in the space of the counting encoder."""
    return make_tiny_bundle(tmp_path_factory.mktemp('words') / 'tiny', encoder=counting())


class Asking:
    """A node under test on a counting encoder, a camera, and a user who asks it for things."""

    def __init__(self, ros, parameters, open_encoder=None):
        self.ros = ros
        self.encoder = counting()
        self.statuses = ros.collect(String, 'query/status', LATCHED)
        self.diagnostics = ros.collect(DiagnosticArray, '/diagnostics')
        self.topic = ros.client.create_publisher(String, 'query', RELIABLE)
        self.camera = ImagePublisher(ros.client, qos=RELIABLE)
        options = {'open_encoder': lambda setup: CachingTextEncoder(self.encoder)}
        self.node = ros.start(
            PerceptionNode, {'diagnostics_period': 0.1, 'autostart': True, **parameters},
            **(options if open_encoder is None else {'open_encoder': open_encoder}))
        wait_until(lambda: self.node.phase in ('active', 'unconfigured'))
        wait_until(lambda: self.topic.get_subscription_count() > 0)

    def status(self, accept=lambda status: True):
        """Wait for a status that is accepted and return it."""
        return json.loads(self.statuses.first(lambda message: accept(json.loads(
            message.data))).data)

    def ready(self):
        """Wait until queries can be answered and return self."""
        self.status(lambda status: status['state'] == 'ready')
        wait_until(lambda: self.node.phase == 'active')
        return self

    def publish(self, message):
        """Publish a query."""
        self.topic.publish(String(data=message))

    def ask(self, message):
        """Publish a query and return the status that answers it."""
        self.statuses.messages.clear()
        self.publish(message)
        return self.status()

    def diagnosis(self, accept=lambda status: True):
        """Wait for a status `language` that is accepted and return it."""
        return diagnosis(self.diagnostics, self.node, 'language', accept)

    def set(self, name, value):  # noqa: A003
        """Set a parameter and return the result."""
        return self.node.set_parameters([Parameter(name, value=value)])[0]

    def stream(self, rate=20.0):
        """Return a context in which the camera sends the picture."""
        return Repeater(lambda: self.camera.send(PICTURE), rate)


class Masks:
    """What a camera's subscriber sees of queries."""

    def __init__(self, ros, camera=''):
        self.masks = ros.collect(Image, f'{camera}query/mask')
        self.labels = ros.collect(String, f'{camera}query/labels', RELIABLE)

    def pairs(self):
        """Return (mask, labels) for each stamp that has both."""
        found = {}
        for message in list(self.labels.messages):
            labels = json.loads(message.data)
            if labels['stamp'] is not None:
                found[labels['stamp']['sec'], labels['stamp']['nanosec']] = labels
        return [(image_to_array(mask), found[stamp_of(mask)])
                for mask in list(self.masks.messages) if stamp_of(mask) in found]

    def first(self, accept):
        """Wait for a mask and its labels that are accepted, and return them."""
        return wait_until(
            lambda: next((pair for pair in self.pairs() if accept(*pair)), None),
            what=lambda: [labels for _, labels in self.pairs()][-1:])


@pytest.fixture
def asking(ros, words):
    """Return a function that starts the node with parameters."""
    return lambda **parameters: Asking(ros, {'model': str(words.path), **parameters})


def names(labels):
    """Return the names that labels give to ids 0, 1, ..."""
    assert [query['id'] for query in labels['queries']] == list(range(len(labels['queries'])))
    return [query['name'] for query in labels['queries']]


def vocabulary_file(path, *entries):
    """Write a vocabulary of entries, or of bare names, and return its path."""
    path.write_text(json.dumps({
        'schema': 'owseg_ros/vocabulary', 'schema_version': 1,
        'templates': {'plain': ['{}'], 'caption': ['{}']},
        'entries': [entry if isinstance(entry, dict) else {'name': entry}
                    for entry in entries]}))
    return str(path)


def test_words_become_masks(ros, asking, vision_msgs, monkeypatch):
    monkeypatch.syspath_prepend(str(vision_msgs))
    from vision_msgs.msg import LabelInfo
    seen = Masks(ros)
    scores = ros.collect(Image, 'query/score')
    node = asking().ready()
    status = node.ask('{"message_id": "a", "queries": ["stroller", {"name": "Blue", '
                      '"threshold": 0.625}, "green", "a\\u0000"]}')
    assert (status['message_id'], status['version']) == ('a', 1)
    assert status['active'] == status['accepted'] == ['stroller', 'blue', 'green']
    assert status['thresholds'] == [0.5, 0.625, 0.5]
    rejected, = status['rejected']
    assert 'U+0000' in rejected['reason']
    with node.stream():
        mask, labels = seen.first(lambda mask, labels: labels['version'] == 1)
        stamp = labels['stamp']['sec'], labels['stamp']['nanosec']
        score = image_to_array(scores.first(lambda message: stamp_of(message) == stamp))
    assert stamp in node.camera.sent
    assert mask.shape == (HEIGHT, WIDTH) and score.dtype == np.float32
    assert (mask[LEFT] == 2).all() and (mask[RIGHT] == 1).all()
    assert score[LEFT].min() > 0.5 and score[RIGHT].min() > 0.625 and score.max() <= 1.0
    assert names(labels) == ['stroller', 'blue', 'green']
    assert [query['threshold'] for query in labels['queries']] == [0.5, 0.625, 0.5]
    assert len({tuple(query['color']) for query in labels['queries']}) == 3
    late = json.loads(ros.collect(String, 'query/labels', LATCHED).first().data)
    assert late['version'] == 1 and names(late) == names(labels)
    info = ros.collect(LabelInfo, 'query/label_info', LATCHED).first()
    assert [(entry.class_id, entry.class_name) for entry in info.class_map] == [
        (0, 'stroller'), (1, 'blue'), (2, 'green')]
    assert info.threshold == 0.5


def test_what_is_absent_has_an_empty_mask(ros, asking):
    seen = Masks(ros)
    node = asking(queries='red, stroller').ready()
    with node.stream():
        mask, labels = seen.first(lambda mask, labels: names(labels) == ['red', 'stroller'])
    assert (mask == NOTHING).all()


def test_a_query_is_answered_by_the_next_frame_and_costs_one_text_pass(ros, asking):
    seen = Masks(ros)
    node = asking().ready()
    wait_until(node.camera.matched)
    wait_until(lambda: seen.masks.subscription.get_publisher_count() > 0)
    passes = len(node.encoder.asked)
    for number, name in enumerate(('dog', 'cat', 'stroller'), 1):
        version = node.ask(name)['version']
        for _ in range(3):
            sent = stamp_of(node.camera.send(PICTURE))
            _, labels = seen.first(lambda mask, labels, sent=sent: sent == (
                labels['stamp']['sec'], labels['stamp']['nanosec']))
            assert (labels['version'], names(labels)) == (version, [name])
        assert len(node.encoder.asked) == passes + number
    # What was asked before is known.
    assert node.ask('dog')['active'] == ['dog']
    assert len(node.encoder.asked) == passes + 3
    values = values_of(node.diagnosis(lambda status: values_of(status)['version'] == '4'))
    assert int(values['text_passes']) == passes + 3


def test_what_is_asked_while_the_network_runs_is_answered_by_that_frame(ros, asking):
    seen = Masks(ros)
    node = asking(queries='blue').ready()
    wait_until(node.camera.matched)
    wait_until(lambda: seen.masks.subscription.get_publisher_count() > 0)
    engine = node.node._segmenter.engine
    infer = engine.infer

    def ask_meanwhile(frames, **outputs):
        node.ask('green')
        return infer(frames, **outputs)

    engine.infer = ask_meanwhile
    sent = stamp_of(node.camera.send(PICTURE))
    mask, labels = seen.first(lambda mask, labels: True)
    assert (labels['stamp']['sec'], labels['stamp']['nanosec']) == sent
    assert names(labels) == ['green'] and (mask[LEFT] == 0).all()


def test_frames_go_on_while_a_text_is_encoded_and_the_newest_message_wins(ros, asking):
    seen = Masks(ros)
    node = asking(queries='green').ready()
    with node.stream():
        seen.first(lambda mask, labels: names(labels) == ['green'])
        node.encoder.gate.clear()
        node.encoder.waiting.clear()
        node.publish('one of many')
        assert node.encoder.waiting.wait(20)
        for number in range(300):
            node.publish(f'thing {number}')
        count = len(seen.pairs())
        wait_until(lambda: len(seen.pairs()) > count + 10)
        assert all(names(labels) == ['green'] for _, labels in seen.pairs()[count:])
        asked = len(node.encoder.asked)
        node.encoder.gate.set()
        seen.first(lambda mask, labels: names(labels) == ['thing 299'])
    # One pass for 300 messages; DDS and the slot drop all but the newest.
    assert node.encoder.asked[asked:] == [['thing 299']]
    values = values_of(node.diagnosis(lambda status: values_of(status)['active'] == '1'))
    assert int(values['answered']) + int(values['superseded']) == int(values['messages'])


def test_a_flood_of_messages_ends_with_the_last(ros, asking):
    seen = Masks(ros)
    node = asking().ready()
    with node.stream():
        first = len(seen.pairs())
        for number in range(1500):
            node.publish(f'{"green" if number % 2 else "blue"}, thing {number}')
        mask, _ = seen.first(lambda mask, labels: names(labels) == ['green', 'thing 1499'])
        assert (mask[LEFT] == 0).all() and (mask[RIGHT] == NOTHING).all()
        wait_until(lambda: len(seen.pairs()) > first + 5)
    assert node.node._cameras[''].statistics.snapshot().bad_frames == 0


def test_a_late_reader_of_the_status_hears_what_is_live_now(ros, asking):
    node = asking().ready()
    for words in ('green', 'blue', 'red'):
        node.publish(words)
        node.status(lambda status: status['active'] == [words])
    late = ros.collect(String, 'query/status', ECHO)
    assert json.loads(late.first().data)['active'] == ['red']
    node.publish('')
    late.first(lambda message: not json.loads(message.data)['active'])
    assert len(late.messages) == 2


def test_a_flood_is_taken_at_a_bounded_rate(ros, asking):
    node = asking().ready()
    numbers = iter(range(10 ** 6))
    before = node.node._queries._queries.state.messages
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < 2.0:
        node.publish(f'thing {next(numbers)}')
        time.sleep(0.001)
    last = f'thing {next(numbers) - 1}'
    node.statuses.first(lambda message: json.loads(message.data)['active'] == [last])
    taken = node.node._queries._queries.state.messages - before
    # Up to three between two rests; most of what was sent is replaced before it is taken.
    assert 2 < taken <= 3 * (elapsed / REST_SECONDS + 1) and taken < next(numbers) / 2


def test_a_few_messages_are_never_put_off(ros, asking):
    node = asking().ready()
    for words in ('green', 'blue', 'red'):
        start = time.monotonic()
        node.publish(words)
        node.statuses.first(lambda message: json.loads(message.data)['active'] == [words])
        assert not node.node._queries._group._resting and time.monotonic() - start < 5


def test_labels_of_a_stamp_tell_what_its_mask_answers(ros, asking):
    seen = Masks(ros)
    node = asking().ready()
    turns = iter(range(10 ** 6))
    with node.stream(50.0), Repeater(
            lambda: node.publish('green' if next(turns) % 2 else 'blue'), 17.0):
        def both():
            answered = [names(labels) for _, labels in seen.pairs()]
            return min(answered.count(['green']), answered.count(['blue'])) >= 8
        wait_until(both)
    meanings: dict = {}
    for mask, labels in seen.pairs():
        found = names(labels)
        if found:
            there, away = (LEFT, RIGHT) if found == ['green'] else (RIGHT, LEFT)
            assert (mask[there] == 0).all() and (mask[away] == NOTHING).all()
        else:
            assert (mask == NOTHING).all()
        assert meanings.setdefault(labels['version'], found) == found
    versions = [labels['version'] for _, labels in seen.pairs()]
    assert versions == sorted(versions) and len(meanings) > 4


def test_all_cameras_answer_one_set(ros, asking):
    seen = {name: Masks(ros, f'{name}/') for name in ('a', 'b')}
    node = asking(cameras=['a', 'b']).ready()
    cameras = {name: ImagePublisher(ros.client, f'{name}/image') for name in seen}
    node.ask('blue, green')
    with Repeater(lambda: [camera.send(PICTURE) for camera in cameras.values()], 20.0):
        for name in seen:
            mask, labels = seen[name].first(lambda mask, labels: labels['version'] == 1)
            assert names(labels) == ['blue', 'green']
            assert (mask[LEFT] == 1).all() and (mask[RIGHT] == 0).all()


def test_query_maps_are_computed_while_somebody_listens(ros, asking):
    node = asking(queries='green').ready()
    asked = []
    run_network = node.node._segmenter.run_network

    def run_and_remember(frames, maps, *more):
        asked.append(maps)
        return run_network(frames, maps, *more)

    node.node._segmenter.run_network = run_and_remember
    classes = ros.collect(Image, 'semantic/mask')
    with node.stream():
        classes.first()
        assert set(asked) == {frozenset({'semantic'})}
        seen = Masks(ros)
        seen.first(lambda mask, labels: names(labels) == ['green'])
        assert asked[-1] == {'semantic', 'query_mask'}


def test_the_threshold_changes_at_run_time(ros, asking):
    seen = Masks(ros)
    node = asking(queries='green, {').ready()
    passes = len(node.encoder.asked)
    with node.stream():
        seen.first(lambda mask, labels: (mask[LEFT] == 0).all())
        assert node.set('query_threshold', 1.0).successful
        mask, labels = seen.first(
            lambda mask, labels: labels['queries'][0]['threshold'] == 1.0)
        assert (mask == NOTHING).all()
        assert node.set('query_threshold', 0.25).successful
        mask, labels = seen.first(
            lambda mask, labels: labels['queries'][0]['threshold'] == 0.25)
        assert (mask[LEFT] == 0).all()
        assert node.set('query_threshold', -1.0).successful
        seen.masks.messages.clear()
        seen.first(lambda mask, labels: labels['queries'][0]['threshold'] == 0.5)
    refused = node.set('query_threshold', -0.5)
    assert not refused.successful and '0..1, or -1' in refused.reason
    assert len(node.encoder.asked) == passes


def test_a_vocabulary_gives_other_wordings_and_is_read_again(asking, tmp_path):
    path = tmp_path / 'words.yaml'

    def write(synonym):
        vocabulary_file(path, {'name': 'meadow', 'synonyms': [synonym]})

    def wordings(status):
        return status['queries'] and status['queries'][0]['wordings']

    write('green')
    node = asking(vocabulary=str(path), queries='meadow').ready()
    node.status(lambda status: wordings(status) == ['meadow', 'green'])
    write('blue')
    assert node.set('vocabulary', str(path)).successful
    node.status(lambda status: wordings(status) == ['meadow', 'blue'])
    path.write_text('entries: [')
    refused = node.set('vocabulary', str(path))
    assert not refused.successful and 'words.yaml' in refused.reason
    assert node.set('vocabulary', '').successful
    node.status(lambda status: wordings(status) == ['meadow'])


def test_what_is_unknown_gets_a_name(ros, asking, tmp_path):
    picture = paint(WIDTH, HEIGHT, GREEN, GREEN)
    picture[32:64, 96:160] = (255, 255, 0)
    picture[88:120, 16:48] = (255, 0, 255)
    regions = ros.collect(String, 'anomaly/regions')
    masks = ros.collect(Image, 'anomaly/mask')
    path = tmp_path / 'things.yaml'
    node = asking(vocabulary=vocabulary_file(path, 'yellow', 'cyan'), name_unknown=True).ready()

    def found(*expected):
        """Wait for a message with these names, the largest region first, and return it."""
        regions.messages.clear()
        return json.loads(regions.first(lambda message: [
            region['name'] for region in json.loads(message.data)['regions']] == list(
                expected)).data)

    with Repeater(lambda: node.camera.send(picture, 'front'), 20.0):
        message = found('yellow', 'unknown')
        assert (message['frame_id'], message['width'], message['height']) == (
            'front', WIDTH, HEIGHT)
        stamp = message['stamp']['sec'], message['stamp']['nanosec']
        assert stamp in node.camera.sent
        mask = image_to_array(masks.first(lambda mask: stamp_of(mask) == stamp)) > 0
        for region in message['regions']:
            left, top, right, bottom = region['box']
            assert mask[top:bottom, left:right].sum() == region['area'] > 500
            assert region['score'] > 0.9
        assert [region['id'] for region in message['regions']] == [0, 1]
        assert message['regions'][0]['name_score'] > 0.5 > message['regions'][1]['name_score']
        assert np.abs(np.array(message['regions'][0]['box']) - (96, 32, 160, 64)).max() <= 4
        # The file is read again when somebody edits it.
        vocabulary_file(path, 'cyan', 'magenta')
        found('unknown', 'magenta')
        values = values_of(node.diagnosis(lambda status: values_of(status)['names'] == '2'))
        assert values['last_error'] == ''
        path.write_text('entries: [')
        status = node.diagnosis(lambda status: status.level == DiagnosticStatus.WARN)
        assert 'things.yaml' in status.message
        found('unknown', 'magenta')
        assert node.ask('green')['active'] == ['green']
        assert node.set('name_unknown', False).successful
        node.diagnosis(lambda status: values_of(status)['names'] == '0')
        regions.messages.clear()
        masks.messages.clear()
        wait_until(lambda: len(masks.messages) > 5)
        assert len(regions.messages) <= 1
        vocabulary_file(path, 'yellow', 'magenta')
        assert node.set('name_unknown', True).successful
        found('yellow', 'magenta')


def test_regions_without_words_are_unknown(ros, tiny):
    regions = ros.collect(String, 'anomaly/regions')
    node = Asking(ros, {'model': str(tiny.path), 'name_unknown': True, 'output_size': 'network'})
    with Repeater(lambda: node.camera.send(paint(WIDTH, HEIGHT, GREEN, (255, 255, 0))), 20.0):
        message = json.loads(regions.first().data)
    assert (message['width'], message['height']) == (tiny.input.width, tiny.input.height)
    region, = message['regions']
    assert (region['name'], region['name_score']) == ('unknown', 0.0)


def refusals(bundle, tiny, tmp_path):
    """Return node parameters that leave it without queries, and what it shall say to do."""
    text = make_tiny_text_encoder(tmp_path / 'text')
    return {
        'missing': ({'model': str(bundle.path), 'text_encoder': str(tmp_path / 'nowhere')},
                    'owseg text-encoder'),
        'another space': ({'model': str(bundle.path), 'text_encoder': str(text.path)},
                          'text space counting'),
        'no words': ({'model': str(tiny.path)}, 'section language'),
        'no vocabulary': ({'model': str(bundle.path), 'vocabulary': '/no/such/file'},
                          '/no/such/file'),
    }


@pytest.mark.parametrize('case', ['missing', 'another space', 'no words', 'no vocabulary'])
def test_without_queries_the_node_runs_and_says_what_to_do(
        ros, words, tiny, tmp_path, monkeypatch, case):
    from owseg_ros.nodes.queries import open_encoder
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    parameters, advice = refusals(words, tiny, tmp_path)[case]
    node = Asking(ros, parameters, None if case == 'no vocabulary' else open_encoder)
    node.status(lambda status: status['state'] == 'unavailable')
    answer = node.ask('{"queries": ["green", 3], "message_id": "x"}')
    assert (answer['message_id'], answer['accepted'], answer['active']) == ('x', [], [])
    assert [entry['entry'] for entry in answer['rejected']] == ['3', 'green']
    assert advice in answer['error'] == answer['rejected'][1]['reason']
    found = node.diagnosis(lambda status: status.level == DiagnosticStatus.WARN)
    assert advice in found.message and values_of(found)['last_error'] == answer['error']
    assert node.node.phase == 'active'
    classes = ros.collect(Image, 'semantic/mask')
    seen = Masks(ros)
    with node.stream():
        classes.first()
        if case == 'no words':
            assert ros.client.count_publishers(f'{ros.namespace}/query/mask') == 0
        else:
            mask, labels = seen.first(lambda mask, labels: True)
            assert (mask == NOTHING).all() and labels['queries'] == []
    assert node.node._cameras[''].statistics.snapshot().bad_frames == 0


def test_a_model_without_words_is_no_warning_until_somebody_asks(ros, tiny):
    node = Asking(ros, {'model': str(tiny.path)})
    found = node.diagnosis(lambda status: values_of(status)['state'] == 'unavailable')
    assert found.level == DiagnosticStatus.OK and 'section language' in found.message
    node.ask('dog')
    node.diagnosis(lambda status: status.level == DiagnosticStatus.WARN)


def test_a_failing_encoder_is_told_and_the_live_set_stays(ros, asking):
    seen = Masks(ros)
    node = asking(queries='green').ready()
    node.encoder.broken = True
    answer = node.ask('stroller')
    assert answer['rejected'] == [{'entry': 'stroller', 'reason': 'broken'}]
    assert answer['active'] == ['green']
    found = node.diagnosis(lambda status: status.level == DiagnosticStatus.WARN)
    assert 'broken' in found.message
    with node.stream():
        mask, _ = seen.first(lambda mask, labels: names(labels) == ['green'])
        assert (mask[LEFT] == 0).all()
    node.encoder.broken = False
    assert node.ask('stroller')['active'] == ['stroller']
    node.diagnosis(lambda status: status.level == DiagnosticStatus.OK)


def test_a_real_text_encoder_in_its_folder(ros, tmp_path, monkeypatch):
    from owseg_ros.nodes.queries import open_encoder
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    folder = make_tiny_text_encoder(tmp_path / 'text').path
    bundle = make_tiny_bundle(tmp_path / 'tiny', encoder=OnnxTextEncoder(folder, threads=1))
    seen = Masks(ros)
    node = Asking(ros, {'model': str(bundle.path), 'text_encoder': str(folder)}, open_encoder)
    node.ready().ask('[{"name": "blue", "synonyms": []}, {"name": "green", "synonyms": []}]')
    with node.stream():
        mask, _ = seen.first(lambda mask, labels: labels['version'] == 1)
    assert (mask[LEFT] == 1).all() and (mask[RIGHT] == 0).all()
    values = values_of(node.diagnosis())
    assert (values['space'], values['encoder'], values['active']) == ('tiny', str(folder), '2')
    assert len(list((tmp_path / 'cache').rglob('*.npz'))) == 1


def test_queries_outlive_a_pause_and_end_with_the_model(ros, asking, words):
    seen = Masks(ros)
    asker = asking(queries='blue', autostart=False)
    node = asker.node
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    asker.status(lambda status: status['active'] == ['blue'])
    assert asker.ask('green')['version'] == 2
    assert node.trigger_deactivate() == SUCCESS
    # A node that pauses still listens.
    assert asker.ask('green, white')['version'] == 3
    assert node.trigger_activate() == SUCCESS
    with asker.stream():
        mask, labels = seen.first(lambda mask, labels: labels['version'] == 3)
        assert names(labels) == ['green', 'white'] and (mask[LEFT] == 0).all()
        asker.statuses.messages.clear()
        assert node.trigger_deactivate() == SUCCESS and node.trigger_cleanup() == SUCCESS
        status = asker.status(lambda status: status['state'] == 'unconfigured')
        assert status['active'] == []
        answer = asker.ask('green')
        assert 'configure' in answer['rejected'][0]['reason']
        # The queries of the parameter are prepared for whatever model comes.
        asker.statuses.messages.clear()
        assert asker.set('model', str(words.path)).successful
        assert asker.set('queries', 'white, blue').successful
        assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
        status = asker.status(lambda status: status['state'] == 'ready')
        assert status['active'] == ['white', 'blue'] and status['version'] > 3
        mask, labels = seen.first(
            lambda mask, labels: labels['version'] == status['version'])
        assert names(labels) == ['white', 'blue'] and (mask[RIGHT] == 1).all()


def test_another_model_answers_the_same_queries(ros, asking, tmp_path):
    """The space is the same, the regions, background and threshold are of the other model."""
    from support.tiny_bundle import edit_manifest
    other = make_tiny_bundle(tmp_path / 'other', encoder=counting())
    edit_manifest(other.path, lambda manifest: manifest['language'].update(threshold=0.125))
    asker = asking(queries='blue', autostart=False)
    node = asker.node
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    assert asker.status(lambda status: status['active'])['thresholds'] == [0.5]
    assert node.trigger_deactivate() == SUCCESS and node.trigger_cleanup() == SUCCESS
    assert asker.set('model', str(other.path)).successful
    assert node.trigger_configure() == SUCCESS and node.trigger_activate() == SUCCESS
    asker.status(lambda status: status['thresholds'] == [0.125])
    seen = Masks(ros)
    with asker.stream():
        mask, _ = seen.first(lambda mask, labels: names(labels) == ['blue'])
    assert (mask[RIGHT] == 0).all()


def test_clear_by_service(ros, asking):
    node = asking(queries='green, blue', autostart=False)
    assert node.node.trigger_configure() == SUCCESS and node.node.trigger_activate() == SUCCESS
    client = ros.client.create_client(Trigger, 'clear_queries')
    assert client.wait_for_service(20.0)

    def call():
        future = client.call_async(Trigger.Request())
        wait_until(future.done)
        return future.result()

    node.status(lambda status: status['active'] == ['green', 'blue'])
    node.statuses.messages.clear()
    response = call()
    assert response.success and '2 queries (green, blue)' in response.message
    assert node.status()['active'] == []
    assert node.node.trigger_deactivate() == SUCCESS and node.node.trigger_cleanup() == SUCCESS
    node.status(lambda status: status['state'] == 'unconfigured')
    response = call()
    assert not response.success and 'configure the node' in response.message


def test_ask_by_service(ros, asking):
    """The parameter queries of a running node asks as the topic does, or says why it does not."""
    node = asking().ready()
    client = ros.client.create_client(
        SetParameters, f'{node.node.get_fully_qualified_name()}/set_parameters')
    assert client.wait_for_service(20.0)

    def ask(message):
        future = client.call_async(SetParameters.Request(
            parameters=[Parameter('queries', value=message).to_parameter_msg()]))
        wait_until(future.done)
        return future.result().results[0]

    assert ask('green, blue').successful
    assert node.status(lambda status: status['active'])['active'] == ['green', 'blue']
    refused = ask('red, re\x07d, Red')
    assert not refused.successful
    assert 'U+0007' in refused.reason and 'asked for twice' in refused.reason
    assert node.node.get_parameter('queries').value == 'green, blue'
    assert ask('').successful
    assert not node.status(lambda status: status['version'] == 2)['active']


@pytest.fixture
def owseg(ros, monkeypatch, capsys):
    """Return a function that runs `owseg query` for this namespace: exit code, out, err."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(DOMAIN))
    monkeypatch.setenv('COLUMNS', '200')

    def run(*arguments):
        code = main(['query', '--namespace', ros.namespace, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err
    return run


def test_owseg_query_says_what_was_taken(asking, owseg):
    asking().ready()
    code, out, _ = owseg('green,', 'traffic  Cone', '--json')
    assert code == 0 and json.loads(out)['active'] == ['green', 'traffic cone']
    code, out, _ = owseg('[{"name": "blue", "threshold": 0.75}, "Blue", "a\\u0007"]')
    assert code == 1
    assert 'accepted  blue' in out and 'threshold 0.75' in out
    assert 'rejected  Blue: it is asked for twice' in out and 'U+0007' in out
    code, out, _ = owseg('--list', '--json')
    status = json.loads(out)
    assert (code, status['active'], status['accepted'], status['rejected']) == (
        0, ['blue'], [], [])
    code, out, _ = owseg('{"queries": ["green", "blue"]}', '--json')
    assert (code, json.loads(out)['active']) == (0, ['green', 'blue'])
    code, out, _ = owseg('--clear')
    assert code == 0 and 'no live queries' in out


def test_owseg_query_says_why_nothing_can_be_asked(ros, tiny, owseg):
    Asking(ros, {'model': str(tiny.path)})
    code, out, _ = owseg('green')
    assert code == 1
    assert 'rejected  green: the model tiny does not know words' in out
    # Nothing to take: no node hears of it.
    code, out, _ = owseg('[{"nam": "dog"}]', '--timeout', '0')
    assert code == 1 and "did you mean 'name'" in out


def test_owseg_query_without_a_node(ros, asking, owseg, capsys):
    code, out, err = owseg('green', '--timeout', '0.3')
    assert code == 2 and f'{ros.namespace}/query' in err and 'ros2 launch' in err
    assert '\n' not in err.strip() and out == ''
    asking()
    code, _, err = owseg('--list', '--timeout', '5', '--namespace', '/elsewhere')
    assert code == 2 and '--namespace may be' in err and ros.namespace in err
    for wrong in ([], ['dog', '--clear'], ['--list', '--clear']):
        with pytest.raises(SystemExit) as stop:
            owseg(*wrong)
        assert stop.value.code == 2 and '--clear' in capsys.readouterr().err
    assert owseg('dog', '--namespace', 'no namespace')[0] == 2


def test_an_encoder_that_cannot_be_opened_is_tried_again(ros, words, monkeypatch):
    monkeypatch.setattr('owseg_ros.language.live.RETRY_SECONDS', 0.0)
    there = []

    def open_encoder(setup):
        if not there:
            raise TextEncoderError('run: owseg text-encoder')
        return CachingTextEncoder(counting())

    node = Asking(ros, {'model': str(words.path)}, open_encoder)
    assert node.ask('green')['state'] == 'unavailable'
    there.append(True)
    node.publish('green')
    assert node.status(lambda status: status['active'])['active'] == ['green']
    node.diagnosis(lambda status: status.level == DiagnosticStatus.OK)
