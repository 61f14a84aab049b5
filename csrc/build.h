// How the library of ops was made: its C interface, beside the ops themselves.
#pragma once

struct UnlearnxBuild {
  const char *torch, *torch_from;  // whose headers it was compiled with, and the oldest that it runs beside
  const char *cuda, *cuda_archs;   // empty without CUDA
  const char *compiler, *cpu_level;
};

extern "C" {
__attribute__((visibility("default"))) const UnlearnxBuild* unlearnx_build();

/// Threads that a parallel loop really gets. Starts them, after which a forked process cannot use them: not for the
/// import.
__attribute__((visibility("default"))) int unlearnx_threads_seen();
}
