/* _core.Model: a configuration and weights, checked by the core. */
#include <string.h>

#include "binding.h"

/* ---- Reading the configuration: a dict whose keys are clew_config's fields ------------------------------------ */

static PyObject *config_item(PyObject *dict, const char *key) {
  PyObject *value = PyDict_GetItemString(dict, key); /* borrowed */
  if (value == NULL && !PyErr_Occurred()) {
    PyErr_Format(PyExc_KeyError, "config: %s is missing", key);
  }
  return value;
}

static int config_int(int32_t *out, PyObject *dict, const char *key) {
  PyObject *value = config_item(dict, key);
  const long number = value ? PyLong_AsLong(value) : -1;
  if (value == NULL || (number == -1 && PyErr_Occurred())) {
    return -1;
  }
  if (number > INT32_MAX || number < INT32_MIN) {
    PyErr_Format(PyExc_ValueError, "config: %s = %ld is out of range", key, number);
    return -1;
  }
  *out = (int32_t)number;
  return 0;
}

static int config_bool(bool *out, PyObject *dict, const char *key) {
  PyObject *value = config_item(dict, key);
  const int truth = value ? PyObject_IsTrue(value) : -1;
  *out = truth > 0;
  return truth < 0 ? -1 : 0;
}

static int config_double(double *out, PyObject *dict, const char *key) {
  PyObject *value = config_item(dict, key);
  *out = value ? PyFloat_AsDouble(value) : -1;
  return PyErr_Occurred() ? -1 : 0;
}

/* config borrows inv_freq from the dict's array; layers is the caller's, freed with PyMem_Free. */
static int read_config(clew_config *c, clew_layer_config **layers, PyObject *dict) {
  int32_t dtype, norm, position, act;
  if (config_int(&dtype, dict, "dtype") < 0 || config_int(&norm, dict, "norm") < 0 ||
      config_int(&position, dict, "position") < 0 || config_int(&act, dict, "act") < 0 ||
      config_int(&c->n_layers, dict, "n_layers") < 0 || config_int(&c->d_model, dict, "d_model") < 0 ||
      config_int(&c->n_heads, dict, "n_heads") < 0 || config_int(&c->n_kv_heads, dict, "n_kv_heads") < 0 ||
      config_int(&c->d_head, dict, "d_head") < 0 || config_int(&c->d_mlp, dict, "d_mlp") < 0 ||
      config_int(&c->n_ctx, dict, "n_ctx") < 0 || config_int(&c->d_vocab, dict, "d_vocab") < 0 ||
      config_int(&c->d_vocab_out, dict, "d_vocab_out") < 0 || config_int(&c->pos_offset, dict, "pos_offset") < 0 ||
      config_int(&c->n_rot, dict, "n_rot") < 0 || config_int(&c->linear_n, dict, "linear_n") < 0 ||
      config_bool(&c->final_norm, dict, "final_norm") < 0 || config_bool(&c->post_norms, dict, "post_norms") < 0 ||
      config_bool(&c->qk_norm, dict, "qk_norm") < 0 || config_bool(&c->vector_input, dict, "vector_input") < 0 ||
      config_bool(&c->rotary_adjacent, dict, "rotary_adjacent") < 0 ||
      config_bool(&c->attn_only, dict, "attn_only") < 0 || config_bool(&c->parallel, dict, "parallel") < 0 ||
      config_bool(&c->shared_norm, dict, "shared_norm") < 0 || config_bool(&c->gated, dict, "gated") < 0 ||
      config_bool(&c->causal, dict, "causal") < 0 || config_bool(&c->linear_attention, dict, "linear_attention") < 0 ||
      config_bool(&c->exclude_self, dict, "exclude_self") < 0 ||
      config_bool(&c->exclude_last, dict, "exclude_last") < 0 || config_double(&c->eps, dict, "eps") < 0 ||
      config_double(&c->embed_scale, dict, "embed_scale") < 0 ||
      config_double(&c->score_softcap, dict, "score_softcap") < 0 ||
      config_double(&c->logit_softcap, dict, "logit_softcap") < 0) {
    return -1;
  }
  c->dtype = (clew_dtype)dtype, c->norm = (clew_norm)norm, c->position = (clew_position)position;
  c->act = (clew_act)act;
  PyObject *freq = config_item(dict, "inv_freq");
  if (freq == NULL) {
    return -1;
  }
  if (!PyArray_Check(freq) || PyArray_TYPE((PyArrayObject *)freq) != NPY_FLOAT64 ||
      PyArray_NDIM((PyArrayObject *)freq) != 2 || !PyArray_ISCARRAY_RO((PyArrayObject *)freq) ||
      (PyArray_DIM((PyArrayObject *)freq, 0) > 0 && PyArray_DIM((PyArrayObject *)freq, 1) != c->n_rot / 2)) {
    PyErr_SetString(PyExc_ValueError, "config: inv_freq must be a contiguous float64 array [kinds, n_rot / 2]");
    return -1;
  }
  c->n_inv_freq = (int32_t)PyArray_DIM((PyArrayObject *)freq, 0);
  c->inv_freq = PyArray_DATA((PyArrayObject *)freq);
  PyObject *list = config_item(dict, "layers"); /* of (window, rotary_base, rotary, score_scale) */
  if (list == NULL) {
    return -1;
  }
  if (!PyList_Check(list) || c->n_layers < 0 || PyList_GET_SIZE(list) != c->n_layers) {
    PyErr_SetString(PyExc_ValueError, "config: layers must be a list of n_layers tuples");
    return -1;
  }
  *layers = PyMem_Calloc((size_t)c->n_layers + 1, sizeof **layers);
  if (*layers == NULL) {
    PyErr_NoMemory();
    return -1;
  }
  for (int32_t l = 0; l < c->n_layers; l++) {
    int rotary;
    clew_layer_config *layer = &(*layers)[l];
    if (!PyArg_ParseTuple(PyList_GET_ITEM(list, l), "iipd", &layer->window, &layer->rotary_base, &rotary,
                          &layer->score_scale)) {
      return -1;
    }
    layer->rotary = rotary != 0;
  }
  c->layers = *layers;
  return 0;
}

