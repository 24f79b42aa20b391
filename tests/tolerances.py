"""Every tolerance of the tests, in one table."""

import os

# the kernels' tests run on a GPU, not in the interpreter, which has no tf32: it multiplies in float32
ON_GPU = os.environ.get("TRITON_INTERPRET") == "0"

FLOAT32 = 1e-5  # fp32 against the float64 definition, relative to the largest entry (or absolute, actions)
GOLDEN = 1e-5  # against the authors' figures, relative to the largest entry
PHILOX = 5e-7  # normals against the float64 definition, absolute
SPLIT = 1e-6  # the same rows in batches of other sizes: BLAS may sum in another order
OTHER_MACHINE = 1e-6  # the same 30 updates on another CPU or torch, absolute
NATIVE_BF16 = 3e-2  # native bf16 against the float64 definition, relative to the largest entry
CHAIN_HALF = {
    "fp16": 4e-3,
    "bf16": 4e-2,
}  # PyTorch products in 16 bits against the float64 definition
# kernels against the float64 definition, relative to the largest entry; tf32 has as many digits as fp16
KERNEL = {"fp32": FLOAT32, "fp16": 4e-3, "bf16": 2e-2}
CRITIC_VALUES = {"fp32": FLOAT32, "fp16": 4e-3, "bf16": 3e-2}
CRITIC_GRADIENTS = {"fp32": FLOAT32, "fp16": 1e-2, "bf16": 6e-2}
for table in (KERNEL, CRITIC_VALUES, CRITIC_GRADIENTS):
    table["tf32"] = table["fp16" if ON_GPU else "fp32"]
