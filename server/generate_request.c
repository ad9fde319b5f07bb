/* generate_request.c - a GenerateRequest of the wire as a prompt and its sampling.
 *
 * Here stands what the wire can get wrong; the ranges of the sampling parameters
 * are models/generate.h's own check (mx_generation_open). */
#include "server/services.h"

#include <stdio.h>
#include <string.h>

/* The model of that name, or the one beside which an adapter of that name stands: held, as is *adapter (0: none). */
static mx_status find(mx_served **out, int32_t *adapter, const mx_app *app, const char *name, mx_error *err)
{
    *adapter = 0;
    mx_status st = mx_registry_generator(app->registry, name, out, err);
    if (st == MX_ERR_NOT_FOUND && (*out = mx_registry_adapter(app->registry, name, adapter)) != NULL) st = MX_OK;
    return st;
}

mx_status mx_find_model(mx_served **out, const mx_app *app, const char *name, mx_error *err)
{
    int32_t adapter;
    MX_TRY(find(out, &adapter, app, name, err));
    if (adapter) mx_generator_adapter_release((*out)->generator, adapter);
    return MX_OK;
}

void mx_text_request_close(mx_text_request *r)
{
    if (r->sampling.adapter) mx_generator_adapter_release(r->model, r->sampling.adapter);
    mx_ids_free(&r->prompt);
    mx_registry_release(r->served);
    *r = (mx_text_request){0};
}

mx_status mx_chat_read(const mx_tokenizer *t, mx_arena *arena, const Merx__V1__Chat *chat, mx_ids *out, mx_error *err)
{
    enum { MOST = 4096 };
    if (!chat->n_messages) return mx_fail(err, MX_ERR_ARG, "chat.messages: empty");
    if (chat->n_messages > MOST)
        return mx_fail(err, MX_ERR_ARG, "chat.messages: %zu messages, at most %d", chat->n_messages, MOST);
    mx_chat_message *m = mx_arena_array(arena, chat->n_messages, sizeof *m);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "chat.messages: over the request's memory budget");
    for (size_t i = 0; i < chat->n_messages; i++)
        m[i] = (mx_chat_message){.role = chat->messages[i]->role, .content = chat->messages[i]->content};
    return mx_tokenizer_chat(t, m, (int)chat->n_messages, out, err);
}

static mx_status read_ids(const mx_tokenizer *t, const Merx__V1__TokenIds *ids, mx_ids *out, mx_error *err)
{
    int32_t vocab = mx_tokenizer_vocab(t);
    for (size_t i = 0; i < ids->n_ids; i++) {
        if (ids->ids[i] < 0 || ids->ids[i] >= vocab)
            return mx_fail(err, MX_ERR_ARG, "ids[%zu]: %d is not in the vocabulary (0..%d)", i, ids->ids[i],
                           vocab - 1);
        if (mx_ids_push(out, ids->ids[i])) return mx_fail(err, MX_ERR_NO_MEMORY, "ids: out of memory");
    }
    return MX_OK;
}

/* A plain prompt is the caller's own text: special tokens in it count, as with
 * transformers' tokenizer(prompt).  Text of strangers belongs in a chat, where they do not. */
static mx_status read_prompt(const mx_tokenizer *t, mx_arena *arena, const Merx__V1__GenerateRequest *m, mx_ids *out,
                             mx_error *err)
{
    switch ((int)m->input_case) {
    case MERX__V1__GENERATE_REQUEST__INPUT_PROMPT:
        return mx_tokenizer_encode(t, m->prompt, strlen(m->prompt), true, true, out, err);
    case MERX__V1__GENERATE_REQUEST__INPUT_CHAT: return mx_chat_read(t, arena, m->chat, out, err);
    case MERX__V1__GENERATE_REQUEST__INPUT_IDS: return read_ids(t, m->ids, out, err);
    default: return mx_fail(err, MX_ERR_ARG, "input: one of prompt, chat and ids is required");
    }
}

