// Sums over the tiles of each matrix, in float64 and in a fixed order: the same bits every time, without atomics.
//
//   out[matrix][s] = sum_tile sums[first_tile + tile][s],   s < SUMS: energies, signed sums, total
//
// A block is 32 sums of one matrix, and its warps take every WARPS-th tile. Bytes moved: the tiles' sums, once.

extern "C" __global__ void __launch_bounds__(THREADS) finish(
    const Matrix *matrices, const float *sums, double *out) {
  enum { BLOCKS = (SUMS + 31) / 32 };  // a matrix
  double *partial = (double *)shared_floats();
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, s = blockIdx.x % BLOCKS * 32 + lane;
  const Matrix m = matrices[blockIdx.x / BLOCKS];
  double sum = 0;
  if (s < SUMS)
    for (int tile = warp; tile < m.tiles; tile += WARPS) sum += sums[(i64)(m.first_tile + tile) * SUMS + s];
  partial[threadIdx.x] = sum;
  __syncthreads();
  if (warp != 0 || s >= SUMS) return;
  for (int other = 1; other < WARPS; ++other) sum += partial[other * 32 + lane];
  out[(i64)(blockIdx.x / BLOCKS) * SUMS + s] = sum;
}
