/* test_comm.c - run by mpirun -n 1, 2, 3 and alone: sums in the order of the
 * ranks, shards of awkward sizes, ranges told in pieces, errors shared.
 *     test_comm [train]      train: a run over all processes, against one alone */
#include "models/lm.h"
#include "runtime/comm.h"
#include "tests/test.h"

#ifndef MX_TEST_DEVICE
#define MX_TEST_DEVICE 0              /* tests/cudasim builds it for the simulated GPU */
#endif

static mx_comm *comm;

/* What rank r holds at i: rounding makes the order of a sum visible. */
static float part_of(int r, size_t i)
{
    return (float)((i * 2654435761u + (unsigned)r * 40503u) % 10007) * (r % 2 ? 1e-3f : 1.7f) - 3;
}

static void shards(void)
{
    for (int size = 1; size < 9; size++)
        for (size_t count = 0; count < 400; count += 37) {
            size_t at = 0, begin, end;
            for (int r = 0; r < size; r++) {
                mx_comm_shard_of(r, size, count, &begin, &end);
                CHECK(begin == at && end >= begin && (begin % 16 == 0 || begin == count));
                at = end;
            }
            CHECK(at == count);
        }
}

static void one_sum(size_t count, size_t piece)
{
    mx_error err = {0};
    int rank = mx_comm_rank(comm), size = mx_comm_size(comm);
    float *x = malloc(count * sizeof *x);
    size_t begin, end, wrong = 0;
    for (size_t i = 0; i < count; i++) x[i] = part_of(rank, i);
    CHECK_OK(mx_comm_reduce_begin(comm, x, count, &err), err);
    for (size_t last = count; last > 0;) {                    /* as a backward pass: from the end */
        size_t n = last < piece ? last : piece;
        mx_comm_reduce_ready(comm, last - n, n);
        last -= n;
    }
    CHECK_OK(mx_comm_reduce_wait(comm, &err), err);
    mx_comm_shard(comm, count, &begin, &end);
    for (size_t i = begin; i < end; i++) {
        float want = part_of(0, i);
        for (int r = 1; r < size; r++) want += part_of(r, i);
        wrong += x[i] != want;
    }
    CHECK_MSG(wrong == 0, "rank %d of %d: %zu of %zu sums of %zu are wrong", rank, size, wrong, end - begin, count);
    for (size_t i = begin; i < end; i++) x[i] = (float)i;
    CHECK_OK(mx_comm_gather(comm, x, count, &err), err);
    for (size_t i = wrong = 0; i < count; i++) wrong += x[i] != (float)i;
    CHECK_MSG(wrong == 0, "rank %d: %zu gathered values are wrong", rank, wrong);
    free(x);
}

static void sums(void)
{
    static const size_t counts[] = {1, 16, 97, 4099, (1 << 20) + 7, 3 * (1 << 20) + 12345};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        one_sum(counts[i], counts[i]);
        one_sum(counts[i], counts[i] / 5 + 1);
        one_sum(counts[i], 300007);
    }
}

static void small_sums(void)
{
    mx_error err = {0};
    double x[3];
    int rank = mx_comm_rank(comm), size = mx_comm_size(comm);
    for (int i = 0; i < 3; i++) x[i] = (rank + 1) * 0.1 * (i + 1);
    CHECK_OK(mx_comm_sum_doubles(comm, x, 3, &err), err);
    for (int i = 0; i < 3; i++) {
        double want = 0.1 * (i + 1);
        for (int r = 1; r < size; r++) want += (r + 1) * 0.1 * (i + 1);
        CHECK(x[i] == want);
    }
    char word[32] = "";
    if (rank == size - 1) strcpy(word, "from the last");
    CHECK_OK(mx_comm_broadcast(comm, word, sizeof word, size - 1, &err), err);
    CHECK_STR(word, "from the last");
}

static void errors_are_shared(void)
{
    mx_error err = {0};
    int rank = mx_comm_rank(comm), size = mx_comm_size(comm);
    CHECK(mx_comm_agree(comm, MX_OK, &err) == MX_OK);
    mx_status own = rank == size - 1 ? mx_fail(&err, MX_ERR_IO, "the disk is full") : MX_OK;
    CHECK(mx_comm_agree(comm, own, &err) == MX_ERR_IO);
    CHECK_MSG(strstr(err.text, "the disk is full"), "%s", err.text);
}

