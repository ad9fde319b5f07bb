/* tokenizer_split.c - cutting text into words: PCRE2 patterns and the named presets. */
#include "models/tokenizer_internal.h"

#include "runtime/slab.h"

#include <stdlib.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* Bounds on one match: patterns come from model files, and one that backtracks
 * without end must fail, not hang.  Backtracking over a run of white space costs
 * one step a character, so long runs still pass. */
enum { MOST_STEPS = 50 * 1000 * 1000, MOST_DEPTH = 1000 * 1000, MOST_HEAP_KIB = 256 * 1024 };

/* ---- patterns ---- */

/* Unicode White_Space, as Oniguruma and Rust read \s.  PCRE2's own \s also takes U+180E. */
#define SPACES "\\x{9}-\\x{d}\\x{20}\\x{85}\\x{a0}\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}\\x{3000}"

typedef struct grown { char *s; size_t n, room; } grown;

static mx_status put(grown *t, const char *s, size_t n)
{
    if (n > t->room - t->n) {
        size_t room = (t->n + n) * 2 + 64;
        char *p = realloc(t->s, room);
        if (!p) return MX_ERR_NO_MEMORY;
        t->s = p;
        t->room = room;
    }
    memcpy(t->s + t->n, s, n);
    t->n += n;
    return MX_OK;
}

/* A pattern written for Oniguruma, as PCRE2 must read it.  Within the patterns of tokenizers they agree but for \s
 * (above), and for set operations inside [...], which PCRE2 10.42 would take as plain characters: refused. */
static mx_status translate(const char *p, size_t n, grown *out, const char *what, mx_error *err)
{
    size_t class_at = 0;               /* where the open [ stands, + 1 */
    for (size_t i = 0; i < n; i++) {
        const char *piece = p + i;
        size_t len = 1;
        if (p[i] == '\\' && i + 1 < n) {
            len = 2;
            if (p[i + 1] == 's') {
                piece = class_at ? SPACES : "[" SPACES "]";
                len = strlen(piece);
            } else if (p[i + 1] == 'S' && !class_at) {
                piece = "[^" SPACES "]";
                len = strlen(piece);
            }
            i++;
        } else if (class_at) {
            bool first = i == class_at || (i == class_at + 1 && p[class_at] == '^');
            if (p[i] == '[' && i + 1 < n && p[i + 1] == ':') {
                while (i + 1 < n && !(p[i] == ':' && p[i + 1] == ']' && p + i > piece + 1)) i++;
                i = i + 1 < n ? i + 1 : n - 1;
                len = (size_t)(p + i + 1 - piece);
            } else if (p[i] == '[' || (p[i] == '&' && i + 1 < n && p[i + 1] == '&')) {
                return mx_fail(err, MX_ERR_ARG, "%s: set operations in the pattern \"%.*s\" are not supported", what,
                               (int)(n > 100 ? 100 : n), p);
            } else if (p[i] == ']' && !first) {
                class_at = 0;
            }
        } else if (p[i] == '[') {
            class_at = i + 1;
        }
        if (put(out, piece, len)) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for a pattern", what);
    }
    return MX_OK;
}

static mx_status open_limits(mx_tokenizer *t, const char *what, mx_error *err)
{
    if (t->match_limits) return MX_OK;
    pcre2_match_context *c = pcre2_match_context_create(NULL);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for a pattern", what);
    pcre2_set_match_limit(c, MOST_STEPS);
    pcre2_set_depth_limit(c, MOST_DEPTH);
    pcre2_set_heap_limit(c, MOST_HEAP_KIB);
    t->match_limits = c;
    return MX_OK;
}

void mx_split_free_limits(mx_tokenizer *t)
{
    pcre2_match_context_free(t->match_limits);
    t->match_limits = NULL;
}

void mx_split_free(mx_split *s)
{
    pcre2_code_free(s->code);
    s->code = NULL;
}

mx_status mx_split_add(mx_tokenizer *t, const mx_split *s, const char *what, mx_error *err)
{
    if (t->n_splits == MX_TOKENIZER_MOST_SPLITS)
        return mx_fail(err, MX_ERR_FORMAT, "%s: more than %d stages", what, MX_TOKENIZER_MOST_SPLITS);
    t->split[t->n_splits++] = *s;
    return MX_OK;
}

