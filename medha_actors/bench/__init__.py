"""Benchmarks of the engine on the machine at hand: `python -m medha_actors.bench`."""
