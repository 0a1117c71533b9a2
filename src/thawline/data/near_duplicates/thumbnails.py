"""Compare small gray pictures, and find what each has beside a background that all share."""

from __future__ import annotations

import numpy as np
from PIL import Image

SMOOTH = Image.Resampling.BICUBIC
FINE_SIDE = 128  # px; in float16, 33 kB per picture and 25 kB per residual
SIDE = 32  # px, of the gray pictures that are compared; smaller ones stay as they are
# Pixels of a pair must correlate so much. Of 1.6 million pairs of different 8 px digits five do;
# no pair of 397 photographs does by more than 0.82, and copies of photographs do by 0.998.
MIN_CORRELATION = 0.985
BLOCK = 256  # images that are compared with all others at once
MARGIN = 8  # px that pictures may be shifted by against each other, and that are cut off for it
TAPER = 4  # px of the margin in which pictures fade out
MAX_FREQUENCY = 0.35  # cycles per px that residuals keep, of the 0.5 that pixels can show
KERNEL_RADIUS = 3  # px that the background of one image may be shifted or blurred by besides
PATCH = 8  # px; each patch of a residual has the same weight, however strong a defect is


def standardize(
    picture: Image.Image,
    size: tuple[int, int] = (SIDE, SIDE),
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Return pixels (height, width) float32 of mean 0 and norm 1; all 0 of a blank picture."""
    pixels = np.asarray(picture.resize(size, resampling), np.float32)
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1.0)


def find_residuals(pictures: np.ndarray) -> np.ndarray:
    """Return what each picture has besides the common background: (M, P) float16 of norm 1.

    The background is the mean of the pictures after registration. What a kernel of
    `KERNEL_RADIUS`, a gradient of light or a curve of brightness makes of it is projected out.
    """
    shifts = np.zeros((len(pictures), 2), np.float32)
    background = pictures[0].astype(np.float32)
    for _ in range(2):  # the second time against a mean with little noise
        parts = []
        total = np.zeros((FINE_SIDE, FINE_SIDE), np.float64)
        for start in range(0, len(pictures), BLOCK):
            block = pictures[start : start + BLOCK].astype(np.float32)
            parts.append(_shifts(block, background))
            total += _shifted(block, parts[-1]).sum(axis=0)
        shifts, background = np.concatenate(parts), (total / len(pictures)).astype(np.float32)
    basis = _background_basis(background)
    residuals = np.empty((len(pictures), basis.shape[1]), np.float16)
    for start in range(0, len(pictures), BLOCK):
        block = pictures[start : start + BLOCK].astype(np.float32)
        block = _without_margin(_shifted(block, shifts[start : start + BLOCK]))
        block -= (block @ basis.T) @ basis
        residuals[start : start + BLOCK] = _equalize_patches(block)
    return residuals


def _shifts(pictures: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return by how many px (M, 2), at most `MARGIN`, pictures are shifted from the background.

    It is the peak of the cross-correlation, and between pixels that of a parabola.
    """
    spectrum = np.fft.rfft2(pictures) * np.fft.rfft2(background).conj()
    window = np.arange(-MARGIN, MARGIN + 1)
    values = np.fft.irfft2(spectrum, s=background.shape)[:, window][:, :, window]
    peak = values.reshape(len(values), -1).argmax(axis=1)
    row, column = (place.clip(1, 2 * MARGIN - 1) for place in np.divmod(peak, len(window)))
    everyone = np.arange(len(values))
    rows = [values[everyone, row + step, column] for step in (-1, 0, 1)]
    columns = [values[everyone, row, column + step] for step in (-1, 0, 1)]
    found = [row + _vertex(*rows), column + _vertex(*columns)]
    return (np.stack(found, axis=1) - MARGIN).astype(np.float32)


def _vertex(before: np.ndarray, here: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Return where the parabola through three neighboring values has its vertex, -0.5 to 0.5."""
    bend = np.minimum(before - 2 * here + after, -1e-6)
    return ((before - after) / (2 * bend)).clip(-0.5, 0.5)


def _shifted(pictures: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Return pictures moved back by their shifts and without their highest frequencies.

    Moving them in Fourier space blurs no noise. Close to the Nyquist frequency, pictures of one
    scene differ by aliasing with their shift, and JPEG keeps the least.
    """
    rows = np.fft.fftfreq(FINE_SIDE)[:, None]
    columns = np.fft.rfftfreq(FINE_SIDE)
    low_pass = 1 / (1 + (np.hypot(rows, columns) / MAX_FREQUENCY) ** 8)
    ramp = np.ones(FINE_SIDE)  # to zero at the borders, where the spectrum wraps around
    ramp[:TAPER] = np.sin(np.pi / 2 * (np.arange(TAPER) + 0.5) / TAPER) ** 2
    ramp[-TAPER:] = ramp[:TAPER][::-1]
    turn_rows = np.exp(2j * np.pi * rows * shifts[:, 0, None, None])
    turn_columns = np.exp(2j * np.pi * columns * shifts[:, 1, None, None])
    spectrum = np.fft.rfft2(pictures * np.outer(ramp, ramp).astype(np.float32))
    spectrum *= low_pass.astype(np.float32)
    spectrum *= turn_rows.astype(np.complex64)
    spectrum *= turn_columns.astype(np.complex64)
    moved = np.fft.irfft2(spectrum, s=pictures.shape[1:])
    return moved.astype(np.float32)


def _background_basis(background: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (B, P) of all that the background may look like in one image."""
    steps = range(-KERNEL_RADIUS, KERNEL_RADIUS + 1)
    moved = np.stack([np.roll(background, (y, x), (0, 1)) for y in steps for x in steps])
    center = _without_margin(background[None])[0]
    side = FINE_SIDE - 2 * MARGIN
    y, x = (axis.ravel() for axis in np.mgrid[-1 : 1 : side * 1j, -1 : 1 : side * 1j])
    light = np.stack([np.ones(side**2), x, y, center * x, center * y, center**2, center**3])
    vectors = np.concatenate([_without_margin(moved), light.astype(np.float32)])
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    weights, combinations = np.linalg.eigh((vectors @ vectors.T).astype(np.float64))
    large = weights > 1e-6 * weights[-1]
    return ((combinations[:, large] / np.sqrt(weights[large])).T @ vectors).astype(np.float32)


def _without_margin(pictures: np.ndarray) -> np.ndarray:
    """Return the pixels (M, P) of pictures but for their margins."""
    return pictures[:, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(len(pictures), -1)


def _equalize_patches(residuals: np.ndarray) -> np.ndarray:
    """Return residuals (M, P) of norm 1, each patch of mean 0 and of equal norm."""
    count = (FINE_SIDE - 2 * MARGIN) // PATCH
    patches = residuals.reshape(-1, count, PATCH, count, PATCH)
    patches = patches - patches.mean(axis=(2, 4), keepdims=True)
    norm = np.sqrt((patches**2).sum(axis=(2, 4), keepdims=True))
    equal = (patches / np.maximum(norm, 1e-3)).reshape(len(residuals), -1)
    return equal / np.maximum(np.linalg.norm(equal, axis=1, keepdims=True), 1e-3)
