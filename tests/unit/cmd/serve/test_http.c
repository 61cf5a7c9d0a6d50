/* tiers: check asan tsan
 * The exchanges over a real socket: answers, streams, limits, clients that leave. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

#include "cmd/serve/answer.h"
#include "cmd/serve/http.h"
#include "libcore/base/thread.h"
#include "tests/lib/test.h"

static struct fixture {
    struct http_server *http;
    struct job_queue *jobs;
    struct http_exchange *_Atomic kept; // the last one that went to /later
    atomic_uint n_gone, n_done;
} f;

static void stream_three(void *arg)
{
    struct http_exchange *x = arg;
    http_stream_begin(x, 200, "text/event-stream");
    for (int i = 0; i < 3; i++) {
        char text[32];
        int n = snprintf(text, sizeof text, "data: %d\n\n", i);
        http_stream_write(x, text, (size_t)n);
        http_stream_flush(x);
    }
    http_stream_end(x);
    http_release(x);
}

static void echo(void *arg)
{
    struct http_exchange *x = arg;
    struct strbuf out;
    strbuf_init(&out);
    size_t n;
    const char *body = http_body(x, &n);
    strbuf_add(&out, body, n);
    http_answer(x, 200, "text/plain", &out);
    http_release(x);
}

static void on_begin(void *user, struct http_exchange *x)
{
    (void)user;
    if (strcmp(http_path(x), "/refused") == 0)
        answer_error(x, ANSWER_OPENAI, 401, NULL, "no");
}

static void on_handle(void *user, struct http_exchange *x)
{
    (void)user;
    if (strcmp(http_path(x), "/now") == 0)
        http_answer_text(x, 200, "now");
    else if (strcmp(http_path(x), "/stream") == 0)
        job_queue_add(f.jobs, stream_three, http_hold(x), NULL);
    else if (strcmp(http_path(x), "/later") == 0)
        f.kept = http_hold(x);
    else
        job_queue_add(f.jobs, echo, http_hold(x), NULL);
}

static void on_gone(void *user, struct http_exchange *x)
{
    (void)user;
    (void)x;
    atomic_fetch_add(&f.n_gone, 1);
}

static void on_refuse(void *user, struct http_exchange *x, unsigned status, const char *message)
{
    (void)user;
    answer_error(x, ANSWER_OPENAI, status, NULL, message);
}

static void on_done(void *user, struct http_exchange *x)
{
    (void)user;
    (void)x;
    atomic_fetch_add(&f.n_done, 1);
}

static bool open_fixture(void)
{
    f = (struct fixture){0};
    struct err err = {0};
    struct http_options opt = {.host = "127.0.0.1",
                               .max_body_bytes = 1000,
                               .max_connections = 64,
                               .idle_timeout_s = 120,
                               .begin = on_begin,
                               .handle = on_handle,
                               .gone = on_gone,
                               .refuse = on_refuse,
                               .done = on_done};
    return job_queue_open(&f.jobs, 1, 64, "test", &err) == 0 && http_open(&f.http, &opt, &err) == 0;
}

static void close_fixture(void)
{
    job_queue_free(f.jobs);
    http_free(f.http);
}

static int dial(void)
{
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons(http_port(f.http)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval limit = {.tv_sec = 120};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return connect(fd, (struct sockaddr *)&to, sizeof to) == 0 ? fd : -1;
}

static void send_text(int fd, const char *text)
{
    for (size_t n = strlen(text), at = 0; at < n;) {
        ssize_t sent = send(fd, text + at, n - at, MSG_NOSIGNAL);
        if (sent <= 0)
            return;
        at += (size_t)sent;
    }
}

/* Sends, then reads until the other side closes (requests say Connection: close). */
static const char *talk(const char *request)
{
    static char answer[1 << 16];
    size_t n = 0;
    int fd = dial();
    send_text(fd, request);
    for (ssize_t got;
         n < sizeof answer - 1 && (got = recv(fd, answer + n, sizeof answer - 1 - n, 0)) > 0;)
        n += (size_t)got;
    answer[n] = '\0';
    close(fd);
    return answer;
}

static bool wait_for(atomic_uint *counter, unsigned wanted)
{
    for (int i = 0; i < 60000 && atomic_load(counter) < wanted; i++)
        usleep(1000);
    return atomic_load(counter) >= wanted;
}

#define CLOSE "Host: a\r\nConnection: close\r\n"

TEST(an_answer_at_once)
{
    CHECK(open_fixture());
    const char *answer = talk("GET /now HTTP/1.1\r\n" CLOSE "\r\n");
    EXPECT(strstr(answer, "200 OK") && strstr(answer, "\r\n\r\nnow"));
    close_fixture();
}

