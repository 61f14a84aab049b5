#include "ops/softmax_linear.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "common/clones.h"
#include "common/dispatcher.h"
#include "common/parallel.h"
#include "common/patience.h"
#include "cpu/convert.h"
#include "cpu/inner_product.h"
#include "cpu/lissa_update.h"
#include "cpu/tile_product.h"
#include "ops/full_precision.h"

namespace unlearnx::cpu {
namespace {

constexpr int64_t kSamples = 256;  // of a task: its rows of u stay in the second-level cache for the row pass
constexpr int64_t kTileRows = 256, kTileColumns = 256;  // of the product that a task works out and finishes
constexpr int kStrip = 64;                              // right-hand sides whose p.u are held at a time
constexpr int kLanes = 8;                               // running sums of one p.u

/// u <- p * (u - p.u) * factor for one sample and a strip of right-hand sides, which run along memory.
template <typename T>
UX_INLINE void strip_body(const T* p, T factor, int64_t classes, int64_t stride, int n, T* u) {
  T mean[kStrip] = {};
  for (int64_t c = 0; c < classes; ++c)
    for (int k = 0; k < n; ++k) mean[k] += p[c] * u[c * stride + k];
  for (int64_t c = 0; c < classes; ++c) {
    const T weight = p[c] * factor;
    for (int k = 0; k < n; ++k) u[c * stride + k] = weight * (u[c * stride + k] - mean[k]);
  }
}

/// The same for one sample and a single right-hand side: classes run along memory.
template <typename T>
UX_INLINE void single_body(const T* p, T factor, int64_t classes, T* u) {
  const T mean = inner_product_body<kLanes>(p, u, classes);
  for (int64_t c = 0; c < classes; ++c) u[c] = p[c] * factor * (u[c] - mean);
}

template <typename T>
UX_INLINE void softmax_rows_body(const T* p, T factor, int64_t samples, int64_t classes, int64_t sides, T* u) {
  for (int64_t i = 0; i < samples; ++i, p += classes, u += classes * sides) {
    if (sides == 1) {
      single_body(p, factor, classes, u);
      continue;
    }
    for (int64_t k = 0; k < sides; k += kStrip)
      strip_body(p, factor, classes, sides, static_cast<int>(std::min<int64_t>(kStrip, sides - k)), u + k);
  }
}
UX_CLONES void softmax_rows(const float* p, float factor, int64_t samples, int64_t classes, int64_t sides, float* u) {
  softmax_rows_body(p, factor, samples, classes, sides, u);
}
UX_CLONES void softmax_rows(const double* p, double factor, int64_t samples, int64_t classes, int64_t sides,
                            double* u) {
  softmax_rows_body(p, factor, samples, classes, sides, u);
}

/// Runs work(0) .. work(tasks - 1), always in a parallel region of at least two tasks: there the BLAS keeps to one
/// thread, so that its sums, too, do not depend on the number of threads.
template <typename Work>
void for_tasks(int64_t tasks, const Work& work) {
  parallel_for(0, std::max<int64_t>(tasks, 2), 1, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < std::min(end, tasks); ++t) work(t);
  });
}

/// Part of a matrix (classes * sides, features).
struct Piece {
  int64_t row, rows, column, columns;
};

/// Part of a row-major matrix in memory. Tasks make their tensors of it themselves: a thread of the pool knows nothing
/// of the caller's modes, and what was made in inference mode could not be written there.
template <typename T>
struct Matrix {
  const T* first;
  int64_t stride;

  Matrix at(int64_t row, int64_t column) const { return {first + row * stride + column, stride}; }
  Tensor tensor(int64_t rows, int64_t columns) const {
    return borrowed(first, {rows, columns}, {stride, 1}, type_of<T>);
  }
  Tensor transposed(int64_t rows, int64_t columns) const {
    return borrowed(first, {columns, rows}, {1, stride}, type_of<T>);
  }
};
template <typename T>
Matrix<T> matrix_of(const Tensor& t) {
  return {t.const_data_ptr<T>(), t.size(1)};
}

/// Products of one problem's batches, u and the product being kept from one to the next.
template <typename T>
class Products {
 public:
  Products(const SoftmaxLinear& problem, int64_t batch_size)
      : p_(problem),
        u_(empty({batch_size, problem.rows()}, Like(problem.h))),
        product_(empty({problem.rows(), problem.features}, Like(problem.h))) {
    const int64_t height = part_size(p_.rows(), kTileRows, 16), width = part_size(p_.features, kTileColumns, 16);
    for (int64_t row = 0; row < p_.rows(); row += height)
      for (int64_t column = 0; column < p_.features; column += width)
        pieces_.push_back({row, std::min(height, p_.rows() - row), column, std::min(width, p_.features - column)});
  }

  const std::vector<Piece>& pieces() const { return pieces_; }
  const Tensor& product() const { return product_; }

  /// Multiplies the mean Hessian of a batch with v, in pieces; calls finish(i) where piece i of the product is there.
  template <typename Finish>
  void multiply(const Tensor& v, Batch batch, const Finish& finish) {
    work_out_rows(v, batch);
    const auto s = matrix_of<T>(u_), product = matrix_of<T>(product_), h = matrix_of<T>(p_.h).at(batch.begin, 0);
    for_tasks(static_cast<int64_t>(pieces_.size()), [&](int64_t i) {
      const Piece& piece = pieces_[i];
      const auto target = product.at(piece.row, piece.column).tensor(piece.rows, piece.columns);
      // Summed over so many samples at a time: the BLAS splits long sums at places that depend on its thread count.
      for (int64_t begin = 0; begin < batch.size; begin += kSamples) {
        const int64_t n = std::min(kSamples, batch.size - begin);
        const auto left = s.at(begin, piece.row).transposed(n, piece.rows);
        const auto right = h.at(begin, piece.column).tensor(n, piece.columns);
        begin == 0 ? mm_out(target, left, right) : addmm_out(target, left, right);
      }
      finish(i);
    });
  }

