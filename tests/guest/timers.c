/* alarm, setitimer, POSIX timers. */
#include "check.h"

static volatile int alarms, ticks;
static volatile int value, code, overrun_ok;
static timer_t timer;

static void on_alarm(int signal) { (void)signal; alarms++; }
static void on_timer(int signal, siginfo_t *info, void *context) {
    (void)signal; (void)context;
    ticks++;
    value = info->si_value.sival_int;
    code = info->si_code;
    overrun_ok = timer_getoverrun(timer) >= 0;
}

static volatile int fired;
static void on_cpu(int signal) { (void)signal; fired++; }

/* Uses this much of the thread's own time. */
static void work(long milliseconds) {
    struct timespec now, begun;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &begun);
    do
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    while ((now.tv_sec - begun.tv_sec) * 1000 + (now.tv_nsec - begun.tv_nsec) / 1000000 < milliseconds);
}

static void *worker(void *unused) {
    work(150);
    return unused;
}

/* As `worker`, but not before its clock has a timer. */
static volatile int told;
static void *worker_when_told(void *unused) {
    while (!told)
        nap(1);
    return worker(unused);
}

/* A timer on a thread's CPU time does not run while another thread works; one on the process's does. */
static void cpu_timers(void) {
    signal(SIGUSR1, on_cpu);
    signal(SIGUSR2, on_cpu);
    timer_t own, all;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR1};
    TRY(timer_create(CLOCK_THREAD_CPUTIME_ID, &event, &own));
    event.sigev_signo = SIGUSR2;
    TRY(timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &all));
    struct itimerspec soon = {.it_value = {0, 60000000}}, left;
    TRY(timer_settime(own, 0, &soon, NULL));
    pthread_t thread;
    pthread_create(&thread, NULL, worker, NULL);
    pthread_join(thread, NULL);
    printf("fired %d for another thread's work\n", fired);
    TRY(timer_gettime(own, &left));
    printf("left %s\n", left.it_value.tv_nsec > 20000000 ? "most" : "little");
    work(100);
    for (int n = 0; n < 1000 && !fired; n++)
        work(1);
    printf("fired %d for its own\n", fired);
    fired = 0;
    TRY(timer_settime(all, 0, &soon, NULL));
    pthread_create(&thread, NULL, worker, NULL);
    pthread_join(thread, NULL);
    for (int n = 0; n < 1000 && !fired; n++)
        work(1);
    printf("fired %d for everybody's\n", fired);
    clockid_t clock;
    pthread_create(&thread, NULL, worker_when_told, NULL);
    TRY(pthread_getcpuclockid(thread, &clock));
    event.sigev_signo = SIGUSR1;
    TRY(timer_create(clock, &event, &own));
    fired = 0;
    TRY(timer_settime(own, 0, &soon, NULL));
    told = 1;
    pthread_join(thread, NULL);
    for (int n = 0; n < 100 && !fired; n++)
        nap(1);
    printf("fired %d for the other's\n", fired);
    /* No such thread: ~tid << 3, with the bits of a thread's CPU time. */
    TRY(timer_create((clockid_t)(~0x3ffffffu << 3 | 6), &event, &own));
}

int main(void) {
    cpu_timers();
    signal(SIGALRM, on_alarm);
    TRY(alarm(100));
    printf("left of the alarm: %s\n", alarm(0) >= 99 ? "99 or 100" : "less");
    long start = now_ms();
    struct itimerval once = {.it_value = {0, 100000}}, every = {{0, 20000}, {0, 20000}}, off = {{0, 0}, {0, 0}}, old;
    TRY(setitimer(ITIMER_REAL, &once, NULL));
    pause();
    printf("real timer: %s, %d\n", took(start, 99), alarms);
    TRY(setitimer(ITIMER_REAL, &every, NULL));
    while (alarms < 6)
        pause();
    TRY(setitimer(ITIMER_REAL, &off, &old));
    printf("interval %ld\n", (long)old.it_interval.tv_usec);
    TRY(setitimer(7, &once, NULL));
    struct itimerval bad = {.it_value = {0, 1000000}};
    TRY(setitimer(ITIMER_REAL, &bad, NULL));
    signal(SIGVTALRM, on_alarm);
    alarms = 0;
    struct itimerval cpu = {.it_value = {0, 30000}};
    setitimer(ITIMER_VIRTUAL, &cpu, NULL);
    long begun = now_ms();
    while (!alarms && now_ms() - begun < 5000)
        ;
    printf("virtual timer: %d\n", alarms);

    struct sigaction action = {.sa_sigaction = on_timer, .sa_flags = SA_SIGINFO};
    sigaction(SIGRTMIN + 1, &action, NULL);
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1, .sigev_value.sival_int = 55};
    TRY(timer_create(CLOCK_MONOTONIC, &event, &timer));
    struct itimerspec period = {{0, 10000000}, {0, 10000000}}, none = {{0, 0}, {0, 0}}, left;
    TRY(timer_settime(timer, 0, &period, NULL));
    while (ticks < 5)
        pause();
    TRY(timer_gettime(timer, &left));
    printf("value %d code %d overrun %s interval %ld\n", value, code, overrun_ok ? "ok" : "bad", left.it_interval.tv_nsec);
    TRY(timer_settime(timer, 0, &none, NULL));
    TRY(timer_delete(timer));
    TRY(timer_delete(timer));
    struct sigevent wrong = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = 200};
    TRY(timer_create(CLOCK_MONOTONIC, &wrong, &timer));
    TRY(timer_create(77, &event, &timer));
    struct sigevent silent = {.sigev_notify = SIGEV_NONE};
    TRY(timer_create(CLOCK_REALTIME, &silent, &timer));
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    struct itimerspec absolute = {.it_value = {now.tv_sec + 100, now.tv_nsec}};
    TRY(timer_settime(timer, TIMER_ABSTIME, &absolute, NULL));
    timer_gettime(timer, &left);
    /* Due in the past, with a short period: what was missed counts, and no more than fits. */
    signal(SIGALRM, SIG_IGN);
    sigset_t alarms;
    sigemptyset(&alarms);
    sigaddset(&alarms, SIGALRM);
    sigprocmask(SIG_BLOCK, &alarms, NULL);
    signal(SIGALRM, SIG_DFL);
    struct sigevent alarm_event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    timer_t late;
    TRY(timer_create(CLOCK_MONOTONIC, &alarm_event, &late));
    struct timespec here;
    clock_gettime(CLOCK_MONOTONIC, &here);
    siginfo_t info;
    struct itimerspec missed = {{10, 0}, {here.tv_sec - 105, here.tv_nsec}};
    TRY(timer_settime(late, TIMER_ABSTIME, &missed, NULL));
    TRY(sigwaitinfo(&alarms, &info));
    printf("overrun %d %d\n", info.si_overrun, timer_getoverrun(late));
    missed = (struct itimerspec){{0, 1}, {here.tv_sec - 5, here.tv_nsec}};
    TRY(timer_settime(late, TIMER_ABSTIME, &missed, NULL));
    TRY(sigwaitinfo(&alarms, &info));
    printf("overrun %d\n", timer_getoverrun(late));
    TRY(timer_delete(late));
    printf("left: %s\n", left.it_value.tv_sec >= 98 && left.it_value.tv_sec <= 100 ? "98 to 100" : "wrong");
    return 0;
}
