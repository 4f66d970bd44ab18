/* The extension module clew._core. */
#define CLEW_IMPORT_NUMPY
#include <errno.h>

#include "binding.h"
#include "product.h"
#include "sample.h"

/* ---- Errors --------------------------------------------------------------------------------------------------- */

clew_state *clew_state_of(PyTypeObject *type) { return PyModule_GetState(PyType_GetModule(type)); }

PyObject *clew_raise(const clew_state *state, const clew_error *err) {
  if (err->status == CLEW_ERROR_CANCELLED && PyErr_Occurred()) {
    return NULL; /* the signal handler's own exception */
  }
  PyErr_SetString(state->errors[err->status], err->message);
  return NULL;
}

/* ---- Memory --------------------------------------------------------------------------------------------------- */

/* empty(shape: tuple[int, ...], dtype) -> writable array in a slab */
static PyObject *core_empty(PyObject *module, PyObject *args) {
  PyObject *shape_object;
  PyArray_Descr *descr = NULL;
  if (!PyArg_ParseTuple(args, "O!O&", &PyTuple_Type, &shape_object, PyArray_DescrConverter, &descr)) {
    return NULL;
  }
  const int typenum = descr->type_num;
  const int plain = (PyTypeNum_ISNUMBER(typenum) || PyTypeNum_ISBOOL(typenum)) && PyArray_ISNBO(descr->byteorder);
  size_t bytes = (size_t)PyDataType_ELSIZE(descr);
  Py_DECREF(descr);
  if (!plain) { /* objects would be read as pointers; lengths and byte orders would be lost */
    PyErr_SetString(PyExc_TypeError, "dtype must be a number or bool in native byte order");
    return NULL;
  }
  npy_intp shape[NPY_MAXDIMS];
  const Py_ssize_t n_dims = PyTuple_GET_SIZE(shape_object);
  if (n_dims > 8) {
    return PyErr_Format(PyExc_ValueError, "%zd axes, at most 8", n_dims);
  }
  for (Py_ssize_t d = 0; d < n_dims; d++) {
    shape[d] = PyNumber_AsSsize_t(PyTuple_GET_ITEM(shape_object, d), PyExc_MemoryError);
    if (shape[d] == -1 && PyErr_Occurred()) {
      return NULL;
    }
    if (shape[d] < 0) {
      return PyErr_Format(PyExc_ValueError, "axis %zd has length %zd", d, (Py_ssize_t)shape[d]);
    }
    if (__builtin_mul_overflow(bytes, (size_t)shape[d], &bytes)) {
      return PyErr_Format(PyExc_MemoryError, "out of memory: axis %zd has length %zd", d, (Py_ssize_t)shape[d]);
    }
  }
  clew_slab *slab = clew_slab_new(bytes);
  if (slab == NULL) {
    return PyErr_Format(clew_module_state(module)->errors[CLEW_ERROR_MEMORY], "out of memory: %zu bytes", bytes);
  }
  PyObject *array = clew_slab_array(slab, 0, (int)n_dims, shape, typenum, 1);
  clew_slab_release(slab);
  return array;
}

/* map_file(path, slack=0) -> read-only uint8 array over the mapped file */
static PyObject *core_map_file(PyObject *module, PyObject *args) {
  (void)module;
  PyObject *path;
  Py_ssize_t slack = 0;
  if (!PyArg_ParseTuple(args, "O&|n", PyUnicode_FSConverter, &path, &slack)) {
    return NULL;
  }
  size_t size = 0;
  clew_slab *slab = NULL;
  int error = 0;
  if (slack >= 0) {
    Py_BEGIN_ALLOW_THREADS;
    slab = clew_slab_map_file(PyBytes_AS_STRING(path), (size_t)slack, &size);
    error = errno;
    Py_END_ALLOW_THREADS;
  } else {
    error = EINVAL;
  }
  if (slab == NULL) {
    errno = error;
    PyErr_SetFromErrnoWithFilenameObject(PyExc_OSError, path);
    Py_DECREF(path);
    return NULL;
  }
  Py_DECREF(path);
  const npy_intp shape[1] = {(npy_intp)size};
  PyObject *array = clew_slab_array(slab, 0, 1, shape, NPY_UINT8, 0);
  clew_slab_release(slab);
  return array;
}

static PyObject *core_in_slab(PyObject *module, PyObject *arg) {
  (void)module;
  return PyBool_FromLong(PyArray_Check(arg) && clew_in_slab((PyArrayObject *)arg));
}

