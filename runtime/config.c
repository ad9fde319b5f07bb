/* config.c - reading settings from four places into one table of values. */
#include "runtime/config.h"

#include "runtime/config_table.h"
#include "runtime/log.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define FILE_MOST ((size_t)1 << 20)     /* bytes of a configuration file */
#define NAME_MOST 100

extern char **environ;

/* Later wins, whatever was read first. */
typedef enum rank { FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_FLAG } rank;

struct mx_config_value {
    rank    from;
    bool    set;
    char   *where;           /* owned; NULL: "default" */
    char   *text;            /* owned; STRING and CHOICE */
    char  **items;           /* owned, each; LIST */
    int     n_items;
    bool    b;
    int64_t i;
    double  f;
};

/* ---- names ------------------------------------------------------------------- */

void mx_config_env_name(char out[MX_CONFIG_ENV_SIZE], const char *name)
{
    int n = snprintf(out, MX_CONFIG_ENV_SIZE, "MERX_%s", name);
    for (int i = 0; i < n && i < MX_CONFIG_ENV_SIZE - 1; i++)
        out[i] = out[i] == '-' ? '_' : (char)toupper((unsigned char)out[i]);
}

int mx_edit_distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    int rows[3][NAME_MOST + 1];          /* two lines back, the line before, this line */
    if (n > NAME_MOST || m > NAME_MOST) return NAME_MOST;
    for (size_t k = 0; k <= m; k++) rows[1][k] = (int)k;
    for (size_t i = 1; i <= n; i++) {
        int *two = rows[(i + 2) % 3], *one = rows[i % 3], *now = rows[(i + 1) % 3];
        now[0] = (int)i;
        for (size_t k = 1; k <= m; k++) {
            int best = one[k - 1] + (a[i - 1] != b[k - 1]);
            if (one[k] + 1 < best) best = one[k] + 1;
            if (now[k - 1] + 1 < best) best = now[k - 1] + 1;
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] && two[k - 2] + 1 < best)
                best = two[k - 2] + 1;
            now[k] = best;
        }
    }
    return rows[(n + 1) % 3][m];
}

/* The setting a person may have meant, or NULL. */
static const mx_setting *nearest(const mx_config *c, uint64_t command, const char *name)
{
    const mx_setting *best = NULL;
    int least = 1 + (int)strlen(name) / 3;
    for (int i = 0; i < c->n; i++) {
        const mx_setting *s = &c->table[i];
        if (!(s->commands & command)) continue;
        int d = mx_edit_distance(name, s->name);
        if (strlen(name) >= 4 && strncmp(name, s->name, strlen(name)) == 0) d = 1;    /* cut short */
        if (d <= least && (!best || d < least)) {
            best = s;
            least = d;
        }
    }
    return best;
}

/* Names may be written with _ for -, as in Python.  `len` bytes of `name`. */
static const mx_setting *find_n(const mx_config *c, const char *name, size_t len)
{
    for (int i = 0; i < c->n; i++) {
        const char *t = c->table[i].name;
        size_t k = 0;
        while (k < len && t[k] && (t[k] == name[k] || (t[k] == '-' && name[k] == '_'))) k++;
        if (k == len && !t[k]) return &c->table[i];
    }
    return NULL;
}

static const mx_setting *find(const mx_config *c, const char *name)
{
    return find_n(c, name, strlen(name));
}

static mx_config_value *value_of(const mx_config *c, const mx_setting *s)
{
    return &c->values[s - c->table];
}

/* ---- values as text ----------------------------------------------------------- */

static bool parse_bool(const char *text, bool *out)
{
    static const char *const yes[] = {"true", "yes", "on", "1"}, *const no[] = {"false", "no", "off", "0"};
    for (int i = 0; i < 4; i++) {
        if (strcasecmp(text, yes[i]) == 0) return *out = true, true;
        if (strcasecmp(text, no[i]) == 0) return *out = false, true;
    }
    return false;
}

/* Digits with an optional sign and k, m or g. */
static bool parse_int(const char *text, int64_t *out)
{
    const char *digits = text + (*text == '-' || *text == '+');
    char *end;
    if (!isdigit((unsigned char)*digits)) return false;
    errno = 0;
    long long v = strtoll(text, &end, 10), scale = 1;
    if (errno) return false;
    switch (tolower((unsigned char)*end)) {
    case 'k': scale = 1024; break;
    case 'm': scale = 1024 * 1024; break;
    case 'g': scale = 1024 * 1024 * 1024; break;
    default: break;
    }
    end += scale > 1;
    int64_t scaled;
    if (*end || __builtin_mul_overflow((int64_t)v, (int64_t)scale, &scaled)) return false;
    *out = scaled;
    return true;
}

