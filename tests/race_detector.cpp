// SPDX-License-Identifier: Apache-2.0
// Which accesses of a CUDA program, run by the emulator, have no order on a GPU.
//
// g++ calls a function before each access of a program that it compiles for its thread sanitizer; these are ours. For
// every byte it is known who wrote and who read it last and when, so a conflict is found in whatever order the threads
// ran. Time is counted in barriers: an epoch lies between two barriers of a block, and every block has epochs of its own;
// within it, a warp counts its own barriers.
//
// An access is looked at when the next one comes: only then a written value can be seen. One that changes nothing is
// told apart, since threads that all write one value do no harm.
#include "race_detector.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <map>
#include <tuple>
#include <vector>

namespace races {
namespace {

constexpr int kWarp = 32, kMaxThreads = 1024, kNobody = 0xffff;
constexpr size_t kPage = 4096, kLargest = 64;

struct Moment {
  uint16_t thread, warp_time;
};

// of a warp that read a byte: its last reader, and whether others of it read at the same time
struct Reader {
  Moment at;
  bool others;
};

// what is known of a byte; epoch 0 is never
struct Cell {
  uint32_t written, changed, read, first_read, copied;  // epochs; `copied`: of the start of a copy under way
  uint32_t write_line, read_line;                       // addresses of code
  Moment writer, changer;
  uint16_t copier;
  Reader readers[2];  // of different warps: so one is not the writer's, however many have read
};

struct Array {
  const char* data;
  size_t size;
  const char* name;
  bool shared, given = false, known = false;  // `known`: holds something, whoever wrote it
  Cell* cells;
};

enum Kind {
  kWriteWrite,
  kReadWrite,
  kSameValue,
  kReadsCopy,
  kWritesCopy,
  kUnwritten,
  kBlocksWrite,
  kBlocksReadWrite,
  kBlocksSameValue,
  kWritesInput
};
const char* const kWords[] = {"write-write", "read-write",  "same value",         "read of a copy under way",
                              "write over a copy under way", "read of what nobody wrote", "written by two blocks",
                              "written by a block, read by another", "same value by two blocks", "write to an input"};

struct Finding {
  long bytes = 0;
  long block, offset;
  int thread, other;
};

// before the program's own variables, which are arrays
#define FIRST __attribute__((init_priority(101)))
const char* base;
std::vector<Array*> arrays FIRST;
std::vector<uint16_t> array_of_page FIRST;  // its number + 1
bool running = false;
uint32_t epoch = 0, kernel_epoch, block_epoch;
long block;
int thread;
uint16_t warp_times[kMaxThreads];
std::map<std::tuple<Kind, const char*, uint32_t, uint32_t>, Finding> findings FIRST;

// the write that has been announced, and what was there before
struct Write {
  Array* array = nullptr;
  size_t offset, size;
  uint32_t line;
  char before[kLargest];
} announced;

void find(Kind kind, const Array& array, size_t offset, int other, uint32_t line, uint32_t other_line) {
  Finding& finding = findings[{kind, array.name, line, other_line}];
  if (finding.bytes++ == 0)
    finding.block = block, finding.offset = offset, finding.thread = thread, finding.other = other;
}

// whether no barrier lies between a moment of this epoch and now
bool unordered(Moment then) {
  if (then.thread == thread) return false;
  return then.thread / kWarp != thread / kWarp || then.warp_time == warp_times[thread];
}

bool unordered(const Reader& reader) {
  if (reader.at.thread == kNobody) return false;
  return unordered(reader.at) || (reader.others && reader.at.warp_time == warp_times[thread] &&
                                  reader.at.thread / kWarp == thread / kWarp);
}

bool by_another_block(uint32_t then) { return then >= kernel_epoch && then < block_epoch; }

void write_byte(Array& array, size_t offset, uint32_t line, bool changes) {
  Cell& cell = array.cells[offset];
  if (array.given) return find(kWritesInput, array, offset, kNobody, line, 0);
  if (cell.copied >= block_epoch) find(kWritesCopy, array, offset, cell.copier, line, cell.write_line);
  if (!array.shared) {
    if (by_another_block(cell.written))
      find(changes ? kBlocksWrite : kBlocksSameValue, array, offset, kNobody, line, cell.write_line);
    if (by_another_block(cell.first_read))
      find(changes ? kBlocksReadWrite : kBlocksSameValue, array, offset, kNobody, line, cell.read_line);
  }
  if (cell.written == epoch && unordered(cell.writer))
    find(changes ? kWriteWrite : kSameValue, array, offset, cell.writer.thread, line, cell.write_line);
  if (cell.read == epoch)
    for (const Reader& reader : cell.readers)
      if (unordered(reader))
        find(changes ? kReadWrite : kSameValue, array, offset, reader.at.thread, line, cell.read_line);
  cell.written = epoch, cell.write_line = line;
  cell.writer = {uint16_t(thread), warp_times[thread]};
  if (changes) cell.changed = epoch, cell.changer = cell.writer;
}

void read_byte(Array& array, size_t offset, uint32_t line) {
  if (array.given) return;
  Cell& cell = array.cells[offset];
  if (cell.copied >= block_epoch) find(kReadsCopy, array, offset, cell.copier, line, cell.write_line);
  else if (array.shared ? cell.written < block_epoch : !cell.written && !array.known)
    find(kUnwritten, array, offset, kNobody, line, 0);
  if (!array.shared && by_another_block(cell.written))
    find(kBlocksReadWrite, array, offset, kNobody, line, cell.write_line);
  if (cell.written == epoch && unordered(cell.writer)) {
    bool seen = cell.changed == epoch && unordered(cell.changer);
    find(seen ? kReadWrite : kSameValue, array, offset, cell.writer.thread, line, cell.write_line);
  }

  Reader me = {{uint16_t(thread), warp_times[thread]}, false};
  if (cell.read != epoch) cell.readers[0].at.thread = cell.readers[1].at.thread = kNobody;
  for (Reader& reader : cell.readers) {
    if (reader.at.thread == kNobody) {
      reader = me;
      break;
    }
    if (reader.at.thread / kWarp == thread / kWarp) {
      me.others = reader.at.warp_time == me.at.warp_time && (reader.others || reader.at.thread != thread);
      reader = me;
      break;
    }
  }
  cell.read = epoch, cell.read_line = line;
  if (cell.first_read < kernel_epoch) cell.first_read = epoch;
}

void look_at_write() {
  if (!announced.array) return;
  Array& array = *announced.array;
  announced.array = nullptr;
  for (size_t i = 0; i < announced.size; i++) {
    size_t offset = announced.offset + i;
    write_byte(array, offset, announced.line, array.data[offset] != announced.before[i]);
  }
}

Array* array_at(const void* address) {
  size_t page = (static_cast<const char*>(address) - base) / kPage;  // a huge number below the base
  return page < array_of_page.size() && array_of_page[page] ? arrays[array_of_page[page] - 1] : nullptr;
}

void access(const void* address, size_t size, bool writes, uint32_t line) {
  if (!running) return;
  look_at_write();
  Array* array = array_at(address);
  if (!array) return;
  size_t offset = static_cast<const char*>(address) - array->data;
  if (offset >= array->size || array->size - offset < size) return;  // the emulator finds it
  if (!writes) {
    for (size_t i = 0; i < size; i++) read_byte(*array, offset + i, line);
    return;
  }
  if (size > kLargest) {
    fprintf(stderr, "the race detector knows no write of this many bytes: %zu\n", size);
    _exit(4);
  }
  announced.array = array, announced.offset = offset, announced.size = size, announced.line = line;
  memcpy(announced.before, address, size);
}

// `line` is a line of the program, or the address of code that g++ made of one; no address is as small
void access_by_code(const void* address, size_t size, bool writes, void* code) {
  access(address, size, writes, uint32_t(reinterpret_cast<uintptr_t>(code)));
}

}  // namespace

void address_space(const char* first, size_t size) { base = first, array_of_page.resize(size / kPage); }

void declare(const char* data, size_t size, const char* name, bool shared) {
  Array* array = new Array{data, size, name, shared};
  constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;  // only pages that are touched take memory
  void* cells = mmap(nullptr, size * sizeof(Cell) + 1, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (cells == MAP_FAILED) perror("race detector"), _exit(4);
  array->cells = static_cast<Cell*>(cells);
  arrays.push_back(array);
  for (size_t page = (data - base) / kPage; page <= (data + size - base) / kPage; page++)
    array_of_page[page] = uint16_t(arrays.size());
}

void given(const char* data) { array_at(data)->given = true; }

void kernel_begins() { kernel_epoch = epoch + 1; }

void kernel_ends(bool whole) {
  for (Array* array : arrays) array->known |= !whole;
}

void block_begins(long number) {
  block = number, block_epoch = ++epoch, running = true;
  memset(warp_times, 0, sizeof warp_times);
}

void block_ends() {
  look_at_write();
  running = false;
}

void thread_runs(int number) {
  look_at_write();
  thread = number;
}

void block_barrier() {
  look_at_write();
  epoch++;
  memset(warp_times, 0, sizeof warp_times);
}

void warp_barrier() {
  look_at_write();
  warp_times[thread]++;
}

void reads(const void* address, size_t bytes, int line) { access(address, bytes, false, uint32_t(line)); }

void copy_begins(const void* destination, size_t bytes, int line) {
  look_at_write();
  Array* array = array_at(destination);
  size_t offset = static_cast<const char*>(destination) - array->data;
  for (size_t i = 0; i < bytes; i++) {
    write_byte(*array, offset + i, uint32_t(line), true);
    array->cells[offset + i].copied = epoch, array->cells[offset + i].copier = uint16_t(thread);
  }
}

void copy_lands(const void* destination, size_t bytes) {
  look_at_write();
  Array* array = array_at(destination);
  size_t offset = static_cast<const char*>(destination) - array->data;
  for (size_t i = 0; i < bytes; i++) {
    Cell& cell = array->cells[offset + i];
    cell.copied = 0, cell.written = cell.changed = epoch;
    cell.writer = cell.changer = {uint16_t(thread), warp_times[thread]};
  }
}

// a line a finding, its fields between tabs: what, where, bytes, two lines, the first block, threads, byte
void report() {
  for (const auto& [key, finding] : findings) {
    const auto& [kind, name, line, other_line] = key;
    printf("%s\t%s\t%ld\t%x\t%x\t%ld\t%d\t%d\t%ld\n", kWords[kind], name, finding.bytes, line, other_line, finding.block,
           finding.thread, finding.other == kNobody ? -1 : finding.other, finding.offset);
  }
}

}  // namespace races

extern "C" {
#define ACCESSES(bytes)                                                                                               \
  void __tsan_read##bytes(void* a) { races::access_by_code(a, bytes, false, __builtin_return_address(0)); }           \
  void __tsan_write##bytes(void* a) { races::access_by_code(a, bytes, true, __builtin_return_address(0)); }           \
  void __tsan_unaligned_read##bytes(void* a) { races::access_by_code(a, bytes, false, __builtin_return_address(0)); } \
  void __tsan_unaligned_write##bytes(void* a) { races::access_by_code(a, bytes, true, __builtin_return_address(0)); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* a, size_t bytes) { races::access_by_code(a, bytes, false, __builtin_return_address(0)); }
void __tsan_write_range(void* a, size_t bytes) { races::access_by_code(a, bytes, true, __builtin_return_address(0)); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
}
