"""DIDI in one file: skills for a point in a maze, from data without rewards, in about a minute on one core.

DIDI (Diffusion-Guided Diversity, Liu et al., ICML 2024, arXiv 2405.14790) learns a policy whose skills z lead to
trajectories tau that differ from each other and still look like the data. Read it from top to bottom, beside the paper:

    tau = (s_0, a_0) ... (s_{H-1}, a_{H-1})  trajectory       z ~ p(z), uniform in the unit disc  skill
    tau_t         tau with noise of level t                   pi(a_0 ... a_{H-1} | s_0, z)        contextual policy
    x0hat(tau_t)  what the prior takes tau for, seeing tau_t  q(z | tau)                          discriminator

Unlike the paper's U-Net, which emits states beside actions, the policy is an MLP that emits actions, and a learned
dynamics model tells the states. Unlike `train_skills` of the package, the guidance weight is fixed (no dual ascent).
"""

from dataclasses import dataclass

import gymnasium as gym
import gymnasium_robotics
import matplotlib.pyplot as plt
import minari
import numpy as np
import torch
import tyro
from torch import Tensor, nn

S, A, Z = 4, 2, 2  # numbers in a state (x, y and their velocities), in an action (a force) and in a skill


@dataclass(frozen=True)
class Args:
    """Learn skills for a point in a maze from data without rewards (DIDI), and try them in the simulator."""

    env_id: str = "PointMaze_Medium-v3"
    dataset: str = ""  # Minari data set of that environment, such as didi/pointmaze-medium-v0; default: collect one
    episodes: int = 100  # episodes of 400 steps to collect
    horizon: int = 24  # environment steps H in a trajectory, a multiple of 4; the point gets up to a cell far
    prior_steps: int = 3000  # gradient steps of the diffusion prior
    dynamics_steps: int = 2000  # gradient steps of the dynamics model
    skill_steps: int = 1500  # gradient steps of policy and discriminator
    batch_size: int = 128
    learning_rate: float = 1e-3  # peak of a cosine schedule that ends at zero
    width: int = 256  # hidden units of each network
    diffusion_steps: int = 100  # noise levels T
    noise_range: tuple[int, int] = (10, 70)  # noise levels t at which the prior judges the policy
    feature_noise: float = 0.25  # noise on what q sees, in the data's standard deviations: less is no difference
    diversity_weight: float = 1.0  # raise it, and skills differ more
    guidance_weight: float = 2.0  # raise it, and skills look more like the data and differ less; 0: no prior
    seed: int = 0
    picture: str = "skills.png"


def collect(env: gym.Env, args: Args) -> list[np.ndarray]:
    """(0) Data without rewards: a point that wanders from cell to cell. Each episode is `(400, S + A)`."""
    rng, maze, episodes = np.random.default_rng(args.seed), env.maze, []
    free = {(i, j) for i, row in enumerate(maze.maze_map) for j, cell in enumerate(row) if cell != 1}
    for _ in range(args.episodes):
        s, rows = env.reset(seed=int(rng.integers(2**31)))[0]["observation"], []
        goal = s[:2]
        while len(rows) < 400:
            # A new goal on arrival, and now and then before: where a window starts must not tell where it leads.
            if np.linalg.norm(goal - s[:2]) < 0.3 or rng.random() < 0.01:
                i, j = maze.cell_xy_to_rowcol(s[:2])
                near = sorted({(i + 1, j), (i - 1, j), (i, j + 1), (i, j - 1)} & free)
                goal = maze.cell_rowcol_to_xy(np.array(near[rng.integers(len(near))]))
            a = (8 * (goal - s[:2]) - 1.75 * s[2:] + 0.3 * rng.standard_normal(A)).clip(-1, 1)  # a noisy PD controller
            rows.append(np.concatenate([s, a]))
            s = env.step(a)[0]["observation"]
        episodes.append(np.array(rows))
    return episodes


