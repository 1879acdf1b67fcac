"""Images of simple solids on a floor: one ray per sample, one lamp with shadows, one reflection.

Arrays of points and directions are (rays, 3), float64. The floor is z = 0; solids stand on it.
Colours are linear light from 0 to 1.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating[Any]]
Mask = NDArray[np.bool_]
Indices = NDArray[np.int64]

_LOOK_AT = np.array([0.0, 0.0, 0.3])
_VIEW = 2 * math.tan(math.radians(47.0) / 2)  # width of what must be in view, a unit ahead
_VIEW_SHAPE = 1.5  # its width to its height, as in CLEVR; other images show more around it
_FLOOR_COLOUR = np.array([0.42, 0.42, 0.43])
_SKY_COLOUR = np.array([0.95, 0.95, 1.0])  # straight up; what metal mirrors
_FILL_LAMP = np.array([-6.0, -7.0, 7.0])
_AMBIENT, _KEY, _FILL = 0.26, 0.82, 0.20
_SHADOW = 0.08  # of the key light that still arrives in the shadow
_LAMP_SPREAD = 0.45  # half the lamp's width; its corners soften the shadows
_FALL_OFF = 0.012  # how quickly the floor darkens away from the middle
_BALL_AROUND = MappingProxyType({"sphere": 1.0, "cylinder": math.sqrt(2), "cube": math.sqrt(3)})
_NUDGE = 1e-4  # off a surface, so that a ray does not meet what it starts from


@dataclass(frozen=True)
class Solid:
    """A cube, cylinder or sphere on the floor at (x, y).

    `radius` is half the height and half the width, `turn` the angle about the vertical in radians.
    """

    shape: str
    x: float
    y: float
    radius: float
    turn: float
    colour: tuple[float, float, float]
    metal: bool

    @property
    def centre(self) -> Array:
        """The middle of the solid, float64 [3]."""
        return np.array([self.x, self.y, self.radius])


@dataclass(frozen=True)
class Hits:
    """First hit of each ray: distance (inf: none), index of the solid (-1: none), normal."""

    distance: Array
    solid: Indices
    normal: Array


def camera_rays(eye: Array, width: int, height: int) -> Array:
    """Unit directions through the middle of each sample, row by row, [height * width, 3].

    eye: the camera's position [3].
    """
    ahead = _unit(_LOOK_AT - eye)
    right = _unit(np.cross(ahead, [0.0, 0.0, 1.0]))
    up = np.cross(right, ahead)
    step = max(_VIEW / width, _VIEW / _VIEW_SHAPE / height)
    across = (np.arange(width) + 0.5 - width / 2) * step
    down = (np.arange(height) + 0.5 - height / 2) * step
    grid = ahead + across[None, :, None] * right - down[:, None, None] * up
    return _unit(grid.reshape(-1, 3))


def outline(solid: Solid, eye: Array, rays: Array) -> Mask:
    """Which rays from `eye` would meet `solid` if it stood alone: bool [n].

    eye: position [3]; rays: unit directions [n, 3].
    """
    origins = np.broadcast_to(eye, rays.shape)
    near = np.flatnonzero(_may_meet(solid, origins, rays))
    met = np.zeros(len(rays), dtype=bool)
    met[near] = np.isfinite(_meet(solid, origins[near], rays[near])[0])
    return met


def trace(solids: Sequence[Solid], origins: Array, rays: Array) -> Hits:
    """The first solid that each ray from its origin meets.

    origins, rays: positions and unit directions [n, 3]; Hits hold [n] distances and solids, [n, 3]
    normals.
    """
    distance = np.full(len(rays), np.inf)
    index = np.full(len(rays), -1)
    normal = np.zeros(rays.shape)
    for number, solid in enumerate(solids):
        near = np.flatnonzero(_may_meet(solid, origins, rays))
        met, facing = _meet(solid, origins[near], rays[near])
        closer = met < distance[near]
        chosen = near[closer]
        distance[chosen], index[chosen], normal[chosen] = met[closer], number, facing[closer]
    return Hits(distance, index, normal)


def image(solids: Sequence[Solid], eye: Array, lamp: Array, width: int, height: int) -> Array:
    """Linear light of each sample, (height, width, 3), seen from `eye` under `lamp`."""
    rays = camera_rays(eye, width, height)
    origins = np.broadcast_to(eye, rays.shape)
    return _light(solids, origins, rays, lamp, mirror=True).reshape(height, width, 3)


def _light(
    solids: Sequence[Solid], origins: Array, rays: Array, lamp: Array, mirror: bool
) -> Array:
    """Light along each ray, (rays, 3); `mirror` follows reflections from metal, once."""
    hits = trace(solids, origins, rays)
    light = _SKY_COLOUR * (0.25 + 0.75 * np.abs(rays[:, 2:]))
    floor = np.flatnonzero((hits.solid < 0) & (rays[:, 2] < 0))
    light[floor] = _floor_light(solids, origins[floor], rays[floor], lamp)
    for number, solid in enumerate(solids):
        shown = np.flatnonzero(hits.solid == number)
        if len(shown) == 0:
            continue
        points = origins[shown] + hits.distance[shown, None] * rays[shown]
        normals = hits.normal[shown]
        light[shown] = _surface(solid, solids, points, normals, rays[shown], lamp)
        if solid.metal and mirror:
            bounced = rays[shown] - 2 * _dot(rays[shown], normals)[:, None] * normals
            seen = _light(solids, points + _NUDGE * normals, bounced, lamp, mirror=False)
            tint = 0.12 + 0.88 * np.array(solid.colour)
            light[shown] = 0.5 * light[shown] + 0.75 * tint * seen
    return light


def _floor_light(solids: Sequence[Solid], origins: Array, rays: Array, lamp: Array) -> Array:
    points = origins - (origins[:, 2] / rays[:, 2])[:, None] * rays
    up = np.broadcast_to(np.array([0.0, 0.0, 1.0]), points.shape)
    near = 1 / (1 + _FALL_OFF * (points[:, 0] ** 2 + points[:, 1] ** 2))
    return _FLOOR_COLOUR * (_diffuse(solids, points, up, lamp) * near)[:, None]


def _surface(
    solid: Solid, solids: Sequence[Solid], points: Array, normals: Array, rays: Array, lamp: Array
) -> Array:
    diffuse = _diffuse(solids, points, normals, lamp)
    halfway = _unit(_unit(lamp - points) - rays)
    sharpness, strength = (60.0, 1.6) if solid.metal else (12.0, 0.10)
    shine = strength * np.maximum(_dot(normals, halfway), 0.0) ** sharpness
    return np.array(solid.colour) * diffuse[:, None] + shine[:, None]


def _diffuse(solids: Sequence[Solid], points: Array, normals: Array, lamp: Array) -> Array:
    """Light that arrives at each point, from the lamp unless in a shadow and from around."""
    key = np.maximum(_dot(normals, _unit(lamp - points)), 0.0)
    fill = np.maximum(_dot(normals, _unit(_FILL_LAMP - points)), 0.0)
    lit = _SHADOW + (1 - _SHADOW) * _lit_share(solids, points + _NUDGE * normals, lamp)
    return _AMBIENT * (0.75 + 0.25 * normals[:, 2]) + _KEY * key * lit + _FILL * fill


def _lit_share(solids: Sequence[Solid], points: Array, lamp: Array) -> Array:
    """The share of the lamp's four corners that each point sees."""
    share = np.ones(len(points))
    towards = _unit(lamp - points)
    # Only points whose view of the lamp's middle passes close by a solid can be in its shadow.
    near = [_may_meet(solid, points, towards, _LAMP_SPREAD) for solid in solids]
    doubtful = np.flatnonzero(np.any(near, axis=0))
    for x, y in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        corner = _unit(lamp + _LAMP_SPREAD * np.array([x, y, 0.0]) - points[doubtful])
        dark = np.zeros(len(doubtful), dtype=bool)
        for solid, close in zip(solids, near, strict=True):
            tried = np.flatnonzero(~dark & close[doubtful])
            met = _meet(solid, points[doubtful[tried]], corner[tried])[0]
            dark[tried] = np.isfinite(met)
        share[doubtful] -= dark / 4
    return share


