/* The futex call itself: comparing, timeouts, waking, requeueing, operations; between threads and processes. */
#include "check.h"
#include <linux/futex.h>

static int word, other;
static int waiting, woken;

static long futex(int *address, int operation, int value, void *timeout_or_count, int *second, int third) {
    return syscall(SYS_futex, address, operation, value, timeout_or_count, second, third);
}

static void *sleeper(void *address) {
    __atomic_add_fetch(&waiting, 1, __ATOMIC_SEQ_CST);
    futex(address, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    __atomic_add_fetch(&woken, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static void start(pthread_t *threads, int count) {
    waiting = woken = 0;
    for (int i = 0; i < count; i++)
        pthread_create(&threads[i], NULL, sleeper, &word);
    while (__atomic_load_n(&waiting, __ATOMIC_SEQ_CST) < count)
        sched_yield();
    nap(100);
}

static void settle(int expected) {
    long start = now_ms();
    while (__atomic_load_n(&woken, __ATOMIC_SEQ_CST) < expected && now_ms() - start < 5000)
        nap(1);
    nap(30);
    printf("woken: %d\n", __atomic_load_n(&woken, __ATOMIC_SEQ_CST));
}

int main(void) {
    struct timespec small = {0, 50000000}, bad = {0, -1}, now;
    TRY(futex(&word, FUTEX_WAIT, 1, NULL, NULL, 0));
    long begun = now_ms();
    TRY(futex(&word, FUTEX_WAIT, 0, &small, NULL, 0));
    printf("timeout: %s\n", took(begun, 49));
    TRY(futex(&word, FUTEX_WAIT, 0, &bad, NULL, 0));
    TRY(futex((int *)((char *)&word + 1), FUTEX_WAIT, 0, NULL, NULL, 0));
    TRY(futex((int *)8, FUTEX_WAIT, 0, NULL, NULL, 0));
    TRY(futex(&word, FUTEX_WAKE, 1, NULL, NULL, 0));
    TRY(futex(&word, 99, 1, NULL, NULL, 0));
    TRY(futex(&word, FUTEX_WAIT_BITSET, 0, &small, NULL, 0));
    clock_gettime(CLOCK_MONOTONIC, &now);
    now.tv_nsec += 50000000;
    if (now.tv_nsec >= 1000000000)
        now.tv_sec++, now.tv_nsec -= 1000000000;
    begun = now_ms();
    TRY(futex(&word, FUTEX_WAIT_BITSET, 0, &now, NULL, -1));
    printf("absolute: %s\n", took(begun, 49));
    clock_gettime(CLOCK_REALTIME, &now);
    TRY(futex(&word, FUTEX_WAIT_BITSET | FUTEX_CLOCK_REALTIME, 0, &now, NULL, -1));

    pthread_t threads[5];
    start(threads, 5);
    TRY(futex(&word, FUTEX_WAKE_PRIVATE, 2, NULL, NULL, 0));
    settle(2);
    TRY(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)10L, &other, 7));
    TRY(futex(&word, FUTEX_CMP_REQUEUE_PRIVATE, 1, (void *)10L, &other, 0));
    settle(3);
    TRY(futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0));
    TRY(futex(&other, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0));
    settle(5);
    for (int i = 0; i < 5; i++)
        pthread_join(threads[i], NULL);
    start(threads, 3);
    other = 5;
    TRY(futex(&word, FUTEX_WAKE_OP_PRIVATE, 1, (void *)1L, &other, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_EQ, 5)));
    printf("other: %d\n", other);
    settle(1);
    futex(&word, FUTEX_WAKE_PRIVATE, 10, NULL, NULL, 0);
    for (int i = 0; i < 3; i++)
        pthread_join(threads[i], NULL);

    int *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    pid_t pid = fork();
    if (pid == 0) {
        while (__atomic_load_n(shared, __ATOMIC_SEQ_CST) == 0)
            futex(shared, FUTEX_WAIT, 0, NULL, NULL, 0);
        _exit(8);
    }
    nap(100);
    __atomic_store_n(shared, 1, __ATOMIC_SEQ_CST);
    futex(shared, FUTEX_WAKE, 1, NULL, NULL, 0);
    reap("woken across processes", pid);
    /* Two mappings of one file are one futex. */
    int file = open("futex", O_RDWR | O_CREAT | O_TRUNC, 0600);
    ftruncate(file, 4096);
    pid = fork();
    if (pid == 0) {
        int *mine = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        while (__atomic_load_n(mine, __ATOMIC_SEQ_CST) == 0)
            futex(mine, FUTEX_WAIT, 0, NULL, NULL, 0);
        _exit(9);
    }
    int *mine = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    nap(100);
    __atomic_store_n(mine, 1, __ATOMIC_SEQ_CST);
    futex(mine, FUTEX_WAKE, 1, NULL, NULL, 0);
    reap("woken through a file", pid);
    /* A robust mutex whose owner dies. */
    pthread_mutexattr_t attributes;
    pthread_mutexattr_init(&attributes);
    pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
    pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
    pthread_mutex_t *mutex = (pthread_mutex_t *)(shared + 16);
    pthread_mutex_init(mutex, &attributes);
    pid = fork();
    if (pid == 0) {
        pthread_mutex_lock(mutex);
        nap(100);
        _exit(10);
    }
    nap(40);
    printf("robust lock: %s\n", strerrorname_np(pthread_mutex_lock(mutex)));
    reap("owner", pid);
    printf("consistent: %d, unlock: %d\n", pthread_mutex_consistent(mutex), pthread_mutex_unlock(mutex));
    return 0;
}
