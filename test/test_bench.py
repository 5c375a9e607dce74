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
"""The benchmark: what it measures and reports, and what it says where something is missing."""

from dataclasses import replace
import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import cv2
import numpy as np
from owseg_ros import engine as engines
from owseg_ros.bench import BenchError, BenchOptions, export_networks, run_bench
from owseg_ros.bench import nodes, readouts, run, sections
from owseg_ros.bench.imitation import enlarge, imitate
from owseg_ros.bench.memory import first_readout_memory, open_gpu
from owseg_ros.bench.networks import measure_pipeline
from owseg_ros.bench.nodes import measure_node, NodeBenchError, NodeRun
from owseg_ros.bench.peers import (
    open_peers, peer_precisions, PeerCall, PeerPipeline, PeerRun)
from owseg_ros.bench.report import BEGIN, END, markdown, put_into, ReportError, targets
from owseg_ros.bench.run import read_frames
from owseg_ros.bench.timing import interleave, ratio, Timing
from owseg_ros.cli import main
from owseg_ros.engine import EngineError, OnnxEngine
from owseg_ros.engine.fallback import FallbackEngine
from owseg_ros.frame import Frame
from owseg_ros.machine import gpus
from owseg_ros.readout import ALL_MAPS, CpuReadout, ReadoutSettings
from owseg_ros.segmenter import Segmenter
import pytest
from support.tiny_bundle import make_tiny_bundle, paint


@pytest.fixture
def small(monkeypatch):
    """Make the sizes of the readout's cases small."""
    monkeypatch.setattr(readouts, 'SIZE', (64, 128))
    monkeypatch.setattr(readouts, '_BASE', (32, 64))
    monkeypatch.setattr(readouts, '_RESOLUTIONS', ((32, 64), (64, 64)))
    monkeypatch.setattr(readouts, '_COUNTS', (5, 10))
    monkeypatch.setattr(readouts, '_CLASSES', (3, 19))
    monkeypatch.setattr(readouts, '_IMITATED', (16, 32))


@pytest.fixture
def options(tmp_path):
    model = make_tiny_bundle(tmp_path / 'model').path
    images = tmp_path / 'images'
    images.mkdir()
    for index in range(3):
        cv2.imwrite(str(images / f'{index}.png'), paint(96, 64)[..., ::-1])
    return BenchOptions(model=model, source=str(images), sizes=((96, 64), (64, 48)),
                        batches=(1, 2), repeats=2, threads=1, peers='',
                        sections=('readout', 'segmenter', 'network', 'growth'))


def test_calls_are_timed_in_turns():
    order = []

    def call(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)
        return run

    steps = []
    timings = interleave({'a': call('a', 0.001), 'b': call('b', 0.02)}, 3, lambda: steps.append(1))
    assert order == ['a', 'b', 'a', 'b', 'b', 'a', 'a', 'b'] and len(steps) == 8
    assert len(timings['a'].wall) == 3 and ratio(timings['b'], timings['a']) > 2
    statistics = timings['b'].statistics()
    assert 20 <= statistics['p50_ms'] <= statistics['p95_ms'] <= statistics['p99_ms']
    assert statistics['cores'] < 0.5 and statistics['calls'] == 3


def test_ratio_is_the_median_of_the_turns():
    assert ratio(Timing([2.0, 30.0, 8.0]), Timing([1.0, 2.0, 2.0])) == 4.0


def test_memory_at_the_peak_counts_what_is_freed_again():
    # In a process of its own: this one holds memory that the tests before have freed.
    found = json.loads(subprocess.run([sys.executable, '-c', """
import json
import numpy as np
from owseg_ros.bench.timing import peak_memory
print(json.dumps(peak_memory(lambda: np.ones(40 << 20, np.uint8)[:10 << 20].copy())))
"""], check=True, capture_output=True, text=True).stdout)
    if found is None:
        pytest.skip('this system does not tell the memory of a process')
    assert 45 < found < 70


@pytest.mark.parametrize('kind', ['crisp', 'dense'])
def test_imitated_networks(kind):
    masks, probabilities = imitate(kind, 12, 5, (16, 32))
    assert masks.shape == (12, 16, 32) and masks.dtype == probabilities.dtype == np.float32
    assert probabilities.shape == (12, 5) and (probabilities.sum(axis=1) < 1).all()
    larger, more = enlarge(masks, probabilities, (24, 48), 9)
    assert larger.shape == (12, 24, 48) and more.shape == (12, 9) and (more >= 0).all()
    np.testing.assert_allclose(more.sum(axis=1), probabilities.sum(axis=1), rtol=1e-5)


