"""Pooled features of Keras' MobileNetV2 of other widths, for the Rust base to equal.

    python keras_widths.py          # ../data/keras_widths.safetensors

The weights are those of `formula.py`, by `layer/variable` and in Keras' order of dimensions. The input is
the third picture of `pictures.py`, `formula.tiled` to a size and scaled to [-1, 1].

`keras_widths.safetensors`: `0.35 96` f32 `[1, 1280]`, `1.4 192` f32 `[1, 1792]`. The metadata has, by
alpha, the variables' shapes by name, as JSON.
"""

import json
from pathlib import Path

from safetensors.numpy import save_file

import formula
from mobilenet_v2 import keras, np, tf, variables
from pictures import pictures, scale

DATA = Path(__file__).parent.parent / "data"
SIZES = {0.35: 96, 1.4: 192}


def build(alpha, size, dtype):
    """Returns the model with the weights of the formula."""
    keras.backend.clear_session()
    keras.config.set_floatx(dtype)
    model = keras.applications.MobileNetV2(
        input_shape=(size, size, 3), alpha=alpha, include_top=False, weights=None
    )
    for name, variable in variables(model).items():
        shape = tuple(variable.shape)
        inputs = 0
        if len(shape) == 4:
            inputs = shape[0] * shape[1] * (1 if "depthwise/" in name else shape[2])
        variable.assign(formula.values(name, shape, inputs))
    return model


def main():
    tensors, metadata = {}, {}
    for alpha, size in SIZES.items():
        inputs = scale(formula.tiled(pictures()[2:3], size))
        model = build(alpha, size, "float32")
        pooled = model(inputs, training=False).numpy().mean((1, 2))
        shapes = {name: list(variable.shape) for name, variable in variables(model).items()}
        precise = build(alpha, size, "float64")(inputs.astype(np.float64), training=False)
        precise = precise.numpy().mean((1, 2))
        tensors[f"{alpha} {size}"] = pooled
        metadata[str(alpha)] = json.dumps(shapes, separators=(",", ":"))
        print(f"{alpha}: largest {pooled.max():.3f}, {(pooled > 0).mean():.3f} positive, f32 against f64 "
              f"{np.abs(pooled - precise).max() / np.abs(precise).max():.1e}")
    path = DATA / "keras_widths.safetensors"
    save_file(tensors, path, metadata)
    print(f"{path.name}: {path.stat().st_size} bytes; TensorFlow {tf.__version__}, Keras {keras.__version__}")


if __name__ == "__main__":
    main()
