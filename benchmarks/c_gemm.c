/* Few rows times unpacked weights that lie in memory, not in cache: our kernel, BLIS, and plain reading.
 *
 *   cc -O3 -march=native ... benchmarks/c_gemm.c core objects libblis.a -lm -lpthread
 *   c_gemm [threads [chunk]]        chunk: columns per call, as the pool cuts them (0: all of a thread's share)
 *
 * Prints GB/s of weights and GF/s, the best of several passes over more than 300 MB of distinct weights,
 * by the processor time of the slowest thread. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "blas.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wconversion"
#pragma GCC diagnostic ignored "-Wsign-conversion"
#pragma GCC diagnostic ignored "-Wfloat-conversion"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wtype-limits"
#include "blis.h"
#pragma GCC diagnostic pop

#define WEIGHT_BYTES ((size_t)320 << 20)
#define PASSES 3

static float *weights;
static unsigned n_threads = 1;
static size_t chunk = 256;
static pthread_barrier_t barrier;

typedef enum way { READ, OURS, BLIS } way;

typedef struct job {
  way how;
  size_t m, n, k;
  bool columns; /* b is k-contiguous */
} job;

typedef struct worker {
  job j;
  unsigned index;
  float *a, *c;
  double best; /* seconds for one pass */
  float sink;
} worker;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t); /* other processes may want the cores too */
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef float lanes __attribute__((vector_size(64), aligned(4), may_alias));

static float read_all(const float *x, size_t n) {
  lanes sum = {0};
  for (size_t i = 0; i + 16 <= n; i += 16)
    sum += *(const lanes *)(x + i);
  float total = 0;
  for (size_t l = 0; l < 16; l++)
    total += sum[l];
  return total;
}

static void product(way how, float *c, size_t ld_c, const float *a, const float *b, ptrdiff_t rs_b, ptrdiff_t cs_b,
                    size_t m, size_t n, size_t k) {
  if (how == OURS) {
    clew_get_kernels_f32()->gemm_few(c, (ptrdiff_t)ld_c, a, (ptrdiff_t)k, b, rs_b, cs_b, m, n, k, 1, 0);
    return;
  }
  float one = 1, zero = 0;
  rntm_t serial;
  bli_rntm_init(&serial);
  bli_rntm_set_num_threads(1, &serial);
  bli_sgemm_ex(BLIS_NO_TRANSPOSE, BLIS_NO_TRANSPOSE, (dim_t)m, (dim_t)n, (dim_t)k, &one, (float *)a, (inc_t)k, 1,
               (float *)b, rs_b, cs_b, &zero, c, (inc_t)ld_c, 1, NULL, &serial);
}

static void *work(void *argument) {
  worker *w = argument;
  const job j = w->j;
  const size_t size = j.n * j.k, count = WEIGHT_BYTES / sizeof(float) / size;
  const size_t begin = j.n * w->index / n_threads / 16 * 16;
  const size_t end = w->index + 1 == n_threads ? j.n : j.n * (w->index + 1) / n_threads / 16 * 16;
  const size_t step = j.how == BLIS || chunk == 0 ? end - begin : chunk;
  const ptrdiff_t rs_b = j.columns ? 1 : (ptrdiff_t)j.n, cs_b = j.columns ? (ptrdiff_t)j.k : 1;
  w->best = 1e30;
  for (int pass = 0; pass < PASSES; pass++) {
    pthread_barrier_wait(&barrier);
    const double start = now();
    if (j.how == READ) {
      const size_t share = size * count / n_threads;
      w->sink += read_all(weights + share * w->index, share);
    } else {
      for (size_t i = 0; i < count; i++)
        for (size_t at = begin; at < end; at += step)
          product(j.how, w->c + at, j.n, w->a, weights + i * size + (ptrdiff_t)at * cs_b, rs_b, cs_b, j.m,
                  at + step < end ? step : end - at, j.k);
    }
    const double seconds = now() - start;
    pthread_barrier_wait(&barrier);
    w->best = seconds < w->best ? seconds : w->best;
  }
  return NULL;
}

