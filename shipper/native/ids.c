/* Ids of records: the twin is `shipper.record.make_ids`. */

#include "native.h"

PyDoc_STRVAR(make_ids_doc,
"make_ids(stamps, hashes)\n--\n\n"
"Make the ids of records from their times in nanoseconds and their 128-bit hashes. None if a number is out of range.");

static int
sixteen_bytes(PyObject *number, unsigned char *to)
{
    if (!PyLong_Check(number))
        return -1;
#if PY_VERSION_HEX >= 0x030D0000
    /* How many bytes it would need, or -1 with an exception for a negative number. */
    Py_ssize_t needed = PyLong_AsNativeBytes(number, to, 16,
                                             Py_ASNATIVEBYTES_BIG_ENDIAN | Py_ASNATIVEBYTES_UNSIGNED_BUFFER |
                                                 Py_ASNATIVEBYTES_REJECT_NEGATIVE);
    return needed < 0 || needed > 16 ? -1 : 0;
#else
    return _PyLong_AsByteArray((PyLongObject *)number, to, 16, 0, 0);
#endif
}

static PyObject *
make_ids(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    static const char hex[] = "0123456789abcdef";
    if (nargs != 2 || !PyList_CheckExact(args[0]) || !are_lists(args, 2, PyList_GET_SIZE(args[0]))) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "make_ids takes two lists");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(args[0]);
    PyObject *ids = PyList_New(count);
    if (ids == NULL)
        return NULL;
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned char bytes[16];
        int overflow;
        long long stamp = PyLong_AsLongLongAndOverflow(PyList_GET_ITEM(args[0], i), &overflow);
        if (overflow || stamp < 0 || sixteen_bytes(PyList_GET_ITEM(args[1], i), bytes) < 0) {
            PyErr_Clear();
            Py_DECREF(ids);
            Py_RETURN_NONE;
        }
        uint64_t millis = (uint64_t)stamp / 1000000;
        unsigned below = (unsigned)(((uint64_t)stamp % 1000000 << 12) / 1000000);
        for (int k = 0; k < 6; k++)
            bytes[k] = (unsigned char)(millis >> (40 - 8 * k));
        bytes[6] = (unsigned char)(0x80 | below >> 8);
        bytes[7] = (unsigned char)below;
        bytes[8] = 0x80 | (bytes[8] & 0x3F);
        PyObject *text = PyUnicode_New(36, 127);
        if (text == NULL) {
            Py_DECREF(ids);
            return NULL;
        }
        char *out = (char *)PyUnicode_1BYTE_DATA(text);
        for (int k = 0; k < 16; k++) {
            if (k == 4 || k == 6 || k == 8 || k == 10)
                *out++ = '-';
            *out++ = hex[bytes[k] >> 4];
            *out++ = hex[bytes[k] & 15];
        }
        PyList_SET_ITEM(ids, i, text);
    }
    return ids;
}

PyMethodDef id_methods[] = {
    {"make_ids", (PyCFunction)(void (*)(void))make_ids, METH_FASTCALL, make_ids_doc},
    {NULL, NULL, 0, NULL},
};
