/* Products of many rows: both operands are copied into panels that the innermost loop reads from end to end.
 *
 * The loops, from outside: a block of k; a block of rows; a block of columns, whose panels are copied and stay in the
 * second-level cache; a panel of rows, which stays in the first; a panel of columns. The last two meet in a tile of c
 * that is computed in registers, while what comes next is fetched: the next panel of rows and the next block of columns
 * into the second-level cache and, with AVX-512, b's lines a few steps ahead into the first (elsewhere the processor
 * does so by itself, and the instructions cost 5 %). Every element of c is a sum in the order of k within each block of
 * k, added to c, wherever the tile edges fall: cutting m or n among threads does not change a bit. */
#include "kernels_contract.h"

#include <string.h>

#include "kernels_internal.h"
#include "kernels_tile.h"
#include "kernels_transpose.h"

/* A tile of c, as large as leaves registers for a row of b and one value of a: high, or, where the registers are 16,
 * wide, which takes 7 loads for its 12 products and not 8. */
#define HIGH_WIDTH ((size_t)2) /* registers, of TILE_ROWS rows */
#if VEC_BYTES == 64
#define WIDE_ROWS TILE_ROWS
#define WIDE_WIDTH HIGH_WIDTH
#else
#define WIDE_ROWS 4
#define WIDE_WIDTH ((size_t)3)
#endif
/* Rows of a that are turned: whole registers, in which as many tiles lie as fit. */
#define PANEL_ROWS ((TILE_ROWS + LANE_COUNT - 1) / LANE_COUNT * LANE_COUNT)

#define DEPTH ((size_t)(1536 / REAL_BYTES)) /* of k at a time: a panel of rows leaves room in 32 KiB */
#define ROWS ((size_t)1024)
#define COLUMNS ((size_t)(VEC_BYTES == 64 ? 512 : 96)) /* the second-level cache has 1 MiB; 512 KiB on Zen 2 and 3 */
#define LINE 64                                        /* bytes of a line of the caches */
#define RUNS (LINE / sizeof(real))                     /* of a block's k: a tile fetches as many lines for each */
/* From a panel of so many values to the next: a line more, as multiples of 4 KiB meet in the same sets of a cache. */
#define APART(values) ((values) + LINE / sizeof(real))
#define ROWS_AHEAD 8  /* of what is copied */
#define STEPS_AHEAD 8 /* of k, that b is fetched before it is used */
/* Rows of a at these distances meet in one or two sets of the first cache, which hold eight lines each. */
#define CONFLICT(bytes) (TILE_ROWS > 8 && (bytes) % 2048 == 0)
#define A_VALUES (APART(DEPTH * PANEL_ROWS) * (ROWS / TILE_ROWS + 2))
#define B_VALUES (APART(DEPTH * HIGH_WIDTH * LANES) * (COLUMNS / (HIGH_WIDTH * LANES)))

_Static_assert((A_VALUES + B_VALUES) * REAL_BYTES <= CLEW_PACK_BYTES, "room for the panels");

#define INLINE static inline __attribute__((always_inline))

INLINE size_t least(size_t a, size_t b) { return a < b ? a : b; }

/* ---- A tile --------------------------------------------------------------------------------------------------- */

/* One operand's rows of a tile: element (i, p) lies i · row + p · step bytes behind at. */
typedef struct rows_of {
  const char *at;
  ptrdiff_t row, step;
} rows_of;

/* Rows of a tile, and registers of each. */
typedef struct shape {
  size_t rows, width;
} shape;

/* Tiles of so many columns. Few of them that fill high tiles would leave wide ones a rest of one register, which is
 * slow as it waits for its own sums: 6 % of 128 columns, a quarter of 32. */
INLINE shape shape_of(size_t n) {
  const size_t registers = (n + LANES - 1) / LANES;
  const bool high = WIDE_WIDTH == HIGH_WIDTH || (registers <= 16 && registers % 6 == 4);
  return high ? (shape){TILE_ROWS, HIGH_WIDTH} : (shape){WIDE_ROWS, WIDE_WIDTH};
}

