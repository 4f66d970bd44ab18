/* Products of few rows with a large unpacked matrix: the matrix is streamed from memory once, a and c stay in cache.
 *
 * Four ways. Rows of b contiguous: few rows of c take whole rows of b, eight at a time; to more, strips of b are
 * added, two registers wide, while the rows below them are fetched from end to end. Columns of b contiguous: tiles of
 * dot products for few rows of long columns, else (a dot product of k = 64 spends half of its time on adding lanes, and
 * many rows of a are fetched once for each four columns) strips are transposed in cache and go the second way. Each way
 * computes an element of c from its own row and column by one fixed sequence of operations, wherever the tile edges
 * fall, and the way is chosen by m, k and b's layout: cutting n among threads does not change a bit. */
#include "kernels_contract.h"

#include <string.h>

#include "kernels_internal.h"
#include "kernels_tile.h"
#include "kernels_transpose.h"

#if VEC_BYTES == 64
#define DOT_ROWS 6
#elif VEC_BYTES == 32
#define DOT_ROWS 3
#else
#define DOT_ROWS 2
#endif
#define DOT_COLS 4
#define WIDTH (2 * LANE_COUNT)            /* of a strip */
#define DEPTH (VEC_BYTES == 64 ? 32 : 64) /* rows of b at a time: they and the next ones fit the second cache */
#define STEPS_AHEAD 4                     /* of k, that b is fetched before it is used */
#define PANEL ((TILE_ROWS + LANE_COUNT - 1) / LANE_COUNT * LANE_COUNT) /* whole registers, to turn a in them */
#define TILES(rows) (((rows) + TILE_ROWS - 1) / TILE_ROWS)
#define ROWS_OF_B 8
#define STREAM_ROWS (VEC_BYTES == 64 ? 6 : 10) /* of c, up to which reading b from end to end wins over tiles */
#define ROWS_AT_ONCE 32
#define COPY_ROWS 64
#define COPIED_ROWS 14 /* from so many on the dot products' rows of a cost more than turning b */
#define COPY_DEPTH (256 / REAL_BYTES)
#define LONG (4096 / REAL_BYTES) /* of k, whose columns are read from end to end */

_Static_assert(TILES(COPY_ROWS) * 256 <= TILES(ROWS_AT_ONCE) * LONG, "room for the panels of by_copies");

#define INLINE static inline __attribute__((always_inline))

INLINE vec fma_vec(vec a, vec b, vec c) { return a * b + c; }

#define LINE 64 /* bytes */
#define PREFETCH(address) __builtin_prefetch(address, 0, 2)

/* ---- Rows of b contiguous ----------------------------------------------------------------------------------- */

/* c [m, n] += alpha · a [m, k] · b [k, n], m ≤ STREAM_ROWS: ROWS_OF_B rows of b at a time, side by side and from
 * end to end, as memory likes to be read, while the next ones are prefetched. c comes and goes from cache each time. */
static void add_rows(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b, size_t m,
                     size_t n, size_t k, real alpha) {
  const size_t whole = n / LANES * LANES;
  real factor[STREAM_ROWS][ROWS_OF_B] __attribute__((aligned(64)));
  for (size_t p = 0, kb; p < k; p += kb, b += (ptrdiff_t)kb * rs_b) {
    kb = k - p < ROWS_OF_B ? k - p : ROWS_OF_B;
    for (size_t i = 0; i < m; i++)
      for (size_t t = 0; t < kb; t++)
        factor[i][t] = alpha * a[(ptrdiff_t)i * ld_a + (ptrdiff_t)(p + t)];
    const ptrdiff_t ahead = k - p >= 2 * ROWS_OF_B ? ROWS_OF_B * rs_b : 0;
    size_t j = 0;
    for (; kb < ROWS_OF_B && j < whole; j += LANES)
      for (size_t i = 0; i < m; i++) {
        real *to = c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j;
        vec sum = load(to);
        for (size_t t = 0; t < kb; t++)
          sum = fma_vec(splat(factor[i][t]), load(b + (ptrdiff_t)t * rs_b + j), sum);
        store(to, sum);
      }
    for (; j < whole; j += LANES) {
      vec rows[ROWS_OF_B];
#pragma GCC unroll 8
      for (size_t t = 0; t < ROWS_OF_B; t++) {
        const real *at = b + (ptrdiff_t)t * rs_b + j;
        PREFETCH(at + ahead);
        rows[t] = load(at);
      }
      real *to = c + j;
      for (size_t i = 0; i < m; i++, to += ld_c) {
        vec sum = load(to);
#pragma GCC unroll 8
        for (size_t t = 0; t < ROWS_OF_B; t++)
          sum = fma_vec(splat(factor[i][t]), rows[t], sum);
        store(to, sum);
      }
    }
    for (; j < n; j++)
      for (size_t i = 0; i < m; i++) {
        real *to = c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j;
        for (size_t t = 0; t < kb; t++)
          *to = fma_real(factor[i][t], b[(ptrdiff_t)t * rs_b + (ptrdiff_t)j], *to);
      }
  }
}

