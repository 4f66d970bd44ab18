/* Allocation, slabs, and the cache of idle slabs. */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine.h"

#define ALIGNMENT ((size_t)64)
#define HUGE_PAGE ((size_t)2 << 20)
#define MAX_IDLE 512                    /* idle slabs: the search is linear */
#define CHECK_BYTES ((size_t)256 << 20) /* new memory that is checked against what the machine has */

/* Under AddressSanitizer whatever a slab's owner must not touch is poisoned: idle slabs, and the slack (BLIS, which
 * reads there, is not instrumented). */
#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define CLEW_ASAN 1
#endif
#elif defined(__SANITIZE_ADDRESS__)
#define CLEW_ASAN 1
#endif
#ifdef CLEW_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) ASAN_POISON_MEMORY_REGION(p, n)
#define UNPOISON(p, n) ASAN_UNPOISON_MEMORY_REGION(p, n)
#else
#define POISON(p, n) ((void)0)
#define UNPOISON(p, n) ((void)0)
#endif

typedef enum slab_kind { SLAB_HEAP, SLAB_MAPPED, SLAB_FILE } slab_kind;

struct clew_slab {
  atomic_size_t references;
  slab_kind kind;
  void *data;
  size_t bytes;             /* asked for */
  size_t capacity;          /* of the block, slack included */
  clew_slab *older, *newer; /* neighbours in the list it is in: idle, or live and mapped */
};

typedef struct slab_list {
  clew_slab *oldest, *newest;
  size_t count, bytes;
} slab_list;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;
static slab_list idle; /* released slabs, kept for reuse */
static slab_list live; /* mapped slabs in use: part of them may not be touched yet */
static size_t idle_limit = CLEW_IDLE_LIMIT;
static size_t unchecked;    /* bytes mapped since the last look at what the machine has */
static atomic_size_t count; /* allocations since clew_memory_fail_at */
static atomic_size_t fail_at;

static void before_fork(void) { pthread_mutex_lock(&lock); }
static void after_fork(void) { pthread_mutex_unlock(&lock); }
static void start(void) { pthread_atfork(before_fork, after_fork, after_fork); }

static void enter(void) {
  pthread_once(&once, start);
  pthread_mutex_lock(&lock);
}

static void leave(void) { pthread_mutex_unlock(&lock); }

/* ---- Small memory ------------------------------------------------------------------------------------------- */

void clew_memory_fail_at(size_t n) {
  atomic_store(&count, 0);
  atomic_store(&fail_at, n);
}

size_t clew_memory_count(void) { return atomic_load(&count); }

static bool made_to_fail(void) {
  size_t n = atomic_fetch_add_explicit(&count, 1, memory_order_relaxed) + 1;
  return n == atomic_load_explicit(&fail_at, memory_order_relaxed);
}

void *clew_alloc(size_t n, size_t size) {
  if (made_to_fail())
    return NULL;
  return n && size ? calloc(n, size) : calloc(1, 1); /* NULL means failure, also for nothing */
}

void *clew_resize(void *p, size_t n, size_t size) {
  if (made_to_fail() || (size && n > SIZE_MAX / size))
    return NULL;
  return realloc(p, n && size ? n * size : 1);
}

void clew_free(void *p) { free(p); }

/* ---- Lists of slabs (under the lock) ------------------------------------------------------------------------ */

static void list_add(slab_list *list, clew_slab *slab) {
  slab->older = list->newest;
  slab->newer = NULL;
  *(list->newest ? &list->newest->newer : &list->oldest) = slab;
  list->newest = slab;
  list->count++;
  list->bytes += slab->capacity;
}

static void list_remove(slab_list *list, clew_slab *slab) {
  *(slab->older ? &slab->older->newer : &list->oldest) = slab->newer;
  *(slab->newer ? &slab->newer->older : &list->newest) = slab->older;
  slab->older = slab->newer = NULL;
  list->count--;
  list->bytes -= slab->capacity;
}

/* Takes idle slabs out, oldest first, until at most `bytes` and `slabs` are left; chained by `newer`. */
static clew_slab *take_oldest(size_t bytes, size_t slabs) {
  clew_slab *taken = NULL;
  while (idle.bytes > bytes || idle.count > slabs) {
    clew_slab *slab = idle.oldest;
    list_remove(&idle, slab);
    slab->newer = taken;
    taken = slab;
  }
  return taken;
}