mx_status mx_split_add_pattern(mx_tokenizer *t, const char *pattern, size_t n, bool literal, mx_split_how how,
                               bool invert, const char *what, mx_error *err)
{
    enum { MOST_PATTERN = 64 * 1024 };
    grown own = {0};
    mx_split s = {.kind = MX_SPLIT_PATTERN, .how = how, .invert = invert};
    int code;
    PCRE2_SIZE at;
    mx_status st;
    if (n > MOST_PATTERN) return mx_fail(err, MX_ERR_FORMAT, "%s: a pattern of %zu bytes", what, n);
    if (!mx_utf8_valid(pattern, n, NULL)) return mx_fail(err, MX_ERR_FORMAT, "%s: the pattern is not UTF-8", what);
    MX_TRY_GOTO(st, open_limits(t, what, err), done);
    if (literal) st = put(&own, pattern, n) ? mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory", what) : MX_OK;
    else st = translate(pattern, n, &own, what, err);
    if (st) goto done;
    uint32_t flags = PCRE2_UTF | PCRE2_NO_UTF_CHECK | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C);
    s.code = pcre2_compile((PCRE2_SPTR)own.s, own.n, flags, &code, &at, NULL);
    if (!s.code) {
        PCRE2_UCHAR why[120] = "";
        pcre2_get_error_message(code, why, sizeof why);
        st = mx_fail(err, MX_ERR_FORMAT, "%s: the pattern \"%.*s\" does not compile: %s", what,
                     (int)(n > 100 ? 100 : n), pattern, (char *)why);
        goto done;
    }
    s.jit = !pcre2_jit_compile(s.code, PCRE2_JIT_COMPLETE);
    st = mx_split_add(t, &s, what, err);
    if (st) mx_split_free(&s);
done:
    free(own.s);
    return st;
}

/* ---- cutting ---- */

static void *slab_take(PCRE2_SIZE n, void *none)
{
    (void)none;
    return mx_slab_alloc(n);
}

static void slab_give(void *p, void *none)
{
    (void)none;
    mx_slab_free(p);
}

mx_status mx_split_run_open(mx_split_run *r)
{
    pcre2_general_context *slabs = pcre2_general_context_create(slab_take, slab_give, NULL);
    r->match = slabs ? pcre2_match_data_create(1, slabs) : NULL;
    pcre2_general_context_free(slabs);       /* the match data keeps what it needs of it */
    return r->match ? MX_OK : MX_ERR_NO_MEMORY;
}

void mx_split_run_close(mx_split_run *r)
{
    pcre2_match_data_free(r->match);
    r->match = NULL;
}

/* 1: found at *begin..*end; 0: no more; below 0: PCRE2's error. */
static int find(const mx_tokenizer *t, const mx_split *s, mx_split_run *r, const char *text, size_t n, size_t from,
                size_t *begin, size_t *end)
{
    int rc;
    if (s->jit) {
        rc = pcre2_jit_match(s->code, (PCRE2_SPTR)text, n, from, 0, r->match, t->match_limits);
        if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
            rc = pcre2_match(s->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, r->match,
                             t->match_limits);
    } else {
        rc = pcre2_match(s->code, (PCRE2_SPTR)text, n, from, PCRE2_NO_UTF_CHECK, r->match, t->match_limits);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) return rc;
    const PCRE2_SIZE *o = pcre2_get_ovector_pointer(r->match);
    *begin = o[0];
    *end = o[1];
    return *begin >= from && *end >= *begin ? 1 : 0;       /* \K can put the start after the end */
}

typedef struct cutter {
    const mx_split *s;
    mx_split_run   *r;
    const char     *text;
    int             stage;
    bool            at_start, held, held_match;
    size_t          begin, end;            /* held */
} cutter;

static mx_status give(cutter *c, size_t begin, size_t end)
{
    if (begin == end) return MX_OK;
    return c->r->emit(c->r, c->stage + 1, c->text + begin, end - begin, c->at_start && !begin);
}

static mx_status flush(cutter *c)
{
    if (!c->held) return MX_OK;
    c->held = false;
    return give(c, c->begin, c->end);
}

/* One item, a match or what lies between two; the merging kinds hold one back. */
static mx_status item(cutter *c, size_t begin, size_t end, bool match)
{
    match ^= c->s->invert;
    bool join = false;
    switch (c->s->how) {
    case MX_ISOLATED: return give(c, begin, end);
    case MX_REMOVED: return match ? MX_OK : give(c, begin, end);
    case MX_CONTIGUOUS: join = match == c->held_match; break;
    case MX_MERGED_PREVIOUS: join = match && !c->held_match; break;
    case MX_MERGED_NEXT: join = !match && c->held_match; break;
    }
    if (c->held && join) {
        c->end = end;
    } else {
        MX_TRY(flush(c));
        c->begin = begin;
        c->end = end;
        c->held = true;
    }
    c->held_match = match;
    return MX_OK;
}

