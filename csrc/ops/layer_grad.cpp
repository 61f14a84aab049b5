#include "ops/layer_grad.h"

#include "common/checks.h"

namespace unlearnx {

void check_dtypes(const char* op, const char* x_name, const Tensor& x, const char* dy_name, const Tensor& dy) {
  check_floating(op, x_name, x);
  check_floating(op, dy_name, dy);
  UX_CHECK_TYPE(dy.scalar_type() == x.scalar_type(), op, ": ", dy_name, " has dtype ", dy.scalar_type(), ", but ",
                x_name, " has ", x.scalar_type());
  check_same_device(op, dy_name, dy, x_name, x);
}

void check_second_pair(const char* op, const Tensor& x, const Tensor& dy, const OptionalTensor& x_new,
                       const OptionalTensor& dy_new) {
  UX_CHECK_VALUE(x_new.has_value() == dy_new.has_value(), op, ": x_new and dy_new come together, got only ",
                 x_new.has_value() ? "x_new" : "dy_new");
  if (!x_new.has_value()) return;
  const auto check_like = [op](const char* name, const Tensor& t, const char* other, const Tensor& reference) {
    check_same_shape(op, name, t, other, reference);
    check_same_device(op, name, t, other, reference);
    UX_CHECK_TYPE(t.scalar_type() == reference.scalar_type(), op, ": ", name, " has dtype ", t.scalar_type(), ", but ",
                  other, " has ", reference.scalar_type());
  };
  check_like("x_new", *x_new, "x", x);
  check_like("dy_new", *dy_new, "dy", dy);
}

Tensor checked_weight(const char* op, const OptionalTensor& weight, const Tensor& dy) {
  if (!weight.has_value()) return {};
  check_floating(op, "weight", *weight);
  check_same_device(op, "weight", *weight, "dy", dy);
  UX_CHECK_VALUE(weight->dim() == 1 && weight->size(0) == dy.size(0), op, ": weight has shape ", weight->sizes(),
                 ", expected (N,) = [", dy.size(0), "]");
  return weight->to(compute_type(dy)).contiguous();
}

void check_direction(const char* op, const char* name, const Tensor& v, const Tensor& dy, Sizes shape) {
  check_floating(op, name, v);
  check_same_device(op, name, v, "dy", dy);
  UX_CHECK_VALUE(v.sizes() == shape, op, ": ", name, " has shape ", v.sizes(), ", expected ", shape);
}

bool keeps_samples(const char* op, const std::string& reduction) {
  UX_CHECK_VALUE(reduction == "sum" || reduction == "none", op, ": reduction is '", reduction,
                 "', expected 'sum' or 'none'");
  return reduction == "none";
}

}  // namespace unlearnx
