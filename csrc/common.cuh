// What every kernel shares: the tables that drive a launch, access to memory, and sums in a fixed order.
//
// No #include, so NVRTC needs no headers, and a host compiler can build the same text once a header of its own stands
// in for the device (it defines CUDA_HOST). A program is this file, one of float32.cu and half.cu, and finish.cu, with
//
//   -DDTYPE=0|1|2       float32, bfloat16, float16: the type of the matrices and of the direction sets
//   -DDIRECTIONS=n      directions a set is padded to with zero rows: 4, 8, 16, 32, 64; for 16 bits a multiple of 16
//   -DDIFFERENCE=0|1    M = columns, or M = columns - before
//
// A direction set is stored twice, with the residual index contiguous, [DIRECTIONS][d_model], and with the direction
// contiguous, [d_model][DIRECTIONS]; whichever lets a warp read it in whole sectors is used.

typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

enum { THREADS = 256, WARPS = THREADS / 32, SUMS = 2 * DIRECTIONS + 1 };
enum { ALL_LANES = 0xffffffff };

// One matrix. Rows are rows in memory: a reader's [other][d_model], a writer's [d_model][other].
struct Matrix {
  u64 columns;     // address of the first element; overwritten where there is a mixing
  u64 before;      // address of the same before the step, with the same stride; 0 without DIFFERENCE
  u64 mixing;      // address of float T[DIRECTIONS][DIRECTIONS]; 0: only read
  i64 stride;      // elements from one row to the next
  int other;       // rows of a reader, columns of a writer
  int reads;       // number of the set that is projected on
  int adds;        // number of the set that the correction is added along
  int first_tile;  // where its tiles' sums begin
  int tiles;
  int unused;
};

struct alignas(16) Vector {  // 16 bytes of memory, as floats
#if DTYPE == 0
  float e[4];
#else
  float e[8];
#endif
};

#if DTYPE == 0
typedef float Element;
enum { LANES = 4 };
#else
typedef u16 Element;
enum { LANES = 8 };
#endif

// ---- memory --------------------------------------------------------------------------------------------------------
// An address from a table is 'generic' to the compiler, which then cannot use the wide global loads: say what it is.

template <class Word>
__device__ __forceinline__ Word load(const void *address) {
  __builtin_assume(__isGlobal(address));
  return *(const Word *)address;
}

template <class Word>
__device__ __forceinline__ void store(void *address, Word word) {
  __builtin_assume(__isGlobal(address));
  *(Word *)address = word;
}

// A tile is passed twice, the second time from its end: what was read last is what the L2 cache still has.
__device__ __forceinline__ int last_step(int first, int end, int step) {
  return first < end ? first + (end - 1 - first) / step * step : first - step;
}

__device__ __forceinline__ float *shared_floats() {
#ifdef CUDA_HOST
  return host_shared();
#else
  extern __shared__ float4 dynamic_shared[];
  return (float *)dynamic_shared;
#endif
}

// ---- 16-bit numbers, two to a word ---------------------------------------------------------------------------------

#if DTYPE != 0
__device__ __forceinline__ float2 unpack(u32 word) {
#if DTYPE == 1
  return make_float2(__uint_as_float(word << 16), __uint_as_float(word & 0xffff0000u));
#elif defined(CUDA_HOST)
  return make_float2(host_from_f16(word & 0xffff), host_from_f16(word >> 16));
#else
  float low, high;
  asm("{.reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h;}"
      : "=f"(low), "=f"(high) : "r"(word));
  return make_float2(low, high);
#endif
}

__device__ __forceinline__ u32 pack(float low, float high) {
#if defined(CUDA_HOST) && DTYPE == 1
  return host_to_bf16(low) | (u32)host_to_bf16(high) << 16;
#elif defined(CUDA_HOST)
  return host_to_f16(low) | (u32)host_to_f16(high) << 16;
#elif DTYPE == 1
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
#else
  u32 word;
  asm("{.reg .b16 l, h; cvt.rn.f16.f32 l, %1; cvt.rn.f16.f32 h, %2; mov.b32 %0, {l, h};}"
      : "=r"(word) : "f"(low), "f"(high));
  return word;
#endif
}
#endif

// ---- sums in a fixed order -----------------------------------------------------------------------------------------

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }

__device__ __forceinline__ bool finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }

// Coefficients of the block: every warp adds its own, one warp after the other, so that the order is always the same.
// `at(n)` is the place of a lane's n-th value.
template <int COUNT, class Place>
__device__ __forceinline__ void add_in_turn(float *coefficients, const float (&values)[COUNT], Place at) {
#pragma unroll 1
  for (int turn = 0; turn < WARPS; ++turn) {
    if (threadIdx.x / 32 == turn) {
#pragma unroll
      for (int n = 0; n < COUNT; ++n) {
        float *place = coefficients + at(n);
        *place = turn ? *place + values[n] : values[n];
      }
    }
    __syncthreads();
  }
}

// mixed = T P, or 0 for a column of M with a coefficient that is not finite. P(k, j) lies at [k * by_k + j * by_j].
template <int COUNT>
__device__ __forceinline__ void mix(const Matrix &m, const float *coefficients, float *mixed, int by_k, int by_j) {
  if (!m.mixing) return;
#pragma unroll 1
  for (int n = threadIdx.x; n < DIRECTIONS * COUNT; n += THREADS) {
    const int k = n / COUNT, j = n % COUNT;
    const float *row = (const float *)m.mixing + k * DIRECTIONS;
    bool whole = true;
    float sum = 0;
#pragma unroll 4
    for (int l = 0; l < DIRECTIONS; ++l) {
      const float p = coefficients[l * by_k + j * by_j];
      whole = whole && finite(p);
      sum += load<float>(row + l) * p;
    }
    mixed[k * by_k + j * by_j] = whole ? sum : 0.f;
  }
}

// The tile's energies, signed sums and total to global memory; also the barrier after which `mixed` is complete.
__device__ __forceinline__ void tile_sums(
    const float *coefficients, int by_k, int by_j, int count, float total, float *scratch, float *out) {
#pragma unroll
  for (int lane = 16; lane; lane >>= 1) total += __shfl_xor_sync(ALL_LANES, total, lane);
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x < DIRECTIONS) {
    float energy = 0, signed_sum = 0;
#pragma unroll 4
    for (int j = 0; j < count; ++j) {
      const float p = coefficients[threadIdx.x * by_k + j * by_j];
      energy += p * p;
      signed_sum += p;
    }
    store(out + threadIdx.x, energy);
    store(out + DIRECTIONS + threadIdx.x, signed_sum);
  }
  if (threadIdx.x == THREADS - 1) {
    float whole = 0;
    for (int warp = 0; warp < WARPS; ++warp) whole += scratch[warp];
    store(out + 2 * DIRECTIONS, whole);
  }
}

// The number in a kernel's name is its tile's extent across the residual axis. A block of THREADS takes one tile, and
// 32 + extent * (2 * DIRECTIONS + 1) floats of dynamic shared memory.
#define KERNEL(name, body)                                                                                        \
  extern "C" __global__ void __launch_bounds__(THREADS, 1) name(                                                     \
      const Matrix *matrices, const int2 *tiles, const Element *by_direction, const Element *by_residual,         \
      float *sums, int d_model) {                                                                                 \
    body(matrices, tiles, by_direction, by_residual, sums, d_model);                                              \
  }
