#include "cuda/softmax_linear.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/mm.h>
#include <torch/library.h>

#include <limits>

#include "cuda/bindings.h"
#include "ops/full_precision.h"
#include "ops/softmax_linear.h"

namespace unlearnx::cuda {
namespace {

/// Products of one problem's batches, u and the product being kept from one to the next.
class Products {
 public:
  Products(const SoftmaxLinear& problem, int64_t batch_size, cudaStream_t stream)
      : p_(problem),
        stream_(stream),
        u_(at::empty({batch_size, problem.rows()}, problem.h.options())),
        product_(at::empty({problem.rows(), problem.features}, problem.h.options())) {}

  /// The mean Hessian of a batch times v; overwritten by the next one.
  const at::Tensor& multiply(const at::Tensor& v, Batch batch) {
    const auto h = p_.h.narrow(0, batch.begin, batch.size), p = p_.p.narrow(0, batch.begin, batch.size);
    auto u = u_.narrow(0, 0, batch.size);
    at::mm_out(u, h, v.t());
    softmax_rows(p.const_data_ptr(), u.mutable_data_ptr(), batch.size, p_.classes, p_.sides,
                 1.0 / static_cast<double>(batch.size), p_.compute_type() == at::kDouble, stream_);
    check_launch();
    return at::mm_out(product_, u.t(), h);
  }

 private:
  const SoftmaxLinear& p_;
  const cudaStream_t stream_;
  const at::Tensor u_;
  at::Tensor product_;
};

at::Tensor softmax_linear_hvp(const at::Tensor& h, const at::Tensor& probs, const at::Tensor& v) {
  const FullPrecision full_precision;
  const auto problem = check_softmax_linear("softmax_linear_hvp", h, probs, v);
  const c10::cuda::CUDAGuard guard(h.device());
  Products products(problem, problem.samples, c10::cuda::getCurrentCUDAStream());
  return problem.as_given(products.multiply(problem.v, {0, problem.samples}), v);
}

std::tuple<at::Tensor, at::Tensor> lissa_softmax_linear(const at::Tensor& h, const at::Tensor& probs,
                                                        const at::Tensor& v, double damping, double scale,
                                                        std::optional<int64_t> batch_size, int64_t iterations,
                                                        std::optional<int64_t> patience,
                                                        const std::optional<at::Tensor>& order) {
  const FullPrecision full_precision;
  const auto run = check_lissa_softmax_linear(h, probs, v, damping, scale, batch_size, iterations, patience, order);
  const c10::cuda::CUDAGuard guard(h.device());
  const auto& p = run.problem;
  const cudaStream_t stream = c10::cuda::getCurrentCUDAStream();
  Products products(p, run.batch_size, stream);

  const auto options = p.h.options();
  const auto state = p.v.clone(), history = run.new_history();
  const auto partial = at::empty({lissa_partials(p.classes, p.sides, p.features)}, options.dtype(at::kDouble));
  const auto smallest = at::full({p.sides}, std::numeric_limits<double>::infinity(), options.dtype(at::kDouble));
  const auto since = at::full({p.sides}, 0, options.dtype(at::kLong));
  const auto active = at::full({p.sides}, true, options.dtype(at::kBool));
  LissaState lissa{state.mutable_data_ptr(),
                   p.v.const_data_ptr(),
                   nullptr,
                   history.mutable_data_ptr(),
                   partial.mutable_data_ptr<double>(),
                   smallest.mutable_data_ptr<double>(),
                   since.mutable_data_ptr<int64_t>(),
                   active.mutable_data_ptr<bool>(),
                   p.classes,
                   p.sides,
                   p.features,
                   run.keep,
                   run.inverse_scale,
                   run.patience,
                   p.compute_type() == at::kDouble};
  for (int64_t i = 0; i < run.iterations; ++i) {
    lissa.hv = products.multiply(state, run.batch(i)).const_data_ptr();
    lissa_iteration(lissa, i, stream);
    check_launch();
  }
  return run.results(state, history, v);
}

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("softmax_linear_hvp", &softmax_linear_hvp);
  m.impl("lissa_softmax_linear", &lissa_softmax_linear);
}

}  // namespace unlearnx::cuda
