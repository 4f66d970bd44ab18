/* exp, tanh, erf and the activations as branch-free scalar functions that compilers turn into vector code.
 *
 * Both sides of every condition are computed and one is selected, and selections are written so that NaN passes.
 * The polynomials interpolate at Chebyshev nodes (60 digits, then rounded); their own error is below an eighth of an
 * ulp, the rest is rounding. Bounds are in tests/c/test_kernels.c. */
#ifndef CLEW_KERNELS_MATH_H
#define CLEW_KERNELS_MATH_H

#include <string.h>

#include "kernels_internal.h"

#if REAL_IS_FLOAT
typedef uint32_t bits_t;
#define MANTISSA_BITS 23
#define EXPONENT_BIAS 127u
#define ROUNDER ((real)0x1.8p23)   /* x + ROUNDER − ROUNDER is x rounded to an integer, kept in its low bits */
#define LN2_HI ((real)0x1.62e4p-1) /* k · LN2_HI is exact */
#define LN2_LO ((real)0x1.7f7d1cp-20)
#define EXP_HIGHEST ((real)89.0)  /* exp overflows */
#define EXP_LOWEST ((real)-104.0) /* exp rounds to 0 */
#define EXP_NORMAL ((real)-87.3)  /* exp is no denormal */
#define EXP_FINITE ((real)88.3)   /* exp needs no power of two that is infinite */
#else
typedef uint64_t bits_t;
#define MANTISSA_BITS 52
#define EXPONENT_BIAS 1023u
#define ROUNDER ((real)0x1.8p52)
#define LN2_HI ((real)0x1.62e42fefa2p-1)
#define LN2_LO ((real)0x1.9ef35793c7673p-41)
#define EXP_HIGHEST ((real)710.0)
#define EXP_LOWEST ((real)-746.0)
#define EXP_NORMAL ((real)-708.0)
#define EXP_FINITE ((real)709.0)
#endif
#define LOG2_E ((real)1.44269504088896340736)

static inline real abs_real(real x) {
#if REAL_IS_FLOAT
  return __builtin_fabsf(x);
#else
  return __builtin_fabs(x);
#endif
}

static inline real copysign_real(real x, real sign) {
#if REAL_IS_FLOAT
  return __builtin_copysignf(x, sign);
#else
  return __builtin_copysign(x, sign);
#endif
}

/* 2^k from rounded = k + ROUNDER. */
static inline real power_of_two(real rounded) {
  bits_t bits;
  real result;
  memcpy(&bits, &rounded, sizeof bits);
  bits = (bits + EXPONENT_BIAS) << MANTISSA_BITS;
  memcpy(&result, &bits, sizeof result);
  return result;
}

#define STEP(c) p = fma_real(p, r, (real)(c))

/* exp(x) = fraction · 2^k; *rounded = k + ROUNDER. */
static inline real exp_fraction(real x, real *rounded) {
  const real shifted = fma_real(x, LOG2_E, ROUNDER);
  const real k = shifted - ROUNDER;
  const real r = fma_real(k, -LN2_LO, fma_real(k, -LN2_HI, x));
#if REAL_IS_FLOAT
  real p = (real)0x1.6d117cp-10;
  STEP(0x1.120be2p-7);
  STEP(0x1.555518p-5);
  STEP(0x1.5554dcp-3);
#else
  real p = (real)0x1.1f7340dbc337ep-29;
  STEP(0x1.af4e554377204p-26);
  STEP(0x1.27e4db46cddd1p-22);
  STEP(0x1.71de01fdbf9cap-19);
  STEP(0x1.a01a01a6e1e2ap-16);
  STEP(0x1.a01a01abf85abp-13);
  STEP(0x1.6c16c16c162c3p-10);
  STEP(0x1.11111111100bep-7);
  STEP(0x1.5555555555556p-5);
  STEP(0x1.5555555555557p-3);
#endif
  STEP(0.5);
  *rounded = shifted;
  return fma_real(r * r, p, r) + (real)1;
}

static inline real exp_real(real x) {
  x = x > EXP_HIGHEST ? EXP_HIGHEST : x;
  x = x < EXP_LOWEST ? EXP_LOWEST : x;
  real shifted;
  const real fraction = exp_fraction(x, &shifted);
  /* Two factors, since 2^k alone may be no number of this precision; only the last product rounds. */
  const real k = shifted - ROUNDER;
  const real half = fma_real(k, (real)0.5, ROUNDER);
  const real rest = (k - (half - ROUNDER)) + ROUNDER;
  return fraction * power_of_two(half) * power_of_two(rest);
}

/* For x ≤ 0, as in a softmax: what would be denormal is 0. */
static inline real exp_flushed(real x) {
  real shifted;
  const real clamped = x < EXP_NORMAL ? EXP_NORMAL : x;
  const real y = exp_fraction(clamped, &shifted) * power_of_two(shifted);
  return x < EXP_NORMAL ? (real)0 : y;
}

