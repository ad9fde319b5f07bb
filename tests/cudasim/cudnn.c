/* cudnn.c - cuDNN's graph API on the CPU, as far as cudnn_plan.cu goes.
 *
 * A graph is not recognised but carried out, operation by operation, as its descriptors
 * say: products with what counts of M, N and K, elementwise steps, reductions, views; from
 * memory by the tensors' strides and ragged offsets, sequence by sequence.  What a tensor's
 * sequence does not have is NaN when it is read and is not written, and workspace is scribbled
 * over: so a wrong stride, offset, list or size shows in the numbers or as a finding. */
#include "internal.h"
#include "kernels/cuda/cudnn.cuh"

#include <math.h>

enum { BAD = 2000, NOT_FINAL = 2001, REFUSED = 3000, ATTRIBUTES = 16, MOST_ELEMENTS = 32, TENSORS = 160 };

typedef struct attribute {
    int     name, type;
    int64_t n;
    char    value[MOST_ELEMENTS * 8];
} attribute;

typedef struct object {
    int       kind, final, n;
    attribute a[ATTRIBUTES];
    struct object *graph;               /* of a config that asking for engines filled */
} object;

static int absent;
static long cost;
static char last_error[256];
void cudasim_set_cudnn(int on) { absent = !on; }
void cudasim_set_cudnn_cost(long threads) { cost = threads; }

int cudnnBackendCreateDescriptor(int, dn_object *), cudnnBackendDestroyDescriptor(dn_object), cudnnBackendFinalize(dn_object);
int cudnnBackendSetAttribute(dn_object, int, int, int64_t, const void *), cudnnBackendGetAttribute(dn_object, int, int, int64_t, int64_t *, void *);
int cudnnBackendExecute(dn_handle, dn_object, dn_object), cudnnCreate(dn_handle *), cudnnDestroy(dn_handle), cudnnSetStream(dn_handle, void *);
size_t cudnnGetVersion(void);
void   cudnnGetLastErrorString(char *, size_t);

static int refuse(int code, const char *why)
{
    snprintf(last_error, sizeof last_error, "%s", why);
    return code;
}

size_t cudnnGetVersion(void) { return DN_OLDEST; }
void   cudnnGetLastErrorString(char *text, size_t size) { snprintf(text, size, "%s", last_error); }

int cudnnCreate(dn_handle *h)
{
    *h = absent || sim_injected() ? NULL : calloc(1, sizeof(cudaStream_t));
    return *h ? 0 : refuse(1000, "no device");
}

int cudnnDestroy(dn_handle h) { return free(h), 0; }
int cudnnSetStream(dn_handle h, void *s) { return *(cudaStream_t *)h = s, 0; }

/* ---- descriptors ---------------------------------------------------------------------------- */

static size_t size_of(int type)
{
    switch (type) {
    case DN_AS_BOOLEAN: return 1;
    case DN_AS_DATA_TYPE: case DN_AS_HEURISTIC: case DN_AS_POINTWISE_MODE: case DN_AS_REDUCTION: return 4;
    case DN_AS_HANDLE: case DN_AS_INT64: case DN_AS_POINTER: case DN_AS_DESCRIPTOR: return 8;
    default: return 0;
    }
}

/* NULL: not given, or as another type. */
static const void *get(const object *o, int name, int type, int64_t least)
{
    for (int i = 0; o && i < o->n; i++)
        if (o->a[i].name == name) return o->a[i].type == type && o->a[i].n >= least ? o->a[i].value : NULL;
    return NULL;
}

static int64_t integer(const object *o, int name, int type, int64_t otherwise)
{
    const char *at = get(o, name, type, 1);
    int v;
    int64_t wide;
    if (!at) return otherwise;
    if (size_of(type) == 1) return *at;
    if (size_of(type) == 8) return memcpy(&wide, at, 8), wide;
    return memcpy(&v, at, 4), v;
}

static object *linked(const object *o, int name)
{
    const void *at = get(o, name, DN_AS_DESCRIPTOR, 1);
    object *p = NULL;
    if (at) memcpy(&p, at, sizeof p);
    return p;
}

int cudnnBackendCreateDescriptor(int kind, dn_object *out)
{
    object *o = sim_injected() || kind == DN_DEVICE ? NULL : calloc(1, sizeof *o);
    if ((*out = o)) o->kind = kind;
    return o ? 0 : refuse(BAD, "no such descriptor");
}

