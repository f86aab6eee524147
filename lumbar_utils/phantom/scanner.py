"""Measuring a body: slices through it, the coil, the noise, and the way from k-space to the stored image.

A slice is rendered on the grid that is truly measured and brought to the image's matrix by filling k-space with
zeros, as scanners do. That gives the right resolution, the right correlation of the noise and mild ringing at
sharp edges, and costs a fraction of rendering at full size.
"""

from __future__ import annotations

import numpy as np
from scipy import fft

from ..geometry import StackGeometry
from .anatomy import Body
from .protocol import Block, Protocol
from .surroundings import smooth_fields
from .tissue import Canvas

LATTICE_MM = 5.0  # distance of the points at which smooth fields are worked out; they bend over tens of mm
_MAX = 16383


def acquire(body: Body, protocol: Protocol, rng: np.random.Generator) -> list[tuple[StackGeometry, np.ndarray]]:
    """Scan a body: for each block its geometry, and uint16 pixels (n, rows, columns), slices ascending along the
    normal. `rng` is for the noise only."""
    return [_acquire_block(body, protocol, block, rng) for block in protocol.blocks]


def _acquire_block(
    body: Body, protocol: Protocol, block: Block, rng: np.random.Generator
) -> tuple[StackGeometry, np.ndarray]:
    rows, columns = protocol.reconstruction_matrix
    spacing = (protocol.fov_mm[0] / rows, protocol.fov_mm[1] / columns)
    normal = block.normal
    right, down = (columns - 1) / 2 * spacing[1] * block.row_cosine, (rows - 1) / 2 * spacing[0] * block.column_cosine
    positions = block.center - right - down + block.offsets[:, None] * normal
    geometry = StackGeometry(positions, block.row_cosine, block.column_cosine, spacing, (rows, columns))
    lattice = _Lattice(protocol, block)
    weights = kspace_weights(protocol.acquisition_matrix, apodised=protocol.apodised, blur=protocol.blur)
    pixels = np.empty((block.n_slices, rows, columns), dtype=np.uint16)
    reference = float(np.sort(protocol.signal)[-4])
    for k, position in enumerate(positions):
        measured = _measure(body, protocol, lattice, position, normal)
        measured = fold_over(measured, protocol.fold, protocol.phase_axis)
        measured = add_ghosts(measured, protocol.ghost, protocol.phase_axis, protocol.ghost_shift)
        noise = rng.standard_normal((2, *measured.shape), dtype=np.float32) * np.float32(protocol.noise * reference)
        image = _reconstruct(measured + noise[0] + 1j * noise[1], weights, (rows, columns))
        blank_border(image, protocol.border)
        np.clip(image * np.float32(protocol.gain), 0, _MAX, out=image)
        pixels[k] = np.rint(image)
    return geometry, pixels


class _Lattice:
    """Coarse points of a plane and the matrices that spread values from them to the measured grid."""

    def __init__(self, protocol: Protocol, block: Block):
        self.steps = [f / n for f, n in zip(protocol.fov_mm, protocol.acquisition_matrix, strict=True)]
        spread, coarse = [], []
        for n, step in zip(protocol.acquisition_matrix, self.steps, strict=True):
            cells = max(2, int(np.ceil((n - 1) * step / LATTICE_MM)))
            position = np.arange(n) / (n - 1) * cells
            distance = np.abs(position[:, None] - np.arange(cells + 1))
            spread.append(np.maximum(1 - distance, 0).astype(np.float32))
            coarse.append(np.linspace(0, n - 1, cells + 1) * step)
        self.down, self.across = spread[0], np.ascontiguousarray(spread[1].T)
        self.points = coarse[0][:, None, None] * block.column_cosine + coarse[1][None, :, None] * block.row_cosine
        self.softness = max(0.7, float(np.mean(self.steps)))

    def spread(self, values: np.ndarray) -> np.ndarray:
        """Coarse float32 values (..., h, w) to the measured grid (..., H, W), bilinear."""
        lines = values.reshape(-1, values.shape[-1]) @ self.across
        return self.down @ lines.reshape(*values.shape[:-1], -1)


def _measure(body: Body, protocol: Protocol, lattice: _Lattice, position: np.ndarray, normal: np.ndarray) -> np.ndarray:
    """One slice without noise on the measured grid, float32."""
    n = protocol.subslices
    depths = ((np.arange(n) + 0.5) / n - 0.5) * protocol.thickness_mm
    points = position + lattice.points + depths[:, None, None, None] * normal
    coarse = smooth_fields(body, body.to_own(points).astype(np.float32))
    fields = dict(zip(coarse, lattice.spread(np.stack(list(coarse.values()), dtype=np.float32)), strict=True))
    canvas = Canvas(fields["x"].shape, protocol.signal, lattice.softness, grain=protocol.grain)
    body.paint(fields, canvas)
    image = canvas.value.mean(axis=0)
    for place, radius in protocol.metal:
        own = body.to_own(place).astype(np.float32)
        distance = np.sqrt(sum((fields[name].mean(axis=0) - at) ** 2 for name, at in zip("xyz", own, strict=True)))
        image = add_void(distance, radius, image, float(protocol.signal.max()))
    image *= lattice.spread(_sensitivity(protocol, points.mean(axis=0), coarse["v"].mean(axis=0)))
    return image