/* Lines of memory that will be read next: `row` bytes, then the next row, `apart` bytes on. */
typedef struct lines {
  const char *at;
  size_t line, row;
  ptrdiff_t apart;
  size_t due, tiles; /* a strip's share of the lines is spread over the steps of this many tiles */
} lines;

/* A tile's rows of a, turned: [kb, PANEL] from [rows, kb]. */
static void pack_tile(real *out, const real *a, ptrdiff_t ld_a, size_t rows, size_t kb, real alpha) {
  size_t t = 0;
  for (; t + LANES <= kb; t += LANES)
    for (size_t i = 0; i < rows; i += LANES)
      transpose(out + t * PANEL + i, PANEL, a + (ptrdiff_t)i * ld_a + (ptrdiff_t)t, ld_a,
                rows - i < LANES ? rows - i : LANES);
  for (; t < kb; t++)
    for (size_t i = 0; i < rows; i++)
      out[t * PANEL + i] = a[(ptrdiff_t)i * ld_a + (ptrdiff_t)t];
  for (size_t i = 0; i < kb * PANEL && alpha != (real)1; i++)
    out[i] *= alpha;
}

/* Rows of c in tiles of nearly equal height. */
typedef struct heights {
  size_t tiles, rows, more; /* so many have one row more */
} heights;

INLINE heights cut(size_t m) { return (heights){TILES(m), m / TILES(m), m % TILES(m)}; }

/* [tiles, kb, PANEL] from a [m, kb] */
static void pack(real *packed, const real *a, ptrdiff_t ld_a, heights h, size_t kb, real alpha) {
  for (size_t tile = 0; tile < h.tiles; tile++, packed += kb * PANEL) {
    const size_t rows = h.rows + (tile < h.more);
    pack_tile(packed, a, ld_a, rows, kb, alpha);
    a += (ptrdiff_t)rows * ld_a;
  }
}

/* c [rows, WIDTH] += a [kb, PANEL] · b [kb, WIDTH], and b to `copy` if there is one. A processor waits for a dozen
 * lines at a time and no more: what is computed with comes from the second-level cache a few steps ahead, and `next` is
 * asked for at an even pace. */
INLINE void add_tile(real *c, ptrdiff_t ld_c, const real *a, const real *b, ptrdiff_t rs_b, real *copy, size_t kb,
                     lines *next, const size_t rows) {
  vec sum[TILE_ROWS][2];
#pragma GCC unroll 14
  for (size_t i = 0; i < rows; i++) {
    sum[i][0] = load(c + (ptrdiff_t)i * ld_c);
    sum[i][1] = load(c + (ptrdiff_t)i * ld_c + LANES);
  }
  lines ahead = *next;
  for (size_t p = 0; p < kb; p++, b += rs_b, a += PANEL) {
    const vec b0 = load(b), b1 = load(b + LANES);
    if (copy != NULL) {
      __builtin_prefetch(b + STEPS_AHEAD * rs_b);
      if (2 * VEC_BYTES > LINE)
        __builtin_prefetch(b + STEPS_AHEAD * rs_b + LANES);
      store(copy + p * WIDTH, b0);
      store(copy + p * WIDTH + LANES, b1);
    }
    for (ahead.due += 2 * VEC_BYTES / LINE; ahead.due >= ahead.tiles; ahead.due -= ahead.tiles) {
      PREFETCH(ahead.at + ahead.line);
      ahead.line += LINE;
      if (ahead.line >= ahead.row)
        ahead.line = 0, ahead.at += ahead.apart;
    }
#pragma GCC unroll 14
    for (size_t i = 0; i < rows; i++) {
      const vec factor = splat(a[i]);
      sum[i][0] = fma_vec(factor, b0, sum[i][0]);
      sum[i][1] = fma_vec(factor, b1, sum[i][1]);
    }
  }
  *next = ahead;
#pragma GCC unroll 14
  for (size_t i = 0; i < rows; i++) {
    store(c + (ptrdiff_t)i * ld_c, sum[i][0]);
    store(c + (ptrdiff_t)i * ld_c + LANES, sum[i][1]);
  }
}

