"""Asks this project's server and others to classify the same pictures, in turn, and makes a table of their figures.

`cargo xtask bench PICTURES --serve` runs this twice: to check what was asked for, by any Python; then in the servers'
environment, with this project's programs. README.md tells what is measured.
"""

import argparse
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from urllib.request import urlopen

from bench import PEERS, at_least, compared, machine, show

# Server: title, path that it is asked at, options that the client asks in its way by.
SERVERS = {
    "ours": [("ours", "/v1/predict", [])],
    "bentoml": [("BentoML", "/predict", ["--field", "image"]), ("BentoML, batched", "/predict_batched", ["--field", "image"])],
    "gradio": [("Gradio", "/gradio_api/call/predict", ["--gradio"])],
}
COLUMNS = [title for columns in SERVERS.values() for title, _, _ in columns]
STEADY = "ours, at half of its most"
CONNECTIONS, STEADY_CONNECTIONS = [1, 8, 64], 16
# Title: key, which way is better, decimals.
ROWS = {"pictures/s": ("pictures_per_second", "more", 0), "p99, ms": ("p99_ms", "less", 1)}
# With fewer, `classify`'s time is its start-up's, and what that varies by.
FEWEST_PICTURES = 100
# How far answers may be apart.
TOLERANCE = 1e-3
# The others tell nobody that they run, and all compute on the CPU.
SETTINGS = {"BENTOML_DO_NOT_TRACK": "1", "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}


def command_line(words):
    parser = argparse.ArgumentParser(prog="cargo xtask bench --serve", allow_abbrev=False,
                                     description="Times this project's server beside BentoML's and Gradio's.")
    parser.add_argument("pictures", metavar="PICTURES", type=Path, help="a folder")
    parser.add_argument("--model", type=Path, metavar="FILE", help="what `model.save` wrote (the one that a notebook saved last)")
    parser.add_argument("--rounds", type=at_least(1), default=3, metavar="N", help="how often each is measured (3)")
    parser.add_argument("--seconds", type=at_least(1), default=10, metavar="N", help="how long it is asked through 1, 8 and 64 "
                        "connections (10)")
    for name in ["libtorch", "output"]:
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ["program", "allocator"]:
        parser.add_argument(f"--{name}", action="append", default=[], type=lambda setting: setting.split("=", 1), help=argparse.SUPPRESS)
    options = parser.parse_args(words)
    if not options.pictures.is_dir():
        parser.error(f"{options.pictures} is not a folder")
    if options.model and not options.model.is_file():
        parser.error(f"--model: {options.model} is not a file")
    options.program, options.allocator = dict(options.program), dict(options.allocator)
    return options


def environment(options, ours):
    """Returns a program's variables; ours has the allocator settings that a notebook's kernel gives."""
    kept = {name: value for name, value in os.environ.items() if name not in options.allocator}
    return kept | SETTINGS | (options.allocator if ours else {})


def run(program, words, options):
    """Runs one of this project's programs to its end, and returns the lines that it prints."""
    words = [options.program[program], *map(str, words)]
    ended = subprocess.run(words, env=environment(options, True), capture_output=True, text=True)
    if ended.returncode:
        raise SystemExit(f"error: {program} ended with {ended.returncode}\n{ended.stderr}")
    return ended.stdout.splitlines()


@contextmanager
def served(server, onnx, options):
    """Runs a server, and gives its address as soon as it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ours = server == "ours"
    words = [options.program["serve"], options.model] if ours else [sys.executable, PEERS / "servers.py", server, onnx]
    with tempfile.TemporaryFile("w+") as log:
        # Of a group of its own, which Ctrl-C does not reach: it is ended below.
        process = subprocess.Popen([*words, "--port", port], env=environment(options, ours), stdin=subprocess.DEVNULL,
                                   stdout=log, stderr=log, process_group=0)
        try:
            address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 120
            while not is_there(address):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise SystemExit(f"error: {server} does not answer\n{log.read()}")
                time.sleep(0.1)
            yield address
        finally:
            # BentoML's ends its workers, which are of other groups, if it is let.
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def is_there(url):
    try:
        with urlopen(url, timeout=10) as answered:
            return answered.status == 200
    except OSError:
        return False


def answer(server, url, picture):
    """Returns the probabilities by class that a server gives a picture, a PNG."""
    import httpx

    if server == "ours":
        return httpx.post(url, content=picture, timeout=60).raise_for_status().json()["predictions"][0]["probabilities"]
    if server == "bentoml":
        found = httpx.post(url, files={"image": ("a.png", picture, "image/png")}, timeout=60).raise_for_status().json()
        return found[0] if isinstance(found, list) else found
    file = {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}", "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(url, json={"data": [file]}, timeout=60).raise_for_status().json()["event_id"]
    label, = json.loads(httpx.get(f"{url}/{event}", timeout=60).text.rpartition("data: ")[2])
    return {entry["label"]: entry["confidence"] for entry in label["confidences"]}


def ensure_same(answers):
    """Refuses answers, by title, that differ from ours."""
    ours = answers["ours"]
    for title, other in answers.items():
        if other.keys() != ours.keys() or any(abs(other[name] - ours[name]) > TOLERANCE for name in ours):
            raise SystemExit(f"error: {title} answers {other} where ours answers {ours}")


def check(onnx, picture, options):
    """Has all servers classify a picture, which is written, and compares their answers."""
    from PIL import Image

    answers = {}
    for server, columns in SERVERS.items():
        with served(server, onnx, options) as address:
            if server == "ours":
                # Nobody has to resize it, which libraries do differently.
                size = json.load(urlopen(f"{address}/v1/model"))["input_size"]
                falling, round_ = Image.linear_gradient("L"), Image.radial_gradient("L")
                Image.merge("RGB", [falling, round_, falling.rotate(90)]).resize([size, size]).save(picture)
            answers |= {title: answer(server, address + path, picture.read_bytes()) for title, path, _ in columns}
    ensure_same(answers)


def ask(url, words, options):
    """Has the client ask a server; returns its report for each number of connections."""
    reports = [json.loads(line) for line in run("load", [url, options.pictures, "--seconds", options.seconds, *words], options)]
    for report in reports:
        if report["statuses"].keys() != {"200"}:
            raise SystemExit(f"error: {url} answers with these statuses, where 200 was expected: {report['statuses']}")
    return reports


def measure(onnx, picture, options):
    """Yields title and report of all that a round measures."""

    def classify(pictures):
        start = time.perf_counter()
        lines = run("classify", ["--json", options.model, pictures], options)
        return len(lines), time.perf_counter() - start

    (one, start_up), (all_, seconds) = classify(picture), classify(options.pictures)
    if all_ < FEWEST_PICTURES:
        raise SystemExit(f"error: {options.pictures} has {all_} images, at least {FEWEST_PICTURES} are needed")
    yield "classify", {"pictures": all_, "pictures_per_second": (all_ - one) / (seconds - start_up), "start_up_seconds": start_up}
    for server, columns in SERVERS.items():
        with served(server, onnx, options) as address:
            for title, path, words in columns:
                reports = ask(address + path, ["--connections", ",".join(map(str, CONNECTIONS)), *words], options)
                yield from ((title, report) for report in reports)
                if server == "ours":
                    rate = round(max(report["pictures_per_second"] for report in reports) / 2)
                    report, = ask(address + path, ["--connections", STEADY_CONNECTIONS, "--rate", rate], options)
                    yield STEADY, report | {"rate": rate}


def markdown(reports, machine, pictures, versions):
    """Returns the table of reports that have their `column` and `round` in them."""

    def found(title, key, connections=None):
        return median(report[key] for report in reports
                      if report["column"] == title and connections in [None, report.get("connections")])

    rounds = max(report["round"] for report in reports)
    classify, rate = found("classify", "pictures_per_second"), found(STEADY, "rate")
    most = [max(found(title, "pictures_per_second", connections) for connections in CONNECTIONS) for title in COLUMNS]
    lines = ["# Benchmark of serving", "", f"{machine}.",
             f"Images: {pictures}, {reports[0]['pictures']}; the client is on the same cores. Medians of {rounds} round{'s' if rounds > 1 else ''}.",
             "", f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for row, (key, better, decimals) in ROWS.items():
        for connections in CONNECTIONS:
            cells = compared([found(title, key, connections) for title in COLUMNS], better, decimals)
            lines.append(f"| {row}, {connections} connection{'s' if connections > 1 else ''} | {' | '.join(cells)} |")
    lines += [f"| the most, % of `classify` | {' | '.join(f'{100 * one / classify:.0f}' for one in most)} |", "",
              f"In brackets: how many times as fast ours is. `classify` does {classify:.0f} pictures/s, its start-up taken off. Ours at half of "
              f"its most, {rate:.0f} pictures/s, through {STEADY_CONNECTIONS} connections: p50 {found(STEADY, 'p50_ms'):.1f} ms, "
              f"p99 {found(STEADY, 'p99_ms'):.1f} ms.", "", "; ".join(f"{name} {number}" for name, number in versions.items())]
    return "\n".join(lines) + "\n"


def main():
    options = command_line(sys.argv[1:])
    if not options.program:
        return
    # However this ends, the servers end first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("error: ended by SIGTERM"))
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    reports = []
    with tempfile.TemporaryDirectory() as folder, open(output / "results.jsonl", "w") as raw:
        onnx, picture = Path(folder, "model.onnx"), Path(folder, "picture.png")
        run("to_onnx", [options.model, onnx], options)
        check(onnx, picture, options)
        for number in range(1, options.rounds + 1):
            for title, report in measure(onnx, picture, options):
                reports.append({"column": title, "round": number} | report)
                print(f"round {number:<7} {title}: {json.dumps(report)}", flush=True)
                print(json.dumps(reports[-1]), file=raw, flush=True)
    versions = {name: version(name) for name in ["bentoml", "gradio", "onnxruntime"]} | {"libtorch": options.libtorch}
    show(markdown(reports, machine(), options.pictures.resolve().name, versions), output)


if __name__ == "__main__":
    main()
