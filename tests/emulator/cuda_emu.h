// Executes CUDA kernels on the CPU: one block at a time, each of its threads a fiber.
//
// Ends the program with a message for what a GPU refuses, or makes of it what it likes: launches of no blocks or too
// many threads, too much shared memory, barriers that not every thread of the block reaches, shuffles from lanes that
// are not there; under the sanitizers also accesses out of bounds or misaligned, and what shared_memory.h names. Shared
// memory starts out as NaN, and the order in which fibers run is random. Asynchronous copies land as late as they may;
// tensor-core instructions follow the layouts of the PTX manual. Does not model races between blocks.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <random>
#include <utility>
#include <vector>

#include "cuda/interface.h"
#include "shared_memory.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct uint3 {
  unsigned x, y, z;
};

using __half = _Float16;

struct __nv_bfloat16 {
  uint16_t bits;
  __nv_bfloat16() = default;
  explicit __nv_bfloat16(float value) {
    uint32_t b;
    std::memcpy(&b, &value, 4);
    bits = static_cast<uint16_t>((b + 0x7fff + ((b >> 16) & 1)) >> 16);
  }
  explicit operator double() const { return static_cast<float>(*this); }
  explicit operator float() const {
    const uint32_t b = static_cast<uint32_t>(bits) << 16;
    float value;
    std::memcpy(&value, &b, 4);
    return value;
  }
};

namespace emu {

constexpr size_t kStack = 64 * 1024;

// Limits of every GPU, and of shared memory that is not asked for with cudaFuncSetAttribute.
constexpr unsigned kMostThreads = 1024, kMostThreadsDeep = 64, kMostBlocks = 0x7fffffff, kMostBlocksAside = 0xffff;
constexpr size_t kMostShared = 48 * 1024;

enum class State { Running, AtBlockBarrier, AtWarpBarrier, Done };

struct Copy {
  char* to;
  const char* from;
  size_t bytes;
};

/// What a lane shows to the others of its warp.
struct alignas(8) Slot {
  char bytes[32];
};

struct Fiber {
  ucontext_t context;
  std::vector<char> stack = std::vector<char>(kStack);
  void* shadow_stack = nullptr;  // AddressSanitizer's, while the fiber is not running
  uint3 thread;
  int linear;
  State state;
  unsigned mask;        // lanes the fiber waits for at a warp barrier
  unsigned partners;    // lanes that left its last warp barrier with it
  const char* barrier;  // file and line of the block's barrier that it waits at
  int barrier_line;
  int phase;  // of the exchange slots: two take turns, so that a fast lane does not overwrite a slow one's value
  std::deque<std::vector<Copy>> copies;  // groups not waited for; the last is not ended yet
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Slot> slots;
  int threads = 0;
  uint3 index;
  dim3 size, grid;
  Fiber* current = nullptr;
  const std::function<void()>* body = nullptr;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_size = 0;
  std::mt19937 random{0};
};
inline Block block;

[[noreturn]] inline void die(const char* what) {
  std::fprintf(stderr, "cuda_emu: %s in block (%u, %u, %u)\n", what, block.index.x, block.index.y, block.index.z);
  std::abort();
}

/// Seed of the order in which the fibers of all later blocks run.
inline void seed(unsigned value) {
  block.random.seed(value);
}

// AddressSanitizer is told of every switch of stacks.
inline void leave(void** save, const void* bottom, size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, bottom, size);
#else
  (void)save, (void)bottom, (void)size;
#endif
}
inline void arrive(void* saved, const void** bottom, size_t* size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(saved, bottom, size);
#else
  (void)saved, (void)bottom, (void)size;
#endif
}

inline void to_scheduler(bool finished = false) {
  Fiber& self = *block.current;
  shared_memory.thread = kNobody;
  leave(finished ? nullptr : &self.shadow_stack, block.scheduler_stack, block.scheduler_size);
  swapcontext(&self.context, &block.scheduler);
  arrive(self.shadow_stack, nullptr, nullptr);
  shared_memory.thread = self.linear;
}

inline void to_fiber(Fiber& fiber) {
  block.current = &fiber;
  void* shadow = nullptr;
  leave(&shadow, fiber.stack.data(), kStack);
  swapcontext(&block.scheduler, &fiber.context);
  arrive(shadow, nullptr, nullptr);
}

inline void run_fiber() {
  arrive(nullptr, &block.scheduler_stack, &block.scheduler_size);
  shared_memory.thread = block.current->linear;
  (*block.body)();
  block.current->state = State::Done;
  to_scheduler(true);
}

