/* metrics.c - time series that are updated without a lock.
 *
 * A family is what Prometheus calls a metric: a name, a kind and a help text;
 * its series differ in their labels.  Series are freed with the registry, or
 * when what they tell of has gone: a pointer to one may be kept until then. */
#include "runtime/metrics.h"

#include <ctype.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Upper bounds in seconds. Small models answer in microseconds, a long text
 * takes minutes. The last bucket, +Inf, is not in the list. */
static const double bounds[] = {
    10e-6, 25e-6, 50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1,
    0.25,  0.5,   1,     2.5,    5,      10,     25,   50,     100,  250,   600,
};
/* As Prometheus should read them; %g of the above would say 1e-05. */
static const char *const bound_names[] = {
    "0.00001", "0.000025", "0.00005", "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.005", "0.01", "0.025",
    "0.05", "0.1", "0.25", "0.5", "1", "2.5", "5", "10", "25", "50", "100", "250", "600",
};
#define BOUNDS  (sizeof bounds / sizeof *bounds)
#define BUCKETS (BOUNDS + 1)

_Static_assert(BOUNDS == sizeof bound_names / sizeof *bound_names, "a name for each bound");

struct mx_metric {
    mx_metric      *next;          /* of the same family */
    mx_metric_kind  kind;
    char           *labels;        /* owned; "" for none */
    atomic_uint_least64_t count;           /* COUNTER */
    atomic_uint_least64_t value;           /* GAUGE, and the sum of a HISTOGRAM: the bits of a double */
    atomic_uint_least64_t buckets[BUCKETS];
};

typedef struct family {
    struct family *next;
    char          *name, *help;    /* owned */
    mx_metric_kind kind;
    mx_metric     *series;
} family;

struct mx_metrics {
    pthread_mutex_t lock;          /* of the lists, not of what the series count */
    family *families;
};

mx_status mx_metrics_open(mx_metrics **out, mx_error *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out) return mx_fail(err, MX_ERR_NO_MEMORY, "metrics: out of memory");
    pthread_mutex_init(&(*out)->lock, NULL);
    return MX_OK;
}

static void free_series(mx_metric *m)
{
    if (m) free(m->labels);
    free(m);
}

static void free_family(family *f)
{
    if (!f) return;
    for (mx_metric *m = f->series, *next; m; m = next) {
        next = m->next;
        free_series(m);
    }
    free(f->name);
    free(f->help);
    free(f);
}

void mx_metrics_close(mx_metrics *m)
{
    if (!m) return;
    for (family *f = m->families, *next; f; f = next) {
        next = f->next;
        free_family(f);
    }
    pthread_mutex_destroy(&m->lock);
    free(m);
}

/* ---- registering --------------------------------------------------------------- */

/* The length of the name at p, of letters, digits, _ and, in metrics, colons. */
static size_t name_length(const char *p, bool colons)
{
    size_t n = 0;
    while (isalnum((unsigned char)p[n]) || p[n] == '_' || (colons && p[n] == ':')) n++;
    return isdigit((unsigned char)*p) ? 0 : n;
}

/* key="value",key="value"; in a value only \\, \" and \n may follow a backslash. */
static bool labels_are_right(const char *p)
{
    if (!*p) return true;
    for (;;) {
        size_t n = name_length(p, false);
        if (!n || p[n] != '=' || p[n + 1] != '"') return false;
        for (p += n + 2; *p != '"'; p++) {
            if (*p == '\0' || *p == '\n') return false;
            if (*p == '\\' && *++p != '\\' && *p != '"' && *p != 'n') return false;
        }
        p++;
        if (!*p) return true;
        if (*p++ != ',') return false;
    }
}

static family *get_family(mx_metrics *m, mx_metric_kind kind, const char *name, const char *help)
{
    family **end = &m->families;
    for (; *end; end = &(*end)->next)
        if (strcmp((*end)->name, name) == 0)
            return (*end)->kind == kind && strcmp((*end)->help, help) == 0 ? *end : NULL;
    family *f = calloc(1, sizeof *f);
    if (!f) return NULL;
    f->kind = kind;
    f->name = strdup(name);
    f->help = strdup(help);
    if (!f->name || !f->help) {
        free_family(f);
        return NULL;
    }
    return *end = f;
}

