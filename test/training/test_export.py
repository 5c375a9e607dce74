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
import json
import shutil

import cv2
import numpy as np
import onnx
from owseg_ros.engine import TorchEngine, TorchOptions
from owseg_ros.engine.status import StateMachine
from owseg_ros.frame import Frame
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.segmenter import Segmenter
from owseg_training.bundle_export import export_bundle, ExportOptions
from owseg_training.cli import main
from owseg_training.closed_set import ClosedSetTraining, load_network
from owseg_training.export import ExportError, tolerance
from owseg_training.grounding import GroundingTraining
from owseg_training.outliers import OutlierTraining
from owseg_training.parity import differs
import pytest
from support.camvid import tiny_config, write_camvid
from support.published import detectron2_config, detectron2_state, mask2former
from support.tiny_text_encoder import DIM, make_tiny_text_encoder, SPACE
import torch
import yaml


def write_road_anomaly(root):
    """Write two pictures with a magenta object in RoadAnomaly's layout."""
    folder = root / 'road_anomaly'
    for name in ('images', 'masks'):
        (folder / name).mkdir(parents=True)
    for index in range(2):
        image = np.full((72, 96, 3), (40, 200, 40), np.uint8)
        mask = np.zeros((72, 96), np.uint8)
        image[20:50, 30:60], mask[20:50, 30:60] = (255, 0, 255), 1
        mask[:4] = 255
        cv2.imwrite(str(folder / 'images' / f'r{index}.jpg'), image[..., ::-1])
        cv2.imwrite(str(folder / 'masks' / f'r{index}.png'), mask)


@pytest.mark.timeout(240)
def test_run_becomes_a_bundle_with_figures_and_history(tmp_path, capsys):
    root = write_camvid(tmp_path)
    write_road_anomaly(root)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cv2.imwrite(str(objects / 'a_vase.png'), np.full((12, 12, 4), 255, np.uint8))
    ClosedSetTraining(tiny_config(root, 4), tmp_path / 'run').run()
    before = tmp_path / 'before'
    assert main(['export', str(tmp_path / 'run'), '--out', str(before), '--data', str(root)]) == 0
    assert 'fpr=0.005 of the known pixels' in capsys.readouterr().out
    config = tiny_config(root, 2)
    config.outliers.height = [0.2, 0.4]
    OutlierTraining(config, tmp_path / 'tuned', tmp_path / 'run').run()
    after = tmp_path / 'after'
    assert main(['export', str(tmp_path / 'tuned'), '--out', str(after), '--data', str(root),
                 '--before', str(before)]) == 0

    segmenter = Segmenter(after)
    bundle = segmenter.bundle
    assert bundle.class_names == ('a', 'b', 'c')
    assert max(bundle.figures['onnx_parity'].values()) <= 1e-4
    figures = bundle.figures
    assert figures['before_outliers']['road_anomaly'] == \
        Segmenter(before).bundle.figures['road_anomaly']
    assert figures['onnx_parity_frames'].endswith('CamVid val')
    assert bundle.provenance['tensorrt']['unsupported'] == []
    assert 0 <= figures['camvid_val']['mIoU'] <= 1
    result = segmenter(np.full((72, 96, 3), 90, np.uint8))
    assert result.semantic.shape == (72, 96)
    card = (after / 'MODEL_CARD.md').read_text()
    for text in ('before outlier supervision', 'mask_embed, class_embed', 'closed-set --config',
                 f'{figures["camvid_val"]["mIoU"]:.4f}'):
        assert text in card
    # The calibrated threshold flags 0.5 % of what is known, within the pictures' grain.
    scores = []
    for item in sorted((root / 'camvid' / 'images').glob('*.jpg')):
        image = cv2.imread(str(item))[..., ::-1]
        scores.append(segmenter(np.ascontiguousarray(image)).anomaly_score.ravel())
    flagged = (np.concatenate(scores) >= bundle.anomaly.threshold).mean()
    assert flagged == pytest.approx(0.005, abs=0.004)


@pytest.fixture(scope='module')
def converted(tmp_path_factory):
    """Convert a small random network in the layout of RbA's Swin checkpoints (one level)."""
    folder = tmp_path_factory.mktemp('converted')
    release = folder / 'small_1dl'
    release.mkdir()
    model = mask2former(levels=1)
    (release / 'config.yaml').write_text(yaml.safe_dump(detectron2_config(model, levels=1)))
    torch.save({'model': detectron2_state(model, levels=1)}, release / 'model_final.pth')
    (folder / 'names.txt').write_text('road\nsky\ncar\nperson\ntree\n')
    assert main(['convert', str(release / 'model_final.pth'), '--size', '128x64',
                 '--classes', str(folder / 'names.txt'), '--out', str(folder / 'run')]) == 0
    return folder / 'run'


