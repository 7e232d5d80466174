"""Keras' losses of a few logits, with gradient, accuracy and probabilities, for the Rust ones to equal.

    python losses.py          # ../data/losses.safetensors

`binary/NAME` of `BinaryCrossentropy`, `sparse/NAME` of `SparseCategoricalCrossentropy`, both `from_logits`, where
NAME is `logits` f32 `[12, 1]` and `[12, 5]`, `labels` i64 `[12]`, `loss` f32 (the mean), `gradient` (as the logits),
`accuracy` f32, and `probabilities` f32 `[12, classes]`: the sigmoid's, beside that of the negative logit, and the
softmax. Computed in f64 from logits that are exact in f32, the largest of which are 40 and -40.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from safetensors.numpy import save_file

DATA = Path(__file__).parent.parent / "data"


def reference(loss, accuracy, probabilities, logits, labels):
    variable = tf.Variable(logits.astype(np.float64))
    with tf.GradientTape() as tape:
        mean = loss(labels, variable)
    accuracy.update_state(labels, variable.numpy())
    return {
        "logits": logits,
        "labels": labels.reshape(-1),
        "loss": mean.numpy(),
        "gradient": tape.gradient(mean, variable).numpy(),
        "accuracy": accuracy.result().numpy(),
        "probabilities": probabilities(variable).numpy(),
    }


def main():
    keras.config.set_floatx("float64")
    random = np.random.default_rng(0)
    binary = (3 * random.standard_normal((12, 1))).astype(np.float32)
    binary[:2] = [[40], [-40]]
    sparse = (3 * random.standard_normal((12, 5))).astype(np.float32)
    sparse[0] = [40, -40, 0, 1, 2]
    parts = {
        "binary": reference(
            keras.losses.BinaryCrossentropy(from_logits=True),
            keras.metrics.BinaryAccuracy(threshold=0.0),
            lambda logits: tf.concat([tf.sigmoid(-logits), tf.sigmoid(logits)], 1),
            binary, random.integers(0, 2, (12, 1)),
        ),
        "sparse": reference(
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            keras.metrics.SparseCategoricalAccuracy(),
            tf.nn.softmax,
            sparse, random.integers(0, 5, 12),
        ),
    }
    tensors = {
        f"{part}/{name}": np.asarray(value, np.int64 if name == "labels" else np.float32)
        for part, values in parts.items() for name, value in values.items()
    }
    path = DATA / "losses.safetensors"
    save_file(tensors, path)
    print(f"{path.name}: {path.stat().st_size} bytes", *(f"{n} {t}" for n, t in tensors.items() if t.ndim == 0))


if __name__ == "__main__":
    main()
