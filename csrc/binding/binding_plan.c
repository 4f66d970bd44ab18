/* _core.Plan: a compiled request; its run() computes without the GIL and gives views of the slabs. */
#include <string.h>

#include "binding.h"
#include "pool.h"

typedef struct clew_plan_object {
  PyObject_HEAD clew_plan *plan;
  clew_model_object *model;
  PyObject *edits; /* list of tuples: keeps the values alive */
  npy_intp n_rows; /* Σ lengths */
  npy_intp n_seq;
  int vectors; /* the run's floats are what a model with vector_input reads, not embeddings */
  int objective;
  bool metric; /* of CLEW_LOGITS_DIFFERENCE and the others */
} clew_plan_object;

/* Pairs (site, layer) of an int32 array [n, 2], in PyMem memory. */
static clew_site_ref *site_refs(PyArrayObject *array, size_t n) {
  clew_site_ref *refs = PyMem_Calloc(n + 1, sizeof *refs);
  for (size_t i = 0; i < n && refs != NULL; i++) {
    const int32_t *pair = (const int32_t *)PyArray_DATA(array) + 2 * i;
    refs[i] = (clew_site_ref){(clew_site)pair[0], pair[1]};
  }
  return refs;
}

/* Plan(model, lengths, capture, positions, start_layer, stop_layer, from_embeddings, logits, edits=(), past=None,
 * past_seq=None, append=False, wrt=None, weights=False, objective=0, recompute=False, last=None) */
static PyObject *plan_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
  static char *keywords[] = {
      "model", "lengths",  "capture", "positions", "start_layer", "stop_layer", "from_embeddings", "logits", "edits",
      "past",  "past_seq", "append",  "wrt",       "weights",     "objective",  "recompute",       "last",   NULL};
  clew_state *state = clew_state_of(type);
  PyObject *model, *lengths_object, *capture_object, *positions_object;
  PyObject *edits_object = NULL, *past_object = Py_None, *past_seq_object = Py_None, *wrt_object = Py_None,
           *last_object = Py_None;
  int start, stop, from_embeddings, logits, append = 0, weights = 0, objective = 0, recompute = 0;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!OOOiipi|OOOpOpipO", keywords, state->model_type, &model,
                                   &lengths_object, &capture_object, &positions_object, &start, &stop, &from_embeddings,
                                   &logits, &edits_object, &past_object, &past_seq_object, &append, &wrt_object,
                                   &weights, &objective, &recompute, &last_object)) {
    return NULL;
  }
  PyArrayObject *lengths = NULL, *capture = NULL, *positions = NULL, *past = NULL, *past_seq = NULL, *wrt = NULL,
                *last = NULL;
  PyObject *edit_list = NULL;
  clew_edit *edits = NULL;
  clew_plan_object *self = NULL;
  clew_site_ref *refs = NULL, *wrt_refs = NULL;
  clew_plan *plan = NULL;
  if ((lengths = clew_int_array(lengths_object, "lengths")) == NULL ||
      (capture = clew_int_array(capture_object, "capture")) == NULL ||
      (positions_object != Py_None && (positions = clew_int_array(positions_object, "positions")) == NULL) ||
      (past_object != Py_None && (past = clew_int_array(past_object, "past")) == NULL) ||
      (past_seq_object != Py_None && (past_seq = clew_int_array(past_seq_object, "past_seq")) == NULL) ||
      (last_object != Py_None && (last = clew_int_array(last_object, "last")) == NULL) ||
      (wrt_object != Py_None && (wrt = clew_int_array(wrt_object, "wrt")) == NULL)) {
    goto done;
  }
  if ((wrt && (PyArray_NDIM(wrt) != 2 || PyArray_DIM(wrt, 1) != 2)) || objective < 0 ||
      objective > CLEW_OBJECTIVE_TANGENTS) {
    PyErr_SetString(PyExc_ValueError, "wrt must be [n, 2], objective 0 to 4");
    goto done;
  }
  if ((past && PyArray_SIZE(past) != PyArray_SIZE(lengths)) ||
      (past_seq && PyArray_SIZE(past_seq) != PyArray_SIZE(lengths)) ||
      (last && PyArray_SIZE(last) != PyArray_SIZE(lengths))) {
    PyErr_SetString(PyExc_ValueError, "past, past_seq and last must be as long as lengths");
    goto done;
  }
  if (PyArray_NDIM(capture) != 2 || PyArray_DIM(capture, 1) != 2 || PyArray_NDIM(lengths) != 1 || logits < 0 ||
      logits > CLEW_LOGITS_KL || PyArray_SIZE(lengths) > INT32_MAX) {
    PyErr_SetString(PyExc_ValueError, "lengths must be [n_seq], capture [n, 2], logits 0 to 6");
    goto done;
  }
  const size_t n_capture = (size_t)PyArray_DIM(capture, 0);
  const size_t n_wrt = wrt ? (size_t)PyArray_DIM(wrt, 0) : 0;
  refs = site_refs(capture, n_capture);
  wrt_refs = site_refs(wrt, n_wrt);
  if (refs == NULL || wrt_refs == NULL) {
    PyErr_NoMemory();
    goto done;
  }
  edit_list = edits_object ? PySequence_List(edits_object) : PyList_New(0);
  if (edit_list == NULL ||
      clew_parse_edits(&edits, edit_list, (clew_model_object *)model, (size_t)PyArray_SIZE(lengths)) < 0) {
    goto done;
  }
  const clew_request request = {.n_seq = (int32_t)PyArray_SIZE(lengths),
                                .past = past ? PyArray_DATA(past) : NULL,
                                .past_seq = past_seq ? PyArray_DATA(past_seq) : NULL,
                                .append = append != 0,
                                .last = last ? PyArray_DATA(last) : NULL,
                                .wrt = wrt_refs,
                                .n_wrt = n_wrt,
                                .weight_gradients = weights != 0,
                                .recompute = recompute != 0,
                                .objective = (clew_objective)objective,
                                .edits = edits,
                                .n_edits = (size_t)PyList_GET_SIZE(edit_list),
                                .lengths = PyArray_DATA(lengths),
                                .capture = refs,
                                .n_capture = n_capture,
                                .positions = positions ? PyArray_DATA(positions) : NULL,
                                .n_positions = positions ? (size_t)PyArray_SIZE(positions) : 0,
                                .start_layer = start,
                                .stop_layer = stop,
                                .from_embeddings = from_embeddings != 0,
                                .logits = (clew_logits)logits};
  clew_error err;
  clew_status status;
  Py_BEGIN_ALLOW_THREADS;
  status = clew_plan_new(&plan, ((clew_model_object *)model)->model, &request, &err);
  Py_END_ALLOW_THREADS;
  if (status != CLEW_OK) {
    clew_raise(state, &err);
    goto done;
  }
  self = (clew_plan_object *)type->tp_alloc(type, 0);
  if (self == NULL) {
    clew_plan_free(plan);
    goto done;
  }
  self->plan = plan;
  self->objective = objective;
  self->n_seq = request.n_seq;
  self->metric = logits > CLEW_LOGITS_LOSS;
  self->edits = Py_NewRef(edit_list);
  self->model = (clew_model_object *)Py_NewRef(model);
  self->vectors =
      !request.from_embeddings && start < 0 && clew_model_config(((clew_model_object *)model)->model)->vector_input;
  for (int32_t i = 0; i < request.n_seq; i++) {
    self->n_rows += request.lengths[i];
  }
