"""What was said in each session so far, as JSON: the prompt of its next turn.

A turn's answer is taken as the server sent it, and sent back in the next turn, as chats do. Its
text need not become the same tokens again, so the lengths of later turns are known to a few tokens
only, and a prefix cache may miss the end of an answer.
"""

from __future__ import annotations

import msgspec

from loadgen.records import PlannedRequest, RequestRecord, Turn
from loadgen.send.prompts import PromptMaker


class Talks:
    """The sessions of a load, each as long as it goes on."""

    def __init__(self, prompts: PromptMaker, chat: bool) -> None:
        self._prompts = prompts
        self._chat = chat
        # by session: message, answer, message ...; each the inside of a JSON string
        self._said: dict[int, list[bytes]] = {}

    def prompt(self, request: PlannedRequest, turn: Turn) -> bytes:
        """The prompt's field in a turn's body; its message is said with it."""
        if not turn.number:
            self._said[turn.session] = []
        said = self._said[turn.session]
        said.append(self._prompts.content(request))
        if not self._chat:
            return b'"prompt":"%b"' % b"".join(said)
        messages = []
        for number, content in enumerate(said):
            role = b"assistant" if number % 2 else b"user"
            messages.append(b'{"role":"%b","content":"%b"}' % (role, content))
        return b'"messages":[%b]' % b",".join(messages)

    def answered(self, record: RequestRecord, turn: Turn) -> None:
        """An answer is over: it belongs to the history, unless nobody goes on."""
        text = "".join(record.answer or ())
        record.answer = None
        if record.completed and turn.number + 1 < turn.count:
            self._said[turn.session].append(msgspec.json.encode(text)[1:-1])
        else:
            self._said.pop(turn.session, None)
