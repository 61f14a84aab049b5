#include "cuda/scale_shift_grad.h"

#include "common/dispatcher.h"
#include "cuda/bindings.h"
#include "ops/scale_shift_grad.h"

namespace unlearnx::cuda {
namespace {

void launch_rows(const ScaleShiftGrad& p, const Tensor& rows) {
  const DeviceGuard guard(p.dy);
  const ScaleShiftArguments arguments{pointer(p.x), pointer(p.dy), pointer(p.mean), pointer(p.rstd),
                                      p.samples,    p.outer,       p.channels,      p.inner};
  scale_shift_rows(arguments, dtype_of(p.dy), rows.mutable_data_ptr(), guard.stream());
  check_launch();
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  register_scale_shift_grad<&launch_rows>(m);
}

}  // namespace unlearnx::cuda
