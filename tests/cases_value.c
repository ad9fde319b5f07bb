/* cases_value.c - Q-learning.  n transitions, c actions, o atoms (0: plain values);
 * bias: some actions are masked; flag: the next action is chosen by another network. */
#include "tests/cases_learn.h"
#include "tests/reference.h"

#include "runtime/random.h"

#include <math.h>

#define SCALE (1.0f / 7)
#define HUBER 0.7f
#define LOW (-2.0f)
#define HIGH 3.0f

/* The bytes of a mask: every row has a feasible action, unless `gaps`. */
static void mask(case_io *io, bool gaps)
{
    const mx_case *c = io->c;
    int8_t *m = malloc((size_t)(c->n * c->c));
    io->broken |= !m;
    for (int64_t i = 0; m && i < c->n * c->c; i++) m[i] = case_below(io, 3) != 0;
    for (int64_t r = 0; m && r < c->n; r++) {
        m[r * c->c + case_below(io, c->c)] = 1;
        if (gaps && r % 5 == 3) memset(m + r * c->c, 0, (size_t)c->c);
    }
    if (m) case_place_bytes(io, m, (size_t)(c->n * c->c));
    free(m);
}

/* Tensor i as placed by mask(); none when the case has no mask. */
static mx_tensor mask_of(case_io *io, int i)
{
    return io->c->bias ? mx_tensor_of(T(i).data, MX_I8, io->c->n, io->c->c) : none;
}

static const int8_t *mask_values(case_io *io, int i)
{
    return io->c->bias ? (const int8_t *)io->t[i].before + io->t[i].lead : NULL;
}

static void some_rows_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (double)c->c * (double)(c->o ? c->o : 1) * 4;
    *bytes = *flop * 2;
}

/* ---- argmax: flag: values with equals and NaNs -------------------------------------------- */

static void argmax_build(case_io *io)
{
    const mx_case *c = io->c;
    case_place(io, MX_I32, c->n, 1, FILL_SENTINEL, true);
    double *q = malloc((size_t)(c->n * c->c) * sizeof *q);
    io->broken |= !q;
    for (int64_t i = 0; q && i < c->n * c->c; i++) q[i] = !c->flag ? case_uniform(io) : i % 7 == 2 ? NAN : (double)case_below(io, 3);
    if (q) case_place_values(io, c->n, c->c, q, false);
    mask(io, true);
    free(q);
}

static void argmax_call(case_io *io)
{
    io->env->kernels->argmax(&io->s, T(0), T(1), mask_of(io, 2));
}

static bool argmax_check(case_io *io)
{
    const mx_case *c = io->c;
    double *q = before(io, 1);
    const int8_t *m = mask_values(io, 2);
    bool ok = true;
    for (int64_t r = 0; r < c->n && ok; r++) {
        int32_t want = ref_argmax(q + r * c->c, m ? m + r * c->c : NULL, c->c), got = (int32_t)case_value(&io->t[0], io->t[0].after, r, 0);
        ok = got == want || case_fail(io, "row %lld: action %d, not %d", (long long)r, got, want);
    }
    free(q);
    return ok;
}

/* ---- dueling -------------------------------------------------------------------------------- */

static void dueling_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c * c->o, false);
    floats(io, c->n, (1 + c->c) * c->o);
}

static void dueling_call(case_io *io)
{
    io->env->kernels->dueling(&io->s, T(0), T(1), (int)io->c->o);
}

static bool dueling_check(case_io *io)
{
    const mx_case *c = io->c;
    double *va = before(io, 1);
    io->t[0].want = before(io, 0);
    ref_dueling(io->t[0].want, va, c->n, c->c, c->o);
    free(va);
    return case_close(io, &io->t[0], "q");
}

/* ---- a whole network: c inputs, o actions, `context` layers, the hidden ones `window` wide and
 * falling; page: atoms of a dueling head, 0: none --------------------------------------------- */

static int64_t network_width(const mx_case *c, int k)
{
    return k == 0 ? c->c : k < c->context ? c->window - 3 * (k - 1) : c->page ? (1 + c->o) * c->page : c->o;
}

