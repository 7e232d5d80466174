"""Runs this project and its peers on the same pictures, in turn, and makes a table of their figures.

Each is a program that measures itself and ends with one JSON object, whose keys are in README.md. A round runs all of
them, so that whatever else the machine does meets all alike. `cargo xtask bench` runs this twice: to check what was
asked for, by any Python; then in the peers' environment, with the options that begin with `--ours`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median

PEERS = Path(__file__).parent / "peers"
# Multiply-adds of MobileNetV2's base on a picture of 160x160, two operations each.
GFLOP_PER_PICTURE = 0.308
# Title: program, whether it gets the allocator settings that a notebook's kernel gives, when its tutorial is run:
# always, with `--all`, or never.
COLUMNS = {
    "ours": ("ours", True, "always"),
    "Keras": ("keras", False, "always"),
    "PyTorch": ("pytorch", False, "always"),
    "PyTorch, our allocator": ("pytorch", True, "all"),
    "PyTorch, compiled, our allocator": ("pytorch_compiled", True, "never"),
    "Keras, our allocator": ("keras", True, "all"),
    "ours, OpenVINO": ("ours_openvino", True, "never"),
    "OpenVINO": ("openvino", False, "never"),
    "ONNX Runtime": ("onnxruntime", False, "never"),
}
PRECISIONS = ["f32", "bf16"]
# ONNX Runtime has no convolution in bf16 on the CPU; Keras' peer is not written for it.
F32_ONLY = ["keras", "onnxruntime"]
# The same of several ranks beside one process: program, allocator settings.
RANKED_COLUMNS = {
    "ours": ("ours", True),
    "PyTorch DDP": ("pytorch_ddp", False),
    "PyTorch DDP, our allocator": ("pytorch_ddp", True),
}
# Title: key, and the one that a program has in its place if it has not that one: ours always starts from stored activations.
RANKED_ROWS = {
    "decode + format": ("decode", None),
    "base forward": ("base_forward", None),
    "fine-tuning step": ("fine_tuning", None),
    "fine-tuning step, from stored activations": ("fine_tuning_from_activations", "fine_tuning"),
}
# The same of `--fine-tune`.
FINE_TUNE_COLUMNS = {
    "ours": ("ours", True, "always"),
    "fastai": ("fastai", False, "always"),
    "fastai, our allocator": ("fastai", True, "all"),
}
BACKBONES = [f"efficientnet_lite{variant}" for variant in range(3)]
# Title: key, which way is better (none: not compared with ours), decimals.
ROWS = {
    "decode + format, images/s": ("decode", "more", 0),
    "base forward, images/s": ("base_forward", "more", 0),
    "one picture's base forward, ms": ("one_picture", "less", 2),
    "fine-tuning step, images/s": ("fine_tuning", "more", 0),
    "matrix product, GFLOP/s": ("gemm_gflops", None, 0),
    "base forward, % of that": ("base_forward_share", None, 0),
    "tutorial, phase 1, s": ("phase_1_seconds", "less", 1),
    "tutorial, phase 2, s": ("phase_2_seconds", "less", 1),
    "tutorial in all, s": ("seconds", "less", 1),
    "validation accuracy after phase 1": ("phase_1_val_accuracy", None, 4),
    "validation accuracy after phase 2": ("phase_2_val_accuracy", None, 4),
    "tutorial, peak memory, MB": ("peak_memory_mb", "less", 0),
}
FINE_TUNE_ROWS = {
    "head, s": ("phase_1_seconds", "less", 1),
    "fine-tuning, s": ("phase_2_seconds", "less", 1),
    "in all, s": ("seconds", "less", 1),
    "validation accuracy after the head": ("phase_1_val_accuracy", None, 4),
    "validation accuracy": ("phase_2_val_accuracy", None, 4),
    "peak memory, MB": ("peak_memory_mb", "less", 0),
}


def at_least(least):
    def number(text):
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected a number from {least} on")
        return int(text)

    return number


def command_line(words):
    parser = argparse.ArgumentParser(prog="cargo xtask bench", allow_abbrev=False,
                                     description="Times the tutorial, or parts of it, beside other programs.",
                                     epilog="With --serve: instead, this project's server beside others; see `cargo xtask bench --serve "
                                     "--help`.")
    parser.add_argument("pictures", nargs="?", metavar="PICTURES", default=os.environ.get("TRANSFER_DATASET"), help="a folder "
                        "with train/ and validation/, two class folders in each (or TRANSFER_DATASET)")
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="how often the pieces are measured, or a "
                        "backbone is fine-tuned (3)")
    parser.add_argument("--epochs", type=at_least(1), metavar="N", help="of each of the tutorial's phases (10), or of a "
                        "backbone's fine-tuning (3)")
    parser.add_argument("--limit", type=at_least(2), metavar="N", help="pictures of each split, at most")
    parser.add_argument("--pieces", action="store_true", help="without the tutorial as a whole")
    parser.add_argument("--precision", choices=PRECISIONS, default="f32", help="what all compute in (f32)")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--forward", action="store_true", help="instead: the base's forward pass only, on a batch and on one "
                         "picture")
    instead.add_argument("--ranks", type=at_least(2), metavar="N", help="instead: the pieces on N processes beside one, and "
                         "PyTorch's DistributedDataParallel")
    instead.add_argument("--fine-tune", choices=BACKBONES, help="instead: this backbone's fine_tune beside fastai's, with "
                         "another seed in each round")
    parser.add_argument("--all", action="store_true", help="the peers' tutorials with this project's allocator settings as well")
    for name in ["ours", "ours-openvino", "libtorch", "output"]:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ["weights", "allocator"]:
        parser.add_argument(f"--{name}", action="append", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not options.pictures:
        parser.error("PICTURES is missing")
    if options.precision != "f32" and (options.ranks or options.fine_tune):
        parser.error("--precision: --ranks and --fine-tune compare in f32 only")
    for split in ["train", "validation"]:
        if not Path(options.pictures, split).is_dir():
            parser.error(f"{options.pictures} has no folder {split}: train/ and validation/ are needed, two class folders in each")
    options.pictures = Path(options.pictures).absolute()
    options.epochs = options.epochs or (3 if options.fine_tune else 10)
    for name in ["weights", "allocator"]:
        setattr(options, name, dict(setting.split("=", 1) for setting in getattr(options, name)))
    return options


def measure(title, program, our_allocator, mode, options, ranks=None, seed=0):
    """Runs one program and returns its figures; its other lines are shown. With `ranks`, that many processes share the
    cores."""
    script, weights, *extra = {
        "ours": (None, None),
        "ours_openvino": (None, None),
        "keras": ("keras_tutorial.py", "mobilenet_v2_tfhub"),
        "pytorch": ("pytorch_tutorial.py", "mobilenet_v2_torchvision"),
        "pytorch_compiled": ("pytorch_tutorial.py", "mobilenet_v2_torchvision", "--compile", "default"),
        "pytorch_ddp": ("pytorch_ddp.py", "mobilenet_v2_torchvision"),
        "openvino": ("engines.py", "mobilenet_v2_torchvision", "--engine", "openvino"),
        "onnxruntime": ("engines.py", "mobilenet_v2_torchvision", "--engine", "onnxruntime"),
        "fastai": ("fastai_tutorial.py", options.fine_tune),
    }[program]
    words = [sys.executable, PEERS / script, "--weights", options.weights[weights]] if script else [getattr(options, program)]
    words += [mode, options.pictures, "--epochs", str(options.epochs), "--seed", str(seed)]
    # Ours takes its precision from the environment.
    words += [*extra, "--precision", options.precision] if script else []
    words += ["--backbone", options.fine_tune] if options.fine_tune else []
    words += ["--limit", str(options.limit)] if options.limit else []
    environment = {name: value for name, value in os.environ.items() if name not in options.allocator}
    environment |= {"TRANSFER_DEVICE": "cpu", "TRANSFER_PRECISION": options.precision} | (options.allocator if our_allocator else {})
    if program == "ours_openvino":
        environment["TRANSFER_OPENVINO"] = str(next(Path(find_spec("openvino").origin).parent.glob("libs/libopenvino_c.*")))
    if ranks:
        environment["OMP_NUM_THREADS"] = str(max(cores() // ranks, 1))
    if ranks and ranks > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--no-python"]
        words = [*torchrun, f"--nproc-per-node={ranks}", *words]
    figures = None
    with tempfile.TemporaryFile("w+") as errors:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": errors}
        with subprocess.Popen(words, env=environment, text=True, **pipes) as process:
            for line in process.stdout:
                if line.startswith("{"):
                    figures = json.loads(line)
                else:
                    print(f"  {line}", end="", flush=True)
        if process.returncode or figures is None:
            errors.seek(0)
            raise SystemExit(f"error: {title} ended with {process.returncode}, figures: {figures}\n{errors.read()}")
    if (found := figures.get("precision", "f32")) != options.precision:
        raise SystemExit(f"error: {title} computed in {found}, not in {options.precision}")
    if not script:
        rustc = subprocess.run(["rustc", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
        figures["versions"] |= {"libtorch": options.libtorch, "rustc": rustc}
    return figures


def values(reports, key):
    """Returns a row's values in all reports, by the way in which it was done (memory layout, say), the best first."""
    found = {}
    for report in reports:
        value = report.get("base_forward" if key == "base_forward_share" else key)
        for way, value in (value if isinstance(value, dict) else {"": value}).items():
            if key == "base_forward_share" and value is not None:
                gemm = report.get("gemm_gflops")
                value = gemm and 100 * value * GFLOP_PER_PICTURE / gemm
            if value is not None:
                found.setdefault(way, []).append(value)
    less = any(better == "less" for row, better, _ in ROWS.values() if row == key)
    return dict(sorted(found.items(), key=lambda item: median(item[1]), reverse=not less))