/* The same; the number of rows becomes a constant. */
INLINE void add_tile_of(real *c, ptrdiff_t ld_c, const real *a, const real *b, ptrdiff_t rs_b, real *copy, size_t kb,
                        lines *next, size_t rows) {
#define TILE(count)                                                                                                    \
  case count:                                                                                                          \
    add_tile(c, ld_c, a, b, rs_b, copy, kb, next, count);                                                              \
    break
  switch (rows) {
    EACH_HEIGHT(TILE)
  default:
    break;
  }
#undef TILE
}

/* A strip's first tile reads b where it lies and copies it; the others read the copy. */
static void add_first_tile(real *c, ptrdiff_t ld_c, const real *a, const real *b, ptrdiff_t rs_b, real *copy, size_t kb,
                           lines *next, size_t rows) {
  add_tile_of(c, ld_c, a, b, rs_b, copy, kb, next, rows);
}

static void add_copied_tile(real *c, ptrdiff_t ld_c, const real *a, const real *b, size_t kb, lines *next,
                            size_t rows) {
  add_tile_of(c, ld_c, a, b, WIDTH, NULL, kb, next, rows);
}

/* c [m, n] += packed a · b [kb, WIDTH], which the first tile copies for the others; of columns beyond n ≤ WIDTH the
 * sums are dropped. */
static void add_strip(real *c, ptrdiff_t ld_c, const real *packed, const real *b, ptrdiff_t rs_b, heights h, size_t n,
                      size_t kb, lines *next) {
  real part[TILE_ROWS * WIDTH] __attribute__((aligned(64)));
  real copy[DEPTH * WIDTH] __attribute__((aligned(64)));
  for (size_t tile = 0; tile < h.tiles; tile++, packed += kb * PANEL) {
    const size_t rows = h.rows + (tile < h.more);
    real *to = n == WIDTH ? c : part;
    const ptrdiff_t ld = n == WIDTH ? ld_c : WIDTH;
    for (size_t r = 0; n < WIDTH && r < rows; r++)
      for (size_t l = 0; l < WIDTH; l++)
        part[r * WIDTH + l] = l < n ? c[(ptrdiff_t)r * ld_c + (ptrdiff_t)l] : (real)0;
    if (rs_b == WIDTH || tile > 0)
      add_copied_tile(to, ld, packed, rs_b == WIDTH ? b : copy, kb, next, rows);
    else
      add_first_tile(to, ld, packed, b, rs_b, copy, kb, next, rows);
    for (size_t r = 0; n < WIDTH && r < rows; r++)
      memcpy(c + (ptrdiff_t)r * ld_c, part + r * WIDTH, n * sizeof *c);
    c += (ptrdiff_t)rows * ld_c;
  }
}

/* A strip [kb, WIDTH] of our own from b [kb, n]; zeros to its right. */
static void copy_strip(real *out, const real *b, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t kb, size_t n) {
  size_t t = 0;
  for (; rs_b == 1 && cs_b != 1 && t + LANES <= kb; t += LANES)
    for (size_t j = 0; j < WIDTH; j += LANES)
      transpose(out + t * WIDTH + j, WIDTH, b + (ptrdiff_t)j * cs_b + (ptrdiff_t)t, cs_b,
                n <= j          ? 0
                : n - j < LANES ? n - j
                                : LANES);
  for (; t < kb; t++)
    for (size_t l = 0; l < WIDTH; l++)
      out[t * WIDTH + l] = l < n ? b[(ptrdiff_t)l * cs_b + (ptrdiff_t)t * rs_b] : (real)0;
}

