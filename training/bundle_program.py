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
"""Adding a torch program to a bundle whose network stays as it is, byte for byte."""

from __future__ import annotations

from pathlib import Path
import tempfile

from owseg_ros.bundle import Bundle, load_bundle, manifest_of, write_bundle
from owseg_training.bundle_export import find_data, resized
from owseg_training.config import load_config
from owseg_training.convert.bundle import fixed_batch, from_bundle
from owseg_training.export import checked_program
from owseg_training.program import PROGRAM

_FRAMES = 4


def add_program(folder: str | Path, recipe: str | Path, out: str | Path,
                data: str | None = None) -> Bundle:
    """
    Write a bundle again, with its network as a torch program beside the ONNX file.

    folder: of the bundle; recipe: name or path of the one that its network was first trained with;
    out: folder of the new bundle; data: folder of the data sets, for pictures to compare on.
    Raises as convert.bundle.from_bundle; ExportError where the program differs from ONNX.
    """
    bundle = load_bundle(folder)
    network = from_bundle(bundle, load_config(recipe).network)
    network.metric_head = None
    size = bundle.input.width, bundle.input.height
    manifest = manifest_of(bundle)
    manifest['network']['program'] = PROGRAM
    pictures, _ = find_data(bundle.class_names, data).frames(_FRAMES)
    with tempfile.TemporaryDirectory() as made:
        program = Path(made) / PROGRAM
        manifest.setdefault('figures', {})['program_parity'] = checked_program(
            network, program, bundle.network, size,
            [resized(picture, size) for picture in pictures], fixed_batch(bundle))
        return write_bundle(out, manifest, {
            **{name: bundle.path / name for name in bundle.files}, PROGRAM: program})
