/* profile_build.c - from a story to a packed Profile: scores, evidence, states. */
#include "server/profiles_internal.h"
#include "runtime/clock.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef Merx__V1__TagDefinition definition;

/* ---- the population ------------------------------------------------------------------------- */

static int32_t bin_of(double x)
{
    int32_t b = (int32_t)(x * BINS);
    return b < 0 ? 0 : b >= BINS ? BINS - 1 : b;
}

void profile_uncount(mx_profiles *p, subject *s)
{
    if (s->bin[0] < 0) return;
    for (int32_t f = 0; f < MX_FEATURES; f++) p->histogram[f][s->bin[f]]--, s->bin[f] = -1;
    p->counted--;
}

void profile_count(mx_profiles *p, subject *s)
{
    profile_uncount(p, s);
    for (int32_t f = 0; f < MX_FEATURES; f++) p->histogram[f][s->bin[f] = (int16_t)bin_of((double)s->feature[f])]++;
    p->counted++;
}

double profile_percentile(const mx_profiles *p, int32_t f, double value)
{
    int32_t b = bin_of(value);
    double below = 0;
    for (int32_t i = 0; i < b; i++) below += p->histogram[f][i];
    return p->counted ? (below + 0.5 * p->histogram[f][b]) / p->counted : 0.5;
}

/* ---- what carried a label ------------------------------------------------------------------------ */

typedef struct clue {
    Merx__V1__EvidenceKind kind;
    int32_t at;                       /* event, friend or rule                               */
    double  weight, factor;           /* factor: of the head's direction on the text's vector */
} clue;

typedef struct verdict {
    clue    clue[2 * EVENTS + FRIENDS + MX_NET_PARTS + 2];
    int32_t n;
    double  base, score;
    bool    learned;
    const mx_net_parts *parts;        /* whom the network's vector comes from; NULL: it is one clue */
} verdict;

bool profile_has_head(const mx_profiles *p, const definition *m)
{
    bool network = *m->head_network != 0;
    if (network && strcmp(m->head_network, p->space->print) != 0) return false;
    size_t net = network ? (size_t)p->space->dim : 0;
    return m->n_head == MX_FEATURES + (size_t)p->dim + net && m->n_means == MX_FEATURES + net && m->n_deviations == MX_FEATURES;
}

bool profile_rule_holds(const Merx__V1__TagRule *r, double value, double percentile)
{
    double x = r->percentile ? percentile : value;
    return (!r->_at_least_case || x >= r->at_least) && (!r->_at_most_case || x <= r->at_most);
}

static void by_rules(const mx_profiles *p, const definition *m, const double *x, verdict *v)
{
    v->base = m->bias;
    for (size_t i = 0; i < m->n_rules; i++) {
        int32_t f = mx_feature_find(m->rules[i]->feature);
        if (!profile_rule_holds(m->rules[i], x[f], profile_percentile(p, f, x[f]))) continue;
        v->clue[v->n++] = (clue){.kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_RULE, .at = (int32_t)i, .weight = m->rules[i]->weight};
    }
}

static bool is_of_texts(int32_t f)
{
    return f == MX_FEATURE_QUALITY_WORDS || f == MX_FEATURE_PRICE_WORDS || f == MX_FEATURE_SENTIMENT;
}

static double product(const double *w, const float *x, int32_t n)
{
    double sum = 0;
    for (int32_t c = 0; c < n; c++) sum += w[c] * (double)x[c];
    return sum;
}

/* What the network's vector says beyond that of the mean user.  Neighbours of its clues count behind those of the story. */
static void by_network(const mx_profiles *p, const definition *m, const story *t, verdict *v)
{
    const double *w = m->head + MX_FEATURES + p->dim;
    if (!*m->head_network || !t->has_z) return;
    double rest = product(w, t->z, p->space->dim);
    for (int32_t c = 0; c < p->space->dim; c++) rest -= w[c] * m->means[MX_FEATURES + c];
    for (int32_t i = 0; v->parts && i < v->parts->n; i++) {
        double part = product(w, v->parts->part + (size_t)i * (size_t)p->space->dim, p->space->dim);
        v->clue[v->n++] = (clue){.kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR, .at = FRIENDS + i, .weight = part};
        rest -= part;
    }
    v->clue[v->n++] = (clue){.kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_NETWORK, .weight = rest};
}

