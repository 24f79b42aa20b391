"""Who is sent where on a GPU: the table's word, the precision, SORL_OPS, and what can't be served.

There is no GPU: CPU tensors stand for its, and triton interprets its kernels.
"""

import networks
import pytest
import torch
from tolerances import FLOAT32

from sorl_fast import ops
from sorl_fast.batch import Batch
from sorl_fast.errors import BadInput
from sorl_fast.learn.algorithms.sorl import Sorl, SorlConfig, Steps
from sorl_fast.learn.learner import Learner
from sorl_fast.ops import chain, reference, triton

H = 64


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.delenv("SORL_OPS", raising=False)
    monkeypatch.setattr(ops, "_precision", {"cpu": "fp32", "cuda": "fp32"})


def layers(*, E=0, H=H):
    return networks.layers(H=H, depth=1, E=E, seed=1, grad=False)


ACTOR, CRITIC = layers(), layers(E=2)
OBS, ACT, T = torch.full((4, 5), 0.5), torch.full((4, 3), 0.25), torch.full((4,), 0.5)


def adam_state():
    return [[torch.full((3,), 0.5)] for _ in range(5)]


RATES = {"lr": 0.1, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "clip_norm": 1.0, "tau": 0.005}
KEY = torch.tensor([1, 2, 3])
# name -> (call, rows that the table is asked about)
CALLS = {
    "velocity": (lambda actor=ACTOR: ops.velocity(actor, OBS, ACT, T, T), 4),
    "rollout": (lambda actor=ACTOR: ops.rollout(actor, OBS, ACT, 2), 4),
    "critic_ensemble": (lambda critic=CRITIC: ops.critic_ensemble(critic, OBS, ACT, 2), 4),
    "best_of_n": (
        lambda actor=ACTOR: ops.best_of_n(actor, CRITIC, OBS, ACT[:, None].repeat(1, 2, 1), 2),
        8,
    ),
    "adam_ema_step": (lambda: ops.adam_ema_step(*adam_state(), 3, **RATES), 3),
    "normals": (lambda: ops.normals(KEY, 4, 2, 3), 24),
    "words": (lambda: ops.words(KEY, 9), 9),
}
NETWORK = ["velocity", "rollout", "critic_ensemble", "best_of_n"]
every = pytest.mark.parametrize("name", list(CALLS))


class Table:
    """Answers with one implementation, and remembers what it was asked."""

    def __init__(self, implementation):
        self.implementation, self.asked = implementation, []

    def choice(self, operation, precision, sizes, rows, *, grad=False, device=None):
        self.asked.append((operation, precision, sizes, rows, grad))
        return self.implementation


@pytest.fixture
def gpu(monkeypatch):
    """CPU tensors count as a GPU's; returns a function that sets the table's answer."""
    monkeypatch.setattr(ops, "_on_gpu", lambda device: True)
    monkeypatch.setattr(ops, "_triton", lambda device: triton)
    monkeypatch.setattr(triton, "bf16_is_right", lambda: True)  # as on a GPU

    def answer(implementation):
        table = Table(implementation)
        monkeypatch.setattr(ops, "table", table)
        return table

    return answer


@pytest.fixture
def served(monkeypatch):
    """The modules whose functions were called, outermost first."""
    seen = []

    def watch(module, name, label):
        function = getattr(module, name)

        def call(*args, **kwargs):
            seen.append(label)
            return function(*args, **kwargs)

        monkeypatch.setattr(module, name, call)

    for name in CALLS:
        watch(triton, name, "fused")
        watch(reference, name, "reference")
        if name in NETWORK:
            watch(chain, name, "chain")
    return seen


CHOICES = [
    (name, implementation)
    for name in CALLS
    for implementation in ("fused", "chain", "reference")
    if implementation != "chain" or name in NETWORK
]


@pytest.mark.parametrize(("name", "implementation"), CHOICES, ids=map("-".join, CHOICES))
def test_the_tables_word_holds(gpu, served, name, implementation):
    table = gpu(implementation)
    call, rows = CALLS[name]
    call()
    assert served[0] == implementation
    ((operation, precision, sizes, asked_rows, grad),) = table.asked
    assert (operation, precision, asked_rows, grad) == (name, "fp32", rows, False)
    if name in NETWORK:
        members = 2 if name in ("critic_ensemble", "best_of_n") else 1
        assert (sizes.obs, sizes.act, sizes.hidden, sizes.depth) == (5, 3, H, 1)
        assert (sizes.members, sizes.norm) == (members, members == 2)
    else:
        assert sizes is None


@pytest.mark.parametrize("name", NETWORK)
def test_the_tables_word_holds_in_another_precision_too(gpu, served, name):
    """The definition may be all that passed its check: the chain would be one that did not."""
    gpu("reference")
    ops.configure(precision="bf16", device="cuda")
    CALLS[name][0]()
    assert served[0] == "reference"


