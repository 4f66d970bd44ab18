/* What a maze's edges say: hashes, shortest paths, distances, tokens. */
#include "maze.h"

#include <stdlib.h>
#include <string.h>

#include "maze_graph.h"

void clew_maze_graph_of(clew_maze_graph *graph, const clew_cell *edges, int32_t n_edges, int32_t grid) {
  graph->grid = grid;
  memset(graph->open, 0, (size_t)(grid * grid) * sizeof graph->open[0]);
  for (int32_t i = 0; i < n_edges; i++) {
    const int32_t a = edges[2 * i].row * grid + edges[2 * i].col,
                  b = edges[2 * i + 1].row * grid + edges[2 * i + 1].col;
    clew_maze_connect(graph, a, b);
  }
}

void clew_maze_flood(int16_t *distance, const clew_maze_graph *graph, int32_t from, int32_t until) {
  const int32_t cells = graph->grid * graph->grid;
  const int32_t step[CLEW_MAZE_WAYS] = {-graph->grid, -1, 1, graph->grid};
  int16_t queue[CLEW_MAZE_CELLS];
  int32_t head = 0, tail = 0;
  for (int32_t i = 0; i < cells; i++) {
    distance[i] = -1;
  }
  distance[from] = 0;
  queue[tail++] = (int16_t)from;
  while (head < tail) {
    const int32_t cell = queue[head++];
    if (cell == until) {
      return;
    }
    for (int way = 0; way < CLEW_MAZE_WAYS; way++) {
      if ((graph->open[cell] >> way & 1) && distance[cell + step[way]] < 0) {
        distance[cell + step[way]] = (int16_t)(distance[cell] + 1);
        queue[tail++] = (int16_t)(cell + step[way]);
      }
    }
  }
}

/* path: [max_path] */
int32_t clew_maze_shortest(clew_cell *path, const clew_maze_graph *graph, int32_t origin, int32_t target) {
  int16_t distance[CLEW_MAZE_CELLS]; /* to the target */
  const int32_t grid = graph->grid, step[CLEW_MAZE_WAYS] = {-grid, -1, 1, grid};
  clew_maze_flood(distance, graph, target, origin);
  if (distance[origin] < 0) {
    return 0;
  }
  int32_t n = 0;
  for (int32_t cell = origin;;) {
    path[n++] = (clew_cell){(uint8_t)(cell / grid), (uint8_t)(cell % grid)};
    if (cell == target) {
      return n;
    }
    for (int way = 0; way < CLEW_MAZE_WAYS; way++) {
      const int32_t next = cell + step[way];
      if ((graph->open[cell] >> way & 1) && distance[next] == distance[cell] - 1) { /* −1 is no distance but at 0 */
        cell = next;
        break;
      }
    }
  }
}

/* ---- Checks ----------------------------------------------------------------------------------------------------- */

/* cells: [n] */
static clew_status check_cells(const clew_cell *cells, size_t n, int32_t grid, size_t maze, const char *what,
                               clew_error *err) {
  for (size_t i = 0; i < n; i++) {
    if (cells[i].row >= grid || cells[i].col >= grid) {
      return clew_fail(err, CLEW_ERROR_VALUE, "maze %zu: %s (%d,%d) lies outside a grid of %d × %d", maze, what,
                       cells[i].row, cells[i].col, grid, grid);
    }
  }
  return CLEW_OK;
}

clew_status clew_maze_check(const clew_mazes *mazes, clew_error *err) {
  for (size_t i = 0; i < mazes->n; i++) {
    const int32_t grid = mazes->grids[i], n_edges = mazes->n_edges[i], n_path = mazes->n_path[i];
    const clew_cell *edges = mazes->edges + 2 * i * mazes->max_edges;
    if (grid < 1 || grid > CLEW_MAZE_MAX) {
      return clew_fail(err, CLEW_ERROR_VALUE, "maze %zu: a grid of %d × %d: at most %d", i, grid, grid, CLEW_MAZE_MAX);
    }
    if (n_edges < 0 || (size_t)n_edges > mazes->max_edges || n_path < 0 || (size_t)n_path > mazes->max_path) {
      return clew_fail(err, CLEW_ERROR_SHAPE,
                       "maze %zu: %d edges and %d cells of a path; there is room for %zu and %zu", i, n_edges, n_path,
                       mazes->max_edges, mazes->max_path);
    }
    clew_status status = check_cells(edges, 2 * (size_t)n_edges, grid, i, "a cell of an edge,", err);
    status = status ? status : check_cells(mazes->ends + 2 * i, 1, grid, i, "the origin", err);
    status = status ? status : check_cells(mazes->ends + 2 * i + 1, 1, grid, i, "the target", err);
    status = status
                 ? status
                 : check_cells(mazes->path + i * mazes->max_path, (size_t)n_path, grid, i, "a cell of the path,", err);
    if (status != CLEW_OK) {
      return status;
    }
    for (int32_t e = 0; e < n_edges; e++) {
      const clew_cell a = edges[2 * e], b = edges[2 * e + 1];
      const int rows = a.row > b.row ? a.row - b.row : b.row - a.row,
                cols = a.col > b.col ? a.col - b.col : b.col - a.col;
      if (rows + cols != 1) {
        return clew_fail(err, CLEW_ERROR_VALUE, "maze %zu: edge %d joins (%d,%d) and (%d,%d), which are no neighbours",
                         i, e, a.row, a.col, b.row, b.col);
      }
    }
  }
  return CLEW_OK;
}

