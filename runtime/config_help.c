/* config_help.c - the table of settings as --help and as a page of documentation. */
#include "runtime/config_table.h"

#include <string.h>

#define WIDEST_FLAG 30       /* columns; the help of a longer one starts on the next line */
#define TEXT_SIZE   1024

/* Terminal columns of UTF-8 text, a character each: the table is plain prose. */
static int columns(const char *text, size_t len)
{
    int n = 0;
    for (size_t i = 0; i < len; i++) n += ((unsigned char)text[i] & 0xc0) != 0x80;
    return n;
}

static const char *metavar_of(const mx_setting *s)
{
    static const char *const plain[] = {
        [MX_SET_BOOL] = "", [MX_SET_INT] = "N", [MX_SET_FLOAT] = "X",
        [MX_SET_STRING] = "TEXT", [MX_SET_LIST] = "TEXT", [MX_SET_CHOICE] = "",
    };
    if (s->metavar) return s->metavar;
    return s->type == MX_SET_CHOICE ? s->choices : plain[s->type];
}

static bool is_on_by_default(const mx_setting *s)
{
    return s->type == MX_SET_BOOL && s->fallback &&
           (strcmp(s->fallback, "true") == 0 || strcmp(s->fallback, "1") == 0 || strcmp(s->fallback, "on") == 0 ||
            strcmp(s->fallback, "yes") == 0);
}

/* "-m, --model NAME=PATH"; a switch that is on is shown by how to turn it off. */
static void flag_text(const mx_setting *s, char *out, size_t size)
{
    char letter[8] = "    ";
    if (s->letter) snprintf(letter, sizeof letter, "-%c, ", s->letter);
    const char *metavar = metavar_of(s);
    snprintf(out, size, "%s--%s%s%s%s", letter, is_on_by_default(s) ? "no-" : "", s->name,
             *metavar && s->type != MX_SET_BOOL ? " " : "", s->type == MX_SET_BOOL ? "" : metavar);
}

static void limits_text(const mx_setting *s, char *out, size_t size)
{
    if (!mx_setting_limited(s)) snprintf(out, size, "%s", "");
    else if (s->most >= 0x1p31) snprintf(out, size, "at least %.15g", s->least);
    else snprintf(out, size, "%.15g to %.15g", s->least, s->most);
}

/* The sentence and, in brackets, what else there is to know. */
static void help_text(const mx_setting *s, char *out, size_t size)
{
    char limits[80], notes[300] = "";
    limits_text(s, limits, sizeof limits);
    bool has_default = s->fallback && *s->fallback && s->type != MX_SET_BOOL;
    if (s->type == MX_SET_LIST) snprintf(notes, sizeof notes, "repeatable");
    else if (has_default && *limits) snprintf(notes, sizeof notes, "default %s, %s", s->fallback, limits);
    else if (has_default) snprintf(notes, sizeof notes, "default %s", s->fallback);
    else if (*limits) snprintf(notes, sizeof notes, "%s", limits);
    if (is_on_by_default(s)) snprintf(notes, sizeof notes, "on by default");
    snprintf(out, size, "%s%s%s%s", s->help ? s->help : "", *notes ? " (" : "", notes, *notes ? ")" : "");
}

/* Words, wrapped: the first line continues at column `indent`. */
static void put_wrapped(FILE *out, const char *text, int indent, int width)
{
    int at = indent;
    bool first = true;
    while (*text) {
        size_t len = strcspn(text, " ");
        int wide = columns(text, len);
        if (!first && at + 1 + wide > width) {
            fprintf(out, "\n%*s", indent, "");
            at = indent;
            first = true;
        }
        if (!first) fputc(' ', out);
        fwrite(text, 1, len, out);
        at += wide + !first;
        first = false;
        text += len;
        text += strspn(text, " ");
    }
    fputc('\n', out);
}

void mx_config_help(const mx_config *c, uint64_t command, uint64_t group, FILE *out, int width)
{
    char text[TEXT_SIZE];
    int indent = 0;
    if (width < 50) width = 50;
    for (int i = 0; i < c->n; i++) {
        if (!(c->table[i].commands & command)) continue;
        flag_text(&c->table[i], text, sizeof text);
        int wide = columns(text, strlen(text));
        if (wide <= WIDEST_FLAG && wide > indent) indent = wide;
    }
    indent += 4;                                     /* two before the flag, two behind it */
    if (indent > width / 2) indent = 10;
    for (int i = 0; i < c->n; i++) {
        const mx_setting *s = &c->table[i];
        if (!(s->commands & command) || (group && !(s->commands & group))) continue;
        flag_text(s, text, sizeof text);
        int wide = 2 + columns(text, strlen(text));
        if (wide + 2 <= indent) fprintf(out, "  %s%*s", text, indent - wide, "");
        else fprintf(out, "  %s\n%*s", text, indent, "");
        help_text(s, text, sizeof text);
        put_wrapped(out, text, indent, width);
    }
}

/* A cell of a table: | would end it. */
static void put_cell(FILE *out, const char *text)
{
    for (; *text; text++) {
        if (*text == '|') fputc('\\', out);
        fputc(*text, out);
    }
}

void mx_config_markdown(const mx_config *c, const char *const *command_names, FILE *out)
{
    fputs("| flag | environment | default | commands | what it does |\n|---|---|---|---|---|\n", out);
    for (int i = 0; i < c->n; i++) {
        const mx_setting *s = &c->table[i];
        char text[TEXT_SIZE], env[MX_CONFIG_ENV_SIZE];
        flag_text(s, text, sizeof text);
        fputs("| `", out);
        put_cell(out, text + strspn(text, " "));
        mx_config_env_name(env, s->name);
        fprintf(out, "` | `%s` | ", env);
        if (s->fallback && *s->fallback) {
            fputc('`', out);
            put_cell(out, s->fallback);
            fputc('`', out);
        }
        fputs(" | ", out);
        const char *comma = "";
        for (int k = 0; command_names[k]; k++) {
            if (!(s->commands >> k & 1)) continue;
            fprintf(out, "%s%s", comma, command_names[k]);
            comma = ", ";
        }
        fputs(" | ", out);
        put_cell(out, s->help ? s->help : "");
        limits_text(s, text, sizeof text);
        if (*text) fprintf(out, " (%s)", text);
        if (s->type == MX_SET_LIST) fputs(" (repeatable)", out);
        fputs(" |\n", out);
    }
}
