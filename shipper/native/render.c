/* Columns joined to text, record after record: the twin is `shipper.render.render`. */

#include "native.h"

/* The kinds of columns, in the order of `shipper.render.Kind`. */
enum { TEXT, STRING, ESCAPED, OPEN, NUMBER, VALUE, RFC3339, TICKS, CREATED, FIELD, QUOTED, MILLIS, BELOW, MEMBERS,
       ENCODED, KINDS };

/* Write the inside of a JSON string. */
static void
append_escaped(Buffer *b, const char *p, Py_ssize_t n)
{
    static const char hex[] = "0123456789abcdef";
    const char *end = p + n;
    for (;;) {
        /* Room for all that is left, for what is copied beyond it, and for one escape. */
        if (!reserve(b, end - p + 16))
            return;
        char *o = b->p;
        uint64_t found = 0;
        while (end - p >= 8) {
            uint64_t v = load8(p);
            memcpy(o, &v, 8);
            found = specials(v);
            if (found) {
                int k = place_of(found);
                p += k;
                o += k;
                break;
            }
            p += 8;
            o += 8;
        }
        if (!found) {
            while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20)
                *o++ = *p++;
            if (p == end) {
                b->p = o;
                return;
            }
        }
        unsigned char c = *p++;
        *o++ = '\\';
        switch (c) {
        case '"': case '\\': *o++ = c; break;
        case '\n': *o++ = 'n'; break;
        case '\t': *o++ = 't'; break;
        case '\r': *o++ = 'r'; break;
        case '\b': *o++ = 'b'; break;
        case '\f': *o++ = 'f'; break;
        default:
            memcpy(o, "u00", 3);
            o[3] = hex[c >> 4];
            o[4] = hex[c & 15];
            o += 5;
        }
        b->p = o;
    }
}

void
append_string(Buffer *b, const char *p, Py_ssize_t n)
{
    append(b, "\"", 1);
    append_escaped(b, p, n);
    append(b, "\"", 1);
}

void
append_number(Buffer *b, long long number)
{
    char digits[24], *p = digits + sizeof digits;
    unsigned long long rest = number < 0 ? 0 - (unsigned long long)number : (unsigned long long)number;
    do
        *--p = (char)('0' + rest % 10);
    while (rest /= 10);
    if (number < 0)
        *--p = '-';
    append(b, p, digits + sizeof digits - p);
}

/* Write a value as JSON; what is no plain dict, list, text, 64-bit integer or constant is left to `encode`.
 * -1 with an exception. */
int
append_value(Buffer *b, PyObject *value, PyObject *encode, int depth)
{
    Py_ssize_t n;
    const char *p;
    if (PyUnicode_CheckExact(value)) {
        if ((p = bytes_of(value, &n)) == NULL)
            return -1;
        append_string(b, p, n);
        return 0;
    }
    if (value == Py_None || value == Py_True || value == Py_False) {
        append(b, value == Py_None ? "null" : value == Py_True ? "true" : "false", value == Py_False ? 5 : 4);
        return 0;
    }
    if (PyLong_CheckExact(value)) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
        if (!overflow) {
            append_number(b, number);
            return 0;
        }
    }
    else if (depth < DEPTH && PyDict_CheckExact(value)) {
        Py_ssize_t position = 0;
        PyObject *name, *item;
        char before = '{';
        char *start = b->p;
        size_t at = start - b->start;
        while (PyDict_Next(value, &position, &name, &item)) {
            if (!PyUnicode_CheckExact(name)) {
                b->p = b->start + at; /* all of it is the other encoder's */
                goto other;
            }
            if ((p = bytes_of(name, &n)) == NULL)
                return -1;
            append(b, &before, 1);
            append_string(b, p, n);
            append(b, ":", 1);
            if (append_value(b, item, encode, depth + 1) < 0)
                return -1;
            before = ',';
        }
        append(b, "{}", before == '{' ? 2 : 0);
        if (before == ',')
            append(b, "}", 1);
        return 0;
    }
    else if (depth < DEPTH && PyList_CheckExact(value)) {
        char before = '[';
        for (Py_ssize_t i = 0; i < PyList_GET_SIZE(value); i++) {
            append(b, &before, 1);
            if (append_value(b, PyList_GET_ITEM(value, i), encode, depth + 1) < 0)
                return -1;
            before = ',';
        }
        append(b, "[]", before == '[' ? 2 : 0);
        if (before == ',')
            append(b, "]", 1);
        return 0;
    }
