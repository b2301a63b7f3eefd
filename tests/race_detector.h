// SPDX-License-Identifier: Apache-2.0
// What the emulator tells the race detector; nothing where a program is built without it.
#pragma once
#include <stddef.h>

namespace races {

#ifdef DETECT_RACES
#define EMULATOR_TELLS(declaration) declaration;
#else
#define EMULATOR_TELLS(declaration) inline declaration {}
#endif

EMULATOR_TELLS(void address_space(const char* first, size_t size))
// an array of global memory, or one that the threads of a block share
EMULATOR_TELLS(void declare(const char* data, size_t size, const char* name, bool shared))
// an array that the program was given: kernels may only read it
EMULATOR_TELLS(void given(const char* data))
EMULATOR_TELLS(void kernel_begins())
// `whole`: all its blocks have run
EMULATOR_TELLS(void kernel_ends(bool whole))
EMULATOR_TELLS(void block_begins(long number))
EMULATOR_TELLS(void block_ends())
EMULATOR_TELLS(void thread_runs(int number))
EMULATOR_TELLS(void block_barrier())
EMULATOR_TELLS(void warp_barrier())
// what an instruction on line `line` reads, other than by a variable
EMULATOR_TELLS(void reads(const void* address, size_t bytes, int line))
// an asynchronous copy of the thread that runs
EMULATOR_TELLS(void copy_begins(const void* destination, size_t bytes, int line))
EMULATOR_TELLS(void copy_lands(const void* destination, size_t bytes))
EMULATOR_TELLS(void report())

#undef EMULATOR_TELLS

// of a function of the emulator that tells what it accesses
#define EMULATOR_UNSEEN __attribute__((no_sanitize("thread")))

}  // namespace races
