/* Policies, priorities, slack: what is inherited, what a fork takes back, what is refused. */
#include "check.h"
#include <sys/prctl.h>
#include <sys/resource.h>
#include <linux/ioprio.h>

#define RESET_ON_FORK 0x40000000

static void policies(void) {
    int known[] = {SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, 4, SCHED_IDLE, 6, 99, -1};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        printf("policy %d\n", known[i]);
        TRY(sched_get_priority_min(known[i]));
        TRY(sched_get_priority_max(known[i]));
    }
}

static void show_policy(const char *who) {
    struct sched_param param = {-1};
    sched_getparam(0, &param);
    printf("%s: policy %#x priority %d nice %d\n", who, sched_getscheduler(0), param.sched_priority, getpriority(PRIO_PROCESS, 0));
}

static void inheritance(void) {
    IN_CHILD("reset on fork") {
        struct sched_param none = {0};
        TRY(setpriority(PRIO_PROCESS, 0, 3));
        TRY(sched_setscheduler(0, SCHED_BATCH | RESET_ON_FORK, &none));
        show_policy("parent");
        IN_CHILD("its child") { show_policy("child"); }
        TRY(sched_setparam(0, &none));
        show_policy("parent");
    }
    IN_CHILD("without rights") {
        struct sched_param none = {0};
        TRY(sched_setscheduler(0, SCHED_OTHER | RESET_ON_FORK, &none));
        TRY(setresuid(1000, 1000, 1000));
        TRY(sched_setscheduler(0, SCHED_OTHER, &none));
        TRY(sched_setscheduler(0, SCHED_BATCH | RESET_ON_FORK, &none));
        show_policy("user");
    }
    IN_CHILD("attributes") {
        struct { uint32_t size, policy; uint64_t flags; int32_t nice; uint32_t priority; uint64_t runtime, deadline, period; } attr = {0};
        TRY(syscall(SYS_sched_getattr, 0, &attr, 48, 0));
        attr.size = 48, attr.policy = SCHED_BATCH, attr.flags = 1, attr.nice = 5;
        TRY(syscall(SYS_sched_setattr, 0, &attr, 0));
        show_policy("with a flag");
        memset(&attr, 0, sizeof attr);
        TRY(syscall(SYS_sched_getattr, 0, &attr, 48, 0));
        printf("policy %u flags %lu nice %d\n", attr.policy, (unsigned long)attr.flags, attr.nice);
    }
}

static void slack(void) {
    IN_CHILD("slack") {
        TRY(prctl(PR_GET_TIMERSLACK));
        TRY(prctl(PR_SET_TIMERSLACK, 70000));
        IN_CHILD("its child") {
            TRY(prctl(PR_GET_TIMERSLACK));
            TRY(prctl(PR_SET_TIMERSLACK, 90000));
            TRY(prctl(PR_GET_TIMERSLACK));
            /* The default is what was inherited. */
            TRY(prctl(PR_SET_TIMERSLACK, 0));
            TRY(prctl(PR_GET_TIMERSLACK));
        }
        TRY(prctl(PR_SET_TIMERSLACK, 0));
        TRY(prctl(PR_GET_TIMERSLACK));
        show_file("/proc/self/timerslack_ns");
    }
    TRY(prctl(PR_GET_THP_DISABLE, 0, 0, 0, 0));
    TRY(prctl(PR_GET_THP_DISABLE, 1, 0, 0, 0));
}

static void io_priorities(void) {
    TRY(syscall(SYS_ioprio_set, 1, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_BE, 3)));
    TRY(syscall(SYS_ioprio_get, 1, 0));
    TRY(syscall(SYS_ioprio_set, 1, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_NONE, 3)));
    TRY(syscall(SYS_ioprio_set, 1, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_NONE, 0)));
    TRY(syscall(SYS_ioprio_set, 1, 0, IOPRIO_PRIO_VALUE(IOPRIO_CLASS_IDLE, 7)));
    TRY(syscall(SYS_ioprio_set, 1, 0, IOPRIO_PRIO_VALUE(4, 0)));
    TRY(syscall(SYS_ioprio_set, 9, 0, 0));
}

static void sleeps(void) {
    int clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
                    CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_TAI, 42};
    struct timespec moment = {0, 1000}, wrong = {0, 1000000000};
    for (size_t i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        printf("clock %d\n", clocks[i]);
        TRY(syscall(SYS_clock_nanosleep, clocks[i], 0, &moment, NULL));
        TRY(syscall(SYS_clock_nanosleep, clocks[i], 0, &wrong, NULL));
        TRY(syscall(SYS_clock_nanosleep, clocks[i], 0, NULL, NULL));
    }
}

int main(void) {
    policies();
    inheritance();
    slack();
    io_priorities();
    sleeps();
    return 0;
}
