"""Makes ../data/resize_antialiased.safetensors: what torchvision makes of known pictures, as PIL images.

    pip install tensorflow-cpu==2.21.0 torch==2.11.0 torchvision==0.26.0 pillow==12.0.0 safetensors==0.8.0
    python resize_antialiased.py

The pictures are those of `resize.py`. A name says the picture's width and height, the filter, and the width and height
that it is resized to; or 0, the shorter side that torchvision's `Resize` makes and the size that `CenterCrop` cuts out.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from resize import picture
from safetensors.numpy import save_file
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

SIZES = [((50, 37), (16, 20)), ((37, 50), (60, 10)), ((31, 2), (8, 8)), ((7, 5), (7, 5)), ((1, 1), (4, 3))]
CROPS = [((50, 37), 18, 16), ((37, 51), 21, 16), ((20, 20), 36, 32), ((200, 150), 32, 28), ((9, 64), 11, 10)]
FILTERS = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}


def main():
    outputs = {}
    for name, mode in FILTERS.items():
        for (width, height), (new_width, new_height) in SIZES:
            resized = Resize((new_height, new_width), mode)(Image.fromarray(picture(width, height)))
            outputs[f"{width}x{height} {name} {new_width} {new_height}"] = np.asarray(resized)
        for (width, height), shorter_side, size in CROPS:
            resized = Resize(shorter_side, mode)(Image.fromarray(picture(width, height)))
            outputs[f"{width}x{height} {name} 0 {shorter_side} {size}"] = np.asarray(CenterCrop(size)(resized))
    outputs = {name: np.ascontiguousarray(output) for name, output in outputs.items()}
    save_file(outputs, Path(__file__).parent.parent / "data" / "resize_antialiased.safetensors")


if __name__ == "__main__":
    main()