/* ---- Weights -------------------------------------------------------------------------------------------------- */

static int read_tensor(clew_tensor *t, PyObject *item, int typenum) {
  int weight, layer;
  PyObject *object;
  if (!PyArg_ParseTuple(item, "iiO", &weight, &layer, &object)) {
    return -1;
  }
  if (weight < 0 || weight >= CLEW_N_WEIGHTS) {
    PyErr_Format(PyExc_ValueError, "weights: %d is no weight", weight);
    return -1;
  }
  if (!PyArray_Check(object)) {
    PyErr_Format(PyExc_TypeError, "weights: %s is no array", clew_weights[weight].name);
    return -1;
  }
  PyArrayObject *array = (PyArrayObject *)object;
  if (PyArray_TYPE(array) != typenum || !PyArray_ISALIGNED(array) || !PyArray_ISNOTSWAPPED(array) ||
      PyArray_NDIM(array) < 1 || PyArray_NDIM(array) > 3 || !clew_in_slab(array)) {
    PyErr_Format(PyExc_ValueError,
                 "weights: %s must be an aligned array of the model's dtype with one to three axes, in memory from "
                 "clew._core.empty or map_file",
                 clew_weights[weight].name);
    return -1;
  }
  *t = (clew_tensor){.weight = (clew_weight)weight, .layer = layer, .n_dims = PyArray_NDIM(array)};
  t->data = PyArray_DATA(array);
  for (int d = 0; d < t->n_dims; d++) {
    if (PyArray_STRIDE(array, d) % PyArray_ITEMSIZE(array) != 0) {
      PyErr_Format(PyExc_ValueError, "weights: a stride of %s is no multiple of its item size",
                   clew_weights[weight].name);
      return -1;
    }
    t->shape[d] = (size_t)PyArray_DIM(array, d);
    t->strides[d] = PyArray_STRIDE(array, d) / PyArray_ITEMSIZE(array);
  }
  return 0;
}

