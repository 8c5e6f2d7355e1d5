"""What is simulated: a model on a grid of devices under a server configuration, and what physics
allows it at best."""

from __future__ import annotations

from typing import Any

import msgspec

from loadgen.errors import LoadgenError
from loadgen.twin.cost import PAGE_TOKENS, kv_token_bytes, profile_of, weight_bytes
from loadgen.twin.hardware import Hardware
from loadgen.twin.models import NamedModel
from medha_actors.config import (
    KvCacheConfig,
    MedhaConfig,
    ObjectivesConfig,
    SchedulerConfig,
)
from medha_actors.core.group_load import GroupLoad
from medha_actors.core.kv_plan import Grid
from medha_actors.core.predictor import ExecutionModel, Profile
from medha_actors.core.simulator import Simulation
from medha_actors.grid_config import ParallelConfig


class Deployment(msgspec.Struct, frozen=True, kw_only=True):
    """tp devices a stage, spp stages, kvp groups, replicas; the rest as in serve_config.yaml."""

    model: NamedModel
    device: Hardware
    tp: int = 1
    spp: int = 1
    kvp: int = 1
    replicas: int = 1
    max_model_len: int = 1_048_576 + 8192
    # None: a kvp-th of the longest sequence
    max_tokens_per_kvp_group: int | None = None
    tpot_s: float = 0.05
    scheduler: SchedulerConfig = SchedulerConfig()
    objectives: dict[str, float] = {}
    prefix_cache: bool = True
    host_bytes: int = 0  # of host memory for each device, for the second tier
    # a server's own calibration instead of the cost model
    measured: Profile | None = None
    noise: float = 0.0  # relative standard deviation of the time of a batch in a stage
    seed: int = 0

    @property
    def devices(self) -> int:
        return self.tp * self.spp * self.kvp * self.replicas

    @property
    def name(self) -> str:
        parts = [f"tp{self.tp}", f"spp{self.spp}"]
        parts += [f"kvp{self.kvp}"] if self.kvp > 1 else []
        return "-".join(parts + ([f"x{self.replicas}"] if self.replicas > 1 else []))

    def with_policy(self, policy: str, **more: Any) -> Deployment:
        """The same under other scheduler settings."""
        return msgspec.structs.replace(
            self,
            scheduler=msgspec.structs.replace(self.scheduler, policy=policy, **more),
        )

    def profile(self) -> Profile:
        """Costs of every stage."""
        if self.measured is not None:
            if len(self.measured.stages) != self.spp:
                raise LoadgenError(
                    f"the profile has {len(self.measured.stages)} stages, not {self.spp}"
                )
            return self.measured
        return profile_of(self.model, self.device, tp=self.tp, stages=self.spp)

    def config(self) -> MedhaConfig:
        """The configuration that the simulated scheduler gets."""
        return MedhaConfig(
            parallel=ParallelConfig(
                tp=self.tp,
                spp=self.spp,
                kvp=self.kvp,
                max_tokens_per_kvp_group=self.cutoff if self.kvp > 1 else None,
            ),
            scheduler=self.scheduler,
            objectives=ObjectivesConfig(tpot_s=self.tpot_s, **self.objectives),
            kv_cache=KvCacheConfig(
                page_tokens=PAGE_TOKENS,
                prefix_cache=self.prefix_cache,
                host_bytes=self.host_bytes,
            ),
        )

    @property
    def cutoff(self) -> int:
        return self.max_tokens_per_kvp_group or -(-self.max_model_len // self.kvp)

    @property
    def free_bytes(self) -> float:
        """Memory left for KV on the fullest device; negative: the weights do not fit."""
        usable = self.device.memory_bytes * self.device.usable_share
        return usable - weight_bytes(self.model, self.device, self.tp, self.spp)

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache of one group holds."""
        return max(
            0,
            int(
                self.free_bytes
                / kv_token_bytes(self.model, self.device, self.tp, self.spp)
            ),
        )

    def grid(self) -> Grid:
        """Raises LoadgenError when the model does not fit."""
        pages = self.kv_tokens // PAGE_TOKENS
        if pages < 2:
            need = weight_bytes(self.model, self.device, self.tp, self.spp) / 1e9
            have = self.device.memory_bytes * self.device.usable_share / 1e9
            raise LoadgenError(
                f"{self.model.name} does not fit: {self.name} needs {need:.1f} GB a device for "
                f"weights alone, {self.device.name} has {have:.1f} GB to use"
            )
        return Grid(
            stages=self.spp,
            groups=self.kvp,
            pages_per_group=pages,
            page_tokens=PAGE_TOKENS,
            max_tokens_per_kvp_group=self.cutoff if self.kvp > 1 else None,
            max_model_len_tokens=self.max_model_len,
            slots_per_group=self.slots,
        )

    @property
    def slots(self) -> int:
        """Pages that the second tier of one group holds."""
        token_bytes = kv_token_bytes(self.model, self.device, self.tp, self.spp)
        return int(self.host_bytes / (PAGE_TOKENS * token_bytes))

    def hop(self) -> tuple[float, float]:
        """Seconds from one stage to the next: fixed, and per row. Stages stand in nodes of their
        own from tp 8 on."""
        device = self.device
        if self.spp == 1:
            return 0.0, 0.0
        inside = self.tp * self.spp <= device.per_node
        speed = (
            device.link_speed if inside else device.network_speed
        ) * device.link_share
        return (
            device.message_s,
            self.model.hidden * device.value_bytes / self.tp / speed,
        )

    def simulation(self, **more: Any) -> Simulation:
        """One replica, ready to run."""
        hop_s, hop_row_s = self.hop()
        given: dict[str, Any] = {
            "noise": self.noise,
            "seed": self.seed,
            "hop_s": hop_s,
            "hop_row_s": hop_row_s,
            "control_s": self.device.control_s,
        }
        model = ExecutionModel(self.profile())
        return Simulation(self.config(), self.grid(), model, **(given | more))

    def decode_s(self, context: int) -> float:
        """Time per output token of one lone request at a context, which its groups share: the
        physical floor."""
        pieces = min(self.kvp, max(1, -(-context // self.cutoff)))
        piece = max(min(context, self.cutoff), context - (self.kvp - 1) * self.cutoff)
        load = GroupLoad().with_decode(piece, groups=pieces)
        hop_s, hop_row_s = self.hop()
        passes = (self.spp - 1) * (hop_s + hop_row_s)
        return (
            sum(ExecutionModel(self.profile()).stage_seconds(load))
            + passes
            + self.device.control_s
        )

    def prefill_floor_s(self, tokens: int) -> float:
        """No prefill of one replica is faster: all operations at the speed of the units, every
        device busy."""
        speed = self.device.flops * max(
            self.device.matrix_share, self.device.attention_share
        )
        devices = (
            self.tp * self.spp
        )  # groups take a request's tokens one after the other
        return self.model.prefill_flops(tokens) / (speed * devices)

    def mfu(self, tokens: int, seconds: float) -> float:
        """Share of the data sheet's operations that a prefill used."""
        return self.model.prefill_flops(tokens) / (
            self.tp * self.spp * self.device.flops * seconds
        )

    def check(self, longest: int) -> None:
        """Raise LoadgenError with the reason why a request of so many tokens can never be
        served."""
        grid = self.grid()
        room = (grid.groups - 1) * min(self.cutoff, self.kv_tokens) + self.kv_tokens
        if longest > min(self.max_model_len, room):
            limit = "the KV cache" if room < self.max_model_len else "the model"
            raise LoadgenError(
                f"{self.name}: a request of {longest:,} tokens, but {limit} takes at most {room:,}"
            )
