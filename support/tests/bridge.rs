//! Fitting and evaluating under a bridge as the kernel's: what is shown while they run, and Stop.
//! Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use small_set::{batches, model, pictures};
use support::Error;
use support::dataset::ImageDataset;
use support::notebook::{DisplayHandle, display};
use support::pipeline::Pixels;
use support::settings::{BrokenPictures, Settings};
use support::training::Fit;

/// Tells this program, by an environment variable, that it is the one under the bridge.
const UNDER_BRIDGE: &str = "TRANSFER_TEST_UNDER_BRIDGE";

/// Serves one client: answers each event, keeps those that show something, and asks whoever listens
/// to stop once `stop_at` has been shown.
fn serve(stream: UnixStream, shown: &Mutex<Vec<Value>>, stop_at: &str) {
    let mut answers = stream.try_clone().unwrap();
    for line in BufReader::new(stream).lines() {
        let Ok(line) = line else { return };
        let event: Value = serde_json::from_str(&line).unwrap();
        writeln!(answers, r#"{{"version":1,"event":"ok"}}"#).unwrap();
        if event["event"] != "listen" {
            shown.lock().unwrap().push(event);
            continue;
        }
        while !shown
            .lock()
            .unwrap()
            .iter()
            .any(|event| text(event).contains(stop_at))
        {
            thread::sleep(std::time::Duration::from_millis(2));
        }
        let _ = writeln!(answers, r#"{{"version":1,"event":"stop"}}"#);
    }
}

fn text(event: &Value) -> &str {
    event["data"]["text/plain"].as_str().unwrap_or_default()
}

/// Runs the test of this name again under a bridge; returns what it showed and wrote.
fn under_bridge(test: &str, stop_at: &'static str) -> (Vec<Value>, String) {
    let folder = pictures(&["cats", "dogs"], 6);
    let socket = folder.path().join("events");
    let listener = UnixListener::bind(&socket).unwrap();
    let shown = Arc::new(Mutex::new(Vec::new()));
    let kept = shown.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let kept = kept.clone();
            thread::spawn(move || serve(stream.unwrap(), &kept, stop_at));
        }
    });
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(UNDER_BRIDGE, folder.path())
        .env("TRANSFER_BRIDGE", &socket)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let shown = shown.lock().unwrap().clone();
    (shown, String::from_utf8(output.stdout).unwrap())
}

#[test]
fn a_fit_is_shown_in_place_and_stops_with_its_history() {
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        let batches = batches(&PathBuf::from(folder), BrokenPictures::Stop);
        let mut figure = DisplayHandle::new();
        let endless =
            Fit::epochs(5000).on_epoch_end(|history| figure.update(&history.learning_curves()?));
        let mut model = model(155, 1e-4);
        let history = model.fit(&batches.0, endless).unwrap();
        assert!((2..5000).contains(&history.epochs.len()));
        return;
    }
    let (shown, stdout) = under_bridge(
        "a_fit_is_shown_in_place_and_stops_with_its_history",
        "Epoch 3/",
    );
    let of = |kind: &str, mime: &str| -> Vec<&Value> {
        let with_mime = |event: &&Value| event["event"] == kind && event["data"][mime].is_string();
        shown.iter().filter(with_mime).collect()
    };
    assert_eq!(
        of("display", "text/plain").len(),
        1,
        "one output, changed in place"
    );
    let last = text(of("update", "text/plain").last().unwrap());
    assert!(
        last.starts_with("frozen up to") && last.contains("\nEpoch 2/5000\n"),
        "{last}"
    );
    let last_line = last.lines().last().unwrap();
    assert!(last_line.starts_with("stopped after step "), "{last_line}");
    assert_eq!(
        of("display", "image/png").len(),
        1,
        "one figure, changed in place"
    );
    assert!(!of("update", "image/png").is_empty());
    assert!(!stdout.contains("Epoch"), "{stdout}");
}

#[test]
fn an_evaluation_stops_with_an_error() {
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        let (train, _) = batches(&PathBuf::from(folder), BrokenPictures::Stop);
        let model = model(155, 1e-4);
        display(&support::device::device_report());
        let evaluated = (0..1000).find_map(|_| model.evaluate(&train).err());
        let error = evaluated.unwrap();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        assert!(
            error
                .to_string()
                .starts_with("stopped: evaluate, after batch "),
            "{error}"
        );
        return;
    }
    under_bridge("an_evaluation_stops_with_an_error", "");
}

#[test]
fn an_evaluation_that_is_done_leaves_nothing_of_its_progress() {
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        let mut settings = Settings::from_env().unwrap();
        settings.dataset = folder.into_string().ok();
        let dataset = ImageDataset::load(&settings).unwrap();
        let [train, _, _] = dataset.split([8, 1, 1]).unwrap();
        let slow = train.map(|image| {
            thread::sleep(std::time::Duration::from_millis(1500));
            Pixels::from(image).resize(96, 96)
        });
        model(155, 1e-4).evaluate(&slow.batch(1)).unwrap();
        return;
    }
    let (shown, _) = under_bridge(
        "an_evaluation_that_is_done_leaves_nothing_of_its_progress",
        "never shown",
    );
    let texts: Vec<&str> = shown.iter().map(text).collect();
    assert!(texts.iter().any(|text| text.contains("img/s")), "{texts:?}");
    assert_eq!(texts.last(), Some(&""));
}
