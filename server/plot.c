/* plot.c - reading metrics.jsonl, scales and ticks, SVG. */
#include "server/plot.h"
#include "models/checkpoint.h"

#include <jansson.h>
#include <math.h>
#include <stdlib.h>

#define FILES_MOST 8
#define POINTS_MOST 1200          /* of a drawn curve: more are finer than a pixel */
#define LEFT 64
#define RIGHT 20
#define TOP 44
#define BOTTOM 46
#define GAP 34

/* Okabe and Ito 2008: told apart by the colour-blind too. */
static const char *const colours[FILES_MOST] = {"#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000"};

typedef struct series {
    const char *name;
    double *x, *loss, *lr, *eval_x, *eval;
    int     n, n_eval, room;
    bool    has_lr;
} series;

typedef struct axis {
    double least, most;
    bool   log;
    double from, to;              /* pixels */
} axis;

static void series_free(series *s)
{
    free(s->x);
    free(s->loss);
    free(s->lr);
    free(s->eval_x);
    free(s->eval);
}

/* ---- reading -------------------------------------------------------------------------- */

static mx_status grow(series *s, mx_error *err)
{
    if (s->n < s->room) return MX_OK;
    int room = s->room ? 2 * s->room : 1024;
    double **all[] = {&s->x, &s->loss, &s->lr, &s->eval_x, &s->eval};
    for (int i = 0; i < 5; i++) {
        double *p = realloc(*all[i], (size_t)room * sizeof *p);
        if (!p) return mx_fail(err, MX_ERR_NO_MEMORY, "%d points", room);
        *all[i] = p;
    }
    s->room = room;
    return MX_OK;
}

static mx_status take_row(series *s, const json_t *row, const char *file, int line, mx_error *err)
{
    const json_t *step = json_object_get(row, "step"), *loss = json_object_get(row, "loss");
    const json_t *lr = json_object_get(row, "lr"), *eval = json_object_get(row, "eval_loss");
    if (!json_is_number(step) || !json_is_number(loss)) return mx_fail(err, MX_ERR_FORMAT, "%s:%d: no numbers \"step\" and \"loss\"", file, line);
    MX_TRY(grow(s, err));
    s->x[s->n] = json_number_value(step);
    s->loss[s->n] = json_number_value(loss);
    s->lr[s->n] = json_is_number(lr) ? json_number_value(lr) : 0;
    s->has_lr |= json_is_number(lr);
    if (json_is_number(eval)) {
        s->eval_x[s->n_eval] = s->x[s->n];
        s->eval[s->n_eval++] = json_number_value(eval);
    }
    s->n++;
    return MX_OK;
}

static mx_status read_series(series *s, const char *file, mx_error *err)
{
    char *text = NULL;
    size_t len = 0;
    mx_status st = MX_OK;
    int line = 1;
    s->name = file;
    MX_TRY(mx_read_file(file, (size_t)1 << 30, &text, &len, err));
    for (const char *at = text, *end; !st && (end = memchr(at, '\n', len - (size_t)(at - text))); at = end + 1, line++) {
        json_error_t why;
        json_t *row = json_loadb(at, (size_t)(end - at), 0, &why);
        st = row ? take_row(s, row, file, line, err) : mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", file, line, why.text);
        json_decref(row);
    }
    free(text);
    return st || s->n ? st : mx_fail(err, MX_ERR_ARG, "%s holds no step", file);
}

/* ---- axes --------------------------------------------------------------------------------- */

static double at(const axis *a, double v)
{
    double part = a->log ? (log(v) - log(a->least)) / (log(a->most) - log(a->least)) : (v - a->least) / (a->most - a->least);
    return a->from + part * (a->to - a->from);
}

static void widen(axis *a, const double *v, int n)
{
    for (int i = 0; i < n; i++) {
        if (!isfinite(v[i])) continue;
        if (v[i] < a->least) a->least = v[i];
        if (v[i] > a->most) a->most = v[i];
    }
}

/* 1, 2 or 5 times a power of ten: about `wanted` of them. */
static double tick_step(double range, int wanted)
{
    double raw = range / wanted, power = pow(10, floor(log10(raw))), part = raw / power;
    return power * (part < 1.5 ? 1 : part < 3.5 ? 2 : part < 7.5 ? 5 : 10);
}

