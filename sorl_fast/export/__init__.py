"""A policy's whole sampler as one graph for another runtime: steps, critics and choice included."""
