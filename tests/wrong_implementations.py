"""Implementations of the operations that are wrong on purpose, each as a kernel could be."""

import math
import os
import signal
import time

import torch

from sorl_fast.ops import reference
from sorl_fast.ops.implementations import Implementation

TILE = 16


def right(name):
    def call(*args, precision, **kwargs):
        return getattr(reference, name)(*args, **kwargs)

    return call


def off(actor, obs, z, t, log2_steps, *, precision):
    return reference.velocity(actor, obs, z, t, log2_steps) * 1.001


def one_entry_off(actor, obs, z, t, log2_steps, *, precision):
    v = reference.velocity(actor, obs, z, t, log2_steps)
    change = torch.zeros_like(v)
    change[-1, -1] = 1e-3
    return v + change


def ragged(actor, obs, z, t, log2_steps, *, precision):
    """Writes whole tiles only."""
    v = reference.velocity(actor, obs, z, t, log2_steps)
    whole = len(v) // TILE * TILE
    out = torch.empty_like(v)
    out[:whole] = v[:whole]
    return out


class _Gradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.factor, None


def wrong_weight_gradient(actor, obs, z, t, log2_steps, *, precision):
    layers = [(_Gradient.apply(w, 1.001), b) for w, b in actor]
    return reference.velocity(layers, obs, z, t, log2_steps)


def wrong_input_gradient_form(actor, obs, z, t, log2_steps, *, precision):
    """Right when weights want gradients too."""
    factor = 1.0 if actor[0][0].requires_grad else 1.001
    return reference.velocity(actor, _Gradient.apply(obs, factor), z, t, log2_steps)


_stale = {}


def stale_weights(actor, obs, z, t, log2_steps, *, precision):
    """Packs weights once for each address."""
    address = actor[0][0].data_ptr()
    if address not in _stale:
        _stale[address] = [w.detach().clone() for w, _ in actor]
    old = _stale[address]
    layers = [(w + (o - w.detach()), b) for (w, b), o in zip(actor, old, strict=True)]
    return reference.velocity(layers, obs, z, t, log2_steps)


_buffer = {}


def one_buffer(actor, obs, z, t, log2_steps, *, precision):
    """Returns the same memory every time."""
    v = reference.velocity(actor, obs, z, t, log2_steps)
    own = _buffer.setdefault(v.shape, torch.empty_like(v).detach())
    own.copy_(v.detach())
    return _Alias.apply(v, own)


class _Alias(torch.autograd.Function):
    @staticmethod
    def forward(ctx, v, own):
        return own

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def reads_beyond(actor, obs, z, t, log2_steps, *, precision):
    """Reads one number after the end of z."""
    after = torch.as_strided(z.detach(), (1,), (1,), z.storage_offset() + z.numel())
    return reference.velocity(actor, obs, z, t, log2_steps) + 0 * after


def writes_beyond(actor, obs, z, t, log2_steps, *, precision):
    torch.as_strided(z.detach(), (1,), (1,), z.storage_offset() + z.numel()).fill_(0)
    return reference.velocity(actor, obs, z, t, log2_steps)


def changes_an_input(actor, obs, z, t, log2_steps, *, precision):
    v = reference.velocity(actor, obs, z, t, log2_steps)
    t.add_(1)
    return v


def spreads_nan(actor, obs, z, t, log2_steps, *, precision):
    """Masks rows by a product with 0."""
    v = reference.velocity(actor, obs, z, t, log2_steps)
    return v + 0 * v.detach().sum(0)


def hides_nan(actor, obs, z, t, log2_steps, *, precision):
    return reference.velocity(actor, obs.nan_to_num(0), z.nan_to_num(0, 0, 0), t, log2_steps)


def transposed(actor, obs, z, t, log2_steps, *, precision):
    """Takes rows of obs to follow each other in memory."""
    flat = torch.as_strided(obs, obs.shape, (obs.shape[1], 1), obs.storage_offset())
    return reference.velocity(actor, flat, z, t, log2_steps)


def raises(*args, precision):
    raise RuntimeError("out of resource: shared memory, Required: 300000, Hardware limit: 232448")


def exits(*args, precision):
    os._exit(7)


def segfaults(*args, precision):
    os.kill(os.getpid(), signal.SIGSEGV)


def hangs(*args, precision):
    while True:
        time.sleep(1)


def prints(actor, obs, z, t, log2_steps, *, precision):
    """Right, but writes where reports might go."""
    os.write(1, b'{"outcome": {"status": "nonsense"}}\n')
    return reference.velocity(actor, obs, z, t, log2_steps)


def no_clip(actor, obs, noise, steps, *, precision):
    return reference.denoise(actor, obs, noise, steps)


def wrong_key(actor, obs, noise, steps, *, precision):
    """Forgets the row offset of a key."""
    if noise.dtype == torch.int64:
        key = noise * torch.tensor([1, 1, 0])
        noise = reference.normals(key, len(obs), 1, actor[-1][0].shape[-1])[:, 0]
    return reference.rollout(actor, obs, noise, steps)


