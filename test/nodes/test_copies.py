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
"""How often the pixels of a frame are copied on their way in and on their way out."""

from dataclasses import replace
import tracemalloc

import numpy as np
from owseg_ros.frame import array_to_image
from owseg_ros.frame import image_to_array
from owseg_ros.frame import image_to_frame
from owseg_ros.nodes import outputs
from owseg_ros.readout import cpu
from owseg_ros.readout import ObjectSettings
from owseg_ros.readout import readout
from owseg_ros.segmenter import Segmenter
import pytest
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.tiny_bundle import paint

HEADER_BYTES = 20000
"""Python objects of a message, apart from its pixels."""


def grown_by(act):
    """Return the peak of new memory (bytes, Python and NumPy) during a call, and its result."""
    act()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        result = act()
        return tracemalloc.get_traced_memory()[1] - before, result
    finally:
        tracemalloc.stop()


@pytest.fixture(scope='module')
def frame_message():
    """Return a camera message of 640x480."""
    return array_to_image(paint(640, 480), 'rgb8')


@pytest.fixture(scope='module')
def segmenter(tiny):
    """Return a segmenter with a small network."""
    made = Segmenter(tiny, threads=1)
    made.warm_up()
    return made


def test_the_measure_sees_a_copy(frame_message):
    size = len(frame_message.data)
    grown, _ = grown_by(lambda: np.frombuffer(frame_message.data, np.uint8).copy())
    assert size <= grown < size + HEADER_BYTES


@pytest.mark.parametrize('encoding', ['rgb8', 'bgr8'])
def test_a_frame_is_a_view_of_its_message(frame_message, encoding):
    message = Image(height=480, width=640, step=1920, encoding=encoding)
    message.data = frame_message.data
    grown, frame = grown_by(lambda: image_to_frame(message))
    assert np.shares_memory(frame.pixels, np.frombuffer(message.data, np.uint8))
    assert grown < HEADER_BYTES


def test_the_engine_reads_the_message_itself_and_writes_its_input_only(segmenter, frame_message):
    frame = image_to_frame(frame_message)
    grown, batch = grown_by(lambda: segmenter.engine._pack([frame], 1))
    assert grown < HEADER_BYTES
    assert np.shares_memory(batch, segmenter.engine._buffer)


@pytest.mark.parametrize(
    'output', outputs.IMAGES, ids=[output.topic for output in outputs.IMAGES])
def test_a_map_is_copied_once_into_its_message(segmenter, frame_message, output):
    frame = image_to_frame(frame_message)
    result = segmenter(frame, {'semantic', 'confidence', 'anomaly_score', 'anomaly_mask'})
    picture = output.make(result, frame, 0.5)
    if output.topic not in ('semantic/color', 'overlay'):
        made, _ = grown_by(lambda: output.make(result, frame, 0.5))
        assert made < HEADER_BYTES
    grown, message = grown_by(
        lambda: array_to_image(picture, output.encoding, Header()))
    # An array that grows takes a sixteenth more than it needs.
    assert picture.nbytes <= grown < 1.1 * picture.nbytes + HEADER_BYTES
    np.testing.assert_array_equal(image_to_array(message), picture)


def test_messages_of_the_last_frame_are_written_to_again(segmenter, frame_message):
    """What is sent is this frame's; no memory is allocated for it, and none kept in vain."""
    frame = image_to_frame(frame_message)
    maps = {'semantic', 'confidence', 'anomaly_score', 'anomaly_mask'}
    first = segmenter(frame, maps)
    # Each byte of each map is another one.
    results = [first, replace(first, anomaly_score=-1 - first.anomaly_score, **{
        name: ~getattr(first, name) for name in maps - {'anomaly_score'}})]
    sent, messages = [], {}

    class Publisher:

        def publish(self, message):
            sent.append((message, image_to_array(message).copy(), message.header.frame_id))

    wanted = [(output, Publisher()) for output in outputs.IMAGES[:4]]

    def publish(index, wanted=wanted):
        outputs.publish_outputs(wanted, results[index], frame,
                                Header(frame_id=f'frame {index}'), 0.5, messages)

    for index in (0, 1, 0):
        publish(index)
        for (output, _), (message, pixels, frame_id) in zip(wanted, sent[-4:]):
            assert messages[output.topic] is message and frame_id == f'frame {index}'
            np.testing.assert_array_equal(pixels, output.make(results[index], None, 0.5))
    assert all(before[0] is after[0] for before, after in zip(sent[:4], sent[4:8]))
    sent.clear()
    Publisher.publish = lambda self, message: None
    grown, _ = grown_by(lambda: publish(1))
    assert grown < HEADER_BYTES
    publish(1, wanted[1:2])
    assert list(messages) == ['semantic/confidence']


@pytest.mark.parametrize('maps, refines, masks', [
    ({'semantic'}, 0, 0), ({'confidence'}, 0, 0), ({'anomaly_score'}, 1, 0),
    ({'anomaly_mask'}, 1, 1), ({'semantic', 'confidence', 'anomaly_score'}, 1, 0)])
def test_the_readout_leaves_out_what_nobody_asks_for(
        tiny, monkeypatch, frame_message, maps, refines, masks):
    """Grouping into objects and the mask cost the most; ids need them to mark unknown only."""
    calls = []
    for module, name in ((cpu, 'refine'), (readout, 'hazard_mask')):
        original = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *arguments, name=name, original=original, **options: (
                calls.append(name), original(*arguments, **options))[1])
    segmenter = Segmenter(tiny, threads=1)
    segmenter.settings = replace(
        segmenter.settings, mark_unknown=False, objects=ObjectSettings())
    result = segmenter(image_to_frame(frame_message), maps)
    assert (calls.count('refine'), calls.count('hazard_mask')) == (refines, masks)
    for name in ('semantic', 'confidence', 'anomaly_score', 'anomaly_mask'):
        assert (getattr(result, name) is not None) == (name in maps)
    calls.clear()
    segmenter.settings = replace(segmenter.settings, mark_unknown=True)
    segmenter(image_to_frame(frame_message), maps)
    assert ('hazard_mask' in calls) == bool(maps & {'semantic', 'anomaly_mask'})
