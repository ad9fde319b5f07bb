/* cli_help.c - the commands, and what a person reads about them. */
#include "server/cli_parts.h"
#include "server/settings.h"

#include "runtime/config_table.h"

#include <stdlib.h>
#include <string.h>

#define WIDEST 100                      /* columns; longer lines are hard to read */

const mx_cli_command mx_cli_commands[] = {
    {"serve", MX_CMD_SERVE, mx_cli_serve, "", "Serve models over gRPC.",
     "Listens on loopback unless --listen says otherwise. SIGTERM and Ctrl-C let running calls finish.",
     "  merx serve --model path/to/model\n"
     "  merx serve --model copy=models/smollm2 --model mail=models/mail.gguf --listen 0.0.0.0:50051\n"
     "  MERX_MAX_NUM_SEQS=16 merx serve --config merx.conf\n"
     "  merx serve -m path/to/model --tokens tokens --tls-cert cert.pem --tls-key key.pem\n"},
    {"generate", MX_CMD_GENERATE, mx_cli_generate, " PROMPT | -i ROWS -o ANSWERS", "Write a text, or thousands, here and now.",
     "A prompt is text in quotes, or - for standard input. A row of --input is\n"
     "{\"prompt\": \"...\"} or {\"messages\": [{\"role\": \"user\", \"content\": \"...\"}]}, with an \"id\" and any\n"
     "sampling field of its own; its answer has the same id. Broken off, even by kill -9, the same\n"
     "command goes on where it stood.",
     "  merx generate -m path/to/model \"Write one sentence that sells light running shoes.\"\n"
     "  merx generate -m path/to/model --system \"You write copy.\" --temperature 0.7 --n 3 \"Sunscreen:\"\n"
     "  merx generate -m path/to/model -i products.jsonl -o copy.jsonl --seed 7\n"
     "  cat brief.txt | merx generate -m path/to/model --json - | jq -r .text\n"},
    {"client", MX_CMD_CLIENT, mx_cli_client, " PROMPT", "Ask a running server; print the answer as it comes.",
     "A prompt is text in quotes, or - for standard input.",
     "  merx client \"Write one sentence that sells light running shoes.\"\n"
     "  merx client --server unix:/run/merx.sock --model copy --max-tokens 40 --json \"Sunscreen:\"\n"},
    {"info", MX_CMD_INFO, mx_cli_info, "", "Show the machine, the memory a model takes and how many texts fit.", NULL,
     "  merx info\n"
     "  merx info --model path/to/model --dtype bf16 --json\n"},
    {"train", MX_CMD_TRAIN, mx_cli_train, " lm|encoder|gnn|dqn", "Train a language model, an adapter to one, a text encoder, a graph network, or a policy.",
     "The folder has config.json, a tokenizer and, unless --from-scratch, weights. Data is .jsonl, .txt\n"
     "or shards of merx tokenize. Checkpoints open in transformers; the same command goes on from the\n"
     "newest one, bit for bit. Under mpirun the processes share every batch. dqn learns to act in a\n"
     "world (--env), or from logged steps (--data), as those of a pricing log.",
     "  merx train lm -m gpt2 -d copy.jsonl --eval-data held-out.jsonl --run runs/copy --epochs 3 --eval-every 100\n"
     "  merx train lm -m smollm2 -d chats.jsonl --run runs/brand --lora-rank 8 --lr 2e-4\n"
     "  merx train lm -m small --from-scratch -d corpus-*.safetensors --packing blocks --run runs/small --steps 20000\n"
     "  merx train encoder -m bert --task classify --label-names bad --label-names good -d reviews.jsonl --run runs/mood\n"
     "  merx train encoder -m runs/mood/checkpoint-00000900 --task classify --eval-data held-out.jsonl --eval-only\n"
     "  merx train gnn --profiles data/profiles --run runs/users --epochs 200\n"
     "  merx train gnn --network gcn -d cora.safetensors --run runs/cora --hidden-size 16 --dropout 0.5 --l2-first 5e-4 --epochs 200\n"
     "  mpirun -n 4 merx train lm -m gpt2 -d copy.jsonl --run runs/copy\n"
     "  merx train dqn --env cartpole --run runs/cartpole\n"
     "  merx train dqn --pricing prices.db --export steps.jsonl\n"
     "  merx train dqn --data steps.jsonl --gamma 0.9 --clone-steps 2000 --cql-alpha 1 --run runs/prices\n"},
    {"evaluate", MX_CMD_EVALUATE, mx_cli_evaluate, "", "Play a learned policy; print its mean return with its 95 % interval.",
     "The model is a checkpoint of merx train dqn, or what Stable-Baselines3's DQN.save() wrote.",
     "  merx evaluate --model runs/cartpole/checkpoint-00050000\n"
     "  merx evaluate --model dqn.zip --env cartpole --episodes 1000\n"
     "  merx evaluate --model runs/a/best --model runs/b/best --env market:panel.csv,held-out\n"
     "  merx evaluate --pricing prices.db\n"},
    {"tokenize", MX_CMD_TOKENIZE, mx_cli_tokenize, "", "Turn text into shards of token ids, once, for many runs.", NULL,
     "  merx tokenize -m gpt2 -d corpus.jsonl -o data/corpus\n"},
    {"merge", MX_CMD_MERGE, mx_cli_merge, "", "Make one model of a base and its adapter.", NULL,
     "  merx merge -m smollm2 --adapter runs/brand/checkpoint-00000400 -o models/brand\n"},
    {"embed", MX_CMD_EMBED, mx_cli_embed, " TEXT | -i ROWS -o ANSWERS", "Vectors of texts, or their classes.",
     "The model is a folder of a BERT, or of sentence-transformers. A row of --input is {\"text\": \"...\"},\n"
     "with an \"id\"; its answer has the same id. Broken off, the same command goes on where it stood.",
     "  merx embed -m all-MiniLM-L6-v2 \"Light running shoes\"\n"
     "  merx embed -m all-MiniLM-L6-v2 -i products.jsonl -o vectors.jsonl\n"
     "  merx embed -m runs/mood/checkpoint-00000900 --classify -i reviews.jsonl -o moods.jsonl\n"},
    {"token", MX_CMD_TOKEN, mx_cli_token, " TENANT", "Make a token for a tenant of a server.",
     "Prints the token, once; its hash and what it may do go to the end of the --tokens file.",
     "  merx token shop --tokens tokens.txt\n"
     "  merx token crm --tokens tokens.txt --services Embeddings,Pricing --rate 50 --burst 100\n"},
    {"bench", MX_CMD_BENCH, mx_cli_bench, " serve", "Put a load on a running server and measure it.",
     "At a rate, latencies count from when a request was due, so that stalls are seen in full.",
     "  merx bench serve --request-rate 20 --num-prompts 500 --goodput ttft:200 --report load.html\n"
     "  merx bench serve --workload embed=1 --workload quote=10 --sku oj-64 --request-rate 500\n"
     "  merx bench serve --workload echo --max-concurrency 64 --connections 2 --duration 10\n"},
    {"top", MX_CMD_TOP, mx_cli_top, " [HOST:PORT]", "Watch a server: lanes, models, calls.",
     "The address is that of its --http-listen; 127.0.0.1:8080 when not given. Ctrl-C ends it.",
     "  merx top\n"
     "  merx top 10.0.0.7:8080 --interval 5\n"},
    {"plot", MX_CMD_PLOT, mx_cli_plot, " METRICS.jsonl ...", "Draw the curves of training runs as an SVG.", NULL,
     "  merx plot runs/copy/metrics.jsonl -o loss.svg --title \"Copy, GPT-2\"\n"
     "  merx plot runs/a/metrics.jsonl runs/b/metrics.jsonl -o compare.svg --log-x\n"},
    {"load", MX_CMD_LOAD, mx_cli_load, "", "Load events of users into a store of profiles.",
     "A row has subject, type, and as it may be object, ts, weight, price, quantity, promo, category, text ...\n"
     "Rows that are there already (the same id, or the same line of the same file) change nothing, so a load that\n"
     "was broken off, even by kill -9, goes on with the same command.",
     "  merx load --store profiles -d events.jsonl\n"
     "  merx load --store profiles -d follows.tsv --columns subject,object --event-type follow\n"
     "  merx load --store profiles -d trips.csv --declare book:user:hotel:purchase --event-type book\n"},
    {"profile", MX_CMD_PROFILE, mx_cli_profile, " USER | -i EVENTS", "What a user is like, and why; or events for a server.",
     "Asks a running server, or reads a folder that none has open. A row of --input is an event:\n"
     "{\"event_id\": \"o-17\", \"type\": \"buy\", \"user\": \"anna\", \"object\": \"shoe-3\", \"ts_ms\": 1764230400000,\n"
     "\"price_minor\": 4990, \"currency\": \"EUR\", \"category\": \"shoes\", \"promo\": true}; the same id counts once.",
     "  merx profile anna\n"
     "  merx profile -i events.jsonl --learn --server 127.0.0.1:50051\n"
     "  merx profile anna --profiles data/profiles\n"},
    {"models", MX_CMD_MODELS, mx_cli_models, " list | load NAME PATH | unload NAME", "See, load, replace and unload the models of a running server.",
     "load of a name that is served brings in its next version: requests that have begun end with the old one,\n"
     "none fails. PATH is one on the server, inside its --models-folder or the folders of training; of a training\n"
     "job its id (job-000001).",
     "  merx models list\n"
     "  merx models load copy /srv/models/copy-2\n"
     "  merx models load brand job-000001 --adapter-of copy\n"
     "  merx models unload copy --drain 60\n"},
    {0},
};

