/* The maze generator: trees, paths, batches that do not depend on their cut, checks, cancelling. */
#include <math.h>

#include "maze.h"
#include "test.h"

enum { N = 300, GRID = 6, EDGES = 60, CELLS = 36 };

typedef struct batch {
  uint8_t grids[N];
  clew_cell edges[N * EDGES * 2], ends[N * 2], path[N * CELLS];
  int32_t n_edges[N], n_path[N];
} batch;

static clew_mazes view(batch *b, size_t first, size_t n) {
  return (clew_mazes){.n = n,
                      .max_edges = EDGES,
                      .max_path = CELLS,
                      .grids = b->grids + first,
                      .edges = b->edges + 2 * EDGES * first,
                      .n_edges = b->n_edges + first,
                      .ends = b->ends + 2 * first,
                      .path = b->path + CELLS * first,
                      .n_path = b->n_path + first};
}

static clew_maze_rules rules_of(clew_maze_kind kind) {
  return (clew_maze_rules){.kind = kind, .grid = GRID, .p = 0.3, .distinct = true, .seed = 7};
}

static int find(int *parent, int i) {
  while (parent[i] != i) {
    i = parent[i];
  }
  return i;
}

/* Components of the cells, and whether an edge closes a cycle. */
static int components(const clew_mazes *m, size_t i, bool *cycle) {
  int parent[CELLS], n = CELLS;
  *cycle = false;
  for (int c = 0; c < CELLS; c++) {
    parent[c] = c;
  }
  for (int32_t e = 0; e < m->n_edges[i]; e++) {
    const clew_cell *edge = m->edges + 2 * (i * EDGES + (size_t)e);
    const int a = find(parent, edge[0].row * GRID + edge[0].col), b = find(parent, edge[1].row * GRID + edge[1].col);
    *cycle = *cycle || a == b;
    n -= a != b;
    parent[a] = b;
  }
  return n;
}

static void test_kinds(void) {
  static batch b;
  clew_error err = {.message = ""};
  for (int kind = CLEW_MAZE_RDFS; kind <= CLEW_MAZE_PERCOLATION; kind++) {
    const clew_maze_rules rules = rules_of((clew_maze_kind)kind);
    clew_mazes m = view(&b, 0, N);
    CHECK(clew_maze_generate(&m, 0, &rules, NULL, &err) == CLEW_OK, "%s", err.message);
    CHECK(clew_maze_check(&m, &err) == CLEW_OK, "%s", err.message);
    bool any_cycle = false;
    for (size_t i = 0; i < N; i++) {
      bool cycle;
      const int n = components(&m, i, &cycle);
      any_cycle = any_cycle || cycle;
      if (kind == CLEW_MAZE_RDFS || kind == CLEW_MAZE_WILSON) {
        CHECK(n == 1 && !cycle && m.n_edges[i] == CELLS - 1);
      } else if (kind == CLEW_MAZE_FORKLESS) {
        CHECK(n == CELLS - m.n_edges[i] && !cycle);
      } else if (kind == CLEW_MAZE_PRDFS) {
        CHECK(n == 1);
      }
      CHECK(m.n_path[i] >= 2);
      CHECK(memcmp(&m.path[i * CELLS], &m.ends[2 * i], sizeof(clew_cell)) == 0);
      CHECK(memcmp(&m.path[i * CELLS + (size_t)m.n_path[i] - 1], &m.ends[2 * i + 1], sizeof(clew_cell)) == 0);
    }
    CHECK(any_cycle == (kind == CLEW_MAZE_PRDFS || kind == CLEW_MAZE_PERCOLATION));
  }
}

static void test_cuts_and_threads(void) {
  static batch whole, parts;
  const clew_maze_rules rules = rules_of(CLEW_MAZE_PRDFS);
  clew_error err;
  clew_mazes m = view(&whole, 0, N);
  clew_pool_resize(1);
  CHECK(clew_maze_generate(&m, 5, &rules, NULL, &err) == CLEW_OK);
  clew_pool_resize(3);
  for (size_t first = 0; first < N; first += 100) {
    m = view(&parts, first, 100);
    CHECK(clew_maze_generate(&m, 5 + first, &rules, NULL, &err) == CLEW_OK);
  }
  clew_pool_resize(1);
  CHECK(memcmp(&whole, &parts, sizeof whole) == 0);
}

