/* test_decoder_config.c - configs of real families as transformers reads them,
 * and every field that can be wrong. */
#include "models/checkpoint_internal.h"
#include "models/decoder_config.h"
#include "tests/model_files.h"

#include <jansson.h>

#define GOLDEN MX_SOURCE_DIR "/tests/golden/checkpoint/"

/* ---- against transformers ------------------------------------------------------------ */

/* One ulp: PyTorch's vectorised pow is not always correctly rounded. */
static bool within_an_ulp(float a, float b)
{
    return a == b || nextafterf(a, b) == b;
}

static void compare(const char *name, const mx_decoder_config *c, const json_t *want)
{
    const json_t *freqs = json_object_get(want, "inv_freq"), *magnitude = json_object_get(want, "magnitude");
    int64_t parameters = json_integer_value(json_object_get(want, "parameters"));
    CHECK_MSG(c->parameters == parameters, "%s: %lld parameters, want %lld", name, (long long)c->parameters,
              (long long)parameters);
    if (!freqs) {
        CHECK_MSG(c->learned_positions, "%s", name);
        return;
    }
    CHECK_MSG(json_array_size(freqs) == (size_t)c->head_dim / 2, "%s: head_dim %d", name, c->head_dim);
    int differ = 0;
    for (size_t i = 0; i < json_array_size(freqs); i++) {
        float f = (float)json_number_value(json_array_get(freqs, i));
        differ += f != c->rope_freq[i];
        CHECK_MSG(within_an_ulp(c->rope_freq[i], f), "%s: frequency %zu is %.9g, want %.9g", name, i,
                  (double)c->rope_freq[i], (double)f);
    }
    CHECK_MSG(differ <= 2, "%s: %d frequencies differ in the last bit", name, differ);
    CHECK_MSG(c->rope_magnitude == (float)json_number_value(magnitude), "%s: magnitude %.9g", name,
              (double)c->rope_magnitude);
}

static void configs_as_transformers_reads_them(void)
{
    json_error_t why;
    json_t *all = json_load_file(GOLDEN "configs.json", 0, &why), *want;
    size_t i;
    CHECK_MSG(json_array_size(all) >= 20, "%s", why.text);
    json_array_foreach(all, i, want)
    {
        const char *name = json_string_value(json_object_get(want, "name"));
        char *text = json_dumps(json_object_get(want, "config"), 0);
        mx_decoder_config c;
        mx_error err = {0};
        mx_status st = mx_decoder_config_json(&c, text, strlen(text), name, &err);
        CHECK_MSG(st == MX_OK, "%s: %s", name, err.text);
        if (!st) compare(name, &c, want);
        free(text);
    }
    json_decref(all);
}

/* ---- field by field -------------------------------------------------------------------- */

static mx_decoder_config parse(const char *json)
{
    mx_decoder_config c;
    mx_error err = {0};
    CHECK_OK(mx_decoder_config_json(&c, json, strlen(json), "config.json", &err), err);
    return c;
}

#define GPT2                                                                                                         \
    "\"model_type\":\"gpt2\",\"activation_function\":\"gelu_new\",\"n_embd\":768,"                                   \
    "\"n_head\":12,\"n_layer\":12,\"n_positions\":1024,\"vocab_size\":50257,"                                        \
    "\"bos_token_id\":50256,\"eos_token_id\":50256,\"layer_norm_epsilon\":1e-05"
#define LLAMA                                                                                                        \
    "\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":96,"                                          \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"num_hidden_layers\":3,"                                   \
    "\"vocab_size\":500,\"max_position_embeddings\":2048,\"hidden_act\":\"silu\""
#define QWEN2                                                                                                        \
    "\"model_type\":\"qwen2\",\"hidden_size\":64,\"intermediate_size\":96,"                                          \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"num_hidden_layers\":3,"                                   \
    "\"vocab_size\":500,\"max_position_embeddings\":2048,\"hidden_act\":\"silu\""
#define MISTRAL                                                                                                      \
    "\"model_type\":\"mistral\",\"hidden_size\":64,\"intermediate_size\":96,"                                        \
    "\"num_attention_heads\":4,\"num_hidden_layers\":3,\"num_key_value_heads\":2,"                                   \
    "\"vocab_size\":500,\"max_position_embeddings\":8192"

