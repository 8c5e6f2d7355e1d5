"""Small deployments and workloads for the twin's tests."""

import msgspec

from loadgen.records import PlannedRequest
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import hardware_of
from loadgen.twin.models import model_of
from loadgen.twin.options import scheduler_of
from loadgen.workload.arrivals import arrival_times
from loadgen.workload.mixes import Mix, synthetic, with_arrivals
from medha_actors.core.predictor import Profile, StageProfile

TOKEN_S = 1e-3


def linear_profile(stages=1, token_s=TOKEN_S):
    """A millisecond per row and nothing else: cases that can be solved by hand."""
    return Profile((StageProfile(rows=((1, token_s / stages),)),) * stages)


def deployment_of(
    policy="lars", spp=1, scheduler=None, gpu="cpu-2core", model="smollm2-135m", **more
):
    given = {
        "tpot_s": 0.2,
        "max_model_len": 32_768,
        "scheduler": scheduler_of(policy, scheduler or {}),
    }
    return Deployment(
        model=model_of(model), device=hardware_of(gpu), spp=spp, **(given | more)
    )


def by_hand(policy="fcfs", spp=1, scheduler=None, **more):
    """The linear profile on a device without any overhead."""
    device = msgspec.structs.replace(
        hardware_of("cpu-2core"),
        control_s=0.0,
        message_s=0.0,
        network_speed=1e18,
        link_speed=1e18,
    )
    plain = deployment_of(policy, spp, scheduler, measured=linear_profile(spp), **more)
    return msgspec.structs.replace(plain, device=device)


def request(prompt=100, output=1, at=0.0, index=0, kind="short"):
    return PlannedRequest(
        index=index, prompt_tokens=prompt, output_tokens=output, at=at, kind=kind
    )


def convoy(count=60, rate=1.0, seed=0):
    mix = Mix(
        input_len="20:300",
        output_len="4:16",
        long_fraction=0.1,
        long_input_len="2000:4000",
    )
    return with_arrivals(synthetic(mix, count, seed), arrival_times(rate, seed))


def waits(records, service_s):
    return [record.token_times[0] - record.sent_at - service_s for record in records]