/* ---- training over processes -------------------------------------------------------------- */

/* Weights after six steps, and their losses; with_comm: over all processes. */
static void train(bool together, double loss[6], float **weights, size_t *n)
{
    /* A bias of keys has no gradient but rounding, which AdamW makes whole steps of: it is left out. */
    char run[256];
    mx_error err = {0};
    mx_device *devs = NULL;
    mx_lm *lm = NULL;
    mx_dataset *data = NULL;
    mx_batches b = {0};
    mx_trainer *t = NULL;
    int n_devs = 0;
    static const char *const paths[] = {MX_SOURCE_DIR "/tests/golden/train/gpt2/data.safetensors"};
    mx_device_options dev = {.cpu_threads = 1};
    mx_text_to_ids ids = {.vocab = 131, .end = -1};
    mx_dataset_options opt = {0};
    mx_lm_options lmo = {.compute = MX_F32};
    mx_train_options o = mx_train_defaults();
    o.steps = 6;
    o.batch = 5;
    o.warmup = 2;
    o.lr = 1e-2f;
    o.restart = true;
    o.save_every = 3;
    snprintf(run, sizeof run, MX_BINARY_DIR "/test_comm.%d.%d.%d.%d", MX_TEST_DEVICE, getenv("CUDASIM_NO_NCCL") != NULL, mx_comm_size(comm), together ? -1 : mx_comm_rank(comm));
    CHECK_OK(mx_devices_open(&devs, &n_devs, &dev, &err), err);
    CHECK_OK(mx_lm_open(&lm, &devs[MX_TEST_DEVICE], MX_SOURCE_DIR "/tests/golden/decoder/gpt2", &lmo, &err), err);
    CHECK_OK(mx_dataset_open(&data, paths, 1, &ids, &opt, &err), err);
    CHECK_OK(mx_batches_open(&b, data, MX_PACK_DOCUMENTS, 96, 1, true, true, &err), err);
    mx_learner l = mx_lm_learner(lm);
    CHECK_OK(mx_trainer_open(&t, run, &l, &b, NULL, &o, together ? comm : NULL, &err), err);
    bool done = t == NULL;
    for (int i = 0; !done && i < 6; i++) {
        mx_train_report r;
        CHECK_OK(mx_trainer_step(t, &r, &done, &err), err);
        loss[i] = r.loss;
    }
    const mx_params *p = mx_lm_params(lm);
    *n = p->count;
    *weights = malloc(p->count * sizeof **weights);
    memcpy(*weights, p->value.base, p->count * sizeof **weights);
    for (int i = 0; i < p->n; i++)
        if (strstr(p->param[i].name, "c_attn.bias")) memset(*weights + p->param[i].offset, 0, (size_t)p->param[i].cols * sizeof **weights);
    mx_trainer_close(t);
    mx_batches_close(&b);
    mx_dataset_close(data);
    mx_lm_close(lm);
    mx_devices_close(devs, n_devs);
}

static void training(void)
{
    double one[6] = {0}, all[6] = {0}, again[6] = {0};
    float *x, *y, *z;
    size_t n;
    train(false, one, &x, &n);
    train(true, all, &y, &n);
    train(true, again, &z, &n);
    double worst = 0;
    for (size_t i = 0; i < n; i++) {
        double e = fabs((double)x[i] - (double)y[i]);
        if (e > worst) worst = e;
    }
    for (int i = 0; i < 6; i++) CHECK_MSG(fabs(one[i] - all[i]) <= 1e-5 * one[i], "step %d: %.9g alone, %.9g together", i + 1, one[i], all[i]);
    CHECK_MSG(worst < 1e-4, "weights differ by %.2g", worst);
    CHECK(!memcmp(all, again, sizeof all) && !memcmp(y, z, n * sizeof *y));
    free(x);
    free(y);
    free(z);
}

static void comm_open(void)
{
    mx_error err = {0};
    CHECK_OK(mx_comm_open(&comm, &err), err);
}

static void comm_close(void)
{
    mx_comm_close(comm);
}

MX_TESTS(TEST(comm_open), TEST(shards), TEST(sums), TEST(small_sums), TEST(errors_are_shared), TEST(training), TEST(comm_close))
