/* Nearest rows of a matrix: arguments in, two arrays out. */
#include "nearest.h"

#include "binding.h"
#include "pool.h"

/* A 2-D array in slab memory whose strides are positive; −1 with an exception. */
static int read_matrix(size_t shape[2], ptrdiff_t strides[2], PyObject *object, const char *what, int typenum) {
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_Check(object) || PyArray_NDIM(array) != 2 || PyArray_TYPE(array) != typenum ||
      !PyArray_ISALIGNED(array) || !PyArray_ISNOTSWAPPED(array) || !clew_in_slab(array)) {
    PyErr_Format(PyExc_ValueError, "nearest: %s must be a 2-D array of the common dtype, in slab memory", what);
    return -1;
  }
  for (int axis = 0; axis < 2; axis++) {
    shape[axis] = (size_t)PyArray_DIM(array, axis);
    strides[axis] = PyArray_STRIDE(array, axis) / PyArray_ITEMSIZE(array);
    if (strides[axis] <= 0 && shape[axis] > 1) {
      PyErr_Format(PyExc_ValueError, "nearest: axis %d of %s has stride %zd", axis, what, (Py_ssize_t)strides[axis]);
      return -1;
    }
  }
  return 0;
}

/* A tuple of metrics' numbers; how many, −1 with an exception. */
static Py_ssize_t read_metrics(clew_metric metrics[CLEW_N_METRICS], PyObject *tuple) {
  const Py_ssize_t n = PyTuple_GET_SIZE(tuple);
  if (n < 1 || n > CLEW_N_METRICS) {
    PyErr_Format(PyExc_ValueError, "nearest: %zd metrics, expected 1 to %d", n, (int)CLEW_N_METRICS);
    return -1;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    const long number = PyLong_AsLong(PyTuple_GET_ITEM(tuple, i));
    if (number == -1 && PyErr_Occurred()) {
      return -1;
    }
    metrics[i] = number < 0 || number > CLEW_N_METRICS ? CLEW_N_METRICS : (clew_metric)number; /* the core refuses it */
  }
  return n;
}

/* nearest(vectors [n, d], rows [m, d], k, metrics) -> ids [metric, n, k], scores [metric, n, k] */
PyObject *clew_py_nearest(PyObject *module, PyObject *args) {
  PyObject *vectors, *rows, *wanted;
  Py_ssize_t k;
  clew_metric metrics[CLEW_N_METRICS];
  if (!PyArg_ParseTuple(args, "OOnO!", &vectors, &rows, &k, &PyTuple_Type, &wanted)) {
    return NULL;
  }
  const Py_ssize_t n_metrics = read_metrics(metrics, wanted);
  if (n_metrics < 0) {
    return NULL;
  }
  const int typenum = PyArray_Check(vectors) ? PyArray_TYPE((PyArrayObject *)vectors) : NPY_NOTYPE;
  if (typenum != NPY_FLOAT32 && typenum != NPY_FLOAT64) {
    PyErr_SetString(PyExc_ValueError, "nearest: vectors must be float32 or float64");
    return NULL;
  }
  size_t s_x[2], s_w[2];
  clew_nearest_shape shape;
  if (read_matrix(s_x, shape.x, vectors, "vectors", typenum) < 0 ||
      read_matrix(s_w, shape.w, rows, "rows", typenum) < 0) {
    return NULL;
  }
  if (s_x[1] != s_w[1] || k < 0) {
    return PyErr_Format(PyExc_ValueError, "nearest: vectors [%zu, %zu] and rows [%zu, %zu], k = %zd", s_x[0], s_x[1],
                        s_w[0], s_w[1], k);
  }
  shape.n = s_x[0], shape.n_rows = s_w[0], shape.d = s_x[1], shape.k = (size_t)k;
  const npy_intp dims[3] = {n_metrics, (npy_intp)shape.n, k};
  PyObject *ids = PyArray_SimpleNew(3, dims, NPY_INT32), *scores = PyArray_SimpleNew(3, dims, NPY_FLOAT64);
  clew_error err;
  clew_status status = CLEW_ERROR_MEMORY;
  if (ids != NULL && scores != NULL) {
    clew_poll_state poll;
    clew_cancel cancel = {.poll = clew_poll_signals, .ctx = &poll};
    int32_t *to_ids = PyArray_DATA((PyArrayObject *)ids);
    double *to_scores = PyArray_DATA((PyArrayObject *)scores);
    const void *x = PyArray_DATA((PyArrayObject *)vectors), *w = PyArray_DATA((PyArrayObject *)rows);
    poll.thread = PyEval_SaveThread();
    const size_t n = (size_t)n_metrics;
    status = typenum == NPY_FLOAT32 ? clew_nearest_f32(to_ids, to_scores, x, w, &shape, metrics, n, &cancel, &err)
                                    : clew_nearest_f64(to_ids, to_scores, x, w, &shape, metrics, n, &cancel, &err);
    PyEval_RestoreThread(poll.thread);
    if (status == CLEW_OK) {
      return Py_BuildValue("NN", ids, scores);
    }
  }
  Py_XDECREF(ids);
  Py_XDECREF(scores);
  if (PyErr_Occurred()) { /* no memory for the arrays, or the signal handler's own exception */
    return NULL;
  }
  return clew_raise(clew_module_state(module), &err);
}