/* Model(config: dict, weights: list[tuple[int, int, ndarray]]) */
static PyObject *model_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *keywords[] = {"config", "weights", NULL};
  PyObject *dict, *list;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!O!", keywords, &PyDict_Type, &dict, &PyList_Type, &list)) {
    return NULL;
  }
  clew_config config = {.dtype = CLEW_FLOAT32};
  clew_layer_config *layers = NULL;
  clew_tensor *tensors = NULL;
  PyObject *result = NULL;
  const Py_ssize_t n = PyList_GET_SIZE(list);
  PyObject *arrays = PyTuple_New(n);
  if (arrays == NULL || read_config(&config, &layers, dict) < 0) {
    goto done;
  }
  tensors = PyMem_Calloc((size_t)n + 1, sizeof *tensors);
  if (tensors == NULL) {
    PyErr_NoMemory();
    goto done;
  }
  for (Py_ssize_t i = 0; i < n; i++) {
    PyObject *item = PyList_GET_ITEM(list, i);
    if (read_tensor(&tensors[i], item, clew_typenum(config.dtype)) < 0) {
      goto done;
    }
    PyTuple_SET_ITEM(arrays, i, Py_NewRef(PyTuple_GET_ITEM(item, 2)));
  }
  clew_error err;
  clew_model *model;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = clew_model_new(&model, &config, tensors, (size_t)n, &err);
  Py_END_ALLOW_THREADS;
  if (status != CLEW_OK) {
    clew_raise(clew_state_of(type), &err);
    goto done;
  }
  clew_model_object *self = (clew_model_object *)type->tp_alloc(type, 0);
  if (self == NULL) {
    clew_model_free(model);
    goto done;
  }
  self->model = model;
  self->arrays = Py_NewRef(arrays);
  result = (PyObject *)self;
done:
  Py_XDECREF(arrays);
  PyMem_Free(layers);
  PyMem_Free(tensors);
  return result;
}

static void model_dealloc(clew_model_object *self) {
  PyTypeObject *type = Py_TYPE(self);
  clew_model_free(self->model);
  Py_XDECREF(self->arrays);
  type->tp_free((PyObject *)self);
  Py_DECREF(type);
}

/* has_site(site: int) -> bool */
static PyObject *model_has_site(clew_model_object *self, PyObject *arg) {
  const long site = PyLong_AsLong(arg);
  if (site == -1 && PyErr_Occurred()) {
    return NULL;
  }
  if (site < 0 || site >= CLEW_N_SITES) {
    return PyErr_Format(PyExc_ValueError, "%ld is no site", site);
  }
  return PyBool_FromLong(clew_model_has_site(self->model, (clew_site)site));
}

static PyMethodDef model_methods[] = {
    {"has_site", (PyCFunction)model_has_site, METH_O, "has_site(site)\n--\n\nDoes this model compute the site?"},
    {NULL, NULL, 0, NULL}};

static PyObject *model_n_packed(clew_model_object *self, void *closure) {
  (void)closure;
  return PyLong_FromSize_t(clew_model_n_packed(self->model));
}

static PyGetSetDef model_getset[] = {
    {"n_packed", (getter)model_n_packed, NULL, "number of weights that the engine holds copies of", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot model_slots[] = {{Py_tp_new, model_new},
                                    {Py_tp_dealloc, model_dealloc},
                                    {Py_tp_methods, model_methods},
                                    {Py_tp_getset, model_getset},
                                    {Py_tp_doc, "A checked configuration with its weights."},
                                    {0, NULL}};
PyType_Spec clew_model_spec = {.name = "clew._core.Model",
                               .basicsize = sizeof(clew_model_object),
                               .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                               .slots = model_slots};
