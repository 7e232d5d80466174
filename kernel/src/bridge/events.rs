//! What the code in a cell tells the bridge, and the other way round: lines of JSON over a socket
//! in a folder that only this user can enter.
//!
//! `support::notebook` and the prelude (`prelude.rs`) have the other end. Each line carries the
//! version of this set; a line of another one is refused. Every line that is taken is answered by
//! `{"version":1,"event":"ok"}`, so that who waits for that knows that it has arrived.

use std::fmt;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// The environment variable that names the socket.
pub const SOCKET: &str = "TRANSFER_BRIDGE";

/// The version of the messages.
pub const VERSION: u64 = 1;

/// The most bytes of a line: an image in it may be large, a runaway client may not fill memory.
/// Reading and parsing a line takes three times as much at most.
const MAX_LINE: usize = 64 << 20;

/// The most MIME types in which one thing is shown.
const MAX_TYPES: usize = 16;

/// What a cell's code tells.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// Something to be shown, by MIME type, once a line `MARK id MARK` has come by on stdout; that
    /// keeps it in order with the text.
    Display {
        id: String,
        data: Map<String, Value>,
    },
    /// What was shown under this id becomes this, at once.
    Update {
        id: String,
        data: Map<String, Value>,
    },
    /// A text for people: of a panic, or of an error that a `?` has met.
    Note { text: String },
    /// The cell ends with a panic or an error.
    Failed,
    /// What Cargo is compiling for the cell, as in `7/350: syn, serde`.
    Build { text: String },
    /// Whoever holds this connection ends its work when a line with the event `stop` arrives.
    Listen,
}

/// A line's fields. Others, and values of another type, are passed over without being kept: a line
/// of a million empty lists must not grow to many times its size.
#[derive(Deserialize)]
struct Fields {
    event: Kind,
    id: Option<String>,
    data: Option<Data>,
    text: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Display,
    Update,
    Note,
    Failed,
    Build,
    Listen,
}

#[derive(Deserialize)]
struct Version {
    version: Option<u64>,
}

/// Texts by MIME type.
struct Data(Map<String, Value>);

impl<'de> Deserialize<'de> for Data {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(DataVisitor)
    }
}

struct DataVisitor;

impl<'de> Visitor<'de> for DataVisitor {
    type Value = Data;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("texts by MIME type")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Data, A::Error> {
        let mut data = Map::new();
        while let Some((mime, text)) = entries.next_entry::<String, String>()? {
            data.insert(mime, Value::String(text));
            if data.len() > MAX_TYPES {
                return Err(A::Error::custom(format!(
                    "more than {MAX_TYPES} MIME types"
                )));
            }
        }
        Ok(Data(data))
    }
}

#[derive(Serialize)]
struct Answer<'a> {
    version: u64,
    event: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// The listening socket. Its folder goes with it.
pub(super) struct Events {
    folder: TempDir,
    pub(super) coming: UnboundedReceiver<Event>,
    stop: Arc<watch::Sender<u64>>,
}

impl Events {
    pub(super) fn listen() -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("transfer-kernel-")
            .permissions(Permissions::from_mode(0o700))
            .tempdir()
            .context("cannot create a folder for the kernel's socket")?;
        let path = folder.path().join("events");
        let listener = UnixListener::bind(&path)
            .with_context(|| format!("cannot listen at {}", path.display()))?;
        let (sender, coming) = unbounded_channel();
        let stop = Arc::new(watch::Sender::new(0));
        let stops = stop.clone();
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let (sender, stops) = (sender.clone(), stops.clone());
                        tokio::spawn(async move {
                            if let Err(error) = serve(stream, sender, &stops).await {
                                eprintln!("an event was not taken: {error:#}");
                            }
                        });
                    }
                    Err(error) => {
                        eprintln!("events: {error}");
                        return;
                    }
                }
            }
        });
        Ok(Self {
            folder,
            coming,
            stop,
        })
    }

    /// Returns the folder that the socket is in.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Returns where the socket is.
    pub(super) fn path(&self) -> PathBuf {
        self.folder().join("events")
    }

    /// Asks whoever listens to end; returns whether anyone does.
    pub(super) fn stop(&self) -> bool {
        let listening = self.stop.receiver_count() > 0;
        if listening {
            self.stop.send_modify(|count| *count += 1);
        }
        listening
    }
}

async fn serve(
    stream: UnixStream,
    sender: UnboundedSender<Event>,
    stop: &watch::Sender<u64>,
) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut read = BufReader::new(read);
    while let Some(line) = line(&mut read, MAX_LINE).await? {
        let event = match parse(&line) {
            Ok(event) => event,
            Err(reason) => {
                answer(&mut write, "refused", Some(format!("{reason:#}"))).await?;
                return Err(reason);
            }
        };
        if event == Event::Listen {
            let stopped = stop.subscribe();
            answer(&mut write, "ok", None).await?;
            return listen(read, write, stopped).await;
        }
        sender.send(event)?;
        answer(&mut write, "ok", None).await?;
    }
    Ok(())
}

