"""Drives the installed kernel as Jupyter does and checks what it says.

`cargo xtask test` runs it, in the environment that set-up made.
"""

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from queue import Empty

from jupyter_client.manager import KernelManager

BUSY = 'println!("busy"); loop { std::thread::sleep(std::time::Duration::from_millis(50)); }'
ENDLESS_BUILD = "#[allow(long_running_const_eval)] const ENDLESS: () = loop {};"
SUPPORT = str(Path(__file__).resolve().parents[2] / "support")


class Kernel:
    """A running kernel and a client of it."""

    def __init__(self, cwd=None, **environment):
        self.manager = KernelManager(kernel_name="rust")
        self.manager.kernel_spec.env.update(environment)
        self.manager.start_kernel(cwd=cwd)
        self.folder = tempfile.TemporaryDirectory()
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=300)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.stop_channels()
        self.manager.shutdown_kernel(now=False)
        self.folder.cleanup()

    def send(self, code):
        return self.client.execute(code)

    def collect(self, request, until="idle", limit=300):
        """Returns the published messages of a request, up to its end or the first of a kind."""
        messages, end = [], time.monotonic() + limit
        while time.monotonic() < end:
            try:
                message = self.client.get_iopub_msg(timeout=1)
            except Empty:
                continue
            if message["parent_header"].get("msg_id") != request:
                continue
            messages.append(message)
            kind, content = message["msg_type"], message["content"]
            if kind == until or (kind == "status" and content["execution_state"] == "idle"):
                return messages
        raise AssertionError(f"no {until} within {limit} s: {messages}")

    def reply(self, request, limit=60):
        while True:
            reply = self.client.get_shell_msg(timeout=limit)
            if reply["parent_header"].get("msg_id") == request:
                return reply["content"]

    def run(self, code):
        request = self.send(code)
        return self.reply(request, 600), self.collect(request)

    def send_control(self, kind, content):
        request = self.client.session.msg(kind, content)
        self.client.control_channel.send(request)
        return request["header"]["msg_id"]

    def control_reply(self, request):
        while True:
            reply = self.client.get_control_msg(timeout=60)
            if reply["parent_header"].get("msg_id") == request:
                return reply["content"]

    def send_debug(self, command, **arguments):
        content = {"type": "request", "seq": 1, "command": command, "arguments": arguments}
        return self.send_control("debug_request", content)

    def debug(self, command, **arguments):
        """Returns the reply to a request of the debug protocol, and what was published with it."""
        request = self.send_debug(command, **arguments)
        return self.control_reply(request), self.collect(request)

    def variables(self):
        """Returns the names and types in the panel of variables."""
        listed = self.debug("inspectVariables")[0]["body"]["variables"]
        return {variable["name"]: variable["type"] for variable in listed}

    def described(self, name):
        """Returns what the panel shows of a variable, by MIME type."""
        reply = self.debug("richInspectVariables", variableName=name)[0]
        assert reply["success"], reply
        return reply["body"]["data"]

    def value(self, expression):
        """Returns what a printed expression gives."""
        reply, messages = self.run(f'println!("{{}}", {expression});')
        assert reply["status"] == "ok", reply
        return text(messages).strip()

    def interrupt(self):
        self.manager.interrupt_kernel()

    def ask(self, channel, kind, content, limit=5):
        """Sends a request; returns the content of the reply and the states published about it."""
        request = self.client.session.msg(kind, content)
        sent = request["header"]["msg_id"]
        getattr(self.client, f"{channel}_channel").send(request)
        get = getattr(self.client, f"get_{channel}_msg")
        while (reply := get(timeout=limit))["parent_header"].get("msg_id") != sent:
            pass
        assert reply["msg_type"] == kind.replace("_request", "_reply"), reply
        states = [m["content"].get("execution_state") for m in self.collect(sent, limit=limit)]
        return reply["content"], states


def text(messages, name="stdout"):
    return "".join(
        message["content"]["text"]
        for message in messages
        if message["msg_type"] == "stream" and message["content"]["name"] == name
    )


def kinds(messages):
    return [m["msg_type"] for m in messages if m["msg_type"] not in ("status", "execute_input")]


def errors(messages):
    return [message["content"] for message in messages if message["msg_type"] == "error"]


def cells_are_numbered_from_one_and_those_without_history_not_at_all(kernel):
    for code, options, number in [("40 + 2", {}, 1), ("43", {"store_history": False}, 1), ("wrong", {}, 2), ('println!("44");', {}, 3)]:
        request = kernel.client.execute(code, **options)
        reply, messages = kernel.reply(request), kernel.collect(request)
        counts = [m["content"]["execution_count"] for m in messages if "execution_count" in m["content"]]
        assert reply["execution_count"] == number and set(counts) == {number}, (code, reply, messages)


def a_last_expression_is_compiled_once(kernel):
    reply, messages = kernel.run("vec![1, 2]")
    assert [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "execute_result"] == ["[1, 2]"], messages
    # evcxr's second attempt would have another source.
    assert ".evcxr_display()" in (folder_of(kernel.manager.provisioner.pid) / "src/lib.rs").read_text()


