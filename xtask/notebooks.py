"""Runs notebooks without a browser, and reads what they say.

    python notebooks.py run NOTEBOOK FOLDER    saves it in FOLDER, with a web page; prints what each training reached
    python notebooks.py warm-up [fetch]        compiles `support` where the kernel that runs it builds, and has it
                                               fetch the default weights and images

`cargo xtask` starts it in the environment of set-up. Its stdin has to stay open: where it ends, so does the kernel.
"""

import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

SUPPORT = Path(__file__).resolve().parents[1] / "support"
# A cell with this tag prints the same text in every run, whatever the settings.
DETERMINISTIC = "deterministic"
# `63/63 - 9s 150ms/step - loss: 0.16 - accuracy: 0.94 - val_loss: 0.15 - val_accuracy: 0.95`
# Has `support` fetch what the notebooks use by default.
FETCH = """{
    let settings = support::settings::Settings::from_env()?;
    support::assets::Assets::open(&settings.data_dir)?.fetch(support::assets::DEFAULT_WEIGHTS)?;
    support::dataset::ImageDataset::fetch(&settings)?;
}"""
# Seconds without a line after which one says what a cell is at.
SILENCE = 8
EPOCH = re.compile(r"^\s*(\d+)/\1 - .*?(loss: .*\baccuracy: .*)$", re.MULTILINE)


class Failed(Exception):
    """A cell failed, and its outputs have been shown."""


def end_with_stdin():
    """Ends this process in order, its kernel with it, when its stdin ends: whoever started it is gone."""

    def end(signal_number, frame):
        raise SystemExit(128 + signal_number)

    def follow():
        # Past `sys.stdin`, whose lock would be held at the interpreter's end.
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    threading.Thread(target=follow, daemon=True).start()


def first_line(cell):
    """Returns the first line of a cell that is not a comment, to name it by."""
    lines = (line.strip() for line in cell.source.splitlines())
    return next((line for line in lines if line and not line.startswith("//")), "")[:80]


class Client(NotebookClient):
    """Runs a notebook, and knows the last line that a cell has shown."""

    last_line = "starting the kernel"

    def process_message(self, message, cell, cell_index):
        content = message["content"]
        shown = content.get("text") or content.get("data", {}).get("text/plain", "")
        lines = [line.strip() for line in shown.splitlines() if line.strip()]
        self.last_line = lines[-1][:100] if lines else self.last_line
        return super().process_message(message, cell, cell_index)


def execute(notebook, folder, cell_limit=None):
    """Runs a notebook's cells in place, in `folder`, each for `cell_limit` seconds at most. Says how far it is."""
    started, running = time.monotonic(), None
    said, ended = started, threading.Event()

    def say(name, text):
        nonlocal said
        said = time.monotonic()
        print(f"  {name:>4} {said - started:6.1f} s  {text}", flush=True)

    def say_what_takes_long():
        while not ended.wait(0.5):
            if time.monotonic() - said > SILENCE:
                say("", client.last_line)

    def on_cell_execute(cell, cell_index):
        nonlocal started, running
        started, running = time.monotonic(), cell
        client.last_line = first_line(cell)

    def on_cell_executed(cell, cell_index, execute_reply):
        name = f"[{execute_reply['content'].get('execution_count')}]"
        say(name, first_line(cell))
        if execute_reply["content"]["status"] == "error":
            print(f"\ncell {name} failed:\n\n{cell.source}\n")
            for output in cell.outputs:
                if output.output_type in ("stream", "error"):
                    print(output.get("text") or "\n".join(output.traceback), flush=True)

    client = Client(
        notebook, timeout=cell_limit, kernel_name="rust", resources={"metadata": {"path": folder}},
        startup_timeout=600, record_timing=False, coalesce_streams=True,
        on_cell_execute=on_cell_execute, on_cell_executed=on_cell_executed,
    )
    threading.Thread(target=say_what_takes_long, daemon=True).start()
    try:
        client.execute()
    except CellExecutionError as error:
        raise Failed("a cell failed") from error
    except (RuntimeError, TimeoutError) as error:  # the kernel died, or a cell took too long
        cell = f" in this cell:\n{running.source}" if running else ""
        raise Failed(f"{error}{cell}") from error
    finally:
        ended.set()


def write(text, path):
    """Writes a file that appears under its name when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.rename(path)


def save(notebook, path):
    write(nbformat.writes(notebook) + "\n", path)


def scratch(*cells):
    """Returns a notebook of these cells."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata.kernelspec = {"name": "rust", "display_name": "Rust", "language": "rust"}
    return notebook


def dep():
    """Returns the cell that loads `support`."""
    return f':dep support = {{ path = "{SUPPORT}" }}'


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def text(cell):
    """Returns what a cell printed and showed as plain text, however it was cut into outputs. stderr
    is left out: evcxr does not keep it in step with the cells."""
    shown = []
    for output in cell.outputs:
        if output.output_type == "stream" and output.name == "stdout":
            shown.append(output.text)
        elif output.output_type in ("execute_result", "display_data"):
            shown.append(output.data.get("text/plain", ""))
    return "".join(shown)


def epochs(text):
    """Returns what each epoch in a text reached, without the times."""
    return [match[2] for match in EPOCH.finditer(text)]


def training_results(notebook):
    """Returns the accuracies in the last epoch of each cell that trains."""
    last = [reached[-1] for reached in map(epochs, map(text, code(notebook))) if reached]
    names = {"accuracy": "accuracy", "val_accuracy": "validation accuracy"}
    return [", ".join(f"{names[name]} {value}" for name, value in re.findall(r"\b((?:val_)?accuracy): ([\d.]+)", reached))
            for reached in last]


def run(path, folder):
    from nbconvert import HTMLExporter

    start = time.monotonic()
    print(f"\nrunning {path}", flush=True)
    notebook = nbformat.read(path, as_version=4)
    execute(notebook, path.parent)
    executed = folder / path.name
    save(notebook, executed)
    page = executed.with_suffix(".html")
    write(HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": path.stem}})[0], page)
    print()
    for number, result in enumerate(training_results(notebook), 1):
        print(f"training {number:<4} {result}")
    print(f"time          {time.monotonic() - start:.0f} s\nnotebook      {executed}\nweb page      {page}")


def main():
    end_with_stdin()
    load = dep() + '\n"warm"'
    match sys.argv[1:]:
        case ["run", notebook, folder]:
            run(Path(notebook), Path(folder))
        case ["warm-up"]:
            execute(scratch(load), SUPPORT)
        case ["warm-up", "fetch"]:
            execute(scratch(load, FETCH), SUPPORT)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        raise SystemExit(f"error: {error}")
