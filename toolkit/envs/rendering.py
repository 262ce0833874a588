"""Small pictures of MuJoCo scenes, fast in software.

Pictures differ from Meta-World's own on purpose: a narrower camera (at the stock field of view a goal is two pixels
wide), no shadows, reflections or sky, and visual meshes thinned to what a small picture can show. Drawing one then
takes a few milliseconds instead of a hundred. Physics is untouched: of the model that it uses, only the camera moves;
the rest happens in a copy that only the renderer sees.
"""

from __future__ import annotations

import atexit
import copy
import os
import sys
import weakref
from typing import Any

import numpy as np

from toolkit.base.errors import UserError, first_line
from toolkit.envs.shifts import Looks

os.environ.setdefault("MUJOCO_GL", "egl")

CAMERA, CAMERA_POSITION, CAMERA_FOVY = "corner2", (0.75, 0.075, 0.7), 36.0
MESH_CELL_M = 0.008  # visual meshes are thinned to this grid; one pixel of 64 shows about one centimetre
CYLINDER_SLICES = 12  # corners of a cylinder or sphere; less than a millimetre off on what the robot handles
FLOOR_GRID_M = 1.0  # the floor's plane comes as 6,400 tiles of 10 cm, all of one colour
HIDDEN_GROUP = 5  # MuJoCo draws groups 0 to 2
MOST_GEOMS = 10_000  # in one scene, as in MuJoCo's own renderer

_open: weakref.WeakSet[SceneRenderer] = weakref.WeakSet()
_gl: list[Any] = []  # the process's OpenGL context, once there is one


class SceneRenderer:
    """Draws scenes of one model; environments that have the same model may share it.

    model: the one that physics uses; it is copied at the first picture. hide_robot: leave out the body `hand` and all
    that it hangs on. visual_shift: each scene has light, colours, a camera pose and distracting objects of its own.
    All renderers of a process share one OpenGL context: to change from one to another is slow in software.
    """

    def __init__(
        self,
        model: Any,
        image_size: int,
        supersample: int = 2,
        mesh_cell_m: float = MESH_CELL_M,
        hide_robot: bool = False,
        visual_shift: bool = False,
    ) -> None:
        self._source, self._directions = model, model.cam_quat.copy()  # before a look turned a camera
        self.image_size, self.supersample, self.mesh_cell_m = image_size, supersample, mesh_cell_m
        self.hide_robot, self.visual_shift = hide_robot, visual_shift
        self.model: Any = None
        self.scene: Any = None
        self._context: Any = None
        self._drawn: tuple[Any, int] = (None, 0)  # simulation and scene whose look is on

    @property
    def is_open(self) -> bool:
        """If it holds OpenGL's memory."""
        return self._context is not None

    def picture(self, model: Any, data: Any, seed: int) -> np.ndarray:
        """The present instant of a simulation, (image_size, image_size, 3) uint8.

        model, data: of the simulation, whose camera is put in place; seed: of its scene, for the look of it.
        Raises UserError without OpenGL.
        """
        import mujoco

        if not self.is_open:
            self._make()
        if not self.visual_shift:
            model.cam_pos[self._camera] = CAMERA_POSITION
        elif self._drawn[0] is not data or self._drawn[1] != seed:
            self._looks.draw(seed, model)
            self._drawn = data, seed
        mujoco.mj_camlight(model, data)  # the data holds the camera's place from the last step
        self.model.geom_group[:] = np.where(self._in_view(data), self._geom_group, HIDDEN_GROUP)
        mujoco.mjv_updateScene(
            self.model, data, self._option, None, self._view, mujoco.mjtCatBit.mjCAT_ALL.value, self.scene
        )
        for flag in ("SHADOW", "REFLECTION", "SKYBOX"):
            self.scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        if self.visual_shift:
            self._looks.add_distractors(self.scene)
        _gl[0].make_current()
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)  # that of another may be current
        side, size, s = self.image_size * self.supersample, self.image_size, self.supersample
        rectangle, pixels = mujoco.MjrRect(0, 0, side, side), np.empty((side, side, 3), np.uint8)
        mujoco.mjr_render(rectangle, self.scene, self._context)
        mujoco.mjr_readPixels(pixels, None, rectangle, self._context)
        picture = pixels[:, ::-1]  # OpenGL's rows come from below, and Meta-World's camera hangs upside down
        if s == 1:
            return picture.copy()
        total = np.zeros((size, size, 3), np.uint16)
        for row in range(s):
            for column in range(s):
                total += picture[row::s, column::s]
        return ((total + s * s // 2) // (s * s)).astype(np.uint8)

    def _in_view(self, data: Any) -> np.ndarray:
        """(geoms,) False where a geom's bounding box lies outside the view, where MuJoCo would draw it all the same."""
        model = self.model
        half = np.radians(CAMERA_FOVY / 2)
        # Outward normals of the view's four sides, in the camera's axes: x right, y up, z towards the viewer.
        sides = np.array([(1, 0, 0), (-1, 0, 0), (0, 1, 0), (0, -1, 0)]) * np.cos(half) + (0, 0, np.sin(half))
        normals = sides @ data.cam_xmat[self._camera].reshape(3, 3).T  # (4, 3) in world axes
        local = normals @ data.geom_xmat.reshape(-1, 3, 3)  # (geoms, 4, 3) in each geom's axes
        centre, size = model.geom_aabb[:, None, :3], model.geom_aabb[:, None, 3:]
        nearest_point = (local * centre - np.abs(local) * size).sum(-1)
        nearest_point += (data.geom_xpos - data.cam_xpos[self._camera]) @ normals.T
        return (nearest_point <= 0).all(1) | (model.geom_type == 0)  # planes have no bounds

    def _make(self) -> None:
        import mujoco

        model = copy.copy(self._source)
        if self.mesh_cell_m:
            model = thin_meshes(model, self.mesh_cell_m)
        camera = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_CAMERA, CAMERA)
        self._camera, self._geom_group = camera, model.geom_group.copy()
        if self.hide_robot:
            hand = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, "hand")
            robot = model.body_rootid[model.geom_bodyid] == model.body_rootid[hand]
            self._geom_group[robot] = HIDDEN_GROUP
        model.cam_pos[camera], model.cam_fovy[camera] = CAMERA_POSITION, CAMERA_FOVY
        model.vis.quality.shadowsize = model.vis.quality.offsamples = 0
        model.vis.quality.numslices, model.vis.quality.numstacks = CYLINDER_SLICES, CYLINDER_SLICES // 2
        model.vis.quality.numquads = 1  # a box face lit at its corners alone
        planes = model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE
        model.geom_size[planes, 2] = np.maximum(model.geom_size[planes, 2], FLOOR_GRID_M)
        side = self.image_size * self.supersample
        model.vis.global_.offwidth = model.vis.global_.offheight = side
        model.cam_quat[:] = self._directions
        self.model, self._looks, self._drawn = model, Looks(model, camera), (None, 0)
        self.scene, self._option = mujoco.MjvScene(model, maxgeom=MOST_GEOMS), mujoco.MjvOption()
        self._view = mujoco.MjvCamera()
        self._view.type, self._view.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, camera
        try:
            if not _gl:
                _gl.append(mujoco.GLContext(side, side))
                atexit.register(_close_all)  # after MuJoCo's own hook, hence before it: contexts die before the display
            _gl[0].make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_150)
        except Exception as error:  # the GL loaders raise many classes
            raise no_opengl(error) from error
        _open.add(self)

    def close(self) -> None:
        """Free OpenGL's memory; a later picture takes it again."""
        if self._context is not None:
            _gl[0].make_current()
            self._context.free()
            self._context = None
            _open.discard(self)