/* What is fetched while tiles are computed, two runs of lines for each: `runs` of them begin `next` bytes apart, and go
 * on by `step`. `run` is the next one. Then come other ones, or else those that begin a line later. */
typedef struct runs_of {
  const char *at;
  ptrdiff_t next, step;
  size_t run, runs;
  const struct runs_of *then;
} runs_of;

/* c [rows, width registers] = Σ_p a[p] b[p] + beta · c. a: [rows, k], b: [k, step]
 * Rows are addressed three by three, as an instruction adds no, one or two times a register: five pointers for 14. */
INLINE void tile(real *c, ptrdiff_t ld_c, rows_of a, const real *b, size_t k, real beta, runs_of ahead,
                 const size_t rows, const size_t width, const size_t step) {
  vec sum[TILE_ROWS][WIDE_WIDTH];
  const char *three[(TILE_ROWS + 2) / 3];
#pragma GCC unroll 14
  for (size_t i = 0; i < rows; i++) {
    for (size_t v = 0; v < width; v++) {
      sum[i][v] = (vec){0};
      __builtin_prefetch(c + (ptrdiff_t)i * ld_c + (ptrdiff_t)(v * LANES), 1);
    }
    if (i % 3 == 0)
      three[i / 3] = a.at + (ptrdiff_t)i * a.row;
  }
  for (size_t p = 0; p < k; ahead.at += ahead.step) {
    __builtin_prefetch(ahead.at, 0, 2);
    __builtin_prefetch(ahead.at + ahead.next, 0, 2);
#if VEC_BYTES == 32
#pragma GCC unroll 8 /* buys 2 % over 2, 7 % over 1, on Zen 3 */
#endif
    for (const size_t end = least(p + LINE / sizeof(real), k); p < end; p++, b += step) {
      vec of_b[WIDE_WIDTH];
#pragma GCC unroll 3
      for (size_t v = 0; v < width; v++)
        of_b[v] = load(b + v * LANES);
#if VEC_BYTES == 64
      __builtin_prefetch(b + STEPS_AHEAD * step);
      __builtin_prefetch(b + STEPS_AHEAD * step + LANES);
#endif
#pragma GCC unroll 14
      for (size_t i = 0; i < rows; i++) {
        const vec factor = splat(*(const real *)(three[i / 3] + (ptrdiff_t)(i % 3) * a.row));
#pragma GCC unroll 3
        for (size_t v = 0; v < width; v++)
          sum[i][v] = factor * of_b[v] + sum[i][v];
        if (i % 3 == 2 || i + 1 == rows)
          three[i / 3] += a.step;
      }
    }
  }
  const vec old = splat(beta);
#pragma GCC unroll 14
  for (size_t i = 0; i < rows; i++) {
    real *row = c + (ptrdiff_t)i * ld_c;
#pragma GCC unroll 3
    for (size_t v = 0; v < width; v++)
      store(row + v * LANES, beta == (real)0 ? sum[i][v] : old * load(row + v * LANES) + sum[i][v]);
  }
}

/* The same for n columns of c, whose panels of b follow one another. */
INLINE void tiles(real *c, ptrdiff_t ld_c, rows_of a, const real *b, size_t k, size_t n, real beta, runs_of behind,
                  const size_t rows, const size_t widest) {
  const size_t step = widest * LANES;
  real part[WIDE_ROWS * WIDE_WIDTH * LANES] __attribute__((aligned(64)));
  for (size_t j = 0; j < n; j += step, b += APART(k * step)) {
    const size_t left = least(step, n - j), width = (left + LANES - 1) / LANES;
    const bool whole = left == width * LANES; /* registers: else they go through a buffer */
    real *to = whole ? c + j : part;
    const ptrdiff_t ld = whole ? ld_c : (ptrdiff_t)step;
    const real old = whole ? beta : (real)0;
    runs_of ahead = behind;
    ahead.at += (ptrdiff_t)behind.run * behind.next;
    behind.run += 2;
    if (behind.run >= behind.runs && behind.then)
      behind = *behind.then;
    else if (behind.run >= behind.runs)
      behind.run = 0, behind.at += LINE;
    if (width == widest)
      tile(to, ld, a, b, k, old, ahead, rows, widest, step);
    else if (width == 1)
      tile(to, ld, a, b, k, old, ahead, rows, 1, step);
    else if (widest > 2) /* two of three */
      tile(to, ld, a, b, k, old, ahead, rows, 2, step);
    for (size_t i = 0; i < rows && !whole; i++)
      for (size_t l = 0; l < left; l++) {
        real *x = c + (ptrdiff_t)i * ld_c + (ptrdiff_t)(j + l);
        const real sum = part[i * step + l];
        *x = beta == (real)0 ? sum : fma_real(beta, *x, sum);
      }
  }
}