static bool parse_float(const char *text, double *out)
{
    const char *digits = text + (*text == '-' || *text == '+');
    char *end;
    if (!isdigit((unsigned char)*digits) && *digits != '.') return false;     /* no inf, nan, blanks */
    double v = strtod(text, &end);
    if (end == text || *end || !isfinite(v)) return false;
    *out = v;
    return true;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t len = strlen(text);
    for (const char *at = choices; *at;) {
        size_t n = strcspn(at, "|");
        if (n == len && strncmp(at, text, n) == 0) return true;
        at += n + (at[n] == '|');
    }
    return false;
}

static mx_status check_limits(const mx_setting *s, double v, const char *text, const char *where, mx_error *err)
{
    if (!mx_setting_limited(s) || (v >= s->least && v <= s->most)) return MX_OK;
    return mx_fail(err, MX_ERR_ARG, "%s: %s is out of range, must be %.15g to %.15g (%s)", s->name, text, s->least,
                   s->most, where);
}

/* Fills the plain part of v; text stays the caller's. */
static mx_status parse_value(const mx_setting *s, const char *text, const char *where, mx_config_value *v,
                             mx_error *err)
{
    switch (s->type) {
    case MX_SET_BOOL:
        if (parse_bool(text, &v->b)) return MX_OK;
        return mx_fail(err, MX_ERR_ARG, "%s: \"%.100s\" is neither true nor false (%s)", s->name, text, where);
    case MX_SET_INT:
        if (parse_int(text, &v->i)) return check_limits(s, (double)v->i, text, where, err);
        return mx_fail(err, MX_ERR_ARG, "%s: \"%.100s\" is not a whole number (%s)", s->name, text, where);
    case MX_SET_FLOAT:
        if (parse_float(text, &v->f)) return check_limits(s, v->f, text, where, err);
        return mx_fail(err, MX_ERR_ARG, "%s: \"%.100s\" is not a number (%s)", s->name, text, where);
    case MX_SET_CHOICE:
        if (is_choice(s->choices, text)) return MX_OK;
        return mx_fail(err, MX_ERR_ARG, "%s: \"%.100s\" is none of %s (%s)", s->name, text, s->choices, where);
    case MX_SET_STRING:
    case MX_SET_LIST:
        return MX_OK;
    }
    return mx_fail(err, MX_ERR_INTERNAL, "%s: a type that does not exist", s->name);
}

static void clear_value(mx_config_value *v)
{
    for (int i = 0; i < v->n_items; i++) free(v->items[i]);
    free(v->items);
    free(v->text);
    free(v->where);
    *v = (mx_config_value){0};
}

static mx_status append_item(mx_config_value *v, const char *text, const char *name, mx_error *err)
{
    char **items = realloc(v->items, ((size_t)v->n_items + 1) * sizeof *items);
    if (items) v->items = items;
    char *copy = items ? strdup(text) : NULL;
    if (!copy) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", name);
    v->items[v->n_items++] = copy;
    return MX_OK;
}

/* Checks the value in any case, so that a bad line is told of even when a flag
 * overrides it. */
static mx_status set_value(mx_config *c, const mx_setting *s, const char *text, const char *where, rank from,
                           mx_error *err)
{
    mx_config_value *v = value_of(c, s), fresh = {.from = from, .set = true};
    MX_TRY(parse_value(s, text, where, &fresh, err));
    if (v->set && from < v->from) return MX_OK;
    if (s->type == MX_SET_LIST && v->set && v->from == from) return append_item(v, text, s->name, err);
    fresh.where = strdup(where);
    bool has_text = s->type == MX_SET_STRING || s->type == MX_SET_CHOICE;
    if (has_text) fresh.text = strdup(text);
    mx_status st = MX_OK;
    if (!fresh.where || (has_text && !fresh.text)) st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", s->name);
    else if (s->type == MX_SET_LIST) st = append_item(&fresh, text, s->name, err);
    if (st) {
        clear_value(&fresh);
        return st;
    }
    clear_value(v);
    *v = fresh;
    return MX_OK;
}

/* ---- open and close ------------------------------------------------------------- */

