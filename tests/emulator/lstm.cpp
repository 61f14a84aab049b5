#include "cuda/lstm.cuh"

#include <complex>

#include "harness.h"

using namespace harness;
using namespace unlearnx::cuda;

using Complex = std::complex<double>;

/// What a cell's adjoints are sent to: the gradient of to_hidden * h + to_cell * c in a, c_ and c, where h depends on
/// the gates and c alone. Written for complex numbers too: an imaginary step gives its derivative without cancellation.
template <typename V>
struct Reference {
  V i, f, g, o, before, squashed;

  Reference(const V* a, V before_, V after)
      : i(1.0 / (1.0 + std::exp(-a[0]))),
        f(1.0 / (1.0 + std::exp(-a[1]))),
        g(std::tanh(a[2])),
        o(1.0 / (1.0 + std::exp(-a[3]))),
        before(before_),
        squashed(std::tanh(after)) {}

  V cell() const { return f * before + i * g; }
  V hidden() const { return o * squashed; }
  void gradient(double to_hidden, double to_cell, V* to_a, V& to_before, V& to_after) const {
    to_a[0] = to_cell * g * i * (1.0 - i);
    to_a[1] = to_cell * before * f * (1.0 - f);
    to_a[2] = to_cell * i * (1.0 - g * g);
    to_a[3] = to_hidden * squashed * o * (1.0 - o);
    to_before = to_cell * f;
    to_after = to_hidden * o * (1.0 - squashed * squashed);
  }
};

constexpr double kStep = 1e-30;
constexpr double kRoundings = 64;  // derivatives of a saturated gate are differences of numbers near 1

/// The four values of one unit, of steps in turn.
template <typename T>
void four(double* to, const std::vector<T>& gates, int64_t state, int64_t units) {
  for (int64_t k = 0; k < 4; ++k) to[k] = gates[(state / units * 4 + k) * units + state % units];
}
template <typename T>
void check_four(const char* what, const double* expected, const std::vector<T>& gates, int64_t state, int64_t units) {
  for (int64_t k = 0; k < 4; ++k) {
    const int64_t place = (state / units * 4 + k) * units + state % units;
    check_close(what, place, expected[k], gates[place], kRoundings * rounding<T>());
  }
}

template <typename T>
struct Problem {
  int64_t steps, rows, units;
  int64_t step = rows * units;

  std::vector<T> states(int64_t count) const { return uniform<T>(count * step, -2, 2); }
  std::vector<T> gates() const { return uniform<T>(4 * steps * step, -4, 4); }
  std::vector<T> nothing(int64_t values) const { return std::vector<T>(values, T(NAN)); }
  CellsSize size() const { return {rows, units, sizeof(T) == 8}; }

  void check_value(const char* what, int64_t place, double expected, const std::vector<T>& got) const {
    check_close(what, place, expected, got[place], kRoundings * rounding<T>());
  }

  void forward() const {
    const auto gates = this->gates(), before = states(1);
    auto after = nothing(step), hidden = nothing(step);
    lstm_cells(CellsForward{gates.data(), before.data(), after.data(), hidden.data()}, size(), nullptr);
    for (int64_t s = 0; s < step; ++s) {
      double a[4];
      four(a, gates, s, units);
      const double c = Reference<double>(a, before[s], 0).cell();
      check_value("after", s, c, after);
      check_value("hidden", s, Reference<double>(a, before[s], c).hidden(), hidden);
    }
  }

