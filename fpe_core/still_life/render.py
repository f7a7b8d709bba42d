"""Draws a scene. Outlines are signed distance functions: every edge is smooth at any size.

Distances are in units of the object's radius: negative inside, positive outside, y downwards.
Outline formulas: Inigo Quilez, "2D distance functions".
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from fpe_core.still_life.scene import Scene

Plane = NDArray[Any]  # float32 or float64, as numpy promotes

_OBJECT_RGB = {
    "red": (214, 32, 38),
    "orange": (245, 130, 24),
    "yellow": (246, 216, 36),
    "green": (42, 160, 60),
    "cyan": (50, 205, 220),
    "blue": (36, 76, 210),
    "purple": (112, 40, 165),
    "magenta": (236, 48, 160),
}
_BACKGROUND_RGB = {
    "white": (238, 238, 236),
    "grey": (140, 142, 146),
    "black": (44, 44, 48),
    "pink": (242, 190, 200),
    "tan": (206, 178, 138),
    "teal": (38, 98, 102),
}

_SQRT3 = math.sqrt(3.0)
_BEVEL = 0.30  # width of the rounded rim of a flat shape
_STRIPE_PERIOD = 0.56
_DOT_SPACING, _DOT_RADIUS = 0.52, 0.165
_PALE = 0.72  # how much white the second tone of a pattern holds

# A sketch: coloured pencil on paper. Its strokes repeat with the image's sixteenths.
_PAPER_RGB = np.array((250, 247, 240), np.float32) / 255.0
_GRAPHITE_RGB = np.array((58, 56, 60), np.float32) / 255.0
_STROKES_ACROSS = 16
_OUTLINE_WIDTH = 0.018  # of the image's side


def render(scene: Scene, size_px: int = 128) -> Image.Image:
    """The image of a scene: RGB, 8 bits, `size_px` squared."""
    frame = _frame(scene, size_px)
    background = _background(scene, frame)
    surface = _surface(scene, frame)
    cover = _coverage(frame)[..., None]
    rgb = background + (surface - background) * cover
    return Image.fromarray((np.clip(rgb, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8))


def render_ground(scene: Scene, size_px: int = 128) -> Plane:
    """The scene without its object, but with the object's shadow: (H, W, 3), 0..1, not rounded."""
    return np.clip(_background(scene, _frame(scene, size_px)), 0.0, 1.0)


def object_mask(scene: Scene, size_px: int = 128) -> NDArray[np.bool_]:
    """Where the object, without its shadow, covers any part of a pixel: bool, (H, W)."""
    return _coverage(_frame(scene, size_px)) > 0.0


@dataclasses.dataclass(frozen=True)
class _Frame:
    """Pixel centres, in image fractions (x, y) and in the object's own turned frame (u, v)."""

    x: Plane  # (1, W)
    y: Plane  # (H, 1)
    u: Plane  # (H, W)
    v: Plane  # (H, W)
    distance: Plane  # (H, W), radii
    radius_px: float


def _frame(scene: Scene, size_px: int) -> _Frame:
    centres = ((np.arange(size_px) + 0.5) / size_px).astype(np.float32)
    x, y = centres[None, :], centres[:, None]
    dx, dy = (x - scene.centre_x) / scene.radius, (y - scene.centre_y) / scene.radius
    cos, sin = (f(math.radians(scene.angle_deg)) for f in (math.cos, math.sin))
    u = (dx * cos + dy * sin).astype(np.float32)
    v = (dy * cos - dx * sin).astype(np.float32)
    distance = _OUTLINES[scene.shape](u, v).astype(np.float32)
    return _Frame(x, y, u, v, distance, scene.radius * size_px)


def _coverage(frame: _Frame) -> Plane:
    """The part of each pixel inside the outline, 0 to 1."""
    return np.clip(0.5 - frame.distance * frame.radius_px, 0.0, 1.0)


# --- outlines -------------------------------------------------------------------------------------


def _ball(u: Plane, v: Plane) -> Plane:
    return np.hypot(u, v) - np.float32(0.92)


def _ring(u: Plane, v: Plane) -> Plane:
    return np.abs(np.hypot(u, v) - np.float32(0.67)) - np.float32(0.29)


def _cross(u: Plane, v: Plane) -> Plane:
    def box(half_u: float, half_v: float) -> Plane:
        du, dv = np.abs(u) - half_u, np.abs(v) - half_v
        outside = np.hypot(np.maximum(du, 0.0), np.maximum(dv, 0.0))
        return outside + np.minimum(np.maximum(du, dv), 0.0)

    return np.minimum(box(0.95, 0.34), box(0.34, 0.95))


