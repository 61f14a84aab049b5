#include "ops/lstm.h"

#include <ATen/Parallel.h>
#include <torch/library.h>

#include <algorithm>

#include "common/lstm_cell.h"
#include "cpu/vector_math.h"
#include "ops/lstm_steps.h"

namespace unlearnx::cpu {
namespace {

template <typename T>
UX_INLINE Gates<T> activated(const Gates<T>& a) {
  return {sigmoid_of(a.i), sigmoid_of(a.f), tanh_of(a.g), sigmoid_of(a.o)};
}
template <typename T>
UX_INLINE Cell<T> cell_at(const T* gates, const T* before, const T* after, int64_t units, int64_t k) {
  return {activated(load_gates(gates + k, units)), before[k], tanh_of(after[k])};
}

// One row of H units; every loop below is what the compiler vectorises.

template <typename T>
UX_INLINE void forward_body(int64_t units, const T* gates, const T* before, T* __restrict__ after,
                            T* __restrict__ hidden) {
  for (int64_t k = 0; k < units; ++k) {
    const auto gate = activated(load_gates(gates + k, units));
    const T c = gate.f * before[k] + gate.i * gate.g;
    after[k] = c;
    hidden[k] = gate.o * tanh_of(c);
  }
}

template <bool kSource, typename T>
UX_INLINE void backward_body(int64_t units, const T* gates, const T* before, const T* after, const T* dh,
                             const T* source, T* __restrict__ dc, T* __restrict__ dc_before, T* __restrict__ da) {
  for (int64_t k = 0; k < units; ++k) {
    const auto cell = cell_at(gates, before, after, units, k);
    const T c = dc[k] + cell.cell_from_hidden(dh[k]);
    auto a = cell.adjoint(dh[k], c);
    if constexpr (kSource) {
      const auto more = load_gates(source + k, units);
      a = {a.i + more.i, a.f + more.f, a.g + more.g, a.o + more.o};
    }
    store_gates(da + k, units, a);
    dc[k] = c;
    dc_before[k] += c * cell.gate.f;
  }
}

template <typename T>
UX_INLINE void tangent_body(int64_t units, const T* gates, const T* before, const T* after, const T* da,
                            const T* dc_before, T* __restrict__ dc, T* __restrict__ dh) {
  for (int64_t k = 0; k < units; ++k) {
    const auto cell = cell_at(gates, before, after, units, k);
    const auto a = load_gates(da + k, units);
    const T c = cell.cell_tangent(a, dc_before[k]);
    dc[k] = c;
    dh[k] = cell.hidden_tangent(a, c);
  }
}

template <typename T>
UX_INLINE void curvature_body(int64_t units, const T* gates, const T* before, const T* after, const T* a_tangent,
                              const T* before_tangent, const T* after_tangent, const T* to_hidden, const T* to_cell,
                              T* __restrict__ out_before, T* __restrict__ out_after, T* __restrict__ out_gates) {
  for (int64_t k = 0; k < units; ++k) {
    const auto cell = cell_at(gates, before, after, units, k);
    const auto a = load_gates(a_tangent + k, units);
    store_gates(out_gates + k, units, cell.curvature(a, before_tangent[k], after_tangent[k], to_hidden[k], to_cell[k]));
    out_before[k] += cell.curvature_before(a, to_cell[k]);
    out_after[k] += cell.curvature_cell(a, after_tangent[k], to_hidden[k]);
  }
}

#define UX_ROWS(T)                                                                                                    \
  UX_CLONES void forward_row(int64_t units, const T* gates, const T* before, T* __restrict__ after,                   \
                             T* __restrict__ hidden) {                                                                \
    forward_body(units, gates, before, after, hidden);                                                                \
  }                                                                                                                   \
  UX_CLONES void backward_row(int64_t units, const T* gates, const T* before, const T* after, const T* dh,            \
                              const T* source, T* __restrict__ dc, T* __restrict__ dc_before, T* __restrict__ da) {   \
    source ? backward_body<true>(units, gates, before, after, dh, source, dc, dc_before, da)                          \
           : backward_body<false>(units, gates, before, after, dh, source, dc, dc_before, da);                        \
  }                                                                                                                   \
  UX_CLONES void tangent_row(int64_t units, const T* gates, const T* before, const T* after, const T* da,             \
                             const T* dc_before, T* __restrict__ dc, T* __restrict__ dh) {                            \
    tangent_body(units, gates, before, after, da, dc_before, dc, dh);                                                 \
  }                                                                                                                   \
  UX_CLONES void curvature_row(int64_t units, const T* gates, const T* before, const T* after, const T* a_tangent,    \
                               const T* before_tangent, const T* after_tangent, const T* to_hidden, const T* to_cell, \
                               T* __restrict__ out_before, T* __restrict__ out_after, T* __restrict__ out_gates) {    \
    curvature_body(units, gates, before, after, a_tangent, before_tangent, after_tangent, to_hidden, to_cell,         \
                   out_before, out_after, out_gates);                                                                 \
  }
UX_ROWS(float)
UX_ROWS(double)
#undef UX_ROWS

/// work(pointer type, row) for every row, in parallel.
template <typename Work>
void for_rows(const at::Tensor& states, const Work& work) {
  const int64_t rows = states.size(-2), units = states.size(-1);
  at::parallel_for(0, rows, std::max<int64_t>(1, 4096 / std::max<int64_t>(units, 1)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) states.scalar_type() == at::kDouble ? work(double{}, n) : work(float{}, n);
  });
}

template <typename T>
const T* row(const at::Tensor& t, int64_t n) {
  return t.const_data_ptr<T>() + n * t.size(-1);
}
template <typename T>
T* row(at::Tensor& t, int64_t n) {
  return t.mutable_data_ptr<T>() + n * t.size(-1);
}

struct Cells {
  static void forward(const at::Tensor& gates, const at::Tensor& before, at::Tensor after, at::Tensor hidden) {
    for_rows(before, [&](auto zero, int64_t n) {
      using T = decltype(zero);
      forward_row(before.size(1), row<T>(gates, n), row<T>(before, n), row<T>(after, n), row<T>(hidden, n));
    });
  }

