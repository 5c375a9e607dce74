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
"""Messages that teach, whatever they say."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st
from owseg_ros.novelty.frames import Box, Pixel, RegionNumber
from owseg_ros.novelty.messages import (
    Forget, ListClasses, MAX_MESSAGE_CHARACTERS, parse_teaching, Rename, Teach)
import pytest


@pytest.mark.parametrize('message, action', [
    ({'name': 'a', 'pixel': [3, 4.5]}, Teach('a', Pixel(3, 4.5))),
    ({'name': 'a', 'box': [1, 2, 3, 4], 'camera': 'left'},
     Teach('a', Box(1, 2, 3, 4), None, 'left')),
    ({'name': 'a', 'region': 0, 'stamp': {'sec': 5, 'nanosec': 7}},
     Teach('a', RegionNumber(0), 5_000_000_007)),
    ({'name': 'a', 'region': 2, 'stamp': 12, 'threshold': 0.5},
     Teach('a', RegionNumber(2), 12 * 10 ** 9, None, 0.5)),
    ({'name': 'a', 'threshold': 1}, Teach('a', threshold=1.0)),
    ({'forget': 'a'}, Forget('a')), ({'rename': 'a', 'to': 'b'}, Rename('a', 'b')),
    ({'list': True}, ListClasses())])
def test_what_a_message_asks_for(message, action):
    parsed = parse_teaching(json.dumps({**message, 'message_id': 'x'}))
    assert parsed.action == action and parsed.rejected is None and parsed.message_id == 'x'
    assert parse_teaching(json.dumps(message)).message_id is None


def test_a_stamp_in_seconds_keeps_its_nanoseconds():
    text = '{"name": "a", "region": 0, "stamp": 1700000000.123456789}'
    assert parse_teaching(text).action.stamp == 1_700_000_000_123_456_789


@pytest.mark.parametrize('text, reason', [
    ('pallet', 'no JSON'), ('', 'no JSON'), ('[1]', 'a message is a JSON object'),
    ('{', 'no JSON'), ('{}', 'a message is a JSON object'), ('[' * 5000, 'nested too deep'),
    ('{"name": "a", "forget": "b"}', 'name and forget at once'),
    ('{"name": "a"}', 'does not say where'), ('{"name": "a", "stamp": 1}', 'does not say where'),
    ('{"name": 3, "pixel": [1, 2]}', 'name must be a text'),
    ('{"name": "a", "pixel": [1, 2], "region": 1}', 'one of pixel, region'),
    ('{"name": "a", "pixel": [1]}', 'pixel must be 2 numbers'),
    ('{"name": "a", "pixel": [1, "b"]}', "not 'b'"),
    ('{"name": "a", "pixel": [true, 1]}', 'numbers'),
    ('{"name": "a", "pixel": [NaN, 1]}', 'numbers'),
    ('{"name": "a", "pixel": [Infinity, 1]}', 'numbers'),
    ('{"name": "a", "pixel": [1e400, 1]}', 'numbers'),
    ('{"name": "a", "pixel": [1e99999999999999999999, 1]}', 'no JSON'),
    ('{"name": "a", "box": [1, 2, 3]}', 'box must be 4 numbers'),
    ('{"name": "a", "region": -1}', 'region is the id'),
    ('{"name": "a", "region": 1.5}', 'region is the id'),
    ('{"name": "a", "region": 1, "stamp": "now"}', 'stamp must be'),
    ('{"name": "a", "region": 1, "stamp": NaN}', 'stamp must be'),
    ('{"name": "a", "region": 1, "stamp": {"sec": 1}}', 'stamp must be'),
    ('{"name": "a", "region": 1, "stamp": {"sec": 1' + '0' * 4000 + ', "nanosec": 0}}', 'stamp'),
    ('{"name": "a", "threshold": 2}', 'threshold is a cosine'),
    ('{"name": "a", "threshold": "high"}', 'threshold must be'),
    ('{"name": "a", "region": 1, "camera": 0}', 'camera must be a text'),
    ('{"name": "a", "regoin": 1}', "unknown key 'regoin'"),
    ('{"rename": "a"}', 'what the class is to be called'), ('{"list": 1}', 'list must be true'),
    ('{"forget": "a", "to": "b"}', "unknown key 'to'"),
    ('{"list": true, "message_id": 7}', 'message_id is not'),
    ('x' * (MAX_MESSAGE_CHARACTERS + 1), 'is longer than')],
    ids=lambda value: value[:40])
def test_what_cannot_be_taken_says_why(text, reason):
    parsed = parse_teaching(text)
    assert parsed.action is None and reason in parsed.rejected.reason
    assert len(parsed.rejected.entry) <= 60 and parsed.rejected.entry.isprintable()
    assert len(parsed.rejected.reason) < 400


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(['sec', 'nanosec', 'name']), inner, max_size=3), max_leaves=6)
keys = st.sampled_from(['name', 'pixel', 'box', 'region', 'stamp', 'camera', 'threshold',
                        'forget', 'rename', 'to', 'list', 'message_id', 'other'])


@given(st.dictionaries(keys, values, max_size=5).map(json.dumps) | st.text(max_size=60))
@settings(max_examples=300, deadline=None)
def test_no_message_raises(text):
    parsed = parse_teaching(text)
    assert (parsed.action is None) != (parsed.rejected is None)
