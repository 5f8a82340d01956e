/* Records as OTLP's LogRecords: the twin is `sinks.otlp.protobuf.Encoder`, which has the numbers of the fields. */

#include "native.h"

/* Nesting beyond this becomes text, which the twin makes (sinks.otlp.values). */
#define MOST_DEPTH 20
/* What stands in front of the names that are taken; the twin renames those. */
#define TAKEN "log.record."
#define ID_SIZE 36
/* The most bytes of a tag and a length. */
#define HEAD_SIZE 11

static inline size_t
varint_size(uint64_t number)
{
    return (size_t)(63 - __builtin_clzll(number | 1)) / 7 + 1;
}

static inline char *
put_varint(char *p, uint64_t number)
{
    for (; number >= 0x80; number >>= 7)
        *p++ = (char)(number | 0x80);
    *p++ = (char)number;
    return p;
}

static inline char *
put_fixed64(char *p, char tag, uint64_t number)
{
    *p++ = tag;
    memcpy(p, &number, 8);
    return p + 8;
}

/* Begin a message whose length is not known yet and probably takes `room` bytes; give the place for `close_message`. */
static inline size_t
open_message(Buffer *b, char tag, size_t room)
{
    if (reserve(b, 1 + room)) {
        *b->p = tag;
        b->p += 1 + room;
    }
    return b->p - b->start;
}

static void
close_message(Buffer *b, size_t at, size_t room)
{
    size_t size = b->p - b->start - at, need = varint_size(size);
    if (b->failed || (need > room && !reserve(b, need - room)))
        return;
    char *begin = b->start + at;
    if (need != room)
        memmove(begin - room + need, begin, size);
    put_varint(begin - room, size);
    b->p = begin - room + need + size;
}

/* A value that is neither list nor object, as it stands in an AnyValue. */
typedef struct {
    char tag; /* 0 for none: null */
    const char *text;
    uint64_t number; /* the size of a text */
    size_t size;     /* of all, the tag included */
} Scalar;

static inline int
text_scalar(Scalar *s, PyObject *text)
{
    Py_ssize_t n = 0;
    if (!PyUnicode_CheckExact(text) || (s->text = utf8_of(text, &n)) == NULL)
        return -1;
    s->tag = 0x0A;
    s->number = (uint64_t)n;
    s->size = 1 + varint_size(s->number) + (size_t)n;
    return 1;
}

/* 1 for a scalar, 0 for a list or an object, -1 for what is declined. */
static inline int
scalar_of(Scalar *s, PyObject *value)
{
    if (PyUnicode_CheckExact(value))
        return text_scalar(s, value);
    if (PyLong_CheckExact(value)) {
        int overflow;
        s->tag = 0x18;
        s->number = (uint64_t)PyLong_AsLongLongAndOverflow(value, &overflow);
        s->size = 1 + varint_size(s->number);
        return overflow ? -1 : 1;
    }
    if (PyDict_CheckExact(value) || PyList_CheckExact(value))
        return 0;
    if (value == Py_None) {
        s->tag = 0;
        s->size = 0;
        return 1;
    }
    if (PyBool_Check(value)) {
        s->tag = 0x10;
        s->number = value == Py_True;
        s->size = 2;
        return 1;
    }
    if (PyFloat_CheckExact(value)) {
        double number = PyFloat_AS_DOUBLE(value);
        memcpy(&s->number, &number, 8);
        s->tag = 0x21;
        s->size = 9;
        return 1;
    }
    return -1;
}

static inline char *
put_scalar(char *p, const Scalar *s)
{
    if (s->tag == 0)
        return p;
    if (s->tag == 0x21)
        return put_fixed64(p, s->tag, s->number);
    *p++ = s->tag;
    p = put_varint(p, s->number);
    if (s->tag == 0x0A) {
        memcpy(p, s->text, s->number);
        p += s->number;
    }
    return p;
}

static int append_items(Buffer *b, PyObject *value, int depth);

/* Write an AnyValue as a field with this tag; -1 for what is declined. `depth` counts the lists and objects around, and
 * one. */
