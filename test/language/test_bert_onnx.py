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
import math

import numpy as np
from owseg_ros.language.contract import TextEncoderError
from owseg_ros.language.encoder_folder import write_text_encoder_folder
from owseg_ros.language.onnx_encoder import OnnxTextEncoder
import pytest

pytest.importorskip('onnx', reason='the extra `language` is not installed')
# These need onnx.
from owseg_ros.language.bert_onnx import mean_pooled_bert  # noqa: E402, I100
from support.tiny_bert import (  # noqa: E402
    BERT_CONFIG, BERT_MANIFEST, bert_tokenizer, bert_weights)

TEXTS = ['dog', 'an orange traffic cone', 'Straße', '', 'long text ' * 30]


def by_hand(weights: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    """Return the embedding of one text in float64; a second reading of the paper's equations."""
    weights = {name: array.astype(np.float64) for name, array in weights.items()}

    def norm(name, x):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * weights[f'{name}.weight'] + weights[f'{name}.bias']

    def linear(name, x):
        return x @ weights[f'{name}.weight'].T + weights[f'{name}.bias']

    x = norm('embeddings.LayerNorm', weights['embeddings.word_embeddings.weight'][ids]
             + weights['embeddings.position_embeddings.weight'][:len(ids)]
             + weights['embeddings.token_type_embeddings.weight'][0])
    layer = 'encoder.layer.0'
    query, key, value = (linear(f'{layer}.attention.self.{part}', x)
                         for part in ('query', 'key', 'value'))
    heads = []
    for columns in (slice(0, 8), slice(8, 16)):
        scores = np.exp(query[:, columns] @ key[:, columns].T / math.sqrt(8))
        heads.append(scores / scores.sum(1, keepdims=True) @ value[:, columns])
    x = norm(f'{layer}.attention.output.LayerNorm',
             x + linear(f'{layer}.attention.output.dense', np.concatenate(heads, 1)))
    inner = linear(f'{layer}.intermediate.dense', x)
    inner *= 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    x = norm(f'{layer}.output.LayerNorm', x + linear(f'{layer}.output.dense', inner))
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_the_graph_computes_a_bert(tmp_path):
    weights = bert_weights()
    write_text_encoder_folder(tmp_path, BERT_MANIFEST, mean_pooled_bert(BERT_CONFIG, weights),
                              bert_tokenizer().to_str())
    encoder = OnnxTextEncoder(tmp_path)
    ids, mask = encoder.tokens(TEXTS)
    assert ids.shape == (len(TEXTS), 32) and not mask.all()
    expected = np.array([by_hand(weights, row[kept == 1]) for row, kept in zip(ids, mask)])
    # Together, so that short texts are padded, and alone.
    np.testing.assert_allclose(encoder.encode(TEXTS), expected, atol=2e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[:1]), expected[:1], atol=2e-6)
    assert np.linalg.norm(expected[0] - expected[1]) > 0.05


@pytest.mark.parametrize('changes, says', [
    ({'hidden_act': 'relu'}, "hidden_act of the BERT is 'relu'; only 'gelu'"),
    ({'position_embedding_type': 'relative_key'}, 'position_embedding_type'),
    ({'num_attention_heads': 3}, 'no multiple of num_attention_heads'),
    ({'hidden_size': '16'}, 'no whole number hidden_size'),
    ({'num_hidden_layers': 2}, 'missing encoder.layer.1.attention'),
    ({'num_hidden_layers': 0}, 'no whole number num_hidden_layers'),
    ({'vocab_size': 129}, r'word_embeddings.weight is \(128, 16\), expected \(129, 16\)')])
def test_configurations_that_do_not_fit_are_refused(changes, says):
    with pytest.raises(TextEncoderError, match=says) as error:
        mean_pooled_bert({**BERT_CONFIG, **changes}, bert_weights())
    assert '\n' not in str(error.value)


def test_weights_of_another_network_are_refused():
    weights = bert_weights()
    weights['embeddings.project.weight'] = weights.pop('encoder.layer.0.output.dense.bias')
    with pytest.raises(TextEncoderError, match='missing encoder.layer.0.output.dense.bias, '
                                               'unknown embeddings.project.weight'):
        mean_pooled_bert(BERT_CONFIG, weights)
