"""What executed skills are worth, measured in the simulator, and pictures of them.

- `rollouts`: skills held from starts that can be visited again; `report`: `evaluate_skills`; `metrics`: its formulas;
- `agents`: `decisions` of an agent one by one, `evaluate_agent`; `statistics`: intervals over runs;
- `plots`: skill maps, curves, goal graphs; `video` and `renderer`: films, also on machines without OpenGL.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from didi_gym.core.lazy import lazy_names

if TYPE_CHECKING:
    from didi_gym.evaluation.agents import AgentReport as AgentReport
    from didi_gym.evaluation.agents import Decision as Decision
    from didi_gym.evaluation.agents import decisions as decisions
    from didi_gym.evaluation.agents import evaluate_agent as evaluate_agent
    from didi_gym.evaluation.plots import plot_goal_graph as plot_goal_graph
    from didi_gym.evaluation.plots import plot_learning_curves as plot_learning_curves
    from didi_gym.evaluation.plots import plot_skill_map as plot_skill_map
    from didi_gym.evaluation.report import SkillReport as SkillReport
    from didi_gym.evaluation.report import evaluate_skills as evaluate_skills
    from didi_gym.evaluation.rollouts import HeldSkills as HeldSkills
    from didi_gym.evaluation.rollouts import hold_skills as hold_skills
    from didi_gym.evaluation.statistics import interquartile_mean as interquartile_mean
    from didi_gym.evaluation.statistics import probability_of_improvement as probability_of_improvement
    from didi_gym.evaluation.statistics import stratified_bootstrap as stratified_bootstrap
    from didi_gym.evaluation.video import Camera as Camera
    from didi_gym.evaluation.video import make_rendered_env as make_rendered_env
    from didi_gym.evaluation.video import write_video as write_video

_HOMES = {
    "AgentReport": "agents",
    "Camera": "video",
    "Decision": "agents",
    "HeldSkills": "rollouts",
    "SkillReport": "report",
    "decisions": "agents",
    "evaluate_agent": "agents",
    "evaluate_skills": "report",
    "hold_skills": "rollouts",
    "interquartile_mean": "statistics",
    "make_rendered_env": "video",
    "plot_goal_graph": "plots",
    "plot_learning_curves": "plots",
    "plot_skill_map": "plots",
    "probability_of_improvement": "statistics",
    "stratified_bootstrap": "statistics",
    "write_video": "video",
}
__all__ = [*_HOMES]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