static void scale_rows(real *c, ptrdiff_t ld_c, size_t m, size_t n, real beta) {
  for (size_t i = 0; i < m; i++, c += ld_c)
    if (beta == (real)0)
      memset(c, 0, n * sizeof *c);
    else
      for (size_t j = 0; j < n && beta != (real)1; j++)
        c[j] *= beta;
}

/* c [m, n] += a [m, k] · b [k, n], n ≤ CLEW_STREAM_COLUMNS: DEPTH rows of b at a time, strip by strip, from the
 * second-level cache. Meanwhile the next rows come there from end to end, as memory likes to be read; the first ones
 * all at once: strip by strip they took a tenth of the time. */
static void add_strips(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b, size_t m,
                       size_t n, size_t k, real alpha) {
  real packed[TILES(ROWS_AT_ONCE) * DEPTH * PANEL] __attribute__((aligned(64)));
  real last[DEPTH * WIDTH] __attribute__((aligned(64)));
  const heights h = cut(m);
  for (size_t t = 0; t < k && t < DEPTH; t++)
    for (size_t j = 0; j < n; j += LINE / REAL_BYTES)
      PREFETCH(b + (ptrdiff_t)t * rs_b + (ptrdiff_t)j);
  for (size_t p = 0, kb; p < k; p += kb, b += (ptrdiff_t)kb * rs_b) {
    kb = k - p < DEPTH ? k - p : DEPTH;
    pack(packed, a + p, ld_a, h, kb, alpha);
    const real *then = p + kb < k ? b + (ptrdiff_t)kb * rs_b : b;
    lines next = {(const char *)then, 0, n * REAL_BYTES, rs_b * REAL_BYTES, 0, h.tiles};
    for (size_t j = 0; j < n; j += WIDTH) {
      const size_t here = n - j < WIDTH ? n - j : WIDTH;
      if (here < WIDTH)
        copy_strip(last, b + j, rs_b, 1, kb, here);
      add_strip(c + j, ld_c, packed, here < WIDTH ? last : b + j, here < WIDTH ? WIDTH : rs_b, h, here, kb, &next);
    }
  }
}

static void rows_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b,
                            size_t m, size_t n, size_t k, real alpha, real beta) {
  scale_rows(c, ld_c, m, n, beta);
  for (size_t j = 0; j < n; j += CLEW_STREAM_COLUMNS) {
    const size_t here = n - j < CLEW_STREAM_COLUMNS ? n - j : CLEW_STREAM_COLUMNS;
    (m <= STREAM_ROWS ? add_rows : add_strips)(c + j, ld_c, a, ld_a, b + j, rs_b, m, here, k, alpha);
  }
}

/* ---- Columns of b contiguous -------------------------------------------------------------------------------- */

/* c [mi, nj] = alpha · a [mi, k] · b [k, nj] + beta · c, b's columns cs_b apart. Meanwhile the `ahead` columns that
 * begin at next are prefetched. */