static void by_head(const mx_profiles *p, const definition *m, const story *t, verdict *v)
{
    double event[EVENTS] = {0}, text[EVENTS] = {0}, factor[EVENTS] = {0}, friends[FRIENDS] = {0}, part[EVENTS], sum = TEXT_STRENGTH;
    v->learned = true;
    v->base = m->head_bias;
    for (int32_t f = 0; f < MX_FEATURES; f++) {
        double w = m->head[f] / m->deviations[f], *to = mx_feature_of_friends(f) >= 0 ? friends : is_of_texts(f) ? text : event;
        double none[MX_FEATURES];
        mx_features(&p->prior, NULL, 0, NULL, 0, none);
        v->base += w * (none[f] - m->means[f]);
        int32_t n = mx_feature_parts(&p->prior, t->act, t->n, t->friends, t->n_friends, f, part);
        for (int32_t i = 0; i < n; i++) to[i] += w * part[i];
    }
    for (int32_t i = 0; i < t->n; i++) sum += t->vector[i] ? (double)t->act[i].weight : 0;
    for (int32_t i = 0; i < t->n; i++) {
        double dot = 0;
        for (int32_t c = 0; t->vector[i] && c < p->dim; c++) dot += m->head[MX_FEATURES + c] * (double)t->vector[i][c];
        factor[i] = t->vector[i] ? (double)t->act[i].weight / sum : 0;
        text[i] += factor[i] * dot;
    }
    for (int32_t i = 0; i < t->n; i++) {
        if (event[i] != 0) v->clue[v->n++] = (clue){.kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_EVENT, .at = i, .weight = event[i]};
        if (text[i] != 0) v->clue[v->n++] = (clue){MERX__V1__EVIDENCE_KIND__EVIDENCE_TEXT_SPAN, i, text[i], factor[i]};
    }
    for (int32_t i = 0; i < t->n_friends; i++) v->clue[v->n++] = (clue){.kind = MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR, .at = i, .weight = friends[i]};
    by_network(p, m, t, v);
}

static int weightier(const void *x, const void *y)
{
    const clue *a = x, *b = y;
    double wa = fabs(a->weight), wb = fabs(b->weight);
    if (wa != wb) return wa < wb ? 1 : -1;
    return a->kind != b->kind ? a->kind < b->kind ? -1 : 1 : (a->at > b->at) - (a->at < b->at);
}

static void judge(const mx_profiles *p, const definition *m, const story *t, const double *x, verdict *v)
{
    v->n = 0, v->learned = false;
    if (profile_has_head(p, m)) by_head(p, m, t, v);
    else by_rules(p, m, x, v);
    qsort(v->clue, (size_t)v->n, sizeof *v->clue, weightier);
    v->score = v->base;
    for (int32_t i = 0; i < v->n; i++) v->score += v->clue[i].weight;
}

/* ---- evidence in words --------------------------------------------------------------------------------- */

static char *copy_text(mx_arena *a, const char *s, size_t most)
{
    size_t n = s ? strlen(s) : 0;
    if (n > most)
        for (n = most; n && ((unsigned char)s[n] & 0xc0) == 0x80;) n--;      /* whole characters */
    char *out = mx_arena_alloc(a, n + 1);
    if (!out) return NULL;
    if (n) memcpy(out, s, n);
    out[n] = 0;
    return out;
}

static void describe_event(const mx_profiles *p, const mx_event *e, char *out, size_t size)
{
    mx_event_type type = {.name = "?"};
    mx_user_graph_event_type(p->graph, e->type, &type);
    int n = snprintf(out, size, "%s%s%.80s", type.name, e->object && *e->object ? " " : "", e->object ? e->object : "");
    if (e->price_minor >= 0 && n > 0 && (size_t)n < size)
        n += snprintf(out + n, size - (size_t)n, " at %.2f%s%.8s", (double)e->price_minor / 100, e->currency && *e->currency ? " " : "", e->currency ? e->currency : "");
    if ((e->flags & MX_EVENT_PROMO) && n > 0 && (size_t)n < size) snprintf(out + n, size - (size_t)n, ", reduced");
}

