/* Page faults by instructions of all kinds, one after the other, while signals arrive whose handler faults as well: each leaves every register as it was, does
   what it says, and a fault that is a signal tells the right address. */
#include "probe.h"
#include <sys/auxv.h>

#ifndef HWCAP2_FSGSBASE
#define HWCAP2_FSGSBASE 2
#endif

#define STRIDE (64UL << 10)
#define COUNT 400UL
#define REGION (STRIDE * COUNT)

static char *region;
static char *scratch;
static volatile unsigned long handled;

static void on_alarm(int signal) {
    (void)signal;
    handled++;
    scratch[handled % COUNT * STRIDE + 8] = 1;
}

static char *fresh(void) {
    char *at = mmap(NULL, REGION, RW, PRIVATE | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED)
        exit(1);
    madvise(at, REGION, MADV_NOHUGEPAGE);
    return at;
}

/* All registers that a program has, before and after an instruction that faults. */
struct registers {
    uint64_t r[16];
};

/* Fills the registers but rsp with numbers and rdi with `at`, has `instruction` executed, and looks at them afterwards. Clobbers are the instruction's own. */
#define KEEPS(name, instruction, changed) \
    static bool name(char *at) { \
        static struct registers before, after; \
        for (unsigned long i = 0; i < 16; i++) \
            before.r[i] = 0x1111111111111111UL * i; \
        before.r[5] = (uint64_t)at; \
        __asm__ volatile("sub $128, %%rsp; push %%rbp; push %%rbx; lea %0, %%rax; push %%rax; lea %1, %%rax;" \
                         "mov 8(%%rax), %%rbx; mov 16(%%rax), %%rcx; mov 24(%%rax), %%rdx; mov 32(%%rax), %%rsi; mov 40(%%rax), %%rdi; mov 48(%%rax), %%rbp;" \
                         "mov 64(%%rax), %%r8; mov 72(%%rax), %%r9; mov 80(%%rax), %%r10; mov 88(%%rax), %%r11; mov 96(%%rax), %%r12; mov 104(%%rax), %%r13;" \
                         "mov 112(%%rax), %%r14; mov 120(%%rax), %%r15; mov (%%rax), %%rax; stc;" instruction ";" \
                         "push %%rax; mov 8(%%rsp), %%rax; pop (%%rax);" \
                         "mov %%rbx, 8(%%rax); mov %%rcx, 16(%%rax); mov %%rdx, 24(%%rax); mov %%rsi, 32(%%rax); mov %%rdi, 40(%%rax); mov %%rbp, 48(%%rax);" \
                         "mov %%r8, 64(%%rax); mov %%r9, 72(%%rax); mov %%r10, 80(%%rax); mov %%r11, 88(%%rax); mov %%r12, 96(%%rax); mov %%r13, 104(%%rax);" \
                         "mov %%r14, 112(%%rax); mov %%r15, 120(%%rax); setc %%bl; mov %%bl, 56(%%rax); pop %%rax; pop %%rbx; pop %%rbp; add $128, %%rsp" \
                         : "=m"(after) \
                         : "m"(before) \
                         : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc"); \
        before.r[7] = 1; \
        after.r[7] &= 1; \
        for (unsigned long i = 0; i < 16; i++) \
            if (!((changed) >> i & 1) && before.r[i] != after.r[i]) \
                return false; \
        return true; \
    }

KEEPS(stores, "movq $77, (%%rdi)", 0)
KEEPS(loads, "mov (%%rdi), %%r12", 1 << 12)
KEEPS(adds, "incb (%%rdi)", 0)
KEEPS(exchanges, "lock xadd %%r13, (%%rdi)", 1 << 13 | 1 << 7)
KEEPS(scaled, "mov $3, %%ecx; movb $5, -24(%%rdi,%%rcx,8)", 1 << 2)
KEEPS(vectors, "movdqu %%xmm0, 32(%%rdi)", 0)
KEEPS(string_stores, "mov $4096, %%ecx; mov $9, %%eax; rep stosb", 1 | 1 << 2 | 1 << 5)
KEEPS(string_copies, "mov %%rdi, %%rsi; add $8192, %%rsi; mov $4096, %%ecx; rep movsb", 1 << 2 | 1 << 4 | 1 << 5 | 1 << 7)
KEEPS(string_compares, "mov %%rdi, %%rsi; add $8192, %%rsi; mov $16, %%ecx; repe cmpsb", 1 << 2 | 1 << 4 | 1 << 5 | 1 << 7)
KEEPS(across_pages, "movq $1, 4092(%%rdi)", 0)
KEEPS(by_fs, "rdfsbase %%rax; mov %%rdi, %%rcx; sub %%rax, %%rcx; movb $3, %%fs:(%%rcx)", 1 | 1 << 2 | 1 << 7)
KEEPS(through_the_stack, "mov %%rsp, %%r15; lea 4096(%%rdi), %%rsp; push %%r14; pop %%r13; mov %%r15, %%rsp", 1 << 13 | 1 << 15 | 1 << 7)

static void each(const char *what, bool (*kind)(char *)) {
    unsigned long wrong = 0;
    region = fresh();
    for (unsigned long i = 0; i < COUNT; i++)
        wrong += !kind(region + i * STRIDE);
    munmap(region, REGION);
    printf("%s: %lu wrong\n", what, wrong);
}

/* Code that was just written, in pages that were just made executable. */
static void fetches(void) {
    unsigned long wrong = 0;
    region = fresh();
    for (unsigned long i = 0; i < COUNT; i++) {
        unsigned char *at = (unsigned char *)region + i * STRIDE + (i & 1 ? 4094 : 0);
        unsigned char code[] = {0xb8, i, i >> 8, 0, 0, 0xc3};
        memcpy(at, code, sizeof code);
        if (i % 50 == 49)
            mprotect(region + (i - 49) * STRIDE, 50 * STRIDE, PROT_READ | PROT_EXEC);
    }
    for (unsigned long i = 0; i < COUNT; i++)
        wrong += ((int (*)(void))(region + i * STRIDE + (i & 1 ? 4094 : 0)))() != (int)i;
    munmap(region, REGION);
    printf("fetches: %lu wrong\n", wrong);
}

/* Faults that are signals, between others that are not. */
static sigjmp_buf back;
static void *volatile told;
static volatile int told_code;
static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    told = info->si_addr;
    told_code = info->si_code;
    siglongjmp(back, 1);
}

static void signals(void) {
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    region = fresh();
    volatile unsigned long wrong = 0;
    for (volatile unsigned long i = 0; i < COUNT; i++) {
        char *volatile at = region + i * STRIDE;
        if (i % 2)
            munmap(at, PAGE);
        else
            mprotect(at, PAGE, PROT_READ);
        at[PAGE] = 1;
        if (!sigsetjmp(back, 1)) {
            at[123] = 1;
            wrong++;
        }
        wrong += told != at + 123 || told_code != (i % 2 ? SEGV_MAPERR : SEGV_ACCERR);
    }
    munmap(region, REGION);
    printf("signals: %lu wrong\n", wrong);
}

/* The stack grows by calls. */
static unsigned long deep(unsigned long depth) {
    volatile char frame[6000];
    frame[0] = (char)depth;
    return depth == 0 ? 0 : deep(depth - 1) + (frame[0] == (char)depth);
}

static void *grow(void *unused) {
    (void)unused;
    unsigned long depth = deep(1000);
    return (void *)depth;
}

int main(void) {
    scratch = fresh();
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    struct itimerval often = {{0, 200}, {0, 200}}, never = {{0, 0}, {0, 0}};
    for (int round = 0; round < 2; round++) {
        /* In the second round with signals. */
        setitimer(ITIMER_REAL, round ? &often : &never, NULL);
        each("stores", stores);
        each("loads", loads);
        each("adds", adds);
        each("exchanges", exchanges);
        each("scaled", scaled);
        each("vectors", vectors);
        each("string stores", string_stores);
        each("string copies", string_copies);
        each("string compares", string_compares);
        each("across pages", across_pages);
        if (round == 0) {
            /* Not where a signal needs the stack. */
            each("through the stack", through_the_stack);
            if (getauxval(AT_HWCAP2) & HWCAP2_FSGSBASE)
                each("by fs", by_fs);
            else
                printf("by fs: 0 wrong\n");
        }
        fetches();
        signals();
    }
    setitimer(ITIMER_REAL, &never, NULL);
    printf("signals came: %d\n", handled > 0);
    printf("deep: %lu\n", deep(1000));
    pthread_t thread;
    void *depth;
    pthread_create(&thread, NULL, grow, NULL);
    pthread_join(thread, &depth);
    printf("deep in a thread: %lu\n", (unsigned long)depth);
    return 0;
}
