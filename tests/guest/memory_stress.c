/* Random mapping calls in several processes and threads against a model of what each page must hold. */
#include "probe.h"

#define PAGES 400
#define STEPS 600

static uint64_t seed;
static unsigned below(unsigned limit) {
    seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
    return (unsigned)(seed >> 33) % limit;
}

/* What a page holds: 0 not mapped, else its byte plus 1; and whether it may be written. */
static int holds[PAGES];
static bool writable[PAGES];
static char *base;

static int check_all(void) {
    int wrong = 0;
    for (int i = 0; i < PAGES; i++)
        if (holds[i])
            wrong += (unsigned char)base[i * PAGE + 8] != holds[i] - 1;
    return wrong;
}

static int step(int depth) {
    unsigned at = below(PAGES), count = 1 + below(below(8) ? 12 : 150), wrong = 0;
    if (at + count > PAGES)
        count = PAGES - at;
    char *start = base + at * PAGE;
    switch (below(depth ? 11 : 12)) {
    case 0:
        wrong = mmap(start, count * PAGE, RW, PRIVATE | MAP_FIXED, -1, 0) != start;
        for (unsigned i = at; i < at + count; i++)
            holds[i] = 1, writable[i] = true;
        break;
    case 1:
        wrong = munmap(start, count * PAGE) != 0;
        for (unsigned i = at; i < at + count; i++)
            holds[i] = 0;
        break;
    case 2: {
        bool write = below(2);
        mprotect(start, count * PAGE, write ? RW : PROT_READ);
        for (unsigned i = at; i < at + count && holds[i]; i++)
            writable[i] = write;
        break;
    }
    case 3:
        madvise(start, count * PAGE, MADV_DONTNEED);
        for (unsigned i = at; i < at + count; i++)
            holds[i] = holds[i] ? 1 : 0;
        break;
    case 4: {
        unsigned to = below(PAGES - count + 1);
        bool whole = true;
        for (unsigned i = at; i < at + count; i++)
            whole = whole && holds[i] && writable[i] == writable[at];
        if (!whole || (to < at + count && at < to + count))
            break;
        void *moved = mremap(start, count * PAGE, count * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, base + to * PAGE);
        if (moved == MAP_FAILED && errno == EFAULT) {
            /* Several mappings, which older kernels do not move together. The target may be gone: make it so. */
            munmap(base + to * PAGE, count * PAGE);
            for (unsigned i = 0; i < count; i++)
                holds[to + i] = 0;
            break;
        }
        wrong = moved != base + to * PAGE;
        for (unsigned i = 0; i < count; i++) {
            holds[to + i] = holds[at + i], writable[to + i] = writable[at + i];
            holds[at + i] = 0;
        }
        break;
    }
    case 11: {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) {
            int bad = check_all();
            for (int i = 0; i < 60; i++)
                bad += step(1);
            _exit(bad + check_all() ? 1 : 0);
        }
        for (int i = 0; i < 20; i++)
            wrong += step(1);
        int status = -1;
        waitpid(child, &status, 0);
        wrong += status != 0;
        break;
    }
    default:
        for (unsigned i = at; i < at + count; i++) {
            if (holds[i] && writable[i]) {
                int value = below(255);
                base[i * PAGE + 8] = (char)value;
                holds[i] = value + 1;
            } else if (holds[i]) {
                wrong += (unsigned char)base[i * PAGE + 8] != holds[i] - 1;
            }
        }
    }
    return (int)wrong;
}

static void *churn(void *unused) {
    long wrong = 0;
    for (int i = 0; i < 300; i++) {
        char *own = mmap(NULL, 40 * PAGE, RW, PRIVATE, -1, 0);
        for (int page = i % 7; page < 40; page += 7)
            own[page * PAGE] = (char)i;
        mprotect(own, 20 * PAGE, PROT_READ);
        for (int page = 0; page < 40; page++)
            wrong += own[page * PAGE] != (page % 7 == i % 7 ? (char)i : 0);
        munmap(own, 40 * PAGE);
    }
    (void)unused;
    return (void *)wrong;
}

int main(void) {
    for (int process = 0; process < 3; process++) {
        if (fork())
            continue;
        seed = 77 + (uint64_t)process;
        base = mmap(NULL, PAGES * PAGE, PROT_NONE, PRIVATE, -1, 0);
        munmap(base, PAGES * PAGE);
        int wrong = 0;
        for (int i = 0; i < STEPS; i++) {
            wrong += step(0);
            if (i % 50 == 0)
                wrong += check_all();
        }
        _exit(wrong + check_all() ? 1 : 0);
    }
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, churn, NULL);
    for (int i = 0; i < 4; i++) {
        void *wrong;
        pthread_join(threads[i], &wrong);
        printf("thread: %ld wrong\n", (long)wrong);
    }
    for (int process = 0; process < 3; process++) {
        int status;
        wait(&status);
        show_status("process", status);
    }
    return 0;
}