INLINE void dot_tile(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b, size_t k,
                     real alpha, real beta, const real *next, const size_t ahead, const size_t mi, const size_t nj) {
  vec sum[DOT_ROWS][DOT_COLS];
#pragma GCC unroll 8
  for (size_t i = 0; i < mi; i++)
#pragma GCC unroll 8
    for (size_t j = 0; j < nj; j++)
      sum[i][j] = (vec){0};
  const size_t steps = k / LANES, parts = ahead ? ahead : 1;
  size_t p = 0;
  for (size_t part = 0; part < parts; part++) { /* while one is prefetched */
    const char *line = (const char *)(next + (ptrdiff_t)part * cs_b);
    for (const size_t end = steps * (part + 1) / parts * LANES; p < end; p += LANES) {
      vec column[DOT_COLS];
#pragma GCC unroll 8
      for (size_t j = 0; j < nj; j++)
        column[j] = load(b + (ptrdiff_t)j * cs_b + (ptrdiff_t)p);
      for (size_t l = 0; l < ahead * VEC_BYTES; l += LINE)
        PREFETCH(line + l);
      line += ahead * VEC_BYTES;
#pragma GCC unroll 8
      for (size_t i = 0; i < mi; i++) {
        const vec row = load(a + (ptrdiff_t)i * ld_a + (ptrdiff_t)p);
#pragma GCC unroll 8
        for (size_t j = 0; j < nj; j++)
          sum[i][j] = fma_vec(row, column[j], sum[i][j]);
      }
    }
  }
#pragma GCC unroll 8
  for (size_t i = 0; i < mi; i++) {
    real total[DOT_COLS];
    if (nj == DOT_COLS)
      lane_sums(total, sum[i][0], sum[i][1], sum[i][2], sum[i][3]);
    else
      total[0] = lane_sum(sum[i][0]);
    real *out = c + (ptrdiff_t)i * ld_c;
    for (size_t j = 0; j < nj; j++) {
      for (size_t t = p; t < k; t++)
        total[j] = fma_real(a[(ptrdiff_t)i * ld_a + (ptrdiff_t)t], b[(ptrdiff_t)j * cs_b + (ptrdiff_t)t], total[j]);
      total[j] *= alpha;
      out[j] = beta == (real)0 ? total[j] : fma_real(beta, out[j], total[j]);
    }
  }
}

/* The same for mi rows, whose number becomes a constant. */
INLINE void dot_rows(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b, size_t k,
                     real alpha, real beta, const real *next, const size_t ahead, size_t mi) {
#define ROWS(count)                                                                                                    \
  case count:                                                                                                          \
    dot_tile(c, ld_c, a, ld_a, b, cs_b, k, alpha, beta, next, ahead, count, DOT_COLS);                                 \
    break
  switch (mi) {
    ROWS(1);
    ROWS(2);
#if DOT_ROWS > 2
    ROWS(3);
#endif
#if DOT_ROWS > 3
    ROWS(4);
    ROWS(5);
    ROWS(6);
#endif
  default:
    break;
  }
#undef ROWS
}

/* One row of c: columns one after the other, as they lie in memory; side by side they take a quarter longer. */
static void row_by_columns(real *c, const real *a, const real *b, ptrdiff_t cs_b, size_t n, size_t k, real alpha,
                           real beta) {
  for (size_t j = 0; j < n; j++) {
    const real *column = b + (ptrdiff_t)j * cs_b;
    vec sum[4] = {{0}};
    size_t p = 0;
    for (; p + 4 * LANES <= k; p += 4 * LANES)
#pragma GCC unroll 4
      for (size_t t = 0; t < 4; t++)
        sum[t] = fma_vec(load(a + p + t * LANES), load(column + p + t * LANES), sum[t]);
    for (; p + LANES <= k; p += LANES)
      sum[0] = fma_vec(load(a + p), load(column + p), sum[0]);
    real total = lane_sum((sum[0] + sum[1]) + (sum[2] + sum[3]));
    for (; p < k; p++)
      total = fma_real(a[p], column[p], total);
    total *= alpha;
    c[j] = beta == (real)0 ? total : fma_real(beta, c[j], total);
  }
}

