"""Layouts: what a state holds, which of it policy and prior see, and where an observation holds it."""

from __future__ import annotations

from dataclasses import dataclass

# What a file may ask for at most: far beyond what is of use, and what no computer is brought down by.
MAX_STATE = 4_096
MAX_OBSERVATION = 10_000_000
MAX_SOURCES = 64
MAX_INDICES = 65_536  # of all sources together; also of their keys


@dataclass(frozen=True)
class Heading:
    """The yaw of a body that moves on a plane, and everything in a state that turns with it.

    Where a layout has a heading, trajectories are seen in the frame of their first state (yaw zero), and the first
    two coordinates of a continuous skill are a direction in the *world*: a held skill keeps its direction while the
    body turns. Discrete skills stay in the body's frame.
    """

    quaternion: tuple[int, int, int, int]
    """State indices of the body's orientation (w, x, y, z)."""
    vectors: tuple[tuple[int, int], ...]
    """Pairs of state indices that hold the world (x, y) of a position or a velocity."""


@dataclass(frozen=True)
class ObservationSource:
    """One form in which an environment may present what the policy reads."""

    size: int
    """Length of the observation, after joining `keys`."""
    indices: tuple[int, ...]
    """Which of those numbers the policy reads, in the policy's order."""
    keys: tuple[str, ...] = ()
    """Keys of a Dict observation, joined in this order; empty for a flat Box observation."""
    angles: tuple[int, ...] = ()
    """Which of the chosen numbers are angles in radians, by their place in `indices`: the policy reads the cosine
    there, and all sines at the end. An angle that winds would lead a network where it has never been."""

    @property
    def width(self) -> int:
        """Numbers that come out."""
        return len(self.indices) + len(self.angles)

    def __post_init__(self) -> None:
        if not 1 <= self.size <= MAX_OBSERVATION:
            raise ValueError(f"observation source: size must be in 1..{MAX_OBSERVATION}, got {self.size}")
        if not self.indices or min(self.indices) < 0 or max(self.indices) >= self.size:
            raise ValueError(
                f"observation source: indices {self.indices} must lie in 0..{self.size - 1} and not be empty"
            )
        if any(not 0 <= place < len(self.indices) for place in self.angles):
            raise ValueError(f"observation source: angles {self.angles} must lie in 0..{len(self.indices) - 1}")


@dataclass(frozen=True)
class Layout:
    """What a state holds: what the policy reads of it, and what the prior and the discriminator judge.

    Indices count within the *state*, the numbers a data set keeps of each observation.
    """

    state_dim: int
    policy_inputs: tuple[int, ...]
    """State indices the policy reads, in order."""
    features: tuple[int, ...]
    """State indices whose change within a trajectory a skill is recognised by."""
    relative: tuple[int, ...] = ()
    """State indices measured from the trajectory's first state; neither policy nor dynamics may depend on them."""
    heading: Heading | None = None
    sources: tuple[ObservationSource, ...] = ()
    """The observations in which the policy finds its inputs, tried in order."""
    state_source: ObservationSource | None = None
    """The observation that holds the whole state: the data set's own. Evaluation needs it, acting does not."""

    def __post_init__(self) -> None:
        if not 1 <= self.state_dim <= MAX_STATE:
            raise ValueError(f"layout.state_dim must be in 1..{MAX_STATE}, got {self.state_dim}")
        named = {"policy_inputs": self.policy_inputs, "features": self.features, "relative": self.relative}
        if self.heading is not None:
            named["heading"] = (*self.heading.quaternion, *(i for pair in self.heading.vectors for i in pair))
        for name, indices in named.items():
            wrong = [i for i in indices if not 0 <= i < self.state_dim]
            if wrong or len(set(indices)) != len(indices):
                raise ValueError(f"layout.{name} {indices} must be distinct indices in 0..{self.state_dim - 1}")
        if not self.policy_inputs or not self.features:
            raise ValueError("layout: policy_inputs and features must each name at least one state index")
        if set(self.relative) & set(self.policy_inputs):
            raise ValueError("layout.relative: the policy cannot read what is relative to a trajectory's first state")
        if self.heading is not None:
            readable = set(self.policy_inputs)
            if not set(self.heading.quaternion) <= readable:
                raise ValueError("layout.heading: the policy must read its quaternion")
            for pair in self.heading.vectors:
                if len(readable & set(pair)) == 1 or len(set(self.relative) & set(pair)) == 1:
                    raise ValueError(f"layout.heading: vector {pair} must be read as a whole or not at all")
        if set(self.policy_inputs) | set(self.relative) != set(range(self.state_dim)):
            raise ValueError("layout: every state index must be read by the policy or be relative")
        if len(self.sources) > MAX_SOURCES:
            raise ValueError(f"layout.sources: expected at most {MAX_SOURCES}, got {len(self.sources)}")
        everywhere = (*self.sources, *([self.state_source] if self.state_source is not None else []))
        if (count := sum(source.width + len(source.keys) for source in everywhere)) > MAX_INDICES:
            raise ValueError(f"layout.sources: expected at most {MAX_INDICES} indices and keys in all, got {count}")
        if self.state_source is not None and self.state_source.width != self.state_dim:
            raise ValueError(f"layout.state_source must select {self.state_dim} numbers")
        for source in self.sources:
            if source.width != len(self.policy_inputs):
                raise ValueError(
                    f"layout.sources: one selects {source.width} numbers, the policy reads {len(self.policy_inputs)}"
                )

    @staticmethod
    def flat(state_dim: int, keys: tuple[str, ...] = ()) -> Layout:
        """The layout of a data set about which nothing is known: the policy reads and is judged by everything."""
        everything = tuple(range(state_dim))
        source = ObservationSource(state_dim, everything, keys)
        return Layout(state_dim, everything, everything, sources=(source,), state_source=source)
