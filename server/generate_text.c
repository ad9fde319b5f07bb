/* generate_text.c - the Generation service's quick calls: Tokenize, Detokenize, ListModels. */
#include "server/services.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static mx_status too_large(mx_error *err)
{
    return mx_fail(err, MX_ERR_NO_MEMORY, "the answer is over the server's memory budget for a message");
}

MX_METHOD(mx_tokenize_begin)
{
    ProtobufCMessage *m;
    mx_served *served;
    mx_ids ids = {0};
    mx_status st;
    MX_TRY(mx_message_decode(scratch, &merx__v1__tokenize_request__descriptor, msg, len, &m, err));
    const Merx__V1__TokenizeRequest *q = (const Merx__V1__TokenizeRequest *)m;
    MX_TRY(mx_find_model(&served, app, q->model, err));
    const mx_tokenizer *t = mx_generator_tokenizer(served->generator);
    if (q->input_case == MERX__V1__TOKENIZE_REQUEST__INPUT_CHAT)
        st = mx_chat_read(t, scratch, q->chat, &ids, err);
    else if (q->input_case == MERX__V1__TOKENIZE_REQUEST__INPUT_TEXT)
        st = mx_tokenizer_encode(t, q->text.data ? (const char *)q->text.data : "", q->text.len, q->add_special,
                                 q->parse_special, &ids, err);
    else
        st = mx_fail(err, MX_ERR_ARG, "input: one of text and chat is required");
    if (st) goto out;
    Merx__V1__TokenizeResponse r = MERX__V1__TOKENIZE_RESPONSE__INIT;
    r.n_ids = r.n_tokens = (size_t)ids.count;
    r.ids = ids.id;
    r.tokens = mx_arena_array(scratch, r.n_tokens, sizeof *r.tokens);
    for (size_t i = 0; r.tokens && i < r.n_tokens; i++) {
        const char *piece = mx_tokenizer_piece(t, ids.id[i], &r.tokens[i].len);
        r.tokens[i].data = (uint8_t *)(uintptr_t)piece;
        if (!piece) r.tokens[i].len = 0;
    }
    if (r.tokens && mx_call_send(call, &r.base, false))
        mx_call_finish(call, MX_OK, NULL);
    else
        st = too_large(err);
out:
    mx_registry_release(served);
    mx_ids_free(&ids);
    return st;
}

MX_METHOD(mx_detokenize_begin)
{
    ProtobufCMessage *m;
    mx_served *served;
    char *text = NULL;
    size_t n = 0;
    mx_status st = MX_OK;
    MX_TRY(mx_message_decode(scratch, &merx__v1__detokenize_request__descriptor, msg, len, &m, err));
    const Merx__V1__DetokenizeRequest *q = (const Merx__V1__DetokenizeRequest *)m;
    MX_TRY(mx_find_model(&served, app, q->model, err));
    const mx_tokenizer *t = mx_generator_tokenizer(served->generator);
    int32_t vocab = mx_tokenizer_vocab(t);
    for (size_t i = 0; i < q->n_ids && !st; i++)
        if (q->ids[i] < 0 || q->ids[i] >= vocab)
            st = mx_fail(err, MX_ERR_ARG, "ids[%zu]: %d is not in the vocabulary (0..%d)", i, q->ids[i], vocab - 1);
    if (!st) st = mx_tokenizer_decode(t, q->ids, (int32_t)q->n_ids, q->skip_special, &text, &n, err);
    mx_registry_release(served);
    if (st) return st;
    Merx__V1__DetokenizeResponse r = MERX__V1__DETOKENIZE_RESPONSE__INIT;
    r.text = (ProtobufCBinaryData){.data = (uint8_t *)text, .len = n};
    bool sent = mx_call_send(call, &r.base, false);
    free(text);
    if (!sent) return too_large(err);
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}

