/* Touching memory that may not be there. */
#ifndef PROBE_H
#define PROBE_H
#include "check.h"
#include <setjmp.h>

#define PAGE 4096UL
#define PRIVATE (MAP_PRIVATE | MAP_ANONYMOUS)
#define SHARED (MAP_SHARED | MAP_ANONYMOUS)
#define RW (PROT_READ | PROT_WRITE)

static sigjmp_buf probe_back;
static volatile int probe_signal, probe_code;
static void *volatile probe_address;

static void probe_handler(int signal, siginfo_t *info, void *context) {
    (void)context;
    probe_signal = signal;
    probe_code = info->si_code;
    probe_address = info->si_addr;
    siglongjmp(probe_back, 1);
}

/* Reads or writes a byte and prints what happened. */
static inline void probe(const char *what, volatile char *at, bool write) {
    struct sigaction action = {.sa_sigaction = probe_handler, .sa_flags = SA_SIGINFO | SA_NODEFER}, old[2];
    sigaction(SIGSEGV, &action, &old[0]);
    sigaction(SIGBUS, &action, &old[1]);
    if (sigsetjmp(probe_back, 1)) {
        printf("%s: %s, code %d, %s\n", what, sigabbrev_np(probe_signal), probe_code,
               probe_address == (void *)at ? "there" : "elsewhere");
    } else {
        if (write)
            *at = 1;
        else
            (void)*at;
        printf("%s: fine\n", what);
    }
    sigaction(SIGSEGV, &old[0], NULL);
    sigaction(SIGBUS, &old[1], NULL);
}

#define LOAD(address) probe("load " #address, (char *)(address), false)
#define STORE(address) probe("store " #address, (char *)(address), true)

static inline char *map_pages(unsigned long pages, int protection, int flags) {
    char *at = mmap(NULL, pages * PAGE, protection, flags, -1, 0);
    if (at == MAP_FAILED) {
        printf("cannot map %lu pages: %s\n", pages, strerrorname_np(errno));
        exit(1);
    }
    return at;
}

/* Pages with a hole at `at`, which no other mapping gets as long as everything else is mapped by `map_pages`. */
static inline void make_hole(char *at) {
    munmap(at, PAGE);
}
#endif
