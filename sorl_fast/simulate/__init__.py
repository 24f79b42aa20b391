"""Simulators in worker processes: how often a policy succeeds."""
