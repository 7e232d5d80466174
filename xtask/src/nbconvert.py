# Given to `jupyter nbconvert --execute --config` by xtask: says how far the notebook is, and shows
# the outputs of a cell that fails, which nbconvert itself does not for a compile error.
import os
import signal
import threading
import time

c = get_config()  # noqa: F821
started = 0.0


def end(signal_number, frame):
    # nbconvert ends its kernel on the way out, but not where the signal kills it.
    raise SystemExit(128 + signal_number)


def follow():
    # xtask holds the other end: where it is killed, nbconvert would be left behind.
    # Past `sys.stdin`, whose lock would be held at the interpreter's end.
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


signal.signal(signal.SIGTERM, end)
threading.Thread(target=follow, daemon=True).start()


def execute(cell, cell_index):
    global started
    started = time.monotonic()


def executed(cell, cell_index, execute_reply):
    content = execute_reply["content"]
    name = f"[{content.get('execution_count')}]"
    code = [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("//")]
    first = code[0].strip()[:80] if code else ""
    print(f"  {name:>4} {time.monotonic() - started:6.1f} s  {first}", flush=True)
    if content["status"] == "error":
        print(f"\ncell {name} failed:\n\n{cell.source}\n", flush=True)
        for output in cell.outputs:
            if output.output_type == "stream":
                print(output.text, end="", flush=True)
            elif output.output_type == "error":
                print("\n".join(output.traceback), flush=True)


c.ExecutePreprocessor.on_cell_execute = execute
c.ExecutePreprocessor.on_cell_executed = executed
# evcxr sends each line by itself.
c.NotebookExporter.preprocessors = ["nbconvert.preprocessors.CoalesceStreamsPreprocessor"]
c.ExecutePreprocessor.record_timing = False
# The first `:dep` may have to compile.
c.ExecutePreprocessor.startup_timeout = 600
