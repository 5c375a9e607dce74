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
"""Cutting the part out of an ONNX file that some outputs need."""

import numpy as np
import onnx
from onnx import helper, numpy_helper, TensorProto
import onnxruntime
from owseg_ros.bundle import default_bundle_path, load_bundle
from owseg_ros.engine import OnnxEngine
from owseg_ros.engine.subgraph import subgraph
from owseg_ros.frame import Frame
import pytest
from support.counting_encoder import CountingEncoder
from support.tiny_bundle import make_tiny_bundle, paint


def value(name, *shape):
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def constant(name, number):
    return numpy_helper.from_array(np.array([number], np.float32), name)


def model_with_branches():
    """Return a network whose outputs a and b share nothing but the input, and use branches."""
    branches = {
        'then_branch': helper.make_graph(
            [helper.make_node('Add', ['x', 'two'], ['more'])], 'then', [], [value('more', 1)]),
        'else_branch': helper.make_graph(
            [helper.make_node('Identity', ['four'], ['less'])], 'else', [], [value('less', 1)])}
    graph = helper.make_graph(
        [helper.make_node('Greater', ['x', 'zero'], ['positive']),
         helper.make_node('If', ['positive'], ['a'], **branches),
         helper.make_node('Mul', ['x', 'three'], ['product']),
         # An optional input that is left out.
         helper.make_node('Clip', ['product', '', 'hundred'], ['b'])],
        'branches', [value('x', 1)], [value('a', 1), value('b', 1)],
        [constant('zero', 0), constant('two', 2), constant('three', 3), constant('four', 4),
         numpy_helper.from_array(np.float32(100), 'hundred')], doc_string='kept')
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid('', 17)],
                              producer_name='test')
    helper.set_model_props(model, {'also': 'kept'})
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def run(content, **inputs):
    session = onnxruntime.InferenceSession(content, providers=['CPUExecutionProvider'])
    names = [entry.name for entry in session.get_outputs()]
    return dict(zip(names, session.run(names, {
        name: np.array([number], np.float32) for name, number in inputs.items()})))


@pytest.mark.parametrize('wanted, nodes, weights', [
    ({'a'}, ['Greater', 'If'], {'zero', 'two', 'four'}),
    ({'b'}, ['Mul', 'Clip'], {'three', 'hundred'}),
    ({'a', 'b'}, ['Greater', 'If', 'Mul', 'Clip'], {'zero', 'two', 'three', 'four', 'hundred'})])
def test_it_has_what_the_outputs_need_and_nothing_else(wanted, nodes, weights):
    whole = model_with_branches()
    content, share = subgraph(whole, wanted)
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [node.op_type for node in model.graph.node] == nodes
    assert {entry.name for entry in model.graph.initializer} == weights
    assert share == len(nodes) / 4
    assert (model.producer_name, model.graph.doc_string) == ('test', 'kept')
    assert model.metadata_props[0].value == 'kept' and model.opset_import[0].version == 17
    for x in (-1.0, 1.0):
        expected = run(whole, x=x)
        assert run(content, x=x) == {name: expected[name] for name in wanted}


@pytest.mark.parametrize('content, problem', [
    (b'\xff\xffnot a network', 'no ONNX file'), (b'', "no output 'a'")])
def test_what_is_no_network_is_refused(content, problem):
    with pytest.raises(ValueError, match=problem):
        subgraph(content, {'a'})


def test_an_unknown_output_is_refused():
    with pytest.raises(ValueError, match="no output 'c'"):
        subgraph(model_with_branches(), {'a', 'c'})


class CountedSession:
    """A session that counts how often it runs."""

    def __init__(self, session):
        self.session = session
        self.runs = 0

    def run(self, *arguments):
        self.runs += 1
        return self.session.run(*arguments)


def test_frames_without_queries_do_not_pay_for_the_region_head():
    """The bundled network: same masks either way, and the head runs only when it is asked for."""
    engine = OnnxEngine(load_bundle(default_bundle_path()), threads=1)
    whole_graph = engine._session = CountedSession(engine._session)
    part = engine._without_embeddings = CountedSession(engine._without_embeddings)
    frame = Frame(np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8))
    without = engine.infer([frame], region_embeddings=False, pixel_features=True)
    assert (whole_graph.runs, part.runs) == (0, 1)
    whole = engine.infer([frame], pixel_features=True, text_features=True)
    assert (whole_graph.runs, part.runs) == (1, 1)
    for name in ('mask_logits', 'class_probabilities', 'pixel_features'):
        np.testing.assert_allclose(
            getattr(without, name), getattr(whole, name), atol=1e-4, rtol=1e-4)


def test_a_network_without_embeddings_has_one_session(tmp_path):
    plain = OnnxEngine(make_tiny_bundle(tmp_path / 'plain'), threads=1)
    assert plain._without_embeddings is None
    asked = OnnxEngine(make_tiny_bundle(tmp_path / 'words', encoder=CountingEncoder(6)), threads=1)
    frame = Frame(paint(96, 64))
    np.testing.assert_array_equal(
        plain.infer([frame], region_embeddings=False).mask_logits,
        asked.infer([frame], region_embeddings=False).mask_logits)
