"""A registered id in other libraries, each of which learns on it with PPO; those not installed are skipped.

Installed by `pip install -e '.[clients]'`.
"""

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from torch import nn

import didi_gym

ENV_ID = "didi_gym/Ant-v0"
GAMMA = 0.99**16
pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # the libraries' own
    pytest.mark.filterwarnings("error:::didi_gym"),
]
pytest.importorskip("mujoco", reason="the environment of the bundled ant skills needs mujoco")


def network(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs))


def test_a_loop_like_cleanrls_learns_on_a_vector_environment():
    envs = gym.make_vec(ENV_ID, num_envs=2, max_episode_steps=64)
    inputs, outputs = envs.single_observation_space.shape[0], envs.single_action_space.shape[0]
    actor, critic, deviation = network(inputs, outputs), network(inputs, 1), torch.zeros(outputs, requires_grad=True)
    optimizer = torch.optim.Adam([*actor.parameters(), *critic.parameters(), deviation], lr=1e-3)
    observation, _ = envs.reset(seed=0)
    steps = []
    for _ in range(8):
        x = torch.as_tensor(observation, dtype=torch.float32)
        chosen = torch.distributions.Normal(actor(x), deviation.exp())
        action = chosen.sample()
        observation, reward, terminated, truncated, infos = envs.step(action.numpy())
        went_on = torch.as_tensor(~(terminated | truncated), dtype=torch.float32)
        discount = torch.as_tensor(0.99 ** infos.get("skill_length", np.ones(2)), dtype=torch.float32)
        steps.append((x, action, torch.as_tensor(reward, dtype=torch.float32), went_on * discount))
    before, value = actor[0].weight.clone(), critic(torch.as_tensor(observation, dtype=torch.float32))[:, 0].detach()
    for x, action, reward, discount in reversed(steps):
        value = reward + discount * value
        surprise = value - critic(x)[:, 0]
        likely = torch.distributions.Normal(actor(x), deviation.exp()).log_prob(action).sum(-1)
        loss = (surprise**2 - likely * surprise.detach()).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert not torch.equal(before, actor[0].weight) and torch.isfinite(actor[0].weight).all()
    envs.close()


def vectors(num_envs):
    return didi_gym.make_vec(ENV_ID, num_envs=num_envs, autoreset_mode="disabled")