@pytest.mark.timeout(240)
def test_released_checkpoint_goes_through_to_masks(converted, tmp_path, monkeypatch, capsys):
    (tmp_path / 'nothing').mkdir()
    monkeypatch.setenv('OWSEG_DATA', str(tmp_path / 'nothing'))
    out = tmp_path / 'bundle'
    assert main(['export', str(converted), '--out', str(out), '--check-frames', '2',
                 '--torch']) == 0
    printed = capsys.readouterr().out
    assert 'every operator is in the list' in printed and 'GridSample' in printed

    segmenter = Segmenter(out)
    bundle = segmenter.bundle
    assert bundle.class_names == ('road', 'sky', 'car', 'person', 'tree')
    assert (bundle.input.width, bundle.input.height) == (128, 64)
    assert max(bundle.figures['onnx_parity'].values()) <= 1e-4
    assert bundle.figures['onnx_parity_frames'] == '2 of the procedural street'
    assert 'street without hazards' in bundle.anomaly.operating_point
    assert bundle.provenance['stage'] == 'converted'
    assert not {'camvid_val', 'road_anomaly'} & set(bundle.figures)
    random = np.random.default_rng(0)
    frames = [random.integers(0, 256, (90, 120, 3), np.uint8) for _ in range(3)]
    single = [segmenter(frame) for frame in frames]
    for result in single:
        assert result.semantic.shape == result.anomaly_mask.shape == (90, 120)
        assert np.isfinite(result.anomaly_score).all() and result.anomaly_score.std() > 0
    assert max(bundle.figures['program_parity'].values()) <= 1e-4
    program = TorchEngine(bundle, TorchOptions('cpu'), StateMachine())
    for found, wanted in zip(*(engine.infer([Frame(frame) for frame in frames]).mask_logits
                               for engine in (program, segmenter.engine))):
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    # Any batch size, and each frame by itself whatever is beside it.
    for one, many in zip(single, segmenter.segment(frames)):
        assert np.abs(one.anomaly_score - many.anomaly_score).max() < 1e-3
    card = (out / 'MODEL_CARD.md').read_text()
    assert 'Not trained here' in card and 'not run on TensorRT' in card


@pytest.mark.timeout(240)
def test_size_and_batch_can_be_fixed(converted, tmp_path, monkeypatch):
    (tmp_path / 'nothing').mkdir()
    monkeypatch.setenv('OWSEG_DATA', str(tmp_path / 'nothing'))
    out = tmp_path / 'bundle'
    assert main(['export', str(converted), '--out', str(out), '--size', '96x64', '--batch', '2',
                 '--check-frames', '3']) == 0
    shape = onnx.load(out / 'network.onnx').graph.input[0].type.tensor_type.shape
    assert [d.dim_value for d in shape.dim] == [2, 3, 64, 96]
    segmenter = Segmenter(out)
    assert segmenter.bundle.provenance['tensorrt']['notes'] == []
    assert len(segmenter.segment([np.zeros((64, 96, 3), np.uint8)] * 3)) == 3


def test_options_that_do_not_fit_are_one_line(converted, tmp_path, capsys):
    arguments = ['export', str(converted), '--out', str(tmp_path / 'b')]
    for more, message in ((['--size', '100x64'], 'multiples of 32'),
                          (['--check-frames', '0'], 'one frame')):
        assert main([*arguments, *more]) == 2
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match='2'):
        main([*arguments, '--batch', '0'])
    assert "--batch: '0' is not a number from 1" in capsys.readouterr().err
    with pytest.raises(ExportError, match='1 or more, not 0'):
        export_bundle(converted, tmp_path / 'b', ExportOptions(batch=0))
    broken = tmp_path / 'run'
    shutil.copytree(converted, broken)
    names = json.loads((broken / 'classes.json').read_text())
    (broken / 'classes.json').write_text(json.dumps({'classes': names['classes'][:2]}))
    assert main(['export', str(broken), '--out', str(tmp_path / 'b')]) == 2
    assert 'has 5 classes' in capsys.readouterr().err
    (broken / 'classes.json').write_text('[]')
    assert main(['export', str(broken), '--out', str(tmp_path / 'b')]) == 2
    assert 'classes.json must be' in capsys.readouterr().err
    (broken / 'classes.json').unlink()
    assert main(['export', str(broken), '--out', str(tmp_path / 'b')]) == 2
    assert 'name them in' in capsys.readouterr().err
    assert not (tmp_path / 'b').exists()


@pytest.fixture(scope='module')
def learned(tmp_path_factory):
    """Return a data folder and a run that has learned enough to be sure of its classes."""
    folder = tmp_path_factory.mktemp('learned')
    root = write_camvid(folder)
    write_road_anomaly(root)
    ClosedSetTraining(tiny_config(root, 60), folder / 'run').run()
    return root, folder / 'run'


@pytest.mark.timeout(240)
@pytest.mark.parametrize('precision, more', [
    ('fp16', []), ('int8', []), ('int8', ['--int8-runtime', 'tensorrt'])])
