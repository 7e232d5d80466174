//! Serves a model file: a page that classifies pictures, and an interface for other programs.

mod batcher;
mod collection;
mod examples;
mod host;
mod metrics;
mod open_inference;
mod openapi;
mod options;
mod problem;
mod reload;
mod routes;
mod server;
mod upload;

use std::fmt::Display;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use clap::Parser as _;
use support::classifier::Classifier;
use support::device;
use tokio::signal::unix::{SignalKind, signal};

use crate::batcher::Batcher;
use crate::collection::Collection;
use crate::examples::Examples;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::routes::App;

fn main() -> ExitCode {
    let options = Options::parse();
    if let Some(reason) = options.unsafe_because() {
        eprintln!("error: {reason}");
        return ExitCode::from(2);
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Says what goes on; where nobody listens any more, it goes on all the same.
pub(crate) fn log(text: impl Display) {
    let _ = writeln!(io::stderr(), "{text}");
}

fn run(options: &Options) -> anyhow::Result<()> {
    let certificate = options.tls_cert.as_deref().zip(options.tls_key.as_deref());
    let tls = certificate
        .map(|(certificate, key)| server::tls(certificate, key))
        .transpose()?;
    // Such an error says its cause by itself.
    let whole = |error: support::Error| anyhow!("{error}");
    let device = device::pick(&options.device).map_err(whole)?;
    let classifier = Classifier::load_on(&options.model, device).map_err(whole)?;
    let collection = options
        .collect
        .as_deref()
        .map(|folder| Collection::open(folder, classifier.classes(), &options.bounds));
    let collection = collection.transpose()?;
    let examples = options.examples.as_deref();
    let examples = examples.map(|place| Examples::read(place, &options.bounds));
    let examples = examples.transpose()?.unwrap_or_default();
    let metrics = Arc::new(Metrics::new());
    let batcher = Batcher::start(classifier, &options.bounds, Arc::clone(&metrics))?;
    let app = Arc::new(App::new(options, batcher, collection, examples, metrics));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let address = SocketAddr::new(options.host, options.port);
    let served: anyhow::Result<()> = runtime.block_on(async {
        let listener = server::listen(address).await?;
        let (mut terminate, mut interrupt) = (
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        );
        let scheme = if tls.is_some() { "https" } else { "http" };
        println!(
            "{} at {scheme}://{}",
            options.model.display(),
            listener.local_addr()?
        );
        tokio::spawn(reload::watch(
            Arc::clone(&app),
            options.model.clone(),
            device,
        ));
        server::serve(listener, app, tls, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await;
        Ok(())
    });
    // What a blocking thread still decodes, nobody waits for.
    runtime.shutdown_background();
    served
}
