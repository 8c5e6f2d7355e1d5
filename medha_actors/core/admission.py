"""What is checked when a request arrives, and the objectives it is given."""

from __future__ import annotations

import math

from medha_actors.config import ObjectivesConfig, SchedulerConfig
from medha_actors.core.chunking import PrefillTable
from medha_actors.core.kv_plan import Grid, KvPlan
from medha_actors.core.live import LiveRequests
from medha_actors.core.page_keys import PageKeys, root_key
from medha_actors.core.request import Milestones, RequestState
from medha_actors.errors import (
    MedhaError,
    NeverFitsError,
    OverloadedError,
    RequestError,
)
from medha_actors.messages import TOKEN_BYTES, Rejected, Request, SamplingParams

RETRY_BOUNDS_S = (1.0, 60.0)
IMAGINED = Request(id="", prompt_token_ids=b"", sampling=SamplingParams(max_tokens=1))
LAST = 2**62  # a serial after all others


def rejected(error: MedhaError) -> Rejected:
    """The error as a message."""
    return Rejected(
        status=error.status,
        kind=error.kind,
        message=error.message,
        code=error.code,
        param=error.param,
        retry_after_s=error.retry_after_s,
    )


class Admission:
    """Server policy: bounds, deadlines, timeouts, tenants."""

    def __init__(
        self,
        settings: SchedulerConfig,
        objectives: ObjectivesConfig,
        cache_name: str | None,
        grid: Grid,
        table: PrefillTable,
        live: LiveRequests,
        grace_s: float,
    ) -> None:
        """`grace_s`: what batches on their way take of every default deadline."""
        self._most_waiting = settings.max_waiting_requests
        self._fair = settings.fairness.enabled
        self._objectives = objectives
        self._cache_name = cache_name
        self._table = table
        self._queue = live.queue
        self._hits = live.hits
        self._grace_s = grace_s
        self._page_tokens = grid.page_tokens
        plan = KvPlan(grid)
        self.kv_tokens = plan.capacity_tokens
        self.model_tokens = grid.max_model_len_tokens
        # the last token's KV is never needed
        self.max_tokens = min(self.model_tokens, self.kv_tokens + 1)

    def check(self, request: Request) -> None:
        """Raise RequestError for what can never run, OverloadedError when the queue is full."""
        prompt = request.prompt_tokens
        output = request.sampling.max_tokens
        if prompt < 1:
            raise RequestError("the prompt has no tokens", param="prompt")
        if output < 1:
            raise RequestError(
                f"max_tokens is {output}, must be at least 1", param="max_tokens"
            )
        if prompt + output > self.max_tokens:
            why = "" if self.max_tokens == self.model_tokens else "of KV cache"
            raise NeverFitsError("prompt", prompt, output, self.max_tokens, why=why)
        if request.resumed is not None:
            if len(request.resumed.token_ids) // TOKEN_BYTES >= output:
                raise RequestError(
                    "the request has all its tokens already", param="max_tokens"
                )
            return  # it was taken once: no queue is too full for it
        self._check_room(self._tenant_of(request))

    def _tenant_of(self, request: Request) -> str:
        """Whose share of the machine it has."""
        return request.tenant if self._fair else ""

    def _check_room(self, tenant: str) -> None:
        """A full queue has room for a tenant that has less than its part of it."""
        queue = self._queue
        waiting = queue.waiting
        if waiting < self._most_waiting:
            return
        own = queue.of(tenant)
        tenants = queue.tenants + (not own)
        if own.waiting * tenants >= self._most_waiting:
            low, high = RETRY_BOUNDS_S
            retry = math.ceil(min(high, max(low, queue.work_s() / 2)))
            raise OverloadedError(
                f"{waiting} requests are waiting, the queue takes {self._most_waiting}",
                retry_after_s=retry,
            )

    def admit(
        self, request: Request, serial: int, drag: float, now: float
    ) -> RequestState:
        """The state of a new request with its objectives: the client's within the server's bounds,
        or ours, which follow from the work that the cache does not save, from the way and from the
        load. `drag`: seconds that pass for one of its work.

        Ours does not follow from what is waiting, nor from what is announced: the announcement says
        what the order will do, so an order that heeds a deadline made of it would chase itself.
        Whoever found a queue would be put behind those who come later, would be announced later
        for that, and would be in time whenever the first token came.
        """
        state = RequestState(
            request=request,
            serial=serial,
            milestones=Milestones(request.arrived_at, request.arrived_at),
            tpot_s=self._tpot_s(request),
            timeout_at=math.inf,
            prompt=request.prompt_tokens,
            goal=request.prompt_tokens,
            tenant=self._tenant_of(request),
            drag=drag,
            grace_s=self._grace_s,
        )
        if self._cache_name is not None and request.cache:
            root = root_key(self._cache_name, "", request.cache_salt)
            state.keys = PageKeys(root, self._page_tokens, state.tokens)
        if request.resumed is not None:
            state.resume(request.resumed)
        self._hits.look(state)
        state.total_work_s = self._table.seconds(*state.work)
        state.remaining_s = state.total_work_s
        state.load_s = self._table.load_s(*state.work)
        self._limit(state, now)
        return state

    def _tpot_s(self, request: Request) -> float:
        """The client's within the server's bound, or ours."""
        asked_s = request.objectives.tpot_s
        if asked_s is None:
            return self._objectives.tpot_s
        return max(asked_s, self._objectives.min_tpot_s)

    def _limit(self, state: RequestState, now: float) -> None:
        """Set when a request is to have its first token, and when it has to end."""
        ours = self._objectives
        asked = state.request.objectives
        arrived_at = state.request.arrived_at
        if asked.ttft_s is not None:
            ttft_s = min(max(asked.ttft_s, ours.min_ttft_s), ours.max_timeout_s)
        else:
            work_s = self._table.seconds(
                state.hit, state.prompt, min(state.stored, state.prompt)
            )
            idle_s = state.drag * work_s + self._path_s(state.request, work_s, now)
            ttft_s = self._ttft_s(idle_s)
        state.milestones.deadline_at = arrived_at + ttft_s
        timeout_s = ours.default_timeout_s
        if asked.timeout_s is not None:
            timeout_s = min(asked.timeout_s, ours.max_timeout_s)
        if timeout_s is not None:
            state.timeout_at = arrived_at + timeout_s

    def imagined(
        self, prompt: int, tenant: str, drag: float, now: float
    ) -> RequestState:
        """A request that might come now, behind all others, with so many tokens of which none is
        cached; nothing is done for it."""
        work_s = self._table.seconds(0, prompt)
        return RequestState(
            request=IMAGINED,
            serial=LAST,
            milestones=Milestones(now, now + self._ttft_s(drag * work_s)),
            tpot_s=self._objectives.tpot_s,
            timeout_at=math.inf,
            prompt=prompt,
            goal=prompt,
            tenant=tenant,
            total_work_s=work_s,
            remaining_s=work_s,
            load_s=self._table.load_s(0, prompt),
            drag=drag,
            grace_s=self._grace_s,
        )

    def _ttft_s(self, idle_s: float) -> float:
        """The objective for a client that asks for none. `idle_s`: when its first token would be
        there if it were alone."""
        ours = self._objectives
        return max(ours.ttft_multiplier * idle_s, ours.ttft_floor_s) + self._grace_s

    def _path_s(self, request: Request, work_s: float, now: float) -> float:
        """Seconds that an idle request spends outside the engine: the way in is known, the way out
        is learned. What takes longer than the prefill itself is no path but a fault."""
        came_s = max(0.0, now - request.arrived_at)
        return min(came_s, work_s) + min(request.way_s, work_s)