static PyObject *core_idle_bytes(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  return PyLong_FromSize_t(clew_slab_idle());
}

static PyObject *core_set_idle_limit(PyObject *module, PyObject *arg) {
  (void)module;
  const size_t bytes = PyLong_AsSize_t(arg);
  if (bytes == (size_t)-1 && PyErr_Occurred()) {
    return NULL;
  }
  clew_slab_set_idle_limit(bytes);
  Py_RETURN_NONE;
}

static PyObject *core_trim(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  clew_slab_trim();
  Py_RETURN_NONE;
}

/* first_bad(array) -> flat index of the first value that is NaN or infinite, or -1 */
static PyObject *core_first_bad(PyObject *module, PyObject *arg) {
  (void)module;
  PyArrayObject *array = (PyArrayObject *)arg;
  if (!PyArray_Check(arg) || PyArray_NDIM(array) > 3 || PyArray_NDIM(array) < 1 ||
      (PyArray_TYPE(array) != NPY_FLOAT32 && PyArray_TYPE(array) != NPY_FLOAT64) || !PyArray_ISALIGNED(array)) {
    PyErr_SetString(PyExc_TypeError, "first_bad takes an aligned float32 or float64 array with one to three axes");
    return NULL;
  }
  clew_tensor tensor = {.n_dims = PyArray_NDIM(array), .data = PyArray_DATA(array)};
  for (int d = 0; d < tensor.n_dims; d++) {
    tensor.shape[d] = (size_t)PyArray_DIM(array, d);
    tensor.strides[d] = PyArray_STRIDE(array, d) / PyArray_ITEMSIZE(array);
  }
  ptrdiff_t index;
  Py_BEGIN_ALLOW_THREADS;
  index = clew_tensor_check(&tensor, PyArray_TYPE(array) == NPY_FLOAT32 ? CLEW_FLOAT32 : CLEW_FLOAT64);
  Py_END_ALLOW_THREADS;
  return PyLong_FromSsize_t(index);
}

/* copy_finite(out, array) -> as first_bad, of an array that it copies */
static PyObject *core_copy_finite(PyObject *module, PyObject *args) {
  (void)module;
  PyArrayObject *out, *array;
  if (!PyArg_ParseTuple(args, "O!O!:copy_finite", &PyArray_Type, &out, &PyArray_Type, &array)) {
    return NULL;
  }
  const int type = PyArray_TYPE(out);
  if ((type != NPY_FLOAT32 && type != NPY_FLOAT64) || PyArray_TYPE(array) != type || !PyArray_ISCARRAY(out) ||
      !PyArray_ISCARRAY_RO(array) || !PyArray_SAMESHAPE(out, array)) {
    PyErr_SetString(PyExc_TypeError, "copy_finite takes two contiguous arrays of one shape, float32 or float64");
    return NULL;
  }
  void *to = PyArray_DATA(out), *from = PyArray_DATA(array);
  const size_t n = (size_t)PyArray_SIZE(out);
  ptrdiff_t index;
  Py_BEGIN_ALLOW_THREADS;
  index = clew_copy_check(to, from, n, type == NPY_FLOAT32 ? CLEW_FLOAT32 : CLEW_FLOAT64);
  Py_END_ALLOW_THREADS;
  return PyLong_FromSsize_t(index);
}

/* ---- Products ------------------------------------------------------------------------------------------------- */

/* The three axes of an operand, a missing batch axis first, as strides in elements. */
static int operand(ptrdiff_t strides[3], npy_intp shape[3], PyObject *object, const char *name, int typenum) {
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_Check(object) || PyArray_NDIM(array) < 2 || PyArray_NDIM(array) > 3 || PyArray_TYPE(array) != typenum ||
      !PyArray_ISALIGNED(array) || !clew_in_slab(array)) {
    PyErr_Format(PyExc_ValueError, "product: %s must be a 2-D or 3-D array of the common dtype, in slab memory", name);
    return -1;
  }
  const int batched = PyArray_NDIM(array) == 3;
  for (int d = 0; d < 3; d++) {
    const int axis = d - 1 + batched;
    shape[d] = axis < 0 ? 1 : PyArray_DIM(array, axis);
    strides[d] = axis < 0 ? 0 : PyArray_STRIDE(array, axis) / PyArray_ITEMSIZE(array);
    if (strides[d] < 0 || (d > 0 && strides[d] == 0 && shape[d] > 1)) {
      PyErr_Format(PyExc_ValueError, "product: axis %d of %s has stride %zd", axis, name, (Py_ssize_t)strides[d]);
      return -1;
    }
  }
  return 0;
}

