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
"""Figures of queries in words, and how a bundle's answers to them are calibrated."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
from owseg_ros.bundle import load_bundle
from owseg_ros.language import default_vocabulary, LanguageError, TextEncoder
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
from owseg_ros.segmenter import Segmenter
from owseg_training import language
from owseg_training.analysis import meaning
from owseg_training.cli import main
from owseg_training.data.datasets import CamVid
from owseg_training.data.label_sets import label_set
from owseg_training.data.words import held_out_words
from owseg_training.evaluate.language import (
    bin_of, BINS, count_scores, evaluate_classes, kinds, LanguageReader, ScoreCounts,
    softmax_weights)
from owseg_training.evaluate.word_queries import class_texts, NAME, query_sets, Wording, wordings
from owseg_training.language import (
    background_things, calibration_wordings, choose_threshold, FALSE_ALARMS, fit_same_meaning,
    language_section, same_meaning, text_pairs)
import pytest
from support.tiny_bundle import CLASS_COLORS, CLASS_NAMES, edit_manifest, make_tiny_bundle
from support.tiny_text_encoder import make_tiny_text_encoder

CAMVID = [c.name for c in label_set('camvid_11')]


def write_data(root, names, frames=2):
    """Write CamVid (val) of red, green and blue blocks; what is blue on the left is of class 0."""
    folder = root / 'camvid'
    for part in ('images', 'labels'):
        (folder / part).mkdir(parents=True)
    (folder / 'classes.json').write_text(json.dumps({'classes': [
        {'id': i, 'name': name, 'colour': [i, i, i]} for i, name in enumerate(names)]}))
    (folder / 'val.txt').write_text('\n'.join(f'f{k}.png' for k in range(frames)))
    for k in range(frames):
        ids = np.random.default_rng(k).integers(0, 3, (2, 3)).repeat(32, 0).repeat(32, 1)
        ids[:, :32], ids[:, 64:] = 2, k
        image = np.array(CLASS_COLORS, np.uint8)[ids]
        label = ids.astype(np.uint8)
        label[:32, :32] = 0
        label[:4] = 255
        # PNG by content: JPEG would change the colours.
        data = cv2.imencode('.png', image[..., ::-1])[1]
        (folder / 'images' / f'f{k}.jpg').write_bytes(data.tobytes())
        cv2.imwrite(str(folder / 'labels' / f'f{k}.png'), label)
    return root


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    """Return a folder with a text encoder, a bundle that speaks, and one that does not."""
    folder = tmp_path_factory.mktemp('language')
    make_tiny_text_encoder(folder / 'encoder')
    make_tiny_bundle(folder / 'bundle', encoder=OnnxTextEncoder(folder / 'encoder'))
    make_tiny_bundle(folder / 'mute')
    return folder


@pytest.fixture(scope='module')
def encoder(place):
    return OnnxTextEncoder(place / 'encoder')


@pytest.fixture(scope='module')
def reader(place, encoder):
    return LanguageReader(Segmenter(load_bundle(place / 'bundle')), encoder)


@pytest.fixture(scope='module')
def colors(tmp_path_factory):
    return CamVid('val', write_data(tmp_path_factory.mktemp('colors'), CLASS_NAMES))


def painted_iou(colors):
    """Return the IoU of each class of what is painted in its colour."""
    hits, total = np.zeros(3), np.zeros(3)
    for item in colors.items:
        label = colors.read_label(item)
        painted = cv2.imread(str(item.image))[..., ::-1].argmax(2)
        for k in range(3):
            hits[k] += ((painted == k) & (label == k)).sum()
            total[k] += ((painted == k) | (label == k))[label < 3].sum()
    return hits / total


class ThingEncoder(TextEncoder):
    """Texts of one thing of the vocabulary lie near one another, mostly nearer than to others."""

    space, dim, key, templates = 'things', 24, 'things', 'plain'

    def __init__(self):
        rng = np.random.default_rng(0)
        self.rows, self.asked = {}, set()
        for thing in default_vocabulary().things:
            centre = rng.normal(size=self.dim)
            for text in (*thing.same, *thing.wordings):
                row = centre + 0.8 * rng.normal(size=self.dim)
                self.rows[text] = row / np.linalg.norm(row)

    def encode(self, texts):
        self.asked.update(texts)
        return np.array([self.rows[text] for text in texts], np.float32)


def test_background_has_no_held_out_words_and_the_model_s_classes_first():
    things = background_things(['Car', 'Pavement'])
    assert things[0][0] == 'car' and things[1][0] == 'pavement'
    texts = [text for thing in things for text in thing]
    assert held_out_words().isdisjoint(texts)
    # No thing competes with itself under another entry.
    assert len(set(texts)) == len(texts)
    assert {'sky', 'bus', 'puddle', 'traffic cone'} <= set(texts)


def test_the_relation_is_judged_on_things_that_its_fit_has_not_seen(monkeypatch, tmp_path):
    encoder = ThingEncoder()
    pairs = text_pairs(encoder)
    # Kinds take the place of hypernyms: this encoder knows the vocabulary alone.
    above = [(thing.same, thing.kinds[:1]) for thing in default_vocabulary().things
             if thing.kinds and thing.name in pairs.texts]
    monkeypatch.setattr(meaning, 'concepts', lambda: [
        SimpleNamespace(words=words, hypernyms=kinds) for words, kinds in above])
    monkeypatch.setattr(meaning, 'CONTEXTS', ('{}',))
    fitted = []

    def fit_votes(nearness, own):
        fitted.append(len(nearness))
        return 0.5, 0.05, 0.05

    monkeypatch.setattr(meaning, 'fit_votes', fit_votes)
    found = meaning.cross_validate(encoder)
    # Ten folds leave each text out once; the eleventh fit, for hypernyms, none.
    count = len(pairs.texts)
    assert sum(count - n for n in fitted[:10]) == count and fitted[10] == count
    shipped = found['nearest text (shipped)']
    assert shipped == found['nearest text (shipped), in contexts']
    assert shipped['synonyms']['texts'] == count
    assert 10 < shipped['hypernyms']['texts'] <= len(above)
    votes = same_meaning(pairs.nearest(pairs.cosines()), 0.5, 0.05, 0.05)
    own = [votes[i, thing] >= 0.4 for i, thing in enumerate(pairs.owner)]
    assert shipped['synonyms']['found'] == pytest.approx(np.mean(own)) and np.mean(own) > 0.5
    others = sum((row >= 0.4).sum() for row in votes) - np.sum(own)
    assert shipped['synonyms']['others'] == pytest.approx(others / count)
    text = meaning.write_meaning(found, tmp_path)
    assert text.count('\n') == 1 + len(found) and (tmp_path / 'meaning.json').is_file()


def test_same_meaning_is_fitted_to_the_texts_without_held_out_ones():
    encoder = ThingEncoder()
    found = fit_same_meaning(encoder)
    assert held_out_words().isdisjoint(encoder.asked)
    things = [[text for text in thing.same if text not in held_out_words()]
              for thing in default_vocabulary().things]
    things = [texts for texts in things if len(texts) > 1]
    cosines, right = [], []
    for own, texts in enumerate(things):
        for text in texts:
            cosines.append([max(encoder.rows[text] @ encoder.rows[other] for other in others
                                if other != text) for others in things])
            right.append(np.arange(len(things)) == own)
    cosines, right = np.array(cosines), np.array(right)

    def likelihood(cosine, scale, margin):
        nearest = cosines.max(1, keepdims=True)
        p = np.exp((cosines - nearest) / margin) / (1 + np.exp((cosine - cosines) / scale))
        p = np.clip(p, 1e-6, 1 - 1e-6)
        return (np.log(p[right]).sum() + np.log(1 - p[~right]).sum()) / len(right)

    best = likelihood(**found)
    for key, step in (('cosine', 0.03), ('scale', 0.03), ('margin', 0.02)):
        for sign in (-1, 1):
            other = max(1e-3, found[key] + sign * step)
            assert likelihood(**{**found, key: other}) < best


def test_the_section_is_one_that_a_bundle_takes(encoder, tmp_path):
    section = language_section(encoder, ['Car', 'Road'], 0.0712345)
    assert section['temperature'] == 0.07123 and section['space'] == encoder.space
    make_tiny_bundle(tmp_path / 'bundle', encoder=encoder)
    edit_manifest(tmp_path / 'bundle', lambda manifest: manifest.update(language=section))
    found = load_bundle(tmp_path / 'bundle').language
    assert found.temperature == 0.07123 and found.dim == encoder.dim
    assert [list(thing) for thing in found.background] == section['background']
    assert found.same_meaning.scale == section['same_meaning']['scale']


def test_counts_give_iou_and_false_positive_rate():
    rng = np.random.default_rng(0)
    scores, inside = rng.random((3, 500)), rng.random((3, 500)) < 0.3
    inside[2] = False
    bins = (scores * BINS).astype(int)
    pixels = np.array([[np.bincount(b[m == part], minlength=BINS) for part in (0, 1)]
                       for b, m in zip(bins, inside)])
    counts = ScoreCounts(pixels, np.zeros((3, BINS), int), 1)
    for bin_ in (0, 37, 100, 199):
        above = scores >= bin_ / BINS
        for query in range(3):
            union = (above[query] | inside[query]).sum()
            iou = (above[query] & inside[query]).sum() / max(union, 1)
            assert counts.iou()[query, bin_] == pytest.approx(iou)
            rate = (above[query] & ~inside[query]).sum() / (~inside[query]).sum()
            assert counts.false_positive_rate()[query, bin_] == pytest.approx(rate)
    assert [bin_of(value) for value in (0.0, 0.5, 0.995, 1.0)] == [0, 100, 199, 199]


def test_softmax_weights_let_queries_compete(reader, encoder):
    queries, = query_sets(encoder, {'red': ['red', 'scarlet'], 'green': ['green']})
    prepared = reader.prepare(queries)
    rows = queries.embeddings
    assert len(rows) == 3
    z = np.random.default_rng(0).normal(size=(4, encoder.dim)).astype(np.float32)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    objectness = np.array([1.0, 0.5, 0.1, 0.0], np.float32)
    found = softmax_weights(prepared, z, objectness)
    assert found.shape == (4, 2) and found.dtype == np.float32
    for n in range(4):
        logits = [max(z[n] @ rows[0], z[n] @ rows[1]) / 0.05, z[n] @ rows[2] / 0.05]
        shares = np.exp(np.array(logits) - max(logits))
        assert found[n] == pytest.approx(objectness[n] * shares / shares.sum(), abs=1e-5)


def test_classes_are_found_by_their_names(reader, colors):
    found = evaluate_classes(reader, colors)
    assert found['frames'] == 2
    expected = painted_iou(colors)
    assert 0.2 < expected.min() < 0.9
    for rule in ('calibrated', 'softmax'):
        assert list(found[rule]['IoU']) == list(CLASS_NAMES)
        assert list(found[rule]['IoU'].values()) == pytest.approx(list(expected), abs=0.06)
        assert found[rule]['mIoU'] == pytest.approx(expected.mean(), abs=0.05)
        assert found[rule]['grounding_mIoU'] >= found[rule]['mIoU'] - 1e-6
    assert evaluate_classes(reader, colors, every=2)['frames'] == 1


def test_wordings_are_counted_in_their_own_rows_beyond_one_set_of_queries(reader, colors):
    asked = [Wording('red', NAME, 0), *(Wording(f'filler {i}', 'absent', None) for i in range(66)),
             Wording('blue', NAME, 2)]
    counts = count_scores(reader, colors, asked)
    valid = sum(int((colors.read_label(item) < 3).sum()) for item in colors.items)
    assert counts.pixels.shape == (68, 2, BINS) and counts.alarms.shape == (68, BINS)
    assert counts.frames == 2
    assert (counts.pixels.sum((1, 2)) == valid).all()
    own = [sum(int((colors.read_label(item) == k).sum()) for item in colors.items) for k in (0, 2)]
    assert counts.pixels[[0, 67], 1].sum(1).tolist() == own
    assert not counts.pixels[1:67, 1].any()
    half = bin_of(0.5)
    assert counts.iou()[[0, 67], half] == pytest.approx(painted_iou(colors)[[0, 2]], abs=0.06)
    assert (counts.alarms[:, 0] == 2).all() and counts.alarms.max() == 2
    assert (np.diff(counts.alarms, axis=1) <= 0).all()
    assert counts.alarms[67, half] == 2


def test_wordings_have_no_text_twice_and_know_what_is_held_out():
    found = wordings(CAMVID)
    assert len({w.text for w in found}) == len(found)
    assert {w.text for w in found if w.target is None} and found[0].kind == NAME
    by_text = {w.text: w for w in found}
    car = CAMVID.index('Car')
    assert by_text['automobile'].held_out and by_text['automobile'].target == car
    assert by_text['car'].kind == NAME and not by_text['car'].held_out
    assert class_texts('Traffic_Thing') == ('traffic thing',)


def test_calibration_asks_for_nothing_that_is_held_out():
    found = calibration_wordings(CAMVID)
    assert held_out_words().isdisjoint(w.text for w in found)
    assert len({w.text for w in found}) == len(found)
    absent = {w.text for w in found if w.target is None}
    assert {'puddle', 'zebra'} & absent and not {'car', 'road', 'pavement'} & absent
    by_text = {w.text: w.target for w in found}
    assert by_text['vehicle'] == by_text['sedan'] == CAMVID.index('Car')


def fixed_counts(monkeypatch, iou_of_bin, alarms):
    """Let count_scores say what two wordings of classes and two absent things score."""
    asked = [Wording('x', NAME, 0), Wording('y', 'absent', None)]
    monkeypatch.setattr(language, 'calibration_wordings', lambda classes: asked)

    class Counts(ScoreCounts):

        def iou(self):
            return np.stack([iou_of_bin, np.ones(BINS)])

        def false_positive_rate(self):
            return np.stack([np.ones(BINS), alarms])

    monkeypatch.setattr(language, 'count_scores', lambda *_, **__: Counts(None, None, 7))


def test_the_threshold_is_the_best_one_without_too_many_alarms(reader, colors, monkeypatch):
    bins = np.arange(BINS)
    iou = 1 - np.abs(bins - 60) / BINS
    fixed_counts(monkeypatch, iou, np.where(bins < 120, 2 * FALSE_ALARMS, FALSE_ALARMS))
    threshold, text = choose_threshold(reader, colors)
    assert threshold == 120 / BINS
    assert '7 frames of CamVid val' in text and f'{FALSE_ALARMS:.2%}' in text
    fixed_counts(monkeypatch, iou, np.zeros(BINS))
    assert choose_threshold(reader, colors)[0] == 60 / BINS
    # Where everything raises alarms, the highest threshold raises the fewest.
    fixed_counts(monkeypatch, iou, np.ones(BINS))
    threshold, text = choose_threshold(reader, colors)
    assert threshold == (BINS - 1) / BINS and '100.00%' in text


def test_means_by_kind():
    rows = [{'kind': 'synonym', 'IoU': 0.2}, {'kind': 'plural', 'IoU': 0.5},
            {'kind': 'synonym', 'IoU': 0.4}, {'kind': 'absent', 'alarms': 1.0}]
    assert list(kinds(rows)) == [('synonym', 2, pytest.approx(0.3)), ('plural', 1, 0.5)]


def test_a_bundle_without_language_is_refused(place, encoder):
    with pytest.raises(LanguageError, match='owseg-train grounding'):
        LanguageReader(Segmenter(load_bundle(place / 'mute')), encoder)


@pytest.mark.timeout(180)
def test_on_the_command_line(place, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
    root = write_data(tmp_path, CAMVID)
    command = ['evaluate-language', '--text-encoder', str(place / 'encoder'),
               '--data-set', 'camvid:val', '--data', str(root)]
    assert main([*command, str(place / 'bundle'), '--novel', 'Pole', '--every', '2',
                 '--out', str(tmp_path / 'out')]) == 0
    printed = capsys.readouterr().out
    report = json.loads((tmp_path / 'out' / 'language.json').read_text())
    assert (tmp_path / 'out' / 'language.md').read_text() == printed
    assert report['novel'] == ['Pole'] and report['threshold'] == 0.5
    found = report['classes']['camvid_val']
    assert found['frames'] == 1
    for rule in ('calibrated', 'softmax'):
        row = found[rule]
        assert {'Sky', 'Pole'} <= set(row['IoU']) <= set(CAMVID[:3])
        assert row['novel_IoU'] == pytest.approx(row['IoU'].pop('Pole'))
        assert row['base_IoU'] == pytest.approx(np.mean(list(row['IoU'].values())))
    assert '| camvid_val (1) | calibrated | ' in printed
    assert 'Hidden from training: Pole.' in printed
    words = report['wordings']
    assert words['data_set'] == 'camvid_val' and words['frames'] == 1
    assert len(words['bare']) == len(words['vocabulary']) == len(wordings(CAMVID))
    for text in ('| automobile | Car |', '| footpath | Pavement |', '| class name | ',
                 '| mean of '):
        assert text in printed
    rows = {row['text']: row for row in words['bare']}
    assert rows['automobile']['held_out'] and not rows['car']['held_out']
    assert main([*command, str(place / 'mute')]) == 2
    assert 'owseg-train grounding' in capsys.readouterr().err
