"""Checks of the golden files of every method but SORL: see `golden.py`, whose command runs them.

What a file holds: networks `{net}/{layer}/{w,b,g,c}`; `meta/`, constants; `batch/`; for each part of the
loss its noise, value, intermediates and gradients; `step{s}/`, all networks after update s of a training
that goes on on the same batch; `sample/` and `flow/`, actions. Its networks have no unused inputs: here
rows of zeros are put in for them, and left out again, when their gradients have been seen to be 0.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sorl_fast.batch import Batch
from sorl_fast.learn.algorithms import bc, fql, idql, ifql, iql, method_of, rebrac
from sorl_fast.learn.learner import Learner
from sorl_fast.learn.losses import gaussian_log_prob
from sorl_fast.learn.networks import Network
from sorl_fast.learn.score_network import ReluValue, ScoreNetwork
from sorl_fast.ops import aggregate

Note = Callable[..., None]  # (name, value, reference, floor=0)


class Arrays(Mapping[str, Tensor]):
    """The arrays of a file, which remember whether they were read."""

    def __init__(self, arrays: Mapping[str, Tensor]):
        self._arrays = dict(arrays)
        self.unread = set(arrays)

    def __getitem__(self, key: str) -> Tensor:
        x = self._arrays[key]
        self.unread.discard(key)
        return x

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def number(self, key: str) -> float:
        return float(self[f"meta/{key}"])

    def groups(self, kind: str) -> list[str]:
        """Return `{kind}1`, `{kind}2`, ... (or `{kind}/0`, ...) as far as there are any."""
        found = {k.split("/")[0] if kind[-1] != "/" else "/".join(k.split("/")[:2]) for k in self}
        numbered = {g.removeprefix(kind): g for g in found if g.startswith(kind)}
        return [numbered[n] for n in sorted(filter(str.isdigit, numbered), key=int)]

    def layers(self, network: str) -> list[str]:
        """Return the names of a network's layers, in the order in which a forward reads them."""
        names = {k.split("/")[1] for k in self if k.startswith(f"{network}/") and k.count("/") == 2}
        blocks = [f"block{j}{x}" for j in range(len(names)) for x in "ab"]
        if "time" in names:
            order = ["time", "cond0", "cond1", "in", *blocks, "out"]
        else:
            order = ["in", *sorted(filter(str.isdigit, names), key=int)]
        return [name for name in order if name in names]


class Form:
    """How a network of ours is laid out in a file."""

    def __init__(self, network: Network, arrays: Arrays, prefix: str):
        self.names = arrays.layers(prefix)
        theirs = arrays[f"{prefix}/{self.names[0]}/{'w' if self.names[0] != 'in' else 'g'}"]
        first = next(iter(network.tensors().values()))
        # a value of ours is an ensemble of one
        self.lead = first.ndim - theirs.ndim == 1
        weights = network.layers()[0][0]
        self.unused: slice | None = None
        if weights.shape[-2:] != theirs.shape[-2:] and not isinstance(
            network, ScoreNetwork | ReluValue
        ):
            rows = (weights[..., :, 0].reshape(-1, weights.shape[-2]) == 0).all(0)
            at = rows.nonzero().flatten().tolist()  # fresh weights are 0 in unused rows alone
            self.unused = slice(at[0], at[-1] + 1)

    def key(self, ours: str) -> str:
        index, letter = ours.split("/")
        return f"{self.names[int(index)]}/{letter}"

    def theirs(self, ours: str, x: Tensor) -> Tensor:
        """Return a tensor of ours as the file has it; rows that are left out must be 0."""
        if self.unused is not None and ours == "0/w":
            assert not x[..., self.unused, :].any(), f"unused rows of {ours} are not 0"
            keep = torch.ones(x.shape[-2], dtype=torch.bool)
            keep[self.unused] = False
            x = x[..., keep, :]
        return x.squeeze(0) if self.lead else x

    @torch.no_grad()
    def load(self, network: Network, arrays: Arrays, prefix: str) -> None:
        for ours, x in network.tensors().items():
            given = arrays[f"{prefix}/{self.key(ours)}"]
            given = given.unsqueeze(0) if self.lead else given
            if self.unused is not None and ours == "0/w":
                keep = torch.ones(x.shape[-2], dtype=torch.bool)
                keep[self.unused] = False
                x.zero_()
                x[..., keep, :] = given
            else:
                x.copy_(given)


