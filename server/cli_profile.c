/* cli_profile.c - merx profile: events to a running server, and a profile that a person can read. */
#include "server/cli_parts.h"

#include "models/user_graph.h"
#include "server/profiles.h"
#include "server/rpc.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PER_CALL = 1000 };

typedef struct session {
    mx_client  *client;
    uint32_t    timeout_ms;
    mx_rpc_status over;
} session;

/* One request, one reply; NULL: *err says why. */
static void *ask(session *s, const char *method, const ProtobufCMessage *q, const ProtobufCMessageDescriptor *type, mx_error *err)
{
    char path[80];
    size_t len = protobuf_c_message_get_packed_size(q), n = 0;
    uint8_t *msg = malloc(len + 1), *bytes = NULL;
    ProtobufCMessage *reply = NULL;
    if (!msg) {
        mx_fail(err, MX_ERR_NO_MEMORY, "a request");
        return NULL;
    }
    snprintf(path, sizeof path, "/merx.v1.Profiling/%s", method);
    protobuf_c_message_pack(q, msg);
    if (mx_client_unary(s->client, path, msg, len, s->timeout_ms, &bytes, &n, &s->over)) mx_fail(err, MX_ERR_UNAVAILABLE, "the call could not start");
    else if (s->over.code) mx_fail(err, MX_ERR_STATE, "%s: %.400s", mx_rpc_code_name(s->over.code), s->over.text);
    else if (!(reply = protobuf_c_message_unpack(type, NULL, n, bytes))) mx_fail(err, MX_ERR_FORMAT, "the server's answer cannot be read");
    free(bytes), free(msg);
    return reply;
}

/* ---- events from a file --------------------------------------------------------------------- */

typedef struct pile {
    Merx__V1__Event  event[PER_CALL], *list[PER_CALL];
    json_t          *row[PER_CALL];   /* their texts lie there */
    size_t           n;
    uint64_t         accepted, duplicates, late, rejected, watermark;
    char             first[300];      /* why the first was rejected */
} pile;

static mx_status read_field(Merx__V1__Event *e, const char *name, const json_t *v, mx_error *err)
{
    const struct { const char *name; char **to; } texts[] = {
        {"event_id", &e->event_id}, {"type", &e->type}, {"user", &e->user}, {"object", &e->object}, {"currency", &e->currency},
        {"category", &e->category}, {"channel", &e->channel}, {"session", &e->session}, {"text", &e->text}};
    const struct { const char *name; int64_t *to; } numbers[] = {{"ts_ms", &e->ts_ms}, {"price_minor", &e->price_minor}, {"dwell_ms", &e->dwell_ms}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (!strcmp(name, texts[i].name)) {
            if (!json_is_string(v)) return mx_fail(err, MX_ERR_FORMAT, "%s is no text", name);
            *texts[i].to = (char *)(uintptr_t)json_string_value(v);
            return MX_OK;
        }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!strcmp(name, numbers[i].name)) {
            if (!json_is_integer(v)) return mx_fail(err, MX_ERR_FORMAT, "%s is no whole number", name);
            *numbers[i].to = json_integer_value(v);
            return MX_OK;
        }
    if (!strcmp(name, "quantity") && json_is_integer(v)) return e->quantity = (int32_t)json_integer_value(v), MX_OK;
    if (!strcmp(name, "weight") && json_is_number(v)) return e->weight = (float)json_number_value(v), MX_OK;
    if (!strcmp(name, "promo") && json_is_boolean(v)) return e->promo = json_is_true(v), MX_OK;
    if (!strcmp(name, "consent") && json_is_boolean(v)) {
        e->_consent_case = MERX__V1__EVENT___CONSENT_CONSENT;
        e->consent = json_is_true(v);
        return MX_OK;
    }
    return mx_fail(err, MX_ERR_FORMAT, "\"%.60s\" is no field of an event, or not of its kind", name);
}

static mx_status take_line(pile *p, const char *line, size_t len, uint64_t number, mx_error *err)
{
    json_error_t why;
    const char *name;
    json_t *v, *row = json_loadb(line, len, 0, &why);
    Merx__V1__Event *e = &p->event[p->n];
    if (!json_is_object(row)) {
        json_decref(row);
        return mx_fail(err, MX_ERR_FORMAT, "line %llu: no JSON object", (unsigned long long)number);
    }
    merx__v1__event__init(e);
    p->list[p->n] = e;
    p->row[p->n++] = row;
    json_object_foreach(row, name, v) {
        mx_error field = {0};
        if (read_field(e, name, v, &field)) return mx_fail(err, MX_ERR_FORMAT, "line %llu: %.300s", (unsigned long long)number, field.text);
    }
    return MX_OK;
}

