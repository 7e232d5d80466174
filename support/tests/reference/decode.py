"""Makes ../data/decode.safetensors: small picture files, and what TensorFlow reads from them.

    pip install tensorflow-cpu==2.21.0 pillow==13.0.0 safetensors==0.8.0
    python decode.py

`NAME.file` holds the bytes of a file, `NAME.pixels` (height x width x 3) what
tf.io.decode_image(channels=3, expand_animations=False) makes of it; there is no `NAME.pixels`
where it refuses the file. The pictures are smooth, so that decoders agree on them up to rounding.
"""

import io
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image
from safetensors.numpy import save_file

HEIGHT, WIDTH = 20, 28


def plane(rows, columns, start):
    """Returns a HEIGHT x WIDTH slope in uint8."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return (start + rows * y + columns * x).astype(np.uint8)


RED, GREEN, BLUE, BLACK = plane(4, 2, 30), plane(-3, 4, 90), plane(5, -3, 120), plane(2, 3, 20)


def encoded(image, format, **options):
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def files():
    rgb = Image.fromarray(np.stack([RED, GREEN, BLUE], -1))
    grey = Image.fromarray(GREEN)
    rgba = Image.fromarray(np.stack([RED, GREEN, BLUE, plane(5, 5, 0)], -1))
    cmyk = Image.fromarray(np.stack([RED, GREEN, BLUE, BLACK], -1), mode="CMYK")
    few = rgb.quantize(16)
    turned = Image.Exif()
    turned[0x0112] = 6
    thumbnail = encoded(rgb.resize((8, 8)), "JPEG")

    jpeg = encoded(rgb, "JPEG", quality=95)
    yield "jpeg", jpeg
    yield "jpeg progressive", encoded(rgb, "JPEG", quality=95, progressive=True)
    yield "jpeg 4:4:4", encoded(rgb, "JPEG", quality=95, subsampling=0)
    yield "jpeg 4:2:2", encoded(rgb, "JPEG", quality=95, subsampling=1)
    yield "jpeg grey", encoded(grey, "JPEG", quality=95)
    yield "jpeg exif rotation", encoded(rgb, "JPEG", quality=95, exif=turned)
    adobe = encoded(cmyk, "JPEG", quality=95)
    yield "jpeg cmyk adobe", adobe
    start = adobe.index(b"\xff\xee")
    end = start + 2 + int.from_bytes(adobe[start + 2 : start + 4], "big")
    yield "jpeg cmyk plain", adobe[:start] + adobe[end:]
    yield "jpeg ycck", adobe[: end - 1] + b"\x02" + adobe[end:]
    tables = jpeg.index(b"\xff\xdb")
    yield "jpeg junk between segments", jpeg[:tables] + b"\x00\x01junk" + jpeg[tables:]
    yield "jpeg junk before end", jpeg[:-2] + bytes(range(1, 129)) + jpeg[-2:]
    yield "jpeg junk after end", jpeg + thumbnail[:-2]
    yield "jpeg no end", jpeg[:-2]
    yield "jpeg truncated", jpeg[:-60]
    app1 = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    yield "jpeg truncated with thumbnail", jpeg[:2] + app1 + jpeg[2:-60]
    yield "jpeg header only", jpeg[:100]

    yield "png", encoded(rgb, "PNG")
    yield "png grey", encoded(grey, "PNG")
    yield "png alpha", encoded(rgba, "PNG")
    yield "png grey alpha", encoded(rgba.convert("LA"), "PNG")
    yield "png palette", encoded(few, "PNG")
    yield "png palette transparent", encoded(few, "PNG", transparency=3)
    yield "png 1 bit", encoded(grey.convert("1"), "PNG")
    wide = GREEN.astype(np.uint16) * 256 + BLACK * 5
    yield "png 16 bit grey", encoded(Image.fromarray(wide), "PNG")
    wide = np.stack([RED, GREEN, BLUE], -1).astype(np.uint16) * 256 + BLACK[..., None] * 5
    yield "png 16 bit rgb", tf.io.encode_png(wide).numpy()
    png = encoded(rgb, "PNG")
    yield "png truncated", png[: len(png) // 2]
    yield "png wrong checksum", png[:60] + bytes([png[60] ^ 1]) + png[61:]

    yield "gif", encoded(few, "GIF")
    yield "gif transparent", encoded(few, "GIF", transparency=3)
    other = grey.convert("RGB").quantize(16)
    yield "gif animated", encoded(few, "GIF", save_all=True, append_images=[other])
    yield "webp", encoded(rgb, "WEBP", lossless=True)
    yield "bmp", encoded(rgb, "BMP")
    yield "bmp grey", encoded(grey, "BMP")
    yield "empty", b""
    yield "text", b"This is not a picture, whatever its name says.\n"


def main():
    reference = {}
    for name, file in files():
        if file:
            reference[f"{name}.file"] = np.frombuffer(file, np.uint8)
        try:
            pixels = tf.io.decode_image(file, channels=3, expand_animations=False).numpy()
            reference[f"{name}.pixels"] = pixels
            print(name, pixels.shape)
        except tf.errors.OpError as error:
            print(name, "refused:", error.message.splitlines()[0])
    save_file(reference, Path(__file__).parent.parent / "data" / "decode.safetensors")


if __name__ == "__main__":
    main()
