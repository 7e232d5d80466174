"""Losses of a few logits by Keras and PyTorch, with gradient, accuracy and probabilities, for the Rust ones to equal.

    python losses.py          # ../data/losses.safetensors

`binary/NAME` of `BinaryCrossentropy`, `sparse/NAME` of `SparseCategoricalCrossentropy`, `multi/NAME` of
`BinaryCrossentropy` with several labels, all `from_logits`, where NAME is `logits` f32 `[12, 1]`, `[12, 5]` and
`[12, 5]`, `labels` i64 `[12]`, of `multi` f32 `[12, 5]`, `loss` f32 (the mean), `each` f32 `[12]`, `gradient` (as the
logits), `accuracy` f32, and `probabilities` f32 `[12, classes]`: the sigmoid's, of `binary` beside that of the negative
logit, and the softmax. Computed in f64 from logits that are exact in f32, the largest of which are 40 and -40.

`smoothed PART/NAME` is the same with a label smoothing of 0.1 (`CategoricalCrossentropy` has it in the sparse one's
place), `weighted PART/NAME` with that and the class weights in `weights`: of `binary` and `sparse` those that Keras'
`fit` takes as `class_weight`, of `multi`, to which Keras gives none, PyTorch's `pos_weight`. PyTorch is asked as well
wherever it has the same.

`balanced` are scikit-learn's "balanced" class weights of sparse's labels.
"""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
import torch
import torch.nn.functional as F
from safetensors.numpy import save_file
from sklearn.utils.class_weight import compute_class_weight

DATA = Path(__file__).parent.parent / "data"
SMOOTHING = 0.1
WEIGHTS = {"binary": [0.5, 3], "sparse": [1, 2, 0, 0.25, 4], "multi": [1, 2, 0.5, 0.25, 4]}


def keras_loss(part, smoothing):
    """Returns what takes labels and logits and returns each example's loss, and the labels that it takes."""
    if part == "sparse" and smoothing:
        loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
        return loss, lambda labels: np.eye(5)[labels]
    if part == "sparse":
        return keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None), lambda labels: labels
    loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=smoothing, reduction=None)
    return loss, lambda labels: labels.reshape(12, -1)


def torch_each(part, smoothing, weights, logits, labels):
    """Returns each example's loss by PyTorch, which has no class weights as Keras' `fit` does."""
    logits, labels = torch.from_numpy(logits.astype(np.float64)), torch.from_numpy(labels)
    if part == "sparse":
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none").numpy()
    targets = labels.reshape(12, -1).double() * (1 - smoothing) + smoothing / 2
    weights = torch.tensor(weights, dtype=torch.float64) if weights and part == "multi" else None
    each = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights, reduction="none")
    return each.mean(1).numpy()


def torch_gradient(smoothing, weights, logits, labels):
    logits = torch.from_numpy(logits.astype(np.float64)).requires_grad_()
    targets = torch.from_numpy(labels).double() * (1 - smoothing) + smoothing / 2
    weights = torch.tensor(weights, dtype=torch.float64)
    F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weights).backward()
    return logits.grad.numpy()


def weighted_by_fit(loss, logits, labels, weights):
    """Returns the loss that Keras' `train_on_batch` reports for a model that returns its input."""
    loss.reduction = "sum_over_batch_size"
    model = keras.Sequential([keras.Input(logits.shape[1:]), keras.layers.Activation("linear")])
    model.compile("sgd", loss)
    return model.train_on_batch(logits, labels, class_weight=dict(enumerate(weights)))


def reference(part, smoothing, weights, logits, labels):
    loss, converted = keras_loss(part, smoothing)
    expected = torch_each(part, smoothing, weights, logits, labels)
    if weights and part == "multi":
        each, gradient = expected, torch_gradient(smoothing, weights, logits, labels)
    else:
        factors = np.array(weights)[labels] if weights else 1
        variable = tf.Variable(logits.astype(np.float64))
        with tf.GradientTape() as tape:
            each = loss(converted(labels), variable) * factors
            mean = tf.reduce_mean(each)
        each, gradient = each.numpy(), tape.gradient(mean, variable).numpy()
        np.testing.assert_allclose(each, expected * factors, rtol=1e-9, atol=1e-15)
        if weights:
            fitted = weighted_by_fit(loss, logits, converted(labels), weights)
            np.testing.assert_allclose(fitted, each.mean(), rtol=1e-6)
    return {"loss": each.mean(), "each": each, "gradient": gradient}


def main():
    keras.config.set_floatx("float64")
    random = np.random.default_rng(0)
    binary = (3 * random.standard_normal((12, 1))).astype(np.float32)
    binary[:2] = [[40], [-40]]
    sparse = (3 * random.standard_normal((12, 5))).astype(np.float32)
    sparse[0] = [40, -40, 0, 1, 2]
    binary_labels, sparse_labels = random.integers(0, 2, (12, 1)).reshape(-1), random.integers(0, 5, 12)
    multi_labels = random.integers(0, 2, (12, 5)).astype(np.float32)
    inputs = {
        "binary": (
            binary, binary_labels, keras.metrics.BinaryAccuracy(threshold=0.0),
            lambda logits: tf.concat([tf.sigmoid(-logits), tf.sigmoid(logits)], 1),
        ),
        "sparse": (sparse, sparse_labels, keras.metrics.SparseCategoricalAccuracy(), tf.nn.softmax),
        "multi": (sparse, multi_labels, keras.metrics.BinaryAccuracy(threshold=0.0), tf.sigmoid),
    }
    parts = {"": {"balanced": compute_class_weight("balanced", classes=np.arange(5), y=sparse_labels)}}
    for part, (logits, labels, accuracy, probabilities) in inputs.items():
        accuracy.update_state(labels.reshape(12, -1), logits)
        parts[part] = {
            "logits": logits,
            "labels": labels,
            "accuracy": accuracy.result().numpy(),
            "probabilities": probabilities(logits.astype(np.float64)).numpy(),
            "weights": np.array(WEIGHTS[part]),
        }
        parts[part] |= reference(part, 0.0, None, logits, labels)
        parts[f"smoothed {part}"] = reference(part, SMOOTHING, None, logits, labels)
        parts[f"weighted {part}"] = reference(part, SMOOTHING, WEIGHTS[part], logits, labels)
    tensors = {
        f"{part}/{name}".lstrip("/"): np.asarray(value, np.int64 if np.asarray(value).dtype == np.int64 else np.float32)
        for part, values in parts.items() for name, value in values.items()
    }
    path = DATA / "losses.safetensors"
    save_file(tensors, path)
    print(f"{path.name}: {path.stat().st_size} bytes", *(f"{n} {t}" for n, t in tensors.items() if t.ndim == 0))


if __name__ == "__main__":
    main()
