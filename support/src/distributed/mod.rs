//! Several processes that train one model together, each on its share of the images.
//!
//! A process is a *rank* of a *process group*. Ranks are started by [torchrun][] or by whatever sets the same
//! variables, and talk to each other through libtorch's own engine, c10d. Without the variables there is one
//! process, and everything here is a step that is left out.
//!
//! | variable | |
//! |---|---|
//! | `WORLD_SIZE` | how many ranks there are |
//! | `RANK` | which one this is, from 0 on |
//! | `LOCAL_RANK`, `LOCAL_WORLD_SIZE` | the same among those on this machine; a rank uses the GPU of its `LOCAL_RANK` |
//! | `MASTER_ADDR`, `MASTER_PORT` | where rank 0, or the launcher, serves the store in which the ranks find each other |
//! | `TORCHELASTIC_RESTART_COUNT` | how often torchrun has started the ranks again after a fault |
//!
//! [torchrun]: https://docs.pytorch.org/docs/stable/elastic/run.html

mod engine;
mod place;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use engine::{Buckets, Engine};
use serde::{Deserialize, Serialize};
use tch::{Device, Tensor};

pub(crate) use place::Place;

use crate::{Error, Result};

/// How long a rank that fails waits for the others to say why they do.
const LAST_WORDS: Duration = Duration::from_secs(3);

/// A timeout beyond this, a year, is as good as none, and the clocks cannot count it.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// How often a rank that waits for a word of the others asks for it.
const ASK: Duration = Duration::from_millis(20);

/// Gradients are summed in parts of about this many bytes. Within a machine every part costs a millisecond
/// of two cores; over a slow network smaller ones would leave less to be waited for after the backward pass.
const BUCKET: usize = 4 << 20;

/// The processes that train together; one where nothing says that there are more.
///
/// All ranks have to call the collective operations, and with them `fit`, `evaluate` and
/// `find_learning_rate`, in the same order. A rank that comes too late, or not at all, is an error in the
/// others that names it; after an error no more is possible.
#[derive(Clone, Default)]
pub struct ProcessGroup(Option<Arc<Ranks>>);

struct Ranks {
    place: Place,
    device: Device,
    timeout: Duration,
    /// None after an error.
    engine: Mutex<Option<Engine>>,
}

/// What the ranks tell each other first.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Greeting {
    support: String,
    libtorch: String,
    world_size: usize,
    host: String,
    device: String,
}

impl ProcessGroup {
    /// Waits for the other ranks, and connects with them.
    ///
    /// # Errors
    /// `Distributed` when one does not come within `timeout`, the store cannot be reached or served, or the
    /// ranks do not fit together.
    pub(crate) fn connect(place: Place, device: Device, timeout: Duration) -> Result<Self> {
        let timeout = timeout.min(LONGEST);
        let start = Instant::now();
        let joining = place.clone();
        let join = move || {
            let place = joining;
            let serves = place.serves();
            let prefix = format!("transfer_learning/{}", place.restarts);
            let engine = Engine::join(&place.host, place.port, serves, &prefix, timeout);
            let mut engine = engine.map_err(|reason| match serves {
                true => place.failed(
                    "serving the ranks' store",
                    format!("{reason}; choose another MASTER_PORT where this one is taken"),
                ),
                false => place.failed(&format!("reaching {}", place.store()), reason),
            })?;
            greet(&mut engine, &place, device, start + timeout)
                .map_err(|reason| place.failed("waiting for all ranks", reason))?;
            Ok(engine)
        };
        let joined = within(timeout + LAST_WORDS, join).unwrap_or_else(|| {
            let reason = format!(
                "no answer within {} s, which TRANSFER_TIMEOUT sets; has it started there, or is this \
                 another program's port?",
                timeout.as_secs()
            );
            Err(place.failed(&format!("reaching {}", place.store()), reason))
        });
        let mut engine = joined?;
        let connected = engine.connect(place.rank, place.size, device, timeout);
        connected.map_err(|reason| place.failed("connecting the ranks", reason))?;
        Ok(Self(Some(Arc::new(Ranks {
            place,
            device,
            timeout,
            engine: Some(engine).into(),
        }))))
    }

    /// Returns which of the processes this one is, from 0 on.
    #[must_use]
    pub fn rank(&self) -> usize {
        self.place().map_or(0, |place| place.rank)
    }

    /// Returns how many processes there are, PyTorch's `world_size`.
    #[must_use]
    pub fn size(&self) -> usize {
        self.place().map_or(1, |place| place.size)
    }

    /// Returns whether this is the process that prints and saves: rank 0.
    #[must_use]
    pub fn is_main(&self) -> bool {
        self.rank() == 0
    }