@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16"])
def test_the_precision_reaches_table_and_kernel(gpu, monkeypatch, precision):
    table = gpu("fused")
    ops.configure(precision=precision, device="cuda")
    seen = []
    rollout = triton.rollout
    monkeypatch.setattr(triton, "rollout", lambda *a, **k: seen.append(a[-1]) or rollout(*a, **k))
    CALLS["rollout"][0]()
    assert seen == [precision]
    assert table.asked[0][1] == precision


def test_each_kind_of_device_keeps_its_precision():
    ops.configure(precision="fp16", device="cuda")
    assert ops._precision == {"cpu": "fp32", "cuda": "fp16"}
    ops.configure(precision="fp32")
    assert ops._precision == {"cpu": "fp32", "cuda": "fp16"}


@pytest.mark.parametrize("name", ["velocity", "rollout", "critic_ensemble"])
def test_the_table_is_told_of_gradients(gpu, name):
    table = gpu("fused")
    net = [
        tuple(x.detach().requires_grad_() for x in la)
        for la in (CRITIC if "c" in name[0] else ACTOR)
    ]
    CALLS[name][0](net)
    with torch.no_grad():
        CALLS[name][0](net)
    assert [asked[-1] for asked in table.asked] == [True, False]


def test_what_has_no_gradient_in_kernels_goes_to_what_has(gpu, served):
    gpu("fused")
    t = T.clone().requires_grad_()
    torch.autograd.grad(ops.velocity(ACTOR, OBS, ACT, t, T).sum(), t)
    assert served[0] == "reference"
    served.clear()
    actor = [tuple(x.detach().requires_grad_() for x in layer) for layer in ACTOR]
    action, *_ = CALLS["best_of_n"][0](actor)
    torch.autograd.grad(action.sum(), actor[0][0])
    assert served[0] == "reference"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"H": 48}, "hidden is 48, no multiple of 64.*--hidden"),
        ({"strided": True}, "want contiguous tensors.*contiguous()"),
    ],
    ids=["width", "strided"],
)
def test_what_kernels_cannot_serve_is_not_asked_about(gpu, served, monkeypatch, change, why):
    table = gpu("fused")
    net = layers(H=change.get("H", H))
    if "strided" in change:
        net = [tuple(x.T.contiguous().T if x.ndim == 2 else x for x in layer) for layer in net]
    CALLS["rollout"][0](net)
    assert served[0] == "reference"
    ops.configure(precision="bf16", device="cuda")
    served.clear()
    CALLS["rollout"][0](net)
    assert served[0] == "chain"
    assert not table.asked
    monkeypatch.setenv("SORL_OPS", "triton")
    with pytest.raises(BadInput, match=why):
        CALLS["rollout"][0](net)


def test_parameters_of_inference_mode_go_to_the_definition(gpu, served):
    table = gpu("fused")
    with torch.inference_mode():
        net = [tuple(x.detach().clone() for x in layer) for layer in ACTOR]
        ops.rollout(net, OBS, ACT, 2)
    assert served[0] == "reference"
    assert not table.asked


def test_other_types_go_to_the_definition(gpu, served):
    table = gpu("fused")
    net = [tuple(x.double() for x in layer) for layer in ACTOR]
    ops.rollout(net, OBS.double(), ACT.double(), 2)
    assert served[0] == "reference"
    assert not table.asked


def test_no_rows_ask_nobody(gpu, served):
    table = gpu("fused")
    assert ops.rollout(ACTOR, OBS[:0], ACT[:0], 2).shape == (0, 3)
    assert ops.words(KEY, 0).shape == (0,)
    assert served[0] == "reference"
    assert not table.asked


def test_gradients_may_be_laid_out_anyhow(gpu):
    gpu("fused")
    first, second = ([[torch.full((3, 2), 0.5)] for _ in range(5)] for _ in range(2))
    first[1][0] = torch.arange(6.0).view(2, 3).T
    second[1][0] = first[1][0].contiguous()
    norms = [ops.adam_ema_step(*state, torch.tensor(2), **RATES) for state in (first, second)]
    assert torch.equal(*norms)
    assert torch.equal(first[0][0], second[0][0])


def test_csrc_takes_a_count_of_steps_that_lies_in_a_tensor(served):
    if ops.backend() != "native":
        pytest.skip("no native operations")
    states = adam_state(), adam_state()
    norms = [
        ops.adam_ema_step(*state, step, **RATES)
        for state, step in zip(states, (3, torch.tensor(3)), strict=True)
    ]
    assert served == []
    assert torch.equal(*norms)
    assert torch.equal(states[0][0][0], states[1][0][0])


# --- SORL_OPS