other:;
    PyObject *text = PyObject_CallOneArg(encode, value);
    if (text == NULL)
        return -1;
    if (!PyBytes_Check(text)) {
        Py_DECREF(text);
        PyErr_SetString(PyExc_TypeError, "encode must give bytes");
        return -1;
    }
    append(b, PyBytes_AS_STRING(text), PyBytes_GET_SIZE(text));
    Py_DECREF(text);
    return 0;
}

/* Write the members of a dict, each with a comma in front, as texts: what is none as its JSON, within a string. What has
 * no quotes in its JSON needs no second look. 1 if it is no plain dict, -1 with an exception. */
static int
append_members(Buffer *b, Buffer *scratch, PyObject *members, PyObject *encode)
{
    Py_ssize_t position = 0, n;
    PyObject *name, *value;
    const char *p;
    if (!PyDict_CheckExact(members))
        return 1;
    while (PyDict_Next(members, &position, &name, &value)) {
        if (!PyUnicode_CheckExact(name))
            return 1;
        if ((p = bytes_of(name, &n)) == NULL)
            return -1;
        append(b, ",\"", 2);
        append_escaped(b, p, n);
        append(b, "\":\"", 3);
        if (PyUnicode_CheckExact(value)) {
            if ((p = bytes_of(value, &n)) == NULL)
                return -1;
            append_escaped(b, p, n);
        }
        else if (PyUnicode_Check(value))
            return 1;
        else {
            /* What `encode` calls could take the member away. */
            Py_INCREF(value);
            int plain = PyLong_CheckExact(value) || PyFloat_CheckExact(value);
            scratch->p = scratch->start;
            int failed = append_value(plain ? b : scratch, value, encode, 0);
            Py_DECREF(value);
            if (failed)
                return failed;
            if (!plain)
                append_escaped(b, scratch->start, scratch->p - scratch->start);
            b->failed |= scratch->failed;
        }
        append(b, "\"", 1);
    }
    return 0;
}

/* Write the names of those members that are no texts: a JSON array within a JSON string. */
static int
append_encoded(Buffer *b, Buffer *scratch, PyObject *members)
{
    Py_ssize_t position = 0, n;
    PyObject *name, *value;
    const char *p;
    char before = '[';
    if (!PyDict_CheckExact(members))
        return 1;
    scratch->p = scratch->start;
    while (PyDict_Next(members, &position, &name, &value)) {
        if (!PyUnicode_CheckExact(name))
            return 1;
        if (PyUnicode_Check(value))
            continue;
        if ((p = bytes_of(name, &n)) == NULL)
            return -1;
        append(scratch, &before, 1);
        append_string(scratch, p, n);
        before = ',';
    }
    append_escaped(b, scratch->start, scratch->p - scratch->start);
    append(b, "[]", before == '[' ? 2 : 0);
    append(b, "]", before == ',' ? 1 : 0);
    b->failed |= scratch->failed;
    return 0;
}

static inline char *
two_digits(char *o, unsigned number)
{
    o[0] = (char)('0' + number / 10);
    o[1] = (char)('0' + number % 10);
    return o + 2;
}

/* The second that was written last: neighbouring records mostly share it. */
typedef struct {
    int64_t second;
    char text[20];
} Second;

/* Write YYYY-MM-DDTHH:MM:SS.fff with so many digits; `between` stands between date and time. The years are those of
 * 64-bit nanoseconds, 1677 to 2262. */
