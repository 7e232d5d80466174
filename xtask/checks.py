"""Checks of the kernel and the notebooks, as a user's own CI would meet them.

    python checks.py PROGRAM FOLDER    PROGRAM is the tutorial as a program, FOLDER takes what is written

`cargo xtask test` runs it, in the environment of set-up.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_output

from faults import killed_ranks_change_nothing
from notebooks import DETERMINISTIC, Failed, code, dep, end_with_stdin, epochs, execute, first_line, save, scratch, text, training_results

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"
# Of a run that checks the notebook and not the network.
SMALL = {"TRANSFER_LIMIT": "200", "TRANSFER_EPOCHS": "2"}
# Seconds that a cell of a small run may take before it counts as hung.
CELL_LIMIT = 900


def complaints(notebook):
    """Returns what is wrong with saved outputs that claim to be of a run from top to bottom."""
    found, last = [], None
    for cell in code(notebook):
        count, line = cell.execution_count, first_line(cell)
        if count is None:
            found.append(f"was not run: {line}")
        elif last is None and count != 1:
            found.append(f"the first cell is numbered {count}: {line}")
        elif last is not None and count != last + 1:
            found.append(f"was run out of order ([{count}] follows [{last}]): {line}")
        last = count or last
        found += [f"failed with {output.evalue}: {line}" for output in cell.outputs if output.output_type == "error"]
    return found


def deterministic(notebook):
    return [cell for cell in code(notebook) if DETERMINISTIC in cell.metadata.get("tags", [])]


def differences(saved, fresh):
    """Returns how the deterministic cells of a notebook differ from those of a fresh run."""
    pairs = zip(deterministic(saved), deterministic(fresh), strict=True)
    return [f"{first_line(a)}\n  saved: {text(a)}\n  fresh: {text(b)}" for a, b in pairs if text(a) != text(b)]


def cell(source, count, *outputs, tags=()):
    return new_code_cell(source, execution_count=count, outputs=list(outputs), metadata={"tags": list(tags)})


def printed(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def notebook(*cells):
    return nbformat.v4.new_notebook(cells=list(cells))


def saved_outputs_are_judged():
    good = notebook(nbformat.v4.new_markdown_cell("# Title"), cell("a", 1), cell(" \n", None), cell("b", 2))
    assert complaints(good) == []
    failed = cell("c", 8, new_output("error", ename="Error", evalue="mismatched types"))
    assert complaints(notebook(cell("// why\na", 5), cell("b", None), failed)) == [
        "the first cell is numbered 5: a",
        "was not run: b",
        "was run out of order ([8] follows [5]): c",
        "failed with mismatched types: c",
    ]


def deterministic_outputs_are_compared_however_they_are_cut():
    shown = new_output("execute_result", data={"text/plain": "[2,\n 3]", "image/png": "AAAA"})
    saved = notebook(cell("x", 1, printed("a\nb\n"), shown, tags=[DETERMINISTIC]), cell("time", 2, printed("3 s")))
    cut = [printed("a\n"), printed("noise", "stderr"), printed("b\n"), shown]
    assert differences(saved, notebook(cell("x", 1, *cut, tags=[DETERMINISTIC]), cell("time", 2, printed("4 s")))) == []
    other = notebook(cell("x", 1, printed("154"), tags=[DETERMINISTIC]))
    assert differences(saved, other) == ["x\n  saved: a\nb\n[2,\n 3]\n  fresh: 154"]


def trainings_are_reported_by_their_last_epoch_without_times():
    log = ("Epoch 1/2\n63/63 - 9s 150ms/step - 213 img/s - loss: 0.4 - accuracy: 0.8001 - val_loss: 0.3 - val_accuracy: 0.8525\n"
           "Epoch 2/2\n63/63 - 9s 150ms/step - loss: 0.1634 - accuracy: 0.9420 - val_loss: 0.152 - val_accuracy: 0.9530\n")
    cells = [cell("fit", 1, printed(log)), cell("none", 2, printed("1/2\n12/63 - loss: 1 - accuracy: 3\ninitial loss: 2 - accuracy: .5\n")),
             cell("fit", 3, printed("7/7 - 1s - loss: 0.1 - accuracy: 0.9700\n"))]
    assert training_results(notebook(*cells)) == ["accuracy 0.9420, validation accuracy 0.9530", "accuracy 0.9700"]
    assert epochs(log)[1] == "loss: 0.1634 - accuracy: 0.9420 - val_loss: 0.152 - val_accuracy: 0.9530"


def the_chinese_notebooks_have_the_same_code():
    twins = sorted(NOTEBOOKS.glob("*.zh.ipynb"))
    assert twins
    for twin in twins:
        shapes = []
        for path in [twin.with_name(twin.name.replace(".zh.", ".")), twin]:
            cells = nbformat.read(path, as_version=4).cells
            shapes.append([cell.source if cell.cell_type == "code" else cell.cell_type for cell in cells])
        for number, (english, chinese) in enumerate(zip(*shapes, strict=True)):
            assert english == chinese, f"{twin.name}, cell {number}:\n{english}\n{chinese}"


def nbconvert(folder, name, *cells):
    """Starts what a user's CI would run, waiting for nothing; returns it and where the executed notebook will be."""
    path, executed = folder / f"{name}.ipynb", folder / f"{name}.executed.ipynb"
    save(scratch(*cells), path)
    words = ["jupyter", "nbconvert", "--to", "notebook", "--execute", "--output", executed, path]
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), executed


