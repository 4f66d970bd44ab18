/* Matrix products with general strides against long double, what they refuse, and what they may touch.
 * The file includes itself twice, with T as float and as double. */
#ifndef T

#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sys/mman.h>

#include "blas.h"
#include "memory.h"
#include "test.h"

static uint64_t random_state = 1;

static uint64_t random_bits(void) { /* splitmix64 */
  uint64_t z = (random_state += 0x9e3779b97f4a7c15u);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

static double uniform(double low, double high) {
  return low + (high - low) * ((double)(random_bits() >> 11) * 0x1p-53);
}

static size_t below(size_t n) { return (size_t)(random_bits() % n); }

/* Memory that ends where the process ends: CLEW_SLACK readable bytes behind it, then a megabyte that may not be
 * touched. */
typedef struct fence {
  char *map, *end;
  size_t bytes;
} fence;

static fence fence_new(size_t bytes) {
  const size_t page = 4096, forbidden = (size_t)1 << 20, inner = (bytes + CLEW_SLACK + page - 1) / page * page;
  fence f = {mmap(NULL, inner + forbidden, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), NULL,
             inner + forbidden};
  if (f.map == MAP_FAILED || mprotect(f.map + inner, forbidden, PROT_NONE) != 0)
    abort();
  f.end = f.map + inner - CLEW_SLACK;
  return f;
}

static void fence_free(fence f) { munmap(f.map, f.bytes); }

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#define T float
#define SUFFIX _f32
#define EPSILON ((long double)FLT_EPSILON)
#include "test_blas.c"
#undef T
#undef SUFFIX
#undef EPSILON

#define T double
#define SUFFIX _f64
#define EPSILON ((long double)DBL_EPSILON)
#include "test_blas.c"

int main(void) {
  all_f32();
  all_f64();
  CHECK(clew_blas_kernel() && clew_blas_kernel()[0] != '\0', "no kernel family");
  CHECK(clew_blas_version() && strchr(clew_blas_version(), '.'), "no version");
  return finish("test_blas");
}

#else /* ------------------------------------------------------------------------------------------------------ */

#define F(name) PASTE(name, SUFFIX)
#define GUARD ((T)-12345)

typedef enum F(layout) { F(ROWS), F(COLUMNS), F(GENERAL), F(N_LAYOUTS) } F(layout);

/* Strides of [m, n] in this layout, with a little room between rows; the number of elements from first to last. */
static size_t F(strides)(F(layout) layout, size_t m, size_t n, ptrdiff_t *rs, ptrdiff_t *cs) {
  *cs = layout == F(ROWS) ? 1 : layout == F(COLUMNS) ? (ptrdiff_t)(m + below(3)) : 2;
  *rs = layout == F(COLUMNS) ? 1 : (ptrdiff_t)n * *cs + (ptrdiff_t)below(3);
  return (m - 1) * (size_t)*rs + (n - 1) * (size_t)*cs + 1;
}

static void F(random)(T *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    x[i] = (T)uniform(-1, 1);
}

static void F(gemm_case_of)(size_t m, size_t n, size_t k, unsigned layouts, T alpha, T beta, bool whole) {
  ptrdiff_t rs_a, cs_a, rs_b, cs_b, rs_c, cs_c;
  const size_t size_c = F(strides)((F(layout))(layouts % 3), m, n, &rs_c, &cs_c);
  const size_t size_a = F(strides)((F(layout))(layouts / 3 % 3), m, k, &rs_a, &cs_a);
  const size_t size_b = F(strides)((F(layout))(layouts / 9 % 3), k, n, &rs_b, &cs_b);
  const fence fence_a = fence_new(size_a * sizeof(T)), fence_b = fence_new(size_b * sizeof(T));
  T *a = (T *)fence_a.end - size_a, *b = (T *)fence_b.end - size_b;
  F(random)(a, size_a);
  F(random)(b, size_b);
  T *block = malloc((size_c + 128) * sizeof(T)), *expected = malloc((size_c + 128) * sizeof(T));
  if (!block || !expected)
    abort();
  for (size_t i = 0; i < size_c + 128; i++)
    block[i] = GUARD;
  T *c = block + 64;
  for (size_t i = 0; i < m; i++)
    for (size_t j = 0; j < n; j++)
      c[(ptrdiff_t)i * rs_c + (ptrdiff_t)j * cs_c] = beta == 0 ? (T)NAN : (T)uniform(-1, 1);
  memcpy(expected, block, (size_c + 128) * sizeof(T));
  const clew_status status =
      (whole ? F(clew_gemm_whole) : F(clew_gemm))(c, rs_c, cs_c, a, rs_a, cs_a, b, rs_b, cs_b, m, n, k, alpha, beta);
  CHECK(status == CLEW_OK, "%zu x %zu x %zu layouts %u", m, n, k, layouts);
  size_t wrong = 0;
  for (size_t i = 0; i < m; i++)
    for (size_t j = 0; j < n; j++) {
      long double sum = 0, scale = 0;
      for (size_t p = 0; p < k; p++) {
        const long double x = (long double)a[(ptrdiff_t)i * rs_a + (ptrdiff_t)p * cs_a] *
                              (long double)b[(ptrdiff_t)p * rs_b + (ptrdiff_t)j * cs_b];
        sum += x;
        scale += fabsl(x);
      }
      const ptrdiff_t at = (ptrdiff_t)i * rs_c + (ptrdiff_t)j * cs_c;
      const long double old = beta == 0 ? 0 : (long double)expected[64 + at];
      sum = (long double)alpha * sum + (long double)beta * old;
      scale = fabsl((long double)alpha) * scale + fabsl((long double)beta * old);
      if (!(fabsl((long double)c[at] - sum) <= (2 + 0.25L * (long double)k) * EPSILON * scale))
        wrong++;
      expected[64 + at] = c[at];
    }
  CHECK(wrong == 0, "%zu x %zu x %zu layouts %u alpha %g beta %g: %zu wrong", m, n, k, layouts, (double)alpha,
        (double)beta, wrong);
  CHECK(memcmp(expected, block, (size_c + 128) * sizeof(T)) == 0, "%zu x %zu x %zu layouts %u wrote outside", m, n, k,
        layouts);
  free(block);
  free(expected);
  fence_free(fence_a);
  fence_free(fence_b);
}

static void F(gemm_case)(size_t m, size_t n, size_t k, unsigned layouts, T alpha, T beta) {
  F(gemm_case_of)(m, n, k, layouts, alpha, beta, false);
  F(gemm_case_of)(m, n, k, layouts, alpha, beta, true);
}

static void F(test_products)(void) {
  static const size_t sizes[] = {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40, 64, 67};
  const size_t n_sizes = sizeof sizes / sizeof *sizes;
  for (unsigned layouts = 0; layouts < 27; layouts++)
    for (size_t r = 0; r < 40; r++) {
      const size_t m = sizes[below(n_sizes)], n = sizes[below(n_sizes)], k = sizes[below(n_sizes)];
      F(gemm_case)(m, n, k, layouts, r % 2 ? (T)1 : (T)-0.75, r % 4 < 2 ? 0 : r % 8 < 4 ? (T)1 : (T)0.5);
    }
  for (unsigned layouts = 0; layouts < 27; layouts++) { /* large enough for BLIS */
    F(gemm_case)(70, 90, 50, layouts, 1, 0);
    F(gemm_case)(45, 100, 67, layouts, (T)0.5, (T)2);
    F(gemm_case)(45, 60, 512, layouts, 1, 1); /* rows so far apart are copied */
  }
  static const size_t few[] = {1, 5, 6, 7, 13, 14, 15, 28, 29, 32};
  for (size_t i = 0; i < sizeof few / sizeof *few; i++) {
    F(gemm_case)(few[i], 2083, 71, 0, 1, 1);           /* more columns than are streamed at a time */
    F(gemm_case)(few[i], 1024, 65, 0, 1, 0);           /* rows that meet in one set of the first-level cache */
    F(gemm_case)(few[i], 37, 1100, 9, (T)0.5, 1);      /* columns longer than are read at a time */
    F(gemm_case)(few[i], 32, 1024 + 64, 9, 1, (T)0.5); /* whole strips of them */
  }
  F(gemm_case)(129, 3, 500, 0, 1, 0);
  F(gemm_case)(3, 300, 129, 9, 1, 0);
  F(gemm_case)(100, 1, 33, 1, 1, 1);
}

/* The product is that of clew_gemm to the bit; sums of rows that are summed block by block are the exact ones. */
static void F(test_sums)(void) {
  static const size_t few[] = {0, 1, 5, 33, 64, 130, 1030}, columns[] = {1, 7, 24, 60, 97, 128, 200, 520},
                      depths[] = {0, 1, 63, 384, 385, 1100, 2000};
  for (size_t t = 0; t < 3 * 7 * 8 * 7; t++) {
    const size_t m = few[t % 7], n = columns[t / 7 % 8], k = depths[t / 56 % 7];
    if (m > 200 && (n > 100 || k > 500))
      continue;
    const bool down = t / 392 == 1, alone = t / 392 == 2; /* c transposed; no sums */
    const size_t ld_b = n + below(4), ld_a = m + 1 + below(4);
    const ptrdiff_t rs_c = down ? 1 : (ptrdiff_t)n, cs_c = down ? (ptrdiff_t)m + 1 : 1;
    clew_slab *slabs[4] = {clew_slab_new((k * ld_a + 1) * sizeof(T)), clew_slab_new((k * ld_b + 1) * sizeof(T)),
                           clew_slab_new((m + 1) * (n + 1) * sizeof(T)), clew_slab_new((m + 1) * (n + 1) * sizeof(T))};
    T *in = clew_slab_data(slabs[0]), *b = clew_slab_data(slabs[1]), *c = clew_slab_data(slabs[2]),
      *same = clew_slab_data(slabs[3]), sums[521];
    F(random)(in, k * ld_a);
    F(random)(b, k * ld_b);
    for (size_t j = 0; j < 521; j++)
      sums[j] = 77;
    memset(c, 0, (m + 1) * (n + 1) * sizeof(T));
    memset(same, 0, (m + 1) * (n + 1) * sizeof(T));
    const clew_status status =
        F(clew_gemm_sums)(c, rs_c, cs_c, alone ? NULL : sums, in, 1, (ptrdiff_t)ld_a, b, (ptrdiff_t)ld_b, m, n, k);
    (void)F(clew_gemm)(same, rs_c, cs_c, in, 1, (ptrdiff_t)ld_a, b, (ptrdiff_t)ld_b, 1, m, n, k, 1, 0);
    CHECK(status == CLEW_OK && memcmp(c, same, (m + 1) * (n + 1) * sizeof(T)) == 0, "product %zu x %zu x %zu", m, n, k);
    bool right = sums[n] == 77;
    for (size_t j = 0; j < n; j++) {
      long double exact = 0, size = 0;
      for (size_t p = 0; p < k; p++)
        exact += (long double)b[p * ld_b + j], size += fabsl((long double)b[p * ld_b + j]);
      right = right && (alone ? sums[j] == 77 : fabsl((long double)sums[j] - exact) <= EPSILON * size * 16);
    }
    CHECK(right, "sums of %zu x %zu beside %zu rows, %s", k, n, m, down ? "transposed" : "as they lie");
    for (size_t i = 0; i < 4; i++)
      clew_slab_release(slabs[i]);
  }
}

/* Rows further apart than the slack, k no multiple of 8: nothing may be read behind it. */
static void F(test_slack)(void) {
  static const size_t shapes[][3] = {{1, 16, 7},     {33, 65, 20},  {40, 200, 33},
                                     {100, 48, 100}, {100, 200, 9}, {64, 64, 64}};
  const ptrdiff_t far = 20000;
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
    const size_t m = shapes[s][0], n = shapes[s][1], k = shapes[s][2];
    const size_t size_a = (m - 1) * (size_t)far + k, size_b = (n - 1) * (size_t)far + k;
    const fence fence_a = fence_new(size_a * sizeof(T)), fence_b = fence_new(size_b * sizeof(T));
    T *a = (T *)fence_a.end - size_a, *b = (T *)fence_b.end - size_b;
    for (size_t i = 0; i < m; i++)
      F(random)(a + (ptrdiff_t)i * far, k);
    for (size_t j = 0; j < n; j++)
      F(random)(b + (ptrdiff_t)j * far, k);
    T *c = malloc(m * n * sizeof(T));
    if (!c)
      abort();
    for (int transposed = 0; transposed < 2; transposed++) {
      const ptrdiff_t rs_c = transposed ? 1 : (ptrdiff_t)n, cs_c = transposed ? (ptrdiff_t)m : 1;
      CHECK(F(clew_gemm)(c, rs_c, cs_c, a, far, 1, b, 1, far, m, n, k, 1, 0) == CLEW_OK, "far rows");
      long double worst = 0;
      for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
          long double sum = 0;
          for (size_t p = 0; p < k; p++)
            sum +=
                (long double)a[(ptrdiff_t)i * far + (ptrdiff_t)p] * (long double)b[(ptrdiff_t)j * far + (ptrdiff_t)p];
          worst = fmaxl(worst, fabsl(sum - (long double)c[(ptrdiff_t)i * rs_c + (ptrdiff_t)j * cs_c]));
        }
      CHECK(worst <= (long double)k * EPSILON, "far rows %zu x %zu x %zu: off by %Lg", m, n, k, worst);
    }
    free(c);
    fence_free(fence_a);
    fence_free(fence_b);
  }
}