/// The lanes of a warp that wait, where every live lane that their masks name is one of them; else none.
inline unsigned complete_lanes(int warp) {
  unsigned needed = 0, waiting = 0, live = 0;
  for (int i = warp * 32; i < std::min(warp * 32 + 32, block.threads); ++i) {
    const Fiber& fiber = block.fibers[i];
    const unsigned lane = 1u << (i % 32);
    if (fiber.state != State::Done) live |= lane;
    if (fiber.state == State::AtWarpBarrier) waiting |= lane, needed |= fiber.mask;
  }
  return needed & live & ~waiting ? 0 : waiting;
}

inline bool release_warps() {
  bool released = false;
  for (int warp = 0; warp * 32 < block.threads; ++warp) {
    const unsigned lanes = complete_lanes(warp);
    for (int i = warp * 32; i < std::min(warp * 32 + 32, block.threads); ++i) {
      if (block.fibers[i].state != State::AtWarpBarrier || !lanes) continue;
      block.fibers[i].state = State::Running;
      block.fibers[i].partners = lanes;
    }
    released |= lanes != 0;
  }
  return released;
}

inline int count(State state) {
  return static_cast<int>(
      std::count_if(block.fibers.begin(), block.fibers.end(), [&](const Fiber& f) { return f.state == state; }));
}

inline bool release_block() {
  const int waiting = count(State::AtBlockBarrier);
  if (!waiting || waiting + count(State::Done) != block.threads) return false;
  if (waiting != block.threads) die("a barrier after threads have ended");
  for (auto& fiber : block.fibers) {
    const Fiber& first = block.fibers[0];
    if (fiber.barrier != first.barrier || fiber.barrier_line != first.barrier_line)
      die("threads wait at different barriers");
    fiber.state = State::Running;
  }
  ++shared_memory.span;
  return true;
}

inline void run_block() {
  shared_memory.block_begin = ++shared_memory.span;
  shared_memory.used = 0;
  for (int i = 0; i < block.threads; ++i) {
    Fiber& fiber = block.fibers[i];
    const unsigned n = static_cast<unsigned>(i), x = block.size.x, y = block.size.y;
    fiber.thread = {n % x, n / x % y, n / (x * y)};
    fiber.linear = i;
    fiber.state = State::Running;
    fiber.phase = 0;
    fiber.copies.assign(1, {});
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack.data();
    fiber.context.uc_stack.ss_size = kStack;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  std::vector<int> order(block.threads);
  for (int i = 0; i < block.threads; ++i) order[i] = i;
  while (count(State::Done) != block.threads) {
    std::shuffle(order.begin(), order.end(), block.random);
    bool progress = false;
    for (int i : order)
      if (block.fibers[i].state == State::Running) to_fiber(block.fibers[i]), progress = true;
    progress |= release_warps();
    progress |= release_block();
    if (!progress && count(State::Done) != block.threads) die("barrier divergence (deadlock)");
  }
}

inline void launch(dim3 grid, dim3 size, const std::function<void()>& body) {
  const uint64_t threads = uint64_t(size.x) * size.y * size.z;
  if (threads == 0 || threads > kMostThreads || size.z > kMostThreadsDeep) die("launch of a bad number of threads");
  if (uint64_t(grid.x) * grid.y * grid.z == 0) die("launch of an empty grid");
  if (grid.x > kMostBlocks || grid.y > kMostBlocksAside || grid.z > kMostBlocksAside) die("launch of a too large grid");
  block.threads = static_cast<int>(threads);
  block.fibers.resize(block.threads);
  block.slots.assign(2 * block.threads, {});
  block.size = size;
  block.grid = grid;
  block.body = &body;
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        block.index = {x, y, z};
        run_block();
      }
}

/// Shared memory of one UX_SHARED: a heap block of exactly its size, filled with NaN anew for every CUDA block.
template <typename T, int Id>
T* shared(size_t n) {
  static SharedArray array = {};
  static uint64_t block_begin = 0;
  if (block_begin != shared_memory.block_begin) {
    block_begin = shared_memory.block_begin;
    if (array.bytes != n * sizeof(T)) {
      if (!array.memory) array.next = std::exchange(shared_memory.arrays, &array);
      array.bytes = n * sizeof(T);
      array.memory = static_cast<char*>(std::realloc(array.memory, array.bytes));
      array.states = static_cast<SharedByte*>(std::realloc(array.states, array.bytes * sizeof(SharedByte)));
      std::memset(array.states, 0, array.bytes * sizeof(SharedByte));
    }
    std::memset(array.memory, 0xff, array.bytes);
    shared_memory.used += array.bytes;
    if (shared_memory.used > kMostShared) die("too much shared memory");
  }
  return reinterpret_cast<T*>(array.memory);
}