int cudnnBackendDestroyDescriptor(dn_object d) { return free(d), 0; }

int cudnnBackendSetAttribute(dn_object d, int name, int type, int64_t n, const void *v)
{
    object *o = d;
    if (!o || o->final || !size_of(type) || n < 1 || n > MOST_ELEMENTS || o->n == ATTRIBUTES) return refuse(BAD, "a wrong attribute");
    for (int64_t i = 0; type == DN_AS_DESCRIPTOR && i < n; i++)
        if (!((object *const *)v)[i] || !((object *const *)v)[i]->final) return refuse(NOT_FINAL, "what it links to is not finished");
    attribute *a = &o->a[o->n++];
    *a = (attribute){.name = name, .type = type, .n = n};
    memcpy(a->value, v, (size_t)n * size_of(type));
    return 0;
}

static int finished(const object *o)
{
    switch (o->kind) {
    case DN_TENSOR:
        return get(o, DN_A_TENSOR_ID, DN_AS_INT64, 1) && get(o, DN_A_TENSOR_TYPE, DN_AS_DATA_TYPE, 1) && get(o, DN_A_TENSOR_ALIGNMENT, DN_AS_INT64, 1) &&
               get(o, DN_A_TENSOR_DIMENSIONS, DN_AS_INT64, 4) && get(o, DN_A_TENSOR_STRIDES, DN_AS_INT64, 4);
    case DN_OP_MATMUL: return linked(o, DN_A_OP_MATMUL_A) && linked(o, DN_A_OP_MATMUL_B) && linked(o, DN_A_OP_MATMUL_C) && linked(o, DN_A_OP_MATMUL);
    case DN_OP_POINTWISE: return linked(o, DN_A_OP_POINTWISE) && linked(o, DN_A_OP_POINTWISE_X) && linked(o, DN_A_OP_POINTWISE_Y);
    case DN_OP_REDUCTION: return linked(o, DN_A_OP_REDUCTION) && linked(o, DN_A_OP_REDUCTION_X) && linked(o, DN_A_OP_REDUCTION_Y);
    case DN_OP_RESHAPE: return linked(o, DN_A_OP_RESHAPE_X) && linked(o, DN_A_OP_RESHAPE_Y);
    case DN_GRAPH: return get(o, DN_A_GRAPH_OPS, DN_AS_DESCRIPTOR, 1) && get(o, DN_A_GRAPH_HANDLE, DN_AS_HANDLE, 1);
    case DN_HEURISTICS: return linked(o, DN_A_HEURISTICS_GRAPH) && get(o, DN_A_HEURISTICS_MODE, DN_AS_HEURISTIC, 1);
    case DN_EXECUTION_PLAN: return linked(o, DN_A_PLAN_CONFIG) && get(o, DN_A_PLAN_HANDLE, DN_AS_HANDLE, 1);
    case DN_VARIANT_PACK: return get(o, DN_A_PACK_IDS, DN_AS_INT64, 1) && get(o, DN_A_PACK_POINTERS, DN_AS_POINTER, 1);
    default: return 1;
    }
}

int cudnnBackendFinalize(dn_object d)
{
    object *o = d;
    if (!o || o->final || !finished(o)) return refuse(BAD, "something is missing");
    o->final = 1;
    return 0;
}

static int64_t n_ops(const object *graph)
{
    for (int i = 0; i < graph->n; i++)
        if (graph->a[i].name == DN_A_GRAPH_OPS) return graph->a[i].n;
    return 0;
}

static object *op_at(const object *graph, int64_t i) { return ((object *const *)get(graph, DN_A_GRAPH_OPS, DN_AS_DESCRIPTOR, 1))[i]; }

/* A plan wants room for the scores of its products as bf16, if it goes back: then there are five. */
static int64_t workspace_of(const object *graph)
{
    int64_t products = 0, dims[4] = {0};
    for (int64_t i = 0; i < n_ops(graph); i++) {
        if (op_at(graph, i)->kind != DN_OP_MATMUL) continue;
        if (!products++) memcpy(dims, get(linked(op_at(graph, i), DN_A_OP_MATMUL_C), DN_A_TENSOR_DIMENSIONS, DN_AS_INT64, 4), sizeof dims);
    }
    return products > 2 ? 2 * dims[0] * dims[1] * dims[2] * dims[3] : 256;
}

