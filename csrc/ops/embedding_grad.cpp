#include "ops/embedding_grad.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/_assert_async.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <algorithm>

#include "common/checks.h"

namespace unlearnx {
namespace {

/// Every d_i as rows: one for each token that a sample has, added up over its positions.
struct TokenRows {
  at::Tensor token, sample;  // (samples * positions,): where a row belongs; `tokens` for rows that hold nothing
  at::Tensor values;         // (samples * positions, features)
};

/// Sorts the positions by sample and token, then adds up runs; nothing waits for the device.
TokenRows token_rows(const EmbeddingGrad& p) {
  const auto sample = at::arange(p.samples, p.x.options()).unsqueeze(1);
  const auto [keys, order] = (p.x + sample * (p.tokens + 1)).flatten().sort(/*stable=*/true, 0, false);
  const int64_t n = keys.numel();
  auto starts = at::ones({n}, keys.options());
  if (n > 1) starts.narrow(0, 1, n - 1).copy_(keys.narrow(0, 1, n - 1) != keys.narrow(0, 0, n - 1));
  const auto run = starts.cumsum(0) - 1;
  const auto values =
      at::zeros({n, p.features}, p.dy.options()).index_add_(0, run, p.dy.view({n, p.features}).index_select(0, order));
  // Runs are fewer than positions: the keys of the rest stay with the token that is left out.
  const auto key = at::zeros({n}, keys.options()).fill_(p.tokens).scatter_(0, run, keys);
  const auto width = p.tokens + 1;
  return {key.remainder(width), key.div(width, "floor").clamp_max_(std::max<int64_t>(p.samples - 1, 0)), values};
}

at::Tensor embedding_grad_diff(const at::Tensor& x, const at::Tensor& dy, int64_t num_embeddings,
                               const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                               std::optional<int64_t> padding_idx, c10::string_view reduction) {
  constexpr auto op = "embedding_grad_diff";
  const bool keep = keeps_samples(op, reduction);
  const auto p = check_embedding_grad(op, x, dy, num_embeddings, x_new, dy_new, weight, padding_idx);
  const auto values = p.weight.defined() ? p.dy * p.weight.view({-1, 1, 1}) : p.dy;
  const int64_t width = p.tokens + 1, copies = keep ? p.samples : 1;
  const auto place = keep ? p.x + at::arange(p.samples, p.x.options()).unsqueeze(1) * width : p.x;
  const auto sum = at::zeros({copies * width, p.features}, p.dy.options())
                       .index_add_(0, place.flatten(), values.view({p.samples * p.positions, p.features}))
                       .view({copies, width, p.features})
                       .narrow(1, 0, p.tokens)
                       .to(dy.scalar_type());
  return (keep ? sum : sum.select(0, 0)).clone(at::MemoryFormat::Contiguous);
}

at::Tensor embedding_grad_sq(const at::Tensor& x, const at::Tensor& dy, int64_t num_embeddings,
                             const OptionalTensor& x_new, const OptionalTensor& dy_new, const OptionalTensor& weight,
                             std::optional<int64_t> padding_idx) {
  const auto p = check_embedding_grad("embedding_grad_sq", x, dy, num_embeddings, x_new, dy_new, weight, padding_idx);
  const auto rows = token_rows(p);
  const auto squares = rows.values.square();
  if (p.weight.defined()) squares.mul_(p.weight.index_select(0, rows.sample).unsqueeze(1));
  const auto sum = at::zeros({p.tokens + 1, p.features}, p.dy.options()).index_add_(0, rows.token, squares);
  return sum.narrow(0, 0, p.tokens).clone();
}

at::Tensor embedding_grad_sqnorm(const at::Tensor& x, const at::Tensor& dy, int64_t num_embeddings,
                                 const OptionalTensor& x_new, const OptionalTensor& dy_new,
                                 std::optional<int64_t> padding_idx) {
  const auto p = check_embedding_grad("embedding_grad_sqnorm", x, dy, num_embeddings, x_new, dy_new, {}, padding_idx);
  const auto rows = token_rows(p);
  const auto norms = rows.values.square().sum(1).masked_fill_(rows.token == p.tokens, 0);
  return at::zeros({p.samples}, p.dy.options()).index_add_(0, rows.sample, norms);
}

/// <d_i, v> = sum_t dy_t . v[x_t]
at::Tensor embedding_grad_dot(const at::Tensor& x, const at::Tensor& dy, int64_t num_embeddings,
                              const OptionalTensor& x_new, const OptionalTensor& dy_new,
                              std::optional<int64_t> padding_idx, const at::Tensor& v) {
  constexpr auto op = "embedding_grad_dot";
  const auto p = check_embedding_grad(op, x, dy, num_embeddings, x_new, dy_new, {}, padding_idx);
  check_direction(op, "v", v, dy, {p.tokens, p.features});
  const auto none = at::zeros({1, p.features}, p.dy.options());
  const auto rows = at::cat({v.to(p.dy.scalar_type()), none}).index_select(0, p.x.flatten());
  return rows.view_as(p.dy).mul_(p.dy).sum({1, 2});
}

}  // namespace

EmbeddingGrad check_embedding_grad(const char* op, const at::Tensor& x, const at::Tensor& dy, int64_t num_embeddings,
                                   const OptionalTensor& x_new, const OptionalTensor& dy_new,
                                   const OptionalTensor& weight, std::optional<int64_t> padding_idx) {
  TORCH_CHECK_TYPE(x.scalar_type() == at::kLong || x.scalar_type() == at::kInt, op, ": x has dtype ", x.scalar_type(),
                   ", expected token numbers as int64 or int32");
  check_strided(op, "x", x);
  check_floating(op, "dy", dy);
  check_same_device(op, "dy", dy, "x", x);
  TORCH_CHECK_VALUE(x.dim() >= 1 && dy.dim() == x.dim() + 1 && dy.sizes().slice(0, x.dim()) == x.sizes(), op,
                    ": dy has shape ", dy.sizes(), ", expected (N, ..., D) with the sizes of x, ", x.sizes());
  TORCH_CHECK_VALUE(num_embeddings >= 0 && num_embeddings < INT64_MAX, op, ": num_embeddings is ", num_embeddings,
                    ", expected at least 0 and less than 2^63 - 1");
  checked_product(op, "each sample's gradient, num_embeddings rows,",
                  {std::max<int64_t>(x.size(0), 1), num_embeddings + 1, std::max<int64_t>(dy.size(-1), 1)});
  const int64_t padding =
      padding_idx.has_value() ? checked_index(op, "padding_idx", *padding_idx, num_embeddings) : num_embeddings;
  check_second_pair(op, x, dy, x_new, dy_new);
  const int64_t n = x.size(0), features = dy.size(-1), positions = positions_of(dy);
  const auto tokens = [&](const at::Tensor& t, const char* name) {
    auto flat = t.reshape({n, positions}).to(at::kLong);
    if (!flat.is_cpu())  // reading them would wait for the device: it asserts, as it does in torch's embedding
      at::_assert_async(flat.ge(0).logical_and_(flat.lt(num_embeddings)).all(),
                        c10::str(op, ": ", name, " has tokens outside of 0 to ", num_embeddings - 1));
    else if (flat.numel() > 0)
      TORCH_CHECK_INDEX(flat.min().item<int64_t>() >= 0 && flat.max().item<int64_t>() < num_embeddings, op, ": ", name,
                        " has tokens from ", flat.min().item<int64_t>(), " to ", flat.max().item<int64_t>(),
                        ", expected 0 to ", num_embeddings - 1);
    if (!padding_idx.has_value()) return flat;
    return at::where(flat == padding, num_embeddings, flat);
  };
  const auto rows = [&](const at::Tensor& t) { return t.reshape({n, positions, features}).to(compute_type(dy)); };
  EmbeddingGrad p{n, positions, num_embeddings, features, tokens(x, "x"), rows(dy), checked_weight(op, weight, dy)};
  if (x_new.has_value()) {
    p.positions *= 2;
    p.x = at::cat({p.x, tokens(*x_new, "x_new")}, 1);
    p.dy = at::cat({p.dy.neg(), rows(*dy_new)}, 1);
  }
  p.x = p.x.contiguous();
  p.dy = p.dy.contiguous();
  return p;
}

}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "embedding_grad_diff(Tensor x, Tensor dy, int num_embeddings, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "Tensor? weight=None, int? padding_idx=None, str reduction=\"sum\") -> Tensor");
  m.def(
      "embedding_grad_sq(Tensor x, Tensor dy, int num_embeddings, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "Tensor? weight=None, int? padding_idx=None) -> Tensor");
  m.def(
      "embedding_grad_sqnorm(Tensor x, Tensor dy, int num_embeddings, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "int? padding_idx=None) -> Tensor");
  m.def(
      "embedding_grad_dot(Tensor x, Tensor dy, int num_embeddings, Tensor? x_new=None, Tensor? dy_new=None, *, "
      "int? padding_idx=None, Tensor v) -> Tensor");
}

TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("embedding_grad_diff", &unlearnx::embedding_grad_diff);
  m.impl("embedding_grad_sq", &unlearnx::embedding_grad_sq);
  m.impl("embedding_grad_sqnorm", &unlearnx::embedding_grad_sqnorm);
  m.impl("embedding_grad_dot", &unlearnx::embedding_grad_dot);
}