/* A ring of four cells, in the upper left corner of a 3 × 3 grid, and nothing else. */
static void test_paths_and_distances(void) {
  uint8_t grid = 3;
  clew_cell edges[8] = {{0, 0}, {0, 1}, {1, 1}, {0, 1}, {1, 0}, {1, 1}, {0, 0}, {1, 0}}, path[9] = {{0}};
  clew_cell ends[2] = {{1, 1}, {0, 0}};
  int32_t n_edges = 4, n_path = 0;
  clew_mazes m = {1, 4, 9, &grid, edges, &n_edges, ends, path, &n_path};
  clew_error err = {.message = ""};
  CHECK(clew_maze_paths(&m, &err) == CLEW_OK && n_path == 3);
  CHECK(path[1].row == 0 && path[1].col == 1, "up before left");
  ends[1] = (clew_cell){2, 2};
  CHECK(clew_maze_paths(&m, &err) == CLEW_OK && n_path == 0, "no way");
  int16_t distances[81];
  CHECK(clew_maze_distances(distances, &m, &err) == CLEW_OK);
  CHECK(distances[0] == 0 && distances[4] == 2 && distances[3 * 9 + 1] == 2 && distances[8] == -1 &&
        distances[80] == 0);
  m.max_path = 8;
  CHECK(clew_maze_paths(&m, &err) == CLEW_ERROR_SHAPE && strstr(err.message, "room for a path of 8 cells"));
}

static void test_tokens(void) {
  uint8_t grid = 2;
  clew_cell edges[4] = {{0, 1}, {0, 0}, {0, 1}, {1, 1}}, path[4] = {{0, 0}, {0, 1}, {1, 1}};
  clew_cell ends[2] = {{0, 0}, {1, 1}};
  int32_t n_edges = 2, n_path = 3, length = 0, tokens[22];
  const int32_t cells[4] = {20, 21, 22, 23};
  const clew_mazes m = {1, 2, 4, &grid, edges, &n_edges, ends, path, &n_path};
  clew_maze_vocabulary v = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 2, cells};
  clew_error err = {.message = ""};
  CHECK(clew_maze_lengths(&length, &m, &v, true, &err) == CLEW_OK && length == 21);
  clew_maze_tokens(tokens, &m, &length, &v, true);
  const int32_t expected[21] = {0, 21, 8, 20, 9, 21, 8, 23, 9, 1, 4, 20, 5, 2, 23, 3, 6, 20, 21, 23, 7};
  CHECK(memcmp(tokens, expected, sizeof expected) == 0);
  CHECK(clew_maze_lengths(&length, &m, &v, false, &err) == CLEW_OK && length == 16);
  v.side = 1;
  CHECK(clew_maze_lengths(&length, &m, &v, true, &err) == CLEW_ERROR_TOKEN && strstr(err.message, "larger than"), "%s",
        err.message);
}

/* One walk's guess, as digits of cells: those of expected, and as many? */
static void check_guess(const char *expected, const char *said, int32_t most, const clew_mazes *m,
                        const clew_maze_vocabulary *v, int32_t maze) {
  int32_t tokens[16], guesses[16], count = -1, length = (int32_t)strlen(said);
  char found[17] = "";
  for (int32_t i = 0; i < length; i++) {
    tokens[i] = said[i] - '0';
  }
  const clew_maze_walks walks = {1, &maze, tokens, &length, &most};
  clew_maze_guess(guesses, &count, m, &walks, v);
  for (int32_t i = 0; i < count; i++) {
    found[i] = (char)(guesses[i] + '0');
  }
  CHECK(strcmp(found, expected) == 0, "behind \"%s\": %s, expected %s", said, found, expected);
}

