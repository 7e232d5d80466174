"""Makes ../data/resize.safetensors: what tf.image.resize makes of known pictures.

    pip install tensorflow-cpu==2.21.0 safetensors==0.8.0
    python resize.py

The inputs are integers by a formula that the Rust test computes as well (`picture`), scaled to
[-1, 1] as the tutorial does. Of each output, every value is stored if it is small, else every
fourth row and every third column.
"""

from pathlib import Path

import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

# Width and height of the input; width and height of the output.
SIZES = [
    ((37, 53), (160, 160)),
    ((500, 374), (160, 160)),
    ((374, 500), (160, 160)),
    ((160, 160), (160, 160)),
    ((1, 1), (160, 160)),
    ((2, 3), (7, 5)),
    ((32, 32), (160, 160)),
    ((301, 7), (11, 13)),
    ((640, 480), (224, 96)),
]


def picture(width, height):
    """Returns uint8 samples, height x width x 3, without a pattern that hides a shift."""
    y, x, c = np.meshgrid(np.arange(height), np.arange(width), np.arange(3), indexing="ij")
    return ((x * x * 7 + y * y * 13 + x * y * 3 + c * 101 + x * 31 + y * 17) % 256).astype(np.uint8)


def main():
    outputs = {}
    for (width, height), (new_width, new_height) in SIZES:
        pixels = tf.cast(picture(width, height), tf.float32) * (1.0 / 127.5) - 1.0
        resized = tf.image.resize(pixels, (new_height, new_width)).numpy()
        if resized.size > 3000:
            resized = resized[::4, ::3]
        outputs[f"{width}x{height} to {new_width}x{new_height}"] = np.ascontiguousarray(resized)
    save_file(outputs, Path(__file__).parent.parent / "data" / "resize.safetensors")


if __name__ == "__main__":
    main()
