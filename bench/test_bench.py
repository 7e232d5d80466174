"""Tests of `bench.py`, `scaling.py` and `serving.py`; `cargo xtask test` runs them."""

import argparse
import contextlib
import io
import tempfile
import unittest
from pathlib import Path

import scaling
import serving
from bench import command_line, fine_tune_markdown, markdown, measure, ranked_markdown


def pieces(program, decode, forward, gemm):
    return {"versions": {program: "1"}, "threads": 2, "pictures": 2000, "decode": {"threads": decode}, "base_forward": forward, "gemm_gflops": gemm}


def tutorial(program, first, second, seconds, before, after, memory):
    return {"versions": {program: "1"}, "threads": 2, "pictures": 2000, "validation_pictures": 1000, "epochs": 10,
            "phase_1_seconds": first, "phase_2_seconds": second, "seconds": seconds, "phase_1_val_accuracy": before,
            "phase_2_val_accuracy": after, "peak_memory_mb": memory}


def columns():
    ours = [pieces("rustc", decode, {"default": forward}, gemm) for decode, forward, gemm in
            [(900, 400, 160), (1000, 420, 170), (800, 380, 154)]]
    ours = [report | {"one_picture": {"default": 1.5}} for report in ours]
    peer = [pieces("torch", 450, {"contiguous": slow, "channels_last": fast}, 161) for slow, fast in [(80, 110), (70, 90)]]
    extra = [pieces("torch", 460, {"contiguous": 150, "channels_last": 250}, 161)]
    ours.append(tutorial("rustc", 9, 70.5, 80.04, 0.974, 0.975, 800.4))
    peer.append(tutorial("torch", 450, 480, 931, 0.963, 0.972, 1290))
    engine = [{"versions": {"engine": "1"}, "threads": 2, "base_forward": {"at once": 500}, "one_picture": {"at once": 1.2, "kept": 1},
               "compile_seconds": {"base forward": 4.4, "one picture": 3}}]
    return {"ours": ours, "PyTorch": peer, "PyTorch, kept": extra, "engine": engine}


TABLE = """\
# Benchmark

A CPU, 2 cores, 8.0 GB of memory.
Images: pets, 2000 for training, 1000 for validation; 160x160, batches of 32, bf16. Pieces: medians of 3 rounds. Tutorial: 10 + 10 epochs, once.

| | ours | PyTorch | PyTorch, kept | engine |
|---|---|---|---|---|
| decode + format, images/s | 900 | 450 (2.00x) | 460 (1.96x) |  |
| base forward, images/s | 400 | 100 (4.00x) | 250 (1.60x) | 500 (0.80x) |
| one picture's base forward, ms | 1.50 |  |  | 1.00 (0.67x) |
| matrix product, GFLOP/s | 160 | 161 | 161 |  |
| base forward, % of that | 76 | 19 | 48 |  |
| tutorial, phase 1, s | 9.0 | 450.0 (50.00x) |  |  |
| tutorial, phase 2, s | 70.5 | 480.0 (6.81x) |  |  |
| tutorial in all, s | 80.0 | 931.0 (11.63x) |  |  |
| validation accuracy after phase 1 | 0.9740 | 0.9630 |  |  |
| validation accuracy after phase 2 | 0.9750 | 0.9720 |  |  |
| tutorial, peak memory, MB | 800 | 1290 (1.61x) |  |  |

In brackets: how many times as fast, or as small, ours is. Of several ways that a program was run in, the fastest is in the table.
A round is off its median by 11 % at most (ours, decode + format, images/s).

- PyTorch, base forward, images/s: channels_last 100, contiguous 75
- PyTorch, kept, base forward, images/s: channels_last 250, contiguous 150
- engine, one picture's base forward, ms: kept 1.00, at once 1.20
- engine, first call, which compiles, s: base forward 4, one picture 3
- ours: rustc 1; 2 threads
- PyTorch: torch 1; 2 threads
- engine: engine 1; 2 threads
"""


