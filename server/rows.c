/* rows.c - reading, appending, and going on where a run was broken off. */
#include "server/rows.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK       ((size_t)1 << 16)
#define WRITTEN_MOST ((size_t)1 << 30)     /* bytes of an output row: logprobs of a long text */
#define RUN_VERSION 1

typedef struct reader {
    const char *name;
    int      fd;
    char    *data;
    size_t   begin, end, room, most;
    uint64_t offset;                       /* in the file, of data[begin] */
    uint64_t lines, hash;                  /* hash: FNV-1a, 64 bits, of all bytes read */
    bool     eof;
} reader;

typedef struct line {
    const char *text;
    size_t len;
    bool   any, ended, too_long;           /* ended: by a newline */
} line;

struct mx_rows {
    char    *input, *output, *run;         /* run: the path of OUTPUT.run */
    reader   in;
    int      out;
    uint64_t size;                         /* of the output: whole rows only */
    uint64_t total, done, failed, in_bytes, in_hash;
    bool     regular, resumable;           /* regular: the output is a file */
};

/* ---- lines ------------------------------------------------------------------------------- */

static mx_status fail_io(const char *name, mx_error *err)
{
    return mx_fail(err, MX_ERR_IO, "%s: %s", name, strerror(errno));
}

static mx_status reader_open(reader *r, int fd, const char *name, size_t most, mx_error *err)
{
    *r = (reader){.name = name, .fd = fd, .room = CHUNK, .most = most, .hash = 0xcbf29ce484222325u};
    r->data = malloc(r->room);
    return r->data ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", name);
}

static void reader_close(reader *r)
{
    free(r->data);
    r->data = NULL;
}

static mx_status fill(reader *r, mx_error *err)
{
    if (r->begin) memmove(r->data, r->data + r->begin, r->end - r->begin);
    r->end -= r->begin;
    r->begin = 0;
    if (r->end == r->room) {
        char *more = realloc(r->data, r->room * 2);
        if (!more) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: a row of more than %zu bytes", r->name, r->room);
        r->data = more;
        r->room *= 2;
    }
    ssize_t n;
    do n = read(r->fd, r->data + r->end, r->room - r->end);
    while (n < 0 && errno == EINTR);
    if (n < 0) return fail_io(r->name, err);
    for (ssize_t i = 0; i < n; i++) r->hash = (r->hash ^ (uint8_t)r->data[r->end + (size_t)i]) * 0x100000001b3u;
    r->end += (size_t)n;
    r->eof = n == 0;
    return MX_OK;
}

static mx_status read_line(reader *r, line *out, mx_error *err)
{
    size_t scanned = 0;
    *out = (line){0};
    for (;;) {
        const char *at = r->data + r->begin, *nl = memchr(at + scanned, '\n', r->end - r->begin - scanned);
        scanned = nl ? (size_t)(nl - at) : r->end - r->begin;
        if (nl || r->eof) {
            out->any = nl || scanned || out->too_long;
            out->ended = nl != NULL;
            out->text = at;
            out->len = out->too_long ? 0 : scanned;
            r->begin += scanned + out->ended;
            r->offset += scanned + out->ended;
            r->lines += out->any;
            return MX_OK;
        }
        if (scanned >= r->most) {                    /* forget what is too long, up to its newline */
            out->too_long = true;
            r->offset += scanned;
            r->begin = r->end = scanned = 0;
        }
        MX_TRY(fill(r, err));
    }
}

static bool is_blank(const line *l)
{
    size_t i = 0;
    while (i < l->len && strchr(" \t\r", l->text[i]) && l->text[i]) i++;
    return i == l->len && !l->too_long;
}

