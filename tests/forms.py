"""Policies of every form, with weights in closed form."""

import numpy as np
from policies import filled

from sorl_fast.act.form import Diffusion, Direct, Euler, Tanh, tensor_shapes
from sorl_fast.act.policy_file import Policy

STEPS = {
    "times": (0.75, 0.5, 0.25, 0.0, 0.0),
    "z_scales": (2.0, 1.5, 1.25, 1.125, 1.0),
    "v_scales": (-0.75, -0.5, -0.25, -0.125, -0.1),
    "noise_scales": (0.5, 0.0, 0.25, 0.0, 0.0),
}
FORMS = {
    "euler": Euler(counts=(3, 10)),
    "direct": Direct(reads_noise=False),
    "direct reading": Direct(reads_noise=True),
    "direct noisy": Direct(reads_noise=False, temperature=0.5, noise_scale=0.75, noise_clip=0.25),
    "tanh": Tanh(reads_noise=False, noise_scale=0.2, noise_clip=0.5),
    "tanh noisy": Tanh(reads_noise=False, temperature=1.0, noise_scale=0.5),
    "tanh reading": Tanh(reads_noise=True),
    "diffusion": Diffusion(**STEPS, clip=1.0),
    "diffusion quiet": Diffusion(**STEPS | {"noise_scales": (0.0,) * 5}, clip=None),
    "residual": Diffusion(**STEPS, clip=1.5, temperature=0.5, blocks=2, frequencies=3),
}


def form_policy(form, O=3, A=2, H=8, depth=2, E=2, *, salt=0, normalise=False, **more):
    """Return a policy of a form; E = 0: without critics."""
    layers = {"actor": {}, "critic": {}}
    shapes = tensor_shapes(O, A, H, E, depth, form)
    for number, (name, shape) in enumerate(shapes.items()):
        network, i, letter = name.split("/")
        fan = sum(shape[-2:]) if letter == "w" else 60
        x = filled(shape, salt + number, fan)
        layers[network].setdefault(i, []).append(1 + x if letter == "g" else x)
    fields = {
        **{"obs_dim": O, "act_dim": A, "hidden": H, "depth": depth, "ensemble": E},
        **{"m_disc": 1, "m_btt": 1, "q_agg": "min", "env": "toy-v0", "form": form},
        **{name: tuple(map(tuple, parts.values())) for name, parts in layers.items()},
        **{"action_low": np.full(A, -1.0), "action_high": np.full(A, 1.0)},
    }
    if normalise:
        fields["obs_mean"] = filled((O,), salt + 5, 6)
        fields["obs_std"] = 1 + np.abs(filled((O,), salt + 6, 6))
    return Policy(**(fields | more))
