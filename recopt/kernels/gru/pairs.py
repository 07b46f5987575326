"""The CUDA C++ of a recurrence of gated steps together with the products of its inputs, for batches of thousands.

Two blocks, a cluster, own 16 or 32 rows of the batch and all their steps; each makes 64 units of the state. A block has
three groups of four warps. One makes the steps: its weights stay in shared memory, from where Hopper's tensor cores
multiply them by themselves (`wgmma`), so that its registers are free for many gates at once. One makes the products of
the inputs a step ahead, with its weights in registers (of many inputs but for the low halves of one gate), and begins
when a step has the products of its reset gate: while gates are made, the tensor cores have little else to do. One
fetches the inputs and splits them. All operands are sums of two halves of 11 bits each; three products of halves make
one of float32 (that of both low ones is below its rounding).

Halves reach from 2^-24 to 2^15, so operands are scaled by powers of two: weights by the largest of a warp, inputs by
the largest of a row, both into [2^14, 2^15), and the state by 2^14 as long as it is below 2 everywhere, which a state
that starts so never leaves when its gates are between 0 and 1. A warp whose states outgrow that says so beside them,
and the product is made again from states that have one scale.

What a step passes on is the state, split, in both blocks' shared memory: an exchange. Each warp copies what it made to
the other block, which multiplies its own half of the state meanwhile. Exchanges alternate between two buffers. A warp
that writes into one has waited for the exchange before, which all warps wrote after they read what it overwrites. There
is one exchange a step, or two where the reset gate comes before the product.

An operand of products lies as in `operands`: for each row of 8 columns high halves, then low ones for all rows. At the
start all warps split the weights; those of the inputs pass through the place of states, inputs and products.
"""

from __future__ import annotations

