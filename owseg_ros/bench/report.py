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
"""The report of a benchmark as Markdown: targets first, then a table a section."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from owseg_ros.errors import OwsegError

BEGIN, END = '<!-- owseg bench: begin -->', '<!-- owseg bench: end -->'
PICTURE = 'benchmarks.png'

Row = Sequence[str]


class ReportError(OwsegError):
    """A report that cannot be written; the message says what to do."""


def _table(header: Row, rows: Sequence[Row]) -> str:
    """Return a table without the columns in which no row has a value."""
    columns = [index for index in range(len(header)) if any(row[index] != '-' for row in rows)]
    header, *rows = ([row[index] for index in columns] for row in (header, *rows))
    lines = [header, ['---'] + ['---:'] * (len(header) - 1), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def _ms(value: float) -> str:
    return f'{value:.1f}' if value < 100 else f'{value:.0f}'


def _optional(value: Optional[float], form: str) -> str:
    return '-' if value is None else format(value, form)


def _percentiles(times: dict[str, float]) -> str:
    return ' / '.join(_ms(times[f'{name}_ms']) for name in ('p50', 'p95', 'p99'))


def _parts(row: dict[str, float]) -> str:
    return ' / '.join(_ms(row[key]) for key in ('preprocess_ms', 'network_ms', 'readout_ms'))


def _times(times: dict[str, float]) -> Row:
    return _percentiles(times), f'{times["cores"]:.1f}', str(times['calls'])


def _frames(pipeline: dict[str, Any]) -> str:
    size = f'{pipeline["width"]}x{pipeline["height"]}'
    return f'frames of {size}' if pipeline['batch'] == 1 \
        else f'{pipeline["batch"]} frames of {size} at a time'


def targets(report: dict[str, Any]) -> list[dict[str, Any]]:
    """
    Return what the targets of this benchmark came to, the worst case of each.

    Each has 'target', 'measured' and whether it is 'met'; those whose section was not run are
    missing.
    """
    found = []

    def add(target: str, measured: str, met: bool) -> None:
        found.append({'target': target, 'measured': measured, 'met': bool(met)})

    cases = report.get('readout', {})
    beside = {name: case for name, case in cases.items() if 'stride 1' in case}
    if beside:
        ratios = {name: case['stride 1']['ratio'] for name, case in beside.items()}
        add('readout at 1024x2048, 100 queries, 19 classes: at least 5x as fast as the published '
            'order in torch',
            ', '.join(f'{value:.1f}x ({name})' for name, value in ratios.items()),
            min(ratios.values()) >= 5)
        for key, title, limit, form, unit, factor in (
                ('max_score_error', 'its largest error of the score', 1e-3, '.1e', '', 1),
                ('label_disagreement', 'its share of other labels', 5e-4, '.4f', ' %', 100)):
            worst = max(case['stride 1'][key] for case in beside.values())
            add(f'{title}: at most {factor * limit:g}{unit}',
                f'{factor * worst:{form}}{unit}', worst <= limit)
    memory = [case['memory_mib'] for case in cases.values() if case['memory_mib'] is not None]
    if memory:
        worst = max(memory) * 2 ** 20 / 1e6
        add('its extra memory at the peak, maps included: at most 40 MB', f'{worst:.1f} MB',
            worst <= 40)
    for pipeline in report.get('pipelines', []):
        for name in pipeline['alike']:
            value = pipeline['ratios'][name]['owseg_ros, all maps']
            add(f'whole Segmenter on {pipeline["network"]}, {_frames(pipeline)}: at least 1.5x '
                f'the frame rate of {name}', f'{value:.2f}x', value >= 1.5)
    return found


def _readout(cases: dict[str, Any], official_memory: Optional[float]) -> list[str]:
    rows, strides = [], []
    compared = any('stride 1' in case for case in cases.values())
    for name, case in cases.items():
        times = case['times']
        official = times.get('official')
        beside = case.get('stride 1', {})
        rows.append([
            name, _percentiles(times['stride 1']),
            _percentiles(official) if official else '-',
            f'{beside["ratio"]:.1f}x' if beside else '-', f'{case["evaluated_share"]:.0%}',
            f'{beside["max_score_error"]:.1e}' if beside else '-',
            f'{beside["label_disagreement"]:.4%}' if beside else '-',
            _optional(case['memory_mib'], '.0f')])
        for stride in ('stride 1', 'stride 2', 'stride 4'):
            found = case.get(stride)
            strides.append([
                name, stride[-1], _percentiles(times[stride]),
                *((f'{found["ratio"]:.1f}x', f'{found["max_score_error"]:.1e}',
                   f'{found["mean_score_error"]:.1e}', f'{found["label_disagreement"]:.4%}')
                  if found else ('-',) * 4)])
    return [
        '### Readout at 1024x2048, 100 queries, 19 classes\n',
        'Ids, confidence and anomaly score; times are p50 / p95 / p99 in ms. "evaluated" is the '
        'share of queries and blocks whose sigmoids were needed. Memory is what the first call '
        'in a process of its own adds at its peak, its maps (12 MiB) included'
        + (f'; the published order adds {official_memory:.0f} MiB' if official_memory else '')
        + '.\n',
        _table(['masks', 'owseg_ros', 'published order, torch', 'ratio', 'evaluated',
                'largest error of the score', 'other labels', 'MiB added'], rows),
        'Masks evaluated at every second or fourth pixel (`ReadoutSettings.stride`)'
        + (', against the published order at every pixel' if compared else '') + ':\n',
        _table(['masks', 'stride', 'ms', 'ratio', 'largest error of the score', 'mean error',
                'other labels'], strides)]


def _network(rows: Sequence[dict[str, Any]]) -> list[str]:
    return ['### Network: cameras in a batch\n',
            'Pre-processing and network of the model; frames of the first size.\n',
            _table(['frames', 'p50 / p95 / p99 ms', 'cores busy', 'runs', 'ms a frame',
                    'frames/s'],
                   [[str(row['batch']), *_times(row), _ms(row['ms_per_frame']),
                     f'{row["frames_per_s"]:.1f}'] for row in rows])]


def _segmenter(rows: Sequence[dict[str, Any]]) -> list[str]:
    return ['### Segmenter, all maps, by size of the frame\n',
            _table(['frame', 'p50 / p95 / p99 ms', 'cores busy', 'runs', 'frames/s',
                    'pre-processing / network / readout ms', 'MiB added', 'MiB of the GPU'],
                   [[f'{row["width"]}x{row["height"]}', *_times(row),
                     f'{row["frames_per_s"]:.1f}', _parts(row),
                     _optional(row['memory_mib'], '.0f'),
                     _optional(row['gpu_memory_mib'], '.0f')] for row in rows])]


def _pipelines(pipelines: Sequence[dict[str, Any]]) -> list[str]:
    measured = any(value is not None for entry in pipelines
                   for value in entry['gpu_memory_mib'].values())
    parts = ['### Segmenter and Hugging Face, same network and weights\n',
             'Half precision of Hugging Face is autocast, and fp32 is without TF32.' + (
                 ' Memory of the GPU is what is taken from the opening of the pipeline on: '
                 'weights, workspaces and what allocators keep; the CUDA context does not count.'
                 if measured else '') + '\n']
    for entry in pipelines:
        memory, difference = entry['gpu_memory_mib'], entry['difference']
        rows = [[name, *_times(times), f'{1e3 * entry["batch"] / times["p50_ms"]:.2f}',
                 ' / '.join(f'{value:.2f}x' for value in entry['ratios'].get(name, {}).values())
                 or '-', _optional(memory.get(name), '.0f')]
                for name, times in entry['times'].items()]
        parts += [
            f'{entry["network"]}, {_frames(entry)}. Ours: {entry["engine"]}; pre-processing / '
            f'network / readout {_parts(entry["parts"])} ms. Hugging Face: {entry["peer"]}. '
            'Largest difference of the two networks: mask logits '
            f'{difference["mask_logits"]:.0e}, class probabilities '
            f'{difference["class_probabilities"]:.0e}.\n',
            _table(['pipeline', 'p50 / p95 / p99 ms', 'cores busy', 'runs', 'frames/s',
                    'our speed over it, all maps / ids only', 'MiB of the GPU'], rows)]
    return parts


def _nodes(rows: Sequence[dict[str, Any]]) -> list[str]:
    return ['### Node, end to end\n',
            'Camera and perception in one process, a listener to all four maps in another, over '
            "DDS. The age is from the camera's stamp to the arrival of `anomaly/mask`.\n",
            _table(['camera', 'complete results', 'age p50 / p95 / p99 ms', 'network / readout ms',
                    'dropped, newest frame wins', 'cores busy', 'peak memory MiB'],
                   [[f'{row["camera_hz"]:.0f} Hz', f'{row["results_hz"]:.1f} a second',
                     ' / '.join(_ms(row[f'age_{name}_ms']) for name in ('p50', 'p95', 'p99')),
                     ' / '.join(_ms(row['node'][key]) if key in row['node'] else '-'
                                for key in ('network_ms', 'readout_ms')),
                     f'{row["node"].get("drops", 0):.0f}', _optional(row['cores'], '.2f'),
                     _optional(row['memory_mib'], '.0f')] for row in rows])]


def _growth(growth: dict[str, Any], picture: bool) -> list[str]:
    parts = ['### Growth\n',
             'Readout of imitated crisp masks, ms (p50); 100 queries, 19 classes, 640x480 where '
             'they do not vary.\n']
    if picture:
        parts.append(f'![Curves of the time over resolution, queries, classes, text queries and '
                     f'cameras]({PICTURE})\n')
    for curve in growth.values():
        parts.append(_table(
            [curve['label'], *(f'{x:.2f}' if isinstance(x, float) else str(x)
                               for x in curve['x'])],
            [[name, *map(_ms, values)] for name, values in curve['series'].items()]))
    return parts


def _gpu(report: dict[str, Any]) -> str:
    """Return what is known of the GPU as sentences: its driver's word, then torch's."""
    machine, gpu = report['machine'], report.get('gpu')
    told = []
    if 'driver' in machine:
        told.append(f'{", ".join(machine["gpus"])}, driver {machine["driver"]}')
    if gpu is not None:
        told.append(f'used: {gpu["name"]}, {gpu["memory_gib"]} GiB, compute capability '
                    f'{gpu["compute_capability"]}; torch of CUDA {gpu["cuda"]}, cuDNN '
                    f'{gpu["cudnn"]}')
    return f' GPU: {"; ".join(told)}.' if told else ''


def markdown(report: dict[str, Any], picture: bool = False) -> str:
    """Return the report as Markdown; picture: whether there is one of the growth beside it."""
    machine, options = report['machine'], report['options']
    parts = [
        f'Measured by `{report["command"]}` on {machine["cores"]} cores of '
        f'{machine["cpu"]} ({", ".join(machine.get("vector_instructions", ())) or "?"}), load '
        f'{machine.get("load_before", "?")} before, {options["threads"]} threads; model '
        f'{report["model"]["name"]} {report["model"]["version"]}, {report["model"]["engine"]}; '
        f'frames of {options["source"]}. '
        + ', '.join(f'{name} {version}' for name, version in report['versions'].items()) + '.'
        + _gpu(report) + '\n']
    found = targets(report)
    if found:
        parts += ['### Targets of this benchmark\n', _table(
            ['target', 'measured', ''],
            [[row['target'], row['measured'], 'met' if row['met'] else '**missed**']
             for row in found])]
    if report.get('readout'):
        parts += _readout(report['readout'], report.get('official_memory_mib'))
    for key, section in (('pipelines', _pipelines),
                         ('segmenter', _segmenter), ('network', _network), ('nodes', _nodes)):
        if report.get(key):
            parts += section(report[key])
    if report.get('growth'):
        parts += _growth(report['growth'], picture)
    if report['left_out']:
        parts += ['Left out: ' + '; '.join(
            f'{name} ({why})' for name, why in report['left_out'].items()) + '.\n']
    return '\n'.join(parts)


def put_into(document: Path, text: str) -> None:
    """
    Replace what stands between the two marks of a Markdown file.

    Raises ReportError where the file or its marks are missing.
    """
    try:
        before, _, rest = document.read_text('utf-8').partition(BEGIN)
    except OSError as error:
        raise ReportError(f'{document} cannot be read: {error.strerror}') from error
    _, mark, after = rest.partition(END)
    if not mark:
        raise ReportError(f'{document} does not have the lines {BEGIN} and {END}, between which '
                          'the tables go')
    document.write_text(f'{before}{BEGIN}\n\n{text}\n{END}{after}', 'utf-8')