def test_variants_state_their_accuracy(precision, more, tmp_path, learned):
    root, run = learned
    out = tmp_path / precision
    assert main(['export', str(run), '--out', str(out), '--data', str(root),
                 '--precision', precision, '--calibration-frames', '4', *more]) == 0
    segmenter = Segmenter(out)
    figures = segmenter.bundle.figures
    assert segmenter.bundle.name == f'tiny_{precision}' + ('_tensorrt' if more else '')
    assert segmenter.bundle.provenance['precision'] == precision
    assert 0.5 < figures['difference_to_fp32']['same_class'] <= 1
    refused = segmenter.bundle.provenance['tensorrt']['unsupported_nodes']
    assert (refused > 0) == (precision == 'int8' and not more)
    for key in ('camvid_val', 'road_anomaly'):
        assert key in figures and key in figures['fp32']
    assert 'in fp32' in (out / 'MODEL_CARD.md').read_text()
    assert segmenter(np.full((72, 96, 3), 90, np.uint8)).semantic.shape == (72, 96)


def test_missing_run_and_data_are_one_line(tmp_path, capsys):
    assert main(['export', str(tmp_path), '--out', str(tmp_path / 'b')]) == 2
    assert 'config.yaml' in capsys.readouterr().err


@pytest.mark.timeout(300)
def test_network_with_an_outlier_class_is_read_with_its_score(tmp_path):
    root = write_camvid(tmp_path)
    write_road_anomaly(root)
    objects = root / 'objects' / 'open'
    objects.mkdir(parents=True)
    cv2.imwrite(str(objects / 'a_vase.png'), np.full((12, 12, 4), 255, np.uint8))
    ClosedSetTraining(tiny_config(root, 1), tmp_path / 'run').save()
    config = tiny_config(root, 1)
    config.outliers.loss = 'uno'
    OutlierTraining(config, tmp_path / 'tuned', tmp_path / 'run').save()
    assert main(['export', str(tmp_path / 'tuned'), '--out', str(tmp_path / 'bundle'),
                 '--data', str(root)]) == 0
    segmenter = Segmenter(tmp_path / 'bundle')
    assert segmenter.bundle.outlier_class and segmenter.bundle.anomaly.score == 'uno'
    result = segmenter(np.full((72, 96, 3), 90, np.uint8))
    assert result.semantic.max() < 3 and result.anomaly_score.shape == (72, 96)


@pytest.fixture(scope='module')
def grounded(tmp_path_factory):
    """Return a data folder with a text encoder and a run with a region head beside it."""
    folder = tmp_path_factory.mktemp('grounded')
    root = write_camvid(folder, 2)
    make_tiny_text_encoder(folder / 'encoder')
    ClosedSetTraining(tiny_config(root, 1), folder / 'start').run(report=False)
    config = tiny_config(root, 1)
    config.grounding.objects, config.grounding.region_hidden_dim = '', 32
    GroundingTraining(config, folder / 'run', folder / 'start',
                      OnnxTextEncoder(folder / 'encoder'), 'cpu').run(report=False)
    return root


@pytest.mark.timeout(300)
def test_region_head_becomes_a_bundle_that_answers_texts(grounded, tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    out = tmp_path / 'bundle'
    assert main(['export', str(grounded / 'run'), '--out', str(out), '--data', str(grounded),
                 '--text-encoder', str(grounded / 'encoder')]) == 0
    bundle = Segmenter(out).bundle
    assert bundle.outputs['region_embeddings'] == 'region_embeddings'
    assert bundle.outputs['text_features'] == 'text_features'
    parity = bundle.figures['onnx_parity']
    assert {'region_embeddings', 'text_features'} < set(parity)
    assert max(parity.values()) <= 1e-4
    language = bundle.language
    assert (language.space, language.dim) == (SPACE, DIM)
    head = load_network(grounded / 'run')[0].region_head
    assert language.temperature == pytest.approx(1 / head.scale.item(), abs=1e-5)
    # The classes of the run come first in what competes with a query.
    assert [thing[0] for thing in language.background[:3]] == ['a', 'b', 'c']
    assert 'wordings of the classes on 2 frames of CamVid val' in language.operating_point
    assert language.ensemble is None
    card = (out / 'MODEL_CARD.md').read_text()
    assert 'owseg-train grounding' in card and '| step | total | grounding | regions |' in card


def test_encoder_of_a_run_with_region_head_must_fit(grounded, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    monkeypatch.setenv('OWSEG_TEXT_ENCODER', str(tmp_path / 'nowhere'))
    command = ['export', str(grounded / 'run'), '--out', str(tmp_path / 'bundle'), '--data',
               str(grounded)]
    assert main(command) == 2
    assert 'run: owseg text-encoder' in capsys.readouterr().err
    make_tiny_text_encoder(tmp_path / 'other', space='elsewhere')
    assert main([*command, '--text-encoder', str(tmp_path / 'other')]) == 2
    error = capsys.readouterr().err
    assert 'text space tiny' in error and 'is of elsewhere' in error
    assert not (tmp_path / 'bundle').exists()


def test_more_rounding_is_allowed_at_more_pixels_than_a_network_was_trained_at():
    assert tolerance((480, 352), (480, 352)) == tolerance((64, 64), (480, 352)) == 1e-4
    assert tolerance((960, 704), (480, 352)) == pytest.approx(2e-4)
    found = {'mask_logits': 1.5e-4}
    assert differs(found) and not differs(found, tolerance((960, 704), (480, 352)))
    assert differs({'mask_logits': float('nan')}, 1.0)
