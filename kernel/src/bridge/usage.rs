//! What the kernel takes of the machine, which JupyterLab shows where it has an extension for that.

use std::process;

use jupyter_protocol::UnknownMessage;
use serde_json::json;
use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

use super::processes;

/// Two measurements make a load: the first answer tells none.
pub(super) struct Usage(System);

impl Usage {
    pub(super) fn new() -> Self {
        Self(System::new())
    }

    /// Answers a `usage_request` with the fields that ipykernel has in it.
    pub(super) fn answer(&mut self) -> UnknownMessage {
        let Self(system) = self;
        let kind = ProcessRefreshKind::nothing().with_cpu().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind.without_tasks());
        system.refresh_cpu_usage();
        system.refresh_memory();
        let own = processes::tree(system, Pid::from_u32(process::id()));
        let cpu: f32 = own.iter().map(|process| process.cpu_usage()).sum();
        let memory: u64 = own.iter().map(|process| process.memory()).sum();
        let (total, available) = (system.total_memory(), system.available_memory());
        let taken = total.saturating_sub(available);
        UnknownMessage {
            msg_type: "usage_reply".to_owned(),
            content: json!({
                "hostname": System::host_name(),
                "pid": process::id(),
                "kernel_cpu": cpu,
                "kernel_memory": memory,
                "cpu_count": system.cpus().len(),
                "host_cpu_percent": system.global_cpu_usage(),
                "host_virtual_memory": {
                    "total": total,
                    "available": available,
                    "percent": 100.0 * taken as f64 / total as f64,
                    "used": system.used_memory(),
                    "free": system.free_memory(),
                },
            }),
        }
    }
}
