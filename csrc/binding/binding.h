/* The CPython side: arguments in, NumPy views out, the GIL, exceptions. No arithmetic. */
#ifndef CLEW_BINDING_H
#define CLEW_BINDING_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL clew_numpy_api
#ifndef CLEW_IMPORT_NUMPY
#define NO_IMPORT_ARRAY
#endif
#include <numpy/arrayobject.h>

#include "clew.h"

typedef struct clew_state {
  PyObject *errors[CLEW_ERROR_CANCELLED + 1]; /* exception of each status; NULL: the status has its own treatment */
  PyTypeObject *model_type, *plan_type;
} clew_state;

extern PyModuleDef clew_module;
extern PyType_Spec clew_model_spec, clew_plan_spec;

typedef struct clew_model_object {
  PyObject_HEAD clew_model *model;
  PyObject *arrays; /* tuple of the weights: keeps their memory alive */
} clew_model_object;

/* Raises the exception of err; always returns NULL. */
PyObject *clew_raise(const clew_state *state, const clew_error *err);
static inline clew_state *clew_module_state(PyObject *module) { return PyModule_GetState(module); }
clew_state *clew_state_of(PyTypeObject *type);

/* A new array over slab memory that keeps the slab alive; takes no reference of the caller's. */
PyObject *clew_slab_array(clew_slab *slab, size_t offset, int n_dims, const npy_intp *shape, int typenum,
                          int writeable);
/* Does the array's memory lie in a slab, so that products may read behind it? */
int clew_in_slab(PyArrayObject *array);

/* A contiguous int32 array, as Python code makes it; a new reference, or NULL with an exception. */
PyArrayObject *clew_int_array(PyObject *object, const char *what);

/* binding_edit.c: interventions, the functions they call, and caches of keys and values. */
/* A list of (site, layer, kind, batch, positions, heads, neurons, value, strides, call) into PyMem memory; the list
 * owns what the edits point to. −1 with an exception. */
int clew_parse_edits(clew_edit **out, PyObject *list, const clew_model_object *model, size_t n_seq);

typedef struct clew_call_state {
  PyThreadState **thread; /* the calling thread's, while the GIL is released */
  PyObject *calls;        /* sequence of callables, borrowed */
  PyObject *result;       /* what the last call returned, kept until the core has read it */
  const clew_state *state;
  int typenum;
} clew_call_state;
int clew_call_python(void *ctx, const void **result, clew_slab *value, int32_t index, clew_site_ref site,
                     int32_t n_dims, const size_t *shape);

/* (keys, values): lists of writable arrays [n_seq, capacity, g, e], one a layer, borrowed. */
int clew_parse_cache(clew_cache *out, PyObject *object, const clew_config *config);
void clew_free_cache(clew_cache *cache);

/* Polling of a computation without the GIL: takes it and lets Python handle signals. An exception (KeyboardInterrupt)
 * cancels. binding_plan.c */
typedef struct clew_poll_state {
  PyThreadState *thread; /* the calling thread's, while the GIL is released */
} clew_poll_state;
int clew_poll_signals(void *ctx);

/* binding_maze.c: functions of the module. */
PyObject *clew_py_maze_generate(PyObject *module, PyObject *args);
PyObject *clew_py_maze_hashes(PyObject *module, PyObject *batch);
PyObject *clew_py_maze_paths(PyObject *module, PyObject *batch);
PyObject *clew_py_maze_distances(PyObject *module, PyObject *batch);
PyObject *clew_py_maze_guess(PyObject *module, PyObject *args);
PyObject *clew_py_maze_tokens(PyObject *module, PyObject *args);

/* binding_nearest.c: a function of the module. */
PyObject *clew_py_nearest(PyObject *module, PyObject *args);

/* binding_reduce.c: functions of the module. */
PyObject *clew_py_histogram(PyObject *module, PyObject *args);
PyObject *clew_py_top_k(PyObject *module, PyObject *args);
PyObject *clew_py_centre(PyObject *module, PyObject *args);

/* binding_train.c: functions of the module. */
PyObject *clew_py_adamw(PyObject *module, PyObject *args);
PyObject *clew_py_global_norm(PyObject *module, PyObject *list);
PyObject *clew_py_accumulate(PyObject *module, PyObject *args);

/* binding_adaptive.c: functions of the module. */
PyObject *clew_py_adaptive_parameters(PyObject *module, PyObject *shape);
PyObject *clew_py_adaptive_pass(PyObject *module, PyObject *args);
PyObject *clew_py_adaptive_train(PyObject *module, PyObject *args);
PyObject *clew_py_programme_values(PyObject *module, PyObject *args);

/* binding_regression.c: functions of the module. */
PyObject *clew_py_reg_stream(PyObject *module, PyObject *args);
PyObject *clew_py_reg_state(PyObject *module, PyObject *args);
PyObject *clew_py_reg_update(PyObject *module, PyObject *args);
PyObject *clew_py_reg_weights(PyObject *module, PyObject *args);
PyObject *clew_py_reg_compare(PyObject *module, PyObject *args);
PyObject *clew_py_reg_dmmse(PyObject *module, PyObject *args);

static inline int clew_typenum(clew_dtype dtype) { return dtype == CLEW_FLOAT32 ? NPY_FLOAT32 : NPY_FLOAT64; }

#endif
