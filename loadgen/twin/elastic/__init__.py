"""A simulated baseline in the manner of LoongServe (arXiv 2404.09526): elastic sequence
parallelism.

It follows what that paper describes, not its code, on the cost model of this twin, with the same
devices and constants as our own grids; rules that the description leaves open are ours. Our words
for its parts: an **instance** is `tp` devices with all the weights; a **team** (its ESP group) is a
set of instances that works on something together; its size is the **degree**; the **master** of an
answer is the instance that computes its row and keeps its new KV.

Modelled:
- A prefill runs over its team to the end, without chunks and without preemption. Tokens lie striped
  over the team, KV goes around in a ring behind the attention; links between nodes are slower.
- Proactive scale-down: where a prompt's KV is kept is decided before its prefill, on as few
  instances of its team as hold it, and costs no transfer; the others are free at its end.
- Decodes with several masters: a team's rows are computed where their masters are, each instance
  reads the KV that lies there, partial outputs cross links.
- The global manager's rounds, first come first served: which of those who wait are dispatched (as
  many tokens as make computing as long as reading the weights); whether a decode is interrupted for
  them or its KV moved away, by gains and costs in seconds per token; which prefills share a team
  and of what degree, by dynamic programming.

Not modelled, or otherwise:
- The room of an answer is reserved with its prompt's, so that nothing is evicted and memory never
  asks a decode to grow. Real servers do not know an answer's length.
- A decode does not take more instances for the sake of computing: below the batch size at which
  computing takes longer than reading the weights (136 rows on an A100; the runs of the table have
  at most 32) it would gain nothing.
- A ring's sends hide behind attention entirely. Decisions and messages take `control_s` a step, as
  in our own twin. No activations in memory, no fragmentation.
- Open loops only: no sessions, no prefix cache.
"""