def listed(found, decimals):
    return ", ".join(f"{way} {median(all):.{decimals}f}" for way, all in found.items())


def best(reports, key):
    return next((median(found) for found in values(reports, key).values()), None)


def compared(reached, better, decimals):
    """Returns a row's cells, with how many times as good the first is as each other one."""
    cells = [f"{value:.{decimals}f}" if value is not None else "" for value in reached]
    for number, value in enumerate(reached):
        if better and number and value is not None and reached[0] is not None:
            ratio = reached[0] / value if better == "more" else value / reached[0]
            cells[number] += f" ({ratio:.2f}x)"
    return cells


def markdown(columns, machine, pictures, rounds, precision):
    """Returns the table, what was measured on what, and what a table has no room for. `columns` has the reports by
    title, this project's first: the others are compared with it."""
    reports = [report for all in columns.values() for report in all]
    trained, held_out, epochs = ([report[key] for report in reports if key in report]
                                 for key in ["pictures", "validation_pictures", "epochs"])
    subject = f"Images: {pictures}" + (f", {max(trained)} for training" if trained else "")
    subject += f", {held_out[0]} for validation" if held_out else ""
    subject += f"; 160x160, batches of 32, {precision}. Pieces: medians of {rounds} round{'s' if rounds > 1 else ''}."
    subject += f" Tutorial: {epochs[0]} + {epochs[0]} epochs, once." if epochs else ""
    lines = ["# Benchmark", "", f"{machine}.", subject, "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]

    spread, ways = [], []
    for row, (key, better, decimals) in ROWS.items():
        reached = [best(reports, key) for reports in columns.values()]
        if all(value is None for value in reached):
            continue
        lines.append(f"| {row} | {' | '.join(compared(reached, better, decimals))} |")
        for title, reports in columns.items() if better else ():
            found = values(reports, key)
            spread += [(max(abs(value / median(all) - 1) for value in all), title, row) for all in found.values() if len(all) > 1]
            if len(found) > 1:
                ways.append(f"- {title}, {row}: {listed(found, decimals)}")
    for title, reports in columns.items():
        if seconds := values(reports, "compile_seconds"):
            ways.append(f"- {title}, first call, which compiles, s: {listed(seconds, 0)}")
    lines += ["", "In brackets: how many times as fast, or as small, ours is. Of several ways that a program was run in, the "
              "fastest is in the table."]
    if spread:
        off, title, row = max(spread, key=lambda item: item[0])
        lines.append(f"A round is off its median by {100 * off:.0f} % at most ({title}, {row}).")
    lines += ["", *ways]
    return "\n".join(lines + versions(columns)) + "\n"


def versions(columns):
    """Returns a line for each program with what it ran on."""
    told, lines = [], []
    for title, (report, *_) in columns.items():
        if report["versions"] not in told:
            told.append(report["versions"])
            names = ", ".join(f"{name} {version}" for name, version in sorted(report["versions"].items()))
            lines.append(f"- {title}: {names}; {report['threads']} threads")
    return lines


def fine_tune_markdown(columns, machine, pictures, backbone):
    """Returns the table of a backbone's fine-tuning; `columns` has a report for each seed by title."""
    first, *_ = columns["ours"]
    seeds = len(columns["ours"])
    lines = ["# Benchmark of fine-tuning", "", f"{machine}.",
             f"Images: {pictures}, {first['pictures']} for training, {first['validation_pictures']} for validation. {backbone}: an epoch "
             f"of the head, {first['epochs']} of fine-tuning, with {seeds} seed{'s' if seeds > 1 else ''}.", "",
             f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for row, (key, better, decimals) in FINE_TUNE_ROWS.items():
        reached = [[report[key] for report in reports] for reports in columns.values()]
        cells = compared([median(values) for values in reached], better, decimals) if better else [
            f"{mean(values):.{decimals}f} ({min(values):.{decimals}f} to {max(values):.{decimals}f})" for values in reached]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    lines += ["", "Times and memory: medians; in brackets: how many times as fast, or as small, ours is. Accuracy: the seeds' mean, and "
              "from the lowest to the highest.", ""]
    return "\n".join(lines + versions(columns)) + "\n"


def ranked_markdown(columns, machine, pictures, rounds, ranks):
    """Returns the table of one process beside several ranks. `columns` has the reports by title and number of ranks."""
    threads = {number: reports["ours"][0]["threads"] for number, reports in columns.items()}
    named = {number: f"{number} {'process' if number == 1 else 'ranks'} of {count} thread{'s' if count > 1 else ''}"
             for number, count in threads.items()}
    lines = ["# Benchmark of several ranks", "", f"{machine}.",
             f"Images: {pictures}, {columns[1]['ours'][0]['pictures']}; 160x160, batches of 32 in all. Images/s, medians of "
             f"{rounds} round{'s' if rounds > 1 else ''}.", "", f"| | {' | '.join(RANKED_COLUMNS)} |", "|---" * (len(RANKED_COLUMNS) + 1) + "|"]
    for row, (key, other) in RANKED_ROWS.items():
        rates = {number: [best(reports[title], key) or best(reports[title], other) for title in RANKED_COLUMNS]
                 for number, reports in columns.items()}
        for number, found in rates.items():
            cells = [f"{rate:.0f}" + (f" ({found[0] / rate:.2f}x)" if place else "") for place, rate in enumerate(found)]
            lines.append(f"| {row}, {named[number]} | {' | '.join(cells)} |")
        shares = [f"{100 * several / one:.0f} %" for one, several in zip(rates[1], rates[ranks])]
        lines.append(f"| the ranks' share of the one process | {' | '.join(shares)} |")
    lines += ["", "In brackets: how many times as fast ours is."]
    return "\n".join(lines) + "\n"


def cores():
    return len(os.sched_getaffinity(0))


def machine():
    """Returns processor, cores and memory, as far as Linux tells."""

    def field(file, name):
        lines = Path(file).read_text().splitlines() if Path(file).exists() else []
        return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), None)

    parts = [field("/proc/cpuinfo", "model name") or platform.machine(), f"{cores()} cores"]
    if memory := field("/proc/meminfo", "MemTotal"):
        parts.append(f"{int(memory.split()[0]) * 1024 / 1e9:.1f} GB of memory")
    return ", ".join(parts)


