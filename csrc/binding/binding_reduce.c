/* Reducers of a stream: arrays in, written in place. */
#include "reduce.h"

#include "binding.h"
#include "pool.h"

/* The object as a contiguous array of this dtype (NPY_NOTYPE: float32 or float64) and of this many axes; NULL with an
 * exception. */
static PyArrayObject *read_array(PyObject *object, int typenum, int n_dims, int writeable, const char *what) {
  PyArrayObject *array = (PyArrayObject *)object;
  if (PyArray_Check(object) && PyArray_ISCARRAY_RO(array) && PyArray_NDIM(array) == n_dims &&
      (!writeable || PyArray_ISWRITEABLE(array))) {
    const int type = PyArray_TYPE(array);
    if (typenum == NPY_NOTYPE ? type == NPY_FLOAT32 || type == NPY_FLOAT64 : type == typenum) {
      return array;
    }
  }
  return (PyArrayObject *)PyErr_Format(PyExc_ValueError, "%s: a contiguous %sarray of %d axes was expected", what,
                                       writeable ? "writable " : "", n_dims);
}

/* None, or the exception of a status. */
static PyObject *finish(PyObject *module, clew_status status, const clew_error *err) {
  if (status != CLEW_OK) {
    return clew_raise(clew_module_state(module), err);
  }
  Py_RETURN_NONE;
}