static mx_status send_pile(session *s, pile *p, mx_error *err)
{
    Merx__V1__PutEventsRequest q = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    q.events = p->list;
    q.n_events = p->n;
    Merx__V1__EventsAck *r = p->n ? ask(s, "PutEvents", &q.base, &merx__v1__events_ack__descriptor, err) : NULL;
    mx_status st = r || !p->n ? MX_OK : err->code;
    if (r) {
        p->accepted += (uint64_t)r->accepted, p->duplicates += (uint64_t)r->duplicates, p->late += (uint64_t)r->late, p->rejected += r->n_rejected;
        p->watermark = r->watermark;
        if (r->n_rejected && !p->first[0]) snprintf(p->first, sizeof p->first, "%.60s: %s, %.200s", r->rejected[0]->event_id, r->rejected[0]->reason, r->rejected[0]->message);
        merx__v1__events_ack__free_unpacked(r, NULL);
    }
    for (size_t i = 0; i < p->n; i++) json_decref(p->row[i]);
    p->n = 0;
    return st;
}

static mx_status send_file(session *s, FILE *f, pile *p, bool quiet, mx_error *err)
{
    cli_progress progress;
    char *line = NULL;
    size_t room = 0;
    uint64_t number = 0, bytes = 0;
    mx_status st = MX_OK;
    ssize_t n;
    sigset_t held;
    long total = fseek(f, 0, SEEK_END) ? 0 : ftell(f);
    if (total > 0) rewind(f);
    cli_hold_signals(&held);
    cli_progress_open(&progress, quiet, 0);
    while (!st && (n = getline(&line, &room, f)) > 0) {
        number++, bytes += (uint64_t)n;
        if (strspn(line, " \t\r\n") == (size_t)n) continue;
        st = take_line(p, line, (size_t)n, number, err);
        if (!st && p->n == PER_CALL) st = send_pile(s, p, err);
        cli_progress_figures(&progress, total > 0 ? (double)bytes / (double)total : 0, "%llu events", (unsigned long long)number);
        if (!st && cli_signal_pending(&held)) st = mx_fail(err, MX_ERR_CANCELLED, "stopped; what was acknowledged is kept, and is a duplicate next time");
    }
    if (!st) st = send_pile(s, p, err);
    for (size_t i = 0; i < p->n; i++) json_decref(p->row[i]);
    cli_progress_clear(&progress);
    free(line);
    return st;
}

static mx_status put_file(session *s, const char *path, bool quiet, mx_error *err)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "re") : stdin;
    pile *p = calloc(1, sizeof *p);
    mx_status st = MX_OK;
    if (!f) st = mx_fail(err, MX_ERR_IO, "input: %s: %s", path, strerror(errno));
    else if (!p) st = mx_fail(err, MX_ERR_NO_MEMORY, "events");
    if (!st) st = send_file(s, f, p, quiet, err);
    if (!st && !quiet)
        fprintf(stderr, "merx: %llu events are on disk, %llu were there before, %llu are late, %llu were rejected%s%s\n", (unsigned long long)p->accepted,
                (unsigned long long)p->duplicates, (unsigned long long)p->late, (unsigned long long)p->rejected, p->first[0] ? "; the first: " : "", p->first);
    if (f && f != stdin) fclose(f);
    free(p);
    return st;
}

/* A tag that nothing can be learned of is told and left to its rules; none at all is an error. */
static mx_status learn(session *s, bool quiet, mx_error *err)
{
    int learned = 0;
    Merx__V1__ListTagsRequest q = MERX__V1__LIST_TAGS_REQUEST__INIT;
    Merx__V1__ListTagsResponse *all = ask(s, "ListTags", &q.base, &merx__v1__list_tags_response__descriptor, err);
    mx_status st = all ? MX_OK : err->code;
    for (size_t i = 0; !st && i < all->n_tags; i++) {
        Merx__V1__BackfillTagRequest b = MERX__V1__BACKFILL_TAG_REQUEST__INIT;
        b.name = all->tags[i]->name;
        Merx__V1__TagDefinition *d = ask(s, "BackfillTag", &b.base, &merx__v1__tag_definition__descriptor, err);
        learned += d != NULL;
        if (!d && s->over.code == mx_rpc_code_of(MX_ERR_STATE) && (learned || i + 1 < all->n_tags)) {
            if (!quiet) fprintf(stderr, "merx: %s: rules decide: %s\n", b.name, s->over.text);
        } else if (!d) st = err->code;
        else if (!quiet)
            fprintf(stderr, "merx: %s learned from %d users; of %d others %.0f %% are told right, calibration error %.3f\n", d->name, d->learned_from, d->held_out,
                    100 * d->held_out_accuracy, d->calibration_error);
        if (d) merx__v1__tag_definition__free_unpacked(d, NULL);
    }
    if (all) merx__v1__list_tags_response__free_unpacked(all, NULL);
    return st;
}

