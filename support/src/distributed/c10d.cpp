// libtorch's process groups (c10d), which tch leaves out: a store that all ranks reach, collective
// operations, and a backward pass that sums its gradients over the ranks meanwhile. engine.rs calls it.
//
// The wheel has every header for that but Gloo's, whose few declarations gloo/ stands in for.

#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/variable.h>
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>
#include <torch/version.h>
#include <c10/util/Logging.h>

#include <cstring>
#include <mutex>

static_assert(TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR == 11,
              "the declarations in gloo/ are those that libtorch 2.11 was built with");

// In nccl.cpp.
c10::intrusive_ptr<c10d::Backend> connect_nccl(c10d::Store &store, int rank, int size, int device,
                                               std::chrono::milliseconds timeout);

namespace {

using at::Tensor;
using c10d::Backend;
using c10d::Store;
using std::chrono::milliseconds;

struct Group {
  c10::intrusive_ptr<Store> store;
  // None before all ranks are there, and after a failure.
  c10::intrusive_ptr<Backend> backend;
};

// Where the text of an exception goes: `Failure` in engine.rs.
struct Failure {
  char *text;
  size_t size;
};

// Returns what `f` does, or `otherwise` after an exception.
template <typename T, typename F>
T guarded(Failure failure, T otherwise, F f) {
  const auto tell = [&](const char *text) { std::strncpy(failure.text, text, failure.size - 1); };
  try {
    return f();
  } catch (const c10::Error &error) {
    tell(error.what_without_backtrace());
  } catch (const std::exception &exception) {
    tell(exception.what());
  } catch (...) {
    tell("an unknown exception");
  }
  return otherwise;
}

Backend &connected(Group *group) {
  TORCH_CHECK(group->backend, "the ranks are not connected any more");
  return *group->backend;
}

// Starts an operation. c10d notes it in a recorder that all groups of a process share, without a lock.
template <typename F>
c10::intrusive_ptr<c10d::Work> start(Group *group, F operation) {
  static std::mutex recorder;
  const std::lock_guard<std::mutex> lock(recorder);
  return operation(connected(group));
}

c10::intrusive_ptr<c10d::Work> start_sum(Group *group, const Tensor &tensor) {
  std::vector<Tensor> tensors{tensor};
  return start(group, [&](Backend &backend) { return backend.allreduce(tensors); });
}

// Gradients of variables, of which those that a backward pass reaches first are being summed while it
// goes on to the others.
class Reducer {
 public:
  Reducer(Group *group, std::vector<Tensor> variables, int64_t sums, size_t bucket_bytes)
      : group_(group), variables_(std::move(variables)), sums_(sums) {
    int64_t gradients = 0;
    for (const auto &variable : variables_)
      gradients += variable.numel();
    flat_ = at::empty({gradients + sums}, variables_.front().options().requires_grad(false));
    // A backward pass comes to the last variable first; the first bucket takes the sums along.
    int64_t start = gradients, end = gradients + sums;
    for (size_t i = variables_.size(), inside = 0; i-- > 0;) {
      const auto &variable = variables_[i];
      start -= variable.numel();
      const auto place = flat_.narrow(0, start, variable.numel()).view(variable.sizes());
      hooks_.push_back(variable.register_hook([this, place, bucket = buckets_.size()](const Tensor &gradient) {
        at::NoGradGuard no_grad;
        place.copy_(gradient);
        --missing_[bucket];
        start_complete();
      }));
      ++inside;
      const auto bucket = flat_.narrow(0, start, end - start);
      if (i == 0 || bucket.nbytes() >= bucket_bytes) {
        buckets_.push_back({bucket, inside});
        inside = 0;
        end = start;
      }
    }
  }

  ~Reducer() {
    auto variable = variables_.rbegin();
    for (const auto hook : hooks_)
      (variable++)->remove_hook(hook);
  }

  Tensor backward(const Tensor *root, const Tensor &sums) {
    at::NoGradGuard no_grad;
    works_.clear();
    missing_.clear();
    for (const auto &bucket : buckets_)
      missing_.push_back(root == nullptr ? 0 : bucket.variables);
    const auto gradients = flat_.numel() - sums_;
    flat_.narrow(0, gradients, sums_).copy_(sums);
    if (root == nullptr) {
      flat_.narrow(0, 0, gradients).zero_();
      start_complete();
    } else {
      torch::autograd::grad({*root}, variables_);
    }
    TORCH_CHECK(works_.size() == buckets_.size(), "a variable has no gradient");
    for (const auto &work : works_)
      work->wait();
    return flat_;
  }

 private:
  // Every rank starts the buckets in the same order.
  void start_complete() {
    for (size_t next; (next = works_.size()) < buckets_.size() && missing_[next] == 0;)
      works_.push_back(start_sum(group_, buckets_[next].values));
  }

  struct Bucket {
    // A part of the flat tensor.
    Tensor values;
    size_t variables;
  };

