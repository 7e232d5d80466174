"""The tutorial in PyTorch, and its pieces one by one, timed.

    python pytorch_tutorial.py {pieces,tutorial} DIR --weights mobilenet_v2.pth
        [--epochs 10] [--limit N] [--seed 0] [--device cpu|cuda]

DIR holds `train/` and `validation/`, each with one folder per class, as torchvision's
ImageFolder reads them; `mobilenet_v2.pth` is torchvision's MobileNet_V2_Weights.IMAGENET1K_V1.
Pictures are prepared as those weights want them (mean and deviation of ImageNet), resized to
160x160, by a worker process per core, which stay alive between epochs. Eager mode, channels last, the
base in eval mode in both phases: RMSprop 1e-4 on the head, then 1e-5 from the batch norm of
block 11's expansion on, which is where the Keras tutorial's layer 100 is. Autograd keeps nothing
of the frozen layers before it.
"""

import time
from importlib.metadata import version

import torch
import torchvision
from torch import nn
from torchvision import transforms

import common
from common import BATCH_SIZE, IMAGE_SIZE, LEARNING_RATE

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def examples(folder, limit):
    """Returns the pictures as the network wants them, and their labels."""
    data = torchvision.datasets.ImageFolder(folder, transforms.Compose([
        transforms.Resize((IMAGE_SIZE, IMAGE_SIZE)),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, DEVIATION),
    ]))
    if len(data.classes) != 2:
        raise SystemExit(f"{folder} has {len(data.classes)} class folders, not 2")
    data.samples = common.limited(data.samples, limit)
    return data


def batches(folder, limit, seed, shuffle):
    """Returns the batches; their `dataset` has the pictures."""
    return torch.utils.data.DataLoader(
        examples(folder, limit), BATCH_SIZE, shuffle=shuffle, num_workers=common.cores(), persistent_workers=True,
        generator=torch.Generator().manual_seed(seed),
    )


def pretrained(arguments):
    """Returns the base with torchvision's weights, frozen and in eval mode, on the device."""
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(arguments.weights, weights_only=True))
    return network.features.requires_grad_(False).eval().to(arguments.device)


def wait_for(device):
    """Waits until a GPU has done what it was told."""
    if device == "cuda":
        torch.cuda.synchronize()


def classifier(base):
    """Returns the base with a head of one logit. Only the head trains."""
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 1)]
    # eval mode is for the base; the head's layers do the same in either.
    return nn.Sequential(base, *head).eval()


def unfreeze(base):
    """Makes the layers from the batch norm of block 11's expansion on trainable."""
    block_11 = base[12].conv
    for part in [block_11[0][1], *block_11[1:], *base[13:]]:
        part.requires_grad_(True)


def trained(model):
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def rms_prop(model, learning_rate):
    return torch.optim.RMSprop(trained(model), learning_rate, alpha=0.9, eps=1e-7)


loss_function = nn.BCEWithLogitsLoss()


def step(model, optimizer, images, labels):
    """Trains one step; returns logits and loss."""
    optimizer.zero_grad()
    logits = model(images).squeeze(1)
    loss = loss_function(logits, labels.float())
    loss.backward()
    optimizer.step()
    return logits.detach(), loss.detach()


class Totals:
    """Mean loss and accuracy over the pictures seen so far."""

    def __init__(self):
        self.pictures, self.loss, self.correct = 0, 0.0, 0

    def add(self, logits, loss, labels):
        self.pictures += len(labels)
        self.loss += loss.item() * len(labels)
        self.correct += ((logits > 0) == labels).sum().item()

    def means(self):
        return self.loss / self.pictures, self.correct / self.pictures


