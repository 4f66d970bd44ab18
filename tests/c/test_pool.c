/* The thread pool: every task once, several callers, sizes, cancelling, fork. */
#ifdef __linux__
#include <sched.h>
#endif
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>

#include "pool.h"
#include "test.h"

#define MAX_TASKS 5000

static double seconds(clockid_t clock) {
  struct timespec t;
  clock_gettime(clock, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- Every task once ---------------------------------------------------------------------------------------- */

typedef struct count_job {
  atomic_uchar *done;     /* [n] */
  atomic_uchar busy[256]; /* [slot] */
  unsigned n_slots;
  pthread_t caller;
  atomic_ulong wrong;
} count_job;

static atomic_uint n_in_tasks;

static void count_task(void *ctx, size_t index, unsigned slot) {
  count_job *j = ctx;
  n_in_tasks++;
  if (slot >= j->n_slots || (slot == 0) != pthread_equal(j->caller, pthread_self()) || j->busy[slot]++ > 0)
    j->wrong++;
  j->done[index]++;
  for (volatile int i = 0; i < 100; i++)
    ;
  j->busy[slot]--;
  n_in_tasks--;
}

static bool count_run(size_t n, unsigned n_slots) {
  count_job *j = calloc(1, sizeof *j);
  j->done = calloc(n + 1, sizeof *j->done);
  j->n_slots = n_slots < 1 ? 1 : n_slots;
  j->caller = pthread_self();
  bool right = clew_pool_for(n, count_task, j, n_slots, NULL);
  for (size_t i = 0; i < n; i++)
    right = right && j->done[i] == 1;
  right = right && j->wrong == 0;
  free(j->done);
  free(j);
  return right;
}

static void test_once(void) {
  const size_t sizes[] = {0, 1, 2, 3, 7, 64, 1000, MAX_TASKS};
  for (unsigned threads = 1; threads <= 8; threads++) {
    clew_pool_resize(threads);
    CHECK(clew_pool_threads() == threads);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
      for (unsigned n_slots = 0; n_slots <= 9; n_slots += 3)
        CHECK(count_run(sizes[i], n_slots), "%zu tasks, %u slots, %u threads", sizes[i], n_slots, threads);
  }
}

static void *caller(void *argument) {
  (void)argument;
  for (size_t i = 0; i < 300; i++)
    CHECK(count_run(i * 7 % 100, 4), "%zu", i);
  return NULL;
}

static void test_callers(void) {
  pthread_t threads[4];
  clew_pool_resize(4);
  for (size_t i = 0; i < 4; i++)
    CHECK(pthread_create(&threads[i], NULL, caller, NULL) == 0);
  for (unsigned i = 0; i < 100; i++) { /* sizes change under their feet */
    clew_pool_resize(1 + i % 6);
    usleep(1000);
  }
  for (size_t i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
}

/* ---- Size --------------------------------------------------------------------------------------------------- */

typedef struct meeting {
  atomic_uint here, most;
  unsigned wanted;
} meeting;

/* Stays until `wanted` tasks are under way at once, or for a while. */
static void meet(void *ctx, size_t index, unsigned slot) {
  meeting *m = ctx;
  (void)index, (void)slot;
  unsigned now = ++m->here, most = m->most;
  while (now > most && !atomic_compare_exchange_weak(&m->most, &most, now))
    ;
  double until = seconds(CLOCK_MONOTONIC) + (m->wanted ? 10 : 0.02);
  while ((m->wanted == 0 || m->most < m->wanted) && seconds(CLOCK_MONOTONIC) < until)
    usleep(100);
  m->here--;
}

static unsigned most_at_once(size_t n, unsigned n_slots, unsigned wanted) {
  meeting m = {.wanted = wanted};
  clew_pool_for(n, meet, &m, n_slots, NULL);
  return m.most;
}

static void test_size(void) {
  const unsigned sizes[] = {2, 5, 3, 1, 4};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    clew_pool_resize(sizes[i]);
    CHECK(most_at_once(sizes[i], 256, sizes[i]) == sizes[i], "%u threads do take part", sizes[i]);
    CHECK(most_at_once(2 * sizes[i], 256, 0) <= sizes[i], "no more than %u", sizes[i]);
  }
  clew_pool_resize(4);
  CHECK(most_at_once(8, 2, 2) == 2);
  CHECK(most_at_once(8, 2, 0) <= 2, "two slots");
  usleep(20000);
  CHECK(most_at_once(4, 256, 4) == 4, "sleeping workers wake up");
  clew_pool_resize(0);
  CHECK(clew_pool_threads() == 1);
  clew_pool_resize(1000);
  CHECK(clew_pool_threads() == 256);
  CHECK(count_run(MAX_TASKS, 256));
  clew_pool_resize(3);
  CHECK(count_run(MAX_TASKS, 256));
}

static void in_environment(void *ctx) {
  const char *const *pair = ctx; /* value, expected or NULL: the default */
  unsetenv("CLEW_NUM_THREADS");
  setenv("CLEW_NUM_THREADS", pair[0], 1);
  unsigned n = clew_pool_threads();
  if (pair[1])
    CHECK(n == (unsigned)atoi(pair[1]), "CLEW_NUM_THREADS=%s gives %u", pair[0], n);
#ifdef __linux__
  else {
    cpu_set_t set;
    CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
    CHECK(n >= 1 && n <= (unsigned)CPU_COUNT(&set), "CLEW_NUM_THREADS=%s gives %u", pair[0], n);
  }
#endif
}

static void on_one_cpu(void *ctx) {
  (void)ctx;
  unsetenv("CLEW_NUM_THREADS");
#ifdef __linux__
  cpu_set_t set, one;
  CHECK(sched_getaffinity(0, sizeof set, &set) == 0);
  CPU_ZERO(&one);
  for (size_t i = 0; i < CPU_SETSIZE; i++)
    if (CPU_ISSET(i, &set)) {
      CPU_SET(i, &one);
      break;
    }
  CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
#endif
  CHECK(clew_pool_threads() >= 1);
#ifdef __linux__
  CHECK(clew_pool_threads() == 1);
#endif
}

/* Before anything sets a size: each child looks for itself. */
static void test_environment(void) {
  const char *const pairs[][2] = {{"3", "3"},   {"1", "1"},     {"100000", "256"},
                                  {"0", NULL},  {"-2", NULL},   {"", NULL},
                                  {"2x", NULL}, {"many", NULL}, {"99999999999999999999", NULL}};
  CHECK(clew_pool_threads() >= 1); /* the parent's own look must not count for the children */
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    check_in_child(in_environment, (void *)(size_t)pairs[i], pairs[i][0]);
  check_in_child(on_one_cpu, NULL, "affinity mask of one");
  clew_pool_resize(7);
  const char *const kept[2] = {"3", "7"};
  check_in_child(in_environment, (void *)(size_t)kept, "a size that was set holds in children");
}

static void without_threads(void *ctx) {
  (void)ctx;
  struct rlimit limit = {.rlim_cur = 1, .rlim_max = 1};
  CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
  clew_pool_resize(8);
  atomic_uchar done[100] = {0};
  static count_job j; /* no memory can be had */
  j.done = done;
  j.n_slots = 8;
  j.caller = pthread_self();
  CHECK(clew_pool_for(100, count_task, &j, 8, NULL) && j.wrong == 0);
  for (size_t i = 0; i < 100; i++)
    CHECK(done[i] == 1);
}

static void idle_is_quiet(void) {
  clew_pool_resize(4);
  CHECK(count_run(100, 4));
  /* On a busy machine a worker may come to its spinning late; one that never sleeps leaves no window quiet. */
  double least = 1;
  for (int window = 0; window < 20 && least > 0.01; window++) {
    const double before = seconds(CLOCK_PROCESS_CPUTIME_ID);
    usleep(100000);
    const double used = seconds(CLOCK_PROCESS_CPUTIME_ID) - before;
    least = used < least ? used : least;
  }
  CHECK(least <= 0.01, "workers without work sleep: %.3f s of 0.1 s", least);
}

static void signal_task(void *ctx, size_t index, unsigned slot) {
  (void)index;
  sigset_t set;
  pthread_sigmask(SIG_SETMASK, NULL, &set);
  atomic_uint *wrong = ctx;
  bool worker = slot > 0;
  *wrong += (sigismember(&set, SIGINT) == 1) != worker || (sigismember(&set, SIGTERM) == 1) != worker ||
            sigismember(&set, SIGSEGV) == 1;
  usleep(500);
}

static void test_signals(void) {
  atomic_uint wrong = 0;
  clew_pool_resize(3);
  CHECK(clew_pool_for(100, signal_task, &wrong, 3, NULL) && wrong == 0, "%u", (unsigned)wrong);
}

/* ---- Cancelling --------------------------------------------------------------------------------------------- */

typedef struct polls {
  unsigned n, answer_at;
  double last, shortest;
  pthread_t caller;
  bool elsewhere;
} polls;

static int poll_count(void *ctx) {
  polls *p = ctx;
  double now = seconds(CLOCK_MONOTONIC);
  if (p->n++ > 0 && now - p->last < p->shortest)
    p->shortest = now - p->last;
  p->last = now;
  p->elsewhere = p->elsewhere || !pthread_equal(p->caller, pthread_self());
  return p->n >= p->answer_at;
}

static void slow_task(void *ctx, size_t index, unsigned slot) {
  (void)index, (void)slot;
  ++*(atomic_uint *)ctx;
  usleep(3000);
}

static void test_cancel(void) {
  for (unsigned threads = 1; threads <= 3; threads++) {
    clew_pool_resize(threads);
    polls p = {.answer_at = 3, .shortest = 10, .caller = pthread_self()};
    clew_cancel cancel = {.poll = poll_count, .ctx = &p};
    atomic_uint begun = 0;
    double start = seconds(CLOCK_MONOTONIC);
    CHECK(!clew_pool_for(100000, slow_task, &begun, threads, &cancel));
    CHECK(cancel.cancelled && p.n == 3 && !p.elsewhere, "%u polls", p.n);
    CHECK(p.shortest > 0.0199, "polled again after %g s", p.shortest);
    CHECK(begun > 0 && begun < 3000 && seconds(CLOCK_MONOTONIC) - start < 5, "%u tasks begun", (unsigned)begun);
    begun = 0;
    CHECK(!clew_pool_for(10, slow_task, &begun, threads, &cancel) && begun == 0, "it stays cancelled");
    CHECK(clew_cancel_check(&cancel) && p.n == 3, "and is not asked again");
    CHECK(count_run(1000, threads), "the pool is usable");
  }
  clew_cancel never = {.poll = NULL};
  CHECK(!clew_cancel_check(NULL) && !clew_cancel_check(&never));
  atomic_uint begun = 0;
  CHECK(clew_pool_for(5, slow_task, &begun, 2, &never) && begun == 5);
}

/* The worker's task is long, the caller's ends at once. */
static void long_elsewhere(void *ctx, size_t index, unsigned slot) {
  atomic_uint *begun = ctx;
  (void)index;
  ++*begun;
  if (slot > 0)
    usleep(250000);
  else
    for (double until = seconds(CLOCK_MONOTONIC) + 10; *begun < 2 && seconds(CLOCK_MONOTONIC) < until;)
      usleep(100);
}

static void test_poll_while_waiting(void) {
  clew_pool_resize(2);
  polls p = {.answer_at = 1000, .shortest = 10, .caller = pthread_self()};
  clew_cancel cancel = {.poll = poll_count, .ctx = &p};
  atomic_uint begun = 0;
  CHECK(clew_pool_for(2, long_elsewhere, &begun, 2, &cancel) && begun == 2);
  CHECK(p.n >= 4 && !p.elsewhere, "%u polls in a quarter of a second", p.n);
}

/* ---- Fork --------------------------------------------------------------------------------------------------- */

static atomic_bool stop;

static void *keep_busy(void *argument) {
  (void)argument;
  while (!stop)
    CHECK(count_run(50, 3));
  return NULL;
}

static void in_child(void *ctx) {
  (void)ctx;
  CHECK(n_in_tasks == 0, "the fork came in the middle of a task: a lock may be held for ever");
  CHECK(count_run(1000, 3));
  CHECK(most_at_once(3, 3, 3) == 3, "the child has workers of its own");
  clew_pool_resize(2);
  CHECK(count_run(1000, 3));
}

static void grandchild(void *ctx) {
  check_in_child(in_child, ctx, "fork in a child");
  CHECK(count_run(10, 3));
}

static void test_fork(void) {
  pthread_t threads[2];
  clew_pool_resize(3);
  for (size_t i = 0; i < 2; i++)
    CHECK(pthread_create(&threads[i], NULL, keep_busy, NULL) == 0);
  for (size_t i = 0; i < 20; i++) {
    check_in_child(in_child, NULL, "fork while threads work");
    CHECK(count_run(100, 3));
  }
  check_in_child(grandchild, NULL, "child of a child");
  stop = true;
  for (size_t i = 0; i < 2; i++)
    pthread_join(threads[i], NULL);
}

typedef struct forking {
  pid_t child; /* −1: not yet */
  unsigned polls, at;
} forking;

static int poll_fork(void *ctx) {
  forking *f = ctx;
  if (++f->polls == f->at) {
    f->child = fork();
    if (f->child == 0)
      alarm(60);
  }
  return 0;
}

static void slow_count(void *ctx, size_t index, unsigned slot) {
  count_task(ctx, index, slot);
  usleep(slot ? 60000 : 1000);
}

/* A poll callback runs the interpreter's signal handlers, which may fork: the job goes on in both processes. */
static void test_fork_in_poll(void) {
  for (size_t n = 3; n <= 303; n += 100) { /* few: polled while waiting for workers */
    clew_pool_resize(3);
    atomic_uchar *done = calloc(n, sizeof *done);
    count_job j = {.done = done, .n_slots = 3, .caller = pthread_self()};
    forking f = {.child = -1, .at = 1};
    clew_cancel cancel = {.poll = poll_fork, .ctx = &f};
    fflush(NULL);
    bool right = clew_pool_for(n, slow_count, &j, 3, &cancel);
    for (size_t i = 0; i < n; i++)
      right = right && done[i] == 1;
    if (f.child == 0)
      _exit(!(right && count_run(100, 3)));
    CHECK(right && f.child > 0, "%zu tasks, %u polls", n, f.polls);
    int status = -1;
    waitpid(f.child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0, "%zu tasks: the child's wait status is %d", n, status);
    free(done);
  }
}

int main(void) {
  test_environment();
  test_once();
  test_callers();
  test_size();
  test_signals();
  idle_is_quiet();
  test_cancel();
  test_poll_while_waiting();
  test_fork();
  test_fork_in_poll();
  if (!SANITIZED)
    check_in_child(without_threads, NULL, "no worker can be started");
  return finish("test_pool");
}
