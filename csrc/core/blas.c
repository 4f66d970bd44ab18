/* Matrix products: checks first, then our own kernels where they are the faster ones, BLIS for the rest.
 * BLIS aborts on arguments it dislikes, so nothing reaches it that has not been checked here. */
#include "blas.h"

#include <pthread.h>
#include <stdint.h>

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wfloat-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wtype-limits"
#pragma GCC diagnostic ignored "-Wunused-function"
#include "blis.h"
#pragma GCC diagnostic pop

/* From so many rows on the kernel that packs is the faster one, where there is one. AVX-512 on Cascade Lake: 1.6 times
 * BLIS's AVX2 kernels, which it chooses on processors it cannot name. AVX2 on Zen 3, 1024 rows: 1.1 times with k of
 * 768, within 3 % with k of 3072; 256 rows 1.2 to 1.6 times. */
#define PACKED_ROWS ((size_t)33)
#define PACKED_COLUMNS ((size_t)24) /* values of heads of 32: 2 % of a training step */
/* From so many rows on also where a product is one task's as a whole. Elsewhere the way must not change when a product
 * is cut, and small ones go the way of few rows. Of 12 x 12 x 64 and 64 x 64 x 16, heads' scores and values, these take
 * an eighth and a quarter of that way's time. */
#define WHOLE_ROWS ((size_t)4)
/* Products of at most this many multiplications are ours: BLIS's set-up costs more than the arithmetic. */
#define SMALL_PRODUCT ((size_t)40 * 40 * 40)
/* With b's columns contiguous (A · Bᵀ) and at most this long, BLIS 0.9 reaches two thirds of our speed at any m, n. */
#define SHORT_COLUMNS ((size_t)128)
/* With b's rows contiguous and longer, and no more rows of a than this, leaving b unpacked saves more than packing
 * gains (128 x 3072 x 768: 106 against 80 GF/s), where no kernel packs. */
#define SOME_ROWS ((size_t)256)
/* So many rows are summed at a time, and the sums of all then: less is rounded. */
#define SUM_ROWS ((size_t)384)

static pthread_once_t once = PTHREAD_ONCE_INIT;

/* Rows up to which our kernel is the faster one: twice as many where BLIS has no path for small matrices (AVX-512 on
 * Intel: a half of our speed at 64 x 64 x 512). */
static size_t few_rows = CLEW_FEW_ROWS;

/* Each thread's own memory for the panels of gemm_packed. */
static pthread_key_t panels;
static bool has_panels;

static void release_panels(void *slab) { clew_slab_release(slab); }

/* CLEW_PACK_BYTES; NULL when memory is short. */
static void *panels_of_thread(void) {
  clew_slab *slab = has_panels ? pthread_getspecific(panels) : NULL;
  if (slab == NULL && has_panels) {
    slab = clew_slab_new(CLEW_PACK_BYTES);
    if (slab != NULL && pthread_setspecific(panels, slab) != 0) {
      clew_slab_release(slab);
      slab = NULL;
    }
  }
  return slab == NULL ? NULL : clew_slab_data(slab);
}

static void start(void) {
  has_panels = pthread_key_create(&panels, release_panels) == 0;
  bli_init();
  const arch_t arch = bli_arch_query_id();
  if (arch == BLIS_ARCH_SKX || arch == BLIS_ARCH_KNL)
    few_rows = 2 * CLEW_FEW_ROWS;
}

/* ---- Checks ------------------------------------------------------------------------------------------------- */

/* Is [rows, cols] with these strides an addressable matrix? */
static bool addressable(size_t rows, size_t cols, ptrdiff_t rs, ptrdiff_t cs, size_t item) {
  ptrdiff_t down = 0, across = 0, last, bytes;
  if (rows > PTRDIFF_MAX || cols > PTRDIFF_MAX || rows == 0 || cols == 0)
    return rows <= PTRDIFF_MAX && cols <= PTRDIFF_MAX;
  if ((rows > 1 && rs < 1) || (cols > 1 && cs < 1))
    return false;
  if (rows > 1 && __builtin_mul_overflow((ptrdiff_t)(rows - 1), rs, &down))
    return false;
  if (cols > 1 && __builtin_mul_overflow((ptrdiff_t)(cols - 1), cs, &across))
    return false;
  return !__builtin_add_overflow(down, across, &last) && last < PTRDIFF_MAX &&
         !__builtin_mul_overflow(last + 1, (ptrdiff_t)item, &bytes);
}

