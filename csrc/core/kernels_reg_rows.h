/* The kernels of kernels_reg_rows.c, where their tables are made. */
#ifndef CLEW_KERNELS_REG_ROWS_H
#define CLEW_KERNELS_REG_ROWS_H

#include "kernels_internal.h"
#include "kernels_reg.h"

void K(distances)(real *out, const real *x, size_t ld, const real *q, size_t n, size_t d);
void K(scaled_exp)(real *out, real factor, size_t n);
void K(attend)(real *shift, double *sum, double *weighted, const real *first, const real *second, const real *y,
               size_t n);
void K(solve_rows)(real *a, size_t ld, const real *transposed, const real *inverse, size_t m, size_t nb);
void K(predict_block)(real *out, const real *x, const real *tasks, size_t ld, size_t n, size_t rows, size_t d);
void K(posterior_block)(R(clew_posterior) * row, real *score, real *prediction, bool wanted, bool keep, real y,
                        real half_precision, size_t n);

#endif
