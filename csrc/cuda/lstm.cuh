#include "common/lstm_cell.h"
#include "cuda/lstm.h"
#include "cuda/portable.cuh"

namespace unlearnx::cuda {

__device__ __forceinline__ float sigmoid_of(float x) {
  return 1.0f / (1.0f + expf(-x));
}
__device__ __forceinline__ double sigmoid_of(double x) {
  return 1.0 / (1.0 + exp(-x));
}
__device__ __forceinline__ float tanh_of(float x) {
  return tanhf(x);
}
__device__ __forceinline__ double tanh_of(double x) {
  return tanh(x);
}

template <typename T>
__device__ __forceinline__ T value_at(const void* data, int64_t place) {
  return static_cast<const T*>(data)[place];
}
template <typename T>
__device__ __forceinline__ T& out_at(void* data, int64_t place) {
  return static_cast<T*>(data)[place];
}
template <typename T>
__device__ __forceinline__ Gates<T> gates_at(const void* data, int64_t place, int64_t units) {
  return load_gates(static_cast<const T*>(data) + place, units);
}
template <typename T>
__device__ __forceinline__ Gates<T> activated(const Gates<T>& a) {
  return {sigmoid_of(a.i), sigmoid_of(a.f), tanh_of(a.g), sigmoid_of(a.o)};
}

/// One unit of one row: its place among states and that of its first gate, and how many states a step has.
struct Unit {
  int64_t state, gate, units, step;
};

template <typename T>
__device__ __forceinline__ Cell<T> cell_at(const void* gates, const void* before, const void* after, const Unit& u) {
  return {activated(gates_at<T>(gates, u.gate, u.units)), value_at<T>(before, u.state),
          tanh_of(value_at<T>(after, u.state))};
}

template <typename T>
__device__ __forceinline__ void work(const CellsForward& p, const Unit& u) {
  const auto gate = activated(gates_at<T>(p.gates, u.gate, u.units));
  const T c = gate.f * value_at<T>(p.before, u.state) + gate.i * gate.g;
  out_at<T>(p.after, u.state) = c;
  out_at<T>(p.hidden, u.state) = gate.o * tanh_of(c);
}

template <typename T>
__device__ __forceinline__ void work(const CellsBackward& p, const Unit& u) {
  const auto cell = cell_at<T>(p.gates, p.before, p.after, u);
  const T dh = value_at<T>(p.dh, u.state), dc = value_at<T>(p.dc, u.state) + cell.cell_from_hidden(dh);
  auto da = cell.adjoint(dh, dc);
  if (p.source) {
    const auto more = gates_at<T>(p.source, u.gate, u.units);
    da = {da.i + more.i, da.f + more.f, da.g + more.g, da.o + more.o};
  }
  store_gates(&out_at<T>(p.da, u.gate), u.units, da);
  out_at<T>(p.dc, u.state) = dc;
  out_at<T>(p.dc_before, u.state) += dc * cell.gate.f;
}

template <typename T>
__device__ __forceinline__ void work(const CellsTangent& p, const Unit& u) {
  const auto cell = cell_at<T>(p.gates, p.before, p.after, u);
  const auto a = gates_at<T>(p.da, u.gate, u.units);
  const T c = cell.cell_tangent(a, value_at<T>(p.dc_before, u.state));
  out_at<T>(p.dc, u.state) = c;
  out_at<T>(p.dh, u.state) = cell.hidden_tangent(a, c);
}

/// Every step at once: a thread writes what its cell gets from both steps that the cell belongs to, and the gates of
/// the step that begins with it.
template <typename T>
__device__ __forceinline__ void work(const CellsCurvature& p, const Unit& u) {
  const int64_t here = u.state, next = here + u.step, gate = u.gate;
  T out = 0;
  if (here < p.steps * u.step) {
    const Cell<T> cell{activated(gates_at<T>(p.gates, gate, u.units)), value_at<T>(p.cells, here),
                       tanh_of(value_at<T>(p.cells, next))};
    const auto a = gates_at<T>(p.gates_tangent, gate, u.units);
    const T to_cell = value_at<T>(p.to_cells, next);
    store_gates(&out_at<T>(p.out_gates, gate), u.units,
                cell.curvature(a, value_at<T>(p.cells_tangent, here), value_at<T>(p.cells_tangent, next),
                               value_at<T>(p.to_hidden, next), to_cell));
    out += cell.curvature_before(a, to_cell);
  }
  if (here >= u.step) {  // of the gates of the step before only the output's matter; the compiler drops the others
    const int64_t ended = gate - 4 * u.step;
    const Cell<T> cell{activated(gates_at<T>(p.gates, ended, u.units)), value_at<T>(p.cells, here - u.step),
                       tanh_of(value_at<T>(p.cells, here))};
    out += cell.curvature_cell(gates_at<T>(p.gates_tangent, ended, u.units), value_at<T>(p.cells_tangent, here),
                               value_at<T>(p.to_hidden, here));
  }
  out_at<T>(p.out_cells, here) = out;
}

/// Neighbouring threads take neighbouring units.
template <typename T, typename Pass>
__global__ void __launch_bounds__(kThreads) lstm_cells_kernel(Pass pass, int64_t total, int64_t step, int64_t units) {
  const int64_t place = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (place < total) work<T>(pass, Unit{place, place + place / units * 3 * units, units, step});
}

template <typename Pass>
void launch_cells(const Pass& pass, const CellsSize& size, int64_t steps, cudaStream_t stream) {
  const int64_t step = size.rows * size.units, total = steps * step;
  if (total == 0) return;
  const dim3 grid(static_cast<unsigned>((total + kThreads - 1) / kThreads));
  with_type(size.wide, [&](auto t) {
    UX_LAUNCH((lstm_cells_kernel<typename decltype(t)::type, Pass>), grid, dim3(kThreads), stream, pass, total, step,
              size.units);
  });
}

void lstm_cells(const CellsForward& pass, const CellsSize& size, cudaStream_t stream) {
  launch_cells(pass, size, 1, stream);
}
void lstm_cells(const CellsBackward& pass, const CellsSize& size, cudaStream_t stream) {
  launch_cells(pass, size, 1, stream);
}
void lstm_cells(const CellsTangent& pass, const CellsSize& size, cudaStream_t stream) {
  launch_cells(pass, size, 1, stream);
}
void lstm_cells(const CellsCurvature& pass, const CellsSize& size, cudaStream_t stream) {
  launch_cells(pass, size, pass.steps + 1, stream);
}

}  // namespace unlearnx::cuda