@pytest.mark.parametrize("num_envs", [1, 2])
def test_torchrls_ppo_learns(num_envs):
    pytest.importorskip("torchrl", reason="TorchRL is not installed")
    from tensordict.nn import TensorDictModule
    from tensordict.nn.distributions import NormalParamExtractor
    from torchrl.data import Unbounded
    from torchrl.envs import DoubleToFloat, GymEnv, GymWrapper, TransformedEnv
    from torchrl.envs.gym_like import default_info_dict_reader
    from torchrl.modules import ProbabilisticActor, TanhNormal, ValueOperator
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    base = GymEnv(ENV_ID) if num_envs == 1 else GymWrapper(vectors(num_envs))
    shape = (num_envs,) if num_envs > 1 else ()
    lengths = [Unbounded(shape=shape, dtype=torch.int64)]
    base.set_info_dict_reader(default_info_dict_reader(["skill_length"], spec=lengths))
    env = TransformedEnv(base, DoubleToFloat())
    inputs, outputs = env.observation_spec["observation"].shape[-1], env.action_spec.shape[-1]
    body = nn.Sequential(network(inputs, 2 * outputs), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(body, ["observation"], ["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
    )
    critic = ValueOperator(network(inputs, 1), ["observation"])
    advantage, loss = GAE(gamma=GAMMA, lmbda=0.95, value_network=critic), ClipPPOLoss(actor, critic)
    optimizer = torch.optim.Adam(loss.parameters(), lr=1e-3)
    for _ in range(2):
        with torch.no_grad():
            batch = env.rollout(4, actor, break_when_any_done=False)
        assert batch["next", "skill_length"].min() >= 1
        advantage(batch)
        losses = loss(batch.reshape(-1))
        total = sum(value for name, value in losses.items() if name.startswith("loss_"))
        total.backward()
        optimizer.step()
        assert torch.isfinite(total)


def test_tianshous_ppo_learns():
    pytest.importorskip("tianshou", reason="Tianshou is not installed")
    from tianshou.algorithm import PPO
    from tianshou.algorithm.modelfree.reinforce import ProbabilisticActorPolicy
    from tianshou.algorithm.optim import AdamOptimizerFactory
    from tianshou.data import Collector, VectorReplayBuffer
    from tianshou.env import DummyVectorEnv
    from tianshou.trainer import OnPolicyTrainerParams
    from tianshou.utils.net.common import Net
    from tianshou.utils.net.continuous import ContinuousActorProbabilistic, ContinuousCritic

    envs = DummyVectorEnv([lambda: gym.make(ENV_ID, max_episode_steps=64) for _ in range(2)])
    single = gym.make(ENV_ID)  # the vector's own spaces are those of the unwrapped environments
    observed, acted = single.observation_space, single.action_space
    actor, critic = (Net(state_shape=observed.shape, hidden_sizes=[16]) for _ in range(2))
    policy = ProbabilisticActorPolicy(
        actor=ContinuousActorProbabilistic(preprocess_net=actor, action_shape=acted.shape, unbounded=True),
        dist_fn=lambda both: torch.distributions.Independent(torch.distributions.Normal(*both), 1),
        action_space=acted,
        observation_space=observed,
    )
    before = [parameter.detach().clone() for parameter in policy.parameters()]
    value = ContinuousCritic(preprocess_net=critic)
    algorithm = PPO(policy=policy, critic=value, optim=AdamOptimizerFactory(), gamma=GAMMA)
    collector = Collector(algorithm, envs, VectorReplayBuffer(32, 2))
    params = OnPolicyTrainerParams(
        training_collector=collector,
        max_epochs=1,
        epoch_num_steps=16,
        collection_step_num_env_steps=8,
        update_step_num_repetitions=1,
        batch_size=8,
        test_collector=None,
        show_progress=False,
    )
    algorithm.run_training(params)
    assert not all(map(torch.equal, before, policy.parameters()))


def test_skrls_ppo_learns():
    pytest.importorskip("skrl", reason="skrl is not installed")
    pytest.importorskip("tensorboard", reason="skrl needs tensorboard")
    from skrl.agents.torch.ppo import PPO, PPO_CFG
    from skrl.envs.wrappers.torch import wrap_env
    from skrl.memories.torch import RandomMemory
    from skrl.models.torch import DeterministicMixin, GaussianMixin, Model
    from skrl.trainers.torch import SequentialTrainer

    class Actor(GaussianMixin, Model):
        def __init__(self, **spaces):
            Model.__init__(self, **spaces)
            GaussianMixin.__init__(self)
            self.net = network(self.num_observations, self.num_actions)
            self.deviation = nn.Parameter(torch.zeros(self.num_actions))

        def compute(self, inputs, role=""):
            return self.net(inputs["observations"]), {"log_std": self.deviation}

    class Critic(DeterministicMixin, Model):
        def __init__(self, **spaces):
            Model.__init__(self, **spaces)
            DeterministicMixin.__init__(self)
            self.net = network(self.num_observations, 1)

        def compute(self, inputs, role=""):
            return self.net(inputs["observations"]), {}

    env = wrap_env(didi_gym.make_vec(ENV_ID, num_envs=2), wrapper="gymnasium")
    spaces = {"observation_space": env.observation_space, "action_space": env.action_space, "device": env.device}
    models = {"policy": Actor(**spaces), "value": Critic(**spaces)}
    before = models["policy"].net[0].weight.detach().clone()
    cfg = PPO_CFG(rollouts=4, learning_epochs=1, mini_batches=1, discount_factor=GAMMA)
    cfg.experiment.write_interval = cfg.experiment.checkpoint_interval = 0
    agent = PPO(models=models, memory=RandomMemory(memory_size=4, num_envs=2, device=env.device), cfg=cfg, **spaces)
    SequentialTrainer(
        env=env, agents=agent, cfg={"timesteps": 8, "headless": True, "disable_progressbar": True}
    ).train()
    assert not torch.equal(before, models["policy"].net[0].weight)


def test_rl_zoos_command_trains_and_its_agent_is_loaded(tmp_path):
    pytest.importorskip("rl_zoo3", reason="RL Zoo is not installed")
    settings = {"n_envs": 2, "n_timesteps": 32, "policy": "MlpPolicy", "n_steps": 8, "batch_size": 8, "gamma": GAMMA}
    (tmp_path / "ppo.py").write_text(f"hyperparams = {{{ENV_ID!r}: {settings!r}}}\n")
    command = [sys.executable, "-m", "rl_zoo3.train", "--algo", "ppo", "--env", ENV_ID, "--gym-packages", "didi_gym"]
    command += ["--conf-file", str(tmp_path / "ppo.py"), "-f", str(tmp_path), "--eval-freq", "-1", "--device", "cpu"]
    trained = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert trained.returncode == 0, trained.stdout[-1500:] + trained.stderr[-1500:]
    (agent,) = tmp_path.rglob("*v0.zip")
    assert PPO.load(agent, device="cpu").num_timesteps >= 32
