"""Initial weights of IDQL's own networks."""

import math

import torch

from sorl_fast.learn.score_network import fresh_critics, fresh_score, fresh_value


@torch.no_grad()
def test_fresh_weights_have_the_authors_scales():
    g = torch.Generator().manual_seed(0)
    O, A, H = 20, 4, 128
    (time,), first, second, entry, wide, narrow, last = fresh_score(O, A, H, 1, 64, g).layers()
    assert time.shape == (1, 64)
    assert abs(float(time.std()) - 0.2) < 0.05
    glorot = [(first, 128, H), (second, H, H), (entry, A + O + H, H), (last, H, A)]
    for i, members in enumerate((3, None)):
        net = fresh_critics(O, A, H, 2, 3, g) if members else fresh_value(O, H, 2, g)
        layers = net.layers()[1 - bool(members) :]
        widths = (O + (0 if i else A), H, H, 1)
        glorot += [(layer, *widths[j : j + 2]) for j, layer in enumerate(layers)]
    for (w, b), fan_in, fan_out in glorot:
        assert w.shape[-2:] == (fan_in, fan_out)
        bound = math.sqrt(6 / (fan_in + fan_out))
        assert 0.9 * bound < w.abs().max() <= bound
        assert not b.any()
    for (w, b, *norm), fan_in in ((wide, H), (narrow, 4 * H)):
        scale = math.sqrt(1 / fan_in)
        assert abs(float(w.std()) / scale - 1) < 0.02
        assert w.abs().max() <= 2.28 * scale
        assert not b.any()
        assert all(torch.equal(x, y) for x, y in zip(norm, (torch.ones(H), torch.zeros(H))))  # noqa: B905


def test_dropout_keeps_what_its_mask_says():
    g = torch.Generator().manual_seed(0)
    score = fresh_score(3, 2, 8, 2, 4, g)
    obs, z, t = torch.randn(5, 3), torch.randn(5, 2), torch.arange(5.0)
    every = torch.ones(2, 5, 8)
    assert torch.equal(score(obs, z, t, every, 0.0), score(obs, z, t))
    # a row whose units are all dropped still passes its residual
    none = every.clone()
    none[:, 2] = 0
    out, plain = score(obs, z, t, none, 0.0), score(obs, z, t)
    assert not torch.equal(out[2], plain[2])
    assert torch.equal(out[[0, 1, 3, 4]], plain[[0, 1, 3, 4]])
