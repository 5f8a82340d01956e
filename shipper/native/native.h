/* What the files of this directory share.
 *
 * The loops that cost most, compiled. Every function has a twin in Python, which decides what is right. These know the
 * common forms only: what is uncommon in any way they decline, a whole block by None, single lines by their indexes,
 * and the twin takes over. So nothing here needs to be clever about broken input; it only has to notice. Tests hold
 * both to the same results.
 *
 * Texts are read as UTF-8, eight bytes at a time where a byte's place does not matter. No function keeps a pointer into
 * a Python object beyond its own return.
 */

#ifndef SHIPPER_NATIVE_H
#define SHIPPER_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define ONES 0x0101010101010101ULL
#define HIGHS 0x8080808080808080ULL

#define SECOND 1000000000LL
/* How far a line's own time may stand from Docker's and still be told by Docker's (shipper.parse.times). */
#define TOLERANCE (2 * SECOND)
/* The first second after the last year that is believed, 2200 (shipper.parse.times). */
#define END_OF_TIME 7289654400LL
/* Nesting beyond this is declined. */
#define DEPTH 60
/* JSON of more bytes is declined: its values are counted before they are decoded (WIDE of shipper.parse.objects). */
#define WIDE 65536
/* Texts that are kept, and the bytes of the longest of them. */
#define KEY_SLOTS 1024
#define KEY_LONGEST 40

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "written for little-endian machines"
#endif
#ifndef __SIZEOF_INT128__
#error "written for 64-bit machines"
#endif

/* Texts met often (names of attributes, methods, versions), by a hash of their bytes: one object each. */
typedef struct {
    PyObject *keys[KEY_SLOTS];
    PyObject *ip_address, *method, *path, *query, *protocol, *http, *version, *status, *size, *referer, *agent, *user;
    PyObject *msg;
} State;

static inline State *
state_of(PyObject *module)
{
    return (State *)PyModule_GetState(module);
}

static inline uint64_t
load8(const char *p)
{
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}

/* The high bit of the lowest byte that is zero, and maybe of bytes above it. */
static inline uint64_t
zeros(uint64_t v)
{
    return (v - ONES) & ~v & HIGHS;
}

/* Of the lowest byte that ends a run of plain text in a JSON string: a quote, a backslash, a control character. */
static inline uint64_t
specials(uint64_t v)
{
    return zeros(v ^ (ONES * '"')) | zeros(v ^ (ONES * '\\')) | ((v - ONES * 0x20) & ~v & HIGHS);
}

static inline int
place_of(uint64_t bits)
{
    return __builtin_ctzll(bits) >> 3;
}

static inline int
is_ascii(const char *p, Py_ssize_t n)
{
    uint64_t high = 0;
    for (; n >= 8; p += 8, n -= 8)
        high |= load8(p);
    for (; n > 0; p++, n--)
        high |= (unsigned char)*p;
    return (high & HIGHS) == 0;
}

static inline PyObject *
ascii_text(const char *p, Py_ssize_t n)
{
    PyObject *text = PyUnicode_New(n, 127);
    if (text != NULL)
        memcpy(PyUnicode_1BYTE_DATA(text), p, n);
    return text;
}

/* A text of UTF-8; NULL with an exception set if it is none. */
static inline PyObject *
text_of(const char *p, Py_ssize_t n, int ascii)
{
    return ascii ? ascii_text(p, n) : PyUnicode_DecodeUTF8(p, n, NULL);
}

/* Find the end of a run of plain text from p on: at a quote, a backslash, a control character or the end. Bytes that
 * are no ASCII are noted in *high. */
static inline const char *
plain_run(const char *p, const char *end, uint64_t *high)
{
    uint64_t seen = 0;
    while (end - p >= 8) {
        uint64_t v = load8(p), found = specials(v);
        if (found) {
            int n = place_of(found);
            *high |= seen | (n ? v << (64 - 8 * n) : 0);
            return p + n;
        }
        seen |= v;
        p += 8;
    }
    while (p < end && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20)
        seen |= (unsigned char)*p++;
    *high |= seen;
    return p;
}

/* Put a new item into a list, whose reference it takes. */
static inline void
replace(PyObject *list, Py_ssize_t i, PyObject *item)
{
    PyObject *old = PyList_GET_ITEM(list, i);
    PyList_SET_ITEM(list, i, item);
    Py_DECREF(old);
}

/* Add an index to a list; -1 with an exception. */
static inline int
append_index(PyObject *list, Py_ssize_t i)
{
    PyObject *index = PyLong_FromSsize_t(i);
    int failed = index == NULL ? -1 : PyList_Append(list, index);
    Py_XDECREF(index);
    return failed;
}

/* Tell whether some arguments are lists of one length; sets an exception if not. */
static inline int
are_lists(PyObject *const *args, Py_ssize_t nargs, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < nargs; i++) {
        if (!PyList_CheckExact(args[i]) || PyList_GET_SIZE(args[i]) != count) {
            PyErr_SetString(PyExc_TypeError, "columns must be lists of one length");
            return 0;
        }
    }
    return 1;
}

