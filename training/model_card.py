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
"""The model card of a bundle, written from its manifest and the logs of its training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from owseg_training.config import Config

_COMMANDS = {
    'closed_set': 'owseg-train closed-set --config {name} --pretrained <backbone weights>',
    'outliers': 'owseg-train outliers --config {name}_outliers --start <run> --out <run>',
    'grounding': 'owseg-train grounding --config {name}_grounding --start <run> --out <run>',
    'mca': 'owseg-train mca --config {name}_mca --start <run> --out <run>',
    'metric': 'owseg-train metric --config {name}_metric --start <run or bundle> --out <run>',
    'shots': 'owseg-train few-shot --out <folder>',
}


@dataclass(frozen=True)
class Stage:
    """A training stage: its configuration and the entries of its log.jsonl."""

    config: Config
    log: Sequence[dict[str, Any]]


def outlier_stage(stages: Sequence[Stage]) -> Stage | None:
    """Return the stage of outlier supervision, None where there was none."""
    return next((stage for stage in stages if stage.config.stage == 'outliers'), None)


def _curve(log: Sequence[dict[str, Any]]) -> str:
    rows = ['| step | loss | mIoU (frames) |', '|---|---|---|']
    loss: float | None = None
    for entry in log:
        if 'total' in entry:
            loss = entry['total'] if loss is None else 0.9 * loss + 0.1 * entry['total']
        elif loss is not None:
            frames = entry['frames'] or 'all'
            rows.append(f'| {entry["step"]} | {loss:.2f} | {entry["mIoU"]:.3f} ({frames}) |')
    return '\n'.join(rows)


def _stage(stage: Stage) -> str:
    config, optimizer = stage.config, stage.config.optimizer
    text = (f'`{_COMMANDS[config.stage].format(name=config.name)}`: {optimizer.iterations} '
            f'iterations of batch {optimizer.batch_size}, AdamW {optimizer.lr:g}, poly schedule.')
    if config.stage == 'outliers':
        outliers = config.outliers
        text += (f' Only {", ".join(outliers.trainable)} are trained; objects are pasted with '
                 f'probability {outliers.probability:g}, ')
        text += (f'squared hinge with alpha {outliers.alpha:g} (RbA eq 6).'
                 if outliers.loss == 'squared_hinge' else f'loss {outliers.loss}.')
    if config.stage == 'grounding':
        grounding = config.grounding
        return (f'{text} Only {", ".join(grounding.trainable)} learns; words are kept with '
                f'probability {grounding.keep:g}.\nLosses smoothed.\n\n{_losses(stage.log)}')
    if config.stage == 'mca':
        meta = config.meta
        return (f'{text} {meta.channels} meta channels (RAML eqs 6 to 9); only '
                f'{", ".join(meta.trainable)} learns.\nLosses smoothed.\n\n'
                f'{_losses(stage.log)}')
    if config.stage == 'metric':
        metric = config.metric
        return (f'{text} Only the metric head learns, from regions of the labels: Circle loss '
                f'(m {metric.margin:g}, gamma {metric.gamma:g}; RAML eq 16) times '
                f'{metric.circle_weight:g} and cross-entropy times {metric.class_weight:g}.\n'
                f'Losses smoothed.\n\n{_losses(stage.log)}')
    if config.stage == 'shots':
        shots = config.shots
        return (f'{text} Only {", ".join(shots.trainable)} learns, from '
                f'{sum(map(len, shots.pictures.values()))} pictures of '
                f'{", ".join(shots.pictures)}.\nLosses smoothed.\n\n{_losses(stage.log)}')
    return (f'{text}\nLoss smoothed; mIoU of the averaged weights on the first CamVid val frames.'
            f'\n\n{_curve(stage.log)}')


def _losses(log: Sequence[dict[str, Any]], rows: int = 8) -> str:
    """Return a table of a stage's losses at some of its steps."""
    log = [entry for entry in log if 'total' in entry]
    if not log:
        return 'No losses were recorded.'
    names = [name for name in log[0] if name != 'step']
    means: dict[str, float] = {}
    table = [f'| step | {" | ".join(names)} |', '|' + '---|' * (1 + len(names))]
    for index, entry in enumerate(log):
        for name in names:
            means[name] = 0.9 * means.get(name, entry[name]) + 0.1 * entry[name]
        if (index + 1) % max(1, len(log) // rows) == 0:
            table.append(f'| {entry["step"]} | '
                         + ' | '.join(f'{means[name]:.3f}' for name in names) + ' |')
    return '\n'.join(table)


def _anomaly_row(name: str, road: dict[str, Any]) -> str:
    return f'| {name} | {road["AP"]:.4f} | {road["AuROC"]:.4f} | {road["FPR95"]:.4f} |'


def _with(figures: dict[str, Any], others: Sequence[tuple[str, str]], key: str,
          row: Callable[[str, dict[str, Any]], str]) -> list[str]:
    """Return a row for each related model that has the figures, this one last."""
    rows = [row(name, figures[other][key]) for other, name in others
            if key in figures.get(other, {})]
    return [*rows, row('this one', figures[key])]


_OTHERS = (('before_outliers', 'before outlier supervision'), ('fp32', 'in fp32'))


def _closed_set(title: str, key: str, figures: dict[str, Any]) -> str:
    found = figures[key]
    text = (f'{title}, {found["frames"]} frames: **mIoU {found["mIoU"]:.4f}**, pixel accuracy '
            f'{found["pixel_accuracy"]:.4f}.\n\n')
    rows = _with(figures, _OTHERS, key, lambda name, f: f'| {name} | {f["mIoU"]:.4f} |')
    if len(rows) > 1:
        text += '\n'.join(['| model | mIoU |', '|---|---|', *rows]) + '\n\n'
    return text + '\n'.join(['| class | IoU |', '|---|---|', *(
        f'| {name} | {value:.3f} |' for name, value in found['IoU'].items())])


def _anomaly(figures: dict[str, Any], anomaly: dict[str, Any]) -> str:
    road = figures['road_anomaly']
    rates = road['at_threshold']
    rows = _anomaly_table(figures, 'road_anomaly')
    score = f'score {anomaly["score"]}'
    if anomaly['objects']:
        rows += ('\n\nThat is the score grouped into objects by the masks, as the node publishes '
                 'it; by itself:\n\n' + _anomaly_table(figures, 'road_anomaly_plain'))
    return (f'RoadAnomaly, {road["frames"]} development frames, {score}, pixels pooled:\n\n'
            f"{rows}\n\nAt the bundle's threshold {anomaly['threshold']} it finds "
            f'{rates["true_positive_rate"]:.1%} of the\nanomalous pixels there and flags '
            f'{rates["false_positive_rate"]:.1%} of the others.')


def _anomaly_table(figures: dict[str, Any], key: str) -> str:
    return '\n'.join(['| model | AP | AuROC | FPR95 |', '|---|---|---|---|',
                      *_with(figures, _OTHERS, key, _anomaly_row)])


def _exactness(figures: dict[str, Any], provenance: dict[str, Any]) -> str:
    errors = ', '.join(f'{k} {v:.1e}' for k, v in figures['onnx_parity'].items())
    text = (f'ONNX Runtime in fp32 against torch on {figures["onnx_parity_frames"]}, largest '
            f'difference relative to\nmax(1, |value|, a fiftieth of the largest): {errors}.')
    if 'quantisation' in provenance:
        found = figures['difference_to_fp32']
        text += (f'\n\nThis one: {provenance["quantisation"]}.\nAgainst fp32 on {found["frames"]} '
                 f'frames: {found["same_class"]:.2%} of the pixels have the same class,\n'
                 f'the anomaly score differs by {found["anomaly_score"]:.1e} on '
                 'average.')
    report = provenance['tensorrt']
    verdict = ('all of them in the list' if not report['unsupported_nodes'] else
               f'{report["unsupported_nodes"]} of them not supported, such as '
               + '; '.join(report['unsupported'][:3]))
    return (f'{text}\n\nTensorRT: {report["nodes"]} nodes compared with the operators of its '
            f'parser\n({report["compared_with"]}), {verdict}. It was not run on TensorRT.')


_CAMVID = """
- One camera, one city, daylight: CamVid has 367 training frames from Cambridge. Elsewhere the
  classes hold roughly and the anomaly score is noisy: unfamiliar road, ground and vegetation
  light up as well as objects.
- Thin and rare classes (Pole, SignSymbol, Pedestrian) are the weakest: masks have a quarter of
  the input's resolution."""


_WORDS = """
- Words: it has seen 11 classes, the hazards of the procedural street and the pasted objects under
  their names. A word for anything else is understood as far as the text encoder, which has never
  seen a picture, relates it to these; what it was never shown, it does not find."""


def _limits(stages: Sequence[Stage]) -> str:
    alone = 'Do not drive on its anomaly mask alone.'
    if not stages:
        return ('- Converted from a checkpoint from outside: what it was trained on, and under '
                f'which licence, its own\n  source says. {alone}')
    seen = ('It has seen pasted objects as outliers, none of them from RoadAnomaly or from the '
            'hazards of the\n  procedural street.' if outlier_stage(stages)
            else 'It has not seen outliers in training.')
    words = _WORDS if any(stage.config.stage == 'grounding' for stage in stages) else ''
    return f'- {seen} {alone}{_CAMVID}{words}'


def _taught(novelty: dict[str, Any] | None) -> str:
    return '' if novelty is None else (
        f"\n- **Taught classes**: embeddings of {novelty['dim']} numbers, least cosine "
        f"{novelty['threshold']:g}:\n  {novelty['operating_point']}.")


_LICENCE, _LIMITS = '\n- **Licence of the weights**', '\n\n## Limits\n'


def add_metric_head(card: str, novelty: dict[str, Any], stage: Stage) -> str:
    """
    Return a bundle's model card with the metric head that it was given later.

    novelty: section of the manifest; stage: its training.  Raises ValueError for a card that is
    not as `render` writes it.
    """
    for anchor in (_LICENCE, _LIMITS):
        if card.count(anchor) != 1:
            raise ValueError(f'the model card has no single {anchor.strip()!r}')
    return card.replace(_LICENCE, _taught(novelty) + _LICENCE).replace(
        _LIMITS, f'\n\n{_stage(stage)}{_LIMITS}')


def render(manifest: dict[str, Any], stages: Sequence[Stage],
           closed: Sequence[tuple[str, str]]) -> str:
    """
    Return the model card as Markdown.

    manifest: as for write_bundle, with the figures of export_bundle; stages: the training, the
    first stage first, none for a converted network; closed: key in the figures and title of each
    labelled set that was measured.
    """
    figures, provenance = manifest['figures'], manifest['provenance']
    source, anomaly = manifest['network']['input'], manifest['anomaly']
    measured = [_closed_set(title, key, figures) for key, title in closed]
    if 'road_anomaly' in figures:
        measured.append(_anomaly(figures, anomaly))
    if not measured:
        measured.append('Nothing: no data set with these classes was there at export. '
                        'Run `owseg-train evaluate` on yours.')
    measured.append(_exactness(figures, provenance))
    camvid = ('. CamVid states no licence for its pictures;\n  cite Brostow et al., "Semantic '
              'object classes in video", Pattern Recognition Letters 2009, and\n  Badrinarayanan '
              'et al., "SegNet", PAMI 2017 (the split)') if stages else ''
    training = '\n\n'.join(_stage(stage) for stage in stages) or 'Not trained here.'
    body = '\n\n'.join(measured)
    language = manifest.get('language')
    words = '' if language is None else (
        f"\n- **Words**: text space {language['space']}, {len(language['background'])} things in "
        f"the background, threshold {language['threshold']:g}:\n  {language['operating_point']}.")
    taught = _taught(manifest.get('novelty'))
    return f"""# {manifest['name']} {manifest['version']}

{manifest['description']}

- **Input**: RGB, stretched to {source['width']}x{source['height']}, ImageNet statistics.
- **Precision**: {provenance['precision']}.
- **Size**: {provenance['parameters']:,} parameters.
- **Threshold**: {anomaly['threshold']}, {anomaly['operating_point']}.{words}{taught}
- **Licence of the weights**: {manifest['license']}{camvid}.
- **Training data**: {provenance['training_data']}.
- **Initialisation**: {provenance['initialisation']}.

## Measured

`owseg-train evaluate <this folder>` (ONNX Runtime on a CPU, through the same Segmenter as the
robot; figures at the size of the labels).

{body}

## Training

{training}

## Limits

{_limits(stages)}
"""
