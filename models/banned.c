/* banned.c - which tokens would put a banned text into the output.
 *
 * Tokens are judged by their bytes, so no other spelling of a text slips
 * through, and they are forbidden before the filters and the draw, so the draw
 * has the distribution of a model that never knew them.  A banned text ends in
 * the token that completes it; it begins either inside that token (known when
 * the request opens: one pass over the vocabulary) or in what stands before it
 * (then the token begins with the text's rest: a range of the sorted pieces). */
#include "models/generation.h"

#include "runtime/slab.h"

#include <stdlib.h>

static int compare_bytes(const char *a, size_t a_len, const char *b, size_t b_len)
{
    int c = memcmp(a, b, a_len < b_len ? a_len : b_len);
    return c ? c : (a_len > b_len) - (a_len < b_len);
}

static int by_piece(const void *a, const void *b, void *tokenizer)
{
    size_t a_len, b_len;
    const char *x = mx_tokenizer_piece(tokenizer, *(const int32_t *)a, &a_len);
    const char *y = mx_tokenizer_piece(tokenizer, *(const int32_t *)b, &b_len);
    int c = compare_bytes(x, a_len, y, b_len);
    return c ? c : (*(const int32_t *)a > *(const int32_t *)b) - (*(const int32_t *)a < *(const int32_t *)b);
}

/* A token that shows in the text: control tokens do not. */
static const char *visible_piece(const mx_generator *g, int32_t id, size_t *len)
{
    if (id >= mx_tokenizer_vocab(g->tokenizer) || mx_tokenizer_is_special(g->tokenizer, id)) return NULL;
    const char *piece = mx_tokenizer_piece(g->tokenizer, id, len);
    return piece && *len ? piece : NULL;
}

mx_status gen_pieces_sort(mx_generator *g, mx_error *err)
{
    int32_t vocab = g->model.config.vocab;
    g->piece = malloc((size_t)vocab * sizeof *g->piece);
    if (!g->piece) return mx_fail(err, MX_ERR_NO_MEMORY, "order of %d pieces", vocab);
    for (int32_t id = 0; id < vocab; id++) {
        size_t len;
        if (visible_piece(g, id, &len)) g->piece[g->n_pieces++] = id;
    }
    qsort_r(g->piece, (size_t)g->n_pieces, sizeof *g->piece, by_piece, g->tokenizer);
    return MX_OK;
}

/* Does the piece hold one of the texts?  first[byte]: the texts that begin with it, chained by next[]. */
static bool holds_banned(const mx_generation *r, const char *piece, size_t len, const int32_t *first,
                         const int32_t *next)
{
    for (size_t at = 0; at < len; at++)
        for (int32_t i = first[(unsigned char)piece[at]]; i >= 0; i = next[i]) {
            size_t w = strlen(r->banned[i]);
            if (w <= len - at && !memcmp(piece + at, r->banned[i], w)) return true;
        }
    return false;
}

mx_status gen_banned_open(mx_generation *r, mx_error *err)
{
    if (!r->p.n_banned) return MX_OK;
    const mx_generator *g = r->g;
    int32_t first[256], next[MX_MAX_BANNED];
    for (int i = 0; i < 256; i++) first[i] = -1;
    for (int32_t i = 0; i < r->p.n_banned; i++) {
        unsigned char c = (unsigned char)r->banned[i][0];
        next[i] = first[c];
        first[c] = i;
    }
    r->banned_id = mx_slab_alloc((size_t)g->n_pieces * sizeof *r->banned_id + 1);
    if (!r->banned_id) return mx_fail(err, MX_ERR_NO_MEMORY, "banned tokens");
    for (int32_t i = 0; i < g->n_pieces; i++) {
        size_t len;
        const char *piece = visible_piece(g, g->piece[i], &len);
        if (!gen_is_end(r, g->piece[i]) && holds_banned(r, piece, len, first, next))
            r->banned_id[r->n_banned_ids++] = g->piece[i];
    }
    return MX_OK;
}

/* The last bytes of the output, at most `room`, before tail[room]; returns how many. */
static size_t output_tail(const mx_generation *r, const gen_seq *q, char *tail, size_t room)
{
    size_t n = 0, len;
    for (int32_t i = q->n_ids - 1; i >= r->n_prompt && n < room; i--) {
        const char *piece = visible_piece(r->g, q->ids[i], &len);
        if (!piece) continue;
        if (len > room - n) {
            piece += len - (room - n);
            len = room - n;
        }
        n += len;
        memcpy(tail + room - n, piece, len);
    }
    return n;
}

/* Ban the tokens that begin with these bytes. */
static bool ban_beginning(gen_pack *p, const mx_generation *r, const char *with, size_t len)
{
    const mx_generator *g = r->g;
    int32_t lo = 0, hi = g->n_pieces;
    size_t piece_len;
    while (lo < hi) {
        int32_t mid = lo + (hi - lo) / 2;
        const char *piece = visible_piece(g, g->piece[mid], &piece_len);
        if (compare_bytes(piece, piece_len, with, len) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < g->n_pieces; lo++) {
        const char *piece = visible_piece(g, g->piece[lo], &piece_len);
        if (piece_len < len || memcmp(piece, with, len)) break;
        if (!gen_is_end(r, g->piece[lo]) && !gen_ban(p, g->piece[lo])) return false;
    }
    return true;
}

bool gen_ban_texts(gen_pack *p, const mx_generation *r, const gen_seq *q)
{
    char tail[MX_MAX_TEXT_BYTES];
    if (!r->p.n_banned) return true;
    for (int32_t i = 0; i < r->n_banned_ids; i++)
        if (!gen_ban(p, r->banned_id[i])) return false;
    size_t room = r->longest_banned - 1, n = output_tail(r, q, tail, room);
    for (int32_t i = 0; i < r->p.n_banned; i++) {
        const char *text = r->banned[i];
        size_t w = strlen(text);
        for (size_t k = 1; k < w && k <= n; k++)
            if (tail[room - k] == text[0] && !memcmp(tail + room - k, text, k) &&
                !ban_beginning(p, r, text + k, w - k))
                return false;
    }
    return true;
}
