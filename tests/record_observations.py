"""Record observations that a policy meets, for tests: `python tests/record_observations.py POLICY OUT`.

Four episodes with 4 Euler steps in the environment that the policy was trained for, every third
observation; float32 [at most 256, O] under `observations`.
"""

import sys
from pathlib import Path

import numpy as np

from sorl_fast import Sampler
from sorl_fast.atomic import write_file
from sorl_fast.envs import open_simulator

EPISODES, EVERY, STEPS, MOST = 4, 3, 4, 256


def record(policy: str | Path) -> np.ndarray:
    """Return the observations."""
    sampler = Sampler.load(policy)
    simulator = open_simulator(sampler.policy.env, "post")
    met = []
    for episode in range(EPISODES):
        observation, ended, t = simulator.reset(0, episode), False, 0
        while not ended:
            if t % EVERY == 0:
                met.append(observation)
            action = sampler.act(observation, STEPS, seed=0, call=t, row_offset=episode)
            observation, _, _, ended = simulator.step(action)
            t += 1
    return np.array(met[:MOST], np.float32)


if __name__ == "__main__":
    observations = record(sys.argv[1])
    write_file(sys.argv[2], lambda file: np.savez(file, observations=observations))
    print(f"{sys.argv[2]}: {observations.shape[0]} observations of {observations.shape[1]}")
