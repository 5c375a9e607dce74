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
import numpy as np
from owseg_ros.demo_queries import DemoQueries, describe, why_no_queries
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
import pytest
from support.tiny_bundle import make_tiny_bundle
from support.tiny_text_encoder import make_tiny_text_encoder


def answer(*active, rejected=(), error='', state='ready'):
    """Return what a message of query/status says."""
    return {'state': state, 'active': list(active), 'accepted': list(active),
            'rejected': list(rejected), 'error': error}


def test_messages_are_typed_one_after_the_other():
    queries = DemoQueries(['car, cone', 'Road'], seconds=10)
    assert queries.due(0.0, 99.0) is None
    queries.answered(answer(state='opening'), 99.0)
    assert queries.due(0.0, 99.0) is None
    assert describe(queries.report()[0]).startswith('not typed: ')
    queries.answered(answer(), 99.5)
    assert queries.due(0.0, 100.0) == 'car, cone'
    queries.typed(100.0)
    assert queries.due(6.0, 106.0) is None
    queries.answered(answer('car', 'cone'), 100.1)
    assert queries.due(4.9, 104.9) is None and queries.due(5.0, 105.0) == 'Road'
    # The first was late.
    assert queries.due(9.0, 102.4) is None and queries.due(9.0, 102.6) == 'Road'
    queries.typed(105.0)
    queries.answered(answer('road'), 105.1)
    assert queries.due(99.0, 199.0) is None
    assert list(queries.colors) == ['car', 'cone', 'road']
    assert len(set(queries.colors.values())) == 3


def test_only_masks_of_the_set_that_was_typed_count():
    queries = DemoQueries(['car, cone', 'road'], seconds=10)
    mask = np.full((10, 10), 255, np.uint8)
    mask[:2], mask[2:5] = 1, 0
    queries.answered(answer('old'), 99.0)
    queries.typed(100.0)
    # An answer to nothing, such as one after a parameter has changed, is passed by.
    queries.answered({**answer(), 'active': ['old']}, 100.05)
    queries.seen(('old',), mask, 100.06)
    queries.answered(answer('car', 'cone'), 100.1)
    queries.seen(('old',), mask, 100.2)
    queries.seen(('car', 'cone'), mask, 100.3)
    queries.seen(('car', 'cone'), np.full_like(mask, 255), 100.4)
    queries.typed(105.0)
    queries.seen(('car', 'cone'), mask, 105.1)
    first, second = queries.report()
    assert (first['answer_ms'], first['first_mask_ms'], first['frames']) == (100.0, 300.0, 2)
    assert first['shares'] == {'car': {'mean': pytest.approx(0.15), 'best': pytest.approx(0.3)},
                               'cone': {'mean': pytest.approx(0.1), 'best': pytest.approx(0.2)}}
    assert (second['answer_ms'], second['first_mask_ms'], second['shares']) == (None, None, {})
    assert describe(first) == ('first mask after 300 ms; car: 15.0% of the pixels, 30.0% at '
                               'most; cone: 10.0% of the pixels, 20.0% at most')
    assert describe(second) == 'no answer came'
    picture = queries.picture(('cone', 'theirs'), mask, mask.astype(np.float32))
    assert picture.colors == [queries.colors['cone'], (255, 255, 255)]


def test_what_was_not_taken_says_why():
    queries = DemoQueries(['car, \x01', 'road'], seconds=10)
    queries.answered(answer(error='no text encoder', state='unavailable'), 99.0)
    assert queries.due(0.0, 99.0) == 'car, \x01'
    queries.typed(100.0)
    queries.answered(answer('car', rejected=[{'entry': '\\x01', 'reason': 'it is bad'}]), 100.1)
    queries.typed(105.0)
    queries.answered(answer(error='no text encoder; run: owseg text-encoder'), 105.1)
    first, second = map(describe, queries.report())
    assert first == "no mask came; not '\\\\x01': it is bad"
    assert second == 'not answered: no text encoder; run: owseg text-encoder'


def test_why_nothing_can_be_asked(tmp_path, monkeypatch):
    folder = make_tiny_text_encoder(tmp_path / 'encoder').path
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', str(folder))
    plain = make_tiny_bundle(tmp_path / 'plain')
    asked = make_tiny_bundle(tmp_path / 'asked', encoder=OnnxTextEncoder(folder))
    assert why_no_queries(asked, ['car']) == ''
    assert why_no_queries(asked, []) == 'no query was given'
    assert why_no_queries(plain, ['car']) == 'the model tiny does not know words'
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', str(tmp_path / 'none'))
    assert why_no_queries(asked, ['car']).startswith(f'no text encoder in {tmp_path}/none; ')
