// The only unit that knows of Python, and of nothing else: it loads the library of ops, which registers them with
// torch, and answers build_info(). One is built for every Python; the library is the same for all.
#include <dlfcn.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <map>
#include <string>

#include "build.h"

namespace {

void* library = nullptr;

template <typename Function>
Function* find(const char* name) {
  void* const symbol = library ? dlsym(library, name) : nullptr;
  if (symbol == nullptr) throw pybind11::import_error(std::string("the library of ops has no ") + name);
  return reinterpret_cast<Function*>(symbol);
}

/// torch has to be imported before: the library is linked to it.
void load(const std::string& path) {
  void* const opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (opened == nullptr) throw pybind11::import_error(dlerror());
  library = opened;
}

std::map<std::string, std::string> build_info() {
  const auto* b = find<decltype(unlearnx_build)>("unlearnx_build")();
  return {{"torch", b->torch},           {"torch_from", b->torch_from}, {"cuda", b->cuda},
          {"cuda_archs", b->cuda_archs}, {"compiler", b->compiler},     {"cpu_level", b->cpu_level}};
}

int threads_seen() {
  return find<decltype(unlearnx_threads_seen)>("unlearnx_threads_seen")();
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.def("load", &load);
  m.def("build_info", &build_info);
  m.def("threads_seen", &threads_seen);
}
