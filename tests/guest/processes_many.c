/* Hundreds of processes at once, each with an address space of its own that it runs in again and again. */
#include "check.h"
#include <linux/futex.h>

#define PROCESSES 400
#define ROUNDS 3

static uint32_t *shared;

static void wait_for(uint32_t *word, uint32_t value) {
    for (uint32_t seen; (seen = __atomic_load_n(word, __ATOMIC_SEQ_CST)) < value;)
        syscall(SYS_futex, word, FUTEX_WAIT, seen, NULL, NULL, 0);
}

static void announce(uint32_t *word) {
    __atomic_add_fetch(word, 1, __ATOMIC_SEQ_CST);
    syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
}

int main(void) {
    uint32_t *start = shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int alive = 0, good = 0;
    for (int i = 0; i < PROCESSES; i++) {
        pid_t pid = fork();
        if (pid == 0) {
            volatile char own[64];
            for (uint32_t round = 1; round <= ROUNDS; round++) {
                __atomic_add_fetch(shared + round, 1, __ATOMIC_SEQ_CST);
                wait_for(start, round);
                own[round] = (char)i;
                if (own[round] != (char)i)
                    _exit(1);
            }
            _exit(7);
        }
        alive += pid > 0;
    }
    printf("%d processes\n", alive);
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        while (__atomic_load_n(shared + round, __ATOMIC_SEQ_CST) < PROCESSES)
            nap(1);
        announce(start);
    }
    for (int status; wait(&status) > 0;)
        good += WIFEXITED(status) && WEXITSTATUS(status) == 7;
    printf("%d ended well\n", good);
    return 0;
}
