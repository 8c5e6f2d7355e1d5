"""CPU kernels of our own, written as LLVM vector operations through numba: no compiler at the
user's.

The one door: a decoder whose layers they compute, whether they suit a model on this machine, and
mailboxes in shared memory for KV groups. Inside, from the bottom: `ir` (vector operations),
`layouts` (how weights lie), `dot`, `blocks`, `linear`, `attention`, `glue` (kernels), `products`
(rows times stacked matrices), `experts` (of a mixture), `layers` (a layer of all these), `pack`
(weights in their order), `cpu` (buffers and calls), `decoder` (the door's side of a model).
"""

from medha_actors.model.kernels.decoder import KernelDecoder, suits
from medha_actors.model.kernels.mailboxes import Mailboxes

__all__ = ["KernelDecoder", "Mailboxes", "suits"]
