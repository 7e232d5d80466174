"""What the peers share: the command line, the timing, and the JSON object that they end with.

`../README.md` says what is measured and lists the keys.
"""

import argparse
import json
import multiprocessing
import os
import platform
import re
import resource
import statistics
import time
from pathlib import Path

BATCH_SIZE = 32
IMAGE_SIZE = 160
LEARNING_RATE = 1e-4

# Enough for a median, few enough for a round to take a minute; one more of each goes before, uncounted.
PASSES = 3
FORWARDS = 10
SINGLES = 50
STEPS = 8
PRODUCTS = 20
PRODUCT_SIZE = 1024

# How far from PyTorch's features in f32 others' may be, as a share of their norm. Those of another network, or of
# pictures prepared in another way, are farther off.
PRECISIONS = {"f32": 1e-3, "bf16": 0.25}


def command_line(description, modes=("pieces", "forward", "tutorial"), precisions=("f32",)):
    """Returns the arguments of a peer's command line."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("mode", choices=modes)
    parser.add_argument("pictures", type=Path, metavar="DIR", help="holds train/ and validation/")
    parser.add_argument("--weights", required=True, metavar="FILE")
    parser.add_argument("--epochs", type=int, default=10, help="of each phase")
    parser.add_argument("--limit", type=int, metavar="N", help="pictures of each split, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=precisions, default="f32")
    return parser


def limited(examples, limit):
    """Keeps the first `limit / 2` of each class of (path, label) pairs sorted by class and path."""
    if limit is None:
        return examples
    return [pair for label in (0, 1) for pair in
            [pair for pair in examples if pair[1] == label][: limit // 2]]


def median_rate(amount, work, repetitions):
    """Returns the median of `amount` per second of `work()`, after one call that is not counted."""
    work()
    rates = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        rates.append(amount / (time.perf_counter() - start))
    return statistics.median(rates)


def check_features(features, expected, precision):
    """Stops the program if features are not PyTorch's."""
    off = float(((features - expected) ** 2).sum() / (expected**2).sum()) ** 0.5
    # Not-a-numbers are no agreement either.
    if features.shape != expected.shape or not off <= PRECISIONS[precision]:
        raise SystemExit(f"the features are {off:.1e} of their norm off PyTorch's")


def gemm_gflops(multiply):
    """Returns the rate of `multiply()`, a product of two square matrices of PRODUCT_SIZE."""
    return median_rate(2e-9 * PRODUCT_SIZE**3, multiply, PRODUCTS)


def cores():
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def worker_memory():
    """Returns the megabytes that live worker processes hold by themselves, as Linux counts them.

    Their resident sizes would count what they share with this process once more each.
    """
    kilobytes = 0
    for process in multiprocessing.active_children():
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
        kilobytes += sum(int(size) for size in re.findall(r"^Private_\w+: +(\d+)", rollup, re.M))
    return kilobytes / 1024


def peak_memory():
    """Returns the peak of this process and what its live workers hold, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 + worker_memory()


def finish(arguments, program, versions, threads, result):
    """Prints the JSON object, as the last line."""
    head = {
        "program": program,
        "mode": arguments.mode,
        "precision": arguments.precision,
        "device": getattr(arguments, "device", "cpu"),
        "versions": {"python": platform.python_version()} | versions,
        "threads": threads,
    }
    print(json.dumps(head | result), flush=True)
