// From the checked problems of the linear_grad and conv2d_grad families to the launches of tile_product.h.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/macros.h>

#include "common/checks.h"
#include "cuda/bindings.h"
#include "cuda/tile_product.h"
#include "ops/conv2d_grad.h"
#include "ops/linear_grad.h"

namespace unlearnx::cuda {

/// Kernels count what belongs to one sample in 32 bits, and everything else in 64.
inline int narrow(int64_t size) {
  UX_CHECK_VALUE(size < (int64_t(1) << 30), "unlearnx: a sample has a size or a number of positions of ", size,
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

inline Processor processor_of(int device) {
  const auto attribute = [device](cudaDeviceAttr which) {
    int value = 0;
    STD_CUDA_CHECK(cudaDeviceGetAttribute(&value, which, device));
    return value;
  };
  return {attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrComputeCapabilityMajor) >= 8};
}

/// The per-sample products of a problem, on its device and the current stream.
class TileProducts {
 public:
  template <typename Problem>
  explicit TileProducts(const Problem& p)
      : guard_(p.x),
        stream_(guard_.stream()),
        like_(p.x),
        compute_like_(p.x, p.compute_type()),
        type_(dtype_of(p.x)),
        problem_(tile_problem(p)),
        plan_(plan_tiles(problem_, type_, processor_of(guard_.device()))) {}

  /// Every w_i d_i: (samples, groups * outputs, columns) in the dtype of the problem.
  Tensor rows() const {
    const auto rows = empty({problem_.samples, problem_.groups * problem_.outputs, problem_.columns}, like_);
    tile_rows(problem_, plan_, type_, rows.mutable_data_ptr(), stream_);
    check_launch();
    return rows;
  }

  /// sum_i w_i d_i, or w_i d_i^2 where `squared`: (groups * outputs, columns) in the compute type.
  Tensor sum(bool squared) const {
    const auto matrix = empty({problem_.groups * problem_.outputs, problem_.columns}, compute_like_);
    const auto parts = empty({plan_.splits > 1 ? plan_.splits : 0, matrix.numel()}, compute_like_);
    tile_sum(problem_, plan_, type_, squared, parts.mutable_data_ptr(), matrix.mutable_data_ptr(), stream_);
    check_launch();
    return matrix;
  }

  /// Every squared norm: (samples,) in the compute type.
  Tensor norms() const {
    const auto norms = empty({problem_.samples}, compute_like_);
    const auto parts = empty({plan_.norm_parts, problem_.samples}, compute_like_);
    tile_norms(problem_, plan_, type_, parts.mutable_data_ptr(), norms.mutable_data_ptr(), stream_);
    check_launch();
    return norms;
  }

 private:
  const DeviceGuard guard_;
  const cudaStream_t stream_;
  const Like like_, compute_like_;
  const DType type_;
  const TileProblem problem_;
  const TilePlan plan_;
};

}  // namespace unlearnx::cuda