mx_status mx_config_open(mx_config **out, const mx_setting *table, int n, mx_error *err)
{
    *out = NULL;
    mx_config *c = calloc(1, sizeof *c);
    if (c) c->values = calloc(n > 0 ? (size_t)n : 1, sizeof *c->values);
    if (!c || !c->values) {
        free(c);
        return mx_fail(err, MX_ERR_NO_MEMORY, "settings: out of memory");
    }
    c->table = table;
    c->n = n;
    mx_status st = MX_OK;
    for (int i = 0; i < n && !st; i++) {
        const mx_setting *s = &table[i];
        if (!s->name || strlen(s->name) > NAME_MOST || (s->type == MX_SET_CHOICE && !s->choices))
            st = mx_fail(err, MX_ERR_ARG, "setting %d of the table has no name or choices", i);
        else if (s->fallback) st = set_value(c, s, s->fallback, "default", FROM_DEFAULT, err);
    }
    if (st) {
        mx_config_close(c);
        return st;
    }
    *out = c;
    return MX_OK;
}

void mx_config_close(mx_config *c)
{
    if (!c) return;
    for (int i = 0; i < c->n; i++) clear_value(&c->values[i]);
    free(c->values);
    free(c);
}

/* ---- the file --------------------------------------------------------------------- */

static bool is_blank(char ch)
{
    return ch == ' ' || ch == '\t' || ch == '\r';
}

/* Unquotes in place what begins at `at`; NULL: the closing quote is missing or
 * something follows it. */
static char *unquote(char *at)
{
    char quote = *at++, *out = at, *to = at;
    while (*at && *at != quote) {
        if (quote == '"' && *at == '\\' && (at[1] == '"' || at[1] == '\\')) at++;
        *to++ = *at++;
    }
    if (!*at) return NULL;
    for (at++; is_blank(*at); at++) {}
    if (*at && *at != '#') return NULL;
    *to = '\0';
    return out;
}

/* Cuts a comment and trailing blanks. */
static char *plain_value(char *at)
{
    char *end = at;
    for (char *p = at; *p && !(*p == '#' && (p == at || is_blank(p[-1]))); p++)
        if (!is_blank(*p)) end = p + 1;
    *end = '\0';
    return at;
}

static mx_status read_line(mx_config *c, char *line, const char *where, mx_error *err)
{
    while (is_blank(*line)) line++;
    if (!*line || *line == '#') return MX_OK;
    char *name = line, *equals = strchr(line, '=');
    if (!equals) return mx_fail(err, MX_ERR_FORMAT, "%s: \"%.60s\" is not \"name = value\"", where, line);
    char *end = equals, *value = equals + 1;
    while (end > name && is_blank(end[-1])) end--;
    *end = '\0';
    while (is_blank(*value)) value++;
    if (*value == '"' || *value == '\'') {
        value = unquote(value);
        if (!value) return mx_fail(err, MX_ERR_FORMAT, "%s: %.60s: the quotes do not close", where, name);
    } else {
        value = plain_value(value);
    }
    const mx_setting *s = find(c, name);
    if (s) return set_value(c, s, value, where, FROM_FILE, err);
    const mx_setting *near = nearest(c, ~0u, name);
    if (near) return mx_fail(err, MX_ERR_ARG, "%s: no setting \"%.60s\"; did you mean %s?", where, name, near->name);
    return mx_fail(err, MX_ERR_ARG, "%s: no setting \"%.60s\"", where, name);
}

mx_status mx_config_text(mx_config *c, const char *text, size_t len, const char *origin, mx_error *err)
{
    if (len > FILE_MOST) return mx_fail(err, MX_ERR_FORMAT, "%s: longer than %zu bytes", origin, FILE_MOST);
    const char *nul = memchr(text, '\0', len);
    if (nul)
        return mx_fail(err, MX_ERR_FORMAT, "%s: not a text file (zero byte at %zu)", origin, (size_t)(nul - text));
    char *copy = malloc(len + 1);
    if (!copy) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", origin);
    memcpy(copy, text, len);
    copy[len] = '\0';
    char where[400];
    mx_status st = MX_OK;
    int number = 1;
    char *at = copy + (strncmp(copy, "\xef\xbb\xbf", 3) == 0 ? 3 : 0);     /* a byte order mark */
    for (char *next; at && !st; at = next, number++) {
        next = strchr(at, '\n');
        if (next) *next++ = '\0';
        snprintf(where, sizeof where, "%.380s:%d", origin, number);
        st = read_line(c, at, where, err);
    }
    free(copy);
    return st;
}

