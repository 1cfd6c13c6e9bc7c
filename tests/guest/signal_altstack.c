/* sigaltstack: where handlers run, overflow of the main stack, leaving by siglongjmp, errors. */
#include "check.h"
#include <setjmp.h>

static char *stack;
static const size_t size = 64 * 1024;
static sigjmp_buf back;

static bool on_stack(void) {
    char here;
    return &here >= stack && &here < stack + size;
}

static void where(int signal) {
    stack_t now;
    sigaltstack(NULL, &now);
    printf("%s: %s, flags %s%s\n", sigabbrev_np(signal), on_stack() ? "alternate" : "main",
           now.ss_flags & SS_ONSTACK ? "ONSTACK" : "", now.ss_flags & SS_DISABLE ? "DISABLE" : "");
    if (on_stack()) {
        stack_t other = {.ss_sp = stack, .ss_size = size};
        TRY(sigaltstack(&other, NULL));
    }
}

static void overflow(int signal, siginfo_t *info, void *context) {
    (void)context;
    printf("%s at overflow: code %d, %s\n", sigabbrev_np(signal), info->si_code, on_stack() ? "alternate" : "main");
    siglongjmp(back, 1);
}

__attribute__((noinline)) static int recurse(volatile char *above, int depth) {
    volatile char room[4096];
    room[0] = (char)depth;
    int below = recurse(room, depth + 1);
    return below + room[0] + above[0];
}

static void twice(int signal) {
    (void)signal;
    printf("inner: %s\n", on_stack() ? "alternate" : "main");
}

static void outer(int signal) {
    (void)signal;
    printf("outer: %s\n", on_stack() ? "alternate" : "main");
    raise(SIGUSR2);
}

int main(void) {
    stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    stack_t small = {.ss_sp = stack, .ss_size = 1000}, bad = {.ss_sp = stack, .ss_size = size, .ss_flags = 0x40};
    TRY(sigaltstack(&small, NULL));
    TRY(sigaltstack(&bad, NULL));
    struct sigaction action = {.sa_handler = where, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    stack_t good = {.ss_sp = stack, .ss_size = size}, old;
    TRY(sigaltstack(&good, &old));
    printf("before: %s\n", old.ss_flags & SS_DISABLE ? "disabled" : "enabled");
    raise(SIGUSR1);
    action.sa_flags = 0;
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
    struct sigaction first = {.sa_handler = outer, .sa_flags = SA_ONSTACK}, second = {.sa_handler = twice, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &first, NULL);
    sigaction(SIGUSR2, &second, NULL);
    raise(SIGUSR1);
    struct sigaction segv = {.sa_sigaction = overflow, .sa_flags = SA_ONSTACK | SA_SIGINFO};
    sigaction(SIGSEGV, &segv, NULL);
    for (int round = 0; round < 3; round++) {
        char first_frame = 0;
        if (sigsetjmp(back, 1) == 0)
            printf("%d\n", recurse(&first_frame, 0));
        else
            puts("came back");
    }
    IN_CHILD("overflow without an alternate stack") {
        stack_t off = {.ss_flags = SS_DISABLE};
        sigaltstack(&off, NULL);
        char first_frame = 0;
        recurse(&first_frame, 0);
    }
    IN_CHILD("kept by fork") { 
        sigaltstack(NULL, &old);
        puts(old.ss_flags & SS_DISABLE ? "disabled" : "enabled");
    }
    return 0;
}
