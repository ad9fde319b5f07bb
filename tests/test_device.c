/* test_device.c - memory, scratch and sticky errors of the CPU device. */
#include "runtime/device.h"
#include "tests/test.h"

#include <limits.h>

static mx_device *devs;
static int n_devs;

static mx_device *cpu(void)
{
    if (devs) return devs;
    mx_error err = {0};
    mx_device_options opt = {.cpu_threads = 2};
    CHECK_OK(mx_devices_open(&devs, &n_devs, &opt, &err), err);
    if (!devs) abort();
    return devs;
}

static void table(void)
{
    mx_device *d = cpu();
    CHECK(n_devs >= 1 && d->kind == MX_CPU && d->index == 0 && d->pci[0] == '\0');
    CHECK(d->name[0] != '\0' && strlen(d->name) < sizeof d->name && !strchr(d->name, '\n'));
    CHECK(d->memory > (1u << 20));
    CHECK(d->pool && mx_pool_threads(d->pool) == 2);
    printf("  %s, %.1f GiB\n", d->name, (double)d->memory / (1 << 30));
}

static void options(void)
{
    mx_device *other;
    int n;
    mx_error err = {0};
    CHECK(mx_devices_open(&other, &n, &(mx_device_options){.cpu_threads = -1}, &err) == MX_ERR_ARG && !other && !n);
    CHECK(mx_devices_open(&other, &n, &(mx_device_options){.cpu_threads = INT_MAX}, &err) == MX_ERR_ARG && !other);
    CHECK_OK(mx_devices_open(&other, &n, &(mx_device_options){.bind = true, .spin_us = 10}, &err), err);
    CHECK(mx_pool_threads(other->pool) >= 1);
    mx_devices_close(other, n);
    mx_devices_close(NULL, 0);
}

static void buffers(void)
{
    static const size_t sizes[] = {1, 63, 64, 65, 4097, (2u << 20) - 1, 2u << 20, (2u << 20) + 1, (5u << 20) + 12345};
    mx_error err = {0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        mx_buffer b;
        CHECK_OK(mx_buffer_open(&b, cpu(), sizes[i], &err), err);
        if (!b.base) continue;
        CHECK((uintptr_t)b.base % 64 == 0 && b.size == sizes[i]);
        unsigned char any = 0;
        for (size_t k = 0; k < sizes[i]; k++) any |= ((unsigned char *)b.base)[k];
        CHECK_MSG(any == 0, "%zu bytes not zero", sizes[i]);
        memset(b.base, 0xa5, sizes[i]);
        mx_buffer_close(&b);
        CHECK(!b.base && !b.size);
        mx_buffer_close(&b);
    }
    mx_buffer none;
    CHECK_OK(mx_buffer_open(&none, cpu(), 0, &err), err);
    CHECK(!none.base);
    mx_buffer_close(&none);
    mx_buffer_close(&(mx_buffer){0});
    CHECK(mx_buffer_open(&none, cpu(), SIZE_MAX, &err) == MX_ERR_NO_MEMORY && !none.base);
    CHECK(mx_buffer_open(&none, cpu(), SIZE_MAX - 63, &err) == MX_ERR_NO_MEMORY && !none.base);
    CHECK(mx_buffer_open(&none, cpu(), SIZE_MAX / 2, &err) == MX_ERR_NO_MEMORY && !none.base);
    CHECK(strstr(err.text, cpu()->name) != NULL);
}

static void scratch(void)
{
    mx_stream s;
    mx_error err = {0};
    CHECK_OK(mx_stream_open(&s, cpu(), 1024, &err), err);
    mx_tensor a = mx_stream_tensor(&s, MX_F32, 3, 5);
    mx_tensor b = mx_stream_tensor(&s, MX_I8, 1, 1);
    CHECK(a.data && b.data && (uintptr_t)a.data % 64 == 0 && (uintptr_t)b.data % 64 == 0);
    CHECK((char *)b.data - (char *)a.data == 64 && a.stride == 5);
    CHECK(s.scratch_used == 128);
    int32_t ids[] = {7, 8, 9};
    mx_tensor u = mx_stream_upload(&s, MX_I32, 3, 1, ids);
    CHECK(u.data && memcmp(u.data, ids, sizeof ids) == 0);
    mx_tensor rest = mx_stream_tensor(&s, MX_I8, 1, 1024 - 192);
    CHECK(rest.data && s.scratch_used == 1024);
    mx_tensor empty = mx_stream_tensor(&s, MX_F32, 0, 9);
    CHECK(empty.rows == 0 && empty.cols == 9 && !s.error.code);
    mx_stream_rewind(&s);
    CHECK(s.scratch_used == 0 && s.scratch_peak == 1024);
    CHECK(mx_stream_tensor(&s, MX_F32, 1, 1).data == a.data);
    CHECK_OK(mx_stream_sync(&s, &err), err);

    /* exhausted: the first failure sticks, what follows does nothing */
    mx_stream_rewind(&s);
    CHECK(mx_stream_tensor(&s, MX_F32, 1, 256).data != NULL);
    CHECK(mx_stream_tensor(&s, MX_BF16, 11, 13).data == NULL);
    CHECK(s.error.code == MX_ERR_NO_MEMORY && strstr(s.error.text, "bf16 11 x 13"));
    CHECK(mx_stream_tensor(&s, MX_F32, -1, 1).data == NULL);
    mx_stream_rewind(&s);
    CHECK(mx_stream_tensor(&s, MX_F32, 1, 1).data == NULL);
    CHECK(mx_stream_upload(&s, MX_I32, 3, 1, ids).data == NULL);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_NO_MEMORY && strstr(err.text, "bf16 11 x 13"));
    CHECK(mx_stream_sync(&s, &err) == MX_OK);
    CHECK(mx_stream_tensor(&s, MX_F32, 1, 1).data != NULL);
    mx_stream_close(&s);
    mx_stream_close(&s);

    CHECK_OK(mx_stream_open(&s, cpu(), 0, &err), err);
    CHECK(mx_stream_tensor(&s, MX_F32, 0, 4).data == NULL && !s.error.code);
    CHECK(mx_stream_tensor(&s, MX_F32, 1, 1).data == NULL && s.error.code == MX_ERR_NO_MEMORY);
    mx_stream_close(&s);
    CHECK(mx_stream_open(&s, cpu(), SIZE_MAX / 2, &err) == MX_ERR_NO_MEMORY);
    mx_stream_close(&s);
}