mx_status mx_rows_next(mx_rows *r, mx_row *row, bool *more, mx_error *err)
{
    line l;
    do {
        MX_TRY(read_line(&r->in, &l, err));
        if (r->in.lines == 1 && l.len >= 3 && !memcmp(l.text, "\xef\xbb\xbf", 3)) {      /* a byte order mark */
            l.text += 3;
            l.len -= 3;
        }
    } while (l.any && is_blank(&l));
    *more = l.any;
    *row = (mx_row){.text = l.text, .len = l.len, .number = r->in.lines, .too_long = l.too_long};
    return MX_OK;
}

json_t *mx_row_id(const json_t *row, uint64_t number)
{
    json_t *id = json_object_get(row, "id");
    if (json_is_string(id) || json_is_integer(id)) return json_incref(id);
    return json_integer((json_int_t)number);
}

/* ---- the input's hash ------------------------------------------------------------------------ */

static mx_status rewind_input(mx_rows *r, mx_error *err)
{
    int fd = r->in.fd;
    reader_close(&r->in);
    if (lseek(fd, 0, SEEK_SET) < 0) return fail_io(r->input, err);
    return reader_open(&r->in, fd, r->input, MX_ROW_MOST, err);
}

static mx_status measure_input(mx_rows *r, mx_error *err)
{
    mx_row row;
    bool more = true;
    while (more) {
        MX_TRY(mx_rows_next(r, &row, &more, err));
        r->total += more;
    }
    r->in_bytes = r->in.offset;
    r->in_hash = r->in.hash;
    return rewind_input(r, err);
}

/* ---- OUTPUT.run ---------------------------------------------------------------------------------- */

static json_t *run_json(const mx_rows *r, json_t *settings)
{
    char hash[20];
    snprintf(hash, sizeof hash, "%016" PRIx64, r->in_hash);
    return json_pack("{s:i, s:s, s:I, s:I, s:s, s:O}", "merx_run", RUN_VERSION, "input", r->input, "bytes",
                     (json_int_t)r->in_bytes, "rows", (json_int_t)r->total, "hash", hash, "settings", settings);
}

/* Whole or not at all: written beside, made durable, renamed. */
static mx_status write_run(const mx_rows *r, json_t *settings, mx_error *err)
{
    char *part = NULL;
    mx_status st = MX_OK;
    json_t *j = run_json(r, settings);
    char *text = j ? json_dumps(j, JSON_INDENT(1)) : NULL;
    int fd = -1;
    if (!text || asprintf(&part, "%s.part", r->run) < 0) {
        part = NULL;
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", r->run);
        goto out;
    }
    size_t len = strlen(text);
    fd = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, text, len) != (ssize_t)len || fsync(fd) || rename(part, r->run)) {
        st = fail_io(part, err);
        if (fd >= 0) unlink(part);
    }
out:
    if (fd >= 0) close(fd);
    json_decref(j);
    free(text);
    free(part);
    return st;
}

static mx_status differs(const mx_rows *r, const char *name, const json_t *was, const json_t *is, mx_error *err)
{
    char *a = was ? json_dumps(was, JSON_ENCODE_ANY | JSON_COMPACT) : NULL, *b = is ? json_dumps(is, JSON_ENCODE_ANY | JSON_COMPACT) : NULL;
    mx_fail(err, MX_ERR_STATE, "%s was begun with %s = %.80s, not %.80s; give that again, another --output, or --overwrite", r->output,
            name, a ? a : "unset", b ? b : "unset");
    free(a);
    free(b);
    return MX_ERR_STATE;
}

