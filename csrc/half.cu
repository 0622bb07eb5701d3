// bfloat16 and float16 matrices on the tensor cores: project, measure, steer, in one pass over device memory.
//
//   P = D M                          coefficients of a tile: exact products, summed in float32
//   columns += D'^T T P              where the matrix has a mixing T and the column's coefficients are finite
//   sums    = sum_j P_kj^2, sum_j P_kj, ||M||^2
//
// M is `columns`, or `columns - before` rounded to 16 bits, which is exact where a step moves an element by less than
// half of it. The directions *are* their 16-bit rounding: whoever makes T takes the Gram matrix of the rounded rows.
// T P is split into a leading and a trailing 16-bit part, so that what is left of a removed component is the rounding
// of the output and not of the correction.
//
// mma.sync m16n8k16 leaves the order of the summed index free, so long as both factors agree. It is chosen such that
// what a lane needs of a row of the matrix is one run of contiguous elements, in both products: no staging, no
// transposition, and the lane that projects an element also writes it. Lane = 4 * quad + t.
//
// Bytes moved: 2 an element read, 2 more with `before`, 2 written; per tile the direction set once or twice, from L2.
// Needs 16-byte aligned bases and strides; d_model a multiple of 32 (readers) or 16 (writers), `other` of 8 (writers).

__device__ __forceinline__ void mma(float (&c)[4], const u32 (&a)[4], const u32 (&b)[2]) {
#if defined(CUDA_HOST) && DTYPE == 1
  host_mma_bf16(c, a, b);
#elif defined(CUDA_HOST)
  host_mma_f16(c, a, b);
#elif DTYPE == 1
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
               : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// WORDS 32-bit words of a row: what a lane holds of it.
template <int WORDS>
struct alignas(4 * WORDS) Run {
  u32 word[WORDS];
};

// What is never written: the compiler need not keep its loads behind the stores.
template <int WORDS>
__device__ __forceinline__ Run<WORDS> load_direction(const Element *address) {
#ifdef CUDA_HOST
  return load<Run<WORDS>>(address);
#else
  Run<WORDS> run;
  if constexpr (WORDS == 4)
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
        : "=r"(run.word[0]), "=r"(run.word[1]), "=r"(run.word[2]), "=r"(run.word[3]) : "l"(address));
  else
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(run.word[0]), "=r"(run.word[1]) : "l"(address));
  return run;
#endif
}

template <int WORDS>
__device__ __forceinline__ Run<WORDS> load_value(const Matrix &m, i64 offset) {
  Run<WORDS> value = load<Run<WORDS>>((const Element *)m.columns + offset);
#if DIFFERENCE
  const Run<WORDS> before = load<Run<WORDS>>((const Element *)m.before + offset);
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
    const float2 now = unpack(value.word[w]), then = unpack(before.word[w]);
    value.word[w] = pack(now.x - then.x, now.y - then.y);
  }
#endif
  return value;
}

template <int WORDS>
__device__ __forceinline__ float squares(const Run<WORDS> &run) {
  float sum = 0;
#pragma unroll
  for (int w = 0; w < WORDS; ++w) {
    const float2 pair = unpack(run.word[w]);
    sum += pair.x * pair.x + pair.y * pair.y;
  }
  return sum;
}

// float16 has little room: the power of two that brings the T P of each column of the tile to between 1 and 2 is taken
// out before it is rounded to 16 bits and put back into the float32 sum. bfloat16 has all of float32's room.
template <int COUNT>
__device__ __forceinline__ void take_out_scales(const float *mixed, int by_k, int by_j, float *scales) {
#if DTYPE == 2
  if (threadIdx.x < COUNT) {
    float most = 0;
#pragma unroll 4
    for (int k = 0; k < DIRECTIONS; ++k) {
      const float size = __uint_as_float(__float_as_uint(mixed[k * by_k + threadIdx.x * by_j]) & 0x7fffffffu);
      most = size > most ? size : most;
    }
    const float power = __uint_as_float(__float_as_uint(most) & 0x7f800000u);
    scales[threadIdx.x] = power > 1e-30f && power < 1e30f ? power : 1.f;
  }
  __syncthreads();
#endif
}

__device__ __forceinline__ float scale_of(const float *scales, int column) {
#if DTYPE == 2
  return scales[column];
#else
  return 1.f;
#endif
}