def _close_all() -> None:
    for renderer in list(_open):
        renderer.close()
    _gl.pop().free()


def no_opengl(error: Exception) -> UserError:
    """What to say when MuJoCo finds no OpenGL library that can render."""
    chosen, module = os.environ.get("MUJOCO_GL", ""), sys.modules.get("mujoco.gl_context")
    loaded = getattr(getattr(module, "GLContext", None), "__module__", f"mujoco.{chosen}")
    if not loaded.startswith(f"mujoco.{chosen}"):
        return UserError(f"mujoco was imported before MUJOCO_GL was set; set MUJOCO_GL={chosen} in the shell")
    reason = first_line(error)
    return UserError(
        f"cannot render with MUJOCO_GL={chosen} ({reason}); "
        "on Debian: apt-get install libegl1 libgl1 libgl1-mesa-dri libosmesa6, then MUJOCO_GL=egl or MUJOCO_GL=osmesa"
    )


def thin_meshes(model: Any, cell: float, min_faces: int = 1000) -> Any:
    """A copy of a MuJoCo model, for rendering only, whose large meshes are clustered on a grid of `cell` metres.

    Vertices of one cell collapse to the one nearest their mean; faces that lose a corner or stand twice go.
    Rendering in software is bound by vertices, not by pixels: this is what makes it fast.
    """
    model = copy.copy(model)
    for mesh in range(model.nmesh):
        start, count = model.mesh_faceadr[mesh], model.mesh_facenum[mesh]
        if count < min_faces:
            continue
        first_vertex = model.mesh_vertadr[mesh]
        vertices = model.mesh_vert[first_vertex : first_vertex + model.mesh_vertnum[mesh]]
        faces = model.mesh_face[start : start + count].copy()
        _, cluster = np.unique(np.floor(vertices / cell).astype(np.int64), axis=0, return_inverse=True)
        cluster = cluster.ravel()
        size = np.bincount(cluster)
        mean = np.stack([np.bincount(cluster, vertices[:, k]) for k in range(3)], axis=1) / size[:, None]
        distance = np.square(vertices - mean[cluster]).sum(1)
        order = np.lexsort((distance, cluster))
        representative = order[np.unique(cluster[order], return_index=True)[1]]
        faces = representative[cluster[faces]]
        a, b, c = faces.T
        kept = np.flatnonzero((a != b) & (b != c) & (a != c))
        kept = kept[np.sort(np.unique(np.sort(faces[kept], axis=1), axis=0, return_index=True)[1])]
        stop = start + len(kept)
        model.mesh_face[start:stop] = faces[kept]
        model.mesh_facenormal[start:stop] = model.mesh_facenormal[start + kept]
        model.mesh_facetexcoord[start:stop] = model.mesh_facetexcoord[start + kept]
        model.mesh_facenum[mesh] = len(kept)
    return model
