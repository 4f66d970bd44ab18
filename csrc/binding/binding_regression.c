/* Regression in context: arrays in, arrays filled. clew.regression checks values; here shapes, dtypes and layouts are
 * checked, so that no call reaches memory that is not there. */
#include "regression.h"

#include "binding.h"

static clew_state *state_of(PyObject *module) { return PyModule_GetState(module); }

typedef struct clew_poll {
  PyThreadState *thread; /* the calling thread's, while the GIL is released */
} clew_poll;

/* Takes the GIL and lets Python handle signals; an exception (KeyboardInterrupt) cancels the call. */
static int poll_signals(void *ctx) {
  clew_poll *poll = ctx;
  PyEval_RestoreThread(poll->thread);
  const int raised = PyErr_CheckSignals();
  poll->thread = PyEval_SaveThread();
  return raised;
}

static PyObject *finish(PyObject *module, clew_status status, const clew_error *err) {
  if (status == CLEW_OK) {
    Py_RETURN_NONE;
  }
  if (status == CLEW_ERROR_CANCELLED && PyErr_Occurred()) {
    return NULL; /* the signal handler's own exception */
  }
  return clew_raise(state_of(module), err);
}

/* ---- Arguments ------------------------------------------------------------------------------------------------ */

/* Data of a contiguous array of this dtype and size; None gives NULL where it may. −1 with an exception. */
static int read_data(void **data, PyObject *object, const char *name, int typenum, size_t size, int writeable,
                     int optional) {
  *data = NULL;
  if (optional && object == Py_None) {
    return 0;
  }
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_Check(object) || PyArray_TYPE(array) != typenum || !PyArray_ISCARRAY_RO(array) ||
      (writeable && !PyArray_ISWRITEABLE(array)) || (size_t)PyArray_SIZE(array) != size) {
    PyErr_Format(PyExc_ValueError, "%s must be a contiguous array of the common dtype with %zu values", name, size);
    return -1;
  }
  *data = PyArray_DATA(array);
  return 0;
}

/* A contiguous float32 or float64 array with these many axes, in slab memory, and its shape. */
static int read_slab(const void **data, npy_intp *shape, int *typenum, PyObject *object, const char *name, int n_dims) {
  PyArrayObject *array = (PyArrayObject *)object;
  const int type = PyArray_Check(object) ? PyArray_TYPE(array) : NPY_NOTYPE;
  if ((type != NPY_FLOAT32 && type != NPY_FLOAT64) || (*typenum != NPY_NOTYPE && type != *typenum) ||
      PyArray_NDIM(array) != n_dims || !PyArray_ISCARRAY_RO(array) || !clew_in_slab(array)) {
    PyErr_Format(PyExc_ValueError, "%s must be a contiguous array with %d axes, float32 or float64, in slab memory",
                 name, n_dims);
    return -1;
  }
  *typenum = type;
  *data = PyArray_DATA(array);
  for (int axis = 0; axis < n_dims; axis++) {
    shape[axis] = PyArray_DIM(array, axis);
  }
  return 0;
}

