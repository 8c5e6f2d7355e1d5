"""How fast a server is with one request: measured with three or so before a load whose lengths or
rate are to suit it."""

from __future__ import annotations

from loadgen.errors import LoadgenError
from loadgen.records import Ask, PlannedRequest, RequestRecord
from loadgen.workload.suiting import USUAL_CONTEXT, ServerFound

_SHORT_PROMPT = 32
_SHORT_ANSWER = 16
_PROMPTS = (256, 1024)
_ENOUGH_S = 0.25  # a prompt that takes so long tells the speed


async def measure_server(ask: Ask, context: int | None, overhead: int) -> ServerFound:
    """`ask` sends one request and waits for its end. Raises LoadgenError if one fails."""
    room = (context or USUAL_CONTEXT) // 2
    length = min(
        max(_SHORT_PROMPT, overhead + _SHORT_PROMPT // 2), max(room, overhead + 1)
    )
    record = await _asked(ask, length, min(_SHORT_ANSWER, room))
    ttft = _ttft(record)
    token_s = ttft
    events = record.token_times
    if len(events) > 1 and record.generated_tokens > 1:
        token_s = (events[-1] - events[0]) / (record.generated_tokens - 1)
    for longer in _PROMPTS:
        if ttft >= _ENOUGH_S or not length < longer <= room:
            break
        length = longer
        ttft = _ttft(await _asked(ask, length, 1))
    return ServerFound(
        context=context or USUAL_CONTEXT,
        overhead=overhead,
        prompt_tokens_per_s=length / max(ttft, 1e-6),
        token_s=max(token_s, 1e-6),
    )


async def _asked(ask: Ask, prompt_tokens: int, tokens: int) -> RequestRecord:
    request = PlannedRequest(
        index=prompt_tokens,
        prompt_tokens=prompt_tokens,
        output_tokens=tokens,
        kind="speed",
    )
    record = await ask(request)
    if not record.completed:
        reason = record.error or "it was given up"
        raise LoadgenError(
            f"measuring the server's speed with {prompt_tokens} prompt tokens: {reason}; give "
            "--input-len, --output-len and --request-rate to go without"
        )
    return record


def _ttft(record: RequestRecord) -> float:
    """Of an answer of one token, which may have no text of its own: then its end tells when it
    came."""
    first = record.token_times[0] if len(record.token_times) else record.ended_at
    assert first is not None
    assert record.sent_at is not None
    return first - record.sent_at