static void
append_time(Buffer *b, Second *last, int64_t ns, int digits, char between)
{
    int64_t second = ns / SECOND, fraction = ns % SECOND;
    if (fraction < 0) {
        fraction += SECOND;
        second--;
    }
    if (second != last->second) {
        int64_t days = second / 86400, rest = second % 86400;
        if (rest < 0) {
            rest += 86400;
            days--;
        }
        /* Counted from 1 March of the year 0, so that a leap day is the last of its year. */
        int64_t z = days + 719468, era = z / 146097;
        unsigned of_era = (unsigned)(z - era * 146097);
        unsigned year_of_era = (of_era - of_era / 1460 + of_era / 36524 - of_era / 146096) / 365;
        unsigned of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        unsigned shifted = (5 * of_year + 2) / 153, day = of_year - (153 * shifted + 2) / 5 + 1;
        unsigned month = shifted < 10 ? shifted + 3 : shifted - 9;
        unsigned year = year_of_era + (unsigned)era * 400 + (month <= 2);
        char *o = two_digits(two_digits(last->text, year / 100), year % 100);
        *o++ = '-';
        o = two_digits(o, month);
        *o++ = '-';
        o = two_digits(o, day);
        *o++ = between;
        o = two_digits(o, (unsigned)(rest / 3600));
        *o++ = ':';
        o = two_digits(o, (unsigned)(rest / 60 % 60));
        *o++ = ':';
        o = two_digits(o, (unsigned)(rest % 60));
        *o = '.';
        last->second = second;
    }
    append(b, last->text, 20);
    if (reserve(b, 9)) {
        for (int i = 8; i >= 0; i--, fraction /= 10)
            b->p[i] = (char)('0' + fraction % 10);
        b->p += digits;
    }
}

/* Write the six digits of nanoseconds below the millisecond. */
static void
append_below(Buffer *b, int64_t ns)
{
    int64_t rest = ns % 1000000;
    if (rest < 0)
        rest += 1000000;
    if (reserve(b, 6)) {
        for (int i = 5; i >= 0; i--, rest /= 10)
            b->p[i] = (char)('0' + rest % 10);
        b->p += 6;
    }
}

/* Write a text with an escape before each of three characters. */
static void
append_marked(Buffer *b, const char *p, Py_ssize_t n, const char *special, char escape)
{
    if (!reserve(b, 2 * n + 8))
        return;
    char *o = b->p;
    const char *end = p + n;
    uint64_t first = ONES * (unsigned char)special[0], second = ONES * (unsigned char)special[1],
             third = ONES * (unsigned char)special[2];
    while (p < end) {
        if (end - p >= 8) {
            uint64_t v = load8(p), found = zeros(v ^ first) | zeros(v ^ second) | zeros(v ^ third);
            int k = found ? place_of(found) : 8;
            memcpy(o, &v, 8);
            p += k;
            o += k;
            if (!found)
                continue;
        }
        if (*p == special[0] || *p == special[1] || *p == special[2])
            *o++ = escape;
        *o++ = *p++;
    }
    b->p = o;
}

PyDoc_STRVAR(render_doc,
"render(parts, start, end, encode, ends)\n--\n\n"
"Join the records from start to end. A part is bytes that every record has, or a pair of a kind and a column; encode\n"
"writes values of unusual types as JSON. ends, a list or None, gets where each record ends. None if a number is beyond\n"
"64 bits, or members are no plain dict.");

typedef struct {
    int kind;
    const char *constant;
    Py_ssize_t size;
    PyObject *column;
    Second second;
    Buffer scratch;
} Part;

static int
append_item(Buffer *b, Part *part, PyObject *item, PyObject *encode)
{
    Py_ssize_t n;
    const char *p;
    switch (part->kind) {
    case VALUE:
        return append_value(b, item, encode, 0);
    case MEMBERS:
        return append_members(b, &part->scratch, item, encode);
    case ENCODED:
        return append_encoded(b, &part->scratch, item);
    case NUMBER: case RFC3339: case TICKS: case CREATED: case MILLIS: case BELOW: {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(item, &overflow);
        if (number == -1 && PyErr_Occurred())
            return -1;
        if (overflow)
            return 1;
        if (part->kind == NUMBER)
            append_number(b, number);
        else if (part->kind == MILLIS)
            append_number(b, number / 1000000 - (number % 1000000 < 0));
        else if (part->kind == BELOW)
            append_below(b, number);
        else if (part->kind == CREATED)
            append_time(b, &part->second, number, 6, ' ');
        else {
            append_time(b, &part->second, number, part->kind == TICKS ? 7 : 9, 'T');
            append(b, "Z", 1);
        }
        return 0;
    }
    case FIELD: case QUOTED:
        if (item == Py_None) {
            append(b, part->kind == FIELD ? "\x1cN" : "NULL", part->kind == FIELD ? 2 : 4);
            return 0;
        }
    }
    if ((p = bytes_of(item, &n)) == NULL)
        return -1;
    switch (part->kind) {
    case TEXT:
        append(b, p, n);
        break;
    case STRING:
        append_string(b, p, n);
        break;
    case ESCAPED:
        append_escaped(b, p, n);
        break;
    case OPEN:
        append_escaped(b, p, n > 0 ? n - 1 : 0);
        break;
    case FIELD:
        append_marked(b, p, n, "\x1c\x1d\x1e", '\x1c');
        break;
    case QUOTED:
        append(b, "'", 1);
        append_marked(b, p, n, "'\\\\", '\\');
        append(b, "'", 1);
    }
    return 0;
}