/* 2^(x + ½) for x ≤ 0, as in sums of weights where the highest score, and a half, is taken away: what would be denormal
 * is 0. Fewer steps than exp_flushed: x is in units of the exponent, and x + ½ − k lies between 0 and 1, so that the
 * fraction is at least 1, and a product below the normal range has the factor whose exponent's bits are 0: 0 itself.
 * At x = −½ it is 1 exactly. */
static inline real exp2_above(real x) {
  const real clamped = x < -(real)EXPONENT_BIAS ? -(real)EXPONENT_BIAS : x;
  const real rounder = ROUNDER + (real)EXPONENT_BIAS; /* the bias rides along */
  const real shifted = clamped + rounder, r = clamped - (shifted - rounder);
#if REAL_IS_FLOAT
  real p = (real)0x1.ca8f0ap-13;
  STEP(0x1.f0ca76p-10);
  STEP(0x1.bdb5bap-7);
  STEP(0x1.418262p-4);
  STEP(0x1.5be298p-2);
  STEP(0x1.f5e466p-1);
  STEP(0x1.6a09e6p+0);
#else
  real p = (real)0x1.5a6d6b99eb4a1p-31;
  STEP(0x1.57bfd282ad6ebp-27);
  STEP(0x1.351b8e996a62fp-23);
  STEP(0x1.f5b0e17599b55p-20);
  STEP(0x1.69e51ee002859p-16);
  STEP(0x1.c8d7530547b4bp-13);
  STEP(0x1.ee4fd234a73e9p-10);
  STEP(0x1.bdb696e8987b7p-7);
  STEP(0x1.41839eb881567p-4);
  STEP(0x1.5be298adf0369p-2);
  STEP(0x1.f5e46537ab907p-1);
  STEP(0x1.6a09e667f3bcdp+0);
#endif
  bits_t bits;
  real power;
  memcpy(&bits, &shifted, sizeof bits);
  bits <<= MANTISSA_BITS;
  memcpy(&power, &bits, sizeof power);
  return p * power;
}

/* For 1 + exp(x): small values may be rounded away, large ones become infinite, and nothing is denormal (which costs a
 * hundred cycles on some machines). */
static inline real exp_beside_one(real x) {
  real shifted;
  real clamped = x < EXP_NORMAL ? EXP_NORMAL : x;
  clamped = clamped > EXP_FINITE ? EXP_FINITE : clamped;
  const real y = exp_fraction(clamped, &shifted) * power_of_two(shifted);
  return x > EXP_FINITE ? REAL_INF : y;
}

static inline real tanh_real(real x) {
  const real a = abs_real(x);
  /* |x| < 0.55: x + x³ p(x²) */
  const real r = x * x;
#if REAL_IS_FLOAT
  real p = (real)0x1.47130cp-9;
  STEP(-0x1.16af2ep-7);
  STEP(0x1.65637p-6);
  STEP(-0x1.ba132p-5);
  STEP(0x1.111102p-3);
  STEP(-0x1.555556p-2);
#else
  real p = (real)0x1.01c5289f6864bp-17;
  STEP(-0x1.1842bb1e2c6ecp-15);
  STEP(0x1.8baa94a2482a6p-14);
  STEP(-0x1.f3ef3370c049dp-13);
  STEP(0x1.3544f435f9e57p-11);
  STEP(-0x1.7da225cb9524ep-10);
  STEP(0x1.d6d3c33588c05p-9);
  STEP(-0x1.226e352ea1ea4p-7);
  STEP(0x1.664f4881fb637p-6);
  STEP(-0x1.ba1ba1ba19fa7p-5);
  STEP(0x1.1111111111106p-3);
  STEP(-0x1.5555555555555p-2);
#endif
  const real small = fma_real(x * r, p, x);
  /* 1 − 2 / (exp(2 |x|) + 1), which is 1 long before |x| = 20 */
  real shifted;
  const real twice = a > (real)20 ? (real)40 : a + a;
  const real fraction = exp_fraction(twice, &shifted);
  const real large = (real)1 - (real)2 / (fma_real(fraction, power_of_two(shifted), (real)1));
  return copysign_real(a < (real)0.55 ? small : large, x); /* tanh(−0) is −0 */
}

