/* Items of lists by their places, and what is to be known of lists: the twins are `shipper.record.pick`, and `span` and
 * `lengths` of `shipper.render`. */

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

PyDoc_STRVAR(span_doc,
"span(numbers)\n--\n\n"
"Give the least, the greatest, and whether each is greater than the one before. None for an empty list, and if a number is\n"
"beyond 64 bits.");

static PyObject *
span(PyObject *module, PyObject *numbers)
{
    if (!PyList_CheckExact(numbers)) {
        PyErr_SetString(PyExc_TypeError, "span takes a list");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(numbers);
    long long low = LLONG_MAX, high = LLONG_MIN, last = LLONG_MIN;
    int ascends = 1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *number = PyList_GET_ITEM(numbers, i);
        int overflow = 1;
        long long value = PyLong_CheckExact(number) ? PyLong_AsLongLongAndOverflow(number, &overflow) : 0;
        if (overflow)
            Py_RETURN_NONE;
        if (i > 0 && value <= last)
            ascends = 0;
        last = value;
        low = value < low ? value : low;
        high = value > high ? value : high;
    }
    if (count == 0)
        Py_RETURN_NONE;
    return Py_BuildValue("LLN", low, high, PyBool_FromLong(ascends));
}

PyDoc_STRVAR(lengths_doc,
"lengths(texts)\n--\n\n"
"Give the greatest and the sum of the lengths of texts. None if an item is none.");

static PyObject *
lengths(PyObject *module, PyObject *texts)
{
    if (!PyList_CheckExact(texts)) {
        PyErr_SetString(PyExc_TypeError, "lengths takes a list");
        return NULL;
    }
    Py_ssize_t most = 0, sum = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(texts); i++) {
        PyObject *text = PyList_GET_ITEM(texts, i);
        if (!PyUnicode_Check(text))
            Py_RETURN_NONE;
        Py_ssize_t length = PyUnicode_GET_LENGTH(text);
        most = length > most ? length : most;
        sum += length;
    }
    return Py_BuildValue("nn", most, sum);
}

PyMethodDef list_methods[] = {
    {"span", span, METH_O, span_doc},
    {"lengths", lengths, METH_O, lengths_doc},
    {"pick", (PyCFunction)(void (*)(void))pick, METH_FASTCALL, pick_doc},
    {NULL, NULL, 0, NULL},
};
