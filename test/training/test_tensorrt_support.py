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
import onnx
from onnx import helper, TensorProto
from owseg_training.tensorrt_support import check
import pytest


def one_node(node, inputs=(('x', TensorProto.FLOAT, [1, 3, 8, 8]),), constants=(), opset=18,
             outputs=None, domain=''):
    """Make a model of one node."""
    opsets = [helper.make_opsetid('', opset)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    graph = helper.make_graph(
        [node], 'g', [helper.make_tensor_value_info(*i) for i in inputs],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in
         (outputs or [(node.output[0], TensorProto.FLOAT)])],
        [onnx.numpy_helper.from_array(np.array(value), name) for name, value in constants])
    return helper.make_model(graph, opset_imports=opsets)


def reasons(*args, **kwargs):
    found = check(one_node(*args, **kwargs)).findings
    return [f'{f.operator} {f.node}: {f.reason}' for f in found]


def test_plain_graph_is_supported(tmp_path):
    model = one_node(helper.make_node('Relu', ['x'], ['y'], 'relu'))
    onnx.save(model, tmp_path / 'm.onnx')
    report = check(tmp_path / 'm.onnx')
    assert report.supported and report.operators == {'Relu': 1} and report.notes == ()
    assert 'every operator is in the list' in report.text()
    summary = report.summary()
    assert summary['run_on_tensorrt'] is False and summary['unsupported'] == []


def test_unsupported_operators_are_named_with_their_node():
    found = reasons(helper.make_node('Unique', ['x'], ['y'], 'pick'))
    assert found == ['Unique pick: the operator is not supported']
    found = reasons(helper.make_node('Fused', ['x'], ['y'], domain='com.microsoft'),
                    domain='com.microsoft')
    assert found == ['com.microsoft.Fused (writes y): the domain com.microsoft needs a plugin']
    assert 'opset (whole graph)' in reasons(helper.make_node('Relu', ['x'], ['y']), opset=21)[0]


SCALES = [('s', np.array([1, 1, 2, 2], np.float32))]


@pytest.mark.parametrize('attributes, message', [
    ({'mode': 'linear'}, None),
    ({'mode': 'cubic'}, 'mode cubic'),
    ({'mode': 'linear', 'antialias': 1}, 'antialias'),
    ({'coordinate_transformation_mode': 'tf_crop_and_resize'}, 'tf_crop_and_resize'),
])
def test_resize(attributes, message):
    found = reasons(helper.make_node('Resize', ['x', '', 's'], ['y'], 'up', **attributes),
                    constants=SCALES)
    assert found == [] if message is None else (len(found) == 1 and message in found[0])


def test_types_and_constants():
    double = (('x', TensorProto.FLOAT, [1, 3, 8, 8]), ('g', TensorProto.DOUBLE, [1, 4, 4, 2]))
    assert 'grid is float64' in reasons(
        helper.make_node('GridSample', ['x', 'g'], ['y'], 'sample'), double)[0]
    integers = (('x', TensorProto.INT64, [4, 4]), ('g', TensorProto.INT64, [4, 4]))
    assert reasons(helper.make_node('MatMul', ['x', 'g'], ['y']), integers,
                   outputs=[('y', TensorProto.INT64)]) == [
        'MatMul (writes y): type INT64 is not supported']
    axes = (('x', TensorProto.FLOAT, [1, 3]), ('a', TensorProto.INT64, [1]))
    assert 'axes must be an initializer' in reasons(
        helper.make_node('Squeeze', ['x', 'a'], ['y']), axes)[0]
    assert reasons(helper.make_node('Squeeze', ['x', 'a'], ['y']), axes[:1],
                   [('a', np.array([0]))]) == []
    cast = helper.make_node('Cast', ['x'], ['y'], to=TensorProto.INT8)
    assert 'type INT8' in reasons(cast, outputs=[('y', TensorProto.INT8)])[0]


def test_quantisation_must_be_symmetric():
    node = helper.make_node('QuantizeLinear', ['x', 's', 'z'], ['y'], 'q')
    scale = ('s', np.float32(0.1))
    for kind, zero, count in ((np.int8, 0, 0), (np.int8, 3, 1), (np.uint8, 128, 2)):
        name = TensorProto.INT8 if kind is np.int8 else TensorProto.UINT8
        assert len(reasons(node, constants=[scale, ('z', kind(zero))],
                           outputs=[('y', name)])) == count


def test_subgraphs_are_looked_into():
    body = helper.make_graph(
        [helper.make_node('Bernoulli', ['x'], ['b'], 'inside')], 'then', [],
        [helper.make_tensor_value_info('b', TensorProto.FLOAT, None)])
    node = helper.make_node('If', ['c'], ['y'], 'branch', then_branch=body, else_branch=body)
    model = one_node(node, (('x', TensorProto.FLOAT, [2]), ('c', TensorProto.BOOL, [])))
    assert {f.node for f in check(model).findings} == {'inside'}


def test_free_dimensions_are_noted():
    model = one_node(helper.make_node('Relu', ['x'], ['y']),
                     (('x', TensorProto.FLOAT, ['batch', 3, 8, 8]),))
    assert 'optimization profile' in check(model).text()