/* The same; the numbers of rows and registers become constants. */
static void tiles_of(real *c, ptrdiff_t ld_c, rows_of a, const real *b, size_t k, size_t n, real beta, runs_of behind,
                     shape of) {
#define TILES(count, width)                                                                                            \
  case count:                                                                                                          \
    tiles(c, ld_c, a, b, k, n, beta, behind, count, width);                                                            \
    break
#define HIGH(count) TILES(count, HIGH_WIDTH)
#define WIDE(count) TILES(count, WIDE_WIDTH)
#if VEC_BYTES != 64
  if (of.width == WIDE_WIDTH) {
    switch (of.rows) {
      FOUR_HEIGHTS(WIDE)
    default:
      break;
    }
    return;
  }
#endif
  switch (of.rows) {
    EACH_HEIGHT(HIGH)
  default:
    break;
  }
#undef WIDE
#undef HIGH
#undef TILES
}

/* ---- Panels --------------------------------------------------------------------------------------------------- */

/* Panels [k, width], APART(k · width) values apart, each of `step` columns of in [k, n], step ≤ width. What lies behind
 * its own columns is 0 or anything else of in. Contiguous rows are read from end to end, contiguous columns turned in
 * squares. To sums [n], or NULL, the columns of contiguous rows are added, where step = width. */
INLINE void fill(real *out, const real *in, ptrdiff_t along, ptrdiff_t across, size_t k, size_t n, const size_t step,
                 const size_t width, real *sums) {
  if (along == 1 && across != 1) {
    for (size_t j = 0; j < n; j += step, out += APART(k * width))
      for (size_t l = 0; l < width; l += LANES) {
        const size_t columns = least(step, n - j), here = l < columns ? least(LANES, columns - l) : 0;
        const real *from = in + (ptrdiff_t)(j + l) * across;
        size_t p = 0;
        for (; p + LANES <= k; p += LANES)
          transpose(out + p * width + l, width, from + p, across, here);
        for (; p < k; p++)
          for (size_t i = 0; i < LANES; i++)
            out[p * width + l + i] = i < here ? from[(ptrdiff_t)i * across + (ptrdiff_t)p] : (real)0;
      }
    return;
  }
  for (size_t p = 0; p < k; p++) {
    const real *row = in + (ptrdiff_t)p * along;
    real *to = out + p * width;
    for (size_t l = 0; l < n; l += LINE / sizeof(real))
      __builtin_prefetch(row + ROWS_AHEAD * along + l);
    size_t j = 0;
    for (; across == 1 && j + width <= n; j += step, to += APART(k * width))
      for (size_t l = 0; l < width; l += LANES) {
        const vec values = load(row + j + l);
        store(to + l, values);
        if (sums)
          store(sums + j + l, load(sums + j + l) + values);
      }
    for (; j < n; j += step, to += APART(k * width)) {
      for (size_t l = 0; l < width; l += LANES)
        store(to + l, (vec){0});
      for (size_t l = 0; l < least(n - j, step); l++) {
        to[l] = row[(ptrdiff_t)(j + l) * across];
        if (sums)
          sums[j + l] += to[l];
      }
    }
  }
}

