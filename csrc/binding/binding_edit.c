/* Interventions and caches as Python hands them over, and calls back into Python. */
#include <string.h>

#include "binding.h"

PyArrayObject *clew_int_array(PyObject *object, const char *what) {
  if (!PyArray_Check(object) || PyArray_TYPE((PyArrayObject *)object) != NPY_INT32 ||
      !PyArray_ISCARRAY_RO((PyArrayObject *)object)) {
    PyErr_Format(PyExc_TypeError, "%s must be a contiguous int32 array", what);
    return NULL;
  }
  return (PyArrayObject *)Py_NewRef(object);
}

/* Indices of one axis, borrowed from the edit's tuple; None: all. */
static int parse_indices(const int32_t **out, size_t *n, PyObject *object, const char *what) {
  *out = NULL, *n = 0;
  if (object == Py_None) {
    return 0;
  }
  PyArrayObject *array = clew_int_array(object, what);
  if (array == NULL) {
    return -1;
  }
  *out = PyArray_DATA(array), *n = (size_t)PyArray_SIZE(array);
  Py_DECREF(array);
  return 0;
}

static int parse_edit(clew_edit *e, PyObject *item, const clew_model_object *model, size_t n_seq) {
  PyObject *batch, *positions, *heads, *neurons, *value;
  int site, layer, kind, call;
  Py_ssize_t strides[4];
  if (!PyArg_ParseTuple(item, "iiiOOOOO(nnnn)i", &site, &layer, &kind, &batch, &positions, &heads, &neurons, &value,
                        &strides[0], &strides[1], &strides[2], &strides[3], &call)) {
    return -1;
  }
  const clew_config *config = clew_model_config(model->model);
  *e = (clew_edit){.site = (clew_site)site, .layer = layer, .kind = (clew_edit_kind)kind, .call = call};
  if (parse_indices(&e->batch, &e->n_batch, batch, "batch") < 0 ||
      parse_indices(&e->positions, &e->n_positions, positions, "positions") < 0 ||
      parse_indices(&e->heads, &e->n_heads, heads, "heads") < 0 ||
      parse_indices(&e->neurons, &e->n_neurons, neurons, "neurons") < 0) {
    return -1;
  }
  if (positions != Py_None) {
    const size_t selected = batch != Py_None ? e->n_batch : n_seq;
    if (PyArray_NDIM((PyArrayObject *)positions) != 2 ||
        (size_t)PyArray_DIM((PyArrayObject *)positions, 0) != selected) {
      PyErr_Format(PyExc_ValueError, "positions of an edit must be [%zu, n]", selected);
      return -1;
    }
    e->n_positions = (size_t)PyArray_DIM((PyArrayObject *)positions, 1);
  }
  for (int i = 0; i < 4; i++) {
    e->strides[i] = strides[i];
  }
  if (value != Py_None) {
    PyArrayObject *array = (PyArrayObject *)value;
    if (!PyArray_Check(value) || PyArray_TYPE(array) != clew_typenum(config->dtype) || !PyArray_ISCARRAY_RO(array)) {
      PyErr_SetString(PyExc_TypeError, "the value of an edit must be a contiguous array of the model's dtype");
      return -1;
    }
    e->value = PyArray_DATA(array), e->n_values = (size_t)PyArray_SIZE(array);
    if (e->n_values == 0) {
      PyErr_SetString(PyExc_ValueError, "the value of an edit is empty");
      return -1;
    }
  }
  return 0;
}

int clew_parse_edits(clew_edit **out, PyObject *list, const clew_model_object *model, size_t n_seq) {
  const Py_ssize_t n = PyList_GET_SIZE(list);
  clew_edit *edits = PyMem_Calloc((size_t)n + 1, sizeof *edits);
  if (edits == NULL) {
    PyErr_NoMemory();
    return -1;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    if (parse_edit(&edits[i], PyList_GET_ITEM(list, i), model, n_seq) < 0) {
      PyMem_Free(edits);
      return -1;
    }
  }
  *out = edits;
  return 0;
}

/* ---- Calls ------------------------------------------------------------------------------------------------------ */

