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
"""What `owseg teach` sends to a running node, and what it says about the answer."""

from __future__ import annotations

from dataclasses import dataclass
import json
from typing import Any
import uuid

from owseg_ros.novelty.live import TeachingAnswer, TeachingState
from owseg_ros.novelty.messages import parse_teaching


@dataclass(frozen=True)
class TeachOptions:
    """
    What to teach, and where.

    message: as on the topic (novelty.messages), without message_id; None to ask for nothing.
    load, save: call the services of the node, before and after. namespace: of the node; seconds:
    how long to look for it, and to wait for its answer.
    """

    message: dict[str, Any] | None = None
    load: bool = False
    save: bool = False
    namespace: str = ''
    seconds: float = 10.0


def run_teach(options: TeachOptions) -> dict[str, Any]:
    """
    Do what options say and return the status that answers, as on teach/status.

    It has two entries more, loaded and saved: what the services said, None where they were not
    called; what they refused is the error. What cannot be taken by any node is answered here,
    with version None. Raises NoAnswerError of nodes.asking.
    """
    message = {'list': True} if options.message is None else options.message
    message = {**message, 'message_id': uuid.uuid4().hex}
    rejected = parse_teaching(json.dumps(message)).rejected
    nothing = {'loaded': None, 'saved': None}
    if rejected is not None:
        return {**TeachingAnswer(TeachingState(), rejected=(rejected,)).to_dict(),
                'version': None, 'state': '', **nothing}
    from owseg_ros.nodes.asking import call, exchange, TEACHING
    if options.load:
        success, nothing['loaded'] = call('load_prototypes', options.namespace, options.seconds)
        if not success:
            return {**_status(options), **nothing, 'error': nothing['loaded']}
    status = exchange(message, options.namespace, options.seconds, TEACHING)
    if options.save and not status['rejected']:
        success, nothing['saved'] = call('save_prototypes', options.namespace, options.seconds)
        # The status after it, which says that nothing is unsaved.
        status = {**_status(options), 'accepted': status['accepted'], 'shot': status['shot'],
                  **({} if success else {'error': nothing['saved']})}
    return {**status, **nothing}


def _status(options: TeachOptions) -> dict[str, Any]:
    from owseg_ros.nodes.asking import exchange, TEACHING
    return exchange({'list': True, 'message_id': uuid.uuid4().hex}, options.namespace,
                    options.seconds, TEACHING)
