"""Generators of reward-free Minari data sets, one file for each domain, from a simulator alone or from policies.

- `domains`: the table of domains (`DOMAINS`), from which commands, help and tests are made;
- `ant` with `gaits` and `gait_search`: walking in all directions; `pointmaze`: wandering to random goals;
- `push`: pushing a block in eight directions; `swimmer`: swimming straight and in curves;
- `kitchen` with `kitchen_experts`: subtasks in a kitchen, in random order;
- `agents` with `behaviours` and `recording`: mixtures of behaviour policies; `humanoid`: one of those;
- `parallel`: work in processes; `parts`: what keeps the episodes of a recording that was stopped.
"""
