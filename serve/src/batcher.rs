//! The way of pictures through the network: decoded on all cores, classified in the batches that they come in.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use support::Error;
use support::classifier::{Classification, Classifier, Explained, PreparedImage};
use tokio::sync::{Semaphore, oneshot};
use tokio::task;

use crate::log;
use crate::metrics::Metrics;
use crate::options::Bounds;
use crate::problem::Problem;
use crate::upload::Picture;

/// A classifier with a queue before it.
#[derive(Debug)]
pub(crate) struct Batcher {
    /// The newest; requests that began with another go on with that.
    classifier: RwLock<Arc<Classifier>>,
    queue: SyncSender<Job>,
    /// Pictures that are being decoded, or wait for that.
    coming: Arc<AtomicUsize>,
    cores: Arc<Semaphore>,
    /// Bytes that decoding a picture may take.
    memory: u64,
}

/// A picture that waits for the network.
struct Job {
    classifier: Arc<Classifier>,
    image: PreparedImage,
    reply: oneshot::Sender<Result<Classification, Problem>>,
}

/// Counts a picture as coming for as long as it lives.
struct Coming(Arc<AtomicUsize>);

impl Coming {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Coming {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Batcher {
    /// Starts the thread that the network runs on; it ends with the queue.
    pub(crate) fn start(
        classifier: Classifier,
        bounds: &Bounds,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let (queue, jobs) = sync_channel(bounds.max_queue as usize);
        let (classifier, coming) = (RwLock::new(Arc::new(classifier)), Arc::default());
        let network = Network {
            jobs,
            coming: Arc::clone(&coming),
            batch: bounds.batch as usize,
            wait: Duration::from_millis(bounds.wait.into()),
            metrics,
        };
        thread::Builder::new()
            .name("network".into())
            .spawn(move || network.run())?;
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            classifier,
            queue,
            coming,
            cores: Arc::new(Semaphore::new(cores)),
            memory: u64::from(bounds.max_picture) << 20,
        })
    }

    /// Returns the classifier for a request.
    pub(crate) fn classifier(&self) -> Arc<Classifier> {
        Arc::clone(
            &self
                .classifier
                .read()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    /// Takes another classifier for the requests to come.
    pub(crate) fn replace(&self, classifier: Classifier) {
        let mut current = self
            .classifier
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(classifier);
    }

    /// Tells where in a picture its class comes from; not in a batch.
    pub(crate) async fn explain(
        &self,
        classifier: &Arc<Classifier>,
        picture: &Picture,
    ) -> Result<Explained, Problem> {
        self.worked(classifier, picture, Classifier::explain_prepared)
            .await
    }

    /// Classifies a picture.
    pub(crate) async fn classify(
        &self,
        classifier: &Arc<Classifier>,
        picture: &Picture,
    ) -> Result<Classification, Problem> {
        let coming = Coming::new(&self.coming);
        let image = self
            .worked(classifier, picture, |_, image| Ok(image))
            .await?;
        let (reply, answer) = oneshot::channel();
        let job = Job {
            classifier: Arc::clone(classifier),
            image,
            reply,
        };
        self.queue
            .try_send(job)
            .map_err(|_| Problem::busy("too many pictures wait for the network"))?;
        drop(coming);
        answer.await.map_err(|error| internal(&error))?
    }

    /// Reads a picture and does something with it, on as many threads as there are cores.
    async fn worked<T: Send + 'static>(
        &self,
        classifier: &Arc<Classifier>,
        picture: &Picture,
        work: impl FnOnce(&Classifier, PreparedImage) -> support::Result<T> + Send + 'static,
    ) -> Result<T, Problem> {
        let core = Arc::clone(&self.cores).acquire_owned().await;
        let (picture, memory) = (picture.clone(), self.memory);
        let classifier = Arc::clone(classifier);
        let worked = task::spawn_blocking(move || {
            let _core = core;
            let image = picture.decode(memory)?;
            drop(picture);
            work(&classifier, classifier.prepare(image)?)
        });
        let worked = worked.await.map_err(|error| internal(&error))?;
        worked.map_err(|error| unreadable(&error))
    }
}

fn unreadable(error: &Error) -> Problem {
    match error {
        Error::Image { name, reason } => Problem::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("{name}: {reason}"),
        ),
        error => internal(error),
    }
}

fn internal(error: &impl std::fmt::Display) -> Problem {
    log(error);
    let detail = "the picture could not be classified; the server's output says why";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail)
}

/// What the network's thread needs.
struct Network {
    jobs: Receiver<Job>,
    coming: Arc<AtomicUsize>,
    batch: usize,
    wait: Duration,
    metrics: Arc<Metrics>,
}

impl Network {
    fn run(self) {
        while let Ok(first) = self.jobs.recv() {
            let mut batch = self.batch_after(first);
            // Nobody waits for them any more.
            batch.retain(|job| !job.reply.is_closed());
            while let Some(first) = batch.first() {
                let classifier = Arc::clone(&first.classifier);
                let is_its = |job: &Job| Arc::ptr_eq(&job.classifier, &classifier);
                let (its, others) = batch.into_iter().partition(is_its);
                self.classify(&classifier, its);
                batch = others;
            }
        }
    }

    /// Takes what has come, and waits a moment for what is coming.
    fn batch_after(&self, first: Job) -> Vec<Job> {
        let (mut batch, end) = (vec![first], Instant::now() + self.wait);
        while batch.len() < self.batch {
            let left = match self.coming.load(Ordering::Relaxed) {
                0 => Duration::ZERO,
                _ => end.saturating_duration_since(Instant::now()),
            };
            match self.jobs.recv_timeout(left) {
                Ok(job) => batch.push(job),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        batch
    }

    fn classify(&self, classifier: &Classifier, batch: Vec<Job>) {
        let start = Instant::now();
        let (images, replies): (Vec<_>, Vec<_>) =
            batch.into_iter().map(|job| (job.image, job.reply)).unzip();
        let found = classifier.predict_prepared(images);
        self.metrics.batch(replies.len(), start.elapsed());
        // Whoever has gone away misses nothing.
        match found {
            Ok(found) => replies
                .into_iter()
                .zip(found)
                .for_each(|(reply, found)| drop(reply.send(Ok(found)))),
            Err(error) => {
                let problem = internal(&error);
                replies
                    .into_iter()
                    .for_each(|reply| drop(reply.send(Err(problem.clone()))));
            }
        }
    }
}
