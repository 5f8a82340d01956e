/* What applications write, parsed: the twin is `shipper.parse.Parser`. */

#include "native.h"

/* The longest name of a user in an access log (shipper.parse.lines). */
#define USER_LONGEST 256

/* The fields of a combined access-log line, as pointers into it. */
typedef struct {
    const char *client, *client_end, *user, *user_end, *date, *method, *method_end, *target, *target_end;
    const char *version, *version_end, *referer, *referer_end, *agent, *agent_end;
    int status;
    int64_t size;
} Access;

static inline const char *
word_end(const char *p, const char *end)
{
    const char *stop = memchr(p, ' ', end - p);
    return stop == p ? NULL : stop;
}

static int
is_version(const char *p, Py_ssize_t n)
{
    if (n == 1)
        return p[0] == '2' || p[0] == '3';
    return n == 3 && p[1] == '.' &&
           ((p[0] == '0' && p[2] == '9') || (p[0] == '1' && (p[2] == '0' || p[2] == '1')) ||
            ((p[0] == '2' || p[0] == '3') && p[2] == '0'));
}

/* Cut client ident user [date zone] "method target protocol" status size "referer" "agent"; 0 for any other line. */
static int
access_fields(const char *p, const char *end, Access *a)
{
    if (memchr(p, '\\', end - p) != NULL || memchr(p, '\n', end - p) != NULL || end - p < 50 || end[-1] != '"')
        return 0;
    a->client = p;
    if ((a->client_end = word_end(p, end)) == NULL || (p = word_end(a->client_end + 1, end)) == NULL)
        return 0;
    if (a->client_end[1] == '[')
        return 0; /* a fallback line's level stands there */
    a->user = p + 1;
    if ((a->user_end = word_end(a->user, end)) == NULL)
        return 0;
    /* Only the twin knows what is white space beyond the blank, in ASCII and not. */
    for (p = a->client; p < a->user_end; p++) {
        if ((signed char)*p < ' ' || *p == '"')
            return 0;
    }
    p = a->user_end + 1;
    if (a->user_end - a->user > USER_LONGEST || end - p < 31 || p[0] != '[' || p[27] != ']' || p[28] != ' ' ||
        p[29] != '"')
        return 0;
    a->date = p + 1;
    a->method = p + 30;
    const char *quote = memchr(a->method, '"', end - a->method);
    if (quote == NULL || (a->method_end = word_end(a->method, quote)) == NULL)
        return 0;
    a->target = a->method_end + 1;
    if ((a->target_end = word_end(a->target, quote)) == NULL)
        return 0;
    p = a->target_end + 1;
    if (!BEGINS(&p, quote, "HTTP/") || !is_version(p, quote - p))
        return 0;
    a->version = p;
    a->version_end = quote;
    p = quote + 1;
    if (end - p < 8 || p[0] != ' ' || p[4] != ' ' || (a->status = digits_of(p + 1, 3)) < 100 || a->status > 599)
        return 0;
    p += 5;
    const char *digits = p;
    a->size = 0;
    while (p < end && p - digits < 18 && *p >= '0' && *p <= '9')
        a->size = a->size * 10 + (*p++ - '0');
    if (p == digits || !BEGINS(&p, end, " \""))
        return 0;
    a->referer = p;
    if ((a->referer_end = memchr(p, '"', end - p)) == NULL)
        return 0;
    p = a->referer_end;
    if (!BEGINS(&p, end, "\" \""))
        return 0;
    a->agent = p;
    a->agent_end = end - 1;
    return p < end && memchr(p, '"', end - p) == end - 1;
}

static inline int
severity_of_status(int status)
{
    return status >= 500 ? 17 : status >= 400 ? 13 : 9;
}

/* Set a name of a dict to a value, whose reference it takes. */
static inline int
put(PyObject *dict, PyObject *name, PyObject *value)
{
    if (value == NULL)
        return -1;
    int failed = PyDict_SetItem(dict, name, value);
    Py_DECREF(value);
    return failed;
}

static PyObject *
new_text(const char *p, const char *end)
{
    return text_of(p, end - p, is_ascii(p, end - p));
}

static inline int
is_dash(const char *p, const char *end)
{
    return end - p == 1 && *p == '-';
}

