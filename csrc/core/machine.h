/* What this process may use of the machine. `root` is put before every path that is read: "" but in tests. */
#ifndef CLEW_MACHINE_H
#define CLEW_MACHINE_H

#include <stddef.h>

/* Processors: the affinity mask, and the cgroup's CPU quota rounded up, whichever is less; at least 1. */
unsigned clew_machine_cpus(const char *root);

/* Bytes of memory that can still be had without swapping or hitting the cgroup's limit. SIZE_MAX: the system does not
 * say. */
size_t clew_machine_memory(const char *root);

#endif