static void gpt2_fields(void)
{
    mx_decoder_config c = parse("{" GPT2 "}");
    CHECK_STR(c.architecture, "gpt2");
    CHECK(c.names == MX_NAMES_HF_GPT2 && c.layers == 12 && c.d_model == 768 && c.heads == 12 && c.kv_heads == 12);
    CHECK(c.head_dim == 64 && c.d_ff == 3072 && c.vocab == 50257 && c.max_positions == 1024 && c.norm_eps == 1e-5f);
    CHECK(!c.rms_norm && !c.gated && c.act == MX_ACT_GELU_TANH && c.learned_positions && c.tied && c.window == 0);
    CHECK(c.qkv_bias && c.out_bias && c.mlp_bias && c.attention_scale == 0.125f);
    CHECK(c.bos == 50256 && c.n_eos == 1 && c.eos[0] == 50256 && c.parameters == 124439808 && c.rope_magnitude == 1);
    c = parse("{" GPT2 ",\"n_inner\":100,\"scale_attn_weights\":false,\"tie_word_embeddings\":false}");
    CHECK(c.d_ff == 100 && c.attention_scale == 1 && !c.tied);
    c = parse("{" GPT2 ",\"n_inner\":null}");
    CHECK(c.d_ff == 3072 && c.n_eos == 1);
}

static void llama_fields(void)
{
    mx_decoder_config c = parse("{" LLAMA "}");
    CHECK_STR(c.architecture, "llama");
    CHECK(c.names == MX_NAMES_HF_LLAMA && c.layers == 3 && c.d_model == 64 && c.heads == 4 && c.kv_heads == 2);
    CHECK(c.head_dim == 16 && c.d_ff == 96 && c.vocab == 500 && c.max_positions == 2048 && c.norm_eps == 1e-6f);
    CHECK(c.rms_norm && c.gated && c.act == MX_ACT_SILU && !c.learned_positions && !c.tied && !c.rope_interleaved);
    CHECK(!c.qkv_bias && !c.out_bias && !c.mlp_bias && c.rope_theta == 10000 && c.rope_scaling == MX_ROPE_NONE);
    CHECK(c.bos == 1 && c.n_eos == 1 && c.eos[0] == 2 && c.attention_scale == 0.25f && c.rope_freq[0] == 1);
    c = parse("{" LLAMA ",\"attention_bias\":true,\"mlp_bias\":true,\"tie_word_embeddings\":true,\"head_dim\":32,"
              "\"eos_token_id\":[7,8,499,500,-1],\"bos_token_id\":null}");
    CHECK(c.qkv_bias && c.out_bias && c.mlp_bias && c.tied && c.head_dim == 32);
    CHECK(c.bos == -1 && c.n_eos == 3 && c.eos[0] == 7 && c.eos[1] == 8 && c.eos[2] == 499);
    c = parse("{\"model_type\":\"llama\",\"hidden_size\":64,\"num_attention_heads\":4,\"num_key_value_heads\":null}");
    CHECK(c.kv_heads == 4);
    c = parse("{\"model_type\":\"llama\",\"hidden_size\":64,\"num_attention_heads\":4}");
    CHECK(c.kv_heads == 4);
    c = parse("{" QWEN2 "}");
    CHECK(c.qkv_bias && !c.out_bias && !c.mlp_bias && c.bos == -1 && c.n_eos == 0 && c.window == 0 && !c.tied);
}

static void scalings_are_recorded(void)
{
    mx_decoder_config c = parse("{" LLAMA ",\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":4}}");
    mx_decoder_config plain = parse("{" LLAMA "}");
    CHECK(c.rope_scaling == MX_ROPE_DYNAMIC && c.rope_factor == 4);
    CHECK(memcmp(c.rope_freq, plain.rope_freq, sizeof c.rope_freq) == 0 && c.max_positions == 2048);
    c = parse("{" LLAMA
              ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":4},\"rope_parameters\":{\"rope_theta\":5}}");
    CHECK(c.rope_scaling == MX_ROPE_LINEAR && c.rope_theta == 10000 && c.rope_freq[0] == 0.25f);
    c = parse("{" LLAMA ",\"rope_scaling\":{},\"rope_parameters\":{\"rope_theta\":50000}}");
    CHECK(c.rope_scaling == MX_ROPE_NONE && c.rope_theta == 50000);
    c = parse("{" LLAMA
              ",\"original_max_position_embeddings\":512,\"rope_scaling\":{\"type\":\"su\",\"short_factor\":"
              "[1,1,1,1,2,2,2,2],\"long_factor\":[1,1,1,1,2,2,2,2]}}");
    CHECK(c.rope_scaling == MX_ROPE_LONGROPE && c.max_positions == 512 && c.rope_factor == 4);
}

