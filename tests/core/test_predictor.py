"""Batch times: monotone, corrected by what happened, robust to outliers."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from medha_actors.core.group_load import GroupLoad, load_of
from medha_actors.core.predictor import ExecutionModel, Profile, StageProfile
from medha_actors.messages import Span, StepMessage

costs = st.floats(0, 1e-3)
rows = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1)), min_size=1, max_size=6)
profiles = st.builds(
    StageProfile,
    rows=rows.map(tuple),
    step_s=costs,
    span_s=costs,
    pair_s=costs,
    prefill_kv_s=costs,
    decode_kv_s=costs,
    exchange_s=costs,
    head_s=costs,
    launch_s=costs.map(lambda cost: 100 * cost),
    launch_span_s=costs,
    replay_s=costs.map(lambda cost: 100 * cost),
    head_step_s=costs,
)
spans = st.lists(
    st.tuples(
        st.booleans(),
        st.integers(1, 600),
        st.integers(0, 5000),
        st.integers(1, 3),
        st.booleans(),
    ),
    max_size=8,
)


def load_from(spans):
    load = GroupLoad()
    for decode, count, cached, groups, sample in spans:
        if decode:
            load = load.with_decode(cached, sample, groups)
        else:
            load = load.with_prefill(count, cached, True, groups, sample)
    return load


@given(
    st.lists(profiles, min_size=1, max_size=3),
    spans,
    st.booleans(),
    st.integers(1, 600),
    st.integers(0, 5000),
    st.floats(0.2, 5),
    st.floats(0.2, 5),
)
def test_the_prediction_grows_with_every_span(
    stages, spans, decode, count, cached, prefill_scale, decode_scale
):
    model = ExecutionModel(Profile(tuple(stages)))
    model.prefill.scale = prefill_scale
    model.decode.scale = decode_scale
    load = load_from(spans)
    more = load.with_decode(cached) if decode else load.with_prefill(count, cached)
    assert model.predict(more) >= model.predict(load) * (1 - 1e-9)
    if not decode:
        larger = load.with_prefill(count + 1, cached)
        assert model.predict(larger) >= model.predict(more) * (1 - 1e-9)


@given(st.integers(0, 5000), st.integers(1, 300), st.integers(1, 300))
def test_an_extended_span_costs_what_a_longer_one_does(cached, first, second):
    whole = GroupLoad().with_prefill(first + second, cached)
    extended = GroupLoad().with_prefill(first, cached)
    extended = extended.with_prefill(second, cached + first, extend=True)
    assert msgspec.structs.astuple(extended) == pytest.approx(
        msgspec.structs.astuple(whole)
    )


def test_rows_are_interpolated_and_continued():
    stage = StageProfile(rows=((1, 0.010), (3, 0.030), (5, 0.020), (9, 0.060)))
    model = ExecutionModel(Profile((stage,)))
    seconds = [model.base(GroupLoad(rows=count)) for count in range(12)]
    assert seconds == pytest.approx(
        [0, 0.01, 0.02, 0.03, 0.03, 0.03, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08]
    )


def test_a_batch_takes_as_long_as_its_slowest_stage():
    quick = StageProfile(rows=((1, 0.001),))
    slow = StageProfile(rows=((1, 0.001),), head_s=0.005)
    model = ExecutionModel(Profile((quick, quick, slow)))
    load = GroupLoad().with_decode(0)
    assert model.stage_seconds(load) == pytest.approx((0.001, 0.001, 0.006))
    assert model.predict(load) == pytest.approx(0.006)


def test_the_correction_follows_the_machine_and_ignores_outliers():
    model = ExecutionModel.analytic()
    for step in range(40):
        model.observe(1.0, 1.0, 50.0 if step % 10 == 9 else 1.4, prefill=True)
    assert model.prefill.scale == pytest.approx(1.4)
    assert model.decode.scale == 1.0
    for _ in range(40):
        model.observe(1.0, 1.4, 0.7, prefill=True)
    assert model.prefill.scale == pytest.approx(0.7)
    model.observe(0.0, 0.0, 0.0, prefill=True)  # nothing to learn
    p50, p90 = model.errors()
    assert 0 < p50 <= p90


def test_the_margin_covers_nine_batches_in_ten_of_those_with_prefill():
    model = ExecutionModel.analytic()
    assert model.margin == 1.0
    for step in range(200):
        model.observe(1.0, 1.0, 1.2 if step % 5 == 0 else 1.0, prefill=True)
        model.observe(1.0, 1.0, 9.0 if step % 5 == 0 else 1.0, prefill=False)
    assert (model.prefill.scale, model.margin) == (
        pytest.approx(1.0),
        pytest.approx(1.2),
    )
    for step in range(200):
        model.observe(1.0, 1.0, 50.0 if step % 5 == 0 else 1.0, prefill=True)
    assert model.margin == 1.5


def test_prefill_beside_decodes_never_makes_them_quicker():
    model = ExecutionModel.analytic(token_s=1e-3)
    model.prefill.scale = 0.5
    model.decode.scale = 2.0
    decodes = GroupLoad().with_decode(0).with_decode(0)
    assert model.predict(decodes) == pytest.approx(4e-3)
    assert model.predict(decodes.with_prefill(1, 0)) == pytest.approx(4e-3)


def test_errors_are_undefined_before_the_first_batch():
    assert ExecutionModel.analytic().errors() == (None, None)


def test_a_profile_survives_json_and_refuses_nonsense():
    profile = Profile((StageProfile(rows=((1, 0.1),), pair_s=1e-9),))
    assert msgspec.json.decode(msgspec.json.encode(profile), type=Profile) == profile
    with pytest.raises(ValueError, match="negative"):
        ExecutionModel(Profile((StageProfile(rows=((1, 0.1),), pair_s=-1.0),)))
    with pytest.raises(ValueError, match="row table"):
        ExecutionModel(Profile((StageProfile(rows=()),)))


def test_the_load_of_a_message():
    def span(name, start, stop, cached, **more):
        return Span(name, start, stop, b"", 0, cached, (), **more)

    message = StepMessage(
        0,
        (
            span("a", 100, 101, 100, sample=True),
            span("b", 64, 96, 64),
            span("c", 50, 60, 30, writes=False, groups=(0, 1)),
            span("d", 50, 51, 20, writes=False, groups=(0, 1)),
        ),
    )
    assert load_of(message) == GroupLoad(
        rows=44,
        prefill_rows=42,
        spans=4,
        pairs=32 * 64 + 32 * 32 / 2 + 300,
        prefill_kv=94,
        decode_kv=120,
        exchanged=11,
        sampled=1,
    )
    assert load_of(None) == GroupLoad()
