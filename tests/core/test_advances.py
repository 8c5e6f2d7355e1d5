"""What tenants' shares keep of each: its virtual time, and the advance that it has for what it left
to others."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.shares import FIRST, KEPT, SAVED, Shares


def test_an_advance_is_what_one_left_to_others_and_is_used_up():
    shares = Shares({}, 4.0)
    for tenant in ("a", "b"):
        assert shares.of(tenant).advance_s == FIRST * 4.0
        for _ in range(5):  # nobody waits five times
            shares.joined(tenant)
            shares.left(tenant)
    for tenant in ("a", "b"):
        shares.joined(tenant)
        assert shares.of(tenant).advance_s == 4.0
    assert shares.pays(shares.of("a").advance_s, 0.5, 0.5)
    assert not shares.pays(shares.of("a").advance_s, 8.0, 0.5)  # the end of a long one
    shares.served("a", 4.0, paid=True)
    assert shares.of("a").virtual_s == 0.0
    assert not shares.pays(shares.of("a").advance_s, 0.5, 0.5)
    shares.served("b", 3.5, paid=True)
    shares.left("b")
    for _ in range(3):
        shares.served("a", 1.0, paid=False)
    assert (
        shares.of("a").advance_s == 0.0
    )  # it always has something to do: it leaves nothing
    shares.joined("b")
    assert shares.of("b").virtual_s == 2.0  # where a stood when it was served last
    assert (
        shares.of("b").advance_s == 2.5
    )  # 0.5 were left, and it was not there for 2 s
    for _ in range(9):
        shares.left("b")
        shares.served("a", 1.0, paid=False)
        shares.joined("b")
    assert shares.of("b").advance_s == 4.0  # and no more


def test_decodes_count_while_anybody_waits_and_only_then():
    shares = Shares({"a": 2.0}, 1.0)
    shares.charged("a", 5.0)
    assert len(shares) == 0
    shares.joined("b")
    shares.charged("a", 5.0)
    assert shares.of("a").virtual_s == 2.5
    shares.left("b")
    assert len(shares) == 0


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0.001, 2.0)), max_size=400))
def test_who_has_nothing_to_do_is_forgotten(steps):
    shares = Shares({}, 0.5)
    shares.joined("always")
    for number, seconds in steps:
        tenant = f"t{number}"
        shares.joined(tenant)
        shares.served(tenant, seconds, paid=False)
        shares.left(tenant)
        shares.served("always", seconds + 1.0, paid=False)
        assert len(shares) <= KEPT + 3


def test_only_so_many_advances_are_remembered():
    shares = Shares({}, 1.0)
    for number in range(3 * SAVED):
        shares.joined(f"t{number}")
        shares.left(f"t{number}")
    assert shares.of("new").advance_s == FIRST
    assert shares.of(f"t{3 * SAVED - 1}").advance_s == pytest.approx(2 * FIRST)
    assert shares.of("t0").advance_s == FIRST