class Table(unittest.TestCase):
    maxDiff = None

    def test_it_has_medians_of_the_best_way_and_what_ours_is_to_them(self):
        self.assertEqual(markdown(columns(), "A CPU, 2 cores, 8.0 GB of memory", "pets", 3, "bf16"), TABLE)

    def test_a_single_round_of_pieces_has_no_spread_and_no_tutorial(self):
        text = markdown({title: reports[:1] for title, reports in columns().items()}, "A CPU", "pets", 1, "f32")
        self.assertIn("medians of 1 round.", text)
        self.assertNotRegex(text, "off its median|utorial")


RANKED_TABLE = """\
# Benchmark of several ranks

A CPU.
Images: pets, 2000; 160x160, batches of 32 in all. Images/s, medians of 1 round.

| | ours | PyTorch DDP | PyTorch DDP, our allocator |
|---|---|---|---|
| decode + format, 1 process of 2 threads | 4000 | 1600 (2.50x) | 2000 (2.00x) |
| decode + format, 2 ranks of 1 thread | 3800 | 1200 (3.17x) | 1900 (2.00x) |
| the ranks' share of the one process | 95 % | 75 % | 95 % |
| base forward, 1 process of 2 threads | 900 | 300 (3.00x) | 450 (2.00x) |
| base forward, 2 ranks of 1 thread | 900 | 300 (3.00x) | 450 (2.00x) |
| the ranks' share of the one process | 100 % | 100 % | 100 % |
| fine-tuning step, 1 process of 2 threads | 660 | 220 (3.00x) | 240 (2.75x) |
| fine-tuning step, 2 ranks of 1 thread | 600 | 200 (3.00x) | 240 (2.50x) |
| the ranks' share of the one process | 91 % | 91 % | 100 % |
| fine-tuning step, from stored activations, 1 process of 2 threads | 660 | 440 (1.50x) | 550 (1.20x) |
| fine-tuning step, from stored activations, 2 ranks of 1 thread | 600 | 400 (1.50x) | 500 (1.20x) |
| the ranks' share of the one process | 91 % | 91 % | 91 % |

In brackets: how many times as fast ours is.
"""


class RankedTable(unittest.TestCase):
    maxDiff = None

    def test_it_has_one_process_the_ranks_and_their_share_by_the_best_way_of_each(self):
        def report(threads, decode, forward, fine_tuning, *from_activations):
            ways = {f"buckets of {size} MB": rate for size, rate in zip([25, 1], from_activations)}
            found = {"threads": threads, "pictures": 2000, "decode": {"": decode}, "base_forward": {"": forward}, "fine_tuning": {"": fine_tuning}}
            return [found | ({"fine_tuning_from_activations": ways} if ways else {})]

        columns = {
            1: {"ours": report(2, 4000, 900, 660), "PyTorch DDP": report(2, 1600, 300, 220, 440, 430),
                "PyTorch DDP, our allocator": report(2, 2000, 450, 240, 540, 550)},
            2: {"ours": report(1, 3800, 900, 600), "PyTorch DDP": report(1, 1200, 300, 200, 390, 400),
                "PyTorch DDP, our allocator": report(1, 1900, 450, 240, 500, 480)},
        }
        self.assertEqual(ranked_markdown(columns, "A CPU", "pets", 1, 2), RANKED_TABLE)


FINE_TUNE_TABLE = """\
# Benchmark of fine-tuning

A CPU.
Images: pets, 2000 for training, 1000 for validation. efficientnet_lite0: an epoch of the head, 3 of fine-tuning, with 3 seeds.

| | ours | fastai |
|---|---|---|
| head, s | 10.0 | 100.0 (10.00x) |
| fine-tuning, s | 20.0 | 300.0 (15.00x) |
| in all, s | 31.0 | 402.0 (12.97x) |
| validation accuracy after the head | 0.9800 (0.9800 to 0.9800) | 0.9600 (0.9600 to 0.9600) |
| validation accuracy | 0.9930 (0.9900 to 0.9960) | 0.9910 (0.9880 to 0.9940) |
| peak memory, MB | 900 | 5400 (6.00x) |

Times and memory: medians; in brackets: how many times as fast, or as small, ours is. Accuracy: the seeds' mean, and from the lowest to the highest.

- ours: rustc 1; 2 threads
- fastai: fastai 1; 2 threads
"""