static void describe_rule(const mx_profiles *p, const Merx__V1__TagRule *r, const double *x, char *out, size_t size)
{
    int32_t f = mx_feature_find(r->feature);
    int n = snprintf(out, size, "%s is %.2f, over %.0f %% of users", r->feature, x[f], 100 * profile_percentile(p, f, x[f]));
    const char *unit = r->percentile ? " of users" : "";
    if (r->_at_least_case && (size_t)n < size) n += snprintf(out + n, size - (size_t)n, "; at least %.2f%s", r->at_least, unit);
    if (r->_at_most_case && (size_t)n < size) snprintf(out + n, size - (size_t)n, "; at most %.2f%s", r->at_most, unit);
}

/* Through the network: one neighbour, all further ones, or what is left. */
static void describe_network(const mx_profiles *p, const verdict *v, const clue *c, char key[MX_KEY_MOST + 1], char *out, size_t size)
{
    int32_t type;
    if (c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NETWORK) {
        snprintf(out, size, v->parts ? "its own words and figures, through the network %s" : "the network %s, of its words, figures and neighbours", p->space->name);
        return;
    }
    int32_t node = v->parts->node[c->at - FRIENDS];
    if (node < 0 || !mx_user_graph_node(p->graph, node, &type, key)) snprintf(out, size, "all other neighbours, through the network %s", p->space->name);
    else snprintf(out, size, "%s %.128s, through the network %s", type == p->user ? "is joined to" : "has", key, p->space->name);
}

static bool tell(mx_profiles *p, const definition *m, const story *t, const double *x, const verdict *v, const clue *c, bool whole, Merx__V1__Evidence *e)
{
    char text[256] = "", key[MX_KEY_MOST + 1] = "";
    int32_t type;
    merx__v1__evidence__init(e);
    e->kind = c->kind;
    e->weight = c->weight;
    if (c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_RULE) {
        describe_rule(p, m->rules[c->at], x, text, sizeof text);
        e->ref = m->rules[c->at]->feature;
    } else if (c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NETWORK || (c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR && c->at >= FRIENDS)) {
        describe_network(p, v, c, key, text, sizeof text);
        e->ref = copy_text(&p->arena, c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NETWORK ? p->space->name : key, MX_KEY_MOST);
    } else if (c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_NEIGHBOUR) {
        mx_user_graph_node(p->graph, t->friend_node[c->at], &type, key);
        snprintf(text, sizeof text, "follows %.128s", key);
        e->ref = copy_text(&p->arena, key, MX_KEY_MOST);
    } else {
        const mx_event *of = &t->event[c->at];
        bool words = c->kind == MERX__V1__EVIDENCE_KIND__EVIDENCE_TEXT_SPAN;
        if (!words) describe_event(p, of, text, sizeof text);
        else e->text = copy_text(&p->arena, of->text, whole ? MX_TEXT_MOST : 120);
        e->ref = copy_text(&p->arena, of->id, MX_KEY_MOST);
        e->ts_ms = of->ts_ms;
        if (words) return e->ref && e->text;
    }
    e->text = copy_text(&p->arena, text, sizeof text);
    return e->ref && e->text;
}

