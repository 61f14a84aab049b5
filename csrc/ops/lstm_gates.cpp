#include "ops/lstm_gates.h"

#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "common/checks.h"

namespace unlearnx {

void check_lstm_gates(const at::Tensor& gates, const at::Tensor& cell, const at::Tensor& squashed, const at::Tensor& dh,
                      const at::Tensor& dc, const at::Tensor& da) {
  constexpr auto op = "lstm_gates_backward_";
  check_floating(op, "gates", gates);
  TORCH_CHECK_VALUE(gates.dim() == 2 && gates.size(1) % 4 == 0, op, ": gates has shape ", gates.sizes(),
                    ", expected (N, 4H)");
  check_same_shape(op, "da", da, "gates", gates);
  const std::pair<const char*, const at::Tensor*> states[] = {
      {"cell", &cell}, {"squashed", &squashed}, {"dh", &dh}, {"dc", &dc}};
  check_same_device(op, "da", da, "gates", gates);
  TORCH_CHECK_TYPE(da.scalar_type() == gates.scalar_type(), op, ": da has dtype ", da.scalar_type(), ", but gates has ",
                   gates.scalar_type());
  for (const auto& [name, t] : states) {
    TORCH_CHECK_VALUE(t->dim() == 2 && t->size(0) == gates.size(0) && t->size(1) * 4 == gates.size(1), op, ": ", name,
                      " has shape ", t->sizes(), ", expected (N, H) beside gates ", gates.sizes());
    check_same_device(op, name, *t, "gates", gates);
    TORCH_CHECK_TYPE(t->scalar_type() == gates.scalar_type(), op, ": ", name, " has dtype ", t->scalar_type(),
                     ", but gates has ", gates.scalar_type());
  }
}

namespace {

/// Any device: a composition of torch's functions.
void lstm_gates_backward_(const at::Tensor& gates, const at::Tensor& cell, const at::Tensor& squashed,
                          const at::Tensor& dh, const at::Tensor& dc, const at::Tensor& da) {
  check_lstm_gates(gates, cell, squashed, dh, dc, da);
  const auto parts = gates.chunk(4, 1), d = da.chunk(4, 1);
  const auto &i = parts[0], &f = parts[1], &g = parts[2], &o = parts[3];
  dc.add_(dh * o * (1 - squashed.square()));
  d[0].copy_(dc * g * (i - i.square()));
  d[1].copy_(dc * cell * (f - f.square()));
  d[2].copy_(dc * i * (1 - g.square()));
  d[3].copy_(dh * squashed * (o - o.square()));
  dc.mul_(f);
}

}  // namespace
}  // namespace unlearnx

TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def(
      "lstm_gates_backward_(Tensor gates, Tensor cell, Tensor squashed, Tensor dh, Tensor(a!) dc, Tensor(b!) da) -> "
      "()");
}

TORCH_LIBRARY_IMPL(unlearnx, CompositeExplicitAutograd, m) {
  m.impl("lstm_gates_backward_", &unlearnx::lstm_gates_backward_);
}
