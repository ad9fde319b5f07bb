/* qnet_sb3.c - what Stable-Baselines3's DQN.save() writes: a zip whose policy.pth is a zip again, with a pickle of
 * names and shapes and one file of little-endian f32 for each tensor.  Entries are stored, not compressed (both
 * writers do so).  Of pickle only what torch.save() uses is read, and nothing is ever called: the names of the
 * "q_net.q_net.N.weight" and their shapes decide the network; the activation is PyTorch's ReLU, SB3's default. */
#include "models/qnet_internal.h"

#include <stdio.h>
#include <stdlib.h>

#define MOST_BYTES ((size_t)1 << 30)
#define STACK 4096
#define MEMO 4096
#define CHILDREN 65536
#define TENSORS (2 * (MX_QNET_HIDDEN + 1))

typedef struct bytes {
    const unsigned char *at;
    size_t n;
} bytes;

static uint32_t u16(const unsigned char *p) { return (uint32_t)(p[0] | p[1] << 8); }
static uint32_t u32(const unsigned char *p) { return u16(p) | u16(p + 2) << 16; }

/* ---- zip ------------------------------------------------------------------------------- */

/* The stored bytes of one entry; suffix: only the end of its name counts. */
static mx_status zip_entry(bytes zip, const char *name, bool suffix, const char *file, bytes *out, mx_error *err)
{
    size_t want = strlen(name), end = zip.n < 22 ? 0 : zip.n - 22;
    while (end && u32(zip.at + end) != 0x06054b50 && zip.n - end < 65557) end--;
    if (zip.n < 22 || u32(zip.at + end) != 0x06054b50) return mx_fail(err, MX_ERR_FORMAT, "%.300s: no zip, or its end is missing", file);
    size_t at = u32(zip.at + end + 16);
    for (uint32_t i = 0, n = u16(zip.at + end + 10); i < n; i++) {
        if (at > zip.n || zip.n - at < 46 || u32(zip.at + at) != 0x02014b50) break;
        const unsigned char *e = zip.at + at;
        size_t len = u16(e + 28), local = u32(e + 42), size = u32(e + 24);
        if (zip.n - at - 46 < len) break;
        const char *here = (const char *)e + 46;
        bool found = suffix ? len >= want && !memcmp(here + len - want, name, want) : len == want && !memcmp(here, name, len);
        at += 46 + len + u16(e + 30) + u16(e + 32);
        if (!found) continue;
        if (u16(e + 10) != 0 || u32(e + 20) != size) return mx_fail(err, MX_ERR_FORMAT, "%.300s: %s is compressed; only stored entries are read", file, name);
        if (local > zip.n || zip.n - local < 30) break;
        size_t begin = local + 30 + u16(zip.at + local + 26) + u16(zip.at + local + 28);
        if (begin > zip.n || zip.n - begin < size) break;
        *out = (bytes){zip.at + begin, size};
        return MX_OK;
    }
    return mx_fail(err, MX_ERR_FORMAT, "%.300s: has no whole entry %s", file, name);
}

/* ---- pickle ------------------------------------------------------------------------------ */

typedef enum kind { OTHER, MARK, NUMBER, TEXT, TUPLE, STORAGE } kind;

typedef struct value {
    kind    kind;
    int64_t number;               /* of a tuple: how many children             */
    const char *text;             /* of a storage: its key                     */
    size_t  len;
    int     first;                /* of a tuple: its children in the pool      */
} value;

typedef struct tensor {
    char    name[64], key[64];
    int     n_dims;
    int64_t dims[2], offset;
} tensor;

typedef struct pickle {
    bytes   in;
    size_t  at;
    value   stack[STACK], memo[MEMO], child[CHILDREN];
    int     n, children;
    tensor  found[TENSORS];
    int     n_found;
} pickle;

static bool take(pickle *p, size_t n, const unsigned char **out)
{
    if (p->in.n - p->at < n) return false;
    *out = p->in.at + p->at;
    p->at += n;
    return true;
}

static bool push(pickle *p, value v)
{
    if (p->n == STACK) return false;
    p->stack[p->n++] = v;
    return true;
}

/* The topmost n values become a tuple. */
static bool make_tuple(pickle *p, int n)
{
    if (n > p->n || p->children + n > CHILDREN) return false;
    value t = {.kind = TUPLE, .number = n, .first = p->children};
    memcpy(p->child + p->children, p->stack + p->n - n, (size_t)n * sizeof *p->child);
    p->children += n;
    p->n -= n;
    return push(p, t);
}

static int above_mark(const pickle *p)
{
    for (int i = p->n; i > 0; i--)
        if (p->stack[i - 1].kind == MARK) return p->n - i;
    return -1;
}

