/* tokenizer_vocab.c - the vocabulary's strings, the trie of added tokens, UTF-8. */
#include "models/tokenizer_internal.h"

#include <stdlib.h>

/* ---- UTF-8 ---- */

int mx_utf8_next(const char *s, size_t n, uint32_t *cp, bool *cut)
{
    const uint8_t *p = (const uint8_t *)s;
    *cut = false;
    if (p[0] < 0x80) {
        *cp = p[0];
        return 1;
    }
    /* The second byte's range keeps out overlong forms, surrogates and what is over U+10FFFF
     * (Unicode 15, table 3-7). */
    uint8_t lo = 0x80, hi = 0xbf;
    int len;
    uint32_t c;
    if (p[0] >= 0xc2 && p[0] <= 0xdf) {
        len = 2, c = p[0] & 0x1fu;
    } else if (p[0] >= 0xe0 && p[0] <= 0xef) {
        len = 3, c = p[0] & 0x0fu;
        if (p[0] == 0xe0) lo = 0xa0;
        if (p[0] == 0xed) hi = 0x9f;
    } else if (p[0] >= 0xf0 && p[0] <= 0xf4) {
        len = 4, c = p[0] & 0x07u;
        if (p[0] == 0xf0) lo = 0x90;
        if (p[0] == 0xf4) hi = 0x8f;
    } else {
        return -1;
    }
    for (int i = 1; i < len; i++) {
        if ((size_t)i >= n) {
            *cut = true;
            return -i;
        }
        if (p[i] < lo || p[i] > hi) return -i;
        c = c << 6 | (p[i] & 0x3fu);
        lo = 0x80, hi = 0xbf;
    }
    *cp = c;
    return len;
}

int mx_utf8_put(char *out, uint32_t cp)
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xc0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3f));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xe0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3f));
        out[2] = (char)(0x80 | (cp & 0x3f));
        return 3;
    }
    out[0] = (char)(0xf0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3f));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3f));
    out[3] = (char)(0x80 | (cp & 0x3f));
    return 4;
}

bool mx_utf8_valid(const char *text, size_t len, size_t *bad)
{
    for (size_t i = 0; i < len;) {
        uint64_t eight;
        if (i + 8 <= len && (memcpy(&eight, text + i, 8), !(eight & 0x8080808080808080u))) {
            i += 8;
            continue;
        }
        uint32_t cp;
        bool cut;
        int n = mx_utf8_next(text + i, len - i, &cp, &cut);
        if (n < 0) {
            if (bad) *bad = i;
            return false;
        }
        i += (size_t)n;
    }
    return true;
}