/* shown < 0: all of it. */
static bool write_tag(mx_profiles *p, const definition *m, const story *t, const double *x, const verdict *v, const mx_label *l, int32_t shown, Merx__V1__Tag *out)
{
    int32_t n = shown < 0 || shown > v->n ? v->n : shown;
    Merx__V1__Evidence *e = mx_arena_array(&p->arena, (size_t)n + 1, sizeof *e);
    merx__v1__tag__init(out);
    out->evidence = mx_arena_array(&p->arena, (size_t)n + 1, sizeof *out->evidence);
    out->name = copy_text(&p->arena, m->name, 64);
    if (!e || !out->evidence || !out->name) return false;
    out->version = m->version;
    out->score = v->score;
    out->probability = mx_sigmoid(v->score);
    out->calibrated = v->learned && m->calibrated;
    out->state = (Merx__V1__TagState)l->state;
    out->since_ms = l->since_ms;
    out->expires_ms = l->expires_ms;
    out->source = (char *)(uintptr_t)(v->learned ? "model" : "rule");
    out->base_score = v->base;
    for (int32_t i = 0; i < n; i++) {
        if (!tell(p, m, t, x, v, &v->clue[i], shown < 0, &e[i])) return false;
        out->evidence[out->n_evidence++] = &e[i];
    }
    double sum = v->base;
    for (int32_t i = 0; i < n; i++) sum += v->clue[i].weight;
    out->rest = v->score - sum;
    return true;
}

/* ---- states ------------------------------------------------------------------------------------------------ */

static change *next_change(subject *s, const char *tag)
{
    if (!s->changes) s->changes = calloc(HISTORY, sizeof *s->changes);
    if (!s->changes) return NULL;
    if (s->n_changes == HISTORY) memmove(s->changes, s->changes + 1, (size_t)(--s->n_changes) * sizeof *s->changes);
    change *c = &s->changes[s->n_changes++];
    *c = (change){0};
    snprintf(c->tag, sizeof c->tag, "%s", tag);
    return c;
}

static bool remember(subject *s, const definition *m, bool in, double probability, int64_t now)
{
    change *c = next_change(s, m->name);
    if (!c) return false;
    c->version = m->version, c->in = in, c->probability = (float)probability, c->ts_ms = now;
    return s->changed = true;
}

static bool step(subject *s, int32_t k, const definition *m, double probability, int64_t now, int64_t newest)
{
    mx_label *l = &s->label[k];
    mx_label_limits limits = {m->enter, m->exit, m->ttl_days * DAY_MS};
    if (mx_label_step(l, &limits, probability, now, newest) && !remember(s, m, l->expires_ms != 0, probability, now)) return false;
    if (l->expires_ms && (!s->expires_ms || l->expires_ms < s->expires_ms)) s->expires_ms = l->expires_ms;
    return true;
}

/* ---- the message ----------------------------------------------------------------------------------------------- */

static bool write_features(mx_profiles *p, const double *x, Merx__V1__Profile *m)
{
    Merx__V1__ProfileFeature *f = mx_arena_array(&p->arena, MX_FEATURES, sizeof *f);
    m->features = mx_arena_array(&p->arena, MX_FEATURES, sizeof *m->features);
    if (!f || !m->features) return false;
    for (int32_t i = 0; i < MX_FEATURES; i++) {
        merx__v1__profile_feature__init(&f[i]);
        f[i].name = (char *)(uintptr_t)mx_feature_name(i);
        f[i].value = x[i];
        f[i].population_pct = profile_percentile(p, i, x[i]);
        m->features[m->n_features++] = &f[i];
    }
    return true;
}

static bool write_rfm(mx_profiles *p, const story *t, int64_t now, Merx__V1__Profile *m)
{
    Merx__V1__Rfm *r = mx_arena_array(&p->arena, 1, sizeof *r);
    const char *currency = NULL;
    if (!r) return false;
    merx__v1__rfm__init(r);
    for (int32_t i = 0; i < t->n; i++) {
        const mx_event *e = &t->event[i];
        if (!(t->act[i].what & MX_ACT_BUY)) continue;
        if (!r->purchases++) r->recency_days = (double)(now - e->ts_ms) / (double)DAY_MS;
        if (e->price_minor < 0) continue;
        if (!currency) currency = e->currency ? e->currency : "";
        int64_t spent;
        if (!strcmp(currency, e->currency ? e->currency : "") && !__builtin_mul_overflow(e->price_minor, (int64_t)e->quantity, &spent) &&
            !__builtin_add_overflow(spent, r->spent_minor, &spent)) r->spent_minor = spent;
    }
    if (currency && !(r->currency = copy_text(&p->arena, currency, 32))) return false;
    m->rfm = r;
    return true;
}