def failures_are_errors(kernel):
    assert kernel.run("let kept = 41;")[0]["status"] == "ok"
    for code, name, said, line in [
        ('let x = 1;\nlet none: Option<u8> = None;\nnone.expect("nothing there");', "Panic", "nothing there", "line 3"),
        ('let new = "word".parse::<i32>()?;', "Error", "invalid digit", None),
        ("let wrong: u8 = kept.missing();", None, "missing", None),
    ]:
        reply, messages = kernel.run(code)
        assert reply["status"] == "error", (code, reply)
        assert said in reply["evalue"], reply
        shown = errors(messages)
        assert shown and said in "".join(shown[-1]["traceback"]), messages
        if name:
            assert reply["ename"] == name, reply
            assert "thread" not in text(messages, "stderr"), messages
        if line:
            assert line in "".join(shown[0]["traceback"]), shown
        assert kernel.value("kept") == "41"


def text_without_an_end_is_shown_and_hangs_nothing(kernel):
    reply, messages = kernel.run('print!("a"); print!("b"); println!("c"); print!("end");')
    assert reply["status"] == "ok" and text(messages) == "abc\nend", messages
    request = kernel.send('eprintln!("to stderr"); println!("to stdout");')
    messages = kernel.collect(request)
    if not text(messages, "stderr"):
        # It comes another way than the cell's end, on a busy machine later.
        messages += kernel.collect(request, until="stream", limit=10)
    assert text(messages, "stderr") == "to stderr\n" and text(messages) == "to stdout\n", messages
    assert kernel.reply(request)["status"] == "ok"


def many_lines_pass(kernel):
    reply, messages = kernel.run('for i in 0..10_000 { println!("line {i}"); }')
    lines = text(messages).splitlines()
    assert lines == [f"line {i}" for i in range(10_000)], len(lines)
    assert len(kinds(messages)) < 5_000, len(kinds(messages))


def displays_keep_their_place_and_change_at_once(kernel):
    tell = """
        use std::io::{BufRead, BufReader, Write};
        fn tell(line: &str) {
            let mut bridge = std::os::unix::net::UnixStream::connect(std::env::var("TRANSFER_BRIDGE").unwrap()).unwrap();
            writeln!(bridge, "{line}").unwrap();
            BufReader::new(bridge).read_line(&mut String::new()).unwrap();
        }
        fn show(id: &str, text: &str) {
            tell(&format!(r#"{{"version":1,"event":"display","id":"{id}","data":{{"text/plain":"{text}"}}}}"#));
            println!("\\u{1e}{id}\\u{1e}");
        }
        fn update(id: &str, text: &str) {
            tell(&format!(r#"{{"version":1,"event":"update","id":"{id}","data":{{"text/plain":"{text}"}}}}"#));
        }
    """
    assert kernel.run(tell)[0]["status"] == "ok"
    reply, messages = kernel.run('println!("one"); show("a", "two"); println!("three"); show("b", "four");')
    assert kinds(messages) == ["stream", "display_data", "stream", "display_data"], messages
    request = kernel.send('show("c", "0"); std::thread::sleep(std::time::Duration::from_millis(500)); update("c", "1"); std::thread::sleep(std::time::Duration::from_secs(2));')
    kernel.collect(request, until="update_display_data")
    came = time.monotonic()
    kernel.collect(request)
    assert time.monotonic() - came > 1, "the update came with the end of the cell"
    kernel.reply(request)
    large = 'let large = "x".repeat(5_000_000); show("large", &large);'
    reply, messages = kernel.run(large)
    assert len(messages[-2]["content"]["data"]["text/plain"]) == 5_000_000, kinds(messages)


def bad_events_are_refused(kernel):
    path = kernel.value('std::env::var("TRANSFER_BRIDGE").unwrap()')
    assert os.stat(os.path.dirname(path)).st_mode & 0o77 == 0, "others can reach the socket"
    for line in [b"not json\n", b'{"version":2,"event":"failed"}\n', b'{"version":1,"event":"other"}\n']:
        client = socket.socket(socket.AF_UNIX)
        client.connect(path)
        client.sendall(line)
        answer = json.loads(client.makefile().readline())
        assert answer["event"] == "refused", answer
        client.close()
    client = socket.socket(socket.AF_UNIX)
    client.connect(path)
    client.sendall(b'{"version":1,"eve')
    client.close()
    # Clients that break off.
    ports = kernel.manager.get_connection_info()
    for channel in ["shell", "control", "iopub", "hb", "stdin"]:
        client = socket.create_connection((ports["ip"], ports[f"{channel}_port"]))
        client.sendall(b"\xff\x00")
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
    # A wrong signature.
    session = kernel.client.session
    key, session.key = session.key, b"another key"
    kernel.send("let forged = 1;")
    session.key = key
    assert kernel.value("1 + 1") == "2"


def succeed(kernel, *cells):
    for cell in cells:
        reply, messages = kernel.run(cell)
        assert reply["status"] == "ok", (cell, reply)
    return messages