static int
append_any(Buffer *b, char tag, PyObject *value, int depth)
{
    Scalar s = {0};
    int kind = scalar_of(&s, value);
    if (kind < 0)
        return -1;
    if (kind > 0) {
        if (reserve(b, s.size + HEAD_SIZE)) {
            *b->p++ = tag;
            b->p = put_scalar(put_varint(b->p, s.size), &s);
        }
        return 0;
    }
    size_t at = open_message(b, tag, 1);
    if (append_items(b, value, depth) < 0)
        return -1;
    close_message(b, at, 1);
    return 0;
}

/* Write a KeyValue as a field with this tag; -1 for what is declined. */
static int
append_pair(Buffer *b, char tag, PyObject *name, PyObject *value, int depth)
{
    Scalar key = {0}, s = {0};
    int kind = text_scalar(&key, name) < 0 ? -1 : scalar_of(&s, value);
    if (kind < 0)
        return -1;
    if (kind > 0) {
        size_t size = key.size + 1 + varint_size(s.size) + s.size;
        if (reserve(b, size + HEAD_SIZE)) {
            *b->p++ = tag;
            b->p = put_scalar(put_varint(b->p, size), &key);
            *b->p++ = 0x12;
            b->p = put_scalar(put_varint(b->p, s.size), &s);
        }
        return 0;
    }
    size_t at = open_message(b, tag, 1);
    if (reserve(b, key.size))
        b->p = put_scalar(b->p, &key);
    if (append_any(b, 0x12, value, depth) < 0)
        return -1;
    close_message(b, at, 1);
    return 0;
}

/* Write a list or an object as it stands in an AnyValue. */
static int
append_items(Buffer *b, PyObject *value, int depth)
{
    if (depth > MOST_DEPTH)
        return -1;
    int is_list = PyList_CheckExact(value);
    size_t at = open_message(b, is_list ? 0x2A : 0x32, 1);
    if (is_list) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++) {
            if (append_any(b, 0x0A, PyList_GET_ITEM(value, i), depth + 1) < 0)
                return -1;
        }
    }
    else {
        Py_ssize_t position = 0;
        PyObject *name, *item;
        while (PyDict_Next(value, &position, &name, &item)) {
            if (append_pair(b, 0x0A, name, item, depth + 1) < 0)
                return -1;
        }
    }
    close_message(b, at, 1);
    return 0;
}

/* The columns of records. `attributes` and `originals` may be NULL. */
typedef struct {
    PyObject *times, *stamps, *severities, *bodies, *ids, *attributes, *originals;
    PyObject *heads; /* the fields of each severity */
    PyObject *uid;   /* what stands in front of an id */
    PyObject *name;  /* of the line as it was written */
} Columns;

/* A time as OTLP holds it: 0 outside of 64 bits. -1 for what is no integer. */
static inline int
time_of(PyObject *number, uint64_t *time)
{
    if (!PyLong_CheckExact(number))
        return -1;
    *time = PyLong_AsUnsignedLongLong(number);
    if (*time == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        *time = 0;
    }
    return 0;
}

