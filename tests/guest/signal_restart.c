/* What a signal does to a call that waits: restart, EINTR, and the time that is left. */
#include "check.h"
#include <linux/futex.h>
#include <sys/epoll.h>
#include <sys/select.h>

static volatile int caught;
static void handler(int signal) { (void)signal; caught++; }

static void with(int flags) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = flags};
    sigaction(SIGUSR1, &action, NULL);
    caught = 0;
}

/* A child that signals us after a while, and does something else after another. */
static pid_t later(int signal_ms, int then_ms, int fd) {
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        nap(signal_ms);
        kill(parent, SIGUSR1);
        if (then_ms) {
            nap(then_ms);
            if (fd >= 0)
                write(fd, "x", 1);
        }
        _exit(7);
    }
    return pid;
}

int main(void) {
    int pipes[2], sockets[2], futex_word = 0, status;
    char byte;
    pipe(pipes);
    socketpair(AF_UNIX, SOCK_STREAM, 0, sockets);
    with(SA_RESTART);
    pid_t pid = later(50, 50, pipes[1]);
    TRY(read(pipes[0], &byte, 1));
    printf("caught %d\n", caught);
    reap("child", pid);
    with(0);
    pid = later(50, 0, -1);
    TRY(read(pipes[0], &byte, 1));
    reap("child", pid);
    with(SA_RESTART);
    pid = later(50, 50, sockets[1]);
    TRY(recv(sockets[0], &byte, 1, 0));
    reap("child", pid);
    struct timeval limit = {5, 0};
    setsockopt(sockets[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    pid = later(50, 0, -1);
    TRY(recv(sockets[0], &byte, 1, 0));
    reap("child", pid);
    with(SA_RESTART);
    pid = later(50, 50, -1);
    TRY_OK(waitpid(pid, &status, 0));
    show_status("restarted wait", status);
    with(0);
    pid = later(50, 50, -1);
    TRY(waitpid(pid, &status, 0));
    reap("child", pid);

    with(SA_RESTART);
    struct timespec want = {1, 0}, left = {0, 0};
    pid = later(100, 0, -1);
    TRY(nanosleep(&want, &left));
    printf("left: %s\n", left.tv_sec == 0 && left.tv_nsec > 1000000 && left.tv_nsec < 900000001 ? "plausible" : "wrong");
    reap("child", pid);
    pid = later(50, 0, -1);
    struct pollfd none = {.fd = pipes[0], .events = POLLIN};
    TRY(poll(&none, 1, 2000));
    reap("child", pid);
    pid = later(50, 0, -1);
    fd_set set;
    FD_ZERO(&set);
    FD_SET(pipes[0], &set);
    struct timeval two = {2, 0};
    TRY(select(pipes[0] + 1, &set, NULL, NULL, &two));
    reap("child", pid);
    int epoll = epoll_create1(0);
    struct epoll_event event;
    pid = later(50, 0, -1);
    TRY(epoll_wait(epoll, &event, 1, 2000));
    reap("child", pid);
    with(0);
    pid = later(50, 0, -1);
    TRY(syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, NULL, NULL, 0));
    reap("child", pid);
    with(SA_RESTART);
    long start = now_ms();
    struct timespec short_wait = {0, 200000000};
    pid = later(50, 0, -1);
    TRY(syscall(SYS_futex, &futex_word, FUTEX_WAIT, 0, &short_wait, NULL, 0));
    printf("restarted futex: %s\n", took(start, 195));
    reap("child", pid);
    /* A stop and a continue are invisible to a sleeper without a handler. */
    signal(SIGCONT, SIG_DFL);
    pid_t sleeper = fork();
    if (sleeper == 0) {
        long begun = now_ms();
        struct timespec half = {0, 300000000};
        int result = nanosleep(&half, NULL);
        printf("stopped sleeper: %d, %s\n", result, took(begun, 295));
        _exit(0);
    }
    nap(50);
    kill(sleeper, SIGSTOP);
    waitpid(sleeper, &status, WUNTRACED);
    show_status("sleeper", status);
    kill(sleeper, SIGCONT);
    reap("sleeper", sleeper);
    /* A write that was cut short says how much went through. */
    with(0);
    int flags = fcntl(pipes[1], F_GETFL);
    fcntl(pipes[1], F_SETFL, flags & ~O_NONBLOCK);
    static char block[300000];
    pid = later(100, 0, -1);
    TRY(write(pipes[1], block, sizeof block));
    reap("child", pid);
    return 0;
}
