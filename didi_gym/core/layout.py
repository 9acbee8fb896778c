"""Layouts: what a state holds, which of it policy and prior see, and where an observation holds it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

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
    body turns. Discrete skills stay in the body's frame. The orientation is a quaternion or, for a body that cannot
    leave the plane, an angle; it is one of the two.
    """

    quaternion: tuple[int, int, int, int] | None = None
    """State indices of the body's orientation (w, x, y, z)."""
    vectors: tuple[tuple[int, int], ...] = ()
    """Pairs of state indices that hold the world (x, y) of a position or a velocity."""
    angle: tuple[int, int] | None = None
    """State indices of the cosine and the sine of the body's yaw. An observation that holds the angle itself, in
    radians, becomes such a pair by `ObservationSource.angles`."""

    @property
    def orientation(self) -> tuple[int, ...]:
        """State indices of the quaternion, or of the cosine and the sine."""
        return self.quaternion or self.angle or ()

    @property
    def turning(self) -> tuple[tuple[int, int], ...]:
        """All pairs of state indices that turn as vectors of the plane do: the direction of the body is one."""
        return self.vectors if self.angle is None else (*self.vectors, self.angle)


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
            if (self.heading.quaternion is None) == (self.heading.angle is None):
                raise ValueError("layout.heading: the orientation is either a quaternion or an angle; give one of them")
            named["heading"] = (*self.heading.orientation, *(i for pair in self.heading.vectors for i in pair))
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
            if not set(self.heading.orientation) <= readable:
                name = "quaternion" if self.heading.angle is None else "angle"
                raise ValueError(f"layout.heading: the policy must read its {name}")
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


@dataclass(frozen=True)
class LayoutChoice:
    """What a user says about the columns of an observation, from which `complete` makes a `Layout`.

    A column is named by its place among the numbers that are kept of an observation. What is None stays as the data set
    says; where that says nothing, the policy reads every column, and every column is a feature.
    """

    features: tuple[int, ...] | None = None
    """Columns in whose change skills must differ."""
    relative: tuple[int, ...] | None = None
    """Columns measured from the first state of a trajectory, which the policy does not read: positions in a world that
    is everywhere alike."""
    angles: tuple[int, ...] | None = None
    """Columns that hold angles in radians: networks see their cosine and sine."""
    heading_angle: tuple[int, ...] | None = None
    """The yaw of a body on a plane: one column with the angle in radians, or two with its cosine and sine."""
    heading_quaternion: tuple[int, int, int, int] | None = None
    """The orientation of a body in space, four columns (w, x, y, z), in place of the angle."""
    heading_vectors: tuple[tuple[int, int], ...] | None = None
    """Pairs of columns that hold (x, y) of a position or a velocity in the world, and so turn with the heading."""

    def complete(self, source: ObservationSource, known: Layout | None = None) -> Layout:
        """The layout of a state that holds the numbers of `source`, and beside them the sines of angles.

        Args:
            known: What the data set says of itself, about the same numbers.

        Raises:
            ValueError: a column that is not there, or choices that contradict each other; the message names the option.
        """
        n = len(source.indices)
        for name, columns in vars(self).items():
            flat = [i for c in columns or () for i in (c if isinstance(c, tuple) else (c,))]
            if wrong := [i for i in flat if not 0 <= i < n]:
                raise ValueError(
                    f"layout: {name} names column {wrong[0]}, but the observation has columns 0 to {n - 1}"
                )
        known = known or replace(Layout.flat(n), sources=(source,), state_source=source)
        before = known.state_source or source
        orientation, vectors = self._heading(known.heading, before)
        angles = list(before.angles if self.angles is None else self.angles)
        angles += [i for i in orientation if len(orientation) == 1 and i not in angles]
        sine = {column: n + place for place, column in enumerate(angles)}
        relative = known.relative if self.relative is None else self.relative
        if both := set(relative) & set(angles):
            raise ValueError(f"layout: column {min(both)} is named as an angle and as relative; it can be only one")
        features = tuple(i for i in known.features if i < n) if self.features is None else self.features
        heading = None
        if len(orientation) == 4:
            w, x, y, z = orientation
            heading = Heading((w, x, y, z), vectors)
        elif orientation:
            heading = Heading(None, vectors, (orientation[0], sine.get(orientation[0], orientation[-1])))
        same = set(relative) == set(known.relative)
        read = tuple(i for i in (known.policy_inputs if same else range(n)) if i < n and i not in relative)
        turning = tuple(read.index(column) for column in angles)
        policy = replace(source, indices=tuple(source.indices[i] for i in read), angles=turning)
        return Layout(
            n + len(angles),
            (*read, *sine.values()),
            (*features, *(sine[i] for i in features if i in sine)),
            relative,
            heading,
            tuple(replace(one, angles=turning) for one in known.sources) if same else (policy,),
            replace(source, angles=tuple(angles)),
        )

    def _heading(self, known: Heading | None, before: ObservationSource) -> tuple[tuple[int, ...], tuple[Any, ...]]:
        """The columns of the orientation and those that turn with it; none where there is no heading."""
        vectors = (() if known is None else known.vectors) if self.heading_vectors is None else self.heading_vectors
        if self.heading_angle is None and self.heading_quaternion is None:
            orientation = () if known is None else known.orientation
            if known is not None and known.angle is not None and known.angle[0] in before.angles:
                orientation = known.angle[:1]  # the angle itself is recorded
        elif self.heading_angle is not None and self.heading_quaternion is not None:
            raise ValueError("layout: give heading_angle or heading_quaternion, not both")
        else:
            orientation = self.heading_quaternion or self.heading_angle or ()
        if len(orientation) not in (0, 1, 2, 4):
            raise ValueError(f"layout: heading_angle names one column, or two, got {len(orientation)}")
        if bool(orientation) != bool(vectors):
            raise ValueError(
                "layout: a heading needs both its orientation (heading_angle or heading_quaternion) and the pairs of "
                "columns that turn with it (heading_vectors)"
            )
        return orientation, vectors
