"""The tutorial's pieces in PyTorch on several ranks, timed: DistributedDataParallel over Gloo.

    torchrun --nproc-per-node N pytorch_ddp.py pieces DIR --weights mobilenet_v2.pth [--limit N] [--seed 0]

Started without torchrun it measures the same on one process. Network, weights, trainable variables and pictures are
those of `pytorch_tutorial.py`. A batch has 32 pictures whatever the number of ranks, and each rank takes its part of it.
The ranks share the cores, for threads as for worker processes. What they do without each other ends when the last
of them is done.
"""

import os
from importlib.metadata import version

import torch
import torch.distributed as dist
import torchvision
from torch.nn.parallel import DistributedDataParallel

import common
import pytorch_tutorial as single
from common import BATCH_SIZE, LEARNING_RATE

# Megabytes: DDP's own choice, by which most of the gradients are summed after the backward pass, and one by which they
# are summed during it.
BUCKETS = [25, 1]


def together(work):
    """Returns `work`, done by all ranks."""

    def done():
        work()
        dist.barrier()

    return done


def pieces(arguments):
    """Measures the input pipeline, the base and a fine-tuning step, each alone."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if BATCH_SIZE % ranks:
        raise SystemExit(f"{ranks} ranks cannot share a batch of {BATCH_SIZE} equally")
    train = single.examples(arguments.pictures / "train", arguments.limit)
    shares = torch.utils.data.DistributedSampler(train, ranks, rank, seed=arguments.seed)
    loader = torch.utils.data.DataLoader(
        train, BATCH_SIZE // ranks, sampler=shares, num_workers=max(common.cores() // ranks, 1), persistent_workers=True,
    )

    def read():
        for _ in loader:
            pass

    decode = common.median_rate(len(train), together(read), common.PASSES)
    images, labels = next(iter(loader))
    del loader
    images = images.to(memory_format=torch.channels_last)
    base = single.pretrained(arguments).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        base_forward = common.median_rate(BATCH_SIZE, together(lambda: base(images)), common.FORWARDS)
    with torch.no_grad():
        activations = base[:12](images)

    def fine_tuning(inputs, first_layer):
        return {f"buckets of {size} MB": fine_tuning_by(size, inputs, first_layer) for size in BUCKETS}

    def fine_tuning_by(size, inputs, first_layer):
        base = single.pretrained(arguments)
        single.unfreeze(base)
        model = single.classifier(base[first_layer:]).to(memory_format=torch.channels_last)
        assert len(single.trained(model)) == 58
        if ranks > 1:
            # Every step uses the same variables, and the base, in eval mode, has no statistics to send.
            model = DistributedDataParallel(
                model, bucket_cap_mb=size, static_graph=True, gradient_as_bucket_view=True, broadcast_buffers=False
            )
        optimizer = single.rms_prop(model, LEARNING_RATE / 10)
        step = together(lambda: single.step(model, optimizer, inputs, labels))
        return common.median_rate(BATCH_SIZE, step, common.STEPS)

    return {
        "ranks": ranks,
        "pictures": len(train),
        "decode": {"data_loader": decode},
        "base_forward": {"channels_last": base_forward},
        "fine_tuning": fine_tuning(images, 0),
        "fine_tuning_from_activations": fine_tuning(activations, 12),
    }


def main():
    arguments = common.command_line(__doc__.split("\n")[0], modes=["pieces"]).parse_args()
    arguments.device = "cpu"
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    if "RANK" not in os.environ:
        os.environ |= alone
    dist.init_process_group("gloo")
    torch.set_num_threads(max(common.cores() // dist.get_world_size(), 1))
    result = pieces(arguments)
    if dist.get_rank() == 0:
        versions = {
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "pillow": version("pillow"),
        }
        common.finish(arguments, "pytorch_ddp", versions, torch.get_num_threads(), result)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