/// Waits until a stop is asked for, or the client is gone.
async fn listen(
    mut read: BufReader<OwnedReadHalf>,
    mut write: OwnedWriteHalf,
    mut stopped: watch::Receiver<u64>,
) -> anyhow::Result<()> {
    loop {
        tokio::select! {
            changed = stopped.changed() => {
                changed?;
                answer(&mut write, "stop", None).await?;
            }
            line = line(&mut read, MAX_LINE) => {
                if line?.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

/// Reads a line of at most `most` bytes; returns `None` where the client has hung up.
async fn line(
    read: &mut (impl AsyncBufRead + Unpin),
    most: usize,
) -> anyhow::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    loop {
        let available = read.fill_buf().await?;
        if available.is_empty() {
            anyhow::ensure!(
                line.is_empty(),
                "the client hung up in the middle of a line"
            );
            return Ok(None);
        }
        let end = available.iter().position(|&byte| byte == b'\n');
        let length = end.map_or(available.len(), |end| end + 1);
        anyhow::ensure!(
            line.len() + length <= most,
            "a line of more than {most} bytes"
        );
        line.extend_from_slice(&available[..length]);
        read.consume(length);
        if end.is_some() {
            return Ok(Some(line));
        }
    }
}

fn parse(line: &[u8]) -> anyhow::Result<Event> {
    let Version { version } = serde_json::from_slice(line).context("not a line of JSON")?;
    anyhow::ensure!(
        version == Some(VERSION),
        "version {}, where {VERSION} is spoken: `support` and the kernel are of different ages; run `cargo xtask setup`",
        version.map_or("null".to_owned(), |version| version.to_string()),
    );
    let fields: Fields = serde_json::from_slice(line).context("not an event")?;
    let shown = (fields.id, fields.data);
    match (fields.event, shown, fields.text) {
        (Kind::Display, (Some(id), Some(Data(data))), _) => Ok(Event::Display { id, data }),
        (Kind::Update, (Some(id), Some(Data(data))), _) => Ok(Event::Update { id, data }),
        (Kind::Note, _, Some(text)) => Ok(Event::Note { text }),
        (Kind::Failed, ..) => Ok(Event::Failed),
        (Kind::Build, _, Some(text)) => Ok(Event::Build { text }),
        (Kind::Listen, ..) => Ok(Event::Listen),
        (Kind::Display | Kind::Update, ..) => anyhow::bail!("missing field `id` or `data`"),
        (Kind::Note | Kind::Build, ..) => anyhow::bail!("missing field `text`"),
    }
}

async fn answer(
    write: &mut OwnedWriteHalf,
    event: &str,
    reason: Option<String>,
) -> anyhow::Result<()> {
    let version = VERSION;
    let mut line = serde_json::to_vec(&Answer {
        version,
        event,
        reason,
    })?;
    line.push(b'\n');
    Ok(write.write_all(&line).await?)
}

#[cfg(test)]
mod tests {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    use proptest::prelude::*;
    use proptest::test_runner::{Config, RngSeed};
    use serde_json::json;

    use super::*;

    /// Counts what each thread holds, and the most that it has held.
    struct Counting;

    thread_local! {
        static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
    }

    fn count(bytes: isize) {
        // At a thread's end there is nothing to count with.
        let _ = HELD.try_with(|held| {
            let (now, most) = held.get();
            held.set((now + bytes, most.max(now + bytes)));
        });
    }

    // SAFETY: the system's allocator does the work.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count(layout.size().cast_signed());
            // SAFETY: as the caller promises.
            unsafe { System.alloc(layout) }
        }

        unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
            count(-layout.size().cast_signed());
            // SAFETY: as the caller promises.
            unsafe { System.dealloc(block, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    /// Returns the most bytes that `work` has held at a time, beside what was held before.
    fn most_held(work: impl FnOnce()) -> usize {
        let before = HELD.get().0;
        HELD.set((before, before));
        work();
        (HELD.get().1 - before).cast_unsigned()
    }

    /// What an error and its texts take beside the line.
    const SLACK: usize = 8 << 10;

    #[test]
    fn a_line_is_an_event_of_this_version_or_refused_with_a_reason() {
        let note = br#"{"version":1,"event":"note","text":"a"}"#;
        assert_eq!(parse(note).unwrap(), Event::Note { text: "a".into() });
        let display = br#"{"version":1,"event":"display","id":"a","data":{"text/plain":"b"}}"#;
        let data = Map::from_iter([("text/plain".to_owned(), "b".into())]);
        let id = "a".to_owned();
        assert_eq!(parse(display).unwrap(), Event::Display { id, data });
        for (line, reason) in [
            (&b"{"[..], "not a line of JSON"),
            (br#"{"event":"failed"}"#, "version null"),
            (br#"{"version":2,"event":"failed"}"#, "cargo xtask setup"),
            (br#"{"version":1,"event":"note"}"#, "missing field"),
            (
                br#"{"version":1,"event":"update","id":"a"}"#,
                "missing field",
            ),
            (br#"{"version":1,"event":"other"}"#, "unknown variant"),
        ] {
            let error = format!("{:#}", parse(line).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn a_line_of_a_million_small_values_is_parsed_or_refused_without_growing() {
        let small = |value: &str| [value; 100_000].join(",");
        let types: Vec<_> = (0..100_000).map(|n| format!(r#""{n}":"""#)).collect();
        for field in [
            format!(r#""data":[{}]"#, small("[]")),
            format!(r#""data":{{"text/plain":[{}]}}"#, small("0")),
            format!(r#""data":{{{}}}"#, types.join(",")),
            format!(r#""other":[{}]"#, small("[]")),
            format!(r#""version":[{}]"#, small("[]")),
            format!(r#""text":"{}""#, "\\n".repeat(100_000)),
        ] {
            let line = format!(r#"{{"event":"failed",{field},"version":1}}"#);
            let held = most_held(|| drop(parse(line.as_bytes())));
            assert!(
                held <= 2 * line.len() + SLACK,
                "{held} bytes for {}",
                line.len()
            );
        }
    }

    #[tokio::test]
    async fn a_line_that_never_ends_is_refused_before_it_takes_more_than_its_limit() {
        let endless = std::io::Cursor::new(vec![b' '; 1 << 20]);
        let mut held = 0;
        let mut read = BufReader::new(endless);
        let limit = 100_000;
        let begun = HELD.get().0;
        HELD.set((begun, begun));
        let refused = line(&mut read, limit).await;
        held += HELD.get().1 - begun;
        let error = refused.unwrap_err().to_string();
        assert_eq!(error, "a line of more than 100000 bytes");
        // While a vector grows, it is there twice: half as large, and as large.
        assert!(held.cast_unsigned() <= 3 * limit + SLACK, "{held}");
    }

    /// An event's line, of any fields, known and unknown.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (0..4_u64).prop_map(Value::from),
            ".{0,20}".prop_map(Value::from),
        ];
        let value = leaf.prop_recursive(3, 20, 5, |inner| {
            let array = prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from);
            let types = prop::collection::vec((".{0,8}", inner), 0..20);
            prop_oneof![
                array,
                types.prop_map(|types| Value::Object(types.into_iter().collect()))
            ]
        });
        let event = prop::sample::select(vec![
            "display", "update", "note", "failed", "build", "listen", "other",
        ]);
        (
            event,
            prop::option::of(".{0,20}"),
            value,
            prop::option::of(".{0,20}"),
            0..9_u8,
        )
            .prop_map(|(event, id, data, text, version)| {
                let version = if version < 8 { VERSION } else { 2 };
                json!({"version": version, "event": event, "id": id, "data": data, "text": text})
                    .to_string()
                    .into_bytes()
            })
    }

    /// A line, or bytes that were one: some changed, some gone, or any at all.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        let change = (any::<prop::sample::Index>(), any::<u8>(), 0..3_u8);
        let changes = prop::collection::vec(change, 0..4);
        let mutated = (lines(), changes).prop_map(|(mut line, changes)| {
            for (at, byte, how) in changes {
                let at = at.index(line.len());
                match how {
                    0 => line[at] = byte,
                    1 => line.insert(at, byte),
                    _ => line.truncate(at + 1),
                }
            }
            line
        });
        prop_oneof![4 => mutated, 1 => prop::collection::vec(any::<u8>(), 0..200)]
    }

    proptest! {
        #![proptest_config(Config {
            cases: 10_000,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..Config::default()
        })]

        #[test]
        fn any_bytes_are_an_event_or_an_error_within_the_memory_of_their_line(line in bytes()) {
            let held = most_held(|| drop(parse(&line)));
            prop_assert!(held <= 2 * line.len() + SLACK, "{held} bytes for {}", line.len());
        }

        #[test]
        fn any_bytes_are_read_as_the_lines_they_are_or_refused_for_their_length(
            text in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>()], 0..300),
            most in 1..60_usize,
            buffer in 1..40_usize,
        ) {
            let mut read = BufReader::with_capacity(buffer, text.as_slice());
            let mut expected = text.split_inclusive(|&byte| byte == b'\n');
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            while let Ok(Some(found)) = runtime.block_on(line(&mut read, most)) {
                prop_assert!(found.len() <= most);
                prop_assert_eq!(Some(&found[..]), expected.next());
            }
            // What is left is too long, or has no end.
            if let Some(left) = expected.next() {
                prop_assert!(left.len() > most || !left.ends_with(b"\n"), "{left:?}");
            }
        }
    }
}
