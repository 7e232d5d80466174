// Declarations for libtorch's ProcessGroupGloo.hpp, as PyTorch's wheel ships that header without Gloo's.
// Nothing of Gloo is made, sized or called from outside libtorch.
#pragma once
#include <chrono>
namespace gloo {
class Context {
 public:
  virtual ~Context();
  void setTimeout(std::chrono::milliseconds timeout);
};
} // namespace gloo
