/* trainer_state.c - what a run keeps: checkpoints and metrics.jsonl.
 *
 * A checkpoint holds what the network's save() wrote, trainer.json, and one
 * optimizer-RRRRR-of-NNNNN.safetensors for each process with its part of the
 * moments (ZeRO stage 1, Rajbhandari et al. 2020): `range` I64 [3] says which
 * elements of how many.  A run may go on with another number of processes. */
#include "models/trainer_internal.h"

#include "runtime/log.h"

#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#define METRICS "metrics.jsonl"
#define STATE "trainer.json"

/* ---- what must not change ----------------------------------------------------------- */

static uint64_t hash(uint64_t h, const void *data, size_t n)
{
    const unsigned char *p = data;
    for (size_t i = 0; i < n; i++) h = (h ^ p[i]) * 0x100000001b3u;      /* FNV-1a */
    return h;
}

static uint64_t layout_hash(const mx_params *p)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (int i = 0; i < p->n; i++) {
        const mx_param *q = &p->param[i];
        int64_t shape[] = {q->rows, q->cols, (int64_t)q->offset};
        h = hash(hash(h, q->name, strlen(q->name)), shape, sizeof shape);
    }
    return h;
}

typedef struct fixed { const char *name; int64_t value; const char *what; } fixed;
enum { N_FIXED = 8 };

static void fixed_of(const mx_trainer *t, fixed f[N_FIXED])
{
    f[0] = (fixed){"data", (int64_t)mx_batches_hash(t->train), "the training data"};
    f[1] = (fixed){"layout", (int64_t)layout_hash(t->learner.params), "the network's parameters"};
    f[2] = (fixed){"sequences", t->train->count, "the number of sequences"};
    f[3] = (fixed){"packing", t->train->packing, "packing"};
    f[4] = (fixed){"length", t->train->length, "length"};
    f[5] = (fixed){"batch", t->opt.batch, "batch"};
    f[6] = (fixed){"seed", (int64_t)t->opt.seed, "seed"};
    f[7] = (fixed){"shuffle", t->train->shuffle, "shuffle"};
}

/* ---- trainer.json --------------------------------------------------------------------- */

enum { N_SEEN = 4 };
static const char *const seen_names[N_SEEN] = {"best_loss", "best_extra", "least_loss", "most_extra"};

static double *seen_of(mx_trainer *t, int i)
{
    double *const at[N_SEEN] = {&t->best_loss, &t->best_extra, &t->least_loss, &t->most_extra};
    return at[i];
}

static mx_status write_state(const mx_trainer *t, const char *folder, mx_error *err)
{
    fixed f[N_FIXED];
    char path[MX_PATH];
    fixed_of(t, f);
    json_t *o = json_pack("{s:s, s:I, s:I, s:I, s:I, s:i, s:I, s:f, s:f}", "format", "merx run 1", "step", (json_int_t)t->step, "steps",
                          (json_int_t)t->steps, "tokens", (json_int_t)t->tokens, "best_step", (json_int_t)t->best_step, "waited",
                          t->waited, "processes", (json_int_t)mx_comm_size(t->comm), "loss", t->report.loss, "lr", t->report.lr);
    for (int i = 0; o && i < N_SEEN; i++) {
        double v = *seen_of((mx_trainer *)(uintptr_t)t, i);
        if (isfinite(v)) json_object_set_new(o, seen_names[i], json_real(v));      /* a real may not be infinite in JSON */
    }
    for (int i = 0; o && i < N_FIXED; i++) json_object_set_new(o, f[i].name, json_integer(f[i].value));
    char *text = o ? json_dumps(o, JSON_INDENT(2) | JSON_REAL_PRECISION(17)) : NULL;
    mx_status st = text ? mx_path_join(path, folder, STATE, err) : mx_fail(err, MX_ERR_NO_MEMORY, "the run's state");
    if (!st) st = mx_write_file(path, text, strlen(text), err);
    free(text);
    json_decref(o);
    return st;
}

