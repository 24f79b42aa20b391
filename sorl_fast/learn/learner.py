"""What is trained: a method's networks, their EMA targets and their optimisers."""

import copy
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import ops
from ..batch import Batch
from ..errors import BadInput
from ..ops.replay import Replayed
from .method import Method, Trained
from .noise import Noise
from .optimiser import AdamEma, AdamW, AdamWSettings


class Learner(Trained):
    """A method's networks by name, and all that training changes.

    Parameters
    ----------
    method
        What is learned, and how.
    obs_dim, act_dim
        O and A.
    generator
        Draws the initial weights; a CPU generator, so that they are equal on every device.
    device
        Where everything lives.
    """

    def __init__(
        self,
        method: Method[Any],
        obs_dim: int,
        act_dim: int,
        generator: torch.Generator,
        device: torch.device | str = "cpu",
    ):
        self.method = method
        self.networks, self.targets, self.optimisers = {}, {}, {}
        for name, spec in method.networks(obs_dim, act_dim).items():
            network = self.networks[name] = spec.make(generator).to(device)
            if spec.target:
                self.targets[name] = copy.deepcopy(network).requires_grad_(False)
            target = self.targets.get(name)
            self.optimisers[name] = (
                AdamW(network, target, spec.adam)
                if isinstance(spec.adam, AdamWSettings)
                else AdamEma(network, target, spec.adam)
            )
        if torch.device(device).type == "cpu":
            for adam in self.optimisers.values():
                for tensors in (adam.params, adam.targets, adam.first, adam.second):
                    ops.settle(tensors)
        self.kept = {name: x.to(device) for name, x in method.kept().items()}
        self._replayed = Replayed()

    def count_on_device(self) -> None:
        """Count the optimisers' steps on the device: see `AdamEma.count_on_device`."""
        for optimiser in self.optimisers.values():
            optimiser.count_on_device()

    def update(self, batch: Batch, noise: Noise, choice: Hashable) -> Tensor:
        """Make one update in place; return the method's metrics: see `Method.update`.

        On the native operations an update of a choice made twice is replayed, with the same bits: its
        minibatch and noise may be others, but all else that it reads stays where it is.
        """
        setting = ops.native_setting() if batch.rewards.device.type == "cpu" else None
        if setting is None:
            return self.method.update(self, batch, noise, choice)
        self.count_on_device()  # where a replay raises them
        there = [name for name, x in batch._asdict().items() if x is not None]
        names = [*there, *noise]
        settings = [adam.settings for adam in self.optimisers.values()]
        key = choice, self.method.config, setting, *names, *settings

        def step(*inputs: Tensor) -> Tensor:
            own = dict(zip(names, inputs, strict=True))
            drawn = {name: own[name] for name in noise}
            return self.method.update(
                self, batch._replace(**{x: own[x] for x in there}), drawn, choice
            )

        tensors = [x for x in (*batch, *noise.values()) if x is not None]
        return self._replayed(key, tensors, step)

    def losses(self, batch: Batch, noise: Noise, choice: Hashable) -> dict[str, Tensor]:
        """Return the losses at `batch` without a gradient; used on the validation data."""
        with torch.no_grad():
            return self.method.losses(self, batch, noise, choice)

    def state(self) -> dict[str, Tensor]:
        """Return every tensor that training changes, by name; references, not copies."""
        named = [*self.networks.items()]
        named += [(f"target_{name}", network) for name, network in self.targets.items()]
        tensors = {
            f"{name}/{key}": x.detach()
            for name, network in named
            for key, x in network.tensors().items()
        }
        for name, adam in self.optimisers.items():
            for key, m, v in zip(
                self.networks[name].tensors(), adam.first, adam.second, strict=True
            ):
                tensors[f"{name}_adam/first/{key}"] = m
                tensors[f"{name}_adam/second/{key}"] = v
        return tensors | {f"kept/{name}": x for name, x in self.kept.items()}

    def load_state(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Take over the tensors of `state()` and the number of updates they have seen.

        Raises
        ------
        BadInput
            A tensor is missing or has another shape. Nothing is changed then.
        """
        own = self.state()
        for name, x in own.items():
            if name not in tensors:
                raise BadInput(f"the checkpoint has no tensor {name!r}; choose another checkpoint")
            if tensors[name].shape != x.shape:
                raise BadInput(
                    f"{name!r} has shape {tuple(tensors[name].shape)} in the checkpoint, but "
                    f"{tuple(x.shape)} here: its config or data set is another one"
                )
        for name, x in own.items():
            x.copy_(tensors[name])
        for adam in self.optimisers.values():
            adam.count_from(steps)
