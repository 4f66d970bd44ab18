/* Products of many rows: both operands are copied into panels that the innermost loop reads from end to end.
 *
 * The loops, from outside: a block of k; a block of rows, whose panels are copied; a block of columns, whose panels are
 * copied and stay in the second-level cache; a panel of rows, which stays in the first; a panel of columns. The last
 * two meet in a tile of c that is computed in registers. Every element of c is a sum in the order of k within each
 * block of k, added to c, wherever the tile edges fall: cutting m or n among threads does not change a bit. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("fp-contract=fast") /* vectors have no fma builtin */
#else
#pragma STDC FP_CONTRACT ON
#endif

#include <string.h>

#include "kernels_internal.h"
#include "kernels_transpose.h"

/* A tile: as many rows as leave registers for two of b and one of a; two registers of columns. */
#if VEC_BYTES == 64
#define TILE_ROWS 14
#else
#define TILE_ROWS 6
#endif
#define TILE_COLS (2 * LANES)
#define PANEL_ROWS                                                                                                     \
  ((TILE_ROWS + LANE_COUNT - 1) / LANE_COUNT * LANE_COUNT) /* whole registers, so that a is turned in them */

#define DEPTH ((size_t)(1536 / REAL_BYTES)) /* of k at a time: a panel of rows leaves room in 32 KiB */
#define ROWS ((size_t)1024)
#define COLUMNS ((size_t)320)
#define A_VALUES (DEPTH * (ROWS + ROWS / TILE_ROWS * (PANEL_ROWS - TILE_ROWS) + 2 * PANEL_ROWS))

_Static_assert((A_VALUES + DEPTH * COLUMNS) * REAL_BYTES <= CLEW_PACK_BYTES, "room for the panels");

#define INLINE static inline __attribute__((always_inline))

/* ---- A tile --------------------------------------------------------------------------------------------------- */

/* c [rows, n] = Σ_p a[p] b[p] + beta · c; n ≤ width registers. a: [k, PANEL_ROWS], b: [k, TILE_COLS] */
INLINE void tile(real *c, ptrdiff_t ld_c, const real *a, const real *b, size_t k, size_t n, real beta,
                 const size_t rows, const size_t width) {
  vec sum[TILE_ROWS][2];
#pragma GCC unroll 14
  for (size_t i = 0; i < rows; i++) {
    sum[i][0] = sum[i][1] = (vec){0};
    for (size_t v = 0; v < width; v++)
      __builtin_prefetch(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)(v * LANES), 1);
  }
  for (size_t p = 0; p < k; p++, a += PANEL_ROWS, b += TILE_COLS) {
    const vec b0 = load(b), b1 = width > 1 ? load(b + LANES) : b0;
    for (size_t v = 0; v < width * VEC_BYTES; v += 64)
      __builtin_prefetch((const char *)(b + 8 * TILE_COLS) + v);
#pragma GCC unroll 14
    for (size_t i = 0; i < rows; i++) {
      const vec factor = splat(a[i]);
      sum[i][0] = factor * b0 + sum[i][0];
      if (width > 1)
        sum[i][1] = factor * b1 + sum[i][1];
    }
  }
  const vec old = splat(beta);
#pragma GCC unroll 14
  for (size_t i = 0; i < rows; i++) {
    real *row = c + (ptrdiff_t)i * ld_c;
    if (n == width * LANES) {
#pragma GCC unroll 2
      for (size_t v = 0; v < width; v++)
        store(row + v * LANES, beta == (real)0 ? sum[i][v] : old * load(row + v * LANES) + sum[i][v]);
      continue;
    }
    real part[2 * LANE_COUNT];
#pragma GCC unroll 2
    for (size_t v = 0; v < width; v++)
      store(part + v * LANES, sum[i][v]);
    for (size_t j = 0; j < n; j++)
      row[j] = beta == (real)0 ? part[j] : fma_real(beta, row[j], part[j]);
  }
}

/* The same; the number of rows becomes a constant. */
static void tile_of(real *c, ptrdiff_t ld_c, const real *a, const real *b, size_t k, size_t n, real beta, size_t rows) {
#define TILE(count)                                                                                                    \
  case count:                                                                                                          \
    if (n <= LANES)                                                                                                    \
      tile(c, ld_c, a, b, k, n, beta, count, 1);                                                                       \
    else                                                                                                               \
      tile(c, ld_c, a, b, k, n, beta, count, 2);                                                                       \
    break
  switch (rows) {
    TILE(1);
    TILE(2);
    TILE(3);
    TILE(4);
    TILE(5);
    TILE(6);
#if TILE_ROWS > 6
    TILE(7);
    TILE(8);
    TILE(9);
    TILE(10);
    TILE(11);
    TILE(12);
    TILE(13);
    TILE(14);
#endif
  default:
    break;
  }
#undef TILE
}

