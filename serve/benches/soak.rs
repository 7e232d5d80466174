//! Asks a server all kinds of things for an hour, and shows that it takes no more memory and handles for it.
//!
//! ```sh
//! cargo bench -p serve --bench soak -- PICTURES --minutes 60
//! ```
//!
//! A line for each twelfth of the time; the exit code is 1 if memory or handles grew after the first.
#![allow(clippy::unwrap_used, reason = "a broken answer ends it")]

#[path = "../tests/program/mod.rs"]
mod program;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use program::{FORM, Server, form};
use serde_json::json;
use support::dataset::images_in;

#[derive(Parser)]
struct Options {
    /// A folder of pictures
    pictures: PathBuf,
    /// How long to go on
    #[arg(long, default_value_t = 60.)]
    minutes: f64,
    /// Requests a second
    #[arg(long, default_value_t = 100.)]
    rate: f64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Threads that ask.
const CLIENTS: usize = 8;

/// How often it is told how things are.
const TIMES: u32 = 12;

/// What may be more at the end than after the first twelfth: allocators do not keep house to the page.
const LEEWAY: u64 = 32 << 20;

fn main() -> ExitCode {
    let options = Options::parse();
    let paths = images_in(&options.pictures).unwrap();
    let pictures: Vec<Vec<u8>> = paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect();
    let kept = tempfile::tempdir().unwrap();
    let kept = kept.path().to_str().unwrap();
    let server = Server::after(
        1,
        &[
            "--collect",
            kept,
            "--max-collected",
            "500",
            "--body-timeout",
            "2",
        ],
    );
    let (next, start) = (AtomicU64::new(0), Instant::now());
    let all = Duration::from_secs_f64(options.minutes * 60.);
    let taken = Mutex::new(Vec::new());
    let client = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let due = start + Duration::from_secs_f64(number as f64 / options.rate);
        if due > start + all {
            break;
        }
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let asked = Instant::now();
        if ask(&server, &pictures, number) {
            taken.lock().unwrap().push(asked.elapsed());
        }
    };
    println!(
        "| minutes | requests | one picture, p50 and p99, ms | memory, MiB | handles |\n|---|---|---|---|---|"
    );
    let tell = |time: u32| {
        let after = all * time / TIMES;
        thread::sleep((start + after).saturating_duration_since(Instant::now()));
        let mut taken = std::mem::take(&mut *taken.lock().unwrap());
        taken.sort();
        let at =
            |share: f64| taken[((taken.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let (memory, handles) = (server.memory("VmRSS"), server.open_files());
        println!(
            "| {:.0} | {} | {:.1}, {:.1} | {} | {handles} |",
            after.as_secs_f64() / 60.,
            next.load(Ordering::Relaxed),
            at(0.5),
            at(0.99),
            memory >> 20,
        );
        (memory, handles)
    };
    let told: Vec<(u64, usize)> = thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(client);
        }
        (1..=TIMES).map(tell).collect()
    });
    let (first, last) = (told[0], told[told.len() - 1]);
    let grew = last.0 > first.0 + LEEWAY || last.1 > first.1 + CLIENTS;
    match grew {
        true => {
            eprintln!("error: it grew");
            ExitCode::FAILURE
        }
        false => ExitCode::SUCCESS,
    }
}

/// Asks for something, in turn; returns whether that was one picture's class.
fn ask(server: &Server, pictures: &[Vec<u8>], number: u64) -> bool {
    let picture = |more: u64| &*pictures[(number + more) as usize % pictures.len()];
    let (jpeg, json) = ("Content-Type: image/jpeg", "Content-Type: application/json");
    let damaged = || {
        let mut damaged = picture(0).to_vec();
        damaged.truncate(damaged.len() / 2);
        damaged[number as usize % 1000] ^= 0xff;
        damaged
    };
    let expected = |request: &str, lines: &[&str], body: &[u8], statuses: &[u16]| {
        let answer = server.ask(request, lines, body);
        assert!(
            statuses.contains(&answer.status),
            "{request}: {}",
            answer.body
        );
    };
    match number % 16 {
        0 => {
            let several: Vec<(&str, &[u8])> = (0..8).map(|more| ("a.jpg", picture(more))).collect();
            expected("POST /v1/predict", &[FORM], &form(&several), &[200]);
        }
        1 => {
            let both = form(&[("a.jpg", picture(0)), ("b.jpg", &damaged())]);
            expected("POST /v1/predict", &[FORM], &both, &[200]);
        }
        2 => expected("POST /v1/predict", &[jpeg], &damaged(), &[200, 422]),
        3 => {
            let body = json!({"image": STANDARD.encode(picture(0))}).to_string();
            expected("POST /v1/predict", &[json], body.as_bytes(), &[200]);
        }
        4 => {
            let image = json!({"name": "image", "shape": [1], "datatype": "BYTES", "data": [STANDARD.encode(picture(0))]});
            let body = json!({"inputs": [image]}).to_string();
            expected(
                "POST /v2/models/model/infer",
                &[json],
                body.as_bytes(),
                &[200],
            );
        }
        5 => expected("POST /v1/explain", &[jpeg], picture(0), &[200]),
        // No more is kept at some time.
        6 => expected(
            "POST /v1/collect?class=cats",
            &[jpeg],
            picture(0),
            &[201, 507],
        ),
        7 => expected("GET /", &[], b"", &[200]),
        8 => expected("GET /metrics", &[], b"", &[200]),
        9 => expected("GET /v1/../../etc/passwd", &[], b"", &[404]),
        10 => expected("POST /v1/predict", &[json], b"{\"image\": 1}", &[400]),
        11 => {
            // Broken off, some of them later.
            let mut stream = server.connect();
            let _ = stream.write_all(
                b"POST /v1/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999\r\n\r\nhalf",
            );
            if number % 32 == 11 {
                thread::sleep(Duration::from_millis(500));
            }
        }
        _ => {
            expected("POST /v1/predict", &[jpeg], picture(0), &[200]);
            return true;
        }
    }
    false
}