    /// Returns how often the launcher has started the processes again, after one of them failed.
    #[must_use]
    pub fn restarts(&self) -> usize {
        self.place().map_or(0, |place| place.restarts)
    }

    /// Returns how many ranks share this machine, as the launcher says it.
    pub(crate) fn local_size(&self) -> usize {
        self.place().map_or(1, |place| place.local_size)
    }

    fn place(&self) -> Option<&Place> {
        self.0.as_ref().map(|ranks| &ranks.place)
    }

    /// Returns the sum of the ranks' tensors, which are of one shape and kind.
    ///
    /// # Errors
    /// `Distributed` says which rank failed or is missing.
    pub fn all_reduce(&self, tensor: &Tensor) -> Result<Tensor> {
        self.collective("all_reduce", tensor, |engine, tensor| {
            engine.sum(&tensor)?;
            Ok(tensor)
        })
    }

    /// Returns rank 0's tensor; the others' are of the same shape and kind.
    ///
    /// # Errors
    /// `Distributed` says which rank failed or is missing.
    pub fn broadcast(&self, tensor: &Tensor) -> Result<Tensor> {
        self.collective("broadcast", tensor, |engine, tensor| {
            engine.broadcast(&tensor)?;
            Ok(tensor)
        })
    }

    /// Returns the ranks' tensors, which are of one shape and kind, stacked: `[ranks, ...]`.
    ///
    /// # Errors
    /// `Distributed` says which rank failed or is missing.
    pub fn all_gather(&self, tensor: &Tensor) -> Result<Tensor> {
        if self.0.is_none() {
            return tensor.f_unsqueeze(0).map_err(Error::torch("all_gather"));
        }
        self.collective("all_gather", tensor, |engine, tensor| {
            engine.gather(&tensor)
        })
    }

    /// Waits until all ranks are here.
    ///
    /// # Errors
    /// `Distributed` says which rank failed or is missing.
    pub fn barrier(&self) -> Result<()> {
        self.all_reduce(&Tensor::from_slice(&[0_i64])).map(drop)
    }

    /// Does a collective operation on a copy of a tensor, and returns the result on the tensor's device.
    fn collective(
        &self,
        operation: &str,
        tensor: &Tensor,
        call: impl FnOnce(&mut Engine, Tensor) -> engine::Result<Tensor>,
    ) -> Result<Tensor> {
        let copy = |device| {
            let copy = tensor.f_detach_copy()?.f_contiguous()?;
            copy.f_to_device(device)
        };
        let Some(ranks) = &self.0 else {
            return copy(tensor.device()).map_err(Error::torch(operation));
        };
        let own = copy(ranks.device).map_err(Error::torch(operation))?;
        let result = ranks.call(operation, |engine| call(engine, own))?;
        result
            .f_to_device(tensor.device())
            .map_err(Error::torch(operation))
    }

    /// Returns the ranks' texts.
    pub(crate) fn gather_texts(&self, text: &str) -> Result<Vec<String>> {
        let length = Tensor::from_slice(&[text.len() as i64]);
        let lengths = self.all_gather(&length)?;
        let read = || {
            let lengths: Vec<i64> = Vec::try_from(lengths.f_reshape([-1])?)?;
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(lengths.iter().max().map_or(0, |&most| most as usize), 0);
            Ok((lengths, Tensor::f_from_slice(&bytes)?))
        };
        let (lengths, padded) = read().map_err(Error::torch("all_gather"))?;
        let texts = self.all_gather(&padded)?;
        let text = |(rank, &length): (usize, &i64)| {
            let bytes = texts.f_get(rank as i64)?.f_narrow(0, 0, length)?;
            Ok(String::from_utf8_lossy(&Vec::try_from(bytes)?).into_owned())
        };
        let texts = lengths.iter().enumerate().map(text);
        texts
            .collect::<Result<_, _>>()
            .map_err(Error::torch("all_gather"))
    }

    /// Does what all ranks do together: an error of this one ends it for the others, too, and tells them why.
    pub(crate) fn together<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let result = work();
        if let (Some(ranks), Err(error)) = (&self.0, &result)
            && !error.is_of_other_ranks()
        {
            ranks.leave(error);
        }
        result
    }

    /// Returns the error of ranks that do not fit together.
    pub(crate) fn mismatch(&self, operation: &str, reason: String) -> Error {
        Error::Distributed {
            rank: self.rank(),
            ranks: self.size(),
            operation: operation.to_owned(),
            reason,
        }
    }

    /// Prepares the sums of the gradients of variables, and of `sums` other values, over the ranks; `None`
    /// where there is one.
    pub(crate) fn reducer(&self, variables: &[&Tensor], sums: usize) -> Result<Option<Reducer>> {
        let Some(ranks) = &self.0 else {
            return Ok(None);
        };
        let buckets = ranks.call(GRADIENTS, |engine| {
            // Safety: they are used only where the engine is still there.
            unsafe { Buckets::new(engine, variables, sums, BUCKET) }
        })?;
        Ok(Some(Reducer {
            buckets: buckets.into(),
            ranks: ranks.clone(),
        }))
    }
}

