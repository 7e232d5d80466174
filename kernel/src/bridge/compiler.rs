//! Ending what compiles for a cell, so that Stop loses no variable before the cell runs.

use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, Signal, System};

use super::processes::{children, tree};

/// Ends the cargo that evcxr runs, if it runs one, and all below that; returns whether it did.
pub(super) fn stop(evcxr: Pid) -> bool {
    let mut system = System::new();
    system.refresh_processes_specifics(
        ProcessesToUpdate::All,
        true,
        ProcessRefreshKind::nothing().without_tasks(),
    );
    let cargo = children(&system, evcxr).find(|process| process.name() == "cargo");
    let compiling = cargo.map_or(Vec::new(), |cargo| tree(&system, cargo.pid()));
    for process in &compiling {
        // One that has just ended is as good.
        let _signalled = process.kill_with(Signal::Kill);
    }
    !compiling.is_empty()
}
