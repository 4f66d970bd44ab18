/* The harness of the C tests.
 *
 *   static void test_name(void) { CHECK(1 + 1 == 2, "%d", 1 + 1); }
 *   int main(void) { test_name(); return finish("test_file"); }
 *
 * A program ends with the line "test_file: N passed, N failed", which run.py adds up. */
#ifndef CLEW_TEST_H
#define CLEW_TEST_H

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "clew.h"

#if defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#elif defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

static atomic_ulong n_passed, n_failed;

/* CHECK(condition) or CHECK(condition, "what is %d", value); callable from any thread. */
#define CHECK(condition, ...)                                                                                          \
  do {                                                                                                                 \
    if (condition) {                                                                                                   \
      n_passed++;                                                                                                      \
    } else if (n_failed++ < 20) {                                                                                      \
      fprintf(stderr, "%s:%d: %s is false", __FILE__, __LINE__, #condition);                                           \
      fprintf(stderr, " " __VA_ARGS__);                                                                                \
      fprintf(stderr, "\n");                                                                                           \
    }                                                                                                                  \
  } while (0)

static inline int finish(const char *name) {
  printf("%s: %lu passed, %lu failed\n", name, (unsigned long)n_passed, (unsigned long)n_failed);
  return n_failed > 0 || n_passed == 0;
}

/* Runs work(ctx) in a forked child; its checks count here as one. A child that hangs is killed. */
static inline void check_in_child(void (*work)(void *ctx), void *ctx, const char *what) {
  fflush(NULL);
  pid_t child = fork();
  if (child == 0) {
    alarm(60);
    n_passed = n_failed = 0;
    work(ctx);
    fflush(NULL);
    _exit(n_failed > 0 || n_passed == 0);
  }
  int status = -1;
  waitpid(child, &status, 0);
  CHECK(child > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0, "%s: wait status %d", what, status);
}

/* Makes allocation 1, 2, ... of an operation fail until it needs no more of them, and returns how many it made. Each
 * failure must come out as CLEW_ERROR_MEMORY with a message; leaks are found by the sanitizer. The operation frees
 * what it made when it succeeds. */
static inline size_t sweep_memory(clew_status (*operation)(void *ctx, clew_error *err), void *ctx) {
  for (size_t n = 1;; n++) {
    clew_error err = {.status = CLEW_OK};
    clew_memory_fail_at(n);
    clew_status status = operation(ctx, &err);
    size_t count = clew_memory_count();
    clew_memory_fail_at(0);
    if (count < n) {
      CHECK(status == CLEW_OK, "without a failure: status %d, %s", (int)status, err.message);
      return n - 1;
    }
    CHECK(status == CLEW_ERROR_MEMORY && err.status == status && err.message[0],
          "allocation %zu failed: status %d, \"%s\"", n, (int)status, err.message);
    if (status != CLEW_OK && status != CLEW_ERROR_MEMORY)
      return n;
  }
}

#endif
