/* Threads that wake each other and wait in their turn, thousands of times, and what must not get mixed up or lost when they take the
 * processor from one another: registers, vectors, rounding, thread-local storage, signals, processor time, exits. */
#include "check.h"
#include <linux/futex.h>

#define ROUNDS 2000

static int turn;
static _Thread_local long own;
static volatile int wrong;

/* The rounding mode of vector arithmetic. */
static void set_rounding(unsigned mode) {
    unsigned word = 0x1f80 | mode << 13;
    __asm__ volatile("ldmxcsr %0" ::"m"(word));
}

static unsigned rounding(void) {
    unsigned word;
    __asm__ volatile("stmxcsr %0" : "=m"(word));
    return word >> 13 & 3;
}

static long futex(int *word, int op, int value) { return syscall(SYS_futex, word, op | FUTEX_PRIVATE_FLAG, value, NULL, NULL, 0); }

static int now_of(int *word) { return __atomic_load_n(word, __ATOMIC_SEQ_CST); }

/* Hands over to `next` and waits for its own number to come up. */
static void hand_over(int me, int next) {
    __atomic_store_n(&turn, next, __ATOMIC_SEQ_CST);
    futex(&turn, FUTEX_WAKE, INT_MAX);
    for (int seen; (seen = now_of(&turn)) != me;)
        futex(&turn, FUTEX_WAIT, seen);
}

static void await(int me) {
    for (int seen; (seen = now_of(&turn)) != me;)
        futex(&turn, FUTEX_WAIT, seen);
}

/* Values in every general register that a call keeps, in vector registers, in MXCSR and behind FS, around a hand-over. */
static void keep(int me, int next, long round) {
    unsigned long pattern = 0x0101010101010101ul * (unsigned long)(me + 1) + (unsigned long)round;
    unsigned long out[6];
    set_rounding(me % 3 + 1u);
    own = (long)pattern;
    __atomic_store_n(&turn, next, __ATOMIC_SEQ_CST);
    futex(&turn, FUTEX_WAKE, INT_MAX);
    register long r10 __asm__("r10") = 0;
    register long r8 __asm__("r8") = 0x88;
    register long r9 __asm__("r9") = 0x99;
    long result = SYS_futex, di = (long)&turn, si = FUTEX_WAIT | FUTEX_PRIVATE_FLAG, dx = next;
    unsigned long vector[2];
    __asm__ volatile(
        "movq %[pattern], %%xmm15\n\tmovq %[pattern], %%xmm0\n\t"
        "mov %[pattern], %%rbx\n\tmov %[pattern], %%r12\n\tmov %[pattern], %%r13\n\tmov %[pattern], %%r14\n\t"
        "std\n\tsyscall\n\tcld\n\t"
        "mov %%rbx, %[b]\n\t"
        "movq %%xmm15, %[x]\n\tmovq %%xmm0, %[y]\n\t"
        "mov %%r12, %[c]\n\tmov %%r13, %[d]\n\tmov %%r14, %[e]\n\t"
        : "+a"(result), "+D"(di), "+S"(si), "+d"(dx), "+r"(r10), "+r"(r8), "+r"(r9), [b] "=m"(out[0]), [c] "=m"(out[1]),
          [d] "=m"(out[2]), [e] "=m"(out[3]), [x] "=m"(vector[0]), [y] "=m"(vector[1])
        : [pattern] "r"(pattern)
        : "rbx", "rcx", "r11", "r12", "r13", "r14", "xmm0", "xmm15", "memory", "cc");
    for (int i = 0; i < 4; i++)
        wrong += out[i] != pattern;
    wrong += vector[0] != pattern || vector[1] != pattern || own != (long)pattern;
    wrong += r8 != 0x88 || r9 != 0x99 || di != (long)&turn || dx != next;
    wrong += rounding() != me % 3 + 1u;
    set_rounding(0);
    await(me);
}

struct player {
    int me, next;
    void (*step)(int me, int next, long round);
};

static void simple(int me, int next, long round) {
    (void)round;
    hand_over(me, next);
}

/* Things that only a thread's own kernel side can do, in the middle of it. */
static void busy(int me, int next, long round) {
    if (round % 16 == me) {
        char *page = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        page[round % 256 * 4096] = 1;
        munmap(page, 1 << 20);
    }
    if (round % 64 == me) {
        pid_t child = fork();
        if (child == 0)
            _exit(7);
        int status = 0;
        waitpid(child, &status, 0);
        wrong += !WIFEXITED(status) || WEXITSTATUS(status) != 7;
    }
    hand_over(me, next);
}

/* Wakes the other one and then computes until that one has run: nobody may count on the waker's waiting. */
static int answered;
static void selfish(int me, int next, long round) {
    if (round % 8 < 6) {
        hand_over(me, next);
        return;
    }
    int before = now_of(&answered);
    if (me == 0) {
        __atomic_store_n(&turn, next, __ATOMIC_SEQ_CST);
        futex(&turn, FUTEX_WAKE, INT_MAX);
        while (now_of(&answered) == before)
            ;
        await(me);
    } else {
        __atomic_add_fetch(&answered, 1, __ATOMIC_SEQ_CST);
        hand_over(me, next);
    }
}

