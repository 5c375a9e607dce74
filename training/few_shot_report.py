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

"""Tables and claims of the few-shot benchmark, as in RAML's Tables 1, 2, 3, E, F and G."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any, Optional

from owseg_training.evaluate.tables import markdown_table, plain
from owseg_training.open_world_report import spread

MEANS = {'all': 'mIoU all', 'novel': 'novel', 'old': 'old', 'harmonic': 'harmonic'}
# The paper's threshold, and the one that `owseg-train prototypes` sets.
PAPER, CALIBRATED = '0.80', 'calibrated'
MAJORITY = 'majority'
LARGEST = 'largest'
MAIN = 'mca_4'
BASELINES = {'all': 'all classes trained', 'known': 'known classes only'}
TUNED = ('FT', 'PLM latest', 'PLM all')
LOSSES = {'closed-set regions': 'none: regions of the closed set', 'mca_4_rec': 'L_rec',
          'mca_4_rec_split': 'L_rec + L_split', MAIN: 'L_rec + L_split + L_inter',
          'mca_4_void': 'all, void as in the released code'}

KINDS = {'URS': 'RAML, URS', 'masks': "RAML, the classifier's masks",
         'closed-set regions': 'RAML, regions of the closed set',
         'anomalous regions': 'RAML, anomalous regions',
         'masks after outlier supervision': 'RAML, masks after outlier supervision',
         'true regions': 'RAML, true regions'}

Row = Mapping[str, Any]
# From setting, shots and selection.
Figure = Callable[[str, int, str], Optional[float]]


def title(method: str) -> str:
    """Return the name of a method in the tables."""
    if method in LOSSES and method != 'closed-set regions' and method != MAIN:
        return f'RAML, MCA (K = 4), {LOSSES[method]}'
    if method.startswith('mca_'):
        return f'RAML, MCA (K = {method.split("_")[1]})'
    return KINDS.get(method, method)


def _percent(value: Any, signed: bool = False) -> str:
    if isinstance(value, Mapping):
        text = _percent(value['mean'], signed)
        return text if value['std'] is None else f'{text} ± {100 * value["std"]:.1f}'
    return '-' if value is None else f'{100 * value:{"+" if signed else ""}.1f}'


class Rows:
    """The figures of a benchmark by setting, shots, selection, method and rule."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = {(r['setting'], r['shots'], r['selection'], r['method'], r['rule']): r
                      for r in rows}
        self.settings, self.shots, self.selections, self.methods = (
            tuple(dict.fromkeys(key[i] for key in self._rows)) for i in range(4))
        self.cases = tuple(dict.fromkeys(key[:3] for key in self._rows))

    def get(self, setting: str, shots: int, selection: str, method: str,
            rule: str | None = None) -> Row | None:
        """Return one row; fine-tunings have no rule, None is found whatever is asked for."""
        return (self._rows.get((setting, shots, selection, method, None))
                or self._rows.get((setting, shots, selection, method, rule)))

    def drawn(self, setting: str, shots: int, method: str, rule: str, mean: str,
              ) -> dict[str, Any]:
        """Return the spread of a mean over the random draws."""
        found = [self.get(setting, shots, selection, method, rule)
                 for selection in self.selections if selection != LARGEST]
        return spread([row[mean] for row in found if row is not None])


def _claim(text: str, rows: Rows, first: Figure, second: Figure,
           holds: Callable[[float], bool]) -> dict[str, Any] | None:
    """Count the cases in which the difference of two figures is as claimed."""
    found: dict[str, list[float]] = {}
    for case in rows.cases:
        one, other = first(*case), second(*case)
        if one is not None and other is not None:
            found.setdefault(case[0], []).append(one - other)
    values = [value for part in found.values() for value in part]
    if not values:
        return None
    return {'claim': text, 'holds': sum(map(holds, values)), 'of': len(values),
            'difference': spread(values),
            'by_setting': {name: {'holds': sum(map(holds, part)), 'of': len(part),
                                  'difference': spread(part)} for name, part in found.items()}}