def the_panel_of_variables_opens_and_nothing_is_debugged(kernel):
    info = kernel.client.kernel_info(reply=True, timeout=60)["content"]
    assert info["debugger"] and "debugger" in info["supported_features"], info
    states = []
    for command in ["initialize", "attach", "disconnect"]:
        reply, messages = kernel.debug(command)
        assert reply["success"] and reply["command"] == command and reply["request_seq"] == 1, reply
        states.append(kernel.debug("debugInfo")[0]["body"]["isStarted"])
        events = [m["content"]["event"] for m in messages if m["msg_type"] == "debug_event"]
        assert events == (["initialized"] if command == "attach" else []), messages
    assert states == [True, True, False], states
    for command in ["setBreakpoints", "dumpCell", "evaluate", "stackTrace"]:
        reply, _ = kernel.debug(command)
        assert not reply["success"] and "not supported" in reply["message"], reply


def variables_have_types_without_support(kernel):
    succeed(kernel, "let panel_list = vec![1u8, 2]; let panel_moved = String::new();")
    variables = kernel.variables()
    assert (variables["panel_list"], variables["panel_moved"]) == ("Vec<u8>", "String"), variables
    assert kernel.described("panel_list")["text/plain"].startswith("Vec<u8>: "), "support was not loaded"
    assert kernel.run("let panel_lost = 1; drop(panel_moved); panic!();")[0]["status"] == "error"
    variables = kernel.variables()
    assert "panel_list" in variables and not {"panel_moved", "panel_lost"} & set(variables), variables
    reply, _ = kernel.debug("richInspectVariables", variableName="panel_moved")
    assert not reply["success"] and "no variable `panel_moved`" in reply["message"], reply


def a_running_cell_holds_no_variables_back(kernel):
    running = kernel.send('let panel_first = 1; println!("first");')
    queued = kernel.send('println!("busy"); std::thread::sleep(std::time::Duration::from_secs(5)); drop(panel_list);')
    kernel.collect(queued, until="stream")
    begun = time.monotonic()
    variables = kernel.variables()
    assert {"panel_first", "panel_list"} <= set(variables), variables
    assert kernel.described("panel_list")["text/plain"].startswith("Vec<u8>: ")
    assert time.monotonic() - begun < 3, "the running cell was waited for"
    assert kernel.reply(running)["status"] == kernel.reply(queued)["status"] == "ok"
    kernel.collect(queued)
    assert "panel_list" not in kernel.variables()


def what_a_thread_writes_after_its_cell_belongs_to_it(kernel):
    late = 'std::thread::spawn(|| { std::thread::sleep(std::time::Duration::from_secs(1)); eprintln!("late"); });'
    request = kernel.send(late)
    kernel.collect(request)
    messages = kernel.collect(request, until="stream", limit=10)
    assert text(messages, "stderr") == "late\n", messages
    kernel.reply(request)


def variables_tell_what_they_hold(kernel):
    succeed(
        kernel,
        f":dep support = {{ path = {json.dumps(SUPPORT)} }}\nuse support::prelude::*;",
        """
        struct Panics;
        impl std::fmt::Debug for Panics {
            fn fmt(&self, _: &mut std::fmt::Formatter) -> std::fmt::Result { panic!("on purpose") }
        }
        struct Silent;
        let tensor = Tensor::from_slice(&[-1f32, 3.0]).reshape([1, 2]);
        let image = RgbImage::from_pixel(400, 200, support::image::Rgb([200, 0, 0]));
        let text = "words".to_owned();
        let (panics, silent) = (Panics, Silent);
        """,
    )
    number = kernel.run("1")[0]["execution_count"]
    assert kernel.described("tensor")["text/plain"] == "[1, 2] Float Cpu, -1 to 3, mean 1"
    image = kernel.described("image")
    assert image["text/plain"] == "400 x 200 pixels" and image["image/png"] in image["text/html"], image
    assert kernel.described("text")["text/plain"] == '"words"'
    assert "panicked" in kernel.described("panics")["text/plain"]
    assert kernel.described("silent")["text/plain"].endswith("Silent")
    listed = kernel.debug("inspectVariables")[0]["body"]["variables"]
    values = {variable["name"]: variable["value"] for variable in listed}
    assert values["text"] == '"words"' and values["image"] == "400 x 200 pixels", values

    # Stop, and a cell, come while one tells.
    succeed(kernel, 'let text = text + "!";')
    kernel.send_debug("richInspectVariables", variableName="text")
    kernel.control_reply(kernel.send_control("interrupt_request", {}))
    reply, messages = kernel.run('println!("{text} {:?} {}", tensor.size(), image.width()); drop((panics, silent));')
    assert reply["status"] == "ok" and text(messages) == "words! [1, 2] 400\n", (reply, messages)
    assert reply["execution_count"] == number + 2, "cells that nobody sees were counted"


def a_build_is_shown_and_taken_away(kernel):
    for name, uses in [("lower-part", None), ("upper", "lower-part")]:
        crate = Path(kernel.folder.name) / name
        (crate / "src").mkdir(parents=True)
        dependency = f'{uses} = {{ path = "../{uses}" }}' if uses else ""
        package = f'[package]\nname = "{name}"\nversion = "1.0.0"\nedition = "2021"\n[dependencies]\n{dependency}\n'
        (crate / "Cargo.toml").write_text(package)
        # Cargo tells of what takes longer than half a second.
        (crate / "build.rs").write_text("fn main() { std::thread::sleep(std::time::Duration::from_secs(2)) }\n")
        (crate / "src/lib.rs").write_text("pub fn seven() -> u8 { 7 }\n")
    dep = f':dep upper = {{ path = "{kernel.folder.name}/upper" }}\nprintln!("{{}}", upper::seven());'
    messages = succeed(kernel, dep)
    shown = [m["content"] for m in messages if m["msg_type"] in ("display_data", "update_display_data")]
    texts = [content["data"]["text/plain"] for content in shown]
    for name in ["lower-part", "upper"]:
        assert any(re.fullmatch(rf"compiling \d/\d: .*\b{name}\b.*, \d+ s", line) for line in texts), texts
    assert len({content["transient"]["display_id"] for content in shown}) == 1, shown
    order = kinds(messages)
    assert order[0] == "display_data" and order[-2:] == ["clear_output", "stream"], order
    assert text(messages) == "7\n", messages


