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
"""
Whether a text means a thing of the background: the relation r(g, q) on words that it has not seen.

Cross-validation on texts alone, without pictures and without held-out words: in each fold the
relation is fitted on the texts of some things and asked about those of the others. Beside the
relation of language.fit_same_meaning are other ones, so that a change can be judged.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from owseg_ros.language import TextEncoder
from owseg_training.analysis.run import write
from owseg_training.data.words import concepts, held_out_words
from owseg_training.grounding import word_embeddings
from owseg_training.language import (
    fit_votes, misfit, same_meaning, text_pairs, TextPairs)

FOLDS = 10
# Votes from which a text counts as meaning the thing; where the thing alone is, this is the score.
FOUND = 0.4
NEIGHBOURS = 10
CONTEXTS = ('{}', 'a photo of a {}', 'a {} on the street', 'the {} seen from a car')

Nearness = Callable[[TextPairs, np.ndarray], np.ndarray]


def _nearest(pairs: TextPairs, cosines: np.ndarray) -> np.ndarray:
    return pairs.nearest(cosines)


def _with_mean(pairs: TextPairs, cosines: np.ndarray) -> np.ndarray:
    """Return the mean of the nearest text's cosine and that of all texts of a thing."""
    others = np.where(cosines == -1, np.nan, cosines)
    mean = np.stack([np.nanmean(others[:, mine], axis=1) for mine in pairs.own.T], 1)
    return (pairs.nearest(cosines) + mean) / 2


def _less_hubs(pairs: TextPairs, cosines: np.ndarray) -> np.ndarray:
    """Return cosines less half of the mean one with the things next to the nearest."""
    nearest = pairs.nearest(cosines)
    around = np.sort(nearest, axis=1)[:, -NEIGHBOURS - 1:-1].mean(1, keepdims=True)
    return nearest - around / 2


RELATIONS: dict[str, Nearness] = {
    'nearest text (shipped)': _nearest, 'nearest and mean text': _with_mean,
    'nearest text, less the neighbourhood': _less_hubs}


def hypernyms(pairs: TextPairs) -> dict[str, list[int]]:
    """Return what words.yaml says things are kinds of, with the things; no held-out words."""
    held_out, found = held_out_words(), {}
    for concept in concepts():
        things = {int(pairs.owner[i]) for i, text in enumerate(pairs.texts)
                  if text in concept.words}
        for word in concept.hypernyms:
            if word not in held_out and word not in pairs.texts and things:
                found.setdefault(word, set()).update(things)
    return {word: sorted(things) for word, things in found.items()}


def _figures(votes: np.ndarray, own: np.ndarray) -> dict[str, float]:
    return {'texts': len(votes), 'misfit': misfit(votes, own),
            'found': float((np.where(own, votes, 0).max(1) >= FOUND).mean()),
            'others': float((np.where(own, 0, votes) >= FOUND).sum() / len(votes))}


def cross_validate(encoder: TextEncoder) -> dict[str, dict[str, dict[str, float]]]:
    """
    Return figures of each relation: of synonyms, plurals and names, and of hypernyms.

    texts; misfit; found: the share whose own thing, or one of them, has FOUND of the votes;
    others: things that are not theirs and have as many, per text. A fold's things are not seen
    by its fit; hypernyms by none.
    """
    found: dict[str, dict[str, dict[str, float]]] = {}
    for title, templates in (('', ('{}',)), (', in contexts', CONTEXTS)):
        pairs = _in_contexts(encoder, text_pairs(encoder), templates)
        words = hypernyms(pairs)
        rows = _embed(encoder, list(words), templates)
        wanted = np.zeros((len(words), pairs.own.shape[1]), bool)
        for row, things in zip(wanted, words.values()):
            row[things] = True
        fold = np.random.default_rng(0).permutation(pairs.own.shape[1]) % FOLDS
        for name, nearness in RELATIONS.items():
            near, above = nearness(pairs, pairs.cosines()), nearness(pairs, pairs.cosines(rows))
            votes = np.empty_like(near)
            for number in range(FOLDS):
                unseen = fold[pairs.owner] == number
                fitted = fit_votes(near[~unseen], pairs.own[~unseen])
                votes[unseen] = same_meaning(near[unseen], *fitted)
            whole = fit_votes(near, pairs.own)
            found[name + title] = {'synonyms': _figures(votes, pairs.own),
                                   'hypernyms': _figures(same_meaning(above, *whole), wanted)}
    return found


def _embed(encoder: TextEncoder, texts: list[str], templates: tuple[str, ...]) -> np.ndarray:
    parts = [word_embeddings(encoder, [template.format(text) for text in texts]).numpy()
             for template in templates]
    mean = np.mean(parts, axis=0, dtype=np.float64)
    return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def _in_contexts(encoder: TextEncoder, pairs: TextPairs,
                 templates: tuple[str, ...]) -> TextPairs:
    return TextPairs(pairs.texts, _embed(encoder, list(pairs.texts), templates), pairs.owner)


def write_meaning(found: dict[str, Any], folder: str | Path) -> str:
    """Write meaning.md and meaning.json; return the Markdown."""
    counts = {kind: figures['texts'] for kind, figures in next(iter(found.values())).items()}
    columns = [f'{count} {kind}: {key}' for kind, count in counts.items()
               for key in ('misfit', 'found', 'others')]
    lines = ['| relation | ' + ' | '.join(columns) + ' |', '|---' * (1 + len(columns)) + '|']
    for name, kinds in found.items():
        cells = [f'{figures[key]:.3f}' for figures in kinds.values()
                 for key in ('misfit', 'found', 'others')]
        lines.append(f'| {name} | {" | ".join(cells)} |')
    write(folder, 'meaning', found, lines)
    return '\n'.join(lines)