static void windows(void)
{
    CHECK(parse("{" MISTRAL "}").window == 4096);
    CHECK(parse("{" MISTRAL ",\"sliding_window\":null}").window == 0);
    CHECK(parse("{" MISTRAL ",\"sliding_window\":100}").window == 100);
    CHECK(parse("{" MISTRAL ",\"sliding_window\":8192}").window == 0);
    CHECK(parse("{" QWEN2 ",\"sliding_window\":100}").window == 0);
    CHECK(parse("{" QWEN2 ",\"sliding_window\":100,\"use_sliding_window\":true}").window == 0);
    CHECK(parse("{" QWEN2 ",\"sliding_window\":100,\"use_sliding_window\":true,\"max_window_layers\":0}").window ==
          100);
    CHECK(parse("{" QWEN2 ",\"sliding_window\":100,\"use_sliding_window\":true,\"max_window_layers\":3}").window ==
          0);
    CHECK(parse("{" QWEN2
                ",\"sliding_window\":100,\"use_sliding_window\":true,\"layer_types\":[\"sliding_attention\","
                "\"sliding_attention\",\"sliding_attention\"]}")
              .window == 100);
}

/* ---- what is refused ---------------------------------------------------------------------- */

static const struct {
    const char *json;
    mx_status st;
    const char *words;
} refused[] = {
    {"", MX_ERR_FORMAT, "not JSON"},
    {"[1]", MX_ERR_FORMAT, "not an object"},
    {"{}", MX_ERR_FORMAT, "model_type is missing"},
    {"{\"model_type\":7}", MX_ERR_FORMAT, "model_type is 7"},
    {"{\"model_type\":\"mamba\"}", MX_ERR_ARG, "mamba is not supported (gpt2, llama, qwen2, mistral are)"},
    {"{" GPT2 ",\"n_embd\":1}", MX_ERR_FORMAT, "duplicate"},
    {"{\"model_type\":\"gpt2\",\"n_embd\":0}", MX_ERR_FORMAT, "n_embd is 0, allowed: an integer from 1"},
    {"{\"model_type\":\"gpt2\",\"n_embd\":-1}", MX_ERR_FORMAT, "n_embd is -1"},
    {"{\"model_type\":\"gpt2\",\"n_embd\":1.5}", MX_ERR_FORMAT, "n_embd is 1.5"},
    {"{\"model_type\":\"gpt2\",\"n_embd\":\"768\"}", MX_ERR_FORMAT, "n_embd is \"768\""},
    {"{\"model_type\":\"gpt2\",\"n_embd\":1e300}", MX_ERR_FORMAT, "n_embd is"},
    {"{\"model_type\":\"gpt2\",\"n_embd\":770}", MX_ERR_FORMAT, "not a multiple of n_head"},
    {"{\"model_type\":\"gpt2\",\"n_layer\":1025}", MX_ERR_FORMAT, "n_layer is 1025"},
    {"{\"model_type\":\"gpt2\",\"vocab_size\":16777217}", MX_ERR_FORMAT, "vocab_size"},
    {"{\"model_type\":\"gpt2\",\"n_head\":2}", MX_ERR_FORMAT, "head_dim is 384"},
    {"{\"model_type\":\"gpt2\",\"n_head\":256}", MX_ERR_FORMAT, "head_dim is 3"},
    {"{\"model_type\":\"gpt2\",\"layer_norm_epsilon\":-1e-5}", MX_ERR_FORMAT, "layer_norm_epsilon"},
    {"{\"model_type\":\"gpt2\",\"layer_norm_epsilon\":NaN}", MX_ERR_FORMAT, "not JSON"},
    {"{\"model_type\":\"gpt2\",\"layer_norm_epsilon\":1e999}", MX_ERR_FORMAT, "not JSON"},
    {"{\"model_type\":\"gpt2\",\"activation_function\":\"mish\"}", MX_ERR_FORMAT, "activation_function is \"mish\""},
    {"{\"model_type\":\"gpt2\",\"tie_word_embeddings\":1}", MX_ERR_FORMAT, "true or false"},
    {"{" GPT2 ",\"scale_attn_by_inverse_layer_idx\":true}", MX_ERR_ARG, "scale_attn_by_inverse_layer_idx"},
    {"{" GPT2 ",\"add_cross_attention\":true}", MX_ERR_ARG, "add_cross_attention"},
    {"{" GPT2 ",\"quantization_config\":{\"quant_method\":\"gptq\"}}", MX_ERR_ARG, "gptq"},
    {"{" LLAMA ",\"eos_token_id\":[1,2,3,4,5,6,7,8,9]}", MX_ERR_FORMAT, "at most 8"},
    {"{" LLAMA ",\"eos_token_id\":\"</s>\"}", MX_ERR_FORMAT, "eos_token_id is \"</s>\""},
    {"{" LLAMA ",\"bos_token_id\":-7}", MX_ERR_FORMAT, "bos_token_id is -7"},
    {"{" LLAMA ",\"head_dim\":15}", MX_ERR_FORMAT, "head_dim is 15"},
    {"{" LLAMA ",\"head_dim\":258}", MX_ERR_FORMAT, "head_dim is 258"},
    {"{" LLAMA ",\"rms_norm_eps\":-1}", MX_ERR_FORMAT, "rms_norm_eps is -1"},
    {"{\"model_type\":\"llama\",\"hidden_size\":64,\"num_attention_heads\":4,\"num_key_value_heads\":3}",
     MX_ERR_FORMAT, "4 heads cannot share 3"},
    {"{\"model_type\":\"llama\",\"hidden_size\":62,\"num_attention_heads\":4}", MX_ERR_FORMAT, "not a multiple"},
    {"{\"model_type\":\"llama\",\"num_attention_heads\":4096,\"head_dim\":256}", MX_ERR_FORMAT, "4096 heads of 256"},
    {"{" LLAMA ",\"rope_theta\":0}", MX_ERR_FORMAT, "rope_theta is 0"},
    {"{" LLAMA ",\"partial_rotary_factor\":0.5}", MX_ERR_ARG, "partial_rotary_factor"},
    {"{" LLAMA ",\"rope_scaling\":7}", MX_ERR_FORMAT, "rope_scaling is 7"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"mrope\"}}", MX_ERR_ARG, "rope_type mrope"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\"}}", MX_ERR_FORMAT, "rope_scaling.factor is missing"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}}", MX_ERR_FORMAT, "rope_scaling.factor is 0"},
    {"{" LLAMA ",\"rope_parameters\":{\"rope_type\":\"llama3\",\"factor\":8}}", MX_ERR_FORMAT,
     "low_freq_factor is missing"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8,\"low_freq_factor\":4,\"high_freq_factor\":4}}",
     MX_ERR_FORMAT, "more than low_freq_factor"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2]}}", MX_ERR_FORMAT, "head_dim / 2"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\"}}", MX_ERR_FORMAT, "short_factor is missing"},
    {"{" LLAMA ",\"rope_scaling\":{\"type\":\"longrope\",\"short_factor\":[1,2,3,4,5,6,7,0]}}", MX_ERR_FORMAT,
     "is 0,"},
    {"{" LLAMA ",\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}}", MX_ERR_ARG, "by layer type"},
    {"{" MISTRAL ",\"sliding_window\":-1}", MX_ERR_FORMAT, "sliding_window is -1"},
    {"{" QWEN2 ",\"sliding_window\":100,\"use_sliding_window\":true,\"max_window_layers\":1}", MX_ERR_ARG,
     "2 of 3 layers"},
    {"{" QWEN2 ",\"layer_types\":[\"linear_attention\"]}", MX_ERR_FORMAT, "layer_types is \"linear_attention\""},
};