def a_changed_dependency_is_in_the_next_cell(kernel):
    source, call = Path(kernel.folder.name) / "upper/src/lib.rs", "upper::seven()"
    assert kernel.value(call) == "7"
    source.write_text("pub fn seven() -> u8 { 70 }\n")
    assert kernel.value(call) == "70"
    # Cargo built the cell before; this one it did not.
    assert kernel.value(f"{call} + 1") == "71"


def cargo_in_a_cell_is_cargo(kernel):
    other = Path(kernel.folder.name, "other")
    (other / "src").mkdir(parents=True)
    (other / "src/lib.rs").write_text("")
    (other / "Cargo.toml").write_text('[package]\nname = "other"\nversion = "1.0.0"\n[dependencies]\nupper = { path = "../upper" }\n')
    # A cell's own build would take this one over.
    above = Path(kernel.folder.name, "Cargo.lock")
    above.write_text("not a lock file")
    cargo = f'std::process::Command::new("cargo").args(["metadata", "--offline"]).current_dir("{other}").output()?.status.success()'
    assert kernel.value(cargo) == "true"
    above.unlink()


def cells_share_one_library_of_what_they_depend_on(kernel):
    load_support(kernel)
    # Generic: compiled in the cell, where it calls C functions.
    succeed(kernel, "let stacked = Tensor::stack(&[Tensor::from(1.5), Tensor::from(2.5)], 0);")
    assert kernel.value("stacked.double_value(&[1])") == "2.5"
    loaded = kernel.value('std::fs::read_to_string("/proc/self/maps")?')
    libraries = {line.split()[-1] for line in loaded.splitlines() if line.endswith(".so")}
    bundles = [path for path in libraries if "cell_dependencies" in path]
    assert len(bundles) == 1, libraries
    cells = sorted((path for path in libraries if "/libcode_" in path), key=os.path.getmtime)
    assert os.path.getsize(cells[-1]) < 300_000, os.path.getsize(cells[-1])


def load_support(kernel):
    succeed(kernel, f":dep support = {{ path = {json.dumps(SUPPORT)} }}\nuse support::notebook::*; use support::prelude::*;")


def several_figures_come_in_order(kernel):
    load_support(kernel)
    messages = succeed(
        kernel,
        """
        let log = support::training::EpochLog { loss: 0.5, accuracy: 0.5, ..Default::default() };
        let mut history = History { epochs: vec![log.clone()] };
        let first = history.learning_curves()?;
        history.epochs.push(log);
        let second = history.learning_curves()?;
        """,
        """
        println!("one");
        let mut handle = display(&first);
        println!("two");
        display(&second);
        std::thread::sleep(std::time::Duration::from_millis(500));
        handle.update(&second)?;
        println!("three");
        first
        """,
    )
    assert kinds(messages) == [
        "stream", "display_data", "stream", "display_data", "update_display_data", "stream", "execute_result",
    ], kinds(messages)
    first, second, updated = (m["content"] for m in messages if "display_data" in m["msg_type"])
    assert first["data"]["image/png"] != second["data"]["image/png"]
    assert updated["data"] == second["data"] and updated["transient"] == first["transient"]


def stop(kernel):
    succeed(kernel, "let mut kept = 1;")
    # One that is still on its way would stop the cell after it.
    kernel.control_reply(kernel.send_control("interrupt_request", {}))
    assert kernel.value("kept") == "1", "an idle Stop lost a variable"

    listening = """{
        let mut stop = support::live::Stop::listen();
        println!("listening");
        kept = 2;
        while !stop.requested() { std::thread::sleep(std::time::Duration::from_millis(10)); }
    }"""
    request = kernel.send(listening)
    queued = kernel.send("kept = 3;")
    kernel.collect(request, until="stream")
    kernel.interrupt()
    reply = kernel.reply(request)
    assert reply["status"] == "ok", reply
    assert kernel.reply(queued)["status"] == "aborted"
    assert kernel.value("kept") == "2"

    # While it compiles: nothing has run, nothing is lost.
    request = kernel.send(
        "#[allow(long_running_const_eval)] const LONG: u64 = { let mut i = 0; while i < 20_000_000_000 { i += 1 } i };\n"
        'println!("{LONG}");'
    )
    kernel.collect(request, until="execute_input")
    time.sleep(3)
    begun = time.monotonic()
    kernel.interrupt()
    reply, messages = kernel.reply(request), kernel.collect(request)
    assert reply["status"] == "error" and time.monotonic() - begun < 5, reply
    assert [error["traceback"] for error in errors(messages)] == [["stopped while it compiled"]], messages
    assert kernel.value("kept") == "2"

    for listens in [False, True]:
        if listens:
            # Another cell's, or of a loop that does not look at it.
            load_support(kernel)
            succeed(kernel, "let listening = support::live::Stop::listen();")
        request = kernel.send(BUSY)
        kernel.collect(request, until="stream")
        if listens:
            kernel.interrupt()
        kernel.interrupt()
        messages = kernel.collect(request, until="stream", limit=10)
        assert "all variables will be lost" in text(messages, "stderr"), messages
        assert ("was asked to stop" if listens else "does not listen") in text(messages, "stderr"), messages
        kernel.interrupt()
        assert kernel.reply(request, limit=10)["status"] == "error"
        succeed(kernel, "let fresh = 5;")


