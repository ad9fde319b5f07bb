/* cases.c - the table, and the machine that runs its lines. */
#include "tests/cases.h"
#include "tests/cases_io.h"

#include "runtime/clock.h"
#include "tests/test.h"

#include <stdarg.h>

#define GUARD 80                    /* elements before the first row and after the last */
#define GAP   3                     /* elements between rows: strides > cols            */
#define SENTINEL 0x7fff7fffu        /* a NaN in f32, f16 and bf16                       */

/* ---- names ------------------------------------------------------------------- */

static const char *const act_names[MX_ACT_COUNT] = {
    [MX_ACT_NONE] = "none", [MX_ACT_GELU_TANH] = "gelu_tanh", [MX_ACT_GELU_ERF] = "gelu_erf",
    [MX_ACT_SILU] = "silu", [MX_ACT_RELU] = "relu", [MX_ACT_TANH] = "tanh", [MX_ACT_ELU] = "elu",
};

static void put(char *text, size_t size, const char *name, int64_t v)
{
    size_t at = strlen(text);
    if (v) snprintf(text + at, size - at, ",%s=%lld", name, (long long)v);
}

void mx_case_name(const mx_case *c, char *text, size_t size)
{
    snprintf(text, size, "%s(n=%lld", c->op, (long long)c->n);
    put(text, size, "c", c->c);
    put(text, size, "o", c->o);
    put(text, size, "heads", c->heads);
    put(text, size, "groups", c->groups);
    put(text, size, "page", c->page);
    put(text, size, "context", c->context);
    put(text, size, "window", c->window);
    size_t at = strlen(text);
    snprintf(text + at, size - at, ",%s%s%s%s%s%s%s)", mx_dtype_name(c->type), c->act ? "," : "",
             c->act ? act_names[c->act] : "", c->add ? ",add" : "", c->bias ? ",bias" : "", c->flag ? ",flag" : "",
             c->perf ? ",perf" : "");
}

/* ---- tensors between sentinels -------------------------------------------------- */

double case_uniform(case_io *io)
{
    return (double)(int64_t)test_random(&io->random) * 0x1p-63;
}

int64_t case_below(case_io *io, int64_t n)
{
    return (int64_t)(test_random(&io->random) % (uint64_t)n);
}

bool case_fail(case_io *io, const char *fmt, ...)
{
    if (io->env->out) {
        char name[200];
        mx_case_name(io->c, name, sizeof name);
        fprintf(io->env->out, "  %s: ", name);
        va_list ap;
        va_start(ap, fmt);
        vfprintf(io->env->out, fmt, ap);
        va_end(ap);
        fprintf(io->env->out, " (seed %llu)\n", (unsigned long long)io->env->seed);
    }
    return false;
}

static void put_value(void *p, mx_dtype type, double v)
{
    float f = (float)v;
    uint16_t h = type == MX_BF16 ? mx_f32_to_bf16(f) : mx_f32_to_f16(f);
    if (type == MX_F32) memcpy(p, &f, sizeof f);
    else if (type == MX_F8) *(uint8_t *)p = mx_f32_to_f8(f);
    else memcpy(p, &h, sizeof h);
}

static double get_value(const void *p, mx_dtype type)
{
    float f;
    uint16_t h;
    int32_t i;
    if (type == MX_F32) return memcpy(&f, p, sizeof f), (double)f;
    if (type == MX_I32) return memcpy(&i, p, sizeof i), (double)i;
    if (type == MX_F8) return (double)mx_f8_to_f32(*(const uint8_t *)p);
    memcpy(&h, p, sizeof h);
    return (double)(type == MX_BF16 ? mx_bf16_to_f32(h) : mx_f16_to_f32(h));
}

static size_t offset_of(const placed *p, int64_t r, int64_t i)
{
    return p->lead + ((size_t)(r * p->t.stride + i)) * mx_dtype_size(p->t.dtype);
}

double case_value(const placed *p, const char *image, int64_t r, int64_t i)
{
    return get_value(image + offset_of(p, r, i), p->t.dtype);
}

static double fill_value(case_io *io, fill how)
{
    double u = case_uniform(io);
    /* a few likely tokens over a long tail, as logits are */
    return how == FILL_NOISE_LOGITS ? 9 * u * u * u + 2 * case_uniform(io) : u;
}

