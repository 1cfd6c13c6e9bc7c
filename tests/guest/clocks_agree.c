/* Clocks read by the vDSO and by system calls: the same time, never backwards. */
#include "check.h"

static long long by_call(clockid_t clock) {
    struct timespec now;
    syscall(SYS_clock_gettime, clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static long long by_function(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static _Atomic long long latest;

static void *climb(void *unused) {
    long backwards = 0;
    for (int i = 0; i < 20000; i++) {
        long long seen = latest;
        long long now = i % 16 ? by_function(CLOCK_MONOTONIC) : by_call(CLOCK_MONOTONIC);
        backwards += now < seen;
        while (seen < now && !__atomic_compare_exchange_n(&latest, &seen, now, false, 5, 5))
            ;
    }
    (void)unused;
    return (void *)backwards;
}

int main(void) {
    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI};
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        long far = 0;
        for (int n = 0; n < 1000; n++) {
            long long before = by_call(clocks[i]), between = by_function(clocks[i]), after = by_call(clocks[i]);
            far += before > between || between > after;
        }
        printf("clock %d disagrees: %ld\n", (int)clocks[i], far);
    }
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        pthread_create(&threads[i], NULL, climb, NULL);
    for (int i = 0; i < 4; i++) {
        void *backwards;
        pthread_join(threads[i], &backwards);
        printf("backwards: %ld\n", (long)backwards);
    }
    for (int i = 0; i < 30; i++) {
        long long start = by_function(CLOCK_MONOTONIC);
        nap(50);
        if (by_call(CLOCK_MONOTONIC) - start < 50000000)
            puts("woke too early");
    }
    struct timespec resolution;
    TRY(clock_getres(CLOCK_MONOTONIC, &resolution));
    printf("%ld ns\n", resolution.tv_nsec);
    TRY(clock_gettime(10, &resolution));
    TRY(clock_gettime(12345, &resolution));
    struct timeval day;
    TRY(gettimeofday(&day, NULL));
    printf("same day: %d\n", labs(day.tv_sec - time(NULL)) < 2 && labs(day.tv_sec - by_call(CLOCK_REALTIME) / 1000000000) < 2);
    return 0;
}