static bool write_history(mx_profiles *p, const subject *s, Merx__V1__Profile *m)
{
    size_t n = (size_t)s->n_changes;
    Merx__V1__TagChange *c = mx_arena_array(&p->arena, n + 1, sizeof *c);
    m->history = mx_arena_array(&p->arena, n + 1, sizeof *m->history);
    if (!c || !m->history) return false;
    for (size_t i = 0; i < n; i++) {
        const change *h = &s->changes[i];
        merx__v1__tag_change__init(&c[i]);
        c[i].tag = (char *)(uintptr_t)h->tag;
        c[i].version = h->version, c[i].in = h->in, c[i].probability = (double)h->probability, c[i].ts_ms = h->ts_ms;
        m->history[m->n_history++] = &c[i];
    }
    return true;
}

static bool write_tags(mx_profiles *p, subject *s, const double *x, int64_t now, Merx__V1__Profile *m)
{
    const story *t = p->story;
    verdict *v = mx_arena_array(&p->arena, 1, sizeof *v);
    Merx__V1__Tag *tag = mx_arena_array(&p->arena, TAGS, sizeof *tag);
    m->tags = mx_arena_array(&p->arena, TAGS, sizeof *m->tags);
    if (!v || !tag || !m->tags) return false;
    s->expires_ms = 0;
    for (int32_t k = 0; k < p->n_tags; k++) {
        judge(p, p->tag[k], t, x, v);
        if (!step(s, k, p->tag[k], mx_sigmoid(v->score), now, t->newest_ms)) return false;
        if (!write_tag(p, p->tag[k], t, x, v, &s->label[k], SHOWN, &tag[k])) return false;
        m->tags[m->n_tags++] = &tag[k];
    }
    return true;
}

static snapshot *pack(const Merx__V1__Profile *m, int32_t node)
{
    enum { PREFIX = 10 };                                /* of a length, at most */
    size_t n = merx__v1__profile__get_packed_size(m), at = PREFIX;
    snapshot *s = malloc(sizeof *s + PREFIX + n);
    if (!s) return NULL;
    merx__v1__profile__pack(m, s->data + PREFIX);
    uint8_t length[PREFIX];
    int k = 0;
    for (size_t rest = n; rest || !k; rest >>= 7) length[k++] = (uint8_t)((rest & 127) | (rest > 127 ? 128 : 0));
    while (k) s->data[--at] = length[--k];
    s->view = (mx_profile_view){s->data + PREFIX, n, s->data + at, PREFIX - at + n, m->watermark};
    s->node = node;
    atomic_init(&s->refs, 1);
    return s;
}

/* Nothing is inferred of a user who does not want it. */
static void withdraw(mx_profiles *p, subject *s, Merx__V1__Profile *m)
{
    static char *gone[] = {"tags", "features", "rfm", "history"};
    profile_uncount(p, s);
    s->changed |= s->n_changes != 0;
    s->n_changes = 0, s->expires_ms = 0;
    memset(s->label, 0, sizeof s->label);
    m->suppressed_fields = gone;
    m->n_suppressed_fields = 4;
}

/* The story with the friends' features, and the features it gives; x[MX_FEATURES]. */
static mx_status look(mx_profiles *p, int32_t node, subject *s, double *x, mx_error *err)
{
    story *t = p->story;
    MX_TRY(profile_story(p, node, s, true, err));
    mx_features(&p->prior, t->act, t->n, t->friends, t->n_friends, x);
    for (int32_t f = 0; f < MX_FEATURES; f++) s->feature[f] = (float)x[f];
    if (p->dim && !s->text) s->text = calloc((size_t)p->dim, sizeof *s->text);
    if (p->dim && !s->text) return mx_fail(err, MX_ERR_NO_MEMORY, "a profile");
    if (p->dim) profile_text_mean(p, t, 0, t->n, s->text);
    t->has_z = p->space->net && mx_profile_net_get(p->space->net, node, t->z);
    return MX_OK;
}