def work_is_stopped(kernel):
    """A fit and a download, with what the cell after them finds."""
    load_support(kernel)
    succeed(
        kernel,
        """
        let folder = std::env::temp_dir().join(format!("bridge-{}", std::process::id()));
        for part in ["train", "validation"] {
            for (shade, class) in [(40, "cats"), (200, "dogs")] {
                let class = folder.join(part).join(class);
                std::fs::create_dir_all(&class)?;
                for number in 0..4 {
                    RgbImage::from_pixel(96, 96, support::image::Rgb([shade + number; 3])).save(class.join(format!("{number}.png")))?;
                }
            }
        }
        let mut settings = Settings::from_env()?;
        settings.dataset = Some(folder.display().to_string());
        let [train, _, _] = ImageDataset::load(&settings)?.split([8, 1, 1])?;
        fn format(image: &RgbImage) -> Pixels { Pixels::from(image).scale(1.0 / 127.5).offset(-1.0) }
        let batches = train.map(format).batch(4);
        settings.device = Device::Cpu;
        let base = MobileNetV2::pretrained([3, 96, 96], &settings)?;
        let model = Sequential::new(base).push(GlobalAveragePooling2d).push(Dense::new(1280, 1));
        let mut model = model.compile(RmsProp::new(1e-4), Loss::BinaryCrossentropy)?;
        model.base_mut().set_trainable(false);
        """,
    )
    request = kernel.send("let history = model.fit(&batches, Fit::epochs(1_000_000))?;")
    updates = []
    while len(updates) < 3:
        updates += kernel.collect(request, until="update_display_data")[-1:]
        assert updates[-1]["msg_type"] == "update_display_data", updates
    kernel.interrupt()
    messages = kernel.collect(request)
    assert kernel.reply(request)["status"] == "ok"
    shown = [m["content"]["data"]["text/plain"] for m in messages if m["msg_type"] == "update_display_data"][-1]
    assert "stopped after step" in shown.splitlines()[-1], shown[-500:]
    epochs = int(kernel.value("history.epochs.len()"))
    assert 0 < epochs < 1_000_000, epochs
    succeed(kernel, "let history = history.then(&model.fit(&batches, Fit::epochs(2))?);")
    assert int(kernel.value("history.epochs.len()")) == epochs + 2

    with socket.create_server(("127.0.0.1", 0)) as silent:
        request = kernel.send(f"""
            let kept = 7;
            // A package index that never answers.
            unsafe {{ std::env::set_var("PIP_INDEX_URL", "http://127.0.0.1:{silent.getsockname()[1]}/simple") }};
            println!("fetching");
            support::assets::Assets::open(&folder.join("assets"))?.fetch("mobilenet_v2_tfhub")?;
        """)
        kernel.collect(request, until="stream")
        time.sleep(2)
        kernel.interrupt()
        reply = kernel.reply(request, limit=10)
        kernel.collect(request)
    assert reply["status"] == "error" and "stopped: the download of mobilenet_v2_tfhub" in reply["evalue"], reply
    assert kernel.value("batches.len()") == "2"
    succeed(kernel, "std::fs::remove_dir_all(&folder)?;")


def a_process_that_exits_is_an_error(kernel):
    reply, messages = kernel.run("std::process::exit(3);")
    assert reply["status"] == "error" and errors(messages), (reply, messages)
    assert "terminated" in reply["evalue"], reply
    succeed(kernel, "let fresh = 6;")
    assert kernel.value("fresh") == "6"


def what_editors_ask_is_answered(kernel):
    succeed(kernel, "let a_long_name = 5u8;")
    completion = kernel.client.complete("a_long", 6, reply=True, timeout=60)["content"]
    assert "a_long_name" in completion["matches"], completion
    inspected = kernel.client.inspect("a_long_name", 3, reply=True, timeout=60)["content"]
    assert inspected["status"] == "ok", inspected
    info = kernel.client.kernel_info(reply=True, timeout=60)["content"]
    assert info["language_info"]["name"].lower() == "rust", info
    reply, messages = kernel.run(":vars")
    shown = str([m["content"].get("data") for m in messages])
    assert reply["status"] == "ok" and "a_long_name" in shown + text(messages), messages
    # A front end that has no way to ask, as nbconvert.
    request = kernel.client.execute("let answer: String = evcxr_input::get_string(\"?\");", allow_stdin=False)
    reply = kernel.reply(request)
    kernel.collect(request)
    assert reply["status"] == "error", reply
    assert kernel.value("a_long_name") == "5"