/* (kind, steps, lam, noise_var, alpha, tol, momentum, rates, gammas, matrices, mean, max_iterations) */
static int read_settings(clew_stream_settings *out, PyObject *tuple, size_t d, int typenum) {
  int kind;
  Py_ssize_t steps, max_iterations;
  PyObject *rates, *gammas, *matrices, *mean;
  *out = (clew_stream_settings){.d = d};
  if (!PyArg_ParseTuple(tuple, "indddddOOOOn", &kind, &steps, &out->lam, &out->noise_var, &out->alpha, &out->tol,
                        &out->momentum, &rates, &gammas, &matrices, &mean, &max_iterations)) {
    return -1;
  }
  if (kind < 0 || kind >= CLEW_N_STREAMS || steps < 0 || max_iterations < 0) {
    PyErr_SetString(PyExc_ValueError, "no such stream");
    return -1;
  }
  out->kind = (clew_stream)kind, out->steps = (size_t)steps, out->max_iterations = (size_t)max_iterations;
  const int stepped = kind == CLEW_STREAM_GD || kind == CLEW_STREAM_GD_PP;
  void *data[4];
  size_t n_rates = stepped ? out->steps : 1, n_matrices = d * d;
  if (kind == CLEW_STREAM_GD && matrices != Py_None) {
    out->n_matrices = PyArray_Check(matrices) && PyArray_NDIM((PyArrayObject *)matrices) == 3 ? out->steps : 1;
    n_matrices *= out->n_matrices;
  }
  if (read_data(&data[0], rates, "rates", NPY_FLOAT64, n_rates, 0, !stepped && kind != CLEW_STREAM_SGD) < 0 ||
      read_data(&data[1], gammas, "gammas", NPY_FLOAT64, out->steps, 0, kind != CLEW_STREAM_GD_PP) < 0 ||
      read_data(&data[2], matrices, "matrices", typenum, n_matrices, 0, kind != CLEW_STREAM_BAYES) < 0 ||
      read_data(&data[3], mean, "mean", typenum, d, 0, 1) < 0) {
    return -1;
  }
  out->rates = data[0], out->gammas = data[1], out->matrices = data[2], out->mean = data[3];
  return 0;
}

/* X and y of one dtype. */
static int read_examples(clew_examples *out, int *typenum, PyObject *x, PyObject *y) {
  npy_intp shape[3];
  void *data;
  *typenum = NPY_NOTYPE;
  if (read_slab(&out->x, shape, typenum, x, "X", 3) < 0) {
    return -1;
  }
  out->batch = (size_t)shape[0], out->n = (size_t)shape[1], out->d = (size_t)shape[2];
  if (read_data(&data, y, "y", *typenum, out->batch * out->n, 0, 0) < 0) {
    return -1;
  }
  out->y = data;
  return 0;
}

/* Rows of prefixes first … last, which are checked. */
static int read_rows(clew_examples *examples, size_t *rows, Py_ssize_t first, Py_ssize_t last) {
  if (first < 0 || last < first || (size_t)last > examples->n) {
    PyErr_Format(PyExc_ValueError, "prefixes %zd to %zd of %zu examples", first, last, examples->n);
    return -1;
  }
  examples->first = (size_t)first, examples->last = (size_t)last;
  *rows = examples->last - examples->first + 1;
  return 0;
}

/* ---- Streams -------------------------------------------------------------------------------------------------- */

