// Float32 matrices on the ordinary cores: project, measure, steer, in one pass over device memory.
//
//   P = D M                          coefficients of a tile, in float32
//   columns += D'^T T P              where the matrix has a mixing T and the column's coefficients are finite
//   sums    = sum_j P_kj^2, sum_j P_kj, ||M||^2
//
// M is `columns`, or `columns - before`. D (`reads`) and D' (`adds`) are the same set except in chunks of more than 64
// directions. Directions are taken CHUNK at a time, as many as the registers hold; a tile is read from device memory
// once, and for further chunks and for the write-back from the L2 cache.
//
// Bytes moved: 4 a element read, 4 more with `before`, 4 written; per tile the direction set once or twice, from L2.
// Needs 16-byte aligned bases and strides; d_model a multiple of 4 (readers), `other` a multiple of 4 (writers).

enum { CHUNK = DIRECTIONS < 16 ? DIRECTIONS : 16 };
enum { READERS_CHUNK = CHUNK == 16 && (DIFFERENCE || DIRECTIONS > 16) ? 8 : CHUNK };  // what fits beside eight rows
enum { AT_ONCE = 4 };  // rows of a writer that a thread asks for before it uses the first: it is latency that costs

__device__ __forceinline__ Vector load_vector(const float *address) {
  const float4 word = load<float4>(address);
  return {word.x, word.y, word.z, word.w};
}

// What is never written: the compiler need not keep its loads behind the stores.
__device__ __forceinline__ Vector load_direction(const float *address) {
#ifdef CUDA_HOST
  return load_vector(address);
#else
  Vector v;
  asm("ld.global.nc.v4.f32 {%0, %1, %2, %3}, [%4];"
      : "=f"(v.e[0]), "=f"(v.e[1]), "=f"(v.e[2]), "=f"(v.e[3]) : "l"(address));
  return v;
#endif
}

__device__ __forceinline__ void store_vector(float *address, const Vector &v) {
#ifdef CUDA_HOST
  store(address, make_float4(v.e[0], v.e[1], v.e[2], v.e[3]));
#else
  asm volatile("st.global.v4.f32 [%0], {%1, %2, %3, %4};"
               ::"l"(address), "f"(v.e[0]), "f"(v.e[1]), "f"(v.e[2]), "f"(v.e[3]) : "memory");
#endif
}

__device__ __forceinline__ Vector load_value(const Matrix &m, i64 offset) {
  Vector value = load_vector((const float *)m.columns + offset);
#if DIFFERENCE
  const Vector before = load_vector((const float *)m.before + offset);
#pragma unroll
  for (int e = 0; e < LANES; ++e) value.e[e] -= before.e[e];
#endif
  return value;
}

__device__ __forceinline__ float squares(const Vector &v) {
  return v.e[0] * v.e[0] + v.e[1] * v.e[1] + (v.e[2] * v.e[2] + v.e[3] * v.e[3]);
}

// Sums `values` over the lanes whose number differs in the bits STEP..16 only. Each step hands one half to the partner
// and keeps the other: COUNT shuffles in all, where a butterfly for each value would take log2(lanes) times as many.
// Afterwards lane l holds the sums of values (l / STEP) * COUNT * STEP / 32 and following.
template <int COUNT, int STEP, int LANE = 16>
__device__ __forceinline__ void reduce_scatter(float *values) {
  const bool upper = threadIdx.x & LANE;
#pragma unroll
  for (int n = 0; n < COUNT / 2; ++n) {
    const float sent = upper ? values[n] : values[n + COUNT / 2];
    const float kept = upper ? values[n + COUNT / 2] : values[n];
    values[n] = kept + __shfl_xor_sync(ALL_LANES, sent, LANE);
  }
  if constexpr (LANE > STEP) reduce_scatter<COUNT / 2, STEP, LANE / 2>(values);
}

// Readers: a tile is ROWS rows of M^T, [other][d_model]. The threads of a block share each row's d_model elements.
template <int ROWS>
__device__ __forceinline__ void readers(
    const Matrix *matrices, const int2 *tiles, const float *by_direction, const float *, float *sums, int d_model) {
  float *scratch = shared_floats(), *coefficients = scratch + 32, *mixed = coefficients + ROWS * DIRECTIONS;
  const int2 tile = tiles[blockIdx.x];
  const Matrix m = matrices[tile.x];
  const int rows = smaller(m.other - tile.y * ROWS, ROWS);
  const i64 corner = (i64)tile.y * ROWS * m.stride;
  const float *reads = by_direction + (i64)m.reads * DIRECTIONS * d_model;
  const float *adds = by_direction + (i64)m.adds * DIRECTIONS * d_model;

  float total = 0;
  for (int first = 0; first < DIRECTIONS; first += READERS_CHUNK) {
    float partial[ROWS * READERS_CHUNK] = {};
    for (int i = threadIdx.x * LANES; i < d_model; i += THREADS * LANES) {
      Vector value[ROWS];
#pragma unroll
      for (int r = 0; r < ROWS; ++r) value[r] = r < rows ? load_value(m, corner + r * m.stride + i) : Vector{};
      if (first == 0) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r) total += squares(value[r]);
      }
#pragma unroll
      for (int k = 0; k < READERS_CHUNK; ++k) {
        const Vector direction = load_direction(reads + (first + k) * d_model + i);
#pragma unroll
        for (int r = 0; r < ROWS; ++r)
#pragma unroll
          for (int e = 0; e < LANES; ++e) partial[r * READERS_CHUNK + k] += value[r].e[e] * direction.e[e];
      }
    }
    reduce_scatter<ROWS * READERS_CHUNK, 1>(partial);
    enum { HELD = ROWS * READERS_CHUNK / 32 };
    float held[HELD];