static mx_metric *get_series(mx_metrics *m, mx_metric_kind kind, const char *name, const char *labels, const char *help)
{
    family *f = get_family(m, kind, name, help);
    if (!f) return NULL;
    mx_metric **end = &f->series;
    for (; *end; end = &(*end)->next)
        if (strcmp((*end)->labels, labels) == 0) return *end;
    mx_metric *series = calloc(1, sizeof *series);
    if (!series) return NULL;
    series->kind = kind;
    series->labels = strdup(labels);
    if (!series->labels) {
        free_series(series);
        return NULL;
    }
    return *end = series;
}

mx_metric *mx_metrics_add(mx_metrics *m, mx_metric_kind kind, const char *name, const char *labels, const char *help)
{
    if ((unsigned)kind > MX_HISTOGRAM || !labels_are_right(labels)) return NULL;
    size_t n = name_length(name, true);
    if (!n || name[n]) return NULL;
    pthread_mutex_lock(&m->lock);
    mx_metric *series = get_series(m, kind, name, labels, help);
    pthread_mutex_unlock(&m->lock);
    return series;
}

void mx_metrics_remove(mx_metrics *m, const char *labels)
{
    pthread_mutex_lock(&m->lock);
    for (family *f = m->families; f; f = f->next)
        for (mx_metric **at = &f->series, *series; (series = *at) != NULL;) {
            if (strcmp(series->labels, labels) != 0) {
                at = &series->next;
                continue;
            }
            *at = series->next;
            free_series(series);
        }
    pthread_mutex_unlock(&m->lock);
}

void mx_metrics_label(char *out, size_t size, const char *key, const char *value)
{
    if (!size) return;
    size_t n = 0, room = size - 1;
    for (const char *k = key; *k && n < room; k++) out[n++] = *k;
    if (n + 3 > room) {                      /* ="" does not fit: no label rather than a broken one */
        out[0] = '\0';
        return;
    }
    out[n++] = '=';
    out[n++] = '"';
    for (; *value; value++) {
        bool escaped = *value == '\\' || *value == '"' || *value == '\n';
        if (n + 2 + escaped > room) break;
        if (escaped) out[n++] = '\\';
        out[n++] = *value == '\n' ? 'n' : *value;
    }
    out[n++] = '"';
    out[n] = '\0';
}

/* ---- updating -------------------------------------------------------------------- */

