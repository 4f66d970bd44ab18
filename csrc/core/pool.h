/* The thread pool: one for the process, made on first use, remade after fork.
 *
 * clew_pool_for runs task(ctx, 0) … task(ctx, n − 1) on the calling thread and the pool's workers. Work is cut by
 * shape, never by the number of threads, so results are the same bits for any number of them. */
#ifndef CLEW_POOL_H
#define CLEW_POOL_H

#include <stdbool.h>
#include <stddef.h>

/* slot: 0 for the calling thread, 1 … n_slots − 1 for workers; scratch memory is indexed by it. */
typedef void (*clew_task)(void *ctx, size_t index, unsigned slot);

/* Asked by the calling thread only, between tasks and while it waits, at most every 20 ms; non-zero cancels. */
typedef struct clew_cancel {
  int (*poll)(void *ctx); /* NULL: never cancelled */
  void *ctx;
  bool cancelled;      /* set once poll answered non-zero */
  long long last_poll; /* CLOCK_MONOTONIC ns; 0 at first */
} clew_cancel;

/* Number of threads that would take part now: CLEW_NUM_THREADS, the affinity mask and the cgroup's CPU quota, or
 * clew_pool_resize. Reading it does not start the pool. */
unsigned clew_pool_threads(void);
void clew_pool_resize(unsigned n_threads); /* 1 … 256, clamped; takes effect at the next clew_pool_for */

/* Runs n tasks on at most n_slots threads. Returns false when cancelled (tasks not begun are skipped, those under way
 * end). Several threads may call it at once; a task may not. cancel may be NULL. When a worker thread cannot be
 * started the work is done by those that can. */
bool clew_pool_for(size_t n, clew_task task, void *ctx, unsigned n_slots, clew_cancel *cancel);

/* Asks the poll callback if it is time. Returns true when cancelled. */
bool clew_cancel_check(clew_cancel *cancel);

#endif