// Two floats as leading and trailing 16-bit parts.
__device__ __forceinline__ void split(float first, float second, u32 &leading, u32 &trailing) {
  leading = pack(first, second);
  const float2 kept = unpack(leading);
  trailing = pack(first - kept.x, second - kept.y);
}

// Readers: a tile is 16 * TILES rows of M^T, [other][d_model]. Every warp takes 32 of every 256 elements of d_model.
template <int TILES>
__device__ __forceinline__ void readers(
    const Matrix *matrices, const int2 *tiles, const Element *by_direction, const Element *by_residual, float *sums,
    int d_model) {
  enum { ROWS = 16 * TILES, EIGHTS = DIRECTIONS / 8, SIXTEENS = DIRECTIONS / 16 };
  enum { STRIDE = WARPS * 32, AT_ONCE = TILES < 3 ? 4 : 1 };  // what is asked for before the first of it is used
  float *scratch = shared_floats(), *coefficients = scratch + 32, *mixed = coefficients + ROWS * DIRECTIONS;
  float *scales = mixed + ROWS * DIRECTIONS;
  const int2 tile = tiles[blockIdx.x];
  const Matrix m = matrices[tile.x];
  const int rows = smaller(m.other - tile.y * ROWS, ROWS);
  const int warp = threadIdx.x / 32, quad = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const i64 corner = (i64)tile.y * ROWS * m.stride;
  const Element *reads = by_direction + (i64)m.reads * DIRECTIONS * d_model;
  const Element *adds = by_residual + (i64)m.adds * DIRECTIONS * d_model;

  // P: rows of the mma are rows of the tile, its columns directions; a lane holds elements 8t..8t+7 of rows quad, +8.
  float partial[TILES][EIGHTS][4] = {}, total = 0;
  for (int first = warp * 32 + 8 * t; first < d_model; first += STRIDE * AT_ONCE) {
    Run<4> value[AT_ONCE][TILES][2];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
#pragma unroll
      for (int r = 0; r < TILES; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int i = first + n * STRIDE, row = 16 * r + 8 * half + quad;
          value[n][r][half] = i < d_model && row < rows ? load_value<4>(m, corner + row * m.stride + i) : Run<4>{};
        }
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      const int i = first + n * STRIDE;
      if (i >= d_model) break;  // the same for all lanes, as d_model is a multiple of 32
#pragma unroll
      for (int r = 0; r < TILES; ++r) total += squares(value[n][r][0]) + squares(value[n][r][1]);
#pragma unroll
      for (int k = 0; k < EIGHTS; ++k) {
        const Run<4> direction = load_direction<4>(reads + (i64)(8 * k + quad) * d_model + i);
#pragma unroll
        for (int r = 0; r < TILES; ++r) {
          const Run<4> &upper = value[n][r][0], &lower = value[n][r][1];
#pragma unroll
          for (int w = 0; w < 4; w += 2)
            mma(partial[r][k], {upper.word[w], lower.word[w], upper.word[w + 1], lower.word[w + 1]},
                {direction.word[w], direction.word[w + 1]});
        }
      }
    }
  }
  add_in_turn(coefficients, (const float(&)[TILES * EIGHTS * 4])partial, [&](int n) {
    const int r = n / (4 * EIGHTS), k = n / 4 % EIGHTS, e = n % 4;
    return (16 * r + quad + 8 * (e / 2)) * DIRECTIONS + 8 * k + 2 * t + e % 2;
  });
  mix<ROWS>(m, coefficients, mixed, 1, DIRECTIONS);
  tile_sums(coefficients, 1, DIRECTIONS, rows, total, scratch, sums + (i64)(m.first_tile + tile.y) * SUMS);
  if (!m.mixing) return;
  take_out_scales<ROWS>(mixed, 1, DIRECTIONS, scales);

  // The correction: the summed index is the direction; a lane holds directions 4t..4t+3 of each sixteen.
  u32 leading[TILES][SIXTEENS][4], trailing[TILES][SIXTEENS][4];
#pragma unroll
  for (int r = 0; r < TILES; ++r)
