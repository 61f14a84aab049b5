#include "ops/softmax_linear.h"

#include <algorithm>
#include <limits>

#include "common/checks.h"
#include "common/dispatcher.h"

namespace unlearnx {
namespace {

constexpr auto kLissa = "lissa_softmax_linear";

void check_at_least_one(const char* argument, int64_t value) {
  UX_CHECK_VALUE(value >= 1, kLissa, ": ", argument, " is ", value, ", expected at least 1");
}

void check_order(const Tensor& order, const Tensor& h) {
  UX_CHECK_TYPE(order.scalar_type() == kLong, kLissa, ": order has dtype ", order.scalar_type(), ", expected int64");
  UX_CHECK_VALUE(order.dim() == 1 && order.size(0) == h.size(0), kLissa, ": order has shape ", order.sizes(),
                 ", expected (N,) = [", h.size(0), "]");
  check_same_device(kLissa, "order", order, "h", h);
  if (!order.is_cpu()) return;  // reading it would synchronise: there index_select asserts on the device
  const auto places = order.contiguous();
  const auto* first = places.const_data_ptr<int64_t>();
  const auto [low, high] = std::minmax_element(first, first + places.numel());
  UX_CHECK_VALUE(*low >= 0 && *high < h.size(0), kLissa, ": order has entries from ", *low, " to ", *high,
                 ", expected 0 to ", h.size(0) - 1);
}

}  // namespace

SoftmaxLinear check_softmax_linear(const char* op, const Tensor& h, const Tensor& probs, const Tensor& v) {
  // The Python functions call it so, and they are what the world sees.
  constexpr auto probs_name = "logits_or_probs";
  check_floating(op, "h", h);
  check_floating(op, probs_name, probs);
  check_floating(op, "v", v);
  check_same_device(op, probs_name, probs, "h", h);
  check_same_device(op, "v", v, "h", h);
  UX_CHECK_VALUE(h.dim() == 2 && h.numel() > 0, op, ": h has shape ", h.sizes(),
                 ", expected (N, F) with N and F at least 1");
  UX_CHECK_VALUE(probs.dim() == 2 && probs.size(0) == h.size(0) && probs.size(1) > 0, op, ": ", probs_name,
                 " has shape ", probs.sizes(), ", expected (N, C) with N = ", h.size(0), " as h and C at least 1");
  UX_CHECK_VALUE((v.dim() == 2 || v.dim() == 3) && v.size(-2) == probs.size(1) && v.size(-1) == h.size(1), op,
                 ": v has shape ", v.sizes(), ", expected (C, F) or (K, C, F) with C = ", probs.size(1),
                 " and F = ", h.size(1));
  const auto type = promoted(promoted(h.scalar_type(), probs.scalar_type()), v.scalar_type());
  const auto compute = [&](const Tensor& t) { return t.detached().to(type == kDouble ? kDouble : kFloat); };
  SoftmaxLinear problem{h.size(0), h.size(1), probs.size(1), v.dim() == 3 ? v.size(0) : 1, {}, {}, {}};
  problem.h = compute(h).contiguous();
  problem.p = compute(probs).contiguous();
  const auto given = v.dim() == 3 ? v.transpose(0, 1) : v.unsqueeze(1);
  problem.v = compute(given).clone().view({problem.rows(), problem.features});
  return problem;
}

Tensor SoftmaxLinear::as_given(const Tensor& rows, const Tensor& v_given) const {
  const auto by_class = rows.view({classes, sides, features});
  const auto shaped = v_given.dim() == 3 ? by_class.transpose(0, 1) : by_class.select(1, 0);
  return shaped.to(v_given.scalar_type()).contiguous();
}

LissaRun check_lissa_softmax_linear(const Tensor& h, const Tensor& probs, const Tensor& v, double damping, double scale,
                                    std::optional<int64_t> batch_size, int64_t iterations,
                                    std::optional<int64_t> patience, const OptionalTensor& order) {
  auto problem = check_softmax_linear(kLissa, h, probs, v);
  check_non_negative(kLissa, "damping", damping);
  UX_CHECK_VALUE(std::isfinite(scale) && scale > 0, kLissa, ": scale is ", scale, ", expected a finite number > 0");
  check_at_least_one("iterations", iterations);
  if (batch_size.has_value()) check_at_least_one("batch_size", *batch_size);
  if (patience.has_value()) check_at_least_one("patience", *patience);
  checked_product(kLissa, "history of all iterations", {iterations, problem.sides});
  if (order.has_value()) {
    check_order(*order, h);
    problem.h = problem.h.index_select(0, *order);
    problem.p = problem.p.index_select(0, *order);
  }
  const int64_t size = std::min(batch_size.value_or(problem.samples), problem.samples);
  return {problem, 1 - damping, 1 / scale, size, iterations, patience.value_or(std::numeric_limits<int64_t>::max())};
}

Batch LissaRun::batch(int64_t iteration) const {
  const int64_t batches = (problem.samples + batch_size - 1) / batch_size;
  const int64_t begin = iteration % batches * batch_size;
  return {begin, std::min(batch_size, problem.samples - begin)};
}

Tensor LissaRun::new_history() const {
  return full({iterations, problem.sides}, std::numeric_limits<double>::quiet_NaN(), Like(problem.h));
}

std::tuple<Tensor, Tensor> LissaRun::results(const Tensor& state, const Tensor& history, const Tensor& v_given) const {
  return {problem.as_given(state.mul(inverse_scale), v_given), v_given.dim() == 3 ? history : history.select(1, 0)};
}

}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def("softmax_linear_hvp(Tensor h, Tensor probs, Tensor v) -> Tensor");
  m.def(
      "lissa_softmax_linear(Tensor h, Tensor probs, Tensor v, *, float damping, float scale, int? batch_size=None, "
      "int iterations, int? patience=None, Tensor? order=None) -> (Tensor, Tensor)");
}