/* ---- Hashes, paths, distances ----------------------------------------------------------------------------------- */

uint64_t clew_maze_hash(const clew_cell *edges, int32_t n_edges, int32_t grid) {
  uint64_t sum = 0;
  for (int32_t i = 0; i < n_edges; i++) {
    const uint64_t a = (uint64_t)(edges[2 * i].row * grid + edges[2 * i].col);
    const uint64_t b = (uint64_t)(edges[2 * i + 1].row * grid + edges[2 * i + 1].col);
    sum += clew_maze_mix(a < b ? a << 16 | b : b << 16 | a); /* a sum does not know the order */
  }
  return clew_maze_mix(sum ^ clew_maze_mix((uint64_t)grid << 32));
}

void clew_maze_hashes(uint64_t *hashes, const clew_mazes *mazes) {
  for (size_t i = 0; i < mazes->n; i++) {
    hashes[i] = clew_maze_hash(mazes->edges + 2 * i * mazes->max_edges, mazes->n_edges[i], mazes->grids[i]);
  }
}

clew_status clew_maze_paths(clew_mazes *mazes, clew_error *err) {
  clew_maze_graph graph;
  for (size_t i = 0; i < mazes->n; i++) {
    const int32_t grid = mazes->grids[i];
    if (mazes->max_path < (size_t)(grid * grid)) {
      return clew_fail(err, CLEW_ERROR_SHAPE, "maze %zu: room for a path of %zu cells, the maze has %d", i,
                       mazes->max_path, grid * grid);
    }
    const clew_cell origin = mazes->ends[2 * i], target = mazes->ends[2 * i + 1];
    clew_maze_graph_of(&graph, mazes->edges + 2 * i * mazes->max_edges, mazes->n_edges[i], grid);
    mazes->n_path[i] = clew_maze_shortest(mazes->path + i * mazes->max_path, &graph, origin.row * grid + origin.col,
                                          target.row * grid + target.col);
  }
  return CLEW_OK;
}

clew_status clew_maze_distances(int16_t *distances, const clew_mazes *mazes, clew_error *err) {
  clew_maze_graph graph;
  for (size_t i = 0; i < mazes->n; i++) {
    const int32_t grid = mazes->grids[i], cells = grid * grid, first = mazes->grids[0];
    if (grid != first) {
      return clew_fail(err, CLEW_ERROR_SHAPE,
                       "distances of mazes of one grid only: maze %zu is %d × %d, maze 0 %d × %d", i, grid, grid, first,
                       first);
    }
    clew_maze_graph_of(&graph, mazes->edges + 2 * i * mazes->max_edges, mazes->n_edges[i], grid);
    for (int32_t from = 0; from < cells; from++) {
      clew_maze_flood(distances + (i * (size_t)cells + (size_t)from) * (size_t)cells, &graph, from, -1);
    }
  }
  return CLEW_OK;
}

/* ---- Tokens ----------------------------------------------------------------------------------------------------- */

clew_status clew_maze_lengths(int32_t *lengths, const clew_mazes *mazes, const clew_maze_vocabulary *vocabulary,
                              bool with_path, clew_error *err) {
  for (size_t i = 0; i < mazes->n; i++) {
    const int32_t grid = mazes->grids[i], side = vocabulary->side;
    if (grid > side) {
      return clew_fail(err, CLEW_ERROR_TOKEN, "maze %zu has a grid of %d × %d, larger than the vocabulary's %d × %d", i,
                       grid, grid, side, side);
    }
    lengths[i] = 2 + 4 * mazes->n_edges[i] + 6 + (with_path ? 2 + mazes->n_path[i] : 0);
  }
  return CLEW_OK;
}

