/* POSIX message queues. */
#include "check.h"
#include <grp.h>
#include <mqueue.h>
#include <sys/resource.h>

static char name[64];
static mqd_t queue;

static void show(const char *what) {
    struct mq_attr attr;
    if (mq_getattr(queue, &attr))
        printf("%s: %s\n", what, strerrorname_np(errno));
    else
        printf("%s: flags %#lx, %ld of %ld messages of %ld bytes\n", what, attr.mq_flags, attr.mq_curmsgs, attr.mq_maxmsg,
               attr.mq_msgsize);
}

static long opened(mqd_t result) {
    queue = result;
    return result == (mqd_t)-1 ? -1 : 0;
}

static void take(size_t room) {
    static char text[8192];
    unsigned priority = 99;
    ssize_t length = mq_receive(queue, text, room, &priority);
    if (length < 0)
        printf("receive: %s\n", strerrorname_np(errno));
    else
        printf("receive: \"%.*s\" of %u\n", (int)length, text, priority);
}

static struct timespec soon(long milliseconds) {
    struct timespec at;
    clock_gettime(CLOCK_REALTIME, &at);
    at.tv_nsec += milliseconds * 1000000;
    at.tv_sec += at.tv_nsec / 1000000000;
    at.tv_nsec %= 1000000000;
    return at;
}

static void handler(int signal) { (void)signal; }

static void names(void) {
    struct mq_attr small = {.mq_maxmsg = 3, .mq_msgsize = 16}, bad = {.mq_maxmsg = 0, .mq_msgsize = 16};
    struct mq_attr huge = {.mq_maxmsg = 1 << 20, .mq_msgsize = 16}, negative = {.mq_maxmsg = 3, .mq_msgsize = -1};
    TRY(opened(mq_open(name, O_RDWR)));
    TRY(opened(mq_open(name, O_RDWR | O_CREAT, 0600, &bad)));
    TRY(opened(mq_open(name, O_RDWR | O_CREAT, 0600, &huge)));
    TRY(opened(mq_open(name, O_RDWR | O_CREAT, 0600, &negative)));
    TRY(opened(mq_open("/", O_RDWR | O_CREAT, 0600, NULL)));
    TRY(opened(mq_open("/a/b", O_RDWR | O_CREAT, 0600, NULL)));
    TRY(opened(mq_open("/..", O_RDWR | O_CREAT, 0600, NULL)));
    TRY(opened(mq_open("/.", O_RDWR, 0600, NULL)));
    TRY(opened(mq_open("none", O_RDWR | O_CREAT, 0600, NULL)));
    char longest[400] = "/";
    memset(longest + 1, 'n', 256);
    TRY(opened(mq_open(longest, O_RDWR | O_CREAT, 0600, NULL)));
    TRY(mq_unlink(longest));
    TRY(syscall(SYS_mq_open, NULL, O_RDWR, 0, NULL));
    TRY(syscall(SYS_mq_open, name + 1, O_RDWR, 0, 1L));
    TRY(opened(mq_open(name, O_RDWR | O_CREAT, 0640, &small)));
    show("new");
    struct stat status;
    TRY(fstat(queue, &status));
    printf("mode %o, size %ld, owner %d\n", status.st_mode, (long)status.st_size, status.st_uid == geteuid());
    TRY(fcntl(queue, F_GETFD));
    TRY(fcntl(queue, F_GETFL) & O_ACCMODE);
    TRY_OK(opened(mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &small)) ? 0 : -1);
    TRY(opened(mq_open(name, O_ACCMODE)));
    char text[200];
    TRY(opened(mq_open(name, O_WRONLY | O_NONBLOCK)));
    TRY(mq_receive(queue, text, sizeof text, NULL));
    TRY(write(queue, "x", 1));
    mq_close(queue);
    TRY(opened(mq_open(name, O_RDONLY)));
    TRY(mq_send(queue, "x", 1, 0));
    ssize_t length = read(queue, text, sizeof text - 1);
    text[length > 0 ? length : 0] = 0;
    printf("status: %s", text);
    mq_close(queue);
    TRY(mq_close(queue));
    TRY(mq_send(0, "x", 1, 0));
    TRY(mq_receive(999, text, sizeof text, NULL));
    IN_CHILD("another user") {
        setgroups(0, NULL);
        setgid(1000);
        setuid(1000);
        TRY(opened(mq_open(name, O_RDONLY)));
        TRY(mq_unlink(name));
        TRY(mq_unlink("/not-there"));
    }
    TRY(opened(mq_open(name, O_RDWR)));
}

