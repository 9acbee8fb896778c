"""The command line, the front door: `didi-gym data | train | evaluate | hub`.

- `main`: dispatch and errors; `data`, `train`, `evaluate`, `hub`: the settings of each command, and what it runs.
"""