mx_status profile_build(mx_profiles *p, int32_t node, subject *s, snapshot **out, mx_error *err)
{
    char key[MX_KEY_MOST + 1];
    double x[MX_FEATURES];
    int32_t type;
    int64_t now = mx_wall_ms();
    Merx__V1__Profile m = MERX__V1__PROFILE__INIT;
    MX_TRY(look(p, node, s, x, err));
    const story *t = p->story;
    *out = NULL;
    if (!t->newest_ms || !mx_user_graph_node(p->graph, node, &type, key)) {      /* only followed so far */
        profile_uncount(p, s);
        return MX_OK;
    }
    mx_arena_reset(&p->arena);
    m.user = key;
    m.as_of_ms = now;
    m.watermark = mx_user_graph_watermark(p->graph);
    m.consent = t->consent;
    m.newest_event_ms = t->newest_ms;
    bool ok = true;
    if (t->consent) {
        profile_count(p, s);
        m.events = t->n, m.texts = t->texts, m.neighbours = t->n_friends;
        ok = write_tags(p, s, x, now, &m) && write_features(p, x, &m) && write_rfm(p, t, now, &m) && write_history(p, s, &m);
    } else {
        withdraw(p, s, &m);
    }
    *out = ok ? pack(&m, node) : NULL;
    return *out ? MX_OK : mx_fail(err, MX_ERR_NO_MEMORY, "a profile");
}

/* ---- ExplainLabel -------------------------------------------------------------------------------------------------- */

static mx_status explain_with(mx_profiles *p, mx_explain_op *op, int32_t node, subject *s, int32_t k, const char *user, mx_net_parts *parts)
{
    double x[MX_FEATURES];
    Merx__V1__LabelExplanation r = MERX__V1__LABEL_EXPLANATION__INIT;
    Merx__V1__Tag tag;
    mx_error *err = &op->op.err;
    MX_TRY(look(p, node, s, x, err));
    if (!p->story->consent) return mx_fail(err, MX_ERR_STATE, "user: \"%.128s\" has withdrawn consent; nothing is inferred", user);
    mx_arena_reset(&p->arena);
    verdict *v = mx_arena_array(&p->arena, 1, sizeof *v);
    if (!v) return mx_fail(err, MX_ERR_NO_MEMORY, "an explanation");
    v->parts = parts->z && p->story->has_z ? parts : NULL;
    if (v->parts) memcpy(p->story->z, parts->z, (size_t)p->space->dim * sizeof *parts->z);      /* of one moment */
    judge(p, p->tag[k], p->story, x, v);
    if (!write_tag(p, p->tag[k], p->story, x, v, &s->label[k], -1, &tag)) return mx_fail(err, MX_ERR_NO_MEMORY, "an explanation");
    op->n_texts = 0;
    for (int32_t i = 0; i < v->n && op->n_texts < MX_EXPLAINED_TEXTS; i++)
        if (v->clue[i].factor > 0) op->text[op->n_texts].evidence = (size_t)i, op->text[op->n_texts++].factor = v->clue[i].factor;
    r.user = (char *)(uintptr_t)user;
    r.tag = &tag;
    r.definition = p->tag[k];
    return profile_answer(&op->op, &r.base);
}

static mx_status explain(mx_profiles *p, mx_explain_op *op, int32_t node, subject *s, int32_t k, const char *user)
{
    mx_net_parts parts = {0};
    mx_status st = *p->tag[k]->head_network && profile_has_head(p, p->tag[k]) ? mx_profile_net_parts(p->space->net, node, &parts, &op->op.err) : MX_OK;
    if (!st) st = explain_with(p, op, node, s, k, user, &parts);
    mx_net_parts_free(&parts);
    return st;
}

