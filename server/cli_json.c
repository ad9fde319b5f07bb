/* cli_json.c - answers as JSON, with the names of proto/merx.proto where it has them. */
#include "server/cli_parts.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *finish_name(Merx__V1__FinishReason f)
{
    switch ((int)f) {
    case MERX__V1__FINISH_REASON__FINISH_STOP: return "stop";
    case MERX__V1__FINISH_REASON__FINISH_LENGTH: return "length";
    case MERX__V1__FINISH_REASON__FINISH_CANCELLED: return "cancelled";
    default: return "none";
    }
}

static void set_seed(json_t *j, uint64_t seed)
{
    char text[24];
    snprintf(text, sizeof text, "%" PRIu64, seed);
    json_object_set_new(j, "seed", json_string(text));
}

/* Half a character has no text: its bytes are given instead. */
static json_t *token_json(int32_t id, float logprob, const ProtobufCBinaryData *piece)
{
    json_t *j = json_pack("{s:i, s:f}", "id", id, "logprob", (double)logprob);
    json_t *text = piece->len ? json_stringn((const char *)piece->data, piece->len) : json_string("");
    if (text) {
        json_object_set_new(j, "token", text);
        return j;
    }
    json_t *bytes = json_array();
    for (size_t i = 0; i < piece->len; i++) json_array_append_new(bytes, json_integer(piece->data[i]));
    json_object_set_new(j, "bytes", bytes);
    return j;
}

static json_t *logprobs_json(Merx__V1__TokenLogprob *const *lp, size_t n)
{
    json_t *all = json_array();
    for (size_t i = 0; i < n; i++) {
        json_t *j = token_json(lp[i]->id, lp[i]->logprob, &lp[i]->token), *top = json_array();
        for (size_t k = 0; k < lp[i]->n_top_id; k++)
            json_array_append_new(top, token_json(lp[i]->top_id[k], lp[i]->top_logprob[k], &lp[i]->top_token[k]));
        if (lp[i]->n_top_id) json_object_set(j, "top", top);
        json_decref(top);
        json_array_append_new(all, j);
    }
    return all;
}

static void put_candidate(json_t *j, const Merx__V1__Candidate *c)
{
    json_object_set_new(j, "text", json_string(c->text));
    json_object_set_new(j, "finish_reason", json_string(finish_name(c->finish)));
    if (c->stop && *c->stop) json_object_set_new(j, "stop", json_string(c->stop));
    if (c->n_logprobs) {
        json_object_set_new(j, "logprobs", logprobs_json(c->logprobs, c->n_logprobs));
        json_object_set_new(j, "logprob_sum", json_real(c->logprob_sum));
    }
    if (c->score != 0) json_object_set_new(j, "score", json_real(c->score));
}

static json_t *timings_json(const Merx__V1__Timings *t)
{
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "queue_ms", t->queue_ms, "prefill_ms", t->prefill_ms, "decode_ms",
                     t->decode_ms, "first_token_ms", t->first_token_ms, "total_ms", t->total_ms, "tokens_per_second",
                     t->tokens_per_second);
}

json_t *cli_json_candidate(const Merx__V1__GenerateResponse *r, size_t i)
{
    const Merx__V1__Candidate *c = r->candidates[i];
    json_t *j = json_object();
    json_object_set_new(j, "index", json_integer(c->index));
    put_candidate(j, c);
    if (r->usage) {
        json_object_set_new(j, "prompt_tokens", json_integer(r->usage->prompt_tokens));
        json_object_set_new(j, "cached_tokens", json_integer(r->usage->cached_tokens));
    }
    json_object_set_new(j, "output_tokens", json_integer((json_int_t)c->n_ids));
    if (r->model && *r->model) json_object_set_new(j, "model", json_string(r->model));
    set_seed(j, r->seed);
    if (r->timings) json_object_set_new(j, "timings", timings_json(r->timings));
    return j;
}

json_t *cli_json_row(const Merx__V1__GenerateResponse *r, json_t *id, bool drawn)
{
    json_t *j = json_object();
    json_object_set(j, "id", id);
    put_candidate(j, r->candidates[0]);
    json_object_set_new(j, "prompt_tokens", json_integer(r->usage->prompt_tokens));
    json_object_set_new(j, "output_tokens", json_integer(r->usage->output_tokens));
    if (drawn) set_seed(j, r->seed);
    if (r->n_candidates < 2) return j;
    json_t *all = json_array();
    for (size_t i = 0; i < r->n_candidates; i++) {
        json_t *one = json_pack("{s:i}", "index", r->candidates[i]->index);
        put_candidate(one, r->candidates[i]);
        json_object_set_new(one, "output_tokens", json_integer((json_int_t)r->candidates[i]->n_ids));
        json_array_append_new(all, one);
    }
    json_object_set_new(j, "candidates", all);
    return j;
}

json_t *cli_json_event(const Merx__V1__GenerateEvent *e)
{
    json_t *j = json_pack("{s:i, s:s}", "index", e->index, "text", e->text), *ids = json_array();
    for (size_t i = 0; i < e->n_ids; i++) json_array_append_new(ids, json_integer(e->ids[i]));
    json_object_set_new(j, "ids", ids);
    if (e->n_logprobs) json_object_set_new(j, "logprobs", logprobs_json(e->logprobs, e->n_logprobs));
    if (e->finish) json_object_set_new(j, "finish_reason", json_string(finish_name(e->finish)));
    if (e->stop && *e->stop) json_object_set_new(j, "stop", json_string(e->stop));
    if (!e->last) return j;
    json_object_set_new(j, "last", json_true());
    if (e->usage) {
        json_object_set_new(j, "prompt_tokens", json_integer(e->usage->prompt_tokens));
        json_object_set_new(j, "cached_tokens", json_integer(e->usage->cached_tokens));
        json_object_set_new(j, "output_tokens", json_integer(e->usage->output_tokens));
    }
    set_seed(j, e->seed);
    if (e->timings) json_object_set_new(j, "timings", timings_json(e->timings));
    return j;
}

mx_status cli_json_print(FILE *out, json_t *j, mx_error *err)
{
    mx_status st = MX_OK;
    if (!j) return mx_fail(err, MX_ERR_NO_MEMORY, "out of memory");
    if (json_dumpf(j, out, JSON_COMPACT | JSON_REAL_PRECISION(9)) || fputc('\n', out) == EOF || fflush(out))
        st = mx_fail(err, MX_ERR_IO, "standard output: %s", strerror(errno));
    json_decref(j);
    return st;
}
