"""The cost model: what a stage takes for its part of a batch, from dimensions and data sheets
alone.

For L layers in a stage of `tp` devices, every matrix product takes the longer of computing and of
reading its weights (a roofline per layer; of a mixture of experts those that the rows take, if all
choices are alike); to it come element-wise passes over the rows, launches, and two all-reduces a
layer where tp > 1. Matrices fall to the devices as they fall to the server's tensor ranks
(medha_actors/model_shares.py), and the one with most counts. Attention of a chunk takes the longer
of its (query, key) pairs and of reading its cache; a decode reads its cache. Rows of a request that
is split over KV groups send their partial outputs to each other in every layer.

The result is a StageProfile, the same Struct that the server fits to its own measurements: the
simulated scheduler predicts with it, and simulated time follows it.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from operator import attrgetter

import msgspec

from loadgen.errors import LoadgenError
from loadgen.twin.hardware import Hardware
from loadgen.twin.models import NamedModel
from medha_actors.core.predictor import Profile, StageProfile
from medha_actors.errors import ModelError
from medha_actors.model_shares import specs_of
from medha_actors.model_spec import ModelSpec, split_layers

PAGE_TOKENS = 64
# per layer and step: 2 norms, qkv, rope, cache write, attention, output, gate+up, activation, down
_KERNELS = 10
# and of a mixture of experts: router, choice, gathering of rows, sum
_EXPERT_KERNELS = 4
_ROWS = (
    *(1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 160, 192, 224, 256),
    *(320, 384, 448, 512, 768, 1024, 2048, 4096, 8192),
)


def layers_of(model: NamedModel, stages: int) -> list[int]:
    """Layers of each stage, split as the server splits them; raises LoadgenError."""
    if stages > model.layers:
        raise LoadgenError(
            f"{stages} stages, but {model.name} has only {model.layers} layers"
        )
    return [stop - start for start, stop in split_layers(model, stages)]


class StageCost(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of the parts of a stage's work, for `layers` layers on `tp` devices."""

    model: NamedModel
    device: Hardware
    layers: int
    tp: int

    @property
    def _rank(self) -> ModelSpec:
        """The model as the layers of the rank with most of it see it."""
        return busiest(self.model, self.tp)

    @property
    def _compute(self) -> float:
        return self.device.flops * self.device.matrix_share

    @property
    def _memory(self) -> float:
        return self.device.memory_speed * self.device.memory_share

    @property
    def _kv_layer_bytes(self) -> float:
        """Keys and values of one token in one layer on one device; a KV head is not split any
        further."""
        return 2 * self._rank.kv_heads * self.model.head_dim * self.device.value_bytes

    def linear_s(self, rows: int) -> float:
        """All matrix products and element-wise work of `rows` rows, with the all-reduces of tensor
        parallelism."""
        rank = self._rank
        experts = rank.experts
        used = experts.used if experts else 1
        taken = experts.taken(rows) if experts else 1
        always = rank.attention_parameters + rank.routing_parameters
        mlp = rank.mlp_parameters
        seconds = 0.0
        for multiplied, read in ((always, always), (used * mlp, taken * mlp)):
            seconds += max(
                2 * multiplied * rows / self._compute,
                read * self.device.weight_bytes / self._memory,
            )
        # read and written per row: two norms and two residual sums over the hidden
        # state, rope, the activation
        numbers = (
            8 * rank.hidden
            + 4 * rank.head_dim * (rank.heads + rank.kv_heads)
            + 3 * used * rank.intermediate
        )
        seconds += numbers * rows * self.device.value_bytes / self._memory
        launches = _KERNELS + (_EXPERT_KERNELS if experts else 0)
        seconds += launches * self.device.kernel_s + 2 * self.all_reduce_s(rows)
        return self.layers * seconds

    def all_reduce_s(self, rows: int) -> float:
        """A ring over the devices of the stage: 2 (tp - 1) / tp of the hidden state crosses each
        link. On a CPU every rank reads what all have in shared memory."""
        if self.tp == 1:
            return 0.0
        device = self.device
        size = rows * self.model.hidden * device.value_bytes
        if device.is_cpu:
            return device.collective_s + self.tp * size / self._memory
        return device.collective_s + 2 * (self.tp - 1) / self.tp * size / self._link

    def entry_s(self, rows: int, first: bool) -> float:
        """What the ranks do before the first layer: add up their rows of the embedding, or gather
        what each was handed by the stage before."""
        if first or self.tp == 1:
            return self.all_reduce_s(rows)
        size = rows * self.model.hidden * self.device.value_bytes
        return self.device.collective_s + (self.tp - 1) / self.tp * size / self._link

    @property
    def _link(self) -> float:
        device = self.device
        speed = (
            device.link_speed if self.tp <= device.per_node else device.network_speed
        )
        return speed * device.link_share

    @property
    def pair_s(self) -> float:
        """One (query, key) pair in all layers."""
        device = self.device
        speed = (device.attention_flops or device.flops) * device.attention_share
        return self.layers * 4 * self._rank.heads * self.model.head_dim / speed

    @property
    def kv_read_s(self) -> float:
        """Reading one cached token in all layers."""
        return self.layers * self._kv_layer_bytes / self._memory

    @property
    def page_s(self) -> float:
        """A page to host memory or back, in all layers."""
        size = PAGE_TOKENS * self.layers * self._kv_layer_bytes
        return size / (self.device.host_speed * self.device.link_share)

    @property
    def exchange_s(self) -> float:
        """A row's partial output (float32, with its log-sum-exp) to one other group and back, in
        all layers."""
        size = self._rank.heads * (self.model.head_dim + 1) * 4
        return self.layers * size / (self.device.network_speed * self.device.link_share)

    @property
    def head_s(self) -> float:
        """The LM head and sampling of one row, beyond reading its weights; its logits (float32) go
        from all ranks to the first."""
        rank = self._rank
        gathered = 4 * (self.model.vocabulary - rank.vocabulary) / self._link
        return 2 * rank.head_parameters / self._compute + gathered

    @property
    def head_step_s(self) -> float:
        """Reading the head; the first rank asks the others, and they answer."""
        asked = 2 * self.device.collective_s if self.tp > 1 else 0.0
        return (
            self._rank.head_parameters * self.device.weight_bytes / self._memory + asked
        )

    def profile(self, last: bool, first: bool = True) -> StageProfile:
        """As the server's own calibration would describe this stage."""
        rows = tuple(
            (rows, self.linear_s(rows) + self.entry_s(rows, first)) for rows in _ROWS
        )
        assert all(before[1] <= after[1] for before, after in pairwise(rows))
        return StageProfile(
            rows=rows,
            step_s=self.head_step_s if last else 0.0,
            span_s=0.0,
            pair_s=self.pair_s,
            prefill_kv_s=self.kv_read_s,
            decode_kv_s=self.kv_read_s,
            exchange_s=self.exchange_s,
            exchange_step_s=self.layers * self.device.message_s,
            head_s=self.head_s if last else 0.0,
            overlapped=self.device.overlapped,
            save_s=self.page_s,
            load_s=self.page_s,
        )


