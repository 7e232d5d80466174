"""Makes ../data/augmentation.safetensors: known pictures flipped, rotated, zoomed and moved by Keras, and with colours
adjusted by torchvision.

    pip install tensorflow-cpu==2.21.0 keras==3.15.1 torch==2.11.0 torchvision==0.26.0 safetensors==0.8.0
    python augmentation.py

The pictures are those of `resize.py`, scaled to [-1, 1] as the tutorial does; every output is height x width x 3.
Keras' own layers transform them, with both bounds of their ranges at the value wanted: `RandomRotation`'s in turns,
`RandomZoom`'s less 1, `RandomTranslation`'s for height and width, as shares of them.
torchvision wants [0, 1]: its outputs are scaled back to [-1, 1].
"""

from pathlib import Path

import keras
import numpy as np
import torch
from resize import picture
from safetensors.numpy import save_file
from torchvision.transforms import functional

# Width, height, and angles in turns. Corners of a long picture lie several reflections outside of it.
ROTATIONS = [
    ((7, 5), [0.0, 0.2, -0.2, 0.25, -0.037, 0.5, 1.0]),
    ((4, 6), [0.125, -0.99]),
    ((31, 2), [0.2, -0.25]),
    ((1, 5), [0.1]),
    ((1, 1), [0.3]),
    ((40, 30), [0.0123, 0.17, -0.2]),
]
ZOOMS = [((7, 5), [0.6, 1.0, 1.5, 2.0]), ((31, 2), [0.3]), ((1, 5), [1.2])]
TRANSLATIONS = [((7, 5), [(0.0, 0.3), (-0.4, 0.0), (0.25, -0.7), (1.0, 1.0)]), ((31, 2), [(-1.0, 0.1)])]
# Torchvision draws each from [1 - x, 1 + x].
FACTORS = [0.0, 0.6, 1.0, 1.7]


def scaled(width, height):
    return (picture(width, height).astype(np.float32) * np.float32(1 / 127.5) - np.float32(1.0))[None]


def adjusted(adjust, pixels, factor):
    """Returns what a function of torchvision makes of 1 x height x width x 3 values in [-1, 1]."""
    chw = torch.from_numpy(pixels[0]).permute(2, 0, 1)
    return (adjust(chw * 0.5 + 0.5, factor) * 2.0 - 1.0).permute(1, 2, 0).numpy()


def main():
    outputs = {}
    for (width, height), angles in ROTATIONS:
        for turns in angles:
            layer = keras.layers.RandomRotation((turns, turns), fill_mode="reflect")
            rotated = layer(scaled(width, height), training=True)
            outputs[f"rotation {width}x{height} by {turns}"] = np.asarray(rotated)[0]
    for (width, height), zooms in ZOOMS:
        for zoom in zooms:
            layer = keras.layers.RandomZoom((zoom - 1, zoom - 1), fill_mode="reflect")
            outputs[f"zoom {width}x{height} by {zoom}"] = np.asarray(layer(scaled(width, height), training=True))[0]
    for (width, height), shares in TRANSLATIONS:
        for down, right in shares:
            layer = keras.layers.RandomTranslation((down, down), (right, right), fill_mode="reflect")
            moved = layer(scaled(width, height), training=True)
            outputs[f"translation {width}x{height} by {down} and {right}"] = np.asarray(moved)[0]
    pixels = scaled(7, 5)
    flip = keras.layers.RandomFlip("horizontal")
    flipped = flip.transform_images(pixels, {"flips": np.full((1, 1, 1, 1), True)}, training=True)
    outputs["flip 7x5"] = np.asarray(flipped)[0]
    for name in ["brightness", "contrast", "saturation"]:
        for factor in FACTORS:
            outputs[f"{name} 7x5 by {factor}"] = adjusted(getattr(functional, f"adjust_{name}"), pixels, factor)
    outputs = {name: np.ascontiguousarray(output, np.float32) for name, output in outputs.items()}
    save_file(outputs, Path(__file__).parent.parent / "data" / "augmentation.safetensors")


if __name__ == "__main__":
    main()