/* ("storage", class, key, device, count) */
static bool persistent(pickle *p)
{
    if (p->n < 1 || p->stack[p->n - 1].kind != TUPLE || p->stack[p->n - 1].number < 3) return false;
    value key = p->child[p->stack[p->n - 1].first + 2];
    p->stack[p->n - 1] = (value){.kind = STORAGE, .text = key.text, .len = key.len};
    return key.kind == TEXT;
}

/* A name with the arguments of _rebuild_tensor_v2: (storage, offset, sizes, strides, ...) */
static bool keep_tensor(pickle *p, const value *name, const value *v)
{
    static const char prefix[] = "q_net.q_net.";
    if (name->kind != TEXT || name->len < sizeof prefix || memcmp(name->text, prefix, sizeof prefix - 1)) return true;
    if (v->kind != TUPLE || v->number < 3) return true;
    const value *a = p->child + v->first;
    if (a[0].kind != STORAGE || a[1].kind != NUMBER || a[2].kind != TUPLE || a[2].number < 1 || a[2].number > 2) return false;
    if (p->n_found == TENSORS) return false;
    tensor *t = &p->found[p->n_found++];
    if (name->len - sizeof prefix + 2 > sizeof t->name || a[0].len + 1 > sizeof t->key) return false;
    snprintf(t->name, sizeof t->name, "%.*s", (int)(name->len - sizeof prefix + 1), name->text + sizeof prefix - 1);
    snprintf(t->key, sizeof t->key, "%.*s", (int)a[0].len, a[0].text);
    t->offset = a[1].number;
    t->n_dims = (int)a[2].number;
    for (int i = 0; i < t->n_dims; i++) {
        const value *d = &p->child[a[2].first + i];
        if (d->kind != NUMBER || d->number < 1 || d->number > 1 << 20) return false;
        t->dims[i] = d->number;
    }
    return true;
}

static bool set_items(pickle *p, int n)
{
    bool ok = n >= 0 && n % 2 == 0;
    for (int i = p->n - n; ok && i + 1 < p->n; i += 2) ok = keep_tensor(p, &p->stack[i], &p->stack[i + 1]);
    p->n -= ok ? n : 0;
    return ok;
}

static bool text(pickle *p, size_t len)
{
    const unsigned char *a;
    return take(p, len, &a) && push(p, (value){.kind = TEXT, .text = (const char *)a, .len = len});
}

static bool memorize(pickle *p, uint32_t i)
{
    if (i >= MEMO || p->n < 1) return false;
    p->memo[i] = p->stack[p->n - 1];
    return true;
}

static bool skip_line(pickle *p)
{
    while (p->at < p->in.n && p->in.at[p->at] != '\n') p->at++;
    return p->at++ < p->in.n;
}

/* One opcode; *stop at the last. */
static bool operate(pickle *p, bool *stop)
{
    const unsigned char *a;
    int n;
    if (!take(p, 1, &a)) return false;
    switch (*a) {
    case 0x80: return take(p, 1, &a);
    case '(': return push(p, (value){.kind = MARK});
    case ')': return make_tuple(p, 0);
    case '}': case ']': case 'N': case 0x88: case 0x89: return push(p, (value){0});
    case 'c': return skip_line(p) && skip_line(p) && push(p, (value){0});
    case 'q': return take(p, 1, &a) && memorize(p, *a);
    case 'r': return take(p, 4, &a) && memorize(p, u32(a));
    case 'h': return take(p, 1, &a) && push(p, p->memo[*a]);
    case 'j': return take(p, 4, &a) && u32(a) < MEMO && push(p, p->memo[u32(a)]);
    case 'X': return take(p, 4, &a) && text(p, u32(a));
    case 0x8c: return take(p, 1, &a) && text(p, *a);
    case 'K': return take(p, 1, &a) && push(p, (value){.kind = NUMBER, .number = *a});
    case 'M': return take(p, 2, &a) && push(p, (value){.kind = NUMBER, .number = u16(a)});
    case 'J': return take(p, 4, &a) && push(p, (value){.kind = NUMBER, .number = (int32_t)u32(a)});
    case 0x85: case 0x86: case 0x87: return make_tuple(p, *a - 0x84);
    case 't':
        n = above_mark(p);
        if (n < 0 || !make_tuple(p, n)) return false;
        p->stack[p->n - 2] = p->stack[p->n - 1];
        p->n--;
        return true;
    case 'Q': return persistent(p);
    case 'R': case 'b':           /* a call is its arguments; a built object itself */
        if (p->n < 2) return false;
        if (*a == 'R') p->stack[p->n - 2] = p->stack[p->n - 1];
        p->n--;
        return true;
    case 's': return p->n >= 3 && set_items(p, 2);
    case 'u':
        n = above_mark(p);
        if (!set_items(p, n)) return false;
        p->n--;
        return p->n > 0;
    case '.': *stop = true; return true;
    default: return false;
    }
}

