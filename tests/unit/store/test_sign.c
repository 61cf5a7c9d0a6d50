#include "tests/unit/store/fake.h"

#include "libcore/base/file.h"
#include "store/fsck.h"
#include "store/gc.h"
#include "store/signed.h"

static const char *key_file(const char *name)
{
    static char paths[4][4300];
    static int n;
    char *path = paths[n++ % 4];
    snprintf(path, 4300, "%s/tests/keys/%s", test_root(), name);
    return path;
}

static struct sign_key *private_key(const char *name)
{
    struct sign_key *k = NULL;
    struct err err = {0};
    EXPECT_MSG(sign_key_read_private(&k, key_file(name), &err) == 0, "%s", err.msg);
    return k;
}

static struct sign_keys public_keys(const char *name)
{
    const char *paths[] = {key_file(name)};
    struct sign_keys keys = {0};
    struct err err = {0};
    EXPECT_MSG(sign_keys_read(&keys, paths, 1, &err) == 0, "%s", err.msg);
    return keys;
}

// ---- keys and bytes ----------------------------------------------------------------------------

TEST(base64_comes_back_and_what_is_none_is_corrupt)
{
    static const char *const bad[] = {"A",    "AB",    "ABC",  "A===",     "AB=C",
                                      "AB C", "AB\nC", "====", "AAA=AAAA", "-_-_"};
    for (size_t n = 0; n < 100; n++) {
        uint8_t in[100], *out = NULL;
        size_t got = 0;
        char *text = NULL;
        for (size_t i = 0; i < n; i++)
            in[i] = (uint8_t)(i * 37 + n);
        CHECK(sign_base64_encode(in, n, &text, NULL) == 0);
        CHECK(sign_base64_decode(text, "text", &out, &got, NULL) == 0);
        EXPECT(got == n && memcmp(in, out, n) == 0);
        sys_free(text);
        sys_free(out);
    }
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint8_t *out;
        size_t n;
        struct err err = {0};
        EXPECT_MSG(sign_base64_decode(bad[i], "text", &out, &n, &err) == ERR_CORRUPT, "%s", bad[i]);
    }
}

