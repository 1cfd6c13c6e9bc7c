/* Calls that are ready at once most of the time and have to wait now and then, made one right after the other, so that whatever answers calls is
 * awake and meets both: each gives what it should, and a wait ends when it should. */
#include "check.h"

#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/shm.h>

enum { ROUNDS = 2000, EACH = 50 };

struct message {
    long kind;
    int number;
};

static int failures;

/* Counts what is not as it should be, and prints the first. */
#define SHOULD(what, holds)                                                    \
    do {                                                                       \
        if (!(holds) && failures++ == 0)                                       \
            printf("%s, line %d: %s\n", what, __LINE__, strerrorname_np(errno)); \
    } while (0)

static void settle(const char *what) {
    printf("%s: %d failures\n", what, failures);
    failures = 0;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec + now.tv_nsec / 1e9;
}

/* A child that sends one byte (or message) after another, with a pause before every fiftieth. */
static void readiness(void) {
    int ends[2];
    pipe(ends);
    pid_t pid = fork();
    if (pid == 0) {
        for (int round = 0; round < ROUNDS; round++) {
            if (round % EACH == 0)
                nap(3);
            char byte = round;
            struct iovec parts[2] = {{&byte, 1}, {&byte, 0}};
            if (writev(ends[1], parts, 2) != 1)
                _exit(1);
        }
        _exit(0);
    }
    close(ends[1]);
    for (int round = 0; round < ROUNDS; round++) {
        fd_set set;
        struct pollfd one = {ends[0], POLLIN, 0};
        FD_ZERO(&set);
        FD_SET(ends[0], &set);
        sigset_t none;
        sigemptyset(&none);
        switch (round % 4) {
        case 0: SHOULD("select", select(ends[0] + 1, &set, NULL, NULL, NULL) == 1 && FD_ISSET(ends[0], &set)); break;
        case 1: SHOULD("pselect", pselect(ends[0] + 1, &set, NULL, NULL, NULL, &none) == 1 && FD_ISSET(ends[0], &set)); break;
        case 2: SHOULD("ppoll", ppoll(&one, 1, NULL, NULL) == 1 && one.revents & POLLIN); break;
        case 3: SHOULD("ppoll with a mask", ppoll(&one, 1, NULL, &none) == 1 && one.revents & POLLIN); break;
        }
        int waiting = 0;
        SHOULD("FIONREAD", ioctl(ends[0], FIONREAD, &waiting) == 0 && waiting >= 1);
        unsigned char byte;
        SHOULD("read", read(ends[0], &byte, 1) == 1 && byte == (unsigned char)round);
    }
    reap("writer", pid);
    settle("readiness");

    /* Nothing comes any more: the end of file is always ready, an empty set never is. */
    double begun = seconds();
    for (int round = 0; round < ROUNDS; round++) {
        struct timespec no_time = {0, 0}, some_time = {0, 1000000};
        SHOULD("pselect of nothing", pselect(0, NULL, NULL, NULL, round % EACH ? &no_time : &some_time, NULL) == 0);
        SHOULD("ppoll of nothing", ppoll(NULL, 0, round % EACH ? &no_time : &some_time, NULL) == 0);
    }
    SHOULD("timeouts", seconds() - begun >= 2 * ROUNDS / EACH * 0.001);
    close(ends[0]);
    settle("timeouts");
}

static void messages(void) {
    int there = msgget(IPC_PRIVATE, 0600 | IPC_CREAT), back = msgget(IPC_PRIVATE, 0600 | IPC_CREAT);
    pid_t pid = fork();
    if (pid == 0) {
        struct message message;
        for (int round = 0; round < ROUNDS; round++) {
            if (msgrcv(there, &message, sizeof message.number, 0, 0) != sizeof message.number)
                _exit(1);
            if (round % EACH == 0)
                nap(2);
            if (msgsnd(back, &message, sizeof message.number, 0))
                _exit(2);
        }
        _exit(0);
    }
    int received = 0;
    for (int sent = 0; received < ROUNDS;) {
        struct message message = {1, sent};
        /* Some messages are under way at a time, so that receiving waits now and then only. */
        if (sent < ROUNDS && sent - received < 20) {
            SHOULD("msgsnd", msgsnd(there, &message, sizeof message.number, 0) == 0);
            sent++;
            continue;
        }
        SHOULD("msgrcv", msgrcv(back, &message, sizeof message.number, 0, 0) == sizeof message.number);
        SHOULD("order", message.number == received);
        received++;
        struct msqid_ds state;
        SHOULD("msgctl", msgctl(back, IPC_STAT, &state) == 0 && state.msg_qnum <= 20);
    }
    reap("answerer", pid);
    SHOULD("IPC_RMID", msgctl(there, IPC_RMID, NULL) == 0 && msgctl(back, IPC_RMID, NULL) == 0);
    SHOULD("gone", msgctl(back, IPC_RMID, NULL) == -1 && errno == EINVAL);
    settle("messages");
}

