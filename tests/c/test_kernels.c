/* The kernels against long double, for float and double and for each instruction set that this machine has.
 *
 * The file includes itself twice, with T as float and as double. The table of kernels is chosen once in a process, so
 * every instruction set is tested in a child that sets CLEW_ISA before it asks for the table. */
#ifndef T

#include <float.h>
#include <math.h>

#include "kernels.h"
#include "test.h"

static uint64_t random_state;

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

static const size_t sizes[] = {1,  2,  3,  4,  5,  7,  8,  9,  13, 15, 16,  17,
                               23, 31, 32, 33, 47, 63, 64, 65, 66, 67, 100, 257};
#define N_SIZES (sizeof sizes / sizeof *sizes)

#define PASTE_(a, b) a##b
#define PASTE(a, b) PASTE_(a, b)

#define T float
#define SUFFIX _f32
#define DIGITS FLT_MANT_DIG
#define LOWEST_EXPONENT FLT_MIN_EXP
#define EPSILON ((long double)FLT_EPSILON)
#define HIGHEST FLT_MAX
#define TINY 1e-37L
#include "test_kernels.c"
#undef T
#undef SUFFIX
#undef DIGITS
#undef LOWEST_EXPONENT
#undef EPSILON
#undef HIGHEST
#undef TINY

#define T double
#define SUFFIX _f64
#define DIGITS DBL_MANT_DIG
#define LOWEST_EXPONENT DBL_MIN_EXP
#define EPSILON ((long double)DBL_EPSILON)
#define HIGHEST DBL_MAX
#define TINY 1e-307L
#include "test_kernels.c"

static int child(const char *isa, int report) {
  setenv("CLEW_ISA", isa, 1);
  if (strcmp(clew_get_kernels_f32()->isa, isa) != 0 || strcmp(clew_get_kernels_f64()->isa, isa) != 0) {
    fprintf(stderr, "%s: not on this machine, skipped\n", isa);
    return 0;
  }
  random_state = 1;
  all_f32(isa);
  all_f64(isa);
  const unsigned long counts[2] = {n_passed, n_failed};
  if (write(report, counts, sizeof counts) != (ssize_t)sizeof counts)
    return 1;
  return n_failed > 0;
}

int main(void) {
  static const char *const isas[] = {"base", "v3", "v4"};
  unsigned long total[2] = {0, 0};
  int status = 0, pipes[2];
  for (size_t i = 0; i < 3; i++) {
    if (pipe(pipes) != 0)
      return 1;
    const pid_t pid = fork();
    if (pid < 0)
      return 1;
    if (pid == 0)
      exit(child(isas[i], pipes[1]));
    close(pipes[1]);
    unsigned long counts[2];
    if (read(pipes[0], counts, sizeof counts) == (ssize_t)sizeof counts) {
      total[0] += counts[0];
      total[1] += counts[1];
    }
    close(pipes[0]);
    int ended = 0;
    if (waitpid(pid, &ended, 0) != pid || !WIFEXITED(ended) || WEXITSTATUS(ended) != 0)
      status = 1;
  }
  /* A name that is none leaves the best table. */
  setenv("CLEW_ISA", "v99", 1);
  CHECK(clew_get_kernels_f32() == clew_get_kernels_f32() && clew_get_kernels_f64() == clew_get_kernels_f64(),
        "the table changes");
  CHECK(status == 0 && total[0] > 0, "a child failed");
  n_passed += total[0];
  n_failed += total[1];
  return finish("test_kernels");
}

#else /* ------------------------------------------------------------------------------------------------------ */

#define F(name) PASTE(name, SUFFIX)

static const F(clew_kernels) * F(kernels);

/* Distance from the exact value in units of its last place. Overflow counts as a step of one place beyond HIGHEST. */
static long double F(ulps)(T got, long double exact) {
  if (isnan(got) || isnan((double)exact))
    return isnan(got) && isnan((double)exact) ? 0 : INFINITY;
  if (isinf(got) && (T)exact == got)
    return 0;
  if (isinf(got))
    return fabsl(exact) > (long double)HIGHEST * (1 - EPSILON) ? 1 : INFINITY;
  int exponent = exact == 0 ? LOWEST_EXPONENT : ilogbl(exact) + 1;
  if (exponent < LOWEST_EXPONENT)
    exponent = LOWEST_EXPONENT;
  return fabsl((long double)got - exact) / ldexpl(1, exponent - DIGITS);
}

/* ---- Elementwise functions ---------------------------------------------------------------------------------- */

typedef void F(function)(T *out, const T *x, size_t n);

static void F(function_range)(const char *isa, const char *name, F(function) * function,
                              long double (*exact)(long double), double low, double high, int n, double bound) {
  enum { CHUNK = 1000 };
  T x[CHUNK], y[CHUNK];
  long double worst = 0;
  double where = 0;
  for (int done = 0; done < n; done += CHUNK) {
    for (int i = 0; i < CHUNK; i++)
      x[i] = (T)uniform(low, high);
    function(y, x, CHUNK);
    for (int i = 0; i < CHUNK; i++) {
      const long double u = F(ulps)(y[i], exact((long double)x[i]));
      if (!(u <= worst)) {
        worst = u;
        where = (double)x[i];
      }
    }
  }
  CHECK(worst <= (long double)bound, "%s %s: %.3Lf ulp at %.17g", isa, name, worst, where);
  if (getenv("CLEW_TEST_VERBOSE"))
    printf("%-4s %-3s %-5s [%g, %g]: %.3Lf ulp\n", isa, sizeof(T) == 4 ? "f32" : "f64", name, low, high, worst);
}

