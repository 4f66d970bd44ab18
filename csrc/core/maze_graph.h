/* One maze as its cells see it; shared by the files of the maze generator. Cells are numbered row by row. */
#ifndef CLEW_MAZE_GRAPH_H
#define CLEW_MAZE_GRAPH_H

#include "maze.h"

#define CLEW_MAZE_WAYS 4 /* up, left, right, down: neighbours in ascending order; way w leads back by 3 − w */

typedef struct clew_maze_graph {
  int32_t grid;
  uint8_t open[CLEW_MAZE_CELLS]; /* bit w: is there a way w? */
} clew_maze_graph;

static inline void clew_maze_connect(clew_maze_graph *graph, int32_t a, int32_t b) {
  const int32_t low = a < b ? a : b, high = a < b ? b : a;
  const int way = high - low == 1 ? 2 : 3;
  graph->open[low] |= (uint8_t)(1 << way);
  graph->open[high] |= (uint8_t)(1 << (3 - way));
}

/* The finaliser of SplitMix64 (Steele, Lea & Flood 2014). */
static inline uint64_t clew_maze_mix(uint64_t z) {
  z += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

/* edges: [n_edges, 2] */
void clew_maze_graph_of(clew_maze_graph *graph, const clew_cell *edges, int32_t n_edges, int32_t grid);
uint64_t clew_maze_hash(const clew_cell *edges, int32_t n_edges, int32_t grid);

/* Steps from one cell to each, −1: no way; stops once `until` is reached (−1: never). distance: [grid²] */
void clew_maze_flood(int16_t *distance, const clew_maze_graph *graph, int32_t from, int32_t until);

/* A shortest path; its number of cells, 0 where there is none. */
int32_t clew_maze_shortest(clew_cell *path, const clew_maze_graph *graph, int32_t origin, int32_t target);

#endif
