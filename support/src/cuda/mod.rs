//! What a GPU is told: by CUDA graphs, and without waiting for it. In small batches, telling it what to do takes
//! longer than doing it.

use std::collections::VecDeque;
use std::ffi::{c_char, c_int};
use std::marker::{PhantomData, PhantomPinned};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, Ordering};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

use crate::foreign::{ERROR_SIZE, taken, tried};
use crate::{Error, Result};

/// The most recordings that a [`Recorder`] keeps, each with memory for what it computes.
const KEPT: usize = 4;

/// What part of a batch is computed by itself: one of so many, or less.
const VERY_FEW: i64 = 8;

/// A CUDA graph, which C++ owns.
#[repr(C)]
struct CudaGraph {
    _data: [u8; 0],
    _marker: PhantomData<(*mut u8, PhantomPinned)>,
}

type Call = unsafe extern "C" fn(*mut CudaGraph, *mut c_char, usize) -> *mut CudaGraph;

unsafe extern "C" {
    fn support_graph_new(device: c_int, error: *mut c_char, size: usize) -> *mut CudaGraph;
    fn support_graph_delete(graph: *mut CudaGraph);
    fn support_graph_enter(
        graph: *mut CudaGraph,
        error: *mut c_char,
        size: usize,
    ) -> *mut CudaGraph;
    fn support_graph_begin(
        graph: *mut CudaGraph,
        error: *mut c_char,
        size: usize,
    ) -> *mut CudaGraph;
    fn support_graph_end(graph: *mut CudaGraph, error: *mut c_char, size: usize) -> *mut CudaGraph;
    fn support_graph_leave(
        graph: *mut CudaGraph,
        error: *mut c_char,
        size: usize,
    ) -> *mut CudaGraph;
    fn support_graph_replay(
        graph: *mut CudaGraph,
        error: *mut c_char,
        size: usize,
    ) -> *mut CudaGraph;
    fn support_bounded_sum(
        output: *const C_tensor,
        bias: *const C_tensor,
        residual: *const C_tensor,
        low: f64,
        high: f64,
        error: *mut c_char,
        size: usize,
    ) -> *mut C_tensor;
    fn support_send(
        tensor: *const C_tensor,
        device: c_int,
        error: *mut c_char,
        size: usize,
    ) -> *mut C_tensor;
}

/// Returns the tensor on a device; from the CPU to a GPU behind what that has been told, without waiting.
pub(crate) fn to_device(tensor: &Tensor, device: Device) -> Result<Tensor, TchError> {
    match (tensor.device(), device) {
        (Device::Cpu, Device::Cuda(index)) => taken(|error| {
            // Safety: the tensor lives through the call, which writes into `error` within its size.
            unsafe { support_send(tensor.as_ptr(), index as c_int, error, ERROR_SIZE) }
        }),
        _ => tensor.f_to_device(device),
    }
}

/// Returns `output` `[N, C, H, W]`, which lies on a GPU, plus `bias` `[C]`, plus `residual`, within bounds, by one kernel.
pub(crate) fn bounded_sum(
    output: &Tensor,
    bias: &Tensor,
    residual: Option<&Tensor>,
    [low, high]: [f64; 2],
) -> Result<Tensor, TchError> {
    let residual = residual.map_or(std::ptr::null(), Tensor::as_ptr);
    taken(|error| {
        let (output, bias) = (output.as_ptr(), bias.as_ptr());
        // Safety: the tensors live through the call, which writes into `error` within its size.
        unsafe { support_bounded_sum(output, bias, residual, low, high, error, ERROR_SIZE) }
    })
}

/// The most examples that have come at once. On a GPU, fewer are filled up to as many by zeros, unless they are very
/// few: for each other number, cuDNN looks for its algorithms anew, which takes seconds.
#[derive(Debug, Default)]
pub(crate) struct FullBatch(AtomicI64);

