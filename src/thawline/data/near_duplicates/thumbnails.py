"""Standardize small gray images, and subtract the background that several have in common."""

import numpy as np
from PIL import Image

SMOOTH = Image.Resampling.BICUBIC
FINE_SIDE = 128  # px; in float16, 33 kB per picture and 25 kB per residual
SIDE = 32  # px, of the coarse comparison; smaller images are not enlarged
# Smallest correlation of the pixels of a pair that looks alike. Five of 1.6 million pairs of 8 px
# digits exceed it. Pairs of 397 photographs reach 0.82, and copies of photographs 0.998.
MIN_CORRELATION = 0.985
BLOCK = 256  # images that are compared with all others at the same time
MARGIN = 8  # px, the largest shift between images; cut off after registration
TAPER = 4  # px of the margin in which images fade to zero
MAX_FREQUENCY = 0.35  # cycles per px, of residuals; pixels can show 0.5
KERNEL_RADIUS = 3  # px, the largest further shift or blur of the background
PATCH = 8  # px; all patches of a residual have the same weight, whatever defect they show


def standardize(
    picture: Image.Image,
    size: tuple[int, int] = (SIDE, SIDE),
    resampling: Image.Resampling = Image.Resampling.BILINEAR,
) -> np.ndarray:
    """Return pixels (height, width) float32 of mean 0 and norm 1, or zeros for a blank image."""
    pixels = np.asarray(picture.resize(size, resampling), np.float32)
    pixels = pixels - pixels.mean()
    return pixels / max(float(np.linalg.norm(pixels)), 1.0)


def find_residuals(pictures: np.ndarray) -> np.ndarray:
    """Subtract the common background from each image, and return residuals (M, P) float16, norm 1.

    The background is the mean of the registered images. Everything that a kernel of
    `KERNEL_RADIUS`, a light gradient or a brightness curve can make of it is projected out.
    """
    blocks = [slice(start, start + BLOCK) for start in range(0, len(pictures), BLOCK)]
    shifts = np.zeros((len(pictures), 2), np.float32)
    background = pictures[0].astype(np.float32)
    for _ in range(2):  # then against a mean with less noise
        total = np.zeros((FINE_SIDE, FINE_SIDE), np.float64)
        for block in blocks:
            shifts[block] = _shifts(pictures[block].astype(np.float32), background)
            total += _shifted(pictures[block], shifts[block]).sum(axis=0)
        background = (total / len(pictures)).astype(np.float32)
    basis = _background_basis(background)
    residuals = np.empty((len(pictures), basis.shape[1]), np.float16)
    for block in blocks:
        pixels = _without_margin(_shifted(pictures[block], shifts[block]))
        residuals[block] = _equalize_patches(pixels - (pixels @ basis.T) @ basis)
    return residuals


def _shifts(pictures: np.ndarray, background: np.ndarray) -> np.ndarray:
    """Return each image's shift in px (M, 2), at most `MARGIN`: the peak of the correlation."""
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
    """Return the vertex of the parabola through three neighboring values, -0.5 to 0.5."""
    bend = np.minimum(before - 2 * here + after, -1e-6)
    return ((before - after) / (2 * bend)).clip(-0.5, 0.5)


def _shifted(pictures: np.ndarray, shifts: np.ndarray) -> np.ndarray:
    """Undo the shifts of images, and remove their highest frequencies.

    A shift in Fourier space does not blur noise. Near the Nyquist frequency, images of one scene
    differ by aliasing, and JPEG keeps the least.
    """
    pictures = pictures.astype(np.float32)
    rows = np.fft.fftfreq(FINE_SIDE)[:, None]
    columns = np.fft.rfftfreq(FINE_SIDE)
    low_pass = 1 / (1 + (np.hypot(rows, columns) / MAX_FREQUENCY) ** 8)
    ramp = np.ones(FINE_SIDE)  # to zero at the borders, where the image wraps around
    ramp[:TAPER] = np.sin(np.pi / 2 * (np.arange(TAPER) + 0.5) / TAPER) ** 2
    ramp[-TAPER:] = ramp[:TAPER][::-1]
    turn_rows = np.exp(2j * np.pi * rows * shifts[:, 0, None, None]).astype(np.complex64)
    turn_columns = np.exp(2j * np.pi * columns * shifts[:, 1, None, None]).astype(np.complex64)
    spectrum = np.fft.rfft2(pictures * np.outer(ramp, ramp).astype(np.float32))
    spectrum *= low_pass.astype(np.float32)
    spectrum *= turn_rows
    spectrum *= turn_columns
    return np.fft.irfft2(spectrum, s=pictures.shape[1:]).astype(np.float32)


def _background_basis(background: np.ndarray) -> np.ndarray:
    """Return an orthonormal basis (B, P) of all possible appearances of the background."""
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
    """Return the pixels (M, P) of images without their margins."""
    return pictures[:, MARGIN:-MARGIN, MARGIN:-MARGIN].reshape(len(pictures), -1)


def _equalize_patches(residuals: np.ndarray) -> np.ndarray:
    """Return residuals (M, P) of norm 1, whose patches have mean 0 and equal norms."""
    count = (FINE_SIDE - 2 * MARGIN) // PATCH
    patches = residuals.reshape(-1, count, PATCH, count, PATCH)
    patches = patches - patches.mean(axis=(2, 4), keepdims=True)
    norm = np.sqrt((patches**2).sum(axis=(2, 4), keepdims=True))
    equal = (patches / np.maximum(norm, 1e-3)).reshape(len(residuals), -1)
    return equal / np.maximum(np.linalg.norm(equal, axis=1, keepdims=True), 1e-3)