def test_report_without_anything_beside_it(options, small, tmp_path):
    told = []
    report = run_bench(options, tmp_path / 'out', say=lambda line: None,
                       progress=lambda name, share: told.append((name, share)))
    assert report['left_out'] == {'what is measured beside it': 'not asked for'}
    assert [(row['width'], row['height']) for row in report['segmenter']] == [(96, 64), (64, 48)]
    assert [row['batch'] for row in report['network']] == [1, 2]
    for row in (*report['segmenter'], *report['network']):
        assert 0 < row['p50_ms'] <= row['p99_ms'] and row['frames_per_s'] > 0
    assert len(report['readout']) == 3
    for case in report['readout'].values():
        assert set(case['times']) == {'stride 1', 'stride 2', 'stride 4', 'all maps'}
        assert 0 <= case['evaluated_share'] <= 1 and 'stride 1' not in case
    assert list(report['growth']) == ['resolution', 'queries', 'classes', 'text_queries',
                                      'cameras']
    assert report['growth']['classes']['x'] == [3, 19]
    assert 0 <= min(share for _, share in told) and max(share for _, share in told) == 1
    assert report['machine']['cores'] >= 1 and 'numpy' in report['versions']
    written = json.loads((tmp_path / 'out' / 'benchmarks.json').read_text())
    assert written['readout'] == report['readout'] and written['model']['name'] == 'tiny'
    text = (tmp_path / 'out' / 'benchmarks.md').read_text()
    assert 'MiB of the GPU' not in text and 'CUDA' not in text
    # No column of a table is there for what was not measured.
    assert 'published order' not in text and '| - |' not in text and '| ratio |' not in text
    assert '| masks | stride | ms |\n| --- | ---: | ---: |\n' in text
    assert '### Growth' in text and 'Left out: what is measured beside it (not asked for).' in text
    assert not (tmp_path / 'out' / 'benchmarks.png').exists()


