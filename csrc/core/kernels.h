/* Serial kernels on rows: they cannot fail, know nothing of models, and touch only what they are given.
 *
 * kernels.c and friends are compiled for float and double, and for each instruction set of this architecture
 * (x86-64: baseline, v3 = AVX2 + FMA, v4 = AVX-512). clew_kernels_f32() and _f64() give the best table for the machine.
 * CLEW_ISA=base|v3|v4 in the environment asks for a lower one (tests).
 *
 * Arguments: outputs, inputs, dimensions. ld is the distance between rows in elements; no ld means contiguous rows. */
#ifndef CLEW_KERNELS_H
#define CLEW_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "kernels_reg.h"
#include "real.h"

typedef enum clew_act {
  CLEW_ACT_NONE,      /* x */
  CLEW_ACT_GELU,      /* x Φ(x), with erf */
  CLEW_ACT_GELU_TANH, /* gelu_new, gelu_pytorch_tanh, gelu_fast */
  CLEW_ACT_RELU,
  CLEW_ACT_SILU,
  CLEW_ACT_QUICK_GELU, /* x σ(1.702 x) */
  CLEW_ACT_RELU2,      /* relu(x)² */
  CLEW_ACT_TANH,
  CLEW_ACT_SIGMOID,
  CLEW_N_ACT
} clew_act;

/* Which keys a query sees. Query row i stands at position q0 + i, key column j at k0 + j; it is seen when
 * 0 ≤ q − k (causal), q − k < window (window > 0), k < end (has_end), and not (exclude_self and q == k). */
typedef struct clew_mask {
  ptrdiff_t q0, k0;
  ptrdiff_t window; /* 0: none */
  bool causal;
  bool exclude_self;
  bool has_end;
  ptrdiff_t end; /* keys from here on are seen by nobody */
} clew_mask;

struct clew_adaptive_chunk_f32;
struct clew_adaptive_chunk_f64;

/* Products of few rows read b's rows from end to end, so many columns at a time: c stays in cache. */
#define CLEW_STREAM_COLUMNS ((size_t)2048)

/* What gemm_packed needs: panels of 1024 rows and up to 512 columns, of 1536 bytes of k each. */
#define CLEW_PACK_BYTES ((size_t)3 << 20)