static void F(test_edges)(void) {
  T a[12], b[12], c[12];
  F(random)(a, 12);
  F(random)(b, 12);
  const ptrdiff_t huge = PTRDIFF_MAX;
  /* Nothing to compute; no operand is needed. */
  CHECK(F(clew_gemm)(NULL, 3, 1, NULL, 2, 1, NULL, 3, 1, 0, 3, 2, 1, 0) == CLEW_OK, "m = 0");
  CHECK(F(clew_gemm)(NULL, 3, 1, NULL, 2, 1, NULL, 3, 1, 2, 0, 2, 1, 0) == CLEW_OK, "n = 0");
  /* k = 0 is beta · c. */
  for (size_t i = 0; i < 12; i++)
    c[i] = (T)i;
  CHECK(F(clew_gemm)(c, 3, 1, NULL, 1, 1, NULL, 3, 1, 4, 3, 0, 1, (T)0.5) == CLEW_OK && c[3] == (T)1.5 &&
            c[11] == (T)5.5,
        "k = 0, beta 1/2: %g", (double)c[3]);
  c[5] = (T)NAN;
  CHECK(F(clew_gemm)(c, 3, 1, NULL, 1, 1, NULL, 3, 1, 4, 3, 0, 1, 0) == CLEW_OK && c[5] == 0, "k = 0, beta 0");
  /* Strides of a dimension of length 1 mean nothing. */
  T one = 0;
  CHECK(F(clew_gemm)(&one, -7, 0, a, 0, 1, b, 1, -huge, 1, 1, 3, 1, 0) == CLEW_OK, "free strides");
  const long double dot = (long double)a[0] * (long double)b[0] + (long double)a[1] * (long double)b[1] +
                          (long double)a[2] * (long double)b[2];
  CHECK(fabsl((long double)one - dot) <= 4 * EPSILON, "free strides: %g", (double)one);
  CHECK(F(clew_gemm)(c, 4, 1, a, 1, 0, b, huge, 1, 3, 4, 1, 1, 0) == CLEW_OK && c[11] == a[2] * b[3], "outer product");
  CHECK(F(clew_gemm)(c, 3, -1, a, 3, 1, b, 2, 0, 4, 1, 3, 1, 0) == CLEW_OK &&
            fabsl((long double)c[3] - ((long double)a[3] * (long double)b[0] + (long double)a[4] * (long double)b[2] +
                                       (long double)a[5] * (long double)b[4])) <= 4 * EPSILON,
        "a column of b");

  /* Refused: not positive, colliding, out of range, missing; c stays as it is. */
  memset(c, 0, sizeof c);
  CHECK(F(clew_gemm)(c, 0, 1, a, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "rs_c = 0");
  CHECK(F(clew_gemm)(c, -2, 1, a, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "rs_c < 0");
  CHECK(F(clew_gemm)(c, 1, 1, a, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "c overlaps");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, b, 2, 1, 2, 3, 2, 1, 0) == CLEW_ERROR_SHAPE, "rows of c overlap");
  CHECK(F(clew_gemm)(c, 1, 2, a, 2, 1, b, 2, 1, 3, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "columns of c overlap");
  CHECK(F(clew_gemm)(c, 2, 1, a, 0, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "rs_a = 0");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, -1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "cs_a < 0");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, b, 0, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "rs_b = 0");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, b, 2, -9, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "cs_b < 0");
  CHECK(F(clew_gemm)(c, huge, 1, a, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "rs_c out of range");
  CHECK(F(clew_gemm)(c, huge / 2, 1, a, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "bytes out of range");
  CHECK(F(clew_gemm)(c, 2, 1, a, huge, 1, b, 2, 1, 3, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "rs_a out of range");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, b, 2, 1, SIZE_MAX, 2, 2, 1, 0) == CLEW_ERROR_SHAPE, "m out of range");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, b, 2, 1, 2, SIZE_MAX, 2, 1, 0) == CLEW_ERROR_SHAPE, "n out of range");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, b, 2, 1, 2, 2, SIZE_MAX, 1, 0) == CLEW_ERROR_SHAPE, "k out of range");
  CHECK(F(clew_gemm)(NULL, 2, 1, a, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_VALUE, "no c");
  CHECK(F(clew_gemm)(c, 2, 1, NULL, 2, 1, b, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_VALUE, "no a");
  CHECK(F(clew_gemm)(c, 2, 1, a, 2, 1, NULL, 2, 1, 2, 2, 2, 1, 0) == CLEW_ERROR_VALUE, "no b");
  bool untouched = true;
  for (size_t i = 0; i < 12; i++)
    untouched = untouched && c[i] == 0;
  CHECK(untouched, "a refused product wrote");
}

enum { F(M) = 80, F(N) = 96, F(KK) = 70, F(CALLS) = 30 };

typedef struct F(shared) {
  T *a, *b;
  T c[F(M) * F(N)], few[8 * F(N)];
  bool same;
} F(shared);

static void *F(worker)(void *argument) {
  F(shared) *s = argument;
  T c[F(M) * F(N)], few[8 * F(N)];
  s->same = true;
  for (int i = 0; i < F(CALLS); i++) {
    F(clew_gemm)(c, F(N), 1, s->a, F(KK), 1, s->b, F(N), 1, F(M), F(N), F(KK), 1, 0);
    F(clew_gemm)(few, F(N), 1, s->a, F(KK), 1, s->b, F(N), 1, 8, F(N), F(KK), 1, 0);
    if (i == 0) {
      memcpy(s->c, c, sizeof c);
      memcpy(s->few, few, sizeof few);
    }
    s->same = s->same && memcmp(s->c, c, sizeof c) == 0 && memcmp(s->few, few, sizeof few) == 0;
  }
  return NULL;
}

static void F(test_threads)(void) {
  enum { THREADS = 4 };
  static F(shared) s[THREADS];
  T *a = malloc(F(M) * F(KK) * sizeof(T) + CLEW_SLACK), *b = malloc(F(KK) * F(N) * sizeof(T) + CLEW_SLACK);
  if (!a || !b)
    abort();
  F(random)(a, F(M) * F(KK));
  F(random)(b, F(KK) * F(N));
  pthread_t threads[THREADS];
  for (size_t t = 0; t < THREADS; t++) {
    s[t].a = a;
    s[t].b = b;
    if (pthread_create(&threads[t], NULL, F(worker), &s[t]) != 0)
      abort();
  }
  for (size_t t = 0; t < THREADS; t++)
    pthread_join(threads[t], NULL);
  for (size_t t = 0; t < THREADS; t++)
    CHECK(s[t].same && memcmp(s[t].c, s[0].c, sizeof s[0].c) == 0 && memcmp(s[t].few, s[0].few, sizeof s[0].few) == 0,
          "thread %zu has other bits", t);
  /* Few rows, cut by columns. */
  T piece[8 * 33];
  F(clew_gemm)(piece, 33, 1, a, F(KK), 1, b + 13, F(N), 1, 8, 33, F(KK), 1, 0);
  bool same = true;
  for (size_t i = 0; i < 8; i++)
    same = same && memcmp(piece + 33 * i, s[0].few + F(N) * i + 13, 33 * sizeof(T)) == 0;
  CHECK(same, "columns 13 to 45 differ when computed alone");
  free(a);
  free(b);
}

static void F(all)(void) {
  F(test_products)();
  F(test_sums)();
  F(test_slack)();
  F(test_edges)();
  F(test_threads)();
}

#undef F
#undef GUARD

#endif