static bool describe(const mx_app *app, const mx_generator *g, Merx__V1__Model *m, mx_arena *a)
{
    mx_generator_info info;
    mx_adapter_info adapter;
    mx_lane_stats lane = {0};
    mx_generator_info_get(g, &info);
    mx_scheduler_stats(app->scheduler, info.lane, &lane);
    merx__v1__model__init(m);
    m->name = (char *)(uintptr_t)info.name;
    if (info.architecture) m->architecture = (char *)(uintptr_t)info.architecture;
    m->parameters = info.parameters;
    m->dtype = (char *)(uintptr_t)mx_dtype_name(info.dtype);
    if (info.quantization) m->quantization = (char *)(uintptr_t)info.quantization;
    m->max_model_len = info.max_model_len;
    m->chat_template = (char *)(uintptr_t)mx_chat_family_name(info.chat);
    m->device = app->n_devices ? app->devices[app->device].name : (char *)(uintptr_t) "";
    m->weight_bytes = (int64_t)info.weight_bytes;
    m->kv_bytes = (int64_t)info.kv_bytes;
    m->kv_bytes_per_token = (int64_t)info.kv_bytes_per_token;
    m->running = (int32_t)lane.running;
    m->waiting = (int32_t)lane.waiting;
    m->kv_usage = info.kv_pages ? 1 - (double)info.kv_pages_free / info.kv_pages : 0;
    m->version = info.version;
    size_t most = 0;
    while (mx_generator_adapter_at(g, (int32_t)most, &adapter)) most++;
    m->adapters = mx_arena_array(a, most, sizeof *m->adapters);
    while (m->adapters && m->n_adapters < most && mx_generator_adapter_at(g, (int32_t)m->n_adapters, &adapter)) {
        char *name = mx_arena_array(a, strlen(adapter.name) + 1, 1);
        if (!name) return false;
        m->adapters[m->n_adapters++] = strcpy(name, adapter.name);
    }
    return m->adapters != NULL;
}

static bool describe_encoder(const mx_app *app, const mx_embedder *e, Merx__V1__Model *m, mx_arena *a)
{
    mx_embedder_info info;
    mx_lane_stats lane = {0};
    mx_embedder_info_get(e, &info);
    mx_scheduler_stats(app->scheduler, info.lane, &lane);
    merx__v1__model__init(m);
    m->version = info.version;
    m->name = (char *)(uintptr_t)info.name;
    m->architecture = (char *)(uintptr_t) "bert";
    m->parameters = info.parameters;
    m->dtype = (char *)(uintptr_t)mx_dtype_name(info.dtype);
    m->quantization = (char *)(uintptr_t)info.quantization;
    m->max_model_len = info.max_len;
    m->device = app->devices[app->device].name;
    m->weight_bytes = (int64_t)info.weight_bytes;
    m->running = (int32_t)lane.running;
    m->waiting = (int32_t)lane.waiting;
    m->dimension = info.d_model;
    m->labels = mx_arena_array(a, (size_t)info.classes, sizeof *m->labels);
    if (info.classes && !m->labels) return false;
    m->n_labels = (size_t)info.classes;
    for (int i = 0; i < info.classes; i++) m->labels[i] = (char *)(uintptr_t)mx_embedder_label(e, i);
    return true;
}

MX_METHOD(mx_list_models_begin)
{
    ProtobufCMessage *m;
    mx_served_view list[MX_MODELS];
    MX_TRY(mx_message_decode(scratch, &merx__v1__list_models_request__descriptor, msg, len, &m, err));
    int n = mx_registry_list(app->registry, list);
    Merx__V1__Model *models = mx_arena_array(scratch, (size_t)n, sizeof *models);
    Merx__V1__ListModelsResponse r = MERX__V1__LIST_MODELS_RESPONSE__INIT;
    r.models = mx_arena_array(scratch, (size_t)n, sizeof *r.models);
    bool ok = models && r.models;
    for (int encoders = 0; encoders < 2; encoders++)          /* generators first */
        for (int i = 0; ok && i < n; i++) {
            if (list[i].state != MX_SERVED_SERVING || !(encoders ? list[i].encoder != NULL : list[i].generator != NULL)) continue;
            Merx__V1__Model *to = r.models[r.n_models] = &models[r.n_models];
            r.n_models++;
            ok = encoders ? describe_encoder(app, list[i].encoder, to, scratch) : describe(app, list[i].generator, to, scratch);
        }
    ok = ok && mx_call_send(call, &r.base, false);
    mx_registry_list_free(list, n);
    if (!ok) return too_large(err);
    mx_call_finish(call, MX_OK, NULL);
    return MX_OK;
}
