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
How open_clip cleans texts, as steps of the library tokenizers.

open_clip cleans with ftfy before anything else. What that does to texts as queries are spelt
(Unicode NFKC, lower case, no control characters) is repeated here: straight quotes for curly ones.
Two of its repairs have no form in a tokenizers file: HTML entities and wrongly decoded UTF-8 are
read as they are written.
"""

from __future__ import annotations

import re
import string
from typing import Any

from tokenizers import normalizers, Regex

# The single and double quotes that ftfy makes straight.
SINGLE_QUOTES, DOUBLE_QUOTES = '[\u02bc\u2018-\u201b]', '[\u201c-\u201f]'
PUNCTUATION = f'[{re.escape(string.punctuation)}]'


def cleaning_steps(kind: str) -> list[Any]:
    """
    Return the steps of a cleaning that open_clip has a name for, normalizers of tokenizers.

    kind: whitespace, lower, or canonicalize, which takes out ASCII punctuation too. Blanks around
    the text are left, but for those that canonicalize itself makes.
    """
    quotes = [normalizers.Replace(Regex(SINGLE_QUOTES), "'"),
              normalizers.Replace(Regex(DOUBLE_QUOTES), '"'), normalizers.NFC()]
    blanks, lower = normalizers.Replace(Regex(r'\s+'), ' '), normalizers.Lowercase()
    return {
        'whitespace': [*quotes, blanks],
        'lower': [*quotes, blanks, lower],
        'canonicalize': [*quotes, normalizers.Replace('_', ' '),
                         normalizers.Replace(Regex(PUNCTUATION), ''), lower, blanks,
                         normalizers.Strip()]}[kind]


def cleaning_of(open_clip: Any, tokenizer: Any) -> str:
    """Return the name of the cleaning that a tokenizer of open_clip does."""
    return next(kind for kind in ('whitespace', 'lower', 'canonicalize')
                if tokenizer.clean_fn is open_clip.tokenizer.get_clean_fn(kind))