/* Write the record of a row as a field of ScopeLogs; -1 for what is declined. */
static int
append_record(Buffer *b, const Columns *c, Py_ssize_t row)
{
    PyObject *body = PyList_GET_ITEM(c->bodies, row), *id = PyList_GET_ITEM(c->ids, row);
    uint64_t time, stamp;
    PyObject *number = PyList_GET_ITEM(c->severities, row);
    Py_ssize_t severity = PyLong_CheckExact(number) ? PyLong_AsSsize_t(number) : -1;
    if (severity < 0 || severity >= PyList_GET_SIZE(c->heads) || time_of(PyList_GET_ITEM(c->times, row), &time) < 0 ||
        time_of(PyList_GET_ITEM(c->stamps, row), &stamp) < 0 || !PyUnicode_CheckExact(id) ||
        !PyUnicode_IS_COMPACT_ASCII(id) || PyUnicode_GET_LENGTH(id) != ID_SIZE)
        return -1;
    size_t at = open_message(b, 0x12, 2);
    PyObject *head = PyList_GET_ITEM(c->heads, severity);
    append(b, PyBytes_AS_STRING(head), PyBytes_GET_SIZE(head));
    if (!PyUnicode_CheckExact(body) || append_any(b, 0x2A, body, 1) < 0)
        return -1;
    if (reserve(b, 18))
        b->p = put_fixed64(put_fixed64(b->p, 0x09, time), 0x59, stamp);
    append(b, PyBytes_AS_STRING(c->uid), PyBytes_GET_SIZE(c->uid));
    append(b, (const char *)PyUnicode_1BYTE_DATA(id), ID_SIZE);
    if (c->attributes != NULL) {
        PyObject *attributes = PyList_GET_ITEM(c->attributes, row), *name, *value;
        Py_ssize_t position = 0;
        if (!PyDict_CheckExact(attributes))
            return -1;
        while (PyDict_Next(attributes, &position, &name, &value)) {
            Py_ssize_t n = 0;
            const char *p = utf8_of(name, &n);
            if (p == NULL || BEGINS(&p, p + n, TAKEN) || append_pair(b, 0x32, name, value, 1) < 0)
                return -1;
        }
    }
    if (c->originals != NULL) {
        PyObject *original = PyList_GET_ITEM(c->originals, row);
        Py_ssize_t n = 0, m = 0;
        const char *p = utf8_of(original, &n), *q = utf8_of(body, &m);
        if (p == NULL || q == NULL)
            return -1;
        if ((n != m || memcmp(p, q, n) != 0) && append_pair(b, 0x32, c->name, original, 1) < 0)
            return -1;
    }
    close_message(b, at, 2);
    return 0;
}

PyDoc_STRVAR(otlp_records_doc,
"otlp_records(times, stamps, severities, bodies, ids, attributes, originals, heads, uid, name)\n--\n\n"
"Write records as fields of ScopeLogs, one behind the other. attributes and originals are lists or None; heads has the\n"
"fields of each severity, uid is what stands in front of an id, name that of an original. Give the bytes, where each\n"
"record ends, and the indexes of the records that are left out.");

static PyObject *
otlp_records(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 10 || !PyList_CheckExact(args[0]) || !PyList_CheckExact(args[7]) || !PyBytes_Check(args[8]) ||
        !PyUnicode_Check(args[9])) {
        PyErr_SetString(PyExc_TypeError, "otlp_records takes seven columns, a list, bytes and a text");
        return NULL;
    }
    Py_ssize_t count = PyList_GET_SIZE(args[0]);
    Columns c = {args[0], args[1], args[2], args[3], args[4], args[5] == Py_None ? NULL : args[5],
                 args[6] == Py_None ? NULL : args[6], args[7], args[8], args[9]};
    if (!are_lists(args, 5, count) || (c.attributes != NULL && !are_lists(&args[5], 1, count)) ||
        (c.originals != NULL && !are_lists(&args[6], 1, count)))
        return NULL;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(c.heads); i++) {
        if (!PyBytes_Check(PyList_GET_ITEM(c.heads, i))) {
            PyErr_SetString(PyExc_TypeError, "the fields of a severity are bytes");
            return NULL;
        }
    }
    Buffer b = {NULL, NULL, NULL, 0};
    PyObject *ends = PyList_New(count), *rest = PyList_New(0), *data = NULL, *result = NULL;
    if (ends == NULL || rest == NULL)
        goto done;
    for (Py_ssize_t row = 0; row < count; row++) {
        size_t start = b.p - b.start;
        if (append_record(&b, &c, row) < 0) {
            PyErr_Clear();
            if (b.start != NULL)
                b.p = b.start + start;
            if (append_index(rest, row) < 0)
                goto done;
        }
        PyObject *place = PyLong_FromSsize_t(b.p - b.start);
        if (place == NULL)
            goto done;
        PyList_SET_ITEM(ends, row, place);
    }
    if (b.failed)
        PyErr_NoMemory();
    else if ((data = PyBytes_FromStringAndSize(b.start, b.p - b.start)) != NULL)
        result = PyTuple_Pack(3, data, ends, rest);
done:
    PyMem_Free(b.start);
    Py_XDECREF(data);
    Py_XDECREF(ends);
    Py_XDECREF(rest);
    return result;
}

PyMethodDef otlp_methods[] = {
    {"otlp_records", (PyCFunction)(void (*)(void))otlp_records, METH_FASTCALL, otlp_records_doc},
    {NULL, NULL, 0, NULL},
};