/* erf(x) / x − 1 for r = x² ≤ 1 */
static inline real erf_ratio(real r) {
#if REAL_IS_FLOAT
  real p = (real)-0x1.44184ep-17;
  STEP(0x1.d86a66p-14);
  STEP(-0x1.bccaccp-11);
  STEP(0x1.562a04p-8);
  STEP(-0x1.b829c2p-6);
  STEP(0x1.ce2f08p-4);
  STEP(-0x1.812746p-2);
  STEP(0x1.06eba8p-3);
#else
  real p = (real)0x1.05c2f427e1e11p-34;
  STEP(-0x1.388763e58ef04p-30);
  STEP(0x1.f7addaf039148p-27);
  STEP(-0x1.5f1e2c6b0634dp-23);
  STEP(0x1.b9df10296b7f7p-20);
  STEP(-0x1.f4d1e1bb4a5c9p-17);
  STEP(0x1.f9a321c446552p-14);
  STEP(-0x1.c02db3da31a56p-11);
  STEP(0x1.565bcd0db799ap-8);
  STEP(-0x1.b82ce31284cd1p-6);
  STEP(0x1.ce2f21a042b2cp-4);
  STEP(-0x1.812746b0379e6p-2);
  STEP(0x1.06eba8214db69p-3);
#endif
  return p;
}

/* exp(a²) erfc(a) for a ≥ 1, up to where erfc underflows: a polynomial in (a − s) / (a + s), over a + s. */
static inline real erfc_scaled(real a) {
#if REAL_IS_FLOAT
  const real s = (real)2, highest = (real)10.2;
#else
  const real s = (real)3, highest = (real)27.5;
#endif
  a = a > highest ? highest : a;
  const real inverse = (real)1 / (a + s);
  const real r = (a - s) * inverse;
#if REAL_IS_FLOAT
  real p = (real)-0x1.60bebcp-12;
  STEP(-0x1.041b3ep-10);
  STEP(0x1.8e69aap-9);
  STEP(0x1.aaea64p-8);
  STEP(-0x1.6065d4p-6);
  STEP(-0x1.2a8dbap-5);
  STEP(0x1.1e2deep-2);
  STEP(-0x1.5fd386p-1);
  STEP(0x1.058672p+0);
#else
  real p = (real)-0x1.4cf59e40b5778p-28;
  STEP(0x1.d85f47634bbfbp-24);
  STEP(-0x1.c513e7ba7d733p-23);
  STEP(-0x1.fe67650374bb0p-22);
  STEP(0x1.0f66f5df44694p-20);
  STEP(0x1.77005e8985082p-19);
  STEP(-0x1.3f75e2e2a1de6p-18);
  STEP(-0x1.2536708a95ce1p-16);
  STEP(0x1.fe0dcc442cf6fp-16);
  STEP(0x1.c32612c010d3bp-14);
  STEP(-0x1.2239224bc8e11p-12);
  STEP(-0x1.1f78e32ce259bp-11);
  STEP(0x1.8dae3a8d756b7p-9);
  STEP(-0x1.3dd3e7078111cp-10);
  STEP(-0x1.b78993d74a72fp-6);
  STEP(0x1.e995f11b166adp-4);
  STEP(-0x1.3deb21415d983p-2);
  STEP(0x1.2e326945de2b9p-1);
  STEP(-0x1.c44c471baa379p-1);
  STEP(0x1.12f21ddd9f5e2p+0);
#endif
  return p * inverse;
}

static inline real erf_real(real x) {
  const real a = abs_real(x), square = x * x;
  const real small = fma_real(x, erf_ratio(square), x);
  const real large = fma_real(-exp_flushed(-square), erfc_scaled(a), (real)1);
  return a < (real)1 ? small : copysign_real(large, x);
}

/* ---- Activations -------------------------------------------------------------------------------------------- */

static inline real sigmoid_real(real x) { return (real)1 / ((real)1 + exp_beside_one(-x)); }

/* Φ(x); below −√2 from erfc, so that the tail keeps its relative accuracy. *bell = exp(−x² / 2) */
static inline real normal_cdf(real x, real *bell) {
  const real z = x * (real)0.70710678118654752440, a = abs_real(z);
  const real near = fma_real((real)0.5, fma_real(z, erf_ratio(z * z), z), (real)0.5);
  *bell = exp_flushed((real)-0.5 * x * x);
  const real tail = (real)0.5 * *bell * erfc_scaled(a);
  return a < (real)1 ? near : (x > (real)0 ? (real)1 - tail : tail);
}

static inline real gelu_real(real x) {
  real bell;
  return x * normal_cdf(x, &bell);
}

/* ½ x (1 + tanh u) = x σ(2u) with u = √(2/π) (x + 0.044715 x³) */
static inline real gelu_tanh_real(real x) {
  const real slope = (real)-1.59576912160573071176, cubic = (real)(-1.59576912160573071176 * 0.044715);
  return x / ((real)1 + exp_beside_one(x * fma_real(x * x, cubic, slope)));
}

static inline real relu_real(real x) { return x < (real)0 ? (real)0 : x; }

static inline real silu_real(real x) { return x / ((real)1 + exp_beside_one(-x)); }

static inline real quick_gelu_real(real x) { return x / ((real)1 + exp_beside_one((real)-1.702 * x)); }

static inline real relu2_real(real x) {
  const real y = relu_real(x);
  return y * y;
}

#undef STEP

#endif