#pragma unroll
    for (int s = 0; s < SIXTEENS; ++s)
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const int row = 16 * r + quad + 8 * (f % 2);
        const float *pair = mixed + row * DIRECTIONS + 16 * s + 4 * t + 2 * (f / 2);
        const float scale = 1 / scale_of(scales, row);
        split(pair[0] * scale, pair[1] * scale, leading[r][s][f], trailing[r][s][f]);
      }
  for (int first = last_step(warp * 32, d_model, STRIDE * AT_ONCE); first >= 0; first -= STRIDE * AT_ONCE) {
    Element *place = (Element *)m.columns + corner + first + 8 * t;
    Run<4> steered[AT_ONCE][TILES][2];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
#pragma unroll
      for (int r = 0; r < TILES; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * r + 8 * half + quad;
          const bool here = first + n * STRIDE < d_model && row < rows;
          steered[n][r][half] = here ? load<Run<4>>(place + n * STRIDE + row * m.stride) : Run<4>{};
        }
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      if (first + n * STRIDE >= d_model) break;
#pragma unroll
      for (int w = 0; w < 4; ++w) {  // the mma's eight columns are word w of the four lanes t
        const int i = first + n * STRIDE + 8 * (quad / 2) + 2 * w + quad % 2;
        Run<2> direction[SIXTEENS];
#pragma unroll
        for (int s = 0; s < SIXTEENS; ++s) direction[s] = load_direction<2>(adds + (i64)i * DIRECTIONS + 16 * s + 4 * t);
#pragma unroll
        for (int r = 0; r < TILES; ++r) {
          float sum[4] = {};
#pragma unroll
          for (int s = 0; s < SIXTEENS; ++s) {
            mma(sum, leading[r][s], direction[s].word);
            mma(sum, trailing[r][s], direction[s].word);
          }
#pragma unroll
          for (int half = 0; half < 2; ++half) {
            u32 &word = steered[n][r][half].word[w];
            const float2 old = unpack(word);
            const float scale = scale_of(scales, 16 * r + 8 * half + quad);
            word = pack(old.x + scale * sum[2 * half], old.y + scale * sum[2 * half + 1]);
          }
        }
      }
#pragma unroll
      for (int r = 0; r < TILES; ++r)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = 16 * r + 8 * half + quad;
          if (row < rows) store(place + n * STRIDE + row * m.stride, steered[n][r][half]);
        }
    }
  }
}

// Writers: a tile is 16 * WORDS columns of M, [d_model][other]. Every warp takes 16 of every 128 rows of d_model; a lane
// holds 2 * WORDS columns of rows 4t..4t+3.
template <int WORDS>
__device__ __forceinline__ void writers(
    const Matrix *matrices, const int2 *tiles, const Element *by_direction, const Element *by_residual, float *sums,
    int d_model) {
  enum { COLUMNS = 16 * WORDS, WIDTH = 2 * WORDS, SIXTEENS = DIRECTIONS / 16 };
  enum { STRIDE = WARPS * 16, AT_ONCE = WORDS == 4 ? 1 : WORDS == 2 && DIRECTIONS == 16 ? 8 : 4 };
  float *scratch = shared_floats(), *coefficients = scratch + 32, *mixed = coefficients + COLUMNS * DIRECTIONS;
  float *scales = mixed + COLUMNS * DIRECTIONS;
  const int2 tile = tiles[blockIdx.x];
  const Matrix m = matrices[tile.x];
  const int columns = smaller(m.other - tile.y * COLUMNS, COLUMNS);
  const int warp = threadIdx.x / 32, quad = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
  const bool on = WIDTH * quad < columns;
  const i64 corner = (i64)tile.y * COLUMNS + WIDTH * quad;
  const Element *reads = by_direction + (i64)m.reads * DIRECTIONS * d_model;
  const Element *adds = by_residual + (i64)m.adds * DIRECTIONS * d_model;

  // P: rows of the mma are directions, its eight columns column c of the eight quads' runs.
  float partial[SIXTEENS][WIDTH][4] = {}, total = 0;
  for (int first = warp * 16 + 4 * t; first < d_model; first += STRIDE * AT_ONCE) {
    Run<WORDS> value[AT_ONCE][4];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        const int i = first + n * STRIDE + r;
        value[n][r] = on && i < d_model ? load_value<WORDS>(m, corner + i * m.stride) : Run<WORDS>{};
      }
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      const int i = first + n * STRIDE;
      if (i >= d_model) break;  // the same for all lanes, as d_model is a multiple of 16
#pragma unroll
      for (int r = 0; r < 4; ++r) total += squares(value[n][r]);
#pragma unroll
      for (int s = 0; s < SIXTEENS; ++s) {
        const Run<2> upper = load_direction<2>(reads + (i64)(16 * s + quad) * d_model + i);
        const Run<2> lower = load_direction<2>(reads + (i64)(16 * s + 8 + quad) * d_model + i);
#pragma unroll
        for (int c = 0; c < WIDTH; ++c) {
          u32 pair[2];  // column c of two rows each
#pragma unroll
          for (int p = 0; p < 2; ++p) {
            const u32 even = value[n][2 * p].word[c / 2], odd = value[n][2 * p + 1].word[c / 2];
            pair[p] = c % 2 ? (even >> 16) | (odd & 0xffff0000u) : (even & 0xffffu) | (odd << 16);
          }
          mma(partial[s][c], {upper.word[0], lower.word[0], upper.word[1], lower.word[1]}, pair);
        }
      }
    }
  }
  add_in_turn(coefficients, (const float(&)[SIXTEENS * WIDTH * 4])partial, [&](int place) {
    const int s = place / (4 * WIDTH), c = place / 4 % WIDTH, e = place % 4;
    return (16 * s + quad + 8 * (e / 2)) * COLUMNS + WIDTH * (2 * t + e % 2) + c;
  });
  mix<COLUMNS>(m, coefficients, mixed, COLUMNS, 1);
  tile_sums(coefficients, COLUMNS, 1, columns, total, scratch, sums + (i64)(m.first_tile + tile.y) * SUMS);
  if (!m.mixing) return;
  take_out_scales<COLUMNS>(mixed, COLUMNS, 1, scales);

  // The correction: rows of the mma are columns of the tile, its eight columns rows of d_model.
  u32 leading[WORDS][SIXTEENS][4], trailing[WORDS][SIXTEENS][4];