static void *play(void *arg) {
    struct player *player = arg;
    await(player->me);
    for (long round = 0; round < ROUNDS; round++)
        player->step(player->me, player->next, round);
    /* Lets the next one come to its end. */
    __atomic_store_n(&turn, player->next, __ATOMIC_SEQ_CST);
    futex(&turn, FUTEX_WAKE, INT_MAX);
    return NULL;
}

static void game(const char *name, int players, void (*step)(int, int, long)) {
    pthread_t threads[8];
    struct player all[8];
    wrong = 0;
    __atomic_store_n(&turn, 0, __ATOMIC_SEQ_CST);
    for (int i = 0; i < players; i++) {
        all[i] = (struct player){i, (i + 1) % players, step};
        pthread_create(&threads[i], NULL, play, &all[i]);
    }
    for (int i = 0; i < players; i++)
        pthread_join(threads[i], NULL);
    printf("%s, %d threads: %d wrong\n", name, players, wrong);
}

static volatile int signals;
static void count(int signal) {
    (void)signal;
    __atomic_add_fetch(&signals, 1, __ATOMIC_SEQ_CST);
}

static pthread_t targets[2];
static volatile int stop;
static void *shoot(void *unused) {
    for (int i = 0; !stop; i++) {
        pthread_kill(targets[i % 2], SIGUSR1);
        usleep(100);
    }
    return unused;
}

static void under_signals(int flags) {
    struct sigaction action = {.sa_handler = count, .sa_flags = flags};
    sigaction(SIGUSR1, &action, NULL);
    signals = 0, stop = 0, wrong = 0, turn = 0;
    struct player all[2] = {{0, 1, keep}, {1, 0, keep}};
    pthread_t shooter;
    for (int i = 0; i < 2; i++)
        pthread_create(&targets[i], NULL, play, &all[i]);
    pthread_create(&shooter, NULL, shoot, NULL);
    for (int i = 0; i < 2; i++)
        pthread_join(targets[i], NULL);
    stop = 1;
    pthread_join(shooter, NULL);
    printf("under signals %#x: %d wrong, signals came: %d\n", flags, wrong, signals > 0);
}

/* Whoever computes is charged for it. */
static double used(clockid_t clock) {
    struct timespec at;
    clock_gettime(clock, &at);
    return at.tv_sec + at.tv_nsec / 1e9;
}

static double times[2];
static void works(int me, int next, long round) {
    if (me == 1)
        for (volatile int i = 0; i < 60000; i++)
            ;
    hand_over(me, next);
    if (round == ROUNDS - 1)
        times[me] = used(CLOCK_THREAD_CPUTIME_ID);
}

/* The process ends while its threads take turns. */
static void *for_ever(void *arg) {
    struct player *player = arg;
    for (;;)
        hand_over(player->me, player->next);
    return NULL;
}

static void not_at_all(void) { pause(); }

static void ends(const char *how, void (*end)(void)) {
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_t threads[2];
        struct player all[2] = {{0, 1, simple}, {1, 0, simple}};
        for (int i = 0; i < 2; i++)
            pthread_create(&threads[i], NULL, for_ever, &all[i]);
        nap(30);
        end();
    }
    if (end == not_at_all) {
        nap(60);
        kill(child, SIGKILL);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFEXITED(status))
        printf("%s: exit %d\n", how, WEXITSTATUS(status));
    else
        printf("%s: signal %d\n", how, WTERMSIG(status));
}

static void by_exit(void) { exit(9); }
static void by_fault(void) { *(volatile int *)8 = 1; }
static void by_exec(void) { execl("/proc/self/exe", "self", "after", NULL); }

/* A stopped process does not go on; one that is continued does. */
static void stops(void) {
    long *rounds = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_t other;
        struct player second = {1, 0, simple};
        pthread_create(&other, NULL, for_ever, &second);
        for (;; ++*(volatile long *)rounds)
            hand_over(0, 1);
    }
    int status;
    nap(30);
    kill(child, SIGSTOP);
    waitpid(child, &status, WUNTRACED);
    long then = *(volatile long *)rounds;
    nap(30);
    printf("stopped: %d, goes on: %d", WIFSTOPPED(status), *(volatile long *)rounds != then);
    kill(child, SIGCONT);
    nap(50);
    printf(", continued: %d\n", *(volatile long *)rounds != then);
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
}

int main(int argc, char **argv) {
    (void)argv;
    if (argc > 1)
        return 44;
    game("simple", 2, simple);
    game("registers", 2, keep);
    game("simple", 3, simple);
    game("registers", 4, keep);
    game("busy", 2, busy);
    game("selfish", 2, selfish);
    under_signals(0);
    under_signals(SA_RESTART);
    game("work", 2, works);
    printf("who computes is charged: %d\n", times[1] > 1.5 * times[0]);
    for (int i = 0; i < 5; i++) {
        ends("exit", by_exit);
        ends("fault", by_fault);
        ends("exec", by_exec);
        ends("kill", not_at_all);
    }
    stops();
    return 0;
}
