/* profile_tags.c - what tags there are, and how their heads are learned. */
#include "server/profiles_internal.h"

#include "runtime/log.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef Merx__V1__TagDefinition definition;

enum { LEAST_EVENTS = 6, LEAST_USERS = 40, MOST_USERS = 20000 };
#define LEAST_DEVIATION 0.1           /* of features, which lie in 0..1: what all users have alike is not blown up to tell them apart */
#define NET_FEATURES 4.0
#define TEXT_SCALE 0.3                /* of vectors of texts while a head is learned: an eleven times larger ridge on theirs */

/* A message as protobuf-c would have made it. */
static definition *own_copy(const definition *m)
{
    size_t n = merx__v1__tag_definition__get_packed_size(m);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return NULL;
    merx__v1__tag_definition__pack(m, bytes);
    definition *copy = merx__v1__tag_definition__unpack(NULL, n, bytes);
    free(bytes);
    return copy;
}

static mx_status store(mx_profiles *p, const definition *m, mx_error *err)
{
    size_t n = merx__v1__tag_definition__get_packed_size(m);
    uint8_t *bytes = malloc(n + 1);
    if (!bytes) return mx_fail(err, MX_ERR_NO_MEMORY, "a tag");
    merx__v1__tag_definition__pack(m, bytes);
    mx_status st = mx_store_put_document(p->store, "tag", m->name, bytes, n, err);
    free(bytes);
    return st;
}

static int32_t find(const mx_profiles *p, const char *name)
{
    for (int32_t k = 0; k < p->n_tags; k++)
        if (!strcmp(p->tag[k]->name, name)) return k;
    return -1;
}

/* ---- definitions ----------------------------------------------------------------------------- */

static mx_status check_rule(const Merx__V1__TagRule *r, size_t i, mx_error *err)
{
    double most = r->percentile ? 1 : 1e9;
    if (mx_feature_find(r->feature) < 0) return mx_fail(err, MX_ERR_ARG, "rules[%zu].feature: there is no \"%.60s\"; GetProfile tells which there are", i, r->feature);
    if (!r->_at_least_case && !r->_at_most_case) return mx_fail(err, MX_ERR_ARG, "rules[%zu]: neither at_least nor at_most", i);
    if ((r->_at_least_case && !(fabs(r->at_least) <= most)) || (r->_at_most_case && !(fabs(r->at_most) <= most)))
        return mx_fail(err, MX_ERR_ARG, "rules[%zu]: a limit is over %g", i, most);
    if (!(fabs(r->weight) <= 100)) return mx_fail(err, MX_ERR_ARG, "rules[%zu].weight is %g; it must be from -100 to 100", i, r->weight);
    return MX_OK;
}

static mx_status check(const definition *m, mx_error *err)
{
    size_t n = strlen(m->name);
    if (!n || n > 63) return mx_fail(err, MX_ERR_ARG, "name: 1 to 63 bytes");
    for (size_t i = 0; i < n; i++)
        if (!isalnum((unsigned char)m->name[i]) && !strchr("._-", m->name[i])) return mx_fail(err, MX_ERR_ARG, "name: letters, digits and . _ - only");
    if (strlen(m->description) > 1000) return mx_fail(err, MX_ERR_ARG, "description: %zu bytes, at most 1000", strlen(m->description));
    if (!m->n_rules || m->n_rules > 32) return mx_fail(err, MX_ERR_ARG, "rules: %zu of them, 1..32 are allowed", m->n_rules);
    if (!(fabs(m->bias) <= 100)) return mx_fail(err, MX_ERR_ARG, "bias is %g; it must be from -100 to 100", m->bias);
    if (!(m->enter >= 0 && m->enter <= 1) || !(m->exit >= 0 && m->exit <= 1) || (m->enter > 0 && m->exit > m->enter))
        return mx_fail(err, MX_ERR_ARG, "enter is %g, exit %g; 0 <= exit <= enter <= 1", m->enter, m->exit);
    if (m->ttl_days < 0 || m->ttl_days > 36500) return mx_fail(err, MX_ERR_ARG, "ttl_days is %d; it must be from 0 to 36500", m->ttl_days);
    for (size_t i = 0; i < m->n_rules; i++) MX_TRY(check_rule(m->rules[i], i, err));
    return MX_OK;
}

