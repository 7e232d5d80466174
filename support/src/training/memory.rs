//! How much memory there is to spare.

use std::fs;
use std::path::Path;

/// Returns how many bytes a process could take without swapping: what the system has left, or the
/// process' control groups (cgroup v2) do, if that is less. `None` where the system does not tell.
pub(super) fn available() -> Option<u64> {
    available_under(Path::new("/"))
}

fn available_under(root: &Path) -> Option<u64> {
    let system = field(&root.join("proc/meminfo"), "MemAvailable:")? * 1024;
    let groups = root.join("sys/fs/cgroup");
    let own = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let own = own.lines().find_map(|line| line.strip_prefix("0::/"));
    // A group has its own limit and those of the groups around it.
    let group = groups.join(own.unwrap_or_default());
    let around = group
        .ancestors()
        .take_while(|group| group.starts_with(&groups));
    around.filter_map(left).chain([system]).min()
}

/// Returns how many bytes a control group may still take, if it has a limit.
fn left(group: &Path) -> Option<u64> {
    let number = |name: &str| -> Option<u64> {
        let text = fs::read_to_string(group.join(name)).ok()?;
        text.trim().parse().ok()
    };
    let used = number("memory.current")?;
    // Files that were read and are not in use any more count as used, and go when room is wanted.
    let spare = field(&group.join("memory.stat"), "inactive_file").unwrap_or(0);
    Some(number("memory.max")?.saturating_sub(used.saturating_sub(spare)))
}

/// Returns the number after a name at the start of one of a file's lines.
fn field(file: &Path, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let mut lines = text.lines().map(str::split_whitespace);
    let mut line = lines.find_map(|mut words| (words.next() == Some(name)).then_some(words))?;
    line.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_available_is_the_least_that_the_system_and_the_control_groups_leave() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let available = || available_under(root.path());
        assert_eq!(available(), None);
        write(
            "proc/meminfo",
            "MemTotal: 9000 kB\nMemFree: 1 kB\nMemAvailable:  4000 kB\n",
        );
        assert_eq!(available(), Some(4_096_000));
        // The group's own files lie at the top where a container sees only its own.
        write("proc/self/cgroup", "4:memory:/old\n0::/outer/inner\n");
        write("sys/fs/cgroup/outer/inner/memory.max", "max\n");
        write("sys/fs/cgroup/outer/inner/memory.current", "600000\n");
        assert_eq!(available(), Some(4_096_000));
        write("sys/fs/cgroup/outer/memory.max", "2000000\n");
        write("sys/fs/cgroup/outer/memory.current", "1500000\n");
        assert_eq!(available(), Some(500_000));
        write(
            "sys/fs/cgroup/outer/memory.stat",
            "anon 5\ninactive_file 400000\nfile 9\n",
        );
        assert_eq!(available(), Some(900_000));
        write("sys/fs/cgroup/outer/inner/memory.max", "1200000\n");
        assert_eq!(available(), Some(600_000));
        write("sys/fs/cgroup/outer/memory.current", "9000000\n");
        assert_eq!(available(), Some(0));
    }
}