/* What a function returned, as an array of the live one's shape and dtype; a new reference. */
static PyArrayObject *as_live(const clew_call_state *call, PyObject *returned, PyObject *live, const char *name) {
  PyArrayObject *given = (PyArrayObject *)PyArray_FROM_O(returned);
  if (given == NULL) {
    return NULL;
  }
  PyArrayObject *like = (PyArrayObject *)live;
  const int n_dims = PyArray_NDIM(like);
  if (PyArray_NDIM(given) != n_dims || !PyArray_CompareLists(PyArray_DIMS(given), PyArray_DIMS(like), n_dims)) {
    PyObject *got = PyObject_GetAttrString((PyObject *)given, "shape"), *want = PyObject_GetAttrString(live, "shape");
    PyErr_Format(call->state->errors[CLEW_ERROR_SHAPE],
                 "edit.call of %s: the function returned shape %S, the site has %S", name, got ? got : Py_None,
                 want ? want : Py_None);
    Py_XDECREF(got);
    Py_XDECREF(want);
    Py_DECREF(given);
    return NULL;
  }
  PyArray_Descr *type = PyArray_DescrFromType(call->typenum);
  if (!PyArray_CanCastArrayTo(given, type, NPY_SAME_KIND_CASTING)) {
    PyErr_Format(call->state->errors[CLEW_ERROR_SHAPE], "edit.call of %s: the function returned dtype %S, not %S", name,
                 (PyObject *)PyArray_DESCR(given), (PyObject *)type);
    Py_DECREF(type);
    Py_DECREF(given);
    return NULL;
  }
  PyArrayObject *out =
      (PyArrayObject *)PyArray_FromArray(given, type, NPY_ARRAY_CARRAY_RO | NPY_ARRAY_FORCECAST); /* steals type */
  Py_DECREF(given);
  return out;
}

int clew_call_python(void *ctx, const void **result, clew_slab *value, int32_t index, clew_site_ref site,
                     int32_t n_dims, const size_t *shape) {
  clew_call_state *call = ctx;
  PyEval_RestoreThread(*call->thread);
  Py_CLEAR(call->result);
  char name[128];
  if (clew_sites[site.site].layered) {
    snprintf(name, sizeof name, "blocks.%d.%s", site.layer, clew_sites[site.site].name);
  } else {
    snprintf(name, sizeof name, "%s", clew_sites[site.site].name);
  }
  npy_intp dims[4];
  for (int32_t d = 0; d < n_dims; d++) {
    dims[d] = (npy_intp)shape[d];
  }
  int failed = 1;
  PyObject *returned = NULL;
  PyObject *live = clew_slab_array(value, 0, n_dims, dims, call->typenum, 1);
  PyObject *function = live ? PySequence_GetItem(call->calls, index) : NULL; /* −1, the last: a metric */
  if (function != NULL) {
    returned = PyObject_CallFunction(function, "Os", live, name);
  }
  if (returned == Py_None || returned == live) {
    failed = 0;
  } else if (returned != NULL) {
    call->result = (PyObject *)as_live(call, returned, live, name);
    failed = call->result == NULL;
    *result = failed ? NULL : PyArray_DATA((PyArrayObject *)call->result);
  }
  Py_XDECREF(returned);
  Py_XDECREF(function);
  Py_XDECREF(live);
  *call->thread = PyEval_SaveThread();
  return failed;
}

/* ---- Caches ----------------------------------------------------------------------------------------------------- */

void clew_free_cache(clew_cache *cache) {
  PyMem_Free((void *)cache->k);
  PyMem_Free((void *)cache->v);
}

static int parse_layers(void **out, clew_cache *cache, PyObject *list, const clew_config *c) {
  if (!PyList_Check(list) || PyList_GET_SIZE(list) != c->n_layers) {
    PyErr_Format(PyExc_ValueError, "a cache holds a list of %d arrays", c->n_layers);
    return -1;
  }
  for (int32_t l = 0; l < c->n_layers; l++) {
    PyArrayObject *array = (PyArrayObject *)PyList_GET_ITEM(list, l);
    if (!PyArray_Check((PyObject *)array) || PyArray_TYPE(array) != clew_typenum(c->dtype) ||
        !PyArray_ISCARRAY_RO(array) || !clew_in_slab(array) || PyArray_NDIM(array) != 4 ||
        PyArray_DIM(array, 2) != c->n_kv_heads || PyArray_DIM(array, 3) != c->d_head ||
        (cache->n_seq != 0 &&
         ((size_t)PyArray_DIM(array, 0) != cache->n_seq || (size_t)PyArray_DIM(array, 1) != cache->capacity))) {
      PyErr_Format(PyExc_ValueError,
                   "keys and values of layer %d must be contiguous slab arrays [n_seq, capacity, %d, %d], all alike", l,
                   c->n_kv_heads, c->d_head);
      return -1;
    }
    cache->n_seq = (size_t)PyArray_DIM(array, 0), cache->capacity = (size_t)PyArray_DIM(array, 1);
    out[l] = PyArray_DATA(array);
  }
  return 0;
}

int clew_parse_cache(clew_cache *out, PyObject *object, const clew_config *config) {
  PyObject *k, *v;
  if (!PyArg_ParseTuple(object, "OO", &k, &v)) {
    return -1;
  }
  void **keys = PyMem_Calloc((size_t)config->n_layers + 1, sizeof *keys);
  void **values = PyMem_Calloc((size_t)config->n_layers + 1, sizeof *values);
  *out = (clew_cache){.k = keys, .v = values};
  if (keys == NULL || values == NULL) {
    clew_free_cache(out);
    PyErr_NoMemory();
    return -1;
  }
  if (parse_layers(keys, out, k, config) < 0 || parse_layers(values, out, v, config) < 0) {
    clew_free_cache(out);
    return -1;
  }
  return 0;
}
