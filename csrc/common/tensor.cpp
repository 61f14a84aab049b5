#include "common/tensor.h"

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>
#ifdef USE_CUDA
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>
#endif

#include <algorithm>
#include <numeric>
#include <stdexcept>
#include <string>

#include "common/dispatcher.h"
#include "common/errors.h"

namespace unlearnx {
namespace {

const char* what_torch_said() {
  return torch_exception_get_what_without_backtrace ? torch_exception_get_what_without_backtrace()
                                                    : "its message is on standard error";
}

std::vector<int64_t> contiguous_strides(Sizes sizes) {
  std::vector<int64_t> strides(sizes.size());
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0; stride *= std::max<int64_t>(sizes[d], 1)) strides[d] = stride;
  return strides;
}

int32_t number_of(ScalarType type) {
  return static_cast<int32_t>(torch::stable::detail::from(type));
}

int32_t layout_of(const Tensor& t) {
  int32_t layout = 0;
  succeed(aoti_torch_get_layout(t.get(), &layout), "aoti_torch_get_layout");
  return layout;
}

int64_t wrapped(int64_t dim, int64_t dims) {
  return dim < 0 ? dim + dims : dim;
}

using MemoryFormat = torch::headeronly::MemoryFormat;

}  // namespace

void fail_in_torch(const char* call) {
  throw std::runtime_error(joined("unlearnx: torch failed in ", call, ": ", what_torch_said()));
}

bool operator==(Sizes a, Sizes b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end());
}

std::ostream& operator<<(std::ostream& out, Sizes sizes) {
  out << '[';
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  return out << ']';
}

std::ostream& operator<<(std::ostream& out, Place place) {
  const char* name = "another device";
  if (place.type == aoti_torch_device_type_cpu()) name = "cpu";
  if (place.type == aoti_torch_device_type_cuda()) name = "cuda";
  if (place.type == aoti_torch_device_type_meta()) name = "meta";
  if (place.type == aoti_torch_device_type_xpu()) name = "xpu";
  if (place.type == aoti_torch_device_type_mps()) name = "mps";
  out << name;
  return place.index < 0 ? out : out << ':' << place.index;
}

Sizes Tensor::sizes() const {
  int64_t* first = nullptr;
  succeed(aoti_torch_get_sizes(get(), &first), "aoti_torch_get_sizes");
  return {first, static_cast<size_t>(dim())};
}

Sizes Tensor::strides() const {
  int64_t* first = nullptr;
  succeed(aoti_torch_get_strides(get(), &first), "aoti_torch_get_strides");
  return {first, static_cast<size_t>(dim())};
}

ScalarType Tensor::scalar_type() const {
  static const int32_t float32 = aoti_torch_dtype_float32(), float64 = aoti_torch_dtype_float64();
  int32_t type = 0;
  succeed(aoti_torch_get_dtype(get(), &type), "aoti_torch_get_dtype");
  if (type == float32) return kFloat;
  if (type == float64) return kDouble;
  try {
    return torch::stable::Tensor::scalar_type();
  } catch (const std::runtime_error&) {
    return ScalarType::Undefined;
  }
}

Place Tensor::place() const {
  Place place{};
  succeed(aoti_torch_get_device_type(get(), &place.type), "aoti_torch_get_device_type");
  succeed(aoti_torch_get_device_index(get(), &place.index), "aoti_torch_get_device_index");
  return place;
}

bool Tensor::is_strided() const {
  static const int32_t strided = aoti_torch_layout_strided();
  return layout_of(*this) == strided;
}

const char* Tensor::layout_name() const {
  const int32_t layout = layout_of(*this);
  if (layout == aoti_torch_layout_strided()) return "Strided";
  if (layout == aoti_torch_layout_sparse_coo()) return "Sparse";
  if (layout == aoti_torch_layout_sparse_csr()) return "SparseCsr";
  if (layout == aoti_torch_layout_sparse_csc()) return "SparseCsc";
  if (layout == aoti_torch_layout_sparse_bsr()) return "SparseBsr";
  if (layout == aoti_torch_layout_sparse_bsc()) return "SparseBsc";
  if (layout == aoti_torch_layout__mkldnn()) return "Mkldnn";
  return layout == aoti_torch_layout_jagged() ? "Jagged" : "unknown";
}

