/* snapshot.c - writing, checking and finding checkpoints of a run. */
#include "models/snapshot.h"
#include "models/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/evp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUMS "SHA256SUMS"
#define PREFIX "checkpoint-"
#define HIDDEN ".writing-"
#define FILES_MOST 256
#define SUM_BYTES 32

static mx_status io_error(mx_error *err, const char *path, const char *what)
{
    return mx_fail(err, MX_ERR_IO, "%s: %s: %s", path, what, strerror(errno));
}

mx_status mx_path_join(char to[MX_PATH], const char *folder, const char *name, mx_error *err)
{
    int n = snprintf(to, MX_PATH, "%s/%s", folder, name);
    if (n < 0 || n >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "%.100s...: the path is longer than %d bytes", folder, MX_PATH - 1);
    return MX_OK;
}

/* ---- files ------------------------------------------------------------------------- */

static mx_status sync_path(const char *path, bool folder, mx_error *err)
{
    int fd = open(path, folder ? O_RDONLY | O_DIRECTORY : O_RDONLY);
    bool bad = fd < 0 || fsync(fd);
    mx_status st = bad ? io_error(err, path, "cannot be synced") : MX_OK;
    if (fd >= 0) close(fd);
    return st;
}

mx_status mx_write_file(const char *path, const char *text, size_t len, mx_error *err)
{
    FILE *f = fopen(path, "wb");
    bool ok = f && fwrite(text, 1, len, f) == len && !fflush(f) && !fsync(fileno(f));
    mx_status st = ok ? MX_OK : io_error(err, path, "cannot be written");
    if (f && fclose(f) && ok) st = io_error(err, path, "cannot be written");
    return st;
}

mx_status mx_copy_file(const char *from, const char *to, mx_error *err)
{
    char *text = NULL;
    size_t len = 0;
    MX_TRY(mx_read_file(from, (size_t)256 << 20, &text, &len, err));
    mx_status st = mx_write_file(to, text, len, err);
    free(text);
    return st;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(a, b);
}

/* The names of a folder's plain files, but for the list of sums; sorted. */
static mx_status list(const char *folder, char names[FILES_MOST][256], int *n, mx_error *err)
{
    DIR *d = opendir(folder);
    if (!d) return io_error(err, folder, "cannot be read");
    mx_status st = MX_OK;
    *n = 0;
    for (const struct dirent *e; !st && (e = readdir(d));) {
        if (e->d_name[0] == '.' || !strcmp(e->d_name, SUMS)) continue;
        if (*n == FILES_MOST) st = mx_fail(err, MX_ERR_IO, "%s: more than %d files", folder, FILES_MOST);
        else memcpy(names[(*n)++], e->d_name, strlen(e->d_name) + 1);
    }
    closedir(d);
    if (!st) qsort(names, (size_t)*n, 256, by_name);
    return st;
}

static mx_status remove_folder(const char *folder, mx_error *err)
{
    DIR *d = opendir(folder);
    if (!d) return errno == ENOENT ? MX_OK : io_error(err, folder, "cannot be read");
    char path[MX_PATH];
    mx_status st = MX_OK;
    for (const struct dirent *e; !st && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        st = mx_path_join(path, folder, e->d_name, err);
        if (!st && unlink(path)) st = io_error(err, path, "cannot be removed");
    }
    closedir(d);
    if (!st && rmdir(folder)) st = io_error(err, folder, "cannot be removed");
    return st;
}

/* ---- sums --------------------------------------------------------------------------- */

static mx_status sum_file(const char *path, char hex[2 * SUM_BYTES + 1], mx_error *err)
{
    enum { STEP = 1 << 20 };
    unsigned char sum[EVP_MAX_MD_SIZE];
    unsigned int len = 0;
    mx_status st = MX_OK;
    FILE *f = fopen(path, "rb");
    EVP_MD_CTX *c = EVP_MD_CTX_new();
    char *stage = malloc(STEP);
    if (!f) st = io_error(err, path, "cannot be read");
    else if (!c || !stage || !EVP_DigestInit_ex(c, EVP_sha256(), NULL)) st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: its sum", path);
    for (size_t n; !st && (n = fread(stage, 1, STEP, f)) > 0;)
        if (!EVP_DigestUpdate(c, stage, n)) st = mx_fail(err, MX_ERR_INTERNAL, "%s: its sum", path);
    if (!st && ferror(f)) st = io_error(err, path, "cannot be read");
    if (!st && !EVP_DigestFinal_ex(c, sum, &len)) st = mx_fail(err, MX_ERR_INTERNAL, "%s: its sum", path);
    for (unsigned i = 0; !st && i < SUM_BYTES; i++) snprintf(hex + 2 * i, 3, "%02x", sum[i]);
    free(stage);
    EVP_MD_CTX_free(c);
    if (f) fclose(f);
    return st;
}

