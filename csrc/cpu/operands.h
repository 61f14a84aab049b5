// From the checked problems of the linear_grad and conv2d_grad families to the pointers of tile_product.h.
#pragma once

#include "common/tensor.h"
#include "cpu/convert.h"
#include "cpu/tile_product.h"
#include "ops/conv2d_grad.h"
#include "ops/linear_grad.h"

namespace unlearnx::cpu {

template <typename In>
void describe(const LinearGrad& p, Operands<In>& o) {
  o.samples = p.samples;
  o.positions = p.positions;
  o.groups = 1;
  o.outputs = p.outputs;
  o.columns = p.inputs;
  o.x_sample = p.positions * p.inputs;
  o.unfolded = false;
}

template <typename In>
void describe(const Conv2dGrad& p, Operands<In>& o) {
  o.samples = p.samples;
  o.positions = p.positions();
  o.groups = p.groups;
  o.outputs = p.outputs / p.groups;
  o.columns = p.columns();
  o.x_sample = p.height * p.width * p.channels;
  o.window = {p.height,     p.width,         p.channels / p.groups,
              p.channels,   p.output_height, p.output_width,
              p.kernel_h,   p.kernel_w,      p.stride_h,
              p.stride_w,   p.padding_h,     p.padding_w,
              p.dilation_h, p.dilation_w};
  // A 1x1 convolution of the whole image is a linear layer over its pixels.
  o.unfolded = p.kernel_h * p.kernel_w * p.stride_h * p.stride_w * p.groups != 1 || p.padding_h + p.padding_w != 0;
}

template <typename In, typename Problem>
Operands<In> operands_of(const Problem& p) {
  Operands<In> o{};
  describe(p, o);
  o.rows = o.samples * o.positions;
  o.pairs = p.paired() ? 2 : 1;
  o.x[0] = p.x.template const_data_ptr<In>();
  o.dy[0] = p.dy.template const_data_ptr<In>();
  if (p.paired()) {
    o.x[1] = p.x_new.template const_data_ptr<In>();
    o.dy[1] = p.dy_new.template const_data_ptr<In>();
  }
  return o;
}

/// Calls work(operands, weights, T()) in the dtype of the problem, T its compute type. float16 is widened first;
/// bfloat16 is widened as it is packed.
template <typename Problem, typename Work>
void with_operands(Problem& p, const Work& work) {
  const auto call = [&](auto in, auto compute) {
    using T = decltype(compute);
    work(operands_of<decltype(in)>(p), p.weight.defined() ? p.weight.template const_data_ptr<T>() : nullptr, compute);
  };
  switch (p.x.scalar_type()) {
    case kDouble:
      return call(double(), double());
    case kBFloat16:
      return call(c10::BFloat16(), float());
    case kHalf:
      for (Tensor* t : {&p.x, &p.dy, &p.x_new, &p.dy_new})
        if (t->defined()) *t = t->to(kFloat);
      [[fallthrough]];
    default:
      return call(float(), float());
  }
}

}  // namespace unlearnx::cpu
