// What happens to each byte of shared memory: AddressSanitizer calls the functions at the end for every access.
//
// Finds reads of what no thread has written, or no copy has reached, and accesses of two threads with no barrier
// between them. Included by cuda_emu.h, once a program.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

// The hooks must not be watched themselves, nor anything that they call; and they are called for everything.
#define EMU_UNWATCHED __attribute__((no_sanitize_address, optimize("O2")))

namespace emu {

enum class Access { Read, Write, Atomic };

constexpr int kNobody = -1, kSeveral = -2, kAtomics = -3;  // in the place of a thread

struct SharedByte {
  uint64_t written_at, read_at;  // spans between barriers, of all blocks
  int writer, reader;
  bool ready;  // not a copy that nobody has waited for
};

struct SharedArray {
  char* memory;
  size_t bytes;
  SharedByte* states;
  SharedArray* next;
};

struct SharedMemory {
  SharedArray* arrays = nullptr;
  uint64_t span = 1, block_begin = 1;
  size_t used = 0;       // bytes of the current block
  int thread = kNobody;  // that runs now
  bool atomic = false;   // whether what it does now is
};
inline SharedMemory shared_memory;

EMU_UNWATCHED [[noreturn]] inline void shared_error(const char* what, size_t byte) {
  std::fprintf(stderr, "cuda_emu: %s: byte %zu of shared memory, thread %d\n", what, byte, shared_memory.thread);
  std::abort();
}

EMU_UNWATCHED inline void note_byte(SharedByte& state, Access access, size_t byte) {
  const SharedMemory& m = shared_memory;
  const bool written_now = state.written_at == m.span && state.writer != m.thread;
  if (written_now && !(access == Access::Atomic && state.writer == kAtomics))
    shared_error(access == Access::Read ? "race: read while another thread writes" : "race: two threads write", byte);
  if (access == Access::Read) {
    if (state.written_at < m.block_begin) shared_error("read of uninitialised shared memory", byte);
    if (!state.ready) shared_error("read of a copy that was not waited for", byte);
    state.reader = state.read_at == m.span && state.reader != m.thread ? kSeveral : m.thread;
    state.read_at = m.span;
    return;
  }
  if (state.read_at == m.span && state.reader != m.thread)
    shared_error("race: written while another thread reads", byte);
  if (access == Access::Atomic && state.written_at < m.block_begin)
    shared_error("read of uninitialised shared memory", byte);
  state.written_at = m.span;
  state.writer = access == Access::Atomic ? kAtomics : m.thread;
  state.ready = true;
}

/// Takes note of an access by the thread that runs; does nothing for other memory.
EMU_UNWATCHED inline void note_access(uintptr_t address, size_t size, Access access, bool ready = true) {
  if (shared_memory.thread == kNobody) return;
  for (SharedArray* array = shared_memory.arrays; array; array = array->next) {
    const uintptr_t begin = reinterpret_cast<uintptr_t>(array->memory);
    if (address < begin || address >= begin + array->bytes) continue;
    for (size_t byte = address - begin; byte < address - begin + size && byte < array->bytes; ++byte) {
      note_byte(array->states[byte], access, byte);
      if (access != Access::Read) array->states[byte].ready = ready;
    }
    return;
  }
}

}  // namespace emu

#if defined(__SANITIZE_ADDRESS__)
// The functions that the compiler calls in place of its own checks, with
// --param=asan-instrumentation-with-call-threshold=0.
extern "C" {
void* __asan_region_is_poisoned(void* begin, size_t size);
void __asan_get_shadow_mapping(size_t* scale, size_t* offset);
void __asan_report_load_n(uintptr_t address, size_t size);
void __asan_report_store_n(uintptr_t address, size_t size);

EMU_UNWATCHED static bool emu_in_bounds(uintptr_t address, size_t size) {
  static size_t scale = 0, offset = 0;
  if (!scale) __asan_get_shadow_mapping(&scale, &offset);
  const auto clean = [](uintptr_t a) EMU_UNWATCHED { return !*reinterpret_cast<const char*>((a >> scale) + offset); };
  if (size <= 16 && clean(address) && clean(address + size - 1)) return true;
  return !size || !__asan_region_is_poisoned(reinterpret_cast<void*>(address), size);
}
EMU_UNWATCHED void __asan_loadN(uintptr_t address, size_t size) {
  if (!emu_in_bounds(address, size)) __asan_report_load_n(address, size);
  emu::note_access(address, size, emu::shared_memory.atomic ? emu::Access::Atomic : emu::Access::Read);
}
EMU_UNWATCHED void __asan_storeN(uintptr_t address, size_t size) {
  if (!emu_in_bounds(address, size)) __asan_report_store_n(address, size);
  emu::note_access(address, size, emu::shared_memory.atomic ? emu::Access::Atomic : emu::Access::Write);
}
#define EMU_HOOKS(size)                                      \
  EMU_UNWATCHED void __asan_load##size(uintptr_t address) {  \
    __asan_loadN(address, size);                             \
  }                                                          \
  EMU_UNWATCHED void __asan_store##size(uintptr_t address) { \
    __asan_storeN(address, size);                            \
  }
EMU_HOOKS(1)
EMU_HOOKS(2)
EMU_HOOKS(4)
EMU_HOOKS(8)
EMU_HOOKS(16)
#undef EMU_HOOKS
}
#endif