bool mx_is_space(uint32_t c)
{
    return (c >= 9 && c <= 13) || c == 32 || c == 0x85 || c == 0xa0 || c == 0x1680 || (c >= 0x2000 && c <= 0x200a) ||
           c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* Printable Latin-1 stands for itself; the other 68 bytes, in order, are U+0100 and up. */
static bool is_itself(uint32_t b)
{
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
}

uint32_t mx_byte_char(uint8_t b)
{
    if (is_itself(b)) return b;
    if (b <= 32) return 256u + b;
    if (b <= 160) return 256u + 33 + (b - 127u);
    return 256u + 67;                      /* 173, the soft hyphen */
}

int mx_char_byte(uint32_t c)
{
    if (c < 256) return is_itself(c) ? (int)c : -1;
    if (c <= 256 + 32) return (int)(c - 256);
    if (c <= 256 + 66) return (int)(c - 256 - 33 + 127);
    return c == 256 + 67 ? 173 : -1;
}

/* ---- vocabulary ---- */

static uint64_t hash_bytes(const char *s, size_t n)
{
    uint64_t h = 0x9e3779b97f4a7c15u ^ n;
    for (; n >= 8; s += 8, n -= 8) {
        uint64_t w;
        memcpy(&w, s, 8);
        h = (h ^ w) * 0xbf58476d1ce4e5b9u;
        h ^= h >> 32;
    }
    uint64_t w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * 0x94d049bb133111ebu;
    return h ^ h >> 29;
}

void mx_vocab_free(mx_vocab *v)
{
    free(v->bytes);
    free(v->token);
    free(v->slot);
    memset(v, 0, sizeof *v);
}

static mx_status grow_slots(mx_vocab *v, uint32_t n_slots)
{
    int32_t *slot = malloc(n_slots * sizeof *slot);
    if (!slot) return MX_ERR_NO_MEMORY;
    memset(slot, 0xff, n_slots * sizeof *slot);
    for (uint32_t i = 0; i < v->n_slots; i++) {
        int32_t id = v->slot[i];
        if (id < 0) continue;
        const mx_token *k = &v->token[id];
        uint32_t at = (uint32_t)hash_bytes(v->bytes + k->written, k->n_written) & (n_slots - 1);
        while (slot[at] >= 0) at = (at + 1) & (n_slots - 1);
        slot[at] = id;
    }
    free(v->slot);
    v->slot = slot;
    v->n_slots = n_slots;
    return MX_OK;
}

static mx_status reserve_bytes(mx_vocab *v, size_t more)
{
    size_t need;
    if (!mx_add_size(v->n_bytes, more, &need) || need > UINT32_MAX) return MX_ERR_NO_MEMORY;
    if (need <= v->room_bytes) return MX_OK;
    size_t room = need + need / 2;
    char *bytes = realloc(v->bytes, room);
    if (!bytes) return MX_ERR_NO_MEMORY;
    v->bytes = bytes;
    v->room_bytes = room;
    return MX_OK;
}

static mx_status reserve_tokens(mx_vocab *v, size_t n)
{
    if (n <= (size_t)v->room_tokens) return MX_OK;
    size_t room = n + n / 4 + 16;
    mx_token *token = realloc(v->token, room * sizeof *token);
    if (!token) return MX_ERR_NO_MEMORY;
    memset(token + v->room_tokens, 0, (room - (size_t)v->room_tokens) * sizeof *token);
    v->token = token;
    v->room_tokens = (int32_t)room;
    return MX_OK;
}

mx_status mx_vocab_reserve(mx_vocab *v, size_t tokens, size_t bytes)
{
    if (tokens > MX_TOKENIZER_MOST_IDS) tokens = MX_TOKENIZER_MOST_IDS;
    v->most_ids = (int32_t)(tokens * 16 + 65536 < MX_TOKENIZER_MOST_IDS ? tokens * 16 + 65536 : MX_TOKENIZER_MOST_IDS);
    MX_TRY(reserve_tokens(v, tokens));
    MX_TRY(reserve_bytes(v, bytes));
    uint32_t n = 64;
    while (n < tokens * 2) n *= 2;
    return n > v->n_slots ? grow_slots(v, n) : MX_OK;
}

static uint32_t find_slot(const mx_vocab *v, const char *s, size_t n)
{
    uint32_t at = (uint32_t)hash_bytes(s, n) & (v->n_slots - 1);
    for (;; at = (at + 1) & (v->n_slots - 1)) {
        int32_t id = v->slot[at];
        if (id < 0) return at;
        const mx_token *k = &v->token[id];
        if (k->n_written == n && !memcmp(v->bytes + k->written, s, n)) return at;
    }
}

int32_t mx_vocab_find(const mx_vocab *v, const char *s, size_t n)
{
    return v->n_slots ? v->slot[find_slot(v, s, n)] : -1;
}

static uint32_t keep_bytes(mx_vocab *v, const char *s, size_t n)
{
    size_t at = v->n_bytes;
    memcpy(v->bytes + at, s, n);
    v->bytes[at + n] = 0;
    v->n_bytes += n + 1;
    return (uint32_t)at;
}

static int shown(size_t n)                 /* of a string in an error */
{
    return n < 60 ? (int)n : 60;
}

mx_status mx_vocab_add(mx_vocab *v, int64_t id, const char *s, size_t n, const char *what, mx_error *err)
{
    if (id < 0 || id >= v->most_ids)
        return mx_fail(err, MX_ERR_FORMAT, "%s: token \"%.*s\" has id %lld, outside 0..%d", what, shown(n), s,
                       (long long)id, v->most_ids - 1);
    if (v->n_used * 2 >= v->n_slots && grow_slots(v, v->n_slots ? v->n_slots * 2 : 64))
        return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for the vocabulary", what);
    if (n > UINT32_MAX - 1 || reserve_tokens(v, (size_t)id + 1) || reserve_bytes(v, n + 1))
        return mx_fail(err, MX_ERR_NO_MEMORY, "%s: no memory for the vocabulary", what);
    uint32_t at = find_slot(v, s, n);
    if (v->slot[at] == id) return MX_OK;
    if (v->slot[at] >= 0)
        return mx_fail(err, MX_ERR_FORMAT, "%s: token \"%.*s\" has two ids, %d and %lld", what, shown(n), s,
                       v->slot[at], (long long)id);
    mx_token *k = &v->token[id];
    if (k->flags)
        return mx_fail(err, MX_ERR_FORMAT, "%s: id %lld is both \"%.60s\" and \"%.*s\"", what, (long long)id,
                       v->bytes + k->written, shown(n), s);
    k->written = k->raw = keep_bytes(v, s, n);
    k->n_written = k->n_raw = (uint32_t)n;
    k->flags = MX_TOKEN_USED;
    v->slot[at] = (int32_t)id;
    v->n_used++;
    if (id >= v->n_tokens) v->n_tokens = (int32_t)id + 1;
    return MX_OK;
}

mx_status mx_vocab_set_raw(mx_vocab *v, int32_t id, const char *s, size_t n)
{
    mx_token *k = &v->token[id];
    if (k->n_written == n && !memcmp(v->bytes + k->written, s, n)) return MX_OK;
    MX_TRY(reserve_bytes(v, n + 1));
    k->raw = keep_bytes(v, s, n);
    k->n_raw = (uint32_t)n;
    return MX_OK;
}

/* ---- trie ---- */

static int32_t new_node(mx_trie *t)
{
    if (t->n == t->room) {
        if (t->room > INT32_MAX / 2) return -1;
        int32_t room = t->room ? t->room * 2 : 256;
        mx_trie_node *node = realloc(t->node, (size_t)room * sizeof *node);
        if (!node) return -1;
        t->node = node;
        t->room = room;
    }
    t->node[t->n] = (mx_trie_node){-1, -1, -1, 0};
    return t->n++;
}

mx_status mx_trie_add(mx_trie *t, const char *s, size_t n, int32_t added)
{
    if (!n) return MX_OK;
    if (!t->n && new_node(t) < 0) return MX_ERR_NO_MEMORY;
    t->first[(uint8_t)s[0]] = true;
    int32_t at = 0;
    for (size_t i = 0; i < n; i++) {
        int32_t c = t->node[at].child;
        while (c >= 0 && t->node[c].byte != (uint8_t)s[i]) c = t->node[c].sibling;
        if (c < 0) {
            c = new_node(t);
            if (c < 0) return MX_ERR_NO_MEMORY;
            t->node[c].byte = (uint8_t)s[i];
            t->node[c].sibling = t->node[at].child;
            t->node[at].child = c;
        }
        at = c;
    }
    if (t->node[at].added < 0) t->node[at].added = added;
    return MX_OK;
}

void mx_trie_free(mx_trie *t)
{
    free(t->node);
    memset(t, 0, sizeof *t);
}
