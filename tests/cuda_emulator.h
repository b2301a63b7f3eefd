// SPDX-License-Identifier: Apache-2.0
// CUDA C on a CPU, for tests: the threads of a block are fibers that run one after another between barriers.
//
// What would go unnoticed on a GPU ends the program with one line: an access outside an array or outside shared memory
// (each lies before a page that cannot be read), a barrier that not all threads reach. Shared memory and temporaries
// start as NaN, and asynchronous copies land when they are waited for, so what is read too early is seen in the result.
// With DETECT_RACES `race_detector.cpp` is told what happens, and finds accesses that have no order.
#pragma once
#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "race_detector.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define CUDART_INF_F INFINITY
#define CUDART_INF double(INFINITY)
#define __launch_bounds__(...)
#define __align__(n) alignas(n)

struct uint3 {
  unsigned x, y, z;
};
static uint3 threadIdx, blockIdx;

namespace emulator {

// ---------------------------------------------------------------- numbers

inline float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, 4);
  return value;
}

template <typename T>
uint64_t bits(T value) {
  static_assert(sizeof(T) <= 8, "an operand of inline assembly is a register");
  uint64_t result = 0;
  memcpy(&result, &value, sizeof(T));
  return result;
}

template <typename T>
void assign(T& destination, uint64_t value) {
  memcpy(&destination, &value, sizeof(T));
}

struct Float16 {
  static float widen(uint16_t bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
  }
  static uint16_t round(float number) {
    _Float16 value = number;
    uint16_t bits;
    memcpy(&bits, &value, 2);
    return bits;
  }
};

struct BFloat16 {
  static float widen(uint16_t bits) { return from_bits(uint32_t(bits) << 16); }
  static uint16_t round(float number) {
    uint32_t bits;
    memcpy(&bits, &number, 4);
    if (number != number) return 0x7fff;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to nearest, ties to even
  }
};

// a 16-bit number that computes in float and rounds after each operation, as the hardware does
template <typename Format>
struct Half {
  uint16_t storage;
  Half() = default;
  Half(float value) : storage(Format::round(value)) {}
  Half(double value) : Half(float(value)) {}
  Half(int value) : Half(float(value)) {}
  operator float() const { return Format::widen(storage); }
};

template <typename Format>
struct alignas(4) Half2 {
  Half<Format> x, y;
  Half2() = default;
  Half2(Half<Format> x, Half<Format> y) : x(x), y(y) {}
};

[[noreturn]] inline void fail(const char* what, long number);

// NaN where one of two is
inline float maximum(float a, float b) { return a > b || a != a ? a : b; }
inline float minimum(float a, float b) { return a < b || a != a ? a : b; }

}  // namespace emulator

#define EMULATOR_HALF_OPERATORS(T)                                  \
  inline T operator+(T a, T b) { return T(float(a) + float(b)); }   \
  inline T operator-(T a, T b) { return T(float(a) - float(b)); }   \
  inline T operator*(T a, T b) { return T(float(a) * float(b)); }   \
  inline T operator/(T a, T b) { return T(float(a) / float(b)); }   \
  inline T operator-(T a) { return T(-float(a)); }                  \
  inline bool operator<(T a, T b) { return float(a) < float(b); }   \
  inline bool operator>(T a, T b) { return float(a) > float(b); }   \
  inline bool operator<=(T a, T b) { return float(a) <= float(b); } \
  inline bool operator>=(T a, T b) { return float(a) >= float(b); } \
  inline bool operator==(T a, T b) { return float(a) == float(b); } \
  inline bool operator!=(T a, T b) { return float(a) != float(b); } \
  inline bool __hgt(T a, T b) { return float(a) > float(b); }       \
  inline bool __hlt(T a, T b) { return float(a) < float(b); }       \
  inline T __hfma(T a, T b, T c) { return T(fmaf(a, b, c)); }       \
  inline T __hmax_nan(T a, T b) { return T(emulator::maximum(a, b)); } \
  inline T __hmin_nan(T a, T b) { return T(emulator::minimum(a, b)); } \
  inline T hexp(T a) { return T(expf(a)); }                         \
  inline T hsqrt(T a) { return T(sqrtf(a)); }                       \
  inline T hrsqrt(T a) { return T(1 / sqrtf(a)); }

