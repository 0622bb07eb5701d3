// Runs CUDA kernels on a CPU, for tests. Put before the kernels' source with `-include`; needs g++ 12, glibc:
//
//   g++ -std=c++17 -O2 -fPIC -shared -U_FORTIFY_SOURCE -x c++ -include cuda_host.h source.cu -o source.so
//
// Blocks run one after the other. Each thread of a block is a fiber that runs until it has to wait: at a barrier, at an
// exchange between the lanes of its warp, at its end. In a round, every thread that can run is resumed once, in the
// order that the launch asks for: where a barrier is missing, some order reads what has not been written yet.
//
// Beside what CUDA declares, a source finds the macro CUDA_HOST and the host_* functions below, which stand for what
// it can only write as PTX on a device. EMULATED_KERNEL(name) at the end of a source exports the launcher of a kernel.
//
// No error ends the process. The first one stops the launch, with a message that names block, thread and source line.

#pragma once
#define CUDA_HOST

#include <csetjmp>
#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <sys/mman.h>
#include <type_traits>
#include <ucontext.h>
#include <utility>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __restrict__ __restrict
#define __shared__ static thread_local  // one block runs at a time, on one thread of the host

struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(8) int2 { int x, y; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct uint3 { unsigned x, y, z; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

static thread_local uint3 threadIdx, blockIdx, blockDim, gridDim;  // set whenever a thread is resumed

namespace emulator {

constexpr int WARP = 32, MOST_THREADS = 1024;
constexpr size_t STACK = 256 << 10, PAGE = 4096;    // bytes of a fiber's stack; below it a page that may not be touched
constexpr size_t BELOW = 4 << 10, BEHIND = 64 << 10;  // guarded bytes around the dynamic shared memory
constexpr size_t NEAR = 256;                        // of those, the bytes on either side that are checked at every stop
constexpr unsigned char POISON = 0xff;              // four, or two, of these bytes are a NaN
constexpr unsigned ALL_LANES = 0xffffffff;

// ---- threads, warps and the block --------------------------------------------------------------------------------

struct Place {  // of a call in the source
  const char *call, *file;
  int line;
};

inline bool operator==(const Place &a, const Place &b) {
  const auto same = [](const char *p, const char *q) { return p == q || std::strcmp(p, q) == 0; };
  return a.line == b.line && same(a.call, b.call) && same(a.file, b.file);
}

enum class State { ready, at_barrier, in_exchange, ended };

struct Thread {
  ucontext_t start;
  jmp_buf stopped;
  bool started = false;
  State state;
  int index;
  Place place;     // where it stopped last
  void *operands;  // what it brings to an exchange; lies on its stack
  int lane() const { return index % WARP; }
};

struct Warp;
using Combine = void (*)(Warp &, unsigned mask);  // run once, when all lanes of the mask have put down their operands

struct Exchange {  // lanes that wait for the rest of their mask
  unsigned mask, arrived;
  Combine combine;
  Place place;
};

struct Warp {
  Thread *lanes;
  unsigned live;
  Exchange open[WARP];  // at most one a lane
  int count;

  template <class Operands>
  Operands &operands(int lane) const { return *static_cast<Operands *>(lanes[lane].operands); }
};

struct Settings {
  int grid, block, order;  // order: 0 ascending, 1 descending, 2 shuffled
  size_t shared_bytes;
  uint64_t seed;  // of the shuffles
};

// What one launch needs, from its first block to its last.
struct Machine {
  Settings settings;
  std::function<void()> kernel;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<unsigned char> memory;  // the dynamic shared memory and its guards
  unsigned char *shared, *stacks;
  Thread *running = nullptr;
  int live = 0, waiting = 0;  // threads that have not ended, and those of them at the barrier
  Place barrier;
  jmp_buf scheduler;
  bool failed = false;
  char message[1000] = "";

  Machine(const Settings &settings, std::function<void()> kernel)
      : settings(settings), kernel(std::move(kernel)), threads(settings.block),
        warps((settings.block + WARP - 1) / WARP), memory(BELOW + settings.shared_bytes + BEHIND + 128, POISON) {
    const uintptr_t lowest = reinterpret_cast<uintptr_t>(memory.data()) + BELOW;
    shared = reinterpret_cast<unsigned char *>((lowest + 127) / 128 * 128);
    const int kind = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void *pages = mmap(nullptr, stack_bytes(), PROT_READ | PROT_WRITE, kind, -1, 0);
    stacks = pages == MAP_FAILED ? nullptr : static_cast<unsigned char *>(pages);
    for (int t = 0; stacks && t < settings.block; ++t) mprotect(stacks + t * STACK, PAGE, PROT_NONE);
  }
  ~Machine() {
    if (stacks) munmap(stacks, stack_bytes());
  }
  Machine(const Machine &) = delete;
  size_t stack_bytes() const { return settings.block * STACK; }
};

static thread_local Machine *machine = nullptr;  // of the launch that is under way

// ---- errors ------------------------------------------------------------------------------------------------------

// Notes the first error of a launch. `thread` is null where it is not known which one it was.
__attribute__((format(printf, 3, 4)))
inline void report(const Thread *thread, const Place &place, const char *format, ...) {
  Machine &m = *machine;
  if (m.failed) return;
  m.failed = true;
  char who[40] = "";
  if (thread) std::snprintf(who, sizeof who, ", thread %d", thread->index);
  const int used = std::snprintf(
      m.message, sizeof m.message, "block %u%s, %s:%d (%s): ", blockIdx.x, who, place.file, place.line, place.call);
  va_list values;
  va_start(values, format);
  if (used < int(sizeof m.message)) std::vsnprintf(m.message + used, sizeof m.message - used, format, values);
  va_end(values);
}

// Reports an error from inside a thread, and stops the launch. The fibers are left as they are: kernels' variables need
// no destructors.
#define EMULATOR_FAIL(thread, place, ...) \
  (::emulator::report(thread, place, __VA_ARGS__), _longjmp(::emulator::machine->scheduler, 1))

// The first byte of `bytes` at `from` that is no longer poison, or -1.
inline ptrdiff_t first_written(const unsigned char *from, size_t bytes) {
  if (from[0] == POISON && std::memcmp(from, from + 1, bytes - 1) == 0) return -1;
  size_t at = 0;
  while (from[at] == POISON) ++at;
  return ptrdiff_t(at);
}

// Reports a write outside of the dynamic shared memory, up to `below` and `behind` bytes away.
inline void check_shared(const Thread *thread, const Place &place, const char *when, size_t below, size_t behind) {
  const Machine &m = *machine;
  const size_t size = m.settings.shared_bytes;
  ptrdiff_t at = first_written(m.shared + size, behind);
  if (at >= 0) {
    at += ptrdiff_t(size);
  } else {
    at = first_written(m.shared - below, below);
    if (at < 0) return;
    at -= ptrdiff_t(below);
  }
  report(thread, place, "%s, byte %td of %zu bytes of dynamic shared memory was written", when, at, size);
}

// ---- waiting -----------------------------------------------------------------------------------------------------

// Hands over to the scheduler; returns when it resumes this thread.
__attribute__((noinline)) inline void stop(const char *when) {
  Thread &me = *machine->running;
  check_shared(&me, me.place, when, NEAR, NEAR);
  if (_setjmp(me.stopped) == 0) _longjmp(machine->scheduler, 1);
}

inline void release_when_complete() {
  Machine &m = *machine;
  if (!m.waiting || m.waiting != m.live) return;
  for (Thread &thread : m.threads)
    if (thread.state == State::at_barrier) thread.state = State::ready;
  m.waiting = 0;
}

inline void wait_for_block(const Place &place) {
  Machine &m = *machine;
  Thread &me = *m.running;
  if (m.waiting && !(m.barrier == place))
    EMULATOR_FAIL(&me, place, "divergent barrier: %d of %d threads wait at %s:%d", m.waiting, m.live,
                  m.barrier.file, m.barrier.line);
  m.barrier = me.place = place;
  me.state = State::at_barrier;
  ++m.waiting;
  release_when_complete();
  stop("before this");
}

inline int lowest_lane(unsigned mask) { return __builtin_ctz(mask); }

// Puts down operands, waits for every lane of the mask, and returns when `combine` has seen them all.
inline void exchange(unsigned mask, void *operands, Combine combine, const Place &place) {
  Machine &m = *machine;
  Thread &me = *m.running;
  Warp &warp = m.warps[me.index / WARP];
  if (!(mask >> me.lane() & 1)) EMULATOR_FAIL(&me, place, "lane %d is not in its own mask 0x%08x", me.lane(), mask);
  if (const unsigned gone = mask & ~warp.live)
    EMULATOR_FAIL(&me, place, "mask 0x%08x names lane %d, which has ended or is not in the block", mask,
                  lowest_lane(gone));
  int number = 0;
  while (number < warp.count && warp.open[number].mask != mask) ++number;
  if (number == warp.count) warp.open[warp.count++] = {mask, 0, combine, place};
  Exchange &here = warp.open[number];
  if (!(here.place == place) || here.combine != combine)
    EMULATOR_FAIL(&me, place, "divergent warp: lane %d waits for this lane at %s:%d (%s)", lowest_lane(here.arrived),
                  here.place.file, here.place.line, here.place.call);
  me.place = place;
  me.operands = operands;
  me.state = State::in_exchange;
  here.arrived |= 1u << me.lane();
  if (here.arrived == mask) {
    combine(warp, mask);
    for (int lane = 0; lane < WARP; ++lane)
      if (mask >> lane & 1) warp.lanes[lane].state = State::ready;
    here = warp.open[--warp.count];
  }
  stop("before this");
}

inline void end() {
  Machine &m = *machine;
  Thread &me = *m.running;
  Warp &warp = m.warps[me.index / WARP];
  me.state = State::ended;
  warp.live &= ~(1u << me.lane());
  for (int number = 0; number < warp.count; ++number) {
    const Exchange &left = warp.open[number];
    if (left.mask >> me.lane() & 1)
      EMULATOR_FAIL(&me, left.place, "this thread has ended; lane %d waits here for it, with the mask 0x%08x",
                    lowest_lane(left.arrived), left.mask);
  }
  --m.live;
  release_when_complete();
  stop("after this");
}

// ---- the scheduler -----------------------------------------------------------------------------------------------

inline void run_thread() {  // a fiber serves every block of a launch
  for (;;) {
    machine->kernel();
    end();
  }
}

// Runs a thread until it stops. Whatever changes in between lives outside of this frame, as setjmp demands.
__attribute__((noinline)) inline void resume(Thread &thread) {
  Machine &m = *machine;
  m.running = &thread;
  threadIdx = {unsigned(thread.index), 0, 0};
  if (_setjmp(m.scheduler)) return;
  if (thread.started) _longjmp(thread.stopped, 1);
  thread.started = true;
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = m.stacks + thread.index * STACK + PAGE;
  thread.start.uc_stack.ss_size = STACK - PAGE;
  thread.start.uc_link = nullptr;
  makecontext(&thread.start, run_thread, 0);
  setcontext(&thread.start);
}

// Nobody can run: says where the first thread waits, and where the first one waits that waits elsewhere.
inline void report_deadlock() {
  const Thread *first = nullptr, *other = nullptr;
  int together = 0;
  for (const Thread &thread : machine->threads) {
    if (thread.state == State::ended) continue;
    if (!first) first = &thread;
    if (thread.place == first->place) ++together;
    else if (!other) other = &thread;
  }
  if (other)
    report(first, first->place, "deadlock: %d of %d threads wait here, and thread %d waits at %s:%d (%s)", together,
           machine->live, other->index, other->place.file, other->place.line, other->place.call);
  else
    report(first, first->place, "deadlock: all %d threads wait here, and their masks do not agree", together);
}

// Puts the numbers in the launch's order.
inline void arrange(std::vector<int> &numbers, const Settings &settings, uint64_t &random) {
  std::iota(numbers.begin(), numbers.end(), 0);
  if (settings.order == 1)
    for (int &number : numbers) number = int(numbers.size()) - 1 - number;
  if (settings.order == 2)
    for (size_t left = numbers.size(); left > 1; --left) {
      random = random * 6364136223846793005u + 1442695040888963407u;  // Knuth's linear congruential generator
      std::swap(numbers[left - 1], numbers[(random >> 33) % left]);
    }
}

inline void run_block(unsigned number, uint64_t &random) {
  Machine &m = *machine;
  blockIdx = {number, 0, 0};
  std::memset(m.shared, POISON, m.settings.shared_bytes);
  for (int t = 0; t < m.settings.block; ++t) {
    Thread &thread = m.threads[t];
    thread.index = t;
    thread.state = State::ready;
    thread.place = {"start of the thread", "kernel", 0};
  }
  for (size_t w = 0; w < m.warps.size(); ++w) {
    const int lanes = m.settings.block - int(w) * WARP;
    m.warps[w].lanes = &m.threads[w * WARP];
    m.warps[w].live = lanes >= WARP ? ALL_LANES : (1u << lanes) - 1;
    m.warps[w].count = 0;
  }
  m.live = m.settings.block;
  m.waiting = 0;
  m.barrier = {"end of the block", "kernel", 0};
  std::vector<int> numbers(m.settings.block);
  arrange(numbers, m.settings, random);
  while (m.live && !m.failed) {
    bool any = false;
    for (const int t : numbers) {
      if (m.threads[t].state != State::ready) continue;
      any = true;
      resume(m.threads[t]);
      if (m.failed) return;
    }
    if (!any) report_deadlock();
    if (m.settings.order == 2) arrange(numbers, m.settings, random);
  }
  if (!m.failed) check_shared(nullptr, m.barrier, "in a block whose last barrier is this", BELOW, BEHIND);
}

// ---- launches ----------------------------------------------------------------------------------------------------

struct Argument {
  const void *value;
  size_t size;
  char kind;  // as kind_of
};

template <class Parameter>
constexpr char kind_of() {
  if (std::is_pointer_v<Parameter>) return 'p';
  if (std::is_floating_point_v<Parameter>) return 'f';
  return std::is_integral_v<Parameter> ? 'i' : 's';  // s: a struct by value
}

template <class Parameter>
Parameter take(const Argument &argument) {
  std::remove_cv_t<Parameter> value;
  std::memcpy(&value, argument.value, sizeof value);
  return value;
}

inline bool run(const Settings &settings, std::function<void()> kernel, char *message, size_t capacity) {
  if (settings.block < 1 || settings.block > MOST_THREADS || settings.grid < 1) {
    std::snprintf(message, capacity, "a launch of %d blocks of %d threads; expected a block or more of 1 to %d threads",
                  settings.grid, settings.block, MOST_THREADS);
    return false;
  }
  Machine own(settings, std::move(kernel));
  if (!own.stacks) {
    std::snprintf(message, capacity, "no memory for the stacks of %d threads", settings.block);
    return false;
  }
  machine = &own;
  blockDim = {unsigned(settings.block), 1, 1};
  gridDim = {unsigned(settings.grid), 1, 1};
  uint64_t random = settings.seed;
  std::vector<int> blocks(settings.grid);
  arrange(blocks, settings, random);
  for (const int block : blocks) {
    run_block(unsigned(block), random);
    if (own.failed) break;
  }
  std::snprintf(message, capacity, "%s", own.message);
  machine = nullptr;
  return !own.failed;
}

template <class... Parameters, size_t... Number>
bool launch(void (*kernel)(Parameters...), std::index_sequence<Number...>, const Settings &settings,
            const Argument *arguments, size_t count, char *message, size_t capacity) {
  if (count != sizeof...(Parameters)) {
    std::snprintf(message, capacity, "%zu arguments for %zu parameters", count, sizeof...(Parameters));
    return false;
  }
  const Argument expected[] = {{nullptr, sizeof(Parameters), kind_of<Parameters>()}..., {}};
  for (size_t n = 0; n < count; ++n) {
    const bool address = expected[n].kind == 'p' && arguments[n].kind == 'i';
    if (arguments[n].size == expected[n].size && (arguments[n].kind == expected[n].kind || address)) continue;
    std::snprintf(message, capacity, "argument %zu has kind '%c' and %zu bytes, its parameter '%c' and %zu", n + 1,
                  arguments[n].kind, arguments[n].size, expected[n].kind, expected[n].size);
    return false;
  }
  return run(settings, [&] { kernel(take<Parameters>(arguments[Number])...); }, message, capacity);
}

template <class... Parameters>
bool launch(void (*kernel)(Parameters...), const Settings &settings, const Argument *arguments, size_t count,
            char *message, size_t capacity) {
  return launch(kernel, std::index_sequence_for<Parameters...>(), settings, arguments, count, message, capacity);
}

// ---- what lanes exchange -----------------------------------------------------------------------------------------

inline void nothing(Warp &, unsigned) {}

template <class T>
struct Shuffle {
  T value;
  int source;  // the lane that is read
  T received;
};

template <class T>
void deliver(Warp &warp, unsigned mask) {
  for (int lane = 0; lane < WARP; ++lane) {
    if (!(mask >> lane & 1)) continue;
    auto &reader = warp.operands<Shuffle<T>>(lane);
    if (!(mask >> reader.source & 1))
      EMULATOR_FAIL(&warp.lanes[lane], warp.lanes[lane].place, "lane %d reads lane %d, which is not in the mask 0x%08x",
                    lane, reader.source, mask);
    reader.received = warp.operands<Shuffle<T>>(reader.source).value;
  }
}

template <class T>
T shuffle(unsigned mask, T value, int source, const Place &place) {
  Shuffle<T> operands{value, source, value};
  exchange(mask, &operands, deliver<T>, place);
  return operands.received;
}

inline int own_lane() { return machine->running->lane(); }
inline int lane_or_own(int lane) { return lane >= 0 && lane < WARP ? lane : own_lane(); }

struct Ballot {
  bool vote;
  unsigned votes;
};

inline void count_votes(Warp &warp, unsigned mask) {
  unsigned votes = 0;
  for (int lane = 0; lane < WARP; ++lane)
    if (mask >> lane & 1) votes |= unsigned(warp.operands<Ballot>(lane).vote) << lane;
  for (int lane = 0; lane < WARP; ++lane)
    if (mask >> lane & 1) warp.operands<Ballot>(lane).votes = votes;
}

// C += A B for a warp: mma.sync.m16n8k16.row.col. Lane = 4 * g + t holds, two 16-bit numbers to a word (PTX ISA),
//
//   a[0..3]   A[g][2t..], A[g + 8][2t..], A[g][2t + 8..], A[g + 8][2t + 8..]
//   b[0..1]   B[2t..][g], B[2t + 8..][g]
//   c[0..3]   C[g][2t], C[g][2t + 1], C[g + 8][2t], C[g + 8][2t + 1]
//
// An element of C is summed in double and rounded once; a tensor core's own rounding is not documented.
struct Mma {
  float (&c)[4];
  const unsigned (&a)[4], (&b)[2];
};

template <float (*decode)(unsigned short)>
void multiply(Warp &warp, unsigned) {
  double A[16][16], B[16][8];
  for (int lane = 0; lane < WARP; ++lane) {
    const Mma &own = warp.operands<Mma>(lane);
    const int g = lane / 4, t = lane % 4;
    for (int half = 0; half < 2; ++half) {
      const auto number = [&](unsigned word) { return decode((unsigned short)(word >> 16 * half)); };
      for (int n = 0; n < 4; ++n) A[g + 8 * (n % 2)][2 * t + 8 * (n / 2) + half] = number(own.a[n]);
      for (int n = 0; n < 2; ++n) B[2 * t + 8 * n + half][g] = number(own.b[n]);
    }
  }
  for (int lane = 0; lane < WARP; ++lane) {
    Mma &own = warp.operands<Mma>(lane);
    for (int n = 0; n < 4; ++n) {
      const int row = lane / 4 + 8 * (n / 2), column = 2 * (lane % 4) + n % 2;
      double sum = own.c[n];
      for (int k = 0; k < 16; ++k) sum += A[row][k] * B[k][column];
      own.c[n] = float(sum);
    }
  }
}

inline bool is_global(const void *address) {
  const unsigned char *byte = static_cast<const unsigned char *>(address), *shared = machine->shared;
  return byte < shared || byte >= shared + machine->settings.shared_bytes;
}

inline void assume(bool holds, const char *condition, const char *file, int line) {
  if (!holds) EMULATOR_FAIL(machine->running, (Place{"__builtin_assume", file, line}), "%s does not hold", condition);
}

}  // namespace emulator

// ---- what CUDA declares ------------------------------------------------------------------------------------------
// The last two parameters are the place of the call: never given.

#define EMULATOR_CALL_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(EMULATOR_CALL_SITE) { emulator::wait_for_block({"__syncthreads", file, line}); }

inline void __syncwarp(unsigned mask = emulator::ALL_LANES, EMULATOR_CALL_SITE) {
  emulator::exchange(mask, nullptr, emulator::nothing, {"__syncwarp", file, line});
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, EMULATOR_CALL_SITE) {
  return emulator::shuffle(mask, value, source & (emulator::WARP - 1), {"__shfl_sync", file, line});
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int bits, EMULATOR_CALL_SITE) {
  const int source = emulator::lane_or_own(emulator::own_lane() ^ bits);
  return emulator::shuffle(mask, value, source, {"__shfl_xor_sync", file, line});
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, EMULATOR_CALL_SITE) {
  const int source = emulator::lane_or_own(emulator::own_lane() + int(delta));
  return emulator::shuffle(mask, value, source, {"__shfl_down_sync", file, line});
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, EMULATOR_CALL_SITE) {
  const int source = emulator::lane_or_own(emulator::own_lane() - int(delta));
  return emulator::shuffle(mask, value, source, {"__shfl_up_sync", file, line});
}

inline unsigned __ballot_sync(unsigned mask, int predicate, EMULATOR_CALL_SITE) {
  emulator::Ballot operands{predicate != 0, 0};
  emulator::exchange(mask, &operands, emulator::count_votes, {"__ballot_sync", file, line});
  return operands.votes;
}

template <class T>
T __ldg(const T *address) { return *address; }

inline unsigned __float_as_uint(float number) {
  unsigned bits;
  std::memcpy(&bits, &number, sizeof bits);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float number;
  std::memcpy(&number, &bits, sizeof number);
  return number;
}

// A device takes an assumption on trust; here it is checked. Of the address spaces only the dynamic shared memory is
// told apart.
#define __isGlobal(address) (::emulator::is_global(address))
#define __builtin_assume(condition) (::emulator::assume((condition), #condition, __FILE__, __LINE__))

// ---- what a source can only write as PTX on a device -------------------------------------------------------------

inline float *host_shared() { return reinterpret_cast<float *>(emulator::machine->shared); }  // aligned to 128 bytes

inline float host_from_bf16(unsigned short bits) { return __uint_as_float(unsigned(bits) << 16); }

inline unsigned short host_to_bf16(float number) {
  if (std::isnan(number)) return 0x7fff;  // what cvt.rn gives
  const unsigned bits = __float_as_uint(number);
  return (unsigned short)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float host_from_f16(unsigned short bits) {
  _Float16 number;
  std::memcpy(&number, &bits, sizeof number);
  return float(number);
}

inline unsigned short host_to_f16(float number) {
  const _Float16 rounded = _Float16(number);
  unsigned short bits;
  std::memcpy(&bits, &rounded, sizeof bits);
  return bits;
}

inline void host_mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_CALL_SITE) {
  emulator::Mma operands{c, a, b};
  emulator::exchange(emulator::ALL_LANES, &operands, emulator::multiply<host_from_bf16>, {"host_mma_bf16", file, line});
}

inline void host_mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMULATOR_CALL_SITE) {
  emulator::Mma operands{c, a, b};
  emulator::exchange(emulator::ALL_LANES, &operands, emulator::multiply<host_from_f16>, {"host_mma_f16", file, line});
}

#define EMULATED_KERNEL(name)                                                                                       \
  extern "C" __attribute__((visibility("default"))) bool emulated_##name(                                           \
      const emulator::Settings *settings, const emulator::Argument *arguments, size_t count, char *message,         \
      size_t capacity) {                                                                                            \
    return emulator::launch(name, *settings, arguments, count, message, capacity);                                  \
  }