def right_key(actor, obs, noise, steps, *, precision):
    if noise.dtype == torch.int64:
        noise = reference.normals(noise, len(obs), 1, actor[-1][0].shape[-1])[:, 0]
    return reference.rollout(actor, obs, noise, steps)


def one_member(critic, obs, actions, steps, *, precision):
    """Member 0's bias for every member."""
    layers = [(w, b[:1].expand_as(b), *norm) for w, b, *norm in critic]
    return reference.critic_ensemble(layers, obs, actions, steps)


def wrong_action_gradient_form(critic, obs, actions, steps, *, precision):
    """Right when the observations, or the weights, want gradients too."""
    alone = not (obs.requires_grad or critic[0][0].requires_grad)
    scaled = _Gradient.apply(actions, 1.001 if alone else 1.0)
    return reference.critic_ensemble(critic, obs, scaled, steps)


def drawing(actor, critic, obs, noise, steps, *rest, candidates=None, precision, **more):
    """Right: an implementation that draws."""
    if noise.dtype == torch.int64:
        noise = reference.normals(noise, len(obs), candidates, actor[-1][0].shape[-1])
    return reference.best_of_n(actor, critic, obs, noise, steps, *rest, **more)


def forgets_rejected(*args, **more):
    found = drawing(*args, **more)
    return found._replace(status=found.status & ~16)


def wrong_if_not_scored(*args, want_q=True, **more):
    found = drawing(*args, want_q=want_q, **more)
    return found if want_q else found._replace(action=found.action * 1.01)


def unpaired(actor, critic, obs, noise, *rest, precision, **more):
    return reference.best_of_n(actor, critic, obs, noise.roll(1, 0), *rest, **more)


def second_best(actor, critic, obs, noise, *rest, precision, **more):
    found = reference.best_of_n(actor, critic, obs, noise, *rest, **more)
    if noise.shape[1] > 1:
        other = noise.clone()
        other[torch.arange(len(obs)), found.candidate] = torch.nan
        second = reference.best_of_n(actor, critic, obs, other, *rest, **more)
        found = second._replace(status=found.status & ~8 | second.status & 8)
    return found


def loves_nan(actor, critic, obs, noise, *rest, precision, **more):
    """A candidate that is not finite wins."""
    found = reference.best_of_n(actor, critic, obs, noise, *rest, **more)
    bad = ~noise.isfinite().all(-1)
    if noise.shape[1] > 1 and bad.any():
        index = torch.where(bad.any(1), bad.int().argmax(1), found.candidate)
        found = found._replace(candidate=index)
    return found


def index_beyond(actor, critic, obs, noise, *rest, precision, **more):
    found = reference.best_of_n(actor, critic, obs, noise, *rest, **more)
    return found._replace(candidate=found.candidate + noise.shape[1])


def ignores_the_rule(*args, precision, rule=None, **more):
    return reference.best_of_n(*args, **more)


def forgets_the_offset(*args, precision, rule=None, **more):
    """A rule's number is that of row 0 on."""
    if rule is not None and rule.key is not None:
        rule = rule._replace(key=rule.key * torch.tensor([1, 1, 0]))
    return reference.best_of_n(*args, rule=rule, **more)


def wrong_part(*args, precision, rule=None, **more):
    """Takes all for the nearest part."""
    if rule is not None and rule.name == "nearest":
        rule = rule._replace(parameter=(1, 1))
    return reference.best_of_n(*args, rule=rule, **more)


def next_steps_time(*args, precision, schedule, **more):
    """A step reads what the next one should."""
    times = (*schedule.times[1:], schedule.times[0])
    return reference.best_of_n(*args, schedule=schedule._replace(times=times), **more)


def equal_steps(*args, precision, schedule, **more):
    """Takes steps of Euler's to be equal."""
    sizes = schedule.v_scales
    if schedule.k is not None:
        sizes = (sum(sizes) / len(sizes),) * len(sizes)
    return reference.best_of_n(*args, schedule=schedule._replace(v_scales=sizes), **more)


def tells_the_count(*args, precision, schedule, **more):
    """Tells the critic M whatever the schedule says."""
    return reference.best_of_n(*args, schedule=schedule._replace(k=None), **more)


def one_draw(actor, critic, obs, noise, *rest, precision, schedule, **more):
    """Adds the first draw at every step."""
    if schedule.draws > 1:
        noise = noise[:, :, :1].expand_as(noise)
    return reference.best_of_n(actor, critic, obs, noise, *rest, schedule=schedule, **more)


def adam_without_clip(*args, clip_norm, **kwargs):
    return reference.adam_ema_step(*args, clip_norm=math.inf, **kwargs)


def adam_always_clips(params, grads, *rest, clip_norm, more_grads=(), **kwargs):
    grads = [g.clone() for g in grads]
    for g, more in zip(grads, more_grads, strict=False):
        g.add_(more)
    norm = torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads]))
    grads = [g / norm * clip_norm for g in grads]
    reference.adam_ema_step(params, grads, *rest, clip_norm=math.inf, **kwargs)
    return norm


