//! The notebook's Stop button.

use std::io::{BufReader, Read as _};
use std::os::unix::net::UnixStream;

use super::bridge::Bridge;
use crate::distributed::ProcessGroup;

/// Hears of the Stop button of the notebook whose cell it was made in: a loop that asks it after
/// every step ends without losing anything.
///
/// While one lives, Stop asks; without one, Stop can only end the process. Outside this project's
/// kernel nothing is ever heard.
#[derive(Debug)]
pub struct Stop {
    bridge: Option<BufReader<UnixStream>>,
    requested: bool,
}

impl Stop {
    /// Begins to listen.
    #[must_use]
    pub fn listen() -> Self {
        Self {
            bridge: Bridge::connect().and_then(Bridge::listen),
            requested: false,
        }
    }

    /// Begins to listen, unless there are several processes: one alone cannot stop.
    pub(crate) fn of(group: &ProcessGroup) -> Self {
        match group.size() {
            1 => Self::listen(),
            _ => Self {
                bridge: None,
                requested: false,
            },
        }
    }

    /// Returns whether Stop has been pressed since this began to listen.
    pub fn requested(&mut self) -> bool {
        if let Some(bridge) = &mut self.bridge
            && !self.requested
        {
            match bridge.read(&mut [0; 64]) {
                Ok(0) => self.bridge = None,
                Ok(_) => self.requested = true,
                // Nothing has come yet.
                Err(_) => {}
            }
        }
        self.requested
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::super::bridge::tests::{OK, bridge};
    use super::*;

    fn stop_at(folder: &Path) -> Stop {
        let bridge = Bridge::connect_to(&folder.join("events"));
        Stop {
            bridge: bridge.and_then(Bridge::listen),
            requested: false,
        }
    }

    #[test]
    fn a_line_from_the_bridge_is_a_request_and_its_end_is_none() {
        const STOP: &str = concat!(
            r#"{"version":1,"event":"ok"}"#,
            "\n",
            r#"{"version":1,"event":"stop"}"#
        );
        let (folder, _told) = bridge(&[STOP]);
        let mut stop = stop_at(folder.path());
        let end = Instant::now() + Duration::from_secs(10);
        while !stop.requested() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(stop.requested() && stop.requested());

        let (folder, told) = bridge(&[OK]);
        let mut stop = stop_at(folder.path());
        told.join().unwrap();
        assert!(!stop.requested() && !stop.requested());
    }

    #[test]
    fn nothing_is_heard_without_a_bridge() {
        assert!(!stop_at(Path::new("/nowhere")).requested());
    }
}
