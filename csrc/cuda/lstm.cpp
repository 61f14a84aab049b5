#include "cuda/lstm.h"

#include "common/dispatcher.h"
#include "cuda/bindings.h"
#include "ops/lstm_steps.h"

namespace unlearnx::cuda {
namespace {

/// Launches a pass on the device of `states` (..., N, H).
template <typename Pass>
void launch(const Pass& pass, const Tensor& states) {
  const DeviceGuard guard(states);
  const CellsSize size{states.size(-2), states.size(-1), states.scalar_type() == kDouble};
  lstm_cells(pass, size, guard.stream());
  check_launch();
}

struct Cells {
  static void forward(const Tensor& gates, const Tensor& before, Tensor after, Tensor hidden) {
    launch(CellsForward{gates.const_data_ptr(), before.const_data_ptr(), after.mutable_data_ptr(),
                        hidden.mutable_data_ptr()},
           before);
  }

  static void backward(const Tensor& gates, const Tensor& before, const Tensor& after, const Tensor& dh,
                       const Tensor& source, Tensor dc, Tensor dc_before, Tensor da) {
    launch(CellsBackward{gates.const_data_ptr(), before.const_data_ptr(), after.const_data_ptr(), dh.const_data_ptr(),
                         pointer(source), dc.mutable_data_ptr(), dc_before.mutable_data_ptr(), da.mutable_data_ptr()},
           before);
  }

  static void tangent(const Tensor& gates, const Tensor& before, const Tensor& after, const Tensor& da,
                      const Tensor& dc_before, Tensor dc, Tensor dh) {
    launch(CellsTangent{gates.const_data_ptr(), before.const_data_ptr(), after.const_data_ptr(), da.const_data_ptr(),
                        dc_before.const_data_ptr(), dc.mutable_data_ptr(), dh.mutable_data_ptr()},
           before);
  }

  static void curvature(const LstmSizes& sizes, const Tensor& cells, const Tensor& gates, const Tensor& cells_tangent,
                        const Tensor& gates_tangent, const Tensor& to_hidden, const Tensor& to_cells, Tensor out_cells,
                        Tensor out_gates) {
    launch(CellsCurvature{cells.const_data_ptr(), gates.const_data_ptr(), cells_tangent.const_data_ptr(),
                          gates_tangent.const_data_ptr(), to_hidden.const_data_ptr(), to_cells.const_data_ptr(),
                          out_cells.mutable_data_ptr(), out_gates.mutable_data_ptr(), sizes.steps},
           cells);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CUDA, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward<Cells>));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward<Cells>));
  m.impl("lstm_tangent", TORCH_BOX(&lstm_tangent<Cells>));
  m.impl("lstm_curvature", TORCH_BOX(&lstm_curvature<Cells>));
}

}  // namespace unlearnx::cuda