def failures_are_honest(folder):
    """nbconvert fails, names the cell and shows the reason, for each way in which a cell can fail; else it succeeds."""
    cases = [
        ("succeeds", "assert_eq!(before, 1);", None),
        ("compile_error", "let wrong: u32 = before.missing();", ""),
        ("panic", 'assert_eq!(before, 2, "the cell panics");', "the cell panics"),
        ("err", 'let number: i32 = "a word".parse::<i32>()?;', "invalid digit found in string"),
    ]
    for name, failing, reason in cases:
        process, executed = nbconvert(folder, name, "let before = 1;", failing, 'println!("went on");')
        said, _ = process.communicate()
        if reason is None:
            assert process.returncode == 0, said
        else:
            assert process.returncode != 0 and not executed.exists(), f"`{failing}` failed and nbconvert reported success"
            assert failing in said and reason in said, said


def script(*words):
    return [sys.executable, str(Path(__file__).with_name("notebooks.py")), *map(str, words)]


def our_runs_are_honest_as_well(folder):
    source, output = folder / "broken.ipynb", folder / "broken"
    save(scratch("let before = 1;", 'assert_eq!(before, 2, "the cell panics");', 'println!("went on");'), source)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(script("run", source, output), text=True, **pipes) as process:
        said = process.stdout.read()
    assert process.returncode == 1 and not output.exists(), said
    for part in ["cell [2] failed", "assert_eq!(before, 2", "the cell panics"]:
        assert part in said, said
    assert "went on" not in said.split("the cell panics", 1)[1] and "Traceback" not in said, said


def a_cell_past_its_limit_fails_by_name(folder):
    try:
        execute(scratch("let before = 1;", "loop { std::thread::sleep(std::time::Duration::from_secs(1)); }"), folder, 15)
    except Failed as error:
        assert "15 seconds" in str(error) and "loop {" in str(error), error
    else:
        raise AssertionError("an endless cell ended")


def two_notebooks_at_once_do_not_disturb_each_other(folder):
    where = 'println!("folder {}", std::env::var("EVCXR_TMPDIR").unwrap());'
    running = {name: nbconvert(folder, name, dep(), f'println!("{name}");', where) for name in ["one", "two"]}
    folders = set()
    for name, (process, executed) in running.items():
        said, _ = process.communicate()
        assert process.returncode == 0, said
        _, first, second = map(text, code(nbformat.read(executed, as_version=4)))
        assert first == f"{name}\n", f"notebook {name} ran another's cell: {first}"
        folders.add(second)
    assert len(folders) == 2, f"two kernels share a build folder: {folders}"


def wait_until(condition, limit=60):
    end = time.monotonic() + limit
    while not (met := condition()) and time.monotonic() < end:
        time.sleep(0.1)
    return met


def nothing_outlives_a_run_whose_starter_is_killed(folder):
    mark, notebook = folder / "endless.mark", folder / "endless.ipynb"
    endless = f'std::fs::write("{mark}", std::process::id().to_string())?;\nloop {{ std::thread::sleep(std::time::Duration::from_secs(1)); }}'
    save(scratch(endless), notebook)
    # A starter holds the run's stdin, as xtask does.
    starter = "import subprocess, sys; subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE).wait()"
    process = subprocess.Popen([sys.executable, "-c", starter, *script("run", notebook, folder)])
    try:
        cells = Path("/proc", wait_until(lambda: mark.exists() and mark.read_text()) or "no mark")
        assert cells.exists(), "the endless cell did not start"
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: not cells.exists()), f"the process of the cells, {cells}, is still there"


def each_notebook_runs_and_its_saved_outputs_are_those_of_an_honest_run(folder, program):
    # Not where a user's are.
    settings = {"TRANSFER_CHECKPOINTS": str(folder / "checkpoints")} | SMALL
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        print(f"\nrunning {path} on few pictures", flush=True)
        saved = nbformat.read(path, as_version=4)
        assert not complaints(saved), "\n".join([f"the saved outputs of {path} are not those of a full run:", *complaints(saved)])
        fresh = nbformat.read(path, as_version=4)
        execute(fresh, path.parent, CELL_LIMIT)
        save(fresh, folder / path.name)
        assert not differences(saved, fresh), "\n".join([f"the saved outputs of {path} are not what it prints:", *differences(saved, fresh)])
        print(f"  {len(deterministic(saved))} deterministic outputs are as saved", flush=True)
        if path.name == "transfer_learning.ipynb":
            the_program_trains_as_the_notebook_does(folder, program, fresh)


def the_program_trains_as_the_notebook_does(folder, program, notebook):
    """To the last digit that is printed."""
    done = subprocess.run([program, folder / "program"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=True)
    reached = [epoch for cell in code(notebook) for epoch in epochs(text(cell))]
    assert reached and epochs(done.stdout) == reached, f"{epochs(done.stdout)}\n{reached}"
    print(f"  {len(reached)} epochs of the program are the notebook's", flush=True)


def check(check, *arguments):
    start = time.monotonic()
    check(*arguments)
    print(f"  {check.__name__}: {time.monotonic() - start:.1f} s", flush=True)


def main():
    program, folder = map(Path, sys.argv[1:])
    end_with_stdin()
    check(saved_outputs_are_judged)
    check(deterministic_outputs_are_compared_however_they_are_cut)
    check(trainings_are_reported_by_their_last_epoch_without_times)
    check(the_chinese_notebooks_have_the_same_code)
    with tempfile.TemporaryDirectory() as scratch_folder:
        check(failures_are_honest, Path(scratch_folder))
        check(our_runs_are_honest_as_well, Path(scratch_folder))
        check(a_cell_past_its_limit_fails_by_name, Path(scratch_folder))
        check(nothing_outlives_a_run_whose_starter_is_killed, Path(scratch_folder))
        check(two_notebooks_at_once_do_not_disturb_each_other, Path(scratch_folder))
    check(killed_ranks_change_nothing, program)
    check(each_notebook_runs_and_its_saved_outputs_are_those_of_an_honest_run, folder / "small", program)


main()
