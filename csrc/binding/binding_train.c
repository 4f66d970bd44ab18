/* The optimiser's arithmetic on lists of arrays. Counters lie in arrays of the caller's and are changed by the same
 * call as the values: a signal falls before or behind both. */
#include "adamw.h"
#include "binding.h"

/* A contiguous float32 or float64 array of a list; −1 with an exception. All have one dtype, *typenum once it is known.
 */
static int read_array(void **data, size_t *n, int *typenum, PyObject *list, Py_ssize_t i, const char *what,
                      int writeable) {
  PyObject *item = PyList_GET_ITEM(list, i);
  PyArrayObject *array = (PyArrayObject *)item;
  const int type = PyArray_Check(item) ? PyArray_TYPE(array) : NPY_NOTYPE;
  if (*typenum == NPY_NOTYPE && (type == NPY_FLOAT32 || type == NPY_FLOAT64)) {
    *typenum = type;
  }
  if (type != *typenum || type == NPY_NOTYPE || !PyArray_ISCARRAY_RO(array) ||
      (writeable && !PyArray_ISWRITEABLE(array))) {
    PyErr_Format(PyExc_TypeError, "%s %zd must be a contiguous%s array, float32 or float64 as the others", what, i,
                 writeable ? ", writable" : "");
    return -1;
  }
  const size_t size = (size_t)PyArray_SIZE(array);
  if (*n != SIZE_MAX && *n != size) {
    PyErr_Format(PyExc_ValueError, "%s %zd has %zu values, the tensor has %zu", what, i, size, *n);
    return -1;
  }
  *data = PyArray_DATA(array), *n = size;
  return 0;
}

static int check_lists(PyObject *const *lists, int n_lists) {
  for (int i = 0; i < n_lists; i++) {
    if (!PyList_Check(lists[i]) || PyList_GET_SIZE(lists[i]) != PyList_GET_SIZE(lists[0])) {
      PyErr_SetString(PyExc_ValueError, "lists of arrays must be lists of one length");
      return -1;
    }
  }
  return 0;
}

/* The one value of a writable int64 or float64 array; NULL with an exception. */
static void *counter(PyObject *object, int typenum, const char *what) {
  PyArrayObject *array = (PyArrayObject *)object;
  if (!PyArray_Check(object) || PyArray_TYPE(array) != typenum || PyArray_SIZE(array) != 1 ||
      !PyArray_ISCARRAY(array)) {
    PyErr_Format(PyExc_TypeError, "%s must be a writable array of one %s", what,
                 typenum == NPY_INT64 ? "int64" : "float64");
    return NULL;
  }
  return PyArray_DATA(array);
}

PyObject *clew_py_adamw(PyObject *module, PyObject *args) {
  PyObject *lists[4], *decay, *step_object;
  clew_adamw_settings settings;
  if (!PyArg_ParseTuple(args, "O!OOOOOdddddd", &PyList_Type, &lists[0], &lists[1], &lists[2], &lists[3], &decay,
                        &step_object, &settings.rate, &settings.beta1, &settings.beta2, &settings.eps,
                        &settings.weight_decay, &settings.scale)) {
    return NULL;
  }
  int64_t *step = counter(step_object, NPY_INT64, "step");
  if (step == NULL || check_lists(lists, 4) < 0) {
    return NULL;
  }
  const Py_ssize_t n = PyList_GET_SIZE(lists[0]);
  if (!PyList_Check(decay) || PyList_GET_SIZE(decay) != n) {
    PyErr_SetString(PyExc_ValueError, "decay must be a list as long as the others");
    return NULL;
  }
  clew_parameter *parameters = PyMem_Calloc((size_t)n + 1, sizeof *parameters);
  if (parameters == NULL) {
    return PyErr_NoMemory();
  }
  int typenum = NPY_NOTYPE;
  clew_status status = CLEW_OK;
  clew_error err;
  for (Py_ssize_t i = 0; i < n; i++) {
    clew_parameter *p = &parameters[i];
    p->n = SIZE_MAX;
    void *gradient;
    const int decays = PyObject_IsTrue(PyList_GET_ITEM(decay, i));
    if (read_array(&p->value, &p->n, &typenum, lists[0], i, "parameter", 1) < 0 ||
        read_array(&gradient, &p->n, &typenum, lists[1], i, "gradient", 0) < 0 ||
        read_array(&p->m, &p->n, &typenum, lists[2], i, "first moment", 1) < 0 ||
        read_array(&p->v, &p->n, &typenum, lists[3], i, "second moment", 1) < 0 || decays < 0) {
      PyMem_Free(parameters);
      return NULL;
    }
    p->gradient = gradient, p->decay = decays != 0;
  }
  settings.step = *step + 1;
  Py_BEGIN_ALLOW_THREADS;
  status = typenum == NPY_FLOAT64 ? clew_adamw_f64(parameters, (size_t)n, &settings, &err)
                                  : clew_adamw_f32(parameters, (size_t)n, &settings, &err);
  Py_END_ALLOW_THREADS;
  PyMem_Free(parameters);
  if (status != CLEW_OK) {
    return clew_raise(clew_module_state(module), &err);
  }
  *step = settings.step;
  Py_RETURN_NONE;
}

