#include "ops/embedding_grad.h"

#include <algorithm>
#include <vector>

#include "common/dispatcher.h"
#include "common/parallel.h"
#include "cpu/convert.h"
#include "cpu/inner_product.h"

namespace unlearnx::cpu {
namespace {

/// For every sample, the position at which its token occurs first: rows of one token are added up there.
std::vector<int64_t> first_positions(const EmbeddingGrad& p) {
  const auto* tokens = p.x.const_data_ptr<int64_t>();
  std::vector<int64_t> first(p.samples * p.positions), seen_at(p.tokens + 1), seen_by(p.tokens + 1, -1);
  for (int64_t i = 0; i < p.samples; ++i)
    for (int64_t t = 0; t < p.positions; ++t) {
      const int64_t token = tokens[i * p.positions + t];
      if (seen_by[token] != i) {
        seen_by[token] = i;
        seen_at[token] = t;
      }
      first[i * p.positions + t] = seen_at[token];
    }
  return first;
}

/// Calls finish(sample, token, row) with features [begin, end) of each token's part of d_i; row is scratch.
template <typename T, typename Finish>
void for_token_rows(const EmbeddingGrad& p, const std::vector<int64_t>& first, int64_t i, int64_t begin, int64_t end,
                    std::vector<T>& scratch, const Finish& finish) {
  const auto* tokens = p.x.const_data_ptr<int64_t>() + i * p.positions;
  const T* dy = p.dy.const_data_ptr<T>() + i * p.positions * p.features;
  const int64_t width = end - begin;
  scratch.assign(p.positions * width, T(0));
  for (int64_t t = 0; t < p.positions; ++t) {
    T* row = scratch.data() + first[i * p.positions + t] * width;
    for (int64_t k = 0; k < width; ++k) row[k] += dy[t * p.features + begin + k];
  }
  for (int64_t t = 0; t < p.positions; ++t)
    if (first[i * p.positions + t] == t && tokens[t] < p.tokens) finish(tokens[t], scratch.data() + t * width);
}

template <typename T>
void squares(const EmbeddingGrad& p, const Tensor& result) {
  const auto first = first_positions(p);
  T* const out = result.mutable_data_ptr<T>();
  const T* weight = p.weight.defined() ? p.weight.const_data_ptr<T>() : nullptr;
  // Threads own features: no two write the same place, and sums are taken in the order of the samples.
  parallel_for(0, p.features, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch;
    for (int64_t i = 0; i < p.samples; ++i)
      for_token_rows<T>(p, first, i, begin, end, scratch, [&](int64_t token, const T* row) {
        const T w = weight ? weight[i] : T(1);
        for (int64_t k = begin; k < end; ++k) out[token * p.features + k] += w * row[k - begin] * row[k - begin];
      });
  });
}

template <typename T>
void norms(const EmbeddingGrad& p, const Tensor& result) {
  const auto first = first_positions(p);
  T* const out = result.mutable_data_ptr<T>();
  parallel_for(0, p.samples, 16, [&](int64_t begin, int64_t end) {
    std::vector<T> scratch;
    for (int64_t i = begin; i < end; ++i)
      for_token_rows<T>(p, first, i, 0, p.features, scratch, [&](int64_t, const T* row) {
        for (int64_t k = 0; k < p.features; ++k) out[i] += row[k] * row[k];
      });
  });
}

/// <d_i, v> = sum_t dy_t . v[x_t]
template <typename T>
void dots(const EmbeddingGrad& p, const Tensor& v, const Tensor& result) {
  const auto* tokens = p.x.const_data_ptr<int64_t>();
  const T *dy = p.dy.const_data_ptr<T>(), *rows = v.const_data_ptr<T>();
  T* const out = result.mutable_data_ptr<T>();
  parallel_for(0, p.samples, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      double sum = 0;
      for (int64_t t = i * p.positions; t < (i + 1) * p.positions; ++t)
        if (tokens[t] < p.tokens) sum += inner_product(dy + t * p.features, rows + tokens[t] * p.features, p.features);
      out[i] = static_cast<T>(sum);
    }
  });
}

Tensor embedding_grad_sq(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                         const OptionalTensor& dy_new, const OptionalTensor& weight,
                         std::optional<int64_t> padding_idx) {
  const auto p = check_embedding_grad("embedding_grad_sq", x, dy, num_embeddings, x_new, dy_new, weight, padding_idx);
  const auto result = zeros({p.tokens, p.features}, Like(p.dy));
  p.dy.scalar_type() == kDouble ? squares<double>(p, result) : squares<float>(p, result);
  return result;
}

Tensor embedding_grad_sqnorm(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                             const OptionalTensor& dy_new, std::optional<int64_t> padding_idx) {
  const auto p = check_embedding_grad("embedding_grad_sqnorm", x, dy, num_embeddings, x_new, dy_new, {}, padding_idx);
  const auto result = zeros({p.samples}, Like(p.dy));
  p.dy.scalar_type() == kDouble ? norms<double>(p, result) : norms<float>(p, result);
  return result;
}

Tensor embedding_grad_dot(const Tensor& x, const Tensor& dy, int64_t num_embeddings, const OptionalTensor& x_new,
                          const OptionalTensor& dy_new, std::optional<int64_t> padding_idx, const Tensor& v) {
  constexpr auto op = "embedding_grad_dot";
  const auto p = check_embedding_grad(op, x, dy, num_embeddings, x_new, dy_new, {}, padding_idx);
  check_direction(op, "v", v, dy, {p.tokens, p.features});
  const auto direction = v.to(p.dy.scalar_type()).contiguous();
  const auto result = empty({p.samples}, Like(p.dy));
  p.dy.scalar_type() == kDouble ? dots<double>(p, direction, result) : dots<float>(p, direction, result);
  return result;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("embedding_grad_sq", TORCH_BOX(&embedding_grad_sq));
  m.impl("embedding_grad_sqnorm", TORCH_BOX(&embedding_grad_sqnorm));
  m.impl("embedding_grad_dot", TORCH_BOX(&embedding_grad_dot));
}

}  // namespace unlearnx::cpu