void clew_maze_tokens(int32_t *tokens, const clew_mazes *mazes, const int32_t *lengths,
                      const clew_maze_vocabulary *vocabulary, bool with_path) {
  const clew_maze_vocabulary v = *vocabulary;
#define CELL(c) v.cells[(c).row * v.side + (c).col]
  for (size_t i = 0; i < mazes->n; i++) {
    const clew_cell *edge = mazes->edges + 2 * i * mazes->max_edges, *ends = mazes->ends + 2 * i;
    int32_t *at = tokens;
    *at++ = v.adjacency_start;
    for (int32_t e = 0; e < mazes->n_edges[i]; e++, edge += 2, at += 4) {
      at[0] = CELL(edge[0]), at[1] = v.connector, at[2] = CELL(edge[1]), at[3] = v.line_end;
    }
    *at++ = v.adjacency_end;
    *at++ = v.origin_start, *at++ = CELL(ends[0]), *at++ = v.origin_end;
    *at++ = v.target_start, *at++ = CELL(ends[1]), *at++ = v.target_end;
    if (with_path) {
      const clew_cell *path = mazes->path + i * mazes->max_path;
      *at++ = v.path_start;
      for (int32_t k = 0; k < mazes->n_path[i]; k++) {
        *at++ = CELL(path[k]);
      }
      *at++ = v.path_end;
    }
    tokens += lengths[i];
  }
#undef CELL
}

/* ---- Guesses ---------------------------------------------------------------------------------------------------- */

/* The number of a token's cell, row by row of a grid; −1 where it has none there. */
static int32_t cell_of(int32_t token, const clew_maze_vocabulary *v, int32_t grid) {
  for (int32_t row = 0; row < grid; row++) {
    for (int32_t col = 0; col < grid; col++) {
      if (v->cells[row * v->side + col] == token) {
        return row * grid + col;
      }
    }
  }
  return -1;
}

static int32_t apart(int32_t a, int32_t b, int32_t grid) { return abs(a / grid - b / grid) + abs(a % grid - b % grid); }

/* Where a walk goes from a cell that it came to from `back`; −1: nowhere. distance: [grid²] to the target;
 * seen: [grid²] visits. */
static int32_t next_cell(const clew_maze_graph *graph, const int16_t *distance, const int32_t *seen, int32_t here,
                         int32_t back, int32_t target) {
  const int32_t grid = graph->grid, step[CLEW_MAZE_WAYS] = {-grid, -1, 1, grid};
  int32_t best = -1;
  int64_t least = INT64_MAX;
  for (int way = 0; way < CLEW_MAZE_WAYS; way++) {
    if (graph->open[here] >> way & 1) {
      const int32_t cell = here + step[way];
      const bool farther = distance[cell] >= distance[here];
      const int64_t cost = ((((int64_t)(cell == back) << 1 | farther) << 32) + seen[cell]) * (2 * CLEW_MAZE_MAX) +
                           apart(cell, target, grid);
      if (cost < least) {
        best = cell, least = cost;
      }
    }
  }
  return best;
}

void clew_maze_guess(int32_t *guesses, int32_t *counts, const clew_mazes *mazes, const clew_maze_walks *walks,
                     const clew_maze_vocabulary *vocabulary) {
  const int32_t *said = walks->said;
  for (size_t i = 0; i < walks->n; said += walks->lengths[i], guesses += walks->most[i], i++) {
    const size_t maze = (size_t)walks->mazes[i];
    const int32_t grid = mazes->grids[maze], length = walks->lengths[i], most = walks->most[i];
    const clew_cell *ends = mazes->ends + 2 * maze;
    const int32_t origin = ends[0].row * grid + ends[0].col, target = ends[1].row * grid + ends[1].col;
    clew_maze_graph graph;
    int16_t distance[CLEW_MAZE_CELLS];
    int32_t seen[CLEW_MAZE_CELLS] = {0}, here = -1, back = -1, n = 0;
    clew_maze_graph_of(&graph, mazes->edges + 2 * maze * mazes->max_edges, mazes->n_edges[maze], grid);
    clew_maze_flood(distance, &graph, target, -1);
    for (int32_t t = 0; t < length; t++) {
      back = here, here = cell_of(said[t], vocabulary, grid);
      seen[here < 0 ? 0 : here] += here >= 0;
    }
    if (length == 0 && most > 0) {
      guesses[n++] = vocabulary->path_start;
    }
    bool begins = length == 0 || said[length - 1] == vocabulary->path_start;
    while (n < most && (begins || (here >= 0 && here != target))) {
      const int32_t cell = begins ? origin : next_cell(&graph, distance, seen, here, back, target);
      if (cell < 0) {
        break;
      }
      guesses[n++] = vocabulary->cells[cell / grid * vocabulary->side + cell % grid];
      seen[cell]++;
      back = here, here = cell, begins = false;
    }
    counts[i] = n;
  }
}
