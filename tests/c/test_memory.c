/* Allocation, slabs, the cache of idle slabs, mapped files. */
#include <errno.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/stat.h>

#include "machine.h"
#include "test.h"

#define MIB ((size_t)1 << 20)

#if defined(__clang__) || defined(__SANITIZE_ADDRESS__)
#define READS_SLACK __attribute__((no_sanitize("address"), noinline))
#else
#define READS_SLACK __attribute__((noinline))
#endif

/* Sum of bytes that only BLIS may read. */
READS_SLACK static unsigned long sum_bytes(const unsigned char *p, size_t n) {
  unsigned long sum = 0;
  for (size_t i = 0; i < n; i++)
    sum += ((const volatile unsigned char *)p)[i];
  return sum;
}

static void test_alloc(void) {
  unsigned char *p = clew_alloc(1000, 3);
  CHECK(p && sum_bytes(p, 3000) == 0);
  if (p)
    memset(p, 7, 3000);
  p = clew_resize(p, 5000, 3);
  CHECK(p && sum_bytes(p, 3000) == 7 * 3000);
  CHECK(clew_resize(p, SIZE_MAX / 2, 3) == NULL);
  CHECK(p && sum_bytes(p, 3000) == 7 * 3000, "a failed resize must leave the block as it was");
  clew_free(p);
  CHECK(clew_alloc(SIZE_MAX / 2, 3) == NULL);
  void *none = clew_alloc(0, 8), *more = clew_resize(NULL, 0, 8);
  CHECK(none && more, "NULL means failure, also for nothing");
  clew_free(none);
  clew_free(more);
  clew_free(NULL);
}

static void test_fail_at(void) {
  clew_memory_fail_at(3);
  void *a = clew_alloc(1, 1), *b = clew_resize(NULL, 1, 1);
  CHECK(a && b && clew_memory_count() == 2);
  CHECK(clew_slab_new(100) == NULL);
  clew_slab *slab = clew_slab_new(100);
  CHECK(slab != NULL, "only the third fails");
  CHECK(clew_memory_count() == 4);
  clew_memory_fail_at(1);
  CHECK(clew_alloc(1, 1) == NULL);
  clew_memory_fail_at(1);
  CHECK(clew_resize(b, 2, 1) == NULL);
  clew_memory_fail_at(0);
  CHECK(clew_memory_count() == 0);
  clew_slab_release(slab);
  clew_free(a);
  clew_free(b);
}

static void test_slab(void) {
  const size_t sizes[] = {0, 1, 63, 64, 100000, 2 * MIB - CLEW_SLACK, 2 * MIB, 5 * MIB + 17};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    clew_slab_trim();
    clew_slab *slab = clew_slab_new(sizes[i]);
    CHECK(slab && clew_slab_bytes(slab) == sizes[i], "%zu", sizes[i]);
    unsigned char *data = clew_slab_data(slab);
    CHECK((uintptr_t)data % (sizes[i] >= 2 * MIB ? 2 * MIB : 64) == 0, "%zu: %p", sizes[i], (void *)data);
    memset(data, 1, sizes[i]);
    CHECK(sum_bytes(data, sizes[i]) == sizes[i]);
    (void)sum_bytes(data + sizes[i], CLEW_SLACK); /* must not crash */
    CHECK(clew_slab_retain(slab) == slab);
    clew_slab_release(slab);
    CHECK(clew_slab_idle() == 0 && clew_slab_data(slab) == data, "one reference is left");
    clew_slab_release(slab);
    CHECK(clew_slab_idle() >= sizes[i] + CLEW_SLACK, "%zu", clew_slab_idle());
  }
  clew_slab_release(NULL);
  clew_slab_trim();
  CHECK(clew_slab_idle() == 0);
}