def what_needs_no_evcxr_is_answered_while_a_cell_runs(kernel):
    earlier = "let earlier = 7; earlier"
    succeed(kernel, earlier)
    cell = kernel.send(BUSY)
    kernel.collect(cell, until="stream")
    # This one has to wait, and holds up none of the others.
    completion = kernel.client.complete("earl", 4)
    for channel in ["shell", "control"]:
        for kind, content, expected in [
            ("kernel_info_request", {}, lambda reply: reply["language_info"]["name"] == "rust" and reply["language_info"]["version"] > "1"),
            ("comm_info_request", {}, lambda reply: reply["comms"] == {}),
            ("is_complete_request", {"code": "fn f() {"}, lambda reply: reply == {"status": "incomplete", "indent": "    "}),
            ("is_complete_request", {"code": "1 + 1"}, lambda reply: reply["status"] == "complete"),
            ("history_request", {"hist_access_type": "tail", "n": 2, "output": False, "raw": True}, lambda reply: [code for _, _, code in reply["history"]] == [earlier, BUSY]),
            ("history_request", {"hist_access_type": "search", "pattern": "*earlier", "output": True, "raw": True}, lambda reply: reply["history"][-1][2] == [earlier, "7"]),
            ("history_request", {"hist_access_type": "other", "output": True, "raw": True}, lambda reply: reply["status"] == "error"),
        ]:
            reply, states = kernel.ask(channel, kind, content)
            assert expected(reply), (channel, kind, reply)
            assert states == ["busy", "idle"], (channel, kind, states)
    # JupyterLab shows the last state that it has heard of.
    _, states = kernel.ask("shell", "kernel_info_request", {})
    last = kernel.client.get_iopub_msg(timeout=5)
    assert last["parent_header"]["msg_id"] == cell and last["content"]["execution_state"] == "busy", last
    kernel.ask("control", "usage_request", {})
    usage, states = kernel.ask("control", "usage_request", {})
    assert states == ["busy", "idle"], states
    # With evcxr and what it loads.
    assert usage["kernel_memory"] > 50 << 20 and usage["kernel_cpu"] >= 0, usage
    assert usage["host_virtual_memory"]["total"] > usage["kernel_memory"] and usage["cpu_count"] == os.cpu_count(), usage
    for _ in range(2):
        kernel.interrupt()
    assert kernel.reply(cell)["status"] == "error"
    assert kernel.reply(completion)["status"] == "ok"
    kernel.collect(completion)


def a_restart_begins_anew(kernel):
    succeed(kernel, "let before = 1;")
    kernel.manager.restart_kernel(now=False)
    kernel.client.wait_for_ready(timeout=300)
    assert kernel.run('println!("{before}");')[0]["status"] == "error", "a variable outlived a restart"
    assert kernel.value("1 + 1") == "2"


def processes_of(bridge):
    """Returns the names of a kernel's processes, which run in the session that Jupyter starts it in."""
    listed = subprocess.run(["ps", "-o", "stat=,comm=", "-s", str(bridge)], capture_output=True, text=True)
    processes = (line.split(maxsplit=1) for line in listed.stdout.splitlines())
    return sorted(name for state, name in processes if not state.startswith("Z"))


def await_processes(bridge, expected, limit=4):
    end = time.monotonic() + limit
    while not expected(running := processes_of(bridge)):
        assert time.monotonic() < end, running
        time.sleep(0.1)


def await_build(bridge):
    await_processes(bridge, lambda running: "rustc" in running, limit=60)
    time.sleep(2)
    assert {"evcxr_jupyter", "cargo", "rustc"} <= set(processes_of(bridge)), processes_of(bridge)


def await_none(bridge):
    await_processes(bridge, lambda running: not running)


def nothing_is_left(end):
    for cell in [BUSY, ENDLESS_BUILD]:
        kernel = Kernel()
        bridge = kernel.manager.provisioner.pid
        folder = Path(kernel.value('std::env::var("TRANSFER_BRIDGE").unwrap()')).parent
        assert sorted(file.name for file in folder.iterdir()) == ["bin", "events"], "a key lies about"
        request = kernel.send(cell)
        if cell == BUSY:
            kernel.collect(request, until="stream")
        else:
            await_build(bridge)
        begun = time.monotonic()
        end(kernel, bridge)
        await_none(bridge)
        assert not folder.exists(), f"{end.__name__}: {folder}"
        # Later than that Jupyter itself signals each process of a kernel that it has told to end.
        assert time.monotonic() - begun < 2.5, f"{end.__name__}: {time.monotonic() - begun} s"
        kernel.client.stop_channels()
        kernel.manager.shutdown_kernel(now=True)


def shut_down(kernel, _):
    kernel.manager.shutdown_kernel(now=False)


def terminate_bridge(_, bridge):
    os.kill(bridge, signal.SIGTERM)


def kill_bridge(_, bridge):
    os.kill(bridge, signal.SIGKILL)


def kill_evcxr(_, bridge):
    # The older of its two: the other runs the cells.
    subprocess.run(["pkill", "-KILL", "-o", "-s", str(bridge), "evcxr_jupyter"], check=True)


