"""The cost of merging partial attention is measured at start."""

from itertools import chain

import pytest

from medha_actors.actors.calibration import cases, fit, step
from medha_actors.actors.exchange_cost import fit_exchange
from medha_actors.actors.local import generate, greedy, prompt_of
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.predictor import ExecutionModel, Profile, StageProfile


def arguments(spp, kvp, cutoff=None, longest=None, page=64):
    return {
        "model_loading_config": {
            "model_source": "random",
            "dtype": "float32",
            "max_model_len_tokens": longest,
        },
        "parallel": {"spp": spp, "kvp": kvp, "max_tokens_per_kvp_group": cutoff},
        "actors": {"num_cpus": 0.5},
        "kv_cache": {"budget_bytes": 2**21, "page_tokens": page},
        "predictor": {"cache": False, "probe_context_tokens": 256},
    }


@pytest.mark.parametrize("page", [64, 16])
@pytest.mark.parametrize("spp", [1, 2])
async def test_the_exchange_is_measured_on_the_real_links(spp, page, warm):
    async with warm.engine(arguments(spp, 2, page=page, longest=2048)):
        profile = await warm.profile()
    assert len(profile.stages) == spp
    assert all(
        0 < stage.exchange_step_s + stage.exchange_s < 0.1 for stage in profile.stages
    )


async def test_a_calibrated_grid_serves_afterwards(warm):
    found = []
    for kvp in (1, 2):
        async with warm.engine(arguments(2, kvp, cutoff=100)) as handle:
            found.append((await generate(handle, prompt_of(150), greedy(8))).tokens)
    assert found[0] == found[1]


def test_what_is_fixed_is_told_from_what_each_row_adds():
    stage = StageProfile(rows=((1, 1e-3),))
    profile = fit_exchange(
        Profile((stage, stage)), [2.1e-3, 3e-3], [14.7e-3, 1e-3], rows=64, groups=3
    )
    assert profile.stages[0].exchange_s == pytest.approx(1e-4)
    assert profile.stages[0].exchange_step_s == pytest.approx(1.9e-3)
    assert profile.stages[1].exchange_s == 0, "noise makes nothing negative"
    assert profile.stages[1].exchange_step_s == 3e-3
    model = ExecutionModel(Profile(profile.stages[:1]))
    for rows, seconds in ((1, 2.1e-3), (64, 14.7e-3)):
        shared, alone = (
            GroupLoad().with_prefill(rows, 100, groups=groups) for groups in (3, 1)
        )
        assert model.base(shared) - model.base(alone) == pytest.approx(seconds)


@pytest.mark.parametrize("pages", [1, 2, 3, 40])
def test_nothing_is_measured_beyond_the_cache(pages):
    for page in (16, 64):
        context = min(4096, (pages - 1) * page // 2)
        measured = cases(context, pages, page)
        assert measured
        for number, case in enumerate(measured):
            spans = step(case, page, 512, number).spans
            assert max(chain.from_iterable(span.new_pages for span in spans)) < pages
        # a profile, whatever is missing
        ExecutionModel(Profile((fit(dict.fromkeys(measured, 1e-3), context),)))
