/* services.h - what the files of services offer to the table in services.c, and
 * the parts of a generation request that tests reach without a network. */
#ifndef MX_SERVICES_H
#define MX_SERVICES_H

#include "server/service.h"

#include "proto/merx.pb-c.h"

#define MX_METHOD(name)                                                                                               \
    mx_status name(mx_app *app, mx_call *call, const uint8_t *msg, size_t len, mx_arena *scratch, mx_error *err)

MX_METHOD(mx_generate_begin);
MX_METHOD(mx_stream_begin);
MX_METHOD(mx_batch_begin);
MX_METHOD(mx_tokenize_begin);
MX_METHOD(mx_detokenize_begin);
MX_METHOD(mx_list_models_begin);
MX_METHOD(mx_embed_begin);
MX_METHOD(mx_classify_begin);
MX_METHOD(mx_training_submit_begin);
MX_METHOD(mx_training_get_begin);
MX_METHOD(mx_training_list_begin);
MX_METHOD(mx_training_watch_begin);
MX_METHOD(mx_training_cancel_begin);
MX_METHOD(mx_load_begin);
MX_METHOD(mx_unload_begin);
MX_METHOD(mx_list_versions_begin);
MX_METHOD(mx_experiment_create_begin);
MX_METHOD(mx_experiment_get_begin);
MX_METHOD(mx_experiment_list_begin);
MX_METHOD(mx_experiment_select_begin);
MX_METHOD(mx_experiment_outcome_begin);
MX_METHOD(mx_experiment_promote_begin);
MX_METHOD(mx_experiment_pause_begin);
MX_METHOD(mx_price_items_begin);
MX_METHOD(mx_price_item_begin);
MX_METHOD(mx_quote_begin);
MX_METHOD(mx_batch_quote_begin);
MX_METHOD(mx_put_guardrails_begin);
MX_METHOD(mx_get_guardrails_begin);
MX_METHOD(mx_validate_guardrails_begin);
MX_METHOD(mx_price_approve_begin);
MX_METHOD(mx_price_reject_begin);
MX_METHOD(mx_price_rollback_begin);
MX_METHOD(mx_price_freeze_begin);
MX_METHOD(mx_report_sales_begin);
MX_METHOD(mx_price_decision_begin);
MX_METHOD(mx_stream_quotes_begin);
MX_METHOD(mx_simulate_ladder_begin);
MX_METHOD(mx_competitor_prices_begin);
MX_METHOD(mx_inventory_begin);
MX_METHOD(mx_elasticity_begin);
MX_METHOD(mx_explain_decision_begin);
MX_METHOD(mx_get_profile_begin);
MX_METHOD(mx_batch_profiles_begin);
MX_METHOD(mx_stream_profiles_begin);
MX_METHOD(mx_watch_profile_begin);
MX_METHOD(mx_put_events_begin);
MX_METHOD(mx_explain_label_begin);
MX_METHOD(mx_sentiment_begin);
MX_METHOD(mx_stream_sentiment_begin);
MX_METHOD(mx_similar_users_begin);
MX_METHOD(mx_look_alike_begin);
MX_METHOD(mx_recommend_begin);
MX_METHOD(mx_define_tag_begin);
MX_METHOD(mx_list_tags_begin);
MX_METHOD(mx_backfill_tag_begin);
MX_METHOD(mx_delete_subject_begin);
MX_METHOD(mx_load_policy_begin);
MX_METHOD(mx_promote_policy_begin);
MX_METHOD(mx_list_policies_begin);
MX_METHOD(mx_health_check_begin);
MX_METHOD(mx_health_watch_begin);
MX_METHOD(mx_reflection_begin);

/* ---- descriptors (reflection.c) ------------------------------------------------ */

/* True when the program describes a service of this full name: "merx.v1.Generation". */
bool mx_service_known(const char *name);

/* ---- a generation request, checked (generate_request.c) -------------------------- */

enum { MX_MAX_REQUEST_ID = 256, MX_MAX_BATCH = 4096, MX_MAX_TEXTS = 4096 };

typedef struct mx_text_request {
    mx_served    *served;              /* held: the version that writes it               */
    mx_generator *model;               /* its generator                                  */
    mx_ids        prompt;
    mx_sampling   sampling;            /* its arrays are in the arena or in the message  */
    const char   *model_name;          /* the generator's                                */
    const char   *request_id;          /* the message's                                  */
} mx_text_request;