/* The UTF-8 of a text, or NULL without an exception: it holds half of a surrogate pair. */
static inline const char *
utf8_of(PyObject *text, Py_ssize_t *size)
{
    if (!PyUnicode_Check(text))
        return NULL;
    if (PyUnicode_IS_COMPACT_ASCII(text)) {
        *size = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_1BYTE_DATA(text);
    }
    const char *utf8 = PyUnicode_AsUTF8AndSize(text, size);
    if (utf8 == NULL)
        PyErr_Clear();
    return utf8;
}

/* What unescaping saw beside the text itself. */
typedef struct {
    uint64_t high; /* any byte that is no ASCII */
    int escape;    /* the control character ESC */
} Seen;

typedef struct {
    const char *p, *end;
    char *scratch; /* room for the longest string, and 8 bytes */
    State *state;
    Seen seen;
} Reader;

static inline void
skip_space(Reader *r)
{
    while (r->p < r->end && (*r->p == ' ' || *r->p == '\n' || *r->p == '\t' || *r->p == '\r'))
        r->p++;
}

/* Pass the colon behind a name. */
static inline int
pass_colon(Reader *r)
{
    skip_space(r);
    if (r->p >= r->end || *r->p != ':')
        return 0;
    r->p++;
    skip_space(r);
    return 1;
}

/* Behind an item: 1 if another follows, 0 behind the closing character, -1 for anything else. */
static inline int
pass_comma(Reader *r, char closing)
{
    skip_space(r);
    if (r->p >= r->end)
        return -1;
    char c = *r->p++;
    if (c == closing)
        return 0;
    if (c != ',')
        return -1;
    skip_space(r);
    return 1;
}

static inline int
begins(const char **p, const char *end, const char *text, Py_ssize_t n)
{
    if (end - *p < n || memcmp(*p, text, n) != 0)
        return 0;
    *p += n;
    return 1;
}

#define BEGINS(p, end, text) begins(p, end, text, sizeof(text) - 1)

/* Bytes that grow; once memory is short, all further writing is in vain and `failed` says so. */
typedef struct {
    char *start, *p, *end;
    int failed;
} Buffer;

static inline int
grow(Buffer *b, size_t more)
{
    size_t used = b->p - b->start, size = (b->end - b->start) * 2;
    if (size < used + more)
        size = used + more;
    char *start = PyMem_Realloc(b->start, size);
    if (start == NULL) {
        b->failed = 1;
        return 0;
    }
    b->start = start;
    b->p = start + used;
    b->end = start + size;
    return 1;
}

static inline int
reserve(Buffer *b, size_t more)
{
    return (size_t)(b->end - b->p) >= more || grow(b, more);
}

static inline void
append(Buffer *b, const char *p, size_t n)
{
    if (reserve(b, n)) {
        memcpy(b->p, p, n);
        b->p += n;
    }
}

/* The UTF-8 of a text. NULL with an exception: it is no text, or holds half of a surrogate pair. */
static inline const char *
bytes_of(PyObject *text, Py_ssize_t *n)
{
    if (PyUnicode_Check(text) && PyUnicode_IS_COMPACT_ASCII(text)) {
        *n = PyUnicode_GET_LENGTH(text);
        return (const char *)PyUnicode_1BYTE_DATA(text);
    }
    return PyUnicode_AsUTF8AndSize(text, n);
}

/* A second that was read, and the text it was read from: neighbouring lines mostly share it. */
typedef struct {
    char text[28];
    int64_t seconds;
} Clock;

/* None was read yet. A text of zeros is found in it, and is no time. */
#define NO_CLOCK {"", -1}

/* A number of exactly n digits, or -1. */
static inline int
digits_of(const char *p, int n)
{
    int number = 0;
    for (int i = 0; i < n; i++) {
        unsigned digit = (unsigned char)p[i] - '0';
        if (digit > 9)
            return -1;
        number = number * 10 + (int)digit;
    }
    return number;
}

static inline int
is_near(int64_t own, int64_t stamp)
{
    return own - stamp >= -TOLERANCE && own - stamp <= TOLERANCE;
}


void append_string(Buffer *b, const char *p, Py_ssize_t n);
void append_number(Buffer *b, long long number);
int append_value(Buffer *b, PyObject *value, PyObject *encode, int depth);
/* Bytes of a secret (`hash.c`). */
#define HASH_SECRET 192

typedef struct {
    uint64_t low, high;
} Hash;

void hash_secret(char secret[HASH_SECRET], uint64_t seed);
Hash hash_of(const char *p, size_t n, uint64_t seed, const char secret[HASH_SECRET]);
PyObject *hash_number(Hash h);
PyObject *kept_text(State *state, const char *p, Py_ssize_t n);
const char *unescape(const char *p, const char *end, char **out, Seen *seen);
PyObject *read_name(Reader *r);
PyObject *read_value(Reader *r, int depth);
int pass_string(Reader *r);
int pass_value(Reader *r, int depth);
int64_t iso_nanoseconds(Clock *clock, const char *p, Py_ssize_t n);
int64_t access_seconds(Clock *clock, const char *p);

/* What a file adds to the module. */
extern PyMethodDef docker_methods[], line_methods[], id_methods[], render_methods[], flattened_methods[],
    integer_methods[], row_methods[], otlp_methods[], memory_methods[], list_methods[];

#endif