def load(env: gym.Env, args: Args) -> tuple[Tensor, Tensor, np.ndarray]:
    """All windows of H steps, `(n, H, S + A)`, those of a held-out tenth of the episodes, and their unit `(S + A,)`."""
    recorded = minari.load_dataset(args.dataset) if args.dataset else []
    episodes = [np.hstack([e.observations["observation"][:-1], e.actions]) for e in recorded] or collect(env, args)
    unit = np.abs(np.concatenate(episodes)).max(0)  # all numbers lie in [-1, 1] when divided by it
    tau = [torch.as_tensor(e / unit, dtype=torch.float32).unfold(0, args.horizon, 1).mT for e in episodes]
    held_out = len(tau) // 10 + 1
    return torch.cat(tau[held_out:]), torch.cat(tau[:held_out]), unit


def mlp(inputs: int, outputs: int, width: int, depth: int) -> nn.Sequential:
    """The only kind of network in this file."""
    sizes = [inputs] + (depth - 1) * [width]
    layers = [layer for size in sizes for layer in (nn.Linear(size, width), nn.LayerNorm(width), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, outputs))


class Prior(nn.Module):
    """(1) The diffusion prior p(tau | s_0), which estimates tau from tau_t (x0-prediction)."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        f = torch.cos((torch.linspace(0, 1, args.diffusion_steps + 1) + 0.008) / 1.008 * torch.pi / 2) ** 2
        self.abar = f[1:] / f[0]  # (T,), the cosine schedule (Nichol & Dhariwal 2021, eq. 17)
        self.net = mlp(args.horizon * (S + A) + 1, args.horizon * (S + A) - S, args.width, depth=4)

    def noise(self, tau: Tensor, t: Tensor, epsilon: Tensor) -> Tensor:
        """tau_t = sqrt(abar_t) tau + sqrt(1 - abar_t) epsilon (Ho et al. 2020, eq. 4)."""
        abar = self.abar[t][:, None, None]
        return abar.sqrt() * tau + (1 - abar).sqrt() * epsilon

    def denoise(self, tau_t: Tensor, t: Tensor, s_0: Tensor) -> Tensor:
        """x0hat(tau_t), with the first state pinned: the network is given it without noise, and does not guess it."""
        seen = torch.cat([s_0, tau_t.flatten(1)[:, S:], t[:, None] / len(self.abar)], dim=-1)
        return torch.cat([s_0, self.net(seen)], dim=-1).view_as(tau_t)  # (batch, H, S + A)

    def loss(self, tau: Tensor) -> Tensor:
        """E ||tau - x0hat(tau_t)||^2 over all noise levels (Ho et al. 2020, for x0-prediction)."""
        t, epsilon = torch.randint(len(self.abar), (len(tau),)), torch.randn_like(tau)
        return nn.functional.mse_loss(self.denoise(self.noise(tau, t, epsilon), t, tau[:, 0, :S]), tau)


class Dynamics(nn.Module):
    """(2) s' = s + unit * f(s, a), which makes trajectories of actions in training; acting needs no model."""

    def __init__(self, args: Args, data: Tensor) -> None:
        super().__init__()
        self.unit = data[..., :S].diff(dim=1).square().mean((0, 1)).sqrt()  # the data's change in one step, (S,)
        self.f = mlp(S + A, S, args.width, depth=2)

    def rollout(self, s_0: Tensor, actions: Tensor) -> Tensor:
        states = [s_0]
        for a in actions[:, :-1].unbind(1):
            states.append(states[-1] + self.unit * self.f(torch.cat([states[-1], a], dim=-1)))
        return torch.cat([torch.stack(states, dim=1), actions], dim=-1)  # tau, (batch, H, S + A)

    def loss(self, tau: Tensor) -> Tensor:
        """Error of eight predictions, each made from the one before."""
        guess = self.rollout(tau[:, 0, :S], tau[:, :9, S:])
        return nn.functional.smooth_l1_loss(guess[..., :S] / self.unit, tau[:, :9, :S] / self.unit)