impl fmt::Debug for ProcessGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

const GRADIENTS: &str = "summing the gradients";

/// The gradients of some variables, summed over the ranks.
pub(crate) struct Reducer {
    buckets: Mutex<Buckets>,
    ranks: Arc<Ranks>,
}

impl Reducer {
    /// Returns the gradients of `root`, one variable's after the other's in one tensor, and `sums`, both
    /// summed over the ranks. `root` is a scalar; a rank without examples has none. What is returned holds
    /// until the next call.
    pub(crate) fn backward(
        &self,
        root: Option<&Tensor>,
        sums: &Tensor,
    ) -> Result<(Tensor, Tensor)> {
        let flat = self.ranks.call(GRADIENTS, |_| {
            let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
            buckets.backward(root, sums)
        })?;
        let (length, sums) = (flat.numel() as i64, sums.numel() as i64);
        let split = || {
            let gradients = flat.f_narrow(0, 0, length - sums)?;
            Ok((gradients, flat.f_narrow(0, length - sums, sums)?))
        };
        split().map_err(Error::torch(GRADIENTS))
    }
}

impl Ranks {
    /// Calls the engine, which nothing else uses meanwhile. Its error is told with what the other ranks say
    /// about theirs, as far as can be told, and no other call is possible.
    fn call<T>(
        &self,
        operation: &str,
        call: impl FnOnce(&mut Engine) -> engine::Result<T>,
    ) -> Result<T> {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(connected) = engine.as_mut() else {
            let reason = "an error before this one has ended the connections";
            return Err(self.place.failed(operation, reason.into()));
        };
        let reason = match call(connected) {
            Ok(result) => return Ok(result),
            Err(reason) => reason,
        };
        let words = engine.take().and_then(|engine| {
            let word = format!("{WAITED}{operation}");
            within(2 * LAST_WORDS, self.last_words(engine, word))
        });
        let reason = match words {
            Some(Ok(words)) => self.explain(&words, reason),
            Some(Err(_)) => format!("{} is gone ({reason})", self.place.store()),
            None => format!("{} does not answer ({reason})", self.place.store()),
        };
        Err(self.place.failed(operation, reason))
    }

    /// Tells the other ranks of this one's own error, and ends what they wait for.
    fn leave(&self, error: &Error) {
        let mut engine = self.engine.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(engine) = engine.take() {
            // Whoever is not reached hears that this rank is gone.
            within(
                2 * LAST_WORDS,
                self.last_words(engine, format!("{FAILED}{error}")),
            );
        }
    }

    /// Returns what closes the connections, which ends whatever the other ranks wait for, leaves this rank's
    /// last word, and returns those that the others leave within a moment.
    fn last_words(
        &self,
        mut engine: Engine,
        word: String,
    ) -> impl FnOnce() -> engine::Result<BTreeMap<usize, String>> + Send + use<> {
        let (rank, size) = (self.place.rank, self.place.size);
        let serves = self.place.serves();
        move || {
            engine.close();
            engine.set(&word_of(rank), &word)?;
            let deadline = Instant::now() + LAST_WORDS;
            let (words, asked) = wait_for_all(&mut engine, size, word_of, deadline);
            asked?;
            let heard = |rank| format!("heard/{rank}");
            engine.set(&heard(rank), "")?;
            if serves {
                // The words are lost with the store.
                wait_for_all(&mut engine, size, heard, deadline + LAST_WORDS / 2).1?;
            }
            Ok(words)
        }
    }

    fn explain(&self, words: &BTreeMap<usize, String>, reason: String) -> String {
        let mut failed = words
            .iter()
            .filter_map(|(rank, word)| Some((rank, word.strip_prefix(FAILED)?)));
        if let Some((rank, error)) = failed.next() {
            return format!("rank {rank} ended with an error: {error}");
        }
        let missing = missing(words, self.place.size);
        if !missing.is_empty() {
            let timeout = self.timeout.as_secs();
            return format!(
                "no word from {missing}: ended, hanging, or more than {timeout} s behind, which \
                 TRANSFER_TIMEOUT allows ({reason})"
            );
        }
        let doing = words.iter().filter_map(|(rank, word)| {
            let operation = word.strip_prefix(WAITED)?;
            Some(format!("rank {rank} {operation}"))
        });
        let doing = doing.collect::<Vec<_>>().join(", ");
        format!("the ranks do not do the same: {doing} ({reason})")
    }
}

/// Begins the last word of a rank that failed by itself.
const FAILED: &str = "failed: ";

