/* test_train_encoder.c - a BERT's ten steps against PyTorch
 * (tests/golden/make_encoder_golden.py), both tasks; the same bits for any number
 * of threads, with and without recomputation, and after a run went on. */
#include "tests/train_rig.h"

#define CLASSES "bert-classify"
#define MASKED  "bert-masked-words"

static void rig_network(rig *r, const setup *s, mx_text_to_ids *ids, mx_dataset_options *data)
{
    static const char folder[] = MX_SOURCE_DIR "/tests/golden/encoder/bert";
    mx_error err = {0};
    mx_bert *bert = NULL;
    mx_bert_options b = s->bert;
    CHECK_OK(mx_tokenizer_open_folder(&r->tokenizer, folder, &err), err);
    if (!r->tokenizer) return;
    b.task = strcmp(s->model, CLASSES) ? MX_BERT_MASKED_WORDS : MX_BERT_CLASSIFY;
    b.tokenizer = r->tokenizer;
    b.mask_rate = 0.15f;
    CHECK_OK(mx_bert_open(&bert, &r->devs[MX_TEST_DEVICE], folder, &b, &err), err);
    if (bert) r->learner = mx_bert_learner(bert);
    *ids = mx_text_for_encoder(r->tokenizer);
    data->classes = b.task == MX_BERT_CLASSIFY ? 3 : 0;
}

static void rig_network_close(rig *r)
{
    mx_bert_close(r->learner.network);
    mx_tokenizer_close(r->tokenizer);
}

static void masked_words(void)
{
    ten_steps((setup){.model = MASKED, .bert = {.compute = MX_F32}});
}

static void classify(void)
{
    ten_steps((setup){.model = CLASSES, .bert = {.compute = MX_F32}});
}

static void threads(void)
{
    setup one = {.model = MASKED, .threads = 1, .steps = 5, .bert = {.compute = MX_F32}}, three = one;
    three.threads = 3;
    same_bits("1 and 3 threads, f32", &one, &three);
    one.bert.compute = three.bert.compute = MX_BF16;
    one.model = three.model = CLASSES;
    same_bits("1 and 3 threads, bf16", &one, &three);
}

static void recompute(void)
{
    setup kept = {.model = MASKED, .steps = 5, .bert = {.compute = MX_F32, .dropout = 0.1f}}, again = kept;
    again.bert.recompute = true;
    same_bits("kept and recomputed, with dropout", &kept, &again);
    kept.model = again.model = CLASSES;
    same_bits("kept and recomputed, classes", &kept, &again);
}

static void resume(void)
{
    resume_of((setup){.model = CLASSES, .bert = {.compute = MX_F32, .dropout = 0.1f}});
}

/* What is saved has the labels' names and opens again, head and all. */
static void saved(void)
{
    char folder[256];
    mx_error err = {0};
    rig r;
    mx_bert *again = NULL;
    const char *const names[] = {"bad", "so-so", "good"};
    setup s = {.model = CLASSES, .steps = 2, .bert = {.compute = MX_F32, .labels = names, .classes = 3}};
    run_folder(folder, sizeof folder);
    if (rig_open(&r, &s, NULL)) {
        CHECK_OK(mx_snapshot_prepare(folder, &err), err);
        CHECK_OK(r.learner.save(r.learner.network, folder, &err), err);
        mx_bert_options o = {.task = MX_BERT_CLASSIFY, .compute = MX_F32};
        CHECK_OK(mx_bert_open(&again, r.devs, folder, &o, &err), err);
        if (again) {
            const mx_params *p = mx_bert_params(again), *q = r.learner.params;
            float *one = fetched(&p->value), *other = fetched(&q->value);
            CHECK(mx_bert_fresh(again) == 0 && p->count == q->count && !memcmp(one, other, p->count * sizeof(float)));
            free(one), free(other);
            CHECK(mx_bert_config(again)->classes == 3 && !strcmp(mx_bert_config(again)->label[1], "so-so"));
        }
        mx_bert_close(again);
    }
    rig_close(&r, false);
    remove_tree(folder);
}