#define CLEW_DECLARE_KERNELS(suffix, real)                                                                               \
  /* What a step of AdamW multiplies by: keep = 1 - rate decay, step = rate / (1 - beta1^t),                             \
   * root = sqrt(1 - beta2^t), new1 = 1 - beta1, old2 = beta2, new2 = 1 - beta2. */                                      \
  typedef struct clew_adamw_factors##suffix {                                                                            \
    real keep, step, scale, eps, root, new1, old2, new2;                                                                 \
  } clew_adamw_factors##suffix;                                                                                          \
  typedef struct clew_kernels##suffix {                                                                                  \
    const char *isa;                                                                                                     \
    /* c [m, n] = alpha · a [m, k] · b [k, n] + beta · c, unpacked, any m; b must have rs_b or cs_b of 1.             \
     * Made for m ≤ 32: b is streamed from memory once. */                                                             \
    void (*gemm_few)(real * c, ptrdiff_t ld_c, const real *a, ptrdiff_t ld_a, const real *b, ptrdiff_t rs_b,             \
                     ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha, real beta);                               \
    /* The same with any strides of a and b, copied into panels in room [CLEW_PACK_BYTES], 64-byte aligned: many rows.   \
     * sums [n] = those of the columns of b, whose rows are then contiguous, or NULL. */                                 \
    void (*gemm_packed)(real * c, ptrdiff_t ld_c, const real *a, ptrdiff_t rs_a, ptrdiff_t cs_a, const real *b,          \
                        ptrdiff_t rs_b, ptrdiff_t cs_b, size_t m, size_t n, size_t k, real alpha, real beta,             \
                        real *sums, real *room);                                                                         \
    /* Layer norm (centre) or RMS norm of x [rows, d]: scale = √(mean square of the centred x + eps),                  \
     * normalized = centred / scale, out = normalized · w + b. w, b, normalized [rows, d], scale [rows] may be NULL;    \
     * out may be x. */                                                                                                  \
    void (*norm)(real * out, real *normalized, real *scale, const real *x, const real *w, const real *b, size_t rows,    \
                 size_t d, real eps, bool centre);                                                                       \
    /* The end of a GEMM tile: pre += bias (NULL: none), post = act(pre) · (gate NULL ? 1 : gate). post may be pre,     \
     * in which case pre is not kept. */                                                                                 \
    void (*bias_act)(real * post, ptrdiff_t ld_post, real *pre, ptrdiff_t ld_pre, const real *bias, const real *gate,    \
                     ptrdiff_t ld_gate, size_t m, size_t n, clew_act act);                                               \
    /* x += bias; sum = x + resid. bias, sum and resid may be NULL; sum may be x or resid. */                            \
    void (*bias_add)(real * sum, ptrdiff_t ld_sum, real *x, ptrdiff_t ld_x, const real *bias, const real *resid,         \
                     ptrdiff_t ld_resid, size_t m, size_t n);                                                            \
    /* x = scale · x, then cap · tanh(x / cap) if cap > 0, then −inf where masked. */                                \
    void (*score)(real * x, ptrdiff_t ld, size_t m, size_t n, real scale, real cap, const clew_mask *mask);              \
    /* Softmax of each row in place; −inf gives exactly 0, a row without any finite entry gives zeros. */              \
    void (*softmax)(real * x, ptrdiff_t ld, size_t m, size_t n);                                                         \
    /* One block of a streaming softmax: score as above, then x = exp(x − new maximum), 0 where masked, maximum [m]    \
     * and sum [m] brought up to date, correction [m] = exp(old maximum − new). maximum starts at −inf, sum at 0. */ \
    void (*softmax_block)(real * x, ptrdiff_t ld, real *maximum, real *sum, real *correction, size_t m, size_t n,        \
                          real scale, real cap, const clew_mask *mask);                                                  \
    /* Linear attention: x = scale_i · x where seen, else 0; scale [m] one factor a row. */                             \
    void (*score_linear)(real * x, ptrdiff_t ld, size_t m, size_t n, const real *scale, const clew_mask *mask);          \
    /* Rows times one factor each: x [m, n] ·= factor [m]; inverse: divides (0/0 gives 0). */                           \
    void (*scale_rows)(real * x, ptrdiff_t ld, const real *factor, size_t m, size_t n, bool inverse);                    \
    /* Rotary embedding of x [rows, heads, e] at pos [rows]: the first n_rot of each e; cos, sin [position, n_rot /      \
     * 2]. adjacent: pairs (0,1), (2,3) … (GPT-J), else (i, i + n_rot / 2). out may be x. */                           \
    void (*rotary)(real * out, const real *x, const int32_t *pos, const real *cosine, const real *sine, size_t rows,     \
                   size_t heads, size_t e, size_t n_rot, bool adjacent);                                                 \
    void (*softcap)(real * x, ptrdiff_t ld, size_t m, size_t n, real cap); /* cap · tanh(x / cap) */                    \
    /* Row maxima and Σ exp(x − maximum) of x [m, n]: for a log-sum-exp over blocks. */                               \
    void (*log_sum)(real * maximum, real *sum, const real *x, ptrdiff_t ld, size_t m, size_t n);                         \
    /* Elementwise, tested against long double: exp, tanh, erf. out may be x. */                                         \
    void (*vexp)(real * out, const real *x, size_t n);                                                                   \
    void (*vtanh)(real * out, const real *x, size_t n);                                                                  \
    void (*verf)(real * out, const real *x, size_t n);                                                                   \
    /* One step of AdamW with gradients scale g: p, m and v [n] are brought up to date. */                               \
    void (*adamw)(real * p, real *m, real *v, const real *g, size_t n, const clew_adamw_factors##suffix *factors);       \
    double (*sum_squares)(const real *x, size_t n);                     /* in double */                                  \
    void (*add_scaled)(real * y, const real *x, real factor, size_t n); /* y += factor x */                              \
    /* The backward pass. act: dpre = dpost · act'(pre) · linear, dlinear = dpost · act(pre); without linear (NULL)   \
     * the first only. dpre may be dpost. */                                                                             \
    void (*act_grad)(real * dpre, real *dlinear, const real *dpost, const real *pre, const real *linear, size_t n,       \
                     clew_act act);                                                                                      \
    void (*softcap_grad)(real * dx, const real *dy, const real *y, size_t n, real cap); /* y = cap tanh(x / cap) */      \
    /* dx (+)= gradient of a norm's input; dw, db [d] (NULL: not wanted) are added to. */                                \
    void (*norm_grad)(real * dx, real *dw, real *db, const real *x, const real *g, const real *w, size_t rows,           \
                      size_t d, real eps, bool centre, bool add);                                                        \
    void (*softmax_grad)(real * g, const real *p, ptrdiff_t ld, size_t m, size_t n); /* g = p (g − Σ p g), by row */  \
    /* Turns back what rotary turned, in place. */                                                                       \
    void (*rotary_grad)(real * x, const int32_t *pos, const real *cosine, const real *sine, size_t rows, size_t heads,   \
                        size_t e, size_t n_rot, bool adjacent);                                                          \
    /* One row: its negative log-likelihood; dlogits = weight (softmax − one-hot), not in the logits' place. */        \
    double (*cross_entropy)(real * dlogits, const real *logits, size_t target, size_t n, real weight);                   \
    void (*column_sums)(real * out, const real *x, ptrdiff_t ld, size_t rows, size_t n, bool add);                       \
    /* adaptive.h: a chunk of contexts through the constrained transformer; variance left by a message. */               \
    void (*adaptive)(const struct clew_adaptive_chunk##suffix *chunk);                                                   \
    double (*expected_variance)(const real *joint, size_t ld, const real *squares, size_t points, size_t n);             \
    const clew_reg_kernels##suffix *reg; /* kernels_reg.h */                                                             \
  } clew_kernels##suffix;                                                                                                \
  const clew_kernels##suffix *clew_get_kernels##suffix(void);

CLEW_DECLARE_KERNELS(_f32, float)
CLEW_DECLARE_KERNELS(_f64, double)

#endif