static placed *place(case_io *io, mx_dtype type, int64_t rows, int64_t cols, bool output)
{
    static placed spare;
    if (io->count == MX_CASE_TENSORS || io->broken) {
        io->broken = true;
        return &spare;
    }
    placed *p = &io->t[io->count++];
    /* perf: rows as models have them, one after the other */
    int64_t gap = io->c->perf ? 0 : GAP, stride = cols + gap;
    size_t element = mx_dtype_size(type), size = ((size_t)(rows * stride) + 2 * GUARD) * element;
    mx_error err;
    p->t = (mx_tensor){NULL, rows, cols, stride, type};
    p->lead = GUARD * element;
    p->output = output;
    p->before = malloc(size);
    p->after = malloc(size);
    if (!p->before || !p->after || mx_buffer_open(&p->memory, io->env->dev, size, &err)) {
        io->broken = true;
        return &spare;
    }
    for (size_t i = 0; i < size; i++) p->before[i] = (char)(SENTINEL >> i % 4 * 8);
    p->t.data = (char *)p->memory.base + p->lead;
    return p;
}

static mx_tensor uploaded(case_io *io, placed *p)
{
    if (!io->broken) io->env->dev->ops->upload(&io->s, p->memory.base, p->before, p->memory.size);
    return p->t;
}

mx_tensor case_place(case_io *io, mx_dtype type, int64_t rows, int64_t cols, fill how, bool output)
{
    placed *p = place(io, type, rows, cols, output);
    for (int64_t r = 0; r < rows && !io->broken && how != FILL_SENTINEL; r++)
        for (int64_t i = 0; i < cols; i++) put_value(p->before + offset_of(p, r, i), type, fill_value(io, how));
    return uploaded(io, p);
}

mx_tensor case_place_values(case_io *io, int64_t rows, int64_t cols, const double *values, bool output)
{
    placed *p = place(io, MX_F32, rows, cols, output);
    for (int64_t r = 0; r < rows && !io->broken; r++)
        for (int64_t i = 0; i < cols; i++) put_value(p->before + offset_of(p, r, i), MX_F32, values[r * cols + i]);
    return uploaded(io, p);
}

mx_tensor case_place_i32(case_io *io, int64_t rows, int64_t cols, const int32_t *values)
{
    placed *p = place(io, MX_I32, rows, cols, false);
    for (int64_t r = 0; r < rows && !io->broken; r++)
        memcpy(p->before + offset_of(p, r, 0), values + r * cols, (size_t)cols * sizeof *values);
    return uploaded(io, p);
}

void *case_place_bytes(case_io *io, const void *host, size_t size)
{
    placed *p = place(io, MX_I8, 1, (int64_t)size, false);
    if (!io->broken) memcpy(p->before + p->lead, host, size);
    return uploaded(io, p).data;
}

double *case_dense(const placed *p, const char *image)
{
    double *d = malloc((size_t)(p->t.rows * p->t.cols + 1) * sizeof *d);
    for (int64_t r = 0; d && r < p->t.rows; r++)
        for (int64_t i = 0; i < p->t.cols; i++) d[r * p->t.cols + i] = case_value(p, image, r, i);
    return d;
}

/* What must not change has not: inputs as a whole, outputs outside their rows. */
static bool untouched(case_io *io, const placed *p)
{
    size_t row = (size_t)p->t.cols * mx_dtype_size(p->t.dtype), at = 0;
    for (int64_t r = 0; r <= p->t.rows; r++) {
        size_t end = r < p->t.rows ? offset_of(p, r, 0) : p->memory.size;
        if (memcmp(p->before + at, p->after + at, end - at))
            return case_fail(io, "tensor %d: memory outside its rows changed, near row %lld", (int)(p - io->t), (long long)r);
        if (r == p->t.rows) break;
        if (!p->output && memcmp(p->before + end, p->after + end, row))
            return case_fail(io, "tensor %d: an input changed, row %lld", (int)(p - io->t), (long long)r);
        at = end + row;
    }
    return true;
}