static mx_status take_state(mx_trainer *t, const json_t *o, const char *path, int64_t *processes, mx_error *err)
{
    fixed f[N_FIXED];
    fixed_of(t, f);
    for (int i = 0; i < N_FIXED; i++) {
        const json_t *v = json_object_get(o, f[i].name);
        if (!json_is_integer(v)) return mx_fail(err, MX_ERR_FORMAT, "%s: no integer \"%s\"", path, f[i].name);
        if (json_integer_value(v) == f[i].value) continue;
        if (i < 3) return mx_fail(err, MX_ERR_STATE, "%s: %s is not what this run began with; choose another folder, or restart it", t->run, f[i].what);
        return mx_fail(err, MX_ERR_STATE, "%s: this run began with %s %lld, now it is %lld; choose another folder, or restart it", t->run,
                       f[i].what, (long long)json_integer_value(v), (long long)f[i].value);
    }
    const char *counts[] = {"step", "tokens", "best_step", "waited", "processes"};
    int64_t value[5];
    for (int i = 0; i < 5; i++) {
        const json_t *v = json_object_get(o, counts[i]);
        if (!json_is_integer(v)) return mx_fail(err, MX_ERR_FORMAT, "%s: no integer \"%s\"", path, counts[i]);
        value[i] = json_integer_value(v);
    }
    t->step = value[0];
    t->tokens = value[1];
    t->best_step = value[2];
    t->waited = (int32_t)value[3];
    *processes = value[4];
    for (int i = 0; i < N_SEEN; i++) {
        const json_t *v = json_object_get(o, seen_names[i]);
        if (json_is_number(v)) *seen_of(t, i) = json_number_value(v);
    }
    t->report.best_loss = t->best_loss, t->report.best_extra = t->best_extra, t->report.best_step = t->best_step;
    t->report.loss = json_number_value(json_object_get(o, "loss"));
    t->report.lr = json_number_value(json_object_get(o, "lr"));
    t->report.step = t->step;
    t->report.steps = t->steps;
    return MX_OK;
}

/* ---- the moments ------------------------------------------------------------------------ */

static mx_status moments_path(char path[MX_PATH], const char *folder, int64_t rank, int64_t size, mx_error *err)
{
    char name[96];
    snprintf(name, sizeof name, "optimizer-%05lld-of-%05lld.safetensors", (long long)rank, (long long)size);
    return mx_path_join(path, folder, name, err);
}

static mx_status move(mx_trainer *t, void *device, void *host, size_t bytes, bool up, mx_error *err)
{
    const mx_device_ops *ops = t->stream.dev->ops;
    if (up) ops->upload(&t->stream, device, host, bytes);
    else ops->download(&t->stream, host, device, bytes);
    return mx_stream_sync(&t->stream, err);
}

static mx_status write_moments(mx_trainer *t, const char *folder, mx_error *err)
{
    char path[MX_PATH];
    int64_t n = (int64_t)(t->shard_end - t->shard_begin);
    int64_t range[] = {(int64_t)t->shard_begin, (int64_t)t->shard_end, (int64_t)t->learner.params->count};
    bool cpu = t->stream.dev->kind == MX_CPU;
    float *m = cpu ? t->m.base : malloc(t->m.size), *v = cpu ? t->v.base : malloc(t->v.size);
    mx_status st = m && v ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "the optimizer's state");
    if (!st && !cpu) st = move(t, t->m.base, m, t->m.size, false, err);
    if (!st && !cpu) st = move(t, t->v.base, v, t->v.size, false, err);
    if (!st) st = moments_path(path, folder, mx_comm_rank(t->comm), mx_comm_size(t->comm), err);
    mx_save save[] = {{.name = "m", .as = MX_SAVE_F32, .n_dims = 1, .dims = {n}, .data = m},
                      {.name = "v", .as = MX_SAVE_F32, .n_dims = 1, .dims = {n}, .data = v},
                      {.name = "range", .as = MX_SAVE_I64, .n_dims = 1, .dims = {3}, .data = range}};
    if (!st) st = mx_safetensors_write(path, save, 3, NULL, 0, err);
    if (!cpu) {
        free(m);
        free(v);
    }
    return st;
}

