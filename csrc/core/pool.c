/* The thread pool.
 *
 * A call of clew_pool_for is a job on its caller's stack, in a list of jobs. Threads take task numbers from the job's
 * counter until none are left. A worker joins a job under the mutex and only while tasks are left; it leaves under the
 * mutex too, and does not touch the job afterwards. So a caller that sees no task left and nobody in its job, under the
 * mutex, may take it out of the list and return.
 *
 * fork: a child has only the thread that forked. Before a fork no thread may begin a task, and the fork waits until
 * those under way have ended: no lock of BLIS or of ours is held then. The child forgets the workers; a job of the
 * forking thread itself (its poll callback may fork) goes on in the child, with that thread alone. */
#include "pool.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "machine.h"
#include "memory.h"

#define MAX_THREADS 256
#define SPIN_NS 50000LL    /* looking for work before sleeping */
#define POLL_NS 20000000LL /* between two calls of a poll callback */
#define WORKER_STACK ((size_t)2 << 20)

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ volatile("yield")
#else
#define RELAX() ((void)0)
#endif

typedef struct job {
  atomic_size_t next; /* first task that nobody has taken */
  size_t n;
  clew_task task;
  void *ctx;
  unsigned n_slots;
  atomic_uint helpers; /* workers in this job; changes under the mutex */
  pthread_t owner;
  struct job *link;
} job;

typedef struct worker {
  unsigned slot;
  bool asleep;
  pthread_cond_t wake;
} worker;

static pthread_once_t once = PTHREAD_ONCE_INIT;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* Under the mutex. */
static job *jobs;
static worker workers[MAX_THREADS]; /* [0] is nobody: slot 0 is a caller's */
static unsigned n_workers;          /* running: slots 1 … n_workers */
static unsigned waiting;            /* callers that sleep on `left` */
static pthread_cond_t left;         /* a job's last worker has left it */
static pthread_cond_t quiet;        /* no thread is inside a task */
static pthread_cond_t resumed;      /* the fork is over */
static bool chosen;                 /* n_threads was set by clew_pool_resize */

static atomic_uint n_threads; /* with the caller; 0: not looked up yet */
static atomic_uint n_posted;  /* jobs posted and sizes set: what idle workers watch */
static atomic_uint n_inside;  /* threads inside a task */
static atomic_uint n_forks;   /* forks under way: no task may begin */

/* ---- Time --------------------------------------------------------------------------------------------------- */

static long long now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (long long)t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void cond_init(pthread_cond_t *cond) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
#ifndef __APPLE__
  pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
  pthread_cond_init(cond, &attributes);
  pthread_condattr_destroy(&attributes);
}

static void cond_wait_ns(pthread_cond_t *cond, long long ns) {
#ifdef __APPLE__
  struct timespec t = {.tv_sec = ns / 1000000000LL, .tv_nsec = ns % 1000000000LL};
  pthread_cond_timedwait_relative_np(cond, &mutex, &t);
#else
  long long until = now_ns() + ns;
  struct timespec t = {.tv_sec = until / 1000000000LL, .tv_nsec = until % 1000000000LL};
  pthread_cond_timedwait(cond, &mutex, &t);
#endif
}

/* ---- Cancelling --------------------------------------------------------------------------------------------- */

bool clew_cancel_check(clew_cancel *cancel) {
  if (!cancel || !cancel->poll || cancel->cancelled)
    return cancel && cancel->cancelled;
  long long now = now_ns();
  if (cancel->last_poll == 0)
    cancel->last_poll = now; /* short work never asks: an answer may have to wait for the GIL */
  if (now - cancel->last_poll < POLL_NS)
    return false;
  cancel->cancelled = cancel->poll(cancel->ctx) != 0;
  cancel->last_poll = now_ns();
  return cancel->cancelled;
}

/* ---- Fork --------------------------------------------------------------------------------------------------- */

static void before_fork(void) {
  pthread_mutex_lock(&mutex);
  atomic_fetch_add(&n_forks, 1);
  while (atomic_load(&n_inside) > 0)
    pthread_cond_wait(&quiet, &mutex);
}

static void after_fork_parent(void) {
  atomic_fetch_sub(&n_forks, 1);
  pthread_cond_broadcast(&resumed);
  pthread_mutex_unlock(&mutex);
}