static mx_status check_count(const char *field, size_t n, size_t most, mx_error *err)
{
    if (n > most) return mx_fail(err, MX_ERR_ARG, "sampling.%s: %zu of them, at most %zu", field, n, most);
    return MX_OK;
}

static mx_status read_sampling(mx_sampling *s, mx_arena *arena, const Merx__V1__Sampling *m, mx_error *err)
{
    *s = mx_sampling_defaults();
    if (!m) return MX_OK;
    MX_TRY(check_count("stop", m->n_stop, MX_MAX_STOPS, err));
    MX_TRY(check_count("stop_ids", m->n_stop_ids, MX_MAX_STOPS, err));
    MX_TRY(check_count("banned", m->n_banned, MX_MAX_BANNED, err));
    MX_TRY(check_count("logit_bias", m->n_logit_bias, MX_MAX_BIASES, err));
    if (m->_temperature_case) s->temperature = m->temperature;
    s->top_k = m->top_k;
    if (m->_top_p_case) s->top_p = m->top_p;
    s->min_p = m->min_p;
    if (m->_typical_p_case) s->typical_p = m->typical_p;
    if (m->_repetition_penalty_case) s->repetition_penalty = m->repetition_penalty;
    s->presence_penalty = m->presence_penalty;
    s->frequency_penalty = m->frequency_penalty;
    s->no_repeat_ngram = m->no_repeat_ngram;
    if (m->n) s->n = m->n;
    if (m->beams) s->beams = m->beams;
    if (m->_length_penalty_case) s->length_penalty = m->length_penalty;
    s->max_tokens = m->max_tokens;
    s->min_tokens = m->min_tokens;
    s->ignore_eos = m->ignore_eos;
    s->seeded = m->_seed_case != 0;
    if (s->seeded) s->seed = m->seed;
    s->echo = m->echo;
    if (m->_logprobs_case) {
        if (m->logprobs < 0) return mx_fail(err, MX_ERR_ARG, "sampling.logprobs: %d is negative", m->logprobs);
        s->logprobs = m->logprobs;
    }
    s->stops = (const char *const *)m->stop;
    s->n_stops = (int32_t)m->n_stop;
    s->stop_ids = m->stop_ids;
    s->n_stop_ids = (int32_t)m->n_stop_ids;
    s->banned = (const char *const *)m->banned;
    s->n_banned = (int32_t)m->n_banned;
    if (!m->n_logit_bias) return MX_OK;
    int32_t *ids = mx_arena_array(arena, m->n_logit_bias, sizeof *ids);
    float *bias = mx_arena_array(arena, m->n_logit_bias, sizeof *bias);
    if (!ids || !bias) return mx_fail(err, MX_ERR_NO_MEMORY, "sampling.logit_bias: over the request's memory budget");
    for (size_t i = 0; i < m->n_logit_bias; i++) {
        ids[i] = m->logit_bias[i]->id;
        bias[i] = m->logit_bias[i]->bias;
    }
    s->bias_ids = ids;
    s->bias = bias;
    s->n_bias = (int32_t)m->n_logit_bias;
    return MX_OK;
}

mx_status mx_text_request_read(mx_text_request *out, const mx_app *app, mx_arena *arena,
                               const Merx__V1__GenerateRequest *m, mx_error *err)
{
    int32_t adapter;
    *out = (mx_text_request){.request_id = m->request_id};
    MX_TRY(find(&out->served, &adapter, app, m->model, err));
    out->model = out->served->generator;
    out->model_name = out->served->name;
    out->sampling.adapter = adapter;
    if (strlen(m->request_id) > MX_MAX_REQUEST_ID)
        return mx_fail(err, MX_ERR_ARG, "request_id: %zu bytes, at most %d", strlen(m->request_id),
                       MX_MAX_REQUEST_ID);
    mx_status st = read_sampling(&out->sampling, arena, m->sampling, err);
    out->sampling.adapter = adapter;         /* also on an error: it is held */
    if (st) return st;
    return read_prompt(mx_generator_tokenizer(out->model), arena, m, &out->prompt, err);
}
