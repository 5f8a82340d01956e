/* Records as rows of a table: the twin is `_divided_purely` of `sinks._sql.Mapping`. */

#include "native.h"

/* Columns that attributes may have of their own, and marks that are kept to be given again. */
#define COLUMNS 32
#define MARKS 8

/* What is the same for every row. */
typedef struct {
    Py_ssize_t count;          /* columns that attributes have of their own */
    PyObject *names[COLUMNS];  /* the attribute of each */
    const char *marks[COLUMNS]; /* what marks an integer there */
    Py_ssize_t sizes[COLUMNS];
    Py_ssize_t widths[COLUMNS]; /* the most characters; -1 is no limit */
    Py_ssize_t room;
    int depth;
    PyObject *encode;
    PyObject *known[MARKS]; /* marks that were made, the newest anywhere */
    int next;
} Table;

static inline int
same_text(PyObject *a, PyObject *b)
{
    Py_ssize_t n = PyUnicode_GET_LENGTH(a);
    return a == b || (n == PyUnicode_GET_LENGTH(b) && PyUnicode_KIND(a) == PyUnicode_KIND(b) &&
                      memcmp(PyUnicode_DATA(a), PyUnicode_DATA(b), n * PyUnicode_KIND(a)) == 0);
}

static inline int
is_details(PyObject *name)
{
    return PyUnicode_IS_COMPACT_ASCII(name) && PyUnicode_GET_LENGTH(name) == 7 &&
           memcmp(PyUnicode_1BYTE_DATA(name), "details", 7) == 0;
}

/* Whether a value is one that every backend holds as it is. `depth` is the levels that it may have. */
static int
is_plain(PyObject *value, int depth)
{
    if (PyUnicode_CheckExact(value) || value == Py_None || PyBool_Check(value) || PyFloat_CheckExact(value))
        return 1;
    if (PyLong_CheckExact(value)) {
        int overflow;
        PyLong_AsLongLongAndOverflow(value, &overflow);
        return !overflow;
    }
    if (depth <= 0)
        return 0;
    if (PyDict_CheckExact(value)) {
        Py_ssize_t position = 0;
        PyObject *name, *item;
        while (PyDict_Next(value, &position, &name, &item)) {
            if (!PyUnicode_CheckExact(name) || !is_plain(item, depth - 1))
                return 0;
        }
        return 1;
    }
    if (PyList_CheckExact(value)) {
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++) {
            if (!is_plain(PyList_GET_ITEM(value, i), depth - 1))
                return 0;
        }
        return 1;
    }
    return 0;
}

/* Write the members of an object behind `before`, but for those that have columns or are named details, which `beside`
 * leaves out. -1 with an exception. */
static int
append_members(Buffer *b, Table *t, PyObject *dict, char *before, int all, int beside)
{
    Py_ssize_t position = 0, n;
    PyObject *name, *item;
    while (PyDict_Next(dict, &position, &name, &item)) {
        int left = all || !(beside && is_details(name));
        for (Py_ssize_t i = 0; left && !all && i < t->count; i++)
            left = !same_text(name, t->names[i]);
        if (!left)
            continue;
        const char *p = bytes_of(name, &n);
        if (p == NULL)
            return -1;
        append(b, before, 1);
        append_string(b, p, n);
        append(b, ":", 1);
        if (append_value(b, item, t->encode, 0) < 0)
            return -1;
        *before = ',';
    }
    return 0;
}

/* The text of a mark, one object for the same mark as far as it is known. A new reference. */
static PyObject *
mark_text(Table *t, const char *p, Py_ssize_t n)
{
    for (int i = 0; i < MARKS; i++) {
        PyObject *known = t->known[i];
        if (known != NULL && PyUnicode_GET_LENGTH(known) == n && memcmp(PyUnicode_1BYTE_DATA(known), p, n) == 0)
            return Py_NewRef(known);
    }
    PyObject *text = ascii_text(p, n);
    if (text != NULL) {
        Py_XDECREF(t->known[t->next]);
        t->known[t->next] = Py_NewRef(text);
        t->next = (t->next + 1) % MARKS;
    }
    return text;
}

