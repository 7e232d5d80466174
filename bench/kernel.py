"""Times the kernel beside plain evcxr, in turn: its start, and cells.

Plain evcxr gets the environment and the build folder that the kernel gave it, after the kernel has ended.
"""

import os
import statistics
import subprocess
import time
from pathlib import Path

from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import KernelManager

CELLS = {
    "empty": "let _ = ();",
    "one line": 'println!("one");',
    "10,000 lines": 'for i in 0..10_000 { println!("line {i}"); }',
    "5 MB": 'println!("EVCXR_BEGIN_CONTENT text/plain\\n{}\\nEVCXR_END_CONTENT", "x".repeat(5_000_000));',
}
# The same, once `support` is loaded.
SUPPORT = Path(__file__).resolve().parents[1] / "support"
LOAD = ':dep support = { path = "../support" }\nuse support::prelude::*;'
NOTEBOOK_CELLS = {
    "with support: one line": 'println!("one");',
    "a variable": "let settings = Settings::from_env()?;",
    "a tensor": "let tensor = Tensor::arange(10, (support::tch::Kind::Float, Device::Cpu));",
    "a value shown": "tensor.size()",
}
# Seconds for a person to read, before the first cell.
IDLE = 10
REPEATS = 15
ROUNDS = 4


def plain(kernel):
    """Returns evcxr as a running kernel has started it: a kernelspec and an environment."""
    listed = subprocess.run(["pgrep", "-P", str(kernel.provisioner.pid), "evcxr"], capture_output=True, check=True)
    evcxr = Path("/proc") / listed.stdout.decode().strip()
    variables = (evcxr / "environ").read_bytes().decode().split("\0")
    environment = dict(variable.split("=", 1) for variable in variables if variable)
    del environment["TRANSFER_BRIDGE"]
    argv = [os.readlink(evcxr / "exe"), "--control_file", "{connection_file}"]
    return KernelSpec(argv=argv, display_name="evcxr", language="rust", interrupt_mode="message"), environment


def measure(manager, then=lambda manager: None, **options):
    """Returns the seconds that start and cells take, and what `then` makes of the running kernel."""
    begun = time.perf_counter()
    manager.start_kernel(**options)
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=300)

    def run(code):
        begun = time.perf_counter()
        client.execute_interactive(code, timeout=300, output_hook=lambda message: None)
        return time.perf_counter() - begun

    # The kernel is ready before evcxr is.
    run("let first = 1;")
    seconds = {"start": time.perf_counter() - begun}
    for name, code in CELLS.items():
        seconds[name] = statistics.median(run(code) for _ in range(REPEATS))
    manager.restart_kernel(now=False)
    client.wait_for_ready(timeout=300)
    time.sleep(IDLE)
    seconds |= {"first :dep": run(LOAD), "the next cell": run("let settings = Settings::from_env()?;")}
    for name, code in NOTEBOOK_CELLS.items():
        seconds[name] = statistics.median(run(code) for _ in range(REPEATS))
    result = then(manager)
    client.stop_channels()
    manager.shutdown_kernel(now=False)
    return seconds, result


def main():
    ours, evcxr = [], []
    for _ in range(ROUNDS):
        seconds, (spec, environment) = measure(KernelManager(kernel_name="rust"), plain, cwd=SUPPORT)
        ours.append(seconds)
        manager = KernelManager(kernel_name="evcxr")
        manager._kernel_spec = spec
        evcxr.append(measure(manager, env=environment, cwd=SUPPORT)[0])
    print(f"{'median seconds':<24}{'kernel':>8}{'evcxr':>8}{'more':>8}")
    for name in ours[0]:
        with_bridge, without = (statistics.median(round[name] for round in rounds) for rounds in (ours, evcxr))
        print(f"{name:<24}{with_bridge:8.3f}{without:8.3f}{with_bridge - without:+8.3f}")


main()
