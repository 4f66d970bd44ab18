/* The maze generators. Every maze has a stream of random numbers of its own. */
#include <stdatomic.h>
#include <string.h>

#include "maze_graph.h"

#define ATTEMPTS 10000
#define CHUNK 64 /* mazes of one task */

/* ---- Random numbers: SplitMix64 --------------------------------------------------------------------------------- */

typedef struct random_stream {
  uint64_t state;
} random_stream;

static inline uint32_t draw(random_stream *r) {
  const uint64_t z = clew_maze_mix(r->state);
  r->state += 0x9E3779B97F4A7C15u;
  return (uint32_t)(z >> 32);
}

/* Uniform in 0 … n − 1, without bias (Lemire 2019). */
static inline uint32_t below(random_stream *r, uint32_t n) {
  uint64_t product = (uint64_t)draw(r) * n;
  if ((uint32_t)product < n) {
    const uint32_t least = -n % n;
    while ((uint32_t)product < least) {
      product = (uint64_t)draw(r) * n;
    }
  }
  return (uint32_t)(product >> 32);
}

/* True with probability p, to 2⁻³². */
static inline bool chance(random_stream *r, double p) { return (double)draw(r) < p * 0x1p32; }

/* ---- One maze --------------------------------------------------------------------------------------------------- */

typedef struct maze {
  clew_maze_graph graph;
  int32_t n_cells;                      /* those that endpoints are chosen from */
  int16_t cells[CLEW_MAZE_CELLS];       /* [n_cells] */
  int32_t n_edges;                      /* */
  clew_cell edges[4 * CLEW_MAZE_CELLS]; /* [n_edges, 2] */
  uint8_t border[CLEW_MAZE_CELLS];      /* bit w: is there a cell that way in the lattice? */
} maze;

static clew_cell cell_at(const maze *m, int32_t cell) {
  return (clew_cell){(uint8_t)(cell / m->graph.grid), (uint8_t)(cell % m->graph.grid)};
}

static void all_cells(maze *m) {
  m->n_cells = m->graph.grid * m->graph.grid;
  for (int32_t i = 0; i < m->n_cells; i++) {
    m->cells[i] = (int16_t)i;
  }
}

/* The bit of `ways` that is number k. */
static inline int way_of(unsigned ways, uint32_t k) {
  while (k-- > 0) {
    ways &= ways - 1;
  }
  return __builtin_ctz(ways);
}

/* Depth first: from the last cell that has an unvisited neighbour to one of these. Without forks, a cell is left for
 * good once the walk has gone on: it ends where it is stuck. */
static void depth_first(maze *m, random_stream *r, bool forks) {
  const int32_t grid = m->graph.grid, step[CLEW_MAZE_WAYS] = {-grid, -1, 1, grid};
  uint8_t free_ways[CLEW_MAZE_CELLS]; /* bit w: is that neighbour unvisited? */
  int16_t stack[CLEW_MAZE_CELLS];
  memcpy(free_ways, m->border, (size_t)(grid * grid));
  int32_t cell = (int32_t)below(r, (uint32_t)(grid * grid)), depth = 0;
  m->n_cells = 0;
  for (bool arrived = true;;) {
    if (arrived) {
      m->cells[m->n_cells++] = (int16_t)cell;
      for (int way = 0; way < CLEW_MAZE_WAYS; way++) {
        if (m->border[cell] >> way & 1) {
          free_ways[cell + step[way]] &= (uint8_t) ~(1 << (3 - way));
        }
      }
    }
    const unsigned ways = free_ways[cell];
    arrived = ways != 0;
    if (arrived) {
      const uint32_t n = (uint32_t)__builtin_popcount(ways);
      const int32_t next = cell + step[way_of(ways, n > 1 ? below(r, n) : 0)];
      if (forks && n > 1) {
        stack[depth++] = (int16_t)cell;
      }
      clew_maze_connect(&m->graph, cell, next);
      cell = next;
    } else if (depth > 0) {
      cell = stack[--depth];
    } else {
      return;
    }
  }
}

/* Loop-erased random walks from each cell to the tree (Wilson 1996). A walk remembers where it last went from each
 * cell: following these from its start gives it without its loops. */
static void wilson(maze *m, random_stream *r) {
  const int32_t grid = m->graph.grid, step[CLEW_MAZE_WAYS] = {-grid, -1, 1, grid};
  bool in_tree[CLEW_MAZE_CELLS] = {false};
  uint8_t last[CLEW_MAZE_CELLS];
  all_cells(m);
  in_tree[below(r, (uint32_t)m->n_cells)] = true;
  for (int32_t start = 0; start < m->n_cells; start++) {
    for (int32_t cell = start; !in_tree[cell]; cell += step[last[cell]]) {
      const unsigned ways = m->border[cell];
      last[cell] = (uint8_t)way_of(ways, below(r, (uint32_t)__builtin_popcount(ways)));
    }
    for (int32_t cell = start; !in_tree[cell]; cell += step[last[cell]]) {
      in_tree[cell] = true;
      clew_maze_connect(&m->graph, cell, cell + step[last[cell]]);
    }
  }
}