static void wrong_fields_are_named(void)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++) {
        mx_decoder_config c;
        mx_error err = {0};
        mx_status st = mx_decoder_config_json(&c, refused[i].json, strlen(refused[i].json), "config.json", &err);
        CHECK_MSG(st == refused[i].st && err.code == st && strstr(err.text, refused[i].words),
                  "%s: wanted \"%s\", got %s: %s", refused[i].json, refused[i].words, mx_status_name(st), err.text);
    }
}

/* ---- folders --------------------------------------------------------------------------------- */

static void generation_config_wins(void)
{
    folder f = folder_make();
    mx_decoder_config c;
    mx_error err = {0};
    CHECK(mx_decoder_config_folder(&c, f.path, &err) == MX_ERR_IO && strstr(err.text, "config.json"));
    folder_text(&f, "config.json", "{" LLAMA "}");
    CHECK_OK(mx_decoder_config_folder(&c, f.path, &err), err);
    CHECK(c.bos == 1 && c.n_eos == 1 && c.eos[0] == 2);
    folder_text(&f, "generation_config.json", "{\"eos_token_id\":[5,6]}");
    CHECK_OK(mx_decoder_config_folder(&c, f.path, &err), err);
    CHECK(c.bos == 1 && c.n_eos == 2 && c.eos[0] == 5 && c.eos[1] == 6);
    folder_text(&f, "generation_config.json", "{\"bos_token_id\":9,\"eos_token_id\":null}");
    CHECK_OK(mx_decoder_config_folder(&c, f.path, &err), err);
    CHECK(c.bos == 9 && c.n_eos == 1 && c.eos[0] == 2);
    folder_text(&f, "generation_config.json", "{\"eos_token_id\":{}}");
    CHECK(mx_decoder_config_folder(&c, f.path, &err) == MX_ERR_FORMAT &&
          strstr(err.text, "generation_config.json: eos_token_id"));
    folder_text(&f, "generation_config.json", "{");
    CHECK(mx_decoder_config_folder(&c, f.path, &err) == MX_ERR_FORMAT && strstr(err.text, "generation_config.json"));
    FOLDER_REMOVE(&f, "config.json", "generation_config.json");
}