def _value(rows: Rows, method: str, rule: str, mean: str = 'harmonic') -> Figure:
    """Return what gives a mean of a method in a case."""
    def found(setting: str, shots: int, selection: str) -> float | None:
        row = rows.get(setting, shots, selection, method, rule)
        return None if row is None else row[mean]
    return found


def _fewer(rows: Rows, method: str) -> Figure:
    """Return what gives the harmonic mean of a method at the next smaller number of shots."""
    def found(setting: str, shots: int, selection: str) -> float | None:
        fewer = [count for count in rows.shots if count < shots]
        return (_value(rows, method, CALIBRATED)(setting, max(fewer), selection) if fewer
                else None)
    return found


def _comparisons(rows: Rows) -> Iterator[tuple[str, str, str]]:
    """Yield what the paper claims at one threshold, and which method is then above which."""
    for method in (MAIN, 'URS', 'masks', 'anomalous regions', 'true regions'):
        yield f'{title(method)} beats pixels (NPM)', method, 'NPM'
    yield 'MCA (K = 4) beats URS', MAIN, 'URS'
    for other in rows.methods:
        if other.startswith('mca_') and other not in LOSSES:
            yield f'K = 4 beats K = {other.split("_")[1]}', MAIN, other
    yield 'The losses L_split and L_inter help MCA', MAIN, 'mca_4_rec'
    yield "MCA (K = 4) beats the classifier's masks", MAIN, 'masks'
    yield 'Void as in the released code helps MCA (K = 4)', 'mca_4_void', MAIN
    for method in (MAIN, 'anomalous regions'):
        yield f'{title(method)} beats PLM all', method, 'PLM all'
    yield 'Pixels (NPM) beat PLM all', 'NPM', 'PLM all'


def claims(rows: Rows, baselines: Mapping[tuple[str, str], Row]) -> list[dict[str, Any]]:
    """
    Count in how many settings, shots and draws what the paper claims holds.

    The harmonic mean is compared, at the paper's threshold and at calibrated ones.
    """
    def known(setting: str, shots: int, selection: str) -> float | None:
        return baselines[setting, 'known']['old'] if (setting, 'known') in baselines else None

    higher, lower = (lambda d: d > 0), (lambda d: d < 0)
    found = [
        _claim(f'{text}, {where}', rows, _value(rows, one, rule), _value(rows, other, rule),
               higher)
        for rule, where in ((PAPER, 'threshold 0.8'), (CALIBRATED, 'calibrated thresholds'))
        for text, one, other in _comparisons(rows)]
    for method in (MAIN, 'anomalous regions', 'NPM'):
        found.append(_claim(f'Calibrated thresholds beat 0.8, {title(method)}', rows,
                            _value(rows, method, CALIBRATED), _value(rows, method, PAPER), higher))
    for method in (MAIN, 'anomalous regions', 'NPM', 'PLM all'):
        found.append(_claim(f'More shots are better, {title(method)}', rows,
                            _value(rows, method, CALIBRATED), _fewer(rows, method), higher))
    found.append(_claim('FT forgets: mIoU of old classes against the network before', rows,
                        _value(rows, 'FT', '', 'old'), known, lower))
    for method in ('PLM latest', 'PLM all', MAIN, 'anomalous regions', 'NPM'):
        found.append(_claim(f'Old classes lose by {title(method)}', rows,
                            _value(rows, method, CALIBRATED, 'old'), known, lower))
    return [claim for claim in found if claim is not None]


def summarize(rows: Sequence[Row], baselines: Sequence[Row], anomalies: Sequence[Row],
              potholes: Mapping[str, Any], description: Mapping[str, Any]) -> dict[str, Any]:
    """
    Make the report from all figures.

    rows: setting, shots, selection, method, rule, MEANS, IoU; baselines: setting, network, and
    the same figures; anomalies: see few_shot_anomalies; potholes: see few_shot_potholes.
    """
    by_network = {(row['setting'], row['network']): row for row in baselines}
    return {'description': dict(description), 'claims': claims(Rows(rows), by_network),
            'anomalies': list(anomalies), 'potholes': dict(potholes),
            'baselines': list(baselines), 'rows': list(rows)}