class File:
    """A file with the learner that it describes.

    Parameters
    ----------
    arrays
        Its arrays.
    config
        The method's settings that its constants and shapes say.
    prefixes
        Our networks' names -> the file's.
    """

    def __init__(self, arrays: Arrays, config: Any, prefixes: Mapping[str, str]):
        self.arrays, self.config, self.prefixes = arrays, config, prefixes
        fields = {f: arrays[f"batch/{f}"] for f in Batch._fields if f"batch/{f}" in arrays}
        nothing = dict.fromkeys(Batch._fields, torch.empty(0))
        self.batch = Batch(**nothing | {"next_actions": None} | fields)
        self.O, self.A = fields["observations"].shape[1], fields["actions"].shape[1]
        self.learner = self.fresh()

    def fresh(self) -> Learner:
        """Return a learner with the file's first weights."""
        random = torch.Generator().manual_seed(0)
        learner = Learner(method_of(self.config), self.O, self.A, random)
        self.forms = {}
        for name, prefix in self.prefixes.items():
            form = self.forms[name] = Form(learner.networks[name], self.arrays, prefix)
            form.load(learner.networks[name], self.arrays, prefix)
            if name in learner.targets:
                form.load(learner.targets[name], self.arrays, f"target_{prefix}")
        return learner

    def losses(self, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the method's losses, with a gradient."""
        return self.learner.method.losses(self.learner, self.batch, noise, True)

    def gradient(self, note: Note, loss: Tensor, name: str, group: str) -> None:
        """Compare the gradient of a loss by a network with `{group}/grad_{net}`."""
        tensors = self.learner.networks[name].tensors()
        grads = torch.autograd.grad(loss, list(tensors.values()), retain_graph=True)
        form = self.forms[name]
        for ours, grad in zip(tensors, grads, strict=True):
            key = f"{group}/grad_{self.prefixes[name]}/{form.key(ours)}"
            note(f"{group} gradient", form.theirs(ours, grad), self.arrays[key])

    def updated(self, note: Note, learner: Learner, group: str) -> None:
        """Compare all networks and targets with those of `{group}`."""
        for networks, front in ((learner.networks, ""), (learner.targets, "target_")):
            for name, network in networks.items():
                form = self.forms[name]
                for ours, x in network.tensors().items():
                    key = f"{group}/{front}{self.prefixes[name]}/{form.key(ours)}"
                    note(f"{group} networks", form.theirs(ours, x.detach()), self.arrays[key])

    def steps(
        self, note: Note, noise_of: Callable[[str], Mapping[str, Tensor]], *losses: str
    ) -> None:
        """Make the recorded updates in a row; `losses`: metrics that `{group}/{loss}` has."""
        learner, method = self.fresh(), self.learner.method
        for number, group in enumerate(self.arrays.groups("step"), 1):
            choice = method.choose(torch.Generator(), number)
            metrics = learner.update(self.batch, noise_of(group), choice)
            for name in losses:
                got = metrics[[*method.metrics].index(name)]
                note(f"{group} losses", got, self.arrays[f"{group}/{name}"])
            self.updated(note, learner, group)


def _shape(a: Arrays, network: str) -> dict[str, int]:
    """Return width and number of hidden layers of a network."""
    layers = a.layers(network)
    return {
        "hidden": a[f"{network}/0/w"].shape[-1],
        "depth": len([x for x in layers if x != "in"]) - 1,
    }


def _common(a: Arrays, network: str = "actor", *, critics: bool = True) -> dict[str, Any]:
    found: dict[str, Any] = {"lr": a.number("lr"), "batch_size": len(a["batch/observations"])}
    if critics:
        found |= {"gamma": a.number("discount"), "tau": a.number("tau")}
        found["ensemble"] = a["critic/0/w"].shape[0]
    return found | _shape(a, network)


def _no_noise(group: str) -> dict[str, Tensor]:
    return {}


def _compare(note: Note, a: Arrays, group: str, **values: Tensor) -> None:
    for name, x in values.items():
        note(f"{group} {name}", x, a[f"{group}/{name}"])


# ---- one check a method


def check_bc(a: Arrays, note: Note) -> None:
    """The actor of unit deviation."""
    assert a.number("const_std") == 1
    file = File(a, bc.BcConfig(**_common(a, critics=False)), {"actor": "actor"})
    loss = file.losses({})["actor_loss"]
    mean = file.learner.networks["actor"](file.batch.observations)
    log_prob = gaussian_log_prob(mean, file.batch.actions)
    _compare(note, a, "actor", loss=loss, mean=mean, log_prob=log_prob)
    file.gradient(note, loss, "actor", "actor")
    file.steps(note, _no_noise)
    _gaussian_actions(note, file)


def _gaussian_actions(note: Note, file: File) -> None:
    a = file.arrays
    mean = file.learner.networks["actor"](a["sample/obs"])
    note("actions", (mean + a["sample/noise"]).clamp(-1, 1), a["sample/action"])
    note("actions", mean.clamp(-1, 1), a["sample/mode"])


def _judged(note: Note, file: File, losses: Mapping[str, Tensor]) -> iql.Judged:
    """Compare IQL's value and critics."""
    a, batch, config = file.arrays, file.batch, file.config
    judged = iql.judge(file.learner, batch, config)
    target_q = file.learner.targets["critic"](batch.observations, batch.actions, 0).amin(0)
    next_v = file.learner.networks["value"](batch.next_observations)
    y = batch.rewards + config.gamma * batch.masks * next_v
    _compare(note, a, "value", loss=losses["value_loss"], v=judged.v, target_q=target_q)
    _compare(note, a, "critic", loss=losses["critic_loss"], q=judged.q, target_q=y)
    for name in ("value", "critic"):
        file.gradient(note, losses[f"{name}_loss"], name, name)
    return judged


def check_iql(a: Arrays, note: Note) -> None:
    """Value, critics, and the actor by both of its losses."""
    assert a.number("const_std") == 1
    own = {"alpha": a.number("alpha"), "expectile": a.number("expectile")}
    names = {"value": "value", "critic": "critic", "actor": "actor"}
    kind = "ddpgbc" if a.number("actor_loss_ddpgbc") else "awr"
    file = File(a, iql.IqlConfig(**_common(a), **own, actor_loss=kind), names)
    losses = file.losses({})
    judged = _judged(note, file, losses)
    batch, networks = file.batch, file.learner.networks
    mean = networks["actor"](batch.observations)
    log_prob = gaussian_log_prob(mean, batch.actions)
    advantage = judged.q.amin(0) - judged.v
    weight = (own["alpha"] * advantage).exp().clamp(max=100)
    awr = iql.awr_loss(mean, batch.actions, advantage.detach(), own["alpha"])
    _compare(note, a, "actor", mean=mean, log_prob=log_prob, adv=advantage, awr_weight=weight)
    _compare(note, a, "actor", loss=awr)
    file.gradient(note, awr, "actor", "actor")
    q_part = iql.ddpg_loss(networks["critic"], batch.observations, mean.clamp(-1, 1))
    bc_part = -own["alpha"] * log_prob.mean()
    _compare(note, a, "actor_ddpgbc", loss=q_part + bc_part, bc_loss=bc_part)
    note("actor_ddpgbc q_loss", q_part, a["actor_ddpgbc/q_loss"], floor=1.0)
    file.gradient(note, q_part + bc_part, "actor", "actor_ddpgbc")
    other = File(a, iql.IqlConfig(**_common(a), **own, actor_loss="ddpgbc"), names)
    note("actor_ddpgbc loss", other.losses({})["actor_loss"], a["actor_ddpgbc/loss"])
    file.steps(note, _no_noise)
    _gaussian_actions(note, file)


def check_ifql(a: Arrays, note: Note) -> None:
    """IQL's value and critics, the flow, and the best of N."""
    own = {"expectile": a.number("expectile"), "flow_steps": int(a.number("flow_steps"))}
    own["num_samples"] = int(a.number("num_samples"))
    names = {"value": "value", "critic": "critic", "actor": "actor_flow"}
    file = File(a, ifql.IfqlConfig(**_common(a, "actor_flow"), **own), names)

    def noise_of(group: str) -> dict[str, Tensor]:
        return {"t": a[f"{group}/t"].squeeze(-1), "x0": a[f"{group}/x0"]}

    losses = file.losses(noise_of("actor"))
    _judged(note, file, losses)
    _compare(note, a, "actor", loss=losses["actor_loss"])
    file.gradient(note, losses["actor_loss"], "actor", "actor")
    file.steps(note, noise_of)
    networks = file.learner.networks
    for group in a.groups("sample/"):
        noise = a[f"{group}/noise"]
        assert len(noise) == file.config.num_samples
        obs = a[f"{group}/obs"].expand(len(noise), -1)
        candidates = networks["actor"].sample(obs, noise, file.config.flow_steps)
        _best(note, a, group, candidates, networks["critic"](obs, candidates, 0))


def _best(note: Note, a: Arrays, group: str, candidates: Tensor, q: Tensor) -> None:
    q = aggregate(q, "min")
    note("candidates", candidates, a[f"{group}/candidates"])
    note("candidates", q, a[f"{group}/q"])
    note("actions", candidates[q.argmax()], a[f"{group}/action"])


def check_rebrac(a: Arrays, note: Note) -> None:
    """Both losses, one full update from zero, and updates with and without an actor loss."""
    floats = ("alpha_actor", "alpha_critic", "actor_noise", "actor_noise_clip")
    own = {name: a.number(name) for name in floats} | {"actor_freq": int(a.number("actor_freq"))}
    config = rebrac.RebracConfig(**_common(a), **own)
    file = File(a, config, {"actor": "actor", "critic": "critic"})
    learner, batch = file.learner, file.batch
    noise = a["critic/noise"]
    losses = file.losses({"td_noise": noise})
    y = rebrac.td_target(learner.targets["actor"], learner.targets["critic"], batch, noise, config)
    next_actions = rebrac.act(learner.targets["actor"], batch.next_observations)
    next_actions = rebrac.noisy(next_actions, noise, config)
    _compare(note, a, "critic", loss=losses["critic_loss"], next_actions=next_actions, target_q=y)
    _compare(note, a, "critic", q=rebrac.td_loss(learner.networks["critic"], batch, y)[1])
    actions = rebrac.act(learner.networks["actor"], batch.observations)
    q = learner.networks["critic"](batch.observations, actions, 0)
    _compare(note, a, "actor", actions=actions, q=q)
    for name in ("actor_loss", "q_loss", "bc_loss"):
        key = name.removeprefix("actor_")
        note(f"actor {key}", losses[name], a[f"actor/{key}"], floor=1.0)
    file.gradient(note, losses["critic_loss"], "critic", "critic")
    file.gradient(note, losses["actor_loss"], "actor", "actor")

    def noise_of(group: str) -> dict[str, Tensor]:
        return {"td_noise": a[f"{group}/critic_noise"]}

    full = file.fresh()
    full.update(batch, noise_of("full"), True)
    file.updated(note, full, "full")
    file.steps(note, noise_of)
    mode = rebrac.act(learner.networks["actor"], a["sample/obs"])
    note("actions", mode, a["sample/mode"])
    note("actions", rebrac.noisy(mode, a["sample/noise"], config), a["sample/action"])


def check_fql(a: Arrays, note: Note) -> None:
    """The critics, the flow, the one-step actor by its parts, and the flow's own actions."""
    own: dict[str, Any] = {"alpha": a.number("alpha"), "flow_steps": int(a.number("flow_steps"))}
    own["q_agg"] = "min" if a.number("q_agg_min") else "mean"
    own["normalize_q_loss"] = bool(a.number("normalize_q_loss"))
    config = fql.FqlConfig(**_common(a, "actor_bc_flow"), **own)
    names = {"critic": "critic", "flow": "actor_bc_flow", "actor": "actor_onestep_flow"}
    file = File(a, config, names)
    networks, targets, batch = file.learner.networks, file.learner.targets, file.batch

    def noise_of(group: str, td: str) -> dict[str, Tensor]:
        noise = {"t": a[f"{group}/t"].squeeze(-1), "td_noise": a[td]}
        return noise | {name: a[f"{group}/{name}"] for name in ("x0", "noise")}

    noise = noise_of("actor", "critic/noise")
    losses = file.losses(noise)
    y = fql.td_target(networks["actor"], targets["critic"], batch, noise["td_noise"], config)
    next_actions = fql.act(networks["actor"], batch.next_observations, noise["td_noise"])
    _compare(note, a, "critic", loss=losses["critic_loss"], next_actions=next_actions, target_q=y)
    _compare(note, a, "critic", q=fql.td_loss(networks["critic"], batch, y)[1])
    file.gradient(note, losses["critic_loss"], "critic", "critic")
    goal = networks["flow"].sample(batch.observations, noise["noise"], config.flow_steps)
    actions = networks["actor"](batch.observations, noise["noise"])
    _compare(note, a, "actor", target_flow_actions=goal)
    q = networks["critic"](batch.observations, actions.clamp(-1, 1), 0).mean(0)
    _compare(note, a, "actor", actions=actions, q=q)
    for name, theirs, net in (
        ("flow_loss", "bc_flow_loss", "flow"),
        ("distill_loss", "distill_loss", "actor"),
        ("q_loss", "q_loss", "actor"),
    ):
        group, floor = f"actor/{theirs}", float(name == "q_loss")
        note(group, losses[name], a[f"{group}/loss"], floor=floor)
        file.gradient(note, losses[name], net, group)
    note("actor loss", losses["flow_loss"] + losses["actor_loss"], a["actor/loss"])
    file.gradient(note, losses["flow_loss"], "flow", "actor")
    file.gradient(note, losses["actor_loss"], "actor", "actor")
    file.steps(note, lambda group: noise_of(group, f"{group}/critic_noise"))
    action = fql.act(networks["actor"], a["sample/obs"], a["sample/noise"])
    note("actions", action, a["sample/action"])
    flow = networks["flow"].sample(a["flow/obs"], a["flow/noise"], config.flow_steps)
    note("flow actions", flow, a["flow/action"])


def check_idql(a: Arrays, note: Note) -> None:
    """The score with and without dropout, value and critics, AdamW and its decay, the diffusion."""
    T = int(a.number("T"))
    blocks = len([k for k in a.layers("score") if k.startswith("block")]) // 2
    relu = _shape(a, "critic")
    own: dict[str, Any] = {
        "residual_hidden": relu["hidden"],
        "residual_depth": relu["depth"],
        "residual_blocks": blocks,
        "residual_frequencies": a["score/time/w"].shape[-1],
        "ensemble": a["critic/0/w"].shape[0],
        "diffusion_steps": T,
        "extra_steps": int(a.number("M")),
        "num_samples": int(a.number("N")),
        "decay_steps": int(a.number("decay_steps")),
        "batch_size": len(a["batch/observations"]),
        "gamma": a.number("discount"),
    }
    own |= {n: a.number(n) for n in ("expectile", "tau", "actor_tau", "lr", "weight_decay")}
    assert a.number("beta_schedule") == 0
    names = {"actor": "score", "critic": "critic", "value": "value"}
    file = File(a, idql.IdqlConfig(**own, dropout=0.0), names)
    networks, targets, batch = file.learner.networks, file.learner.targets, file.batch
    betas = torch.from_numpy(idql.vp_betas(T)).float()
    alphas, hats = 1 - betas, torch.from_numpy(np.cumprod(1 - idql.vp_betas(T))).float()
    _compare(note, a, "meta", betas=betas, alphas=alphas, alpha_hats=hats)

    def noise_of(group: str) -> dict[str, Tensor]:
        return {"t": a[f"{group}/time"] / T, "noise": a[f"{group}/noise"]}

    losses = file.losses(noise_of("actor"))
    time, eps = a["actor/time"], a["actor/noise"]
    noisy = idql.diffuse(batch.actions, eps, time, T)
    predicted = networks["actor"](batch.observations, noisy, time)
    _compare(note, a, "actor", loss=losses["actor_loss"], noisy_actions=noisy, eps_pred=predicted)
    file.gradient(note, losses["actor_loss"], "actor", "actor")
    target_q = targets["critic"](batch.observations, batch.actions).amin(0)
    v = networks["value"](batch.observations)
    _compare(note, a, "value", loss=losses["value_loss"], v=v, target_q=target_q)
    file.gradient(note, losses["value_loss"], "value", "value")
    y = batch.rewards + own["gamma"] * batch.masks * networks["value"](batch.next_observations)
    q = networks["critic"](batch.observations, batch.actions)
    _compare(note, a, "critic", loss=losses["critic_loss"], q=q, target_q=y)
    file.gradient(note, losses["critic_loss"], "critic", "critic")

    rate = a.number("dropout")
    keep = torch.stack([a[f"actor_dropout/keep{j}"] for j in range(blocks)])
    dropping = File(a, idql.IdqlConfig(**own, dropout=rate), names)
    # uniform numbers that dropout keeps, or does not
    drawn = noise_of("actor") | {"dropout": torch.where(keep > 0, rate, rate / 2)}
    method = dropping.learner.method
    assert isinstance(method, idql.Idql)
    loss = method.actor_loss(dropping.learner, batch, drawn, training=True)
    note("actor_dropout loss", loss, a["actor_dropout/loss"])
    dropping.gradient(note, loss, "actor", "actor_dropout")

    file.steps(note, noise_of, "actor_loss", "value_loss", "critic_loss")
    decaying = File(a, idql.IdqlConfig(**own | {"lr": a.number("decay_lr")}, dropout=0.0), names)
    optimiser = decaying.learner.optimisers["actor"]
    optimiser.apply(optimiser.zeros())
    for ours, x in decaying.learner.networks["actor"].tensors().items():
        key = f"decay/score/{decaying.forms['actor'].key(ours)}"
        note("weight decay", x.detach(), a[key])
    for group in a.groups("sample/"):
        _diffusion_action(note, file, group, betas, hats)


def _diffusion_action(note: Note, file: File, group: str, betas: Tensor, hats: Tensor) -> None:
    a, config = file.arrays, file.config
    x, z = a[f"{group}/x"], a[f"{group}/z"]
    bound = 1.0 if a.number("clip_sampler") else torch.inf
    obs = a[f"{group}/obs"].expand(len(x), -1)
    steps = [*reversed(range(config.diffusion_steps)), *[0] * config.extra_steps]
    for t, noise in zip(steps, z, strict=True):
        eps = file.learner.targets["actor"](obs, x, torch.full((len(x),), float(t)))
        x = (x - betas[t] / (1 - hats[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        if t > 0:
            x = x + betas[t].sqrt() * a.number("ddpm_temperature") * noise
        x = x.clamp(-bound, bound)
    x = x.clamp(-1, 1)
    q = file.learner.targets["critic"](obs, x)
    _best(note, a, group, x, q)
    # the candidates' probabilities where the authors draw instead of taking the best
    better = q.amin(0) > file.learner.networks["value"](obs)
    weight = torch.where(better, config.expectile, 1 - config.expectile)
    note("implicit probabilities", weight / weight.sum(), a[f"{group}/implicit_p"])


CHECKS: dict[str, Callable[[Arrays, Note], None]] = {
    "bc": check_bc,
    "iql": check_iql,
    "ifql": check_ifql,
    "rebrac": check_rebrac,
    "fql": check_fql,
    "idql": check_idql,
}