static void perceptron_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->page ? c->o * c->page : c->o, false);
    floats(io, c->n, c->c);
    for (int k = 0; k < c->context; k++) {
        floats(io, network_width(c, k + 1), network_width(c, k));
        floats(io, 1, network_width(c, k + 1));
    }
}

static void perceptron_call(case_io *io)
{
    mx_perceptron_shape p = {.layers = (int)io->c->context, .atoms = io->c->page, .act = io->c->act};
    for (int k = 0; k < p.layers; k++) p.w[k] = T(2 + 2 * k), p.b[k] = T(3 + 2 * k);
    io->env->kernels->perceptron(&io->s, T(0), T(1), &p);
}

static bool perceptron_check(case_io *io)
{
    const mx_case *c = io->c;
    int layers = (int)c->context;
    int64_t width[MX_PERCEPTRON_LAYERS + 1] = {c->c};
    const double *w[MX_PERCEPTRON_LAYERS], *b[MX_PERCEPTRON_LAYERS];
    double *x = before(io, 1), *all[2 * MX_PERCEPTRON_LAYERS];
    for (int k = 0; k < layers; k++) {
        width[k + 1] = network_width(c, k + 1);
        w[k] = all[2 * k] = before(io, 2 + 2 * k), b[k] = all[2 * k + 1] = before(io, 3 + 2 * k);
    }
    double *y = malloc((size_t)(c->n * width[layers]) * sizeof *y);
    ref_perceptron(y, x, w, b, width, layers, c->n, c->act);
    io->t[0].want = before(io, 0);
    if (c->page) ref_dueling(io->t[0].want, y, c->n, c->o, c->page);
    else memcpy(io->t[0].want, y, (size_t)(c->n * c->o) * sizeof *y);
    for (int k = 0; k < 2 * layers; k++) free(all[k]);
    free(x), free(y);
    return case_close(io, &io->t[0], "y");
}

static void perceptron_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = 0, *bytes = (double)(c->n * (c->c + c->o)) * sizeof(float);
    for (int k = 0; k < c->context; k++) *flop += 2 * (double)(c->n * network_width(c, k)) * (double)network_width(c, k + 1);
}

/* ---- worlds: page is which, context the limit of an episode ----------------------------------- */

enum { WORLD_SEED = 77 };

static void world_step_build(case_io *io)
{
    const mx_case *c = io->c;
    bool cart = c->page == MX_WORLD_CARTPOLE;
    int32_t *words = malloc((size_t)c->n * 8 * sizeof *words), *at = malloc((size_t)c->n * 3 * sizeof *at), *action = malloc((size_t)c->n * sizeof *action);
    io->broken |= !words || !at || !action;
    for (int64_t r = 0; r < c->n && !io->broken; r++) {
        /* so far out that many an episode ends */
        double s[4] = {2.5 * case_uniform(io), 3 * case_uniform(io), (cart ? 0.22 : 3) * case_uniform(io), 3 * case_uniform(io)};
        memcpy(words + 8 * r, s, sizeof s);
        at[3 * r] = (int32_t)case_below(io, 1000), at[3 * r + 1] = (int32_t)case_below(io, 9), at[3 * r + 2] = (int32_t)case_below(io, c->context ? c->context : 99);
        action[r] = (int32_t)case_below(io, cart ? 2 : 3);
    }
    if (!io->broken) {
        case_place_i32(io, c->n, 8, words), case_place_i32(io, c->n, 3, at), case_place_i32(io, c->n, 1, action);
        io->t[0].output = io->t[1].output = true;
        result(io, c->n, 1, false);
        case_place(io, MX_I32, c->n, 1, FILL_SENTINEL, true);
        result(io, c->n, cart ? 4 : 6, false), result(io, c->n, cart ? 4 : 6, false);
    }
    free(words), free(at), free(action);
}

static void world_step_call(case_io *io)
{
    io->env->kernels->world_step(&io->s, (mx_world)io->c->page, T(0), T(1), T(2), T(3), T(4), T(5), T(6), WORLD_SEED, (int)io->c->context);
}

static void see(double *o, const double *s, bool cart)
{
    double links[6] = {cos(s[0]), sin(s[0]), cos(s[1]), sin(s[1]), s[2], s[3]};
    memcpy(o, cart ? s : links, (cart ? 4 : 6) * sizeof *o);
}