static void bad_options(void)
{
    static const char folder[] = MX_SOURCE_DIR "/tests/golden/encoder/bert";
    const struct { mx_bert_options o; const char *part; } bad[] = {
        {{.task = MX_BERT_CLASSIFY, .compute = MX_I8}, "compute"},
        {{.task = MX_BERT_CLASSIFY, .dropout = 1}, "dropout"},
        {{.task = MX_BERT_CLASSIFY, .classes = 1 << 20}, "classes"},
        {{.task = MX_BERT_CLASSIFY, .classes = 5}, "classifier.weight"},
        {{.task = MX_BERT_MASKED_WORDS, .mask_rate = 0}, "mask-rate"},
        {{.task = MX_BERT_MASKED_WORDS, .mask_rate = 0.5f}, "tokenizer"},
    };
    mx_device_options opt = {.cpu_threads = 1};
    mx_device *devs = NULL;
    mx_error err = {0};
    int n;
    CHECK_OK(mx_devices_open(&devs, &n, &opt, &err), err);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_bert *m = NULL;
        CHECK(mx_bert_open(&m, devs, folder, &bad[i].o, &err) != MX_OK && !m);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
    mx_devices_close(devs, n);
}

static void bad_configs(void)
{
    const struct { const char *json, *part; } bad[] = {
        {"{", "not JSON"}, {"[]", "not an object"}, {"{}", "model_type"}, {"{\"model_type\": \"gpt2\"}", "gpt2"},
        {"{\"model_type\": \"bert\", \"hidden_size\": 0}", "hidden_size"},
        {"{\"model_type\": \"bert\", \"hidden_size\": 33, \"num_attention_heads\": 2}", "multiple"},
        {"{\"model_type\": \"bert\", \"position_embedding_type\": \"relative_key\"}", "relative_key"},
        {"{\"model_type\": \"bert\", \"id2label\": {\"0\": \"a\", \"2\": \"b\"}}", "id2label"},
        {"{\"model_type\": \"bert\", \"id2label\": []}", "id2label"},
        {"{\"model_type\": \"bert\", \"vocab_size\": 1e99}", "vocab_size"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        mx_encoder_config c;
        mx_error err = {0};
        CHECK(mx_encoder_config_json(&c, bad[i].json, strlen(bad[i].json), "config.json", &err) != MX_OK);
        CHECK_MSG(strstr(err.text, bad[i].part), "%s", err.text);
    }
}

/* A document longer than a sequence is cut, and still ends with [SEP]. */
static void long_documents(void)
{
    rig r;
    mx_error err = {0};
    mx_batches b = {0};
    mx_batch batch = {0};
    setup s = {.model = CLASSES, .steps = 1, .bert = {.compute = MX_F32}};
    if (rig_open(&r, &s, NULL)) {
        CHECK_OK(mx_batches_open(&b, r.data, MX_PACK_DOCUMENTS, 12, 1, false, false, &err), err);
        CHECK(b.count == mx_dataset_count(r.data));
        for (int64_t i = 0; i < b.count; i++) {
            mx_batch_clear(&batch);
            CHECK_OK(mx_batches_take(&b, i, &batch, &err), err);
            CHECK(batch.rows <= 12 && batch.ids[0] == 2 && batch.ids[batch.rows - 1] == 3 && batch.label[0] == mx_dataset_at(r.data, i).label);
        }
        mx_batch_free(&batch);
        mx_batches_close(&b);
    }
    rig_close(&r, false);
}

static void measured(void)
{
    rig r;
    mx_error err = {0};
    double loss = 0, accuracy = -1;
    setup s = {.model = CLASSES, .steps = 1, .bert = {.compute = MX_F32}};
    if (rig_open(&r, &s, NULL)) {
        double few = 0, share = 0;
        CHECK_OK(mx_evaluate(&r.learner, &r.batches, 4096, NULL, NULL, &loss, &accuracy, &err), err);
        CHECK_OK(mx_evaluate(&r.learner, &r.batches, 96, NULL, NULL, &few, &share, &err), err);
        CHECK(loss > 0 && fabs(loss - few) < 1e-6 && accuracy == share && accuracy >= 0 && accuracy <= 1);
    }
    rig_close(&r, false);
}

MX_TESTS(TEST(masked_words), TEST(classify), TEST(threads), TEST(recompute), TEST(resume), TEST(saved), TEST(bad_options),
         TEST(bad_configs), TEST(long_documents), TEST(measured))