static void give_back(clew_slab *slab) {
  while (slab) {
    clew_slab *next = slab->newer;
    UNPOISON(slab->data, slab->capacity);
    if (slab->kind == SLAB_HEAP)
      free(slab->data);
    else
      munmap(slab->data, slab->capacity);
    free(slab);
    slab = next;
  }
}

/* ---- What the machine has ----------------------------------------------------------------------------------- */

/* Bytes of a mapped slab that no page stands behind yet. */
static size_t untouched(const clew_slab *slab) {
#ifdef __linux__
  unsigned char resident[4096];
  size_t page = (size_t)sysconf(_SC_PAGESIZE), step = sizeof resident * page, missing = 0;
  for (size_t offset = 0; offset < slab->capacity; offset += step) {
    size_t length = slab->capacity - offset < step ? slab->capacity - offset : step;
    if (mincore((char *)slab->data + offset, length, resident) != 0)
      return 0;
    for (size_t i = 0; i < (length + page - 1) / page; i++)
      missing += (resident[i] & 1) == 0;
  }
  return missing * page;
#else
  (void)slab;
  return 0;
#endif
}

/* Linux promises more memory than there is and kills the process that touches it. So new memory is counted against
 * what is available now, with everything promised before and not touched yet. Under the lock. */
static bool machine_has(size_t bytes) {
  if (bytes <= CHECK_BYTES && unchecked <= CHECK_BYTES - bytes) {
    unchecked += bytes;
    return true;
  }
  size_t available = clew_machine_memory("");
  if (available == SIZE_MAX)
    return true;
  available -= available / 32; /* an estimate of the kernel's */
  for (const clew_slab *slab = live.oldest; slab; slab = slab->newer) {
    size_t promised = untouched(slab);
    available = available > promised ? available - promised : 0;
  }
  if (bytes > available)
    return false;
  unchecked = 0;
  return true;
}

/* ---- Slabs -------------------------------------------------------------------------------------------------- */

/* Anonymous memory that begins at a multiple of a huge page. */
static void *map_aligned(size_t bytes) {
  size_t length = bytes + HUGE_PAGE;
  char *block = mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED)
    return NULL;
  size_t before = (HUGE_PAGE - (uintptr_t)block % HUGE_PAGE) % HUGE_PAGE;
  if (before)
    munmap(block, before);
  if (length - before > bytes)
    munmap(block + before + bytes, length - before - bytes);
#ifdef MADV_HUGEPAGE
  madvise(block + before, bytes, MADV_HUGEPAGE);
#endif
  return block + before;
}

static clew_slab *slab_wrap(void *data, size_t bytes, size_t capacity, slab_kind kind) {
  clew_slab *slab = malloc(sizeof *slab);
  if (!slab)
    return NULL;
  *slab = (clew_slab){.kind = kind, .data = data, .bytes = bytes, .capacity = capacity};
  atomic_init(&slab->references, 1);
  return slab;
}

/* A new block of `capacity` bytes, or NULL. */
static clew_slab *slab_make(size_t bytes, size_t capacity) {
  bool mapped = capacity >= HUGE_PAGE;
  if (mapped) {
    enter();
    bool fits = machine_has(capacity);
    leave();
    if (!fits)
      return NULL;
  }
  void *data = mapped ? map_aligned(capacity) : aligned_alloc(ALIGNMENT, capacity);
  if (!data)
    return NULL;
  clew_slab *slab = slab_wrap(data, bytes, capacity, mapped ? SLAB_MAPPED : SLAB_HEAP);
  if (!slab) {
    if (mapped)
      munmap(data, capacity);
    else
      free(data);
    return NULL;
  }
  if (mapped) {
    enter();
    list_add(&live, slab);
    leave();
  }
  return slab;
}