/* Maze 0, cells by their tokens, from 2 to 8:   0 - 1 - 2     Maze 1, 2 by 2, from 0 to 4:   0 - 1
 *                                               |   |                                        |
 *                                               3   4 - 5                                    3   4
 *                                               |   |
 *                                               6   7   8 */
static void test_guesses(void) {
  uint8_t grids[2] = {3, 2};
  clew_cell edges[2][14] = {
      {{0, 0}, {0, 1}, {0, 1}, {0, 2}, {0, 0}, {1, 0}, {1, 0}, {2, 0}, {1, 1}, {0, 1}, {1, 1}, {1, 2}, {1, 1}, {2, 1}},
      {{0, 0}, {0, 1}, {1, 0}, {0, 0}}};
  clew_cell ends[2][2] = {{{0, 2}, {2, 1}}, {{0, 0}, {1, 1}}}, path[18] = {{0}};
  int32_t n_edges[2] = {7, 2}, n_path[2] = {0};
  const int32_t cells[9] = {0, 1, 2, 3, 4, 5, 6, 7, 8};
  const clew_mazes m = {2, 7, 9, grids, &edges[0][0], n_edges, &ends[0][0], path, n_path};
  const clew_maze_vocabulary v = {.path_start = 9, .side = 3, .cells = cells};
  check_guess("92147", "", 10, &m, &v, 0); /* <PATH_START>, the origin, the shortest path, and no more */
  check_guess("921", "", 3, &m, &v, 0);    /* as many as are wanted */
  check_guess("", "", 0, &m, &v, 0);
  check_guess("2147", "9", 10, &m, &v, 0);
  check_guess("147", "92", 10, &m, &v, 0);
  check_guess("3630147", "9210", 10, &m, &v, 0); /* not back, until nothing else is left */
  check_guess("147", "92141452", 10, &m, &v, 0); /* also through walls */
  check_guess("", "92147", 10, &m, &v, 0);       /* there already */
  check_guess("", "98", 10, &m, &v, 0);          /* no way from a cell that is cut off */
  check_guess("", "92:", 10, &m, &v, 0);         /* behind what is no cell */
  check_guess("90103010", "", 8, &m, &v, 1);     /* no way to the target: where it was less often */
}

static void test_walks_share_a_call(void) {
  uint8_t grid = 2;
  clew_cell edges[6] = {{0, 0}, {0, 1}, {0, 1}, {1, 1}, {0, 0}, {1, 0}}, ends[2] = {{0, 0}, {1, 1}}, path[4] = {{0}};
  int32_t n_edges = 3, n_path = 0;
  const int32_t cells[9] = {0, 1, 5, 2, 3, 6, 7, 8, 4}, which[3] = {0, 0, 0}, said[4] = {9, 0, 9, 2};
  const int32_t lengths[3] = {2, 0, 2}, most[3] = {4, 2, 3}, expected[9] = {1, 3, -1, -1, 9, 0, 0, 1, 3};
  const clew_mazes m = {1, 3, 4, &grid, edges, &n_edges, ends, path, &n_path};
  const clew_maze_vocabulary v = {.path_start = 9, .side = 3, .cells = cells};
  int32_t guesses[9], counts[3];
  memset(guesses, 255, sizeof guesses);
  clew_maze_guess(guesses, counts, &m, &(clew_maze_walks){3, which, said, lengths, most}, &v);
  CHECK(counts[0] == 2 && counts[1] == 2 && counts[2] == 3);
  CHECK(memcmp(guesses, expected, sizeof expected) == 0, "each in its own room, ids of the vocabulary");
}

static void test_hashes(void) {
  uint8_t grids[2] = {3, 3};
  clew_cell edges[8] = {{0, 0}, {0, 1}, {0, 1}, {1, 1}, {1, 1}, {0, 1}, {0, 1}, {0, 0}}, ends[4] = {{0, 0}}, path[2];
  int32_t n_edges[2] = {2, 2}, n_path[2] = {0, 0};
  const clew_mazes m = {2, 2, 1, grids, edges, n_edges, ends, path, n_path};
  uint64_t hashes[2];
  clew_maze_hashes(hashes, &m);
  CHECK(hashes[0] == hashes[1], "order and direction do not matter");
  n_edges[1] = 1;
  clew_maze_hashes(hashes, &m);
  CHECK(hashes[0] != hashes[1]);
}