TEST(a_body_reaches_a_worker_and_comes_back)
{
    CHECK(open_fixture());
    const char *answer = talk("POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nhello");
    EXPECT(strstr(answer, "\r\n\r\nhello"));
    close_fixture();
}

TEST(a_stream_arrives_in_order_and_ends)
{
    CHECK(open_fixture());
    const char *answer = talk("GET /stream HTTP/1.1\r\n" CLOSE "\r\n");
    const char *first = strstr(answer, "data: 0\n\n");
    EXPECT(strstr(answer, "chunked") && first && strstr(first, "data: 2\n\n"));
    EXPECT(strstr(answer, "\r\n0\r\n"));
    close_fixture();
}

TEST(a_body_over_the_limit_gets_413_and_an_error_object)
{
    CHECK(open_fixture());
    char request[2000 + 200];
    int n = snprintf(request, sizeof request,
                     "POST /echo HTTP/1.1\r\n" CLOSE "Content-Length: 2000\r\n\r\n");
    memset(request + n, 'x', 2000);
    request[n + 2000] = '\0';
    const char *answer = talk(request);
    EXPECT(strstr(answer, " 413 "));
    EXPECT(strstr(answer, "\"type\":\"RequestTooLargeError\""));
    close_fixture();
}

TEST(a_refusal_in_begin_is_sent_after_the_body)
{
    CHECK(open_fixture());
    const char *answer = talk("POST /refused HTTP/1.1\r\n" CLOSE "Content-Length: 5\r\n\r\nhello");
    EXPECT(strstr(answer, " 401 ") && strstr(answer, "WWW-Authenticate: Bearer"));
    close_fixture();
}

/* Waits, leaves and returns how long nobody noticed. */
static uint64_t leave_while_waiting(void)
{
    unsigned n_gone = atomic_load(&f.n_gone), n_done = atomic_load(&f.n_done);
    f.kept = NULL;
    int fd = dial();
    send_text(fd, "GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    while (!f.kept)
        usleep(1000);
    usleep(50000);
    EXPECT_INT(atomic_load(&f.n_gone), n_gone);
    uint64_t start = thread_now_ns();
    close(fd);
    EXPECT(wait_for(&f.n_gone, n_gone + 1));
    uint64_t took = thread_now_ns() - start;
    EXPECT(wait_for(&f.n_done, n_done + 1));
    EXPECT(http_is_gone(f.kept));
    http_answer_text(f.kept, 200, "too late");
    http_release(f.kept);
    return took;
}

TEST(a_client_that_leaves_while_it_waits_is_noticed)
{
    CHECK(open_fixture());
    uint64_t took = UINT64_MAX;
    // On a busy machine a thread may wait for its turn as long: the best of several counts.
    for (int i = 0; i < 20 && took >= 100000000u; i++)
        took = leave_while_waiting();
    EXPECT_MSG(took < 100000000u, "took %llu ns", (unsigned long long)took);
    close_fixture();
}

TEST(a_client_that_leaves_a_stream_is_noticed)
{
    CHECK(open_fixture());
    int fd = dial();
    send_text(fd, "GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    while (!f.kept)
        usleep(1000);
    http_stream_begin(f.kept, 200, "text/event-stream");
    http_stream_write(f.kept, "data: 1\n\n", 9);
    http_stream_flush(f.kept);
    char buf[512];
    EXPECT(recv(fd, buf, sizeof buf, 0) > 0);
    close(fd);
    EXPECT(wait_for(&f.n_gone, 1));
    EXPECT(!http_stream_write(f.kept, "data: 2\n\n", 9));
    http_release(f.kept);
    close_fixture();
}

TEST(two_requests_use_one_connection)
{
    CHECK(open_fixture());
    const char *answer =
        talk("GET /now HTTP/1.1\r\nHost: a\r\n\r\nGET /stream HTTP/1.1\r\n" CLOSE "\r\n");
    EXPECT(strstr(answer, "now") && strstr(answer, "data: 2"));
    close_fixture();
}

TEST(a_port_in_use_is_said_plainly)
{
    CHECK(open_fixture());
    struct http_options opt = {.host = "127.0.0.1", .port = http_port(f.http)};
    struct http_server *other = NULL;
    struct err err = {0};
    EXPECT_INT(http_open(&other, &opt, &err), ERR_BUSY);
    EXPECT(strstr(err.msg, "in use"));
    close_fixture();
}

TEST(closing_cuts_what_waits)
{
    CHECK(open_fixture());
    int fd = dial();
    send_text(fd, "GET /later HTTP/1.1\r\nHost: a\r\n\r\n");
    while (!f.kept)
        usleep(1000);
    http_abort_all(f.http);
    EXPECT(wait_for(&f.n_done, 1));
    http_release(f.kept);
    close_fixture();
    close(fd);
}