def _star(u: Plane, v: Plane) -> Plane:
    sector = math.pi / 5
    rho, phi = np.hypot(u, v), np.arctan2(u, -v)  # phi = 0 points up
    folded = np.abs(np.mod(phi + sector, 2 * sector) - sector)
    p, q = rho * np.cos(folded), rho * np.sin(folded)
    tip, notch = 1.02, 0.52
    edge_p, edge_q = notch * math.cos(sector) - tip, notch * math.sin(sector)
    along = ((p - tip) * edge_p + q * edge_q) / (edge_p**2 + edge_q**2)
    along = np.clip(along, 0.0, 1.0)
    outside = (p - tip) * edge_q - q * edge_p < 0
    away = np.hypot(p - tip - along * edge_p, q - along * edge_q)
    return np.where(outside, -away, away) - np.float32(0.04)


def _heart(u: Plane, v: Plane) -> Plane:
    scale = 0.62
    p, q = np.abs(u) * scale, 0.56 - v * scale
    lobe = np.hypot(p - 0.25, q - 0.75) - math.sqrt(2.0) / 4
    middle = np.maximum(p + q, 0.0) / 2
    near = np.minimum(p**2 + (q - 1.0) ** 2, (p - middle) ** 2 + (q - middle) ** 2)
    tip = np.sqrt(near) * np.sign(p - q)
    return np.where(p + q > 1.0, lobe, tip) / np.float32(scale)


def _cube(u: Plane, v: Plane) -> Plane:
    a, b = np.abs(u), np.abs(v)
    return np.maximum(a, a / 2 + b * (_SQRT3 / 2)) - np.float32(0.86)


_OUTLINES = {
    "ball": _ball,
    "cube": _cube,
    "heart": _heart,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
}


# --- surfaces -------------------------------------------------------------------------------------


def _background(scene: Scene, frame: _Frame) -> Plane:
    """Wall, ground and, except in a poster, the object's shadow: (H, W, 3)."""
    base = np.array(_BACKGROUND_RGB[scene.background], np.float32) / 255.0
    size_px = frame.y.shape[0]
    ground = np.clip((frame.y - scene.horizon) * size_px + 0.5, 0.0, 1.0) + np.zeros_like(frame.x)
    if scene.style == "sketch":
        strokes = _strokes(frame) * ground
        filled = _mix(_PAPER_RGB, base, 0.62 + 0.30 * strokes)
        return _mix(filled, _GRAPHITE_RGB, 0.55 * _strokes(frame) * _shadow(scene, frame))
    tone = 1.0 - 0.20 * ground
    if scene.style == "photo":
        side = (frame.x - 0.5) * scene.light
        tone = tone * (1.0 + 0.22 * side - 0.12 * (frame.y - 0.5) * (1.0 - 2.0 * ground))
        tone = tone * (1.0 - 0.55 * _shadow(scene, frame))
    tinted: Plane = tone[..., None] * base
    return tinted


def _surface(scene: Scene, frame: _Frame) -> Plane:
    """The object's colour wherever it may be seen: (H, W, 3)."""
    colour = np.array(_OBJECT_RGB[scene.colour], np.float32) / 255.0
    pale = colour + (1.0 - colour) * _PALE
    rgb = _mix(colour, pale, _pattern(scene, frame))
    if scene.style == "sketch":
        return _pencilled(scene, frame, rgb)
    if scene.shape == "cube":
        return rgb * _cube_tone(scene, frame)[..., None]
    if scene.style == "photo":
        diffuse, highlight = _light_on(scene, frame)
        rgb = rgb * (0.42 + 0.66 * diffuse)[..., None]
        rgb = rgb + (1.0 - rgb) * (0.45 * highlight)[..., None]
    return rgb


def _pencilled(scene: Scene, frame: _Frame, rgb: Plane) -> Plane:
    """The object in coloured pencil, hatched where it is dark, with a line around it."""
    if scene.shape == "cube":
        dark = 2.2 * (1.05 - _cube_tone(scene, frame))
    else:
        dark = 1.0 - _light_on(scene, frame)[0]
    strokes = _strokes(frame)
    filled = _mix(_PAPER_RGB, rgb, 0.78 + 0.22 * strokes)
    hatched = _mix(filled, _GRAPHITE_RGB, 0.50 * np.clip(dark, 0.0, 1.0) * strokes)
    size_px = frame.y.shape[0]
    inner = -frame.distance * frame.radius_px - _OUTLINE_WIDTH * size_px
    return _mix(hatched, _GRAPHITE_RGB, 0.85 * np.clip(0.5 - inner, 0.0, 1.0))


