/* Chooses the kernel table for this machine, once. CLEW_ISA_V3 and CLEW_ISA_V4 say which variants are linked in. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "kernels.h"

extern const clew_kernels_f32 clew_kernel_table_f32_base;
extern const clew_kernels_f64 clew_kernel_table_f64_base;
#ifdef CLEW_ISA_V3
extern const clew_kernels_f32 clew_kernel_table_f32_v3;
extern const clew_kernels_f64 clew_kernel_table_f64_v3;
#endif
#ifdef CLEW_ISA_V4
extern const clew_kernels_f32 clew_kernel_table_f32_v4;
extern const clew_kernels_f64 clew_kernel_table_f64_v4;
#endif

static pthread_once_t chosen = PTHREAD_ONCE_INIT;
static const clew_kernels_f32 *table_f32;
static const clew_kernels_f64 *table_f64;

#if defined(CLEW_ISA_V3) || defined(CLEW_ISA_V4)
static int has_v3(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
#endif

#ifdef CLEW_ISA_V4
static int has_v4(void) {
  return has_v3() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

static void choose(void) {
  const char *asked = getenv("CLEW_ISA");
  int limit = 4;
  if (asked && strcmp(asked, "base") == 0)
    limit = 1;
  else if (asked && strcmp(asked, "v3") == 0)
    limit = 3;
  (void)limit;
  table_f32 = &clew_kernel_table_f32_base;
  table_f64 = &clew_kernel_table_f64_base;
#if defined(CLEW_ISA_V3) || defined(CLEW_ISA_V4)
  __builtin_cpu_init();
#endif
#ifdef CLEW_ISA_V3
  if (limit >= 3 && has_v3()) {
    table_f32 = &clew_kernel_table_f32_v3;
    table_f64 = &clew_kernel_table_f64_v3;
  }
#endif
#ifdef CLEW_ISA_V4
  if (limit >= 4 && has_v4()) {
    table_f32 = &clew_kernel_table_f32_v4;
    table_f64 = &clew_kernel_table_f64_v4;
  }
#endif
}

const clew_kernels_f32 *clew_get_kernels_f32(void) {
  pthread_once(&chosen, choose);
  return table_f32;
}

const clew_kernels_f64 *clew_get_kernels_f64(void) {
  pthread_once(&chosen, choose);
  return table_f64;
}