class FineTuneTable(unittest.TestCase):
    maxDiff = None

    def test_it_has_medians_of_the_times_and_the_seeds_mean_and_range_of_the_accuracy(self):
        def reports(program, seconds, before, after, memory):
            return [tutorial(program, *seconds, before, accuracy, memory) | {"epochs": 3} for accuracy in after]

        columns = {
            "ours": reports("rustc", (10, 20, 31), 0.98, [0.990, 0.996, 0.993], 900),
            "fastai": reports("fastai", (100, 300, 402), 0.96, [0.994, 0.988, 0.991], 5400),
        }
        self.assertEqual(fine_tune_markdown(columns, "A CPU", "pets", "efficientnet_lite0"), FINE_TUNE_TABLE)


class Scaling(unittest.TestCase):
    RANK = scaling.Rank(step=0.01, image=0.001, forward=0.3, update=0.1)

    def test_a_ring_sends_each_ranks_part_of_the_sum_to_all_others_twice(self):
        link = scaling.Link(latency=0.001, bandwidth=1000)
        self.assertAlmostEqual(link.all_reduce(100, 2), 2 * 0.001 + 0.1)
        self.assertAlmostEqual(link.all_reduce(100, 4), 6 * 0.001 + 6 * 25 / 1000)

    def test_what_is_summed_during_the_backward_pass_costs_nothing_but_the_last_bucket(self):
        compute = self.RANK.compute(16)
        slow = scaling.Link(latency=0, bandwidth=100 / compute)
        fast = scaling.Link(latency=0, bandwidth=1e6 / compute)

        def step(link, bucket):
            return scaling.step(self.RANK, link, 2, 16, gradients=100, bucket=bucket) / compute

        # A link that is busy from the first bucket on: the sums take as long as the whole step.
        self.assertAlmostEqual(step(slow, 25), 0.3 + 0.15 + 1 + 0.1)
        # All gradients in one bucket: nothing is hidden.
        self.assertAlmostEqual(step(slow, 100), 0.9 + 1 + 0.1)
        self.assertAlmostEqual(step(fast, 25), 1, places=4)
        # 100 bytes are sent, each of which takes a hundredth of the step.
        busy = scaling.Link(latency=0, bandwidth=1e6 / compute, work=compute / 100)
        self.assertAlmostEqual(step(busy, 25), 2, places=4)

    def test_one_rank_only_computes_and_a_batch_that_ranks_cannot_share_is_left_out(self):
        self.assertEqual(scaling.step(self.RANK, None, 1, 16), self.RANK.compute(16))
        rows = scaling.table(self.RANK, {"fast": scaling.Link(0, 1e12)}, [1, 64]).splitlines()
        self.assertEqual(rows[0], "| | fast, batch 32 | fast, 32 on each |")
        self.assertEqual(rows[2], "| 1 | 762 (100 %) | 762 (100 %) |")
        self.assertTrue(rows[3].startswith("| 64 |  | 48,"), rows[3])