static void columns_contiguous(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t cs_b,
                               size_t m, size_t n, size_t k, real alpha, real beta) {
  if (m == 1 && k >= 4 * LANES) { /* the sums of shorter columns are worth adding up four at a time */
    row_by_columns(c, a, b, cs_b, n, k, alpha, beta);
    return;
  }
  const size_t passes = (m + DOT_ROWS - 1) / DOT_ROWS;
  const size_t share = passes < 4 ? DOT_COLS / 2 : 1; /* of the next columns, in each pass */
  size_t j = 0;
  for (; j + DOT_COLS <= n; j += DOT_COLS) {
    const real *columns = b + (ptrdiff_t)j * cs_b;
    const real *next = j + 2 * DOT_COLS <= n ? columns + DOT_COLS * cs_b : columns;
    if (passes == 1) {
      dot_rows(c + j, ld_c, a, ld_a, columns, cs_b, k, alpha, beta, next, DOT_COLS, m);
      continue;
    }
    for (size_t pass = 0; pass < passes; pass++) {
      const size_t i = m * pass / passes, first = pass * share;
      dot_rows(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, columns, cs_b, k, alpha,
               beta, first < DOT_COLS ? next + (ptrdiff_t)first * cs_b : next, first < DOT_COLS ? share : 0,
               m * (pass + 1) / passes - i);
    }
  }
  for (; j < n; j++)
    for (size_t i = 0; i < m; i++)
      dot_tile(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)j, ld_c, a + (ptrdiff_t)i * ld_a, ld_a, b + (ptrdiff_t)j * cs_b,
               cs_b, k, alpha, beta, b, 0, 1, 1);
}

/* ---- Strips of b, copied: short contiguous columns are turned, few of contiguous rows filled up -------------- */

static void by_copies(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b,
                      ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha, real beta) {
  real packed[TILES(ROWS_AT_ONCE) * LONG * PANEL] __attribute__((aligned(64))); /* [depths, tiles, COPY_DEPTH, PANEL] */
  real copy[COPY_DEPTH * WIDTH] __attribute__((aligned(64)));
  const heights h = cut(m);
  scale_rows(c, ld_c, m, n, beta);
  for (size_t q = 0, kq; q < k; q += kq, a += kq, b += (ptrdiff_t)kq * rs_b) {
    kq = k - q < LONG ? k - q : LONG;
    for (size_t p = 0; p < kq; p += COPY_DEPTH)
      pack(packed + p * h.tiles * PANEL, a + p, ld_a, h, kq - p < COPY_DEPTH ? kq - p : COPY_DEPTH, alpha);
    for (size_t j = 0; j < n; j += WIDTH) {
      const size_t here = n - j < WIDTH ? n - j : WIDTH;
      const real *strip = b + (ptrdiff_t)j * cs_b, *then = n - j > WIDTH ? strip + WIDTH * cs_b : strip;
      lines next = {(const char *)then,
                    0,
                    (cs_b == 1 ? here : kq) * REAL_BYTES,
                    (cs_b == 1 ? rs_b : cs_b) * REAL_BYTES,
                    0,
                    h.tiles};
      for (size_t p = 0, kb; p < kq; p += kb) {
        kb = kq - p < COPY_DEPTH ? kq - p : COPY_DEPTH;
        copy_strip(copy, strip + (ptrdiff_t)p * rs_b, rs_b, cs_b, kb, here);
        add_strip(c + j, ld_c, packed + p * h.tiles * PANEL, copy, WIDTH, h, here, kb, &next);
      }
    }
  }
}

void K(gemm_few)(real *c /* [m, n] */, ptrdiff_t ld_c, const real *a /* [m, k] */, ptrdiff_t ld_a,
                 const real *b /* [k, n] */, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha,
                 real beta) {
  const bool columns = cs_b != 1 || (n == 1 && rs_b == 1);
  const bool turned = columns && ((k <= 256 && 12 * m >= k) || m >= COPIED_ROWS);
  /* Columns that fill no register: worth a copy when it serves enough rows. */
  const bool narrow = !columns && n < LANES && m >= 8;
  const size_t step = (turned || narrow) && k <= 256 ? COPY_ROWS : ROWS_AT_ONCE;
  for (size_t i = 0; i < m; i += step) {
    const size_t rows = m - i < step ? m - i : step;
    real *part = c + (ptrdiff_t)i * ld_c;
    const real *from = a + (ptrdiff_t)i * ld_a;
    if (turned || narrow)
      by_copies(part, ld_c, from, ld_a, b, rs_b, cs_b, rows, n, k, alpha, beta);
    else if (columns)
      columns_contiguous(part, ld_c, from, ld_a, b, cs_b, rows, n, k, alpha, beta);
    else
      rows_contiguous(part, ld_c, from, ld_a, b, rs_b, rows, n, k, alpha, beta);
  }
}
