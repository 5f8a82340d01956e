/* Docker's json-file lines, cut into columns: the twin is `DockerLines._columns`. */

#include "native.h"

PyDoc_STRVAR(docker_lines_doc,
"docker_lines(block, position, seed)\n--\n\n"
"Cut a block of whole json-file lines into columns: times in nanoseconds, texts without their line feed, streams (one\n"
"name if all are the same), offsets from position on, the hashes of the lines, and whether each time is later than\n"
"the one before. None for a block with a line of another form.");

static PyObject *
docker_lines(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    if (nargs != 3 || !PyBytes_Check(args[0])) {
        PyErr_SetString(PyExc_TypeError, "docker_lines takes bytes, a position and a seed");
        return NULL;
    }
    const char *p = PyBytes_AS_STRING(args[0]), *end = p + PyBytes_GET_SIZE(args[0]);
    long long offset = PyLong_AsLongLong(args[1]);
    if (offset == -1 && PyErr_Occurred())
        return NULL;
    uint64_t seed = PyLong_AsUnsignedLongLong(args[2]);
    if (PyErr_Occurred())
        return NULL;
    char secret[HASH_SECRET];
    hash_secret(secret, seed);
    Py_ssize_t count = 0;
    for (const char *at = p; at < end && (at = memchr(at, '\n', end - at)) != NULL; at++)
        count++;
    if (count == 0 || end[-1] != '\n')
        Py_RETURN_NONE;
    char *scratch = PyMem_Malloc(end - p + 8);
    PyObject *stamps = PyList_New(count), *texts = PyList_New(count), *offsets = PyList_New(count);
    PyObject *hashes = PyList_New(count), *streams = NULL, *result = NULL;
    PyObject *names[2] = {PyUnicode_InternFromString("stdout"), PyUnicode_InternFromString("stderr")};
    int first = -1, later = 1;
    int64_t before = -1;
    Clock clock = NO_CLOCK;
    if (scratch == NULL || !stamps || !texts || !offsets || !hashes || !names[0] || !names[1])
        goto done;
    for (Py_ssize_t i = 0; i < count; i++) {
        const char *start = p;
        if (!BEGINS(&p, end, "{\"log\":\""))
            goto declined;
        char *out = scratch;
        Seen seen = {0, 0};
        p = unescape(p, end, &out, &seen);
        if (p == NULL || out == scratch || out[-1] != '\n' || !BEGINS(&p, end, ",\"stream\":\"std"))
            goto declined;
        int stream = BEGINS(&p, end, "err\"") ? 1 : BEGINS(&p, end, "out\"") ? 0 : -1;
        if (stream < 0)
            goto declined;
        if (BEGINS(&p, end, ",\"attrs\":")) {
            Reader r = {p, end, NULL, NULL, {0, 0}};
            if (p >= end || *p != '{' || !pass_value(&r, 0) || memchr(p, '\r', r.p - p) != NULL)
                goto declined;
            p = r.p;
        }
        if (!BEGINS(&p, end, ",\"time\":\""))
            goto declined;
        const char *quote = memchr(p, '"', end - p < 32 ? end - p : 32);
        int64_t stamp = quote == NULL ? -1 : iso_nanoseconds(&clock, p, quote - p);
        if (stamp < 0 || end - quote < 3 || quote[1] != '}' || quote[2] != '\n')
            goto declined;
        p = quote + 3;
        later &= stamp > before;
        before = stamp;
        PyObject *text = text_of(scratch, out - scratch - 1, (seen.high & HIGHS) == 0);
        if (text == NULL)
            goto declined;
        PyList_SET_ITEM(texts, i, text);
        PyObject *number = PyLong_FromLongLong(stamp), *place = PyLong_FromLongLong(offset);
        PyObject *hash = hash_number(hash_of(start, p - start, seed, secret));
        if (number == NULL || place == NULL || hash == NULL) {
            Py_XDECREF(number);
            Py_XDECREF(place);
            Py_XDECREF(hash);
            goto done;
        }
        PyList_SET_ITEM(stamps, i, number);
        PyList_SET_ITEM(offsets, i, place);
        PyList_SET_ITEM(hashes, i, hash);
        offset += p - start;
        if (first < 0)
            first = stream;
        if (stream != first && streams == NULL) {
            streams = PyList_New(count);
            if (streams == NULL)
                goto done;
            for (Py_ssize_t j = 0; j < i; j++)
                PyList_SET_ITEM(streams, j, Py_NewRef(names[first]));
        }
        if (streams != NULL)
            PyList_SET_ITEM(streams, i, Py_NewRef(names[stream]));
    }
    if (p != end)
        goto declined;
    result = PyTuple_Pack(6, stamps, texts, streams != NULL ? streams : names[first], offsets, hashes,
                          later ? Py_True : Py_False);
    goto done;
declined:
    PyErr_Clear();
    result = Py_NewRef(Py_None);
done:
    PyMem_Free(scratch);
    Py_XDECREF(stamps);
    Py_XDECREF(texts);
    Py_XDECREF(offsets);
    Py_XDECREF(hashes);
    Py_XDECREF(streams);
    Py_XDECREF(names[0]);
    Py_XDECREF(names[1]);
    return result;
}

PyMethodDef docker_methods[] = {
    {"docker_lines", (PyCFunction)(void (*)(void))docker_lines, METH_FASTCALL, docker_lines_doc},
    {NULL, NULL, 0, NULL},
};
