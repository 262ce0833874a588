"""Generalization axes: how evaluation scenes may differ from those that were trained on, one axis at a time."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

# What a task moves about stands within a box; scenes in the last part of its x range can be kept from training.
HELD_OUT_FROM = 0.7  # of the range
POSITIONS = ("all", "inner", "outer")

LIGHT = (0.7, 1.3)  # factor of all light
TINT = (0.7, 1.0)  # factor of each colour channel, for each material and for the light
CAMERA_SHIFT_M, CAMERA_TURN_DEG = 0.01, 0.5  # largest; a picture of 64 pixels shows a centimetre in each
DISTRACTORS = 3
DISTRACTOR_SIZE_M = (0.015, 0.03)
DISTRACTOR_X, DISTRACTOR_Y = (0.17, 0.32), (0.5, 0.85)  # on either side of the robot's own objects


@dataclass(frozen=True)
class Suite:
    """One axis. positions: which scenes it takes; new_tasks: tasks other than those that were trained on; perturbed:
    something happens on the way, see `toolkit.envs.perturbations`."""

    text: str
    positions: str = "all"
    visual: bool = False
    paraphrased: bool = False
    new_tasks: bool = False
    perturbed: bool = False


SUITES = {
    "unseen": Suite("new initial scenes of the same tasks"),
    "position": Suite("objects in the part of their range that training may leave out", positions="outer"),
    "visual": Suite("other light, colours, textures and camera pose, and objects that do not matter", visual=True),
    "language": Suite("the instruction in other words", paraphrased=True),
    "task": Suite("tasks without real episodes", new_tasks=True),
    "perturbed": Suite("something moves, or the actions are late or noisy, for a while", perturbed=True),
}
EVERYWHERE = ("unseen", "language", "perturbed")  # what every world can show


def takes_part(positions: str, held_out: bool) -> bool:
    """If a scene is one of `all`, of `inner` or of `outer` object positions."""
    return positions == "all" or (positions == "outer") == held_out


# --- language ---

# First words of an instruction, and nouns; the first match in a group wins, so longer ones stand first.
SYNONYMS = {
    "push and open": ("slide open", "shove open"),
    "push and close": ("slide shut", "shove shut"),
    "pick and place": ("grab and move", "carry"),
    "pick up": ("grab", "lift"),
    "pick": ("grab", "lift"),
    "place": ("put", "set down"),
    "push": ("move", "shove"),
    "pull": ("tug", "draw"),
    "press": ("push in", "hit"),
    "open": ("unclose", "swing open"),
    "close": ("shut", "swing shut"),
    "rotate": ("turn", "twist"),
    "rotating": ("turning", "twisting"),
    "sweep": ("brush", "wipe"),
    "grasp": ("grip", "take hold of"),
    "slide": ("shift", "glide"),
    "reach": ("go to", "touch"),
    "insert": ("put in", "stick in"),
    "puck": ("disc", "small cylinder"),
    "goal position": ("target spot", "marked place"),
    "goal": ("target", "marked place"),
    "lever": ("handle bar", "arm"),
    "window": ("window pane", "sliding window"),
    "faucet": ("tap", "water tap"),
    "hole": ("opening", "gap"),
    "button": ("switch", "knob"),
    "plate": ("dish", "saucer"),
    "cabinet": ("cupboard", "closet"),
    "drawer": ("sliding box", "tray"),
    "door": ("gate", "hatch"),
    "peg": ("pin", "plug"),
    "mug": ("cup", "beaker"),
}
FRAMES = ("{}", "please {}", "the robot should {}", "now {}", "your task: {}")
_WORDS = re.compile(r"\b(" + "|".join(sorted(SYNONYMS, key=len, reverse=True)) + r")\b")


def paraphrase(instruction: str, seed: int) -> str:
    """The instruction in other words, always the same for a seed and never as it was."""
    rng = np.random.default_rng((seed, 3))
    text = _WORDS.sub(lambda match: str(rng.choice(SYNONYMS[match[0]])), instruction.lower())
    frames = FRAMES[1:] if text == instruction.lower() else FRAMES
    return str(rng.choice(frames)).format(text)


# --- looks ---


class Looks:
    """Changes how a MuJoCo scene looks, from a seed, in the model that only the renderer sees.

    What is textured, such as the table, wears any of the scene's materials with a texture of the same kind.
    Of the one that physics uses, the camera moves.

    camera: number of the camera, which stands in that model where it stands without a look.
    """

    def __init__(self, model: Any, camera: int) -> None:
        self.model, self.camera = model, camera
        self.colours = {name: getattr(model, name).copy() for name in ("mat_rgba", "geom_rgba", "light_diffuse")}
        # MuJoCo takes the colour of a material for geoms of its default grey alone.
        self.material_only = (model.geom_matid >= 0) & (model.geom_rgba == (0.5, 0.5, 0.5, 1)).all(1)
        self.headlight = np.array(model.vis.headlight.diffuse), np.array(model.vis.headlight.ambient)
        self.materials, texture = model.geom_matid.copy(), model.mat_texid[:, 1]  # that of colour
        kind = np.where(texture >= 0, model.tex_type[texture], -1)  # flat or around a box
        self.alike = [np.flatnonzero(kind == own) if own >= 0 else np.array([i]) for i, own in enumerate(kind)]

    def draw(self, seed: int, simulated: Any) -> None:
        """Put on the look of a seed; simulated: the model that physics uses, whose camera moves."""
        import mujoco

        rng = np.random.default_rng((seed, 2))
        model = self.model
        light = rng.uniform(*LIGHT) * rng.uniform(*TINT, 3)
        model.vis.headlight.diffuse[:], model.vis.headlight.ambient[:] = (light * part for part in self.headlight)
        model.light_diffuse[:] = light * self.colours["light_diffuse"]
        for name in ("mat_rgba", "geom_rgba"):
            colours = getattr(model, name)
            colours[:, :3] = self.colours[name][:, :3] * rng.uniform(*TINT, (len(colours), 3))
        model.geom_rgba[self.material_only] = self.colours["geom_rgba"][self.material_only]
        position, direction = model.cam_pos[self.camera], model.cam_quat[self.camera]
        simulated.cam_pos[self.camera] = position + rng.uniform(-CAMERA_SHIFT_M, CAMERA_SHIFT_M, 3)
        axis, turn = rng.standard_normal(3), np.zeros(4)
        angle = np.radians(CAMERA_TURN_DEG) * rng.uniform()
        mujoco.mju_axisAngle2Quat(turn, axis / np.linalg.norm(axis), angle)
        mujoco.mju_mulQuat(simulated.cam_quat[self.camera], direction, turn)
        self.distractors = [
            (
                rng.choice([mujoco.mjtGeom.mjGEOM_SPHERE, mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_CYLINDER]),
                rng.uniform(*DISTRACTOR_SIZE_M),
                np.array([rng.choice([-1, 1]) * rng.uniform(*DISTRACTOR_X), rng.uniform(*DISTRACTOR_Y)]),
                np.array([*rng.uniform(0, 1, 3), 1], np.float32),
            )
            for _ in range(DISTRACTORS)
        ]
        worn = np.array([rng.choice(others) for others in self.alike])
        model.geom_matid[:] = np.where(self.materials >= 0, worn[self.materials], -1)

    def add_distractors(self, scene: Any) -> None:
        """Put the objects that do not matter onto the table of a scene that is about to be rendered."""
        import mujoco

        for kind, size, (x, y), colour in self.distractors:
            geom = scene.geoms[scene.ngeom]
            place = np.array([x, y, size])
            mujoco.mjv_initGeom(geom, kind, np.full(3, size), place, np.eye(3).ravel(), colour)
            scene.ngeom += 1
