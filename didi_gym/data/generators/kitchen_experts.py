"""Scripted experts for the seven subtasks of FrankaKitchen: the hand follows a path of points at an even speed.

A path is planned when a subtask begins, from where the objects are then. The arm is led by damped least squares: joint
velocities that give the hand a wanted velocity and keep its orientation, with the weight of the arm made up for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

SUBTASKS = ("bottom burner", "top burner", "light switch", "slide cabinet", "hinge cabinet", "microwave", "kettle")
"""As the environment calls them."""
HOME = "home"
"""The behaviour between two subtasks: the hand goes back to where it is after a reset."""
HOME_POINT = np.array([-0.43, 0.12, 2.03])
"""Where the hand is after a reset, m."""
UPRIGHT = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
"""Orientation of the hand, which is held: it points to the back of the kitchen, and its fingers open sideways."""
OPEN, CLOSED = 0.04, 0.0
"""Places of the fingers, m."""
FREE, TOUCHING = 0.16, 0.09
"""Speeds of the hand, m/s: between objects, and where it moves one."""

_BURNER = 0.708  # m, where the kettle's handle is along y when it stands on the burner behind
_REACHED = 0.012  # m from a point at which the next is headed for
_PATIENCE = 3.0  # times the time that a stretch should take, after which the next point is headed for all the same
_ARM = 7  # joints; two fingers come after
_DAMPING = 0.02  # of the least squares
_TURNING = 0.1  # m/rad, weight of the hand's orientation beside its place
_STIFFNESS = 5.0  # 1/s, by which the hand returns to its path and its orientation
_POSTURE = 1.0  # 1/s, by which the arm returns to its usual posture where that does not move the hand
_SETTLING = 6.0  # m/s of speed per m that is left: the hand slows down before a point where it stops
_MARGIN = 0.01  # rad from its limit at which a joint does not go on
_ACTION_SPEED = 2.0  # rad/s, or m/s of a finger, that an action of 1 asks for


@dataclass(frozen=True)
class Waypoint:
    """A point on the path of the hand."""

    place: np.ndarray
    """(3,), m."""
    speed: float = FREE
    """m/s, on the way there."""
    fingers: float = CLOSED
    """Where the fingers go meanwhile, m."""
    steps: int = 0
    """How long the hand waits there."""

    def moved(self, offset: np.ndarray) -> Waypoint:
        """The same, `offset` (3,) in m away."""
        return replace(self, place=self.place + offset)


class Arm:
    """The arm of a FrankaKitchen environment, led by velocities of its hand."""

    def __init__(self, env: Any) -> None:
        robot = env.unwrapped.robot_env
        self.model, self.data, self.seconds = robot.model, robot.data, float(robot.dt)
        self._site = self.model.site("end_effector").id
        stiffness = self.model.actuator_gainprm[: _ARM + 2, 0]
        # Within a step a joint covers this share of the way to where its actuator pulls it.
        share = 1 - np.exp(-stiffness * self.seconds / self.model.dof_damping[: _ARM + 2])
        self._gain = 1 / (share * self.seconds * _ACTION_SPEED)
        self._weight = 1 / (stiffness * self.seconds * _ACTION_SPEED)
        self._posture = np.array(env.unwrapped.robot_env.init_qpos[:_ARM])

    @property
    def hand(self) -> np.ndarray:
        """Where the hand is `(3,)`, m."""
        return np.array(self.data.site_xpos[self._site])

    def site(self, name: str) -> np.ndarray:
        """Where a site of the model is `(3,)`, m."""
        return np.array(self.data.site(name).xpos)

    def joint(self, name: str) -> tuple[np.ndarray, float]:
        """Where the axis of a hinge is `(3,)`, m, and its angle, rad."""
        return np.array(self.data.joint(name).xanchor), float(self.data.joint(name).qpos[0])

    def action(self, velocity: np.ndarray, fingers: float) -> np.ndarray:
        """The action `(9,)` that moves the hand at a velocity `(3,)`, m/s, and the fingers to a place, m."""
        import mujoco

        jacobian = np.zeros((6, self.model.nv))
        mujoco.mj_jacSite(self.model, self.data, jacobian[:3], jacobian[3:], self._site)
        jacobian = jacobian[:, :_ARM]
        turned = self.data.site_xmat[self._site].reshape(3, 3)
        turn = 0.5 * np.cross(turned, UPRIGHT, axis=0).sum(1)  # the small rotation that is left, rad
        twist = np.concatenate([velocity, _TURNING * _STIFFNESS * turn])
        jacobian[3:] *= _TURNING
        back = _POSTURE * (self._posture - self.data.qpos[:_ARM])
        wanted = self._joint_velocities(jacobian, twist, back)
        moves = np.concatenate([wanted * self.seconds, fingers - self.data.qpos[_ARM : _ARM + 2]])
        weight = self.data.qfrc_bias[: _ARM + 2] * self._weight
        return np.clip(moves * self._gain + weight, -1, 1)

    def _joint_velocities(self, jacobian: np.ndarray, twist: np.ndarray, back: np.ndarray) -> np.ndarray:
        """Velocities of the arm's joints `(7,)`: joints at their limits are left out where they would go beyond."""
        low, high = self.model.jnt_range[:_ARM].T
        place, free = self.data.qpos[:_ARM], np.ones(_ARM, dtype=bool)
        while True:
            able = jacobian * free
            inverse = able.T @ np.linalg.inv(able @ able.T + _DAMPING**2 * np.eye(6))
            wanted = (inverse @ twist + back - inverse @ (able @ back)) * free
            beyond = ((place < low + _MARGIN) & (wanted < 0)) | ((place > high - _MARGIN) & (wanted > 0))
            if not beyond.any():
                return np.asarray(wanted)
            free &= ~beyond


