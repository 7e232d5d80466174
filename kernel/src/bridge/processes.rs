//! The processes below another one.

use sysinfo::{Pid, Process, System};

/// Returns the processes that this one has started.
pub(super) fn children(system: &System, parent: Pid) -> impl Iterator<Item = &Process> {
    let all = system.processes().values();
    all.filter(move |process| process.parent() == Some(parent))
}

/// Returns a process, if it lives, and all below it.
pub(super) fn tree(system: &System, root: Pid) -> Vec<&Process> {
    let mut tree: Vec<_> = system.process(root).into_iter().collect();
    let mut next = 0;
    while let Some(process) = tree.get(next) {
        tree.extend(children(system, process.pid()));
        next += 1;
    }
    tree
}