@every
def test_triton_can_be_forced(monkeypatch, served, name):
    monkeypatch.setenv("SORL_OPS", "triton")
    monkeypatch.setattr(ops, "table", Table("reference"))
    CALLS[name][0]()
    assert served[0] == "fused"
    assert not ops.table.asked
    assert ops.backend("cpu") == "triton"


@every
def test_torch_can_be_forced(monkeypatch, served, name):
    monkeypatch.setattr(ops, "_on_gpu", lambda device: True)
    monkeypatch.setattr(ops, "table", Table("fused"))
    monkeypatch.setenv("SORL_OPS", "torch")
    CALLS[name][0]()
    assert served[0] == "reference"
    assert ops.backend("cuda") == ops.backend("cpu") == "torch"


def test_forced_triton_needs_a_gpu_or_the_interpreter(monkeypatch):
    monkeypatch.setenv("SORL_OPS", "triton")
    monkeypatch.setattr(triton, "INTERPRETED", False)
    for call in (CALLS["rollout"][0], ops.backend, ops.configure, CALLS["normals"][0]):
        with pytest.raises(BadInput, match=r"tensors are on cpu.*no GPU.*--device cuda"):
            call()
    with pytest.raises(BadInput, match="no GPU"):
        ops.backend("cuda")


def test_forced_triton_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setenv("SORL_OPS", "triton")
    monkeypatch.setattr(ops, "_triton_or_why", None)
    monkeypatch.setitem(__import__("sys").modules, "sorl_fast.ops.triton", None)
    with pytest.raises(BadInput, match=r"pip install sorl-fast\[gpu\]"):
        CALLS["rollout"][0]()


def test_without_triton_a_gpu_has_pytorch(monkeypatch, served):
    monkeypatch.setattr(ops, "_on_gpu", lambda device: True)
    monkeypatch.setattr(ops, "_triton_or_why", BadInput("not installed"))
    monkeypatch.setattr(ops, "table", Table("fused"))
    for name in CALLS:
        CALLS[name][0]()
    assert "fused" not in served
    ops.configure(precision="tf32", device="cuda")
    served.clear()
    CALLS["rollout"][0]()
    assert served[0] == "chain"
    assert ops.backend("cuda") == "torch"


def test_native_forced_on_a_gpu_is_named(gpu, monkeypatch):
    gpu("fused")
    monkeypatch.setenv("SORL_OPS", "native")
    with pytest.raises(BadInput, match=r"SORL_OPS is 'native'.*--device cpu"):
        CALLS["rollout"][0]()


def test_the_cpu_never_meets_the_kernels_unasked(served, monkeypatch):
    monkeypatch.setattr(ops, "table", Table("fused"))
    for call, _ in CALLS.values():
        call()
    assert "fused" not in served
    assert not ops.table.asked


@pytest.mark.parametrize(
    ("device", "precision"), [("cpu", "tf32"), ("cpu", "fp16"), ("cuda", "int8"), ("cpu", "fp64")]
)
def test_a_precision_that_is_not_there_is_named(device, precision):
    with pytest.raises(BadInput, match=f"precision is '{precision}'.*fp32, .*--precision"):
        ops.configure(precision=precision, device=device)


# --- all of it


@pytest.mark.slow
def test_a_whole_update_by_kernels_is_that_of_the_definition(monkeypatch):
    config = SorlConfig(
        q_coef=10.0, hidden=64, depth=2, batch_size=8, m_disc=4, m_btt=4, clip_norm=1e9
    )
    B, found = 8, {}
    for name in ("torch", "triton"):
        monkeypatch.setenv("SORL_OPS", name)
        g = torch.Generator().manual_seed(0)

        def normal(*shape, g=g):
            return torch.randn(*shape, generator=g)

        learner = Learner(Sorl(config), 5, 3, g)
        batch = Batch(
            normal(B, 5), normal(B, 3).tanh(), -torch.ones(B), normal(B, 5), torch.ones(B)
        )
        noise = {
            "td_noise": normal(B, 3),
            "fm_t": torch.arange(B) % 4 / 4,
            "fm_noise": normal(B, 3),
            "sc_log2_steps": torch.tensor([1.0, 1, 0, 0, 0, 0, 0, 0]),
            "sc_half": torch.tensor([0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]),
            "sc_t": torch.zeros(B),
            "sc_noise": normal(B, 3),
            "q_noise": normal(B, 3),
        }
        metrics = [learner.update(batch, noise, Steps(td=2, q=4)) for _ in range(2)]
        found[name] = torch.stack(metrics), learner.state()
    expected, state = found["torch"]
    got, ours = found["triton"]
    torch.testing.assert_close(got, expected, rtol=10 * FLOAT32, atol=0)
    for key, x in state.items():
        if "first" in key or "second" in key:  # parameters move by Adam's step, which nears a sign
            bound = 100 * FLOAT32 * float(x.abs().max())
            torch.testing.assert_close(ours[key], x, rtol=0, atol=bound, msg=key)