bool case_close(case_io *io, placed *p, const char *what)
{
    double squares = 0, worst = 0, apart = 0;
    int64_t n = p->t.rows * p->t.cols, at = 0;
    for (int64_t i = 0; i < n; i++)
        if (isfinite(p->want[i])) squares += p->want[i] * p->want[i] / (double)n;
    for (int64_t i = 0; i < n; i++) {
        double got = case_value(p, p->after, i / p->t.cols, i % p->t.cols), d = fabs(got - p->want[i]);
        if (got == p->want[i]) d = 0;                   /* two infinities */
        apart += d * d / (double)n;
        if (!(d <= worst)) {
            worst = isnan(d) ? INFINITY : d;
            at = i;
        }
    }
    worst /= sqrt(squares) + 1e-30;
    apart = sqrt(apart) / (sqrt(squares) + 1e-30);
    if (io->norm_tolerance > 0 && !(apart <= io->norm_tolerance)) return case_fail(io, "%s: error %.2e of the norm", what, apart);
    if (worst <= io->tolerance) return true;
    return case_fail(io, "%s: error %.2e (of the rms %.3g) at row %lld, column %lld: got %.9g, want %.9g", what, worst,
                     sqrt(squares), (long long)(at / p->t.cols), (long long)(at % p->t.cols),
                     case_value(p, p->after, at / p->t.cols, at % p->t.cols), p->want[at]);
}

/* ---- running -------------------------------------------------------------------------- */

static const case_op *op_of(const mx_case *c)
{
    const struct { const case_op *ops; int n; } tables[] = {{mx_case_row_ops, mx_case_row_ops_count},
                                                           {mx_case_span_ops, mx_case_span_ops_count},
                                                           {mx_case_learn_ops, mx_case_learn_ops_count},
                                                           {mx_case_optim_ops, mx_case_optim_ops_count},
                                                           {mx_case_value_ops, mx_case_value_ops_count},
                                                           {mx_case_graph_ops, mx_case_graph_ops_count}};
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        for (int i = 0; i < tables[t].n; i++)
            if (strcmp(tables[t].ops[i].op, c->op) == 0) return &tables[t].ops[i];
    return NULL;
}

static bool begin(case_io *io, const mx_case_env *env, const mx_case *c, const case_op *op)
{
    mx_error err;
    memset(io, 0, sizeof *io);
    io->env = env;
    io->c = c;
    io->random = env->seed;
    io->tolerance = 1e-5;
    if (mx_stream_open(&io->s, env->dev, 4096, &err)) return false;
    op->build(io);
    return !io->broken || case_fail(io, "could not be set up");
}

static void end(case_io *io)
{
    for (int i = 0; i < io->count; i++) {
        mx_buffer_close(&io->t[i].memory);
        free(io->t[i].before);
        free(io->t[i].after);
        free(io->t[i].want);
    }
    for (int i = 0; i < io->weights; i++) io->env->kernels->weight_close(&io->w[i]);
    mx_stream_close(&io->s);
    free(io->rows);
}

/* Set up, called, and what came of it fetched. */
static bool run(case_io *io, const mx_case_env *env, const mx_case *c, const case_op *op)
{
    mx_error err = {0};
    if (!begin(io, env, c, op)) return false;
    op->call(io);
    for (int i = 0; i < io->count; i++)
        env->dev->ops->download(&io->s, io->t[i].after, io->t[i].memory.base, io->t[i].memory.size);
    return !mx_stream_sync(&io->s, &err) || case_fail(io, "%s", err.text);
}

bool mx_case_test(const mx_case_env *env, const mx_case *c)
{
    const case_op *op = op_of(c);
    case_io *io = malloc(sizeof *io);
    bool ok = op && io && run(io, env, c, op);
    if (ok) {
        ok = op->check(io);
        for (int i = 0; i < io->count; i++) ok = untouched(io, &io->t[i]) && ok;
    }
    if (op && io) end(io);
    free(io);
    return ok;
}

uint64_t mx_case_digest(const mx_case_env *env, const mx_case *c)
{
    const case_op *op = op_of(c);
    case_io *io = malloc(sizeof *io);
    uint64_t sum = 0;
    if (op && io && run(io, env, c, op)) {
        sum = 0xcbf29ce484222325u;                      /* FNV-1a */
        for (int i = 0; i < io->count; i++)
            for (size_t b = 0; b < io->t[i].memory.size; b++) sum = (sum ^ (uint8_t)io->t[i].after[b]) * 0x100000001b3u;
    }
    if (op && io) end(io);
    free(io);
    return sum;
}