/* ---- a profile for people ---------------------------------------------------------------------- */

static void print(const char *text, bool tty)
{
    cli_print_text(stdout, tty, text, strlen(text));
}

static void day(int64_t ms, char out[20])
{
    time_t t = (time_t)(ms / 1000);
    struct tm tm;
    if (!ms || !gmtime_r(&t, &tm) || !strftime(out, 20, "%Y-%m-%d", &tm)) strcpy(out, "-");
}

static void print_evidence(const Merx__V1__Evidence *e, bool tty)
{
    char when[20];
    bool words = e->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_TEXT_SPAN;
    day(e->ts_ms, when);
    printf("      %+6.2f  %s", e->weight, words ? "wrote \"" : "");
    print(e->text, tty);
    printf("%s%s%s\n", words ? "\"" : "", e->ts_ms ? "  " : "", e->ts_ms ? when : "");
}

static void print_tag(const Merx__V1__Tag *t, bool tty)
{
    static const char *const states[] = {"not so", "newly in", "in", "in, leaving", "expired"};
    char since[20], until[20];
    day(t->since_ms, since), day(t->expires_ms, until);
    bool in = t->state >= MERX__V1__TAG_STATE__TAG_ENTERED && t->state <= MERX__V1__TAG_STATE__TAG_EXITING;
    printf("\n  %-22s [", t->name);
    for (int i = 0; i < 20; i++) putchar(i < (int)lround(t->probability * 20) ? '#' : '.');
    printf("] %3.0f %%  %s", 100 * t->probability, (unsigned)t->state < 5 ? states[t->state] : "?");
    if (in) printf(" since %s, until %s", since, until);
    printf("  (%s, version %d%s)\n", t->source, t->version, t->calibrated ? ", calibrated" : "");
    printf("      %+6.2f  what is said of anybody\n", t->base_score);
    for (size_t i = 0; i < t->n_evidence; i++) print_evidence(t->evidence[i], tty);
    if (fabs(t->rest) >= 0.005) printf("      %+6.2f  all others together\n", t->rest);
    printf("      = %.2f\n", t->score);
}

static void print_profile(const Merx__V1__Profile *p)
{
    bool tty = cli_term_of(stdout).tty;
    char when[20];
    day(p->as_of_ms, when);
    print(p->user, tty);
    printf("  as of %s: %d events, %d with words, follows %d\n", when, p->events, p->texts, p->neighbours);
    if (p->network) {
        printf("  the network ");
        print(p->network->name, tty);
        printf(" (%s, version %d) speaks of the events up to number %llu", p->network->kind, p->network->version, (unsigned long long)p->network->watermark);
        if (p->network->watermark < p->watermark) printf("; this profile is of %llu", (unsigned long long)p->watermark);
        putchar('\n');
    }
    if (!p->consent) printf("  has withdrawn consent: nothing is inferred\n");
    if (p->rfm && p->rfm->purchases) {
        printf("  bought %d times, the last time %.1f days ago", p->rfm->purchases, p->rfm->recency_days);
        if (p->rfm->spent_minor) printf(", for %.2f ", (double)p->rfm->spent_minor / 100), print(p->rfm->currency, tty);
        putchar('\n');
    }
    for (size_t i = 0; i < p->n_tags; i++) print_tag(p->tags[i], tty);
    if (p->n_features) printf("\n  %-22s %8s  %s\n", "features", "value", "over so many users");
    for (size_t i = 0; i < p->n_features; i++)
        printf("  %-22s %8.2f  %3.0f %%\n", p->features[i]->name, p->features[i]->value, 100 * p->features[i]->population_pct);
    if (p->n_history) printf("\n  history\n");
    for (size_t i = 0; i < p->n_history; i++) {
        day(p->history[i]->ts_ms, when);
        printf("  %s  %s %s at %.0f %%\n", when, p->history[i]->in ? "entered" : "left", p->history[i]->tag, 100 * p->history[i]->probability);
    }
}

