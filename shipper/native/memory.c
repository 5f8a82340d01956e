/* What malloc does with memory that is free again. There is no twin: without this the same is done, slower. */

#include "native.h"

#include <malloc.h>

PyDoc_STRVAR(keep_memory_doc,
"keep_memory(block, total)\n--\n\n"
"Have memory of blocks of up to so many bytes kept for the next ones, and at most so much in total for each thread.\n\n"
"By default glibc gives blocks of 128 KiB and more back to the kernel, which clears every page anew for the next one.");

static PyObject *
keep_memory(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2) {
        PyErr_SetString(PyExc_TypeError, "keep_memory takes two numbers");
        return NULL;
    }
    int block = (int)PyLong_AsLong(args[0]), total = (int)PyLong_AsLong(args[1]);
    if (PyErr_Occurred())
        return NULL;
#ifdef __GLIBC__
    mallopt(M_MMAP_THRESHOLD, block);
    mallopt(M_TRIM_THRESHOLD, total);
#endif
    Py_RETURN_NONE;
}

PyMethodDef memory_methods[] = {
    {"keep_memory", (PyCFunction)(void (*)(void))keep_memory, METH_FASTCALL, keep_memory_doc},
    {NULL, NULL, 0, NULL},
};