done:
  PyMem_Free(refs);
  PyMem_Free(wrt_refs);
  Py_XDECREF(wrt);
  PyMem_Free(edits);
  Py_XDECREF(edit_list);
  Py_XDECREF(past);
  Py_XDECREF(past_seq);
  Py_XDECREF(last);
  Py_XDECREF(lengths);
  Py_XDECREF(capture);
  Py_XDECREF(positions);
  return (PyObject *)self;
}

static void plan_dealloc(clew_plan_object *self) {
  PyTypeObject *type = Py_TYPE(self);
  clew_plan_free(self->plan);
  Py_XDECREF(self->edits);
  Py_XDECREF(self->model);
  type->tp_free((PyObject *)self);
  Py_DECREF(type);
}

/* ---- Running -------------------------------------------------------------------------------------------------- */

int clew_poll_signals(void *ctx) {
  clew_poll_state *poll = ctx;
  PyEval_RestoreThread(poll->thread);
  const int raised = PyErr_CheckSignals();
  poll->thread = PyEval_SaveThread();
  return raised;
}

/* (site, layers, array [n_layers, ...]) of one output; the layer axis is left out where the site has none. Gradients by
 * sites are told apart by their number: the number of all sites is added. */
static PyObject *output_item(const clew_plan_object *self, const clew_run *run, size_t index) {
  const clew_output *o = clew_plan_output(self->plan, index);
  npy_intp shape[5];
  int n_dims = 0;
  if (clew_sites[o->site].layered) {
    shape[n_dims++] = o->n_layers;
  }
  for (int32_t d = 0; d < o->n_dims; d++) {
    shape[n_dims++] = (npy_intp)o->shape[d];
  }
  const int typenum = o->is_double ? NPY_DOUBLE : clew_typenum(clew_model_config(self->model->model)->dtype);
  PyObject *array = clew_slab_array(clew_run_slab(run, o->slab), o->offset, n_dims, shape, typenum, 0);
  PyObject *layers = PyTuple_New(o->n_layers);
  for (int32_t l = 0; l < o->n_layers && layers != NULL; l++) {
    PyObject *number = PyLong_FromLong(o->layers[l]);
    if (number == NULL) {
      Py_CLEAR(layers);
    } else {
      PyTuple_SET_ITEM(layers, l, number);
    }
  }
  if (array == NULL || layers == NULL) {
    Py_XDECREF(array);
    Py_XDECREF(layers);
    return NULL;
  }
  return Py_BuildValue("iNN", (int)o->site + (o->gradient ? CLEW_N_SITES : 0), layers, array);
}

