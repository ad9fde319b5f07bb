/* settings.c - every setting of merx: flag, environment, file line, help and documentation come from here.
 *
 * A field of merx.v1.Sampling has the setting of its name, with - for _; server/cli_request.c
 * carries one to the other and tests/test_cli.c checks that none is missing. */
#include "server/settings.h"

#define TEXT MX_DECIDES_TEXT

const char *const mx_command_names[] = {"serve", "generate", "client", "info", NULL};

const mx_setting_group mx_setting_groups[] = {
    {MX_GROUP_BATCH, "Batches"},         {MX_GROUP_SERVER, "Server"},  {MX_GROUP_MODEL, "Model and memory"},
    {MX_GROUP_PROMPT, "Prompt"},         {MX_GROUP_LENGTH, "Length"},  {MX_GROUP_SAMPLE, "Choice of words"},
    {MX_GROUP_OUTPUT, "Output and log"}, {0, NULL},
};

const mx_setting mx_settings[] = {
    /* model */
    {"model", 'm', MX_SET_LIST, NULL, 0, 0, NULL, MX_CMD_MODEL | MX_CMD_CLIENT | TEXT | MX_GROUP_MODEL, "[NAME=]PATH",
     "A Hugging Face folder or .gguf file; the first is the default. For client: the name of a model of the server."},
    {"dtype", 0, MX_SET_CHOICE, "auto", 0, 0, "auto|f32|bf16|int8", MX_CMD_MODEL | TEXT | MX_GROUP_MODEL, NULL,
     "How weights are kept in memory; auto is f32."},
    {"kv-cache-dtype", 0, MX_SET_CHOICE, "auto", 0, 0, "auto|f32|f16|bf16", MX_CMD_MODEL | TEXT | MX_GROUP_MODEL, NULL,
     "How the KV cache is kept; auto is f32."},
    {"kv-cache-bytes", 0, MX_SET_INT, "0", 0, 1e15, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, "N",
     "Memory of the KV cache; 0 fits the limits below, at most a quarter of memory."},
    {"page-tokens", 0, MX_SET_INT, "16", 1, 1024, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, "N",
     "Tokens of one KV page."},
    {"max-model-len", 0, MX_SET_INT, "0", 0, 1 << 24, NULL, MX_CMD_MODEL | TEXT | MX_GROUP_MODEL, "N",
     "Tokens of prompt and output together; 0 is what the model was made for."},
    {"max-num-seqs", 0, MX_SET_INT, "64", 1, 65536, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, "N",
     "Requests that run at once."},
    {"max-num-batched-tokens", 0, MX_SET_INT, "512", 1, 1 << 20, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, "N",
     "Rows of one turn."},
    {"max-num-queued-reqs", 0, MX_SET_INT, "256", 1, 1 << 24, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, "N",
     "Requests that wait; beyond it RESOURCE_EXHAUSTED."},
    {"prefix-caching", 0, MX_SET_BOOL, "true", 0, 0, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, NULL,
     "Share the KV pages of equal beginnings."},
    {"threads", 't', MX_SET_INT, "0", 0, 1024, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, "N",
     "Threads of the CPU device; 0 is one per core."},
    {"bind", 0, MX_SET_BOOL, "true", 0, 0, NULL, MX_CMD_MODEL | MX_GROUP_MODEL, NULL,
     "Bind the threads to cores."},

    /* server */
    {"listen", 0, MX_SET_STRING, "127.0.0.1:50051", 0, 0, NULL, MX_CMD_SERVE | MX_GROUP_SERVER, "HOST:PORT",
     "Where to listen; port 0 takes any free one."},
    {"rpc-threads", 0, MX_SET_INT, "0", 0, 1024, NULL, MX_CMD_SERVE | MX_GROUP_SERVER, "N",
     "Threads that talk to clients; 0 is by the cores."},
    {"max-message-bytes", 0, MX_SET_INT, "4m", 1024, 1 << 30, NULL, MX_CMD_SERVE | MX_GROUP_SERVER, "N",
     "Largest request."},
    {"shutdown-timeout", 0, MX_SET_INT, "30", 0, 86400, NULL, MX_CMD_SERVE | MX_GROUP_SERVER, "SECONDS",
     "How long running work may finish after SIGTERM."},
    {"server", 's', MX_SET_STRING, "127.0.0.1:50051", 0, 0, NULL, MX_CMD_CLIENT | MX_GROUP_SERVER, "HOST:PORT",
     "The server to call."},
    {"timeout", 0, MX_SET_INT, "300", 1, 86400, NULL, MX_CMD_CLIENT | MX_GROUP_SERVER, "SECONDS",
     "Deadline of the call."},

    /* batch */
    {"input", 'i', MX_SET_STRING, NULL, 0, 0, NULL, MX_CMD_GENERATE | MX_GROUP_BATCH, "FILE",
     "Rows of JSON, each a prompt; - is standard input."},
    {"output", 'o', MX_SET_STRING, "-", 0, 0, NULL, MX_CMD_GENERATE | MX_GROUP_BATCH, "FILE",
     "Where the rows of answers go, in the order of the input. A run that was broken off goes on where it stood."},
    {"overwrite", 0, MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_GENERATE | MX_GROUP_BATCH, NULL,
     "Begin anew where the output already has rows."},
    {"strict", 0, MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_GENERATE | MX_GROUP_BATCH, NULL,
     "Stop at the first row that cannot be answered."},

    /* prompt */
    {"chat", 0, MX_SET_BOOL, "true", 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_PROMPT, NULL,
     "Put the prompt through the model's chat template where it has one."},
    {"system", 0, MX_SET_STRING, NULL, 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_PROMPT, "TEXT",
     "The system message of the chat."},
    {"echo", 0, MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_PROMPT, NULL,
     "The prompt's text first."},

    /* length */
    {"max-tokens", 'n', MX_SET_INT, "128", 0, 1 << 24, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_LENGTH, "N",
     "Most tokens to generate; 0 is up to the end of the context."},
    {"min-tokens", 0, MX_SET_INT, "0", 0, 1 << 24, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_LENGTH, "N",
     "No end of text before this many tokens."},
    {"ignore-eos", 0, MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_LENGTH, NULL,
     "Go on behind the model's end of text."},
    {"stop", 0, MX_SET_LIST, NULL, 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_LENGTH, "TEXT",
     "End before this text; up to 64."},
    {"stop-ids", 0, MX_SET_LIST, NULL, 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_LENGTH, "ID",
     "End at this token; up to 64."},

    /* sample */
    {"temperature", 0, MX_SET_FLOAT, "1", 0, 100, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "X",
     "Randomness; 0 takes the most likely token."},
    {"top-k", 0, MX_SET_INT, "0", 0, 1 << 24, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "K",
     "Choose among the K most likely tokens; 0 is all."},
    {"top-p", 0, MX_SET_FLOAT, "1", 1e-6, 1, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "P",
     "Choose among the smallest set with this probability."},
    {"min-p", 0, MX_SET_FLOAT, "0", 0, 1, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "P",
     "Leave out what is less likely than P times the best; 0 is off."},
    {"typical-p", 0, MX_SET_FLOAT, "1", 1e-6, 1, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "P",
     "Locally typical sampling; 1 is off."},
    {"repetition-penalty", 0, MX_SET_FLOAT, "1", 0.01, 100, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "X",
     "Above 1: tokens already seen become less likely."},
    {"presence-penalty", 0, MX_SET_FLOAT, "0", -2, 2, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "X",
     "Taken from the logit of what the output already has."},
    {"frequency-penalty", 0, MX_SET_FLOAT, "0", -2, 2, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "X",
     "The same, times how often."},
    {"no-repeat-ngram", 0, MX_SET_INT, "0", 0, 1024, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "N",
     "No N tokens in a row twice; 0 is off."},
    {"banned", 0, MX_SET_LIST, NULL, 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "TEXT",
     "Text that never appears in the output; up to 1024."},
    {"logit-bias", 0, MX_SET_LIST, NULL, 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "ID=X",
     "Add X, -100 to 100, to a token's logit; up to 1024."},
    {"n", 0, MX_SET_INT, "1", 1, 64, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "N",
     "Candidates of one prompt."},
    {"beams", 0, MX_SET_INT, "1", 1, 16, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "N",
     "Beam search with N beams; 1 is off."},
    {"length-penalty", 0, MX_SET_FLOAT, "1", -10, 10, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "X",
     "Beam search: above 0 favours longer texts."},
    {"seed", 0, MX_SET_STRING, NULL, 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_SAMPLE, "N",
     "0 to 2^64-1; the same seed gives the same text."},

    /* output */
    {"logprobs", 0, MX_SET_INT, NULL, 0, 20, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_OUTPUT, "K",
     "Log probabilities of the tokens and their K best alternatives; with --json, --stream-json or -o."},
    {"json", 0, MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_SAMPLE | MX_CMD_INFO | MX_GROUP_OUTPUT, NULL,
     "Print JSON: a line for each candidate."},
    {"stream-json", 0, MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_SAMPLE | TEXT | MX_GROUP_OUTPUT, NULL,
     "Print a line of JSON for each piece, as it comes."},
    {"quiet", 'q', MX_SET_BOOL, "false", 0, 0, NULL, MX_CMD_SAMPLE | MX_GROUP_OUTPUT, NULL,
     "No progress, no figures."},
    {"log-level", 0, MX_SET_CHOICE, NULL, 0, 0, "debug|info|warn|error|off", MX_CMD_ALL | MX_GROUP_OUTPUT, NULL,
     "Least important line to log; info for serve, warn for the others."},
    {"config", 0, MX_SET_STRING, NULL, 0, 0, NULL, MX_CMD_ALL | MX_GROUP_OUTPUT, "FILE",
     "Read settings from FILE: lines name = value."},
};
const int mx_settings_count = sizeof mx_settings / sizeof *mx_settings;