int cudnnBackendGetAttribute(dn_object d, int name, int type, int64_t room, int64_t *n, void *out)
{
    object *o = d;
    if (!o || !o->final || room < 1) return refuse(BAD, "not to be asked");
    if (o->kind == DN_HEURISTICS && name == DN_A_HEURISTICS_RESULTS && type == DN_AS_DESCRIPTOR) {
        object *config = *(object **)out;
        config->graph = linked(o, DN_A_HEURISTICS_GRAPH);
        config->final = 1;
        *n = 1;
        return 0;
    }
    if (o->kind == DN_EXECUTION_PLAN && name == DN_A_PLAN_WORKSPACE && type == DN_AS_INT64) {
        *(int64_t *)out = workspace_of(linked(o, DN_A_PLAN_CONFIG)->graph);
        *n = 1;
        return 0;
    }
    return refuse(BAD, "no such attribute");
}

/* ---- a graph, taken apart when it is executed --------------------------------------------------- */

typedef struct tensor {
    int64_t id, dim[4], stride[4], ragged;                /* ragged: its list's id; 0: none */
    int     type, is_virtual, made;                       /* made: by an operation          */
    char   *data;
    float   scalar;
    int     by_value;
    float  *v;                                            /* [dim 1..3] of one sequence     */
} tensor;

typedef struct step {
    int kind, mode, axis, x, b, t, y, m, n, k;            /* places in run.tensor; -1: none */
} step;

typedef struct run {
    tensor  tensor[TENSORS];
    step    step[DN_OPS];
    int     n_tensors, n_steps;
    int64_t workspace;
    char   *space;
} run;

static int place(run *r, const object *t, const object *pack)
{
    if (!t) return -1;
    int64_t id = integer(t, DN_A_TENSOR_ID, DN_AS_INT64, 0);
    for (int i = 0; i < r->n_tensors; i++)
        if (r->tensor[i].id == id) return i;
    if (r->n_tensors == TENSORS) abort();
    int at = r->n_tensors++;
    tensor x = {.id = id, .type = (int)integer(t, DN_A_TENSOR_TYPE, DN_AS_DATA_TYPE, 0), .is_virtual = (int)integer(t, DN_A_TENSOR_VIRTUAL, DN_AS_BOOLEAN, 0),
                .by_value = (int)integer(t, DN_A_TENSOR_BY_VALUE, DN_AS_BOOLEAN, 0)};
    memcpy(x.dim, get(t, DN_A_TENSOR_DIMENSIONS, DN_AS_INT64, 4), sizeof x.dim);
    memcpy(x.stride, get(t, DN_A_TENSOR_STRIDES, DN_AS_INT64, 4), sizeof x.stride);
    for (int i = 0; i < pack->n && !x.is_virtual; i++) {
        if (pack->a[i].name != DN_A_PACK_IDS) continue;
        for (int64_t k = 0; k < pack->a[i].n; k++)
            if (((const int64_t *)(const void *)pack->a[i].value)[k] == id) x.data = ((char *const *)get(pack, DN_A_PACK_POINTERS, DN_AS_POINTER, k + 1))[k];
    }
    if (!x.is_virtual && !x.data) sim_error("cuDNN: tensor %lld has no memory", (long long)id);
    if ((uintptr_t)x.data % (uintptr_t)integer(t, DN_A_TENSOR_ALIGNMENT, DN_AS_INT64, 1) && !x.by_value) sim_error("cuDNN: tensor %lld is not aligned", (long long)id);
    if (x.by_value && x.data) memcpy(&x.scalar, x.data, sizeof x.scalar);
    const object *ragged = linked(t, DN_A_TENSOR_RAGGED);
    if (ragged) x.ragged = r->tensor[place(r, ragged, pack)].id;
    r->tensor[at] = x;
    return at;
}

