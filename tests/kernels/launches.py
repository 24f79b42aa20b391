"""Run by test_builds in a process without the interpreter: are launches what was built ahead?

The kernels are launched as a GPU's would be, up to the moment where triton would compile them.
"""

import sys
from types import SimpleNamespace

import torch
from networks import normal_layers, packed
from sorl_fast.kernels import actor, adam, best_of_n, choose, critic, noise
from sorl_fast.kernels.tiles import Tile
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from sorl_fast.layout import Layout

TILE = Tile(16, 64, 32, 4, 2)
STEPS, CANDIDATES = 1, 16  # numbers that triton would build anew for, if it were let


def launched(rows, offset):
    """Return [(kernel, what it would be built from)] of every kind of launch; inputs begin anywhere."""
    seen = []

    def instead(kernel, key, signature, device, constexprs, options, attrs, warmup):
        names = kernel.arg_names
        values = {names[path[0]]: x for path, x in constexprs.items()}
        kinds = {a: kind for a, kind in signature.items() if a not in values}
        aligned = {names[path[0]] for path, x in attrs.items() if x and len(path) == 1}
        chosen = {k: getattr(options, k) for k in ("num_warps", "num_stages", "enable_fp_fusion")}
        seen.append((kernel, kinds, values, aligned, chosen))

    JITFunction._do_compile = instead

    def normal(*shape):
        return torch.randn(offset + torch.Size(shape).numel())[offset:].view(shape)

    O, A, H, E, L = 28, 5, 64, 2, 2
    layouts = Layout.actor(O, A, H, L), Layout.critic(O, A, H, L, E)
    net, q_net = (packed(normal_layers(x, normal), x, "bf16") for x in layouts)
    x, z, g = normal(rows, O), normal(rows, A), normal(E, rows)
    key = torch.zeros(3 + offset, dtype=torch.int64)[offset:]

    _, saved = actor.velocity(net, x, z, z[:, 0], z[:, 0], save=True, tile=TILE)
    asked = dict(weights=True, to_obs=False, to_act=False, tile=TILE)
    actor.backward(net, x, saved, z, 1, rollout=False, **asked)
    actor.rollout(net, x, key, STEPS, tile=TILE)
    _, saved = actor.rollout(net, x, key, STEPS, save=True, tile=TILE)
    actor.backward(net, x, saved, z, STEPS, rollout=True, **asked)
    critic.critic_ensemble(q_net, x, z, 1.0, tile=TILE)
    _, saved = critic.critic_ensemble(q_net, x, z, 1.0, save=True, tile=TILE)
    critic.backward(q_net, x, z, 1.0, saved, g, **asked)
    critic.backward(q_net, x, z, 1.0, saved, g, **asked | dict(weights=False, to_act=True))
    draws = offset + 1
    table = best_of_n.Table(normal(STEPS, 5), normal(1)[0], draws, begins=not offset, squash=True)
    for N, q_agg in ((CANDIDATES, "mean"), (CANDIDATES, "min"), (1, "mean")):
        rest = (N, STEPS, q_agg, normal(A), normal(A))
        best_of_n.best_of_n(net, q_net, x, key, *rest, want_q=False, tile=TILE)
    best_of_n.best_of_n(net, None, x, key, *rest, tile=TILE)
    rules = iter(choose.Rule(name, 1, 16, normal(A), key) for name in choose.RULES)
    rest = (CANDIDATES, STEPS, "mean", normal(A), normal(A))
    drawn = normal(rows, CANDIDATES, draws, A)
    best_of_n.best_of_n(net, q_net, x, drawn, *rest, want_q=False, table=table, tile=TILE)
    ruled = dict(want_q=False, tile=TILE)
    for _ in range(2):
        best_of_n.best_of_n(net, q_net, x, key, *rest, rule=next(rules), **ruled)
        best_of_n.best_of_n(net, q_net, x, drawn, *rest, table=table, rule=next(rules), **ruled)
    centre = next(rules)
    best_of_n.best_of_n(net, q_net, x, key, *rest, rule=centre, tile=TILE)
    best_of_n.best_of_n(net, None, x, drawn, *rest, table=table, rule=centre, tile=TILE)
    numbers = dict(lr=1, b1=0, b2=1, eps=1, clip_norm=16, tau=1)
    for tensors, parts in ((2 * L + 2, 2), (4 * L + 2, 1)):
        # 16 chunks in all
        lengths = [(17 - tensors) * adam.BLOCK] + [rows] * (tensors - 1)
        state = [[torch.zeros(n) for n in lengths] for _ in range(4 + parts)]
        more = state.pop() if parts == 2 else ()
        adam.adam_ema_step(*state, torch.tensor(1), **numbers, more_grads=more)
    noise.normals(key, rows, 1, A)
    noise.normals(key, rows, 1, A, draws=2)
    noise.words(key, 16 * rows)
    return seen, [net.sizes, q_net.sizes]


def ahead(sizes):
    own, critics = sizes
    return [
        *actor.aot(own, "bf16", TILE),
        *critic.aot(critics, "bf16", TILE),
        *best_of_n.aot(own, critics, "bf16", TILE),
        *choose.aot(own, "bf16", TILE),
        *adam.aot(own, "bf16", TILE),
        *adam.aot(critics, "bf16", TILE),
        *noise.aot("bf16", TILE),
    ]


def told(build):
    """Return what tells one build of a kernel from another, NP aside, which rows decide."""
    kernel, kinds, values = build[:3]
    values = {a: x for a, x in values.items() if a != "NP"}
    return kernel.fn.__name__, str(kinds), str(sorted(values.items()))


def main():
    driver.set_active(
        SimpleNamespace(
            get_current_device=lambda: 0,
            get_current_stream=lambda device: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
        )
    )
    for rows, offset in ((1, 0), (16, 0), (37, 1)):
        seen, sizes = launched(rows, offset)
        builds = {}
        for b in ahead(sizes):
            build = b.kernel, b.signature, b.constexprs, set(b.divisible), b.options
            builds[told(build)] = build
        left = dict(builds)
        for launch in seen:
            left.pop(told(launch), None)
            build = builds.get(told(launch))
            if build is None:
                print(rows, launch[0].fn.__name__, "was not built ahead:", *launch[1:3])
            elif launch[3] != build[3]:
                print(rows, launch[0].fn.__name__, "aligned:", sorted(launch[3] ^ build[3]))
            elif launch[4] != build[4]:
                print(rows, launch[0].fn.__name__, "options:", launch[4], build[4])
        for build in left.values():
            print(rows, build[0].fn.__name__, "was not launched:", *build[1:3])


if __name__ == "__main__":
    sys.exit(main())