/* sample(logits [rows, 1, vocab], streams, steps: int64 [rows], temperature, top_k, top_p, seed) -> ids, log_probs */
static PyObject *core_sample(PyObject *module, PyObject *args) {
  PyObject *logits, *streams, *steps;
  Py_ssize_t top_k;
  unsigned long long seed;
  clew_sampling how;
  if (!PyArg_ParseTuple(args, "OOOdndK", &logits, &streams, &steps, &how.temperature, &top_k, &how.top_p, &seed)) {
    return NULL;
  }
  PyArrayObject *x = (PyArrayObject *)logits;
  const int typenum = PyArray_Check(logits) ? PyArray_TYPE(x) : NPY_NOTYPE;
  if ((typenum != NPY_FLOAT32 && typenum != NPY_FLOAT64) || !PyArray_ISCARRAY_RO(x) || PyArray_NDIM(x) < 2 ||
      top_k < 0) {
    PyErr_SetString(PyExc_ValueError, "sample: logits must be contiguous, [rows, ..., vocab]");
    return NULL;
  }
  npy_intp rows = PyArray_DIM(x, 0);
  for (int i = 0; i < 2; i++) {
    PyArrayObject *a = (PyArrayObject *)(i == 0 ? streams : steps);
    if (!PyArray_Check((PyObject *)a) || PyArray_TYPE(a) != NPY_INT64 || !PyArray_ISCARRAY_RO(a) ||
        PyArray_SIZE(a) != rows) {
      return PyErr_Format(PyExc_ValueError, "sample: streams and steps must be contiguous int64 [%zd]", rows);
    }
  }
  how.top_k = (size_t)top_k, how.seed = seed;
  PyObject *ids = PyArray_SimpleNew(1, &rows, NPY_INT32), *log_probs = PyArray_SimpleNew(1, &rows, NPY_FLOAT64);
  if (ids == NULL || log_probs == NULL) {
    Py_XDECREF(ids);
    Py_XDECREF(log_probs);
    return NULL;
  }
  clew_error err;
  clew_status status;
  const size_t n = rows ? (size_t)(PyArray_SIZE(x) / rows) : 1;
  Py_BEGIN_ALLOW_THREADS;
  status = clew_sample(PyArray_DATA((PyArrayObject *)ids), PyArray_DATA((PyArrayObject *)log_probs), PyArray_DATA(x),
                       typenum == NPY_FLOAT32 ? CLEW_FLOAT32 : CLEW_FLOAT64, (size_t)rows, n, &how,
                       PyArray_DATA((PyArrayObject *)streams), PyArray_DATA((PyArrayObject *)steps), &err);
  Py_END_ALLOW_THREADS;
  if (status != CLEW_OK) {
    Py_DECREF(ids);
    Py_DECREF(log_probs);
    return clew_raise(clew_module_state(module), &err);
  }
  return Py_BuildValue("NN", ids, log_probs);
}

/* product(out, a, b): out [(batch,) m, n] = a [(batch,) m, k] @ b [(batch,) k, n] */
static PyObject *core_product(PyObject *module, PyObject *args) {
  (void)module;
  PyObject *out, *a, *b;
  if (!PyArg_ParseTuple(args, "OOO", &out, &a, &b)) {
    return NULL;
  }
  const int typenum = PyArray_Check(out) ? PyArray_TYPE((PyArrayObject *)out) : NPY_NOTYPE;
  if (typenum != NPY_FLOAT32 && typenum != NPY_FLOAT64) {
    PyErr_SetString(PyExc_ValueError, "product: out must be float32 or float64");
    return NULL;
  }
  clew_product_shape shape;
  npy_intp s_out[3], s_a[3], s_b[3];
  if (operand(shape.c, s_out, out, "out", typenum) < 0 || operand(shape.a, s_a, a, "a", typenum) < 0 ||
      operand(shape.b, s_b, b, "b", typenum) < 0) {
    return NULL;
  }
  if (s_a[0] != s_out[0] || s_b[0] != s_out[0] || s_a[1] != s_out[1] || s_b[2] != s_out[2] || s_a[2] != s_b[1] ||
      !PyArray_ISWRITEABLE((PyArrayObject *)out)) {
    PyErr_Format(PyExc_ValueError, "product: out [%zd, %zd, %zd] is not a [%zd, %zd, %zd] times b [%zd, %zd, %zd]",
                 s_out[0], s_out[1], s_out[2], s_a[0], s_a[1], s_a[2], s_b[0], s_b[1], s_b[2]);
    return NULL;
  }
  shape.batch = (size_t)s_out[0], shape.m = (size_t)s_out[1], shape.n = (size_t)s_out[2], shape.k = (size_t)s_a[2];
  void *data = PyArray_DATA((PyArrayObject *)out);
  const void *data_a = PyArray_DATA((PyArrayObject *)a), *data_b = PyArray_DATA((PyArrayObject *)b);
  Py_BEGIN_ALLOW_THREADS;
  if (typenum == NPY_FLOAT32) {
    clew_product_f32(data, data_a, data_b, &shape, NULL);
  } else {
    clew_product_f64(data, data_a, data_b, &shape, NULL);
  }
  Py_END_ALLOW_THREADS;
  Py_RETURN_NONE;
}