static step step_of(run *r, const object *o, const object *pack)
{
#define AT(name) place(r, linked(o, name), pack)
    switch (o->kind) {
    case DN_OP_MATMUL:
        return (step){DN_OP_MATMUL, 0, 0, AT(DN_A_OP_MATMUL_A), AT(DN_A_OP_MATMUL_B), -1, AT(DN_A_OP_MATMUL_C), AT(DN_A_OP_MATMUL_M), AT(DN_A_OP_MATMUL_N),
                      AT(DN_A_OP_MATMUL_K)};
    case DN_OP_POINTWISE: {
        const object *how = linked(o, DN_A_OP_POINTWISE);
        return (step){DN_OP_POINTWISE, (int)integer(how, DN_A_POINTWISE_MODE, DN_AS_POINTWISE_MODE, -1), (int)integer(how, DN_A_POINTWISE_AXIS, DN_AS_INT64, 0),
                      AT(DN_A_OP_POINTWISE_X), AT(DN_A_OP_POINTWISE_B), AT(DN_A_OP_POINTWISE_T), AT(DN_A_OP_POINTWISE_Y), -1, -1, -1};
    }
    case DN_OP_REDUCTION:
        return (step){DN_OP_REDUCTION, (int)integer(linked(o, DN_A_OP_REDUCTION), DN_A_REDUCTION_MODE, DN_AS_REDUCTION, -1), 0, AT(DN_A_OP_REDUCTION_X), -1, -1,
                      AT(DN_A_OP_REDUCTION_Y), -1, -1, -1};
    default: return (step){DN_OP_RESHAPE, 0, 0, AT(DN_A_OP_RESHAPE_X), -1, -1, AT(DN_A_OP_RESHAPE_Y), -1, -1, -1};
    }
#undef AT
}

/* ---- memory -------------------------------------------------------------------------------------------- */

static size_t bytes_of(const tensor *t) { return t->type == DN_BF16 ? 2 : 4; }
static int64_t elements(const tensor *t) { return t->dim[1] * t->dim[2] * t->dim[3]; }

static float rounded(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    if (f == f) u += 0x7fff + (u >> 16 & 1);
    u &= 0xffff0000u;
    memcpy(&f, &u, 4);
    return f;
}

static const tensor *by_id(const run *r, int64_t id)
{
    for (int i = 0; i < r->n_tensors; i++)
        if (r->tensor[i].id == id) return &r->tensor[i];
    return NULL;
}

/* Where sequence b of t lies: elements [*first, *first + *n) of its memory; a list lies as its strides say. */
static int lies(const run *r, const tensor *t, int64_t b, int64_t *first, int64_t *n)
{
    *first = t->dim[0] == 1 ? 0 : b * t->stride[0];
    *n = 1;
    for (int i = 1; i < 4; i++) *n += (t->dim[i] - 1) * t->stride[i];
    if (t->ragged) {
        const int32_t *at = (const int32_t *)(const void *)by_id(r, t->ragged)->data;
        *first = at[b];
        *n = at[b + 1] - at[b];
    }
    if (*n && sim_device_range(t->data + *first * (int64_t)bytes_of(t), (size_t)*n * bytes_of(t)) < 1) {
        sim_error("cuDNN: tensor %lld outside of device memory", (long long)t->id);
        return 0;
    }
    return 1;
}

static void walk(const tensor *t, const tensor *strides, char *data, int64_t first, int64_t n, int out)
{
    int64_t e = 0;
    for (int64_t i = 0; i < t->dim[1]; i++)
        for (int64_t j = 0; j < t->dim[2]; j++)
            for (int64_t k = 0; k < t->dim[3]; k++, e++) {
                int64_t at = i * strides->stride[1] + j * strides->stride[2] + k * strides->stride[3];
                char *p = data + (first + at) * (int64_t)bytes_of(t);
                uint32_t u = 0;
                int32_t whole;
                if (at >= n) {
                    if (!out) t->v[e] = NAN;
                } else if (out) {
                    memcpy(&u, &t->v[e], 4);
                    if (t->type == DN_BF16) u >>= 16;
                    memcpy(p, &u, bytes_of(t));
                } else if (t->type == DN_INT32) {
                    memcpy(&whole, p, 4);
                    t->v[e] = (float)whole;
                } else {
                    memcpy(&u, p, bytes_of(t));
                    if (t->type == DN_BF16) u <<= 16;
                    memcpy(&t->v[e], &u, 4);
                }
            }
}

static void load(const run *r, tensor *t, const tensor *from, int64_t b)
{
    int64_t first, n;
    if (t->by_value) {
        t->v[0] = t->scalar;
        return;
    }
    tensor view = *t;
    view.data = from->data;
    if (lies(r, &view, b, &first, &n)) walk(t, t, from->data, first, n, 0);
}

