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
"""
The part of an ONNX file that some of its outputs need, as a file of its own.

ONNX Runtime runs a whole graph whatever is fetched. What nobody asks for is saved only by a
session on a smaller graph.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError, Message

# The few fields that say what depends on what, with their numbers in onnx.proto3; protobuf keeps
# all others as they are, so that the package onnx is not needed on the robot.
_FIELDS: dict[str, dict[str, tuple[int, str]]] = {
    'ModelProto': {'graph': (7, 'GraphProto')},
    'GraphProto': {'node': (1, '*NodeProto'), 'initializer': (5, '*TensorProto'),
                   'input': (11, '*ValueInfoProto'), 'output': (12, '*ValueInfoProto'),
                   'value_info': (13, '*ValueInfoProto'),
                   'quantization_annotation': (14, '*TensorAnnotation'),
                   'sparse_initializer': (15, '*SparseTensorProto')},
    'NodeProto': {'input': (1, '*'), 'output': (2, '*'), 'attribute': (5, '*AttributeProto')},
    'AttributeProto': {'g': (6, 'GraphProto'), 'graphs': (11, '*GraphProto')},
    'TensorProto': {'name': (8, '')},
    'SparseTensorProto': {'values': (1, 'TensorProto')},
    'ValueInfoProto': {'name': (1, '')},
    'TensorAnnotation': {'tensor_name': (1, '')},
}
_PACKAGE = 'owseg_ros.onnx'


def _model_class() -> type[Message]:
    described = descriptor_pb2.FileDescriptorProto(
        name='owseg_ros/onnx.proto', package=_PACKAGE, syntax='proto2')
    for name, fields in _FIELDS.items():
        message = described.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            added = message.field.add(name=field, number=number)
            added.label = added.LABEL_REPEATED if kind[:1] == '*' else added.LABEL_OPTIONAL
            kind = kind.lstrip('*')
            added.type = added.TYPE_MESSAGE if kind else added.TYPE_STRING
            if kind:
                added.type_name = f'.{_PACKAGE}.{kind}'
    pool = descriptor_pool.DescriptorPool()
    pool.Add(described)
    model = pool.FindMessageTypeByName(f'{_PACKAGE}.ModelProto')
    # Before protobuf 4.22 (Ubuntu 22.04 has 3.12) the factory was a class.
    if hasattr(message_factory, 'GetMessageClass'):
        return message_factory.GetMessageClass(model)
    return message_factory.MessageFactory(pool).GetPrototype(model)


_Model = _model_class()


def subgraph(model: bytes, outputs: Collection[str]) -> tuple[bytes, float]:
    """
    Return an ONNX file that computes only these outputs, and the share of the nodes it has.

    model: the content of an ONNX file, whose inputs, metadata and remaining weights stay as they
    are. Where every node is needed, the file with fewer outputs. Raises ValueError where this is
    no ONNX file or it does not have an output.
    """
    try:
        found = _Model.FromString(model)
    except DecodeError as error:
        raise ValueError(f'no ONNX file: {error}') from error
    graph = found.graph
    missing = set(outputs) - {entry.name for entry in graph.output}
    if missing:
        raise ValueError(f'no output {sorted(missing)[0]!r} in the ONNX file')
    wanted, needed = set(outputs), []
    # ONNX lists nodes after those that they depend on.
    for node in reversed(graph.node):
        needed.append(bool(wanted & set(node.output)))
        if needed[-1]:
            wanted.update(_used(node))
            wanted.discard('')  # an optional input that is left out
    _keep(graph.node, needed[::-1])
    known = wanted.union(*(node.output for node in graph.node))
    _keep(graph.output, [entry.name in outputs for entry in graph.output])
    _keep(graph.initializer, [entry.name in wanted for entry in graph.initializer])
    _keep(graph.sparse_initializer,
          [entry.values.name in wanted for entry in graph.sparse_initializer])
    _keep(graph.value_info, [entry.name in known for entry in graph.value_info])
    _keep(graph.quantization_annotation,
          [entry.tensor_name in known for entry in graph.quantization_annotation])
    return found.SerializeToString(), sum(needed) / max(1, len(needed))


def _used(node: Any) -> Iterator[str]:
    """Yield the values that a node takes, those of the branches and loops in it too."""
    yield from node.input
    for attribute in node.attribute:
        inner = [*attribute.graphs, *([attribute.g] if attribute.HasField('g') else [])]
        for graph in inner:
            yield from (entry.name for entry in graph.output)
            for below in graph.node:
                yield from _used(below)


def _keep(entries: Any, wanted: Sequence[bool]) -> None:
    for index in reversed(range(len(entries))):
        if not wanted[index]:
            del entries[index]