static void after_fork_child(void) {
  job *own = NULL;
  for (job *j = jobs, *next; j; j = next) {
    next = j->link;
    if (pthread_equal(j->owner, pthread_self())) {
      atomic_store(&j->helpers, 0);
      j->link = own;
      own = j;
    }
  }
  jobs = own;
  n_workers = waiting = 0;
  atomic_store(&n_inside, 0); /* a thread that was about to be turned away may have been counted */
  atomic_store(&n_forks, 0);
  if (!chosen)
    atomic_store(&n_threads, 0); /* the child may be given other processors */
  pthread_mutex_init(&mutex, NULL);
  cond_init(&left);
  cond_init(&quiet);
  cond_init(&resumed);
}

static void start(void) {
  /* Handlers run before a fork in reverse order of registration, and a task may need the memory's lock to end:
   * memory must have registered its own first. */
  (void)clew_slab_idle();
  cond_init(&left);
  cond_init(&quiet);
  cond_init(&resumed);
  pthread_atfork(before_fork, after_fork_parent, after_fork_child);
}

/* ---- Tasks -------------------------------------------------------------------------------------------------- */

static void leave_task(void) {
  if (atomic_fetch_sub(&n_inside, 1) == 1 && atomic_load(&n_forks) > 0) {
    pthread_mutex_lock(&mutex);
    pthread_cond_broadcast(&quiet);
    pthread_mutex_unlock(&mutex);
  }
}

static void enter_task(void) {
  for (;;) {
    atomic_fetch_add(&n_inside, 1);
    if (atomic_load(&n_forks) == 0)
      return;
    leave_task();
    pthread_mutex_lock(&mutex);
    while (atomic_load(&n_forks) > 0)
      pthread_cond_wait(&resumed, &mutex);
    pthread_mutex_unlock(&mutex);
  }
}

/* Takes tasks until none are left, or until cancelled: then nobody takes another one. */
static void work(job *j, unsigned slot, clew_cancel *cancel) {
  while (!clew_cancel_check(cancel)) {
    enter_task();
    /* Taken inside: a task that was taken is a task that will be done, also in a child. */
    size_t index = atomic_fetch_add_explicit(&j->next, 1, memory_order_relaxed);
    if (index < j->n)
      j->task(j->ctx, index, slot);
    leave_task();
    if (index >= j->n)
      return;
  }
  atomic_store(&j->next, j->n);
}

/* ---- Workers ------------------------------------------------------------------------------------------------ */

/* The job with the fewest workers among those that a worker could help with. Under the mutex. */
static job *find_job(unsigned slot) {
  job *best = NULL;
  for (job *j = jobs; j; j = j->link)
    if (slot < j->n_slots && atomic_load(&j->next) < j->n &&
        (!best || atomic_load(&j->helpers) < atomic_load(&best->helpers)))
      best = j;
  return best;
}

static void *run_worker(void *argument) {
  worker *self = argument;
  pthread_mutex_lock(&mutex);
  for (;;) {
    /* One too many: the last one goes first, so that slots stay 1 … n_workers. */
    if (self->slot == n_workers && self->slot >= clew_pool_threads())
      break;
    unsigned seen = atomic_load(&n_posted);
    job *j = self->slot < clew_pool_threads() ? find_job(self->slot) : NULL;
    if (j) {
      atomic_fetch_add(&j->helpers, 1);
      pthread_mutex_unlock(&mutex);
      work(j, self->slot, NULL);
      pthread_mutex_lock(&mutex);
      if (atomic_fetch_sub(&j->helpers, 1) == 1 && waiting > 0)
        pthread_cond_broadcast(&left);
      continue;
    }
    pthread_mutex_unlock(&mutex);
    long long until = now_ns() + SPIN_NS;
    while (atomic_load(&n_posted) == seen && now_ns() < until)
      for (int i = 0; i < 32 && atomic_load(&n_posted) == seen; i++)
        RELAX();
    pthread_mutex_lock(&mutex);
    if (atomic_load(&n_posted) != seen)
      continue;
    self->asleep = true;
    while (self->asleep)
      pthread_cond_wait(&self->wake, &mutex);
  }
  n_workers--;
  if (n_workers > 0 && workers[n_workers].asleep) {
    workers[n_workers].asleep = false; /* may be one too many as well, and is the last one now */
    pthread_cond_signal(&workers[n_workers].wake);
  }
  pthread_mutex_unlock(&mutex);
  return NULL;
}

/* Wakes up to `count` sleeping workers of slots below n_slots. Under the mutex. */
static void wake(unsigned count, unsigned n_slots) {
  for (unsigned slot = 1; count > 0 && slot < n_slots && slot <= n_workers; slot++)
    if (workers[slot].asleep) {
      workers[slot].asleep = false;
      pthread_cond_signal(&workers[slot].wake);
      count--;
    }
}

