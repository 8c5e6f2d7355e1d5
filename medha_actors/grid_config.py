"""The sections `parallel` and `actors` of the configuration tree: the grid of stage actors, and
what each of them gets."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from medha_actors.tuning import Section


class ParallelConfig(Section, frozen=True):
    """The grid of stage actors: `spp` pipeline stages by `kvp` KV groups by `tp` tensor ranks
    (paper, 3.3)."""

    # actors that share the layers of a stage in a group, on one node
    tp: Annotated[int, Meta(ge=1, le=64)] = 1
    spp: Annotated[int, Meta(ge=1, le=1024)] = 2
    kvp: Annotated[int, Meta(ge=1, le=256)] = 1
    # A request's piece in one group; the next group is taken when it is full, and the
    # last one takes the rest. None: the longest sequence / kvp, so that its pieces are
    # equal, but at least 8192, below which a second group costs a decode more than it
    # saves (docs/benchmarks.md); in whole pages, and at most all pages of a group.
    max_tokens_per_kvp_group: Annotated[int, Meta(ge=1, le=2**50)] | None = None


class ActorConfig(Section, frozen=True):
    """What each stage actor gets."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    # on CUDA; a fraction lets several actors share a GPU. None: one, or with fewer GPUs
    # than actors an equal share of one (and with `device: auto` fewer stages first)
    num_gpus: Annotated[float, Meta(ge=0.01, le=64.0)] | None = None
    num_cpus: Annotated[float, Meta(ge=0.01, le=1024.0)] = 1.0
    # compute threads of a CPU actor; None: as many as it gets cores, which the actors of a node
    # share equally, at most 16 each
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    pin: bool = True  # bind each CPU actor to cores of its own
    # a batch that has the grid to itself is computed in each stage by the cores of all
    # stages on its node (CPU, pinned, `kvp` and `tp` of 1)
    borrow: bool = True
    attention: Literal["auto", "triton", "flash_attn", "sdpa"] = "auto"
    # warm processes per node that take the place of a dead stage (CPU only)
    spares: Annotated[int, Meta(ge=0, le=16)] = 1
    start_timeout_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 300.0
    # a step that takes longer counts as a dead stage
    step_timeout_s: Annotated[float, Meta(ge=1.0, le=86_400.0)] = 600.0
    # stage actors wait so long for a new controller, then end
    orphan_timeout_s: Annotated[float, Meta(ge=5.0, le=3600.0)] = 30.0
