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

"""How a bundle's region embeddings answer texts: the section language of its manifest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from owseg_ros.language import default_vocabulary, TextEncoder
from owseg_training.data.datasets import DataSet
from owseg_training.data.words import concept_of, concepts, held_out_words
from owseg_training.evaluate.language import BINS, count_scores, LanguageReader
from owseg_training.evaluate.word_queries import NAME, Wording
from owseg_training.grounding import word_embeddings
from scipy.optimize import minimize

# False alarms that the default threshold may cost, as a share of the pixels.
FALSE_ALARMS = 1e-3
FRAMES = 34


def background_things(labels: Sequence[str]) -> list[list[str]]:
    """
    Return the things that compete with a query, the texts for each: no held-out words.

    labels: names of a model's classes. They come first, then what grounding knows besides, then
    what the vocabulary knows.
    """
    held_out = held_out_words()
    things: list[list[str]] = []
    used: set[str] = set()
    for texts in (*(concept_of(label).words for label in labels),
                  *(concept.words for concept in concepts()),
                  *(thing.plain for thing in default_vocabulary().things)):
        kept = [text for text in dict.fromkeys(texts) if text not in held_out]
        if kept and used.isdisjoint(kept):
            things.append(kept)
            used.update(kept)
    return things


@dataclass(frozen=True, eq=False)
class TextPairs:
    """
    Texts of the vocabulary, T of them, and the things that they name, G.

    texts, their vectors: float64 [T, D], rows of unit length; owner: int64 [T], the thing of each.
    """

    texts: tuple[str, ...]
    rows: np.ndarray
    owner: np.ndarray

    @property
    def own(self) -> np.ndarray:
        """Return bool [T, G], which thing a text names."""
        return self.owner[:, None] == np.arange(self.owner[-1] + 1)

    def cosines(self, rows: np.ndarray | None = None) -> np.ndarray:
        """
        Return cosines of other texts' rows, or of these, with these, float64 [R, T].

        A text is compared with the others of its thing: with itself it has the cosine -1.
        """
        if rows is not None:
            return rows @ self.rows.T
        cosines = self.rows @ self.rows.T
        np.fill_diagonal(cosines, -1)
        return cosines

    def nearest(self, cosines: np.ndarray) -> np.ndarray:
        """Return float64 [R, G], the cosine with the nearest text of each thing."""
        return np.stack([cosines[:, mine].max(1) for mine in self.own.T], 1)


def text_pairs(encoder: TextEncoder) -> TextPairs:
    """Return names and synonyms of the things that have several; no held-out words."""
    held_out = held_out_words()
    things = [[text for text in thing.same if text not in held_out]
              for thing in default_vocabulary().things]
    things = [texts for texts in things if len(texts) > 1]
    texts = [text for thing in things for text in thing]
    return TextPairs(tuple(texts), word_embeddings(encoder, texts).numpy().astype(np.float64),
                     np.repeat(np.arange(len(things)), [len(thing) for thing in things]))


def same_meaning(nearness: np.ndarray, cosine: float, scale: float,
                 margin: float) -> np.ndarray:
    """Return r(g, q) of the cosines of texts with things [R, G]; see bundle.SameMeaning."""
    largest = nearness.max(1, keepdims=True)
    return np.exp((nearness - largest) / margin) / (1 + np.exp(-(nearness - cosine) / scale))


def misfit(votes: np.ndarray, own: np.ndarray) -> float:
    """Return the mean negative log-likelihood of finding one's own things [R, G] alone."""
    votes = np.clip(votes, 1e-6, 1 - 1e-6)
    return -(np.log(votes[own]).sum() + np.log(1 - votes[~own]).sum()) / len(votes)


def fit_votes(nearness: np.ndarray, own: np.ndarray) -> tuple[float, float, float]:
    """Return the (cosine, scale, margin) of same_meaning with the least misfit."""
    def cost(parameters: np.ndarray) -> float:
        return misfit(same_meaning(nearness, parameters[0], *np.exp(parameters[1:])), own)

    found = minimize(cost, [0.5, np.log(0.1), np.log(0.05)], method='Nelder-Mead').x
    return float(found[0]), *map(float, np.exp(found[1:]))


def fit_same_meaning(encoder: TextEncoder) -> dict[str, float]:
    """
    Fit when a text means a thing (bundle.SameMeaning), on texts alone.

    Each name and synonym of the vocabulary is taken out of its thing and compared with all
    things; the maximum likelihood of finding its own and none of the others. Held-out words take
    no part.
    """
    pairs = text_pairs(encoder)
    found = fit_votes(pairs.nearest(pairs.cosines()), pairs.own)
    # Where texts separate the things perfectly, the fit has no end; these are the manifest's.
    limits = {'cosine': (-1, 1), 'scale': (1e-4, 10), 'margin': (1e-4, 10)}
    return {key: round(float(np.clip(value, *limits[key])), 4)
            for key, value in zip(limits, found)}


def language_section(encoder: TextEncoder, labels: Sequence[str],
                     temperature: float) -> dict[str, Any]:
    """
    Return the section before its threshold is chosen; see bundle.LanguageInfo.

    labels: names of the model's classes; temperature: that grounding learned.
    """
    return {'space': encoder.space, 'dim': encoder.dim, 'temperature': round(temperature, 5),
            'background': background_things(labels),
            'same_meaning': fit_same_meaning(encoder), 'objectness': 1.0, 'threshold': 0.5,
            'operating_point': 'not calibrated: no labelled set with these classes was there',
            'ensemble': None}


def calibration_wordings(classes: Sequence[str]) -> tuple[Wording, ...]:
    """
    Return what the default threshold is chosen on: other words for the classes, absent things.

    Words that grounding learned and those of the vocabulary, save for the held-out ones; absent
    are the vocabulary's things that mean no class.
    """
    held_out, vocabulary = held_out_words(), default_vocabulary()
    found: dict[str, Wording] = {}
    for index, name in enumerate(classes):
        concept = concept_of(name)
        texts = {*concept.words, *concept.hypernyms}
        for word in concept.words:
            texts.update(vocabulary.expand(word))
        for text in sorted(texts - held_out):
            found.setdefault(text, Wording(text, NAME, index))
    own = set(found)
    for thing in vocabulary.things:
        if own.isdisjoint(thing.same) and thing.name not in held_out:
            found.setdefault(thing.name, Wording(thing.name, 'absent', None))
    return tuple(found.values())


def choose_threshold(reader: LanguageReader, data_set: DataSet) -> tuple[float, str]:
    """
    Return the default threshold of a query's score, and in words how it was chosen.

    The one with the largest mean IoU over calibration_wordings, each asked for by its bare text,
    among those at which absent things take at most FALSE_ALARMS of the pixels on average; the
    highest one where there is none such.
    """
    asked = calibration_wordings([c.name for c in data_set.classes])
    every = max(1, len(data_set.items) // FRAMES)
    counts = count_scores(reader, data_set, asked, every=every)
    absent = np.array([w.target is None for w in asked])
    mean_iou = counts.iou()[~absent].mean(0)
    alarms = counts.false_positive_rate()[absent].mean(0)
    allowed = np.flatnonzero(alarms <= FALSE_ALARMS)
    allowed = allowed if len(allowed) else np.array([BINS - 1])
    best = int(allowed[np.argmax(mean_iou[allowed])])
    return best / BINS, (
        f'largest mean IoU ({mean_iou[best]:.3f}) of {int((~absent).sum())} wordings of the '
        f'classes on {counts.frames} frames of {data_set.title} {data_set.split}, where '
        f'{int(absent.sum())} other things take {alarms[best]:.2%} of the pixels')