/* histogram(counts [d, bins + 3], rows [n, d], edges [bins + 1]) */
PyObject *clew_py_histogram(PyObject *module, PyObject *args) {
  PyObject *objects[3];
  if (!PyArg_ParseTuple(args, "OOO", &objects[0], &objects[1], &objects[2])) {
    return NULL;
  }
  PyArrayObject *counts = read_array(objects[0], NPY_INT64, 2, 1, "histogram: counts");
  PyArrayObject *rows = counts ? read_array(objects[1], NPY_NOTYPE, 2, 0, "histogram: rows") : NULL;
  PyArrayObject *edges = rows ? read_array(objects[2], NPY_FLOAT64, 1, 0, "histogram: edges") : NULL;
  if (edges == NULL) {
    return NULL;
  }
  const npy_intp n = PyArray_DIM(rows, 0), d = PyArray_DIM(rows, 1), bins = PyArray_DIM(edges, 0) - 1;
  if (PyArray_DIM(counts, 0) != d || PyArray_DIM(counts, 1) != bins + 3) {
    return PyErr_Format(PyExc_ValueError, "histogram: counts [%zd, %zd] of %zd columns in %zd bins",
                        PyArray_DIM(counts, 0), PyArray_DIM(counts, 1), d, bins);
  }
  clew_poll_state poll;
  clew_cancel cancel = {.poll = clew_poll_signals, .ctx = &poll};
  clew_error err;
  clew_status status;
  int64_t *to = PyArray_DATA(counts);
  const void *from = PyArray_DATA(rows);
  const double *at = PyArray_DATA(edges);
  const int typenum = PyArray_TYPE(rows);
  poll.thread = PyEval_SaveThread();
  status = typenum == NPY_FLOAT32 ? clew_histogram_f32(to, from, at, (size_t)n, (size_t)d, (size_t)bins, &cancel, &err)
                                  : clew_histogram_f64(to, from, at, (size_t)n, (size_t)d, (size_t)bins, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  return finish(module, status, &err);
}

/* top_k(values [d, k], where [d, k, 2], rows [n, d], at [n, 2] or [n, d, 2]) */
PyObject *clew_py_top_k(PyObject *module, PyObject *args) {
  PyObject *objects[4];
  if (!PyArg_ParseTuple(args, "OOOO", &objects[0], &objects[1], &objects[2], &objects[3])) {
    return NULL;
  }
  const int shared = PyArray_Check(objects[3]) && PyArray_NDIM((PyArrayObject *)objects[3]) == 2;
  PyArrayObject *values = read_array(objects[0], NPY_FLOAT64, 2, 1, "top_k: values");
  PyArrayObject *where = values ? read_array(objects[1], NPY_INT64, 3, 1, "top_k: where") : NULL;
  PyArrayObject *rows = where ? read_array(objects[2], NPY_NOTYPE, 2, 0, "top_k: rows") : NULL;
  PyArrayObject *at = rows ? read_array(objects[3], NPY_INT64, 3 - shared, 0, "top_k: at") : NULL;
  if (at == NULL) {
    return NULL;
  }
  const npy_intp n = PyArray_DIM(rows, 0), d = PyArray_DIM(rows, 1), k = PyArray_DIM(values, 1);
  const npy_intp wanted[2][3] = {{d, k, 2}, {n, shared ? 2 : d, 2}};
  if (PyArray_DIM(values, 0) != d || !PyArray_CompareLists(PyArray_DIMS(where), wanted[0], 3) ||
      !PyArray_CompareLists(PyArray_DIMS(at), wanted[1], PyArray_NDIM(at))) {
    return PyErr_Format(PyExc_ValueError, "top_k: values [%zd, %zd], rows [%zd, %zd], where or at of another shape",
                        PyArray_DIM(values, 0), k, n, d);
  }
  const clew_top_shape shape = {
      .n = (size_t)n, .d = (size_t)d, .k = (size_t)k, .at = {shared ? 2 : 2 * d, shared ? 0 : 2}};
  clew_poll_state poll;
  clew_cancel cancel = {.poll = clew_poll_signals, .ctx = &poll};
  clew_error err;
  clew_status status;
  double *to = PyArray_DATA(values);
  int64_t *places = PyArray_DATA(where);
  const void *from = PyArray_DATA(rows);
  const int64_t *places_from = PyArray_DATA(at);
  const int typenum = PyArray_TYPE(rows);
  poll.thread = PyEval_SaveThread();
  status = typenum == NPY_FLOAT32 ? clew_top_k_f32(to, places, from, places_from, &shape, &cancel, &err)
                                  : clew_top_k_f64(to, places, from, places_from, &shape, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  return finish(module, status, &err);
}

/* centre(centred [n or more, d], mean [2, d], rows [n, d]) */
PyObject *clew_py_centre(PyObject *module, PyObject *args) {
  PyObject *objects[3];
  if (!PyArg_ParseTuple(args, "OOO", &objects[0], &objects[1], &objects[2])) {
    return NULL;
  }
  PyArrayObject *centred = read_array(objects[0], NPY_FLOAT64, 2, 1, "centre: centred");
  PyArrayObject *mean = centred ? read_array(objects[1], NPY_FLOAT64, 2, 1, "centre: mean") : NULL;
  PyArrayObject *rows = mean ? read_array(objects[2], NPY_NOTYPE, 2, 0, "centre: rows") : NULL;
  if (rows == NULL) {
    return NULL;
  }
  const npy_intp n = PyArray_DIM(rows, 0), d = PyArray_DIM(rows, 1);
  if (PyArray_DIM(centred, 0) < n || PyArray_DIM(centred, 1) != d || PyArray_DIM(mean, 0) != 2 ||
      PyArray_DIM(mean, 1) != d) {
    return PyErr_Format(PyExc_ValueError, "centre: rows [%zd, %zd] into [%zd, %zd], mean [%zd, %zd]", n, d,
                        PyArray_DIM(centred, 0), PyArray_DIM(centred, 1), PyArray_DIM(mean, 0), PyArray_DIM(mean, 1));
  }
  clew_poll_state poll;
  clew_cancel cancel = {.poll = clew_poll_signals, .ctx = &poll};
  clew_error err;
  clew_status status;
  double *to = PyArray_DATA(centred), *to_mean = PyArray_DATA(mean);
  const void *from = PyArray_DATA(rows);
  const int typenum = PyArray_TYPE(rows);
  poll.thread = PyEval_SaveThread();
  status = typenum == NPY_FLOAT32 ? clew_centre_f32(to, to_mean, from, (size_t)n, (size_t)d, &cancel, &err)
                                  : clew_centre_f64(to, to_mean, from, (size_t)n, (size_t)d, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  return finish(module, status, &err);
}