static int ticks(const axis *a, int wanted, double *out, int most)
{
    int n = 0;
    if (a->log) {
        static const double marks[] = {1, 2, 5};
        for (double power = pow(10, floor(log10(a->least))); power <= a->most && n < most; power *= 10)
            for (int i = 0; i < 3 && n < most; i++)
                if (power * marks[i] >= a->least && power * marks[i] <= a->most) out[n++] = power * marks[i];
        return n;
    }
    double step = tick_step(a->most - a->least, wanted);
    for (double k = ceil(a->least / step - 1e-9); k * step <= a->most + 1e-9 * step && n < most; k++) out[n++] = fabs(k * step) < 1e-12 * step ? 0 : k * step;
    return n;
}

static void round_out(axis *a, int wanted)
{
    if (a->log || a->most <= a->least) {
        if (a->most <= a->least) a->most = a->least + (a->least != 0 ? fabs(a->least) * 0.1 : 1);
        return;
    }
    double step = tick_step(a->most - a->least, wanted);
    a->least = floor(a->least / step) * step;
    a->most = ceil(a->most / step) * step;
}

/* ---- drawing --------------------------------------------------------------------------------- */

static void escape(FILE *out, const char *s)
{
    for (; *s; s++) {
        if (*s == '<') fputs("&lt;", out);
        else if (*s == '&') fputs("&amp;", out);
        else if (*s == '>') fputs("&gt;", out);
        else if ((unsigned char)*s >= 32) fputc(*s, out);
    }
}

static void number(FILE *out, double v)
{
    if (fabs(v) >= 10000 && fmod(v, 1000) == 0) fprintf(out, "%gk", v / 1000);
    else if (v != 0 && (fabs(v) < 1e-3 || fabs(v) >= 1e6)) fprintf(out, "%.0e", v);
    else fprintf(out, "%g", v);
}