class Measure(unittest.TestCase):
    def test_figures_of_another_precision_than_was_asked_for_are_refused(self):
        with tempfile.TemporaryDirectory() as folder:
            for split in ["train", "validation"]:
                Path(folder, split).mkdir()
            program = Path(folder, "program")
            program.write_text("""#!/bin/sh\necho '{"precision": "f32"}'\n""")
            program.chmod(0o755)
            options = command_line([folder, "--ours", str(program), "--precision", "bf16"])
            with self.assertRaisesRegex(SystemExit, "ours computed in f32, not in bf16"):
                measure("ours", "ours", False, "forward", options)


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

    def test_the_forward_pass_alone_can_be_asked_for_in_bf16_and_all_is_in_f32_unless_it_is(self):
        (self.folder / "validation").mkdir()
        options = command_line([str(self.folder), "--forward", "--precision", "bf16"])
        self.assertEqual((options.forward, options.precision), (True, "bf16"))
        self.assertEqual(command_line([str(self.folder)]).precision, "f32")

    def test_fine_tuning_takes_fewer_epochs_unless_they_are_given(self):
        (self.folder / "validation").mkdir()
        words = ["--fine-tune", "efficientnet_lite0", str(self.folder), "--weights", "efficientnet_lite0=/a=b.pth"]
        options = command_line(words)
        self.assertEqual((options.epochs, options.weights), (3, {"efficientnet_lite0": "/a=b.pth"}))
        self.assertEqual(command_line([*words, "--epochs", "10"]).epochs, 10)

    def test_what_is_wrong_is_refused_with_the_reason(self):
        for words, reason in [
            ([str(self.folder), "--round", "1"], "unrecognized arguments: --round 1"),
            ([str(self.folder), "more"], "unrecognized arguments: more"),
            (["--rounds"], "--rounds: expected one argument"),
            (["--ranks", "1"], "--ranks: 1: expected a number from 2 on"),
            (["--ranks", "2", "--fine-tune", "efficientnet_lite0"], "not allowed with argument --ranks"),
            (["--ranks", "2", "--forward"], "not allowed with argument --"),
            (["--precision", "f16"], "--precision: invalid choice: 'f16' (choose from "),
            ([str(self.folder), "--ranks", "2", "--precision", "bf16"], "--precision: --ranks and --fine-tune compare in f32 only"),
            (["--fine-tune", "resnet18"], "--fine-tune: invalid choice: 'resnet18' (choose from "),
            (["--epochs", "0"], "--epochs: 0: expected a number from 1 on"),
            (["--limit", "1"], "--limit: 1: expected a number from 2 on"),
            (["--limit", "all"], "--limit: invalid"),
            ([str(self.folder)], "has no folder validation"),
        ]:
            with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
                command_line(words)
            self.assertIn(reason, said.getvalue())


SERVING_TABLE = """\
# Benchmark of serving

A CPU.
Images: pets, 3000; the client is on the same cores. Medians of 3 rounds.

| | ours | BentoML | BentoML, batched | Gradio |
|---|---|---|---|---|
| pictures/s, 1 connection | 102 | 51 (2.00x) | 102 (1.00x) | 20 (5.00x) |
| pictures/s, 8 connections | 408 | 204 (2.00x) | 408 (1.00x) | 82 (5.00x) |
| pictures/s, 64 connections | 204 | 102 (2.00x) | 204 (1.00x) | 41 (5.00x) |
| p99, ms, 1 connection | 4.0 | 16.0 (4.00x) | 2.0 (0.50x) | 8.0 (2.00x) |
| p99, ms, 8 connections | 4.0 | 16.0 (4.00x) | 2.0 (0.50x) | 8.0 (2.00x) |
| p99, ms, 64 connections | 4.0 | 16.0 (4.00x) | 2.0 (0.50x) | 8.0 (2.00x) |
| the most, % of `classify` | 82 | 41 | 82 | 16 |

In brackets: how many times as fast ours is. `classify` does 500 pictures/s, its start-up taken off. Ours at half of its most, 204 pictures/s, \
through 16 connections: p50 6.0 ms, p99 9.0 ms.

bentoml 1; libtorch 2
"""


