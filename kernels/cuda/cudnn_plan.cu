/* cudnn_plan.cu - attention in the words of cuDNN's graph API.
 *
 * Forward is y = softmax(mask(q k^T scale)) v with lse = max + log(sum); backward is
 * algorithm 4 of Dao et al. 2022 with dS written out in bf16, so that dq is one matrix
 * product in a fixed order and not a sum of atomics.  cuDNN knows these graphs by their
 * form and answers with one fused kernel, or with no engine at all.  Sequences lie one
 * behind the other: element (b, h, i, c) is at[b] + h wide + i heads wide + c. */
#include "kernels/cuda/cudnn.cuh"

#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static bool says(char *why, size_t size, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    vsnprintf(why, size, fmt, args);
    va_end(args);
    return false;
}

/* ---- the library --------------------------------------------------------------------- */

static bool symbols(dn_library *l, void *from)
{
#define X(result, name, args)                          \
    *(void **)&l->name = dlsym(from, "cudnn" #name);   \
    if (!l->name) return false;
    DN_CALLS(X)
#undef X
    return true;
}

bool dn_open(dn_library *l, const char *file, char *why, size_t size)
{
    memset(l, 0, sizeof *l);
    bool have = !file && symbols(l, RTLD_DEFAULT);
    if (!have) {
        l->file = dlopen(file ? file : "libcudnn.so.9", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);     /* it has threads and handlers of its own */
        if (!l->file) return says(why, size, "%s", dlerror());
        have = symbols(l, l->file);
    }
    size_t version = have ? l->GetVersion() : 0;
    if (version >= DN_OLDEST) return true;
    dn_close(l);
    return says(why, size, "cuDNN %zu.%zu is too old, 9.19 is needed", version / 10000, version / 100 % 100);
}

void dn_close(dn_library *l)
{
    if (l->file) dlclose(l->file);
    memset(l, 0, sizeof *l);
}

/* ---- descriptors: the first that fails says why, the rest do nothing --------------------- */

typedef struct builder {
    const dn_library *l;
    dn_plan          *p;
    const dn_shape   *s;
    dn_object         op[DN_OPS];
    int               n_ops;
    int64_t           virtual_id;
    bool              failed;
    char             *why;
    size_t            size;
} builder;

static bool broken(builder *g, const char *what)
{
    if (!g->failed) {
        char text[256] = "";
        g->l->GetLastErrorString(text, sizeof text);
        text[strcspn(text, "\n")] = '\0';
        says(g->why, g->size, "%s: %s", what, text);
    }
    g->failed = true;
    return false;
}

static dn_object make(builder *g, int kind)
{
    dn_object d = NULL;
    if (g->failed) return NULL;
    if (g->p->n_made == DN_MADE || g->l->BackendCreateDescriptor(kind, &d)) {
        broken(g, "a descriptor");
        return NULL;
    }
    return g->p->made[g->p->n_made++] = d;
}

static void set(builder *g, dn_object d, int attribute, int type, int64_t n, const void *v)
{
    if (!g->failed && g->l->BackendSetAttribute(d, attribute, type, n, v)) broken(g, "an attribute");
}

static void link_to(builder *g, dn_object d, int attribute, dn_object v)
{
    if (v) set(g, d, attribute, DN_AS_DESCRIPTOR, 1, &v);
}

static dn_object final(builder *g, dn_object d, const char *what)
{
    if (!g->failed && g->l->BackendFinalize(d)) broken(g, what);
    return d;
}

/* ---- tensors -------------------------------------------------------------------------------- */

enum { REAL, VIRTUAL, BY_VALUE };

static dn_object tensor(builder *g, int64_t id, int type, const int64_t dims[4], const int64_t strides[4], int kind, dn_object ragged)
{
    const bool yes = true;
    int64_t align = 16;
    dn_object d = make(g, DN_TENSOR);
    set(g, d, DN_A_TENSOR_ID, DN_AS_INT64, 1, &id);
    set(g, d, DN_A_TENSOR_TYPE, DN_AS_DATA_TYPE, 1, &type);
    set(g, d, DN_A_TENSOR_ALIGNMENT, DN_AS_INT64, 1, &align);
    set(g, d, DN_A_TENSOR_DIMENSIONS, DN_AS_INT64, 4, dims);
    set(g, d, DN_A_TENSOR_STRIDES, DN_AS_INT64, 4, strides);
    if (kind == VIRTUAL) set(g, d, DN_A_TENSOR_VIRTUAL, DN_AS_BOOLEAN, 1, &yes);
    if (kind == BY_VALUE) set(g, d, DN_A_TENSOR_BY_VALUE, DN_AS_BOOLEAN, 1, &yes);
    link_to(g, d, DN_A_TENSOR_RAGGED, ragged);
    return final(g, d, "a tensor");
}

/* What run() is given at `place`. */
static dn_object real(builder *g, int place, int type, const int64_t dims[4], const int64_t strides[4], int kind, dn_object ragged)
{
    g->p->has[place] = true;
    return tensor(g, place + 1, type, dims, strides, kind, ragged);
}

static dn_object list(builder *g, int place, int64_t n)
{
    int64_t dims[4] = {n, 1, 1, 1}, strides[4] = {1, 1, 1, 1};
    return real(g, place, DN_INT32, dims, strides, REAL, NULL);
}

static dn_object value(builder *g, int place)
{
    int64_t ones[4] = {1, 1, 1, 1};
    return real(g, place, DN_FLOAT, ones, ones, BY_VALUE, NULL);
}

/* Heads of packed rows, [spans][heads][longest][wide]; turned: the last two the other way round. */
static dn_object heads(builder *g, int place, int h, dn_object at, bool turned)
{
    int64_t n = g->s->longest, wide = g->s->wide, row = h * wide;
    int64_t dims[4] = {g->s->spans, h, n, wide}, strides[4] = {n * row, wide, row, 1};
    int64_t dims_t[4] = {g->s->spans, h, wide, n}, strides_t[4] = {n * row, wide, 1, row};
    return real(g, place, DN_BF16, turned ? dims_t : dims, turned ? strides_t : strides, REAL, at);
}

/* A number for each row and head. */
static dn_object row_numbers(builder *g, int place, dn_object at)
{
    int64_t h = g->s->heads, dims[4] = {g->s->spans, h, g->s->longest, 1}, strides[4] = {g->s->longest * h, 1, h, 1};
    return real(g, place, DN_FLOAT, dims, strides, REAL, at);
}

/* Between two operations, and never in memory: [spans][heads][longest][cols]. */
static dn_object between(builder *g, int type, int64_t cols)
{
    int64_t h = g->s->heads, n = g->s->longest, dims[4] = {g->s->spans, h, n, cols}, strides[4] = {h * n * cols, n * cols, cols, 1};
    return tensor(g, DN_PLACES + ++g->virtual_id, type, dims, strides, VIRTUAL, NULL);
}

static dn_object scores(builder *g, int type) { return between(g, type, g->s->longest); }

/* ---- operations ------------------------------------------------------------------------------- */

static dn_object did(builder *g, dn_object op, dn_object y)
{
    final(g, op, "an operation");
    if (g->n_ops == DN_OPS) broken(g, "too many operations");
    else g->op[g->n_ops++] = op;
    return y;
}

/* c[M,N] = a[M,K] b[K,N]; m, n, k: lists of what counts of each, or NULL */
static dn_object product(builder *g, dn_object a, dn_object b, dn_object c, dn_object m, dn_object n, dn_object k)
{
    int precision = DN_FLOAT;
    dn_object how = make(g, DN_MATMUL), op = make(g, DN_OP_MATMUL);
    set(g, how, DN_A_MATMUL_PRECISION, DN_AS_DATA_TYPE, 1, &precision);
    final(g, how, "a product");
    link_to(g, op, DN_A_OP_MATMUL_A, a);
    link_to(g, op, DN_A_OP_MATMUL_B, b);
    link_to(g, op, DN_A_OP_MATMUL_C, c);
    link_to(g, op, DN_A_OP_MATMUL, how);
    link_to(g, op, DN_A_OP_MATMUL_M, m);
    link_to(g, op, DN_A_OP_MATMUL_N, n);
    link_to(g, op, DN_A_OP_MATMUL_K, k);
    return did(g, op, c);
}

/* y = mode(x, b), in `precision`; t: where SELECT takes x, else b; axis of GEN_INDEX, -1: none */
static dn_object each(builder *g, int mode, int precision, int64_t axis, dn_object x, dn_object b, dn_object t, dn_object y)
{
    dn_object how = make(g, DN_POINTWISE), op = make(g, DN_OP_POINTWISE);
    set(g, how, DN_A_POINTWISE_MODE, DN_AS_POINTWISE_MODE, 1, &mode);
    set(g, how, DN_A_POINTWISE_PRECISION, DN_AS_DATA_TYPE, 1, &precision);
    if (axis >= 0) set(g, how, DN_A_POINTWISE_AXIS, DN_AS_INT64, 1, &axis);
    final(g, how, "an elementwise step");
    link_to(g, op, DN_A_OP_POINTWISE, how);
    link_to(g, op, DN_A_OP_POINTWISE_X, x);
    link_to(g, op, DN_A_OP_POINTWISE_B, b);
    link_to(g, op, DN_A_OP_POINTWISE_T, t);
    link_to(g, op, DN_A_OP_POINTWISE_Y, y);
    return did(g, op, y);
}

static dn_object with(builder *g, int mode, dn_object x, dn_object b, dn_object y) { return each(g, mode, DN_FLOAT, -1, x, b, NULL, y); }

/* y = x summed up, or its largest, along the dimensions that are 1 in y (or shorter: heads of a group) */
static dn_object reduce(builder *g, int mode, dn_object x, dn_object y)
{
    int precision = DN_FLOAT;
    dn_object how = make(g, DN_REDUCTION), op = make(g, DN_OP_REDUCTION);
    set(g, how, DN_A_REDUCTION_MODE, DN_AS_REDUCTION, 1, &mode);
    set(g, how, DN_A_REDUCTION_PRECISION, DN_AS_DATA_TYPE, 1, &precision);
    final(g, how, "a reduction");
    link_to(g, op, DN_A_OP_REDUCTION_X, x);
    link_to(g, op, DN_A_OP_REDUCTION_Y, y);
    link_to(g, op, DN_A_OP_REDUCTION, how);
    return did(g, op, y);
}

/* The same memory, read in y's dimensions and strides. */
static dn_object seen_as(builder *g, dn_object x, dn_object y)
{
    dn_object op = make(g, DN_OP_RESHAPE);
    link_to(g, op, DN_A_OP_RESHAPE_X, x);
    link_to(g, op, DN_A_OP_RESHAPE_Y, y);
    return did(g, op, y);
}

/* p^T of p[spans][heads][longest][longest], in bf16 as a factor of a product. */
static dn_object turned_round(builder *g, dn_object p)
{
    int64_t h = g->s->heads, n = g->s->longest, dims[4] = {g->s->spans, h, n, n}, strides[4] = {h * n * n, n * n, 1, n};
    return seen_as(g, p, tensor(g, DN_PLACES + ++g->virtual_id, DN_BF16, dims, strides, VIRTUAL, NULL));
}

/* Scores of rows and keys that a sequence does not have are -inf. */
static dn_object padded(builder *g, dn_object x, dn_object rows, dn_object keys)
{
    dn_object row = each(g, DN_GEN_INDEX, DN_INT32, 2, x, NULL, NULL, scores(g, DN_INT32));
    dn_object key = each(g, DN_GEN_INDEX, DN_INT32, 3, x, NULL, NULL, scores(g, DN_INT32));
    dn_object a = each(g, DN_LT, DN_BOOLEAN, -1, row, rows, NULL, scores(g, DN_BOOLEAN));
    dn_object b = each(g, DN_LT, DN_BOOLEAN, -1, key, keys, NULL, scores(g, DN_BOOLEAN));
    dn_object both = each(g, DN_AND, DN_BOOLEAN, -1, a, b, NULL, scores(g, DN_BOOLEAN));
    return each(g, DN_SELECT, DN_FLOAT, -1, x, value(g, DN_LOWEST_PAD), both, scores(g, DN_FLOAT));
}

/* And of keys after the row. */
static dn_object banded(builder *g, dn_object x)
{
    if (!g->s->causal) return x;
    dn_object row = each(g, DN_GEN_INDEX, DN_FLOAT, 2, x, NULL, NULL, scores(g, DN_INT32));
    dn_object key = each(g, DN_GEN_INDEX, DN_FLOAT, 3, x, NULL, NULL, scores(g, DN_INT32));
    dn_object past = each(g, DN_GE, DN_BOOLEAN, -1, row, key, NULL, scores(g, DN_BOOLEAN));
    return each(g, DN_SELECT, DN_FLOAT, -1, x, value(g, DN_LOWEST_BAND), past, scores(g, DN_FLOAT));
}

/* ---- the two passes ---------------------------------------------------------------------------------- */

typedef struct lists {
    dn_object rows, keys, at_q, at_k, at_lse;
} lists;

static lists lists_of(builder *g)
{
    int64_t n = g->s->spans;
    lists o = {list(g, DN_LENGTH_Q, n), list(g, DN_LENGTH_K, n), list(g, DN_AT_Q, n + 1), list(g, DN_AT_K, n + 1), list(g, DN_AT_LSE, n + 1)};
    return o;
}

static void forward(builder *g)
{
    const dn_shape *a = g->s;
    lists o = lists_of(g);
    dn_object q = heads(g, DN_Q, a->heads, o.at_q, false), kt = heads(g, DN_K, a->kv_heads, o.at_k, true);
    dn_object v = heads(g, DN_V, a->kv_heads, o.at_k, false), y = heads(g, DN_Y, a->heads, o.at_q, false);
    dn_object s = product(g, q, kt, scores(g, DN_FLOAT), o.rows, o.keys, NULL);
    s = with(g, DN_MUL, s, value(g, DN_SCALE), scores(g, DN_FLOAT));
    s = banded(g, padded(g, s, o.rows, o.keys));
    dn_object most = reduce(g, DN_REDUCE_MAX, s, between(g, DN_FLOAT, 1));
    dn_object e = with(g, DN_EXP, with(g, DN_SUB, s, most, scores(g, DN_FLOAT)), NULL, scores(g, DN_FLOAT));
    dn_object sum = reduce(g, DN_REDUCE_ADD, e, between(g, DN_FLOAT, 1));
    dn_object log = with(g, DN_LOG, sum, NULL, between(g, DN_FLOAT, 1));
    with(g, DN_ADD, most, log, row_numbers(g, DN_LSE, o.at_lse));
    dn_object p = with(g, DN_DIV, e, sum, scores(g, DN_BF16));
    product(g, p, v, y, o.rows, NULL, o.keys);
}

/* dk or dv = left^T right, summed over the heads of a group. */
static void of_keys(builder *g, dn_object left, dn_object right, dn_object out, const lists *o)
{
    dn_object t = turned_round(g, left);
    if (g->s->heads == g->s->kv_heads) product(g, t, right, out, o->keys, NULL, o->rows);
    else reduce(g, DN_REDUCE_ADD, product(g, t, right, between(g, DN_BF16, g->s->wide), o->keys, NULL, o->rows), out);
}

static void backward(builder *g)
{
    const dn_shape *a = g->s;
    lists o = lists_of(g);
    dn_object q = heads(g, DN_Q, a->heads, o.at_q, false), kt = heads(g, DN_K, a->kv_heads, o.at_k, true);
    dn_object vt = heads(g, DN_V, a->kv_heads, o.at_k, true), y = heads(g, DN_Y, a->heads, o.at_q, false);
    dn_object dy = heads(g, DN_DY, a->heads, o.at_q, false), scale = value(g, DN_SCALE);

    dn_object sum = reduce(g, DN_REDUCE_ADD, with(g, DN_MUL, dy, y, between(g, DN_FLOAT, a->wide)), between(g, DN_FLOAT, 1));
    dn_object delta = with(g, DN_MUL, sum, value(g, DN_ONE), row_numbers(g, DN_DELTA, o.at_lse));

    dn_object s = product(g, q, kt, scores(g, DN_FLOAT), o.rows, o.keys, NULL);
    s = padded(g, with(g, DN_MUL, s, scale, scores(g, DN_FLOAT)), o.rows, o.keys);
    s = banded(g, with(g, DN_SUB, s, row_numbers(g, DN_LSE, o.at_lse), scores(g, DN_FLOAT)));
    dn_object p = with(g, DN_EXP, s, NULL, scores(g, DN_FLOAT));
    of_keys(g, p, dy, heads(g, DN_DV, a->kv_heads, o.at_k, false), &o);

    dn_object dp = product(g, dy, vt, scores(g, DN_FLOAT), o.rows, o.keys, NULL);
    dn_object ds = with(g, DN_MUL, with(g, DN_SUB, dp, delta, scores(g, DN_FLOAT)), p, scores(g, DN_FLOAT));
    ds = with(g, DN_MUL, ds, scale, scores(g, DN_FLOAT));
    of_keys(g, ds, q, heads(g, DN_DK, a->kv_heads, o.at_k, false), &o);

    int64_t n = a->longest, row = a->kv_heads * (int64_t)a->wide, dims[4] = {a->spans, a->kv_heads, n, a->wide}, strides[4] = {n * row, a->wide, row, 1};
    dn_object k = seen_as(g, kt, tensor(g, DN_PLACES + ++g->virtual_id, DN_BF16, dims, strides, VIRTUAL, o.at_k));
    product(g, ds, k, heads(g, DN_DQ, a->heads, o.at_q, false), o.rows, NULL, o.keys);
}

/* ---- plans ----------------------------------------------------------------------------------------------- */

static dn_object device_of(builder *g, const char *words)
{
    if (!words) return NULL;
    dn_object d = make(g, DN_DEVICE);
    set(g, d, DN_A_DEVICE_JSON, DN_AS_CHAR, (int64_t)strlen(words) + 1, words);
    return final(g, d, "the device's properties");
}

/* The library's first choice that it can make. */
static bool choose(builder *g, dn_object graph, dn_handle handle, dn_object device)
{
    enum { MOST = 8 };
    int mode = DN_HEURISTIC_A;
    int64_t n = 0, one;
    dn_object config[MOST], ask = make(g, DN_HEURISTICS);
    link_to(g, ask, DN_A_HEURISTICS_GRAPH, graph);
    set(g, ask, DN_A_HEURISTICS_MODE, DN_AS_HEURISTIC, 1, &mode);
    link_to(g, ask, DN_A_HEURISTICS_DEVICE, device);
    final(g, ask, "asking for engines");
    for (int i = 0; i < MOST; i++) config[i] = make(g, DN_ENGINE_CONFIG);
    if (!g->failed && g->l->BackendGetAttribute(ask, DN_A_HEURISTICS_RESULTS, DN_AS_DESCRIPTOR, MOST, &n, config)) broken(g, "asking for engines");
    for (int i = 0; i < n && i < MOST && !g->failed; i++) {
        dn_object plan = make(g, DN_EXECUTION_PLAN);
        if (handle) set(g, plan, DN_A_PLAN_HANDLE, DN_AS_HANDLE, 1, &handle);
        link_to(g, plan, DN_A_PLAN_CONFIG, config[i]);
        link_to(g, plan, DN_A_PLAN_DEVICE, device);
        if (g->failed || g->l->BackendFinalize(plan)) continue;
        if (g->l->BackendGetAttribute(plan, DN_A_PLAN_WORKSPACE, DN_AS_INT64, 1, &one, &g->p->workspace)) continue;
        g->p->plan = plan;
        return true;
    }
    return broken(g, "no engine of cuDNN takes it");
}

bool dn_plan_open(const dn_library *l, dn_plan *p, const dn_shape *s, dn_handle handle, const char *device, char *why, size_t size)
{
    memset(p, 0, sizeof *p);
    builder g = {};
    g.l = l, g.p = p, g.s = s, g.why = why, g.size = size;
    if (s->back) backward(&g);
    else forward(&g);
    dn_object graph = make(&g, DN_GRAPH), properties = device_of(&g, device);
    set(&g, graph, DN_A_GRAPH_OPS, DN_AS_DESCRIPTOR, g.n_ops, g.op);
    if (handle) set(&g, graph, DN_A_GRAPH_HANDLE, DN_AS_HANDLE, 1, &handle);
    final(&g, graph, "the graph");
    if (choose(&g, graph, handle, properties)) return true;
    dn_plan_close(l, p);
    return false;
}

void dn_plan_close(const dn_library *l, dn_plan *p)
{
    while (p->n_made) l->BackendDestroyDescriptor(p->made[--p->n_made]);
    memset(p, 0, sizeof *p);
}

bool dn_plan_run(const dn_library *l, const dn_plan *p, dn_handle handle, void *const at[DN_PLACES], void *workspace, char *why, size_t size)
{
    int64_t id[DN_PLACES], n = 0;
    void *pointer[DN_PLACES];
    dn_object pack = NULL;
    for (int i = 0; i < DN_PLACES; i++) {
        if (!p->has[i]) continue;
        id[n] = i + 1;
        pointer[n++] = at[i];
    }
    bool ok = !l->BackendCreateDescriptor(DN_VARIANT_PACK, &pack) && !l->BackendSetAttribute(pack, DN_A_PACK_IDS, DN_AS_INT64, n, id) &&
              !l->BackendSetAttribute(pack, DN_A_PACK_POINTERS, DN_AS_POINTER, n, pointer) &&
              !l->BackendSetAttribute(pack, DN_A_PACK_WORKSPACE, DN_AS_POINTER, 1, &workspace) && !l->BackendFinalize(pack) &&
              !l->BackendExecute(handle, p->plan, pack);
    char text[256] = "";
    if (!ok) l->GetLastErrorString(text, sizeof text);
    if (pack) l->BackendDestroyDescriptor(pack);
    return ok || says(why, size, "cuDNN: %s", text);
}