PyObject *clew_py_reg_stream(PyObject *module, PyObject *args) {
  PyObject *settings_object, *x, *y, *yhat, *w, *variance, *covariance;
  Py_ssize_t first, last;
  clew_examples examples;
  clew_stream_settings settings;
  int typenum;
  size_t rows;
  if (!PyArg_ParseTuple(args, "OOOnnOOOO", &settings_object, &x, &y, &first, &last, &yhat, &w, &variance,
                        &covariance) ||
      read_examples(&examples, &typenum, x, y) < 0 || read_rows(&examples, &rows, first, last) < 0 ||
      read_settings(&settings, settings_object, examples.d, typenum) < 0) {
    return NULL;
  }
  clew_estimates out;
  const size_t all = examples.batch * rows, d = examples.d;
  if (read_data(&out.yhat, yhat, "yhat", typenum, all, 1, 1) < 0 ||
      read_data(&out.w, w, "w", typenum, all * d, 1, 1) < 0 ||
      read_data(&out.variance, variance, "variance", typenum, all, 1, 1) < 0 ||
      read_data(&out.covariance, covariance, "covariance", typenum, all * d * d, 1, 1) < 0) {
    return NULL;
  }
  if (settings.kind != CLEW_STREAM_BAYES && (out.variance != NULL || out.covariance != NULL)) {
    PyErr_SetString(PyExc_ValueError, "only Bayesian regression has a variance");
    return NULL;
  }
  clew_error err;
  clew_poll poll;
  clew_cancel cancel = {.poll = poll_signals, .ctx = &poll};
  poll.thread = PyEval_SaveThread();
  const clew_status status = typenum == NPY_FLOAT32 ? clew_stream_run_f32(&out, &examples, &settings, &cancel, &err)
                                                    : clew_stream_run_f64(&out, &examples, &settings, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  return finish(module, status, &err);
}

/* reg_state(settings, batch, d, dtype) -> state */
PyObject *clew_py_reg_state(PyObject *module, PyObject *args) {
  PyObject *settings_object;
  Py_ssize_t batch, d;
  PyArray_Descr *descr = NULL;
  clew_stream_settings settings;
  if (!PyArg_ParseTuple(args, "OnnO&", &settings_object, &batch, &d, PyArray_DescrConverter, &descr)) {
    return NULL;
  }
  const int typenum = descr->type_num;
  Py_DECREF(descr);
  if ((typenum != NPY_FLOAT32 && typenum != NPY_FLOAT64) || batch < 1 || d < 1) {
    PyErr_SetString(PyExc_ValueError, "a state needs a batch and d of at least 1, and float32 or float64");
    return NULL;
  }
  if (read_settings(&settings, settings_object, (size_t)d, typenum) < 0) {
    return NULL;
  }
  const int single = typenum == NPY_FLOAT32;
  const size_t bytes =
      single ? clew_stream_bytes_f32((size_t)batch, &settings) : clew_stream_bytes_f64((size_t)batch, &settings);
  clew_slab *slab = clew_slab_new(bytes);
  if (slab == NULL) {
    return PyErr_Format(PyExc_MemoryError, "out of memory: %zu bytes for the state of %zd sequences", bytes, batch);
  }
  if (single) {
    clew_stream_begin_f32(clew_slab_data(slab), (size_t)batch, &settings);
  } else {
    clew_stream_begin_f64(clew_slab_data(slab), (size_t)batch, &settings);
  }
  const npy_intp shape[1] = {(npy_intp)(bytes / (single ? sizeof(float) : sizeof(double)))};
  PyObject *array = clew_slab_array(slab, 0, 1, shape, typenum, 1);
  clew_slab_release(slab);
  (void)module;
  return array;
}

/* A state and the settings that it was made with. */
static int read_state(void **state, clew_stream_settings *settings, int *typenum, PyObject *state_object,
                      PyObject *settings_object, Py_ssize_t batch, Py_ssize_t d) {
  PyArrayObject *array = (PyArrayObject *)state_object;
  *typenum = PyArray_Check(state_object) ? PyArray_TYPE(array) : NPY_NOTYPE;
  if ((*typenum != NPY_FLOAT32 && *typenum != NPY_FLOAT64) || batch < 1 || d < 1 || !clew_in_slab(array)) {
    PyErr_SetString(PyExc_ValueError, "not a state");
    return -1;
  }
  if (read_settings(settings, settings_object, (size_t)d, *typenum) < 0) {
    return -1;
  }
  const size_t bytes = *typenum == NPY_FLOAT32 ? clew_stream_bytes_f32((size_t)batch, settings)
                                               : clew_stream_bytes_f64((size_t)batch, settings);
  return read_data(state, state_object, "state", *typenum, bytes / (size_t)PyArray_ITEMSIZE(array), 1, 0);
}

/* reg_update(state, settings, x, y) */
PyObject *clew_py_reg_update(PyObject *module, PyObject *args) {
  PyObject *state_object, *settings_object, *x_object, *y_object;
  clew_stream_settings settings;
  void *state, *x, *y;
  int typenum;
  if (!PyArg_ParseTuple(args, "OOOO", &state_object, &settings_object, &x_object, &y_object)) {
    return NULL;
  }
  if (!PyArray_Check(x_object) || PyArray_NDIM((PyArrayObject *)x_object) != 2) {
    PyErr_SetString(PyExc_ValueError, "x must be an array [batch, d]");
    return NULL;
  }
  const npy_intp batch = PyArray_DIM((PyArrayObject *)x_object, 0), d = PyArray_DIM((PyArrayObject *)x_object, 1);
  if (read_state(&state, &settings, &typenum, state_object, settings_object, batch, d) < 0 ||
      read_data(&x, x_object, "x", typenum, (size_t)(batch * d), 0, 0) < 0 ||
      read_data(&y, y_object, "y", typenum, (size_t)batch, 0, 0) < 0) {
    return NULL;
  }
  clew_error err;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = typenum == NPY_FLOAT32 ? clew_stream_update_f32(state, x, y, (size_t)batch, &settings, &err)
                                  : clew_stream_update_f64(state, x, y, (size_t)batch, &settings, &err);
  Py_END_ALLOW_THREADS;
  return finish(module, status, &err);
}

/* reg_weights(state, settings, w, covariance) */
PyObject *clew_py_reg_weights(PyObject *module, PyObject *args) {
  PyObject *state_object, *settings_object, *w_object, *covariance_object;
  clew_stream_settings settings;
  void *state, *w, *covariance;
  int typenum;
  if (!PyArg_ParseTuple(args, "OOOO", &state_object, &settings_object, &w_object, &covariance_object)) {
    return NULL;
  }
  if (!PyArray_Check(w_object) || PyArray_NDIM((PyArrayObject *)w_object) != 2) {
    PyErr_SetString(PyExc_ValueError, "w must be an array [batch, d]");
    return NULL;
  }
  const npy_intp batch = PyArray_DIM((PyArrayObject *)w_object, 0), d = PyArray_DIM((PyArrayObject *)w_object, 1);
  if (read_state(&state, &settings, &typenum, state_object, settings_object, batch, d) < 0 ||
      read_data(&w, w_object, "w", typenum, (size_t)(batch * d), 1, 0) < 0 ||
      read_data(&covariance, covariance_object, "covariance", typenum, (size_t)(batch * d * d), 1, 1) < 0) {
    return NULL;
  }
  if (settings.kind != CLEW_STREAM_BAYES && covariance != NULL) {
    PyErr_SetString(PyExc_ValueError, "only Bayesian regression has a covariance");
    return NULL;
  }
  clew_error err;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = typenum == NPY_FLOAT32 ? clew_stream_weights_f32(w, covariance, state, (size_t)batch, &settings, &err)
                                  : clew_stream_weights_f64(w, covariance, state, (size_t)batch, &settings, &err);
  Py_END_ALLOW_THREADS;
  return finish(module, status, &err);
}

/* ---- Comparisons ---------------------------------------------------------------------------------------------- */

/* reg_compare(kind, out, X, y, queries, first, step, a, b): 0 Nadaraya–Watson (a: scale), 1 nearest neighbours (a: k),
 * 2 kernel ridge (a: gamma, b: lam) */
PyObject *clew_py_reg_compare(PyObject *module, PyObject *args) {
  PyObject *out_object, *x, *y, *queries;
  int kind, typenum;
  Py_ssize_t first, step;
  double a, b;
  clew_examples examples;
  npy_intp shape[3];
  clew_queries q;
  void *out;
  if (!PyArg_ParseTuple(args, "iOOOOnndd", &kind, &out_object, &x, &y, &queries, &first, &step, &a, &b) ||
      read_examples(&examples, &typenum, x, y) < 0 ||
      read_slab(&q.queries, shape, &typenum, queries, "queries", 3) < 0) {
    return NULL;
  }
  q.batch = examples.batch, q.n = examples.n, q.d = examples.d, q.x = examples.x, q.y = examples.y;
  q.m = (size_t)shape[1], q.first = (size_t)first, q.step = (size_t)step;
  const int prefixes = first == 0 && step == 1 && queries == x, whole = first == (Py_ssize_t)q.n && step == 0;
  if ((size_t)shape[0] != q.batch || (size_t)shape[2] != q.d || kind < 0 || kind > 2 || !(prefixes || whole) ||
      (kind == 1 && !(a >= 1 && a < 1e15))) {
    PyErr_SetString(PyExc_ValueError,
                    "reg_compare: queries of another shape, or neither all prefixes nor all examples");
    return NULL;
  }
  if (read_data(&out, out_object, "out", typenum, q.batch * q.m, 1, 0) < 0) {
    return NULL;
  }
  clew_error err;
  clew_status status;
  clew_poll poll;
  clew_cancel cancel = {.poll = poll_signals, .ctx = &poll};
  const int single = typenum == NPY_FLOAT32;
  poll.thread = PyEval_SaveThread();
  if (kind == 0) {
    status = single ? clew_nadaraya_watson_f32(out, &q, a, &cancel, &err)
                    : clew_nadaraya_watson_f64(out, &q, a, &cancel, &err);
  } else if (kind == 1) {
    status = single ? clew_knn_f32(out, &q, (size_t)a, &cancel, &err) : clew_knn_f64(out, &q, (size_t)a, &cancel, &err);
  } else {
    status = single ? clew_kernel_ridge_f32(out, &q, a, b, &cancel, &err)
                    : clew_kernel_ridge_f64(out, &q, a, b, &cancel, &err);
  }
  PyEval_RestoreThread(poll.thread);
  return finish(module, status, &err);
}

/* reg_dmmse(yhat, w, evidence, X, y, tasks, log_prior, first, last, noise_var) */
PyObject *clew_py_reg_dmmse(PyObject *module, PyObject *args) {
  PyObject *yhat, *w, *evidence_object, *x, *y, *tasks_object, *prior_object;
  Py_ssize_t first, last;
  double noise_var;
  clew_examples examples;
  npy_intp shape[2];
  int typenum;
  size_t rows;
  const void *tasks;
  void *evidence, *prior;
  if (!PyArg_ParseTuple(args, "OOOOOOOnnd", &yhat, &w, &evidence_object, &x, &y, &tasks_object, &prior_object, &first,
                        &last, &noise_var) ||
      read_examples(&examples, &typenum, x, y) < 0 || read_rows(&examples, &rows, first, last) < 0 ||
      read_slab(&tasks, shape, &typenum, tasks_object, "tasks", 2) < 0) {
    return NULL;
  }
  clew_estimates out = {0};
  const size_t all = examples.batch * rows;
  if ((size_t)shape[1] != examples.d || shape[0] < 1) {
    PyErr_SetString(PyExc_ValueError, "tasks must be [n_tasks, d]");
    return NULL;
  }
  if (read_data(&out.yhat, yhat, "yhat", typenum, all, 1, 1) < 0 ||
      read_data(&out.w, w, "w", typenum, all * examples.d, 1, 1) < 0 ||
      read_data(&evidence, evidence_object, "evidence", NPY_FLOAT64, all, 1, 1) < 0 ||
      read_data(&prior, prior_object, "log_prior", typenum, (size_t)shape[0], 0, 1) < 0) {
    return NULL;
  }
  clew_error err;
  clew_poll poll;
  clew_cancel cancel = {.poll = poll_signals, .ctx = &poll};
  poll.thread = PyEval_SaveThread();
  const clew_status status =
      typenum == NPY_FLOAT32
          ? clew_dmmse_f32(&out, evidence, &examples, tasks, prior, (size_t)shape[0], noise_var, &cancel, &err)
          : clew_dmmse_f64(&out, evidence, &examples, tasks, prior, (size_t)shape[0], noise_var, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  return finish(module, status, &err);
}