def a_restart_ends_a_build():
    with Kernel() as kernel:
        before = kernel.manager.provisioner.pid
        folder = kernel.value('std::env::var("EVCXR_TMPDIR").unwrap()')
        kernel.send(ENDLESS_BUILD)
        await_build(before)
        kernel.manager.restart_kernel(now=False)
        await_none(before)
        kernel.client.wait_for_ready(timeout=300)
        assert kernel.value('std::env::var("EVCXR_TMPDIR").unwrap()') == folder, "another build folder"


def folder_of(bridge):
    """Returns the folder in which evcxr builds cells."""
    listed = subprocess.run(["pgrep", "-o", "-s", str(bridge), "evcxr_jupyter"], capture_output=True, text=True)
    environment = Path("/proc", listed.stdout.strip(), "environ").read_text().split("\0")
    return Path(next(value for value in environment if value.startswith("EVCXR_TMPDIR=")).partition("=")[2])


def manifest_of(bridge):
    return (folder_of(bridge) / "Cargo.toml").read_text()


def the_first_cells_work_is_begun_if_no_cell_has_come(folder):
    notebooks, support = Path(folder, "notebooks"), Path(folder, "support")
    notebooks.mkdir()
    (support / "src").mkdir(parents=True)
    (support / "Cargo.toml").write_text('[package]\nname = "support"\nversion = "1.0.0"\nedition = "2021"\n')
    (support / "src/lib.rs").write_text("pub mod prelude {}\n")
    with Kernel(cwd=notebooks) as kernel:
        bridge, end = kernel.manager.provisioner.pid, time.monotonic() + 60
        while str(support) not in manifest_of(bridge):
            assert time.monotonic() < end, manifest_of(bridge)
            time.sleep(0.1)
        reply, messages = kernel.run("41 + 1")
        assert reply["execution_count"] == 1 and kinds(messages) == ["execute_result"], (reply, messages)
        # Where a cell has come by then, it is not done in vain before that.
        kernel.manager.restart_kernel(now=False)
        kernel.client.wait_for_ready(timeout=300)
        succeed(kernel, "let first = 1;")
        assert str(support) not in manifest_of(kernel.manager.provisioner.pid)


SERVER = """
import sys, time
from jupyter_client.manager import KernelManager
manager = KernelManager(kernel_name="rust")
manager.start_kernel()
client = manager.client()
client.start_channels()
client.wait_for_ready(timeout=300)
# The kernel is ready before evcxr is, which compiles at its start as well.
client.execute_interactive("let ready = 1;", timeout=300)
client.execute(sys.argv[1])
print("kernel", manager.provisioner.pid, flush=True)
time.sleep(600)
"""


def nothing_is_left_by_a_killed_server():
    server = subprocess.Popen([sys.executable, "-c", SERVER, ENDLESS_BUILD], stdout=subprocess.PIPE, text=True)
    bridge = next(int(line.split()[1]) for line in server.stdout if line.startswith("kernel "))
    await_build(bridge)
    server.kill()
    server.wait()
    await_none(bridge)


def await_port(port):
    end = time.monotonic() + 10
    while True:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            assert time.monotonic() < end, "no kernel listens"
            time.sleep(0.05)


def a_client_that_listens_late_hears_the_end_of_what_it_asked():
    """As VS Code does: it asks on the shell channel, then connects to what is published."""
    for listens in [True, False]:
        manager = KernelManager(kernel_name="rust")
        manager.start_kernel()
        await_port(manager.shell_port)
        client = manager.client()
        client.start_channels(iopub=False, stdin=False, hb=False, control=False)
        request = client.kernel_info()
        if listens:
            try:
                raise AssertionError(client.get_shell_msg(timeout=0.5))
            except Empty:
                pass
            client.iopub_channel.start()
        # Nor has anyone to listen.
        assert client.get_shell_msg(timeout=10)["parent_header"]["msg_id"] == request
        client.iopub_channel.start()
        welcome = client.get_iopub_msg(timeout=5)
        assert welcome["msg_type"] == "iopub_welcome" and welcome["content"] == {"subscription": ""}, welcome
        if listens:
            states = [client.get_iopub_msg(timeout=5) for _ in range(2)]
            assert [m["content"]["execution_state"] for m in states] == ["busy", "idle"], states
            assert all(m["parent_header"]["msg_id"] == request for m in states), states
        client.stop_channels()
        manager.shutdown_kernel(now=True)


def every_cell_fails(kernel, *said):
    """A kernel without evcxr says so, and is alive otherwise."""
    for code in ["1 + 1", "let a = 2;"]:
        begun = time.monotonic()
        reply, messages = kernel.run(code)
        assert reply["status"] == "error" and reply["execution_count"] > 0, reply
        told = "\n".join(errors(messages)[-1]["traceback"])
        assert [m["msg_type"] for m in messages] == ["status", "execute_input", "error", "status"], messages
        for part in said:
            assert part in told, (part, told)
        assert time.monotonic() - begun < 2
    kernel.interrupt()
    assert kernel.ask("shell", "is_complete_request", {"code": "("})[0]["status"] == "incomplete"
    assert kernel.client.complete("a", 1, reply=True, timeout=5)["content"]["matches"] == []
    assert kernel.client.inspect("a", 1, reply=True, timeout=5)["content"]["found"] is False
    assert kernel.client.is_alive()


