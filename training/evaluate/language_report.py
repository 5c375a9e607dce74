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

"""The report of language queries: tables in Markdown, figures in JSON."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np
from owseg_ros.bundle import load_bundle
from owseg_ros.language import TextEncoder
from owseg_ros.segmenter import Segmenter
from owseg_training.data.datasets import DataSet
from owseg_training.evaluate.language import (
    ALARM, evaluate_classes, evaluate_wordings, kinds, LanguageReader)
from owseg_training.evaluate.tables import plain


def evaluate_queries(bundle: str | Path, encoder: TextEncoder, data_sets: Sequence[DataSet],
                     novel: Sequence[str] = (), every: int = 1) -> dict[str, Any]:
    """
    Measure a bundle's queries on labelled sets.

    novel: names of classes that were hidden from training, whose means are given apart; every:
    measure on each n-th frame. The wordings are asked for on the first set whose classes the
    tables of evaluation know.
    """
    reader = LanguageReader(Segmenter(load_bundle(bundle)), encoder)
    language = reader.scorer.language
    report: dict[str, Any] = {
        'bundle': reader.segmenter.bundle.name, 'space': language.space,
        'threshold': language.threshold, 'temperature': language.temperature,
        'novel': list(novel), 'classes': {}}
    for data_set in data_sets:
        found = evaluate_classes(reader, data_set, every)
        for rule in ('calibrated', 'softmax'):
            for key in ('IoU', 'grounding_IoU'):
                groups = {'novel': [], 'base': []}
                for name, value in found[rule][key].items():
                    groups['novel' if name in novel else 'base'].append(value)
                if groups['novel']:
                    found[rule] |= {f'{group}_{key}': float(np.nanmean(values))
                                    for group, values in groups.items() if values}
        report['classes'][data_set.key] = found
    known = next((data_set for data_set in data_sets if data_set.label_set == 'camvid_11'), None)
    if known is not None:
        report['wordings'] = {'data_set': known.key, **evaluate_wordings(reader, known, every)}
    return plain(report)


def write_report(report: dict[str, Any], folder: str | Path) -> None:
    """Write language.json and language.md."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'language.json').write_text(json.dumps(report, indent=1) + '\n')
    (folder / 'language.md').write_text(markdown(report) + '\n')


def _number(value: float | None, digits: int = 3) -> str:
    return '-' if value is None else f'{value:.{digits}f}'


def _classes(report: dict[str, Any]) -> list[str]:
    lines = ['| data set (frames) | rule | open-vocabulary mIoU | Grounding mIoU |',
             '|---|---|---|---|']
    for key, found in report['classes'].items():
        for rule in ('calibrated', 'softmax'):
            row = found[rule]
            lines.append(f'| {key} ({found["frames"]}) | {rule} | {_number(row["mIoU"])} | '
                         f'{_number(row["grounding_mIoU"])} |')
    if report['novel']:
        lines += ['', f'Hidden from training: {", ".join(report["novel"])}.', '',
                  '| data set | rule | base mIoU | novel mIoU | base Grounding mIoU | '
                  'novel Grounding mIoU |', '|---|---|---|---|---|---|']
        for key, found in report['classes'].items():
            for rule in ('calibrated', 'softmax'):
                row = found[rule]
                if 'novel_IoU' in row:
                    lines.append(
                        f'| {key} | {rule} | ' + ' | '.join(_number(row.get(name)) for name in (
                            'base_IoU', 'novel_IoU', 'base_grounding_IoU',
                            'novel_grounding_IoU')) + ' |')
    for key, found in report['classes'].items():
        row = found['calibrated']
        lines += ['', f'{key}, calibrated:', '', '| class | IoU | Grounding IoU |',
                  '|---|---|---|']
        lines += [f'| {name} | {_number(value)} | {_number(row["grounding_IoU"].get(name))} |'
                  for name, value in row['IoU'].items()]
    return lines


def _wordings(found: dict[str, Any], threshold: float) -> list[str]:
    bare, expanded = found['bare'], found['vocabulary']
    lines = [f'{found["data_set"]}, {found["frames"]} frames: mask of one query at the default '
             f'threshold {threshold:g} against the class, pixels pooled.', '',
             '| wording | texts | mean IoU, bare word | mean IoU, with the vocabulary |',
             '|---|---|---|---|']
    second = {kind: value for kind, _, value in kinds(expanded)}
    lines += [f'| {kind} | {count} | {_number(value)} | {_number(second[kind])} |'
              for kind, count, value in kinds(bare)]
    held = [row for row in bare if row['held_out'] and 'IoU' in row]
    lines += ['', 'Words that training was kept from:', '',
              '| text | class | IoU, bare word | IoU, with the vocabulary | IoU of the class by '
              'its own name |', '|---|---|---|---|---|']
    more = {row['text']: row for row in expanded}
    own = {row['class']: row['IoU'] for row in reversed(bare) if row['kind'] == 'class name'}
    lines += [f'| {row["text"]} | {row["class"]} | {_number(row["IoU"])} | '
              f'{_number(more[row["text"]]["IoU"])} | {_number(own[row["class"]])} |'
              for row in held]
    lines += ['', f'Absent things: share of the pixels that the mask takes, and of the frames in '
              f'which it takes more than {ALARM:.1%} of them.', '',
              '| text | pixels, bare | frames, bare | pixels, vocabulary | frames, vocabulary |',
              '|---|---|---|---|---|']
    absent = [row for row in bare if row['kind'] == 'absent']
    for row in absent:
        other = more[row['text']]
        lines.append(f'| {row["text"]} | {row["false_positive_rate"]:.3%} | {row["alarms"]:.1%} | '
                     f'{other["false_positive_rate"]:.3%} | {other["alarms"]:.1%} |')
    means = [np.mean([row[key] for row in rows if row['kind'] == 'absent'])
             for rows in (bare, expanded) for key in ('false_positive_rate', 'alarms')]
    lines.append(f'| mean of {len(absent)} | {means[0]:.3%} | {means[1]:.1%} | {means[2]:.3%} | '
                 f'{means[3]:.1%} |')
    lines += ['', 'All wordings:', '', '| text | kind | class | IoU, bare | IoU, vocabulary |',
              '|---|---|---|---|---|']
    lines += [f'| {row["text"]} | {row["kind"]} | {row["class"]} | {_number(row["IoU"])} | '
              f'{_number(more[row["text"]]["IoU"])} |' for row in bare if 'IoU' in row]
    return lines


def markdown(report: dict[str, Any]) -> str:
    """Return the tables."""
    lines = [f'{report["bundle"]}, text space {report["space"]}, temperature '
             f'{report["temperature"]:g}, threshold {report["threshold"]:g}.', '',
             *_classes(report)]
    if 'wordings' in report:
        lines += ['', *_wordings(report['wordings'], report['threshold'])]
    return '\n'.join(lines)
