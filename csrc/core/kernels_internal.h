/* What the kernel files share. Each of them is compiled for every pair of precision (REAL) and instruction set (ISA);
 * K(name) is the symbol of the pair, name_f32_v3 for example. */
#ifndef CLEW_KERNELS_INTERNAL_H
#define CLEW_KERNELS_INTERNAL_H

#include "kernels.h"

#ifndef REAL
#error "compile with -DREAL=float or -DREAL=double"
#endif
#ifndef ISA
#define ISA base
#endif

#define CLEW_IS_FLOAT_float 1
#define CLEW_IS_FLOAT_double 0
#define REAL_IS_FLOAT CLEW_PASTE(CLEW_IS_FLOAT_, REAL)

#define K_ISA_(isa) CLEW_PASTE(_, isa)
#define K(name) CLEW_PASTE(R(name), K_ISA_(ISA))

typedef R(clew_kernels) kernel_table;

#if defined(__FMA__) || defined(__AVX512F__) || defined(__aarch64__) || defined(__FP_FAST_FMA)
#define CLEW_HAS_FMA 1
#else
#define CLEW_HAS_FMA 0
#endif

/* a · b + c, fused wherever the instruction set has it: -std=c11 forbids the compiler to do it by itself. */
static inline real fma_real(real a, real b, real c) {
#if !CLEW_HAS_FMA
  return a * b + c;
#elif REAL_IS_FLOAT
  return __builtin_fmaf(a, b, c);
#else
  return __builtin_fma(a, b, c);
#endif
}

static inline real sqrt_real(real x) {
#if REAL_IS_FLOAT
  return __builtin_sqrtf(x);
#else
  return __builtin_sqrt(x);
#endif
}

#define REAL_INF ((real)__builtin_inf())

/* One register of the instruction set. vec_mem is the same in memory, at any address a real may have. */
#if defined(__AVX512F__)
#define VEC_BYTES 64
#elif defined(__AVX__)
#define VEC_BYTES 32
#else
#define VEC_BYTES 16
#endif
#if REAL_IS_FLOAT
#define REAL_BYTES 4
#else
#define REAL_BYTES 8
#endif
#define LANE_COUNT (VEC_BYTES / REAL_BYTES) /* an int, as shuffles want it */
#define LANES ((size_t)LANE_COUNT)
typedef real vec __attribute__((vector_size(VEC_BYTES)));
typedef real vec_mem __attribute__((vector_size(VEC_BYTES), aligned(sizeof(real)), may_alias));

static inline vec load(const real *p) { return (vec) * (const vec_mem *)p; }
static inline void store(real *p, vec v) { *(vec_mem *)p = (vec_mem)v; }
static inline vec splat(real x) { return x - (vec){0}; } /* − 0 changes no number; + 0 would: −0 */

/* The sums of the lanes of four registers. Lanes are added in halves: l and l + LANES / 2, then l and l + LANES / 4,
 * ...: the order that the last of these branches spells out. */
#if !defined(__has_builtin)
#define CLEW_SHUFFLES 0
#elif __has_builtin(__builtin_shufflevector)
#define CLEW_SHUFFLES 1
#else
#define CLEW_SHUFFLES 0
#endif

