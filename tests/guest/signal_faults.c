/* Processor exceptions as signals: numbers, codes, addresses, and going on after mending the context. */
#include "check.h"
#include <setjmp.h>
#include <ucontext.h>

static sigjmp_buf back;
static void *expected;

static void report(int signal, siginfo_t *info, void *context) {
    ucontext_t *state = context;
    bool here = info->si_addr == expected || info->si_addr == (void *)state->uc_mcontext.gregs[REG_RIP];
    printf("%s code %d address %s trapno %lld\n", sigabbrev_np(signal), info->si_code,
           here ? "right" : info->si_addr ? "other" : "0", state->uc_mcontext.gregs[REG_TRAPNO]);
    siglongjmp(back, 1);
}

static int skip;
static void mend(int signal, siginfo_t *info, void *context) {
    (void)info;
    ucontext_t *state = context;
    printf("mending %s\n", sigabbrev_np(signal));
    state->uc_mcontext.gregs[REG_RIP] += skip;
    state->uc_mcontext.gregs[REG_RBX] = 4242;
}

static void on(int signal, void (*handler)(int, siginfo_t *, void *)) {
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO};
    sigaction(signal, &action, NULL);
}

#define FAULT(what, address, code) \
    printf("%s: ", what); \
    expected = (void *)(address); \
    if (sigsetjmp(back, 1) == 0) { \
        code; \
        puts("nothing happened"); \
    }

int main(void) {
    int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP};
    for (unsigned i = 0; i < 5; i++)
        on(signals[i], report);
    volatile char *none = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile char *readable = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    volatile char *data = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    FAULT("null read", NULL, (void)*(volatile char *)NULL);
    FAULT("low write", 0x123, *(volatile char *)0x123 = 1);
    FAULT("read of PROT_NONE", none, (void)*none);
    FAULT("write to read-only", readable + 5, readable[5] = 1);
    FAULT("execution of data", data, ((void (*)(void))data)());
    FAULT("non-canonical", 0x8000000000000000ul, (void)*(volatile char *)0x8000000000000000ul);
    volatile int zero = 0, one = 1;
    FAULT("division by zero", NULL, one = one / zero);
    FAULT("ud2", NULL, __asm__ volatile("ud2"));
    FAULT("int3", NULL, __asm__ volatile("int3"));
    FAULT("hlt", NULL, __asm__ volatile("hlt"));
    int file = open("short", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(file, 100);
    volatile char *map = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    FAULT("past the end of a file", map + 4096, (void)map[4096]);
    FAULT("tail of the last page", map, (map[200] = 1, puts("fine"), siglongjmp(back, 1)));
    ftruncate(file, 0);
    FAULT("after truncation", map, (void)map[0]);
    on(SIGILL, mend);
    skip = 2;
    long value = 1;
    __asm__ volatile("ud2" : "=b"(value));
    printf("went on with %ld\n", value);
    on(SIGTRAP, mend);
    skip = 0;
    __asm__ volatile("int3" : "=b"(value));
    printf("went on with %ld\n", value);
    /* The trap flag steps one instruction. */
    __asm__ volatile("pushf; orl $0x100, (%%rsp); popf; nop; pushf; andl $~0x100, (%%rsp); popf" : "=b"(value)::"cc", "memory");
    puts("stepped");
    IN_CHILD("default segv") {
        signal(SIGSEGV, SIG_DFL);
        *(volatile char *)NULL = 1;
    }
    IN_CHILD("blocked segv") {
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        *(volatile char *)NULL = 1;
    }
    IN_CHILD("ignored fpe") {
        signal(SIGFPE, SIG_IGN);
        one = one / zero;
    }
    return 0;
}
