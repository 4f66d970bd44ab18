/* The table of streams of one precision and one instruction set. */
#include "kernels_reg_internal.h"
#include "kernels_reg_rows.h"

static void K(dot)(real *out, const real *x, const real *w, size_t d) {
  *(lanes *)out = dot_lanes((const lanes *)x, (const lanes *)w, d);
}

#define STREAM(state, name)                                                                                            \
  { K(state##_vectors), K(state##_begin), K(state##_update), K(name##_weights) }

const R(clew_reg_kernels) K(clew_reg_table) = {
    .lanes = LANES,
    .streams =
        {
            [CLEW_STREAM_OLS] = STREAM(ols, ols),
            [CLEW_STREAM_RIDGE] = STREAM(ridge, ridge),
            [CLEW_STREAM_BAYES] = STREAM(bayes, bayes),
            [CLEW_STREAM_AVERAGING] = STREAM(averaging, averaging),
            [CLEW_STREAM_SGD] = STREAM(sgd, sgd),
            [CLEW_STREAM_GD] = STREAM(gram, gd),
            [CLEW_STREAM_GD_PP] = STREAM(gram, gd_pp),
            [CLEW_STREAM_NEWTON] = STREAM(gram, newton),
            [CLEW_STREAM_LASSO] = STREAM(gram, lasso),
        },
    .variance = K(bayes_variance),
    .covariance = K(bayes_covariance),
    .dot = K(dot),
    .distances = K(distances),
    .scaled_exp = K(scaled_exp),
    .attend = K(attend),
    .solve_rows = K(solve_rows),
    .predict_block = K(predict_block),
    .posterior_block = K(posterior_block),
};
