"""What is told of tenants, and that the names are bounded."""

import msgspec
from local import LocalController
from test_metrics import scrape, value

from medha_actors.core.tally import NAMED, NOBODY, OTHERS, Tally


async def test_each_tenants_work_and_waits_are_told():
    controller = LocalController(stages=2)
    controller.add("long", 20_000, tenant="greedy")
    controller.add("short", 500, tenant="modest")
    controller.add("plain", 500)
    controller.run(1)
    waiting = await scrape(controller)
    assert (
        value(waiting, "medha_tenant_requests", tenant="greedy", state="waiting") == 1
    )
    assert value(waiting, "medha_tenant_backlog_seconds", tenant="greedy") > 0
    controller.run()
    families = await scrape(controller)
    greedy = value(families, "medha_tenant_prefill_seconds", tenant="greedy")
    modest = value(families, "medha_tenant_prefill_seconds", tenant="modest")
    assert greedy > 10 * modest > 0
    assert value(families, "medha_tenant_prefill_seconds", tenant=NOBODY) > 0
    ttft = "medha_tenant_time_to_first_token_seconds"
    assert value(families, ttft, f"{ttft}_count", tenant="modest") == 1


async def test_without_tenants_nothing_is_told_of_them():
    controller = LocalController()
    controller.add("a", 300)
    controller.run()
    assert "medha_tenant_requests" not in await scrape(controller)


def test_only_so_many_have_names_of_their_own():
    tally = Tally(["weighty"])
    assert not tally
    names = {tally.name(f"t{number}") for number in range(10 * NAMED)}
    assert len(names) == NAMED + 1
    assert OTHERS in names
    assert tally.name("weighty") == "weighty"
    assert tally.name("t0") == "t0"
    assert tally.name("") == NOBODY


async def test_the_snapshot_of_the_live_page_has_them():
    controller = LocalController()
    controller.add("a", 300, tenant="ann")
    controller.add("b", 300, tenant="bob")
    snapshot = await controller.snapshot(0)
    told = msgspec.to_builtins(snapshot)["stats"]["tenants"]
    assert [(one["tenant"], one["waiting"]) for one in told] == [("ann", 1), ("bob", 1)]