/* The values of a block of k that are copied: those of a, turned, and of b. */
typedef struct raw {
  const char *a, *b;
  ptrdiff_t step_a, step_b; /* bytes from one of k to the next */
  size_t lines_of_a;
} raw;

/* Fetches the block behind this one: a line of all of k after the other, those of a first. */
INLINE runs_of next_block(const raw *now, size_t depth, size_t run) {
  const size_t line = run / RUNS, each = (depth + RUNS - 1) / RUNS;
  const bool of_a = line < now->lines_of_a;
  const char *at = of_a ? now->a + line * LINE : now->b + (line - now->lines_of_a) * LINE;
  const ptrdiff_t step = of_a ? now->step_a : now->step_b;
  return (runs_of){at + (ptrdiff_t)depth * step, (ptrdiff_t)each * step, step, run % RUNS, RUNS, NULL};
}

/* The block of b [depth, n] that will be copied next. What a's next rows leave of this block's runs, `spare` for a
 * panel, fetches it: the last panels, as it would be driven out again. `run` is the next of all its runs, lines of its
 * rows in RUNS pieces or whole columns; below 0 it is too early. */
typedef struct coming {
  const real *b;
  ptrdiff_t rs, cs;
  size_t depth, n;
  ptrdiff_t run, runs, spare;
} coming;

INLINE coming coming_block(const real *b, ptrdiff_t rs, ptrdiff_t cs, size_t depth, size_t n, size_t panels,
                           size_t spare) {
  const size_t runs = cs != 1 ? n : (n * sizeof(real) + LINE - 1) / LINE * RUNS;
  const size_t early = panels * spare > runs ? panels * spare - runs : 0;
  return (coming){b, rs, cs, depth, n, -(ptrdiff_t)early, (ptrdiff_t)runs, (ptrdiff_t)spare};
}

INLINE bool is_due(const coming *x) { return x->run >= 0 && x->run < x->runs; }

INLINE runs_of due(const coming *x) {
  const ptrdiff_t item = sizeof(real), each = (ptrdiff_t)((x->depth + RUNS - 1) / RUNS);
  const size_t run = is_due(x) ? (size_t)x->run : 0;
  if (x->cs != 1)
    return (runs_of){(const char *)x->b, x->cs * item, LINE, run, x->n, NULL};
  return (runs_of){(const char *)x->b + run / RUNS * LINE, each * x->rs * item, x->rs * item, run % RUNS, RUNS, NULL};
}

/* out [n, ld] = alpha · in [n, k], rows a little farther apart than they are long. */
INLINE void copy_rows(real *out, size_t ld, const real *in, ptrdiff_t ld_in, size_t n, size_t k, real alpha) {
  for (size_t i = 0; i < n; i++, in += ld_in, out += ld)
    for (size_t p = 0; p < k; p++)
      out[p] = alpha * in[p];
}

