/* Integers that 64 bits do not hold: the twin is `shipper.render.wide`. */

#include "native.h"

/* 1 if such an integer stands anywhere in a value, 0 if none does, -1 for a type that only the twin looks into, or for
 * nesting that is too deep. */
static int
is_wide(PyObject *value, int depth)
{
    int found = 0, overflow;
    if (PyLong_Check(value)) {
        (void)PyLong_AsLongLongAndOverflow(value, &overflow);
        return overflow != 0;
    }
    if (PyUnicode_Check(value) || PyFloat_Check(value) || value == Py_None)
        return 0;
    if (depth == DEPTH)
        return -1;
    if (PyDict_CheckExact(value)) {
        Py_ssize_t position = 0;
        PyObject *item;
        while (found == 0 && PyDict_Next(value, &position, NULL, &item))
            found = is_wide(item, depth + 1);
    }
    else if (PyList_CheckExact(value)) {
        for (Py_ssize_t i = 0; found == 0 && i < PyList_GET_SIZE(value); i++)
            found = is_wide(PyList_GET_ITEM(value, i), depth + 1);
    }
    else
        return -1;
    return found;
}

PyDoc_STRVAR(wide_doc,
"wide(column)\n--\n\n"
"The indexes of the values with an integer beyond 64 bits anywhere in them. None for values of unusual types.");

static PyObject *
wide(PyObject *module, PyObject *column)
{
    if (!PyList_CheckExact(column)) {
        PyErr_SetString(PyExc_TypeError, "a column must be a list");
        return NULL;
    }
    PyObject *places = PyList_New(0);
    for (Py_ssize_t i = 0; places != NULL && i < PyList_GET_SIZE(column); i++) {
        int found = is_wide(PyList_GET_ITEM(column, i), 0);
        if (found < 0) {
            Py_SETREF(places, Py_NewRef(Py_None));
            break;
        }
        if (found && append_index(places, i) < 0)
            Py_CLEAR(places);
    }
    return places;
}

PyMethodDef integer_methods[] = {
    {"wide", wide, METH_O, wide_doc},
    {NULL, NULL, 0, NULL},
};
