// What tch leaves out of libtorch: how often a tensor was changed, a subtraction from many tensors at once, an operation
// with a gradient of its own, and two oneDNN operators that have no C++ header either, a convolution that adds its bias
// and activates in the same pass, and the weight layout it wants. They are called through libtorch's dispatcher by their
// registered names and schemas (libtorch 2.11, aten/src/ATen/native/mkldnn/{Conv,RegisterMkldnnOpContextClass}.cpp).

#include "foreign.hpp"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <string_view>
#include <vector>

// How a square kernel moves over a picture: `Geometry` in fused.rs.
struct Geometry {
  int64_t stride, padding[2], groups;
};

// What is done to a convolution's output: `Activation` in fused.rs.
enum class Activation : int { None, Relu, Relu6 };

namespace {

using at::IntArrayRef;
using at::Scalar;
using at::Tensor;
using MaybeText = std::optional<std::string_view>;
using Scalars = c10::List<std::optional<Scalar>>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

template <typename Signature>
auto operator_named(const char *name, const char *overload) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, overload).typed<Signature>();
}

// One pass of oneDNN.
Tensor fused_convolution(const Tensor &input, const Tensor &kernel, const Tensor &bias, const Geometry &geometry,
                         Activation activation) {
  const int64_t strides[] = {geometry.stride, geometry.stride}, ones[] = {1, 1};
  static const auto convolution =
      operator_named<Tensor(const Tensor &, const Tensor &, const std::optional<Tensor> &, IntArrayRef, IntArrayRef,
                            IntArrayRef, int64_t, std::string_view, Scalars, MaybeText)>(
          "mkldnn::_convolution_pointwise", "");
  std::string_view attribute = activation == Activation::Relu ? "relu" : "none";
  Scalars limits;
  if (activation == Activation::Relu6) {
    attribute = "hardtanh";
    limits.push_back(Scalar(0.0));
    limits.push_back(Scalar(6.0));
  }
  return convolution.call(input, kernel, bias, geometry.padding, strides, ones, geometry.groups, attribute, limits, "");
}

// The same by operators that take every kind of number.
Tensor plain_convolution(const Tensor &input, const Tensor &kernel, const Tensor &bias, const Geometry &geometry,
                         Activation activation) {
  const Tensor output =
      at::conv2d(input, kernel, bias, {geometry.stride, geometry.stride}, geometry.padding, {1, 1}, geometry.groups);
  switch (activation) {
  case Activation::None:
    return output;
  case Activation::Relu:
    return at::relu(output);
  default:
    return at::relu6(output);
  }
}

// A convolution, its batch normalization in inference mode and its activation. What a chain of operators would keep for
// the backward pass, and compute in passes of its own, is here the output alone: where it is 0 or 6, so is the
// gradient of its input.
struct NormalizedConvolution : torch::autograd::Function<NormalizedConvolution> {
  // The arguments that may have a gradient.
  enum Argument { Input, Kernel, Gamma, Beta };

  static Tensor forward(AutogradContext *context, const Tensor &input, const Tensor &kernel, const Tensor &gamma,
                        const Tensor &beta, const Tensor &mean, const Tensor &variance, double epsilon,
                        Geometry geometry, Activation activation) {
    const Tensor inverse_deviation = (variance + epsilon).rsqrt_();
    const Tensor scale = inverse_deviation * gamma;
    const at::ScalarType kind = input.scalar_type();
    const Tensor folded = (kernel * scale.view({-1, 1, 1, 1})).to(kind);
    const Tensor bias = at::addcmul(beta, mean, scale, -1).to(kind);
    const bool has_fused = at::hasMKLDNN() && kind != at::kDouble;
    const auto convolution = has_fused ? fused_convolution : plain_convolution;
    const Tensor output = convolution(input, folded, bias, geometry, activation);
    const Tensor of_activation = activation == Activation::None ? Tensor() : output;
    context->save_for_backward({input, kernel, folded, mean, scale, inverse_deviation, of_activation});
    context->saved_data["stride"] = geometry.stride;
    context->saved_data["padding"] = std::vector<int64_t>(geometry.padding, geometry.padding + 2);
    context->saved_data["groups"] = geometry.groups;
    context->saved_data["activation"] = static_cast<int64_t>(activation);
    return output;
  }

