"""Writes tests/golden/old: policy files of an earlier commit, and how it acted with them.

Run once, in a checkout of that commit: python .../tests/record_old_policies.py COMMIT FOLDER
"""

import os
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, "tests")  # of that commit

CELLS = ((1, 1), (2, 4), (4, 3))  # M and N
SEED = 2**63 + 5
ISAS = {
    "fp32": ("scalar", "avx2", "avx512"),
    "bf16": ("scalar", "avx2", "avx512"),
    "int8": ("scalar", "avx2", "avx512_vnni"),
}


def observations(obs_dim: int) -> np.ndarray:
    """Five observations, the last one with a NaN."""
    x = np.sin(np.arange(5 * obs_dim, dtype=np.float64)).reshape(5, obs_dim).astype(np.float32)
    x[4, 0] = np.nan
    return x


def numpys_arithmetic() -> np.ndarray:
    """Return what numpy makes of some products and tanh here: processors and versions differ."""
    x = np.sin(np.arange(15 * 17, dtype=np.float64)).reshape(15, 17).astype(np.float32)
    return np.concatenate([np.tanh(x).ravel(), (x @ x.T).ravel(), (x.T[:5] @ x).ravel()])


def actions(policy, backend: str, precision: str = "fp32") -> np.ndarray:
    """Return the actions of all cells, from one seed."""
    from sorl_fast import Sampler

    sampler = Sampler(policy, backend=backend, precision=precision)
    obs = observations(policy.obs_dim)
    return np.concatenate([sampler.act(obs, M, N, seed=SEED, call=3) for M, N in CELLS])


def main(commit: str, folder: Path) -> None:
    """Write two policies and their actions."""
    from policies import make_policy

    from sorl_fast.act import policy_file

    policies = {
        "plain": make_policy(H=16, m_disc=4, m_btt=2),
        "normalised": make_policy(O=5, A=3, H=24, depth=3, E=3, q_agg="min", normalise=True),
    }
    found = {"numpys_arithmetic": numpys_arithmetic()}
    for name, policy in policies.items():
        policy_file.save(folder / f"{commit}_{name}.safetensors", policy)
        found[f"{name} numpy"] = actions(policy, "numpy")
        for precision, isas in ISAS.items():
            for isa in isas:
                os.environ["SORL_CPU_ISA"] = isa
                found[f"{name} {precision} {isa}"] = actions(policy, "native", precision)
    np.savez(folder / f"{commit}_actions.npz", **found)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