static PyObject *
access_attributes(State *s, const Access *a)
{
    const char *query = memchr(a->target, '?', a->target_end - a->target);
    PyObject *row = PyDict_New();
    if (row == NULL)
        return NULL;
    if (put(row, s->ip_address, new_text(a->client, a->client_end)) < 0 ||
        put(row, s->method, kept_text(s, a->method, a->method_end - a->method)) < 0 ||
        put(row, s->path, new_text(a->target, query != NULL ? query : a->target_end)) < 0 ||
        put(row, s->protocol, Py_NewRef(s->http)) < 0 ||
        put(row, s->version, kept_text(s, a->version, a->version_end - a->version)) < 0 ||
        put(row, s->status, PyLong_FromLong(a->status)) < 0 || put(row, s->size, PyLong_FromLongLong(a->size)) < 0 ||
        (query != NULL && put(row, s->query, new_text(query + 1, a->target_end)) < 0) ||
        (!is_dash(a->referer, a->referer_end) && put(row, s->referer, new_text(a->referer, a->referer_end)) < 0) ||
        (!is_dash(a->agent, a->agent_end) && put(row, s->agent, kept_text(s, a->agent, a->agent_end - a->agent)) < 0) ||
        (!is_dash(a->user, a->user_end) && put(row, s->user, new_text(a->user, a->user_end)) < 0))
        Py_CLEAR(row);
    return row;
}

/* The severity that a level means, from KNOWN; -1 for none. Never leaves an exception. */
static int
known_severity(PyObject *known, PyObject *level)
{
    PyObject *found = PyDict_GetItemWithError(known, level);
    if (found == NULL) {
        PyErr_Clear();
        return -1;
    }
    return (int)PyLong_AsLong(found);
}

static int
known_word(State *s, PyObject *known, const char *p, Py_ssize_t n)
{
    PyObject *word = kept_text(s, p, n);
    if (word == NULL) {
        PyErr_Clear();
        return -1;
    }
    int severity = known_severity(known, word);
    Py_DECREF(word);
    return severity;
}

/* Read YYYY-MM-DDTHH:MM:SS.mmmZ [level] message. Give where the message begins, or NULL for any other line. */
static const char *
fallback_message(State *s, PyObject *known, Clock *clock, const char *p, const char *end, int64_t *own, int *severity)
{
    if (end - p < 28 || p[19] != '.' || p[23] != 'Z' || p[24] != ' ' || p[25] != '[')
        return NULL;
    const char *word = p + 26, *stop = word;
    while (stop < end && stop - p < 41 && *stop != ']')
        stop++;
    if (end - stop < 2 || stop[0] != ']' || stop[1] != ' ' || memchr(p, '\n', end - p) != NULL)
        return NULL;
    if ((*own = iso_nanoseconds(clock, p, 24)) < 0 || (*severity = known_word(s, known, word, stop - word)) < 0)
        return NULL;
    return stop + 2;
}

/* Nanoseconds of a time that a JSON line states, or -1: an ISO text in UTC, or a whole number of an epoch. */
static int64_t
stated_time(Clock *clock, PyObject *value)
{
    if (PyUnicode_CheckExact(value)) {
        if (!PyUnicode_IS_COMPACT_ASCII(value))
            return -1;
        return iso_nanoseconds(clock, (const char *)PyUnicode_1BYTE_DATA(value), PyUnicode_GET_LENGTH(value));
    }
    if (!PyLong_CheckExact(value))
        return -1;
    int overflow;
    long long number = PyLong_AsLongLongAndOverflow(value, &overflow);
    if (overflow || number <= 0)
        return -1;
    /* The unit is told by the size (shipper.parse.times). */
    long long unit = number < 100000000000LL ? SECOND : number < 100000000000000LL ? 1000000 :
                     number < 100000000000000000LL ? 1000 : 1;
    return number < END_OF_TIME * (SECOND / unit) ? number * unit : -1;
}

/* Read a JSON line as the parser's bulk path does. The attributes, or NULL, maybe with an exception set. */
static PyObject *
read_document(Reader *r, PyObject *known, Clock *clock, int64_t stamp, int *severity, PyObject **message)
{
    PyObject *document = PyDict_New(), *level = NULL, *message_text = NULL, *msg = NULL;
    int times = 0, more = 1;
    if (document == NULL)
        return NULL;
    r->p++; /* the brace */
    skip_space(r);
    while (more > 0) {
        PyObject *name = read_name(r), *value = NULL;
        if (name == NULL)
            goto declined;
        if (pass_colon(r))
            value = read_value(r, 1);
        if (value == NULL) {
            Py_DECREF(name);
            goto declined;
        }
        const char *text = (const char *)PyUnicode_DATA(name);
        Py_ssize_t size = PyUnicode_IS_COMPACT_ASCII(name) ? PyUnicode_GET_LENGTH(name) : 0;
        PyObject **place = size == 5 && memcmp(text, "level", 5) == 0     ? &level
                           : size == 7 && memcmp(text, "message", 7) == 0 ? &message_text
                                                                          : NULL;
        if (place != NULL) {
            Py_DECREF(name);
            if (*place != NULL) {
                Py_DECREF(value);
                goto declined; /* twice: rare enough for the twin */
            }
            *place = value;
        }
        else {
            /* Docker's time tells it, if the line's own is near; of two times the twin knows which counts. */
            if ((size == 2 && memcmp(text, "ts", 2) == 0) || (size == 4 && memcmp(text, "time", 4) == 0) ||
                (size == 9 && memcmp(text, "timestamp", 9) == 0) || (size == 10 && memcmp(text, "@timestamp", 10) == 0)) {
                int64_t own = times++ || !stamp ? -1 : stated_time(clock, value);
                if (own < 0 || !is_near(own, stamp)) {
                    Py_DECREF(name);
                    Py_DECREF(value);
                    goto declined;
                }
            }
            int failed = PyDict_SetItem(document, name, value);
            Py_DECREF(name);
            Py_DECREF(value);
            if (failed)
                goto declined;
        }
        more = pass_comma(r, '}');
    }
    if (more < 0 || r->p != r->end || level == NULL || r->seen.escape)
        goto declined;
    if ((*severity = known_severity(known, level)) < 0)
        goto declined;
    if (message_text == NULL && (msg = PyDict_GetItemWithError(document, r->state->msg)) != NULL) {
        message_text = Py_NewRef(msg);
        if (PyDict_DelItem(document, r->state->msg) < 0)
            goto declined;
    }
    if (PyErr_Occurred() || (message_text != NULL && !PyUnicode_CheckExact(message_text)))
        goto declined;
    Py_DECREF(level);
    *message = message_text;
    return document;
declined:
    Py_DECREF(document);
    Py_XDECREF(level);
    Py_XDECREF(message_text);
    return NULL;
}

