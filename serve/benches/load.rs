//! Asks a server to classify pictures, through many connections, and tells how many it does and how long each takes.
//!
//! ```sh
//! cargo bench -p serve --bench load -- http://127.0.0.1:8000/v1/predict PICTURES --connections 8
//! ```
//!
//! One JSON object a line, for each number of connections. With `--rate`, requests are sent at their times, whether or
//! not those before are answered, and how long one takes counts from then.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Parser;
use serde_json::{Value, json};
use support::dataset::images_in;
use ureq::Agent;

#[derive(Parser)]
struct Options {
    /// Where to send pictures
    url: String,
    /// A folder of them
    pictures: PathBuf,
    /// How many are under way at the same time, one after the other
    #[arg(long, value_delimiter = ',', default_value = "1,8,64")]
    connections: Vec<usize>,
    /// How long to go on, with each number of connections
    #[arg(long, default_value_t = 10.)]
    seconds: f64,
    /// How many to send in a second; else as many as are answered
    #[arg(long)]
    rate: Option<f64>,
    /// The form field a picture is sent in; else it is the body
    #[arg(long)]
    field: Option<String>,
    /// Ask as Gradio has programs ask, in two requests
    #[arg(long, conflicts_with = "field")]
    gradio: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// A request's body, and what it is.
struct Request {
    kind: &'static str,
    body: Vec<u8>,
}

impl Request {
    fn new(picture: Vec<u8>, options: &Options) -> Self {
        if options.gradio {
            let url = format!("data:image/jpeg;base64,{}", STANDARD.encode(picture));
            let file = json!({"url": url, "meta": {"_type": "gradio.FileData"}});
            return Self {
                kind: "application/json",
                body: json!({"data": [file]}).to_string().into_bytes(),
            };
        }
        let Some(field) = &options.field else {
            return Self {
                kind: "image/jpeg",
                body: picture,
            };
        };
        let head = format!(
            "--X\r\nContent-Disposition: form-data; name=\"{field}\"; filename=\"a.jpg\"\r\n\
             Content-Type: image/jpeg\r\n\r\n"
        );
        Self {
            kind: "multipart/form-data; boundary=X",
            body: [head.as_bytes(), &picture, b"\r\n--X--\r\n"].concat(),
        }
    }

    /// Sends it, and returns the answer's status.
    fn send(&self, agent: &Agent, options: &Options) -> anyhow::Result<u16> {
        let request = agent.post(&options.url).content_type(self.kind);
        let mut answer = request.send(&self.body)?;
        let body = answer.body_mut().read_to_vec()?;
        if options.gradio {
            let event: Value = serde_json::from_slice(&body)?;
            let event = event["event_id"].as_str().context("no event")?;
            let mut events = agent.get(format!("{}/{event}", options.url)).call()?;
            let events = events.body_mut().read_to_string()?;
            ensure!(events.contains("event: complete"), "{events}");
        }
        Ok(answer.status().as_u16())
    }
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let paths = images_in(&options.pictures)?;
    ensure!(
        !paths.is_empty(),
        "{}: there is no picture in it",
        options.pictures.display()
    );
    let read = |path| {
        let picture = std::fs::read(path)?;
        Ok(Request::new(picture, &options))
    };
    let requests: Vec<Request> = paths.iter().map(read).collect::<std::io::Result<_>>()?;
    let rounded = |figure: f64| (figure * 10.).round() / 10.;
    // What the first ones do only is not counted.
    send(&options, &requests, 8, Duration::from_secs(2))?;
    for &connections in &options.connections {
        let seconds = Duration::from_secs_f64(options.seconds);
        let (mut answers, seconds) = send(&options, &requests, connections, seconds)?;
        answers.sort_by_key(|answer| answer.1);
        let at = |share: f64| {
            let (_, taken) = answers[((answers.len() - 1) as f64 * share) as usize];
            rounded(taken.as_secs_f64() * 1e3)
        };
        let mut statuses = BTreeMap::new();
        for (status, _) in &answers {
            *statuses.entry(status).or_insert(0) += 1;
        }
        let report = json!({
            "connections": connections,
            "pictures_per_second": rounded(answers.len() as f64 / seconds.as_secs_f64()),
            "p50_ms": at(0.5),
            "p99_ms": at(0.99),
            "statuses": statuses,
        });
        println!("{report}");
    }
    Ok(())
}

/// Returns each answer's status and how long it took, and how long all took.
fn send(
    options: &Options,
    requests: &[Request],
    connections: usize,
    duration: Duration,
) -> anyhow::Result<(Vec<(u16, Duration)>, Duration)> {
    let (next, start) = (AtomicUsize::new(0), Instant::now());
    let connection = || {
        let agent: Agent = Agent::config_builder()
            .http_status_as_error(false)
            .build()
            .into();
        let mut answers = Vec::new();
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            let due = match options.rate {
                None => Instant::now(),
                Some(rate) => start + Duration::from_secs_f64(number as f64 / rate),
            };
            if due > start + duration {
                return Ok(answers);
            }
            thread::sleep(due.saturating_duration_since(Instant::now()));
            let request = &requests[number % requests.len()];
            let status = request.send(&agent, options);
            let status = status.with_context(|| options.url.to_owned())?;
            answers.push((status, due.elapsed()));
        }
    };
    let answers = thread::scope(|scope| {
        let connections: Vec<_> = (0..connections).map(|_| scope.spawn(connection)).collect();
        let ended = connections.into_iter().map(|thread| {
            let ended = thread.join();
            ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        });
        ended.collect::<anyhow::Result<Vec<_>>>()
    })?;
    Ok((answers.into_iter().flatten().collect(), start.elapsed()))
}