/* Do one row: its texts go into `row` (the columns, then details and the mark), which is all NULL before. 1 to decline,
 * -1 with an exception; what was made so far is the caller's to let go. */
static int
divide_row(Buffer *b, Table *t, PyObject *attributes, PyObject **row)
{
    Py_ssize_t position = 0, left = 0, beside = 0;
    PyObject *name, *item, *details = NULL;
    uint32_t integers = 0;
    char mark[512], *m = mark, *end = mark + sizeof mark;
    if (!PyDict_CheckExact(attributes))
        return 1;
    while (PyDict_Next(attributes, &position, &name, &item)) {
        if (!PyUnicode_CheckExact(name))
            return 1;
        Py_ssize_t i = 0;
        while (i < t->count && !same_text(name, t->names[i]))
            i++;
        if (i == t->count) {
            if (!is_plain(item, t->depth - 1))
                return 1;
            left++;
            if (is_details(name))
                details = item;
            else
                beside += PyUnicode_GET_LENGTH(name) + 1;
            continue;
        }
        if (PyUnicode_CheckExact(item))
            row[i] = Py_NewRef(item);
        else if (PyLong_CheckExact(item)) {
            int overflow;
            long long number = PyLong_AsLongLongAndOverflow(item, &overflow);
            if (overflow)
                return 1;
            b->p = b->start;
            append_number(b, number);
            if (b->failed || (row[i] = ascii_text(b->start, b->p - b->start)) == NULL)
                return -1;
            integers |= (uint32_t)1 << i;
        }
        else
            return 1;
        if (t->widths[i] >= 0 && PyUnicode_GET_LENGTH(row[i]) > t->widths[i])
            return 1;
    }
    for (Py_ssize_t i = 0; i < t->count; i++) {
        if (row[i] == NULL)
            row[i] = Py_NewRef(Py_None);
        else if (integers >> i & 1) {
            if (end - m < t->sizes[i])
                return 1;
            memcpy(m, t->marks[i], t->sizes[i]);
            m += t->sizes[i];
        }
    }
    if (left == 0) {
        row[t->count] = Py_NewRef(Py_None);
        row[t->count + 1] = mark_text(t, mark, m - mark);
        return row[t->count + 1] == NULL ? -1 : 0;
    }
    /* The names beside the members of details, with a comma between them, must fit into the marker. */
    int opened = details != NULL && PyDict_CheckExact(details) && (beside ? beside - 1 : 0) <= t->room - 2;
    if (opened) {
        if (end - m < beside + 2)
            return 1;
        *m++ = ',';
        *m++ = '+';
        position = 0;
        char *start = m;
        while (PyDict_Next(attributes, &position, &name, &item)) {
            if (is_details(name))
                continue;
            Py_ssize_t i = 0, n = PyUnicode_GET_LENGTH(name);
            while (i < t->count && !same_text(name, t->names[i]))
                i++;
            if (i < t->count)
                continue;
            if (n == 0 || !PyUnicode_IS_COMPACT_ASCII(name))
                return 1;
            const char *p = (const char *)PyUnicode_1BYTE_DATA(name);
            for (Py_ssize_t k = 0; k < n; k++) {
                if (p[k] < 0x20 || p[k] == 0x7f || p[k] == ',')
                    return 1;
            }
            int there = PyDict_Contains(details, name);
            if (there)
                return there < 0 ? -1 : 1;
            if (m > start)
                *m++ = ',';
            memcpy(m, p, n);
            m += n;
        }
    }
    char before = '{';
    b->p = b->start;
    if (opened && append_members(b, t, details, &before, 1, 0) < 0)
        return -1;
    if (append_members(b, t, attributes, &before, 0, opened) < 0)
        return -1;
    append(b, before == '{' ? "{}" : "}", before == '{' ? 2 : 1);
    if (b->failed) {
        PyErr_NoMemory();
        return -1;
    }
    Py_ssize_t n = b->p - b->start;
    row[t->count] = text_of(b->start, n, is_ascii(b->start, n));
    row[t->count + 1] = mark_text(t, mark, m - mark);
    return row[t->count] == NULL || row[t->count + 1] == NULL ? -1 : 0;
}