 private:
  /// u <- s: what the samples of the batch contribute for each of their features.
  void work_out_rows(const Tensor& v, Batch batch) {
    const auto u = matrix_of<T>(u_), h = matrix_of<T>(p_.h).at(batch.begin, 0), right = matrix_of<T>(v);
    T* const u_memory = u_.template mutable_data_ptr<T>();
    const T* p = p_.p.template const_data_ptr<T>() + batch.begin * p_.classes;
    for_tasks(ceil_div(batch.size, kSamples), [&](int64_t i) {
      const int64_t begin = i * kSamples, n = std::min(kSamples, batch.size - begin);
      mm_out(u.at(begin, 0).tensor(n, p_.rows()), h.at(begin, 0).tensor(n, p_.features),
             right.transposed(p_.rows(), p_.features));
      softmax_rows(p + begin * p_.classes, T(1) / static_cast<T>(batch.size), n, p_.classes, p_.sides,
                   u_memory + begin * p_.rows());
    });
  }

  const SoftmaxLinear& p_;
  const Tensor u_, product_;
  std::vector<Piece> pieces_;
};

template <typename T>
Tensor hvp(const SoftmaxLinear& problem) {
  Products<T> products(problem, problem.samples);
  products.multiply(problem.v, {0, problem.samples}, [](int64_t) {});
  return products.product();
}

Tensor softmax_linear_hvp(const Tensor& h, const Tensor& probs, const Tensor& v) {
  const FullPrecision full_precision(h);
  const auto problem = check_softmax_linear("softmax_linear_hvp", h, probs, v);
  return problem.as_given(problem.compute_type() == kDouble ? hvp<double>(problem) : hvp<float>(problem), v);
}

/// One right-hand side's place in the stopping rule.
struct Progress {
  double smallest = std::numeric_limits<double>::infinity();
  int64_t since = 0;
  bool active = true;
};

/// The state of LiSSA for all right-hand sides, and the iteration on it.
template <typename T>
class Iteration {
 public:
  explicit Iteration(const LissaRun& run)
      : run_(run),
        p_(run.problem),
        products_(p_, run.batch_size),
        state_(p_.v.clone()),
        history_(run.new_history()),
        progress_(p_.sides) {
    int64_t rows = 0;
    for (const Piece& piece : products_.pieces()) {
      first_change_.push_back(rows);
      rows += piece.rows;
    }
    changes_.resize(rows);
  }

  const Tensor& state() const { return state_; }
  const Tensor& history() const { return history_; }

  /// Returns whether any right-hand side goes on.
  bool step(int64_t iteration) {
    products_.multiply(state_, run_.batch(iteration), [&](int64_t i) { update(i); });
    std::vector<double> totals(p_.sides);
    for (size_t i = 0; i < products_.pieces().size(); ++i) {
      const Piece& piece = products_.pieces()[i];
      for (int64_t r = 0; r < piece.rows; ++r) totals[(piece.row + r) % p_.sides] += changes_[first_change_[i] + r];
    }
    T* const row = history_.template mutable_data_ptr<T>() + iteration * p_.sides;
    bool any = false;
    for (int64_t k = 0; k < p_.sides; ++k) {
      Progress& side = progress_[k];
      if (!side.active) continue;
      row[k] = static_cast<T>(totals[k]);
      side.active = goes_on(row[k], run_.patience, side.smallest, side.since);
      any = any || side.active;
    }
    return any;
  }

 private:
  /// Piece i of the state, for the right-hand sides that have not stopped.
  void update(int64_t i) {
    const Piece& piece = products_.pieces()[i];
    for (int64_t r = 0; r < piece.rows; ++r) {
      const int64_t row = piece.row + r, begin = row * p_.features + piece.column;
      if (!progress_[row % p_.sides].active) continue;
      changes_[first_change_[i] + r] = lissa_update(
          state_.template mutable_data_ptr<T>() + begin, p_.v.template const_data_ptr<T>() + begin,
          products_.product().template const_data_ptr<T>() + begin, piece.columns, T(run_.keep), T(run_.inverse_scale));
    }
  }

  const LissaRun& run_;
  const SoftmaxLinear& p_;
  Products<T> products_;
  const Tensor state_, history_;
  std::vector<Progress> progress_;     // (sides,)
  std::vector<int64_t> first_change_;  // of every piece
  std::vector<double> changes_;        // L1 norms of the changes of every row of every piece
};

template <typename T>
std::tuple<Tensor, Tensor> iterate(const LissaRun& run, const Tensor& v) {
  Iteration<T> lissa(run);
  for (int64_t i = 0; i < run.iterations && lissa.step(i); ++i);
  return run.results(lissa.state(), lissa.history(), v);
}

std::tuple<Tensor, Tensor> lissa_softmax_linear(const Tensor& h, const Tensor& probs, const Tensor& v, double damping,
                                                double scale, std::optional<int64_t> batch_size, int64_t iterations,
                                                std::optional<int64_t> patience, const OptionalTensor& order) {
  const FullPrecision full_precision(h);
  const auto run = check_lissa_softmax_linear(h, probs, v, damping, scale, batch_size, iterations, patience, order);
  return run.problem.compute_type() == kDouble ? iterate<double>(run, v) : iterate<float>(run, v);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(unlearnx, CPU, m) {
  m.impl("softmax_linear_hvp", TORCH_BOX(&softmax_linear_hvp));
  m.impl("lissa_softmax_linear", TORCH_BOX(&lissa_softmax_linear));
}

}  // namespace unlearnx::cpu
