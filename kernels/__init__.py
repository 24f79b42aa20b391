"""Triton kernels of the operations that cost time, one operation a file.

Nothing here imports sorl_fast: `sorl_fast.ops.triton` registers these as the operations of a GPU.
Shape letters: B rows, O observation, A action, H hidden, L hidden layers, E ensemble members,
N candidates, M Euler steps.
"""
