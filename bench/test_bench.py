"""Tests of `bench.py`; `cargo xtask test` runs them."""

import contextlib
import io
import tempfile
import unittest
from pathlib import Path

from bench import command_line, markdown


def pieces(program, decode, forward, gemm):
    return {"versions": {program: "1"}, "threads": 2, "pictures": 2000, "decode": {"threads": decode}, "base_forward": forward, "gemm_gflops": gemm}


def tutorial(program, first, second, seconds, before, after, memory):
    return {"versions": {program: "1"}, "threads": 2, "pictures": 2000, "validation_pictures": 1000, "epochs": 10,
            "phase_1_seconds": first, "phase_2_seconds": second, "seconds": seconds, "phase_1_val_accuracy": before,
            "phase_2_val_accuracy": after, "peak_memory_mb": memory}


def columns():
    ours = [pieces("rustc", decode, {"default": forward}, gemm) for decode, forward, gemm in
            [(900, 400, 160), (1000, 420, 170), (800, 380, 154)]]
    peer = [pieces("torch", 450, {"contiguous": slow, "channels_last": fast}, 161) for slow, fast in [(80, 110), (70, 90)]]
    extra = [pieces("torch", 460, {"contiguous": 150, "channels_last": 250}, 161)]
    ours.append(tutorial("rustc", 9, 70.5, 80.04, 0.974, 0.975, 800.4))
    peer.append(tutorial("torch", 450, 480, 931, 0.963, 0.972, 1290))
    return {"ours": ours, "PyTorch": peer, "PyTorch, kept": extra}


TABLE = """\
# Benchmark

A CPU, 2 cores, 8.0 GB of memory.
Images: pets, 2000 for training, 1000 for validation; 160x160, batches of 32. Pieces: medians of 3 rounds. Tutorial: 10 + 10 epochs, once.

| | ours | PyTorch | PyTorch, kept |
|---|---|---|---|
| decode + format, images/s | 900 | 450 (2.00x) | 460 (1.96x) |
| base forward, images/s | 400 | 100 (4.00x) | 250 (1.60x) |
| matrix product, GFLOP/s | 160 | 161 | 161 |
| base forward, % of that | 76 | 19 | 48 |
| tutorial, phase 1, s | 9.0 | 450.0 (50.00x) |  |
| tutorial, phase 2, s | 70.5 | 480.0 (6.81x) |  |
| tutorial in all, s | 80.0 | 931.0 (11.63x) |  |
| validation accuracy after phase 1 | 0.9740 | 0.9630 |  |
| validation accuracy after phase 2 | 0.9750 | 0.9720 |  |
| tutorial, peak memory, MB | 800 | 1290 (1.61x) |  |

In brackets: how many times as fast, or as small, ours is. Of several ways that a program was run in, the fastest is in the table.
A round is off its median by 11 % at most (ours, decode + format, images/s).

- PyTorch, base forward, images/s: channels_last 100, contiguous 75
- PyTorch, kept, base forward, images/s: channels_last 250, contiguous 150
- ours: rustc 1; 2 threads
- PyTorch: torch 1; 2 threads
"""


class Table(unittest.TestCase):
    maxDiff = None

    def test_it_has_medians_of_the_best_way_and_what_ours_is_to_them(self):
        self.assertEqual(markdown(columns(), "A CPU, 2 cores, 8.0 GB of memory", "pets", 3), TABLE)

    def test_a_single_round_of_pieces_has_no_spread_and_no_tutorial(self):
        text = markdown({title: reports[:1] for title, reports in columns().items()}, "A CPU", "pets", 1)
        self.assertIn("medians of 1 round.", text)
        self.assertNotRegex(text, "off its median|utorial")


class CommandLine(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        (self.folder / "train").mkdir()

    def test_options_and_the_folder_come_in_any_order(self):
        (self.folder / "validation").mkdir()
        options = command_line(["--rounds", "1", str(self.folder), "--limit", "64", "--pieces"])
        found = options.pictures, options.rounds, options.epochs, options.limit, options.pieces, options.all
        self.assertEqual(found, (self.folder, 1, 10, 64, True, False))

    def test_what_is_wrong_is_refused_with_the_reason(self):
        for words, reason in [
            ([str(self.folder), "--round", "1"], "unrecognized arguments: --round 1"),
            ([str(self.folder), "more"], "unrecognized arguments: more"),
            (["--rounds"], "--rounds: expected one argument"),
            (["--epochs", "0"], "--epochs: 0: expected a number from 1 on"),
            (["--limit", "1"], "--limit: 1: expected a number from 2 on"),
            (["--limit", "all"], "--limit: invalid"),
            ([str(self.folder)], "has no folder validation"),
        ]:
            with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
                command_line(words)
            self.assertIn(reason, said.getvalue())


if __name__ == "__main__":
    unittest.main()
