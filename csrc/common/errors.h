// Errors as Python shows them. Through torch's stable ABI only exceptions of the standard library keep their kind,
// which has none for TypeError and NotImplementedError: these carry the name in front of the message, and the Python
// functions (unlearnx/ops/_call.py) raise them by it.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace unlearnx {

template <typename... Parts>
std::string joined(const Parts&... parts) {
  std::ostringstream out;
  (out << ... << parts);
  return out.str();
}

}  // namespace unlearnx

#define UX_CHECK(condition, error, ...) \
  if (!(condition)) throw error(::unlearnx::joined(__VA_ARGS__))

#define UX_CHECK_VALUE(condition, ...) UX_CHECK(condition, std::invalid_argument, __VA_ARGS__)
#define UX_CHECK_INDEX(condition, ...) UX_CHECK(condition, std::out_of_range, __VA_ARGS__)
#define UX_CHECK_TYPE(condition, ...) UX_CHECK(condition, std::runtime_error, "TypeError: ", __VA_ARGS__)
#define UX_CHECK_IMPLEMENTED(condition, ...) \
  UX_CHECK(condition, std::runtime_error, "NotImplementedError: ", __VA_ARGS__)