static mx_status check_run(const mx_rows *r, json_t *settings, mx_error *err)
{
    json_error_t bad;
    json_t *was = json_load_file(r->run, 0, &bad), *is = run_json(r, settings), *before = json_object_get(was, "settings"), *v;
    const char *key;
    mx_status st = MX_OK;
    if (!was || json_integer_value(json_object_get(was, "merx_run")) != RUN_VERSION || !json_is_object(before)) {
        st = mx_fail(err, MX_ERR_STATE, "%s has rows, and no %s that says what made them; give another --output, or --overwrite", r->output, r->run);
    } else if (!is) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", r->run);
    } else if (!json_equal(json_object_get(was, "hash"), json_object_get(is, "hash")) ||
               !json_equal(json_object_get(was, "bytes"), json_object_get(is, "bytes"))) {
        st = mx_fail(err, MX_ERR_STATE, "%s has changed since %s was begun: %lld rows in %lld bytes then, %lld in %lld now (or other bytes); "
                     "give another --output, or --overwrite", r->input, r->output,
                     (long long)json_integer_value(json_object_get(was, "rows")), (long long)json_integer_value(json_object_get(was, "bytes")),
                     (long long)r->total, (long long)r->in_bytes);
    }
    if (!st) json_object_foreach(settings, key, v)
        if (!st && !json_equal(v, json_object_get(before, key))) st = differs(r, key, json_object_get(before, key), v, err);
    if (!st) json_object_foreach(before, key, v)
        if (!st && !json_object_get(settings, key)) st = differs(r, key, v, NULL, err);
    json_decref(was);
    json_decref(is);
    return st;
}

/* ---- going on ------------------------------------------------------------------------------------- */

/* Is the written row the answer to the input's next one? */
static mx_status match(mx_rows *r, const line *written, uint64_t number, mx_error *err)
{
    mx_row row;
    bool more;
    json_error_t bad;
    MX_TRY(mx_rows_next(r, &row, &more, err));
    if (!more) return mx_fail(err, MX_ERR_STATE, "%s:%" PRIu64 ": a row more than %s has", r->output, number, r->input);
    json_t *in = json_loadb(row.text, row.len, JSON_REJECT_DUPLICATES, &bad), *out = json_loadb(written->text, written->len, 0, &bad);
    json_t *id = mx_row_id(in, row.number), *got = json_object_get(out, "id");
    mx_status st = MX_OK;
    if (!got || !id || !json_equal(id, got))
        st = mx_fail(err, MX_ERR_STATE, "%s:%" PRIu64 ": not the answer to %s:%" PRIu64 " (another id, or not a row); give another --output, or --overwrite",
                     r->output, number, r->input, row.number);
    r->failed += json_object_get(out, "error") != NULL;
    json_decref(id);
    json_decref(in);
    json_decref(out);
    return st;
}

static mx_status skip_written(mx_rows *r, mx_error *err)
{
    reader back;
    line l;
    mx_status st = reader_open(&back, r->out, r->output, WRITTEN_MOST, err);
    if (!st && lseek(r->out, 0, SEEK_SET) < 0) st = fail_io(r->output, err);
    while (!st) {
        st = read_line(&back, &l, err);
        if (st || !l.any || !l.ended) break;
        st = match(r, &l, back.lines, err);
        if (st) break;
        r->size = back.offset;
        r->done++;
    }
    if (!st && ftruncate(r->out, (off_t)r->size)) st = fail_io(r->output, err);     /* a torn last row */
    reader_close(&back);
    return st;
}

/* Any newline in the first rows?  A file without one has no row to lose. */
static bool has_rows(mx_rows *r)
{
    struct stat s;
    return !fstat(r->out, &s) && s.st_size > 0;
}

static mx_status continue_output(mx_rows *r, bool overwrite, json_t *settings, mx_error *err)
{
    if (flock(r->out, LOCK_EX | LOCK_NB)) {
        if (errno == EWOULDBLOCK) return mx_fail(err, MX_ERR_STATE, "%s: another process is writing it", r->output);
        return fail_io(r->output, err);
    }
    if (overwrite && ftruncate(r->out, 0)) return fail_io(r->output, err);
    bool rows = has_rows(r);
    if (rows && !r->resumable)
        return mx_fail(err, MX_ERR_STATE, "%s has rows, and a run whose input is no file cannot go on; give another --output, or --overwrite", r->output);
    if (!rows) return r->resumable ? write_run(r, settings, err) : MX_OK;
    MX_TRY(check_run(r, settings, err));
    return skip_written(r, err);
}