static bool world_step_check(case_io *io)
{
    const mx_case *c = io->c;
    bool cart = c->page == MX_WORLD_CARTPOLE, ok = true;
    double *reward = io->t[3].want = before(io, 3), *next = io->t[5].want = before(io, 5), *seen = io->t[6].want = before(io, 6);
    for (int64_t r = 0; r < c->n && ok; r++) {
        const placed *p = &io->t[0];
        double s[4], got[4];
        size_t row = p->lead + (size_t)(r * p->t.stride) * sizeof(int32_t);
        memcpy(s, p->before + row, sizeof s), memcpy(got, p->after + row, sizeof got);
        int32_t at[3], now[3], ended = (int32_t)case_value(&io->t[4], io->t[4].after, r, 0);
        for (int k = 0; k < 3; k++) at[k] = (int32_t)case_value(&io->t[1], io->t[1].before, r, k), now[k] = (int32_t)case_value(&io->t[1], io->t[1].after, r, k);
        bool over = ref_world_step((mx_world)c->page, s, (int)case_value(&io->t[2], io->t[2].before, r, 0));
        int32_t want = over ? 1 : c->context && at[2] + 1 >= c->context ? 2 : 0;
        reward[r] = cart ? 1 : over ? 0 : -1;
        see(next + r * io->t[5].t.cols, s, cart);
        at[1] += want != 0, at[2] = want ? 0 : at[2] + 1;
        for (uint32_t k = 0; want && k < 4; k++) {
            double u = mx_uniform(WORLD_SEED, (uint32_t)at[0], (uint32_t)at[1], 0, k);
            s[k] = cart ? -0.05 + 0.1 * u : (double)(float)(-0.1 + 0.2 * u);
        }
        see(seen + r * io->t[6].t.cols, s, cart);
        ok = (ended == want && !memcmp(at, now, sizeof at)) || case_fail(io, "row %lld: end %d, not %d; episode %d, step %d", (long long)r, ended, want, now[1], now[2]);
        for (int k = 0; k < 4 && ok; k++)
            ok = fabs(got[k] - s[k]) <= 1e-9 * (1 + fabs(s[k])) || case_fail(io, "row %lld: state %.17g, not %.17g", (long long)r, got[k], s[k]);
    }
    return ok && case_close(io, &io->t[3], "reward") && case_close(io, &io->t[5], "next") && case_close(io, &io->t[6], "seen");
}

static void world_step_work(const mx_case *c, double *flop, double *bytes)
{
    *flop = (double)c->n * (c->page == MX_WORLD_CARTPOLE ? 100 : 600);
    *bytes = (double)c->n * (c->page == MX_WORLD_CARTPOLE ? 128 : 144);
}

static void dueling_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, (1 + c->c) * c->o, false);
    floats(io, c->n, c->c * c->o);
    floats(io, c->n, (1 + c->c) * c->o);
}

static void dueling_back_call(case_io *io)
{
    io->env->kernels->dueling_back(&io->s, T(0), T(1), (int)io->c->o);
}

static void dueling_open(case_io *io, learn *l)
{
    input(l, before(io, 2), io->c->n * (1 + io->c->c) * io->c->o, 0, false);
    l->dout = before(io, 1);
    l->outs = io->c->n * io->c->c * io->c->o;
}

static void dueling_forward(case_io *io, learn *l)
{
    ref_dueling(l->out, l->in[0], io->c->n, io->c->c, io->c->o);
}

static void dueling_backward(case_io *io, learn *l)
{
    ref_dueling_back(l->d[0], l->dout, io->c->n, io->c->c, io->c->o);
}

/* ---- both losses: tensors in the order loss, error, q or logits, action, next, chooser, mask, step ------ */

enum { LOSS, ERROR, Q, ACTION, NEXT, CHOOSER, MASK, STEP };