static void store(const run *r, const tensor *t, int64_t b)
{
    int64_t first, n;
    if (!lies(r, t, b, &first, &n) || !n) return;
    walk(t, t, t->data, first, n, 1);
    HOOK(host_write, t->data + first * (int64_t)bytes_of(t), (size_t)n * bytes_of(t));
}

/* ---- operations: of one sequence ------------------------------------------------------------------------------ */

static float keep(const tensor *t, float v) { return t->type == DN_BF16 ? rounded(v) : v; }

static int64_t counts(const run *r, int list, int64_t all)
{
    return list < 0 ? all : (int64_t)r->tensor[list].v[0];
}

static void multiply(run *r, const step *s)
{
    const tensor *a = &r->tensor[s->x], *b = &r->tensor[s->b], *c = &r->tensor[s->y];
    int64_t M = c->dim[2], N = c->dim[3], K = a->dim[3];
    if (a->dim[2] != M || b->dim[2] != K || b->dim[3] != N || c->dim[1] % a->dim[1] || c->dim[1] % b->dim[1]) {
        sim_error("cuDNN: a product of matrices that do not fit");
        return;
    }
    int64_t m = counts(r, s->m, M), n = counts(r, s->n, N), k = counts(r, s->k, K);
    memset(c->v, 0, (size_t)elements(c) * sizeof *c->v);
    for (int64_t h = 0; h < c->dim[1]; h++) {
        const float *A = a->v + h / (c->dim[1] / a->dim[1]) * M * K, *B = b->v + h / (c->dim[1] / b->dim[1]) * K * N;
        for (int64_t i = 0; i < m; i++) {
            float *to = c->v + (h * M + i) * N;
            for (int64_t l = 0; l < k; l++)
                for (int64_t j = 0; j < n; j++) to[j] += A[i * K + l] * B[l * N + j];
            for (int64_t j = 0; j < n; j++) to[j] = keep(c, to[j]);
        }
    }
}

static float spread(const tensor *t, int64_t i, int64_t j, int64_t k)
{
    return t->v[((t->dim[1] == 1 ? 0 : i) * t->dim[2] + (t->dim[2] == 1 ? 0 : j)) * t->dim[3] + (t->dim[3] == 1 ? 0 : k)];
}

static float elementwise(int mode, float x, float b, float t, int64_t index)
{
    switch (mode) {
    case DN_ADD: return x + b;
    case DN_MUL: return x * b;
    case DN_DIV: return x / b;
    case DN_SUB: return x - b;
    case DN_EXP: return expf(x);
    case DN_LOG: return logf(x);
    case DN_GE: return x >= b;
    case DN_LT: return x < b;
    case DN_AND: return x != 0 && b != 0;
    case DN_GEN_INDEX: return (float)index;
    case DN_SELECT: return t != 0 ? x : b;
    default: sim_error("cuDNN: elementwise mode %d", mode); return NAN;
    }
}

static void map(run *r, const step *s)
{
    const tensor *x = &r->tensor[s->x], *b = s->b < 0 ? NULL : &r->tensor[s->b], *t = s->t < 0 ? NULL : &r->tensor[s->t], *y = &r->tensor[s->y];
    int64_t e = 0;
    for (int64_t i = 0; i < y->dim[1]; i++)
        for (int64_t j = 0; j < y->dim[2]; j++)
            for (int64_t k = 0; k < y->dim[3]; k++, e++)
                y->v[e] = keep(y, elementwise(s->mode, spread(x, i, j, k), b ? spread(b, i, j, k) : 0, t ? spread(t, i, j, k) : 0,
                                              s->axis == 1 ? i : s->axis == 2 ? j : k));
}

static void reduce(run *r, const step *s)
{
    const tensor *x = &r->tensor[s->x], *y = &r->tensor[s->y];
    int64_t e = 0, groups[4];
    for (int i = 1; i < 4; i++) groups[i] = x->dim[i] / y->dim[i];
    for (int64_t i = 0; i < elements(y); i++) y->v[i] = s->mode == DN_REDUCE_MAX ? -INFINITY : 0;
    for (int64_t i = 0; i < x->dim[1]; i++)
        for (int64_t j = 0; j < x->dim[2]; j++)
            for (int64_t k = 0; k < x->dim[3]; k++, e++) {
                float *to = &y->v[(i / groups[1] * y->dim[2] + j / groups[2]) * y->dim[3] + k / groups[3]];
                *to = s->mode == DN_REDUCE_MAX ? fmaxf(*to, x->v[e]) : *to + x->v[e];
            }
    for (int64_t i = 0; i < elements(y); i++) y->v[i] = keep(y, y->v[i]);
}

