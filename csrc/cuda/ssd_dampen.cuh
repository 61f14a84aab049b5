#include "cuda/portable.cuh"
#include "cuda/ssd_dampen.h"

namespace unlearnx::cuda {

template <typename T>
struct DampenValues {
  T param, full, forget;
};

template <typename P, typename I>
__global__ void __launch_bounds__(kThreads)
    ssd_dampen_kernel(TensorTable<3> table, DampenRule rule, unsigned long long* counts) {
  using T = Compute<P, I>;
  const int tensor = tensor_of_block(table);
  P* params = static_cast<P*>(table.data[0][tensor]);
  const I* full = static_cast<const I*>(table.data[1][tensor]);
  const I* forget = static_cast<const I*>(table.data[2][tensor]);
  const T alpha = static_cast<T>(rule.alpha), lam = static_cast<T>(rule.lam);
  const T exponent = static_cast<T>(rule.exponent), bound = static_cast<T>(rule.bound);
  int count = 0;
  for_block_values(
      table, tensor,
      [&](int64_t i) { return DampenValues<T>{convert<T>(params[i]), convert<T>(full[i]), convert<T>(forget[i])}; },
      [&](int64_t i, DampenValues<T> v) {
        if (!(v.forget > alpha * v.full)) return;
        T factor = lam * v.full / v.forget;
        if (exponent != T(1)) factor = pow(factor, exponent);
        params[i] = convert<P>(v.param * (factor > bound ? bound : factor));
        ++count;
      });
  const int total = block_sum(count);
  // Whole numbers: the order in which blocks add does not matter.
  if (threadIdx.x == 0 && total) atomicAdd(counts + table.index[tensor], static_cast<unsigned long long>(total));
}

void ssd_dampen(const TensorTable<3>& table, DType params, DType importances, DampenRule rule, int64_t* counts,
                cudaStream_t stream) {
  dispatch(params, [&](auto p) {
    dispatch(importances, [&](auto i) {
      UX_LAUNCH((ssd_dampen_kernel<typename decltype(p)::type, typename decltype(i)::type>), dim3(table.blocks()),
                dim3(kThreads), stream, table, rule, reinterpret_cast<unsigned long long*>(counts));
    });
  });
}

}  // namespace unlearnx::cuda
