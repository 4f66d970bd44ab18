/* The table of one precision and one instruction set. */
#include "kernels_internal.h"

#define NAME_OF_(isa) #isa
#define NAME_OF(isa) NAME_OF_(isa)

extern const R(clew_reg_kernels) K(clew_reg_table);
extern const kernel_table K(clew_kernel_table);

const kernel_table K(clew_kernel_table) = {
    .isa = NAME_OF(ISA),
    .gemm_few = K(gemm_few),
#if VEC_BYTES >= 32
    .gemm_packed = K(gemm_packed),
#endif
    .norm = K(norm),
    .bias_act = K(bias_act),
    .bias_add = K(bias_add),
    .score = K(score),
    .softmax = K(softmax),
    .softmax_block = K(softmax_block),
    .score_linear = K(score_linear),
    .scale_rows = K(scale_rows),
    .rotary = K(rotary),
    .softcap = K(softcap),
    .log_sum = K(log_sum),
    .vexp = K(vexp),
    .vtanh = K(vtanh),
    .verf = K(verf),
    .adamw = K(adamw),
    .sum_squares = K(sum_squares),
    .add_scaled = K(add_scaled),
    .act_grad = K(act_grad),
    .softcap_grad = K(softcap_grad),
    .norm_grad = K(norm_grad),
    .softmax_grad = K(softmax_grad),
    .rotary_grad = K(rotary_grad),
    .cross_entropy = K(cross_entropy),
    .column_sums = K(column_sums),
    .adaptive = K(adaptive),
    .expected_variance = K(expected_variance),
    .reg = &K(clew_reg_table),
};
