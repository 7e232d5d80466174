// Collective operations by NCCL, as one more backend of c10d. libtorch has its own, whose header cannot be
// compiled with what the wheels bring of CUDA. So NCCL's C interface is called, in the library that libtorch's
// CUDA half has loaded; types and numbers are those of nccl.h, version 2.
//
// Everything happens on the default stream, on which tch computes: operations are in order with what was
// computed before and is after.

#include "cuda/loaded.hpp"

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <thread>

namespace {

using at::Tensor;
using c10d::Work;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

constexpr int SUCCESS = 0, IN_PROGRESS = 7, SUM = 0, CUDA_NOT_READY = 600;
using Comm = void *;
using Stream = void *;
constexpr Stream DEFAULT_STREAM = nullptr;

struct UniqueId {
  char bytes[128];
};

struct Library {
  int (*get_unique_id)(UniqueId *) = loaded<int(UniqueId *)>("ncclGetUniqueId");
  int (*init_rank)(Comm *, int, UniqueId, int) = loaded<int(Comm *, int, UniqueId, int)>("ncclCommInitRank");
  int (*abort)(Comm) = loaded<int(Comm)>("ncclCommAbort");
  int (*async_error)(Comm, int *) = loaded<int(Comm, int *)>("ncclCommGetAsyncError");
  const char *(*error_text)(int) = loaded<const char *(int)>("ncclGetErrorString");
  int (*all_reduce)(const void *, void *, size_t, int, int, Comm, Stream) =
      loaded<int(const void *, void *, size_t, int, int, Comm, Stream)>("ncclAllReduce");
  int (*broadcast)(const void *, void *, size_t, int, int, Comm, Stream) =
      loaded<int(const void *, void *, size_t, int, int, Comm, Stream)>("ncclBroadcast");
  int (*all_gather)(const void *, void *, size_t, int, Comm, Stream) =
      loaded<int(const void *, void *, size_t, int, Comm, Stream)>("ncclAllGather");
  int (*set_device)(int) = loaded<int(int)>("cudaSetDevice");
  int (*stream_query)(Stream) = loaded<int(Stream)>("cudaStreamQuery");

  void check(int result, const char *what) const {
    TORCH_CHECK(result == SUCCESS || result == IN_PROGRESS, "NCCL, ", what, ": ", error_text(result));
  }
};

int type_of(const Tensor &tensor) {
  switch (tensor.scalar_type()) {
  case at::kChar: return 0;
  case at::kByte: return 1;
  case at::kInt: return 2;
  case at::kLong: return 4;
  case at::kFloat: return 7;
  case at::kDouble: return 8;
  default: TORCH_CHECK(false, "NCCL takes no ", tensor.scalar_type());
  }
}

class Nccl : public c10d::Backend {
 public:
  Nccl(c10d::Store &store, int rank, int size, int device, milliseconds timeout)
      : Backend(rank, size), timeout_(timeout) {
    TORCH_CHECK(library_.set_device(device) == 0, "CUDA has no device ", device);
    UniqueId id;
    if (rank == 0) {
      library_.check(library_.get_unique_id(&id), "making an id");
      store.set("nccl", std::vector<uint8_t>(id.bytes, id.bytes + sizeof(id.bytes)));
    } else {
      store.wait({"nccl"}, timeout);
      const auto bytes = store.get("nccl");
      TORCH_CHECK(bytes.size() == sizeof(id.bytes), "NCCL's id has ", bytes.size(), " bytes");
      std::copy(bytes.begin(), bytes.end(), id.bytes);
    }
    library_.check(library_.init_rank(&comm_, size, id, rank), "connecting the GPUs");
  }

  // Does not wait for the other ranks, which may be gone.
  ~Nccl() override { library_.abort(comm_); }

  const std::string getBackendName() const override { return "nccl"; }

  c10::intrusive_ptr<Work> allreduce(std::vector<Tensor> &tensors, const c10d::AllreduceOptions &) override {
    const auto &tensor = tensors.front();
    void *data = tensor.data_ptr();
    library_.check(library_.all_reduce(data, data, tensor.numel(), type_of(tensor), SUM, comm_, DEFAULT_STREAM),
                   "all-reduce");
    return started();
  }

  c10::intrusive_ptr<Work> broadcast(std::vector<Tensor> &tensors, const c10d::BroadcastOptions &options) override {
    const auto &tensor = tensors.front();
    void *data = tensor.data_ptr();
    const int root = static_cast<int>(options.rootRank);
    library_.check(library_.broadcast(data, data, tensor.numel(), type_of(tensor), root, comm_, DEFAULT_STREAM),
                   "broadcast");
    return started();
  }

  c10::intrusive_ptr<Work> allgather(std::vector<std::vector<Tensor>> &outputs, std::vector<Tensor> &inputs,
                                     const c10d::AllgatherOptions &) override {
    const auto &input = inputs.front();
    const auto all = at::empty({getSize(), input.numel()}, input.options());
    library_.check(library_.all_gather(input.data_ptr(), all.data_ptr(), input.numel(), type_of(input), comm_,
                                       DEFAULT_STREAM),
                   "all-gather");
    for (int rank = 0; rank < getSize(); ++rank)
      outputs.front()[rank].copy_(all[rank].view(input.sizes()));
    return started();
  }

 private:
  // What was started last; it is waited for with a limit, as a GPU waits for a rank that is gone for ever.
  class Started : public Work {
   public:
    explicit Started(const Nccl &nccl) : nccl_(nccl) {}

    bool wait(milliseconds) override {
      const auto end = steady_clock::now() + nccl_.timeout_;
      const auto &library = nccl_.library_;
      int state;
      while ((state = library.stream_query(DEFAULT_STREAM)) == CUDA_NOT_READY) {
        int error = SUCCESS;
        library.check(library.async_error(nccl_.comm_, &error), "asking for errors");
        library.check(error, "another rank or the connection");
        TORCH_CHECK(steady_clock::now() < end, "timed out after ", nccl_.timeout_.count(), " ms");
        std::this_thread::yield();
      }
      TORCH_CHECK(state == 0, "CUDA error ", state);
      return true;
    }

   private:
    const Nccl &nccl_;
  };

  c10::intrusive_ptr<Work> started() const { return c10::make_intrusive<Started>(*this); }

  Library library_;
  Comm comm_ = nullptr;
  milliseconds timeout_;
};

} // namespace

c10::intrusive_ptr<c10d::Backend> connect_nccl(c10d::Store &store, int rank, int size, int device,
                                               milliseconds timeout) {
  return c10::make_intrusive<Nccl>(store, rank, size, device, timeout);
}
