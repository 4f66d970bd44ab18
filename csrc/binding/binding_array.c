/* Arrays over slabs. An array's base is a capsule that holds one reference to its slab. */
#include "binding.h"

static const char capsule_name[] = "clew.slab";

static void release_slab(PyObject *capsule) { clew_slab_release(PyCapsule_GetPointer(capsule, capsule_name)); }

PyObject *clew_slab_array(clew_slab *slab, size_t offset, int n_dims, const npy_intp *shape, int typenum,
                          int writeable) {
  PyObject *capsule = PyCapsule_New(clew_slab_retain(slab), capsule_name, release_slab);
  if (capsule == NULL) {
    clew_slab_release(slab);
    return NULL;
  }
  PyObject *array =
      PyArray_New(&PyArray_Type, n_dims, shape, typenum, NULL, (char *)clew_slab_data(slab) + offset, 0,
                  NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED | (writeable ? NPY_ARRAY_WRITEABLE : 0), NULL);
  if (array == NULL || PyArray_SetBaseObject((PyArrayObject *)array, capsule) < 0) { /* steals the capsule */
    if (array == NULL) {
      Py_DECREF(capsule);
    }
    Py_XDECREF(array);
    return NULL;
  }
  return array;
}

int clew_in_slab(PyArrayObject *array) {
  PyObject *base = PyArray_BASE(array);
  while (base != NULL && PyArray_Check(base)) {
    base = PyArray_BASE((PyArrayObject *)base);
  }
  return base != NULL && PyCapsule_IsValid(base, capsule_name);
}
