/* Strings and values of JSON. */

#include "native.h"

/* A text that is likely to be met again. A new reference. */
PyObject *
kept_text(State *state, const char *p, Py_ssize_t n)
{
    if (n > KEY_LONGEST || !is_ascii(p, n))
        return PyUnicode_DecodeUTF8(p, n, NULL);
    uint64_t hash = n * 0x9E3779B97F4A7C15ULL;
    for (Py_ssize_t i = 0; i < n; i++)
        hash = (hash ^ (unsigned char)p[i]) * 0x100000001B3ULL;
    PyObject **slot = &state->keys[(hash >> 32) % KEY_SLOTS];
    PyObject *text = *slot;
    if (text != NULL && PyUnicode_GET_LENGTH(text) == n && memcmp(PyUnicode_1BYTE_DATA(text), p, n) == 0)
        return Py_NewRef(text);
    text = ascii_text(p, n);
    if (text != NULL) {
        Py_XDECREF(*slot);
        *slot = Py_NewRef(text);
    }
    return text;
}

static inline int
hex_digit(char c)
{
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
}

/* Four hexadecimal digits, or -1. */
static int
hex4(const char *p, const char *end)
{
    if (end - p < 4)
        return -1;
    int a = hex_digit(p[0]), b = hex_digit(p[1]), c = hex_digit(p[2]), d = hex_digit(p[3]);
    return (a | b | c | d) < 0 ? -1 : a << 12 | b << 8 | c << 4 | d;
}

/* Copy a string of JSON whose opening quote is behind, unescaped, to *out, and move *out behind it. Give what stands
 * behind the closing quote, or NULL for what JSON forbids or half of a surrogate pair. *out must have room for all up
 * to the end and for 8 bytes more. */
const char *
unescape(const char *p, const char *end, char **out, Seen *seen)
{
    char *o = *out;
    for (;;) {
        uint64_t found = 0;
        while (end - p >= 8) {
            uint64_t v = load8(p);
            memcpy(o, &v, 8);
            found = specials(v);
            if (found) {
                int n = place_of(found);
                seen->high |= n ? v << (64 - 8 * n) : 0;
                p += n;
                o += n;
                break;
            }
            seen->high |= v;
            p += 8;
            o += 8;
        }
        if (!found) {
            while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20) {
                seen->high |= (unsigned char)*p;
                *o++ = *p++;
            }
            if (p == end)
                return NULL;
        }
        if (*p == '"') {
            *out = o;
            return p + 1;
        }
        if (*p != '\\' || end - p < 2)
            return NULL;
        char c = p[1];
        p += 2;
        switch (c) {
        case '"': case '\\': case '/': *o++ = c; break;
        case 'n': *o++ = '\n'; break;
        case 't': *o++ = '\t'; break;
        case 'r': *o++ = '\r'; break;
        case 'b': *o++ = '\b'; break;
        case 'f': *o++ = '\f'; break;
        case 'u': {
            int code = hex4(p, end);
            if (code < 0)
                return NULL;
            p += 4;
            if (code < 0x80) {
                seen->escape |= code == 0x1B;
                *o++ = (char)code;
                break;
            }
            seen->high |= 0x80;
            if (code < 0x800) {
                *o++ = (char)(0xC0 | code >> 6);
                *o++ = (char)(0x80 | (code & 0x3F));
                break;
            }
            if (code >= 0xD800 && code < 0xE000) {
                int low = code < 0xDC00 && end - p >= 6 && p[0] == '\\' && p[1] == 'u' ? hex4(p + 2, end) : -1;
                if (low < 0xDC00 || low >= 0xE000)
                    return NULL;
                p += 6;
                code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                *o++ = (char)(0xF0 | code >> 18);
                *o++ = (char)(0x80 | (code >> 12 & 0x3F));
            }
            else
                *o++ = (char)(0xE0 | code >> 12);
            *o++ = (char)(0x80 | (code >> 6 & 0x3F));
            *o++ = (char)(0x80 | (code & 0x3F));
            break;
        }
        default:
            return NULL;
        }
    }
}

/* The rest of a string, its opening quote behind. NULL, maybe with an exception set, for what is declined. */
static PyObject *
read_string(Reader *r)
{
    uint64_t high = 0;
    const char *start = r->p, *stop = plain_run(start, r->end, &high);
    if (stop == r->end)
        return NULL;
    if (*stop == '"') {
        r->p = stop + 1;
        return text_of(start, stop - start, (high & HIGHS) == 0);
    }
    char *out = r->scratch;
    Seen seen = {0, 0};
    r->p = unescape(start, r->end, &out, &seen);
    r->seen.escape |= seen.escape;
    return r->p == NULL ? NULL : text_of(r->scratch, out - r->scratch, (seen.high & HIGHS) == 0);
}

/* Find the end of a number; tell whether it is whole. NULL if it is none. */
static const char *
number_end(const char *p, const char *end, int *whole)
{
    *whole = 1;
    if (p < end && *p == '-')
        p++;
    const char *digits = p;
    while (p < end && *p >= '0' && *p <= '9')
        p++;
    if (p == digits || (*digits == '0' && p - digits > 1))
        return NULL;
    if (p < end && *p == '.') {
        const char *fraction = ++p;
        while (p < end && *p >= '0' && *p <= '9')
            p++;
        if (p == fraction)
            return NULL;
        *whole = 0;
    }
    if (p < end && (*p == 'e' || *p == 'E')) {
        p++;
        if (p < end && (*p == '+' || *p == '-'))
            p++;
        const char *power = p;
        while (p < end && *p >= '0' && *p <= '9')
            p++;
        if (p == power)
            return NULL;
        *whole = 0;
    }
    return p;
}

