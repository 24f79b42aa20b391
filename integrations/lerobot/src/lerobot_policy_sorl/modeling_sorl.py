"""A policy of sorl-fast as LeRobot's PreTrainedPolicy: a Sampler behind LeRobot's names.

Shape letters: B observations, O observation, A action, h actions of a chunk.
"""

from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Tensor

from sorl_fast import BadInput, Sampler
from sorl_fast.act.policy_file import Policy, load, save

from .configuration_sorl import UNTRAINED, SorlConfig
from .processor_sorl import make_sorl_pre_post_processors

WEIGHTS = "model.safetensors"  # a policy's file, under the name that LeRobot gives all weights
OWN = "policy.safetensors"  # under sorl-fast's own, in the folder of a run
ON_DEVICE = ("torch", "triton")  # backends that take tensors where they are


class SorlPolicy(PreTrainedPolicy):
    """Acts by a `Sampler`. It has no parameters that LeRobot could train or move.

    Parameters
    ----------
    config
        How it acts.
    policy
        What acts; `from_pretrained` reads it.

    Raises
    ------
    BadInput
        There is no policy, it does not fit the config's features, or the Sampler refuses the config.
    """

    config_class = SorlConfig
    name = "sorl"

    def __init__(self, config: SorlConfig, policy: Policy | None = None, **_: object) -> None:
        super().__init__(config)
        if policy is None:
            raise BadInput(UNTRAINED)
        _fit(config, policy)
        config.chunk_size = policy.chunk
        config.validate_features()
        self.policy = policy
        self.sampler = Sampler(policy, config.backend, config.precision, config.threads)
        self._calls = 0

    @classmethod
    def from_pretrained(
        cls,
        pretrained_name_or_path: str | Path,
        *,
        config: SorlConfig | None = None,
        force_download: bool = False,
        resume_download: bool | None = None,
        proxies: dict | None = None,
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        revision: str | None = None,
        strict: bool = True,
        **more: object,
    ) -> "SorlPolicy":
        """Return the policy of a file, of a run's folder, or of what `save_pretrained` wrote, in eval mode.

        A file and a run's folder have no config of LeRobot's: without `config` it is then the default. What
        is no path here is a name on the Hugging Face Hub.

        Raises
        ------
        BadInput
            There is no such file, it is no policy's, or it does not fit the config.
        """
        path = Path(pretrained_name_or_path)
        hub = {"force_download": force_download, "proxies": proxies, "token": token}
        hub |= {"cache_dir": cache_dir, "local_files_only": local_files_only, "revision": revision}
        hub = {name: value for name, value in hub.items() if value}  # versions know others
        if path.is_dir():
            found = [path / name for name in (WEIGHTS, OWN) if (path / name).is_file()]
            if not found:
                raise BadInput(
                    f"{path} has neither {WEIGHTS} nor {OWN}: give a policy's file or folder"
                )
            file = found[0]  # a run's config.json is sorl-fast's own
            has_config = file.name == WEIGHTS and (path / "config.json").is_file()
        elif path.exists():
            file, has_config = path, False
        elif path.is_absolute() or len(path.parts) != 2 or path.suffix:
            raise BadInput(
                f"{path} does not exist: give a policy's file, its folder, or OWNER/NAME"
            )
        else:
            file, has_config = Path(hf_hub_download(str(path), WEIGHTS, **hub)), True
        if config is None:
            config = PreTrainedConfig.from_pretrained(path, **hub) if has_config else SorlConfig()
        if not isinstance(config, SorlConfig):
            raise BadInput(f"{path} is a policy of the type {config.type}, not {cls.name}")
        return cls(config, load(file)).eval()

    def _save_pretrained(self, save_directory: Path) -> None:
        """Write weights, config and processors: all that LeRobot's commands read of a policy.path."""
        save(save_directory / WEIGHTS, self.policy)
        for processor in make_sorl_pre_post_processors(self.config):
            processor.save_pretrained(save_directory)
        self.config._save_pretrained(save_directory)

    def reset(self) -> None:
        """Begin an episode: nothing is held, and what is left of a chunk is dropped."""
        self.sampler.reset()
        self._calls = 0

    def select_action(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return the action of one tick [B, A]: of a new call, or the next one of the last call's chunk.

        Parameters
        ----------
        batch
            The features that `config.observations` names, [B, n] or [n] each; the others are not read.
        noise
            As in `Sampler.act`.

        Raises
        ------
        BadInput
            A feature is missing or has another width than the policy was trained with.
        """
        return self._act(self.sampler.replay, batch, noise)

    def predict_action_chunk(self, batch: dict[str, Tensor], noise: Tensor | None = None) -> Tensor:
        """Return the actions of h ticks, [B, h, A], and take none of `select_action`'s chunk; see there."""
        actions = self._act(self.sampler.act, batch, noise)
        return actions if self.policy.chunk > 1 else actions[..., None, :]

    def _act(self, act, batch: dict[str, Tensor], noise: Tensor | None) -> Tensor:
        config = self.config
        parts = [batch[name] for name in config.observations if name in batch]
        if len(parts) < len(config.observations):
            missing = ", ".join(name for name in config.observations if name not in batch)
            raise BadInput(f"the observation has no {missing}, only {', '.join(batch)}")
        obs = torch.cat(parts, -1).detach()
        how = {"steps": config.steps, "candidates": config.candidates, "rule": config.rule}
        if config.seed is not None:
            how |= {"seed": config.seed, "call": self._calls}
        if noise is not None:
            how = {name: how[name] for name in ("steps", "candidates", "rule")} | {"noise": noise}
        self._calls += 1
        if self.sampler.backend in ON_DEVICE:
            return act(obs, **how)
        if noise is not None:
            how["noise"] = noise.detach().cpu().numpy()
        return torch.from_numpy(act(obs.cpu().numpy(), **how)).to(obs.device)

    def forward(self, batch: dict[str, Tensor]) -> tuple[Tensor, dict | None]:
        """Refuse: LeRobot does not train this policy."""
        raise BadInput(UNTRAINED)

    def get_optim_params(self) -> dict:
        """Refuse: LeRobot does not train this policy."""
        raise BadInput(UNTRAINED)


def _fit(config: SorlConfig, policy: Policy) -> None:
    """Check the config's features against the policy, or fill them in where there are none."""
    O, A = policy.obs_dim, policy.action_shape[-1]
    if not config.input_features:
        if len(config.observations) > 1:
            raise BadInput(
                f"the policy reads {O} numbers of {', '.join(config.observations)}, but how many of each "
                "is not said: set policy.input_features"
            )
        config.input_features = {config.observations[0]: PolicyFeature(FeatureType.STATE, (O,))}
    if not config.output_features:
        config.output_features = {ACTION: PolicyFeature(FeatureType.ACTION, (A,))}
    config.validate_features()
    found = sum(config.input_features[name].shape[0] for name in config.observations)
    if found != O:
        raise BadInput(
            f"{', '.join(config.observations)} are {found} numbers, but this policy was trained on {O}: "
            "set policy.observations to what it was trained on"
        )
    if (width := config.output_features[ACTION].shape[0]) != A:
        raise BadInput(
            f"{ACTION} has {width} numbers, but this policy returns {A}: it is another robot's"
        )