class Follower:
    """Follows a path with the hand, one action after the other."""

    def __init__(self, arm: Arm, path: list[Waypoint], pace: float = 1.0) -> None:
        self._arm, self._path, self._pace = arm, path, pace
        self._next, self._waited, self._spent = 0, 0, 0
        self._from = arm.hand

    @property
    def done(self) -> bool:
        return self._next == len(self._path)

    @property
    def left(self) -> float:
        """Distance to the next point, m."""
        return float(np.linalg.norm(self._path[self._next].place - self._arm.hand))

    @property
    def free(self) -> bool:
        """Whether the hand is between objects now."""
        return self._path[self._next].speed == FREE

    def shoved(self, velocity: np.ndarray) -> np.ndarray:
        """An action `(9,)` that moves the hand at a velocity (3,) in m/s off its path."""
        return self._arm.action(velocity, self._path[self._next].fingers)

    def act(self) -> np.ndarray:
        """The next action `(9,)`."""
        aim, hand = self._path[self._next], self._arm.hand
        ahead = aim.place - hand
        left, speed = float(np.linalg.norm(ahead)), aim.speed * self._pace
        whole = aim.place - self._from
        length = float(np.linalg.norm(whole))
        along = whole / max(length, 1e-9)
        beside = ahead - (ahead @ along) * along  # back onto the line
        onward = float(np.clip(_SETTLING * (ahead @ along), -speed, speed))
        velocity = onward * along + _STIFFNESS * beside
        size = float(np.linalg.norm(velocity))
        velocity *= min(1.0, 1.5 * speed / max(size, 1e-9))
        self._spent += 1
        late = self._spent > _PATIENCE * (length / speed / self._arm.seconds + 5) + aim.steps
        if left < _REACHED or late:
            self._waited += 1
            if self._waited > aim.steps or late:
                self._next, self._waited, self._spent, self._from = self._next + 1, 0, 0, hand
        return self._arm.action(velocity, aim.fingers)


Expert = Callable[[Arm, np.ndarray], list[Waypoint]]
"""(arm, offset of the hand (3,) in m) -> a path from anywhere near home, through the subtask, and off the object."""


def _turn_knob(site: str, joint: str) -> Expert:
    radius, beside, end = 0.034, 0.032, 1.25

    def plan(arm: Arm, offset: np.ndarray) -> list[Waypoint]:
        middle, begin = arm.site(site) + offset, -arm.joint(joint)[1]

        def contact(angle: float) -> np.ndarray:
            out, across = np.array([np.sin(angle), 0, np.cos(angle)]), np.array([np.cos(angle), 0, -np.sin(angle)])
            return middle + radius * out - beside * across + np.array([0, -0.052, 0])

        entry = contact(begin) + np.array([-0.014, 0, 0])
        arc = [Waypoint(contact(angle), TOUCHING) for angle in np.linspace(begin, end, 5)[1:]]
        return [
            Waypoint(entry + np.array([-0.005, -0.09, 0])),
            Waypoint(entry, TOUCHING),
            *arc,
            Waypoint(contact(end) + np.array([-0.02, -0.12, 0])),
        ]

    return plan