class Serving(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def options(self, **programs):
        """Returns options with shell scripts in the place of this project's programs."""
        for name, script in programs.items():
            path = self.folder / name
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        programs = {name: str(self.folder / name) for name in programs}
        return argparse.Namespace(program=programs, allocator={"MALLOC_TOP_PAD_": "1"}, model="m", pictures=self.folder, seconds=1)

    def test_the_table_has_the_medians_of_the_rounds_and_how_many_times_as_fast_ours_is(self):
        reports = []
        # In another order than by size.
        for number, more in [(1, 1.04), (2, 1), (3, 1.02)]:
            reports.append({"column": "classify", "round": number, "pictures": 3000, "pictures_per_second": 500})
            for title, rate, p99 in [("ours", 100, 4), ("BentoML", 50, 16), ("BentoML, batched", 100, 2), ("Gradio", 20, 8)]:
                reports += [{"column": title, "round": number, "connections": connections, "pictures_per_second": rate * times * more,
                             "p99_ms": p99} for connections, times in [(1, 1), (8, 4), (64, 2)]]
            reports.append({"column": serving.STEADY, "round": number, "rate": 200 * more, "p50_ms": 6, "p99_ms": 9})
        self.assertEqual(serving.markdown(reports, "A CPU", "pets", {"bentoml": "1", "libtorch": "2"}), SERVING_TABLE)

    def test_servers_that_answer_differently_are_refused(self):
        ours = {"cat": 0.75, "dog": 0.25}
        serving.ensure_same({"ours": ours, "Gradio": {"dog": 0.2505, "cat": 0.7495}})
        for other in [{"cat": 0.752, "dog": 0.248}, {"cat": 0.75}, {"0": 0.75, "1": 0.25}]:
            with self.assertRaisesRegex(SystemExit, "Gradio answers .* where ours answers"):
                serving.ensure_same({"ours": ours, "Gradio": other})

    def test_another_status_than_200_is_an_error_and_so_is_a_client_that_fails(self):
        line = """echo '{"connections": 1, "statuses": {"200": 9%s}}'"""
        found = serving.ask("http://a", [], self.options(load=line % ""))
        self.assertEqual(found, [{"connections": 1, "statuses": {"200": 9}}])
        with self.assertRaisesRegex(SystemExit, "http://a answers with these statuses, .*'503': 1"):
            serving.ask("http://a", [], self.options(load=line % ', "503": 1'))
        with self.assertRaisesRegex(SystemExit, "load ended with 3\nno picture"):
            serving.ask("http://a", [], self.options(load="echo no picture >&2; exit 3"))

    def test_a_folder_with_too_few_pictures_is_refused(self):
        with self.assertRaisesRegex(SystemExit, "has 1 images, at least 100 are needed"):
            next(serving.measure(None, "picture.png", self.options(classify="echo '{}'")))

    def test_a_server_is_ended_whatever_happens_while_it_is_asked(self):
        server = """[ $MALLOC_TOP_PAD_ = 1 ] && exec python3 -m http.server --bind 127.0.0.1 "$3" """
        with self.assertRaises(KeyboardInterrupt), serving.served("ours", None, self.options(serve=server)) as address:
            self.assertTrue(serving.is_there(address))
            raise KeyboardInterrupt
        self.assertFalse(serving.is_there(address))

    def test_a_server_that_cannot_start_is_an_error_with_what_it_said(self):
        with self.assertRaisesRegex(SystemExit, "ours does not answer\nno such model"):
            with serving.served("ours", None, self.options(serve="echo no such model >&2; exit 1")):
                self.fail("it is served")

    def test_what_is_wrong_is_refused_with_the_reason(self):
        folder = str(self.folder)
        self.assertEqual(serving.command_line([folder, "--program", "serve=/a=b"]).program, {"serve": "/a=b"})
        for words, reason in [
            ([], "required: PICTURES"),
            (["/nowhere"], "/nowhere is not a folder"),
            ([folder, "--model", "/nowhere"], "--model: /nowhere is not a file"),
            ([folder, "--seconds", "0"], "--seconds: 0: expected a number from 1 on"),
            ([folder, "--round", "1"], "unrecognized arguments: --round 1"),
        ]:
            with contextlib.redirect_stderr(io.StringIO()) as said, self.assertRaises(SystemExit):
                serving.command_line(words)
            self.assertIn(reason, said.getvalue())


if __name__ == "__main__":
    unittest.main()
