"""CPU kernels of our own, written as LLVM vector operations through numba: no compiler at the
user's.

The one door: a decoder whose layers they compute, whether they suit a model on this machine, what
lies in shared memory (mailboxes for KV groups, a board for tensor ranks and the team that uses it),
and the threads that share a step. Inside, from the bottom: `ir` (vector operations), `layouts` (how
weights lie), `dot`, `blocks`, `linear`, `attention`, `glue` (kernels; `_tile`: a few rows of one,
`_matrix`: 16 in AMX's tile registers), `products` (rows times stacked matrices), `experts` (of a
mixture), `layers` (a layer of all these), `shared_layers` (a layer of several ranks),
`threads` and `threaded_layers` (of several threads),
`together` (calls of these), `pack` (weights in their order), `cpu` (buffers and calls),
`decoder` (the door's side of a model).
"""

from medha_actors.model.kernels.board import Board
from medha_actors.model.kernels.decoder import KernelDecoder, suits
from medha_actors.model.kernels.mailboxes import Mailboxes
from medha_actors.model.kernels.shared_team import Rehearsal, SharedTeam
from medha_actors.model.kernels.threads import Threads

__all__ = [
    "Board",
    "KernelDecoder",
    "Mailboxes",
    "Rehearsal",
    "SharedTeam",
    "Threads",
    "suits",
]