def run(runs, options, output):
    """Yields the title, the number of ranks and the figures of each of `runs`, (round, mode, title, program, allocator,
    ranks), as it ends."""
    with open(output / "results.jsonl", "w") as raw:
        for number, mode, title, program, our_allocator, ranks in runs:
            on = f" on {ranks} ranks" if ranks else ""
            print(f"round {number:<7} {mode}: {title}{on} ...", flush=True)
            start = time.perf_counter()
            figures = measure(title, program, our_allocator, mode, options, ranks, number - 1)
            print(f"round {number:<7} done in {time.perf_counter() - start:.1f} s", flush=True)
            print(json.dumps({"column": title, "round": number} | ({"ranks": ranks} if ranks else {}) | figures), file=raw, flush=True)
            yield title, ranks, figures


def show(table, output):
    (output / "results.md").write_text(table)
    print(f"\n{table}\ntable         {output / 'results.md'}\nfigures       {output / 'results.jsonl'}")


def main():
    options = command_line(sys.argv[1:])
    if not options.ours:
        return
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    rounds = range(1, options.rounds + 1)
    name = options.pictures.name
    asked = {"always": True, "all": options.all, "never": False}
    if options.ranks:
        columns = {ranks: {title: [] for title in RANKED_COLUMNS} for ranks in [1, options.ranks]}
        runs = [(number, "pieces", title, *column, ranks) for number in rounds
                for title, column in RANKED_COLUMNS.items() for ranks in columns]
        for title, ranks, figures in run(runs, options, output):
            columns[ranks][title].append(figures)
        table = ranked_markdown(columns, machine(), name, options.rounds, options.ranks)
    elif options.fine_tune:
        taken = {title: column[:2] for title, column in FINE_TUNE_COLUMNS.items() if asked[column[2]]}
        columns = {title: [] for title in taken}
        runs = [(number, "fine_tune", title, *column, None) for number in rounds for title, column in taken.items()]
        for title, _, figures in run(runs, options, output):
            columns[title].append(figures)
        table = fine_tune_markdown(columns, machine(), name, options.fine_tune)
    else:
        left_out = ([] if options.precision == "f32" else F32_ONLY) + ([] if options.ours_openvino else ["ours_openvino"])
        taken = {title: column for title, column in COLUMNS.items() if column[0] not in left_out}
        columns = {title: [] for title in taken}
        mode = "forward" if options.forward else "pieces"
        runs = [(number, mode, title, *column[:2], None) for number in rounds for title, column in taken.items()]
        if not options.pieces and not options.forward:
            runs += [(1, "tutorial", title, program, our_allocator, None)
                     for title, (program, our_allocator, when) in taken.items() if asked[when]]
        for title, _, figures in run(runs, options, output):
            columns[title].append(figures)
        table = markdown(columns, machine(), name, options.rounds, options.precision)
    show(table, output)


if __name__ == "__main__":
    main()