static void loss_build(case_io *io)
{
    const mx_case *c = io->c;
    int64_t atoms = c->o ? c->o : 1;
    int32_t *action = malloc((size_t)c->n * sizeof *action);
    double *step = malloc(3 * (size_t)c->n * sizeof *step);
    result(io, c->n, 1, false);
    result(io, c->n, 1, false);
    result(io, c->n, c->c * atoms, true);
    io->broken |= !action || !step;
    for (int64_t r = 0; !io->broken && r < c->n; r++) {
        action[r] = (int32_t)case_below(io, c->c);
        step[3 * r] = 1.5 * case_uniform(io);
        step[3 * r + 1] = r % 4 == 1 ? 0 : (double)0.97f;           /* the end of an episode */
        step[3 * r + 2] = 0.1 + fabs(case_uniform(io));
    }
    if (!io->broken) case_place_i32(io, c->n, 1, action);
    floats(io, c->n, c->c * atoms);
    floats(io, c->n, c->c);
    mask(io, true);
    if (!io->broken) case_place_values(io, c->n, 3, step, false);
    io->tolerance = c->o ? 1e-3 : 1e-5;         /* where a target lands between atoms is rounded to f32; most gradients are 0 */
    free(action), free(step);
}

static void loss_call(case_io *io)
{
    const mx_kernels *k = io->env->kernels;
    mx_tensor chooser = io->c->o || io->c->flag ? T(CHOOSER) : T(NEXT);
    if (io->c->o) k->atoms_loss(&io->s, T(LOSS), T(ERROR), T(Q), T(ACTION), T(NEXT), chooser, mask_of(io, MASK), T(STEP), LOW, HIGH, SCALE);
    else k->td_loss(&io->s, T(LOSS), T(ERROR), T(Q), T(ACTION), T(NEXT), chooser, mask_of(io, MASK), T(STEP), HUBER, SCALE);
}

static void loss_open(case_io *io, learn *l)
{
    const mx_case *c = io->c;
    input(l, before(io, Q), c->n * c->c * (c->o ? c->o : 1), Q, false);
    l->outs = c->n;
    l->dout = malloc((size_t)c->n * sizeof *l->dout);
    for (int64_t r = 0; r < c->n; r++) l->dout[r] = (double)SCALE;
    l->ids = integers(io, ACTION);
}

static void reference_loss(case_io *io, learn *l, double *loss, double *error, double *gradient)
{
    const mx_case *c = io->c;
    double *next = before(io, NEXT), *step = before(io, STEP), *chooser = before(io, c->o || c->flag ? CHOOSER : NEXT);
    const int8_t *m = mask_values(io, MASK);
    if (c->o)
        ref_atoms_loss(loss, error, gradient, l->in[0], l->ids, next, chooser, m, step, c->n, c->c, c->o, (double)LOW, (double)HIGH, (double)SCALE);
    else
        ref_td_loss(loss, error, gradient, l->in[0], l->ids, next, chooser, m, step, c->n, c->c, (double)HUBER, (double)SCALE);
    free(next), free(step), free(chooser);
}

static void loss_forward(case_io *io, learn *l)
{
    reference_loss(io, l, l->out, io->t[ERROR].want, NULL);
}

static void loss_backward(case_io *io, learn *l)
{
    for (int i = LOSS; i <= ERROR; i++)
        if (!io->t[i].want) io->t[i].want = malloc((size_t)io->c->n * sizeof(double));
    reference_loss(io, l, io->t[LOSS].want, io->t[ERROR].want, l->d[0]);
}

static bool loss_check(case_io *io)
{
    bool ok = case_back_check(io);
    io->tolerance = io->c->o ? 1e-5 : 1e-6;
    ok = case_close(io, &io->t[LOSS], "loss") && ok;
    return case_close(io, &io->t[ERROR], "error") && ok;
}

/* ---- the mean of atoms ------------------------------------------------------------------------ */

static void atoms_value_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->n, c->c, false);
    case_place(io, MX_F32, c->n, c->c * c->o, FILL_NOISE_LOGITS, false);
}

static void atoms_value_call(case_io *io)
{
    io->env->kernels->atoms_value(&io->s, T(0), T(1), LOW, HIGH);
}

static bool atoms_value_check(case_io *io)
{
    const mx_case *c = io->c;
    double *x = before(io, 1);
    io->t[0].want = before(io, 0);
    ref_atoms_value(io->t[0].want, x, c->n, c->c, c->o, (double)LOW, (double)HIGH);
    free(x);
    return case_close(io, &io->t[0], "q");
}

