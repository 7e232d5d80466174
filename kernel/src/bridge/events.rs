//! What the code in a cell tells the bridge, and the other way round: lines of JSON over a socket
//! in a folder that only this user can enter.
//!
//! `support::notebook` and the prelude (`prelude.rs`) have the other end. Each line carries the
//! version of this set; a line of another one is refused. Every line that is taken is answered by
//! `{"version":1,"event":"ok"}`, so that who waits for that knows that it has arrived.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::watch;

/// The environment variable that names the socket.
pub const SOCKET: &str = "TRANSFER_BRIDGE";

/// The version of the messages.
pub const VERSION: u64 = 1;

/// The most bytes of a line: a picture in it may be large, a runaway client may not fill memory.
const MAX_LINE: usize = 64 << 20;

/// What a cell's code tells.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
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
    /// Whoever holds this connection ends its work when a line with the event `stop` arrives.
    Listen,
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
        let listener = UnixListener::bind(folder.path().join("events"))?;
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

    /// Returns where the socket is.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("events")
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
    while let Some(line) = line(&mut read).await? {
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
            line = line(&mut read) => {
                if line?.is_none() {
                    return Ok(());
                }
            }
        }
    }
}

async fn line(read: &mut BufReader<OwnedReadHalf>) -> anyhow::Result<Option<Vec<u8>>> {
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
        line.extend_from_slice(&available[..length]);
        read.consume(length);
        if end.is_some() {
            return Ok(Some(line));
        }
        anyhow::ensure!(
            line.len() <= MAX_LINE,
            "a line of more than {MAX_LINE} bytes"
        );
    }
}

fn parse(line: &[u8]) -> anyhow::Result<Event> {
    let value: Value = serde_json::from_slice(line).context("not a line of JSON")?;
    let version = &value["version"];
    anyhow::ensure!(
        *version == VERSION,
        "version {version}, where {VERSION} is spoken: `support` and the kernel are of different ages; run `cargo xtask setup`"
    );
    serde_json::from_value(value).context("not an event")
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
    use super::*;

    #[test]
    fn a_line_is_an_event_of_this_version_or_refused_with_a_reason() {
        let note = br#"{"version":1,"event":"note","text":"a"}"#;
        assert_eq!(parse(note).unwrap(), Event::Note { text: "a".into() });
        for (line, reason) in [
            (&b"{"[..], "not a line of JSON"),
            (br#"{"event":"failed"}"#, "version null"),
            (br#"{"version":2,"event":"failed"}"#, "cargo xtask setup"),
            (br#"{"version":1,"event":"note"}"#, "missing field"),
            (br#"{"version":1,"event":"other"}"#, "unknown variant"),
        ] {
            let error = format!("{:#}", parse(line).unwrap_err());
            assert!(error.contains(reason), "{error}");
        }
    }
}
