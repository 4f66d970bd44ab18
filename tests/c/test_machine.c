/* Processors and memory, read from made-up trees of /proc and /sys. */
#include <stdint.h>
#include <sys/stat.h>

#include "machine.h"
#include "test.h"

static char root[64];

static void run(const char *format, const char *argument) {
  char command[512];
  snprintf(command, sizeof command, format, argument);
  CHECK(system(command) == 0, "%s", command);
}

static void fresh(void) {
  if (root[0])
    run("rm -r %s", root);
  strcpy(root, "test_machine.XXXXXX");
  CHECK(mkdtemp(root) != NULL);
}

/* Writes a file below the root, with the folders above it. */
static void put(const char *path, const char *text) {
  char full[256];
  snprintf(full, sizeof full, "%s%s", root, path);
  for (char *p = full + strlen(root) + 1; (p = strchr(p, '/')) != NULL; p++) {
    *p = '\0';
    mkdir(full, 0700);
    *p = '/';
  }
  FILE *file = fopen(full, "w");
  CHECK(file && fputs(text, file) >= 0, "%s", full);
  if (file)
    fclose(file);
}

static unsigned limited(unsigned cpus) {
  unsigned all = clew_machine_cpus("nowhere");
  return all < cpus ? all : cpus;
}

static void test_cpus(void) {
  CHECK(clew_machine_cpus("nowhere") >= 1);
  CHECK(clew_machine_cpus("") >= 1 && clew_machine_cpus("") <= clew_machine_cpus("nowhere"));

  fresh();
  put("/proc/self/cgroup", "0::/user/job\n");
  put("/sys/fs/cgroup/user/job/cpu.max", "max 100000\n");
  CHECK(clew_machine_cpus(root) == limited(4096));
  put("/sys/fs/cgroup/user/job/cpu.max", "110000 100000\n"); /* 1.1 is rounded up */
  CHECK(clew_machine_cpus(root) == limited(2));
  put("/sys/fs/cgroup/user/cpu.max", "50000 100000\n"); /* the group above allows less */
  CHECK(clew_machine_cpus(root) == 1);

  fresh(); /* in a container the path names a place that cannot be seen */
  put("/proc/self/cgroup", "0::/outside/of/it\n");
  put("/sys/fs/cgroup/cpu.max", "100000 100000\n");
  CHECK(clew_machine_cpus(root) == 1);

  fresh();
  put("/proc/self/cgroup", "3:cpuset:/other\n2:cpu,cpuacct:/job\n1:name=systemd:/\n");
  put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "-1\n");
  put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us", "100000\n");
  CHECK(clew_machine_cpus(root) == limited(4096));
  put("/sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us", "100000\n");
  CHECK(clew_machine_cpus(root) == 1);
}

static void test_memory(void) {
  CHECK(clew_machine_memory("nowhere") == SIZE_MAX);
  CHECK(clew_machine_memory("") > 0);

  fresh();
  put("/proc/meminfo", "MemTotal:       16000 kB\nMemFree:         3000 kB\nMemAvailable:    8000 kB\n");
  CHECK(clew_machine_memory(root) == 8000 * 1024);
  put("/proc/self/cgroup", "0::/job\n");
  put("/sys/fs/cgroup/job/memory.max", "max\n");
  put("/sys/fs/cgroup/job/memory.current", "4096000\n");
  CHECK(clew_machine_memory(root) == 8000 * 1024);
  put("/sys/fs/cgroup/job/memory.max", "5000000\n");
  CHECK(clew_machine_memory(root) == 904000, "%zu", clew_machine_memory(root));
  put("/sys/fs/cgroup/job/memory.stat", "anon 1\ninactive_file 1000\nactive_file 20\n"); /* file pages make room */
  CHECK(clew_machine_memory(root) == 905020, "%zu", clew_machine_memory(root));
  put("/sys/fs/cgroup/job/memory.current", "6000000\n");
  CHECK(clew_machine_memory(root) == 0);

  fresh();
  put("/proc/meminfo", "MemAvailable:    8000 kB\n");
  put("/proc/self/cgroup", "4:memory:/job\n");
  put("/sys/fs/cgroup/memory/job/memory.limit_in_bytes", "9223372036854771712\n");
  put("/sys/fs/cgroup/memory/job/memory.usage_in_bytes", "4000\n");
  CHECK(clew_machine_memory(root) == 8000 * 1024);
  put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "10000\n");
  put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "4000\n");
  CHECK(clew_machine_memory(root) == 6000);
  put("/sys/fs/cgroup/memory/memory.stat", "inactive_file 1\ntotal_inactive_file 500\ntotal_active_file 30\n");
  CHECK(clew_machine_memory(root) == 6530, "%zu", clew_machine_memory(root));
}

int main(void) {
  test_cpus();
  test_memory();
  run("rm -r %s", root);
  return finish("test_machine");
}