bool Tensor::is_non_overlapping_and_dense() const {
  if (is_contiguous()) return true;
  const Sizes sizes = this->sizes(), strides = this->strides();
  std::vector<size_t> order;
  for (size_t d = 0; d < sizes.size(); ++d)
    if (sizes[d] != 1) order.push_back(d);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return strides[a] < strides[b]; });
  int64_t expected = 1;
  for (const size_t d : order) {
    if (strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

bool Tensor::is_channels_last() const {
  if (dim() != 4) return false;
  const Sizes sizes = this->sizes(), strides = this->strides();
  int64_t expected = 1;
  for (const size_t d : {1, 3, 2, 0}) {
    if (sizes[d] == 1) continue;
    if (strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

Tensor Tensor::restrided(Sizes sizes, Sizes strides, int64_t offset) const {
  AtenTensorHandle result = nullptr;
  succeed(aoti_torch__reinterpret_tensor(get(), static_cast<int64_t>(sizes.size()), sizes.begin(), strides.begin(),
                                         offset, &result),
          "aoti_torch__reinterpret_tensor");
  return Tensor(result);
}

Tensor Tensor::view(Sizes sizes) const {
  return restrided(sizes, contiguous_strides(sizes));
}

Tensor Tensor::transpose(int64_t a, int64_t b) const {
  auto sizes = this->sizes().copy(), strides = this->strides().copy();
  std::swap(sizes[wrapped(a, dim())], sizes[wrapped(b, dim())]);
  std::swap(strides[wrapped(a, dim())], strides[wrapped(b, dim())]);
  return restrided(sizes, strides);
}

Tensor Tensor::unsqueeze(int64_t dim) const {
  auto sizes = this->sizes().copy(), strides = this->strides().copy();
  sizes.insert(sizes.begin() + dim, 1);
  strides.insert(strides.begin() + dim, 1);
  return restrided(sizes, strides);
}

Tensor Tensor::select(int64_t dim, int64_t index) const {
  auto sizes = this->sizes().copy(), strides = this->strides().copy();
  const int64_t offset = index * strides[dim];
  sizes.erase(sizes.begin() + dim);
  strides.erase(strides.begin() + dim);
  return restrided(sizes, strides, offset);
}

Tensor Tensor::narrow(int64_t dim, int64_t begin, int64_t length) const {
  auto sizes = this->sizes().copy();
  const Sizes strides = this->strides();
  sizes[dim] = length;
  return restrided(sizes, strides, begin * strides[dim]);
}

Tensor Tensor::to(ScalarType type) const {
  if (scalar_type() == type) return *this;
  return dispatch("aten::to", "dtype", *this, type, false, false, std::optional<MemoryFormat>());
}

Tensor Tensor::contiguous() const {
  return is_contiguous() ? *this : dispatch("aten::contiguous", "", *this, MemoryFormat::Contiguous);
}

Tensor Tensor::channels_last() const {
  return is_channels_last() ? *this : dispatch("aten::contiguous", "", *this, MemoryFormat::ChannelsLast);
}

Tensor Tensor::clone() const {
  return dispatch("aten::clone", "", *this, std::optional(MemoryFormat::Contiguous));
}

const Tensor& Tensor::copy_(const Tensor& source) const {
  succeed(aoti_torch_copy_(get(), source.get(), 0), "aten::copy_");
  return *this;
}

const Tensor& Tensor::zero_() const {
  succeed(aoti_torch_zero_(get()), "aten::zero_");
  return *this;
}

const Tensor& Tensor::mul_(const Tensor& other) const {
  dispatch("aten::mul_", "Tensor", *this, other);
  return *this;
}

const Tensor& Tensor::addmm_(const Tensor& a, const Tensor& b) const {
  addmm_out(*this, a, b);
  return *this;
}

Tensor Tensor::mul(const Tensor& other) const {
  return dispatch("aten::mul", "Tensor", *this, other);
}

Tensor Tensor::mul(double factor) const {
  AtenTensorHandle result = nullptr;
  succeed(aoti_torch_scalar_to_tensor_float64(factor, &result), "aoti_torch_scalar_to_tensor_float64");
  return mul(Tensor(result));
}

Tensor Tensor::sub(const Tensor& other) const {
  AtenTensorHandle result = nullptr;
  succeed(aoti_torch_aten_subtract_Tensor(get(), other.get(), 1.0, &result), "aten::subtract");
  return Tensor(result);
}

Tensor Tensor::neg() const {
  return dispatch("aten::neg", "", *this);
}

Tensor Tensor::sum(Sizes dims) const {
  return dispatch("aten::sum", "dim_IntList", *this, std::optional(dims.copy()), false, std::optional<ScalarType>());
}

Tensor Tensor::index_select(int64_t dim, const Tensor& index) const {
  return dispatch("aten::index_select", "", *this, dim, index);
}

Like::Like(ScalarType type) : place{aoti_torch_device_type_cpu(), -1}, type(type) {}

Tensor empty_strided(Sizes sizes, Sizes strides, const Like& like) {
  AtenTensorHandle result = nullptr;
  const auto status = aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.begin(), strides.begin(),
                                               number_of(like.type), like.place.type, like.place.index, &result);
  UX_CHECK(status == TORCH_SUCCESS, std::runtime_error, "OutOfMemoryError: unlearnx: torch gave no memory on ",
           like.place, " for a tensor of sizes ", sizes, ": ", what_torch_said());
  return Tensor(result);
}

Tensor empty(Sizes sizes, const Like& like) {
  return empty_strided(sizes, contiguous_strides(sizes), like);
}

Tensor zeros(Sizes sizes, const Like& like) {
  return empty(sizes, like).zero_();
}

Tensor borrowed(const void* memory, Sizes sizes, Sizes strides, ScalarType type) {
  AtenTensorHandle result = nullptr;
  succeed(
      aoti_torch_create_tensor_from_blob(const_cast<void*>(memory), static_cast<int64_t>(sizes.size()), sizes.begin(),
                                         strides.begin(), 0, number_of(type), aoti_torch_device_type_cpu(), 0, &result),
      "aoti_torch_create_tensor_from_blob");
  return Tensor(result);
}

Tensor full(Sizes sizes, double value, const Like& like) {
  const Tensor result = empty(sizes, like);
  succeed(aoti_torch_aten_fill__Scalar(result.get(), value), "aten::fill_");
  return result;
}

void mm_out(const Tensor& out, const Tensor& a, const Tensor& b) {
  if (out.is_cpu())
    succeed(aoti_torch_cpu_mm_out(out.get(), a.get(), b.get()), "aten::mm");
  else
    dispatch("aten::mm", "out", a, b, out);
}

void addmm_out(const Tensor& out, const Tensor& a, const Tensor& b, double out_factor, double factor) {
  auto* addmm = &aoti_torch_cpu_addmm_out;
#ifdef USE_CUDA
  if (out.is_cuda()) addmm = &aoti_torch_cuda_addmm_out;
#endif
  succeed(addmm(out.get(), out.get(), a.get(), b.get(), out_factor, factor), "aten::addmm");
}

Tensor mm(const Tensor& a, const Tensor& b) {
  const Tensor out = empty({a.size(0), b.size(1)}, Like(a));
  mm_out(out, a, b);
  return out;
}

Tensor mv(const Tensor& matrix, const Tensor& vector) {
  return dispatch("aten::mv", "out", matrix, vector, empty({matrix.size(0)}, Like(matrix)));
}

ScalarType promoted(ScalarType a, ScalarType b) {
  if (a == b) return a;
  return a == kDouble || b == kDouble ? kDouble : kFloat;
}

}  // namespace unlearnx
