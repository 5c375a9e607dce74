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
"""owseg-train analyse: one subcommand an analysis; each prints Markdown and fills a folder."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from owseg_training.command_line import DATA_HELP, positive
from owseg_training.data.datasets import DataSet, open_data_set

if TYPE_CHECKING:
    from owseg_training.analysis.run import Run


def _sets(names: list[str], options: argparse.Namespace) -> list[DataSet]:
    return [open_data_set(name, split or None, options.data)
            for name, _, split in (text.partition(':') for text in names)]


def _run(options: argparse.Namespace) -> Run:
    from owseg_training.analysis.run import open_run
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    return open_run(options.run, options.label_set, options.device)


def _specialisation(options: argparse.Namespace) -> None:
    from owseg_training.analysis.specialisation import specialisation, write_specialisation

    run, data_sets = _run(options), _sets(options.data_set or ['camvid:val'], options)
    result = specialisation(run, data_sets, options.threshold, options.limit)
    print(write_specialisation(result, run, data_sets, options.out))


def _masking(options: argparse.Namespace) -> None:
    from owseg_training.analysis.masking import masking, write_masking
    from owseg_training.analysis.specialisation import specialisation

    run = _run(options)
    data_set, = _sets([options.data_set], options)
    chosen_on = _sets(options.queries_from or [f'{run.config.data.data_set}:train'], options)
    queries = specialisation(run, chosen_on, options.threshold, options.limit).queries()
    result = masking(run, data_set, queries, options.limit)
    print(write_masking(result, run, data_set, chosen_on, options.out))


def _modes(options: argparse.Namespace) -> None:
    from owseg_training.analysis.modes import write_modes

    data_sets = _sets(options.data_set or ['camvid:val', 'road_anomaly'], options)
    print(write_modes(
        _run(options), data_sets, options.out, pixels=options.pixels,
        ordered=not options.class_order, seed=options.seed, pictures=options.pictures,
        limit=options.limit))


def _pooling(options: argparse.Namespace) -> None:
    from owseg_training.analysis.pooling import write_pooling
    from owseg_training.network.backbone import build_backbone
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    backbone = build_backbone(options.backbone, options.pretrained,
                              {'model': options.model} if options.model else None)
    device = options.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    title = options.model or options.backbone
    if options.pretrained is None:
        title += ' with random weights'
    known = None if options.data_set == 'none' else tuple(
        _sets([f'{options.data_set}:train', f'{options.data_set}:val'], options))
    anomalies = None if options.anomalies == 'none' else _sets([options.anomalies], options)[0]
    print(write_pooling(backbone.eval().to(device), title, options.out, anomalies, known,
                        every=options.every, limit=options.limit))


def _share(value: str) -> float:
    share = float(value)
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f'must be in (0, 1], not {value}')
    return share


def _meaning(options: argparse.Namespace) -> None:
    from owseg_ros.language.installed import open_text_encoder
    from owseg_training.analysis.meaning import cross_validate, write_meaning

    print(write_meaning(cross_validate(open_text_encoder(options.text_encoder)), options.out))


def _add(analyses: argparse._SubParsersAction, name: str, text: str,
         run_command: Callable[[argparse.Namespace], None]) -> argparse.ArgumentParser:
    analysis = analyses.add_parser(name, help=text, description=text)
    analysis.add_argument('run', type=Path, help='folder of a run')
    analysis.add_argument('--out', type=Path, required=True,
                          help='folder for the table, its JSON and the picture')
    analysis.add_argument('--data', help=DATA_HELP)
    analysis.add_argument('--limit', type=positive, help='only the first frames of each set')
    analysis.add_argument('--label-set', help='classes of a run that does not name them')
    analysis.add_argument('--device', help='cpu, cuda, cuda:1 (default: cuda where there is one)')
    analysis.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')
    analysis.set_defaults(run_command=run_command)
    return analysis


def _add_threshold(analysis: argparse.ArgumentParser) -> None:
    analysis.add_argument('--threshold', type=_share, default=0.8,
                          help='probability from which a query is confident (default: 0.8)')


def add_analyse(stages: argparse._SubParsersAction) -> None:
    """Add `analyse` with its subcommands to owseg-train."""
    analyse = stages.add_parser('analyse', help='look at what a run does inside')
    analyses = analyse.add_subparsers(dest='analysis', required=True)

    counts = _add(analyses, 'specialisation',
                  'which query predicts which class with confidence (RbA figure 8)',
                  _specialisation)
    counts.add_argument('--data-set', action='append', metavar='NAME[:SPLIT]',
                        help='repeatable; default: camvid:val')
    _add_threshold(counts)

    masking = _add(analyses, 'masking',
                   'IoU when each class has only its specialised query (RbA figure 3)', _masking)
    masking.add_argument('--data-set', default='camvid:val', metavar='NAME[:SPLIT]',
                         help='where IoU is measured (default: camvid:val)')
    masking.add_argument('--queries-from', action='append', metavar='NAME[:SPLIT]',
                         help="where each class's query is found, repeatable (default: the "
                              "training split of the run's data set)")
    _add_threshold(masking)

    modes = _add(analyses, 'modes', 'clusters of the class scores of pixels (RbA figure 4)',
                 _modes)
    modes.add_argument('--data-set', action='append', metavar='NAME[:SPLIT]',
                       help='repeatable; default: camvid:val and road_anomaly')
    modes.add_argument('--pixels', type=positive, default=100_000,
                       help='sampled from each set (default: 100000)')
    modes.add_argument('--pictures', type=positive, default=3,
                       help='frames of each set in the picture (default: 3)')
    modes.add_argument('--class-order', action='store_true',
                       help="cluster scores in the order of the classes, not each pixel's "
                            'largest first')
    modes.add_argument('--seed', type=int, default=0, help='of the sampling and of k-means')

    text = 'what pooling loses of small regions: soft masks against hard ones at stride 32'
    pooling = analyses.add_parser('pooling', help=text, description=text)
    pooling.add_argument('--backbone', default='open_clip', help='default: open_clip')
    pooling.add_argument('--model', help='of open_clip: RN50, convnext_base_w, ...')
    pooling.add_argument('--pretrained', help='its weights (default: random)')
    pooling.add_argument('--data-set', default='camvid', metavar='NAME',
                         help='labelled set with the splits train and val, none for without '
                              '(default: camvid)')
    pooling.add_argument('--anomalies', default='road_anomaly', metavar='NAME[:SPLIT]',
                         help='set with masks of anomalies, none for without (default: '
                              'road_anomaly)')
    pooling.add_argument('--out', type=Path, required=True,
                         help='folder for the table and its JSON')
    pooling.add_argument('--data', help=DATA_HELP)
    pooling.add_argument('--every', type=positive, default=1, metavar='N',
                         help='fit the probe on each n-th frame (default: 1)')
    pooling.add_argument('--limit', type=positive, help='only the first frames of each set')
    pooling.add_argument('--device', help='cpu, cuda, cuda:1 (default: cuda where there is one)')
    pooling.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')
    pooling.set_defaults(run_command=_pooling)

    text = 'whether texts mean things, on words that the relation has not seen'
    meaning = analyses.add_parser('meaning', help=text, description=text)
    meaning.add_argument('--text-encoder', default='',
                         help='folder (default: the installed one, owseg text-encoder)')
    meaning.add_argument('--out', type=Path, required=True,
                         help='folder for the table and its JSON')
    meaning.set_defaults(run_command=_meaning)