/* Seconds for one pass over all copies of the matrix. */
static double run(job j, float *a, float *c) {
  pthread_t threads[16];
  worker workers[16];
  for (unsigned t = 0; t < n_threads; t++) {
    workers[t] = (worker){j, t, a, c, 0, 0};
    if (t > 0)
      pthread_create(&threads[t], NULL, work, &workers[t]);
  }
  work(&workers[0]);
  double seconds = workers[0].best;
  for (unsigned t = 1; t < n_threads; t++) {
    pthread_join(threads[t], NULL);
    seconds = workers[t].best > seconds ? workers[t].best : seconds;
  }
  return seconds;
}

int main(int argc, char **argv) {
  static const struct shape {
    size_t n, k;
    bool columns;
  } shapes[] = {{768, 768, false}, {2304, 768, false}, {3072, 768, false}, {768, 3072, false},
                {768, 768, true},  {3072, 768, true},  {768, 3072, true},  {50257, 768, true}};
  static const size_t rows[] = {1, 2, 4, 8, 16, 32};
  if (argc > 1)
    n_threads = (unsigned)atoi(argv[1]);
  if (argc > 2)
    chunk = (size_t)atol(argv[2]);
  const bool with_blis = argc <= 3 || strcmp(argv[3], "ours") != 0;
  if (n_threads < 1 || n_threads > 16)
    return 1;
  weights = mmap(NULL, WEIGHT_BYTES + CLEW_SLACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (weights == MAP_FAILED)
    return 1;
  madvise(weights, WEIGHT_BYTES + CLEW_SLACK, MADV_NOHUGEPAGE); /* as a mapped file */
  for (size_t i = 0; i < WEIGHT_BYTES / sizeof(float); i++)
    weights[i] = (float)(i % 1021) * 1e-3F - 0.5F;
  float *a = aligned_alloc(64, 32 * 3072 * sizeof(float) + CLEW_SLACK);
  float *c = aligned_alloc(64, 32 * 50304 * sizeof(float) + CLEW_SLACK);
  if (!a || !c)
    return 1;
  for (size_t i = 0; i < 32 * 3072; i++)
    a[i] = (float)(i % 509) * 1e-3F - 0.25F;
  memset(c, 0, 32 * 50304 * sizeof(float));
  pthread_barrier_init(&barrier, NULL, n_threads);
  printf("%u thread(s), chunks of %zu columns, kernels %s, BLIS %s\n", n_threads, chunk, clew_get_kernels_f32()->isa,
         clew_blas_kernel());
  printf("%28s %9s %9s %9s %9s %9s %9s\n", "m x n x k", "read GB/s", "GB/s", "of read", "GF/s", "BLIS GF/s", "ratio");
  for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
      job j = {READ, rows[r], shapes[s].n, shapes[s].k, shapes[s].columns};
      const double count = (double)(WEIGHT_BYTES / sizeof(float) / (j.n * j.k));
      const double bytes = count * (double)(j.n * j.k) * sizeof(float), flops = bytes / 2 * (double)j.m;
      const double reading = run(j, a, c);
      j.how = OURS;
      const double ours = run(j, a, c);
      j.how = BLIS;
      const double theirs = with_blis ? run(j, a, c) : 0;
      printf("%6zu x %5zu x %4zu %s %9.1f %9.1f %8.0f%% %9.1f %9.1f %9.2f\n", j.m, j.n, j.k,
             j.columns ? "k-contig" : "n-contig", bytes / reading * 1e-9, bytes / ours * 1e-9, 100 * reading / ours,
             flops / ours * 1e-9, with_blis ? flops / theirs * 1e-9 : 0, theirs / ours);
      fflush(stdout);
    }
  return 0;
}
