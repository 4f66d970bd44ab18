/* Functions of the module for clew.adaptive: passes and training of constrained transformers, and the programme. */
#include "adaptive.h"
#include "binding.h"

static clew_state *state_of(PyObject *module) { return PyModule_GetState(module); }

typedef struct adaptive_poll {
  PyThreadState *thread; /* the calling thread's, while the GIL is released */
} adaptive_poll;

static int poll_signals(void *ctx) {
  adaptive_poll *poll = ctx;
  PyEval_RestoreThread(poll->thread);
  const int raised = PyErr_CheckSignals();
  poll->thread = PyEval_SaveThread();
  return raised;
}

static PyObject *failure(PyObject *module, clew_status status, const clew_error *err) {
  if (status == CLEW_ERROR_CANCELLED && PyErr_Occurred()) {
    return NULL; /* the signal handler's own exception */
  }
  return clew_raise(state_of(module), err);
}

/* An array's memory, or NULL for None. It must be contiguous, of the type and of `size` values (−1: any number, told
 * through *found). *ok is cleared with an exception. */
static void *array_data(PyObject *object, int typenum, Py_ssize_t size, Py_ssize_t *found, const char *what,
                        int writeable, int *ok) {
  if (object == Py_None) {
    return NULL;
  }
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_Check(object) || PyArray_TYPE(array) != typenum || !PyArray_ISCARRAY_RO(array) ||
      (writeable && !PyArray_ISWRITEABLE(array))) {
    PyErr_Format(PyExc_TypeError, "%s must be a contiguous%s array of the common dtype", what,
                 writeable ? ", writable" : "");
    *ok = 0;
    return NULL;
  }
  if (size >= 0 && PyArray_SIZE(array) != size) {
    PyErr_Format(PyExc_ValueError, "%s has %zd values, expected %zd", what, (Py_ssize_t)PyArray_SIZE(array), size);
    *ok = 0;
    return NULL;
  }
  if (found != NULL) {
    *found = PyArray_SIZE(array);
  }
  return PyArray_DATA(array);
}

/* (dim, layers, heads, width, readout, points, routing, orthonormal) */
static int read_shape(clew_adaptive_shape *shape, PyObject *object) {
  Py_ssize_t n[6];
  int routing, orthonormal;
  if (!PyTuple_Check(object) ||
      !PyArg_ParseTuple(object, "nnnnnnpp", &n[0], &n[1], &n[2], &n[3], &n[4], &n[5], &routing, &orthonormal)) {
    if (!PyErr_Occurred()) {
      PyErr_SetString(PyExc_TypeError, "shape must be a tuple of six sizes and two flags");
    }
    return -1;
  }
  *shape = (clew_adaptive_shape){(size_t)n[0], (size_t)n[1], (size_t)n[2], (size_t)n[3],
                                 (size_t)n[4], (size_t)n[5], routing != 0, orthonormal != 0};
  clew_error err;
  if (clew_adaptive_check(shape, &err) != CLEW_OK) {
    PyErr_SetString(PyExc_ValueError, err.message);
    return -1;
  }
  return 0;
}

PyObject *clew_py_adaptive_parameters(PyObject *module, PyObject *arg) {
  (void)module;
  clew_adaptive_shape shape;
  return read_shape(&shape, arg) < 0 ? NULL : PyLong_FromSize_t(clew_adaptive_parameters(&shape));
}

/* adaptive_pass(shape, parameters, centres, spread, variance, n, w, estimate, x, y, start, prediction, messages,
 * directions, losses, gradient): the last five are written, each may be None. */