/// Begins the last word of a rank that failed because of another one.
const WAITED: &str = "waited: ";

fn word_of(rank: usize) -> String {
    format!("word/{rank}")
}

/// Returns what `work` returns, if it does so in time: libtorch waits for a store's answer for ever.
fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = mpsc::channel();
    // Nobody listens any more after the time.
    thread::spawn(move || drop(sender.send(work())));
    receiver.recv_timeout(time).ok()
}

/// Waits until all ranks are here and have told what they are, and checks that they fit together.
fn greet(
    engine: &mut Engine,
    place: &Place,
    device: Device,
    deadline: Instant,
) -> Result<(), String> {
    let rank = place.rank;
    if engine.count(&format!("joined/{rank}"))? > 1 {
        return Err(format!(
            "another process is rank {rank}, too, or this one reads its settings a second time"
        ));
    }
    let greeting = Greeting {
        support: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: engine::torch_version(),
        world_size: place.size,
        host: host_name(),
        device: format!("{device:?}"),
    };
    let greeting = serde_json::to_string(&greeting).map_err(|error| error.to_string())?;
    let key = |rank: usize| format!("greeting/{rank}");
    engine.set(&key(rank), &greeting)?;
    let (greetings, asked) = wait_for_all(engine, place.size, key, deadline);
    let missing = missing(&greetings, place.size);
    if !missing.is_empty() {
        let waited = match asked {
            Ok(()) => "in time, which TRANSFER_TIMEOUT sets".to_owned(),
            Err(reason) => format!("before {} was gone ({reason})", place.store()),
        };
        return Err(format!("{missing} did not come {waited}"));
    }
    let greetings: Result<Vec<Greeting>, _> = greetings
        .values()
        .map(|greeting| serde_json::from_str(greeting))
        .collect();
    fit_together(&greetings.map_err(|error| format!("another program answers: {error}"))?)
}

/// Waits until a key of every rank is set, and returns their values by rank: those that are there at the
/// deadline, or when the store fails, and whether it did.
fn wait_for_all(
    engine: &mut Engine,
    size: usize,
    key: impl Fn(usize) -> String,
    deadline: Instant,
) -> (BTreeMap<usize, String>, engine::Result<()>) {
    let mut found = BTreeMap::new();
    loop {
        for rank in 0..size {
            if found.contains_key(&rank) {
                continue;
            }
            match engine.get(&key(rank)) {
                Ok(Some(value)) => drop(found.insert(rank, value)),
                Ok(None) => {}
                Err(reason) => return (found, Err(reason)),
            }
        }
        if found.len() == size || Instant::now() >= deadline {
            return (found, Ok(()));
        }
        thread::sleep(ASK);
    }
}

/// Lists the ranks that are not among those found.
fn missing(found: &BTreeMap<usize, String>, size: usize) -> String {
    let missing: Vec<String> = (0..size)
        .filter(|rank| !found.contains_key(rank))
        .map(|rank| rank.to_string())
        .collect();
    match &missing[..] {
        [] => String::new(),
        [rank] => format!("rank {rank}"),
        _ => format!("ranks {}", missing.join(", ")),
    }
}

/// Checks that ranks, given in their order, can work together.
fn fit_together(ranks: &[Greeting]) -> Result<(), String> {
    let Some(first) = ranks.first() else {
        return Ok(());
    };
    for (rank, other) in ranks.iter().enumerate() {
        let kind = |device: &str| device.split('(').next().map(str::to_owned);
        for (what, own, theirs) in [
            ("support", &first.support, &other.support),
            ("libtorch", &first.libtorch, &other.libtorch),
        ] {
            if own != theirs {
                return Err(format!("rank {rank} has {what} {theirs}, rank 0 {own}"));
            }
        }
        if first.world_size != other.world_size {
            let (own, theirs) = (first.world_size, other.world_size);
            return Err(format!(
                "WORLD_SIZE is {theirs} on rank {rank}, {own} on rank 0"
            ));
        }
        if kind(&first.device) != kind(&other.device) {
            let (own, theirs) = (&first.device, &other.device);
            return Err(format!(
                "rank {rank} computes on {theirs}, rank 0 on {own}: all have to use GPUs, or none"
            ));
        }
        let same = |before: &Greeting| {
            other.device != "Cpu" && (&before.host, &before.device) == (&other.host, &other.device)
        };
        if let Some(before) = ranks[..rank].iter().position(same) {
            return Err(format!(
                "ranks {before} and {rank} both use {} of {}: NCCL takes one process for each GPU; start no \
                 more processes than there are GPUs, and let LOCAL_RANK choose each one's",
                other.device, other.host
            ));
        }
    }
    Ok(())
}

/// Returns this machine's name.
fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
