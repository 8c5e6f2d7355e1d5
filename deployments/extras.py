"""What vLLM adds to OpenAI's answers: token ids, and the prompt's log-probabilities."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from deployments.detokenize import TokenTable
from deployments.job import Job
from deployments.outbox import Addition
from deployments.replies import KnownToken

PromptLogprobs = list[dict[str, KnownToken] | None]
_LEAST_LOGPROB = -9999.0  # JSON has no infinity


class Extras:
    """What one job's answer says beside text, where it was asked for."""

    def __init__(self, job: Job, table: TokenTable) -> None:
        self._job = job
        self._table = table
        self._has_prompt: set[int] = set()  # choices that have told their prompt

    def token_ids(self, addition: Addition) -> list[int] | UnsetType:
        """Of the tokens in this addition."""
        if not self._job.body.return_token_ids:
            return UNSET
        return [token.token_id for token in addition.tokens]

    def prompt_token_ids(self, index: int) -> list[int] | UnsetType:
        """Of a choice's prompt; once."""
        if not self._job.body.return_token_ids or index in self._has_prompt:
            return UNSET
        self._has_prompt.add(index)
        return list(self._job.choices[index].prompt)

    def prompt_logprobs(self, addition: Addition) -> PromptLogprobs | UnsetType:
        """Of a whole addition's prompt: for each token its own and the likeliest ones', by id; the
        first token has none."""
        if self._job.body.prompt_logprobs is None:
            return UNSET
        prompt = self._job.choices[addition.index].prompt
        told: PromptLogprobs = [None]
        for part in sorted(addition.prompt_logprobs, key=lambda part: part.start):
            known = prompt[part.start + 1 : part.start + 1 + len(part.entries)]
            for token_id, (logprob, top) in zip(known, part.entries, strict=False):
                told.append(self._entry(token_id, logprob, top))
        return told

    def _entry(
        self, token_id: int, logprob: float, top: tuple[tuple[int, float], ...]
    ) -> dict[str, KnownToken]:
        entry: dict[str, KnownToken] = {}
        for rank, (likely_id, value) in enumerate(top, 1):
            entry[str(likely_id)] = self._known(likely_id, value, rank)
        if str(token_id) not in entry:
            entry[str(token_id)] = self._known(token_id, logprob, None)
        return entry

    def _known(self, token_id: int, logprob: float, rank: int | None) -> KnownToken:
        return KnownToken(
            logprob=max(logprob, _LEAST_LOGPROB),
            rank=rank,
            decoded_token=self._table.text_of(token_id),
        )