using half = emulator::Half<emulator::Float16>;
using half2 = emulator::Half2<emulator::Float16>;
using nv_bfloat16 = emulator::Half<emulator::BFloat16>;
using nv_bfloat162 = emulator::Half2<emulator::BFloat16>;
using __half = half;
using __half2 = half2;
using __nv_bfloat16 = nv_bfloat16;
using __nv_bfloat162 = nv_bfloat162;
EMULATOR_HALF_OPERATORS(half)
EMULATOR_HALF_OPERATORS(nv_bfloat16)

inline half __float2half_rn(float a) { return half(a); }
inline half __float2half(float a) { return half(a); }
inline float __half2float(half a) { return a; }
inline uint16_t __half_as_ushort(half a) { return a.storage; }
inline half __ushort_as_half(uint16_t bits) {
  half a;
  a.storage = bits;
  return a;
}
inline nv_bfloat16 __float2bfloat16_rn(float a) { return nv_bfloat16(a); }
inline nv_bfloat16 __float2bfloat16(float a) { return nv_bfloat16(a); }
inline float __bfloat162float(nv_bfloat16 a) { return a; }
inline uint16_t __bfloat16_as_ushort(nv_bfloat16 a) { return a.storage; }
inline nv_bfloat16 __ushort_as_bfloat16(uint16_t bits) {
  nv_bfloat16 a;
  a.storage = bits;
  return a;
}
inline half2 __halves2half2(half x, half y) { return {x, y}; }
inline half2 make_half2(half x, half y) { return {x, y}; }
inline nv_bfloat162 make_bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }
inline nv_bfloat162 __halves2bfloat162(nv_bfloat16 x, nv_bfloat16 y) { return {x, y}; }

#define EMULATOR_VECTORS(T, prefix)                                               \
  struct alignas(2 * sizeof(T)) prefix##2 {                                       \
    T x, y;                                                                       \
  };                                                                              \
  struct alignas(4 * sizeof(T)) prefix##4 {                                       \
    T x, y, z, w;                                                                 \
  };                                                                              \
  inline prefix##2 make_##prefix##2(T x, T y) { return {x, y}; }                  \
  inline prefix##4 make_##prefix##4(T x, T y, T z, T w) { return {x, y, z, w}; }
EMULATOR_VECTORS(float, float)
EMULATOR_VECTORS(int, int)
EMULATOR_VECTORS(unsigned, uint)
EMULATOR_VECTORS(short, short)
EMULATOR_VECTORS(unsigned short, ushort)
EMULATOR_VECTORS(signed char, char)
EMULATOR_VECTORS(unsigned char, uchar)
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) longlong2 {
  long long x, y;
};
struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};
struct alignas(16) longlong4 {
  long long x, y, z, w;
};
struct alignas(16) ulonglong4 {
  unsigned long long x, y, z, w;
};
inline double2 make_double2(double x, double y) { return {x, y}; }
inline longlong2 make_longlong2(long long x, long long y) { return {x, y}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

#define EMULATOR_MIN_MAX(T)                          \
  inline T max(T a, T b) { return a > b ? a : b; }   \
  inline T min(T a, T b) { return a < b ? a : b; }
EMULATOR_MIN_MAX(int)
EMULATOR_MIN_MAX(unsigned)
EMULATOR_MIN_MAX(long long)
EMULATOR_MIN_MAX(long)
inline float max(float a, float b) { return fmaxf(a, b); }
inline float min(float a, float b) { return fminf(a, b); }
inline double max(double a, double b) { return fmax(a, b); }
inline double min(double a, double b) { return fmin(a, b); }
inline float rsqrtf(float a) { return 1 / sqrtf(a); }
inline float __expf(float a) { return expf(a); }
inline float __logf(float a) { return logf(a); }
inline float __fdividef(float a, float b) { return a / b; }
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned a) { return __builtin_popcount(a); }
inline int __float_as_int(float a) { return int(emulator::bits(a)); }
inline unsigned __float_as_uint(float a) { return unsigned(emulator::bits(a)); }
inline float __int_as_float(int a) { return emulator::from_bits(unsigned(a)); }
inline float __uint_as_float(unsigned a) { return emulator::from_bits(a); }