/* ---- noise: o outputs, c inputs ------------------------------------------------------------------ */

static void noisy_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->o, c->c, false);
    floats(io, c->o, c->c);
    floats(io, c->o, c->c);
    floats(io, 1, c->o);
    floats(io, 1, c->c);
}

static void noisy_call(case_io *io)
{
    io->env->kernels->noisy(&io->s, T(0), T(1), T(2), T(3), T(4));
}

static bool noisy_check(case_io *io)
{
    const mx_case *c = io->c;
    double *m = before(io, 1), *d = before(io, 2), *out = before(io, 3), *in = before(io, 4);
    io->t[0].want = before(io, 0);
    ref_noisy(io->t[0].want, m, d, out, in, c->o, c->c);
    free(m), free(d), free(out), free(in);
    return case_close(io, &io->t[0], "w");
}

static void noisy_back_build(case_io *io)
{
    const mx_case *c = io->c;
    result(io, c->o, c->c, true);
    result(io, c->o, c->c, true);
    floats(io, c->o, c->c);
    floats(io, 1, c->o);
    floats(io, 1, c->c);
}

static void noisy_back_call(case_io *io)
{
    io->env->kernels->noisy_back(&io->s, T(0), T(1), T(2), T(3), T(4));
}

static void noisy_open(case_io *io, learn *l)
{
    int64_t n = io->c->o * io->c->c;
    input(l, before(io, 0), n, 0, true);
    input(l, before(io, 1), n, 1, true);
    l->dout = before(io, 2);
    l->outs = n;
}

static void noisy_forward(case_io *io, learn *l)
{
    double *out = before(io, 3), *in = before(io, 4);
    ref_noisy(l->out, l->in[0], l->in[1], out, in, io->c->o, io->c->c);
    free(out), free(in);
}

static void noisy_backward(case_io *io, learn *l)
{
    double *out = before(io, 3), *in = before(io, 4);
    ref_noisy_back(l->d[0], l->d[1], l->dout, out, in, io->c->o, io->c->c);
    free(out), free(in);
}

/* ---- priorities: c leaves of which n are set or drawn; flag: without errors, as new ones are.
 * Whole numbers for priorities, so that every sum is exact. ---------------------------------------- */

static double *tree_of(case_io *io, int64_t leaves, double largest)
{
    double *t = calloc(2 * (size_t)leaves, sizeof *t);
    io->broken |= !t;
    for (int64_t i = 0; t && i < leaves; i++) t[leaves + i] = case_below(io, 4) ? (double)case_below(io, 6) : 0;
    if (t) t[leaves + case_below(io, leaves)] = 3;
    for (int64_t i = leaves - 1; t && i > 0; i--) t[i] = t[2 * i] + t[2 * i + 1];
    if (t) t[0] = largest;
    return t;
}

static void priority_set_build(case_io *io)
{
    const mx_case *c = io->c;
    double *t = tree_of(io, c->c, c->add ? 0 : 5), *error = malloc((size_t)c->n * sizeof *error);
    int32_t *id = malloc((size_t)c->n * sizeof *id);
    io->broken |= !error || !id;
    for (int64_t i = 0; !io->broken && i < c->n; i++) {
        id[i] = (int32_t)case_below(io, c->c);
        error[i] = (double)(id[i] % 11);                     /* one id, one error */
    }
    if (!io->broken) {
        case_place_values(io, 1, 2 * c->c, t, true);
        case_place_i32(io, c->n, 1, id);
        case_place_values(io, c->n, 1, error, false);
    }
    io->tolerance = 2e-6;
    free(t), free(error), free(id);
}

static void priority_set_call(case_io *io)
{
    io->env->kernels->priority_set(&io->s, T(0), T(1), io->c->flag ? none : T(2), 0.5f);
}

static bool priority_set_check(case_io *io)
{
    const mx_case *c = io->c;
    double *t = io->t[0].want = before(io, 0), *error = before(io, 2), most = t[0];
    int32_t *id = integers(io, 1);
    for (int64_t i = 0; i < c->n; i++) {
        double p = c->flag ? (t[0] > 0 ? t[0] : 1) : sqrt(error[i] + (double)1e-6f);
        t[c->c + id[i]] = p;
        most = fmax(most, p);
    }
    for (int64_t i = c->c - 1; i > 0; i--) t[i] = t[2 * i] + t[2 * i + 1];
    t[0] = most;
    free(error), free(id);
    return case_close(io, &io->t[0], "tree");
}

