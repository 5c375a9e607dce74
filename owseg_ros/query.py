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
"""What `owseg query` sends to a running node, and what it says about the answer."""

from __future__ import annotations

from dataclasses import dataclass
import json
from typing import Any
import uuid

from owseg_ros.language.live import Answer, LanguageState, READY
from owseg_ros.language.queries import parse_queries


@dataclass(frozen=True)
class QueryOptions:
    """
    What to ask.

    text: a comma list or JSON, as on the topic (language.queries); None with clear for an empty
    set, without it to ask nothing and only hear what is live. namespace: of the node; seconds:
    how long to look for it, and to wait for its answer.
    """

    text: str | None = None
    clear: bool = False
    namespace: str = ''
    seconds: float = 10.0


def run_query(options: QueryOptions) -> dict[str, Any]:
    """
    Ask and return the status that answers, as on query/status.

    What has nothing in it that could be taken is answered here, with version None: no node hears
    of it. Raises NoAnswerError of nodes.asking.
    """
    if options.text is not None:
        parsed = parse_queries(options.text)
        if not parsed.queries and not parsed.clear:
            return {**Answer(LanguageState(), rejected=parsed.rejected).to_dict(),
                    'version': None, 'state': ''}
    from owseg_ros.nodes.asking import exchange
    message = _message(options)
    status = exchange(message, options.namespace, options.seconds)
    if message is None:
        # What became of the last message is the business of who sent it.
        status |= {'message_id': None, 'accepted': [], 'rejected': [],
                   'error': '' if status['state'] == READY else status['error']}
    return status


def _message(options: QueryOptions) -> dict[str, Any] | None:
    """Return a message with an id, by which its answer is known."""
    message_id = {'message_id': uuid.uuid4().hex}
    if options.text is None:
        return {**message_id, 'queries': []} if options.clear else None
    text = options.text.strip()
    if not text.startswith(('{', '[')):
        return {**message_id, 'queries': [entry for entry in text.split(',') if entry.strip()]}
    message = json.loads(text)
    return {**message_id, 'queries': message} if isinstance(message, list) else {
        **message, **message_id}