/* Any exponent: numbers whose logarithm is uniform. */
static void F(function_scales)(const char *isa, const char *name, F(function) * function,
                               long double (*exact)(long double), int lowest, int highest, double bound) {
  long double worst = 0;
  double where = 0;
  for (int e = lowest; e <= highest; e++)
    for (int i = 0; i < 40; i++) {
      T x = (T)(ldexp(uniform(0.5, 1), e) * (i % 2 ? 1 : -1)), y;
      function(&y, &x, 1);
      const long double u = F(ulps)(y, exact((long double)x));
      if (!(u <= worst)) {
        worst = u;
        where = (double)x;
      }
    }
  CHECK(worst <= (long double)bound, "%s %s: %.3Lf ulp at %.17g", isa, name, worst, where);
}

static void F(test_functions)(const char *isa) {
  const double top = sizeof(T) == 4 ? 88.9 : 709.9, bottom = sizeof(T) == 4 ? -104.5 : -746.5;
  const double denormal = sizeof(T) == 4 ? -87.3 : -708.3;
  const int n = 200000, lowest = LOWEST_EXPONENT - DIGITS + 1;
  F(function_range)(isa, "exp", F(kernels)->vexp, expl, -1, 1, n, 1.25);
  F(function_range)(isa, "exp", F(kernels)->vexp, expl, denormal, top, n, 1.25);
  F(function_range)(isa, "exp", F(kernels)->vexp, expl, bottom, denormal, n, 1.25);
  F(function_scales)(isa, "exp", F(kernels)->vexp, expl, lowest, 10, 1.25);
  F(function_range)(isa, "tanh", F(kernels)->vtanh, tanhl, -0.6, 0.6, n, 1.75);
  F(function_range)(isa, "tanh", F(kernels)->vtanh, tanhl, -3, 3, n, 1.75);
  F(function_range)(isa, "tanh", F(kernels)->vtanh, tanhl, -25, 25, n, 1.75);
  F(function_scales)(isa, "tanh", F(kernels)->vtanh, tanhl, lowest, 30, 1.75);
  F(function_range)(isa, "erf", F(kernels)->verf, erfl, -1.1, 1.1, n, 1.5);
  F(function_range)(isa, "erf", F(kernels)->verf, erfl, -7, 7, n, 1.5);
  F(function_scales)(isa, "erf", F(kernels)->verf, erfl, lowest, 30, 1.5);

  const T inf = (T)INFINITY, special[] = {(T)0, (T)-0.0, inf, -inf, (T)NAN, HIGHEST, -HIGHEST};
  T y[7];
  F(kernels)->vexp(y, special, 7);
  CHECK(y[0] == 1 && y[1] == 1 && y[2] == inf && y[3] == 0 && isnan(y[4]) && y[5] == inf && y[6] == 0, "%s exp", isa);
  F(kernels)->vtanh(y, special, 7);
  CHECK(y[0] == 0 && y[1] == 0 && signbit(y[1]) && y[2] == 1 && y[3] == -1 && isnan(y[4]) && y[5] == 1 && y[6] == -1,
        "%s tanh", isa);
  F(kernels)->verf(y, special, 7);
  CHECK(y[0] == 0 && y[1] == 0 && signbit(y[1]) && y[2] == 1 && y[3] == -1 && isnan(y[4]) && y[5] == 1 && y[6] == -1,
        "%s erf", isa);

  /* Every length, in place as well: the same value wherever it stands, nothing written outside. */
  T x[300], out[302], alone;
  for (size_t i = 0; i < 300; i++)
    x[i] = (T)uniform(-5, 5);
  F(function) *const functions[3] = {F(kernels)->vexp, F(kernels)->vtanh, F(kernels)->verf};
  for (size_t f = 0; f < 3; f++)
    for (size_t n_x = 0; n_x <= 67; n_x++) {
      out[0] = out[n_x + 1] = (T)-77;
      functions[f](out + 1, x, n_x);
      bool same = out[0] == (T)-77 && out[n_x + 1] == (T)-77;
      for (size_t i = 0; i < n_x; i++) {
        functions[f](&alone, x + i, 1);
        same = same && out[i + 1] == alone;
      }
      memcpy(out + 1, x, n_x * sizeof(T));
      functions[f](out + 1, out + 1, n_x);
      for (size_t i = 0; i < n_x; i++) {
        functions[f](&alone, x + i, 1);
        same = same && out[i + 1] == alone;
      }
      CHECK(same, "%s function %zu, length %zu", isa, f, n_x);
    }
}

/* ---- Helpers ------------------------------------------------------------------------------------------------ */

#define GUARD ((T)-12345)

/* A matrix [m, n] with rows ld apart inside guards; free(base - ...) is free(matrix - 64). */
static T *F(matrix)(size_t m, size_t ld) {
  T *base = malloc((m * ld + 128) * sizeof(T));
  if (!base)
    abort();
  for (size_t i = 0; i < m * ld + 128; i++)
    base[i] = GUARD;
  return base + 64;
}

static void F(release)(T *x) { free(x - 64); }

static void F(fill)(T *x, size_t m, size_t n, size_t ld, double low, double high) {
  for (size_t i = 0; i < m; i++)
    for (size_t j = 0; j < n; j++)
      x[i * ld + j] = (T)uniform(low, high);
}

static bool F(guarded)(const T *x, size_t m, size_t n, size_t ld) {
  for (size_t i = 0; i < 64; i++)
    if (x[(ptrdiff_t)i - 64] != GUARD || x[m * ld + i] != GUARD)
      return false;
  for (size_t i = 0; i < m; i++)
    for (size_t j = n; j < ld; j++)
      if (x[i * ld + j] != GUARD)
        return false;
  return true;
}

static bool F(near)(T got, long double exact, long double tolerance) {
  return fabsl((long double)got - exact) <= tolerance;
}

/* ---- Products ----------------------------------------------------------------------------------------------- */

/* How a product is computed: by the kernel for few rows, or packed, a as it is or transposed. */
typedef enum F(way) { F(few), F(packed), F(packed_turned) } F(way);