static mx_status write_sums(const char *folder, mx_error *err)
{
    static const size_t line = 2 * SUM_BYTES + 2 + 256;
    char path[MX_PATH], hex[2 * SUM_BYTES + 1], (*names)[256] = malloc(FILES_MOST * sizeof *names);
    char *text = malloc(FILES_MOST * line);
    size_t len = 0;
    int n = 0;
    mx_status st = names && text ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%s: its sums", folder);
    if (!st) st = list(folder, names, &n, err);
    for (int i = 0; !st && i < n; i++) {
        MX_TRY_GOTO(st, mx_path_join(path, folder, names[i], err), done);
        MX_TRY_GOTO(st, sync_path(path, false, err), done);
        MX_TRY_GOTO(st, sum_file(path, hex, err), done);
        len += (size_t)snprintf(text + len, line, "%s  %s\n", hex, names[i]);
    }
    if (!st) st = mx_path_join(path, folder, SUMS, err);
    if (!st) st = mx_write_file(path, text, len, err);
done:
    free(text);
    free(names);
    return st;
}

mx_status mx_snapshot_check(const char *folder, mx_error *err)
{
    char path[MX_PATH], hex[2 * SUM_BYTES + 1], *text = NULL;
    size_t len = 0;
    MX_TRY(mx_path_join(path, folder, SUMS, err));
    if (mx_read_file(path, (size_t)1 << 20, &text, &len, err)) return mx_fail(err, MX_ERR_FORMAT, "%s: has no list of sums", folder);
    mx_status st = len ? MX_OK : mx_fail(err, MX_ERR_FORMAT, "%s is empty", path);
    for (char *at = text; !st && *at;) {
        char *end = strchr(at, '\n');
        if (!end || end - at < 2 * SUM_BYTES + 3) {
            st = mx_fail(err, MX_ERR_FORMAT, "%s is torn", path);
            break;
        }
        *end = 0;
        const char *name = at + 2 * SUM_BYTES + 2;
        if (strchr(name, '/')) st = mx_fail(err, MX_ERR_FORMAT, "%s names %s, which is no file of it", path, name);
        char file[MX_PATH];
        if (!st) st = mx_path_join(file, folder, name, err);
        if (!st && sum_file(file, hex, err)) st = mx_fail(err, MX_ERR_FORMAT, "%s is missing", file);
        else if (!st && strncmp(hex, at, 2 * SUM_BYTES)) st = mx_fail(err, MX_ERR_FORMAT, "%s is not what was written: its SHA-256 differs", file);
        at = end + 1;
    }
    free(text);
    return st;
}

/* ---- checkpoints ------------------------------------------------------------------------ */

static mx_status make_folders(const char *path, mx_error *err)
{
    char part[MX_PATH];
    size_t n = strlen(path);
    if (n >= MX_PATH) return mx_fail(err, MX_ERR_ARG, "%.100s...: the path is longer than %d bytes", path, MX_PATH - 1);
    for (size_t i = 1; i <= n; i++) {
        if (path[i] != '/' && path[i]) continue;
        memcpy(part, path, i);
        part[i] = 0;
        if (mkdir(part, 0777) && errno != EEXIST) return io_error(err, part, "cannot be made");
    }
    return MX_OK;
}

mx_status mx_snapshot_join(mx_snapshot *s, const char *run, int64_t step, mx_error *err)
{
    char name[64];
    *s = (mx_snapshot){.step = step};
    snprintf(s->run, sizeof s->run, "%s", run);
    snprintf(name, sizeof name, HIDDEN "%08lld", (long long)step);
    return mx_path_join(s->folder, run, name, err);
}

mx_status mx_snapshot_begin(mx_snapshot *s, const char *run, int64_t step, mx_error *err)
{
    MX_TRY(make_folders(run, err));
    MX_TRY(mx_snapshot_join(s, run, step, err));
    MX_TRY(remove_folder(s->folder, err));
    return mkdir(s->folder, 0777) ? io_error(err, s->folder, "cannot be made") : MX_OK;
}

mx_status mx_snapshot_prepare(const char *run, mx_error *err)
{
    MX_TRY(make_folders(run, err));
    return access(run, W_OK | X_OK) ? io_error(err, run, "cannot be written") : MX_OK;
}

void mx_snapshot_abandon(mx_snapshot *s)
{
    if (s->folder[0]) remove_folder(s->folder, NULL);
    *s = (mx_snapshot){0};
}

static int falling(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x < y) - (x > y);
}