def pieces(arguments):
    """Measures the input pipeline, the base and a fine-tuning step, each alone."""
    train = batches(arguments.pictures / "train", arguments.limit, arguments.seed, True)
    count = len(train.dataset.samples)

    def read():
        for _ in train:
            pass

    decode = common.median_rate(count, read, common.PASSES)
    batch, labels = next(iter(train))
    del train
    base_forward, fine_tuning = {}, {}
    layouts = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    device = arguments.device

    def done(work):
        work()
        wait_for(device)

    labels = labels.to(device)
    for name, layout in layouts.items():
        images = batch.to(device, memory_format=layout)
        base = pretrained(arguments).to(memory_format=layout)
        with torch.inference_mode():
            base_forward[name] = common.median_rate(
                len(images), lambda: done(lambda: base(images)), common.FORWARDS
            )
        unfreeze(base)
        model = classifier(base).to(device, memory_format=layout)
        assert len(trained(model)) == 58
        optimizer = rms_prop(model, LEARNING_RATE / 10)
        fine_tuning[name] = common.median_rate(
            len(images), lambda: done(lambda: step(model, optimizer, images, labels)), common.STEPS
        )
    a, b = (torch.randn([common.PRODUCT_SIZE] * 2, device=device) for _ in range(2))
    return {
        "pictures": count,
        "decode": {"data_loader": decode},
        "base_forward": base_forward,
        "fine_tuning": fine_tuning,
        "gemm_gflops": common.gemm_gflops(lambda: done(lambda: a @ b)),
    }


def tutorial(arguments):
    """Runs the whole tutorial."""
    start = time.perf_counter()
    torch.manual_seed(arguments.seed)
    train = batches(arguments.pictures / "train", arguments.limit, arguments.seed, True)
    validation = batches(arguments.pictures / "validation", arguments.limit, arguments.seed, False)
    base = pretrained(arguments)
    model = classifier(base).to(arguments.device, memory_format=torch.channels_last)

    def moved(batch):
        images, labels = batch
        images = images.to(arguments.device, memory_format=torch.channels_last)
        return images, labels.to(arguments.device)

    curves = {key: [] for key in ["loss", "accuracy", "val_loss", "val_accuracy", "epoch_seconds"]}

    def fit(learning_rate, first_epoch):
        phase_start = time.perf_counter()
        optimizer = rms_prop(model, learning_rate)
        for epoch in range(first_epoch, first_epoch + arguments.epochs):
            epoch_start = time.perf_counter()
            totals, held_out = Totals(), Totals()
            for images, labels in map(moved, train):
                totals.add(*step(model, optimizer, images, labels), labels)
            with torch.inference_mode():
                for images, labels in map(moved, validation):
                    logits = model(images).squeeze(1)
                    held_out.add(logits, loss_function(logits, labels.float()), labels)
            values = *totals.means(), *held_out.means(), time.perf_counter() - epoch_start
            for curve, value in zip(curves.values(), values):
                curve.append(value)
            report = " - ".join(f"{key}: {curve[-1]:.4f}" for key, curve in curves.items())
            print(f"Epoch {epoch + 1} - {report}", flush=True)
        return time.perf_counter() - phase_start

    first_seconds = fit(LEARNING_RATE, 0)
    unfreeze(base)
    assert len(trained(model)) == 58
    second_seconds = fit(LEARNING_RATE / 10, arguments.epochs)
    return curves | {
        "pictures": len(train.dataset.samples),
        "validation_pictures": len(validation.dataset.samples),
        "epochs": arguments.epochs,
        "phase_1_seconds": first_seconds,
        "phase_2_seconds": second_seconds,
        "seconds": time.perf_counter() - start,
        "phase_1_val_accuracy": curves["val_accuracy"][arguments.epochs - 1],
        "phase_2_val_accuracy": curves["val_accuracy"][-1],
        "peak_memory_mb": common.peak_memory(),
    }


def main():
    parser = common.command_line(__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    arguments = parser.parse_args()
    result = {"pieces": pieces, "tutorial": tutorial}[arguments.mode](arguments)
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": version("pillow"),
    }
    common.finish(arguments, "pytorch", versions, torch.get_num_threads(), result)


if __name__ == "__main__":
    main()