  static void backward(const at::Tensor& gates, const at::Tensor& before, const at::Tensor& after, const at::Tensor& dh,
                       const at::Tensor& source, at::Tensor dc, at::Tensor dc_before, at::Tensor da) {
    for_rows(before, [&](auto zero, int64_t n) {
      using T = decltype(zero);
      backward_row(before.size(1), row<T>(gates, n), row<T>(before, n), row<T>(after, n), row<T>(dh, n),
                   source.defined() ? row<T>(source, n) : nullptr, row<T>(dc, n), row<T>(dc_before, n), row<T>(da, n));
    });
  }

  static void tangent(const at::Tensor& gates, const at::Tensor& before, const at::Tensor& after, const at::Tensor& da,
                      const at::Tensor& dc_before, at::Tensor dc, at::Tensor dh) {
    for_rows(before, [&](auto zero, int64_t n) {
      using T = decltype(zero);
      tangent_row(before.size(1), row<T>(gates, n), row<T>(before, n), row<T>(after, n), row<T>(da, n),
                  row<T>(dc_before, n), row<T>(dc, n), row<T>(dh, n));
    });
  }

  static void curvature(const LstmSizes& sizes, const at::Tensor& cells, const at::Tensor& gates,
                        const at::Tensor& cells_tangent, const at::Tensor& gates_tangent, const at::Tensor& to_hidden,
                        const at::Tensor& to_cells, at::Tensor out_cells, at::Tensor out_gates) {
    out_cells.zero_();
    for_rows(cells, [&](auto zero, int64_t n) {  // both steps that a cell belongs to are one thread's
      using T = decltype(zero);
      for (int64_t t = 0; t < sizes.steps; ++t) {
        const int64_t here = t * sizes.rows + n, next = here + sizes.rows;
        curvature_row(sizes.units, row<T>(gates, here), row<T>(cells, here), row<T>(cells, next),
                      row<T>(gates_tangent, here), row<T>(cells_tangent, here), row<T>(cells_tangent, next),
                      row<T>(to_hidden, next), row<T>(to_cells, next), row<T>(out_cells, here), row<T>(out_cells, next),
                      row<T>(out_gates, here));
      }
    });
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("lstm_forward", &lstm_forward<Cells>);
  m.impl("lstm_backward", &lstm_backward<Cells>);
  m.impl("lstm_tangent", &lstm_tangent<Cells>);
  m.impl("lstm_curvature", &lstm_curvature<Cells>);
}

}  // namespace unlearnx::cpu