static mx_status define(mx_profiles *p, const definition *given, mx_error *err)
{
    MX_TRY(check(given, err));
    int32_t k = find(p, given->name);
    if (k < 0 && p->n_tags == TAGS) return mx_fail(err, MX_ERR_STATE, "there are %d tags; there is no room for more", TAGS);
    definition bare = *given;
    if (bare.enter == 0) bare.enter = 0.6;
    if (bare.exit == 0) bare.exit = bare.enter < 0.4 ? bare.enter : 0.4;
    if (bare.ttl_days == 0) bare.ttl_days = 30;
    bare.version = k < 0 ? 1 : p->tag[k]->version + 1;
    bare.calibrated = false;
    bare.learned_from = bare.held_out = 0;
    bare.n_head = bare.n_means = bare.n_deviations = 0;
    bare.head_network = (char *)(uintptr_t)"";
    bare.held_out_accuracy = bare.calibration_error = bare.positives = bare.head_bias = 0;
    definition *m = own_copy(&bare);
    if (!m) return mx_fail(err, MX_ERR_NO_MEMORY, "a tag");
    if (k < 0) k = p->n_tags++;
    else merx__v1__tag_definition__free_unpacked(p->tag[k], NULL);
    p->tag[k] = m;
    return store(p, m, err);
}

mx_status mx_profiles_define(mx_profiles *p, mx_profiles_op *op)
{
    const definition *q = (const definition *)op->request;
    MX_TRY(define(p, q, &op->err));
    MX_TRY(profile_touch_all(p, &op->err));
    return profile_answer(op, &p->tag[find(p, q->name)]->base);
}

mx_status mx_profiles_list(mx_profiles *p, mx_profiles_op *op)
{
    Merx__V1__ListTagsResponse r = MERX__V1__LIST_TAGS_RESPONSE__INIT;
    r.n_tags = (size_t)p->n_tags;
    r.tags = p->tag;
    return profile_answer(op, &r.base);
}

/* ---- the first tags ------------------------------------------------------------------------------ */

static Merx__V1__TagRule rule(const char *feature, double least, double most, bool percentile, double weight)
{
    Merx__V1__TagRule r = MERX__V1__TAG_RULE__INIT;
    r.feature = (char *)(uintptr_t)feature;
    if (least > -1) r._at_least_case = MERX__V1__TAG_RULE___AT_LEAST_AT_LEAST, r.at_least = least;
    if (most > -1) r._at_most_case = MERX__V1__TAG_RULE___AT_MOST_AT_MOST, r.at_most = most;
    r.percentile = percentile;
    r.weight = weight;
    return r;
}

static mx_status first_tag(mx_profiles *p, const char *name, const char *description, double bias, Merx__V1__TagRule *rules, size_t n, mx_error *err)
{
    Merx__V1__TagRule *list[6];
    definition m = MERX__V1__TAG_DEFINITION__INIT;
    for (size_t i = 0; i < n; i++) list[i] = &rules[i];
    m.name = (char *)(uintptr_t)name, m.description = (char *)(uintptr_t)description;
    m.bias = bias;
    m.rules = list, m.n_rules = n;
    return define(p, &m, err);
}

static mx_status first_tags(mx_profiles *p, mx_error *err)
{
    Merx__V1__TagRule price[] = {rule("promo_share", 0.7, -2, true, 2.5), rule("promo_share", -2, 0.3, false, -2.5),        /* what nothing says of anybody */
                                 rule("price_rank", -2, 0.49, true, 1.5), rule("price_words", 0.7, -2, true, 1),
                                 rule("price_response", 0.55, -2, false, 1), rule("price_response", -2, 0.45, false, -1.5)};      /* what the user's own choices say */
    Merx__V1__TagRule quality[] = {rule("price_rank", 0.7, -2, true, 2.5), rule("quality_words", 0.8, -2, true, 2.5)};
    Merx__V1__TagRule social[] = {rule("social", 0.8, -2, true, 2), rule("social_rate", 0.8, -2, true, 1.5)};
    MX_TRY(first_tag(p, "price-sensitive", "buys reduced (over the 70th percentile of the posterior share), and below the median price of its categories or less the higher the price", -3, price, 6, err));
    MX_TRY(first_tag(p, "quality-seeking", "buys in the upper 30 % of its categories' prices, or speaks of quality", -2, quality, 2, err));
    return first_tag(p, "socially-active", "follows, joins, shares and reviews, in the upper 20 %", -2.5, social, 2, err);
}

