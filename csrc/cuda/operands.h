// From the checked problems of the linear_grad and conv2d_grad families to the launches of tile_product.h.
#pragma once

#include <ATen/ops/empty.h>

#include "cuda/bindings.h"
#include "cuda/tile_product.h"
#include "ops/conv2d_grad.h"
#include "ops/linear_grad.h"

namespace unlearnx::cuda {

/// Kernels count what belongs to one sample in 32 bits, and everything else in 64.
inline int narrow(int64_t size) {
  TORCH_CHECK_VALUE(size < (int64_t(1) << 30), "unlearnx: a sample has a size or a number of positions of ", size,
                    ", expected less than 2^30 on CUDA");
  return static_cast<int>(size);
}

inline TileProblem describe(const LinearGrad& p) {
  TileProblem t{};
  t.window = whole_rows(narrow(p.positions), narrow(p.inputs));
  t.groups = 1;
  t.outputs = p.outputs;
  t.columns = p.inputs;
  return t;
}

inline TileProblem describe(const Conv2dGrad& p) {
  for (const int64_t size : {p.height * p.width, p.height + 2 * p.padding_h, p.width + 2 * p.padding_w, p.positions(),
                             p.kernel_h * p.kernel_w, p.channels})
    narrow(size);
  TileProblem t{};
  t.window = {narrow(p.height),        narrow(p.width),        narrow(p.channels / p.groups),
              narrow(p.output_height), narrow(p.output_width), narrow(p.kernel_w),
              narrow(p.stride_h),      narrow(p.stride_w),     narrow(p.padding_h),
              narrow(p.padding_w),     narrow(p.dilation_h),   narrow(p.dilation_w)};
  t.groups = p.groups;
  t.outputs = p.outputs / p.groups;
  t.columns = p.columns();
  return t;
}

template <typename Problem>
TileProblem tile_problem(const Problem& p) {
  TileProblem t = describe(p);
  t.x[0] = pointer(p.x);
  t.dy[0] = pointer(p.dy);
  t.x[1] = pointer(p.x_new);
  t.dy[1] = pointer(p.dy_new);
  t.pairs = p.paired() ? 2 : 1;
  t.weight = pointer(p.weight);
  t.samples = p.samples;
  return t;
}

inline Processor processor_of(c10::DeviceIndex device) {
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    C10_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrComputeCapabilityMajor) >= 8};
}

/// The per-sample products of a problem, on its device and the current stream.
class TileProducts {
 public:
  template <typename Problem>
  explicit TileProducts(const Problem& p)
      : guard_(p.x.device()),
        stream_(c10::cuda::getCurrentCUDAStream()),
        options_(p.x.options()),
        compute_options_(options_.dtype(p.compute_type())),
        type_(dtype_of(p.x)),
        problem_(tile_problem(p)),
        plan_(plan_tiles(problem_, type_, processor_of(p.x.device().index()))) {}

  /// Every w_i d_i: (samples, groups * outputs, columns) in the dtype of the problem.
  at::Tensor rows() const {
    const auto rows = at::empty({problem_.samples, problem_.groups * problem_.outputs, problem_.columns}, options_);
    tile_rows(problem_, plan_, type_, rows.mutable_data_ptr(), stream_);
    check_launch();
    return rows;
  }

  /// sum_i w_i d_i, or w_i d_i^2 where `squared`: (groups * outputs, columns) in the compute type.
  at::Tensor sum(bool squared) const {
    const auto matrix = at::empty({problem_.groups * problem_.outputs, problem_.columns}, compute_options_);
    const auto parts = at::empty({plan_.splits > 1 ? plan_.splits : 0, matrix.numel()}, compute_options_);
    tile_sum(problem_, plan_, type_, squared, parts.mutable_data_ptr(), matrix.mutable_data_ptr(), stream_);
    check_launch();
    return matrix;
  }

  /// Every squared norm: (samples,) in the compute type.
  at::Tensor norms() const {
    const auto norms = at::empty({problem_.samples}, compute_options_);
    const auto parts = at::empty({plan_.norm_parts, problem_.samples}, compute_options_);
    tile_norms(problem_, plan_, type_, parts.mutable_data_ptr(), norms.mutable_data_ptr(), stream_);
    check_launch();
    return norms;
  }

 private:
  const c10::cuda::CUDAGuard guard_;
  const c10::cuda::CUDAStream stream_;
  const at::TensorOptions options_, compute_options_;
  const DType type_;
  const TileProblem problem_;
  const TilePlan plan_;
};

}  // namespace unlearnx::cuda