/* ---- open, write, close ----------------------------------------------------------------------------- */

static mx_status open_files(mx_rows *r, bool overwrite, json_t *settings, mx_error *err)
{
    struct stat in, out;
    bool std_in = !strcmp(r->input, "-"), std_out = !strcmp(r->output, "-");
    int fd = std_in ? dup(STDIN_FILENO) : open(r->input, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return fail_io(r->input, err);
    r->in.fd = fd;
    if (fstat(fd, &in)) return fail_io(r->input, err);
    if (S_ISDIR(in.st_mode)) return mx_fail(err, MX_ERR_IO, "%s: is a folder", r->input);
    r->out = std_out ? dup(STDOUT_FILENO) : open(r->output, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (r->out < 0 || fstat(r->out, &out)) return fail_io(r->output, err);
    r->regular = S_ISREG(out.st_mode) && !std_out;
    if (r->regular && in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return mx_fail(err, MX_ERR_ARG, "--output and --input are one file: %s", r->input);
    r->resumable = r->regular && S_ISREG(in.st_mode) && !std_in;
    MX_TRY(reader_open(&r->in, fd, r->input, MX_ROW_MOST, err));
    if (S_ISREG(in.st_mode) && !std_in) MX_TRY(measure_input(r, err));
    return r->regular ? continue_output(r, overwrite, settings, err) : MX_OK;
}

mx_status mx_rows_open(mx_rows **out, const char *input, const char *output, bool overwrite, json_t *settings,
                       mx_error *err)
{
    *out = NULL;
    mx_rows *r = calloc(1, sizeof *r);
    if (!r) return mx_fail(err, MX_ERR_NO_MEMORY, "rows: out of memory");
    r->in.fd = r->out = -1;
    r->input = strdup(input);
    r->output = strdup(output);
    if (asprintf(&r->run, "%s.run", output) < 0) r->run = NULL;
    mx_status st = r->input && r->output && r->run ? open_files(r, overwrite, settings, err)
                                                   : mx_fail(err, MX_ERR_NO_MEMORY, "rows: out of memory");
    if (st) {
        mx_rows_close(r, NULL);
        return st;
    }
    *out = r;
    return MX_OK;
}

mx_status mx_rows_write(mx_rows *r, const char *text, size_t len, bool failed, mx_error *err)
{
    char *row = malloc(len + 1);
    if (!row) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: a row of %zu bytes", r->output, len);
    memcpy(row, text, len);
    row[len] = '\n';
    for (size_t at = 0; at < len + 1;) {
        ssize_t n = write(r->out, row + at, len + 1 - at);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) {
            fail_io(r->output, err);
            if (r->regular && at && ftruncate(r->out, (off_t)r->size)) {}    /* else the next start cuts it */
            free(row);
            return MX_ERR_IO;
        }
        at += (size_t)n;
    }
    free(row);
    r->size += len + 1;
    r->done++;
    r->failed += failed;
    return MX_OK;
}

mx_status mx_rows_close(mx_rows *r, mx_error *err)
{
    mx_status st = MX_OK;
    if (!r) return MX_OK;
    if (r->out >= 0 && r->regular && fsync(r->out)) st = fail_io(r->output, err);
    if (r->out >= 0 && close(r->out) && !st) st = fail_io(r->output, err);
    if (r->in.fd >= 0) close(r->in.fd);
    reader_close(&r->in);
    free(r->input);
    free(r->output);
    free(r->run);
    free(r);
    return st;
}

uint64_t mx_rows_total(const mx_rows *r) { return r->total; }
uint64_t mx_rows_done(const mx_rows *r) { return r->done; }
uint64_t mx_rows_failed(const mx_rows *r) { return r->failed; }
bool     mx_rows_resumable(const mx_rows *r) { return r->resumable; }