def _methods(rows: Rows) -> list[str]:
    """Return what is compared in the main tables, in their order."""
    order = [*TUNED, 'NPM', 'URS', 'masks', 'anomalous regions',
             *(m for m in rows.methods if m.startswith('mca_') and (
                 m == MAIN or m not in LOSSES))]
    return [method for method in order if method in rows.methods]


def _main_table(rows: Rows, baselines: Sequence[Row], setting: str) -> str:
    classes = list(next(row['IoU'] for row in baselines if row['setting'] == setting))
    lines = [['-', BASELINES[row['network']], *(_percent(row['IoU'][name]) for name in classes),
              *(_percent(row[mean]) for mean in MEANS)]
             for row in baselines if row['setting'] == setting]
    for shots in rows.shots:
        for method in _methods(rows):
            row = rows.get(setting, shots, LARGEST, method, PAPER)
            if row is not None:
                lines.append([str(shots), title(method),
                              *(_percent(row['IoU'][name]) for name in classes),
                              *(_percent(row[mean]) for mean in MEANS)])
    return markdown_table(('shots', 'method', *classes, *MEANS.values()), lines)


def _separations(rows: Rows, setting: str) -> str:
    lines = []
    order = ('NPM', 'NPM, head of regions', *(kind for kind in KINDS if kind != 'true regions'),
             *(m for m in rows.methods if m.startswith('mca_')), 'true regions')
    for shots in rows.shots:
        for method in order:
            found = [rows.get(setting, shots, LARGEST, method, rule)
                     for rule in (PAPER, CALIBRATED)]
            best = rows.get(setting, shots, LARGEST, method, MAJORITY)
            if all(found):
                lines.append([str(shots), title(method),
                              *(_percent(row[mean]) for row in found for mean in MEANS),
                              _percent(best['novel'] if best else None)])
    return markdown_table(('shots', 'method', *(f'{text}, {rule}' for rule in (
        '0.8', CALIBRATED) for text in MEANS.values()), 'novel at best'), lines)


def _thresholds(rows: Rows, setting: str, rules: Sequence[str]) -> str:
    lines = [[str(shots), title(method), rule, *(_percent(row[mean]) for mean in MEANS)]
             for shots in rows.shots for method in (MAIN, 'masks', 'NPM') for rule in rules
             for row in (rows.get(setting, shots, LARGEST, method, rule),) if row is not None]
    return markdown_table(('shots', 'method', 'threshold', *MEANS.values()), lines)


def _draws(rows: Rows, setting: str) -> str:
    lines = []
    for shots in rows.shots:
        for method in _methods(rows):
            for rule in (PAPER, CALIBRATED):
                if method in TUNED and rule == CALIBRATED:
                    continue
                values = [rows.drawn(setting, shots, method, rule, mean) for mean in MEANS]
                if values[0]['n']:
                    lines.append([str(shots), title(method),
                                  '-' if method in TUNED else rule, *map(_percent, values)])
    return markdown_table(('shots', 'method', 'threshold', *MEANS.values()), lines)


def _losses(rows: Rows, setting: str) -> str:
    lines = [[str(shots), text, *(_percent(row[mean]) for row in found for mean in MEANS)]
             for shots in rows.shots for method, text in LOSSES.items()
             for found in ([rows.get(setting, shots, LARGEST, method, rule)
                            for rule in (PAPER, CALIBRATED)],) if all(found)]
    return markdown_table(('shots', 'losses', *(f'{text}, {rule}' for rule in (
        '0.8', CALIBRATED) for text in MEANS.values())), lines)


def _potholes(potholes: Mapping[str, Any]) -> str:
    keys = ('IoU', 'precision', 'recall', 'road')
    found: dict[tuple[str, str], list[Row]] = {}
    for row in potholes['rows']:
        if row['rule'] in (PAPER, CALIBRATED):
            found.setdefault((row['method'], row['rule']), []).append(row)
    lines = []
    for (method, rule), rows in sorted(found.items(), key=lambda entry: entry[0][1]):
        largest = next(row for row in rows if row['selection'] == LARGEST)
        drawn = [row for row in rows if row['selection'] != LARGEST]
        best = [row['IoU'] for row in potholes['rows'] if row['rule'] == MAJORITY
                and row['method'] == method and row['selection'] == LARGEST]
        lines.append([title(method), rule, *(_percent(largest[key]) for key in keys),
                      *(_percent(spread([row[key] for row in drawn])) for key in keys),
                      _percent(best[0] if best else None)])
    return markdown_table(
        ('method', 'threshold', *(f'{key}, largest' for key in keys),
         *(f'{key}, random' for key in keys), 'IoU at best'), lines)


