//! The way of pictures through the network: a thread for each core decodes them, and classifies in batches what is
//! decoded.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use support::Error;
use support::classifier::{Classification, Classifier, Explained, PreparedImage};
use support::device;
use tokio::sync::oneshot;

use crate::log;
use crate::metrics::Metrics;
use crate::options::Bounds;
use crate::problem::{Code, Problem};
use crate::upload::Picture;

/// A classifier with queues before it.
pub(crate) struct Batcher {
    /// The newest; requests that began with another go on with that.
    classifier: RwLock<Arc<Classifier>>,
    work: Arc<Work>,
    /// Pictures that may wait.
    most: usize,
    /// Bytes that decoding a picture may take.
    memory: u64,
}

/// What is done to a picture as it came; it is ready for the network after it, or somebody has been answered.
type Task = Box<dyn FnOnce() -> Option<Prepared> + Send>;

/// Where an answer goes.
type Reply<T> = oneshot::Sender<Result<T, Problem>>;

/// A picture that waits for the network.
struct Prepared {
    classifier: Arc<Classifier>,
    image: PreparedImage,
    reply: Reply<Classification>,
    since: Instant,
}

impl Batcher {
    /// Starts the threads; they end with the program.
    pub(crate) fn start(
        classifier: Classifier,
        bounds: &Bounds,
        metrics: Arc<Metrics>,
    ) -> std::io::Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let on_gpu = classifier.model().base().device().is_cuda();
        let work = Arc::new(Work {
            queues: Mutex::default(),
            more: Condvar::new(),
            networks: if on_gpu { 1 } else { cores },
            batch: bounds.batch as usize,
            wait: Duration::from_millis(bounds.wait.into()),
            metrics,
        });
        for core in 0..cores {
            let work = Arc::clone(&work);
            thread::Builder::new()
                .name(format!("pictures {core}"))
                .spawn(move || work.go_on())?;
        }
        Ok(Self {
            classifier: RwLock::new(Arc::new(classifier)),
            work,
            most: bounds.max_queue as usize,
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

    /// Classifies a picture.
    pub(crate) async fn classify(
        &self,
        classifier: &Arc<Classifier>,
        picture: &Picture,
    ) -> Result<Classification, Problem> {
        let then = |classifier, image, reply| {
            Some(Prepared {
                classifier,
                image,
                reply,
                since: Instant::now(),
            })
        };
        self.prepare(classifier, picture, then).await
    }

    /// Tells where in a picture its class comes from; not in a batch.
    pub(crate) async fn explain(
        &self,
        classifier: &Arc<Classifier>,
        picture: &Picture,
    ) -> Result<Explained, Problem> {
        let then = |classifier: Arc<Classifier>, image, reply: Reply<_>| {
            let explained = classifier.explain_prepared(image);
            let _ = reply.send(explained.map_err(|error| internal(&error)));
            None
        };
        self.prepare(classifier, picture, then).await
    }

    /// Has a picture prepared and something done with it then, and returns the answer.
    async fn prepare<T: Send + 'static>(
        &self,
        classifier: &Arc<Classifier>,
        picture: &Picture,
        then: impl FnOnce(Arc<Classifier>, PreparedImage, Reply<T>) -> Option<Prepared> + Send + 'static,
    ) -> Result<T, Problem> {
        let (picture, memory) = (picture.clone(), self.memory);
        let classifier = Arc::clone(classifier);
        let (reply, answer) = oneshot::channel();
        let task = move || {
            if reply.is_closed() {
                return None;
            }
            let image = picture.decode(memory);
            let image = image.map_err(|error| unreadable(&error, &picture.bytes));
            drop(picture);
            let image =
                image.and_then(|image| classifier.prepare(image).map_err(|error| internal(&error)));
            match image {
                Ok(image) => then(classifier, image, reply),
                Err(problem) => {
                    let _ = reply.send(Err(problem));
                    None
                }
            }
        };
        self.work.add(Box::new(task), self.most)?;
        // Nothing comes after a panic.
        answer.await.map_err(|error| internal(&error))?
    }
}

fn unreadable(error: &Error, bytes: &[u8]) -> Problem {
    let Error::Image { name, reason } = error else {
        return internal(error);
    };
    let code = if bytes.is_empty() {
        Code::EmptyPicture
    } else if image::guess_format(bytes).is_err() {
        Code::NotAPicture
    } else if reason.contains("to decode, and") {
        Code::PictureTooLarge
    } else {
        Code::DamagedPicture
    };
    let detail = format!("{name}: {reason}");
    Problem::new(StatusCode::UNPROCESSABLE_ENTITY, detail).code(code)
}

fn internal(error: &impl std::fmt::Display) -> Problem {
    log(error);
    let detail = "the picture could not be classified; the server's output says why";
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, detail).code(Code::NotClassified)
}