static void connections(void) {
    struct sockaddr_un name = {AF_UNIX, ""};
    int listener = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "calls-between-%d", getpid());
    bind(listener, (struct sockaddr *)&name, sizeof name);
    listen(listener, 8);
    pid_t pid = fork();
    if (pid == 0) {
        for (int round = 0; round < ROUNDS / 4; round++) {
            if (round % EACH == 0)
                nap(2);
            int fd = socket(AF_UNIX, SOCK_STREAM, 0);
            if (connect(fd, (struct sockaddr *)&name, sizeof name) || write(fd, &round, sizeof round) != sizeof round)
                _exit(1);
            close(fd);
        }
        _exit(0);
    }
    for (int round = 0; round < ROUNDS / 4; round++) {
        int number = -1, off = 0, fd = round % 2 ? accept(listener, NULL, NULL) : accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        SHOULD("accept", fd >= 0);
        SHOULD("FIONBIO", ioctl(fd, FIONBIO, &off) == 0);
        SHOULD("read", read(fd, &number, sizeof number) == sizeof number && number == round);
        close(fd);
    }
    reap("connector", pid);
    close(listener);
    settle("connections");
}

static volatile sig_atomic_t caught, value;

static void on_signal(int signal, siginfo_t *info, void *context) {
    (void)signal, (void)context;
    caught++;
    value = info->si_value.sival_int;
}

static void small_calls(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &action, NULL);
    int sems = semget(IPC_PRIVATE, 3, 0600 | IPC_CREAT), memory = shmget(IPC_PRIVATE, 4096, 0600 | IPC_CREAT);
    for (int round = 0; round < ROUNDS; round++) {
        char name[16], wanted[16];
        snprintf(wanted, sizeof wanted, "name %d", round);
        SHOULD("PR_SET_NAME", prctl(PR_SET_NAME, wanted) == 0);
        SHOULD("PR_GET_NAME", prctl(PR_GET_NAME, name) == 0 && strcmp(name, wanted) == 0);
        SHOULD("semctl", semctl(sems, round % 3, SETVAL, round) == 0 && semctl(sems, round % 3, GETVAL) == round);
        struct shmid_ds state;
        SHOULD("shmctl", shmctl(memory, IPC_STAT, &state) == 0 && state.shm_segsz == 4096);
        SHOULD("sigqueue", sigqueue(getpid(), SIGUSR1, (union sigval){.sival_int = round}) == 0);
        SHOULD("signal", caught == round + 1 && value == round);
        SHOULD("scheduler", sched_getscheduler(0) == SCHED_OTHER && sched_get_priority_max(SCHED_FIFO) == 99);
        timer_t timer;
        struct sigevent event = {.sigev_notify = SIGEV_NONE};
        struct itimerspec long_time = {{0, 0}, {1000, 0}}, left;
        SHOULD("timer_create", timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
        SHOULD("timer_settime", timer_settime(timer, 0, &long_time, NULL) == 0);
        SHOULD("timer_gettime", timer_gettime(timer, &left) == 0 && left.it_value.tv_sec >= 900);
        SHOULD("timer_delete", timer_getoverrun(timer) == 0 && timer_delete(timer) == 0);
    }
    SHOULD("IPC_RMID", semctl(sems, 0, IPC_RMID) == 0 && shmctl(memory, IPC_RMID, NULL) == 0);
    settle("small calls");
}

/* More than is written at once without the thread's own help. */
static void long_vectors(void) {
    enum { LENGTH = 3 << 20 };
    int ends[2];
    pipe(ends);
    pid_t pid = fork();
    char *block = malloc(LENGTH);
    if (pid == 0) {
        close(ends[1]);
        size_t total = 0;
        for (ssize_t done; (done = read(ends[0], block, LENGTH)) > 0;)
            for (ssize_t n = 0; n < done; n++, total++)
                if (block[n] != (char)(total % LENGTH / 4099))
                    _exit(1);
        _exit(total == 4 * LENGTH ? 0 : 2);
    }
    close(ends[0]);
    for (size_t n = 0; n < LENGTH; n++)
        block[n] = n / 4099;
    for (int round = 0; round < 4; round++) {
        struct iovec parts[3] = {{block, 5}, {block + 5, LENGTH - 1000}, {block + LENGTH - 995, 995}};
        for (int n = 0; n < 200; n++)
            syscall(SYS_getppid);
        SHOULD("writev", writev(ends[1], parts, 3) == LENGTH);
    }
    close(ends[1]);
    reap("reader", pid);
    free(block);
    settle("long vectors");
}

int main(void) {
    readiness();
    messages();
    connections();
    small_calls();
    long_vectors();
    return 0;
}
