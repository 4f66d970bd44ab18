/* Mazes: batches are tuples of arrays that Python owns,
 *   (grids [n], edges [n, E, 2, 2], n_edges [n], ends [n, 2, 2], path [n, P, 2], n_path [n]),
 * cells and grids uint8, counts int32. */
#include "binding.h"
#include "maze.h"

static clew_state *state_of(PyObject *module) { return PyModule_GetState(module); }

/* The contiguous, writable array number i of a batch; NULL with an exception. */
static PyArrayObject *batch_array(PyObject *batch, Py_ssize_t i, int typenum, int n_dims) {
  static const char *const names[] = {"grids", "edges", "n_edges", "ends", "path", "n_path"};
  PyArrayObject *array = (PyArrayObject *)PyTuple_GET_ITEM(batch, i);
  if (!PyArray_Check((PyObject *)array) || PyArray_TYPE(array) != typenum || PyArray_NDIM(array) != n_dims ||
      !PyArray_ISCARRAY_RO(array)) {
    PyErr_Format(PyExc_TypeError, "a batch of mazes: %s must be a contiguous array of %s with %d axes", names[i],
                 typenum == NPY_UINT8 ? "uint8" : "int32", n_dims);
    return NULL;
  }
  return array;
}

/* Reads a batch into *out, borrowed; −1 with an exception. */
static int read_batch(clew_mazes *out, PyObject *batch, int writeable) {
  static const int types[6] = {NPY_UINT8, NPY_UINT8, NPY_INT32, NPY_UINT8, NPY_UINT8, NPY_INT32};
  static const int n_dims[6] = {1, 4, 1, 3, 3, 1};
  PyArrayObject *arrays[6];
  if (!PyTuple_Check(batch) || PyTuple_GET_SIZE(batch) != 6) {
    PyErr_SetString(PyExc_TypeError, "a batch of mazes is a tuple of six arrays");
    return -1;
  }
  for (int i = 0; i < 6; i++) {
    arrays[i] = batch_array(batch, i, types[i], n_dims[i]);
    if (arrays[i] == NULL) {
      return -1;
    }
    const int last = PyArray_NDIM(arrays[i]) - 1;
    const int pairs = (last < 2 || PyArray_DIM(arrays[i], last) == 2) && (last < 3 || PyArray_DIM(arrays[i], 2) == 2) &&
                      (i != 3 || PyArray_DIM(arrays[i], 1) == 2);
    if (!pairs || PyArray_DIM(arrays[i], 0) != PyArray_DIM(arrays[0], 0) ||
        (writeable && !PyArray_ISWRITEABLE(arrays[i]))) {
      PyErr_SetString(PyExc_ValueError, "a batch of mazes: arrays do not fit each other");
      return -1;
    }
  }
  *out = (clew_mazes){.n = (size_t)PyArray_DIM(arrays[0], 0),
                      .max_edges = (size_t)PyArray_DIM(arrays[1], 1),
                      .max_path = (size_t)PyArray_DIM(arrays[4], 1),
                      .grids = PyArray_DATA(arrays[0]),
                      .edges = PyArray_DATA(arrays[1]),
                      .n_edges = PyArray_DATA(arrays[2]),
                      .ends = PyArray_DATA(arrays[3]),
                      .path = PyArray_DATA(arrays[4]),
                      .n_path = PyArray_DATA(arrays[5])};
  return 0;
}

/* The same, and checked by the core. */
static int read_checked(clew_mazes *out, PyObject *module, PyObject *batch, int writeable) {
  clew_error err;
  if (read_batch(out, batch, writeable) < 0) {
    return -1;
  }
  if (clew_maze_check(out, &err) != CLEW_OK) {
    clew_raise(state_of(module), &err);
    return -1;
  }
  return 0;
}

/* Flags [grid, grid], or NULL for None; −1 with an exception. */
static int read_flags(const uint8_t **out, PyObject *object, int32_t grid) {
  PyArrayObject *array = (PyArrayObject *)object;
  *out = NULL;
  if (object == Py_None) {
    return 0;
  }
  if (!PyArray_Check(object) || PyArray_TYPE(array) != NPY_UINT8 || !PyArray_ISCARRAY_RO(array) ||
      PyArray_SIZE(array) != (npy_intp)grid * grid) {
    PyErr_SetString(PyExc_ValueError, "allowed cells must be a contiguous uint8 array [grid, grid]");
    return -1;
  }
  *out = PyArray_DATA(array);
  return 0;
}

