// What tch leaves out of libtorch's CUDA half: CUDA graphs, which record what a GPU is told and repeat it by one call
// (at::cuda::CUDAGraph, with memory of its own for what the work allocates), kernels that PyTorch's jiterator compiles,
// and copies that nobody waits for. The names are those of libtorch 2.11.

#include "cuda/loaded.hpp"
#include "foreign.hpp"

#include <ATen/ATen.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstddef>
#include <map>
#include <mutex>
#include <string>
#include <utility>

namespace {

using at::Tensor;

// What other threads do on the GPU meanwhile is their own business: cudaStreamCaptureModeThreadLocal.
constexpr int THREAD_LOCAL = 1;

using PoolId = std::pair<unsigned long long, unsigned long long>;

// The methods of at::cuda::CUDAGraph, by the names that the compiler gives them.
struct Methods {
  void (*construct)(void *, bool) = loaded<void(void *, bool)>("_ZN2at4cuda9CUDAGraphC1Eb");
  void (*destroy)(void *) = loaded<void(void *)>("_ZN2at4cuda9CUDAGraphD1Ev");
  void (*begin)(void *, PoolId, int) = loaded<void(void *, PoolId, int)>(
      "_ZN2at4cuda9CUDAGraph13capture_beginESt4pairIyyE21cudaStreamCaptureMode");
  void (*end)(void *) = loaded<void(void *)>("_ZN2at4cuda9CUDAGraph11capture_endEv");
  void (*replay)(void *) = loaded<void(void *)>("_ZN2at4cuda9CUDAGraph6replayEv");
};

const std::string BIASED = R"(template <typename T> T biased(T output, T bias, double low, double high) {
  const float sum = float(output) + float(bias);
  return T(sum < low ? float(low) : sum > high ? float(high) : sum);
})";

const std::string WITH_RESIDUAL =
    R"(template <typename T> T with_residual(T output, T bias, T residual, double low, double high) {
  const float sum = float(output) + float(bias) + float(residual);
  return T(sum < low ? float(low) : sum > high ? float(high) : sum);
})";

const Methods &methods() {
  static const Methods found;
  return found;
}

class Graph {
 public:
  explicit Graph(c10::DeviceIndex device) : guard_(c10::kCUDA), device_(c10::kCUDA, device) {
    const c10::DeviceGuard on_device(device_);
    methods().construct(object_, false);
  }
  Graph(const Graph &) = delete;
  ~Graph() { methods().destroy(object_); }

  // Takes the thread to the stream that recordings are made on; the default one cannot be recorded. It is always the
  // same, as libtorch keeps memory for each.
  void enter() {
    static std::mutex mutex;
    static std::map<c10::DeviceIndex, c10::Stream> streams;
    const std::lock_guard lock(mutex);
    auto found = streams.find(device_.index());
    if (found == streams.end())
      found = streams.emplace(device_.index(), guard_.getStreamFromGlobalPool(device_)).first;
    before_ = guard_.exchangeDevice(device_);
    go_on(found->second);
  }

  void begin() { methods().begin(object_, {}, THREAD_LOCAL); }
  void end() { methods().end(object_); }

  void leave() {
    guard_.setDevice(before_);
    go_on(guard_.getDefaultStream(device_));
  }

  void replay() { methods().replay(object_); }

 private:
  // Goes on on another stream, after what is to be done on this one.
  void go_on(const c10::Stream &stream) {
    const c10::Stream before = guard_.exchangeStream(stream);
    c10::Event event(c10::kCUDA);
    event.record(before);
    event.block(stream);
  }

  c10::impl::VirtualGuardImpl guard_;
  c10::Device device_, before_ = device_;
  // It has 104 bytes.
  alignas(std::max_align_t) unsigned char object_[1024];
};

} // namespace

extern "C" {

Graph *support_graph_new(int device, char *error, size_t error_size) {
  return tried([&] { return new Graph(static_cast<c10::DeviceIndex>(device)); }, error, error_size);
}

void support_graph_delete(Graph *graph) {
  try {
    delete graph;
  } catch (...) {
  }
}

// These return the graph, or null on an error.

Graph *support_graph_enter(Graph *graph, char *error, size_t error_size) {
  return tried([&] { return graph->enter(), graph; }, error, error_size);
}

Graph *support_graph_begin(Graph *graph, char *error, size_t error_size) {
  return tried([&] { return graph->begin(), graph; }, error, error_size);
}

Graph *support_graph_end(Graph *graph, char *error, size_t error_size) {
  return tried([&] { return graph->end(), graph; }, error, error_size);
}

Graph *support_graph_leave(Graph *graph, char *error, size_t error_size) {
  return tried([&] { return graph->leave(), graph; }, error, error_size);
}

Graph *support_graph_replay(Graph *graph, char *error, size_t error_size) {
  return tried([&] { return graph->replay(), graph; }, error, error_size);
}

// Returns `output` `[N, C, H, W]` plus `bias` `[C]`, plus `residual` where there is one, within `low` and `high`, by
// one kernel, which PyTorch's jiterator compiles.
Tensor *support_bounded_sum(const Tensor *output, const Tensor *bias, const Tensor *residual, double low, double high,
                            char *error, size_t error_size) {
  using Tensors = c10::SmallVector<Tensor>;
  using Scalars = c10::SmallVector<at::Scalar>;
  return handed_over(
      [&] {
        static const auto launch =
            loaded<Tensors(const std::string &, const std::string &, int, const Tensors &, const Scalars &, bool)>(
                "_ZN2at4cuda22CompileAndLaunchKernelERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEES8_iRKN3c1011"
                "SmallVectorINS_6TensorELj6EEERKNSA_INS9_6ScalarELj1EEEb");
        Tensors tensors{*output, bias->view({1, -1, 1, 1})};
        if (residual == nullptr)
          return launch(BIASED, "biased", 1, tensors, {low, high}, false)[0];
        tensors.push_back(*residual);
        return launch(WITH_RESIDUAL, "with_residual", 1, tensors, {low, high}, false)[0];
      },
      error, error_size);
}

// Copies a tensor to a GPU behind what that has been told, without waiting for it.
Tensor *support_send(const Tensor *tensor, int device, char *error, size_t error_size) {
  return handed_over(
      [&] {
        const c10::Device to(c10::kCUDA, static_cast<c10::DeviceIndex>(device));
        return tensor->pin_memory().to(to, tensor->scalar_type(), /*non_blocking=*/true);
      },
      error, error_size);
}
}