/* Steps of the checkpoints of a run, newest first; malloc'ed. */
static mx_status steps(const char *run, int64_t **out, int *n, bool clean, mx_error *err)
{
    DIR *d = opendir(run);
    if (!d) return errno == ENOENT ? mx_fail(err, MX_ERR_NOT_FOUND, "%s: there is no such folder", run) : io_error(err, run, "cannot be read");
    mx_status st = MX_OK;
    int room = 0;
    *out = NULL;
    *n = 0;
    for (const struct dirent *e; !st && (e = readdir(d));) {
        char path[MX_PATH], *end;
        if (clean && !strncmp(e->d_name, HIDDEN, strlen(HIDDEN))) {
            st = mx_path_join(path, run, e->d_name, err);
            if (!st) remove_folder(path, NULL);
            continue;
        }
        if (strncmp(e->d_name, PREFIX, strlen(PREFIX))) continue;
        long long step = strtoll(e->d_name + strlen(PREFIX), &end, 10);
        if (*end || step < 0) continue;
        if (*n == room) {
            int64_t *grown = realloc(*out, (size_t)(room = 2 * room + 16) * sizeof *grown);
            if (!grown) st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: its list", run);
            else *out = grown;
        }
        if (!st) (*out)[(*n)++] = step;
    }
    closedir(d);
    if (!st && *n) qsort(*out, (size_t)*n, sizeof **out, falling);
    if (st) {
        free(*out);
        *out = NULL;
    }
    return st;
}

static mx_status step_folder(char to[MX_PATH], const char *run, int64_t step, mx_error *err)
{
    char name[64];
    snprintf(name, sizeof name, PREFIX "%08lld", (long long)step);
    return mx_path_join(to, run, name, err);
}

/* An old checkpoint is renamed before it is taken apart: half of one is never seen. */
static mx_status drop(const char *run, int64_t step, mx_error *err)
{
    char path[MX_PATH], hidden[MX_PATH], name[64];
    snprintf(name, sizeof name, HIDDEN "old-%08lld", (long long)step);
    MX_TRY(step_folder(path, run, step, err));
    MX_TRY(mx_path_join(hidden, run, name, err));
    MX_TRY(remove_folder(hidden, err));
    if (rename(path, hidden)) return errno == ENOENT ? MX_OK : io_error(err, path, "cannot be renamed");
    return remove_folder(hidden, err);
}

mx_status mx_snapshot_clear(const char *run, mx_error *err)
{
    int64_t *all = NULL;
    int n = 0;
    mx_status st = steps(run, &all, &n, true, err);
    if (st == MX_ERR_NOT_FOUND) return MX_OK;
    for (int i = 0; !st && i < n; i++) st = drop(run, all[i], err);
    free(all);
    return st;
}

mx_status mx_snapshot_commit(mx_snapshot *s, int keep, int64_t spare, mx_error *err)
{
    char path[MX_PATH];
    int64_t *all = NULL;
    int n = 0;
    mx_status st;
    MX_TRY_GOTO(st, write_sums(s->folder, err), fail);
    MX_TRY_GOTO(st, sync_path(s->folder, true, err), fail);
    MX_TRY_GOTO(st, step_folder(path, s->run, s->step, err), fail);
    MX_TRY_GOTO(st, drop(s->run, s->step, err), fail);
    if (rename(s->folder, path)) {
        st = io_error(err, path, "cannot be put in place");
        goto fail;
    }
    s->folder[0] = 0;
    MX_TRY(sync_path(s->run, true, err));
    if (!keep) return MX_OK;
    MX_TRY(steps(s->run, &all, &n, false, err));
    for (int i = keep; !st && i < n; i++)
        if (all[i] != spare) st = drop(s->run, all[i], err);
    free(all);
    return st;
fail:
    mx_snapshot_abandon(s);
    return st;
}

mx_status mx_snapshot_latest(const char *run, char folder[MX_PATH], int64_t *step,
                             void (*refused)(void *ctx, const char *why), void *ctx, mx_error *err)
{
    int64_t *all = NULL;
    int n = 0;
    MX_TRY(steps(run, &all, &n, true, err));
    mx_status st = mx_fail(err, MX_ERR_NOT_FOUND, "%s: holds no checkpoint", run);
    for (int i = 0; i < n; i++) {
        mx_error why = {0};
        if (step_folder(folder, run, all[i], err)) break;
        if (!mx_snapshot_check(folder, &why)) {
            *step = all[i];
            st = MX_OK;
            break;
        }
        if (refused) refused(ctx, why.text);
        mx_fail(err, MX_ERR_NOT_FOUND, "%s: holds no whole checkpoint: %.300s", run, why.text);
    }
    free(all);
    return st;
}
