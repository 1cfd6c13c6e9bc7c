/* Memory of some MiB that is walked through, so that it may be mapped by huge pages, and then unmapped, protected, given up, moved and forked whole
   and in parts, in several processes, while other threads read and write all over it. No page may ever show what was written elsewhere. */
#include "probe.h"

#define BLOCK 512UL
#define BLOCKS 4UL
#define PAGES (BLOCK * BLOCKS)
#define STEPS 60
#define ROUNDS 4

static uint64_t seed;
static unsigned long below(unsigned long limit) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (seed >> 33) % limit;
}

static volatile char *base;
static uint64_t process;
static _Atomic bool done;
static _Thread_local sigjmp_buf back;

/* What is written to a page: nothing else but 0 may be read there. */
static uint64_t tag(unsigned long page) {
    return process << 32 | 0x1000000 | page;
}

static volatile uint64_t *word(unsigned long page) {
    return (volatile uint64_t *)(base + page * PAGE + page % 500 * 8);
}

static void handler(int signal) {
    (void)signal;
    siglongjmp(back, 1);
}

static bool is_wrong(unsigned long page) {
    uint64_t found = *word(page);
    return found != 0 && found != tag(page);
}

static void *visit(void *number) {
    volatile uint64_t random = 99 + (uintptr_t)number;
    volatile long wrong = 0;
    while (!done) {
        random = random * 6364136223846793005ULL + 1442695040888963407ULL;
        unsigned long page = (random >> 33) % PAGES;
        if (sigsetjmp(back, 0))
            continue;
        wrong += is_wrong(page);
        if (random >> 32 & 1)
            *word(page) = tag(page);
    }
    return (void *)wrong;
}

/* Writes pages in turn, as far as they may be written. */
static void walk(unsigned long from, unsigned long to) {
    volatile unsigned long page = from;
    if (sigsetjmp(back, 0))
        page++;
    for (; page < to; page++)
        *word(page) = tag(page);
}

static int check_all(void) {
    volatile int wrong = 0;
    volatile unsigned long page = 0;
    if (sigsetjmp(back, 0))
        page++;
    for (; page < PAGES; page++)
        wrong += is_wrong(page);
    return wrong;
}

static int step(void) {
    unsigned long at = below(2) ? below(BLOCKS) * BLOCK : below(PAGES);
    unsigned long count = below(2) ? BLOCK * (1 + below(2)) : 1 + below(40);
    if (at + count > PAGES)
        count = PAGES - at;
    char *start = (char *)base + at * PAGE;
    size_t len = count * PAGE;
    int wrong = 0;
    switch (below(9)) {
    case 0:
        munmap(start, len);
        /* fall through */
    case 1:
        wrong += mmap(start, len, RW, PRIVATE | MAP_FIXED, -1, 0) != start;
        madvise(start, len, MADV_HUGEPAGE);
        break;
    case 2:
        mprotect(start, len, PROT_READ);
        break;
    case 3:
        mprotect(start, len, RW);
        break;
    case 4:
        madvise(start, len, MADV_DONTNEED);
        break;
    case 5: {
        /* Somewhere else and back: the pages keep their places. */
        char *away = mmap(NULL, len, RW, PRIVATE, -1, 0);
        if (mremap(start, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, away) == away) {
            wrong += mremap(away, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, start) != start;
        } else {
            munmap(away, len);
        }
        break;
    }
    case 6: {
        pid_t child = fork();
        if (child == 0) {
            wrong += check_all();
            walk(at, at + count);
            _exit(wrong + check_all() ? 1 : 0);
        }
        walk(below(PAGES), PAGES);
        int status = -1;
        waitpid(child, &status, 0);
        wrong += status != 0;
        break;
    }
    default:
        walk(at - at % BLOCK, at + count);
    }
    return wrong;
}

/* In a place of its own each time: what was mapped by small pages once may stay so. */
static int run(void) {
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    sigaction(SIGSEGV, &action, NULL);
    char *room = map_pages(PAGES + BLOCK, PROT_NONE, PRIVATE);
    base = room + (-(uintptr_t)room & (BLOCK * PAGE - 1));
    mmap((char *)base, PAGES * PAGE, RW, PRIVATE | MAP_FIXED, -1, 0);
    madvise((char *)base, PAGES * PAGE, MADV_HUGEPAGE);
    done = false;
    pthread_t threads[2];
    for (uintptr_t i = 0; i < 2; i++)
        pthread_create(&threads[i], NULL, visit, (void *)i);
    int wrong = 0;
    for (int i = 0; i < STEPS; i++) {
        wrong += step();
        if (i % 10 == 0)
            wrong += check_all();
    }
    done = true;
    for (int i = 0; i < 2; i++) {
        void *seen;
        pthread_join(threads[i], &seen);
        wrong += seen != 0;
    }
    return wrong + check_all();
}

int main(void) {
    for (process = 1; process <= 2; process++) {
        if (fork() == 0) {
            seed = 4711 * process;
            int wrong = 0;
            for (int i = 0; i < ROUNDS; i++)
                wrong += run();
            _exit(wrong ? 1 : 0);
        }
    }
    for (int i = 0; i < 2; i++) {
        int status;
        wait(&status);
        show_status("process", status);
    }
    return 0;
}
