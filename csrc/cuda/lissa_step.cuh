#include "cuda/lissa_step.h"
#include "cuda/portable.cuh"

namespace unlearnx::cuda {

template <typename T>
struct LissaValues {
  T h, v, hv;
};

template <typename S, typename R>
__global__ void __launch_bounds__(kThreads)
    lissa_step_kernel(TensorTable<3> table, double keep_, double inverse_scale_, double* partial) {
  using T = Compute<S, R>;
  const int tensor = tensor_of_block(table);
  S* h = static_cast<S*>(table.data[0][tensor]);
  const R* v = static_cast<const R*>(table.data[1][tensor]);
  const R* hv = static_cast<const R*>(table.data[2][tensor]);
  const T keep = static_cast<T>(keep_), inverse_scale = static_cast<T>(inverse_scale_);
  T change = 0;
  for_block_values(
      table, tensor, [&](int64_t i) { return LissaValues<T>{convert<T>(h[i]), convert<T>(v[i]), convert<T>(hv[i])}; },
      [&](int64_t i, LissaValues<T> value) {
        const T next = value.v + keep * value.h - value.hv * inverse_scale;
        const T difference = next - value.h;
        change += difference < 0 ? -difference : difference;
        h[i] = convert<S>(next);
      });
  const double total = block_sum(static_cast<double>(change));
  if (threadIdx.x == 0) partial[blockIdx.x] = total;
}

template <typename T>
__global__ void __launch_bounds__(kThreads) lissa_norm_kernel(const double* partial, int64_t n, T* norm) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += kThreads) sum += partial[i];
  sum = block_sum(sum);
  if (threadIdx.x == 0) norm[0] = static_cast<T>(sum);
}

void lissa_step(const TensorTable<3>& table, DType state, DType rest, double keep, double inverse_scale,
                double* partial, cudaStream_t stream) {
  dispatch(state, [&](auto s) {
    dispatch(rest, [&](auto r) {
      UX_LAUNCH((lissa_step_kernel<typename decltype(s)::type, typename decltype(r)::type>), dim3(table.blocks()),
                dim3(kThreads), stream, table, keep, inverse_scale, partial);
    });
  });
}

void lissa_norm(const double* partial, int64_t n, void* norm, bool wide, cudaStream_t stream) {
  if (wide)
    UX_LAUNCH(lissa_norm_kernel<double>, dim3(1), dim3(kThreads), stream, partial, n, static_cast<double*>(norm));
  else
    UX_LAUNCH(lissa_norm_kernel<float>, dim3(1), dim3(kThreads), stream, partial, n, static_cast<float*>(norm));
}

}  // namespace unlearnx::cuda