/* ---- Tables and settings -------------------------------------------------------------------------------------- */

/* sites() -> list of (name, axes, meaning, layered), in order of computation */
static PyObject *core_sites(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  PyObject *list = PyList_New(CLEW_N_SITES);
  for (int i = 0; i < CLEW_N_SITES && list != NULL; i++) {
    const clew_site_info *s = &clew_sites[i];
    PyObject *item = Py_BuildValue("sssO", s->name, s->axes, s->meaning, s->layered ? Py_True : Py_False);
    if (item == NULL) {
      Py_CLEAR(list);
    } else {
      PyList_SET_ITEM(list, i, item);
    }
  }
  return list;
}

/* weights() -> list of (name, axes, layered) */
static PyObject *core_weights(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  PyObject *list = PyList_New(CLEW_N_WEIGHTS);
  for (int i = 0; i < CLEW_N_WEIGHTS && list != NULL; i++) {
    const clew_weight_info *w = &clew_weights[i];
    PyObject *item = Py_BuildValue("ssO", w->name, w->axes, w->layered ? Py_True : Py_False);
    if (item == NULL) {
      Py_CLEAR(list);
    } else {
      PyList_SET_ITEM(list, i, item);
    }
  }
  return list;
}

static PyObject *core_set_num_threads(PyObject *module, PyObject *arg) {
  (void)module;
  const Py_ssize_t n = PyNumber_AsSsize_t(arg, NULL); /* what is too large becomes the largest */
  if (n == -1 && PyErr_Occurred()) {
    return NULL;
  }
  if (n < 1 || n > 256) {
    return PyErr_Format(PyExc_ValueError, "set_num_threads(%S): 1 to 256 threads", arg);
  }
  clew_set_threads((unsigned)n);
  Py_RETURN_NONE;
}

static PyObject *core_get_num_threads(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  return PyLong_FromUnsignedLong(clew_get_threads());
}

static PyObject *core_build_info(PyObject *module, PyObject *unused) {
  (void)module, (void)unused;
  return Py_BuildValue("{ssssssss}", "version", CLEW_VERSION, "kernels", clew_kernel_isa(), "blis_version",
                       clew_blas_release(), "blis_kernels", clew_blas_family());
}