/* Are its elements distinct? Asked of outputs, whose strides are known to be positive and in range. */
static bool distinct(size_t rows, size_t cols, ptrdiff_t rs, ptrdiff_t cs) {
  if (rows <= 1 || cols <= 1)
    return true;
  return (ptrdiff_t)(cols - 1) * cs < rs || (ptrdiff_t)(rows - 1) * rs < cs;
}

/* BLIS 0.9 reads up to one row of a, or column of b, past the end when k is no multiple of 8. */
static bool within_slack(ptrdiff_t rs_a, ptrdiff_t cs_b, size_t k, size_t item) {
  const ptrdiff_t limit = (ptrdiff_t)((CLEW_SLACK - 4096) / item);
  return k % 8 == 0 || (rs_a <= limit && cs_b <= limit);
}

/* ---- Products ----------------------------------------------------------------------------------------------- */

#define DEFINE_GEMM(suffix, type, ch)                                                                                  \
  static void scale_only##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, size_t m, size_t n, type beta) {             \
    for (size_t i = 0; i < m; i++)                                                                                     \
      for (size_t j = 0; j < n; j++) {                                                                                 \
        type *x = c + (ptrdiff_t)i * rs_c + (ptrdiff_t)j * cs_c;                                                       \
        *x = beta == (type)0 ? (type)0 : beta * *x;                                                                    \
      }                                                                                                                \
  }                                                                                                                    \
                                                                                                                       \
  static clew_status gemm##suffix(type *c /* [m, n] */, ptrdiff_t rs_c, ptrdiff_t cs_c, const type *a /* [m, k] */,    \
                                  ptrdiff_t rs_a, ptrdiff_t cs_a, const type *b /* [k, n] */, ptrdiff_t rs_b,          \
                                  ptrdiff_t cs_b, size_t m, size_t n, size_t k, type alpha, type beta, bool whole,     \
                                  type **sums) {                                                                       \
    if (!addressable(m, n, rs_c, cs_c, sizeof(type)) || !addressable(m, k, rs_a, cs_a, sizeof(type)) ||                \
        !addressable(k, n, rs_b, cs_b, sizeof(type)) || !distinct(m, n, rs_c, cs_c))                                   \
      return CLEW_ERROR_SHAPE;                                                                                         \
    if (m == 0 || n == 0)                                                                                              \
      return CLEW_OK;                                                                                                  \
    if (!c || (k > 0 && (!a || !b)))                                                                                   \
      return CLEW_ERROR_VALUE;                                                                                         \
    if (k == 0) {                                                                                                      \
      scale_only##suffix(c, rs_c, cs_c, m, n, beta);                                                                   \
      return CLEW_OK;                                                                                                  \
    }                                                                                                                  \
    /* The stride of a dimension of length 1 is free: make it what the paths below like. */                            \
    if (n == 1)                                                                                                        \
      cs_c = 1, cs_b = rs_b == 1 ? (ptrdiff_t)k : 1;                                                                   \
    if (m == 1)                                                                                                        \
      rs_c = cs_c == 1 ? (ptrdiff_t)n : 1, rs_a = cs_a == 1 ? (ptrdiff_t)k : 1;                                        \
    if (k == 1)                                                                                                        \
      cs_a = 1, rs_b = cs_b == 1 ? (ptrdiff_t)n : 1;                                                                   \
    pthread_once(&once, start);                                                                                        \
    const bool safe = within_slack(rs_a, cs_b, k, sizeof(type));                                                       \
    const bool small = m * n <= SMALL_PRODUCT / k || !safe;                                                            \
    /* A matrix times a vector streams the matrix; it must not be taken for the few rows. */                           \
    const bool vector = n == 1 && m > 1 && rs_c == 1 && rs_b == 1 && (rs_a == 1 || cs_a == 1);                         \
    const clew_kernels##suffix *kernels = clew_get_kernels##suffix();                                                  \
    const bool across = cs_c == 1, down = rs_c == 1; /* a transposed c is the product of the transposes */             \
    const bool many =                                                                                                  \
        !small && (across || down) && (across ? m : n) >= PACKED_ROWS && (across ? n : m) >= PACKED_COLUMNS;           \
    const bool some = whole && safe && across && m >= WHOLE_ROWS && (cs_b == 1 || cs_a != 1 || 12 * m >= k);           \
    if (kernels->gemm_packed != NULL && !vector && (many || some)) {                                                   \
      type *room = panels_of_thread();                                                                                 \
      if (room != NULL && across) {                                                                                    \
        kernels->gemm_packed(c, rs_c, a, rs_a, cs_a, b, rs_b, cs_b, m, n, k, alpha, beta, *sums, room);                \
        *sums = NULL;                                                                                                  \
      } else if (room != NULL)                                                                                         \
        kernels->gemm_packed(c, cs_c, b, cs_b, rs_b, a, cs_a, rs_a, n, m, k, alpha, beta, NULL, room);                 \
      if (room != NULL)                                                                                                \
        return CLEW_OK;                                                                                                \
    }                                                                                                                  \
    const bool ours = m <= few_rows || (cs_b == 1 && m <= SOME_ROWS && n > SHORT_COLUMNS) || small ||                  \
                      (rs_b == 1 && k <= SHORT_COLUMNS);                                                               \
    if (!vector && ours && cs_c == 1 && cs_a == 1 && (rs_b == 1 || cs_b == 1)) {                                       \
      kernels->gemm_few(c, rs_c, a, rs_a, b, rs_b, cs_b, m, n, k, alpha, beta);                                        \
      return CLEW_OK;                                                                                                  \
    }                                                                                                                  \
    /* Few columns: the same product transposed. */                                                                    \
    if ((n <= CLEW_FEW_ROWS || small) && rs_c == 1 && rs_b == 1 && (rs_a == 1 || cs_a == 1)) {                         \
      kernels->gemm_few(c, cs_c, b, cs_b, a, cs_a, rs_a, n, m, k, alpha, beta);                                        \
      return CLEW_OK;                                                                                                  \
    }                                                                                                                  \
    rntm_t serial;                                                                                                     \
    bli_rntm_init(&serial);                                                                                            \
    bli_rntm_set_num_threads(1, &serial);                                                                              \
    bli_##ch##gemm_ex(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, (dim_t)m, (dim_t)n, (dim_t)k, &alpha, (type *)a, rs_a,     \
                      cs_a, (type *)b, rs_b, cs_b, &beta, c, rs_c, cs_c, NULL, &serial);                               \
    return CLEW_OK;                                                                                                    \
  }                                                                                                                    \
                                                                                                                       \
  clew_status clew_gemm##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, const type *a, ptrdiff_t rs_a,                \
                                ptrdiff_t cs_a, const type *b, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n,     \
                                size_t k, type alpha, type beta) {                                                     \
    return gemm##suffix(c, rs_c, cs_c, a, rs_a, cs_a, b, rs_b, cs_b, m, n, k, alpha, beta, false, &(type *){NULL});    \
  }                                                                                                                    \
                                                                                                                       \
  clew_status clew_gemm_whole##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, const type *a, ptrdiff_t rs_a,          \
                                      ptrdiff_t cs_a, const type *b, ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m,         \
                                      size_t n, size_t k, type alpha, type beta) {                                     \
    return gemm##suffix(c, rs_c, cs_c, a, rs_a, cs_a, b, rs_b, cs_b, m, n, k, alpha, beta, true, &(type *){NULL});     \
  }                                                                                                                    \
                                                                                                                       \
  clew_status clew_gemm_sums##suffix(type *c, ptrdiff_t rs_c, ptrdiff_t cs_c, type *sums, const type *a,               \
                                     ptrdiff_t rs_a, ptrdiff_t cs_a, const type *b, ptrdiff_t rs_b, size_t m,          \
                                     size_t n, size_t k) {                                                             \
    type *left = sums; /* a kernel that copies b adds as it goes */                                                    \
    clew_status status = gemm##suffix(c, rs_c, cs_c, a, rs_a, cs_a, b, rs_b, 1, m, n, k, 1, 0, false, &left);          \
    for (size_t p = 0; left != NULL && status == CLEW_OK && (p == 0 || p < k); p += SUM_ROWS)                          \
      clew_get_kernels##suffix()->column_sums(left, b + (ptrdiff_t)p * rs_b, rs_b,                                     \
                                              k - p < SUM_ROWS ? k - p : SUM_ROWS, n, p > 0);                          \
    return status;                                                                                                     \
  }

DEFINE_GEMM(_f32, float, s)
DEFINE_GEMM(_f64, double, d)

bool clew_gemm_cuts_alike(void) { return clew_get_kernels_f32()->gemm_packed && clew_get_kernels_f64()->gemm_packed; }

const char *clew_blas_kernel(void) {
  pthread_once(&once, start);
  return bli_arch_string(bli_arch_query_id());
}

const char *clew_blas_version(void) {
  pthread_once(&once, start);
  return bli_info_get_version_str();
}