/* ---- GGUF ---------------------------------------------------------------------------------------- */

/* Metadata alone, with what `extra` adds, and one optional F32 vector. */
typedef struct gguf_case {
    bytes keys;
    uint64_t n_keys;
    const char *vector;
    int n_vector;
    float value;
} gguf_case;

static void base_keys(gguf_case *g, const char *arch, const char *eps)
{
    static const struct {
        const char *field;
        uint32_t v;
    } sizes[] = {
        {"block_count", 3},          {"embedding_length", 64},
        {"attention.head_count", 4}, {"attention.head_count_kv", 2},
        {"feed_forward_length", 96}, {"context_length", 2048},
        {"vocab_size", 500},
    };
    char key[64];
    *g = (gguf_case){0};
    gguf_string(&g->keys, "general.architecture", arch);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(key, sizeof key, "%s.%s", arch, sizes[i].field);
        gguf_u32(&g->keys, key, sizes[i].v);
    }
    snprintf(key, sizeof key, "%s.%s", arch, eps);
    gguf_f32(&g->keys, key, 1e-5f);
    g->n_keys = 9;
}

static mx_status gguf_read(gguf_case *g, mx_decoder_config *c, mx_error *err)
{
    bytes b = {0};
    mx_checkpoint *file;
    gguf_header(&b, 3, g->vector ? 1 : 0, g->n_keys);
    put(&b, g->keys.data, g->keys.size);
    if (g->vector) gguf_tensor(&b, g->vector, 0, (uint64_t)g->n_vector, 0, 0);
    put_padding(&b, 32);
    for (int i = 0; g->vector && i < g->n_vector; i++) put_f32(&b, i < 2 ? 1 : g->value);
    mx_status st = mx_checkpoint_open_memory(&file, b.data, b.size, "file.gguf", err);
    CHECK_MSG(st == MX_OK, "%s", err->text);
    if (!st) st = mx_decoder_config_gguf(c, file, err);
    mx_checkpoint_close(file);
    bytes_free(&b);
    bytes_free(&g->keys);
    return st;
}