#pragma unroll
  for (int w = 0; w < WORDS; ++w)
#pragma unroll
    for (int s = 0; s < SIXTEENS; ++s)
#pragma unroll
      for (int f = 0; f < 4; ++f) {
        const int column = WIDTH * quad + 2 * w + f % 2;
        const float *pair = mixed + (16 * s + 4 * t + 2 * (f / 2)) * COLUMNS + column;
        const float scale = 1 / scale_of(scales, column);
        split(pair[0] * scale, pair[COLUMNS] * scale, leading[w][s][f], trailing[w][s][f]);
      }
  for (int first = last_step(warp * 16, d_model, STRIDE * AT_ONCE); first >= 0; first -= STRIDE * AT_ONCE) {
    Element *place = (Element *)m.columns + corner + (first + 4 * t) * m.stride;
    Run<WORDS> steered[AT_ONCE][4];
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
#pragma unroll
      for (int r = 0; r < 4; ++r)
        steered[n][r] = on && first + n * STRIDE < d_model ? load<Run<WORDS>>(place + (n * STRIDE + r) * m.stride)
                                                           : Run<WORDS>{};
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n) {
      const int i = first + n * STRIDE;
      if (i >= d_model) break;
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        Run<2> direction[SIXTEENS];
#pragma unroll
        for (int s = 0; s < SIXTEENS; ++s)
          direction[s] = load_direction<2>(
              adds + (i64)(i + 4 * (quad / 2) + 2 * p + quad % 2) * DIRECTIONS + 16 * s + 4 * t);
#pragma unroll
        for (int w = 0; w < WORDS; ++w) {
          float sum[4] = {};
#pragma unroll
          for (int s = 0; s < SIXTEENS; ++s) {
            mma(sum, leading[w][s], direction[s].word);
            mma(sum, trailing[w][s], direction[s].word);
          }
          const float left = scale_of(scales, WIDTH * quad + 2 * w), right = scale_of(scales, WIDTH * quad + 2 * w + 1);
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            u32 &word = steered[n][2 * p + r].word[w];
            const float2 old = unpack(word);
            word = pack(old.x + left * sum[r], old.y + right * sum[2 + r]);
          }
        }
      }
      if (on) {
#pragma unroll
        for (int r = 0; r < 4; ++r) store(place + (n * STRIDE + r) * m.stride, steered[n][r]);
      }
    }
  }
}

// As many tiles at once as the L2 cache holds, and as many rows as the registers hold accumulators for.
KERNEL(readers_16, readers<1>)
KERNEL(writers_16, writers<1>)
#if DIRECTIONS < 64
KERNEL(readers_32, readers<2>)
KERNEL(writers_32, writers<2>)
#else
KERNEL(readers_48, readers<3>)
KERNEL(writers_64, writers<4>)
#endif
