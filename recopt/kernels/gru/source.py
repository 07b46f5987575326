"""The C of a recurrence of gated steps on a CPU: all steps of a block of rows, whose states stay in the cache.

A step multiplies the numbers of a block's rows, which lie side by side, with tiles of the weights: two vectors of
columns, whose sums for all rows fill the registers. Every weight that is read serves all rows of the block.
"""

from __future__ import annotations

SOURCE = r"""
@COMMON@
#define TILE (2 * VECTOR)  // columns that are summed side by side

INLINE float keep(float h, const float* p) { return @KEEP@; }

// What a call is about: addresses, sizes, strides in numbers. Of bias [4, hidden] the last is that of the product which
// the reset gate weighs, where it weighs one.
typedef struct {
  const float *x, *start, *weights, *bias;
  float* y;
  i64 batch, steps, width, hidden, x_row, x_step, start_row, after, gates;
  struct {
    const float* at;
    i64 row, step;
  } gate[@GATES@];
} Call;

#define PADDED(n) (((n) + TILE - 1) / TILE * TILE)

// Weights [n, count] as tiles of TILE rows, each [count, TILE], `next` numbers apart; 0 where there are none.
static void tiles(float* to, const float* from, i64 n, i64 count, i64 next) {
  for (i64 c = 0; c < n; c += TILE, to += next)
    for (i64 k = 0; k < count; k++)
      for (i64 j = 0; j < TILE; j++) to[k * TILE + j] = c + j < n ? from[(c + j) * count + k] : 0.0f;
}

// to [ROWS, COUNT tiles] = x [k, ROWS] and h [n, ROWS] times the weights of both, one below the other.
#define PRODUCT(ROWS, COUNT)                                                                                  \
  INLINE void add_##ROWS##_##COUNT(Vector (*sum)[2 * COUNT], const float* x, i64 k, const float* w, i64 next) { \
    for (i64 i = 0; i < k; i++, x += ROWS, w += TILE) {                                                       \
      Vector a[2 * COUNT];                                                                                    \
      _Pragma("GCC unroll 8") for (int v = 0; v < 2 * COUNT; v++)                                             \
        a[v] = *(const Vector*)(w + v / 2 * next + v % 2 * VECTOR);                                           \
      _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++)                                                 \
        _Pragma("GCC unroll 8") for (int v = 0; v < 2 * COUNT; v++) sum[r][v] += a[v] * x[r];                 \
    }                                                                                                         \
  }                                                                                                           \
  static void product_##ROWS##_##COUNT(                                                                       \
      float* to, i64 wide, const float* x, i64 k, const float* h, i64 n, const float* w, i64 next) {          \
    Vector sum[ROWS][2 * COUNT];                                                                              \
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++)                                                   \
      _Pragma("GCC unroll 8") for (int v = 0; v < 2 * COUNT; v++) sum[r][v] = (Vector){0};                    \
    add_##ROWS##_##COUNT(sum, x, k, w, next);                                                                 \
    add_##ROWS##_##COUNT(sum, h, n, w + k * TILE, next);                                                      \
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++)                                                   \
      _Pragma("GCC unroll 8") for (int v = 0; v < 2 * COUNT; v++)                                             \
        *(Vector*)(to + r * wide + v * VECTOR) = sum[r][v];                                                   \
  }
PRODUCT(@BLOCK@, 1)
PRODUCT(4, 1)
PRODUCT(1, 4)
PRODUCT(1, 1)

// `columns` columns of products into to [rows, wide].
INLINE void products(int rows, float* to, i64 wide, i64 columns, const float* x, i64 k, const float* h, i64 n,
                     const float* w, i64 next) {
  i64 c = 0;
  if (rows == 1)
    for (; c + 4 * TILE <= columns; c += 4 * TILE)
      product_1_4(to + c, wide, x, k, h, n, w + c / TILE * next, next);
  for (; c < columns; c += TILE) {
    const float* own = w + c / TILE * next;
    if (rows == 1) product_1_1(to + c, wide, x, k, h, n, own, next);
    else if (rows == 4) product_4_1(to + c, wide, x, k, h, n, own, next);
    else product_@BLOCK@_1(to + c, wide, x, k, h, n, own, next);
  }
}

// All steps of `there` rows from `first` on, in a block of `rows`.
INLINE void block(int rows, const Call* a, i64 first, i64 there, float* memory) {
  const i64 H = a->hidden, K = a->width, P = PADDED(H), next = (K + H) * TILE;
  float* const x = memory;                              // [K, rows]
  float* const h = x + ALIGNED(K * rows);               // [H, rows], and again times the reset gate
  float* const reset = h + ALIGNED(H * rows);
  float* const gates = reset + ALIGNED(H * rows);       // [rows, 2 P]: r and z
  float* const fresh = gates + rows * 2 * P;            // [rows, P]
  float* const weighed = fresh + rows * P;              // [rows, P], of the state alone
  float* const state = weighed + rows * P;              // [rows, P]
  const float *const b = a->bias, *const of_new = a->weights + 2 * P / TILE * next;
  memset(memory, 0, (char*)(state + rows * P) - (char*)memory);
  for (i64 r = 0; a->start && r < there; r++) {
    const float* from = a->start + (first + r) * a->start_row;
    for (i64 c = 0; c < H; c++) h[c * rows + r] = state[r * P + c] = from[c];
  }
  for (i64 t = 0; t < a->steps; t++) {
    for (i64 r = 0; r < there; r++) {
      const float* from = a->x + (first + r) * a->x_row + t * a->x_step;
      for (i64 k = 0; k < K; k++) x[k * rows + r] = from[k];
    }
    products(rows, gates, 2 * P, 2 * P, x, K, h, H, a->weights, next);
    for (i64 r = 0; r < there; r++) {
      float *const R = gates + r * 2 * P, *const Z = R + P, p[@GATES@];
      for (i64 g = 0; g < a->gates; g++) p[g] = a->gate[g].at[(first + r) * a->gate[g].row + t * a->gate[g].step];
      for (i64 c = 0; c < H; c++) R[c] = f_sigmoid(R[c] + b[c]);
      for (i64 c = 0; c < H; c++) Z[c] = keep(Z[c] + b[H + c], p);
      if (!a->after)
        for (i64 c = 0; c < H; c++) reset[c * rows + r] = R[c] * state[r * P + c];
    }
    if (a->after) {
      products(rows, weighed, P, P, x, 0, h, H, of_new + K * TILE, next);
      products(rows, fresh, P, P, x, K, h, 0, of_new, next);
    } else {
      products(rows, fresh, P, P, x, K, reset, H, of_new, next);
    }
    for (i64 r = 0; r < there; r++) {
      const float *const R = gates + r * 2 * P, *const Z = R + P, *const U = weighed + r * P;
      float *const N = fresh + r * P, *const S = state + r * P;
      float* const to = a->y + (t * a->batch + first + r) * H;
      if (a->after)
        for (i64 c = 0; c < H; c++) N[c] += R[c] * (U[c] + b[3 * H + c]);
      for (i64 c = 0; c < H; c++) {
        const float n = f_tanh(N[c] + b[2 * H + c]);
        S[c] = Z[c] == 1.0f ? S[c] : mixed(n, S[c], Z[c]);  // what does not count may be nan
      }
      for (i64 c = 0; c < H; c++) to[c] = S[c];
      for (i64 c = 0; c < H; c++) h[c * rows + r] = S[c];
    }
  }
}

// Of a Call and of n rows from a first one on: whether memory for it could be had.
static int rows_of(const Call* a, i64 first, i64 end) {
  const i64 P = PADDED(a->hidden);
  float* memory = aligned_alloc(64, 4 * ALIGNED(BLOCK * (a->width + 2 * a->hidden + 5 * P) + 64));
  if (!memory) return 0;
  for (i64 there; first < end; first += there) {
    const i64 left = end - first;
    const int rows = left > 8 || left >= BLOCK ? BLOCK : left > 1 ? 4 : 1;
    there = left < rows ? left : rows;
    if (rows == 1) block(1, a, first, there, memory);
    else if (rows == 4) block(4, a, first, there, memory);
    else block(BLOCK, a, first, there, memory);
  }
  free(memory);
  return 1;
}

// pack(address to, wi, wh, inputs, hidden): the weights of the three gates as tiles.
static PyObject* pack(PyObject* module, PyObject* const* args, Py_ssize_t count) {
  i64 v[5];
  for (int i = 0; i < 5; i++) v[i] = count == 5 ? PyLong_AsLongLong(args[i]) : 0;
  if (PyErr_Occurred() || count != 5) return count == 5 ? NULL : (PyErr_SetString(PyExc_TypeError, "5 numbers"), NULL);
  const i64 K = v[3], H = v[4], P = PADDED(H), next = (K + H) * TILE;
  for (int g = 0; g < 3; g++) {
    float* to = (float*)v[0] + g * (P / TILE) * next;
    tiles(to, (const float*)v[1] + g * H * K, H, K, next);
    tiles(to + K * TILE, (const float*)v[2] + g * H * H, H, H, next);
  }
  Py_RETURN_NONE;
}
@MODULE@
"""

PACK = '{"pack", (PyCFunction)(void*)pack, METH_FASTCALL, NULL},'