mx_status mx_profiles_explain(mx_profiles *p, mx_profiles_op *op)
{
    const Merx__V1__ExplainLabelRequest *q = (const Merx__V1__ExplainLabelRequest *)op->request;
    int32_t node = mx_user_graph_find(p->graph, p->user, q->user), k = 0;
    subject *s = profile_subject(p, node);
    if (!s || !s->now) return mx_fail(&op->err, MX_ERR_NOT_FOUND, "user: nothing is known of \"%.128s\"", q->user);
    while (k < p->n_tags && strcmp(p->tag[k]->name, q->tag) != 0) k++;
    if (k == p->n_tags) return mx_fail(&op->err, MX_ERR_NOT_FOUND, "tag: there is none called \"%.64s\"; ListTags tells which there are", q->tag);
    return explain(p, (mx_explain_op *)op, node, s, k, q->user);
}

/* ---- labels on disk ---------------------------------------------------------------------------------------------------- */

static mx_tag_row row_of(const char *user, const char *tag, int32_t version, int32_t state, double probability, int64_t ts_ms)
{
    return (mx_tag_row){.subject = user, .tag = tag, .version = version, .state = state, .probability = probability, .ts_ms = ts_ms};
}

mx_status profile_store_labels(mx_profiles *p, const char *user, subject *s, mx_error *err)
{
    for (int32_t k = 0; k < p->n_tags; k++) {
        mx_tag_row r = row_of(user, p->tag[k]->name, p->tag[k]->version, (int32_t)s->label[k].state, 0, mx_wall_ms());
        r.since_ms = s->label[k].since_ms, r.expires_ms = s->label[k].expires_ms;
        MX_TRY(mx_store_put_tag(p->store, &r, err));
    }
    for (int32_t i = 0; i < s->n_changes; i++) {
        change *c = &s->changes[i];
        mx_tag_row r = row_of(user, c->tag, c->version, c->in, (double)c->probability, c->ts_ms);
        if (!c->stored && !c->storing) MX_TRY(mx_store_add_tag_change(p->store, &r, err));
        c->storing = !c->stored;
    }
    s->changed = false;
    return MX_OK;
}

mx_status profile_labels_stored(mx_profiles *p, bool committed, mx_error *err)
{
    mx_status st = MX_OK;
    for (int32_t i = 0; i < p->n_storing; i++) {
        subject *s = profile_subject(p, p->storing[i]);
        if (!s) continue;                                    /* it was forgotten in this transaction */
        for (int32_t k = 0; k < s->n_changes; k++) {
            s->changes[k].stored |= s->changes[k].storing && committed;
            s->changes[k].storing = false;
        }
        s->changed |= !committed;
        if (!committed && profile_touch(p, p->storing[i], err)) st = MX_ERR_NO_MEMORY;
    }
    p->n_storing = 0;
    return st;
}

typedef struct loading { mx_profiles *p; subject *s; } loading;

static mx_status take_tag(void *ctx, const mx_tag_row *r, mx_error *err)
{
    const loading *l = ctx;
    (void)err;
    for (int32_t k = 0; k < l->p->n_tags; k++)
        if (!strcmp(r->tag, l->p->tag[k]->name)) l->s->label[k] = (mx_label){(mx_label_state)r->state, r->since_ms, r->expires_ms};
    return MX_OK;
}

static mx_status take_change(void *ctx, const mx_tag_row *r, mx_error *err)
{
    const loading *l = ctx;
    change *c = next_change(l->s, r->tag);
    if (!c) return mx_fail(err, MX_ERR_NO_MEMORY, "labels");
    c->version = r->version, c->in = r->state != 0, c->probability = (float)r->probability, c->ts_ms = r->ts_ms;
    c->stored = true;
    return MX_OK;
}

mx_status profile_load_labels(mx_profiles *p, int32_t node, subject *s, mx_error *err)
{
    loading l = {p, s};
    char key[MX_KEY_MOST + 1];
    int32_t type;
    if (!mx_user_graph_node(p->graph, node, &type, key)) return MX_OK;
    MX_TRY(mx_store_each_tag(p->store, key, take_tag, &l, err));
    return mx_store_each_tag_change(p->store, key, NULL, 0, take_change, &l, err);
}