static mx_status take_tag(void *ctx, const char *key, const void *data, size_t size, mx_error *err)
{
    mx_profiles *p = ctx;
    definition *m = merx__v1__tag_definition__unpack(NULL, size, data);
    if (!m || p->n_tags == TAGS) {
        if (m) merx__v1__tag_definition__free_unpacked(m, NULL);
        return mx_fail(err, MX_ERR_FORMAT, "the stored tag \"%.63s\" is broken", key);
    }
    p->tag[p->n_tags++] = m;
    return MX_OK;
}

mx_status profile_open_tags(mx_profiles *p, mx_error *err)
{
    MX_TRY(mx_store_each_document(p->store, "tag", take_tag, p, err));
    if (p->n_tags) return MX_OK;
    MX_TRY(mx_store_begin(p->store, err));
    MX_TRY(first_tags(p, err));
    return mx_store_commit(p->store, err);
}

void profile_close_tags(mx_profiles *p)
{
    for (int32_t k = 0; k < p->n_tags; k++) merx__v1__tag_definition__free_unpacked(p->tag[k], NULL);
    p->n_tags = 0;
}

/* ---- learning -------------------------------------------------------------------------------------- */

/* What users did first and what they did later. */
typedef struct lesson {
    int32_t n, room, d, net;          /* net: the last columns, the network's; 0: none    */
    double  net_scale;                /* of those, less their means, while the head is learned */
    double *x;                        /* [n,d] features and texts of the first half of the events */
    double (*later)[MX_FEATURES];     /* [n] features of the second half                          */
    double *y;
    const float *z;                   /* [n_z,net] what the network said of all nodes     */
    int32_t n_z;
} lesson;

static void close_lesson(lesson *l)
{
    free(l->x), free(l->later), free(l->y);
}

static mx_status learn_from(mx_profiles *p, int32_t node, lesson *l, mx_error *err)
{
    subject *s = profile_subject(p, node);
    story *t = p->story;
    float text[4096];
    if (!s || !s->now) return MX_OK;
    MX_TRY(profile_story(p, node, s, true, err));
    if (!t->consent || t->n < LEAST_EVENTS) return MX_OK;
    int32_t half = t->n / 2;                              /* newest first: [0, half) came later */
    double *row = l->x + (size_t)l->n * (size_t)l->d;
    mx_features(&p->prior, t->act + half, t->n - half, t->friends, t->n_friends, row);
    mx_features(&p->prior, t->act, half, NULL, 0, l->later[l->n]);
    if (p->dim) profile_text_mean(p, t, half, t->n - half, text);
    for (int32_t c = 0; c < p->dim; c++) row[MX_FEATURES + c] = TEXT_SCALE * (double)text[c];
    for (int32_t c = 0; c < l->net && node < l->n_z; c++) row[MX_FEATURES + p->dim + c] = (double)l->z[(size_t)node * (size_t)l->net + (size_t)c];
    l->n++;
    return MX_OK;
}

/* The network's columns less their means, and together as large as NET_FEATURES features: a ridge knows them as that. */
static void standardize_network(lesson *l, double *means)
{
    int32_t first = l->d - l->net;
    double square = 0;
    for (int32_t c = first; c < l->d; c++) {
        double *mean = &means[MX_FEATURES + c - first], *x = l->x + c;
        *mean = 0;
        for (int32_t i = 0; i < l->n; i++) *mean += x[(size_t)i * (size_t)l->d] / l->n;
        for (int32_t i = 0; i < l->n; i++) {
            double *at = &x[(size_t)i * (size_t)l->d];
            *at -= *mean;
            square += *at * *at;
        }
    }
    l->net_scale = square > 0 ? sqrt(NET_FEATURES / (square / l->n)) : 0;
    for (int32_t i = 0; i < l->n; i++)
        for (int32_t c = first; c < l->d; c++) l->x[(size_t)i * (size_t)l->d + (size_t)c] *= l->net_scale;
}

