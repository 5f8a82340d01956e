/* The module. */

#include "native.h"

#ifndef SHIPPER_VERSION
#error "the build says for which version of shipper this is"
#endif

static int
execute(PyObject *module)
{
    State *s = state_of(module);
    PyMethodDef *tables[] = {
        docker_methods,    line_methods,    id_methods,  render_methods,
        flattened_methods, integer_methods, row_methods, otlp_methods,
        memory_methods,    list_methods,
    };
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++) {
        if (PyModule_AddFunctions(module, tables[i]) < 0)
            return -1;
    }
    struct {
        PyObject **place;
        const char *text;
    } names[] = {
        {&s->ip_address, "ip_address"},
        {&s->method, "http.request.method"},
        {&s->path, "url.path"},
        {&s->query, "url.query"},
        {&s->protocol, "network.protocol.name"},
        {&s->http, "http"},
        {&s->version, "network.protocol.version"},
        {&s->status, "http.response.status_code"},
        {&s->size, "http.response.body.size"},
        {&s->referer, "http.request.header.referer"},
        {&s->agent, "user_agent"},
        {&s->user, "user.name"},
        {&s->msg, "msg"},
    };
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        *names[i].place = PyUnicode_InternFromString(names[i].text);
        if (*names[i].place == NULL)
            return -1;
    }
    return PyModule_AddStringConstant(module, "VERSION", SHIPPER_VERSION);
}

/* Texts refer to nothing, so there is nothing to traverse. */
static void
release(void *module)
{
    State *s = state_of((PyObject *)module);
    if (s == NULL)
        return;
    for (int i = 0; i < KEY_SLOTS; i++)
        Py_CLEAR(s->keys[i]);
    PyObject **names[] = {&s->ip_address, &s->method, &s->path,    &s->query, &s->protocol, &s->http, &s->version,
                          &s->status,     &s->size,   &s->referer, &s->agent, &s->user,     &s->msg};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        Py_CLEAR(*names[i]);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, execute},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shipper.native._native",
    .m_doc = "Compiled forms of the loops that cost most; see shipper.native.",
    .m_size = sizeof(State),
    .m_slots = slots,
    .m_free = release,
};

PyMODINIT_FUNC
PyInit__native(void)
{
    return PyModuleDef_Init(&definition);
}
