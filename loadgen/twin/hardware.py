"""What the twin knows of accelerators: data sheets, and the share of them that good kernels reach.

flops, memory, links  data sheets of the NVIDIA A100 80GB SXM, H100 SXM and H200 SXM; bf16 without
                      sparsity
matrix_share 0.80     measured: 790-800 of 989 TFLOP/s, bf16 matrix products on one H100 and one
                      H200
attention_share       FlashAttention-3, arXiv 2407.08608, fig. 5: about 640 of 989 TFLOP/s (H100,
                      causal, head 128);
                      FlashAttention-2, arXiv 2307.08691, fig. 4: up to 225 of 312 TFLOP/s (A100)
memory_share 0.90     measured: 3.0 of 3.35 TB/s (H100), 4.3 of 4.8 TB/s (H200)
kernel_s 2 us         assumed: launch gap of a kernel inside a CUDA graph
collective_s 12 us    assumed: latency of a small all-reduce over NVLink; 20 us through the memory
                      of a host
host_speed            data sheets: PCIe 4.0 x16 (A100), 5.0 x16 (H100, H200); cpu-2core: assumed
message_s 10 us       assumed: latency of a small NCCL send over InfiniBand
link_share 0.80       assumed: share of the wire's speed that NCCL reaches with large messages
control_s 0.5 ms      measured here: a scheduling decision takes 0.2-0.4 ms, a message over a
                      socket 0.1 ms
cpu-2core             this server's own calibration of SmolLM2-135M (Q4_1) on a 2-core AMD EPYC
                      with AVX512-BF16, one core a device; all shares are 1 because the figures are
                      those achieved
"""

from __future__ import annotations

import msgspec

from loadgen.errors import LoadgenError


class Hardware(msgspec.Struct, frozen=True, kw_only=True):
    """One device. Speeds per second, sizes in bytes, links per device and direction."""

    name: str
    flops: float
    memory_bytes: float
    memory_speed: float
    link_speed: float  # inside a node
    network_speed: float  # between nodes
    host_speed: float  # to and from host memory
    per_node: int = 8
    matrix_share: float = 0.80
    attention_share: float = 0.65
    memory_share: float = 0.90
    link_share: float = 0.80
    kernel_s: float = 2e-6
    collective_s: float = 12e-6
    message_s: float = 10e-6
    control_s: float = 5e-4
    weight_bytes: float = 2.0  # per parameter
    value_bytes: float = 2.0  # per number of the KV cache and the hidden state
    overlapped: bool = True  # a chunk's attention reads its cache while it computes
    usable_share: float = 0.9  # of the memory, for weights and KV cache
    attention_flops: float | None = None  # None: the same units as matrix products

    @property
    def is_cpu(self) -> bool:
        return self.name.startswith("cpu")


_CATALOGUE = (
    Hardware(
        name="a100",
        flops=312e12,
        memory_bytes=80e9,
        memory_speed=2.039e12,
        link_speed=300e9,
        network_speed=25e9,
        host_speed=32e9,
        attention_share=0.70,
    ),
    Hardware(
        name="h100",
        flops=989.4e12,
        memory_bytes=80e9,
        memory_speed=3.35e12,
        link_speed=450e9,
        network_speed=50e9,
        host_speed=64e9,
    ),
    Hardware(
        name="h200",
        flops=989.4e12,
        memory_bytes=141e9,
        memory_speed=4.8e12,
        link_speed=450e9,
        network_speed=50e9,
        host_speed=64e9,
    ),
    Hardware(
        name="cpu-2core",
        flops=270e9,
        attention_flops=187e9,
        memory_bytes=8e9,
        memory_speed=26.5e9,
        link_speed=2e9,
        network_speed=2e9,
        host_speed=2e9,
        per_node=2,
        matrix_share=1.0,
        attention_share=1.0,
        memory_share=1.0,
        link_share=1.0,
        kernel_s=1e-6,
        collective_s=2e-5,
        message_s=1e-4,
        control_s=1e-3,
        weight_bytes=0.625,
        value_bytes=4.0,
        overlapped=False,
    ),
)
HARDWARE = {device.name: device for device in _CATALOGUE}


def hardware_of(name: str) -> Hardware:
    """A device of the catalogue; raises LoadgenError."""
    try:
        return HARDWARE[name.lower()]
    except KeyError:
        raise LoadgenError(f"--gpu {name}: known are {', '.join(HARDWARE)}") from None
