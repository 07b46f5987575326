"""The CUDA C++ of a recurrence of gated steps as one kernel, for batches of a row or two for each processor.

A block owns one or two rows of the batch and all their steps. Its weights stay in its registers from the first step to
the last. Threads share a group of units, each with a part of the state, which they read from shared memory, and
exchange sums until each thread has those of one unit and row. A step has one barrier, or two where the reset gate
comes before the product; the products of gates that nobody waits for are made while those are.

Of a few rows the products of the inputs are made by a kernel beside it, which lets this one start at once: it reads its
weights meanwhile.
"""

from __future__ import annotations

AHEAD = 4  # rows of inputs whose products a block makes

ROWS = r"""
#define GROUPS ((H + UNITS - 1) / UNITS)               // each PARTS threads
#define WARPS ((GROUPS * PARTS + 31) / 32)
#define ROUNDS(n) (((n) + 4 * PARTS - 1) / (4 * PARTS))
#define MADE (32 * WARPS / PARTS * UNITS)              // units of all threads, also of those that have none
#define WIDE (4 * PARTS * ROUNDS(H) > MADE ? 4 * PARTS * ROUNDS(H) : MADE)
#define SUMS(rows) ((rows) * UNITS)                    // of a gate, that a group adds up
#define KEPT(rows) (SUMS(rows) > PARTS ? SUMS(rows) / PARTS : 1)

template <int COUNT, int N> struct Weights { float of[COUNT][UNITS][ROUNDS(N)][4]; };
template <int COUNT, int N> struct Vectors { float4 of[COUNT][ROUNDS(N)]; };

// Of weights [COUNT * H, N] a thread's part of the rows of its group, of which row `turn` comes first. Where registers
// allow all threads read them in one order, since a load takes a turn for each line of 128 bytes that it touches.
template <int COUNT, int N>
__device__ __forceinline__ void load(Weights<COUNT, N>& w, const float* from, int first, int turn, int part) {
  constexpr int SWAPPED = ROWS == 1 ? UNITS : 1;
#pragma unroll
  for (int g = 0; g < COUNT; g++)
#pragma unroll
    for (int u = 0; u < UNITS; u++)
#pragma unroll
      for (int k = 0; k < ROUNDS(N); k++) {
        const int line = first + (SWAPPED > 1 ? u : u ^ turn);
        const float4 x = four(from + (g * H + line) * N, line < H ? 4 * (PARTS * k + part) : N, N);
        float* const to = w.of[g][u][k];
        to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
      }
#pragma unroll
  for (int bit = 1; bit < SWAPPED; bit <<= 1)
#pragma unroll
    for (int g = 0; g < COUNT; g++)
#pragma unroll
      for (int u = 0; u < UNITS; u++)
#pragma unroll
        for (int k = 0; k < 4 * ROUNDS(N); k++) {
          float& a = w.of[g][u & ~bit][k / 4][k % 4];
          float& b = w.of[g][u | bit][k / 4][k % 4];
          const float c = turn & bit ? b : a, d = turn & bit ? a : b;
          if (!(u & bit)) a = c, b = d;
        }
}

// One exchange of a group's N sums: a thread keeps the first half of its own, as long as it has several, and sends the
// others. What it keeps comes first, since its units and vectors are in the order in which they differ from its own.
template <int N>
__device__ __forceinline__ void exchange(float* sums, int mask) {
  constexpr int left = N > 1 ? N / 2 : 1, shift = N > 1 ? left : 0;
#pragma unroll
  for (int i = 0; i < left; i++) sums[i] += __shfl_xor_sync(~0u, sums[i + shift], mask);
}

// A gate's products with R vectors: a thread's part of its group's sums, exchanged once.
template <int GATE, int COUNT, int R, int N>
__device__ __forceinline__ void multiply(
    float (&sums)[UNITS][R], const Weights<COUNT, N>& w, const Vectors<R, N>& vectors) {
#pragma unroll
  for (int r = 0; r < R; r++)
#pragma unroll
    for (int k = 0; k < ROUNDS(N); k++) {
      const float4 x = vectors.of[r][k];
#pragma unroll
      for (int u = 0; u < UNITS; u++) {
        const float* const v = w.of[GATE][u][k];
        float s = k ? fmaf(v[0], x.x, sums[u][r]) : v[0] * x.x;
        s = fmaf(v[1], x.y, s);
        s = fmaf(v[2], x.z, s);
        sums[u][r] = fmaf(v[3], x.w, s);
      }
    }
  exchange<SUMS(R)>(&sums[0][0], PARTS / 2);
}

// The other exchanges: the first of the sums are those of this thread's unit.
template <int R>
__device__ __forceinline__ void add_up(float (&sums)[UNITS][R]) {
  exchange<(SUMS(R) + 1) / 2>(&sums[0][0], PARTS / 4);
  if (PARTS > 4) exchange<(SUMS(R) + 3) / 4>(&sums[0][0], PARTS / 8);
}

#if K
// Products of AHEAD rows of x, of all batches and steps, for some units of one gate; y [rows, 3 H].
extern "C" __global__ void __launch_bounds__(32 * WARPS)
products(const float* __restrict__ x, const float* __restrict__ wi, const float* __restrict__ bi,
         float* __restrict__ y, int rows, int inner_rows, int outer_stride, int inner_stride) {
  // When the next kernel starts, all that was launched before this one has ended: weights are what they will be.
  asm volatile("griddepcontrol.wait;" : "+l"(x), "+l"(wi), "+l"(bi) :: "memory");
  asm volatile("griddepcontrol.launch_dependents;");
  const int thread = blockIdx.y * blockDim.x + threadIdx.x, part = thread % PARTS, first = thread / PARTS * UNITS;
  const int place = part * SUMS(AHEAD) / PARTS, turn = place / AHEAD, own = place % AHEAD, unit = first + turn;
  const int g = blockIdx.x % 3, begin = blockIdx.x / 3 * AHEAD;
  Vectors<AHEAD, K> vectors;
  Weights<1, K> w;
#pragma unroll
  for (int r = 0; r < AHEAD; r++)
#pragma unroll
    for (int k = 0; k < ROUNDS(K); k++) {
      const int at = min(begin + (r ^ own), rows - 1);
      const float* const from = x + (i64)(at / inner_rows) * outer_stride + (i64)(at % inner_rows) * inner_stride;
      vectors.of[r][k] = four(from, 4 * (PARTS * k + part), K);
    }
  load(w, wi + g * H * K, first, turn, part);
  float sums[UNITS][AHEAD];
  multiply<0>(sums, w, vectors);
  add_up(sums);
#pragma unroll
  for (int i = 0; i < KEPT(AHEAD); i++)
    if (unit < H && begin + own + i < rows)
      y[(i64)(begin + own + i) * 3 * H + g * H + unit] = sums[0][i] + bi[g * H + unit];
}
#endif

extern "C" __global__ void __launch_bounds__(32 * WARPS, 1)
recurrence(const float* inputs, const float* __restrict__ start, const float* __restrict__ wh,
           const float* __restrict__ bh, float* __restrict__ y,
           int batch, int steps, int row_stride, int step_stride, int start_stride GATE_ARGUMENTS) {
  __shared__ __align__(16) float memory[3 * ROWS * WIDE];        // states, twice, and times the reset gate
  const int part = threadIdx.x % PARTS, first = threadIdx.x / PARTS * UNITS;
  const int place = part * SUMS(ROWS) / PARTS;                    // of this thread's sums: its unit, then its row
  const int turn = place / ROWS, row = place % ROWS, unit = first + turn;
  const int begin = blockIdx.x * ROWS;
  const int at = min(begin + row, batch - 1);                    // a row that is not there is read as the last
  const bool there = H % (UNITS * 32 / PARTS) == 0 || unit < H;
  const bool kept = there && (ROWS == 1 || begin + row < batch);  // by several threads: they have the same
  Weights<3, H> w;
  load(w, wh, first, turn, part);
  float bias[3];
#pragma unroll
  for (int g = 0; g < 3; g++) bias[g] = there ? bh[g * H + unit] : 0.0f;
  for (int i = threadIdx.x; i < 3 * ROWS * WIDE; i += 32 * WARPS) memory[i] = 0.0f;
#if K  // until here only weights were read
  asm volatile("griddepcontrol.wait;" : "+l"(inputs) :: "memory");
#endif
#if __CUDA_ARCH__ >= 900  // where most processors are free the next kernel starts there, and waits for this one's end
  if (gridDim.x <= 32) asm volatile("griddepcontrol.launch_dependents;");
#endif
  __syncthreads();
  float h = STARTED && there ? start[(i64)at * start_stride + unit] : 0.0f;
  int mine = row * WIDE + unit, theirs[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++) theirs[r] = (r ^ row) * WIDE + 4 * part;
  asm volatile("" : "+r"(mine));  // kept: what it is made of takes longer to read than a step has
#pragma unroll
  for (int r = 0; r < ROWS; r++) asm volatile("" : "+r"(theirs[r]));
  memory[mine] = h;
  float* out = y + (i64)at * steps * H + unit;
#if GATES
  const float* gate[] = GATE_POINTERS;
  const int rows[] = GATE_ROWS, times[] = GATE_STEPS;
  float following[GATES];
#pragma unroll
  for (int g = 0; g < GATES; g++) gate[g] += (i64)at * rows[g], following[g] = *gate[g];
#endif
  const float* from = inputs + (i64)at * row_stride + (there ? unit : 0);
  float next[3];
#pragma unroll
  for (int g = 0; g < 3; g++) next[g] = __ldcg(from + g * H);
  __syncthreads();
  int now = 0;
#pragma unroll 1
  for (int t = 0; t < steps; t++) {
    float x[3], gates[GATES + 1];
#pragma unroll
    for (int g = 0; g < 3; g++) x[g] = next[g] + (g < 2 || !AFTER ? bias[g] : 0.0f);
#if GATES
#pragma unroll
    for (int g = 0; g < GATES; g++) gates[g] = following[g];
#endif
    if (t + 1 < steps) {
      from += step_stride;
#pragma unroll
      for (int g = 0; g < 3; g++) next[g] = __ldcg(from + g * H);
#if GATES
#pragma unroll
      for (int g = 0; g < GATES; g++) gate[g] += times[g], following[g] = *gate[g];
#endif
    }
    // The reset gate's products come first, and the update gate's beside what waits for the others' sums.
    float reset[UNITS][ROWS], update[UNITS][ROWS], candidate[UNITS][ROWS];
    Vectors<ROWS, H> s;
    auto read = [&](const float* from) {
#pragma unroll
      for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int k = 0; k < ROUNDS(H); k++) s.of[r][k] = *(const float4*)(from + theirs[r] + 4 * PARTS * k);
    };
    read(memory + now);
    multiply<0>(reset, w, s);
    add_up(reset);
    multiply<AFTER ? 2 : 1>(AFTER ? candidate : update, w, s);
#if AFTER
    multiply<1>(update, w, s);
    add_up(candidate);
    add_up(update);
    now = ROWS * WIDE - now;
    const float c = f_tanh(x[2] + f_sigmoid(x[0] + reset[0][0]) * (candidate[0][0] + bias[2]));
    const float z = keep(x[1] + update[0][0], gates);
#else
    memory[2 * ROWS * WIDE + mine] = f_sigmoid(x[0] + reset[0][0]) * h;
    add_up(update);
    const float z = keep(x[1] + update[0][0], gates);
    __syncthreads();
    read(memory + 2 * ROWS * WIDE);
    multiply<2>(candidate, w, s);
    add_up(candidate);
    const float c = f_tanh(x[2] + candidate[0][0]);
#endif
    h = mixed(c, h, z);
    if (!there) h = 0.0f;
    memory[now + mine] = h;
    __syncthreads();
    if (kept) *out = h;
    out += H;
  }
}
"""
