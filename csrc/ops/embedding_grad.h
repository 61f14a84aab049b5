#pragma once

#include "ops/layer_grad.h"

namespace unlearnx {

/// One problem of the embedding_grad family, checked: a sample's gradient has row dy_t added at token x_t for each of
/// its positions. Rows of a second pair follow those of the first, which are negated.
struct EmbeddingGrad {
  int64_t samples, positions, tokens, features;  // positions of both pairs
  Tensor x;                                      // (samples, positions) int64; positions to be left out hold `tokens`
  Tensor dy;                                     // (samples, positions, features) in the compute type
  Tensor weight;                                 // (samples,) in the compute type, or undefined
};

/// Raises unless the arguments belong together; wrong tokens in a device's memory are an assertion there.
EmbeddingGrad check_embedding_grad(const char* op, const Tensor& x, const Tensor& dy, int64_t num_embeddings,
                                   const OptionalTensor& x_new, const OptionalTensor& dy_new,
                                   const OptionalTensor& weight, std::optional<int64_t> padding_idx);

}  // namespace unlearnx
