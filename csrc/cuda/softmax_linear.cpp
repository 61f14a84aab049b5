#include "cuda/softmax_linear.h"

#include <limits>

#include "common/dispatcher.h"
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
        u_(empty({batch_size, problem.rows()}, Like(problem.h))),
        product_(empty({problem.rows(), problem.features}, Like(problem.h))) {}

  /// The mean Hessian of a batch times v; overwritten by the next one.
  const Tensor& multiply(const Tensor& v, Batch batch) {
    const auto h = p_.h.narrow(0, batch.begin, batch.size), p = p_.p.narrow(0, batch.begin, batch.size);
    const auto u = u_.narrow(0, 0, batch.size);
    mm_out(u, h, v.t());
    softmax_rows(p.const_data_ptr(), u.mutable_data_ptr(), batch.size, p_.classes, p_.sides,
                 1.0 / static_cast<double>(batch.size), p_.compute_type() == kDouble, stream_);
    check_launch();
    mm_out(product_, u.t(), h);
    return product_;
  }

 private:
  const SoftmaxLinear& p_;
  const cudaStream_t stream_;
  const Tensor u_;
  const Tensor product_;
};

Tensor softmax_linear_hvp(const Tensor& h, const Tensor& probs, const Tensor& v) {
  const FullPrecision full_precision(h);
  const auto problem = check_softmax_linear("softmax_linear_hvp", h, probs, v);
  const DeviceGuard guard(h);
  Products products(problem, problem.samples, guard.stream());
  return problem.as_given(products.multiply(problem.v, {0, problem.samples}), v);
}

std::tuple<Tensor, Tensor> lissa_softmax_linear(const Tensor& h, const Tensor& probs, const Tensor& v, double damping,
                                                double scale, std::optional<int64_t> batch_size, int64_t iterations,
                                                std::optional<int64_t> patience, const OptionalTensor& order) {
  const FullPrecision full_precision(h);
  const auto run = check_lissa_softmax_linear(h, probs, v, damping, scale, batch_size, iterations, patience, order);
  const DeviceGuard guard(h);
  const auto& p = run.problem;
  const cudaStream_t stream = guard.stream();
  Products products(p, run.batch_size, stream);

  const auto state = p.v.clone(), history = run.new_history();
  const auto partial = empty({lissa_partials(p.classes, p.sides, p.features)}, Like(p.h, kDouble));
  const auto smallest = full({p.sides}, std::numeric_limits<double>::infinity(), Like(p.h, kDouble));
  const auto since = full({p.sides}, 0, Like(p.h, kLong));
  const auto active = full({p.sides}, true, Like(p.h, kBool));
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
                   p.compute_type() == kDouble};
  for (int64_t i = 0; i < run.iterations; ++i) {
    lissa.hv = products.multiply(state, run.batch(i)).const_data_ptr();
    lissa_iteration(lissa, i, stream);
    check_launch();
  }
  return run.results(state, history, v);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("softmax_linear_hvp", TORCH_BOX(&softmax_linear_hvp));
  m.impl("lissa_softmax_linear", TORCH_BOX(&lissa_softmax_linear));
}

}  // namespace unlearnx::cuda
