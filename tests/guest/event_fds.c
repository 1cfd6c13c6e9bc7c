/* eventfd, timerfd, signalfd, inotify. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/timerfd.h>

static short ready(int fd) {
    struct pollfd entry = {.fd = fd, .events = POLLIN | POLLOUT};
    poll(&entry, 1, 0);
    return entry.revents;
}

static void counters(void) {
    uint64_t value = 5;
    int fd = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC);
    printf("ready %#x\n", ready(fd));
    TRY(write(fd, &value, 8));
    TRY(read(fd, &value, 8));
    printf("value %lu ready %#x\n", (unsigned long)value, ready(fd));
    TRY(read(fd, &value, 8));
    TRY(read(fd, &value, 7));
    TRY(write(fd, &value, 4));
    value = UINT64_MAX;
    TRY(write(fd, &value, 8));
    value = UINT64_MAX - 1;
    TRY(write(fd, &value, 8));
    printf("ready %#x\n", ready(fd));
    value = 1;
    TRY(write(fd, &value, 8));
    TRY(eventfd(0, 0x40));
    int semaphore = eventfd(2, EFD_SEMAPHORE | EFD_NONBLOCK);
    TRY(read(semaphore, &value, 8));
    printf("value %lu\n", (unsigned long)value);
    TRY(read(semaphore, &value, 8));
    TRY(read(semaphore, &value, 8));
    int blocking = eventfd(0, 0);
    pid_t pid = fork();
    if (pid == 0) {
        nap(50);
        value = 9;
        write(blocking, &value, 8);
        _exit(0);
    }
    TRY(read(blocking, &value, 8));
    printf("value %lu\n", (unsigned long)value);
    reap("writer", pid);
    value = UINT64_MAX - 1;
    TRY(write(blocking, &value, 8));
    pid = fork();
    if (pid == 0) {
        nap(50);
        _exit(read(blocking, &value, 8) == 8 ? 0 : 1);
    }
    value = 7;
    long start = now_ms();
    TRY(write(blocking, &value, 8));
    reap("reader", pid);
    printf("a write that overflows waits %s\n", took(start, 40));
    TRY(read(blocking, &value, 8));
    printf("value %lu\n", (unsigned long)value);
}

static void clocks(void) {
    uint64_t expirations;
    int fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct itimerspec set = {{0, 20000000}, {0, 20000000}}, now;
    TRY(read(fd, &expirations, 8));
    TRY(timerfd_settime(fd, 0, &set, NULL));
    TRY(timerfd_gettime(fd, &now));
    printf("interval %ld, left %s\n", now.it_interval.tv_nsec, now.it_value.tv_nsec > 0 && now.it_value.tv_nsec <= 20000000 ? "right" : "wrong");
    nap(110);
    printf("ready %#x\n", ready(fd));
    TRY(read(fd, &expirations, 8));
    printf("expirations %s\n", expirations >= 5 ? "5 or more" : "too few");
    struct itimerspec off = {{0, 0}, {0, 0}}, bad = {{0, 0}, {0, 1000000000}};
    TRY(timerfd_settime(fd, 0, &off, &now));
    TRY(timerfd_settime(fd, 0, &bad, NULL));
    TRY(read(fd, &expirations, 8));
    TRY(timerfd_create(99, 0));
    int real = timerfd_create(CLOCK_REALTIME, 0);
    struct itimerspec past = {{0, 0}, {1, 0}};
    TRY(timerfd_settime(real, TFD_TIMER_ABSTIME, &past, NULL));
    TRY(read(real, &expirations, 8));
    printf("expirations %lu\n", (unsigned long)expirations);
    TRY(write(real, &expirations, 8));
}

static void signals(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_NONBLOCK);
    struct signalfd_siginfo info;
    TRY(read(fd, &info, sizeof info));
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 31});
    printf("ready %#x\n", ready(fd));
    TRY(read(fd, &info, sizeof info));
    printf("signo %u code %d value %d\n", info.ssi_signo, info.ssi_code, info.ssi_int);
    pid_t pid = fork();
    if (pid == 0)
        _exit(6);
    reap("child", pid);
    TRY(read(fd, &info, sizeof info));
    printf("signo %u code %d status %d\n", info.ssi_signo, info.ssi_code, info.ssi_status);
    TRY(read(fd, &info, 10));
    sigdelset(&set, SIGCHLD);
    TRY_OK(signalfd(fd, &set, 0));
    TRY(signalfd(0, &set, 0));
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    signal(SIGCHLD, SIG_DFL);
}

static void show_events(const char *what, int fd) {
    char buffer[8192] __attribute__((aligned(8)));
    ssize_t length = read(fd, buffer, sizeof buffer);
    printf("%s:", what);
    for (ssize_t at = 0; at < length;) {
        struct inotify_event *event = (void *)(buffer + at);
        printf(" [wd %d mask %#x cookie %s%s%s]", event->wd, event->mask, event->cookie ? "yes" : "no", event->len ? " " : "",
               event->len ? event->name : "");
        at += (ssize_t)sizeof *event + event->len;
    }
    puts(length < 0 ? strerrorname_np(errno) : "");
}

static void watches(void) {
    mkdir("watched", 0755);
    int fd = inotify_init1(IN_NONBLOCK);
    TRY(inotify_add_watch(fd, "watched", IN_ALL_EVENTS));
    show_events("nothing", fd);
    write_file("watched/a", "text");
    show_events("created", fd);
    rename("watched/a", "watched/b");
    show_events("renamed", fd);
    chmod("watched/b", 0600);
    int file = open("watched/b", O_RDONLY);
    char byte;
    read(file, &byte, 1);
    close(file);
    show_events("chmod, open, read, close", fd);
    TRY(inotify_add_watch(fd, "watched/b", IN_DELETE_SELF | IN_ATTRIB));
    unlink("watched/b");
    show_events("unlinked", fd);
    mkdir("watched/d", 0755);
    rmdir("watched/d");
    show_events("directory", fd);
    TRY(inotify_rm_watch(fd, 1));
    show_events("removed", fd);
    TRY(inotify_rm_watch(fd, 1));
    TRY(inotify_add_watch(fd, "missing", IN_CREATE));
    TRY(inotify_add_watch(fd, "watched", 0));
    TRY(inotify_add_watch(fd, "spliced-not-a-directory", IN_ONLYDIR | IN_CREATE));
    rmdir("watched");
}

/* Four processes with an epoll each watch one pipe with EPOLLEXCLUSIVE: every byte wakes one of them. */
static void exclusive(void) {
    enum { WAITERS = 4 };
    int bytes[2], woken[2], ready[2];
    pipe(bytes), pipe(woken), pipe(ready);
    for (int i = 0; i < WAITERS; i++)
        if (fork() == 0) {
            int set = epoll_create1(0);
            struct epoll_event event = {.events = EPOLLIN | EPOLLET | EPOLLEXCLUSIVE};
            epoll_ctl(set, EPOLL_CTL_ADD, bytes[0], &event);
            write(ready[1], "r", 1);
            if (epoll_wait(set, &event, 1, 20000) == 1)
                write(woken[1], "w", 1);
            _exit(0);
        }
    char text[16];
    for (int i = 0; i < WAITERS; i++)
        read(ready[0], text, 1);
    /* Until they sleep. */
    nap(200);
    for (int i = 0; i < WAITERS; i++) {
        write(bytes[1], "b", 1);
        read(woken[0], text, 1);
        nap(50);
        int more = 0;
        ioctl(woken[0], FIONREAD, &more);
        printf("byte %d: %d more woken\n", i, more);
        read(bytes[0], text, 1);
    }
    while (wait(NULL) > 0)
        ;
}

int main(void) {
    exclusive();
    counters();
    clocks();
    signals();
    watches();
    return 0;
}
