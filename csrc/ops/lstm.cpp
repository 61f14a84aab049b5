#include "ops/lstm.h"

#include "common/checks.h"
#include "common/dispatcher.h"

namespace unlearnx {
namespace {

/// Checks shapes, dtypes and devices of one op against its tensor of gates.
class Checks {
 public:
  Checks(const char* op, const char* name, const Tensor& gates) : op_(op), name_(name), reference_(gates) {
    const auto type = gates.scalar_type();
    UX_CHECK_TYPE(type == kFloat || type == kDouble, op, ": ", name, " has dtype ", type,
                  ", expected float32 or float64");
    UX_CHECK_VALUE(gates.dim() == 3 && gates.size(0) >= 1 && gates.size(2) % 4 == 0, op, ": ", name, " has shape ",
                   gates.sizes(), ", expected (T, N, 4H) of at least one step");
    sizes = {gates.size(0), gates.size(1), gates.size(2) / 4};
  }

  void weight(const Tensor& t) const { shape("weight", t, {4 * sizes.units, sizes.units}, "(4H, H)"); }
  void state(const char* name, const OptionalTensor& t) const {
    if (t.has_value()) shape(name, *t, {sizes.rows, sizes.units}, "(N, H)");
  }
  void states(const char* name, const OptionalTensor& t) const {
    if (t.has_value()) shape(name, *t, {sizes.steps + 1, sizes.rows, sizes.units}, "(T + 1, N, H)");
  }
  void gates(const char* name, const OptionalTensor& t) const {
    if (t.has_value()) shape(name, *t, {sizes.steps, sizes.rows, 4 * sizes.units}, "(T, N, 4H)");
  }

  LstmSizes sizes;

 private:
  void shape(const char* name, const Tensor& t, Sizes expected, const char* letters) const {
    UX_CHECK_VALUE(t.sizes() == expected, op_, ": ", name, " has shape ", t.sizes(), ", expected ", letters, " = ",
                   expected, " beside ", name_, " ", reference_.sizes());
    check_same_device(op_, name, t, name_, reference_);
    UX_CHECK_TYPE(t.scalar_type() == reference_.scalar_type(), op_, ": ", name, " has dtype ", t.scalar_type(),
                  ", but ", name_, " has ", reference_.scalar_type());
  }

  const char *op_, *name_;
  const Tensor& reference_;
};

}  // namespace

LstmSizes check_lstm_forward(const Tensor& inputs, const OptionalTensor& h, const OptionalTensor& c,
                             const Tensor& weight) {
  const Checks checks("lstm_forward", "inputs", inputs);
  checks.weight(weight);
  checks.state("h", h);
  checks.state("c", c);
  return checks.sizes;
}

LstmSizes check_lstm_backward(const OptionalTensor& to_hidden, const OptionalTensor& to_cells,
                              const OptionalTensor& to_gates, const Tensor& cells, const Tensor& gates,
                              const Tensor& weight) {
  const Checks checks("lstm_backward", "gates", gates);
  checks.weight(weight);
  checks.states("cells", cells);
  checks.states("to_hidden", to_hidden);
  checks.states("to_cells", to_cells);
  checks.gates("to_gates", to_gates);
  return checks.sizes;
}

LstmSizes check_lstm_tangent(const Tensor& inputs, const OptionalTensor& h, const OptionalTensor& c,
                             const Tensor& cells, const Tensor& gates, const Tensor& weight) {
  const Checks checks("lstm_tangent", "inputs", inputs);
  checks.weight(weight);
  checks.state("h", h);
  checks.state("c", c);
  checks.states("cells", cells);
  checks.gates("gates", gates);
  return checks.sizes;
}

LstmSizes check_lstm_curvature(const Tensor& cells, const Tensor& gates, const Tensor& cells_tangent,
                               const Tensor& gates_tangent, const Tensor& to_hidden, const Tensor& to_cells) {
  const Checks checks("lstm_curvature", "gates", gates);
  checks.states("cells", cells);
  checks.states("cells_tangent", cells_tangent);
  checks.gates("gates_tangent", gates_tangent);
  checks.states("to_hidden", to_hidden);
  checks.states("to_cells", to_cells);
  return checks.sizes;
}

}  // namespace unlearnx

STABLE_TORCH_LIBRARY_FRAGMENT(unlearnx, m) {
  m.def("lstm_forward(Tensor inputs, Tensor? h, Tensor? c, Tensor weight) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lstm_backward(Tensor? to_hidden, Tensor? to_cells, Tensor? to_gates, Tensor cells, Tensor gates, Tensor weight, "
      "bool initial) -> (Tensor, Tensor, Tensor)");
  m.def(
      "lstm_tangent(Tensor inputs, Tensor? h, Tensor? c, Tensor cells, Tensor gates, Tensor weight) -> "
      "(Tensor, Tensor, Tensor)");
  m.def(
      "lstm_curvature(Tensor cells, Tensor gates, Tensor cells_tangent, Tensor gates_tangent, Tensor to_hidden, "
      "Tensor to_cells) -> (Tensor, Tensor)");
}