  void backward(bool with_source) const {
    const auto gates = this->gates(), before = states(1), after = states(1), dh = states(1), later = states(1),
               sent = states(1);
    const auto source = with_source ? this->gates() : std::vector<T>();
    auto dc = later, dc_before = sent, da = nothing(4 * step);
    lstm_cells(CellsBackward{gates.data(), before.data(), after.data(), dh.data(),
                             with_source ? source.data() : nullptr, dc.data(), dc_before.data(), da.data()},
               size(), nullptr);
    for (int64_t s = 0; s < step; ++s) {
      double a[4], to_a[4], more[4] = {}, to_before, to_after;
      four(a, gates, s, units);
      const Reference<double> cell(a, before[s], after[s]);
      cell.gradient(dh[s], 0, to_a, to_before, to_after);
      const double to_cell = later[s] + to_after;
      cell.gradient(dh[s], to_cell, to_a, to_before, to_after);
      if (with_source) four(more, source, s, units);
      for (int k = 0; k < 4; ++k) to_a[k] += more[k];
      check_value("dc", s, to_cell, dc);
      check_value("dc_before", s, sent[s] + to_before, dc_before);
      check_four("da", to_a, da, s, units);
    }
  }

  void tangent() const {
    const auto gates = this->gates(), before = states(1), after = states(1), da = this->gates(), moved = states(1);
    auto dc = nothing(step), dh = nothing(step);
    lstm_cells(CellsTangent{gates.data(), before.data(), after.data(), da.data(), moved.data(), dc.data(), dh.data()},
               size(), nullptr);
    for (int64_t s = 0; s < step; ++s) {
      double a[4], along[4];
      four(a, gates, s, units);
      four(along, da, s, units);
      Complex stepped[4];
      for (int k = 0; k < 4; ++k) stepped[k] = {a[k], kStep * along[k]};
      const double c = Reference<Complex>(stepped, {before[s], kStep * moved[s]}, 0).cell().imag() / kStep;
      check_value("dc", s, c, dc);
      check_value("dh", s, Reference<Complex>(stepped, 0, {after[s], kStep * c}).hidden().imag() / kStep, dh);
    }
  }

  void curvature() const {
    const int64_t all = steps * step;
    const auto gates = this->gates(), gates_t = this->gates(), cells = states(steps + 1), cells_t = states(steps + 1),
               to_hidden = states(steps + 1), to_cells = states(steps + 1);
    auto out_cells = nothing(all + step), out_gates = nothing(4 * all);
    lstm_cells(CellsCurvature{cells.data(), gates.data(), cells_t.data(), gates_t.data(), to_hidden.data(),
                              to_cells.data(), out_cells.data(), out_gates.data(), steps},
               size(), nullptr);
    std::vector<double> expected(all + step);
    for (int64_t s = 0; s < all; ++s) {
      const int64_t next = s + step;
      double a[4], along[4];
      four(a, gates, s, units);
      four(along, gates_t, s, units);
      Complex stepped[4], to_a[4], to_before, to_after;
      for (int k = 0; k < 4; ++k) stepped[k] = {a[k], kStep * along[k]};
      const Reference<Complex> cell(stepped, {cells[s], kStep * cells_t[s]}, {cells[next], kStep * cells_t[next]});
      cell.gradient(to_hidden[next], to_cells[next], to_a, to_before, to_after);
      double curved[4];
      for (int k = 0; k < 4; ++k) curved[k] = to_a[k].imag() / kStep;
      check_four("out_gates", curved, out_gates, s, units);
      expected[s] += to_before.imag() / kStep;
      expected[next] += to_after.imag() / kStep;
    }
    for (int64_t s = 0; s < all + step; ++s) check_value("out_cells", s, expected[s], out_cells);
  }
};

template <typename T>
void test(int64_t rows, int64_t units) {
  const Problem<T> one{1, rows, units};
  one.forward();
  one.backward(false);
  one.backward(true);
  one.tangent();
  one.curvature();
  Problem<T>{3, rows, units}.curvature();
}

int main(int argc, char** argv) {
  return run(argc, argv, [] {
    for (const int64_t rows : {1, 3, 65})
      for (const int64_t units : {1, 31, 129}) {
        test<float>(rows, units);
        test<double>(rows, units);
      }
    test<float>(0, 3);
    test<double>(3, 0);
  });
}