static inline void lane_sums(real *sums /* [4] */, vec a, vec b, vec c, vec d) {
#define MIX __builtin_shufflevector
#if CLEW_SHUFFLES && VEC_BYTES == 16 * REAL_BYTES
  const vec ab = MIX(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 MIX(a, b, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  const vec cd = MIX(c, d, 0, 1, 2, 3, 4, 5, 6, 7, 16, 17, 18, 19, 20, 21, 22, 23) +
                 MIX(c, d, 8, 9, 10, 11, 12, 13, 14, 15, 24, 25, 26, 27, 28, 29, 30, 31);
  vec s = MIX(ab, cd, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27) +
          MIX(ab, cd, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31);
  s += MIX(s, s, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
  s += MIX(s, s, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#elif CLEW_SHUFFLES && VEC_BYTES == 8 * REAL_BYTES
  const vec ab = MIX(a, b, 0, 1, 2, 3, 8, 9, 10, 11) + MIX(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
  const vec cd = MIX(c, d, 0, 1, 2, 3, 8, 9, 10, 11) + MIX(c, d, 4, 5, 6, 7, 12, 13, 14, 15);
  vec s = MIX(ab, cd, 0, 1, 4, 5, 8, 9, 12, 13) + MIX(ab, cd, 2, 3, 6, 7, 10, 11, 14, 15);
  s += MIX(s, s, 1, 0, 3, 2, 5, 4, 7, 6);
#elif CLEW_SHUFFLES && VEC_BYTES == 4 * REAL_BYTES
  const vec ab = MIX(a, b, 0, 1, 4, 5) + MIX(a, b, 2, 3, 6, 7);
  const vec cd = MIX(c, d, 0, 1, 4, 5) + MIX(c, d, 2, 3, 6, 7);
  const vec s = MIX(ab, cd, 0, 2, 4, 6) + MIX(ab, cd, 1, 3, 5, 7);
#else
  real s[4 * LANES];
  store(s, a);
  store(s + LANES, b);
  store(s + 2 * LANES, c);
  store(s + 3 * LANES, d);
  for (size_t width = LANES / 2; width > 0; width /= 2)
    for (size_t v = 0; v < 4; v++)
      for (size_t l = 0; l < width; l++)
        s[v * LANES + l] += s[v * LANES + l + width];
  for (size_t v = 0; v < 4; v++)
    sums[v] = s[v * LANES];
  return;
#endif
#if CLEW_SHUFFLES && VEC_BYTES >= 4 * REAL_BYTES
  for (size_t v = 0; v < 4; v++)
    sums[v] = s[v * LANES / 4];
#endif
#undef MIX
}

static inline real lane_sum(vec v) {
  real sums[4];
  lane_sums(sums, v, v, v, v);
  return sums[0];
}

/* The keys that row i of a block [m, n] sees: columns [lo, hi) but for hole (SIZE_MAX: none). */
typedef struct visible {
  size_t lo, hi, hole;
} visible;

static inline visible visible_keys(const clew_mask *mask, size_t row, size_t n) {
  visible v = {0, n, SIZE_MAX};
  if (!mask)
    return v;
  const ptrdiff_t width = (ptrdiff_t)n;
  const ptrdiff_t self = mask->q0 + (ptrdiff_t)row - mask->k0; /* the column where q = k */
  ptrdiff_t lo = mask->window > 0 ? self - mask->window + 1 : 0;
  ptrdiff_t hi = mask->causal ? self + 1 : width;
  if (mask->has_end && hi > mask->end - mask->k0)
    hi = mask->end - mask->k0;
  lo = lo < 0 ? 0 : lo > width ? width : lo;
  hi = hi > width ? width : hi < lo ? lo : hi;
  v.lo = (size_t)lo;
  v.hi = (size_t)hi;
  if (mask->exclude_self && self >= lo && self < hi)
    v.hole = (size_t)self;
  return v;
}

void K(gemm_few)(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b, ptrdiff_t cs_b,
                 size_t m, size_t n, size_t k, real alpha, real beta);
void K(gemm_packed)(real *c, ptrdiff_t ld_c, const real *a, ptrdiff_t rs_a, ptrdiff_t cs_a, const real *b,
                    ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha, real beta, real *sums,
                    real *room);
void K(norm)(real *out, real *normalized, real *scale, const real *x, const real *w, const real *b, size_t rows,
             size_t d, real eps, bool centre);
void K(bias_act)(real *post, ptrdiff_t ld_post, real *pre, ptrdiff_t ld_pre, const real *bias, const real *gate,
                 ptrdiff_t ld_gate, size_t m, size_t n, clew_act act);
void K(bias_add)(real *sum, ptrdiff_t ld_sum, real *x, ptrdiff_t ld_x, const real *bias, const real *resid,
                 ptrdiff_t ld_resid, size_t m, size_t n);
void K(score)(real *x, ptrdiff_t ld, size_t m, size_t n, real scale, real cap, const clew_mask *mask);
void K(softmax)(real *x, ptrdiff_t ld, size_t m, size_t n);
void K(softmax_block)(real *x, ptrdiff_t ld, real *maximum, real *sum, real *correction, size_t m, size_t n, real scale,
                      real cap, const clew_mask *mask);
void K(score_linear)(real *x, ptrdiff_t ld, size_t m, size_t n, const real *scale, const clew_mask *mask);
void K(scale_rows)(real *x, ptrdiff_t ld, const real *factor, size_t m, size_t n, bool inverse);
void K(rotary)(real *out, const real *x, const int32_t *pos, const real *cosine, const real *sine, size_t rows,
               size_t heads, size_t e, size_t n_rot, bool adjacent);
void K(softcap)(real *x, ptrdiff_t ld, size_t m, size_t n, real cap);
void K(log_sum)(real *maximum, real *sum, const real *x, ptrdiff_t ld, size_t m, size_t n);
void K(vexp)(real *out, const real *x, size_t n);
void K(vtanh)(real *out, const real *x, size_t n);
void K(verf)(real *out, const real *x, size_t n);
void K(adamw)(real *p, real *m, real *v, const real *g, size_t n, const R(clew_adamw_factors) * f);
double K(sum_squares)(const real *x, size_t n);
void K(add_scaled)(real *y, const real *x, real factor, size_t n);
void K(act_grad)(real *dpre, real *dlinear, const real *dpost, const real *pre, const real *linear, size_t n,
                 clew_act act);
void K(softcap_grad)(real *dx, const real *dy, const real *y, size_t n, real cap);
void K(norm_grad)(real *dx, real *dw, real *db, const real *x, const real *g, const real *w, size_t rows, size_t d,
                  real eps, bool centre, bool add);
void K(softmax_grad)(real *g, const real *p, ptrdiff_t ld, size_t m, size_t n);
void K(rotary_grad)(real *x, const int32_t *pos, const real *cosine, const real *sine, size_t rows, size_t heads,
                    size_t e, size_t n_rot, bool adjacent);
double K(cross_entropy)(real *dlogits, const real *logits, size_t target, size_t n, real weight);
void K(column_sums)(real *out, const real *x, ptrdiff_t ld, size_t rows, size_t n, bool add);
void K(adaptive)(const struct R(clew_adaptive_chunk) * chunk);
double K(expected_variance)(const real *joint, size_t ld, const real *squares, size_t points, size_t n);

#endif