static void priority_sample_build(case_io *io)
{
    const mx_case *c = io->c;
    double *t = tree_of(io, c->c, 5), *u = malloc((size_t)c->n * sizeof *u);
    io->broken |= !u;
    for (int64_t i = 0; u && i < c->n; i++) u[i] = (double)(case_below(io, 1 << 20)) * 0x1p-20;
    case_place(io, MX_I32, c->n, 1, FILL_SENTINEL, true);
    result(io, c->n, 1, false);
    if (!io->broken) {
        case_place_values(io, 1, 2 * c->c, t, false);
        case_place_values(io, c->n, 1, u, false);
    }
    free(t), free(u);
}

static void priority_sample_call(case_io *io)
{
    io->env->kernels->priority_sample(&io->s, T(0), T(1), T(2), T(3), 0.4f);
}

/* The leaf whose interval the point lies in; within rounding of a border either side is right. */
static bool priority_sample_check(case_io *io)
{
    const mx_case *c = io->c;
    double *t = before(io, 2), *u = before(io, 3), least = INFINITY;
    double *w = io->t[1].want = malloc((size_t)c->n * sizeof *w);
    bool ok = t && u && w;
    for (int64_t r = 0; ok && r < c->n; r++) {
        int64_t id = (int64_t)case_value(&io->t[0], io->t[0].after, r, 0);
        if (id < 0 || id >= c->c || !(t[c->c + id] > 0)) {
            ok = case_fail(io, "row %lld: transition %lld", (long long)r, (long long)id);
            break;
        }
        double at = ((double)r + u[r]) / (double)c->n * t[1], begin = 0;
        for (int64_t i = 0; i < id; i++) begin += t[c->c + i];
        if (at < begin - 1e-6 * t[1] || at > begin + t[c->c + id] + 1e-6 * t[1])
            ok = case_fail(io, "row %lld: %g is not of transition %lld", (long long)r, at, (long long)id);
        w[r] = t[c->c + id];
        least = fmin(least, w[r]);
    }
    for (int64_t r = 0; ok && r < c->n; r++) w[r] = pow(least / w[r], (double)0.4f);
    free(t), free(u);
    return ok && case_close(io, &io->t[1], "weight");
}

/* ---- the tables -------------------------------------------------------------------------------------- */

const learn_op mx_case_value_learn_ops[] = {
    {"dueling_back", dueling_open, dueling_forward, dueling_backward},
    {"td_loss", loss_open, loss_forward, loss_backward},
    {"atoms_loss", loss_open, loss_forward, loss_backward},
    {"noisy_back", noisy_open, noisy_forward, noisy_backward},
};
const int mx_case_value_learn_ops_count = sizeof mx_case_value_learn_ops / sizeof *mx_case_value_learn_ops;

const case_op mx_case_value_ops[] = {
    {"argmax", argmax_build, argmax_call, argmax_check, some_rows_work},
    {"dueling", dueling_build, dueling_call, dueling_check, some_rows_work},
    {"perceptron", perceptron_build, perceptron_call, perceptron_check, perceptron_work},
    {"world_step", world_step_build, world_step_call, world_step_check, world_step_work},
    {"dueling_back", dueling_back_build, dueling_back_call, case_back_check, some_rows_work},
    {"td_loss", loss_build, loss_call, loss_check, some_rows_work},
    {"atoms_value", atoms_value_build, atoms_value_call, atoms_value_check, some_rows_work},
    {"atoms_loss", loss_build, loss_call, loss_check, some_rows_work},
    {"noisy", noisy_build, noisy_call, noisy_check, some_rows_work},
    {"noisy_back", noisy_back_build, noisy_back_call, case_back_check, some_rows_work},
    {"priority_set", priority_set_build, priority_set_call, priority_set_check, some_rows_work},
    {"priority_sample", priority_sample_build, priority_sample_call, priority_sample_check, some_rows_work},
};
const int mx_case_value_ops_count = sizeof mx_case_value_ops / sizeof *mx_case_value_ops;