/* Of a user who withdrew consent there is nothing to say. */
static void show_recommended(session *s, const char *user)
{
    static const struct { const char *method, *words; } how[] = {
        {"network", "by the network"}, {"neighbours", "by who has the same"}, {"popular", "what most have"}};
    Merx__V1__RecommendRequest q = MERX__V1__RECOMMEND_REQUEST__INIT;
    mx_error err = {0};
    bool tty = cli_term_of(stdout).tty;
    q.user = (char *)(uintptr_t)user, q.count = 5;
    Merx__V1__RecommendResponse *r = ask(s, "Recommend", &q.base, &merx__v1__recommend_response__descriptor, &err);
    for (size_t i = 0; r && i < r->n_items; i++) {
        printf(i ? ", " : "\n  may like ");
        print(r->items[i]->item, tty);
    }
    for (size_t k = 0; r && r->n_items && k < sizeof how / sizeof *how; k++)
        if (!strcmp(r->method, how[k].method)) printf("  (%s)\n", how[k].words);
    if (r) merx__v1__recommend_response__free_unpacked(r, NULL);
}

static mx_status show(session *s, const char *user, mx_error *err)
{
    Merx__V1__GetProfileRequest q = MERX__V1__GET_PROFILE_REQUEST__INIT;
    Merx__V1__PutEventsRequest none = MERX__V1__PUT_EVENTS_REQUEST__INIT;
    Merx__V1__EventsAck *w = ask(s, "PutEvents", &none.base, &merx__v1__events_ack__descriptor, err);      /* what is acknowledged by now */
    if (!w) return err->code;
    q.user = (char *)(uintptr_t)user;
    q.min_watermark = w->watermark;
    merx__v1__events_ack__free_unpacked(w, NULL);
    Merx__V1__ProfileAnswer *r = ask(s, "GetProfile", &q.base, &merx__v1__profile_answer__descriptor, err);
    if (!r) return err->code;
    print_profile(r->profile);
    merx__v1__profile_answer__free_unpacked(r, NULL);
    show_recommended(s, user);
    return MX_OK;
}

/* From a folder that no server has open. */
static mx_status show_folder(const char *folder, const char *user, mx_error *err)
{
    mx_profiles *p;
    const mx_profile_view *v;
    MX_TRY(mx_profiles_open(&p, folder, &(mx_profiles_options){0}, err));
    mx_status st = mx_profiles_get(p, user, &v, err);
    Merx__V1__Profile *m = st ? NULL : merx__v1__profile__unpack(NULL, v->size, v->bytes);
    if (m) print_profile(m);
    if (m) merx__v1__profile__free_unpacked(m, NULL);
    if (!st) mx_profile_release(v);
    mx_profiles_close(p);
    return st;
}

int mx_cli_profile(mx_config *c, int n, char **rest)
{
    mx_error err = {0};
    session s = {.timeout_ms = (uint32_t)mx_config_int(c, "timeout") * 1000};
    const char *input = mx_config_string(c, "input"), *folder = mx_config_string(c, "profiles");
    bool quiet = mx_config_bool(c, "quiet"), heads = mx_config_bool(c, "learn");
    if (n > 1 || (!n && !input && !heads)) return cli_usage("profile takes one user; %d given", n);
    if (folder && (input || heads)) return cli_usage("with --profiles a folder is read only; events and --learn go to a server");
    mx_client_options o = cli_client_options(c);
    o.wait_for_ready = true;
    mx_status st = folder ? show_folder(folder, rest[0], &err) : mx_client_open(&s.client, mx_config_string(c, "server"), &o, &err);
    if (!st && input) st = put_file(&s, input, quiet, &err);
    if (!st && heads) st = learn(&s, quiet, &err);
    if (!st && n && !folder) st = show(&s, rest[0], &err);
    if (s.client) mx_client_close(s.client);
    if (st == MX_ERR_CANCELLED) {
        fprintf(stderr, "merx: %s\n", err.text);
        return CLI_INTERRUPTED;
    }
    if (!st || !s.over.code) return st ? cli_failed(&err) : CLI_OK;
    fprintf(stderr, "merx: %s\n", err.text);                  /* as the server said it */
    return CLI_FAILED;
}
