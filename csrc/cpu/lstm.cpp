#include "ops/lstm.h"

#include <algorithm>

#include "common/dispatcher.h"
#include "common/lstm_cell.h"
#include "common/parallel.h"
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

/// Rows of values in memory that they share with a tensor (..., N, width).
template <typename T>
struct Rows {
  T* first;
  int64_t width;
  T* operator[](int64_t n) const { return first ? first + n * width : nullptr; }
};
template <typename T>
Rows<const T> rows(const Tensor& t) {
  return {t.defined() ? t.const_data_ptr<T>() : nullptr, t.size(-1)};
}
template <typename T>
Rows<T> written_rows(const Tensor& t) {
  return {t.mutable_data_ptr<T>(), t.size(-1)};
}

/// work(row) for every row of states (..., N, H), in parallel.
template <typename Work>
void for_rows(const Tensor& states, const Work& work) {
  const int64_t units = std::max<int64_t>(states.size(-1), 1);
  parallel_for(0, states.size(-2), std::max<int64_t>(1, 4096 / units), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) work(n);
  });
}

template <typename T>
struct TypedCells {
  static void forward(const Tensor& gates, const Tensor& before, const Tensor& after, const Tensor& hidden) {
    const auto a = rows<T>(gates), c = rows<T>(before);
    const auto next = written_rows<T>(after), h = written_rows<T>(hidden);
    for_rows(before, [&](int64_t n) { forward_row(c.width, a[n], c[n], next[n], h[n]); });
  }

  static void backward(const Tensor& gates, const Tensor& before, const Tensor& after, const Tensor& dh,
                       const Tensor& source, const Tensor& dc, const Tensor& dc_before, const Tensor& da) {
    const auto a = rows<T>(gates), c = rows<T>(before), next = rows<T>(after), to_h = rows<T>(dh);
    const auto to_a = source.defined() ? rows<T>(source) : Rows<const T>{nullptr, 0};
    const auto on_next = written_rows<T>(dc), on_c = written_rows<T>(dc_before), on_a = written_rows<T>(da);
    for_rows(before, [&](int64_t n) {
      backward_row(c.width, a[n], c[n], next[n], to_h[n], to_a[n], on_next[n], on_c[n], on_a[n]);
    });
  }

  static void tangent(const Tensor& gates, const Tensor& before, const Tensor& after, const Tensor& da,
                      const Tensor& dc_before, const Tensor& dc, const Tensor& dh) {
    const auto a = rows<T>(gates), c = rows<T>(before), next = rows<T>(after);
    const auto a_tangent = rows<T>(da), c_tangent = rows<T>(dc_before);
    const auto next_tangent = written_rows<T>(dc), h_tangent = written_rows<T>(dh);
    for_rows(before, [&](int64_t n) {
      tangent_row(c.width, a[n], c[n], next[n], a_tangent[n], c_tangent[n], next_tangent[n], h_tangent[n]);
    });
  }

  static void curvature(const LstmSizes& sizes, const Tensor& cells, const Tensor& gates, const Tensor& cells_tangent,
                        const Tensor& gates_tangent, const Tensor& to_hidden, const Tensor& to_cells,
                        const Tensor& out_cells, const Tensor& out_gates) {
    out_cells.zero_();
    const auto c = rows<T>(cells), a = rows<T>(gates), c_tangent = rows<T>(cells_tangent);
    const auto a_tangent = rows<T>(gates_tangent), to_h = rows<T>(to_hidden), to_c = rows<T>(to_cells);
    const auto on_c = written_rows<T>(out_cells), on_a = written_rows<T>(out_gates);
    for_rows(cells, [&](int64_t n) {  // both steps that a cell belongs to are one thread's
      for (int64_t t = 0; t < sizes.steps; ++t) {
        const int64_t here = t * sizes.rows + n, next = here + sizes.rows;
        curvature_row(sizes.units, a[here], c[here], c[next], a_tangent[here], c_tangent[here], c_tangent[next],
                      to_h[next], to_c[next], on_c[here], on_c[next], on_a[here]);
      }
    });
  }
};

/// The passes, in the dtype of the states.
struct Cells {
#define UX_PASS(name)                                                                                    \
  template <typename... Arguments>                                                                       \
  static void name(const Arguments&... arguments) {                                                      \
    wide(arguments...) ? TypedCells<double>::name(arguments...) : TypedCells<float>::name(arguments...); \
  }
  UX_PASS(forward)
  UX_PASS(backward)
  UX_PASS(tangent)
  UX_PASS(curvature)
#undef UX_PASS

 private:
  template <typename... Rest>
  static bool wide(const Tensor& t, const Rest&...) {
    return t.scalar_type() == kDouble;
  }
  template <typename... Rest>
  static bool wide(const LstmSizes&, const Rest&... rest) {
    return wide(rest...);
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("lstm_forward", TORCH_BOX(&lstm_forward<Cells>));
  m.impl("lstm_backward", TORCH_BOX(&lstm_backward<Cells>));
  m.impl("lstm_tangent", TORCH_BOX(&lstm_tangent<Cells>));
  m.impl("lstm_curvature", TORCH_BOX(&lstm_curvature<Cells>));
}

}  // namespace unlearnx::cpu
