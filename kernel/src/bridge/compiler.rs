//! Ending what compiles for a cell, so that Stop loses no variable before the cell runs.

use sysinfo::{Pid, Process, ProcessRefreshKind, ProcessesToUpdate, Signal, System};

/// Ends the cargo that evcxr runs, if it runs one, and all below that; returns whether it did.
pub(super) fn stop(evcxr: Option<u32>) -> bool {
    let Some(evcxr) = evcxr.map(Pid::from_u32) else {
        return false;
    };
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::All,
        true,
        ProcessRefreshKind::nothing().without_tasks(),
    );
    let children_of = |parent: Pid| {
        let all = system.processes().values();
        all.filter(move |process| process.parent() == Some(parent))
    };
    let is_cargo = |process: &&Process| process.name() == "cargo";
    let mut ending: Vec<&Process> = children_of(evcxr).filter(is_cargo).collect();
    let compiles = !ending.is_empty();
    while let Some(process) = ending.pop() {
        ending.extend(children_of(process.pid()));
        // One that has just ended is as good.
        let _signalled = process.kill_with(Signal::Kill);
    }
    compiles
}