static void test_reuse(void) {
  const size_t sizes[] = {1 * MIB, 10 * MIB};
  for (size_t i = 0; i < 4; i++) {
    size_t bytes = sizes[i / 2];
    clew_slab *a = clew_slab_new(bytes), *b = clew_slab_new(bytes + bytes / 16);
    void *data_a = clew_slab_data(a), *data_b = clew_slab_data(b);
    clew_slab_release(i % 2 ? a : b); /* in either order: a fits better */
    clew_slab_release(i % 2 ? b : a);
    clew_slab *c = clew_slab_new(bytes - 5);
    CHECK(clew_slab_data(c) == data_a && clew_slab_bytes(c) == bytes - 5);
    clew_slab *d = clew_slab_new(bytes / 2);
    CHECK(clew_slab_data(d) != data_b, "half of it would waste the other half");
    clew_slab *e = clew_slab_new(bytes);
    CHECK(clew_slab_data(e) == data_b, "6 %% more than asked for is near enough");
    clew_slab_release(c);
    clew_slab_release(d);
    clew_slab_release(e);
    clew_slab_trim();
  }
}

static void test_limits(void) {
  clew_slab *slabs[600];
  for (size_t i = 0; i < 4; i++)
    slabs[i] = clew_slab_new((300 + 50 * i) * MIB); /* never touched */
  CHECK(slabs[0] && slabs[1] && slabs[2] && slabs[3]);
  void *newest = clew_slab_data(slabs[3]), *oldest = clew_slab_data(slabs[0]);
  for (size_t i = 0; i < 4; i++) {
    clew_slab_release(slabs[i]);
    CHECK(clew_slab_idle() <= CLEW_IDLE_LIMIT, "%zu", clew_slab_idle());
  }
  CHECK(clew_slab_idle() >= 850 * MIB && clew_slab_idle() < 900 * MIB, "the last two: %zu", clew_slab_idle());
  clew_slab *again = clew_slab_new(450 * MIB);
  CHECK(clew_slab_data(again) == newest);
  clew_slab_release(again);
  (void)oldest;
  clew_slab *huge = clew_slab_new(CLEW_IDLE_LIMIT + MIB);
  size_t before = clew_slab_idle();
  clew_slab_release(huge);
  CHECK(huge && clew_slab_idle() == before, "what is larger than the limit alone is not kept");
  clew_slab_trim();

  for (size_t i = 0; i < 600; i++)
    slabs[i] = clew_slab_new(64);
  for (size_t i = 0; i < 600; i++)
    clew_slab_release(slabs[i]);
  CHECK(clew_slab_idle() < 560 * (CLEW_SLACK + 64), "the number of idle slabs is bounded too: %zu", clew_slab_idle());
  clew_slab_trim();
}

static void test_too_much(void) {
  CHECK(clew_slab_new(SIZE_MAX) == NULL);
  CHECK(clew_slab_new(SIZE_MAX - CLEW_SLACK) == NULL);
  CHECK(clew_slab_new(SIZE_MAX / 2) == NULL);
  CHECK(clew_slab_new((size_t)1 << 46) == NULL);
  size_t available = clew_machine_memory("");
  if (available == SIZE_MAX)
    return;
  CHECK(clew_slab_new(available + 64 * MIB) == NULL, "more than there is, %zu", available);
  /* Memory that was promised and not touched is counted, though the machine says that it is free. */
  clew_slab *slabs[16];
  size_t n = 0;
  while (n < 16 && (slabs[n] = clew_slab_new(available / 8)) != NULL)
    n++;
  CHECK(n >= 4 && n <= 8, "%zu eighths of what is available were given", n);
  while (n > 0)
    clew_slab_release(slabs[--n]);
  clew_slab_trim();
}

static void write_file(const char *path, size_t bytes) {
  FILE *file = fopen(path, "wb");
  for (size_t i = 0; i < bytes; i++)
    fputc((int)(i * 31 % 251), file);
  fclose(file);
}

