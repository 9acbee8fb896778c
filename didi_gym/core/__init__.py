"""What everything else stands on: numpy only, no torch and no network.

- `skill_space`: what a skill is, its prior, and the map from an agent's action to it;
- `layout`: what a state holds; `observations`: the numbers a policy reads; `frames`: seen from the first state;
- `environments`: names of environments in files, and which of them ask for trust;
- `env_rows`: one environment or many, episode by episode, whatever resets itself;
- `schema`: dataclasses to JSON and back, strictly; `files`: files of strangers, and atomic writes;
- `progress`: bars for long work; `interrupts`: Ctrl-C between two steps; `lazy`: names imported when they are used.
"""
