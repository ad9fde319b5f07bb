/* fuzz_event_log.c - any bytes as a segment of an event log, or as the payloads of its records; whatever
 * opens is read whole, merged and opened again. */
#include "models/event_log.h"
#include "models/user_graph.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char folder[64];

static void remove_all(void)
{
    static const char *const files[] = {"log-0000000000000000", "lock", "snapshot", ".snapshot", "blanking"};
    char path[128];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        snprintf(path, sizeof path, "%s/%s", folder, files[i]);
        unlink(path);
    }
}

static mx_status nothing(void *ctx, uint64_t at, const void *data, size_t size, mx_error *err)
{
    (void)ctx, (void)at, (void)data, (void)size, (void)err;
    return MX_OK;
}

/* Records of a length byte each, with checksums that fit. */
static void as_records(const uint8_t *data, size_t size)
{
    mx_event_log *l;
    mx_error err = {0};
    if (mx_event_log_open(&l, folder, 1 << 20, 0, nothing, NULL, &err)) return;
    for (size_t at = 0; at < size;) {
        size_t n = data[at++];
        if (n > size - at) n = size - at;
        mx_record r = {.data = data + at, .size = n};
        if (n) mx_event_log_append(l, &r, 1, &err);
        at += n;
    }
    mx_event_log_close(l);
}

static void as_file(const uint8_t *data, size_t size)
{
    char path[128];
    snprintf(path, sizeof path, "%s/log-0000000000000000", folder);
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd >= 0 && write(fd, data, size) != (ssize_t)size) __builtin_trap();
    close(fd);
}

static mx_status touch(void *ctx, const mx_event *e, mx_error *err)
{
    (void)err;
    *(size_t *)ctx += strlen(e->id) + strlen(e->subject) + strlen(e->text) + strlen(e->props);
    return MX_OK;
}

static void read_whole(mx_user_graph *g)
{
    mx_error err = {0};
    mx_user_edges edges = {0};
    mx_event_list events = {0};
    uint64_t cursor = 0;
    size_t bytes = 0;
    if (mx_user_graph_each(g, &cursor, touch, &bytes, &err)) __builtin_trap();
    for (int32_t i = 0; i < mx_user_graph_nodes(g); i++)
        if (mx_user_graph_edges(g, i, MX_EDGES_BOTH, MX_TIME_ANY, &edges, &err) || mx_user_graph_events(g, i, MX_TIME_ANY, 0, &events, &err)) __builtin_trap();
    mx_user_edges_free(&edges);
    mx_event_list_free(&events);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    mx_user_graph_options o = mx_user_graph_defaults();
    mx_user_graph *g;
    mx_error err = {0};
    o.merge_events = 0;
    o.segment_bytes = 1 << 20;
    if (!size || size > 8192) return 0;
    if (!*folder) snprintf(folder, sizeof folder, "/dev/shm/merx-fuzz-%d", (int)getpid());
    mkdir(folder, 0700);
    remove_all();
    if (data[0] & 1) as_records(data + 1, size - 1);
    else as_file(data + 1, size - 1);
    for (int i = 0; i < 2; i++) {
        if (mx_user_graph_open(&g, folder, &o, &err)) {
            if (!err.text[0] || i) __builtin_trap();
            break;
        }
        read_whole(g);
        if (mx_user_graph_merge(g, &err)) __builtin_trap();
        read_whole(g);
        mx_user_graph_close(g);
    }
    remove_all();
    rmdir(folder);
    return 0;
}