  Group *group_;
  std::vector<Tensor> variables_;
  // From the last variable to the first.
  std::vector<unsigned> hooks_;
  // The variables' gradients, one after the other, and behind them other values to be summed.
  Tensor flat_;
  int64_t sums_;
  std::vector<Bucket> buckets_;
  // How many gradients each bucket waits for in this step.
  std::vector<size_t> missing_;
  std::vector<c10::intrusive_ptr<c10d::Work>> works_;
};

} // namespace

extern "C" {

const char *support_torch_version() { return TORCH_VERSION; }

// All functions that can fail return null or a negative number then, and tell `failure` why.

Group *support_group_join(const char *host, uint16_t port, bool serves, const char *prefix, int64_t timeout,
                          Failure failure) {
  return guarded<Group *>(failure, nullptr, [&] {
    // Failures are told by who sees them; TORCH_CPP_LOG_LEVEL has c10d tell its own view of them, too.
    FLAGS_caffe2_log_level = c10::GLOG_FATAL;
    c10::initLogging();
    c10d::TCPStoreOptions options;
    options.port = port;
    options.isServer = serves;
    options.timeout = milliseconds(timeout);
    auto store = c10::make_intrusive<c10d::TCPStore>(host, options);
    return new Group{c10::make_intrusive<c10d::PrefixStore>(prefix, std::move(store)), nullptr};
  });
}

int support_group_set(Group *group, const char *key, const char *value, Failure failure) {
  return guarded(failure, -1, [&] {
    group->store->set(key, std::string(value));
    return 0;
  });
}

// Returns how often this was called for the key, by any rank.
int64_t support_group_count(Group *group, const char *key, Failure failure) {
  return guarded<int64_t>(failure, -1, [&] { return group->store->add(key, 1); });
}

// Returns 1 if the key is set, else 0, at once.
int support_group_check(Group *group, const char *key, Failure failure) {
  return guarded(failure, -1, [&] { return group->store->check({key}) ? 1 : 0; });
}

// Writes the text of a key that is set into `value`, cut to its size.
int support_group_get(Group *group, const char *key, char *value, size_t size, Failure failure) {
  return guarded(failure, -1, [&] {
    std::strncpy(value, group->store->get_to_str(key).c_str(), size - 1);
    return 0;
  });
}

// Connects by NCCL where `device` is a GPU's number, else, where it is negative, by Gloo.
int support_group_connect(Group *group, int rank, int size, int device, int64_t timeout, Failure failure) {
  return guarded(failure, -1, [&] {
    const milliseconds limit(timeout);
    group->store->setTimeout(limit);
    if (device >= 0) {
      group->backend = connect_nccl(*group->store, rank, size, device, limit);
    } else {
      auto options = c10d::ProcessGroupGloo::Options::create_default(limit);
      group->backend = c10::make_intrusive<c10d::ProcessGroupGloo>(group->store, rank, size, std::move(options));
    }
    return 0;
  });
}

// Closes the connections, which ends whatever another rank waits for.
void support_group_close(Group *group) { group->backend.reset(); }

void support_group_free(Group *group) { delete group; }

// Sums a tensor over the ranks, in place.
int support_group_sum(Group *group, const Tensor *tensor, Failure failure) {
  return guarded(failure, -1, [&] {
    start_sum(group, *tensor)->wait();
    return 0;
  });
}

// Overwrites a tensor with that of rank 0.
int support_group_broadcast(Group *group, const Tensor *tensor, Failure failure) {
  return guarded(failure, -1, [&] {
    std::vector<Tensor> tensors{*tensor};
    start(group, [&](Backend &backend) { return backend.broadcast(tensors); })->wait();
    return 0;
  });
}

// Returns the ranks' tensors, stacked.
Tensor *support_group_gather(Group *group, const Tensor *tensor, Failure failure) {
  return guarded<Tensor *>(failure, nullptr, [&] {
    std::vector<Tensor> inputs{*tensor};
    std::vector<std::vector<Tensor>> outputs(1);
    for (int rank = 0; rank < connected(group).getSize(); ++rank)
      outputs[0].push_back(at::empty_like(*tensor));
    start(group, [&](Backend &backend) { return backend.allgather(outputs, inputs); })->wait();
    return new Tensor(at::stack(outputs[0]));
  });
}

Reducer *support_reducer_new(Group *group, const Tensor *const *variables, size_t count, int64_t sums,
                             size_t bucket_bytes, Failure failure) {
  return guarded<Reducer *>(failure, nullptr, [&] {
    std::vector<Tensor> own;
    for (size_t i = 0; i < count; ++i)
      own.push_back(*variables[i]);
    return new Reducer(group, std::move(own), sums, bucket_bytes);
  });
}

void support_reducer_free(Reducer *reducer) { delete reducer; }

// Returns the gradients of `root`, a scalar, flat, one variable's after the other's, and behind them `sums`; all
// summed over the ranks. `root` is null on a rank that has nothing to add. The tensor is overwritten
// by the next call.
Tensor *support_reducer_backward(Reducer *reducer, const Tensor *root, const Tensor *sums, Failure failure) {
  return guarded<Tensor *>(failure, nullptr, [&] { return new Tensor(reducer->backward(root, *sums)); });
}
}
