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
"""What torch.onnx.export leaves in a file that nobody needs: where each node's code lay."""

from __future__ import annotations

from pathlib import Path

import onnx

_KEYS = ('pkg.torch.onnx.stack_trace',)


def remove_traces(path: str | Path) -> None:
    """Remove the stack traces from an ONNX file; they name folders of the exporting machine."""
    model = onnx.load(str(path))
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key not in _KEYS]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    onnx.save(model, str(path))