void K(gemm_packed)(real *c /* [m, n] */, ptrdiff_t ld_c, const real *a /* [m, k] */, ptrdiff_t rs_a, ptrdiff_t cs_a,
                    const real *b /* [k, n] */, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k,
                    real alpha, real beta, real *sums /* [n] = those of b's contiguous rows, or NULL */, real *room) {
  const ptrdiff_t item = sizeof(real);
  real *columns_of_b = room, *rows_of_a = room + B_VALUES; /* panels */
  /* Contiguous rows of a serve as they are, but where their distance puts them into the same lines of the cache. */
  const bool in_rows = cs_a == 1, as_it_is = in_rows && alpha == (real)1 && !CONFLICT(rs_a * item);
  const size_t blocks = (k + DEPTH - 1) / DEPTH;
  for (size_t block = 0, p = 0, depth; block < blocks; block++, p += depth) {
    depth = k / blocks + (block < k % blocks);
    const real old = block == 0 ? beta : (real)1;
    const size_t ld = (depth + LANES - 1) / LANES * LANES + LANES; /* of rows that are copied */
    size_t fetched = 0;                                            /* runs, of the next block */
    for (size_t first = 0; first < m; first += ROWS) {
      const size_t n_rows = least(ROWS, m - first);
      const char *rows = (const char *)(a + (ptrdiff_t)first * rs_a + (ptrdiff_t)p * cs_a);
      const shape turned = shape_of(n); /* of panels of a, which serve all columns */
      const size_t rows_of_panel = PANEL_ROWS / turned.rows * turned.rows;
      const raw next = {rows, (const char *)(b + (ptrdiff_t)p * rs_b), cs_a * item, rs_b * item,
                        (n_rows * sizeof(real) + LINE - 1) / LINE};
      if (!in_rows) {
        fill(rows_of_a, (const real *)rows, cs_a, rs_a, depth, n_rows, rows_of_panel, PANEL_ROWS, NULL);
        const size_t values = (n_rows + rows_of_panel - 1) / rows_of_panel * APART(PANEL_ROWS * depth);
        for (size_t t = 0; t < values && alpha != (real)1; t++)
          rows_of_a[t] *= alpha;
      }
      for (size_t j = 0; j < n; j += COLUMNS) {
        const size_t n_cols = least(COLUMNS, n - j);
        const shape of = in_rows ? shape_of(n_cols) : turned;
        const real *from = b + (ptrdiff_t)j * cs_b + (ptrdiff_t)p * rs_b;
        const size_t wide = of.width * LANES;
        const bool summed = sums != NULL && first == 0;
        real of_block[COLUMNS]; /* sums of a block, then of all: less is rounded */
        for (size_t l = 0; summed && l < n_cols; l++)
          of_block[l] = 0;
        fill(columns_of_b, from, rs_b, cs_b, depth, n_cols, wide, wide, summed ? of_block : NULL);
        for (size_t l = 0; summed && l < n_cols; l++)
          sums[j + l] = block == 0 ? of_block[l] : sums[j + l] + of_block[l];
        const size_t n_tiles = (n_cols + wide - 1) / wide, n_panels = (n_rows + of.rows - 1) / of.rows;
        const bool beside = j + COLUMNS < n, any = beside || first + ROWS < m || block + 1 < blocks;
        const real *next_b = beside ? from + (ptrdiff_t)COLUMNS * cs_b
                             : any  ? b + (ptrdiff_t)(first + ROWS < m ? p : p + depth) * rs_b
                                    : b;
        coming soon = coming_block(next_b, rs_b, cs_b, depth, !any ? 0 : least(COLUMNS, beside ? n - j - COLUMNS : n),
                                   n_panels, 2 * n_tiles > of.rows ? 2 * n_tiles - of.rows : 0);
        for (size_t i = 0; i < n_rows; i += of.rows, soon.run += soon.spare) {
          const size_t height = least(of.rows, n_rows - i);
          rows_of here = {rows + (ptrdiff_t)i * rs_a * item, rs_a * item, item};
          const runs_of then = due(&soon);
          runs_of behind = {here.at + (ptrdiff_t)of.rows * here.row,
                            here.row,
                            LINE,
                            0,
                            of.rows / 2 * 2,
                            is_due(&soon) ? &then : NULL};
          if (!in_rows) {
            const size_t panel = i / rows_of_panel * APART(PANEL_ROWS * depth);
            here = (rows_of){(const char *)(rows_of_a + panel + i % rows_of_panel), item, PANEL_ROWS * item};
            behind = block + 1 < blocks ? next_block(&next, depth, fetched) : (runs_of){here.at, 0, 0, 0, RUNS, NULL};
            fetched += 2 * n_tiles;
          } else if (!as_it_is) {
            copy_rows(rows_of_a, ld, (const real *)here.at, rs_a, height, depth, alpha);
            here = (rows_of){(const char *)rows_of_a, (ptrdiff_t)ld * item, item};
          }
          tiles_of(c + (ptrdiff_t)(first + i) * ld_c + (ptrdiff_t)j, ld_c, here, columns_of_b, depth, n_cols, old,
                   behind, (shape){height, of.width});
        }
      }
    }
  }
}