static bool gradient(const mx_case_env *env, const mx_case *c)
{
    const case_op *op = op_of(c);
    case_io *io = malloc(sizeof *io);
    bool ok = op && io && begin(io, env, c, op) && case_gradient(io);
    if (op && io) end(io);
    free(io);
    return ok;
}

static int by_time(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

bool mx_case_measure(const mx_case_env *env, const mx_case *c, double budget_s, mx_case_perf *out)
{
    enum { MOST = 2000, LEAST = 5 };
    const case_op *op = op_of(c);
    case_io *io = malloc(sizeof *io);
    double *times = malloc(MOST * sizeof *times);
    mx_error err = {0};
    bool ok = op && io && times && begin(io, env, c, op);
    int n = 0, together = env->dev->kind == MX_CPU ? 1 : 20;     /* a GPU is asked twenty things before it is waited for */
    if (!ok) goto done;
    for (double total = 0; n < MOST && (n < LEAST || total < budget_s); n++) {
        uint64_t from = mx_now_ns(&mx_clock_monotonic);
        for (int k = 0; k < together; k++) op->call(io);
        ok = !mx_stream_sync(&io->s, &err);
        if (!ok) {
            case_fail(io, "%s", err.text);
            goto done;
        }
        times[n] = (double)(mx_now_ns(&mx_clock_monotonic) - from) * 1e-9 / together;
        total += times[n] * together;
    }
    qsort(times, (size_t)n, sizeof *times, by_time);
    out->seconds = times[n / 2];
    op->work(c, &out->flop, &out->bytes);
done:
    if (io) end(io);
    free(io);
    free(times);
    return ok;
}

static bool selected(const mx_case *c, const char *filter, char *name, size_t size)
{
    mx_case_name(c, name, size);
    return !filter || strstr(name, filter);
}

int mx_cases_test(const mx_case_env *env, const char *filter)
{
    int ran = 0, bad = 0;
    char name[200];
    for (int i = 0; i < mx_cases_count; i++) {
        if (mx_cases[i].perf || !selected(&mx_cases[i], filter, name, sizeof name)) continue;
        ran++;
        bad += !mx_case_test(env, &mx_cases[i]);
    }
    if (env->out) fprintf(env->out, "%d cases, %d failed, seed %llu\n", ran, bad, (unsigned long long)env->seed);
    return ran ? bad : -1;
}

int mx_cases_grad(const mx_case_env *env, const char *filter)
{
    int ran = 0, bad = 0;
    char name[200];
    for (int i = 0; i < mx_cases_count; i++) {
        const mx_case *c = &mx_cases[i];
        if (c->perf || !case_has_gradient(c) || !selected(c, filter, name, sizeof name)) continue;
        ran++;
        bad += !gradient(env, c);
    }
    if (env->out) fprintf(env->out, "%d derivatives, %d wrong, seed %llu\n", ran, bad, (unsigned long long)env->seed);
    return ran ? bad : -1;
}

int mx_cases_perf(const mx_case_env *env, const char *filter)
{
    int ran = 0, bad = 0;
    char name[200];
    for (int i = 0; i < mx_cases_count; i++) {
        mx_case_perf p;
        if (!mx_cases[i].perf || !selected(&mx_cases[i], filter, name, sizeof name)) continue;
        ran++;
        if (!mx_case_measure(env, &mx_cases[i], 0.15, &p)) {
            bad++;
            continue;
        }
        fprintf(env->out, "%-72s %10.1f us %9.2f GFLOP/s %8.2f GB/s\n", name, p.seconds * 1e6, p.flop / p.seconds * 1e-9,
                p.bytes / p.seconds * 1e-9);
        fflush(env->out);
    }
    return ran ? bad : -1;
}

void mx_cases_list(FILE *out, const char *filter)
{
    char name[200];
    for (int i = 0; i < mx_cases_count; i++)
        if (selected(&mx_cases[i], filter, name, sizeof name)) fprintf(out, "%s\n", name);
}
