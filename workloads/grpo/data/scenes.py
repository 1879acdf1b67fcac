"""Drawn scenes in the manner of CLEVR: cubes, cylinders and spheres on a floor, none hidden.

Colours, sizes, materials and distances follow CLEVR's generator, the colours of each shape the
conditions A and B of CLEVR-CoGenT (https://cs.stanford.edu/people/jcjohns/clevr/). Ray casting
tells how many pixels show each object: a scene in which one is too far hidden is drawn again.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
from PIL import Image

from workloads.errors import UserError
from workloads.grpo.data.raycast import (
    Array,
    Indices,
    Mask,
    Solid,
    camera_rays,
    image,
    outline,
    trace,
)

Palette = Literal["A", "B"]

SHAPES = ("cube", "cylinder", "sphere")
SIZES = MappingProxyType({"small": 0.35, "large": 0.7})
MATERIALS = ("rubber", "metal")
COLOURS = MappingProxyType(
    {
        "gray": (87, 87, 87),
        "red": (173, 35, 35),
        "blue": (42, 75, 215),
        "green": (29, 105, 20),
        "brown": (129, 74, 25),
        "purple": (129, 38, 192),
        "cyan": (41, 208, 208),
        "yellow": (255, 238, 51),
    }
)
_WARM = ("gray", "blue", "brown", "yellow")
_COOL = ("red", "green", "purple", "cyan")

_CAMERA = np.array([7.2, -6.4, 5.2])
_LAMP = np.array([0.5, -7.5, 9.0])
_JITTER = 0.4  # random offset of camera and lamp from their places
_REACH = 3.0  # objects stand within this square around the middle
_GAP = 0.25  # between any two objects, on the floor
_SEEN_SHARE = 0.6  # of an object's own outline must be visible
_SEEN_PIXELS = 0.0013  # and this share of the image, as in CLEVR
_RIM = 2  # margin without objects, in pixels of _LOOK
_LOOK = (120, 80)  # size in pixels of the image for these checks
_SUPERSAMPLING = 2  # rays a side for each pixel
_GAMMA = 2.2
_PLACINGS = 60  # tries for one object before the scene starts again
_SCENES = 500


@dataclass(frozen=True)
class Item:
    """One object of a scene; `x`, `y` on the floor, `turn` in radians."""

    shape: str
    colour: str
    size: str
    material: str
    x: float
    y: float
    turn: float

    @property
    def radius(self) -> float:
        """Half the width; a cube of radius r has the edge 2r/√2, so that it fits among the rest."""
        radius = SIZES[self.size]
        return radius / math.sqrt(2) if self.shape == "cube" else radius


@dataclass(frozen=True)
class Scene:
    """Objects, the camera's place and the lamp's, each as (x, y, z)."""

    items: tuple[Item, ...]
    camera: tuple[float, float, float]
    lamp: tuple[float, float, float]


def colours_of(shape: str, palette: Palette) -> tuple[str, ...]:
    """The colours that `shape` may have under CoGenT's condition A or B.

    Raises UserError for another palette.
    """
    if palette not in ("A", "B"):
        raise UserError(f'expected palette "A" or "B", found "{palette}"; choose one of them')
    if shape == "sphere":
        return tuple(COLOURS)
    return _WARM if (shape == "cube") == (palette == "A") else _COOL


def draw_scene(
    rng: np.random.Generator,
    count: int,
    palette: Palette,
    sizes: Sequence[str] = tuple(SIZES),
) -> Scene:
    """A scene of `count` objects of these sizes, none of them hidden, drawn from `rng` alone.

    Raises UserError for more objects than fit into an image.
    """
    for _ in range(_SCENES):
        camera = _CAMERA + rng.uniform(-_JITTER, _JITTER, 3)
        lamp = _LAMP + rng.uniform(-_JITTER, _JITTER, 3)
        items = _place(rng, count, palette, sizes)
        if items is not None:
            scene = Scene(items, _triple(camera), _triple(lamp))
            if _all_seen(scene):
                return scene
    raise UserError(
        f"expected a count of objects that fits into one image, found {count}; ask for at most 10"
    )


def render(scene: Scene, size: tuple[int, int]) -> Image.Image:
    """The image of `scene`, RGB, `size` as (width, height) in pixels."""
    width, height = size
    fine = _SUPERSAMPLING
    solids = [_solid(item) for item in scene.items]
    eye, lamp = np.array(scene.camera), np.array(scene.lamp)
    samples = image(solids, eye, lamp, fine * width, fine * height)
    light = samples.reshape(height, fine, width, fine, 3).mean(axis=(1, 3))
    levels = np.rint(255 * np.clip(light, 0.0, 1.0) ** (1 / _GAMMA))
    return Image.fromarray(levels.astype(np.uint8), "RGB")


def visible_pixels(scene: Scene, size: tuple[int, int]) -> list[tuple[int, int]]:
    """For each object its number of visible pixels, and that if it stood alone."""
    seen, alone = _outlines(scene, size)
    return [(int((seen == index).sum()), int(own.sum())) for index, own in enumerate(alone)]


def _outlines(scene: Scene, size: tuple[int, int]) -> tuple[Indices, list[Mask]]:
    """Object shown by each pixel (-1: none), and the pixels that each object would cover alone."""
    width, height = size
    eye = np.array(scene.camera)
    rays = camera_rays(eye, width, height)
    solids = [_solid(item) for item in scene.items]
    seen = trace(solids, np.broadcast_to(eye, rays.shape), rays).solid
    alone = [outline(solid, eye, rays).reshape(height, width) for solid in solids]
    return seen.reshape(height, width), alone


def _solid(item: Item) -> Solid:
    red, green, blue = (float((level / 255) ** _GAMMA) for level in COLOURS[item.colour])
    return Solid(
        shape=item.shape,
        x=item.x,
        y=item.y,
        radius=item.radius,
        turn=item.turn,
        colour=(red, green, blue),
        metal=item.material == "metal",
    )


def _triple(point: Array) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in point)
    return x, y, z


def _place(
    rng: np.random.Generator, count: int, palette: Palette, sizes: Sequence[str]
) -> tuple[Item, ...] | None:
    """Place objects with distance on the floor; None where one found no room."""
    placed: list[Item] = []
    while len(placed) < count:
        for _ in range(_PLACINGS):
            item = _draw_item(rng, palette, sizes)
            if all(_apart(item, other) for other in placed):
                placed.append(item)
                break
        else:
            return None
    return tuple(placed)


def _draw_item(rng: np.random.Generator, palette: Palette, sizes: Sequence[str]) -> Item:
    shape = str(rng.choice(SHAPES))
    return Item(
        shape=shape,
        colour=str(rng.choice(colours_of(shape, palette))),
        size=str(rng.choice(list(sizes))),
        material=str(rng.choice(MATERIALS)),
        x=float(rng.uniform(-_REACH, _REACH)),
        y=float(rng.uniform(-_REACH, _REACH)),
        turn=float(rng.uniform(0, 2 * math.pi)),
    )


def _apart(item: Item, other: Item) -> bool:
    room = SIZES[item.size] + SIZES[other.size] + _GAP
    return math.hypot(item.x - other.x, item.y - other.y) >= room


def _all_seen(scene: Scene) -> bool:
    """Whether every object stands within the image and enough of it can be seen."""
    seen, alone = _outlines(scene, _LOOK)
    least = _SEEN_PIXELS * _LOOK[0] * _LOOK[1]
    for index, own in enumerate(alone):
        shown = int((seen == index).sum())
        inside = int(own[_RIM:-_RIM, _RIM:-_RIM].sum())
        if inside < own.sum() or shown < max(least, _SEEN_SHARE * inside):
            return False
    return True