PyObject *clew_py_global_norm(PyObject *module, PyObject *list) {
  if (check_lists(&list, 1) < 0) {
    return NULL;
  }
  const Py_ssize_t n = PyList_GET_SIZE(list);
  clew_parameter *parameters = PyMem_Calloc((size_t)n + 1, sizeof *parameters);
  if (parameters == NULL) {
    return PyErr_NoMemory();
  }
  int typenum = NPY_NOTYPE;
  for (Py_ssize_t i = 0; i < n; i++) {
    void *gradient;
    parameters[i].n = SIZE_MAX;
    if (read_array(&gradient, &parameters[i].n, &typenum, list, i, "array", 0) < 0) {
      PyMem_Free(parameters);
      return NULL;
    }
    parameters[i].gradient = gradient;
  }
  double norm = 0;
  clew_error err;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = typenum == NPY_FLOAT64 ? clew_global_norm_f64(&norm, parameters, (size_t)n, &err)
                                  : clew_global_norm_f32(&norm, parameters, (size_t)n, &err);
  Py_END_ALLOW_THREADS;
  PyMem_Free(parameters);
  return status == CLEW_OK ? PyFloat_FromDouble(norm) : clew_raise(clew_module_state(module), &err);
}

PyObject *clew_py_accumulate(PyObject *module, PyObject *args) {
  PyObject *lists[2], *total_object;
  double factor;
  if (!PyArg_ParseTuple(args, "O!OdO", &PyList_Type, &lists[0], &lists[1], &factor, &total_object)) {
    return NULL;
  }
  double *total = counter(total_object, NPY_FLOAT64, "total");
  if (total == NULL || check_lists(lists, 2) < 0) {
    return NULL;
  }
  const Py_ssize_t n = PyList_GET_SIZE(lists[0]);
  clew_parameter *parameters = PyMem_Calloc((size_t)n + 1, sizeof *parameters);
  if (parameters == NULL) {
    return PyErr_NoMemory();
  }
  int typenum = NPY_NOTYPE;
  for (Py_ssize_t i = 0; i < n; i++) {
    clew_parameter *p = &parameters[i];
    void *gradient;
    p->n = SIZE_MAX;
    if (read_array(&p->value, &p->n, &typenum, lists[0], i, "sum", 1) < 0 ||
        read_array(&gradient, &p->n, &typenum, lists[1], i, "array", 0) < 0) {
      PyMem_Free(parameters);
      return NULL;
    }
    p->gradient = gradient;
  }
  clew_error err;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = typenum == NPY_FLOAT64 ? clew_accumulate_f64(parameters, (size_t)n, factor, &err)
                                  : clew_accumulate_f32(parameters, (size_t)n, factor, &err);
  Py_END_ALLOW_THREADS;
  PyMem_Free(parameters);
  if (status != CLEW_OK) {
    return clew_raise(clew_module_state(module), &err);
  }
  *total += factor;
  Py_RETURN_NONE;
}
