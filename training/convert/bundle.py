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
The network of a bundle as torch weights again, so that it can be trained on and exported anew.

An export folds batch norms into convolutions, transposes matrices and gives some of them other
names. What became of each parameter is read off a twin: a network of the same recipe with random
weights, and batch norms that change nothing, is exported too, and each of its parameters is found
there by its values. The bundle has its own under the same name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import math
from pathlib import Path
import shutil
import tempfile

import numpy as np
import onnx
import onnxruntime
from owseg_ros.bundle import Bundle, load_bundle
from owseg_training.class_texts import TEXT_SPACE
from owseg_training.config import load_config, NetworkConfig
from owseg_training.convert.run_folder import save_network
from owseg_training.convert.settings import ConvertError
from owseg_training.export import export_onnx, ExportedNetwork, OPSET
from owseg_training.network import MaskClassifier
from owseg_training.novelty import export_metric_head, head_parity
from owseg_training.parity import difference, TOLERANCE
from owseg_training.prototypes import KNOWN_PROTOTYPES
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

# They follow from the text features and the masks, by a rule that may be newer than the bundle.
_DERIVED = 'region_embeddings'


def convert_bundle(folder: str | Path, recipe: str | Path, out: str | Path) -> Path:
    """
    Make a run of a bundle: owseg-train export makes the bundle of it again.

    recipe: name or path of the recipe that its network was first trained with. The log of the
    training is not in a bundle, so the run has none. Raises as from_bundle, load_bundle and
    load_config.
    """
    bundle, out = load_bundle(folder), Path(out)
    network = from_bundle(bundle, load_config(recipe).network)
    save_network(network, out, name=bundle.name, classes=bundle.class_names,
                 colours=[list(one.color) for one in bundle.classes],
                 size=(bundle.input.width, bundle.input.height))
    if bundle.language is not None:
        (out / TEXT_SPACE).write_text(f'{bundle.language.space}\n')
    if bundle.novelty is not None:
        shutil.copyfile(bundle.novelty.known_prototypes, out / KNOWN_PROTOTYPES)
    return out


def from_bundle(bundle: Bundle, config: NetworkConfig) -> MaskClassifier:
    """
    Return the network of a bundle, in evaluation mode.

    config: its shape, as it was trained; a region head and a metric head are added where the
    bundle has them. Parameters that only training uses stay random.
    Raises ConvertError where it is the shape of another network, where the bundle is not of full
    precision, and where torch and the bundle differ by more than 1e-4.
    """
    config.pretrained = None
    if bundle.language is not None:
        if bundle.language.ensemble is not None:
            raise ConvertError(f'{bundle.name} has a frozen image tower beside its network; start '
                               'from the weights of that tower instead')
        config.region_head, config.region_dim = 'pooled', bundle.language.dim
    if bundle.novelty is not None:
        config.metric_dim = bundle.novelty.dim
    network = MaskClassifier(config, bundle.num_classes).eval()
    size = bundle.input.width, bundle.input.height
    head, network.metric_head = network.metric_head, None
    recover_parameters(network, bundle.network, lambda path: export_onnx(network, path, size))
    _check_outputs(network, bundle)
    if bundle.language is not None:
        nn.init.constant_(network.region_head.log_scale, -math.log(bundle.language.temperature))
    if bundle.novelty is not None:
        network.metric_head = head
        recover_parameters(head, bundle.novelty.metric_head,
                           lambda path: export_metric_head(head, path, OPSET))
        means = np.random.default_rng(0).normal(
            0, 3, (7, head.layers[0].in_features)).astype(np.float32)
        _check('metric head', head_parity(head, bundle.novelty.metric_head, means))
    return network


def recover_parameters(module: nn.Module, own: Path, export: Callable[[Path], None]) -> None:
    """
    Set the parameters of a module to those in its own ONNX file, see the docstring above.

    export: writes the module as an ONNX file. Raises ConvertError where the file is not of such
    a module.
    """
    _make_distinct(module)
    with tempfile.TemporaryDirectory() as folder:
        export(Path(folder) / 'twin.onnx')
        twin = _tensors(Path(folder) / 'twin.onnx')
    places = {tensor.tobytes(): name for name, tensor in twin.items()}
    given = _tensors(own)
    found = 0
    with torch.no_grad():
        for parameter, view in _views(module):
            name = places.get(view.contiguous().numpy().tobytes())
            if name is None:
                continue
            tensor = given.get(name)
            if tensor is None or tensor.shape != twin[name].shape:
                shape = None if tensor is None else tensor.shape
                raise ConvertError(
                    f'{own} is of another network than the recipe, or was written by another '
                    f'version of the exporter: {parameter} is {twin[name].shape} as {name}, and '
                    f'there it is {shape}')
            view.copy_(torch.from_numpy(tensor.copy()).reshape(view.shape))
            found += 1
    if not found:
        raise ConvertError(f'{own} has no parameter of such a network in float32')


def _make_distinct(module: nn.Module) -> None:
    """Give a module random weights, and batch norms that add a bias and do nothing else."""
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=random))
        for layer in module.modules():
            if isinstance(layer, _BatchNorm):
                layer.weight.fill_(1)
                layer.running_mean.zero_()
                layer.running_var.fill_(1 - layer.eps)


def _views(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield each parameter that an export keeps: as it is, transposed, and row by row."""
    ones = {id(layer.weight) for layer in module.modules() if isinstance(layer, _BatchNorm)}
    for name, parameter in module.named_parameters():
        if id(parameter) in ones:
            continue
        yield name, parameter
        if parameter.ndim == 2:
            yield name, parameter.T
            for row in parameter:
                yield name, row


def _tensors(path: Path) -> dict[str, np.ndarray]:
    """Return the float32 tensors of an ONNX file by their names."""
    graph = onnx.load(str(path)).graph
    return {entry.name: onnx.numpy_helper.to_array(entry) for entry in graph.initializer
            if entry.data_type == onnx.TensorProto.FLOAT}


def fixed_batch(bundle: Bundle) -> int | None:
    """Return the batch size that the network of a bundle has, None for any."""
    graph = onnx.load(str(bundle.network), load_external_data=False).graph
    return graph.input[0].type.tensor_type.shape.dim[0].dim_value or None


def _check_outputs(network: MaskClassifier, bundle: Bundle) -> None:
    exported = ExportedNetwork(network)
    session = onnxruntime.InferenceSession(
        str(bundle.network), providers=['CPUExecutionProvider'])
    image = np.random.default_rng(0).normal(0, 1, (
        fixed_batch(bundle) or 1, 3, bundle.input.height, bundle.input.width)).astype(np.float32)
    names = [name for name in exported.outputs
             if name in bundle.outputs and name != _DERIVED]
    expected = session.run([bundle.outputs[name] for name in names], {bundle.input.name: image})
    with torch.inference_mode():
        actual = dict(zip(exported.outputs, exported(torch.from_numpy(image))))
    for name, wanted in zip(names, expected):
        _check(name, difference(wanted, actual[name].numpy()))


def _check(what: str, found: float) -> None:
    # Not a number fails the comparison.
    if not found <= TOLERANCE:
        raise ConvertError(
            f'the {what} of the recipe and of the bundle differ by {found:.2g}: give the '
            'recipe that the bundle was trained with, and the bundle in full precision (fp32)')
