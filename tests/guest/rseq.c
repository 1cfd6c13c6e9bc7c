/* Restartable sequences: registration, aborts by signals and by other threads, and that all who say where a thread runs agree.
 * The first run only starts the second, in which the C library leaves rseq to the program. */
#include "check.h"
#include <sys/auxv.h>

#define SIGNATURE 0x53053053u
#define UNREGISTER 1

struct area {
    volatile uint32_t cpu_id_start, cpu_id;
    volatile uint64_t section;
    volatile uint32_t flags, node_id, mm_cid;
    char rest[4];
} __attribute__((aligned(32)));

struct section {
    uint32_t version, flags;
    uint64_t start, length, abort;
} __attribute__((aligned(32)));

static __thread struct area mine;

static long rseq(void *area, unsigned len, int flags, unsigned signature) {
    return syscall(SYS_rseq, area, len, flags, signature);
}

static void registration(void) {
    static struct area other;
    printf("before: cpu_id %d\n", mine.cpu_id);
    mine.section = 99;
    TRY(rseq(&mine, 31, 0, SIGNATURE));
    TRY(rseq((char *)&mine + 16, 32, 0, SIGNATURE));
    TRY(rseq(&mine, 32, 2, SIGNATURE));
    TRY(rseq(&mine, 32, 3, SIGNATURE));
    TRY(rseq((void *)(1ul << 63), 32, 0, SIGNATURE));
    TRY(rseq(&mine, 32, UNREGISTER, SIGNATURE));
    TRY(rseq(&mine, 32, 0, SIGNATURE));
    printf("old section %lu, cpu %s, flags %u, node %u\n", mine.section,
           mine.cpu_id == mine.cpu_id_start ? "consistent" : "not consistent", mine.flags, mine.node_id);
    TRY(rseq(&mine, 32, 0, SIGNATURE));
    TRY(rseq(&mine, 32, 0, SIGNATURE + 1));
    TRY(rseq(&mine, 64, 0, SIGNATURE));
    TRY(rseq(&other, 32, 0, SIGNATURE));
    TRY(rseq(&mine, 64, UNREGISTER, SIGNATURE));
    TRY(rseq(&other, 32, UNREGISTER, SIGNATURE));
    TRY(rseq(NULL, 32, UNREGISTER, SIGNATURE));
    TRY(rseq(&mine, 32, UNREGISTER, SIGNATURE + 1));
    TRY(rseq(&mine, 32, UNREGISTER, SIGNATURE));
    printf("after: start %u, cpu_id %d, mm_cid %u\n", mine.cpu_id_start, (int)mine.cpu_id, mine.mm_cid);
    TRY(rseq(&mine, 32, UNREGISTER, SIGNATURE));
    /* Longer than anything the kernel knows. */
    TRY(rseq(&mine, 4096, 0, SIGNATURE));
    TRY(rseq(&mine, 4096, UNREGISTER, SIGNATURE));
    printf("in the auxiliary vector: size %s, alignment %lu\n", getauxval(27) >= 28 ? "known" : "unknown",
           getauxval(28));
}