def _may_meet(solid: Solid, origins: Array, rays: Array, margin: float = 0.0) -> Mask:
    """Whether each ray passes the ball around `solid`, or by less than `margin`."""
    offset = solid.centre - origins
    along = _dot(offset, rays)
    reach = margin + solid.radius * _BALL_AROUND[solid.shape]
    away = _dot(offset, offset) - along**2
    return (away < reach**2) & (along > -reach)


def _meet(solid: Solid, origins: Array, rays: Array) -> tuple[Array, Array]:
    """Distances along the rays (inf where they miss) and the normals where they meet."""
    meet = {"sphere": _meet_ball, "cylinder": _meet_cylinder, "cube": _meet_cube}[solid.shape]
    with np.errstate(divide="ignore", invalid="ignore"):
        return meet(solid, origins - solid.centre, rays)


def _meet_ball(solid: Solid, origins: Array, rays: Array) -> tuple[Array, Array]:
    along = _dot(origins, rays)
    root = along**2 - _dot(origins, origins) + solid.radius**2
    distance: Array = _first(-along - np.sqrt(root))
    return distance, _unit(origins + distance[:, None] * rays)


def _meet_cylinder(solid: Solid, origins: Array, rays: Array) -> tuple[Array, Array]:
    """The mantle where the ray enters it between the lids, else the lid it comes through."""
    flat, ray = origins[:, :2], rays[:, :2]
    square = _dot(ray, ray)
    along = _dot(flat, ray)
    root = np.sqrt(along**2 - square * (_dot(flat, flat) - solid.radius**2))
    aside = (-along - root) / square
    height = origins[:, 2] + aside * rays[:, 2]
    mantle = _first(np.where(np.abs(height) <= solid.radius, aside, np.nan))
    facing = -np.sign(rays[:, 2])
    through = (facing * solid.radius - origins[:, 2]) / rays[:, 2]
    on_lid = flat + through[:, None] * ray
    lid = _first(np.where(_dot(on_lid, on_lid) <= solid.radius**2, through, np.nan))
    around = np.concatenate([flat + mantle[:, None] * ray, np.zeros((len(rays), 1))], axis=1)
    upright = np.stack([*np.zeros((2, len(rays))), facing], axis=1)
    normal = np.where((mantle < lid)[:, None], _unit(around), upright)
    return np.minimum(mantle, lid), normal