const mx_cli_command *mx_cli_find(const char *name)
{
    for (const mx_cli_command *k = mx_cli_commands; k->name; k++)
        if (!strcmp(k->name, name)) return k;
    return NULL;
}

const char *mx_cli_nearest(const char *name)
{
    const char *best = NULL;
    int least = 1 + (int)strlen(name) / 3;
    for (const mx_cli_command *k = mx_cli_commands; k->name; k++) {
        int d = mx_edit_distance(name, k->name);
        if (d > least || (best && d == least)) continue;
        best = k->name;
        least = d;
    }
    return best;
}

/* Bold where it can be: a terminal, and nobody asked for none (no-color.org). */
static void title(FILE *out, const cli_term *t, const char *text)
{
    const char *none = getenv("NO_COLOR");
    bool bold = !t->plain && !(none && *none);
    fprintf(out, "%s%s%s\n", bold ? "\033[1m" : "", text, bold ? "\033[0m" : "");
}

static int columns_of(const cli_term *t)
{
    return t->width < WIDEST ? t->width : WIDEST;
}

void mx_cli_help(const mx_config *c, FILE *out)
{
    (void)c;
    cli_term t = cli_term_of(out);
    fputs("merx - generates text for marketing platforms: a server, a client, batches\n\n", out);
    title(out, &t, "Examples");
    fputs("  merx generate -m path/to/model \"Write one sentence that sells light running shoes.\"\n"
          "  merx generate -m path/to/model -i products.jsonl -o copy.jsonl\n"
          "  merx serve -m path/to/model\n"
          "  merx client \"Write one sentence that sells light running shoes.\"\n\n", out);
    title(out, &t, "Commands");
    for (const mx_cli_command *k = mx_cli_commands; k->name; k++) fprintf(out, "  %-9s %s\n", k->name, k->help);
    fputs("\nA model is a Hugging Face folder or a .gguf file.\n"
          "merx help COMMAND shows the settings of one. Each is a flag (--max-num-seqs 8), an environment\n"
          "variable (MERX_MAX_NUM_SEQS=8) and a line of a --config file (max-num-seqs = 8); a flag counts\n"
          "more than the environment, and that more than the file.\n\n", out);
    title(out, &t, "Exit status");
    fputs("  0 done   1 failed, or a row of a batch could not be answered   2 wrong command or setting\n"
          "  130 stopped by Ctrl-C or SIGTERM (serve: 0, after its calls have finished)\n", out);
}