static void test_parts(void) {
  static batch b;
  clew_error err;
  clew_maze_rules rules = rules_of(CLEW_MAZE_WILSON);
  rules.test_below = UINT64_MAX / 4;
  uint64_t hashes[N];
  for (int part = CLEW_MAZE_TRAIN; part <= CLEW_MAZE_TEST; part++) {
    rules.part = (clew_maze_part)part;
    clew_mazes m = view(&b, 0, N);
    CHECK(clew_maze_generate(&m, 0, &rules, NULL, &err) == CLEW_OK);
    clew_maze_hashes(hashes, &m);
    for (size_t i = 0; i < N; i++) {
      CHECK((hashes[i] < rules.test_below) == (part == CLEW_MAZE_TEST));
    }
  }
}

static int always(void *ctx) { return ++*(int *)ctx; }

static void test_refusals(void) {
  static batch b;
  clew_error err = {.message = ""};
  clew_mazes m = view(&b, 0, N);
  clew_maze_rules rules = rules_of(CLEW_MAZE_PERCOLATION);
  rules.p = 0;
  clew_pool_resize(3); /* the lowest is named whoever finds it */
  CHECK(clew_maze_generate(&m, 40, &rules, NULL, &err) == CLEW_ERROR_VALUE && strstr(err.message, "maze 40: none"),
        "%s", err.message);
  clew_pool_resize(1);
  rules.p = NAN;
  CHECK(clew_maze_generate(&m, 0, &rules, NULL, &err) == CLEW_ERROR_VALUE && strstr(err.message, "p = nan"), "%s",
        err.message);
  rules = rules_of(CLEW_MAZE_RDFS);
  m.max_edges = 34;
  CHECK(clew_maze_generate(&m, 0, &rules, NULL, &err) == CLEW_ERROR_SHAPE && strstr(err.message, "room for 34 edges"),
        "%s", err.message);
  m = view(&b, 0, N);
  rules.grid = 21;
  CHECK(clew_maze_generate(&m, 0, &rules, NULL, &err) == CLEW_ERROR_VALUE && strstr(err.message, "2 to 20"), "%s",
        err.message);
  rules.grid = GRID;
  int polls = 0;
  clew_cancel cancel = {.poll = always, .ctx = &polls, .last_poll = 1}; /* long ago */
  CHECK(clew_maze_generate(&m, 0, &rules, &cancel, &err) == CLEW_ERROR_CANCELLED && polls == 1, "%d polls", polls);

  CHECK(clew_maze_generate(&m, 0, &rules, NULL, &err) == CLEW_OK);
  b.edges[0] = (clew_cell){5, 6};
  CHECK(clew_maze_check(&m, &err) == CLEW_ERROR_VALUE && strstr(err.message, "maze 0: a cell of an edge, (5,6)"), "%s",
        err.message);
  b.edges[0] = (clew_cell){(uint8_t)(5 - b.edges[1].row), b.edges[1].col};
  b.edges[1].row = (uint8_t)(b.edges[0].row < 3 ? 5 : 0);
  CHECK(clew_maze_check(&m, &err) == CLEW_ERROR_VALUE && strstr(err.message, "which are no neighbours"), "%s",
        err.message);
  b.grids[0] = 0;
  CHECK(clew_maze_check(&m, &err) == CLEW_ERROR_VALUE && strstr(err.message, "a grid of 0"), "%s", err.message);
}

int main(void) {
  test_kinds();
  test_cuts_and_threads();
  test_paths_and_distances();
  test_tokens();
  test_guesses();
  test_walks_share_a_call();
  test_hashes();
  test_parts();
  test_refusals();
  return finish("test_maze");
}
