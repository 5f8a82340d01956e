/* Values that a `flattened` field might not take: the twin is `sinks.elasticsearch.encode._suspects`. */

#include "native.h"

/* Tell whether the parts between the dots of a name may be empty, or NUL stands in it. */
static int
is_odd_name(PyObject *name)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(name), i = 0;
    int kind = PyUnicode_KIND(name);
    const void *data = PyUnicode_DATA(name);
    Py_UCS4 before = '.';
    if (kind == PyUnicode_1BYTE_KIND) {
        for (; n - i >= 8; i += 8) {
            uint64_t v = load8((const char *)data + i);
            if (zeros(v) | zeros(v ^ (ONES * '.')))
                break;
            before = 0;
        }
    }
    for (; i < n; i++) {
        Py_UCS4 c = PyUnicode_READ(kind, data, i);
        if (c == 0 || (c == '.' && before == '.'))
            return 1;
        before = c;
    }
    return n == 0;
}

/* Take what a text may need at most as JSON from the bytes that are left. */
static inline int
fits(PyObject *text, Py_ssize_t *left)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(text);
    if (n > *left / 6)
        return 0;
    return (*left -= 6 * n + 4) >= 0;
}

/* Tell whether a value is plain: no more than some levels and bytes, and no odd name. Calls nothing of Python's. */
static int
is_plain(PyObject *value, Py_ssize_t *left, Py_ssize_t levels)
{
    if (PyUnicode_CheckExact(value))
        return fits(value, left);
    if (value == Py_None || PyBool_Check(value) || PyFloat_CheckExact(value))
        return (*left -= 32) >= 0;
    if (PyLong_CheckExact(value)) {
        int overflow;
        PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow && (*left -= 32) >= 0;
    }
    if (levels == 0 || (*left -= 4) < 0)
        return 0;
    if (PyDict_CheckExact(value)) {
        Py_ssize_t position = 0;
        PyObject *name, *item;
        while (PyDict_Next(value, &position, &name, &item)) {
            if (!PyUnicode_CheckExact(name) || is_odd_name(name) || !fits(name, left))
                return 0;
            if (!is_plain(item, left, levels - 1))
                return 0;
        }
        return 1;
    }
    if (PyList_CheckExact(value)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++) {
            if (!is_plain(PyList_GET_ITEM(value, i), left, levels - 1) || --*left < 0)
                return 0;
        }
        return 1;
    }
    return 0;
}

PyDoc_STRVAR(flattened_suspects_doc,
"flattened_suspects(values, size, levels)\n--\n\n"
"Give the places of values that may take more bytes as JSON or be nested deeper than that, or have an odd name.");

static PyObject *
flattened_suspects(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyList_CheckExact(args[0])) {
        PyErr_SetString(PyExc_TypeError, "flattened_suspects takes a list and two numbers");
        return NULL;
    }
    Py_ssize_t size = PyLong_AsSsize_t(args[1]), levels = PyLong_AsSsize_t(args[2]);
    if (PyErr_Occurred())
        return NULL;
    if (levels > DEPTH) {
        PyErr_SetString(PyExc_ValueError, "so many levels would take too much of the stack");
        return NULL;
    }
    PyObject *places = PyList_New(0);
    if (places == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(args[0]); i++) {
        Py_ssize_t left = size;
        if (is_plain(PyList_GET_ITEM(args[0], i), &left, levels))
            continue;
        if (append_index(places, i) < 0) {
            Py_DECREF(places);
            return NULL;
        }
    }
    return places;
}

PyMethodDef flattened_methods[] = {
    {"flattened_suspects", (PyCFunction)(void (*)(void))flattened_suspects, METH_FASTCALL, flattened_suspects_doc},
    {NULL, NULL, 0, NULL},
};
