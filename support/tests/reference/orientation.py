"""Makes ../data/orientation.safetensors: small picture files with an EXIF orientation, and how they look upright.

    pip install pillow==13.0.0 numpy==2.4.6 safetensors==0.8.0
    python orientation.py

`NAME.file` holds the bytes of a file, `NAME.pixels` (height x width x 3) what PIL's
ImageOps.exif_transpose makes of it. Names end in the orientation, 1 to 8.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from safetensors.numpy import save_file

HEIGHT, WIDTH = 12, 20


def encoded(image, format, orientation, **options):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    image.save(file, format, exif=exif, **options)
    return file.getvalue()


def files():
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    planes = [30 + 9 * y + 2 * x, 200 - 8 * y - 3 * x, 20 + 5 * y + 6 * x]
    rgb = Image.fromarray(np.stack(planes, -1).astype(np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(128)
    for orientation in range(1, 9):
        yield f"jpeg {orientation}", encoded(rgb, "JPEG", orientation, quality=95, subsampling=0)
        yield f"png {orientation}", encoded(rgb, "PNG", orientation)
        yield f"webp {orientation}", encoded(rgb, "WEBP", orientation, lossless=True)
    yield "webp lossy 6", encoded(rgb, "WEBP", 6, quality=90)
    yield "jpeg progressive 6", encoded(rgb, "JPEG", 6, quality=95, subsampling=0, progressive=True)
    yield "png alpha 8", encoded(rgba, "PNG", 8)
    # Big-endian, as cameras of one half of the makers write it.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    file = io.BytesIO()
    rgb.save(file, "JPEG", quality=95, subsampling=0, exif=exif)
    yield "jpeg big-endian 3", file.getvalue()


def main():
    reference = {}
    for name, file in files():
        image = Image.open(io.BytesIO(file))
        assert image.getexif()[0x0112] == int(name[-1]), name
        upright = np.asarray(ImageOps.exif_transpose(image).convert("RGBA"))[..., :3]
        reference[f"{name}.file"] = np.frombuffer(file, np.uint8)
        reference[f"{name}.pixels"] = np.ascontiguousarray(upright)
    save_file(reference, Path(__file__).parent.parent / "data" / "orientation.safetensors")


if __name__ == "__main__":
    main()