  static variable_list backward(AutogradContext *context, variable_list gradients) {
    const variable_list saved = context->get_saved_variables();
    Tensor input = saved[0], folded = saved[2];
    const Tensor &kernel = saved[1], &mean = saved[3], &scale = saved[4], &inverse_deviation = saved[5],
                 &output = saved[6];
    Tensor gradient = gradients[0].contiguous(input.suggest_memory_format());
    switch (static_cast<Activation>(context->saved_data["activation"].toInt())) {
    case Activation::None:
      break;
    case Activation::Relu:
      gradient = at::threshold_backward(gradient, output, 0);
      break;
    case Activation::Relu6:
      gradient = at::hardtanh_backward(gradient, output, 0, 6);
    }
    const int64_t stride = context->saved_data["stride"].toInt(), groups = context->saved_data["groups"].toInt();
    const int64_t channels = kernel.size(0);
    const at::ScalarType kind = input.scalar_type();
    if (stride > 1 && groups > 1 && kind == at::kBFloat16) {
      // oneDNN (3.10) computes this one's gradient by a loop that is 50 times as slow as that in 32 bits.
      gradient = gradient.to(at::kFloat), input = input.to(at::kFloat), folded = folded.to(at::kFloat);
    }
    const bool of_kernel = context->needs_input_grad(Kernel), of_gamma = context->needs_input_grad(Gamma);
    const bool of_beta = context->needs_input_grad(Beta);
    auto [of_input, of_folded, of_bias] = at::convolution_backward(
        gradient, input, folded, channels, {stride, stride}, context->saved_data["padding"].toIntVector(), {1, 1},
        false, {0, 0}, groups,
        {context->needs_input_grad(Input), of_kernel || of_gamma, of_beta || of_gamma});
    variable_list results(9);
    if (of_input.defined()) {
      results[Input] = of_input.to(kind);
    }
    const at::ScalarType of_weights = scale.scalar_type();
    if (of_beta || of_gamma) {
      results[Beta] = of_bias = of_bias.to(of_weights);
    }
    if (of_kernel || of_gamma) {
      of_folded = of_folded.to(of_weights);
    }
    if (of_gamma) {
      const Tensor of_scale = (of_folded * kernel).sum({1, 2, 3}) - of_bias * mean;
      results[Gamma] = of_scale * inverse_deviation;
    }
    if (of_kernel) {
      results[Kernel] = of_folded.mul_(scale.view({-1, 1, 1, 1}));
    }
    return results;
  }
};

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

// `input_size` is that of the inputs the kernel will meet: the layout depends on it.
// All return null on an error, whose text they write into `error`, which is zero-filled.

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
  return handed_over([&] { return fused_convolution(*input, *weight, *bias, geometry, activation); }, error, error_size);
}

// `normalization` is gamma, beta, mean and variance.
Tensor *support_normalized_convolution(const Tensor *input, const Tensor *kernel, const Tensor *const *normalization,
                                       double epsilon, Geometry geometry, Activation activation, char *error,
                                       size_t error_size) {
  return handed_over(
      [&] {
        const auto &[gamma, beta, mean, variance] = *reinterpret_cast<const Tensor *const(*)[4]>(normalization);
        return NormalizedConvolution::apply(*input, *kernel, *gamma, *beta, *mean, *variance, epsilon, geometry,
                                            activation);
      },
      error, error_size);
}

// Subtracts from each of `count` tensors its part of a flat one; returns the flat one.
const Tensor *support_subtract(const Tensor *const *tensors, size_t count, const Tensor *flat, char *error,
                               size_t error_size) {
  return tried(
      [&] {
        std::vector<Tensor> values, parts;
        int64_t start = 0;
        for (size_t i = 0; i < count; ++i) {
          values.push_back(*tensors[i]);
          parts.push_back(flat->narrow(0, start, values[i].numel()).view(values[i].sizes()));
          start += values[i].numel();
        }
        at::_foreach_sub_(values, parts);
        return flat;
      },
      error, error_size);
}
}