#pragma unroll
    for (int n = 0; n < HELD; ++n) held[n] = partial[n];
    add_in_turn(coefficients, held, [&](int n) {
      const int place = threadIdx.x % 32 * HELD + n;
      return place / READERS_CHUNK * DIRECTIONS + first + place % READERS_CHUNK;
    });
  }
  mix<ROWS>(m, coefficients, mixed, 1, DIRECTIONS);
  tile_sums(coefficients, 1, DIRECTIONS, rows, total, scratch, sums + (i64)(m.first_tile + tile.y) * SUMS);
  if (!m.mixing) return;

  for (int i = last_step(threadIdx.x * LANES, d_model, THREADS * LANES); i >= 0; i -= THREADS * LANES) {
    float *place = (float *)m.columns + corner + i;
    Vector steered[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; ++r) steered[r] = r < rows ? load_vector(place + r * m.stride) : Vector{};
#pragma unroll 4
    for (int k = 0; k < DIRECTIONS; ++k) {
      const Vector direction = load_direction(adds + k * d_model + i);
#pragma unroll
      for (int r = 0; r < ROWS; ++r)
#pragma unroll
        for (int e = 0; e < LANES; ++e) steered[r].e[e] += mixed[r * DIRECTIONS + k] * direction.e[e];
    }
#pragma unroll
    for (int r = 0; r < ROWS; ++r)
      if (r < rows) store_vector(place + r * m.stride, steered[r]);
  }
}

// Writers: a tile is COLUMNS columns of M, [d_model][other]. GROUPS threads share a row, the others take further rows.
template <int COLUMNS>
__device__ __forceinline__ void writers(
    const Matrix *matrices, const int2 *tiles, const float *, const float *by_residual, float *sums, int d_model) {
  enum { GROUPS = COLUMNS / LANES, LINES = THREADS / GROUPS };
  float *scratch = shared_floats(), *coefficients = scratch + 32, *mixed = coefficients + COLUMNS * DIRECTIONS;
  const int2 tile = tiles[blockIdx.x];
  const Matrix m = matrices[tile.x];
  const int columns = smaller(m.other - tile.y * COLUMNS, COLUMNS), line = threadIdx.x / GROUPS;
  const int column = threadIdx.x % GROUPS * LANES;
  const bool on = column < columns;
  const i64 corner = (i64)tile.y * COLUMNS + column;
  const float *reads = by_residual + (i64)m.reads * DIRECTIONS * d_model;
  const float *adds = by_residual + (i64)m.adds * DIRECTIONS * d_model;

  float total = 0;
  for (int first = 0; first < DIRECTIONS; first += CHUNK) {
    float partial[CHUNK * LANES] = {};
    for (int i = line; i < d_model; i += LINES * AT_ONCE) {
      Vector value[AT_ONCE];
#pragma unroll
      for (int n = 0; n < AT_ONCE; ++n) {
        const int row = i + n * LINES;
        value[n] = on && row < d_model ? load_value(m, corner + row * m.stride) : Vector{};
      }
#pragma unroll
      for (int n = 0; n < AT_ONCE; ++n) {
        const int row = i + n * LINES;
        if (row >= d_model) break;
        if (first == 0) total += squares(value[n]);
#pragma unroll
        for (int k = 0; k < CHUNK; k += LANES) {
          const Vector direction = load_direction(reads + (i64)row * DIRECTIONS + first + k);
#pragma unroll
          for (int d = 0; d < LANES; ++d)
#pragma unroll
            for (int e = 0; e < LANES; ++e) partial[(k + d) * LANES + e] += direction.e[d] * value[n].e[e];
        }
      }
    }
    reduce_scatter<CHUNK * LANES, GROUPS>(partial);
    enum { HELD = CHUNK * LANES * GROUPS / 32 };
    float held[HELD];
#pragma unroll
    for (int n = 0; n < HELD; ++n) held[n] = partial[n];
    add_in_turn(coefficients, held, [&](int n) {
      const int place = threadIdx.x % 32 / GROUPS * HELD + n;
      return (first + place / LANES) * COLUMNS + column + place % LANES;
    });
  }
  mix<COLUMNS>(m, coefficients, mixed, COLUMNS, 1);
  tile_sums(coefficients, COLUMNS, 1, columns, total, scratch, sums + (i64)(m.first_tile + tile.y) * SUMS);
  if (!m.mixing || !on) return;

  for (int i = last_step(line, d_model, LINES * AT_ONCE); i >= 0; i -= LINES * AT_ONCE) {
    Vector steered[AT_ONCE];
    float *place = (float *)m.columns + corner + i * m.stride;
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
      if (i + n * LINES < d_model) steered[n] = load_vector(place + n * LINES * m.stride);
#pragma unroll 2
    for (int k = 0; k < DIRECTIONS; k += LANES) {
      Vector added[LANES];
#pragma unroll
      for (int d = 0; d < LANES; ++d) added[d] = *(const Vector *)(mixed + (k + d) * COLUMNS + column);
#pragma unroll
      for (int n = 0; n < AT_ONCE; ++n) {
        if (i + n * LINES >= d_model) continue;
        const Vector direction = load_direction(adds + (i64)(i + n * LINES) * DIRECTIONS + k);
#pragma unroll
        for (int d = 0; d < LANES; ++d)
#pragma unroll
          for (int e = 0; e < LANES; ++e) steered[n].e[e] += direction.e[d] * added[d].e[e];
      }
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; ++n)
      if (i + n * LINES < d_model) store_vector(place + n * LINES * m.stride, steered[n]);
  }
}

KERNEL(readers_8, readers<8>)
KERNEL(writers_16, writers<16>)
KERNEL(writers_32, writers<32>)