def _shares(shares: Mapping[str, float]) -> str:
    return ', '.join(f'{name} {100 * share:.0f} %' for name, share in shares.items())


def markdown(report: Mapping[str, Any]) -> str:
    """Write the report as Markdown; figures in percent, mean ± standard deviation of draws."""
    about, rows = report['description'], Rows(report['rows'])
    steps, frames = about['iterations'], about['frames']
    fewer = ('' if about['tuned_draws'] is None else
             f', {about["tuned_draws"]} of them for FT and PLM')
    lines = ['# Few-shot benchmark', '']
    for name, novel in about['settings'].items():
        lines.append(f'- `{name}`: novel {", ".join(novel)}; old {", ".join(about["known"])}')
    lines += [
        '', f'{frames} frames of CamVid val.  Network of the old classes: '
        f'{steps["network"]} steps of {about["batch"]} samples at '
        f'{about["size"][0]}x{about["size"][1]}, '
        f'{"ImageNet weights" if about["pretrained"] else "from scratch"}; that of all goes on '
        f'from it for {steps["further"]} steps.  Metric heads '
        f'{steps["metric"]}, meta channels {steps["mca"]}, FT and PLM '
        f'{steps["tuning"]}, outlier supervision {steps["outliers"]} steps.  '
        f'One seed; {about["draws"]} random draws of shots{fewer}.  Figures are percent.', '']
    rules = list(dict.fromkeys(row['rule'] for row in report['rows']
                               if row['rule'] not in (None, MAJORITY)))
    for setting, novel in about['settings'].items():
        head = f'{len(about["known"])}+{len(novel)}'
        lines += [
            f'## {head}: shots with the largest area, threshold 0.8 (Table 2)', '',
            _main_table(rows, report['baselines'], setting),
            f'## {head}: separation of regions (Table E)', '', _separations(rows, setting),
            f'## {head}: losses of MCA (Table 3)', '', _losses(rows, setting),
            f'## {head}: threshold (Table F)', '', _thresholds(rows, setting, rules),
            f'## {head}: random shots (Table G)', '', _draws(rows, setting)]
    lines += ['## RoadAnomaly, development frames (Table 1)', '', markdown_table(
        ('score', 'AP', 'AuROC', 'FPR95', 'component F1'),
        [(row['score'], *(_percent(row[key]) for key in ('AP', 'AuROC', 'FPR95', 'F1')))
         for row in report['anomalies']])]
    if report['potholes']:
        potholes = report['potholes']
        lines += [
            '## Potholes, 5 shots', '',
            f'{potholes["pictures"]} close-ups, of which potholes are '
            f'{100 * potholes["share"]:.0f} %; measured on those that are no shots.  `road`: '
            f'share of {potholes["road_frames"]} CamVid frames that is taken for a pothole.  The '
            f'closed set sees the close-ups as {_shares(potholes["seen"])}; CamVid as '
            f'{_shares(potholes["seen_road"])}.', '', _potholes(potholes)]
    lines += ['## Claims', '',
              'Each setting, number of shots and choice of shots is one case; the difference is '
              'the mean, in points, of the harmonic mean if nothing else is said.', '',
              markdown_table(('claim', 'holds in', 'difference', 'by setting'), [
                  (claim['claim'], f'{claim["holds"]} of {claim["of"]}',
                   _percent(claim['difference'], signed=True),
                   '; '.join(f'{name}: {part["holds"]}/{part["of"]}'
                             for name, part in claim['by_setting'].items()))
                  for claim in report['claims']])]
    return '\n'.join(lines)


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write few_shot.md and few_shot.json; returns the path of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'few_shot.json').write_text(json.dumps(plain(report)))
    path = folder / 'few_shot.md'
    path.write_text(markdown(report))
    return path