static PyMethodDef core_methods[] = {
    {"empty", core_empty, METH_VARARGS, "empty(shape, dtype)\n--\n\nA writable array in a slab."},
    {"map_file", core_map_file, METH_VARARGS, "map_file(path, slack=0)\n--\n\nA read-only uint8 array over a file."},
    {"in_slab", core_in_slab, METH_O, "in_slab(array)\n--\n\nDoes the array's memory lie in a slab?"},
    {"idle_bytes", core_idle_bytes, METH_NOARGS, "idle_bytes()\n--\n\nBytes kept for reuse."},
    {"set_idle_limit", core_set_idle_limit, METH_O,
     "set_idle_limit(bytes)\n--\n\nHow many bytes of released memory are kept for reuse (1 GiB)."},
    {"trim", core_trim, METH_NOARGS, "trim()\n--\n\nGives idle memory back to the system."},
    {"first_bad", core_first_bad, METH_O, "first_bad(array)\n--\n\nFlat index of the first NaN or infinity, or -1."},
    {"copy_finite", core_copy_finite, METH_VARARGS,
     "copy_finite(out, array)\n--\n\nCopies; flat index of the first NaN or infinity, or -1."},
    {"product", core_product, METH_VARARGS,
     "product(out, a, b)\n--\n\nout = a @ b through the engine's own GEMM; all in slab memory."},
    {"sample", core_sample, METH_VARARGS,
     "sample(logits, streams, steps, temperature, top_k, top_p, seed)\n--\n\nA token for each row, and its "
     "log-probability."},
    {"nearest", clew_py_nearest, METH_VARARGS,
     "nearest(vectors, rows, k, metrics)\n--\n\nThe k rows nearest to each vector by each metric, and their scores."},
    {"histogram", clew_py_histogram, METH_VARARGS,
     "histogram(counts, rows, edges)\n--\n\nCounts the rows of each column in bins."},
    {"top_k", clew_py_top_k, METH_VARARGS,
     "top_k(values, where, rows, at)\n--\n\nKeeps the greatest values of each column, and where they were."},
    {"centre", clew_py_centre, METH_VARARGS, "centre(centred, mean, rows)\n--\n\nRows about the means of columns."},
    {"adamw", clew_py_adamw, METH_VARARGS,
     "adamw(parameters, gradients, m, v, decay, step, rate, beta1, beta2, eps, weight_decay, scale)\n--\n\n"
     "One step of AdamW in place; step [1] is counted up."},
    {"global_norm", clew_py_global_norm, METH_O, "global_norm(arrays)\n--\n\nThe norm of all values, in double."},
    {"accumulate", clew_py_accumulate, METH_VARARGS,
     "accumulate(sums, arrays, factor, total)\n--\n\nsums += factor arrays, total [1] += factor."},
    {"adaptive_parameters", clew_py_adaptive_parameters, METH_O,
     "adaptive_parameters(shape)\n--\n\nParameters of one constrained transformer."},
    {"adaptive_pass", clew_py_adaptive_pass, METH_VARARGS,
     "adaptive_pass(shape, parameters, centres, spread, variance, n, w, estimate, x, y, start, prediction, messages, "
     "directions, losses, gradient)\n--\n\nContexts through a constrained transformer, forward and backward."},
    {"adaptive_train", clew_py_adaptive_train, METH_VARARGS,
     "adaptive_train(shape, parameters, m, v, centres, spread, noise, seeds, losses, batch, first_step, horizon, rate, "
     "last_rate)\n--\n\nTrains constrained transformers side by side, in place."},
    {"programme_values", clew_py_programme_values, METH_VARARGS,
     "programme_values(values, first, halved, centres, probabilities, directions, heads, spread, noise, step, reach)"
     "\n--\n\nLeast expected posterior variance after each first set of actions."},
    {"reg_stream", clew_py_reg_stream, METH_VARARGS,
     "reg_stream(settings, X, y, first, last, yhat, w, variance, covariance)\n--\n\nEstimates from prefixes."},
    {"reg_state", clew_py_reg_state, METH_VARARGS,
     "reg_state(settings, batch, d, dtype)\n--\n\nThe state of a stream before its first example."},
    {"reg_update", clew_py_reg_update, METH_VARARGS,
     "reg_update(state, settings, x, y)\n--\n\nOne more example for each sequence."},
    {"reg_weights", clew_py_reg_weights, METH_VARARGS,
     "reg_weights(state, settings, w, covariance)\n--\n\nThe estimate from the examples so far."},
    {"reg_compare", clew_py_reg_compare, METH_VARARGS,
     "reg_compare(kind, out, X, y, queries, first, step, a, b)\n--\n\nKernel regression, neighbours, kernel ridge."},
    {"reg_dmmse", clew_py_reg_dmmse, METH_VARARGS,
     "reg_dmmse(yhat, w, evidence, X, y, tasks, log_prior, first, last, noise_var)\n--\n\nThe posterior mean over "
     "tasks."},
    {"maze_generate", clew_py_maze_generate, METH_VARARGS,
     "maze_generate(batch, first, kind, grid, p, allowed_start, allowed_target, dead_end_start, dead_end_target, "
     "distinct, part, test_below, seed)\n--\n\nFills a batch with mazes."},
    {"maze_hashes", clew_py_maze_hashes, METH_O, "maze_hashes(batch)\n--\n\nA number for each maze's walls."},
    {"maze_paths", clew_py_maze_paths, METH_O, "maze_paths(batch)\n--\n\nWrites each maze's shortest path."},
    {"maze_distances", clew_py_maze_distances, METH_O,
     "maze_distances(batch)\n--\n\nSteps between all cells of each maze."},
    {"maze_guess", clew_py_maze_guess, METH_VARARGS,
     "maze_guess(batch, specials, cells, mazes, said, lengths, most)\n--\n\nHow walks probably go on."},
    {"maze_tokens", clew_py_maze_tokens, METH_VARARGS,
     "maze_tokens(batch, specials, cells, with_path)\n--\n\nTokens of all mazes, and how many each has."},
    {"sites", core_sites, METH_NOARGS, "sites()\n--\n\nEvery capture site: (name, axes, meaning, layered)."},
    {"weights", core_weights, METH_NOARGS, "weights()\n--\n\nEvery weight: (name, axes, layered)."},
    {"set_num_threads", core_set_num_threads, METH_O, "set_num_threads(n)\n--\n\nThreads for the next run."},
    {"get_num_threads", core_get_num_threads, METH_NOARGS, "get_num_threads()\n--\n\nThreads that a run uses."},
    {"build_info", core_build_info, METH_NOARGS, "build_info()\n--\n\nVersion, kernels, BLIS's kernel family."},
    {NULL, NULL, 0, NULL}};

