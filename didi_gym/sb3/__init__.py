"""Stable-Baselines3 for skills: replay and rollout buffers with the right discounts, hindsight goals, saved agents.

A skill of tau low-level steps is worth r + gamma^tau V(next), and tau varies where episodes end early. So gamma here is
always the discount per *low-level* step. Give the wrapper the same `discount`, so that r is the discounted sum of the
skill's rewards, and an agent over skills optimises the return of the low-level task.

| agent | with | gamma: the low-level discount |
|---|---|---|
| SAC, TD3, DQN; TQC, CrossQ, QRDQN | `SkillReplayBuffer` | the buffer's, not the agent's |
| the same but CrossQ, on Dict observations | `SkillDictReplayBuffer` | the buffer's, not the agent's |
| the same but CrossQ, on goals | `SkillHerReplayBuffer` | the buffer's, not the agent's |
| PPO, A2C | `SkillPPO`, `SkillA2C` | the agent's |
| MaskablePPO, where not all skills are allowed | `SkillMaskablePPO` (needs sb3-contrib) | the agent's |
| SB3's own PPO, A2C, MaskablePPO | nothing | give them `gamma ** skill_duration`: exact but for skills cut short |

Where the agent chooses among several durations, no `gamma ** k` is right: SB3's own then take a decision to cost the
same whatever its length, and learn to take long skills.

`make_vec_env` makes the environments, with one controller for all of them:

    >>> env = make_vec_env("AntMaze_Open-v5", "ant-directions", n_envs=4, continuing_task=False, discount=0.99)
    >>> hindsight = {"replay_buffer_class": SkillHerReplayBuffer, "replay_buffer_kwargs": {"gamma": 0.99}}
    >>> agent = SAC("MultiInputPolicy", env, gradient_steps=-1, **hindsight)

SAC and its kin take `gamma` in `replay_buffer_kwargs`; their own has no effect. They learn once per step of the vector
environment, which is `n_envs` decisions: with `gradient_steps=-1` (DQN: and `train_freq=1`) once per decision, as with
one environment.

Whatever SB3 counts, it counts in skills: `total_timesteps`, `num_timesteps`, `n_steps`, `learning_starts`, `fps`. The
Monitors of `make_vec_env` are inside the skills, so `rollout/ep_len_mean`, `rollout/ep_rew_mean` and `evaluate_policy`
are the low-level task's; the environment's `low_level_steps` counts the simulator's steps.

`VecNormalize` belongs around the skill environments, never inside: the skill policy must see the environment's own
numbers. Its `gamma` only serves to scale rewards, and is per skill:

    >>> env = make_vec_env("HalfCheetah-v5", "my-skills", n_envs=4, discount=0.99)
    >>> env = VecNormalize(env, gamma=0.99 ** env.get_attr("skill_duration")[0])
    >>> kwargs = {"gamma": 0.99}
    >>> agent = SAC("MlpPolicy", env, replay_buffer_class=SkillReplayBuffer, replay_buffer_kwargs=kwargs)

An agent is of use only with the skills that it was trained on. `save_agent` names them beside SB3's zip, and
`load_agent` refuses others:

    >>> save_agent(agent.learn(10_000), "runs/cheetah.zip")
    >>> agent.get_vec_normalize_env().save("runs/normalize.pkl")  # where there is one
    >>> env = VecNormalize.load("runs/normalize.pkl", make_vec_env("HalfCheetah-v5", "my-skills", discount=0.99))
    >>> agent = load_agent(SAC, "runs/cheetah.zip", env)  # without VecNormalize the environment is made again

On the Hugging Face Hub an agent names its skill policy by id, commit and hash. SB3's zips are pickles, which run code
when they are opened, so loading one from there asks for trust in its owner:

    >>> push_agent_to_hub(agent, "owner/cheetah-sac")
    >>> agent = load_agent_from_hub(SAC, "owner/cheetah-sac", trust=True)

Progress is comparable between agents only in low-level steps, which `LowLevelEvalCallback` counts:

    >>> agent.learn(10**9, callback=LowLevelEvalCallback(test_env, every=10_000, until=100_000))

And an agent need not begin from nothing: `store_transitions` fills its replay buffer with what a
`didi_gym.planning.SkillGraph` does.

The files of this room: `off_policy` and `on_policy` (replay and rollout buffers, and the agents that need their own),
`maskable` (with sb3-contrib), `vec_env` (the environments), `features` (of a relative goal), `agents` and `agent_hub`
(saving and publishing), `callbacks`, `transitions` (of another agent), `lengths` (what all buffers need), `recorded`
(policies that SB3 saved, as behaviours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from didi_gym.sb3.agent_hub import load_agent_from_hub, push_agent_to_hub
from didi_gym.sb3.agents import SkillPolicyMismatch, load_agent, policy_sha256, save_agent
from didi_gym.sb3.callbacks import LowLevelEvalCallback
from didi_gym.sb3.features import RelativeGoalExtractor
from didi_gym.sb3.off_policy import SUCCESS_TOLERANCE, SkillDictReplayBuffer, SkillHerReplayBuffer, SkillReplayBuffer
from didi_gym.sb3.on_policy import SkillA2C, SkillDictRolloutBuffer, SkillPPO, SkillRolloutBuffer
from didi_gym.sb3.transitions import store_transitions
from didi_gym.sb3.vec_env import SkillActionVecEnvWrapper, make_vec_env

if TYPE_CHECKING:
    from didi_gym.sb3.maskable import SkillMaskableDictRolloutBuffer, SkillMaskablePPO, SkillMaskableRolloutBuffer

_NEEDS_CONTRIB = frozenset({"SkillMaskableDictRolloutBuffer", "SkillMaskablePPO", "SkillMaskableRolloutBuffer"})

__all__ = [
    "SUCCESS_TOLERANCE",
    "LowLevelEvalCallback",
    "RelativeGoalExtractor",
    "SkillA2C",
    "SkillActionVecEnvWrapper",
    "SkillDictReplayBuffer",
    "SkillDictRolloutBuffer",
    "SkillHerReplayBuffer",
    "SkillPPO",
    "SkillPolicyMismatch",
    "SkillReplayBuffer",
    "SkillRolloutBuffer",
    "load_agent",
    "load_agent_from_hub",
    "make_vec_env",
    "policy_sha256",
    "push_agent_to_hub",
    "save_agent",
    "store_transitions",
]


def __getattr__(name: str) -> Any:
    """Import what needs sb3-contrib when first used: the package works without it."""
    if name not in _NEEDS_CONTRIB:
        raise AttributeError(f"module 'didi_gym.sb3' has no attribute {name!r}")
    from didi_gym.sb3 import maskable

    return getattr(maskable, name)
