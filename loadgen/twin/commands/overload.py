"""`medha-loadgen overload`: floods of one kind of prompt in the twin, with and without admission,
and clients that come back when they are told to."""

from __future__ import annotations

import itertools
from typing import Annotated

import msgspec

from loadgen.flags import flag
from loadgen.show.output import Say
from loadgen.show.tables import as_text
from loadgen.twin.admission.floods import Flood, Flooded, capacity_of, play_flood


class OverloadOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the command is given."""

    policies: Annotated[tuple[str, ...], flag(metavar="NAME")] = (
        "lars",
        "spf",
        "dspf",
        "dboost",
    )
    late: Annotated[tuple[str, ...], flag("accept, shed, queue", metavar="MODE")] = (
        "accept",
        "shed",
    )
    prompts: Annotated[
        tuple[int, ...], flag("lengths in tokens", metavar="TOKENS", ge=1)
    ] = (
        100,
        400,
    )
    loads: Annotated[
        tuple[float, ...], flag("of the capacity", metavar="TIMES", gt=0, le=100)
    ] = (
        1.0,
        2.0,
        4.0,
        10.0,
    )
    output: Annotated[int, flag("tokens of an answer", ge=1)] = 32
    within_ms: Annotated[float, flag("when the first token is in time", gt=0)] = 1000.0
    seconds: Annotated[float, flag("of the flood", gt=0, le=3600)] = 15.0
    returns: Annotated[int, flag("times a client comes back", ge=0, le=100)] = 0
    seed: Annotated[int, flag("of arrivals and noise")] = 0


def overload(asked: OverloadOptions, say: Say) -> int:
    """The whole command."""
    rows = []
    for prompt in asked.prompts:
        plain = Flood(
            policy="fcfs_chunked",
            late="accept",
            prompt_tokens=prompt,
            load=1.0,
            output_tokens=asked.output,
            within_s=asked.within_ms / 1000,
            seconds=asked.seconds,
            returns=asked.returns,
            seed=asked.seed,
        )
        capacity = capacity_of(plain)
        say(f"{prompt} tokens: capacity {capacity:.3g} requests/s")
        for policy, late, load in itertools.product(
            asked.policies, asked.late, asked.loads
        ):
            flood = msgspec.structs.replace(plain, policy=policy, late=late, load=load)
            title = f"{prompt} tokens, {policy}, {late}, {load:g}x"
            rows.append([title, *_shown(play_flood(flood, capacity))])
    header = [
        "",
        "good/s",
        "of capacity",
        "accepted in time",
        "true",
        "late",
        "TBT P99",
    ]
    header += ["Retry-After P50", "came back", "in time then"]
    print(as_text((header, rows)))
    return 0


def _shown(found: Flooded) -> list[str]:
    row = [f"{found.goodput:.2f}", f"{100 * found.goodput / found.capacity:.0f}%"]
    row += [f"{100 * share:.0f}%" for share in (found.in_time, found.true, found.late)]
    row += [f"{1000 * found.tbt_p99_s:.0f} ms"]
    row += [
        "-" if not found.refused else f"{found.retry_p50_s:.2f} s",
        str(found.came_back),
    ]
    return [*row, f"{100 * found.returned_in_time:.0f}%" if found.came_back else "-"]