mx_status mx_config_file(mx_config *c, const char *path, mx_error *err)
{
    FILE *f = fopen(path, "re");
    if (!f) return mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno));
    mx_status st;
    char *text = malloc(FILE_MOST + 1);
    if (!text) {
        st = mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", path);
    } else {
        size_t len = fread(text, 1, FILE_MOST + 1, f);
        st = ferror(f) ? mx_fail(err, MX_ERR_IO, "%s: %s", path, strerror(errno))
                       : mx_config_text(c, text, len, path, err);
    }
    free(text);
    fclose(f);
    return st;
}

/* ---- the environment ---------------------------------------------------------------- */

/* A list's items stand between commas. */
static mx_status set_list(mx_config *c, const mx_setting *s, const char *text, const char *where, mx_error *err)
{
    char *copy = strdup(text), *rest = copy;
    if (!copy) return mx_fail(err, MX_ERR_NO_MEMORY, "%s: out of memory", s->name);
    mx_status st = MX_OK;
    for (char *item; !st && (item = strsep(&rest, ","));)
        if (*item) st = set_value(c, s, item, where, FROM_ENVIRONMENT, err);
    free(copy);
    return st;
}

static void warn_of_unknown(const mx_config *c)
{
    for (char **e = environ; *e; e++) {
        if (strncmp(*e, "MERX_", 5) != 0) continue;
        char name[NAME_MOST + 1];
        size_t n = 0;
        for (const char *p = *e + 5; *p && *p != '=' && n < NAME_MOST; p++)
            name[n++] = *p == '_' ? '-' : (char)tolower((unsigned char)*p);
        name[n] = '\0';
        const mx_setting *near = find(c, name) ? NULL : nearest(c, ~0u, name);
        if (!near) continue;             /* a setting, or something far from all of them */
        char meant[MX_CONFIG_ENV_SIZE];
        mx_config_env_name(meant, near->name);
        mx_log(MX_LOG_WARN, "config", "environment variable %.*s is no setting; did you mean %s?",
               (int)strcspn(*e, "="), *e, meant);
    }
}

mx_status mx_config_environment(mx_config *c, uint64_t command, mx_error *err)
{
    char name[MX_CONFIG_ENV_SIZE];
    for (int i = 0; i < c->n; i++) {
        const mx_setting *s = &c->table[i];
        mx_config_env_name(name, s->name);
        const char *text = s->commands & command ? getenv(name) : NULL;
        if (!text || !*text) continue;
        if (s->type == MX_SET_LIST) MX_TRY(set_list(c, s, text, name, err));
        else MX_TRY(set_value(c, s, text, name, FROM_ENVIRONMENT, err));
    }
    warn_of_unknown(c);
    return MX_OK;
}

/* ---- flags ---------------------------------------------------------------------------- */

static mx_status no_such_flag(const mx_config *c, uint64_t command, const char *name, mx_error *err)
{
    if (find(c, name)) return mx_fail(err, MX_ERR_ARG, "--%.80s is not a flag of this command", name);
    const mx_setting *near = nearest(c, command, name);
    if (near) return mx_fail(err, MX_ERR_ARG, "no flag --%.80s; did you mean --%s?", name, near->name);
    return mx_fail(err, MX_ERR_ARG, "no flag --%.80s", name);
}

static mx_status no_value(const mx_setting *s, mx_error *err)
{
    return mx_fail(err, MX_ERR_ARG, "--%s needs a value (%s)", s->name,
                   s->metavar ? s->metavar : s->choices ? s->choices : "VALUE");
}

/* `flag` is what follows "--"; takes `next` as the value and says so in *used
 * when it has none of its own. */
