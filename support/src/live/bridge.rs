//! The kernel's bridge, as the code in a cell sees it: a socket that takes lines of JSON. The
//! kernel's `bridge/events.rs` describes them.
//!
//! Connected anew for each use: what one cell keeps in a static, the next has no part in.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use serde_json::{Map, Value, json};

/// Names the socket.
const SOCKET: &str = "TRANSFER_BRIDGE";
const VERSION: u64 = 1;
/// Before and after an id on a line of stdout, where what the id stands for is to be shown.
const MARK: char = '\u{1e}';
/// The bridge answers at once, or is gone.
const PATIENCE: Duration = Duration::from_secs(2);

pub(super) struct Bridge {
    stream: BufReader<UnixStream>,
    /// Whether it did not answer in time, or is gone: it is not waited for again.
    lost: bool,
}

impl Bridge {
    /// Connects to the bridge, where there is one.
    pub(super) fn connect() -> Option<Self> {
        Self::connect_to(std::env::var_os(SOCKET)?.as_ref())
    }

    pub(super) fn connect_to(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.set_write_timeout(Some(PATIENCE)).ok()?;
        let stream = BufReader::new(stream);
        Some(Self {
            stream,
            lost: false,
        })
    }

    /// Shows something in order with the text.
    pub(super) fn display(mut self, mime: &str, content: &str) -> Option<Displayed> {
        let id = new_id();
        let shown = self.tell(json!({"event": "display", "id": id, "data": data(mime, content)}));
        if !shown {
            return None;
        }
        println!("{MARK}{id}{MARK}");
        Some(Displayed { bridge: self, id })
    }

    /// Returns a connection on which a line arrives when Stop is pressed, and which never blocks.
    pub(super) fn listen(mut self) -> Option<BufReader<UnixStream>> {
        if !self.tell(json!({"event": "listen"})) {
            return None;
        }
        self.stream.get_ref().set_nonblocking(true).ok()?;
        Some(self.stream)
    }

    /// Tells the bridge of an event; returns whether it took it.
    fn tell(&mut self, mut event: Value) -> bool {
        if self.lost {
            return false;
        }
        event["version"] = VERSION.into();
        let mut answer = String::new();
        let told = self
            .stream
            .get_mut()
            .write_all(format!("{event}\n").as_bytes());
        let heard = told.and_then(|()| self.stream.read_line(&mut answer));
        self.lost = !matches!(heard, Ok(1..));
        serde_json::from_str::<Value>(&answer).is_ok_and(|answer| answer["event"] == "ok")
    }
}

/// What was shown, for changing it.
pub(super) struct Displayed {
    bridge: Bridge,
    id: String,
}

impl Displayed {
    /// Shows something in its place; returns whether the bridge took it.
    pub(super) fn update(&mut self, mime: &str, content: &str) -> bool {
        let data = data(mime, content);
        self.bridge
            .tell(json!({"event": "update", "id": self.id, "data": data}))
    }
}

fn data(mime: &str, content: &str) -> Map<String, Value> {
    Map::from_iter([(mime.to_owned(), content.into())])
}

/// Returns an id that this notebook has not used: statics begin anew in every cell.
fn new_id() -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
    format!("d{:x}x{count:x}", now.as_nanos())
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::mpsc;
    use std::thread::{self, JoinHandle};
    use std::time::Instant;

    use tempfile::TempDir;

    use super::*;

    /// A bridge that takes one client and gives these answers; its end returns what it was told.
    pub(in crate::live) fn bridge(answers: &'static [&str]) -> (TempDir, JoinHandle<Vec<Value>>) {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(folder.path().join("events")).unwrap();
        let told = thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let answer = |answer: &&str| {
                let line = lines.next()?.unwrap();
                writeln!(stream, "{answer}").unwrap();
                Some(serde_json::from_str(&line).unwrap())
            };
            answers.iter().map_while(answer).collect()
        });
        (folder, told)
    }

    pub(in crate::live) const OK: &str = r#"{"version":1,"event":"ok"}"#;

    #[test]
    fn what_is_told_is_a_line_of_json_of_this_version() {
        let (folder, told) = bridge(&[OK, OK, r#"{"version":1,"event":"refused"}"#]);
        let bridge = Bridge::connect_to(&folder.path().join("events")).unwrap();
        let mut shown = bridge.display("text/plain", "a \"text\"\n").unwrap();
        assert!(shown.update("text/plain", "b"));
        assert!(!shown.update("text/plain", "c"), "refused");
        assert!(!shown.update("text/plain", "d"), "gone");
        let id = shown.id;
        let told = told.join().unwrap();
        let data = json!({"text/plain": "a \"text\"\n"});
        assert_eq!(
            told[0],
            json!({"version": 1, "event": "display", "id": id, "data": data})
        );
        assert_eq!(told[1]["event"], "update");
    }

    #[test]
    fn a_bridge_that_hangs_is_waited_for_once() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("events");
        let listener = UnixListener::bind(&socket).unwrap();
        let bridge = Bridge::connect_to(&socket).unwrap();
        let (mut hung, _) = listener.accept().unwrap();
        writeln!(hung, "{OK}").unwrap();
        let mut shown = bridge.display("text/plain", "").unwrap();
        // More than the socket holds: without an end to the writing, this would wait for ever.
        let much = "x".repeat(16 << 20);
        let (start, told) = (Instant::now(), mpsc::channel());
        thread::spawn(move || {
            (0..10).for_each(|_| assert!(!shown.update("text/plain", &much)));
            told.0.send(start.elapsed())
        });
        let took = told.1.recv_timeout(10 * PATIENCE).unwrap();
        assert!(took < 3 * PATIENCE, "{took:?}");
    }

    #[test]
    fn without_a_bridge_there_is_no_connection() {
        assert!(Bridge::connect_to(Path::new("/nowhere/events")).is_none());
    }

    #[test]
    fn an_id_is_of_letters_and_digits_and_comes_once() {
        let ids = [new_id(), new_id()];
        assert_ne!(ids[0], ids[1]);
        assert!(ids.concat().chars().all(|c| c.is_ascii_alphanumeric()));
    }
}