/* The same arguments for each way; room for packing is the caller's. */
static void F(multiply)(F(way) way, T *c, size_t ld_c, const T *a, ptrdiff_t rs_a, ptrdiff_t cs_a, const T *b,
                        ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k, T alpha, T beta, T *room) {
  if (way == F(few))
    F(kernels)->gemm_few(c, (ptrdiff_t)ld_c, a, rs_a, b, rs_b, cs_b, m, n, k, alpha, beta);
  else
    F(kernels)->gemm_packed(c, (ptrdiff_t)ld_c, a, rs_a, cs_a, b, rs_b, cs_b, m, n, k, alpha, beta, NULL, room);
}

static void F(gemm_case)(const char *isa, F(way) way, size_t m, size_t n, size_t k, bool columns, T alpha, T beta) {
  static const char *const names[] = {"gemm_few", "gemm_packed", "gemm_packed of a transposed"};
  const char *name = names[way];
  T *room = way == F(few) ? NULL : aligned_alloc(64, CLEW_PACK_BYTES);
  const size_t a_rows = way == F(packed_turned) ? k : m, a_cols = way == F(packed_turned) ? m : k;
  const size_t ld_a = a_cols + below(4), ld_c = n + below(4), ld_b = (columns ? k : n) + below(4);
  const ptrdiff_t rs_b = columns ? 1 : (ptrdiff_t)ld_b, cs_b = columns ? (ptrdiff_t)ld_b : 1;
  const ptrdiff_t rs_a = way == F(packed_turned) ? 1 : (ptrdiff_t)ld_a,
                  cs_a = way == F(packed_turned) ? (ptrdiff_t)ld_a : 1;
  T *a = F(matrix)(a_rows, ld_a), *b = F(matrix)(columns ? n : k, ld_b), *c = F(matrix)(m, ld_c),
    *old = F(matrix)(m, ld_c);
  F(fill)(a, a_rows, a_cols, ld_a, -1, 1);
  F(fill)(b, columns ? n : k, columns ? k : n, ld_b, -1, 1);
  F(fill)(c, m, n, ld_c, -1, 1);
  if (beta == 0) /* c is not read */
    for (size_t i = 0; i < m; i++)
      for (size_t j = 0; j < n; j++)
        c[i * ld_c + j] = (T)NAN;
  memcpy(old, c, m * ld_c * sizeof(T));
  F(multiply)(way, c, ld_c, a, rs_a, cs_a, b, rs_b, cs_b, m, n, k, alpha, beta, room);
  size_t wrong = 0;
  for (size_t i = 0; i < m; i++)
    for (size_t j = 0; j < n; j++) {
      long double sum = 0, size = 0;
      for (size_t p = 0; p < k; p++) {
        const long double x = (long double)a[(ptrdiff_t)i * rs_a + (ptrdiff_t)p * cs_a] *
                              (long double)b[(ptrdiff_t)p * rs_b + (ptrdiff_t)j * cs_b];
        sum += x;
        size += fabsl(x);
      }
      sum *= (long double)alpha;
      size *= fabsl((long double)alpha);
      if (beta != 0) {
        sum += (long double)beta * (long double)old[i * ld_c + j];
        size += fabsl((long double)beta * (long double)old[i * ld_c + j]);
      }
      /* the classic bound of a sum of k products is k ε Σ|a||b|; the errors are far smaller */
      if (!F(near)(c[i * ld_c + j], sum, (2 + 0.25L * (long double)k) * EPSILON * size))
        wrong++;
    }
  CHECK(wrong == 0, "%s %s %zu x %zu x %zu columns %d alpha %g beta %g: %zu wrong", isa, name, m, n, k, columns,
        (double)alpha, (double)beta, wrong);
  CHECK(F(guarded)(c, m, n, ld_c), "%s %s %zu x %zu x %zu wrote outside", isa, name, m, n, k);

  /* The same bits from any piece of it; with few rows and contiguous columns, their number decides how. */
  if (m * n > 1) {
    const bool all_rows = (columns || (n == 1 && rs_b == 1)) && way == F(few);
    const size_t i0 = all_rows ? 0 : below(m), rows = all_rows ? m : 1 + below(m - i0), j0 = below(n),
                 cols = 1 + below(n - j0);
    T *piece = F(matrix)(rows, cols);
    for (size_t i = 0; i < rows; i++)
      for (size_t j = 0; j < cols; j++)
        piece[i * cols + j] = old[(i0 + i) * ld_c + j0 + j];
    F(multiply)
    (way, piece, cols, a + (ptrdiff_t)i0 * rs_a, rs_a, cs_a, b + (ptrdiff_t)j0 * cs_b, rs_b, cs_b, rows, cols, k, alpha,
     beta, room);
    bool same = true;
    for (size_t i = 0; i < rows; i++)
      same = same && memcmp(piece + i * cols, c + (i0 + i) * ld_c + j0, cols * sizeof(T)) == 0;
    CHECK(same, "%s %s %zu x %zu x %zu columns %d: rows %zu+%zu, columns %zu+%zu differ when computed alone", isa, name,
          m, n, k, columns, i0, rows, j0, cols);
    F(release)(piece);
  }
  F(release)(a);
  F(release)(b);
  F(release)(c);
  F(release)(old);
  free(room);
}

/* Sizes around every edge of tiles (14 x 32; 4 x 24 and 6 x 16), blocks of k (384), of columns (512, 96) and of rows
 * (1024). */