/* (weight, layer, array [rows, cols]) of every weight's gradient */
static PyObject *weight_gradients(const clew_plan_object *self, const clew_run *run) {
  const size_t n = clew_plan_n_weight_gradients(self->plan);
  const int typenum = clew_typenum(clew_model_config(self->model->model)->dtype);
  PyObject *list = PyList_New((Py_ssize_t)n);
  for (size_t i = 0; i < n && list != NULL; i++) {
    const clew_weight_gradient *g = clew_plan_weight_gradient(self->plan, i);
    const npy_intp shape[2] = {(npy_intp)g->rows, (npy_intp)g->cols};
    clew_slab *slab = clew_run_slab(run, clew_plan_gradient_slab(self->plan));
    PyObject *array = clew_slab_array(slab, g->offset, 2, shape, typenum, 1);
    PyObject *item = array ? Py_BuildValue("iiN", (int)g->weight, g->layer, array) : NULL;
    if (item == NULL) {
      Py_CLEAR(list);
    } else {
      PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
  }
  return list;
}

/* Targets and weights of an objective. */
static int parse_targets(clew_input *input, const clew_plan_object *self, PyObject *targets, PyObject *weights,
                         int objective, const clew_state *state) {
  const clew_config *config = clew_model_config(self->model->model);
  const npy_intp rows = (npy_intp)clew_plan_n_objective_rows(self->plan);
  const int typenum = clew_typenum(config->dtype);
  if (targets != Py_None) {
    const bool ids = objective == CLEW_OBJECTIVE_CROSS_ENTROPY;
    PyArrayObject *array = (PyArrayObject *)targets;
    if (!PyArray_Check(targets) || PyArray_TYPE(array) != (ids ? NPY_INT32 : typenum) || !PyArray_ISCARRAY_RO(array) ||
        PyArray_SIZE(array) != rows * (ids ? 1 : config->d_vocab_out)) {
      PyErr_Format(state->errors[CLEW_ERROR_SHAPE], "targets must be contiguous, %zd rows of %d, %s", rows,
                   ids ? 1 : config->d_vocab_out, ids ? "int32" : "of the model's dtype");
      return -1;
    }
    input->targets = PyArray_DATA(array);
  }
  if (weights != Py_None) {
    PyArrayObject *array = (PyArrayObject *)weights;
    if (!PyArray_Check(weights) || PyArray_TYPE(array) != typenum || !PyArray_ISCARRAY_RO(array) ||
        PyArray_SIZE(array) != rows) {
      PyErr_Format(state->errors[CLEW_ERROR_SHAPE], "weights must be contiguous, of the model's dtype, for %zd rows",
                   rows);
      return -1;
    }
    input->weights = PyArray_DATA(array);
  }
  return 0;
}

/* What a metric reads: tokens [n_seq, 2] and, of KL, reference log-probabilities [n, vocab]. */
static int parse_metric(clew_input *input, const clew_plan_object *self, PyObject *picks, PyObject *reference) {
  const clew_config *config = clew_model_config(self->model->model);
  PyArrayObject *ids = (PyArrayObject *)picks, *log_p = (PyArrayObject *)reference;
  if (!PyArray_Check(picks) || PyArray_TYPE(ids) != NPY_INT32 || !PyArray_ISCARRAY_RO(ids) ||
      PyArray_SIZE(ids) != 2 * self->n_seq) {
    PyErr_Format(PyExc_ValueError, "a metric's tokens must be int32 [%zd, 2]", self->n_seq);
    return -1;
  }
  input->picks = PyArray_DATA(ids);
  if (reference != Py_None) {
    if (!PyArray_Check(reference) || PyArray_TYPE(log_p) != NPY_DOUBLE || !PyArray_ISCARRAY_RO(log_p) ||
        PyArray_NDIM(log_p) != 2 || PyArray_DIM(log_p, 1) != config->d_vocab_out) {
      PyErr_Format(PyExc_ValueError, "a metric's reference must be float64 [n, %d]", config->d_vocab_out);
      return -1;
    }
    input->reference = PyArray_DATA(log_p), input->n_reference = (size_t)PyArray_DIM(log_p, 0);
  }
  return 0;
}

/* run(tokens: int32 array [rows] | None, embeddings: array [rows, d_model] | None, calls=(), cache=None, targets=None,
 * weights=None) -> outputs; with an objective (outputs, its value, weight gradients). A metric takes its tokens
 * [n_seq, 2] for targets, and the reference of KL for weights. */
static PyObject *plan_run(clew_plan_object *self, PyObject *args) {
  clew_state *state = clew_state_of(Py_TYPE(self));
  PyObject *tokens_object, *embeddings_object, *calls = NULL, *cache_object = Py_None;
  PyObject *targets = Py_None, *weights = Py_None;
  if (!PyArg_ParseTuple(args, "OO|OOOO", &tokens_object, &embeddings_object, &calls, &cache_object, &targets,
                        &weights)) {
    return NULL;
  }
  const clew_config *config = clew_model_config(self->model->model);
  clew_input input = {0};
  if (tokens_object != Py_None) {
    PyArrayObject *tokens = clew_int_array(tokens_object, "tokens");
    if (tokens == NULL) {
      return NULL;
    }
    Py_DECREF(tokens); /* the argument tuple holds it */
    if (PyArray_SIZE(tokens) != self->n_rows) {
      return PyErr_Format(state->errors[CLEW_ERROR_SHAPE], "%zd tokens, the plan is for %zd", PyArray_SIZE(tokens),
                          self->n_rows);
    }
    input.tokens = PyArray_DATA(tokens);
  }
  if (embeddings_object != Py_None) {
    PyArrayObject *array = (PyArrayObject *)embeddings_object;
    const int32_t width = self->vectors ? config->d_vocab : config->d_model;
    if (!PyArray_Check(embeddings_object) || PyArray_TYPE(array) != clew_typenum(config->dtype) ||
        !PyArray_ISCARRAY_RO(array) || PyArray_SIZE(array) != self->n_rows * width) {
      PyErr_Format(state->errors[CLEW_ERROR_SHAPE],
                   "embeddings must be contiguous, of the model's dtype, with %zd x %d values", self->n_rows, width);
      return NULL;
    }
    *(self->vectors ? &input.vectors : &input.embeddings) = PyArray_DATA(array);
  }
  if (self->metric ? parse_metric(&input, self, targets, weights) < 0
                   : parse_targets(&input, self, targets, weights, self->objective, state) < 0) {
    return NULL;
  }
  clew_cache cache;
  if (cache_object != Py_None) {
    if (clew_parse_cache(&cache, cache_object, config) < 0) {
      return NULL;
    }
    input.cache = &cache;
  }
  clew_run *run = NULL;
  clew_error err;
  clew_poll_state poll;
  clew_cancel cancel = {.poll = clew_poll_signals, .ctx = &poll};
  clew_call_state call = {
      .thread = &poll.thread, .calls = calls, .state = state, .typenum = clew_typenum(config->dtype)};
  if (calls != NULL) {
    input.call = clew_call_python, input.call_ctx = &call;
  }
  poll.thread = PyEval_SaveThread();
  const clew_status status = clew_run_new(&run, self->plan, &input, &cancel, &err);
  PyEval_RestoreThread(poll.thread);
  Py_XDECREF(call.result);
  if (cache_object != Py_None) {
    clew_free_cache(&cache);
  }
  if (status != CLEW_OK) {
    return clew_raise(state, &err);
  }
  const size_t n = clew_plan_n_outputs(self->plan);
  PyObject *list = PyList_New((Py_ssize_t)n);
  for (size_t i = 0; i < n && list != NULL; i++) {
    PyObject *item = output_item(self, run, i);
    if (item == NULL) {
      Py_CLEAR(list);
    } else {
      PyList_SET_ITEM(list, (Py_ssize_t)i, item);
    }
  }
  if (self->objective != CLEW_OBJECTIVE_NONE && list != NULL) {
    PyObject *gradients = weight_gradients(self, run);
    list = gradients ? Py_BuildValue("NdN", list, clew_run_objective(run), gradients) : (Py_DECREF(list), NULL);
  }
  clew_run_free(run);
  return list;
}

static PyObject *plan_trim(clew_plan_object *self, PyObject *unused) {
  (void)unused;
  clew_plan_trim(self->plan);
  Py_RETURN_NONE;
}

/* ---- Questions ------------------------------------------------------------------------------------------------ */

static PyObject *plan_keep_bytes(clew_plan_object *self, void *closure) {
  (void)closure;
  return PyLong_FromSize_t(clew_plan_keep_bytes(self->plan));
}

static PyObject *plan_scratch_bytes(clew_plan_object *self, void *closure) {
  (void)closure;
  return PyLong_FromSize_t(clew_plan_scratch_bytes(self->plan));
}

static PyObject *plan_flops(clew_plan_object *self, void *closure) {
  (void)closure;
  return PyFloat_FromDouble(clew_plan_flops(self->plan));
}

static PyObject *plan_outputs(clew_plan_object *self, void *closure) {
  (void)closure;
  const size_t n = clew_plan_n_outputs(self->plan);
  PyObject *list = PyList_New((Py_ssize_t)n);
  for (size_t i = 0; i < n && list != NULL; i++) {
    const clew_output *o = clew_plan_output(self->plan, i);
    PyObject *shape = PyTuple_New(o->n_dims);
    for (int32_t d = 0; d < o->n_dims && shape != NULL; d++) {
      PyTuple_SET_ITEM(shape, d, PyLong_FromSize_t(o->shape[d]));
    }
    PyObject *layers = PyTuple_New(o->n_layers);
    for (int32_t l = 0; l < o->n_layers && layers != NULL; l++) {
      PyTuple_SET_ITEM(layers, l, PyLong_FromLong(o->layers[l]));
    }
    PyObject *item =
        shape && layers ? Py_BuildValue("iNN", (int)o->site + (o->gradient ? CLEW_N_SITES : 0), layers, shape) : NULL;
    if (item == NULL) {
      Py_CLEAR(list);
      break;
    }
    PyList_SET_ITEM(list, (Py_ssize_t)i, item);
  }
  return list;
}

static PyObject *plan_steps(clew_plan_object *self, void *closure) {
  (void)closure;
  const size_t n = clew_plan_n_steps(self->plan);
  PyObject *list = PyList_New((Py_ssize_t)n);
  for (size_t i = 0; i < n && list != NULL; i++) {
    char text[256];
    clew_plan_describe(self->plan, i, text, sizeof text);
    PyObject *line = PyUnicode_FromString(text);
    if (line == NULL) {
      Py_CLEAR(list);
    } else {
      PyList_SET_ITEM(list, (Py_ssize_t)i, line);
    }
  }
  return list;
}

static PyMethodDef plan_methods[] = {
    {"run", (PyCFunction)plan_run, METH_VARARGS,
     "run(tokens, embeddings)\n--\n\nComputes (embeddings: input vectors where the model reads vectors); a list of "
     "(site, layers, array) with read-only views of the slabs."},
    {"trim", (PyCFunction)plan_trim, METH_NOARGS,
     "trim()\n--\n\nGives back the memory that weight gradients keep between runs."},
    {NULL, NULL, 0, NULL}};

static PyGetSetDef plan_getset[] = {
    {"keep_bytes", (getter)plan_keep_bytes, NULL, "bytes of what the caller gets", NULL},
    {"scratch_bytes", (getter)plan_scratch_bytes, NULL, "bytes that a run needs besides", NULL},
    {"flops", (getter)plan_flops, NULL, "floating-point operations of the products, causal", NULL},
    {"outputs", (getter)plan_outputs, NULL, "list of (site, layers, shape of one layer)", NULL},
    {"steps", (getter)plan_steps, NULL, "a line about each step", NULL},
    {NULL, NULL, NULL, NULL, NULL}};

static PyType_Slot plan_slots[] = {
    {Py_tp_new, plan_new},       {Py_tp_dealloc, plan_dealloc},      {Py_tp_methods, plan_methods},
    {Py_tp_getset, plan_getset}, {Py_tp_doc, "A compiled request."}, {0, NULL}};
PyType_Spec clew_plan_spec = {.name = "clew._core.Plan",
                              .basicsize = sizeof(clew_plan_object),
                              .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
                              .slots = plan_slots};