static PyObject *
render(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 5 || !PyList_CheckExact(args[0]) || (args[4] != Py_None && !PyList_CheckExact(args[4]))) {
        PyErr_SetString(PyExc_TypeError, "render takes a list of parts, two numbers, a function, and a list or None");
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(args[1]), end = PyLong_AsSsize_t(args[2]), count = PyList_GET_SIZE(args[0]);
    if (PyErr_Occurred())
        return NULL;
    PyObject *encode = args[3], *ends = args[4], *result = NULL;
    /* A call before this one may have failed half-way. */
    if (ends != Py_None && PyList_SetSlice(ends, 0, PyList_GET_SIZE(ends), NULL) < 0)
        return NULL;
    Buffer b = {NULL, NULL, NULL, 0};
    Part *parts = PyMem_Calloc(count + 1, sizeof *parts);
    if (parts == NULL)
        return PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *part = PyList_GET_ITEM(args[0], i);
        parts[i].second.second = INT64_MIN;
        if (PyBytes_Check(part)) {
            parts[i].constant = PyBytes_AS_STRING(part);
            parts[i].size = PyBytes_GET_SIZE(part);
            continue;
        }
        if (!PyTuple_Check(part) || PyTuple_GET_SIZE(part) != 2 || !PyList_CheckExact(PyTuple_GET_ITEM(part, 1))) {
            PyErr_SetString(PyExc_TypeError, "a part is bytes, or a kind and a list");
            goto done;
        }
        parts[i].kind = (int)PyLong_AsLong(PyTuple_GET_ITEM(part, 0));
        parts[i].column = PyTuple_GET_ITEM(part, 1);
        if (PyErr_Occurred())
            goto done;
        if (parts[i].kind < 0 || parts[i].kind >= KINDS || start < 0 || end > PyList_GET_SIZE(parts[i].column)) {
            PyErr_SetString(PyExc_ValueError, "no such kind of column, or the column is too short");
            goto done;
        }
    }
    for (Py_ssize_t row = start; row < end; row++) {
        for (Py_ssize_t i = 0; i < count; i++) {
            Part *part = &parts[i];
            if (part->constant != NULL) {
                append(&b, part->constant, part->size);
                continue;
            }
            /* What `encode` calls could shorten the column. */
            PyObject *item = row < PyList_GET_SIZE(part->column) ? PyList_GET_ITEM(part->column, row) : Py_None;
            Py_INCREF(item);
            int odd = append_item(&b, part, item, encode);
            Py_DECREF(item);
            if (odd) {
                if (odd > 0)
                    result = Py_NewRef(Py_None);
                goto done;
            }
        }
        if (ends != Py_None && append_index(ends, b.p - b.start) < 0)
            goto done;
    }
    if (b.failed)
        PyErr_NoMemory();
    else
        result = PyBytes_FromStringAndSize(b.start, b.p - b.start);
done:
    for (Py_ssize_t i = 0; i < count; i++)
        PyMem_Free(parts[i].scratch.start);
    PyMem_Free(b.start);
    PyMem_Free(parts);
    return result;
}

PyMethodDef render_methods[] = {
    {"render", (PyCFunction)(void (*)(void))render, METH_FASTCALL, render_doc},
    {NULL, NULL, 0, NULL},
};