def _meet_cube(solid: Solid, origins: Array, rays: Array) -> tuple[Array, Array]:
    """Between the later of the entries and the earlier of the exits of three pairs of planes."""
    cosine, sine = math.cos(solid.turn), math.sin(solid.turn)
    turned = np.array([[cosine, -sine, 0.0], [sine, cosine, 0.0], [0.0, 0.0, 1.0]])
    start, ray = origins @ turned, rays @ turned
    near, far = (-solid.radius - start) / ray, (solid.radius - start) / ray
    entries, exits = np.minimum(near, far), np.maximum(near, far).min(axis=1)
    axis = entries.argmax(axis=1)
    entry = entries.max(axis=1)
    side = np.zeros(rays.shape)
    rows = np.arange(len(rays))
    side[rows, axis] = -np.sign(ray[rows, axis])
    return _first(np.where(entry <= exits, entry, np.nan)), side @ turned.T


def _first(distance: Array) -> Array:
    """`distance` where it lies ahead, inf where it does not or there is none."""
    return np.where(distance > 0, distance, np.inf)


def _dot(left: Array, right: Array) -> Array:
    return np.einsum("...i,...i->...", left, right)


def _unit(vectors: Array) -> Array:
    return vectors / np.sqrt(_dot(vectors, vectors))[..., None]
