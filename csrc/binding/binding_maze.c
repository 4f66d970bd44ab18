/* Mazes: batches are tuples of arrays that Python owns,
 *   (grids [n], edges [n, E, 2, 2], n_edges [n], ends [n, 2, 2], path [n, P, 2], n_path [n]),
 * cells and grids uint8, counts int32. */
#include "binding.h"
#include "maze.h"

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
    clew_raise(clew_module_state(module), &err);
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
  return status == CLEW_OK ? Py_NewRef(Py_None) : clew_raise(clew_module_state(module), &err);
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
    return clew_raise(clew_module_state(module), &err);
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
    return clew_raise(clew_module_state(module), &err);
  }
  return distances;
}

/* Reads a vocabulary, borrowed: ids of the ten tokens in the struct's order, and of cells; −1 with an exception. */
static int read_vocabulary(clew_maze_vocabulary *out, PyObject *specials, PyObject *cells) {
  PyArrayObject *s = (PyArrayObject *)specials, *c = (PyArrayObject *)cells;
  if (!PyArray_Check(specials) || PyArray_TYPE(s) != NPY_INT32 || PyArray_SIZE(s) != 10 || !PyArray_ISCARRAY_RO(s) ||
      !PyArray_Check(cells) || PyArray_TYPE(c) != NPY_INT32 || PyArray_NDIM(c) != 2 || !PyArray_ISCARRAY_RO(c) ||
      PyArray_DIM(c, 0) != PyArray_DIM(c, 1) || PyArray_DIM(c, 0) > CLEW_MAZE_MAX) {
    PyErr_SetString(PyExc_ValueError, "a vocabulary of mazes: specials must be int32 [10], cells int32 [side, side], "
                                      "contiguous");
    return -1;
  }
  const int32_t *id = PyArray_DATA(s);
  *out = (clew_maze_vocabulary){.adjacency_start = id[0],
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
  return 0;
}

PyObject *clew_py_maze_tokens(PyObject *module, PyObject *args) {
  PyObject *batch, *specials, *cells;
  int with_path;
  clew_mazes mazes;
  clew_maze_vocabulary vocabulary;
  if (!PyArg_ParseTuple(args, "OOOp", &batch, &specials, &cells, &with_path) ||
      read_checked(&mazes, module, batch, 0) < 0 || read_vocabulary(&vocabulary, specials, cells) < 0) {
    return NULL;
  }
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
    return clew_raise(clew_module_state(module), &err);
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

/* Walks in mazes that a vocabulary has cells for; −1 with an exception. */
static int read_walks(clew_maze_walks *out, const clew_mazes *mazes, int32_t side, PyObject *which, PyObject *said,
                      PyObject *lengths, PyObject *most) {
  PyObject *const objects[4] = {which, lengths, most, said};
  for (int i = 0; i < 4; i++) {
    PyArrayObject *array = (PyArrayObject *)objects[i];
    if (!PyArray_Check(objects[i]) || PyArray_TYPE(array) != NPY_INT32 || PyArray_NDIM(array) != 1 ||
        !PyArray_ISCARRAY_RO(array) || (i < 3 && PyArray_SIZE(array) != PyArray_SIZE((PyArrayObject *)which))) {
      PyErr_SetString(PyExc_ValueError, "walks: mazes, lengths and most must be int32 [n], said int32 [Σ lengths]");
      return -1;
    }
  }
  *out = (clew_maze_walks){.n = (size_t)PyArray_SIZE((PyArrayObject *)which),
                           .mazes = PyArray_DATA((PyArrayObject *)which),
                           .said = PyArray_DATA((PyArrayObject *)said),
                           .lengths = PyArray_DATA((PyArrayObject *)lengths),
                           .most = PyArray_DATA((PyArrayObject *)most)};
  npy_intp total = 0;
  for (size_t i = 0; i < out->n; i++) {
    if (out->mazes[i] < 0 || (size_t)out->mazes[i] >= mazes->n || out->lengths[i] < 0 || out->most[i] < 0) {
      PyErr_Format(PyExc_ValueError, "walk %zu: maze %d of %zu, %d tokens, %d to guess", i, (int)out->mazes[i],
                   mazes->n, (int)out->lengths[i], (int)out->most[i]);
      return -1;
    }
    if (mazes->grids[out->mazes[i]] > side) {
      PyErr_Format(PyExc_ValueError, "walk %zu: a maze of %d rows, the vocabulary has %d", i,
                   (int)mazes->grids[out->mazes[i]], (int)side);
      return -1;
    }
    total += out->lengths[i];
  }
  if (total != PyArray_SIZE((PyArrayObject *)said)) {
    PyErr_Format(PyExc_ValueError, "walks: %zd tokens in all, lengths say %zd",
                 (Py_ssize_t)PyArray_SIZE((PyArrayObject *)said), (Py_ssize_t)total);
    return -1;
  }
  return 0;
}

PyObject *clew_py_maze_guess(PyObject *module, PyObject *args) {
  PyObject *batch, *specials, *cells, *which, *said, *lengths, *most;
  clew_mazes mazes;
  clew_maze_vocabulary vocabulary;
  clew_maze_walks walks;
  if (!PyArg_ParseTuple(args, "OOOOOOO", &batch, &specials, &cells, &which, &said, &lengths, &most) ||
      read_checked(&mazes, module, batch, 0) < 0 || read_vocabulary(&vocabulary, specials, cells) < 0 ||
      read_walks(&walks, &mazes, vocabulary.side, which, said, lengths, most) < 0) {
    return NULL;
  }
  npy_intp room = 0;
  const npy_intp n = (npy_intp)walks.n;
  for (npy_intp i = 0; i < n; i++) {
    room += walks.most[i];
  }
  PyObject *counts = PyArray_ZEROS(1, &n, NPY_INT32, 0), *guesses = PyArray_ZEROS(1, &room, NPY_INT32, 0);
  if (counts == NULL || guesses == NULL) {
    Py_XDECREF(counts);
    Py_XDECREF(guesses);
    return NULL;
  }
  Py_BEGIN_ALLOW_THREADS;
  clew_maze_guess(PyArray_DATA((PyArrayObject *)guesses), PyArray_DATA((PyArrayObject *)counts), &mazes, &walks,
                  &vocabulary);
  Py_END_ALLOW_THREADS;
  return Py_BuildValue("NN", guesses, counts);
}
