"""Logits of a whole Keras model, for a model file's to equal.

    python model_file.py            # ../data/model_file.safetensors

The model is `keras.applications.MobileNetV2` of alpha 0.35 at 96x96 with global average pooling, dropout and
a dense layer of three units on top; the weights are those of `formula.py`, by `layer/variable` and in Keras'
order of dimensions. The inputs are the first three pictures of `pictures.py`, `formula.tiled` to 96x96 and
scaled to [-1, 1].

`model_file.safetensors`: `logits` f32 `[3, 3]`. The metadata has the base's variables' shapes by name, as
JSON.
"""

import json
from pathlib import Path

from safetensors.numpy import save_file

import formula
from keras_widths import build
from mobilenet_v2 import keras, np, tf, variables
from pictures import pictures, scale

DATA = Path(__file__).parent.parent / "data"
ALPHA, SIZE, CLASSES, PICTURES = 0.35, 96, 3, 3


def logits(dtype):
    """Returns the logits, and the base's variables."""
    base = build(ALPHA, SIZE, dtype)
    dense = keras.layers.Dense(CLASSES, name="dense")
    head = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dropout(0.2), dense]
    model = keras.Sequential([keras.Input((SIZE, SIZE, 3)), base, *head])
    inputs = dense.kernel.shape[0]
    dense.kernel.assign(formula.values("dense/kernel", (inputs, CLASSES), inputs))
    dense.bias.assign(formula.values("dense/bias", (CLASSES,), 0))
    images = scale(formula.tiled(pictures()[:PICTURES], SIZE)).astype(dtype)
    return model(images, training=False).numpy(), variables(base)


def main():
    precise, _ = logits("float64")
    found, named = logits("float32")
    shapes = {name: list(variable.shape) for name, variable in named.items()}
    path = DATA / "model_file.safetensors"
    save_file({"logits": found}, path, {"shapes": json.dumps(shapes, separators=(",", ":"))})
    print(f"{found}\nf32 against f64 {np.abs(found - precise).max() / np.abs(precise).max():.1e}")
    print(f"{path.name}: {path.stat().st_size} bytes; TensorFlow {tf.__version__}, Keras {keras.__version__}")


if __name__ == "__main__":
    main()