impl FullBatch {
    /// Returns what `work`, which computes each example by itself, makes of a batch.
    pub(crate) fn run(
        &self,
        batch: &Tensor,
        work: impl FnOnce(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let count = batch.size()[0];
        let full = self.0.fetch_max(count, Ordering::Relaxed).max(count);
        if !batch.device().is_cuda() || count == full || count * VERY_FEW < full {
            return work(batch);
        }
        let zeros = [[0; 2].repeat(batch.dim() - 1), vec![0, full - count]].concat();
        let filled = batch.f_constant_pad_nd(zeros);
        let output = work(&filled.map_err(Error::torch("batch"))?)?;
        output.f_narrow(0, 0, count).map_err(Error::torch("batch"))
    }
}

/// Does work that is the same each time but for its inputs' values. On a GPU, the second time that inputs of the
/// same shapes come, it is recorded, and from then on repeated from the recording.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    /// Newest last, as the recordings are.
    met: VecDeque<Vec<Layout>>,
    recordings: VecDeque<Recording>,
    /// Why it could not be recorded: then the work is done without.
    failed: Option<TchError>,
}

/// What a recording takes of an input as it is.
type Layout = (Vec<i64>, Vec<i64>, Kind);

/// Work on a GPU, with the memory that it reads from and writes to.
#[derive(Debug)]
struct Recording {
    layouts: Vec<Layout>,
    inputs: Vec<Tensor>,
    outputs: Vec<Tensor>,
    graph: Graph,
}

#[derive(Debug)]
struct Graph(NonNull<CudaGraph>);

// Safety: what C++ owns is of no thread.
unsafe impl Send for Graph {}

impl Recorder {
    /// Returns what `work` makes of some inputs, all on one device. On a GPU it must read nothing back,
    /// and what it reads besides the inputs must stay where it is.
    pub(crate) fn run(
        &mut self,
        inputs: &[Tensor],
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Vec<Tensor>> {
        let device = inputs.first().map_or(Device::Cpu, Tensor::device);
        let Device::Cuda(device) = device else {
            return work(inputs);
        };
        let layouts: Vec<Layout> = inputs.iter().map(layout).collect();
        let known = self.recordings.iter().find(|it| it.layouts == layouts);
        if let Some(known) = known {
            return known.repeat(inputs).map_err(Error::torch("CUDA graph"));
        }
        if self.failed.is_some() || !self.met.contains(&layouts) {
            push(&mut self.met, layouts);
            return work(inputs);
        }
        match Recording::new(device, inputs, layouts, &work)? {
            Ok(recording) => {
                let outputs = recording.repeat(inputs);
                push(&mut self.recordings, recording);
                outputs.map_err(Error::torch("CUDA graph"))
            }
            Err(error) => {
                self.failed = Some(error);
                work(inputs)
            }
        }
    }
}

/// Adds an item, and forgets the oldest where there are too many.
fn push<T>(items: &mut VecDeque<T>, item: T) {
    if items.len() == KEPT {
        items.pop_front();
    }
    items.push_back(item);
}

fn layout(tensor: &Tensor) -> Layout {
    (tensor.size(), tensor.stride(), tensor.kind())
}

impl Recording {
    /// Records work on inputs like these; the inner error says why that is not possible.
    fn new(
        device: usize,
        inputs: &[Tensor],
        layouts: Vec<Layout>,
        work: impl Fn(&[Tensor]) -> Result<Vec<Tensor>>,
    ) -> Result<Result<Self, TchError>> {
        let copies: Result<Vec<_>, _> = inputs.iter().map(copy).collect();
        let graph = Graph::new(device);
        let (inputs, graph) = match copies.and_then(|copies| Ok((copies, graph?))) {
            Ok(made) => made,
            Err(error) => return Ok(Err(error)),
        };
        if let Err(error) = graph.call(support_graph_enter) {
            return Ok(Err(error));
        }
        // What libtorch makes at first use does not belong into the recording.
        let first = work(&inputs);
        let recorded = || {
            graph.call(support_graph_begin)?;
            let outputs = work(&inputs);
            graph.call(support_graph_end)?;
            outputs.map_err(|error| TchError::Torch(error.to_string()))
        };
        let outputs = first.as_ref().ok().map(|_| recorded());
        let left = graph.call(support_graph_leave);
        drop(first?);
        let outputs = outputs.unwrap_or_else(|| Ok(Vec::new()));
        Ok(left.and(outputs).map(|outputs| Self {
            layouts,
            inputs,
            outputs,
            graph,
        }))
    }

