/* Call sites that are called often may be replaced by jumps while the program runs. Nothing of that may show: registers, flags, the red
 * zone, signal contexts, the program's own changes of its text, jumps to every instruction, other programs' memory. */
#include "check.h"
#include <asm/prctl.h>
#include <elf.h>
#include <sys/auxv.h>
#include <ucontext.h>

#define OFTEN 3000

/* Sites by hand. `by_number` is "mov, syscall"; the others have instructions of several kinds behind the syscall. All of them return
 * rax, and store rcx and r11 as the call left them and the flags behind it. */
struct after {
    unsigned long rcx, r11, flags, red;
};
#define SITE(name, before, behind)                                                                                     \
    extern char name##_start[], name##_call[], name##_behind[], name##_end[];                                          \
    long name(struct after *after, long a, long b);                                                                    \
    asm(".text\n.balign 64\n" #name ":\n" #name "_start:\n"                                                            \
        "push %rbx\npush %rbp\nmov %rdi, %rbx\n"                                                                       \
        "mov $0x1234, %ebp\nmov %rbp, -64(%rsp)\nmov %rsi, %rdi\nmov %rdx, %rsi\n"                                     \
        "nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\n"                             \
        "nop\nnop\nnop\nnop\nnop\nnop\nnop\nnop\nstc\n" before "\n" #name "_call: syscall\n" #name "_behind:\n" behind \
        "\nmov %rcx, (%rbx)\nmov %r11, 8(%rbx)\n"                                                                      \
        "mov -64(%rsp), %rcx\nmov %rcx, 24(%rbx)\npushf\npop %rcx\nmov %rcx, 16(%rbx)\n"                               \
        "pop %rbp\npop %rbx\nret\n" #name "_end:\n")
#define IN(name, address) ((char *)(address) >= name##_start && (char *)(address) < name##_end)

SITE(by_number, "mov $39, %eax", "");
SITE(by_mov, "mov $39, %r10d\nmov %r10, %rax", "mov %rax, %rdx");
SITE(by_lea, "lea 39, %rax", "lea 1(%rax), %rdx\nlea -1(%rdx), %rax");
/* A jump over one byte that is no instruction here. */
SITE(by_branch, "push $39\npop %rax", "jnc 1f\njmp 2f\n1: ud2\n2:");
SITE(by_cmp, "push $39\npop %rax", "cmp $-4096, %rax");
SITE(any_number, "mov %rdi, %rax\nmov %rsi, %rdi", "movslq %eax, %rdx\nmov %rdx, %rax");

typedef long site(struct after *, long, long);
static struct {
    const char *name;
    site *call;
    char *behind;
} SITES[] = {
    {"by_number", by_number, by_number_behind}, {"by_mov", by_mov, by_mov_behind},
    {"by_lea", by_lea, by_lea_behind},          {"by_branch", by_branch, by_branch_behind},
    {"by_cmp", by_cmp, by_cmp_behind},
};
#define COUNT (int)(sizeof SITES / sizeof *SITES)

static bool registers_are_right(int which, long expected) {
    struct after after = {0};
    long result = SITES[which].call(&after, 0, 0);
    return result == expected && after.rcx == (unsigned long)SITES[which].behind && (after.r11 & 1) &&
           (after.flags & 1) && after.red == 0x1234;
}

static void registers(const char *when) {
    long pid = syscall(SYS_getpid);
    for (int which = 0; which < COUNT; which++) {
        int right = 0;
        for (int turn = 0; turn < OFTEN; turn++)
            right += registers_are_right(which, pid);
        printf("%s: %s right %s\n", when, SITES[which].name, right == OFTEN ? "always" : "not always");
    }
}

/* Signals in the middle of it. */
static volatile long strange, caught;
static void look(int number, siginfo_t *info, void *context) {
    extern char __executable_start[], etext[];
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    char *rip = (char *)registers[REG_RIP], *vdso = (char *)getauxval(AT_SYSINFO_EHDR);
    bool home = (rip >= __executable_start && rip < etext) || (rip >= vdso && rip < vdso + 0x4000);
    strange += !home;
    /* Behind a call its registers are those of a call. */
    for (int which = 0; which < COUNT; which++)
        if (rip == SITES[which].behind)
            strange += registers[REG_RCX] != (greg_t)rip;
    caught++;
    (void)number, (void)info;
}

static void *sender(void *to) {
    for (int i = 0; i < 400; i++) {
        pthread_kill(*(pthread_t *)to, SIGUSR1);
        for (volatile int j = 0; j < 100 + i % 37 * 997; j++)
            ;
    }
    return NULL;
}

static void signals(void) {
    struct sigaction action = {.sa_sigaction = look, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    pthread_t self = pthread_self(), other;
    long pid = syscall(SYS_getpid), wrong = 0;
    pthread_create(&other, NULL, sender, &self);
    for (int turn = 0; turn < 20000 || !caught; turn++)
        wrong += !registers_are_right(turn % COUNT, pid);
    pthread_join(other, NULL);
    printf("signals: %s, strange contexts %ld, wrong calls %ld\n", caught ? "some" : "none", strange, wrong);
}

/* The instructions behind a call and the call itself, reached without what comes before. */
static long jump_to(char *where, long rax) {
    struct after after = {0};
    long result;
    asm volatile("sub $256, %%rsp\npush %%rbx\npush %%rbp\npush %%r12\nlea 1f(%%rip), %%r12\n"
                 "mov %[after], %%rbx\npush %%r12\npush %%rbx\npush %%rbp\njmp *%[where]\n"
                 "1: pop %%r12\npop %%rbp\npop %%rbx\nadd $256, %%rsp\n"
                 : "=a"(result)
                 : "a"(rax), [where] "d"(where), [after] "S"(&after)
                 : "rcx", "r11", "rdi", "r8", "r9", "r10", "memory", "cc");
    return result;
}

static void jumps(void) {
    long right = 0, ppid = getppid();
    for (int turn = 0; turn < 200; turn++) {
        right += jump_to(by_mov_behind, turn) == turn;
        right += jump_to(by_lea_behind, turn) == turn;
        right += jump_to(by_number_behind, turn) == turn;
        right += jump_to(by_number_call, SYS_getppid) == ppid;
        right += jump_to(by_mov_call, SYS_getppid) == ppid;
    }
    printf("jumps: %ld right\n", right);
}

/* Steps through sites; the trace shows where. */
static unsigned char steps[64];
static volatile int stepped;
static char *stepping_from, *stepping_to;
static void step(int number, siginfo_t *info, void *context) {
    char *rip = (char *)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    if (rip >= stepping_from && rip < stepping_to && stepped < 64)
        steps[stepped++] = (unsigned char)(rip - stepping_from);
    (void)number, (void)info;
}

static void single_steps(const char *name, site *call, char *from, char *to) {
    struct sigaction action = {.sa_sigaction = step, .sa_flags = SA_SIGINFO};
    struct after after;
    sigaction(SIGTRAP, &action, NULL);
    stepping_from = from, stepping_to = to, stepped = 0;
    asm volatile("pushf\norl $0x100, (%%rsp)\npopf\n" ::: "cc", "memory");
    call(&after, 0, 0);
    asm volatile("pushf\nandl $~0x100, (%%rsp)\npopf\n" ::: "cc", "memory");
    printf("steps of %s:", name);
    for (int i = 0; i < stepped; i++)
        if (from + steps[i] > from + 40)
            printf(" %d", steps[i]);
    printf("\n");
}

static void in_child(const char *what, void (*body)(void)) {
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        body();
        fflush(stdout);
        _exit(0);
    }
    int status;
    waitpid(pid, &status, 0);
    show_status(what, status);
}

static void in_the_child(void) { registers("child"); }

/* GS is the program's. */
static long words[512];
static void uses_gs(void) {
    unsigned long base = 1;
    syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
    printf("gs is %lu at first\n", base);
    TRY(syscall(SYS_arch_prctl, ARCH_SET_GS, words));
    words[3] = 77;
    registers("gs");
    long value;
    asm volatile("movq %%gs:24, %0" : "=r"(value));
    syscall(SYS_arch_prctl, ARCH_GET_GS, &base);
    printf("gs is %s, and shows %ld\n", base == (unsigned long)words ? "the same" : "another", value);
}

static void writes_gs(unsigned long base) {
    if (getauxval(AT_HWCAP2) & 2)
        asm volatile("wrgsbase %0" ::"r"(base));
}
static void writes_gs_of_words(void) {
    writes_gs((unsigned long)words);
    registers("wrgsbase");
}
static void writes_gs_of_nothing(void) {
    writes_gs(0x10000);
    registers("wrgsbase of nothing");
}
static void writes_gs_of_looks(void) {
    /* Whatever stands there. */
    for (int i = 0; i < 512; i++)
        words[i] = 0x5ca1550e + (i & 1);
    writes_gs((unsigned long)words + 8);
    registers("wrgsbase of numbers");
}

static unsigned char before[6][128];
static char *const STARTS[] = {by_number_start, by_mov_start, by_lea_start, by_branch_start, by_cmp_start, any_number_start};
static void changes_text(void) {
    char *page = (char *)((unsigned long)by_number_start & ~4095ul);
    TRY(mprotect(page, 8192, PROT_READ | PROT_WRITE | PROT_EXEC));
    int same = 0;
    for (int i = 0; i < 6; i++)
        same += memcmp(before[i], STARTS[i], 128) == 0;
    printf("text: %d of 6 as it was\n", same);
    registers("writable");
    volatile char *number = (char *)((unsigned long)by_number_call - 4);
    *number = SYS_getppid;
    struct after after;
    int right = 0;
    for (int turn = 0; turn < 100; turn++)
        right += by_number(&after, 0, 0) == getppid();
    *number = SYS_getpid;
    printf("changed: right %d times\n", right);
    TRY(mprotect(page, 8192, PROT_READ | PROT_EXEC));
    registers("executable");
}

static void discards_text(void) {
    char *page = (char *)((unsigned long)by_number_start & ~4095ul);
    TRY(madvise(page, 8192, MADV_DONTNEED));
    registers("discarded");
}

/* Maps over everything near the program that the program does not have. */
static void maps_nearby(void) {
    extern char __executable_start[];
    char *low = (char *)0x20000, *high = (char *)((unsigned long)__executable_start - 0x1000);
    long size = high - low, sum = 0;
    if (size > 64l << 20) /* a position-independent program */
        low = high - (64l << 20), size = 64l << 20;
    char *all = mmap(low, (size_t)size, PROT_READ | PROT_WRITE, MAP_FIXED | MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    printf("mapped: %s\n", all == low ? "there" : "elsewhere");
    registers("mapped over");
    for (long at = 0; at < size; at += 4096)
        sum += all[at];
    printf("sum %ld\n", sum);
    TRY(munmap(all, (size_t)size));
    registers("unmapped");
}

static volatile long wrong_in_threads;
static void *hot(void *unused) {
    struct after after;
    for (int turn = 0; turn < OFTEN; turn++) {
        if (any_number(&after, SYS_gettid, 0) <= 0)
            __atomic_add_fetch(&wrong_in_threads, 1, __ATOMIC_RELAXED);
        if (after.rcx != (unsigned long)any_number_behind)
            __atomic_add_fetch(&wrong_in_threads, 1, __ATOMIC_RELAXED);
    }
    return unused;
}

static void threads(void) {
    pthread_t all[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&all[i], NULL, hot, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(all[i], NULL);
    printf("threads: %ld wrong\n", wrong_in_threads);
}

/* Calls that wait and are interrupted begin again at the site. */
static void interrupted_waits(void) {
    int ends[2];
    char byte = 0;
    long good = 0;
    TRY(pipe(ends));
    for (int turn = 0; turn < 500; turn++) {
        good += write(ends[1], &byte, 1) == 1;
        good += read(ends[0], &byte, 1) == 1;
    }
    struct sigaction action = {.sa_sigaction = look, .sa_flags = SA_SIGINFO | SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    pid_t pid = fork();
    if (pid == 0) {
        nap(120);
        _exit(write(ends[1], "!", 1) != 1);
    }
    struct itimerval often = {{0, 20000}, {0, 20000}}, never = {{0, 0}, {0, 0}};
    caught = strange = 0;
    setitimer(ITIMER_REAL, &often, NULL);
    good += read(ends[0], &byte, 1) == 1 && byte == '!';
    setitimer(ITIMER_REAL, &never, NULL);
    waitpid(pid, NULL, 0);
    printf("waits: %ld good, %s, strange %ld\n", good, caught ? "interrupted" : "not interrupted", strange);
}

/* Jumps to every byte of where its patched sites lead, and overwrites what it can reach: whatever becomes of it is its own affair, but it becomes
 * something. What happens depends on the host, so only that is printed. */
static void jump_astray(char *target) {
    close(2);
    alarm(2);
    jump_to(target, SYS_getpid);
    _exit(1);
}

static void hostile(void) {
    int ended = 0, tried = 0;
    for (int which = 0; which < COUNT; which++) {
        unsigned char *at = (unsigned char *)SITES[which].behind;
        int distance = 0;
        for (int back = 2; back <= 7; back++)
            if (at[-back] == 0xe9)
                memcpy(&distance, at - back + 1, 4), at = at - back + 5, back = 8;
        for (int offset = 0; offset < 80; offset += distance ? 1 : 40) {
            char *target = distance ? (char *)at + distance + offset : (char *)0x1000 + offset;
            pid_t pid = fork();
            if (pid == 0)
                jump_astray(target);
            tried++;
            ended += pid > 0 && waitpid(pid, NULL, 0) == pid;
        }
        pid_t pid = fork();
        if (pid == 0) {
            /* Where a trampoline may be, and where the call's registers may be kept. */
            mprotect((void *)((unsigned long)(at + distance) & ~4095ul), 4096, PROT_READ | PROT_WRITE | PROT_EXEC);
            munmap((void *)((unsigned long)(at + distance) & ~4095ul), distance ? 4096 : 0);
            alarm(2);
            for (volatile unsigned long *word = (void *)0x7fffffe00000;; word++)
                *word = (unsigned long)word * 0x9e3779b97f4a7c15, syscall(SYS_getpid);
        }
        tried++;
        ended += pid > 0 && waitpid(pid, NULL, 0) == pid;
    }
    printf("hostile: %s\n", ended == tried ? "every one came to an end" : "not every one came to an end");
}

/* Nothing of it is in the list of mappings. */
static int mappings(void) {
    char line[512];
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (fgets(line, sizeof line, maps))
        count++;
    fclose(maps);
    return count;
}

int main(int argc, char **argv) {
    for (int i = 0; i < 6; i++)
        memcpy(before[i], STARTS[i], 128);
    if (argc > 1) {
        registers("executed");
        return 0;
    }
    mappings();
    int mapped = mappings();
    registers("first");
    registers("again");
    printf("mappings: %s\n", mappings() == mapped ? "as before" : "other");
    threads();
    signals();
    jumps();
    single_steps("by_number", by_number, by_number_start, by_number_end);
    single_steps("by_mov", by_mov, by_mov_start, by_mov_end);
    interrupted_waits();
    in_child("forked", in_the_child);
    in_child("gs", uses_gs);
    in_child("wrgsbase", writes_gs_of_words);
    in_child("wrgsbase of nothing", writes_gs_of_nothing);
    in_child("wrgsbase of numbers", writes_gs_of_looks);
    in_child("text", changes_text);
    in_child("discarded", discards_text);
    in_child("mapped", maps_nearby);
    hostile();
    registers("at last");
    fflush(stdout);
    pid_t pid = fork();
    if (pid == 0) {
        execl("/proc/self/exe", argv[0], "again", NULL);
        _exit(9);
    }
    int status;
    waitpid(pid, &status, 0);
    show_status("executed", status);
    changes_text();
    return 0;
}
