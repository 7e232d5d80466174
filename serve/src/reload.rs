//! A model file that is replaced while it is served.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use support::classifier::Classifier;
use support::tch::Device;
use tokio::task;
use tokio::time::sleep;

use crate::log;
use crate::routes::App;

/// How often the file is looked at. It is loaded once it has stayed the same for as long.
const INTERVAL: Duration = Duration::from_secs(1);

/// When a file was written, and how long it is; none where it is not there.
fn state(path: &Path) -> Option<(SystemTime, u64)> {
    let file = fs::metadata(path).ok()?;
    Some((file.modified().ok()?, file.len()))
}

/// Loads a model file anew whenever it has changed, beside the model before, which stays where the file cannot be used.
pub(crate) async fn watch(app: Arc<App>, path: PathBuf, device: Device) {
    let mut loaded = state(&path);
    let mut before = loaded;
    loop {
        sleep(INTERVAL).await;
        let now = state(&path);
        let is_new = now.is_some() && now != loaded && now == before;
        before = now;
        if !is_new {
            continue;
        }
        loaded = now;
        let file = path.clone();
        match task::spawn_blocking(move || Classifier::load_on(file, device)).await {
            Ok(Ok(classifier)) => {
                app.batcher().replace(classifier);
                log(format_args!(
                    "{} was replaced, and is served now",
                    path.display()
                ));
            }
            Ok(Err(error)) => log(format_args!("{error}; the model before is served on")),
            Err(error) => log(format_args!(
                "{}: {error}; the model before is served on",
                path.display()
            )),
        }
    }
}
