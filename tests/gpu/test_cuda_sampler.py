"""The sampler on a card: the CPU's tokens, the same bits in any company, no wait in a launch."""

from __future__ import annotations

import pytest
import torch

from medha_actors.bench.gpu_sampler import CASES, Trial, compare, logits_like_a_model
from medha_actors.model.cuda.sampler import CudaSampler
from medha_actors.model.guard import Failures

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device"
)

DEVICE = torch.device("cuda")


@pytest.mark.parametrize(("rows", "vocabulary"), [(100_000, 4_096), (2_000, 128_256)])
def test_the_same_tokens_as_on_the_cpu(rows, vocabulary):
    with torch.inference_mode():
        found = compare(DEVICE, rows, vocabulary, most_s=60.0)
    assert found.rows == rows
    assert found.unexplained == 0
    assert found.differ <= 5
    assert found.logprob_difference < 1e-4


@pytest.mark.parametrize("case", CASES)
def test_a_launch_waits_for_nothing(case):
    sampler = CudaSampler(128_256, None, DEVICE)
    with torch.inference_mode():
        sampler.prepare()
        logits = logits_like_a_model(16, 128_256, DEVICE)
        trial = Trial(sampler, [CASES[case]] * 16)
        for _ in range(2):
            sampler.launch(trial.spans(), lambda rows: logits, Failures()).finish()
        spans = trial.spans()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            pending = sampler.launch(spans, lambda rows: logits, Failures())
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert len(pending.finish().tokens) == 16


def test_rows_are_the_same_bits_in_any_company():
    with torch.inference_mode():
        logits = logits_like_a_model(60, 128_256, DEVICE)
        params = []
        for one in CASES.values():
            params += [one] * 10
        together = Trial(CudaSampler(128_256, None, DEVICE), params).tokens(logits)
        for number, one in enumerate(params):
            alone = Trial(CudaSampler(128_256, None, DEVICE), [one])
            [found] = alone.tokens(logits[number : number + 1]).values()
            expected = together[f"r{number}"]
            assert (found.token_id, found.logprob) == (
                expected.token_id,
                expected.logprob,
            )
            assert found.top_logprobs == expected.top_logprobs