def _strokes(frame: _Frame) -> Plane:
    """Slanted pencil strokes, (H, W), 0 between two and 1 on one."""
    wave = np.sin((frame.x + frame.y) * np.float32(2 * math.pi * _STROKES_ACROSS))
    return 0.5 + 0.5 * wave


def _shadow(scene: Scene, frame: _Frame) -> Plane:
    """How deep the object's soft shadow on the ground is, (H, W), 0 to 1."""
    across = (frame.x - scene.centre_x + 0.35 * scene.light * scene.radius) / scene.radius
    down = (frame.y - scene.centre_y - 0.98 * scene.radius) / (0.30 * scene.radius)
    return np.exp(-1.2 * (across**2 + down**2))


def _mix(first: Plane, second: Plane, share: Plane) -> Plane:
    """First colour to second, (H, W, 3), by the second's share, (H, W)."""
    mixed: Plane = first + (second - first) * share[..., None]
    return mixed


def _light_on(scene: Scene, frame: _Frame) -> tuple[Plane, Plane]:
    """Diffuse and mirrored light of a rounded surface, each (H, W) and 0 to 1."""
    if scene.shape == "ball":
        x = (frame.x - scene.centre_x) / (0.92 * scene.radius)
        y = (frame.y - scene.centre_y) / (0.92 * scene.radius)
        x, y = x + np.zeros_like(y), y + np.zeros_like(x)
    else:
        slope = np.clip(1.0 + frame.distance / _BEVEL, 0.0, 1.0) * 0.9
        dy, dx = np.gradient(frame.distance, np.float32(1.0 / frame.radius_px))
        x, y = dx * slope, dy * slope
    z = np.sqrt(np.maximum(1.0 - x * x - y * y, 0.0))
    towards = np.array([0.62 * scene.light, -0.55, 0.75])
    towards /= np.linalg.norm(towards)
    half = towards + np.array([0.0, 0.0, 1.0])
    half /= np.linalg.norm(half)
    diffuse = np.clip(x * towards[0] + y * towards[1] + z * towards[2], 0.0, 1.0)
    mirrored = np.clip(x * half[0] + y * half[1] + z * half[2], 0.0, 1.0) ** 40
    return diffuse, mirrored


def _cube_faces(frame: _Frame) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which pixels lie on the top face, and which on the right one; the rest lie on the left."""
    top = frame.v < -np.abs(frame.u) / _SQRT3
    return top, ~top & (frame.u >= 0.0)


def _cube_tone(scene: Scene, frame: _Frame) -> Plane:
    """Brightness of the three faces; light from the right makes the right face the brighter one."""
    top, right = _cube_faces(frame)
    turn = 0.10 if scene.style == "poster" else 0.16 * scene.light
    return np.where(top, 1.05, np.where(right, 0.76 + turn, 0.76 - turn)).astype(np.float32)


def _pattern(scene: Scene, frame: _Frame) -> Plane:
    """How much of the pale second tone each pixel holds: (H, W), 0 to 1."""
    if scene.material == "plain":
        return np.zeros_like(frame.u)
    across, along = _surface_coordinates(scene, frame)
    if scene.material == "striped":
        period_px = _STRIPE_PERIOD * frame.radius_px
        wave = np.sin(across * (2 * math.pi / _STRIPE_PERIOD))
        return np.clip(0.5 + wave * (period_px / (2 * math.pi)), 0.0, 1.0)
    row = np.floor(along / _DOT_SPACING)
    across = across + 0.5 * _DOT_SPACING * np.mod(row, 2.0)
    du = np.mod(across, _DOT_SPACING) - _DOT_SPACING / 2
    dv = along - (row + 0.5) * _DOT_SPACING
    return np.clip(0.5 - (np.hypot(du, dv) - _DOT_RADIUS) * frame.radius_px, 0.0, 1.0)


def _surface_coordinates(scene: Scene, frame: _Frame) -> tuple[Plane, Plane]:
    """Coordinates that lie on the object: bent over a ball, laid on each face of a cube."""
    u, v = frame.u, frame.v
    if scene.shape == "ball":
        bend = 1.0 + 0.3 * np.minimum(u * u + v * v, 1.0)
        return u * bend, v * bend
    if scene.shape == "cube":
        top, right = _cube_faces(frame)
        sideways = u * (2 / _SQRT3)
        across = np.where(top, sideways / 2 - v, sideways)
        along = np.where(top, -sideways / 2 - v, np.where(right, v + u / _SQRT3, v - u / _SQRT3))
        return across, along
    return u, v


def as_pixels(images: NDArray[np.uint8]) -> torch.Tensor:
    """(B, H, W, 3) bytes to (B, 3, H, W) float32 in -1..1."""
    pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float()
    return (pixels / 127.5 - 1.0).contiguous()