/* Room for the longest of some texts as UTF-8, and 8 bytes. */
static char *
room_for(PyObject *lines)
{
    Py_ssize_t most = 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(lines); i++) {
        PyObject *line = PyList_GET_ITEM(lines, i);
        Py_ssize_t size = PyUnicode_Check(line) ? PyUnicode_GET_LENGTH(line) * PyUnicode_KIND(line) : 0;
        /* Four bytes of UTF-8 at most for a character of four, three for one of two, two for one of one. */
        if (PyUnicode_Check(line) && !PyUnicode_IS_COMPACT_ASCII(line))
            size *= 2;
        if (size > most)
            most = size;
    }
    char *room = PyMem_Malloc(most + 8);
    if (room == NULL)
        PyErr_NoMemory();
    return room;
}

PyDoc_STRVAR(parse_doc,
"parse(lines, stamps, times, offsets, severities, messages, attributes, known)\n--\n\n"
"Parse lines of the common forms (JSON, combined access log, fallback): fill severities, messages, attributes and\n"
"times, and stamps that are 0. Give the indexes of all other lines, which are left as they are.");

static PyObject *
parse(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 8 || !PyList_CheckExact(args[0]) || !PyDict_CheckExact(args[7])) {
        PyErr_SetString(PyExc_TypeError, "parse takes seven lists and a dict");
        return NULL;
    }
    PyObject *lines = args[0], *stamps = args[1], *times = args[2], *offsets = args[3], *severities = args[4];
    PyObject *messages = args[5], *attributes = args[6], *known = args[7];
    Py_ssize_t count = PyList_GET_SIZE(lines);
    if (!are_lists(args, 7, count))
        return NULL;
    State *s = state_of(module);
    PyObject *rest = PyList_New(0);
    char *scratch = room_for(lines);
    Clock iso = NO_CLOCK, clf = NO_CLOCK;
    if (rest == NULL || scratch == NULL)
        goto failed;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *line = PyList_GET_ITEM(lines, i), *row = NULL, *message = NULL;
        Py_ssize_t size = 0;
        const char *p = utf8_of(line, &size), *end = p + size;
        int severity = -1;
        int64_t own = -1, unit_us = 1;
        long long stamp = PyLong_AsLongLong(PyList_GET_ITEM(stamps, i));
        if (p == NULL || size < 2 || memchr(p, 0x1B, size) != NULL || (stamp == -1 && PyErr_Occurred()))
            goto rest;
        if (*p == '{') {
            if (end[-1] != '}' || size > WIDE)
                goto rest;
            Reader r = {p, end, scratch, s, {0, 0}};
            row = read_document(&r, known, &iso, stamp, &severity, &message);
        }
        else if (*p >= '0' && *p <= '9' && size > 24 && p[23] == 'Z') {
            const char *begin = fallback_message(s, known, &iso, p, end, &own, &severity);
            if (begin == NULL)
                goto rest;
            unit_us = 1000;
            message = new_text(begin, end);
            row = PyDict_New();
        }
        else {
            Access a;
            int64_t seconds;
            if (!access_fields(p, end, &a) || (seconds = access_seconds(&clf, a.date)) < 0)
                goto rest;
            own = seconds * SECOND;
            unit_us = 1000000;
            severity = severity_of_status(a.status);
            row = access_attributes(s, &a);
        }
        if (row == NULL || PyErr_Occurred()) {
            Py_XDECREF(row);
            Py_XDECREF(message);
            goto rest;
        }
        if (own >= 0 && (stamp == 0 || !is_near(own, stamp))) {
            /* The digits below the line's precision come from its place (`fill` of shipper.parse.times). */
            long long offset = PyLong_AsLongLong(PyList_GET_ITEM(offsets, i));
            long long step = offset >> 6;
            PyObject *time = PyLong_FromLongLong(
                own + (stamp != 0 ? step % (unit_us * 1000) : step % unit_us * 1000 + (offset & 63) * 15));
            if (PyErr_Occurred() || time == NULL) {
                Py_XDECREF(time);
                Py_DECREF(row);
                Py_XDECREF(message);
                goto rest;
            }
            if (stamp == 0)
                replace(stamps, i, Py_NewRef(time));
            replace(times, i, time);
        }
        replace(severities, i, PyLong_FromLong(severity)); /* small, so never NULL */
        replace(attributes, i, row);
        if (message != NULL)
            replace(messages, i, message);
        continue;
    rest:
        PyErr_Clear();
        if (append_index(rest, i) < 0)
            goto failed;
    }
    PyMem_Free(scratch);
    return rest;
