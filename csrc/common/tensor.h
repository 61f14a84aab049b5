// Tensors of torch's stable ABI, with the methods that the ops need. Nothing here, and nothing else that the library of
// ops includes, is of ATen or c10 but what is header-only: one build of it runs beside every torch from
// TORCH_TARGET_VERSION on.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <initializer_list>
#include <optional>
#include <ostream>
#include <vector>

/// The message of the last error inside of torch. Torch has it from 2.13 on; before, it is null.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace unlearnx {

using torch::headeronly::ScalarType;
constexpr auto kFloat = ScalarType::Float, kDouble = ScalarType::Double, kHalf = ScalarType::Half,
               kBFloat16 = ScalarType::BFloat16, kLong = ScalarType::Long, kInt = ScalarType::Int,
               kBool = ScalarType::Bool;

/// Raises what torch said when a call of it failed.
[[noreturn]] void fail_in_torch(const char* call);
inline void succeed(AOTITorchError status, const char* call) {
  if (status != TORCH_SUCCESS) fail_in_torch(call);
}

/// Sizes or strides that live elsewhere.
class Sizes {
 public:
  Sizes(const int64_t* first, size_t size) : first_(first), size_(size) {}
  Sizes(std::initializer_list<int64_t> values) : Sizes(values.begin(), values.size()) {}
  Sizes(const std::vector<int64_t>& values) : Sizes(values.data(), values.size()) {}

  const int64_t* begin() const { return first_; }
  const int64_t* end() const { return first_ + size_; }
  size_t size() const { return size_; }
  int64_t operator[](size_t i) const { return first_[i]; }
  Sizes from(size_t begin) const { return {first_ + begin, size_ - begin}; }
  Sizes first(size_t n) const { return {first_, n}; }
  std::vector<int64_t> copy() const { return {begin(), end()}; }

 private:
  const int64_t* first_;
  size_t size_;
};
bool operator==(Sizes a, Sizes b);
inline bool operator!=(Sizes a, Sizes b) {
  return !(a == b);
}
std::ostream& operator<<(std::ostream& out, Sizes sizes);

/// The place of a tensor's memory, as torch writes it.
struct Place {
  int32_t type, index;
  bool operator==(const Place& other) const { return type == other.type && index == other.index; }
};
std::ostream& operator<<(std::ostream& out, Place place);

class Tensor : public torch::stable::Tensor {
 public:
  /// Undefined.
  Tensor() = default;
  Tensor(torch::stable::Tensor t) : torch::stable::Tensor(std::move(t)) {}
  explicit Tensor(AtenTensorHandle owned) : torch::stable::Tensor(owned) {}

  Sizes sizes() const;
  Sizes strides() const;
  /// Undefined for a dtype that this build does not know.
  ScalarType scalar_type() const;
  Place place() const;
  /// Strided, or the name of a sparse or foreign layout.
  const char* layout_name() const;
  bool is_strided() const;
  int64_t size(int64_t dim) const { return sizes()[dim < 0 ? dim + this->dim() : dim]; }
  int64_t itemsize() const { return static_cast<int64_t>(element_size()); }
  /// Whether the entries fill a stretch of memory, each its own place.
  bool is_non_overlapping_and_dense() const;
  /// Whether images (N, C, H, W) lie in memory as (N, H, W, C).
  bool is_channels_last() const;

  // The same memory, as a tensor of which autograd knows nothing.
  Tensor restrided(Sizes sizes, Sizes strides, int64_t offset = 0) const;
  Tensor detached() const { return restrided(sizes(), strides()); }
  /// Of a contiguous tensor.
  Tensor view(Sizes sizes) const;
  Tensor transpose(int64_t a, int64_t b) const;
  Tensor t() const { return transpose(0, 1); }
  Tensor unsqueeze(int64_t dim) const;
  Tensor select(int64_t dim, int64_t index) const;
  Tensor narrow(int64_t dim, int64_t begin, int64_t length) const;

  // Copies, where they are not there already.
  Tensor to(ScalarType type) const;
  Tensor contiguous() const;
  Tensor channels_last() const;
  /// Always a copy, contiguous.
  Tensor clone() const;

  const Tensor& copy_(const Tensor& source) const;
  const Tensor& zero_() const;
  const Tensor& mul_(const Tensor& other) const;
  /// this <- this + a b
  const Tensor& addmm_(const Tensor& a, const Tensor& b) const;

  Tensor mul(const Tensor& other) const;
  Tensor mul(double factor) const;
  Tensor sub(const Tensor& other) const;
  Tensor neg() const;
  Tensor square() const { return mul(*this); }
  Tensor sum(Sizes dims) const;
  Tensor index_select(int64_t dim, const Tensor& index) const;
};

using OptionalTensor = std::optional<Tensor>;
using TensorList = std::vector<Tensor>;

/// Where and of what dtype a new tensor is.
struct Like {
  Place place;
  ScalarType type;
  Like(const Tensor& t, ScalarType type) : place(t.place()), type(type) {}
  explicit Like(const Tensor& t) : Like(t, t.scalar_type()) {}
  /// On the CPU.
  explicit Like(ScalarType type);
};
Tensor empty(Sizes sizes, const Like& like);
Tensor empty_strided(Sizes sizes, Sizes strides, const Like& like);
Tensor zeros(Sizes sizes, const Like& like);
/// Of memory that outlives it, on the CPU.
Tensor borrowed(const void* memory, Sizes sizes, Sizes strides, ScalarType type);
Tensor full(Sizes sizes, double value, const Like& like);

// Products keep to the dtype of their operands, also under autocast: it does not know of these overloads, and those of
// the CPU are made past the dispatcher.
void mm_out(const Tensor& out, const Tensor& a, const Tensor& b);
/// out <- out_factor * out + factor * a b
void addmm_out(const Tensor& out, const Tensor& a, const Tensor& b, double out_factor = 1, double factor = 1);
Tensor mm(const Tensor& a, const Tensor& b);
Tensor mv(const Tensor& matrix, const Tensor& vector);

/// The dtype that holds the values of both, for the floating dtypes.
ScalarType promoted(ScalarType a, ScalarType b);

}  // namespace unlearnx