mx_status mx_split_pattern(const mx_tokenizer *t, mx_split_run *r, int stage, const char *text, size_t n, bool at_start)
{
    cutter c = {.s = &t->split[stage], .r = r, .text = text, .stage = stage, .at_start = at_start};
    size_t from = 0, done = 0, begin, end;
    while (from <= n) {
        int rc = find(t, c.s, r, text, n, from, &begin, &end);
        if (rc < 0)
            return mx_fail(r->err, MX_ERR_ARG, "the model's split pattern gave up on this text (PCRE2 error %d)", rc);
        if (!rc) break;
        if (begin == end) {                /* an empty match cuts here; go on behind the next character */
            if (begin > done) MX_TRY(item(&c, done, begin, false));
            done = begin;
            from = begin + 1;
            while (from < n && ((uint8_t)text[from] & 0xc0) == 0x80) from++;
            continue;
        }
        if (begin > done) MX_TRY(item(&c, done, begin, false));
        MX_TRY(item(&c, begin, end, true));
        from = done = end;
    }
    if (done < n) MX_TRY(item(&c, done, n, false));
    return flush(&c);
}

/* ---- presets ---- */

#define CONTRACTIONS "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define GPT2_WORDS   "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define LLAMA3_WORDS                                                                                      \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+" \
                 "|\\s+(?!\\S)|\\s+"
#define QWEN2_WORDS                                                                                  \
    CONTRACTIONS "|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+" \
                 "|\\s+(?!\\S)|\\s+"

typedef struct preset {
    const char *name, *first, *words;
    bool        nfc, ignore_merges;
} preset;

/* The names that llama.cpp's converter writes into tokenizer.ggml.pre. */
static const preset presets[] = {
    {"default", NULL, GPT2_WORDS, false, false},
    {"gpt-2", NULL, GPT2_WORDS, false, false},
    {"gpt2", NULL, GPT2_WORDS, false, false},
    {"phi-2", NULL, GPT2_WORDS, false, false},
    {"olmo", NULL, GPT2_WORDS, false, false},
    {"mpt", NULL, GPT2_WORDS, false, false},
    {"smollm", "\\p{N}", GPT2_WORDS, false, false},
    {"starcoder", "\\p{N}", GPT2_WORDS, false, false},
    {"refact", "\\p{N}", GPT2_WORDS, false, false},
    {"command-r", "\\p{N}", GPT2_WORDS, false, false},
    {"codeshell", "\\p{N}", GPT2_WORDS, false, false},
    {"llama-bpe", NULL, LLAMA3_WORDS, false, true},
    {"llama3", NULL, LLAMA3_WORDS, false, true},
    {"llama-v3", NULL, LLAMA3_WORDS, false, true},
    {"dbrx", NULL, LLAMA3_WORDS, false, false},
    {"smaug-bpe", NULL, LLAMA3_WORDS, false, true},
    {"qwen2", NULL, QWEN2_WORDS, true, false},
    {"deepseek-r1-qwen", NULL, QWEN2_WORDS, true, false},
    {"stablelm2", NULL, QWEN2_WORDS, false, false},
};

mx_status mx_split_preset(mx_tokenizer *t, const char *name, size_t n, const char *what, mx_error *err)
{
    for (size_t i = 0; i < sizeof presets / sizeof *presets; i++) {
        const preset *p = &presets[i];
        if (strlen(p->name) != n || memcmp(p->name, name, n)) continue;
        if (p->first) MX_TRY(mx_split_add_pattern(t, p->first, strlen(p->first), false, MX_ISOLATED, false, what, err));
        if (p->nfc) t->norm[t->n_norms++] = (mx_normalizer){.kind = MX_NORM_NFC};
        t->ignore_merges = p->ignore_merges;
        return mx_split_add_pattern(t, p->words, strlen(p->words), false, MX_ISOLATED, false, what, err);
    }
    return mx_fail(err, MX_ERR_ARG, "%s: pre-tokenizer \"%.*s\" is not one that Merx has", what,
                   (int)(n > 60 ? 60 : n), name);
}
