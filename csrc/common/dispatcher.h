// Calls of torch's operators, and registration of ours, with the tensors of this project.
#pragma once

#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <tuple>

#include "common/tensor.h"

HIDDEN_NAMESPACE_BEGIN(torch, stable, detail)
template <>
struct FromImpl<unlearnx::Tensor> {
  static StableIValue call(const unlearnx::Tensor& t, uint64_t version, bool internal) {
    return FromImpl<torch::stable::Tensor>::call(t, version, internal);
  }
};
template <>
struct ToImpl<unlearnx::Tensor> {
  static unlearnx::Tensor call(StableIValue value, uint64_t version, bool internal) {
    return ToImpl<torch::stable::Tensor>::call(value, version, internal);
  }
};
HIDDEN_NAMESPACE_END(torch, stable, detail)

namespace unlearnx {

/// Results of an operator, from the front of its stack.
template <typename Result>
struct Results {
  static Result take(StableIValue* stack) { return torch::stable::detail::to<Result>(stack[0]); }
};
template <>
struct Results<void> {
  static void take(StableIValue*) {}
};
template <typename First, typename Second>
struct Results<std::tuple<First, Second>> {
  static std::tuple<First, Second> take(StableIValue* stack) {
    return {torch::stable::detail::to<First>(stack[0]), torch::stable::detail::to<Second>(stack[1])};
  }
};

/// Calls `op.overload` through the dispatcher with exactly the arguments of its schema. Numbers are int64_t, double or
/// bool, as the schema has them; a schema with a Scalar cannot be called.
template <typename Result = Tensor, typename... Arguments>
Result dispatch(const char* op, const char* overload, const Arguments&... arguments) {
  static_assert(((!std::is_integral_v<Arguments> || sizeof(Arguments) != sizeof(int)) && ...));
  StableIValue stack[std::max<size_t>(sizeof...(Arguments), 2)] = {
      torch::stable::detail::from<Arguments>(arguments)...};
  succeed(torch_call_dispatcher(op, overload, stack, TORCH_ABI_VERSION), op);
  return Results<Result>::take(stack);
}

}  // namespace unlearnx