/* The idle slab that holds `capacity` with the least left over, an eighth at most. */
static clew_slab *slab_reuse(size_t bytes, size_t capacity) {
  clew_slab *best = NULL;
  enter();
  for (clew_slab *slab = idle.newest; slab; slab = slab->older)
    if (slab->capacity >= capacity && slab->capacity - capacity <= capacity / 8 &&
        (!best || slab->capacity < best->capacity))
      best = slab;
  if (best) {
    list_remove(&idle, best);
    if (best->kind == SLAB_MAPPED)
      list_add(&live, best);
    best->bytes = bytes;
    atomic_store(&best->references, 1);
  }
  leave();
  return best;
}

clew_slab *clew_slab_new(size_t bytes) {
  size_t unit = bytes + CLEW_SLACK < HUGE_PAGE ? ALIGNMENT : (size_t)sysconf(_SC_PAGESIZE);
  if (made_to_fail() || bytes > SIZE_MAX / 2)
    return NULL;
  size_t capacity = (bytes + CLEW_SLACK + unit - 1) / unit * unit;
  clew_slab *slab = slab_reuse(bytes, capacity);
  if (!slab)
    slab = slab_make(bytes, capacity);
  if (!slab && clew_slab_idle() > 0) {
    clew_slab_trim();
    slab = slab_make(bytes, capacity);
  }
  if (slab) {
    UNPOISON(slab->data, bytes);
    POISON((char *)slab->data + bytes, slab->capacity - bytes);
  }
  return slab;
}

void *clew_slab_data(clew_slab *slab) { return slab->data; }

size_t clew_slab_bytes(const clew_slab *slab) { return slab->bytes; }

clew_slab *clew_slab_retain(clew_slab *slab) {
  atomic_fetch_add_explicit(&slab->references, 1, memory_order_relaxed);
  return slab;
}

void clew_slab_release(clew_slab *slab) {
  if (!slab || atomic_fetch_sub_explicit(&slab->references, 1, memory_order_acq_rel) > 1)
    return;
  clew_slab *unwanted = slab;
  enter();
  if (slab->kind == SLAB_MAPPED)
    list_remove(&live, slab);
  if (slab->kind != SLAB_FILE && slab->capacity <= idle_limit) {
    POISON(slab->data, slab->capacity);
    list_add(&idle, slab);
    unwanted = take_oldest(idle_limit, MAX_IDLE);
  }
  leave();
  give_back(unwanted);
}

size_t clew_slab_idle(void) {
  enter();
  size_t bytes = idle.bytes;
  leave();
  return bytes;
}

void clew_slab_set_idle_limit(size_t bytes) {
  enter();
  idle_limit = bytes;
  clew_slab *taken = take_oldest(bytes, MAX_IDLE);
  leave();
  give_back(taken);
}

void clew_slab_trim(void) {
  enter();
  clew_slab *taken = take_oldest(0, 0);
  leave();
  give_back(taken);
}

/* ---- Files -------------------------------------------------------------------------------------------------- */

clew_slab *clew_slab_map_file(const char *path, size_t slack, size_t *size) {
  clew_slab *slab = NULL;
  void *block = MAP_FAILED;
  size_t capacity = 0;
  struct stat status;
  int error = 0;

  int file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe without a writer would block */
  if (file < 0)
    return NULL;
  if (fstat(file, &status) != 0) {
    error = errno;
    goto done;
  }
  if (!S_ISREG(status.st_mode)) {
    error = S_ISDIR(status.st_mode) ? EISDIR : EINVAL;
    goto done;
  }
  size_t bytes = (size_t)status.st_size, page = (size_t)sysconf(_SC_PAGESIZE);
  slack = slack < CLEW_SLACK ? CLEW_SLACK : slack;
  if (status.st_size < 0 || (uintmax_t)status.st_size > SIZE_MAX / 2 || slack > SIZE_MAX / 4) {
    error = EFBIG;
    goto done;
  }
  capacity = (bytes + slack + page - 1) / page * page;
  block = mmap(NULL, capacity, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (block == MAP_FAILED ||
      (bytes > 0 && mmap(block, bytes, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED)) {
    error = errno;
    goto done;
  }
  slab = slab_wrap(block, bytes, capacity, SLAB_FILE);
  if (!slab) {
    error = ENOMEM;
    goto done;
  }
  *size = bytes;

done:
  close(file);
  if (error) {
    if (block != MAP_FAILED)
      munmap(block, capacity);
    errno = error;
  }
  return slab;
}
