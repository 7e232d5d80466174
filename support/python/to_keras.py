"""Turns a model file into a Keras model.

    pip install tensorflow-cpu==2.21.0
    python to_keras.py model.safetensors model.keras [PICTURE...]

The Keras model takes pictures f32 `[N, size, size, 3]`, samples from 0 to 255, and gives logits: the scaling
is a layer of it, resizing (`tf.image.resize`) is not. With pictures, prints the logits of each, a line of
JSON. For weights whose origin is `tfhub` or `keras`: the others pad pictures otherwise than Keras' network.
"""

import json
import sys

import keras
import numpy as np
import tensorflow as tf


def read(path):
    """Returns what a model file says, and its tensors by name."""
    with open(path, "rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        data = file.read()
    info = json.loads(header.pop("__metadata__")["model"])
    if info["version"] not in (1, 2):
        raise SystemExit(f"{path}: version 1 or 2 is expected, got {info['version']}")
    tensors = {
        name: np.frombuffer(data[slice(*tensor["data_offsets"])], "<f4").reshape(tensor["shape"])
        for name, tensor in header.items()
        if not name.startswith("novelty/")
    }
    return info, tensors


def keras_order(name, value):
    """Returns a tensor with its dimensions in Keras' order."""
    if not name.endswith("/kernel"):
        return value
    if value.ndim == 2:
        return value.T  # (out, in) -> (in, out)
    if name.endswith("depthwise/kernel"):
        return value.transpose(2, 3, 0, 1)  # (C, 1, h, w) -> (h, w, C, 1)
    return value.transpose(2, 3, 1, 0)  # (out, in, h, w) -> (h, w, in, out)


def to_keras(path):
    """Returns the Keras model, from samples of 0 to 255 to logits."""
    info, tensors = read(path)
    source, backbone = info["input"], info["backbone"]
    if backbone["architecture"] != "MobileNetV2" or backbone["weights"] not in ("tfhub", "keras"):
        raise SystemExit(f"{path}: Keras has no network that computes what {backbone} does")
    shape = (source["size"], source["size"], 3)
    base = keras.applications.MobileNetV2(
        input_shape=shape, alpha=backbone["alpha"], include_top=False, weights=None
    )
    scaling = keras.layers.Rescaling(
        [1 / (255 * std) for std in source["std"]],
        [-mean / std for mean, std in zip(source["mean"], source["std"])],
    )
    head = []
    for layer in info["head"]:
        match layer["class_name"]:
            case "GlobalAveragePooling2D":
                head.append(keras.layers.GlobalAveragePooling2D())
            case "Dropout":
                head.append(keras.layers.Dropout(layer["rate"]))
            case "Dense":
                head.append(keras.layers.Dense(layer["units"], name=layer["name"]))
    # The tutorial's `training=False`: batch normalizations use their moving statistics.
    base.trainable = False
    model = keras.Sequential([keras.Input(shape), scaling, base, *head])
    for layer in [*base.layers, *head]:
        for variable in layer.weights:
            # Dropout counts its calls in one.
            if "seed" not in variable.path:
                name = f"{layer.name}/{variable.name}"
                variable.assign(keras_order(name, tensors.pop(name)))
    if tensors:
        raise SystemExit(f"{path}: no layer takes {sorted(tensors)}")
    return model


def main():
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    model = to_keras(sys.argv[1])
    model.save(sys.argv[2])
    for path in sys.argv[3:]:
        picture = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        pictures = tf.image.resize(picture, model.input_shape[1:3])[None]
        print(json.dumps(model(pictures, training=False).numpy()[0].tolist()))


if __name__ == "__main__":
    main()
