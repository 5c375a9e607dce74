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
"""The picture of how the runtime grows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from owseg_training.figures import add_legend, LIGHT, new_figure, save

_COLUMNS = 3


def draw(growth: dict[str, Any], path: Path) -> None:
    """Draw the curves of a report's section `growth`, one chart a curve, to a picture file."""
    rows = -(-len(growth) // _COLUMNS)
    figure, axes = new_figure((960, 280 * rows), 'Readout and network, ms (p50)', LIGHT, rows,
                              _COLUMNS)
    for chart, curve in zip(axes.flat, growth.values()):
        for name, values in curve['series'].items():
            chart.plot(curve['x'], values, label=name, linewidth=1.8, marker='o', markersize=4)
        chart.set_xlabel(curve['label'])
        if len(curve['series']) > 1:
            # Beside the published order the other curve would lie on the axis.
            chart.set_yscale('log')
            add_legend(chart, LIGHT)
        else:
            chart.set_ylim(bottom=0)
    for chart in axes.flat[len(growth):]:
        chart.set_visible(False)
    save(figure, path)
