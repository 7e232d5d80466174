"""Predicts the time of a fine-tuning step on several machines: `../docs/scaling.md` says where the constants come from.

    python bench/scaling.py             # the tables of that page

A rank computes forward, then backward; the gradients of a bucket are summed as soon as they are ready, one bucket after
the other, while the backward pass goes on; when both are done, the variables are updated.
"""

from dataclasses import dataclass

# 1,863,873 variables of fine-tuning from layer 100 on, as 32-bit floats.
GRADIENTS = 4 * 1_863_873
BUCKET = 4 << 20
BATCH = 32
# Of what is sent over TCP and Ethernet, the part that is data: 1448 bytes of each 1514.
PAYLOAD = 1448 / 1514
GIGABIT = 1e9 / 8


@dataclass(frozen=True)
class Rank:
    """What one rank computes with: seconds of a step, and of each image in it."""

    step: float
    image: float
    # Parts of a step's time: that before the backward pass and that after it.
    forward: float = 0.33
    update: float = 0.05

    def compute(self, images):
        return self.step + images * self.image


@dataclass(frozen=True)
class Link:
    """What ranks are joined by: seconds until a message is there, bytes per second, and seconds that each byte sent
    takes of the processor while it computes."""

    latency: float
    bandwidth: float
    work: float = 0

    def sent(self, size, ranks):
        """Returns the bytes that each rank of a ring sends for a sum."""
        return 2 * (ranks - 1) / ranks * size

    def all_reduce(self, size, ranks):
        """Returns the seconds that it takes: each rank sends 2 (N - 1) messages, one after the other."""
        return 2 * (ranks - 1) * self.latency + self.sent(size, ranks) / self.bandwidth


# Gloo over TCP: bytes a second that the processor can copy and add, and what that takes from a step.
GLOO, GLOO_WORK = 2.2e9, 2e-9


def ethernet(gigabits):
    return Link(120e-6, min(gigabits * GIGABIT * PAYLOAD, GLOO), GLOO_WORK)


CORES_2 = Rank(step=8.5e-3, image=1.32e-3)
H100 = Rank(step=9.75e-3, image=0)
NVLINK = Link(120e-6 / 14, 370e9)


def step(rank, link, ranks, images, gradients=GRADIENTS, bucket=BUCKET):
    """Returns the seconds of a step in which each of `ranks` computes `images`."""
    compute = rank.compute(images)
    if ranks == 1:
        return compute
    compute += link.work * link.sent(gradients, ranks)
    buckets = -(-gradients // bucket)
    start, end = rank.forward * compute, (1 - rank.update) * compute
    summed = 0.0
    for number in range(1, buckets + 1):
        # Taken as spread evenly over the backward pass.
        ready = start + (end - start) * number / buckets
        size = min(bucket, gradients - (number - 1) * bucket)
        summed = max(summed, ready) + link.all_reduce(size, ranks)
    return max(summed, end) + rank.update * compute


def table(rank, links, numbers):
    """Returns rows of images per second and efficiency, for a batch of 32 in all and for one of 32 on each rank."""
    one = BATCH / step(rank, None, 1, BATCH)
    titles = [f"{name}, {what}" for what in ["batch 32", "32 on each"] for name in links]
    lines = [f"| | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    for ranks in numbers:
        cells = []
        for batch in [BATCH, BATCH * ranks]:
            for link in links.values():
                if batch % ranks:
                    cells.append("")
                    continue
                rate = batch / step(rank, link, ranks, batch // ranks)
                cells.append(f"{rate:,.0f} ({100 * rate / one / ranks:.0f} %)")
        lines.append(f"| {ranks} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    links = {f"{gigabits} Gb/s": ethernet(gigabits) for gigabits in [1, 10, 100]}
    print(f"Machines with two cores:\n\n{table(CORES_2, links, [1, 2, 4, 8, 16, 32, 64])}\n")
    print(f"H100 GPUs in one machine:\n\n{table(H100, {'NVLink': NVLINK}, [1, 2, 4, 8])}")


if __name__ == "__main__":
    main()