static void gguf_fields(void)
{
    gguf_case g;
    mx_decoder_config c;
    mx_error err = {0};
    base_keys(&g, "llama", "attention.layer_norm_rms_epsilon");
    gguf_f32(&g.keys, "llama.rope.freq_base", 100000);
    gguf_u32(&g.keys, "llama.rope.dimension_count", 16);
    gguf_u32(&g.keys, "tokenizer.ggml.bos_token_id", 1);
    gguf_u32(&g.keys, "tokenizer.ggml.eos_token_id", 2);
    gguf_u32(&g.keys, "tokenizer.ggml.eot_token_id", 2);
    gguf_u32(&g.keys, "tokenizer.ggml.eom_token_id", 7);
    g.n_keys += 6;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    mx_decoder_config same = parse("{" LLAMA ",\"rope_theta\":100000}");
    CHECK_STR(c.architecture, "llama");
    CHECK(c.names == MX_NAMES_GGUF && c.layers == 3 && c.d_model == 64 && c.heads == 4 && c.kv_heads == 2 &&
          c.d_ff == 96);
    CHECK(c.head_dim == 16 && c.vocab == 500 && c.max_positions == 2048 && c.norm_eps == 1e-5f && c.rms_norm &&
          c.gated);
    CHECK(c.tied && !c.qkv_bias && c.rope_interleaved && c.act == MX_ACT_SILU && c.attention_scale == 0.25f);
    CHECK(c.bos == 1 && c.n_eos == 2 && c.eos[0] == 2 && c.eos[1] == 7);
    CHECK(memcmp(c.rope_freq, same.rope_freq, sizeof c.rope_freq) == 0);

    base_keys(&g, "qwen2", "attention.layer_norm_rms_epsilon");
    g.vector = "blk.0.attn_q.bias";
    g.n_vector = 64;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    CHECK(!c.rope_interleaved && c.qkv_bias && !c.out_bias && c.rope_theta == 10000 && c.bos == -1 && c.n_eos == 0);

    base_keys(&g, "gpt2", "attention.layer_norm_epsilon");
    g.vector = "output.weight";
    g.n_vector = 64;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    CHECK(c.learned_positions && !c.rms_norm && !c.gated && !c.tied && c.act == MX_ACT_GELU_TANH &&
          c.rope_magnitude == 1);
}

static void gguf_scalings(void)
{
    gguf_case g;
    mx_decoder_config c, same;
    mx_error err = {0};
    base_keys(&g, "llama", "attention.layer_norm_rms_epsilon");
    g.vector = "rope_freqs.weight";
    g.n_vector = 8;
    g.value = 8;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    same = parse("{" LLAMA "}");
    CHECK(c.rope_scaling == MX_ROPE_LLAMA3 && c.rope_factor == 8);
    CHECK(c.rope_freq[1] == same.rope_freq[1] && c.rope_freq[5] == same.rope_freq[5] / 8);

    base_keys(&g, "llama", "attention.layer_norm_rms_epsilon");
    gguf_string(&g.keys, "llama.rope.scaling.type", "linear");
    gguf_f32(&g.keys, "llama.rope.scaling.factor", 4);
    g.n_keys += 2;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    CHECK(c.rope_scaling == MX_ROPE_LINEAR && c.rope_freq[0] == 0.25f);

    base_keys(&g, "qwen2", "attention.layer_norm_rms_epsilon");
    gguf_string(&g.keys, "qwen2.rope.scaling.type", "yarn");
    gguf_f32(&g.keys, "qwen2.rope.scaling.factor", 4);
    gguf_u32(&g.keys, "qwen2.rope.scaling.original_context_length", 512);
    g.n_keys += 3;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    same = parse("{" QWEN2
                 ",\"rope_scaling\":{\"type\":\"yarn\",\"factor\":4,\"original_max_position_embeddings\":512}}");
    CHECK(c.rope_scaling == MX_ROPE_YARN && memcmp(c.rope_freq, same.rope_freq, sizeof c.rope_freq) == 0);
    CHECK(c.rope_magnitude == same.rope_magnitude);

    base_keys(&g, "llama", "attention.layer_norm_rms_epsilon");
    gguf_string(&g.keys, "llama.rope.scaling.type", "longrope");
    gguf_u32(&g.keys, "llama.rope.scaling.original_context_length", 512);
    g.n_keys += 2;
    g.vector = "rope_factors_short.weight";
    g.n_vector = 8;
    g.value = 2;
    CHECK_OK(gguf_read(&g, &c, &err), err);
    CHECK(c.rope_scaling == MX_ROPE_LONGROPE && c.rope_freq[0] == 1 && c.max_positions == 512 &&
          c.rope_magnitude == 1);
}