/* ---- The module ----------------------------------------------------------------------------------------------- */

static int core_exec(PyObject *module) {
  if (PyArray_ImportNumPyAPI() < 0) {
    return -1;
  }
  clew_state *state = clew_module_state(module);
  static const char *const names[] = {
      [CLEW_ERROR_SHAPE] = "ShapeError",  [CLEW_ERROR_SITE] = "SiteError",
      [CLEW_ERROR_TOKEN] = "TokenError",  [CLEW_ERROR_UNSUPPORTED] = "UnsupportedModelError",
      [CLEW_ERROR_VALUE] = "ConfigError", [CLEW_ERROR_CANCELLED] = NULL};
  PyObject *errors = PyImport_ImportModule("clew.errors");
  if (errors == NULL) {
    return -1;
  }
  state->errors[CLEW_ERROR_MEMORY] = Py_NewRef(PyExc_MemoryError);
  state->errors[CLEW_ERROR_CANCELLED] = Py_NewRef(PyExc_KeyboardInterrupt);
  for (int i = CLEW_ERROR_SHAPE; i <= CLEW_ERROR_VALUE; i++) {
    state->errors[i] = PyObject_GetAttrString(errors, names[i]);
    if (state->errors[i] == NULL) {
      Py_DECREF(errors);
      return -1;
    }
  }
  Py_DECREF(errors);
  state->model_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &clew_model_spec, NULL);
  state->plan_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &clew_plan_spec, NULL);
  if (state->model_type == NULL || state->plan_type == NULL || PyModule_AddType(module, state->model_type) < 0 ||
      PyModule_AddType(module, state->plan_type) < 0) {
    return -1;
  }
  return 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg) {
  clew_state *state = clew_module_state(module);
  for (int i = 0; i <= CLEW_ERROR_CANCELLED; i++) {
    Py_VISIT(state->errors[i]);
  }
  Py_VISIT(state->model_type);
  Py_VISIT(state->plan_type);
  return 0;
}

static int core_clear(PyObject *module) {
  clew_state *state = clew_module_state(module);
  for (int i = 0; i <= CLEW_ERROR_CANCELLED; i++) {
    Py_CLEAR(state->errors[i]);
  }
  Py_CLEAR(state->model_type);
  Py_CLEAR(state->plan_type);
  return 0;
}

static PyModuleDef_Slot core_slots[] = {{Py_mod_exec, core_exec}, {0, NULL}};

PyModuleDef clew_module = {.m_base = PyModuleDef_HEAD_INIT,
                           .m_name = "clew._core",
                           .m_doc = "The engine of clew.",
                           .m_size = sizeof(clew_state),
                           .m_methods = core_methods,
                           .m_slots = core_slots,
                           .m_traverse = core_traverse,
                           .m_clear = core_clear};

/* What threadpoolctl knows the library by. */
extern const char clew_thread_pool[];
__attribute__((visibility("default"))) const char clew_thread_pool[] = "clew";

PyMODINIT_FUNC PyInit__core(void) { return PyModuleDef_Init(&clew_module); }
