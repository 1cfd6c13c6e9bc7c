/* poll, select and epoll over pipes, sockets, files and closed descriptors. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/select.h>

static void show_poll(const char *what, int fd, short events) {
    struct pollfd entry = {.fd = fd, .events = events};
    int result = poll(&entry, 1, 0);
    printf("%s: %d %#x\n", what, result, entry.revents);
}

static void polls(void) {
    int ends[2], pair[2];
    short all = POLLIN | POLLOUT | POLLPRI | POLLRDHUP;
    pipe(ends);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    show_poll("empty pipe", ends[0], all);
    show_poll("writer", ends[1], all);
    write(ends[1], "x", 1);
    show_poll("full pipe", ends[0], all);
    close(ends[1]);
    show_poll("closed writer", ends[0], all);
    char byte;
    read(ends[0], &byte, 1);
    show_poll("drained", ends[0], all);
    show_poll("socket", pair[0], all);
    write(pair[1], "x", 1);
    show_poll("with data", pair[0], all);
    shutdown(pair[1], SHUT_WR);
    show_poll("half closed", pair[0], all);
    close(pair[1]);
    show_poll("closed", pair[0], all);
    show_poll("nothing asked", pair[0], 0);
    int file = open("file", O_RDWR | O_CREAT, 0600);
    show_poll("file", file, all);
    show_poll("not open", 999, all);
    show_poll("negative", -5, all);
    int null = open("/dev/null", O_RDWR);
    show_poll("null", null, all);
    long start = now_ms();
    TRY(poll(NULL, 0, 60));
    printf("timeout %s\n", took(start, 60));
    TRY(poll(NULL, 100000000, 0));
    struct timespec bad = {0, -1};
    TRY(ppoll(NULL, 0, &bad, NULL));
}

static void selects(void) {
    int ends[2];
    pipe(ends);
    fd_set in, out;
    FD_ZERO(&in);
    FD_ZERO(&out);
    FD_SET(ends[0], &in);
    FD_SET(ends[1], &out);
    struct timeval none = {0, 0};
    TRY(select(ends[1] + 1, &in, &out, NULL, &none));
    printf("%d %d\n", FD_ISSET(ends[0], &in), FD_ISSET(ends[1], &out));
    FD_SET(ends[0], &in);
    write(ends[1], "x", 1);
    TRY(select(ends[1] + 1, &in, &out, NULL, &none));
    FD_SET(900, &in);
    TRY(select(901, &in, NULL, NULL, &none));
    TRY(select(-1, NULL, NULL, NULL, &none));
    struct timeval left = {0, 60000};
    long start = now_ms();
    TRY(select(0, NULL, NULL, NULL, &left));
    printf("left %ld %s\n", (long)(left.tv_sec + left.tv_usec), took(start, 60));
}

static volatile int caught;
static void handler(int signal) { (void)signal; caught++; }

static void signal_mask(void) {
    sigset_t block, open;
    sigemptyset(&open);
    sigemptyset(&block);
    sigaddset(&block, SIGUSR1);
    sigprocmask(SIG_BLOCK, &block, NULL);
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    struct timespec second = {1, 0};
    TRY(ppoll(NULL, 0, &second, &open));
    raise(SIGUSR1);
    TRY(pselect(0, NULL, NULL, NULL, &second, &open));
    printf("caught %d\n", caught);
    sigprocmask(SIG_UNBLOCK, &block, NULL);
}

static int ep;
static void drain(const char *what) {
    struct epoll_event events[8];
    int count = epoll_wait(ep, events, 8, 20);
    printf("%s: %d", what, count);
    for (int i = 0; i < count; i++)
        printf(" [%#x %d]", events[i].events, events[i].data.fd);
    puts("");
}

static void control(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.fd = 100 + fd};
    int result = epoll_ctl(ep, operation, fd, &event);
    printf("ctl %d: %s\n", operation, result ? strerrorname_np(errno) : "0");
}

static void epolls(void) {
    int ends[2], file = open("file", O_RDWR | O_CREAT, 0600);
    TRY(epoll_create(0));
    ep = epoll_create1(EPOLL_CLOEXEC);
    dup2(ep, 50);
    close(ep);
    ep = 50;
    pipe(ends);
    dup2(ends[0], 60);
    dup2(ends[1], 61);
    close(ends[0]);
    close(ends[1]);
    control(EPOLL_CTL_ADD, 60, EPOLLIN);
    control(EPOLL_CTL_ADD, 60, EPOLLIN);
    control(EPOLL_CTL_MOD, 61, EPOLLOUT);
    control(EPOLL_CTL_DEL, 61, 0);
    control(EPOLL_CTL_ADD, file, EPOLLIN);
    control(EPOLL_CTL_ADD, 999, EPOLLIN);
    control(EPOLL_CTL_ADD, ep, EPOLLIN);
    control(9, 60, EPOLLIN);
    drain("nothing");
    write(61, "ab", 2);
    drain("level");
    drain("level again");
    control(EPOLL_CTL_MOD, 60, EPOLLIN | EPOLLET);
    drain("edge");
    drain("edge again");
    write(61, "c", 1);
    drain("edge after more");
    char text[8];
    read(60, text, 1);
    drain("edge after a read");
    control(EPOLL_CTL_MOD, 60, EPOLLIN | EPOLLONESHOT);
    drain("oneshot");
    write(61, "d", 1);
    drain("oneshot is over");
    control(EPOLL_CTL_MOD, 60, EPOLLIN | EPOLLONESHOT);
    drain("rearmed");
    control(EPOLL_CTL_MOD, 60, EPOLLIN);
    control(EPOLL_CTL_ADD, 61, EPOLLOUT);
    drain("both");
    control(EPOLL_CTL_DEL, 61, 0);
    int copy = dup(60);
    close(60);
    drain("closed, but a copy is open");
    close(copy);
    drain("all closed");
    int inner = epoll_create1(0), pair[2];
    dup2(inner, 70);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    struct epoll_event event = {.events = EPOLLIN | EPOLLRDHUP};
    epoll_ctl(70, EPOLL_CTL_ADD, pair[0], &event);
    control(EPOLL_CTL_ADD, 70, EPOLLIN);
    drain("nested, nothing");
    write(pair[1], "x", 1);
    drain("nested");
    event.data.fd = 0;
    TRY(epoll_ctl(70, EPOLL_CTL_ADD, ep, &event));
    close(pair[1]);
    struct epoll_event seen;
    TRY(epoll_wait(70, &seen, 1, 0));
    printf("events %#x\n", seen.events);
    TRY(epoll_wait(ep, &seen, 0, 0));
    TRY(epoll_wait(file, &seen, 1, 0));
    TRY(epoll_wait(ep, (void *)8, 1, 0));
    /* A thread that waits is told of what is added later. */
    int late[2];
    pipe(late);
    pid_t pid = fork();
    if (pid == 0) {
        nap(50);
        write(late[1], "x", 1);
        _exit(0);
    }
    int fresh = epoll_create1(0);
    event = (struct epoll_event){.events = EPOLLIN, .data.u64 = 0x123456789abcdef0};
    epoll_ctl(fresh, EPOLL_CTL_ADD, late[0], &event);
    TRY(epoll_wait(fresh, &seen, 1, 5000));
    printf("data %#lx\n", (unsigned long)seen.data.u64);
    reap("writer", pid);
}

int main(void) {
    polls();
    selects();
    signal_mask();
    epolls();
    return 0;
}
