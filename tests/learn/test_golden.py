"""The losses, gradients and samples equal the authors' own figures."""

from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from conftest import some_fast

FILE = Path(golden.__file__).parent / "golden" / "reference_small.npz"


@pytest.mark.parametrize("backend", ["native avx2", "native avx512", "torch"])
def test_every_quantity_agrees_in_float32(backend, monkeypatch):
    backend, _, isa = backend.partition(" ")
    if backend == "native":
        native = pytest.importorskip("sorl_fast._native")
        if isa not in native.train_isas("fp32"):
            pytest.skip(f"no {isa} on this CPU")
        monkeypatch.setenv("SORL_CPU_ISA", isa)
    monkeypatch.setenv("SORL_OPS", backend)
    errors = golden.check(FILE)
    assert len(errors) == 11
    assert max(errors.values()) < 3e-6, errors


def test_command_passes_on_the_reference_and_prints_every_quantity(capsys):
    assert golden.main([str(FILE)]) == 0
    out = capsys.readouterr().out
    assert "self-consistency gradient" in out
    assert "worst" in out


def test_every_quantity_agrees_in_bf16_within_its_bound(capsys):
    native = pytest.importorskip("sorl_fast.ops.native")
    if not native.isas("bf16"):
        pytest.skip("no bf16 on this CPU")
    assert golden.main([str(FILE), "--precision", "bf16"]) == 0
    assert "native backend, bf16" in capsys.readouterr().out


def test_command_without_a_file_explains_itself(capsys):
    assert golden.main([]) == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "key",
    some_fast(
        (
            *("fm/loss", "fm/grad_actor/0/w", "sc/loss", "sc/grad_actor/4/b", "q8/actions"),
            *("q8/q", "q8/loss", "q8/grad_actor/2/w", "td4/loss", "td4/grad_critic/1/g"),
            "sample/k8_n8/action",
        ),
        *("q8/loss", "td4/grad_critic/1/g"),
    ),
)
def test_command_fails_on_a_wrong_figure(key, tmp_path, capsys):
    with np.load(FILE) as file:
        arrays = dict(file)
    arrays[key] = arrays[key] + np.float32(1e-3) * np.abs(arrays[key]).max()
    np.savez(tmp_path / "wrong.npz", **arrays)
    assert golden.main([str(tmp_path / "wrong.npz")]) == 1
    assert "TOO FAR" in capsys.readouterr().out


def make_golden(path: Path, *, O: int, A: int, H: int, depth: int, E: int, q_agg: str) -> None:
    """Write a file of the golden format from this implementation, in float64."""
    from sorl_fast import ops
    from sorl_fast.batch import Batch
    from sorl_fast.layout import Layout
    from sorl_fast.learn.algorithms import sorl
    from sorl_fast.learn.networks import CriticEnsemble, ShortcutActor, fresh_layers

    g = torch.Generator().manual_seed(0)
    c = sorl.SorlConfig(q_coef=1.0, hidden=H, depth=depth, ensemble=E, q_agg=q_agg)
    actor, critic = Layout.actor(O, A, H, depth), Layout.critic(O, A, H, depth, E)
    nets = {n: ShortcutActor(fresh_layers(actor, g)).double() for n in ("actor", "target_actor")}
    nets |= {
        n: CriticEnsemble(fresh_layers(critic, g)).double() for n in ("critic", "target_critic")
    }
    out = {f"{n}/{k}": x for n, net in nets.items() for k, x in net.tensors().items()}
    B = 7

    def normal(*shape):
        return torch.randn(shape, generator=g, dtype=torch.float64)

    batch = Batch(
        normal(B, O), normal(B, A).tanh(), normal(B), normal(B, O), torch.ones(B).double()
    )
    out |= {f"batch/{name}": x for name, x in batch._asdict().items() if x is not None}
    out["meta/q_agg_min"] = torch.tensor(float(q_agg == "min"))

    def put(prefix, loss, net, key):
        out[f"{prefix}/loss"] = loss
        tensors = net.tensors()
        grads = torch.autograd.grad(loss, list(tensors.values()))
        out.update({f"{prefix}/{key}/{k}": x for k, x in zip(tensors, grads, strict=True)})

    t, noise = torch.randint(8, (B,), generator=g).double() / 8, normal(B, A)
    out |= {"fm/t": t, "fm/noise": noise}

    def regress(term):
        return sorl.regression_losses(nets["actor"], batch.observations, [term])[0]

    put("fm", regress(sorl.flow_matching(batch, t, noise, c)), nets["actor"], "grad_actor")
    log2, t, noise = sorl.consistency_strata(B, 8).double(), torch.zeros(B).double(), normal(B, A)
    out |= {"sc/log2_steps": log2, "sc/t": t, "sc/noise": noise}
    sc = regress(sorl.self_consistency(nets["target_actor"], batch, log2, t, noise, c))
    put("sc", sc, nets["actor"], "grad_actor")
    for k in (1, 8):
        noise = normal(B, A)
        loss, q = sorl.q_loss(nets["actor"], nets["critic"], batch, k, noise)
        out |= {f"q{k}/noise": noise, f"q{k}/q": q}
        out[f"q{k}/actions"] = nets["actor"].sample(batch.observations, noise, k)
        put(f"q{k}", loss, nets["actor"], "grad_actor")
        y = sorl.td_target(nets["actor"], nets["target_critic"], batch, k, noise, c)
        out[f"td{k}/noise"] = noise
        put(f"td{k}", sorl.td_loss(nets["critic"], batch, k, y), nets["critic"], "grad_critic")
        obs, noise = normal(O), normal(3, A)
        layers = (nets["actor"].layers(), nets["critic"].layers())
        action, *_ = ops.best_of_n(*layers, obs[None], noise[None], k, q_agg)
        name = f"sample/k{k}_n3"
        out |= {f"{name}/obs": obs, f"{name}/noise": noise, f"{name}/action": action[0]}
    np.savez(path, **{k: x.detach().numpy().astype(np.float32) for k, x in out.items()})


@pytest.mark.parametrize(
    "shape",
    [
        dict(O=69, A=21, H=33, depth=2, E=3, q_agg="min"),
        dict(O=2, A=1, H=8, depth=1, E=1, q_agg="mean"),
    ],
    ids=["O69-A21-min", "O2-A1"],
)
def test_command_reads_any_shape_and_aggregate(shape, tmp_path):
    make_golden(tmp_path / "other.npz", **shape)
    # the file's inputs are rounded to float32, so this is no sharper than the tolerance
    assert max(golden.check(tmp_path / "other.npz").values()) < 1e-5
