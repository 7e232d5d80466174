//! What set-up says: a line per step, with what was done and how long it took.

use std::fmt::Display;
use std::time::{Duration, Instant};

/// Prints a step that is known to be quick, or was already done.
pub(crate) fn done(step: &str, what: impl Display) {
    println!("{step:<13} {what}");
}

/// Announces a step that takes a while, runs it, and says how long it took.
pub(crate) fn timed<T>(
    step: &str,
    what: impl Display,
    work: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    println!("{step:<13} {what} ...");
    let start = Instant::now();
    let result = work()?;
    println!("{step:<13} done in {}", duration(start.elapsed()));
    Ok(result)
}

/// Returns a duration as a person writes it.
pub(crate) fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", duration.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        _ => format!("{} min {:02} s", seconds / 60, seconds % 60),
    }
}

/// Returns a size as a person writes it.
pub(crate) fn size(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let megabytes = bytes as f64 / 1e6;
    if megabytes < 1000.0 {
        format!("{megabytes:.0} MB")
    } else {
        format!("{:.1} GB", megabytes / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_read_naturally() {
        assert_eq!(duration(Duration::from_millis(240)), "0.2 s");
        assert_eq!(duration(Duration::from_secs(59)), "59 s");
        assert_eq!(duration(Duration::from_secs(185)), "3 min 05 s");
        assert_eq!(size(12_400_000), "12 MB");
        assert_eq!(size(4_830_000_000), "4.8 GB");
    }
}