static void draw_axes(FILE *out, const axis *x, const axis *y, const char *label, bool numbers_below, int wanted_y)
{
    double t[64];
    int n = ticks(y, wanted_y, t, 64);
    for (int i = 0; i < n; i++) {
        fprintf(out, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='#e6e6e6'/><text x='%.1f' y='%.1f' text-anchor='end'>", x->from,
                at(y, t[i]), x->to, at(y, t[i]), x->from - 8, at(y, t[i]) + 4);
        number(out, t[i]);
        fputs("</text>\n", out);
    }
    n = ticks(x, 8, t, 64);
    for (int i = 0; i < n; i++) {
        fprintf(out, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='#f0f0f0'/>", at(x, t[i]), y->to, at(x, t[i]), y->from);
        if (!numbers_below) continue;
        fprintf(out, "<text x='%.1f' y='%.1f' text-anchor='middle'>", at(x, t[i]), y->from + 18);
        number(out, t[i]);
        fputs("</text>\n", out);
    }
    fprintf(out, "<path d='M%.1f %.1fV%.1fH%.1f' fill='none' stroke='#444'/>\n", x->from, y->to, y->from, x->to);
    fprintf(out, "<text x='14' y='%.1f' transform='rotate(-90 14 %.1f)' text-anchor='middle'>%s</text>\n", (y->from + y->to) / 2,
            (y->from + y->to) / 2, label);
}

/* Every point stands for a run of neighbours when there are more than pixels. */
static void draw_line(FILE *out, const axis *x, const axis *y, const double *vx, const double *vy, int n, const char *colour, double width, double opacity)
{
    int stride = n / POINTS_MOST + 1;
    fputs("<polyline fill='none' stroke-linejoin='round' points='", out);
    for (int i = 0; i < n; i += stride) {
        double sx = 0, sy = 0;
        int k = 0;
        for (; k < stride && i + k < n; k++) sx += vx[i + k], sy += vy[i + k];
        fprintf(out, "%.1f,%.1f ", at(x, sx / k), at(y, sy / k));
    }
    fprintf(out, "' stroke='%s' stroke-width='%.1f' stroke-opacity='%.2f'/>\n", colour, width, opacity);
}

/* Exponential means over about a fiftieth of the run, from both ends: no lag. */
static double *smoothed(const series *s)
{
    double *v = calloc((size_t)s->n, sizeof *v), keep = exp(-100.0 / (s->n > 100 ? s->n : 100));
    for (int back = 0; v && back < 2; back++) {
        double sum = 0, weight = 0;
        for (int k = 0; k < s->n; k++) {
            int i = back ? s->n - 1 - k : k;
            sum = keep * sum + s->loss[i];
            weight = keep * weight + 1;
            v[i] += 0.5 * sum / weight;
        }
    }
    return v;
}

static mx_status draw_series(FILE *out, const series *s, const axis *x, const axis *y, const axis *lr, int i, mx_error *err)
{
    double *mean = smoothed(s);
    if (!mean) return mx_fail(err, MX_ERR_NO_MEMORY, "a curve of %d points", s->n);
    draw_line(out, x, y, s->x, s->loss, s->n, colours[i], 1, 0.25);
    draw_line(out, x, y, s->x, mean, s->n, colours[i], 2, 1);
    for (int k = 0; k < s->n_eval; k++)
        fprintf(out, "<circle cx='%.1f' cy='%.1f' r='3.5' fill='white' stroke='%s' stroke-width='2'/>\n", at(x, s->eval_x[k]), at(y, s->eval[k]), colours[i]);
    if (s->has_lr) draw_line(out, x, lr, s->x, s->lr, s->n, colours[i], 1.5, 1);
    free(mean);
    return MX_OK;
}

static void draw_legend(FILE *out, const series *s, int n, double right)
{
    for (int i = 0; i < n; i++) {
        double y = TOP + 14 + 18 * i;
        fprintf(out, "<line x1='%.1f' y1='%.1f' x2='%.1f' y2='%.1f' stroke='%s' stroke-width='2'/><text x='%.1f' y='%.1f' text-anchor='end'>", right - 26,
                y, right - 6, y, colours[i], right - 32, y + 4);
        escape(out, s[i].name);
        if (s[i].n_eval) fputs(" (circles: validation)", out);
        fputs("</text>\n", out);
    }
}

static mx_status draw(FILE *out, const series *s, int n, const mx_plot_options *o, mx_error *err)
{
    axis x = {INFINITY, -INFINITY, o->log_x, LEFT, o->width - RIGHT}, y = {INFINITY, -INFINITY, o->log_y, 0, TOP}, lr = {0, -INFINITY, false, 0, 0};
    bool has_lr = false;
    for (int i = 0; i < n; i++) {
        widen(&x, s[i].x, s[i].n);
        widen(&y, s[i].loss, s[i].n);
        widen(&y, s[i].eval, s[i].n_eval);
        widen(&lr, s[i].lr, s[i].n);
        has_lr |= s[i].has_lr;
    }
    if (!(y.most >= y.least)) return mx_fail(err, MX_ERR_ARG, "no loss is a number");
    if ((o->log_x && x.least <= 0) || (o->log_y && y.least <= 0)) return mx_fail(err, MX_ERR_ARG, "a logarithmic axis needs values above 0");
    if (x.most <= x.least) x.most = x.least + 1;
    double below = has_lr ? (o->height - TOP - BOTTOM) * 0.22 : 0;
    y.from = o->height - BOTTOM - below - (has_lr ? GAP : 0);
    lr.from = o->height - BOTTOM;
    lr.to = lr.from - below;
    round_out(&y, 6);
    round_out(&lr, 3);
    fprintf(out, "<svg xmlns='http://www.w3.org/2000/svg' width='%d' height='%d' viewBox='0 0 %d %d' font-family='Helvetica,Arial,sans-serif' font-size='12' fill='#333'>\n"
                 "<rect width='100%%' height='100%%' fill='white'/>\n", o->width, o->height, o->width, o->height);
    if (o->title) {
        fprintf(out, "<text x='%d' y='26' font-size='16' font-weight='bold'>", LEFT);
        escape(out, o->title);
        fputs("</text>\n", out);
    }
    draw_axes(out, &x, &y, "loss", !has_lr, 6);
    if (has_lr) draw_axes(out, &x, &lr, "learning rate", true, 3);
    for (int i = 0; i < n; i++) MX_TRY(draw_series(out, &s[i], &x, &y, &lr, i, err));
    draw_legend(out, s, n, x.to);
    fprintf(out, "<text x='%.1f' y='%d' text-anchor='middle'>step</text>\n</svg>\n", (x.from + x.to) / 2, o->height - 8);
    return MX_OK;
}

mx_status mx_plot(FILE *out, const char *const *files, int n, const mx_plot_options *o, mx_error *err)
{
    series s[FILES_MOST] = {0};
    mx_status st = MX_OK;
    if (n < 1 || n > FILES_MOST) return mx_fail(err, MX_ERR_ARG, "%d files; from 1 to %d can be drawn", n, FILES_MOST);
    for (int i = 0; !st && i < n; i++) st = read_series(&s[i], files[i], err);
    if (!st) st = draw(out, s, n, o, err);
    for (int i = 0; i < n; i++) series_free(&s[i]);
    return st;
}