static void test_map_file(void) {
  char directory[] = "test_memory.XXXXXX", path[64];
  CHECK(mkdtemp(directory) != NULL);
  snprintf(path, sizeof path, "%s/file", directory);
  const size_t sizes[] = {0, 1, 4095, 4096, 4097, 200000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    size_t size = 77, slack = i % 2 ? 0 : 3 * CLEW_SLACK;
    write_file(path, sizes[i]);
    clew_slab *slab = clew_slab_map_file(path, slack, &size);
    CHECK(slab && size == sizes[i] && clew_slab_bytes(slab) == size, "%zu: %s", sizes[i], strerror(errno));
    CHECK(unlink(path) == 0, "what is mapped stays");
    const unsigned char *data = clew_slab_data(slab);
    size_t wrong = 0;
    for (size_t j = 0; j < size; j++)
      wrong += data[j] != (unsigned char)(j * 31 % 251);
    CHECK(wrong == 0);
    CHECK(sum_bytes(data + size, slack > CLEW_SLACK ? slack : CLEW_SLACK) == 0, "the slack is readable");
    size_t idle = clew_slab_idle();
    clew_slab_release(slab);
    CHECK(clew_slab_idle() == idle, "a file's memory is not kept for reuse");
  }
  size_t size = 77;
  errno = 0;
  CHECK(clew_slab_map_file(path, 0, &size) == NULL && errno == ENOENT, "%s", strerror(errno));
  CHECK(clew_slab_map_file(directory, 0, &size) == NULL && errno == EISDIR, "%s", strerror(errno));
  CHECK(mkfifo(path, 0600) == 0);
  CHECK(clew_slab_map_file(path, 0, &size) == NULL && errno == EINVAL, "%s", strerror(errno));
  unlink(path);
  write_file(path, 10);
  CHECK(clew_slab_map_file(path, SIZE_MAX / 2, &size) == NULL && errno == EFBIG, "%s", strerror(errno));
  CHECK(size == 77, "a failure leaves size alone");
  unlink(path);
  rmdir(directory);
}

static atomic_bool stop;

static void *churn(void *argument) {
  unsigned state = *(unsigned *)argument;
  clew_slab *slabs[8] = {NULL};
  for (size_t i = 0; i < 20000 && !stop; i++) {
    state = state * 1664525u + 1013904223u;
    clew_slab **slab = &slabs[state >> 29];
    clew_slab_release(*slab);
    *slab = clew_slab_new((size_t)(state >> 8) % (3 * MIB));
    if (!*slab)
      break;
    unsigned char *data = clew_slab_data(*slab);
    if (clew_slab_bytes(*slab) > 0) {
      data[0] = (unsigned char)state;
      data[clew_slab_bytes(*slab) - 1] = (unsigned char)state;
    }
    if (i % 512 == 0)
      clew_slab_trim();
  }
  CHECK(slabs[state >> 29] != NULL);
  for (size_t i = 0; i < 8; i++)
    clew_slab_release(slabs[i]);
  return NULL;
}

static void in_child(void *ctx) {
  (void)ctx;
  clew_slab *slab = clew_slab_new(3 * MIB);
  CHECK(slab != NULL);
  clew_slab_release(slab);
  clew_slab_trim();
  CHECK(clew_slab_idle() == 0);
}

static void test_threads_and_fork(void) {
  pthread_t threads[4];
  unsigned seeds[4] = {1, 2, 3, 4};
  for (size_t i = 0; i < 4; i++)
    CHECK(pthread_create(&threads[i], NULL, churn, &seeds[i]) == 0);
  for (size_t i = 0; i < 20; i++) {
    usleep(2000);
    check_in_child(in_child, NULL, "fork while threads allocate");
  }
  stop = true;
  for (size_t i = 0; i < 4; i++)
    pthread_join(threads[i], NULL);
  clew_slab_trim();
  CHECK(clew_slab_idle() == 0);
}

int main(void) {
  test_alloc();
  test_fail_at();
  test_slab();
  test_reuse();
  test_limits();
  test_too_much();
  test_map_file();
  test_threads_and_fork();
  return finish("test_memory");
}