static void F(test_packed)(const char *isa) {
  if (F(kernels)->gemm_packed == NULL)
    return;
  for (size_t r = 0; r < 300; r++)
    F(gemm_case)
  (isa, r % 3 ? F(packed) : F(packed_turned), 1 + below(90), 1 + below(90), 1 + below(67), r % 2,
   r % 4 < 2 ? (T)1 : (T)-0.75,
   r % 8 < 4    ? (T)0
   : r % 16 < 8 ? (T)1
                : (T)0.5);
  for (size_t columns = 0; columns < 2; columns++) {
    F(gemm_case)(isa, F(packed), 1037, 33, 40, columns, 1, 0);
    F(gemm_case)(isa, F(packed_turned), 1037, 33, 40, columns, 1, 0);
    F(gemm_case)(isa, F(packed), 43, 333, 777, columns, 1, 1);
    F(gemm_case)(isa, F(packed_turned), 29, 321, 1153, columns, 2, (T)0.5);
    F(gemm_case)(isa, F(packed), 15, 1041, 390, columns, 1, 1);
    F(gemm_case)(isa, F(packed), 1, 1, 1, columns, 1, 0);
    for (size_t n = 96; n <= 256; n += 32) { /* the last block of high tiles, or all of them, or none */
      F(gemm_case)(isa, F(packed), 23, n, 400, columns, 1, 1);
      F(gemm_case)(isa, F(packed_turned), 23, n, 400, columns, 1, 1);
    }
  }
}

static void F(test_gemm)(const char *isa) {
  static const size_t rows[] = {1, 2, 3, 4, 5, 6, 7, 8, 11, 16, 17, 31, 32, 33, 40, 70};
  for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
    for (size_t r = 0; r < 40; r++) {
      const size_t n = 1 + below(67), k = 1 + below(67);
      F(gemm_case)
      (isa, F(few), rows[i], n, k, r % 2, r % 4 < 2 ? (T)1 : (T)-0.75, r % 8 < 4 ? (T)0 : r % 16 < 8 ? (T)1 : (T)0.5);
    }
  for (size_t columns = 0; columns < 2; columns++) {
    F(gemm_case)(isa, F(few), 4, 1030, 300, columns, 1, 0);
    F(gemm_case)(isa, F(few), 32, 515, 130, columns, 1, 1);
    F(gemm_case)(isa, F(few), 1, 5000, 97, columns, 1, 0);
    F(gemm_case)(isa, F(few), 9, 100, 64, columns, 1, 0);
    F(gemm_case)(isa, F(few), 33, 65, 80, columns, 1, 0);
    F(gemm_case)(isa, F(few), 3, 37, 1031, columns, 1, 0);
    F(gemm_case)(isa, F(few), 20, 37, 777, columns, 2, 0);
  }
  T c[6] = {1, 2, 3, 4, 5, 6};
  F(kernels)->gemm_few(c, 3, c, 0, c, 1, 1, 2, 3, 0, 1, (T)0.5);
  CHECK(c[0] == (T)0.5 && c[5] == 3, "%s gemm_few with k = 0", isa);

  /* Infinities and NaN stay where they belong. */
  T a[3] = {1, (T)INFINITY, 2}, b[9] = {1, 1, 1, 1, 2, 3, 1, 1, (T)NAN}, out[3];
  F(kernels)->gemm_few(out, 3, a, 3, b, 3, 1, 1, 3, 3, 1, 0);
  CHECK(isinf(out[0]) && isinf(out[1]) && isnan(out[2]), "%s gemm_few: %g %g %g", isa, (double)out[0], (double)out[1],
        (double)out[2]);
}

/* ---- Norm --------------------------------------------------------------------------------------------------- */

static void F(test_norm)(const char *isa) {
  for (size_t s = 0; s < N_SIZES; s++)
    for (unsigned kind = 0; kind < 16; kind++) {
      const size_t d = sizes[s], rows = 1 + below(3);
      const bool centre = kind & 1, in_place = kind & 8;
      const double offset = uniform(-3, 3);
      const T eps = (T)1e-5;
      T *x = F(matrix)(rows, d), *out = in_place ? x : F(matrix)(rows, d), *kept = F(matrix)(rows, d);
      T *scale = F(matrix)(rows, 1), *w = F(matrix)(1, d), *b = F(matrix)(1, d), *copy = F(matrix)(rows, d);
      F(fill)(x, rows, d, d, offset - 1, offset + 1);
      F(fill)(w, 1, d, d, -2, 2);
      F(fill)(b, 1, d, d, -2, 2);
      memcpy(copy, x, rows * d * sizeof(T));
      const bool keep = below(2);
      F(kernels)->norm(out, keep ? kept : NULL, keep ? scale : NULL, x, kind & 2 ? w : NULL, kind & 4 ? b : NULL, rows,
                       d, eps, centre);
      for (size_t i = 0; i < rows; i++) {
        long double mean = 0, square = 0;
        for (size_t j = 0; j < d; j++)
          mean += (long double)copy[i * d + j] / (long double)d;
        if (!centre)
          mean = 0;
        for (size_t j = 0; j < d; j++)
          square += ((long double)copy[i * d + j] - mean) * ((long double)copy[i * d + j] - mean) / (long double)d;
        const long double deviation = sqrtl(square + (long double)eps);
        bool right = true;
        for (size_t j = 0; j < d; j++) {
          const long double z = ((long double)copy[i * d + j] - mean) / deviation;
          const long double factor = kind & 2 ? (long double)w[j] : 1, shift = kind & 4 ? (long double)b[j] : 0;
          /* the mean is known to ε |x|, which the division magnifies */
          const long double slack = (4 * fabsl(z) + 2 * (fabsl(mean) + 1) / deviation * (1 + fabsl(z))) * EPSILON;
          right = right && F(near)(out[i * d + j], z * factor + shift,
                                   slack * fabsl(factor) + EPSILON * (fabsl(shift) + fabsl(z * factor)));
          right = right && (!keep || F(near)(kept[i * d + j], z, slack));
        }
        CHECK(right, "%s norm d %zu kind %u row %zu", isa, d, kind, i);
        CHECK(!keep || F(near)(scale[i], deviation, (6 + 2 * (fabsl(mean) + 1) / deviation) * EPSILON * deviation),
              "%s norm d %zu: scale %g for %Lg", isa, d, (double)scale[i], deviation);
      }
      CHECK(F(guarded)(out, rows, d, d) && F(guarded)(kept, rows, keep ? d : 0, d) && F(guarded)(scale, rows, keep, 1),
            "%s norm d %zu wrote outside", isa, d);
      if (!in_place)
        F(release)(out);
      F(release)(x);
      F(release)(kept);
      F(release)(scale);
      F(release)(w);
      F(release)(b);
      F(release)(copy);
    }
  /* A large mean: two passes keep the spread. */
  T x[64], out[64];
  for (size_t j = 0; j < 64; j++)
    x[j] = (T)4096 + (T)(j % 2);
  F(kernels)->norm(out, NULL, NULL, x, NULL, NULL, 1, 64, 0, true);
  CHECK(out[0] == -1 && out[1] == 1, "%s norm of 4096, 4097, ...: %g %g", isa, (double)out[0], (double)out[1]);
}