static void agreement(void) {
    cpu_set_t all;
    CPU_ZERO(&all);
    TRY(rseq(&mine, 32, 0, SIGNATURE));
    TRY_OK(sched_getaffinity(0, sizeof all, &all));
    for (int cpu = 0; cpu < CPU_SETSIZE; cpu++) {
        if (!CPU_ISSET(cpu, &all))
            continue;
        cpu_set_t one;
        CPU_ZERO(&one);
        CPU_SET(cpu, &one);
        if (sched_setaffinity(0, sizeof one, &one))
            printf("cannot bind to processor %d\n", cpu);
        unsigned by_call = -1, node = -1;
        syscall(SYS_getcpu, &by_call, &node, NULL);
        char text[4096] = "", *field = text;
        int fd = open("/proc/self/stat", O_RDONLY);
        if (read(fd, text, sizeof text - 1) <= 0)
            printf("no stat\n");
        close(fd);
        field = strrchr(text, ')');
        for (int n = 2; field && n < 39; n++)
            field = strchr(field + 1, ' ');
        if ((int)mine.cpu_id != cpu || (int)mine.cpu_id_start != cpu || (int)by_call != cpu || sched_getcpu() != cpu ||
            !field || atoi(field + 1) != cpu)
            printf("bound to %d: rseq %d, getcpu %u, sched_getcpu %d, stat%.4s\n", cpu, mine.cpu_id, by_call, sched_getcpu(),
                   field ? field : "?");
    }
    cpu_set_t none;
    CPU_ZERO(&none);
    TRY(sched_setaffinity(0, sizeof none, &none));
    TRY(sched_setaffinity(0, sizeof all, &all));
    TRY(rseq(&mine, 32, UNREGISTER, SIGNATURE));
}

/* Runs a critical section that lasts until it is aborted. Its descriptor is made on the spot, with what is wrong with it. */
static struct section made;
enum wrong { NOTHING, WITH_VERSION, WITH_FLAGS, ABORT_INSIDE, BAD_SIGNATURE, BAD_POINTER };

static void spin_until_aborted(enum wrong wrong) {
    uint64_t start, end, abort;
    __asm__ volatile("lea 1f(%%rip), %0\n\tlea 2f(%%rip), %1\n\tlea 4f(%%rip), %2\n\tjmp 5f\n"
                     "1:\n\tpause\n\tjmp 1b\n2:\n\tjmp 5f\n"
                     ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n4:\n\tjmp 6f\n5:\n\t"
                     "mov %0, 8(%3)\n\tsub %0, %1\n\tmov %1, 16(%3)\n\tmov %2, 24(%3)\n\t"
                     "cmpl $3, %4\n\tjne 7f\n\tmov %0, 24(%3)\n7:\n\t"
                     "cmpl $4, %4\n\tjne 8f\n\tincq 24(%3)\n8:\n\t"
                     "mov %5, (%6)\n\tjmp 1b\n6:\n"
                     : "=&r"(start), "=&r"(end), "=&r"(abort)
                     : "r"(&made), "r"(wrong), "r"(wrong == BAD_POINTER ? (void *)8 : (void *)&made), "r"(&mine.section)
                     : "memory", "cc");
}

static volatile sig_atomic_t handled;
static void on_alarm(int signal) { handled = signal; }

static void alarm_soon(void) {
    struct itimerval soon = {{0, 0}, {0, 20000}};
    setitimer(ITIMER_REAL, &soon, NULL);
}

static void aborted_by_signal(void) {
    signal(SIGALRM, on_alarm);
    TRY(rseq(&mine, 32, 0, SIGNATURE));
    alarm_soon();
    spin_until_aborted(NOTHING);
    /* By the signal, or before it by another process. */
    printf("aborted, section %lu\n", mine.section);
    while (!handled)
        nap(1);
    static const char *const names[] = {"", "version", "flags", "abort handler inside", "signature", "pointer"};
    for (int wrong = WITH_VERSION; wrong <= BAD_POINTER; wrong++) {
        IN_CHILD(names[wrong]) {
            made.version = wrong == WITH_VERSION;
            made.flags = wrong == WITH_FLAGS;
            alarm_soon();
            spin_until_aborted(wrong);
            printf("not reached\n");
        }
    }
    IN_CHILD("a forked child is registered") {
        TRY(rseq(&mine, 32, 0, SIGNATURE));
        fflush(stdout);
    }
    TRY(rseq(&mine, 32, UNREGISTER, SIGNATURE));
}

/* One counter per processor, raised by more threads than there are processors without any lock. */
static struct {
    volatile long value;
    char rest[56];
} counters[1024];