def _press_switch(arm: Arm, offset: np.ndarray) -> list[Waypoint]:
    lever = arm.site("light_site") + offset
    beside = lever + np.array([0.055, -0.045, 0])
    return [
        Waypoint(beside + np.array([0.01, -0.12, 0])),
        Waypoint(beside, TOUCHING),
        Waypoint(lever + np.array([-0.08, -0.045, 0]), 0.2),
        Waypoint(lever + np.array([-0.04, -0.15, 0])),
    ]


def _slide(arm: Arm, offset: np.ndarray) -> list[Waypoint]:
    handle = arm.site("slide_site") + offset
    beside = handle + np.array([-0.054, -0.02, 0])
    return [  # from below, past an open hinge cabinet
        Waypoint(beside + np.array([0.03, -0.16, -0.25])),
        Waypoint(beside + np.array([0.01, -0.1, 0])),
        Waypoint(beside, TOUCHING),
        Waypoint(beside + np.array([0.33, 0, 0]), TOUCHING),
        Waypoint(beside + np.array([0.3, -0.13, 0])),
    ]


def _pull(site: str, joint: str, angle: float, points: int) -> Expert:
    """Take hold of an upright handle and pull it round its hinge, to `angle` in rad."""

    def plan(arm: Arm, offset: np.ndarray) -> list[Waypoint]:
        handle, (hinge, opened) = arm.site(site), arm.joint(joint)
        handle[2] += offset[2]
        hinge[2] = handle[2]
        grip = np.array([offset[0], -0.02 + min(offset[1], 0), 0])  # fingertips reach beyond the hand

        def round_hinge(turn: float) -> np.ndarray:
            x, y, z = handle - hinge
            return hinge + np.array([x * np.cos(turn) - y * np.sin(turn), x * np.sin(turn) + y * np.cos(turn), z])

        arc = [Waypoint(round_hinge(turn) + grip, TOUCHING) for turn in np.linspace(0, angle - opened, points)[1:]]
        off = arc[-1].place
        return [
            Waypoint(handle + grip + np.array([0, -0.16, 0]), fingers=OPEN),
            Waypoint(handle + grip, TOUCHING, OPEN),
            Waypoint(handle + grip, TOUCHING, CLOSED, steps=6),
            *arc,
            Waypoint(off, TOUCHING, OPEN, steps=6),
            Waypoint(off + np.array([0, -0.1, 0]), fingers=OPEN),
        ]

    return plan


def _carry_kettle(arm: Arm, offset: np.ndarray) -> list[Waypoint]:
    """Lift the kettle by its handle with the fingers a little apart, and set it down on the burner behind."""
    handle = arm.site("kettle_site") + offset
    low, lifted = np.array([0, 0, -0.085]), np.array([0, 0, 0.01])
    ahead = np.array([0, _BURNER - handle[1], 0])
    under, apart = handle + np.array([0, -0.005, 0]), 0.02
    return [
        Waypoint(np.array([handle[0], 0.1, HOME_POINT[2] - 0.1]), fingers=apart),
        Waypoint(under + low + np.array([0, -0.12, 0]), fingers=apart),
        Waypoint(under + low, TOUCHING, apart),
        Waypoint(under + lifted, TOUCHING, apart),
        Waypoint(under + lifted + ahead, TOUCHING, apart),
        Waypoint(under + low + ahead, TOUCHING, apart),
        Waypoint(under + low + ahead + np.array([0, -0.2, 0]), fingers=apart),
        Waypoint(under + ahead + np.array([0, -0.25, 0.1]), fingers=apart),
    ]


EXPERTS: dict[str, Expert] = {
    "bottom burner": _turn_knob("knob2_site", "knob_Joint_2"),
    "top burner": _turn_knob("knob4_site", "knob_Joint_4"),
    "light switch": _press_switch,
    "slide cabinet": _slide,
    "hinge cabinet": _pull("hinge_site2", "right_hinge_cabinet", 1.42, 7),
    "microwave": _pull("microhandle_site", "microwave", -0.7, 6),
    "kettle": _carry_kettle,
}


FINGERS = {"hinge cabinet": OPEN, "microwave": OPEN, "kettle": 0.02}
"""Where the fingers are on the way to and from an object, m; closed for the others."""


def go_home(arm: Arm, offset: np.ndarray, fingers: float) -> list[Waypoint]:
    """Back to where the hand is after a reset, with the fingers as they were."""
    return [Waypoint(HOME_POINT + offset, fingers=fingers)]
