/* Mazes on square lattices: generators, endpoints, shortest paths, distances, hashes and tokens.
 *
 * A cell is (row, column). A maze is the list of its edges, pairs of neighbouring cells that are connected, in the
 * order and direction in which its tokens list them. Batches have fixed strides; what lies behind a maze's own edges
 * or path is 0. Maze i depends on the seed and on i alone, whatever the number of threads or the batch it is part of.
 */
#ifndef CLEW_MAZE_H
#define CLEW_MAZE_H

#include "clew.h"
#include "pool.h"

#define CLEW_MAZE_MAX 20 /* rows and columns */
#define CLEW_MAZE_CELLS (CLEW_MAZE_MAX * CLEW_MAZE_MAX)

typedef struct clew_cell {
  uint8_t row, col;
} clew_cell;

typedef enum clew_maze_kind {
  CLEW_MAZE_RDFS,       /* depth-first spanning tree */
  CLEW_MAZE_FORKLESS,   /* the same without going back: one self-avoiding walk */
  CLEW_MAZE_PRDFS,      /* RDFS, and each other lattice edge with probability p */
  CLEW_MAZE_WILSON,     /* uniform over spanning trees */
  CLEW_MAZE_PERCOLATION /* each lattice edge with probability p; endpoints in one random cell's component */
} clew_maze_kind;

typedef enum clew_maze_part { CLEW_MAZE_ALL, CLEW_MAZE_TRAIN, CLEW_MAZE_TEST } clew_maze_part;

typedef struct clew_maze_rules {
  clew_maze_kind kind;
  int32_t grid;                                  /* 2 … CLEW_MAZE_MAX */
  double p;                                      /* of PRDFS and PERCOLATION */
  const uint8_t *allowed_start, *allowed_target; /* [grid, grid] flags; NULL: every cell */
  bool dead_end_start, dead_end_target;          /* only cells with one neighbour */
  bool distinct;                                 /* origin ≠ target */
  clew_maze_part part;
  uint64_t test_below; /* a maze belongs to TEST when its hash is below this, else to TRAIN */
  uint64_t seed;
} clew_maze_rules;

/* A batch of mazes of at most max_edges edges and max_path cells of a path. */
typedef struct clew_mazes {
  size_t n, max_edges, max_path;
  uint8_t *grids;   /* [n] */
  clew_cell *edges; /* [n, max_edges, 2] */
  int32_t *n_edges; /* [n] */
  clew_cell *ends;  /* [n, 2]: origin, target */
  clew_cell *path;  /* [n, max_path], origin and target included */
  int32_t *n_path;  /* [n]; 0: the target cannot be reached */
} clew_mazes;

/* Edges that a maze of a kind has at most. */
size_t clew_maze_max_edges(clew_maze_kind kind, int32_t grid);

/* Mazes first … first + n − 1 of a seed. A maze that has no endpoints as the rules want them, or belongs to the other
 * part, is drawn again; CLEW_ERROR_VALUE where none of 10,000 fits. */
clew_status clew_maze_generate(clew_mazes *out, uint64_t first, const clew_maze_rules *rules, clew_cancel *cancel,
                               clew_error *err);

/* Do grids, edges, endpoints and paths of a batch lie where the functions below may read? Names the maze and the cell.
 */
clew_status clew_maze_check(const clew_mazes *mazes, clew_error *err);

/* A number for the walls of each maze, whatever order its edges are listed in. hashes: [n] */
void clew_maze_hashes(uint64_t *hashes, const clew_mazes *mazes);

/* Shortest paths between the endpoints, into mazes->path and n_path: of several, the one that goes to the first of up,
 * left, right, down at each step. */
clew_status clew_maze_paths(clew_mazes *mazes, clew_error *err);

/* Steps between each two cells, −1 where there is no way. distances: [n, side², side²] of mazes of one grid, side, that
 * of the first; others are refused. */
clew_status clew_maze_distances(int16_t *distances, const clew_mazes *mazes, clew_error *err);

/* How tokens are numbered. */
typedef struct clew_maze_vocabulary {
  int32_t adjacency_start, adjacency_end, target_start, target_end, origin_start, origin_end, path_start, path_end;
  int32_t connector, line_end;
  int32_t side;         /* cells (0, 0) … (side − 1, side − 1) */
  const int32_t *cells; /* [side, side] */
} clew_maze_vocabulary;

/* How many tokens each maze has. with_path: false leaves out <PATH_START> and what follows. lengths: [n]. Refuses mazes
 * that are larger than the vocabulary. */
clew_status clew_maze_lengths(int32_t *lengths, const clew_mazes *mazes, const clew_maze_vocabulary *vocabulary,
                              bool with_path, clew_error *err);

/* Tokens of each maze, one maze after the other. tokens: [Σ lengths]; lengths: [n], as above. */
void clew_maze_tokens(int32_t *tokens, const clew_mazes *mazes, const int32_t *lengths,
                      const clew_maze_vocabulary *vocabulary, bool with_path);

/* Walks so far: what is said behind the tokens of mazes. */
typedef struct clew_maze_walks {
  size_t n;
  const int32_t *mazes;   /* [n] which maze each is in */
  const int32_t *said;    /* [Σ lengths] tokens of one walk after the other */
  const int32_t *lengths; /* [n] */
  const int32_t *most;    /* [n] tokens to guess, at most */
} clew_maze_walks;

/* How walks probably go on: <PATH_START>, the origin, and then along connections, back only where nothing else is
 * left; nearer to the target rather than farther from it, else to the cell that was visited less often, else to the one
 * that lies nearest to the target as if there were no walls. A guess ends at the target, and is empty behind a token
 * that is neither <PATH_START> nor a cell of the maze. guesses: [Σ most], each walk's where its room begins;
 * counts: [n]. */
void clew_maze_guess(int32_t *guesses, int32_t *counts, const clew_mazes *mazes, const clew_maze_walks *walks,
                     const clew_maze_vocabulary *vocabulary);

#endif