def _sensitivity(protocol: Protocol, points: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Coil sensitivity times bias times saturation band at points (..., 3); about 1 at the spine."""
    offset = points - protocol.coil_centre
    depth = np.maximum(-offset[..., 1] + 20, 0)
    gain = np.ones(points.shape[:-1])
    if np.isfinite(protocol.coil_depth_mm):
        aside = np.hypot(offset[..., 0] * 0.6, np.maximum(np.abs(offset[..., 2]) - protocol.coil_length_mm / 2 + 40, 0))
        distance = np.hypot(depth, aside) / protocol.coil_depth_mm
        at_spine = 85 / protocol.coil_depth_mm
        gain = (1 + at_spine**2) / (1 + distance**2)
    x = offset / 100
    bias = np.concatenate([x, x**2 - 0.5], axis=-1) @ protocol.bias
    gain = gain * np.exp(np.clip(bias, -2.5, 1.5))
    if np.isfinite(protocol.saturation_mm):
        damping = 1 + np.exp(-(v + 36 + protocol.saturation_mm) / 4)
        gain = gain * (protocol.saturation_floor + (1 - protocol.saturation_floor) / damping)
    return gain.astype(np.float32)


def _reconstruct(measured: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Magnitude image of `shape` from a complex measured image, by zero-filling."""
    k = fft.fft2(measured.astype(np.complex64)) * weights
    full = np.zeros(shape, dtype=np.complex64)
    # Frequencies are indices: negative ones count from the end.
    frequencies = (np.rint(fft.fftfreq(n, 1 / n)).astype(int) for n in k.shape)
    full[np.ix_(*frequencies)] = k * np.float32(full.size / k.size)
    return np.abs(fft.ifft2(full, overwrite_x=True))


def add_ghosts(image: np.ndarray, strength: float, axis: int, shift: float) -> np.ndarray:
    """Ghosts of what pulsates or breathes: copies shifted by a share of the image along the phase encoding."""
    cells = max(1, int(image.shape[axis] * shift))
    return image + np.float32(strength) * (np.roll(image, cells, axis=axis) + np.roll(image, -cells, axis=axis))


def fold_over(image: np.ndarray, share: float, axis: int) -> np.ndarray:
    """Anatomy from outside the field of view on the opposite edge; what lies outside is taken as the edge's mirror."""
    cells = int(image.shape[axis] * share)
    if cells == 0:
        return image
    folded = image.copy()
    target, source = np.moveaxis(folded, axis, 0), np.moveaxis(image, axis, 0)
    target[:cells] += source[-cells:][::-1]
    target[-cells:] += source[:cells][::-1]
    return folded


def add_void(distance: np.ndarray, radius: float, image: np.ndarray, bright: float) -> np.ndarray:
    """A susceptibility void with the bright rim of displaced signal; `distance` in mm from the metal."""
    inside = np.clip((radius - distance) / 2 + 0.5, 0, 1)
    rim = np.exp(-0.5 * ((distance - radius - 1.5) / 1.2) ** 2)
    return (image * (1 - inside) + np.float32(0.8 * bright) * rim * (1 - inside)).astype(np.float32)


def kspace_weights(shape: tuple[int, int], *, apodised: bool = True, blur: float = 0.0) -> np.ndarray:
    """Weights of k-space: mild apodisation, as reconstructions apply it against ringing; `blur` 0..1 loses detail."""
    edge = 0.65 if apodised else 1.0
    y, x = (np.abs(fft.fftfreq(n)) * 2 for n in shape)
    ramp = [np.where(r > edge, 0.5 + 0.5 * np.cos(np.pi * (r - edge) / 0.35 * 0.85), 1.0) for r in (y, x)]
    if blur:
        ramp = [r * np.exp(-4 * blur * f**2) for r, f in zip(ramp, (y, x), strict=True)]
    return (ramp[0][:, None] * ramp[1][None]).astype(np.float32)


def blank_border(image: np.ndarray, border: tuple[float, float, float, float]) -> None:
    """Set the shares above, below, left and right to zero, in place."""
    rows, columns = image.shape
    top, bottom, left, right = (int(s * n) for s, n in zip(border, (rows, rows, columns, columns), strict=True))
    image[:top], image[rows - bottom :] = 0, 0
    image[:, :left], image[:, columns - right :] = 0, 0
