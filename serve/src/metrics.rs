//! What is counted, for Prometheus.

use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Answer {
    route: String,
    status: u16,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    answers: Family<Answer, Counter>,
    request_seconds: Histogram,
    batch_pictures: Histogram,
    batch_seconds: Histogram,
    pub(crate) connections: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let seconds = || {
            Histogram::new([
                0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1., 2.5, 10.,
            ])
        };
        let mut metrics = Self {
            registry: Registry::with_prefix("serve"),
            answers: Family::default(),
            request_seconds: seconds(),
            batch_pictures: Histogram::new([1., 2., 4., 8., 16., 32., 64., 128.]),
            batch_seconds: seconds(),
            connections: Gauge::default(),
        };
        let Metrics {
            registry,
            answers,
            request_seconds,
            batch_pictures,
            batch_seconds,
            connections,
        } = &mut metrics;
        registry.register("requests", "Answers, by route and status", answers.clone());
        let help = "From a request's header to its answer";
        registry.register("request_seconds", help, request_seconds.clone());
        let help = "Pictures that the network took together";
        registry.register("batch_pictures", help, batch_pictures.clone());
        let help = "What the network took for a batch";
        registry.register("batch_seconds", help, batch_seconds.clone());
        registry.register("connections", "Open connections", connections.clone());
        metrics
    }

    pub(crate) fn answer(&self, route: &str, status: u16, elapsed: Duration) {
        let route = route.to_owned();
        self.answers.get_or_create(&Answer { route, status }).inc();
        self.request_seconds.observe(elapsed.as_secs_f64());
    }

    pub(crate) fn batch(&self, pictures: usize, elapsed: Duration) {
        self.batch_pictures.observe(pictures as f64);
        self.batch_seconds.observe(elapsed.as_secs_f64());
    }

    /// Returns them in the OpenMetrics text format.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        // A text has room for everything.
        let _ = text::encode(&mut text, &self.registry);
        text
    }
}
