"""Benchmarks, run as `sorl-bench NAME`: each checks before it times, and prints the machine beside it."""
