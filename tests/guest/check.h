/* What every guest program uses: calls are printed with their result, errors by name, so that two runs can be compared.
 * Nothing printed may depend on pids, addresses, times or the order of unrelated events. */
#ifndef CHECK_H
#define CHECK_H
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Prints a call and what came back: the value, or the name of the error. */
#define TRY(call) show_result(#call, (long)(call))
/* The same where only success matters, because the value is an address, a pid or the like. */
#define TRY_OK(call) show_success(#call, (long)(call))

static inline long show_result(const char *call, long result) {
    int error = errno;
    if (result == -1)
        printf("%s: %s\n", call, strerrorname_np(error));
    else
        printf("%s: %ld\n", call, result);
    errno = error;
    return result;
}

static inline long show_success(const char *call, long result) {
    int error = errno;
    printf("%s: %s\n", call, result == -1 ? strerrorname_np(error) : "ok");
    errno = error;
    return result;
}

static inline void nap(int milliseconds) {
    struct timespec left = {milliseconds / 1000, milliseconds % 1000 * 1000000L};
    while (nanosleep(&left, &left) == -1 && errno == EINTR)
        ;
}

static inline long now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

/* Whether a wait took about as long as it should: on a slow host it may take longer, never shorter. */
static inline const char *took(long started_ms, long least_ms) {
    return now_ms() - started_ms >= least_ms ? "long enough" : "too short";
}

/* A wait status in words. */
static inline void show_status(const char *what, int status) {
    if (WIFEXITED(status))
        printf("%s: exited %d\n", what, WEXITSTATUS(status));
    else if (WIFSIGNALED(status))
        printf("%s: killed by %s\n", what, sigabbrev_np(WTERMSIG(status)));
    else if (WIFSTOPPED(status))
        printf("%s: stopped by %s\n", what, sigabbrev_np(WSTOPSIG(status)));
    else if (WIFCONTINUED(status))
        printf("%s: continued\n", what);
    else
        printf("%s: status %#x\n", what, status);
}

/* Waits for a child and prints how it ended. */
static inline void reap(const char *what, pid_t pid) {
    int status;
    if (waitpid(pid, &status, 0) == pid)
        show_status(what, status);
    else
        printf("%s: waitpid: %s\n", what, strerrorname_np(errno));
}

/* Runs the block that follows in a child process and reports how it ended. */
#define IN_CHILD(what) \
    for (pid_t child_ = fork(), once_ = 1; once_ && (child_ != 0 || once_ == 1); \
         child_ == 0 ? _exit(0) : reap(what, child_), once_ = 0) \
        if (child_ == 0)

static inline void write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        printf("cannot write %s: %s\n", path, strerrorname_np(errno));
    close(fd);
}

/* Prints the text of a file, or the error. */
static inline void show_file(const char *path) {
    char text[4096];
    int fd = open(path, O_RDONLY);
    ssize_t length = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    if (length < 0) {
        printf("%s: %s\n", path, strerrorname_np(errno));
    } else {
        text[length] = 0;
        printf("%s: \"%s\"\n", path, text);
    }
    close(fd);
}

__attribute__((constructor)) static void line_by_line(void) {
    /* Children must not print what their parents have buffered. */
    setvbuf(stdout, NULL, _IOLBF, 4096);
    umask(022);
    /* What a shell or a harness may have left open would shift the numbers of ours. */
    syscall(SYS_close_range, 10, 99, 0);
}
#endif
