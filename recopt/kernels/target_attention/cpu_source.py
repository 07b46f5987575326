"""The C of a target attention on a CPU: a row's items in blocks whose layers stay in the cache.

The weights on the items and on their products with the target become one matrix a row. Items whose score is the same
whatever the network says of them, as a mask makes it, are left out of the blocks.
"""

from __future__ import annotations

SOURCE = r"""
@COMMON@

#define LAYERS @LAYERS@
#define PARAMS (@PARAMS@ + 1)
#define MARKS (@MARKS@ + 1)
#define PADDED(n) (((n) + VECTOR - 1) / VECTOR * VECTOR)
#define MAX(a, b) ((a) > (b) ? (a) : (b))

// A layer's function has its parameters `n` numbers apart; the score's are of an item.
@FUNCTIONS@

// What a call is about: addresses, sizes, strides in numbers. Absent matrices are 0. A param has `step` 0 where one
// number serves all units.
typedef struct {
  const float *q, *k, *v;
  float* y;
  i64 batch, items, width, values, q_row, k_row, k_item, v_row, v_item, softmax, marks;
  const float *of_q, *of_k, *of_both;
  struct {
    const float *w, *b;
    i64 units, params;
  } layer[LAYERS];
  struct {
    const float* at;
    i64 step;
  } param[PARAMS];
  struct {
    const void* at;
    i64 row, item, bytes;
  } mark[MARKS];
} Call;

typedef int32_t Numbers __attribute__((vector_size(4 * VECTOR)));

// Where weights lie as they are multiplied: the matrices of q, of k and of both, the others, a layer's b and params.
typedef struct {
  float *of_q, *of_k, *of_both;
  struct {
    float *w, *b;
  } layer[LAYERS];
  i64 size, widest;
} Layout;

static Layout places(const Call* a, float* p) {
  const float* const start = p;
  Layout at;
  const i64 matrix = a->width * PADDED(a->layer[0].units);
  at.of_q = p, p += a->of_q ? matrix : 0;
  at.of_k = p, p += a->of_k ? matrix : 0;
  at.of_both = p, p += a->of_both ? matrix : 0;
  at.widest = a->width;
  for (int n = 0; n < LAYERS; n++) {
    const i64 wide = PADDED(a->layer[n].units);
    at.layer[n].w = p, p += n ? a->layer[n - 1].units * wide : 0;
    at.layer[n].b = p, p += wide * (1 + a->layer[n].params);
    at.widest = MAX(at.widest, wide);
  }
  at.size = p - start;
  return at;
}

// A square of numbers whose rows become columns: halves of pairs of rows change places, then quarters, and so on.
INLINE void transposed(float* to, const float* from, i64 step) {
  Vector r[VECTOR];
  _Pragma("GCC unroll 16") for (int i = 0; i < VECTOR; i++) r[i] = *(const Vector*)(from + i * step);
  _Pragma("GCC unroll 4") for (int s = VECTOR / 2; s; s /= 2) {
    Numbers low, high;
    _Pragma("GCC unroll 16") for (int j = 0; j < VECTOR; j++) {
      low[j] = j & s ? j - s + VECTOR : j;
      high[j] = j & s ? j + VECTOR : j + s;
    }
    _Pragma("GCC unroll 16") for (int i = 0; i < VECTOR; i++) {
      if (i & s) continue;
      const Vector a = r[i], b = r[i + s];
      r[i] = __builtin_shuffle(a, b, low);
      r[i + s] = __builtin_shuffle(a, b, high);
    }
  }
  _Pragma("GCC unroll 16") for (int i = 0; i < VECTOR; i++) *(Vector*)(to + i * VECTOR) = r[i];
}

// Weights [n, count] as tiles of VECTOR columns, each [count, VECTOR]; 0 where there are none.
static void tiles(float* to, const float* from, i64 n, i64 count) {
  for (i64 c = 0; c < n; c += VECTOR, to += count * VECTOR) {
    i64 k = 0;
    for (; c + VECTOR <= n && k + VECTOR <= count; k += VECTOR)
      transposed(to + k * VECTOR, from + c * count + k, count);
    for (; k < count; k++)
      for (i64 j = 0; j < VECTOR; j++) to[k * VECTOR + j] = c + j < n ? from[(c + j) * count + k] : 0.0f;
  }
}

// One row alone needs Wk + diag(q) Wp as tiles, but neither of the two, and Wq once.
static void pack(const Call* a, const Layout* at, int alone) {
  const i64 D = a->width, N = a->layer[0].units;
  if (a->of_q && !alone) tiles(at->of_q, a->of_q, N, D);
  if (a->of_k && !(alone && a->of_both)) tiles(at->of_k, a->of_k, N, D);
  if (a->of_both && !alone) tiles(at->of_both, a->of_both, N, D);
  for (int n = 0, p = 0; n < LAYERS; n++) {
    const i64 units = a->layer[n].units, wide = PADDED(units);
    float* const b = at->layer[n].b;
    if (n && n < LAYERS - 1) tiles(at->layer[n].w, a->layer[n].w, units, a->layer[n - 1].units);
    memset(b, 0, 4 * wide * (1 + a->layer[n].params));
    memcpy(b, a->layer[n].b, 4 * units);
    for (i64 i = 1; i <= a->layer[n].params; i++, p++)
      for (i64 c = 0; c < units; c++) b[i * wide + c] = a->param[p].at[c * a->param[p].step];
  }
}

// COUNT vectors of to [ROWS, wide] = x [k, ROWS] times w.
#define PRODUCT(ROWS, COUNT)                                                                          \
  static void product_##ROWS##_##COUNT(float* to, i64 wide, const float* x, i64 k, const float* w) { \
    Vector sum[ROWS][COUNT];                                                                          \
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++)                                           \
      _Pragma("GCC unroll 2") for (int v = 0; v < COUNT; v++) sum[r][v] = (Vector){0};                \
    for (i64 i = 0; i < k; i++, x += ROWS) {                                                          \
      Vector a[COUNT];                                                                                \
      _Pragma("GCC unroll 2") for (int v = 0; v < COUNT; v++)                                         \
        a[v] = *(const Vector*)(w + (v * k + i) * VECTOR);                                            \
      _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++)                                         \
        _Pragma("GCC unroll 2") for (int v = 0; v < COUNT; v++) sum[r][v] += a[v] * x[r];             \
    }                                                                                                 \
    _Pragma("GCC unroll 12") for (int r = 0; r < ROWS; r++)                                           \
      _Pragma("GCC unroll 2") for (int v = 0; v < COUNT; v++)                                         \
        *(Vector*)(to + r * wide + v * VECTOR) = sum[r][v];                                           \
  }
PRODUCT(@BLOCK@, 2)
PRODUCT(@BLOCK@, 1)
PRODUCT(4, 2)
PRODUCT(4, 1)

INLINE void products(int rows, float* to, i64 wide, const float* x, i64 k, const float* w) {
  i64 c = 0;
  for (; c + 2 * VECTOR <= wide; c += 2 * VECTOR) {
    if (rows == 4) product_4_2(to + c, wide, x, k, w + c * k);
    else product_@BLOCK@_2(to + c, wide, x, k, w + c * k);
  }
  if (c == wide) return;
  if (rows == 4) product_4_1(to + c, wide, x, k, w + c * k);
  else product_@BLOCK@_1(to + c, wide, x, k, w + c * k);
}

// x [units, rows] = a layer's function of its products h [rows, wide].
#define AFTER(N)                                                                                               \
  INLINE void after_##N(int rows, float* restrict x, float* restrict h, i64 units, const float* restrict b) { \
    const i64 wide = PADDED(units);                                                                            \
    for (int r = 0; r < rows; r++, h += wide) {                                                                \
      for (i64 c = 0; c < units; c++) h[c] = layer_##N(h[c] + b[c], b + wide + c, wide);                       \
      for (i64 c = 0; c < units; c++) x[c * rows + r] = h[c];                                                  \
    }                                                                                                          \
  }
@AFTERS@

// The network's value of each of `rows` items, into s.
INLINE void network(int rows, const Call* a, const Layout* at, const float* own, const float* base, float* x,
                    float* h, float* s) {
  products(rows, h, PADDED(a->layer[0].units), x, a->width, own);
  after_0(rows, x, h, a->layer[0].units, base);
#pragma GCC unroll 1
  for (int n = 1; n < LAYERS - 1; n++) {
    const i64 units = a->layer[n].units;
    products(rows, h, PADDED(units), x, a->layer[n - 1].units, at->layer[n].w);
    switch (n) {
      @CASES@
    }
  }
  if (LAYERS == 1) {
    memcpy(s, x, 4 * rows);
    return;
  }
  const i64 units = LAYERS > 1 ? a->layer[LAYERS - 2].units : 0;
  const float *const b = at->layer[LAYERS - 1].b, *const w = a->layer[LAYERS - 1].w;
  float sum[BLOCK] = {0};
  for (i64 c = 0; c < units; c++)
    for (int r = 0; r < rows; r++) sum[r] += w[c] * x[c * rows + r];
  for (int r = 0; r < rows; r++) s[r] = last(sum[r] + b[0], b + VECTOR, VECTOR);
}

INLINE void marks(const Call* a, i64 row, i64 t, float* p) {
  for (int n = 0; n < @MARKS@; n++) {
    const i64 at = row * a->mark[n].row + t * a->mark[n].item;
    p[n] = a->mark[n].bytes == 1 ? ((const unsigned char*)a->mark[n].at)[at] : ((const float*)a->mark[n].at)[at];
  }
}

static void softmax(float* restrict s, i64 n) {
  float most = -INFINITY, sum = 0.0f;
  for (i64 t = 0; t < n; t++) most = s[t] > most ? s[t] : most;
  for (i64 t = 0; t < n; t++) {
    const float x = s[t] - most;  // nan where one is infinite, or all are not to be seen
    s[t] = x < -87.0f ? 0.0f : exponential(x);
  }
  for (i64 t = 0; t < n; t++) sum += s[t];
  for (i64 t = 0; t < n; t++) s[t] /= sum;
}

// The sum of the products of two rows of numbers.
INLINE float dot(const float* x, const float* y, i64 n) {
  Vector sums = {0};
  i64 i = 0;
  for (; i + VECTOR <= n; i += VECTOR) sums += *(const Vector*)(x + i) * *(const Vector*)(y + i);
  float sum = 0.0f;
  for (; i < n; i++) sum += x[i] * y[i];
  for (int v = 0; v < VECTOR; v++) sum += sums[v];
  return sum;
}

static void row_of(const Call* a, const Layout* at, i64 row, float* memory, int alone) {
  const i64 D = a->width, T = a->items, N = a->layer[0].units, P = PADDED(N);
  float* const x = memory;                            // [widest, BLOCK]
  float* const h = x + ALIGNED(at->widest * BLOCK);   // [BLOCK, widest]
  float* const own = h + ALIGNED(at->widest * BLOCK); // [P, D] in tiles
  float* const base = own + ALIGNED(P * D);           // b of the row, and the first layer's params
  float* const s = base + ALIGNED(P * (1 + a->layer[0].params));
  i64* const seen = (i64*)(s + ALIGNED(T));
  const float *const q = a->q + row * a->q_row, *const k = a->k + row * a->k_row, *const v = a->v + row * a->v_row;
  const float* matrix = at->of_k;
  if (a->of_both && alone) {
    float* const mine = at->of_both;  // where nothing is packed
    for (i64 n = 0, i = 0; n < N; n++)
      for (i64 d = 0; d < D; d++, i++) mine[i] = (a->of_k ? a->of_k[i] : 0.0f) + a->of_both[i] * q[d];
    tiles(own, mine, N, D);
    matrix = own;
  } else if (a->of_both) {
    const float zero[VECTOR] = {0};
    for (i64 c = 0, i = 0; c < P; c += VECTOR)
      for (i64 d = 0; d < D; d++, i += VECTOR) {
        const Vector known = *(const Vector*)(a->of_k ? at->of_k + i : zero);
        *(Vector*)(own + i) = known + *(const Vector*)(at->of_both + i) * q[d];
      }
    matrix = own;
  }
  memcpy(base, at->layer[0].b, 4 * P * (1 + a->layer[0].params));
  for (i64 c = 0; a->of_q && alone && c < N; c++) base[c] += dot(a->of_q + c * D, q, D);
  for (i64 c = 0, i = 0; a->of_q && !alone && c < P; c += VECTOR)
    for (i64 d = 0; d < D; d++, i += VECTOR) *(Vector*)(base + c) += *(const Vector*)(at->of_q + i) * q[d];
  i64 count = 0;
  for (i64 t = 0; t < T; t++) {
    float p[MARKS];
    marks(a, row, t, p);
    if (needed(1.0f, p) != 0.0f) seen[count++] = t;
    else s[t] = score(0.0f, p);
  }
  for (i64 first = 0, there; first < count; first += there) {
    const int rows = count - first > 4 ? BLOCK : 4;
    float found[BLOCK];
    there = MAX(0, count - first) < rows ? count - first : rows;
    for (int r = 0; r < rows; r++) {
      const float* from = k + seen[r < there ? first + r : first] * a->k_item;
      for (i64 d = 0; d < D; d++) x[d * rows + r] = from[d];
    }
    if (rows == 4) network(4, a, at, matrix, base, x, h, found);
    else network(BLOCK, a, at, matrix, base, x, h, found);
    for (i64 r = 0; r < there; r++) {
      float p[MARKS];
      marks(a, row, seen[first + r], p);
      s[seen[first + r]] = score(found[r], p);
    }
  }
  if (a->softmax) softmax(s, T);
  float* restrict y = a->y + row * a->values;
  memset(y, 0, 4 * a->values);
  for (i64 t = 0; t < T; t++)
    for (i64 e = 0; e < a->values; e++) y[e] += s[t] * v[t * a->v_item + e];
}

static int rows_of(const Call* a, i64 first, i64 end) {
  Layout at = places(a, NULL);
  const i64 P = PADDED(a->layer[0].units), size = ALIGNED(at.size);
  const i64 numbers = 2 * at.widest * BLOCK + P * (a->width + 1 + a->layer[0].params) + 3 * a->items + 96;
  float* memory = aligned_alloc(64, 4 * ALIGNED(size + numbers));
  if (!memory) return 0;
  at = places(a, memory);
  const int alone = end - first == 1;
  pack(a, &at, alone);
  for (; first < end; first++) row_of(a, &at, first, memory + size, alone);
  free(memory);
  return 1;
}

@MODULE@
"""
