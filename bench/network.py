"""Times Gloo's all-reduce between two processes, over loopback and over links of given rates.

    sudo env PATH="$PATH" python bench/network.py [--rates loopback 10gbit 1gbit 200mbit] [--program COMMAND ...]

For a link it makes two network namespaces, joined by a virtual cable whose two ends are limited by `tc`'s token
bucket, and removes them again: Linux, root and iproute2 are needed. For each rate it prints the medians of
all-reduces of several sizes, and of the gradients of fine-tuning in buckets that are summed one after the other
and all at once. With --program, which takes the rest of the line, it runs that on each side instead, as a rank of
two: a benchmark of whole training steps, say. In an environment with `torch`.
"""

import argparse
import contextlib
import os
import subprocess
import sys
import time
from statistics import median

# 32-bit floats: the head alone, a bucket, all that is trained from layer 100 on.
HEAD, BUCKET, FINE_TUNED = 1281, 1 << 18, 1_863_873
BUCKET_MB = [0.5, 1, 2, 4, 8]
REPETITIONS = 21
PORT = "29477"


def command_line():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rates", nargs="+", default=["loopback", "10gbit", "1gbit", "200mbit"], metavar="RATE",
                        help="loopback, or a rate as tc takes it (loopback 10gbit 1gbit 200mbit)")
    parser.add_argument("--program", nargs=argparse.REMAINDER, default=[sys.executable, __file__], metavar="COMMAND")
    return parser.parse_args()


def ip(words):
    subprocess.run(["ip", *words.split()], check=True)


@contextlib.contextmanager
def link(rate):
    """Makes two namespaces joined by a link, and returns what each rank is started with: command, address, interface."""
    if rate == "loopback":
        yield [([], "127.0.0.1", "lo")] * 2
        return
    names = [f"ranks{os.getpid()}-{rank}" for rank in range(2)]
    # GSO hands packets of up to 64 KiB to the bucket, which has to hold a few.
    bucket = f"rate {rate} burst 256kb latency 100ms"
    try:
        for name in names:
            ip(f"netns add {name}")
        ip(f"link add veth0 netns {names[0]} type veth peer name veth1 netns {names[1]}")
        for rank, name in enumerate(names):
            ip(f"-n {name} addr add 10.77.0.{rank + 1}/24 dev veth{rank}")
            ip(f"-n {name} link set lo up")
            ip(f"-n {name} link set veth{rank} up")
            subprocess.run(["tc", "-n", name, "qdisc", "add", "dev", f"veth{rank}", "root", "tbf", *bucket.split()], check=True)
        yield [(["ip", "netns", "exec", name], "10.77.0.1", f"veth{rank}") for rank, name in enumerate(names)]
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL)


def run(rate, program):
    """Runs the program as two ranks; only rank 0's output is shown."""
    print(f"{rate}:", flush=True)
    with link(rate) as sides:
        ranks = []
        for rank, (words, address, interface) in enumerate(sides):
            group = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": address, "MASTER_PORT": PORT, "GLOO_SOCKET_IFNAME": interface}
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | group
            output = None if rank == 0 else subprocess.DEVNULL
            ranks.append(subprocess.Popen([*words, *program], env=environment, stdout=output))
        if any([rank.wait() for rank in ranks]):
            raise SystemExit(f"error: over {rate}, {' '.join(program)} failed")


def measure():
    """Is one rank: times all-reduces, and tells of their medians on rank 0."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo")

    def timed(work):
        times = []
        for _ in range(REPETITIONS):
            dist.barrier()
            start = time.perf_counter()
            work()
            times.append(1e3 * (time.perf_counter() - start))
        # The first one of a size connects buffers.
        return median(times[1:])

    def told(name, milliseconds):
        if dist.get_rank() == 0:
            print(f"  {name:<40} {milliseconds:8.2f} ms", flush=True)

    for count in [HEAD, BUCKET, FINE_TUNED]:
        values = torch.ones(count)
        told(f"{4e-3 * count:,.0f} kB", timed(lambda: dist.all_reduce(values)))
    for size in BUCKET_MB:
        buckets = values.split(int(size * 250_000))

        def at_once():
            for work in [dist.all_reduce(bucket, async_op=True) for bucket in buckets]:
                work.wait()

        told(f"{len(buckets)} buckets of {size} MB, in turn", timed(lambda: [dist.all_reduce(bucket) for bucket in buckets]))
        told(f"{len(buckets)} buckets of {size} MB, at once", timed(at_once))
    dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:
        measure()
    else:
        options = command_line()
        for rate in options.rates:
            run(rate, options.program)
