/* fuzz_request.c - arbitrary bytes as a GenerateRequest, a batch and a TokenizeRequest:
 * decoding, checks, tokenizing, and the generation's own validation.  No network. */
#include "server/services.h"
#include "tests/fake_app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void finished(mx_generation *g, const mx_error *err)
{
    (void)g, (void)err;
}

static void try_request(mx_app *app, mx_arena *arena, const Merx__V1__GenerateRequest *m)
{
    mx_text_request r;
    mx_error err = {.text = ""};
    mx_generation *g = NULL;
    mx_generation_calls calls = {.done = finished};
    mx_status st = mx_text_request_read(&r, app, arena, m, &err);
    if (!st) st = mx_generation_open(&g, r.model, r.prompt.id, r.prompt.count, &r.sampling, &calls, 0, &err);
    if (st && !err.text[0]) abort(); /* an error without a word */
    mx_text_clean(err.text);
    if (!mx_utf8_valid(err.text, strlen(err.text), NULL)) abort();
    mx_generation_close(g);
    mx_text_request_close(&r);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static mx_fake_app app;
    static bool open;
    mx_error err = {.text = ""};
    mx_fake_options o = {.max_jobs = 1, .queue_limit = 1, .max_model_len = 64, .chat = true};
    if (!open && mx_fake_app_open(&app, &o, &err)) abort();
    open = true;
    mx_arena arena;
    ProtobufCMessage *m;
    mx_arena_open(&arena, 1 << 18);
    if (!mx_message_decode(&arena, &merx__v1__generate_request__descriptor, data, size, &m, &err))
        try_request(&app.app, &arena, (const Merx__V1__GenerateRequest *)m);
    mx_arena_reset(&arena);
    if (!mx_message_decode(&arena, &merx__v1__generate_batch_request__descriptor, data, size, &m, &err)) {
        const Merx__V1__GenerateBatchRequest *b = (const Merx__V1__GenerateBatchRequest *)m;
        for (size_t i = 0; i < b->n_requests && i < 4; i++) try_request(&app.app, &arena, b->requests[i]);
    }
    mx_arena_reset(&arena);
    if (!mx_message_decode(&arena, &merx__v1__tokenize_request__descriptor, data, size, &m, &err)) {
        const Merx__V1__TokenizeRequest *q = (const Merx__V1__TokenizeRequest *)m;
        mx_ids ids = {0};
        if (q->input_case == MERX__V1__TOKENIZE_REQUEST__INPUT_CHAT)
            mx_chat_read(mx_generator_tokenizer(app.models[0]), &arena, q->chat, &ids, &err);
        mx_ids_free(&ids);
    }
    uint32_t ms;
    mx_retry_decode(data, size, &ms);
    mx_arena_close(&arena);
    return 0;
}
