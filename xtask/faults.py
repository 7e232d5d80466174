"""Checks that processes which train together end as if undisturbed, whichever of them is killed and when.

    python faults.py PROGRAM [RUNS [SEED]]    kills a rank in each of RUNS runs, ten by default, at random moments

PROGRAM is the tutorial as a program. `checks.py` does the same at a few chosen moments.
"""

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

RANKS = 2
SIDE = 32
# Says in a process' environment that it belongs to a run, and to which.
MARK = "TRANSFER_CHECKPOINTS"
SETTINGS = {"TRANSFER_LIMIT": "all", "TRANSFER_EPOCHS": "2", "TRANSFER_BATCH": "8", "TRANSFER_DEVICE": "cpu", "TRANSFER_TIMEOUT": "300"}
# Where rank 0 is when it prints a line like these: the last is where the other rank waits for it.
MOMENTS = [(0, r"Epoch 2/2"), (1, r"Epoch 4/4"), (0, r"saved .*/highest_loss.png")]


def write_pictures(folder):
    """Writes 40 pictures of two classes, of noise."""
    size = 3 * SIDE * SIDE
    header = struct.pack("<2sIIIIiiHHIIiiII", b"BM", 54 + size, 0, 54, 40, SIDE, SIDE, 1, 24, 0, size, 0, 0, 0, 0)
    for number in range(40):
        path = folder / ["cats", "dogs"][number % 2] / f"{number}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(header + random.Random(number).randbytes(size))


def kill(pids):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class Run:
    """The program in `RANKS` processes, under torchrun, which may start them three times again."""

    def __init__(self, program, pictures, folder):
        self.folder, self.said = folder, []
        torchrun = [Path(sys.executable).with_name("torchrun"), "--standalone", "--nproc-per-node", RANKS, "--max-restarts", 3]
        words = [*torchrun, "--no-python", program, folder / "output"]
        # Where temporary files would be left.
        (folder / "tmp").mkdir(parents=True)
        own = {"TRANSFER_DATASET": pictures, MARK: folder / "checkpoints", "TMPDIR": folder / "tmp"}
        variables = os.environ | SETTINGS | {name: str(path) for name, path in own.items()}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen(list(map(str, words)), env=variables, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        kill(self.processes())
        self.process.wait()
        self.process.stdout.close()

    def processes(self, **variables):
        """Returns the processes of this run which have these environment variables."""
        wanted = {f"{name}={value}".encode() for name, value in ({MARK: self.folder / "checkpoints"} | variables).items()}
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if wanted <= set((process / "environ").read_bytes().split(b"\0")):
                    found.append(int(process.name))
            except OSError:  # it has ended, or is another user's
                pass
        return found

    def lines(self):
        for line in self.process.stdout:
            self.said.append(line)
            yield line

    def reach(self, pattern):
        assert any(re.search(pattern, line) for line in self.lines()), f"`{pattern}` was not printed:\n{''.join(self.said)}"

    def kill(self, rank):
        """Kills a rank, once it is there."""
        while not (found := self.processes(RANK=rank)) and self.process.poll() is None:
            pass
        kill(found)

    def end(self):
        """Waits for the end, and returns the files that are left: of each, what is equal in equal runs."""
        for _ in self.lines():
            pass
        said = "".join(self.said)
        assert self.process.wait() == 0, said
        assert not self.processes(), f"still running: {self.processes()}\n{said}"
        # torchrun leaves empty folders for logs.
        return {str(path.relative_to(self.folder)): contents(path) for path in self.folder.rglob("*") if path.is_file()}


def contents(path):
    """Returns a file's bytes; of a safetensors file the tensors, and the metadata without times."""
    if path.suffix != ".safetensors":
        # The curves are the history; who held a lock does not matter.
        return path.read_bytes() if path.suffix == ".png" else b""
    data = path.read_bytes()
    size = struct.unpack_from("<Q", data)[0]
    header = re.sub(r'(seconds\\*":)[\d.e-]+', r"\1", data[8 : 8 + size].decode())
    return json.loads(header), data[8 + size :]


def check_equal(run, expected):
    found = run.end()
    assert found.keys() == expected.keys(), f"other files: {found.keys() ^ expected.keys()}"
    other = [name for name in expected if found[name] != expected[name]]
    assert not other, f"{other} differ from those of an undisturbed run:\n{''.join(run.said)}"


def undisturbed(program, pictures, folder):
    """Returns what such a run leaves, and the seconds from its start to each of its lines."""
    with Run(program, pictures, folder) as run:
        start = time.monotonic()
        times = [time.monotonic() - start for _ in run.lines()]
        left = run.end()
        printed = sum("Epoch 4/4" in line for line in run.said)
        assert printed == 1, f"{printed} ranks print, and not rank 0 alone"
        return left, times


def killed_ranks_change_nothing(program):
    """Kills three in one run."""
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_pictures(folder / "pictures")
        expected, _ = undisturbed(program, folder / "pictures", folder / "undisturbed")
        # What another run has left is not gone on from.
        other = folder / "disturbed/checkpoints/fine_tuning/epoch-0004.safetensors"
        other.parent.mkdir(parents=True)
        other.write_text("of another run")
        with Run(program, folder / "pictures", folder / "disturbed") as run:
            for rank, moment in MOMENTS:
                run.reach(moment)
                run.kill(rank)
            check_equal(run, expected)


def kill_at_random(program, runs, seed):
    chance = random.Random(seed)
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        write_pictures(folder / "pictures")
        expected, times = undisturbed(program, folder / "pictures", folder / "undisturbed")
        print(f"undisturbed: {times[-1]:.1f} s", flush=True)
        for number in range(runs):
            rank, moment = chance.randrange(RANKS), chance.uniform(times[0], times[-1])
            line = max(at for at, time in enumerate(times) if time <= moment)
            with Run(program, folder / "pictures", folder / str(number)) as run:
                start = time.monotonic()
                for _, last in zip(range(line + 1), run.lines()):
                    pass
                time.sleep(moment - times[line])
                run.kill(rank)
                check_equal(run, expected)
                print(f"rank {rank} killed {moment - times[line]:.2f} s after {last.strip()!r}: equal after {time.monotonic() - start:.1f} s", flush=True)


def main():
    program, runs, seed = (*sys.argv[1:], *["10", "0"][len(sys.argv) - 2 :])
    kill_at_random(Path(program).resolve(), int(runs), int(seed))


if __name__ == "__main__":
    main()
