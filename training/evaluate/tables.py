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
"""Reports of evaluate as Markdown and JSON."""

from __future__ import annotations

from collections.abc import Sequence
import json
import math
from pathlib import Path
from typing import Any

CLASS_COLUMNS = {'mIoU': 'mIoU', 'pixel_accuracy': 'pixel accuracy',
                 'grounding_mIoU': 'Grounding mIoU', 'mask_recall': 'mask recall @0.5'}
ANOMALY_COLUMNS = {'AP': 'AP', 'AuROC': 'AuROC', 'FPR95': 'FPR95', 'best_f1': 'pixel F1*',
                   'sIoU': 'sIoU', 'PPV': 'PPV', 'F1': 'F1'}
POINT_COLUMNS = {'true_positive_rate': 'true positives', 'false_positive_rate':
                 'false positives', 'sIoU': 'sIoU', 'PPV': 'PPV', 'F1': 'F1'}


def _percent(value: float | None) -> str:
    return '-' if value is None or math.isnan(value) else f'{100 * value:.2f}'


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is left-aligned, the others right."""
    lines = [header, ['---'] + ['---:'] * (len(header) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def markdown(report: dict[str, Any]) -> str:
    """Return the report as Markdown tables, figures in percent."""
    model = report['model']
    width, height = model['input']
    parts = [f'# {model["name"]} ({model["kind"]}, {width}x{height}, {model["engine"]})\n']
    sets = {key: value for key, value in report.items() if key != 'model'}
    closed = {k: v for k, v in sets.items() if v['kind'] == 'classes'}
    odd = {k: v for k, v in sets.items() if v['kind'] == 'anomaly'}
    if closed:
        parts.append('## Known classes (%)\n')
        parts.append(markdown_table(
            ['data set', 'frames', 'classes', *CLASS_COLUMNS.values()],
            [[k, str(v['frames']), v['label_set'] or str(len(v['IoU'])),
              *(_percent(v.get(c)) for c in CLASS_COLUMNS)] for k, v in closed.items()]))
        for key, value in closed.items():
            parts.append(markdown_table(
                [f'{key}: class', 'IoU'],
                [[name, _percent(iou)] for name, iou in value['IoU'].items()]))
            if 'ids_as_void' in value:
                parts.append(f'{key}: the labels hold ids that are no class and count as void: '
                             f'{", ".join(map(str, value["ids_as_void"]))}.\n')
    if odd:
        parts.append('## Anomalies (%)\n')
        parts.append(markdown_table(
            ['data set', 'frames', 'track', *ANOMALY_COLUMNS.values()],
            [[k, str(v['frames']), v['track'], *(_percent(v.get(c)) for c in ANOMALY_COLUMNS)]
             for k, v in odd.items()]))
        parts.append('Pixels pooled over the set, exact. * The best F1 of pixels over all '
                     'thresholds; sIoU, PPV and F1 of components are at its threshold.\n')
        points = {k: v['at_threshold'] for k, v in odd.items() if 'at_threshold' in v}
        if points:
            parts.append(markdown_table(
                ['at the operating point', 'threshold', *POINT_COLUMNS.values()],
                [[k, f'{v["threshold"]:.4f}', *(_percent(v.get(c)) for c in POINT_COLUMNS)]
                 for k, v in points.items()]))
    return '\n'.join(parts)


def plain(value: Any) -> Any:
    """Return types of JSON; nan becomes null."""
    if isinstance(value, dict):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_report(report: dict[str, Any], folder: Path) -> None:
    """Write evaluation.md and evaluation.json to a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'evaluation.md').write_text(markdown(report), 'utf-8')
    (folder / 'evaluation.json').write_text(json.dumps(plain(report), indent=2) + '\n', 'utf-8')
