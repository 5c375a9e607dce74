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
Ask in words: what is asked for, how it is worded, and what the words become.

``queries`` reads a message into queries, ``vocabulary`` adds other wordings, a ``TextEncoder``
turns texts into vectors, ``QueryBook`` holds the live set, and ``QueryScorer`` compares it with
the regions of a model; ``RegionNamer`` has names for regions of no known class.
``onnx_encoder``, which is not imported here, has the encoder that needs ``tokenizers``.
"""

from owseg_ros.language.book import QueryBook, QuerySet, QueryUpdate
from owseg_ros.language.cache import CachingTextEncoder
from owseg_ros.language.contract import TextEncoder, TextEncoderError
from owseg_ros.language.naming import NamedRegion, RegionNamer
from owseg_ros.language.queries import parse_queries, ParsedQueries, Query, Rejection
from owseg_ros.language.scores import LanguageError, PreparedQueries, QueryScorer
from owseg_ros.language.vocabulary import (
    default_vocabulary, load_vocabulary, NO_EXPANSION, Vocabulary, VocabularyError)

__all__ = [
    'CachingTextEncoder', 'default_vocabulary', 'LanguageError', 'load_vocabulary', 'NamedRegion',
    'NO_EXPANSION', 'parse_queries', 'ParsedQueries', 'PreparedQueries', 'Query', 'QueryBook',
    'QueryScorer', 'QuerySet', 'QueryUpdate', 'RegionNamer', 'Rejection',
    'TextEncoder', 'TextEncoderError', 'Vocabulary', 'VocabularyError']
