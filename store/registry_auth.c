#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "libcore/base/sys.h"
#include "store/registry_impl.h"

/*
 * What to answer a 401: Basic with docker's credentials, or a token that its realm gives for them
 * (or for nobody). The token's server is asked by GET; with an identity token by POST (OAuth 2).
 */
static int no_memory(struct err *err)
{
    return err_set(err, ERR_NO_MEMORY, "no memory for a login");
}

/* realm="…" of a challenge; the caller's, NULL when it is not there. */
static char *parameter(const char *challenge, const char *name)
{
    size_t n = strlen(name);
    for (const char *p = strchr(challenge, ' '); p;) {
        p += strspn(p, " ,");
        if (!*p)
            return NULL;
        const char *eq = strchr(p, '=');
        if (!eq)
            return NULL;
        bool match = (size_t)(eq - p) == n && strncasecmp(p, name, n) == 0;
        bool quoted = eq[1] == '"';
        const char *begin = eq + 1 + quoted, *end = begin + strcspn(begin, quoted ? "\"" : ",");
        if (match)
            return sys_strndup(begin, (size_t)(end - begin));
        p = *end ? end + quoted : NULL;
    }
    return NULL;
}

static void add_escaped(struct strbuf *sb, const char *text)
{
    for (const unsigned char *p = (const unsigned char *)text; *p; p++) {
        bool plain = (*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') ||
                     (*p >= '0' && *p <= '9') || strchr("-._~", *p);
        if (plain)
            strbuf_addc(sb, (char)*p);
        else
            strbuf_addf(sb, "%%%02X", *p);
    }
}

static char *basic(const struct login *l)
{
    struct strbuf pair, out;
    strbuf_init(&pair);
    strbuf_init(&out);
    strbuf_addf(&pair, "%s:%s", l->user, l->secret);
    char *code = pair.failed ? NULL : base64_encode(pair.data, pair.len), *text = NULL;
    if (code) {
        strbuf_addf(&out, "Basic %s", code);
        text = strbuf_take(&out, NULL);
    }
    sys_free(code);
    strbuf_release(&pair);
    strbuf_release(&out);
    return text;
}

static void add_query(const struct registry *r, struct strbuf *sb, const char *service)
{
    if (service) {
        strbuf_adds(sb, "service=");
        add_escaped(sb, service);
        strbuf_adds(sb, "&");
    }
    strbuf_adds(sb, "scope=");
    add_escaped(sb, "repository:");
    add_escaped(sb, r->ref.repo);
    add_escaped(sb, r->writes ? ":pull,push" : ":pull");
    if (r->writes && r->opt.mount_from) {
        strbuf_adds(sb, "&scope=");
        add_escaped(sb, "repository:");
        add_escaped(sb, r->opt.mount_from);
        add_escaped(sb, ":pull");
    }
}

static int take_token(const struct registry *r, const struct response *p, char **authorization,
                      struct err *err)
{
    json_t *root = json_loadb(strbuf_text(&p->body), p->body.len, 0, NULL);
    const char *token = json_string_value(json_object_get(root, "token"));
    if (!token)
        token = json_string_value(json_object_get(root, "access_token"));
    struct strbuf sb;
    strbuf_init(&sb);
    strbuf_addf(&sb, "Bearer %s", token ? token : "");
    *authorization = token ? strbuf_take(&sb, NULL) : NULL;
    strbuf_release(&sb);
    json_decref(root);
    return *authorization
               ? 0
               : err_set(err, ERR_DENIED, "%s: its token server gave no token", r->ref.host);
}

/* Secrets go to a realm over TLS, or to a loopback registry's own. */
static int check_realm(const struct registry *r, const char *realm, struct err *err)
{
    if (strncasecmp(realm, "https://", 8) == 0 || r->opt.plain_http)
        return 0;
    return err_set(err, ERR_DENIED, "%s: its token server %.200s is not reached by https",
                   r->ref.host, realm);
}

static int ask_token(struct connection *c, struct registry *r, const struct login *l,
                     const char *realm, const char *service, char **authorization, struct err *err)
{
    struct strbuf url, form;
    struct response p = {0};
    strbuf_init(&url);
    strbuf_init(&form);
    char *own = l->user ? basic(l) : NULL;
    bool post = l->identity_token != NULL;
    strbuf_adds(&url, realm);
    if (post) {
        strbuf_adds(&form, "grant_type=refresh_token&client_id=lora&refresh_token=");
        add_escaped(&form, l->identity_token);
        strbuf_addc(&form, '&');
    } else {
        strbuf_addc(&url, strchr(realm, '?') ? '&' : '?');
    }
    add_query(r, post ? &form : &url, service);
    struct request q = {.method = post ? "POST" : "GET",
                        .url = strbuf_text(&url),
                        .foreign = true,
                        .authorization = post ? NULL : own};
    if (post) {
        q.content_type = "application/x-www-form-urlencoded";
        q.data = strbuf_text(&form);
        q.size = form.len;
    }
    int rc = url.failed || form.failed || (l->user && !own) ? no_memory(err)
                                                            : registry_request(c, &q, &p, err);
    if (!rc && p.status != 200)
        rc = err_set(err, ERR_DENIED, "%s/%s: the token server says status %ld%s", r->ref.host,
                     r->ref.repo, p.status, l->user || post ? "" : "; nobody is logged in there");
    if (!rc)
        rc = take_token(r, &p, authorization, err);
    response_release(&p);
    sys_free(own);
    strbuf_release(&url);
    strbuf_release(&form);
    return rc;
}

int registry_authenticate(struct connection *c, const char *challenge, char **authorization,
                          struct err *err)
{
    struct registry *r = connection_registry(c);
    struct login l;
    *authorization = NULL;
    int rc = login_find(&l, strcmp(r->ref.host, "docker.io") == 0 ? "index.docker.io" : r->ref.host,
                        err);
    bool bearer = strncasecmp(challenge, "Bearer", 6) == 0;
    char *realm = bearer ? parameter(challenge, "realm") : NULL;
    char *service = bearer ? parameter(challenge, "service") : NULL;
    if (!rc && bearer && !realm)
        rc = err_set(err, ERR_DENIED, "%s: asks for a token and does not say where", r->ref.host);
    else if (!rc && bearer)
        rc = check_realm(r, realm, err);
    if (!rc && bearer)
        rc = ask_token(c, r, &l, realm, service, authorization, err);
    else if (!rc && strncasecmp(challenge, "Basic", 5) != 0)
        rc = err_set(err, ERR_DENIED, "%s: asks for a login of an unknown kind", r->ref.host);
    else if (!rc && !l.user)
        rc = err_set(err, ERR_DENIED, "%s/%s: status 401: a login is needed", r->ref.host,
                     r->ref.repo);
    else if (!rc && !(*authorization = basic(&l)))
        rc = no_memory(err);
    sys_free(realm);
    sys_free(service);
    login_release(&l);
    return rc;
}
