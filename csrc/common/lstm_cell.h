// Arithmetic of one unit of an LSTM at one time step, shared by CPU and CUDA.
//
// With pre-activations a and the cell state c_ of the step before
//
//   i, f, o = sigmoid(a_i, a_f, a_o),  g = tanh(a_g),  c = f c_ + i g,  s = tanh(c),  h = o s.
//
// Forward, tangents (d/dt, written d below) and adjoints are linear maps of each other's transpose; curvature is the
// second derivative of <adjoints, (h, c)> with respect to (a, c_, c), applied to tangents.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define UX_CELL __device__ __forceinline__
#else
#define UX_CELL inline __attribute__((always_inline))
#endif

namespace unlearnx {

template <typename T>
struct Gates {
  T i, f, g, o;
};

/// The gates of a unit, from the first on, in a row of four times `units` values.
template <typename T>
UX_CELL Gates<T> load_gates(const T* first, int64_t units) {
  return {first[0], first[units], first[2 * units], first[3 * units]};
}
template <typename T>
UX_CELL void store_gates(T* first, int64_t units, const Gates<T>& value) {
  first[0] = value.i;
  first[units] = value.f;
  first[2 * units] = value.g;
  first[3 * units] = value.o;
}

/// Values of the step: activated gates, the cell before, and the squashed cell after.
template <typename T>
struct Cell {
  Gates<T> gate;
  T before, squashed;

  /// Derivatives of the activations, from their values.
  UX_CELL T di() const { return gate.i - gate.i * gate.i; }
  UX_CELL T df() const { return gate.f - gate.f * gate.f; }
  UX_CELL T dg() const { return 1 - gate.g * gate.g; }
  UX_CELL T d_o() const { return gate.o - gate.o * gate.o; }
  UX_CELL T ds() const { return 1 - squashed * squashed; }

  /// Tangent of c, for tangents of a and c_.
  UX_CELL T cell_tangent(const Gates<T>& a, T cell_before) const {
    return df() * a.f * before + gate.f * cell_before + di() * a.i * gate.g + gate.i * (dg() * a.g);
  }
  /// Tangent of h, for tangents of a and c.
  UX_CELL T hidden_tangent(const Gates<T>& a, T cell) const { return d_o() * a.o * squashed + gate.o * (ds() * cell); }

  /// What the adjoint of h adds to that of c.
  UX_CELL T cell_from_hidden(T hidden) const { return hidden * gate.o * ds(); }
  /// Adjoints of a, for those of h and c.
  UX_CELL Gates<T> adjoint(T hidden, T cell) const {
    return {cell * gate.g * di(), cell * before * df(), cell * gate.i * dg(), hidden * squashed * d_o()};
  }

  /// The curvature with respect to a, for tangents of a, c_ and c, and adjoints of h and c.
  UX_CELL Gates<T> curvature(const Gates<T>& a, T cell_before, T cell, T to_hidden, T to_cell) const {
    const T ti = di() * a.i, tf = df() * a.f, tg = dg() * a.g, to = d_o() * a.o, ts = ds() * cell;
    return {to_cell * ((1 - 2 * gate.i) * ti * gate.g + di() * tg),
            to_cell * ((1 - 2 * gate.f) * tf * before + df() * cell_before),
            to_cell * (ti * dg() - 2 * gate.g * gate.i * tg),
            to_hidden * ((1 - 2 * gate.o) * to * squashed + d_o() * ts)};
  }
  /// The same with respect to c_.
  UX_CELL T curvature_before(const Gates<T>& a, T to_cell) const { return to_cell * df() * a.f; }
  /// The same with respect to c.
  UX_CELL T curvature_cell(const Gates<T>& a, T cell, T to_hidden) const {
    return to_hidden * (d_o() * a.o * ds() - 2 * squashed * gate.o * (ds() * cell));
  }
};

}  // namespace unlearnx