/// What the threads share.
struct Work {
    queues: Mutex<Queues>,
    more: Condvar,
    /// Threads that may classify at the same time: on a CPU, each by itself, which takes fewer seconds of its cores than
    /// all together.
    networks: usize,
    batch: usize,
    wait: Duration,
    metrics: Arc<Metrics>,
}

#[derive(Default)]
struct Queues {
    coming: VecDeque<Task>,
    prepared: VecDeque<Prepared>,
    /// Threads that classify.
    classifying: usize,
}

/// What a thread does next.
enum Next {
    Prepare(Task),
    Classify(Vec<Prepared>),
}

impl Work {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, task: Task, most: usize) -> Result<(), Problem> {
        let mut queues = self.queues();
        if queues.coming.len() + queues.prepared.len() >= most {
            return Err(Problem::busy("too many pictures wait for the network"));
        }
        queues.coming.push_back(task);
        drop(queues);
        self.more.notify_one();
        Ok(())
    }

    fn go_on(&self) {
        if self.networks > 1 {
            device::compute_alone();
        }
        loop {
            match self.next() {
                // A panic has been told of, and its picture's answer is that there is none.
                Next::Prepare(task) => {
                    if let Ok(Some(prepared)) = catch_unwind(AssertUnwindSafe(task)) {
                        self.queues().prepared.push_back(prepared);
                        self.more.notify_one();
                    }
                }
                Next::Classify(batch) => {
                    let _ = catch_unwind(AssertUnwindSafe(|| self.classify(batch)));
                    self.queues().classifying -= 1;
                    self.more.notify_one();
                }
            }
        }
    }

    fn next(&self) -> Next {
        let mut queues = self.queues();
        loop {
            if let Some(batch) = self.batch(&mut queues) {
                return Next::Classify(batch);
            }
            if let Some(task) = queues.coming.pop_front() {
                return Next::Prepare(task);
            }
            queues = self
                .more
                .wait(queues)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes a thread's part of what is prepared: as soon as there is a batch, nothing else to do, or one has waited
    /// for long enough.
    fn batch(&self, queues: &mut Queues) -> Option<Vec<Prepared>> {
        let free = self.networks - queues.classifying;
        let Queues {
            coming, prepared, ..
        } = queues;
        let first = prepared.front().filter(|_| free > 0)?;
        let is_due =
            coming.is_empty() || prepared.len() >= self.batch || first.since.elapsed() >= self.wait;
        let is_its = |other: &&Prepared| Arc::ptr_eq(&other.classifier, &first.classifier);
        let most = prepared.len().div_ceil(free).min(self.batch);
        let count = prepared.iter().take(most).take_while(is_its).count();
        is_due.then(|| {
            queues.classifying += 1;
            prepared.drain(..count).collect()
        })
    }

    fn classify(&self, mut batch: Vec<Prepared>) {
        // Nobody waits for them any more.
        batch.retain(|prepared| !prepared.reply.is_closed());
        let Some(first) = batch.first() else { return };
        let (start, classifier) = (Instant::now(), Arc::clone(&first.classifier));
        let parts = batch
            .into_iter()
            .map(|prepared| (prepared.image, prepared.reply));
        let (images, replies): (Vec<_>, Vec<_>) = parts.unzip();
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