failed:
    PyMem_Free(scratch);
    Py_XDECREF(rest);
    return NULL;
}

/* The severity that a JSON line states under `level`, with nothing made of all else; -1 for what is declined. */
static int
document_level(Reader *r, PyObject *known)
{
    int severity = -1, more = 1;
    r->p++; /* the brace */
    skip_space(r);
    while (more > 0) {
        if (r->p >= r->end || *r->p != '"')
            return -1;
        const char *name = ++r->p;
        if (!pass_string(r))
            return -1;
        Py_ssize_t size = r->p - 1 - name;
        if (memchr(name, '\\', size) != NULL || !pass_colon(r))
            return -1;
        const char *value = r->p;
        if (!pass_value(r, 1))
            return -1;
        if (size == 5 && memcmp(name, "level", 5) == 0) {
            const char *end = r->p;
            if (severity >= 0)
                return -1;
            if (*value == '"' && memchr(value, '\\', end - value) == NULL)
                severity = known_word(r->state, known, value + 1, end - value - 2);
            else if (end - value == 2 && *value >= '1' && *value <= '6' && value[1] == '0')
                severity = (*value - '1') * 4 + 1; /* pino's and bunyan's 10 to 60 */
            if (severity < 0)
                return -1;
        }
        more = pass_comma(r, '}');
    }
    return more == 0 && r->p == r->end ? severity : -1;
}

PyDoc_STRVAR(levels_doc,
"levels(lines, severities, known)\n--\n\n"
"Fill the severities that `parse` would find in lines of the common forms. Give the indexes of all other lines.");

static PyObject *
levels(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyList_CheckExact(args[0]) || !PyDict_CheckExact(args[2])) {
        PyErr_SetString(PyExc_TypeError, "levels takes two lists and a dict");
        return NULL;
    }
    PyObject *lines = args[0], *severities = args[1], *known = args[2];
    Py_ssize_t count = PyList_GET_SIZE(lines);
    if (!are_lists(args, 2, count))
        return NULL;
    State *s = state_of(module);
    PyObject *rest = PyList_New(0);
    if (rest == NULL)
        return NULL;
    Clock iso = NO_CLOCK, clf = NO_CLOCK;
    for (Py_ssize_t i = 0; i < count; i++) {
        Py_ssize_t size = 0;
        const char *p = utf8_of(PyList_GET_ITEM(lines, i), &size), *end = p + size;
        int severity = -1;
        if (p != NULL && size > 1 && memchr(p, 0x1B, size) == NULL) {
            if (*p == '{') {
                Reader r = {p, end, NULL, s, {0, 0}};
                if (end[-1] == '}' && size <= WIDE)
                    severity = document_level(&r, known);
            }
            else if (*p >= '0' && *p <= '9' && size > 24 && p[23] == 'Z') {
                int64_t own;
                if (fallback_message(s, known, &iso, p, end, &own, &severity) == NULL)
                    severity = -1;
            }
            else {
                Access a;
                if (access_fields(p, end, &a) && access_seconds(&clf, a.date) >= 0)
                    severity = severity_of_status(a.status);
            }
        }
        if (severity >= 0) {
            replace(severities, i, PyLong_FromLong(severity));
            continue;
        }
        if (append_index(rest, i) < 0) {
            Py_DECREF(rest);
            return NULL;
        }
    }
    return rest;
}

PyMethodDef line_methods[] = {
    {"parse", (PyCFunction)(void (*)(void))parse, METH_FASTCALL, parse_doc},
    {"levels", (PyCFunction)(void (*)(void))levels, METH_FASTCALL, levels_doc},
    {NULL, NULL, 0, NULL},
};
