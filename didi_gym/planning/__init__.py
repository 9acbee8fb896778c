"""Uses of skills that plan.

- `skill_graph`: `SkillGraph`, an agent that reaches goals; `goal_graph`: the graph it plans on; `skill_model`: what a
  skill does to the achieved goal.
"""

from didi_gym.planning.skill_graph import SkillGraph

__all__ = ["SkillGraph"]
