// What tch leaves out of libtorch: how often a tensor was changed, and two oneDNN operators that have
// no C++ header either, a convolution that adds its bias and activates in the same pass, and the weight
// layout it wants. They are called through libtorch's dispatcher by their registered names and schemas (libtorch 2.11,
// aten/src/ATen/native/mkldnn/{Conv,RegisterMkldnnOpContextClass}.cpp).

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstring>
#include <optional>
#include <string_view>

namespace {

using at::IntArrayRef;
using at::Scalar;
using at::Tensor;
using MaybeText = std::optional<std::string_view>;
using Scalars = c10::List<std::optional<Scalar>>;

template <typename Signature>
auto operator_named(const char *name, const char *overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

// Runs `f`, hands its tensor over, and writes the text of an exception into `error`.
template <typename F>
Tensor *handed_over(F f, char *error, size_t error_size) {
  try {
    return new Tensor(f());
  } catch (const std::exception &exception) {
    std::strncpy(error, exception.what(), error_size - 1);
  } catch (...) {
    std::strncpy(error, "an unknown exception", error_size - 1);
  }
  return nullptr;
}

} // namespace

extern "C" {

// How often a tensor has been changed in place; less than 0 where that is not counted.
int64_t support_version(const Tensor *tensor) {
  try {
    return tensor->_version();
  } catch (...) {
    return -1;
  }
}

// How a square kernel moves over a picture: `Geometry` in fused.rs.
struct Geometry {
  int64_t stride, padding[2], groups;
};

// What is done to a convolution's output: `Activation` in fused.rs.
enum class Activation : int { None, Relu, Relu6 };

// `input_size` is that of the inputs the kernel will meet: the layout depends on it.
// Both return null on an error, whose text they write into `error`, which is zero-filled.

Tensor *support_reorder_weight(const Tensor *weight, Geometry geometry, const int64_t *input_size,
                               char *error, size_t error_size) {
  return handed_over(
      [&] {
        static const auto reorder =
            operator_named<Tensor(const Tensor &, IntArrayRef, IntArrayRef, IntArrayRef, int64_t,
                                  at::OptionalIntArrayRef)>("mkldnn::_reorder_convolution_weight", "");
        const int64_t strides[] = {geometry.stride, geometry.stride}, ones[] = {1, 1};
        return reorder.call(*weight, geometry.padding, strides, ones, geometry.groups,
                            IntArrayRef(input_size, 4));
      },
      error, error_size);
}

Tensor *support_fused_convolution(const Tensor *input, const Tensor *weight, const Tensor *bias,
                                  Geometry geometry, Activation activation, char *error, size_t error_size) {
  return handed_over(
      [&] {
        const int64_t strides[] = {geometry.stride, geometry.stride}, ones[] = {1, 1};
        static const auto convolution =
            operator_named<Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, IntArrayRef,
                                  IntArrayRef, IntArrayRef, int64_t, std::string_view, Scalars, MaybeText)>(
                "mkldnn::_convolution_pointwise", "");
        std::string_view attribute = activation == Activation::Relu ? "relu" : "none";
        Scalars limits;
        if (activation == Activation::Relu6) {
          attribute = "hardtanh";
          limits.push_back(Scalar(0.0));
          limits.push_back(Scalar(6.0));
        }
        return convolution.call(*input, *weight, *bias, geometry.padding, strides, ones, geometry.groups,
                                attribute, limits, "");
      },
      error, error_size);
}
}
