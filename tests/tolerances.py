"""Every tolerance of the tests, in one table."""

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
# kernels in the interpreter against the float64 definition, relative to the largest entry
KERNEL = {"fp32": FLOAT32, "tf32": FLOAT32, "fp16": 4e-3, "bf16": 2e-2}
