//! Ranks that are threads of one process: they talk to each other as processes do.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tch::Kind;

use super::*;

/// Returns a port that was free a moment ago.
pub(crate) fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

fn place(rank: usize, size: usize, port: u16) -> Place {
    Place {
        rank,
        size,
        local_rank: rank,
        local_size: size,
        restarts: 0,
        host: "127.0.0.1".into(),
        port,
        launcher_serves: false,
    }
}

const SOON: Duration = Duration::from_secs(60);

/// Calls a function on each of so many ranks, and returns what they return.
pub(crate) fn on_ranks<T: Send>(size: usize, call: impl Fn(ProcessGroup) -> T + Sync) -> Vec<T> {
    on_ranks_within(SOON, size, call)
}

fn on_ranks_within<T: Send>(
    timeout: Duration,
    size: usize,
    call: impl Fn(ProcessGroup) -> T + Sync,
) -> Vec<T> {
    if size == 1 {
        return vec![call(ProcessGroup::default())];
    }
    let port = free_port();
    let start = |rank| {
        let group = ProcessGroup::connect(place(rank, size, port), Device::Cpu, timeout);
        call(group.unwrap())
    };
    thread::scope(|scope| {
        let start = &start;
        let ranks: Vec<_> = (0..size)
            .map(|rank| scope.spawn(move || start(rank)))
            .collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

#[test]
fn collective_operations_do_what_they_say() {
    for size in [1, 2, 3] {
        let found = on_ranks(size, |group| {
            let rank = group.rank() as i64;
            let own = Tensor::from_slice(&[rank + 1, 10 * rank]).view([2, 1]);
            group.barrier().unwrap();
            let sum = group.all_reduce(&own).unwrap();
            let first = group.broadcast(&own).unwrap();
            let all = group.all_gather(&own).unwrap();
            let texts = group.gather_texts(&"é".repeat(group.rank())).unwrap();
            // Nothing was done in place.
            assert_eq!(own.int64_value(&[0, 0]), rank + 1);
            (sum, first, all, texts)
        });
        let n = size as i64;
        for (sum, first, all, texts) in found {
            assert_eq!(
                sum,
                Tensor::from_slice(&[n * (n + 1) / 2, 5 * n * (n - 1)]).view([2, 1])
            );
            assert_eq!(first, Tensor::from_slice(&[1_i64, 0]).view([2, 1]));
            assert_eq!(all.size(), [n, 2, 1]);
            assert_eq!(all.int64_value(&[n - 1, 1, 0]), 10 * (n - 1));
            assert_eq!(
                texts,
                (0..size).map(|rank| "é".repeat(rank)).collect::<Vec<_>>()
            );
        }
    }
}

#[test]
fn gradients_are_summed_over_the_ranks_those_without_examples_included() {
    // More than a bucket's bytes, in several buckets.
    let shapes: [&[i64]; 4] = [&[3], &[700, 500], &[1], &[20, 30]];
    let found = on_ranks(3, |group| {
        let factor = group.rank() as f64;
        let variables: Vec<Tensor> = (1..)
            .zip(shapes)
            .map(|(value, shape)| {
                let values = Tensor::ones(shape, (Kind::Float, Device::Cpu)) * value;
                values.set_requires_grad(true)
            })
            .collect();
        let borrowed: Vec<&Tensor> = variables.iter().collect();
        let reducer = group.reducer(&borrowed, 2).unwrap().unwrap();
        let step = |rank_has_examples: bool| {
            // Of w^2, the gradient is 2w.
            let sum =
                |sum: Tensor, variable: &Tensor| sum + (variable * variable).sum(None) * factor;
            let root = variables.iter().fold(Tensor::from(0_f32), sum);
            let sums = Tensor::from_slice(&[1_f32, factor as f32]);
            let root = rank_has_examples.then_some(&root);
            let (gradients, sums) = reducer.backward(root, &sums).unwrap();
            (gradients.copy(), Vec::<f32>::try_from(sums).unwrap())
        };
        let all = step(true);
        // Rank 1 has none left.
        let some = step(group.rank() != 1);
        let again = step(true);
        assert_eq!(all, again);
        (all, some)
    });
    let expected = |factor: f64| {
        let parts = (1..).zip(shapes).map(|(value, shape)| {
            let length = shape.iter().product::<i64>();
            Tensor::ones([length], (Kind::Float, Device::Cpu)) * (2. * factor * f64::from(value))
        });
        Tensor::cat(&parts.collect::<Vec<_>>(), 0)
    };
    for ((all, sums), (some, _)) in found {
        assert_eq!(sums, [3., 3.]);
        assert_eq!(all, expected(3.));
        assert_eq!(some, expected(2.));
    }
}

#[test]
fn an_error_of_one_rank_ends_the_others_and_tells_them_why() {
    // Also the one that serves the store.
    for failing in [0, 1] {
        let errors = on_ranks(3, |group| {
            let together = group.together(|| {
                if group.rank() == failing {
                    return Err(Error::Figure("its own".into()));
                }
                group.barrier()
            });
            let error = together.unwrap_err().to_string();
            // No more is possible.
            let later = group.barrier().unwrap_err().to_string();
            (error, later)
        });
        for (rank, (error, later)) in errors.into_iter().enumerate() {
            let own = "figure: its own";
            let told =
                format!("rank {rank} of 3, all_reduce: rank {failing} ended with an error: {own}");
            assert_eq!(error, if rank == failing { own } else { &told });
            assert!(later.contains("all_reduce: an error before"), "{later}");
        }
    }
}

#[test]
fn a_rank_that_does_not_take_part_is_named_after_the_timeout() {
    let given_up = std::sync::Barrier::new(3);
    let errors = on_ranks_within(Duration::from_secs(1), 3, |group| {
        // Rank 1 lives, but is silent until the others have given up.
        let silent = group.rank() == 1;
        let error = (!silent).then(|| group.barrier().unwrap_err().to_string());
        given_up.wait();
        error
    });
    for error in errors.into_iter().flatten() {
        assert!(error.contains("no word from rank 1: "), "{error}");
        assert!(error.contains("1 s behind"), "{error}");
    }
}

#[test]
fn a_timeout_may_be_of_any_length() {
    on_ranks_within(Duration::MAX, 2, |group| group.barrier().unwrap());
}

#[test]
fn ranks_that_do_different_things_are_told_what() {
    let errors = on_ranks_within(Duration::from_secs(1), 2, |group| {
        let own = Tensor::from_slice(&[1_f32; 8]);
        let result = match group.rank() {
            0 => group.all_reduce(&own),
            _ => group.all_gather(&own),
        };
        result.unwrap_err().to_string()
    });
    for error in errors {
        assert!(
            error.contains("rank 0 all_reduce, rank 1 all_gather"),
            "{error}"
        );
    }
}

#[test]
fn a_world_that_never_completes_names_who_is_missing() {
    let port = free_port();
    let connect = |(rank, timeout)| {
        let place = place(rank, 4, port);
        let group = ProcessGroup::connect(place, Device::Cpu, timeout);
        group.unwrap_err().to_string()
    };
    // Who serves the store gives up first, and takes it along.
    let errors = thread::scope(|scope| {
        let connect = &connect;
        let ranks = [(0, Duration::from_secs(4)), (2, SOON)];
        let ranks = ranks.map(|rank| scope.spawn(move || connect(rank)));
        ranks.map(|rank| rank.join().unwrap())
    });
    let waited = ["in time", "before rank 0's store"];
    for ((rank, error), waited) in [0, 2].into_iter().zip(errors).zip(waited) {
        let missing = "waiting for all ranks: ranks 1, 3 did not come";
        let expected = format!("rank {rank} of 4, {missing} {waited}");
        assert!(error.starts_with(&expected), "{error}");
    }
}

#[test]
fn a_store_that_cannot_be_served_or_reached_says_where() {
    let taken = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let connect = |rank, port| {
        let group =
            ProcessGroup::connect(place(rank, 2, port), Device::Cpu, Duration::from_secs(1));
        group.unwrap_err().to_string()
    };
    let error = connect(0, port);
    assert!(
        error.contains(&port.to_string()) && error.contains("another MASTER_PORT"),
        "{error}"
    );
    let nobody = free_port();
    let error = connect(1, nobody);
    let expected = format!("rank 1 of 2, reaching rank 0's store at 127.0.0.1:{nobody}: ");
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn a_server_that_is_no_store_is_given_up() {
    // Takes connections, and never answers.
    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let place = place(1, 2, other.local_addr().unwrap().port());
    let group = ProcessGroup::connect(place, Device::Cpu, Duration::from_secs(1));
    let error = group.unwrap_err().to_string();
    assert!(error.contains("no answer within 1 s"), "{error}");
    assert!(error.contains("another program's port"), "{error}");
}

/// Starts what stands between clients and a server, and stops to pass anything on when it is told to;
/// returns its port.
fn relay(server: u16, hangs: &Arc<AtomicBool>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let hangs = hangs.clone();
    let pass_on = move |mut from: &TcpStream, mut to: &TcpStream| {
        let mut bytes = [0; 4096];
        while let Ok(count @ 1..) = from.read(&mut bytes) {
            if !hangs.load(Ordering::SeqCst) && to.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
    };
    thread::spawn(move || {
        let client = listener.accept().unwrap().0;
        // As a client does, until there is a server.
        let server = std::iter::repeat_with(|| TcpStream::connect(("127.0.0.1", server)));
        let server = server.flatten().next().unwrap();
        thread::scope(|scope| {
            scope.spawn(|| pass_on(&client, &server));
            pass_on(&server, &client);
        });
    });
    port
}

#[test]
fn a_store_that_hangs_is_given_up() {
    let (port, hangs) = (free_port(), Arc::new(AtomicBool::new(false)));
    let connect = |rank, port| {
        ProcessGroup::connect(place(rank, 2, port), Device::Cpu, Duration::from_secs(1)).unwrap()
    };
    let between = relay(port, &hangs);
    let error = thread::scope(|scope| {
        let server = scope.spawn(|| connect(0, port));
        let client = connect(1, between);
        // Alive, as that of a process that was stopped.
        let _server = server.join().unwrap();
        hangs.store(true, Ordering::SeqCst);
        client.barrier().unwrap_err().to_string()
    });
    let expected = format!("rank 0's store at 127.0.0.1:{between} does not answer");
    assert!(error.contains(&expected), "{error}");
}

#[test]
fn two_processes_of_the_same_rank_are_refused() {
    let errors = on_ranks(2, |group| {
        let again = place(1, 2, group.place().unwrap().port);
        let error = (group.rank() == 1).then(|| {
            let group = ProcessGroup::connect(again, Device::Cpu, SOON);
            group.unwrap_err().to_string()
        });
        group.barrier().unwrap();
        error
    });
    let error = errors[1].as_ref().unwrap();
    assert!(error.contains("another process is rank 1, too"), "{error}");
}

#[test]
fn ranks_that_do_not_fit_together_are_refused_with_both_values() {
    let rank = |host: &str, device: &str| Greeting {
        support: "1".into(),
        libtorch: "2.11.0".into(),
        world_size: 2,
        host: host.into(),
        device: device.into(),
    };
    fit_together(&[rank("a", "Cpu"), rank("a", "Cpu")]).unwrap();
    fit_together(&[
        rank("a", "Cuda(0)"),
        rank("a", "Cuda(1)"),
        rank("b", "Cuda(0)"),
    ])
    .unwrap();
    for (second, expected) in [
        (
            Greeting {
                libtorch: "2.10.0".into(),
                ..rank("a", "Cuda(1)")
            },
            "rank 1 has libtorch 2.10.0, rank 0 2.11.0",
        ),
        (
            Greeting {
                support: "2".into(),
                ..rank("a", "Cuda(1)")
            },
            "rank 1 has support 2, rank 0 1",
        ),
        (
            Greeting {
                world_size: 3,
                ..rank("a", "Cuda(1)")
            },
            "WORLD_SIZE is 3 on rank 1, 2 on rank 0",
        ),
        (rank("b", "Cpu"), "all have to use GPUs, or none"),
        (
            rank("a", "Cuda(0)"),
            "ranks 0 and 1 both use Cuda(0) of a: NCCL takes one process for each GPU",
        ),
    ] {
        let error = fit_together(&[rank("a", "Cuda(0)"), second]).unwrap_err();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
#[ignore = "needs a GPU"]
fn nccl_sums_broadcasts_and_gathers_on_the_gpu() {
    let device = Device::Cuda(0);
    assert!(tch::Cuda::is_available());
    // NCCL takes one process for each GPU: the only rank.
    let mut engine = Engine::join("127.0.0.1", free_port(), true, "test", SOON).unwrap();
    engine.connect(0, 1, device, SOON).unwrap();
    for kind in [Kind::Uint8, Kind::Int64, Kind::Float, Kind::Double] {
        let own = (Tensor::arange(6, (kind, device)) + 1).view([2, 3]);
        let changed = own.copy();
        engine.sum(&changed).unwrap();
        engine.broadcast(&changed).unwrap();
        assert_eq!(changed, own);
        assert_eq!(engine.gather(&own).unwrap(), own.unsqueeze(0));
    }
    let variables = [1_f32, 2.].map(|value| {
        let value = Tensor::from_slice(&[value; 700]).to_device(device);
        value.set_requires_grad(true)
    });
    let borrowed: Vec<&Tensor> = variables.iter().collect();
    // Safety: dropped before the engine.
    let mut buckets = unsafe { Buckets::new(&mut engine, &borrowed, 1, 1000) }.unwrap();
    let root = variables
        .iter()
        .map(|variable| (variable * variable).sum(None))
        .sum::<Tensor>();
    let sums = Tensor::from_slice(&[5_f32]).to_device(device);
    let flat = buckets.backward(Some(&root), &sums).unwrap();
    let expected = [vec![2_f32; 700], vec![4.; 700], vec![5.]].concat();
    assert_eq!(Vec::<f32>::try_from(flat).unwrap(), expected);
    drop(buckets);
}
