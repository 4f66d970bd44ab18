/* The kernel's accounts: affinity mask, /proc/meminfo, control groups of version 1 and 2. */
#include "machine.h"

#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __linux__
#include <sched.h>
#endif

#define PATH_SIZE 4096

/* First `size - 1` bytes of a file as a string; false when it cannot be read. */
static bool read_text(char *text, size_t size, const char *root, const char *directory, const char *name) {
  char path[PATH_SIZE];
  int length = snprintf(path, sizeof path, "%s%s/%s", root, directory, name);
  if (length < 0 || (size_t)length >= sizeof path)
    return false;
  FILE *file = fopen(path, "re");
  if (!file)
    return false;
  size_t n = fread(text, 1, size - 1, file);
  text[n] = '\0';
  fclose(file);
  return n > 0;
}

/* The number behind a key that starts a line ("MemAvailable:", "inactive_file "). */
static bool find_number(unsigned long long *value, const char *text, const char *key) {
  size_t length = strlen(key);
  for (const char *line = text; line; line = strchr(line, '\n')) {
    line += *line == '\n';
    if (strncmp(line, key, length) == 0) {
      *value = strtoull(line + length, NULL, 10);
      return true;
    }
  }
  return false;
}

/* The first number of a file; false for none, for a negative one and for "max". */
static bool read_number(unsigned long long *value, const char *root, const char *directory, const char *name) {
  char text[64], *end;
  if (!read_text(text, sizeof text, root, directory, name) || text[0] < '0' || text[0] > '9')
    return false;
  *value = strtoull(text, &end, 10);
  return true;
}

/* Is `word` one of a comma-separated list of `length` characters? */
static bool in_list(const char *list, size_t length, const char *word) {
  size_t n = strlen(word);
  for (size_t i = 0; i + n <= length; i++)
    if ((i == 0 || list[i - 1] == ',') && (i + n == length || list[i + n] == ',') && strncmp(list + i, word, n) == 0)
      return true;
  return false;
}

/* This process's path in the hierarchy of a controller ("" is version 2), from /proc/self/cgroup. */
static bool group_path(char *path, size_t size, const char *root, const char *controller) {
  char text[PATH_SIZE];
  if (!read_text(text, sizeof text, root, "/proc/self", "cgroup"))
    return false;
  for (char *line = text, *end; line && *line; line = end ? end + 1 : NULL) {
    end = strchr(line, '\n');
    if (end)
      *end = '\0';
    char *names = strchr(line, ':'), *tail = names ? strchr(names + 1, ':') : NULL;
    if (!tail)
      continue;
    size_t length = (size_t)(tail - names - 1);
    if (controller[0] ? in_list(names + 1, length, controller) : length == 0) {
      snprintf(path, size, "%s", tail + 1);
      return true;
    }
  }
  return false;
}

typedef void (*group_visit)(void *ctx, const char *root, const char *directory, bool v2);

/* Visits the process's group and every group above it, in all hierarchies that could hold the controller. Inside a
 * container the path may name a place outside it: then only the top, which is what the container sees, exists. */
static void visit_groups(const char *root, const char *controller, group_visit visit, void *ctx) {
  static const char *const mounts_v2[] = {"/sys/fs/cgroup", "/sys/fs/cgroup/unified"};
  for (size_t i = 0; i < 4; i++) {
    bool v2 = i < 2;
    char mount[64], path[PATH_SIZE - 256], directory[PATH_SIZE];
    if (v2)
      snprintf(mount, sizeof mount, "%s", mounts_v2[i]);
    else
      snprintf(mount, sizeof mount, "/sys/fs/cgroup/%s%s", controller, i == 3 ? ",cpuacct" : "");
    if (!group_path(path, sizeof path, root, v2 ? "" : controller))
      continue;
    for (;;) {
      size_t length = strlen(path);
      while (length > 0 && path[length - 1] == '/')
        path[--length] = '\0';
      snprintf(directory, sizeof directory, "%s%s", mount, path);
      visit(ctx, root, directory, v2);
      char *slash = strrchr(path, '/');
      if (!slash)
        break;
      *slash = '\0';
    }
  }
}

static void visit_cpu(void *ctx, const char *root, const char *directory, bool v2) {
  unsigned long long *cpus = ctx, quota, period = 0;
  char text[64];
  if (v2) {
    if (!read_text(text, sizeof text, root, directory, "cpu.max") || sscanf(text, "%llu %llu", &quota, &period) != 2)
      return;
  } else if (!read_number(&quota, root, directory, "cpu.cfs_quota_us") ||
             !read_number(&period, root, directory, "cpu.cfs_period_us")) {
    return;
  }
  if (quota == 0 || period == 0)
    return;
  unsigned long long n = quota / period + (quota % period != 0);
  if (n < *cpus)
    *cpus = n;
}

unsigned clew_machine_cpus(const char *root) {
  unsigned long long cpus = 1;
#ifdef __linux__
  /* A mask of fixed size fails with EINVAL where the kernel knows more processors: ask for more. */
  for (size_t n = 1024; n <= 1 << 20; n *= 4) {
    cpu_set_t *set = CPU_ALLOC(n);
    if (!set)
      break;
    size_t size = CPU_ALLOC_SIZE(n);
    int found = sched_getaffinity(0, size, set) == 0 ? CPU_COUNT_S(size, set) : 0;
    CPU_FREE(set);
    if (found > 0) {
      cpus = (unsigned long long)found;
      break;
    }
  }
#else
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  if (online > 0)
    cpus = (unsigned long long)online;
#endif
  visit_groups(root, "cpu", visit_cpu, &cpus);
  return cpus > UINT_MAX ? UINT_MAX : (unsigned)cpus;
}

static void visit_memory(void *ctx, const char *root, const char *directory, bool v2) {
  unsigned long long *available = ctx, limit, used, active = 0, inactive = 0;
  char text[8192];
  if (!read_number(&limit, root, directory, v2 ? "memory.max" : "memory.limit_in_bytes") ||
      !read_number(&used, root, directory, v2 ? "memory.current" : "memory.usage_in_bytes"))
    return;
  /* The page cache is part of what is used, but makes room. */
  if (read_text(text, sizeof text, root, directory, "memory.stat")) {
    find_number(&active, text, v2 ? "active_file " : "total_active_file ");
    find_number(&inactive, text, v2 ? "inactive_file " : "total_inactive_file ");
  }
  used = used > active + inactive ? used - active - inactive : 0;
  unsigned long long rest = limit > used ? limit - used : 0;
  if (rest < *available)
    *available = rest;
}

size_t clew_machine_memory(const char *root) {
  unsigned long long available = ULLONG_MAX, kilobytes;
  char text[PATH_SIZE];
  if (read_text(text, sizeof text, root, "/proc", "meminfo") && find_number(&kilobytes, text, "MemAvailable:"))
    available = kilobytes * 1024;
  visit_groups(root, "memory", visit_memory, &available);
  return available > SIZE_MAX ? SIZE_MAX : (size_t)available;
}
