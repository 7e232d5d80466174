"""The tutorial in PyTorch, and its pieces one by one, timed.

    python pytorch_tutorial.py {pieces,forward,tutorial} DIR --weights mobilenet_v2.pth
        [--epochs 10] [--limit N] [--seed 0] [--device cpu|cuda] [--precision f32|bf16] [--compile MODE]

DIR holds `train/` and `validation/`, each with one folder per class, as torchvision's
ImageFolder reads them; `mobilenet_v2.pth` is torchvision's MobileNet_V2_Weights.IMAGENET1K_V1.
Pictures are prepared as those weights want them (mean and deviation of ImageNet), resized to
160x160, by a worker process per core, which stay alive between epochs. Eager mode, channels last, the
base in eval mode in both phases: RMSprop 1e-4 on the head, then 1e-5 from the batch norm of
block 11's expansion on, which is where the Keras tutorial's layer 100 is. Autograd keeps nothing
of the frozen layers before it.

In bf16 the networks run under autocast, with weights and losses in f32; the forward pass is measured with weights in
bf16 as well. With `--compile`, `torch.compile` in the given mode, for pieces: the forward pass frozen (weights folded
and stored as the kernels want them), the fine-tuning step as it comes.
"""

import itertools
import time
from importlib.metadata import version

import torch
import torchvision
from torch import nn
from torch._inductor import config as inductor
from torchvision import transforms

import common
from common import BATCH_SIZE, IMAGE_SIZE, LEARNING_RATE

MEAN, DEVIATION = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


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


def one_batch(arguments):
    """Returns the first pictures of a class, as many as are in a batch."""
    train = examples(arguments.pictures / "train", arguments.limit)
    return torch.stack([train[place][0] for place in range(min(BATCH_SIZE, len(train)))])


def pretrained(arguments):
    """Returns the base with torchvision's weights, frozen and in eval mode, on the device."""
    network = torchvision.models.mobilenet_v2()
    network.load_state_dict(torch.load(arguments.weights, weights_only=True))
    return network.features.requires_grad_(False).eval().to(arguments.device)


def done(work, device):
    """Returns `work()` when a GPU has done what it was told."""
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return result


def autocast(device, precision):
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bf16")


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


def step(model, optimizer, images, labels, precision="f32"):
    """Trains one step; returns logits and loss."""
    optimizer.zero_grad()
    with autocast(images.device.type, precision):
        logits = model(images)
    logits = logits.squeeze(1).float()
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


def layouts(arguments):
    """Returns the memory layouts to measure; compiled code has its own within, best fed with channels last."""
    return {name: layout for name, layout in LAYOUTS.items() if not arguments.compile or name == "channels_last"}


def compiled(module, mode, frozen):
    """Returns the module, compiled if there is a mode to do that in, at its first call and whatever earlier runs left."""
    if mode is None:
        return module
    inductor.freezing, inductor.force_disable_caches = frozen, True
    return torch.compile(module, mode=mode, dynamic=False)


def timed(work):
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def forward(arguments, batch):
    """Measures the base on a batch and on one picture, and a matrix product."""
    device, precision = arguments.device, arguments.precision
    with torch.inference_mode():
        expected = pretrained(arguments)(batch.to(device)).cpu().numpy()
    # A GPU's products are rounded in f32, too, to TF32.
    tolerance = precision if device == "cpu" else "bf16"
    kinds = {"": torch.float32}
    if precision == "bf16":
        kinds = {", autocast": torch.float32, ", weights in bf16": torch.bfloat16}
    base_forward, one_picture, compile_seconds = {}, {}, {}
    for (name, layout), (kind, dtype) in itertools.product(layouts(arguments).items(), kinds.items()):
        way = name + kind
        base = pretrained(arguments).to(dtype=dtype, memory_format=layout)
        base = compiled(base, arguments.compile, frozen=True)

        def measure(pictures, repetitions):
            images = batch[:pictures].to(device, dtype, memory_format=layout)
            features, seconds = timed(lambda: done(lambda: base(images), device))
            common.check_features(features.float().cpu().numpy(), expected[:pictures], tolerance)
            return common.median_rate(len(images), lambda: done(lambda: base(images), device), repetitions), seconds

        # What is frozen cannot be in inference mode.
        no_gradients = torch.no_grad() if arguments.compile else torch.inference_mode()
        with no_gradients, autocast(device, precision if dtype == torch.float32 else "f32"):
            base_forward[way], compile_seconds[f"base forward, {way}"] = measure(BATCH_SIZE, common.FORWARDS)
            rate, compile_seconds[f"one picture, {way}"] = measure(1, common.SINGLES)
            one_picture[way] = 1000 / rate
    a, b = (torch.randn([common.PRODUCT_SIZE] * 2, device=device).to(dtype) for _ in range(2))
    return {
        "base_forward": base_forward,
        "one_picture": one_picture,
        "gemm_gflops": common.gemm_gflops(lambda: done(lambda: a @ b, device)),
    } | ({"compile_seconds": compile_seconds} if arguments.compile else {})


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
    device, precision = arguments.device, arguments.precision
    labels = labels.to(device)
    figures = forward(arguments, batch)
    fine_tuning = {}
    for way, layout in layouts(arguments).items():
        if arguments.compile and precision == "bf16" and device == "cpu":
            # TorchInductor does not end with this one's backward pass in minutes.
            break
        images = batch.to(device, memory_format=layout)
        base = pretrained(arguments)
        unfreeze(base)
        model = classifier(base).to(device, memory_format=layout)
        assert len(trained(model)) == 58
        optimizer = rms_prop(model, LEARNING_RATE / 10)
        model = compiled(model, arguments.compile, frozen=False)

        def work():
            return done(lambda: step(model, optimizer, images, labels, precision), device)

        _, seconds = timed(work)
        if arguments.compile:
            figures["compile_seconds"][f"fine-tuning step, {way}"] = seconds
        fine_tuning[way] = common.median_rate(len(images), work, common.STEPS)
    return figures | {"pictures": count, "decode": {"data_loader": decode}, "fine_tuning": fine_tuning}


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
                totals.add(*step(model, optimizer, images, labels, arguments.precision), labels)
            with torch.inference_mode(), autocast(arguments.device, arguments.precision):
                for images, labels in map(moved, validation):
                    logits = model(images).squeeze(1).float()
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
    parser = common.command_line(__doc__.split("\n")[0], precisions=common.PRECISIONS)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", metavar="MODE", help="one of torch.compile's")
    arguments = parser.parse_args()
    if arguments.compile and arguments.mode == "tutorial":
        parser.error("--compile is for pieces and forward")
    modes = {"pieces": pieces, "forward": lambda arguments: forward(arguments, one_batch(arguments)), "tutorial": tutorial}
    result = modes[arguments.mode](arguments)
    versions = {
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": version("pillow"),
    }
    common.finish(arguments, "pytorch", versions, torch.get_num_threads(), result)


if __name__ == "__main__":
    main()
