/* cli_term.c - progress on a terminal, lines elsewhere. */
#include "server/cli_parts.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SECOND      ((uint64_t)1000000000)
#define REDRAW_NS   (SECOND / 5)
#define LINE_NS     (10 * SECOND)       /* where lines stay, one in a while is enough */

cli_term cli_term_of(FILE *f)
{
    cli_term t = {.tty = isatty(fileno(f)), .width = 80};
    const char *kind = getenv("TERM");
    struct winsize w;
    t.plain = !t.tty || !kind || !*kind || !strcmp(kind, "dumb");
    if (t.tty && ioctl(fileno(f), TIOCGWINSZ, &w) == 0 && w.ws_col > 0) t.width = w.ws_col;
    return t;
}

void cli_print_text(FILE *out, bool tty, const char *text, size_t len)
{
    for (size_t i = 0; i < len && tty; i++) {
        unsigned char ch = (unsigned char)text[i];
        if ((ch >= 0x20 && ch != 0x7f) || ch == '\n' || ch == '\t') continue;
        fwrite(text, 1, i, out);
        fputc('?', out);
        text += i + 1;
        len -= i + 1;
        i = (size_t)-1;
    }
    fwrite(text, 1, len, out);
    fflush(out);
}

void cli_progress_open(cli_progress *p, bool quiet, uint64_t done)
{
    *p = (cli_progress){.term = cli_term_of(stderr), .quiet = quiet, .start_ns = mx_now_ns(&mx_clock_monotonic), .began_at = done};
    p->next_ns = p->start_ns + (p->term.plain ? LINE_NS : 0);
}

double cli_progress_seconds(const cli_progress *p)
{
    return (double)(mx_now_ns(&mx_clock_monotonic) - p->start_ns) * 1e-9;
}

void cli_clock(double seconds, char *out, size_t size)
{
    unsigned long s = seconds < 1e7 ? (unsigned long)(seconds + 0.5) : 9999999;
    if (s < 3600) snprintf(out, size, "%lu:%02lu", s / 60, s % 60);
    else snprintf(out, size, "%lu:%02lu:%02lu", s / 3600, s / 60 % 60, s % 60);
}

static void put_bar(double part, int width)
{
    fputc('[', stderr);
    for (int i = 0; i < width; i++) fputc(i < part * width ? '#' : '.', stderr);
    fputs("] ", stderr);
}

void cli_progress_show(cli_progress *p, uint64_t done, uint64_t total, uint64_t running, uint64_t tokens)
{
    uint64_t at = mx_now_ns(&mx_clock_monotonic);
    if (p->quiet || at < p->next_ns) return;
    p->next_ns = at + (p->term.plain ? LINE_NS : REDRAW_NS);
    char figures[160], left[24] = "";
    double seconds = (double)(at - p->start_ns) * 1e-9, rate = seconds > 0 ? (double)(done - p->began_at) / seconds : 0;
    int n = total ? snprintf(figures, sizeof figures, "%llu/%llu rows", (unsigned long long)done, (unsigned long long)total)
                  : snprintf(figures, sizeof figures, "%llu rows", (unsigned long long)done);
    n += snprintf(figures + n, sizeof figures - (size_t)n, ", %llu running, %.0f tokens/s", (unsigned long long)running, seconds > 0 ? (double)tokens / seconds : 0.0);
    if (total && rate > 0 && done < total) {
        cli_clock((double)(total - done) / rate, left, sizeof left);
        n += snprintf(figures + n, sizeof figures - (size_t)n, ", %s left", left);
    }
    if (p->term.plain) {
        fprintf(stderr, "merx: %s\n", figures);
        return;
    }
    int bar = p->term.width - n - 12;                /* brackets, percent, blanks */
    if (bar > 40) bar = 40;
    fputs("\r", stderr);
    if (total) fprintf(stderr, "%3.0f%% ", 100 * (double)done / (double)total);
    if (total && bar >= 8) put_bar((double)done / (double)total, bar);
    fprintf(stderr, "%.*s\033[K", p->term.width > 6 ? p->term.width - 6 : 1, figures);
    fflush(stderr);
    p->shown = true;
}

void cli_progress_figures(cli_progress *p, double part, const char *fmt, ...)
{
    uint64_t at = mx_now_ns(&mx_clock_monotonic);
    char figures[240];
    if (p->quiet || at < p->next_ns) return;
    p->next_ns = at + (p->term.plain ? LINE_NS : REDRAW_NS);
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(figures, sizeof figures, fmt, ap);
    va_end(ap);
    if (p->term.plain) {
        fprintf(stderr, "merx: %3.0f%% %s\n", 100 * part, figures);
        return;
    }
    int bar = p->term.width - n - 12;
    if (bar > 40) bar = 40;
    fprintf(stderr, "\r%3.0f%% ", 100 * part);
    if (bar >= 8) put_bar(part, bar);
    fprintf(stderr, "%.*s\033[K", p->term.width > 6 ? p->term.width - 6 : 1, figures);
    fflush(stderr);
    p->shown = true;
}

void cli_progress_clear(cli_progress *p)
{
    if (p->shown) fputs("\r\033[K", stderr);
    p->shown = false;
}
