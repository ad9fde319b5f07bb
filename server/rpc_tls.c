/* rpc_tls.c - TLS credentials that are read anew when their files change.
 *
 * gRPC asks a fetcher before every handshake; it looks at the files' times and reads
 * them when one is new.  Files that cannot be used leave the old ones in place, and
 * the log says so once for each change. */
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#ifdef __has_include
#if __has_include(<grpc/credentials.h>)
#include <grpc/credentials.h>
#endif
#endif

#include "server/rpc_core.h"

#include "runtime/log.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct mx_tls {
    pthread_mutex_t lock;
    char *file[3];                 /* certificate, key, clients' CA (may be NULL) */
    struct timespec time[3];
    bool  opened;
};

/* gRPC would say only that a handshake fails: look here whether key and certificate parse and belong together. */
static mx_status check_pair(const char *cert, const char *key, const mx_tls *t, mx_error *err)
{
    BIO *b = BIO_new_mem_buf(cert, -1), *k = BIO_new_mem_buf(key, -1);
    X509 *x = b ? PEM_read_bio_X509(b, NULL, NULL, NULL) : NULL;
    EVP_PKEY *p = k ? PEM_read_bio_PrivateKey(k, NULL, NULL, NULL) : NULL;
    mx_status st = MX_OK;
    if (!x) st = mx_fail(err, MX_ERR_FORMAT, "%s: no PEM certificate", t->file[0]);
    else if (!p) st = mx_fail(err, MX_ERR_FORMAT, "%s: no PEM private key", t->file[1]);
    else if (X509_check_private_key(x, p) != 1) st = mx_fail(err, MX_ERR_FORMAT, "%s is not the key of %s", t->file[1], t->file[0]);
    X509_free(x);
    EVP_PKEY_free(p);
    BIO_free(b);
    BIO_free(k);
    ERR_clear_error();
    return st;
}

static mx_status read_config(const mx_tls *t, grpc_ssl_server_certificate_config **out, mx_error *err)
{
    char *text[3] = {NULL, NULL, NULL};
    mx_status st = MX_OK;
    for (int i = 0; i < 3 && !st; i++)
        if (t->file[i]) st = mx_pem_read(t->file[i], &text[i], err);
    if (!st) st = check_pair(text[0], text[1], t, err);
    if (!st) {
        grpc_ssl_pem_key_cert_pair pair = {.private_key = text[1], .cert_chain = text[0]};
        /* gRPC 1.51 aborts without roots, also where no client is asked for a certificate. */
        *out = grpc_ssl_server_certificate_config_create(text[2] ? text[2] : text[0], &pair, 1);
        if (!*out) st = mx_fail(err, MX_ERR_NO_MEMORY, "the certificate");
    }
    if (text[1]) OPENSSL_cleanse(text[1], strlen(text[1]));
    for (int i = 0; i < 3; i++) free(text[i]);
    return st;
}

static bool changed(mx_tls *t)
{
    bool any = false;
    for (int i = 0; i < 3; i++) {
        struct stat s;
        if (!t->file[i] || stat(t->file[i], &s)) continue;      /* while it is replaced it may be away */
        if (s.st_mtim.tv_sec == t->time[i].tv_sec && s.st_mtim.tv_nsec == t->time[i].tv_nsec) continue;
        t->time[i] = s.st_mtim;
        any = true;
    }
    return any;
}

static grpc_ssl_certificate_config_reload_status fetch(void *user, grpc_ssl_server_certificate_config **config)
{
    mx_tls *t = user;
    mx_error err = {0};
    pthread_mutex_lock(&t->lock);
    bool first = !t->opened, news = changed(t) || first;
    mx_status st = news ? read_config(t, config, &err) : MX_OK;
    t->opened |= news && !st;
    pthread_mutex_unlock(&t->lock);
    if (!news) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    if (st) {
        mx_log(MX_LOG_ERROR, "tls", "%s: the old certificate stays", err.text);
        return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_FAIL;
    }
    if (!first) mx_log(MX_LOG_INFO, "tls", "certificate read anew");
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
}

mx_status mx_tls_open(mx_tls **out, grpc_server_credentials **credentials, const mx_server_options *o, mx_error *err)
{
    const char *file[3] = {o->tls_cert, o->tls_key, o->tls_client_ca};
    grpc_ssl_server_certificate_config *try = NULL;
    *out = NULL;
    mx_tls *t = calloc(1, sizeof *t);
    if (!t) return mx_fail(err, MX_ERR_NO_MEMORY, "tls");
    pthread_mutex_init(&t->lock, NULL);
    mx_status st = MX_OK;
    for (int i = 0; i < 3; i++)
        if (file[i] && !(t->file[i] = strdup(file[i]))) st = mx_fail(err, MX_ERR_NO_MEMORY, "tls");
    if (!st) st = read_config(t, &try, err);                    /* to hear what is wrong with it */
    if (st) {
        mx_tls_close(t);
        return st;
    }
    grpc_ssl_server_certificate_config_destroy(try);
    *credentials = grpc_ssl_server_credentials_create_with_options(grpc_ssl_server_credentials_create_options_using_config_fetcher(
        file[2] ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY : GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE, fetch, t));
    *out = t;
    return MX_OK;
}

void mx_tls_close(mx_tls *t)
{
    if (!t) return;
    for (int i = 0; i < 3; i++) free(t->file[i]);
    pthread_mutex_destroy(&t->lock);
    free(t);
}
