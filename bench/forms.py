"""The other forms of a policy: which are raced."""

from sorl_fast.act.form import SHORTCUT, Diffusion, Direct, Euler, Form, Tanh

EULER = Euler(counts=(10,))
DIRECT = Direct(reads_noise=True)
# The default temperature is 0; but then all candidates are one, and there is nothing to choose.
TANH = Tanh(reads_noise=False, temperature=1.0, noise_scale=0.2, noise_clip=0.5)
NAMES = (EULER.kind, DIRECT.kind, TANH.kind, Diffusion.kind)


def make_form(name: str) -> Form | None:
    """Return the form of a name of `NAMES`, None for a shortcut: the methods' own defaults.

    Euler steps are IFQL's, the direct form FQL's, tanh ReBRAC's, and the diffusion IDQL's with the common
    networks: its coefficients are the method's, which needs what training needs.
    """
    if name == Diffusion.kind:
        from sorl_fast.learn.algorithms.idql import IdqlConfig, diffusion_form

        return diffusion_form(IdqlConfig(score="mlp"))
    return {SHORTCUT: None, EULER.kind: EULER, DIRECT.kind: DIRECT, TANH.kind: TANH}[name]
