/* cli_parts.h - what the files of the command line (server/cli*.c) share.
 *
 * A prompt with its sampling is a Merx__V1__GenerateRequest here as on the wire,
 * whether it came from flags or from a row of a file, and whether it is answered
 * here or by a server; so the fields of proto/merx.proto are the only list of
 * what can be asked for. */
#ifndef MX_CLI_PARTS_H
#define MX_CLI_PARTS_H

#include "server/app.h"
#include "server/cli.h"
#include "server/rpc.h"
#include "server/services.h"

#include <jansson.h>
#include <signal.h>

/* Exit statuses; `merx help` shows them. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

/* ---- cli.c ------------------------------------------------------------------------ */

int       cli_failed(const mx_error *err);               /* "merx: ..." to stderr; CLI_USAGE for MX_ERR_ARG, else CLI_FAILED */
int       cli_usage(const char *fmt, ...) __attribute__((format(printf, 1, 2)));     /* CLI_USAGE */
mx_status cli_open_app(mx_app *app, mx_config *c, bool serving, mx_error *err);    /* with every --model      */
/* SIGINT and SIGTERM stay pending for all threads started from now on. */
void      cli_hold_signals(sigset_t *held);
bool      cli_signal_pending(const sigset_t *held);

/* ---- cli_operations.c: what stands around a server: tokens, the HTTP port, reloading ---- */

struct mx_auth;
struct mx_http;
typedef struct cli_operations {        /* zero it */
    mx_config      *config;
    mx_app         *app;
    struct mx_auth *auth;
    struct mx_spans *spans;
    struct mx_http *http;
    struct timespec seen[2];           /* when the tokens and the config file changed last */
} cli_operations;
/* Fills o's tokens and TLS from the settings, before the server opens; MX_ERR_NO_MEMORY: the models and
 * what the server may hold beside them are more than there is. */
mx_status cli_operations_open(cli_operations *p, mx_app *app, mx_config *c, mx_server_options *o, mx_error *err);
mx_status cli_operations_watch(cli_operations *p, mx_app *app, mx_server *server, mx_error *err);
/* Until SIGINT or SIGTERM, which it returns; reads files again on SIGHUP and when they change. */
int       cli_operations_wait(cli_operations *p, const sigset_t *stop);
void      cli_operations_close(cli_operations *p);     /* the HTTP port, before the server     */
void      cli_operations_free(cli_operations *p);      /* the tokens, after it                 */
/* --tls*, --token. */
mx_client_options cli_client_options(const mx_config *c);

/* ---- cli_request.c: settings and rows of JSON as messages --------------------------- */

typedef struct cli_request {          /* zero it, close it                             */
    Merx__V1__GenerateRequest message;
    Merx__V1__Sampling        sampling;
    Merx__V1__Chat            chat;
    mx_arena                  arena;
} cli_request;
void      cli_request_open(cli_request *r);
void      cli_request_close(cli_request *r);

/* Errors name the flag, its value and its limit. */
mx_status cli_sampling_settings(Merx__V1__Sampling *out, const mx_config *c, mx_arena *a, mx_error *err);
/* The prompt as a message: through the chat when `chat`, with --system.  `prompt` must outlive r. */
mx_status cli_request_prompt(cli_request *r, const mx_config *c, const char *prompt, bool chat, mx_error *err);
/* A row of a batch over the defaults; `row` must outlive r.  Errors begin with the field's name. */
mx_status cli_request_row(cli_request *r, const mx_config *c, const Merx__V1__Sampling *defaults, const mx_app *app,
                          json_t *row, mx_error *err);
/* The field that an error's text begins with ("sampling.stop[2]: ..."); "row" when it names none. */
void      cli_error_field(const char *text, char *out, size_t size);
/* One argument, or all of standard input for "-" (less one newline at its end); malloc'ed. */
mx_status cli_read_prompt(const char *arg, char **out, mx_error *err);

/* ---- cli_json.c: answers as JSON ------------------------------------------------------ */

/* NULL: out of memory.  Seeds are strings: JSON's numbers do not hold 64 bits. */
json_t   *cli_json_candidate(const Merx__V1__GenerateResponse *r, size_t i);     /* a line of --json       */
json_t   *cli_json_row(const Merx__V1__GenerateResponse *r, json_t *id, bool drawn);   /* a row of a batch; drawn: the seed counts */
json_t   *cli_json_event(const Merx__V1__GenerateEvent *e);                      /* a line of --stream-json */
/* Prints and releases; j NULL is out of memory. */
mx_status cli_json_print(FILE *out, json_t *j, mx_error *err);

/* ---- cli_term.c: what a person looks at ------------------------------------------------ */

typedef struct cli_term { bool tty, plain; int width; } cli_term;   /* plain: TERM=dumb, no cursor moves */
cli_term  cli_term_of(FILE *f);
/* Text to a terminal without control characters, which a model could have made up. */
void      cli_print_text(FILE *out, bool tty, const char *text, size_t len);

typedef struct cli_progress {
    cli_term term;
    bool     quiet, shown;
    uint64_t start_ns, next_ns, began_at;
} cli_progress;
void      cli_progress_open(cli_progress *p, bool quiet, uint64_t done);
/* Rows written, rows there are (0: not known), rows on the device, tokens so far.  Draws when it is time to. */
void      cli_progress_show(cli_progress *p, uint64_t done, uint64_t total, uint64_t running, uint64_t tokens);
/* The same with figures of one's own behind the bar; part: 0..1. */
void      cli_progress_figures(cli_progress *p, double part, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void      cli_clock(double seconds, char *out, size_t size);         /* "0:43", "1:02:03" */
void      cli_progress_clear(cli_progress *p);           /* before another line goes to the terminal */
double    cli_progress_seconds(const cli_progress *p);

/* ---- cli_dqn.c ---------------------------------------------------------------------------- */

int       cli_train_dqn(mx_config *c);                   /* merx train dqn */

/* ---- cli_batch.c ------------------------------------------------------------------------- */

int       cli_batch(mx_config *c);

#endif
