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
"""The metric head: what it embeds, and which files it refuses."""

import io

import numpy as np
from onnx import helper, TensorProto
from owseg_ros.bundle import write_bundle
from owseg_ros.engine import EngineError
from owseg_ros.novelty import MetricHead, NoveltyError
import pytest
from support.tiny_bundle import (
    CLASS_NAMES, color_embedding, COLOR_NAMES, make_tiny_bundle, METRIC_DIM, tiny_known_prototypes,
    tiny_manifest, tiny_metric_head, tiny_network)


@pytest.fixture(scope='module')
def head(tmp_path_factory):
    return MetricHead(make_tiny_bundle(tmp_path_factory.mktemp('tiny') / 'b', novelty=True))


def features(*colors):
    return np.array([[*color, np.mean(color)] for color in colors], np.float32)


def bundle_with(folder, head=None, prototypes=None):
    return write_bundle(folder, tiny_manifest(novelty=True), {
        'network.onnx': tiny_network(), 'metric_head.onnx': head or tiny_metric_head(),
        'known_prototypes.npz': prototypes or tiny_known_prototypes()})


def npz(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def network(nodes, input_shape, output_shape, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes, 'head', [helper.make_tensor_value_info('x', kind, input_shape)],
        [helper.make_tensor_value_info('y', kind, output_shape)])
    return helper.make_model(graph, ir_version=8, opset_imports=[
        helper.make_opsetid('', 17)]).SerializeToString()


def test_colours_become_their_embeddings(head):
    corners = [(index >> 2 & 1, index >> 1 & 1, index & 1) for index in range(8)]
    found = head.embed(features(*corners))
    assert found.dtype == np.float32
    np.testing.assert_allclose(
        found, [color_embedding(name) for name in COLOR_NAMES], atol=1e-6)
    cosines = found @ found.T
    assert cosines[~np.eye(8, dtype=bool)].max() < 0.1
    assert head.embed(features((0.5, 0.5, 0.5))) @ found[0] < 0.3
    assert head.embed(np.empty((0, 4), np.float32)).shape == (0, METRIC_DIM)


def test_features_of_another_network_are_refused(head):
    for wrong in (np.zeros((2, 5)), np.zeros(4)):
        with pytest.raises(EngineError, match=r'takes features \[R, 4\], not'):
            head.embed(wrong)
    with pytest.raises(EngineError, match='not finite'):
        head.embed(features((np.nan, 0, 0)))


def test_known_prototypes_are_those_of_classes_that_had_a_region(head, tmp_path):
    np.testing.assert_allclose(head.known, [color_embedding(n) for n in CLASS_NAMES], atol=1e-6)
    assert head.known_ids.tolist() == [0, 1, 2]
    rows = np.stack([color_embedding(name) * 2 for name in CLASS_NAMES])
    rows[1] = np.nan
    own = MetricHead(bundle_with(
        tmp_path / 'b', prototypes=npz(names=np.array(CLASS_NAMES), embeddings=rows)))
    assert own.known_ids.tolist() == [0, 2]
    np.testing.assert_allclose(own.known, head.known[[0, 2]], atol=1e-6)


def test_a_bundle_without_a_metric_head_is_refused(tmp_path):
    with pytest.raises(NoveltyError, match='tiny has no metric head.*section novelty'):
        MetricHead(make_tiny_bundle(tmp_path / 'b'))


@pytest.mark.parametrize('arrays, pattern', [
    ({'names': np.array(CLASS_NAMES)}, r"expected 'embeddings' float32 \[3, 9\]"),
    ({'names': np.array(CLASS_NAMES), 'embeddings': np.zeros((3, 8), np.float32)}, 'expected'),
    ({'names': np.array(CLASS_NAMES), 'embeddings': np.zeros((3, 9))}, 'expected'),
    ({'names': np.array(CLASS_NAMES[::-1]), 'embeddings': np.zeros((3, 9), np.float32)},
     "'names' are not the classes of tiny in their order"),
    ({'embeddings': np.zeros((3, 9), np.float32)}, "'names' are not"),
    ({'names': np.array([None] * 3), 'embeddings': np.zeros((3, 9), np.float32)}, 'no npz file'),
])
def test_wrong_known_prototypes(tmp_path, arrays, pattern):
    with pytest.raises(NoveltyError, match=pattern):
        MetricHead(bundle_with(tmp_path / 'b', prototypes=npz(**arrays)))


IDENTITY = [helper.make_node('Identity', ['x'], ['y'])]


@pytest.mark.parametrize('head, pattern', [
    (b'no network', 'cannot load it'),
    (network(IDENTITY, ['r', 8], ['r', 8]), r"novelty\.dim is 9 and its output is \['r', 8\]"),
    (network(IDENTITY, [2, 9], [2, 9]), 'takes 2 regions only'),
    (network(IDENTITY, ['r', 9, 1], ['r', 9, 1]), 'one input float32 with 2 dimensions'),
    (network(IDENTITY, ['r', 9], ['r', 9], TensorProto.DOUBLE), 'one input float32'),
])
def test_wrong_heads(tmp_path, head, pattern):
    with pytest.raises(EngineError, match=pattern):
        MetricHead(bundle_with(tmp_path / 'b', head=head))


def test_embeddings_that_are_not_of_unit_length_are_refused(tmp_path):
    head = MetricHead(bundle_with(tmp_path / 'b', head=network(IDENTITY, ['r', 'c'], ['r', 'c'])))
    assert head.embed(np.eye(9)[:1]).tolist() == np.eye(9)[:1].tolist()
    with pytest.raises(EngineError, match='not of unit length'):
        head.embed(0.5 * np.eye(9))
    with pytest.raises(EngineError, match=r'novelty\.dim is 9 and its output is \[8, 8\]'):
        head.embed(np.eye(8))
