#include "ops/embedding_grad.h"

#include <algorithm>

#include "common/checks.h"
#include "common/dispatcher.h"
#include "common/parallel.h"

namespace unlearnx {
namespace {

/// A whole number as a tensor without dimensions, in the place of a Scalar, which torch's stable ABI does not have.
Tensor whole(int64_t value) {
  AtenTensorHandle result = nullptr;
  succeed(aoti_torch_scalar_to_tensor_int64(value, &result), "aoti_torch_scalar_to_tensor_int64");
  return Tensor(result);
}

Tensor running_sum(const Tensor& t) {
  return dispatch("aten::cumsum", "", t, int64_t{0}, std::optional<ScalarType>());
}

/// tokens (n, positions), to row i of which i * step is added.
Tensor apart(const Tensor& tokens, int64_t step) {
  const int64_t n = tokens.size(0), positions = tokens.size(1);
  const auto ones = full({n}, 1, Like(tokens));
  if (n > 0) ones.narrow(0, 0, 1).zero_();
  const auto first = running_sum(ones).mul(whole(step)).restrided({n, positions}, {1, 0});
  return dispatch("aten::stack", "", TensorList{tokens, first}, int64_t{0}).sum({0});  // torch's add has a Scalar
}

Tensor cat(const TensorList& tensors, int64_t dim) {
  return dispatch("aten::cat", "", tensors, dim);
}

template <typename T>
void add_rows(const Tensor& index, const Tensor& rows, const Tensor& sums) {
  const auto* places = index.const_data_ptr<int64_t>();
  const T* const from = rows.const_data_ptr<T>();
  T* const to = sums.mutable_data_ptr<T>();
  const int64_t n = rows.size(0), width = rows.size(1);
  parallel_for(0, width, std::max<int64_t>(16, (1 << 15) / std::max<int64_t>(n, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < n; ++i)  // threads own columns: no two write the same place
      for (int64_t k = begin; k < end; ++k) to[places[i] * width + k] += from[i * width + k];
  });
}

/// (count, width): each row the sum of those rows (n, width) whose index (n,) is its own.
Tensor sum_by(const Tensor& index, const Tensor& rows, int64_t count) {
  if (!rows.is_cpu()) return dispatch("aten::embedding_dense_backward", "", rows, index, count, int64_t{-1}, false);
  const auto sums = zeros({count, rows.size(1)}, Like(rows));
  rows.scalar_type() == kDouble ? add_rows<double>(index, rows, sums) : add_rows<float>(index, rows, sums);
  return sums;
}

/// Every d_i as rows: one for each token that a sample has, added up over its positions.
struct TokenRows {
  Tensor token, sample;  // (samples * positions,): where a row belongs; `tokens` for rows that hold nothing
  Tensor values;         // (samples * positions, features)
};

/// Sorts the positions by sample and token, then adds up runs; nothing waits for the device.
TokenRows token_rows(const EmbeddingGrad& p) {
  const int64_t n = p.samples * p.positions;
  const auto placed = apart(p.x, p.tokens + 1).view({n});
  const auto [keys, order] =
      dispatch<std::tuple<Tensor, Tensor>>("aten::sort", "stable", placed, std::optional(true), int64_t{0}, false);
  const auto starts = zeros({n}, Like(keys));  // of runs, but for the first
  if (n > 1)
    starts.narrow(0, 1, n - 1)
        .copy_(dispatch("aten::ne", "Tensor", keys.narrow(0, 1, n - 1), keys.narrow(0, 0, n - 1)));
  const auto run = running_sum(starts);
  const auto values = sum_by(run, p.dy.view({n, p.features}).index_select(0, order), n);
  // Runs are fewer than positions: the keys of the rest stay with the token that is left out.
  const auto key = dispatch("aten::fill_", "Tensor", empty({n}, Like(keys)), whole(p.tokens));
  dispatch("aten::scatter_", "src", key, int64_t{0}, run, keys);
  const auto width = whole(p.tokens + 1);
  const auto sample = dispatch("aten::div", "Tensor_mode", key, width, std::optional<std::string>("floor"));
  return {dispatch("aten::remainder", "Tensor", key, width),
          dispatch("aten::clamp_max", "Tensor", sample, whole(std::max<int64_t>(p.samples - 1, 0))), values};
}

Tensor embedding_grad_diff(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                           const OptionalTensor& dy_new, const OptionalTensor& weight,
                           std::optional<int64_t> padding_idx, const std::string& reduction) {
  constexpr auto op = "embedding_grad_diff";
  const bool keep = keeps_samples(op, reduction);
  const auto p = check_embedding_grad(op, x, dy, num_embeddings, x_new, dy_new, weight, padding_idx);
  const auto values = p.weight.defined() ? p.dy.mul(p.weight.view({p.samples, 1, 1})) : p.dy;
  const int64_t width = p.tokens + 1, copies = keep ? p.samples : 1, rows = p.samples * p.positions;
  const auto place = keep ? apart(p.x, width) : p.x;
  const auto sum = sum_by(place.view({rows}), values.view({rows, p.features}), copies * width)
                       .view({copies, width, p.features})
                       .narrow(1, 0, p.tokens)
                       .to(dy.scalar_type());
  return (keep ? sum : sum.select(0, 0)).clone();
}

Tensor embedding_grad_sq(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                         const OptionalTensor& dy_new, const OptionalTensor& weight,
                         std::optional<int64_t> padding_idx) {
  const auto p = check_embedding_grad("embedding_grad_sq", x, dy, num_embeddings, x_new, dy_new, weight, padding_idx);
  const auto rows = token_rows(p);
  const auto squares = rows.values.square();
  if (p.weight.defined()) squares.mul_(p.weight.index_select(0, rows.sample).unsqueeze(1));
  return sum_by(rows.token, squares, p.tokens + 1).narrow(0, 0, p.tokens).clone();
}

Tensor embedding_grad_sqnorm(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, std::optional<int64_t> padding_idx) {
  const auto p = check_embedding_grad("embedding_grad_sqnorm", x, dy, num_embeddings, x_new, dy_new, {}, padding_idx);
  const auto rows = token_rows(p);
  const auto nothing = dispatch("aten::eq", "Tensor", rows.token, whole(p.tokens));
  const auto norms = dispatch("aten::where", "self", nothing, whole(0), rows.values.square().sum({1}));
  return sum_by(rows.sample, norms.view({p.samples * p.positions, 1}), p.samples).view({p.samples});
}

/// <d_i, v> = sum_t dy_t . v[x_t]
Tensor embedding_grad_dot(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new, std::optional<int64_t> padding_idx, const Tensor& v) {
  constexpr auto op = "embedding_grad_dot";
  const auto p = check_embedding_grad(op, x, dy, num_embeddings, x_new, dy_new, {}, padding_idx);
  check_direction(op, "v", v, dy, {p.tokens, p.features});
  const auto none = zeros({1, p.features}, Like(p.dy));
  const auto rows =
      cat({v.to(p.dy.scalar_type()), none}, 0).index_select(0, p.x.view({p.samples * p.positions})).view(p.dy.sizes());
  return rows.mul_(p.dy).sum({1, 2});
}

/// Raises where a token is not one of `num_embeddings`.
void check_tokens(const char* op, const char* name, const Tensor& tokens, int64_t num_embeddings) {
  if (tokens.numel() == 0) return;
  if (!tokens.is_cpu()) {  // reading them would wait for the device: it asserts, as it does in torch's embedding
    const auto low = dispatch("aten::ge", "Tensor", tokens, whole(0));
    const auto high = dispatch("aten::lt", "Tensor", tokens, whole(num_embeddings));
    const auto message = joined(op, ": ", name, " has tokens outside of 0 to ", num_embeddings - 1);
    const auto all = dispatch("aten::all", "", dispatch("aten::logical_and", "", low, high));
    return dispatch<void>("aten::_assert_async", "msg", all, message);
  }
  const auto* first = tokens.const_data_ptr<int64_t>();
  const auto [low, high] = std::minmax_element(first, first + tokens.numel());
  UX_CHECK_INDEX(*low >= 0 && *high < num_embeddings, op, ": ", name, " has tokens from ", *low, " to ", *high,
                 ", expected 0 to ", num_embeddings - 1);
}

}  // namespace

EmbeddingGrad check_embedding_grad(const char* op, const Tensor& x, const Tensor& dy, int64_t num_embeddings,
                                   const OptionalTensor& x_new, const OptionalTensor& dy_new,
                                   const OptionalTensor& weight, std::optional<int64_t> padding_idx) {
  UX_CHECK_TYPE(x.scalar_type() == kLong || x.scalar_type() == kInt, op, ": x has dtype ", x.scalar_type(),
                ", expected token numbers as int64 or int32");
  check_strided(op, "x", x);
  check_floating(op, "dy", dy);
  check_same_device(op, "dy", dy, "x", x);
  UX_CHECK_VALUE(x.dim() >= 1 && dy.dim() == x.dim() + 1 && dy.sizes().first(x.dim()) == x.sizes(), op,
                 ": dy has shape ", dy.sizes(), ", expected (N, ..., D) with the sizes of x, ", x.sizes());
  UX_CHECK_VALUE(num_embeddings >= 0 && num_embeddings < INT64_MAX, op, ": num_embeddings is ", num_embeddings,
                 ", expected at least 0 and less than 2^63 - 1");
  checked_product(op, "each sample's gradient, num_embeddings rows,",
                  {std::max<int64_t>(x.size(0), 1), num_embeddings + 1, std::max<int64_t>(dy.size(-1), 1)});
  const int64_t padding =
      padding_idx.has_value() ? checked_index(op, "padding_idx", *padding_idx, num_embeddings) : num_embeddings;
  check_second_pair(op, x, dy, x_new, dy_new);
  const int64_t n = x.size(0), features = dy.size(-1), positions = positions_of(dy);
  const auto tokens = [&](const Tensor& t, const char* name) {
    const auto flat = t.contiguous().view({n, positions}).to(kLong);
    check_tokens(op, name, flat, num_embeddings);
    if (!padding_idx.has_value()) return flat;
    return dispatch("aten::where", "self", dispatch("aten::eq", "Tensor", flat, whole(padding)), whole(num_embeddings),
                    flat);
  };
  const auto rows = [&](const Tensor& t) { return t.contiguous().view({n, positions, features}).to(compute_type(dy)); };
  EmbeddingGrad p{n, positions, num_embeddings, features, tokens(x, "x"), rows(dy), checked_weight(op, weight, dy)};
  if (x_new.has_value()) {
    p.positions *= 2;
    p.x = cat({p.x, tokens(*x_new, "x_new")}, 1);
    p.dy = cat({p.dy.neg(), rows(*dy_new)}, 1);
  }
  return p;
}

}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
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

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("embedding_grad_diff", TORCH_BOX(&unlearnx::embedding_grad_diff));
  m.impl("embedding_grad_sq", TORCH_BOX(&unlearnx::embedding_grad_sq));
  m.impl("embedding_grad_sqnorm", TORCH_BOX(&unlearnx::embedding_grad_sqnorm));
  m.impl("embedding_grad_dot", TORCH_BOX(&unlearnx::embedding_grad_dot));
}