PyObject *clew_py_maze_generate(PyObject *module, PyObject *args) {
  PyObject *batch, *allowed_start, *allowed_target;
  unsigned long long first, test_below, seed;
  int kind, dead_end_start, dead_end_target, distinct, part;
  clew_maze_rules rules = {0};
  if (!PyArg_ParseTuple(args, "OKiidOOpppiKK", &batch, &first, &kind, &rules.grid, &rules.p, &allowed_start,
                        &allowed_target, &dead_end_start, &dead_end_target, &distinct, &part, &test_below, &seed)) {
    return NULL;
  }
  clew_mazes mazes;
  if (read_batch(&mazes, batch, 1) < 0 || read_flags(&rules.allowed_start, allowed_start, rules.grid) < 0 ||
      read_flags(&rules.allowed_target, allowed_target, rules.grid) < 0) {
    return NULL;
  }
  rules.kind = (clew_maze_kind)kind, rules.part = (clew_maze_part)part;
  rules.dead_end_start = dead_end_start, rules.dead_end_target = dead_end_target, rules.distinct = distinct;
  rules.test_below = test_below, rules.seed = seed;
  clew_error err;
  clew_poll_state poll;
  clew_cancel cancel = {.poll = clew_poll_signals, .ctx = &poll};
  poll.thread = PyEval_SaveThread();
  const clew_status status = clew_maze_generate(&mazes, first, &rules, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  if (status == CLEW_ERROR_CANCELLED && PyErr_Occurred()) {
    return NULL;
  }
  return status == CLEW_OK ? Py_NewRef(Py_None) : clew_raise(state_of(module), &err);
}

PyObject *clew_py_maze_hashes(PyObject *module, PyObject *batch) {
  clew_mazes mazes;
  if (read_checked(&mazes, module, batch, 0) < 0) {
    return NULL;
  }
  const npy_intp n = (npy_intp)mazes.n;
  PyObject *hashes = PyArray_SimpleNew(1, &n, NPY_UINT64);
  if (hashes != NULL) {
    clew_maze_hashes(PyArray_DATA((PyArrayObject *)hashes), &mazes);
  }
  return hashes;
}

PyObject *clew_py_maze_paths(PyObject *module, PyObject *batch) {
  clew_mazes mazes;
  if (read_checked(&mazes, module, batch, 1) < 0) {
    return NULL;
  }
  clew_error err;
  if (clew_maze_paths(&mazes, &err) != CLEW_OK) {
    return clew_raise(state_of(module), &err);
  }
  Py_RETURN_NONE;
}

PyObject *clew_py_maze_distances(PyObject *module, PyObject *batch) {
  clew_mazes mazes;
  if (read_checked(&mazes, module, batch, 0) < 0) {
    return NULL;
  }
  const npy_intp cells = mazes.n ? mazes.grids[0] * mazes.grids[0] : 0;
  const npy_intp shape[3] = {(npy_intp)mazes.n, cells, cells};
  PyObject *distances = PyArray_SimpleNew(3, shape, NPY_INT16);
  if (distances == NULL) {
    return NULL;
  }
  clew_error err;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = clew_maze_distances(PyArray_DATA((PyArrayObject *)distances), &mazes, &err);
  Py_END_ALLOW_THREADS;
  if (status != CLEW_OK) {
    Py_DECREF(distances);
    return clew_raise(state_of(module), &err);
  }
  return distances;
}

PyObject *clew_py_maze_tokens(PyObject *module, PyObject *args) {
  PyObject *batch, *specials, *cells;
  int with_path;
  clew_mazes mazes;
  if (!PyArg_ParseTuple(args, "OOOp", &batch, &specials, &cells, &with_path) ||
      read_checked(&mazes, module, batch, 0) < 0) {
    return NULL;
  }
  PyArrayObject *s = (PyArrayObject *)specials, *c = (PyArrayObject *)cells;
  if (!PyArray_Check(specials) || PyArray_TYPE(s) != NPY_INT32 || PyArray_SIZE(s) != 10 || !PyArray_ISCARRAY_RO(s) ||
      !PyArray_Check(cells) || PyArray_TYPE(c) != NPY_INT32 || PyArray_NDIM(c) != 2 || !PyArray_ISCARRAY_RO(c) ||
      PyArray_DIM(c, 0) != PyArray_DIM(c, 1) || PyArray_DIM(c, 0) > CLEW_MAZE_MAX) {
    PyErr_SetString(PyExc_ValueError, "maze_tokens: specials must be int32 [10], cells int32 [side, side], contiguous");
    return NULL;
  }
  const int32_t *id = PyArray_DATA(s);
  const clew_maze_vocabulary vocabulary = {.adjacency_start = id[0],
                                           .adjacency_end = id[1],
                                           .target_start = id[2],
                                           .target_end = id[3],
                                           .origin_start = id[4],
                                           .origin_end = id[5],
                                           .path_start = id[6],
                                           .path_end = id[7],
                                           .connector = id[8],
                                           .line_end = id[9],
                                           .side = (int32_t)PyArray_DIM(c, 0),
                                           .cells = PyArray_DATA(c)};
  const npy_intp n = (npy_intp)mazes.n;
  PyObject *lengths = PyArray_SimpleNew(1, &n, NPY_INT32), *tokens = NULL;
  if (lengths == NULL) {
    return NULL;
  }
  int32_t *length = PyArray_DATA((PyArrayObject *)lengths);
  npy_intp total = 0;
  clew_error err;
  if (clew_maze_lengths(length, &mazes, &vocabulary, with_path, &err) != CLEW_OK) {
    Py_DECREF(lengths);
    return clew_raise(state_of(module), &err);
  }
  for (npy_intp i = 0; i < n; i++) {
    total += length[i];
  }
  tokens = PyArray_SimpleNew(1, &total, NPY_INT32);
  if (tokens == NULL) {
    Py_DECREF(lengths);
    return NULL;
  }
  int32_t *out = PyArray_DATA((PyArrayObject *)tokens);
  Py_BEGIN_ALLOW_THREADS;
  clew_maze_tokens(out, &mazes, length, &vocabulary, with_path);
  Py_END_ALLOW_THREADS;
  return Py_BuildValue("NN", tokens, lengths);
}
