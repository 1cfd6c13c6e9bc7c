/* Small things that programs now and then rely on: errors of calls on descriptors that name but do not open, signals through
 * directories of /proc, personalities, processor features, what inotify says of directories that move. */
#include "check.h"
#include <sys/epoll.h>
#include <sys/inotify.h>
#include <sys/personality.h>
#include <sys/pidfd.h>
#include <sys/select.h>
#include <asm/prctl.h>
#include <linux/futex.h>
#include <termio.h>

static void named_descriptors(void) {
    int poll_set = epoll_create1(0), named = open(".", O_PATH);
    struct epoll_event event = {.events = EPOLLIN};
    TRY(epoll_ctl(poll_set, EPOLL_CTL_ADD, named, &event));
    TRY(epoll_ctl(named, EPOLL_CTL_ADD, 0, &event));
    close(poll_set);
    close(named);
}

static void signals_by_directory(void) {
    pid_t pid = fork();
    if (pid == 0) {
        pause();
        _exit(0);
    }
    char path[64];
    snprintf(path, sizeof path, "/proc/%d", pid);
    int directory = open(path, O_DIRECTORY), file, named = open(path, O_PATH | O_DIRECTORY);
    strcat(path, "/status");
    file = open(path, O_RDONLY);
    int tasks = open("/proc/self/task", O_DIRECTORY), root = open("/proc", O_DIRECTORY);
    TRY(pidfd_send_signal(file, 0, NULL, 0));
    TRY(pidfd_send_signal(tasks, 0, NULL, 0));
    TRY(pidfd_send_signal(root, 0, NULL, 0));
    TRY(pidfd_send_signal(named, 0, NULL, 0));
    TRY(pidfd_send_signal(directory, 0, NULL, 0));
    TRY(pidfd_send_signal(directory, 99, NULL, 0));
    TRY(pidfd_send_signal(directory, SIGTERM, NULL, 1 << 20));
    TRY(pidfd_send_signal(directory, SIGTERM, NULL, 0));
    reap("child", pid);
    TRY(pidfd_send_signal(directory, SIGTERM, NULL, 0));
}

static void personalities(void) {
    struct timeval time = {0, 30000};
    TRY(select(0, NULL, NULL, NULL, &time));
    printf("left %ld\n", (long)time.tv_usec);
    TRY(personality(STICKY_TIMEOUTS));
    time.tv_usec = 10;
    TRY(select(0, NULL, NULL, NULL, &time));
    printf("left %ld\n", (long)time.tv_usec);
    struct timespec exact = {0, 10};
    TRY(syscall(SYS_pselect6, 0, NULL, NULL, NULL, &exact, NULL));
    printf("left %ld\n", exact.tv_nsec);
    TRY(syscall(SYS_ppoll, NULL, 0, &exact, NULL, 8));
    printf("left %ld\n", exact.tv_nsec);
    TRY(personality(0));
}

static void watch(int watcher) {
    char buffer[1024] __attribute__((aligned(8)));
    ssize_t length = read(watcher, buffer, sizeof buffer);
    for (char *at = buffer; length > 0 && at < buffer + length;) {
        struct inotify_event *event = (void *)at;
        printf("event wd %d mask %#x name %s\n", event->wd, event->mask, event->len ? event->name : "-");
        at += sizeof *event + event->len;
    }
}

static void moved_directories(void) {
    int watcher = inotify_init1(IN_NONBLOCK);
    TRY(mkdir("before", 0755));
    TRY(inotify_add_watch(watcher, "before", IN_ALL_EVENTS | IN_EXCL_UNLINK));
    TRY(rename("before", "after"));
    watch(watcher);
    TRY(chmod("after", 0700));
    watch(watcher);
    TRY(inotify_add_watch(watcher, ".", IN_ONESHOT | IN_CREATE));
    char path[64], line[256];
    snprintf(path, sizeof path, "/proc/self/fdinfo/%d", watcher);
    FILE *info = fopen(path, "r");
    while (info && fgets(line, sizeof line, info))
        if (strncmp(line, "inotify", 7) == 0)
            printf("mask %s\n", strstr(line, "mask:") ? strtok(strstr(line, "mask:"), " ") : "none");
    if (info)
        fclose(info);
    TRY(rmdir("after"));
    watch(watcher);
    close(watcher);
}

static void unmapped_futexes(void) {
    char *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    uint32_t here = 0;
    TRY(syscall(SYS_futex, page, FUTEX_WAKE, 1, NULL, NULL, 0));
    TRY(mprotect(page, 4096, PROT_NONE));
    TRY(syscall(SYS_futex, page, FUTEX_WAKE, 1, NULL, NULL, 0));
    TRY(syscall(SYS_futex, page, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    TRY(syscall(SYS_futex, &here, FUTEX_CMP_REQUEUE, 1, (void *)1, page, 0));
    TRY(syscall(SYS_futex, &here, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)1, page, 0));
    TRY(munmap(page, 4096));
    TRY(syscall(SYS_futex, page, FUTEX_WAKE, 1, NULL, NULL, 0));
    TRY(syscall(SYS_futex, page, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0));
    TRY(syscall(SYS_futex, &here, FUTEX_CMP_REQUEUE, 1, (void *)1, page, 0));
    TRY(syscall(SYS_futex, page, FUTEX_CMP_REQUEUE, 1, (void *)1, &here, 0));
    int file = open("short", O_RDWR | O_CREAT, 0644);
    ftruncate(file, 4096);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    TRY(syscall(SYS_futex, page, FUTEX_WAKE, 1, NULL, NULL, 0));
    ftruncate(file, 0);
    TRY(syscall(SYS_futex, page, FUTEX_WAKE, 1, NULL, NULL, 0));
    close(file);
    unlink("short");
}

static void old_terminals(void) {
    struct termio settings;
    int terminal = posix_openpt(O_RDWR | O_NOCTTY), ends[2];
    TRY(ioctl(terminal, TCGETA, NULL));
    TRY(ioctl(terminal, TCGETA, &settings));
    printf("%o %o %o %o line %d vmin %d eof %d\n", settings.c_iflag, settings.c_oflag, settings.c_cflag, settings.c_lflag, settings.c_line,
           settings.c_cc[VMIN], settings.c_cc[VEOF]);
    settings.c_lflag &= ~ECHO;
    settings.c_cc[VEOF] = 7;
    TRY(ioctl(terminal, TCSETA, &settings));
    memset(&settings, 0, sizeof settings);
    TRY(ioctl(terminal, TCGETA, &settings));
    printf("echo %d eof %d\n", settings.c_lflag & ECHO, settings.c_cc[VEOF]);
    settings.c_lflag |= ECHO;
    TRY(ioctl(terminal, TCSETAW, &settings));
    TRY(ioctl(terminal, TCSETAF, &settings));
    TRY(ioctl(terminal, TCSETA, (void *)8));
    struct termios wide;
    TRY(tcgetattr(terminal, &wide));
    printf("%o %o eof %d start %d\n", wide.c_lflag, wide.c_cflag, wide.c_cc[VEOF], wide.c_cc[VSTART]);
    pipe(ends);
    TRY(ioctl(ends[0], TCGETA, &settings));
}

int main(void) {
    named_descriptors();
    signals_by_directory();
    personalities();
    moved_directories();
    unmapped_futexes();
    old_terminals();
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 2, (int[2]){0, 0}));
    TRY(socketpair(AF_UNIX, SOCK_STREAM, 1, (int[2]){0, 0}));
    TRY(socket(AF_UNIX, SOCK_STREAM, 5));
    return 0;
}
