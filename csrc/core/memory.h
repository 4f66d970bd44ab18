/* Memory of the core: every allocation goes through here, so that tests can make each of them fail in turn.
 *
 * A slab is a reference-counted block of large memory: 64-byte aligned, backed by huge pages where the system has
 * them, followed by readable slack (BLIS may read past an operand's end). Released slabs are kept for reuse up to
 * CLEW_IDLE_LIMIT bytes in all (or another limit), because fresh pages cost more than the arithmetic that fills them.
 */
#ifndef CLEW_MEMORY_H
#define CLEW_MEMORY_H

#include <stddef.h>

#define CLEW_SLACK ((size_t)64 << 10)
#define CLEW_IDLE_LIMIT ((size_t)1 << 30)

typedef struct clew_slab clew_slab;

/* Small memory for plans, tables, names. NULL when there is none; clew_free(NULL) is allowed. */
void *clew_alloc(size_t count, size_t size); /* zeroed; checks count * size for overflow */
void *clew_resize(void *p, size_t count, size_t size);
void clew_free(void *p);

clew_slab *clew_slab_new(size_t bytes); /* contents undefined; one reference; NULL when memory cannot be had */
void *clew_slab_data(clew_slab *slab);
size_t clew_slab_bytes(const clew_slab *slab);
clew_slab *clew_slab_retain(clew_slab *slab);
void clew_slab_release(clew_slab *slab);     /* NULL is allowed; any thread */
size_t clew_slab_idle(void);                 /* bytes kept for reuse now */
void clew_slab_set_idle_limit(size_t bytes); /* instead of CLEW_IDLE_LIMIT; gives back what is too much */
void clew_slab_trim(void);                   /* gives all idle memory back */

/* A read-only file mapped over the front of a reservation that is CLEW_SLACK or `slack` bytes longer, whichever is
 * more; as a slab, so that arrays over it keep it alive. *size is the file's size. errno tells what went wrong. */
clew_slab *clew_slab_map_file(const char *path, size_t slack, size_t *size);

/* Tests only: the n-th allocation from now fails (1 = the next; 0 = never). Counts alloc, resize and slab_new. */
void clew_memory_fail_at(size_t n);
size_t clew_memory_count(void); /* allocations since the last clew_memory_fail_at */

#endif