void mx_cli_help_command(const mx_config *c, const mx_cli_command *k, FILE *out)
{
    cli_term t = cli_term_of(out);
    fprintf(out, "merx %s [settings]%s\n%s\n", k->name, k->args, k->help);
    if (k->more) fprintf(out, "\n%s\n", k->more);
    fputc('\n', out);
    title(out, &t, "Examples");
    fputs(k->examples, out);
    for (const mx_setting_group *g = mx_setting_groups; g->title; g++) {
        bool any = false;
        for (int i = 0; i < mx_settings_count; i++) any |= (mx_settings[i].commands & k->bit) && (mx_settings[i].commands & g->bit);
        if (!any) continue;
        fputc('\n', out);
        title(out, &t, g->title);
        mx_config_help(c, k->bit, g->bit, out, columns_of(&t));
    }
}

void mx_cli_help_markdown(const mx_config *c, FILE *out)
{
    fputs("# Settings\n\n"
          "Written by `merx help --markdown` from the table in `server/settings.c`; a test compares the two.\n\n"
          "Each setting is a flag, an environment variable and a line `name = value` of a `--config` file.\n"
          "The flag wins over the environment, the environment over the file, the file over the default.\n"
          "Whole numbers may end in k, m or g (1024, 1024^2, 1024^3).\n\n", out);
    mx_config_markdown(c, mx_command_names, out);
}