def test_what_was_measured_is_there_when_a_run_is_interrupted(options, tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(sections, 'measure_network', interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_bench(replace(options, sections=('segmenter', 'network')), tmp_path / 'out',
                  say=lambda line: None)
    written = json.loads((tmp_path / 'out' / 'benchmarks.json').read_text())
    assert len(written['segmenter']) == 2 and 'network' not in written
    assert '### Segmenter, all maps' in (tmp_path / 'out' / 'benchmarks.md').read_text()


def test_pipelines_are_written_one_by_one(options, tmp_path, monkeypatch):
    """An interrupt in the second size leaves the first."""
    def measure(open_peer, open_ours, peer_run, frames, size, *rest):
        if size == (64, 32):
            raise KeyboardInterrupt
        return [], None

    monkeypatch.setattr(sections, 'measure_pipeline', measure)
    monkeypatch.setattr(run, 'open_peers', lambda name: (SimpleNamespace(packages=tuple), ''))
    with pytest.raises(KeyboardInterrupt):
        run_bench(replace(options, sections=('pipelines',), pipelines=('model',),
                          pipeline_sizes=((32, 32), (64, 32))), tmp_path / 'out',
                  say=lambda line: None)
    written = json.loads((tmp_path / 'out' / 'benchmarks.json').read_text())
    assert written['pipelines'] == [] and written['model']['name'] == 'tiny'


def test_the_published_order_beside_it_and_the_picture(options, small, tmp_path):
    pytest.importorskip('torch', reason='the extra `training` is not installed')
    peers = 'owseg_training.bench'
    document = tmp_path / 'docs' / 'benchmarks.md'
    document.parent.mkdir()
    document.write_text(f'before\n{BEGIN}\nold\n{END}\nafter\n')
    report = run_bench(replace(options, peers=peers, sections=('readout', 'growth')),
                       document=document, say=lambda line: None)
    assert report['left_out'] == {} and 'torch' in report['versions']
    for case in report['readout'].values():
        assert case['stride 1']['max_score_error'] < 1e-3 and case['stride 1']['ratio'] > 0
    noise = report['readout']['worst case: noise, every query alive']
    assert noise['stride 1']['label_disagreement'] < 0.01
    assert noise['stride 4']['max_score_error'] > 10 * noise['stride 1']['max_score_error']
    assert set(report['growth']['classes']['series']) == {'owseg_ros', 'official order'}
    assert [row['target'][:7] for row in report['targets']][0] == 'readout'
    text = document.read_text()
    assert text.startswith('before\n') and text.endswith('after\n') and 'old' not in text
    assert '### Targets' in text and '](benchmarks.png)' in text
    picture = cv2.imread(str(document.parent / 'benchmarks.png'))
    assert picture.shape[1] > 600 and picture.std() > 10
    run_bench(replace(options, sections=('network',)), document=document, say=lambda line: None)
    assert document.read_text().count(BEGIN) == 1 and '### Network' in document.read_text()


def test_published_order_is_the_reference():
    pytest.importorskip('torch', reason='the extra `training` is not installed')
    from owseg_ros.readout import reference
    from owseg_training.bench import official_order
    masks, probabilities = imitate('dense', 9, 4, (12, 20))
    ids, confidence, score = official_order((48, 80), 1)(masks, probabilities)
    scores = reference.class_scores(masks, probabilities, (48, 80))
    np.testing.assert_allclose(score, reference.rba(scores), atol=1e-5)
    np.testing.assert_allclose(confidence, scores.max(axis=0), atol=1e-5)
    assert (ids == reference.semantic(scores)).mean() > 0.999


@pytest.fixture
def smaller(monkeypatch):
    """Make the small Mask2Former a tiny one."""
    pytest.importorskip('torch', reason='the extra `training` is not installed')
    pytest.importorskip('transformers', reason='transformers is not installed')
    from owseg_training.bench import pipeline as module
    title, swin, more = module._KINDS['small']
    monkeypatch.setitem(module._KINDS, 'small', (
        title, {**swin, 'embed_dim': 16, 'num_heads': [1, 1, 2, 2]},
        {**more, 'feature_size': 32, 'hidden_dim': 32, 'mask_feature_size': 32,
         'encoder_layers': 1}))
    return module


class Gpu:
    """A GPU of which every look at it finds a MiB more in use."""

    used = 0

    def gpu_facts(self):
        return {'name': 'a GPU', 'memory_gib': 2.0, 'compute_capability': '9.0', 'cuda': '12.8',
                'cudnn': 91002}

    def used_bytes(self):
        Gpu.used += 1 << 20
        return Gpu.used

    def let_go(self):
        pass


def test_hugging_face_runs_the_same_network(options, smaller, tmp_path, monkeypatch):
    said, cache = [], tmp_path / 'cache'
    assert main(['bench', '--export-only', '--engine', 'torch', '--pipelines', 'model,small',
                 '--pipeline-size', '64x32', '--cache', str(cache)]) == 0
    exported, = cache.iterdir()
    asked = replace(options, sections=('pipelines',), pipelines=('small',), repeats=1,
                    pipeline_sizes=((64, 32),), peers='owseg_training.bench', cache=cache)
    row, = run_bench(asked, say=said.append)['pipelines']
    assert not any('exporting' in line for line in said)
    assert max(row['difference'].values()) < 1e-4 and row['engine'].startswith('onnx')
    assert row['ratios']['Hugging Face, eager, fp32']['owseg_ros, all maps'] > 0
    assert row['alike'] == list(row['ratios']) == ['Hugging Face, eager, fp32']
    assert set(row['gpu_memory_mib'].values()) == {None}

    # What runs on a GPU, but on the CPU.
    monkeypatch.setattr(run, 'open_gpu', lambda used: Gpu())
    half = replace(asked, model=exported, engine='torch', torch_device='cpu',
                   torch_precision='bf16', pipelines=('model', 'small'))
    report = run_bench(half, say=said.append)
    around, row = report['pipelines']
    assert list(around['times'])[3:] == around['alike'] == ['Hugging Face, around it']
    assert around['gpu_memory_mib']['owseg_ros, all maps'] is None
    assert row['engine'].startswith('torch (bf16') and row['peer'] == 'the CPU, threads: 1'
    assert list(row['ratios']) == ['Hugging Face, eager, fp32', 'Hugging Face, eager, bf16']
    assert row['alike'] == ['Hugging Face, eager, bf16']
    assert 1e-4 < row['difference']['mask_logits'] < 0.1
    assert min(row['gpu_memory_mib'].values()) >= 1 and len(row['gpu_memory_mib']) == 3
    assert min(row['parts'].values()) > 0
    text = markdown(report)
    assert 'used: a GPU, 2.0 GiB, compute capability 9.0; torch of CUDA 12.8' in text
    # Beside its own network the model's pipeline has no memory of its own to tell.
    assert text.count('MiB of the GPU') == 1
    assert 'frames of 64x32. Ours: torch (bf16' in text
    assert [row['target'].rpartition(' of ')[2] for row in report['targets']] == (
        ['Hugging Face, around it', 'Hugging Face, eager, bf16'])


def test_exported_networks_are_made_again_where_the_program_is_missing(options, smaller, tmp_path):
    assert smaller._is_there(options.model, False) and not smaller._is_there(options.model, True)
    assert not smaller._is_there(tmp_path / 'none', False)


def test_hugging_face_around_the_model_that_is_measured(options, smaller):
    asked = replace(options, sections=('pipelines',), pipelines=('model',), repeats=1,
                    pipeline_sizes=((96, 64),), pipeline_batches=(1, 2),
                    peers='owseg_training.bench')
    report = run_bench(asked)
    first, second = report['pipelines']
    assert '2 frames of 96x64 at a time. Ours: onnx' in markdown(report)
    assert set(second['ratios']) == {'Hugging Face, around it'} and second['batch'] == 2
    assert max(first['difference'].values()) < 1e-3
    assert set(first['ratios']) == {'Hugging Face, around it'}
    assert first['ratios']['Hugging Face, around it']['owseg_ros, ids only'] > 0


def test_a_peer_that_fails_is_left_out(options):
    segmenter = Segmenter(options.model, threads=1)

    def fail(frames):
        raise RuntimeError('out of\nmemory' if len(frames) > 1 else 'no kernel')

    def outputs(frame):
        found = segmenter.engine.infer([Frame(frame)])
        return found.mask_logits[0], found.class_probabilities[0]

    peer = PeerPipeline('net', options.model, 'here', {
        'bad': PeerCall(fail, 'fp32'), 'good': PeerCall(list, 'fp32')}, outputs)
    left_out = {}
    rows, _ = measure_pipeline(
        lambda: peer, lambda opened: segmenter, PeerRun(), [paint(96, 64)], (96, 64), (1, 2), 1,
        None, left_out)
    assert left_out == {'bad, net, 1 of 96x64': 'RuntimeError: no kernel',
                        'bad, net, 2 of 96x64': 'RuntimeError: out of memory'}
    assert [list(row['ratios']) for row in rows] == [['good']] * 2


def test_an_engine_that_gives_up_meanwhile_is_not_measured(options, tmp_path, monkeypatch):
    class Weak(OnnxEngine):

        def infer(self, frames, **asked):
            if len(frames) == 2:
                raise EngineError('not enough GPU memory')
            return super().infer(frames, **asked)

        def warm_up(self, batch=1):
            return 0.0

    monkeypatch.setattr(engines, 'serve_torch', lambda bundle, *rest: FallbackEngine(
        'torch', OnnxEngine(bundle, threads=1), lambda machine, stopped: Weak(bundle, threads=1)))
    report = run_bench(replace(options, engine='torch', sections=('segmenter', 'network')),
                       tmp_path, say=lambda line: None)
    assert 'network' not in report and len(report['segmenter']) == 2
    assert report['left_out']['network'] == (
        'the engine torch does not run here: not enough GPU memory')


def test_a_gpu_for_peers_that_torch_does_not_see(options):
    torch = pytest.importorskip('torch', reason='the extra `training` is not installed')
    if torch.cuda.is_available():
        pytest.skip('there is a GPU')
    with pytest.raises(BenchError, match='or measure beside it with --peer-device cpu'):
        run_bench(replace(options, sections=('pipelines',), peers='owseg_training.bench',
                          peer_device='cuda'))


def test_facts_of_gpus_are_those_of_the_driver(tmp_path, monkeypatch):
    monkeypatch.setenv('PATH', str(tmp_path))
    assert gpus() == {}
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\necho "NVIDIA H200, 570.1"\necho "NVIDIA H100 80GB, 570.1"\n')
    tool.chmod(0o755)
    assert gpus() == {'gpus': ['NVIDIA H200', 'NVIDIA H100 80GB'], 'driver': '570.1'}
    tool.write_text('#!/bin/sh\nexit 9\n')
    assert gpus() == {}


@pytest.mark.gpu
def test_both_run_on_the_gpu(options, smaller, tmp_path):
    torch = pytest.importorskip('torch', reason='the extra `training` is not installed')
    if not torch.cuda.is_available():
        pytest.skip('needs a CUDA device')
    model = smaller.exported('small', (64, 32), None, tmp_path, True, print)
    asked = replace(options, model=model, sections=('pipelines', 'segmenter'), repeats=2,
                    pipelines=('model', 'small'), pipeline_sizes=((64, 32),),
                    pipeline_batches=(1, 2), engine='torch', peers='owseg_training.bench',
                    cache=tmp_path)
    report = run_bench(asked)
    assert report['left_out'] == {} and report['gpu']['name'] == torch.cuda.get_device_name()
    assert report['segmenter'][0]['gpu_memory_mib'] > 1
    for row in report['pipelines'][2:]:
        assert row['engine'].startswith('torch (fp16') and row['peer'] == report['gpu']['name']
        assert list(row['ratios']) == ['Hugging Face, eager, fp32', 'Hugging Face, eager, fp16']
        assert row['alike'] == ['Hugging Face, eager, fp16']
        assert row['difference']['mask_logits'] < 0.05
        assert min(row['gpu_memory_mib'].values()) > 1
    exact, = run_bench(replace(asked, torch_precision='fp32', pipelines=('small',),
                               pipeline_batches=(1,)))['pipelines']
    assert exact['difference']['mask_logits'] < 1e-3
    assert exact['alike'] == ['Hugging Face, eager, fp32']


def test_memory_of_a_first_readout():
    task = imitate('crisp', 10, 5, (64, 128))
    found = first_readout_memory(task, (256, 512), ALL_MAPS, ReadoutSettings(0.5), 1)
    if found is None:
        pytest.skip('this system does not tell the memory of a process')
    readout = CpuReadout()
    maps = readout(*task, (256, 512), (256, 512), ReadoutSettings(0.5))
    held = sum(getattr(maps, name).nbytes for name in ALL_MAPS) + sum(
        scratch.nbytes for scratch in readout._scratch)
    assert 0.5 * held / 2 ** 20 < found < 2.5 * held / 2 ** 20 + 4


@pytest.mark.timeout(120)
def test_node_end_to_end(options, monkeypatch):
    pytest.importorskip('rclpy', reason='neither ROS nor the extra `ros` is installed')
    run = NodeRun(options.model, {'engine': 'onnx'}, ('cpu',), 1, 20.0, 2.0,
                  int(os.environ.get('OWSEG_TEST_DOMAIN', 70)))
    found = measure_node(run, [paint(96, 64)])
    assert found['frames'] > 5 and 0 < found['age_p50_ms'] <= found['age_p99_ms']
    assert found['results_hz'] == pytest.approx(found['frames'] / 2, rel=0.3)
    assert found['cores'] > 0 and found['memory_mib'] > 20 and found['node']['network_ms'] > 0
    monkeypatch.setattr(nodes, 'START_SECONDS', 4.0)
    with pytest.raises(NodeBenchError, match='they say'):
        measure_node(replace(run, engine={'engine': 'none'}), [paint(96, 64)])


@pytest.mark.timeout(120)
def test_a_node_that_another_engine_stands_in_for_is_not_measured(options):
    pytest.importorskip('rclpy', reason='neither ROS nor the extra `ros` is installed')
    run = NodeRun(options.model, replace(options, engine='torch').engine_parameters(), ('cpu',),
                  1, 20.0, 2.0, int(os.environ.get('OWSEG_TEST_DOMAIN', 70)))
    with pytest.raises(NodeBenchError, match='torch does not run in the node: .*no torch program'):
        measure_node(run, [paint(96, 64)])


def test_the_engine_that_was_asked_for_is_what_is_measured(options, tmp_path, monkeypatch):
    asked = []

    def serve(bundle, providers, threads, chosen):
        def build(machine, stopped):
            asked.append(chosen.max_batch)
            time.sleep(0.5)
            engine = OnnxEngine(bundle, threads=1)
            engine.description = 'the one that was asked for'
            return engine

        return FallbackEngine('torch', OnnxEngine(bundle, threads=1), build)

    chosen = replace(options, engine='torch', sections=('network',), sizes=((96, 64),))
    with pytest.raises(BenchError, match='torch does not run here: .*no torch program'):
        run_bench(chosen, tmp_path, say=lambda line: None)
    monkeypatch.setattr(engines, 'serve_torch', serve)
    report = run_bench(chosen, tmp_path, say=lambda line: None)
    assert report['model']['engine'] == 'the one that was asked for' and asked == [2]


def test_frames_are_spread_over_the_source(options):
    frames = read_frames(options.source, (96, 64), 5)
    assert len(frames) == 5 and frames[0].shape == (64, 96, 3)
    street = read_frames('scene', (96, 64), 3)
    assert street[0].shape == (64, 96, 3) and (street[0] != street[2]).mean() > 0.3


def test_targets_say_what_is_missed():
    case = {'stride 1': {'ratio': 4.0, 'max_score_error': 2e-3, 'label_disagreement': 1e-4},
            'memory_mib': 30.0}
    better = {'stride 1': {'ratio': 9.0, 'max_score_error': 1e-5, 'label_disagreement': 0.0},
              'memory_mib': None}
    pipeline = {'network': 'net', 'width': 640, 'height': 480, 'batch': 4, 'alike': ['fp16'],
                'ratios': {'fp32': {'owseg_ros, all maps': 1.1, 'owseg_ros, ids only': 1.2},
                           'fp16': {'owseg_ros, all maps': 1.7, 'owseg_ros, ids only': 1.2}}}
    found = targets({'readout': {'a': case, 'b': better}, 'pipelines': [pipeline]})
    assert [row['met'] for row in found] == [False, False, True, True, True]
    assert found[0]['measured'] == '4.0x (a), 9.0x (b)' and found[4]['measured'] == '1.70x'
    assert found[4]['target'].startswith('whole Segmenter on net, 4 frames of 640x480 at a time')
    assert targets({}) == []


def test_documents_without_marks_are_refused(tmp_path):
    with pytest.raises(ReportError, match='cannot be read'):
        put_into(tmp_path / 'none.md', 'text')
    (tmp_path / 'plain.md').write_text(f'{END}\n{BEGIN}\n')
    with pytest.raises(ReportError, match='does not have the lines'):
        put_into(tmp_path / 'plain.md', 'text')


def test_peers_that_are_not_there():
    assert open_peers('') == (None, 'not asked for')
    assert open_peers('no_such_module') == (None, 'there is no module no_such_module')


@pytest.mark.parametrize('wrong, message', [
    ({'sections': ('speed',)}, 'no sections speed'), ({'pipelines': ('huge',)}, 'no pipelines'),
    ({'repeats': 0}, '1 or more'), ({'batches': ()}, '1 or more'), ({'sizes': ()}, '16 pixels'),
    ({'pipeline_batches': (0,)}, '1 or more'), ({'pipeline_sizes': ((100, 64),)}, 'of 32'),
    ({'peer_device': 'tpu'}, 'peer_device')])
def test_options_that_cannot_be_measured(wrong, message):
    with pytest.raises(BenchError, match=message):
        BenchOptions(**wrong)


def test_what_runs_beside_an_engine_and_where():
    assert [peer_precisions(name) for name in ('fp32', 'fp16', 'bf16', 'int8')] == [
        ('fp32',), ('fp32', 'fp16'), ('fp32', 'bf16'), ('fp32', 'fp16')]
    asked = [({}, False), ({'engine': 'torch'}, True), ({'engine': 'tensorrt'}, True),
             ({'engine': 'torch', 'torch_device': 'cpu'}, False),
             ({'providers': ('cuda', 'cpu')}, True), ({'peer_device': 'cuda'}, True)]
    assert [BenchOptions(**given).on_gpu for given, _ in asked] == [found for _, found in asked]
    assert open_gpu(False) is None
    with pytest.raises(BenchError, match='nothing can be exported: not asked for'):
        export_networks(BenchOptions(peers=''))


def test_command_line(options, tmp_path, capsys):
    arguments = ['bench', '--model', str(options.model), '--source', options.source, '--size',
                 '96x64', '--batch', '1,3', '--repeats', '1', '--only', 'network,segmenter',
                 '--no-peers', '--out', str(tmp_path / 'out')]
    assert main(arguments) == 0
    assert 'left out: what is measured beside it' in capsys.readouterr().out
    report = json.loads((tmp_path / 'out' / 'benchmarks.json').read_text())
    assert report['command'] == ' '.join(['owseg', *arguments])
    assert [row['batch'] for row in report['network']] == [1, 3]
    assert markdown(report).count('| 96x64 |') == 1
    assert main(['bench', '--only', 'speed', '--out', str(tmp_path)]) == 2
    assert 'there are no sections speed' in capsys.readouterr().err