def adam_drops_a_part(*args, more_grads=(), **kwargs):
    return reference.adam_ema_step(*args, **kwargs)


def adam_early_ema(params, grads, first, second, targets, step, *, tau, **kwargs):
    for target, p in zip(targets, params, strict=True):
        target.lerp_(p, tau)
    return reference.adam_ema_step(params, grads, first, second, targets, step, tau=0, **kwargs)


def adam_aligned(params, *args, **kwargs):
    """Reads 16 bytes at a time, from the multiple of 16 below an address."""
    norm = reference.adam_ema_step(params, *args, **kwargs)
    if params[0].data_ptr() % 16:
        params[0].mul_(1.001)
    return norm


def adam_hides_inf(*args, **kwargs):
    return reference.adam_ema_step(*args, **kwargs).nan_to_num(0, 0, 0)


def normals_of_float32(key, rows, candidates, act_dim):
    return (reference.normals(key, rows, candidates, act_dim) * 1.000002).contiguous()


def words_of_31_bits(key, count):
    return reference.words(key, count) & 0x7FFFFFFF


WRONG = {
    # what is wrong -> operation, function, what the reason must say
    "value": ("velocity", off, "value is off by 1.0e-03"),
    "one-entry": ("velocity", one_entry_off, "value is off"),
    "ragged": ("velocity", ragged, "value has 25 entries"),
    "weight-gradient": ("velocity", wrong_weight_gradient, "d parameter 0 is off"),
    "input-gradient-form": ("velocity", wrong_input_gradient_form, "gradients of inputs alone"),
    "stale": ("velocity", stale_weights, "after its weights changed"),
    "one-buffer": ("velocity", one_buffer, "changed an earlier result"),
    "reads-beyond": ("velocity", reads_beyond, "not finite"),
    "writes-beyond": ("velocity", writes_beyond, "writes beyond"),
    "changes-input": ("velocity", changes_an_input, "changes an input"),
    "spreads-nan": ("velocity", spreads_nan, "beside those that are not finite"),
    "hides-nan": ("velocity", hides_nan, "makes a number"),
    "strides": ("velocity", transposed, "without gradients"),
    "no-clip": ("rollout", no_clip, "value is off"),
    "key": ("rollout", wrong_key, "noise from a key"),
    "member": ("critic_ensemble", one_member, "value is off"),
    "action-gradient-form": (
        "critic_ensemble",
        wrong_action_gradient_form,
        "the action's gradient alone",
    ),
    "status": ("best_of_n", forgets_rejected, "has status"),
    "not-scored": ("best_of_n", wrong_if_not_scored, "with one candidate"),
    "unpaired": ("best_of_n", unpaired, "action is off"),
    "second-best": ("best_of_n", second_best, "below the best"),
    "nan-wins": ("best_of_n", loves_nan, "beside what is not finite"),
    "index": ("best_of_n", index_beyond, "index is not in"),
    "rule": ("best_of_n", ignores_the_rule, "by the rule"),
    "rule-offset": ("best_of_n", forgets_the_offset, "by the rule better"),
    "rule-part": ("best_of_n", wrong_part, "by the rule nearest"),
    "steps-time": ("best_of_n_scheduled", next_steps_time, "action is off"),
    "steps-equal": ("best_of_n_scheduled", equal_steps, "uneven"),
    "steps-told": ("best_of_n_scheduled", tells_the_count, "q is off"),
    "draws": ("best_of_n_scheduled", one_draw, "diffusion"),
    "adam-no-clip": ("adam_ema_step", adam_without_clip, "is off"),
    "adam-clips": ("adam_ema_step", adam_always_clips, "is off"),
    "adam-part": ("adam_ema_step", adam_drops_a_part, "is off"),
    "adam-ema": ("adam_ema_step", adam_early_ema, "target 0 is off"),
    "adam-aligned": ("adam_ema_step", adam_aligned, "parameter 0 is off"),
    "adam-inf": ("adam_ema_step", adam_hides_inf, "the norm of a gradient"),
    "normals": ("normals", normals_of_float32, "are off"),
    "words": ("words", words_of_31_bits, "are off"),
}
DRAWING = ("key", "not-scored")
ALL = {
    operation: {
        name: Implementation(function, draws=name in DRAWING)
        for name, (of, function, _) in WRONG.items()
        if of == operation
    }
    for operation in {of for of, *_ in WRONG.values()}
}
RIGHT_KEY = {
    "rollout": {"fused": Implementation(right_key, draws=True)},
    "best_of_n": {"fused": Implementation(drawing, draws=True)},
}
# for the children: some that end their process, between some that are right
ENDING = {
    "velocity": {
        "prints": Implementation(prints),
        "hangs": Implementation(hangs),
        "segfaults": Implementation(segfaults),
        "exits": Implementation(exits),
        "raises": Implementation(raises),
        "ragged": Implementation(ragged),
        "right": Implementation(right("velocity")),
    }
}
