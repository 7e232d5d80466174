//! A server to ask, as a process of its own. Needs the default weights.
#![allow(dead_code, reason = "not every test uses all of it")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../../support/tests/small_set/mod.rs"]
pub(crate) mod small_set;

use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;
use support::classifier::TrainingRecord;
use support::settings::BrokenImages;
use support::training::Fit;
use tempfile::TempDir;

/// A running server, with a model of cats and dogs.
pub(crate) struct Server {
    pub(crate) child: Child,
    pub(crate) address: String,
    pub(crate) folder: TempDir,
}

/// An answer: status, header in lower case, and body.
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) header: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }
}

/// Returns a folder with pictures of two classes, and a model of them.
pub(crate) fn model_of(classes: &[&str; 2], epochs: usize) -> TempDir {
    let folder = small_set::pictures(classes, 4);
    let batches = small_set::batches(folder.path(), BrokenImages::Stop).0;
    let mut model = small_set::model(155, 1e-3);
    if epochs > 0 {
        model.fit(&batches, Fit::epochs(epochs)).unwrap();
    }
    let path = folder.path().join("model.safetensors");
    model.save(&path, &TrainingRecord::new(&batches)).unwrap();
    folder
}

impl Server {
    pub(crate) fn start(options: &[&str]) -> Self {
        Self::after(0, options)
    }

    /// Starts one with a model that was trained for so many epochs.
    pub(crate) fn after(epochs: usize, options: &[&str]) -> Self {
        let folder = model_of(&["cats", "dogs"], epochs);
        let path = folder.path().join("model.safetensors");
        let mut child = Command::new(env!("CARGO_BIN_EXE_serve"))
            .arg(&path)
            .args(["--port", "0", "--device", "cpu"])
            .args(options)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut line).unwrap();
        let address = line.trim().rsplit_once("://").unwrap().1;
        let address = address.replace("0.0.0.0", "127.0.0.1");
        Self {
            child,
            address,
            folder,
        }
    }

    /// Asserts that its process is there, and has never taken more memory.
    pub(crate) fn is_within(&self, bytes: usize) {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:"))
            .unwrap();
        let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
        assert!(peak * 1024 < bytes, "{} MiB", peak >> 10);
        println!("at most {} MiB", peak >> 10);
    }

    /// Returns how many files and connections its process has open.
    pub(crate) fn open_files(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id()));
        files.unwrap().count()
    }

    pub(crate) fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(60)))
            .unwrap();
        stream
    }

    /// Asks with a header's lines, without those that every request has.
    pub(crate) fn ask(&self, request: &str, lines: &[&str], body: &[u8]) -> Answer {
        let mut stream = self.connect();
        let length = format!("Content-Length: {}", body.len());
        let host = format!("Host: {}", self.address);
        let lines = [&[&*host, &*length, "Connection: close"], lines].concat();
        let header = format!("{request} HTTP/1.1\r\n{}\r\n\r\n", lines.join("\r\n"));
        stream.write_all(header.as_bytes()).unwrap();
        // A refused body is not read to its end.
        let _ = stream.write_all(body);
        answer(stream)
    }

    pub(crate) fn picture(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.picture_path(name)).unwrap()
    }

    pub(crate) fn picture_path(&self, name: &str) -> PathBuf {
        self.folder.path().join("train").join(name)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn answer(mut stream: TcpStream) -> Answer {
    let mut bytes = Vec::new();
    // Where the server closes before it has read all, what it said comes first; but close it does.
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_ne!(
            error.kind(),
            ErrorKind::WouldBlock,
            "the connection stays open"
        );
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (header, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = header
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Answer {
        status: status.unwrap_or(0),
        header: header.to_ascii_lowercase(),
        body: body.to_owned(),
    }
}

pub(crate) fn form(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, bytes) in parts {
        body.extend(b"--X\r\nContent-Disposition: form-data; name=\"image\"; filename=\"");
        body.extend(name.as_bytes());
        body.extend(b"\"\r\n\r\n");
        body.extend(*bytes);
        body.extend(b"\r\n");
    }
    body.extend(b"--X--\r\n");
    body
}

pub(crate) const FORM: &str = "Content-Type: multipart/form-data; boundary=X";