static PyObject *
read_number(Reader *r)
{
    int whole;
    const char *start = r->p, *stop = number_end(start, r->end, &whole);
    if (stop == NULL || stop - start > 40)
        return NULL;
    r->p = stop;
    if (whole) {
        int negative = *start == '-';
        const char *p = start + negative;
        if (stop - p > 18 || (negative && *p == '0'))
            return NULL;
        long long number = 0;
        for (; p < stop; p++)
            number = number * 10 + (*p - '0');
        return PyLong_FromLongLong(negative ? -number : number);
    }
    char copy[48];
    memcpy(copy, start, stop - start);
    copy[stop - start] = 0;
    double number = PyOS_string_to_double(copy, NULL, NULL);
    if (number == -1.0 && PyErr_Occurred())
        return NULL;
    return number - number != 0.0 ? NULL : PyFloat_FromDouble(number); /* not finite: declined */
}

PyObject *
read_name(Reader *r)
{
    if (r->p >= r->end || *r->p != '"')
        return NULL;
    uint64_t high = 0;
    const char *start = ++r->p, *stop = plain_run(start, r->end, &high);
    if (stop < r->end && *stop == '"') {
        r->p = stop + 1;
        return kept_text(r->state, start, stop - start);
    }
    return read_string(r);
}

static PyObject *
read_object(Reader *r, int depth)
{
    PyObject *object = PyDict_New();
    if (object == NULL)
        return NULL;
    skip_space(r);
    if (r->p < r->end && *r->p == '}') {
        r->p++;
        return object;
    }
    for (;;) {
        PyObject *name = read_name(r);
        if (name == NULL)
            break;
        PyObject *value = pass_colon(r) ? read_value(r, depth) : NULL;
        int failed = value == NULL || PyDict_SetItem(object, name, value) < 0;
        Py_DECREF(name);
        Py_XDECREF(value);
        if (failed)
            break;
        int more = pass_comma(r, '}');
        if (more == 0)
            return object;
        if (more < 0)
            break;
    }
    Py_DECREF(object);
    return NULL;
}

static PyObject *
read_array(Reader *r, int depth)
{
    PyObject *array = PyList_New(0);
    if (array == NULL)
        return NULL;
    skip_space(r);
    if (r->p < r->end && *r->p == ']') {
        r->p++;
        return array;
    }
    for (;;) {
        PyObject *value = read_value(r, depth);
        if (value == NULL)
            break;
        int failed = PyList_Append(array, value) < 0;
        Py_DECREF(value);
        if (failed)
            break;
        int more = pass_comma(r, ']');
        if (more == 0)
            return array;
        if (more < 0)
            break;
    }
    Py_DECREF(array);
    return NULL;
}

static inline int
pass_word(Reader *r, const char *word, Py_ssize_t n)
{
    if (r->end - r->p < n || memcmp(r->p, word, n) != 0)
        return 0;
    r->p += n;
    return 1;
}

/* A value, or NULL, maybe with an exception set, for what is declined. */
PyObject *
read_value(Reader *r, int depth)
{
    if (r->p >= r->end || depth > DEPTH)
        return NULL;
    switch (*r->p) {
    case '"':
        r->p++;
        return read_string(r);
    case '{':
        r->p++;
        return read_object(r, depth + 1);
    case '[':
        r->p++;
        return read_array(r, depth + 1);
    case 't':
        return pass_word(r, "true", 4) ? Py_NewRef(Py_True) : NULL;
    case 'f':
        return pass_word(r, "false", 5) ? Py_NewRef(Py_False) : NULL;
    case 'n':
        return pass_word(r, "null", 4) ? Py_NewRef(Py_None) : NULL;
    default:
        return read_number(r);
    }
}

/* Pass a string, its opening quote behind; 0 for what JSON forbids, and for \u, which may be half of a pair. */
int
pass_string(Reader *r)
{
    for (;;) {
        const char *stop = plain_run(r->p, r->end, &r->seen.high);
        if (stop == r->end)
            return 0;
        if (*stop == '"') {
            r->p = stop + 1;
            return 1;
        }
        if (*stop != '\\' || r->end - stop < 2 || strchr("\"\\/bfnrt", stop[1]) == NULL || stop[1] == 0)
            return 0;
        r->p = stop + 2;
    }
}

/* Pass a value without making anything of it; 0 for what is declined. */
int
pass_value(Reader *r, int depth)
{
    if (r->p >= r->end || depth > DEPTH)
        return 0;
    int more, whole;
    switch (*r->p) {
    case '"':
        r->p++;
        return pass_string(r);
    case '{':
        r->p++;
        skip_space(r);
        if (r->p < r->end && *r->p == '}') {
            r->p++;
            return 1;
        }
        do {
            if (r->p >= r->end || *r->p != '"')
                return 0;
            r->p++;
            if (!pass_string(r) || !pass_colon(r) || !pass_value(r, depth + 1))
                return 0;
            more = pass_comma(r, '}');
        } while (more > 0);
        return more == 0;
    case '[':
        r->p++;
        skip_space(r);
        if (r->p < r->end && *r->p == ']') {
            r->p++;
            return 1;
        }
        do {
            if (!pass_value(r, depth + 1))
                return 0;
            more = pass_comma(r, ']');
        } while (more > 0);
        return more == 0;
    case 't':
        return pass_word(r, "true", 4);
    case 'f':
        return pass_word(r, "false", 5);
    case 'n':
        return pass_word(r, "null", 4);
    default: {
        const char *stop = number_end(r->p, r->end, &whole);
        if (stop == NULL)
            return 0;
        r->p = stop;
        return 1;
    }
    }
}

