"""What the scheduler's rules of order and of admission are set to: `scheduler.order` and
`scheduler.admission` of the configuration (medha_actors/config.py has the rest)."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from medha_actors.messages import Late


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of the tree of configuration."""


class OrderConfig(Section, frozen=True):
    """Parameters of single policies (core/policies.py has the rules)."""

    # dspf, aspf: how much later than its deadline a prefill is put, in multiples of its total work
    ageing_works: Annotated[float, Meta(ge=0.0, le=1000.0)] = 18.5
    # aspf: so many more for each prefill of the typical length that is waiting
    ageing_per_backlog: Annotated[float, Meta(ge=0.0, le=1000.0)] = 4.0
    # aspf: and no more than this, which bounds how long a prefill can starve
    most_ageing_works: Annotated[float, Meta(ge=0.0, le=100_000.0)] = 200.0
    # boost, dboost: how fast long waits become rare; None: learned from the arrivals
    boost_decay_per_s: Annotated[float, Meta(ge=1e-5, le=1000.0)] | None = None
    # boost, dboost: a longer backlog counts as so much, which bounds how long a prefill can starve
    boost_longest_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 300.0
    # preflow, dpreflow: waiting for so long is worth half the work
    preflow_doubling_s: Annotated[float, Meta(ge=0.01, le=3600.0)] = 10.0
    # guardc: how late a lost prefill may become before it is served next, in multiples of its work
    guard_works: Annotated[float, Meta(ge=0.0, le=1000.0)] = 8.0


class AdmissionConfig(Section, frozen=True):
    """What becomes of requests whose first token cannot come in time (docs/overload.md)."""

    # accept: they wait; shed: 429 with the time until such a request would be in time; queue: they
    # wait behind those who can be in time. A client may say otherwise (`medha: {late: ...}`).
    late: Late = "accept"
    # in time, for clients that ask for nothing: so long, and so many times the idle prefill
    patience_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 0.5
    patience_works: Annotated[float, Meta(ge=0.0, le=1000.0)] = 5.0
    # with a longer idle prefill it is a document, whose client waits: it is queued, not shed
    document_s: Annotated[float, Meta(ge=0.0, le=86_400.0)] = 2.0
    # nobody is told to come back later than that
    longest_retry_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 3600.0


Weight = Annotated[float, Meta(ge=0.01, le=100.0)]


class FairnessConfig(Section, frozen=True):
    """How tenants share the machine (docs/fairness.md)."""

    enabled: bool = True  # False: all requests are one tenant's
    # of a tenant's share, 1 for those that are not named; names as in the file of API keys
    weights: Annotated[dict[str, Weight], Meta(max_length=1024)] = msgspec.field(
        default_factory=dict
    )
    # of what one leaves to others: how much it can have later before its turn
    most_advance_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 5.0
    # whether x-llm-d-inference-fairness-id names the tenant: only behind a gateway that sets it
    gateway_header: bool = False