static void gguf_refuse(gguf_case *g, mx_status want, const char *words)
{
    mx_decoder_config c;
    mx_error err = {0};
    mx_status st = gguf_read(g, &c, &err);
    CHECK_MSG(st == want && strstr(err.text, words), "wanted \"%s\", got %s: %s", words, mx_status_name(st),
              err.text);
}

static void gguf_wrong_fields_are_named(void)
{
    static const char eps[] = "attention.layer_norm_rms_epsilon";
    gguf_case g = {0};
    gguf_refuse(&g, MX_ERR_FORMAT, "general.architecture is missing");
    gguf_string(&g.keys, "general.architecture", "gemma");
    g.n_keys = 1;
    gguf_refuse(&g, MX_ERR_ARG, "gemma is not supported (gpt2, llama, qwen2 are)");
    g = (gguf_case){.n_keys = 1};
    gguf_string(&g.keys, "general.architecture", "llama");
    gguf_refuse(&g, MX_ERR_FORMAT, "llama.block_count is missing");
    static const struct {
        const char *key;
        uint32_t v;
        mx_status st;
        const char *words;
    } ints[] = {
        {"llama.rope.dimension_count", 8, MX_ERR_ARG, "dimension_count 8 of 16"},
        {"llama.expert_count", 8, MX_ERR_ARG, "experts"},
        {"llama.attention.value_length", 8, MX_ERR_ARG, "values of another length"},
        {"llama.attention.key_length", 17, MX_ERR_FORMAT, "head_dim is 17"},
        {"llama.attention.key_length", 400, MX_ERR_FORMAT, "key_length is 400"},
        {"llama.rope.freq_base", 0, MX_ERR_FORMAT, "freq_base is 0"},
    };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        base_keys(&g, "llama", eps);
        gguf_u32(&g.keys, ints[i].key, ints[i].v);
        g.n_keys++;
        gguf_refuse(&g, ints[i].st, ints[i].words);
    }
    base_keys(&g, "llama", eps);
    gguf_string(&g.keys, "llama.rope.scaling.type", "spiral");
    g.n_keys++;
    gguf_refuse(&g, MX_ERR_ARG, "spiral is not supported");
    base_keys(&g, "llama", eps);
    g.vector = "rope_freqs.weight";
    g.n_vector = 7;
    g.value = 1;
    gguf_refuse(&g, MX_ERR_FORMAT, "F32[1, 7], wanted F32[8]");
    base_keys(&g, "llama", eps);
    g.vector = "rope_freqs.weight";
    g.n_vector = 8;
    g.value = NAN;
    gguf_refuse(&g, MX_ERR_FORMAT, "rope_freqs.weight[2] is");
    g = (gguf_case){.n_keys = 2};
    gguf_string(&g.keys, "general.architecture", "llama");
    gguf_key(&g.keys, "llama.block_count", G_ARRAY);
    put_u32(&g.keys, G_U32);
    put_u64(&g.keys, 1);
    put_u32(&g.keys, 3);
    gguf_refuse(&g, MX_ERR_ARG, "a value per layer");
}

static void a_real_file(void)
{
    const char *path = getenv("MX_GGUF");
    if (!path) {
        TEST_SKIP("MX_GGUF names no file");
        return;
    }
    mx_error err = {0};
    mx_checkpoint *file;
    mx_decoder_config c;
    CHECK_OK(mx_checkpoint_open(&file, path, &err), err);
    if (!file) return;
    CHECK_OK(mx_decoder_config_gguf(&c, file, &err), err);
    printf("  %s: %d layers, d %d, %d/%d heads of %d, ff %d, vocab %d, context %d, %s, theta %g, %lld parameters, "
           "eos %d\n",
           c.architecture, c.layers, c.d_model, c.heads, c.kv_heads, c.head_dim, c.d_ff, c.vocab, c.max_positions,
           c.tied ? "tied" : "untied", c.rope_theta, (long long)c.parameters, c.n_eos ? c.eos[0] : -1);
    mx_checkpoint_close(file);
}

MX_TESTS(TEST(configs_as_transformers_reads_them), TEST(gpt2_fields), TEST(llama_fields), TEST(scalings_are_recorded),
         TEST(windows), TEST(wrong_fields_are_named), TEST(generation_config_wins), TEST(gguf_fields),
         TEST(gguf_scalings), TEST(gguf_wrong_fields_are_named), TEST(a_real_file))
