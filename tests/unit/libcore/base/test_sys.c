#include "libcore/base/sys.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/test.h"

TEST(the_nth_allocation_fails_and_only_that_one)
{
    sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, 3);
    void *p[4];
    for (int i = 0; i < 4; i++)
        p[i] = sys_malloc(1);
    bool hit = sys_fault_hit();
    uint64_t count = sys_fault_count();
    sys_fault(SYS_FAULT_OFF, 0, 0);
    EXPECT(p[0] && p[1] && !p[2] && p[3]);
    EXPECT(hit);
    EXPECT_INT(count, 4);
    for (int i = 0; i < 4; i++)
        sys_free(p[i]);
}

TEST(classes_count_apart)
{
    struct stat st;
    sys_fault(SYS_FAULT_FAIL, SYS_FAULT_FILE, 1);
    void *p = sys_malloc(1);
    EXPECT(p != NULL);
    errno = 0;
    EXPECT_INT(sys_stat("/", &st), -1);
    EXPECT_INT(errno, EIO);
    EXPECT_INT(sys_stat("/", &st), 0);
    sys_fault(SYS_FAULT_OFF, 0, 0);
    sys_free(p);
}

TEST(counting_alone_fails_nothing)
{
    sys_fault(SYS_FAULT_FAIL, SYS_FAULT_ALL, 0);
    for (int i = 0; i < 5; i++)
        sys_free(sys_malloc(1));
    EXPECT_INT(sys_fault_count(), 5);
    EXPECT(!sys_fault_hit());
    sys_fault(SYS_FAULT_OFF, 0, 0);
    sys_free(sys_malloc(1));
    EXPECT_INT(sys_fault_count(), 0);
}

TEST(every_allocator_is_a_fault_point)
{
    for (int i = 0; i < 7; i++) {
        sys_fault(SYS_FAULT_FAIL, SYS_FAULT_MEM, 1);
        void *p = i == 0   ? sys_malloc(1)
                  : i == 1 ? sys_calloc(1, 1)
                  : i == 2 ? sys_realloc(NULL, 1)
                  : i == 3 ? sys_reallocarray(NULL, 1, 1)
                  : i == 4 ? sys_aligned_alloc(64, 1)
                  : i == 5 ? sys_strdup("x")
                           : sys_strndup("x", 1);
        bool hit = sys_fault_hit();
        sys_fault(SYS_FAULT_OFF, 0, 0);
        EXPECT_MSG(p == NULL && hit, "allocator %d", i);
    }
}

TEST(sizes_that_overflow_and_sizes_of_nothing)
{
    EXPECT(sys_reallocarray(NULL, SIZE_MAX / 2, 3) == NULL);
    EXPECT(sys_calloc(SIZE_MAX / 2, 3) == NULL);
    void *p = sys_malloc(0);
    EXPECT(p != NULL);
    sys_free(p);
    sys_free(NULL);
    p = sys_aligned_alloc(4096, 10);
    EXPECT_INT((uintptr_t)p % 4096, 0);
    sys_free(p);
}

/* Runs the test below in a child with LORA_FAULT set; its wait status. */
static int in_child(const char *fault, const char *path)
{
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        setenv("LORA_FAULT", fault, 1);
        setenv("LORA_TEST_CHILD", path, 1);
        execl("/proc/self/exe", "test_sys", "child", (char *)NULL);
        _exit(99);
    }
    int status = 0;
    waitpid(pid, &status, 0);
    return status;
}

/* The environment is read at the first call of a process, so the child is this program, started
 * again. */
TEST(child_of_another_test)
{
    const char *path = getenv("LORA_TEST_CHILD");
    if (!path)
        return;
    int a = sys_open(path, O_WRONLY | O_CREAT, 0600);
    if (a < 0)
        _exit(10);
    int b = sys_mkdir(path, 0700); // there is a file: EEXIST, unless the fault comes first
    _exit(b == 0 ? 11 : errno == EIO ? 12 : 13);
}

TEST(the_environment_arms_a_fault)
{
    char path[600];
    snprintf(path, sizeof path, "%s/child", test_tmp());
    int status = in_child("fail:1:file", path);
    EXPECT_INT(WEXITSTATUS(status), 10);
    status = in_child("fail:2:file", path);
    EXPECT_INT(WEXITSTATUS(status), 12);
    status = in_child("fail:9:file", path);
    EXPECT_INT(WEXITSTATUS(status), 13);
}

TEST(a_kill_comes_before_the_call_takes_effect)
{
    char path[600];
    snprintf(path, sizeof path, "%s/killed", test_tmp());
    int status = in_child("kill:1:file", path);
    CHECK(WIFSIGNALED(status));
    EXPECT_INT(WTERMSIG(status), SIGKILL);
    EXPECT(access(path, F_OK) != 0);
    status = in_child("kill:2:file", path);
    CHECK(WIFSIGNALED(status));
    EXPECT(access(path, F_OK) == 0);
}

TEST(a_rename_that_must_not_replace)
{
    char a[600], b[600];
    snprintf(a, sizeof a, "%s/ra", test_tmp());
    snprintf(b, sizeof b, "%s/rb", test_tmp());
    sys_close(sys_open(a, O_WRONLY | O_CREAT, 0600));
    EXPECT_INT(sys_rename_noreplace(a, b), 0);
    sys_close(sys_open(a, O_WRONLY | O_CREAT, 0600));
    EXPECT_INT(sys_rename_noreplace(a, b), -1);
    EXPECT_INT(errno, EEXIST);
    EXPECT_INT(sys_rename(a, b), 0);
}

TEST(locks_and_maps)
{
    char path[600];
    snprintf(path, sizeof path, "%s/lock", test_tmp());
    int a = sys_open(path, O_RDWR | O_CREAT, 0600), b = sys_open(path, O_RDWR, 0);
    CHECK(a >= 0 && b >= 0);
    EXPECT_INT(sys_flock(a, LOCK_EX | LOCK_NB), 0);
    EXPECT_INT(sys_flock(b, LOCK_EX | LOCK_NB), -1);
    EXPECT_INT(errno, EWOULDBLOCK);
    EXPECT_INT(sys_pwrite(a, "mapped", 6, 0), 6);
    char *p = sys_mmap_read(a, 6);
    CHECK(p);
    EXPECT(memcmp(p, "mapped", 6) == 0);
    EXPECT_INT(sys_munmap(p, 6), 0);
    EXPECT_INT(fcntl(a, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
    sys_close(a);
    sys_close(b);
}