class Skills(nn.Module):
    """The contextual policy pi and the discriminator q, which learn together under the frozen prior."""

    def __init__(self, args: Args, data: Tensor, prior: Prior, dynamics: Dynamics) -> None:
        super().__init__()
        self.args, self.prior, self.dynamics = args, prior, dynamics
        self.pi, self.q = mlp(S + Z, args.horizon * A, args.width, depth=4), mlp(8, Z, args.width, depth=2)
        self.unit = self.moved(data).square().mean(0).sqrt()  # (8,)

    def plan(self, s_0: Tensor, z: Tensor) -> Tensor:
        """(3) pi(a_0 ... a_{H-1} | s_0, z): a plan of H actions in one pass."""
        return self.pi(torch.cat([s_0, z], dim=-1)).tanh().unflatten(-1, (-1, A))  # (batch, H, A)

    def moved(self, tau: Tensor) -> Tensor:
        every = self.args.horizon // 4
        return (tau[:, every - 1 :: every, :2] - tau[:, :1, :2]).flatten(1)  # (batch, 4 times * 2)

    def recognise(self, tau: Tensor) -> Tensor:
        """(4) The mean of q(z | tau) = N(mean, I). It sees, through noise, where the point has gone at four times."""
        return self.q(self.moved(tau) / self.unit + self.args.feature_noise * torch.randn(len(tau), 8))  # (batch, Z)

    def loss(self, data: Tensor) -> Tensor:
        """(5) The joint objective (DIDI, section 4), steps 1 to 4 as in `train_skills` of the package.

        diversity_weight * E[-log q(z | tau)]  +  guidance_weight * E ||tau - sg[x0hat(tau_t)]||^2
        """
        # 1. start states from the data
        n, s_0 = len(data), data[:, 0, :S]  # (n, S)
        # 2. trajectories of random skills from them
        z = torch.view_as_real(torch.polar(torch.rand(n).sqrt(), 2 * torch.pi * torch.rand(n)))  # (n, Z)
        tau = self.dynamics.rollout(s_0, self.plan(s_0, z))  # (n, H, S + A)
        # 3. they must tell their skill: a bound of I(z; tau) (Barber & Agakov 2003); -log q is ||z - mean||^2 / 2 ...
        diversity = nn.functional.mse_loss(self.recognise(tau), z)
        # 4. ... and stay where the prior puts its mass: add noise, denoise in one step, and pull tau to the result
        t, epsilon = torch.randint(*self.args.noise_range, (n,)), torch.randn_like(tau)
        with torch.no_grad():  # sg
            x0hat = self.prior.denoise(self.prior.noise(tau, t, epsilon), t, s_0)
        return self.args.diversity_weight * diversity + self.args.guidance_weight * nn.functional.mse_loss(tau, x0hat)