/* ---- Bias, activations, residual ---------------------------------------------------------------------------- */

static long double F(activation)(clew_act act, long double x) {
  const long double pi = 3.14159265358979323846264338327950288L;
  switch (act) {
  case CLEW_ACT_GELU:
    return 0.5L * x * erfcl(-x / sqrtl(2));
  case CLEW_ACT_GELU_TANH:
    return x / (1 + expl(-2 * sqrtl(2 / pi) * (x + 0.044715L * x * x * x)));
  case CLEW_ACT_RELU:
    return x > 0 ? x : 0;
  case CLEW_ACT_SILU:
    return x / (1 + expl(-x));
  case CLEW_ACT_QUICK_GELU:
    return x / (1 + expl(-1.702L * x));
  case CLEW_ACT_RELU2:
    return x > 0 ? x * x : 0;
  case CLEW_ACT_TANH:
    return tanhl(x);
  case CLEW_ACT_SIGMOID:
    return 1 / (1 + expl(-x));
  case CLEW_ACT_NONE:
  case CLEW_N_ACT:
  default:
    return x;
  }
}

static void F(test_activations)(const char *isa) {
  /* Relative accuracy: the argument z of an exponential, after up to four roundings of ε / 2, costs 2 z ε. */
  enum { N = 4000 };
  static T x[N], y[N];
  for (int act = 0; act < CLEW_N_ACT; act++) {
    for (int range = 0; range < 3; range++) {
      const double width = range == 0 ? 1e-3 : range == 1 ? 3 : 12;
      for (size_t i = 0; i < N; i++)
        x[i] = (T)uniform(-width, width);
      F(kernels)->bias_act(y, N, x, N, NULL, NULL, 0, 1, N, (clew_act)act);
      long double worst = 0;
      double where = 0;
      for (size_t i = 0; i < N; i++) {
        const long double exact = F(activation)((clew_act)act, (long double)x[i]), size = fabsl((long double)x[i]);
        long double exponent = act == CLEW_ACT_GELU_TANH ? 2 * 1.6L * (size + 0.045L * size * size * size)
                               : act == CLEW_ACT_GELU    ? 2 * size * size
                                                         : 2 * size;
        const long double u = fabsl((long double)y[i] - exact) / (fabsl(exact) * EPSILON * (4 + exponent) + TINY);
        if (!(u <= worst)) {
          worst = u;
          where = (double)x[i];
        }
      }
      CHECK(worst <= 1, "%s activation %d: %.3Lf of the bound at %.17g", isa, act, worst, where);
    }
    const T special[4] = {(T)NAN, (T)INFINITY, 0, (T)-1e30};
    T out[4], in[4];
    memcpy(in, special, sizeof in);
    F(kernels)->bias_act(out, 4, in, 4, NULL, NULL, 0, 1, 4, (clew_act)act);
    CHECK(isnan(out[0]), "%s activation %d of NaN: %g", isa, act, (double)out[0]);
    CHECK(out[1] == (act == CLEW_ACT_TANH || act == CLEW_ACT_SIGMOID ? 1 : (T)INFINITY), "%s activation %d of inf: %g",
          isa, act, (double)out[1]);
    CHECK(out[3] == (act == CLEW_ACT_NONE   ? (T)-1e30
                     : act == CLEW_ACT_TANH ? -1
                                            : 0),
          "%s activation %d of -1e30: %g", isa, act, (double)out[3]);
    CHECK(out[2] == (act == CLEW_ACT_SIGMOID ? (T)0.5 : 0), "%s activation %d of 0: %g", isa, act, (double)out[2]);
  }

  for (size_t s = 0; s < N_SIZES; s++)
    for (unsigned kind = 0; kind < 8; kind++) {
      const size_t n = sizes[s], m = 1 + below(3), ld = n + below(3);
      const clew_act act = (clew_act)below(CLEW_N_ACT);
      const bool in_place = kind & 4;
      T *pre = F(matrix)(m, ld), *copy = F(matrix)(m, ld), *post = in_place ? pre : F(matrix)(m, ld);
      T *bias = F(matrix)(1, n), *gate = F(matrix)(m, ld);
      F(fill)(pre, m, n, ld, -2, 2);
      F(fill)(bias, 1, n, n, -2, 2);
      F(fill)(gate, m, n, ld, -2, 2);
      memcpy(copy, pre, m * ld * sizeof(T));
      F(kernels)->bias_act(post, (ptrdiff_t)ld, pre, (ptrdiff_t)ld, kind & 1 ? bias : NULL, kind & 2 ? gate : NULL,
                           (ptrdiff_t)ld, m, n, act);
      bool right = true;
      for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
          const T sum = kind & 1 ? copy[i * ld + j] + bias[j] : copy[i * ld + j];
          const long double exact =
              F(activation)(act, (long double)sum) * (kind & 2 ? (long double)gate[i * ld + j] : 1);
          right = right && F(near)(post[i * ld + j], exact, 40 * EPSILON * fabsl(exact));
          right = right && (in_place || pre[i * ld + j] == sum);
        }
      CHECK(right, "%s bias_act %zu x %zu kind %u act %d", isa, m, n, kind, (int)act);
      CHECK(F(guarded)(pre, m, n, ld) && F(guarded)(post, m, n, ld), "%s bias_act %zu wrote outside", isa, n);

      /* x += bias; sum = x + resid, into a third matrix, x or resid */
      const unsigned target = (unsigned)below(3);
      F(fill)(pre, m, n, ld, -2, 2);
      memcpy(copy, pre, m * ld * sizeof(T));
      T *resid = F(matrix)(m, ld), *sum = target == 0 ? F(matrix)(m, ld) : target == 1 ? pre : resid;
      memcpy(resid, gate, m * ld * sizeof(T));
      F(kernels)->bias_add(kind & 4 && target == 0 ? NULL : sum, (ptrdiff_t)ld, pre, (ptrdiff_t)ld,
                           kind & 1 ? bias : NULL, kind & 2 ? resid : NULL, (ptrdiff_t)ld, m, n);
      right = true;
      for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
          const T x_ij = kind & 1 ? copy[i * ld + j] + bias[j] : copy[i * ld + j];
          const T total = kind & 2 ? x_ij + gate[i * ld + j] : x_ij;
          if (target != 1)
            right = right && pre[i * ld + j] == x_ij;
          if (!(kind & 4 && target == 0))
            right = right && sum[i * ld + j] == total;
        }
      CHECK(right, "%s bias_add %zu x %zu kind %u target %u", isa, m, n, kind, target);
      CHECK(F(guarded)(pre, m, n, ld) && F(guarded)(sum, m, kind & 4 && target == 0 ? 0 : n, ld) &&
                F(guarded)(resid, m, n, ld),
            "%s bias_add %zu wrote outside", isa, n);
      if (target == 0)
        F(release)(sum);
      F(release)(resid);
      if (!in_place)
        F(release)(post);
      F(release)(pre);
      F(release)(copy);
      F(release)(bias);
      F(release)(gate);
    }
}