/* What one process wrote and this one owns now. */
static mx_status read_part(mx_trainer *t, const char *path, mx_error *err)
{
    mx_checkpoint *c = NULL;
    mx_status st = MX_OK;
    MX_TRY(mx_checkpoint_open(&c, path, err));
    const mx_blob *m = mx_checkpoint_find(c, "m"), *v = mx_checkpoint_find(c, "v"), *r = mx_checkpoint_find(c, "range");
    int64_t range[3] = {0};
    if (r && r->size == sizeof range) memcpy(range, r->data, sizeof range);
    int64_t n = range[1] - range[0];
    if (!m || !v || range[2] != (int64_t)t->learner.params->count || range[0] < 0 || n < 0 || m->dtype != MX_FILE_F32 ||
        v->dtype != MX_FILE_F32 || m->cols != n || v->cols != n) {
        st = mx_fail(err, MX_ERR_FORMAT, "%s: is not the optimizer's state of this network", path);
        goto done;
    }
    int64_t begin = (int64_t)t->shard_begin > range[0] ? (int64_t)t->shard_begin : range[0];
    int64_t end = (int64_t)t->shard_end < range[1] ? (int64_t)t->shard_end : range[1];
    if (begin >= end) goto done;
    size_t bytes = (size_t)(end - begin) * sizeof(float), to = (size_t)(begin - (int64_t)t->shard_begin);
    MX_TRY_GOTO(st, move(t, (float *)t->m.base + to, (void *)((const float *)m->data + (begin - range[0])), bytes, true, err), done);
    st = move(t, (float *)t->v.base + to, (void *)((const float *)v->data + (begin - range[0])), bytes, true, err);
done:
    mx_checkpoint_close(c);
    return st;
}

/* ---- saving -------------------------------------------------------------------------------- */

/* Every process writes its part into the hidden folder that the first one made;
 * a failure anywhere is everybody's. */
mx_status mx_trainer_save(mx_trainer *t, mx_error *err)
{
    mx_snapshot snap = {0};
    bool first = mx_comm_rank(t->comm) == 0;
    mx_status st = MX_OK;
    if (t->saved_step == t->step || t->step == 0) return MX_OK;
    if (first) st = mx_snapshot_begin(&snap, t->run, t->step, err);
    else st = mx_snapshot_join(&snap, t->run, t->step, err);
    MX_TRY(mx_comm_agree(t->comm, st, err));
    st = write_moments(t, snap.folder, err);
    if (!st && first) st = write_state(t, snap.folder, err);
    if (!st && first) st = t->learner.save(t->learner.network, snap.folder, err);
    st = mx_comm_agree(t->comm, st, err);
    if (!st && first) st = mx_snapshot_commit(&snap, t->opt.keep, t->best_step, err);
    else if (first) mx_snapshot_abandon(&snap);
    MX_TRY(mx_comm_agree(t->comm, st, err));
    t->saved_step = t->step;
    return MX_OK;
}

/* ---- going on --------------------------------------------------------------------------------- */

static void refused(void *ctx, const char *why)
{
    (void)ctx;
    mx_log(MX_LOG_WARN, "train", "a checkpoint is passed over: %s", why);
}

/* Lines of steps that the checkpoint does not know are cut off: they come again. */
static mx_status trim_metrics(const mx_trainer *t, const char *path, mx_error *err)
{
    char *text = NULL;
    size_t len = 0, keep = 0;
    if (access(path, F_OK)) return MX_OK;
    MX_TRY(mx_read_file(path, (size_t)1 << 30, &text, &len, err));
    while (keep < len) {
        const char *end = memchr(text + keep, '\n', len - keep);
        if (!end) break;
        json_t *o = json_loadb(text + keep, (size_t)(end - text) - keep, 0, NULL);
        const json_t *step = json_object_get(o, "step");
        bool old = json_is_integer(step) && json_integer_value(step) <= t->step;
        json_decref(o);
        if (!old) break;
        keep = (size_t)(end - text) + 1;
    }
    free(text);
    return truncate(path, (off_t)keep) ? mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno)) : MX_OK;
}

