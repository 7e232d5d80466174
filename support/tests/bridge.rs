//! Fitting and evaluating under a bridge as the kernel's: what is shown while they run, and Stop.
//! Needs the default weights.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod small_set;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use small_set::{batches, dataset, format, model, pictures, weights};
use support::Error;
use support::data_report::data_report;
use support::notebook::{DisplayHandle, display};
use support::pipeline::{Dataset, Pixels};
use support::settings::BrokenImages;
use support::training::{EarlyStopping, Evaluation, Fit, LearningRateFinder};

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
        .args(["--exact", "--include-ignored", "--nocapture", test])
        .env(UNDER_BRIDGE, folder.path())
        .env("TRANSFER_BRIDGE", &socket)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(stdout.contains("1 passed"), "{stdout}");
    let shown = shown.lock().unwrap().clone();
    (shown, stdout)
}

#[test]
#[ignore = "needs weights"]
fn a_fit_is_shown_in_place_and_stops_with_its_history() {
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        let batches = batches(&PathBuf::from(folder), BrokenImages::Stop);
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
#[ignore = "needs weights"]
fn a_stop_within_the_validation_is_heard_there() {
    const EXAMPLES: usize = 600;
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        let folder = PathBuf::from(folder);
        let (train, _) = batches(&folder, BrokenImages::Stop);
        // First: once Stop was pressed, everything stops.
        let mut whole = model(155, 1e-4);
        whole
            .fit(&train, Fit::epochs(1).cache_activations(false))
            .unwrap();
        let [_, pictures, _] = dataset(&folder, BrokenImages::Stop)
            .split([8, 1, 1])
            .unwrap();
        let examples = pictures.examples().iter().cycle().take(EXAMPLES).cloned();
        let classes = pictures.classes().to_vec();
        let pictures = Dataset::new(examples.collect(), classes, 0, BrokenImages::Stop);
        let seen = AtomicUsize::new(0);
        let validation = pictures.map(move |image| {
            // Early in the validation of the second epoch.
            if seen.fetch_add(1, Ordering::Relaxed) == EXAMPLES + 20 {
                display(&Evaluation {
                    loss: 77.,
                    ..Evaluation::default()
                });
            }
            format(image)
        });
        let validation = validation.batch(1);
        let early_stopping = EarlyStopping::new().patience(9).restore_best_weights(true);
        let fit = Fit::epochs(3)
            .validation(&validation)
            .early_stopping(early_stopping);
        let mut stopped = model(155, 1e-4);
        let history = stopped.fit(&train, fit.cache_activations(false)).unwrap();
        assert_eq!(history.epochs.len(), 1);
        assert!(weights(&stopped) == weights(&whole), "the weights differ");
        return;
    }
    let (shown, _) = under_bridge(
        "a_stop_within_the_validation_is_heard_there",
        "loss: 77.0000",
    );
    let told = "\nstopped in the validation of epoch 2, which is trained; the history has the 1 before\n\
                restored the weights of epoch 1, the best one";
    assert!(shown.iter().any(|event| text(event).ends_with(told)));
}

/// What runs under the bridge, and what is then to be stopped.
fn stops_with_an_error(test: &str, what: &str, run: impl Fn(&Path) -> support::Result<()>) {
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        display(&support::device::device_report());
        let error = (0..1000)
            .find_map(|_| run(Path::new(&folder)).err())
            .unwrap();
        assert!(matches!(error, Error::Stopped { .. }), "{error}");
        let start = format!("stopped: {what}, after ");
        assert!(error.to_string().starts_with(&start), "{error}");
        return;
    }
    under_bridge(test, "");
}

#[test]
#[ignore = "needs weights"]
fn an_evaluation_stops_with_an_error() {
    stops_with_an_error("an_evaluation_stops_with_an_error", "evaluate", |folder| {
        let (train, _) = batches(folder, BrokenImages::Stop);
        model(155, 1e-4).evaluate(&train).map(|_| ())
    });
}

#[test]
fn a_data_report_stops_with_an_error() {
    stops_with_an_error(
        "a_data_report_stops_with_an_error",
        "data_report",
        |folder| {
            let [train, validation, _] = dataset(folder, BrokenImages::Stop).split([8, 1, 1])?;
            data_report(&[("train", &train), ("validation", &validation)]).map(|_| ())
        },
    );
}

#[test]
#[ignore = "needs weights"]
fn a_search_for_a_learning_rate_stops_with_an_error_and_the_model_as_before() {
    let name = "a_search_for_a_learning_rate_stops_with_an_error_and_the_model_as_before";
    stops_with_an_error(name, "find_learning_rate", |folder| {
        let (train, _) = batches(folder, BrokenImages::Stop);
        let mut model = model(140, 1e-4);
        let before = weights(&model);
        let found = model.find_learning_rate(&train, LearningRateFinder::new());
        assert!(weights(&model) == before, "the weights changed");
        found.map(|_| ())
    });
}

#[test]
#[ignore = "needs weights"]
fn an_evaluation_that_is_done_leaves_nothing_of_its_progress() {
    if let Some(folder) = std::env::var_os(UNDER_BRIDGE) {
        let dataset = dataset(Path::new(&folder), BrokenImages::Stop);
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