static mx_status long_flag(mx_config *c, uint64_t command, char *flag, char *next, bool *used, mx_error *err)
{
    char where[NAME_MOST + 4], *equals = strchr(flag, '=');
    size_t len = equals ? (size_t)(equals - flag) : strlen(flag);
    const mx_setting *s = find_n(c, flag, len);
    bool negated = false;
    if (!s && !equals && strncmp(flag, "no-", 3) == 0) {
        s = find_n(c, flag + 3, len - 3);
        if (s && s->type != MX_SET_BOOL) s = NULL;
        negated = s != NULL;
    }
    if (!s || !(s->commands & command)) {
        char name[NAME_MOST + 1];
        snprintf(name, sizeof name, "%.*s", (int)(len < NAME_MOST ? len : NAME_MOST), flag);
        return no_such_flag(c, command, name, err);
    }
    snprintf(where, sizeof where, "--%s", s->name);
    if (equals) return set_value(c, s, equals + 1, where, FROM_FLAG, err);
    if (s->type == MX_SET_BOOL) return set_value(c, s, negated ? "false" : "true", where, FROM_FLAG, err);
    /* A flag in the place of a value is a forgotten value; --name=--x says otherwise. */
    if (!next || (strncmp(next, "--", 2) == 0)) return no_value(s, err);
    *used = true;
    return set_value(c, s, next, where, FROM_FLAG, err);
}

static mx_status short_flag(mx_config *c, uint64_t command, char *flag, char *next, bool *used, mx_error *err)
{
    char where[NAME_MOST + 4];
    const mx_setting *s = NULL;
    for (int i = 0; i < c->n && !s; i++)
        if (c->table[i].letter == *flag && (c->table[i].commands & command)) s = &c->table[i];
    if (!s) return mx_fail(err, MX_ERR_ARG, "no flag -%c", *flag);
    snprintf(where, sizeof where, "--%s", s->name);
    if (s->type == MX_SET_BOOL) {
        MX_TRY(set_value(c, s, "true", where, FROM_FLAG, err));
        return flag[1] ? short_flag(c, command, flag + 1, next, used, err) : MX_OK;      /* -vq */
    }
    if (flag[1]) return set_value(c, s, flag + 1 + (flag[1] == '='), where, FROM_FLAG, err);
    if (!next || strncmp(next, "--", 2) == 0) return no_value(s, err);
    *used = true;
    return set_value(c, s, next, where, FROM_FLAG, err);
}

mx_status mx_config_flags(mx_config *c, uint64_t command, int argc, char **argv, char **rest, int *n_rest,
                          mx_error *err)
{
    *n_rest = 0;
    bool flags = true;
    for (int i = 0; i < argc; i++) {
        char *arg = argv[i], *next = i + 1 < argc ? argv[i + 1] : NULL;
        bool used = false;
        if (!flags || arg[0] != '-' || !arg[1]) rest[(*n_rest)++] = arg;
        else if (strcmp(arg, "--") == 0) flags = false;
        else if (arg[1] == '-') MX_TRY(long_flag(c, command, arg + 2, next, &used, err));
        else MX_TRY(short_flag(c, command, arg + 1, next, &used, err));
        i += used;
    }
    return MX_OK;
}

mx_status mx_config_set(mx_config *c, const char *name, const char *value, const char *where, mx_error *err)
{
    const mx_setting *s = find(c, name);
    if (s) return set_value(c, s, value, where, FROM_FLAG, err);
    return mx_fail(err, MX_ERR_ARG, "no setting \"%.80s\" (%s)", name, where);
}

/* ---- asking ----------------------------------------------------------------------------- */

static const mx_config_value *ask(const mx_config *c, const char *name, unsigned types)
{
    static const mx_config_value none;
    const mx_setting *s = find(c, name);
    if (s && (types >> s->type & 1)) return value_of(c, s);
    mx_log(MX_LOG_ERROR, "config", "the program asked for setting \"%s\" in a way the table does not know", name);
    return &none;
}

bool mx_config_bool(const mx_config *c, const char *name)
{
    return ask(c, name, 1u << MX_SET_BOOL)->b;
}

int64_t mx_config_int(const mx_config *c, const char *name)
{
    return ask(c, name, 1u << MX_SET_INT)->i;
}

double mx_config_float(const mx_config *c, const char *name)
{
    return ask(c, name, 1u << MX_SET_FLOAT)->f;
}

const char *mx_config_string(const mx_config *c, const char *name)
{
    return ask(c, name, 1u << MX_SET_STRING | 1u << MX_SET_CHOICE)->text;
}

int mx_config_list(const mx_config *c, const char *name, const char *const **items)
{
    const mx_config_value *v = ask(c, name, 1u << MX_SET_LIST);
    *items = (const char *const *)v->items;
    return v->n_items;
}

bool mx_config_given(const mx_config *c, const char *name)
{
    return ask(c, name, ~0u)->from != FROM_DEFAULT;
}

const char *mx_config_where(const mx_config *c, const char *name)
{
    const char *where = ask(c, name, ~0u)->where;
    return where ? where : "default";
}
