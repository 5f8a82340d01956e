/* Items of a list by their places: the twin is `shipper.record.pick`. */

#include "native.h"

PyDoc_STRVAR(pick_doc,
"pick(column, rows)\n--\n\n"
"Give the items of a list at some places, a list too. None if there is no such place, or one counts from the end.");

static PyObject *
pick(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 2 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[1])) {
        PyErr_SetString(PyExc_TypeError, "pick takes two lists");
        return NULL;
    }
    PyObject *column = args[0], *rows = args[1];
    Py_ssize_t count = PyList_GET_SIZE(rows);
    PyObject *picked = PyList_New(count);
    if (picked == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *row = PyList_GET_ITEM(rows, i);
        Py_ssize_t place = PyLong_CheckExact(row) ? PyLong_AsSsize_t(row) : -1;
        if (place < 0 || place >= PyList_GET_SIZE(column)) {
            PyErr_Clear();
            Py_DECREF(picked);
            Py_RETURN_NONE;
        }
        PyList_SET_ITEM(picked, i, Py_NewRef(PyList_GET_ITEM(column, place)));
    }
    return picked;
}

PyMethodDef list_methods[] = {
    {"pick", (PyCFunction)(void (*)(void))pick, METH_FASTCALL, pick_doc},
    {NULL, NULL, 0, NULL},
};