PyObject *clew_py_adaptive_pass(PyObject *module, PyObject *args) {
  PyObject *shape_object, *o[12];
  double variance;
  Py_ssize_t n, start;
  if (!PyArg_ParseTuple(args, "OOOOdnOOOOnOOOOO", &shape_object, &o[0], &o[1], &o[2], &variance, &n, &o[3], &o[4],
                        &o[5], &o[6], &start, &o[7], &o[8], &o[9], &o[10], &o[11])) {
    return NULL;
  }
  clew_adaptive_shape s;
  if (read_shape(&s, shape_object) < 0) {
    return NULL;
  }
  const int typenum = PyArray_Check(o[0]) ? PyArray_TYPE((PyArrayObject *)o[0]) : NPY_NOTYPE;
  if ((typenum != NPY_FLOAT32 && typenum != NPY_FLOAT64) || n < 0 || start < 0 || (size_t)start > s.layers) {
    return PyErr_Format(PyExc_ValueError, "parameters must be float32 or float64, %zd contexts, start at layer %zd", n,
                        start);
  }
  const Py_ssize_t d = (Py_ssize_t)s.dim, messages = (Py_ssize_t)(s.layers * s.heads);
  const Py_ssize_t n_parameters = (Py_ssize_t)clew_adaptive_parameters(&s);
  int ok = 1;
  Py_ssize_t examples = 0;
  const void *y = array_data(o[6], typenum, -1, &examples, "y", 0, &ok);
  clew_adaptive_batch_f64 b = {.parameters = array_data(o[0], typenum, n_parameters, NULL, "parameters", 0, &ok),
                               .centres = array_data(o[1], typenum, (Py_ssize_t)s.points * d, NULL, "centres", 0, &ok),
                               .spread = array_data(o[2], typenum, d, NULL, "spread", 0, &ok),
                               .w = array_data(o[3], typenum, n * d, NULL, "w", 0, &ok),
                               .estimate = array_data(o[4], typenum, n * d, NULL, "estimate", 0, &ok),
                               .y = y,
                               .x = array_data(o[5], typenum, examples * d, NULL, "x", 0, &ok),
                               .variance = variance,
                               .n = (size_t)n,
                               .start = (size_t)start,
                               .prediction = array_data(o[7], typenum, n * d, NULL, "prediction", 1, &ok),
                               .messages = array_data(o[8], typenum, n * messages, NULL, "messages", 1, &ok),
                               .directions = array_data(o[9], typenum, n * messages * d, NULL, "directions", 1, &ok),
                               .losses = array_data(o[10], NPY_FLOAT64, n, NULL, "losses", 1, &ok),
                               .gradient = array_data(o[11], typenum, n_parameters, NULL, "gradient", 1, &ok)};
  if (!ok) {
    return NULL;
  }
  b.tokens = n > 0 ? (size_t)(examples / n) : 0;
  const int exact = s.readout == 0;
  if ((b.x == NULL) == (b.estimate == NULL) || (b.x != NULL && (b.tokens == 0 || examples % n != 0)) ||
      (exact && (b.centres == NULL || b.spread == NULL)) || (start > 0 && b.messages == NULL) ||
      (b.gradient != NULL && b.w == NULL)) {
    PyErr_SetString(PyExc_ValueError, "adaptive_pass: arrays that belong together are not all given");
    return NULL;
  }
  clew_error err;
  adaptive_poll poll;
  clew_cancel cancel = {.poll = poll_signals, .ctx = &poll};
  clew_status status;
  poll.thread = PyEval_SaveThread();
  if (typenum == NPY_FLOAT64) {
    status = clew_adaptive_pass_f64(&s, &b, &cancel, &err);
  } else {
    const clew_adaptive_batch_f32 f = {.parameters = (const void *)b.parameters,
                                       .centres = (const void *)b.centres,
                                       .spread = (const void *)b.spread,
                                       .w = (const void *)b.w,
                                       .estimate = (const void *)b.estimate,
                                       .x = (const void *)b.x,
                                       .y = (const void *)b.y,
                                       .variance = variance,
                                       .n = b.n,
                                       .tokens = b.tokens,
                                       .start = b.start,
                                       .prediction = (void *)b.prediction,
                                       .messages = (void *)b.messages,
                                       .directions = (void *)b.directions,
                                       .losses = b.losses,
                                       .gradient = (void *)b.gradient};
    status = clew_adaptive_pass_f32(&s, &f, &cancel, &err);
  }
  PyEval_RestoreThread(poll.thread);
  if (status != CLEW_OK) {
    return failure(module, status, &err);
  }
  Py_RETURN_NONE;
}

/* adaptive_train(shape, parameters, m, v, centres, spread, noise, seeds, losses, batch, first_step, horizon, rate,
 * last_rate): parameters, m, v [n, P] and losses [steps, n] are written. */