/* Each lattice edge with probability p, besides those that are there. */
static void percolate(maze *m, random_stream *r, double p) {
  const int32_t grid = m->graph.grid;
  for (int32_t cell = 0; cell < grid * grid; cell++) {
    if ((m->border[cell] >> 2 & 1) && chance(r, p)) {
      clew_maze_connect(&m->graph, cell, cell + 1);
    }
    if ((m->border[cell] >> 3 & 1) && chance(r, p)) {
      clew_maze_connect(&m->graph, cell, cell + grid);
    }
  }
}

/* The cells that a random one is connected with. */
static void component(maze *m, random_stream *r) {
  const int32_t n = m->graph.grid * m->graph.grid;
  int16_t distance[CLEW_MAZE_CELLS];
  clew_maze_flood(distance, &m->graph, (int32_t)below(r, (uint32_t)n), -1);
  m->n_cells = 0;
  for (int32_t i = 0; i < n; i++) {
    if (distance[i] >= 0) {
      m->cells[m->n_cells++] = (int16_t)i;
    }
  }
}

static void build(maze *m, random_stream *r, const clew_maze_rules *rules) {
  memset(m->graph.open, 0, (size_t)(rules->grid * rules->grid));
  switch (rules->kind) {
  case CLEW_MAZE_RDFS:
  case CLEW_MAZE_FORKLESS:
    depth_first(m, r, rules->kind == CLEW_MAZE_RDFS);
    break;
  case CLEW_MAZE_PRDFS:
    depth_first(m, r, true);
    percolate(m, r, rules->p);
    break;
  case CLEW_MAZE_WILSON:
    wilson(m, r);
    break;
  case CLEW_MAZE_PERCOLATION:
    percolate(m, r, rules->p);
    component(m, r);
    break;
  }
}

/* The edges in a random order (Fisher and Yates), each in a random direction. */
static void list_edges(maze *m, random_stream *r) {
  const int32_t grid = m->graph.grid;
  m->n_edges = 0;
  for (int32_t cell = 0; cell < grid * grid; cell++) {
    for (int way = 2; way < CLEW_MAZE_WAYS; way++) {
      if (m->graph.open[cell] >> way & 1) {
        const int32_t i = m->n_edges++, at = (int32_t)below(r, (uint32_t)i + 1);
        const clew_cell a = cell_at(m, cell), b = cell_at(m, cell + (way == 2 ? 1 : grid));
        const bool turned = draw(r) >> 31;
        m->edges[2 * i] = m->edges[2 * at], m->edges[2 * i + 1] = m->edges[2 * at + 1];
        m->edges[2 * at] = turned ? b : a, m->edges[2 * at + 1] = turned ? a : b;
      }
    }
  }
}

/* Those of the maze's cells that may be an endpoint. chosen: [n_cells]; gives how many. */
static int32_t candidates(int16_t *chosen, const maze *m, const uint8_t *allowed, bool dead_end) {
  int32_t n = 0;
  for (int32_t i = 0; i < m->n_cells; i++) {
    const int32_t cell = m->cells[i];
    const bool dead = __builtin_popcount(m->graph.open[cell]) == 1;
    if ((allowed == NULL || allowed[cell]) && (dead || !dead_end)) {
      chosen[n++] = (int16_t)cell;
    }
  }
  return n;
}

/* A pair of endpoints, each that the rules allow as likely as the others. False when there is none. */
static bool choose_ends(int32_t ends[2], const maze *m, random_stream *r, const clew_maze_rules *rules) {
  int16_t starts[CLEW_MAZE_CELLS], targets[CLEW_MAZE_CELLS];
  const int32_t n = candidates(starts, m, rules->allowed_start, rules->dead_end_start);
  const int32_t k = candidates(targets, m, rules->allowed_target, rules->dead_end_target);
  if (n == 0 || k == 0 || (rules->distinct && n == 1 && k == 1 && starts[0] == targets[0])) {
    return false;
  }
  do {
    ends[0] = starts[below(r, (uint32_t)n)], ends[1] = targets[below(r, (uint32_t)k)];
  } while (rules->distinct && ends[0] == ends[1]);
  return true;
}