static long double F(slope)(clew_act act, long double x) {
  const long double pi = 3.14159265358979323846264338327950288L, c = 2 * sqrtl(2 / pi), a = 0.044715L;
  const long double steep = act == CLEW_ACT_GELU_TANH    ? c * (1 + 3 * a * x * x)
                            : act == CLEW_ACT_QUICK_GELU ? 1.702L
                                                         : 1;
  const long double v = act == CLEW_ACT_GELU_TANH ? c * (x + a * x * x * x) : steep * x;
  const long double s = 1 / (1 + expl(-v)), t = tanhl(x);
  switch (act) {
  case CLEW_ACT_GELU:
    return 0.5L * erfcl(-x / sqrtl(2)) + x * expl(-x * x / 2) / sqrtl(2 * pi);
  case CLEW_ACT_GELU_TANH:
  case CLEW_ACT_SILU:
  case CLEW_ACT_QUICK_GELU:
    return s + x * s * (1 - s) * steep;
  case CLEW_ACT_RELU:
    return x > 0;
  case CLEW_ACT_RELU2:
    return x > 0 ? 2 * x : 0;
  case CLEW_ACT_TANH:
    return 1 - t * t;
  case CLEW_ACT_SIGMOID:
    return s * (1 - s);
  case CLEW_ACT_NONE:
  case CLEW_N_ACT:
  default:
    return 1;
  }
}

static void F(test_slopes)(const char *isa) {
  enum { N = 4000 };
  static T x[N], one[N], out[N], same[N], other[N];
  for (int act = 0; act < CLEW_N_ACT; act++) {
    for (int range = 0; range < 3; range++) {
      const double width = range == 0 ? 1e-3 : range == 1 ? 3 : 12;
      for (size_t i = 0; i < N; i++)
        x[i] = (T)uniform(-width, width), one[i] = 1;
      F(kernels)->act_grad(out, NULL, one, x, NULL, N, (clew_act)act);
      long double worst = 0;
      double where = 0;
      for (size_t i = 0; i < N; i++) {
        const long double exact = F(slope)((clew_act)act, (long double)x[i]);
        const long double u = fabsl((long double)out[i] - exact) / (EPSILON * (1 + fabsl(exact)));
        if (!(u <= worst)) {
          worst = u;
          where = (double)x[i];
        }
      }
      CHECK(worst <= 1.5L, "%s slope %d: %.3Lf ε at %.17g", isa, act, worst, where);
      F(kernels)->act_grad(same, other, one, x, one, N, (clew_act)act); /* beside a gate */
      CHECK(memcmp(same, out, sizeof out) == 0, "%s slope %d beside a gate", isa, act);
    }
    const T far[4] = {(T)NAN, (T)1e15, (T)-1e15, 0};
    const bool grows = act != CLEW_ACT_TANH && act != CLEW_ACT_SIGMOID;
    F(kernels)->act_grad(out, NULL, one, far, NULL, 4, (clew_act)act);
    CHECK(isnan(out[0]) || act == CLEW_ACT_RELU || act == CLEW_ACT_NONE, "%s slope %d of NaN: %g", isa, act,
          (double)out[0]);
    CHECK(out[1] == (act == CLEW_ACT_RELU2 ? (T)2 * far[1] : (T)grows), "%s slope %d of 1e15: %g", isa, act,
          (double)out[1]);
    CHECK(out[2] == (T)(act == CLEW_ACT_NONE), "%s slope %d of -1e15: %g", isa, act, (double)out[2]);
  }
}

/* ---- Scores and softmax ------------------------------------------------------------------------------------- */

static bool F(seen)(const clew_mask *mask, size_t i, size_t j) {
  if (!mask)
    return true;
  const ptrdiff_t q = mask->q0 + (ptrdiff_t)i, k = mask->k0 + (ptrdiff_t)j;
  return !(mask->causal && q < k) && !(mask->window > 0 && q - k >= mask->window) && !(mask->exclude_self && q == k) &&
         !(mask->has_end && k >= mask->end);
}

