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
"""Adding a metric head to a bundle whose network stays as it is, byte for byte."""

from __future__ import annotations

from pathlib import Path
import tempfile

from owseg_ros.bundle import Bundle, load_bundle, manifest_of, write_bundle
from owseg_ros.segmenter import Segmenter
from owseg_training import model_card, novelty
from owseg_training.bundle_export import find_data, novelty_files, novelty_threshold
from owseg_training.bundle_network import BUNDLE, BundleNetwork
from owseg_training.config import run_config
from owseg_training.export import ExportError
from owseg_training.history import stages_of
from safetensors.torch import load_file

_CARD = 'MODEL_CARD.md'


def add_metric_head(run: str | Path, out: str | Path, data: str | None = None) -> Bundle:
    """
    Write the bundle that a run of owseg-train metric started from, with the run's metric head.

    run: its folder, which holds a copy of the bundle; out: folder of the new bundle; data: folder
    of the data sets, for the threshold of taught classes.
    Raises ExportError where the run did not come to its end, or the bundle's card is not one that
    export wrote; BundleError for a bundle that cannot be used.
    """
    run = Path(run)
    bundle = load_bundle(run / BUNDLE)
    weights = run / 'model.safetensors'
    if not weights.is_file():
        raise ExportError(f'{weights} is missing: the run did not come to its end; start the same '
                          'owseg-train metric again')
    config = run_config(run)
    network = BundleNetwork(bundle)
    network.add_metric_head(config.metric.dim)
    network.load_state_dict(load_file(str(weights)))
    manifest = manifest_of(bundle)
    manifest['novelty'] = novelty.novelty_section(config.metric.dim)
    with tempfile.TemporaryDirectory() as folder:
        files = {name: bundle.path / name for name in bundle.files}
        files |= novelty_files(network.metric_head, run, Path(folder))
        closed = find_data(bundle.class_names, data).closed
        if closed:
            segmenter = Segmenter(write_bundle(Path(folder) / 'measured', manifest, files))
            manifest['novelty'] |= novelty_threshold(segmenter, closed[0])
        card = Path(folder) / _CARD
        stage = model_card.Stage(*list(stages_of(run))[-1])
        try:
            card.write_text(model_card.add_metric_head(
                (bundle.path / _CARD).read_text('utf-8'), manifest['novelty'], stage), 'utf-8')
        except (OSError, ValueError) as error:
            raise ExportError(f'{bundle.path / _CARD}: {error}; export the bundle again '
                              '(owseg-train export)') from error
        return write_bundle(out, manifest, files | {_CARD: card})
