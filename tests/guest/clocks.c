/* Clocks and sleeping, with and without the vDSO. */
#include "check.h"
#include <sys/auxv.h>
#include <sys/sysinfo.h>
#include <sys/times.h>
#include <sys/utsname.h>

static double seconds(clockid_t clock) {
    struct timespec time = {-1, 0};
    clock_gettime(clock, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

int main(void) {
    struct timespec time;
    clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW,
                          CLOCK_REALTIME_COARSE, CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI};
    for (unsigned i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        int plain = clock_gettime(clocks[i], &time), raw = (int)syscall(SYS_clock_gettime, clocks[i], &time);
        double a = seconds(clocks[i]);
        struct timespec again;
        syscall(SYS_clock_gettime, clocks[i], &again);
        double b = (double)again.tv_sec + (double)again.tv_nsec / 1e9;
        printf("clock %d: %d %d %s\n", clocks[i], plain, raw, b - a >= 0 && b - a < 1 ? "agree" : "differ");
    }
    TRY(clock_gettime(77, &time));
    TRY(clock_getres(CLOCK_MONOTONIC, &time));
    printf("resolution %ld\n", time.tv_nsec);
    TRY(clock_settime(CLOCK_MONOTONIC, &time));
    double last = 0;
    int backwards = 0;
    for (int i = 0; i < 300000; i++) {
        double now = seconds(CLOCK_MONOTONIC);
        backwards += now < last;
        last = now;
    }
    printf("backwards %d\n", backwards);
    struct timeval day;
    gettimeofday(&day, NULL);
    printf("day %s\n", labs(day.tv_sec - (long)seconds(CLOCK_REALTIME)) <= 1 && labs(day.tv_sec - (long)syscall(SYS_time, NULL)) <= 1 ? "agrees" : "differs");
    long start = now_ms();
    struct timespec nap_time = {0, 50000000}, bad = {0, 1000000000}, negative = {-1, 0};
    TRY(clock_nanosleep(CLOCK_MONOTONIC, 0, &nap_time, NULL));
    printf("slept %s\n", took(start, 50));
    clock_gettime(CLOCK_MONOTONIC, &time);
    time.tv_nsec += 50000000;
    if (time.tv_nsec >= 1000000000)
        time.tv_sec++, time.tv_nsec -= 1000000000;
    start = now_ms();
    TRY(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL));
    printf("until %s\n", took(start, 49));
    TRY(nanosleep(&bad, NULL));
    TRY(nanosleep(&negative, NULL));
    TRY(nanosleep((void *)8, NULL));
    TRY(clock_nanosleep(CLOCK_THREAD_CPUTIME_ID, 0, &nap_time, NULL));
    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID);
    nap(100);
    printf("asleep no processor time %d\n", seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu < 0.05);
    volatile long work = 0;
    cpu = seconds(CLOCK_THREAD_CPUTIME_ID);
    start = now_ms();
    while (now_ms() - start < 300)
        work++;
    printf("busy processor time %d\n", seconds(CLOCK_THREAD_CPUTIME_ID) - cpu > 0.01);
    struct tms used;
    printf("times %d\n", times(&used) > 0 && used.tms_utime + used.tms_stime > 0);
    struct sysinfo info;
    TRY(sysinfo(&info));
    printf("up %d memory %d processes %d\n", info.uptime > 0, info.totalram > 0, info.procs > 0);
    struct utsname names;
    TRY(uname(&names));
    printf("%s %s\n", names.sysname, names.machine);
    printf("auxv: page %lu vdso %d random %d secure %lu\n", getauxval(AT_PAGESZ), getauxval(AT_SYSINFO_EHDR) != 0, getauxval(AT_RANDOM) != 0,
           getauxval(AT_SECURE));
    unsigned processor;
    TRY(getcpu(&processor, NULL));
    printf("processor %d\n", processor < (unsigned)sysconf(_SC_NPROCESSORS_CONF));
    char random[32] = {0}, zero[32] = {0};
    TRY(syscall(SYS_getrandom, random, sizeof random, 0));
    printf("random %d\n", memcmp(random, zero, sizeof zero) != 0);
    TRY(syscall(SYS_getrandom, random, 8, 0x100));
    return 0;
}