    fn repeat(&self, inputs: &[Tensor]) -> Result<Vec<Tensor>, TchError> {
        let _no_grad = tch::no_grad_guard();
        for (own, input) in self.inputs.iter().zip(inputs) {
            own.shallow_clone().f_copy_(input)?;
        }
        self.graph.call(support_graph_replay)?;
        self.outputs.iter().map(copy).collect()
    }
}

/// Returns a copy in the same order in memory.
fn copy(tensor: &Tensor) -> Result<Tensor, TchError> {
    let _no_grad = tch::no_grad_guard();
    let mut copy = tensor.f_empty_like()?;
    copy.f_copy_(tensor)?;
    Ok(copy)
}

impl Graph {
    fn new(device: usize) -> Result<Self, TchError> {
        // Safety: the call writes into `error` within its size.
        let new = |error| unsafe { support_graph_new(device as c_int, error, ERROR_SIZE) };
        tried(new).map(Self)
    }

    fn call(&self, call: Call) -> Result<(), TchError> {
        // Safety: the graph lives as long as `self`, and the call writes into `error` within its size.
        tried(|error| unsafe { call(self.0.as_ptr(), error, ERROR_SIZE) }).map(drop)
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Safety: made by `support_graph_new`, and nothing else has it.
        unsafe { support_graph_delete(self.0.as_ptr()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GPU: Device = Device::Cuda(0);

    #[track_caller]
    fn assert_same(found: &[Tensor], expected: &[Tensor]) {
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(expected) {
            let off = (found - expected).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{found} for {expected}");
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn repeated_work_gives_what_it_gives_on_the_gpu_without_a_recording() {
        assert!(tch::Cuda::is_available());
        let weight = Tensor::rand([4, 4], (Kind::Float, GPU)).set_requires_grad(true);
        let work = |inputs: &[Tensor]| {
            let output = inputs[0].matmul(&weight).square();
            let gradient = Tensor::run_backward(&[output.sum(None)], &[&weight], false, false);
            Ok(vec![output.detach(), gradient[0].shallow_clone()])
        };
        let mut recorder = Recorder::default();
        for round in 0..4 {
            for rows in [3, 5] {
                let inputs = [to_device(
                    &Tensor::rand([rows, 4], (Kind::Float, Device::Cpu)),
                    GPU,
                )];
                let inputs = inputs.map(Result::unwrap);
                let found = recorder.run(&inputs, work).unwrap();
                assert_same(&found, &work(&inputs).unwrap());
                assert!(recorder.failed.is_none(), "{:?}", recorder.failed);
            }
            assert_eq!(recorder.recordings.len(), if round == 0 { 0 } else { 2 });
            // Changes in place count.
            let _changed = tch::no_grad(|| weight.shallow_clone().f_add_scalar_(0.1).unwrap());
        }
    }

    #[test]
    #[ignore = "needs a GPU"]
    fn work_that_cannot_be_recorded_is_done_on_the_gpu_all_the_same() {
        assert!(tch::Cuda::is_available());
        let work = |inputs: &[Tensor]| {
            let read = inputs[0].sum(None).f_double_value(&[]);
            Ok(vec![&inputs[0] * read.map_err(Error::torch("read"))?])
        };
        let inputs = [Tensor::rand([3, 4], (Kind::Float, GPU))];
        let mut recorder = Recorder::default();
        for _ in 0..4 {
            assert_same(
                &recorder.run(&inputs, work).unwrap(),
                &work(&inputs).unwrap(),
            );
        }
        assert!(recorder.failed.is_some() && recorder.recordings.is_empty());
        // Others can be still.
        let double = |inputs: &[Tensor]| Ok(vec![&inputs[0] * 2]);
        let mut recorder = Recorder::default();
        for _ in 0..4 {
            assert_same(
                &recorder.run(&inputs, double).unwrap(),
                &double(&inputs).unwrap(),
            );
        }
        assert_eq!(recorder.recordings.len(), 1, "{:?}", recorder.failed);
    }
}
