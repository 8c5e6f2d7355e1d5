"""The decoder for CUDA: one copy of numbers a step, Triton kernels around cuBLAS, graphs of decode
steps.

From the bottom: `step` (what a step is, in one device buffer), `fused` and `attention` (kernels),
`layers` (a layer of all these), `graphs` (steps captured once and replayed), `decoder` (the door).
Nothing here is imported where there is no CUDA device, but by tests, which run the kernels in
Triton's interpreter.
"""
