"""Skills as actions in thirty lines: wrap an environment, act with skills, train a Stable-Baselines3 agent on them.

Run `python examples/quickstart.py`; it takes about a minute.
"""

import gymnasium as gym
import gymnasium_robotics
from stable_baselines3 import SAC
from stable_baselines3.common.evaluation import evaluate_policy

from didi_gym import SkillActionWrapper
from didi_gym.sb3 import RelativeGoalExtractor, SkillHerReplayBuffer

gym.register_envs(gymnasium_robotics)
task = gym.make("PointMaze_Medium-v3", continuing_task=False)
env = SkillActionWrapper(task, "pointmaze-medium", skill_duration=16, discount=0.995)
print("the agent picks from", env.action_space, "and each pick runs", env.skill_duration, "low-level steps")

observation, info = env.reset(seed=0)
observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
print("one skill:", info["skill_length"], "steps, return", info["skill_return"])

agent = SAC(
    "MultiInputPolicy",
    env,
    replay_buffer_class=SkillHerReplayBuffer,  # hindsight goals, and gamma ** skill_length for every transition
    replay_buffer_kwargs={"gamma": 0.995},
    policy_kwargs={"features_extractor_class": RelativeGoalExtractor, "net_arch": [128, 128]},
    learning_rate=1e-3,
    learning_starts=200,
    seed=0,
)
agent.learn(1_500, progress_bar=True)
reward, _ = evaluate_policy(agent, env, n_eval_episodes=20)
print(f"{env.low_level_steps} low-level steps in all; the goal is reached in {reward:.0%} of 20 episodes (discounted)")