TEST(a_key_that_is_none_is_refused_by_what_it_is)
{
    static const struct {
        const char *file;
        bool private;
        int code;
        const char *words;
    } rows[] = {
        {"team.pub", true, ERR_REFUSED, "is a public key"},
        {"team.pem", false, ERR_REFUSED, "is a private key"},
        {"encrypted.pem", true, ERR_REFUSED, "is encrypted"},
        {"encrypted.pem", false, ERR_REFUSED, "is encrypted"},
        {"p384.pem", true, ERR_REFUSED, "secp384r1"},
        {"rsa.pem", true, ERR_REFUSED, "RSA"},
        {"certificate.pem", false, ERR_REFUSED, "is a certificate"},
        {"README.md", true, ERR_CORRUPT, "no private key"},
        {"README.md", false, ERR_CORRUPT, "no public key"},
        {"nothing", true, ERR_NOT_FOUND, "nothing"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        struct sign_key *k;
        struct err err = {0};
        int rc = rows[i].private ? sign_key_read_private(&k, key_file(rows[i].file), &err)
                                 : sign_key_read_public(&k, key_file(rows[i].file), &err);
        EXPECT_MSG(rc == rows[i].code && strstr(err.msg, rows[i].words), "%s: %d %s", rows[i].file,
                   rc, err.msg);
        EXPECT(k == NULL);
    }
}

TEST(the_hint_is_the_digest_of_the_public_keys_file)
{
    struct digest d;
    char hex[DIGEST_HEX_CHARS + 1];
    CHECK(digest_file(key_file("team.pub"), &d, NULL, NULL) == 0);
    digest_hex(&d, hex);
    struct sign_key *k = private_key("team.pem");
    struct sign_keys keys = public_keys("team.pub");
    CHECK(k && keys.n == 1);
    CHECK_STR(sign_key_hint(k), hex);
    CHECK_STR(sign_key_hint(keys.items[0]), hex);
    sign_key_free(k);
    sign_keys_release(&keys);
}

TEST(a_signature_is_of_its_bytes_and_its_key_alone)
{
    struct sign_key *k = private_key("team.pem");
    struct sign_keys team = public_keys("team.pub"), other = public_keys("other.pub");
    uint8_t *sig = NULL;
    size_t n = 0;
    CHECK(k && sign_bytes(k, "hello", 5, &sig, &n, NULL) == 0);
    EXPECT(sign_check(team.items[0], "hello", 5, sig, n));
    EXPECT(!sign_check(team.items[0], "hallo", 5, sig, n));
    EXPECT(!sign_check(other.items[0], "hello", 5, sig, n));
    for (size_t i = 0; i < n; i++) {
        sig[i] ^= 1;
        EXPECT_MSG(!sign_check(team.items[0], "hello", 5, sig, n), "byte %zu", i);
        sig[i] ^= 1;
    }
    EXPECT(!sign_check(team.items[0], "hello", 5, sig, n - 1));
    EXPECT(!sign_check(team.items[0], "hello", 5, sig, 0));
    sys_free(sig);
    sign_key_free(k);
    sign_keys_release(&team);
    sign_keys_release(&other);
}

// ---- bundles -----------------------------------------------------------------------------------

#define HEX_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define HEX_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static char *made_bundle(struct bundle_file *files, size_t n)
{
    struct sign_key *k = private_key("team.pem");
    struct err err = {0};
    char *text = NULL;
    if (k)
        EXPECT_MSG(bundle_make(&text, k, "model", files, n, &err) == 0, "%s", err.msg);
    sign_key_free(k);
    return text;
}

TEST(a_bundle_that_was_made_is_read_and_its_signer_known)
{
    struct bundle_file files[] = {{"b.txt", HEX_B}, {"a/z", HEX_A}, {"a.txt", HEX_A}};
    char *text = made_bundle(files, 3);
    struct bundle b;
    struct err err = {0};
    struct sign_keys team = public_keys("team.pub"), other = public_keys("other.pub");
    CHECK(text);
    // A folder comes before what only begins like it: as paths are sorted, not as bytes.
    CHECK_STR(files[0].name, "a/z");
    CHECK_STR(files[1].name, "a.txt");
    CHECK_MSG(bundle_parse(&b, text, strlen(text), "b", &err) == 0, "%s", err.msg);
    CHECK_INT(b.n_resources, 3);
    EXPECT(bundle_signer(&b, &team, "b", &err) == team.items[0]);
    EXPECT(bundle_signer(&b, &other, "b", &err) == NULL && err.code == ERR_REFUSED);
    size_t n;
    const struct bundle_resource *r = bundle_find(&b, "b.txt", &n);
    CHECK(r && n == 1);
    CHECK_STR(r->digest, HEX_B);
    EXPECT(!bundle_find(&b, "b.tx", &n) && n == 0);
    EXPECT(bundle_ignores(&b, ".git/HEAD") && bundle_ignores(&b, "model.sig"));
    EXPECT(!bundle_ignores(&b, ".gitmodules") && !bundle_ignores(&b, "a.txt"));
    bundle_release(&b);
    sys_free(text);
    sign_keys_release(&team);
    sign_keys_release(&other);
}

TEST(bundles_of_the_model_signing_package_are_read)
{
    static const char *const names[] = {"made-by-model-signing.sig", "made-in-shards.sig"};
    static const size_t n_resources[] = {4, 12};
    struct sign_keys team = public_keys("team.pub");
    for (size_t i = 0; i < 2; i++) {
        struct bundle b;
        struct err err = {0};
        char *text = NULL;
        size_t n = 0;
        CHECK(file_read(key_file(names[i]), LIMIT_SIGNATURE_BYTES, &text, &n, &err) == 0);
        CHECK_MSG(bundle_parse(&b, text, n, names[i], &err) == 0, "%s", err.msg);
        CHECK_INT(b.n_resources, n_resources[i]);
        CHECK_STR(b.hint, sign_key_hint(team.items[0]));
        EXPECT(bundle_signer(&b, &team, names[i], &err) == team.items[0]);
        size_t k = 0;
        const struct bundle_resource *r = bundle_find(&b, "adapter_model.safetensors", &k);
        CHECK(r);
        CHECK_INT(k, i ? 9 : 1);
        CHECK_INT(r[k - 1].end, i ? 883168 : 0);
        bundle_release(&b);
        sys_free(text);
    }
    sign_keys_release(&team);
}

TEST(a_cut_bundle_is_corrupt_wherever_it_is_cut)
{
    struct bundle_file files[] = {{"a", HEX_A}};
    char *text = made_bundle(files, 1);
    CHECK(text);
    for (size_t n = 0; n < strlen(text); n++) {
        struct bundle b;
        struct err err = {0};
        EXPECT_MSG(bundle_parse(&b, text, n, "b", &err) == ERR_CORRUPT && err.msg[0], "%zu", n);
        bundle_release(&b);
    }
    sys_free(text);
}

static int compare(struct bundle_file *has_signed, size_t n_signed, const struct signed_file *has,
                   size_t n, enum signed_scope scope, struct err *err)
{
    struct bundle b;
    char *text = made_bundle(has_signed, n_signed);
    int rc = text ? bundle_parse(&b, text, strlen(text), "b", err) : ERR_FAIL;
    if (!rc)
        rc = signed_compare(&b, has, n, scope, "it", err);
    bundle_release(&b);
    sys_free(text);
    return rc;
}

TEST(an_adapter_may_lack_what_no_import_keeps_and_nothing_else)
{
    struct bundle_file all[] = {{"adapter_config.json", HEX_A},
                                {"adapter_model.safetensors", HEX_B},
                                {"optimizer.pt", HEX_A},
                                {"runs/tokenizer.json", HEX_A},
                                {"optimizer.safetensors", HEX_A}};
    const struct signed_file kept[] = {{"adapter_config.json", HEX_A, NULL},
                                       {"adapter_model.safetensors", HEX_B, NULL}};
    struct err err = {0};
    EXPECT_MSG(compare(all, 5, kept, 2, SIGNED_ADAPTER, &err) == 0, "%s", err.msg);
    EXPECT(compare(all, 5, kept, 2, SIGNED_FOLDER, &err) == ERR_CORRUPT);
    EXPECT(compare(all, 5, kept, 1, SIGNED_FOLDER_LOOSE, &err) == ERR_CORRUPT);
    struct bundle_file with_template[] = {{"adapter_config.json", HEX_A},
                                          {"adapter_model.safetensors", HEX_B},
                                          {"chat_template.jinja", HEX_A}};
    EXPECT(compare(with_template, 3, kept, 2, SIGNED_ADAPTER, &err) == ERR_CORRUPT);
    EXPECT(strstr(err.msg, "chat_template.jinja is signed and not there"));
}

TEST(a_file_that_is_not_signed_or_differs_is_named)
{
    struct bundle_file one[] = {{"adapter_config.json", HEX_A}};
    const struct signed_file more[] = {{"adapter_config.json", HEX_A, NULL},
                                       {"tokenizer.json", HEX_B, NULL}};
    const struct signed_file other[] = {{"adapter_config.json", HEX_B, NULL}};
    struct err err = {0};
    EXPECT(compare(one, 1, more, 2, SIGNED_ADAPTER, &err) == ERR_REFUSED);
    EXPECT(strstr(err.msg, "tokenizer.json is not signed"));
    EXPECT(compare(one, 1, more, 2, SIGNED_FOLDER, &err) == ERR_REFUSED);
    EXPECT(compare(one, 1, more, 2, SIGNED_FOLDER_LOOSE, &err) == 0);
    EXPECT(compare(one, 1, other, 1, SIGNED_ADAPTER, &err) == ERR_CORRUPT);
    EXPECT(strstr(err.msg, "adapter_config.json is not what was signed"));
}

// ---- in the store ------------------------------------------------------------------------------

static size_t n_signatures(struct store *s, const char *id)
{
    struct store_entry e;
    if (store_get(s, id, &e, NULL) != 0)
        return 99;
    size_t n = e.n_signatures;
    store_entry_release(&e);
    return n;
}

static bool is_clean(const char *path)
{
    struct fsck_report report;
    const struct fsck_options opt = {0};
    struct err err = {0};
    int rc = store_fsck(path, &opt, &report, NULL, NULL, &err);
    return rc == 0 && report.n_problems == 0 && report.n_notes == 0;
}

static int sign(struct store *s, const char *id, const char *key, bool *same, struct err *err)
{
    struct signed_report report;
    struct sign_key *k = private_key(key);
    int rc = k ? signed_sign(s, id, "team/bot", k, false, same, &report, err) : ERR_FAIL;
    sign_key_free(k);
    return rc;
}

static int check(struct store *s, const char *id, const char *key, struct err *err)
{
    struct signed_report report;
    struct sign_keys keys = public_keys(key);
    int rc = signed_check(s, id, "it", &keys, SIGNED_BYTES, &report, err);
    sign_keys_release(&keys);
    return rc;
}

TEST(signatures_are_part_of_the_store)
{
    char path[4200];
    snprintf(path, sizeof path, "%s", fake_store_path());
    struct store *s = fake_store(path);
    enum publish_state state;
    struct err err = {0};
    bool same;
    const char *id = fake_id(1);
    CHECK(s && fake_publish(s, id, "", "one", "hello", false, &state, &err) == 0);
    CHECK(check(s, id, "team.pub", &err) == ERR_REFUSED);
    CHECK_MSG(sign(s, id, "team.pem", &same, &err) == 0 && !same, "%s", err.msg);
    CHECK_MSG(sign(s, id, "other.pem", &same, &err) == 0 && !same, "%s", err.msg);
    CHECK(sign(s, id, "team.pem", &same, &err) == 0 && same);
    CHECK_INT(n_signatures(s, id), 2);
    EXPECT(check(s, id, "team.pub", &err) == 0 && check(s, id, "other.pub", &err) == 0);
    EXPECT(is_clean(path));
    struct gc_report report;
    const struct gc_options gc = {0};
    CHECK(store_gc(s, &gc, &report, NULL, NULL, &err) == 0);
    CHECK_INT(report.n_blobs, 0);
    // The same content again, without a signature: those that are there stay.
    CHECK(fake_publish(s, id, fake_id(9), "two", "hello", false, &state, &err) == 0);
    CHECK_INT(n_signatures(s, id), 2);
    EXPECT(check(s, id, "team.pub", &err) == 0);
    char gone[STORE_ID_CHARS + 1];
    CHECK(store_untag(s, "one", "latest", gone, &err) == 0);
    CHECK(store_untag(s, "two", "latest", gone, &err) == 0);
    CHECK(store_gc(s, &gc, &report, NULL, NULL, &err) == 0);
    CHECK_INT(report.n_blobs, 3); // the file and both signatures
    store_close(s);
    EXPECT(is_clean(path));
}

TEST(an_index_made_anew_knows_the_signatures)
{
    char path[4200], index[4300];
    snprintf(path, sizeof path, "%s", fake_store_path());
    struct store *s = fake_store(path);
    enum publish_state state;
    struct err err = {0};
    bool same;
    char id[STORE_ID_CHARS + 1];
    snprintf(id, sizeof id, "%s", fake_id(1));
    CHECK(s && fake_publish(s, id, "", "one", "hello", false, &state, &err) == 0);
    CHECK(sign(s, id, "team.pem", &same, &err) == 0);
    store_close(s);
    static const char *const ends[] = {"", "-wal", "-shm"};
    for (size_t i = 0; i < 3; i++) {
        snprintf(index, sizeof index, "%s/index.db%s", path, ends[i]);
        unlink(index);
    }
    struct fsck_report report;
    const struct fsck_options repair = {.repair = true};
    CHECK_MSG(store_fsck(path, &repair, &report, NULL, NULL, &err) == 0, "%s", err.msg);
    s = fake_store(path);
    CHECK_INT(n_signatures(s, id), 1);
    EXPECT(check(s, id, "team.pub", &err) == 0);
    store_close(s);
    EXPECT(is_clean(path));
}

TEST(a_signature_of_files_that_changed_meanwhile_is_not_kept)
{
    struct store *s = fake_store(fake_store_path());
    enum publish_state state;
    struct err err = {0};
    char tmp[4300], hex[DIGEST_HEX_CHARS + 1];
    bool same;
    CHECK(s && fake_publish(s, fake_id(1), "", "one", "hello", false, &state, &err) == 0);
    snprintf(tmp, sizeof tmp, "%s/bundle", test_tmp());
    CHECK(file_write_atomic(tmp, "{}", 2, &err) == 0);
    struct digest d;
    CHECK(digest_buffer("{}", 2, &d, &err) == 0);
    digest_hex(&d, hex);
    json_t *files = json_pack("[{s:s,s:s,s:i}]", "path", "data.bin", "sha256", HEX_A, "size", 5);
    EXPECT(publish_signature(s, fake_id(1), files, tmp, hex, 2, HEX_B, &same, &err) == ERR_REFUSED);
    CHECK_INT(n_signatures(s, fake_id(1)), 0);
    json_decref(files);
    store_close(s);
}

TEST(no_more_signatures_than_the_limit)
{
    char ignored[STORE_ID_CHARS + 1];
    json_t *m = fake_manifest(fake_id(1), "", "hello", ignored);
    struct err err = {0};
    bool added;
    for (unsigned i = 0; i < LIMIT_SIGNATURES; i++)
        CHECK(manifest_add_signature(m, fake_id(100 + i), 10, HEX_A, &added, &err) == 0 && added);
    CHECK(manifest_add_signature(m, fake_id(100), 10, HEX_A, &added, &err) == 0 && !added);
    CHECK(manifest_add_signature(m, fake_id(99), 10, HEX_A, &added, &err) == ERR_LIMIT);
    // In order of their digests, whenever they came.
    for (size_t i = 1; i < manifest_n_signatures(m); i++) {
        struct manifest_file a, b;
        char x[MANIFEST_SIGNATURE_PATH_BYTES], y[MANIFEST_SIGNATURE_PATH_BYTES];
        CHECK(manifest_signature_at(m, i - 1, &a, x, &err) == 0);
        CHECK(manifest_signature_at(m, i, &b, y, &err) == 0);
        EXPECT(strcmp(a.digest, b.digest) < 0);
    }
    json_decref(m);
}