static void messages(void) {
    TRY(mq_send(queue, "low", 3, 1));
    TRY(mq_send(queue, "high", 4, 7));
    TRY(mq_send(queue, "low again", 9, 1));
    show("three");
    struct pollfd entry = {.fd = queue, .events = POLLIN | POLLOUT};
    TRY(poll(&entry, 1, 0));
    printf("ready %#x\n", entry.revents);
    TRY(mq_send(queue, "longer than sixteen", 19, 0));
    TRY(mq_send(queue, "x", 1, 32768));
    TRY(syscall(SYS_mq_timedsend, queue, NULL, 1L, 0, NULL));
    struct timespec at = soon(60), bad = {1, -1}, past = {1, 0};
    long start = now_ms();
    TRY(mq_timedsend(queue, "full", 4, 0, &at));
    printf("timeout %s\n", took(start, 55));
    TRY(mq_timedsend(queue, "full", 4, 0, &past));
    TRY(mq_timedsend(queue, "full", 4, 0, &bad));
    take(15);
    take(16);
    take(16);
    TRY(poll(&entry, 1, 0));
    printf("ready %#x\n", entry.revents);
    TRY(mq_send(queue, "", 0, 32767));
    take(16);
    take(16);
    TRY(poll(&entry, 1, 0));
    printf("ready %#x\n", entry.revents);
    at = soon(60);
    start = now_ms();
    char text[16];
    TRY(mq_timedreceive(queue, text, sizeof text, NULL, &at));
    printf("timeout %s\n", took(start, 55));
    TRY(mq_timedreceive(queue, text, sizeof text, NULL, &past));
    struct mq_attr nonblock = {.mq_flags = O_NONBLOCK}, wrong = {.mq_flags = 1}, old;
    TRY(mq_setattr(queue, &wrong, NULL));
    TRY(mq_setattr(queue, &nonblock, &old));
    printf("flags %#lx\n", old.mq_flags);
    show("nonblocking");
    take(16);
    nonblock.mq_flags = 0;
    TRY(mq_setattr(queue, &nonblock, NULL));
    struct sigaction action = {.sa_handler = handler};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval alarm = {{0, 0}, {0, 60000}};
    setitimer(ITIMER_REAL, &alarm, NULL);
    take(16);
    pid_t pid = fork();
    if (pid == 0) {
        nap(60);
        _exit(mq_send(queue, "from a child", 12, 3) ? 1 : 0);
    }
    take(16);
    reap("sender", pid);
    for (int n = 0; n < 3; n++)
        mq_send(queue, "x", 1, 0);
    pid = fork();
    if (pid == 0)
        _exit(mq_send(queue, "waited", 6, 9) ? 1 : 0);
    nap(60);
    take(16);
    reap("waiter", pid);
    take(16);
    take(16);
    take(16);
}

static void notices(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1, .sigev_value.sival_int = 42};
    struct sigevent bad = {.sigev_notify = 99}, worse = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 100};
    TRY(mq_notify(queue, &bad));
    TRY(mq_notify(queue, &worse));
    TRY(mq_notify(0, &event));
    TRY(mq_notify(queue, NULL));
    TRY(mq_notify(queue, &event));
    TRY(mq_notify(queue, &event));
    IN_CHILD("somebody else") {
        TRY(mq_notify(queue, &event));
        TRY(mq_notify(queue, NULL));
        TRY(mq_send(queue, "x", 1, 0));
    }
    siginfo_t info;
    struct timespec second = {1, 0}, none = {0, 0};
    TRY(sigtimedwait(&set, &info, &second));
    printf("code %d, value %d, from %s\n", info.si_code, info.si_value.sival_int,
           info.si_pid > 0 && info.si_pid != getpid() ? "the child" : "nobody");
    /* Once only, and only for an empty queue. */
    TRY(mq_send(queue, "y", 1, 0));
    TRY(sigtimedwait(&set, &info, &none));
    TRY(mq_notify(queue, &event));
    TRY(mq_send(queue, "z", 1, 0));
    TRY(sigtimedwait(&set, &info, &none));
    take(16);
    take(16);
    take(16);
    /* A waiting receiver comes first. */
    pid_t pid = fork();
    if (pid == 0) {
        char text[16];
        _exit(mq_receive(queue, text, 16, NULL) == 1 ? 0 : 1);
    }
    nap(60);
    TRY(mq_send(queue, "r", 1, 0));
    reap("receiver", pid);
    TRY(sigtimedwait(&set, &info, &none));
    TRY(mq_send(queue, "s", 1, 0));
    TRY(sigtimedwait(&set, &info, &second));
    take(16);
    TRY(mq_notify(queue, &event));
    TRY(mq_notify(queue, NULL));
    event.sigev_notify = SIGEV_NONE;
    TRY(mq_notify(queue, &event));
    TRY(mq_send(queue, "t", 1, 0));
    TRY(mq_notify(queue, &event));
    /* Closing a descriptor ends it. */
    close(dup(queue));
    event.sigev_notify = SIGEV_SIGNAL;
    TRY(mq_notify(queue, &event));
    take(16);
}

static void limits(void) {
    /* As another user, so that nothing else counts. */
    IN_CHILD("limit") {
        setgroups(0, NULL);
        setgid(54321);
        setuid(54321);
        struct rlimit limit = {20000, 20000};
        setrlimit(RLIMIT_MSGQUEUE, &limit);
        char other[80];
        snprintf(other, sizeof other, "%s-other", name);
        struct mq_attr attr = {.mq_maxmsg = 10, .mq_msgsize = 8192};
        TRY(opened(mq_open(other, O_RDWR | O_CREAT, 0600, &attr)));
        attr.mq_msgsize = 1904;
        TRY(opened(mq_open(other, O_RDWR | O_CREAT, 0600, &attr)));
        TRY(mq_unlink(other));
        close(queue);
        attr.mq_msgsize = 1905;
        TRY(opened(mq_open(other, O_RDWR | O_CREAT, 0600, &attr)));
        attr.mq_maxmsg = 11;
        TRY(opened(mq_open(other, O_RDWR | O_CREAT, 0600, &attr)));
        attr.mq_maxmsg = 5;
        attr.mq_msgsize = 100;
        TRY(opened(mq_open(other, O_RDWR | O_CREAT, 0600, &attr)));
        TRY(mq_unlink(other));
    }
}

int main(void) {
    setvbuf(stdout, NULL, _IONBF, 0);
    snprintf(name, sizeof name, "/caisson-%d", getpid());
    umask(027);
    names();
    messages();
    notices();
    limits();
    TRY(mq_unlink(name));
    TRY(mq_unlink(name));
    TRY(mq_send(queue, "still there", 11, 0));
    take(16);
    return 0;
}