def profile_of(
    model: NamedModel, device: Hardware, *, tp: int = 1, stages: int = 1
) -> Profile:
    """The profiles of all stages, first to last."""
    layers = layers_of(model, stages)
    made = []
    for stage, count in enumerate(layers):
        cost = StageCost(model=model, device=device, layers=count, tp=tp)
        made.append(cost.profile(last=stage == stages - 1, first=stage == 0))
    return Profile(tuple(made))


@cache
def busiest(model: NamedModel, tp: int) -> ModelSpec:
    """The model as the layers of the rank with most of it see it; raises LoadgenError if it cannot
    be shared by so many."""
    try:
        return max(specs_of(model, tp), key=attrgetter("layer_parameters"))
    except ModelError as error:
        raise LoadgenError(f"{model.name}: {error.message}") from None


def weight_bytes(model: NamedModel, device: Hardware, tp: int, stages: int) -> float:
    """Weights on the fullest device: a stage's layers, and an embedding or head table."""
    rank = busiest(model, tp)
    layers = max(layers_of(model, stages))
    tables = rank.head_parameters * (2 if stages == 1 and not model.tied_head else 1)
    return (layers * rank.layer_parameters + tables) * device.weight_bytes


def kv_token_bytes(model: NamedModel, device: Hardware, tp: int, stages: int) -> float:
    """KV cache of one token on the fullest device."""
    heads = busiest(model, tp).kv_heads
    return (
        max(layers_of(model, stages)) * 2 * heads * model.head_dim * device.value_bytes
    )