def a_crash_of_evcxr_is_an_error_and_a_restart_goes_on():
    with Kernel() as kernel:
        # Read in evcxr 0.22: a variable that it has given up is looked up again.
        succeed(kernel, "let lost = 1;")
        request = kernel.send("let a: impl Copy = std::")
        queued = kernel.send("1")
        reply, messages = kernel.reply(request), kernel.collect(request)
        assert reply["status"] == "error" and reply["ename"] == "EvcxrCrash", reply
        assert "panicked at" in "\n".join(reply["traceback"]), reply
        assert errors(messages)[-1]["traceback"] == reply["traceback"], messages
        assert kernel.reply(queued)["status"] == "aborted"
        every_cell_fails(kernel, "evcxr", "has crashed", "Restart the kernel")
        assert kernel.variables() == {}
        kernel.manager.restart_kernel(now=False)
        kernel.client.wait_for_ready(timeout=300)
        assert kernel.value("1 + 1") == "2"


# An evcxr that ends as soon as it has something to do.
SHORT_LIVED = f"""#!{sys.executable}
import json, sys, zmq
connection = json.load(open(sys.argv[2]))
context = zmq.Context()
sockets = dict()
for kind, name in [(zmq.ROUTER, "shell"), (zmq.ROUTER, "control"), (zmq.ROUTER, "stdin"), (zmq.PUB, "iopub"), (zmq.REP, "hb")]:
    sockets[name] = context.socket(kind)
    sockets[name].bind(f"tcp://{{connection['ip']}}:{{connection[name + '_port']}}")
sockets["shell"].recv_multipart()
sys.exit("no rust-src")
"""


def a_kernel_that_cannot_start_says_why():
    with tempfile.TemporaryDirectory() as folder:

        def home_of(name, evcxr, mode=0o755):
            program = Path(folder) / name / "tools/evcxr-0.22.0/bin/evcxr_jupyter"
            program.parent.mkdir(parents=True)
            program.write_text(evcxr)
            program.chmod(mode)
            return {"TRANSFER_HOME": str(program.parents[3])}

        for environment, said in [
            ({"LIBTORCH": "/no/libtorch"}, "/no/libtorch/lib is missing"),
            ({"TRANSFER_HOME": f"{folder}/empty"}, "empty/tools/evcxr-0.22.0/bin/evcxr_jupyter is missing"),
            (home_of("ends", "#!/bin/sh\necho no space left on device >&2\nexit 3\n"), "exit status: 3)\nno space left on device"),
            (home_of("listens", SHORT_LIVED), "exit status: 1)\nno rust-src"),
            (home_of("no-program", "", 0o644), "cannot start"),
            ({"TRANSFER_TOOLCHAIN": "/no/toolchain"}, "/no/toolchain/bin/rustc is missing"),
            ({"TMPDIR": "/no/temporary"}, "/no/temporary"),
            ({"TRANSFER_BUILD_FOLDERS": "/dev/null/kernel"}, "cannot create /dev/null"),
        ]:
            with Kernel(**environment) as kernel:
                every_cell_fails(kernel, "could not start", said, "restart the kernel")


def main():
    start = time.monotonic()
    with Kernel() as kernel:
        print(f"  kernel answers: {time.monotonic() - start:.1f} s", flush=True)
        for check in [
            cells_are_numbered_from_one_and_those_without_history_not_at_all,
            a_last_expression_is_compiled_once,
            failures_are_errors,
            text_without_an_end_is_shown_and_hangs_nothing,
            many_lines_pass,
            displays_keep_their_place_and_change_at_once,
            bad_events_are_refused,
            what_editors_ask_is_answered,
            what_needs_no_evcxr_is_answered_while_a_cell_runs,
            the_panel_of_variables_opens_and_nothing_is_debugged,
            variables_have_types_without_support,
            a_running_cell_holds_no_variables_back,
            what_a_thread_writes_after_its_cell_belongs_to_it,
            a_build_is_shown_and_taken_away,
            a_changed_dependency_is_in_the_next_cell,
            cargo_in_a_cell_is_cargo,
            cells_share_one_library_of_what_they_depend_on,
            several_figures_come_in_order,
            variables_tell_what_they_hold,
            stop,
            work_is_stopped,
            a_process_that_exits_is_an_error,
            a_restart_begins_anew,
        ]:
            begun = time.monotonic()
            check(kernel)
            print(f"  {check.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
    for check in [
        a_client_that_listens_late_hears_the_end_of_what_it_asked,
        a_kernel_that_cannot_start_says_why,
        a_crash_of_evcxr_is_an_error_and_a_restart_goes_on,
    ]:
        begun = time.monotonic()
        check()
        print(f"  {check.__name__}: {time.monotonic() - begun:.1f} s", flush=True)
    for end in [shut_down, terminate_bridge, kill_bridge, kill_evcxr]:
        nothing_is_left(end)
    a_restart_ends_a_build()
    with tempfile.TemporaryDirectory() as folder:
        the_first_cells_work_is_begun_if_no_cell_has_come(folder)
    nothing_is_left_by_a_killed_server()
    print("  nothing is left after a shutdown, a restart, an ended or killed bridge, a killed evcxr or server", flush=True)


main()