static bool raise_counter(long *done) {
    static const struct section *section;
    __asm__ volatile goto(".pushsection .data.rel.local, \"aw\"\n\t.balign 32\n3:\n\t.long 0, 0\n\t"
                          ".quad 1f, 2f - 1f, 4f\n\t.popsection\n\t"
                          "lea 3b(%%rip), %%rax\n\tmov %%rax, %0\n"
                          "1:\n\tmov %1, %%eax\n\tshl $6, %%rax\n\tadd %2, %%rax\n\t"
                          "mov (%%rax), %%rcx\n\tinc %%rcx\n\t"
                          /* Long enough to be interrupted now and then. */
                          "mov $2000, %%edx\n9:\n\tdec %%edx\n\tjnz 9b\n\t"
                          "mov %%rcx, (%%rax)\n2:\n\tjmp %l[out]\n\t"
                          ".byte 0x0f, 0xb9, 0x3d\n.long 0x53053053\n4:\n\tjmp %l[aborted]\n"
                          :
                          : "m"(mine.section), "m"(mine.cpu_id), "r"(counters)
                          : "rax", "rcx", "rdx", "memory", "cc"
                          : aborted, out);
out:
    (void)section;
    ++*done;
    return true;
aborted:
    return false;
}

enum { THREADS = 7, ROUNDS = 20000 };
static volatile long stop_at;

static void *raise_counters(void *calls) {
    long done = 0, aborts = 0;
    if (mine.cpu_id || rseq(&mine, 32, 0, SIGNATURE))
        printf("a new thread is registered\n");
    while (done < ROUNDS) {
        if (!raise_counter(&done))
            aborts++;
        if (calls && done % 64 == 0)
            syscall(SYS_getppid);
    }
    rseq(&mine, 32, UNREGISTER, SIGNATURE);
    return (void *)aborts;
}

static void many_threads(void) {
    pthread_t threads[THREADS];
    for (int n = 0; n < THREADS; n++)
        pthread_create(&threads[n], NULL, raise_counters, n % 3 == 0 ? &threads : NULL);
    for (int n = 0; n < THREADS; n++)
        pthread_join(threads[n], NULL);
    long sum = 0;
    for (size_t n = 0; n < sizeof counters / sizeof *counters; n++)
        sum += counters[n].value;
    printf("%d threads counted to %ld\n", THREADS, sum);
}

static volatile bool in_section, restarted;

static void *stay_in_section(void *unused) {
    rseq(&mine, 32, 0, SIGNATURE);
    in_section = true;
    spin_until_aborted(NOTHING);
    restarted = true;
    rseq(&mine, 32, UNREGISTER, SIGNATURE);
    return unused;
}

static void barrier(void) {
    enum { PRIVATE_EXPEDITED_RSEQ = 128, REGISTER_PRIVATE_EXPEDITED_RSEQ = 256 };
    pthread_t thread;
    memset(&made, 0, sizeof made);
    TRY(syscall(SYS_membarrier, PRIVATE_EXPEDITED_RSEQ, 0, 0));
    TRY(syscall(SYS_membarrier, REGISTER_PRIVATE_EXPEDITED_RSEQ, 0, 0));
    pthread_create(&thread, NULL, stay_in_section, NULL);
    while (!in_section)
        nap(1);
    long calls = 0;
    for (; !restarted && calls < 5000; calls++) {
        syscall(SYS_membarrier, PRIVATE_EXPEDITED_RSEQ, 0, 0);
        nap(1);
    }
    printf("a barrier restarts sections: %s\n", restarted ? "yes" : "no");
    pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    if (argc < 2) {
        setenv("GLIBC_TUNABLES", "glibc.pthread.rseq=0", 1);
        execl("/proc/self/exe", argv[0], "without the C library's", NULL);
        return 1;
    }
    setvbuf(stdout, NULL, _IONBF, 0);
    registration();
    agreement();
    aborted_by_signal();
    many_threads();
    barrier();
    return 0;
}
