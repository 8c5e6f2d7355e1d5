"""What elastic instances take for prefills, decode steps and moves of KV: parts of the same
`StageCost` that our own grids are made of, and the wires between instances."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import msgspec

from loadgen.errors import LoadgenError
from loadgen.twin.cost import StageCost, kv_token_bytes
from loadgen.twin.deployment import Deployment
from loadgen.twin.hardware import Hardware
from loadgen.twin.models import NamedModel


class ElasticDeployment(msgspec.Struct, frozen=True, kw_only=True):
    """`instances` copies of a model, each on `tp` devices of one node. `patient`: whoever would
    have its first token sooner on a larger team later waits for it."""

    model: NamedModel
    device: Hardware
    tp: int = 2
    instances: int = 8
    patient: bool = False

    @property
    def devices(self) -> int:
        return self.tp * self.instances

    @property
    def name(self) -> str:
        return f"tp{self.tp}-esp{self.instances}"


class Share(NamedTuple):
    """What one instance has to do in a decode step."""

    rows: int  # of the answers whose master it is
    kv_tokens: int  # that lie there, of all answers of the team
    exchanged: int  # partial outputs that its rows get from other instances


class Costs:
    """Seconds. Raises LoadgenError when the model does not fit an instance."""

    def __init__(self, deployment: ElasticDeployment) -> None:
        device = deployment.device
        model = deployment.model
        tp = deployment.tp
        if tp > device.per_node:
            raise LoadgenError(
                f"an instance of {tp} devices, but a node has {device.per_node}"
            )
        plain = Deployment(model=model, device=device, tp=tp)
        plain.grid()
        plain.check(1)
        self.instances = deployment.instances
        self.kv_tokens = plain.kv_tokens  # that an instance holds
        self._stage = StageCost(model=model, device=device, layers=model.layers, tp=tp)
        self._device = device
        self._per_node = device.per_node // tp
        self._kv_bytes = kv_token_bytes(model, device, tp, 1)
        self._linear_s = cache(self._rows_s)
        self._pair_s = self._stage.pair_s
        self._kv_read_s = self._stage.kv_read_s
        self._exchange_s = self._stage.exchange_s
        self._message_s = model.layers * device.message_s
        self._ending_s = self._stage.head_step_s + device.control_s
        self._head_s = self._stage.head_s

    @property
    def saturating_rows(self) -> int:
        """Rows with which an instance computes as long as it reads its weights: more of them make
        everybody's prefill longer."""
        device = self._device
        per_weight = device.memory_speed * device.memory_share / device.weight_bytes
        return max(1, int(device.flops * device.matrix_share / 2 / per_weight))

    def _rows_s(self, rows: int) -> float:
        """All that is done for each row, the devices of an instance together."""
        return self._stage.linear_s(rows) + self._stage.entry_s(rows, first=True)

    def prefill_s(self, lengths: Sequence[int], team: Sequence[int]) -> float:
        """Whole prompts of so many tokens over a team, to their first tokens."""
        degree = len(team)
        tokens = sum(lengths)
        pairs = sum([length * length for length in lengths]) / 2 / degree
        attention = self._pair_s * pairs
        if degree > 1:
            passing = (
                tokens * (degree - 1) / degree
            )  # of others' KV, through every instance
            sent = (
                passing * self._kv_bytes / self._speed(team)
                + (degree - 1) * self._message_s
            )
            attention = max(attention, passing * self._kv_read_s, sent)
        rows = -(-tokens // degree)
        return (
            self._linear_s(rows)
            + attention
            + self._ending_s
            + self._head_s * len(lengths)
        )

    def step_s(self, shares: Iterable[Share], team: Sequence[int]) -> float:
        """A token for every answer of a team: as long as its slowest instance takes."""
        exchange_s = (
            self._exchange_s * self._device.network_speed * self._device.link_share
        )
        exchange_s /= self._speed(team)
        slowest = 0.0
        for share in shares:
            seconds = self._kv_read_s * share.kv_tokens + self._head_s * share.rows
            seconds += self._linear_s(share.rows) if share.rows else 0.0
            slowest = max(slowest, seconds + exchange_s * share.exchanged)
        apart = self._message_s if len(team) > 1 else 0.0
        return slowest + apart + self._ending_s

    def move_s(self, tokens: int, source: int, target: int) -> float:
        """KV of so many tokens from one instance to another."""
        return self._device.message_s + tokens * self._kv_bytes / self._speed(
            (source, target)
        )

    def _speed(self, team: Sequence[int]) -> float:
        """Bytes per second between two devices of a team's instances: of its slowest link."""
        device = self._device
        first_node = team[0] // self._per_node
        inside = all(instance // self._per_node == first_node for instance in team)
        return (
            device.link_speed if inside else device.network_speed
        ) * device.link_share