static uint64_t bits_of(double v)
{
    uint64_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static double double_of(uint64_t u)
{
    double v;
    memcpy(&v, &u, sizeof v);
    return v;
}

static double load_double(const atomic_uint_least64_t *at)
{
    return double_of(atomic_load_explicit(at, memory_order_relaxed));
}

static void add_double(atomic_uint_least64_t *at, double delta)
{
    uint_least64_t was = atomic_load_explicit(at, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(at, &was, bits_of(double_of(was) + delta), memory_order_relaxed,
                                                  memory_order_relaxed)) {}
}

void mx_metric_inc(mx_metric *m, uint64_t n)
{
    if (m && m->kind == MX_COUNTER) atomic_fetch_add_explicit(&m->count, n, memory_order_relaxed);
}

void mx_metric_set(mx_metric *m, double value)
{
    if (m && m->kind == MX_GAUGE) atomic_store_explicit(&m->value, bits_of(value), memory_order_relaxed);
}

void mx_metric_add(mx_metric *m, double delta)
{
    if (m && m->kind == MX_GAUGE) add_double(&m->value, delta);
}

/* A NaN would poison the sum for ever: it is not counted. */
void mx_metric_observe(mx_metric *m, double seconds)
{
    if (!m || m->kind != MX_HISTOGRAM || isnan(seconds)) return;
    size_t i = 0;
    while (i < BOUNDS && seconds > bounds[i]) i++;
    add_double(&m->value, seconds);          /* before it is counted: who sees the count sees the sum */
    atomic_fetch_add_explicit(&m->buckets[i], 1, memory_order_release);
}

static uint64_t total(const mx_metric *m)
{
    uint64_t n = 0;
    for (size_t i = 0; i < BUCKETS; i++) n += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
    return n;
}

double mx_metric_value(const mx_metric *m)
{
    if (!m) return 0;
    switch (m->kind) {
    case MX_COUNTER: return (double)atomic_load_explicit(&m->count, memory_order_relaxed);
    case MX_GAUGE: return load_double(&m->value);
    case MX_HISTOGRAM: return (double)total(m);
    }
    return 0;
}

/* As Prometheus' histogram_quantile(): what lies above the last bound is
 * reported as that bound. */
double mx_metric_quantile(const mx_metric *m, double q)
{
    if (!m || m->kind != MX_HISTOGRAM || !(q >= 0 && q <= 1)) return (double)NAN;
    double n = (double)total(m), below = 0;
    if (n == 0) return (double)NAN;
    for (size_t i = 0; i < BOUNDS; i++) {
        double in = (double)atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
        if (in > 0 && below + in >= q * n) {
            double low = i ? bounds[i - 1] : 0, part = (q * n - below) / in;
            return low + (bounds[i] - low) * (part > 0 ? part : 0);
        }
        below += in;
    }
    return bounds[BOUNDS - 1];
}

/* ---- Prometheus ------------------------------------------------------------------- */

/* The shortest decimal that reads back as v. */
static void put_double(FILE *out, double v)
{
    if (isnan(v)) fputs("NaN", out);
    else if (isinf(v)) fputs(v > 0 ? "+Inf" : "-Inf", out);
    else {
        char text[40];
        snprintf(text, sizeof text, "%.15g", v);
        if (strtod(text, NULL) != v) snprintf(text, sizeof text, "%.17g", v);
        fputs(text, out);
    }
}

static void put_help(FILE *out, const char *help)
{
    for (; *help; help++) {
        if (*help == '\n') fputs("\\n", out);
        else if (*help == '\\') fputs("\\\\", out);
        else fputc(*help, out);
    }
}

/* The name with a suffix, and labels unless there are none. */
static void put_series(FILE *out, const family *f, const char *suffix, const mx_metric *m)
{
    if (*m->labels) fprintf(out, "%s%s{%s} ", f->name, suffix, m->labels);
    else fprintf(out, "%s%s ", f->name, suffix);
}

/* The count is the sum of the buckets that are printed, so that the text is
 * consistent although others keep counting. */
static void put_histogram(FILE *out, const family *f, const mx_metric *m)
{
    uint64_t n = 0;
    const char *comma = *m->labels ? "," : "";
    for (size_t i = 0; i < BUCKETS; i++) {
        n += atomic_load_explicit(&m->buckets[i], memory_order_relaxed);
        fprintf(out, "%s_bucket{%s%sle=\"%s\"} %llu\n", f->name, m->labels, comma,
                i < BOUNDS ? bound_names[i] : "+Inf", (unsigned long long)n);
    }
    put_series(out, f, "_sum", m);
    put_double(out, load_double(&m->value));
    fputc('\n', out);
    put_series(out, f, "_count", m);
    fprintf(out, "%llu\n", (unsigned long long)n);
}

static void put_family(FILE *out, const family *f)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    fprintf(out, "# HELP %s ", f->name);
    put_help(out, f->help);
    fprintf(out, "\n# TYPE %s %s\n", f->name, kinds[f->kind]);
    for (const mx_metric *m = f->series; m; m = m->next) {
        if (f->kind == MX_HISTOGRAM) {
            put_histogram(out, f, m);
            continue;
        }
        put_series(out, f, "", m);
        if (f->kind == MX_COUNTER)
            fprintf(out, "%llu", (unsigned long long)atomic_load_explicit(&m->count, memory_order_relaxed));
        else put_double(out, load_double(&m->value));
        fputc('\n', out);
    }
}

char *mx_metrics_render(const mx_metrics *m, size_t *len)
{
    char *text = NULL;
    *len = 0;
    FILE *out = open_memstream(&text, len);
    if (!out) return NULL;
    pthread_mutex_t *lock = &((mx_metrics *)(uintptr_t)m)->lock;
    pthread_mutex_lock(lock);
    for (const family *f = m->families; f; f = f->next)
        if (f->series) put_family(out, f);
    pthread_mutex_unlock(lock);
    bool failed = ferror(out) != 0;
    if (fclose(out) || failed) {
        free(text);
        *len = 0;
        return NULL;
    }
    return text;
}