/* ---- Panels --------------------------------------------------------------------------------------------------- */

/* out [k, width] = in [n, k] turned, zeros behind its n ≤ width columns; width is a number of registers. */
INLINE void fill(real *out, const real *in, ptrdiff_t across, ptrdiff_t along, size_t n, size_t k, const size_t width) {
  if (along == 1) { /* k is contiguous */
    for (size_t j = 0; j < width; j += LANES) {
      const size_t here = j >= n ? 0 : n - j < LANES ? n - j : LANES;
      size_t p = 0;
      for (; p + LANES <= k; p += LANES)
        transpose(out + p * width + j, width, in + (ptrdiff_t)j * across + (ptrdiff_t)p, across, here);
      for (; p < k; p++)
        for (size_t l = 0; l < LANES; l++)
          out[p * width + j + l] = l < here ? in[(ptrdiff_t)(j + l) * across + (ptrdiff_t)p] : (real)0;
    }
  } else if (across == 1 && n == width) {
    for (size_t p = 0; p < k; p++)
      for (size_t j = 0; j < width; j += LANES)
        store(out + p * width + j, load(in + (ptrdiff_t)p * along + (ptrdiff_t)j));
  } else {
    for (size_t p = 0; p < k; p++)
      for (size_t j = 0; j < width; j++)
        out[p * width + j] = j < n ? in[(ptrdiff_t)j * across + (ptrdiff_t)p * along] : (real)0;
  }
}

INLINE size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* First of part i of n things in so many parts as even as can be. */
INLINE size_t begin_of(size_t n, size_t parts, size_t i) { return n / parts * i + least(i, n % parts); }

void K(gemm_packed)(real *c /* [m, n] */, ptrdiff_t ld_c, const real *a /* [m, k] */, ptrdiff_t rs_a, ptrdiff_t cs_a,
                    const real *b /* [k, n] */, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k,
                    real alpha, real beta, real *room) {
  real *rows_of_a = room + DEPTH * COLUMNS; /* [panels, depth, PANEL_ROWS] */
  real *columns = room;                     /* [panels, depth, TILE_COLS] */
  const size_t blocks = (k + DEPTH - 1) / DEPTH;
  for (size_t block = 0; block < blocks; block++) {
    const size_t p = begin_of(k, blocks, block), depth = begin_of(k, blocks, block + 1) - p;
    const real old = block == 0 ? beta : (real)1;
    for (size_t first = 0; first < m; first += ROWS) {
      const size_t n_rows = least(ROWS, m - first), panels = (n_rows + TILE_ROWS - 1) / TILE_ROWS;
      for (size_t i = 0; i < panels; i++) {
        const size_t at = begin_of(n_rows, panels, i), count = begin_of(n_rows, panels, i + 1) - at;
        real *panel = rows_of_a + i * depth * PANEL_ROWS;
        const real *from = a + (ptrdiff_t)(first + at) * rs_a + (ptrdiff_t)p * cs_a;
        /* Rows behind the panel's own are read with it where they belong to a: whole registers. */
        fill(panel, from, rs_a, cs_a, cs_a != 1 && first + at + PANEL_ROWS <= m ? PANEL_ROWS : count, depth,
             PANEL_ROWS);
        if (alpha != (real)1)
          for (size_t t = 0; t < depth * PANEL_ROWS; t++)
            panel[t] *= alpha;
      }
      for (size_t j = 0; j < n; j += COLUMNS) {
        const size_t n_cols = least(COLUMNS, n - j);
        for (size_t l = 0; l < n_cols; l += TILE_COLS)
          fill(columns + l * depth, b + (ptrdiff_t)(j + l) * cs_b + (ptrdiff_t)p * rs_b, cs_b, rs_b,
               least(TILE_COLS, n_cols - l), depth, TILE_COLS);
        for (size_t i = 0; i < panels; i++) {
          const size_t at = begin_of(n_rows, panels, i), count = begin_of(n_rows, panels, i + 1) - at;
          for (size_t l = 0; l < n_cols; l += TILE_COLS)
            tile_of(c + (ptrdiff_t)(first + at) * ld_c + (ptrdiff_t)(j + l), ld_c, rows_of_a + i * depth * PANEL_ROWS,
                    columns + l * depth, depth, least(TILE_COLS, n_cols - l), old, count);
        }
      }
    }
  }
}
