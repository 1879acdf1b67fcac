"""Renders the view of a camera opposite the robot: table, cubes and arm, in plain perspective."""

from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from workloads.vla.reach import arm
from workloads.vla.reach.scene import COLOURS, CUBE, Scene

SIZE = 96  # pixels, square
_FINE = 2  # drawn larger by this, then averaged, so that edges are smooth
_EYE = np.array([0.72, 0.0, 0.78])
_LOOKED_AT = np.array([0.23, 0.0, 0.06])
_ZOOM = 2.75  # image half-widths that a slope of 1 covers
_TABLE, _WALL = (128, 128, 128), (100, 104, 110)
_LINK, _HAND, _TIP = (70, 70, 75), (35, 35, 40), (255, 255, 255)
_LINK_WIDTH, _HAND_WIDTH, _TIP_SIZE = 0.045, 0.028, 0.016
_LIT, _FIELD = (250, 220, 60), 0.17  # a field on the table around a cube, and its edge in m
_SHADES = (1.0, 0.8, 0.62)  # upper face, face towards the camera, faces aside


class SceneCamera:
    """Images of one scene; its static part is drawn once. lit: the number of a cube that stands
    in a bright field."""

    def __init__(self, scene: Scene, size: int = SIZE, lit: int | None = None) -> None:
        self.size = size
        self._still = _still(scene, size * _FINE, lit)

    def image(self, joints: np.ndarray) -> np.ndarray:
        """uint8 [size, size, 3], RGB, with the arm at `joints` [8] in rad."""
        return self.images(joints[None])[0]

    def images(self, joints: np.ndarray) -> list[np.ndarray]:
        """T images of the arm at `joints` [T, 8]."""
        base = np.zeros((len(joints), 1, 3))
        chains = np.concatenate([base, arm.points(joints)], axis=1)
        found = []
        for pixels, scale in zip(*project(chains, self._still.width), strict=True):
            canvas = self._still.copy()
            _draw_arm(ImageDraw.Draw(canvas), pixels, scale)
            found.append(np.asarray(canvas.reduce(_FINE)))
        return found


def project(places: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Points [..., 3] in m → pixels [..., 2] (right, down) and pixels a metre there [...]."""
    seen = (np.asarray(places, np.float64) - _EYE) @ _axes()
    scale = _ZOOM * size / 2 / seen[..., 2]
    return seen[..., :2] * scale[..., None] + size / 2, scale


@cache
def _axes() -> np.ndarray:
    """The camera's right, down and forward as columns, [3, 3]."""
    forward = (_LOOKED_AT - _EYE) / np.linalg.norm(_LOOKED_AT - _EYE)
    right = np.cross(forward, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(forward, right), forward], axis=1)


def _still(scene: Scene, size: int, lit: int | None) -> Image.Image:
    canvas = Image.new("RGB", (size, size), _WALL)
    pen = ImageDraw.Draw(canvas)
    corners = [(-0.1, -0.6, 0), (-0.1, 0.6, 0), (0.6, 0.6, 0), (0.6, -0.6, 0)]
    _polygon(pen, np.array(corners), _TABLE, size)
    if lit is not None:
        (x, y), half = scene.places[lit], _FIELD / 2
        field = [(x - half, y - half, 0), (x - half, y + half, 0)]
        field += [(x + half, y + half, 0), (x + half, y - half, 0)]
        _polygon(pen, np.array(field), _LIT, size)
    # The farthest from the camera first: a nearer cube may hide part of it.
    for number in np.argsort(scene.places[:, 0]):
        _draw_cube(pen, scene.places[number], COLOURS[scene.colours[number]], size)
    return canvas


def _draw_cube(
    pen: ImageDraw.ImageDraw, place: np.ndarray, colour: tuple[int, int, int], size: int
) -> None:
    half = CUBE / 2
    x, y = float(place[0]), float(place[1])
    left, right, back, front = y - half, y + half, x - half, x + half
    aside = left if y > 0 else right
    top = [(back, left, CUBE), (back, right, CUBE), (front, right, CUBE), (front, left, CUBE)]
    face = [(front, left, 0), (front, right, 0), (front, right, CUBE), (front, left, CUBE)]
    side = [(back, aside, 0), (front, aside, 0), (front, aside, CUBE), (back, aside, CUBE)]
    for corners, shade in zip((side, face, top), reversed(_SHADES), strict=True):
        red, green, blue = (int(value * shade) for value in colour)
        _polygon(pen, np.array(corners), (red, green, blue), size)


def _draw_arm(pen: ImageDraw.ImageDraw, pixels: np.ndarray, scale: np.ndarray) -> None:
    """pixels [5, 2] and scale [5]: base, shoulder, elbow, wrist and fingertip in the image."""
    for at in range(len(pixels) - 1):
        is_hand = at == len(pixels) - 2
        width = (_HAND_WIDTH if is_hand else _LINK_WIDTH) * scale[at]
        line = [tuple(pixels[at]), tuple(pixels[at + 1])]
        pen.line(line, fill=_HAND if is_hand else _LINK, width=max(1, round(width)))
    (x, y), radius = pixels[-1], _TIP_SIZE * scale[-1]
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_TIP)


def _polygon(
    pen: ImageDraw.ImageDraw, corners: np.ndarray, colour: tuple[int, int, int], size: int
) -> None:
    pen.polygon([tuple(pixel) for pixel in project(corners, size)[0]], fill=colour)