static clew_mask F(some_mask)(size_t m, size_t n) {
  clew_mask mask = {.q0 = (ptrdiff_t)below(n + 8), .k0 = (ptrdiff_t)below(n + 8)};
  mask.causal = below(4) > 0, mask.exclude_self = below(2);
  if (below(2))
    mask.window = 1 + (ptrdiff_t)below(n + m);
  if (below(3) == 0)
    mask.has_end = true, mask.end = (ptrdiff_t)below(2 * n + 8);
  return mask;
}

static void F(test_scores)(const char *isa) {
  for (size_t s = 0; s < N_SIZES; s++)
    for (unsigned r = 0; r < 24; r++) {
      const size_t n = sizes[s], m = 1 + below(9), ld = n + below(3);
      const clew_mask mask = F(some_mask)(m, n), *given = r % 6 == 5 ? NULL : &mask;
      const T scale = (T)uniform(0.1, 2), cap = r % 3 == 2 ? (T)uniform(1, 5) : 0;
      T *x = F(matrix)(m, ld), *y = F(matrix)(m, ld), *copy = F(matrix)(m, ld), *factor = F(matrix)(m, 1);
      F(fill)(copy, m, n, ld, -6, 6);
      F(fill)(factor, m, 1, 1, -2, 2);
      memcpy(x, copy, m * ld * sizeof(T));
      F(kernels)->score(x, (ptrdiff_t)ld, m, n, scale, cap, given);
      memcpy(y, copy, m * ld * sizeof(T));
      F(kernels)->score_linear(y, (ptrdiff_t)ld, m, n, factor, given);
      bool right = true, linear = true;
      for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
          const long double scaled = (long double)copy[i * ld + j] * (long double)scale;
          const long double exact = cap > 0 ? (long double)cap * tanhl(scaled / (long double)cap) : scaled;
          if (F(seen)(given, i, j)) {
            right = right && F(near)(x[i * ld + j], exact, 6 * EPSILON * fabsl(exact));
            linear = linear && y[i * ld + j] == copy[i * ld + j] * factor[i];
          } else {
            right = right && x[i * ld + j] == -(T)INFINITY;
            linear = linear && y[i * ld + j] == 0;
          }
        }
      CHECK(right, "%s score %zu x %zu run %u", isa, m, n, r);
      CHECK(linear, "%s score_linear %zu x %zu run %u", isa, m, n, r);
      CHECK(F(guarded)(x, m, n, ld) && F(guarded)(y, m, n, ld), "%s score %zu x %zu wrote outside", isa, m, n);

      /* The pattern of these scores. */
      memcpy(y, x, m * ld * sizeof(T));
      F(kernels)->softmax(y, (ptrdiff_t)ld, m, n);
      T highest[16], sum[16];
      F(kernels)->log_sum(highest, sum, x, (ptrdiff_t)ld, m, n);
      for (size_t i = 0; i < m; i++) {
        long double top = -INFINITY, total = 0;
        for (size_t j = 0; j < n; j++)
          top = (long double)x[i * ld + j] > top ? (long double)x[i * ld + j] : top;
        for (size_t j = 0; j < n; j++)
          total += isinf((double)top) ? 0 : expl((long double)x[i * ld + j] - top);
        right = true;
        for (size_t j = 0; j < n; j++) {
          const long double p = total > 0 ? expl((long double)x[i * ld + j] - top) / total : 0;
          right = right && F(near)(y[i * ld + j], p, 24 * EPSILON * p);
          right = right && (F(seen)(given, i, j) || y[i * ld + j] == 0);
        }
        CHECK(right, "%s softmax %zu x %zu row %zu", isa, m, n, i);
        CHECK((long double)highest[i] == top && F(near)(sum[i], total, 12 * EPSILON * total), "%s log_sum n %zu", isa,
              n);
      }
      CHECK(F(guarded)(y, m, n, ld), "%s softmax wrote outside", isa);

      /* The same in blocks: what was exponentiated against an older maximum is corrected by the later ones. */
      T maximum[16], running[16], correction[16], weight[16][300];
      for (size_t i = 0; i < m; i++) {
        maximum[i] = -(T)INFINITY;
        running[i] = 0;
      }
      T *block = F(matrix)(m, n);
      const size_t step = 1 + below(n);
      for (size_t j0 = 0; j0 < n; j0 += step) {
        const size_t width = n - j0 < step ? n - j0 : step;
        clew_mask shifted = mask;
        shifted.k0 += (ptrdiff_t)j0;
        for (size_t i = 0; i < m; i++)
          memcpy(block + i * n, copy + i * ld + j0, width * sizeof(T));
        F(kernels)->softmax_block(block, (ptrdiff_t)n, maximum, running, correction, m, width, scale, cap,
                                  given ? &shifted : NULL);
        for (size_t i = 0; i < m; i++) {
          for (size_t j = 0; j < j0; j++)
            weight[i][j] *= correction[i];
          memcpy(weight[i] + j0, block + i * n, width * sizeof(T));
        }
      }
      for (size_t i = 0; i < m; i++) {
        right = (running[i] == 0) == (highest[i] == -(T)INFINITY) && maximum[i] == highest[i];
        for (size_t j = 0; j < n; j++) {
          const long double p = running[i] > 0 ? (long double)weight[i][j] / (long double)running[i] : weight[i][j];
          const long double q = (long double)y[i * ld + j];
          right = right && fabsl(p - q) <= (40 + 2 * (long double)(n / step)) * EPSILON * fabsl(q) + TINY;
          right = right && (F(seen)(given, i, j) || weight[i][j] == 0);
        }
        CHECK(right, "%s softmax_block n %zu step %zu row %zu: sum %g maximum %g", isa, n, step, i, (double)running[i],
              (double)maximum[i]);
      }
      CHECK(F(guarded)(block, m, n, n), "%s softmax_block wrote outside", isa);
      F(release)(block);
      F(release)(x);
      F(release)(y);
      F(release)(copy);
      F(release)(factor);
    }

  /* NaN is not hidden; huge scores do not overflow; nothing visible gives zeros. */
  T row[5] = {1, (T)NAN, 2, -(T)INFINITY, 3};
  F(kernels)->softmax(row, 5, 1, 5);
  CHECK(isnan(row[0]) && isnan(row[4]), "%s softmax hides NaN", isa);
  T big[3] = {HIGHEST / 2, HIGHEST / 4, -HIGHEST / 2};
  F(kernels)->softmax(big, 3, 1, 3);
  CHECK(big[0] == 1 && big[1] == 0 && big[2] == 0, "%s softmax of huge scores", isa);
  T none[4] = {-(T)INFINITY, -(T)INFINITY, -(T)INFINITY, -(T)INFINITY};
  F(kernels)->softmax(none, 4, 1, 4);
  CHECK(none[0] == 0 && none[3] == 0, "%s softmax of an empty row", isa);
  /* masked entries may hold anything */
  T poison[4] = {1, (T)NAN, (T)INFINITY, (T)NAN}, top = -(T)INFINITY, total = 0, factor;
  const clew_mask first = {.causal = true};
  F(kernels)->softmax_block(poison, 4, &top, &total, &factor, 1, 4, 1, 0, &first);
  CHECK(poison[0] == 1 && poison[1] == 0 && poison[2] == 0 && poison[3] == 0 && top == 1 && total == 1 && factor == 0,
        "%s softmax_block reads masked entries", isa);
}

