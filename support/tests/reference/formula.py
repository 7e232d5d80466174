"""Weights that any language recomputes exactly, where the real ones are too large to keep.

Value i of a tensor, counted in the file's own order of dimensions, from the tensor's name there; u32
arithmetic wraps around:

    seed  = FNV-1a of the name's bytes, 32 bits
    x     = seed + 2654435761 i
    x     = (x ^ (x >> 16)) 73244475, twice; then x ^ (x >> 16)
    u     = (x >> 8) / 2^23 - 1                      -1 to 1, exact in f32
    value = u sqrt(6 / inputs)   of a kernel, `inputs` to each output; the root rounded to f32
            1 + u / 4            of gamma
            1 + (u + 1) / 2      of a variance, 1 to 2
            u / 8                of any other
"""

import math

import numpy as np

VARIANCES = ("moving_variance", "running_var")


def values(name, shape, inputs):
    """Returns a tensor's values in f32; `inputs` is 0 for what is not a kernel."""
    seed = 2166136261
    for byte in name.encode():
        seed = (seed ^ byte) * 16777619 % 2**32
    x = np.arange(math.prod(shape), dtype=np.uint32) * np.uint32(2654435761) + np.uint32(seed)
    for _ in range(2):
        x = (x ^ (x >> 16)) * np.uint32(73244475)
    x ^= x >> 16
    u = (x >> 8).astype(np.float32) / np.float32(2**23) - np.float32(1)
    kind = name.replace("/", ".").rsplit(".", 1)[-1]
    if inputs:
        u *= np.float32(math.sqrt(6 / inputs))
    elif kind in VARIANCES:
        u = np.float32(1) + (u + np.float32(1)) / np.float32(2)
    elif kind in ("gamma", "weight"):
        u = np.float32(1) + u / np.float32(4)
    else:
        u /= np.float32(8)
    return u.reshape(shape)


def tiled(pictures, size):
    """Returns pictures of `size` x `size`: those given, repeated to the right and below, then cut."""
    at = np.arange(size) % pictures.shape[1]
    return pictures[:, at][:, :, at]
