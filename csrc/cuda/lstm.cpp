#include "cuda/lstm.h"

#include <torch/library.h>

#include "cuda/bindings.h"
#include "ops/lstm_steps.h"

namespace unlearnx::cuda {
namespace {

/// Launches a pass on the device of `states` (..., N, H).
template <typename Pass>
void launch(const Pass& pass, const at::Tensor& states) {
  const c10::cuda::CUDAGuard guard(states.device());
  const CellsSize size{states.size(-2), states.size(-1), states.scalar_type() == at::kDouble};
  lstm_cells(pass, size, c10::cuda::getCurrentCUDAStream());
  check_launch();
}

struct Cells {
  static void forward(const at::Tensor& gates, const at::Tensor& before, at::Tensor after, at::Tensor hidden) {
    launch(CellsForward{gates.const_data_ptr(), before.const_data_ptr(), after.mutable_data_ptr(),
                        hidden.mutable_data_ptr()},
           before);
  }

  static void backward(const at::Tensor& gates, const at::Tensor& before, const at::Tensor& after, const at::Tensor& dh,
                       const at::Tensor& source, at::Tensor dc, at::Tensor dc_before, at::Tensor da) {
    launch(CellsBackward{gates.const_data_ptr(), before.const_data_ptr(), after.const_data_ptr(), dh.const_data_ptr(),
                         pointer(source), dc.mutable_data_ptr(), dc_before.mutable_data_ptr(), da.mutable_data_ptr()},
           before);
  }

  static void tangent(const at::Tensor& gates, const at::Tensor& before, const at::Tensor& after, const at::Tensor& da,
                      const at::Tensor& dc_before, at::Tensor dc, at::Tensor dh) {
    launch(CellsTangent{gates.const_data_ptr(), before.const_data_ptr(), after.const_data_ptr(), da.const_data_ptr(),
                        dc_before.const_data_ptr(), dc.mutable_data_ptr(), dh.mutable_data_ptr()},
           before);
  }

  static void curvature(const LstmSizes& sizes, const at::Tensor& cells, const at::Tensor& gates,
                        const at::Tensor& cells_tangent, const at::Tensor& gates_tangent, const at::Tensor& to_hidden,
                        const at::Tensor& to_cells, at::Tensor out_cells, at::Tensor out_gates) {
    launch(CellsCurvature{cells.const_data_ptr(), gates.const_data_ptr(), cells_tangent.const_data_ptr(),
                          gates_tangent.const_data_ptr(), to_hidden.const_data_ptr(), to_cells.const_data_ptr(),
                          out_cells.mutable_data_ptr(), out_gates.mutable_data_ptr(), sizes.steps},
           cells);
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("lstm_forward", &lstm_forward<Cells>);
  m.impl("lstm_backward", &lstm_backward<Cells>);
  m.impl("lstm_tangent", &lstm_tangent<Cells>);
  m.impl("lstm_curvature", &lstm_curvature<Cells>);
}

}  // namespace unlearnx::cuda