PyDoc_STRVAR(divide_doc,
"divide(attributes, names, marks, widths, room, depth, encode)\n--\n\n"
"Divide each record's attributes among the columns of a table: a list of lists, those of the attributes in names, then\n"
"details and the marks; and the indexes of the rows that were declined, which are empty.\n\n"
"marks are what marks an integer in each column, widths the most characters of each or -1, room the characters that\n"
"names beside the members of details may take, depth the levels of nesting of details; encode writes floats as JSON.");

static PyObject *
divide(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    Table t = {0};
    if (nargs != 7 || !PyList_CheckExact(args[0]) || !PyTuple_Check(args[1]) || !PyTuple_Check(args[2]) ||
        !PyTuple_Check(args[3]) || (t.count = PyTuple_GET_SIZE(args[1])) != PyTuple_GET_SIZE(args[2]) ||
        t.count != PyTuple_GET_SIZE(args[3])) {
        PyErr_SetString(PyExc_TypeError, "divide takes a list, three tuples of one length, two numbers and a function");
        return NULL;
    }
    if (t.count > COLUMNS)
        Py_RETURN_NONE;
    for (Py_ssize_t i = 0; i < t.count; i++) {
        t.names[i] = PyTuple_GET_ITEM(args[1], i);
        if (!PyUnicode_Check(t.names[i])) {
            PyErr_SetString(PyExc_TypeError, "names must be texts");
            return NULL;
        }
        t.marks[i] = PyUnicode_AsUTF8AndSize(PyTuple_GET_ITEM(args[2], i), &t.sizes[i]);
        t.widths[i] = PyLong_AsSsize_t(PyTuple_GET_ITEM(args[3], i));
        if (PyErr_Occurred())
            return NULL;
        if (!is_ascii(t.marks[i], t.sizes[i]))
            Py_RETURN_NONE;
    }
    t.room = PyLong_AsSsize_t(args[4]);
    t.depth = (int)PyLong_AsLong(args[5]);
    if (PyErr_Occurred())
        return NULL;
    if (t.depth > DEPTH)
        t.depth = DEPTH;
    t.encode = args[6];
    Py_ssize_t count = PyList_GET_SIZE(args[0]), width = t.count + 2;
    PyObject *row[COLUMNS + 2] = {NULL}, *result = NULL, *odd = PyList_New(0), *columns = PyList_New(width);
    Buffer b = {NULL, NULL, NULL, 0};
    if (odd == NULL || columns == NULL || !reserve(&b, 1024))
        goto done;
    for (Py_ssize_t k = 0; k < width; k++) {
        PyObject *column = PyList_New(count);
        if (column == NULL)
            goto done;
        PyList_SET_ITEM(columns, k, column);
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        /* What `encode` calls could shorten the list. */
        PyObject *attributes = i < PyList_GET_SIZE(args[0]) ? PyList_GET_ITEM(args[0], i) : Py_None;
        Py_INCREF(attributes);
        int declined = divide_row(&b, &t, attributes, row);
        Py_DECREF(attributes);
        if (declined) {
            for (Py_ssize_t k = 0; k < width; k++)
                Py_CLEAR(row[k]);
            if (declined < 0) {
                if (PyErr_Occurred() && PyErr_ExceptionMatches(PyExc_MemoryError))
                    goto done;
                PyErr_Clear();
            }
            if (append_index(odd, i) < 0)
                goto done;
        }
        for (Py_ssize_t k = 0; k < width; k++) {
            PyList_SET_ITEM(PyList_GET_ITEM(columns, k), i, row[k] != NULL ? row[k] : Py_NewRef(Py_None));
            row[k] = NULL;
        }
    }
    result = PyTuple_Pack(2, columns, odd);
done:
    if (result == NULL && !PyErr_Occurred())
        PyErr_NoMemory();
    PyMem_Free(b.start);
    for (int i = 0; i < MARKS; i++)
        Py_XDECREF(t.known[i]);
    Py_XDECREF(columns);
    Py_XDECREF(odd);
    return result;
}

PyMethodDef row_methods[] = {
    {"divide", (PyCFunction)(void (*)(void))divide, METH_FASTCALL, divide_doc},
    {NULL, NULL, 0, NULL},
};
