"""Synthetic pictures that any language recomputes exactly from integers.

Value of picture n (0..7), row y, column x (0..159), channel c (0..2), with
integer arithmetic throughout (`//` rounds down, nothing is negative where it
matters):

    centre_x = 20 + (53 n + 29 c) % 120
    centre_y = 20 + (37 n + 61 c) % 120
    blob     = 144000 // (900 + (x - centre_x)^2 + (y - centre_y)^2)        0..160, smooth
    period   = 64 + 8 n
    phase    = (x (1 + n % 3) + y (1 + c)) % period
    wave     = 120 min(phase, period - phase) // period                     0..60, smooth
    checks   = 40 ((x // (4 + n) + y // (5 + n)) % 2)                       0 or 40, edges
    noise    = (7 x^2 + 11 y^2 + (3 + n) x y + 31 c) % (8 + 8 n)            0..63, high frequency
    value    = (blob + wave + checks + noise) % 256
"""

import hashlib

import numpy as np

COUNT, SIZE = 8, 160


def pictures():
    """Returns the eight pictures, u8 `[8, 160, 160, 3]`."""
    n, y, x, c = np.ogrid[:COUNT, :SIZE, :SIZE, :3]
    centre_x = 20 + (53 * n + 29 * c) % 120
    centre_y = 20 + (37 * n + 61 * c) % 120
    blob = 144000 // (900 + (x - centre_x) ** 2 + (y - centre_y) ** 2)
    period = 64 + 8 * n
    phase = (x * (1 + n % 3) + y * (1 + c)) % period
    wave = 120 * np.minimum(phase, period - phase) // period
    checks = 40 * ((x // (4 + n) + y // (5 + n)) % 2)
    noise = (7 * x * x + 11 * y * y + (3 + n) * x * y + 31 * c) % (8 + 8 * n)
    return ((blob + wave + checks + noise) % 256).astype(np.uint8)


def digest(values):
    """Returns the SHA-256 of pictures as bytes, n, y, x, c in that order."""
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


def scale(values):
    """Returns pictures in [-1, 1] as the tutorial's cell does: times 1/127.5, minus 1, in f32."""
    return values.astype(np.float32) * np.float32(1 / 127.5) - np.float32(1)
