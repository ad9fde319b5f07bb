/* fake_server.c - a server of fake models for clients in other languages: prints its
 * port, obeys lines on stdin ("starting", "serving", "drain MS", "turn US",
 * "running"), and closes when stdin ends.  fake_server FILE serves experiments too. */
#include "server/experiments.h"
#include "server/rpc.h"
#include "tests/fake_app.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void obey(mx_fake_app *f, mx_server *s, const char *line)
{
    int answer = 0;
    if (!strncmp(line, "drain", 5))
        answer = mx_server_drain(s, (uint32_t)atoi(line + 5));
    else if (!strncmp(line, "starting", 8))
        atomic_store(&f->app.state, MX_APP_STARTING);
    else if (!strncmp(line, "serving", 7))
        atomic_store(&f->app.state, MX_APP_SERVING);
    else if (!strncmp(line, "turn", 4))
        mx_fake_set_turn_us(f->models[0], (uint32_t)atoi(line + 4));
    else if (!strncmp(line, "running", 7))
        answer = mx_fake_open_generations(f->models[0]);
    printf("%d\n", answer);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    mx_fake_app f;
    mx_server *s = NULL;
    mx_error err;
    mx_fake_options o = {.turn_us = 1000, .max_jobs = 8, .queue_limit = 16, .max_model_len = 4096, .chat = true};
    mx_server_options opt = mx_server_defaults();
    opt.listen = "127.0.0.1:0";
    opt.max_message_bytes = 1 << 20;
    if (mx_fake_app_open(&f, &o, &err) || (argc > 1 && mx_experiments_open(&f.app.experiments, argv[1], &err)) || mx_server_open(&s, &f.app, &opt, &err)) {
        fprintf(stderr, "fake_server: %s\n", err.text);
        mx_fake_app_close(&f);
        return 1;
    }
    printf("%d\n", mx_server_port(s));
    fflush(stdout);
    for (char line[100]; fgets(line, sizeof line, stdin);) obey(&f, s, line);
    mx_server_close(s);
    mx_experiments_close(f.app.experiments);
    int left = mx_fake_open_generations(f.models[0]);
    mx_fake_app_close(&f);
    return left != 0;
}