static mx_status collect(mx_profiles *p, lesson *l, mx_error *err)
{
    int32_t nodes = mx_user_graph_nodes(p->graph);
    l->d = MX_FEATURES + p->dim + l->net;
    l->room = MOST_USERS;
    while ((int64_t)l->room * l->d * l->d > 1000000000) l->room /= 2;      /* a head is learned in seconds */
    if (l->room > nodes + 1) l->room = nodes + 1;
    size_t n = (size_t)l->room;
    l->x = calloc(n * (size_t)l->d, sizeof *l->x), l->later = calloc(n, sizeof *l->later), l->y = calloc(n, sizeof *l->y);
    if (!l->x || !l->later || !l->y || p->dim > 4096) return mx_fail(err, MX_ERR_NO_MEMORY, "%d users to learn from", l->room);
    for (int32_t i = 0; i < nodes && l->n < l->room; i++) MX_TRY(learn_from(p, i, l, err));
    return MX_OK;
}

static int rising(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* How many of sorted[n] are below x; and those that equal it. */
static int32_t below(const double *sorted, int32_t n, double x, bool equal)
{
    int32_t low = 0, high = n;
    while (low < high) {
        int32_t middle = (low + high) / 2;
        if (sorted[middle] < x || (equal && sorted[middle] == x)) low = middle + 1;
        else high = middle;
    }
    return low;
}

/* The rules' verdicts on what came later; percentiles are those of the users who are learned from. */
static mx_status verdicts(const definition *m, lesson *l, mx_error *err)
{
    double *sorted = calloc((size_t)l->n + 1, sizeof *sorted);
    if (!sorted) return mx_fail(err, MX_ERR_NO_MEMORY, "%d users to learn from", l->n);
    for (int32_t i = 0; i < l->n; i++) l->y[i] = m->bias;
    for (size_t k = 0; k < m->n_rules; k++) {
        int32_t f = mx_feature_find(m->rules[k]->feature);
        for (int32_t i = 0; i < l->n; i++) sorted[i] = l->later[i][f];
        qsort(sorted, (size_t)l->n, sizeof *sorted, rising);
        for (int32_t i = 0; i < l->n; i++) {
            double x = l->later[i][f], percentile = (below(sorted, l->n, x, false) + below(sorted, l->n, x, true)) / (2.0 * l->n);
            if (profile_rule_holds(m->rules[k], x, percentile)) l->y[i] += m->rules[k]->weight;
        }
    }
    for (int32_t i = 0; i < l->n; i++) l->y[i] = l->y[i] > 0;
    free(sorted);
    return MX_OK;
}

static void standardize(lesson *l, double *means, double *deviations)
{
    for (int32_t f = 0; f < MX_FEATURES; f++) {
        double sum = 0, square = 0;
        for (int32_t i = 0; i < l->n; i++) sum += l->x[(size_t)i * (size_t)l->d + f];
        means[f] = sum / l->n;
        for (int32_t i = 0; i < l->n; i++) {
            double *v = &l->x[(size_t)i * (size_t)l->d + f];
            *v -= means[f];
            square += *v * *v;
        }
        deviations[f] = sqrt(square / l->n);
        if (deviations[f] < LEAST_DEVIATION) deviations[f] = LEAST_DEVIATION;
        for (int32_t i = 0; i < l->n; i++) l->x[(size_t)i * (size_t)l->d + f] /= deviations[f];
    }
}

typedef struct head {
    double  *w, bias, *means, deviations[MX_FEATURES];      /* w[d]; means of features, then of the network's columns */
    int32_t  learned, held;
    double   accuracy, error, positives;
} head;

/* A fifth of the users is held out: half of it calibrates, half measures. */
static mx_status fit(lesson *l, head *h, mx_error *err)
{
    int32_t d = l->d, held = l->n / 5, learned = l->n - held, first = held / 2;
    standardize(l, h->means, h->deviations);
    standardize_network(l, h->means);
    for (int32_t i = 0; i < l->n; i++) h->positives += l->y[i] / l->n;
    MX_TRY(mx_logistic_fit(l->x, l->y, learned, d, 1, h->w, &h->bias, err));
    double *score = calloc((size_t)held + 1, sizeof *score), scale, shift;
    if (!score) return mx_fail(err, MX_ERR_NO_MEMORY, "%d users", held);
    for (int32_t i = 0; i < held; i++) {
        score[i] = h->bias;
        for (int32_t c = 0; c < d; c++) score[i] += h->w[c] * l->x[(size_t)(learned + i) * (size_t)d + c];
    }
    mx_platt_fit(score, l->y + learned, first, &scale, &shift);
    for (int32_t i = 0; i < held; i++) score[i] = mx_sigmoid(scale * score[i] + shift);
    for (int32_t i = first; i < held; i++) h->accuracy += ((score[i] > 0.5) == (l->y[learned + i] > 0.5)) / (double)(held - first);
    h->error = mx_calibration_error(score + first, l->y + learned + first, held - first);
    for (int32_t c = 0; c < d; c++) h->w[c] *= c < MX_FEATURES ? scale : c < d - l->net ? scale * TEXT_SCALE : scale * l->net_scale;
    h->bias = scale * h->bias + shift;
    h->learned = learned, h->held = held;
    free(score);
    return MX_OK;
}

static mx_status write_head(const mx_profiles *p, int32_t k, const head *h, int32_t d, const char *network, definition **out, mx_error *err)
{
    definition next = *p->tag[k];
    next.version++;
    next.calibrated = true;
    next.learned_from = h->learned, next.held_out = h->held;
    next.held_out_accuracy = h->accuracy, next.calibration_error = h->error, next.positives = h->positives;
    next.head_network = (char *)(uintptr_t)network;
    next.head = h->w, next.n_head = (size_t)d, next.head_bias = h->bias;
    next.means = h->means, next.n_means = (size_t)(d - p->dim);
    next.deviations = (double *)(uintptr_t)h->deviations, next.n_deviations = MX_FEATURES;
    *out = own_copy(&next);
    return *out ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a head");
}

mx_status profile_learn(mx_profiles *p, int32_t k, const space *s, const float *z, int32_t n, definition **out, mx_error *err)
{
    lesson l = {.z = z, .n_z = n, .net = z ? s->dim : 0};
    head h = {0};
    *out = NULL;
    mx_status st = collect(p, &l, err);
    if (!st && l.n < LEAST_USERS)
        st = mx_fail(err, MX_ERR_STATE, "%d users have %d events or more; a head is learned from %d at least, until then the rules decide", l.n, LEAST_EVENTS, LEAST_USERS);
    if (!st) st = verdicts(p->tag[k], &l, err);
    h.w = calloc((size_t)l.d + 1, sizeof *h.w), h.means = calloc((size_t)l.d + 1, sizeof *h.means);
    if (!st && (!h.w || !h.means)) st = mx_fail(err, MX_ERR_NO_MEMORY, "a head");
    if (!st) st = fit(&l, &h, err);
    if (!st && (h.positives <= 0 || h.positives >= 1)) st = mx_fail(err, MX_ERR_STATE, "the rules say the same of all %d users; there is nothing to learn", l.n);
    if (!st) st = write_head(p, k, &h, l.d, z ? s->print : "", out, err);
    free(h.w), free(h.means);
    close_lesson(&l);
    return st;
}

mx_status profile_store_tag(mx_profiles *p, const definition *m, mx_error *err) { return store(p, m, err); }

mx_status mx_profiles_backfill(mx_profiles *p, mx_profiles_op *op)
{
    const char *name = ((const Merx__V1__BackfillTagRequest *)op->request)->name;
    int32_t k = find(p, name);
    definition *m = NULL;
    mx_error *err = &op->err;
    const float *z = op->earlier_of == p->space->serial ? op->earlier : NULL;
    mx_status st = k < 0 ? mx_fail(err, MX_ERR_NOT_FOUND, "name: there is no tag \"%.63s\"", name) : profile_learn(p, k, p->space, z, op->n_earlier, &m, err);
    free(op->earlier);
    op->earlier = NULL;
    MX_TRY(st);
    merx__v1__tag_definition__free_unpacked(p->tag[k], NULL);
    p->tag[k] = m;
    MX_TRY(store(p, m, err));
    MX_TRY(profile_touch_all(p, err));
    return profile_answer(op, &m->base);
}