/* Starts workers until `last` run, or as many as the system gives. Under the mutex. */
static void start_workers(unsigned last) {
  if (n_workers >= last)
    return;
  sigset_t all, before;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0)
    return;
  pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
  pthread_attr_setstacksize(&attributes, WORKER_STACK);
  /* Workers inherit the mask: signals are for the program's own threads, but for those that a thread's own fault
   * raises, which a handler may want to report. */
  sigfillset(&all);
  sigdelset(&all, SIGSEGV);
  sigdelset(&all, SIGBUS);
  sigdelset(&all, SIGFPE);
  sigdelset(&all, SIGILL);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  while (n_workers < last) {
    worker *next = &workers[n_workers + 1];
    pthread_t thread;
    next->slot = n_workers + 1;
    next->asleep = false;
    cond_init(&next->wake);
    if (pthread_create(&thread, &attributes, run_worker, next) != 0)
      break;
    n_workers++;
  }
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
}

/* ---- Size --------------------------------------------------------------------------------------------------- */

static unsigned default_threads(void) {
  const char *text = getenv("CLEW_NUM_THREADS");
  if (text && *text) {
    char *end;
    errno = 0;
    long n = strtol(text, &end, 10);
    if (errno == 0 && *end == '\0' && n >= 1)
      return n > MAX_THREADS ? MAX_THREADS : (unsigned)n;
  }
  unsigned n = clew_machine_cpus("");
  return n > MAX_THREADS ? MAX_THREADS : n;
}

unsigned clew_pool_threads(void) {
  pthread_once(&once, start); /* a child of a fork looks again */
  unsigned n = atomic_load(&n_threads);
  if (n == 0) {
    unsigned unset = 0;
    n = default_threads();
    if (!atomic_compare_exchange_strong(&n_threads, &unset, n))
      n = unset; /* somebody else was first */
  }
  return n;
}

void clew_pool_resize(unsigned n) {
  pthread_once(&once, start);
  pthread_mutex_lock(&mutex);
  chosen = true;
  atomic_store(&n_threads, n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : n);
  atomic_fetch_add(&n_posted, 1);
  wake(n_workers, MAX_THREADS); /* those that are too many go */
  pthread_mutex_unlock(&mutex);
}

/* ---- Calls -------------------------------------------------------------------------------------------------- */

/* Waits until every worker has left a job without tasks, and takes it out of the list. It stays in the list so long
 * because the poll callback may fork: the child must find it. */
static void close_job(job *j, clew_cancel *cancel) {
  long long until = now_ns() + SPIN_NS;
  while (atomic_load(&j->helpers) > 0 && now_ns() < until)
    RELAX();
  pthread_mutex_lock(&mutex);
  while (atomic_load(&j->helpers) > 0) {
    waiting++;
    cond_wait_ns(&left, POLL_NS);
    waiting--;
    if (atomic_load(&j->helpers) > 0) {
      pthread_mutex_unlock(&mutex);
      clew_cancel_check(cancel);
      pthread_mutex_lock(&mutex);
    }
  }
  job **p = &jobs;
  while (*p != j)
    p = &(*p)->link;
  *p = j->link;
  pthread_mutex_unlock(&mutex);
}

bool clew_pool_for(size_t n, clew_task task, void *ctx, unsigned n_slots, clew_cancel *cancel) {
  pthread_once(&once, start);
  if (clew_cancel_check(cancel))
    return false; /* before a worker could begin */
  unsigned threads_now = clew_pool_threads(), threads = threads_now;
  if (threads > n_slots)
    threads = n_slots;
  if (threads > n)
    threads = (unsigned)n;

  job j = {.n = n, .task = task, .ctx = ctx, .n_slots = n_slots, .owner = pthread_self()};
  atomic_init(&j.next, 0);
  atomic_init(&j.helpers, 0);
  if (threads <= 1) {
    work(&j, 0, cancel);
    return !(cancel && cancel->cancelled);
  }

  pthread_mutex_lock(&mutex);
  start_workers(threads_now - 1);
  j.link = jobs;
  jobs = &j;
  atomic_fetch_add(&n_posted, 1);
  wake(threads - 1, threads_now < n_slots ? threads_now : n_slots);
  pthread_mutex_unlock(&mutex);

  work(&j, 0, cancel);
  close_job(&j, cancel);
  return !(cancel && cancel->cancelled);
}
