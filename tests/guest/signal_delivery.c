/* Handlers, masks, queues, and the calls that wait for signals. */
#include "check.h"

static volatile int depth, deepest, calls;
static int order[64], ordered;

static void note(int signal, siginfo_t *info, void *context) {
    (void)context;
    if (ordered < 64)
        order[ordered++] = signal == SIGRTMIN ? 1000 + info->si_value.sival_int : signal;
}

static void nested(int signal) {
    depth++;
    calls++;
    if (depth > deepest)
        deepest = depth;
    if (calls < 3)
        raise(signal);
    depth--;
}

static void install(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = flags | SA_SIGINFO};
    sigaction(signal, &action, NULL);
}

static void show_order(const char *what) {
    printf("%s:", what);
    for (int i = 0; i < ordered; i++)
        printf(" %d", order[i]);
    puts("");
    ordered = 0;
}

static void mask_and_pending(void) {
    sigset_t mask, pending, old;
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR1);
    sigaddset(&mask, SIGUSR2);
    sigaddset(&mask, SIGRTMIN);
    sigprocmask(SIG_BLOCK, &mask, &old);
    raise(SIGUSR2);
    raise(SIGUSR1);
    raise(SIGUSR1);
    for (int i = 0; i < 4; i++)
        sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = i});
    sigpending(&pending);
    printf("pending: USR1 %d USR2 %d RT %d HUP %d\n", sigismember(&pending, SIGUSR1), sigismember(&pending, SIGUSR2),
           sigismember(&pending, SIGRTMIN), sigismember(&pending, SIGHUP));
    install(SIGUSR1, note, 0);
    install(SIGUSR2, note, 0);
    install(SIGRTMIN, note, 0);
    sigprocmask(SIG_SETMASK, &old, NULL);
    show_order("delivered");
}

static void waiting(void) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    struct timespec zero = {0, 0}, bad = {0, 2000000000};
    siginfo_t info;
    TRY(sigtimedwait(&set, &info, &zero));
    TRY(sigtimedwait(&set, &info, &bad));
    sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = 77});
    TRY(sigwaitinfo(&set, &info));
    printf("signo %d code %d value %d from %s\n", info.si_signo, info.si_code, info.si_value.sival_int,
           info.si_pid == getpid() ? "me" : "somebody");
    kill(getpid(), SIGUSR1);
    sigwaitinfo(&set, &info);
    printf("kill: code %d\n", info.si_code);
    pthread_kill(pthread_self(), SIGUSR1);
    sigwaitinfo(&set, &info);
    printf("tkill: code %d\n", info.si_code);
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) {
        nap(50);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    sigset_t open;
    sigemptyset(&open);
    TRY(sigsuspend(&open));
    show_order("in sigsuspend");
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    printf("mask after sigsuspend has USR1: %d\n", sigismember(&now, SIGUSR1));
    reap("sender", pid);
    sigprocmask(SIG_UNBLOCK, &set, NULL);
    long start = now_ms();
    pid = fork();
    if (pid == 0) {
        nap(60);
        kill(parent, SIGUSR1);
        _exit(0);
    }
    TRY(pause());
    printf("pause: %s\n", took(start, 50));
    ordered = 0;
    reap("sender", pid);
}

static void child_info(int signal, siginfo_t *info, void *context) {
    (void)context;
    printf("handler: signal %s code %d status %d\n", sigabbrev_np(signal), info->si_code, info->si_status);
}

int main(void) {
    TRY(kill(getpid(), 65));
    TRY(kill(getpid(), -1));
    TRY(kill(0x3ffffff, SIGTERM));
    TRY(kill(getpid(), 0));
    struct sigaction action = {.sa_handler = SIG_IGN};
    TRY(sigaction(SIGKILL, &action, NULL));
    TRY(sigaction(SIGSTOP, &action, NULL));
    TRY(sigaction(SIGKILL, NULL, &action));
    TRY(syscall(SYS_rt_sigaction, 1, NULL, NULL, 4));
    TRY(syscall(SYS_rt_sigprocmask, 9, &action.sa_mask, NULL, 8));
    TRY(syscall(SYS_tgkill, getpid(), getpid() + 100000, SIGTERM));
    mask_and_pending();
    signal(SIGHUP, nested);
    raise(SIGHUP);
    printf("deferred: %d calls, depth %d\n", calls, deepest);
    calls = deepest = 0;
    action = (struct sigaction){.sa_handler = nested, .sa_flags = SA_NODEFER};
    sigaction(SIGHUP, &action, NULL);
    raise(SIGHUP);
    printf("SA_NODEFER: %d calls, depth %d\n", calls, deepest);
    IN_CHILD("SA_RESETHAND") {
        install(SIGTERM, note, SA_RESETHAND);
        raise(SIGTERM);
        show_order("once");
        raise(SIGTERM);
    }
    waiting();
    install(SIGCHLD, child_info, SA_NOCLDSTOP);
    pid_t pid = fork();
    if (pid == 0)
        _exit(9);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    pid = fork();
    if (pid == 0)
        raise(SIGKILL);
    while (waitpid(pid, NULL, 0) < 0 && errno == EINTR)
        ;
    signal(SIGCHLD, SIG_DFL);
    IN_CHILD("ignored by default") {
        raise(SIGCHLD);
        raise(SIGURG);
        raise(SIGWINCH);
        raise(SIGCONT);
        _exit(1);
    }
    IN_CHILD("abort") { abort(); }
    return 0;
}