namespace emulator {

// ---------------------------------------------------------------- memory

// all memory lies in 4 GiB, so that an address of shared memory is a number of 32 bits
constexpr size_t kGuard = 4 << 20, kPage = 4096, kReserved = size_t(4) << 30;

inline char* reserve() {
  void* base = mmap(nullptr, kReserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (base == MAP_FAILED) fail("cannot reserve this many bytes of addresses", kReserved);
  races::address_space(static_cast<char*>(base), kReserved);
  return static_cast<char*>(base);
}
static char *const address_space = reserve(), *next_address = address_space;

// bytes that end (but for less than 16) where unreadable pages begin, and begin where others end
struct Memory {
  char *first, *last, *data;  // of the pages, then of the bytes
  size_t size;
  const char* name;

  Memory(const char* name, size_t size, bool shared) : size(size), name(name) {
    size_t padded = (size + 15) / 16 * 16;
    first = next_address + kGuard;
    last = first + (padded + kPage - 1) / kPage * kPage;
    next_address = last;
    if (last + kGuard > address_space + kReserved || mprotect(first, last - first, PROT_READ | PROT_WRITE))
      fail("no memory for this many bytes", size);
    memset(first, 0xff, last - first);  // NaN in every type
    data = last - padded;
    races::declare(data, size, name, shared);
  }

  // what a kernel wrote beside the array but within its pages
  void check_edges() const {
    for (const char* byte = first; byte < last; byte++)
      if ((byte < data || byte >= data + size) && *byte != char(0xff)) {
        fprintf(stderr, "%s: byte %ld of %zu was written\n", name, long(byte - data), size);
        _exit(3);
      }
  }

  // a file that is shorter than the array is repeated
  void read_file(const char* path) {
    FILE* file = fopen(path, "rb");
    size_t period = file ? fread(data, 1, size, file) : 0;
    if (period == 0 && size > 0) fail("cannot read an array's file, bytes", size);
    for (size_t i = period; i < size; i += period) memcpy(data + i, data, period < size - i ? period : size - i);
    fclose(file);
    races::given(data);
  }

  void write_file(const char* path) const {
    FILE* file = fopen(path, "wb");
    if (!file || fwrite(data, 1, size, file) != size || fclose(file)) fail("cannot write an array's file, bytes", size);
  }
};

constexpr int kMaxMemories = 256;
// an array as an argument of a kernel, whatever the kernel takes it for
struct Argument {
  char* data;
  template <typename T>
  operator T*() const {
    return reinterpret_cast<T*>(data);
  }
};

static Memory* memories[kMaxMemories];
static int memory_count = 0;

inline Memory& memory(const char* name, size_t bytes, bool shared = false) {
  if (memory_count == kMaxMemories) fail("too many arrays", memory_count);
  return *(memories[memory_count++] = new Memory(name, bytes, shared));
}

// ---------------------------------------------------------------- threads of a block

constexpr int kWarp = 32, kMaxThreads = 1024, kMaxCopies = 256;

enum State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

struct AsyncCopy {
  char* destination;
  const char* source;
  int read, bytes, group;  // of the bytes that are not read it makes zeros
};

struct Thread {
  jmp_buf context;
  State state;
  int line;  // of the barrier that it waits at
  uint3 index;
  AsyncCopy copies[kMaxCopies];  // not yet waited for
  int copy_count, group;
  unsigned collectives;  // done so far
};


constexpr size_t kStack = 256 << 10;
static Thread threads[kMaxThreads];
static int thread_count, current;
static jmp_buf scheduler;
static void (*kernel)();

[[noreturn]] inline void fail(const char* what, long number) {
  fprintf(stderr, "block (%u, %u, %u), thread (%u, %u, %u): %s: %ld\n", blockIdx.x, blockIdx.y, blockIdx.z, threadIdx.x,
          threadIdx.y, threadIdx.z, what, number);
  _exit(3);
}

inline void on_signal(int, siginfo_t* info, void*) {
  const char* address = static_cast<const char*>(info->si_addr);
  for (int i = 0; i < memory_count; i++) {
    long offset = address - memories[i]->data, size = memories[i]->size;
    if (offset >= -long(kGuard) && offset < size + long(kGuard)) {
      fprintf(stderr, "%s has %ld bytes; ", memories[i]->name, size);
      fail("access at byte", offset);
    }
  }
  fail("misaligned or wild access at", reinterpret_cast<long>(address));
}

__attribute__((noinline)) inline void wait(State state, int line) {
  threads[current].state = state, threads[current].line = line;
  if (!_setjmp(threads[current].context)) _longjmp(scheduler, 1);
}

__attribute__((noinline)) inline void resume(int thread) {
  current = thread, threadIdx = threads[thread].index;
  races::thread_runs(thread);
  if (!_setjmp(scheduler)) _longjmp(threads[thread].context, 1);
}

inline void fiber_main() {
  for (;;) {
    kernel();
    wait(kDone, 0);
  }
}

inline void make_fibers(int count) {
  static int made = 0;
  static ucontext_t back;
  for (; made < count; made++) {
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = mmap(nullptr, kStack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, fiber_main, 0);
    // the first run only reaches the fiber's own context: `kernel` does nothing yet
    current = made;
    if (!_setjmp(scheduler)) swapcontext(&back, &context);
  }
}

// release a warp's or the block's threads once all have come to the same barrier; return whether they were
inline bool release(int first, int last, State state) {
  for (int i = first; i < last; i++)
    if (threads[i].state != state) return false;
  for (int i = first; i < last; i++)
    if (threads[i].line != threads[first].line) {
      threadIdx = threads[i].index;
      fail("this thread and others wait at different barriers, line", threads[i].line);
    }
  for (int i = first; i < last; i++) threads[i].state = kReady;
  return true;
}

inline void run_block() {
  for (bool backwards = false;; backwards = !backwards) {  // in turns, so that races show either way
    bool ran = false;
    int warps = (thread_count + kWarp - 1) / kWarp;
    for (int w = 0; w < warps; w++) {
      int warp = backwards ? warps - 1 - w : w;
      int first = warp * kWarp, last = first + kWarp < thread_count ? first + kWarp : thread_count;
      do {
        for (int i = 0; i < last - first; i++) {
          int thread = backwards ? last - 1 - i : first + i;
          if (threads[thread].state == kReady) resume(thread), ran = true;
        }
      } while (release(first, last, kAtWarpBarrier));
    }
    if (release(0, thread_count, kDone)) return;
    if (release(0, thread_count, kAtBlockBarrier))
      races::block_barrier();
    else if (!ran)
      for (int i = 0; i < thread_count; i++)
        if (threads[i].state != kDone) {
          threadIdx = threads[i].index;
          fail("not all threads reach this barrier, line", threads[i].line);
        }
  }
}

// shared memory of the kernel that runs, by number of its declaration in the program; number 0 is the dynamic one
constexpr int kMaxShared = 64;
static Memory* shared_memories[kMaxShared];

inline char* shared(int number, const char* name, size_t bytes) {
  if (number >= kMaxShared) fail("too many shared arrays", number);
  if (!shared_memories[number]) shared_memories[number] = &memory(name, bytes, true);
  return shared_memories[number]->data;
}

inline char* dynamic_shared() {
  if (!shared_memories[0]) fail("no dynamic shared memory was asked for", 0);
  return shared_memories[0]->data;
}

// Numbers of blocks in the order in which they run, for a GPU promises none: EMULATOR_ORDER is `ascending`, `descending`
// or `shuffled`. EMULATOR_BLOCKS is how many at most: half of them beside each other, the others anywhere.
// EMULATOR_SEED decides on both.
inline uint32_t* order_of_blocks(size_t blocks, size_t* count) {
  const char *how = getenv("EMULATOR_ORDER"), *most = getenv("EMULATOR_BLOCKS"), *seed = getenv("EMULATOR_SEED");
  uint32_t* order = static_cast<uint32_t*>(malloc(blocks * sizeof(uint32_t)));
  srand48(seed ? atol(seed) : 0);
  *count = most && size_t(atol(most)) < blocks ? atol(most) : blocks;
  size_t first = *count < blocks ? lrand48() % (blocks - *count) : 0;
  for (size_t i = 0; i < blocks; i++) order[i] = uint32_t((first + i) % blocks);
  bool shuffled = how && !strcmp(how, "shuffled");
  auto swap = [order](size_t i, size_t j) {
    uint32_t other = order[i];
    order[i] = order[j], order[j] = other;
  };
  if (*count < blocks)
    for (size_t i = (*count + 1) / 2; i < *count; i++) swap(i, i + lrand48() % (blocks - i));
  if (shuffled)
    for (size_t i = 0; i + 1 < *count; i++) swap(i, i + lrand48() % (*count - i));
  if (how && !strcmp(how, "descending"))
    for (size_t i = 0; i < *count / 2; i++) swap(i, *count - 1 - i);
  return order;
}

inline void launch(void (*body)(), uint3 grid, uint3 block, size_t dynamic_bytes) {
  static char signal_stack[64 << 10];
  static bool prepared = false;
  if (!prepared) {
    prepared = true;
    stack_t alternative = {signal_stack, 0, sizeof signal_stack};
    sigaltstack(&alternative, nullptr);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigaction(SIGSEGV, &action, nullptr);
    sigaction(SIGBUS, &action, nullptr);
  }
  thread_count = block.x * block.y * block.z;
  if (thread_count > kMaxThreads) fail("threads of a block", thread_count);
  kernel = [] {};
  make_fibers(thread_count);
  kernel = body;
  if (dynamic_bytes) shared(0, "dynamic shared memory", dynamic_bytes);
  size_t blocks = size_t(grid.x) * grid.y * grid.z, count;
  uint32_t* order = order_of_blocks(blocks, &count);
  races::kernel_begins();
  for (size_t step = 0; step < count; step++) {
    unsigned index = order[step];
    blockIdx = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    for (Memory* memory : shared_memories)
      if (memory) memset(memory->data, 0xff, memory->size);
    for (int i = 0; i < thread_count; i++) {
      threads[i].state = kReady;
      threads[i].index = {i % block.x, i / block.x % block.y, i / block.x / block.y};
      threads[i].copy_count = threads[i].group = 0;
      threads[i].collectives = 0;
    }
    races::block_begins(index);
    run_block();
    races::block_ends();
  }
  races::kernel_ends(count == blocks);
  free(order);
  for (Memory*& memory : shared_memories) memory = nullptr;
}

// ---------------------------------------------------------------- what the lanes of a warp do together

struct Slot {
  uint64_t value[16];
};

// Offer `count` values to the warp; return the offers of its 32 lanes. Two sets of slots in turns: a lane can be one
// collective ahead of another, not two.
inline const Slot* exchange(const uint64_t* values, int count, int line) {
  static Slot slots[2][kMaxThreads];
  Slot* turn = slots[threads[current].collectives++ & 1];
  memcpy(turn[current].value, values, count * sizeof(uint64_t));
  wait(kAtWarpBarrier, line);
  return turn + current / kWarp * kWarp;
}

inline int lane() { return current % kWarp; }

template <typename T>
T shuffle(int line, T value, int source, int width = kWarp) {
  uint64_t mine = bits(value);
  const Slot* all = exchange(&mine, 1, line);
  T result;
  assign(result, all[lane() / width * width + source % width].value[0]);
  return result;
}

template <typename T>
T shuffle_down(int line, T value, int delta, int width = kWarp) {
  return shuffle(line, value, lane() % width + delta < width ? lane() + delta : lane(), width);
}

template <typename T>
T shuffle_up(int line, T value, int delta, int width = kWarp) {
  return shuffle(line, value, lane() % width >= delta ? lane() - delta : lane(), width);
}

inline unsigned ballot(bool predicate, int line) {
  uint64_t mine = predicate;
  const Slot* all = exchange(&mine, 1, line);
  unsigned mask = 0;
  for (int i = 0; i < kWarp; i++) mask |= unsigned(all[i].value[0]) << i;
  return mask;
}

// ---------------------------------------------------------------- inline assembly
// Each takes the values of the instruction's operands, in the order of its text, and overwrites those it writes.

inline char* shared_address(uint64_t offset) { return address_space + offset; }

// tables 9.7.14.5 of the PTX manual: a lane is in row group `lane / 4` and column group `lane % 4`
template <int K, typename Format>
void mma_m16n8(uint64_t* v, int, int line) {
  constexpr bool tf32 = sizeof(typename Format::Storage) == 4;
  constexpr int packed = tf32 ? 1 : 2, a_registers = K / (4 * packed) * 2, b_registers = a_registers / 2;
  uint64_t *a = v + 4, *b = a + a_registers, *c = b + b_registers;
  const Slot* all = exchange(a, a_registers + b_registers, line);
  for (int i = 0; i < 4; i++) {
    int row = lane() / 4 + 8 * (i / 2), column = lane() % 4 * 2 + i % 2;
    float sum = from_bits(uint32_t(c[i]));
    for (int k = 0; k < K; k++) {
      int column_group = k / packed % 4, half = k / packed / 4, shift = k % packed * 16;
      uint64_t left = all[row % 8 * 4 + column_group].value[row / 8 + 2 * half];
      uint64_t right = all[column * 4 + column_group].value[a_registers + half];
      sum += Format::number(left >> shift) * Format::number(right >> shift);
    }
    v[i] = bits(sum);
  }
}

struct F16 {
  using Storage = uint16_t;
  static float number(uint64_t bits) { return Float16::widen(uint16_t(bits)); }
};
struct BF16 {
  using Storage = uint16_t;
  static float number(uint64_t bits) { return BFloat16::widen(uint16_t(bits)); }
};
struct TF32 {  // the unit ignores the low 13 bits
  using Storage = uint32_t;
  static float number(uint64_t bits) { return from_bits(uint32_t(bits) & ~0x1fffu); }
};

template <int Count, bool Transposed>
EMULATOR_UNSEEN void ldmatrix(uint64_t* v, int, int line) {
  const Slot* all = exchange(v + Count, 1, line);
  for (int matrix = 0; matrix < Count; matrix++) {
    uint16_t pair[2];
    for (int i = 0; i < 2; i++) {
      int row = lane() / 4, column = lane() % 4 * 2 + i;
      if (Transposed) row = lane() % 4 * 2 + i, column = lane() / 4;
      const char* address = shared_address(all[matrix * 8 + row].value[0]);
      if (reinterpret_cast<uintptr_t>(address) % 16) fail("ldmatrix of a row that is not on 16 bytes", row);
      races::reads(address + 2 * column, 2, line);
      memcpy(&pair[i], address + 2 * column, 2);
    }
    v[matrix] = pair[0] | uint32_t(pair[1]) << 16;
  }
}

// destination, source, bytes and, where given, how many of them to read: zeros after
inline void cp_async(uint64_t* v, int count, int line) {
  Thread& me = threads[current];
  char* destination = shared_address(v[0]);
  int bytes = v[2], read = count > 3 ? v[3] : v[2];
  if ((reinterpret_cast<uintptr_t>(destination) | v[1]) % bytes) fail("misaligned cp.async of bytes", bytes);
  if (me.copy_count == kMaxCopies) fail("too many cp.async without a wait", me.copy_count);
  const char* source = reinterpret_cast<const char*>(v[1]);
  races::reads(source, read, line);
  races::copy_begins(destination, bytes, line);
  memset(destination + read, 0, bytes - read);
  me.copies[me.copy_count++] = {destination, source, read, bytes, me.group};
}

inline void cp_async_commit(uint64_t*, int, int) { threads[current].group++; }

// wait until at most v[0] committed groups are under way
inline void cp_async_wait_group(uint64_t* v, int, int) {
  Thread& me = threads[current];
  int kept = 0;
  for (int i = 0; i < me.copy_count; i++) {
    AsyncCopy copy = me.copies[i];
    if (copy.group < me.group - int(v[0])) {
      memcpy(copy.destination, copy.source, copy.read);
      races::copy_lands(copy.destination, copy.bytes);
    } else {
      me.copies[kept++] = copy;
    }
  }
  me.copy_count = kept;
}

inline void cp_async_wait_all(uint64_t* v, int count, int line) {
  v[0] = 0;
  cp_async_commit(v, count, line);
  cp_async_wait_group(v, count, line);
}

inline void max_nan(uint64_t* v, int, int) { v[0] = bits(maximum(from_bits(v[1]), from_bits(v[2]))); }
inline void min_nan(uint64_t* v, int, int) { v[0] = bits(minimum(from_bits(v[1]), from_bits(v[2]))); }
inline void round_to_tf32(uint64_t* v, int, int) { v[0] = (v[1] + 0x1000) & ~uint64_t(0x1fff); }

// ---------------------------------------------------------------- the program's arguments: a file an array

inline void read_files(Memory** parameters, char** files, int count) {
  for (int i = 0; i < count; i++)
    if (access(files[i], F_OK) == 0) parameters[i]->read_file(files[i]);
}

// write those that were not read
inline void write_files(Memory** parameters, char** files, int count) {
  for (int i = 0; i < memory_count; i++) memories[i]->check_edges();
  for (int i = 0; i < count; i++)
    if (access(files[i], F_OK) != 0) parameters[i]->write_file(files[i]);
  races::report();
}

}  // namespace emulator

#define __syncthreads() emulator::wait(emulator::kAtBlockBarrier, __LINE__)
#define __syncwarp(...) (races::warp_barrier(), emulator::wait(emulator::kAtWarpBarrier, __LINE__))
#define __activemask() 0xffffffffu
#define __shfl_sync(mask, ...) emulator::shuffle(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(mask, value, other, ...) emulator::shuffle(__LINE__, value, emulator::lane() ^ (other))
#define __shfl_down_sync(mask, ...) emulator::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(mask, ...) emulator::shuffle_up(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, predicate) emulator::ballot(predicate, __LINE__)

inline unsigned __cvta_generic_to_shared(const void* address) {
  return unsigned(static_cast<const char*>(address) - emulator::address_space);
}

// atomics race with nothing
template <typename T>
EMULATOR_UNSEEN T atomicAdd(T* address, T value) {
  T old = *address;
  *address = old + value;
  return old;
}
template <typename T>
EMULATOR_UNSEEN T atomicMax(T* address, T value) {
  T old = *address;
  if (value > old) *address = value;
  return old;
}