static void start_maze(maze *m, int32_t grid) {
  m->graph.grid = grid;
  for (int32_t cell = 0; cell < grid * grid; cell++) {
    const int32_t row = cell / grid, col = cell % grid;
    m->border[cell] = (uint8_t)((row > 0) | (col > 0) << 1 | (col < grid - 1) << 2 | (row < grid - 1) << 3);
  }
}

/* ---- Batches ---------------------------------------------------------------------------------------------------- */

typedef struct generation {
  clew_mazes *out;
  uint64_t first;
  const clew_maze_rules *rules;
  atomic_size_t failed; /* the lowest maze that could not be made; n: none */
} generation;

static bool generate_one(maze *m, clew_mazes *out, size_t i, uint64_t number, const clew_maze_rules *rules) {
  random_stream r = {clew_maze_mix(clew_maze_mix(rules->seed) ^ number)};
  int32_t ends[2];
  for (int attempt = 0; attempt < ATTEMPTS; attempt++) {
    build(m, &r, rules);
    list_edges(m, &r);
    if (rules->part != CLEW_MAZE_ALL) {
      const bool test = clew_maze_hash(m->edges, m->n_edges, rules->grid) < rules->test_below;
      if (test != (rules->part == CLEW_MAZE_TEST)) {
        continue;
      }
    }
    if (!choose_ends(ends, m, &r, rules)) {
      continue;
    }
    clew_cell *edges = out->edges + 2 * i * out->max_edges, *path = out->path + i * out->max_path;
    memset(edges, 0, 2 * out->max_edges * sizeof *edges);
    memset(path, 0, out->max_path * sizeof *path);
    memcpy(edges, m->edges, 2 * (size_t)m->n_edges * sizeof *edges);
    out->grids[i] = (uint8_t)rules->grid;
    out->n_edges[i] = m->n_edges;
    out->ends[2 * i] = cell_at(m, ends[0]), out->ends[2 * i + 1] = cell_at(m, ends[1]);
    out->n_path[i] = clew_maze_shortest(path, &m->graph, ends[0], ends[1]);
    return true;
  }
  return false;
}

static void generate_chunk(void *ctx, size_t index, unsigned slot) {
  (void)slot;
  generation *g = ctx;
  maze m;
  start_maze(&m, g->rules->grid);
  const size_t end = (index + 1) * CHUNK < g->out->n ? (index + 1) * CHUNK : g->out->n;
  for (size_t i = index * CHUNK; i < end; i++) {
    if (i > atomic_load(&g->failed)) { /* the lowest is what counts */
      return;
    }
    if (!generate_one(&m, g->out, i, g->first + i, g->rules)) {
      size_t known = atomic_load(&g->failed);
      while (i < known && !atomic_compare_exchange_weak(&g->failed, &known, i)) {
      }
      return;
    }
  }
}

size_t clew_maze_max_edges(clew_maze_kind kind, int32_t grid) {
  const size_t n = (size_t)grid;
  return kind == CLEW_MAZE_PRDFS || kind == CLEW_MAZE_PERCOLATION ? 2 * n * (n - 1) : n * n - 1;
}

clew_status clew_maze_generate(clew_mazes *out, uint64_t first, const clew_maze_rules *rules, clew_cancel *cancel,
                               clew_error *err) {
  const int32_t grid = rules->grid;
  if (grid < 2 || grid > CLEW_MAZE_MAX) {
    return clew_fail(err, CLEW_ERROR_VALUE, "a maze of %d × %d: 2 to %d rows", grid, grid, CLEW_MAZE_MAX);
  }
  if (out->max_edges < clew_maze_max_edges(rules->kind, grid) || out->max_path < (size_t)(grid * grid)) {
    return clew_fail(err, CLEW_ERROR_SHAPE, "room for %zu edges and %zu cells; mazes of %d × %d need %zu and %d",
                     out->max_edges, out->max_path, grid, grid, clew_maze_max_edges(rules->kind, grid), grid * grid);
  }
  if (!(rules->p >= 0 && rules->p <= 1)) {
    return clew_fail(err, CLEW_ERROR_VALUE, "p = %g: a probability lies in 0 to 1", rules->p);
  }
  generation g = {.out = out, .first = first, .rules = rules, .failed = out->n};
  if (!clew_pool_for((out->n + CHUNK - 1) / CHUNK, generate_chunk, &g, clew_pool_threads(), cancel)) {
    return clew_fail(err, CLEW_ERROR_CANCELLED, "cancelled");
  }
  const size_t failed = atomic_load(&g.failed);
  if (failed < out->n) {
    return clew_fail(err, CLEW_ERROR_VALUE, "maze %llu: none of %d has endpoints as asked for, or lies in this part",
                     (unsigned long long)(first + failed), ATTEMPTS);
  }
  return CLEW_OK;
}