def train(module: nn.Module, data: Tensor, steps: int, args: Args) -> nn.Module:
    """Minimise a module's loss by Adam, with clipped gradients and a cosine learning rate, then freeze it."""
    optimiser = torch.optim.Adam(module.parameters(), args.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for step in range(1, steps + 1):
        loss = module.loss(data[torch.randint(len(data), (args.batch_size,))])
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if step % -(-steps // 4) == 0 or step == steps:
            print(f"{type(module).__name__:8} step {step} of {steps}, loss {loss.item():.4f}", flush=True)
    return module.requires_grad_(False)


def hold(env: gym.Env, skills: Skills, s_0: Tensor, z: Tensor, unit: np.ndarray, plans: int = 3) -> np.ndarray:
    """States `(n, plans * H + 1, S)` in the simulator, where skills `(n, Z)` are held from states `(n, S)`."""
    paths = s_0.numpy()[:, None] * unit[:S]
    for _ in range(plans):
        actions = skills.plan(torch.as_tensor(paths[:, -1] / unit[:S], dtype=torch.float32), z).numpy() * unit[S:]
        ahead = np.empty((*actions.shape[:2], S))  # (n, H, S)
        for i, plan in enumerate(actions):
            env.point_env.set_state(paths[i, -1, :2], paths[i, -1, 2:])
            ahead[i] = [env.step(a)[0]["observation"] for a in plan]
        paths = np.concatenate([paths, ahead], axis=1)
    return paths


def evaluate(env: gym.Env, skills: Skills, starts: Tensor, unit: np.ndarray) -> dict[str, float]:
    """(6) Hold 16 skills from each start: how far apart do they go, really and as planned (ratio 1), and is z told?"""
    n, args, k = len(starts), skills.args, torch.arange(16)
    z = torch.view_as_real(torch.polar(((k + 0.5) / 16).sqrt(), 2.4 * k))  # (16, Z), evenly: 2.4 is the golden angle
    s_0, every_z = starts.repeat_interleave(16, dim=0), z.repeat(n, 1)  # (n * 16, S), (n * 16, Z)
    plans = skills.dynamics.rollout(s_0, skills.plan(s_0, every_z)).numpy() * unit  # (n * 16, H, S + A)
    paths = hold(env, skills, s_0, every_z, unit)  # (n * 16, 3 H + 1, S)
    draw(env, paths[..., :2].reshape(n, 16, -1, 2), z.numpy(), args)
    real, planned = ((x[:, args.horizon - 1, :2] - x[:, 0, :2]).reshape(n, 16, 2) for x in (paths, plans))
    spread, planned_spread = (float(moved.std(axis=1).mean()) for moved in (real, planned))
    # A linear map from real displacement to z is fitted on every other start, and judged on the rest.
    seen, hidden = np.insert(real, 0, 1, axis=-1), np.tile(z, (n, 1, 1))  # (n, 16, 3), (n, 16, Z)
    probe = np.linalg.lstsq(seen[::2].reshape(-1, 3), hidden[::2].reshape(-1, Z), rcond=None)[0]
    r2 = 1 - float(np.square(seen[1::2] @ probe - hidden[1::2]).mean() / hidden.var(axis=1).mean())
    return {"real spread": spread, "planned spread": planned_spread, "ratio": spread / planned_spread, "probe R^2": r2}


def draw(env: gym.Env, paths: np.ndarray, z: np.ndarray, args: Args) -> None:
    """Where each z goes: in the maze, from the first eight starts; and from all starts, moved to one place."""
    figure, (maze, moved, key) = plt.subplots(1, 3, figsize=(15, 5), layout="constrained")
    walls = np.array([[cell == 1 for cell in row] for row in env.maze.maze_map])
    h, w = np.array(walls.shape) / 2
    maze.imshow(walls, cmap="Greys", extent=(-w, w, -h, h))
    for i, colour in enumerate(plt.cm.hsv(np.arctan2(z[:, 1], z[:, 0]) / (2 * np.pi) % 1)):
        maze.plot(*paths[:8, i].T, color=colour)
        moved.plot(*(paths[:, i, : args.horizon] - paths[:, i, :1]).T, color=colour, linewidth=0.7)
        key.plot(*z[i], "o", color=colour)
    for axis, title in (maze, "held for three horizons"), (moved, "in one horizon"), (key, "the colour of each z"):
        axis.set(title=title, aspect="equal")
    figure.savefig(args.picture)
    plt.close(figure)


def main(args: Args) -> dict[str, float]:
    torch.manual_seed(args.seed)
    gym.register_envs(gymnasium_robotics)
    env = gym.make(args.env_id).unwrapped
    env.reset(seed=args.seed)
    data, held_out, unit = load(env, args)
    prior = train(Prior(args), data, args.prior_steps, args)
    dynamics = train(Dynamics(args, data), data, args.dynamics_steps, args)
    skills = train(Skills(args, data, prior, dynamics), data, args.skill_steps, args)
    figures = evaluate(env, skills, held_out[torch.randint(len(held_out), (64,)), 0, :S], unit)
    print(*(f"{name} {value:.2f}" for name, value in figures.items()), f"picture {args.picture}", sep=", ")
    return figures


if __name__ == "__main__":
    main(tyro.cli(Args))