/* ---- The rest ----------------------------------------------------------------------------------------------- */

static void F(test_rest)(const char *isa) {
  for (size_t s = 0; s < N_SIZES; s++) {
    const size_t n = sizes[s], m = 3, ld = n + 2;
    T *x = F(matrix)(m, ld), *copy = F(matrix)(m, ld);
    F(fill)(copy, m, n, ld, -6, 6);
    copy[2 * ld] = 0;
    const T factor[3] = {(T)0.37, (T)-3, 0}, cap = (T)2.5;
    bool right = true;
    memcpy(x, copy, m * ld * sizeof(T));
    F(kernels)->scale_rows(x, (ptrdiff_t)ld, factor, m, n, false);
    for (size_t i = 0; i < m; i++)
      for (size_t j = 0; j < n; j++)
        right = right && x[i * ld + j] == copy[i * ld + j] * factor[i];
    memcpy(x, copy, m * ld * sizeof(T));
    F(kernels)->scale_rows(x, (ptrdiff_t)ld, factor, m, n, true);
    for (size_t i = 0; i < m; i++)
      for (size_t j = 0; j < n; j++)
        right = right && (i == 2 && j == 0 ? x[i * ld + j] == 0 : x[i * ld + j] == copy[i * ld + j] / factor[i]);
    CHECK(right, "%s scale_rows n %zu", isa, n);
    memcpy(x, copy, m * ld * sizeof(T));
    F(kernels)->softcap(x, (ptrdiff_t)ld, m, n, cap);
    right = true;
    for (size_t i = 0; i < m; i++)
      for (size_t j = 0; j < n; j++) {
        const long double exact = (long double)cap * tanhl((long double)copy[i * ld + j] / (long double)cap);
        right = right && F(near)(x[i * ld + j], exact, 5 * EPSILON * fabsl(exact));
      }
    CHECK(right && F(guarded)(x, m, n, ld), "%s softcap n %zu", isa, n);
    F(release)(x);
    F(release)(copy);
  }

  for (unsigned r = 0; r < 60; r++) {
    const size_t rows = 1 + below(4), heads = 1 + below(3), e = 2 + below(66), half = 1 + below(e / 2),
                 n_rot = 2 * half;
    const bool adjacent = r % 2, in_place = r % 4 < 2;
    int32_t pos[4];
    T *x = F(matrix)(rows, heads * e), *copy = F(matrix)(rows, heads * e);
    T *out = in_place ? x : F(matrix)(rows, heads * e), *c = F(matrix)(9, half), *s = F(matrix)(9, half);
    F(fill)(x, rows, heads * e, heads * e, -1, 1);
    F(fill)(c, 9, half, half, -1, 1);
    F(fill)(s, 9, half, half, -1, 1);
    memcpy(copy, x, rows * heads * e * sizeof(T));
    for (size_t i = 0; i < rows; i++)
      pos[i] = (int32_t)below(9);
    F(kernels)->rotary(out, x, pos, c, s, rows, heads, e, n_rot, adjacent);
    bool right = true;
    for (size_t i = 0; i < rows; i++)
      for (size_t h = 0; h < heads; h++)
        for (size_t j = 0; j < e; j++) {
          const T *from = copy + (i * heads + h) * e;
          const size_t pair = adjacent ? j / 2 : j % half, u = adjacent ? 2 * pair : pair,
                       v = adjacent ? u + 1 : u + half;
          const long double cosine = (long double)c[(size_t)pos[i] * half + pair],
                            sine = (long double)s[(size_t)pos[i] * half + pair];
          const long double exact = j >= n_rot ? (long double)from[j]
                                    : j == u   ? (long double)from[u] * cosine - (long double)from[v] * sine
                                               : (long double)from[v] * cosine + (long double)from[u] * sine;
          right = right && F(near)(out[(i * heads + h) * e + j], exact, j >= n_rot ? 0 : 2 * EPSILON);
        }
    CHECK(right, "%s rotary e %zu n_rot %zu adjacent %d", isa, e, n_rot, adjacent);
    CHECK(F(guarded)(out, rows, heads * e, heads * e), "%s rotary wrote outside", isa);
    if (!in_place)
      F(release)(out);
    F(release)(x);
    F(release)(copy);
    F(release)(c);
    F(release)(s);
  }
}

static void F(all)(const char *isa) {
  F(kernels) = F(clew_get_kernels)();
  F(test_functions)(isa);
  F(test_gemm)(isa);
  F(test_packed)(isa);
  F(test_norm)(isa);
  F(test_activations)(isa);
  F(test_slopes)(isa);
  F(test_scores)(isa);
  F(test_rest)(isa);
}

#undef F
#undef GUARD

#endif
