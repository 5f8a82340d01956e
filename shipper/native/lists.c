/* Items of lists by their places, lists of pieces, and what is to be known of lists: the twins are `shipper.record.pick`,
 * `Rows.created` and `Mapping._markers` of `sinks._sql`, and `span` and `lengths` of `shipper.render`. */

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

PyDoc_STRVAR(slices_doc,
"slices(text, width)\n--\n\n"
"Cut ASCII bytes into texts of one width, the last of which may be shorter.");

static PyObject *
slices(PyObject *module, PyObject *args)
{
    Py_buffer text;
    Py_ssize_t width;
    if (!PyArg_ParseTuple(args, "y*n", &text, &width))
        return NULL;
    PyObject *pieces = NULL;
    if (width <= 0)
        PyErr_SetString(PyExc_ValueError, "slices have a width");
    else
        pieces = PyList_New((text.len + width - 1) / width);
    for (Py_ssize_t i = 0; pieces != NULL && i < PyList_GET_SIZE(pieces); i++) {
        Py_ssize_t left = text.len - i * width;
        PyObject *piece = PyUnicode_DecodeASCII((const char *)text.buf + i * width, left < width ? left : width, NULL);
        if (piece == NULL)
            Py_CLEAR(pieces);
        else
            PyList_SET_ITEM(pieces, i, piece);
    }
    PyBuffer_Release(&text);
    return pieces;
}

PyDoc_STRVAR(by_remainder_doc,
"by_remainder(numbers, lists, names)\n--\n\n"
"Give for each number an item of the list of its name: the one at its remainder by the list's length. None if a number\n"
"is negative or beyond 64 bits, or a name has no list.");

static PyObject *
by_remainder(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyList_CheckExact(args[0]) || !PyDict_CheckExact(args[1]) || !PyList_CheckExact(args[2])
        || PyList_GET_SIZE(args[0]) != PyList_GET_SIZE(args[2])) {
        PyErr_SetString(PyExc_TypeError, "by_remainder takes numbers, a dict of lists and as many names");
        return NULL;
    }
    PyObject *names = args[2], *last = NULL, *list = NULL;
    Py_ssize_t count = PyList_GET_SIZE(names);
    PyObject *items = PyList_New(count);
    if (items == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyList_GET_ITEM(names, i), *number = PyList_GET_ITEM(args[0], i);
        if (name != last) {
            list = PyDict_GetItemWithError(args[1], name);
            last = name;
        }
        int overflow = 1;
        long long value = PyLong_CheckExact(number) ? PyLong_AsLongLongAndOverflow(number, &overflow) : 0;
        if (list == NULL || !PyList_CheckExact(list) || PyList_GET_SIZE(list) == 0 || overflow || value < 0) {
            Py_DECREF(items);
            if (PyErr_Occurred())
                return NULL;
            Py_RETURN_NONE;
        }
        PyList_SET_ITEM(items, i, Py_NewRef(PyList_GET_ITEM(list, value % PyList_GET_SIZE(list))));
    }
    return items;
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

PyDoc_STRVAR(places_doc,
"places(items)\n--\n\n"
"Give a dict of lists: the places of each item. The twin is the end of `_alike` in `sinks.loki.sink`.");

static PyObject *
places(PyObject *module, PyObject *items)
{
    if (!PyList_CheckExact(items)) {
        PyErr_SetString(PyExc_TypeError, "places takes a list");
        return NULL;
    }
    PyObject *found = PyDict_New(), *last = NULL, *list = NULL;
    for (Py_ssize_t i = 0; found != NULL && i < PyList_GET_SIZE(items); i++) {
        PyObject *item = PyList_GET_ITEM(items, i);
        if (item != last) {
            list = PyDict_GetItemWithError(found, item);
            if (list == NULL && !PyErr_Occurred() && (list = PyList_New(0)) != NULL) {
                int failed = PyDict_SetItem(found, item, list);
                Py_DECREF(list); /* the dict's now */
                if (failed)
                    list = NULL;
            }
            last = item;
        }
        if (list == NULL || append_index(list, i) < 0)
            Py_CLEAR(found);
    }
    return found;
}

PyMethodDef list_methods[] = {
    {"places", places, METH_O, places_doc},
    {"span", span, METH_O, span_doc},
    {"lengths", lengths, METH_O, lengths_doc},
    {"pick", (PyCFunction)(void (*)(void))pick, METH_FASTCALL, pick_doc},
    {"slices", slices, METH_VARARGS, slices_doc},
    {"by_remainder", (PyCFunction)(void (*)(void))by_remainder, METH_FASTCALL, by_remainder_doc},
    {NULL, NULL, 0, NULL},
};