static mx_status open_log(mx_trainer *t, mx_error *err)
{
    char path[MX_PATH];
    if (mx_comm_rank(t->comm) != 0) return MX_OK;
    MX_TRY(mx_path_join(path, t->run, METRICS, err));
    MX_TRY(trim_metrics(t, path, err));
    t->log = fopen(path, "ae");
    return t->log ? MX_OK : mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
}

static mx_status load(mx_trainer *t, const char *folder, mx_error *err)
{
    char path[MX_PATH], *text = NULL;
    size_t len = 0;
    int64_t processes = 0;
    json_error_t why;
    MX_TRY(mx_path_join(path, folder, STATE, err));
    MX_TRY(mx_read_file(path, (size_t)1 << 20, &text, &len, err));
    json_t *o = json_loadb(text, len, 0, &why);
    free(text);
    if (!o) return mx_fail(err, MX_ERR_FORMAT, "%s:%d: %s", path, why.line, why.text);
    mx_status st = take_state(t, o, path, &processes, err);
    json_decref(o);
    MX_TRY(st);
    for (int64_t i = 0; i < processes; i++) {
        MX_TRY(moments_path(path, folder, i, processes, err));
        MX_TRY(read_part(t, path, err));
    }
    MX_TRY(t->learner.load(t->learner.network, folder, err));
    t->saved_step = t->step;
    t->plan.resumed_from = t->step;
    snprintf(t->plan.folder, sizeof t->plan.folder, "%s", folder);
    return MX_OK;
}

mx_status mx_trainer_restore_best(mx_trainer *t, char folder[MX_PATH], mx_error *err)
{
    char name[64];
    snprintf(name, sizeof name, "checkpoint-%08lld", (long long)t->best_step);
    if (t->best_step < 0) return mx_fail(err, MX_ERR_STATE, "%s: no evaluation is the best one", t->run);
    MX_TRY(mx_path_join(folder, t->run, name, err));
    if (t->best_step == t->step) return MX_OK;
    if (access(folder, F_OK)) return mx_fail(err, MX_ERR_STATE, "%s: the best evaluation's checkpoint is not there", folder);
    MX_TRY(mx_snapshot_check(folder, err));
    return t->learner.load(t->learner.network, folder, err);
}

mx_status mx_trainer_resume(mx_trainer *t, mx_error *err)
{
    char folder[MX_PATH] = "";
    int64_t step = -1;
    bool first = mx_comm_rank(t->comm) == 0;
    mx_status st = MX_OK;
    if (first && t->opt.restart) st = mx_snapshot_clear(t->run, err);
    if (!st && first) st = mx_snapshot_prepare(t->run, err);
    if (!st && first && mx_snapshot_latest(t->run, folder, &step, refused, NULL, err) == MX_ERR_IO) st = MX_ERR_IO;
    MX_TRY(mx_comm_agree(t->comm, st, err));
    MX_TRY(mx_comm_broadcast(t->comm, folder, sizeof folder, 0, err));
    MX_TRY(mx_comm_broadcast(t->comm, &step, sizeof step, 0, err));
    if (step >= 0) st = load(t, folder, err);
    if (!st) st = open_log(t, err);
    return mx_comm_agree(t->comm, st, err);
}

void mx_trainer_log(mx_trainer *t, const mx_train_report *r)
{
    if (!t->log) return;
    fprintf(t->log, "{\"step\": %lld, \"epoch\": %.4f, \"tokens\": %lld, \"loss\": %.9g, \"lr\": %.9g, \"grad_norm\": %.9g, "
            "\"tokens_per_s\": %.1f, \"seconds\": %.4f, \"memory\": %zu", (long long)r->step, r->epoch, (long long)r->tokens, r->loss,
            r->lr, r->grad_norm, r->tokens_per_s, r->seconds, r->memory);
    if (r->evaluated)
        fprintf(t->log, ", \"eval_loss\": %.9g, \"%s\": %.9g", r->eval_loss, t->learner.metric ? t->learner.metric : "perplexity", r->eval_extra);
    fputs("}\n", t->log);
    fflush(t->log);
}