/* ---- the file ------------------------------------------------------------------------------ */

struct qnet_sb3 {
    char   *data;
    char    path[MX_PATH];
    bytes   inner;                /* policy.pth */
    pickle *names;
};

static const tensor *named(const pickle *p, int index, const char *part)
{
    char name[64];
    snprintf(name, sizeof name, "%d.%s", index, part);
    for (int i = 0; i < p->n_found; i++)
        if (!strcmp(p->found[i].name, name)) return &p->found[i];
    return NULL;
}

/* Linear layers stand at even places, activations between them. */
static mx_status shape(const qnet_sb3 *f, mx_qnet_config *c, mx_error *err)
{
    int n = 0;
    *c = (mx_qnet_config){.activation = MX_ACT_RELU, .atoms = 1};
    for (const tensor *t; n <= MX_QNET_HIDDEN && (t = named(f->names, 2 * n, "weight")); n++) {
        const tensor *b = named(f->names, 2 * n, "bias");
        if (t->n_dims != 2 || !b || b->n_dims != 1 || b->dims[0] != t->dims[0] || (n && t->dims[1] != c->actions))
            return mx_fail(err, MX_ERR_FORMAT, "%.300s: layer %d of q_net does not fit the one before", f->path, n);
        if (!n) c->observation = (int32_t)t->dims[1];
        else c->hidden[n - 1] = c->actions;
        c->actions = (int32_t)t->dims[0];
    }
    c->layers = n - 1;
    if (n < 2 || 2 * n != f->names->n_found)
        return mx_fail(err, MX_ERR_FORMAT, "%.300s: policy.pth holds no DQN MlpPolicy with 1 to %d hidden layers", f->path, MX_QNET_HIDDEN);
    return MX_OK;
}

mx_status qnet_sb3_open(qnet_sb3 **out, const char *path, mx_qnet_config *c, mx_error *err)
{
    size_t len = 0;
    bool stop = false;
    mx_status st;
    *out = NULL;
    qnet_sb3 *f = calloc(1, sizeof *f);
    if (!f || !(f->names = calloc(1, sizeof *f->names))) {
        free(f);
        return mx_fail(err, MX_ERR_NO_MEMORY, "%.300s", path);
    }
    snprintf(f->path, sizeof f->path, "%s", path);
    MX_TRY_GOTO(st, mx_read_file(path, MOST_BYTES, &f->data, &len, err), fail);
    MX_TRY_GOTO(st, zip_entry((bytes){(unsigned char *)f->data, len}, "policy.pth", false, path, &f->inner, err), fail);
    MX_TRY_GOTO(st, zip_entry(f->inner, "/data.pkl", true, path, &f->names->in, err), fail);
    while (!stop)
        if (!operate(f->names, &stop)) {
            st = mx_fail(err, MX_ERR_FORMAT, "%.300s: data.pkl of policy.pth: not understood at byte %zu", path, f->names->at);
            goto fail;
        }
    MX_TRY_GOTO(st, shape(f, c, err), fail);
    *out = f;
    return MX_OK;
fail:
    qnet_sb3_close(f);
    return st;
}

static mx_status load_one(const qnet_sb3 *f, mx_qnet *q, int param, const tensor *t, mx_error *err)
{
    char name[80];
    bytes b;
    mx_stream s;
    size_t n = (size_t)t->dims[0] * (size_t)(t->n_dims == 2 ? t->dims[1] : 1) * sizeof(float), first = (size_t)t->offset * sizeof(float);
    snprintf(name, sizeof name, "/data/%s", t->key);
    MX_TRY(zip_entry(f->inner, name, true, f->path, &b, err));
    if (t->offset < 0 || first > b.n || b.n - first < n) return mx_fail(err, MX_ERR_FORMAT, "%.300s: q_net.q_net.%s is cut off", f->path, t->name);
    MX_TRY(mx_stream_open(&s, q->dev, 0, err));
    q->dev->ops->upload(&s, mx_params_view(&q->p, &q->p.value, param, 1).data, b.at + first, n);
    mx_status st = mx_stream_sync(&s, err);
    mx_stream_close(&s);
    return st;
}

mx_status qnet_sb3_load(const qnet_sb3 *f, mx_qnet *q, mx_error *err)
{
    for (int i = 0; i < q->n; i++) {
        MX_TRY(load_one(f, q, q->layer[i].weight, named(f->names, 2 * i, "weight"), err));
        MX_TRY(load_one(f, q, q->layer[i].bias, named(f->names, 2 * i, "bias"), err));
    }
    return MX_OK;
}

void qnet_sb3_close(qnet_sb3 *f)
{
    if (!f) return;
    free(f->names);
    free(f->data);
    free(f);
}