PyObject *clew_py_adaptive_train(PyObject *module, PyObject *args) {
  PyObject *shape_object, *o[8];
  Py_ssize_t batch;
  long long first_step, horizon;
  double rate, last_rate;
  if (!PyArg_ParseTuple(args, "OOOOOOOOOnLLdd", &shape_object, &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &o[7],
                        &batch, &first_step, &horizon, &rate, &last_rate)) {
    return NULL;
  }
  clew_adaptive_shape s;
  if (read_shape(&s, shape_object) < 0) {
    return NULL;
  }
  const int typenum = PyArray_Check(o[0]) ? PyArray_TYPE((PyArrayObject *)o[0]) : NPY_NOTYPE;
  if ((typenum != NPY_FLOAT32 && typenum != NPY_FLOAT64) || batch < 1 || first_step < 0) {
    return PyErr_Format(PyExc_ValueError, "parameters must be float32 or float64, and a batch of %zd at least 1",
                        batch);
  }
  const Py_ssize_t d = (Py_ssize_t)s.dim, n_parameters = (Py_ssize_t)clew_adaptive_parameters(&s);
  int ok = 1;
  Py_ssize_t n = 0, all = 0, values = 0;
  const double *noise = array_data(o[5], NPY_FLOAT64, -1, &n, "noise", 0, &ok);
  void *parameters = array_data(o[0], typenum, n * n_parameters, NULL, "parameters", 1, &ok);
  void *m = array_data(o[1], typenum, n * n_parameters, NULL, "m", 1, &ok);
  void *v = array_data(o[2], typenum, n * n_parameters, NULL, "v", 1, &ok);
  const void *centres = array_data(o[3], typenum, -1, &all, "centres", 0, &ok);
  const void *spread = array_data(o[4], typenum, n * d, NULL, "spread", 0, &ok);
  const uint64_t *seeds = array_data(o[6], NPY_UINT64, n, NULL, "seeds", 0, &ok);
  double *losses = array_data(o[7], NPY_FLOAT64, -1, &values, "losses", 1, &ok);
  if (!ok) {
    return NULL;
  }
  const size_t draws = n > 0 ? (size_t)(all / (n * d)) : 0;
  if (n < 1 || all % (n * d) != 0 || values % n != 0 || !parameters || !m || !v || !centres || !spread || !seeds ||
      !losses || (s.readout == 0 && s.points != draws)) {
    PyErr_SetString(PyExc_ValueError, "adaptive_train: arrays are missing or do not belong to one number of models");
    return NULL;
  }
  const clew_adaptive_course course = {.steps = (size_t)(values / n),
                                       .batch = (size_t)batch,
                                       .first_step = first_step,
                                       .horizon = horizon,
                                       .rate = rate,
                                       .last_rate = last_rate};
  clew_error err;
  adaptive_poll poll;
  clew_cancel cancel = {.poll = poll_signals, .ctx = &poll};
  clew_status status;
  poll.thread = PyEval_SaveThread();
  if (typenum == NPY_FLOAT64) {
    const clew_adaptive_models_f64 models = {(size_t)n, parameters, m, v, centres, spread, draws, noise, seeds};
    status = clew_adaptive_train_f64(losses, &models, &s, &course, &cancel, &err);
  } else {
    const clew_adaptive_models_f32 models = {(size_t)n, parameters, m, v, centres, spread, draws, noise, seeds};
    status = clew_adaptive_train_f32(losses, &models, &s, &course, &cancel, &err);
  }
  PyEval_RestoreThread(poll.thread);
  if (status != CLEW_OK) {
    return failure(module, status, &err);
  }
  Py_RETURN_NONE;
}

/* programme_values(values [n], first [n, heads[0]], halved [n], centres, probabilities, directions, heads, spread,
 * noise, step, reach) */
PyObject *clew_py_programme_values(PyObject *module, PyObject *args) {
  PyObject *o[7];
  clew_programme p = {0};
  if (!PyArg_ParseTuple(args, "OOOOOOOdddd", &o[0], &o[1], &o[2], &o[3], &o[4], &o[5], &o[6], &p.spread, &p.noise,
                        &p.step, &p.reach)) {
    return NULL;
  }
  int ok = 1;
  Py_ssize_t n = 0, layers = 0, points = 0, actions = 0;
  double *values = array_data(o[0], NPY_FLOAT64, -1, &n, "values", 1, &ok);
  p.heads = array_data(o[6], NPY_INT32, -1, &layers, "heads", 0, &ok);
  const Py_ssize_t heads = layers > 0 && p.heads != NULL ? p.heads[0] : 0;
  const int32_t *first = array_data(o[1], NPY_INT32, n * heads, NULL, "first", 0, &ok);
  const void *halved = array_data(o[2], NPY_BOOL, n, NULL, "halved", 0, &ok);
  p.probabilities = array_data(o[4], NPY_FLOAT64, -1, &points, "probabilities", 0, &ok);
  const Py_ssize_t dim = points > 0 && PyArray_Check(o[3]) ? PyArray_SIZE((PyArrayObject *)o[3]) / points : 0;
  p.centres = array_data(o[3], NPY_FLOAT64, points * dim, NULL, "centres", 0, &ok);
  p.directions = array_data(o[5], NPY_FLOAT64, -1, &actions, "directions", 0, &ok);
  if (!ok) {
    return NULL;
  }
  if (dim < 1 || heads < 1 || actions % dim != 0 || !values || !first || !halved || !p.centres || !p.directions) {
    PyErr_SetString(PyExc_ValueError, "programme_values: arrays are missing or do not belong together");
    return NULL;
  }
  p.dim = (size_t)dim, p.points = (size_t)points, p.actions = (size_t)(actions / dim), p.layers = (size_t)layers;
  clew_error err;
  adaptive_poll poll;
  clew_cancel cancel = {.poll = poll_signals, .ctx = &poll};
  poll.thread = PyEval_SaveThread();
  const clew_status status = clew_programme_values(values, first, halved, (size_t)n, &p, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  if (status != CLEW_OK) {
    return failure(module, status, &err);
  }
  Py_RETURN_NONE;
}
