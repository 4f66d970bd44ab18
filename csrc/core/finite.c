/* Where the first value is that is NaN or infinite. */
#include <math.h>
#include <string.h>

#include "clew.h"
#include "model.h"
#include "pool.h"

#define CHECK_BLOCK 1024    /* values that are copied, then checked while they are in the nearest cache */
#define COPY_UNIT (1 << 15) /* values of a task */
#define MOST_UNITS 64

/* Is every one of n values finite? One in the last place of an exponent whose bits are all 1 carries into the sign. */
static bool all_finite(const void *x, size_t n, clew_dtype dtype) {
  if (dtype == CLEW_FLOAT32) {
    const uint32_t one = (uint32_t)1 << 23, exponent = (uint32_t)255 << 23;
    uint32_t carry = 0;
    for (size_t i = 0; i < n; i++) {
      uint32_t bits;
      memcpy(&bits, (const float *)x + i, sizeof bits);
      carry |= (bits & exponent) + one;
    }
    return carry >> 31 == 0;
  }
  const uint64_t one = (uint64_t)1 << 52, exponent = (uint64_t)2047 << 52;
  uint64_t carry = 0;
  for (size_t i = 0; i < n; i++) {
    uint64_t bits;
    memcpy(&bits, (const double *)x + i, sizeof bits);
    carry |= (bits & exponent) + one;
  }
  return carry >> 63 == 0;
}

/* The first of n values, `step` apart, that is not finite, or n. */
static size_t first_bad(const void *x, size_t n, ptrdiff_t step, clew_dtype dtype) {
  size_t i = 0;
  while (step == 1 && i + CHECK_BLOCK <= n &&
         all_finite((const char *)x + i * clew_dtype_size(dtype), CHECK_BLOCK, dtype))
    i += CHECK_BLOCK;
  for (; i < n; i++) {
    const ptrdiff_t at = (ptrdiff_t)i * step;
    if (!(dtype == CLEW_FLOAT32 ? isfinite(((const float *)x)[at]) : isfinite(((const double *)x)[at])))
      break;
  }
  return i;
}

ptrdiff_t clew_tensor_check(const clew_tensor *t, clew_dtype dtype) {
  size_t shape[3] = {1, 1, 1};
  ptrdiff_t strides[3] = {0, 0, 0};
  for (int d = 0; d < t->n_dims; d++)
    shape[3 - t->n_dims + d] = t->shape[d], strides[3 - t->n_dims + d] = t->strides[d];
  for (int d = 1; d >= 0 && (shape[d] == 1 || strides[d] == strides[2] * (ptrdiff_t)shape[2]); d--)
    shape[2] *= shape[d], shape[d] = 1; /* axes that follow on each other become one */
  for (size_t i = 0; i < shape[0]; i++) {
    for (size_t j = 0; j < shape[1]; j++) {
      const ptrdiff_t at = (ptrdiff_t)i * strides[0] + (ptrdiff_t)j * strides[1];
      const char *row = (const char *)t->data + at * (ptrdiff_t)clew_dtype_size(dtype);
      const size_t bad = first_bad(row, shape[2], strides[2], dtype);
      if (bad < shape[2])
        return (ptrdiff_t)((i * shape[1] + j) * shape[2] + bad);
    }
  }
  return -1;
}

typedef struct copy_job {
  char *out;
  const char *in;
  size_t n, unit;
  clew_dtype dtype;
  size_t bad[MOST_UNITS]; /* the first bad value of each unit, or n */
} copy_job;

static void copy_task(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  copy_job *job = ctx;
  const size_t size = clew_dtype_size(job->dtype), first = index * job->unit;
  const size_t end = job->n - first < job->unit ? job->n : first + job->unit;
  job->bad[index] = job->n;
  for (size_t begin = first; begin < end && job->bad[index] == job->n; begin += CHECK_BLOCK) {
    const size_t here = end - begin < CHECK_BLOCK ? end - begin : CHECK_BLOCK;
    char *to = job->out + begin * size;
    memcpy(to, job->in + begin * size, here * size);
    const size_t bad = all_finite(to, here, job->dtype) ? here : first_bad(to, here, 1, job->dtype);
    if (bad < here)
      job->bad[index] = begin + bad;
  }
}

ptrdiff_t clew_copy_check(void *out, const void *values, size_t n, clew_dtype dtype) {
  copy_job job = {.out = out, .in = values, .n = n, .unit = (n + MOST_UNITS - 1) / MOST_UNITS, .dtype = dtype};
  if (job.unit < COPY_UNIT)
    job.unit = COPY_UNIT;
  const size_t units = (n + job.unit - 1) / job.unit;
  clew_pool_for(units, copy_task, &job, clew_pool_threads(), NULL);
  for (size_t i = 0; i < units; i++)
    if (job.bad[i] < n)
      return (ptrdiff_t)job.bad[i];
  return -1;
}