/* x's memory, or what it would be row by row, in y's dimensions and strides. */
static void view(run *r, const step *s, int64_t b)
{
    tensor *x = &r->tensor[s->x], *y = &r->tensor[s->y];
    if (!x->is_virtual) {
        load(r, y, x, b);
        return;
    }
    int64_t e = 0;
    for (int64_t i = 0; i < y->dim[1]; i++)
        for (int64_t j = 0; j < y->dim[2]; j++)
            for (int64_t k = 0; k < y->dim[3]; k++, e++) y->v[e] = keep(y, x->v[i * y->stride[1] + j * y->stride[2] + k * y->stride[3]]);
}

/* ---- execution -------------------------------------------------------------------------------------------------- */

static int has_rows(const run *r, int64_t b)
{
    int64_t first, n;
    for (int i = 0; i < r->n_tensors; i++)
        if (r->tensor[i].ragged && !r->tensor[i].is_virtual && lies(r, &r->tensor[i], b, &first, &n) && n) return 1;
    return 0;
}

static void one_sequence(run *r, int64_t b)
{
    for (int i = 0; i < r->n_tensors; i++)
        if (!r->tensor[i].made && !r->tensor[i].is_virtual && r->tensor[i].type != DN_BOOLEAN) load(r, &r->tensor[i], &r->tensor[i], b);
    for (int i = 0; i < r->n_steps; i++) {
        const step *s = &r->step[i];
        if (s->kind == DN_OP_MATMUL) multiply(r, s);
        else if (s->kind == DN_OP_POINTWISE) map(r, s);
        else if (s->kind == DN_OP_REDUCTION) reduce(r, s);
        else view(r, s, b);
    }
    for (int i = 0; i < r->n_tensors; i++)
        if (r->tensor[i].made && !r->tensor[i].is_virtual) store(r, &r->tensor[i], b);
}

static void execute(void *arg)
{
    run *r = arg;
    int64_t spans = 0;
    cudasim_stats.fused++;
    cudasim_stats.library += cost;
    for (int i = 0; i < r->n_tensors; i++) {
        tensor *t = &r->tensor[i];
        if (t->dim[0] > spans && !t->is_virtual && t->ragged) spans = t->dim[0];
        t->v = malloc((size_t)elements(t) * sizeof *t->v);
        if (!t->v) abort();
    }
    if (sim_device_range(r->space, (size_t)r->workspace) < 1) sim_error("cuDNN: workspace outside of device memory");
    sim_guard(0);
    memset(r->space, 0xff, (size_t)r->workspace);
    HOOK(host_write, r->space, (size_t)r->workspace);
    for (int64_t b = 0; b < spans; b++)
        if (has_rows(r, b)) one_sequence(r, b);
    sim_guard(1);
    for (int i = 0; i < r->n_tensors; i++) free(r->tensor[i].v);
}

int cudnnBackendExecute(dn_handle h, dn_object plan, dn_object pack)
{
    const object *p = plan, *with = pack;
    if (!h || !p || !p->final || !with || !with->final || sim_injected()) return refuse(REFUSED, "it cannot be executed");
    const object *graph = linked(p, DN_A_PLAN_CONFIG)->graph;
    run *r = calloc(1, sizeof *r);
    if (!r) abort();
    sim_lock();
    for (int64_t i = 0; i < n_ops(graph); i++) {
        r->step[r->n_steps] = step_of(r, op_at(graph, i), with);
        r->tensor[r->step[r->n_steps++].y].made = 1;
    }
    r->workspace = workspace_of(graph);
    const void *space = get(with, DN_A_PACK_WORKSPACE, DN_AS_POINTER, 1);
    if (space) memcpy(&r->space, space, sizeof r->space);
    sim_enqueue(*(cudaStream_t *)h, execute, r, free);
    sim_unlock();
    return 0;
}