inline void wait_warp(unsigned mask) {
  Fiber& self = *block.current;
  if (!(mask >> (self.linear & 31) & 1)) die("lane not in its own mask");
  self.mask = mask;
  self.state = State::AtWarpBarrier;
  to_scheduler();
}

inline void wait_block(const char* file, int line) {
  Fiber& self = *block.current;
  self.barrier = file;
  self.barrier_line = line;
  self.state = State::AtBlockBarrier;
  to_scheduler();
}

/// Shows a value to the warp; the slots of all its lanes once those of the mask have come.
template <typename T>
const Slot* show(unsigned mask, const T& value) {
  static_assert(sizeof(T) <= sizeof(Slot), "");
  Fiber& self = *block.current;
  Slot* slots = &block.slots[(self.phase ^= 1) * block.threads];
  std::memcpy(&slots[self.linear], &value, sizeof(T));
  wait_warp(mask);
  return slots + (self.linear & ~31);
}

template <typename T>
T read(const Slot& slot) {
  T value;
  std::memcpy(&value, &slot, sizeof(T));
  return value;
}

template <typename T>
T exchange(unsigned mask, T value, int source) {
  const Slot* warp = show(mask, value);
  if (!(block.current->partners >> source & 1)) die("shuffle from a lane that is not there");
  return read<T>(warp[source]);
}

}  // namespace emu

#define threadIdx (emu::block.current->thread)
#define blockIdx (emu::block.index)
#define blockDim (emu::block.size)
#define gridDim (emu::block.grid)

#define __syncthreads() emu::wait_block(__FILE__, __LINE__)

template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta) {
  const int lane = emu::block.current->linear & 31, source = lane + static_cast<int>(delta);
  return emu::exchange(mask, value, source < 32 ? source : lane);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, unsigned lanes) {
  return emu::exchange(mask, value, (emu::block.current->linear & 31) ^ static_cast<int>(lanes));
}
template <typename T>
T atomicAdd(T* address, T value) {
  emu::shared_memory.atomic = true;
  const T old = *address;
  *address = old + value;
  emu::shared_memory.atomic = false;
  return old;
}
using std::pow;

// The instructions of cuda/intrinsics.cuh. A copy reads and writes only when it is waited for; from when it was started
// on nobody else may touch where it goes.
template <int Bytes>
void copy_async(void* to, const void* from, bool inside) {
  if (reinterpret_cast<uintptr_t>(to) % Bytes || (inside && reinterpret_cast<uintptr_t>(from) % Bytes))
    emu::die("misaligned copy");
  emu::note_access(reinterpret_cast<uintptr_t>(to), Bytes, emu::Access::Write, /*ready=*/false);
  emu::block.current->copies.back().push_back(
      {static_cast<char*>(to), inside ? static_cast<const char*>(from) : nullptr, Bytes});
}
inline void commit_copies() {
  emu::block.current->copies.emplace_back();
}
template <int Pending>
void wait_copies() {
  auto& groups = emu::block.current->copies;
  for (; groups.size() > Pending + 1; groups.pop_front())
    for (const emu::Copy& copy : groups.front()) {
      emu::note_access(reinterpret_cast<uintptr_t>(copy.to), copy.bytes, emu::Access::Write);
      if (copy.from)
        std::memcpy(copy.to, copy.from, copy.bytes);
      else
        std::memset(copy.to, 0, copy.bytes);
    }
}

inline void load_matrices_transposed(unsigned (&values)[4], const void* row) {
  if (reinterpret_cast<uintptr_t>(row) % 16) emu::die("misaligned matrix row");
  const int lane = emu::block.current->linear & 31;
  const emu::Slot* warp = emu::show(~0u, row);
  for (int matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (int k = 0; k < 2; ++k) pair[k] = emu::read<const uint16_t*>(warp[matrix * 8 + lane % 4 * 2 + k])[lane / 4];
    std::memcpy(&values[matrix], pair, 4);
  }
}

template <typename T>
void multiply_add(float* sum, const unsigned (&a)[4], const unsigned* b) {
  struct Fragments {
    T a[4][2], b[2][2];
  } own;
  std::memcpy(own.a, a, sizeof(own.a));
  std::memcpy(own.b, b, sizeof(own.b));
  const int lane = emu::block.current->linear & 31;
  const emu::Slot* warp = emu::show(~0u, own);
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int holder = k % 8 / 2;
      const auto* left = reinterpret_cast<const Fragments*>(&warp[row % 8 * 4 + holder]);
      const auto* right = reinterpret_cast<const Fragments*>(&warp[column * 4 + holder]);
      sum[i] += static_cast<float>(left->a[row / 8 + k / 8 * 2][k % 2]) * static_cast<float>(right->b[k / 8][k % 2]);
    }
  }
}
