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
from pathlib import Path
import sys

from owseg_ros.errors import OwsegError
from owseg_training.config import ConfigError, load_config
from owseg_training.data.datasets import DataError


def _closed_set(options: argparse.Namespace) -> None:
    from owseg_training.closed_set import ClosedSetTraining
    import torch

    if options.threads:
        torch.set_num_threads(options.threads)
    config = load_config(options.config)
    if options.pretrained:
        config.network.pretrained = options.pretrained
    if options.data:
        config.data.root = options.data
    if options.iterations:
        config.optimizer.iterations = options.iterations
    training = ClosedSetTraining(config, options.out or Path('runs') / config.name)
    training.run()


def _export(options: argparse.Namespace) -> None:
    from owseg_training.export import export_bundle

    bundle = export_bundle(options.run, options.out, data=options.data,
                           frames=options.check_frames)
    print(f'wrote {bundle.path}: network {bundle.network_sha256[:12]}, '
          f'anomaly threshold {bundle.anomaly.threshold:.3f} '
          f'({bundle.anomaly.operating_point})')


def _evaluate(options: argparse.Namespace) -> None:
    from owseg_ros.segmenter import Segmenter
    from owseg_training.data.datasets import CamVid, RoadAnomaly
    from owseg_training.evaluate.bundle_figures import evaluate_anomaly, evaluate_closed_set

    segmenter = Segmenter(options.bundle)
    figures = {
        'camvid_val': evaluate_closed_set(segmenter, CamVid('val', options.data).items),
        'road_anomaly': evaluate_anomaly(segmenter, RoadAnomaly(options.data).items),
    }
    print(json.dumps(figures, indent=2))


def _size(text: str) -> tuple[int, int]:
    width, height = (int(side) for side in text.lower().split('x'))
    return width, height


def _convert(options: argparse.Namespace) -> None:
    from owseg_training import convert

    names = options.classes.read_text().split('\n') if options.classes else None
    classes = [name.strip() for name in names if name.strip()] if names else None
    if options.format == 'timm':
        if not options.name:
            raise ConfigError('--format timm needs --name, the backbone')
        written = convert.convert_timm(options.name, options.checkpoint, options.out)
    elif options.format == 'hugging-face':
        written = convert.convert_hugging_face(options.checkpoint, options.out,
                                               size=options.size, classes=classes)
    else:
        config = options.config or options.checkpoint.parent / 'config.yaml'
        written = convert.convert_detectron2(options.checkpoint, config, options.out,
                                             size=options.size, classes=classes)
    print(f'wrote {written}')


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = argparse.ArgumentParser(prog='owseg-train', description=__doc__)
    stages = parser.add_subparsers(dest='command', required=True)

    closed = stages.add_parser('closed-set', help='train a mask classifier; resumes if killed')
    closed.add_argument('--config', default='camvid_small', help='recipe name or YAML path')
    closed.add_argument('--out', type=Path, help='folder of the run (default runs/<name>)')
    closed.add_argument('--pretrained', help="safetensors with the backbone's weights")
    closed.add_argument('--data', help='folder of the data sets')
    closed.add_argument('--iterations', type=int, help='override the length of the schedule')
    closed.add_argument('--threads', type=int, default=0, help='torch threads (0: all)')
    closed.set_defaults(run_command=_closed_set)

    export = stages.add_parser('export', help='write a bundle: ONNX, manifest, model card')
    export.add_argument('run', type=Path, help='folder of a closed-set run')
    export.add_argument('--out', type=Path, required=True, help='folder of the bundle')
    export.add_argument('--data', help='folder of the data sets')
    export.add_argument('--check-frames', type=int, default=4,
                        help='real frames on which ONNX must equal torch')
    export.set_defaults(run_command=_export)

    evaluate = stages.add_parser('evaluate', help='closed-set and anomaly figures of a bundle')
    evaluate.add_argument('bundle', type=Path)
    evaluate.add_argument('--data', help='folder of the data sets')
    evaluate.set_defaults(run_command=_evaluate)

    convert = stages.add_parser('convert', help='take over a checkpoint from outside')
    convert.add_argument('checkpoint', type=Path,
                         help='detectron2 or timm: file of weights; hugging-face: folder')
    convert.add_argument('--format', choices=('detectron2', 'hugging-face', 'timm'),
                         default='detectron2')
    convert.add_argument('--config', type=Path,
                         help='detectron2 YAML (default: config.yaml beside the checkpoint)')
    convert.add_argument('--name', help='timm: backbone (resnet50, convnext_tiny, swin_b, ...)')
    convert.add_argument('--out', type=Path, required=True,
                         help='folder of the run (timm: of the weights)')
    convert.add_argument('--size', type=_size, default=(1024, 512),
                         help='WIDTHxHEIGHT that the network is to run at')
    convert.add_argument('--classes', type=Path, help='text file with one class name a line')
    convert.set_defaults(run_command=_convert)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run owseg-train; expected errors are one line and exit code 2."""
    options = build_parser().parse_args(arguments)
    try:
        options.run_command(options)
    except (OwsegError, ConfigError, DataError, FileNotFoundError) as error:
        print(f'owseg-train: {error}', file=sys.stderr)
        return 2
    return 0


if __name__ == '__main__':
    sys.exit(main())