PAIRS = r"""
#define ROWS (8 * TILES)
#define LINE (32 * ROWS)                // bytes of 8 columns of states or inputs: high and low halves of all rows
#define PIECE (2 * LINE + 16)           // of states: of 16 units, and their scale
#define STATE (8 * PIECE)
#define INPUT (2 * PIECES(K) * LINE)
#define MANY (PIECES(K) > 4)            // inputs: the low halves of a gate's weights do not fit into registers
#define INPUTS (MANY ? 1 : 2)           // steps whose inputs are split
#define GATE (16 * BLOCK)               // bytes of high or low halves of a gate's weights for 64 units
#define MARKS 8                         // steps whose gates' numbers wait: those of five can be in use

__device__ __forceinline__ float part(const float4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

typedef float Sums[TILES][4];
typedef float Wide[2 * TILES][4];  // times the high halves of all rows, then times the low ones

extern "C" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1)
recurrence(const float* __restrict__ inputs, const float* __restrict__ start, const float* __restrict__ wi,
           const float* __restrict__ wh, const float* __restrict__ bi, const float* __restrict__ bh,
           float* __restrict__ y, int batch, int steps, int row_stride, int step_stride,
           int start_stride GATE_ARGUMENTS) {
  extern __shared__ __align__(128) char shared[];
  char* const weights = shared;                                // [3][high, low] of GATE
  char* const states = weights + 6 * GATE;                     // [2] of STATE
  char* const split_inputs = states + 2 * STATE;               // [INPUTS] of INPUT
  float4* const ring = (float4*)(split_inputs + INPUTS * INPUT);  // [2][3][TILES][128]: products of inputs
  char* const kept = (char*)(ring + 2 * 3 * TILES * 128);      // if MANY: low halves of the inputs' last gate
  float* const unscales = (float*)(kept + MANY * 2 * PIECES(K) * BLOCK);  // [4][ROWS], of inputs; 0: an infinity
  float* const marks = unscales + 4 * ROWS;                    // [MARKS][GATES][ROWS]
  float* const undone = marks + MARKS * GATES * ROWS;          // [state, inputs][3][4], of weights
  u64* const exchanged = (u64*)(undone + 24);                  // [2]
  u64* const there = exchanged + 2;                            // [2]: split inputs
  u64* const gone = there + 2;                                 // [2]: they were read
  u64* const made = gone + 2;                                  // [2][4]: products of inputs
  u64* const used = made + 2 * 4;                              // [2][4]
  u64* const agreed = used + 2 * 4;                            // both blocks have states that outgrew a scale
  u32* const word = (u32*)(agreed + 1);                        // what the other block sends then

  const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5 & 3, thread = threadIdx.x & 127;
  const u32 rank = blockIdx.x & 1;
  const int first = blockIdx.x / 2 * ROWS, here = batch - first < ROWS ? batch - first : ROWS;
  const int piece = rank * 4 + warp, unit = piece * 16 + lane / 4, column = 2 * (lane % 4);

  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      start_barrier(address(exchanged + i), 4);
      start_barrier(address(there + i), TILES);
      start_barrier(address(gone + i), 4);
    }
    for (int i = 0; i < 17; i++) start_barrier(address(made + i), 1);
    barriers_started();
  }
  char* const passing = MANY ? kept - 10 * PIECES(K) * BLOCK : states;  // where states, inputs and products will be
  {
    float4 of_state[4][4], of_inputs[4][(PIECES(K) + 1) / 2];
    fetch_weights<8, H>(of_state, wh, piece * 16);
    fetch_weights<PIECES(K), K>(of_inputs, wi, piece * 16);
    split_weights<8>(weights, undone, of_state);
    split_weights<PIECES(K)>(passing, undone + 12, of_inputs);
  }
  show();
  __syncthreads();

  if (threadIdx.x >= 256) {  // inputs
    registers_fewer<72>();
    if (warp < TILES) {
      const int r = warp * 8 + lane % 8, c = lane / 8 * 8, from = first + min(r, here - 1);
      const float* next = inputs + (i64)from * row_stride + c;
      float4 x[(K + 31) / 32][2];
      auto fetch = [&]() {
#pragma unroll
        for (int j = 0; j < (K + 31) / 32; j++)
#pragma unroll
          for (int i = 0; i < 2; i++) x[j][i] = four(next, 32 * j + 4 * i, K - c);
        next += step_stride;
      };
#if GATES
      const float* const gate[] = GATE_POINTERS;
      const int rows[] = GATE_ROWS, times[] = GATE_STEPS;
#endif
      fetch();
      cluster_sync();
      for (int t = 0; t < steps; t++) {
#if GATES
        if (lane < 8)
#pragma unroll
          for (int g = 0; g < GATES; g++)
            marks[(t % MARKS * GATES + g) * ROWS + r] = gate[g][(i64)from * rows[g] + (i64)t * times[g]];
#endif
        float top = 0.0f;
#pragma unroll
        for (int j = 0; j < (K + 31) / 32; j++)
#pragma unroll
          for (int i = 0; i < 2; i++) top = fmaxf(top, most_of(x[j][i]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 8));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 16));
        const u32 most = __float_as_uint(top);
        const bool infinite = most == 0x7f800000;
        const float scale = infinite ? 1.0f : scale_for(most);
        wait(address(gone + t % INPUTS), t / INPUTS + 1);
        char* const to = split_inputs + t % INPUTS * INPUT + lane / 8 * LINE + r * 16;
#pragma unroll
        for (int j = 0; j < (K + 31) / 32; j++)
          if (32 * j + 32 <= 16 * PIECES(K) || 32 * j + c < 16 * PIECES(K))
            split(to + 4 * j * LINE, to + 4 * j * LINE + 16 * ROWS, x[j][0], x[j][1], scale);
        if (lane < 8) unscales[(t & 3) * ROWS + r] = infinite ? 0.0f : inverse(scale);
        show();
        __syncwarp();
        if (lane == 0) arrive(address(there + t % INPUTS), 0);
        if (t + 1 < steps) fetch();
      }
    }
  } else if (threadIdx.x >= 128) {  // products of inputs
    registers_more<(MANY ? 240 : 184)>();
    u32 high[3][PIECES(K)][4], low[3][PIECES(K)][4];
    float unscale[3];
    const u32 own = address(passing) + lane / 16 * BLOCK + (warp * 16 + lane % 16) * 16;
#pragma unroll
    for (int g = 0; g < 3; g++) {
#pragma unroll
      for (int k = 0; k < PIECES(K); k++) {
        read(high[g][k], own + (2 * g * PIECES(K) + k) * 2 * BLOCK);
        if (!MANY || g < 2) read(low[g][k], own + ((2 * g + 1) * PIECES(K) + k) * 2 * BLOCK);
      }
      unscale[g] = undone[12 + g * 4 + warp];
    }
    cluster_sync();
    float biases[3][2];
#pragma unroll
    for (int g = 0; g < 3; g++)
#pragma unroll
      for (int i = 0; i < 2; i++) {
        const int u = unit + 8 * i;
        biases[g][i] = u < H ? bi[g * H + u] + (g < 2 || !AFTER ? bh[g * H + u] : 0.0f) : 0.0f;
      }
    const u64 operand = described(split_inputs, LINE), factor = described(kept, BLOCK);
    for (int t = 0; t < steps; t++) {
      const int slot = t & 1, buffer = t % INPUTS;
      float4* const slots = ring + slot * 3 * TILES * 128 + thread;
      const float* const scaled = unscales + (t & 3) * ROWS + column;
      const u64 at = operand + buffer * (INPUT >> 4);
      wait(address(there + buffer), t / INPUTS);
      if (t) sync(2, 256);  // a step makes gates: the tensor cores are free
      float sum[3][TILES][4];
      // The tensor cores round every sum towards zero: the small products are added up first.
      products_begin();
#pragma unroll
      for (int c = 2; c >= 0; c--)
#pragma unroll
        for (int k = 0; k < PIECES(K); k++) {
          const u64 b = at + k * 2 * (LINE >> 4) + (c == 1 ? ROWS : 0);
#pragma unroll
          for (int g = 0; g < 3; g++)
            if (MANY && c == 2 && g == 2)
              multiply(sum[g], factor + k * 2 * (BLOCK >> 4), b, k);
            else
              multiply(sum[g], c == 2 ? low[g][k] : high[g][k], b, c < 2 || k);
        }
      products_sent();
      products_left<0>();
      ready(sum[0]), ready(sum[1]), ready(sum[2]);
      if (lane == 0) arrive(address(gone + buffer), 0);
      wait(address(used + slot * 4 + warp), (t >> 1) + 1);
      bool infinite = false;
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const float2 s = *(const float2*)(scaled + n * 8);
        infinite |= s.x == 0.0f || s.y == 0.0f;
#pragma unroll
        for (int g = 0; g < 3; g++)
          slots[(g * TILES + n) * 128] = make_float4(
              sum[g][n][0] * unscale[g] * s.x + biases[g][0], sum[g][n][1] * unscale[g] * s.y + biases[g][0],
              sum[g][n][2] * unscale[g] * s.x + biases[g][1], sum[g][n][3] * unscale[g] * s.y + biases[g][1]);
      }
      if (infinite)  // halves would make nan of it
#pragma unroll 1
        for (int i = 0; i < 3 * TILES * 4; i++) {
          const int g = i / (4 * TILES), n = i / 4 % TILES, r = n * 8 + i % 2, u = unit + i % 4 / 2 * 8;
          if (scaled[r] != 0.0f || column + r >= here) continue;
          const float* x = inputs + (i64)(first + column + r) * row_stride + (i64)t * step_stride;
          float s = u < H ? bi[g * H + u] + (g < 2 || !AFTER ? bh[g * H + u] : 0.0f) : 0.0f;
#pragma unroll 1
          for (int k = 0; k < K && u < H; k++) s = fmaf(wi[(g * H + u) * K + k], x[k], s);
          ((float*)(slots + (g * TILES + n) * 128))[i % 4] = s;
        }
      __syncwarp();
      if (lane == 0) arrive(address(made + slot * 4 + warp), 0);
    }
  } else {  // steps
    registers_more<(MANY ? 192 : 240)>();
    const u32 far = elsewhere(address(shared), rank ^ 1) - address(shared);
    const u32 mine = address(states) + piece * PIECE;
    const u32 at = mine + (lane >> 3 & 1) * LINE + ((lane >> 4) * ROWS + (lane & 7)) * 16;
    const u64 operand = described(states, LINE), factor = described(weights, BLOCK);
    auto scale_at = [&](u32 e, int k) { return (float*)(states + (e & 1) * STATE + k * PIECE + 2 * LINE); };

    // The scale or, if halves of this warp's states would not hold it, a smaller one. Infinite states do not count.
    float scale = 16384.0f;
    auto scale_of = [&](const Sums& v) {
      float most = 0.0f, fitting = scale;
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) most = fmaxf(most, fabsf(fmaf(v[n][i], 0.0f, v[n][i])));
      while (__any_sync(~0u, most * fitting > 32768.0f)) fitting *= 0.00390625f;
      return fitting;
    };

    // Exchange e: v into both blocks.
    auto publish = [&](u32 e, const Sums& v, bool grows) {
      float fitting = scale;
      u32 top;
      for (;;) {
        top = 0;
#pragma unroll
        for (int n = 0; n < TILES; n++) {
          const uint2 a = halves(v[n][0] * fitting, v[n][1] * fitting);
          const uint2 b = halves(v[n][2] * fitting, v[n][3] * fitting);
          write(at + (e & 1) * STATE + n * 128, a.x, b.x, a.y, b.y);
          if (grows) top = larger(larger(top, a.x), b.x);
        }
        if (!grows || !__any_sync(~0u, not_finite(top))) break;
        const float smaller = scale_of(v);
        if (smaller == fitting) break;
        fitting = smaller;
      }
      if (lane == 0) *scale_at(e, piece) = fitting;
      show();
      __syncwarp();
      if (lane == 0) {
        const u32 from = mine + (e & 1) * STATE, bar = address(exchanged + (e & 1));
        arrive(bar, PIECE);
        send(from + far, from, PIECE, bar + far);
      }
      sync(1, 128);
    };

    // Adds to the sums of a gate its weights times a quarter of half of the state: of this block's, or the other's.
    auto add = [&](Wide& whole, Sums& rest, int g, u32 e, int half, int k) {
      const u64 b = operand + (e & 1) * (STATE >> 4) + ((rank ^ half) * 4 + k) * (PIECE >> 4);
      const u64 a = factor + 2 * g * (GATE >> 4) + ((rank ^ half) * 8 + k * 2) * (BLOCK >> 4);
      multiply(whole, a, b, half || k);
      multiply(rest, a + (GATE >> 4), b, half || k);
    };
    auto total = [&](const Wide& whole, const Sums& rest, int n, int i) {
      return whole[n][i] + (whole[n + TILES][i] + rest[n][i]);
    };

    // Gives the states of exchange e, which have several scales, the smallest of them.
    u32 disagreed = 0;
    auto unify = [&](u32 e) {
      if (thread == 0) {
        arrive(address(agreed), 4);
        send(address(word) + far, 0, address(agreed) + far);
      }
      wait(address(agreed), disagreed++);  // the other block has this one's states
      scale = *scale_at(e, 0);
#pragma unroll 1
      for (int k = 1; k < 8; k++) scale = fminf(scale, *scale_at(e, k));
#pragma unroll 1
      for (int i = thread; i < 8 * ROWS * 8; i += 128) {  // pairs of halves
        const int k = i / (8 * ROWS), c = i / (4 * ROWS) % 2, r = i % (4 * ROWS);
        const float ratio = scale * inverse(*scale_at(e, k));
        u32* const x = (u32*)(states + (e & 1) * STATE + k * PIECE + c * LINE) + r;
        float v0, v1, w0, w1;
        unpack(x[0], v0, v1);
        unpack(x[4 * ROWS], w0, w1);
        const uint2 v = halves((v0 + w0) * ratio, (v1 + w1) * ratio);
        x[0] = v.x, x[4 * ROWS] = v.y;
      }
      sync(1, 128);
      if (thread < 8) *scale_at(e, thread) = scale;
      show();
      sync(1, 128);
    };

#define THERE(i) (H == 128 || unit + 8 * ((i) >> 1) < H)
    Sums h;
    float bias[2], of_weights[3] = {undone[warp], undone[4 + warp], undone[8 + warp]};
#pragma unroll
    for (int i = 0; i < 2; i++) bias[i] = unit + 8 * i < H ? bh[2 * H + unit + 8 * i] : 0.0f;
#pragma unroll
    for (int n = 0; n < TILES; n++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        const int r = n * 8 + column + (i & 1), u = unit + 8 * (i >> 1);
        h[n][i] = STARTED && r < here && u < H ? start[(i64)(first + r) * start_stride + u] : 0.0f;
      }
    cluster_sync();
    publish(0, h, true);
    float* out = y + (i64)(first + column) * steps * H + unit;
    for (int t = 0; t < steps; t++, out += H) {
      const u32 slot = t & 1, e = AFTER ? t : 2 * t;
      const float4* const from = ring + slot * 3 * TILES * 128 + thread;
      const float* const p = marks + t % MARKS * GATES * ROWS + column;
      Wide reset, update, candidate;
      Sums reset_rest, update_rest, candidate_rest;
      float4 of_reset[TILES];
      for (;;) {
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) {
          add(reset, reset_rest, 0, e, 0, k);
          if (AFTER) add(candidate, candidate_rest, 2, e, 0, k);
          add(update, update_rest, 1, e, 0, k);
        }
        wait(address(made + slot * 4 + warp), t >> 1);
#pragma unroll
        for (int n = 0; n < TILES; n++) of_reset[n] = from[n * 128];
        wait(address(exchanged + (e & 1)), e >> 1);
        const bool agree = __all_sync(~0u, *scale_at(e, lane % 8) == scale);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) {
          add(reset, reset_rest, 0, e, 1, k);
          if (AFTER) add(candidate, candidate_rest, 2, e, 1, k);
        }
        products_sent();
#pragma unroll
        for (int k = 0; k < 4; k++) add(update, update_rest, 1, e, 1, k);
        products_sent();
        products_left<1>();
        ready(reset), ready(reset_rest);
        if (AFTER) ready(candidate), ready(candidate_rest);
        if (agree) break;
        products_left<0>();
        sync(1, 128);
        unify(e);  // and again
      }
      if (t + 1 < steps) signal(2, 256);
      const float unscale = inverse(scale), r_scale = of_weights[0] * unscale, z_scale = of_weights[1] * unscale;
      const float n_scale = of_weights[2] * unscale;
      Sums c;
#pragma unroll
      for (int n = 0; n < TILES; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
          const float r = f_sigmoid(fmaf(total(reset, reset_rest, n, i), r_scale, part(of_reset[n], i)));
          c[n][i] = r * (AFTER ? fmaf(total(candidate, candidate_rest, n, i), n_scale, bias[i >> 1]) : h[n][i]);
        }
      products_left<0>();
      ready(update), ready(update_rest);
      if (!AFTER) {
        publish(e + 1, c, false);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) add(candidate, candidate_rest, 2, e + 1, 0, k);
      }
      Sums z;
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const float4 x = from[(TILES + n) * 128];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float gates[GATES + 1];
#pragma unroll
          for (int g = 0; g < GATES; g++) gates[g] = p[g * ROWS + n * 8 + (i & 1)];
          z[n][i] = keep(fmaf(total(update, update_rest, n, i), z_scale, part(x, i)), gates);
        }
      }
      if (!AFTER) {
        wait(address(exchanged + 1), t);
        products_begin();
#pragma unroll
        for (int k = 0; k < 4; k++) add(candidate, candidate_rest, 2, e + 1, 1, k);
        products_sent();
        products_left<0>();
        ready(candidate), ready(candidate_rest);
#pragma unroll
        for (int n = 0; n < TILES; n++)
#pragma unroll
          for (int i = 0; i < 4; i++) c[n][i] = total(candidate, candidate_rest, n, i) * n_scale;
      }
#pragma unroll
      for (int n = 0; n < TILES; n++) {
        const float4 x = from[(2 * TILES + n) * 128];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          h[n][i] = mixed(f_tanh(c[n][i] + part(x, i)), h[n][i], z[n][i]);
          const int r = n * 8 + (i & 1);
          if (column + r < here && THERE(i)) out[(i64)r * steps * H + 8 * (i >> 1)] = h[n][i];
        }
      }
      if (t + 1 < steps) publish(AFTER ? e + 1 : e + 2, h, true);
      __syncwarp();
      if (lane == 0) arrive(address(used + slot * 4 + warp), 0);
    }
  }
  cluster_sync();
}
"""
