"""Skills as actions in thirty lines: wrap an environment, act with skills, train a Stable-Baselines3 agent on them.

Run `python examples/quickstart.py`; it takes about a minute. `examples/demo.py` adds the baselines and the pictures.
"""

import gymnasium as gym
import gymnasium_robotics
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor

from didi_gym import SkillActionWrapper
from didi_gym.sb3 import RelativeGoalExtractor, SkillHerReplayBuffer

gym.register_envs(gymnasium_robotics)
task = Monitor(gym.make("AntMaze_Open-v5", continuing_task=False))  # inside: it counts low-level steps
env = SkillActionWrapper(task, "ant-directions", discount=0.995, device="cpu")
print("the agent picks from", env.action_space, "and each pick runs", env.skill_duration, "low-level steps")

observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
print("one skill:", info["skill_length"], "steps, return", info["skill_return"])

agent = SAC(
    "MultiInputPolicy",
    env,
    replay_buffer_class=SkillHerReplayBuffer,  # hindsight goals, and gamma ** skill_length for every transition
    replay_buffer_kwargs={"gamma": 0.995, "her_ratio": 0.6},
    policy_kwargs={
        "features_extractor_class": RelativeGoalExtractor,
        "features_extractor_kwargs": {"observation_indices": range(27)},
        "net_arch": [128, 128],
    },
    learning_rate=7e-4,
    batch_size=128,
    learning_starts=300,
    ent_coef="auto_0.1",
    seed=0,
    device="cpu",
)
agent.learn(3_500, progress_bar=True)
success, _ = evaluate_policy(agent, env, n_eval_episodes=30)
print(f"{env.low_level_steps} low-level steps in all; the goal is reached in {success:.0%} of 30 episodes")