/* Errors name the field: MX_ERR_ARG, MX_ERR_NOT_FOUND (model), MX_ERR_STATE (no model is
 * loaded; no chat template), MX_ERR_NO_MEMORY.  *out is zeroed by this; on errors
 * too close is due. */
mx_status mx_text_request_read(mx_text_request *out, const mx_app *app, mx_arena *arena,
                               const Merx__V1__GenerateRequest *m, mx_error *err);
/* Gives back what it holds; out->served may be taken over and set to NULL before. */
void      mx_text_request_close(mx_text_request *r);
/* Name "" is the first model; that of an adapter is the model it stands beside.  mx_registry_release is due. */
mx_status mx_find_model(mx_served **out, const mx_app *app, const char *name, mx_error *err);
mx_status mx_chat_read(const mx_tokenizer *t, mx_arena *arena, const Merx__V1__Chat *chat, mx_ids *out, mx_error *err);

/* ---- a style that an experiment chooses (generate_style.c) ------------------------- */

typedef struct mx_style mx_style;
/* Asks for an arm; the call is woken when it is there, and must not finish before.
 * Errors: MX_ERR_ARG, MX_ERR_STATE, MX_ERR_NO_MEMORY. */
mx_status mx_style_ask(mx_style **out, const mx_app *app, mx_call *call, const Merx__V1__StyleChoice *q, mx_error *err);
bool      mx_style_ready(const mx_style *s);
/* Once ready: the request in the arm's style, its words in the arena.  Errors: of the choice; MX_ERR_ARG. */
mx_status mx_style_apply(const mx_style *s, mx_arena *a, const Merx__V1__GenerateRequest *m, Merx__V1__GenerateRequest *out, mx_error *err);
/* What was chosen; false: the arena is full.  Its texts are the style's. */
bool      mx_style_told(mx_style *s, mx_arena *a, Merx__V1__StyleChosen **out);
void      mx_style_close(mx_style *s);        /* NULL is fine; else it is ready */

/* ---- a profile as a message of a stream (profile_service.c) ------------------------- */

struct mx_profiles;
struct mx_profile_view;
/* The answer, or its status; release *hold, when it is not NULL, after it is sent.  False: the arena is full. */
bool mx_profile_answer(struct mx_profiles *p, const Merx__V1__GetProfileRequest *q, mx_arena *a, Merx__V1__ProfileAnswer *out,
                       const struct mx_profile_view **hold);

/* ---- what a generation has said (generate_reply.c) ------------------------------- */

typedef struct mx_said_logprob {
    int32_t id, n_top;
    float   logprob;
    size_t  first_top;                 /* in top_id, top_logprob                         */
} mx_said_logprob;

/* One candidate's news: for a stream those not sent yet, else all its logprobs. */
typedef struct mx_said {
    char    *text;
    int32_t *ids;
    mx_said_logprob *logprobs;
    int32_t *top_id;
    float   *top_logprob;
    char    *stop;
    size_t   text_len, n_ids, n_logprobs, n_top;
    size_t   text_room, ids_room, logprobs_room, top_id_room, top_logprob_room;
    mx_finish finish;
    bool     any;
} mx_said;

/* As the arguments of mx_generation_calls.text; false: out of memory. */
bool mx_said_text(mx_said *s, const char *text, size_t len, const int32_t *ids, int n_ids);
bool mx_said_logprobs(mx_said *s, const mx_token_logprob *lp, int n);
void mx_said_clear(mx_said *s);        /* keeps the memory */
void mx_said_free(mx_said *s);

/* All of these build in the arena and return NULL when it is full. */
Merx__V1__GenerateEvent    *mx_event_build(mx_arena *a, const mx_said *s, int index, const mx_tokenizer *t);
Merx__V1__Usage            *mx_usage_build(mx_arena *a, const mx_generation_stats *st);
Merx__V1__Timings          *mx_timings_build(mx_arena *a, const mx_generation_stats *st, uint64_t accepted_ns,
                                             uint64_t submitted_ns);
/* said: of each candidate, for logprobs; may be NULL. */
Merx__V1__GenerateResponse *mx_response_build(mx_arena *a, const mx_generation *g, const mx_said *said,
                                              const mx_tokenizer *t);
Merx__V1__FinishReason      mx_finish_wire(mx_finish f);

#endif