static void shapes_that_overflow(void)
{
    static const struct { int64_t rows, cols; mx_status want; } cases[] = {
        {-1, 4, MX_ERR_ARG}, {4, -1, MX_ERR_ARG}, {INT64_MIN, INT64_MIN, MX_ERR_ARG},
        {INT64_MAX, INT64_MAX, MX_ERR_NO_MEMORY}, {INT64_MAX, 2, MX_ERR_NO_MEMORY},
        {(int64_t)1 << 32, (int64_t)1 << 32, MX_ERR_NO_MEMORY},
        {(int64_t)1 << 31, (int64_t)1 << 31, MX_ERR_NO_MEMORY},
        {INT64_MAX / 2 + 1, 2, MX_ERR_NO_MEMORY}, {((int64_t)1 << 62) - 1, 1, MX_ERR_NO_MEMORY},
    };
    mx_stream s;
    mx_error err = {0};
    CHECK_OK(mx_stream_open(&s, cpu(), 4096, &err), err);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        CHECK(mx_stream_tensor(&s, MX_F32, cases[i].rows, cases[i].cols).data == NULL);
        CHECK_MSG(mx_stream_sync(&s, &err) == cases[i].want, "case %zu: %s", i, err.text);
        CHECK(s.scratch_used == 0);
    }
    CHECK(mx_stream_tensor(&s, MX_DTYPE_COUNT, 1, 1).data == NULL);
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_ARG);
    CHECK(mx_stream_tensor_bytes(MX_F32, 3, 5) == 64 && mx_stream_tensor_bytes(MX_BF16, 1, 33) == 128);
    CHECK(mx_stream_tensor_bytes(MX_F32, 0, 5) == 0 && mx_stream_tensor_bytes(MX_F32, -1, 5) == SIZE_MAX);
    CHECK(mx_stream_tensor_bytes(MX_I8, INT64_MAX, 4) == SIZE_MAX);
    mx_stream_close(&s);
}

static void sticky(void)
{
    mx_stream s;
    mx_error err = {0};
    CHECK_OK(mx_stream_open(&s, cpu(), 256, &err), err);
    char data[8] = "before", host[8] = "host";
    const mx_device_ops *ops = s.dev->ops;
    ops->upload(&s, data, "after", 6);
    CHECK_STR(data, "after");
    ops->download(&s, host, data, 6);
    CHECK_STR(host, "after");
    ops->clear(&s, data, 3);
    CHECK(!data[0] && !data[2] && data[3] == 'e');
    mx_stream_fail(&s, MX_OK, "nothing");
    CHECK(!s.error.code);
    mx_stream_fail(&s, MX_ERR_DEVICE, "linear: %d", 42);
    mx_stream_fail(&s, MX_ERR_ARG, "a later failure");
    ops->upload(&s, host, "lost", 5);
    ops->download(&s, host, "lost", 5);
    ops->clear(&s, host, 5);
    CHECK_STR(host, "after");
    CHECK(mx_stream_sync(&s, &err) == MX_ERR_DEVICE);
    CHECK_STR(err.text, "linear: 42");
    mx_stream_fail(&s, MX_ERR_ARG, "again");
    CHECK(mx_stream_sync(&s, NULL) == MX_ERR_ARG && mx_stream_sync(&s, NULL) == MX_OK);
    mx_stream_close(&s);
}

static void closing(void)
{
    mx_devices_close(devs, n_devs);
    devs = NULL;
    CHECK(true);
}

MX_TESTS(TEST(table), TEST(options), TEST(buffers), TEST(scratch), TEST(shapes_that_overflow), TEST(sticky),
         TEST(closing))
